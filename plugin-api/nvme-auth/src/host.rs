//! One authentication transaction of DH-HMAC-CHAP, the host's side. Base 2.0c §8.13.5.
//!
//! A transaction is a value that says what comes next, a [`Step`], and is told
//! what came of it. It ends with [`Step::Done`] or [`Step::Failed`], after a
//! bounded number of steps whatever the controller sends.
//!
//! ```text
//! Negotiating ──sent──► Asked ──challenge──► Answering ──worked──► Replying ──sent──► Replied
//!                                                                                       │ success1
//!        Over ◄── sent ── Confirming (both ways) ◄──────────────────────────────────────┤
//!         ▲──────────────────────────────────────────────────(one way)──────────────────┘
//!         └─ sent ── Refusing ◄── what does not belong there, or is wrong
//! ```

use nvme_spec::auth::{
    AuthId, AuthType, Challenge, DhGroupId, Failure, FailureExplanation, FailureReason, HashId, MessageHead,
    Negotiate, ProtocolDescriptor, Reply, SecureChannelConcatenation, Success1, Success2,
};
use zerocopy::{FromBytes, FromZeros, IntoBytes};
use zeroize::Zeroizing;

use crate::dh::{KeyPair, SECRET_BYTES};
use crate::response::{Question, Role, Session, answer, verifies};
use crate::{Parties, digest};

/// Random bytes of one transaction.
pub type Entropy = [u8; ENTROPY_BYTES];

/// A transaction.
pub struct Transaction {
    t_id: u16,
    parties: Parties,
    entropy: Zeroizing<Entropy>,
    state: State,
    proven: Option<(HashId, DhGroupId)>,
}

enum State {
    Negotiating,
    Asked,
    Answering,
    Replying(Expected),
    Replied(Expected),
    Confirming,
    Refusing(TransactionError),
    Over,
}

/// What the controller has to answer; `None` if it was not asked.
type Expected = Option<(Question, Session)>;

/// What comes next.
pub enum Step {
    /// Send this message (Authentication Send), then [`Transaction::handle_sent`].
    Send(Vec<u8>),
    /// Ask for a message (Authentication Receive), then [`Transaction::handle_message`].
    Receive,
    /// Run this, on a worker, then [`Transaction::handle_worked`].
    Work(Box<Work>),
    /// Both sides are satisfied.
    Done,
    /// It has failed: the connection is of no use.
    Failed(TransactionError),
}

/// Why a transaction failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TransactionError {
    /// The controller refuses this host.
    #[error("the controller refuses this host: {0}")]
    Refused(FailureExplanation),
    /// The controller did not prove who it is.
    #[error("the controller did not prove who it is")]
    NotProven,
    /// The controller chose something that was not offered.
    #[error("the controller chose {hash} and group {group}, which was not offered")]
    NotOffered {
        /// The hash function it chose.
        hash: HashId,
        /// The group it chose.
        group: DhGroupId,
    },
    /// A message is malformed.
    #[error("the controller sent a malformed {0}")]
    Malformed(AuthId),
    /// A message does not belong there.
    #[error("the controller sent {0} out of order")]
    Unexpected(AuthId),
    /// Nothing to prove oneself with, or nothing to offer.
    #[error("this host has no key, no hash function or no group to use")]
    NoKey,
}

/// What takes long: the exponentiations of an answer.
pub struct Work {
    t_id: u16,
    parties: Parties,
    challenge: Question,
    group: DhGroupId,
    peer_public: Vec<u8>,
    secret: Zeroizing<[u8; SECRET_BYTES]>,
    counter: Option<Question>,
}

/// What came of [`Work`].
pub struct Worked(Result<(Vec<u8>, Expected), TransactionError>);

impl Transaction {
    /// A transaction of the number `t_id`, which authenticates the controller as well if there is a key for that.
    #[must_use]
    pub fn new(t_id: u16, parties: Parties, entropy: Entropy) -> Self {
        Self { t_id, parties, entropy: Zeroizing::new(entropy), state: State::Negotiating, proven: None }
    }

    /// What it begins with.
    pub fn start(&mut self) -> Step {
        let descriptor = ProtocolDescriptor::new(&self.parties.hashes, &self.parties.groups);
        let is_ready = self.parties.host_key.is_some()
            && !self.parties.hashes.is_empty()
            && !self.parties.groups.is_empty();
        let (Some(descriptor), true) = (descriptor, is_ready) else {
            self.state = State::Over;
            return Step::Failed(TransactionError::NoKey);
        };
        let mut message = Negotiate::new_zeroed();
        message.head = MessageHead::new(AuthType::COMMON, AuthId::NEGOTIATE, self.t_id);
        message.sc_c = SecureChannelConcatenation::NONE;
        message.napd = 1;
        Step::Send([message.as_bytes(), descriptor.as_bytes()].concat())
    }

