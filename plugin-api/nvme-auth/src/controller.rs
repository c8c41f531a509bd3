//! One authentication transaction of DH-HMAC-CHAP, the controller's side.
//! Base 2.0c §8.13.5.
//!
//! Sees messages and random bytes, no queues and no clock. What takes long is
//! handed out as [`Work`], which runs anywhere and comes back by
//! [`Exchange::worked`].
//!
//! ```text
//!                 Negotiate            worked              Receive            Reply
//! Idle ──────────────────► Challenging ──────► ChallengeReady ──────► Challenged ──────► Verifying
//!  ▲                                                                                        │ worked
//!  │ Receive (one-way), or Success2                                                         ▼
//!  └───────────────────────────────── AwaitsSuccess2 ◄──── Receive (both ways) ─────── SuccessReady
//!
//! any ──what does not belong there──► FailureReady ──Receive──► Failed
//! ```

use nvme_spec::auth::{
    AuthId, AuthType, Challenge, DhGroupId, Failure, FailureExplanation, FailureReason, HashId, MessageHead,
    Negotiate, Reply, SecureChannelConcatenation, Success1,
};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use crate::dh::{KeyPair, SECRET_BYTES};
use crate::response::{Question, Role, Session, answer, verifies};
use crate::{Parties, digest};

/// A transaction, or the wait for one.
pub struct Exchange {
    state: State,
    /// What the last success was made with.
    pub proven: Option<(HashId, DhGroupId)>,
}

enum State {
    Idle,
    Challenging,
    ChallengeReady(Box<Challenged>),
    Challenged(Box<Challenged>),
    Verifying,
    SuccessReady { t_id: u16, made_with: (HashId, DhGroupId), response: Option<Vec<u8>> },
    AwaitsSuccess2 { t_id: u16, made_with: (HashId, DhGroupId) },
    FailureReady { t_id: u16, explanation: FailureExplanation },
    Failed,
}

/// A challenge and what is needed to check the answer.
pub struct Challenged {
    t_id: u16,
    hash: HashId,
    group: DhGroupId,
    value: Vec<u8>,
    sequence: u32,
    pair: Option<KeyPair>,
    parties: Parties,
}

/// What takes long.
pub enum Work {
    /// Make a key pair.
    Challenge(Box<ChallengeWork>),
    /// Check an answer.
    Verify(Box<VerifyWork>),
}

/// Makes a key pair for a challenge.
pub struct ChallengeWork {
    challenged: Challenged,
    secret: [u8; SECRET_BYTES],
}

/// Checks an answer.
pub struct VerifyWork {
    challenged: Box<Challenged>,
    response: Vec<u8>,
    peer_public: Vec<u8>,
    /// Challenge and sequence number for us, if the host wants an answer too.
    counter_challenge: Option<(Vec<u8>, u32)>,
}

/// What came of [`Work`].
pub enum Worked {
    /// The challenge is complete.
    Challenge(Box<Challenged>),
    /// The host's answer is right.
    Verified {
        /// The transaction.
        t_id: u16,
        /// Hash function and group.
        made_with: (HashId, DhGroupId),
        /// The answer to the host's challenge, if it sent one.
        response: Option<Vec<u8>>,
    },
    /// It is not.
    Failed {
        /// The transaction.
        t_id: u16,
        /// Why.
        explanation: FailureExplanation,
    },
}

/// What a message from the host leads to.
pub enum Sent {
    /// It is taken; nothing else happens.
    Taken,
    /// It is taken once this is done.
    Work(Work),
    /// It is taken, and the host has proven who it is.
    Proven,
    /// The host gave up.
    GivenUp,
}

/// What the host gets when it asks for a message.
pub struct Received {
    /// The message.
    pub message: Vec<u8>,
    /// With this message the host has proven who it is.
    pub is_proven: bool,
    /// After this message the connection ends.
    pub is_end: bool,
}

impl Default for Exchange {
    fn default() -> Self {
        Self::new()
    }
}

impl Exchange {
    /// The wait for a transaction.
    #[must_use]
    pub fn new() -> Self {
        Self { state: State::Idle, proven: None }
    }

    /// A transaction is under way.
    pub fn is_running(&self) -> bool {
        !matches!(self.state, State::Idle)
    }

