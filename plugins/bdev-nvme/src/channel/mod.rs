//! The data path of a device on one reactor: picks a path for each I/O, and
//! decides what becomes of one that comes back.
//!
//! An I/O that no path takes now waits here, as long as a path may come. There
//! is no lock and no allocation per I/O; what paths there are is looked up when
//! the control thread says that it changed. `copy` has copies, `passthru` the
//! NVMe commands that consumers give themselves.

mod copy;
pub(crate) mod passthru;

use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};
use std::sync::Arc;

use nvme_spec::completion::Cqe;
use nvme_spec::log::AnaState;
use tenon_sdk::{
    Alarm, BdevOp, Channel, FabricCommand, Host, Io, IoBatch, IoQueue as Waiting, IoStatus, PayloadOf,
    Reactor, Victim,
};

use crate::commands::CommandType;
use crate::encode::{Travels, Wanted, encode};
use crate::inject::Injected;
use crate::module;
use crate::queue::IoQueue;
use crate::select::{Cursor, PathFacts, Rules, is_current, select};
use crate::side::Side;
use crate::status::{ABORTED_BY_HOST, NO_PATH, Verdict, judge};
use crate::table::{Entry, Table};
use crate::tally::{Counted, Tally};

/// What is kept per I/O.
#[derive(Default)]
pub struct Flight {
    /// The channel, while the I/O is on a queue.
    pub(crate) channel: Option<Rc<NvmeChannel>>,
    retries: u32,
    /// Age of the queue when it was submitted.
    pub(crate) submitted_at_age: u32,
    /// A copy's source ranges that are done, or the number of an admin command.
    tag: u32,
    /// When it is tried again.
    due_ns: u64,
    /// When it fails, however often it may still be tried; 0 if there is no such time.
    pub(crate) deadline_ns: u64,
    /// When it was sent, if it is timed; else 0.
    sent_ns: u64,
    /// The controller that failed it last by a fault of the path; 0 if none did. The next try goes elsewhere.
    shunned: u64,
    /// How an operator wants it to end.
    injected: Option<Box<(Rc<IoQueue>, Injected)>>,
}

const _: () = assert!(size_of::<Flight>() <= 64, "one cache line per I/O");

impl Flight {
    /// When something is to be done about an I/O that is delayed.
    fn next_ns(&self) -> u64 {
        if self.deadline_ns > 0 { self.due_ns.min(self.deadline_ns) } else { self.due_ns }
    }
}

/// A device on one reactor.
pub struct NvmeChannel {
    me: Weak<NvmeChannel>,
    host: Host,
    table: Arc<Table>,
    side: Rc<Side>,
    paths: RefCell<Vec<Path>>,
    /// As `paths`; what changes by itself is filled in before each use.
    facts: RefCell<Vec<PathFacts>>,
    rules: Cell<Rules>,
    cursor: Cell<Cursor>,
    /// I/Os that `round_robin` gives each path before it begins again, if more than `rr_min_io`.
    turn: Cell<u32>,
    is_gone: Cell<bool>,
    /// No path, or no room.
    waiting: Waiting<NvmeChannel>,
    /// To be tried again later.
    delayed: Waiting<NvmeChannel>,
    resets: Waiting<NvmeChannel>,
    /// Admin commands of consumers, with the control thread.
    admin: Waiting<NvmeChannel>,
    last_ticket: Cell<u32>,
    alarm: RefCell<Option<Alarm>>,
    /// When it rings; the end of time if it is not set.
    alarm_at_ns: Cell<u64>,
    is_driving: Cell<bool>,
}

struct Path {
    queue: Rc<IoQueue>,
    nsid: u32,
    /// Until when an inaccessible state is waited for.
    ana_deadline_ns: Cell<u64>,
    tally: Option<Rc<Tally>>,
}

