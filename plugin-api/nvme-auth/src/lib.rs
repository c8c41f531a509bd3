//! In-band authentication with DH-HMAC-CHAP, for both roles, and the keys that
//! operators give to hosts, subsystems and TLS channels. Base 2.0c §8.13.
//!
//! * [`secret`]: keys in their text forms, and what is derived from them;
//! * [`controller`]: a transaction as the controller sees it;
//! * [`host`]: the same transaction as the host sees it;
//! * `digest`, `dh`, `groups`, `response`: the cryptography of both.
//!
//! Sans-IO: messages and random bytes come as arguments; commands, queues,
//! clocks and limits of time belong to whoever authenticates. What takes long,
//! an exponentiation, is handed out as a value that runs on any thread. Secrets
//! are wiped when dropped and never shown.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod controller;
mod dh;
pub mod digest;
mod groups;
pub mod host;
mod response;
pub mod secret;

use nvme_spec::auth::{DhGroupId, HashId};

pub use dh::SECRET_BYTES;
use secret::DhchapKey;

/// Who authenticates whom, with what. Keys are those of the moment a transaction begins.
#[derive(Clone, Debug)]
pub struct Parties {
    /// NQN of the host.
    pub hostnqn: String,
    /// NQN of the subsystem.
    pub subnqn: String,
    /// The key by which the host proves who it is.
    pub host_key: Option<DhchapKey>,
    /// The key by which the subsystem does, if it is to.
    pub controller_key: Option<DhchapKey>,
    /// Hash functions that may be used, the best first.
    pub hashes: Vec<HashId>,
    /// Diffie-Hellman groups that may be used, the best first.
    pub groups: Vec<DhGroupId>,
}

impl Parties {
    /// Every hash function, the best first.
    pub const HASHES: [HashId; 3] = [HashId::SHA_512, HashId::SHA_384, HashId::SHA_256];
    /// Every group, the best first.
    pub const GROUPS: [DhGroupId; 6] = [
        DhGroupId::FFDHE_8192,
        DhGroupId::FFDHE_6144,
        DhGroupId::FFDHE_4096,
        DhGroupId::FFDHE_3072,
        DhGroupId::FFDHE_2048,
        DhGroupId::NULL,
    ];
}

/// Longest message of a transaction, with room to spare.
pub const MAX_MESSAGE_BYTES: usize = 4096;

/// Draws for tests, always the same.
#[cfg(test)]
fn chance() -> impl FnMut() -> u64 {
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    move || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    }
}
