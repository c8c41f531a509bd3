//! COMPARE_AND_WRITE on devices that lack it: what the gate makes of READ, COMPARE and WRITE.
//!
//! The claim is atomicity: against other compare-and-writes and against every other I/O of the device, from
//! every reactor. Mixes with all the gate's other concerns are in `gate_model`.
// UNSAFETY: submits from inside completions.
#![allow(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

mod gate;

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use gate::Chance;
use gate::device::{Behaviour, Declared, unstick};
use gate::slot::Slot;
use gate::world::{Channel, World, answer};
use tenon_abi::{IoStatus, Limits, Op};
use tenon_bdev::io::{Phase, QosLimits};

const BLOCK: usize = 512;

fn declared() -> Declared {
    Declared::new(Limits::new(BLOCK as u32, 4096))
}

fn deferred() -> Behaviour {
    Behaviour { sync_permille: 0, ..Behaviour::default() }
}

/// A slot that turns blocks full of `from` into blocks full of `to`; with what it expects.
fn compare_write(world: &World, on: &Channel, range: (u64, u64), from: u8, to: u8) -> (Box<Slot>, Vec<u8>) {
    let bytes = range.1 as usize * BLOCK;
    let mut slot = world.slot(on, bytes);
    let mut expected = vec![from; bytes];
    slot.prepare(Op::COMPARE_AND_WRITE, range.0, range.1, bytes, &[]);
    slot.payload().fill(to);
    slot.expect(&mut expected);
    (slot, expected)
}

#[track_caller]
fn check(world: &mut World, on: &Channel, range: (u64, u64), from: u8, to: u8, expected: IoStatus) {
    let (mut slot, _memory) = compare_write(world, on, range, from, to);
    assert_eq!(world.run(on, &mut slot), expected, "{range:?} {from} -> {to}");
}

#[test]
fn what_is_expected_is_replaced_and_what_is_not_stays() {
    for (op, is_declared) in [(Op::COMPARE, true), (Op::COMPARE, false), (Op::READ, false)] {
        let mut declared = declared();
        if !is_declared {
            declared.io_types &= !op.bit();
        }
        let mut world = World::new(1, declared, deferred());
        assert!(world.gate.io_types() & Op::COMPARE_AND_WRITE.bit() != 0);
        let channel = world.channel(1, 0);
        assert_eq!(world.write(&channel, 8, 4, 1), IoStatus::SUCCESS);
        check(&mut world, &channel, (8, 4), 1, 2, IoStatus::SUCCESS);
        assert_eq!(world.device.bytes(8, 4), vec![2; 4 * BLOCK]);
        check(&mut world, &channel, (8, 4), 1, 3, IoStatus::MISCOMPARE);
        check(&mut world, &channel, (7, 4), 2, 3, IoStatus::MISCOMPARE);
        assert_eq!(world.device.bytes(7, 6), [vec![0; BLOCK], vec![2; 4 * BLOCK], vec![0; BLOCK]].concat());
        world.finish(&[channel]);
    }
}

#[test]
fn a_device_that_only_reads_or_only_writes_offers_none() {
    for op in [Op::READ, Op::WRITE] {
        let mut declared = declared();
        declared.io_types = op.bit();
        let mut world = World::new(1, declared, deferred());
        let channel = world.channel(1, 0);
        check(&mut world, &channel, (0, 1), 0, 1, IoStatus::NOT_SUPPORTED);
        world.finish(&[channel]);
    }
}

#[test]
fn limits_of_the_device_are_kept_and_those_of_the_gate_are_told() {
    let mut declared = declared();
    declared.limits.max_transfer_blocks = 3;
    declared.limits.required_alignment = 64;
    declared.io_types &= !Op::COMPARE.bit();
    let mut world = World::new(2, declared, deferred());
    let channel = world.channel(1, 0);
    check(&mut world, &channel, (5, 256), 0, 7, IoStatus::SUCCESS);
    assert_eq!(world.device.bytes(5, 256), vec![7; 256 * BLOCK]);
    check(&mut world, &channel, (5, 257), 7, 8, IoStatus::INVALID);
    check(&mut world, &channel, (4000, 97), 0, 1, IoStatus::LBA_OUT_OF_RANGE);
    let (mut slot, mut expected) = compare_write(&world, &channel, (0, 2), 0, 1);
    slot.expect(&mut expected[..BLOCK]);
    assert_eq!(world.run(&channel, &mut slot), IoStatus::INVALID, "less to compare than to write");
    slot.prepare(Op::COMPARE_AND_WRITE, 0, 2, 2 * BLOCK, &[]);
    assert_eq!(world.run(&channel, &mut slot), IoStatus::INVALID, "nothing to compare");
    world.finish(&[channel]);
}

