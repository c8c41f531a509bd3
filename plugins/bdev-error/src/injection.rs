//! What is wrong with a device now: one slot per operation, changed by the
//! control thread, asked by every reactor for every I/O. While nothing is
//! injected, asking costs one load.

use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};

use tenon_sdk::BdevOp;

use crate::config::{ErrorType, Injection, IoType};

/// Of one device.
pub struct Injections {
    /// One bit per operation whose slot may hit.
    armed: AtomicU64,
    slots: [Slot; BdevOp::ALL.len()],
    injected: [AtomicU64; KINDS.len()],
}

#[derive(Default)]
struct Slot {
    kind: AtomicU8,
    /// I/Os it will still hit; [`WITHOUT_LIMIT`] is never counted down.
    left: AtomicU32,
    queue_depth: AtomicU32,
    /// Of 2^32 I/Os, those that are hit, less one.
    chance: AtomicU32,
    corrupt_offset: AtomicU64,
    corrupt_value: AtomicU8,
}

/// What happens to one I/O.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fate {
    /// It fails.
    Failure,
    /// It hangs.
    Pending,
    /// One byte of its payload is changed.
    Corrupt(Corruption),
    /// It is to be tried again.
    Nomem,
}

/// The change of a byte.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Corruption {
    /// Which byte of the payload.
    pub offset: u64,
    /// Its bits that are inverted.
    pub value: u8,
}

impl Default for Injections {
    fn default() -> Self {
        Injections {
            armed: AtomicU64::new(0),
            slots: std::array::from_fn(|_| Slot::default()),
            injected: std::array::from_fn(|_| AtomicU64::new(0)),
        }
    }
}

impl Injections {
    /// Injects, instead of what was injected into the same operations. Control thread.
    pub fn set(&self, injection: &Injection) {
        if injection.io_type == IoType::Clear {
            self.clear();
        }
        for op in injection.ops() {
            self.slots[*op as usize].set(injection);
            match injection.num {
                0 => self.armed.fetch_and(!bit(*op), Ordering::Release),
                _ => self.armed.fetch_or(bit(*op), Ordering::Release),
            };
        }
    }

    /// Ends every injection. Control thread.
    pub fn clear(&self) {
        self.armed.store(0, Ordering::Release);
        self.slots.iter().for_each(|slot| slot.left.store(0, Ordering::Release));
    }

    /// What is injected now, such that [`Injections::set`] makes the same again.
    pub fn active(&self) -> Vec<Injection> {
        let slots = BdevOp::ALL.into_iter().zip(&self.slots);
        slots.filter_map(|(op, slot)| slot.active(op)).collect()
    }

    /// I/Os hit so far, by kind.
    pub fn injected(&self) -> impl Iterator<Item = (ErrorType, u64)> {
        KINDS.into_iter().zip(self.injected.iter().map(|count| count.load(Ordering::Relaxed)))
    }

    /// Starts the counts of [`Injections::injected`] anew.
    pub fn reset_counts(&self) {
        self.injected.iter().for_each(|count| count.store(0, Ordering::Relaxed));
    }

    /// Decides about one I/O with `payload_len` bytes while `in_flight` others are in flight; `random` is asked if
    /// chance has a part in it. Any reactor.
    #[inline]
    pub fn fate_of(
        &self,
        op: BdevOp,
        in_flight: u32,
        payload_len: impl FnOnce() -> u64,
        random: impl FnOnce() -> u32,
    ) -> Option<Fate> {
        if self.armed.load(Ordering::Acquire) & bit(op) == 0 {
            return None;
        }
        let fate = self.slots[op as usize].hit(in_flight, payload_len, random)?;
        self.injected[fate.kind() as usize].fetch_add(1, Ordering::Relaxed);
        Some(fate)
    }
}

