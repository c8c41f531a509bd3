//! What runs beside I/O for as long as it takes: a rebuild or a scrub, window by
//! window. A window is locked against writes, worked through (`window.rs`), and
//! followed by the next, at once while the array is idle, otherwise after a pause
//! that leaves the members to its users. Also rewrites single ranges that could
//! not be read. Who may run when is in `change.rs`.

use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tenon_sdk::{BaseChannel, BdevId, DmaBuf, Error, Exported, Timer};

use crate::RaidModule;
use crate::array::{Array, Inner, Standing};
use crate::change::{Task, Why};
use crate::config::RaidOptions;
use crate::intent::Words;
use crate::layout::Layout;
use crate::level::Level;
use crate::state::ArrayState;
use crate::window::{self, Failure, Found, Place, Pool, Work};

/// A rebuild or a scrub under way.
pub struct Process {
    /// Which.
    pub kind: Kind,
    /// Blocks that are done, of `total_blocks`.
    pub done_blocks: u64,
    /// Blocks of data areas to go through.
    pub total_blocks: u64,
    /// Whether an operator has stopped it for a while.
    pub is_paused: bool,
    /// Since when, by the host's clock, and from which block its rate is computed.
    since: (u64, u64),
    /// Blocks of the next window.
    window_blocks: u64,
    channels: Vec<(usize, BaseChannel)>,
    pool: Pool,
    /// Of a rebuild: regions that may differ, if that is known.
    dirty: Option<Words>,
    /// Whether the target holds all but those.
    is_delta: bool,
    /// Blocks that the target got before the last restart, all but those regions.
    resume_at: u64,
    /// Blocks that were done when that was recorded last.
    recorded: u64,
    /// Runs until the next window is due.
    timer: Option<Timer>,
}

/// What a process does.
#[derive(Clone, Copy)]
pub enum Kind {
    /// A member gets its content.
    Rebuild {
        /// Its slot.
        slot: usize,
    },
    /// Members are compared.
    Scrub(Report),
    /// Regions that may differ since a crash, or in a new array, are made equal.
    Resync,
}

/// What a scrub has found so far.
#[derive(Clone, Copy, Debug, Default)]
pub struct Report {
    /// Whether it writes.
    pub is_repair: bool,
    /// What it found.
    pub found: Found,
    /// How it ended; `None` while it runs.
    pub end: Option<&'static str>,
}

/// One window.
struct Plan {
    blocks: Range<u64>,
    locked: Range<u64>,
    layout: Arc<Layout>,
    sources: Vec<usize>,
    target: Option<usize>,
}

impl Process {
    /// A process that begins now; `channels` are those of all members it needs, on the control thread.
    pub fn new(kind: Kind, total_blocks: u64, now_ns: u64, channels: Vec<(usize, BaseChannel)>) -> Process {
        Process {
            kind,
            done_blocks: 0,
            total_blocks,
            is_paused: false,
            since: (now_ns, 0),
            window_blocks: 0,
            channels,
            pool: Pool::default(),
            dirty: None,
            is_delta: false,
            resume_at: 0,
            recorded: 0,
            timer: None,
        }
    }

    /// The slot that is being rebuilt.
    pub fn target(&self) -> Option<usize> {
        match self.kind {
            Kind::Rebuild { slot } => Some(slot),
            Kind::Scrub(_) | Kind::Resync => None,
        }
    }

    /// Whether it works with the member of that slot.
    pub fn uses(&self, slot: usize) -> bool {
        self.channels.iter().any(|(other, _)| *other == slot)
    }

    /// Goes on without members.
    pub fn let_go(&mut self, is_lost: impl Fn(usize) -> bool) {
        self.channels.retain(|(slot, _)| !is_lost(*slot));
    }

    /// Blocks per second, and how many seconds are left if that is known.
    pub fn pace(&self, now_ns: u64) -> (u64, Option<u64>) {
        let (since_ns, from) = self.since;
        let elapsed_ns = u128::from(now_ns.saturating_sub(since_ns).max(1));
        let done = u128::from(self.done_blocks.saturating_sub(from));
        let rate = if self.is_paused { 0 } else { done * 1_000_000_000 / elapsed_ns };
        let rate = u64::try_from(rate).unwrap_or(u64::MAX);
        (rate, (self.total_blocks - self.done_blocks).checked_div(rate))
    }

