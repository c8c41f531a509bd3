//! The part of a fake host that any thread may touch: clock, log, recorded
//! violations, metrics, and the inbox through which other threads reach the
//! one thread that owns everything else.
// UNSAFETY: reads borrowed texts and records that a module passes by pointer.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::ffi::c_void;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Instant;

use tenon_abi::{HostReactor, LogRecord, MessageFn, MetricDesc, Str, errno};

use super::memory::Memory;
use super::module::ModuleId;
use super::world;
use crate::violation::{Fault, Violation};

/// One captured log line.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LogLine {
    /// 1 error, 2 warn, 3 info, 4 debug, 5 trace.
    pub level: u32,
    /// Module path that logged.
    pub target: String,
    /// The message.
    pub message: String,
}

/// What another thread asks the owner thread to do.
pub(crate) enum Injected {
    Message { reactor: usize, callback: MessageFn, arg: usize, module: ModuleId },
    WorkDone { reactor: usize, done: MessageFn, arg: usize, module: ModuleId },
    ForeignCompletion { flight: usize },
}

pub(crate) struct Metric {
    pub(crate) module: String,
    pub(crate) name: String,
    pub(crate) cell: &'static AtomicU64,
}

/// The address behind a `*mut HostReactor`; never freed, so that a stale pointer cannot dangle.
pub(crate) struct ReactorFace {
    pub(crate) shared: Weak<Shared>,
    pub(crate) index: usize,
}

pub(crate) struct Shared {
    started: Option<Instant>,
    virtual_ns: AtomicU64,
    pub(crate) logs: Mutex<Vec<LogLine>>,
    violations: Mutex<Vec<Violation>>,
    pub(crate) injected: Mutex<VecDeque<Injected>>,
    pub(crate) memory: Mutex<Memory>,
    pub(crate) metrics: Mutex<Vec<Metric>>,
    pub(crate) offers: Mutex<Vec<(String, u32, usize)>>,
    pub(crate) names: Mutex<Vec<(usize, ModuleId, String)>>,
    reactors: OnceLock<Vec<&'static ReactorFace>>,
}

/// The identity of a thread that works for a module but is not a reactor.
#[derive(Clone)]
pub(crate) struct Foreign {
    pub(crate) shared: Arc<Shared>,
    pub(crate) module: ModuleId,
}

thread_local! {
    static FOREIGN: RefCell<Option<Foreign>> = const { RefCell::new(None) };
}
static LATEST: Mutex<Weak<Shared>> = Mutex::new(Weak::new());
static FACES: Mutex<Vec<&'static ReactorFace>> = Mutex::new(Vec::new());

