//! The data path of an array on one reactor: what may start, what waits, and what
//! becomes of an I/O whose member failed. How each level reaches its members is in
//! `channel/striped.rs`, `channel/mirror.rs` and `channel/parity.rs`.
//!
//! A write that a redundant level could not write to a member is not acknowledged:
//! it waits until the control side has recorded the loss on the other members and
//! says which members there are now, and then starts again.

mod mirror;
mod parity;
mod raid5;
mod striped;

use std::cell::{Cell, RefCell};
use std::ops::Range;
use std::rc::{Rc, Weak};
use std::sync::Arc;

use tenon_sdk::{
    BaseChannel, BdevOp, Channel, ChildDone, Children, Error, Exported, Fan, Io, IoQueue, IoStatus, Reactor,
    Victim,
};

use crate::RaidModule;
use crate::layout::Layout;
use crate::level::Level;
use crate::shared::{self, Directive, Lane, Role, Shared, Ticket};

/// An array on one reactor.
pub struct RaidChannel {
    shared: Arc<Shared>,
    key: shared::Key,
    children: Children,
    /// Driver context of the deepest member when the channel was opened.
    deepest: u32,
    view: RefCell<Rc<View>>,
    /// I/O that waits for a directive.
    waiting: IoQueue<Self>,
    /// I/O in flight that does not change data.
    others: Cell<u32>,
    /// Writes in flight that started under the current directive, and those from before; by `turn`.
    writes: [Cell<u32>; 2],
    turn: Cell<usize>,
    ticket: RefCell<Option<Arc<Ticket>>>,
    /// Slots whose failure was reported since the last directive.
    reported: Cell<u32>,
    /// Writes that wait until their regions are marked.
    unmarked: IoQueue<Self>,
    /// I/O that waits for the lock of a stripe.
    stalled: IoQueue<Self>,
    /// Whether I/O is being resumed, and whether a lock was let go since.
    is_waking: Cell<bool>,
    is_freed: Cell<bool>,
    this: Weak<Self>,
    /// I/O started since the last directive.
    started: Cell<u64>,
}

/// The members as of one directive.
struct View {
    directive: Arc<Directive>,
    layout: Layout,
    lanes: Vec<OpenLane>,
    in_sync: u32,
    targets: u32,
    /// Slots of members that could not be opened here: nothing is written until they are recorded as lost.
    unopened: u32,
}

/// One member.
struct OpenLane {
    base: Option<BaseChannel>,
    data_offset: u64,
    role: Role,
    /// Blocks being read; decides where a mirror reads.
    reading: Cell<u64>,
    /// Where the last read ended.
    read_end: Cell<u64>,
}

/// State of one I/O.
pub struct RaidIo {
    /// Slots whose child failed, or that a read has tried.
    failed: u32,
    /// Of the first child that failed.
    error: Option<IoStatus>,
    /// Which counter counts it: a turn of `writes`, or `others`.
    turn: Option<usize>,
    /// Slot it is being read from.
    slot: usize,
    /// Blocks already read, when a read goes strip by strip.
    done_blocks: u64,
    /// Of a write to raid5.
    raid5: raid5::Progress,
}

impl Default for RaidIo {
    /// A copy of one that is there: made on the stack each time it would be read in larger pieces than it was just
    /// written in, which waits for every store before.
    #[inline(always)]
    fn default() -> Self {
        const EMPTY: RaidIo = RaidIo {
            failed: 0,
            error: None,
            turn: None,
            slot: 0,
            done_blocks: 0,
            raid5: raid5::Progress::NONE,
        };
        EMPTY
    }
}

impl Channel for RaidChannel {
    type PerIo = RaidIo;

    #[inline]
    fn submit(&self, io: Io<Self>) {
        if self.view.borrow().directive.is_paused {
            self.waiting.push_back(io);
        } else {
            self.start(io);
        }
    }

    fn children(&self) -> Children {
        self.children
    }

