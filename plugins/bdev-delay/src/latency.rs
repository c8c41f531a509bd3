//! The latencies of a device, read by every reactor and changed at run time.

use std::sync::atomic::{AtomicU64, Ordering};

use schemars::JsonSchema;
use serde::Deserialize;
use tenon_sdk::BdevOp;

/// I/Os with a latency of their own.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Class {
    /// 99 of 100 reads.
    AvgRead,
    /// One read in 100.
    P99Read,
    /// 99 of 100 writes.
    AvgWrite,
    /// One write in 100.
    P99Write,
}

/// Of one device; any thread.
#[derive(Debug, Default)]
pub struct Latencies {
    ns: [AtomicU64; Class::ALL.len()],
}

impl Class {
    /// Every class, in the order of its number.
    pub const ALL: [Class; 4] = [Class::AvgRead, Class::P99Read, Class::AvgWrite, Class::P99Write];

    /// The class of an I/O; `None`: it is not delayed.
    #[inline]
    pub fn of(op: BdevOp, is_p99: bool) -> Option<Class> {
        let is_write = match op {
            BdevOp::Read | BdevOp::Compare | BdevOp::Verify => false,
            BdevOp::Write
            | BdevOp::WriteZeroes
            | BdevOp::CompareAndWrite
            | BdevOp::Copy
            | BdevOp::WriteUncorrectable
            | BdevOp::ZoneAppend => true,
            BdevOp::Flush
            | BdevOp::Unmap
            | BdevOp::Reset
            | BdevOp::NvmeAdmin
            | BdevOp::NvmeIo
            | BdevOp::GetZoneInfo
            | BdevOp::ZoneManagement
            | BdevOp::SeekHole
            | BdevOp::SeekData => return None,
        };
        Some(match (is_write, is_p99) {
            (false, false) => Class::AvgRead,
            (false, true) => Class::P99Read,
            (true, false) => Class::AvgWrite,
            (true, true) => Class::P99Write,
        })
    }
}

impl Latencies {
    /// The latency of a class.
    #[inline]
    pub fn get_ns(&self, class: Class) -> u64 {
        self.ns[class as usize].load(Ordering::Relaxed)
    }

    /// Sets it, also for I/O that waits already.
    pub fn set_ns(&self, class: Class, ns: u64) {
        self.ns[class as usize].store(ns, Ordering::Relaxed);
    }
}
