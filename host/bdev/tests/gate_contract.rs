//! What the gate promises to consumers and modules, one claim at a time.
//!
//! Random mixes of all of it are in `gate_model`; that nothing is allocated per I/O is in `gate_alloc`.
// UNSAFETY: reads channels and I/Os as the contract lays them out.
#![allow(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

mod gate;

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use gate::device::{Behaviour, Declared, Device, unstick};
use gate::slot::Slot;
use gate::world::{Channel, World, answer};
use tenon_abi::{BdevFlags, DescHandle, IoFlags, IoStatus, Limits, Op, errno};
use tenon_bdev::io::{ChannelError, Gate, Phase, QosLimits, ResetMode};

const BLOCK: usize = 512;

fn plain() -> Declared {
    Declared::new(Limits::new(BLOCK as u32, 1024))
}

fn world(declared: Declared, behaviour: Behaviour) -> World {
    World::new(1, declared, behaviour)
}

fn deferred() -> Behaviour {
    Behaviour { sync_permille: 0, ..Behaviour::default() }
}

fn stuck() -> Behaviour {
    Behaviour { is_stuck: true, ..Behaviour::default() }
}

/// Slots that write one block each, from `first` on.
#[allow(clippy::vec_box, reason = "a slot must not move while its I/O is out")]
fn writers(world: &World, channel: &Channel, first: u64, count: u64) -> Vec<Box<Slot>> {
    let make = |block| {
        let mut slot = world.slot(channel, BLOCK);
        slot.prepare(Op::WRITE, block, 1, BLOCK, &[]);
        slot
    };
    (first..first + count).map(make).collect()
}

fn offsets(world: &World) -> Vec<u64> {
    world.device.take_arrivals().iter().map(|arrival| arrival.offset_blocks).collect()
}

#[test]
fn a_plain_request_reaches_the_module_as_the_same_io() {
    let mut world = world(plain(), Behaviour::default());
    let channel = world.channel(1, 0);
    let mut slot = world.slot(&channel, 4096);
    slot.prepare(Op::WRITE, 8, 8, 4096, &[]);
    slot.payload().fill(7);
    assert_eq!(world.run(&channel, &mut slot), IoStatus::SUCCESS);
    let arrivals = world.device.take_arrivals();
    assert_eq!(arrivals.len(), 1);
    assert_eq!(arrivals[0].io, slot.io.addr());
    slot.prepare(Op::READ, 8, 8, 4096, &[100, 1000]);
    assert_eq!(world.run(&channel, &mut slot), IoStatus::SUCCESS);
    assert_eq!(world.device.take_arrivals()[0].iovcnt, 3);
    assert!(slot.payload().iter().all(|&byte| byte == 7));
    world.finish(&[channel]);
}

#[test]
fn malformed_requests_never_reach_the_module() {
    let mut declared = plain();
    declared.io_types &= !Op::COPY.bit();
    let mut world = world(declared, Behaviour::default());
    let channel = world.channel(1, 0);
    let reader = {
        let (gate, reactor) = (Arc::clone(&world.gate), world.sim.data(0));
        let ch = world.sim.on(&reactor, |_| gate.channel_get(DescHandle(2), false)).unwrap();
        Channel { ch, reactor }
    };
    let mut slot = world.slot(&channel, 4096);
    let mut check = |world: &mut World, on: &Channel, op, offset, blocks, bytes, flags, expected| {
        slot.prepare(op, offset, blocks, bytes, &[]);
        slot.set_flags(flags);
        assert_eq!(world.run(on, &mut slot), expected, "{op:?} {offset} {blocks} {bytes}");
    };
    let none = IoFlags::NONE;
    let range = IoStatus::LBA_OUT_OF_RANGE;
    check(&mut world, &channel, Op::COPY, 0, 1, 0, none, IoStatus::NOT_SUPPORTED);
    check(&mut world, &channel, Op(63), 0, 1, 0, none, IoStatus::NOT_SUPPORTED);
    check(&mut world, &channel, Op(200), 0, 1, 0, none, IoStatus::NOT_SUPPORTED);
    check(&mut world, &channel, Op::READ, 0, 1, 512, IoFlags(1 << 9), IoStatus::NOT_SUPPORTED);
    check(&mut world, &channel, Op::READ, 1024, 1, 512, none, range);
    check(&mut world, &channel, Op::READ, 1020, 5, 2560, none, range);
    check(&mut world, &channel, Op::READ, u64::MAX, 8, 4096, none, range);
    check(&mut world, &channel, Op::UNMAP, u64::MAX - 3, 8, 0, none, range);
    check(&mut world, &channel, Op::UNMAP, 8, u64::MAX - 3, 0, none, range);
    check(&mut world, &channel, Op::READ, 0, 2, 512, none, IoStatus::INVALID);
    check(&mut world, &channel, Op::WRITE, 0, 1, 0, none, IoStatus::INVALID);
    check(&mut world, &channel, Op::READ, 0, 0, 0, none, IoStatus::INVALID);
    check(&mut world, &channel, Op::WRITE, 0, 0, 0, none, IoStatus::INVALID);
    check(&mut world, &channel, Op::UNMAP, 0, 0, 0, none, IoStatus::INVALID);
    for op in [Op::WRITE, Op::UNMAP, Op::WRITE_ZEROES] {
        let bytes = if op == Op::WRITE { 512 } else { 0 };
        check(&mut world, &reader, op, 0, 1, bytes, none, IoStatus::NOT_PERMITTED);
    }
    assert_eq!(world.device.take_arrivals(), []);
    check(&mut world, &reader, Op::READ, 1023, 1, 512, none, IoStatus::SUCCESS);
    world.control::<()>(|gate, done| gate.set_read_only(true, move || done(())));
    check(&mut world, &channel, Op::WRITE, 0, 1, 512, none, IoStatus::NOT_PERMITTED);
    world.finish(&[channel, reader]);
}

