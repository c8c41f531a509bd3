//! All state of one fake host, and the thread-local through which the plugin's
//! calls find it. Every field has its own cell: a call into a module may come
//! back at any point, so no borrow is ever held across one.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::ffi::c_void;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tenon_abi::{MemoryFn, RpcFn};

use super::channel::{GateChannel, ModuleChannel};
use super::descriptor::Desc;
use super::device::Device;
use super::examine::Examination;
use super::flight::Flights;
use super::module::{Module, ModuleId};
use super::operation::Operation;
use super::schedule::{Schedule, Where};
use super::shared::Shared;
use crate::consumer::{Event, Slot};
use crate::rng::Rng;
use crate::violation::Fault;

/// How a fake host behaves.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    pub(crate) seed: u64,
    pub(crate) data_reactors: usize,
    pub(crate) real_io: bool,
    pub(crate) auto_examine: bool,
    pub(crate) removal_deadline: Duration,
    pub(crate) operation_deadline: Duration,
    pub(crate) buffers: usize,
}

/// Objects by handle. A handle is never used again, so a stale one is never mistaken for another object.
pub(crate) struct Table<T> {
    tag: u64,
    next: u64,
    live: BTreeMap<u64, T>,
}

impl<T: Clone> Table<T> {
    fn new(tag: u64) -> Self {
        Table { tag, next: 0, live: BTreeMap::new() }
    }

    /// The handle the next `insert` will use.
    pub(crate) fn reserve(&mut self) -> u64 {
        self.next += 1;
        self.tag << 48 | self.next
    }

    pub(crate) fn insert(&mut self, handle: u64, value: T) {
        self.live.insert(handle, value);
    }

    pub(crate) fn get(&self, handle: u64) -> Option<T> {
        self.live.get(&handle).cloned()
    }

    pub(crate) fn remove(&mut self, handle: u64) -> Option<T> {
        self.live.remove(&handle)
    }

    /// True if `handle` was given out by this table, still live or not.
    pub(crate) fn was_issued(&self, handle: u64) -> bool {
        handle >> 48 == self.tag && (1..=self.next).contains(&(handle & ((1 << 48) - 1)))
    }

    pub(crate) fn snapshot(&self) -> Vec<T> {
        self.live.values().cloned().collect()
    }
}

pub(crate) struct RpcMethod {
    pub(crate) module: ModuleId,
    pub(crate) name: String,
    pub(crate) handler: RpcFn,
    pub(crate) arg: *mut c_void,
}

#[derive(Clone, Copy)]
pub(crate) struct Subscription {
    pub(crate) id: u64,
    pub(crate) module: ModuleId,
    pub(crate) callback: MemoryFn,
    pub(crate) arg: *mut c_void,
}

pub(crate) struct HotplugWatch {
    pub(crate) module: ModuleId,
    pub(crate) subsystem: String,
    pub(crate) id: String,
}

/// A buffer of a reactor's pool that is out.
pub(crate) struct BufferOut {
    pub(crate) address: usize,
    pub(crate) len: usize,
    pub(crate) reactor: usize,
    pub(crate) module: ModuleId,
}

/// Events a descriptor of a test heard.
pub(crate) type Heard = Rc<RefCell<Vec<Event>>>;

pub(crate) struct World {
    pub(crate) shared: Arc<Shared>,
    pub(crate) options: Options,
    pub(crate) rng: Rng,
    pub(crate) schedule: Schedule,
    pub(crate) place: Cell<Where>,
    pub(crate) acting: Cell<ModuleId>,
    pub(crate) modules: RefCell<Vec<Rc<Module>>>,
    pub(crate) devices: RefCell<Table<Rc<Device>>>,
    pub(crate) descriptors: RefCell<Table<Rc<Desc>>>,
    pub(crate) operations: RefCell<Table<Rc<Operation>>>,
    pub(crate) examinations: RefCell<Table<Rc<Examination>>>,
    pub(crate) flights: Flights,
    /// Every channel ever made; freed with the world, so that a late use is found and not undefined.
    pub(crate) gates: RefCell<Vec<*mut GateChannel>>,
    pub(crate) channels: RefCell<Vec<*mut ModuleChannel>>,
    pub(crate) slots: RefCell<VecDeque<Rc<Slot>>>,
    /// Descriptors that tests opened, with the events they heard.
    pub(crate) consumers: RefCell<Vec<(u64, Heard)>>,
    pub(crate) bases: RefCell<Vec<Rc<dyn std::any::Any>>>,
    pub(crate) methods: RefCell<Vec<RpcMethod>>,
    pub(crate) subscriptions: RefCell<Vec<Subscription>>,
    pub(crate) watches: RefCell<Vec<HotplugWatch>>,
    pub(crate) buffers_out: RefCell<Vec<BufferOut>>,
    pub(crate) notifications: RefCell<Vec<(String, String)>>,
    pub(crate) hotplug_generation: Cell<u64>,
    pub(crate) next_id: Cell<u64>,
    pub(crate) is_finished: Cell<bool>,
    /// Names that were created without a device so far, and their modules.
    pub(crate) awaited: RefCell<Vec<(String, ModuleId)>>,
}

