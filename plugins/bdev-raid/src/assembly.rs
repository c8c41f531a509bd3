//! Assembling arrays of members that appear, in whatever order: by name for those
//! an operator asked for, by superblock for all others. The superblock with the
//! largest sequence number decides; members that each went on without the other
//! are never put together.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use tenon_sdk::{Access, BdevId, BdevOp, Error, ExamineToken, Examined, Exported, Host, OpToken};
use uuid::Uuid;

use crate::RaidModule;
use crate::agreement::{has_diverged, last_step_of, side};
use crate::array::{Array, Slot, Standing, Step, shape_of};
use crate::config::{BaseNames, RaidParams};
use crate::disk::{self, Copy};
use crate::state::ArrayState;
use crate::superblock::{Superblock, SuperblockError};

/// What becomes of an examined device.
enum Answer {
    NotMine,
    Claimed,
    /// It is a member of this array now.
    Member(Rc<Array>),
    Waiting(String),
    Failed(String),
}

impl Answer {
    fn give(self, token: ExamineToken) {
        match self {
            Answer::NotMine => token.not_mine(),
            Answer::Claimed | Answer::Member(_) => token.claimed(),
            Answer::Waiting(reason) => token.waiting(&reason),
            Answer::Failed(reason) => token.failed(&reason),
        }
    }
}

/// Takes a device that an array without superblocks waits for by name: what it carries says nothing of that array.
pub fn examine_config(module: &RaidModule, bdev: &Examined, token: ExamineToken) {
    let host = token.host();
    let name = host.bdev_info(bdev.id).map(|info| info.name).unwrap_or_default();
    take_by_name(module, host, bdev.id, &name, |array| !array.inner.borrow().params.superblock).give(token);
}

/// The array that waits for a device by name, and for which slot.
fn awaited(module: &RaidModule, host: Host, bdev: BdevId) -> Option<(Rc<Array>, usize)> {
    module.all().into_iter().find_map(|array| {
        let slot = {
            let inner = array.inner.borrow();
            if inner.state != ArrayState::Configuring || inner.superblock.is_some() {
                return None;
            }
            let is_it = |slot: &Slot| slot.is_awaited() && host.find(&slot.name) == Some(bdev);
            inner.slots.iter().position(is_it)?
        };
        Some((array, slot))
    })
}

/// Gives a device to the array that waits for it by name, if it is one of those `of_interest`.
fn take_by_name(
    module: &RaidModule,
    host: Host,
    bdev: BdevId,
    name: &str,
    of_interest: impl Fn(&Array) -> bool,
) -> Answer {
    if let Some((array, slot)) = awaited(module, host, bdev).filter(|(array, _)| of_interest(array)) {
        if let Err(error) = array.open_member(slot, name) {
            array.inner.borrow_mut().last_error = Some(error.to_string());
            return Answer::Failed(error.to_string());
        }
        if array.inner.borrow().missing().is_empty() {
            array.bring_up();
        }
        return Answer::Member(array);
    }
    let Some(array) = module.all().into_iter().find(|array| of_interest(array) && array.lacks_spare(name))
    else {
        return Answer::NotMine;
    };
    if array.inner.borrow().state != ArrayState::Online {
        return Answer::Waiting(format!("spare of array {}, which is not online yet", array.name));
    }
    array.open_spares();
    if array.lacks_spare(name) {
        return Answer::Failed(format!("cannot be a spare of array {}", array.name));
    }
    Answer::Claimed
}

/// Looks for a superblock on a device.
pub fn examine_disk(bdev: &Examined, token: ExamineToken) {
    look(token.host(), bdev.id, |answer| match answer {
        Answer::Member(array) => array.answer_when_up(token),
        other => other.give(token),
    });
}

/// Why no array may be started without its missing members yet: a device may turn out to be one, and to know more than
/// those that are there.
fn is_looking() -> Option<String> {
    let names = RaidModule::with(RaidModule::looked_at).filter(|names| !names.is_empty())?;
    Some(format!(
        "{} may be a member and is being looked at; wait with bdev_wait_for_examine",
        names.join(", ")
    ))
}

