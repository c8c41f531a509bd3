//! Tests of the data path on raw channels, without a host: tokens, per-I/O
//! state, forwarding, fan-out, lending, and what a layer costs.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;

use tenon_abi::{IoFlags, IoStatus, Op};

use crate::rig::{Gate, Request, pieces};
use crate::stub;
use crate::{
    BaseChannel, BdevOp, Channel, ChildDone, Children, Fan, Forwarded, Io, IoBatch, IoQueue, Lender,
    Released, SharedBuf, Upcoming, Victim,
};

fn block(fill: impl Fn(usize) -> u8) -> SharedBuf {
    let mut memory = stub::host().alloc(8192, 4096, -1).unwrap();
    memory.as_mut_slice().iter_mut().enumerate().for_each(|(at, byte)| *byte = fill(at));
    memory.share()
}

/// Memory behind a channel, with a hook for failures.
struct Leaf {
    lender: Lender,
    fail_next: Cell<u32>,
    seen: RefCell<Vec<(BdevOp, u64, u64)>>,
}

impl Leaf {
    fn new() -> Rc<Leaf> {
        let lender = Lender::new(Arc::new(block(|at| (at % 251) as u8)));
        Rc::new(Leaf { lender, fail_next: Cell::new(0), seen: RefCell::default() })
    }
}

impl Channel for Leaf {
    type PerIo = ();

    fn submit(&self, io: Io<Self>) {
        self.seen.borrow_mut().push((io.op(), io.offset_blocks(), io.num_blocks()));
        let at = io.offset_blocks() * 512;
        if self.fail_next.get() > 0 {
            self.fail_next.set(self.fail_next.get() - 1);
            return io.complete(IoStatus::IO_ERROR);
        }
        match io.op() {
            BdevOp::Read => {
                let len = io.num_blocks() * 512;
                self.lender.complete_read(io, at, len);
            }
            BdevOp::Write => {
                let status = io.write_to(self.lender.memory(), at);
                io.complete(status);
            }
            BdevOp::Compare => {
                let status = io.compare_with(self.lender.memory(), at);
                io.complete(status);
            }
            _ => io.complete(IoStatus::NOT_SUPPORTED),
        }
    }

    fn lender(&self) -> Option<&Lender> {
        Some(&self.lender)
    }
}

/// Tries a failed child three times more; moves everything by one block.
struct Retry {
    base: BaseChannel,
}

impl Retry {
    fn go(&self, io: Io<Self>) {
        io.forward_with(
            &self.base,
            |child| child.set_offset_blocks(child.offset_blocks() + 1),
            |channel: &Self, mut io: Forwarded<Self>| {
                if io.status().is_success() || *io.context_mut() == 3 {
                    return io.complete();
                }
                *io.context_mut() += 1;
                channel.go(io.into_io());
            },
        );
    }
}

impl Channel for Retry {
    type PerIo = u32;

    fn submit(&self, io: Io<Self>) {
        assert_eq!(*io.context(), 0, "state starts from its default");
        self.go(io);
    }

    fn base(&self) -> Option<&BaseChannel> {
        Some(&self.base)
    }
}

struct Pass {
    base: BaseChannel,
}

impl Channel for Pass {
    type PerIo = ();

    #[inline]
    fn submit(&self, io: Io<Self>) {
        io.pass(&self.base);
    }

    fn base(&self) -> Option<&BaseChannel> {
        Some(&self.base)
    }
}

#[derive(Default)]
struct Tracked {
    _name: String,
    mark: u64,
}

/// Holds everything until told.
struct Hold {
    queue: IoQueue<Hold>,
}

impl Channel for Hold {
    type PerIo = Tracked;

    fn submit(&self, mut io: Io<Self>) {
        io.context_mut().mark = io.offset_blocks();
        io.context_mut()._name = format!("i/o {}", io.offset_blocks());
        self.queue.push_back(io);
    }

    fn abort(&self, victim: Victim) -> bool {
        match self.queue.remove(victim) {
            Some(io) => {
                io.complete(IoStatus::ABORTED);
                true
            }
            None => false,
        }
    }
}

