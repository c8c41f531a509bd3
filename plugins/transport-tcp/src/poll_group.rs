//! The connections of one reactor: who is ready, whose turn it is, who has
//! waited too long.
//!
//! Sockets are watched edge-triggered by an epoll set of the group's own, so
//! that a busy connection costs no system call but its receives and sends. The
//! set is watched by the reactor in turn, which may therefore sleep. While few
//! connections are busy, they are asked directly whether something has come:
//! that saves the way through epoll at low queue depths.
//!
//! A connection that has something to do is in the work list, once; in a turn of
//! the reactor everybody who is in it has one turn.
// UNSAFETY: keeps the contract's pointer of the instance, which it never follows.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fmt::Display;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::rc::{Rc, Weak};

use rustix::event::{Timespec, epoll};
use serde::Serialize;
use slab::Slab;
use tenon_sdk::abi::transport::CloseReason;
use tenon_sdk::abi::transport::target::{HostTransport, NvmfTargetApiV1};
use tenon_sdk::{Alarm, Error, FdWatch, Host, IoVec, Poll, Poller};

use crate::connection::TargetOptions;
use crate::host_connection::HostConnection;
use crate::inbox::ChunkPool;
use crate::listener::Accepted;
use crate::phase::Phase;
use crate::socket::MAX_PIECES;

/// What the connections of a reactor share.
pub struct Shared {
    pub host: Host,
    pub api: &'static NvmfTargetApiV1,
    pub transport: *mut HostTransport,
    pub protocol: TargetOptions,
    pub chunks: ChunkPool,
    /// Room for the pieces of one call of a socket.
    pub pieces: RefCell<Vec<IoVec>>,
    pub counters: Counters,
    work: RefCell<VecDeque<usize>>,
    notes: Notes,
}

/// What has happened on a reactor, counted since its start.
#[derive(Debug, Default)]
pub struct Counters {
    pub polls: Cell<u64>,
    pub idle_polls: Cell<u64>,
    pub commands: Cell<u64>,
    pub receives: Cell<u64>,
    pub received_bytes: Cell<u64>,
    pub sends: Cell<u64>,
    pub sent_bytes: Cell<u64>,
    /// Commands whose data had a wrong digest.
    pub damaged: Cell<u64>,
    /// Connections that were taken over.
    pub adopted: Cell<u64>,
    /// Connections that ended before they were queue pairs.
    pub unfinished: Cell<u64>,
}

/// The counters and gauges as they are reported.
#[derive(Debug, Serialize)]
struct Statistics {
    connections: usize,
    handshakes: usize,
    receive_chunks: usize,
    polls: u64,
    idle_polls: u64,
    commands: u64,
    receives: u64,
    received_bytes: u64,
    sends: u64,
    sent_bytes: u64,
    damaged_commands: u64,
    adopted_connections: u64,
    unfinished_connections: u64,
}

/// Log lines that peers can cause: a few per interval.
#[derive(Debug, Default)]
struct Notes {
    since_ns: Cell<u64>,
    written: Cell<u32>,
    left_out: Cell<u64>,
}

/// The connections of one reactor.
pub struct PollGroup {
    own: Weak<PollGroup>,
    shared: Rc<Shared>,
    epoll: OwnedFd,
    events: RefCell<Vec<epoll::Event>>,
    connections: RefCell<Slab<Rc<HostConnection>>>,
    /// Connections that had bytes lately, asked directly.
    busy: RefCell<Vec<Recent>>,
    /// Polls until epoll is asked again although there are busy connections.
    until_scan: Cell<u32>,
    alarm: RefCell<Option<Alarm>>,
    alarm_ns: Cell<u64>,
    /// End first, as they refer to what is above.
    attached: RefCell<Option<(Poller, FdWatch)>>,
}

#[derive(Clone, Copy, Debug)]
struct Recent {
    index: usize,
    last_ns: u64,
}

impl Shared {
    /// Queues a connection for a turn.
    pub fn queue(&self, connection: &HostConnection) {
        if !connection.is_queued.replace(true) {
            self.work.borrow_mut().push_back(connection.index);
        }
    }

