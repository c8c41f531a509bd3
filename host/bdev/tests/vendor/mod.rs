//! A configurable module as a vendor would write it in C: static tables, raw
//! pointers, and no help from the SDK. What it does follows from the parameters of
//! `create` and from [`Behaviour`]; what happens to it is recorded.
//!
//! Everything is per thread, as each test has a simulation of its own.
// UNSAFETY: speaks the raw contract.
#![allow(dead_code, reason = "each test uses a part of it")]

use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::{c_char, c_void};
use std::mem::offset_of;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::Value;
use tenon_abi::*;

/// Number of distinct modules: `fake0`, `fake1`, …
pub const MODULES: usize = 4;

/// How a module behaves towards devices of others.
#[derive(Clone, Debug, Default)]
pub struct Behaviour {
    /// Examine: claims devices whose name starts with this, and builds one on top.
    pub takes: Option<String>,
    /// Examine: takes the device of this name in `examine_config`, which it looks up by the name.
    pub awaits: Option<String>,
    /// Answers `examine_disk` that much later; 0: at once.
    pub examine_delay_us: u64,
    /// Never answers `examine_disk`.
    pub leaks_examine: bool,
    /// Does not answer `examine_config` inside the call.
    pub late_config: bool,
    /// What its `delete` answers; 0: success.
    pub delete_code: i32,
    /// Never answers `fini`.
    pub leaks_fini: bool,
    /// Registers this RPC method at `init_complete`.
    pub method: Option<&'static str>,
    /// Watches this file from `init_complete` on.
    pub watches: Option<String>,
    /// Subscribes to memory at `init_complete`.
    pub subscribes: bool,
    /// Keeps a descriptor of each device it sees and never closes it.
    pub leaks_descriptors: bool,
}

/// What happened.
#[derive(Clone, Debug, Default)]
pub struct Record {
    pub examined_config: Vec<String>,
    pub examined_disk: Vec<String>,
    pub events: Vec<(String, u32)>,
    pub destructed: HashMap<u64, u32>,
    /// Names of devices it was told were rolled back, of those that it has.
    pub rolled_back: Vec<String>,
    /// Names of its devices in the order of their destruction, with a number that all modules share.
    pub destruct_order: Vec<(u64, String)>,
    pub removes: HashMap<u64, u32>,
    pub hotplug: Vec<(u32, String, String)>,
    pub regions: i64,
    /// Names its `delete` was called with.
    pub deleted: Vec<String>,
    pub faults: Vec<String>,
}

#[derive(Default)]
struct State {
    me: usize,
    behaviour: Behaviour,
    record: Record,
    tables: Vec<Device>,
    kept: Vec<OpToken>,
}

/// One device of a fake module.
struct Device {
    id: u64,
    name: String,
    handle: BdevHandle,
    base: DescHandle,
    destruct_delay_us: u64,
    leaks_destruct: bool,
    ignores_remove: bool,
}

/// The handle each module was given last; `init` may run on a thread of its own.
static ME: [AtomicUsize; MODULES] = [const { AtomicUsize::new(0) }; MODULES];

thread_local! {
    static STATES: RefCell<Vec<State>> = RefCell::new((0..MODULES).map(|_| State::default()).collect());
    static NEXT: RefCell<u64> = const { RefCell::new(1) };
}

fn host() -> &'static HostApiV1 {
    tenon_bdev::host_api()
}

fn with<T>(module: usize, f: impl FnOnce(&mut State) -> T) -> T {
    STATES.with(|states| f(&mut states.borrow_mut()[module]))
}

/// Forgets all that was recorded and set on this thread.
pub fn reset() {
    STATES.with(|states| states.borrow_mut().iter_mut().for_each(|state| *state = State::default()));
}

pub fn behave(module: usize, behaviour: Behaviour) {
    with(module, |state| state.behaviour = behaviour);
}

pub fn record(module: usize) -> Record {
    with(module, |state| state.record.clone())
}

pub fn handle_of(module: usize, name: &str) -> Option<BdevHandle> {
    with(module, |state| state.tables.iter().find(|device| device.name == name).map(|device| device.handle))
}

