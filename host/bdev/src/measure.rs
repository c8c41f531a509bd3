//! Rate limits, statistics and histograms of a device, by its name.
//!
//! A thin way through to the gate, which does the work; what belongs to the
//! control plane is only the name, to tell the module of a reset, and to ask it
//! for what it counts itself.
// UNSAFETY: calls `stats_json` and `reset_stats` of devices.

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tenon_abi::{BdevHandle, Op};

use crate::callbacks::may_be_called;
use crate::core::Core;
use crate::error::OpError;
use crate::io::{Gate, HistogramData, IoStat, QosLimits, ResetMode};
use crate::registry::{Bdev, Callbacks};

impl Core {
    /// The gate of the device of that name, alias or UUID.
    pub fn gate(&self, name: &str) -> Result<Arc<Gate>, OpError> {
        let registry = self.inner.registry.borrow();
        let gate = registry.find(name).map(|record| record.gate.clone());
        drop(registry);
        gate.ok_or_else(|| self.not_there(name))
    }

    /// Limits the rate of I/O; `done` runs when every reactor obeys.
    pub fn set_qos(&self, name: &str, limits: QosLimits, done: impl FnOnce(Result<(), OpError>) + 'static) {
        match self.gate(name) {
            Ok(gate) => gate.set_qos(limits, self.reply_later(done)),
            Err(error) => self.later(move |_| done(Err(error))),
        }
    }

    /// How long the reset of a device, now there or later, waits for its outstanding I/O.
    pub fn set_reset_drain_timeout(&self, timeout: Duration) {
        self.inner.reset_drain_timeout.set(timeout);
        for record in self.inner.registry.borrow().iter() {
            record.gate.set_reset_drain_timeout(timeout);
        }
    }

    /// See [`Core::set_reset_drain_timeout`].
    pub fn reset_drain_timeout(&self) -> Duration {
        self.inner.reset_drain_timeout.get()
    }

    /// Statistics of a device, reset afterwards as `reset` says.
    pub fn iostat(
        &self,
        name: &str,
        per_channel: bool,
        reset: ResetMode,
        done: impl FnOnce(Result<IoStat, OpError>) + 'static,
    ) {
        match self.gate(name) {
            Ok(gate) => {
                let core = self.downgrade();
                gate.iostat(per_channel, reset, move |stat| {
                    if let Some(core) = core.upgrade() {
                        core.later(move |_| done(Ok(stat)));
                    }
                });
            }
            Err(error) => self.later(move |_| done(Err(error))),
        }
    }

    /// What the device's module itself counts of it, if it does.
    pub fn driver_statistics(&self, name: &str) -> Option<Value> {
        let callbacks = self.inner.registry.borrow().find(name).and_then(askable)?;
        // SAFETY: the device is registered and not being destructed.
        unsafe { callbacks.stats_json(name) }
    }

    /// Resets the statistics of a device, or of all.
    pub fn reset_iostat(
        &self,
        name: Option<&str>,
        mode: ResetMode,
        done: impl FnOnce(Result<(), OpError>) + 'static,
    ) {
        let devices = match name {
            Some(name) => match self.find_any(name) {
                Some(bdev) => vec![bdev],
                None => {
                    let error = self.not_there(name);
                    return self.later(move |_| done(Err(error)));
                }
            },
            None => self.inner.registry.borrow().iter().map(|record| record.handle).collect(),
        };
        self.reset_next(devices, mode, Box::new(done));
    }

    /// One device after the other, so that thousands of them do not fill the reactors' queues.
    fn reset_next(&self, mut devices: Vec<BdevHandle>, mode: ResetMode, done: ResetDone) {
        let Some(bdev) = devices.pop() else { return self.later(move |_| done(Ok(()))) };
        let found =
            self.inner.registry.borrow().get(bdev).map(|record| (record.gate.clone(), askable(record)));
        let Some((gate, callbacks)) = found else {
            return self.later(move |core| core.reset_next(devices, mode, done));
        };
        if let Some(callbacks) = callbacks {
            // SAFETY: the device is registered and not being destructed.
            unsafe { callbacks.reset_stats() };
        }
        let core = self.downgrade();
        gate.reset_iostat(mode, move || {
            if let Some(core) = core.upgrade() {
                core.later(move |core| core.reset_next(devices, mode, done));
            }
        });
    }

    /// Starts or ends the recording of latencies, of one operation or of all.
    pub fn enable_histogram(
        &self,
        name: &str,
        enable: bool,
        op: Option<Op>,
        done: impl FnOnce(Result<(), OpError>) + 'static,
    ) {
        match self.gate(name) {
            Ok(gate) => gate.enable_histogram(enable, op, self.reply_later(done)),
            Err(error) => self.later(move |_| done(Err(error))),
        }
    }

    /// The latencies recorded; `None` if none are.
    pub fn histogram(
        &self,
        name: &str,
        op: Option<Op>,
        done: impl FnOnce(Result<Option<HistogramData>, OpError>) + 'static,
    ) {
        match self.gate(name) {
            Ok(gate) => {
                let core = self.downgrade();
                gate.histogram(op, move |data| {
                    if let Some(core) = core.upgrade() {
                        core.later(move |_| done(Ok(data)));
                    }
                });
            }
            Err(error) => self.later(move |_| done(Err(error))),
        }
    }

    /// Samples the queue depth every `period_us`; 0 ends it.
    pub fn set_queue_depth_sampling(
        &self,
        name: &str,
        period_us: u64,
        done: impl FnOnce(Result<(), OpError>) + 'static,
    ) {
        match self.gate(name) {
            Ok(gate) => gate.set_queue_depth_sampling(period_us, self.reply_later(done)),
            Err(error) => self.later(move |_| done(Err(error))),
        }
    }

    fn reply_later<F: FnOnce(Result<(), OpError>) + 'static>(&self, done: F) -> impl FnOnce() + use<F> {
        let core = self.downgrade();
        move || {
            if let Some(core) = core.upgrade() {
                core.later(move |_| done(Ok(())));
            }
        }
    }
}

/// What to call a device's module by, unless the device is being destructed or the module is gone.
fn askable(record: &Bdev) -> Option<Callbacks> {
    let is_there = record.state().may_be_opened() && may_be_called(record.module);
    is_there.then_some(record.callbacks)
}

/// Called when all statistics are reset.
type ResetDone = Box<dyn FnOnce(Result<(), OpError>)>;
