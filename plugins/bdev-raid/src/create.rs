//! Bringing an array up: members open, superblocks read and judged, written to
//! all members, device registered; only then is the create answered. Whatever
//! fails takes back what was done, so that the same create can be repeated.

use std::rc::Rc;
use std::sync::Arc;

use tenon_sdk::{Access, BdevInfo, Error, OpToken, errno};
use uuid::Uuid;

use crate::RaidModule;
use crate::agreement::{has_diverged, side};
use crate::array::{Array, Slot, Standing, data_offset_for};
use crate::bdev::{RaidBdev, spec};
use crate::config::RaidParams;
use crate::disk::{self, Copy, Found};
use crate::layout::Layout;
use crate::level::Level;
use crate::marking::Marking;
use crate::ondisk;
use crate::shared::Shared;
use crate::spare::Spare;
use crate::state::{ArrayEvent, ArrayState};
use crate::stripes::Stripes;
use crate::superblock::{Superblock, SuperblockError};

/// Where the content of a new array's superblocks comes from.
enum Origin {
    /// The array is new.
    Fresh,
    /// The members carry this very array already, newest in this copy; and the slots of those that do.
    Adopted(Box<Copy>, Vec<usize>),
    /// They carry it, but it is not all of these members that it counts on.
    Recalled(Box<Copy>, Vec<usize>),
}

/// Creates what `params` describes, or waits for its members.
pub fn create(module: &RaidModule, params: RaidParams, token: OpToken) {
    // A spare that has been examined but is not in service yet could not be opened, and is not offered again.
    let is_nearly_there = |name: &&String| module.host().find(name).is_some() && token.base_is_coming(name);
    if let Some(name) = params.spares.iter().find(is_nearly_there) {
        return token.fail(Error::missing_base(name.clone()));
    }
    if let Some(existing) = module.by_name(&params.name) {
        return existing.create_again(&params, token);
    }
    let names = params.base_bdevs.names();
    let array = Array::new(token.host(), params, names.iter().map(|name| Slot::named(name)).collect());
    array.inner.borrow_mut().is_created = true;
    for (slot, name) in names.iter().enumerate() {
        match array.open_member(slot, name) {
            Ok(()) => {}
            // One that is being created or examined is there soon: the host repeats the create then.
            Err(error) if error.code == errno::ENODEV && !token.base_is_coming(name) => {
                log::info!("member awaited raid={} member={name}", array.name);
            }
            Err(error) => return token.fail(error),
        }
    }
    module.insert(&array);
    let (is_whole, has_superblock) = {
        let inner = array.inner.borrow();
        (inner.missing().is_empty(), inner.params.superblock)
    };
    array.inner.borrow_mut().create = Some(token);
    match (is_whole, has_superblock) {
        (true, _) => array.bring_up(),
        (false, true) => array.ask_members(),
        (false, false) => array.reply_missing(),
    }
}

impl Array {
    /// A create of an array that a superblock has announced before takes it over; any other is refused.
    fn create_again(self: &Rc<Self>, params: &RaidParams, token: OpToken) {
        let is_same = {
            let inner = self.inner.borrow();
            !inner.is_created
                && params.superblock
                && params.level == inner.params.level
                && params.strip_size_kb == inner.params.strip_size_kb
                && may_have(params.level, params.base_bdevs.names().len(), inner.slots.len())
                && params.uuid.is_none_or(|uuid| uuid.into_bytes() == inner.uuid)
        };
        if !is_same {
            return token.fail(Error::exists(&*self.name));
        }
        let others = self.others_of(&params.base_bdevs.names());
        if let Some(name) = others.iter().find(|name| token.base_is_coming(name)) {
            return token.fail(Error::missing_base(name.clone()));
        }
        {
            let mut inner = self.inner.borrow_mut();
            inner.is_created = true;
            inner.spares = params.spares.iter().map(|name| Spare::named(name)).collect();
        }
        let open = |(nth, name): (usize, &String)| {
            self.host.open(name, Access::Read, |_| {}).ok().map(|base| (nth, base))
        };
        let (opened, this) = (others.iter().enumerate().filter_map(open).collect(), Rc::clone(self));
        disk::read_all(opened, move |found| {
            let blank = |(nth, found): (usize, Result<Found, Error>)| {
                let is_blank = matches!(found, Ok(Err(SuperblockError::NotOurs)));
                others.get(nth).filter(|_| is_blank).cloned()
            };
            this.taken_over(found.into_iter().filter_map(blank).collect(), token);
        });
    }

