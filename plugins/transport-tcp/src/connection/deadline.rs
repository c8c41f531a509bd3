//! When a peer has taken too long.
//!
//! Keeps the times at which bytes moved and says which deadline comes next;
//! what follows from a missed one is the state machines' matter.
#![forbid(unsafe_code)]

use crate::connection::ConnectionState;
use crate::connection::options::Timeouts;

/// Times of a connection, in nanoseconds of the caller's clock.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    timeouts: Timeouts,
    opened_ns: u64,
    received_ns: u64,
    /// Last byte written, or when output began to wait.
    sent_ns: u64,
    terminated_ns: u64,
    /// Bytes the last call left unconsumed: only more than these are news.
    left_over: usize,
}

/// What a connection waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Owed {
    /// The rest of a PDU, or data of an R2T.
    pub(crate) input: bool,
    /// Room for output.
    pub(crate) output: bool,
    /// Commands are in flight: the peer is not idle.
    pub(crate) commands: bool,
}

/// Which deadline is missed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Timeout {
    /// The handshake took too long.
    Handshake,
    /// Bytes that are owed do not come, or output is not taken.
    Stall,
    /// Nothing happens at all.
    Idle,
    /// The peer did not close after a Terminate Connection Request.
    Termination,
}

impl Clock {
    pub(crate) fn new(timeouts: Timeouts, now_ns: u64) -> Self {
        Self {
            timeouts,
            opened_ns: now_ns,
            received_ns: now_ns,
            sent_ns: now_ns,
            terminated_ns: now_ns,
            left_over: 0,
        }
    }

    /// A call brought `len` bytes, old ones included, and left `left_over` of them.
    pub(crate) fn received(&mut self, len: usize, left_over: usize, now_ns: u64) {
        if len > self.left_over {
            self.received_ns = self.received_ns.max(now_ns);
        }
        self.left_over = left_over;
    }

    /// Bytes of data went straight to a command's memory.
    pub(crate) fn placed(&mut self, now_ns: u64) {
        self.received_ns = self.received_ns.max(now_ns);
    }

    /// Output was written, or began to wait.
    pub(crate) fn sent(&mut self, now_ns: u64) {
        self.sent_ns = self.sent_ns.max(now_ns);
    }

    pub(crate) fn terminated(&mut self, now_ns: u64) {
        self.terminated_ns = now_ns;
    }

    /// Whether the last call left the beginning of a PDU.
    pub(crate) fn has_left_over(&self) -> bool {
        self.left_over > 0
    }

    /// The next deadline and its time.
    pub(crate) fn next(&self, state: ConnectionState, owed: Owed) -> Option<(u64, Timeout)> {
        match state {
            ConnectionState::Handshake => {
                Some((self.opened_ns.saturating_add(self.timeouts.handshake_ns), Timeout::Handshake))
            }
            ConnectionState::Ready => self.next_when_ready(owed),
            ConnectionState::Terminating => {
                Some((self.terminated_ns.saturating_add(self.timeouts.termination_ns), Timeout::Termination))
            }
            ConnectionState::Closed => None,
        }
    }

    fn next_when_ready(&self, owed: Owed) -> Option<(u64, Timeout)> {
        let Timeouts { stall_ns, idle_ns, .. } = self.timeouts;
        let last = self.received_ns.max(self.sent_ns);
        let after = |since: u64, timeout_ns: u64, timeout| (since.saturating_add(timeout_ns), timeout);
        let input = (owed.input && stall_ns > 0).then(|| after(last, stall_ns, Timeout::Stall));
        let output = (owed.output && stall_ns > 0).then(|| after(self.sent_ns, stall_ns, Timeout::Stall));
        let is_idle = !owed.input && !owed.output && !owed.commands;
        let idle = (is_idle && idle_ns > 0).then(|| after(last, idle_ns, Timeout::Idle));
        [input, output, idle].into_iter().flatten().min_by_key(|(at, _)| *at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOTHING: Owed = Owed { input: false, output: false, commands: false };
    const TIMEOUTS: Timeouts = Timeouts { handshake_ns: 10, stall_ns: 30, idle_ns: 100, termination_ns: 5 };

    #[test]
    fn the_handshake_has_one_deadline_however_slowly_bytes_drip() {
        let mut clock = Clock::new(TIMEOUTS, 1000);
        clock.received(3, 3, 1009);
        assert_eq!(clock.next(ConnectionState::Handshake, NOTHING), Some((1010, Timeout::Handshake)));
    }

    #[test]
    fn only_new_bytes_move_the_stall_deadline() {
        let mut clock = Clock::new(TIMEOUTS, 0);
        let owed = Owed { input: true, ..NOTHING };
        clock.received(3, 3, 7);
        clock.received(3, 3, 20);
        assert_eq!(clock.next(ConnectionState::Ready, owed), Some((37, Timeout::Stall)));
        clock.received(4, 0, 21);
        assert_eq!(clock.next(ConnectionState::Ready, owed), Some((51, Timeout::Stall)));
    }

    #[test]
    fn a_slow_reader_is_measured_by_what_it_takes() {
        let mut clock = Clock::new(TIMEOUTS, 0);
        let owed = Owed { output: true, ..NOTHING };
        clock.sent(10);
        clock.received(100, 0, 35);
        assert_eq!(clock.next(ConnectionState::Ready, owed), Some((40, Timeout::Stall)));
    }

    #[test]
    fn a_queue_with_commands_in_flight_is_not_idle() {
        let clock = Clock::new(TIMEOUTS, 0);
        assert_eq!(clock.next(ConnectionState::Ready, NOTHING), Some((100, Timeout::Idle)));
        let waiting = Owed { commands: true, ..NOTHING };
        assert_eq!(clock.next(ConnectionState::Ready, waiting), None);
        let patient = Clock::new(Timeouts { stall_ns: 0, idle_ns: 0, ..TIMEOUTS }, 0);
        let all = Owed { input: true, output: true, commands: true };
        assert_eq!(patient.next(ConnectionState::Ready, all), None);
    }
}
