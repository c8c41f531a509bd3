//! What is known of devices and operations, copied for reports.
//!
//! A snapshot is what `bdev_get_bdevs` and its like show. It is made by the code
//! that decides, from the records it decides by. Changes nothing.
// UNSAFETY: calls `dump_json` of devices.

use serde_json::Value;
use tenon_abi::{BdevFlags, BdevHandle, Limits, Op, Reason};
use uuid::Uuid;

use crate::claim::Claim;
use crate::core::Core;
use crate::examine::ExamineNote;
use crate::io::QosLimits;
use crate::lifecycle::State;
use crate::registry::Bdev;
use crate::removal::RemovalStep;

/// A device.
#[derive(Clone, Debug)]
pub struct BdevSnapshot {
    /// Its handle.
    pub handle: BdevHandle,
    /// Its name.
    pub name: String,
    /// Its other names; the last is its UUID.
    pub aliases: Vec<String>,
    /// What kind of device.
    pub product: String,
    /// Module that registered it.
    pub module: String,
    /// Identity.
    pub uuid: Uuid,
    /// NVMe Namespace Globally Unique Identifier, or zero.
    pub nguid: [u8; 16],
    /// IEEE EUI-64, or zero.
    pub eui64: [u8; 8],
    /// NUMA node, or -1.
    pub numa_node: i32,
    /// Properties.
    pub flags: BdevFlags,
    /// Geometry and limits; the capacity is the current one.
    pub limits: Limits,
    /// Operations a consumer may send.
    pub io_types: u64,
    /// I/O flags the module understands.
    pub io_flags: u64,
    /// Writes are refused now.
    pub is_read_only: bool,
    /// Where it stands.
    pub state: State,
    /// Claims on it.
    pub claims: Vec<ClaimSnapshot>,
    /// Open descriptors.
    pub open_count: usize,
    /// Who has it open.
    pub holders: Vec<HolderSnapshot>,
    /// Rate limits.
    pub qos: QosLimits,
    /// What its module says of it.
    pub driver_specific: Option<Value>,
    /// What modules said of it.
    pub examine: Vec<ExamineNote>,
    /// Its removal, if it goes.
    pub removal: Option<RemovalSnapshot>,
    /// While absent: when it is given up; 0: never.
    pub absent_deadline_ns: Option<u64>,
}

/// A claim on a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClaimSnapshot {
    /// What is claimed.
    pub kind: Claim,
    /// By whom.
    pub owner: String,
}

/// An open descriptor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HolderSnapshot {
    /// Who has it.
    pub owner: String,
    /// It may write.
    pub write: bool,
    /// What it has claimed.
    pub claim: Option<Claim>,
}

/// A removal under way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemovalSnapshot {
    /// Why it goes.
    pub reason: Reason,
    /// A deadline passed.
    pub overdue: bool,
    /// How far it is.
    pub step: RemovalStep,
    /// Who or what is waited for.
    pub waits_for: String,
}

/// An operation in flight.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct OperationSnapshot {
    /// `create`, `delete`, …
    pub kind: &'static str,
    /// Its module, once known.
    pub module: String,
    /// What it is about.
    pub subject: String,
    /// How far it is.
    pub state: String,
    /// For how long it has been going on.
    pub age_ms: u64,
    /// Devices it registered or removes.
    pub bdevs: Vec<String>,
}

impl BdevSnapshot {
    /// A consumer may send `op`.
    pub fn supports(&self, op: Op) -> bool {
        self.io_types & op.bit() != 0
    }

    /// The kind of the claims on it, as `bdev_get_bdevs` spells it.
    pub fn claim_type(&self) -> Option<&'static str> {
        self.claims.first().map(|claim| claim.kind.as_str())
    }
}

impl Core {
    /// All devices, in the order of registration.
    pub fn bdevs(&self) -> Vec<BdevSnapshot> {
        let handles: Vec<BdevHandle> =
            self.inner.registry.borrow().iter().map(|record| record.handle).collect();
        handles.into_iter().filter_map(|bdev| self.snapshot_of(bdev)).collect()
    }

    /// The device of that name, alias or UUID, if it is not going: also before it is in service.
    pub(crate) fn find_coming(&self, name: &str) -> Option<BdevHandle> {
        let registry = self.inner.registry.borrow();
        registry.find(name).filter(|record| record.state().may_be_opened()).map(|record| record.handle)
    }

