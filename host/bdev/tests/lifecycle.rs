//! Each rule of the lifecycle once, on a simulated host: creates as transactions,
//! examination, removal, claims, absence, modules that come and go.

mod host;
mod vendor;

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use host::{Host, Pending};
use serde_json::json;
use tenon_abi::{BdevEventKind, HotplugKind, OpToken, Reason, Str, errno};
use tenon_bdev::io::{QosLimits, ResetMode};
use tenon_bdev::{Claim, Core, Event, OpError, State, Verdict, channel_get, host_api};
use tenon_modules::{Existing, ModuleState};
use vendor::Behaviour;

#[test]
fn a_create_is_answered_when_its_device_is_examined() {
    let host = Host::new(1);
    host.load(0);
    vendor::behave(1, Behaviour { examine_delay_us: 500, ..Behaviour::default() });
    host.load(1);
    let pending = host.start_create(0, json!({ "name": "m0" }));
    host.settle();
    assert_eq!(pending.count(), 0, "module 1 has not answered its examine");
    let answer = host.wait(&pending).unwrap();
    assert_eq!((answer.bdevs, answer.result), (vec!["m0".to_owned()], json!("m0")));
    let bdev = host.on(|core| core.bdev("m0")).unwrap();
    assert_eq!((bdev.state, bdev.module.as_str(), bdev.limits.num_blocks), (State::Ready, "fake0", 2048));
    assert_eq!(bdev.driver_specific, Some(json!({ "fake": true })));
    assert_eq!(host.on(|core| core.bdev(&bdev.uuid.to_string())).unwrap().name, "m0");
    assert_eq!(vendor::record(1).examined_config, ["m0"]);
    assert_eq!(vendor::record(1).examined_disk, ["m0"]);
    assert_eq!(vendor::record(0).examined_config, ["m0"], "its own module is asked as well");
    host.delete("m0").unwrap();
    assert!(host.on(|core| core.bdev("m0")).is_none());
    host.finish();
}

#[test]
fn a_failed_create_leaves_nothing_and_may_be_repeated() {
    let host = Host::new(2);
    host.load(0);
    for _ in 0..3 {
        let error = host.create(0, json!({ "name": "m0", "count": 3, "fail": true })).unwrap_err();
        assert_eq!(error.code, errno::EIO);
        assert_eq!(host.on(|core| core.bdev_count()), 0);
        assert_eq!(host.counts().owned(), 0);
    }
    host.create(0, json!({ "name": "m0", "count": 3 })).unwrap();
    assert_eq!(host.on(|core| core.bdev_names()), ["m0", "m0.1", "m0.2"]);
    host.finish();
}

#[test]
fn creates_of_one_name_run_one_after_the_other() {
    let host = Host::new(3);
    host.load(0);
    let first = host.start_create(0, json!({ "name": "m0", "delay_us": 100 }));
    let second = host.start_create(0, json!({ "name": "m0", "delay_us": 10 }));
    assert!(host.wait(&first).is_ok());
    assert_eq!(host.wait(&second).unwrap_err().code, errno::EEXIST);
    let failing = host.start_create(0, json!({ "name": "m1", "delay_us": 100, "fail": true }));
    let third = host.start_create(0, json!({ "name": "m1" }));
    assert!(host.wait(&failing).is_err());
    assert!(host.wait(&third).is_ok(), "the name is free again");
    host.finish();
}

#[test]
fn a_create_on_a_base_that_is_being_created_waits_for_it() {
    let host = Host::new(31);
    host.load(0);
    let base = host.start_create(0, json!({ "name": "m0", "delay_us": 1000 }));
    let middle = host.start_create(0, json!({ "name": "t0", "base": "m0", "delay_us": 10 }));
    let top = host.start_create(0, json!({ "name": "t1", "base": "t0" }));
    assert_eq!(host.wait(&top).unwrap().bdevs, ["t1"]);
    assert!(host.wait(&base).is_ok() && host.wait(&middle).is_ok());
    assert_eq!(host.on(|core| core.bdev_names()), ["m0", "t0", "t1"]);
    // A base whose create fails is as missing as one that nobody creates.
    let base = host.start_create(0, json!({ "name": "m1", "delay_us": 1000, "fail": true }));
    let top = host.start_create(0, json!({ "name": "t2", "base": "m1" }));
    assert_eq!(host.wait(&top).unwrap_err().waiting_for(), Some("m1"));
    assert!(host.wait(&base).is_err());
    // Nobody waits for a create that was asked for later: two could wait for each other.
    let top = host.start_create(0, json!({ "name": "a", "base": "b", "delay_us": 100 }));
    let base = host.start_create(0, json!({ "name": "b", "base": "a", "delay_us": 100 }));
    assert_eq!(host.wait(&top).unwrap_err().waiting_for(), Some("b"));
    assert_eq!(host.wait(&base).unwrap_err().waiting_for(), Some("a"));
    host.finish();
}

