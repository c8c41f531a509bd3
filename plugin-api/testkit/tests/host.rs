//! The fake host by itself: time, order, threads, descriptors, publications.
// UNSAFETY: drives the raw table as a module would.

mod mini;

use std::cell::{Cell, RefCell};
use std::ffi::c_void;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tenon_abi::{
    BdevEventKind, BufferEvent, ClaimKind, FdFn, HostApiV1, HotplugKind, IoStatus, MemoryFn, MemoryRegion,
    MessageFn, Op, OpToken, PluginDescV1, PollerFlags, PollerV1, ReactorHandle, Reason, RpcFn, Str, errno,
};
use tenon_testkit::{
    Access, BaseSpec, Channel, Conformance, FakeHost, Fault, FaultPlan, Io, LoadError, Place, Plugin, Request,
};

const RAM: &str = r#"{"name":"m0","size":65536,"block_size":512}"#;

unsafe extern "C" fn count(arg: *mut c_void) {
    // SAFETY: the tests pass a counter that lives long enough.
    let counter = unsafe { &*arg.cast::<Cell<u32>>() };
    counter.set(counter.get() + 1);
}

unsafe extern "C" fn count_poll(arg: *mut c_void) -> i32 {
    // SAFETY: as in `count`.
    unsafe { count(arg) };
    0
}

fn arg(counter: &Cell<u32>) -> *mut c_void {
    std::ptr::from_ref(counter).cast_mut().cast()
}

#[test]
fn a_timer_fires_once_at_its_time() {
    let (host, fired) = (FakeHost::new(1), Cell::new(0));
    let mut timer = ReactorHandle(0);
    let start = host.now_ns();
    host.on(Place::Data(0), || {
        // SAFETY: on a reactor; the counter outlives the host.
        unsafe { (host.table().timer_start)(5_000_000, MessageFn(count), arg(&fired), &raw mut timer) };
    });
    host.advance(Duration::from_millis(4));
    assert_eq!((fired.get(), host.now_ns() - start), (0, 4_000_000));
    assert!(host.run_until(Duration::from_millis(10), || fired.get() > 0));
    assert_eq!(host.now_ns() - start, 5_000_000, "time stops where something happens");
    host.advance(Duration::from_secs(10));
    assert_eq!(fired.get(), 1);
}

#[test]
fn a_cancelled_timer_does_not_fire() {
    let (host, fired) = (FakeHost::new(1), Cell::new(0));
    let mut timer = ReactorHandle(0);
    let code = host.on(Place::Control, || {
        // SAFETY: on a reactor; the counter outlives the host.
        unsafe {
            (host.table().timer_start)(1000, MessageFn(count), arg(&fired), &raw mut timer);
            (host.table().timer_cancel)(timer)
        }
    });
    host.advance(Duration::from_secs(1));
    // SAFETY: a stale handle is allowed.
    let again = host.on(Place::Control, || unsafe { (host.table().timer_cancel)(timer) });
    assert_eq!((code, again, fired.get()), (0, errno::ENOENT, 0));
}

#[test]
fn a_handle_of_another_reactor_is_refused_and_recorded() {
    let (host, fired) = (FakeHost::new(1), Cell::new(0));
    let mut timer = ReactorHandle(0);
    // SAFETY: on a reactor; the counter outlives the host.
    host.on(Place::Data(0), || unsafe {
        (host.table().timer_start)(1000, MessageFn(count), arg(&fired), &raw mut timer)
    });
    // SAFETY: wrong on purpose.
    let code = host.on(Place::Data(1), || unsafe { (host.table().timer_cancel)(timer) });
    assert_eq!(code, errno::EPERM);
    assert_eq!(host.take_violations()[0].fault, Fault::WrongThread);
}

