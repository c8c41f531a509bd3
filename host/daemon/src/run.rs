//! `tenon run`: starts the host, serves it until a signal, drains, exits.
//!
//! The main thread only waits for signals and passes them on as messages;
//! everything else happens on the control reactor, where [`App`] lives in a
//! thread-local.

use std::cell::{Cell, RefCell};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::Context;
use log::{LevelFilter, error, info, warn};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use tenon_bdev::ShutdownReport;
use tenon_control::apply::Report;
use tenon_control::config::{Config, LogLevel};
use tenon_control::metrics::Endpoint;
use tenon_control::rpc::Server;
use tenon_control::{Control, ProcessControl, Stop};
use tenon_modules::Catalog;
use tenon_reactor::{ReactorRef, current};

use crate::cli::{DEFAULT_SOCKET, RunArgs};
use crate::exit::{CONFIG, Exit, FAILURE, UNAVAILABLE, at_once, skip_exit_handlers};
use crate::{exports, host, logs};

/// How long the reactors may take to end after everything is drained.
const REACTORS_END: Duration = Duration::from_secs(5);

/// A stop waits this often for as long as a drain may take: for the target, removal, drain, destruct and the end
/// of a module.
const DRAINS_OF_A_STOP: u32 = 5;
/// And for what has no deadline of its own.
const STOP_SLACK: Duration = Duration::from_secs(10);

/// What the main thread hears.
enum Event {
    Signal(i32),
    Started(Result<Ready, Exit>),
    Stopped(ShutdownReport),
    StopAtOnce,
}

/// What is there once the host is ready.
struct Ready {
    socket: PathBuf,
    metrics: Option<String>,
    bdevs: Vec<String>,
    /// Devices of the file that wait for something.
    waiting: Vec<String>,
    /// Command lines by which hosts reach what is exported.
    exports: Vec<String>,
    failures: usize,
}

/// The host on the control reactor.
struct App {
    control: Control,
    config_file: Option<PathBuf>,
    /// How long connections may take to drain at the end.
    drain: Duration,
    events: mpsc::Sender<Event>,
    /// Dropped first at the end of a graceful stop: closes the socket.
    server: RefCell<Option<Server>>,
    metrics: RefCell<Option<Endpoint>>,
    is_stopping: Cell<bool>,
}

thread_local! {
    static APP: RefCell<Option<Rc<App>>> = const { RefCell::new(None) };
}

/// Runs the command.
pub fn run(args: &RunArgs) -> anyhow::Result<()> {
    let begin = Instant::now();
    let config = host::read_config(args.config.as_deref())?;
    logs::install(level(&config, LevelFilter::Info));
    let catalog = host::catalog(&config, &args.plugin_dir);
    let reactors = host::start_reactors(&config, args.cpus.as_deref())?;
    let (events, inbox) = mpsc::channel();
    watch_signals(events.clone())?;
    let drain = config.host.drain_timeout_sec.map_or(host::DEFAULT_DRAIN, Duration::from_secs);
    let stop_limit = drain * DRAINS_OF_A_STOP + STOP_SLACK;
    let start = Start {
        socket: args
            .rpc_socket
            .clone()
            .or_else(|| config.host.rpc_socket.clone())
            .unwrap_or_else(|| DEFAULT_SOCKET.into()),
        config_file: args.config.clone(),
        drain,
        config,
        catalog,
        events,
    };
    let control = reactors.control().clone();
    control
        .call(host::CONTROL_CALL, move || start_app(start))
        .context("the control reactor does not answer")??;
    let result = serve(&inbox, &control, begin, stop_limit);
    if let Err(error) = reactors.shutdown(REACTORS_END) {
        warn!("reactors did not end in time error={error}");
    }
    result
}

/// Handles events until the host has stopped.
fn serve(
    inbox: &mpsc::Receiver<Event>,
    control: &ReactorRef,
    begin: Instant,
    stop_limit: Duration,
) -> anyhow::Result<()> {
    let mut result = Ok(());
    let mut is_stopping = false;
    while let Some(event) = next_event(inbox, is_stopping.then_some(stop_limit)) {
        match event {
            Event::Started(Ok(ready)) => announce(&ready, begin),
            Event::Started(Err(exit)) => {
                result = Err(exit.into());
                is_stopping = true;
                request_stop(control);
            }
            Event::Signal(SIGHUP) => {
                let _ = control.send(|| with_app(|app| app.reload(Box::new(|_| {}))));
            }
            Event::Signal(_) if is_stopping => at_once(130),
            Event::Signal(_) => {
                is_stopping = true;
                request_stop(control);
            }
            Event::StopAtOnce => at_once(0),
            Event::Stopped(report) => {
                if result.is_ok() && !report.is_clean() {
                    result = Err(anyhow::anyhow!("stopped with objects left: {}", report.left.join("; ")));
                }
                return result;
            }
        }
    }
    result
}

