//! The reactors of a process: their threads, from start to end.
//!
//! Starts the control reactor and the data reactors, pins the latter, and ends
//! all of them with a deadline. What is registered on them must have been taken
//! down by its owners before; what is left is released without being called.

use std::fmt;
use std::io;
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::thread::{CpuSet, gettid, sched_getaffinity, sched_setaffinity};

use crate::callback::guarded;
use crate::clock::Clock;
use crate::directory::{Directory, ReactorId, ReactorRef, Shared};
use crate::local::{current, enter};
use crate::message::Message;
use crate::offload::{OffloadPool, Workers};
use crate::reactor::{Core, CoreParts};
use crate::rest::{DEFAULT_SPIN, Mode};
use crate::wake::Waker;
use crate::watchdog::{DEFAULT_THRESHOLD, Watchdog};

/// The cores that data reactors run on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cpus {
    /// So many reactors, on the first cores that the process may use.
    Count(usize),
    /// One reactor on each of these cores.
    List(Vec<u32>),
}

/// How to start reactors.
#[derive(Clone, Debug)]
pub struct ReactorsOptions {
    /// The data reactors. Default: one.
    pub cpus: Cpus,
    /// Whether to pin each to its core. Default: true. One that cannot be pinned runs anyway.
    pub pin: bool,
    /// When data reactors sleep. Default: [`Mode::Adaptive`].
    pub mode: Mode,
    /// How long an adaptive one spins after the last work. Default: [`DEFAULT_SPIN`].
    pub spin: Duration,
    /// How many worker threads there are at most. Default: 4.
    pub offload_threads: usize,
    /// A turn longer than this is reported. Default: 100 ms.
    pub watchdog_threshold: Duration,
}

impl Default for ReactorsOptions {
    fn default() -> Self {
        Self {
            cpus: Cpus::Count(1),
            pin: true,
            mode: Mode::Adaptive,
            spin: DEFAULT_SPIN,
            offload_threads: DEFAULT_OFFLOAD_THREADS,
            watchdog_threshold: DEFAULT_THRESHOLD,
        }
    }
}

/// Why reactors could not be started. None of them runs then.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// More reactors than there may be.
    #[error("{count} data reactors asked for, at most {MAX_DATA_REACTORS} are possible")]
    TooMany {
        /// How many were asked for.
        count: usize,
    },
    /// A thread could not be made.
    #[error("thread of {name} could not be started")]
    Thread {
        /// Which thread.
        name: String,
        /// What the kernel says.
        #[source]
        source: io::Error,
    },
    /// A descriptor that a reactor needs could not be made.
    #[error("{name} could not be set up")]
    Setup {
        /// Which reactor.
        name: String,
        /// What the kernel says.
        #[source]
        source: io::Error,
    },
}

/// Why not all threads have ended.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("still running after the deadline: {}", .threads.join(", "))]
pub struct ShutdownError {
    /// Those that run on; the process can only be ended.
    pub threads: Vec<String>,
}

/// The running reactors of a process.
///
/// Dropping it without [`Reactors::shutdown`] leaves the threads running.
pub struct Reactors {
    directory: Directory,
    threads: Vec<ReactorThread>,
    ended: mpsc::Receiver<ReactorId>,
    workers: Arc<Workers>,
    watchdog: Watchdog,
}

struct ReactorThread {
    reactor: ReactorRef,
    thread: JoinHandle<()>,
}

impl Reactors {
    /// Starts one control reactor and the data reactors, and returns when all of them turn.
    pub fn start(options: ReactorsOptions) -> Result<Self, StartError> {
        let allowed = sched_getaffinity(None).inspect_err(|error| {
            log::warn!("cores of the process are unknown error={error}");
        });
        let allowed = allowed.ok();
        let cpus = assign_cpus(&options, allowed.as_ref());
        if cpus.len() > MAX_DATA_REACTORS {
            return Err(StartError::TooMany { count: cpus.len() });
        }
        let mut shared = Vec::with_capacity(cpus.len() + 1);
        for index in 0..=cpus.len() {
            let id = if index == 0 { ReactorId::CONTROL } else { ReactorId::data(index - 1) };
            let waker = Waker::new().map_err(|source| StartError::Setup { name: id.to_string(), source })?;
            shared.push(Shared::new(id, Some(waker)));
        }
        let directory = Directory::new(shared);
        let workers = Workers::new(options.offload_threads, allowed);
        let (ended_sender, ended) = mpsc::channel();
        let watchdog = Watchdog::start(directory.clone(), options.watchdog_threshold, allowed)
            .map_err(|source| StartError::Thread { name: "watchdog".to_owned(), source })?;
        let mut reactors = Self { directory, threads: Vec::new(), ended, workers, watchdog };
        for index in 0..reactors.directory.all().len() {
            let cpu = index.checked_sub(1).and_then(|data| cpus[data]);
            if let Err(error) = reactors.start_thread(index, cpu, &options, ended_sender.clone()) {
                if let Err(left) = reactors.shutdown(START_FAILURE_DEADLINE) {
                    log::error!("threads left after a failed start error={left}");
                }
                return Err(error);
            }
        }
        Ok(reactors)
    }

