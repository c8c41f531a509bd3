//! What the module manages: controllers, devices, and which paths lead from one
//! to the other. On the control thread.
//!
//! A namespace found at a controller is a path of the device that has its
//! identity, or makes a new device. A path goes when its controller goes, when
//! the controller says that the namespace is gone, or when another namespace
//! took its number; a device goes with its last path.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use nvme_spec::log::AnaState;
use tenon_sdk::{BdevId, Error, Host, Poller, Reactor, Reason, Timer, errno};

use crate::attach::Asked;
use crate::bdev::NvmeBdev;
use crate::config::{DeviceWish, NvmeConfig};
use crate::controller::Controller;
use crate::controller::command::HostIdentity;
use crate::controller::scan::{AnaEntry, Found};
use crate::controller::setup::ControllerFacts;
use crate::controller::state::{Event, State};
use crate::discovery::Discovery;
use crate::io_commands::Pending;
use crate::module;
use crate::namespace::NamespaceFacts;
use crate::select::Rules;
use crate::side::Side;
use crate::status::NO_PATH;
use crate::table::{Entry, Table, TableOptions};

/// Why namespaces were asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// The controller was connected: one that is missing may come back.
    Setup,
    /// The controller said that something changed: one that is missing is gone.
    Event,
    /// Only ANA states were asked for.
    AnaOnly,
}

/// A device.
pub(crate) struct Device {
    pub(crate) id: u64,
    /// Name of its controllers.
    pub(crate) group: String,
    pub(crate) name: String,
    pub(crate) table: Arc<Table>,
    handle: Cell<Option<BdevId>>,
    pub(crate) facts: RefCell<NamespaceFacts>,
    is_absent: Cell<bool>,
    /// Ends an absence that is too long.
    absence: Cell<Option<Timer>>,
    /// When it is to end.
    absent_until_ns: Cell<Option<u64>>,
    is_going: Cell<bool>,
}

impl Device {
    /// Whether its namespace has been away for longer than it may be.
    pub(crate) fn is_absent_too_long(&self, now_ns: u64) -> bool {
        self.absent_until_ns.get().is_some_and(|until_ns| until_ns <= now_ns)
    }
}

/// Controllers and devices.
pub(crate) struct Registry {
    pub(crate) host: Host,
    pub(crate) config: RefCell<NvmeConfig>,
    pub(crate) identity: HostIdentity,
    pub(crate) controllers: RefCell<BTreeMap<u64, Rc<Controller>>>,
    devices: RefCell<BTreeMap<u64, Rc<Device>>>,
    last_id: Cell<u64>,
    /// Controllers that hold no devices: they tell what there is.
    pub(crate) discoverers: RefCell<BTreeMap<u64, Rc<Controller>>>,
    pub(crate) discoveries: RefCell<Vec<Rc<Discovery>>>,
    /// Operations that attach a controller; their devices belong to them.
    pub(crate) attaching: RefCell<BTreeMap<u64, Asked>>,
    /// What operators want of devices, there or not.
    pub(crate) wishes: RefCell<BTreeMap<String, DeviceWish>>,
    /// Operations that wait for the answer to an I/O command.
    pub(crate) io_commands: RefCell<BTreeMap<u64, Pending>>,
    /// See `upkeep`.
    pub(crate) upkeep: RefCell<Option<Poller>>,
    /// Channels could not set an alarm.
    pub(crate) kick_is_owed: Cell<bool>,
    waits: RefCell<Vec<Wait>>,
    /// Searches whose threads have not ended yet.
    pub(crate) browsers_ending: Cell<u32>,
}

/// Somebody who waits for things to be gone.
struct Wait {
    controllers: Vec<u64>,
    devices: Vec<u64>,
    /// Searches were ending when it began.
    awaits_browsers: bool,
    done: Box<dyn FnOnce()>,
}

