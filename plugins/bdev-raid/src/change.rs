//! Members come and go while the array is online. One change at a time: channels
//! pause or lock, the superblock of the new state is made durable on the members
//! that stay, and only then does I/O go on, so that nothing is acknowledged that
//! a restart would not find.

use std::ops::Range;
use std::rc::Rc;

use tenon_sdk::{BdevId, BdevInfo, Error, OpToken, Publish, Reason};
use uuid::Uuid;

use crate::array::{Array, Slot, Standing};
use crate::process::Kind;
use crate::state::ArrayState;

/// A change that waits for its turn.
pub enum Task {
    /// A member is no longer to be used.
    Lose {
        /// Its slot.
        slot: usize,
        /// Which device in that slot.
        member: u64,
        /// Why.
        why: Why,
    },
    /// A device in a slot is to be rebuilt.
    Join {
        /// Its slot.
        slot: usize,
    },
    /// Members are to be compared.
    Scrub {
        /// Whether differences are repaired.
        is_repair: bool,
    },
    /// The next window of the process that runs.
    Window,
    /// Blocks of a member could not be read and are to be rewritten.
    Correct {
        /// Its slot.
        slot: usize,
        /// Its device.
        bdev: BdevId,
        /// Blocks of its data area.
        blocks: Range<u64>,
    },
    /// Regions that rest are to be cleared.
    Clear,
    /// Members that may differ are to be made equal.
    Resync,
    /// Members have another size.
    Grow,
    /// A device is to be added behind the last member.
    Extend {
        /// Its name.
        name: String,
        /// The operation that waits.
        token: OpToken,
    },
}

/// Why a member is lost.
pub enum Why {
    /// A write to it failed.
    Failed,
    /// Its device goes.
    Removed,
    /// An operator wants it out.
    Requested(OpToken),
}

impl Task {
    /// The operation that waits for it.
    pub fn into_token(self) -> Option<OpToken> {
        match self {
            Task::Lose { why: Why::Requested(token), .. } | Task::Extend { token, .. } => Some(token),
            Task::Lose { why: Why::Failed | Why::Removed, .. }
            | Task::Join { .. }
            | Task::Scrub { .. }
            | Task::Window
            | Task::Correct { .. }
            | Task::Clear
            | Task::Resync
            | Task::Grow => None,
        }
    }
}

impl Array {
    /// Adds a change and runs it when its turn comes.
    pub fn push(self: &Rc<Self>, task: Task) {
        self.inner.borrow_mut().tasks.push_back(task);
        self.run_next();
    }

    /// A member cannot be used any more: it is lost when it is its turn.
    pub fn member_failed(self: &Rc<Self>, slot: usize, reason: &str) {
        let Some(member) = self.inner.borrow().slots.get(slot).map(|slot| slot.member) else { return };
        self.note_failure(slot, reason);
        self.push(Task::Lose { slot, member, why: Why::Failed });
    }

    /// Tells that a member failed, and why, once for all who notice it.
    pub fn note_failure(&self, slot: usize, reason: &str) {
        let mut inner = self.inner.borrow_mut();
        let place = &mut inner.slots[slot];
        if place.base.is_none() || place.loss.is_some() {
            return;
        }
        place.loss = Some(reason.to_owned());
        log::warn!(
            "member failed raid={} member={} uuid={} slot={slot} reason=\"{reason}\"",
            self.name,
            place.name,
            Uuid::from_bytes(place.uuid)
        );
    }

    /// Takes a member out at the wish of an operator.
    pub fn remove_member(self: &Rc<Self>, slot: usize, token: OpToken) {
        let member = {
            let mut inner = self.inner.borrow_mut();
            inner.slots[slot].loss.get_or_insert_with(|| "an operator took it out".to_owned());
            inner.slots[slot].member
        };
        self.push(Task::Lose { slot, member, why: Why::Requested(token) });
    }

    /// The slot of the member of that name: one that is there, or one that is waited for.
    pub fn slot_of(&self, name: &str) -> Option<usize> {
        let inner = self.inner.borrow();
        let is_it =
            |slot: &Slot| slot.label() == name && (slot.base.is_some() || slot.standing == Standing::Current);
        inner.slots.iter().position(is_it)
    }

    /// Takes a member out and puts another device in its place, which is opened first.
    pub fn replace_member(self: &Rc<Self>, slot: usize, name: &str, token: OpToken) {
        let (is_online, is_spare) = {
            let inner = self.inner.borrow();
            let is_spare = inner.spares.iter().any(|spare| spare.name == name && spare.base.is_some());
            (inner.state == ArrayState::Online, is_spare)
        };
        if !is_online {
            return token.fail(Error::busy("array is not online").object(&*self.name));
        }
        if !is_spare && let Err(error) = self.add_spare(name) {
            return token.fail(error);
        }
        // It is the next to be taken.
        self.inner.borrow_mut().spares.sort_by_key(|spare| spare.name != name);
        self.remove_member(slot, token);
    }

