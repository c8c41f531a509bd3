//! Death at any moment: an array is created, used, degraded, rebuilt, compared and
//! left alone, and at a numbered point, the so-many-th I/O that reaches a member,
//! everything stops but what members hold, with any blocks of the writes in flight.
//! The next host has the last word of every write that was acknowledged, the old or
//! the new of every other, and it stays that way: when the crash comes again while
//! the array is brought up, when a member stays away, and when another one is lost
//! later. Once the array is whole its members agree on every block.
//!
//! `RAID_CRASH_RUNS` is how many runs each level has, `RAID_CRASH_SEED` where they
//! begin.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::rc::Rc;
use std::time::Duration;

use serde_json::{Value, json};
use tenon_sdk::{IoStatus, abi::Op};
use tenon_testkit::{
    Access, BaseSpec, Channel, Completion, Descriptor, FakeHost, FaultPlan, Io, ModuleId, Pending, Request,
    Rng, TestBase,
};

/// First block of the data area of a member.
const DATA: u64 = 2048;
const BLOCKS: u64 = DATA + 96;
/// Of members that have grown.
const GROWN: u64 = BLOCKS + 64;
/// How long a slow member takes at most, and what nobody waits longer for.
const SLOW_NS: u64 = 15_000_000_000;
const PATIENCE: Duration = Duration::from_secs(3600);
const OPTIONS: &str = r#"{"process_window_size_kb":8}"#;

/// What is tried.
#[derive(Clone, Copy)]
struct Case {
    level: &'static str,
    members: usize,
    strip_kb: u32,
    bitmap: bool,
    /// Devices that wait for a slot, behind the members.
    spares: usize,
}

impl Case {
    const fn new(level: &'static str, members: usize, strip_kb: u32, bitmap: bool) -> Case {
        Case { level, members, strip_kb, bitmap, spares: 0 }
    }

    const fn with_spare(self) -> Case {
        Case { spares: 1, ..self }
    }

    fn is_redundant(self) -> bool {
        !matches!(self.level, "raid0" | "concat")
    }

    /// What a configuration asks for at each start.
    fn params(self) -> String {
        let names = |range: std::ops::Range<usize>| range.map(|nth| format!("b{nth}")).collect::<Vec<_>>();
        let (bases, spares) = (names(0..self.members), names(self.members..self.members + self.spares));
        json!({ "name": "r0", "level": self.level, "strip_size_kb": self.strip_kb, "base_bdevs": bases,
            "superblock": true, "bitmap": self.bitmap, "spares": spares })
        .to_string()
    }
}

/// What each block may hold: numbers of writes.
struct Expected {
    blocks: Vec<Vec<u32>>,
    next: u32,
    /// Whether the create was answered.
    is_created: bool,
    /// Blocks of a member.
    member_blocks: u64,
}

/// What is left after a crash.
struct Remains {
    images: Vec<Vec<u8>>,
    /// The devices that all held current data, one of which may stay away; none if one did already.
    dispensable: Vec<usize>,
}

struct World<'a> {
    case: Case,
    host: FakeHost,
    module: ModuleId,
    bases: Vec<Option<TestBase>>,
    /// Devices that went, whose last writes may have come after they were told to, and what others held before.
    gone: Vec<Option<TestBase>>,
    left_behind: Vec<Vec<u8>>,
    opened: Option<(Descriptor, Vec<Channel>)>,
    expected: &'a mut Expected,
    /// It stops when that many I/Os have reached members.
    point: u64,
    /// I/Os that reached devices that are gone.
    before: u64,
    /// Operations that may be under way at the crash.
    created: Option<Rc<Pending>>,
    ios: Vec<Io>,
    is_over: bool,
    is_faulty: bool,
    /// Members that cannot be written to.
    broken: Vec<bool>,
    /// A member is so slow that nobody could let go of it in time.
    is_slow: bool,
}

fn base_spec(nth: usize, blocks: u64) -> BaseSpec {
    BaseSpec::new(&format!("b{nth}"), 512, blocks).uuid([nth as u8 + 1; 16])
}