impl Registry {
    pub(crate) fn new(host: Host, config: NvmeConfig, identity: HostIdentity) -> Rc<Self> {
        let registry = Rc::new(Registry {
            host,
            config: RefCell::new(config),
            identity,
            controllers: RefCell::default(),
            devices: RefCell::default(),
            last_id: Cell::new(0),
            discoverers: RefCell::default(),
            discoveries: RefCell::default(),
            attaching: RefCell::default(),
            wishes: RefCell::default(),
            io_commands: RefCell::default(),
            upkeep: RefCell::default(),
            kick_is_owed: Cell::new(false),
            waits: RefCell::default(),
            browsers_ending: Cell::new(0),
        });
        module::install(&registry);
        registry
    }

    pub(crate) fn next_id(&self) -> u64 {
        self.last_id.set(self.last_id.get() + 1);
        self.last_id.get()
    }

    pub(crate) fn controller(&self, id: u64) -> Option<Rc<Controller>> {
        self.controllers.borrow().get(&id).cloned()
    }

    /// The controllers of a name, of all names without one.
    pub(crate) fn controllers(&self, name: Option<&str>) -> Vec<Rc<Controller>> {
        let controllers = self.controllers.borrow();
        let wanted =
            |controller: &&Rc<Controller>| name.is_none_or(|name| controller.plan.params.name == name);
        controllers.values().filter(wanted).cloned().collect()
    }

    /// The controllers of a name, or the one of them that has this identifier; there is at least one.
    pub(crate) fn paths_named(&self, name: &str, cntlid: Option<u16>) -> Result<Vec<Rc<Controller>>, Error> {
        let is_meant = |one: &Rc<Controller>| cntlid.is_none_or(|cntlid| one.facts.borrow().cntlid == cntlid);
        let found: Vec<Rc<Controller>> = self.controllers(Some(name)).into_iter().filter(is_meant).collect();
        if found.is_empty() { Err(Error::not_found(name)) } else { Ok(found) }
    }

    pub(crate) fn devices(&self) -> Vec<Rc<Device>> {
        self.devices.borrow().values().cloned().collect()
    }

    pub(crate) fn device_named(&self, name: &str) -> Option<Rc<Device>> {
        self.devices.borrow().values().find(|device| device.name == name && !device.is_going.get()).cloned()
    }

    pub(crate) fn device_names(&self, controller: u64) -> Vec<String> {
        let devices = self.devices.borrow();
        let is_of = |device: &&Rc<Device>| {
            let (entries, _, _) = device.table.read();
            entries.iter().any(|entry| entry.door.id == controller)
        };
        devices.values().filter(is_of).map(|device| device.name.clone()).collect()
    }

    /// Takes over what a controller said of its namespaces; false if some of it has to be asked for again.
    pub(crate) fn found(&self, controller: &Controller, found: Found, origin: Origin) -> bool {
        let mut is_complete = true;
        let facts = controller.facts.borrow().clone();
        let before: Vec<u64> = self.devices_of(controller.id).iter().map(|device| device.id).collect();
        if origin != Origin::AnaOnly {
            for namespace in &found.namespaces {
                is_complete &= self.namespace_found(controller, &facts, namespace);
            }
            self.namespaces_missing(controller, &found.namespaces, origin);
        }
        if origin == Origin::Setup && found.is_ana_unreadable {
            // What it was before the connection was lost says nothing.
            self.mark_updating(controller);
        }
        self.ana_found(controller, &facts, found.ana.as_deref());
        let mut touched = before;
        touched.extend(self.devices_of(controller.id).iter().map(|device| device.id));
        touched.sort_unstable();
        touched.dedup();
        for device in touched {
            let device = self.devices.borrow().get(&device).cloned();
            if let Some(device) = device {
                self.settle(&device, controller.plan.ns_absent_timeout);
            }
        }
        is_complete
    }

    /// A controller to which a device's admin commands may go: one by which the namespace is accessible, else any
    /// that serves.
    pub(crate) fn controller_of(&self, device: u64) -> Option<Rc<Controller>> {
        let device = self.devices.borrow().get(&device).cloned()?;
        let (entries, _, _) = device.table.read();
        let serving = |entry: &Entry| {
            let controller = self.controller(entry.door.id)?;
            (controller.state.get() == State::Ready).then_some(controller)
        };
        let accessible = entries.iter().filter(|entry| entry.is_present && entry.ana.is_accessible());
        accessible.chain(&entries).find_map(serving)
    }