#[test]
fn reads_and_writes_cross_pieces() {
    let leaf = Leaf::new();
    let gate = Gate::of(Rc::clone(&leaf));
    let mut memory = vec![0; 1024];
    let mut list = pieces(&mut memory, &[100, 0, 412, 512]);
    let request = Request::new(&gate, Op::READ, 2, 2).payload(&mut list);
    assert_eq!(request.submit(&gate).status(), Some(IoStatus::SUCCESS));
    assert!(memory.iter().enumerate().all(|(at, byte)| *byte == ((at + 1024) % 251) as u8));

    let mut list = pieces(&mut memory, &[1024]);
    let request = Request::new(&gate, Op::WRITE, 0, 2).payload(&mut list);
    assert_eq!(request.submit(&gate).status(), Some(IoStatus::SUCCESS));
    let request = Request::new(&gate, Op::COMPARE, 0, 2).payload(&mut list);
    assert_eq!(request.submit(&gate).status(), Some(IoStatus::SUCCESS));
    let request = Request::new(&gate, Op::COMPARE, 3, 2).payload(&mut list);
    assert_eq!(request.submit(&gate).status(), Some(IoStatus::MISCOMPARE));
    let request = Request::new(&gate, Op::READ, 15, 2).payload(&mut list);
    assert_eq!(request.submit(&gate).status(), Some(IoStatus::LBA_OUT_OF_RANGE));
    drop(leaf);
    gate.close();
}

/// Looks ahead while it serves a batch.
struct Foresight {
    memory: SharedBuf,
    seen: RefCell<Vec<Option<Upcoming>>>,
}

impl Channel for Foresight {
    type PerIo = ();

    fn submit(&self, io: Io<Self>) {
        io.complete(IoStatus::SUCCESS);
    }

    fn submit_batch(&self, mut batch: IoBatch<'_, Self>) {
        while let Some(io) = batch.next() {
            let next = batch.upcoming();
            if let Some(next) = next {
                self.memory.fetch_ahead(next.offset_blocks * 512, next.num_blocks * 512);
            }
            self.seen.borrow_mut().push(next);
            self.submit(io);
        }
    }
}

#[test]
fn a_batch_tells_what_comes_next_and_memory_outside_is_not_fetched() {
    let channel = Rc::new(Foresight { memory: block(|_| 0), seen: RefCell::default() });
    let gate = Gate::of(channel.clone());
    let requests = [
        Request::new(&gate, Op::WRITE, 0, 1),
        Request::new(&gate, Op::READ, 8, 2).flagged(IoFlags::LEND),
        Request::new(&gate, Op(200), 0, 1),
        Request::new(&gate, Op::READ, u64::MAX / 512, 1),
    ];
    gate.submit_batch(&requests);
    let flags = [IoFlags::LEND, IoFlags::NONE];
    let read = |offset_blocks, num_blocks, flags| {
        Some(Upcoming { op: BdevOp::Read, flags, offset_blocks, num_blocks })
    };
    assert_eq!(*channel.seen.borrow(), [read(8, 2, flags[0]), None, None]);
    let statuses: Vec<_> = requests.iter().map(Request::status).collect();
    let ok = Some(IoStatus::SUCCESS);
    assert_eq!(statuses, [ok, ok, Some(IoStatus::NOT_SUPPORTED), ok]);
    gate.close();
}

#[test]
fn an_unknown_operation_never_reaches_the_channel() {
    let leaf = Leaf::new();
    let gate = Gate::of(Rc::clone(&leaf));
    let request = Request::new(&gate, Op(Op::COUNT), 0, 1);
    assert_eq!(request.submit(&gate).status(), Some(IoStatus::NOT_SUPPORTED));
    assert!(leaf.seen.borrow().is_empty());
    drop(leaf);
    gate.close();
}

