//! What the measurements mean: figures, what they need to be, and the table.

use serde_json::{Value, json};

use super::Round;
use super::load::LAYERS;
use super::nvme::WAYS;

/// Computes a figure from what a round measured.
type Of = Box<dyn Fn(&Round) -> Option<f64>>;

/// One line of the table.
pub struct Figure {
    /// Group of its probes.
    pub group: &'static str,
    /// What it is.
    pub name: String,
    unit: &'static str,
    need: Need,
    of: Of,
}

/// What a figure has to be.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Need {
    AtLeast(f64),
    AtMost(f64),
    /// Shown only.
    None,
}

/// Median and range of a figure over the rounds.
struct Spread {
    median: f64,
    low: f64,
    high: f64,
}

/// All figures, in the order of the table.
pub fn all() -> Vec<Figure> {
    let groups = [memory(), stacks(), raid(), uring(), reactor(), host(), tcp(), nvme()];
    groups.into_iter().flatten().collect()
}

/// Devices that are memory, or not even that.
fn memory() -> Vec<Figure> {
    vec![
        figure("null", "null 4 KiB QD 128, one reactor", "M IOPS", Need::AtLeast(20.0), |r| rate(r, "null")),
        figure("null", "the same, every I/O timed", "M IOPS", Need::None, |r| rate(r, "null timed")),
        figure("malloc", "malloc 16 MiB, 4 KiB random read QD 128", "M IOPS", Need::AtLeast(6.0), |r| {
            rate(r, "malloc 16M")
        }),
        figure("malloc", "  of a bare copy in the same pattern", "x", Need::AtLeast(0.85), |r| {
            ratio(r, "copy 16M", "malloc 16M")
        }),
        figure("malloc", "malloc 256 MiB, 4 KiB random read QD 128", "M IOPS", Need::None, |r| {
            rate(r, "malloc 256M")
        }),
        figure("malloc", "  of a bare copy in the same pattern", "x", Need::None, |r| {
            ratio(r, "copy 256M", "malloc 256M")
        }),
        figure("malloc", "malloc 256 MiB, lent instead of copied", "M IOPS", Need::None, |r| {
            rate(r, "lent 256M")
        }),
        figure("malloc", "malloc 128 KiB random read QD 32", "GiB/s", Need::None, |r| {
            Some(131_072.0 / r.get("malloc 128K")? / 1.073_741_824)
        }),
        figure("malloc", "  of a bare copy in the same pattern", "x", Need::None, |r| {
            ratio(r, "copy 128K", "malloc 128K")
        }),
    ]
}

/// Devices on devices.
fn stacks() -> Vec<Figure> {
    let mut figures = Vec::new();
    for layers in 1..=LAYERS {
        let name = format!("passthru x {layers} on null, per layer");
        let of =
            move |r: &Round| Some((r.get(&format!("stack {layers}"))? - r.get("stack 0")?) / layers as f64);
        figures.push(figure("stack", &name, "ns", Need::AtMost(10.0), of));
    }
    figures.push(figure("deferred", "delay 0 us on null, above null", "ns", Need::AtMost(30.0), |r| {
        Some(r.get("delay 0")? - r.get("base")?)
    }));
    figures
}

/// Arrays, against three or four times what SPDK 24.09 did on a machine of this kind.
fn raid() -> Vec<Figure> {
    let mut figures = Vec::new();
    for (probe, need) in [
        ("raid0 read", Need::AtLeast(12.6)),
        ("concat read", Need::AtLeast(12.6)),
        ("raid1 read", Need::AtLeast(13.2)),
        ("raid10 read", Need::None),
        ("raid1 write", Need::AtLeast(3.0)),
        ("raid10 write", Need::None),
    ] {
        let name = format!("{probe}, 4 KiB QD 128, over null");
        figures.push(figure("raid", &name, "M IOPS", need, move |r| rate(r, probe)));
        figures.push(figure("raid", "  above null", "ns", Need::None, move |r| {
            Some(r.get(probe)? - r.get("raid null")?)
        }));
    }
    figures.push(figure(
        "raid",
        "raid1 x 2 write, 4 KiB QD 128, over malloc",
        "M IOPS",
        Need::AtLeast(2.36),
        |r| rate(r, "raid1 write malloc"),
    ));
    figures.push(figure(
        "raid",
        "  of bare copies of the same bytes, past the cache",
        "x",
        Need::None,
        |r| ratio(r, "copies of raid1", "raid1 write malloc"),
    ));
    figures.push(figure(
        "raid",
        "raid5f x 3 write, 128 KiB stripes, over null",
        "k IOPS",
        Need::AtLeast(251.0),
        |r| r.get("raid5f null").map(|ns| 1e6 / ns),
    ));
    figures.push(figure("raid", "  of a loop that only adds up", "x", Need::AtLeast(0.9), |r| {
        ratio(r, "xor", "raid5f null")
    }));
    figures.push(figure(
        "raid",
        "raid5f x 3 write, 128 KiB stripes, over malloc",
        "k IOPS",
        Need::AtLeast(42.0),
        |r| r.get("raid5f malloc").map(|ns| 1e6 / ns),
    ));
    figures.push(figure("raid", "  of bare copies of as many bytes, past the cache", "x", Need::None, |r| {
        ratio(r, "copies of raid5f", "raid5f malloc")
    }));
    figures.extend(raid_beside_users());
    figures
}

