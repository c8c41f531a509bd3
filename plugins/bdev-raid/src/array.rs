//! An array on the control thread: its members, its state, and the small steps
//! that the longer stories are made of: `create.rs` brings it up, `assembly.rs`
//! collects members by their superblocks, `change.rs` loses and gains members,
//! `status.rs` tells about it.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;

use tenon_sdk::{
    Access, BaseEvent, BdevFlags, BdevId, BdevInfo, BdevOp, Claim, Descriptor, Error, ExamineToken, Exported,
    Host, OpSet, OpToken, Reason, Timer,
};

use crate::RaidModule;
use crate::agreement::Agreement;
use crate::change::{Task, Why};
use crate::config::RaidParams;
use crate::disk;
use crate::layout::Layout;
use crate::level::Level;
use crate::marking::Marking;
use crate::process::{Process, Report};
use crate::shared::{Lane, Members, Role, Shared};
use crate::spare::Spare;
use crate::state::{ArrayEvent, ArrayState};
use crate::status::Metrics;
use crate::superblock::{Entry, EntryState, Features, Superblock};

/// An array.
pub struct Array {
    /// Tells arrays apart, also those of the same name after each other.
    pub id: u64,
    /// Its name.
    pub name: String,
    /// The host.
    pub host: Host,
    /// What changes; never borrowed across a call of the host.
    pub inner: RefCell<Inner>,
}

/// What changes in an array.
pub struct Inner {
    /// Where it is in its life.
    pub state: ArrayState,
    /// What it is, as for a create.
    pub params: RaidParams,
    /// Whether an operator asked for it, not only a superblock.
    pub is_created: bool,
    /// Identity; zero until it is known.
    pub uuid: [u8; 16],
    /// Bytes of a block; 0 until a member is open.
    pub block_size: u32,
    /// Its slots.
    pub slots: Vec<Slot>,
    /// Its geometry, once it is known.
    pub layout: Option<Arc<Layout>>,
    /// The newest superblock known, as read or written.
    pub superblock: Option<Superblock>,
    /// What members agree on beyond it.
    pub agreed: Agreement,
    /// Write intent, if it has a bitmap.
    pub marking: Option<Marking>,
    /// Members that carried a superblock of this array when they were found: UUID and sequence number.
    pub found: Vec<([u8; 16], u64)>,
    /// Shared with its channels, once it is online.
    pub shared: Option<Arc<Shared>>,
    /// Its device.
    pub bdev: Option<BdevId>,
    /// The create that waits.
    pub create: Option<OpToken>,
    /// Examinations of members that end when it is up.
    pub examined: Vec<ExamineToken>,
    /// Operations that wait until it is gone.
    pub gone: Vec<OpToken>,
    /// The host's order to destruct the device.
    pub destruct: Option<OpToken>,
    /// Whether superblocks are wiped at the end.
    pub wipe: bool,
    /// Whether its superblocks came to be by the create that registered it.
    pub is_fresh: bool,
    /// Whether a task runs.
    pub is_busy: bool,
    /// Changes that wait for it.
    pub tasks: VecDeque<Task>,
    /// What waits for a directive to be obeyed.
    pub after_obey: Option<(u64, Step)>,
    /// What waits for a bitmap to be written, and the number of that.
    pub after_bitmap: Option<(u64, Step)>,
    /// A rebuild or a scrub.
    pub process: Option<Process>,
    /// What the last scrub found.
    pub report: Option<Report>,
    /// Read errors corrected.
    pub corrected: u64,
    /// Devices that take the place of members that are lost.
    pub spares: Vec<Spare>,
    /// Operations that its device offers; every member has them.
    pub ops: OpSet,
    /// What it tells in metrics.
    pub metrics: Option<Metrics>,
    /// Whether the members that were asked for by name are being asked which array they carry.
    pub is_asking: bool,
    /// Names of devices that carry its superblock and were looked at too early.
    pub put_off: Vec<String>,
    /// Names of members that return when it is online.
    pub returning: Vec<String>,
    /// Names of devices that it was asked for with, and that carry nothing of it: they return as well.
    pub blank: Vec<String>,
    /// Devices that were refused because they went their own way, and how that was told.
    pub diverged: BTreeMap<String, String>,
    /// A member that went while it was being brought up.
    pub lost: Option<String>,
    /// Runs until it is started without the members that are missing.
    pub patience: Option<Timer>,
    /// Why it is not online although it could be.
    pub last_error: Option<String>,
}