    /// Opens a device for a slot that lacks one; it is rebuilt when its turn comes. `is_known`: as the superblock it was
    /// found with says; otherwise nothing of its content counts.
    ///
    /// # Errors
    /// If no slot is free or the device does not fit.
    pub fn rejoin(self: &Rc<Self>, name: &str, is_known: bool) -> Result<(), Error> {
        let info = match self.host.find(name) {
            Some(id) => self.host.bdev_info(id)?,
            None => return Err(Error::not_found(name)),
        };
        let slot = {
            let inner = self.inner.borrow();
            if inner.state != ArrayState::Online {
                return Err(Error::busy("array is not online").object(&*self.name));
            }
            let own = inner.slots.iter().position(|slot| slot.is_free() && slot.uuid == info.uuid);
            let slot = own.or_else(|| inner.slots.iter().position(Slot::is_free));
            slot.ok_or_else(|| Error::busy("every slot has a member").object(&*self.name))?
        };
        let offset = self.room_on(&info, slot)?;
        if !is_known {
            self.inner.borrow_mut().found.retain(|(uuid, _)| *uuid != info.uuid);
        }
        self.open_member(slot, name)?;
        self.fill(slot, offset);
        Ok(())
    }

    /// Where the data area of a device begins that is to take a slot.
    ///
    /// # Errors
    /// If it is too small.
    pub fn room_on(&self, info: &BdevInfo, slot: usize) -> Result<u64, Error> {
        let inner = self.inner.borrow();
        let offset = if inner.params.superblock { inner.data_offset(info) } else { 0 };
        let (room, needed) = (info.limits.num_blocks.saturating_sub(offset), inner.slots[slot].data_size);
        if room < needed {
            let reason = format!("has room for {room} blocks, a member needs {needed}");
            return Err(Error::invalid(reason).object(&*info.name));
        }
        Ok(offset)
    }

    /// The device that was opened for a slot is to be rebuilt.
    pub fn fill(self: &Rc<Self>, slot: usize, data_offset: u64) {
        {
            let mut inner = self.inner.borrow_mut();
            inner.slots[slot].data_offset = data_offset;
            inner.slots[slot].standing = Standing::Target;
        }
        self.push(Task::Join { slot });
    }

    pub fn run_next(self: &Rc<Self>) {
        let task = {
            let mut inner = self.inner.borrow_mut();
            if inner.is_busy || inner.state != ArrayState::Online {
                return;
            }
            let task = inner.tasks.pop_front();
            inner.is_busy = task.is_some();
            task
        };
        match task {
            None => {}
            Some(Task::Lose { slot, member, why }) => self.lose(slot, member, why),
            Some(Task::Join { slot }) => self.join(slot),
            Some(Task::Scrub { is_repair }) => self.scrub(is_repair),
            Some(Task::Window) => self.next_window(),
            Some(Task::Correct { slot, bdev, blocks }) => self.correct_now(slot, bdev, blocks),
            Some(Task::Clear) => self.clear_rested(),
            Some(Task::Resync) => self.resync(),
            Some(Task::Grow) => self.grow(),
            Some(Task::Extend { name, token }) => self.extend(&name, token),
        }
    }

    /// The task is done; the next one, or the end of the array, follows. Members that were lost by the way, since they
    /// took no superblock, are let go before.
    pub fn task_done(self: &Rc<Self>) {
        let (is_ending, has_lost) = {
            let mut inner = self.inner.borrow_mut();
            let has_lost = inner.state == ArrayState::Online
                && inner.slots.iter().any(|slot| slot.is_lost() && slot.base.is_some());
            inner.is_busy = has_lost;
            (inner.destruct.is_some(), has_lost)
        };
        match (has_lost, is_ending) {
            (true, _) => self.without_lost(Why::Failed),
            (false, true) => self.end(),
            (false, false) => self.run_next(),
        }
    }

    fn lose(self: &Rc<Self>, slot: usize, member: u64, why: Why) {
        let (is_there, standing, can_lose) = {
            let inner = self.inner.borrow();
            let place = &inner.slots[slot];
            (place.member == member && place.base.is_some(), place.standing, inner.can_lose(slot))
        };
        if !is_there {
            if let Why::Requested(token) = why {
                token.fail(Error::not_found(format!("slot {slot}")));
            }
            return self.task_done();
        }
        if standing == Standing::Target {
            log::warn!("rebuild ends because its member goes raid={} slot={slot}", self.name);
        } else if !can_lose {
            self.inner.borrow_mut().slots[slot].loss = None;
            return self.cannot_lose(why);
        }
        let standing = if matches!(why, Why::Failed) { Standing::Failed } else { Standing::Missing };
        self.direct(true, 0..0, move |array| {
            array.inner.borrow_mut().slots[slot].standing = standing;
            array.commit(move |array, is_durable| {
                if is_durable {
                    array.without_lost(why);
                } else {
                    array.fail_array(why);
                }
            });
        });
    }