    /// Logs what a peer did, unless peers did too much of it lately.
    pub fn note(&self, what: &str, peer: SocketAddr, detail: &impl Display) {
        let now_ns = self.host.now_ns();
        let notes = &self.notes;
        if now_ns.saturating_sub(notes.since_ns.get()) >= NOTES_INTERVAL_NS {
            let left_out = notes.left_out.replace(0);
            if left_out > 0 {
                log::warn!("lines about peers were left out count={left_out}");
            }
            notes.since_ns.set(now_ns);
            notes.written.set(0);
        }
        if notes.written.get() < NOTES_PER_INTERVAL {
            notes.written.set(notes.written.get() + 1);
            log::warn!("{what} peer={peer} detail=\"{detail}\"");
        } else {
            notes.left_out.set(notes.left_out.get() + 1);
        }
    }
}

impl PollGroup {
    /// Makes the group of the calling reactor.
    pub fn new(
        host: Host,
        api: &'static NvmfTargetApiV1,
        transport: *mut HostTransport,
        protocol: TargetOptions,
    ) -> Result<Rc<Self>, Error> {
        let shared = Rc::new(Shared {
            host,
            api,
            transport,
            protocol,
            chunks: ChunkPool::default(),
            pieces: RefCell::new(Vec::with_capacity(2 * MAX_PIECES)),
            counters: Counters::default(),
            work: RefCell::default(),
            notes: Notes::default(),
        });
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)
            .map_err(|error| Error::from(std::io::Error::from(error)))?;
        let group = Rc::new_cyclic(|own: &Weak<Self>| Self {
            own: own.clone(),
            shared,
            epoll,
            events: RefCell::new(Vec::with_capacity(EVENTS_PER_SCAN)),
            connections: RefCell::default(),
            busy: RefCell::new(Vec::with_capacity(MAX_BUSY)),
            until_scan: Cell::new(0),
            alarm: RefCell::default(),
            alarm_ns: Cell::new(u64::MAX),
            attached: RefCell::default(),
        });
        let of = |group: &Rc<Self>| Rc::downgrade(group);
        let (polled, asked, alarmed) = (of(&group), of(&group), of(&group));
        let poller = host.wakeable_poller(
            "transport_tcp",
            0,
            move || polled.upgrade().map_or(Poll::Idle, |group| group.poll()),
            move || asked.upgrade().is_none_or(|group| group.may_sleep()),
        )?;
        // The wake-up is all that is wanted: the poller does the work.
        let watch = host.watch_fd(&group.epoll, libc::EPOLLIN as u32, |_| ())?;
        let ring = move || Weak::upgrade(&alarmed).map_or((), |group| group.check_deadlines());
        *group.alarm.borrow_mut() = Some(host.alarm(ring));
        *group.attached.borrow_mut() = Some((poller, watch));
        Ok(group)
    }

    /// Takes over an accepted connection.
    pub fn adopt(&self, accepted: Accepted) -> Result<(), Error> {
        self.make_room_for_handshake();
        let index = self.connections.borrow().vacant_key();
        let connection = HostConnection::new(&self.shared, self.own.clone(), index, accepted)
            .map_err(|error| Error::invalid(error.to_string()))?;
        let flags =
            epoll::EventFlags::IN | epoll::EventFlags::OUT | epoll::EventFlags::RDHUP | epoll::EventFlags::ET;
        let data = epoll::EventData::new_u64(index as u64);
        let watched = connection.with_socket(|socket| epoll::add(&self.epoll, socket, data, flags));
        if let Some(Err(error)) = watched {
            return Err(std::io::Error::from(error).into());
        }
        self.connections.borrow_mut().insert(connection.clone());
        count(&self.shared.counters.adopted);
        self.shared.queue(&connection);
        self.look_by(self.shared.host.now_ns() + SWEEP_NS);
        Ok(())
    }

    /// The target core ends a connection.
    pub fn close(&self, connection: &HostConnection, reason: CloseReason, drain_by_ns: u64) {
        connection.close(reason, drain_by_ns);
        self.shared.queue(connection);
        self.look_by(drain_by_ns);
    }

    /// The target core has let go of a connection.
    pub fn free(&self, connection: &HostConnection) {
        let connection = self.connections.borrow().get(connection.index).cloned();
        let Some(connection) = connection else { return };
        let lingering =
            self.connections.borrow().iter().filter(|(_, c)| c.phase() == Phase::Lingering).count();
        if connection.freed() && lingering >= MAX_LINGERING {
            connection.abandon();
        }
        self.forget_if_gone(&connection);
    }

    /// Ends connections of a listener that are no queue pairs yet.
    pub fn drop_unfinished(&self, listener: u64) {
        for connection in self.all() {
            if connection.listener == listener && connection.phase().is_unknown() {
                self.end(&connection);
            }
        }
    }

    /// Ends the group; what is left of connections ends with it.
    pub fn end_all(&self) {
        for connection in self.all() {
            self.end(&connection);
        }
        let attached = self.attached.borrow_mut().take();
        drop(attached);
        let alarm = self.alarm.borrow_mut().take();
        drop(alarm);
    }

    /// What is counted, as JSON.
    pub fn statistics(&self) -> String {
        let counters = &self.shared.counters;
        let connections = self.connections.borrow();
        let statistics = Statistics {
            connections: connections.len(),
            handshakes: connections.iter().filter(|(_, c)| c.phase().is_unknown()).count(),
            receive_chunks: self.shared.chunks.in_use(),
            polls: counters.polls.get(),
            idle_polls: counters.idle_polls.get(),
            commands: counters.commands.get(),
            receives: counters.receives.get(),
            received_bytes: counters.received_bytes.get(),
            sends: counters.sends.get(),
            sent_bytes: counters.sent_bytes.get(),
            damaged_commands: counters.damaged.get(),
            adopted_connections: counters.adopted.get(),
            unfinished_connections: counters.unfinished.get(),
        };
        serde_json::to_string(&statistics).unwrap_or_else(|_| "{}".to_owned())
    }

    fn poll(&self) -> Poll {
        let counters = &self.shared.counters;
        let moved = || counters.received_bytes.get() + counters.sent_bytes.get();
        let before = moved();
        let is_found = self.find_ready();
        // Those who queue themselves meanwhile have their turn in the next poll.
        let count_now = self.shared.work.borrow().len();
        for _ in 0..count_now {
            let Some(index) = self.shared.work.borrow_mut().pop_front() else { break };
            let connection = self.connections.borrow().get(index).cloned();
            if let Some(connection) = connection {
                self.give_turn(&connection);
            }
        }
        count(&counters.polls);
        // A look at a socket that had nothing is no work.
        if is_found || moved() != before {
            return Poll::Busy;
        }
        count(&counters.idle_polls);
        Poll::Idle
    }

    fn give_turn(&self, connection: &Rc<HostConnection>) {
        connection.is_queued.set(true);
        let before = self.shared.counters.received_bytes.get();
        let has_more = connection.turn();
        if self.shared.counters.received_bytes.get() != before {
            self.was_busy(connection.index);
        }
        connection.is_queued.set(false);
        if has_more {
            self.shared.queue(connection);
        }
        connection.reclaim();
        self.forget_if_gone(connection);
    }

    fn may_sleep(&self) -> bool {
        self.busy.borrow_mut().clear();
        self.shared.work.borrow().is_empty()
    }

    /// Queues connections whose sockets are ready. Returns whether there was one.
    fn find_ready(&self) -> bool {
        let is_probed = self.probe_busy();
        if is_probed && self.until_scan.get() > 0 {
            self.until_scan.set(self.until_scan.get() - 1);
            return false;
        }
        self.until_scan.set(PROBES_PER_SCAN);
        self.scan()
    }

    /// Has the connections that were busy lately look at their sockets; false if that is not how it is done now.
    fn probe_busy(&self) -> bool {
        let mut busy = self.busy.borrow_mut();
        if busy.is_empty() || busy.len() >= MAX_BUSY {
            busy.clear();
            return false;
        }
        let now_ns = self.shared.host.now_ns();
        busy.retain(|recent| now_ns.saturating_sub(recent.last_ns) < BUSY_NS);
        let connections = self.connections.borrow();
        for recent in busy.iter() {
            if let Some(connection) = connections.get(recent.index) {
                connection.probe();
                self.shared.queue(connection);
            }
        }
        !busy.is_empty()
    }

    fn was_busy(&self, index: usize) {
        let last_ns = self.shared.host.now_ns();
        let mut busy = self.busy.borrow_mut();
        if let Some(recent) = busy.iter_mut().find(|recent| recent.index == index) {
            recent.last_ns = last_ns;
        } else if busy.len() < MAX_BUSY {
            busy.push(Recent { index, last_ns });
        }
    }

    fn scan(&self) -> bool {
        let mut events = self.events.borrow_mut();
        events.clear();
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        if let Err(error) =
            epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), Some(&at_once))
        {
            if error != rustix::io::Errno::INTR {
                log::error!("sockets cannot be asked for readiness error=\"{error}\"");
            }
            return false;
        }
        let connections = self.connections.borrow();
        for event in events.iter() {
            let flags = event.flags;
            let is_broken = flags.intersects(epoll::EventFlags::ERR | epoll::EventFlags::HUP);
            let is_half_closed = is_broken || flags.contains(epoll::EventFlags::RDHUP);
            if let Some(connection) = connections.get(event.data.u64() as usize) {
                let is_readable = is_half_closed || flags.contains(epoll::EventFlags::IN);
                let is_writable = is_broken || flags.contains(epoll::EventFlags::OUT);
                connection.socket_ready(is_readable, is_writable, is_half_closed);
                self.shared.queue(connection);
            }
        }
        !events.is_empty()
    }

    /// Ends what has waited too long, and sets the time to look again.
    fn check_deadlines(&self) {
        self.alarm_ns.set(u64::MAX);
        let now_ns = self.shared.host.now_ns();
        let mut next_ns = now_ns + SWEEP_NS;
        for connection in self.all() {
            next_ns = next_ns.min(connection.check_deadlines(now_ns));
            self.shared.queue(&connection);
            self.forget_if_gone(&connection);
        }
        if !self.connections.borrow().is_empty() {
            self.look_by(next_ns.max(now_ns + MIN_SWEEP_NS));
        }
    }

    /// Sets the alarm, unless it comes earlier anyway.
    fn look_by(&self, at_ns: u64) {
        if self.alarm_ns.get() <= at_ns {
            return;
        }
        let now_ns = self.shared.host.now_ns();
        let set = self.alarm.borrow().as_ref().map(|alarm| alarm.set_ns(at_ns.saturating_sub(now_ns).max(1)));
        match set {
            Some(Ok(())) => self.alarm_ns.set(at_ns),
            Some(Err(error)) => log::error!("deadlines of connections are not watched error=\"{error}\""),
            None => {}
        }
    }

    /// Keeps connections that do not finish their handshake from taking all room: the oldest goes.
    fn make_room_for_handshake(&self) {
        let unfinished: Vec<Rc<HostConnection>> =
            self.all().into_iter().filter(|connection| connection.phase().is_unknown()).collect();
        if unfinished.len() < MAX_HANDSHAKES {
            return;
        }
        if let Some(oldest) = unfinished.iter().min_by_key(|connection| connection.opened_ns) {
            self.shared.note("handshake was given up for newer ones", oldest.peer(), &"too many at a time");
            self.end(oldest);
        }
    }

    fn end(&self, connection: &Rc<HostConnection>) {
        connection.abandon();
        self.forget_if_gone(connection);
    }

    fn forget_if_gone(&self, connection: &Rc<HostConnection>) {
        if connection.phase() != Phase::Gone {
            return;
        }
        connection.reclaim();
        let mut connections = self.connections.borrow_mut();
        let is_here = connections.get(connection.index).is_some_and(|other| Rc::ptr_eq(other, connection));
        if is_here {
            let removed = connections.remove(connection.index);
            drop(connections);
            if removed.was_unfinished() {
                count(&self.shared.counters.unfinished);
            }
        }
    }

    fn all(&self) -> Vec<Rc<HostConnection>> {
        self.connections.borrow().iter().map(|(_, connection)| connection.clone()).collect()
    }
}

fn count(counter: &Cell<u64>) {
    counter.set(counter.get() + 1);
}

/// Sockets one look at epoll tells of; others are told by the next.
const EVENTS_PER_SCAN: usize = 256;
/// With as many busy connections or more, epoll finds the ready ones more cheaply than asking each.
const MAX_BUSY: usize = 4;
/// How long a connection counts as busy after its last byte.
const BUSY_NS: u64 = 50_000;
/// Polls of the busy connections alone between looks at all.
const PROBES_PER_SCAN: u32 = 16;
/// Deadlines are looked at this often, more often if one is near.
const SWEEP_NS: u64 = 1_000_000_000;
const MIN_SWEEP_NS: u64 = 5_000_000;
/// Handshakes at a time on a reactor.
const MAX_HANDSHAKES: usize = 256;
/// Connections at a time that are only open for their host to read what it did wrong.
const MAX_LINGERING: usize = 64;
/// Log lines about peers.
const NOTES_PER_INTERVAL: u32 = 10;
const NOTES_INTERVAL_NS: u64 = 10_000_000_000;
