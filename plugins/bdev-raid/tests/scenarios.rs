//! What must hold when arrays are created, interrupted, lose members and get them
//! back; each test that proves a scenario carries its id.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use serde_json::{Value, json};
use tenon_sdk::{IoStatus, Reason, abi::Op, errno};
use tenon_testkit::{Access, BaseSpec, FakeHost, FaultPlan, ModuleId, Request, TestBase};

const BLOCKS: u64 = 4096;
const SECOND_NS: u64 = 1_000_000_000;

struct Rig {
    host: FakeHost,
    module: ModuleId,
    bases: Vec<TestBase>,
}

fn spec(nth: u8) -> BaseSpec {
    BaseSpec::new(&format!("b{nth}"), 512, BLOCKS).uuid([nth + 1; 16])
}

fn rig(count: u8) -> Rig {
    rig_of(1, &(0..count).map(|nth| (nth, Vec::new())).collect::<Vec<_>>())
}

/// A host whose bases, given by number, hold these bytes before the module is loaded.
fn rig_of(seed: u64, images: &[(u8, Vec<u8>)]) -> Rig {
    rig_with(seed, images, "{}")
}

fn rig_with(seed: u64, images: &[(u8, Vec<u8>)], options: &str) -> Rig {
    let host = FakeHost::new(seed);
    let bases = images.iter().map(|(nth, image)| {
        let base = host.add_base(spec(*nth));
        if !image.is_empty() {
            base.write_bytes(0, image);
        }
        base
    });
    let bases = bases.collect();
    let module = host.load(bdev_raid::plugin, options).unwrap();
    host.settle();
    Rig { host, module, bases }
}

impl Rig {
    fn slow(&self) {
        for base in &self.bases {
            base.set_plan(FaultPlan::none().delay_ns(SECOND_NS, SECOND_NS));
        }
    }

