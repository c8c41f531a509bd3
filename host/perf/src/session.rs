//! A running load as the control reactor sees it: opens the devices, starts a
//! worker per (reactor, device), leaves a device that goes, and collects.
//!
//! Workers and session meet in [`Link`]: a command one way, progress and the
//! outcome the other. A descriptor is closed as soon as all its workers have
//! put their channels, so that a removal never waits for the rest of the load.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tenon_abi::{BdevEventKind, BdevFlags, IoFlags, Op};
use tenon_bdev::{BdevSnapshot, Core, Descriptor, Event, OpError};
use tenon_reactor::{ReactorRef, SendError, current};

use crate::ledger::{Geometry, Ledger, StateError};
use crate::random::mix;
use crate::report::{BdevReport, Faults, Report};
use crate::request::{Kind, Part};
use crate::stage::Passes;
use crate::tally::Tally;
use crate::worker::{Order, launch};
use crate::workload::{Workload, WorkloadError};

/// What to put where.
#[derive(Clone)]
pub struct Plan {
    /// Devices, by name, alias or UUID.
    pub bdevs: Vec<String>,
    /// Data reactors to run on; none: all.
    pub reactors: Vec<ReactorRef>,
    /// What each device gets.
    pub workload: Workload,
}

/// Why a load was not started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The workload makes no sense.
    #[error(transparent)]
    Workload(#[from] WorkloadError),
    /// A device cannot be opened.
    #[error("bdev {0}")]
    Open(#[source] OpError),
    /// There is nothing to work on.
    #[error("no bdev to put load on")]
    NoBdev,
    /// There is nobody to work.
    #[error("no data reactor to run on")]
    NoReactor,
    /// The device cannot do what is asked.
    #[error("bdev {bdev}: does not support {what}")]
    Unsupported {
        /// The device.
        bdev: String,
        /// What it cannot do.
        what: &'static str,
    },
    /// I/Os of this size cannot be cut from the device's blocks.
    #[error("bdev {bdev}: block size {bytes} is no multiple of its blocks of {block_size} bytes")]
    BlockSize {
        /// The device.
        bdev: String,
        /// As asked for.
        bytes: u64,
        /// The device's.
        block_size: u32,
    },
    /// The device is smaller than what is asked of it.
    #[error("bdev {bdev}: {bytes} bytes are too few for {workers} reactors with I/Os of {block_bytes}")]
    TooSmall {
        /// The device.
        bdev: String,
        /// Its size.
        bytes: u64,
        /// Reactors that need a part of it.
        workers: u64,
        /// Bytes of an I/O.
        block_bytes: u64,
    },
    /// The state file is of no use.
    #[error(transparent)]
    State(#[from] StateError),
}

/// A load that runs. Dropping it changes nothing: the load ends by itself, or when its devices go.
#[derive(Clone)]
pub struct Running(Weak<Session>);

/// Looks at a running load from any thread.
#[derive(Clone)]
pub struct Monitor(Vec<Arc<Link>>);

/// How far a load is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// I/Os completed.
    pub ios: u64,
    /// Bytes read and written.
    pub bytes: u64,
}

/// What the session tells a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Command {
    Run,
    Stop,
    Removed,
    /// Report at once, whatever is in flight.
    Abandon,
}

/// What a worker and its session share.
pub(crate) struct Link {
    session: u64,
    bdev: Arc<str>,
    reactor: ReactorRef,
    control: ReactorRef,
    command: AtomicU8,
    pub ios: AtomicU64,
    pub bytes: AtomicU64,
    /// Completions of whatever result, modulo 2^32, and I/Os in flight.
    completions: AtomicU32,
    in_flight: AtomicU32,
    is_removed: AtomicBool,
    outcome: Mutex<Option<Outcome>>,
}

/// What a worker reports at its end.
pub(crate) struct Outcome {
    pub tallies: [Tally; Kind::COUNT],
    pub faults: Faults,
    pub begin_ns: u64,
    pub end_ns: u64,
    pub failure: Option<String>,
    /// I/Os that had not come back.
    pub outstanding: u32,
}

/// What a worker has in flight; see [`Monitor::in_flight`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InFlight {
    /// The device.
    pub bdev: String,
    /// Changes with every completion.
    pub completions: u32,
    /// I/Os that have not come back.
    pub outstanding: u32,
}

/// Gets the report.
type Done = Box<dyn FnOnce(Report)>;

struct Session {
    id: u64,
    workload: Arc<Workload>,
    devices: RefCell<Vec<Device>>,
    links: Vec<Arc<Link>>,
    done: RefCell<Option<Done>>,
}

/// A device of a session.
struct Device {
    links: Vec<Arc<Link>>,
    /// Until all its workers have reported.
    descriptor: Option<Descriptor>,
}

