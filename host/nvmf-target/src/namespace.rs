//! Namespaces: devices that a subsystem shows, under a number.
//!
//! A namespace opens its device and claims it; every reactor opens a channel
//! before the namespace is announced. It goes by request or with its device:
//! hosts are told, reactors let go, and the device is closed after the last
//! command.

use std::collections::BTreeSet;
use std::rc::Rc;
use std::sync::Arc;

use tenon_abi::{BdevEventKind, BdevFlags, BdevHandle, Limits, errno};
use tenon_bdev::{Claim, Event, OpError};

use crate::config::NamespaceSpec;
use crate::controller::aer::EventKind;
use crate::error::TargetError;
use crate::queue::interface::{NamespaceFacts, OpenGuard};
use crate::queue::view::NamespaceSide;
use crate::reservation::{NamespaceReservations, ReservationSnapshot};
use crate::subsystem::{Subsystem, SubsystemState};
use crate::target::{OpenDevice, Target};

/// Who sees a namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Visibility {
    All,
    Hosts(BTreeSet<String>),
}

/// A namespace, as the control reactor knows it.
pub(crate) struct Namespace {
    pub nsid: u32,
    pub bdev_name: String,
    pub limits: Limits,
    pub flags: BdevFlags,
    pub io_types: u64,
    pub uuid: uuid::Uuid,
    pub nguid: [u8; 16],
    pub eui64: [u8; 8],
    pub anagrpid: u32,
    pub visibility: Visibility,
    /// By the operator, or because the device is read-only.
    pub is_read_only: bool,
    /// By a host, with Set Features.
    pub is_write_protected: bool,
    pub bdev: BdevHandle,
    /// Names the open device.
    pub number: u64,
    pub reservations: Rc<NamespaceReservations>,
    /// What it was made from.
    pub spec: NamespaceSpec,
}

/// A namespace for reports.
#[derive(Clone, Debug)]
pub struct NamespaceSnapshot {
    /// What it was made from.
    pub spec: NamespaceSpec,
    /// Its number.
    pub nsid: u32,
    /// Its device.
    pub bdev_name: String,
    /// UUID.
    pub uuid: uuid::Uuid,
    /// Namespace Globally Unique Identifier, or zero.
    pub nguid: [u8; 16],
    /// EUI-64, or zero.
    pub eui64: [u8; 8],
    /// ANA group.
    pub anagrpid: u32,
    /// Blocks.
    pub num_blocks: u64,
    /// Hosts that see it; `None`: all.
    pub hosts: Option<Vec<String>>,
    /// Whether writes are refused.
    pub is_write_protected: bool,
    /// Who has reserved it.
    pub reservation: ReservationSnapshot,
}

impl Namespace {
    pub(crate) fn is_visible_to(&self, hostnqn: &str) -> bool {
        match &self.visibility {
            Visibility::All => true,
            Visibility::Hosts(hosts) => hosts.contains(hostnqn),
        }
    }

    pub(crate) fn refuses_writes(&self) -> bool {
        self.is_read_only || self.is_write_protected
    }

    pub(crate) fn snapshot(&self) -> NamespaceSnapshot {
        NamespaceSnapshot {
            spec: self.spec.clone(),
            nsid: self.nsid,
            bdev_name: self.bdev_name.clone(),
            uuid: self.uuid,
            nguid: self.nguid,
            eui64: self.eui64,
            anagrpid: self.anagrpid,
            num_blocks: self.limits.num_blocks,
            hosts: match &self.visibility {
                Visibility::All => None,
                Visibility::Hosts(hosts) => Some(hosts.iter().cloned().collect()),
            },
            is_write_protected: self.refuses_writes(),
            reservation: self.reservations.snapshot(),
        }
    }
}

impl Target {
    /// Adds a namespace; tells its number.
    pub fn add_namespace(
        &self,
        nqn: &str,
        spec: NamespaceSpec,
        done: impl FnOnce(Result<u32, TargetError>) + 'static,
    ) {
        let opened = self.check_running().and_then(|()| self.subsystem(nqn)).and_then(|subsystem| {
            let namespace = self.open_namespace(&subsystem, &spec)?;
            Ok((subsystem, namespace))
        });
        let (subsystem, (namespace, facts)) = match opened {
            Ok(opened) => opened,
            Err(error) => return self.later(move || done(Err(error))),
        };
        let (nsid, slot) = (namespace.nsid, namespace.reservations.clone());
        subsystem.namespaces.borrow_mut().insert(nsid, namespace);
        let target = self.clone();
        self.load_reservations(&slot.clone(), move |loaded| match loaded {
            Ok(()) => {
                let reservation = slot.state.borrow().view();
                target.announce_namespace(subsystem, NamespaceFacts { reservation, ..facts }, done);
            }
            Err(error) => {
                drop(facts);
                target.take_namespace(&subsystem, nsid, move || done(Err(error)));
            }
        });
    }

