//! What a rebuild must not miss, and whom it must not disturb, when members fail at
//! the wrong moment or come back older than they were.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod rig;

use std::time::Duration;

use serde_json::json;
use tenon_sdk::{IoStatus, abi::Op};
use tenon_testkit::{Access, Channel, FakeHost, FaultPlan, Request, TestBase};

use rig::{BLOCKS, DATA, Rig, spec};

fn mirror(seed: u64, members: usize, bitmap: bool) -> Rig {
    array_of("raid1", seed, members, bitmap)
}

fn array_of(level: &str, seed: u64, members: usize, bitmap: bool) -> Rig {
    Rig::new(seed, level, members, members, &json!({ "bitmap": bitmap }))
}

impl Rig {
    #[track_caller]
    fn wait_for_members(&self, count: u64) {
        let is_met = self.host.run_until(Duration::from_secs(60), || {
            let array = self.array();
            array["num_base_bdevs_operational"] == count && array.get("process").is_none()
        });
        assert!(is_met, "{:#?}", self.array());
    }

    fn write_all(&self, fill: u8) {
        for at in (0..BLOCKS - DATA).step_by(64) {
            let request = Request::write(at, 64, vec![fill; 64 * 512]);
            assert!(self.host.once("r0", request).unwrap().status.is_success());
        }
    }

    fn data(&self, nth: usize) -> Vec<u8> {
        self.bases[nth].bytes(DATA, BLOCKS - DATA)
    }

    /// A device that went is there again, with what it held once.
    fn return_with(&mut self, nth: usize, image: &[u8]) {
        let base = self.host.add_base(spec(nth));
        base.write_bytes(0, image);
        assert!(self.host.examine(base.name()));
        self.bases[nth] = base;
    }
}

#[test]
fn a_member_that_fails_as_a_rebuild_begins_is_no_source_of_it() {
    let rig = mirror(7, 3, false);
    rig.ok(
        "bdev_raid_set_options",
        json!({ "process_window_size_kb": 64, "process_max_bandwidth_mb_sec": 1 }),
    );
    rig.ok("bdev_raid_remove_base_bdev", json!({ "name": "b2" }));
    rig.bases[1].set_plan(FaultPlan::none().fail_op(Op::WRITE, IoStatus::IO_ERROR));
    rig.ok("bdev_raid_add_base_bdev", json!({ "raid_bdev": "r0", "base_bdev": "b2" }));
    assert!(rig.host.run_until(Duration::from_secs(5), || rig.array().get("process").is_some()));
    rig.write_all(5);
    rig.wait_for_members(2);
    assert!(rig.data(2) == rig.data(0), "it got what the failed member holds");
    assert_eq!(rig.host.open_count("b1"), 0);
}

#[test]
fn a_target_that_fails_in_its_window_is_let_go_when_writes_to_it_are_over() {
    for seed in 0..30 {
        let rig = mirror(seed, 2, false);
        rig.ok("bdev_raid_remove_base_bdev", json!({ "name": "b1" }));
        let slow = || FaultPlan::none().delay_ns(0, 2_000_000);
        rig.bases[1].set_plan(slow());
        let descriptor = rig.host.open("r0", Access::Write).unwrap();
        let channels = [0, 1].map(|reactor| descriptor.channel(reactor).unwrap());
        rig.ok("bdev_raid_set_options", json!({ "process_window_size_kb": 64 }));
        rig.ok("bdev_raid_add_base_bdev", json!({ "raid_bdev": "r0", "base_bdev": "b1" }));
        let mut ios = Vec::new();
        for nth in 0.. {
            ios.push(channels[nth % 2].submit(Request::write(nth as u64 % 8 * 8, 8, vec![nth as u8; 4096])));
            rig.host.advance(Duration::from_micros(200));
            if rig.array()["process"]["progress"]["blocks"] != 0 {
                rig.bases[1].set_plan(slow().fail_range(DATA + 512..BLOCKS, IoStatus::IO_ERROR));
            }
            if rig.array()["lost"][0]["state"] == "failed" {
                break;
            }
            assert!(nth < 2000, "seed {seed}: {:#?}", rig.array());
        }
        assert!(ios.iter().all(|io| rig.host.wait(io).status.is_success()), "seed {seed}");
        rig.wait_for_members(1);
        rig.host.settle();
        assert_eq!(rig.host.open_count("b1"), 0, "seed {seed}");
        channels.iter().for_each(Channel::put);
        descriptor.close();
    }
}

