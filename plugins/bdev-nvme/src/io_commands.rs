//! I/O commands that operators send to a controller themselves: over the I/O
//! queue of the first reactor that has one, or can have one. The operation waits
//! on the control thread, and not for ever.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tenon_sdk::{Error, Host, OpToken, Timer, errno};

use crate::commands::{Owed, Said, said, told};
use crate::controller::Controller;
use crate::controller::command::{AdminCommand, Data};
use crate::door::Door;
use crate::module;
use crate::registry::Registry;
use crate::side::Side;

/// An operation that waits for the answer to its command.
pub(crate) struct Pending {
    owed: Owed,
    /// Ends the wait.
    _deadline: Timer,
}

impl Registry {
    /// Sends an I/O command; when `timeout` is over, the controller is begun anew.
    pub(crate) fn send_io_command(
        &self,
        controller: &Rc<Controller>,
        command: AdminCommand,
        timeout: Duration,
        token: OpToken,
    ) {
        let refused = |code, reason: &str| Error::new(code, reason).object(&*controller.plan.params.name);
        if self.io_commands.borrow().len() >= MAX_PENDING {
            let reason = "too many i/o commands of operators are on their way: wait for one of them";
            return token.fail(refused(errno::EAGAIN, reason));
        }
        let (id, late) = (self.next_id(), Rc::downgrade(controller));
        let deadline = self.host.timer(timeout, move || {
            if let Some(registry) = module::registry() {
                registry.io_command_done(id, Err(errno::ETIMEDOUT));
            }
            if let Some(controller) = late.upgrade() {
                controller.lost("an i/o command of an operator was not answered in time".to_owned());
            }
        });
        match deadline {
            Ok(deadline) => {
                let pending = Pending { owed: Owed::new(token), _deadline: deadline };
                self.io_commands.borrow_mut().insert(id, pending);
                send(self.host, 0, Arc::clone(&controller.door), command, id);
            }
            Err(error) => token.fail(error),
        }
    }

    /// A command was answered, or will not be.
    fn io_command_done(&self, id: u64, said: Said) {
        let pending = self.io_commands.borrow_mut().remove(&id);
        if let Some(pending) = pending {
            pending.owed.answer(told(said));
        }
    }
}

/// Sends a command on a reactor; on the next one if the controller has no queue left for it.
fn send(host: Host, index: usize, door: Arc<Door>, command: AdminCommand, id: u64) {
    let done = move |said: Said| module::tell(host, move |registry| registry.io_command_done(id, said));
    let Some(reactor) = host.reactors().nth(index) else { return done(Err(errno::EAGAIN)) };
    module::post(host, reactor, move || {
        let queue = Side::current(host).queue(&door);
        if queue.is_left_out() {
            return send(host, index + 1, door, command, id);
        }
        let returns = matches!(command.data, Data::In(_));
        queue.send_for_operator(command, Box::new(move |answer| done(said(answer, returns))));
    });
}

/// Commands that wait for their answers at once.
const MAX_PENDING: usize = 64;