#[test]
fn who_waits_for_a_create_hears_of_its_end_after_who_asked_for_it() {
    let host = Host::new(32);
    host.load(0);
    let create = host.start_create(0, json!({ "name": "m0", "delay_us": 100 }));
    let waiter: Pending<usize> = Pending::new();
    let (reply, asked) = (waiter.reply(), create.clone());
    host.on(move |core| core.wait_for_examine(move || reply(asked.count())));
    assert_eq!(host.wait(&waiter), 1, "the create was not answered yet");
    host.finish();
}

#[test]
fn a_create_on_a_base_under_examination_waits_for_it() {
    let host = Host::new(4);
    host.load(0);
    vendor::behave(1, Behaviour { examine_delay_us: 1000, ..Behaviour::default() });
    host.load(1);
    let base = host.start_create(0, json!({ "name": "m0" }));
    let top = host.start_create(1, json!({ "name": "t0", "base": "m0" }));
    assert!(host.wait(&base).is_ok());
    assert!(host.wait(&top).is_ok());
    let missing = host.create(1, json!({ "name": "t1", "base": "m9" })).unwrap_err();
    assert_eq!(missing.waiting_for(), Some("m9"));
    host.finish();
}

#[test]
fn who_is_offered_a_device_finds_and_opens_it_by_name() {
    let host = Host::new(42);
    host.load(0);
    vendor::behave(1, Behaviour { awaits: Some("m0".into()), ..Behaviour::default() });
    vendor::behave(2, Behaviour { examine_delay_us: 1000, ..Behaviour::default() });
    host.load(1);
    host.load(2);
    host.create(0, json!({ "name": "m0" })).unwrap();
    assert_eq!(host.on(|core| core.bdev("m0")).unwrap().examine[0].answer, Verdict::Claimed);
    assert!(host.on(|core| core.bdev("on-m0")).is_some());
    host.finish();
}

#[test]
fn a_module_may_build_on_its_own_devices() {
    let host = Host::new(43);
    vendor::behave(
        0,
        Behaviour { awaits: Some("m0".into()), takes: Some("m1".into()), ..Behaviour::default() },
    );
    host.load(0);
    for name in ["m0", "m1"] {
        host.create(0, json!({ "name": name })).unwrap();
        assert_eq!(host.on(|core| core.bdev(name)).unwrap().examine[0].answer, Verdict::Claimed);
        assert!(host.on(|core| core.bdev(&format!("on-{name}"))).is_some());
    }
    host.finish();
}

/// Name, module and what it waits for.
fn awaited(host: &Host) -> Vec<(String, String, String)> {
    let list = host.on(|core| core.awaited());
    list.into_iter().map(|awaited| (awaited.name, awaited.module, awaited.waits_for)).collect()
}

fn delete_of(host: &Host, name: &str, module: &str) -> Result<(), OpError> {
    let pending = host::Answered::new();
    host.on(|core| core.delete(name, Some(module), pending.reply()));
    host.wait(&pending).map(|_| ())
}

#[test]
fn a_name_that_waits_is_listed_saved_and_becomes_its_device() {
    let host = Host::new(43);
    host.load(0);
    assert_eq!(host.create(0, json!({ "name": "r0", "awaits": true })).unwrap().bdevs, Vec::<String>::new());
    assert_eq!(awaited(&host), [("r0".to_owned(), "fake0".to_owned(), "d0, d1".to_owned())]);
    assert_eq!(host.on(|core| core.saved_config()).len(), 1);
    assert_eq!(host.on(|_| vendor::arrive(0, "r0")), 0);
    host.settle();
    assert_eq!(awaited(&host), []);
    let saved = host.on(|core| core.saved_config());
    assert_eq!(saved.len(), 1, "one entry for one device: {saved:?}");
    assert_eq!(saved[0].bdevs, ["r0"]);
    host.delete("r0").unwrap();
    assert!(host.on(|core| core.saved_config()).is_empty());
    host.finish();
}

#[test]
fn a_device_that_comes_before_its_create_is_over_is_not_waited_for() {
    let host = Host::new(46);
    host.load(0);
    host.create(0, json!({ "name": "r0", "awaits": true, "arrives": true })).unwrap();
    host.settle();
    assert_eq!(awaited(&host), []);
    let saved = host.on(|core| core.saved_config());
    assert_eq!((saved.len(), &saved[0].bdevs), (1, &vec!["r0".to_owned()]));
    host.delete("r0").unwrap();
    assert!(awaited(&host).is_empty() && host.on(|core| core.saved_config()).is_empty());
    host.finish();
}