/// How a path is reported.
#[derive(Clone, Debug)]
pub(crate) struct PathReport {
    pub(crate) controller: u64,
    pub(crate) reactor: u32,
    pub(crate) is_current: bool,
    pub(crate) is_connected: bool,
    pub(crate) is_accessible: bool,
    pub(crate) commands: u64,
    pub(crate) failed: u64,
    pub(crate) in_flight: u32,
    pub(crate) latency_ns: u32,
    pub(crate) obstacle: Option<String>,
    pub(crate) counted: Option<Counted>,
}

impl NvmeChannel {
    pub(crate) fn open(host: Host, table: Arc<Table>, side: Rc<Side>) -> Rc<Self> {
        let channel = Rc::new_cyclic(|me| NvmeChannel {
            me: me.clone(),
            host,
            table,
            side: Rc::clone(&side),
            paths: RefCell::default(),
            facts: RefCell::default(),
            rules: Cell::default(),
            cursor: Cell::default(),
            turn: Cell::new(0),
            is_gone: Cell::new(false),
            waiting: Waiting::new(),
            delayed: Waiting::new(),
            resets: Waiting::new(),
            admin: Waiting::new(),
            last_ticket: Cell::new(0),
            alarm: RefCell::default(),
            alarm_at_ns: Cell::new(u64::MAX),
            is_driving: Cell::new(false),
        });
        let rings = Rc::downgrade(&channel);
        let alarm = host.alarm(move || {
            if let Some(channel) = rings.upgrade() {
                channel.time_is_up();
            }
        });
        *channel.alarm.borrow_mut() = Some(alarm);
        side.add_channel(&channel);
        channel.refresh();
        channel
    }

    pub(crate) fn device(&self) -> u64 {
        self.table.device
    }

    /// Looks up which paths there are.
    pub(crate) fn refresh(&self) {
        let now_ns = self.host.now_ns();
        let (entries, rules, is_gone) = self.table.read();
        self.rules.set(rules);
        self.is_gone.set(is_gone);
        let (mut paths, mut facts) = (Vec::new(), Vec::new());
        for entry in &entries {
            let ana_deadline_ns = Cell::new(self.ana_deadline(entry, now_ns));
            let (queue, tally) = (self.side.queue(&entry.door), self.tally_of(entry));
            paths.push(Path { queue, nsid: entry.nsid, ana_deadline_ns, tally });
            facts.push(entry.facts());
        }
        let old = self.paths.replace(paths);
        *self.facts.borrow_mut() = facts;
        self.cursor.set(self.moved_cursor(&old));
        drop(old);
        self.kick();
    }

    /// The cursor, on the path on which it was; that one may have another place now, or be gone.
    fn moved_cursor(&self, old: &[Path]) -> Cursor {
        let cursor = self.cursor.get();
        let paths = self.paths.borrow();
        let was = old.get(cursor.last).map(|path| path.queue.door.id);
        match paths.iter().position(|path| Some(path.queue.door.id) == was) {
            Some(last) => Cursor { last, run: cursor.run.min(1) },
            None => Cursor::default(),
        }
    }

    /// The counts of a path, which stay when paths change.
    fn tally_of(&self, entry: &Entry) -> Option<Rc<Tally>> {
        if !self.table.options.counts_paths {
            return None;
        }
        let paths = self.paths.borrow();
        let old = paths.iter().find(|path| path.queue.door.id == entry.door.id);
        Some(old.and_then(|path| path.tally.clone()).unwrap_or_default())
    }

    fn ana_deadline(&self, entry: &Entry, now_ns: u64) -> u64 {
        match entry.ana {
            AnaState::OPTIMIZED | AnaState::NON_OPTIMIZED => u64::MAX,
            AnaState::PERSISTENT_LOSS => now_ns,
            _ => entry.ana_since_ns.saturating_add(u64::from(entry.anatt_sec.max(1)) * 1_000_000_000),
        }
    }