#[test]
fn a_frozen_gate_keeps_order_and_lets_nothing_through() {
    for phase in [Phase::Frozen, Phase::Absent] {
        let mut world = world(plain(), Behaviour::default());
        let channel = world.channel(1, 0);
        world.set_phase(phase);
        world.device.is_closed.set(true);
        let mut slots = writers(&world, &channel, 0, 10);
        for slot in &mut slots {
            world.submit(&channel, slot);
        }
        world.sim.advance(Duration::from_secs(1));
        assert!(slots.iter().all(|slot| slot.in_flight.get()));
        assert_eq!(world.gate.census().queued, 10);
        world.device.is_closed.set(false);
        world.set_phase(Phase::Running);
        world.settle();
        assert!(slots.iter().all(|slot| slot.status.get().is_success() && !slot.in_flight.get()));
        assert_eq!(offsets(&world), (0..10).collect::<Vec<_>>());
        assert_eq!(world.gate.census().queued, 0);
        world.finish(&[channel]);
    }
}

#[test]
fn an_orphan_answers_what_waits_and_what_comes_and_gives_no_channel() {
    let mut world = world(plain(), stuck());
    let channel = world.channel(1, 0);
    let mut inside = writers(&world, &channel, 0, 1);
    world.submit(&channel, &mut inside[0]);
    world.set_phase(Phase::Absent);
    let mut waiting = writers(&world, &channel, 1, 3);
    waiting.iter_mut().for_each(|slot| world.submit(&channel, slot));
    world.set_phase(Phase::Orphaned);
    assert!(waiting.iter().all(|slot| slot.status.get() == IoStatus::NO_DEVICE && !slot.in_flight.get()));
    assert!(inside[0].in_flight.get(), "what the module has stays there");
    assert_eq!(world.run(&channel, &mut waiting[0]), IoStatus::NO_DEVICE);
    let (gate, reactor) = (Arc::clone(&world.gate), world.sim.data(1));
    let refused = world.sim.on(&reactor, |_| gate.channel_get(DescHandle(2), true));
    assert!(matches!(refused, Err(ChannelError::Gone(_))));
    assert_eq!(world.drain(Duration::from_millis(10)).outstanding, 1, "the deadline tells what is left");
    world.set_phase(Phase::Running);
    assert_eq!(world.gate.phase(), Phase::Orphaned, "there is no way back");
    // SAFETY: the I/O is in the module, on this reactor.
    world.sim.on(&channel.reactor, |_| unsafe { unstick(inside[0].io) });
    world.finish(&[channel]);
}

#[test]
fn a_refused_request_is_retried_in_order() {
    let behaviour = Behaviour { nomem_permille: 300, sync_permille: 500, ..Behaviour::default() };
    let mut world = world(plain(), behaviour);
    let channel = world.channel(1, 0);
    let mut slots = writers(&world, &channel, 0, 200);
    for slot in &mut slots {
        world.submit(&channel, slot);
        if world.device.refusals.get().is_multiple_of(3) {
            world.sim.step();
        }
    }
    let is_back = || slots.iter().all(|slot| !slot.in_flight.get());
    assert!(world.sim.run_until(Duration::from_secs(10), is_back));
    assert!(slots.iter().all(|slot| slot.status.get().is_success()));
    assert_eq!(offsets(&world), (0..200).collect::<Vec<_>>());
    assert!(world.device.refusals.get() > 0);
    world.finish(&[channel]);
}

#[test]
fn no_retry_reports_the_refusal() {
    let mut world = world(plain(), Behaviour { nomem_permille: 1000, ..Behaviour::default() });
    let channel = world.channel(1, 0);
    let mut slot = world.slot(&channel, BLOCK);
    slot.prepare(Op::READ, 0, 1, BLOCK, &[]);
    slot.set_flags(IoFlags::NO_RETRY);
    assert_eq!(world.run(&channel, &mut slot), IoStatus::NOMEM);
    world.finish(&[channel]);
}

#[test]
fn a_module_that_accepts_nothing_is_given_up_after_half_a_minute() {
    let behaviour = Behaviour { nomem_permille: 1000, ..Behaviour::default() };
    let mut world = world(plain(), behaviour);
    let channel = world.channel(1, 0);
    let mut slots = writers(&world, &channel, 0, 2);
    slots.iter_mut().for_each(|slot| world.submit(&channel, slot));
    world.sim.advance(Duration::from_secs(29));
    assert!(slots.iter().all(|slot| slot.in_flight.get()));
    let tries = world.device.refusals.get();
    assert!(tries < 29 * 120, "{tries} tries: the delay grows");
    world.sim.advance(Duration::from_secs(2));
    assert!(slots.iter().all(|slot| slot.status.get() == IoStatus::NOMEM));
    world.finish(&[channel]);
}