#[test]
fn a_delete_ends_the_wait_of_a_name_with_and_without_its_module() {
    let host = Host::new(44);
    host.load(0);
    host.load(3);
    host.create(0, json!({ "name": "a", "awaits": true })).unwrap();
    host.create(3, json!({ "name": "b", "awaits": true })).unwrap();
    let error = delete_of(&host, "a", "fake3").unwrap_err();
    assert_eq!(error.code, errno::ENODEV, "of another module");
    delete_of(&host, "a", "fake0").unwrap();
    vendor::behave(3, Behaviour { delete_code: errno::EBUSY, ..Behaviour::default() });
    assert_eq!(delete_of(&host, "b", "fake3").unwrap_err().code, errno::EBUSY);
    assert_eq!(awaited(&host).len(), 1);
    // One the module does not know any more is as good as deleted.
    vendor::behave(3, Behaviour { delete_code: errno::ENODEV, ..Behaviour::default() });
    delete_of(&host, "b", "fake3").unwrap();
    assert_eq!(vendor::record(3).deleted, ["b", "b"]);
    assert_eq!(delete_of(&host, "b", "fake3").unwrap_err().code, errno::ENODEV);
    assert!(awaited(&host).is_empty() && host.on(|core| core.saved_config()).is_empty());
    host.finish();
}

#[test]
fn a_device_that_went_with_its_base_can_be_deleted_for_good() {
    let host = Host::new(45);
    host.load(0);
    host.load(1);
    host.create(0, json!({ "name": "m0" })).unwrap();
    host.create(1, json!({ "name": "t0", "base": "m0" })).unwrap();
    host.on(|core| core.unregister("m0", Reason::HOT_REMOVED)).unwrap();
    host.settle();
    assert!(host.on(|core| core.bdev("t0")).is_none());
    let names: Vec<String> = awaited(&host).into_iter().map(|(name, ..)| name).collect();
    assert_eq!(names, ["m0", "t0"]);
    delete_of(&host, "t0", "fake1").unwrap();
    delete_of(&host, "m0", "fake0").unwrap();
    assert!(awaited(&host).is_empty() && host.on(|core| core.gone_config()).is_empty());
    host.finish();
}

#[test]
fn a_failed_create_of_several_devices_waits_for_its_base_too() {
    let host = Host::new(41);
    host.load(0);
    vendor::behave(1, Behaviour { examine_delay_us: 1000, ..Behaviour::default() });
    host.load(1);
    let base = host.start_create(0, json!({ "name": "m0" }));
    let top = host.start_create(1, json!({ "name": "t0", "count": 2, "late_base": "m0" }));
    assert!(host.wait(&base).is_ok());
    assert_eq!(host.wait(&top).unwrap().bdevs, ["t0", "t0.1"]);
    let wrong = host::Answered::new();
    host.on(|core| core.delete("m0", Some("fake1"), wrong.reply()));
    let error = host.wait(&wrong).unwrap_err();
    assert!(error.reason.contains("fake0"), "{error}");
    host.finish();
}

#[test]
fn a_module_that_comes_late_is_offered_what_is_there() {
    let host = Host::new(5);
    host.load(0);
    for n in 0..100 {
        host.create(0, json!({ "name": format!("x{n}") })).unwrap();
    }
    vendor::behave(1, Behaviour { takes: Some("x".into()), ..Behaviour::default() });
    host.load(1);
    let done = Pending::new();
    let reply = done.reply();
    host.on(|core| core.wait_for_examine(move || reply(())));
    host.wait(&done);
    let asked = vendor::record(1).examined_disk;
    let (own, others): (Vec<_>, Vec<_>) = asked.iter().partition(|name| name.starts_with("on-"));
    assert_eq!((others.len(), own.len()), (100, 100));
    assert_eq!(host.on(|core| core.bdev_count()), 200);
    let bdev = host.on(|core| core.bdev("x7")).unwrap();
    assert_eq!(bdev.claim_type(), Some("exclusive_write"));
    assert_eq!(bdev.examine[0].answer, Verdict::Claimed);
    let name = host.on(|core| core.bdev("on-x7")).unwrap().name;
    assert_eq!(name, "on-x7");
    host.finish();
}

#[test]
fn an_examine_that_is_never_answered_fails_at_its_deadline() {
    let host = Host::new(6);
    host.load(0);
    vendor::behave(1, Behaviour { leaks_examine: true, late_config: true, ..Behaviour::default() });
    host.load(1);
    let pending = host.start_create(0, json!({ "name": "m0" }));
    assert!(!host.run_until(Duration::from_secs(9), || pending.count() > 0));
    host.wait(&pending).unwrap();
    let bdev = host.on(|core| core.bdev("m0")).unwrap();
    assert_eq!(bdev.examine[0].answer, Verdict::Failed);
    assert_eq!(bdev.state, State::Ready);
    host.finish();
}

