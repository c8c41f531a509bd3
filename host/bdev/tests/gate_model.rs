//! Random mixes of everything a gate is asked, checked against a model, one seed each.
//!
//! Whatever is mixed: each I/O completes exactly once, data is what a flat array says, nothing reaches the module of a
//! closed gate or during its reset, what is not cut keeps its order per reactor, and at the end
//! nothing is left. A failing seed is printed; add it to [`KEPT`].
// UNSAFETY: submits on the reactors of its channels.
#![allow(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

mod gate;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::ops::Range;
use std::panic::{set_hook, take_hook};
use std::rc::Rc;
use std::sync::{Arc, Once};
use std::time::Duration;

use gate::Chance;
use gate::device::{Behaviour, Declared};
use gate::slot::Slot;
use gate::world::{Channel, World};
use tenon_abi::{BdevFlags, IoFlags, IoStatus, Limits, Op};
use tenon_bdev::io::{Phase, QosLimits, ResetMode};
use tenon_reactor::ReactorRef;

const BLOCK: u64 = 512;
/// Blocks only one slot uses, so that the model knows what they hold.
const REGION: u64 = 64;
const DESCRIPTORS: usize = 2;
const REACTORS: usize = 3;
const SLOTS: usize = 5;
const ACTIONS: usize = 260;
/// What is submitted, as often as it stands here.
const OPS: [Op; 12] = [
    Op::READ,
    Op::READ,
    Op::READ,
    Op::WRITE,
    Op::WRITE,
    Op::WRITE,
    Op::UNMAP,
    Op::WRITE_ZEROES,
    Op::COMPARE,
    Op::FLUSH,
    Op::COPY,
    Op::COMPARE_AND_WRITE,
];

#[test]
fn every_io_completes_once_in_seeds_below_400() {
    run_seeds(0..400);
}

#[test]
fn every_io_completes_once_in_seeds_400_to_800() {
    run_seeds(400..800);
}

#[test]
fn every_io_completes_once_in_seeds_800_to_1200() {
    run_seeds(800..1200);
}

#[test]
fn every_io_completes_once_in_seeds_that_failed_before() {
    KEPT.iter().for_each(|&seed| run_seeds(seed..seed + 1));
}

/// Seeds that found something.
const KEPT: &[u64] = &[];

#[test]
#[ignore = "runs for long: TENON_GATE_SEEDS seeds from TENON_GATE_FIRST on"]
fn every_io_completes_once_in_many_seeds() {
    let number = |name: &str, otherwise| {
        std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(otherwise)
    };
    let (first, count) = (number("TENON_GATE_FIRST", 2_000), number("TENON_GATE_SEEDS", 10_000));
    run_seeds(first..first + count);
}

thread_local! {
    static SEED: Cell<u64> = const { Cell::new(0) };
}

fn run_seeds(seeds: Range<u64>) {
    static HOOK: Once = Once::new();
    // A panic in a callback of the contract aborts, so the seed is told first.
    HOOK.call_once(|| {
        let before = take_hook();
        set_hook(Box::new(move |info| {
            eprintln!("failing seed: {}", SEED.get());
            before(info);
        }));
    });
    for seed in seeds {
        SEED.set(seed);
        if std::env::var_os("TENON_GATE_TRACE").is_some() {
            eprintln!("seed {seed}");
        }
        Model::new(seed).run();
    }
}

/// A slot and what its I/O is to do.
struct Tracked {
    slot: Box<Slot>,
    /// First block of the slot's region.
    region: u64,
    expects_miscompare: bool,
    was_aborted: bool,
    /// Not yet looked at since it was submitted.
    is_open: bool,
    /// For a write: what the blocks hold if it succeeds.
    outcome: Option<Vec<u8>>,
    /// What a COMPARE_AND_WRITE expects.
    compared: Vec<u8>,
}

struct Line {
    channel: Option<Channel>,
    reactor: ReactorRef,
    index: usize,
    desc: u64,
    tracked: Vec<Tracked>,
    reset: Option<Box<Slot>>,
}

struct Model {
    world: World,
    chance: Chance,
    lines: Vec<Line>,
    expected: Vec<u8>,
    is_known: Vec<bool>,
    unit: u64,
    keeps_order: bool,
    may_fail: bool,
    saw_reset: bool,
    saw_absent: bool,
    saw_closed: bool,
    saw_resize: bool,
    is_orphaned: bool,
    phase_requests: Rc<Cell<u64>>,
    answers_owed: Rc<Cell<u64>>,
    /// By I/O: when it was submitted; and by reactor: the latest that arrived.
    submitted: RefCell<HashMap<usize, u64>>,
    sequence: u64,
    last_arrived: [u64; REACTORS + 1],
}

