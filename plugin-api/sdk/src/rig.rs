//! The two ends a channel has in unit tests of the data path: a consumer with
//! raw I/Os, and the least gate the host could have.
// UNSAFETY: plays the consumer and the host's gate.

use std::alloc::{Layout, alloc, dealloc};
use std::cell::Cell;
use std::ffi::c_void;
use std::ptr::null_mut;
use std::rc::Rc;

use tenon_abi::{BDEV_IO_SIZE, BdevIo, IoChannel, IoFlags, IoOpsV1, IoState, IoStatus, IoVec, Op};

use crate::channel::{attach, detach};
use crate::{BaseChannel, Channel};

/// A module's channel and the gate before it, which counts and marks as the host's does.
pub(crate) struct Gate {
    module: *mut IoChannel,
    gate: *mut IoChannel,
    detach: unsafe fn(*mut IoChannel),
}

impl Gate {
    pub(crate) fn of<C: Channel>(channel: Rc<C>) -> Gate {
        let (module, gate) = (raw_channel(), raw_channel());
        // SAFETY: both were just made and live until `close`.
        unsafe {
            attach(module, channel).unwrap();
            (*gate).ctx = module.cast();
            (*gate).io_ctx_size = (*module).io_ctx_size;
        }
        Gate { module, gate, detach: drop_channel::<C> }
    }

    /// A filter as one writes it in C: what the SDK's is compared with.
    pub(crate) fn raw_filter(base: &Gate) -> Gate {
        let (module, gate) = (raw_channel(), raw_channel());
        // SAFETY: both were just made and live until `close`; the base lives longer, says the test.
        unsafe {
            (*module).ops = &RAW_FILTER_OPS;
            (*module).ctx = base.gate.cast();
            (*module).io_ctx_size = BDEV_IO_SIZE as u32 + (*base.gate).io_ctx_size;
            (*gate).ctx = module.cast();
            (*gate).io_ctx_size = (*module).io_ctx_size;
        }
        Gate { module, gate, detach: |_| {} }
    }

    pub(crate) fn base(&self) -> BaseChannel {
        BaseChannel::of_raw(self.gate)
    }

    pub(crate) fn outstanding(&self) -> u32 {
        // SAFETY: lives until `close`.
        unsafe { (*self.module).outstanding }
    }

    pub(crate) fn faults(&self) -> u32 {
        // SAFETY: lives until `close`.
        unsafe { (*self.module).faults }
    }

    pub(crate) fn abort(&self, request: &Request) -> i32 {
        // SAFETY: the gate's own channel; the I/O is only a name.
        unsafe { gate_abort(self.gate, request.io) }
    }

    pub(crate) fn release(&self, request: &Request) {
        // SAFETY: the test says that memory was lent for it.
        unsafe { gate_release(self.gate, request.io) };
    }

    /// Gives the module many at once, as the host's gate does.
    pub(crate) fn submit_batch(&self, requests: &[Request]) {
        let ios: Vec<*mut BdevIo> = requests.iter().map(|request| request.io).collect();
        // SAFETY: the I/Os are idle and have the context this gate asks for; the channel lives until `close`.
        unsafe {
            for io in &ios {
                (**io).ch = self.module;
                (**io).state = IoState::SUBMITTED;
                (*self.module).outstanding += 1;
            }
            let batch = (*(*self.module).ops).submit_batch.unwrap();
            batch(self.module, ios.as_ptr(), ios.len() as u32);
        }
    }

    /// The host's end of a channel, after which nothing may be left.
    pub(crate) fn close(self) {
        assert_eq!((self.outstanding(), self.faults()), (0, 0));
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        // SAFETY: attached by `of`, and not used again.
        unsafe {
            (self.detach)(self.module);
            drop(Box::from_raw(self.module));
            drop(Box::from_raw(self.gate));
        }
    }
}

/// # Safety
/// As for `detach`.
unsafe fn drop_channel<C: Channel>(module: *mut IoChannel) {
    // SAFETY: as the caller promises.
    drop(unsafe { detach::<C>(module) });
}

/// A consumer's I/O; the driver context holds garbage, as the contract allows.
pub(crate) struct Request {
    io: *mut BdevIo,
    layout: Layout,
    status: Box<Cell<Option<IoStatus>>>,
}

impl Request {
    pub(crate) fn new(gate: &Gate, op: Op, offset: u64, blocks: u64) -> Request {
        let status = Box::new(Cell::new(None));
        // SAFETY: the memory is large enough; every field has a value, as zero is one.
        unsafe {
            let size = BDEV_IO_SIZE + (*gate.gate).io_ctx_size as usize;
            let layout = Layout::from_size_align(size, 64).unwrap();
            let memory = alloc(layout);
            memory.write_bytes(0xa5, size);
            memory.write_bytes(0, BDEV_IO_SIZE);
            let io = memory.cast::<BdevIo>();
            (*io).op = op;
            (*io).offset_blocks = offset;
            (*io).num_blocks = blocks;
            (*io).done = Some(note);
            (*io).done_arg = (&raw const *status).cast_mut().cast();
            Request { io, layout, status }
        }
    }

    pub(crate) fn payload(self, pieces: &mut [IoVec]) -> Request {
        // SAFETY: the test keeps the pieces until the I/O is done.
        unsafe {
            (*self.io).iovs = pieces.as_mut_ptr();
            (*self.io).iovcnt = pieces.len() as u32;
        }
        self
    }

    pub(crate) fn flagged(self, flags: IoFlags) -> Request {
        // SAFETY: the I/O is the consumer's now.
        unsafe { (*self.io).flags = flags };
        self
    }

