//! Devices with metadata against a model that keeps data and metadata of each
//! block together, and what an I/O without a metadata buffer does.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use tenon_sdk::IoStatus;
use tenon_testkit::{
    Access, Channel, Completion, Conformance, Descriptor, FakeHost, Request, bdev_conformance,
};

const BLOCK: usize = 512;
/// Above 1 MiB, so that zeroing is done in pieces.
const BLOCKS: u64 = 6000;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Layout {
    Separate,
    Interleaved,
}

struct Rig {
    host: FakeHost,
    layout: Layout,
    md: usize,
    descriptor: Descriptor,
    channel: Channel,
}

/// Data and metadata of some blocks.
#[derive(Clone, PartialEq, Eq)]
struct Content {
    data: Vec<u8>,
    metadata: Vec<u8>,
}

fn rig(layout: Layout, md: usize, seed: u64) -> Rig {
    let host = FakeHost::new(seed);
    let module = host.load(bdev_malloc::plugin, "{}").unwrap();
    let interleaved = layout == Layout::Interleaved;
    let params = format!(
        r#"{{"name":"m0","num_blocks":{BLOCKS},"md_size":{md},"md_interleave":{interleaved},
            "optimal_io_boundary":8}}"#
    );
    host.create(module, &params).unwrap();
    let descriptor = host.open("m0", Access::Write).unwrap();
    let channel = descriptor.channel(0).unwrap();
    Rig { host, layout, md, descriptor, channel }
}

impl Rig {
    fn run(&self, request: Request) -> Completion {
        self.host.wait(&self.channel.submit(request))
    }

    /// The payload of a request and the metadata that goes beside it.
    fn with(&self, content: &Content, request: impl Fn(Vec<u8>) -> Request) -> Request {
        match self.layout {
            Layout::Separate => request(content.data.clone()).metadata(content.metadata.clone()),
            Layout::Interleaved => {
                let blocks = content.data.chunks(BLOCK).zip(content.metadata.chunks(self.md));
                request(blocks.flat_map(|(data, metadata)| [data, metadata].concat()).collect())
            }
        }
    }

    fn read(&self, first: u64, blocks: u64) -> Content {
        let request = Request::read(first, blocks);
        match self.layout {
            Layout::Separate => {
                let done = self.run(request.metadata(vec![0xEE; blocks as usize * self.md]));
                assert_eq!(done.status, IoStatus::SUCCESS);
                Content { data: done.data, metadata: done.metadata }
            }
            Layout::Interleaved => {
                let done = self.run(request);
                assert_eq!(done.status, IoStatus::SUCCESS);
                let (mut data, mut metadata) = (Vec::new(), Vec::new());
                for block in done.data.chunks(BLOCK + self.md) {
                    data.extend_from_slice(&block[..BLOCK]);
                    metadata.extend_from_slice(&block[BLOCK..]);
                }
                Content { data, metadata }
            }
        }
    }

    fn finish(self) {
        self.channel.put();
        self.descriptor.close();
        let violations = self.host.finish();
        assert!(violations.is_empty(), "{violations:?}");
    }
}

/// What the device must hold.
struct Model {
    md: usize,
    all: Content,
}

impl Model {
    fn get(&self, first: u64, blocks: u64) -> Content {
        let part =
            |bytes: &[u8], size| bytes[first as usize * size..(first + blocks) as usize * size].to_vec();
        Content { data: part(&self.all.data, BLOCK), metadata: part(&self.all.metadata, self.md) }
    }

    fn set(&mut self, first: u64, content: &Content) {
        let at = first as usize;
        self.all.data[at * BLOCK..][..content.data.len()].copy_from_slice(&content.data);
        self.all.metadata[at * self.md..][..content.metadata.len()].copy_from_slice(&content.metadata);
    }
}

