//! What a party proves: the HMAC of a challenge and of who answers whom. Base
//! 2.0c §8.13.5.

use nvme_spec::auth::HashId;
use zeroize::Zeroizing;

use crate::{Parties, digest};

/// Who answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Host,
    Controller,
}

/// A challenge to one party.
#[derive(Clone, Debug)]
pub(crate) struct Question {
    pub(crate) hash: HashId,
    pub(crate) t_id: u16,
    pub(crate) sequence: u32,
    pub(crate) value: Vec<u8>,
}

/// The hashed secret of both sides; `None` without an exchange.
pub(crate) type Session = Option<Zeroizing<Vec<u8>>>;

/// The right answer; `None` if that party has no key.
pub(crate) fn answer(
    role: Role,
    question: &Question,
    session: &Session,
    parties: &Parties,
) -> Option<Zeroizing<Vec<u8>>> {
    with_parts(role, question, session, parties, |key, parts| digest::hmac(question.hash, key, parts))
        .flatten()
}

/// Whether `response` is the right answer.
pub(crate) fn verifies(
    role: Role,
    question: &Question,
    session: &Session,
    parties: &Parties,
    response: &[u8],
) -> bool {
    let check = |key: &[u8], parts: &[&[u8]]| digest::verifies(question.hash, key, parts, response);
    with_parts(role, question, session, parties, check).unwrap_or(false)
}

/// Calls `use_parts` with the party's key and what its answer is the HMAC of.
fn with_parts<T>(
    role: Role,
    question: &Question,
    session: &Session,
    parties: &Parties,
    use_parts: impl FnOnce(&[u8], &[&[u8]]) -> T,
) -> Option<T> {
    let (host, sub) = (parties.hostnqn.as_str(), parties.subnqn.as_str());
    let (own, other, word, key) = match role {
        Role::Host => (host, sub, &b"HostHost"[..], &parties.host_key),
        Role::Controller => (sub, host, &b"Controller"[..], &parties.controller_key),
    };
    let key = key.as_ref()?.bound_to(own)?;
    // A challenge, mixed with the session key if there is one.
    let value = match session {
        None => Zeroizing::new(question.value.clone()),
        Some(session) => digest::hmac(question.hash, session, &[&question.value])?,
    };
    let (sequence, t_id) = (question.sequence.to_le_bytes(), question.t_id.to_le_bytes());
    // The zeroes are SC_C, and the end of the first name.
    let parts: [&[u8]; 8] = [&value, &sequence, &t_id, &[0], word, own.as_bytes(), &[0], other.as_bytes()];
    Some(use_parts(&key, &parts))
}