    /// Authentication Send: a message from the host.
    pub fn handle_message(
        &mut self,
        message: &[u8],
        parties: impl FnOnce() -> Parties,
        random: impl FnMut(&mut [u8]),
    ) -> Sent {
        let Ok((head, _)) = MessageHead::read_from_prefix(message) else {
            return self.fail(0, FailureExplanation::INCORRECT_PAYLOAD);
        };
        let t_id = head.t_id.get();
        if (head.auth_type, head.auth_id) == (AuthType::COMMON, AuthId::FAILURE2) {
            self.state = State::Failed;
            return Sent::GivenUp;
        }
        let expected = match (&self.state, head.auth_type, head.auth_id) {
            (State::Idle, AuthType::COMMON, AuthId::NEGOTIATE) => None,
            (State::Challenged(challenged), AuthType::DH_HMAC_CHAP, AuthId::REPLY) => Some(challenged.t_id),
            (State::AwaitsSuccess2 { t_id, .. }, AuthType::DH_HMAC_CHAP, AuthId::SUCCESS2) => Some(*t_id),
            _ => return self.fail(t_id, FailureExplanation::INCORRECT_MESSAGE),
        };
        if expected.is_some_and(|expected| expected != t_id) {
            return self.fail(t_id, FailureExplanation::INCORRECT_PAYLOAD);
        }
        match std::mem::replace(&mut self.state, State::Failed) {
            State::Idle => self.negotiate(message, parties(), random),
            State::Challenged(challenged) => self.check_reply(message, challenged),
            State::AwaitsSuccess2 { made_with, .. } => {
                self.proven = Some(made_with);
                self.state = State::Idle;
                Sent::Proven
            }
            _ => self.fail(t_id, FailureExplanation::INCORRECT_MESSAGE),
        }
    }

    fn negotiate(&mut self, message: &[u8], parties: Parties, mut random: impl FnMut(&mut [u8])) -> Sent {
        let Some((negotiate, descriptors)) = Negotiate::parse(message) else {
            return self.fail(0, FailureExplanation::INCORRECT_PAYLOAD);
        };
        let t_id = negotiate.head.t_id.get();
        if negotiate.sc_c != SecureChannelConcatenation::NONE {
            return self.fail(t_id, FailureExplanation::SECURE_CHANNEL_MISMATCH);
        }
        if parties.host_key.is_none() {
            return self.fail(t_id, FailureExplanation::PROTOCOL_NOT_USABLE);
        }
        let ours = descriptors.iter().find(|one| one.authid == nvme_spec::auth::AuthProtocol::DH_HMAC_CHAP);
        let Some(descriptor) = ours else {
            return self.fail(t_id, FailureExplanation::PROTOCOL_NOT_USABLE);
        };
        let (Some(hashes), Some(groups)) = (descriptor.hash_ids(), descriptor.dh_group_ids()) else {
            return self.fail(t_id, FailureExplanation::INCORRECT_PAYLOAD);
        };
        let Some(hash) = parties.hashes.iter().copied().find(|own| hashes.contains(own)) else {
            return self.fail(t_id, FailureExplanation::HASH_NOT_USABLE);
        };
        let Some(group) = parties.groups.iter().copied().find(|own| groups.contains(own)) else {
            return self.fail(t_id, FailureExplanation::DH_GROUP_NOT_USABLE);
        };
        let (mut value, mut sequence) = (vec![0; hash.hash_len().unwrap_or_default()], [0; 4]);
        let mut secret = [0; SECRET_BYTES];
        random(&mut value);
        random(&mut sequence);
        random(&mut secret);
        let sequence = u32::from_le_bytes(sequence).max(1);
        let challenged = Challenged { t_id, hash, group, value, sequence, pair: None, parties };
        if group == DhGroupId::NULL {
            self.state = State::ChallengeReady(Box::new(challenged));
            return Sent::Taken;
        }
        self.state = State::Challenging;
        Sent::Work(Work::Challenge(Box::new(ChallengeWork { challenged, secret })))
    }

