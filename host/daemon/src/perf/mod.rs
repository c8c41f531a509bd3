//! `tenon perf`: starts the host of a configuration file, puts load on its
//! devices, prints what was measured and found, and ends.
//!
//! The main thread waits for events, shows progress and prints; the host runs
//! on its reactors as under `tenon run`, without a control socket unless asked
//! for one.

mod args;
mod chart;
mod stall;
mod table;
mod trid;
mod units;

use std::cell::Cell;
use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use anyhow::Context;
use log::{LevelFilter, warn};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use tenon_bdev::{ShutdownReport, State};
use tenon_control::config::Config;
use tenon_control::rpc::Server;
use tenon_control::{Control, ProcessControl, Stop};
use tenon_modules::Catalog;
use tenon_perf::{Monitor, Plan, Progress, Report, start};
use tenon_reactor::Cpus;

pub use args::PerfArgs;

use crate::exit::{self, CONFIG, Exit, FAILURE, UNAVAILABLE, at_once};
use crate::{host, logs, run};
use stall::{Stall, Verdict};
use trid::Trid;

/// How long the reactors may take to end after everything is drained.
const REACTORS_END: Duration = Duration::from_secs(5);
/// Between two progress lines.
const PROGRESS_EVERY: Duration = Duration::from_secs(1);

/// What the main thread hears.
enum Event {
    Signal,
    Failed(Exit),
    Started(Box<Monitor>),
    Done(Box<Report>),
    Stopped(Box<ShutdownReport>),
}

/// What the control reactor starts with.
struct Order {
    config: Config,
    catalog: Catalog,
    plan: Plan,
    controllers: Vec<Trid>,
    socket: Option<PathBuf>,
    events: Sender<Event>,
}

thread_local! {
    /// On the control reactor: the control socket, until the load is over.
    static SERVER: Cell<Option<Server>> = const { Cell::new(None) };
}

/// Runs the command.
pub fn perf(args: &PerfArgs) -> anyhow::Result<()> {
    let workload = args.workload().map_err(|reason| Exit::new(CONFIG, reason))?;
    let config = host::read_config(args.config.as_deref())?;
    logs::install(run::level(&config, LevelFilter::Warn));
    let catalog = host::catalog(&config, &args.plugin_dir);
    let cpus = args.reactors.map(Cpus::Count);
    let reactors = host::start_reactors_on(&config, args.cpus.as_deref(), cpus)?;
    let (events, inbox) = channel();
    watch_signals(events.clone())?;
    let plan = Plan { bdevs: args.bdev.clone(), reactors: Vec::new(), workload };
    let controllers = args.nvmf.clone();
    let order = Order { config, catalog, plan, controllers, socket: args.rpc_socket.clone(), events };
    let control = reactors.control().clone();
    control.call(host::CONTROL_CALL, move || begin(order)).context("the control reactor does not answer")?;
    let shows_progress = args.progress || std::io::stderr().is_terminal();
    let result = wait(&inbox, shows_progress, args);
    if let Err(error) = reactors.shutdown(REACTORS_END) {
        warn!("reactors did not end in time error={error}");
    }
    finish(args, result?)
}

/// Handles events until the host has stopped; gives the report, if it came to one.
fn wait(inbox: &Receiver<Event>, shows_progress: bool, args: &PerfArgs) -> anyhow::Result<Box<Report>> {
    let mut result = Err(anyhow::anyhow!("interrupted"));
    let mut monitor: Option<Monitor> = None;
    let mut meter = Meter::default();
    let mut stall = Stall::new(args.io_timeout);
    loop {
        match inbox.recv_timeout(PROGRESS_EVERY) {
            Ok(Event::Signal) => match &monitor {
                Some(monitor) if !stall.is_stopping() => {
                    monitor.stop();
                    stall.stop();
                }
                Some(_) | None => at_once(130),
            },
            Ok(Event::Failed(exit)) => result = Err(exit.into()),
            Ok(Event::Started(started)) => {
                monitor = Some(*started);
                meter = Meter::default();
            }
            Ok(Event::Done(report)) => {
                monitor = None;
                meter.clear();
                if report.bdevs.iter().any(|bdev| bdev.outstanding > 0) {
                    // A host with I/O in flight cannot be drained.
                    end_at_once(finish(args, report));
                }
                result = Ok(report);
            }
            Ok(Event::Stopped(report)) => {
                if result.is_ok() && !report.is_clean() {
                    return Err(anyhow::anyhow!("stopped with objects left: {}", report.left.join("; ")));
                }
                return result;
            }
            Err(RecvTimeoutError::Timeout) => {
                let Some(monitor) = &monitor else { continue };
                if shows_progress {
                    meter.show(monitor.progress());
                }
                match stall.look(&monitor.in_flight(), Instant::now()) {
                    Verdict::Goes => {}
                    Verdict::Hangs => monitor.abandon(),
                    Verdict::Lost(complaint) => {
                        meter.clear();
                        end_at_once(Err(Exit::new(FAILURE, complaint).into()));
                    }
                }
            }
            Err(RecvTimeoutError::Disconnected) => return result,
        }
    }
}

/// Ends the process without draining anything.
fn end_at_once(result: anyhow::Result<()>) -> ! {
    let _ = std::io::stdout().flush();
    exit::skip_exit_handlers();
    exit::end(result)
}

/// Prints the report; a load that was not clean is a failure.
fn finish(args: &PerfArgs, report: Box<Report>) -> anyhow::Result<()> {
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report).context("cannot print")?);
    } else {
        print!("{}", table::render(&report));
    }
    if let Some(path) = &args.histogram {
        std::fs::write(path, chart::render(&report))
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    if report.is_clean() { Ok(()) } else { Err(Exit::new(FAILURE, table::complaints(&report)).into()) }
}