/// Gives a device its place by the superblock that it carries, otherwise by its name.
fn look(host: Host, id: BdevId, then: impl FnOnce(Answer) + 'static) {
    let Ok(info) = host.bdev_info(id) else { return then(Answer::NotMine) };
    if !info.ops.contains(BdevOp::Read) || info.limits.md_size != 0 {
        return then(Answer::NotMine);
    }
    let base = match host.open_id(id, Access::Read, |_| {}) {
        Ok(base) => base,
        Err(_) => return then(Answer::NotMine),
    };
    let (uuid, name) = (info.uuid, info.name);
    let _ = RaidModule::with(|module| module.begin_look(&name));
    disk::read(&base.clone(), move |found| {
        drop(base);
        let _ = RaidModule::with(|module| module.end_look(&name));
        let copy = match found {
            Ok(Ok(copy)) => Some(copy),
            Ok(Err(SuperblockError::NotOurs)) => None,
            Ok(Err(error)) => {
                log::warn!("unusable superblock bdev={name} error=\"{error}\"");
                None
            }
            Err(error) => {
                log::debug!("superblock not read bdev={name} error=\"{error}\"");
                None
            }
        };
        let answer = RaidModule::with(|module| match copy {
            Some(copy) => place(module, &name, uuid, copy),
            None => take_by_name(module, host, id, &name, |_| true),
        });
        RaidModule::with(RaidModule::bring_up_complete);
        then(answer.unwrap_or(Answer::NotMine));
    });
}

/// Puts a device with a superblock into its array.
fn place(module: &RaidModule, name: &str, uuid: [u8; 16], copy: Copy) -> Answer {
    let superblock = &copy.superblock;
    if superblock.member(&uuid).is_none() {
        log::warn!("superblock does not know its device bdev={name} raid={}", superblock.name);
        return Answer::NotMine;
    }
    let (level, strip_size_kb) = match shape_of(superblock) {
        Ok(shape) => shape,
        Err(reason) => return Answer::Failed(reason),
    };
    // One that was asked for with its UUID and has not learned its members yet is found by its name.
    let known = module.by_uuid(&superblock.uuid).filter(|array| array.inner.borrow().superblock.is_some());
    let array = match known {
        Some(array) => array,
        None if module.by_name(&superblock.name).is_some() => {
            let asked_for = module.by_name(&superblock.name).filter(|array| array.may_be(superblock));
            let standing = asked_for.as_ref().map(|array| {
                let inner = array.inner.borrow();
                (inner.state, inner.is_asking)
            });
            let array = match (asked_for, standing) {
                (Some(array), Some((ArrayState::Configuring, false))) => array,
                // What its members say decides, and then this one is looked at again.
                (Some(array), Some((ArrayState::Configuring | ArrayState::Committing, _))) => {
                    array.inner.borrow_mut().put_off.push(name.to_owned());
                    return Answer::Waiting(format!("array {} is being brought up", superblock.name));
                }
                (_, _) => {
                    return Answer::Failed(format!("another array is named {} already", superblock.name));
                }
            };
            // What it has by name carries nothing.
            array.start_over(&copy, |_| false);
            array.watch_missing();
            array
        }
        None => {
            let params = RaidParams {
                name: superblock.name.clone(),
                level,
                strip_size_kb,
                base_bdevs: BaseNames::List(Vec::new()),
                spares: Vec::new(),
                superblock: true,
                uuid: Some(Uuid::from_bytes(superblock.uuid)),
                overwrite_superblock: false,
                bitmap: false,
            };
            let array = Array::new(module.host(), params, slots_of(superblock));
            array.inner.borrow_mut().learn(&copy);
            module.insert(&array);
            array.watch_missing();
            array.look_for_missing(Some(uuid), |_| {});
            array
        }
    };
    match array.take_member(name, uuid, copy) {
        Ok(answer) => answer,
        Err(error) => {
            log::warn!("member refused raid={} error=\"{error}\"", array.name);
            Answer::Failed(error.to_string())
        }
    }
}

/// Held by every look at a device; the array goes on when the last is over.
struct LastLook {
    array: Rc<Array>,
    then: Cell<Option<Step>>,
}

impl Drop for LastLook {
    fn drop(&mut self) {
        if let Some(then) = self.then.take() {
            then(&self.array);
        }
    }
}