    fn check_reply(&mut self, message: &[u8], challenged: Box<Challenged>) -> Sent {
        let t_id = challenged.t_id;
        let Some((reply, values)) = Reply::parse(message) else {
            return self.fail(t_id, FailureExplanation::INCORRECT_PAYLOAD);
        };
        let fits = Some(usize::from(reply.hl)) == challenged.hash.hash_len()
            && challenged.group.public_value_len() == Some(values.dhv.len())
            && reply.cvalid <= 1;
        // A challenge thrown back could be answered with what we would compute for it.
        if !fits || (reply.cvalid == 1 && values.cval == challenged.value) {
            return self.fail(t_id, FailureExplanation::INCORRECT_PAYLOAD);
        }
        self.state = State::Verifying;
        let counter_challenge = (reply.cvalid == 1).then(|| (values.cval.to_vec(), reply.seqnum.get()));
        Sent::Work(Work::Verify(Box::new(VerifyWork {
            challenged,
            response: values.rval.to_vec(),
            peer_public: values.dhv.to_vec(),
            counter_challenge,
        })))
    }

    /// What came of the work that [`Exchange::handle_message`] gave out.
    pub fn worked(&mut self, worked: Worked) {
        self.state = match (std::mem::replace(&mut self.state, State::Failed), worked) {
            (State::Challenging, Worked::Challenge(challenged)) => State::ChallengeReady(challenged),
            (State::Verifying, Worked::Verified { t_id, made_with, response }) => {
                State::SuccessReady { t_id, made_with, response }
            }
            (_, Worked::Failed { t_id, explanation }) => State::FailureReady { t_id, explanation },
            (other, Worked::Challenge(_) | Worked::Verified { .. }) => other,
        };
    }

    /// Length of the message that waits for the host; `None` if none does.
    pub fn pending_len(&self) -> Option<usize> {
        match &self.state {
            State::ChallengeReady(challenged) => Some(challenged.message().len()),
            State::SuccessReady { made_with, response, .. } => Some(success1(0, made_with.0, response).len()),
            State::FailureReady { .. } => Some(size_of::<Failure>()),
            State::Idle
            | State::Challenging
            | State::Challenged(_)
            | State::Verifying
            | State::AwaitsSuccess2 { .. }
            | State::Failed => None,
        }
    }

    /// Authentication Receive: the message that waits for the host.
    pub fn poll_message(&mut self) -> Option<Received> {
        let more = |message| Received { message, is_proven: false, is_end: false };
        let (state, received) = match std::mem::replace(&mut self.state, State::Failed) {
            State::ChallengeReady(challenged) => {
                let message = challenged.message();
                (State::Challenged(challenged), Some(more(message)))
            }
            State::SuccessReady { t_id, made_with, response } => {
                let message = success1(t_id, made_with.0, &response);
                if response.is_some() {
                    (State::AwaitsSuccess2 { t_id, made_with }, Some(more(message)))
                } else {
                    self.proven = Some(made_with);
                    (State::Idle, Some(Received { message, is_proven: true, is_end: false }))
                }
            }
            State::FailureReady { t_id, explanation } => {
                let message = failure1(t_id, explanation);
                (State::Failed, Some(Received { message, is_proven: false, is_end: true }))
            }
            other => (other, None),
        };
        self.state = state;
        received
    }

    fn fail(&mut self, t_id: u16, explanation: FailureExplanation) -> Sent {
        self.state = State::FailureReady { t_id, explanation };
        Sent::Taken
    }
}

impl Challenged {
    fn message(&self) -> Vec<u8> {
        let mut message = Challenge::new_zeroed();
        message.head = MessageHead::new(AuthType::DH_HMAC_CHAP, AuthId::CHALLENGE, self.t_id);
        message.hl = self.value.len() as u8;
        message.hashid = self.hash;
        message.dhgid = self.group;
        let public = self.pair.as_ref().map_or(&[][..], |pair| &pair.public);
        message.dhvlen.set(public.len() as u16);
        message.seqnum.set(self.sequence);
        [message.as_bytes(), &self.value, public].concat()
    }
}

impl Work {
    /// Does it. For a worker.
    pub fn run(self) -> Worked {
        match self {
            Work::Challenge(work) => {
                let mut challenged = work.challenged;
                challenged.pair = KeyPair::new(challenged.group, work.secret);
                Worked::Challenge(Box::new(challenged))
            }
            Work::Verify(work) => work.run(),
        }
    }
}

impl VerifyWork {
    fn run(self) -> Worked {
        let t_id = self.challenged.t_id;
        let made_with = (self.challenged.hash, self.challenged.group);
        match self.verify() {
            Ok(response) => Worked::Verified { t_id, made_with, response },
            Err(explanation) => Worked::Failed { t_id, explanation },
        }
    }

