//! What an operator is told of members that an array goes on without: which one, and
//! why, once.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod rig;

use std::time::Duration;

use serde_json::{Value, json};
use tenon_sdk::{IoStatus, abi::Op};
use tenon_testkit::{Access, BaseSpec, FakeHost, FaultPlan, Request, TestBase};

use rig::{BLOCKS, Rig, spec};

const MIRROR: &str = r#"{"name":"r0","level":"raid1","base_bdevs":["b0","b1"],"superblock":true}"#;
const SECOND: &str = "02020202-0202-0202-0202-020202020202";

fn mirror() -> Rig {
    Rig::new(3, "raid1", 2, 2, &json!({}))
}

impl Rig {
    #[track_caller]
    fn is_degraded(&self) {
        let is_met =
            self.host.run_until(Duration::from_secs(30), || self.array()["num_base_bdevs_operational"] == 1);
        assert!(is_met, "{:#?}", self.array());
    }

    /// What is shown as lost, and that just that was logged, once.
    #[track_caller]
    fn assert_lost(&self, state: &str, reason: &str, logged: &str) {
        let expected = json!([{ "slot": 1, "name": "b1", "uuid": SECOND, "state": state, "reason": reason }]);
        assert_eq!(self.array()["lost"], expected);
        let lines: Vec<String> = self.host.logs().into_iter().map(|line| line.message).collect();
        let told: Vec<&String> = lines.iter().filter(|line| line.starts_with(logged)).collect();
        assert_eq!(told.len(), 1, "{lines:#?}");
        let subject = format!("{logged} raid=r0 member=b1 uuid={SECOND} slot=1 ");
        assert!(
            told[0].starts_with(&subject) && told[0].ends_with(&format!("reason=\"{reason}\"")),
            "{told:?}"
        );
    }
}

