//! What a worker does next: kind and place of each I/O, and when there is
//! nothing more to do. Decides by the workload, the random sequence and, while
//! verifying, by what is in flight: two I/Os never meet on one chunk then, so
//! that what must be found is never in doubt.

use std::sync::Arc;

use tenon_abi::Op;

use crate::access::Walk;
use crate::ledger::Ledger;
use crate::random::Random;
use crate::stage::Pass;
use crate::workload::{End, Workload};

/// Kind of an I/O.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    #[default]
    Read,
    Write,
    Unmap,
    Flush,
}

/// One I/O. Chunks are counted from the begin of the device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Request {
    pub kind: Kind,
    pub chunk: u64,
}

/// The answer to "what next".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    Io(Request),
    /// Nothing until something in flight is done.
    Wait,
    /// Nothing more in this pass.
    End,
}

/// The part of a device that a worker works on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    pub first: u64,
    pub chunks: u64,
    /// Where a sequential walk begins, from `first`.
    pub start: u64,
}

/// Makes the requests of one worker.
pub(crate) struct Generator {
    part: Part,
    walk: Walk,
    random: Random,
    /// Of 2^32.
    unmaps_below: u64,
    reads_below: u64,
    flush_every: u64,
    writes_to_flush: u64,
    /// I/Os of the load that are left.
    left: u64,
    /// The next chunk of a pass over the device.
    cursor: u64,
    ledger: Option<Arc<Ledger>>,
    in_flight: Option<InFlight>,
    postponed: Option<Request>,
}

/// A bit for each chunk of a part.
struct InFlight(Box<[u64]>);

impl Kind {
    pub(crate) const COUNT: usize = 4;
    pub(crate) const ALL: [Kind; Kind::COUNT] = [Kind::Read, Kind::Write, Kind::Unmap, Kind::Flush];

    #[inline(always)]
    pub(crate) fn op(self) -> Op {
        match self {
            Kind::Read => Op::READ,
            Kind::Write => Op::WRITE,
            Kind::Unmap => Op::UNMAP,
            Kind::Flush => Op::FLUSH,
        }
    }

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Kind::Read => "read",
            Kind::Write => "write",
            Kind::Unmap => "unmap",
            Kind::Flush => "flush",
        }
    }
}

impl Generator {
    /// Requests for `part`; with a ledger, such that what must be found stays known.
    pub(crate) fn new(
        workload: &Workload,
        part: Part,
        share: u64,
        seed: u64,
        ledger: Option<Arc<Ledger>>,
    ) -> Self {
        let unmaps_below = (u64::from(workload.unmap_percent) << 32) / 100;
        let data = (1 << 32) - unmaps_below;
        Generator {
            part,
            walk: Walk::new(workload.access, part.chunks, part.start),
            random: Random::new(seed),
            unmaps_below,
            reads_below: unmaps_below + data * u64::from(workload.read_percent) / 100,
            flush_every: workload.flush_every,
            writes_to_flush: workload.flush_every,
            left: match workload.end {
                End::After(_) | End::Never => u64::MAX,
                End::Ios(ios) => ios.div_ceil(share),
                End::Bytes(bytes) => bytes.div_ceil(workload.block_bytes).div_ceil(share),
            },
            cursor: 0,
            in_flight: ledger.is_some().then(|| InFlight::new(part.chunks)),
            ledger,
            postponed: None,
        }
    }

    /// A pass begins.
    pub(crate) fn begin(&mut self, _: Pass) {
        self.cursor = 0;
        self.postponed = None;
    }

    /// The next request of a pass.
    #[inline(always)]
    pub(crate) fn next(&mut self, pass: Pass) -> Next {
        match pass {
            Pass::Load => self.next_of_load(),
            Pass::Fill => self.next_chunk(Kind::Write, |_, _| true),
            Pass::Check | Pass::Recheck => {
                self.next_chunk(Kind::Read, |ledger, chunk| ledger.is_known(chunk))
            }
        }
    }

    #[inline(always)]
    fn next_of_load(&mut self) -> Next {
        if self.left == 0 {
            return Next::End;
        }
        if self.in_flight.is_some() {
            return self.next_apart();
        }
        self.left -= 1;
        Next::Io(self.draw())
    }

    #[inline(always)]
    fn draw(&mut self) -> Request {
        let number = self.random.next();
        let low = number & 0xffff_ffff;
        let kind = if low < self.unmaps_below {
            Kind::Unmap
        } else if low < self.reads_below {
            Kind::Read
        } else {
            Kind::Write
        };
        if self.flush_every > 0 && kind == Kind::Write {
            if self.writes_to_flush == 0 {
                self.writes_to_flush = self.flush_every;
                return Request { kind: Kind::Flush, chunk: 0 };
            }
            self.writes_to_flush -= 1;
        }
        let chunk = self.walk.next(number, &mut self.random, self.part.chunks);
        Request { kind, chunk: self.part.first + chunk }
    }

    /// As `draw`, but away from what is in flight.
    #[cold]
    fn next_apart(&mut self) -> Next {
        let request = self.postponed.take().unwrap_or_else(|| self.draw());
        let Some(in_flight) = &mut self.in_flight else { return Next::Io(request) };
        if request.kind == Kind::Flush {
            self.left -= 1;
            return Next::Io(request);
        }
        let wanted = request.chunk - self.part.first;
        for step in 0..PROBES.min(self.part.chunks) {
            let chunk = (wanted + step) % self.part.chunks;
            if in_flight.begin(chunk) {
                self.left -= 1;
                return Next::Io(Request { chunk: self.part.first + chunk, ..request });
            }
        }
        self.postponed = Some(request);
        Next::Wait
    }