impl Slot {
    fn set(&self, injection: &Injection) {
        // Nothing is hit while the slot is half changed.
        self.left.store(0, Ordering::SeqCst);
        self.kind.store(injection.error_type as u8, Ordering::Relaxed);
        self.queue_depth.store(injection.queue_depth, Ordering::Relaxed);
        self.chance.store(chance_of(injection.probability), Ordering::Relaxed);
        self.corrupt_offset.store(injection.corrupt_offset, Ordering::Relaxed);
        self.corrupt_value.store(injection.corrupt_value, Ordering::Relaxed);
        self.left.store(injection.num, Ordering::Release);
    }

    fn active(&self, op: BdevOp) -> Option<Injection> {
        let num = self.left.load(Ordering::Acquire);
        Some(Injection {
            io_type: io_type_of(op).filter(|_| num > 0)?,
            error_type: KINDS[usize::from(self.kind.load(Ordering::Relaxed))],
            num,
            queue_depth: self.queue_depth.load(Ordering::Relaxed),
            probability: percent_of(self.chance.load(Ordering::Relaxed)),
            corrupt_offset: self.corrupt_offset.load(Ordering::Relaxed),
            corrupt_value: self.corrupt_value.load(Ordering::Relaxed),
        })
    }

    #[cold]
    fn hit(
        &self,
        in_flight: u32,
        payload_len: impl FnOnce() -> u64,
        random: impl FnOnce() -> u32,
    ) -> Option<Fate> {
        if self.left.load(Ordering::Acquire) == 0 || in_flight < self.queue_depth.load(Ordering::Relaxed) {
            return None;
        }
        let chance = self.chance.load(Ordering::Relaxed);
        if chance != u32::MAX && random() > chance {
            return None;
        }
        let corruption = Corruption {
            offset: self.corrupt_offset.load(Ordering::Relaxed),
            value: self.corrupt_value.load(Ordering::Relaxed),
        };
        let fate = match KINDS[usize::from(self.kind.load(Ordering::Relaxed))] {
            ErrorType::Failure => Fate::Failure,
            ErrorType::Pending => Fate::Pending,
            ErrorType::CorruptData if corruption.offset >= payload_len() => return None,
            ErrorType::CorruptData => Fate::Corrupt(corruption),
            ErrorType::Nomem => Fate::Nomem,
        };
        self.count_down().then_some(fate)
    }

    /// True if this I/O is one of those to be hit, however many reactors ask at once.
    fn count_down(&self) -> bool {
        let step = |left: u32| match left {
            0 => None,
            WITHOUT_LIMIT => Some(WITHOUT_LIMIT),
            left => Some(left - 1),
        };
        self.left.fetch_update(Ordering::AcqRel, Ordering::Acquire, step).is_ok()
    }
}

impl Fate {
    fn kind(self) -> ErrorType {
        match self {
            Fate::Failure => ErrorType::Failure,
            Fate::Pending => ErrorType::Pending,
            Fate::Corrupt(_) => ErrorType::CorruptData,
            Fate::Nomem => ErrorType::Nomem,
        }
    }
}

fn bit(op: BdevOp) -> u64 {
    1 << op as u8
}

/// The word for an operation in an [`Injection`].
fn io_type_of(op: BdevOp) -> Option<IoType> {
    Some(match op {
        BdevOp::Read => IoType::Read,
        BdevOp::Write => IoType::Write,
        BdevOp::Flush => IoType::Flush,
        BdevOp::Unmap => IoType::Unmap,
        BdevOp::WriteZeroes => IoType::WriteZeroes,
        BdevOp::Reset => IoType::Reset,
        BdevOp::Compare => IoType::Compare,
        BdevOp::CompareAndWrite => IoType::CompareAndWrite,
        BdevOp::Copy => IoType::Copy,
        BdevOp::Verify => IoType::Verify,
        BdevOp::WriteUncorrectable
        | BdevOp::NvmeAdmin
        | BdevOp::NvmeIo
        | BdevOp::GetZoneInfo
        | BdevOp::ZoneManagement
        | BdevOp::ZoneAppend
        | BdevOp::SeekHole
        | BdevOp::SeekData => return None,
    })
}