#[test]
fn a_periodic_poller_runs_once_per_period() {
    let (host, ran) = (FakeHost::new(1), Cell::new(0));
    let poller = PollerV1 {
        size: size_of::<PollerV1>() as u32,
        flags: PollerFlags::PURE,
        name: Str::new("test"),
        period_us: 100,
        callback: count_poll,
        before_sleep: None,
        arg: arg(&ran),
    };
    let mut handle = ReactorHandle(0);
    // SAFETY: on a reactor; the counter outlives the host.
    host.on(Place::Data(0), || unsafe { (host.table().poller_register)(&raw const poller, &raw mut handle) });
    host.advance(Duration::from_millis(1));
    assert_eq!(ran.get(), 10);
    // SAFETY: its own reactor.
    host.on(Place::Data(0), || unsafe { (host.table().poller_set)(handle, 100, 1) });
    host.advance(Duration::from_millis(1));
    assert_eq!(ran.get(), 10, "paused");
    // SAFETY: as above.
    host.on(Place::Data(0), || unsafe { (host.table().poller_unregister)(handle) });
}

#[test]
fn messages_to_one_reactor_stay_in_order() {
    thread_local!(static SEEN: RefCell<Vec<usize>> = const { RefCell::new(Vec::new()) });
    unsafe extern "C" fn note(arg: *mut c_void) {
        SEEN.with_borrow_mut(|seen| seen.push(arg as usize));
    }
    let host = FakeHost::new(7);
    for nth in 0..20 {
        // SAFETY: the reactor is the host's; the argument is a number.
        let code = host.on(Place::Control, || unsafe {
            (host.table().send)(
                (host.table().reactor_nth)(nth as u32 % 2),
                MessageFn(note),
                nth as *mut c_void,
            )
        });
        assert_eq!(code, 0);
    }
    host.settle();
    let seen = SEEN.take();
    for reactor in 0..2 {
        let order: Vec<usize> = seen.iter().copied().filter(|nth| nth % 2 == reactor).collect();
        assert!(order.is_sorted(), "{order:?}");
    }
    assert_eq!(seen.len(), 20);
}

#[test]
fn offloaded_work_runs_off_the_reactors_and_answers_on_its_own() {
    thread_local!(static PLACES: RefCell<Vec<bool>> = const { RefCell::new(Vec::new()) });
    unsafe extern "C" fn note(arg: *mut c_void) {
        // SAFETY: the test passes the host's table.
        let table = unsafe { &*arg.cast::<tenon_abi::HostApiV1>() };
        // SAFETY: any thread may ask.
        PLACES.with_borrow_mut(|places| places.push(unsafe { (table.reactor_current)() }.is_null()));
    }
    let host = FakeHost::new(3);
    let table = std::ptr::from_ref(host.table()).cast_mut().cast();
    // SAFETY: on a reactor; the table is static.
    host.on(Place::Data(1), || unsafe { (host.table().offload)(MessageFn(note), MessageFn(note), table) });
    host.settle();
    assert_eq!(PLACES.take(), [true, false], "work is on no reactor, its answer is");
}

#[test]
fn a_ready_descriptor_is_heard_with_real_io() {
    unsafe extern "C" fn ready(arg: *mut c_void, revents: u32) {
        assert_ne!(revents, 0);
        // SAFETY: as in `count`.
        unsafe { count(arg) };
    }
    let (reader, mut writer) = std::io::pipe().expect("a pipe");
    let heard = Cell::new(0);
    let host = FakeHost::builder().real_io(true).build();
    let mut watch = ReactorHandle(0);
    // SAFETY: on a reactor; pipe and counter outlive the watch.
    host.on(Place::Data(0), || unsafe {
        (host.table().fd_register)(reader.as_raw_fd(), 1, FdFn(ready), arg(&heard), &raw mut watch)
    });
    host.advance(Duration::from_millis(3));
    assert_eq!(heard.get(), 0);
    writer.write_all(b"x").expect("room in a fresh pipe");
    assert!(host.run_until(Duration::from_secs(10), || heard.get() > 0));
    // SAFETY: its own reactor.
    host.on(Place::Data(0), || unsafe { (host.table().fd_unregister)(watch) });
    let before = heard.get();
    host.advance(Duration::from_millis(3));
    assert_eq!(heard.get(), before, "no callback after fd_unregister");
}

