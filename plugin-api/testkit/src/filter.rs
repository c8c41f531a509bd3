//! [`Filter`]: the simplest module that stands on another device: it passes
//! every I/O to its base in a child that lies in the parent's driver context.
//! The conformance suite puts it on top of the device under test.
// UNSAFETY: implements a device on the raw contract.

use std::cell::Cell;
use std::ffi::c_void;
use std::rc::{Rc, Weak};

use tenon_abi::{
    BDEV_IO_SIZE, BdevEvent, BdevEventKind, BdevIo, BdevOpsV1, BdevV1, ClaimKind, EventFn, IoChannel,
    IoFlags, IoOpsV1, IoState, IoStatus, IoVec, OpToken, OpenFlags, Reason, Str, complete, errno, io_context,
};

use crate::host::module::ModuleId;
use crate::host::schedule::{CONTROL, Where};
use crate::host::world::World;

struct Inner {
    world: Weak<World>,
    name: String,
    handle: Cell<u64>,
    base: Cell<u64>,
}

/// A pass-through device of the testkit.
#[derive(Clone)]
pub struct Filter(Rc<Inner>);

static DEVICE_OPS: BdevOpsV1 = BdevOpsV1 {
    size: size_of::<BdevOpsV1>() as u32,
    flags: 0,
    channel_create,
    channel_destroy,
    destruct,
    dump_json: None,
    config_json: None,
    reset_stats: None,
    stats_json: None,
    rolled_back: None,
};

static CHANNEL_OPS: IoOpsV1 = IoOpsV1 {
    size: size_of::<IoOpsV1>() as u32,
    flags: 0,
    submit,
    submit_batch: None,
    abort: Some(abort),
    release: None,
};

/// # Safety
/// `ctx` is the context of a filter that is registered.
unsafe fn inner<'a>(ctx: *mut c_void) -> &'a Inner {
    // SAFETY: the caller promises it; the world keeps every filter.
    unsafe { &*ctx.cast::<Inner>() }
}

unsafe extern "C" fn channel_create(ctx: *mut c_void, ch: *mut IoChannel) -> i32 {
    // SAFETY: the host passes our context.
    let filter = unsafe { inner(ctx) };
    let Some(world) = filter.world.upgrade() else { return errno::ESHUTDOWN };
    let Some(reactor) = world.reactor_here() else { return errno::EPERM };
    let below = world.channel_get(filter.base.get(), reactor);
    if below.is_null() {
        return errno::ENODEV;
    }
    // SAFETY: both channels are live; ours is fresh.
    unsafe {
        (*ch).ops = &raw const CHANNEL_OPS;
        (*ch).ctx = below.cast();
        (*ch).io_ctx_size = BDEV_IO_SIZE as u32 + (*below).io_ctx_size;
    }
    0
}

unsafe extern "C" fn channel_destroy(ctx: *mut c_void, ch: *mut IoChannel) {
    // SAFETY: the host passes our context and channel.
    let (filter, below) = unsafe { (inner(ctx), (*ch).ctx.cast::<IoChannel>()) };
    if let Some(world) = filter.world.upgrade()
        && let Some(reactor) = world.reactor_here()
    {
        world.channel_put(below, reactor);
    }
}

unsafe extern "C" fn destruct(ctx: *mut c_void, token: OpToken) {
    // SAFETY: the host passes our context.
    let filter = unsafe { inner(ctx) };
    if let Some(world) = filter.world.upgrade() {
        world.close(filter.base.get());
        world.answer_operation(token.0, Ok(String::new()));
    }
}

unsafe extern "C" fn submit(ch: *mut IoChannel, io: *mut BdevIo) {
    // SAFETY: the gate passes our channel and an admitted I/O with our context behind it.
    unsafe {
        let child = io_context(io).cast::<BdevIo>();
        let parent = &*io;
        child.write(BdevIo {
            op: parent.op,
            state: IoState::IDLE,
            flags: parent.flags,
            iovcnt: parent.iovcnt,
            iovs: parent.iovs,
            offset_blocks: parent.offset_blocks,
            num_blocks: parent.num_blocks,
            done: Some(child_done),
            done_arg: io.cast(),
            ch: std::ptr::null_mut(),
            status: IoStatus::SUCCESS,
            cdw0: 0,
            md: parent.md,
            ext: parent.ext,
            link: std::ptr::null_mut(),
            submit_ticks: 0,
            inline_iov: IoVec::EMPTY,
            host: [std::ptr::null_mut(); 2],
        });
        tenon_abi::submit((*ch).ctx.cast(), child);
    }
}

