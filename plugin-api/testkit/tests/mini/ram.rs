//! A RAM disk on the raw contract. Every I/O waits in a queue for a poller.
//! The parameter `fault` names what it does wrong.
// UNSAFETY: speaks the raw contract.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::ffi::c_char;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use tenon_abi::{
    BdevFlags, BdevHandle, BdevIo, BdevOpsV1, BdevV1, HostApiV1, HostModule, IoChannel, IoFlags, IoOpsV1,
    IoStatus, IoVec, JsonSink, Limits, MessageFn, ModuleOpsV1, Op, OpToken, PluginDescV1, PollerFlags,
    PollerV1, ReactorHandle, Str, complete, errno, io_context,
};

use super::{Arg, Door, address, descriptor, number, parse, plain_ops, string, write_error, write_json};

static DOOR: Door = Door::new();
static OPS: ModuleOpsV1 = ModuleOpsV1 {
    create: Some(create),
    schema: Some(schema),
    validate: Some(validate),
    ..plain_ops(init, fini)
};
static DESCRIPTOR: PluginDescV1 = descriptor("miniram", &OPS);
static STUBBORN: AtomicBool = AtomicBool::new(false);
/// How often a device was rolled back.
pub static ROLLED_BACK: AtomicU32 = AtomicU32::new(0);

pub fn plugin() -> *const PluginDescV1 {
    &raw const DESCRIPTOR
}

struct Disk {
    name: String,
    memory: *mut u8,
    len: usize,
    block: usize,
    fault: String,
    handle: Cell<u64>,
    last_lent: Cell<*mut u8>,
}

struct Chan {
    disk: *const Disk,
    queue: RefCell<VecDeque<*mut BdevIo>>,
    poller: Cell<ReactorHandle>,
    seen: Cell<u64>,
    touched_later: Cell<*mut u8>,
}

static DEVICE_OPS: BdevOpsV1 = BdevOpsV1 {
    size: size_of::<BdevOpsV1>() as u32,
    flags: 0,
    channel_create,
    channel_destroy,
    destruct,
    dump_json: Some(dump_json),
    config_json: Some(config_json),
    reset_stats: None,
    stats_json: Some(stats_json),
    rolled_back: Some(rolled_back),
};

static CHANNEL_OPS: IoOpsV1 = IoOpsV1 {
    size: size_of::<IoOpsV1>() as u32,
    flags: 0,
    submit,
    submit_batch: Some(submit_batch),
    abort: Some(abort),
    release: None,
};

unsafe extern "C" fn init(
    host: *const HostApiV1,
    me: *mut HostModule,
    _: Str,
    _: *mut c_char,
    _: usize,
) -> i32 {
    DOOR.set(host, me);
    STUBBORN.store(false, Ordering::Relaxed);
    0
}

unsafe extern "C" fn fini(token: OpToken) {
    if !STUBBORN.load(Ordering::Relaxed) {
        DOOR.succeed(token);
    }
}

unsafe extern "C" fn schema() -> Str {
    Str::new(
        r#"{"type":"object","properties":{"bdev":{"type":"object","required":["name","size","block_size"],
        "properties":{"name":{"type":"string"},"size":{"type":"integer"},"block_size":{"type":"integer"},
        "fault":{"type":"string"}},"additionalProperties":false}}}"#,
    )
}

struct Params {
    name: String,
    size: u64,
    block_size: u64,
    fault: String,
}

fn params(text: Str) -> Result<Params, String> {
    let map = parse(text, &["name", "size", "block_size", "fault"])?;
    let (size, block_size) = (number(&map, "size")?, number(&map, "block_size")?);
    Ok(Params {
        name: string(&map, "name")?,
        size,
        block_size,
        fault: string(&map, "fault").unwrap_or_default(),
    })
}

unsafe extern "C" fn validate(text: Str, err: *mut c_char, err_len: usize) -> i32 {
    match params(text) {
        Ok(_) => 0,
        Err(reason) => {
            // SAFETY: the host gives that much room.
            unsafe { write_error(err, err_len, &reason) };
            errno::EINVAL
        }
    }
}

