//! The target's context of one command, and the pool of them on a reactor.
//!
//! A [`Command`] is followed in memory by the device I/O and its driver
//! context, so that a command costs no allocation once the pool is warm. Blocks
//! come in classes by the size of the driver context. Knows nothing of what a
//! command does.
// UNSAFETY: hands out memory for structures that C code fills.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::cell::{Cell, RefCell};
use std::ffi::c_void;
use std::rc::Rc;

use nvme_spec::status::StatusCode;
use tenon_abi::transport::target::TargetRequest;
use tenon_abi::{BDEV_IO_SIZE, BdevIo, IoExtV1};
use zerocopy::FromZeros;

use super::QueuePair;
use super::view::NamespaceSide;

/// Who has a command now.
///
/// ```text
/// Transport ──► Held ──► Device ──► Answered
///     │ ├─────► Partner ─┘            ▲
///     │ ├─────► Buffer (both ways)    │
///     └─────────► Control ────────────┘
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// The transport: it receives the data, and then calls `request_execute`.
    Transport,
    /// The list of those who wait for a buffer before the transport can receive.
    BufferToReceive,
    /// The list of those who wait for a buffer before the device can read.
    BufferToExecute,
    /// The queue: its subsystem is paused.
    Held,
    /// The queue: it waits for the other half of a fused operation.
    Partner,
    /// The device.
    Device,
    /// The control reactor.
    Control,
    /// The transport: it sends the completion, and then calls `request_release`.
    Answered,
}

/// What an I/O command is to do; decided when it arrives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Work {
    /// Not an I/O command.
    Control,
    Read,
    Write,
    Flush,
    Compare,
    WriteZeroes,
    /// Dataset Management with Deallocate; the attribute is a hint that nobody took otherwise.
    Deallocate,
    /// Dataset Management without Deallocate.
    Hint,
    Copy,
    Verify,
    WriteUncorrectable,
}

/// One command between `request_begin` and `request_release`.
#[repr(C, align(64))]
pub(crate) struct Command {
    pub request: *mut TargetRequest,
    pub queue: *const QueuePair,
    pub previous: *mut Command,
    pub next: *mut Command,
    pub namespace: Option<Rc<NamespaceSide>>,
    pub buffer: *mut c_void,
    pub buffer_len: u32,
    pub class: u16,
    pub stage: Stage,
    pub work: Work,
    /// The device has no FUA: a flush follows the write.
    pub flushes_after: bool,
    /// Deallocate, in Write Zeroes.
    pub deallocates: bool,
    pub forces_unit_access: bool,
    /// Somebody asked for the end of this command, which is told by this code.
    pub aborted: Option<StatusCode>,
    pub slba: u64,
    pub blocks: u32,
    /// The next range of Dataset Management.
    pub cursor: u32,
    /// Names the command towards control.
    pub ticket: u64,
    /// The other half of a fused operation.
    pub partner: *mut Command,
    pub is_fused_first: bool,
    pub is_fused_second: bool,
    /// The host's allowance was charged for it.
    pub is_admitted: bool,
    pub ext: IoExtV1,
}

/// Commands that nobody uses, by class.
pub(crate) struct Pool {
    idle: RefCell<Vec<Vec<*mut Command>>>,
    in_use: Cell<usize>,
}

impl Command {
    /// The device I/O behind a command.
    ///
    /// # Safety
    /// `command` is a block of the pool.
    pub(crate) unsafe fn io(command: *mut Command) -> *mut BdevIo {
        // SAFETY: a block holds the command and, behind it, the I/O.
        unsafe { command.cast::<u8>().add(size_of::<Command>()).cast() }
    }

