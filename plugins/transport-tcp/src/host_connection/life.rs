//! How a host's connection begins and ends: its channel is secured, the target
//! core gets to know it, limits are learnt, and the stream, the host or the target
//! core ends it.
//!
//! None of it happens while commands go by; that is the parent's.
// UNSAFETY: tells the target core of the connection, and reads a request that is this side's.

use std::io;
use std::net::SocketAddr;

use nvme_spec::command::Sqe;
use nvme_spec::fabrics::Connect;
use nvme_spec::opcode::FabricsType;
use tenon_sdk::abi::Str;
use tenon_sdk::abi::transport::target::ConnectionInfo;
use tenon_sdk::abi::transport::{CloseReason, TransportId};
use zerocopy::FromBytes;

use super::HostConnection;
use crate::channel::Channel;
use crate::connection::{ConnectionState, Ending, Slot, TargetEvent};
use crate::pdu::ADMIN_IN_CAPSULE_BYTES;
use crate::phase::{Phase, PhaseEvent};

impl HostConnection {
    /// Goes on with the channel's handshake; true when it is done.
    #[cold]
    pub(super) fn secure(&self) -> bool {
        let result = self.channel.borrow().as_ref().map_or(Ok(false), Channel::handshake);
        match result {
            Ok(true) => {
                self.is_securing.set(false);
                self.is_readable.set(true);
                true
            }
            Ok(false) => {
                self.is_readable.set(self.is_half_closed.get());
                false
            }
            Err(error) => {
                self.shared.note("channel cannot be secured", self.peer, &error);
                self.lost(None);
                self.close_reason.set(CloseReason::SECURITY);
                false
            }
        }
    }

    /// The handshake is done: the target core gets to know the connection.
    #[cold]
    pub(super) fn open(&self) {
        let (peer, local) = (TextAddress::of(&self.peer), TextAddress::of(&self.local));
        let (is_secure, identity) = match self.channel.borrow().as_ref() {
            Some(channel) => (channel.is_secure(), channel.identity().unwrap_or_default()),
            None => (false, String::new()),
        };
        let info = ConnectionInfo {
            size: size_of::<ConnectionInfo>() as u32,
            queue_depth: self.shared.protocol.queue_depth.into(),
            in_capsule_size: self.shared.protocol.in_capsule_bytes,
            secure: u32::from(is_secure),
            peer: peer.id(),
            local: local.id(),
            listener: self.listener,
            psk_identity: Str::new(&identity),
        };
        let own = std::ptr::from_ref(self).cast_mut().cast();
        let mut queue_pair = std::ptr::null_mut();
        // SAFETY: `info` and its texts live until the call returns.
        let code =
            unsafe { (self.api().queue_pair_open)(self.shared.transport, own, &info, &mut queue_pair) };
        if code == 0 {
            self.queue_pair.set(queue_pair);
            self.advance(PhaseEvent::Opened);
            for request in &self.requests {
                // SAFETY: no request is in use yet.
                unsafe { (*request.get()).target.queue_pair = queue_pair };
            }
        } else {
            log::warn!("connection refused by the target peer={} code={code}", self.peer);
            self.abandon();
        }
    }

    /// After Connect the queue's own limits hold.
    #[cold]
    pub(super) fn learn_limits(&self, slot: Slot) {
        // SAFETY: the request is this side's.
        let bytes = unsafe { (*self.request(slot)).target.sqe };
        let Ok(sqe) = Sqe::ref_from_bytes(&bytes) else { return };
        if sqe.fabrics_type() != Some(FabricsType::CONNECT) {
            return;
        }
        let connect: &Connect = sqe.view();
        let entries = u16::try_from(connect.queue_entries()).unwrap_or(u16::MAX);
        let is_admin = connect.qid.get() == 0;
        let in_capsule =
            if is_admin { ADMIN_IN_CAPSULE_BYTES } else { self.shared.protocol.in_capsule_bytes };
        self.protocol.borrow_mut().limit(entries, in_capsule);
        self.is_connected.set(true);
    }

    /// The target core ends the connection, from inside any of its calls: the rest is done in a later turn.
    pub fn close(&self, reason: CloseReason, drain_by_ns: u64) {
        if self.advance(PhaseEvent::CloseAsked) {
            self.close_reason.set(reason);
            self.drain_by_ns.set(drain_by_ns);
            self.discard_pending();
        }
    }

    /// Ends the connection at once, whatever it is doing.
    pub fn abandon(&self) {
        let ended = self.protocol.borrow_mut().close();
        if let Some(TargetEvent::Ended(ending)) = ended {
            self.over(ending);
        }
        self.settle(self.shared.host.now_ns());
    }

    /// The target core has no request left. Returns whether the connection lingers: the host is still being told
    /// what it did wrong.
    pub fn freed(&self) -> bool {
        self.queue_pair.set(std::ptr::null_mut());
        let is_told = self.protocol.borrow().state() == ConnectionState::Terminating;
        let event = if is_told && self.channel.borrow().is_some() {
            PhaseEvent::FreedEarly
        } else {
            PhaseEvent::Freed
        };
        self.advance(event);
        self.phase.get() == Phase::Lingering
    }

    /// The stream broke, or ended if there is no error.
    #[cold]
    pub(super) fn lost(&self, error: Option<io::Error>) {
        if let Some(error) = error {
            log::debug!("connection broke peer={} error=\"{error}\"", self.peer);
        }
        self.is_readable.set(false);
        self.is_writable.set(false);
        let ended = self.protocol.borrow_mut().handle_eof();
        if let Some(TargetEvent::Ended(ending)) = ended {
            self.over(ending);
        }
    }

    /// The protocol has ended, or tells the host why it does.
    #[cold]
    pub(super) fn over(&self, ending: Ending) {
        let reason = match ending {
            Ending::Local | Ending::DigestRefused => self.close_reason.get(),
            Ending::PeerClosed => CloseReason::PEER,
            Ending::PeerTerminated { .. } | Ending::PeerTerminatedIllegibly => {
                self.shared.note("connection terminated by its host", self.peer, &ending);
                CloseReason::PEER
            }
            Ending::Protocol(_) => {
                self.shared.note("host broke the protocol", self.peer, &ending);
                CloseReason::PROTOCOL
            }
            Ending::TimedOut(_) => {
                self.shared.note("host was too slow", self.peer, &ending);
                CloseReason::TIMEOUT
            }
        };
        self.close_reason.set(reason);
        self.discard_pending();
        let was_unknown = self.phase.get().is_unknown();
        if self.advance(PhaseEvent::StreamOver) && was_unknown {
            self.was_unfinished.set(true);
            let own = std::ptr::from_ref(self).cast_mut().cast();
            // SAFETY: once, for a connection that has no queue pair.
            unsafe { (self.api().connection_dropped)(self.shared.transport, own) };
        }
    }
}

/// An address as texts.
struct TextAddress {
    family: u8,
    host: String,
    port: String,
}

impl TextAddress {
    fn of(address: &SocketAddr) -> Self {
        let family = if address.is_ipv4() { crate::target::FAMILY_IPV4 } else { crate::target::FAMILY_IPV6 };
        Self { family, host: address.ip().to_string(), port: address.port().to_string() }
    }

    /// As the contract has it; good as long as the texts.
    fn id(&self) -> TransportId {
        TransportId {
            size: size_of::<TransportId>() as u32,
            trtype: crate::target::TRTYPE_TCP,
            adrfam: self.family,
            reserved: 0,
            traddr: Str::new(&self.host),
            trsvcid: Str::new(&self.port),
            subnqn: Str::EMPTY,
        }
    }
}