    /// As clients see it.
    pub fn status(&self, now_ns: u64, block_size: u32, target: Option<&str>) -> Value {
        let (rate, left_sec) = self.pace(now_ns);
        let mut status = json!({
            "type": match self.kind { Kind::Rebuild { .. } => "rebuild", Kind::Scrub(_) => "scrub", Kind::Resync => "resync" },
            "state": if self.is_paused { "paused" } else { "running" },
            "progress": {
                "blocks": self.done_blocks,
                "percent": self.done_blocks * 100 / self.total_blocks.max(1),
            },
            "blocks_per_sec": rate,
            "bytes_per_sec": rate.saturating_mul(block_size.into()),
            "remaining_sec": left_sec,
        });
        if matches!(self.kind, Kind::Rebuild { .. }) {
            status["is_delta"] = json!(self.is_delta);
            status["resumed_at_block"] = json!(self.resume_at);
        }
        if let Some(target) = target {
            status["target"] = json!(target);
        }
        status
    }

    /// The next window, smaller the more it is in the way.
    fn plan(&self, inner: &Inner, smallest: u64) -> Option<Plan> {
        let layout = Arc::clone(inner.layout.as_ref()?);
        let size = layout.data_sizes.iter().copied().min()?;
        // A scrub of pairs goes through one pair after the other.
        let (column, from) = (self.done_blocks / size, self.done_blocks % size);
        // Where most is passed over, large windows would hold more than what has to be done.
        let is_known =
            self.is_delta || self.done_blocks < self.resume_at || matches!(self.kind, Kind::Resync);
        let window = if is_known { smallest } else { self.window_blocks.max(smallest) };
        let mut to = (from + window).min(size);
        if from < self.resume_at {
            to = to.min(self.resume_at);
        }
        let blocks = if self.done_blocks == self.total_blocks { from..from } else { from..to };
        let there = |slots: Range<usize>| slots.filter(|slot| self.uses(*slot)).collect::<Vec<_>>();
        let all = 0..layout.members();
        let (sources, target) = match self.kind {
            Kind::Rebuild { slot } => {
                let mut sources = there(if layout.level.is_parity() { all } else { layout.copies_of(slot) });
                sources.retain(|source| *source != slot);
                (sources, Some(slot))
            }
            Kind::Scrub(_) | Kind::Resync if layout.level == Level::Raid10 => {
                (there(layout.copies_of(column as usize * 2)), None)
            }
            Kind::Scrub(_) | Kind::Resync => (there(all), None),
        };
        Some(Plan { locked: layout.array_range(&blocks), blocks, layout, sources, target })
    }

    /// What is known of the target.
    pub fn recall(&mut self, is_delta: bool, resume_at: u64) {
        (self.is_delta, self.resume_at) = (is_delta, resume_at);
    }

    /// The blocks of the next window, and those of the array that depend on them; `None` after the last.
    pub fn next_blocks(&self, inner: &Inner, smallest: u64) -> Option<(Range<u64>, Range<u64>)> {
        let plan = self.plan(inner, smallest).filter(|plan| !plan.blocks.is_empty())?;
        Some((plan.blocks, plan.locked))
    }

    /// Whether a window must be worked through.
    pub fn is_needed(&self, inner: &Inner, blocks: &Range<u64>, locked: &Range<u64>) -> bool {
        let Some(marking) = &inner.marking else { return true };
        match (self.kind, &self.dirty) {
            (Kind::Scrub(_), _) => true,
            (Kind::Resync, _) => marking.intent.is_unsynced(locked),
            (Kind::Rebuild { .. }, None) => true,
            (Kind::Rebuild { .. }, Some(dirty)) => {
                let is_known = self.is_delta || blocks.end <= self.resume_at;
                !is_known || marking.intent.overlaps(dirty, locked)
            }
        }
    }

    /// Whether the progress of a rebuild is to be recorded now.
    pub fn is_record_due(&mut self) -> bool {
        let step = (self.total_blocks / RECORDS).max(1);
        let is_due = self.target().is_some() && self.done_blocks >= self.recorded + step;
        if is_due {
            self.recorded = self.done_blocks;
        }
        is_due
    }

