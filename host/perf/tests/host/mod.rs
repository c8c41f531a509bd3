//! A real host for tests of the load: reactors with their threads, the core, and
//! the plugins that cargo built beside the tests.
#![allow(dead_code, reason = "each test binary uses a part")]
#![allow(clippy::unwrap_used, reason = "part of tests")]

use std::path::PathBuf;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use serde_json::Value;
use tenon_bdev::{Core, CoreOptions, ObjectCounts, OpError, ShutdownReport};
use tenon_modules::{Catalog, PluginDirectory, Trust};
use tenon_perf::{Monitor, Plan, Report, StartError, Workload, start};
use tenon_reactor::{Cpus, Reactors, ReactorsOptions};

/// How long anything may take before a test fails.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A running host.
pub struct Host {
    reactors: Option<Reactors>,
}

/// A load that a test started.
pub struct Load {
    pub monitor: Monitor,
    report: Receiver<Report>,
}

impl Host {
    /// Starts `data` data reactors, not pinned, and the core.
    pub fn start(data: usize) -> Host {
        let options = ReactorsOptions { cpus: Cpus::Count(data), pin: false, ..ReactorsOptions::default() };
        let host = Host { reactors: Some(Reactors::start(options).unwrap()) };
        let catalog = Catalog::scan(vec![PluginDirectory::configured(plugin_dir())], Trust::Owner);
        host.call(move || _ = Core::start(CoreOptions::default(), catalog));
        host
    }

    fn call<T: Send + 'static>(&self, f: impl FnOnce() -> T + Send + 'static) -> T {
        self.reactors.as_ref().unwrap().control().call(PATIENCE, f).unwrap()
    }

    /// Runs on the control reactor.
    pub fn on<T: Send + 'static>(&self, f: impl FnOnce(&Core) -> T + Send + 'static) -> T {
        self.call(move || f(&Core::current().unwrap()))
    }

    /// Asks for a device; gives where the answer will be.
    pub fn ask_create(&self, module: &str, params: Value) -> Receiver<Result<(), OpError>> {
        let (answer, answers) = channel();
        let module = module.to_owned();
        self.on(move |core| {
            core.create(&module, &params, move |result| _ = answer.send(result.map(|_| ())));
        });
        answers
    }

    /// Creates a device.
    #[track_caller]
    pub fn create(&self, module: &str, params: Value) {
        let answer = self.ask_create(module, params.clone()).recv_timeout(PATIENCE).unwrap();
        answer.unwrap_or_else(|error| panic!("{module} {params}: {error}"));
    }

    /// Asks for a device to go; gives where the answer will be.
    pub fn ask_delete(&self, name: &str) -> Receiver<Result<(), OpError>> {
        let (answer, answers) = channel();
        let name = name.to_owned();
        self.on(move |core| core.delete(&name, None, move |result| _ = answer.send(result.map(|_| ()))));
        answers
    }

    /// Removes a device.
    #[track_caller]
    pub fn delete(&self, name: &str) {
        self.ask_delete(name).recv_timeout(PATIENCE).unwrap().unwrap();
    }

    /// Starts a load.
    pub fn load(&self, bdevs: &[&str], workload: Workload) -> Result<Load, StartError> {
        let (done, report) = channel();
        let bdevs = bdevs.iter().map(ToString::to_string).collect();
        self.on(move |core| {
            let plan = Plan { bdevs, reactors: Vec::new(), workload };
            start(core, &plan, move |report| _ = done.send(report)).map(|running| running.monitor())
        })
        .map(|monitor| Load { monitor, report })
    }

    /// Runs a load to its end.
    #[track_caller]
    pub fn run(&self, bdevs: &[&str], workload: Workload) -> Report {
        self.load(bdevs, workload).unwrap().report()
    }

    /// Counts everything.
    pub fn counts(&self) -> ObjectCounts {
        self.on(Core::object_counts)
    }

    /// Waits until the counts are as they should be.
    #[track_caller]
    pub fn wait_for_counts(&self, wanted: impl Fn(&ObjectCounts) -> bool) {
        let begin = Instant::now();
        loop {
            let counts = self.counts();
            if wanted(&counts) {
                return;
            }
            assert!(begin.elapsed() < PATIENCE, "{counts:?}");
            std::thread::yield_now();
        }
    }

    /// Ends everything; nothing may be left.
    #[track_caller]
    pub fn stop(mut self) {
        let (done, report) = channel();
        self.on(move |core| core.shutdown(move |report: ShutdownReport| _ = done.send(report.left)));
        assert_eq!(report.recv_timeout(PATIENCE).unwrap(), Vec::<String>::new());
        self.reactors.take().unwrap().shutdown(PATIENCE).unwrap();
    }
}

impl Load {
    /// Waits for the end of the load.
    #[track_caller]
    pub fn report(&self) -> Report {
        self.report.recv_timeout(PATIENCE).expect("the load ends")
    }

    /// Waits until so many I/Os are done.
    #[track_caller]
    pub fn wait_for_ios(&self, ios: u64) {
        let begin = Instant::now();
        while self.monitor.progress().ios < ios {
            assert!(begin.elapsed() < PATIENCE, "{:?} of {ios} I/Os", self.monitor.progress());
            std::thread::yield_now();
        }
    }
}

/// Where cargo puts the plugins: beside the `deps` folder of this test.
fn plugin_dir() -> PathBuf {
    let exe = std::env::current_exe().unwrap();
    let dir = exe.ancestors().nth(2).unwrap().to_owned();
    for plugin in ["null", "malloc", "delay", "passthru", "error"] {
        let file = dir.join(format!("libbdev_{plugin}.so"));
        assert!(file.exists(), "{} is not built; run `cargo build --workspace` first", file.display());
    }
    dir
}
