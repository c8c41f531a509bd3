//! What modules publish and subscribe to: memory regions, buffers, RPC
//! methods, hotplug events and watches.
// UNSAFETY: calls subscribers' functions and lends them texts.

use std::ffi::c_void;
use std::rc::Rc;

use tenon_abi::{BufferEvent, HotplugEvent, HotplugKind, MemoryFn, MemoryRegion, RpcFn, Str, errno};

use super::memory::Guarded;
use super::module::{ModuleId, ModuleState, module_callback};
use super::schedule::{CONTROL, Where};
use super::shared::lock;
use super::world::{BufferOut, HotplugWatch, RpcMethod, Subscription, World};
use crate::violation::Fault;

fn region(base: *mut c_void, len: usize, id: u64) -> MemoryRegion {
    MemoryRegion { base, len: len as u64, id, numa_node: -1, page_size: PAGE_SIZE }
}

impl World {
    fn tell_subscribers(&self, event: BufferEvent, region: &MemoryRegion) {
        let subscriptions = self.subscriptions.borrow().clone();
        for subscription in subscriptions {
            self.enter(Where::Reactor(CONTROL), subscription.module, || {
                // SAFETY: the subscription is live; the region is lent for the call.
                unsafe { subscription.callback.0(subscription.arg, event, region) };
            });
        }
    }

    /// New memory: subscribers hear of it in a later step on the control reactor.
    pub(crate) fn memory_added(&self, pointer: *mut c_void, len: usize) {
        let id = lock(&self.shared.memory)
            .all()
            .find(|block| block.pointer().cast() == pointer)
            .map(|block| block.id);
        let Some(id) = id else { return };
        if !self.subscriptions.borrow().is_empty() {
            self.post(CONTROL, move |world| {
                let is_live = lock(&world.shared.memory).all().any(|block| block.id == id);
                if is_live {
                    world.tell_subscribers(BufferEvent::ADD, &region(pointer, len, id));
                }
            });
        }
    }

    /// Memory goes: it stays mapped until the subscribers have heard of it.
    pub(crate) fn memory_removed(&self, block: Guarded) {
        if !self.subscriptions.borrow().is_empty() {
            self.post(CONTROL, move |world| {
                let region = region(block.pointer().cast(), block.len, block.id);
                world.tell_subscribers(BufferEvent::REMOVE, &region);
            });
        }
    }

    pub(crate) fn memory_subscribe(&self, module: ModuleId, callback: MemoryFn, arg: *mut c_void) -> u64 {
        let subscription = Subscription { id: self.fresh_id(), module, callback, arg };
        self.subscriptions.borrow_mut().push(subscription);
        let existing: Vec<MemoryRegion> = lock(&self.shared.memory)
            .all()
            .map(|block| region(block.pointer().cast(), block.len, block.id))
            .collect();
        for region in &existing {
            // SAFETY: the contract reports existing regions during the call, on this thread.
            unsafe { callback.0(arg, BufferEvent::ADD, region) };
        }
        subscription.id
    }

    pub(crate) fn memory_unsubscribe(&self, id: u64) -> bool {
        let mut all = self.subscriptions.borrow_mut();
        let before = all.len();
        all.retain(|subscription| subscription.id != id);
        all.len() < before
    }

    pub(crate) fn buffer_get(&self, reactor: usize, len: usize) -> *mut c_void {
        let out = self.buffers_out.borrow().iter().filter(|buffer| buffer.reactor == reactor).count();
        if len == 0 || len > MAX_BUFFER || out >= self.options.buffers {
            return std::ptr::null_mut();
        }
        let module = self.acting.get();
        let pointer = lock(&self.shared.memory).allocate(len, BUFFER_ALIGN, ModuleId::HOST);
        if !pointer.is_null() {
            let address = pointer as usize;
            self.buffers_out.borrow_mut().push(BufferOut { address, len, reactor, module });
        }
        pointer
    }

    pub(crate) fn buffer_put(&self, reactor: usize, buffer: *mut c_void, len: usize) {
        let mut out = self.buffers_out.borrow_mut();
        let Some(nth) = out.iter().position(|found| found.address == buffer as usize) else {
            return self.violate(Fault::BufferLeaked, "buffer_put of something that is not out");
        };
        let found = out.swap_remove(nth);
        if found.reactor != reactor || found.len != len {
            let detail = format!("buffer of {} bytes of reactor {} put as {len}", found.len, found.reactor);
            self.violate(Fault::BufferLeaked, detail);
        }
        if let Err(fault) = lock(&self.shared.memory).release(buffer, found.len, BUFFER_ALIGN) {
            self.violate(Fault::PayloadOverrun, format!("buffer of {len} bytes: {fault:?}"));
        }
    }

    pub(crate) fn rpc_register(
        &self,
        module: ModuleId,
        name: String,
        handler: RpcFn,
        arg: *mut c_void,
    ) -> i32 {
        let mut methods = self.methods.borrow_mut();
        if methods.iter().any(|method| method.name == name) {
            return errno::EEXIST;
        }
        methods.push(RpcMethod { module, name, handler, arg });
        0
    }

    /// Publishes to every module, each in a step of its own.
    pub(crate) fn hotplug(
        self: &Rc<World>,
        kind: HotplugKind,
        subsystem: &str,
        id: &str,
        generation: u64,
        attributes: &str,
    ) {
        let generation = match generation {
            0 => {
                self.hotplug_generation.set(self.hotplug_generation.get() + 1);
                self.hotplug_generation.get()
            }
            given => given,
        };
        let texts = Rc::new((subsystem.to_owned(), id.to_owned(), attributes.to_owned()));
        let modules = self.modules.borrow().clone();
        for module in modules {
            let texts = Rc::clone(&texts);
            self.post(CONTROL, move |world| {
                let Some(hotplug) = module_callback!(module, hotplug) else { return };
                if module.state.get() != ModuleState::Running {
                    return;
                }
                let event = HotplugEvent {
                    size: size_of::<HotplugEvent>() as u32,
                    kind,
                    subsystem: Str::new(&texts.0),
                    id: Str::new(&texts.1),
                    generation,
                    attributes_json: Str::new(&texts.2),
                };
                // SAFETY: the module runs, and the event is lent for the call.
                world.enter(Where::Reactor(CONTROL), module.id, || unsafe { hotplug(&raw const event) });
            });
        }
    }

    pub(crate) fn hotplug_watch(&self, module: ModuleId, subsystem: String, id: String) -> i32 {
        if subsystem == "file" && !id.starts_with('/') {
            self.violate(Fault::BadCall, format!("hotplug_watch of file `{id}`, which is no absolute path"));
            return errno::EINVAL;
        }
        self.watches.borrow_mut().push(HotplugWatch { module, subsystem, id });
        0
    }

    pub(crate) fn hotplug_unwatch(&self, module: ModuleId, subsystem: &str, id: &str) -> bool {
        let mut watches = self.watches.borrow_mut();
        let is_it =
            |watch: &HotplugWatch| watch.module == module && watch.subsystem == subsystem && watch.id == id;
        let nth = watches.iter().position(is_it);
        nth.map(|nth| watches.swap_remove(nth)).is_some()
    }
}

const PAGE_SIZE: u32 = 4096;
const BUFFER_ALIGN: usize = 4096;
const MAX_BUFFER: usize = 4 << 20;