#[test]
fn a_child_is_tried_again_until_the_module_gives_up() {
    let leaf = Leaf::new();
    let bottom = Gate::of(Rc::clone(&leaf));
    let gate = Gate::of(Rc::new(Retry { base: bottom.base() }));
    for (failures, expected) in [(3, IoStatus::SUCCESS), (4, IoStatus::IO_ERROR)] {
        leaf.fail_next.set(failures);
        leaf.seen.borrow_mut().clear();
        let mut memory = vec![0; 512];
        let mut list = pieces(&mut memory, &[512]);
        let request = Request::new(&gate, Op::READ, 4, 1).payload(&mut list);
        assert_eq!(request.submit(&gate).status(), Some(expected));
        assert_eq!(*leaf.seen.borrow(), vec![(BdevOp::Read, 5, 1); 4]);
        assert_eq!((gate.outstanding(), bottom.outstanding()), (0, 0));
    }
    gate.close();
    drop(leaf);
    bottom.close();
}

#[test]
fn lent_memory_travels_through_filters_and_back() {
    let leaf = Leaf::new();
    let bottom = Gate::of(Rc::clone(&leaf));
    let middle = Gate::of(Rc::new(Pass { base: bottom.base() }));
    let gate = Gate::of(Rc::new(Pass { base: middle.base() }));
    let request = Request::new(&gate, Op::READ, 2, 1).flagged(IoFlags::LEND);
    assert_eq!(request.submit(&gate).status(), Some(IoStatus::SUCCESS));
    assert!(request.flags().contains(IoFlags::LENT));
    assert_eq!(request.first_byte(), (1024 % 251) as u8);
    assert_eq!((gate.outstanding(), middle.outstanding(), bottom.outstanding()), (1, 1, 1));
    assert_eq!(leaf.lender.lent(), 1);
    gate.release(&request);
    assert_eq!((gate.outstanding(), middle.outstanding(), bottom.outstanding()), (0, 0, 0));
    assert_eq!(leaf.lender.lent(), 0);
    gate.close();
    middle.close();
    drop(leaf);
    bottom.close();
}

/// Completes with an error although the child succeeded.
struct Spoil {
    base: BaseChannel,
}

impl Channel for Spoil {
    type PerIo = ();

    fn submit(&self, io: Io<Self>) {
        io.forward(&self.base, |_, io| io.complete_with(IoStatus::IO_ERROR));
    }

    fn base(&self) -> Option<&BaseChannel> {
        Some(&self.base)
    }

    fn release(&self, _: Released<'_, Self>) {
        unreachable!("nothing was lent");
    }
}

#[test]
fn a_loan_goes_back_when_the_parent_does_not_pass_it_on() {
    let leaf = Leaf::new();
    let bottom = Gate::of(Rc::clone(&leaf));
    let gate = Gate::of(Rc::new(Spoil { base: bottom.base() }));
    let request = Request::new(&gate, Op::READ, 2, 1).flagged(IoFlags::LEND);
    assert_eq!(request.submit(&gate).status(), Some(IoStatus::IO_ERROR));
    assert!(!request.flags().contains(IoFlags::LENT));
    assert_eq!((gate.outstanding(), bottom.outstanding(), leaf.lender.lent()), (0, 0, 0));
    gate.close();
    drop(leaf);
    bottom.close();
}

#[test]
fn a_queue_keeps_order_and_gives_up_victims() {
    let hold = Rc::new(Hold { queue: IoQueue::new() });
    let gate = Gate::of(Rc::clone(&hold));
    let requests: Vec<_> = (0..5).map(|offset| Request::new(&gate, Op::FLUSH, offset, 1)).collect();
    for request in &requests {
        request.submit(&gate);
    }
    assert_eq!(hold.queue.len(), 5);
    // First, middle, last, and one that is not there.
    for (victim, found) in [(0, 0), (2, 0), (4, 0), (2, -2)] {
        assert_eq!(gate.abort(&requests[victim]), found);
    }
    assert_eq!(requests[2].status(), Some(IoStatus::ABORTED));
    assert_eq!(hold.queue.front(|state| state.mark), Some(1));
    assert!(hold.queue.pop_front_if(|state| state.mark > 1).is_none());
    let first = hold.queue.pop_front_if(|state| state.mark == 1).unwrap();
    hold.queue.push_back(first);
    let next = hold.queue.pop_front().unwrap();
    assert_eq!(next.context().mark, 3);
    hold.queue.push_front(next);
    hold.queue.complete_all(IoStatus::SUCCESS);
    assert_eq!(requests[3].status(), Some(IoStatus::SUCCESS));
    assert_eq!(requests[1].status(), Some(IoStatus::SUCCESS));
    assert!(hold.queue.is_empty());
    drop(hold);
    gate.close();
}