fn split_world(change: impl FnOnce(&mut Declared), behaviour: Behaviour) -> (World, Channel) {
    let mut declared = plain();
    change(&mut declared);
    let mut world = world(declared, behaviour);
    let channel = world.channel(1, 0);
    (world, channel)
}

#[track_caller]
fn check_round_trip(change: impl Fn(&mut Declared), misaligned: usize, cuts: &[usize]) -> Vec<u64> {
    let (mut world, channel) = split_world(change, deferred());
    let blocks = 96;
    let bytes = blocks as usize * BLOCK;
    let mut slot = world.slot(&channel, bytes);
    slot.misaligned = misaligned;
    slot.prepare(Op::WRITE, 32, blocks, bytes, cuts);
    for (at, byte) in slot.payload().iter_mut().enumerate() {
        *byte = (at % 251) as u8 ^ (at / 251) as u8;
    }
    let wanted = slot.payload().to_vec();
    assert_eq!(world.run(&channel, &mut slot), IoStatus::SUCCESS);
    assert_eq!(world.device.bytes(32, blocks), wanted, "written");
    let sizes = world.device.take_arrivals().iter().map(|arrival| arrival.num_blocks).collect();
    slot.payload().fill(0);
    slot.prepare(Op::READ, 32, blocks, bytes, cuts);
    assert_eq!(world.run(&channel, &mut slot), IoStatus::SUCCESS);
    assert_eq!(slot.payload(), wanted, "read");
    slot.prepare(Op::COMPARE, 32, blocks, bytes, cuts);
    assert_eq!(world.run(&channel, &mut slot), IoStatus::SUCCESS);
    slot.payload()[bytes - 1] ^= 1;
    assert_eq!(world.run(&channel, &mut slot), IoStatus::MISCOMPARE);
    world.finish(&[channel]);
    sizes
}

#[test]
fn requests_are_cut_at_every_limit_of_the_device() {
    let sizes = check_round_trip(|d| d.limits.max_transfer_blocks = 40, 0, &[]);
    assert_eq!(sizes, [40, 40, 16]);
    let sizes = check_round_trip(
        |d| {
            d.flags = BdevFlags::SPLIT_ON_BOUNDARY;
            d.limits.optimal_io_boundary = 48;
        },
        0,
        &[1000, 1001],
    );
    assert_eq!(sizes, [16, 48, 32]);
    let sizes = check_round_trip(
        |d| {
            d.flags = BdevFlags::SPLIT_ON_WRITE_UNIT;
            d.limits.write_unit = 16;
        },
        0,
        &[],
    );
    assert_eq!(sizes, [16; 6]);
    let sizes = check_round_trip(|d| d.limits.max_segment_bytes = 4096, 0, &[]);
    assert_eq!(sizes.iter().sum::<u64>(), 96);
    check_round_trip(|d| d.limits.max_segments = 2, 0, &[100, 200, 300, 5000, 6000, 7000, 7001, 20_000]);
    check_round_trip(
        |d| {
            d.limits.max_segments = 3;
            d.limits.max_segment_bytes = 1024;
        },
        0,
        &[700, 20_000],
    );
}

#[test]
fn payloads_that_are_not_aligned_are_bounced() {
    for cuts in [&[][..], &[512], &[100, 5000, 5001], &[4096, 8192, 8193, 40_000]] {
        for misaligned in [0, 1, 512] {
            check_round_trip(|d| d.limits.required_alignment = 4096, misaligned, cuts);
            check_round_trip(
                |d| {
                    d.limits.required_alignment = 512;
                    d.limits.max_transfer_blocks = 24;
                    d.limits.max_segments = 4;
                },
                misaligned,
                cuts,
            );
        }
    }
}

#[test]
fn devices_that_hang_cannot_starve_others_of_bounce_buffers() {
    let mut declared = plain();
    declared.limits.required_alignment = 512;
    let mut world = world(declared.clone(), stuck());
    let reactor = world.sim.data(0);
    let devices: Vec<_> = (0..4).map(|seed| Device::new(declared.clone(), stuck(), seed)).collect();
    let gates: Vec<_> = devices.iter().map(|device| device.gate(world.sim.directory())).collect();
    let mut open = |gate: &Arc<Gate>| {
        let ch = world.sim.on(&reactor, |_| gate.channel_get(DescHandle(1), true)).unwrap();
        Channel { ch, reactor: reactor.clone() }
    };
    let channels: Vec<_> = gates.iter().map(&mut open).collect();
    let mut slots = Vec::new();
    for channel in &channels {
        for _ in 0..20 {
            let mut slot = world.slot(channel, BLOCK);
            slot.misaligned = 1;
            slot.prepare(Op::READ, 0, 1, BLOCK, &[]);
            world.submit(channel, &mut slot);
            slots.push(slot);
        }
    }
    let pending: Vec<_> = devices.iter().map(|device| device.pending.get()).collect();
    assert_eq!(pending, [8, 8, 1, 1], "half of the pool each, and one for who has none");
    for device in &devices {
        device.behaviour.borrow_mut().is_stuck = false;
    }
    for index in [3, 2, 1, 0] {
        let first = devices[index].take_arrivals()[0].io as *mut tenon_abi::BdevIo;
        // SAFETY: the child is in the module, on this reactor.
        world.sim.on(&reactor, |_| unsafe { unstick(first) });
    }
    world.settle();
    assert!(slots.iter().all(|slot| slot.status.get().is_success() && !slot.in_flight.get()));
    channels.iter().for_each(|channel| world.put(channel));
    world.settle();
    assert!(devices.iter().all(|device| device.channels.get() == 0));
    world.finish(&[]);
}

