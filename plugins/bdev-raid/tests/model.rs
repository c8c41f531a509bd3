//! Each level against a flat array of bytes, under random I/O, members that fail,
//! go and return, rebuilds, and restarts from what is on the members.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use serde_json::{Value, json};
use tenon_sdk::{IoStatus, abi::Op};
use tenon_testkit::{Access, BaseSpec, Channel, Descriptor, FakeHost, FaultPlan, Request, Rng, TestBase};

const BLOCKS: u64 = 2048 + 256;

struct World {
    host: FakeHost,
    bases: Vec<Option<TestBase>>,
    /// What a member held when it went.
    left_behind: Vec<Vec<u8>>,
    opened: Option<(Descriptor, Vec<Channel>)>,
    is_redundant: bool,
    /// The member that takes no writes; the array may not have noticed yet.
    faulty: Option<usize>,
}

fn base_spec(nth: usize) -> BaseSpec {
    BaseSpec::new(&format!("b{nth}"), 512, BLOCKS).uuid([nth as u8 + 1; 16])
}

impl World {
    fn start(seed: u64, images: &[Option<Vec<u8>>], is_redundant: bool) -> World {
        let host = FakeHost::new(seed);
        let mut bases = Vec::new();
        for (nth, image) in images.iter().enumerate() {
            bases.push(image.as_ref().map(|image| {
                let base = host.add_base(base_spec(nth));
                base.write_bytes(0, image);
                base
            }));
        }
        let left_behind = vec![vec![0; BLOCKS as usize * 512]; images.len()];
        World { host, bases, left_behind, opened: None, is_redundant, faulty: None }
    }

    fn open(&mut self) {
        let is_online = self.host.run_until(Duration::from_secs(10), || self.host.device("r0").is_some());
        assert!(is_online, "seed {}: {} {:#?}", self.host.seed(), self.status(), self.host.logs());
        self.host.settle();
        let descriptor = self.host.open("r0", Access::Write).unwrap();
        let channels = (0..2).map(|reactor| descriptor.channel(reactor).unwrap()).collect();
        self.opened = Some((descriptor, channels));
    }