unsafe extern "C" fn create(text: Str, token: OpToken) {
    let Params { name, size, block_size, fault } = match params(text) {
        Ok(params) => params,
        Err(reason) => return DOOR.fail(token, errno::EINVAL, "", &reason),
    };
    STUBBORN.store(fault == "stubborn_fini", Ordering::Relaxed);
    let len = size as usize;
    // SAFETY: any length may be asked for.
    let memory = unsafe { (DOOR.host().alloc)(len, 4096, -1) };
    if memory.is_null() {
        return DOOR.fail(token, errno::ENOMEM, &name, "no memory");
    }
    let disk = Box::into_raw(Box::new(Disk {
        name,
        memory: memory.cast(),
        len,
        block: block_size as usize,
        fault,
        handle: Cell::new(0),
        last_lent: Cell::new(std::ptr::null_mut()),
    }));
    // SAFETY: the disk was just made.
    unsafe { register(&*disk, disk, token) };
}

unsafe fn register(found: &Disk, disk: *mut Disk, token: OpToken) {
    let ops = [
        Op::READ,
        Op::WRITE,
        Op::FLUSH,
        Op::UNMAP,
        Op::WRITE_ZEROES,
        Op::COMPARE,
        Op::COMPARE_AND_WRITE,
        Op::RESET,
    ];
    let mut io_types = ops.iter().fold(0, |bits, op| bits | op.bit());
    if found.fault == "declares_verify" {
        io_types |= Op::VERIFY.bit();
    }
    let aliases = [Str::new("")];
    let bdev = BdevV1 {
        size: size_of::<BdevV1>() as u32,
        flags: BdevFlags::UNMAP_READS_ZEROES,
        limits: Limits::new(found.block as u32, (found.len / found.block.max(1)) as u64),
        io_types,
        io_flags: u64::from(IoFlags::FUA.0 | IoFlags::LEND.0),
        uuid: [0; 16],
        nguid: [0; 16],
        eui64: [0; 8],
        numa_node: -1,
        alias_count: 0,
        name: Str::new(&found.name),
        product: Str::new("Mini RAM disk"),
        aliases: aliases.as_ptr(),
        ctx: disk.cast(),
        ops: &raw const DEVICE_OPS,
    };
    let mut handle = BdevHandle(0);
    let host = DOOR.host();
    // SAFETY: everything is readable for the call; disk and table outlive the device.
    let code = unsafe { (host.bdev_register)(DOOR.me(), &raw const bdev, token, &raw mut handle) };
    if code != 0 {
        // SAFETY: the host does not know the disk; it is ours.
        let disk = unsafe { Box::from_raw(disk) };
        // SAFETY: as it was allocated.
        unsafe { (host.free)(disk.memory.cast(), disk.len, 4096) };
        return DOOR.fail(token, code, &disk.name, "the device was refused");
    }
    found.handle.set(handle.0);
    if found.fault == "leak_timer" {
        let mut timer = ReactorHandle(0);
        // SAFETY: on a reactor; the callback needs no argument.
        unsafe { (host.timer_start)(u64::MAX / 4, MessageFn(nothing), std::ptr::null_mut(), &raw mut timer) };
    }
    match found.fault.as_str() {
        "forget_token" => {}
        "fail_registered" => DOOR.fail(token, errno::EIO, &found.name, "told to fail"),
        _ => DOOR.succeed(token),
    }
    if found.fault == "answer_twice" {
        DOOR.succeed(token);
    }
}

unsafe extern "C" fn nothing(_: Arg) {}

unsafe extern "C" fn channel_create(ctx: Arg, ch: *mut IoChannel) -> i32 {
    let disk = ctx.cast::<Disk>().cast_const();
    let chan = Box::into_raw(Box::new(Chan {
        disk,
        queue: RefCell::new(VecDeque::new()),
        poller: Cell::new(ReactorHandle(0)),
        seen: Cell::new(0),
        touched_later: Cell::new(std::ptr::null_mut()),
    }));
    let poller = PollerV1 {
        size: size_of::<PollerV1>() as u32,
        flags: PollerFlags::WAKEABLE,
        name: Str::new("miniram"),
        period_us: 0,
        callback: poll,
        before_sleep: Some(may_sleep),
        arg: chan.cast(),
    };
    // SAFETY: a fresh channel, on its reactor; disk and chan outlive it.
    unsafe {
        (*ch).ops = &raw const CHANNEL_OPS;
        (*ch).ctx = chan.cast();
        (*ch).io_ctx_size = if (*disk).fault == "bad_context_size" { 100 } else { 64 };
        let mut handle = ReactorHandle(0);
        let code = (DOOR.host().poller_register)(&raw const poller, &raw mut handle);
        (*chan).poller.set(handle);
        if (*disk).fault == "call_elsewhere" {
            (DOOR.host().bdev_resize)(BdevHandle((*disk).handle.get()), 1);
        }
        code
    }
}