/// What is done with an array later.
pub type Step = Box<dyn FnOnce(&Rc<Array>)>;

/// One member.
#[derive(Clone)]
pub struct Slot {
    /// Name of its device; empty if only its identity is known.
    pub name: String,
    /// Identity of its device.
    pub uuid: [u8; 16],
    /// Its device, if open.
    pub base: Option<Descriptor>,
    /// Tells devices in the same slot apart; events of an older one are stale.
    pub member: u64,
    /// First block of its data area.
    pub data_offset: u64,
    /// Blocks of its data area.
    pub data_size: u64,
    /// What is known of its content.
    pub standing: Standing,
    /// Why it is lost, or will be when it is its turn.
    pub loss: Option<String>,
}

/// What is known of a member's content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Current, or will be once the array is created.
    Current,
    /// Being rebuilt.
    Target,
    /// The array goes on without it: removed.
    Missing,
    /// The array goes on without it: it failed.
    Failed,
}

impl Standing {
    fn entry_state(self) -> EntryState {
        match self {
            Standing::Current => EntryState::CONFIGURED,
            Standing::Target | Standing::Missing => EntryState::MISSING,
            Standing::Failed => EntryState::FAILED,
        }
    }
}

impl Slot {
    /// A slot whose member is known by name.
    pub fn named(name: &str) -> Slot {
        Slot {
            name: name.to_owned(),
            uuid: [0; 16],
            base: None,
            member: 0,
            data_offset: 0,
            data_size: 0,
            standing: Standing::Current,
            loss: None,
        }
    }

    /// A slot as a superblock states it.
    pub fn of_entry(entry: &Entry) -> Slot {
        let standing = if entry.is_configured() {
            Standing::Current
        } else if entry.state == EntryState::FAILED {
            Standing::Failed
        } else {
            Standing::Missing
        };
        let (data_offset, data_size) = (entry.data_offset, entry.data_size);
        Slot { uuid: entry.uuid, data_offset, data_size, standing, ..Slot::named("") }
    }

    /// True if the array needs it and it is not there.
    pub fn is_awaited(&self) -> bool {
        self.standing == Standing::Current && self.base.is_none()
    }

    /// True if the array goes on without it.
    pub fn is_lost(&self) -> bool {
        matches!(self.standing, Standing::Missing | Standing::Failed)
    }

    /// True if a device may take it.
    pub fn is_free(&self) -> bool {
        self.base.is_none() && self.is_lost()
    }

    /// For operators.
    pub fn label(&self) -> String {
        if self.name.is_empty() { uuid::Uuid::from_bytes(self.uuid).to_string() } else { self.name.clone() }
    }
}

impl Inner {
    /// Members that hold current data and are there.
    pub fn current(&self) -> Vec<(usize, Descriptor)> {
        let is_current = |(slot, member): (usize, &Slot)| {
            let base = member.base.clone().filter(|_| member.standing == Standing::Current)?;
            Some((slot, base))
        };
        self.slots.iter().enumerate().filter_map(is_current).collect()
    }

    /// Names of the members it waits for.
    pub fn missing(&self) -> Vec<String> {
        self.slots.iter().filter(|slot| slot.is_awaited()).map(Slot::label).collect()
    }

    /// The members as channels shall see them.
    pub fn lanes(&self) -> Arc<[Lane]> {
        let lane = |slot: &Slot| {
            let role = match slot.standing {
                Standing::Current => Role::InSync,
                Standing::Target => Role::Target,
                Standing::Missing | Standing::Failed => Role::Absent,
            };
            let base = slot.base.clone().filter(|_| role != Role::Absent);
            let role = if base.is_some() { role } else { Role::Absent };
            Lane { base, data_offset: slot.data_offset, role }
        };
        self.slots.iter().map(lane).collect()
    }