/// Increments a counter in the first eight bytes of a block, `left` times, by reading it and then comparing and
/// writing until nobody came in between.
struct Increments {
    left: Cell<u32>,
    misses: Cell<u32>,
    slot: RefCell<Box<Slot>>,
    expected: RefCell<Vec<u8>>,
}

fn increment(world: &mut World, on: &Channel, block: u64, times: u32) -> Rc<Increments> {
    let slot = RefCell::new(world.slot(on, BLOCK));
    let expected = RefCell::new(vec![0; BLOCK]);
    let all = Rc::new(Increments { left: Cell::new(times), misses: Cell::new(0), slot, expected });
    let (ch, inside) = (on.ch, Rc::clone(&all));
    let is_reading = Cell::new(true);
    let go_on = move |slot: &mut Slot| {
        if is_reading.get() {
            assert_eq!(slot.status.get(), IoStatus::SUCCESS);
            let mut expected = inside.expected.borrow_mut();
            expected.copy_from_slice(slot.payload());
            let count = u64::from_le_bytes(expected[..8].try_into().unwrap()) + 1;
            slot.prepare(Op::COMPARE_AND_WRITE, block, 1, BLOCK, &[]);
            slot.payload()[..8].copy_from_slice(&count.to_le_bytes());
            slot.expect(&mut expected);
        } else {
            match slot.status.get() {
                IoStatus::SUCCESS => inside.left.set(inside.left.get() - 1),
                IoStatus::MISCOMPARE => inside.misses.set(inside.misses.get() + 1),
                status => panic!("{status:?}"),
            }
            if inside.left.get() == 0 {
                return;
            }
            slot.prepare(Op::READ, block, 1, BLOCK, &[]);
        }
        is_reading.set(!is_reading.get());
        // SAFETY: completions come on the channel's reactor.
        unsafe { slot.submit(ch) };
    };
    let mut slot = all.slot.borrow_mut();
    slot.after = Some(Box::new(go_on));
    slot.prepare(Op::READ, block, 1, BLOCK, &[]);
    world.submit(on, &mut slot);
    drop(slot);
    all
}

#[test]
fn increments_from_two_reactors_are_never_lost() {
    let mut misses = 0;
    for seed in 0..300 {
        let mut chance = Chance::new(seed);
        let mut declared = declared();
        if chance.permille(500) {
            declared.io_types &= !Op::COMPARE.bit();
        }
        let behaviour = Behaviour {
            sync_permille: chance.below(1001),
            nomem_permille: chance.below(200),
            late_nomem_permille: chance.below(500),
            delay_us: 1 + chance.below(100),
            ..Behaviour::default()
        };
        let mut world = World::new(seed, declared, behaviour);
        let channels = [world.channel(1, 0), world.channel(2, 1), world.channel(3, 1)];
        let times = 5 + chance.below(10) as u32;
        let all: Vec<_> = channels.iter().map(|on| increment(&mut world, on, 9, times)).collect();
        let is_over = || all.iter().all(|one| one.left.get() == 0);
        assert!(world.sim.run_until(Duration::from_secs(600), is_over), "seed {seed}: stuck");
        let count = u64::from_le_bytes(world.device.bytes(9, 1)[..8].try_into().unwrap());
        assert_eq!(count, 3 * u64::from(times), "seed {seed}: increments lost");
        misses += all.iter().map(|one| one.misses.get()).sum::<u32>();
        for one in &all {
            one.slot.borrow_mut().after = None;
        }
        drop(all);
        world.finish(&channels);
    }
    assert!(misses > 100, "the reactors hardly met: {misses}");
}

#[test]
fn ordinary_io_of_all_reactors_stays_out_and_goes_on_afterwards() {
    let mut world = World::new(3, declared(), deferred());
    let channels = [world.channel(1, 0), world.channel(2, 1)];
    let mut writers: Vec<Box<Slot>> = (0..40)
        .map(|nth| {
            let mut slot = world.slot(&channels[nth % 2], BLOCK);
            slot.prepare(Op::WRITE, nth as u64, 1, BLOCK, &[]);
            slot
        })
        .collect();
    for (nth, slot) in writers.iter_mut().enumerate().take(20) {
        world.submit(&channels[nth % 2], slot);
    }
    let (mut slot, _memory) = compare_write(&world, &channels[0], (100, 1), 0, 1);
    world.submit(&channels[0], &mut slot);
    // The control reactor closes the channels meanwhile; what comes now waits.
    assert!(world.sim.run_until(Duration::from_secs(1), || world.device.pending.get() == 0));
    world.device.take_arrivals();
    for (nth, slot) in writers.iter_mut().enumerate().skip(20) {
        world.submit(&channels[nth % 2], slot);
    }
    let is_back = || writers.iter().all(|slot| !slot.in_flight.get()) && !slot.in_flight.get();
    assert!(world.sim.run_until(Duration::from_secs(1), is_back));
    assert!(writers.iter().all(|slot| slot.status.get() == IoStatus::SUCCESS));
    assert_eq!(slot.status.get(), IoStatus::SUCCESS);
    let ops: Vec<Op> = world.device.take_arrivals().iter().map(|arrival| arrival.op).collect();
    let first = ops.iter().position(|op| *op == Op::COMPARE).unwrap();
    // The write of the pair follows its compare, with nothing between them.
    assert_eq!(ops[first..first + 2], [Op::COMPARE, Op::WRITE]);
    world.finish(&channels);
}