    /// Has every reactor open a namespace's device, then tells hosts.
    fn announce_namespace(
        &self,
        subsystem: Rc<Subsystem>,
        facts: NamespaceFacts,
        done: impl FnOnce(Result<u32, TargetError>) + 'static,
    ) {
        let (target, nsid, id, anagrpid) = (self.clone(), facts.nsid, subsystem.id, facts.anagrpid);
        let number = facts.guard.number;
        self.ask(
            move |side| {
                let view =
                    side.subsystem(id).ok_or_else(|| "the reactor does not know the subsystem".to_owned())?;
                view.add(NamespaceSide::open(&facts)?);
                Ok::<(), String>(())
            },
            move |results| {
                let failed = results.into_iter().find_map(Result::err);
                // Its device, or the subsystem, may have gone meanwhile, and another may be there now.
                let bdev = {
                    let namespaces = subsystem.namespaces.borrow();
                    let own = namespaces.get(&nsid).filter(|one| one.number == number);
                    own.map(|one| (one.bdev, one.bdev_name.clone()))
                };
                let object = format!("namespace {nsid} of {}", subsystem.nqn);
                let Some((bdev, name)) = bdev else { return done(Err(device_gone(object))) };
                if let Some(reason) = failed {
                    let error = match target.inner.core.find(&name) == Some(bdev) {
                        true => TargetError::invalid(object, reason),
                        false => device_gone(object),
                    };
                    return target.take_namespace(&subsystem, nsid, move || done(Err(error)));
                }
                log::info!("namespace added nqn={} nsid={nsid} ana_group={anagrpid}", subsystem.nqn);
                target.publish_access(&subsystem);
                target.namespace_changed(&subsystem, nsid);
                done(Ok(nsid));
            },
        );
    }

    /// Removes a namespace; `done` when its device is closed.
    pub fn remove_namespace(
        &self,
        nqn: &str,
        nsid: u32,
        done: impl FnOnce(Result<(), TargetError>) + 'static,
    ) {
        let found = self.subsystem(nqn).and_then(|subsystem| {
            if !subsystem.namespaces.borrow().contains_key(&nsid) {
                return Err(TargetError::NoNamespace { nqn: nqn.to_owned(), nsid });
            }
            Ok(subsystem)
        });
        match found {
            Ok(subsystem) => self.take_namespace(&subsystem, nsid, move || done(Ok(()))),
            Err(error) => self.later(move || done(Err(error))),
        }
    }

    pub(crate) fn remove_all_namespaces(&self, subsystem: &Rc<Subsystem>, done: impl FnOnce() + 'static) {
        let first = subsystem.namespaces.borrow().keys().next().copied();
        let Some(nsid) = first else { return done() };
        let (target, again) = (self.clone(), subsystem.clone());
        self.take_namespace(subsystem, nsid, move || target.remove_all_namespaces(&again, done));
    }

    /// Moves a namespace to another ANA group.
    pub fn set_namespace_ana_group(&self, nqn: &str, nsid: u32, anagrpid: u32) -> Result<(), TargetError> {
        let subsystem = self.subsystem(nqn)?;
        check_group(&subsystem, anagrpid)?;
        self.change_namespace(&subsystem, nsid, |namespace| namespace.anagrpid = anagrpid)?;
        subsystem.ana_changes.set(subsystem.ana_changes.get() + 1);
        self.raise(&subsystem, EventKind::Ana, None);
        Ok(())
    }

    /// Shows a namespace to a host, or hides it.
    pub fn set_namespace_visible(
        &self,
        nqn: &str,
        nsid: u32,
        host: &str,
        is_visible: bool,
    ) -> Result<(), TargetError> {
        let subsystem = self.subsystem(nqn)?;
        let object = format!("namespace {nsid} of {nqn}");
        {
            let mut namespaces = subsystem.namespaces.borrow_mut();
            let namespace = namespaces
                .get_mut(&nsid)
                .ok_or_else(|| TargetError::NoNamespace { nqn: nqn.to_owned(), nsid })?;
            let Visibility::Hosts(hosts) = &mut namespace.visibility else {
                return Err(TargetError::invalid(object, "every host sees it"));
            };
            let changed = if is_visible { hosts.insert(host.to_owned()) } else { hosts.remove(host) };
            if !changed {
                let host = host.to_owned();
                return Err(if is_visible {
                    TargetError::HostExists { host, object }
                } else {
                    TargetError::NoHost { host, object }
                });
            }
        }
        self.publish_access(&subsystem);
        self.raise_for_host(&subsystem, host, nsid);
        Ok(())
    }