    /// The next window is larger if this one was short and nobody was in the way.
    fn adapt(&mut self, took_ns: u64, smallest: u64, largest: u64, is_used: bool, options: &RaidOptions) {
        let now = self.window_blocks.max(smallest);
        self.window_blocks = if is_used || options.process_max_bandwidth_mb_sec > 0 {
            smallest
        } else if took_ns > LONG_NS {
            (now / 2).max(smallest)
        } else if took_ns < SHORT_NS {
            (now * 2).min(largest.max(smallest))
        } else {
            now
        };
    }
}

impl Report {
    /// As clients see it.
    pub fn status(&self) -> Value {
        json!({
            "mode": if self.is_repair { "repair" } else { "check" },
            "state": self.end.unwrap_or("running"),
            "mismatched_blocks": self.found.mismatches,
            "unreadable_blocks": self.found.unreadable,
            "lost_blocks": self.found.lost,
            "repaired_blocks": self.found.repaired,
            "first_block": self.found.first,
        })
    }

    fn add(&mut self, found: Found) {
        self.found.mismatches += found.mismatches;
        self.found.unreadable += found.unreadable;
        self.found.lost += found.lost;
        self.found.repaired += found.repaired;
        self.found.first = self.found.first.into_iter().chain(found.first).min();
    }
}

impl Inner {
    /// Why members cannot be compared now.
    fn scrub_refusal(&self) -> Option<String> {
        if self.state != ArrayState::Online {
            Some("array is not online".to_owned())
        } else if !self.params.level.is_redundant() {
            Some(format!("{} has nothing to compare", self.params.level.name()))
        } else if self.current().len() < self.slots.len() {
            Some("a member is missing or being rebuilt; scrub when the array is whole".to_owned())
        } else if self.process.is_some() {
            Some("another process runs".to_owned())
        } else {
            None
        }
    }
}

impl Array {
    /// Begins a scrub.
    ///
    /// # Errors
    /// If the array has nothing to compare, lacks a member, or is busy with another process.
    pub fn start_scrub(self: &Rc<Self>, is_repair: bool) -> Result<(), Error> {
        let refusal = {
            let inner = self.inner.borrow();
            let waits = inner.tasks.iter().any(|task| matches!(task, Task::Scrub { .. }));
            inner.scrub_refusal().or_else(|| waits.then(|| "a scrub waits for its turn already".to_owned()))
        };
        if let Some(reason) = refusal {
            return Err(Error::busy(reason).object(&*self.name));
        }
        // Until it is its turn nobody may take the last report for its own.
        self.inner.borrow_mut().report =
            Some(Report { is_repair, end: Some("waiting"), ..Report::default() });
        self.push(Task::Scrub { is_repair });
        Ok(())
    }

    /// It is the turn of a scrub that was asked for.
    pub fn scrub(self: &Rc<Self>, is_repair: bool) {
        let refusal = self.inner.borrow().scrub_refusal();
        if let Some(reason) = refusal {
            log::warn!("scrub not begun raid={} reason=\"{reason}\"", self.name);
            self.inner.borrow_mut().report =
                Some(Report { is_repair, end: Some("interrupted"), ..Report::default() });
            return self.task_done();
        }
        self.begin(Kind::Scrub(Report { is_repair, ..Report::default() }));
    }

    /// Ends a scrub before it is done.
    ///
    /// # Errors
    /// If none runs.
    pub fn stop_scrub(self: &Rc<Self>) -> Result<(), Error> {
        let (is_scrub, has_waited) = {
            let mut inner = self.inner.borrow_mut();
            let is_scrub = |process: &Process| matches!(process.kind, Kind::Scrub(_));
            let before = inner.tasks.len();
            inner.tasks.retain(|task| !matches!(task, Task::Scrub { .. }));
            let has_waited = inner.tasks.len() < before;
            if let Some(report) = inner.report.as_mut().filter(|_| has_waited) {
                report.end = Some("stopped");
            }
            (inner.process.as_ref().is_some_and(is_scrub), has_waited)
        };
        if !is_scrub && !has_waited {
            return Err(Error::new(tenon_sdk::errno::ENOENT, "no scrub runs").object(&*self.name));
        }
        self.end_scrub("stopped");
        Ok(())
    }