    /// The message is with the controller.
    pub fn handle_sent(&mut self) -> Step {
        match std::mem::replace(&mut self.state, State::Over) {
            State::Negotiating => self.wait_in(State::Asked),
            State::Replying(expected) => self.wait_in(State::Replied(expected)),
            State::Confirming => Step::Done,
            State::Refusing(error) => Step::Failed(error),
            State::Asked | State::Answering | State::Replied(_) | State::Over => {
                Step::Failed(TransactionError::Unexpected(AuthId::NEGOTIATE))
            }
        }
    }

    fn wait_in(&mut self, state: State) -> Step {
        self.state = state;
        Step::Receive
    }

    /// A message of the controller; what is behind its end is passed over.
    pub fn handle_message(&mut self, message: &[u8]) -> Step {
        let state = std::mem::replace(&mut self.state, State::Over);
        let Ok((head, _)) = MessageHead::read_from_prefix(message) else {
            return self.refuse(TransactionError::Malformed(AuthId::CHALLENGE));
        };
        if (head.auth_type, head.auth_id) == (AuthType::COMMON, AuthId::FAILURE1) {
            let explanation = Failure::read_from_prefix(message).map(|(failure, _)| failure.explanation);
            let refused = FailureExplanation::AUTHENTICATION_FAILED;
            return Step::Failed(TransactionError::Refused(explanation.unwrap_or(refused)));
        }
        let is_known = head.auth_type == AuthType::DH_HMAC_CHAP && head.t_id.get() == self.t_id;
        match (state, head.auth_id, is_known) {
            (State::Asked, AuthId::CHALLENGE, true) => self.challenged(message),
            (State::Replied(expected), AuthId::SUCCESS1, true) => self.succeeded(message, expected),
            (_, id, _) => self.refuse(TransactionError::Unexpected(id)),
        }
    }

    fn challenged(&mut self, message: &[u8]) -> Step {
        let malformed = TransactionError::Malformed(AuthId::CHALLENGE);
        let Some((challenge, value, public)) = Challenge::parse(message) else {
            return self.refuse(malformed);
        };
        let (hash, group) = (challenge.hashid, challenge.dhgid);
        if !self.parties.hashes.contains(&hash) || !self.parties.groups.contains(&group) {
            return self.refuse(TransactionError::NotOffered { hash, group });
        }
        if hash.hash_len() != Some(value.len()) || group.public_value_len() != Some(public.len()) {
            return self.refuse(malformed);
        }
        let (secret, rest) = self.entropy.split_at(SECRET_BYTES);
        let (sequence, counter) = rest.split_at(size_of::<u32>());
        let mut own_secret = Zeroizing::new([0; SECRET_BYTES]);
        own_secret.copy_from_slice(secret);
        let sequence = u32::from_le_bytes(sequence.try_into().unwrap_or_default()).max(1);
        let counter = self.parties.controller_key.as_ref().map(|_| Question {
            hash,
            t_id: self.t_id,
            sequence,
            value: counter[..value.len()].to_vec(),
        });
        self.proven = Some((hash, group));
        self.state = State::Answering;
        Step::Work(Box::new(Work {
            t_id: self.t_id,
            parties: self.parties.clone(),
            challenge: Question {
                hash,
                t_id: self.t_id,
                sequence: challenge.seqnum.get(),
                value: value.to_vec(),
            },
            group,
            peer_public: public.to_vec(),
            secret: own_secret,
            counter,
        }))
    }

    /// The answer is computed.
    pub fn handle_worked(&mut self, worked: Worked) -> Step {
        match (std::mem::replace(&mut self.state, State::Over), worked.0) {
            (State::Answering, Ok((message, expected))) => {
                self.state = State::Replying(expected);
                Step::Send(message)
            }
            (State::Answering, Err(error)) => self.refuse(error),
            (_, _) => Step::Failed(TransactionError::Unexpected(AuthId::REPLY)),
        }
    }

    fn succeeded(&mut self, message: &[u8], expected: Expected) -> Step {
        let Some((success, response)) = Success1::parse(message) else {
            return self.refuse(TransactionError::Malformed(AuthId::SUCCESS1));
        };
        let Some((asked, session)) = expected else {
            return Step::Done;
        };
        // A controller that was asked and says nothing has proven nothing.
        let is_right =
            success.rvalid == 1 && verifies(Role::Controller, &asked, &session, &self.parties, response);
        if !is_right {
            return self.refuse(TransactionError::NotProven);
        }
        let mut message = Success2::new_zeroed();
        message.head = MessageHead::new(AuthType::DH_HMAC_CHAP, AuthId::SUCCESS2, self.t_id);
        self.state = State::Confirming;
        Step::Send(message.as_bytes().to_vec())
    }