/// The order in which things happened, as one seed gives it.
fn trace(seed: u64) -> Vec<u64> {
    let host = FakeHost::new(seed);
    let base = host.add_base(BaseSpec::new("b0", 512, 512).plan(FaultPlan::none().delay_ns(0, 50_000)));
    let desc = host.open("b0", Access::Write).expect("it is there");
    let channels: Vec<Channel> = (0..2).map(|nth| desc.channel(nth).expect("a channel")).collect();
    let ios: Vec<Io> = (0..40).map(|nth| channels[nth % 2].submit(Request::read(nth as u64, 1))).collect();
    let mut order = Vec::new();
    while order.len() < ios.len() {
        for (nth, io) in ios.iter().enumerate() {
            if io.is_done() && !order.contains(&(nth as u64)) {
                order.push(nth as u64);
            }
        }
        host.advance(Duration::from_micros(1));
    }
    channels.iter().for_each(Channel::put);
    desc.close();
    assert_eq!(base.records().len(), 40);
    order.push(host.now_ns());
    order
}

#[test]
fn a_seed_repeats_and_another_one_differs() {
    assert_eq!(trace(5), trace(5));
    assert_ne!(trace(5), trace(6));
}

#[test]
fn a_base_fails_starves_and_corrupts_by_plan() {
    let host = FakeHost::new(2);
    let plan = FaultPlan::none().fail_nth(2, IoStatus::UNRECOVERED_READ).nomem_burst(3, 5).corrupt_nth(9);
    let base = host.add_base(BaseSpec::new("b0", 512, 64));
    base.write_bytes(0, &[9; 512]);
    base.set_plan(plan);
    let desc = host.open("b0", Access::Read).expect("it is there");
    let channel = desc.channel(0).expect("a channel");
    let read = || host.wait(&channel.submit(Request::read(0, 1)));
    assert!(read().status.is_success());
    assert_eq!(read().status, IoStatus::UNRECOVERED_READ);
    assert!(read().status.is_success(), "the host retries what lacked memory");
    assert_eq!(base.records().len(), 8);
    assert_ne!(read().data[0], 9, "the ninth is corrupt");
    channel.put();
    desc.close();
}

#[test]
fn a_plan_removes_and_resizes() {
    let host = FakeHost::new(2);
    host.add_base(BaseSpec::new("b0", 512, 64).plan(FaultPlan::none().resize_at(1, 128).remove_at(2)));
    let desc = host.open("b0", Access::Write).expect("it is there");
    let channel = desc.channel(0).expect("a channel");
    host.wait(&channel.submit(Request::read(0, 1)));
    host.settle();
    assert!(host.wait(&channel.submit(Request::read(127, 1))).status.is_success());
    assert!(host.run_until(Duration::from_secs(1), || desc.is_removed()));
    let kinds: Vec<BdevEventKind> = desc.events().iter().map(|event| event.kind).collect();
    assert_eq!(kinds, [BdevEventKind::RESIZE, BdevEventKind::REMOVE]);
    assert_eq!(desc.events()[1].reason, Reason::HOT_REMOVED);
    channel.put();
    desc.close();
    assert!(host.run_until(Duration::from_secs(1), || host.device("b0").is_none()));
}

