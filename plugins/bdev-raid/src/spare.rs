//! Spares: devices that belong to an array, hold nothing, and take the place of a
//! member that is lost. They are claimed as long as they are there, and awaited by
//! name otherwise.

use std::rc::Rc;

use tenon_sdk::{Access, BaseEvent, Claim, Descriptor, Error, Exported};

use crate::RaidModule;
use crate::array::{Array, Slot, check_member};
use crate::config::MAX_SPARES;
use crate::state::ArrayState;

/// A device that waits for a slot.
#[derive(Clone)]
pub struct Spare {
    /// Its name.
    pub name: String,
    /// The device, if it is there.
    pub base: Option<Descriptor>,
    /// Tells devices of the same name after each other apart.
    member: u64,
}

impl Spare {
    /// One that is not there yet.
    pub fn named(name: &str) -> Spare {
        Spare { name: name.to_owned(), base: None, member: 0 }
    }
}

impl Array {
    /// Adds a spare; it is used at once if a member is missing.
    ///
    /// # Errors
    /// If the array has no use for it or the device cannot be a member.
    pub fn add_spare(self: &Rc<Self>, name: &str) -> Result<(), Error> {
        {
            let inner = self.inner.borrow();
            if inner.state != ArrayState::Online {
                return Err(Error::busy("array is not online").object(&*self.name));
            }
            if !inner.params.level.is_redundant() {
                let reason =
                    format!("{} cannot lose a member, a spare is of no use", inner.params.level.name());
                return Err(Error::invalid(reason).object(&*self.name));
            }
            if inner.spares.len() == MAX_SPARES {
                return Err(Error::busy(format!("array has {MAX_SPARES} spares already")).object(&*self.name));
            }
            if inner.spares.iter().any(|spare| spare.name == name) {
                return Err(Error::exists(name));
            }
        }
        if self.host.find(name).is_none() {
            return Err(Error::not_found(name));
        }
        self.inner.borrow_mut().spares.push(Spare::named(name));
        if let Err(error) = self.open_spare(name) {
            self.inner.borrow_mut().spares.retain(|spare| spare.name != name);
            return Err(error);
        }
        self.note_spares();
        self.use_spares();
        self.run_next();
        Ok(())
    }

    /// Gives a spare back.
    ///
    /// # Errors
    /// If the array has no such spare.
    pub fn remove_spare(&self, name: &str) -> Result<(), Error> {
        let gone: Vec<Spare> =
            self.inner.borrow_mut().spares.extract_if(.., |spare| spare.name == name).collect();
        self.note_spares();
        if gone.is_empty() { Err(Error::not_found(name)) } else { Ok(()) }
    }

    /// Opens the spares that are there.
    pub fn open_spares(self: &Rc<Self>) {
        let closed: Vec<String> = {
            let mut inner = self.inner.borrow_mut();
            let members: Vec<String> = inner.slots.iter().map(|slot| slot.name.clone()).collect();
            // One that took the place of a member before.
            inner.spares.retain(|spare| !members.contains(&spare.name));
            inner.spares.iter().filter(|spare| spare.base.is_none()).map(|spare| spare.name.clone()).collect()
        };
        self.note_spares();
        for name in closed.iter().filter(|name| self.host.find(name).is_some()) {
            if let Err(error) = self.open_spare(name) {
                log::warn!("spare not usable raid={} spare={name} error=\"{error}\"", self.name);
            }
        }
        self.use_spares();
        self.run_next();
    }

    /// Whether it would have a spare of that name that is not there, now or once it is online.
    pub fn lacks_spare(&self, name: &str) -> bool {
        let inner = self.inner.borrow();
        let is_or_comes =
            matches!(inner.state, ArrayState::Configuring | ArrayState::Committing | ArrayState::Online);
        is_or_comes && inner.spares.iter().any(|spare| spare.name == name && spare.base.is_none())
    }

    fn open_spare(&self, name: &str) -> Result<(), Error> {
        let (array, member) = (self.id, RaidModule::next_id());
        let base = self.host.open(name, Access::Write, move |event| {
            RaidModule::with(|module| module.spare_event(array, member, event));
        })?;
        base.claim(Claim::ExclusiveWrite)?;
        let info = base.info()?;
        let mut inner = self.inner.borrow_mut();
        check_member(&info, inner.block_size, inner.ops)?;
        if let Some(spare) = inner.spares.iter_mut().find(|spare| spare.name == name) {
            (spare.base, spare.member) = (Some(base), member);
        }
        Ok(())
    }

    /// Something happened to a device that was opened as a spare; it may be a member now.
    pub fn spare_event(self: &Rc<Self>, member: u64, event: &BaseEvent) {
        let slot = self.inner.borrow().slots.iter().position(|slot| slot.member == member);
        if let Some(slot) = slot {
            return self.base_event(slot, member, event);
        }
        let BaseEvent::Remove { .. } = event else { return };
        let closed = {
            let mut inner = self.inner.borrow_mut();
            let spare = inner.spares.iter_mut().find(|spare| spare.member == member);
            spare.and_then(|spare| spare.base.take())
        };
        log::info!("spare goes raid={}", self.name);
        drop(closed);
    }

    /// Puts spares into the slots of members that are lost.
    pub fn use_spares(self: &Rc<Self>) {
        loop {
            let taken = {
                let mut inner = self.inner.borrow_mut();
                if inner.state != ArrayState::Online {
                    return;
                }
                let slot = inner.slots.iter().position(Slot::is_free);
                let spare = inner.spares.iter().position(|spare| spare.base.is_some());
                slot.zip(spare).map(|(slot, spare)| (slot, inner.spares.remove(spare)))
            };
            let Some((slot, Spare { name, base: Some(base), member })) = taken else { return };
            self.note_spares();
            let offset = base.info().and_then(|info| self.room_on(&info, slot).map(|offset| (info, offset)));
            let (info, offset) = match offset {
                Ok(room) => room,
                Err(error) => {
                    log::error!("spare not usable raid={} spare={name} error=\"{error}\"", self.name);
                    continue;
                }
            };
            log::warn!("spare takes the place of a member raid={} spare={name} slot={slot}", self.name);
            self.inner.borrow_mut().put(slot, &name, info.uuid, member, base);
            self.fill(slot, offset);
        }
    }

    /// What a create would have to say.
    fn note_spares(&self) {
        let mut inner = self.inner.borrow_mut();
        inner.params.spares = inner.spares.iter().map(|spare| spare.name.clone()).collect();
    }
}