/// A lock whose poison is of no interest: a panicking test has reported itself.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    pub(crate) fn new(reactors: usize, real_io: bool) -> Arc<Shared> {
        let shared = Arc::new(Shared {
            started: real_io.then(Instant::now),
            virtual_ns: AtomicU64::new(FIRST_NS),
            logs: Mutex::new(Vec::new()),
            violations: Mutex::new(Vec::new()),
            injected: Mutex::new(VecDeque::new()),
            memory: Mutex::new(Memory::default()),
            metrics: Mutex::new(Vec::new()),
            offers: Mutex::new(Vec::new()),
            names: Mutex::new(vec![(0, ModuleId::HOST, "testkit".to_owned())]),
            reactors: OnceLock::new(),
        });
        let faces: Vec<&'static ReactorFace> = (0..reactors)
            .map(|index| &*Box::leak(Box::new(ReactorFace { shared: Arc::downgrade(&shared), index })))
            .collect();
        lock(&FACES).extend(faces.iter().copied());
        let _ = shared.reactors.set(faces);
        *lock(&LATEST) = Arc::downgrade(&shared);
        shared
    }

    pub(crate) fn is_real(&self) -> bool {
        self.started.is_some()
    }

    pub(crate) fn now_ns(&self) -> u64 {
        match self.started {
            Some(started) => {
                FIRST_NS + u64::try_from(started.elapsed().as_nanos()).unwrap_or(u64::MAX - FIRST_NS)
            }
            None => self.virtual_ns.load(Ordering::Relaxed),
        }
    }

    /// Moves the virtual clock; real time moves by itself.
    pub(crate) fn set_now_ns(&self, now_ns: u64) {
        self.virtual_ns.fetch_max(now_ns, Ordering::Relaxed);
    }

    pub(crate) fn reactor(&self, index: usize) -> *mut HostReactor {
        let face = self.reactors.get().and_then(|all| all.get(index));
        face.map_or(std::ptr::null_mut(), |face| std::ptr::from_ref(*face).cast_mut().cast())
    }

    pub(crate) fn reactor_count(&self) -> usize {
        self.reactors.get().map_or(0, Vec::len)
    }

    pub(crate) fn module_name(&self, module: ModuleId) -> String {
        let names = lock(&self.names);
        names.iter().find(|(_, id, _)| *id == module).map_or_else(String::new, |(_, _, name)| name.clone())
    }

    pub(crate) fn violate(&self, fault: Fault, module: ModuleId, detail: impl Into<String>) {
        let violation = Violation {
            fault,
            module: self.module_name(module),
            detail: detail.into(),
            at_ns: self.now_ns(),
        };
        let mut all = lock(&self.violations);
        if all.len() < MAX_VIOLATIONS {
            all.push(violation);
        }
    }

    pub(crate) fn violations(&self) -> Vec<Violation> {
        lock(&self.violations).clone()
    }

    pub(crate) fn take_violations(&self) -> Vec<Violation> {
        std::mem::take(&mut *lock(&self.violations))
    }

    pub(crate) fn inject(&self, what: Injected) -> i32 {
        let mut inbox = lock(&self.injected);
        if inbox.len() >= MAX_INJECTED {
            return errno::EAGAIN;
        }
        inbox.push_back(what);
        0
    }

    /// # Safety
    /// `record` is null or points to a record whose texts are readable for this call.
    pub(crate) unsafe fn log(&self, record: *const LogRecord) {
        // SAFETY: the caller promises a readable record or null.
        let Some(record) = (unsafe { record.as_ref() }) else { return };
        // SAFETY: the caller promises readable texts.
        let (target, message) = unsafe { (text(record.target), text(record.message)) };
        let mut logs = lock(&self.logs);
        if logs.len() < MAX_LOG_LINES {
            logs.push(LogLine {
                level: record.level,
                target: target.unwrap_or_default(),
                message: message.unwrap_or_default(),
            });
        }
    }

    /// # Safety
    /// `desc` is null or readable with its texts; `out` is null or writable.
    pub(crate) unsafe fn metric_register(
        &self,
        me: usize,
        desc: *const MetricDesc,
        out: *mut *mut u64,
    ) -> i32 {
        let module = lock(&self.names).iter().find(|(face, _, _)| *face == me).map(|found| found.1);
        // SAFETY: the caller promises a readable descriptor or null.
        let (Some(module), Some(desc)) = (module, unsafe { desc.as_ref() }) else { return errno::EINVAL };
        // SAFETY: the caller promises readable texts.
        let (name, help) = unsafe { (text(desc.name), text(desc.help)) };
        let (Some(name), Some(help)) = (name, help) else { return errno::EINVAL };
        let legal = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        if out.is_null() || name.is_empty() || help.is_empty() || !name.chars().all(legal) {
            self.violate(
                Fault::BadCall,
                module,
                format!("metric `{name}` needs a name of a-z 0-9 _ and a help text"),
            );
            return errno::EINVAL;
        }
        let cell = cell_for_ever();
        lock(&self.metrics).push(Metric { module: self.module_name(module), name, cell });
        // SAFETY: `out` is not null and the caller promises that it is writable.
        unsafe { *out = cell.as_ptr() };
        0
    }
}

/// A metric's cell, which outlives every host: a module may keep it. It stays in a list, so that nobody takes it for a leak.
fn cell_for_ever() -> &'static AtomicU64 {
    static CELLS: Mutex<Vec<&'static AtomicU64>> = Mutex::new(Vec::new());
    let cell = Box::leak(Box::new(AtomicU64::new(0)));
    lock(&CELLS).push(cell);
    cell
}

/// Marks the calling thread as working for a module while `f` runs.
pub(crate) fn as_foreign<R>(foreign: Foreign, f: impl FnOnce() -> R) -> R {
    struct Restore(Option<Foreign>);
    impl Drop for Restore {
        fn drop(&mut self) {
            FOREIGN.set(self.0.take());
        }
    }
    let _restore = Restore(FOREIGN.replace(Some(foreign)));
    f()
}

/// The module the calling non-reactor thread works for.
pub(crate) fn foreign() -> Option<Foreign> {
    FOREIGN.with_borrow(Clone::clone)
}

/// The fake host of the calling thread: its own, the one it works for, or else the newest.
pub(crate) fn shared() -> Option<Arc<Shared>> {
    if let Some(world) = world::current() {
        return Some(Arc::clone(&world.shared));
    }
    foreign().map(|found| found.shared).or_else(|| lock(&LATEST).upgrade())
}

/// The reactor behind `pointer`, of whichever fake host, if it ever was one.
pub(crate) fn reactor_face(pointer: *const c_void) -> Option<&'static ReactorFace> {
    lock(&FACES).iter().rev().copied().find(|face| std::ptr::from_ref(*face).cast() == pointer)
}

/// Copies a borrowed text; `None` if it is not UTF-8 or null.
///
/// # Safety
/// `text` is readable for this call.
pub(crate) unsafe fn text(text: Str) -> Option<String> {
    // SAFETY: the caller promises readable bytes; the borrow ends with this call.
    unsafe { text.as_str() }.map(str::to_owned)
}

/// Virtual time does not start at 0, so that 0 can mean "none".
const FIRST_NS: u64 = 1_000_000_000;
const MAX_VIOLATIONS: usize = 256;
const MAX_LOG_LINES: usize = 65_536;
const MAX_INJECTED: usize = 65_536;