fn slots_of(superblock: &Superblock) -> Vec<Slot> {
    (0..superblock.members.len())
        .map(|nth| superblock.slot(nth).map_or_else(|| Slot::named(""), Slot::of_entry))
        .collect()
}

impl Array {
    /// Takes a device that carries a superblock of this array.
    fn take_member(self: &Rc<Self>, name: &str, uuid: [u8; 16], theirs: Copy) -> Result<Answer, Error> {
        let (ours, state) = {
            let mut inner = self.inner.borrow_mut();
            inner.count_record(&theirs);
            (inner.last_copy(), inner.state)
        };
        RaidModule::note_found(self, uuid, theirs.superblock.seq_number);
        if let Some(ours) = &ours {
            if has_diverged(ours, &theirs, &uuid) {
                let reason = format!(
                    "went its own way: it and the other members of {} were each used without the other (it is at \
                     {}, they are at {}) and are not put together; end the array with bdev_raid_destroy and \
                     {{\"wipe\": false}} to look at this one, or add it anew with bdev_raid_add_base_bdev to \
                     overwrite it{}",
                    self.name,
                    side(&theirs),
                    side(ours),
                    last_step_of(&theirs, ours)
                );
                let mut inner = self.inner.borrow_mut();
                inner.diverged.insert(name.to_owned(), reason.clone());
                inner.found.retain(|(found, _)| *found != uuid);
                drop(inner);
                return Err(Error::busy(reason).object(name));
            }
            if theirs.superblock.seq_number > ours.superblock.seq_number {
                if state != ArrayState::Configuring {
                    let reason = format!("has newer state than array {}, which is in use", self.name);
                    return Err(Error::busy(reason).object(name));
                }
                self.start_over(&theirs, |_| true);
            }
        }
        let (slot, standing, there) = {
            let inner = self.inner.borrow();
            let slot = inner.slots.iter().position(|slot| slot.uuid == uuid);
            let Some(slot) = slot else {
                return Err(Error::busy(format!("is no member of {} any more", self.name)).object(name));
            };
            let place = &inner.slots[slot];
            (slot, place.standing, place.base.is_some().then(|| place.name.clone()))
        };
        match there {
            // It was looked at twice.
            Some(there) if there == name => return Ok(Answer::Claimed),
            Some(there) => {
                let reason = format!("has the UUID of {there}, which is a member of {} already", self.name);
                return Err(Error::new(tenon_sdk::errno::EEXIST, reason).object(name));
            }
            None => {}
        }
        match (standing, state) {
            (Standing::Current, ArrayState::Configuring) => {
                self.open_member(slot, name)?;
                Ok(Answer::Member(Rc::clone(self)))
            }
            (Standing::Missing | Standing::Failed, ArrayState::Online) => {
                self.rejoin(name, true)?;
                Ok(Answer::Claimed)
            }
            (Standing::Missing | Standing::Failed, ArrayState::Configuring | ArrayState::Committing) => {
                self.inner.borrow_mut().returning.push(name.to_owned());
                Ok(Answer::Waiting(format!("is out of date; rebuilt when array {} is online", self.name)))
            }
            (_, _) => Err(Error::busy(format!("array {} cannot take it now", self.name)).object(name)),
        }
    }

    /// A member is examined when its array is a device, if it comes up now: who waits for the one finds the other.
    fn answer_when_up(&self, token: ExamineToken) {
        let mut inner = self.inner.borrow_mut();
        if inner.state == ArrayState::Committing {
            inner.examined.push(token);
        } else {
            drop(inner);
            token.claimed();
        }
    }

    /// It is up, or will not be for now.
    pub fn answer_examined(&self) {
        let (tokens, is_online) = {
            let mut inner = self.inner.borrow_mut();
            (std::mem::take(&mut inner.examined), inner.state == ArrayState::Online)
        };
        for token in tokens {
            if is_online {
                token.claimed();
            } else {
                token.waiting(&format!("array {} is not online", self.name));
            }
        }
    }