/// When the first I/O is back, everything that is held below completes, and one that was parked goes there.
struct Reenter {
    base: BaseChannel,
    below: Rc<Hold>,
    parked: IoQueue<Reenter>,
}

impl Channel for Reenter {
    type PerIo = ();

    fn submit(&self, io: Io<Self>) {
        if io.offset_blocks() == 9 {
            return self.parked.push_back(io);
        }
        io.forward(&self.base, |channel, io| {
            if let Some(parked) = channel.parked.pop_front() {
                channel.below.queue.complete_all(IoStatus::SUCCESS);
                parked.forward(&channel.base, |_, io| io.complete_with(IoStatus::SUCCESS));
            }
            io.complete_with(IoStatus::SUCCESS);
        });
    }

    fn base(&self) -> Option<&BaseChannel> {
        Some(&self.base)
    }
}

#[test]
fn what_a_completion_puts_into_a_queue_does_not_complete_with_the_rest() {
    let below = Rc::new(Hold { queue: IoQueue::new() });
    let bottom = Gate::of(Rc::clone(&below));
    let above = Reenter { base: bottom.base(), below: Rc::clone(&below), parked: IoQueue::new() };
    let gate = Gate::of(Rc::new(above));
    let requests = [9, 0, 1, 2].map(|offset| Request::new(&gate, Op::FLUSH, offset, 1));
    for request in &requests {
        request.submit(&gate);
    }
    below.queue.complete_all(IoStatus::SUCCESS);
    assert!(requests[1..].iter().all(|request| request.status() == Some(IoStatus::SUCCESS)));
    assert_eq!((requests[0].status(), below.queue.len()), (None, 1));
    below.queue.complete_all(IoStatus::SUCCESS);
    assert_eq!(requests[0].status(), Some(IoStatus::SUCCESS));
    gate.close();
    drop(below);
    bottom.close();
}

#[test]
fn a_second_completion_below_is_a_fault_and_nothing_else() {
    let hold = Rc::new(Hold { queue: IoQueue::new() });
    let gate = Gate::of(Rc::clone(&hold));
    let request = Request::new(&gate, Op::FLUSH, 0, 1);
    request.submit(&gate);
    hold.queue.complete_all(IoStatus::SUCCESS);
    request.complete_again();
    assert_eq!((request.status(), gate.faults(), gate.outstanding()), (Some(IoStatus::SUCCESS), 1, 0));
}

#[test]
#[cfg_attr(debug_assertions, should_panic(expected = "dropped without completion"))]
fn a_dropped_io_is_noticed() {
    let hold = Rc::new(Hold { queue: IoQueue::new() });
    let gate = Gate::of(Rc::clone(&hold));
    let request = Request::new(&gate, Op::FLUSH, 0, 1);
    request.submit(&gate);
    let before = Io::<Hold>::dropped();
    drop(hold.queue.pop_front());
    assert_eq!(request.status(), Some(IoStatus::INTERNAL));
    assert!(Io::<Hold>::dropped() > before);
}

/// Writes go to all, halves of reads to the first two.
struct Mirror {
    bases: Vec<BaseChannel>,
}

#[derive(Default)]
struct Tally {
    failed: u32,
    retried: bool,
}

fn mirrored(_: &Mirror, fan: &mut Fan<'_, Mirror>, done: ChildDone) {
    if !done.status.is_success() {
        fan.context_mut().failed += 1;
    }
}