    /// A scrub that runs is over.
    pub fn end_scrub(&self, end: &'static str) {
        let mut inner = self.inner.borrow_mut();
        let Some(Process { kind: Kind::Scrub(mut report), .. }) = inner.process else { return };
        report.end = Some(end);
        inner.process = None;
        inner.report = Some(report);
        drop(inner);
        let found = report.found;
        let level = if found == Found::default() { log::Level::Info } else { log::Level::Warn };
        log::log!(
            level,
            "scrub {end} raid={} mismatched_blocks={} unreadable_blocks={} lost_blocks={} repaired_blocks={} \
             first_block={:?}",
            self.name,
            found.mismatches,
            found.unreadable,
            found.lost,
            found.repaired,
            found.first
        );
        self.publish_process();
    }

    /// Stops the process for a while, or lets it go on.
    ///
    /// # Errors
    /// If none runs.
    pub fn pause_process(self: &Rc<Self>, is_paused: bool) -> Result<(), Error> {
        let now_ns = self.host.now_ns();
        let has_changed = {
            let mut inner = self.inner.borrow_mut();
            let Some(process) = inner.process.as_mut() else {
                return Err(Error::new(tenon_sdk::errno::ENOENT, "no process runs").object(&*self.name));
            };
            process.since = (now_ns, process.done_blocks);
            std::mem::replace(&mut process.is_paused, is_paused) != is_paused
        };
        if has_changed {
            log::info!("process {} raid={}", if is_paused { "paused" } else { "resumed" }, self.name);
            self.publish_process();
            if !is_paused {
                self.push_window();
            }
        }
        Ok(())
    }

    /// Has the next window done when its turn comes; there is at most one in the queue.
    pub fn push_window(self: &Rc<Self>) {
        let is_queued = {
            let inner = self.inner.borrow();
            inner.tasks.iter().any(|task| matches!(task, Task::Window))
        };
        if !is_queued {
            self.push(Task::Window);
        }
    }

    /// Begins the process: members are opened on the control thread.
    pub fn begin(self: &Rc<Self>, kind: Kind) {
        let plan = {
            let inner = self.inner.borrow();
            inner.layout.clone().map(|layout| {
                let mut bases = inner.current();
                if let Kind::Rebuild { slot } = kind {
                    bases.extend(inner.slots[slot].base.clone().map(|base| (slot, base)));
                }
                (layout, bases)
            })
        };
        let Some((layout, bases)) = plan else { return self.task_done() };
        let mut channels = Vec::new();
        for (slot, base) in bases {
            match base.channel() {
                Ok(channel) => channels.push((slot, channel)),
                Err(error) => log::warn!("no channel for a process raid={} error=\"{error}\"", self.name),
            }
        }
        let size = layout.data_sizes.iter().copied().min().unwrap_or(0);
        let columns = match (kind, layout.level) {
            (Kind::Scrub(_) | Kind::Resync, Level::Raid10) => layout.members() as u64 / 2,
            (_, _) => 1,
        };
        let process = Process::new(kind, size * columns, self.host.now_ns(), channels);
        {
            let mut inner = self.inner.borrow_mut();
            inner.process = Some(process);
            inner.recall_rebuild();
        }
        match kind {
            Kind::Rebuild { slot } => log::info!("rebuild begins raid={} slot={slot}", self.name),
            Kind::Resync => log::info!("resync begins raid={}", self.name),
            Kind::Scrub(report) => log::info!("scrub begins raid={} repair={}", self.name, report.is_repair),
        }
        self.publish_process();
        if !matches!(kind, Kind::Rebuild { .. }) {
            return self.direct(false, 0..0, Array::begun);
        }
        // The target is told of its array before anything is written to it, so that it is found after a restart. It
        // gets the bitmap even earlier: once it counts, it may be the only one that knows what another member lacks.
        self.bitmap_everywhere(move |array| {
            array.direct(true, 0..0, move |array| {
                array.commit(move |array, is_durable| {
                    if is_durable {
                        array.direct(false, 0..0, Array::begun);
                    } else {
                        array.fail_array(Why::Failed);
                    }
                });
            });
        });
    }