/// As this thread's `init` was told, or else as any thread's was: a test with real threads is alone in
/// its process.
pub fn me(module: usize) -> *mut HostModule {
    let own = with(module, |state| state.me);
    let me = if own == 0 { ME[module].load(Ordering::Relaxed) } else { own };
    std::ptr::with_exposed_provenance_mut(me)
}

/// Answers what a `create` with `keep` has left open.
pub fn answer_kept(module: usize) {
    for token in with(module, |state| std::mem::take(&mut state.kept)) {
        // SAFETY: the host's function, on the control reactor.
        unsafe { (host().op_done)(token, Str::EMPTY, std::ptr::null()) };
    }
}

/// Runs `f` once, `delay_us` from now, on the control reactor.
fn after(delay_us: u64, f: impl FnOnce() + 'static) {
    type Boxed = Box<dyn FnOnce()>;
    unsafe extern "C" fn call(arg: *mut c_void) {
        // SAFETY: `arg` is the box made below, taken once.
        unsafe { Box::from_raw(arg.cast::<Boxed>())() };
    }
    let boxed: Box<Boxed> = Box::new(Box::new(f));
    let arg = Box::into_raw(boxed).cast();
    let mut handle = ReactorHandle(0);
    // SAFETY: the box lives until the timer fires.
    let code = unsafe { (host().timer_start)(delay_us * 1000, MessageFn(call), arg, &mut handle) };
    assert_eq!(code, 0);
}

fn done(token: OpToken, result: &str) {
    // SAFETY: the text lives until the call returns.
    unsafe { (host().op_done)(token, Str::new(result), std::ptr::null()) };
}

fn failed(token: OpToken, code: i32, object: &str, reason: &str) {
    let error = ErrorV1 {
        size: size_of::<ErrorV1>() as u32,
        code,
        object: Str::new(object),
        reason: Str::new(reason),
        cause: Str::EMPTY,
    };
    // SAFETY: the struct lives until the call returns.
    unsafe { (host().op_done)(token, Str::EMPTY, &error) };
}

unsafe fn parse(params: Str) -> Value {
    // SAFETY: valid during the call.
    serde_json::from_str(unsafe { params.as_str() }.unwrap_or("{}")).expect("valid JSON")
}

unsafe extern "C" fn init<const M: usize>(
    _: *const HostApiV1,
    me: *mut HostModule,
    _: Str,
    _: *mut c_char,
    _: usize,
) -> i32 {
    with(M, |state| state.me = me.expose_provenance());
    ME[M].store(me.addr(), Ordering::Relaxed);
    0
}

unsafe extern "C" fn init_complete<const M: usize>() {
    unsafe extern "C" fn method<const M: usize>(_: *mut c_void, params: Str, token: OpToken) {
        // SAFETY: as the contract has it.
        unsafe { create::<M>(params, token) };
    }
    unsafe extern "C" fn memory<const M: usize>(
        _: *mut c_void,
        event: BufferEvent,
        region: *const MemoryRegion,
    ) {
        // SAFETY: valid during the call.
        let len = unsafe { (*region).len };
        assert!(len > 0);
        with(M, |state| state.record.regions += if event == BufferEvent::ADD { 1 } else { -1 });
    }
    let behaviour = with(M, |state| state.behaviour.clone());
    if behaviour.subscribes {
        let mut subscription = 0;
        // SAFETY: the callback is static.
        let code = unsafe {
            (host().memory_subscribe)(me(M), MemoryFn(memory::<M>), std::ptr::null_mut(), &mut subscription)
        };
        assert_eq!(code, 0);
    }
    if let Some(path) = behaviour.watches {
        // SAFETY: the texts live until the call returns.
        let code = unsafe { (host().hotplug_watch)(me(M), Str::new("file"), Str::new(&path)) };
        assert_eq!(code, 0);
    }
    if let Some(name) = with(M, |state| state.behaviour.method) {
        // SAFETY: the text is static.
        let code =
            unsafe { (host().rpc_register)(me(M), Str::new(name), RpcFn(method::<M>), std::ptr::null_mut()) };
        if code != 0 {
            with(M, |state| state.record.faults.push(format!("rpc_register {code}")));
        }
    }
}

unsafe extern "C" fn create<const M: usize>(params: Str, token: OpToken) {
    // SAFETY: valid during the call.
    let params = unsafe { parse(params) };
    let number = |key: &str| params.get(key).and_then(Value::as_u64).unwrap_or(0);
    if number("delay_us") > 0 {
        let params = params.clone();
        after(number("delay_us"), move || build(M, &params, token));
    } else {
        build(M, &params, token);
    }
}