    fn abort(&self, victim: Victim) -> bool {
        if let Some(io) = self.waiting.remove(victim).or_else(|| self.unmarked.remove(victim)) {
            io.complete(IoStatus::ABORTED);
            return true;
        }
        // One that waits for a stripe holds none, and leaves those that it has written as they are.
        let Some(io) = self.stalled.remove(victim) else { return false };
        self.finish(io, IoStatus::ABORTED);
        true
    }
}

impl RaidChannel {
    /// Opens the array on the calling reactor. A member that cannot be opened, as it is just going, is reported
    /// as failed if the array can do without it.
    pub fn open(shared: &Arc<Shared>, reactor: Reactor) -> Result<Rc<Self>, Error> {
        let directive = shared.now();
        let mut lanes = Vec::with_capacity(directive.members.lanes.len());
        let mut failed = Vec::new();
        for (slot, lane) in directive.members.lanes.iter().enumerate() {
            let opened = lane.base.as_ref().map(|base| base.channel()).transpose();
            let base = opened.unwrap_or_else(|error| {
                failed.push((slot, error));
                None
            });
            lanes.push(OpenLane::new(base, lane));
        }
        let view = View::new(directive, lanes);
        let survives = shared.level.survives(view.in_sync, view.lanes.len());
        if !survives && let Some((_, error)) = failed.pop() {
            return Err(error);
        }
        let lanes = &view.lanes;
        let bases = || lanes.iter().filter_map(|lane| lane.base.as_ref());
        let iovs = if shared.level.is_parity() { MAX_PIECES } else { 0 };
        // A concat goes from member to member, and may get more of them.
        let fan = if shared.level == Level::Concat { 1 } else { lanes.len() as u32 };
        let children = Children::fan_out(fan, iovs, bases());
        let deepest = bases().map(BaseChannel::io_context_size).max().unwrap_or(0);
        let key = (shared.id, reactor.index());
        let channel = Rc::new_cyclic(|this: &Weak<Self>| {
            shared::enter(key, this.clone());
            RaidChannel {
                shared: Arc::clone(shared),
                key,
                children,
                deepest,
                view: RefCell::new(Rc::new(view)),
                waiting: IoQueue::new(),
                others: Cell::new(0),
                writes: [Cell::new(0), Cell::new(0)],
                turn: Cell::new(0),
                ticket: RefCell::new(None),
                reported: Cell::new(0),
                unmarked: IoQueue::new(),
                stalled: IoQueue::new(),
                is_waking: Cell::new(false),
                is_freed: Cell::new(false),
                this: this.clone(),
                started: Cell::new(0),
            }
        });
        for (slot, error) in failed {
            channel.not_opened(slot, &error);
        }
        Ok(channel)
    }

    /// Goes over to a directive and holds the ticket until nothing it forbids is in flight.
    pub fn obey(&self, directive: &Arc<Directive>, ticket: &Arc<Ticket>) {
        let old = self.view();
        if directive.epoch <= old.directive.epoch {
            return;
        }
        let mut lanes = Vec::with_capacity(directive.members.lanes.len());
        for (slot, lane) in directive.members.lanes.iter().enumerate() {
            let known = old.directive.members.lanes.get(slot).and_then(|lane| lane.base.as_ref());
            let is_same = lane.base.as_ref().map(|base| base.id()) == known.map(|base| base.id());
            let base = match (&lane.base, is_same) {
                (_, true) => old.lanes[slot].base.clone(),
                (Some(base), false) => self.open_member(slot, base.channel()),
                (None, false) => None,
            };
            lanes.push(OpenLane::new(base, lane));
        }
        *self.view.borrow_mut() = Rc::new(View::new(Arc::clone(directive), lanes));
        drop(old);
        self.shared.has_started(self.started.replace(0));
        // Writes from now on are counted apart from those that are in flight.
        self.turn.set(1 - self.turn.get());
        *self.ticket.borrow_mut() = Some(Arc::clone(ticket));
        self.give_ticket_back();
        if !directive.is_paused {
            self.reported.set(0);
            for _ in 0..self.waiting.len() {
                let Some(io) = self.waiting.pop_front() else { break };
                self.submit(io);
            }
        }
    }