    /// The answer to the host's challenge, if the host's own answer is right.
    fn verify(&self) -> Result<Option<Vec<u8>>, FailureExplanation> {
        let refused = FailureExplanation::AUTHENTICATION_FAILED;
        let challenged = &self.challenged;
        let (hash, t_id, parties) = (challenged.hash, challenged.t_id, &challenged.parties);
        let session: Session = match &challenged.pair {
            None => None,
            Some(pair) => {
                let shared = pair.shared(&self.peer_public).ok_or(FailureExplanation::INCORRECT_PAYLOAD)?;
                Some(digest::hash(hash, &shared).ok_or(refused)?)
            }
        };
        let asked = Question { hash, t_id, sequence: challenged.sequence, value: challenged.value.clone() };
        if !verifies(Role::Host, &asked, &session, parties, &self.response) {
            return Err(refused);
        }
        let Some((value, sequence)) = &self.counter_challenge else { return Ok(None) };
        let asked = Question { hash, t_id, sequence: *sequence, value: value.clone() };
        let response = answer(Role::Controller, &asked, &session, parties).ok_or(refused)?;
        Ok(Some(response.to_vec()))
    }
}

fn success1(t_id: u16, hash: HashId, response: &Option<Vec<u8>>) -> Vec<u8> {
    let mut message = Success1::new_zeroed();
    message.head = MessageHead::new(AuthType::DH_HMAC_CHAP, AuthId::SUCCESS1, t_id);
    message.hl = hash.hash_len().unwrap_or_default() as u8;
    message.rvalid = u8::from(response.is_some());
    let mut bytes = message.as_bytes().to_vec();
    bytes.extend_from_slice(response.as_deref().unwrap_or_default());
    bytes
}

fn failure1(t_id: u16, explanation: FailureExplanation) -> Vec<u8> {
    let mut message = Failure::new_zeroed();
    message.head = MessageHead::new(AuthType::COMMON, AuthId::FAILURE1, t_id);
    message.reason = FailureReason::AUTHENTICATION_FAILED;
    message.explanation = explanation;
    message.as_bytes().to_vec()
}

#[cfg(test)]
mod tests {
    use nvme_spec::auth::ProtocolDescriptor;

    use super::*;
    use crate::secret::tests::dhchap_key as key;

    const HOST: &str = "nqn.2026-01.io.tenon:host";
    const SUB: &str = "nqn.2026-01.io.tenon:one";
    const HASHES: [HashId; 3] = [HashId::SHA_256, HashId::SHA_384, HashId::SHA_512];

    fn parties(hash: HashId, group: DhGroupId) -> Parties {
        Parties {
            hostnqn: HOST.into(),
            subnqn: SUB.into(),
            host_key: Some(key("01", &[3; 32])),
            controller_key: Some(key("00", &[4; 48])),
            hashes: vec![hash],
            groups: vec![group],
        }
    }

    fn negotiate(hashes: &[HashId], groups: &[DhGroupId]) -> Vec<u8> {
        let mut message = Negotiate::new_zeroed();
        message.head = MessageHead::new(AuthType::COMMON, AuthId::NEGOTIATE, 7);
        message.napd = 1;
        let descriptor = ProtocolDescriptor::new(hashes, groups).expect("short");
        [message.as_bytes(), descriptor.as_bytes()].concat()
    }

