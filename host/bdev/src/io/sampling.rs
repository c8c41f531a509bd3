//! Queue depth over time: the control reactor asks all reactors at a period how much I/O a device has.
//!
//! Off by default. A sample that has not come back when the next is due makes that one
//! wait. The poller ends itself when the device is gone.
// UNSAFETY: visits read the channels of the reactor they run on.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;

use log::warn;
use tenon_reactor::{Poll, PollerId, PollerKind, RegisterError, current};

use super::broadcast::{assert_control, each_channel, later};
use super::gate::Gate;
use super::statistics::{QueueDepthStat, ResetMode};

/// State of the sampling of one device.
#[derive(Debug, Default)]
pub(super) struct Sampling {
    poller: Option<PollerId>,
    is_asking: bool,
    stat: QueueDepthStat,
}

impl Sampling {
    /// The figures so far.
    pub(super) fn read(&mut self, reset: ResetMode) -> QueueDepthStat {
        let stat = self.stat;
        if reset == ResetMode::All {
            self.stat = QueueDepthStat { period_us: stat.period_us, ..QueueDepthStat::default() };
        }
        stat
    }

    fn take_sample(&mut self, depth: u64) {
        self.is_asking = false;
        self.stat.queue_depth = depth;
        if depth > 0 {
            let period_us = self.stat.period_us;
            self.stat.io_time_us = self.stat.io_time_us.saturating_add(period_us);
            let weighted = period_us.saturating_mul(depth);
            self.stat.weighted_io_time_us = self.stat.weighted_io_time_us.saturating_add(weighted);
        }
    }
}

impl Gate {
    /// Samples the queue depth every `period_us`, from zero; 0 stops. `done` runs on the control reactor.
    ///
    /// # Panics
    /// Anywhere but on the control reactor.
    pub fn set_queue_depth_sampling(self: &Arc<Self>, period_us: u64, done: impl FnOnce() + 'static) {
        assert_control();
        let before = {
            let mut sampling = self.sampling.lock();
            sampling.stat = QueueDepthStat { period_us, ..QueueDepthStat::default() };
            sampling.poller.take()
        };
        if let Some(poller) = before {
            current().unregister_poller(poller);
        }
        if period_us > 0 {
            match start(self, period_us) {
                Ok(poller) => self.sampling.lock().poller = Some(poller),
                Err(refused) => {
                    warn!("queue depth is not sampled: {refused} bdev={}", self.name());
                    self.sampling.lock().stat.period_us = 0;
                }
            }
        }
        later(done);
    }
}

fn start(gate: &Arc<Gate>, period_us: u64) -> Result<PollerId, RegisterError> {
    let weak = Arc::downgrade(gate);
    let me = Rc::new(Cell::new(None));
    let inside = Rc::clone(&me);
    let poll = move || match weak.upgrade() {
        Some(gate) => ask(&gate),
        None => {
            inside.get().map(|me| current().unregister_poller(me));
            Poll::Idle
        }
    };
    let poller = current().register_poller("queue_depth", period_us, PollerKind::Wakeable, poll)?;
    me.set(Some(poller));
    Ok(poller)
}

fn ask(gate: &Arc<Gate>) -> Poll {
    if std::mem::replace(&mut gate.sampling.lock().is_asking, true) {
        return Poll::Idle;
    }
    let answered = Arc::clone(gate);
    each_channel(
        gate,
        // SAFETY: `each_channel` calls with the live channel of the reactor it runs on.
        |m| unsafe { u64::from((*m).io.outstanding) + u64::from((*m).queued()) },
        move |answers| {
            let depth = answers.iter().map(|(_, depth)| depth).sum();
            answered.sampling.lock().take_sample(depth);
        },
    );
    Poll::Busy
}