#[test]
fn a_device_without_them_has_write_zeroes_and_compare_all_the_same() {
    let sizes = check_round_trip(|d| d.io_types &= !Op::COMPARE.bit(), 3, &[5000]);
    assert_eq!(sizes, [96]);
    let (mut world, channel) = split_world(
        |d| {
            d.io_types &= !(Op::WRITE_ZEROES.bit() | Op::COMPARE.bit());
            d.limits.max_transfer_blocks = 64;
        },
        deferred(),
    );
    assert_eq!(world.gate.io_types() & Op::WRITE_ZEROES.bit(), Op::WRITE_ZEROES.bit());
    assert!(world.write(&channel, 0, 512, 0xff).is_success());
    let mut slot = world.slot(&channel, 0);
    slot.prepare(Op::WRITE_ZEROES, 10, 490, 0, &[]);
    assert!(world.run(&channel, &mut slot).is_success());
    assert!(world.device.bytes(10, 490).iter().all(|&byte| byte == 0));
    assert!(world.device.bytes(0, 10).iter().chain(&world.device.bytes(500, 12)).all(|&byte| byte == 0xff));
    world.finish(&[channel]);
}

#[test]
fn ranges_and_copies_are_cut() {
    let (mut world, channel) = split_world(
        |d| {
            d.limits.max_unmap_blocks = 10;
            d.limits.max_write_zeroes_blocks = 7;
            d.limits.max_copy_blocks = 5;
        },
        deferred(),
    );
    for block in 0..64 {
        assert!(world.write(&channel, block, 1, block as u8 + 1).is_success());
    }
    world.device.take_arrivals();
    let mut slot = world.slot(&channel, 0);
    slot.prepare(Op::COPY, 100, 18, 0, &[]);
    slot.copy_from(&[(40, 7), (3, 1), (10, 10)]);
    assert!(world.run(&channel, &mut slot).is_success());
    let sources = (40..47).chain([3]).chain(10..20);
    let wanted: Vec<u8> = sources.flat_map(|block: u8| [block + 1; BLOCK]).collect();
    assert_eq!(world.device.bytes(100, 18), wanted);
    assert_eq!(world.device.take_arrivals().len(), 5);
    slot.prepare(Op::UNMAP, 0, 64, 0, &[]);
    assert!(world.run(&channel, &mut slot).is_success());
    assert!(world.device.bytes(0, 64).iter().all(|&byte| byte == 0));
    assert_eq!(world.device.take_arrivals().len(), 7);
    slot.prepare(Op::WRITE_ZEROES, 100, 18, 0, &[]);
    assert!(world.run(&channel, &mut slot).is_success());
    assert_eq!(world.device.take_arrivals().len(), 3);
    world.finish(&[channel]);
}

#[test]
fn the_first_error_is_told_when_the_last_child_is_back() {
    let (mut world, channel) = split_world(|d| d.limits.max_transfer_blocks = 1, stuck());
    let mut slot = world.slot(&channel, 40 * BLOCK);
    slot.prepare(Op::READ, 0, 40, 40 * BLOCK, &[]);
    world.submit(&channel, &mut slot);
    let in_flight = world.device.pending.get();
    assert_eq!(in_flight, 32, "a bounded number of children");
    world.device.behaviour.borrow_mut().error_permille = 1000;
    let first = world.device.take_arrivals()[0].io as *mut tenon_abi::BdevIo;
    // SAFETY: the child is in the module, on this reactor.
    world.sim.on(&channel.reactor, |_| unsafe { unstick(first) });
    assert_eq!(slot.status.get(), IoStatus::IO_ERROR);
    assert!(!slot.in_flight.get());
    assert_eq!(world.device.take_arrivals(), [], "no child after the error");
    world.finish(&[channel]);
}