    /// A host protects a namespace from writes, or ends that.
    pub(crate) fn set_write_protection(&self, subsystem: &Rc<Subsystem>, nsid: u32, is_protected: bool) {
        let changed =
            self.change_namespace(subsystem, nsid, |namespace| namespace.is_write_protected = is_protected);
        if changed.is_ok() {
            self.namespace_changed(subsystem, nsid);
        }
    }

    /// Changes a namespace's record, and then every reactor's view of it.
    fn change_namespace(
        &self,
        subsystem: &Rc<Subsystem>,
        nsid: u32,
        change: impl FnOnce(&mut Namespace),
    ) -> Result<(), TargetError> {
        let (num_blocks, anagrpid, is_protected) = {
            let mut namespaces = subsystem.namespaces.borrow_mut();
            let namespace = namespaces
                .get_mut(&nsid)
                .ok_or_else(|| TargetError::NoNamespace { nqn: subsystem.nqn.clone(), nsid })?;
            change(namespace);
            (namespace.limits.num_blocks, namespace.anagrpid, namespace.refuses_writes())
        };
        let id = subsystem.id;
        self.ask(
            move |side| {
                if let Some(namespace) = side.subsystem(id).and_then(|view| view.namespace(nsid)) {
                    namespace.num_blocks.set(num_blocks);
                    namespace.anagrpid.set(anagrpid);
                    namespace.is_write_protected.set(is_protected);
                }
            },
            |_| {},
        );
        Ok(())
    }

    fn open_namespace(
        &self,
        subsystem: &Rc<Subsystem>,
        spec: &NamespaceSpec,
    ) -> Result<(Namespace, NamespaceFacts), TargetError> {
        if subsystem.is_discovery {
            return Err(TargetError::invalid(&*subsystem.nqn, "a discovery subsystem has no namespaces"));
        }
        if subsystem.state.get() == SubsystemState::Starting {
            return Err(TargetError::invalid(&*subsystem.nqn, "the subsystem is being made"));
        }
        let nsid = free_nsid(subsystem, spec.nsid)?;
        let anagrpid = spec.anagrpid.unwrap_or(nsid);
        check_group(subsystem, anagrpid)?;
        let object = format!("namespace {nsid} of {}", subsystem.nqn);
        let refused = |source| TargetError::Refused { object: object.clone(), source };
        let (target, id) = (self.clone(), subsystem.id);
        let on_event = move |event: &Event| target.device_event(id, event);
        let owner = format!("nvmf {}", subsystem.nqn);
        let core = &self.inner.core;
        let descriptor = core.open(&spec.bdev_name, &owner, !spec.read_only, on_event).map_err(refused)?;
        let claim = if spec.read_only { Claim::ReadManyWriteNone } else { Claim::ExclusiveWrite };
        descriptor.claim(claim).map_err(refused)?;
        let device = descriptor.snapshot().ok_or_else(|| device_gone(object.clone()))?;
        let number = self.next_number();
        let is_read_only = spec.read_only || device.is_read_only;
        let facts = NamespaceFacts {
            nsid,
            desc: descriptor.handle(),
            guard: Arc::new(OpenGuard { control: self.inner.directory.control().clone(), number }),
            limits: device.limits,
            flags: device.flags,
            io_types: device.io_types,
            io_flags: device.io_flags,
            is_write_protected: is_read_only,
            anagrpid,
            reservation: None,
        };
        let uuid = spec.uuid.unwrap_or(device.uuid);
        let reservations = self.reservations_for(subsystem, nsid, uuid, spec, &object)?;
        let namespace = Namespace {
            nsid,
            bdev_name: device.name,
            limits: device.limits,
            flags: device.flags,
            io_types: device.io_types,
            uuid,
            nguid: spec.nguid.unwrap_or(device.nguid),
            eui64: spec.eui64.unwrap_or(device.eui64),
            anagrpid,
            visibility: match spec.no_auto_visible {
                true => Visibility::Hosts(BTreeSet::new()),
                false => Visibility::All,
            },
            is_read_only,
            is_write_protected: false,
            bdev: device.handle,
            number,
            reservations,
            spec: spec.clone(),
        };
        let open = OpenDevice { descriptor: Some(descriptor), closed: None };
        self.inner.descriptors.borrow_mut().insert(number, open);
        Ok((namespace, facts))
    }