    /// Those of the devices asked for that hold nothing of it, as far as it knows.
    fn others_of(&self, names: &[String]) -> Vec<String> {
        let inner = self.inner.borrow();
        let is_known = |name: &String| {
            inner.slots.iter().any(|slot| slot.name == **name && !slot.is_lost())
                || [&inner.returning, &inner.blank, &inner.put_off].iter().any(|list| list.contains(name))
                || inner.diverged.contains_key(name)
        };
        names.iter().filter(|name| !is_known(name)).cloned().collect()
    }

    /// A create has taken it over: devices of its list that are blank take slots that are free, now or once it is
    /// online, as if it had been asked for first.
    fn taken_over(self: &Rc<Self>, blank: Vec<String>, token: OpToken) {
        let (state, missing) = {
            let mut inner = self.inner.borrow_mut();
            if inner.state != ArrayState::Online {
                inner.blank.extend(blank.iter().cloned());
            }
            (inner.state, inner.missing())
        };
        match state {
            ArrayState::Closing | ArrayState::Gone => token.fail(Error::not_found(&*self.name)),
            ArrayState::Online => {
                self.rejoin_all(blank.into_iter().map(|name| (name, false)));
                self.open_spares();
                token.reply(&true);
            }
            ArrayState::Configuring | ArrayState::Committing => {
                token.reply(&serde_json::json!({ "state": "configuring", "missing": missing }));
            }
        }
    }

    /// Devices that hold nothing current are rebuilt, as long as slots are free.
    fn rejoin_all(self: &Rc<Self>, devices: impl Iterator<Item = (String, bool)>) {
        for (name, is_known) in devices {
            if let Err(error) = self.rejoin(&name, is_known) {
                log::warn!("member cannot return raid={} member={name} error=\"{error}\"", self.name);
            }
        }
    }

    /// Some members are there: if they carry this array already, what they say of it counts, and it may need no more.
    fn ask_members(self: &Rc<Self>) {
        let (targets, this) = (self.inner.borrow().current(), Rc::clone(self));
        self.inner.borrow_mut().is_asking = true;
        disk::read_all(targets, move |found| {
            this.inner.borrow_mut().is_asking = false;
            if this.inner.borrow().state != ArrayState::Configuring {
                return;
            }
            match this.judge(found) {
                Ok(Origin::Fresh) => this.look_for_missing(None, Array::reply_missing),
                Ok(Origin::Adopted(copy, carriers) | Origin::Recalled(copy, carriers)) => {
                    this.recall(&copy, &carriers);
                }
                Err(error) => {
                    let token = this.inner.borrow_mut().create.take();
                    this.give_up();
                    if let Some(token) = token {
                        token.fail(error);
                    }
                }
            }
        });
    }

    /// Waits for the members that the array counts on, or comes up with those that are there. Those that were looked
    /// at before it was known that they count are looked at again.
    fn recall(self: &Rc<Self>, copy: &Copy, carriers: &[usize]) {
        self.answer_examined();
        self.start_over(copy, |slot| carriers.contains(&slot));
        if self.is_complete() {
            return self.bring_up_assembled();
        }
        self.watch_missing();
        self.look_for_missing(None, Array::reply_missing);
    }