#[test]
fn an_abort_finds_its_victim_wherever_it_is() {
    let (mut world, channel) = split_world(|d| d.limits.max_transfer_blocks = 8, stuck());
    let mut inside = writers(&world, &channel, 0, 1).remove(0);
    world.submit(&channel, &mut inside);
    let mut cut = world.slot(&channel, 512 * BLOCK);
    cut.prepare(Op::READ, 0, 512, 512 * BLOCK, &[]);
    world.submit(&channel, &mut cut);
    world.set_phase(Phase::Frozen);
    let mut held = writers(&world, &channel, 1, 1).remove(0);
    world.submit(&channel, &mut held);
    assert_eq!(world.abort(&channel, &held), 0);
    assert_eq!(held.status.get(), IoStatus::ABORTED);
    assert_eq!(world.abort(&channel, &cut), 0);
    assert_eq!(cut.status.get(), IoStatus::ABORTED);
    assert_eq!(world.abort(&channel, &inside), 0);
    assert_eq!(inside.status.get(), IoStatus::ABORTED);
    assert_eq!(world.abort(&channel, &inside), errno::ENOENT, "completed");
    world.finish(&[channel]);
    let (mut world, channel) = split_world(|d| d.has_abort = false, stuck());
    let mut inside = writers(&world, &channel, 0, 1).remove(0);
    world.submit(&channel, &mut inside);
    assert_eq!(world.abort(&channel, &inside), errno::ENOTSUP);
    // SAFETY: the I/O is in the module, on this reactor.
    world.sim.on(&channel.reactor, |_| unsafe { unstick(inside.io) });
    world.finish(&[channel]);
}

#[test]
fn lent_memory_is_outstanding_until_it_is_released() {
    let (mut world, channel) = split_world(|d| d.limits.max_transfer_blocks = 64, Behaviour::default());
    assert!(world.write(&channel, 0, 8, 9).is_success());
    let mut slot = world.slot(&channel, 0);
    slot.prepare(Op::READ, 0, 8, 0, &[]);
    slot.set_flags(IoFlags::LEND);
    assert!(world.run(&channel, &mut slot).is_success());
    assert!(slot.is_lent());
    assert_eq!(slot.result(), [9; 8 * BLOCK]);
    assert_eq!(world.drain(Duration::from_millis(1)).outstanding, 1);
    let ch = channel.ch;
    // SAFETY: on the channel's reactor.
    world.sim.on(&channel.reactor, |_| unsafe { slot.release(ch) });
    assert_eq!(world.drain(Duration::from_millis(1)).outstanding, 0);
    slot.prepare(Op::READ, 0, 100, 0, &[]);
    slot.set_flags(IoFlags::LEND);
    assert_eq!(world.run(&channel, &mut slot), IoStatus::NOT_SUPPORTED, "it would have to be cut");
    world.finish(&[channel]);
    let (mut world, channel) = split_world(|d| d.io_flags = 0, Behaviour::default());
    let mut slot = world.slot(&channel, BLOCK);
    slot.prepare(Op::READ, 0, 1, 0, &[]);
    slot.set_flags(IoFlags::LEND);
    assert_eq!(world.run(&channel, &mut slot), IoStatus::NOT_SUPPORTED, "the device does not lend");
    slot.prepare(Op::READ, 0, 1, BLOCK, &[]);
    slot.set_flags(IoFlags::LEND);
    assert!(world.run(&channel, &mut slot).is_success());
    assert_eq!(world.device.take_arrivals()[0].flags, IoFlags::NONE);
    world.finish(&[channel]);
}

fn reset_slot(world: &World, channel: &Channel) -> Box<Slot> {
    let mut slot = world.slot(channel, 0);
    slot.prepare(Op::RESET, 0, 0, 0, &[]);
    slot
}

#[test]
fn a_reset_drains_aborts_what_waits_and_tells_the_modules_result() {
    let mut world = world(plain(), deferred());
    let channels: Vec<Channel> = (0..3).map(|reactor| world.channel(1, reactor)).collect();
    world.device.behaviour.borrow_mut().most_pending = 2;
    let mut before: Vec<_> = channels.iter().map(|channel| writers(&world, channel, 0, 4)).collect();
    for (channel, slots) in channels.iter().zip(&mut before) {
        slots.iter_mut().for_each(|slot| world.submit(channel, slot));
    }
    let mut first = reset_slot(&world, &channels[0]);
    let mut second = reset_slot(&world, &channels[2]);
    world.device.reset_status.set(IoStatus::TIMED_OUT);
    world.submit(&channels[0], &mut first);
    world.submit(&channels[2], &mut second);
    assert!(world.sim.run_until(Duration::from_secs(1), || world.gate.is_resetting()));
    let is_back = || !first.in_flight.get();
    assert!(world.sim.run_until(Duration::from_secs(9), is_back));
    assert_eq!(first.status.get(), IoStatus::TIMED_OUT, "not success unconditionally");
    let done = before.iter().flatten();
    assert!(done.clone().all(|slot| !slot.in_flight.get()));
    assert!(done.clone().any(|slot| slot.status.get() == IoStatus::ABORTED), "what waited");
    assert!(done.clone().any(|slot| slot.status.get().is_success()), "what the module had");
    assert!(second.in_flight.get(), "one at a time");
    world.device.reset_status.set(IoStatus::SUCCESS);
    assert!(world.sim.run_until(Duration::from_secs(9), || !second.in_flight.get()));
    assert_eq!(second.status.get(), IoStatus::SUCCESS, "executed for itself");
    assert_eq!(world.device.resets.get(), 2);
    assert!(!world.gate.is_resetting());
    assert!(world.write(&channels[1], 0, 1, 1).is_success(), "thawed");
    world.finish(&channels);
}

