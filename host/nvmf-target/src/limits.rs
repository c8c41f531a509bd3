//! Limits of what a host may do per second at a subsystem, over all its
//! connections, and limits of a namespace, which are its device's.
//!
//! A host's allowance grows with time and is shared by its queues on every
//! reactor through a few atomic numbers. A command that finds some left goes
//! on and is charged in full, so that one larger than the allowance is late for
//! those behind it but never stuck. Hosts without limits cost one test of a flag.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use tenon_bdev::QosLimits;

use crate::error::TargetError;
use crate::subsystem::Subsystem;
use crate::target::Target;

/// The allowance of a host at a subsystem.
#[derive(Debug)]
pub(crate) struct HostLimiter {
    pub limits: QosLimits,
    /// Number of the slice of time that was credited last.
    slice: AtomicU64,
    commands: Allowance,
    bytes: Allowance,
    read_bytes: Allowance,
    write_bytes: Allowance,
}

/// What is left of one limit, in thousandths.
#[derive(Debug)]
struct Allowance {
    /// Thousandths per slice of a millisecond: the limit per second. 0: no limit.
    per_slice: i64,
    left: AtomicI64,
}

impl Allowance {
    fn new(per_second: u64) -> Self {
        let per_slice = i64::try_from(per_second).unwrap_or(i64::MAX).min(MAX_PER_SECOND);
        Self { per_slice, left: AtomicI64::new(per_slice) }
    }

    fn credit(&self, slices: i64) {
        if self.per_slice > 0 {
            let most = self.per_slice * BURST_SLICES;
            let more = self.per_slice.saturating_mul(slices);
            let _ = self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
                Some(left.saturating_add(more).min(most))
            });
        }
    }

    /// Slices until there is something left; 0: there is.
    fn slices_to_wait(&self) -> u64 {
        let left = self.left.load(Ordering::Relaxed);
        if self.per_slice == 0 || left > 0 {
            return 0;
        }
        (left.unsigned_abs() / self.per_slice.unsigned_abs()) + 1
    }

    fn charge(&self, count: u64) {
        if self.per_slice > 0 {
            let thousandths = i64::try_from(count).unwrap_or(i64::MAX).saturating_mul(1000);
            self.left.fetch_sub(thousandths, Ordering::Relaxed);
        }
    }
}

impl HostLimiter {
    fn new(limits: QosLimits, now_ns: u64) -> Self {
        let bytes = |megabytes: u64| Allowance::new(megabytes.saturating_mul(1 << 20));
        Self {
            limits,
            slice: AtomicU64::new(now_ns / SLICE_NS),
            commands: Allowance::new(limits.rw_ios_per_sec),
            bytes: bytes(limits.rw_mbytes_per_sec),
            read_bytes: bytes(limits.r_mbytes_per_sec),
            write_bytes: bytes(limits.w_mbytes_per_sec),
        }
    }

    /// Charges a command, or tells how long it has to wait, in nanoseconds.
    pub(crate) fn take(&self, now_ns: u64, is_write: bool, bytes: u64) -> Result<(), u64> {
        let slice = now_ns / SLICE_NS;
        let before = self.slice.load(Ordering::Relaxed);
        let is_first = slice > before
            && self.slice.compare_exchange(before, slice, Ordering::Relaxed, Ordering::Relaxed).is_ok();
        let by_direction = if is_write { &self.write_bytes } else { &self.read_bytes };
        if is_first {
            let slices = i64::try_from(slice - before).unwrap_or(i64::MAX);
            [&self.commands, &self.bytes, &self.read_bytes, &self.write_bytes]
                .iter()
                .for_each(|allowance| allowance.credit(slices));
        }
        let wait = [&self.commands, &self.bytes, by_direction].map(Allowance::slices_to_wait);
        let slices = wait.into_iter().max().unwrap_or(0);
        if slices > 0 {
            return Err(slices.min(MAX_WAIT_SLICES) * SLICE_NS);
        }
        self.commands.charge(1);
        self.bytes.charge(bytes);
        by_direction.charge(bytes);
        Ok(())
    }
}

