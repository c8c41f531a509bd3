//! Members come and go while the array is online. One change at a time: channels
//! pause or lock, the superblock of the new state is made durable on the members
//! that stay, and only then does I/O go on, so that nothing is acknowledged that
//! a restart would not find.

use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;

use tenon_sdk::{BaseChannel, Descriptor, Error, Exported, OpToken, Publish, Reason};

use crate::RaidModule;
use crate::array::{Array, Standing, data_offset};
use crate::level::Level;
use crate::rebuild::{self, Place};
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
    /// The next window of the rebuild.
    Window,
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

/// A rebuild under way.
pub struct Rebuild {
    /// Slot being rebuilt.
    pub slot: usize,
    /// Blocks of the data area that are done.
    pub done_blocks: u64,
    /// When it began, by the host's clock.
    pub since_ns: u64,
    channels: Vec<(usize, BaseChannel)>,
}

impl Task {
    /// The operation that waits for it.
    pub fn into_token(self) -> Option<OpToken> {
        match self {
            Task::Lose { why: Why::Requested(token), .. } => Some(token),
            Task::Lose { why: Why::Failed | Why::Removed, .. } | Task::Join { .. } | Task::Window => None,
        }
    }
}

impl Array {
    /// Adds a change and runs it when its turn comes.
    pub fn push(self: &Rc<Self>, task: Task) {
        self.inner.borrow_mut().tasks.push_back(task);
        self.run_next();
    }

    /// A channel could not write to a member.
    pub fn member_failed(self: &Rc<Self>, slot: usize) {
        let member = self.inner.borrow().slots.get(slot).map_or(0, |slot| slot.member);
        log::warn!("member failed raid={} slot={slot}", self.name);
        self.push(Task::Lose { slot, member, why: Why::Failed });
    }

    /// Takes a member out at the wish of an operator.
    pub fn remove_member(self: &Rc<Self>, slot: usize, token: OpToken) {
        let member = self.inner.borrow().slots[slot].member;
        self.push(Task::Lose { slot, member, why: Why::Requested(token) });
    }

    /// Opens a device for a slot that lacks one, and starts to rebuild it.
    ///
    /// # Errors
    /// If no slot is free, a rebuild runs already, or the device does not fit.
    pub fn rejoin(self: &Rc<Self>, name: &str) -> Result<(), Error> {
        let info = match self.host.find(name) {
            Some(id) => self.host.bdev_info(id)?,
            None => return Err(Error::not_found(name)),
        };
        let (slot, old) = {
            let inner = self.inner.borrow();
            if inner.state != ArrayState::Online {
                return Err(Error::busy("array is not online").object(&*self.name));
            }
            if inner.rebuild.is_some() || inner.tasks.iter().any(|task| matches!(task, Task::Join { .. })) {
                return Err(Error::busy("another member is being rebuilt").object(&*self.name));
            }
            let is_free = |slot: &crate::array::Slot| {
                slot.base.is_none() && matches!(slot.standing, Standing::Missing | Standing::Failed)
            };
            let own = inner.slots.iter().position(|slot| is_free(slot) && slot.uuid == info.uuid);
            let slot = own.or_else(|| inner.slots.iter().position(is_free));
            let slot = slot.ok_or_else(|| Error::busy("every slot has a member").object(&*self.name))?;
            (slot, inner.slots[slot].clone())
        };
        let offset = if self.inner.borrow().params.superblock { data_offset(&info) } else { 0 };
        let room = info.limits.num_blocks.saturating_sub(offset);
        if room < old.data_size {
            let reason = format!("has room for {room} blocks, a member needs {}", old.data_size);
            return Err(Error::invalid(reason).object(name));
        }
        self.open_member(slot, name)?;
        {
            let mut inner = self.inner.borrow_mut();
            inner.slots[slot].data_offset = offset;
            inner.slots[slot].standing = Standing::Target;
        }
        self.push(Task::Join { slot });
        Ok(())
    }

