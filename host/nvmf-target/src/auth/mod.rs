//! In-band authentication: which queues have to prove who their host is, and
//! the two commands by which they do. Base 2.0c §8.13.
//!
//! Every queue of a host with a key authenticates for itself: Connect tells the
//! host so, and until it has, the queue takes nothing but the two commands. A
//! host may authenticate again at any time. The transaction is `nvme-auth`'s;
//! its exponentiations run on a worker. Keys are looked up when a transaction
//! begins, so that a new key counts from the next one on.

pub(crate) mod psk;

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use nvme_auth::controller::{Exchange, Sent};
use nvme_auth::{Parties, SECRET_BYTES};
use nvme_spec::auth::{Authentication, DhGroupId, HashId, SECP_NVME, SPSP_AUTHENTICATION};
use nvme_spec::command::Sqe;
use nvme_spec::status::StatusCode;
use tenon_abi::transport::CloseReason;
use tenon_reactor::TimerId;

use crate::controller::Controller;
use crate::error::TargetError;
use crate::queue::interface::{Answer, Capsule, QueueKey};
use crate::subsystem::Subsystem;
use crate::target::Target;

/// How queues authenticate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuthenticationOptions {
    /// Hash functions that may be used, the best first.
    pub hashes: Vec<HashId>,
    /// Diffie-Hellman groups that may be used, the best first.
    pub groups: Vec<DhGroupId>,
}

impl Default for AuthenticationOptions {
    fn default() -> Self {
        Self { hashes: Parties::HASHES.to_vec(), groups: Parties::GROUPS.to_vec() }
    }
}

/// How a queue has authenticated, for reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AuthenticationSnapshot {
    /// Whether a transaction is under way.
    pub is_running: bool,
    /// Hash and group of the last success; absent: there was none.
    pub proven: Option<(HashId, DhGroupId)>,
}

/// The authentication of one queue.
pub(crate) struct QueueAuthentication {
    exchange: RefCell<Exchange>,
    /// Ends the connection if a transaction takes too long.
    timer: Cell<Option<TimerId>>,
}

impl Target {
    /// Which hash functions and groups transactions use from now on.
    pub fn set_authentication(&self, options: AuthenticationOptions) -> Result<(), TargetError> {
        let is_known = options.hashes.iter().all(|hash| hash.hash_len().is_some())
            && options.groups.iter().all(|group| group.public_value_len().is_some());
        if !is_known || options.hashes.is_empty() || options.groups.is_empty() {
            return Err(TargetError::invalid("authentication", "its hashes or groups are empty or unknown"));
        }
        *self.inner.authentication.borrow_mut() = options;
        Ok(())
    }

    /// Which hash functions and groups transactions use.
    pub fn authentication(&self) -> AuthenticationOptions {
        self.inner.authentication.borrow().clone()
    }

    /// Whether queues of a host have to authenticate.
    pub(crate) fn needs_authentication(&self, subsystem: &Subsystem, hostnqn: &str) -> bool {
        subsystem.hosts.borrow().get(hostnqn).is_some_and(|keys| keys.dhchap_key.is_some())
    }

    /// A queue is connected that has to authenticate: the clock runs.
    pub(crate) fn expect_authentication(&self, key: QueueKey) {
        let own = self.authentication_of(key);
        self.watch_authentication(key, &own, self.inner.options.authentication_timeout);
    }

    pub(crate) fn forget_authentication(&self, key: QueueKey) {
        let own = self.inner.authentications.borrow_mut().remove(&key);
        if let Some(timer) = own.and_then(|own| own.timer.take()) {
            tenon_reactor::current().cancel_timer(timer);
        }
    }

    /// How a queue has authenticated; `None` if it never tried nor had to.
    pub(crate) fn authentication_snapshot(&self, key: QueueKey) -> Option<AuthenticationSnapshot> {
        let own = self.inner.authentications.borrow().get(&key).cloned()?;
        let exchange = own.exchange.borrow();
        Some(AuthenticationSnapshot { is_running: exchange.is_running(), proven: exchange.proven })
    }

    /// Authentication Send.
    pub(crate) fn authentication_send(
        &self,
        controller: &Rc<Controller>,
        capsule: &Capsule,
    ) -> Option<Answer> {
        if let Err(code) = check(&capsule.sqe) {
            return Some(Answer::refuse(code));
        }
        let key = capsule.facts.key;
        let own = self.authentication_of(key);
        let was_running = own.exchange.borrow().is_running();
        let mut entropy = [0; ENTROPY_BYTES];
        if getrandom::fill(&mut entropy).is_err() {
            log::error!("the system gives no random bytes: nobody can authenticate");
            return Some(Answer::status(StatusCode::INTERNAL_ERROR.into()));
        }
        let mut rest = entropy.into_iter();
        let sent = own.exchange.borrow_mut().handle_message(
            &capsule.data,
            || self.parties(controller),
            |bytes| bytes.iter_mut().zip(&mut rest).for_each(|(to, byte)| *to = byte),
        );
        if !was_running && own.timer.get().is_none() {
            self.watch_authentication(key, &own, self.inner.options.authentication_timeout);
        }
        match sent {
            Sent::Taken => Some(Answer::ok()),
            Sent::Proven => Some(self.proven(controller, &own, Answer::ok())),
            Sent::GivenUp => {
                log::warn!("host gave up authentication {}", named(controller));
                Some(Answer { closes: true, ..Answer::ok() })
            }
            Sent::Work(work) => {
                let (target, ticket) = (self.clone(), capsule.ticket);
                self.offload(
                    move || work.run(),
                    move |worked| {
                        own.exchange.borrow_mut().worked(worked);
                        target.answer(key, ticket, Answer::ok());
                    },
                );
                None
            }
        }
    }

