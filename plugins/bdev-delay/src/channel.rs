//! The data path: an I/O whose base has completed waits in the queue of its
//! class until its latency has passed, then completes as its base did.
//!
//! All I/Os of a class wait equally long, so each queue is in the order of its
//! deadlines, also after the latency has changed. An I/O with latency 0 waits
//! for the next turn. Waiting costs no allocation: the queues link the I/Os.

use std::cell::{Cell, OnceCell};
use std::rc::{Rc, Weak};
use std::sync::Arc;

use tenon_sdk::{
    Alarm, BaseChannel, BdevOp, Channel, Error, Forwarded, Host, Io, IoQueue, IoStatus, LetGo, Poll, Poller,
    Reactor, Victim,
};

use crate::latency::{Class, Latencies};

/// A device on one reactor.
pub struct DelayChannel {
    host: Host,
    name: Arc<str>,
    base: BaseChannel,
    latencies: Arc<Latencies>,
    let_go: Arc<LetGo>,
    /// Of its orders, those obeyed.
    orders: Cell<u64>,
    queues: [IoQueue<Self>; Class::ALL.len()],
    random: Cell<u64>,
    alarm: Alarm,
    poller: OnceCell<Poller>,
}

/// State of one I/O.
pub struct Delayed {
    /// When the base completed; not looked at while there is no latency.
    since_ns: u64,
    status: IoStatus,
    class: Class,
}

impl Default for Delayed {
    fn default() -> Self {
        Delayed { since_ns: 0, status: IoStatus::INTERNAL, class: Class::AvgRead }
    }
}

impl Channel for DelayChannel {
    type PerIo = Delayed;

    fn base(&self) -> Option<&BaseChannel> {
        Some(&self.base)
    }

    #[inline]
    fn submit(&self, mut io: Io<Self>) {
        let op = io.op();
        match Class::of(op, self.is_one_in_100()) {
            Some(class) => {
                io.context_mut().class = class;
                io.forward(&self.base, |channel, io| channel.base_done(io));
            }
            None => {
                if op == BdevOp::Reset {
                    // The host has waited for every I/O, or for as long as it wanted to.
                    self.let_go.order(self.host);
                }
                io.pass(&self.base);
            }
        }
    }

    /// The base has completed a waiting I/O: it completes with that result, now.
    fn abort(&self, victim: Victim) -> bool {
        match self.queues.iter().find_map(|queue| queue.remove(victim)) {
            Some(io) => {
                finish(io);
                true
            }
            None => victim.abort_child::<Self>(&self.base),
        }
    }
}

impl DelayChannel {
    /// Opens the device on the calling reactor.
    pub fn open(
        base: BaseChannel,
        name: &str,
        reactor: Reactor,
        latencies: &Arc<Latencies>,
        let_go: &Arc<LetGo>,
    ) -> Result<Rc<Self>, Error> {
        let host = base.host();
        let channel = Rc::new_cyclic(|this: &Weak<Self>| DelayChannel {
            host,
            name: name.into(),
            base,
            latencies: latencies.clone(),
            let_go: let_go.clone(),
            orders: Cell::new(let_go.count()),
            queues: [const { IoQueue::new() }; Class::ALL.len()],
            random: Cell::new(seed_of(name, reactor)),
            alarm: host.alarm(on(this, Self::alarm_rang)),
            poller: OnceCell::new(),
        });
        let this = Rc::downgrade(&channel);
        let run = {
            let this = this.clone();
            move || this.upgrade().map_or(Poll::Idle, |channel| channel.poll())
        };
        let may_sleep = move || this.upgrade().is_none_or(|channel| channel.may_sleep());
        let poller = host.wakeable_poller("bdev_delay", 0, run, may_sleep)?;
        // A fresh cell takes a value.
        let _ = channel.poller.set(poller);
        Ok(channel)
    }

    #[inline]
    fn base_done(&self, io: Forwarded<Self>) {
        let (mut io, status) = io.into_result();
        let state = io.context_mut();
        let class = state.class;
        state.status = status;
        if self.latencies.get_ns(class) > 0 {
            state.since_ns = self.host.now_ns();
        }
        self.queues[class as usize].push_back(io);
    }

    /// Completes what has waited long enough.
    #[inline]
    fn poll(&self) -> Poll {
        let orders = self.let_go.count();
        let is_let_go = self.orders.replace(orders) != orders;
        if self.queues.iter().all(IoQueue::is_empty) {
            return Poll::Idle;
        }
        let mut now_ns = None;
        let mut poll = Poll::Idle;
        for (class, queue) in Class::ALL.into_iter().zip(&self.queues) {
            let latency_ns = if is_let_go { 0 } else { self.latencies.get_ns(class) };
            // What a completion submits waits for the next turn.
            for _ in 0..queue.len() {
                let is_due = |io: &Delayed| {
                    latency_ns == 0
                        || io.since_ns.saturating_add(latency_ns)
                            <= *now_ns.get_or_insert_with(|| self.host.now_ns())
                };
                let Some(io) = queue.pop_front_if(is_due) else { break };
                finish(io);
                poll = Poll::Busy;
            }
        }
        poll
    }

    /// Sets the alarm for the first deadline.
    fn may_sleep(&self) -> bool {
        if self.orders.get() != self.let_go.count() {
            self.poll();
        }
        let Some(deadline_ns) = self.next_deadline_ns() else { return true };
        let left_ns = deadline_ns.saturating_sub(self.host.now_ns());
        // A sleep may last longer than it should, so the last bit is spent awake.
        left_ns > AWAKE_NS && self.alarm.set_ns((left_ns - AWAKE_NS).min(LONG_WAIT_NS)).is_ok()
    }

    fn next_deadline_ns(&self) -> Option<u64> {
        let of_class = |(class, queue): (Class, &IoQueue<Self>)| {
            queue.front(|io| io.since_ns.saturating_add(self.latencies.get_ns(class)))
        };
        Class::ALL.into_iter().zip(&self.queues).filter_map(of_class).min()
    }

    /// Ringing wakes the reactor, and then the poller works. After a long wait: a device that is to be removed waits
    /// for its I/O, which must not take an hour.
    fn alarm_rang(&self) {
        let far_ns = self.host.now_ns().saturating_add(LONG_WAIT_NS);
        if self.next_deadline_ns().is_some_and(|deadline_ns| deadline_ns > far_ns) {
            self.let_go.order_if_going(self.host, &self.name);
        }
    }

    /// Xorshift: which I/Os are slow need not be unpredictable, only without a pattern.
    #[inline]
    fn is_one_in_100(&self) -> bool {
        let mut x = self.random.get();
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        self.random.set(x);
        (x >> 32) as u32 <= u32::MAX / 100
    }
}

fn finish(io: Io<DelayChannel>) {
    let status = io.context().status;
    io.complete(status);
}

/// Calls a method of the channel as long as there is one.
fn on(channel: &Weak<DelayChannel>, call: fn(&DelayChannel)) -> impl Fn() + use<> {
    let channel = channel.clone();
    move || {
        if let Some(channel) = channel.upgrade() {
            call(&channel);
        }
    }
}

/// Never 0, and the same in every run.
fn seed_of(name: &str, reactor: Reactor) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64 ^ u64::from(reactor.index().map_or(0, |index| index + 1));
    for byte in name.bytes() {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
    }
    hash | 1
}

/// How long before a deadline the reactor is awake.
const AWAKE_NS: u64 = 60_000;
/// Longest sleep, after which is asked whether the device is to go.
const LONG_WAIT_NS: u64 = 250_000_000;