    /// Channels write to all members of the process.
    fn begun(self: &Rc<Self>) {
        {
            let mut inner = self.inner.borrow_mut();
            // From now on writes reach the target as well, so what is marked now is all it lacks.
            let dirty = inner.marking.as_ref().map(|marking| marking.intent.marked());
            if let Some(process) = inner.process.as_mut() {
                process.dirty = dirty;
            }
            inner.tasks.push_back(Task::Window);
        }
        self.task_done();
    }

    /// Locks the next window against writes and works through it; after the last one the process is done.
    pub fn next_window(self: &Rc<Self>) {
        let options = RaidModule::with(|module| module.options()).unwrap_or_default();
        let plan = {
            let mut inner = self.inner.borrow_mut();
            let smallest = smallest_window(&inner, &options);
            inner.skip_clean(smallest);
            let process = inner.process.as_ref().filter(|process| !process.is_paused);
            process.and_then(|process| process.plan(&inner, smallest))
        };
        match plan {
            // Writes to the last window go on.
            None => self.direct(false, 0..0, Array::task_done),
            Some(plan) if plan.blocks.is_empty() => self.process_is_through(),
            Some(plan) => self.direct(false, plan.locked.clone(), move |array| array.do_window(plan)),
        }
    }

    fn do_window(self: &Rc<Self>, plan: Plan) {
        let started_ns = self.host.now_ns();
        let locked = plan.locked.clone();
        let (sources, target, pool, work) = {
            let inner = self.inner.borrow();
            let Some(process) = inner.process.as_ref() else {
                drop(inner);
                return self.direct(false, 0..0, Array::task_done);
            };
            let place = |slot: usize| {
                let (_, channel) = process.channels.iter().find(|(other, _)| *other == slot)?;
                Some(Place { slot, channel: channel.clone(), data_offset: inner.slots[slot].data_offset })
            };
            let sources: Vec<Place> = plan.sources.iter().filter_map(|slot| place(*slot)).collect();
            let work = match process.kind {
                Kind::Scrub(report) => Work::Check { is_repair: report.is_repair, first_counts: false },
                Kind::Rebuild { .. } | Kind::Resync => Work::Check { is_repair: true, first_counts: true },
            };
            (sources, plan.target.map(place), process.pool.clone(), work)
        };
        let is_complete = match plan.layout.level {
            Level::Raid5 | Level::Raid5f => {
                sources.len() + usize::from(target.is_some()) == plan.layout.members()
            }
            Level::Raid0 | Level::Raid1 | Level::Raid10 | Level::Concat => !sources.is_empty(),
        };
        let work = match target {
            Some(target) => target.map(Work::Restore),
            None => Some(work),
        };
        let Some(work) = work.filter(|_| is_complete) else {
            let failure = Failure { slot: plan.target, error: Error::io("a member it needs is not there") };
            return self.window_failed(failure);
        };
        let (this, blocks) = (Rc::clone(self), plan.blocks.end - plan.blocks.start);
        window::run(self.host, plan.layout, sources, work, pool, plan.blocks, move |result| match result {
            Err(failure) => this.window_failed(failure),
            Ok(found) => this.window_done(started_ns, blocks, &locked, found),
        });
    }

    /// The next window follows at once, or later if the array is used or the rate is limited.
    fn window_done(self: &Rc<Self>, started_ns: u64, blocks: u64, locked: &Range<u64>, found: Found) {
        let options = RaidModule::with(|module| module.options()).unwrap_or_default();
        let took_ns = self.host.now_ns() - started_ns;
        let wait_ns = {
            let mut inner = self.inner.borrow_mut();
            let is_used = inner.shared.as_ref().is_some_and(|shared| shared.take_use());
            let smallest = smallest_window(&inner, &options);
            let block_size = u64::from(inner.block_size);
            let wait_ns = options.pause_ns(took_ns, blocks * block_size, is_used);
            inner.window_is_equal(locked);
            if let Some(process) = inner.process.as_mut() {
                process.done_blocks += blocks;
                process.adapt(took_ns, smallest, LARGEST_BYTES / block_size.max(1), is_used, &options);
                if let Kind::Scrub(report) = &mut process.kind {
                    report.add(found);
                }
            }
            wait_ns
        };
        self.publish_process();
        self.record_progress(move |array| array.after_window(wait_ns));
    }

