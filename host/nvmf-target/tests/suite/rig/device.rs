//! A module with devices in memory, as a vendor would write it: every operation
//! the target can ask for, completion at once or later, abort, lent memory.
// UNSAFETY: speaks the raw contract.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::ffi::{c_char, c_void};

use serde_json::Value;
use tenon_abi::*;

/// One device. Never freed: a test's devices are few.
struct Device {
    data: RefCell<Vec<u8>>,
    delay_us: Cell<u64>,
    lends: bool,
    lent: Cell<u32>,
    handle: Cell<BdevHandle>,
    waiting: RefCell<Vec<*mut BdevIo>>,
    /// What the next I/O ends with, if not as it should.
    failure: Cell<Option<i32>>,
}

thread_local! {
    static DEVICES: RefCell<HashMap<String, &'static Device>> = RefCell::default();
    static ME: Cell<*mut HostModule> = const { Cell::new(std::ptr::null_mut()) };
    static SEED: Cell<u64> = const { Cell::new(1) };
}

pub fn reset(seed: u64) {
    DEVICES.with(|devices| devices.borrow_mut().clear());
    SEED.with(|cell| cell.set(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1));
}

/// A small deterministic number.
pub fn chance() -> u64 {
    SEED.with(|seed| {
        let mut x = seed.get();
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        seed.set(x);
        x >> 16
    })
}

fn host() -> &'static HostApiV1 {
    tenon_bdev::host_api()
}

fn device(name: &str) -> &'static Device {
    DEVICES.with(|devices| *devices.borrow().get(name).expect("device exists"))
}

pub fn resize(name: &str, blocks: u64) {
    let device = device(name);
    device.data.borrow_mut().resize(blocks as usize * 512, 0);
    // SAFETY: the host's function, on the control reactor.
    assert_eq!(unsafe { (host().bdev_resize)(device.handle.get(), blocks) }, 0);
}

pub fn fail_next(name: &str, status: i32) {
    device(name).failure.set(Some(status));
}

pub fn lent(name: &str) -> u32 {
    device(name).lent.get()
}

pub fn set_delay(name: &str, delay_us: u64) {
    device(name).delay_us.set(delay_us);
}

fn done(token: OpToken) {
    // SAFETY: the host's function.
    unsafe { (host().op_done)(token, Str::EMPTY, std::ptr::null()) };
}

unsafe extern "C" fn init(_: *const HostApiV1, me: *mut HostModule, _: Str, _: *mut c_char, _: usize) -> i32 {
    ME.with(|cell| cell.set(me));
    0
}

unsafe extern "C" fn create(params: Str, token: OpToken) {
    // SAFETY: valid during the call.
    let params: Value = serde_json::from_str(unsafe { params.as_str() }.unwrap_or("{}")).expect("JSON");
    let name = params["name"].as_str().expect("name").to_owned();
    let blocks = params["blocks"].as_u64().unwrap_or(256);
    let lends = params["lends"].as_bool().unwrap_or(false);
    let made = Box::leak(Box::new(Device {
        data: RefCell::new(vec![0; blocks as usize * 512]),
        delay_us: Cell::new(params["delay_us"].as_u64().unwrap_or(0)),
        lends,
        lent: Cell::new(0),
        handle: Cell::new(BdevHandle(0)),
        waiting: RefCell::default(),
        failure: Cell::new(None),
    }));
    let mut limits = Limits::new(512, blocks);
    limits.atomic_compare_write_blocks = 8;
    let is_plain = params["plain"].as_bool().unwrap_or(false);
    let plain = [Op::READ, Op::WRITE];
    let every = [
        Op::READ,
        Op::WRITE,
        Op::FLUSH,
        Op::UNMAP,
        Op::WRITE_ZEROES,
        Op::COMPARE,
        Op::COMPARE_AND_WRITE,
        Op::COPY,
        Op::VERIFY,
    ];
    let ops = if is_plain { &plain[..] } else { &every[..] };
    let bdev = BdevV1 {
        size: size_of::<BdevV1>() as u32,
        flags: BdevFlags::VOLATILE_WRITE_CACHE,
        limits,
        io_types: ops.iter().fold(0, |bits, op| bits | op.bit()),
        io_flags: if lends { u64::from(IoFlags::LEND.0) } else { 0 },
        uuid: [0; 16],
        nguid: [7; 16],
        eui64: [0; 8],
        numa_node: -1,
        alias_count: 0,
        name: Str::new(&name),
        product: Str::new("Memory disk"),
        aliases: std::ptr::null(),
        ctx: std::ptr::from_ref::<Device>(made).cast_mut().cast(),
        ops: &raw const BDEV_OPS,
    };
    let mut handle = BdevHandle(0);
    // SAFETY: the struct lives until the call returns.
    let code = unsafe { (host().bdev_register)(ME.with(Cell::get), &bdev, token, &mut handle) };
    assert_eq!(code, 0, "{name} registers");
    made.handle.set(handle);
    DEVICES.with(|devices| devices.borrow_mut().insert(name, made));
    done(token);
}