    fn open_member(&self, slot: usize, base: Result<BaseChannel, Error>) -> Option<BaseChannel> {
        match base {
            Ok(base) if base.io_context_size() <= self.deepest => Some(base),
            Ok(base) => {
                self.report(slot, || {
                    format!(
                        "needs {} bytes per i/o, more than the {} that open channels have room for",
                        base.io_context_size(),
                        self.deepest
                    )
                });
                None
            }
            Err(error) => {
                self.not_opened(slot, &error);
                None
            }
        }
    }

    fn not_opened(&self, slot: usize, error: &Error) {
        self.report(slot, || format!("not opened on a reactor: {error}"));
    }

    fn start(&self, mut io: Io<Self>) {
        let view = self.view();
        self.started.set(self.started.get() + 1);
        match io.op() {
            BdevOp::Write | BdevOp::WriteZeroes | BdevOp::Unmap => {
                let (from, to) = (io.offset_blocks(), io.offset_blocks() + io.num_blocks());
                let locked = &view.directive.locked;
                if from < locked.end && locked.start < to {
                    return self.waiting.push_back(io);
                }
                if view.unopened != 0 {
                    let is_recorded = self.report_all(view.unopened, || "not opened on a reactor".to_owned());
                    return if is_recorded {
                        self.waiting.push_back(io)
                    } else {
                        io.complete(IoStatus::NOMEM)
                    };
                }
                if let Some(intent) = &view.directive.members.intent
                    && !intent.enter(&(from..to))
                {
                    return self.ask_to_mark(intent.regions_of(&(from..to)), io);
                }
                let turn = self.turn.get();
                self.writes[turn].set(self.writes[turn].get() + 1);
                io.context_mut().turn = Some(turn);
            }
            _ => self.others.set(self.others.get() + 1),
        }
        match (io.op(), self.shared.level) {
            (BdevOp::Read, Level::Raid1 | Level::Raid10) => self.mirror_read(&view, io),
            (BdevOp::Read, Level::Raid5 | Level::Raid5f) => self.parity_read(&view, io),
            (BdevOp::Write, Level::Raid5f) => self.parity_write(&view, io),
            (BdevOp::Write, Level::Raid5) => self.raid5_write(&view, io),
            (BdevOp::Read | BdevOp::Write, Level::Raid0 | Level::Concat) => self.striped(&view, io),
            (BdevOp::Write | BdevOp::WriteZeroes | BdevOp::Unmap, Level::Raid1 | Level::Raid10) => {
                self.mirror_write(&view, io)
            }
            (BdevOp::Flush | BdevOp::Reset | BdevOp::WriteZeroes | BdevOp::Unmap, Level::Concat) => {
                self.in_turn(&view, io)
            }
            (BdevOp::Flush | BdevOp::Reset, _) => self.everywhere(&view, io),
            (BdevOp::WriteZeroes | BdevOp::Unmap, Level::Raid0) => self.ranges(&view, io),
            _ => self.finish(io, IoStatus::NOT_SUPPORTED),
        }
    }

    /// Lets a write wait until its regions are marked on the members.
    fn ask_to_mark(&self, regions: Range<u64>, io: Io<Self>) {
        let array = self.shared.id;
        let host = self.shared.host;
        let message = move || {
            RaidModule::with(|module| module.mark(array, regions));
        };
        match host.send(host.control(), message) {
            Ok(()) => self.unmarked.push_back(io),
            Err(_) => io.complete(IoStatus::NOMEM),
        }
    }

    /// Starts what waited for regions or for stripes.
    pub fn wake(&self) {
        for _ in 0..self.unmarked.len() {
            let Some(io) = self.unmarked.pop_front() else { break };
            self.submit(io);
        }
        self.wake_stalled();
    }

