//! Attaching controllers: one, all paths of a table, or one that a discovery
//! service tells of. On the control thread.
//!
//! An operation that attaches is answered when every one of its controllers has
//! come to serve or failed. What becomes of namespaces is in `registry`.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use serde_json::json;
use tenon_sdk::{Error, FabricTransport, OpToken, errno};

use crate::config::{Multipath, NvmeParams, Timers};
use crate::controller::command::HostIdentity;
use crate::controller::{Controller, IO_ENTRIES, Listener, Plan};
use crate::credentials::{Credentials, KeyNames, channel_key};
use crate::door::{Door, Target};
use crate::module;
use crate::registry::Registry;

/// An operation that devices are registered under.
pub(crate) type Asked = Rc<Asking>;

/// See [`Asked`].
pub(crate) struct Asking {
    /// Empty once it is answered.
    token: Cell<Option<OpToken>>,
    /// Why a namespace cannot become a device, if that does not change by itself.
    refused: RefCell<Option<Error>>,
}

impl Asking {
    pub(crate) fn new(token: OpToken) -> Asked {
        Rc::new(Asking { token: Cell::new(Some(token)), refused: RefCell::default() })
    }

    pub(crate) fn take(&self) -> Option<OpToken> {
        self.token.take()
    }

    /// Puts back what was taken while the host was called.
    pub(crate) fn put(&self, token: Option<OpToken>) {
        self.token.set(token);
    }

    pub(crate) fn refuse(&self, error: Error) {
        self.refused.borrow_mut().get_or_insert(error);
    }

    pub(crate) fn refused(&self) -> Option<Error> {
        self.refused.take()
    }
}

/// What an attached controller is for.
pub(crate) struct Purpose {
    /// The operation its devices belong to.
    pub(crate) asked: Option<Asked>,
    /// It is tried again although it never served yet.
    pub(crate) keeps_trying: bool,
}

type Attached = Box<dyn FnOnce(Result<u64, Error>)>;

/// Controllers that are attached together.
struct Group {
    left: Cell<usize>,
    serving: RefCell<Vec<u64>>,
    failed: RefCell<Vec<Error>>,
}

impl Registry {
    /// Attaches the controllers that `params` names; answers with the names of their devices. With `keeps_trying`
    /// those that cannot be reached are tried again if they have a `reconnect_delay_sec`, and the operation
    /// succeeds without them.
    pub(crate) fn attach(self: &Rc<Self>, params: &NvmeParams, keeps_trying: bool, token: OpToken) {
        let members = match params.members() {
            Ok(members) => members,
            Err(error) => return token.fail(error),
        };
        // Both would be one name in a file.
        if self.host.find(&params.name).is_some() {
            return token.fail(Error::exists(&*params.name));
        }
        self.add_wishes(params);
        let asked = Asking::new(token);
        let (serving, failed) = (RefCell::default(), RefCell::default());
        let group = Rc::new(Group { left: Cell::new(members.len()), serving, failed });
        for member in members {
            let purpose = Purpose { asked: Some(Rc::clone(&asked)), keeps_trying };
            let (registry, group, asked) = (Rc::clone(self), Rc::clone(&group), Rc::clone(&asked));
            let may_wait = keeps_trying && self.timers_of(&member).reconnect_delay_sec > 0;
            self.attach_one(
                member,
                purpose,
                Box::new(move |result| {
                    match result {
                        Ok(id) => group.serving.borrow_mut().push(id),
                        Err(error) => group.failed.borrow_mut().push(error),
                    }
                    group.left.set(group.left.get() - 1);
                    if group.left.get() == 0
                        && let Some(token) = asked.take()
                    {
                        match asked.refused() {
                            Some(error) => registry.refuse(&group, error, token),
                            None => registry.attached(&group, may_wait, token),
                        }
                    }
                }),
            );
        }
    }

    /// Ends what has that name: a discovery service, controllers or one device; answers when it is gone.
    pub(crate) fn delete(&self, name: &str, token: OpToken) {
        let token = Rc::new(Cell::new(Some(token)));
        let done = Rc::clone(&token);
        let is_gone = move || {
            if let Some(token) = done.take() {
                token.done();
            }
        };
        let controllers = self.controllers(Some(name));
        if let Some(discovery) = self.take_discovery(name) {
            let reason = Error::new(errno::ECANCELED, "discovery was stopped");
            let controllers = discovery.end(reason);
            self.detach(&controllers, move || {
                is_gone();
                // What it asked may be announced as well.
                if let Some(registry) = module::registry() {
                    registry.follow_announcements();
                }
            });
        } else if self.device_named(name).is_some() {
            // The host removes the device; its controllers stay.
            is_gone();
        } else if !controllers.is_empty() {
            self.detach(&controllers, is_gone);
        } else if let Some(token) = token.take() {
            token.fail(Error::not_found(name));
        }
    }

    /// A namespace of an operation cannot become a device: the operation leaves nothing behind.
    fn refuse(&self, group: &Group, error: Error, token: OpToken) {
        let serving = group.serving.take();
        let serving: Vec<_> = serving.into_iter().filter_map(|id| self.controller(id)).collect();
        self.detach(&serving, move || token.fail(error));
    }

    /// Every controller of an operation has come to an end.
    fn attached(&self, group: &Group, may_wait: bool, token: OpToken) {
        let (serving, mut failed) = (group.serving.take(), group.failed.take());
        if serving.is_empty() && !failed.is_empty() && !may_wait {
            return token.fail(failed.swap_remove(0));
        }
        for error in &failed {
            log::warn!("path is not there yet error=\"{error}\"");
        }
        if serving.is_empty() {
            let missing: Vec<String> = failed.iter().map(|error| error.reason.clone()).collect();
            return token.reply(&json!({ "missing": missing }));
        }
        let mut names: Vec<String> = serving.iter().flat_map(|id| self.device_names(*id)).collect();
        names.sort();
        names.dedup();
        token.reply(&names);
    }