unsafe extern "C" fn channel_destroy(ctx: Arg, ch: *mut IoChannel) {
    // SAFETY: what `channel_create` made.
    unsafe {
        let disk = &*ctx.cast::<Disk>();
        let chan = (*ch).ctx.cast::<Chan>();
        if disk.fault == "leak_poller" {
            (*chan).disk = std::ptr::null();
            return;
        }
        (DOOR.host().poller_unregister)((*chan).poller.get());
        drop(Box::from_raw(chan));
    }
}

unsafe extern "C" fn rolled_back(_: Arg) {
    ROLLED_BACK.fetch_add(1, Ordering::Relaxed);
}

unsafe extern "C" fn destruct(ctx: Arg, token: OpToken) {
    // SAFETY: what `create` made; the host calls this once.
    let disk = unsafe { Box::from_raw(ctx.cast::<Disk>()) };
    if disk.fault == "ignore_destruct" {
        std::mem::forget(disk);
        return;
    }
    if disk.fault != "leak_memory" {
        // SAFETY: as it was allocated.
        unsafe { (DOOR.host().free)(disk.memory.cast(), disk.len, 4096) };
    }
    DOOR.succeed(token);
    if disk.fault == "destruct_twice" {
        DOOR.succeed(token);
    }
}

unsafe extern "C" fn dump_json(ctx: Arg, sink: *const JsonSink) {
    // SAFETY: what `create` made; the sink is lent.
    unsafe {
        let disk = &*ctx.cast::<Disk>();
        write_json(sink, if disk.fault == "bad_dump" { "{bytes:" } else { "{\"bytes\":" });
        write_json(sink, &format!("{}}}", disk.len));
    }
}

unsafe extern "C" fn stats_json(ctx: Arg, sink: *const JsonSink) {
    // SAFETY: as `dump_json`.
    unsafe {
        if (*ctx.cast::<Disk>()).fault == "bad_stats" {
            write_json(sink, "[]");
        }
    }
}

