//! The module's side: a device in memory behind the raw contract.
// UNSAFETY: implements callbacks of the contract; follows I/Os.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::ffi::c_void;
use std::ptr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tenon_abi::{
    BdevFlags, BdevIo, BdevOpsV1, IoChannel, IoFlags, IoOpsV1, IoStatus, IoVec, Limits, Op, OpToken, complete,
};
use tenon_bdev::io::{Gate, GateSpec};
use tenon_reactor::{Directory, current};

use super::Chance;

/// How the module behaves; may be changed at any time.
#[derive(Clone, Debug)]
pub struct Behaviour {
    /// Chance of completing inside submit.
    pub sync_permille: u64,
    /// Latest completion of others.
    pub delay_us: u64,
    /// Chance that a refusal begins, and how many I/Os it lasts.
    pub nomem_permille: u64,
    pub nomem_burst: u64,
    /// Chance that a refusal comes later instead of inside submit.
    pub late_nomem_permille: u64,
    pub error_permille: u64,
    pub lend_permille: u64,
    pub most_pending: usize,
    /// Keeps everything until `release_held`.
    pub is_stuck: bool,
    /// Moves no data.
    pub is_null: bool,
}

impl Default for Behaviour {
    fn default() -> Self {
        Self {
            sync_permille: 1000,
            delay_us: 50,
            nomem_permille: 0,
            nomem_burst: 4,
            late_nomem_permille: 0,
            error_permille: 0,
            lend_permille: 0,
            most_pending: usize::MAX,
            is_stuck: false,
            is_null: false,
        }
    }
}

/// What is declared to the gate.
#[derive(Clone, Debug)]
pub struct Declared {
    pub flags: BdevFlags,
    pub limits: Limits,
    pub io_types: u64,
    pub io_flags: u64,
    pub io_ctx_size: u32,
    pub has_batch: bool,
    pub has_abort: bool,
    pub fails_channels: bool,
}

impl Declared {
    pub fn new(limits: Limits) -> Self {
        let ops =
            [Op::READ, Op::WRITE, Op::FLUSH, Op::UNMAP, Op::WRITE_ZEROES, Op::RESET, Op::COMPARE, Op::COPY];
        Self {
            flags: BdevFlags(0),
            limits,
            io_types: ops.iter().map(|op| op.bit()).sum(),
            io_flags: u64::from(IoFlags::FUA.0 | IoFlags::LEND.0),
            io_ctx_size: 64,
            has_batch: true,
            has_abort: true,
            fails_channels: false,
        }
    }
}

/// One I/O as it arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrival {
    pub io: usize,
    pub op: Op,
    pub offset_blocks: u64,
    pub num_blocks: u64,
    pub iovcnt: u32,
    pub flags: IoFlags,
    pub reactor: usize,
}

pub struct Device {
    pub declared: Declared,
    pub behaviour: RefCell<Behaviour>,
    pub data: RefCell<Vec<u8>>,
    pub chance: RefCell<Chance>,
    /// I/Os taken, by reactor, as asked.
    pub arrivals: RefCell<Vec<Arrival>>,
    pub is_recording: Cell<bool>,
    /// No I/O may arrive.
    pub is_closed: Cell<bool>,
    /// Nor may a RESET.
    pub is_gone: Cell<bool>,
    pub reset_running: Cell<bool>,
    /// Asserts that nothing is pending when a RESET arrives.
    pub resets_are_quiet: Cell<bool>,
    pub resets: Cell<u32>,
    pub reset_status: Cell<IoStatus>,
    pub channels: Cell<u32>,
    pub pending: Cell<usize>,
    pub lent: RefCell<HashMap<usize, Box<[u8]>>>,
    pub aborts: Cell<u32>,
    pub batches: Cell<u32>,
    pub refusals: Cell<u64>,
    nomem_left: Cell<u64>,
    ops: IoOpsV1,
    bdev_ops: BdevOpsV1,
}

/// The module's channel context.
struct Channel {
    device: *const Device,
    reactor: usize,
    pending: RefCell<Vec<*mut BdevIo>>,
}