/// What a bitmap and a rebuild cost.
fn raid_beside_users() -> Vec<Figure> {
    let mut figures = Vec::new();
    figures.push(figure(
        "raid",
        "bitmap of raid1 x 2, random writes, over 50 us",
        "%",
        Need::AtMost(5.0),
        |r| Some((ratio(r, "bitmap on", "bitmap off")? - 1.0) * 100.0),
    ));
    figures.push(figure(
        "raid",
        "rebuild, idle, of a member that takes 400 MiB/s",
        "MiB/s",
        Need::None,
        |r| r.get("rebuild").map(|ns| 1e9 / ns),
    ));
    // A write of the member is a quarter of a MiB.
    figures.push(figure("raid", "  of sequential writes to it", "x", Need::AtLeast(0.9), |r| {
        Some(4.0 * r.get("member write")? / r.get("rebuild")?)
    }));
    figures.push(figure(
        "raid",
        "users' loss while a member is rebuilt, over 50 us",
        "%",
        Need::AtMost(30.0),
        |r| Some((1.0 - ratio(r, "foreground", "foreground beside a rebuild")?) * 100.0),
    ));
    figures
}

/// A file, against fio.
fn uring() -> Vec<Figure> {
    let mut figures = Vec::new();
    for (place, depth) in [("", 1), ("", 32), (" memory", 1), (" memory", 32)] {
        let on = if place.is_empty() { "" } else { ", file in memory" };
        let name = format!("uring QD {depth}{on}");
        let rate = move |r: &Round| r.get(&format!("uring{place} {depth}")).map(|ns| 1e6 / ns);
        figures.push(figure("uring", &name, "k IOPS", Need::None, rate));
        let of = move |r: &Round| ratio(r, &format!("fio{place} {depth}"), &format!("uring{place} {depth}"));
        // In memory the kernel's threads do the reading: shown, but no disk is like that.
        let need = if place.is_empty() { Need::AtLeast(0.95) } else { Need::None };
        figures.push(figure("uring", "  of fio on the same file", "x", need, of));
    }
    figures
}

/// Messages, against what wakes a thread without a reactor.
fn reactor() -> Vec<Figure> {
    vec![
        figure("reactor", "message to a sleeping reactor, p50", "us", Need::AtMost(50.0), |r| {
            get(r, "asleep p50 us")
        }),
        figure("reactor", "  p99", "us", Need::None, |r| get(r, "asleep p99 us")),
        figure("reactor", "wake-up of a thread by eventfd alone, p50", "us", Need::None, |r| {
            get(r, "bare p50 us")
        }),
        figure("reactor", "  p99", "us", Need::None, |r| get(r, "bare p99 us")),
        figure("reactor", "message to an awake reactor, p50", "us", Need::None, |r| get(r, "awake p50 us")),
        figure("reactor", "  p99", "us", Need::None, |r| get(r, "awake p99 us")),
    ]
}

/// The host as a process.
fn host() -> Vec<Figure> {
    vec![
        figure("host", "start to ready, quickstart", "ms", Need::AtMost(50.0), |r| get(r, "start ms")),
        figure("host", "memory, quickstart, devices untouched", "MiB", Need::AtMost(20.0), |r| {
            get(r, "rss MiB")
        }),
        figure("host", "processor while idle", "%", Need::AtMost(1.0), |r| get(r, "idle %")),
        figure("host", "RPC round trip", "us", Need::None, |r| get(r, "call us")),
        figure("registration", "device by RPC, 32 in flight, first 100", "us", Need::None, |r| {
            get(r, "rpc first us")
        }),
        figure("registration", "  last 100 of 10,000, in comparison", "x", Need::AtMost(2.0), |r| {
            ratio(r, "rpc last us", "rpc first us")
        }),
        figure("registration", "device in process, first 100", "us", Need::None, |r| {
            get(r, "process first us")
        }),
        figure("registration", "  last 100 of 10,000, in comparison", "x", Need::AtMost(2.0), |r| {
            ratio(r, "process last us", "process first us")
        }),
    ]
}