    /// Counts completions in `counter` instead of noting the status.
    pub(crate) fn counted(self, counter: &Cell<u64>) -> Request {
        // SAFETY: the test keeps the counter until the I/O is done.
        unsafe {
            (*self.io).done = Some(count);
            (*self.io).done_arg = std::ptr::from_ref(counter).cast_mut().cast();
        }
        self
    }

    #[inline(always)]
    pub(crate) fn submit(&self, gate: &Gate) -> &Request {
        // SAFETY: the I/O is idle and has the context this gate asks for.
        unsafe { tenon_abi::submit(gate.gate, self.io) };
        self
    }

    /// Completes it once more, as a faulty module does.
    pub(crate) fn complete_again(&self) {
        // SAFETY: the I/O was not reused, so that this is a fault and nothing worse.
        unsafe { tenon_abi::complete(self.io, IoStatus::IO_ERROR) };
    }

    pub(crate) fn status(&self) -> Option<IoStatus> {
        self.status.get()
    }

    pub(crate) fn cdw0(&self) -> u32 {
        // SAFETY: the I/O is done.
        unsafe { (*self.io).cdw0 }
    }

    pub(crate) fn flags(&self) -> IoFlags {
        // SAFETY: the I/O is done.
        unsafe { (*self.io).flags }
    }

    /// First byte of the payload, which may be lent memory.
    pub(crate) fn first_byte(&self) -> u8 {
        // SAFETY: the I/O is done, and lent memory was not returned.
        unsafe { *(*(*self.io).iovs).base.cast::<u8>() }
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout.
        unsafe { dealloc(self.io.cast(), self.layout) };
    }
}

/// Cuts memory into pieces.
pub(crate) fn pieces(memory: &mut [u8], cuts: &[usize]) -> Vec<IoVec> {
    let mut rest = memory;
    let mut out = Vec::new();
    for cut in cuts {
        let (piece, tail) = rest.split_at_mut(*cut);
        out.push(IoVec { base: piece.as_mut_ptr().cast(), len: piece.len() });
        rest = tail;
    }
    out
}

static GATE_OPS: IoOpsV1 = IoOpsV1 {
    size: size_of::<IoOpsV1>() as u32,
    flags: 0,
    submit: gate_submit,
    submit_batch: None,
    abort: Some(gate_abort),
    release: Some(gate_release),
};

static RAW_FILTER_OPS: IoOpsV1 = IoOpsV1 {
    size: size_of::<IoOpsV1>() as u32,
    flags: 0,
    submit: raw_filter_submit,
    submit_batch: None,
    abort: None,
    release: None,
};

unsafe extern "C" fn raw_filter_submit(ch: *mut IoChannel, io: *mut BdevIo) {
    // SAFETY: `raw_filter` made room for a child behind the I/O.
    unsafe {
        let child = tenon_abi::io_context(io).cast::<BdevIo>();
        (*child).op = (*io).op;
        (*child).state = IoState::IDLE;
        (*child).flags = (*io).flags;
        (*child).iovcnt = (*io).iovcnt;
        (*child).iovs = (*io).iovs;
        (*child).offset_blocks = (*io).offset_blocks;
        (*child).num_blocks = (*io).num_blocks;
        (*child).cdw0 = 0;
        (*child).md = (*io).md;
        (*child).ext = (*io).ext;
        (*child).done = Some(raw_filter_done);
        (*child).done_arg = io.cast();
        tenon_abi::submit((*ch).ctx.cast(), child);
    }
}

unsafe extern "C" fn raw_filter_done(child: *mut BdevIo, io: *mut c_void) {
    // SAFETY: the parent waits for the child.
    unsafe { tenon_abi::complete(io.cast(), (*child).status) };
}

fn raw_channel() -> *mut IoChannel {
    Box::into_raw(Box::new(IoChannel {
        ops: &GATE_OPS,
        ctx: null_mut(),
        outstanding: 0,
        io_ctx_size: 0,
        flags: 0,
        faults: 0,
        reactor: null_mut(),
        host: null_mut(),
        retry: None,
        reserved: [0],
    }))
}

unsafe extern "C" fn gate_submit(gate: *mut IoChannel, io: *mut BdevIo) {
    // SAFETY: `ctx` of a gate is its module's channel; the consumer submits an idle I/O.
    unsafe {
        let module = (*gate).ctx.cast::<IoChannel>();
        (*io).ch = module;
        (*io).state = IoState::SUBMITTED;
        (*module).outstanding += 1;
        ((*(*module).ops).submit)(module, io);
    }
}

unsafe extern "C" fn gate_abort(gate: *mut IoChannel, io: *mut BdevIo) -> i32 {
    // SAFETY: `ctx` of a gate is its module's channel.
    unsafe {
        let module = (*gate).ctx.cast::<IoChannel>();
        (*(*module).ops).abort.unwrap()(module, io)
    }
}

unsafe extern "C" fn gate_release(gate: *mut IoChannel, io: *mut BdevIo) {
    // SAFETY: `ctx` of a gate is its module's channel; memory was lent for the I/O.
    unsafe {
        let module = (*gate).ctx.cast::<IoChannel>();
        (*(*module).ops).release.unwrap()(module, io);
        (*module).outstanding -= 1;
        (*io).flags.0 &= !IoFlags::LENT.0;
    }
}

unsafe extern "C" fn note(io: *mut BdevIo, arg: *mut c_void) {
    // SAFETY: `Request::new` made the argument; the I/O is done.
    unsafe { (*arg.cast::<Cell<Option<IoStatus>>>()).set(Some((*io).status)) };
}

unsafe extern "C" fn count(_: *mut BdevIo, arg: *mut c_void) {
    // SAFETY: `Request::counted` made the argument.
    let counter = unsafe { &*arg.cast::<Cell<u64>>() };
    counter.set(counter.get() + 1);
}