impl Device {
    pub fn new(declared: Declared, behaviour: Behaviour, seed: u64) -> Rc<Device> {
        let bytes = declared.limits.num_blocks * stride(&declared);
        let ops = IoOpsV1 {
            size: size_of::<IoOpsV1>() as u32,
            flags: 0,
            submit,
            submit_batch: declared.has_batch.then_some(submit_batch),
            abort: declared.has_abort.then_some(abort),
            release: Some(release),
        };
        let bdev_ops = BdevOpsV1 {
            size: size_of::<BdevOpsV1>() as u32,
            flags: 0,
            channel_create,
            channel_destroy,
            destruct,
            dump_json: None,
            config_json: None,
            reset_stats: None,
            stats_json: None,
            rolled_back: None,
        };
        let data = if behaviour.is_null { Vec::new() } else { vec![0; bytes as usize] };
        Rc::new(Device {
            declared,
            behaviour: RefCell::new(behaviour),
            data: RefCell::new(data),
            chance: RefCell::new(Chance::new(seed)),
            arrivals: RefCell::default(),
            is_recording: Cell::new(true),
            is_closed: Cell::new(false),
            is_gone: Cell::new(false),
            reset_running: Cell::new(false),
            resets_are_quiet: Cell::new(true),
            resets: Cell::new(0),
            reset_status: Cell::new(IoStatus::SUCCESS),
            channels: Cell::new(0),
            pending: Cell::new(0),
            lent: RefCell::default(),
            aborts: Cell::new(0),
            batches: Cell::new(0),
            refusals: Cell::new(0),
            nomem_left: Cell::new(0),
            ops,
            bdev_ops,
        })
    }

    /// A gate on this device, which must outlive it.
    pub fn gate(self: &Rc<Self>, directory: &Directory) -> Arc<Gate> {
        let spec = GateSpec {
            name: Arc::from("fake0"),
            flags: self.declared.flags,
            limits: self.declared.limits,
            io_types: self.declared.io_types,
            io_flags: self.declared.io_flags,
            ctx: Rc::as_ptr(self).cast_mut().cast(),
            ops: &raw const self.bdev_ops,
        };
        Gate::new(spec, directory.clone())
    }

    pub fn stride(&self) -> u64 {
        stride(&self.declared)
    }

    pub fn take_arrivals(&self) -> Vec<Arrival> {
        std::mem::take(&mut self.arrivals.borrow_mut())
    }

    /// The bytes of blocks.
    pub fn bytes(&self, offset: u64, blocks: u64) -> Vec<u8> {
        let (from, to) = (offset * self.stride(), (offset + blocks) * self.stride());
        self.data.borrow()[from as usize..to as usize].to_vec()
    }

    fn assert_within_limits(&self, io: &BdevIo) {
        let limits = &self.declared.limits;
        let (offset, blocks) = (io.offset_blocks, io.num_blocks);
        let within = |limit: u32| limit == 0 || blocks <= u64::from(limit);
        assert!(self.declared.io_types & io.op.bit() != 0, "undeclared {:?} arrived", io.op);
        let undeclared = io.flags.0 & !(self.declared.io_flags as u16) & !IoFlags::NO_RETRY.0;
        assert_eq!(undeclared, 0, "undeclared flags arrived");
        if io.op == Op::READ || io.op == Op::WRITE {
            assert!(blocks > 0 && within(limits.max_transfer_blocks), "{io:?}");
            let boundary = u64::from(limits.optimal_io_boundary);
            if self.declared.flags.contains(BdevFlags::SPLIT_ON_BOUNDARY) && boundary > 0 {
                assert!(offset % boundary + blocks <= boundary, "boundary crossed: {io:?}");
            }
            self.assert_payload(io);
        }
        if io.op == Op::WRITE && self.declared.flags.contains(BdevFlags::SPLIT_ON_WRITE_UNIT) {
            let unit = u64::from(limits.write_unit);
            assert!(offset.is_multiple_of(unit) && blocks == unit, "not one write unit: {io:?}");
        }
        assert!(io.op != Op::UNMAP || within(limits.max_unmap_blocks), "{io:?}");
        assert!(io.op != Op::WRITE_ZEROES || within(limits.max_write_zeroes_blocks), "{io:?}");
        assert!(io.op != Op::COPY || within(limits.max_copy_blocks), "{io:?}");
    }