    /// The path for the next of `together` I/Os that are submitted at once; if there is another, not the one by the
    /// controller `shunned`.
    #[inline]
    fn choose(&self, shunned: u64, together: usize) -> Option<usize> {
        let paths = self.paths.borrow();
        let mut facts = self.facts.borrow_mut();
        let all = self.rules.get();
        let rules = Rules { rr_min_io: self.turn.get().max(all.rr_min_io), ..all };
        let counts = facts.len() > 1;
        for (path, facts) in paths.iter().zip(facts.iter_mut()) {
            facts.is_connected = path.queue.is_live();
            if counts {
                facts.in_flight = path.queue.in_flight();
                facts.latency_ns = path.queue.counts.latency_ns.get();
            }
        }
        let cursor = self.cursor.get();
        let at = match shunned {
            0 => select(&facts, &rules, cursor),
            _ => select_but(shunned, &paths, &mut facts, &rules, cursor),
        }?;
        let run = if cursor.last == at { cursor.run.saturating_add(1) } else { 1 };
        if at < cursor.last {
            // Spread over the paths, they would leave in as many sends, and their answers come in as many. Each path
            // has a turn as long as this one.
            self.turn.set(together.min(MAX_TOGETHER) as u32);
        }
        self.cursor.set(Cursor { last: at, run });
        Some(at)
    }

    /// Starts one of so many I/Os or lets it wait; the queue it went to, which is to be flushed.
    fn start(&self, io: Io<Self>, together: usize) -> Option<Rc<IoQueue>> {
        match io.op() {
            BdevOp::Reset => {
                self.reset(io);
                return None;
            }
            BdevOp::NvmeAdmin => {
                self.start_admin_command(io);
                return None;
            }
            _ => {}
        }
        let Some(at) = self.choose(io.context().shunned, together) else {
            self.park(io);
            return None;
        };
        let (queue, nsid) = {
            let paths = self.paths.borrow();
            (Rc::clone(&paths[at].queue), paths[at].nsid)
        };
        match io.op() {
            BdevOp::Copy => return self.start_copy(io, queue, nsid),
            BdevOp::NvmeIo => return self.start_io_command(io, queue, nsid),
            _ => {}
        }
        let wanted = Wanted {
            op: io.op(),
            flags: io.flags(),
            offset_blocks: io.offset_blocks(),
            num_blocks: io.num_blocks(),
        };
        let (sqe, travels) = match encode(nsid, &wanted) {
            Ok(encoded) => encoded,
            Err(status) => {
                io.complete(status);
                return None;
            }
        };
        let payload = match &travels {
            Travels::No => PayloadOf::None,
            Travels::In => PayloadOf::FromController,
            Travels::Out => PayloadOf::ToController,
            Travels::Range(range) => PayloadOf::Inline(range),
        };
        self.give(io, queue, &FabricCommand { sqe, payload })
    }

    /// Starts an I/O of a batch; the queue of those before is flushed if this one goes to another.
    #[inline]
    fn start_after(&self, last: &mut Option<Rc<IoQueue>>, io: Io<Self>, together: usize) {
        if let Some(queue) = self.start(io, together) {
            if let Some(other) = last.as_ref().filter(|other| !Rc::ptr_eq(other, &queue)) {
                other.flush();
            }
            *last = Some(queue);
        }
    }

    /// Gives the command of an I/O to a queue, or lets the I/O wait; the queue, which is to be flushed.
    #[inline]
    fn give(&self, mut io: Io<Self>, queue: Rc<IoQueue>, command: &FabricCommand<'_>) -> Option<Rc<IoQueue>> {
        if let Some(injected) = queue.door.injections.take(CommandType::Io, command.sqe[0])
            && let Some(delay_ns) = inject(&mut io, &queue, injected)
        {
            self.delay_until(io, self.host.now_ns() + delay_ns);
            return None;
        }
        let is_timed = queue.counts.is_timed() || self.table.options.counts_paths;
        let flight = io.context_mut();
        flight.channel = self.me.upgrade();
        flight.sent_ns = if is_timed { self.host.now_ns().max(1) } else { 0 };
        match queue.submit(command, io) {
            Ok(()) => Some(queue),
            Err((mut io, is_full)) => {
                io.context_mut().channel = None;
                if is_full {
                    self.wait(io);
                } else {
                    self.park(io);
                }
                None
            }
        }
    }