/// How a member that is well answers.
fn usual() -> FaultPlan {
    FaultPlan::none().delay_ns(0, 50_000).reorder(8)
}

fn block_of(number: u32) -> Vec<u8> {
    number.to_le_bytes().repeat(128)
}

fn number_of(block: &[u8]) -> Option<u32> {
    let number = u32::from_le_bytes(block[..4].try_into().unwrap());
    (block == block_of(number)).then_some(number)
}

impl<'a> World<'a> {
    fn start(
        case: Case,
        seed: u64,
        images: &[Option<Vec<u8>>],
        point: u64,
        expected: &'a mut Expected,
    ) -> Self {
        let host = FakeHost::new(seed);
        let mut bases = Vec::new();
        for (nth, image) in images.iter().enumerate() {
            bases.push(image.as_ref().map(|image| {
                let base = host.add_base(base_spec(nth, expected.member_blocks));
                base.write_bytes(0, image);
                base.set_plan(usual());
                base
            }));
        }
        let left_behind = vec![vec![0; expected.member_blocks as usize * 512]; images.len()];
        let module = host.load(bdev_raid::plugin, OPTIONS).unwrap();
        // Superblocks know no spares. Everything else comes up without being asked for.
        let is_asked_for = expected.is_created && (case.spares > 0 || seed & 2 != 0);
        let created = is_asked_for.then(|| Rc::new(host.start_create(module, &case.params())));
        World {
            case,
            host,
            module,
            bases,
            gone: vec![None; images.len()],
            left_behind,
            opened: None,
            expected,
            point,
            before: 0,
            created,
            ios: Vec::new(),
            is_over: false,
            is_faulty: false,
            broken: vec![false; images.len()],
            is_slow: false,
        }
    }