    /// Members that are there already are not offered again: they were let go when the array ended, or it was not
    /// known yet that they count. `this` is being taken. `then` runs when all were looked at.
    pub fn look_for_missing(
        self: &Rc<Self>,
        this: Option<[u8; 16]>,
        then: impl FnOnce(&Rc<Array>) + 'static,
    ) {
        let is_missing = |slot: &&Slot| slot.base.is_none() && Some(slot.uuid) != this;
        let find = |slot: &Slot| {
            let by_uuid = self.host.find(&Uuid::from_bytes(slot.uuid).to_string());
            by_uuid.or_else(|| self.host.find(&slot.name))
        };
        // One that is still to be offered cannot be opened yet.
        let mut found: Vec<BdevId> =
            self.inner.borrow().slots.iter().filter(is_missing).filter_map(find).collect();
        let put_off = std::mem::take(&mut self.inner.borrow_mut().put_off);
        for id in put_off.iter().filter_map(|name| self.host.find(name)) {
            if !found.contains(&id) {
                found.push(id);
            }
        }
        let all = Rc::new(LastLook { array: Rc::clone(self), then: Cell::new(Some(Box::new(then))) });
        for id in found {
            let all = Rc::clone(&all);
            look(self.host, id, move |answer| {
                if let Answer::Failed(reason) = answer {
                    log::warn!("member not taken reason=\"{reason}\"");
                }
                drop(all);
            });
        }
    }

    /// A newer superblock was found: members that it does not count are let go, and those that do not carry one, since
    /// nothing of what they hold is known.
    pub fn start_over(&self, newer: &Copy, carries: impl Fn(usize) -> bool) {
        let mut slots = slots_of(&newer.superblock);
        let old = {
            let mut inner = self.inner.borrow_mut();
            std::mem::take(&mut inner.slots)
        };
        let (mut let_go, mut blank) = (Vec::new(), Vec::new());
        for (nth, member) in old.into_iter().enumerate() {
            let Some(base) = member.base.clone() else { continue };
            let place = slots.iter_mut().find(|slot| slot.uuid == member.uuid && slot.is_awaited());
            match place {
                _ if !carries(nth) => {
                    log::warn!(
                        "member carries no superblock of its array raid={} member={}",
                        self.name,
                        member.name
                    );
                    blank.push(member);
                }
                Some(slot) => {
                    (slot.name, slot.member, slot.base) = (member.name.clone(), member.member, Some(base));
                }
                None => let_go.push(member),
            }
        }
        let returning = {
            let mut inner = self.inner.borrow_mut();
            inner.returning.extend(let_go.iter().map(|member| member.name.clone()));
            inner.blank.extend(blank.iter().map(|member| member.name.clone()));
            inner.slots = slots;
            inner.uuid = newer.superblock.uuid;
            inner.learn(newer);
            std::mem::take(&mut inner.returning)
        };
        drop((let_go, blank));
        // One that an older superblock left out may count again.
        for name in returning {
            let uuid =
                self.host.find(&name).and_then(|id| self.host.bdev_info(id).ok()).map(|info| info.uuid);
            let slot = {
                let inner = self.inner.borrow();
                inner.slots.iter().position(|slot| Some(slot.uuid) == uuid && slot.is_awaited())
            };
            match slot.map(|slot| self.open_member(slot, &name)) {
                Some(Ok(())) => {}
                Some(Err(error)) => log::warn!("member not opened raid={} error=\"{error}\"", self.name),
                None => self.inner.borrow_mut().returning.push(name),
            }
        }
    }

    /// True if it waits for nothing but its turn to come online.
    pub fn is_complete(&self) -> bool {
        let inner = self.inner.borrow();
        let has_members = !inner.current().is_empty();
        inner.state == ArrayState::Configuring
            && inner.last_error.is_none()
            && has_members
            && inner.missing().is_empty()
    }

    /// Brings an array online whose superblock was read from its members.
    pub fn bring_up_assembled(self: &Rc<Self>) {
        let copy = self.inner.borrow().last_copy();
        match copy {
            None => self.bring_up(),
            Some(copy) => {
                {
                    let mut inner = self.inner.borrow_mut();
                    inner.on(crate::state::ArrayEvent::AllPresent);
                    inner.lost = None;
                }
                self.adopt(&copy);
            }
        }
    }