#[test]
fn a_device_whose_io_hangs_refuses_and_serves_the_others_again() {
    let mut world = World::new(4, declared(), Behaviour { is_stuck: true, ..Behaviour::default() });
    let channel = world.channel(1, 0);
    let mut hanging = world.slot(&channel, BLOCK);
    hanging.prepare(Op::WRITE, 0, 1, BLOCK, &[]);
    world.submit(&channel, &mut hanging);
    check(&mut world, &channel, (8, 1), 0, 1, IoStatus::TIMED_OUT);
    world.device.behaviour.borrow_mut().is_stuck = false;
    assert_eq!(world.write(&channel, 16, 1, 5), IoStatus::SUCCESS);
    let io = hanging.io;
    // SAFETY: the I/O is in the module.
    world.sim.on(&channel.reactor, |_| unsafe { unstick(io) });
    check(&mut world, &channel, (8, 1), 0, 1, IoStatus::SUCCESS);
    world.finish(&[channel]);
}

#[test]
fn phases_and_resets_come_first_and_nothing_is_left_over() {
    for seed in 0..400 {
        let mut chance = Chance::new(seed);
        let behaviour = Behaviour {
            sync_permille: chance.below(1001),
            nomem_permille: chance.below(300),
            error_permille: chance.below(100),
            delay_us: 1 + chance.below(200),
            ..Behaviour::default()
        };
        let mut world = World::new(seed, declared(), behaviour);
        let channels = [world.channel(1, 0), world.channel(2, 1)];
        let mut slots: Vec<_> = (0..12)
            .map(|nth| compare_write(&world, &channels[nth % 2], (nth as u64 % 3 * 300, 256), 0, 1))
            .collect();
        for (nth, (slot, _)) in slots.iter_mut().enumerate() {
            world.submit(&channels[nth % 2], slot);
            let pause = Duration::from_micros(chance.below(60));
            world.sim.run_until(pause, || false);
        }
        let is_orphaned = match chance.below(4) {
            0 => {
                let mut reset = world.slot(&channels[1], 0);
                reset.prepare(Op::RESET, 0, 0, 0, &[]);
                assert_eq!(world.run(&channels[1], &mut reset), IoStatus::SUCCESS);
                false
            }
            1 => {
                world.set_phase(Phase::Orphaned);
                true
            }
            2 => {
                for phase in [Phase::Frozen, Phase::Absent, Phase::Running] {
                    world.set_phase(phase);
                    world.sim.run_until(Duration::from_micros(chance.below(400)), || false);
                }
                false
            }
            _ => {
                let victim = chance.below(12) as usize;
                world.abort(&channels[victim % 2], &slots[victim].0);
                false
            }
        };
        let is_back = || slots.iter().all(|(slot, _)| !slot.in_flight.get());
        assert!(world.sim.run_until(Duration::from_secs(120), is_back), "seed {seed}: stuck");
        if !is_orphaned {
            // Whatever became of them, the device is open.
            world.device.behaviour.borrow_mut().error_permille = 0;
            assert_eq!(world.write(&channels[0], 2000, 1, 1), IoStatus::SUCCESS, "seed {seed}");
        }
        drop(slots);
        world.finish(&channels);
    }
}

#[test]
fn rate_limits_and_statistics_see_one_request() {
    let mut world = World::new(5, declared(), deferred());
    let channel = world.channel(1, 0);
    let limits = QosLimits { rw_ios_per_sec: 1000, ..QosLimits::default() };
    world.control::<()>(|gate, done| gate.set_qos(limits, move || done(())));
    for _ in 0..20 {
        check(&mut world, &channel, (0, 1), 9, 1, IoStatus::MISCOMPARE);
    }
    let (stat, set) = answer();
    let gate = std::sync::Arc::clone(&world.gate);
    let control = world.sim.control();
    world.sim.on(&control, |_| gate.iostat(false, tenon_bdev::io::ResetMode::None, set));
    world.settle();
    let stat: tenon_bdev::io::IoStat = stat.borrow_mut().take().unwrap();
    assert_eq!(stat.total.op(Op::COMPARE_AND_WRITE).ops, 20);
    assert_eq!(stat.total.op(Op::READ).ops + stat.total.op(Op::COMPARE).ops, 0);
    world.finish(&[channel]);
}
