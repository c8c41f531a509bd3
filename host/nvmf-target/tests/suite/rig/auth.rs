//! A host that proves who it is, in SHA-256 without an exchange of values: its
//! answers are computed from the messages it gets.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use nvme_spec::auth::{
    AuthId, AuthType, Challenge, DhGroupId, HashId, MessageHead, ProtocolDescriptor, Success1,
};
use nvme_spec::command::Sqe;
use nvme_spec::opcode::FabricsType;
use nvme_spec::status::StatusCode;
use sha2::Sha256;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use zerocopy::{FromZeros, IntoBytes};

use super::{NQN, World, rw};
use crate::transport::Connection;

/// A file with a key, for its owner alone.
pub fn key_file(name: &str, secret: &[u8; 32]) -> PathBuf {
    let path = std::env::temp_dir().join(format!("tenon-auth-{name}-{}", std::process::id()));
    let mut bytes = secret.to_vec();
    bytes.extend_from_slice(&crc32fast::hash(secret).to_le_bytes());
    let _ = std::fs::remove_file(&path);
    std::fs::write(&path, format!("DHHC-1:00:{}:\n", STANDARD.encode(bytes))).expect("written");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).expect("mode");
    path
}

pub fn command(fctype: FabricsType, len: usize) -> Sqe {
    let mut sqe = rw(nvme_spec::opcode::IoOpcode(0x7f), 0, 0, 1, len);
    sqe.nsid.set(u32::from(fctype.0));
    sqe.as_mut_bytes()[40..64].fill(0);
    sqe.as_mut_bytes()[41..44].copy_from_slice(&[1, 1, 0xe9]);
    sqe.as_mut_bytes()[44..48].copy_from_slice(&(len as u32).to_le_bytes());
    sqe
}

pub fn send(world: &World, queue: &'static Connection, message: Vec<u8>) -> StatusCode {
    world.status(queue, command(FabricsType::AUTHENTICATION_SEND, message.len()), message)
}

pub fn receive(world: &World, queue: &'static Connection) -> Result<Vec<u8>, StatusCode> {
    let answer = world.command(queue, command(FabricsType::AUTHENTICATION_RECEIVE, 4096), vec![]);
    match answer.cqe.status.is_success() {
        true => Ok(answer.data),
        false => Err(answer.cqe.status.code()),
    }
}

pub fn negotiate() -> Vec<u8> {
    let mut message = nvme_spec::auth::Negotiate::new_zeroed();
    message.head = MessageHead::new(AuthType::COMMON, AuthId::NEGOTIATE, 5);
    message.napd = 1;
    let descriptor = ProtocolDescriptor::new(&[HashId::SHA_256], &[DhGroupId::NULL]).expect("short");
    [message.as_bytes(), descriptor.as_bytes()].concat()
}

fn digest(key: &[u8], parts: &[&[u8]]) -> Vec<u8> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("any length");
    parts.iter().for_each(|part| mac.update(part));
    mac.finalize().into_bytes().to_vec()
}

/// Goes through a transaction as a host with `key`, towards a subsystem with key 2; tells what the target's last message was.
pub fn authenticate(
    world: &World,
    queue: &'static Connection,
    hostnqn: &str,
    key: [u8; 32],
    both_ways: bool,
) -> AuthId {
    assert_eq!(send(world, queue, negotiate()), StatusCode::SUCCESS);
    let message = receive(world, queue).expect("a challenge");
    let (head, value, _) = Challenge::parse(&message).expect("a challenge");
    let (sequence, t_id) = (head.seqnum.get().to_le_bytes(), 5u16.to_le_bytes());
    let (host, sub) = (hostnqn.as_bytes(), NQN.as_bytes());
    let response = digest(&key, &[value, &sequence, &t_id, &[0], b"HostHost", host, &[0], sub]);
    let mut reply = nvme_spec::auth::Reply::new_zeroed();
    reply.head = MessageHead::new(AuthType::DH_HMAC_CHAP, AuthId::REPLY, 5);
    reply.hl = 32;
    reply.cvalid = u8::from(both_ways);
    reply.seqnum.set(1);
    let message = [reply.as_bytes(), &response, &[0x44; 32]].concat();
    assert_eq!(send(world, queue, message), StatusCode::SUCCESS);
    let message = receive(world, queue).expect("an answer");
    let id = AuthId(message[1]);
    if id == AuthId::SUCCESS1 && both_ways {
        let (_, found) = Success1::parse(&message).expect("success");
        let number = 1u32.to_le_bytes();
        let parts: [&[u8]; 8] = [&[0x44; 32], &number, &t_id, &[0], b"Controller", sub, &[0], host];
        assert_eq!(found, digest(&[2; 32], &parts), "the subsystem proves itself");
        let last = MessageHead::new(AuthType::DH_HMAC_CHAP, AuthId::SUCCESS2, 5);
        assert_eq!(send(world, queue, [last.as_bytes(), &[0; 10]].concat()), StatusCode::SUCCESS);
    }
    id
}