/// A device that is open and found fit.
struct Opened {
    snapshot: BdevSnapshot,
    descriptor: Descriptor,
    links: Vec<Arc<Link>>,
    ledger: Option<Arc<Ledger>>,
    geometry: Geometry,
}

thread_local! {
    /// Sessions of the control reactor of this thread.
    static SESSIONS: RefCell<BTreeMap<u64, Rc<Session>>> = const { RefCell::new(BTreeMap::new()) };
}

static NEXT_SESSION: AtomicU64 = AtomicU64::new(1);

/// Starts a load; control reactor only. `done` gets the report when every worker has ended, never from inside this
/// call.
///
/// # Errors
/// If a device cannot be opened or cannot do what is asked; then nothing was started.
pub fn start(core: &Core, plan: &Plan, done: impl FnOnce(Report) + 'static) -> Result<Running, StartError> {
    plan.workload.check()?;
    let local = current();
    let reactors =
        if plan.reactors.is_empty() { local.directory().data().to_vec() } else { plan.reactors.clone() };
    if reactors.is_empty() {
        return Err(StartError::NoReactor);
    }
    if plan.bdevs.is_empty() {
        return Err(StartError::NoBdev);
    }
    let id = NEXT_SESSION.fetch_add(1, Ordering::Relaxed);
    let mut opened = Vec::new();
    for name in &plan.bdevs {
        opened.push(open(core, plan, id, name, &reactors)?);
    }
    let workload = Arc::new(plan.workload.clone());
    let mut orders = Vec::new();
    for (index, device) in opened.iter().enumerate() {
        orders.extend(orders_of(device, index, &workload));
    }
    let devices = opened
        .into_iter()
        .map(|device| Device { links: device.links, descriptor: Some(device.descriptor) })
        .collect::<Vec<_>>();
    let session = Rc::new(Session {
        id,
        workload,
        links: devices.iter().flat_map(|device| device.links.iter().cloned()).collect(),
        devices: RefCell::new(devices),
        done: RefCell::new(Some(Box::new(done))),
    });
    SESSIONS.with_borrow_mut(|sessions| sessions.insert(id, session.clone()));
    for order in orders {
        let link = order.link.clone();
        if let Err(error) = link.reactor.clone().send(move || launch(order)) {
            link.finish(Outcome::failed(error.to_string()));
        }
    }
    Ok(Running(Rc::downgrade(&session)))
}

/// Opens a device and finds out whether it can take the workload.
fn open(
    core: &Core,
    plan: &Plan,
    session: u64,
    name: &str,
    reactors: &[ReactorRef],
) -> Result<Opened, StartError> {
    let control = current().reactor();
    let title: Arc<str> = core.bdev(name).map_or_else(|| name.into(), |snapshot| snapshot.name.into());
    let links: Vec<Arc<Link>> = reactors
        .iter()
        .map(|reactor| Arc::new(Link::new(session, title.clone(), reactor.clone(), control.clone())))
        .collect();
    let told = links.clone();
    let on_event = move |event: &Event| {
        if event.kind == BdevEventKind::REMOVE {
            told.iter().for_each(|link| link.order(Command::Removed));
        }
    };
    let workload = &plan.workload;
    let descriptor = core.open(name, OWNER, workload.writes(), on_event).map_err(StartError::Open)?;
    let gone = || StartError::Open(OpError::new(tenon_abi::errno::ENODEV, name, "device is gone"));
    let snapshot = descriptor.snapshot().ok_or_else(gone)?;
    check_support(&snapshot, workload)?;
    let geometry = geometry_of(&snapshot, workload, reactors.len() as u64)?;
    let ledger = ledger_of(plan, &snapshot.name, geometry)?;
    Ok(Opened { snapshot, descriptor, links, ledger, geometry })
}

fn check_support(snapshot: &BdevSnapshot, workload: &Workload) -> Result<(), StartError> {
    let writes = workload.writes();
    let wanted = [
        (workload.read_percent > 0 || workload.verify, Op::READ, "reads"),
        (writes && (workload.read_percent < 100 || workload.fill), Op::WRITE, "writes"),
        (writes && workload.unmap_percent > 0, Op::UNMAP, "unmap"),
        (writes && workload.flush_every > 0, Op::FLUSH, "flush"),
    ];
    let unsupported = |what| StartError::Unsupported { bdev: snapshot.name.clone(), what };
    for (is_wanted, op, what) in wanted {
        if is_wanted && !snapshot.supports(op) {
            return Err(unsupported(what));
        }
    }
    if workload.lend && snapshot.io_flags & u64::from(IoFlags::LEND.0) == 0 {
        return Err(unsupported("lending memory to reads"));
    }
    if snapshot.limits.md_size > 0 && snapshot.flags.contains(BdevFlags::METADATA_INTERLEAVED) {
        return Err(unsupported("I/O without metadata between its blocks"));
    }
    Ok(())
}