    fn timers_of(&self, params: &NvmeParams) -> Timers {
        Timers::of(params, &self.config.borrow())
    }

    /// Attaches one controller; `done` hears of it once, with its number.
    pub(crate) fn attach_one(self: &Rc<Self>, params: NvmeParams, purpose: Purpose, done: Attached) {
        let timers = self.timers_of(&params);
        if let Err(error) = self.check(&params, &timers) {
            return done(Err(error));
        }
        let (registry, trtype) = (Rc::clone(self), params.trtype.clone());
        let done = Rc::new(Cell::new(Some(done)));
        let waiting = Rc::clone(&done);
        let asked = self.host.transport(&trtype, move |transport| {
            let Some(done) = waiting.take() else { return };
            match transport {
                // Another one may have come while the transport was loaded.
                Ok(transport) => match registry.check(&params, &timers) {
                    Ok(()) => registry.attach_over(transport, params, timers, purpose, done),
                    Err(error) => done(Err(error)),
                },
                Err(error) => done(Err(error)),
            }
        });
        if let Err(error) = asked
            && let Some(done) = done.take()
        {
            done(Err(error));
        }
    }

    fn check(&self, params: &NvmeParams, timers: &Timers) -> Result<(), Error> {
        params.check()?;
        timers.check().map_err(|error| error.object(&*params.name))?;
        if params.subnqn.is_empty() {
            return Err(
                Error::invalid("subnqn is empty: must be the NQN of a subsystem").object(&*params.name)
            );
        }
        for other in self.controllers(Some(&params.name)) {
            let (new, old) = (params.address(0), other.plan.params.address(0));
            let refused = |code, reason: &str| Err(Error::new(code, reason).object(&*params.name));
            if new == old && params.hostaddr == other.plan.params.hostaddr {
                return refused(EALREADY, "a controller of this name has this address already");
            }
            if params.multipath == Multipath::Disable || other.plan.params.multipath == Multipath::Disable {
                return refused(errno::EEXIST, "a controller of this name exists, and multipath is disabled");
            }
            if new.subnqn != old.subnqn {
                return refused(errno::EINVAL, "a controller of this name belongs to another subsystem");
            }
        }
        Ok(())
    }

    fn attach_over(
        self: &Rc<Self>,
        transport: FabricTransport,
        params: NvmeParams,
        timers: Timers,
        purpose: Purpose,
        done: Attached,
    ) {
        let keeps_trying = purpose.keeps_trying && timers.reconnect_delay_sec > 0;
        let controller = match self.new_controller(transport, params, timers, keeps_trying, None) {
            Ok(controller) => controller,
            Err(error) => return done(Err(error)),
        };
        let id = controller.id;
        self.controllers.borrow_mut().insert(id, Rc::clone(&controller));
        self.begin_upkeep();
        if let Some(asked) = purpose.asked {
            self.attaching.borrow_mut().insert(id, asked);
        }
        let registry = Rc::clone(self);
        controller.start(Box::new(move |result| {
            registry.attaching.borrow_mut().remove(&id);
            done(result.map(|()| id));
        }));
    }

    /// A controller that is not started yet; fails if its keys are not there.
    pub(crate) fn new_controller(
        self: &Rc<Self>,
        transport: FabricTransport,
        params: NvmeParams,
        timers: Timers,
        keeps_trying: bool,
        listener: Option<Listener>,
    ) -> Result<Rc<Controller>, Error> {
        let config = self.config.borrow().clone();
        let trtype = transport.trtype();
        let connect_us = params.fabrics_connect_timeout_us.unwrap_or(config.tcp_connect_timeout_ms * 1000);
        let identity = params.hostnqn.as_deref().map_or_else(|| self.identity.clone(), HostIdentity::named);
        let of_params = |error: Error| error.object(&*params.name);
        let names = KeyNames::of(&params);
        let (credentials, mut held) = Credentials::load(self.host, &names, &config).map_err(of_params)?;
        let channel_key = channel_key(self.host, &params, &identity.nqn, &mut held).map_err(of_params)?;
        let target = Target {
            address: params.address(trtype),
            local: params.local(trtype),
            identity,
            connect_timeout_ns: connect_us.max(1).saturating_mul(1000),
            channel_key,
            credentials,
        };
        let door = Door::new(self.next_id(), self.host, transport.share(), target);
        let absent_sec = params.ns_absent_timeout_sec.unwrap_or(config.ns_absent_timeout_sec);
        let plan = Plan {
            timers,
            keep_alive_ms: config.keep_alive_timeout_ms,
            io_entries: match config.io_queue_requests {
                0 => IO_ENTRIES,
                entries => entries as u16,
            },
            admin_timeout: (config.timeout_admin_us > 0)
                .then(|| Duration::from_micros(config.timeout_admin_us)),
            io_timeout_us: config.timeout_us,
            io_deadline_ms: config.io_deadline_ms,
            on_timeout: config.action_on_timeout,
            ns_absent_timeout: (absent_sec > 0).then(|| Duration::from_secs(absent_sec.into())),
            transport_options: params.transport_options(&config),
            params,
            keeps_trying,
            listener,
        };
        Ok(Controller::new(self.host, self, plan, door, transport, held))
    }
}

const EALREADY: i32 = -114;