    /// Tells the controller why this host goes.
    fn refuse(&mut self, error: TransactionError) -> Step {
        let explanation = match error {
            TransactionError::Refused(explanation) => explanation,
            TransactionError::NotProven | TransactionError::NoKey => {
                FailureExplanation::AUTHENTICATION_FAILED
            }
            TransactionError::NotOffered { hash, .. } if !self.parties.hashes.contains(&hash) => {
                FailureExplanation::HASH_NOT_USABLE
            }
            TransactionError::NotOffered { .. } => FailureExplanation::DH_GROUP_NOT_USABLE,
            TransactionError::Malformed(_) => FailureExplanation::INCORRECT_PAYLOAD,
            TransactionError::Unexpected(_) => FailureExplanation::INCORRECT_MESSAGE,
        };
        let mut message = Failure::new_zeroed();
        message.head = MessageHead::new(AuthType::COMMON, AuthId::FAILURE2, self.t_id);
        message.reason = FailureReason::AUTHENTICATION_FAILED;
        message.explanation = explanation;
        self.state = State::Refusing(error);
        Step::Send(message.as_bytes().to_vec())
    }

    /// The hash function and group the controller chose.
    #[must_use]
    pub fn chosen(&self) -> Option<(HashId, DhGroupId)> {
        self.proven
    }
}

impl Work {
    /// Does it. For a worker.
    #[must_use]
    pub fn run(self) -> Worked {
        Worked(self.answer())
    }

    fn answer(self) -> Result<(Vec<u8>, Expected), TransactionError> {
        let malformed = TransactionError::Malformed(AuthId::CHALLENGE);
        let pair = KeyPair::new(self.group, *self.secret);
        let session: Session = match &pair {
            None => None,
            Some(pair) => {
                let shared = pair.shared(&self.peer_public).ok_or(malformed)?;
                Some(digest::hash(self.challenge.hash, &shared).ok_or(malformed)?)
            }
        };
        let response = answer(Role::Host, &self.challenge, &session, &self.parties);
        let response = response.ok_or(TransactionError::NoKey)?;
        let mut message = Reply::new_zeroed();
        message.head = MessageHead::new(AuthType::DH_HMAC_CHAP, AuthId::REPLY, self.t_id);
        message.hl = response.len() as u8;
        let no_value = vec![0; response.len()];
        let value = match &self.counter {
            Some(counter) => {
                message.cvalid = 1;
                message.seqnum.set(counter.sequence);
                &counter.value
            }
            None => &no_value,
        };
        let public = pair.as_ref().map_or(&[][..], |pair| &pair.public);
        message.dhvlen.set(public.len() as u16);
        let bytes = [message.as_bytes(), &response, value, public].concat();
        Ok((bytes, self.counter.map(|counter| (counter, session))))
    }
}