unsafe extern "C" fn destruct(_: *mut c_void, token: OpToken) {
    done(token);
}

unsafe extern "C" fn channel_create(ctx: *mut c_void, ch: *mut IoChannel) -> i32 {
    // SAFETY: the host's channel.
    unsafe {
        (*ch).ops = &raw const IO_OPS;
        (*ch).ctx = ctx;
        (*ch).io_ctx_size = 64;
    }
    0
}

unsafe extern "C" fn channel_destroy(_: *mut c_void, ch: *mut IoChannel) {
    // SAFETY: the host's channel.
    assert_eq!(unsafe { (*ch).outstanding }, 0);
}

unsafe fn of(ch: *mut IoChannel) -> &'static Device {
    // SAFETY: set by `channel_create` to a leaked device.
    unsafe { &*(*ch).ctx.cast::<Device>() }
}

unsafe extern "C" fn submit_io(ch: *mut IoChannel, io: *mut BdevIo) {
    // SAFETY: the host hands over one I/O.
    unsafe {
        let device = of(ch);
        let delay_us = device.delay_us.get();
        if delay_us == 0 {
            let status = run(device, io);
            return complete(io, status);
        }
        device.waiting.borrow_mut().push(io);
        let mut timer = ReactorHandle(0);
        let delay_ns = (chance() % delay_us + 1) * 1000;
        assert_eq!((host().timer_start)(delay_ns, MessageFn(later), io.cast(), &mut timer), 0);
    }
}

unsafe extern "C" fn later(arg: *mut c_void) {
    let io: *mut BdevIo = arg.cast();
    // SAFETY: an I/O that is still waiting is still ours; others were aborted and may be reused, so the
    // device is found through the list and not through the I/O.
    unsafe {
        let found = DEVICES.with(|devices| {
            devices.borrow().values().copied().find(|device| device.waiting.borrow().contains(&io))
        });
        let Some(device) = found else { return };
        device.waiting.borrow_mut().retain(|waiting| *waiting != io);
        let status = run(device, io);
        complete(io, status);
    }
}

unsafe extern "C" fn abort_io(ch: *mut IoChannel, victim: *mut BdevIo) -> i32 {
    // SAFETY: the host's channel; a waiting I/O is ours.
    unsafe {
        let device = of(ch);
        let before = device.waiting.borrow().len();
        device.waiting.borrow_mut().retain(|waiting| *waiting != victim);
        if device.waiting.borrow().len() == before {
            return errno::ENOENT;
        }
        complete(victim, IoStatus::ABORTED);
    }
    0
}

unsafe extern "C" fn release_io(ch: *mut IoChannel, _: *mut BdevIo) {
    // SAFETY: the host's channel.
    let device = unsafe { of(ch) };
    device.lent.set(device.lent.get() - 1);
}

unsafe fn pieces(iovs: *const IoVec, count: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    for at in 0..count as usize {
        // SAFETY: the consumer's list is valid until the completion.
        unsafe {
            let iov = *iovs.add(at);
            bytes.extend_from_slice(std::slice::from_raw_parts(iov.base.cast::<u8>(), iov.len));
        }
    }
    bytes
}