impl Target {
    /// Limits what a host in the list of a subsystem does there from now on; without a limit in it, ends that.
    pub fn set_host_limits(&self, nqn: &str, host: &str, limits: QosLimits) -> Result<(), TargetError> {
        let subsystem = self.subsystem(nqn)?;
        if !subsystem.hosts.borrow().contains_key(host) {
            let object = format!("subsystem {nqn}");
            return Err(TargetError::NoHost { host: host.to_owned(), object });
        }
        let limiter =
            limits.is_limited().then(|| Arc::new(HostLimiter::new(limits, tenon_reactor::now_ns())));
        match limiter {
            Some(limiter) => subsystem.limiters.borrow_mut().insert(host.to_owned(), limiter),
            None => subsystem.limiters.borrow_mut().remove(host),
        };
        log::info!("limits of host set nqn={nqn} host={host} limits={limits:?}");
        self.publish_limits(&subsystem, host);
        Ok(())
    }

    /// Limits what all hosts do with a namespace: the limits of its device.
    pub fn set_namespace_limits(
        &self,
        nqn: &str,
        nsid: u32,
        limits: QosLimits,
        done: impl FnOnce(Result<(), TargetError>) + 'static,
    ) {
        let found = self.subsystem(nqn).and_then(|subsystem| {
            let namespaces = subsystem.namespaces.borrow();
            let found = namespaces.get(&nsid).map(|namespace| namespace.bdev_name.clone());
            found.ok_or(TargetError::NoNamespace { nqn: nqn.to_owned(), nsid })
        });
        let object = format!("namespace {nsid} of {nqn}");
        match found {
            Ok(name) => self.inner.core.set_qos(&name, limits, move |result| {
                done(result.map_err(|source| TargetError::Refused { object, source }));
            }),
            Err(error) => self.later(move || done(Err(error))),
        }
    }

    pub(crate) fn publish_limits(&self, subsystem: &Subsystem, host: &str) {
        let limiter = subsystem.limiters.borrow().get(host).cloned();
        for controller in subsystem.controllers.borrow().values() {
            if *controller.association.hostnqn != *host {
                continue;
            }
            for key in controller.io_queues() {
                let limiter = limiter.clone();
                self.tell_queue(key, move |queue| queue.set_limiter(limiter));
            }
        }
    }
}

const SLICE_NS: u64 = 1_000_000;
/// What is not used is kept for so long.
const BURST_SLICES: i64 = 10;
/// A command looks again after this time, whatever is owed.
const MAX_WAIT_SLICES: u64 = 1000;
/// Keeps the arithmetic within its numbers: a thousand terabytes per second.
const MAX_PER_SECOND: i64 = 1 << 50;

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    /// Commands of `bytes` that pass within ten seconds, if one is tried as soon as it may pass.
    fn passed(limits: QosLimits, is_write: bool, bytes: u64) -> u64 {
        let (limiter, mut now, mut count) = (HostLimiter::new(limits, 0), 0, 0);
        while now < 10 * SECOND {
            match limiter.take(now, is_write, bytes) {
                Ok(()) => count += 1,
                Err(wait) => now += wait,
            }
        }
        count
    }

    #[track_caller]
    fn near(found: u64, expected: u64) {
        assert!(found.abs_diff(expected) <= expected / 20 + 1, "{found} is not near {expected}");
    }

    #[test]
    fn rates_are_kept_for_small_and_large_commands() {
        let limits = QosLimits { rw_ios_per_sec: 500, ..QosLimits::default() };
        near(passed(limits, false, 4096), 5000);
        let limits = QosLimits { rw_ios_per_sec: 100_000, ..QosLimits::default() };
        near(passed(limits, true, 4096), 1_000_000);
        let limits = QosLimits { w_mbytes_per_sec: 4, ..QosLimits::default() };
        near(passed(limits, true, 1 << 20), 40);
        near(passed(limits, true, 4096), 10_240);
        let limits = QosLimits { rw_mbytes_per_sec: 1, rw_ios_per_sec: 1 << 40, ..QosLimits::default() };
        near(passed(limits, false, 1 << 18), 40);
    }

    #[test]
    fn reads_do_not_count_as_writes() {
        let limits = QosLimits { w_mbytes_per_sec: 1, ..QosLimits::default() };
        let limiter = HostLimiter::new(limits, 0);
        assert!(limiter.take(0, true, 1 << 20).is_ok());
        assert!(limiter.take(0, true, 512).is_err());
        assert!((0..1000).all(|_| limiter.take(0, false, 1 << 20).is_ok()));
    }

    #[test]
    fn time_without_commands_gives_no_large_burst() {
        let limits = QosLimits { rw_ios_per_sec: 1000, ..QosLimits::default() };
        let limiter = HostLimiter::new(limits, 0);
        let now = 3600 * SECOND;
        let burst = (0..1000).take_while(|_| limiter.take(now, false, 512).is_ok()).count();
        assert_eq!(burst, BURST_SLICES as usize);
    }
}