fn geometry_of(snapshot: &BdevSnapshot, workload: &Workload, workers: u64) -> Result<Geometry, StartError> {
    let (bdev, block_size) = (snapshot.name.clone(), snapshot.limits.block_size);
    let block_bytes = workload.block_bytes;
    if block_size == 0 || !block_bytes.is_multiple_of(u64::from(block_size)) {
        return Err(StartError::BlockSize { bdev, bytes: block_bytes, block_size });
    }
    let blocks_per_chunk = block_bytes / u64::from(block_size);
    let chunks = snapshot.limits.num_blocks / blocks_per_chunk;
    if chunks < workers {
        let bytes = snapshot.limits.num_blocks.saturating_mul(u64::from(block_size));
        return Err(StartError::TooSmall { bdev, bytes, workers, block_bytes });
    }
    Ok(Geometry { block_size, chunk_bytes: block_bytes, chunks })
}

fn ledger_of(plan: &Plan, bdev: &str, geometry: Geometry) -> Result<Option<Arc<Ledger>>, StartError> {
    let workload = &plan.workload;
    if !workload.verify {
        return Ok(None);
    }
    let salt = mix(workload.seed);
    let Some(file) = &workload.state_file else {
        return Ok(Some(Arc::new(Ledger::in_memory(geometry, salt)?)));
    };
    let file = if plan.bdevs.len() == 1 {
        file.clone()
    } else {
        PathBuf::from(format!("{}.{bdev}", file.display()))
    };
    if workload.check_only && !file.exists() {
        return Err(StateError::Missing(file.display().to_string()).into());
    }
    Ok(Some(Arc::new(Ledger::in_file(&file, geometry, salt)?)))
}

fn orders_of(device: &Opened, index: usize, workload: &Arc<Workload>) -> Vec<Order> {
    let (chunks, workers) = (device.geometry.chunks, device.links.len() as u64);
    let passes = Passes {
        checks: device.ledger.as_ref().is_some_and(|ledger| ledger.is_loaded()),
        fills: workload.fill && !workload.check_only,
        loads: !workload.check_only,
        rechecks: workload.verify && !workload.check_only,
    };
    let order = |(worker, link): (usize, &Arc<Link>)| {
        let begin = |worker: u64| (u128::from(chunks) * u128::from(worker) / u128::from(workers)) as u64;
        let (first, next) = (begin(worker as u64), begin(worker as u64 + 1));
        // Parts keep what must be found from being in doubt; without verification each has the whole device.
        let is_apart = device.ledger.is_some() || workload.fill;
        let part = if is_apart {
            Part { first, chunks: next - first, start: 0 }
        } else {
            Part { first: 0, chunks, start: first }
        };
        Order {
            workload: workload.clone(),
            desc: device.descriptor.handle(),
            link: link.clone(),
            part,
            workers,
            seed: mix(workload.seed ^ mix((index as u64) << 32 | worker as u64)),
            blocks_per_chunk: workload.block_bytes / u64::from(device.geometry.block_size),
            block_size: device.geometry.block_size,
            ledger: device.ledger.clone(),
            unmap_reads_zeroes: device.snapshot.flags.contains(BdevFlags::UNMAP_READS_ZEROES),
            passes,
        }
    };
    device.links.iter().enumerate().map(order).collect()
}

/// Some worker has reported: closes devices that are done with, and ends the session after the last.
fn collect(id: u64) {
    let Some(session) = SESSIONS.with_borrow(|sessions| sessions.get(&id).cloned()) else { return };
    let mut closed = Vec::new();
    for device in session.devices.borrow_mut().iter_mut() {
        if device.links.iter().all(|link| link.outcome.lock().is_some()) {
            let is_held = device.links.iter().any(|link| link.outstanding() > 0);
            match device.descriptor.take() {
                // Its channels cannot be given back, so it cannot be closed.
                Some(descriptor) if is_held => std::mem::forget(descriptor),
                descriptor => closed.extend(descriptor),
            }
        }
    }
    drop(closed);
    if session.devices.borrow().iter().any(|device| device.descriptor.is_some()) {
        return;
    }
    SESSIONS.with_borrow_mut(|sessions| sessions.remove(&session.id));
    let report = session.report();
    if let Some(done) = session.done.take() {
        done(report);
    }
}

impl Session {
    fn report(&self) -> Report {
        let devices = self.devices.borrow();
        let bdevs = devices.iter().map(|device| {
            let outcomes = device.links.iter().filter_map(|link| link.outcome.lock().take()).collect();
            let is_removed = device.links.iter().any(|link| link.is_removed.load(Ordering::Relaxed));
            let name = device.links.first().map_or("", |link| link.bdev());
            BdevReport::new(name, outcomes, is_removed, self.workload.block_bytes)
        });
        Report::new(bdevs.collect(), &self.workload)
    }
}