#[track_caller]
fn behaves_like_the_model(layout: Layout, md: usize, seed: u64) {
    let rig = rig(layout, md, seed);
    let rng = rig.host.rng();
    let zeroes = |blocks: u64| Content {
        data: vec![0; blocks as usize * BLOCK],
        metadata: vec![0; blocks as usize * md],
    };
    let mut model = Model { md, all: zeroes(BLOCKS) };
    for step in 0..400 {
        let blocks = rng.between(1, 40);
        // Few blocks, so that requests meet what others wrote.
        let first = rng.below(200);
        let fresh =
            Content { data: rng.bytes(blocks as usize * BLOCK), metadata: rng.bytes(blocks as usize * md) };
        let known = model.get(first, blocks);
        let what = rng.below(7);
        let name = format!("{layout:?} md {md} seed {seed} step {step}: {what} of {blocks} at {first}");
        match what {
            0 => assert!(rig.read(first, blocks) == known, "{name}"),
            1 | 2 => {
                let done = rig.run(rig.with(&fresh, |data| Request::write(first, blocks, data)));
                assert_eq!(done.status, IoStatus::SUCCESS, "{name}");
                model.set(first, &fresh);
            }
            3 => {
                let done = rig.run(rig.with(&known, |data| Request::compare(first, blocks, data)));
                assert_eq!(done.status, IoStatus::SUCCESS, "{name}");
                let mut other = known;
                *other.metadata.last_mut().unwrap() ^= 1;
                let done = rig.run(rig.with(&other, |data| Request::compare(first, blocks, data)));
                assert_eq!(done.status, IoStatus::MISCOMPARE, "{name}");
            }
            4 | 5 => {
                let large = if rng.chance(100) { 4000 } else { blocks };
                let request = if what == 4 {
                    Request::unmap(first, large)
                } else {
                    Request::write_zeroes(first, large)
                };
                assert_eq!(rig.run(request).status, IoStatus::SUCCESS, "{name}");
                model.set(first, &zeroes(large));
            }
            _ => {
                let sources = [(500 + rng.below(100), blocks), (first, blocks)];
                let mut copied = model.get(sources[0].0, blocks);
                copied.data.extend(known.data);
                copied.metadata.extend(known.metadata);
                let to = 300 + rng.below(100);
                assert_eq!(rig.run(Request::copy(to, &sources)).status, IoStatus::SUCCESS, "{name}");
                model.set(to, &copied);
            }
        }
    }
    for first in (0..BLOCKS).step_by(1000) {
        assert!(rig.read(first, 1000) == model.get(first, 1000), "{layout:?} md {md} seed {seed} at {first}");
    }
    rig.finish();
}

#[test]
fn data_and_metadata_stay_together_in_every_operation() {
    for (seed, md) in (1..).zip([8, 16, 32, 64, 128]) {
        behaves_like_the_model(Layout::Separate, md, seed);
        behaves_like_the_model(Layout::Interleaved, md, seed);
    }
}

#[test]
fn without_a_buffer_for_it_separate_metadata_stays_as_it_is() {
    let rig = rig(Layout::Separate, 8, 1);
    let first = Content { data: vec![1; BLOCK], metadata: vec![2; 8] };
    assert!(rig.run(rig.with(&first, |data| Request::write(3, 1, data))).status.is_success());
    assert!(rig.run(Request::write(3, 1, vec![5; BLOCK])).status.is_success());
    let found = rig.read(3, 1);
    assert_eq!((found.data, found.metadata), (vec![5; BLOCK], vec![2; 8]));
    assert_eq!(rig.run(Request::read(3, 1)).data, vec![5; BLOCK]);
    assert!(rig.run(Request::compare(3, 1, vec![5; BLOCK])).status.is_success());
    rig.finish();
}

#[test]
fn lent_data_comes_with_its_separate_metadata() {
    let rig = rig(Layout::Separate, 16, 1);
    let content = Content { data: vec![7; 2 * BLOCK], metadata: (0..32).collect() };
    assert!(rig.run(rig.with(&content, |data| Request::write(8, 2, data))).status.is_success());
    let io = rig.channel.submit(Request::read_lent(8, 2).metadata(vec![0; 32]));
    let done = rig.host.wait(&io);
    assert!(done.is_lent);
    assert_eq!((done.data, done.metadata), (content.data, content.metadata));
    rig.channel.release(&io);
    rig.finish();
}

#[test]
fn a_buffer_too_short_for_the_metadata_is_refused_before_anything_changes() {
    let rig = rig(Layout::Separate, 8, 1);
    let short = Request::write(0, 2, vec![9; 2 * BLOCK]).metadata(vec![9; 8]);
    assert_eq!(rig.run(short).status, IoStatus::INVALID);
    assert_eq!(rig.run(Request::read(0, 2).metadata(vec![0; 8])).status, IoStatus::INVALID);
    assert_eq!(
        rig.run(Request::compare(0, 2, vec![0; 2 * BLOCK]).metadata(vec![0; 8])).status,
        IoStatus::INVALID
    );
    assert_eq!(rig.read(0, 2).data, vec![0; 2 * BLOCK]);
    rig.finish();
}

#[test]
fn conforms_with_separate_metadata() {
    bdev_conformance(bdev_malloc::plugin, Conformance::new(r#"{"name":"m0","size":"16MiB","md_size":8}"#));
}

#[test]
fn conforms_with_interleaved_metadata() {
    let params = r#"{"name":"m0","num_blocks":2048,"block_size":4096,"md_size":64,"md_interleave":true}"#;
    bdev_conformance(bdev_malloc::plugin, Conformance::new(params));
}