    /// What a host answers a challenge with; and what it expects back, if it asks for that.
    fn reply(challenge: &[u8], parties: &Parties, both_ways: bool) -> (Vec<u8>, Option<Vec<u8>>) {
        let (head, value, public) = Challenge::parse(challenge).expect("a challenge");
        let (hash, t_id) = (head.hashid, head.head.t_id.get().to_le_bytes());
        let pair = KeyPair::new(head.dhgid, [0x77; SECRET_BYTES]);
        let session = pair
            .as_ref()
            .map(|pair| digest::hash(hash, &pair.shared(public).expect("a good value")).expect("known"));
        let own = parties.host_key.as_ref().expect("a key").bound_to(HOST).expect("known");
        let augment = |value: &[u8]| match &session {
            None => value.to_vec(),
            Some(session) => digest::hmac(hash, session, &[value]).expect("known").to_vec(),
        };
        let sequence = head.seqnum.get().to_le_bytes();
        let parts =
            [&augment(value)[..], &sequence, &t_id, &[0], b"HostHost", HOST.as_bytes(), &[0], SUB.as_bytes()];
        let response = digest::hmac(hash, &own, &parts).expect("known");
        let counter = vec![0x33; value.len()];
        let expected = parties.controller_key.as_ref().filter(|_| both_ways).map(|key| {
            let key = key.bound_to(SUB).expect("known");
            let number = 99u32.to_le_bytes();
            let parts = [
                &augment(&counter)[..],
                &number,
                &t_id,
                &[0],
                b"Controller",
                SUB.as_bytes(),
                &[0],
                HOST.as_bytes(),
            ];
            digest::hmac(hash, &key, &parts).expect("known").to_vec()
        });
        let mut message = Reply::new_zeroed();
        message.head = MessageHead::new(AuthType::DH_HMAC_CHAP, AuthId::REPLY, head.head.t_id.get());
        message.hl = value.len() as u8;
        message.cvalid = u8::from(both_ways);
        message.seqnum.set(99);
        let public = pair.map_or_else(Vec::new, |pair| pair.public);
        message.dhvlen.set(public.len() as u16);
        ([message.as_bytes(), &response, &counter, &public].concat(), expected)
    }

    fn send(exchange: &mut Exchange, message: &[u8], parties: &Parties) -> bool {
        let mut next = 0u8;
        let random = |bytes: &mut [u8]| {
            bytes.iter_mut().for_each(|byte| {
                next = next.wrapping_add(11);
                *byte = next;
            });
        };
        match exchange.handle_message(message, || parties.clone(), random) {
            Sent::Work(work) => {
                exchange.worked(work.run());
                false
            }
            Sent::Proven => true,
            Sent::Taken | Sent::GivenUp => false,
        }
    }

    #[track_caller]
    fn failure(exchange: &mut Exchange, expected: FailureExplanation) {
        let received = exchange.poll_message().expect("a message");
        let failure = Failure::read_from_bytes(&received.message).expect("a failure");
        assert_eq!((failure.head.auth_id, failure.explanation), (AuthId::FAILURE1, expected));
        assert!(received.is_end && exchange.pending_len().is_none());
    }

    #[test]
    fn every_hash_and_group_proves_the_host_and_the_subsystem() {
        for group in [DhGroupId::NULL, DhGroupId::FFDHE_2048, DhGroupId::FFDHE_3072, DhGroupId::FFDHE_8192] {
            for hash in HASHES {
                for both_ways in [false, true] {
                    let parties = parties(hash, group);
                    let mut exchange = Exchange::new();
                    assert!(!send(&mut exchange, &negotiate(&HASHES, &[group]), &parties));
                    let challenge = exchange.poll_message().expect("a challenge").message;
                    let (message, expected) = reply(&challenge, &parties, both_ways);
                    assert!(!send(&mut exchange, &message, &parties));
                    let length = exchange.pending_len();
                    let received = exchange.poll_message().expect("an answer");
                    assert_eq!(Some(received.message.len()), length);
                    let (head, response) = Success1::parse(&received.message).expect("success");
                    assert_eq!(head.head.auth_id, AuthId::SUCCESS1, "{hash} {group}");
                    assert_eq!(received.is_proven, !both_ways);
                    if let Some(expected) = expected {
                        assert_eq!(response, expected);
                        let last = MessageHead::new(AuthType::DH_HMAC_CHAP, AuthId::SUCCESS2, 7);
                        assert!(send(&mut exchange, &[last.as_bytes(), &[0; 10]].concat(), &parties));
                    }
                    assert_eq!(exchange.proven, Some((hash, group)));
                    assert!(!exchange.is_running(), "it may begin again");
                }
            }
        }
    }

    #[test]
    fn a_wrong_key_on_either_side_fails() {
        let right = parties(HashId::SHA_256, DhGroupId::NULL);
        for wrong in [
            Parties { host_key: Some(key("01", &[9; 32])), ..right.clone() },
            Parties { host_key: Some(key("00", &[3; 32])), ..right.clone() },
            Parties { hostnqn: "nqn.other".into(), ..right.clone() },
            Parties { controller_key: None, ..right.clone() },
        ] {
            let mut exchange = Exchange::new();
            send(&mut exchange, &negotiate(&HASHES, &[DhGroupId::NULL]), &wrong);
            let challenge = exchange.poll_message().expect("a challenge").message;
            let (message, _) = reply(&challenge, &right, true);
            send(&mut exchange, &message, &wrong);
            failure(&mut exchange, FailureExplanation::AUTHENTICATION_FAILED);
            assert_eq!(exchange.proven, None);
        }
    }

