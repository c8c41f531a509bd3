//! Authenticates a queue: carries the messages of a transaction to the
//! controller and back, and its exponentiations to a worker. The same for the
//! admin queue and for I/O queues, which differ in how they send a command.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use nvme_auth::MAX_MESSAGE_BYTES;
use nvme_auth::host::{Entropy, Step, Transaction};
use nvme_spec::fabrics::{AuthenticationRequirements, ConnectResult};
use nvme_spec::status::CommandKind;
use tenon_sdk::Host;

use crate::controller::admin::{Answer, Reply};
use crate::controller::command::AdminCommand;
use crate::credentials::Credentials;

/// How a queue sends a command of its own; the reply is called exactly once.
pub(crate) type Send = Rc<dyn Fn(&AdminCommand, Reply)>;

/// Hears how it ended.
pub(crate) type Done = Box<dyn FnOnce(Result<(), String>)>;

struct Authentication {
    host: Host,
    send: Send,
    transaction: RefCell<Transaction>,
    done: Cell<Option<Done>>,
}

/// Whether a queue whose Connect was answered so has to authenticate; the reason if it cannot.
pub(crate) fn is_needed(connected: &ConnectResult, credentials: &Credentials) -> Result<bool, &'static str> {
    if connected.authreq.intersects(AuthenticationRequirements::ASCR) {
        return Err("the controller wants authentication to begin a secure channel, which is not supported");
    }
    let is_asked = connected.authreq.intersects(AuthenticationRequirements::ATR);
    if is_asked && !credentials.has_key() {
        return Err("the controller wants in-band authentication, and there is no dhchap_key");
    }
    Ok(is_asked || credentials.is_mutual())
}

/// Authenticates a queue of `hostnqn` at `subnqn`.
pub(crate) fn authenticate(
    host: Host,
    send: Send,
    credentials: &Credentials,
    (hostnqn, subnqn): (&str, &str),
    done: Done,
) {
    let (mut entropy, mut t_id): (Entropy, _) = ([0; size_of::<Entropy>()], [0; 2]);
    if getrandom::fill(&mut entropy).and_then(|()| getrandom::fill(&mut t_id)).is_err() {
        return done(Err("the system gives no random bytes".to_owned()));
    }
    let parties = credentials.parties(hostnqn, subnqn);
    let mut transaction = Transaction::new(u16::from_le_bytes(t_id), parties, entropy);
    let step = transaction.start();
    let transaction = RefCell::new(transaction);
    Rc::new(Authentication { host, send, transaction, done: Cell::new(Some(done)) }).go(step);
}

impl Authentication {
    fn go(self: Rc<Self>, step: Step) {
        match step {
            Step::Send(message) => {
                let command = AdminCommand::authentication_send(message);
                self.command(&command, |own, _| own.transaction.borrow_mut().handle_sent());
            }
            Step::Receive => {
                let command = AdminCommand::authentication_receive(MAX_MESSAGE_BYTES);
                self.command(&command, |own, data| own.transaction.borrow_mut().handle_message(data));
            }
            Step::Work(work) => {
                let own = Rc::clone(&self);
                let asked = self.host.offload(
                    move || work.run(),
                    move |worked| match worked {
                        Ok(worked) => {
                            let step = own.transaction.borrow_mut().handle_worked(worked);
                            own.go(step);
                        }
                        Err(error) => own.end(Err(error.to_string())),
                    },
                );
                if let Err(error) = asked {
                    self.end(Err(error.to_string()));
                }
            }
            Step::Done => self.end(Ok(())),
            Step::Failed(error) => self.end(Err(error.to_string())),
        }
    }

    fn command(
        self: Rc<Self>,
        command: &AdminCommand,
        answered: impl FnOnce(&Self, &[u8]) -> Step + 'static,
    ) {
        let own = Rc::clone(&self);
        let reply = move |answer: Answer| match answer {
            Ok((cqe, data)) if cqe.status.is_success() => {
                let step = answered(&own, data.as_ref().map_or(&[][..], |data| data.as_slice()));
                own.go(step);
            }
            Ok((cqe, _)) => {
                let code = cqe.status.code();
                let name = code.name_for(CommandKind::Fabrics).unwrap_or("unknown");
                own.end(Err(format!("a message was refused: {name} ({:#x})", code.get())));
            }
            Err(code) => own.end(Err(format!("a message was not answered (error {code})"))),
        };
        (self.send)(command, Box::new(reply));
    }

    fn end(&self, result: Result<(), String>) {
        if let Some(done) = self.done.take() {
            done(result.map_err(|reason| format!("authentication failed: {reason}")));
        }
    }
}