    /// Whether members may differ in these blocks.
    fn may_differ(&self, view: &View, blocks: Range<u64>) -> bool {
        view.directive.members.intent.as_ref().is_some_and(|intent| intent.is_unsynced(&blocks))
    }

    /// A stripe is free again. What is resumed may free others: that goes on in a loop, not deeper.
    fn wake_stalled(&self) {
        self.is_freed.set(true);
        // Resuming may complete the last I/O, and then nobody else holds the channel.
        let Some(this) = self.this.upgrade() else { return };
        if this.is_waking.replace(true) {
            return;
        }
        while this.is_freed.replace(false) {
            for _ in 0..this.stalled.len() {
                let Some(io) = this.stalled.pop_front() else { break };
                this.resume(io);
            }
        }
        this.is_waking.set(false);
    }

    /// FLUSH and RESET go to every member as they are.
    fn everywhere(&self, view: &Rc<View>, io: Io<Self>) {
        let is_flush = io.op() == BdevOp::Flush;
        io.fan_out(
            |fan| {
                for (slot, lane) in view.lanes.iter().enumerate() {
                    let Some(base) = &lane.base else { continue };
                    let num_blocks = base.info().limits.num_blocks;
                    fan.child(
                        slot as u32,
                        base,
                        |request| {
                            if is_flush {
                                request.set_offset_blocks(0);
                                request.set_num_blocks(num_blocks);
                            }
                        },
                        Self::note,
                    );
                }
            },
            Self::written,
        );
    }

    /// Remembers what became of a child, whose index is its slot.
    fn note(&self, fan: &mut Fan<'_, Self>, done: ChildDone) {
        let state = fan.context_mut();
        if !done.status.is_success() {
            state.failed |= 1 << done.index;
            state.error.get_or_insert(done.status);
        }
    }

    /// Every member that is there has been written to. If redundancy covers what failed, the I/O waits until the
    /// loss is recorded, and starts again; otherwise it fails. So it does for a member that is being rebuilt: what is
    /// recorded of how far it is would be wrong.
    fn written(&self, io: Io<Self>) {
        let view = self.view();
        let state = io.context();
        let Some(error) = state.error else { return self.finish(io, IoStatus::SUCCESS) };
        let lost = state.failed & view.in_sync;
        let reason = || {
            let op = format!("{:?}", io.op()).to_lowercase();
            let (blocks, offset) = (io.num_blocks(), io.offset_blocks());
            format!("{op} of {blocks} blocks at {offset} of the array: i/o status {}", error.0)
        };
        let mut is_recorded = self.report_all(state.failed & view.targets, reason);
        // Every member that is there was written, so those that did not fail have succeeded.
        let is_covered = self.shared.level.survives(view.in_sync & !lost, view.lanes.len());
        if error == IoStatus::NOMEM || !is_covered {
            return self.finish(io, error);
        }
        is_recorded &= self.report_all(lost, reason);
        if is_recorded {
            self.hold(io);
        } else {
            self.finish(io, error);
        }
    }

    /// Lets an I/O wait for the next directive; then it starts from its beginning.
    fn hold(&self, mut io: Io<Self>) {
        self.count_down(&io);
        *io.context_mut() = RaidIo::default();
        self.waiting.push_back(io);
        self.give_ticket_back();
    }

    /// Completes an I/O; nothing of the channel may be touched afterwards, since that may close it.
    #[inline]
    fn finish(&self, io: Io<Self>, status: IoStatus) {
        self.count_down(&io);
        self.give_ticket_back();
        io.complete(status);
    }

    #[inline]
    fn count_down(&self, io: &Io<Self>) {
        let counter = match io.context().turn {
            Some(turn) => &self.writes[turn],
            None => &self.others,
        };
        counter.set(counter.get() - 1);
    }

    /// Drops the ticket if what the directive forbids is over.
    #[inline]
    fn give_ticket_back(&self) {
        if self.ticket.borrow().is_none() {
            return;
        }
        let before = self.writes[1 - self.turn.get()].get();
        let all = before + self.writes[self.turn.get()].get() + self.others.get();
        let left = if self.view.borrow().directive.is_paused { all } else { before };
        if left == 0 {
            let ticket = self.ticket.borrow_mut().take();
            drop(ticket);
        }
    }

