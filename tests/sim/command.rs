//! Single I/Os of any operation, with whatever goes along: NVMe commands, and the
//! sources of copies.
// UNSAFETY: is a consumer of the contract: submits raw I/Os and gets them back by pointer.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::cell::Cell;
use std::ffi::c_void;
use std::mem::zeroed;
use std::time::Duration;

use tenon_abi::{BDEV_IO_SIZE, BdevIo, CopyRange, IoExtV1, IoStatus, IoVec, Op};
use tenon_bdev::{Channel, Descriptor, channel_get};

use crate::world::World;

/// A device, opened on the first reactor.
pub struct Opened {
    descriptor: Option<Descriptor>,
    channel: Option<Channel>,
}

/// An I/O that was submitted.
pub struct Command {
    io: *mut BdevIo,
    layout: Layout,
    ext: IoExtV1,
    iov: IoVec,
    sqe: [u8; 64],
    sources: Vec<CopyRange>,
    status: Cell<Option<IoStatus>>,
    /// What it carries, or was filled with.
    pub payload: Vec<u8>,
    /// What the controller said, if it is an NVMe command.
    pub cqe: [u32; 4],
}

impl Opened {
    pub fn new(world: &World, name: &str) -> Opened {
        let descriptor = world.on(|world| world.core.open(name, "command", true, |_| {})).expect("opens");
        let handle = descriptor.handle();
        let channel = world.on_data(0, || channel_get(handle)).expect("a channel");
        Opened { descriptor: Some(descriptor), channel: Some(channel) }
    }

    /// Submits an NVMe command: its opcode, dwords 10 to 12, and its payload.
    pub fn nvme(
        &self,
        world: &World,
        op: Op,
        opcode: u8,
        dwords: [u32; 3],
        payload: Vec<u8>,
    ) -> Box<Command> {
        let mut sqe = [0; 64];
        sqe[0] = opcode;
        for (at, dword) in dwords.iter().enumerate() {
            sqe[40 + at * 4..][..4].copy_from_slice(&dword.to_le_bytes());
        }
        self.submit(world, op, 0, payload, sqe, Vec::new())
    }

    /// Copies `sources` one behind the other to `target`.
    pub fn copy(&self, world: &World, target: u64, sources: &[(u64, u64)]) -> Box<Command> {
        let source = |(offset_blocks, num_blocks): &(u64, u64)| CopyRange {
            offset_blocks: *offset_blocks,
            num_blocks: *num_blocks,
        };
        self.submit(world, Op::COPY, target, Vec::new(), [0; 64], sources.iter().map(source).collect())
    }

    /// Reads or writes blocks of 512 bytes.
    pub fn transfer(&self, world: &World, op: Op, offset_blocks: u64, payload: Vec<u8>) -> Box<Command> {
        self.submit(world, op, offset_blocks, payload, [0; 64], Vec::new())
    }

    fn submit(
        &self,
        world: &World,
        op: Op,
        offset_blocks: u64,
        payload: Vec<u8>,
        sqe: [u8; 64],
        sources: Vec<CopyRange>,
    ) -> Box<Command> {
        let channel = self.channel.as_ref().expect("open");
        let (channel, context) = (channel.as_ptr(), channel.io_ctx_size());
        let layout = Layout::from_size_align(BDEV_IO_SIZE + context as usize, 64).expect("small");
        // SAFETY: the layout is not empty, and all-zero is a valid extension.
        let (memory, ext) = unsafe { (alloc_zeroed(layout), zeroed()) };
        assert!(!memory.is_null());
        let (iov, status) = (IoVec::EMPTY, Cell::new(None));
        let io = memory.cast::<BdevIo>();
        let copied: u64 = sources.iter().map(|source| source.num_blocks).sum();
        let mut command =
            Box::new(Command { io, layout, ext, iov, sqe, sources, status, payload, cqe: [0; 4] });
        let raw: *mut Command = &raw mut *command;
        world.on_data(0, || {
            // SAFETY: the I/O is zeroed and has room for its context; it and all it points to lives as long as the
            // boxed command, which asserts its completion; this is the channel's reactor.
            unsafe {
                (*raw).iov = IoVec { base: (*raw).payload.as_mut_ptr().cast(), len: (*raw).payload.len() };
                (*raw).ext.size = size_of::<IoExtV1>() as u32;
                (*raw).ext.nvme_sqe = (&raw const (*raw).sqe).cast();
                (*raw).ext.nvme_cqe = (&raw mut (*raw).cqe).cast();
                (*raw).ext.copy_ranges = (*raw).sources.as_ptr();
                (*raw).ext.copy_range_count = (*raw).sources.len() as u32;
                (*io).op = op;
                (*io).iovs = &raw mut (*raw).iov;
                (*io).iovcnt = u32::from(!(*raw).payload.is_empty());
                (*io).offset_blocks = offset_blocks;
                (*io).num_blocks = copied.max((*raw).payload.len() as u64 / 512);
                (*io).ext = &raw const (*raw).ext;
                (*io).done = Some(done);
                (*io).done_arg = raw.cast();
                tenon_abi::submit(channel, io);
            }
        });
        command
    }

    pub fn close(mut self, world: &World) {
        let channel = self.channel.take();
        world.on_data(0, || drop(channel));
        let descriptor = self.descriptor.take();
        world.on(|_| drop(descriptor));
    }
}

impl Command {
    /// Waits for its end.
    #[track_caller]
    pub fn wait(&self, world: &World) -> IoStatus {
        assert!(world.within(Duration::from_secs(10), || self.status.get().is_some()), "it ends");
        self.status.get().expect("it has ended")
    }
}

impl Drop for Command {
    fn drop(&mut self) {
        assert!(std::thread::panicking() || self.status.get().is_some(), "it ends before it is forgotten");
        // SAFETY: allocated with this layout, and complete.
        unsafe { dealloc(self.io.cast(), self.layout) };
    }
}

unsafe extern "C" fn done(io: *mut BdevIo, arg: *mut c_void) {
    // SAFETY: the command lives until it is complete.
    unsafe {
        let command = &*arg.cast::<Command>();
        assert!(command.status.replace(Some((*io).status)).is_none(), "completed once");
    }
}