#[test]
fn held_ios_can_be_aborted_and_the_rest_complete() {
    let host = FakeHost::new(4);
    let base = host.add_base(BaseSpec::new("b0", 512, 64));
    base.hold(true);
    let desc = host.open("b0", Access::Write).expect("it is there");
    let channel = desc.channel(1).expect("a channel");
    let ios: Vec<Io> = (0..4).map(|nth| channel.submit(Request::read(nth, 1))).collect();
    host.settle();
    assert_eq!(base.in_flight(), 4);
    assert_eq!(channel.abort(&ios[2]), 0);
    assert_eq!(host.wait(&ios[2]).status, IoStatus::ABORTED);
    assert_eq!(channel.abort(&ios[2]), errno::ENOENT);
    base.hold(false);
    assert!(ios.iter().all(|io| { host.wait(io) }.status.is_success() || io.as_ptr() == ios[2].as_ptr()));
    channel.put();
    desc.close();
}

#[test]
fn claims_keep_others_from_writing() {
    let host = FakeHost::new(1);
    host.add_base(BaseSpec::new("b0", 512, 64));
    let owner = host.open("b0", Access::Write).expect("it is free");
    assert_eq!(owner.claim(ClaimKind::EXCL_WRITE, 0), 0);
    assert_eq!(host.open("b0", Access::Write).err(), Some(errno::EPERM));
    let reader = host.open("b0", Access::Read).expect("reading is allowed");
    assert_eq!(reader.claim(ClaimKind::EXCL_WRITE, 0), errno::EPERM);
    let channel = reader.channel(0).expect("a channel");
    assert_eq!(
        host.wait(&channel.submit(Request::write(0, 1, vec![0; 512]))).status,
        IoStatus::NOT_PERMITTED
    );
    channel.put();
    reader.close();
    owner.close();
    assert!(host.open("b0", Access::Write).is_ok(), "the claim ended with its descriptor");
}

#[test]
fn a_reset_waits_for_what_is_with_the_device_and_holds_what_comes() {
    let host = FakeHost::new(1);
    let base = host.add_base(BaseSpec::new("b0", 512, 64));
    base.hold(true);
    let desc = host.open("b0", Access::Write).expect("it is there");
    let channel = desc.channel(0).expect("a channel");
    let before = channel.submit(Request::read(0, 1));
    let reset = channel.submit(Request::reset());
    let after = channel.submit(Request::read(1, 1));
    host.settle();
    assert_eq!(base.records().len(), 1, "neither the reset nor what came later has arrived");
    base.hold(false);
    for io in [&before, &reset, &after] {
        assert!(host.wait(io).status.is_success());
    }
    let ops: Vec<Op> = base.records().iter().map(|arrival| arrival.op).collect();
    assert_eq!(ops, [Op::READ, Op::RESET, Op::READ]);
    channel.put();
    desc.close();
}

#[test]
fn the_gate_splits_and_bounces_what_the_limits_do_not_allow() {
    let host = FakeHost::new(1);
    let base = host.add_base(BaseSpec::new("b0", 512, 64).limits(|limits| {
        limits.max_transfer_blocks = 4;
        limits.required_alignment = 4096;
        limits.max_segments = 1;
    }));
    let data: Vec<u8> = (0..10 * 512u32).map(|nth| (nth * 7) as u8).collect();
    let write = Request::write(3, 10, data.clone()).pieces(&[5, 1000]).misaligned(3);
    assert!(host.once("b0", write).expect("it is there").status.is_success());
    assert_eq!(base.bytes(3, 10), data);
    let sizes: Vec<u64> = base.records().iter().map(|arrival| arrival.num_blocks).collect();
    assert_eq!(sizes, [4, 4, 2]);
    assert!(base.records().iter().all(|arrival| arrival.pieces.len() == 1));
    assert_eq!(host.once("b0", Request::read(3, 10).misaligned(1)).expect("it is there").data, data);
}

#[test]
fn an_absent_device_is_removed_at_its_deadline() {
    let host = FakeHost::new(1);
    let base = host.add_base(BaseSpec::new("b0", 512, 64));
    let desc = host.open("b0", Access::Write).expect("it is there");
    let channel = desc.channel(0).expect("a channel");
    base.set_absent(100);
    let waiting = channel.submit(Request::read(0, 1));
    host.advance(Duration::from_millis(99));
    assert!(!waiting.is_done());
    assert_eq!(host.wait(&waiting).status, IoStatus::NO_DEVICE);
    assert_eq!(desc.events().last().map(|event| event.reason), Some(Reason::DEADLINE));
    channel.put();
    desc.close();
}