    /// The device of that name, alias or UUID, in whatever state.
    pub fn bdev(&self, name: &str) -> Option<BdevSnapshot> {
        self.snapshot_of(self.find_any(name)?)
    }

    /// Names of all devices, in the order of registration.
    pub fn bdev_names(&self) -> Vec<String> {
        self.inner.registry.borrow().iter().map(|record| record.name.to_string()).collect()
    }

    /// Number of devices.
    pub fn bdev_count(&self) -> usize {
        self.inner.registry.borrow().len()
    }

    /// The device of that name, alias or UUID, if it is in service.
    pub fn find(&self, name: &str) -> Option<BdevHandle> {
        let registry = self.inner.registry.borrow();
        registry.find(name).filter(|record| record.state().is_in_service()).map(|record| record.handle)
    }

    /// The device of that name, alias or UUID, in whatever state.
    pub(crate) fn find_any(&self, name: &str) -> Option<BdevHandle> {
        self.inner.registry.borrow().find(name).map(|record| record.handle)
    }

    /// The name of a device.
    pub fn name_of(&self, bdev: BdevHandle) -> Option<String> {
        self.inner.registry.borrow().get(bdev).map(|record| record.name.to_string())
    }

    pub(crate) fn snapshot_of(&self, bdev: BdevHandle) -> Option<BdevSnapshot> {
        let waits_for = self.removal_waits_for(bdev).unwrap_or_default();
        let (mut snapshot, callbacks, module) = {
            let registry = self.inner.registry.borrow();
            let record = registry.get(bdev)?;
            (snapshot(record, waits_for), record.callbacks, record.module)
        };
        let may_be_asked = !matches!(snapshot.state, State::Draining | State::Destroyed);
        if may_be_asked && crate::callbacks::may_be_called(module) {
            // SAFETY: the device is registered and not being destructed, as its state says.
            snapshot.driver_specific = unsafe { callbacks.dump_json(&snapshot.name) };
        }
        Some(snapshot)
    }

    /// Operations in flight.
    pub fn operations(&self) -> Vec<OperationSnapshot> {
        let (operations, registry) = (self.inner.operations.borrow(), self.inner.registry.borrow());
        let name = |bdev: &BdevHandle| registry.get(*bdev).map(|record| record.name.to_string());
        let snapshots = operations.iter().map(|(_, operation)| OperationSnapshot {
            kind: operation.request.kind(),
            module: operation.module.map(|module| module.name().to_owned()).unwrap_or_default(),
            subject: operation.request.subject().to_owned(),
            state: operation.state.to_string(),
            age_ms: operation.age_ms(),
            bdevs: operation.bdevs.iter().filter_map(name).collect(),
        });
        snapshots.collect()
    }
}

fn snapshot(record: &Bdev, waits_for: String) -> BdevSnapshot {
    let mut limits = record.limits;
    limits.num_blocks = record.gate.num_blocks();
    let claims = record.descriptors.iter().filter_map(|holding| {
        holding.claim.map(|kind| ClaimSnapshot { kind, owner: holding.owner.to_string() })
    });
    let holders = record.descriptors.iter().map(|holding| HolderSnapshot {
        owner: holding.owner.to_string(),
        write: holding.write,
        claim: holding.claim,
    });
    BdevSnapshot {
        handle: record.handle,
        name: record.name.to_string(),
        aliases: record.aliases().iter().map(|name| name.to_string()).collect(),
        product: record.product.to_string(),
        module: record.module.name().to_owned(),
        uuid: record.uuid,
        nguid: record.nguid,
        eui64: record.eui64,
        numa_node: record.numa_node,
        flags: record.flags,
        limits,
        io_types: record.gate.io_types(),
        io_flags: record.io_flags,
        is_read_only: record.gate.is_read_only(),
        state: record.state(),
        claims: claims.collect(),
        open_count: record.descriptors.len(),
        holders: holders.collect(),
        qos: record.gate.qos(),
        driver_specific: None,
        examine: record.examination.notes.clone(),
        removal: record.removal.as_ref().map(|removal| RemovalSnapshot {
            reason: removal.reason,
            overdue: removal.is_overdue,
            step: removal.step,
            waits_for,
        }),
        absent_deadline_ns: record.absent.map(|absent| absent.deadline_ns),
    }
}