    /// Goes on without the members that are not there, if redundancy covers them.
    pub fn start_degraded(self: &Rc<Self>, token: OpToken) {
        if let Some(reason) = self.cannot_start().or_else(is_looking) {
            return token.fail(Error::busy(reason).object(&*self.name));
        }
        self.inner.borrow_mut().create = Some(token);
        self.start_without_missing();
    }

    /// Why it cannot be started with the members that are there.
    fn cannot_start(&self) -> Option<String> {
        let inner = self.inner.borrow();
        let (there, all) = (inner.current().len(), inner.slots.len());
        if inner.state != ArrayState::Configuring || inner.superblock.is_none() {
            Some("only an array that waits for members of its superblock can be started".to_owned())
        } else if !inner.survives_on(inner.current_mask()) {
            let level = inner.params.level.name();
            Some(format!("{there} of {all} members are there, too few of them for {level}"))
        } else {
            None
        }
    }

    fn start_without_missing(self: &Rc<Self>) {
        {
            let mut inner = self.inner.borrow_mut();
            for slot in inner.slots.iter_mut().filter(|slot| slot.is_awaited()) {
                slot.standing = Standing::Missing;
                slot.loss = Some("was not there when the array was started without it".to_owned());
            }
            inner.last_error = None;
        }
        self.bring_up_assembled();
    }

    /// A member that an array waits for is given up; the array comes up when it waits for no other.
    pub fn give_up_member(self: &Rc<Self>, slot: usize, token: OpToken) {
        let refusal = {
            let inner = self.inner.borrow();
            let awaited = inner.slots.iter().enumerate().filter(|(_, slot)| slot.is_awaited());
            let rest = awaited.fold(inner.current_mask(), |mask, (nth, _)| mask | 1 << nth) & !(1 << slot);
            if inner.state != ArrayState::Configuring || inner.superblock.is_none() {
                Some("array has no superblock yet; delete it instead".to_owned())
            } else if !inner.slots[slot].is_awaited() {
                Some(format!(
                    "{} is there; only a member that is missing can be given up",
                    inner.slots[slot].label()
                ))
            } else if !inner.survives_on(rest) {
                Some(format!("{} cannot do without it; delete the array instead", inner.params.level.name()))
            } else {
                is_looking()
            }
        };
        if let Some(reason) = refusal {
            return token.fail(Error::busy(reason).object(&*self.name));
        }
        {
            let place = &mut self.inner.borrow_mut().slots[slot];
            place.standing = Standing::Missing;
            place.loss = Some("was missing, and an operator gave it up".to_owned());
        }
        if self.is_complete() {
            self.inner.borrow_mut().create = Some(token);
            self.bring_up_assembled();
        } else {
            token.reply(&true);
        }
    }

    /// Starts it without members that have not appeared after the time configured for that.
    pub fn watch_missing(self: &Rc<Self>) {
        self.watch_again(None);
    }

    /// Too few may be there when the time is up, and more come later: it is looked at again after the same time.
    fn watch_again(self: &Rc<Self>, told: Option<String>) {
        let seconds =
            RaidModule::with(|module| module.options()).unwrap_or_default().degraded_start_timeout_sec;
        if seconds == 0 {
            return;
        }
        let weak = Rc::downgrade(self);
        let time_is_up = move || {
            let Some(array) = weak.upgrade() else { return };
            if array.inner.borrow().state != ArrayState::Configuring {
                return;
            }
            if is_looking().is_some() {
                return array.watch_again(told);
            }
            match array.cannot_start() {
                Some(reason) => {
                    if told.as_ref() != Some(&reason) {
                        log::error!("array not started raid={} reason=\"{reason}\"", array.name);
                    }
                    array.watch_again(Some(reason));
                }
                None => {
                    log::warn!("array is started without members raid={} waited_sec={seconds}", array.name);
                    array.start_without_missing();
                }
            }
        };
        match self.host.timer(Duration::from_secs(seconds.into()), time_is_up) {
            Ok(timer) => self.inner.borrow_mut().patience = Some(timer),
            Err(error) => log::warn!("members are awaited for ever raid={} error=\"{error}\"", self.name),
        }
    }
}