impl Model {
    fn new(seed: u64) -> Model {
        let mut chance = Chance::new(seed + 1);
        let blocks = (DESCRIPTORS * REACTORS * SLOTS) as u64 * REGION;
        let (declared, unit, is_cut) = declared(&mut chance, blocks);
        let behaviour = behaviour(&mut chance);
        // A module that refuses one I/O of a batch may take the next: that is its own order.
        let refuses = behaviour.nomem_permille > 0 || behaviour.most_pending < SLOTS;
        let reorders = behaviour.late_nomem_permille > 0 || declared.has_batch && refuses;
        let keeps_order = !is_cut && !reorders;
        let may_fail = behaviour.error_permille > 0;
        let mut world = World::new(seed, declared, behaviour);
        world.sim.set_stall_permille(chance.pick(&[0, 0, 50, 300]));
        world.gate.set_reset_drain_timeout(Duration::from_millis(chance.pick(&[1, 50, 5000])));
        world.device.resets_are_quiet.set(false);
        let lines = (0..DESCRIPTORS * REACTORS)
            .map(|index| Line {
                channel: None,
                reactor: world.sim.data(index % REACTORS),
                index,
                desc: (index / REACTORS) as u64 + 1,
                tracked: Vec::new(),
                reset: None,
            })
            .collect();
        Model {
            world,
            chance,
            lines,
            expected: vec![0; (blocks * BLOCK) as usize],
            is_known: vec![true; blocks as usize],
            unit,
            keeps_order,
            may_fail,
            saw_reset: false,
            saw_absent: false,
            saw_closed: false,
            saw_resize: false,
            is_orphaned: false,
            phase_requests: Rc::default(),
            answers_owed: Rc::default(),
            submitted: RefCell::default(),
            sequence: 0,
            last_arrived: [0; REACTORS + 1],
        }
    }

    fn run(mut self) {
        for _ in 0..ACTIONS {
            self.act();
            self.look();
        }
        if self.chance.permille(300) {
            self.set_phase(Phase::Orphaned);
        } else {
            self.set_phase(Phase::Running);
        }
        let chance = self.chance.below(1000);
        if chance < 500 {
            self.control(|gate, done| gate.set_qos(QosLimits::default(), done));
        }
        // A module that keeps refusing would take its time.
        self.world.device.behaviour.borrow_mut().nomem_permille = 0;
        for _ in 0..20_000 {
            self.look();
            if self.lines.iter().all(Line::is_idle) && self.answers_owed.get() == 0 {
                return self.finish();
            }
            self.world.sim.advance(Duration::from_micros(500));
        }
        let census = self.world.gate.census();
        let open =
            self.lines.iter().flat_map(|line| &line.tracked).filter(|t| t.slot.in_flight.get()).count();
        panic!(
            "I/O did not come back: {open} open, {census:?}, {} pending, {} answers owed",
            self.world.device.pending.get(),
            self.answers_owed.get()
        );
    }

    fn finish(mut self) {
        let channels: Vec<Channel> = self.lines.iter().filter_map(|line| line.channel.clone()).collect();
        if !self.saw_resize && !self.is_orphaned {
            let data = self.world.device.data.borrow();
            for (block, _) in self.is_known.iter().enumerate().filter(|(_, is_known)| **is_known) {
                let at = block * BLOCK as usize..(block + 1) * BLOCK as usize;
                assert_eq!(data[at.clone()], self.expected[at], "block {block}");
            }
        }
        self.lines.clear();
        self.world.finish(&channels);
    }

    fn act(&mut self) {
        match self.chance.below(100) {
            0..45 => self.submit_one(),
            45..50 => self.submit_batch(),
            50..55 => self.abort(),
            55..57 => self.reset(),
            57..62 => {
                let phase = self.chance.pick(&[Phase::Running, Phase::Running, Phase::Frozen, Phase::Absent]);
                self.set_phase(phase);
            }
            62..64 => self.set_qos(),
            64..65 => self.resize(),
            65..67 => self.report(),
            67..76 => self.open_or_close(),
            76..92 => {
                for _ in 0..self.chance.below(8) {
                    self.world.sim.step();
                }
            }
            _ => {
                let us = self.chance.below(300);
                self.world.sim.advance(Duration::from_micros(us));
            }
        }
    }