    /// Answers a create of an array that waits; one that came up has answered.
    fn reply_missing(self: &Rc<Self>) {
        let (token, missing) = {
            let mut inner = self.inner.borrow_mut();
            (inner.create.take(), inner.missing())
        };
        if let Some(token) = token {
            token.reply(&serde_json::json!({ "state": "configuring", "missing": missing }));
        }
    }

    /// Whether an array that was asked for may be that of a superblock.
    pub fn may_be(&self, superblock: &Superblock) -> bool {
        let inner = self.inner.borrow();
        superblock.name == self.name
            && inner.params.superblock
            && superblock.level == inner.params.level.id()
            && may_have(inner.params.level, inner.slots.len(), superblock.members.len())
            && (inner.uuid == [0; 16] || inner.uuid == superblock.uuid)
            && (inner.block_size == 0 || u64::from(superblock.strip_size) == inner.strip_blocks())
    }

    /// Every member is there: makes a device of the array.
    pub fn bring_up(self: &Rc<Self>) {
        let (targets, has_superblock) = {
            let mut inner = self.inner.borrow_mut();
            inner.on(ArrayEvent::AllPresent);
            inner.lost = None;
            (inner.current(), inner.params.superblock)
        };
        if !has_superblock {
            return match self.shape(false) {
                Ok(()) => self.go_online(false),
                Err(error) => self.refuse(error, false),
            };
        }
        let this = Rc::clone(self);
        disk::read_all(targets, move |found| match this.nothing_is_lost().and_then(|()| this.judge(found)) {
            Ok(Origin::Fresh) => this.start_fresh(),
            Ok(Origin::Adopted(copy, _)) => this.adopt(&copy),
            Ok(Origin::Recalled(copy, carriers)) => {
                this.inner.borrow_mut().on(ArrayEvent::Refused);
                this.recall(&copy, &carriers);
            }
            Err(error) => this.refuse(error, false),
        });
    }

    /// Decides about what the members carry: nothing, this array, or something that must not be overwritten unasked.
    fn judge(&self, found: Vec<(usize, Result<Found, Error>)>) -> Result<Origin, Error> {
        let inner = self.inner.borrow();
        let mut copies: Vec<(usize, Copy)> = Vec::new();
        for (slot, result) in found {
            let base = &inner.slots[slot].name;
            match result? {
                Ok(copy) => copies.push((slot, copy)),
                Err(SuperblockError::NotOurs) => {}
                Err(error @ (SuperblockError::Version { .. } | SuperblockError::Features { .. }))
                    if !inner.params.overwrite_superblock =>
                {
                    return Err(Error::exists(&**base).caused_by(error));
                }
                Err(error) => log::warn!("unusable superblock bdev={base} error=\"{error}\""),
            }
        }
        drop(inner);
        copies.iter().for_each(|(_, copy)| self.inner.borrow_mut().count_record(copy));
        let inner = self.inner.borrow();
        let newest = copies.iter().max_by_key(|(_, copy)| copy.superblock.seq_number).cloned();
        let Some((slot, newest_copy)) = newest else { return Ok(Origin::Fresh) };
        let newest = &newest_copy.superblock;
        let is_ours = |(slot, _): &(usize, Copy)| {
            let member = &inner.slots[*slot];
            newest
                .member(&member.uuid)
                .is_some_and(|entry| usize::from(entry.slot) == *slot && entry.is_configured())
        };
        let is_asked_for = self.may_be(newest);
        if is_asked_for && copies.iter().all(|(_, copy)| copy.superblock.uuid == newest.uuid) {
            let is_all = copies.iter().all(is_ours)
                && copies.len() == inner.slots.len()
                && newest.members.len() == inner.slots.len();
            let apart =
                copies.iter().find(|(slot, copy)| has_diverged(&newest_copy, copy, &inner.slots[*slot].uuid));
            let carriers = copies.iter().map(|(slot, _)| *slot).collect();
            return match apart {
                None if is_all => Ok(Origin::Adopted(Box::new(newest_copy), carriers)),
                None => Ok(Origin::Recalled(Box::new(newest_copy), carriers)),
                Some((apart, copy)) => {
                    let reason = format!(
                        "went its own way: it is at {}, {} is at {}; wipe one of them",
                        side(copy),
                        inner.slots[slot].name,
                        side(&newest_copy)
                    );
                    Err(Error::busy(reason).object(&*inner.slots[*apart].name))
                }
            };
        }
        if inner.params.overwrite_superblock {
            return Ok(Origin::Fresh);
        }
        let reason = format!(
            "carries the superblock of array {} ({}): end that one with bdev_raid_destroy, or create with \
             overwrite_superblock",
            newest.name,
            Uuid::from_bytes(newest.uuid)
        );
        Err(Error::new(errno::EEXIST, reason).object(&*inner.slots[slot].name))
    }

