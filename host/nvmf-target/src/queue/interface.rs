//! What passes between the control reactor and the queues on data reactors.
//!
//! Queues send [`Capsule`]s and ends; control answers with [`Answer`]s and
//! publishes facts: [`NamespaceFacts`], [`Access`]. Everything here is `Send`
//! and owned by its receiver; nothing is shared but [`Association`], whose few
//! words are atomic.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};

use nvme_spec::command::Sqe;
use nvme_spec::completion::StatusField;
use nvme_spec::fabrics::InvalidParameter;
use nvme_spec::log::AnaState;
use nvme_spec::nqn::HostId;
use nvme_spec::status::StatusCode;
use tenon_abi::{BdevFlags, CopyRange, DescHandle, Limits};
use tenon_reactor::{ReactorId, ReactorRef};

use crate::limits::HostLimiter;
use crate::post::post;
use crate::reservation::state::ReservationView;
use crate::status::refused;
use crate::target::Target;

/// Names a subsystem for the life of the target.
pub(crate) type SubsystemId = u64;

/// Names a queue for the life of the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct QueueKey {
    pub reactor: ReactorId,
    pub number: u64,
}

/// What is known of a connection before anybody connects through it.
#[derive(Clone, Debug)]
pub(crate) struct ConnectionFacts {
    pub key: QueueKey,
    pub transport: u64,
    pub listener: u64,
    pub queue_depth: u32,
    pub in_capsule_size: u32,
    pub is_secure: bool,
    /// Identity whose key secures the channel.
    pub psk_identity: String,
    pub peer: String,
}

/// A command for the control reactor.
pub(crate) struct Capsule {
    pub facts: Arc<ConnectionFacts>,
    pub ticket: u64,
    pub sqe: Sqe,
    /// What the host sent with it.
    pub data: Vec<u8>,
    /// Bytes the host takes.
    pub response_len: u32,
}

/// The answer to a [`Capsule`].
#[derive(Default)]
pub(crate) struct Answer {
    pub status: Option<StatusField>,
    pub result: u64,
    /// At most `response_len` bytes; the rest of what the host takes is zeroes.
    pub data: Vec<u8>,
    /// Connect succeeded.
    pub opening: Option<Opening>,
    /// The connection ends once the answer is sent.
    pub closes: bool,
    /// The host has proven who it is: the queue takes every command.
    pub is_proven: bool,
}

/// What a queue becomes by a successful Connect.
pub(crate) struct Opening {
    pub association: Arc<Association>,
    pub qid: u16,
    pub entries: u32,
    pub has_flow_control: bool,
    pub access: Arc<Access>,
    /// Nothing but authentication is taken until the host has proven who it is.
    pub needs_authentication: bool,
    /// What the host may do per second.
    pub limiter: Option<Arc<HostLimiter>>,
}

/// A host's use of a controller, shared by its queues.
#[derive(Debug)]
pub(crate) struct Association {
    pub subsystem: SubsystemId,
    pub cntlid: u16,
    pub hostnqn: Arc<str>,
    pub hostid: HostId,
    /// A command came since the last look: Traffic Based Keep Alive.
    pub traffic: AtomicBool,
    /// Numbers the entries of the error log.
    pub errors: AtomicU64,
    /// The host understands Command Retry Delay.
    pub retries_advanced: AtomicBool,
}

/// What one controller may see and use, by the path it came.
#[derive(Debug, Default)]
pub(crate) struct Access {
    /// Bit per namespace identifier, from 1 on.
    pub visible: Vec<u64>,
    /// State per ANA group, from 0 on; groups behind its end are optimized.
    pub ana: Vec<AnaState>,
}

/// What a reactor needs to serve a namespace.
#[derive(Clone)]
pub(crate) struct NamespaceFacts {
    pub nsid: u32,
    pub desc: DescHandle,
    pub guard: Arc<OpenGuard>,
    pub limits: Limits,
    pub flags: BdevFlags,
    pub io_types: u64,
    pub io_flags: u64,
    pub is_write_protected: bool,
    pub anagrpid: u32,
    pub reservation: Option<Arc<ReservationView>>,
}

/// Tells control when the last reactor has let go of a namespace's device.
pub(crate) struct OpenGuard {
    pub control: ReactorRef,
    pub number: u64,
}

impl Drop for OpenGuard {
    fn drop(&mut self) {
        let number = self.number;
        post(&self.control, move || {
            if let Some(target) = Target::current() {
                target.descriptor_unused(number);
            }
        });
    }
}

/// An entry of the error log, with what orders it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ErrorRecord {
    pub number: u64,
    pub sqid: u16,
    pub cid: u16,
    pub status: StatusField,
    pub nsid: u32,
    pub lba: u64,
}

/// What hosts did with a namespace, or with a queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IoCounts {
    /// Read commands.
    pub read_commands: u64,
    /// Bytes read.
    pub read_bytes: u64,
    /// Write commands.
    pub write_commands: u64,
    /// Bytes written.
    pub write_bytes: u64,
    /// Other I/O commands.
    pub other_commands: u64,
    /// Commands that ended with an error.
    pub failed_commands: u64,
    /// Errors of the medium among them.
    pub media_errors: u64,
}

impl IoCounts {
    /// I/O commands of every kind.
    pub fn commands(&self) -> u64 {
        self.read_commands + self.write_commands + self.other_commands
    }

    pub(crate) fn add(&mut self, other: &IoCounts) {
        self.read_commands += other.read_commands;
        self.read_bytes += other.read_bytes;
        self.write_commands += other.write_commands;
        self.write_bytes += other.write_bytes;
        self.other_commands += other.other_commands;
        self.failed_commands += other.failed_commands;
        self.media_errors += other.media_errors;
    }
}

impl Answer {
    pub(crate) fn ok() -> Self {
        Self::default()
    }

    pub(crate) fn result(value: u64) -> Self {
        Self { result: value, ..Self::default() }
    }

    pub(crate) fn data(data: Vec<u8>) -> Self {
        Self { data, ..Self::default() }
    }

    pub(crate) fn status(status: StatusField) -> Self {
        Self { status: Some(status), ..Self::default() }
    }

    /// A refusal that a retry would meet again.
    pub(crate) fn refuse(code: StatusCode) -> Self {
        Self::status(refused(code))
    }

    /// Connect refused because of a parameter.
    pub(crate) fn invalid_parameter(parameter: InvalidParameter) -> Self {
        let status = Some(refused(StatusCode::CONNECT_INVALID_PARAMETERS));
        Self { status, result: u64::from(parameter.to_dw0().get()), ..Self::default() }
    }
}

impl Access {
    pub(crate) fn sees(&self, nsid: u32) -> bool {
        let word = self.visible.get(nsid as usize / 64).copied().unwrap_or(0);
        word >> (nsid % 64) & 1 == 1
    }

    pub(crate) fn ana_state(&self, group: u32) -> AnaState {
        self.ana.get(group as usize).copied().unwrap_or(AnaState::OPTIMIZED)
    }

    pub(crate) fn show(&mut self, nsid: u32) {
        let word = nsid as usize / 64;
        if self.visible.len() <= word {
            self.visible.resize(word + 1, 0);
        }
        self.visible[word] |= 1 << (nsid % 64);
    }
}

/// Size of [`CopyRange`], of which a buffer holds the parsed sources of Copy.
pub(crate) const COPY_RANGE_SIZE: usize = size_of::<CopyRange>();
