//! What a path has done on one reactor, by kind of I/O: for
//! `bdev_nvme_get_path_iostat`. Only of devices that count it.

use std::cell::Cell;

use serde_json::{Map, Value};
use tenon_sdk::BdevOp;

/// Counts of one path on one reactor.
#[derive(Debug, Default)]
pub(crate) struct Tally(Cell<Counted>);

/// Counts that may be added up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counted([Kind; KINDS.len()]);

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Kind {
    count: u64,
    bytes: u64,
    ns: u64,
    min_ns: u64,
    max_ns: u64,
}

impl Tally {
    /// An I/O of so many bytes took so long.
    pub(crate) fn count(&self, op: BdevOp, bytes: u64, ns: u64) {
        let at = match op {
            BdevOp::Read => 0,
            BdevOp::Write => 1,
            BdevOp::Unmap => 2,
            BdevOp::Copy => 3,
            _ => return,
        };
        let mut counted = self.0.get();
        counted.0[at].add(Kind { count: 1, bytes, ns, min_ns: ns, max_ns: ns });
        self.0.set(counted);
    }

    pub(crate) fn get(&self) -> Counted {
        self.0.get()
    }
}

impl Kind {
    fn add(&mut self, other: Kind) {
        if other.count == 0 {
            return;
        }
        let is_first = self.count == 0;
        self.count += other.count;
        self.bytes += other.bytes;
        self.ns += other.ns;
        self.min_ns = if is_first { other.min_ns } else { self.min_ns.min(other.min_ns) };
        self.max_ns = self.max_ns.max(other.max_ns);
    }
}

impl Counted {
    pub(crate) fn add(&mut self, other: &Counted) {
        for (own, other) in self.0.iter_mut().zip(&other.0) {
            own.add(*other);
        }
    }

    /// The object `stat`; a tick is a nanosecond.
    pub(crate) fn describe(&self) -> Value {
        let mut stat = Map::new();
        for ((word, done, ops), kind) in KINDS.iter().zip(&self.0) {
            stat.insert(format!("bytes_{done}"), kind.bytes.into());
            stat.insert(format!("num_{ops}_ops"), kind.count.into());
            stat.insert(format!("{word}_latency_ticks"), kind.ns.into());
            stat.insert(format!("max_{word}_latency_ticks"), kind.max_ns.into());
            stat.insert(format!("min_{word}_latency_ticks"), kind.min_ns.into());
        }
        Value::Object(stat)
    }
}

/// Words of a kind of I/O: of its latency, its bytes, its count.
const KINDS: [(&str, &str, &str); 4] = [
    ("read", "read", "read"),
    ("write", "written", "write"),
    ("unmap", "unmapped", "unmap"),
    ("copy", "copied", "copy"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_of_reactors_add_up_under_the_names_clients_know() {
        let (one, two) = (Tally::default(), Tally::default());
        one.count(BdevOp::Read, 4096, 30);
        two.count(BdevOp::Read, 512, 10);
        two.count(BdevOp::Write, 100, 7);
        two.count(BdevOp::Flush, 0, 1000);
        let mut all = one.get();
        all.add(&two.get());
        let stat = all.describe();
        let of = |key: &str| stat[key].as_u64();
        assert_eq!((of("bytes_read"), of("num_read_ops")), (Some(4608), Some(2)));
        assert_eq!((of("read_latency_ticks"), of("min_read_latency_ticks")), (Some(40), Some(10)));
        assert_eq!((of("max_read_latency_ticks"), of("bytes_written")), (Some(30), Some(100)));
        assert_eq!((of("num_unmap_ops"), of("num_copy_ops")), (Some(0), Some(0)));
    }
}