    fn after_window(self: &Rc<Self>, wait_ns: u64) {
        let is_last = self.inner.borrow().process.as_ref().is_none_or(|p| p.done_blocks == p.total_blocks);
        if wait_ns == 0 || is_last {
            self.inner.borrow_mut().tasks.push_back(Task::Window);
            return self.task_done();
        }
        // Writes to the window go on meanwhile.
        self.direct(false, 0..0, move |array| {
            let weak = Rc::downgrade(array);
            let go_on = move || {
                if let Some(array) = weak.upgrade() {
                    array.push_window();
                }
            };
            match array.host.timer(Duration::from_nanos(wait_ns), go_on) {
                Ok(timer) => {
                    if let Some(process) = array.inner.borrow_mut().process.as_mut() {
                        process.timer = Some(timer);
                    }
                }
                Err(error) => {
                    log::warn!("process cannot wait raid={} error=\"{error}\"", array.name);
                    array.inner.borrow_mut().tasks.push_back(Task::Window);
                }
            }
            array.task_done();
        });
    }

    fn window_failed(self: &Rc<Self>, failure: Failure) {
        let target = self.inner.borrow().process.as_ref().and_then(Process::target);
        log::error!("window failed raid={} slot={:?} error=\"{}\"", self.name, failure.slot, failure.error);
        match (target, failure.slot) {
            (Some(target), _) => {
                self.note_failure(target, &format!("not rebuilt: {}", failure.error));
                // Writes are on their way to it: channels let go of it when those are over.
                self.direct(true, 0..0, move |array| {
                    array.inner.borrow_mut().slots[target].standing = Standing::Failed;
                    array.without_lost(Why::Failed);
                });
            }
            (None, slot) => {
                self.end_scrub("failed");
                self.inner.borrow_mut().process.take_if(|process| matches!(process.kind, Kind::Resync));
                if let Some(slot) = slot {
                    self.member_failed(slot, &failure.error.to_string());
                }
                self.direct(false, 0..0, Array::task_done);
            }
        }
    }

    fn process_is_through(self: &Rc<Self>) {
        let target = self.inner.borrow().process.as_ref().and_then(Process::target);
        if let Some(slot) = target {
            return self.rebuilt(slot);
        }
        self.end_scrub("completed");
        let is_resync = {
            let mut inner = self.inner.borrow_mut();
            inner.process.take_if(|process| matches!(process.kind, Kind::Resync)).is_some()
        };
        if is_resync {
            if let Some(marking) = &self.inner.borrow().marking {
                marking.intent.all_synced();
            }
            log::info!("resync is done raid={}", self.name);
            self.publish_process();
            self.watch_rest();
        }
        self.direct(false, 0..0, |array| {
            array.make_whole();
            array.task_done();
        });
    }

    /// The whole member was copied: it counts from the moment the superblock says so.
    fn rebuilt(self: &Rc<Self>, slot: usize) {
        self.direct(true, 0..0, move |array| {
            {
                let mut inner = array.inner.borrow_mut();
                inner.slots[slot].standing = Standing::Current;
                let names = inner.slots.iter().map(crate::array::Slot::label).collect();
                inner.params.base_bdevs = crate::config::BaseNames::List(names);
            }
            array.commit(move |array, is_durable| {
                array.inner.borrow_mut().process = None;
                array.publish_process();
                if is_durable {
                    log::info!("rebuild is done raid={} slot={slot}", array.name);
                    array.without_lost(Why::Failed);
                } else {
                    array.fail_array(Why::Failed);
                }
            });
        });
    }

    /// A channel could not read blocks of a member, and found them elsewhere.
    pub fn correct(self: &Rc<Self>, slot: usize, bdev: BdevId, blocks: Range<u64>) {
        self.push(Task::Correct { slot, bdev, blocks });
    }