    /// A line with a channel, and one of its slots that is idle.
    fn idle(&mut self) -> Option<(usize, usize)> {
        let line = self.chance.below(self.lines.len() as u64) as usize;
        self.lines[line].channel.as_ref()?;
        let slot = self.chance.below(SLOTS as u64) as usize;
        self.lines[line].tracked[slot].is_idle().then_some((line, slot))
    }

    fn submit_one(&mut self) {
        let Some((line, slot)) = self.idle() else { return };
        if self.prepare(line, slot) {
            let line = &mut self.lines[line];
            let Some(channel) = line.channel.clone() else { return };
            self.world.submit(&channel, &mut line.tracked[slot].slot);
        }
    }

    fn submit_batch(&mut self) {
        let Some((line, _)) = self.idle() else { return };
        let mut ios = Vec::new();
        for slot in 0..SLOTS {
            if self.lines[line].tracked[slot].is_idle() && self.prepare(line, slot) {
                ios.push(self.lines[line].tracked[slot].slot.start());
            }
        }
        let Some(channel) = self.lines[line].channel.clone() else { return };
        let (ch, count) = (channel.ch, ios.len() as u32);
        // SAFETY: on the channel's reactor, with I/Os that were just started.
        self.world.sim.on(&channel.reactor, |_| unsafe {
            ((*(*ch).ops).submit_batch.unwrap())(ch, ios.as_ptr(), count);
        });
    }

    /// Decides what a slot does next; false if nothing.
    fn prepare(&mut self, line: usize, slot: usize) -> bool {
        let op = self.chance.pick(&OPS);
        if op == Op::COPY {
            return self.prepare_copy(line, slot) && self.note(line, slot);
        }
        let tracked = &mut self.lines[line].tracked[slot];
        let units = REGION / self.unit;
        let first = self.chance.below(units);
        let blocks = (1 + self.chance.below(units - first)) * self.unit;
        let offset = tracked.region + first * self.unit;
        let has_payload = matches!(op, Op::READ | Op::WRITE | Op::COMPARE | Op::COMPARE_AND_WRITE);
        let bytes = if has_payload { (blocks * BLOCK) as usize } else { 0 };
        let cuts = cuts(&mut self.chance, bytes);
        tracked.slot.misaligned = self.chance.pick(&[0, 0, 0, 1, 512, 64]);
        tracked.slot.prepare(op, offset, blocks, bytes, &cuts);
        let at = (offset * BLOCK) as usize..((offset + blocks) * BLOCK) as usize;
        let known = (offset..offset + blocks).all(|block| self.is_known[block as usize]);
        tracked.expects_miscompare = false;
        tracked.outcome = None;
        match op {
            Op::READ if self.chance.permille(300) => tracked.slot.set_flags(IoFlags::LEND),
            Op::WRITE => {
                let byte = self.chance.next();
                let pattern = (0..bytes).map(|at| (at as u64 / 97 + byte) as u8);
                tracked.slot.payload().iter_mut().zip(pattern).for_each(|(to, byte)| *to = byte);
                tracked.outcome = Some(tracked.slot.payload().to_vec());
            }
            Op::UNMAP | Op::WRITE_ZEROES => tracked.outcome = Some(vec![0; at.len()]),
            Op::COMPARE | Op::COMPARE_AND_WRITE if !known => return false,
            Op::COMPARE_AND_WRITE => {
                tracked.compared = self.expected[at.clone()].to_vec();
                tracked.expects_miscompare = self.chance.permille(300);
                if tracked.expects_miscompare {
                    let wrong = self.chance.below(bytes as u64) as usize;
                    tracked.compared[wrong] ^= 0x55;
                }
                let byte = self.chance.next() as u8;
                tracked.slot.payload().fill(byte);
                tracked.slot.expect(&mut tracked.compared);
                // What is not what it expects stays as it is.
                tracked.outcome = (!tracked.expects_miscompare).then(|| vec![byte; bytes]);
            }
            Op::COMPARE => {
                tracked.slot.payload().copy_from_slice(&self.expected[at.clone()]);
                tracked.expects_miscompare = self.chance.permille(300);
                if tracked.expects_miscompare {
                    let wrong = self.chance.below(bytes as u64) as usize;
                    tracked.slot.payload()[wrong] ^= 0x55;
                }
            }
            _ => {}
        }
        self.note(line, slot)
    }