    fn devices_of(&self, controller: u64) -> Vec<Rc<Device>> {
        let has_path =
            |device: &Rc<Device>| device.table.read().0.iter().any(|entry| entry.door.id == controller);
        self.devices().into_iter().filter(has_path).collect()
    }

    /// False if the host had no room for its device.
    fn namespace_found(
        &self,
        controller: &Controller,
        facts: &ControllerFacts,
        namespace: &NamespaceFacts,
    ) -> bool {
        let nsid = namespace.nsid;
        let is_own = |entry: &Entry| entry.door.id == controller.id && entry.nsid == nsid;
        let own = self.devices().into_iter().find(|device| device.table.read().0.iter().any(is_own));
        if let Some(device) = own {
            let old = device.facts.borrow().clone();
            let same = old.identity.is_same(&namespace.identity)
                || (old.identity.is_unknown() && namespace.identity.is_unknown());
            if same && old.block_size == namespace.block_size {
                device.table.change(|entries| {
                    entries
                        .iter_mut()
                        .filter(|entry| is_own(entry))
                        .for_each(|entry| entry.is_present = true);
                });
                self.update_device(&device, namespace);
                return true;
            }
            log::warn!("another namespace has the number of a known one name={} nsid={nsid}", device.name);
            device.table.change(|entries| entries.retain(|entry| !is_own(entry)));
            self.settle_as(&device, None, Reason::IDENTITY_CHANGED);
        }
        self.join_or_create(controller, facts, namespace)
    }

    fn update_device(&self, device: &Device, namespace: &NamespaceFacts) {
        let old_blocks = device.facts.borrow().num_blocks;
        *device.facts.borrow_mut() = namespace.clone();
        if let Some(handle) = device.handle.get().filter(|_| old_blocks != namespace.num_blocks) {
            log::info!("namespace resized name={} blocks={}", device.name, namespace.num_blocks);
            if let Err(error) = self.host.resize(handle, namespace.num_blocks) {
                log::error!("device was not resized name={} error=\"{error}\"", device.name);
            }
        }
    }

    fn join_or_create(
        &self,
        controller: &Controller,
        facts: &ControllerFacts,
        namespace: &NamespaceFacts,
    ) -> bool {
        let group = &controller.plan.params.name;
        let entry = Entry {
            door: Arc::clone(&controller.door),
            nsid: namespace.nsid,
            is_present: true,
            ana: AnaState::OPTIMIZED,
            ana_since_ns: self.host.now_ns(),
            anatt_sec: facts.anatt_sec,
            is_updating: facts.has_ana,
            is_preferred: false,
        };
        let is_same = |device: &Rc<Device>| {
            let known = device.facts.borrow();
            device.group == *group
                && !device.is_going.get()
                && known.identity.is_same(&namespace.identity)
                && known.block_size == namespace.block_size
        };
        if let Some(device) = self.devices().into_iter().find(is_same) {
            log::info!("path added name={} traddr={}", device.name, controller.door.address.traddr);
            let entry = self.wished(&device.name, &device.table, entry);
            device.table.add(entry);
            self.update_device(&device, namespace);
            return true;
        }
        if let Some(most) = controller.plan.params.max_bdevs
            && self.device_names(controller.id).len() >= most as usize
        {
            log::warn!("namespace passed over, as max_bdevs says name={group} nsid={}", namespace.nsid);
            return true;
        }
        self.create(controller, facts, namespace, entry)
    }