    /// All that channels must know of it; `None` without a geometry.
    pub fn members(&self) -> Option<Members> {
        Some(Members {
            layout: self.layout.clone()?,
            lanes: self.lanes(),
            intent: self.marking.as_ref().map(|marking| Arc::clone(&marking.intent)),
            journal_epoch: self.superblock.as_ref().map_or(0, |superblock| superblock.seq_number),
        })
    }

    /// The superblock of its present state.
    pub fn superblock_now(&self, name: &str, seq_number: u64) -> Superblock {
        let entry = |(nth, slot): (usize, &Slot)| Entry {
            uuid: slot.uuid,
            data_offset: slot.data_offset,
            data_size: slot.data_size,
            state: slot.standing.entry_state(),
            slot: nth as u8,
        };
        Superblock {
            features: self.agreed.features,
            uuid: self.uuid,
            name: name.to_owned(),
            raid_size: self.layout.as_ref().map_or(0, |layout| layout.num_blocks),
            block_size: self.block_size,
            level: self.params.level.id(),
            strip_size: self.strip_blocks() as u32,
            seq_number,
            num_base_bdevs: self.slots.len() as u8,
            members: self.slots.iter().enumerate().map(entry).collect(),
        }
    }

    /// Blocks of a strip.
    pub fn strip_blocks(&self) -> u64 {
        if self.block_size == 0 {
            0
        } else {
            u64::from(self.params.strip_size_kb) * 1024 / u64::from(self.block_size)
        }
    }

    /// Puts a device into a slot.
    pub fn put(&mut self, slot: usize, name: &str, uuid: [u8; 16], member: u64, base: Descriptor) {
        let place = &mut self.slots[slot];
        if place.uuid != uuid
            && let Some(seq) = self.agreed.synced_seq.get_mut(slot)
        {
            // It never held what the array holds.
            *seq = 0;
        }
        (place.name, place.uuid, place.member) = (name.to_owned(), uuid, member);
        (place.base, place.loss) = (Some(base), None);
    }

    /// The slots of the members that hold current data and are there, one bit each.
    pub fn current_mask(&self) -> u32 {
        self.current().iter().fold(0, |mask, (slot, _)| mask | 1 << slot)
    }

    /// Whether it works with these slots alone.
    pub fn survives_on(&self, mask: u32) -> bool {
        self.params.level.survives(mask, self.slots.len())
    }

    /// Takes the devices of members that are lost out of their slots.
    pub fn take_lost(&mut self) -> Vec<Descriptor> {
        self.slots.iter_mut().filter(|slot| slot.is_lost()).filter_map(|slot| slot.base.take()).collect()
    }

    /// Whether it goes on without this one of its current members.
    pub fn can_lose(&self, slot: usize) -> bool {
        self.survives_on(self.current_mask() & !(1 << slot))
    }

    /// Goes over to another state; a mistake of ours is logged and changes nothing.
    pub fn on(&mut self, event: ArrayEvent) {
        match self.state.next(event) {
            Ok(state) => self.state = state,
            Err(error) => log::error!("impossible event raid={} error=\"{error}\"", self.params.name),
        }
    }
}

impl Array {
    /// A new array that waits for its members.
    pub fn new(host: Host, params: RaidParams, slots: Vec<Slot>) -> Rc<Array> {
        let uuid = params.uuid.map_or([0; 16], uuid::Uuid::into_bytes);
        let name = params.name.clone();
        let spares = params.spares.iter().map(|name| Spare::named(name)).collect();
        let inner = Inner {
            state: ArrayState::Configuring,
            params,
            is_created: false,
            uuid,
            block_size: 0,
            slots,
            layout: None,
            superblock: None,
            agreed: Agreement::new(),
            marking: None,
            found: Vec::new(),
            shared: None,
            bdev: None,
            create: None,
            examined: Vec::new(),
            gone: Vec::new(),
            destruct: None,
            wipe: false,
            is_fresh: false,
            is_busy: false,
            tasks: VecDeque::new(),
            after_obey: None,
            after_bitmap: None,
            process: None,
            report: None,
            corrected: 0,
            spares,
            ops: OpSet::default(),
            metrics: None,
            is_asking: false,
            put_off: Vec::new(),
            returning: Vec::new(),
            blank: Vec::new(),
            diverged: BTreeMap::new(),
            lost: None,
            patience: None,
            last_error: None,
        };
        Rc::new(Array { id: RaidModule::next_id(), name, host, inner: RefCell::new(inner) })
    }

