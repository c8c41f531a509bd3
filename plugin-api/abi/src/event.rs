//! What happens to devices and to the machine, as told to those who opened a
//! device or loaded a module. An event carries a reason and, where something
//! is asked of the receiver, a deadline; it names objects by handle or text.

use crate::{BdevHandle, Str};

/// Kind of a device event.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[cfg_attr(feature = "certificate", derive(abi_stable::StableAbi))]
pub struct BdevEventKind(pub u32);

impl BdevEventKind {
    /// The device goes away: finish or abandon work, put channels, close the descriptor before `deadline_ns`.
    /// Delivered exactly once per descriptor.
    pub const REMOVE: BdevEventKind = BdevEventKind(1);
    /// The capacity is now `value` blocks.
    pub const RESIZE: BdevEventKind = BdevEventKind(2);
    /// Works with reduced redundancy or speed.
    pub const DEGRADED: BdevEventKind = BdevEventKind(3);
    /// Fully working again.
    pub const HEALTHY: BdevEventKind = BdevEventKind(4);
    /// The set of usable paths changed.
    pub const PATH_CHANGED: BdevEventKind = BdevEventKind(5);
    /// Writes are refused from now on.
    pub const READ_ONLY: BdevEventKind = BdevEventKind(6);
    /// Writes are accepted again.
    pub const WRITABLE: BdevEventKind = BdevEventKind(7);
    /// Backing gone; I/O waits until `deadline_ns` (0: no limit).
    pub const ABSENT: BdevEventKind = BdevEventKind(8);
    /// Backing back, same identity.
    pub const PRESENT: BdevEventKind = BdevEventKind(9);
    /// The device asks for media management (open channel, zoned).
    pub const MEDIA_MANAGEMENT: BdevEventKind = BdevEventKind(10);
}

/// Why something happened.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[cfg_attr(feature = "certificate", derive(abi_stable::StableAbi))]
pub struct Reason(pub u32);

impl Reason {
    /// Not stated.
    pub const UNSPECIFIED: Reason = Reason(0);
    /// An operator asked.
    pub const REQUESTED: Reason = Reason(1);
    /// The hardware, file or network peer disappeared.
    pub const HOT_REMOVED: Reason = Reason(2);
    /// A device below went away.
    pub const BASE_REMOVED: Reason = Reason(3);
    /// The owning module is being unregistered.
    pub const MODULE_UNREGISTERED: Reason = Reason(4);
    /// The host is shutting down.
    pub const SHUTDOWN: Reason = Reason(5);
    /// A deadline passed.
    pub const DEADLINE: Reason = Reason(6);
    /// Another device came back in its place.
    pub const IDENTITY_CHANGED: Reason = Reason(7);
    /// Too many errors.
    pub const FAILED: Reason = Reason(8);
    /// A create was rolled back.
    pub const ROLLED_BACK: Reason = Reason(9);
}

/// An event of a device, delivered on the control thread to each descriptor's callback.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
#[cfg_attr(feature = "certificate", derive(abi_stable::StableAbi))]
pub struct BdevEvent {
    /// Bytes of this struct the writer knows.
    pub size: u32,
    /// What happened.
    pub kind: BdevEventKind,
    /// The device.
    pub bdev: BdevHandle,
    /// Why.
    pub reason: Reason,
    /// Reserved, 0.
    pub reserved: u32,
    /// Meaning depends on `kind`.
    pub value: u64,
    /// Time of [`crate::HostApiV1::now_ns`] by which the receiver must have acted; 0: none.
    pub deadline_ns: u64,
    /// Text for people, or empty.
    pub detail: Str,
}

/// Kind of a hotplug event.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[cfg_attr(feature = "certificate", derive(abi_stable::StableAbi))]
pub struct HotplugKind(pub u32);

impl HotplugKind {
    /// Appeared.
    pub const ADD: HotplugKind = HotplugKind(1);
    /// Vanished.
    pub const REMOVE: HotplugKind = HotplugKind(2);
    /// Size or attributes changed.
    pub const CHANGE: HotplugKind = HotplugKind(3);
}

/// Something appeared, vanished or changed outside. Duplicates are allowed: a receiver compares `generation`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
#[cfg_attr(feature = "certificate", derive(abi_stable::StableAbi))]
pub struct HotplugEvent {
    /// Bytes of this struct the writer knows.
    pub size: u32,
    /// What happened.
    pub kind: HotplugKind,
    /// Source: `file`, `pci`, `rdma`, `net`, `nvmf`, `plugin`.
    pub subsystem: Str,
    /// Object within the source: a path, a PCI address, a device name.
    pub id: Str,
    /// Grows with each event of the same `id`.
    pub generation: u64,
    /// Further facts as a JSON object, or empty.
    pub attributes_json: Str,
}

/// A module's answer to an examine callback.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[cfg_attr(feature = "certificate", derive(abi_stable::StableAbi))]
pub struct ExamineAnswer(pub u32);

impl ExamineAnswer {
    /// Not this module's.
    pub const NOT_MINE: ExamineAnswer = ExamineAnswer(0);
    /// The module has claimed the device.
    pub const CLAIMED: ExamineAnswer = ExamineAnswer(1);
    /// Recognised; more members are needed before anything is built on it.
    pub const WAITING: ExamineAnswer = ExamineAnswer(2);
    /// Recognised but unusable; the host reports the reason.
    pub const FAILED: ExamineAnswer = ExamineAnswer(3);
}