fn half_read(channel: &Mirror, fan: &mut Fan<'_, Mirror>, done: ChildDone) {
    if done.status.is_success() || fan.context().retried {
        return;
    }
    fan.context_mut().retried = true;
    let (index, offset) = (done.index, fan.offset_blocks());
    let base = &channel.bases[(index as usize + 1) % 2];
    fan.child(
        index,
        base,
        |child| {
            child.set_num_blocks(1);
            child.set_offset_blocks(offset + u64::from(index));
            child.payload_range(u64::from(index) * 512, 512).unwrap();
        },
        half_read,
    );
}

impl Channel for Mirror {
    type PerIo = Tally;

    fn submit(&self, io: Io<Self>) {
        match io.op() {
            BdevOp::Write => io.fan_out(
                |fan| {
                    for (index, base) in self.bases.iter().enumerate() {
                        fan.child(index as u32, base, |_| {}, mirrored);
                    }
                },
                |channel, io| {
                    let failed = io.context().failed as usize == channel.bases.len();
                    io.complete(if failed { IoStatus::IO_ERROR } else { IoStatus::SUCCESS });
                },
            ),
            _ => io.fan_out(
                |fan| {
                    let offset = fan.offset_blocks();
                    for index in 0..2 {
                        fan.child(
                            index,
                            &self.bases[index as usize],
                            |child| {
                                child.set_num_blocks(1);
                                child.set_offset_blocks(offset + u64::from(index));
                                child.payload_range(u64::from(index) * 512, 512).unwrap();
                            },
                            half_read,
                        );
                    }
                },
                |_, io| io.complete(IoStatus::SUCCESS),
            ),
        }
    }

    fn children(&self) -> Children {
        Children::fan_out(self.bases.len() as u32, 4, &self.bases)
    }
}

#[test]
fn a_fan_out_completes_after_its_last_child() {
    let leaves = [Leaf::new(), Leaf::new()];
    let bottoms: Vec<_> = leaves.iter().map(|leaf| Gate::of(Rc::clone(leaf))).collect();
    let bases = bottoms.iter().map(Gate::base).collect();
    let gate = Gate::of(Rc::new(Mirror { bases }));
    let mut data: Vec<u8> = (0..1024).map(|at| (at / 3) as u8).collect();
    let mut list = pieces(&mut data, &[300, 724]);
    let request = Request::new(&gate, Op::WRITE, 6, 2).payload(&mut list);
    assert_eq!(request.submit(&gate).status(), Some(IoStatus::SUCCESS));

    leaves[1].fail_next.set(1);
    let mut back = vec![0; 1024];
    let mut list = pieces(&mut back, &[300, 300, 424]);
    let request = Request::new(&gate, Op::READ, 6, 2).payload(&mut list);
    assert_eq!(request.submit(&gate).status(), Some(IoStatus::SUCCESS));
    assert_eq!(back, data, "halves of both mirrors, the second after another try");

    leaves.iter().for_each(|leaf| leaf.fail_next.set(1));
    let request = Request::new(&gate, Op::WRITE, 6, 2).payload(&mut list);
    assert_eq!(request.submit(&gate).status(), Some(IoStatus::IO_ERROR));
    gate.close();
    drop(leaves);
    bottoms.into_iter().for_each(Gate::close);
}

/// Holds children back, to have several in flight, and gives them buffers.
struct Collect {
    bases: Vec<BaseChannel>,
}

fn collected(_: &Collect, fan: &mut Fan<'_, Collect>, done: ChildDone) {
    let buffer = done.buffer.expect("the buffer comes back");
    let sum = buffer.as_slice().iter().map(|byte| u64::from(*byte)).sum::<u64>();
    *fan.context_mut() += sum;
}

impl Channel for Collect {
    type PerIo = u64;

    fn submit(&self, io: Io<Self>) {
        io.fan_out(
            |fan| {
                for (index, base) in self.bases.iter().enumerate() {
                    let buffer = stub::host().buffer(512).unwrap();
                    fan.child(
                        index as u32,
                        base,
                        |child| {
                            child.set_op(BdevOp::Read);
                            child.give_buffer(buffer, 512);
                        },
                        collected,
                    );
                }
            },
            |_, mut io| {
                let sum = *io.context() as u32;
                io.set_cdw0(sum);
                io.complete(IoStatus::SUCCESS);
            },
        );
    }