    /// Lets an I/O wait for a path, or fails it if none is to be expected.
    fn park(&self, io: Io<Self>) {
        match self.hope() {
            Hope::Yes => self.wait(io),
            Hope::Until(at_ns) => {
                self.wait(io);
                self.set_alarm(at_ns);
            }
            Hope::No(status) => io.complete(status),
        }
    }

    /// Lets an I/O wait, until its deadline at most.
    fn wait(&self, io: Io<Self>) {
        let deadline_ns = io.context().deadline_ns;
        self.waiting.push_back(io);
        if deadline_ns > 0 {
            self.set_alarm(deadline_ns);
        }
    }

    /// Whether a path is to be expected.
    fn hope(&self) -> Hope {
        if self.is_gone.get() {
            return Hope::No(IoStatus::NO_DEVICE);
        }
        let now_ns = self.host.now_ns();
        let paths = self.paths.borrow();
        let facts = self.facts.borrow();
        let (mut until_ns, mut status) = (None, NO_PATH);
        for (path, facts) in paths.iter().zip(facts.iter()) {
            if !path.queue.has_hope() {
                continue;
            }
            // Until it is known better: one that is not connected may come back in any state.
            if !path.queue.is_live() || facts.is_updating || !facts.is_present || facts.ana.is_accessible() {
                return Hope::Yes;
            }
            let deadline_ns = path.ana_deadline_ns.get();
            if deadline_ns > now_ns {
                until_ns = Some(until_ns.map_or(deadline_ns, |until: u64| until.max(deadline_ns)));
            } else {
                status = ana_status(facts.ana);
            }
        }
        until_ns.map_or(Hope::No(status), Hope::Until)
    }

    /// Something changed: tries whoever waits.
    pub(crate) fn kick(&self) {
        if self.is_gone.get() {
            self.waiting.complete_all(IoStatus::NO_DEVICE);
            self.delayed.complete_all(IoStatus::NO_DEVICE);
            self.resets.complete_all(IoStatus::NO_DEVICE);
            self.admin.complete_all(IoStatus::NO_DEVICE);
            return;
        }
        if !self.delayed.is_empty()
            && let Hope::No(status) = self.hope()
        {
            self.delayed.complete_all(status);
        }
        if self.alarm_at_ns.get() == u64::MAX && !self.delayed.is_empty() {
            // There is none: it could not be set.
            return self.time_is_up();
        }
        self.drive();
    }

    /// Tries everybody who waits, once.
    fn drive(&self) {
        if self.waiting.is_empty() || self.is_driving.replace(true) {
            return;
        }
        let mut last: Option<Rc<IoQueue>> = None;
        let together = self.waiting.len();
        for _ in 0..together {
            if self.is_full() {
                break;
            }
            let Some(io) = self.waiting.pop_front() else { break };
            self.start_after(&mut last, io, together);
        }
        if let Some(queue) = last {
            queue.flush();
        }
        self.is_driving.set(false);
    }

    /// There are live queues, and none has room: what waits goes on waiting.
    fn is_full(&self) -> bool {
        let paths = self.paths.borrow();
        paths.iter().any(|path| path.queue.is_live()) && !paths.iter().any(|path| path.queue.has_room())
    }

    /// An I/O came back from a queue.
    pub(crate) fn finished(&self, mut io: Io<Self>, queue: &Rc<IoQueue>, result: Result<Cqe, i32>) {
        io.context_mut().channel = None;
        let injected = io.context_mut().injected.take();
        self.end(io, queue, injected.map_or(result, |injected| result.map(|_| injected.1.completion())));
        if !self.waiting.is_empty() && queue.has_room() {
            self.drive();
        }
    }