    fn reservations_for(
        &self,
        subsystem: &Subsystem,
        nsid: u32,
        uuid: uuid::Uuid,
        spec: &NamespaceSpec,
        object: &str,
    ) -> Result<Rc<NamespaceReservations>, TargetError> {
        let file = self.reservation_file(spec.ptpl_file.as_deref(), uuid);
        if let Some(file) = file.as_deref().filter(|file| self.is_reservation_file_taken(file)) {
            let reason = format!("ptpl_file {} is another namespace's", file.display());
            return Err(TargetError::invalid(object, reason));
        }
        Ok(Rc::new(NamespaceReservations::new(subsystem.id, nsid, uuid, file)))
    }

    /// Takes a namespace away from hosts and reactors; `done` when its device is closed. Idempotent.
    fn take_namespace(&self, subsystem: &Rc<Subsystem>, nsid: u32, done: impl FnOnce() + 'static) {
        let taken = subsystem.namespaces.borrow_mut().remove(&nsid);
        let Some(namespace) = taken else { return self.later(done) };
        namespace.reservations.end();
        let number = namespace.number;
        if let Some(device) = self.inner.descriptors.borrow_mut().get_mut(&number) {
            device.closed = Some(Box::new(done));
        } else {
            // Already closed: no reactor ever used it.
            self.later(done);
        }
        let id = subsystem.id;
        self.ask(
            move |side| {
                if let Some(view) = side.subsystem(id) {
                    view.remove(nsid);
                }
            },
            |_| {},
        );
        log::info!("namespace removed nqn={} nsid={nsid} bdev={}", subsystem.nqn, namespace.bdev_name);
        self.publish_access(subsystem);
        self.namespace_changed(subsystem, nsid);
    }

    fn device_event(&self, id: u64, event: &Event) {
        let subsystem = self.inner.subsystems.borrow().get(&id).cloned();
        let Some(subsystem) = subsystem else { return };
        let found = {
            let namespaces = subsystem.namespaces.borrow();
            namespaces.values().find(|namespace| namespace.bdev == event.bdev).map(|namespace| namespace.nsid)
        };
        let Some(nsid) = found else { return };
        match event.kind {
            BdevEventKind::REMOVE => self.take_namespace(&subsystem, nsid, || {}),
            BdevEventKind::RESIZE => {
                let blocks = event.value;
                let resized =
                    self.change_namespace(&subsystem, nsid, |namespace| namespace.limits.num_blocks = blocks);
                if resized.is_ok() {
                    log::info!("namespace resized nqn={} nsid={nsid} blocks={blocks}", subsystem.nqn);
                    self.namespace_changed(&subsystem, nsid);
                }
            }
            BdevEventKind::READ_ONLY | BdevEventKind::WRITABLE => {
                let is_read_only = event.kind == BdevEventKind::READ_ONLY;
                let changed = self
                    .change_namespace(&subsystem, nsid, |namespace| namespace.is_read_only = is_read_only);
                if changed.is_ok() {
                    self.namespace_changed(&subsystem, nsid);
                }
            }
            _ => log::debug!("device event kind={} nqn={} nsid={nsid}", event.kind.0, subsystem.nqn),
        }
    }
}

/// The same request may succeed when the device is back.
fn device_gone(object: String) -> TargetError {
    let source = OpError::new(errno::ENODEV, object.clone(), "its device is gone");
    TargetError::Refused { object, source }
}

fn free_nsid(subsystem: &Subsystem, wanted: Option<u32>) -> Result<u32, TargetError> {
    let namespaces = subsystem.namespaces.borrow();
    let max = subsystem.spec.max_namespaces;
    let nqn = subsystem.nqn.clone();
    match wanted {
        Some(nsid) if !(1..=max).contains(&nsid) => {
            Err(TargetError::invalid(nqn, format!("namespace identifier {nsid} is not 1 to {max}")))
        }
        Some(nsid) if namespaces.contains_key(&nsid) => Err(TargetError::NamespaceExists { nqn, nsid }),
        Some(nsid) => Ok(nsid),
        None => (1..=max)
            .find(|nsid| !namespaces.contains_key(nsid))
            .ok_or(TargetError::TooMany { object: format!("namespaces of {nqn}"), limit: max as usize }),
    }
}

fn check_group(subsystem: &Subsystem, anagrpid: u32) -> Result<(), TargetError> {
    let max = subsystem.spec.max_namespaces;
    if (1..=max).contains(&anagrpid) {
        return Ok(());
    }
    Err(TargetError::invalid(&*subsystem.nqn, format!("ANA group {anagrpid} is not 1 to {max}")))
}
