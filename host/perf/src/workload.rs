//! What is to be done to a device: plain data that the command line or a test
//! fills in, and the check that it makes sense. Knows no device.

use std::path::PathBuf;
use std::time::Duration;

/// A workload. [`Workload::default`] reads at random, 4 KiB, 32 deep, for 10 s.
#[derive(Clone, Debug, PartialEq)]
pub struct Workload {
    /// Of 100 reads and writes, how many are reads.
    pub read_percent: u32,
    /// Of 100 I/Os, how many are UNMAPs; they come off reads and writes alike.
    pub unmap_percent: u32,
    /// A FLUSH after so many writes; 0: none.
    pub flush_every: u64,
    /// Which block comes next.
    pub access: Access,
    /// Bytes of each I/O; a multiple of the device's block.
    pub block_bytes: u64,
    /// I/Os in flight per reactor and device.
    pub queue_depth: u32,
    /// I/Os given to the device in one call. `None`: all that are free, but one by one to a device that completes
    /// them inside the call.
    pub batch: Option<u32>,
    /// When it is over.
    pub end: End,
    /// At most so many I/Os per second and device.
    pub rate: Option<u64>,
    /// Let the device lend its memory to reads instead of copying.
    pub lend: bool,
    /// Write every block once before the load begins.
    pub fill: bool,
    /// Write a pattern, and check everything that is read; at the end read all that was written.
    pub verify: bool,
    /// Only check what a state file says, put no load on.
    pub check_only: bool,
    /// Keep what must be on the medium in this file, so that it can be checked after a crash. With more than
    /// one device, each has a file of its own: `FILE.NAME`.
    pub state_file: Option<PathBuf>,
    /// Which I/Os are timed.
    pub timing: Timing,
    /// Start of the random sequence: the same seed gives the same sequence of requests.
    pub seed: u64,
}

/// Which block comes next.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Access {
    /// One after the other, and again from the first.
    Sequential,
    /// Each with the same chance.
    Random,
    /// The n-th most popular block with a chance proportional to n^-theta; popular blocks are spread out.
    Zipf {
        /// Above 0; 1.2 makes few blocks very popular.
        theta: f64,
    },
}

/// When a workload is over, per device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// After a time.
    After(Duration),
    /// After so many I/Os.
    Ios(u64),
    /// After so many bytes.
    Bytes(u64),
    /// When it is stopped.
    Never,
}

/// Which I/Os are timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Timing {
    /// None.
    Off,
    /// One in 64.
    Sampled,
    /// Each; for small I/Os of a device that completes them inside `submit`, where reading the time would take as
    /// long as the I/O, one in 64.
    Auto,
    /// Each.
    All,
}

/// Why a workload is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WorkloadError {
    /// A share is above 100.
    #[error("{what} {value}: must be at most 100")]
    Percent {
        /// Which share.
        what: &'static str,
        /// Its value.
        value: u32,
    },
    /// Depth out of range.
    #[error("queue depth {0}: must be 1 to {MAX_QUEUE_DEPTH}")]
    QueueDepth(u32),
    /// Size out of range.
    #[error("block size {0}: must be 512 to {MAX_BLOCK_BYTES} bytes")]
    BlockBytes(u64),
    /// Exponent out of range.
    #[error("zipf exponent {0}: must be above 0 and at most 10")]
    Theta(String),
    /// A state file without verification.
    #[error("a state file is kept only while verifying")]
    StateWithoutVerify,
    /// A check without a state.
    #[error("checking only needs a state file")]
    CheckWithoutState,
    /// Number out of range.
    #[error("batch {0}: must be 1 to {MAX_BATCH}")]
    Batch(u32),
    /// A rate of nothing.
    #[error("rate 0: must be at least 1 I/O per second")]
    Rate,
    /// The end is at the beginning.
    #[error("the workload ends before it begins")]
    Empty,
}