    fn array(&self) -> Option<Value> {
        let all = self.host.rpc("bdev_raid_get_bdevs", r#"{"category":"all"}"#).unwrap();
        serde_json::from_str::<Vec<Value>>(&all).unwrap().into_iter().next()
    }

    /// The devices in its slots.
    fn members(&self) -> Vec<usize> {
        let array = self.array().unwrap_or_default();
        let slots = array["base_bdevs_list"].as_array().cloned().unwrap_or_default();
        let names = slots.iter().filter_map(|slot| slot["name"].as_str()?.strip_prefix('b'));
        names.filter_map(|nth| nth.parse().ok()).collect()
    }

    fn is_whole(&self) -> bool {
        self.array().is_some_and(|array| {
            array["num_base_bdevs_operational"] == array["num_base_bdevs"]
                && array.get("process").is_none()
                && array["bitmap"]["is_synced"] != false
        })
    }

    /// Whether one member may fail, and nothing else is wrong.
    fn may_lose(&self) -> bool {
        !self.is_faulty && self.bases.iter().all(Option::is_some) && self.is_whole()
    }

    /// Whether one more may fail: another member of a mirror of three is well and holds everything.
    fn may_lose_another(&self, nth: usize) -> bool {
        let is_well = |slot: &Value| {
            let other = slot["name"].as_str().and_then(|name| name.strip_prefix('b')?.parse().ok());
            let is_well = |other: usize| other != nth && self.bases[other].is_some() && !self.broken[other];
            slot["is_configured"] == true && other.is_some_and(is_well)
        };
        let array = self.array().unwrap_or_default();
        (self.case.level, self.case.members) == ("raid1", 3)
            && array["base_bdevs_list"].as_array().is_some_and(|slots| slots.iter().any(is_well))
    }

    /// Runs until something is so; false if the crash comes first.
    fn until(&mut self, what: &str, mut is_met: impl FnMut(&Self) -> bool) -> bool {
        if self.is_over {
            return false;
        }
        let (before, point) = (self.before, self.point);
        let bases: Vec<TestBase> = self.bases.iter().flatten().cloned().collect();
        let arrived = || before + bases.iter().map(|base| base.records().len() as u64).sum::<u64>();
        let this = &*self;
        let mut is_over = false;
        let met = this.host.run_until(PATIENCE, || {
            is_over = arrived() >= point;
            is_over || is_met(this)
        });
        assert!(
            met,
            "seed {} point {point}: {what}: {:#?} {:#?}",
            self.host.seed(),
            self.array(),
            self.host.logs()
        );
        self.is_over = is_over;
        !is_over
    }

    fn open(&mut self) -> bool {
        if !self.until("online", |world| world.host.device("r0").is_some()) {
            return false;
        }
        let descriptor = self.host.open("r0", Access::Write).unwrap();
        let channels = (0..2).map(|reactor| descriptor.channel(reactor).unwrap()).collect();
        self.opened = Some((descriptor, channels));
        true
    }

    fn create(&mut self) -> bool {
        let pending = Rc::new(self.host.start_create(self.module, &self.case.params()));
        self.created = Some(Rc::clone(&pending));
        if !self.until("created", |_| pending.is_done()) {
            return false;
        }
        self.host.wait_for(&pending).unwrap();
        self.expected.is_created = true;
        if !self.open() {
            return false;
        }
        let blocks = self.host.device("r0").unwrap().limits.num_blocks;
        self.expected.blocks = vec![vec![0]; blocks as usize];
        true
    }

    fn unit(&self) -> u64 {
        u64::from(self.host.device("r0").unwrap().limits.write_unit.max(1))
    }

    /// Some writes at once that do not overlap.
    fn write_some(&mut self, rng: &Rng) -> bool {
        let (unit, total) = (self.unit(), self.expected.blocks.len() as u64);
        let mut ios = Vec::new();
        let mut used: Vec<(u64, u64)> = Vec::new();
        for _ in 0..rng.between(1, 6) {
            let blocks = (rng.between(1, 12) / unit).max(1) * unit;
            let offset = rng.below((total - blocks) / unit + 1) * unit;
            if used.iter().any(|(at, len)| offset < at + len && *at < offset + blocks) {
                continue;
            }
            used.push((offset, blocks));
            self.expected.next += 1;
            let number = self.expected.next;
            let data = block_of(number).repeat(blocks as usize);
            self.expected.blocks[offset as usize..(offset + blocks) as usize]
                .iter_mut()
                .for_each(|allowed| allowed.push(number));
            let (_, channels) = self.opened.as_ref().unwrap();
            let channel = &channels[rng.index(channels.len())];
            let io = channel.submit(Request::write(offset, blocks, data));
            self.ios.push(io.clone());
            ios.push((io, offset, blocks, number));
        }
        if rng.chance(300) {
            self.host.advance(Duration::from_nanos(rng.below(100_000)));
            self.disturb(rng);
        }
        let is_met = self.until("written", |_| ios.iter().all(|(io, ..)| io.is_done()));
        for (io, offset, blocks, number) in ios {
            if io.is_done() && io.completion().unwrap().status.is_success() {
                for allowed in &mut self.expected.blocks[offset as usize..(offset + blocks) as usize] {
                    *allowed = vec![number];
                }
            }
        }
        is_met
    }

    /// What happens beside writes. False if the crash comes.
    fn live(&mut self, rng: &Rng) -> bool {
        if !self.case.is_redundant() {
            return true;
        }
        if !self.is_faulty {
            self.bases.iter().flatten().for_each(|base| base.set_plan(usual()));
        }
        let is_idle = |world: &Self| world.bases.iter().flatten().all(|base| base.in_flight() == 0);
        if self.is_slow && !self.until("caught up", is_idle) {
            return false;
        }
        self.is_slow = self.may_lose() && rng.chance(100);
        if self.is_slow {
            let base = &self.bases[rng.index(self.bases.len())];
            base.iter().for_each(|base| base.set_plan(FaultPlan::none().delay_ns(0, SLOW_NS)));
        }
        if rng.chance(100) {
            // Refused if there is nothing to compare now.
            let params = json!({ "name": "r0", "repair": rng.chance(500) }).to_string();
            let _ = self.host.rpc("bdev_raid_start_scrub", &params);
        }
        if rng.chance(100) {
            let end_ns = self.host.now_ns() + rng.below(SLOW_NS);
            if !self.until("rested", |world| world.host.now_ns() >= end_ns) {
                return false;
            }
        }
        !rng.chance(200) || self.read_some(rng)
    }

    /// Some reads, of which a member may be unable to do some.
    fn read_some(&mut self, rng: &Rng) -> bool {
        let may_fail = self.may_lose();
        if may_fail && rng.chance(700) {
            let from = rng.between(DATA, BLOCKS - 8);
            self.bases[rng.index(self.bases.len())].iter().for_each(|base| base.spoil(from..from + 8));
        }
        let (_, channels) = self.opened.as_ref().unwrap();
        let total = self.expected.blocks.len() as u64;
        let read = |_| {
            let at = rng.below(total - 3);
            (at as usize, channels[rng.index(channels.len())].submit(Request::read(at, 3)))
        };
        let ios: Vec<(usize, Io)> = (0..3).map(read).collect();
        self.ios.extend(ios.iter().map(|(_, io)| io.clone()));
        let is_met = self.until("read", |_| ios.iter().all(|(_, io)| io.is_done()));
        self.bases.iter().flatten().for_each(TestBase::unspoil);
        for (at, io) in ios.iter().filter(|(_, io)| io.is_done()) {
            let done = io.completion().unwrap();
            let context =
                format!("seed {} block {at} {:#?} {:#?}", self.host.seed(), self.array(), self.host.logs());
            assert!(done.status.is_success(), "{:?} {context}", done.status);
            for (nth, block) in done.data.chunks(512).enumerate() {
                let allowed = &self.expected.blocks[at + nth];
                let number = number_of(block);
                assert!(number.is_some_and(|number| allowed.contains(&number)), "{number:?} {context}");
            }
        }
        is_met
    }

    /// Every member becomes larger, and the array with them.
    fn grow(&mut self) -> bool {
        if self.is_faulty || self.bases.iter().any(Option::is_none) || !self.is_whole() {
            return true;
        }
        let size = |world: &Self| world.host.device("r0").unwrap().limits.num_blocks;
        let before = size(self);
        self.expected.member_blocks = GROWN;
        self.gone.fill(None);
        self.left_behind.iter_mut().for_each(|image| image.resize(GROWN as usize * 512, 0));
        self.bases.iter().flatten().for_each(|base| base.resize(GROWN));
        let has_grown = self.until("grown", |world| size(world) > before);
        if has_grown {
            self.expected.blocks.resize(size(self) as usize, vec![0]);
        }
        has_grown
    }

    /// A member goes, fails or returns.
    fn disturb(&mut self, rng: &Rng) {
        if !self.case.is_redundant() || self.is_slow {
            return;
        }
        let nth = rng.index(self.bases.len());
        let may_lose = self.may_lose();
        match self.bases[nth].clone() {
            Some(base) if may_lose && rng.chance(500) => {
                self.before += base.records().len() as u64;
                base.remove();
                self.bases[nth] = None;
                self.gone[nth] = Some(base);
            }
            Some(base) if may_lose || (self.may_lose_another(nth) && rng.chance(500)) => {
                base.set_plan(FaultPlan::none().fail_op(Op::WRITE, IoStatus::IO_ERROR));
                (self.is_faulty, self.broken[nth]) = (true, true);
            }
            Some(_) => {
                for base in self.bases.iter().flatten() {
                    base.set_plan(usual());
                    let params = json!({ "raid_bdev": "r0", "base_bdev": base.name() }).to_string();
                    let _ = self.host.rpc("bdev_raid_add_base_bdev", &params);
                }
                self.is_faulty = false;
                self.broken.fill(false);
            }
            None => self.bring_back(nth),
        }
    }

    fn bring_back(&mut self, nth: usize) {
        let name = format!("b{nth}");
        if self.bases[nth].is_none() && self.host.device(&name).is_none() {
            let base = self.host.add_base(base_spec(nth, self.expected.member_blocks));
            base.write_bytes(0, &self.held_by(nth));
            assert!(self.host.examine(&name));
            self.bases[nth] = Some(base);
        }
    }

    /// What a device held when it went.
    fn held_by(&self, nth: usize) -> Vec<u8> {
        self.gone[nth].as_ref().map_or_else(
            || self.left_behind[nth].clone(),
            |base| {
                let known = self.left_behind[nth].len() as u64 / 512;
                base.bytes(0, known.min(self.expected.member_blocks))
            },
        )
    }

    /// Reads every block, twice at once, so that a mirror reads two members if it may: what was found is what it has
    /// to be from now on.
    fn verify(&mut self, context: &str) {
        let total = self.expected.blocks.len();
        let step = 4;
        for at in (0..total).step_by(step) {
            let blocks = step.min(total - at);
            let (_, channels) = self.opened.as_ref().unwrap();
            let channel = &channels[at / step % 2];
            let ios = [(); 2].map(|()| channel.submit(Request::read(at as u64, blocks as u64)));
            for io in ios {
                let done = self.host.wait(&io);
                self.judge_read(at, &done, context);
            }
        }
    }

    fn judge_read(&mut self, at: usize, done: &Completion, context: &str) {
        let seed = self.host.seed();
        assert!(
            done.status.is_success(),
            "seed {seed} {context}: block {at} {:?} {:?}",
            done.status,
            self.array()
        );
        for (nth, block) in done.data.chunks(512).enumerate() {
            let allowed = &self.expected.blocks[at + nth];
            let number = number_of(block);
            assert!(
                number.is_some_and(|number| allowed.contains(&number)),
                "seed {seed} point {} {context}: block {} holds {number:?}, allowed {allowed:?} {:#?} {:#?}",
                self.point,
                at + nth,
                self.array(),
                self.host.logs()
            );
            self.expected.blocks[at + nth] = vec![number.unwrap()];
        }
    }

    fn close(mut self) -> Remains {
        // What was asked before a crash counts, whatever a member that is away held since.
        let is_whole = self.host.device("r0").is_some() && self.is_whole() && !self.is_faulty;
        let image = |(nth, base): (usize, &Option<TestBase>)| match base {
            Some(base) => base.bytes_after_power_cut(),
            None => self.held_by(nth),
        };
        let images = self.bases.iter().enumerate().map(image).collect();
        let members = self.members();
        let is_whole = is_whole && members.iter().all(|nth| self.bases[*nth].is_some());
        for base in self.bases.iter().flatten() {
            base.set_plan(FaultPlan::none());
        }
        // What goes on in this host does not count any more, but it ends in order.
        if let Some(created) = &self.created {
            let _ = self.host.wait_for(created);
        }
        assert!(self.host.run_until(PATIENCE, || {
            self.ios.iter().all(|io| io.is_done())
                && self.bases.iter().flatten().all(|base| base.in_flight() == 0)
        }));
        if let Some((descriptor, channels)) = self.opened.take() {
            channels.iter().for_each(Channel::put);
            descriptor.close();
        }
        Remains { images, dispensable: if is_whole { members } else { Vec::new() } }
    }
}

/// One run: a life that ends at a point, perhaps one that ends while it begins, and one that must find everything.
fn run(case: Case, seed: u64) {
    let rng = Rng::new(seed);
    let mut expected = Expected { blocks: Vec::new(), next: 0, is_created: false, member_blocks: BLOCKS };
    let blank = vec![Some(vec![0; BLOCKS as usize * 512]); case.members + case.spares];
    let mut world = World::start(case, seed, &blank, rng.between(1, 900), &mut expected);
    if world.create() {
        for nth in 0..20 {
            if (grows_at(seed) == Some(nth) && !world.grow()) || !world.live(&rng) || !world.write_some(&rng)
            {
                break;
            }
        }
    }
    let mut remains = world.close();
    if rng.chance(300) {
        let images: Vec<_> = remains.images.iter().cloned().map(Some).collect();
        let mut world = World::start(case, seed ^ 0xa5a5, &images, rng.between(1, 60), &mut expected);
        world.until("brought up", |world| {
            world.host.now_ns() > 20_000_000 || (world.host.device("r0").is_some() && world.is_whole())
        });
        remains = Remains { dispensable: Vec::new(), ..world.close() };
    }
    judge(case, seed, &rng, &remains, &mut expected);
}

/// One run in five grows, before that one of its writes.
fn grows_at(seed: u64) -> Option<u64> {
    (seed % 5 == 4).then_some(seed / 5 % 20)
}

fn judge(case: Case, seed: u64, rng: &Rng, remains: &Remains, expected: &mut Expected) {
    let mut images: Vec<_> = remains.images.iter().cloned().map(Some).collect();
    let may_stay_away = case.is_redundant() && !remains.dispensable.is_empty() && expected.is_created;
    let absent =
        (may_stay_away && rng.chance(400)).then(|| remains.dispensable[rng.index(remains.dispensable.len())]);
    // A whole stripe that was not acknowledged may be part old, part new; without a member, part neither.
    let is_strict = absent.is_none() || !matches!(case.level, "raid5f" | "raid5");
    if let Some(nth) = absent {
        images[nth] = None;
    }
    let is_created = expected.is_created;
    if !is_strict {
        expected.blocks.iter_mut().filter(|allowed| allowed.len() > 1).for_each(Vec::clear);
    }
    let mut world = World::start(case, seed ^ 0x5a5a, &images, u64::MAX, expected);
    world.host.settle();
    if !is_created {
        // Nothing, a complete array, or one that the operator can end.
        if world.host.device("r0").is_none() && world.array().is_some() {
            world.host.rpc("bdev_raid_destroy", r#"{"name":"r0"}"#).unwrap();
        }
        world.close();
        return;
    }
    if let Some(created) = world.created.clone() {
        world.until("answered", |_| created.is_done());
    }
    if let Some(nth) = absent {
        world.left_behind[nth] = remains.images[nth].clone();
        world.until("assembled", |world| {
            let found =
                |array: Value| array["num_base_bdevs_discovered"].as_u64() == Some(case.members as u64 - 1);
            world.array().is_some_and(found)
        });
        // Refused as long as a device is being looked at.
        world.until("started", |world| {
            world.array().unwrap()["state"] == "online"
                || world.host.rpc("bdev_raid_start_degraded", r#"{"name":"r0"}"#).is_ok()
        });
    }
    world.open();
    if !is_strict {
        world.forgive();
    }
    world.verify("after the crash");
    if let Some(nth) = absent {
        world.write_quietly(rng);
        world.bring_back(nth);
    }
    world.becomes_whole(absent.filter(|_| grows_at(seed).is_some()));
    world.verify("when whole");
    if case.is_redundant() {
        world.members_agree();
        let members = world.members();
        let nth = members[rng.index(members.len())];
        let base = world.bases[nth].take().unwrap();
        world.before += base.records().len() as u64;
        base.remove();
        world.until("degraded", |_| base.is_gone());
        world.verify("without another member");
    }
    world.close();
}

impl World<'_> {
    /// A size that one member alone had been told of, and which stayed away, looks like a life of its own: such a one
    /// may be refused, and is added anew.
    fn becomes_whole(&mut self, may_be_refused: Option<usize>) {
        self.until("whole", |world| {
            let refused = may_be_refused.filter(|_| world.array().unwrap().get("diverged").is_some());
            if let Some(nth) = refused {
                let told = world.array().unwrap()["diverged"][format!("b{nth}")].to_string();
                assert!(told.contains("if a crash interrupted that"), "{told}");
                let params = json!({ "raid_bdev": "r0", "base_bdev": format!("b{nth}") }).to_string();
                let _ = world.host.rpc("bdev_raid_add_base_bdev", &params);
            }
            world.is_whole()
        });
    }

    fn members_agree(&mut self) {
        self.host.rpc("bdev_raid_start_scrub", r#"{"name":"r0"}"#).unwrap();
        self.until("compared", |world| {
            let state = world.array().unwrap()["scrub"]["state"].clone();
            state != "waiting" && state != "running"
        });
        let scrub = &self.array().unwrap()["scrub"];
        let outcome = (&scrub["state"], &scrub["mismatched_blocks"]);
        assert_eq!(outcome, (&json!("completed"), &json!(0)), "seed {} {scrub}", self.host.seed());
    }

    /// Takes blocks of whole stripes that may hold anything for what they hold.
    fn forgive(&mut self) {
        let (_, channels) = self.opened.as_ref().unwrap();
        for (at, allowed) in
            self.expected.blocks.iter_mut().enumerate().filter(|(_, allowed)| allowed.is_empty())
        {
            let done = self.host.wait(&channels[0].submit(Request::read(at as u64, 1)));
            assert!(done.status.is_success());
            self.expected.next += 1;
            let number = self.expected.next;
            let unit = 1;
            let write = Request::write(at as u64, unit, block_of(number));
            if self.case.level == "raid5" {
                assert!(self.host.wait(&channels[0].submit(write)).status.is_success());
                *allowed = vec![number];
            } else {
                *allowed = number_of(&done.data).into_iter().collect();
            }
        }
    }

    fn write_quietly(&mut self, rng: &Rng) {
        for _ in 0..3 {
            let unit = self.unit();
            let offset = rng.below(self.expected.blocks.len() as u64 / unit) * unit;
            self.expected.next += 1;
            let number = self.expected.next;
            let (_, channels) = self.opened.as_ref().unwrap();
            let data = block_of(number).repeat(unit as usize);
            assert!(
                self.host.wait(&channels[0].submit(Request::write(offset, unit, data))).status.is_success()
            );
            for allowed in &mut self.expected.blocks[offset as usize..(offset + unit) as usize] {
                *allowed = vec![number];
            }
        }
    }
}

fn runs(case: Case) {
    let number = |name: &str, default: u64| {
        std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
    };
    let first = number("RAID_CRASH_SEED", 1);
    for seed in first..first + number("RAID_CRASH_RUNS", 25) {
        run(case, seed);
    }
}

#[test]
fn s4_h_raid1_keeps_what_was_acknowledged_through_a_crash_at_any_point() {
    runs(Case::new("raid1", 2, 0, true));
    runs(Case::new("raid1", 3, 0, true));
}

/// The crash takes the record that goes with a superblock.
#[test]
fn s4_h_a_member_is_not_taken_for_one_that_went_its_own_way_because_of_a_crash() {
    run(Case::new("raid1", 2, 0, true), 635);
}

#[test]
fn s4_h_raid5_keeps_what_was_acknowledged_through_a_crash_at_any_point() {
    runs(Case::new("raid5", 3, 2, false));
    runs(Case::new("raid5", 5, 4, false));
}

#[test]
fn s4_h_raid5f_keeps_what_was_acknowledged_through_a_crash_at_any_point() {
    runs(Case::new("raid5f", 3, 2, true));
}

#[test]
fn s4_h_raid10_keeps_what_was_acknowledged_through_a_crash_at_any_point() {
    runs(Case::new("raid10", 4, 2, true));
}

#[test]
fn s4_h_an_array_with_a_spare_keeps_what_was_acknowledged_through_a_crash_at_any_point() {
    runs(Case::new("raid1", 2, 0, true).with_spare());
    runs(Case::new("raid5", 3, 2, false).with_spare());
}

#[test]
fn s4_h_raid0_and_concat_keep_what_was_acknowledged_through_a_crash_at_any_point() {
    runs(Case::new("raid0", 3, 2, false));
    runs(Case::new("concat", 2, 2, false));
}