/// The initiator.
fn nvme() -> Vec<Figure> {
    let mut figures: Vec<Figure> = WAYS
        .iter()
        .map(|way| {
            let (name, key) = (format!("nvme: one of four paths, {way}"), format!("nvme select {way}"));
            figure("nvme", &name, "ns", Need::AtMost(20.0), move |r| get(r, &key))
        })
        .collect();
    figures.push(figure(
        "nvme",
        "nvme: one path over TCP, 4 KiB random read QD 128",
        "k IOPS",
        Need::None,
        |r| rate(r, "nvme paths 1"),
    ));
    figures.push(figure("nvme", "  four paths, active_active", "x", Need::AtLeast(0.95), |r| {
        ratio(r, "nvme paths 1", "nvme paths 4")
    }));
    figures.push(figure("nvme", "  four connections, the same bytes, only moved", "x", Need::None, |r| {
        ratio(r, "nvme loop 1", "nvme loop 4")
    }));
    figures.push(figure("nvme", "nvme: processor per read by the initiator", "ns", Need::None, |r| {
        get(r, "nvme busy")
    }));
    figures.push(figure(
        "nvme",
        "  of a loop that brings the data to its requests",
        "x",
        Need::AtMost(1.3),
        |r| ratio(r, "nvme busy", "nvme loop fetch"),
    ));
    figures.push(figure("nvme", "  of a loop that throws it away", "x", Need::None, |r| {
        ratio(r, "nvme busy", "nvme loop read")
    }));
    figures
}

/// The target over TCP on loopback, against a program that only moves the bytes.
fn tcp() -> Vec<Figure> {
    let mut figures = Vec::new();
    for (work, name, need) in [
        ("read", "TCP 4 KiB random read QD 128", Need::AtLeast(0.8)),
        ("read 4", "TCP 4 KiB random read, 4 connections of QD 128", Need::AtLeast(0.8)),
        ("write", "TCP 4 KiB random write QD 128, in capsule", Need::AtLeast(0.8)),
        ("write 4", "TCP 4 KiB random write, 4 connections of QD 128", Need::AtLeast(0.8)),
        ("read one", "TCP 4 KiB random read QD 1", Need::AtLeast(0.9)),
        ("read large", "TCP 128 KiB random read QD 32", Need::None),
        ("read 256", "TCP 4 KiB random read, 256 connections of QD 4", Need::AtLeast(0.8)),
    ] {
        let (own, ceiling) = (format!("tcp {work}"), format!("tcp {work} beside"));
        let key = own.clone();
        figures.push(figure("tcp", name, "k IOPS", Need::None, move |r| rate(r, &key)));
        figures.push(figure("tcp", "  of the same bytes, only moved", "x", need, move |r| {
            ratio(r, &ceiling, &own)
        }));
    }
    for (work, name, need) in [
        ("write asked", "TCP write by R2T, of one in capsule", Need::AtLeast(0.6)),
        ("read digests", "TCP read with digests, of one without", Need::AtLeast(0.85)),
        ("write digests", "TCP write with digests, of one without", Need::AtLeast(0.85)),
        ("read many", "TCP read on 256 connections of QD 4, of 1 of QD 1024", Need::AtLeast(0.8)),
        ("moved many", "  the same bytes, only moved", Need::None),
        ("moved dropped", "Moving a write whose data is dropped, of one kept", Need::None),
        ("uring", "Moving reads by io_uring, of calls of the sockets", Need::None),
        ("uring 4", "  on 4 connections", Need::None),
        ("uring 256", "  on 256 connections of QD 4", Need::None),
    ] {
        let (own, other) = (format!("tcp {work}"), format!("tcp {work} beside"));
        figures.push(figure("tcp", name, "x", need, move |r| ratio(r, &other, &own)));
    }
    figures.push(figure("tcp", "TCP target, 100 idle hosts", "% CPU", Need::AtMost(2.0), |r| {
        get(r, "tcp idle hosts %")
    }));
    figures
}

fn figure(
    group: &'static str,
    name: &str,
    unit: &'static str,
    need: Need,
    of: impl Fn(&Round) -> Option<f64> + 'static,
) -> Figure {
    Figure { group, name: name.to_owned(), unit, need, of: Box::new(of) }
}

fn get(round: &Round, name: &str) -> Option<f64> {
    round.get(name).copied()
}