/// The next event; a host that does not get on with its stop is left.
fn next_event(inbox: &mpsc::Receiver<Event>, stop_limit: Option<Duration>) -> Option<Event> {
    let Some(limit) = stop_limit else { return inbox.recv().ok() };
    match inbox.recv_timeout(limit) {
        Ok(event) => Some(event),
        Err(mpsc::RecvTimeoutError::Disconnected) => None,
        Err(mpsc::RecvTimeoutError::Timeout) => {
            // Not by the log, which may be what everybody waits for.
            eprintln!("tenon: the host did not stop within {limit:?}, leaving it as it is");
            at_once(FAILURE)
        }
    }
}

fn request_stop(control: &ReactorRef) {
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
    if control.send(|| with_app(|app| app.stop())).is_err() {
        at_once(FAILURE);
    }
}

fn announce(ready: &Ready, begin: Instant) {
    info!("host ready startup_ms={} bdevs={}", begin.elapsed().as_millis(), ready.bdevs.len());
    println!("tenon: ready in {} ms", begin.elapsed().as_millis());
    println!("  control socket  {}", ready.socket.display());
    println!("                  tenon status --rpc-socket {}", ready.socket.display());
    if let Some(address) = &ready.metrics {
        println!("  metrics         http://{address}/metrics");
    }
    match ready.bdevs.as_slice() {
        [] if !ready.waiting.is_empty() => {}
        [] => println!(
            "  devices         none yet; create one: tenon rpc bdev_malloc_create '{{\"name\": \"m0\", \"num_blocks\": 131072, \"block_size\": 512}}'"
        ),
        names => println!("  devices         {}", names.join(" ")),
    }
    if !ready.waiting.is_empty() {
        println!("  waiting         {}; see tenon status", ready.waiting.join(" "));
    }
    for (index, line) in ready.exports.iter().enumerate() {
        println!("  {:<15} {line}", if index == 0 { "on a host" } else { "" });
    }
    if ready.failures > 0 {
        println!("  {} configuration entries failed; see the log", ready.failures);
    }
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
}

fn watch_signals(events: mpsc::Sender<Event>) -> anyhow::Result<()> {
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP]).context("cannot watch signals")?;
    std::thread::Builder::new()
        .name("tenon-signals".to_owned())
        .spawn(move || {
            for signal in &mut signals {
                if events.send(Event::Signal(signal)).is_err() {
                    return;
                }
            }
        })
        .context("cannot start the signal thread")?;
    Ok(())
}

/// The log level a configuration asks for.
pub fn level(config: &Config, default: LevelFilter) -> LevelFilter {
    match config.host.log_level {
        None => default,
        Some(LogLevel::Error) => LevelFilter::Error,
        Some(LogLevel::Warn) => LevelFilter::Warn,
        Some(LogLevel::Info) => LevelFilter::Info,
        Some(LogLevel::Debug) => LevelFilter::Debug,
        Some(LogLevel::Trace) => LevelFilter::Trace,
    }
}

struct Start {
    config: Config,
    drain: Duration,
    config_file: Option<PathBuf>,
    catalog: Catalog,
    socket: PathBuf,
    events: mpsc::Sender<Event>,
}

/// On the control reactor: composes the host, opens its doors, then applies the configuration.
fn start_app(start: Start) -> Result<(), Exit> {
    let Start { config, drain, config_file, catalog, socket, events } = start;
    info!("host starting pid={} version={}", std::process::id(), env!("CARGO_PKG_VERSION"));
    for error in catalog.rejected() {
        warn!("plugin is not offered error={error}");
    }
    let control = host::compose(&config, catalog, Rc::new(logs::handle(module_names)), Rc::new(Process));
    let server =
        Server::open(&socket, Rc::new(control.clone())).map_err(|error| Exit::new(CONFIG, chain(&error)))?;
    let metrics = match &config.metrics.listen {
        None => None,
        Some(address) => {
            Some(Endpoint::open(address, control.clone()).map_err(|error| Exit::new(CONFIG, chain(&error)))?)
        }
    };
    if config.plugins.watch.unwrap_or(true)
        && let Err(error) = control.core().modules().watch()
    {
        warn!("plugin directories are not watched error={error}");
    }
    let app = Rc::new(App {
        control: control.clone(),
        config_file,
        drain,
        events,
        server: RefCell::new(Some(server)),
        metrics: RefCell::new(metrics),
        is_stopping: Cell::new(false),
    });
    APP.set(Some(app.clone()));
    control.engine().start(config, move |report| app.started(&report));
    Ok(())
}

/// An error with all its causes in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {}", chain(source)),
        None => error.to_string(),
    }
}

fn module_names() -> Vec<String> {
    let names = |app: &App| {
        app.control.core().modules().all().iter().map(|module| module.name().to_owned()).collect()
    };
    APP.with_borrow(|app| app.as_deref().map(names).unwrap_or_default())
}