    /// Opens and claims the device of a slot.
    ///
    /// # Errors
    /// [`Error::missing_base`] if it is not there, otherwise why it cannot be a member.
    pub fn open_member(&self, slot: usize, name: &str) -> Result<(), Error> {
        let (array, member) = (self.id, RaidModule::next_id());
        let base = self.host.open(name, Access::Write, move |event| {
            RaidModule::with(|module| module.base_event(array, slot, member, event));
        })?;
        base.claim(Claim::ExclusiveWrite)?;
        let info = base.info()?;
        let mut inner = self.inner.borrow_mut();
        check_member(&info, inner.block_size, inner.ops)?;
        inner.block_size = info.limits.block_size;
        inner.put(slot, name, info.uuid, member, base);
        Ok(())
    }

    /// Gives channels the present members; `then` runs when all obey.
    pub fn direct(
        self: &Rc<Self>,
        is_paused: bool,
        locked: Range<u64>,
        then: impl FnOnce(&Rc<Array>) + 'static,
    ) {
        let (shared, members) = {
            let inner = self.inner.borrow();
            (inner.shared.clone(), inner.members())
        };
        let Some((shared, members)) = shared.zip(members) else { return then(self) };
        match shared.issue(members, is_paused, locked) {
            // The answer comes as a message, so it is not too late to remember.
            Ok(epoch) => self.inner.borrow_mut().after_obey = Some((epoch, Box::new(then))),
            Err(error) => log::error!("channels cannot be reached raid={} error=\"{error}\"", self.name),
        }
    }

    /// Every channel obeys a directive.
    pub fn directive_obeyed(self: &Rc<Self>, epoch: u64) {
        let step = {
            let mut inner = self.inner.borrow_mut();
            inner.after_obey.take_if(|(awaited, _)| *awaited == epoch)
        };
        if let Some((_, step)) = step {
            step(self);
        }
    }

    /// Something happened to a member.
    pub fn base_event(self: &Rc<Self>, slot: usize, member: u64, event: &BaseEvent) {
        let reason = match event {
            BaseEvent::Remove { reason, .. } => why_removed(*reason),
            BaseEvent::Resize { .. } => {
                if self.inner.borrow().state == ArrayState::Online {
                    self.push(Task::Grow);
                }
                return;
            }
            _ => return,
        };
        let (state, name, uuid, closed) = {
            let mut inner = self.inner.borrow_mut();
            let state = inner.state;
            let place = &mut inner.slots[slot];
            if place.member != member || place.base.is_none() {
                return;
            }
            let (name, uuid) = (place.name.clone(), place.uuid);
            place.loss.get_or_insert_with(|| reason.to_owned());
            let closed = if state == ArrayState::Configuring { place.base.take() } else { None };
            if state == ArrayState::Committing {
                inner.lost = Some(name.clone());
            }
            (state, name, uuid, closed)
        };
        drop(closed);
        log::warn!(
            "member goes raid={} member={name} uuid={} slot={slot} state={} reason=\"{reason}\"",
            self.name,
            uuid::Uuid::from_bytes(uuid),
            state.name()
        );
        match state {
            ArrayState::Online => self.push(Task::Lose { slot, member, why: Why::Removed }),
            ArrayState::Configuring => {
                let is_empty = {
                    let inner = self.inner.borrow();
                    !inner.is_created && inner.slots.iter().all(|slot| slot.base.is_none())
                };
                if is_empty {
                    self.give_up();
                }
            }
            ArrayState::Committing | ArrayState::Closing | ArrayState::Gone => {}
        }
    }