    fn array(&self, name: &str) -> Option<Value> {
        let all = self.host.rpc("bdev_raid_get_bdevs", r#"{"category":"all"}"#).unwrap();
        let all: Vec<Value> = serde_json::from_str(&all).unwrap();
        all.into_iter().find(|array| array["name"] == name)
    }

    fn state(&self, name: &str) -> Option<String> {
        Some(self.array(name)?["state"].as_str()?.to_owned())
    }

    fn signature(&self, nth: usize) -> Vec<u8> {
        self.bases[nth].bytes(0, 1)[..8].to_vec()
    }

    fn assert_released(&self) {
        self.host.settle();
        for base in self.bases.iter().filter(|base| !base.is_gone()) {
            assert_eq!(self.host.open_count(base.name()), 0, "{}", base.name());
        }
    }

    fn images(&self) -> Vec<Vec<u8>> {
        self.bases.iter().map(|base| base.bytes(0, BLOCKS)).collect()
    }

    fn wait_for(&self, what: &str, mut is_met: impl FnMut(&Rig) -> bool) {
        assert!(
            self.host.run_until(Duration::from_secs(30), || is_met(self)),
            "{what}: {:?}",
            self.array("r0")
        );
    }

    fn write(&self, offset: u64, fill: u8) {
        let done = self.host.once("r0", Request::write(offset, 8, vec![fill; 4096])).unwrap();
        assert!(done.status.is_success(), "{:?}", done.status);
    }

    fn read(&self, offset: u64) -> u8 {
        let done = self.host.once("r0", Request::read(offset, 8)).unwrap();
        assert!(done.status.is_success(), "{:?}", done.status);
        assert!(done.data.iter().all(|byte| *byte == done.data[0]));
        done.data[0]
    }

    fn is_whole(&self) -> bool {
        self.array("r0").is_some_and(|array| {
            array["num_base_bdevs_operational"] == array["num_base_bdevs"] && array.get("process").is_none()
        })
    }
}

const RAID1: &str = r#"{"name":"r0","level":"raid1","base_bdevs":["b0","b1"],"superblock":true}"#;

#[test]
fn s4_a_the_reply_comes_after_the_superblocks_are_durable_and_the_device_is_there() {
    let rig = rig(2);
    rig.slow();
    let start_ns = rig.host.now_ns();
    assert_eq!(rig.host.create(rig.module, RAID1).unwrap(), ["r0"]);
    assert!(rig.host.now_ns() - start_ns >= SECOND_NS);
    assert_eq!(rig.state("r0").unwrap(), "online");
    assert_eq!([rig.signature(0), rig.signature(1)], [b"SPDKRAID"; 2]);
    for base in &rig.bases {
        let records = base.records();
        let write = records.iter().position(|io| io.op == Op::WRITE).unwrap();
        assert!(records[write..].iter().any(|io| io.op == Op::FLUSH), "the superblock was not flushed");
    }
}

#[test]
fn s4_b_every_level_is_a_device_when_its_create_is_answered() {
    for superblock in [false, true] {
        for (level, strip, count) in
            [("raid0", 64, 2), ("concat", 64, 2), ("raid5f", 64, 3), ("raid1", 0, 2), ("raid10", 64, 4)]
        {
            let rig = rig(count);
            rig.slow();
            let bases: Vec<String> = (0..count).map(|nth| format!("b{nth}")).collect();
            let params = json!({ "name": "r0", "raid_level": level, "strip_size_kb": strip,
                "base_bdevs": bases, "superblock": superblock });
            rig.host.create(rig.module, &params.to_string()).unwrap();
            assert_eq!(rig.state("r0").unwrap(), "online");
            assert!(rig.host.device("r0").is_some());
            assert_eq!(rig.signature(0) == b"SPDKRAID", superblock);
        }
    }
}

#[test]
fn s4_c_an_array_that_is_being_created_is_never_half_there() {
    let rig = rig(3);
    rig.slow();
    let pending = rig.host.start_create(rig.module, RAID1);
    rig.host.advance(Duration::from_millis(500));
    assert!(!pending.is_done() && rig.host.device("r0").is_none());
    assert_eq!(rig.state("r0").unwrap(), "configuring");
    assert_eq!(rig.host.create(rig.module, RAID1).unwrap_err().code, errno::EEXIST);
    let other = r#"{"name":"r1","level":"raid1","base_bdevs":["b0","b2"]}"#;
    let error = rig.host.create(rig.module, other).unwrap_err();
    assert_eq!((error.code, error.object.as_str()), (errno::EPERM, "b0"));
    rig.host.wait_for(&pending).unwrap();
    assert!(rig.host.device("r0").is_some());
    assert_eq!(rig.host.open_count("b2"), 0);
}

#[test]
fn s4_d_a_superblock_that_cannot_be_written_undoes_the_create() {
    let rig = rig(2);
    rig.bases[1].set_plan(FaultPlan::none().fail_op(Op::WRITE, IoStatus::IO_ERROR));
    let error = rig.host.create(rig.module, RAID1).unwrap_err();
    assert_eq!((error.code, error.object.as_str()), (errno::EIO, "b1"), "{error}");
    assert_eq!(error.reason, "cannot write the superblock");
    assert!(rig.host.device("r0").is_none() && rig.array("r0").is_none());
    assert_eq!(rig.signature(0), [0; 8]);
    rig.assert_released();
    rig.bases[1].set_plan(FaultPlan::none());
    rig.host.create(rig.module, RAID1).unwrap();
}

#[test]
fn s4_e_a_name_that_is_taken_meanwhile_undoes_the_create() {
    let rig = rig(2);
    rig.slow();
    let pending = rig.host.start_create(rig.module, RAID1);
    rig.host.advance(Duration::from_millis(1500));
    let other = rig.host.start_base(BaseSpec::new("r0", 512, 64));
    let error = rig.host.wait_for(&pending).unwrap_err();
    assert_eq!((error.code, error.object.as_str()), (errno::EEXIST, "r0"));
    assert_eq!([rig.signature(0), rig.signature(1)], [vec![0; 8], vec![0; 8]]);
    rig.assert_released();
    other.remove();
    rig.wait_for("the name is free", |rig| rig.host.device("r0").is_none());
    rig.host.create(rig.module, RAID1).unwrap();
}

#[test]
fn s4_f_a_member_that_goes_during_the_superblock_write_fails_the_create() {
    for after_ms in (0..4000).step_by(100) {
        let rig = rig(2);
        rig.slow();
        let pending = rig.host.start_create(rig.module, RAID1);
        rig.host.advance(Duration::from_millis(after_ms));
        if pending.is_done() {
            break;
        }
        rig.bases[1].remove();
        match rig.host.wait_for(&pending) {
            Ok(_) => assert_eq!(rig.state("r0").unwrap(), "online"),
            Err(error) => {
                assert_eq!(error.object, "b1", "{error}");
                assert!(rig.array("r0").is_none());
                rig.assert_released();
            }
        }
        rig.wait_for("the member can go", |rig| rig.bases[1].is_gone());
    }
}

#[test]
fn s4_g_a_missing_member_is_named_and_completes_the_array_when_it_appears() {
    for superblock in [false, true] {
        let rig = rig(1);
        let params = json!({ "name": "r0", "level": "raid1", "base_bdevs": ["b0", "b1"],
            "superblock": superblock });
        let pending = rig.host.start_create(rig.module, &params.to_string());
        let reply: Value = serde_json::from_str(&rig.host.wait_for(&pending).unwrap()).unwrap();
        assert_eq!(reply, json!({ "state": "configuring", "missing": ["b1"] }));
        assert_eq!(rig.array("r0").unwrap()["missing"], json!(["b1"]));
        rig.host.add_base(spec(1));
        rig.wait_for("the array is online", |rig| rig.state("r0").unwrap() == "online");
        rig.host.settle();
        let registered = rig.host.notifications();
        let count = registered.iter().filter(|(_, context)| context == "r0").count();
        assert!(count <= 1, "{registered:?}");
        rig.write(0, 7);
        assert_eq!(rig.read(0), 7);
    }
}

#[test]
fn s4_g_an_array_that_waits_can_be_deleted() {
    let rig = rig(1);
    rig.host.create(rig.module, RAID1).unwrap();
    let before = rig.bases[0].bytes(0, 8);
    rig.host.rpc("bdev_raid_destroy", r#"{"name":"r0"}"#).unwrap();
    assert!(rig.array("r0").is_none());
    assert_eq!(rig.bases[0].bytes(0, 8), before);
    rig.assert_released();
}

#[test]
fn s4_h_a_crash_at_any_point_of_a_create_leaves_no_array_or_one_that_can_be_ended() {
    let mut outcomes = [0; 3];
    for after_us in (0..5000).step_by(50) {
        let images = {
            let rig = rig_of(after_us, &[(0, Vec::new()), (1, Vec::new())]);
            for base in &rig.bases {
                base.set_plan(FaultPlan::none().delay_ns(0, 2_000_000));
            }
            let pending = rig.host.start_create(rig.module, RAID1);
            rig.host.advance(Duration::from_micros(after_us));
            let images = rig.images();
            let _ = rig.host.wait_for(&pending);
            images
        };
        let rig = rig_of(1, &[(0, images[0].clone()), (1, images[1].clone())]);
        match rig.state("r0").as_deref() {
            None => outcomes[0] += 1,
            Some("online") => {
                outcomes[1] += 1;
                assert!(rig.is_whole());
            }
            Some("configuring") => {
                outcomes[2] += 1;
                rig.host.rpc("bdev_raid_destroy", r#"{"name":"r0"}"#).unwrap();
            }
            Some(other) => panic!("{other}"),
        }
        if rig.array("r0").is_none() {
            rig.assert_released();
            rig.host.create(rig.module, RAID1).unwrap();
        }
    }
    assert!(outcomes[0] > 0 && outcomes[1] > 0, "{outcomes:?}");
}

#[test]
fn s4_i_a_client_that_goes_leaves_a_whole_array_or_none() {
    let mut outcomes = [0; 2];
    for seed in 0..200 {
        let host = FakeHost::new(seed);
        let bases: Vec<TestBase> = (0..2).map(|nth| host.add_base(spec(nth))).collect();
        let module = host.load(bdev_raid::plugin, "{}").unwrap();
        let rng = host.rng();
        let is_broken = rng.chance(300);
        let slow = || FaultPlan::none().delay_ns(0, SECOND_NS);
        let plan = || if is_broken { slow().fail_op(Op::WRITE, IoStatus::IO_ERROR) } else { slow() };
        bases.iter().for_each(|base| base.set_plan(plan()));
        let pending = host.start_create(module, RAID1);
        host.advance(Duration::from_millis(rng.below(3000)));
        drop(pending);
        if rng.chance(300) {
            bases[1].remove();
        }
        // Another client asks for the same meanwhile, or wants it gone.
        let again = rng.chance(500).then(|| host.start_create(module, RAID1));
        let ended = rng.chance(200).then(|| host.start_rpc("bdev_raid_destroy", r#"{"name":"r0"}"#));
        let rig = Rig { host, module, bases };
        rig.wait_for("it is over", |rig| {
            rig.host.operations_under_way() == 0 && rig.bases.iter().all(|base| base.in_flight() == 0)
        });
        drop((again, ended));
        rig.bases.iter().for_each(|base| base.set_plan(FaultPlan::none()));
        rig.host.settle();
        let is_online = rig.state("r0").as_deref() == Some("online");
        outcomes[usize::from(is_online)] += 1;
        assert_eq!(rig.host.device("r0").is_some(), is_online, "seed {seed}");
        if is_online && rig.is_whole() {
            assert_eq!(rig.bases[0].bytes(0, 1), rig.bases[1].bytes(0, 1), "seed {seed}");
        } else if !is_online {
            assert!(rig.array("r0").is_none_or(|array| array.get("missing").is_some()), "seed {seed}");
            let _ = rig.host.rpc("bdev_raid_destroy", r#"{"name":"r0"}"#);
            rig.assert_released();
            rig.host.create(rig.module, RAID1).unwrap();
        }
    }
    assert!(outcomes.iter().all(|count| *count > 10), "{outcomes:?}");
}

/// An array of two arrays, each of two devices; the second has a spare.
const STACK: [&str; 3] = [
    r#"{"name":"top","level":"raid0","strip_size_kb":4,"base_bdevs":["r0","r1"]}"#,
    r#"{"name":"r0","level":"raid1","base_bdevs":["b0","b1"]}"#,
    r#"{"name":"r1","level":"raid1","base_bdevs":["b2","b3"],"spares":["b4"],"superblock":true}"#,
];

#[test]
fn s4_j_arrays_and_what_they_stand_on_come_up_in_any_order() {
    for seed in 0..60 {
        let host = FakeHost::new(seed);
        let module = host.load(bdev_raid::plugin, "{}").unwrap();
        let rng = host.rng();
        let mut order: Vec<usize> = (0..STACK.len() + 5).collect();
        rng.shuffle(&mut order);
        let (mut bases, mut creates) = (Vec::new(), Vec::new());
        for nth in order.iter().copied() {
            match STACK.get(nth) {
                Some(params) => creates.push(host.start_create(module, params)),
                None => bases.push(host.start_base(spec((nth - STACK.len()) as u8))),
            }
            if rng.chance(500) {
                host.advance(Duration::from_nanos(rng.below(20_000)));
            }
        }
        host.settle();
        for create in &creates {
            host.wait_for(create).unwrap();
        }
        let rig = Rig { host, module, bases };
        for name in ["top", "r0", "r1"] {
            let array = rig.array(name);
            assert_eq!(rig.state(name).as_deref(), Some("online"), "seed {seed} {order:?} {array:#?}");
        }
        let spares = rig.array("r1").unwrap()["spares"].clone();
        assert_eq!(spares, json!([{ "name": "b4", "is_there": true }]), "seed {seed} {order:?}");
        let done = rig.host.once("top", Request::write(0, 64, vec![seed as u8; 64 * 512])).unwrap();
        assert!(done.status.is_success());
    }
}

#[test]
fn s4_j_an_array_of_arrays_is_assembled_from_its_superblocks_at_the_next_start() {
    let on_arrays = |name: &str| json!({ "name": name, "level": "raid1", "base_bdevs": ["r0", "r1"], "superblock": true, "bitmap": true });
    let lower = |name: &str, bases: [&str; 2]| json!({ "name": name, "level": "raid1", "base_bdevs": bases, "superblock": true });
    let large = |nth| BaseSpec::new(&format!("b{nth}"), 512, 3 * BLOCKS).uuid([nth + 1; 16]);
    let host = FakeHost::new(1);
    let bases = (0..4).map(|nth| host.add_base(large(nth))).collect();
    let module = host.load(bdev_raid::plugin, "{}").unwrap();
    let rig = Rig { host, module, bases };
    for params in [lower("r0", ["b0", "b1"]), lower("r1", ["b2", "b3"]), on_arrays("top")] {
        rig.host.create(rig.module, &params.to_string()).unwrap();
    }
    let done = rig.host.once("top", Request::write(0, 8, vec![0x5a; 4096])).unwrap();
    assert!(done.status.is_success());
    let images: Vec<Vec<u8>> = rig.bases.iter().map(|base| base.bytes(0, 3 * BLOCKS)).collect();
    drop(rig);
    let mut order: Vec<u8> = (0..4).collect();
    for seed in 0..10 {
        let host = FakeHost::new(seed);
        host.rng().shuffle(&mut order);
        let module = host.load(bdev_raid::plugin, "{}").unwrap();
        let add = |nth: &u8| {
            let base = host.start_base(large(*nth));
            base.write_bytes(0, &images[usize::from(*nth)]);
            base
        };
        let bases = order.iter().map(add).collect();
        host.settle();
        let again = Rig { host, module, bases };
        let array = again.array("top").unwrap();
        assert_eq!((&array["state"], &array["num_base_bdevs_operational"]), (&json!("online"), &json!(2)));
        let done = again.host.once("top", Request::read(0, 8)).unwrap();
        assert_eq!(done.data, vec![0x5a; 4096]);
    }
}

#[test]
fn s4_k_a_superblock_stays_unless_it_is_wiped_and_says_so() {
    let rig = rig(2);
    rig.host.create(rig.module, RAID1).unwrap();
    rig.write(100, 9);
    rig.host.delete("r0").unwrap();
    assert_eq!(rig.signature(0), b"SPDKRAID");
    let other = RAID1.replace("r0", "other");
    let error = rig.host.create(rig.module, &other).unwrap_err();
    assert_eq!(error.code, errno::EEXIST);
    assert!(error.reason.contains("array r0") && error.reason.contains("overwrite_superblock"), "{error}");
    rig.assert_released();
    // The same array comes up with its data.
    rig.host.create(rig.module, RAID1).unwrap();
    assert_eq!(rig.read(100), 9);
    rig.host.rpc("bdev_raid_destroy", r#"{"name":"r0","wipe":true}"#).unwrap();
    assert_eq!([rig.signature(0), rig.signature(1)], [vec![0; 8], vec![0; 8]]);
    rig.host.create(rig.module, &other).unwrap();
    rig.host.delete("other").unwrap();
    let forced = RAID1.replace(r#""superblock":true"#, r#""superblock":true,"overwrite_superblock":true"#);
    rig.host.create(rig.module, &forced).unwrap();
}

#[test]
fn s4_k_five_hundred_creates_and_deletes_leave_nothing() {
    let rig = rig(2);
    for _ in 0..500 {
        rig.host.create(rig.module, RAID1).unwrap();
        rig.host.rpc("bdev_raid_destroy", r#"{"name":"r0"}"#).unwrap();
        rig.assert_released();
    }
}

fn created(count: u8, params: &str) -> Rig {
    let rig = rig(count);
    rig.host.create(rig.module, params).unwrap();
    rig
}

#[test]
fn members_that_appear_in_any_order_are_assembled_once_all_are_there() {
    let images = {
        let params = r#"{"name":"r0","level":"raid5f","strip_size_kb":4,"base_bdevs":["b0","b1","b2"],
            "superblock":true}"#;
        let source = created(3, params);
        let stripe = Request::write(16, 16, vec![5; 8192]);
        assert!(source.host.once("r0", stripe).unwrap().status.is_success());
        source.images()
    };
    for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
        let rig = rig_of(3, &[(order[0], images[order[0] as usize].clone())]);
        assert_eq!(rig.state("r0").unwrap(), "configuring");
        assert_eq!(rig.array("r0").unwrap()["missing"].as_array().unwrap().len(), 2);
        for nth in &order[1..] {
            add_with_image(&rig, *nth, &images[*nth as usize]);
        }
        rig.wait_for("online", |rig| rig.state("r0").unwrap() == "online");
        assert_eq!(rig.read(16), 5);
    }
}

/// A base that appears with content: it is offered to the module after it was filled.
fn add_with_image(rig: &Rig, nth: u8, image: &[u8]) -> TestBase {
    let base = rig.host.add_base(spec(nth));
    base.write_bytes(0, image);
    assert!(rig.host.examine(base.name()));
    rig.host.settle();
    base
}

#[test]
fn an_array_that_ended_with_a_member_is_back_when_that_returns() {
    for (level, seed) in [("concat", 0), ("raid0", 0), ("concat", 1), ("raid0", 1)] {
        let params = json!({ "name": "r0", "level": level, "strip_size_kb": 4, "base_bdevs": ["b0", "b1", "b2"],
            "superblock": true });
        let created = created(3, &params.to_string());
        (0..10).for_each(|nth| created.write(nth * 400, nth as u8));
        let images = created.images();
        // As it was created, and as it was found by its superblocks.
        let rig = if seed == 0 {
            created
        } else {
            drop(created);
            rig_of(seed, &[(0, images[0].clone()), (1, images[1].clone()), (2, images[2].clone())])
        };
        rig.bases[1].remove();
        rig.wait_for("the end of the array", |rig| rig.array("r0").is_none() && rig.bases[1].is_gone());
        add_with_image(&rig, 1, &images[1]);
        rig.wait_for("the array is back", |rig| rig.state("r0").as_deref() == Some("online"));
        (0..10).for_each(|nth| assert_eq!(rig.read(nth * 400), nth as u8, "{level}"));
    }
}

#[test]
fn the_loss_of_a_member_is_recorded_before_a_write_is_acknowledged() {
    let rig = created(2, RAID1);
    rig.bases[1].set_plan(FaultPlan::none().fail_op(Op::WRITE, IoStatus::IO_ERROR));
    let descriptor = rig.host.open("r0", Access::Write).unwrap();
    let channel = descriptor.channel(0).unwrap();
    rig.bases[0].clear_records();
    let io = channel.submit(Request::write(0, 8, vec![3; 4096]));
    assert!(rig.host.wait(&io).status.is_success());
    let offsets: Vec<u64> =
        rig.bases[0].records().iter().filter(|io| io.op == Op::WRITE).map(|io| io.offset_blocks).collect();
    // The write, the record and the superblock that take the member out, and the write once more.
    assert!(matches!(offsets[..], [2048, 128 | 256, 0, 2048]), "{offsets:?}");
    let state = u32::from_le_bytes(rig.bases[0].bytes(0, 1)[256 + 64 + 32..][..4].try_into().unwrap());
    assert_eq!(state, 2, "the member is not recorded as failed");
    assert_eq!(rig.array("r0").unwrap()["num_base_bdevs_operational"], 1);
    channel.put();
    descriptor.close();
}

#[test]
fn a_member_that_was_removed_returns_and_is_rebuilt() {
    let rig = created(2, RAID1);
    rig.write(0, 1);
    rig.bases[1].remove();
    rig.wait_for("degraded", |rig| rig.bases[1].is_gone());
    rig.write(0, 2);
    rig.write(1000, 3);
    let stale = rig.host.add_base(spec(1));
    stale.write_bytes(0, &rig.bases[0].bytes(0, 1));
    rig.host.rpc("bdev_raid_add_base_bdev", r#"{"raid_bdev":"r0","base_bdev":"b1"}"#).unwrap();
    rig.wait_for("whole", Rig::is_whole);
    assert_eq!(stale.bytes(2048, 2048), rig.bases[0].bytes(2048, 2048));
    rig.bases[0].remove();
    rig.wait_for("degraded again", |rig| rig.bases[0].is_gone());
    assert_eq!((rig.read(0), rig.read(1000)), (2, 3));
}

#[test]
fn a_rebuild_keeps_to_its_bandwidth_and_tells_how_far_it_is() {
    let rig = created(2, RAID1);
    rig.host
        .rpc("bdev_raid_set_options", r#"{"process_window_size_kb":64,"process_max_bandwidth_mb_sec":1}"#)
        .unwrap();
    rig.host.rpc("bdev_raid_remove_base_bdev", r#"{"name":"b1"}"#).unwrap();
    assert_eq!(rig.host.open_count("b1"), 0);
    let start_ns = rig.host.now_ns();
    rig.host.rpc("bdev_raid_add_base_bdev", r#"{"raid_bdev":"r0","base_bdev":"b1"}"#).unwrap();
    rig.host.advance(Duration::from_millis(500));
    let array = rig.array("r0").unwrap();
    let percent = array["process"]["progress"]["percent"].as_u64().unwrap();
    assert!((30..70).contains(&percent), "{array}");
    rig.wait_for("whole", Rig::is_whole);
    let took_ms = (rig.host.now_ns() - start_ns) / 1_000_000;
    assert!((850..1500).contains(&took_ms), "1 MiB took {took_ms} ms");
}

#[test]
fn a_member_can_only_be_taken_out_if_redundancy_covers_it() {
    let rig = created(2, r#"{"name":"r0","level":"raid0","strip_size_kb":4,"base_bdevs":["b0","b1"]}"#);
    let error = rig.host.rpc("bdev_raid_remove_base_bdev", r#"{"name":"b1"}"#).unwrap_err();
    assert_eq!(error.code, errno::EBUSY);
    rig.write(0, 1);
    let error = rig.host.rpc("bdev_raid_remove_base_bdev", r#"{"name":"none"}"#).unwrap_err();
    assert_eq!(error.code, errno::ENODEV);
    rig.bases[0].remove();
    rig.wait_for("the array is gone", |rig| rig.host.device("r0").is_none());
}

#[test]
fn an_array_whose_member_stays_away_is_started_without_it_on_request() {
    let images = {
        let rig = created(2, RAID1);
        rig.write(8, 4);
        rig.images()
    };
    let rig = rig_of(1, &[(0, images[0].clone())]);
    assert_eq!(rig.array("r0").unwrap()["missing"].as_array().unwrap().len(), 1);
    assert!(rig.host.device("r0").is_none());
    rig.host.rpc("bdev_raid_start_degraded", r#"{"name":"r0"}"#).unwrap();
    assert_eq!((rig.state("r0").unwrap().as_str(), rig.read(8)), ("online", 4));
    rig.write(8, 5);
    // The other returns: it is out of date and rebuilt.
    let other = add_with_image(&rig, 1, &images[1]);
    rig.wait_for("whole", Rig::is_whole);
    assert_eq!(other.bytes(2048, 2048), rig.bases[0].bytes(2048, 2048));
}

#[test]
fn members_that_were_used_without_each_other_are_not_put_together() {
    let images = {
        let rig = created(2, RAID1);
        rig.images()
    };
    let half = |nth: u8, writes: u8| {
        let rig = rig_of(1, &[(nth, images[nth as usize].clone())]);
        rig.host.rpc("bdev_raid_start_degraded", r#"{"name":"r0"}"#).unwrap();
        (0..writes).for_each(|fill| rig.write(0, fill));
        rig.images().remove(0)
    };
    let (one, other) = (half(0, 3), half(1, 5));
    let rig = rig_of(1, &[(0, one), (1, other.clone())]);
    assert_eq!(rig.array("r0").unwrap()["num_base_bdevs_operational"], 1);
    assert_eq!(rig.host.open_count("b1"), 0);
    assert_eq!(rig.bases[1].bytes(0, BLOCKS), other);
}

#[test]
fn unregistering_the_module_ends_arrays_that_wait() {
    let rig = rig(1);
    rig.host.create(rig.module, RAID1).unwrap();
    rig.host.unregister_module(rig.module).unwrap();
    rig.assert_released();
}

#[test]
fn a_level_that_does_not_exist_is_refused() {
    let rig = rig(4);
    for level in ["raid6", "6", "raid50"] {
        let params = json!({ "name": "r0", "level": level, "base_bdevs": ["b0", "b1", "b2", "b3"] });
        let error = rig.host.create(rig.module, &params.to_string()).unwrap_err();
        assert_eq!(error.code, errno::EINVAL);
        assert!(error.to_string().contains("raid5f"), "{error}");
    }
    assert!(!rig.host.remove_device("r0", Reason::REQUESTED));
    rig.assert_released();
}

#[test]
fn a_superblock_that_is_torn_or_damaged_is_repaired_from_the_record() {
    let images = {
        let rig = created(2, RAID1);
        rig.write(8, 6);
        rig.images()
    };
    for (at, len) in [(300, 80), (16, 4), (12, 2), (130, 1)] {
        let mut torn = images.clone();
        for image in &mut torn {
            image[at..at + len].iter_mut().for_each(|byte| *byte ^= 0x55);
        }
        let rig = rig_of(1, &[(0, torn[0].clone()), (1, torn[1].clone())]);
        rig.wait_for("online", |rig| rig.state("r0").as_deref() == Some("online"));
        assert_eq!(rig.read(8), 6);
        assert_eq!(rig.bases[0].bytes(0, 1), rig.bases[1].bytes(0, 1));
        assert_eq!(rig.bases[0].bytes(0, 1)[..12], images[0][..12]);
    }
}

#[test]
fn two_uses_of_the_same_members_apart_are_told_by_their_writers_and_never_merged() {
    let images = {
        let rig = created(2, RAID1);
        rig.images()
    };
    // Both halves of a copy are used, and then one half of each is put together.
    let used = |seed, fill| {
        let rig = rig_of(seed, &[(0, images[0].clone()), (1, images[1].clone())]);
        rig.write(0, fill);
        rig.images()
    };
    let (one, other) = (used(1, 3), used(2, 5));
    assert_eq!(one[0][128..136], other[0][128..136], "sequence numbers tell nothing");
    let rig = rig_of(3, &[(0, one[0].clone()), (1, other[1].clone())]);
    let array = rig.array("r0").unwrap();
    assert_ne!(array["state"], "online");
    let told = array["diverged"]["b1"].as_str().unwrap();
    assert!(told.contains("each used without the other") && told.contains("generation"), "{told}");
    assert_eq!(rig.bases[1].bytes(0, BLOCKS), other[1]);
}

const WITH_BITMAP: &str =
    r#"{"name":"r0","level":"raid1","base_bdevs":["b0","b1"],"superblock":true,"bitmap":true}"#;

/// Blocks of the data area that were written to a member.
fn written(base: &TestBase) -> u64 {
    let is_data = |io: &&tenon_testkit::Arrival| io.op == Op::WRITE && io.offset_blocks >= 2048;
    base.records().iter().filter(is_data).map(|io| io.num_blocks).sum()
}

#[test]
fn a_region_is_marked_on_every_member_before_it_is_written_to_and_cleared_when_it_rests() {
    let rig = created(2, WITH_BITMAP);
    rig.bases.iter().for_each(TestBase::clear_records);
    rig.write(100, 7);
    rig.write(100, 8);
    for base in &rig.bases {
        let offsets: Vec<u64> =
            base.records().iter().filter(|io| io.op == Op::WRITE).map(|io| io.offset_blocks).collect();
        // The bitmap is at 192 KiB; the second write needs none.
        assert_eq!(offsets, [384, 2148, 2148]);
    }
    assert_eq!(rig.array("r0").unwrap()["bitmap"]["dirty_regions"], 2);
    rig.host.advance(Duration::from_secs(20));
    rig.wait_for("the region is clean", |rig| rig.array("r0").unwrap()["bitmap"]["dirty_regions"] == 0);
    rig.bases[0].clear_records();
    rig.write(100, 9);
    assert_eq!(rig.bases[0].records().iter().filter(|io| io.op == Op::WRITE).count(), 2);
}

#[test]
fn a_member_that_returns_gets_only_what_was_written_meanwhile() {
    let rig = created(2, WITH_BITMAP);
    rig.host.rpc("bdev_raid_set_options", r#"{"process_window_size_kb":8}"#).unwrap();
    (0..10).for_each(|nth| rig.write(nth * 200, 1));
    rig.host.advance(Duration::from_secs(30));
    let image = rig.bases[1].bytes(0, BLOCKS);
    rig.bases[1].remove();
    rig.wait_for("degraded", |rig| rig.bases[1].is_gone());
    rig.write(800, 2);
    let back = add_with_image(&rig, 1, &image);
    rig.wait_for("whole", Rig::is_whole);
    assert_eq!(back.bytes(2048, 2048), rig.bases[0].bytes(2048, 2048));
    assert!((8..=64).contains(&written(&back)), "{} blocks were copied", written(&back));
    // Another device in its place is copied whole.
    back.remove();
    rig.wait_for("degraded again", |_| back.is_gone());
    let other = rig.host.add_base(BaseSpec::new("b9", 512, BLOCKS).uuid([9; 16]));
    rig.host.rpc("bdev_raid_add_base_bdev", r#"{"raid_bdev":"r0","base_bdev":"b9"}"#).unwrap();
    rig.wait_for("whole again", Rig::is_whole);
    assert_eq!(written(&other), 2048);
}

#[test]
fn a_region_is_not_cleared_as_long_as_a_write_to_it_is_in_flight() {
    let rig = created(2, WITH_BITMAP);
    rig.write(100, 7);
    let marked = rig.bases[0].bytes(384, 8);
    let descriptor = rig.host.open("r0", Access::Write).unwrap();
    let channel = descriptor.channel(0).unwrap();
    rig.bases[1].hold(true);
    let io = channel.submit(Request::write(100, 1, vec![8; 512]));
    // It would have rested by now.
    rig.host.advance(Duration::from_secs(30));
    assert!(!io.is_done());
    assert!(rig.bases[0].bytes(384, 8) == marked, "a crash would leave members that differ");
    rig.bases[1].hold(false);
    assert!(rig.host.wait(&io).status.is_success());
    rig.wait_for("the region is clean", |rig| rig.array("r0").unwrap()["bitmap"]["dirty_regions"] == 0);
    channel.put();
    descriptor.close();
}

#[test]
fn a_region_stays_marked_as_long_as_a_member_is_missing() {
    let rig = created(2, WITH_BITMAP);
    let image = rig.bases[1].bytes(0, BLOCKS);
    rig.bases[1].remove();
    rig.wait_for("degraded", |rig| rig.bases[1].is_gone());
    rig.write(800, 2);
    rig.host.advance(Duration::from_secs(60));
    let back = add_with_image(&rig, 1, &image);
    rig.wait_for("whole", Rig::is_whole);
    assert_eq!(back.bytes(2048, 2048), rig.bases[0].bytes(2048, 2048));
}

#[test]
fn a_member_that_was_rebuilt_remembers_which_regions_another_lacks() {
    let images = {
        let rig = created(2, WITH_BITMAP);
        let image = rig.bases[1].bytes(0, BLOCKS);
        rig.bases[1].remove();
        rig.wait_for("degraded", |rig| rig.bases[1].is_gone());
        rig.write(800, 1);
        let returned = add_with_image(&rig, 1, &image);
        rig.wait_for("whole", Rig::is_whole);
        let behind = rig.bases[0].bytes(0, BLOCKS);
        rig.bases[0].remove();
        rig.wait_for("degraded", |rig| rig.bases[0].is_gone());
        // The region is marked already, so this write alone marks it nowhere.
        rig.write(800, 2);
        [behind, returned.bytes(0, BLOCKS)]
    };
    let rig = rig_of(2, &[(0, images[0].clone()), (1, images[1].clone())]);
    rig.wait_for("whole", Rig::is_whole);
    rig.bases[1].remove();
    rig.wait_for("degraded", |rig| rig.bases[1].is_gone());
    assert_eq!(rig.read(800), 2);
}

#[test]
fn a_rebuild_that_a_restart_interrupts_goes_on_where_it_was() {
    let slow = r#"{"process_window_size_kb":16,"process_max_bandwidth_mb_sec":1}"#;
    let images = {
        let rig = created(2, WITH_BITMAP);
        (0..256).for_each(|nth| rig.write(nth * 8, 1));
        rig.host.advance(Duration::from_secs(30));
        rig.host.rpc("bdev_raid_remove_base_bdev", r#"{"name":"b1"}"#).unwrap();
        rig.host.rpc("bdev_raid_set_options", slow).unwrap();
        rig.bases[1].write_bytes(0, &vec![0; BLOCKS as usize * 512]);
        rig.host.rpc("bdev_raid_add_base_bdev", r#"{"raid_bdev":"r0","base_bdev":"b1"}"#).unwrap();
        rig.host.advance(Duration::from_millis(600));
        let percent = rig.array("r0").unwrap()["process"]["progress"]["percent"].as_u64().unwrap();
        assert!((40..80).contains(&percent), "{percent}");
        rig.write(8, 5);
        rig.images()
    };
    let members = [(0, images[0].clone()), (1, images[1].clone())];
    let rig = rig_with(1, &members, r#"{"process_window_size_kb":16}"#);
    rig.wait_for("whole", Rig::is_whole);
    assert_eq!(rig.bases[1].bytes(2048, 2048), rig.bases[0].bytes(2048, 2048));
    // What it had, except the regions that were marked.
    assert!(written(&rig.bases[1]) < 1500, "{} blocks were copied", written(&rig.bases[1]));
}