    /// All reactors.
    pub fn directory(&self) -> &Directory {
        &self.directory
    }

    /// The control reactor.
    pub fn control(&self) -> &ReactorRef {
        self.directory.control()
    }

    /// The data reactors, by number.
    pub fn data(&self) -> &[ReactorRef] {
        self.directory.data()
    }

    /// Stops data reactors, then control, then workers, and waits for all until `deadline` has
    /// passed. Messages sent before are run; what is registered is released. One that is stuck
    /// does not cost the others their chance: each kind gets at least [`SHUTDOWN_GRACE`].
    pub fn shutdown(mut self, deadline: Duration) -> Result<(), ShutdownError> {
        let deadline = Instant::now() + deadline;
        let mut threads = std::mem::take(&mut self.threads);
        let data = threads.split_off(threads.len().min(1));
        let mut running = self.stop(data, deadline);
        running.extend(self.stop(threads, deadline));
        if !self.workers.stop(deadline.max(Instant::now() + SHUTDOWN_GRACE)) {
            running.push("offload workers".to_owned());
        }
        self.watchdog.stop();
        if running.is_empty() { Ok(()) } else { Err(ShutdownError { threads: running }) }
    }

    /// Stops these reactors; returns the names of those that have not ended at `deadline`.
    fn stop(&self, threads: Vec<ReactorThread>, deadline: Instant) -> Vec<String> {
        let deadline = deadline.max(Instant::now() + SHUTDOWN_GRACE);
        for thread in &threads {
            let mut stop = Message::once(|| current().core().request_stop());
            // A full queue drains unless the reactor is stuck; then the deadline ends this.
            while let Err((error, refused)) = thread.reactor.send_message(stop) {
                if error == crate::SendError::Stopped || Instant::now() >= deadline {
                    break;
                }
                stop = refused;
                std::thread::sleep(RETRY_INTERVAL);
            }
        }
        let mut waiting: Vec<_> = threads.into_iter().map(Some).collect();
        while waiting.iter().any(Option::is_some) {
            let left = deadline.saturating_duration_since(Instant::now());
            let Ok(ended) = self.ended.recv_timeout(left) else { break };
            for slot in &mut waiting {
                if let Some(thread) = slot.take_if(|thread| thread.reactor.id() == ended) {
                    // A reactor does not unwind: a panicking callback aborts the process.
                    let _ = thread.thread.join();
                }
            }
        }
        waiting.into_iter().flatten().map(|thread| thread.reactor.name().to_owned()).collect()
    }

    fn start_thread(
        &mut self,
        index: usize,
        cpu: Option<u32>,
        options: &ReactorsOptions,
        ended: mpsc::Sender<ReactorId>,
    ) -> Result<(), StartError> {
        let reactor = self.directory.all()[index].clone();
        let spec = ThreadSpec {
            shared: Arc::clone(reactor.shared()),
            directory: self.directory.clone(),
            workers: Arc::clone(&self.workers),
            mode: if reactor.is_control() { Mode::Sleep } else { options.mode },
            spin: options.spin,
            watchdog_threshold: options.watchdog_threshold,
            cpu,
        };
        let thread_name = match reactor.id().data_index() {
            None => "tenon-ctl".to_owned(),
            Some(n) => format!("tenon-r{n}"),
        };
        let (ready_sender, ready) = mpsc::sync_channel(1);
        let thread = std::thread::Builder::new()
            .name(thread_name)
            .spawn(move || run_thread(spec, &ready_sender, &ended))
            .map_err(|source| StartError::Thread { name: reactor.name().to_owned(), source })?;
        let setup = ready.recv().unwrap_or_else(|_| Err(io::Error::other("thread ended early")));
        match setup {
            Ok(()) => {
                self.threads.push(ReactorThread { reactor, thread });
                Ok(())
            }
            Err(source) => Err(StartError::Setup { name: reactor.name().to_owned(), source }),
        }
    }
}

