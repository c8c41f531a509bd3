//! The devices: what is known of each, by handle and in the order of registration.
//!
//! Holds the record of a device for all of its life; the engines (`examine`,
//! `backing`, `removal`) change it. Looking up by handle or name takes the
//! same time however many devices there are. Calls nobody.

use std::collections::{BTreeMap, HashMap};
use std::ffi::c_void;
use std::sync::Arc;

use tenon_abi::{BdevFlags, BdevHandle, BdevOpsV1, Limits};
use tenon_modules::ModuleRef;
use uuid::Uuid;

use crate::claim::Holding;
use crate::examine::Examination;
use crate::gate_steps::GateSteps;
use crate::io::Gate;
use crate::lifecycle::{Event, State};
use crate::names::{NameError, Names};
use crate::removal::Removal;
use crate::slab::{Kind, Slab};

/// All devices.
pub(crate) struct Registry {
    slab: Slab<Box<Bdev>>,
    pub names: Names,
    order: BTreeMap<u64, BdevHandle>,
    /// Number of devices per module.
    of_module: HashMap<u32, usize>,
    next_serial: u64,
}

/// Why a device was not taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InsertError {
    #[error("there are as many devices as this host allows")]
    Full,
    #[error(transparent)]
    Name(#[from] NameError),
}

/// One device.
pub(crate) struct Bdev {
    pub handle: BdevHandle,
    /// Position in the order of registration.
    pub serial: u64,
    pub name: Arc<str>,
    /// Every name it has in [`Names`]: its own, its aliases, its UUID.
    pub all_names: Vec<Arc<str>>,
    pub product: Arc<str>,
    pub uuid: Uuid,
    pub nguid: [u8; 16],
    pub eui64: [u8; 8],
    pub numa_node: i32,
    pub flags: BdevFlags,
    pub limits: Limits,
    pub io_types: u64,
    pub io_flags: u64,
    pub module: ModuleRef,
    pub callbacks: Callbacks,
    pub gate: Arc<Gate>,
    state: State,
    /// Operation that registered it, until that is answered.
    pub operation: Option<u64>,
    pub descriptors: Vec<Holding>,
    pub examination: Examination,
    pub gate_steps: GateSteps,
    pub removal: Option<Removal>,
    /// While absent: when it is given up (0: never), and the key of that deadline.
    pub absent: Option<AbsentSince>,
    /// Operations to tell when it is gone.
    pub on_destroyed: Vec<u64>,
}

/// The owner's side of a device.
#[derive(Clone, Copy)]
pub(crate) struct Callbacks {
    pub ctx: *mut c_void,
    pub ops: *const BdevOpsV1,
}

/// How long an absent device is waited for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AbsentSince {
    pub deadline_ns: u64,
    pub key: Option<crate::deadline::Key>,
}

impl Registry {
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            slab: Slab::new(Kind::Bdev, limit),
            names: Names::default(),
            order: BTreeMap::new(),
            of_module: HashMap::new(),
            next_serial: 0,
        }
    }

    /// Stores a new device under all of its names.
    pub(crate) fn insert(&mut self, mut bdev: Box<Bdev>) -> Result<BdevHandle, InsertError> {
        let serial = self.next_serial;
        bdev.serial = serial;
        let names = std::mem::take(&mut bdev.all_names);
        let raw = self.slab.insert(bdev).map_err(|_| InsertError::Full)?;
        let handle = BdevHandle(raw);
        if let Err(error) = self.names.insert(&names, handle) {
            self.slab.remove(raw);
            return Err(InsertError::Name(error));
        }
        if let Some(bdev) = self.slab.get_mut(raw) {
            bdev.handle = handle;
            bdev.all_names = names;
            *self.of_module.entry(bdev.module.id()).or_default() += 1;
        }
        self.next_serial += 1;
        self.order.insert(serial, handle);
        Ok(handle)
    }

    pub(crate) fn get(&self, handle: BdevHandle) -> Option<&Bdev> {
        self.slab.get(handle.0).map(|bdev| &**bdev)
    }

    pub(crate) fn get_mut(&mut self, handle: BdevHandle) -> Option<&mut Bdev> {
        self.slab.get_mut(handle.0).map(|bdev| &mut **bdev)
    }

    /// Forgets a device and frees its names.
    pub(crate) fn remove(&mut self, handle: BdevHandle) -> Option<Box<Bdev>> {
        let bdev = self.slab.remove(handle.0)?;
        self.order.remove(&bdev.serial);
        self.names.remove(&bdev.all_names);
        if let Some(count) = self.of_module.get_mut(&bdev.module.id()) {
            *count -= 1;
            if *count == 0 {
                self.of_module.remove(&bdev.module.id());
            }
        }
        Some(bdev)
    }

    /// The module has a device.
    pub(crate) fn has_of_module(&self, module: u32) -> bool {
        self.of_module.contains_key(&module)
    }

    /// In the order of registration.
    pub(crate) fn iter(&self) -> impl DoubleEndedIterator<Item = &Bdev> {
        self.order.values().filter_map(|handle| self.get(*handle))
    }

    pub(crate) fn len(&self) -> usize {
        self.order.len()
    }

    pub(crate) fn find(&self, name: &str) -> Option<&Bdev> {
        self.get(self.names.find(name)?)
    }
}

impl Bdev {
    pub(crate) fn state(&self) -> State {
        self.state
    }

    /// Lets `event` happen. An event that cannot happen is a fault of this program: it is
    /// reported and changes nothing.
    pub(crate) fn apply(&mut self, event: Event) -> State {
        match self.state.next(event) {
            Ok(next) => {
                if next != self.state {
                    log::debug!("bdev state bdev={} from={} to={next}", self.name, self.state);
                }
                self.state = next;
            }
            Err(error) => {
                log::error!("bdev state machine refused an event bdev={} error={error}", self.name);
                debug_assert!(false, "bdev {}: {error}", self.name);
            }
        }
        self.state
    }

    pub(crate) fn is_claimed(&self) -> bool {
        self.descriptors.iter().any(|holding| holding.claim.is_some())
    }

    /// Every name but the first.
    pub(crate) fn aliases(&self) -> &[Arc<str>] {
        self.all_names.get(1..).unwrap_or_default()
    }
}

/// What its module says of a new device.
pub(crate) struct Description {
    /// Its name, then its aliases and its UUID.
    pub all_names: Vec<Arc<str>>,
    pub product: Arc<str>,
    pub uuid: Uuid,
    pub nguid: [u8; 16],
    pub eui64: [u8; 8],
    pub numa_node: i32,
    pub flags: BdevFlags,
    pub limits: Limits,
    pub io_types: u64,
    pub io_flags: u64,
    pub callbacks: Callbacks,
}

impl Description {
    /// The record as it is at registration.
    pub(crate) fn into_bdev(self, module: ModuleRef, gate: Arc<Gate>, operation: Option<u64>) -> Box<Bdev> {
        Box::new(Bdev {
            handle: BdevHandle(0),
            serial: 0,
            name: self.all_names[0].clone(),
            all_names: self.all_names,
            product: self.product,
            uuid: self.uuid,
            nguid: self.nguid,
            eui64: self.eui64,
            numa_node: self.numa_node,
            flags: self.flags,
            limits: self.limits,
            io_types: self.io_types,
            io_flags: self.io_flags,
            module,
            callbacks: self.callbacks,
            gate,
            state: State::Registering,
            operation,
            descriptors: Vec::new(),
            examination: Examination::default(),
            gate_steps: GateSteps::default(),
            removal: None,
            absent: None,
            on_destroyed: Vec::new(),
        })
    }
}
