//! The model check: random I/O at some queue depth against a map of what each
//! block must hold. Concurrent I/Os never overlap, so every answer is decided.

use std::collections::BTreeMap;

use tenon_abi::{BdevFlags, IoStatus, Op};

use super::bench::{Bench, Opened, ensure};
use crate::consumer::{Io, Request};

enum Step {
    Read,
    Write(Vec<u8>),
    Zero,
    Forget,
    Compare(bool),
    Flush,
}

struct Running {
    io: Io,
    offset: u64,
    blocks: u64,
    step: Step,
}

/// What is known about a device's content. An absent block is unknown.
pub(super) struct Model<'a> {
    bench: &'a Bench<'a>,
    block: usize,
    known: BTreeMap<u64, Vec<u8>>,
    running: Vec<Running>,
    ops: Vec<Op>,
    /// Whether an I/O may fail, as on bases that fail: what it touched is unknown then.
    may_fail: bool,
    /// How many I/Os failed.
    pub(super) failures: usize,
}

impl<'a> Model<'a> {
    pub(super) fn new(bench: &'a Bench<'a>) -> Result<Model<'a>, String> {
        let info = bench.info()?;
        let read_only = info.flags.contains(BdevFlags::READ_ONLY);
        let writes = [Op::WRITE, Op::WRITE_ZEROES, Op::UNMAP];
        let candidates = [Op::READ, Op::WRITE, Op::WRITE_ZEROES, Op::UNMAP, Op::COMPARE, Op::FLUSH];
        let usable = |op: &Op| info.io_types & op.bit() != 0 && !(read_only && writes.contains(op));
        let ops = candidates.into_iter().filter(usable).collect();
        let block = bench.block()?;
        Ok(Model {
            bench,
            block,
            known: BTreeMap::new(),
            running: Vec::new(),
            ops,
            may_fail: false,
            failures: 0,
        })
    }

    /// Accepts failures; what a failed write touched is unknown.
    pub(super) fn may_fail(mut self) -> Self {
        self.may_fail = true;
        self
    }

    /// Submits `count` I/Os at a queue depth of up to `depth`, spread over the channels, and waits for all.
    pub(super) fn run(&mut self, opened: &[&Opened], count: usize, depth: usize) -> Result<(), String> {
        for nth in 0..count {
            while self.running.len() >= depth {
                self.land_one()?;
            }
            self.submit_one(opened[nth % opened.len()])?;
        }
        while !self.running.is_empty() {
            self.land_one()?;
        }
        Ok(())
    }

    /// Reads everything known once more.
    pub(super) fn verify(&mut self, opened: &Opened) -> Result<(), String> {
        let blocks: Vec<u64> = self.known.keys().copied().collect();
        for offset in blocks {
            let io = opened.channel.submit(Request::read(offset, 1));
            self.running.push(Running { io, offset, blocks: 1, step: Step::Read });
            self.land_one()?;
        }
        Ok(())
    }

    fn submit_one(&mut self, opened: &Opened) -> Result<(), String> {
        let rng = &self.bench.rng;
        let (offset, blocks) = self.bench.range(rng, MOST_BLOCKS)?;
        let overlaps =
            |other: &Running| other.offset < offset + blocks && offset < other.offset + other.blocks;
        if self.running.iter().any(overlaps) {
            return Ok(());
        }
        let bytes = blocks as usize * self.block;
        let zeroes = self.bench.info()?.flags.contains(BdevFlags::UNMAP_READS_ZEROES);
        let Some(op) = self.ops.get(rng.index(self.ops.len())).copied() else { return Ok(()) };
        let (request, step) = match op {
            Op::WRITE => {
                let data = rng.bytes(bytes);
                (Request::write(offset, blocks, data.clone()).pieces(&self.pieces(bytes)), Step::Write(data))
            }
            Op::WRITE_ZEROES => (Request::write_zeroes(offset, blocks), Step::Zero),
            Op::UNMAP => (Request::unmap(offset, blocks), if zeroes { Step::Zero } else { Step::Forget }),
            Op::COMPARE => match self.content(offset, blocks) {
                Some(mut data) => {
                    let is_equal = rng.chance(700);
                    if !is_equal {
                        let at = rng.index(data.len());
                        data[at] ^= 1 << rng.below(8);
                    }
                    (Request::compare(offset, blocks, data), Step::Compare(is_equal))
                }
                None => (Request::read(offset, blocks), Step::Read),
            },
            Op::FLUSH => (Request::flush(), Step::Flush),
            _ => (Request::read(offset, blocks).pieces(&self.pieces(bytes)), Step::Read),
        };
        let io = opened.channel.submit(request);
        self.running.push(Running { io, offset, blocks, step });
        Ok(())
    }

    fn pieces(&self, bytes: usize) -> Vec<usize> {
        let rng = &self.bench.rng;
        match rng.below(3) {
            0 => Vec::new(),
            1 => vec![512; rng.index(1 + bytes / 512)],
            _ => (0..rng.below(5)).map(|_| 1 + rng.index(bytes)).collect(),
        }
    }

    fn content(&self, offset: u64, blocks: u64) -> Option<Vec<u8>> {
        if !self.bench.suite.stores_data {
            return None;
        }
        let known: Option<Vec<&Vec<u8>>> =
            (offset..offset + blocks).map(|block| self.known.get(&block)).collect();
        Some(known?.into_iter().flatten().copied().collect())
    }

    /// Waits for one of the running I/Os and judges it.
    fn land_one(&mut self) -> Result<(), String> {
        let nth = self.running.iter().position(|running| running.io.is_done());
        let running = self.running.remove(nth.unwrap_or(0));
        let completion = self.bench.wait(&running.io)?;
        let Running { io, offset, blocks, step } = running;
        ensure!(io.completions() == 1, "{io:?} completed {} times", io.completions());
        let expected = match step {
            Step::Compare(false) => IoStatus::MISCOMPARE,
            Step::Read | Step::Write(_) | Step::Zero | Step::Forget | Step::Compare(true) | Step::Flush => {
                IoStatus::SUCCESS
            }
        };
        if self.may_fail && completion.status != expected {
            self.failures += 1;
            if !matches!(step, Step::Read | Step::Compare(_) | Step::Flush) {
                self.forget(offset, blocks);
            }
            return Ok(());
        }
        ensure!(completion.status == expected, "{io:?} ended with {:?}", completion.status);
        match step {
            Step::Write(data) => self.learn(offset, &data),
            Step::Zero => self.learn(offset, &vec![0; blocks as usize * self.block]),
            Step::Forget => self.forget(offset, blocks),
            Step::Read => return self.judge_read(offset, &completion.data),
            Step::Compare(_) | Step::Flush => {}
        }
        Ok(())
    }

    fn judge_read(&mut self, offset: u64, data: &[u8]) -> Result<(), String> {
        if !self.bench.suite.stores_data {
            return Ok(());
        }
        for (nth, found) in data.chunks(self.block).enumerate() {
            let block = offset + nth as u64;
            if let Some(known) = self.known.get(&block)
                && known != found
            {
                let at = known.iter().zip(found).position(|(a, b)| a != b).unwrap_or(0);
                return Err(format!("block {block} reads wrong data from byte {at} on"));
            }
        }
        // What was unknown is known from now on.
        self.learn(offset, data);
        Ok(())
    }

    fn learn(&mut self, offset: u64, data: &[u8]) {
        for (nth, block) in data.chunks(self.block).enumerate() {
            self.known.insert(offset + nth as u64, block.to_vec());
        }
    }

    fn forget(&mut self, offset: u64, blocks: u64) {
        (offset..offset + blocks).for_each(|block| {
            self.known.remove(&block);
        });
    }
}

const MOST_BLOCKS: u64 = 32;
