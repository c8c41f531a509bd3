//! A controller and its keys: authenticates the admin queue, and changes keys at
//! run time. What a transaction is made of is in `authenticate`.

use std::rc::Rc;
use std::sync::Arc;

use tenon_sdk::{Error, errno};

use super::admin::Reply;
use super::command::AdminCommand;
use super::state::State;
use super::{Controller, Waiter};
use crate::authenticate::authenticate;
use crate::credentials::{Credentials, HeldKeys, KeyNames};
use crate::side::Side;

impl Controller {
    /// Authenticates the admin queue; heard only while this attempt lasts.
    pub(super) fn authenticate(&self, done: impl FnOnce(&Controller, Result<(), String>) + 'static) {
        let (me, attempt) = (self.me.clone(), self.attempt.get());
        let is_same = move |controller: &Rc<Controller>| controller.attempt.get() == attempt;
        let sender = self.me.clone();
        let send = move |command: &AdminCommand, reply: Reply| {
            let admin = sender.upgrade().filter(is_same).and_then(|controller| {
                let admin = controller.admin.borrow().clone()?;
                Some((admin, controller.plan.admin_timeout))
            });
            match admin {
                Some((admin, timeout)) => admin.send(command, timeout, reply),
                None => reply(Err(errno::ECANCELED)),
            }
        };
        let names = (&*self.door.identity.nqn, &*self.door.address.subnqn);
        let end = move |result| {
            if let Some(controller) = me.upgrade().filter(is_same) {
                done(&controller, result);
            }
        };
        authenticate(self.host, Rc::new(send), &self.door.credentials(), names, Box::new(end));
    }

    /// Authenticates with other keys from now on; on failure with the old ones.
    pub(crate) fn set_keys(&self, names: KeyNames, credentials: Credentials, held: HeldKeys, done: Waiter) {
        let old = (self.key_names.replace(names), self.keys.replace(held));
        let old_credentials = self.door.set_credentials(Arc::new(credentials));
        let has_key = self.door.credentials().has_key();
        if self.state.get() != State::Ready || !has_key {
            // The next connection begins with them.
            return done(Ok(()));
        }
        let me = self.me.clone();
        let undo = move |reason: &str| {
            let Some(controller) = me.upgrade() else { return };
            log::warn!("keys were not changed name={} reason=\"{reason}\"", controller.plan.params.name);
            controller.door.set_credentials(old_credentials);
            (*controller.key_names.borrow_mut(), *controller.keys.borrow_mut()) = old;
        };
        self.authenticate(move |controller, result| match result {
            Ok(()) => {
                controller.tell_queues_to_authenticate();
                done(Ok(()));
            }
            Err(reason) => {
                undo(&reason);
                done(Err(Error::new(errno::EACCES, reason).object(&*controller.plan.params.name)));
            }
        });
    }

    fn tell_queues_to_authenticate(&self) {
        let (host, id) = (self.host, self.id);
        let told = host.each_reactor(
            move |_| {
                if let Some(side) = Side::existing(host) {
                    side.authenticate(id);
                }
            },
            || {},
        );
        if let Err(error) = told {
            log::error!("queues were not told to authenticate error=\"{error}\"");
        }
    }
}
