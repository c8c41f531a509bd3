//! What arrays do besides I/O: rebuilds, spares, scrubs, correction of read errors,
//! growth.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod rig;

use std::time::Duration;

use serde_json::{Value, json};
use tenon_sdk::{BdevFlags, IoFlags, IoStatus, abi::Op, errno};
use tenon_testkit::{Access, Arrival, BaseSpec, FakeHost, FaultPlan, Request, TestBase};

use rig::{BLOCKS, DATA, Rig, spec};

/// First block of the journal of a member.
const JOURNAL: u64 = 512;

/// A host with an array of that level on the first `members` of `count` devices.
fn rig(level: &str, members: usize, count: usize, more: Value) -> Rig {
    Rig::new(7, level, members, count, &more)
}

impl Rig {
    fn err(&self, method: &str, params: Value) -> (i32, String) {
        let error = self.host.rpc(method, &params.to_string()).unwrap_err();
        (error.code, error.reason)
    }

    fn is_whole(&self) -> bool {
        let array = self.array();
        array["num_base_bdevs_operational"] == array["num_base_bdevs"] && array.get("process").is_none()
    }

    #[track_caller]
    fn wait_for(&self, what: &str, mut is_met: impl FnMut(&Rig) -> bool) {
        let is_met = self.host.run_until(Duration::from_secs(30), || is_met(self));
        assert!(is_met, "{what}: {} {:#?}", self.array(), self.host.logs());
    }

    #[track_caller]
    fn scrub(&self, is_repair: bool) -> Value {
        self.ok("bdev_raid_start_scrub", json!({ "name": "r0", "repair": is_repair }));
        self.wait_for("the scrub is over", |rig| {
            rig.array()["scrub"]["state"] != "waiting" && rig.array().get("process").is_none()
        });
        let report = self.array()["scrub"].clone();
        assert_eq!(report["state"], "completed");
        report
    }

    fn write_all(&self) -> Vec<u8> {
        let info = self.host.device("r0").unwrap();
        let (blocks, unit) = (info.limits.num_blocks, u64::from(info.limits.write_unit.max(8)));
        let data = self.host.rng().bytes(blocks as usize * 512);
        for at in (0..blocks).step_by(unit as usize) {
            let bytes = data[at as usize * 512..(at + unit) as usize * 512].to_vec();
            let done = self.host.once("r0", Request::write(at, unit, bytes)).unwrap();
            assert!(done.status.is_success(), "{:?}", done.status);
        }
        data
    }

    #[track_caller]
    fn assert_reads(&self, data: &[u8]) {
        for (nth, expected) in data.chunks(8 * 512).enumerate() {
            let done = self.host.once("r0", Request::read(nth as u64 * 8, 8)).unwrap();
            assert!(done.status.is_success() && done.data == expected, "blocks at {}", nth * 8);
        }
    }
}

const REDUNDANT: [(&str, usize); 4] = [("raid1", 2), ("raid1", 3), ("raid10", 4), ("raid5f", 3)];

#[test]
fn an_array_is_opened_while_a_member_goes_unless_it_needs_it() {
    for (level, members, is_opened) in
        [("raid1", 2, true), ("raid10", 4, true), ("raid5f", 3, true), ("raid0", 2, false)]
    {
        let rig = rig(level, members, members, json!({}));
        let descriptor = rig.host.open("r0", Access::Write).unwrap();
        rig.bases[0].remove();
        let Some(channel) = descriptor.channel(1) else {
            assert!(!is_opened, "{level}");
            continue;
        };
        assert!(is_opened, "{level}");
        let unit = u64::from(rig.host.device("r0").unwrap().limits.write_unit.max(8));
        let done = rig.host.wait(&channel.submit(Request::write(0, unit, vec![7; unit as usize * 512])));
        assert!(done.status.is_success(), "{level} {:?}", done.status);
        // What was acknowledged is on members that are known to be all there are.
        assert_eq!(rig.array()["num_base_bdevs_operational"], members - 1, "{level}");
        let done = rig.host.wait(&channel.submit(Request::read(0, 8)));
        assert!(done.status.is_success() && done.data == [7; 8 * 512], "{level} {:?}", done.status);
        channel.put();
    }
}

#[test]
fn a_scrub_of_members_that_agree_finds_nothing() {
    for (level, members) in REDUNDANT {
        let rig = rig(level, members, members, json!({}));
        rig.write_all();
        let report = rig.scrub(false);
        assert_eq!((&report["mismatched_blocks"], &report["mode"]), (&json!(0), &json!("check")), "{level}");
    }
}

