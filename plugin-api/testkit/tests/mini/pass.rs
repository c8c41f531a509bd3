//! A pass-through on the raw contract: one child per I/O, in the driver
//! context. The parameter `fault`, also of the module's table, names what it
//! does wrong.
// UNSAFETY: speaks the raw contract.

use std::cell::Cell;
use std::ffi::c_char;
use std::sync::Mutex;

use tenon_abi::{
    BDEV_IO_SIZE, BdevEvent, BdevEventKind, BdevHandle, BdevInfo, BdevIo, BdevOpsV1, BdevV1, ClaimKind,
    DescHandle, EventFn, ExamineAnswer, ExamineToken, HostApiV1, HostModule, IoChannel, IoFlags, IoOpsV1,
    IoState, IoStatus, IoVec, ModuleOpsV1, Op, OpToken, OpenFlags, PluginDescV1, Reason, Str, complete,
    errno, io_context, submit as pass_on,
};

use super::{Arg, Door, descriptor, parse, plain_ops, string};

static DOOR: Door = Door::new();
static OPS: ModuleOpsV1 = ModuleOpsV1 {
    create: Some(create),
    examine_config: Some(examine_config),
    examine_disk: Some(examine_disk),
    ..plain_ops(init, fini)
};
static DESCRIPTOR: PluginDescV1 = descriptor("minipass", &OPS);
static MODULE_FAULT: Mutex<String> = Mutex::new(String::new());

pub fn plugin() -> *const PluginDescV1 {
    &raw const DESCRIPTOR
}

struct Pass {
    fault: String,
    handle: Cell<BdevHandle>,
    desc: Cell<DescHandle>,
}

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
    release: Some(release),
};

fn module_fault() -> String {
    MODULE_FAULT.lock().expect("nothing panics under this lock").clone()
}

unsafe extern "C" fn init(
    host: *const HostApiV1,
    me: *mut HostModule,
    config: Str,
    _: *mut c_char,
    _: usize,
) -> i32 {
    DOOR.set(host, me);
    let fault = parse(config, &["fault"]).and_then(|map| string(&map, "fault")).unwrap_or_default();
    *MODULE_FAULT.lock().expect("nothing panics under this lock") = fault;
    if module_fault() == "busy_init" {
        // SAFETY: not allowed in init: wrong on purpose.
        unsafe { (DOOR.host().bdev_find)(Str::new("b0")) };
    }
    0
}

unsafe extern "C" fn fini(token: OpToken) {
    DOOR.succeed(token);
}

unsafe extern "C" fn examine_config(_: BdevHandle, _: Str, token: ExamineToken) {
    let fault = module_fault();
    let answer = if fault == "false_claim" { ExamineAnswer::CLAIMED } else { ExamineAnswer::NOT_MINE };
    if fault != "forget_examine_config" {
        // SAFETY: the token was just given.
        unsafe { (DOOR.host().examine_done)(token, answer, Str::EMPTY) };
    }
}

unsafe extern "C" fn examine_disk(_: BdevHandle, _: Str, token: ExamineToken) {
    let fault = module_fault();
    let times = match fault.as_str() {
        "forget_examine_disk" => 0,
        "examine_twice" => 2,
        _ => 1,
    };
    for _ in 0..times {
        // SAFETY: the token was just given; twice is wrong on purpose.
        unsafe { (DOOR.host().examine_done)(token, ExamineAnswer::NOT_MINE, Str::EMPTY) };
    }
}

unsafe extern "C" fn create(text: Str, token: OpToken) {
    let params = parse(text, &["name", "base", "fault"]).and_then(|map| {
        Ok((string(&map, "name")?, string(&map, "base")?, string(&map, "fault").unwrap_or_default()))
    });
    let (name, base, fault) = match params {
        Ok(params) => params,
        Err(reason) => return DOOR.fail(token, errno::EINVAL, "", &reason),
    };
    let host = DOOR.host();
    // SAFETY: the name is lent for the call.
    let below = unsafe { (host.bdev_find)(Str::new(&base)) };
    if below.0 == 0 {
        let object = if fault == "nameless_error" { "" } else { &base };
        return DOOR.fail(token, errno::ENODEV, object, "there is no such device");
    }
    let pass = Box::into_raw(Box::new(Pass {
        fault,
        handle: Cell::new(BdevHandle(0)),
        desc: Cell::new(DescHandle(0)),
    }));
    // SAFETY: the box was just made; the device below exists.
    let code = unsafe { build(&*pass, pass, &name, below, token) };
    if code == 0 {
        return DOOR.succeed(token);
    }
    // SAFETY: the host does not know the box.
    let pass = unsafe { Box::from_raw(pass) };
    if pass.desc.get().0 != 0 && pass.fault != "leak_on_failure" {
        // SAFETY: the descriptor is ours.
        unsafe { (host.bdev_close)(pass.desc.get()) };
    } else if pass.desc.get().0 != 0 {
        // A descriptor that stays open has the box.
        std::mem::forget(pass);
    }
    DOOR.fail(token, code, &name, "the device cannot be built");
}