/// On the control reactor: starts the host, then the load.
fn begin(order: Order) {
    let Order { config, catalog, plan, controllers, socket, events } = order;
    let control = host::compose(&config, catalog, Rc::new(logs::handle(Vec::new)), Rc::new(Process));
    match socket.map(|path| Server::open(&path, Rc::new(control.clone()))).transpose() {
        Ok(server) => SERVER.set(server),
        Err(error) => return end(&control, &events, Some(Exit::new(CONFIG, run::chain(&error)))),
    }
    let engine = control.engine().clone();
    engine.start(config, move |report| {
        let mut failures = report.failures;
        for entry in control.engine().waiting() {
            failures.push(format!("{}: bdev {} waits for {}", entry.location, entry.name, entry.waits_for));
        }
        if failures.is_empty() {
            let chooses = plan.bdevs.is_empty();
            attach(control, plan, controllers, chooses, events);
        } else {
            end(&control, &events, Some(Exit::new(UNAVAILABLE, failures.join("\n       "))));
        }
    });
}

/// Attaches the controllers, one after the other; without a device named, their namespaces get the load.
fn attach(
    control: Control,
    mut plan: Plan,
    mut controllers: Vec<Trid>,
    chooses: bool,
    events: Sender<Event>,
) {
    if controllers.is_empty() {
        return begin_load(control, plan, events);
    }
    let trid = controllers.remove(0);
    let core = control.core().clone();
    let params = trid.params(&format!("nvme{}", core.bdev_count()));
    core.create("nvme", &params, move |result| match result {
        Ok(answer) if answer.bdevs.is_empty() => {
            let exit = Exit::new(UNAVAILABLE, format!("{trid}: the controller has no namespace"));
            end(&control, &events, Some(exit));
        }
        Ok(answer) => {
            if chooses {
                plan.bdevs.extend(answer.bdevs);
            }
            attach(control, plan, controllers, chooses, events);
        }
        Err(error) => end(&control, &events, Some(Exit::new(UNAVAILABLE, format!("{trid}: {error}")))),
    });
}

fn begin_load(control: Control, mut plan: Plan, events: Sender<Event>) {
    let core = control.core().clone();
    if plan.bdevs.is_empty() {
        let is_free = |bdev: &tenon_bdev::BdevSnapshot| bdev.claims.is_empty() && bdev.state == State::Ready;
        plan.bdevs = core.bdevs().into_iter().filter(is_free).map(|bdev| bdev.name).collect();
        // Modules come up side by side; a seed gives the same load whichever was first.
        plan.bdevs.sort_unstable();
    }
    let (done_events, done_control) = (events.clone(), control.clone());
    control.set_ready();
    let started = start(&core, &plan, move |report| {
        let _ = done_events.send(Event::Done(Box::new(report)));
        end(&done_control, &done_events, None);
    });
    match started {
        Ok(running) => _ = events.send(Event::Started(Box::new(running.monitor()))),
        Err(error) => end(&control, &events, Some(Exit::new(FAILURE, error.to_string()))),
    }
}

fn end(control: &Control, events: &Sender<Event>, failure: Option<Exit>) {
    if let Some(exit) = failure {
        let _ = events.send(Event::Failed(exit));
    }
    let (control, events) = (control.clone(), events.clone());
    host::shut_down(&control.clone(), host::DEFAULT_DRAIN, move |report| {
        SERVER.take();
        drop(control);
        let _ = events.send(Event::Stopped(Box::new(report)));
    });
}

fn watch_signals(events: Sender<Event>) -> anyhow::Result<()> {
    let mut signals = Signals::new([SIGTERM, SIGINT]).context("cannot watch signals")?;
    std::thread::Builder::new()
        .name("tenon-signals".to_owned())
        .spawn(move || signals.forever().try_for_each(|_| events.send(Event::Signal)))
        .context("cannot start the signal thread")?;
    Ok(())
}

/// Nobody outside asks this process to stop or to reload.
struct Process;

impl ProcessControl for Process {
    fn stop(&self, _: Stop) {}

    fn reload(&self, done: Box<dyn FnOnce(Result<(), Vec<String>>)>) {
        done(Err(vec!["a load is running".to_owned()]));
    }
}

/// Shows the rate since the last time.
struct Meter {
    begin: Instant,
    last: (Instant, Progress),
    has_line: bool,
}

impl Default for Meter {
    fn default() -> Self {
        let now = Instant::now();
        Meter { begin: now, last: (now, Progress::default()), has_line: false }
    }
}

impl Meter {
    fn show(&mut self, progress: Progress) {
        let now = Instant::now();
        let (last, before) = std::mem::replace(&mut self.last, (now, progress));
        let seconds = now.duration_since(last).as_secs_f64();
        let rate = |now: u64, before: u64| now.saturating_sub(before) as f64 / seconds;
        let line = format!(
            "{:>5.0} s  {:>10} IOPS  {:>10.1} MiB/s",
            now.duration_since(self.begin).as_secs_f64(),
            units::count(rate(progress.ios, before.ios)),
            rate(progress.bytes, before.bytes) / 1_048_576.0,
        );
        let mut stderr = std::io::stderr();
        let is_terminal = stderr.is_terminal();
        let _ = if is_terminal { write!(stderr, "\r{line}") } else { writeln!(stderr, "{line}") };
        self.has_line = is_terminal;
    }

    fn clear(&mut self) {
        if std::mem::take(&mut self.has_line) {
            eprint!("\r{:60}\r", "");
        }
    }
}