    fn assert_payload(&self, io: &BdevIo) {
        if io.iovcnt == 0 {
            assert!(io.flags.contains(IoFlags::LEND), "no payload: {io:?}");
            return;
        }
        let limits = &self.declared.limits;
        assert!(limits.max_segments == 0 || io.iovcnt <= limits.max_segments, "{io:?}");
        let mut bytes = 0;
        for piece in pieces(io) {
            assert!(!piece.base.is_null() && piece.len > 0);
            assert!(piece.base.addr().is_multiple_of(limits.required_alignment as usize), "unaligned piece");
            assert!(limits.max_segment_bytes == 0 || piece.len <= limits.max_segment_bytes as usize);
            bytes += piece.len as u64;
        }
        assert_eq!(bytes, io.num_blocks * self.stride(), "payload length: {io:?}");
    }
}

fn stride(declared: &Declared) -> u64 {
    let interleaved = declared.flags.contains(BdevFlags::METADATA_INTERLEAVED);
    u64::from(declared.limits.block_size) + if interleaved { u64::from(declared.limits.md_size) } else { 0 }
}

fn pieces(io: &BdevIo) -> &[IoVec] {
    if io.iovcnt == 0 {
        return &[];
    }
    // SAFETY: the gate passes valid scatter lists.
    unsafe { std::slice::from_raw_parts(io.iovs, io.iovcnt as usize) }
}

unsafe extern "C" fn channel_create(ctx: *mut c_void, ch: *mut IoChannel) -> i32 {
    let device = ctx.cast::<Device>().cast_const();
    // SAFETY: the device outlives its gate; `ch` is the new channel.
    unsafe {
        if (*device).declared.fails_channels {
            return -5;
        }
        let reactor = current().id().index();
        let channel = Rc::new(Channel { device, reactor, pending: RefCell::default() });
        (*ch).ctx = Rc::into_raw(channel).cast_mut().cast();
        (*ch).ops = &raw const (*device).ops;
        (*ch).io_ctx_size = (*device).declared.io_ctx_size;
        (*device).channels.set((*device).channels.get() + 1);
    }
    0
}

unsafe extern "C" fn channel_destroy(ctx: *mut c_void, ch: *mut IoChannel) {
    // SAFETY: `ctx` is the device and `ch.ctx` what `channel_create` made.
    unsafe {
        let device = ctx.cast::<Device>().cast_const();
        assert_eq!((*ch).outstanding, 0, "channel destroyed with I/O outstanding");
        let channel = Rc::from_raw((*ch).ctx.cast::<Channel>().cast_const());
        assert!(channel.pending.borrow().is_empty());
        assert_eq!(channel.reactor, current().id().index(), "destroyed on another reactor");
        (*device).channels.set((*device).channels.get() - 1);
    }
}

unsafe extern "C" fn destruct(_ctx: *mut c_void, _token: OpToken) {}

unsafe extern "C" fn submit(ch: *mut IoChannel, io: *mut BdevIo) {
    // SAFETY: the gate calls with this module's channel and an I/O that is the module's from now on.
    unsafe {
        let channel = (*ch).ctx.cast::<Channel>();
        let device = &*(*channel).device;
        assert_eq!((*channel).reactor, current().id().index(), "I/O on another reactor");
        assert_eq!((*io).ch, ch);
        let must_wait = device.is_closed.get() && (*io).op != Op::RESET;
        assert!(!must_wait && !device.is_gone.get(), "{:?} reached the module of a closed gate", (*io).op);
        assert!(!device.reset_running.get(), "I/O reached the module during its reset");
        scribble(device, io);
        if (*io).op == Op::RESET {
            return reset(device, channel, io);
        }
        device.assert_within_limits(&*io);
        let behaviour = device.behaviour.borrow().clone();
        let mut chance = device.chance.borrow_mut();
        if device.nomem_left.get() == 0 && chance.permille(behaviour.nomem_permille) {
            device.nomem_left.set(1 + chance.below(behaviour.nomem_burst));
        }
        let is_full = (*channel).pending.borrow().len() >= behaviour.most_pending;
        if device.nomem_left.get() > 0 || is_full {
            device.nomem_left.set(device.nomem_left.get().saturating_sub(1));
            device.refusals.set(device.refusals.get() + 1);
            if !is_full && chance.permille(behaviour.late_nomem_permille) {
                let delay = chance.below(behaviour.delay_us + 1);
                drop(chance);
                return pend(channel, io, delay, Some(IoStatus::NOMEM));
            }
            drop(chance);
            return complete(io, IoStatus::NOMEM);
        }
        if device.is_recording.get() {
            device.arrivals.borrow_mut().push(Arrival {
                io: io.addr(),
                op: (*io).op,
                offset_blocks: (*io).offset_blocks,
                num_blocks: (*io).num_blocks,
                iovcnt: (*io).iovcnt,
                flags: (*io).flags,
                reactor: (*channel).reactor,
            });
        }
        let is_sync = !behaviour.is_stuck && chance.permille(behaviour.sync_permille);
        let delay = chance.below(behaviour.delay_us + 1);
        drop(chance);
        if is_sync {
            carry_out(device, io, None);
        } else {
            pend(channel, io, delay, None);
        }
    }
}