    fn run_next(self: &Rc<Self>) {
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
            Some(Task::Window) => self.next_window(),
        }
    }

    /// The task is done; the next one, or the end of the array, follows.
    fn task_done(self: &Rc<Self>) {
        let is_ending = {
            let mut inner = self.inner.borrow_mut();
            inner.is_busy = false;
            inner.destruct.is_some()
        };
        if is_ending { self.end() } else { self.run_next() }
    }

    fn lose(self: &Rc<Self>, slot: usize, member: u64, why: Why) {
        let (is_there, standing, can_lose) = {
            let inner = self.inner.borrow();
            let place = &inner.slots[slot];
            (place.member == member && place.base.is_some(), place.standing, inner.can_lose_one())
        };
        if !is_there {
            if let Why::Requested(token) = why {
                token.fail(Error::not_found(format!("slot {slot}")));
            }
            return self.task_done();
        }
        if standing == Standing::Target {
            log::warn!("rebuild ends because its member goes raid={} slot={slot}", self.name);
            self.inner.borrow_mut().slots[slot].standing = Standing::Missing;
            return self.without(slot, why);
        }
        if !can_lose {
            return self.cannot_lose(why);
        }
        let standing = if matches!(why, Why::Failed) { Standing::Failed } else { Standing::Missing };
        self.direct(true, 0..0, move |array| {
            array.inner.borrow_mut().slots[slot].standing = standing;
            array.commit(move |array, is_durable| {
                if is_durable {
                    array.without(slot, why);
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
                self.unregister(Reason::BASE_REMOVED);
                self.task_done();
            }
            // Channels that wait for a decision go on, and fail what cannot be done.
            Why::Failed => self.direct(false, 0..0, Array::task_done),
        }
    }

    /// The superblock of the new state is nowhere durable: nothing may be acknowledged any more.
    fn fail_array(self: &Rc<Self>, why: Why) {
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

    /// The loss is durable: channels go on without the member, and then it is closed.
    fn without(self: &Rc<Self>, slot: usize, why: Why) {
        {
            let mut inner = self.inner.borrow_mut();
            if inner.rebuild.as_ref().is_some_and(|rebuild| rebuild.slot == slot) {
                inner.rebuild = None;
            }
            if let Some(rebuild) = &mut inner.rebuild {
                rebuild.channels.retain(|(other, _)| *other != slot);
            }
        }
        self.direct(false, 0..0, move |array| {
            let closed: Vec<Option<Descriptor>> = {
                let mut inner = array.inner.borrow_mut();
                let is_out = |standing| matches!(standing, Standing::Missing | Standing::Failed);
                inner
                    .slots
                    .iter_mut()
                    .filter(|slot| is_out(slot.standing))
                    .map(|slot| slot.base.take())
                    .collect()
            };
            drop(closed);
            array.tell_openers();
            if let Why::Requested(token) = why {
                token.reply(&true);
            }
            array.task_done();
        });
    }

    fn join(self: &Rc<Self>, slot: usize) {
        let bases = {
            let inner = self.inner.borrow();
            let target =
                inner.slots[slot].base.clone().filter(|_| inner.slots[slot].standing == Standing::Target);
            target.map(|target| {
                let mut bases = inner.current();
                bases.push((slot, target));
                bases
            })
        };
        let Some(bases) = bases else { return self.task_done() };
        let mut channels = Vec::new();
        for (slot, base) in bases {
            match base.channel() {
                Ok(channel) => channels.push((slot, channel)),
                Err(error) => log::warn!("no channel for a rebuild raid={} error=\"{error}\"", self.name),
            }
        }
        let since_ns = self.host.now_ns();
        self.inner.borrow_mut().rebuild = Some(Rebuild { slot, done_blocks: 0, since_ns, channels });
        log::info!("rebuild begins raid={} slot={slot}", self.name);
        self.direct(false, 0..0, |array| {
            array.inner.borrow_mut().tasks.push_back(Task::Window);
            array.task_done();
        });
    }

    /// Locks the next window against writes and copies it; after the last one the member holds current data.
    fn next_window(self: &Rc<Self>) {
        let options = RaidModule::with(|module| module.options()).unwrap_or_default();
        let plan = {
            let inner = self.inner.borrow();
            inner.rebuild.as_ref().zip(inner.layout.as_ref()).map(|(rebuild, layout)| {
                let window = u64::from(options.process_window_size_kb) * 1024 / u64::from(inner.block_size);
                let unit = layout.strip_blocks.max(1);
                let window = window.max(1).next_multiple_of(unit);
                let (from, size) = (rebuild.done_blocks, inner.slots[rebuild.slot].data_size);
                let to = (from + window).min(size);
                let locked = match layout.level {
                    Level::Raid5f => {
                        let scale = layout.members() as u64 - 1;
                        from * scale..to * scale
                    }
                    Level::Raid0 | Level::Raid1 | Level::Concat => from..to,
                };
                (rebuild.slot, from..to, size, locked)
            })
        };
        let Some((slot, blocks, size, locked)) = plan else { return self.task_done() };
        if blocks.is_empty() {
            return self.rebuilt(slot);
        }
        self.direct(false, locked, move |array| array.copy_window(slot, blocks, size));
    }

    fn copy_window(self: &Rc<Self>, slot: usize, blocks: Range<u64>, size: u64) {
        let started_ns = self.host.now_ns();
        let (sources, target, level, bytes) = {
            let inner = self.inner.borrow();
            let channels =
                inner.rebuild.as_ref().map(|rebuild| rebuild.channels.as_slice()).unwrap_or_default();
            let place = |(slot, channel): &(usize, BaseChannel)| {
                let data_offset = inner.slots[*slot].data_offset;
                Place { slot: *slot, channel: channel.clone(), data_offset }
            };
            let (targets, sources): (Vec<Place>, Vec<Place>) =
                channels.iter().map(place).partition(|place| place.slot == slot);
            let bytes = (blocks.end - blocks.start) * u64::from(inner.block_size);
            (sources, targets.into_iter().next(), inner.params.level, bytes)
        };
        let is_complete = match level {
            Level::Raid5f => sources.len() + 1 == self.inner.borrow().slots.len(),
            Level::Raid0 | Level::Raid1 | Level::Concat => !sources.is_empty(),
        };
        let Some(target) = target.filter(|_| is_complete) else {
            return self.rebuild_failed(slot, &Error::io("a member it needs is not there"));
        };
        let this = Rc::clone(self);
        let end = blocks.end;
        rebuild::copy(self.host, level, sources, target, blocks, move |result| match result {
            Err(error) => this.rebuild_failed(slot, &error),
            Ok(()) => {
                if let Some(rebuild) = &mut this.inner.borrow_mut().rebuild {
                    rebuild.done_blocks = end;
                }
                this.after_window(started_ns, bytes, end == size);
            }
        });
    }

    /// The next window follows at once, or later if the rebuild has a bandwidth limit.
    fn after_window(self: &Rc<Self>, started_ns: u64, bytes: u64, is_last: bool) {
        let options = RaidModule::with(|module| module.options()).unwrap_or_default();
        let limit = u64::from(options.process_max_bandwidth_mb_sec) << 20;
        let owed_ns = match limit {
            0 => 0,
            limit => u64::try_from(u128::from(bytes) * 1_000_000_000 / u128::from(limit)).unwrap_or(u64::MAX),
        };
        let left_ns = owed_ns.saturating_sub(self.host.now_ns() - started_ns);
        if left_ns == 0 || is_last {
            self.inner.borrow_mut().tasks.push_back(Task::Window);
            return self.task_done();
        }
        // Writes to the window go on meanwhile.
        self.direct(false, 0..0, move |array| {
            let weak = Rc::downgrade(array);
            let go_on = move || {
                if let Some(array) = weak.upgrade() {
                    array.push(Task::Window);
                }
            };
            match array.host.timer(Duration::from_nanos(left_ns), go_on) {
                Ok(timer) => timer.detach(),
                Err(error) => {
                    log::warn!("rebuild cannot wait raid={} error=\"{error}\"", array.name);
                    array.inner.borrow_mut().tasks.push_back(Task::Window);
                }
            }
            array.task_done();
        });
    }

    fn rebuild_failed(self: &Rc<Self>, slot: usize, error: &Error) {
        log::error!("rebuild failed raid={} slot={slot} error=\"{error}\"", self.name);
        self.inner.borrow_mut().slots[slot].standing = Standing::Failed;
        self.without(slot, Why::Failed);
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
                array.inner.borrow_mut().rebuild = None;
                if is_durable {
                    log::info!("rebuild is done raid={} slot={slot}", array.name);
                    array.without(slot, Why::Failed);
                } else {
                    array.fail_array(Why::Failed);
                }
            });
        });
    }

    /// Tells who uses the array how well it is.
    pub fn tell_openers(&self) {
        let (bdev, present, all) = {
            let inner = self.inner.borrow();
            (inner.bdev, inner.current().len(), inner.slots.len())
        };
        let Some(bdev) = bdev else { return };
        let what = if present == all { Publish::Healthy } else { Publish::Degraded };
        let detail = format!("{present} of {all} members");
        if let Err(error) = self.host.publish(bdev, what, Reason::UNSPECIFIED, &detail) {
            log::debug!("openers not told raid={} error=\"{error}\"", self.name);
        }
        log::info!("members changed raid={} members={present} of={all}", self.name);
    }
}