    /// Authentication Receive.
    pub(crate) fn authentication_receive(&self, controller: &Rc<Controller>, capsule: &Capsule) -> Answer {
        if let Err(code) = check(&capsule.sqe) {
            return Answer::refuse(code);
        }
        let own = self.authentication_of(capsule.facts.key);
        let pending = own.exchange.borrow().pending_len();
        let received = match pending {
            None => return Answer::refuse(StatusCode::COMMAND_SEQUENCE_ERROR),
            Some(len) if len > capsule.response_len as usize => {
                return Answer::refuse(StatusCode::INVALID_FIELD);
            }
            Some(_) => own.exchange.borrow_mut().poll_message(),
        };
        let Some(received) = received else { return Answer::refuse(StatusCode::COMMAND_SEQUENCE_ERROR) };
        let answer = Answer::data(received.message);
        if received.is_proven {
            return self.proven(controller, &own, answer);
        }
        if received.is_end {
            log::warn!("host did not authenticate {}", named(controller));
            // The host has a last word, and is waited for: closed at once, it would wait for an answer to that.
            self.watch_authentication(capsule.facts.key, &own, LAST_WORD);
        }
        answer
    }

    fn proven(&self, controller: &Controller, own: &QueueAuthentication, answer: Answer) -> Answer {
        if let Some(timer) = own.timer.take() {
            tenon_reactor::current().cancel_timer(timer);
        }
        log::debug!("queue authenticated {}", named(controller));
        Answer { is_proven: true, ..answer }
    }

    fn parties(&self, controller: &Controller) -> Parties {
        let (subsystem, keyring) = (&controller.subsystem, self.inner.keyring.borrow());
        let keys =
            subsystem.hosts.borrow().get(&*controller.association.hostnqn).cloned().unwrap_or_default();
        let options = self.inner.authentication.borrow();
        Parties {
            hostnqn: controller.association.hostnqn.to_string(),
            subnqn: subsystem.nqn.clone(),
            host_key: keys.dhchap_key.and_then(|name| keyring.dhchap(&name)),
            controller_key: keys.dhchap_ctrlr_key.and_then(|name| keyring.dhchap(&name)),
            hashes: options.hashes.clone(),
            groups: options.groups.clone(),
        }
    }

    fn authentication_of(&self, key: QueueKey) -> Rc<QueueAuthentication> {
        let mut all = self.inner.authentications.borrow_mut();
        let fresh = || {
            Rc::new(QueueAuthentication { exchange: RefCell::new(Exchange::new()), timer: Cell::new(None) })
        };
        all.entry(key).or_insert_with(fresh).clone()
    }

    /// Ends the connection after a time, unless its host proves itself before.
    fn watch_authentication(&self, key: QueueKey, own: &Rc<QueueAuthentication>, time: Duration) {
        if let Some(earlier) = own.timer.take() {
            tenon_reactor::current().cancel_timer(earlier);
        }
        let (target, weak) = (self.clone(), Rc::downgrade(own));
        let timer = tenon_reactor::current().set_timer(time, move || {
            let Some(own) = weak.upgrade() else { return };
            own.timer.set(None);
            log::info!("connection without authentication is closed number={}", key.number);
            target.tell_queue(key, |queue| queue.close(CloseReason::SECURITY));
        });
        if timer.is_err() {
            log::error!("authentication is not watched: no timer is left");
        }
        own.timer.set(timer.ok());
    }
}

fn named(controller: &Controller) -> String {
    let (nqn, host) = (&controller.subsystem.nqn, &controller.association.hostnqn);
    format!("nqn={nqn} cntlid={} hostnqn={host}", controller.cntlid())
}

fn check(sqe: &Sqe) -> Result<(), StatusCode> {
    let command: &Authentication = sqe.view();
    let is_ours = command.secp == SECP_NVME
        && command.spsp0 == SPSP_AUTHENTICATION
        && command.spsp1 == SPSP_AUTHENTICATION
        && command.length.get() > 0;
    if is_ours { Ok(()) } else { Err(StatusCode::INVALID_FIELD) }
}

/// How long a host may take to say that it heard of its failure.
const LAST_WORD: Duration = Duration::from_secs(1);
/// Random bytes of one message: a challenge, its number, and a secret exponent.
const ENTROPY_BYTES: usize = 64 + 4 + SECRET_BYTES;
/// Longest message a host may send or ask for.
pub(crate) const MAX_MESSAGE_BYTES: u32 = 16 << 10;