#[test]
fn a_reset_waits_for_stuck_io_until_its_timeout_only() {
    let mut world = world(plain(), stuck());
    let channel = world.channel(1, 0);
    world.gate.set_reset_drain_timeout(Duration::from_secs(2));
    world.device.resets_are_quiet.set(false);
    let mut inside = writers(&world, &channel, 0, 1).remove(0);
    world.submit(&channel, &mut inside);
    let mut reset = reset_slot(&world, &channel);
    world.submit(&channel, &mut reset);
    world.sim.advance(Duration::from_millis(1900));
    assert_eq!(world.device.resets.get(), 0);
    let mut later = writers(&world, &channel, 1, 1).remove(0);
    world.submit(&channel, &mut later);
    assert!(world.sim.run_until(Duration::from_millis(200), || !reset.in_flight.get()));
    assert_eq!((world.device.resets.get(), reset.status.get()), (1, IoStatus::SUCCESS));
    world.settle();
    assert!(inside.in_flight.get() && later.in_flight.get(), "both in the module");
    // SAFETY: the I/Os are in the module, on this reactor.
    world.sim.on(&channel.reactor, |_| unsafe { unstick(inside.io) });
    assert!(later.status.get().is_success());
    world.finish(&[channel]);
}

#[test]
fn without_the_operation_a_reset_succeeds_only_if_all_drained() {
    let (mut world, channel) = split_world(|d| d.io_types &= !Op::RESET.bit(), stuck());
    let mut reset = reset_slot(&world, &channel);
    assert_eq!(world.run(&channel, &mut reset), IoStatus::SUCCESS);
    let mut inside = writers(&world, &channel, 0, 1).remove(0);
    world.submit(&channel, &mut inside);
    assert_eq!(world.run(&channel, &mut reset), IoStatus::TIMED_OUT);
    // SAFETY: the I/O is in the module, on this reactor.
    world.sim.on(&channel.reactor, |_| unsafe { unstick(inside.io) });
    world.finish(&[channel]);
}

#[test]
fn a_device_removed_during_a_reset_answers_no_device() {
    let mut world = world(plain(), stuck());
    let channels = [world.channel(1, 0), world.channel(2, 1)];
    let mut inside = writers(&world, &channels[0], 0, 1).remove(0);
    world.submit(&channels[0], &mut inside);
    let mut resets: Vec<_> = channels.iter().map(|channel| reset_slot(&world, channel)).collect();
    for (channel, reset) in channels.iter().zip(&mut resets) {
        world.submit(channel, reset);
    }
    world.sim.advance(Duration::from_millis(10));
    let mut held = writers(&world, &channels[1], 1, 1).remove(0);
    world.submit(&channels[1], &mut held);
    world.set_phase(Phase::Orphaned);
    assert_eq!(held.status.get(), IoStatus::NO_DEVICE);
    // SAFETY: the I/O is in the module, on this reactor.
    world.sim.on(&channels[0].reactor, |_| unsafe { unstick(inside.io) });
    world.sim.advance(Duration::from_millis(100));
    assert!(resets.iter().all(|reset| !reset.in_flight.get() && reset.status.get() == IoStatus::NO_DEVICE));
    assert_eq!(world.device.resets.get(), 0);
    world.finish(&channels);
}

#[test]
fn rate_limits_hold_across_reactors_within_five_percent() {
    let limits = [
        (QosLimits { rw_ios_per_sec: 10_000, ..QosLimits::default() }, Op::READ, 10_000.0),
        (QosLimits { w_mbytes_per_sec: 20, ..QosLimits::default() }, Op::WRITE, 5120.0),
        (QosLimits { r_mbytes_per_sec: 40, ..QosLimits::default() }, Op::READ, 10_240.0),
        (QosLimits { rw_mbytes_per_sec: 100, ..QosLimits::default() }, Op::WRITE, 25_600.0),
    ];
    for (limits, op, wanted) in limits {
        let mut world = world(plain(), Behaviour { delay_us: 30, ..deferred() });
        world.device.is_recording.set(false);
        let channels: Vec<Channel> = (0..3).map(|reactor| world.channel(1, reactor)).collect();
        world.control::<()>(|gate, done| gate.set_qos(limits, move || done(())));
        let stop = Rc::new(RefCell::new(false));
        let mut slots: Vec<Box<Slot>> = Vec::new();
        for channel in channels.iter().cycle().take(48) {
            let mut slot = world.slot(channel, 4096);
            slot.prepare(op, 0, 8, 4096, &[]);
            let (ch, stop) = (channel.ch, Rc::clone(&stop));
            // SAFETY: runs on the channel's reactor.
            slot.after = Some(Box::new(move |slot| unsafe {
                if !*stop.borrow() {
                    slot.submit(ch);
                }
            }));
            world.submit(channel, &mut slot);
            slots.push(slot);
        }
        let done = |slots: &[Box<Slot>]| slots.iter().map(|slot| slot.completions.get()).sum::<u64>();
        world.sim.advance(Duration::from_millis(100));
        let before = done(&slots);
        world.sim.advance(Duration::from_secs(1));
        let rate = (done(&slots) - before) as f64;
        assert!((rate / wanted - 1.0).abs() < 0.05, "{rate} per second, {wanted} wanted: {limits:?}");
        world.control::<()>(|gate, done| gate.set_qos(QosLimits::default(), move || done(())));
        *stop.borrow_mut() = true;
        assert!(world.sim.advance(Duration::from_millis(10)));
        assert!(slots.iter().all(|slot| !slot.in_flight.get()), "no limit, nothing waits");
        world.finish(&channels);
    }
}