/// A secret exponent, a sequence number, and the longest challenge.
const ENTROPY_BYTES: usize = SECRET_BYTES + size_of::<u32>() + 64;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controller::{Exchange, Sent};
    use crate::secret::tests::dhchap_key;

    fn parties() -> Parties {
        Parties {
            hostnqn: "nqn.2026-01.io.tenon:host".into(),
            subnqn: "nqn.2026-01.io.tenon:one".into(),
            host_key: Some(dhchap_key("01", &[3; 32])),
            controller_key: Some(dhchap_key("03", &[4; 64])),
            hashes: Parties::HASHES.to_vec(),
            groups: vec![DhGroupId::NULL],
        }
    }

    /// How both roles end, and after how many steps.
    fn run(
        host: &Parties,
        controller: &Parties,
        spoil: impl Fn(usize, &mut Vec<u8>),
    ) -> (Result<(), TransactionError>, bool) {
        let mut own = Transaction::new(7, host.clone(), [0x5c; ENTROPY_BYTES]);
        let mut peer = Exchange::new();
        let mut is_proven = false;
        let mut step = own.start();
        for at in 0.. {
            assert!(at < 12, "a transaction is short");
            step = match step {
                Step::Send(message) => {
                    let random = |bytes: &mut [u8]| bytes.fill(0xa7);
                    match peer.handle_message(&message, || controller.clone(), random) {
                        Sent::Work(work) => peer.worked(work.run()),
                        Sent::Proven => is_proven = true,
                        Sent::Taken | Sent::GivenUp => {}
                    }
                    own.handle_sent()
                }
                Step::Receive => {
                    let mut received = peer.poll_message().expect("a message");
                    is_proven |= received.is_proven;
                    spoil(at, &mut received.message);
                    received.message.resize(crate::MAX_MESSAGE_BYTES, 0);
                    own.handle_message(&received.message)
                }
                Step::Work(work) => own.handle_worked(work.run()),
                Step::Done => return (Ok(()), is_proven),
                Step::Failed(error) => return (Err(error), is_proven),
            };
        }
        unreachable!("bounded above")
    }

    #[test]
    fn both_roles_agree_in_every_hash_and_group() {
        for group in Parties::GROUPS {
            for hash in Parties::HASHES {
                for controller_key in [None, parties().controller_key] {
                    let all = Parties { groups: Parties::GROUPS.to_vec(), controller_key, ..parties() };
                    let one = Parties { hashes: vec![hash], groups: vec![group], ..parties() };
                    // The largest group takes long without optimisation: once is enough.
                    if group == DhGroupId::FFDHE_8192 && hash != HashId::SHA_256 {
                        continue;
                    }
                    assert_eq!(run(&all, &one, |_, _| {}), (Ok(()), true), "{hash} {group}");
                }
            }
        }
    }

    #[test]
    fn a_wrong_key_fails_on_the_side_that_notices() {
        let right = parties();
        let other = Some(dhchap_key("01", &[9; 32]));
        let wrong_host = Parties { host_key: other.clone(), ..right.clone() };
        let refused = TransactionError::Refused(FailureExplanation::AUTHENTICATION_FAILED);
        assert_eq!(run(&wrong_host, &right, |_, _| {}), (Err(refused), false));
        let wrong_controller = Parties { controller_key: other, ..right.clone() };
        assert_eq!(run(&right, &wrong_controller, |_, _| {}), (Err(TransactionError::NotProven), false));
        let keyless = Parties { controller_key: None, ..right.clone() };
        assert_eq!(run(&right, &keyless, |_, _| {}), (Err(refused), false));
        let no_key = Parties { host_key: None, ..right.clone() };
        assert_eq!(run(&no_key, &right, |_, _| {}), (Err(TransactionError::NoKey), false));
    }

    #[test]
    fn a_controller_that_leaves_its_proof_out_is_refused() {
        let strip = |at: usize, message: &mut Vec<u8>| {
            if at == 4 {
                message[8] = 0;
            }
        };
        assert_eq!(run(&parties(), &parties(), strip), (Err(TransactionError::NotProven), false));
    }

    #[test]
    fn what_was_not_offered_is_refused() {
        let own = Parties { hashes: vec![HashId::SHA_384], ..parties() };
        let other_hash = |at: usize, message: &mut Vec<u8>| {
            if at == 1 {
                message[8] = 1;
            }
        };
        let error = TransactionError::NotOffered { hash: HashId::SHA_256, group: DhGroupId::NULL };
        assert_eq!(run(&own, &parties(), other_hash).0, Err(error));
        let other_number = |_: usize, message: &mut Vec<u8>| message[4] ^= 1;
        let error = TransactionError::Unexpected(AuthId::CHALLENGE);
        assert_eq!(run(&own, &parties(), other_number).0, Err(error));
    }

    #[test]
    fn every_changed_byte_of_challenge_and_proof_is_noticed() {
        // Step 1 brings the challenge: its value is behind 16 bytes. Step 4 brings the proof, behind 16 bytes too.
        for (place, len) in [(1, 64), (4, 64)] {
            for byte in 0..len {
                let spoil = |step: usize, message: &mut Vec<u8>| {
                    if step == place {
                        message[16 + byte] ^= 0x40;
                    }
                };
                assert!(run(&parties(), &parties(), spoil).0.is_err(), "step {place} byte {byte}");
            }
        }
    }

    #[test]
    fn no_message_of_a_controller_whatever_its_bytes_proves_it() {
        let mut chance = crate::chance();
        for _ in 0..20_000 {
            let mut own = Transaction::new(7, parties(), [0x5c; ENTROPY_BYTES]);
            let mut step = own.start();
            for _ in 0..12 {
                step = match step {
                    Step::Send(_) => own.handle_sent(),
                    Step::Work(work) => own.handle_worked(work.run()),
                    Step::Receive => {
                        let kinds = [[1, 1], [1, 3], [0, 0xf1], [chance() as u8, chance() as u8]];
                        let mut message = vec![chance() as u8; chance() as usize % 200];
                        let head = [kinds[chance() as usize % 4], [0, 0], [7, 0]].concat();
                        let fields = [64, 0, 3, 0, 0, 0, 1, 0, 0, 0];
                        for (to, from) in message.iter_mut().zip(head.iter().chain(&fields)) {
                            *to = *from;
                        }
                        own.handle_message(&message)
                    }
                    Step::Done => panic!("nobody proves anything by chance"),
                    Step::Failed(_) => break,
                };
            }
        }
    }
}