fn with_app(then: impl FnOnce(&Rc<App>)) {
    if let Some(app) = APP.with_borrow(Clone::clone) {
        then(&app);
    }
}

/// What the control plane may ask of the process.
struct Process;

impl ProcessControl for Process {
    fn stop(&self, how: Stop) {
        with_app(|app| {
            let event = match how {
                Stop::Gracefully => Event::Signal(SIGTERM),
                Stop::AtOnce => Event::StopAtOnce,
            };
            let _ = app.events.send(event);
        });
    }

    fn reload(&self, done: Box<dyn FnOnce(Result<(), Vec<String>>)>) {
        match APP.with_borrow(Clone::clone) {
            Some(app) => app.reload(done),
            None => done(Err(vec!["the host is stopping".to_owned()])),
        }
    }
}

impl App {
    fn started(&self, report: &Report) {
        // The process ends with what is required on its lips.
        for failure in report.failures.iter().filter(|line| !report.required.contains(line)) {
            error!("{failure}");
        }
        let result = if report.required.is_empty() {
            Ok(self.ready(report.failures.len()))
        } else {
            Err(Exit::new(UNAVAILABLE, format!("required: {}", report.required.join("; "))))
        };
        self.control.set_ready();
        let _ = self.events.send(Event::Started(result));
    }

    fn ready(&self, failures: usize) -> Ready {
        let address = self.metrics.borrow().as_ref().and_then(Endpoint::address);
        let socket = self.server.borrow().as_ref().map(|server| server.path().to_owned());
        Ready {
            socket: socket.unwrap_or_default(),
            metrics: address.map(|address| address.to_string()),
            bdevs: self.control.core().bdev_names(),
            waiting: self.control.engine().waiting().into_iter().map(|waiting| waiting.name).collect(),
            exports: exports::lines(&self.control.target().subsystems()),
            failures,
        }
    }

    /// Reads the file again and applies the difference.
    fn reload(self: &Rc<Self>, done: Box<dyn FnOnce(Result<(), Vec<String>>)>) {
        let Some(file) = self.config_file.clone() else {
            warn!("nothing to reload: the host was started without a configuration file");
            done(Err(vec!["the host was started without a configuration file".to_owned()]));
            return;
        };
        if self.is_stopping.get() {
            done(Err(vec!["the host is stopping".to_owned()]));
            return;
        }
        let app = self.clone();
        let read = move || Config::load(&file).map_err(|error| error.to_string());
        let shared = Rc::new(Cell::new(Some(done)));
        let on_read = shared.clone();
        let offloaded = current().offload(read, move |config: Result<Config, String>| {
            let Some(done) = on_read.take() else { return };
            match config {
                Ok(config) => app.apply(config, done),
                Err(reason) => {
                    error!("configuration not reloaded, the old one stays in force: {reason}");
                    done(Err(vec![reason]));
                }
            }
        });
        if let Err(error) = offloaded
            && let Some(done) = shared.take()
        {
            done(Err(vec![format!("cannot read the configuration: {error}")]));
        }
    }

    fn apply(&self, config: Config, done: Box<dyn FnOnce(Result<(), Vec<String>>)>) {
        use sd_notify::NotifyState;
        // The service manager matches a reload with its request by the time it began.
        let mut began = vec![NotifyState::Reloading];
        began.extend(NotifyState::monotonic_usec_now());
        let _ = sd_notify::notify(&began);
        self.apply_log_level(&config);
        self.control.engine().reload(config, move |report| {
            let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
            for failure in &report.failures {
                error!("{failure}");
            }
            done(if report.failures.is_empty() { Ok(()) } else { Err(report.failures) });
        });
    }

    /// The level follows the file; the rest of the process's own tables is read once.
    fn apply_log_level(&self, new: &Config) {
        let mut old = self.control.engine().current();
        if old.host.log_level != new.host.log_level {
            self.control.logs().set_level(level(new, LevelFilter::Info));
            old.host.log_level = new.host.log_level;
        }
        if old.host != new.host || old.plugins != new.plugins || old.metrics != new.metrics {
            warn!("what changed in [host], [plugins] and [metrics] takes effect at the next start");
        }
    }

    /// Drains everything; the socket closes when nothing is left to say.
    fn stop(self: &Rc<Self>) {
        if self.is_stopping.replace(true) {
            return;
        }
        info!("host stopping bdevs={}", self.control.core().bdev_count());
        let app = self.clone();
        host::shut_down(&self.control, self.drain, move |report| {
            if let Some(holder) = app.control.core().modules().blocked_open() {
                warn!(
                    "a plugin never finished loading, leaving without exit handlers file={}",
                    holder.display()
                );
                skip_exit_handlers();
            }
            app.server.borrow_mut().take();
            app.metrics.borrow_mut().take();
            let _ = app.events.send(Event::Stopped(report));
            APP.take();
        });
    }
}