fn chance_of(percent: f64) -> u32 {
    // Saturates, also for what is no number.
    (percent / 100.0 * CHANCES - 1.0) as u32
}

/// To six digits, so that the number an operator gave comes out again.
fn percent_of(chance: u32) -> f64 {
    let percent = (f64::from(chance) + 1.0) / CHANCES * 100.0;
    (percent * 1e6).round() / 1e6
}

/// By the number of the kind.
const KINDS: [ErrorType; 4] =
    [ErrorType::Failure, ErrorType::Pending, ErrorType::CorruptData, ErrorType::Nomem];
const WITHOUT_LIMIT: u32 = u32::MAX;
const CHANCES: f64 = 4_294_967_296.0;

#[cfg(test)]
mod tests {
    use super::*;

    fn injections(json: &str) -> Injections {
        let injections = Injections::default();
        injections.set(&serde_json::from_str(json).unwrap());
        injections
    }

    fn ask(injections: &Injections, op: BdevOp) -> Option<Fate> {
        injections.fate_of(op, 0, || 512, || 0)
    }

    #[test]
    fn as_many_are_hit_as_were_asked_for() {
        let injections = injections(r#"{"io_type":"read","error_type":"failure","num":2}"#);
        let fates = [BdevOp::Read, BdevOp::Write, BdevOp::Read, BdevOp::Read].map(|op| ask(&injections, op));
        assert_eq!(fates, [Some(Fate::Failure), None, Some(Fate::Failure), None]);
        assert_eq!(injections.injected().next(), Some((ErrorType::Failure, 2)));
    }

    #[test]
    fn the_largest_number_means_without_limit() {
        let injections = injections(r#"{"io_type":"all","error_type":"nomem","num":4294967295}"#);
        assert!((0..1000).all(|_| ask(&injections, BdevOp::Flush) == Some(Fate::Nomem)));
        assert_eq!(ask(&injections, BdevOp::Reset), None);
        injections.clear();
        assert_eq!(ask(&injections, BdevOp::Flush), None);
    }

    #[test]
    fn a_queue_depth_must_be_reached() {
        let injections = injections(r#"{"io_type":"write","error_type":"pending","queue_depth":3}"#);
        assert_eq!(injections.fate_of(BdevOp::Write, 2, || 512, || 0), None);
        assert_eq!(injections.fate_of(BdevOp::Write, 3, || 512, || 0), Some(Fate::Pending));
    }

    #[test]
    fn a_payload_that_is_too_short_is_left_alone() {
        let injections = injections(r#"{"io_type":"read","error_type":"corrupt_data","corrupt_offset":512}"#);
        assert_eq!(injections.fate_of(BdevOp::Read, 0, || 512, || 0), None);
        let hit = Fate::Corrupt(Corruption { offset: 512, value: 255 });
        assert_eq!(injections.fate_of(BdevOp::Read, 0, || 513, || 0), Some(hit));
    }

    #[test]
    fn chance_decides_in_proportion() {
        let injections = injections(r#"{"io_type":"read","probability":25,"num":4294967295}"#);
        let hits = (0..1000u32).filter(|nth| {
            let random = nth * (u32::MAX / 1000);
            injections.fate_of(BdevOp::Read, 0, || 512, || random).is_some()
        });
        assert_eq!(hits.count(), 251);
    }

    #[test]
    fn what_is_active_makes_the_same_again() {
        let first = injections(r#"{"io_type":"all","error_type":"failure","num":7,"probability":0.1}"#);
        let second = Injections::default();
        first.active().iter().for_each(|injection| second.set(injection));
        assert_eq!(first.active(), second.active());
        assert_eq!((first.active().len(), first.active()[0].probability), (9, 0.1));
    }
}