    fn children(&self) -> Children {
        Children::fan_out(self.bases.len() as u32, 1, &self.bases)
    }
}

#[test]
fn children_own_buffers_while_in_flight() {
    let leaves = [Leaf::new(), Leaf::new(), Leaf::new()];
    let bottoms: Vec<_> = leaves.iter().map(|leaf| Gate::of(Rc::clone(leaf))).collect();
    let gate = Gate::of(Rc::new(Collect { bases: bottoms.iter().map(Gate::base).collect() }));
    let request = Request::new(&gate, Op::VERIFY, 0, 1);
    assert_eq!(request.submit(&gate).status(), Some(IoStatus::SUCCESS));
    let one: u32 = (0..512).map(|at: u32| at % 251).sum();
    assert_eq!(request.cdw0(), 3 * one);
    gate.close();
    drop(leaves);
    bottoms.into_iter().for_each(Gate::close);
}

/// Uses more of the payload than there is.
struct Overreach {
    base: BaseChannel,
}

impl Channel for Overreach {
    type PerIo = ();

    fn submit(&self, io: Io<Self>) {
        io.forward_with(
            &self.base,
            |child| assert!(child.payload_range(256, 512).is_err()),
            |_, io| io.complete(),
        );
    }

    fn base(&self) -> Option<&BaseChannel> {
        Some(&self.base)
    }
}

#[test]
fn a_shape_that_does_not_fit_never_goes_down() {
    let leaf = Leaf::new();
    let bottom = Gate::of(Rc::clone(&leaf));
    let gate = Gate::of(Rc::new(Overreach { base: bottom.base() }));
    let mut memory = vec![0; 512];
    let mut list = pieces(&mut memory, &[512]);
    let request = Request::new(&gate, Op::READ, 0, 1).payload(&mut list);
    assert_eq!(request.submit(&gate).status(), Some(IoStatus::INVALID));
    assert!(leaf.seen.borrow().is_empty());
    gate.close();
    drop(leaf);
    bottom.close();
}

/// Completes everything at once.
struct Null;

impl Channel for Null {
    type PerIo = ();

    #[inline]
    fn submit(&self, io: Io<Self>) {
        io.complete(IoStatus::SUCCESS);
    }
}

/// Nanoseconds per I/O through `layers` filters, the least of many short batches.
fn cost(layers: usize, raw: bool) -> f64 {
    let mut gates = vec![Gate::of(Rc::new(Null))];
    for _ in 0..layers {
        let below = gates.last().unwrap();
        let gate = if raw { Gate::raw_filter(below) } else { Gate::of(Rc::new(Pass { base: below.base() })) };
        gates.push(gate);
    }
    let top = gates.last().unwrap();
    let counter = Cell::new(0);
    let request = Request::new(top, Op::FLUSH, 0, 0).counted(&counter);
    let mut least = f64::MAX;
    for _ in 0..400 {
        let start = std::time::Instant::now();
        for _ in 0..20_000 {
            request.submit(top);
        }
        least = least.min(start.elapsed().as_nanos() as f64 / 20_000.0);
    }
    assert_eq!(counter.get(), 400 * 20_000);
    while let Some(gate) = gates.pop() {
        gate.close();
    }
    least
}

/// `cargo test --release -p tenon-sdk -- --ignored --nocapture cost_of_a_layer`
#[test]
#[ignore = "a measurement"]
fn cost_of_a_layer() {
    for (name, raw) in [("sdk", false), ("by hand", true), ("sdk", false), ("by hand", true)] {
        let costs: Vec<f64> = (0..=6).map(|layers| cost(layers, raw)).collect();
        let per_layer = (costs[6] - costs[1]) / 5.0;
        println!("{name}: ns per i/o by layers {costs:.1?}, per layer from the second on {per_layer:.1}");
    }
}