unsafe fn run(device: &Device, io: *mut BdevIo) -> IoStatus {
    // SAFETY: the I/O and its memory are valid until the completion.
    unsafe {
        let io = &mut *io;
        if let Some(status) = device.failure.take() {
            return IoStatus(status);
        }
        let mut data = device.data.borrow_mut();
        let at = io.offset_blocks as usize * 512;
        let range = at..at + io.num_blocks as usize * 512;
        match io.op {
            Op::READ if device.lends && io.flags.contains(IoFlags::LEND) => {
                io.inline_iov = IoVec { base: data[range.clone()].as_mut_ptr().cast(), len: range.len() };
                io.iovs = &raw mut io.inline_iov;
                io.iovcnt = 1;
                io.flags.0 |= IoFlags::LENT.0;
                device.lent.set(device.lent.get() + 1);
            }
            Op::READ => {
                let mut from = range.start;
                for at in 0..io.iovcnt as usize {
                    let iov = *io.iovs.add(at);
                    std::ptr::copy_nonoverlapping(data[from..].as_ptr(), iov.base.cast(), iov.len);
                    from += iov.len;
                }
            }
            Op::WRITE => data[range].copy_from_slice(&pieces(io.iovs, io.iovcnt)),
            Op::UNMAP | Op::WRITE_ZEROES => data[range].fill(0),
            Op::COMPARE if data[range.clone()] != *pieces(io.iovs, io.iovcnt) => return IoStatus::MISCOMPARE,
            Op::COMPARE_AND_WRITE => {
                let ext = &*io.ext;
                if data[range.clone()] != *pieces(ext.compare_iovs, ext.compare_iovcnt) {
                    return IoStatus::MISCOMPARE;
                }
                data[range].copy_from_slice(&pieces(io.iovs, io.iovcnt));
            }
            Op::COPY => {
                let ext = &*io.ext;
                let mut to = at;
                for source in 0..ext.copy_range_count as usize {
                    let source = *ext.copy_ranges.add(source);
                    let from = source.offset_blocks as usize * 512;
                    let len = source.num_blocks as usize * 512;
                    data.copy_within(from..from + len, to);
                    to += len;
                }
            }
            _ => {}
        }
    }
    IoStatus::SUCCESS
}

unsafe extern "C" fn examine(_: BdevHandle, _: Str, token: ExamineToken) {
    // SAFETY: the host's function.
    unsafe { (host().examine_done)(token, ExamineAnswer::NOT_MINE, Str::EMPTY) };
}

unsafe extern "C" fn fini(token: OpToken) {
    done(token);
}

static IO_OPS: IoOpsV1 = IoOpsV1 {
    size: size_of::<IoOpsV1>() as u32,
    flags: 0,
    submit: submit_io,
    submit_batch: None,
    abort: Some(abort_io),
    release: Some(release_io),
};

static BDEV_OPS: BdevOpsV1 = BdevOpsV1 {
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

static OPS: ModuleOpsV1 = ModuleOpsV1 {
    size: size_of::<ModuleOpsV1>() as u32,
    flags: ModuleFlags::NONE,
    init,
    init_complete: None,
    configure: None,
    create: Some(create),
    update: None,
    delete: None,
    examine_config: Some(examine),
    examine_disk: None,
    hotplug: None,
    quiesce: None,
    fini,
    schema: None,
    validate: None,
    set_log_level: None,
    query: None,
    validate_config: None,
    config_json: None,
};

pub static PLUGIN: PluginDescV1 = PluginDescV1 {
    magic: MAGIC,
    size: size_of::<PluginDescV1>() as u32,
    abi_major: ABI_MAJOR,
    abi_minor: ABI_MINOR,
    sizes: AbiSizes::current(),
    name: Str::new("memory"),
    version: Str::new("1.0.0"),
    built_with: Str::new("test"),
    ops: &raw const OPS,
};