#[test]
fn a_member_that_fails_is_told_once_with_its_identity_and_the_request_that_failed() {
    let rig = mirror();
    rig.bases[1].set_plan(FaultPlan::none().fail_op(Op::WRITE, IoStatus::IO_ERROR));
    let descriptor = rig.host.open("r0", Access::Write).unwrap();
    let channels = [0, 1].map(|reactor| descriptor.channel(reactor).unwrap());
    let write = |nth: usize| channels[nth % 2].submit(Request::write(640, 8, vec![3; 4096]));
    let ios: Vec<_> = (0..4).map(write).collect();
    assert!(ios.iter().all(|io| rig.host.wait(io).status.is_success()));
    rig.is_degraded();
    let reason = "write of 8 blocks at 640 of the array: i/o status -5";
    rig.assert_lost("failed", reason, "member failed");
    channels.iter().for_each(tenon_testkit::Channel::put);
    descriptor.close();
    // Another device in its place, and nothing is lost any more.
    rig.host.add_base(spec(7));
    rig.host.rpc("bdev_raid_add_base_bdev", r#"{"raid_bdev":"r0","base_bdev":"b7"}"#).unwrap();
    assert!(rig.host.run_until(Duration::from_secs(30), || rig.array()["num_base_bdevs_operational"] == 2));
    assert_eq!(rig.array().get("lost"), None);
}

#[test]
fn a_member_that_takes_no_superblock_is_told_with_that_and_let_go() {
    let rig = mirror();
    rig.bases[1].set_plan(FaultPlan::none().fail_op(Op::WRITE, IoStatus::IO_ERROR));
    // Growth has the members agreed on anew.
    rig.bases.iter().for_each(|base| base.resize(BLOCKS + 64));
    rig.is_degraded();
    rig.host.settle();
    let reason = "b1: cannot write the superblock (i/o status -5)";
    rig.assert_lost("failed", reason, "member failed");
    assert_eq!(rig.host.open_count("b1"), 0, "nobody else can use it");
    rig.bases[1].set_plan(FaultPlan::none());
    rig.host.rpc("bdev_raid_add_base_bdev", r#"{"raid_bdev":"r0","base_bdev":"b1"}"#).unwrap();
    assert!(rig.host.run_until(Duration::from_secs(30), || rig.array()["num_base_bdevs_operational"] == 2));
}

#[test]
fn a_member_that_is_removed_is_told_with_who_removed_it() {
    let rig = mirror();
    rig.bases[1].remove();
    rig.is_degraded();
    rig.assert_lost("missing", "its device was removed while in use", "member goes");
    drop(rig);
    let rig = mirror();
    rig.host.rpc("bdev_raid_remove_base_bdev", r#"{"name":"b1"}"#).unwrap();
    let lost = rig.array()["lost"][0].clone();
    assert_eq!((&lost["state"], &lost["reason"]), (&json!("missing"), &json!("an operator took it out")));
}

#[test]
fn after_a_restart_a_lost_member_is_told_as_far_as_superblocks_know_it() {
    let image = {
        let rig = mirror();
        rig.bases[1].set_plan(FaultPlan::none().fail_op(Op::WRITE, IoStatus::IO_ERROR));
        assert!(rig.host.once("r0", Request::write(0, 8, vec![3; 4096])).unwrap().status.is_success());
        rig.is_degraded();
        rig.bases[0].bytes(0, BLOCKS)
    };
    let restart = |image: &[u8]| {
        let host = FakeHost::new(4);
        let base = host.add_base(spec(0));
        base.write_bytes(0, image);
        host.load(bdev_raid::plugin, "{}").unwrap();
        host.settle();
        Rig { host, bases: vec![base] }
    };
    let rig = restart(&image);
    let lost = rig.array()["lost"][0].clone();
    assert_eq!(
        lost,
        json!({ "slot": 1, "name": null, "uuid": SECOND, "state": "failed", "reason": "as its superblock states" })
    );
    drop(rig);
    // One that was current, and stays away.
    let whole = mirror();
    let image = whole.bases[0].bytes(0, BLOCKS);
    drop(whole);
    let rig = restart(&image);
    assert_eq!(rig.array().get("lost"), None);
    rig.host.rpc("bdev_raid_start_degraded", r#"{"name":"r0"}"#).unwrap();
    let lost = rig.array()["lost"][0].clone();
    assert_eq!(lost["reason"], "was not there when the array was started without it");
}

#[test]
fn a_blank_device_of_a_table_is_rebuilt_whether_it_is_asked_for_before_or_after_its_members() {
    let image = {
        let rig = mirror();
        assert!(rig.host.once("r0", Request::write(0, 8, vec![9; 4096])).unwrap().status.is_success());
        rig.bases[0].bytes(0, BLOCKS)
    };
    // Its other member was exchanged for a new one of the same name.
    let new = || BaseSpec::new("b1", 512, BLOCKS).uuid([9; 16]);
    for (is_created_first, is_started_first) in [(true, false), (false, false), (false, true)] {
        let host = FakeHost::new(6);
        let old = host.add_base(spec(0));
        old.write_bytes(0, &image);
        let blank = host.add_base(new());
        let module = host.load(bdev_raid::plugin, "{}").unwrap();
        let created = is_created_first.then(|| host.start_create(module, MIRROR));
        host.settle();
        let rig = Rig { host, bases: vec![old, blank] };
        let start = || rig.host.rpc("bdev_raid_start_degraded", r#"{"name":"r0"}"#).unwrap();
        if is_started_first {
            start();
        }
        let created = created.unwrap_or_else(|| rig.host.start_create(module, MIRROR));
        let reply: Value = serde_json::from_str(&rig.host.wait_for(&created).unwrap()).unwrap();
        if !is_started_first {
            assert_eq!(reply, json!({ "state": "configuring", "missing": [SECOND] }), "{is_created_first}");
            assert_eq!(rig.array()["returning"], json!(["b1"]), "{is_created_first}");
            start();
        }
        let is_whole = || rig.array()["num_base_bdevs_operational"] == 2;
        assert!(rig.host.run_until(Duration::from_secs(30), is_whole), "{:#?}", rig.array());
        assert_eq!(rig.bases[1].bytes(2048, 8), [9; 4096]);
    }
}

#[test]
fn a_device_of_a_table_that_carries_another_array_is_left_alone() {
    let images: Vec<Vec<u8>> = ["r0", "other"]
        .iter()
        .map(|name| {
            let host = FakeHost::new(3);
            let bases: Vec<TestBase> = (0..2).map(|nth| host.add_base(spec(nth))).collect();
            let module = host.load(bdev_raid::plugin, "{}").unwrap();
            host.create(module, &MIRROR.replace("r0", name)).unwrap();
            bases[usize::from(*name == "other")].bytes(0, BLOCKS)
        })
        .collect();
    let host = FakeHost::new(6);
    let bases: Vec<TestBase> = (0..2).map(|nth| host.add_base(spec(nth))).collect();
    bases.iter().zip(&images).for_each(|(base, image)| base.write_bytes(0, image));
    let module = host.load(bdev_raid::plugin, "{}").unwrap();
    host.settle();
    let all = host.rpc("bdev_raid_get_bdevs", r#"{"category":"all"}"#).unwrap();
    assert_eq!(serde_json::from_str::<Vec<Value>>(&all).unwrap().len(), 2);
    host.rpc("bdev_raid_start_degraded", r#"{"name":"r0"}"#).unwrap();
    host.create(module, MIRROR).unwrap();
    host.advance(Duration::from_secs(10));
    assert!(bases[1].bytes(0, BLOCKS) == images[1]);
}

#[test]
fn a_member_that_alone_was_told_of_a_growth_is_refused_with_what_it_may_be() {
    let (ahead, behind) = {
        let rig = mirror();
        rig.host.advance(Duration::from_secs(1));
        // The superblock of the new size reaches one member only.
        let held = rig.bases[1].bytes(0, BLOCKS);
        rig.bases.iter().for_each(|base| base.resize(BLOCKS + 64));
        rig.host.settle();
        (rig.bases[0].bytes(0, BLOCKS + 64), held)
    };
    let host = FakeHost::new(5);
    let large = |nth: u8| BaseSpec::new(&format!("b{nth}"), 512, BLOCKS + 64).uuid([nth + 1; 16]);
    let base = host.add_base(large(1));
    base.write_bytes(0, &behind);
    host.load(bdev_raid::plugin, "{}").unwrap();
    host.settle();
    let rig = Rig { host, bases: vec![base] };
    rig.host.rpc("bdev_raid_start_degraded", r#"{"name":"r0"}"#).unwrap();
    let returned = rig.host.add_base(large(0));
    returned.write_bytes(0, &ahead);
    assert!(rig.host.examine("b0"));
    rig.host.settle();
    let told = rig.array()["diverged"]["b0"].to_string();
    assert!(told.contains("went its own way") && told.contains("if a crash interrupted that"), "{told}");
    rig.host.rpc("bdev_raid_add_base_bdev", r#"{"raid_bdev":"r0","base_bdev":"b0"}"#).unwrap();
    let is_whole = || rig.array()["num_base_bdevs_operational"] == 2;
    assert!(rig.host.run_until(Duration::from_secs(30), is_whole), "{:#?}", rig.array());
}

#[test]
fn an_array_that_had_too_few_members_when_its_time_was_up_starts_once_they_suffice() {
    let images: Vec<Vec<u8>> = {
        let host = FakeHost::new(3);
        let bases: Vec<TestBase> = (0..4).map(|nth| host.add_base(spec(nth))).collect();
        let module = host.load(bdev_raid::plugin, "{}").unwrap();
        let params = r#"{"name":"r0","level":"raid10","strip_size_kb":4,"base_bdevs":["b0","b1","b2","b3"],
            "superblock":true}"#;
        host.create(module, params).unwrap();
        bases.iter().map(|base| base.bytes(0, BLOCKS)).collect()
    };
    let host = FakeHost::new(4);
    let add = |nth: usize| {
        let base = host.add_base(spec(nth));
        base.write_bytes(0, &images[nth]);
        assert!(host.examine(base.name()) || nth < 2);
        base
    };
    let mut bases = vec![add(0), add(1)];
    host.load(bdev_raid::plugin, r#"{"degraded_start_timeout_sec":10}"#).unwrap();
    // One pair is missing.
    host.advance(Duration::from_secs(35));
    let array = || {
        let all = host.rpc("bdev_raid_get_bdevs", r#"{"category":"all"}"#).unwrap();
        serde_json::from_str::<Vec<Value>>(&all).unwrap().remove(0)
    };
    assert_eq!(array()["state"], "configuring");
    let told = host.logs().iter().filter(|line| line.message.starts_with("array not started")).count();
    assert_eq!(told, 1, "once is enough");
    bases.push(add(2));
    host.advance(Duration::from_secs(15));
    assert_eq!((&array()["state"], &array()["lost"][0]["slot"]), (&json!("online"), &json!(3)));
}