    /// From the second half of the slot's region to the first.
    fn prepare_copy(&mut self, line: usize, slot: usize) -> bool {
        let tracked = &mut self.lines[line].tracked[slot];
        let half = REGION / 2;
        let blocks = 1 + self.chance.below(half);
        let cut = 1 + self.chance.below(blocks);
        let source = tracked.region + half;
        tracked.slot.prepare(Op::COPY, tracked.region, blocks, 0, &[]);
        let ranges = [(source, cut), (source + cut, blocks - cut)];
        tracked.slot.copy_from(if cut == blocks { &ranges[..1] } else { &ranges });
        tracked.expects_miscompare = false;
        let from = (source * BLOCK) as usize..((source + blocks) * BLOCK) as usize;
        tracked.outcome = Some(self.expected[from].to_vec());
        (source..source + blocks).all(|block| self.is_known[block as usize])
    }

    /// Takes down that a prepared request is on its way.
    fn note(&mut self, line: usize, slot: usize) -> bool {
        let tracked = &mut self.lines[line].tracked[slot];
        tracked.is_open = true;
        tracked.was_aborted = false;
        // SAFETY: the slot's I/O is idle and filled in.
        let (offset, blocks) = unsafe { ((*tracked.slot.io).offset_blocks, (*tracked.slot.io).num_blocks) };
        if tracked.outcome.is_some() {
            (offset..offset + blocks).for_each(|block| self.is_known[block as usize] = false);
        }
        self.sequence += 1;
        self.submitted.borrow_mut().insert(tracked.slot.io.addr(), self.sequence);
        true
    }

    fn abort(&mut self) {
        let line = self.chance.below(self.lines.len() as u64) as usize;
        let slot = self.chance.below(SLOTS as u64) as usize;
        let line = &mut self.lines[line];
        let Some(channel) = line.channel.clone() else { return };
        let tracked = &mut line.tracked[slot];
        if tracked.slot.in_flight.get() {
            tracked.was_aborted = true;
            self.world.abort(&channel, &tracked.slot);
        }
    }

    fn reset(&mut self) {
        let line = self.chance.below(self.lines.len() as u64) as usize;
        let line = &mut self.lines[line];
        let (Some(channel), Some(slot)) = (line.channel.clone(), line.reset.as_mut()) else { return };
        if !slot.in_flight.get() {
            slot.prepare(Op::RESET, 0, 0, 0, &[]);
            self.saw_reset = true;
            self.world.submit(&channel, slot);
        }
    }

    fn control(&mut self, call: impl FnOnce(&Arc<tenon_bdev::io::Gate>, Box<dyn FnOnce()>)) {
        let owed = Rc::clone(&self.answers_owed);
        owed.set(owed.get() + 1);
        let (gate, control) = (Arc::clone(&self.world.gate), self.world.sim.control());
        self.world.sim.on(&control, |_| call(&gate, Box::new(move || owed.set(owed.get() - 1))));
    }

    fn set_phase(&mut self, phase: Phase) {
        self.is_orphaned |= phase == Phase::Orphaned;
        self.saw_absent |= phase == Phase::Absent;
        self.saw_closed |= phase != Phase::Running;
        let request = self.phase_requests.get() + 1;
        self.phase_requests.set(request);
        self.world.device.is_closed.set(false);
        self.world.device.is_gone.set(false);
        let (requests, device) = (Rc::clone(&self.phase_requests), Rc::clone(&self.world.device));
        self.control(|gate, done| {
            gate.set_phase(phase, move || {
                if requests.get() == request && phase != Phase::Running {
                    device.is_closed.set(true);
                    device.is_gone.set(phase != Phase::Frozen);
                }
                done();
            });
        });
    }

    fn set_qos(&mut self) {
        let limits = self.chance.pick(&[
            QosLimits::default(),
            QosLimits { rw_ios_per_sec: 20_000, ..QosLimits::default() },
            QosLimits { w_mbytes_per_sec: 50, ..QosLimits::default() },
            QosLimits { rw_mbytes_per_sec: 200, r_mbytes_per_sec: 100, ..QosLimits::default() },
        ]);
        // Limits keep reads apart from writes, so they do not keep the order of both.
        self.keeps_order &= !limits.is_limited();
        self.control(|gate, done| gate.set_qos(limits, done));
    }

