//! What choosing a path costs: `cargo xtask bench nvme` runs it.
//!
//! Prints nanoseconds per choice for each policy, of four accessible paths, one of
//! which is worse. The chooser is the module's own file; what it takes to know the
//! state of a queue is not in it.
#![allow(dead_code, reason = "what only the module needs of it")]
#![forbid(unsafe_code)]

use std::hint::black_box;

use nvme_spec::log::AnaState;

#[path = "../src/select.rs"]
mod select;

use select::{Cursor, PathFacts, Policy, Rules, Selector, select};

/// Choices between two looks at the clock.
const CHOICES: u32 = 20_000_000;

fn main() {
    let worse = |at| if at == 2 { AnaState::NON_OPTIMIZED } else { AnaState::OPTIMIZED };
    let path = |at: u32| PathFacts {
        is_connected: true,
        is_present: true,
        is_updating: false,
        ana: worse(at),
        is_preferred: at == 1,
        in_flight: 7 * at % 4,
        latency_ns: 20_000 + 100 * at,
    };
    let mut paths: [PathFacts; 4] = [0, 1, 2, 3].map(path);
    for (name, policy, selector) in [
        ("active_passive", Policy::ActivePassive, Selector::RoundRobin),
        ("round_robin", Policy::ActiveActive, Selector::RoundRobin),
        ("queue_depth", Policy::ActiveActive, Selector::QueueDepth),
        ("latency", Policy::ActiveActive, Selector::Latency),
    ] {
        let rules = Rules { policy, selector, ..Rules::default() };
        let (mut cursor, begin_ns) = (Cursor::default(), on_core_ns());
        for choice in 0..CHOICES {
            // As on the data path: what changes by itself is filled in before each use.
            paths[(choice % 4) as usize].in_flight = choice & 63;
            let Some(at) = select(black_box(&paths), black_box(&rules), cursor) else { continue };
            let run = if cursor.last == at { cursor.run.saturating_add(1) } else { 1 };
            cursor = black_box(Cursor { last: at, run });
        }
        println!("{name} {:.2}", (on_core_ns() - begin_ns) as f64 / f64::from(CHOICES));
    }
}

/// How long this thread has been on a core.
fn on_core_ns() -> u64 {
    let text =
        std::fs::read_to_string("/proc/thread-self/schedstat").expect("a Linux kernel with statistics");
    text.split_whitespace().next().and_then(|ns| ns.parse().ok()).expect("its first number is that time")
}