    /// Sizes and identity of an array that is new.
    fn shape(&self, has_superblock: bool) -> Result<(), Error> {
        let infos = self.infos()?;
        let mut inner = self.inner.borrow_mut();
        let (strip_blocks, level) = (inner.strip_blocks(), inner.params.level);
        if inner.params.level.has_strips() && strip_blocks == 0 {
            let reason = format!(
                "strip_size_kb of {} is less than a block of {} bytes",
                inner.params.strip_size_kb, inner.block_size
            );
            return Err(Error::invalid(reason).object(&*self.name));
        }
        for (slot, info) in inner.slots.iter_mut().zip(&infos) {
            slot.data_offset = if has_superblock { data_offset_for(level, info) } else { 0 };
            slot.data_size = info.limits.num_blocks.saturating_sub(slot.data_offset);
        }
        let room: Vec<u64> = inner.slots.iter().map(|slot| slot.data_size).collect();
        let layout = Layout::new(inner.params.level, strip_blocks, &room).ok_or_else(|| {
            Error::invalid(format!("members with room for {room:?} blocks are too small")).object(&*self.name)
        })?;
        for (slot, size) in inner.slots.iter_mut().zip(&layout.data_sizes) {
            slot.data_size = *size;
        }
        if inner.uuid == [0; 16] {
            inner.uuid = if has_superblock {
                Uuid::new_v4().into_bytes()
            } else {
                // The same members give the same identity at every start.
                let bases: Vec<u8> = inner.slots.iter().flat_map(|slot| slot.uuid).collect();
                let space = Uuid::new_v5(&Uuid::NAMESPACE_OID, &bases);
                Uuid::new_v5(&space, format!("raid {}", self.name).as_bytes()).into_bytes()
            };
        }
        inner.layout = Some(Arc::new(layout));
        Ok(())
    }

    fn start_fresh(self: &Rc<Self>) {
        if let Err(error) = self.shape(true) {
            return self.refuse(error, false);
        }
        let (targets, draft, bitmap) = {
            let mut inner = self.inner.borrow_mut();
            inner.agreed.features = inner.features_wanted();
            if inner.params.level == Level::Raid5 && inner.journal().is_none() {
                drop(inner);
                let reason = "members have no room for a journal before their data";
                return self.refuse(Error::invalid(reason).object(&*self.name), false);
            }
            // Parity of what was never written is not known to fit.
            let is_dirty = inner.params.level.is_parity();
            inner.marking = inner.new_ledger(is_dirty).map(|ledger| Marking::new(ledger, is_dirty));
            let bitmap = inner.marking.as_mut().map(|marking| marking.bitmap().encode());
            (inner.current(), inner.next_draft(&self.name), bitmap)
        };
        let this = Rc::clone(self);
        let (with_bitmap, bitmap) = match bitmap {
            Some(bitmap) => (targets.clone(), bitmap),
            None => (Vec::new(), Vec::new()),
        };
        disk::write_all_at(with_bitmap, ondisk::BITMAP, &bitmap, move |failures| {
            if let Some((_, error)) = failures.into_iter().next() {
                return this.refuse(error, true);
            }
            let array = Rc::clone(&this);
            disk::write_all(targets, &draft, move |failures| match failures.into_iter().next() {
                None => {
                    array.inner.borrow_mut().note_synced();
                    array.go_online(true);
                }
                Some((_, error)) => array.refuse(error, true),
            });
        });
    }