    fn idle() -> Self {
        Self {
            request: std::ptr::null_mut(),
            queue: std::ptr::null(),
            previous: std::ptr::null_mut(),
            next: std::ptr::null_mut(),
            namespace: None,
            buffer: std::ptr::null_mut(),
            buffer_len: 0,
            class: 0,
            stage: Stage::Transport,
            work: Work::Control,
            flushes_after: false,
            deallocates: false,
            forces_unit_access: false,
            aborted: None,
            slba: 0,
            blocks: 0,
            cursor: 0,
            ticket: 0,
            partner: std::ptr::null_mut(),
            is_fused_first: false,
            is_fused_second: false,
            is_admitted: false,
            ext: IoExtV1 {
                size: size_of::<IoExtV1>() as u32,
                flags: 0,
                nvme_sqe: std::ptr::null(),
                nvme_cqe: std::ptr::null_mut(),
                copy_ranges: std::ptr::null(),
                copy_range_count: 0,
                compare_iovcnt: 0,
                compare_iovs: std::ptr::null(),
                md_len: 0,
                zone_action: 0,
                reserved: 0,
                memory_key: 0,
            },
        }
    }
}

impl Pool {
    pub(crate) fn new() -> Self {
        Self { idle: RefCell::new(vec![Vec::new(); CLASSES]), in_use: Cell::new(0) }
    }

    /// A command with room for the driver context of `class`.
    pub(crate) fn get(&self, class: u16) -> *mut Command {
        let reused = self.idle.borrow_mut()[usize::from(class)].pop();
        let block = reused.unwrap_or_else(|| {
            let layout = layout(class);
            // SAFETY: the layout is not empty.
            let block = unsafe { alloc_zeroed(layout) };
            if block.is_null() {
                handle_alloc_error(layout);
            }
            block.cast()
        });
        // SAFETY: the block is ours, large enough and aligned.
        unsafe { block.write(Command { class, ..Command::idle() }) };
        self.in_use.set(self.in_use.get() + 1);
        block
    }

    /// Takes a command back.
    ///
    /// # Safety
    /// `command` came from this pool, and nobody uses it any more.
    pub(crate) unsafe fn put(&self, command: *mut Command) {
        // SAFETY: as the caller promises; the namespace is let go of here.
        let class = unsafe {
            drop((*command).namespace.take());
            (*command).class
        };
        self.idle.borrow_mut()[usize::from(class)].push(command);
        self.in_use.set(self.in_use.get() - 1);
    }

    pub(crate) fn in_use(&self) -> usize {
        self.in_use.get()
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        for (class, blocks) in self.idle.get_mut().iter_mut().enumerate() {
            for block in blocks.drain(..) {
                // SAFETY: an idle block was allocated with this layout and has nothing left to drop.
                unsafe { dealloc(block.cast(), layout(class as u16)) };
            }
        }
    }
}

/// The class for a driver context of `bytes`; `None` if no pool has room for it.
pub(crate) fn class_of(bytes: u32) -> Option<u16> {
    let class = bytes.div_ceil(CLASS_BYTES);
    ((class as usize) < CLASSES).then_some(class as u16)
}

fn layout(class: u16) -> Layout {
    let size = size_of::<Command>() + BDEV_IO_SIZE + usize::from(class) * CLASS_BYTES as usize;
    Layout::from_size_align(size, 64).expect("a small size and a power of two make a layout")
}

/// An all-zero value of a wire type.
pub(crate) fn zeroed<T: FromZeros>() -> T {
    T::new_zeroed()
}

/// Driver contexts are rounded up to a multiple of this.
const CLASS_BYTES: u32 = 256;
/// Largest driver context: 64 KiB.
const CLASSES: usize = 257;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_used_again() {
        let pool = Pool::new();
        let first = pool.get(1);
        assert_eq!(first.addr() % 64, 0);
        // SAFETY: just got, and not used again.
        unsafe { pool.put(first) };
        assert_eq!(pool.get(1), first);
        assert_ne!(pool.get(1), first);
        assert_eq!(pool.in_use(), 2);
        // SAFETY: each is given back once.
        unsafe { pool.put(first) };
    }

    #[test]
    fn contexts_have_classes_up_to_64_kib() {
        assert_eq!(class_of(0), Some(0));
        assert_eq!(class_of(1), Some(1));
        assert_eq!(class_of(256), Some(1));
        assert_eq!(class_of(65_536), Some(256));
        assert_eq!(class_of(65_537), None);
    }
}