/// The driver context's content is undefined, so it must not matter that it is overwritten.
unsafe fn scribble(device: &Device, io: *mut BdevIo) {
    // SAFETY: the I/O has the context this module asked for.
    unsafe {
        ptr::write_bytes(tenon_abi::io_context(io).cast::<u8>(), 0xa5, device.declared.io_ctx_size as usize);
    }
}

unsafe extern "C" fn submit_batch(ch: *mut IoChannel, ios: *const *mut BdevIo, count: u32) {
    // SAFETY: as in `submit`.
    unsafe {
        let device = &*(*(*ch).ctx.cast::<Channel>()).device;
        device.batches.set(device.batches.get() + 1);
        for index in 0..count {
            submit(ch, *ios.add(index as usize));
        }
    }
}

unsafe fn pend(channel: *mut Channel, io: *mut BdevIo, delay_us: u64, status: Option<IoStatus>) {
    // SAFETY: the channel outlives its pending I/O.
    unsafe {
        let device = &*(*channel).device;
        (*channel).pending.borrow_mut().push(io);
        device.pending.set(device.pending.get() + 1);
        if device.behaviour.borrow().is_stuck {
            return;
        }
        let address = io.addr();
        // An I/O that is aborted meanwhile leaves its timer behind.
        Rc::increment_strong_count(channel);
        let owner = Rc::from_raw(channel.cast_const());
        let timer = move || {
            let channel = Rc::as_ptr(&owner).cast_mut();
            let is_pending = (*channel).pending.borrow().iter().any(|io| io.addr() == address);
            if is_pending {
                unpend(channel, io);
                carry_out(&*(*channel).device, io, status);
            }
        };
        if delay_us == 0 {
            current().defer(timer).unwrap();
        } else {
            current().set_timer(Duration::from_micros(delay_us), timer).unwrap();
        }
    }
}

unsafe fn unpend(channel: *mut Channel, io: *mut BdevIo) {
    // SAFETY: as in `pend`.
    unsafe {
        (*channel).pending.borrow_mut().retain(|&other| other != io);
        let device = &*(*channel).device;
        device.pending.set(device.pending.get() - 1);
    }
}

/// Completes everything that `is_stuck` kept on the calling reactor.
///
/// # Safety
/// `ch` is a consumer's or module's channel; `io` any I/O whose `ch` is this module's.
pub unsafe fn unstick(io: *mut BdevIo) {
    // SAFETY: the test passes an I/O that is in the module.
    unsafe {
        let channel = (*(*io).ch).ctx.cast::<Channel>();
        loop {
            let next = (*channel).pending.borrow().first().copied();
            let Some(io) = next else { break };
            unpend(channel, io);
            carry_out(&*(*channel).device, io, None);
        }
    }
}

unsafe fn reset(device: &Device, channel: *mut Channel, io: *mut BdevIo) {
    // SAFETY: as in `submit`.
    unsafe {
        if device.resets_are_quiet.get() {
            assert_eq!(device.pending.get(), 0, "RESET reached the module with I/O pending");
        }
        device.reset_running.set(true);
        device.resets.set(device.resets.get() + 1);
        let _ = channel;
        let pointer: *const Device = device;
        let delay = Duration::from_micros(device.chance.borrow_mut().below(100));
        current()
            .set_timer(delay, move || {
                (*pointer).reset_running.set(false);
                complete(io, (*pointer).reset_status.get());
            })
            .unwrap();
    }
}