    fn resize(&mut self) {
        self.saw_resize = true;
        let full = self.world.device.declared.limits.num_blocks;
        let blocks = self.chance.pick(&[full, full, full - REGION, full / 2]);
        self.control(|gate, done| gate.resize(blocks, done));
    }

    fn report(&mut self) {
        match self.chance.below(4) {
            0 => self.control(|gate, done| gate.iostat(true, ResetMode::Extremes, move |_| done())),
            1 => self.control(|gate, done| gate.enable_histogram(true, None, done)),
            2 => self.control(|gate, done| gate.enable_histogram(false, None, done)),
            _ => self.control(|gate, done| gate.histogram(None, move |_| done())),
        }
    }

    fn open_or_close(&mut self) {
        let index = self.chance.below(self.lines.len() as u64) as usize;
        let line = &mut self.lines[index];
        if let Some(channel) = line.channel.clone() {
            if line.is_idle() && self.chance.permille(400) {
                line.channel = None;
                self.world.put(&channel);
            }
            return;
        }
        let channel = self.world.channel(line.desc, line.index % REACTORS);
        assert_eq!(channel.reactor, line.reactor);
        for slot in line.tracked.len()..SLOTS {
            line.tracked.push(Tracked {
                slot: self.world.slot(&channel, (REGION * BLOCK) as usize),
                region: (line.index * SLOTS + slot) as u64 * REGION,
                expects_miscompare: false,
                was_aborted: false,
                is_open: false,
                outcome: None,
                compared: Vec::new(),
            });
        }
        line.reset.get_or_insert_with(|| self.world.slot(&channel, 0));
        line.channel = Some(channel);
    }

    /// Looks at what arrived and what completed since the last look.
    fn look(&mut self) {
        let submitted = self.submitted.borrow();
        for arrival in self.world.device.take_arrivals() {
            let Some(&sequence) = submitted.get(&arrival.io) else { continue };
            let last = &mut self.last_arrived[arrival.reactor];
            assert!(!self.keeps_order || *last < sequence, "{arrival:?} overtook another");
            *last = sequence;
        }
        drop(submitted);
        for line in 0..self.lines.len() {
            for slot in 0..self.lines[line].tracked.len() {
                let tracked = &self.lines[line].tracked[slot];
                if tracked.is_open && !tracked.slot.in_flight.get() {
                    self.check(line, slot);
                }
            }
        }
    }

    fn check(&mut self, line: usize, slot: usize) {
        let status = self.lines[line].tracked[slot].slot.status.get();
        self.assert_possible(&self.lines[line].tracked[slot], status);
        let line = &mut self.lines[line];
        let tracked = &mut line.tracked[slot];
        // SAFETY: the slot's I/O is back.
        let (op, offset, blocks) = unsafe {
            ((*tracked.slot.io).op, (*tracked.slot.io).offset_blocks, (*tracked.slot.io).num_blocks)
        };
        let range = offset..offset + blocks;
        if status.is_success() {
            if op == Op::READ {
                let bytes = tracked.slot.result();
                for block in range.clone().filter(|&block| self.is_known[block as usize]) {
                    let at = ((block - offset) * BLOCK) as usize;
                    let from = (block * BLOCK) as usize;
                    let (read, wanted) =
                        (&bytes[at..at + BLOCK as usize], &self.expected[from..from + BLOCK as usize]);
                    assert_eq!(read, wanted, "block {block}");
                }
            }
            if let Some(outcome) = tracked.outcome.take() {
                let from = (offset * BLOCK) as usize;
                self.expected[from..from + outcome.len()].copy_from_slice(&outcome);
                range.for_each(|block| self.is_known[block as usize] = true);
            }
        }
        if tracked.slot.is_lent() {
            if self.chance.permille(400) {
                return;
            }
            let channel = line.channel.clone().expect("open until its I/O is back");
            let ch = channel.ch;
            // SAFETY: on the channel's reactor.
            self.world.sim.on(&channel.reactor, |_| unsafe { tracked.slot.release(ch) });
        }
        tracked.is_open = false;
    }