#[test]
fn a_device_that_goes_while_it_is_examined_is_an_error_of_its_create() {
    let host = Host::new(7);
    host.load(0);
    vendor::behave(1, Behaviour { examine_delay_us: 1000, ..Behaviour::default() });
    host.load(1);
    let pending = host.start_create(0, json!({ "name": "m0" }));
    host.settle();
    host.on(|core| core.unregister("m0", Reason::HOT_REMOVED)).unwrap();
    host.settle();
    assert_eq!(host.on(|core| core.bdev("m0")).unwrap().state, State::Orphaned, "an examine is not answered");
    let error = host.wait(&pending).unwrap_err();
    assert_eq!(error.code, errno::ENODEV);
    assert_eq!(host.on(|core| core.bdev_count()), 0);
    host.finish();
}

#[test]
fn openers_are_told_once_and_hold_the_device_until_they_close() {
    let host = Host::new(8);
    host.load(0);
    host.create(0, json!({ "name": "m0" })).unwrap();
    let events: Rc<RefCell<Vec<Event>>> = Rc::default();
    let heard = events.clone();
    let descriptor = host
        .on(|core| core.open("m0", "test", true, move |event| heard.borrow_mut().push(event.clone())))
        .unwrap();
    let desc = descriptor.handle();
    let channel = host.on_data(0, || channel_get(desc)).unwrap();
    let deleted = host.start_delete("m0");
    host.settle();
    host.on(|core| core.unregister("m0", Reason::HOT_REMOVED)).unwrap();
    host.settle();
    assert_eq!(events.borrow().len(), 1);
    assert_eq!(
        (events.borrow()[0].kind, events.borrow()[0].reason),
        (BdevEventKind::REMOVE, Reason::REQUESTED)
    );
    assert!(events.borrow()[0].deadline_ns > 0);
    let refused = host.on(|core| core.open("m0", "late", false, |_| {})).err().unwrap();
    assert_eq!(refused.code, errno::ENODEV);
    // The deadline passes: the holder is named, and nothing happens to the device.
    host.advance(Duration::from_secs(30));
    let bdev = host.on(|core| core.bdev("m0")).unwrap();
    let removal = bdev.removal.unwrap();
    assert!(removal.overdue);
    assert_eq!(removal.waits_for, "descriptor of test");
    assert!(vendor::record(0).destructed.is_empty());
    host.on_data(0, || drop(channel));
    host.on(|_| drop(descriptor));
    assert!(host.wait(&deleted).is_ok());
    assert_eq!(events.borrow().len(), 1);
    assert_eq!(vendor::record(0).destructed.values().copied().collect::<Vec<_>>(), [1]);
    host.finish();
}

#[test]
fn a_leaked_channel_keeps_the_device_and_is_reported() {
    let host = Host::new(9);
    host.load(0);
    host.create(0, json!({ "name": "m0" })).unwrap();
    let descriptor = host.on(|core| core.open("m0", "test", true, |_| {})).unwrap();
    let desc = descriptor.handle();
    let channel = host.on_data(1, || channel_get(desc)).unwrap();
    host.on(|_| drop(descriptor));
    let deleted = host.start_delete("m0");
    host.advance(Duration::from_secs(40));
    let bdev = host.on(|core| core.bdev("m0")).unwrap();
    assert_eq!(bdev.state, State::Orphaned);
    assert!(bdev.removal.unwrap().waits_for.contains("1 channels"));
    host.on_data(1, || drop(channel));
    assert!(host.wait(&deleted).is_ok());
    host.finish();
}

#[test]
fn an_answer_that_never_comes_is_a_timeout_and_the_late_one_is_undone() {
    let host = Host::new(10);
    host.load(0);
    let pending = host.start_create(0, json!({ "name": "m0", "keep": true }));
    let error = host.wait(&pending).unwrap_err();
    assert_eq!(error.code, errno::ETIMEDOUT);
    assert!(error.to_string().contains("fake0"), "{error}");
    assert_eq!(host.on(|core| core.operations()).len(), 1, "the module still owes an answer");
    let again = host.create(0, json!({ "name": "m0" })).unwrap_err();
    assert_eq!(again.code, errno::EBUSY);
    host.on(|_| vendor::answer_kept(0));
    host.advance(Duration::from_secs(1));
    assert_eq!(host.on(|core| core.bdev_count()), 0, "what the client was told is so");
    assert_eq!(vendor::record(0).rolled_back, ["m0"]);
    assert!(host.create(0, json!({ "name": "m0" })).is_ok());
    assert_eq!(pending.count(), 1);
    host.delete("m0").unwrap();
    assert_eq!(vendor::record(0).rolled_back, ["m0"], "one that is deleted is not rolled back");
    host.finish();
}