    /// The array needs every member it has.
    fn cannot_lose(self: &Rc<Self>, why: Why) {
        match why {
            Why::Requested(token) => {
                let reason = "array cannot lose a member; delete it with bdev_raid_delete";
                token.fail(Error::busy(reason).object(&*self.name));
                self.task_done();
            }
            Why::Removed => {
                log::error!("array is lost with its member raid={}", self.name);
                // I/O that waits for a decision fails, so that the array can go.
                self.direct(false, 0..0, |array| {
                    array.unregister(Reason::BASE_REMOVED);
                    array.task_done();
                });
            }
            // Channels that wait for a decision go on, and fail what cannot be done.
            Why::Failed => self.direct(false, 0..0, Array::task_done),
        }
    }

    /// The superblock of the new state is nowhere durable: nothing may be acknowledged any more.
    pub fn fail_array(self: &Rc<Self>, why: Why) {
        log::error!("array fails because too few members take its superblock raid={}", self.name);
        for slot in &mut self.inner.borrow_mut().slots {
            slot.standing = Standing::Failed;
        }
        self.direct(false, 0..0, move |array| {
            if let Why::Requested(token) = why {
                token.fail(Error::io("too few members take a superblock").object(&*array.name));
            }
            array.unregister(Reason::FAILED);
            array.task_done();
        });
    }

    /// The loss of members is durable: channels and a process go on without them, and then they are closed.
    pub fn without_lost(self: &Rc<Self>, why: Why) {
        {
            let mut inner = self.inner.borrow_mut();
            let inner = &mut *inner;
            let (slots, is_parity) = (&inner.slots, inner.params.level.is_parity());
            inner.process.take_if(|process| match process.kind {
                Kind::Rebuild { slot } => slots[slot].is_lost(),
                Kind::Resync => is_parity,
                Kind::Scrub(_) => false,
            });
            if let Some(process) = &mut inner.process {
                process.let_go(|slot| slots[slot].is_lost());
            }
        }
        self.end_scrub("interrupted");
        self.direct(false, 0..0, move |array| {
            let closed = array.inner.borrow_mut().take_lost();
            drop(closed);
            array.tell_openers();
            if let Why::Requested(token) = why {
                token.reply(&true);
            }
            array.make_whole();
            array.task_done();
        });
    }

    fn join(self: &Rc<Self>, slot: usize) {
        let is_its_turn = {
            let inner = self.inner.borrow();
            let is_target =
                inner.slots[slot].standing == Standing::Target && inner.slots[slot].base.is_some();
            let is_rebuilding = inner.process.as_ref().is_some_and(|process| process.target().is_some());
            is_target && !is_rebuilding
        };
        if !is_its_turn {
            return self.task_done();
        }
        self.end_scrub("interrupted");
        self.begin(Kind::Rebuild { slot });
    }

    /// One process is over: members that wait are rebuilt, empty slots get spares, growth is taken note of.
    pub fn make_whole(self: &Rc<Self>) {
        let mut inner = self.inner.borrow_mut();
        if inner.process.is_none() {
            let next =
                inner.slots.iter().position(|slot| slot.standing == Standing::Target && slot.base.is_some());
            if let Some(slot) = next {
                inner.tasks.push_back(Task::Join { slot });
            }
            inner.tasks.push_back(Task::Grow);
            if inner.is_resync_due() {
                inner.tasks.push_back(Task::Resync);
            }
        }
        drop(inner);
        self.use_spares();
    }

    /// Tells who uses the array how well it is.
    pub fn tell_openers(&self) {
        let (bdev, present, all, lost) = {
            let inner = self.inner.borrow();
            let told = |slot: &Slot| Some(format!("; {}: {}", slot.label(), slot.loss.as_ref()?));
            let lost: String = inner.slots.iter().filter(|slot| slot.is_lost()).filter_map(told).collect();
            (inner.bdev, inner.current().len(), inner.slots.len(), lost)
        };
        let Some(bdev) = bdev else { return };
        let what = if present == all { Publish::Healthy } else { Publish::Degraded };
        let detail = format!("{present} of {all} members{lost}");
        if let Err(error) = self.host.publish(bdev, what, Reason::UNSPECIFIED, &detail) {
            log::debug!("openers not told raid={} error=\"{error}\"", self.name);
        }
        self.publish_process();
        log::info!("members changed raid={} members={present} of={all}", self.name);
    }
}