#[test]
fn statistics_count_every_request_and_outlive_channels() {
    let mut world = world(plain(), Behaviour { delay_us: 0, ..deferred() });
    let channels = [world.channel(1, 0), world.channel(1, 1)];
    world.control::<()>(|gate, done| gate.enable_histogram(true, None, move || done(())));
    for channel in &channels {
        for block in 0..100 {
            assert!(world.write(channel, block, 2, 1).is_success());
        }
    }
    world.put(&channels[1]);
    world.settle();
    let stat = world.control(|gate, done| gate.iostat(true, ResetMode::None, done));
    let write = stat.total.op(Op::WRITE);
    assert_eq!((write.ops, write.bytes, write.timed_ops), (200, 400 * BLOCK as u64, 200));
    assert_eq!(stat.channels.len(), 1);
    assert_eq!(stat.channels[0].stats.op(Op::WRITE).ops, 100);
    let histogram = world.control(|gate, done| gate.histogram(Some(Op::WRITE), done)).unwrap();
    assert_eq!(histogram.buckets.iter().sum::<u64>(), 200);
    let none = world.control(|gate, done| gate.histogram(Some(Op::ZONE_APPEND), done));
    assert!(none.is_none());
    world.control::<()>(|gate, done| gate.enable_histogram(false, None, move || done(())));
    assert!(!world.gate.is_histogram_enabled());
    world.control::<()>(|gate, done| gate.reset_iostat(ResetMode::All, move || done(())));
    let stat = world.control(|gate, done| gate.iostat(false, ResetMode::None, done));
    assert_eq!(stat.total.total_ops(), 0);
    world.finish(&channels[..1]);
}

#[test]
fn latency_is_told_for_slow_devices_in_full_and_fast_ones_by_sample() {
    let mut world = world(plain(), Behaviour { delay_us: 200, ..deferred() });
    let channel = world.channel(1, 0);
    for _ in 0..50 {
        assert!(world.write(&channel, 0, 1, 1).is_success());
        world.sim.advance(Duration::from_micros(20));
    }
    let stat = world.control(|gate, done| gate.iostat(false, ResetMode::Extremes, done));
    let write = stat.total.op(Op::WRITE);
    assert_eq!((write.ops, write.timed_ops), (50, 50));
    assert!(write.max_latency_ticks <= 200_000 && write.max_latency_ticks >= write.min_latency_ticks);
    assert_eq!(write.latency_ticks(), write.timed_ticks);
    world.device.behaviour.borrow_mut().sync_permille = 1000;
    for _ in 0..2560 {
        assert!(world.write(&channel, 0, 1, 1).is_success());
    }
    let stat = world.control(|gate, done| gate.iostat(false, ResetMode::None, done));
    let write = stat.total.op(Op::WRITE);
    assert_eq!(write.ops, 2610);
    assert!((59..=62).contains(&write.timed_ops), "{write:?}");
    assert_eq!(write.max_latency_ticks, 0, "the extremes were forgotten");
    world.finish(&[channel]);
}

#[test]
fn queue_depth_is_sampled_while_wanted() {
    let mut world = world(plain(), stuck());
    let channels = [world.channel(1, 0), world.channel(1, 2)];
    world.control::<()>(|gate, done| gate.set_queue_depth_sampling(1000, move || done(())));
    let mut slots = writers(&world, &channels[0], 0, 3);
    slots.iter_mut().for_each(|slot| world.submit(&channels[0], slot));
    let mut other = writers(&world, &channels[1], 3, 1);
    world.submit(&channels[1], &mut other[0]);
    world.sim.advance(Duration::from_millis(100));
    let stat = world.control(|gate, done| gate.iostat(false, ResetMode::None, done)).queue_depth;
    assert_eq!((stat.period_us, stat.queue_depth), (1000, 4));
    assert!((98_000..=102_000).contains(&stat.io_time_us), "{stat:?}");
    assert_eq!(stat.weighted_io_time_us, stat.io_time_us * 4);
    // SAFETY: the I/O is in the module, on its reactor.
    world.sim.on(&channels[0].reactor, |_| unsafe { unstick(slots[0].io) });
    // SAFETY: as above.
    world.sim.on(&channels[1].reactor, |_| unsafe { unstick(other[0].io) });
    world.control::<()>(|gate, done| gate.set_queue_depth_sampling(0, move || done(())));
    world.finish(&channels);
}

#[test]
fn channels_are_counted_per_descriptor_and_closed_in_a_turn_of_their_own() {
    let mut world = world(plain(), Behaviour::default());
    let first = world.channel(1, 0);
    let again = world.channel(1, 0);
    let other = world.channel(2, 0);
    assert_eq!(first.ch, again.ch);
    assert_ne!(first.ch, other.ch);
    assert_eq!(world.gate.census().channels, 2);
    assert_eq!(world.device.channels.get(), 1);
    [&first, &again, &other].iter().for_each(|channel| world.put(channel));
    assert_eq!((world.gate.census().channels, world.device.channels.get()), (0, 1));
    let reopened = world.channel(3, 0);
    world.settle();
    assert_eq!(world.device.channels.get(), 1, "the module's channel was taken up again");
    world.finish(&[reopened]);
    let mut declared = plain();
    declared.fails_channels = true;
    let mut world = self::world(declared, Behaviour::default());
    let (gate, reactor) = (Arc::clone(&world.gate), world.sim.data(0));
    let refused = world.sim.on(&reactor, |_| gate.channel_get(DescHandle(1), true)).unwrap_err();
    assert_eq!(refused.errno(), errno::EIO);
    world.finish(&[]);
}