impl Running {
    /// Ends the load as soon as what is in flight is done. Control reactor only.
    pub fn stop(&self) {
        if let Some(session) = self.0.upgrade() {
            session.links.iter().for_each(|link| link.order(Command::Stop));
        }
    }

    /// Whether some of its workers have not reported.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.0.upgrade().is_some_and(|session| session.done.borrow().is_some())
    }

    /// For looking at it from elsewhere.
    #[must_use]
    pub fn monitor(&self) -> Monitor {
        Monitor(self.0.upgrade().map(|session| session.links.clone()).unwrap_or_default())
    }
}

impl Monitor {
    /// How far it is. Any thread.
    #[must_use]
    pub fn progress(&self) -> Progress {
        let sum =
            |of: fn(&Link) -> &AtomicU64| self.0.iter().map(|link| of(link).load(Ordering::Relaxed)).sum();
        Progress { ios: sum(|link| &link.ios), bytes: sum(|link| &link.bytes) }
    }

    /// What is in flight, per device and reactor that has not reported. Any thread.
    #[must_use]
    pub fn in_flight(&self) -> Vec<InFlight> {
        let working = self.0.iter().filter(|link| link.outcome.lock().is_none());
        let in_flight = |link: &Arc<Link>| InFlight {
            bdev: link.bdev().to_owned(),
            completions: link.completions.load(Ordering::Relaxed),
            outstanding: link.in_flight.load(Ordering::Relaxed),
        };
        working.map(in_flight).collect()
    }

    /// Ends the load at once. What is in flight stays so for ever: the process should end soon. Any thread.
    pub fn abandon(&self) {
        self.0.iter().for_each(|link| link.order(Command::Abandon));
    }

    /// Ends the load as soon as what is in flight is done. Any thread.
    pub fn stop(&self) {
        self.0.iter().for_each(|link| link.order(Command::Stop));
    }
}

impl Link {
    fn new(session: u64, bdev: Arc<str>, reactor: ReactorRef, control: ReactorRef) -> Self {
        Link {
            session,
            bdev,
            reactor,
            control,
            command: AtomicU8::new(Command::Run as u8),
            ios: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            completions: AtomicU32::new(0),
            in_flight: AtomicU32::new(0),
            is_removed: AtomicBool::new(false),
            outcome: Mutex::new(None),
        }
    }

    pub(crate) fn bdev(&self) -> &str {
        &self.bdev
    }

    #[inline(always)]
    pub(crate) fn command(&self) -> Command {
        match self.command.load(Ordering::Relaxed) {
            0 => Command::Run,
            1 => Command::Stop,
            2 => Command::Removed,
            _ => Command::Abandon,
        }
    }

    /// What is in flight now, for whoever looks.
    #[inline(always)]
    pub(crate) fn show(&self, completions: u32, in_flight: u32) {
        self.completions.store(completions, Ordering::Relaxed);
        self.in_flight.store(in_flight, Ordering::Relaxed);
    }

    fn outstanding(&self) -> u32 {
        self.outcome.lock().as_ref().map_or(0, |outcome| outcome.outstanding)
    }

    fn order(&self, command: Command) {
        if command == Command::Removed {
            self.is_removed.store(true, Ordering::Relaxed);
        }
        self.command.fetch_max(command as u8, Ordering::Relaxed);
        // A worker that sleeps looks at its command when it is woken; one that is too busy for a message does anyway.
        let _ = self.reactor.send(|| {});
    }

    /// The worker has ended: keeps what it reports and tells the session.
    pub(crate) fn finish(self: &Arc<Self>, outcome: Outcome) {
        *self.outcome.lock() = Some(outcome);
        self.notify();
    }

    fn notify(self: &Arc<Self>) {
        let session = self.session;
        match self.control.send(move || collect(session)) {
            Ok(()) => {}
            Err(SendError::QueueFull) => {
                let link = self.clone();
                let later = current().set_timer(NOTIFY_RETRY, move || link.notify());
                if let Err(error) = later {
                    log::error!("load cannot report bdev={} error={error}", self.bdev);
                }
            }
            Err(error @ SendError::Stopped) => {
                log::debug!("load has nobody to report to bdev={} error={error}", self.bdev);
            }
        }
    }
}

impl Outcome {
    pub(crate) fn failed(reason: String) -> Self {
        Outcome {
            tallies: Default::default(),
            faults: Faults::default(),
            begin_ns: 0,
            end_ns: 0,
            failure: Some(reason),
            outstanding: 0,
        }
    }
}

/// Who has the device open, as operators see it.
const OWNER: &str = "perf";
/// Until the control reactor's queue has room again.
const NOTIFY_RETRY: Duration = Duration::from_millis(1);