unsafe extern "C" fn config_json(ctx: Arg, sink: *const JsonSink) {
    // SAFETY: as above.
    unsafe {
        let disk = &*ctx.cast::<Disk>();
        let size = if disk.fault == "wrong_config" { disk.len / 2 } else { disk.len };
        let fault =
            if disk.fault.is_empty() { String::new() } else { format!(r#","fault":"{}""#, disk.fault) };
        let (name, block) = (&disk.name, disk.block);
        write_json(sink, &format!(r#"{{"name":"{name}","size":{size},"block_size":{block}{fault}}}"#));
    }
}

unsafe extern "C" fn submit(ch: *mut IoChannel, io: *mut BdevIo) {
    // SAFETY: our channel and an I/O for us.
    unsafe {
        let chan = &*(*ch).ctx.cast::<Chan>();
        let disk = &*chan.disk;
        let room = if disk.fault == "context_overrun" { 128 } else { 64 };
        io_context(io).cast::<u8>().write_bytes(0x11, room);
        chan.seen.set(chan.seen.get() + 1);
        if disk.fault == "lose_io" && chan.seen.get().is_multiple_of(10) {
            return;
        }
        if chan.seen.get().is_multiple_of(3) {
            return finish(chan, io);
        }
        chan.queue.borrow_mut().push_back(io);
    }
}

unsafe extern "C" fn submit_batch(ch: *mut IoChannel, ios: *const *mut BdevIo, count: u32) {
    for nth in 0..count as usize {
        // SAFETY: `count` I/Os for us.
        unsafe { submit(ch, *ios.add(nth)) };
    }
}

unsafe extern "C" fn abort(ch: *mut IoChannel, victim: *mut BdevIo) -> i32 {
    // SAFETY: our channel.
    let chan = unsafe { &*(*ch).ctx.cast::<Chan>() };
    let nth = chan.queue.borrow().iter().position(|io| *io == victim);
    let Some(nth) = nth else { return errno::ENOENT };
    // SAFETY: the disk outlives its channels, and the victim is ours.
    unsafe {
        if (*chan.disk).fault != "abort_twice" {
            chan.queue.borrow_mut().remove(nth);
        }
        complete(victim, IoStatus::ABORTED);
    }
    0
}

unsafe extern "C" fn poll(arg: Arg) -> i32 {
    // SAFETY: the poller's own channel.
    let chan = unsafe { &*arg.cast::<Chan>() };
    let touched = chan.touched_later.replace(std::ptr::null_mut());
    if !touched.is_null() {
        // SAFETY: wrong on purpose; the test keeps the memory.
        unsafe { *touched ^= 0xff };
    }
    let io = chan.queue.borrow_mut().pop_front();
    match io {
        Some(io) => {
            // SAFETY: a queued I/O is ours.
            unsafe { finish(chan, io) };
            1
        }
        None => 0,
    }
}

unsafe extern "C" fn may_sleep(arg: Arg) -> i32 {
    // SAFETY: as above.
    let chan = unsafe { &*arg.cast::<Chan>() };
    // A submission does not wake a reactor by itself: the queue must be empty.
    i32::from(chan.queue.borrow().is_empty() && chan.disk.is_null())
}

unsafe extern "C" fn finish_elsewhere(arg: Arg) {
    // SAFETY: the I/O is ours, but this is the wrong reactor: on purpose.
    unsafe { complete(arg.cast(), IoStatus::SUCCESS) };
}

/// # Safety
/// `io` is ours.
unsafe fn finish(chan: &Chan, io: *mut BdevIo) {
    // SAFETY: the disk outlives its channels; the I/O is ours.
    let (disk, op, pieces) = unsafe { (&*chan.disk, (*io).op, pieces(io)) };
    // SAFETY: as above.
    let mut status = unsafe { execute(disk, &mut *io) };
    let is_read = op == Op::READ;
    // SAFETY: as above; what is wrong here is wrong on purpose.
    unsafe {
        match disk.fault.as_str() {
            "bad_status" if is_read => status = IoStatus(5),
            "always_nomem" if is_read => status = IoStatus::NOMEM,
            "changed_request" if is_read => (*io).offset_blocks += 1,
            "overrun" if is_read && !pieces.is_empty() => {
                let last = pieces[pieces.len() - 1];
                *last.base.cast::<u8>().add(last.len) = 0;
            }
            "modified_payload" if op == Op::WRITE => *pieces[0].base.cast::<u8>() ^= 1,
            "touch_later" if is_read && !pieces.is_empty() => chan.touched_later.set(pieces[0].base.cast()),
            "wrong_thread" if is_read => {
                let io = address(io);
                let other = std::thread::spawn(move || complete(io as *mut BdevIo, IoStatus::SUCCESS));
                other.join().expect("the thread only completes");
                return;
            }
            "wrong_reactor" if is_read => {
                let host = DOOR.host();
                let here = (host.reactor_index)((host.reactor_current)());
                (host.send)((host.reactor_nth)(1 - here), MessageFn(finish_elsewhere), io.cast());
                return;
            }
            "swapped_done" if chan.queue.borrow().len() > 1 => {
                let other = chan.queue.borrow()[0];
                std::mem::swap(&mut (*io).done_arg, &mut (*other).done_arg);
            }
            _ => {}
        }
        complete(io, status);
        if disk.fault == "double_complete" && is_read {
            complete(io, status);
        }
    }
}

/// # Safety
/// `io` is ours.
unsafe fn pieces(io: *mut BdevIo) -> Vec<IoVec> {
    // SAFETY: the caller promises it.
    unsafe {
        match (*io).iovs.is_null() {
            true => Vec::new(),
            false => std::slice::from_raw_parts((*io).iovs, (*io).iovcnt as usize).to_vec(),
        }
    }
}

/// # Safety
/// `io` is ours, and within the disk.
unsafe fn execute(disk: &Disk, io: &mut BdevIo) -> IoStatus {
    let (start, len) = (io.offset_blocks as usize * disk.block, io.num_blocks as usize * disk.block);
    if matches!(io.op, Op::FLUSH | Op::RESET) {
        let refuses = disk.fault == "flush_needs_range" && io.op == Op::FLUSH;
        return if refuses { IoStatus::INVALID } else { IoStatus::SUCCESS };
    }
    if disk.fault == "short_by_one" && start + len == disk.len {
        return IoStatus::LBA_OUT_OF_RANGE;
    }
    // SAFETY: the gate checked the range.
    let memory = unsafe { disk.memory.add(start) };
    // SAFETY: the caller promises the I/O.
    let list = unsafe { pieces(io) };
    // SAFETY: the gate checked range and payload; payloads are not our memory.
    unsafe {
        match io.op {
            Op::READ => read(disk, io, memory, len, &list),
            Op::WRITE => {
                store(memory, &list);
                let lent = disk.last_lent.get();
                if disk.fault == "unstable_lent" && !lent.is_null() {
                    *lent = (*lent).wrapping_add(1);
                }
            }
            Op::WRITE_ZEROES if disk.fault == "lazy_zeroes" => {}
            Op::UNMAP if disk.fault == "greedy_unmap" && start + len < disk.len => {
                memory.write_bytes(0, len + disk.block);
            }
            Op::UNMAP | Op::WRITE_ZEROES => memory.write_bytes(0, len),
            Op::COMPARE if disk.fault == "blind_compare" => {}
            Op::COMPARE => return compare(memory, &list),
            Op::COMPARE_AND_WRITE => {
                let ext = &*io.ext;
                let expected = std::slice::from_raw_parts(ext.compare_iovs, ext.compare_iovcnt as usize);
                let status = compare(memory, expected);
                if !status.is_success() {
                    return status;
                }
                store(memory, &list);
            }
            _ => return IoStatus::NOT_SUPPORTED,
        }
    }
    IoStatus::SUCCESS
}

/// # Safety
/// `memory` has `len` bytes, and the pieces hold as many.
unsafe fn read(disk: &Disk, io: &mut BdevIo, memory: *mut u8, len: usize, list: &[IoVec]) {
    if io.flags.contains(IoFlags::LEND) {
        io.inline_iov = IoVec { base: memory.cast(), len };
        io.iovs = &raw mut io.inline_iov;
        io.iovcnt = 1;
        io.flags = IoFlags(io.flags.0 | IoFlags::LENT.0);
        disk.last_lent.set(memory);
        return;
    }
    let mut at = 0;
    for piece in list {
        // SAFETY: the caller promises it.
        unsafe { piece.base.cast::<u8>().copy_from_nonoverlapping(memory.add(at), piece.len) };
        at += piece.len;
    }
    if disk.fault == "wrong_data" && io.num_blocks > 1 {
        // SAFETY: as above.
        unsafe { *list[0].base.cast::<u8>() ^= 1 };
    }
}

/// # Safety
/// `memory` has as many bytes as the pieces.
unsafe fn store(memory: *mut u8, list: &[IoVec]) {
    let mut at = 0;
    for piece in list {
        // SAFETY: the caller promises it.
        unsafe { memory.add(at).copy_from_nonoverlapping(piece.base.cast::<u8>(), piece.len) };
        at += piece.len;
    }
}

/// # Safety
/// `memory` and the pieces are readable.
unsafe fn compare(memory: *mut u8, list: &[IoVec]) -> IoStatus {
    let mut at = 0;
    for piece in list {
        // SAFETY: the caller promises it.
        let (mine, theirs) = unsafe {
            let mine = std::slice::from_raw_parts(memory.add(at), piece.len);
            (mine, std::slice::from_raw_parts(piece.base.cast::<u8>(), piece.len))
        };
        if mine != theirs {
            return IoStatus::MISCOMPARE;
        }
        at += piece.len;
    }
    IoStatus::SUCCESS
}