impl Default for Workload {
    fn default() -> Self {
        Self {
            read_percent: 100,
            unmap_percent: 0,
            flush_every: 0,
            access: Access::Random,
            block_bytes: 4096,
            queue_depth: 32,
            batch: None,
            end: End::After(Duration::from_secs(10)),
            rate: None,
            lend: false,
            fill: false,
            verify: false,
            check_only: false,
            state_file: None,
            timing: Timing::Auto,
            seed: 1,
        }
    }
}

impl Workload {
    /// Refuses what makes no sense on any device.
    ///
    /// # Errors
    /// The first thing wrong with it.
    pub fn check(&self) -> Result<(), WorkloadError> {
        for (what, value) in [("share of reads", self.read_percent), ("share of UNMAPs", self.unmap_percent)]
        {
            if value > 100 {
                return Err(WorkloadError::Percent { what, value });
            }
        }
        if !(1..=MAX_QUEUE_DEPTH).contains(&self.queue_depth) {
            return Err(WorkloadError::QueueDepth(self.queue_depth));
        }
        if !(512..=MAX_BLOCK_BYTES).contains(&self.block_bytes) {
            return Err(WorkloadError::BlockBytes(self.block_bytes));
        }
        if let Access::Zipf { theta } = self.access
            && !(theta > 0.0 && theta <= 10.0)
        {
            return Err(WorkloadError::Theta(theta.to_string()));
        }
        if self.state_file.is_some() && !self.verify {
            return Err(WorkloadError::StateWithoutVerify);
        }
        if self.check_only && self.state_file.is_none() {
            return Err(WorkloadError::CheckWithoutState);
        }
        if let Some(batch) = self.batch
            && !(1..=MAX_BATCH).contains(&batch)
        {
            return Err(WorkloadError::Batch(batch));
        }
        if self.rate == Some(0) {
            return Err(WorkloadError::Rate);
        }
        match self.end {
            End::After(Duration::ZERO) | End::Ios(0) | End::Bytes(0) => Err(WorkloadError::Empty),
            End::After(_) | End::Ios(_) | End::Bytes(_) | End::Never => Ok(()),
        }
    }

    /// Whether it changes the medium.
    #[must_use]
    pub fn writes(&self) -> bool {
        !self.check_only && (self.read_percent < 100 || self.unmap_percent > 0 || self.fill)
    }
}

/// Most I/Os in flight per reactor and device.
pub const MAX_QUEUE_DEPTH: u32 = 1 << 16;
/// Most I/Os given to a device in one call.
pub const MAX_BATCH: u32 = 64;
/// Largest I/O.
pub const MAX_BLOCK_BYTES: u64 = 64 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(change: impl FnOnce(&mut Workload), expected: Result<(), &str>) {
        let mut workload = Workload::default();
        change(&mut workload);
        assert_eq!(workload.check().map_err(|error| error.to_string()), expected.map_err(str::to_owned));
    }

    #[test]
    fn the_default_is_a_workload_that_changes_nothing() {
        check(|_| {}, Ok(()));
        assert!(!Workload::default().writes());
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_the_value() {
        check(|w| w.read_percent = 101, Err("share of reads 101: must be at most 100"));
        check(|w| w.queue_depth = 0, Err("queue depth 0: must be 1 to 65536"));
        check(|w| w.batch = Some(65), Err("batch 65: must be 1 to 64"));
        check(|w| w.block_bytes = 0, Err("block size 0: must be 512 to 67108864 bytes"));
        let zipf = |theta| move |w: &mut Workload| w.access = Access::Zipf { theta };
        check(zipf(0.0), Err("zipf exponent 0: must be above 0 and at most 10"));
        check(zipf(f64::NAN), Err("zipf exponent NaN: must be above 0 and at most 10"));
        check(|w| w.check_only = true, Err("checking only needs a state file"));
        check(|w| w.rate = Some(0), Err("rate 0: must be at least 1 I/O per second"));
        check(|w| w.end = End::Ios(0), Err("the workload ends before it begins"));
    }
}
