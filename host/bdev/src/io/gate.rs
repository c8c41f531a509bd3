//! [`Gate`]: one device as the data plane sees it, and what the control plane may ask of it.
//!
//! Holds what never changes (limits, declared operations), the few words that do (capacity, phase,
//! read-only, rate limits) and one slot per reactor for its channel. The control plane changes it on
//! the control reactor; consumers use it through channels. How each change is carried out is in the
//! file of that concern.
// UNSAFETY: shared between threads although its slots are not; each slot is touched by its reactor only.

use std::cell::UnsafeCell;
use std::ffi::c_void;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use log::warn;
use parking_lot::Mutex;
use tenon_abi::{BdevFlags, BdevOpsV1, IoFlags, Limits, Op};
use tenon_reactor::{Directory, ReactorId, ReactorRef};

use super::broadcast::{assert_control, each_channel};
use super::channel::ModuleChannel;
use super::child::BOUNCE_BYTES;
use super::compare_write::{self, with_compare_write};
use super::exclusive::Exclusives;
use super::freeze::Published;
use super::histogram::Recording;
use super::qos::Qos;
use super::reset::Resets;
use super::sampling::Sampling;
use super::statistics::Retired;
use super::submit;

/// What a gate is made from: the parts of a module's registration that concern I/O.
#[derive(Clone, Debug)]
pub struct GateSpec {
    /// Name, for messages.
    pub name: Arc<str>,
    /// Properties.
    pub flags: BdevFlags,
    /// Geometry and limits.
    pub limits: Limits,
    /// Operations the module handles.
    pub io_types: u64,
    /// Flags the module understands.
    pub io_flags: u64,
    /// First argument of the callbacks.
    pub ctx: *mut c_void,
    /// The module's callbacks; valid for the life of the process.
    pub ops: *const BdevOpsV1,
}

/// One device: every I/O to it passes here.
pub struct Gate {
    pub(super) spec: GateSpec,
    /// Operations consumers may send: those of the module and those made of others.
    offered: u64,
    directory: Directory,
    pub(super) word: AtomicU64,
    num_blocks: AtomicU64,
    is_read_only: AtomicBool,
    slots: Box<[Slot]>,
    pub(super) reset_drain_timeout_ns: AtomicU64,
    /// When the next complaint about this device may be logged.
    pub(super) next_warning_ns: AtomicU64,
    /// Completions and releases that came twice, of all channels.
    pub(super) faults: AtomicU64,
    // None of these locks is taken on the I/O path, and none while another is held.
    pub(super) qos: Mutex<Qos>,
    pub(super) recording: Mutex<Recording>,
    pub(super) retired: Mutex<Retired>,
    pub(super) resets: Mutex<Resets>,
    pub(super) exclusives: Mutex<Exclusives>,
    pub(super) sampling: Mutex<Sampling>,
}

/// What a device has on one reactor.
pub(super) struct Slot {
    /// Touched by that reactor only.
    channel: UnsafeCell<*mut ModuleChannel>,
    /// Whether `channel` is, or is about to be, not null.
    is_open: AtomicBool,
    /// The module is in its `channel_create`.
    pub(super) is_opening: AtomicBool,
    pub(super) consumers: AtomicU32,
    pub(super) queued: AtomicU32,
}

/// How many hold a device, and what waits in its gate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GateCensus {
    /// Channels of consumers: one per descriptor and reactor.
    pub channels: u32,
    /// Channels of the module: one per reactor.
    pub module_channels: u32,
    /// I/Os that wait in the gate.
    pub queued: u32,
}

// SAFETY: `spec`'s pointers are the module's, which promised them to be valid until the device is
// destructed and callable from every reactor; each slot's cell is used by its own reactor alone.
unsafe impl Send for Gate {}
// SAFETY: as above.
unsafe impl Sync for Gate {}

impl Gate {
    /// A gate without channels, in phase Running.
    #[must_use]
    pub fn new(spec: GateSpec, directory: Directory) -> Arc<Gate> {
        let slots = directory.all().iter().map(|_| Slot::new()).collect();
        warn_of_odd_limits(&spec);
        let limits = with_compare_write(spec.limits, spec.flags, spec.io_types);
        let spec = GateSpec { limits, ..spec };
        Arc::new(Gate {
            offered: offered(spec.io_types),
            directory,
            word: AtomicU64::new(Published::START.to_word()),
            num_blocks: AtomicU64::new(spec.limits.num_blocks),
            is_read_only: AtomicBool::new(spec.flags.contains(BdevFlags::READ_ONLY)),
            slots,
            reset_drain_timeout_ns: AtomicU64::new(super::DEFAULT_RESET_DRAIN_TIMEOUT.as_nanos() as u64),
            next_warning_ns: AtomicU64::new(0),
            faults: AtomicU64::new(0),
            qos: Mutex::default(),
            recording: Mutex::default(),
            retired: Mutex::default(),
            resets: Mutex::default(),
            exclusives: Mutex::default(),
            sampling: Mutex::default(),
            spec,
        })
    }

