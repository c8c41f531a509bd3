//! Nothing is allocated per I/O: not on the fast path, not when a request is cut, bounced, held, refused or limited.
//!
//! The allocator of this binary counts. Each claim runs its I/O once to reach its working size, then counts.
// UNSAFETY: replaces the allocator with one that counts.
#![allow(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

mod gate;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::time::Duration;

use gate::device::{Behaviour, Declared};
use gate::slot::Slot;
use gate::world::{Channel, World};
use tenon_abi::{IoFlags, Limits, Op};
use tenon_bdev::io::{Phase, QosLimits};

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: everything is passed on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

const BLOCK: usize = 512;

/// A null device that completes at once, with no bookkeeping of its own that allocates.
fn world(change: impl FnOnce(&mut Declared, &mut Behaviour)) -> (World, Channel) {
    let mut declared = Declared::new(Limits::new(BLOCK as u32, 4096));
    let mut behaviour = Behaviour { is_null: true, ..Behaviour::default() };
    change(&mut declared, &mut behaviour);
    let mut world = World::new(7, declared, behaviour);
    world.device.is_recording.set(false);
    let channel = world.channel(1, 0);
    (world, channel)
}

/// Runs `work` twice on the channel's reactor and counts what the second run allocates.
#[track_caller]
fn check(world: &mut World, channel: &Channel, mut work: impl FnMut()) {
    world.sim.on(&channel.reactor, |_| {
        work();
        let before = ALLOCATIONS.get();
        work();
        assert_eq!(ALLOCATIONS.get() - before, 0, "allocations");
    });
}

fn submit(slot: &mut Slot, channel: &Channel, times: usize) {
    for _ in 0..times {
        // SAFETY: called on the channel's reactor.
        unsafe { slot.submit(channel.ch) };
        assert!(!slot.in_flight.get() && slot.status.get().is_success());
    }
}

#[test]
fn a_plain_request_allocates_nothing() {
    let (mut world, channel) = world(|_, _| {});
    let mut slot = world.slot(&channel, 8 * BLOCK);
    slot.prepare(Op::WRITE, 0, 8, 8 * BLOCK, &[]);
    check(&mut world, &channel, || submit(&mut slot, &channel, 10_000));
    slot.prepare(Op::READ, 0, 8, 8 * BLOCK, &[7, 600, 1000]);
    check(&mut world, &channel, || submit(&mut slot, &channel, 10_000));
    world.control::<()>(|gate, done| gate.enable_histogram(true, None, move || done(())));
    check(&mut world, &channel, || submit(&mut slot, &channel, 10_000));
    world.finish(&[channel]);
}

#[test]
fn a_request_that_is_cut_and_bounced_allocates_nothing() {
    let (mut world, channel) = world(|declared, _| {
        declared.limits.max_transfer_blocks = 16;
        declared.limits.required_alignment = 512;
        declared.limits.max_unmap_blocks = 4;
    });
    let mut slot = world.slot(&channel, 512 * BLOCK);
    for misaligned in [0, 3] {
        slot.misaligned = misaligned;
        slot.prepare(Op::WRITE, 0, 500, 500 * BLOCK, &[100, 70_000, 100_001]);
        check(&mut world, &channel, || submit(&mut slot, &channel, 100));
    }
    slot.prepare(Op::UNMAP, 0, 100, 0, &[]);
    check(&mut world, &channel, || submit(&mut slot, &channel, 100));
    world.finish(&[channel]);
}

#[test]
fn a_request_that_is_held_refused_or_limited_allocates_nothing() {
    let (mut world, channel) = world(|_, behaviour| behaviour.nomem_permille = 200);
    let mut slots: Vec<_> = (0..64).map(|_| world.slot(&channel, BLOCK)).collect();
    let mut round = |world: &mut World, counts: bool| {
        let before = ALLOCATIONS.get();
        world.sim.on(&channel.reactor, |_| {
            for slot in &mut slots {
                slot.prepare(Op::READ, 0, 1, BLOCK, &[]);
                // SAFETY: called on the channel's reactor.
                unsafe { slot.submit(channel.ch) };
            }
        });
        assert!(!counts || ALLOCATIONS.get() == before, "{} allocations", ALLOCATIONS.get() - before);
        let is_back = || slots.iter().all(|slot| !slot.in_flight.get());
        assert!(world.sim.run_until(Duration::from_secs(5), is_back));
    };
    round(&mut world, false);
    round(&mut world, true);
    world.control::<()>(|gate, done| {
        gate.set_qos(QosLimits { rw_ios_per_sec: 1000, ..QosLimits::default() }, move || done(()));
    });
    round(&mut world, false);
    round(&mut world, true);
    assert!(world.device.refusals.get() > 0);
    let mut slot = world.slot(&channel, BLOCK);
    world.control::<()>(|gate, done| gate.set_qos(QosLimits::default(), move || done(())));
    world.set_phase(Phase::Frozen);
    slot.prepare(Op::READ, 0, 1, BLOCK, &[]);
    slot.set_flags(IoFlags::NONE);
    let ch = channel.ch;
    let before = ALLOCATIONS.get();
    // SAFETY: on the channel's reactor.
    world.sim.on(&channel.reactor, |_| unsafe { slot.submit(ch) });
    assert_eq!(ALLOCATIONS.get(), before);
    world.set_phase(Phase::Running);
    assert!(world.sim.run_until(Duration::from_secs(1), || !slot.in_flight.get()));
    world.finish(&[channel]);
}