    /// Makes a device: named after its controller and number, and after its identity as well if that name is taken.
    fn create(
        &self,
        controller: &Controller,
        facts: &ControllerFacts,
        namespace: &NamespaceFacts,
        entry: Entry,
    ) -> bool {
        let group = &controller.plan.params.name;
        let plain = format!("{group}n{}", namespace.nsid);
        let uuid = uuid::Uuid::from_bytes(namespace.device_uuid(facts));
        let is_taken = self.devices().iter().any(|device| device.name == plain);
        let name = if is_taken { format!("{plain}-{}", &uuid.simple().to_string()[..8]) } else { plain };
        let id = self.next_id();
        let table = self.new_table(id, namespace);
        let entry = self.wished(&name, &table, entry);
        table.add(entry);
        let device = Rc::new(Device {
            id,
            group: group.clone(),
            name: name.clone(),
            table: Arc::clone(&table),
            handle: Cell::new(None),
            facts: RefCell::new(namespace.clone()),
            is_absent: Cell::new(false),
            absence: Cell::new(None),
            absent_until_ns: Cell::new(None),
            is_going: Cell::new(false),
        });
        self.devices.borrow_mut().insert(id, Rc::clone(&device));
        let spec = namespace.spec(&name, facts);
        let bdev = NvmeBdev { host: self.host, table };
        // Out of its place meanwhile: the host may call back.
        let asked = self.attaching.borrow().get(&controller.id).cloned();
        let token = asked.as_ref().and_then(|asked| asked.take());
        let result = match &token {
            Some(token) => token.register(spec, bdev),
            None => self.host.register(spec, bdev),
        };
        if let Some(asked) = &asked {
            asked.put(token);
        }
        let error = match result {
            Ok(handle) => {
                device.handle.set(Some(handle));
                return true;
            }
            Err(error) => error,
        };
        self.devices.borrow_mut().remove(&id);
        // Whatever else is in the way does not go by itself.
        let may_go = matches!(error.code, errno::ENOMEM | errno::EAGAIN);
        match asked {
            Some(asked) if !may_go => asked.refuse(self.with_way_out(controller, uuid, error)),
            _ => log::error!(
                "namespace did not become a device name={name} error=\"{}\"",
                self.with_way_out(controller, uuid, error)
            ),
        }
        !may_go
    }

    /// What an operator can do about a device whose name or UUID is another's.
    fn with_way_out(&self, controller: &Controller, uuid: uuid::Uuid, mut error: Error) -> Error {
        if error.code != errno::EEXIST {
            return error;
        }
        let is_of_subsystem = |device: &Rc<Device>| {
            let mut controllers = self.controllers(Some(&device.group)).into_iter();
            controllers.any(|other| other.plan.params.subnqn == controller.plan.params.subnqn)
        };
        let way_out = match self.host.find(&uuid.to_string()) {
            Some(holder) => {
                let own = self.devices().into_iter().find(|device| device.handle.get() == Some(holder));
                match own.filter(is_of_subsystem) {
                    Some(own) => format!("attach with the name {} to add a path to {}", own.group, own.name),
                    None => "give one of the two another UUID".to_owned(),
                }
            }
            None => "attach with another name".to_owned(),
        };
        error.reason = format!("{}: {way_out}", error.reason);
        error
    }

    fn new_table(&self, device: u64, namespace: &NamespaceFacts) -> Arc<Table> {
        let config = self.config.borrow();
        let options = TableOptions {
            retry_limit: config.bdev_retry_count,
            io_deadline_ns: config.io_deadline_ms.saturating_mul(1_000_000),
            counts_paths: config.io_path_stat,
            counts_errors: config.nvme_error_stat,
            copy_ranges: namespace.copy.map_or(0, |copy| copy.ranges),
        };
        let table = Table::new(device, options);
        table.set_rules(Rules { fails_back: !config.disable_auto_failback, ..Rules::default() });
        table
    }

    fn namespaces_missing(&self, controller: &Controller, found: &[NamespaceFacts], origin: Origin) {
        for device in self.devices_of(controller.id) {
            device.table.change(|entries| {
                let is_missing = |entry: &Entry| {
                    entry.door.id == controller.id && !found.iter().any(|found| found.nsid == entry.nsid)
                };
                if origin == Origin::Event {
                    entries.retain(|entry| !is_missing(entry));
                } else {
                    entries.iter_mut().filter(|entry| is_missing(entry)).for_each(|e| e.is_present = false);
                }
            });
        }
    }