/// Millions per second of something that takes nanoseconds.
fn rate(round: &Round, name: &str) -> Option<f64> {
    round.get(name).map(|ns| 1e3 / ns)
}

fn ratio(round: &Round, over: &str, under: &str) -> Option<f64> {
    Some(round.get(over)? / round.get(under)?)
}

impl Figure {
    fn spread(&self, rounds: &[Round]) -> Option<Spread> {
        let values: Vec<f64> = rounds.iter().filter_map(|round| (self.of)(round)).collect();
        let fold = |start: f64, f: fn(f64, f64) -> f64| values.iter().copied().fold(start, f);
        (!values.is_empty()).then(|| Spread {
            median: median(&values),
            low: fold(f64::INFINITY, f64::min),
            high: fold(f64::NEG_INFINITY, f64::max),
        })
    }
}

impl Need {
    fn is_met(self, value: f64) -> Option<bool> {
        match self {
            Need::AtLeast(need) => Some(value >= need),
            Need::AtMost(need) => Some(value <= need),
            Need::None => None,
        }
    }

    fn text(self, unit: &str) -> String {
        match self {
            Need::AtLeast(need) => format!(">= {need} {unit}"),
            Need::AtMost(need) => format!("<= {need} {unit}"),
            Need::None => String::new(),
        }
    }
}

/// The middle one; of two middle ones their mean.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        len if len % 2 == 1 => sorted[len / 2],
        len => (sorted[len / 2 - 1] + sorted[len / 2]) / 2.0,
    }
}

/// The figures as a table for people, and for BENCHMARKS.md.
pub fn as_table(figures: &[Figure], rounds: &[Round]) -> String {
    let mut text = String::from("| figure | need | median | range | |\n|---|---|---|---|---|\n");
    for figure in figures {
        let Some(Spread { median, low, high }) = figure.spread(rounds) else {
            text += &format!("| {} | {} | not measured | | |\n", figure.name, figure.need.text(figure.unit));
            continue;
        };
        let verdict = match figure.need.is_met(median) {
            Some(true) => "pass",
            Some(false) => "**miss**",
            None => "",
        };
        text += &format!(
            "| {} | {} | {} {} | {} – {} | {verdict} |\n",
            figure.name,
            figure.need.text(figure.unit),
            short(median),
            figure.unit,
            short(low),
            short(high),
        );
    }
    text
}

/// The figures for programs.
pub fn as_json(figures: &[Figure], rounds: &[Round]) -> Value {
    let rows = figures.iter().filter_map(|figure| {
        let Spread { median, low, high } = figure.spread(rounds)?;
        Some(json!({
            "group": figure.group,
            "name": figure.name.trim(),
            "unit": figure.unit,
            "need": figure.need.text(figure.unit),
            "median": median,
            "low": low,
            "high": high,
            "pass": figure.need.is_met(median),
        }))
    });
    json!({ "rounds": rounds, "figures": rows.collect::<Vec<_>>() })
}

/// Three digits that count.
fn short(value: f64) -> String {
    match value.abs() {
        v if v >= 100.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round(pairs: &[(&str, f64)]) -> Round {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect()
    }

    #[test]
    fn a_figure_is_the_median_of_its_rounds_with_their_range() {
        let rounds = [round(&[("null", 20.0)]), round(&[("null", 50.0)]), round(&[("null", 25.0)])];
        let table = as_table(&all(), &rounds);
        let line = table.lines().find(|line| line.starts_with("| null 4 KiB")).unwrap();
        assert_eq!(
            line,
            "| null 4 KiB QD 128, one reactor | >= 20 M IOPS | 40.0 M IOPS | 20.0 – 50.0 | pass |"
        );
    }

    #[test]
    fn a_comparison_is_made_within_each_round() {
        let rounds = [
            round(&[("stack 0", 10.0), ("stack 2", 50.0)]),
            round(&[("stack 0", 100.0), ("stack 2", 110.0)]),
            round(&[("stack 0", 100.0), ("stack 2", 130.0)]),
        ];
        let figures = all();
        let two = figures.iter().find(|figure| figure.name.starts_with("passthru x 2")).unwrap();
        let Spread { median, low, high } = two.spread(&rounds).unwrap();
        assert_eq!((median, low, high), (15.0, 5.0, 20.0));
        assert_eq!(two.need.is_met(median), Some(false));
    }

    #[test]
    fn what_was_not_measured_is_said_to_be_so() {
        assert!(as_table(&all(), &[]).lines().skip(2).all(|line| line.contains("not measured")));
        assert!(as_json(&all(), &[])["figures"].as_array().unwrap().is_empty());
    }
}