    fn assert_possible(&self, tracked: &Tracked, status: IoStatus) {
        // SAFETY: the slot's I/O is back.
        let is_compare_write = unsafe { (*tracked.slot.io).op } == Op::COMPARE_AND_WRITE;
        let is_possible = match status {
            // Others did not come back in time, or half of it was written when the gate closed.
            IoStatus::TIMED_OUT => is_compare_write,
            IoStatus::IO_ERROR if is_compare_write && self.saw_closed => true,
            IoStatus::SUCCESS => !tracked.expects_miscompare,
            IoStatus::MISCOMPARE => tracked.expects_miscompare,
            IoStatus::IO_ERROR => self.may_fail,
            IoStatus::ABORTED => tracked.was_aborted || self.saw_reset,
            IoStatus::NO_DEVICE => self.is_orphaned,
            IoStatus::LBA_OUT_OF_RANGE => self.saw_resize,
            _ => false,
        };
        assert!(is_possible, "{status:?}");
    }
}

impl Tracked {
    fn is_idle(&self) -> bool {
        !self.is_open && !self.slot.in_flight.get()
    }
}

impl Line {
    fn is_idle(&self) -> bool {
        let no_reset = self.reset.as_ref().is_none_or(|slot| !slot.in_flight.get());
        no_reset && self.tracked.iter().all(Tracked::is_idle)
    }
}

/// A device with random limits; also its write unit, and whether requests may be cut.
fn declared(chance: &mut Chance, blocks: u64) -> (Declared, u64, bool) {
    let mut declared = Declared::new(Limits::new(BLOCK as u32, blocks));
    declared.io_ctx_size = chance.pick(&[0, 64, 192]);
    declared.has_batch = chance.permille(700);
    declared.has_abort = chance.permille(700);
    if chance.permille(250) {
        return (declared, 1, false);
    }
    let limits = &mut declared.limits;
    limits.max_transfer_blocks = chance.pick(&[0, 0, 8, 24, 40]);
    limits.required_alignment = chance.pick(&[1, 1, 512, 4096]);
    limits.max_segments = chance.pick(&[0, 0, 1, 3, 8]);
    // A piece shorter than its alignment could not be cut from a buffer.
    limits.max_segment_bytes = match chance.pick(&[0, 0, 512, 4096]) {
        512 => limits.required_alignment.max(512),
        bytes => bytes,
    };
    limits.max_unmap_blocks = chance.pick(&[0, 5]);
    limits.max_write_zeroes_blocks = chance.pick(&[0, 7]);
    limits.max_copy_blocks = chance.pick(&[0, 3]);
    let mut unit = 1;
    if chance.permille(300) {
        declared.flags = declared.flags.union(BdevFlags::SPLIT_ON_BOUNDARY);
        limits.optimal_io_boundary = chance.pick(&[16, 24, 48]);
    } else if chance.permille(200) {
        declared.flags = declared.flags.union(BdevFlags::SPLIT_ON_WRITE_UNIT);
        limits.write_unit = 4;
        limits.max_segment_bytes = 0;
        limits.max_transfer_blocks = 0;
        unit = 4;
    }
    if chance.permille(300) {
        declared.io_types &= !Op::COMPARE.bit();
    }
    if chance.permille(300) {
        declared.io_types &= !Op::WRITE_ZEROES.bit();
    }
    if chance.permille(200) {
        declared.io_types &= !Op::RESET.bit();
    }
    (declared, unit, true)
}

fn behaviour(chance: &mut Chance) -> Behaviour {
    Behaviour {
        sync_permille: chance.pick(&[0, 300, 1000]),
        delay_us: chance.pick(&[0, 20, 200]),
        nomem_permille: chance.pick(&[0, 0, 50, 300]),
        nomem_burst: chance.pick(&[1, 4, 30]),
        late_nomem_permille: chance.pick(&[0, 0, 300]),
        error_permille: chance.pick(&[0, 0, 0, 50]),
        lend_permille: chance.pick(&[0, 500]),
        most_pending: chance.pick(&[usize::MAX, usize::MAX, 3]),
        is_stuck: false,
        is_null: false,
    }
}

/// Where a payload of `bytes` is cut into pieces.
fn cuts(chance: &mut Chance, bytes: usize) -> Vec<usize> {
    if bytes == 0 || chance.permille(500) {
        return Vec::new();
    }
    let wanted = 1 + chance.below(30);
    let grain = chance.pick(&[1, 512]);
    let mut cuts: Vec<usize> = (0..wanted)
        .map(|_| chance.below(bytes as u64) as usize / grain * grain)
        .filter(|&cut| cut > 0)
        .collect();
    cuts.sort_unstable();
    cuts.dedup();
    cuts
}