    #[cold]
    fn next_chunk(&mut self, kind: Kind, wanted: impl Fn(&Ledger, u64) -> bool) -> Next {
        while self.cursor < self.part.chunks {
            let chunk = self.part.first + self.cursor;
            self.cursor += 1;
            if self.ledger.as_deref().is_none_or(|ledger| wanted(ledger, chunk)) {
                // Each chunk is visited once, so that nothing of the pass can meet it.
                if let Some(in_flight) = &mut self.in_flight {
                    in_flight.begin(chunk - self.part.first);
                }
                return Next::Io(Request { kind, chunk });
            }
        }
        Next::End
    }

    /// An I/O is done.
    pub(crate) fn done(&mut self, request: Request) {
        if let Some(in_flight) = &mut self.in_flight
            && request.kind != Kind::Flush
        {
            in_flight.end(request.chunk - self.part.first);
        }
    }
}

impl InFlight {
    fn new(chunks: u64) -> Self {
        InFlight(vec![0; chunks.div_ceil(64) as usize].into_boxed_slice())
    }

    /// False if it is in flight already.
    fn begin(&mut self, chunk: u64) -> bool {
        let (word, bit) = (&mut self.0[(chunk / 64) as usize], 1 << (chunk % 64));
        let is_free = *word & bit == 0;
        *word |= bit;
        is_free
    }

    fn end(&mut self, chunk: u64) {
        self.0[(chunk / 64) as usize] &= !(1 << (chunk % 64));
    }
}

/// How many chunks are tried before the worker waits for one to become free.
const PROBES: u64 = 64;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::Geometry;
    use crate::workload::Access;

    const PART: Part = Part { first: 100, chunks: 64, start: 0 };

    fn generator(workload: &Workload) -> Generator {
        let geometry = Geometry { block_size: 512, chunk_bytes: 4096, chunks: 200 };
        let ledger = workload.verify.then(|| Arc::new(Ledger::in_memory(geometry, 1).unwrap()));
        Generator::new(workload, PART, 1, 5, ledger)
    }

    fn ios(generator: &mut Generator, pass: Pass) -> Vec<Request> {
        generator.begin(pass);
        let mut found = Vec::new();
        while let Next::Io(request) = generator.next(pass) {
            found.push(request);
            generator.done(request);
        }
        found
    }

    #[test]
    fn the_mix_is_what_was_asked_for_and_the_end_is_exact() {
        let workload =
            Workload { read_percent: 70, unmap_percent: 10, end: End::Ios(100_000), ..Workload::default() };
        let found = ios(&mut generator(&workload), Pass::Load);
        let count = |kind| found.iter().filter(|request| request.kind == kind).count();
        assert_eq!(found.len(), 100_000);
        assert!(count(Kind::Read).abs_diff(63_000) < 1_000, "{}", count(Kind::Read));
        assert!(count(Kind::Write).abs_diff(27_000) < 1_000, "{}", count(Kind::Write));
        assert!(count(Kind::Unmap).abs_diff(10_000) < 1_000, "{}", count(Kind::Unmap));
        assert!(found.iter().all(|request| (100..164).contains(&request.chunk)));
    }

    #[test]
    fn a_flush_comes_after_so_many_writes() {
        let workload = Workload { read_percent: 0, flush_every: 3, end: End::Ios(12), ..Workload::default() };
        let kinds: Vec<Kind> = ios(&mut generator(&workload), Pass::Load).iter().map(|io| io.kind).collect();
        use Kind::{Flush, Write};
        assert_eq!(
            kinds,
            [Write, Write, Write, Flush, Write, Write, Write, Flush, Write, Write, Write, Flush]
        );
    }

    #[test]
    fn a_size_ends_the_load_at_the_last_block_that_is_needed() {
        let workload = Workload { end: End::Bytes(4096 * 3 + 1), ..Workload::default() };
        assert_eq!(ios(&mut generator(&workload), Pass::Load).len(), 4);
    }

    #[test]
    fn while_verifying_no_two_ios_meet_on_a_chunk() {
        let workload = Workload {
            read_percent: 50,
            verify: true,
            access: Access::Zipf { theta: 2.0 },
            end: End::Never,
            ..Workload::default()
        };
        let mut generator = generator(&workload);
        let mut in_flight: Vec<Request> = Vec::new();
        while let Next::Io(request) = generator.next(Pass::Load) {
            assert!(in_flight.iter().all(|other| other.chunk != request.chunk));
            in_flight.push(request);
        }
        assert_eq!((generator.next(Pass::Load), in_flight.len()), (Next::Wait, 64));
        generator.done(in_flight[7]);
        let Next::Io(request) = generator.next(Pass::Load) else { panic!("a chunk is free") };
        assert_eq!(request.chunk, in_flight[7].chunk);
    }

    #[test]
    fn a_check_reads_what_is_known_and_a_fill_writes_everything() {
        let workload = Workload { verify: true, ..Workload::default() };
        let mut generator = generator(&workload);
        assert_eq!(ios(&mut generator, Pass::Check), []);
        assert_eq!(ios(&mut generator, Pass::Fill).len(), 64);
        let ledger = generator.ledger.clone().unwrap();
        for chunk in [103, 150] {
            ledger.begin_write(chunk);
            ledger.settle(chunk);
        }
        let read = |chunk| Request { kind: Kind::Read, chunk };
        assert_eq!(ios(&mut generator, Pass::Recheck), [read(103), read(150)]);
    }
}