thread_local! {
    static CURRENT: RefCell<Option<Rc<World>>> = const { RefCell::new(None) };
}

/// The fake host of the calling thread.
pub(crate) fn current() -> Option<Rc<World>> {
    CURRENT.try_with(|cell| cell.borrow().clone()).ok().flatten()
}

/// Makes `world` the thread's fake host; false if it has one already.
pub(crate) fn install(world: &Rc<World>) -> bool {
    CURRENT.with_borrow_mut(|slot| {
        let is_free = slot.is_none();
        if is_free {
            *slot = Some(Rc::clone(world));
        }
        is_free
    })
}

/// Ends the thread's fake host.
pub(crate) fn uninstall() {
    CURRENT.set(None);
}

impl World {
    pub(crate) fn new(options: Options) -> Rc<World> {
        let reactors = options.data_reactors + 1;
        let shared = Shared::new(reactors, options.real_io);
        Rc::new(World {
            rng: Rng::new(options.seed),
            schedule: Schedule::new(reactors),
            shared,
            options,
            place: Cell::new(Where::Test),
            acting: Cell::new(ModuleId::HOST),
            modules: RefCell::new(Vec::new()),
            devices: RefCell::new(Table::new(1)),
            descriptors: RefCell::new(Table::new(2)),
            operations: RefCell::new(Table::new(3)),
            examinations: RefCell::new(Table::new(4)),
            flights: Flights::default(),
            gates: RefCell::new(Vec::new()),
            channels: RefCell::new(Vec::new()),
            slots: RefCell::new(VecDeque::new()),
            consumers: RefCell::new(Vec::new()),
            bases: RefCell::new(Vec::new()),
            methods: RefCell::new(Vec::new()),
            subscriptions: RefCell::new(Vec::new()),
            watches: RefCell::new(Vec::new()),
            buffers_out: RefCell::new(Vec::new()),
            notifications: RefCell::new(Vec::new()),
            hotplug_generation: Cell::new(0),
            next_id: Cell::new(0),
            is_finished: Cell::new(false),
            awaited: RefCell::default(),
        })
    }

    pub(crate) fn now_ns(&self) -> u64 {
        self.shared.now_ns()
    }

    /// Records a violation of the module whose code runs now.
    pub(crate) fn violate(&self, fault: Fault, detail: impl Into<String>) {
        self.shared.violate(fault, self.acting.get(), detail);
    }

    /// Records a violation of `module`.
    pub(crate) fn violate_by(&self, fault: Fault, module: ModuleId, detail: impl Into<String>) {
        self.shared.violate(fault, module, detail);
    }

    pub(crate) fn module_name(&self, module: ModuleId) -> String {
        self.shared.module_name(module)
    }

    pub(crate) fn fresh_id(&self) -> u64 {
        self.next_id.set(self.next_id.get() + 1);
        self.next_id.get()
    }

    /// Runs `f` as code of `module` at `place`.
    pub(crate) fn enter<R>(&self, place: Where, module: ModuleId, f: impl FnOnce() -> R) -> R {
        struct Restore<'a>(&'a World, Where, ModuleId);
        impl Drop for Restore<'_> {
            fn drop(&mut self) {
                self.0.place.set(self.1);
                self.0.acting.set(self.2);
            }
        }
        let _restore = Restore(self, self.place.replace(place), self.acting.replace(module));
        f()
    }
}