#[test]
fn a_device_registered_after_its_create_was_given_up_is_refused() {
    let host = Host::new(10);
    host.load(0);
    let late = 10 * 60 * 1_000_000;
    let pending = host.start_create(0, json!({ "name": "m0", "delay_us": late }));
    assert_eq!(host.wait(&pending).unwrap_err().code, errno::ETIMEDOUT);
    host.advance(Duration::from_micros(late));
    assert!(vendor::record(0).destructed.is_empty(), "it never was a device");
    assert_eq!(host.on(|core| (core.bdev_count(), core.operations().len())), (0, 0));
    assert!(host.create(0, json!({ "name": "m0" })).is_ok());
    host.finish();
}

#[test]
fn a_second_answer_changes_nothing() {
    let host = Host::new(11);
    host.load(0);
    let pending = host.start_create(0, json!({ "name": "m0", "twice": true }));
    host.wait(&pending).unwrap();
    host.advance(Duration::from_secs(100));
    assert_eq!(pending.count(), 1);
    host.finish();
}

#[test]
fn stacks_go_from_the_top_when_the_base_is_removed() {
    let host = Host::new(12);
    host.load(0);
    host.load(1);
    host.create(0, json!({ "name": "m0" })).unwrap();
    host.create(1, json!({ "name": "t0", "base": "m0", "destruct_delay_us": 100 })).unwrap();
    let claimed = host.create(1, json!({ "name": "t1", "base": "m0" })).unwrap_err();
    assert_eq!(claimed.code, errno::EPERM);
    host.delete("m0").unwrap();
    host.advance(Duration::from_secs(1));
    assert_eq!(host.on(|core| core.bdev_count()), 0);
    assert_eq!(vendor::record(1).removes.values().copied().collect::<Vec<_>>(), [1]);
    host.finish();
}

#[test]
fn claims_end_with_their_descriptor() {
    let host = Host::new(13);
    host.load(0);
    host.create(0, json!({ "name": "m0" })).unwrap();
    host.on(|core| {
        let first = core.open("m0", "a", true, |_| {}).unwrap();
        first.claim(Claim::ExclusiveWrite).unwrap();
        assert_eq!(core.open("m0", "b", true, |_| {}).err().unwrap().code, errno::EPERM);
        let reader = core.open("m0", "b", false, |_| {}).unwrap();
        assert_eq!(reader.claim(Claim::ReadManyWriteNone).unwrap_err().code, errno::EPERM);
        drop(first);
        reader.claim(Claim::ReadManyWriteNone).unwrap();
        assert_eq!(core.bdev("m0").unwrap().claim_type(), Some("read_many_write_none"));
        assert_eq!(core.open("m0", "a", true, |_| {}).err().unwrap().code, errno::EPERM);
    });
    assert_eq!(host.counts().claims, 0);
    host.finish();
}

#[test]
fn an_absent_device_comes_back_or_goes_at_its_deadline() {
    let host = Host::new(14);
    host.load(0);
    host.create(0, json!({ "name": "m0" })).unwrap();
    let kinds: Rc<RefCell<Vec<u32>>> = Rc::default();
    let heard = kinds.clone();
    let descriptor = host
        .on(|core| core.open("m0", "test", true, move |event| heard.borrow_mut().push(event.kind.0)))
        .unwrap();
    let bdev = descriptor.bdev();
    let api = host_api();
    // SAFETY: the host's functions, on the control reactor.
    let absent = |ms| host.on(|_| unsafe { (api.bdev_set_absent)(bdev, ms) });
    // SAFETY: as above.
    let present = || host.on(|_| unsafe { (api.bdev_set_present)(bdev) });
    assert_eq!((absent(1000), absent(1000)), (0, 0));
    host.settle();
    assert_eq!(host.on(|core| core.bdev("m0")).unwrap().state, State::Absent);
    assert_eq!((present(), present()), (0, 0));
    host.advance(Duration::from_secs(5));
    assert_eq!(host.on(|core| core.bdev("m0")).unwrap().state, State::Ready);
    assert_eq!(absent(1000), 0);
    host.advance(Duration::from_secs(2));
    let (absent_kind, present_kind, remove) =
        (BdevEventKind::ABSENT.0, BdevEventKind::PRESENT.0, BdevEventKind::REMOVE.0);
    assert_eq!(*kinds.borrow(), [absent_kind, present_kind, absent_kind, remove]);
    host.on(|_| drop(descriptor));
    host.finish();
}

