//! How the cost of one more device grows with the devices there are: registers
//! many in this process, one after the other, and prints the microseconds per
//! device of the first and of the last hundred. For `cargo xtask bench`.
//!
//!     registration COUNT
#![allow(clippy::unwrap_used, reason = "a tool of the benchmarks, not of the product")]
#![forbid(unsafe_code)]

use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, Instant};

use serde_json::json;
use tenon_bdev::{Core, CoreOptions};
use tenon_modules::{Catalog, PluginDirectory, Trust};
use tenon_reactor::{Reactors, ReactorsOptions};

fn main() {
    let count: usize = std::env::args().nth(1).unwrap().parse().unwrap();
    let exe = std::env::current_exe().unwrap();
    let plugins = exe.ancestors().nth(2).unwrap().to_owned();
    let reactors = Reactors::start(ReactorsOptions::default()).unwrap();
    let (done, times) = channel();
    reactors
        .control()
        .call(PATIENCE, move || {
            let catalog = Catalog::scan(vec![PluginDirectory::configured(plugins)], Trust::Owner);
            let core = Core::start(CoreOptions::default(), catalog);
            // One to load the module.
            let next = core.clone();
            create(&core, usize::MAX, move || register(next, 0, count, Vec::new(), done));
        })
        .unwrap();
    let times: Vec<Instant> = times.recv_timeout(PATIENCE).unwrap();
    let cost = |from: usize, to: usize| {
        times[to].duration_since(times[from]).as_secs_f64() * 1e6 / (to - from) as f64
    };
    println!("{:.3} {:.3}", cost(0, SPAN), cost(count - SPAN, count));
    std::process::exit(0);
}

fn register(core: Core, index: usize, count: usize, mut times: Vec<Instant>, done: Sender<Vec<Instant>>) {
    times.push(Instant::now());
    if index == count {
        done.send(times).unwrap();
        return;
    }
    let next = core.clone();
    create(&core, index, move || register(next, index + 1, count, times, done));
}

fn create(core: &Core, index: usize, then: impl FnOnce() + 'static) {
    let params = json!({ "name": format!("n{index}"), "size": "1GiB" });
    core.create("null", &params, move |result| {
        result.unwrap();
        then();
    });
}

const SPAN: usize = 100;
const PATIENCE: Duration = Duration::from_secs(120);