    /// [`Self::report`] for all slots of a mask.
    fn report_all(&self, slots: u32, reason: impl Fn() -> String) -> bool {
        let slots = (0..u32::BITS).filter(|slot| slots & (1 << slot) != 0);
        // Each is reported, also after one that could not be.
        slots.filter(|slot| !self.report(*slot as usize, &reason)).count() == 0
    }

    /// Tells the control side that a member failed, once per directive. False if it cannot be told.
    fn report(&self, slot: usize, reason: impl Fn() -> String) -> bool {
        if self.reported.get() & (1 << slot) != 0 {
            return true;
        }
        let (array, reason) = (self.shared.id, reason());
        let message = move || {
            RaidModule::with(|module| module.member_failed(array, slot, &reason));
        };
        let host = self.shared.host;
        match host.send(host.control(), message) {
            Ok(()) => {
                self.reported.set(self.reported.get() | (1 << slot));
                true
            }
            Err(error) => {
                log::debug!("failure not reported raid={} error=\"{error}\"", self.shared.name);
                false
            }
        }
    }

    /// Asks the control side to rewrite what these slots could not read; the read itself has found it elsewhere.
    fn correct(&self, view: &View, slots: u32, blocks: Range<u64>) {
        for slot in (0..view.lanes.len()).filter(|slot| slots & (1 << slot) != 0) {
            let Some(base) = view.lanes[slot].readable() else { continue };
            if !self.shared.begin_correction() {
                return;
            }
            let (array, bdev, range) = (self.shared.id, base.info().id, blocks.clone());
            let message = move || {
                RaidModule::with(|module| module.correct(array, slot, bdev, range));
            };
            let host = self.shared.host;
            if let Err(error) = host.send(host.control(), message) {
                self.shared.end_correction();
                log::debug!("read error not corrected raid={} error=\"{error}\"", self.shared.name);
            }
        }
    }

    /// A reference of its own: completing an I/O may close the channel.
    #[inline]
    fn view(&self) -> Rc<View> {
        Rc::clone(&self.view.borrow())
    }
}

impl Drop for RaidChannel {
    fn drop(&mut self) {
        shared::leave(self.key);
    }
}

impl View {
    fn new(directive: Arc<Directive>, lanes: Vec<OpenLane>) -> View {
        let mask = |role| {
            let has_role = |(slot, lane): (usize, &OpenLane)| u32::from(lane.role == role) << slot;
            lanes.iter().enumerate().map(has_role).sum()
        };
        let (in_sync, targets) = (mask(Role::InSync), mask(Role::Target));
        let is_unopened = |(slot, lane): (usize, &Lane)| {
            u32::from(lane.base.is_some() && lanes[slot].base.is_none()) << slot
        };
        let layout = (*directive.members.layout).clone();
        let unopened = directive.members.lanes.iter().enumerate().map(is_unopened).sum();
        // A loss that the array cannot bear is never recorded, so nothing waits for that.
        let unopened = if layout.level.survives(in_sync, lanes.len()) { unopened } else { 0 };
        View { directive, layout, lanes, in_sync, targets, unopened }
    }
}

impl OpenLane {
    fn new(base: Option<BaseChannel>, lane: &Lane) -> OpenLane {
        let role = if base.is_some() { lane.role } else { Role::Absent };
        let data_offset = lane.data_offset;
        OpenLane { base, data_offset, role, reading: Cell::new(0), read_end: Cell::new(u64::MAX) }
    }

    /// The member, if it may be read.
    fn readable(&self) -> Option<&BaseChannel> {
        if self.role == Role::InSync { self.base.as_ref() } else { None }
    }
}

/// Pieces of a payload that a child of a parity level has room for; the host is told.
pub const MAX_PIECES: u32 = 64;
