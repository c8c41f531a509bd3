//! An I/O that waits in an array ends when its abort is asked for, whatever it waits
//! for, and leaves nothing that others wait for.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod rig;

use std::time::Duration;

use serde_json::json;
use tenon_sdk::{IoStatus, abi::Op};
use tenon_testkit::{Access, Channel, Descriptor, Request};

use rig::{DATA, Rig};

fn array_of(level: &str, members: usize, bitmap: bool) -> Rig {
    let rig = Rig::new(5, level, members, members, &json!({ "bitmap": bitmap }));
    rig.host.advance(Duration::from_secs(60));
    rig
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
    let rig = array_of("raid5", 3, false);
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
    let rig = array_of("raid5", 3, false);
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
    let rig = array_of("raid1", 2, true);
    let (descriptor, channel) = rig.open();
    rig.hold(true);
    let (victim, last) = (channel.submit(write(3)), channel.submit(write(4)));
    rig.host.settle();
    assert_aborted(&channel, &victim);
    rig.hold(false);
    assert!(rig.host.wait(&last).status.is_success());
    assert_eq!(rig.bases[1].bytes(DATA, 1), [4; 512]);
    channel.put();
    descriptor.close();
}

#[test]
fn one_that_waits_for_a_window_of_a_rebuild_is_aborted() {
    let rig = array_of("raid1", 2, false);
    rig.host.rpc("bdev_raid_remove_base_bdev", r#"{"name":"b1"}"#).unwrap();
    let (descriptor, channel) = rig.open();
    rig.bases[1].clear_records();
    rig.host.rpc("bdev_raid_add_base_bdev", r#"{"raid_bdev":"r0","base_bdev":"b1"}"#).unwrap();
    let is_copied = || rig.bases[1].records().iter().any(|io| io.op == Op::WRITE && io.offset_blocks >= DATA);
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
    assert_eq!(rig.bases[1].bytes(DATA, 1), [0; 512]);
    channel.put();
    descriptor.close();
}