    fn ana_found(&self, controller: &Controller, facts: &ControllerFacts, states: Option<&[AnaEntry]>) {
        let now_ns = self.host.now_ns();
        for device in self.devices_of(controller.id) {
            device.table.change(|entries| {
                for entry in entries.iter_mut().filter(|entry| entry.door.id == controller.id) {
                    let told = states.map(|states| states.iter().find(|state| state.nsid == entry.nsid));
                    let state = match (facts.has_ana, told) {
                        (false, _) => AnaState::OPTIMIZED,
                        (true, Some(Some(told))) => told.state,
                        // Not told: as it was, and still to be found out if the page was not readable.
                        (true, Some(None)) => entry.ana,
                        (true, None) => continue,
                    };
                    entry.is_updating = false;
                    if entry.ana != state {
                        log::info!(
                            "ana state changed name={} nsid={} state={state}",
                            device.name,
                            entry.nsid
                        );
                        (entry.ana, entry.ana_since_ns) = (state, now_ns);
                    }
                }
            });
        }
    }

    /// The states of a controller's namespaces are being asked for: its paths are not used meanwhile.
    pub(crate) fn ana_updating(&self, controller: &Controller) {
        self.mark_updating(controller);
        self.devices_of(controller.id).iter().for_each(|device| self.tell_channels(device));
    }

    fn mark_updating(&self, controller: &Controller) {
        for device in self.devices_of(controller.id) {
            device.table.change(|entries| {
                for entry in entries.iter_mut().filter(|entry| entry.door.id == controller.id) {
                    entry.is_updating = true;
                }
            });
        }
    }

    fn settle(&self, device: &Rc<Device>, absent_timeout: Option<Duration>) {
        self.settle_as(device, absent_timeout, Reason::HOT_REMOVED);
    }

    /// Draws the consequences of changed paths: presence, removal, news for the channels.
    fn settle_as(&self, device: &Rc<Device>, absent_timeout: Option<Duration>, reason: Reason) {
        let (entries, _, _) = device.table.read();
        let Some(handle) = device.handle.get() else { return };
        if entries.is_empty() {
            return self.remove_device(device, reason);
        }
        self.tell_channels(device);
        let is_absent = !entries.iter().any(|entry| entry.is_present);
        if device.is_absent.replace(is_absent) == is_absent || device.is_going.get() {
            return;
        }
        log::info!("device is {} name={}", if is_absent { "absent" } else { "present" }, device.name);
        device.absence.take();
        device.absent_until_ns.set(None);
        let result = match is_absent {
            true => {
                self.bound_absence(device, absent_timeout);
                self.host.set_absent(handle, absent_timeout)
            }
            false => self.host.set_present(handle),
        };
        if let Err(error) = result {
            log::error!("host refused the presence of a device name={} error=\"{error}\"", device.name);
        }
    }

    /// Removes a device that stays absent too long. The host removes it at the same time by itself, but does not know
    /// of the I/O that waits in the channels: openers would wait for it, and the host for them.
    fn bound_absence(&self, device: &Rc<Device>, absent_timeout: Option<Duration>) {
        let Some(timeout) = absent_timeout else { return };
        let until_ns = self.host.now_ns().saturating_add(timeout.as_nanos() as u64);
        device.absent_until_ns.set(Some(until_ns));
        let weak = Rc::downgrade(device);
        let timer = self.host.timer(timeout, move || {
            if let (Some(device), Some(registry)) = (weak.upgrade(), module::registry()) {
                registry.remove_device(&device, Reason::DEADLINE);
            }
        });
        match timer {
            Ok(timer) => device.absence.set(Some(timer)),
            Err(error) => {
                log::error!("an absence ends later than it should name={} error=\"{error}\"", device.name)
            }
        }
    }

    pub(crate) fn tell_channels(&self, device: &Device) {
        let (host, id) = (self.host, device.id);
        let told = host.each_reactor(
            move |_| {
                if let Some(side) = Side::existing(host) {
                    side.table_changed(id);
                }
            },
            || {},
        );
        if let Some(side) = Side::existing(host) {
            side.table_changed(id);
        }
        if let Err(error) = told {
            log::error!("channels were not told of their paths error=\"{error}\"");
        }
    }

    pub(crate) fn remove_device(&self, device: &Rc<Device>, reason: Reason) {
        if device.is_going.replace(true) {
            return;
        }
        device.table.set_gone();
        self.tell_channels(device);
        let Some(handle) = device.handle.get() else { return };
        if let Err(error) = self.host.unregister(handle, reason) {
            log::warn!("device was not unregistered name={} error=\"{error}\"", device.name);
        }
    }