    /// The device's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.spec.name
    }

    /// Capacity now.
    #[must_use]
    pub fn num_blocks(&self) -> u64 {
        self.num_blocks.load(Ordering::SeqCst)
    }

    /// Whether writes are refused now.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        self.is_read_only.load(Ordering::SeqCst)
    }

    /// Operations a consumer may send: what the module declares, RESET, and what the gate makes of
    /// others (WRITE_ZEROES of WRITE, COMPARE of READ, COMPARE_AND_WRITE of both).
    #[must_use]
    pub fn io_types(&self) -> u64 {
        self.offered
    }

    /// Sets the capacity; `done` runs on the control reactor when every reactor obeys it.
    ///
    /// # Panics
    /// Anywhere but on the control reactor.
    pub fn resize(self: &Arc<Self>, num_blocks: u64, done: impl FnOnce() + 'static) {
        assert_control();
        self.num_blocks.store(num_blocks, Ordering::SeqCst);
        self.refresh_everywhere(done);
    }

    /// Refuses or allows writes; `done` runs on the control reactor when every reactor obeys.
    ///
    /// # Panics
    /// Anywhere but on the control reactor.
    pub fn set_read_only(self: &Arc<Self>, is_read_only: bool, done: impl FnOnce() + 'static) {
        assert_control();
        self.is_read_only.store(is_read_only, Ordering::SeqCst);
        self.refresh_everywhere(done);
    }

    /// Completions and releases that came twice and were ignored, as far as they have been noticed.
    #[must_use]
    pub fn faults(&self) -> u64 {
        self.faults.load(Ordering::Relaxed)
    }

    /// How many hold the device now. Any thread; figures of different reactors may be of different moments.
    #[must_use]
    pub fn census(&self) -> GateCensus {
        let mut census = GateCensus::default();
        for slot in &self.slots {
            census.channels += slot.consumers.load(Ordering::Relaxed);
            census.module_channels += u32::from(slot.is_open.load(Ordering::SeqCst));
            census.queued += slot.queued.load(Ordering::Relaxed);
        }
        census
    }

    pub(super) fn directory(&self) -> &Directory {
        &self.directory
    }

    pub(super) fn declares(&self, op: Op) -> bool {
        self.spec.io_types & op.bit() != 0
    }

    pub(super) fn understands(&self, flag: IoFlags) -> bool {
        self.spec.io_flags & u64::from(flag.0) == u64::from(flag.0)
    }

    pub(super) fn slot(&self, id: ReactorId) -> &Slot {
        &self.slots[id.index()]
    }

    /// Reactors that have a channel now. One that opens its channel after this was asked has read
    /// what was published before: the flag is raised before the words are read there, and the words are
    /// written before the flags are read here, all sequentially consistent.
    pub(super) fn open_reactors(&self) -> Vec<ReactorRef> {
        let all = self.directory.all().iter();
        all.filter(|reactor| self.slot(reactor.id()).is_open.load(Ordering::SeqCst)).cloned().collect()
    }

    /// The channel of the calling reactor, whose id is `id`.
    pub(super) fn channel_here(&self, id: ReactorId) -> Option<*mut ModuleChannel> {
        // SAFETY: the caller runs on reactor `id`, so nobody else touches the cell.
        let channel = unsafe { *self.slot(id).channel.get() };
        (!channel.is_null()).then_some(channel)
    }

    /// Puts the calling reactor's channel into its slot, or null.
    pub(super) fn set_channel_here(&self, id: ReactorId, channel: *mut ModuleChannel) {
        // SAFETY: as in `channel_here`.
        unsafe { *self.slot(id).channel.get() = channel };
    }

    pub(super) fn set_open(&self, id: ReactorId, is_open: bool) {
        self.slot(id).is_open.store(is_open, Ordering::SeqCst);
    }

    /// Makes every channel read capacity, permission and rate limits again.
    pub(super) fn refresh_everywhere(self: &Arc<Self>, done: impl FnOnce() + 'static) {
        each_channel(
            self,
            // SAFETY: `each_channel` calls with the live channel of the reactor it runs on.
            |m| unsafe { submit::refresh(m) },
            move |_| done(),
        );
    }

    /// Whether a complaint may be logged now; one a second and device.
    pub(super) fn may_warn(&self) -> bool {
        let now = tenon_reactor::now_ns();
        let next = self.next_warning_ns.load(Ordering::Relaxed);
        now >= next
            && self
                .next_warning_ns
                .compare_exchange(next, now + WARNING_INTERVAL_NS, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        let left = self.census();
        if left.module_channels > 0 {
            warn!(
                "gate dropped with channels open bdev={} channels={}",
                self.spec.name, left.module_channels
            );
        }
    }
}

impl Slot {
    fn new() -> Self {
        Self {
            channel: UnsafeCell::new(std::ptr::null_mut()),
            is_open: AtomicBool::new(false),
            is_opening: AtomicBool::new(false),
            consumers: AtomicU32::new(0),
            queued: AtomicU32::new(0),
        }
    }
}

fn offered(declared: u64) -> u64 {
    let mut offered = declared | Op::RESET.bit();
    if declared & Op::WRITE.bit() != 0 {
        offered |= Op::WRITE_ZEROES.bit();
    }
    if declared & Op::READ.bit() != 0 {
        offered |= Op::COMPARE.bit();
    }
    if compare_write::is_possible(declared) {
        offered |= Op::COMPARE_AND_WRITE.bit();
    }
    offered
}

/// A device whose limits cannot all be met for every payload still serves those that fit.
fn warn_of_odd_limits(spec: &GateSpec) {
    let limits = &spec.limits;
    if limits.required_alignment as usize > BOUNCE_BYTES {
        warn!(
            "alignment above what can be bounced bdev={} required_alignment={} limit={BOUNCE_BYTES}",
            spec.name, limits.required_alignment
        );
    }
    let unit_bytes = u64::from(limits.write_unit) * u64::from(limits.block_size + limits.md_size);
    if spec.flags.contains(BdevFlags::SPLIT_ON_WRITE_UNIT) && unit_bytes > BOUNCE_BYTES as u64 {
        let needs_bounce = limits.required_alignment > 1 || limits.max_segments > 0;
        if needs_bounce {
            warn!(
                "write unit above what can be bounced bdev={} unit_bytes={unit_bytes} limit={BOUNCE_BYTES}",
                spec.name
            );
        }
    }
}

/// Between two complaints about one device.
const WARNING_INTERVAL_NS: u64 = 1_000_000_000;