    /// Rewrites blocks of a member that it could not read; a member that cannot be written, or still not read, fails.
    pub fn correct_now(self: &Rc<Self>, slot: usize, bdev: BdevId, blocks: Range<u64>) {
        let plan = {
            let inner = self.inner.borrow();
            if let Some(shared) = &inner.shared {
                shared.end_correction();
            }
            correction(&inner, slot, bdev)
        };
        let Some((layout, mut sources, target)) = plan else { return self.task_done() };
        sources.retain(|place| place.slot != slot);
        let strip = layout.strip_blocks.max(1);
        let whole = blocks.start / strip * strip..blocks.end.next_multiple_of(strip);
        self.direct(false, layout.array_range(&whole), move |array| {
            let this = Rc::clone(array);
            array.reads(&target.clone(), blocks.clone(), move |can_read| {
                if can_read {
                    return this.direct(false, 0..0, Array::task_done);
                }
                let (array, place, range) = (Rc::clone(&this), target.clone(), blocks.clone());
                let work = Work::Restore(target);
                window::run(this.host, layout, sources, work, Pool::default(), blocks, move |result| {
                    match result {
                        Ok(_) => {
                            let this = Rc::clone(&array);
                            array.reads(&place, range, move |can_read| this.corrected(slot, can_read));
                        }
                        Err(failure) => array.corrected(slot, failure.slot.is_none()),
                    }
                });
            });
        });
    }

    fn corrected(self: &Rc<Self>, slot: usize, is_well: bool) {
        if is_well {
            self.inner.borrow_mut().corrected += 1;
            log::warn!("read error corrected raid={} slot={slot}", self.name);
        } else {
            self.note_failure(slot, "a block that cannot be read cannot be rewritten");
            let mut inner = self.inner.borrow_mut();
            let member = inner.slots[slot].member;
            inner.tasks.push_front(Task::Lose { slot, member, why: Why::Failed });
        }
        self.publish_process();
        self.direct(false, 0..0, Array::task_done);
    }

    /// Whether a member can read these blocks.
    fn reads(&self, place: &Place, blocks: Range<u64>, then: impl FnOnce(bool) + 'static) {
        let len = (blocks.end - blocks.start) as usize * place.channel.payload_block_size();
        let buffer: Result<DmaBuf, Error> = self.host.alloc(len, 4096, -1);
        match buffer {
            Ok(buffer) => {
                place.channel.read(place.data_offset + blocks.start, buffer, move |_, status| {
                    then(status.is_success());
                });
            }
            Err(error) => {
                log::debug!("read error not corrected raid={} error=\"{error}\"", self.name);
                then(true);
            }
        }
    }
}

type Correction = (Arc<Layout>, Vec<Place>, Place);

/// What is needed to rewrite blocks of a member, if it is still the one that could not read, and the others are there.
fn correction(inner: &Inner, slot: usize, bdev: BdevId) -> Option<Correction> {
    let layout = inner.layout.clone()?;
    let is_it = |(other, base): &(usize, tenon_sdk::Descriptor)| *other == slot && base.id() == bdev;
    let current = inner.current();
    current.iter().find(|member| is_it(member))?;
    let slots = if layout.level.is_parity() { 0..layout.members() } else { layout.copies_of(slot) };
    let place = |(slot, base): &(usize, tenon_sdk::Descriptor)| {
        let channel = base.channel().ok()?;
        Some(Place { slot: *slot, channel, data_offset: inner.slots[*slot].data_offset })
    };
    let places: Vec<Place> =
        current.iter().filter(|(slot, _)| slots.contains(slot)).filter_map(place).collect();
    let target = places.iter().find(|place| place.slot == slot)?.clone();
    let is_enough = if layout.level.is_parity() { places.len() == slots.len() } else { places.len() > 1 };
    is_enough.then_some((layout, places, target))
}

/// Blocks of a window that is in nobody's way, in whole strips.
fn smallest_window(inner: &Inner, options: &RaidOptions) -> u64 {
    let blocks = u64::from(options.process_window_size_kb) * 1024 / u64::from(inner.block_size.max(1));
    blocks.max(1).next_multiple_of(inner.strip_blocks().max(1))
}

/// How often the progress of a rebuild is recorded.
const RECORDS: u64 = 64;
/// A window that takes less is followed by a larger one while nobody uses the array.
const SHORT_NS: u64 = 10_000_000;
/// A window that takes more is followed by a smaller one.
const LONG_NS: u64 = 40_000_000;
/// Bytes of the largest window.
const LARGEST_BYTES: u64 = 16 << 20;