    /// Goes on with the array that the members carry. It is agreed on anew, which also brings copies up to date that
    /// are older or damaged.
    pub fn adopt(self: &Rc<Self>, copy: &Copy) {
        {
            let mut inner = self.inner.borrow_mut();
            for entry in &copy.superblock.members {
                let Some(slot) = inner.slots.get_mut(usize::from(entry.slot)) else { continue };
                (slot.data_offset, slot.data_size) = (entry.data_offset, entry.data_size);
                if !entry.is_configured() && slot.base.is_none() {
                    slot.standing = Slot::of_entry(entry).standing;
                    slot.uuid = entry.uuid;
                }
            }
            let sizes = inner.slots.iter().map(|slot| slot.data_size).collect();
            inner.layout = Layout::of_sizes(inner.params.level, inner.strip_blocks(), sizes).map(Arc::new);
            inner.uuid = copy.superblock.uuid;
            inner.learn(copy);
        }
        if let Err(error) = self.check_adopted() {
            return self.refuse(error, false);
        }
        self.load_bitmap(|array| array.replay(Array::recovered));
    }

    /// What a crash has left is read and redone: the array is agreed on anew.
    fn recovered(self: &Rc<Self>, result: Result<(), Error>) {
        if let Err(error) = result {
            return self.refuse(error, false);
        }
        self.commit(|array, is_durable| {
            if is_durable {
                array.go_online(false);
            } else {
                array.refuse(Error::io("too few members take a superblock").object(&*array.name), false);
            }
        });
    }

    /// That members are as large as their superblock says.
    fn check_adopted(&self) -> Result<(), Error> {
        let inner = self.inner.borrow();
        let superblock = inner.superblock.as_ref();
        let blocks = inner.layout.as_ref().map(|layout| layout.num_blocks);
        if blocks.is_none() || blocks != superblock.map(|superblock| superblock.raid_size) {
            let reason = format!("superblock states an impossible size, computed {blocks:?} blocks");
            return Err(Error::invalid(reason).object(&*self.name));
        }
        if superblock.is_some_and(|superblock| superblock.block_size != inner.block_size) {
            return Err(Error::invalid("superblock states another block size").object(&*self.name));
        }
        for (_, base) in inner.current() {
            let slot = inner.slots.iter().find(|slot| slot.name == base.name());
            let end = slot.map_or(0, |slot| slot.data_offset + slot.data_size);
            if base.opened_info().limits.num_blocks < end {
                let reason = format!("is smaller than the {end} blocks its superblock states");
                return Err(Error::invalid(reason).object(base.name()));
            }
        }
        Ok(())
    }

    /// Registers the device.
    fn go_online(self: &Rc<Self>, is_fresh: bool) {
        match self.nothing_is_lost().and_then(|()| self.register()) {
            Ok(()) => {
                self.inner.borrow_mut().is_fresh = is_fresh;
                self.is_online();
            }
            Err(error) => self.refuse(error, is_fresh),
        }
    }

    /// That every member is still there.
    fn nothing_is_lost(&self) -> Result<(), Error> {
        match &self.inner.borrow().lost {
            Some(name) => Err(Error::io("went while the array was brought up").object(&**name)),
            None => Ok(()),
        }
    }