    /// What becomes of an I/O that a queue has given back.
    #[inline]
    fn end(&self, mut io: Io<Self>, queue: &Rc<IoQueue>, result: Result<Cqe, i32>) {
        if io.op() == BdevOp::NvmeIo {
            return self.io_command_done(io, queue, result);
        }
        match result {
            Ok(cqe) if cqe.status.is_success() => {
                if io.context().sent_ns != 0 {
                    self.timed(&mut io, queue);
                }
                io.set_cdw0(cqe.dw0.get());
                match io.op() {
                    BdevOp::Copy => self.copied(io),
                    _ => io.complete(IoStatus::SUCCESS),
                }
            }
            Ok(cqe) => {
                self.failed(queue, &cqe);
                let limit = self.table.options.retry_limit;
                let retries_left = u32::try_from(limit).map_or(true, |limit| io.context().retries < limit);
                self.judged(io, queue, judge(cqe.status, retries_left, queue.delays.get()));
            }
            // Its connection went away: that is no fault of the I/O. What changes data may still be carried out: done
            // again too early, it could end up behind a later write.
            Err(_) => {
                if queue.is_late(&io) {
                    // It was the reason: not for ever.
                    io.context_mut().retries += 1;
                    let limit = self.table.options.retry_limit;
                    if u32::try_from(limit).is_ok_and(|limit| io.context().retries > limit) {
                        return io.complete(ABORTED_BY_HOST);
                    }
                }
                let quiet_at_ns = queue.quiet_at_ns();
                if quiet_at_ns > 0 && changes_data(io.op()) && quiet_at_ns > self.host.now_ns() {
                    self.delay_until(io, quiet_at_ns);
                } else {
                    self.again(io);
                }
            }
        }
    }

    /// A controller has ended a command with an error.
    #[cold]
    fn failed(&self, queue: &IoQueue, cqe: &Cqe) {
        queue.counts.failed.set(queue.counts.failed.get() + 1);
        if let Some(errors) = &self.table.errors {
            errors.count(cqe.status.code());
        }
    }

    /// An I/O that was timed is over.
    #[cold]
    fn timed(&self, io: &mut Io<Self>, queue: &Rc<IoQueue>) {
        let ns = self.host.now_ns().saturating_sub(std::mem::take(&mut io.context_mut().sent_ns));
        queue.counts.took(ns);
        let paths = self.paths.borrow();
        let path = paths.iter().find(|path| Rc::ptr_eq(&path.queue, queue));
        if let Some(tally) = path.and_then(|path| path.tally.as_ref()) {
            tally.count(io.op(), io.payload_len(), ns);
        }
    }

    fn judged(&self, mut io: Io<Self>, queue: &Rc<IoQueue>, verdict: Verdict) {
        match verdict {
            Verdict::Done(status) => io.complete(status),
            Verdict::Again { delay_ms } => {
                io.context_mut().retries += 1;
                self.delay(io, delay_ms.max(LEAST_RETRY_MS));
            }
            Verdict::Ana(state) => {
                self.suspect(queue, state);
                self.again(io);
            }
            Verdict::Elsewhere => {
                io.context_mut().retries += 1;
                io.context_mut().shunned = queue.door.id;
                self.delay(io, LEAST_RETRY_MS);
            }
        }
    }

    /// Tries an I/O on whatever path there is now.
    fn again(&self, io: Io<Self>) {
        if self.is_overdue(&io) {
            return io.complete(ABORTED_BY_HOST);
        }
        if let Some(queue) = self.start(io, 1) {
            queue.flush();
        }
    }

    /// The pause of an I/O is over; it may be one that only seemed to be on its way.
    fn due(&self, mut io: Io<Self>) {
        match io.context_mut().injected.take() {
            Some(injected) => self.finished(io, &injected.0, Ok(injected.1.completion())),
            None => self.again(io),
        }
    }

    fn delay(&self, io: Io<Self>, delay_ms: u64) {
        self.delay_until(io, self.host.now_ns() + delay_ms * 1_000_000);
    }

    /// Lets an I/O wait for a time, until its deadline at most.
    fn delay_until(&self, mut io: Io<Self>, due_ns: u64) {
        io.context_mut().due_ns = due_ns;
        let next_ns = io.context().next_ns();
        self.delayed.push_back(io);
        self.set_alarm(next_ns);
    }