#[test]
fn openers_hear_of_a_new_size_after_the_gate_obeys() {
    let host = Host::new(15);
    host.load(0);
    host.create(0, json!({ "name": "m0" })).unwrap();
    let heard: Rc<Cell<u64>> = Rc::default();
    let sink = heard.clone();
    let descriptor =
        host.on(|core| core.open("m0", "test", true, move |event| sink.set(event.value))).unwrap();
    let bdev = descriptor.bdev();
    for blocks in [4096, 1024] {
        // SAFETY: the host's function, on the control reactor.
        assert_eq!(host.on(|_| unsafe { (host_api().bdev_resize)(bdev, blocks) }), 0);
        assert_ne!(heard.get(), blocks, "never from inside the call");
        host.settle();
        assert_eq!((heard.get(), descriptor.num_blocks()), (blocks, blocks));
    }
    // SAFETY: as above.
    assert_eq!(host.on(|_| unsafe { (host_api().bdev_resize)(bdev, 0) }), errno::EINVAL);
    host.on(|_| drop(descriptor));
    host.finish();
}

#[test]
fn a_module_is_finished_after_its_devices_and_stays_out_of_service() {
    let host = Host::new(16);
    vendor::behave(0, Behaviour { method: Some("fake_create"), ..Behaviour::default() });
    host.load(0);
    host.load(1);
    host.create(0, json!({ "name": "m0" })).unwrap();
    host.create(1, json!({ "name": "t0", "base": "m0" })).unwrap();
    let rpc = host::Answered::new();
    assert!(host.on(|core| core.rpc("fake_create", &json!({ "name": "r0" }), rpc.reply())));
    assert_eq!(host.wait(&rpc).unwrap().bdevs, ["r0"]);
    assert_eq!(host.on(|core| core.rpc_methods()), ["fake_create"]);
    let gone = Pending::new();
    host.on(|core| core.module_unregister("fake0", gone.reply()));
    host.wait(&gone).unwrap();
    assert_eq!(host.on(|core| core.bdev_count()), 0, "the device on top went with its base");
    assert!(!host.on(|core| core.rpc("fake_create", &json!({}), |_| ())));
    assert_eq!(host.create(0, json!({ "name": "m1" })).unwrap_err().code, errno::ENOENT);
    host.load(0);
    host.create(0, json!({ "name": "m1" })).unwrap();
    host.finish();
}

#[test]
fn what_a_module_leaves_behind_is_taken_from_it() {
    let host = Host::new(17);
    vendor::behave(1, Behaviour { leaks_descriptors: true, ..Behaviour::default() });
    host.load(0);
    host.load(1);
    host.create(0, json!({ "name": "m0" })).unwrap();
    assert_eq!(host.counts().descriptors, 1);
    let gone = Pending::new();
    host.on(|core| core.module_unregister("fake1", gone.reply()));
    host.wait(&gone).unwrap();
    assert_eq!(host.counts().descriptors, 0);
    host.delete("m0").unwrap();
    host.finish();
}

#[test]
fn a_shutdown_ends_although_modules_do_not_answer() {
    let host = Host::new(18);
    vendor::behave(2, Behaviour { leaks_fini: true, ..Behaviour::default() });
    host.load(0);
    host.load(2);
    host.create(0, json!({ "name": "m0", "leaks_destruct": true })).unwrap();
    host.create(0, json!({ "name": "m1" })).unwrap();
    let report = host.shutdown();
    assert!(
        report.left.iter().any(|left| left.contains("m0") && left.contains("fake0")),
        "{:?}",
        report.left
    );
    assert_eq!(report.counts.bdevs, 1);
}

#[test]
fn the_saved_configuration_follows_creates_and_deletes() {
    let host = Host::new(19);
    host.load(0);
    host.load(1);
    host.create(0, json!({ "name": "m0", "count": 2 })).unwrap();
    host.create(1, json!({ "name": "t0", "base": "m0" })).unwrap();
    let saved = host.on(|core| core.saved_config());
    assert_eq!(saved.len(), 2);
    assert_eq!((saved[0].module.as_str(), &saved[0].params), ("fake0", &json!({ "name": "m0", "count": 2 })));
    assert_eq!(saved[0].bdevs, ["m0", "m0.1"]);
    assert_eq!(host.on(|core| core.config_of("t0")).unwrap().params["base"], "m0");
    host.delete("t0").unwrap();
    assert_eq!(host.on(|core| core.saved_config()).len(), 1);
    host.finish();
}

#[test]
fn clients_hear_of_devices_by_notification() {
    let host = Host::new(20);
    host.load(0);
    let ready: Rc<RefCell<Vec<String>>> = Rc::default();
    let names = ready.clone();
    host.on(|core| {
        core.on_bdev_ready(move |name, aliases| names.borrow_mut().push(format!("{name}+{}", aliases.len())))
    });
    host.create(0, json!({ "name": "m0" })).unwrap();
    host.delete("m0").unwrap();
    let kinds: Vec<String> = host.on(|core| core.notifications(0, 100)).into_iter().map(|n| n.kind).collect();
    assert_eq!(kinds, ["module_register", "bdev_register", "bdev_unregister"]);
    assert_eq!(host.on(|core| core.notifications(2, 1))[0].context, "m0");
    assert_eq!(*ready.borrow(), ["m0+1"]);
    host.finish();
}