    fn status(&self) -> Value {
        let all = self.host.rpc("bdev_raid_get_bdevs", r#"{"category":"all"}"#).unwrap();
        serde_json::from_str::<Vec<Value>>(&all).unwrap().remove(0)
    }

    fn is_whole(&self) -> bool {
        let status = self.status();
        status["num_base_bdevs_operational"] == status["num_base_bdevs"] && status.get("process").is_none()
    }

    /// Something happens to a member.
    fn disturb(&mut self, rng: &Rng) {
        let nth = rng.index(self.bases.len());
        let is_untouched = self.faulty.is_none() && self.bases.iter().all(Option::is_some);
        let may_lose = self.is_redundant && is_untouched && self.is_whole();
        match (rng.below(4), self.bases[nth].clone()) {
            (0, Some(base)) if may_lose => {
                self.left_behind[nth] = base.bytes(0, BLOCKS);
                base.remove();
                self.bases[nth] = None;
            }
            (1, Some(base)) if may_lose => {
                base.set_plan(FaultPlan::none().fail_op(Op::WRITE, IoStatus::IO_ERROR));
                self.faulty = Some(nth);
            }
            (_, None) => {
                let name = format!("b{nth}");
                if self.host.device(&name).is_none() {
                    let base = self.host.add_base(base_spec(nth));
                    base.write_bytes(0, &self.left_behind[nth]);
                    assert!(self.host.examine(&name));
                    self.bases[nth] = Some(base);
                }
            }
            (_, Some(base)) => {
                base.set_plan(FaultPlan::none().delay_ns(0, 20_000).reorder(8));
                self.faulty = self.faulty.filter(|faulty| *faulty != nth);
                // One that failed and works again.
                let params = json!({ "raid_bdev": "r0", "base_bdev": base.name() }).to_string();
                let _ = self.host.rpc("bdev_raid_add_base_bdev", &params);
            }
        }
    }

    fn images(&self) -> Vec<Option<Vec<u8>>> {
        let image = |nth: usize| match &self.bases[nth] {
            Some(base) => base.bytes(0, BLOCKS),
            None => self.left_behind[nth].clone(),
        };
        (0..self.bases.len()).map(|nth| Some(image(nth))).collect()
    }
}

/// A batch of I/Os that do not overlap, some of them under way while a member changes.
fn batch(world: &mut World, rng: &Rng, flat: &mut [u8], unit: u64) {
    let blocks_total = flat.len() as u64 / 512;
    let (_, channels) = world.opened.as_ref().unwrap();
    let mut ios = Vec::new();
    let mut used: Vec<(u64, u64)> = Vec::new();
    for _ in 0..12 {
        let is_write = rng.chance(500);
        let step = if is_write { unit } else { 1 };
        let blocks = rng.between(1, 3) * step;
        let offset = rng.below((blocks_total - blocks) / step + 1) * step;
        if used.iter().any(|(at, len)| offset < at + len && *at < offset + blocks) {
            continue;
        }
        used.push((offset, blocks));
        let channel = &channels[rng.index(channels.len())];
        if is_write {
            let data = rng.bytes(blocks as usize * 512);
            let at = offset as usize * 512;
            flat[at..at + data.len()].copy_from_slice(&data);
            ios.push((channel.submit(Request::write(offset, blocks, data)), offset, false));
        } else {
            ios.push((channel.submit(Request::read(offset, blocks)), offset, true));
        }
    }
    world.host.advance(Duration::from_nanos(rng.below(30_000)));
    if rng.chance(300) {
        world.disturb(rng);
    }
    for (io, offset, is_read) in ios {
        let done = world.host.run_until(Duration::from_secs(20), || io.is_done());
        assert!(done, "{io:?} hangs: {}", world.status());
        let done = io.completion().unwrap();
        let seed = world.host.seed();
        assert!(
            done.status.is_success(),
            "seed {seed} {io:?} {:?} {} {:#?}",
            done.status,
            world.status(),
            world.host.logs()
        );
        if is_read {
            let at = offset as usize * 512;
            assert!(
                done.data == flat[at..at + done.data.len()],
                "{io:?} reads other data: {}",
                world.status()
            );
        }
    }
}

fn verify(world: &World, flat: &[u8]) {
    let (_, channels) = world.opened.as_ref().unwrap();
    for (nth, expected) in flat.chunks(8 * 512).enumerate() {
        let io = channels[0].submit(Request::read(nth as u64 * 8, expected.len() as u64 / 512));
        let done = world.host.wait(&io);
        assert!(
            done.status.is_success() && done.data == expected,
            "seed {} blocks at {} {:?}: {} {:#?}",
            world.host.seed(),
            nth * 8,
            done.status,
            world.status(),
            world.host.logs()
        );
    }
}

fn run(level: &str, members: usize, strip_kb: u32, seed: u64) {
    let is_redundant = matches!(level, "raid1" | "raid10" | "raid5" | "raid5f");
    let bases: Vec<String> = (0..members).map(|nth| format!("b{nth}")).collect();
    let params = json!({ "name": "r0", "level": level, "strip_size_kb": strip_kb, "base_bdevs": bases,
        "superblock": true, "bitmap": is_redundant && seed.is_multiple_of(2) });
    let blank = vec![Some(vec![0; BLOCKS as usize * 512]); members];
    let options = r#"{"process_window_size_kb":16}"#;
    let mut world = World::start(seed, &blank, is_redundant);
    let module = world.host.load(bdev_raid::plugin, options).unwrap();
    world.host.create(module, &params.to_string()).unwrap();
    world.open();
    let info = world.host.device("r0").unwrap();
    let mut flat = vec![0; info.limits.num_blocks as usize * 512];
    let unit = u64::from(info.limits.write_unit.max(1));
    let rng = world.host.rng();
    for life in 0..3 {
        for _ in 0..25 {
            batch(&mut world, &rng, &mut flat, unit);
        }
        verify(&world, &flat);
        let images = world.images();
        let (descriptor, channels) = world.opened.take().unwrap();
        channels.iter().for_each(Channel::put);
        descriptor.close();
        // A restart from what the members held: some may be out of date, and are rebuilt or left out.
        drop((channels, descriptor, world));
        world = World::start(seed + 1000 * (life + 1), &images, is_redundant);
        world.host.load(bdev_raid::plugin, options).unwrap();
        world.open();
        verify(&world, &flat);
    }
    let (descriptor, channels) = world.opened.take().unwrap();
    channels.iter().for_each(Channel::put);
    descriptor.close();
}

fn seeds(count: u64) -> impl Iterator<Item = u64> {
    let count = std::env::var("RAID_MODEL_SEEDS").ok().and_then(|text| text.parse().ok()).unwrap_or(count);
    1..=count
}

#[test]
fn raid0_is_a_flat_array() {
    seeds(8).for_each(|seed| run("raid0", 3, 4, seed));
}

#[test]
fn concat_is_a_flat_array() {
    seeds(8).for_each(|seed| run("concat", 3, 4, seed));
}

#[test]
fn raid1_is_a_flat_array_whatever_happens_to_one_member() {
    seeds(20).for_each(|seed| run("raid1", 2, 0, seed));
    seeds(20).for_each(|seed| run("raid1", 3, 0, seed));
}

#[test]
fn raid5f_is_a_flat_array_whatever_happens_to_one_member() {
    seeds(20).for_each(|seed| run("raid5f", 3, 2, seed));
    seeds(20).for_each(|seed| run("raid5f", 5, 2, seed));
}

#[test]
fn raid10_is_a_flat_array_whatever_happens_to_one_member() {
    seeds(20).for_each(|seed| run("raid10", 4, 2, seed));
    seeds(10).for_each(|seed| run("raid10", 6, 4, seed));
}

#[test]
fn raid5_is_a_flat_array_whatever_happens_to_one_member() {
    seeds(15).for_each(|seed| run("raid5", 3, 2, seed));
    seeds(15).for_each(|seed| run("raid5", 5, 4, seed));
}