    /// Whether an I/O is not to be tried any more.
    fn is_overdue(&self, io: &Io<Self>) -> bool {
        let deadline_ns = io.context().deadline_ns;
        deadline_ns > 0 && deadline_ns <= self.host.now_ns()
    }

    /// Notes when an I/O that has just come fails at the latest.
    #[inline]
    fn set_deadline(&self, io: &mut Io<Self>) {
        let limit_ns = self.table.options.io_deadline_ns;
        if limit_ns > 0 {
            io.context_mut().deadline_ns = self.host.now_ns().saturating_add(limit_ns);
        }
    }

    /// A path's controller says it is in another state than known: it is not used until that is cleared up.
    fn suspect(&self, queue: &Rc<IoQueue>, state: AnaState) {
        let paths = self.paths.borrow();
        let mut facts = self.facts.borrow_mut();
        let Some(at) = paths.iter().position(|path| Rc::ptr_eq(&path.queue, queue)) else { return };
        if facts[at].ana == state && facts[at].is_updating {
            return;
        }
        facts[at].ana = state;
        if !std::mem::replace(&mut facts[at].is_updating, true) {
            module::ana_suspected(self.host, queue.door.id);
        }
    }

    fn set_alarm(&self, at_ns: u64) {
        if at_ns >= self.alarm_at_ns.get() {
            return;
        }
        let delay_ns = at_ns.saturating_sub(self.host.now_ns()).max(1);
        let Some(alarm) = &*self.alarm.borrow() else { return };
        match alarm.set_ns(delay_ns) {
            Ok(()) => self.alarm_at_ns.set(at_ns),
            Err(error) => {
                log::error!("i/o waits longer than it should error=\"{error}\"");
                self.alarm_at_ns.set(u64::MAX);
                module::kick_wanted(self.host);
            }
        }
    }

    fn time_is_up(&self) {
        let now_ns = self.host.now_ns();
        self.alarm_at_ns.set(u64::MAX);
        let mut next_ns = u64::MAX;
        for _ in 0..self.delayed.len() {
            let Some(io) = self.delayed.pop_front() else { break };
            if self.is_overdue(&io) {
                io.complete(ABORTED_BY_HOST);
            } else if io.context().due_ns <= now_ns {
                self.due(io);
            } else {
                next_ns = next_ns.min(io.context().next_ns());
                self.delayed.push_back(io);
            }
        }
        if self.table.options.io_deadline_ns > 0 {
            next_ns = next_ns.min(self.give_up_waiting());
        }
        self.drive();
        if next_ns != u64::MAX {
            self.set_alarm(next_ns);
        }
    }

    /// Fails the I/Os that have waited until their deadline; the deadline of the next of them.
    fn give_up_waiting(&self) -> u64 {
        let mut next_ns = u64::MAX;
        for _ in 0..self.waiting.len() {
            let Some(io) = self.waiting.pop_front() else { break };
            if self.is_overdue(&io) {
                io.complete(ABORTED_BY_HOST);
            } else {
                next_ns = next_ns.min(io.context().deadline_ns);
                self.waiting.push_back(io);
            }
        }
        next_ns
    }

    /// A reset of the device begins its controllers anew; the host has drained it before.
    fn reset(&self, io: Io<Self>) {
        self.resets.push_back(io);
        let Some(reactor) = self.host.reactor() else { return };
        module::reset_wanted(self.host, self.device(), reactor);
    }

    /// The reset is over.
    pub(crate) fn reset_done(&self, status: IoStatus) {
        self.resets.complete_all(status);
    }