unsafe extern "C" fn abort(ch: *mut IoChannel, victim: *mut BdevIo) -> i32 {
    // SAFETY: `victim` is only compared until it is found.
    unsafe {
        let channel = (*ch).ctx.cast::<Channel>();
        let device = &*(*channel).device;
        device.aborts.set(device.aborts.get() + 1);
        if !(*channel).pending.borrow().contains(&victim) {
            return -2;
        }
        if device.chance.borrow_mut().permille(700) || device.behaviour.borrow().is_stuck {
            unpend(channel, victim);
            complete(victim, IoStatus::ABORTED);
        }
        0
    }
}

unsafe extern "C" fn release(ch: *mut IoChannel, io: *mut BdevIo) {
    // SAFETY: as in `submit`.
    unsafe {
        let device = &*(*(*ch).ctx.cast::<Channel>()).device;
        let lent = device.lent.borrow_mut().remove(&io.addr());
        assert!(lent.is_some(), "memory released that was not lent");
    }
}

/// Does what the I/O asks and completes it.
unsafe fn carry_out(device: &Device, io: *mut BdevIo, status: Option<IoStatus>) {
    // SAFETY: the I/O is this module's, and its payload valid.
    unsafe {
        let behaviour = device.behaviour.borrow().clone();
        let fails = device.chance.borrow_mut().permille(behaviour.error_permille);
        let status = status.or(fails.then_some(IoStatus::IO_ERROR));
        if let Some(status) = status {
            return complete(io, status);
        }
        let status = if behaviour.is_null { IoStatus::SUCCESS } else { transfer(device, io, &behaviour) };
        complete(io, status);
    }
}

unsafe fn transfer(device: &Device, io: *mut BdevIo, behaviour: &Behaviour) -> IoStatus {
    // SAFETY: as in `carry_out`.
    unsafe {
        let stride = device.stride();
        let from = ((*io).offset_blocks * stride) as usize;
        let to = from + ((*io).num_blocks * stride) as usize;
        let mut data = device.data.borrow_mut();
        match (*io).op {
            Op::READ => {
                let may_lend = (*io).flags.contains(IoFlags::LEND);
                let wants = device.chance.borrow_mut().permille(behaviour.lend_permille);
                if may_lend && (wants || (*io).iovcnt == 0) {
                    lend(device, io, data[from..to].into());
                    return IoStatus::SUCCESS;
                }
                let mut at = from;
                for piece in pieces(&*io) {
                    ptr::copy_nonoverlapping(data[at..].as_ptr(), piece.base.cast(), piece.len);
                    at += piece.len;
                }
            }
            Op::WRITE => {
                let mut at = from;
                for piece in pieces(&*io) {
                    ptr::copy_nonoverlapping(piece.base.cast(), data[at..].as_mut_ptr(), piece.len);
                    at += piece.len;
                }
            }
            Op::WRITE_ZEROES | Op::UNMAP => data[from..to].fill(0),
            Op::COMPARE => {
                let mut at = from;
                for piece in pieces(&*io) {
                    let wanted = std::slice::from_raw_parts(piece.base.cast::<u8>(), piece.len);
                    if wanted != &data[at..at + piece.len] {
                        return IoStatus::MISCOMPARE;
                    }
                    at += piece.len;
                }
            }
            Op::COPY => {
                let ext = &*(*io).ext;
                let ranges = std::slice::from_raw_parts(ext.copy_ranges, ext.copy_range_count as usize);
                let mut at = from;
                for range in ranges {
                    let source = (range.offset_blocks * stride) as usize;
                    let bytes = (range.num_blocks * stride) as usize;
                    data.copy_within(source..source + bytes, at);
                    at += bytes;
                }
                assert_eq!(at, to, "sources of a copy");
            }
            _ => {}
        }
        IoStatus::SUCCESS
    }
}

/// Lends a copy of the blocks; the list is in the I/O itself.
unsafe fn lend(device: &Device, io: *mut BdevIo, mut memory: Box<[u8]>) {
    // SAFETY: the memory stays where it is until it is released.
    unsafe {
        (*io).inline_iov = IoVec { base: memory.as_mut_ptr().cast(), len: memory.len() };
        (*io).iovs = &raw mut (*io).inline_iov;
        (*io).iovcnt = 1;
        (*io).flags.0 |= IoFlags::LENT.0;
        device.lent.borrow_mut().insert(io.addr(), memory);
    }
}