fn build(module: usize, params: &Value, token: OpToken) {
    let name = params.get("name").and_then(Value::as_str).unwrap_or("unnamed").to_owned();
    let flag = |key: &str| params.get(key).and_then(Value::as_bool).unwrap_or(false);
    let number = |key: &str| params.get(key).and_then(Value::as_u64).unwrap_or(0);
    if flag("awaits") {
        done(token, r#"{"missing":["d0","d1"]}"#);
        if flag("arrives") {
            assert_eq!(arrive(module, &name), 0);
        }
        return;
    }
    let mut base = DescHandle(0);
    if let Some(base_name) = params.get("base").and_then(Value::as_str) {
        // SAFETY: the text lives until the call returns.
        let found = unsafe { (host().bdev_find)(Str::new(base_name)) };
        if found.0 == 0 {
            return failed(token, errno::ENODEV, base_name, "base is not there");
        }
        match take(module, found) {
            Ok(desc) => base = desc,
            Err(code) => return failed(token, code, base_name, "base cannot be claimed"),
        }
    }
    let count = number("count").max(1);
    for index in 0..count {
        let own = if index == 0 { name.clone() } else { format!("{name}.{index}") };
        let base = if index == 0 { base } else { DescHandle(0) };
        let code = register(module, &own, base, token, params);
        if code != 0 {
            if index == 0 && base.0 != 0 {
                close(base);
            }
            return failed(token, code, &own, "device cannot be registered");
        }
    }
    if let Some(base) = params.get("late_base").and_then(Value::as_str) {
        // SAFETY: the text lives until the call returns.
        let found = unsafe { (host().bdev_find)(Str::new(base)) };
        if found.0 == 0 {
            return failed(token, errno::ENODEV, base, "base is not there");
        }
    }
    if flag("fail") {
        return failed(token, errno::EIO, &name, "told to fail");
    }
    if flag("keep") {
        return with(module, |state| state.kept.push(token));
    }
    let answer_delay_us = number("answer_delay_us");
    let finish = move |twice: bool| {
        done(token, &format!("\"{name}\""));
        if twice {
            done(token, "true");
        }
    };
    let twice = flag("twice");
    if answer_delay_us > 0 { after(answer_delay_us, move || finish(twice)) } else { finish(twice) }
}

/// Registers a device by itself, as a module does whose create had to wait.
pub fn arrive(module: usize, name: &str) -> i32 {
    register(module, name, DescHandle(0), OpToken(0), &Value::Null)
}

/// Deletes by name; the host removes the device, if there is one.
unsafe extern "C" fn delete<const M: usize>(name: Str, token: OpToken) {
    // SAFETY: valid during the call.
    let name = unsafe { name.as_str() }.expect("text").to_owned();
    with(M, |state| state.record.deleted.push(name.clone()));
    match with(M, |state| state.behaviour.delete_code) {
        0 => done(token, ""),
        code => failed(token, code, &name, "told to refuse"),
    }
}

/// Opens and claims a device.
fn take(module: usize, bdev: BdevHandle) -> Result<DescHandle, i32> {
    let mut desc = DescHandle(0);
    let arg = std::ptr::without_provenance_mut(module);
    // SAFETY: the host's functions; the callback is static.
    unsafe {
        let code = (host().bdev_open)(me(module), bdev, OpenFlags::WRITE, EventFn(on_event), arg, &mut desc);
        if code != 0 {
            return Err(code);
        }
        let code = (host().bdev_claim)(desc, ClaimKind::EXCL_WRITE, 0);
        if code != 0 {
            (host().bdev_close)(desc);
            return Err(code);
        }
    }
    BASES.with(|bases| bases.borrow_mut().insert(desc.0, bdev.0));
    Ok(desc)
}

fn close(desc: DescHandle) {
    // SAFETY: the host's function.
    let code = unsafe { (host().bdev_close)(desc) };
    assert_eq!(code, 0, "a descriptor is closed once");
}

fn next_number() -> u64 {
    NEXT.with(|next| {
        let mut next = next.borrow_mut();
        *next += 1;
        *next
    })
}

/// Registers a device on `base` (0: none).
fn register(module: usize, name: &str, base: DescHandle, op: OpToken, params: &Value) -> i32 {
    let id = next_number();
    let number = |key: &str| params.get(key).and_then(Value::as_u64).unwrap_or(0);
    let flag = |key: &str| params.get(key).and_then(Value::as_bool).unwrap_or(false);
    let ctx: *mut c_void = std::ptr::without_provenance_mut((id as usize) << 4 | module);
    let bdev = plain(name, ctx);
    let device = Device {
        id,
        name: name.to_owned(),
        handle: BdevHandle(0),
        base,
        destruct_delay_us: number("destruct_delay_us"),
        leaks_destruct: flag("leaks_destruct"),
        ignores_remove: flag("ignores_remove"),
    };
    with(module, |state| state.tables.push(device));
    let mut handle = BdevHandle(0);
    // SAFETY: the struct and what it points to live until the call returns.
    let code = unsafe { (host().bdev_register)(me(module), &bdev, op, &mut handle) };
    with(module, |state| {
        if code == 0 {
            if let Some(device) = state.tables.iter_mut().rev().find(|device| device.id == id) {
                device.handle = handle;
            }
        } else {
            state.tables.retain(|device| device.id != id);
        }
    });
    code
}

/// A device without specialities.
fn plain(name: &str, ctx: *mut c_void) -> BdevV1 {
    BdevV1 {
        size: size_of::<BdevV1>() as u32,
        flags: BdevFlags(0),
        limits: Limits::new(512, 2048),
        io_types: Op::READ.bit() | Op::WRITE.bit(),
        io_flags: 0,
        uuid: [0; 16],
        nguid: [0; 16],
        eui64: [0; 8],
        numa_node: -1,
        alias_count: 0,
        name: Str::new(name),
        product: Str::new("Fake disk"),
        aliases: std::ptr::null(),
        ctx,
        ops: &raw const BDEV_OPS,
    }
}

/// Registers a device that `change` has changed, and returns what the host says.
pub fn register_raw(module: usize, change: impl FnOnce(&mut BdevV1)) -> i32 {
    let id = next_number();
    let mut bdev = plain("raw", std::ptr::without_provenance_mut((id as usize) << 4 | module));
    change(&mut bdev);
    let mut handle = BdevHandle(0);
    // SAFETY: the struct and what it points to live until the call returns.
    let code = unsafe { (host().bdev_register)(me(module), &bdev, OpToken(0), &mut handle) };
    if code == 0 {
        let device = Device {
            id,
            name: "raw".into(),
            handle,
            base: DescHandle(0),
            destruct_delay_us: 0,
            leaks_destruct: false,
            ignores_remove: false,
        };
        with(module, |state| state.tables.push(device));
    }
    code
}

/// Answers a token that may not be the module's.
pub fn answer(token: OpToken) {
    done(token, "true");
}

/// Tables of a module that counts: of today, and as a plugin has it that was built before there was the callback.
pub static COUNTING_OPS: BdevOpsV1 = BdevOpsV1 { stats_json: Some(stats_json), ..BDEV };
pub static OLDER_OPS: BdevOpsV1 =
    BdevOpsV1 { size: offset_of!(BdevOpsV1, stats_json) as u32, stats_json: Some(stats_json), ..BDEV };

static BDEV_OPS: BdevOpsV1 = BDEV;

const BDEV: BdevOpsV1 = BdevOpsV1 {
    size: size_of::<BdevOpsV1>() as u32,
    flags: 0,
    channel_create,
    channel_destroy,
    destruct,
    dump_json: Some(dump_json),
    config_json: None,
    reset_stats: None,
    stats_json: None,
    rolled_back: Some(rolled_back),
};

static IO_OPS: IoOpsV1 = IoOpsV1 {
    size: size_of::<IoOpsV1>() as u32,
    flags: 0,
    submit: submit_io,
    submit_batch: None,
    abort: None,
    release: None,
};

unsafe extern "C" fn submit_io(_: *mut IoChannel, io: *mut BdevIo) {
    // SAFETY: the host hands over one I/O.
    unsafe { complete(io, IoStatus::SUCCESS) };
}

unsafe extern "C" fn channel_create(_: *mut c_void, ch: *mut IoChannel) -> i32 {
    // SAFETY: the host's channel.
    unsafe {
        (*ch).ops = &raw const IO_OPS;
        (*ch).io_ctx_size = 0;
    }
    0
}

unsafe extern "C" fn channel_destroy(_: *mut c_void, ch: *mut IoChannel) {
    // SAFETY: the host's channel.
    assert_eq!(unsafe { (*ch).outstanding }, 0);
}

unsafe extern "C" fn dump_json(_: *mut c_void, sink: *const JsonSink) {
    // SAFETY: valid during the call.
    unsafe { ((*sink).write)((*sink).arg, Str::new("{\"fake\":true}")) };
}

unsafe extern "C" fn stats_json(_: *mut c_void, sink: *const JsonSink) {
    // SAFETY: valid during the call.
    unsafe { ((*sink).write)((*sink).arg, Str::new("{\"errors\":3}")) };
}

unsafe extern "C" fn rolled_back(ctx: *mut c_void) {
    let (module, id) = (ctx.addr() & 15, (ctx.addr() >> 4) as u64);
    with(module, |state| {
        let device = state.tables.iter().find(|device| device.id == id);
        state.record.rolled_back.extend(device.map(|device| device.name.clone()));
    });
}

unsafe extern "C" fn destruct(ctx: *mut c_void, token: OpToken) {
    let (module, id) = (ctx.addr() & 15, (ctx.addr() >> 4) as u64);
    let device = with(module, |state| {
        *state.record.destructed.entry(id).or_default() += 1;
        let at = state.tables.iter().rposition(|device| device.id == id)?;
        let device = state.tables.swap_remove(at);
        state.record.destruct_order.push((next_number(), device.name.clone()));
        Some(device)
    });
    let Some(device) = device else {
        return with(module, |state| state.record.faults.push(format!("destruct of unknown device {id}")));
    };
    if device.leaks_destruct {
        return with(module, |state| state.kept.push(token));
    }
    let finish = move || {
        if device.base.0 != 0 {
            close(device.base);
        }
        done(token, "");
    };
    if device.destruct_delay_us > 0 { after(device.destruct_delay_us, finish) } else { finish() }
}

unsafe extern "C" fn on_event(arg: *mut c_void, event: *const BdevEvent) {
    let module = arg.addr();
    // SAFETY: valid during the call.
    let event = unsafe { &*event };
    let on_top: Vec<(BdevHandle, bool)> = with(module, |state| {
        state.record.events.push((format!("{:#x}", event.bdev.0), event.kind.0));
        if event.kind == BdevEventKind::REMOVE {
            *state.record.removes.entry(event.bdev.0).or_default() += 1;
        }
        state.tables.iter().filter(|d| d.base.0 != 0).map(|d| (d.handle, d.ignores_remove)).collect()
    });
    if event.kind != BdevEventKind::REMOVE {
        return;
    }
    // The fake module does not know which of its devices stands on the one that goes, so it asks the table.
    for (bdev, ignores) in on_top {
        let stands = with(module, |state| {
            let device = state.tables.iter().find(|device| device.handle == bdev);
            device.is_some_and(|device| {
                BASES.with(|bases| bases.borrow().get(&device.base.0) == Some(&event.bdev.0))
            })
        });
        if stands && !ignores {
            // SAFETY: the host's function.
            unsafe { (host().bdev_unregister)(bdev, Reason::BASE_REMOVED) };
        }
    }
}

thread_local! {
    /// Device behind each descriptor that was opened.
    static BASES: RefCell<HashMap<u64, u64>> = RefCell::default();
}

unsafe extern "C" fn examine_config<const M: usize>(_: BdevHandle, name: Str, token: ExamineToken) {
    // SAFETY: valid during the call.
    let name = unsafe { name.as_str() }.expect("text").to_owned();
    let (late, awaits) = with(M, |state| {
        state.record.examined_config.push(name.clone());
        (state.behaviour.late_config, state.behaviour.awaits.clone())
    });
    if awaits.is_some_and(|awaited| awaited == name) {
        // SAFETY: the text lives until the call returns.
        let found = unsafe { (host().bdev_find)(Str::new(&name)) };
        let answer = assemble(M, found, &name);
        // SAFETY: the host's function.
        unsafe { (host().examine_done)(token, answer, Str::EMPTY) };
    } else if !late {
        // SAFETY: the host's function.
        unsafe { (host().examine_done)(token, ExamineAnswer::NOT_MINE, Str::EMPTY) };
    }
}

unsafe extern "C" fn examine_disk<const M: usize>(bdev: BdevHandle, name: Str, token: ExamineToken) {
    // SAFETY: valid during the call.
    let name = unsafe { name.as_str() }.expect("text").to_owned();
    let behaviour = with(M, |state| {
        state.record.examined_disk.push(name.clone());
        state.behaviour.clone()
    });
    if behaviour.leaks_descriptors {
        let mut desc = DescHandle(0);
        let arg = std::ptr::without_provenance_mut(M);
        // SAFETY: the host's function.
        unsafe { (host().bdev_open)(me(M), bdev, OpenFlags::READ, EventFn(on_event), arg, &mut desc) };
    }
    if behaviour.leaks_examine {
        return;
    }
    let delay_us = behaviour.examine_delay_us;
    let answer = move || {
        let wanted = behaviour.takes.as_ref().is_some_and(|prefix| name.starts_with(prefix.as_str()));
        let answer = if wanted { assemble(M, bdev, &name) } else { ExamineAnswer::NOT_MINE };
        // SAFETY: the host's function.
        unsafe { (host().examine_done)(token, answer, Str::EMPTY) };
    };
    if delay_us > 0 { after(delay_us, answer) } else { answer() }
}

/// Claims an examined device and builds one on it.
fn assemble(module: usize, bdev: BdevHandle, name: &str) -> ExamineAnswer {
    let Ok(desc) = take(module, bdev) else { return ExamineAnswer::FAILED };
    let own = format!("on-{name}");
    if register(module, &own, desc, OpToken(0), &Value::Null) != 0 {
        close(desc);
        return ExamineAnswer::FAILED;
    }
    ExamineAnswer::CLAIMED
}

unsafe extern "C" fn hotplug<const M: usize>(event: *const HotplugEvent) {
    // SAFETY: valid during the call.
    let (kind, id, attributes) = unsafe {
        let event = &*event;
        (
            event.kind.0,
            event.id.as_str().expect("text").to_owned(),
            event.attributes_json.as_str().expect("text").to_owned(),
        )
    };
    with(M, |state| state.record.hotplug.push((kind, id, attributes)));
}

unsafe extern "C" fn fini<const M: usize>(token: OpToken) {
    if with(M, |state| state.behaviour.leaks_fini) {
        return;
    }
    done(token, "");
}

const fn ops<const M: usize>() -> ModuleOpsV1 {
    ModuleOpsV1 {
        size: size_of::<ModuleOpsV1>() as u32,
        flags: ModuleFlags::NONE,
        init: init::<M>,
        init_complete: Some(init_complete::<M>),
        configure: None,
        create: Some(create::<M>),
        update: None,
        // The last module has a say in it; for the others the host does it alone.
        delete: if M == MODULES - 1 { Some(delete::<M>) } else { None },
        examine_config: Some(examine_config::<M>),
        examine_disk: Some(examine_disk::<M>),
        hotplug: Some(hotplug::<M>),
        quiesce: None,
        fini: fini::<M>,
        schema: None,
        set_log_level: None,
        query: None,
        validate: None,
        validate_config: None,
        config_json: None,
    }
}

static OPS: [ModuleOpsV1; MODULES] = [ops::<0>(), ops::<1>(), ops::<2>(), ops::<3>()];

const fn plugin(name: &'static str, ops: &'static ModuleOpsV1) -> PluginDescV1 {
    PluginDescV1 {
        magic: MAGIC,
        size: size_of::<PluginDescV1>() as u32,
        abi_major: ABI_MAJOR,
        abi_minor: ABI_MINOR,
        sizes: AbiSizes::current(),
        name: Str::new(name),
        version: Str::new("1.0.0"),
        built_with: Str::new("test"),
        ops,
    }
}

static PLUGINS: [PluginDescV1; MODULES] =
    [plugin("fake0", &OPS[0]), plugin("fake1", &OPS[1]), plugin("fake2", &OPS[2]), plugin("fake3", &OPS[3])];

pub fn descriptor(module: usize) -> *const PluginDescV1 {
    &raw const PLUGINS[module]
}