#[test]
fn a_filter_stands_on_a_base() {
    let host = FakeHost::new(1);
    let base = host.add_base(BaseSpec::new("b0", 512, 64));
    host.add_filter("f0", "b0").expect("the base is free");
    assert!(host.once("f0", Request::write(1, 1, vec![3; 512])).expect("it is there").status.is_success());
    assert_eq!(base.bytes(1, 1), vec![3; 512]);
    base.remove();
    assert!(host.run_until(Duration::from_secs(1), || base.is_gone()));
    assert!(host.device("f0").is_none());
}

#[test]
fn devices_are_found_described_and_deleted() {
    let host = FakeHost::new(1);
    let module = host.load(mini::ram::plugin, "{}").expect("it loads");
    assert_eq!(host.create(module, RAM).expect("it is created"), ["m0"]);
    let info = host.device("m0").expect("it is there");
    assert_eq!((info.module.as_str(), info.limits.num_blocks), ("miniram", 128));
    assert_eq!(host.config("m0").as_deref(), Some(RAM));
    assert_eq!(host.driver_specific("m0").as_deref(), Some(r#"{"bytes":65536}"#));
    assert!(host.schema(module).is_some_and(|schema| schema.contains("block_size")));
    let kinds: Vec<String> = host.notifications().into_iter().map(|(kind, _)| kind).collect();
    assert_eq!(kinds, ["bdev_register"]);
    host.delete("m0").expect("it goes");
    assert!(host.device("m0").is_none());
    assert_eq!(host.delete("m0").map_err(|error| error.code), Err(errno::ENODEV));
    assert_eq!(host.rpc("no_such_method", "{}").map_err(|error| error.code), Err(errno::ENOENT));
}

#[test]
fn two_creates_of_one_name_at_once_give_one_device() {
    let host = FakeHost::new(1);
    let module = host.load(mini::ram::plugin, "{}").expect("it loads");
    let (first, second) = (host.start_create(module, RAM), host.start_create(module, RAM));
    assert!(host.wait_for(&first).is_ok());
    assert_eq!(host.wait_for(&second).map_err(|error| error.code), Err(errno::EEXIST));
    assert_eq!(host.devices(), ["m0"]);
}

#[test]
fn a_device_whose_create_fails_is_rolled_back_and_one_that_is_deleted_is_not() {
    let host = FakeHost::new(1);
    let module = host.load(mini::ram::plugin, "{}").expect("it loads");
    let is_told = || mini::ram::ROLLED_BACK.swap(0, Ordering::Relaxed);
    host.create(module, RAM).expect("it is created");
    host.delete("m0").expect("it goes");
    assert_eq!(is_told(), 0);
    let failing = RAM.replace("}", r#","fault":"fail_registered"}"#);
    assert_eq!(host.create(module, &failing).map_err(|error| error.code), Err(errno::EIO));
    assert_eq!((is_told(), host.devices().len()), (1, 0));
}

#[test]
fn a_wrong_descriptor_is_refused_at_the_first_gate() {
    let host = FakeHost::new(1);
    // SAFETY: the plugin's static descriptor.
    let good = unsafe { *mini::ram::plugin() };
    let refused = |descriptor: PluginDescV1| match host.load(Plugin::descriptor(&raw const descriptor), "{}")
    {
        Err(LoadError::Descriptor(why)) => why,
        other => panic!("not refused: {other:?}"),
    };
    assert!(refused(PluginDescV1 { magic: 1, ..good }).contains("magic"));
    assert!(refused(PluginDescV1 { abi_major: 9, ..good }).contains("major version is 9"));
    assert!(refused(PluginDescV1 { size: 8, ..good }).contains("size is 8"));
    assert!(refused(PluginDescV1 { name: Str::new("No Name"), ..good }).contains("No Name"));
    assert!(refused(PluginDescV1 { ops: std::ptr::null(), ..good }).contains("table"));
    let mut sizes = good.sizes;
    sizes.bdev_io += 8;
    assert!(refused(PluginDescV1 { sizes, ..good }).contains("sizes"));
    assert!(matches!(host.load(Plugin::library("/no/such.so"), "{}"), Err(LoadError::Library { .. })));
}

#[test]
fn hotplug_reaches_modules_and_metrics_are_kept() {
    let host = FakeHost::new(1);
    host.load(mini::pass::plugin, "{}").expect("it loads");
    // A module without the callback is left alone.
    host.hotplug("file", "/dev/null", HotplugKind::ADD, "");
    host.settle();
    assert!(host.watches().is_empty());
    assert_eq!(host.metric("minipass", "nothing"), None);
}

#[test]
fn dropping_the_host_reports_what_a_module_did() {
    let caught = std::panic::catch_unwind(|| {
        let host = FakeHost::new(1);
        let module = host.load(mini::ram::plugin, "{}").expect("it loads");
        let params = r#"{"name":"m0","size":65536,"block_size":512,"fault":"leak_memory"}"#;
        host.create(module, params).expect("it is created");
    });
    let text = caught.expect_err("the memory is leaked").downcast::<String>().expect("a text");
    assert!(text.contains("MemoryLeaked") && text.contains("miniram"), "{text}");
}

#[test]
fn a_method_is_registered_once_and_answers() {
    unsafe extern "C" fn ping(arg: *mut c_void, params: Str, token: OpToken) {
        // SAFETY: the test passes the host's table; the parameters are lent for the call.
        unsafe { ((*arg.cast::<HostApiV1>()).op_done)(token, params, std::ptr::null()) };
    }
    let host = FakeHost::new(1);
    let table = std::ptr::from_ref(host.table()).cast_mut().cast();
    // SAFETY: on the control reactor; the test itself needs no module handle.
    let register =
        || unsafe { (host.table().rpc_register)(std::ptr::null_mut(), Str::new("ping"), RpcFn(ping), table) };
    assert_eq!(host.on(Place::Control, register), 0);
    assert_eq!(host.on(Place::Control, register), errno::EEXIST);
    assert_eq!(host.rpc("ping", "[7]").as_deref(), Ok("[7]"));
}

#[test]
fn a_function_of_the_control_thread_is_refused_elsewhere() {
    let host = FakeHost::new(1);
    host.add_base(BaseSpec::new("b0", 512, 64));
    // SAFETY: wrong on purpose.
    let find = || unsafe { (host.table().bdev_find)(Str::new("b0")) };
    assert_ne!(host.on(Place::Control, find).0, 0);
    assert_eq!(host.on(Place::Data(0), find).0, 0);
    assert_eq!(find().0, 0, "outside every reactor");
    let faults: Vec<Fault> = host.take_violations().iter().map(|violation| violation.fault).collect();
    assert_eq!(faults, [Fault::WrongThread, Fault::WrongThread]);
}

#[test]
fn subscribers_hear_of_memory_before_it_goes() {
    thread_local!(static HEARD: RefCell<Vec<(u32, u64)>> = const { RefCell::new(Vec::new()) });
    unsafe extern "C" fn hear(_: *mut c_void, event: BufferEvent, region: *const MemoryRegion) {
        // SAFETY: the region is lent, and its memory is there in both events.
        let (id, first) = unsafe { ((*region).id, *(*region).base.cast::<u8>()) };
        assert_eq!(first, 0);
        HEARD.with_borrow_mut(|heard| heard.push((event.0, id)));
    }
    let host = FakeHost::new(1);
    let mut subscription = 0;
    // SAFETY: on the control reactor; memory is freed as it was allocated.
    host.on(Place::Control, || unsafe {
        let table = host.table();
        let early = (table.alloc)(100, 64, -1);
        (table.memory_subscribe)(
            std::ptr::null_mut(),
            MemoryFn(hear),
            std::ptr::null_mut(),
            &raw mut subscription,
        );
        let late = (table.alloc)(100, 64, -1);
        (table.free)(early, 100, 64);
        host.settle();
        (table.free)(late, 100, 64);
    });
    host.settle();
    assert_eq!(HEARD.take(), [(1, 1), (1, 2), (2, 1), (2, 2)]);
    // SAFETY: as above.
    assert_eq!(host.on(Place::Control, || unsafe { (host.table().memory_unsubscribe)(subscription) }), 0);
}

#[test]
fn buffers_run_out_and_belong_to_their_reactor() {
    let host = FakeHost::builder().buffers(2).build();
    // SAFETY: on a reactor.
    let get = || unsafe { (host.table().buffer_get)(4096) };
    let buffers: Vec<*mut c_void> = (0..3).map(|_| host.on(Place::Data(0), get)).collect();
    assert!(!buffers[0].is_null() && (buffers[0] as usize).is_multiple_of(4096) && !buffers[1].is_null());
    assert!(buffers[2].is_null(), "the pool has two");
    // SAFETY: the buffers are out.
    host.on(Place::Data(0), || unsafe { (host.table().buffer_put)(buffers[0], 4096) });
    // SAFETY: the wrong reactor, on purpose.
    host.on(Place::Data(1), || unsafe { (host.table().buffer_put)(buffers[1], 4096) });
    assert_eq!(host.take_violations()[0].fault, Fault::BufferLeaked);
}

#[test]
fn another_thread_reaches_a_reactor_by_message() {
    let (host, counted) = (FakeHost::new(1), Cell::new(0));
    // SAFETY: any thread may ask.
    let reactor = unsafe { (host.table().reactor_nth)(1) } as usize;
    let (table, counter) = (host.table(), arg(&counted) as usize);
    std::thread::spawn(move || {
        // SAFETY: any thread may send; the counter is touched on the host's thread only.
        let code = unsafe { (table.send)(reactor as *mut _, MessageFn(count), counter as *mut c_void) };
        assert_eq!(code, 0);
    })
    .join()
    .expect("the message was taken");
    assert_eq!(counted.get(), 0);
    host.settle();
    assert_eq!(counted.get(), 1);
}

#[test]
fn without_auto_examine_a_device_is_examined_on_request() {
    let host = FakeHost::builder().auto_examine(false).build();
    let config = r#"{"fault":"false_claim"}"#;
    host.load(mini::pass::plugin, config).expect("it loads");
    host.add_base(BaseSpec::new("b0", 512, 64));
    assert_eq!(host.violations(), [], "nobody was asked");
    assert!(host.examine("b0"));
    assert_eq!(host.take_violations()[0].fault, Fault::BadCall);
    assert!(!host.examine("b1"));
}

#[test]
fn a_report_reads_as_a_list() {
    let suite = Conformance::new(RAM).only(&["flush", "resize"]).seeds(2);
    let report = suite.check(mini::ram::plugin).to_string();
    assert_eq!(
        report,
        "check flush ... ok (2 seeds)\ncheck resize ... skip (the suite was told no way to resize)\n"
    );
}

#[test]
fn a_test_that_holds_devices_at_its_end_is_cleaned_up_after() {
    let host = Rc::new(FakeHost::new(1));
    host.add_base(BaseSpec::new("b0", 512, 64).lends(true));
    let desc = host.open("b0", Access::Write).expect("it is there");
    let channel = desc.channel(0).expect("a channel");
    assert!(host.wait(&channel.submit(Request::read_lent(0, 4))).is_lent);
    let host = Rc::into_inner(host).expect("the only one");
    assert_eq!(host.finish(), []);
}