unsafe fn build(found: &Pass, pass: *mut Pass, name: &str, below: BdevHandle, token: OpToken) -> i32 {
    let host = DOOR.host();
    let mut desc = DescHandle(0);
    // SAFETY: everything is valid for the call, and the box outlives the descriptor.
    unsafe {
        let code =
            (host.bdev_open)(DOOR.me(), below, OpenFlags::WRITE, EventFn(hear), pass.cast(), &raw mut desc);
        if code != 0 {
            return code;
        }
        found.desc.set(desc);
        let code = (host.bdev_claim)(desc, ClaimKind::EXCL_WRITE, 0);
        if code != 0 {
            return code;
        }
        let mut info: BdevInfo = std::mem::zeroed();
        info.size = size_of::<BdevInfo>() as u32;
        (host.bdev_info)(below, &raw mut info);
        let mut io_types = info.io_types;
        if found.fault == "declares_everything" {
            io_types |= Op::UNMAP.bit() | Op::WRITE_ZEROES.bit();
        }
        let bdev = BdevV1 {
            size: size_of::<BdevV1>() as u32,
            flags: info.flags,
            limits: info.limits,
            io_types,
            io_flags: info.io_flags & u64::from(IoFlags::FUA.0 | IoFlags::LEND.0),
            uuid: [0; 16],
            nguid: [0; 16],
            eui64: [0; 8],
            numa_node: -1,
            alias_count: 0,
            name: Str::new(name),
            product: Str::new("Mini pass-through"),
            aliases: std::ptr::null(),
            ctx: pass.cast(),
            ops: &raw const DEVICE_OPS,
        };
        let mut handle = BdevHandle(0);
        let code = (host.bdev_register)(DOOR.me(), &raw const bdev, token, &raw mut handle);
        found.handle.set(handle);
        code
    }
}

unsafe extern "C" fn hear(arg: Arg, event: *const BdevEvent) {
    // SAFETY: our box and a lent event.
    let (pass, event) = unsafe { (&*arg.cast::<Pass>(), &*event) };
    if event.kind == BdevEventKind::REMOVE && pass.fault != "ignore_remove" {
        // SAFETY: our own device.
        unsafe { (DOOR.host().bdev_unregister)(pass.handle.get(), Reason::BASE_REMOVED) };
    }
    if event.kind == BdevEventKind::RESIZE && pass.fault != "ignore_resize" {
        // SAFETY: as above.
        unsafe { (DOOR.host().bdev_resize)(pass.handle.get(), event.value) };
    }
}

unsafe extern "C" fn channel_create(ctx: Arg, ch: *mut IoChannel) -> i32 {
    // SAFETY: our box and a fresh channel.
    unsafe {
        let pass = &*ctx.cast::<Pass>();
        let below = (DOOR.host().channel_get)(pass.desc.get());
        if below.is_null() {
            return errno::ENODEV;
        }
        (*ch).ops = &raw const CHANNEL_OPS;
        (*ch).ctx = below.cast();
        let own = BDEV_IO_SIZE as u32 + (*below).io_ctx_size;
        (*ch).io_ctx_size = if pass.fault == "small_context" { 64 } else { own };
    }
    0
}

unsafe extern "C" fn channel_destroy(ctx: Arg, ch: *mut IoChannel) {
    // SAFETY: what `channel_create` made.
    unsafe {
        let pass = &*ctx.cast::<Pass>();
        if pass.fault != "leak_channel" {
            (DOOR.host().channel_put)((*ch).ctx.cast());
        }
        if pass.fault == "put_twice" {
            (DOOR.host().channel_put)((*ch).ctx.cast());
        }
    }
}

unsafe extern "C" fn destruct(ctx: Arg, token: OpToken) {
    // SAFETY: what `create` made; the host calls this once.
    let pass = unsafe { Box::from_raw(ctx.cast::<Pass>()) };
    if pass.fault == "leak_descriptor" {
        // Its event function still has the box.
        std::mem::forget(pass);
    } else {
        // SAFETY: our descriptor.
        let code = unsafe { (DOOR.host().bdev_close)(pass.desc.get()) };
        if code != 0 {
            std::mem::forget(pass);
        }
    }
    DOOR.succeed(token);
}

unsafe extern "C" fn submit(ch: *mut IoChannel, io: *mut BdevIo) {
    // SAFETY: our channel and an I/O for us, with our context behind it.
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
        pass_on((*ch).ctx.cast(), child);
    }
}

unsafe extern "C" fn child_done(child: *mut BdevIo, arg: Arg) {
    // SAFETY: the child is ours again, and `arg` is its parent, which is ours.
    unsafe {
        let parent = arg.cast::<BdevIo>();
        if (*child).flags.contains(IoFlags::LENT) {
            (*parent).iovs = (*child).iovs;
            (*parent).iovcnt = (*child).iovcnt;
            (*parent).flags = IoFlags((*parent).flags.0 | IoFlags::LENT.0);
        }
        let status = (*child).status;
        let is_hidden = module_fault() == "swallow_errors" && status == IoStatus::IO_ERROR;
        complete(parent, if is_hidden { IoStatus::SUCCESS } else { status });
    }
}

unsafe extern "C" fn abort(ch: *mut IoChannel, victim: *mut BdevIo) -> i32 {
    // SAFETY: our channel and an I/O that we hold.
    unsafe {
        let below = (*ch).ctx.cast::<IoChannel>();
        (*(*below).ops).abort.map_or(errno::ENOENT, |abort| abort(below, io_context(victim).cast()))
    }
}

unsafe extern "C" fn release(ch: *mut IoChannel, io: *mut BdevIo) {
    // SAFETY: our channel and an I/O whose child has lent memory.
    unsafe {
        let below = (*ch).ctx.cast::<IoChannel>();
        if let Some(release) = (*(*below).ops).release {
            release(below, io_context(io).cast());
        }
    }
}