#[test]
fn hotplug_events_reach_every_module() {
    let host = Host::new(21);
    host.load(0);
    host.load(1);
    host.on(|core| core.publish_hotplug(HotplugKind::ADD, "pci", "0000:01:00.0", &json!({ "class": 8 })));
    host.settle();
    for module in 0..2 {
        let heard = vendor::record(module).hotplug;
        assert_eq!(heard, [(HotplugKind::ADD.0, "0000:01:00.0".to_owned(), "{\"class\":8}".to_owned())]);
    }
    host.finish();
}

#[test]
fn a_call_from_a_wrong_thread_is_refused() {
    let host = Host::new(22);
    host.load(0);
    // SAFETY: the host's functions may be called from anywhere; these say no.
    host.on_data(0, || unsafe {
        let api = host_api();
        assert_eq!((api.bdev_find)(Str::new("m0")).0, 0);
        assert_eq!((api.bdev_unregister)(tenon_abi::BdevHandle(1), Reason::REQUESTED), errno::EPERM);
        assert_eq!((api.notify)(vendor::me(0), Str::new("a"), Str::new("b")), errno::EPERM);
        assert_eq!((api.reactor_index)((api.reactor_current)()), 0);
        assert_eq!((api.reactor_index)((api.reactor_control)()), u32::MAX);
        assert_eq!((api.reactor_count)(), 2);
        assert!((api.reactor_nth)(2).is_null());
    });
    host.finish();
}

#[test]
fn without_auto_examine_only_named_devices_are_examined() {
    let host = Host::with(23, |options| options.auto_examine = false);
    host.load(0);
    host.load(1);
    host.create(0, json!({ "name": "m0" })).unwrap();
    assert!(vendor::record(1).examined_config.is_empty());
    let done = Pending::new();
    host.on(|core| core.examine("m0", done.reply()));
    host.wait(&done).unwrap();
    assert_eq!(vendor::record(1).examined_config, ["m0"]);
    let later = Pending::new();
    host.on(|core| core.examine("m1", later.reply()));
    host.wait(&later).unwrap();
    host.create(0, json!({ "name": "m1" })).unwrap();
    assert_eq!(vendor::record(1).examined_config, ["m0", "m1"]);
    host.finish();
}

#[test]
fn a_shutdown_takes_stacks_apart_from_the_top() {
    let host = Host::new(24);
    for module in 0..3 {
        host.load(module);
    }
    host.create(0, json!({ "name": "bottom" })).unwrap();
    host.create(1, json!({ "name": "middle", "base": "bottom", "destruct_delay_us": 300 })).unwrap();
    host.create(2, json!({ "name": "top", "base": "middle", "destruct_delay_us": 300 })).unwrap();
    host.create(0, json!({ "name": "aside" })).unwrap();
    let report = host.shutdown();
    assert!(report.is_clean(), "{:?}", report.left);
    let number = |module: usize, name: &str| {
        let order = vendor::record(module).destruct_order;
        order.iter().find(|(_, its_name)| its_name == name).map(|(number, _)| *number).unwrap()
    };
    assert!(number(2, "top") < number(1, "middle") && number(1, "middle") < number(0, "bottom"));
    assert!(vendor::record(1).removes.is_empty(), "nobody was told, as nobody stood on what went");
    assert!(Core::current().is_none());
}

#[test]
fn waiting_for_examine_includes_creates_in_flight_and_what_they_lead_to() {
    let host = Host::new(25);
    host.load(0);
    let takes = Some("x".into());
    vendor::behave(1, Behaviour { takes, examine_delay_us: 700, ..Behaviour::default() });
    host.load(1);
    vendor::behave(2, Behaviour { examine_delay_us: 900, ..Behaviour::default() });
    host.load(2);
    let created = host.start_create(0, json!({ "name": "x0", "delay_us": 5000 }));
    let (idle, later) = (Pending::new(), Rc::new(Cell::new(0)));
    let (reply, seen, counted) = (idle.reply(), created.clone(), later.clone());
    host.on(|core| {
        let core = core.clone();
        core.clone().wait_for_examine(move || {
            let states: Vec<State> = core.bdevs().iter().map(|bdev| bdev.state).collect();
            reply((seen.count(), states));
            counted.set(counted.get() + 1);
        });
    });
    // A later request is not waited for.
    let never = host.start_create(0, json!({ "name": "late", "keep": true }));
    let (answered, states) = host.wait(&idle);
    assert_eq!((answered, never.count()), (1, 0));
    assert_eq!(states[..2], [State::Ready, State::Ready], "x0 and what was built on it: {states:?}");
    host.on(|_| vendor::answer_kept(0));
    host.finish();
    assert_eq!(later.get(), 1);
}