    #[test]
    fn what_cannot_be_agreed_on_is_named() {
        let own = parties(HashId::SHA_256, DhGroupId::FFDHE_2048);
        let check = |message: &[u8], parties: &Parties, expected| {
            let mut exchange = Exchange::new();
            send(&mut exchange, message, parties);
            failure(&mut exchange, expected);
        };
        let groups = [DhGroupId::FFDHE_2048];
        check(&negotiate(&[HashId::SHA_384], &groups), &own, FailureExplanation::HASH_NOT_USABLE);
        check(&negotiate(&HASHES, &[DhGroupId::NULL]), &own, FailureExplanation::DH_GROUP_NOT_USABLE);
        let mut other = negotiate(&HASHES, &groups);
        other[8] = 2;
        check(&other, &own, FailureExplanation::PROTOCOL_NOT_USABLE);
        let keyless = Parties { host_key: None, ..own.clone() };
        check(&negotiate(&HASHES, &groups), &keyless, FailureExplanation::PROTOCOL_NOT_USABLE);
        let mut channel = negotiate(&HASHES, &groups);
        channel[6] = 2;
        check(&channel, &own, FailureExplanation::SECURE_CHANNEL_MISMATCH);
        check(&negotiate(&HASHES, &groups)[..40], &own, FailureExplanation::INCORRECT_PAYLOAD);
        check(&[0; 3], &own, FailureExplanation::INCORRECT_PAYLOAD);
        let reply = MessageHead::new(AuthType::DH_HMAC_CHAP, AuthId::REPLY, 7);
        check(&[reply.as_bytes(), &[0; 90]].concat(), &own, FailureExplanation::INCORRECT_MESSAGE);
    }

    #[test]
    fn a_reply_that_does_not_fit_the_challenge_fails() {
        let own = parties(HashId::SHA_256, DhGroupId::FFDHE_2048);
        let check = |change: &dyn Fn(&mut Vec<u8>, &[u8]), expected| {
            let mut exchange = Exchange::new();
            send(&mut exchange, &negotiate(&HASHES, &[DhGroupId::FFDHE_2048]), &own);
            let challenge = exchange.poll_message().expect("a challenge").message;
            let (mut message, _) = reply(&challenge, &own, true);
            change(&mut message, &challenge);
            send(&mut exchange, &message, &own);
            failure(&mut exchange, expected);
        };
        let payload = FailureExplanation::INCORRECT_PAYLOAD;
        check(&|message, _| message[4] = 8, payload);
        check(&|message, _| message[6] = 48, payload);
        check(&|message, _| message[8] = 2, payload);
        check(&|message, _| message.truncate(100), payload);
        check(&|message, _| message[11] = 0, payload);
        check(&|message, challenge| message[48..80].copy_from_slice(&challenge[16..48]), payload);
        check(&|message, _| message[80..].fill(0), payload);
        check(&|message, _| message[20] ^= 1, FailureExplanation::AUTHENTICATION_FAILED);
    }

    #[test]
    fn no_message_whatever_its_bytes_breaks_a_transaction() {
        let own = parties(HashId::SHA_256, DhGroupId::NULL);
        let mut chance = crate::chance();
        for _ in 0..20_000 {
            let mut exchange = Exchange::new();
            for _ in 0..3 {
                let mut message = negotiate(&HASHES, &[DhGroupId::NULL]);
                if chance().is_multiple_of(3) {
                    message = vec![0; chance() as usize % 200];
                }
                for _ in 0..chance() % 4 {
                    let at = chance() as usize % message.len().max(1);
                    if let Some(byte) = message.get_mut(at) {
                        *byte = [0, 1, 2, 0xf0, 0xf1, 0xff, chance() as u8][chance() as usize % 7];
                    }
                }
                assert!(!send(&mut exchange, &message, &own), "nobody proves anything by chance");
                let length = exchange.pending_len();
                let received = exchange.poll_message().map(|received| received.message.len());
                assert_eq!(received, length);
            }
            assert_eq!(exchange.proven, None);
        }
    }
}