#[test]
fn a_member_that_returns_older_than_it_was_is_copied_whole() {
    let mut rig = mirror(7, 2, true);
    let old = rig.bases[1].bytes(0, BLOCKS);
    // It was current at a later agreement, and its regions are clean again.
    rig.ok("bdev_raid_remove_base_bdev", json!({ "name": "b1" }));
    rig.ok("bdev_raid_add_base_bdev", json!({ "raid_bdev": "r0", "base_bdev": "b1" }));
    rig.wait_for_members(2);
    rig.write_all(5);
    rig.host.advance(Duration::from_secs(60));
    assert_eq!(rig.array()["bitmap"]["dirty_regions"], 0);
    rig.bases[1].remove();
    rig.wait_for_members(1);
    rig.host.settle();
    rig.return_with(1, &old);
    rig.wait_for_members(2);
    assert!(rig.data(1) == rig.data(0), "it was taken for what it had been");
}

#[test]
fn a_device_that_takes_another_slot_than_it_had_is_copied_whole() {
    let images: Vec<Vec<u8>> = {
        let rig = array_of("raid10", 7, 4, true);
        let blocks = rig.host.device("r0").unwrap().limits.num_blocks;
        let data: Vec<u8> = (0..blocks as usize * 512).map(|at| (at / 4096 % 251) as u8).collect();
        for at in (0..blocks).step_by(64) {
            let part = data[at as usize * 512..][..64 * 512].to_vec();
            assert!(rig.host.once("r0", Request::write(at, 64, part)).unwrap().status.is_success());
        }
        rig.host.advance(Duration::from_secs(60));
        assert_eq!(rig.array()["bitmap"]["dirty_regions"], 0);
        rig.bases.iter().map(|base| base.bytes(0, BLOCKS)).collect()
    };
    // The first stays away; the last was in the other pair, and is known to have been current.
    let host = FakeHost::new(8);
    let bases: Vec<TestBase> = (1..4).map(|nth| host.add_base(spec(nth))).collect();
    bases.iter().zip(&images[1..]).for_each(|(base, image)| base.write_bytes(0, image));
    host.load(bdev_raid::plugin, "{}").unwrap();
    host.settle();
    let rig = Rig { host, bases };
    rig.ok("bdev_raid_start_degraded", json!({ "name": "r0" }));
    rig.ok("bdev_raid_remove_base_bdev", json!({ "name": "b3" }));
    rig.ok("bdev_raid_add_spare", json!({ "raid_bdev": "r0", "base_bdev": "b3" }));
    rig.wait_for_members(3);
    assert_eq!(rig.array()["base_bdevs_list"][0]["name"], "b3");
    assert!(rig.data(2) == rig.data(0), "it kept what the other pair holds");
}

#[test]
fn a_target_that_fails_while_its_rebuild_is_paused_holds_no_write_up() {
    let rig = mirror(7, 2, false);
    rig.ok(
        "bdev_raid_set_options",
        json!({ "process_window_size_kb": 64, "process_max_bandwidth_mb_sec": 1 }),
    );
    rig.ok("bdev_raid_remove_base_bdev", json!({ "name": "b1" }));
    rig.ok("bdev_raid_add_base_bdev", json!({ "raid_bdev": "r0", "base_bdev": "b1" }));
    rig.host.advance(Duration::from_millis(200));
    rig.ok("bdev_raid_pause_process", json!({ "name": "r0" }));
    rig.host.advance(Duration::from_secs(1));
    rig.bases[1].set_plan(FaultPlan::none().fail_op(Op::WRITE, IoStatus::IO_ERROR));
    assert!(rig.host.once("r0", Request::write(0, 8, vec![3; 4096])).unwrap().status.is_success());
    rig.wait_for_members(1);
    assert_eq!(rig.array()["lost"][0]["reason"], "write of 8 blocks at 0 of the array: i/o status -5");
}