unsafe extern "C" fn child_done(child: *mut BdevIo, arg: *mut c_void) {
    // SAFETY: the child is ours again, and `arg` is its parent.
    unsafe {
        let parent = arg.cast::<BdevIo>();
        (*parent).offset_blocks = (*child).offset_blocks;
        (*parent).cdw0 = (*child).cdw0;
        complete(parent, (*child).status);
    }
}

unsafe extern "C" fn abort(ch: *mut IoChannel, victim: *mut BdevIo) -> i32 {
    // SAFETY: the gate passes our channel and an I/O that we hold, with its child in the context.
    unsafe {
        let below = (*ch).ctx.cast::<IoChannel>();
        match (*(*below).ops).abort {
            Some(abort) => abort(below, io_context(victim).cast()),
            None => errno::ENOENT,
        }
    }
}

unsafe extern "C" fn hear(arg: *mut c_void, event: *const BdevEvent) {
    // SAFETY: `arg` is our context; the event is lent for the call.
    let (filter, event) = unsafe { (inner(arg), &*event) };
    let Some(world) = filter.world.upgrade() else { return };
    let Some(device) = world.device(filter.handle.get()) else { return };
    if event.kind == BdevEventKind::REMOVE {
        world.unregister(&device, Reason::BASE_REMOVED);
    }
    if event.kind == BdevEventKind::RESIZE {
        world.resize(&device, event.value);
    }
}

impl Filter {
    /// Claims `base` and registers a filter `name` on it.
    ///
    /// # Errors
    /// `-errno` of the step that failed.
    pub(crate) fn register(world: &Rc<World>, name: &str, base: &str) -> Result<Filter, i32> {
        let below = world.find(base).ok_or(errno::ENODEV)?;
        let filter = Rc::new(Inner {
            world: Rc::downgrade(world),
            name: name.to_owned(),
            handle: Cell::new(0),
            base: Cell::new(0),
        });
        let kept: Rc<Inner> = Rc::clone(&filter);
        world.bases.borrow_mut().push(kept);
        let ctx: *mut c_void = Rc::as_ptr(&filter).cast_mut().cast();
        world.enter(Where::Reactor(CONTROL), ModuleId::HOST, || {
            let desc = world.open(ModuleId::HOST, below.id, OpenFlags::WRITE, EventFn(hear), ctx)?;
            filter.base.set(desc);
            let code = world.claim(desc, ClaimKind::EXCL_WRITE, 0);
            let lend = u64::from(IoFlags::LEND.0);
            let bdev = BdevV1 {
                size: size_of::<BdevV1>() as u32,
                flags: below.flags.get(),
                limits: below.limits.get(),
                io_types: below.io_types,
                io_flags: below.io_flags & !lend,
                uuid: [0; 16],
                nguid: [0; 16],
                eui64: [0; 8],
                numa_node: -1,
                alias_count: 0,
                name: Str::new(name),
                product: Str::new("Test filter"),
                aliases: std::ptr::null(),
                ctx,
                ops: &raw const DEVICE_OPS,
            };
            let registered = match code {
                // SAFETY: the registration is readable for the call; context and table outlive the device.
                0 => unsafe { world.register(ModuleId::HOST, &raw const bdev, OpToken(0)) },
                code => Err(code),
            };
            let handle = registered.inspect_err(|_| {
                world.close(desc);
            })?;
            filter.handle.set(handle);
            Ok::<(), i32>(())
        })?;
        Ok(Filter(filter))
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// True once the device is gone.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        self.0.world.upgrade().is_none_or(|world| world.device(self.0.handle.get()).is_none())
    }
}