    /// How its paths are, by the function that chooses among them.
    pub(crate) fn report(&self, reactor: Reactor) -> Vec<PathReport> {
        let paths = self.paths.borrow();
        let mut facts = self.facts.borrow_mut();
        for (path, facts) in paths.iter().zip(facts.iter_mut()) {
            facts.is_connected = path.queue.is_live();
            facts.in_flight = path.queue.in_flight();
            facts.latency_ns = path.queue.counts.latency_ns.get();
        }
        let (rules, cursor) = (self.rules.get(), self.cursor.get());
        let report = |(at, path): (usize, &Path)| PathReport {
            controller: path.queue.door.id,
            reactor: reactor.index().unwrap_or(u32::MAX),
            is_current: is_current(&facts, &rules, cursor, at),
            is_connected: facts[at].is_connected,
            is_accessible: facts[at].is_accessible(),
            commands: path.queue.counts.commands.get(),
            failed: path.queue.counts.failed.get(),
            in_flight: facts[at].in_flight,
            latency_ns: facts[at].latency_ns,
            obstacle: facts[at].obstacle(),
            counted: path.tally.as_ref().map(|tally| tally.get()),
        };
        paths.iter().enumerate().map(report).collect()
    }
}

/// Notes how an I/O is to end; how long it only seems to be on its way, if it is not to be sent.
#[cold]
fn inject(io: &mut Io<NvmeChannel>, queue: &Rc<IoQueue>, injected: Injected) -> Option<u64> {
    io.context_mut().injected = Some(Box::new((Rc::clone(queue), injected)));
    injected.unsent_for_ns
}

/// The path for an I/O that `shunned` has just failed: the same only if there is no other.
#[cold]
fn select_but(
    shunned: u64,
    paths: &[Path],
    facts: &mut [PathFacts],
    rules: &Rules,
    cursor: Cursor,
) -> Option<usize> {
    if let Some(at) = paths.iter().position(|path| path.queue.door.id == shunned) {
        let is_connected = std::mem::replace(&mut facts[at].is_connected, false);
        let other = select(facts, rules, cursor);
        facts[at].is_connected = is_connected;
        if other.is_some() {
            return other;
        }
    }
    select(facts, rules, cursor)
}

/// Whether a path is to be expected.
enum Hope {
    Yes,
    /// Yes, but not after this.
    Until(u64),
    /// No; what I/O fails with.
    No(IoStatus),
}

/// Whether an I/O leaves something behind.
fn changes_data(op: BdevOp) -> bool {
    !matches!(op, BdevOp::Read | BdevOp::Flush | BdevOp::Compare | BdevOp::Verify | BdevOp::Reset)
}

fn ana_status(state: AnaState) -> IoStatus {
    match state {
        AnaState::PERSISTENT_LOSS => IoStatus::nvme(3, 0x01),
        AnaState::CHANGE => IoStatus::nvme(3, 0x03),
        _ => IoStatus::nvme(3, 0x02),
    }
}

impl Channel for NvmeChannel {
    type PerIo = Flight;

    fn submit(&self, mut io: Io<Self>) {
        self.set_deadline(&mut io);
        if let Some(queue) = self.start(io, 1) {
            queue.flush();
        }
    }

    fn submit_batch(&self, batch: IoBatch<'_, Self>) {
        let mut last: Option<Rc<IoQueue>> = None;
        let together = batch.len();
        for mut io in batch {
            self.set_deadline(&mut io);
            self.start_after(&mut last, io, together);
        }
        if let Some(queue) = last {
            queue.flush();
        }
    }

    fn abort(&self, victim: Victim) -> bool {
        for queue in [&self.waiting, &self.delayed, &self.admin] {
            if let Some(io) = queue.remove(victim) {
                io.complete(IoStatus::ABORTED);
                return true;
            }
        }
        let paths = self.paths.borrow();
        for path in paths.iter() {
            if let Some((qid, cid)) = path.queue.find(victim) {
                module::abort_wanted(self.host, path.queue.door.id, qid, cid);
                return true;
            }
        }
        false
    }
}

/// Longest turn of a path for I/Os submitted at once: a send of as many is nearly as good as a larger one.
const MAX_TOGETHER: usize = 32;
/// Pause before an I/O that failed is tried again, if the controller asks for none.
const LEAST_RETRY_MS: u64 = 10;
