//! An I/O that waits in an array ends when its abort is asked for, whatever it waits
//! for, and leaves nothing that others wait for.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use serde_json::{Value, json};
use tenon_sdk::{IoStatus, abi::Op};
use tenon_testkit::{Access, BaseSpec, Channel, Descriptor, FakeHost, Request, TestBase};

const BLOCKS: u64 = 4096;

struct Rig {
    host: FakeHost,
    bases: Vec<TestBase>,
}

fn rig(level: &str, members: u8, bitmap: bool) -> Rig {
    let host = FakeHost::new(5);
    let spec = |nth: u8| BaseSpec::new(&format!("b{nth}"), 512, BLOCKS).uuid([nth + 1; 16]);
    let bases: Vec<TestBase> = (0..members).map(|nth| host.add_base(spec(nth))).collect();
    let module = host.load(bdev_raid::plugin, "{}").unwrap();
    let names: Vec<&str> = bases.iter().map(TestBase::name).collect();
    let strip = if level == "raid1" { 0 } else { 4 };
    let params = json!({ "name": "r0", "level": level, "strip_size_kb": strip, "base_bdevs": names,
        "superblock": true, "bitmap": bitmap });
    host.create(module, &params.to_string()).unwrap();
    host.advance(Duration::from_secs(60));
    Rig { host, bases }
}

impl Rig {
    fn open(&self) -> (Descriptor, Channel) {
        let descriptor = self.host.open("r0", Access::Write).unwrap();
        let channel = descriptor.channel(0).unwrap();
        (descriptor, channel)
    }

    fn hold(&self, holds: bool) {
        self.bases.iter().for_each(|base| base.hold(holds));
        self.host.settle();
    }

    fn array(&self) -> Value {
        let all = self.host.rpc("bdev_raid_get_bdevs", r#"{"category":"all"}"#).unwrap();
        serde_json::from_str::<Vec<Value>>(&all).unwrap().remove(0)
    }
}

fn write(fill: u8) -> Request {
    Request::write(0, 1, vec![fill; 512])
}

/// The victim ends as aborted, now, and is found no second time.
#[track_caller]
fn assert_aborted(channel: &Channel, victim: &tenon_testkit::Io) {
    assert!(!victim.is_done());
    assert_eq!(channel.abort(victim), 0, "it is not found");
    assert_eq!(victim.completion().unwrap().status, IoStatus::ABORTED);
    assert_ne!(channel.abort(victim), 0);
}

#[test]
fn one_that_waits_for_a_stripe_is_aborted_and_members_can_go_afterwards() {
    let rig = rig("raid5", 3, false);
    assert!(rig.host.once("r0", write(1)).unwrap().status.is_success());
    let (descriptor, channel) = rig.open();
    rig.hold(true);
    let first = channel.submit(write(2));
    let (victim, last) = (channel.submit(write(3)), channel.submit(write(4)));
    rig.host.settle();
    assert_aborted(&channel, &victim);
    assert!(!first.is_done() && !last.is_done());
    rig.hold(false);
    assert!([first, last].iter().all(|io| rig.host.wait(io).status.is_success()));
    // A change waits until no write is in flight: the victim is not counted any more.
    rig.host.rpc("bdev_raid_remove_base_bdev", r#"{"name":"b0"}"#).unwrap();
    let read = rig.host.wait(&channel.submit(Request::read(0, 1)));
    assert_eq!(read.data, [4; 512]);
    channel.put();
    descriptor.close();
}

#[test]
fn a_read_that_waits_for_a_stripe_to_be_computed_from_is_aborted() {
    let rig = rig("raid5", 3, false);
    assert!(rig.host.once("r0", write(1)).unwrap().status.is_success());
    rig.host.rpc("bdev_raid_remove_base_bdev", r#"{"name":"b0"}"#).unwrap();
    let (descriptor, channel) = rig.open();
    rig.hold(true);
    let first = channel.submit(write(2));
    let victim = channel.submit(Request::read(0, 1));
    rig.host.settle();
    assert_aborted(&channel, &victim);
    rig.hold(false);
    assert!(rig.host.wait(&first).status.is_success());
    channel.put();
    descriptor.close();
}

#[test]
fn one_that_waits_for_its_region_to_be_marked_is_aborted() {
    let rig = rig("raid1", 2, true);
    let (descriptor, channel) = rig.open();
    rig.hold(true);
    let (victim, last) = (channel.submit(write(3)), channel.submit(write(4)));
    rig.host.settle();
    assert_aborted(&channel, &victim);
    rig.hold(false);
    assert!(rig.host.wait(&last).status.is_success());
    assert_eq!(rig.bases[1].bytes(2048, 1), [4; 512]);
    channel.put();
    descriptor.close();
}

#[test]
fn one_that_waits_for_a_window_of_a_rebuild_is_aborted() {
    let rig = rig("raid1", 2, false);
    rig.host.rpc("bdev_raid_remove_base_bdev", r#"{"name":"b1"}"#).unwrap();
    let (descriptor, channel) = rig.open();
    rig.bases[1].clear_records();
    rig.host.rpc("bdev_raid_add_base_bdev", r#"{"raid_bdev":"r0","base_bdev":"b1"}"#).unwrap();
    let is_copied = || rig.bases[1].records().iter().any(|io| io.op == Op::WRITE && io.offset_blocks >= 2048);
    let has_begun = rig.host.run_until(Duration::from_secs(5), || {
        // Whatever the target gets from its first window on stays there.
        rig.bases[1].hold(is_copied());
        is_copied()
    });
    assert!(has_begun);
    let victim = channel.submit(write(3));
    rig.host.settle();
    assert!(rig.array().get("process").is_some(), "the window is over");
    assert_aborted(&channel, &victim);
    rig.hold(false);
    assert!(
        rig.host.run_until(Duration::from_secs(30), || rig.array()["num_base_bdevs_operational"] == 2),
        "{:#?}",
        rig.array()
    );
    assert_eq!(rig.bases[1].bytes(2048, 1), [0; 512]);
    channel.put();
    descriptor.close();
}