impl fmt::Debug for Reactors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reactors").field("directory", &self.directory).finish_non_exhaustive()
    }
}

/// What a new thread needs to become a reactor.
struct ThreadSpec {
    shared: Arc<Shared>,
    directory: Directory,
    workers: Arc<Workers>,
    mode: Mode,
    spin: Duration,
    watchdog_threshold: Duration,
    cpu: Option<u32>,
}

fn run_thread(spec: ThreadSpec, ready: &mpsc::SyncSender<io::Result<()>>, ended: &mpsc::Sender<ReactorId>) {
    let shared = Arc::clone(&spec.shared);
    set_up_thread(&spec);
    let core = Core::new(CoreParts {
        shared: spec.shared,
        directory: spec.directory,
        clock: Clock::real(),
        mode: spec.mode,
        spin: spec.spin,
        offload: OffloadPool::Threads(spec.workers),
        watchdog_threshold: spec.watchdog_threshold,
    });
    let core = match core {
        Ok(core) => core,
        Err(error) => {
            let _ = ready.send(Err(error));
            return;
        }
    };
    let entered = enter(&core);
    // The receiver waits in `start_thread`.
    let _ = ready.send(Ok(()));
    // A panic outside any callback is as fatal as one inside: nobody would answer for the reactor.
    guarded(|| {
        core.run();
        core.finish(true);
    });
    drop(entered);
    // Nobody listens when `Reactors` was dropped.
    let _ = ended.send(shared.id);
}

/// Pins the thread and makes its sleeps precise; a thread without either works, only less well.
fn set_up_thread(spec: &ThreadSpec) {
    let published = &spec.shared.published;
    let relaxed = std::sync::atomic::Ordering::Relaxed;
    published.thread_id.store(gettid().as_raw_nonzero().get() as u32, relaxed);
    // The kernel's default is to be up to 50 us late.
    if let Err(error) = rustix::thread::set_current_timer_slack(Some(TIMER_SLACK_NS)) {
        log::warn!("timer slack not set reactor={} error={error}", spec.shared.name);
    }
    let Some(cpu) = spec.cpu else { return };
    let mut set = CpuSet::new();
    let pinned = if (cpu as usize) < CpuSet::MAX_CPU {
        set.set(cpu as usize);
        sched_setaffinity(None, &set)
    } else {
        Err(rustix::io::Errno::INVAL)
    };
    match pinned {
        Ok(()) => published.cpu_plus_one.store(cpu + 1, relaxed),
        Err(error) => {
            log::warn!("reactor is not pinned reactor={} cpu={cpu} error={error}", spec.shared.name);
        }
    }
}

/// For every data reactor the core to pin it to, if it is to be pinned.
fn assign_cpus(options: &ReactorsOptions, allowed: Option<&CpuSet>) -> Vec<Option<u32>> {
    match &options.cpus {
        Cpus::List(list) => list.iter().map(|&cpu| options.pin.then_some(cpu)).collect(),
        Cpus::Count(count) => {
            let usable: Vec<u32> = allowed.map_or_else(Vec::new, |set| {
                (0..CpuSet::MAX_CPU).filter(|&cpu| set.is_set(cpu)).map(|cpu| cpu as u32).collect()
            });
            let can_pin = options.pin && *count <= usable.len();
            if options.pin && !can_pin {
                // Two spinning reactors pinned to one core would only take turns.
                log::warn!("reactors are not pinned count={count} cores={}", usable.len());
            }
            (0..*count).map(|n| can_pin.then(|| usable[n])).collect()
        }
    }
}

/// What [`Reactors::shutdown`] waits at least for each kind of thread.
pub const SHUTDOWN_GRACE: Duration = Duration::from_millis(100);
/// How many data reactors a process may have.
pub const MAX_DATA_REACTORS: usize = 255;
const DEFAULT_OFFLOAD_THREADS: usize = 4;
const TIMER_SLACK_NS: std::num::NonZeroU64 = std::num::NonZeroU64::MIN;
const RETRY_INTERVAL: Duration = Duration::from_millis(1);
const START_FAILURE_DEADLINE: Duration = Duration::from_secs(5);