#[test]
fn a_newer_module_takes_over_while_the_older_keeps_its_devices() {
    let host = Host::new(26);
    host.load(0);
    host.create(0, json!({ "name": "old" })).unwrap();
    let older = host.on(|core| core.modules().current("fake0")).unwrap();
    let loaded = Pending::new();
    let reply = loaded.reply();
    host.on(|core| {
        // SAFETY: the descriptor is static and obeys the contract.
        unsafe {
            let plugin = vendor::descriptor(0);
            core.module_load_static(plugin, &json!({}), Existing::Supersede, move |result| {
                reply(result.map(|module| module.id()));
            });
        }
    });
    let newer = host.wait(&loaded).unwrap();
    assert_ne!(older.id(), newer);
    assert_eq!(older.state(), ModuleState::Draining);
    host.create(0, json!({ "name": "new" })).unwrap();
    assert_eq!(host.on(|core| core.modules().current("fake0")).unwrap().id(), newer);
    assert_eq!(older.state(), ModuleState::Draining, "it still has a device");
    host.delete("old").unwrap();
    assert_eq!(older.state(), ModuleState::Retired);
    assert_eq!(host.on(|core| core.bdev_names()), ["new"]);
    host.finish();
}

#[test]
fn statistics_and_limits_are_reached_by_name() {
    let host = Host::new(27);
    host.load(0);
    host.create(0, json!({ "name": "m0" })).unwrap();
    let limits = QosLimits { rw_ios_per_sec: 5000, ..QosLimits::default() };
    let set = Pending::new();
    host.on(|core| core.set_qos("m0", limits, set.reply()));
    host.wait(&set).unwrap();
    assert_eq!(host.on(|core| core.bdev("m0")).unwrap().qos, limits);
    let stat = Pending::new();
    let reply = stat.reply();
    host.on(|core| core.iostat("m0", false, ResetMode::All, move |stat| reply(stat.map(|_| ()))));
    host.wait(&stat).unwrap();
    let all = Pending::new();
    host.on(|core| core.reset_iostat(None, ResetMode::All, all.reply()));
    host.wait(&all).unwrap();
    let missing = Pending::new();
    host.on(|core| core.set_qos("m9", limits, missing.reply()));
    assert_eq!(host.wait(&missing).unwrap_err().code, errno::ENODEV);
    host.finish();
}

#[test]
fn what_a_module_counts_is_asked_of_tables_that_reach_so_far() {
    let host = Host::new(29);
    host.load(0);
    let counted = |ops: &'static tenon_abi::BdevOpsV1| {
        assert_eq!(host.on(|_| vendor::register_raw(0, |bdev| bdev.ops = ops)), 0);
        host.settle();
        let told = host.on(|core| core.driver_statistics("raw"));
        let dumped = host.on(|core| core.bdev("raw")).unwrap().driver_specific;
        assert_eq!(dumped, Some(json!({ "fake": true })), "statistics are no part of it");
        host.delete("raw").unwrap();
        told
    };
    assert_eq!(counted(&vendor::COUNTING_OPS), Some(json!({ "errors": 3 })));
    assert_eq!(counted(&vendor::OLDER_OPS), None);
    assert_eq!(host.on(|core| core.driver_statistics("raw")), None, "it is gone");
    host.finish();
}

#[test]
fn what_a_module_registers_is_checked() {
    let host = Host::new(28);
    host.load(0);
    let register = |change: fn(&mut tenon_abi::BdevV1)| host.on(|_| vendor::register_raw(0, change));
    assert_eq!(register(|bdev| bdev.size -= 1), errno::EINVAL);
    assert_eq!(register(|bdev| bdev.name = Str::new("a/b")), errno::EINVAL);
    assert_eq!(register(|bdev| bdev.name = Str::new("")), errno::EINVAL);
    assert_eq!(register(|bdev| bdev.limits.block_size = 100), errno::EINVAL);
    assert_eq!(register(|bdev| bdev.ops = std::ptr::null()), errno::EINVAL);
    assert_eq!(register(|bdev| bdev.alias_count = 1), errno::EINVAL);
    assert_eq!(register(|bdev| bdev.name = Str::new("fine")), 0);
    assert_eq!(register(|bdev| bdev.name = Str::new("fine")), errno::EEXIST);
    host.settle();
    assert_eq!(host.on(|core| core.bdev_names()), ["fine"]);
    // A foreign operation, an old one, and a number that never was one.
    for token in [1, 1 << 32, u64::MAX] {
        host.on(|_| vendor::answer(OpToken(token)));
    }
    host.delete("fine").unwrap();
    host.finish();
}