    pub(crate) fn device_destroyed(&self, id: u64) {
        let device = self.devices.borrow_mut().remove(&id);
        drop(device);
        self.check_waits();
    }

    /// A controller is through with everything.
    pub(crate) fn controller_gone(&self, controller: &Controller) {
        let is_asked = self.waits.borrow().iter().any(|wait| wait.controllers.contains(&controller.id));
        let reason = if is_asked { Reason::REQUESTED } else { Reason::HOT_REMOVED };
        for device in self.devices_of(controller.id) {
            device.table.change(|entries| entries.retain(|entry| entry.door.id != controller.id));
            self.settle_as(&device, controller.plan.ns_absent_timeout, reason);
        }
        let removed = self.controllers.borrow_mut().remove(&controller.id);
        let discoverer = self.discoverers.borrow_mut().remove(&controller.id);
        drop((removed, discoverer));
        self.end_upkeep();
        for discovery in self.discoveries() {
            discovery.controller_gone(controller.id);
        }
        self.check_waits();
    }

    /// Detaches controllers; `done` is called when they and their devices are gone.
    pub(crate) fn detach(&self, controllers: &[Rc<Controller>], done: impl FnOnce() + 'static) {
        let ids: Vec<u64> = controllers.iter().map(|controller| controller.id).collect();
        let goes =
            |device: &Rc<Device>| device.table.read().0.iter().all(|entry| ids.contains(&entry.door.id));
        let devices = self.devices().into_iter().filter(goes).map(|device| device.id).collect();
        let awaits_browsers = self.browsers_ending.get() > 0;
        self.waits.borrow_mut().push(Wait {
            controllers: ids,
            devices,
            awaits_browsers,
            done: Box::new(done),
        });
        for controller in controllers {
            controller.on(Event::Delete);
        }
        self.check_waits();
    }

    /// The threads of a search have ended.
    pub(crate) fn browser_ended(&self) {
        self.browsers_ending.set(self.browsers_ending.get().saturating_sub(1));
        self.check_waits();
    }

    fn check_waits(&self) {
        let is_over = |wait: &Wait| {
            let (controllers, discoverers) = (self.controllers.borrow(), self.discoverers.borrow());
            let devices = self.devices.borrow();
            let is_there = |id: &u64| controllers.contains_key(id) || discoverers.contains_key(id);
            let are_threads_there = wait.awaits_browsers && self.browsers_ending.get() > 0;
            !are_threads_there
                && !wait.controllers.iter().any(is_there)
                && !wait.devices.iter().any(|id| devices.contains_key(id))
        };
        loop {
            let over = {
                let mut waits = self.waits.borrow_mut();
                waits.iter().position(is_over).map(|at| waits.swap_remove(at))
            };
            match over {
                Some(wait) => (wait.done)(),
                None => return,
            }
        }
    }

    /// Resets the controllers of a device; its channel on `reactor` hears of the end.
    pub(crate) fn reset_device(&self, id: u64, reactor: Reactor) {
        let device = self.devices.borrow().get(&id).cloned();
        let controllers: Vec<Rc<Controller>> = device.map_or_else(Vec::new, |device| {
            let (entries, _, _) = device.table.read();
            entries.iter().filter_map(|entry| self.controller(entry.door.id)).collect()
        });
        let host = self.host;
        let left = Rc::new(Cell::new(controllers.len()));
        let is_good = Rc::new(Cell::new(false));
        let end = move |is_good: bool| {
            let status = if is_good { tenon_sdk::IoStatus::SUCCESS } else { NO_PATH };
            module::post(host, reactor, move || {
                if let Some(side) = Side::existing(host) {
                    side.channels(Some(id)).iter().for_each(|channel| channel.reset_done(status));
                }
            });
        };
        if controllers.is_empty() {
            return end(false);
        }
        for controller in controllers {
            let (left, is_good) = (Rc::clone(&left), Rc::clone(&is_good));
            controller.ask(
                Event::Reset,
                Box::new(move |result| {
                    left.set(left.get() - 1);
                    is_good.set(is_good.get() || result.is_ok());
                    if left.get() == 0 {
                        end(is_good.get());
                    }
                }),
            );
        }
    }
}
