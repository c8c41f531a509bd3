//! The initiator's poll group: every connection of a reactor, its receive
//! buffer, and the poller that moves their bytes.
//!
//! One receive and one send per connection and turn, each as large as it can
//! be: what is submitted during a turn leaves together. While commands are in
//! flight on a data reactor the sockets are asked directly, in each turn those
//! that are next until one has nothing: a look in vain costs a system call.
//! Before the reactor sleeps, and always on the control reactor, readiness comes
//! from epoll.
// UNSAFETY: owns the memory that sockets receive into, and lends it for a call.

use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};

use tenon_sdk::{Alarm, Error, Host, IoVec, Poll, Poller};

use crate::initiator::Connection;
use crate::socket::MAX_PIECES;

/// The connections of one reactor.
pub(crate) struct Group {
    pub(crate) host: Host,
    connections: RefCell<Vec<Rc<Connection>>>,
    /// Bytes as received; used inside one call at a time.
    pub(crate) buffer: RefCell<Box<[u8]>>,
    /// What is to be sent or received to; used inside one call at a time.
    pub(crate) pieces: RefCell<Vec<IoVec>>,
    pub(crate) statistics: Statistics,
    /// Whether sockets are asked while commands are in flight.
    asks_sockets: bool,
    /// A socket had nothing in this turn.
    has_asked_in_vain: Cell<bool>,
    /// The connection whose turn comes first.
    first: Cell<usize>,
    next_check_ns: Cell<u64>,
    poller: RefCell<Option<Poller>>,
    alarm: RefCell<Option<Alarm>>,
}

/// What happened so far.
#[derive(Default)]
pub(crate) struct Statistics {
    pub(crate) polls: Cell<u64>,
    pub(crate) idle_polls: Cell<u64>,
    pub(crate) receives: Cell<u64>,
    pub(crate) received_bytes: Cell<u64>,
    pub(crate) sends: Cell<u64>,
    pub(crate) sent_bytes: Cell<u64>,
    pub(crate) commands: Cell<u64>,
    pub(crate) completions: Cell<u64>,
}

/// Adds to a counter.
pub(crate) fn count(counter: &Cell<u64>, by: u64) {
    counter.set(counter.get() + by);
}

impl Group {
    /// A group on the calling reactor.
    pub(crate) fn new(host: Host) -> Result<Rc<Self>, Error> {
        let asks_sockets = host.reactor().is_some_and(|reactor| !reactor.is_control());
        let group = Rc::new(Group {
            host,
            connections: RefCell::default(),
            buffer: RefCell::new(vec![0; BUFFER_BYTES].into_boxed_slice()),
            pieces: RefCell::new(Vec::with_capacity(MAX_PIECES)),
            statistics: Statistics::default(),
            asks_sockets,
            has_asked_in_vain: Cell::new(false),
            first: Cell::new(0),
            next_check_ns: Cell::new(0),
            poller: RefCell::default(),
            alarm: RefCell::default(),
        });
        let (runs, sleeps) = (Rc::downgrade(&group), Rc::downgrade(&group));
        let poller = host.wakeable_poller(
            "nvme_tcp_initiator",
            0,
            move || runs.upgrade().map_or(Poll::Idle, |group| group.run()),
            move || sleeps.upgrade().is_none_or(|group| group.may_sleep()),
        )?;
        *group.poller.borrow_mut() = Some(poller);
        // It only wakes the reactor: the poller looks at the deadlines.
        *group.alarm.borrow_mut() = Some(host.alarm(|| {}));
        Ok(group)
    }

    pub(crate) fn add(&self, connection: Rc<Connection>) {
        self.connections.borrow_mut().push(connection);
    }

    /// Whether another socket may be asked in this turn.
    pub(crate) fn may_ask(&self) -> bool {
        self.asks_sockets && !self.has_asked_in_vain.get()
    }

    /// A socket that was asked had nothing.
    pub(crate) fn asked_in_vain(&self) {
        self.has_asked_in_vain.set(true);
    }

    fn run(self: &Rc<Self>) -> Poll {
        count(&self.statistics.polls, 1);
        let now_ns = self.host.now_ns();
        let checks = now_ns >= self.next_check_ns.get();
        if checks {
            self.next_check_ns.set(now_ns + CHECK_NS);
        }
        let (count_now, first) = (self.connections.borrow().len(), self.first.get());
        let (mut is_busy, mut is_any_over) = (false, false);
        self.has_asked_in_vain.set(false);
        for step in 0..count_now {
            let at = (first + step) % count_now;
            let connection = self.connections.borrow().get(at).map(Rc::clone);
            let Some(connection) = connection else { break };
            if checks {
                connection.check_time(now_ns);
            }
            let could_ask = self.may_ask();
            is_busy |= connection.run(self, now_ns);
            is_any_over |= connection.is_over();
            if could_ask && !self.may_ask() {
                self.first.set((at + 1) % count_now);
            }
        }
        if is_any_over {
            self.tell_ended();
        }
        if !is_busy {
            count(&self.statistics.idle_polls, 1);
        }
        if is_busy { Poll::Busy } else { Poll::Idle }
    }

    /// Lets go of the connections that are over.
    #[cold]
    fn tell_ended(&self) {
        let is_over = |connection: &mut Rc<Connection>| connection.is_over();
        let over: Vec<Rc<Connection>> = self.connections.borrow_mut().extract_if(.., is_over).collect();
        for connection in over {
            connection.tell_closed();
        }
    }

    fn may_sleep(&self) -> bool {
        let connections = self.connections.borrow();
        if connections.iter().any(|connection| connection.has_work()) {
            return false;
        }
        let deadline = connections.iter().filter_map(|connection| connection.next_deadline()).min();
        if let (Some(deadline_ns), Some(alarm)) = (deadline, &*self.alarm.borrow()) {
            self.next_check_ns.set(0);
            let delay_ns = deadline_ns.saturating_sub(self.host.now_ns());
            if delay_ns == 0 {
                return false;
            }
            if let Err(error) = alarm.set_ns(delay_ns) {
                log::warn!("nvme tcp initiator has no timer and stays awake error=\"{error}\"");
                return false;
            }
        }
        true
    }

    /// Lets go of the poller, from outside its own call.
    pub(crate) fn end(&self) {
        let poller = self.poller.borrow_mut().take();
        drop(poller);
        let alarm = self.alarm.borrow_mut().take();
        drop(alarm);
    }

    pub(crate) fn statistics_json(&self) -> serde_json::Value {
        let it = &self.statistics;
        serde_json::json!({
            "trtype": "TCP",
            "connections": self.connections.borrow().len(),
            "polls": it.polls.get(),
            "idle_polls": it.idle_polls.get(),
            "receives": it.receives.get(),
            "received_bytes": it.received_bytes.get(),
            "sends": it.sends.get(),
            "sent_bytes": it.sent_bytes.get(),
            "commands": it.commands.get(),
            "completions": it.completions.get(),
        })
    }
}

/// A connection's way to its group, which it does not keep alive.
pub(crate) type GroupRef = Weak<Group>;

/// Bytes one receive may bring: enough for a batch of 32 reads of 4 KiB and more, and it stays in the cache.
const BUFFER_BYTES: usize = 256 << 10;
/// How often deadlines are looked at while the reactor is awake.
const CHECK_NS: u64 = 10_000_000;