#[test]
fn a_scrub_counts_blocks_that_differ_and_repairs_them_if_asked_to() {
    for (level, members) in REDUNDANT {
        let rig = rig(level, members, members, json!({}));
        let data = rig.write_all();
        // Of two copies the first counts, of a stripe the data: so it is the other that rots here.
        let rotten = members - 1;
        let at = DATA + if level == "raid5f" { 0 } else { 100 };
        let before = rig.bases[rotten].bytes(at, 1);
        rig.bases[rotten].write_bytes(at, &[0xee; 512]);
        let report = rig.scrub(false);
        assert_eq!(report["mismatched_blocks"], 1, "{level} {report}");
        assert_eq!(report["first_block"], at - DATA);
        assert_eq!(rig.bases[rotten].bytes(at, 1), [0xee; 512]);
        let report = rig.scrub(true);
        assert_eq!((&report["repaired_blocks"], &report["mode"]), (&json!(1), &json!("repair")), "{level}");
        assert_eq!(rig.bases[rotten].bytes(at, 1), before);
        assert_eq!(rig.scrub(false)["mismatched_blocks"], 0);
        rig.assert_reads(&data);
    }
}

#[test]
fn writes_go_on_during_a_scrub_and_are_no_mismatch() {
    for (level, members) in REDUNDANT {
        let rig = rig(level, members, members, json!({}));
        rig.ok("bdev_raid_set_options", json!({ "process_window_size_kb": 32 }));
        rig.bases.iter().for_each(|base| base.set_plan(FaultPlan::none().delay_ns(0, 2_000_000)));
        rig.ok("bdev_raid_start_scrub", json!({ "name": "r0" }));
        let mut data = rig.write_all();
        while rig.array().get("process").is_some() {
            data = rig.write_all();
        }
        assert_eq!(rig.array()["scrub"]["mismatched_blocks"], 0, "{level}");
        rig.assert_reads(&data);
    }
}