    /// Starts the end of the array; the operation is answered when it is gone.
    pub fn close(self: &Rc<Self>, wipe: bool, token: OpToken) {
        let bdev = {
            let mut inner = self.inner.borrow_mut();
            if inner.state == ArrayState::Committing {
                drop(inner);
                return token.fail(Error::busy("is being created").object(&*self.name));
            }
            inner.wipe |= wipe;
            inner.gone.push(token);
            inner.bdev
        };
        match bdev {
            Some(_) => self.unregister(Reason::REQUESTED),
            None if self.inner.borrow().wipe => {
                self.inner.borrow_mut().on(ArrayEvent::AllPresent);
                self.wipe_members(Array::give_up);
            }
            None => self.give_up(),
        }
    }

    /// Starts the removal of the device.
    pub fn unregister(self: &Rc<Self>, reason: Reason) {
        let bdev = {
            let mut inner = self.inner.borrow_mut();
            inner.on(ArrayEvent::Closed);
            inner.bdev
        };
        if let Some(Err(error)) = bdev.map(|bdev| self.host.unregister(bdev, reason)) {
            log::warn!("device not unregistered raid={} error=\"{error}\"", self.name);
        }
    }

    /// The create failed after the device was registered: nothing may bring the array back. One that was there
    /// before the create stays.
    pub fn rolled_back(&self) {
        let mut inner = self.inner.borrow_mut();
        inner.wipe |= inner.is_fresh;
    }

    /// The host has closed the device.
    pub fn destructed(self: &Rc<Self>, token: OpToken) {
        let is_busy = {
            let mut inner = self.inner.borrow_mut();
            inner.destruct = Some(token);
            inner.is_busy
        };
        if !is_busy {
            self.end();
        }
    }

    /// The last step of an array that was a device.
    pub fn end(self: &Rc<Self>) {
        let wipe = {
            let mut inner = self.inner.borrow_mut();
            inner.process = None;
            inner.wipe
        };
        if wipe { self.wipe_members(Array::give_up) } else { self.give_up() }
    }

    /// Wipes the superblocks of all members that are there.
    pub fn wipe_members(self: &Rc<Self>, then: impl FnOnce(&Rc<Array>) + 'static) {
        let targets = {
            let inner = self.inner.borrow();
            let is_there = |(nth, slot): (usize, &Slot)| Some((nth, slot.base.clone()?));
            let there: Vec<_> = inner.slots.iter().enumerate().filter_map(is_there).collect();
            // What was never written or recognised as a superblock is somebody's data.
            if inner.superblock.is_some() { there } else { Vec::new() }
        };
        let this = Rc::clone(self);
        disk::wipe_all(targets, move || then(&this));
    }

    /// Releases everything, forgets the array and answers whoever waits for that.
    pub fn give_up(self: &Rc<Self>) {
        let (slots, rest) = {
            let mut inner = self.inner.borrow_mut();
            let event = if inner.destruct.is_some() { ArrayEvent::Destructed } else { ArrayEvent::Closed };
            inner.on(event);
            inner.after_obey = None;
            inner.after_bitmap = None;
            inner.marking = None;
            let create = inner.create.take();
            let waiting: Vec<OpToken> =
                inner.tasks.drain(..).filter_map(Task::into_token).chain(create).collect();
            let rest = (inner.destruct.take(), std::mem::take(&mut inner.gone), waiting, inner.shared.take());
            ((std::mem::take(&mut inner.slots), std::mem::take(&mut inner.spares)), rest)
        };
        RaidModule::with(|module| module.forget(self.id));
        self.answer_examined();
        drop(slots);
        let (destruct, gone, waiting, shared) = rest;
        drop(shared);
        for token in waiting {
            token.fail(Error::not_found(&*self.name));
        }
        for token in destruct.into_iter().chain(gone) {
            token.done();
        }
    }
}

/// For operators.
fn why_removed(reason: Reason) -> &'static str {
    match reason {
        Reason::REQUESTED => "its device is being deleted",
        Reason::HOT_REMOVED => "its device was removed while in use",
        Reason::BASE_REMOVED => "a device below it went",
        Reason::MODULE_UNREGISTERED => "its module is being unregistered",
        Reason::SHUTDOWN => "the host stops",
        Reason::DEADLINE => "its device did not come back in time",
        Reason::IDENTITY_CHANGED => "another device came back in its place",
        Reason::FAILED => "its device failed",
        _ => "its device goes",
    }
}