#[test]
fn a_second_completion_is_counted_and_does_nothing() {
    let mut world = world(plain(), Behaviour::default());
    let channel = world.channel(1, 0);
    let mut slot = writers(&world, &channel, 0, 1).remove(0);
    assert!(world.run(&channel, &mut slot).is_success());
    // SAFETY: the I/O is valid; completing it again is the fault under test.
    world.sim.on(&channel.reactor, |_| unsafe { tenon_abi::complete(slot.io, IoStatus::SUCCESS) });
    assert_eq!(slot.completions.get(), 1);
    world.control(|gate, done| gate.iostat(false, ResetMode::None, done));
    assert_eq!(world.gate.faults(), 1);
    assert_eq!(world.drain(Duration::from_millis(1)).outstanding, 0);
    world.put(&channel);
    assert!(world.drain(Duration::from_secs(1)).is_empty());
}

#[test]
fn a_new_size_is_obeyed_everywhere_when_it_is_told() {
    let mut declared = plain();
    declared.limits.num_blocks = 2048;
    let mut world = world(declared, Behaviour::default());
    let channels: Vec<Channel> = (0..3).map(|reactor| world.channel(1, reactor)).collect();
    world.control::<()>(|gate, done| gate.resize(1024, move || done(())));
    for channel in &channels {
        assert_eq!(world.write(channel, 1024, 1, 1), IoStatus::LBA_OUT_OF_RANGE);
        assert!(world.write(channel, 1023, 1, 1).is_success());
    }
    world.set_phase(Phase::Frozen);
    let mut held = writers(&world, &channels[0], 1000, 1).remove(0);
    world.submit(&channels[0], &mut held);
    world.control::<()>(|gate, done| gate.resize(512, move || done(())));
    world.set_phase(Phase::Running);
    assert_eq!(held.status.get(), IoStatus::LBA_OUT_OF_RANGE, "what waited is checked again");
    world.control::<()>(|gate, done| gate.resize(2048, move || done(())));
    assert!(world.write(&channels[2], 2047, 1, 1).is_success());
    world.finish(&channels);
}

#[test]
fn a_batch_of_plain_requests_is_one_call_and_keeps_its_order() {
    let (mut world, channel) = split_world(|d| d.limits.max_transfer_blocks = 8, Behaviour::default());
    let mut slots = writers(&world, &channel, 0, 8);
    slots[5].prepare(Op::WRITE, 1024, 1, BLOCK, &[]);
    let mut ios: Vec<_> = slots.iter_mut().map(|slot| slot.start()).collect();
    let (ch, count) = (channel.ch, ios.len() as u32);
    let submit = |world: &mut World, ios: &[*mut tenon_abi::BdevIo]| {
        // SAFETY: on the channel's reactor, with idle I/Os.
        world.sim.on(&channel.reactor, |_| unsafe {
            ((*(*ch).ops).submit_batch.unwrap())(ch, ios.as_ptr(), count)
        });
    };
    submit(&mut world, &ios);
    assert_eq!(world.device.batches.get(), 2, "one before the bad one, one after");
    assert_eq!(offsets(&world), [0, 1, 2, 3, 4, 6, 7]);
    assert_eq!(slots[5].status.get(), IoStatus::LBA_OUT_OF_RANGE);
    world.set_phase(Phase::Frozen);
    slots[5].prepare(Op::WRITE, 5, 1, BLOCK, &[]);
    ios = slots.iter_mut().map(|slot| slot.start()).collect();
    submit(&mut world, &ios);
    assert!(slots.iter().all(|slot| slot.in_flight.get()));
    world.set_phase(Phase::Running);
    assert_eq!(offsets(&world), (0..8).collect::<Vec<_>>());
    world.finish(&[channel]);
}

#[test]
fn a_wait_for_quiet_leaves_channels_open() {
    let mut world = world(plain(), stuck());
    let channel = world.channel(1, 0);
    let mut slot = writers(&world, &channel, 0, 1).remove(0);
    world.submit(&channel, &mut slot);
    let (quiet, set) = answer();
    let (gate, control) = (Arc::clone(&world.gate), world.sim.control());
    world.sim.on(&control, |_| gate.wait_quiet(u64::MAX, set));
    world.sim.advance(Duration::from_secs(1));
    assert!(quiet.borrow().is_none());
    // SAFETY: the I/O is in the module, on this reactor.
    world.sim.on(&channel.reactor, |_| unsafe { unstick(slot.io) });
    world.sim.advance(Duration::from_millis(10));
    assert_eq!(quiet.borrow().map(|left| (left.outstanding, left.channels)), Some((0, 1)));
    world.finish(&[channel]);
    let _: fn(&Arc<Gate>) -> &str = |gate| gate.name();
}