    fn register(self: &Rc<Self>) -> Result<(), Error> {
        let infos = self.infos()?;
        let (shared, spec) = {
            let mut inner = self.inner.borrow_mut();
            for slot in &mut inner.slots {
                // A member that is not there by now was given up.
                if slot.is_awaited() {
                    slot.standing = Standing::Missing;
                }
            }
            let layout =
                inner.layout.clone().ok_or_else(|| Error::io("has no layout").object(&*self.name))?;
            let spec = spec(&self.name, &layout, inner.block_size, inner.uuid, &infos);
            inner.ops = crate::bdev::ops(layout.level, &infos);
            let stripes = inner.journal().map(|slots| Stripes::new(slots, inner.uuid));
            let members = inner.members().ok_or_else(|| Error::io("has no layout").object(&*self.name))?;
            let shared =
                Shared::new(self.id, self.host, &self.name, members, inner.block_size.into(), stripes);
            (Arc::new(shared), spec)
        };
        let device = RaidBdev { shared: Arc::clone(&shared) };
        let token = self.inner.borrow_mut().create.take();
        let result = match &token {
            Some(token) => token.register(spec, device),
            None => self.host.register(spec, device),
        };
        let mut inner = self.inner.borrow_mut();
        inner.create = token;
        inner.bdev = Some(result?);
        inner.shared = Some(shared);
        let names: Vec<String> = inner.slots.iter().map(Slot::label).collect();
        inner.params.base_bdevs = crate::config::BaseNames::List(names);
        inner.params.uuid = Some(Uuid::from_bytes(inner.uuid));
        inner.params.overwrite_superblock = false;
        inner.last_error = None;
        inner.patience = None;
        inner.on(ArrayEvent::Committed);
        Ok(())
    }

    fn is_online(self: &Rc<Self>) {
        let closed = self.inner.borrow_mut().take_lost();
        drop(closed);
        let (token, returning, present, all) = {
            let mut inner = self.inner.borrow_mut();
            let known = std::mem::take(&mut inner.returning).into_iter().map(|name| (name, true));
            let blank = std::mem::take(&mut inner.blank).into_iter().map(|name| (name, false));
            let returning: Vec<_> = known.chain(blank).collect();
            (inner.create.take(), returning, inner.current().len(), inner.slots.len())
        };
        log::info!("array is online raid={} members={present} of={all}", self.name);
        self.answer_examined();
        self.publish_process();
        if present < all {
            self.tell_openers();
        }
        if let Some(token) = token {
            token.reply(&true);
        }
        self.rejoin_all(returning.into_iter());
        self.open_spares();
        self.push_resync();
        self.watch_rest();
    }

    /// Takes back what was done. A create that waits fails and nothing is left of the array; an array that came up
    /// by itself keeps waiting, for an operator to decide.
    fn refuse(self: &Rc<Self>, error: Error, is_written: bool) {
        let then = move |array: &Rc<Array>| {
            let token = array.inner.borrow_mut().create.take();
            match token {
                Some(token) => {
                    array.give_up();
                    token.fail(error);
                }
                None => array.stay_configuring(&error),
            }
        };
        if is_written { self.wipe_members(then) } else { then(self) }
    }

    fn stay_configuring(self: &Rc<Self>, error: &Error) {
        log::error!("array cannot come online raid={} error=\"{error}\"", self.name);
        let closed: Vec<_> = {
            let mut inner = self.inner.borrow_mut();
            inner.on(ArrayEvent::Refused);
            inner.last_error = Some(error.to_string());
            let lost = inner.lost.take();
            let is_lost = |slot: &&mut Slot| lost.as_ref() == Some(&slot.name);
            inner.slots.iter_mut().filter(is_lost).map(|slot| slot.base.take()).collect()
        };
        drop(closed);
        self.answer_examined();
    }

    /// What the members that are there are now.
    fn infos(&self) -> Result<Vec<BdevInfo>, Error> {
        let current = self.inner.borrow().current();
        current
            .iter()
            .map(|(_, base)| base.info().map_err(|_| Error::io("is gone").object(base.name())))
            .collect()
    }

    /// Creating an array of these parameters gives this one.
    pub fn params(&self) -> RaidParams {
        self.inner.borrow().params.clone()
    }
}

/// Whether an array asked for with so many members may have this many by now: a concat gets more while it is used.
fn may_have(level: Level, asked_for: usize, members: usize) -> bool {
    asked_for == members || (level == Level::Concat && asked_for < members)
}