/// Refuses devices that cannot be members; `block_size` is that of the others, or 0, and `ops` are needed of it.
pub fn check_member(info: &BdevInfo, block_size: u32, ops: OpSet) -> Result<(), Error> {
    let refuse = |reason: String| Err(Error::invalid(reason).object(&*info.name));
    if !info.ops.contains(BdevOp::Read) || !info.ops.contains(BdevOp::Write) {
        return refuse("cannot be a member: it does not read and write".to_owned());
    }
    if let Some(op) = ops.without(info.ops).iter().next() {
        return refuse(format!("cannot be a member: it lacks {op:?}, which the array offers"));
    }
    if info.limits.md_size != 0 {
        return refuse(format!(
            "cannot be a member: it has {} bytes of metadata per block",
            info.limits.md_size
        ));
    }
    if info.flags.0 & (BdevFlags::READ_ONLY.0 | BdevFlags::ZONED.0) != 0 {
        return refuse("cannot be a member: it is read-only or zoned".to_owned());
    }
    if info.flags.contains(BdevFlags::SPLIT_ON_WRITE_UNIT) {
        return refuse("cannot be a member: it is written in whole units only".to_owned());
    }
    if block_size != 0 && info.limits.block_size != block_size {
        return refuse(format!(
            "block size of {} differs from the {block_size} of the other members",
            info.limits.block_size
        ));
    }
    Ok(())
}

impl Inner {
    /// Where the data area of a device begins that becomes a member now: not before those of the others.
    pub fn data_offset(&self, info: &BdevInfo) -> u64 {
        let others = self.slots.iter().map(|slot| slot.data_offset).min().unwrap_or(0);
        let wanted = data_offset_for(self.params.level, info);
        if self.agreed.features == Features::NONE { wanted } else { wanted.max(others) }
    }
}

/// The first block of data on a device of a new array: behind a larger journal, if the level has one and the device
/// is large.
pub fn data_offset_for(level: Level, info: &BdevInfo) -> u64 {
    let block = u64::from(info.limits.block_size);
    let is_large = info.limits.num_blocks.saturating_mul(block) >= LARGE_BYTES;
    let offset = data_offset(info);
    if level == Level::Raid5 && is_large { offset * LARGE_JOURNAL } else { offset }
}

/// The first block of data on a device with a superblock: behind 1 MiB, at a boundary the device likes.
pub fn data_offset(info: &BdevInfo) -> u64 {
    let blocks = (RESERVED_BYTES / u64::from(info.limits.block_size)).max(1);
    match info.limits.optimal_io_boundary {
        0 => blocks,
        boundary => blocks.next_multiple_of(boundary.into()),
    }
}

/// Level and strip size in KiB of a superblock, if this version can have such an array.
///
/// # Errors
/// What is not supported.
pub fn shape_of(superblock: &Superblock) -> Result<(Level, u32), String> {
    let level = Level::from_id(superblock.level)
        .ok_or_else(|| format!("level {} is not supported", superblock.level))?;
    let strip_bytes = u64::from(superblock.strip_size) * u64::from(superblock.block_size);
    let strip_kb = u32::try_from(strip_bytes / 1024).unwrap_or(u32::MAX);
    if superblock.members.len() != usize::from(superblock.num_base_bdevs) {
        return Err("spare members are not supported".to_owned());
    }
    if superblock.members.len() > crate::config::MAX_MEMBERS {
        return Err(format!("{} members are too many", superblock.members.len()));
    }
    if strip_kb > crate::config::MAX_STRIP_KB || !strip_bytes.is_multiple_of(1024) {
        return Err(format!("strips of {strip_bytes} bytes are not supported"));
    }
    Ok((level, strip_kb))
}

/// Members of raid5 from this size on have a larger journal, by this factor.
const LARGE_BYTES: u64 = 1 << 30;
const LARGE_JOURNAL: u64 = 8;
/// Bytes kept free for the superblock.
const RESERVED_BYTES: u64 = 1 << 20;