#[test]
fn a_scrub_that_waits_for_its_turn_shows_no_report_of_another_and_may_be_stopped() {
    let rig = rig("raid1", 3, 3, json!({}));
    rig.write_all();
    rig.bases[2].write_bytes(DATA, &[0xee; 512]);
    assert_eq!(rig.scrub(false)["mismatched_blocks"], 1);
    // A change that waits for a write in flight is what it has to wait for.
    let descriptor = rig.host.open("r0", Access::Write).unwrap();
    let channel = descriptor.channel(0).unwrap();
    let held = |is_held| rig.bases.iter().for_each(|base| base.hold(is_held));
    held(true);
    let io = channel.submit(Request::write(8, 8, vec![1; 4096]));
    rig.host.settle();
    let removal = rig.host.start_rpc("bdev_raid_remove_base_bdev", r#"{"name":"b2"}"#);
    rig.host.settle();
    let start = json!({ "name": "r0", "repair": true });
    rig.ok("bdev_raid_start_scrub", start.clone());
    let report = rig.array()["scrub"].clone();
    assert_eq!((&report["state"], &report["mismatched_blocks"]), (&json!("waiting"), &json!(0)));
    assert_eq!(rig.err("bdev_raid_start_scrub", start.clone()).0, errno::EBUSY);
    rig.ok("bdev_raid_stop_scrub", json!({ "name": "r0" }));
    assert_eq!(rig.array()["scrub"]["state"], "stopped");
    rig.ok("bdev_raid_start_scrub", start);
    held(false);
    rig.host.wait_for(&removal).unwrap();
    assert!(rig.host.wait(&io).status.is_success());
    // There is a member less to compare by now.
    rig.wait_for("its turn", |rig| rig.array()["scrub"]["state"] == "interrupted");
    channel.put();
    descriptor.close();
}

#[test]
fn a_scrub_is_refused_where_there_is_nothing_to_compare() {
    let striped = rig("raid0", 2, 2, json!({}));
    let (code, reason) = striped.err("bdev_raid_start_scrub", json!({ "name": "r0" }));
    assert_eq!((code, reason.as_str()), (errno::EBUSY, "raid0 has nothing to compare"));
    drop(striped);
    let mirror = rig("raid1", 2, 2, json!({}));
    mirror.ok("bdev_raid_remove_base_bdev", json!({ "name": "b1" }));
    assert_eq!(mirror.err("bdev_raid_start_scrub", json!({ "name": "r0" })).0, errno::EBUSY);
    assert_eq!(mirror.err("bdev_raid_stop_scrub", json!({ "name": "r0" })).0, errno::ENOENT);
    assert_eq!(mirror.err("bdev_raid_pause_process", json!({ "name": "r0" })).0, errno::ENOENT);
}

#[test]
fn a_block_that_cannot_be_read_is_read_elsewhere_and_rewritten() {
    for (level, members) in REDUNDANT {
        let rig = rig(level, members, members, json!({}));
        let data = rig.write_all();
        // The read fails, and so does the next one, which asks whether it still does.
        // A stripe is read at once first, then strip by strip.
        let failing = if level == "raid5f" { 3 } else { 2 };
        let plan =
            (1..=failing).fold(FaultPlan::none(), |plan, nth| plan.fail_nth(nth, IoStatus::UNRECOVERED_READ));
        rig.bases[0].set_plan(plan);
        rig.bases[0].clear_records();
        let done = rig.host.once("r0", Request::read(0, 8)).unwrap();
        assert!(done.status.is_success() && done.data == data[..4096], "{level}");
        rig.wait_for("corrected", |rig| rig.array()["corrected_read_errors"] == 1);
        let records = rig.bases[0].records();
        let written: Vec<_> = records.iter().filter(|io| io.op == Op::WRITE).collect();
        assert_eq!(written.len(), 1, "{level} {records:?}");
        assert!(rig.is_whole());
        rig.assert_reads(&data);
    }
}

#[test]
fn every_block_that_a_member_could_not_read_is_rewritten_on_it_and_on_no_other() {
    for (level, members) in REDUNDANT.into_iter().chain([("raid5", 3)]) {
        let rig = rig(level, members, members, json!({}));
        rig.wait_for("it is made equal", Rig::is_whole);
        let data = rig.write_all();
        rig.bases.iter().for_each(|base| base.set_plan(FaultPlan::none().delay_ns(1000, 50_000)));
        let descriptor = rig.host.open("r0", Access::Read).unwrap();
        let channel = descriptor.channel(0).unwrap();
        for nth in 0..members {
            // Of levels with parity the last member holds that of stripe 0.
            let at = if nth + 1 == members { DATA + 8 } else { DATA };
            rig.bases[nth].spoil(at + 3..at + 5);
            rig.bases.iter().for_each(TestBase::clear_records);
            for _ in 0..20 {
                // Of mirrors another member is read as long as one is busy.
                let ats = (0..32).map(|nth| nth / 8 * 8 + 3);
                let ios: Vec<_> = ats.map(|at| (at, channel.submit(Request::read(at, 2)))).collect();
                for (at, io) in ios {
                    let (done, at) = (rig.host.wait(&io), at as usize * 512);
                    assert!(done.status.is_success() && done.data == data[at..at + 1024], "{level}");
                }
                rig.host.advance(Duration::from_millis(10));
            }
            assert_eq!(rig.bases[nth].spoiled(), 0, "{level}: member {nth}");
            for (other, base) in rig.bases.iter().enumerate().filter(|(other, _)| *other != nth) {
                let is_written = base.records().iter().any(|io| io.op == Op::WRITE);
                assert!(!is_written, "{level}: member {other} for {nth}");
            }
        }
        channel.put();
        descriptor.close();
        assert!(rig.is_whole());
        assert_eq!(rig.scrub(false)["mismatched_blocks"], 0, "{level}");
    }
}

#[test]
fn a_member_that_cannot_be_rewritten_fails() {
    for (level, members) in REDUNDANT {
        let rig = rig(level, members, members, json!({}));
        let data = rig.write_all();
        rig.bases[0].set_plan(
            FaultPlan::none()
                .fail_op(Op::READ, IoStatus::UNRECOVERED_READ)
                .fail_op(Op::WRITE, IoStatus::IO_ERROR),
        );
        rig.assert_reads(&data);
        rig.wait_for("the member is out", |rig| rig.array()["num_base_bdevs_operational"] == members - 1);
        rig.assert_reads(&data);
    }
}

#[test]
fn a_spare_takes_the_place_of_a_member_that_fails_or_goes() {
    for (level, members) in REDUNDANT {
        for is_removed in [false, true] {
            let rig = rig(level, members, members + 1, json!({ "spares": [format!("b{members}")] }));
            assert_eq!(rig.array()["spares"][0]["is_there"], true);
            let mut data = rig.write_all();
            if is_removed {
                rig.bases[0].remove();
            } else {
                rig.bases[0].set_plan(FaultPlan::none().fail_op(Op::WRITE, IoStatus::IO_ERROR));
                data = rig.write_all();
            }
            rig.wait_for("the spare is a member", |rig| {
                rig.is_whole() && rig.array()["base_bdevs_list"][0]["name"] == format!("b{members}")
            });
            assert!(rig.array().get("spares").is_none());
            // It holds all of it: another member may go.
            rig.bases[1].remove();
            rig.wait_for("degraded", |rig| rig.bases[1].is_gone());
            rig.assert_reads(&data);
        }
    }
}

#[test]
fn a_spare_that_appears_later_is_taken_and_one_that_goes_is_awaited() {
    let rig = rig("raid1", 2, 2, json!({ "spares": ["b2"] }));
    rig.ok("bdev_raid_remove_base_bdev", json!({ "name": "b1" }));
    let spare = rig.host.add_base(spec(2));
    rig.wait_for("the spare is a member", Rig::is_whole);
    assert_eq!(rig.array()["base_bdevs_list"][1]["name"], "b2");
    assert_eq!(
        rig.err("bdev_raid_add_spare", json!({ "raid_bdev": "r0", "base_bdev": "none" })).0,
        errno::ENODEV
    );
    rig.ok("bdev_raid_add_spare", json!({ "raid_bdev": "r0", "base_bdev": "b1" }));
    assert_eq!(rig.host.open_count("b1"), 1);
    rig.bases[1].remove();
    rig.wait_for("the spare is gone", |rig| rig.bases[1].is_gone());
    assert_eq!(rig.array()["spares"], json!([{ "name": "b1", "is_there": false }]));
    rig.ok("bdev_raid_remove_spare", json!({ "raid_bdev": "r0", "base_bdev": "b1" }));
    assert!(rig.array().get("spares").is_none());
    drop(spare);
}

#[test]
fn a_member_is_replaced_in_one_step() {
    let rig = rig("raid10", 4, 5, json!({}));
    let data = rig.write_all();
    let params = json!({ "raid_bdev": "r0", "base_bdev": "b2", "new_base_bdev": "b4" });
    rig.ok("bdev_raid_replace_base_bdev", params);
    rig.wait_for("whole", Rig::is_whole);
    assert_eq!(rig.array()["base_bdevs_list"][2]["name"], "b4");
    assert_eq!(rig.host.open_count("b2"), 0);
    rig.bases[3].remove();
    rig.wait_for("degraded", |rig| rig.bases[3].is_gone());
    rig.assert_reads(&data);
}

#[test]
fn two_members_that_return_are_rebuilt_one_after_the_other() {
    let rig = rig("raid10", 4, 4, json!({}));
    for name in ["b0", "b3"] {
        rig.ok("bdev_raid_remove_base_bdev", json!({ "name": name }));
    }
    let data = rig.write_all();
    for name in ["b0", "b3"] {
        rig.ok("bdev_raid_add_base_bdev", json!({ "raid_bdev": "r0", "base_bdev": name }));
    }
    rig.wait_for("whole", Rig::is_whole);
    for nth in [1, 2] {
        rig.bases[nth].remove();
        rig.wait_for("degraded", |rig| rig.bases[nth].is_gone());
    }
    rig.assert_reads(&data);
}

#[test]
fn a_rebuild_can_be_paused_and_goes_on_where_it_was() {
    let rig = rig("raid1", 2, 2, json!({}));
    let data = rig.write_all();
    let options = json!({ "process_window_size_kb": 64, "process_max_bandwidth_mb_sec": 1 });
    rig.ok("bdev_raid_set_options", options);
    rig.ok("bdev_raid_remove_base_bdev", json!({ "name": "b1" }));
    rig.ok("bdev_raid_add_base_bdev", json!({ "raid_bdev": "r0", "base_bdev": "b1" }));
    rig.host.advance(Duration::from_millis(300));
    rig.ok("bdev_raid_pause_process", json!({ "name": "r0" }));
    rig.host.advance(Duration::from_millis(100));
    let paused = rig.array()["process"].clone();
    assert_eq!(paused["state"], "paused");
    rig.host.advance(Duration::from_secs(5));
    assert_eq!(rig.array()["process"], paused);
    rig.write_all();
    let data = rig.host.once("r0", Request::read(0, 8)).map(|_| data).unwrap();
    rig.ok("bdev_raid_resume_process", json!({ "name": "r0" }));
    let blocks = |array: &Value| array["process"]["progress"]["blocks"].as_u64().unwrap();
    assert!(blocks(&rig.array()) >= paused["progress"]["blocks"].as_u64().unwrap());
    rig.wait_for("whole", Rig::is_whole);
    assert_eq!(rig.bases[1].bytes(DATA, DATA), rig.bases[0].bytes(DATA, DATA));
    drop(data);
}

#[test]
fn a_rebuild_takes_the_share_of_the_time_that_its_priority_gives_it() {
    let taken_ns = ["low", "normal", "high"].map(|priority| {
        let rig = rig("raid1", 2, 2, json!({}));
        let options = json!({ "process_window_size_kb": 64, "process_priority": priority });
        rig.ok("bdev_raid_set_options", options);
        rig.bases.iter().for_each(|base| base.set_plan(FaultPlan::none().delay_ns(100_000, 100_000)));
        rig.ok("bdev_raid_remove_base_bdev", json!({ "name": "b1" }));
        rig.ok("bdev_raid_add_base_bdev", json!({ "raid_bdev": "r0", "base_bdev": "b1" }));
        let begin_ns = rig.host.now_ns();
        // Somebody uses the array all the time.
        let descriptor = rig.host.open("r0", Access::Read).unwrap();
        let channel = descriptor.channel(0).unwrap();
        while !rig.is_whole() {
            assert!(rig.host.wait(&channel.submit(Request::read(0, 8))).status.is_success());
        }
        channel.put();
        descriptor.close();
        rig.host.now_ns() - begin_ns
    });
    let [low, normal, high] = taken_ns;
    assert!(low > 2 * normal && normal > 2 * high, "{taken_ns:?}");
}

#[test]
fn an_array_grows_with_its_members_and_is_as_large_after_a_restart() {
    for (level, members) in [("raid0", 2), ("raid1", 2), ("raid10", 4), ("raid5f", 3), ("concat", 2)] {
        let rig = rig(level, members, members, json!({}));
        let data = rig.write_all();
        let before = rig.host.device("r0").unwrap().limits.num_blocks;
        for (nth, base) in rig.bases.iter().enumerate() {
            if level != "concat" && nth + 1 == members {
                rig.host.settle();
                assert_eq!(rig.host.device("r0").unwrap().limits.num_blocks, before, "{level}");
            }
            base.resize(BLOCKS * 2);
        }
        let grown = |rig: &Rig| rig.host.device("r0").unwrap().limits.num_blocks;
        let expected = match level {
            // The last member has grown by twice its data area; nothing can grow between two others.
            "concat" => before + BLOCKS,
            _ => before * 3,
        };
        rig.wait_for("the array has grown", |rig| grown(rig) == expected);
        rig.assert_reads(&data);
        let data = rig.write_all();
        let images: Vec<Vec<u8>> = rig.bases.iter().map(|base| base.bytes(0, BLOCKS * 2)).collect();
        drop(rig);
        let host = FakeHost::new(8);
        for (nth, image) in images.iter().enumerate() {
            let base =
                host.add_base(BaseSpec::new(&format!("b{nth}"), 512, BLOCKS * 2).uuid([nth as u8 + 1; 16]));
            base.write_bytes(0, image);
        }
        host.load(bdev_raid::plugin, "{}").unwrap();
        host.settle();
        let again = Rig { host, bases: Vec::new() };
        assert_eq!(grown(&again), expected, "{level}");
        again.assert_reads(&data);
    }
}

#[test]
fn members_are_made_equal_in_the_blocks_that_an_array_of_parity_has_grown_by() {
    for (level, more) in [("raid5", json!({})), ("raid5f", json!({ "bitmap": true }))] {
        let rig = rig(level, 3, 3, more);
        rig.wait_for("the new array is made equal", |rig| rig.array()["bitmap"]["is_synced"] == true);
        for base in &rig.bases {
            base.resize(BLOCKS * 2);
            // Nobody knows what a device holds that it was never told.
            base.write_bytes(BLOCKS, &[base.name().as_bytes()[1]; 512]);
        }
        rig.wait_for("the array has grown", |rig| {
            rig.host.device("r0").unwrap().limits.num_blocks > 2 * DATA
        });
        rig.wait_for("it is made equal", |rig| rig.array()["bitmap"]["is_synced"] == true);
        assert_eq!(rig.scrub(false)["mismatched_blocks"], 0, "{level}");
    }
}

#[test]
fn a_partial_write_to_raid5_is_durable_in_two_journals_before_any_of_it_is_in_place() {
    let host = FakeHost::new(7);
    let cached = |nth| spec(nth).flags(BdevFlags::VOLATILE_WRITE_CACHE).io_flags(IoFlags::FUA.0.into());
    let bases: Vec<TestBase> = (0..3).map(|nth| host.add_base(cached(nth))).collect();
    let module = host.load(bdev_raid::plugin, "{}").unwrap();
    host.settle();
    let params = json!({ "name": "r0", "level": "raid5", "strip_size_kb": 4, "base_bdevs": ["b0", "b1", "b2"],
        "superblock": true });
    host.create(module, &params.to_string()).unwrap();
    let rig = Rig { host, bases };
    rig.wait_for("it is made equal", Rig::is_whole);
    let descriptor = rig.host.open("r0", Access::Write).unwrap();
    let channel = descriptor.channel(0).unwrap();
    assert!(rig.host.wait(&channel.submit(Request::write(0, 1, vec![1; 512]))).status.is_success());
    let journals = || rig.bases.iter().map(|base| base.bytes(JOURNAL, DATA - JOURNAL)).collect::<Vec<_>>();
    let before = journals();
    for base in &rig.bases {
        base.clear_records();
        base.set_plan(FaultPlan::none().delay_ns(1000, 100_000));
    }
    let writes = |from: u64, to: u64| {
        let records: Vec<_> = rig.bases.iter().flat_map(TestBase::records).collect();
        let is_it = |io: &Arrival| io.op == Op::WRITE && (from..to).contains(&io.offset_blocks);
        records.into_iter().filter(is_it).collect::<Vec<_>>()
    };
    let io = channel.submit(Request::write(3, 1, vec![2; 512]));
    rig.wait_for("something is in place", |_| !writes(DATA, BLOCKS).is_empty());
    let changed = journals().iter().zip(&before).filter(|(now, before)| now != before).count();
    assert_eq!(changed, 2);
    assert!(rig.host.wait(&io).status.is_success());
    let all = [writes(JOURNAL, DATA), writes(DATA, BLOCKS)].concat();
    assert_eq!(all.len(), 4);
    assert!(all.iter().all(|io| io.flags.contains(IoFlags::FUA)), "{all:?}");
    channel.put();
    descriptor.close();
}

#[test]
fn a_concat_gets_one_more_member() {
    let rig = rig("concat", 2, 3, json!({}));
    let mut data = rig.write_all();
    rig.ok("bdev_raid_add_base_bdev", json!({ "raid_bdev": "r0", "base_bdev": "b2" }));
    assert_eq!(rig.host.device("r0").unwrap().limits.num_blocks, 3 * DATA);
    rig.assert_reads(&data);
    data = rig.write_all();
    rig.assert_reads(&data);
    let done = rig.host.once("r0", Request::write_zeroes(DATA - 8, DATA + 16)).unwrap();
    assert!(done.status.is_success());
    data[(DATA - 8) as usize * 512..(2 * DATA + 8) as usize * 512].fill(0);
    rig.assert_reads(&data);
    assert_eq!(rig.array()["num_base_bdevs"], 3);
    let error = rig.err("bdev_raid_add_base_bdev", json!({ "raid_bdev": "r0", "base_bdev": "b2" }));
    assert_eq!(error.0, errno::EPERM);
}

#[test]
fn an_array_is_started_without_its_missing_member_after_the_configured_time() {
    let images: Vec<Vec<u8>> = {
        let rig = rig("raid1", 2, 2, json!({}));
        rig.write_all();
        rig.bases.iter().map(|base| base.bytes(0, BLOCKS)).collect()
    };
    let host = FakeHost::new(9);
    host.add_base(spec(0)).write_bytes(0, &images[0]);
    host.load(bdev_raid::plugin, r#"{"degraded_start_timeout_sec":30}"#).unwrap();
    host.settle();
    host.advance(Duration::from_secs(29));
    assert!(host.device("r0").is_none());
    host.advance(Duration::from_secs(2));
    host.settle();
    assert!(host.device("r0").is_some(), "{:#?}", host.logs());
}

#[test]
fn a_missing_member_can_be_given_up() {
    let images: Vec<Vec<u8>> = {
        let rig = rig("raid1", 3, 3, json!({}));
        rig.write_all();
        rig.bases.iter().map(|base| base.bytes(0, BLOCKS)).collect()
    };
    let host = FakeHost::new(9);
    host.add_base(spec(0)).write_bytes(0, &images[0]);
    host.load(bdev_raid::plugin, "{}").unwrap();
    host.settle();
    let rig = Rig { host, bases: Vec::new() };
    let missing = rig.array()["missing"].clone();
    assert_eq!(missing.as_array().unwrap().len(), 2);
    rig.ok("bdev_raid_remove_base_bdev", json!({ "name": missing[0] }));
    assert_eq!(
        (rig.array()["state"].clone(), rig.array()["missing"][0].clone()),
        ("configuring".into(), missing[1].clone())
    );
    rig.ok("bdev_raid_remove_base_bdev", json!({ "name": missing[1] }));
    assert_eq!(rig.array()["state"], "online");
}

#[test]
fn the_superblock_of_a_device_that_nobody_uses_is_wiped() {
    let rig = rig("raid1", 2, 3, json!({}));
    rig.ok("bdev_raid_remove_base_bdev", json!({ "name": "b1" }));
    assert_eq!(rig.bases[1].bytes(0, 1)[..8], *b"SPDKRAID");
    rig.ok("bdev_raid_wipe_superblock", json!({ "name": "b1" }));
    assert_eq!(rig.bases[1].bytes(0, 1)[..8], [0; 8]);
    assert_eq!(rig.err("bdev_raid_wipe_superblock", json!({ "name": "b0" })).0, errno::EPERM);
    assert_eq!(rig.err("bdev_raid_wipe_superblock", json!({ "name": "b2" })).0, errno::ENOENT);
}

/// A host whose devices hold these images; what is asked for comes first or last.
#[track_caller]
fn restarted(images: &[(usize, &[u8])], params: &Value, is_created_first: bool) -> Rig {
    let host = FakeHost::new(11);
    let module = host.load(bdev_raid::plugin, "{}").unwrap();
    if is_created_first {
        host.create(module, &params.to_string()).unwrap();
    }
    for (nth, image) in images {
        // It is filled before anybody looks at it.
        let base = host.start_base(spec(*nth));
        base.write_bytes(0, image);
        host.settle();
    }
    if !is_created_first {
        host.create(module, &params.to_string()).unwrap();
    }
    host.settle();
    Rig { host, bases: Vec::new() }
}

#[test]
fn an_array_that_was_degraded_comes_up_again_whether_it_is_asked_for_before_or_after_its_members() {
    for (level, members) in REDUNDANT {
        let (images, data, params) = {
            let rig = rig(level, members, members, json!({}));
            rig.ok("bdev_raid_remove_base_bdev", json!({ "name": "b0" }));
            let data = rig.write_all();
            let images: Vec<Vec<u8>> = rig.bases.iter().map(|base| base.bytes(0, BLOCKS)).collect();
            let names: Vec<String> = (0..members).map(|nth| format!("b{nth}")).collect();
            let strip = if level == "raid1" { 0 } else { 4 };
            let params = json!({ "name": "r0", "level": level, "strip_size_kb": strip, "base_bdevs": names,
                "superblock": true });
            (images, data, params)
        };
        for is_created_first in [false, true] {
            for has_stale in [false, true] {
                let there = (usize::from(!has_stale)..members).map(|nth| (nth, images[nth].as_slice()));
                let rig = restarted(&there.collect::<Vec<_>>(), &params, is_created_first);
                let array = rig.array();
                assert_eq!(array["state"], "online", "{level} {is_created_first} {has_stale} {array}");
                rig.assert_reads(&data);
                rig.wait_for("the stale member is rebuilt", |rig| rig.is_whole() == has_stale);
            }
        }
    }
}

/// What asks for a mirror of `b0` and `b1` whose spare `b2` took the place of `lost`, what all three hold, and its data.
fn taken_over(lost: &str) -> (Value, Vec<Vec<u8>>, Vec<u8>) {
    let params = json!({ "name": "r0", "level": "raid1", "base_bdevs": ["b0", "b1"], "spares": ["b2"],
        "superblock": true });
    let rig = rig("raid1", 2, 3, json!({ "spares": ["b2"] }));
    rig.ok("bdev_raid_remove_base_bdev", json!({ "name": lost }));
    rig.wait_for("whole", Rig::is_whole);
    let data = rig.write_all();
    (params, rig.bases.iter().map(|base| base.bytes(0, BLOCKS)).collect(), data)
}

/// A host with some of these devices, whose array is asked for while they are being looked at.
fn asked_for_early(seed: u64, images: &[Vec<u8>], there: &[usize], params: &Value) -> Rig {
    let host = FakeHost::new(seed);
    for nth in there {
        let base = host.add_base(spec(*nth).plan(FaultPlan::none().delay_ns(0, 50_000).reorder(8)));
        base.write_bytes(0, &images[*nth]);
    }
    let module = host.load(bdev_raid::plugin, "{}").unwrap();
    let created = host.start_create(module, &params.to_string());
    host.wait_for(&created).unwrap();
    Rig { host, bases: Vec::new() }
}

#[test]
fn an_array_whose_spare_took_over_comes_up_again_by_the_names_it_was_created_with() {
    let (params, images, data) = taken_over("b0");
    for is_created_first in [false, true] {
        let there: Vec<_> = [1, 2].map(|nth| (nth, images[nth].as_slice())).to_vec();
        let rig = restarted(&there, &params, is_created_first);
        rig.wait_for("whole", |rig| rig.array()["state"] == "online" && rig.is_whole());
        assert_eq!(rig.array()["base_bdevs_list"][0]["name"], "b2", "{is_created_first}");
        rig.assert_reads(&data);
    }
}

#[test]
fn an_array_whose_spare_took_over_comes_up_beside_the_device_that_was_lost() {
    let (params, images, data) = taken_over("b0");
    for seed in 0..20 {
        let rig = asked_for_early(seed, &images, &[0, 1, 2], &params);
        rig.wait_for("whole", |rig| rig.array()["state"] == "online" && rig.is_whole());
        assert_eq!(rig.array()["base_bdevs_list"][0]["name"], "b2", "seed {seed}");
        rig.assert_reads(&data);
    }
}

#[test]
fn a_member_that_lost_its_superblock_is_not_taken_for_current_because_a_table_names_it() {
    let params = json!({ "name": "r0", "level": "raid1", "base_bdevs": ["b0", "b1"], "superblock": true });
    let (image, data) = {
        let rig = rig("raid1", 2, 2, json!({}));
        let data = rig.write_all();
        (rig.bases[1].bytes(0, BLOCKS), data)
    };
    let blank = vec![0; BLOCKS as usize * 512];
    for is_created_first in [false, true] {
        let rig = restarted(&[(0, &blank), (1, &image)], &params, is_created_first);
        let array = rig.array();
        assert_eq!(array["state"], "configuring", "{array}");
        assert_eq!(array["returning"], json!(["b0"]), "{array}");
        rig.ok("bdev_raid_start_degraded", json!({ "name": "r0" }));
        rig.assert_reads(&data);
        rig.wait_for("whole", Rig::is_whole);
        rig.assert_reads(&data);
        assert!(rig.array().get("returning").is_none());
    }
}

#[test]
fn an_array_is_not_started_as_it_was_before_its_spare_took_over() {
    let (params, images, data) = taken_over("b1");
    for seed in 0..40 {
        // The one that was lost and the spare; the member that saw all of it stays away.
        let rig = asked_for_early(seed, &images, &[1, 2], &params);
        rig.wait_for("it is started", |rig| {
            rig.host.rpc("bdev_raid_start_degraded", r#"{"name":"r0"}"#).is_ok()
        });
        rig.assert_reads(&data);
    }
}

#[test]
fn a_spare_takes_the_place_of_a_member_that_fails_while_the_array_is_brought_up() {
    let images: Vec<Vec<u8>> = {
        let rig = rig("raid1", 2, 2, json!({}));
        rig.write_all();
        rig.bases.iter().map(|base| base.bytes(0, BLOCKS)).collect()
    };
    let host = FakeHost::new(8);
    let bases: Vec<TestBase> = (0..3).map(|nth| host.add_base(spec(nth))).collect();
    bases.iter().zip(&images).for_each(|(base, image)| base.write_bytes(0, image));
    bases[1].set_plan(FaultPlan::none().fail_op(Op::WRITE, IoStatus::IO_ERROR));
    let module = host.load(bdev_raid::plugin, "{}").unwrap();
    host.create(
        module,
        &json!({ "name": "r0", "level": "raid1", "base_bdevs": ["b0", "b1"], "spares": ["b2"],
        "superblock": true })
        .to_string(),
    )
    .unwrap();
    let rig = Rig { host, bases };
    rig.wait_for("whole", Rig::is_whole);
    assert_eq!(rig.bases[2].bytes(DATA, 64), rig.bases[0].bytes(DATA, 64));
    assert_eq!(rig.host.open_count("b1"), 0);
}
