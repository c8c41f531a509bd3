//! A channel: one device on one reactor, where I/O arrives. Holds the trait,
//! the table of C functions that leads to it and the small types of its
//! callbacks. How an I/O goes on to base devices is in `forward.rs` and
//! `fan_out.rs`.
// UNSAFETY: receives raw pointers from the host on the data path.

use std::ffi::c_void;
use std::marker::PhantomData;
use std::rc::Rc;

use tenon_abi::{BDEV_IO_SIZE, BdevIo, IoChannel, IoFlags, IoOpsV1, IoStatus, Op};

use crate::base::BaseChannel;
use crate::fan_out::fan_area;
use crate::io::Io;
use crate::lend::Lender;
use crate::op::BdevOp;
use crate::{Error, errno};

/// The data path of a device on one reactor. All callbacks run on that reactor and must not block, allocate
/// or lock; a panic aborts the process.
///
/// An I/O may be completed from inside [`Channel::submit`], and completing it may call `submit` again.
pub trait Channel: Sized + 'static {
    /// State the module keeps per I/O, in memory the consumer provides: `default()` before every submit, dropped
    /// on completion; `()` if none. Aligned to 64 bytes at most.
    type PerIo: Default + 'static;

    /// Starts one I/O: complete it, forward it or queue it.
    fn submit(&self, io: Io<Self>);

    /// Starts many I/Os, e.g. with one system call. The default submits each.
    fn submit_batch(&self, batch: IoBatch<'_, Self>) {
        for io in batch {
            self.submit(io);
        }
    }

    /// The device below, for a channel that forwards every I/O to one device; gives [`Channel::children`],
    /// [`Channel::abort`] and [`Channel::release`] their defaults.
    fn base(&self) -> Option<&BaseChannel> {
        None
    }

    /// Room for child I/Os, asked once when the channel is opened and at every fan-out; it must not change.
    fn children(&self) -> Children {
        self.base().map_or(Children::NONE, Children::one)
    }

    /// Finish `victim` early if it is here: take it out of the queue and complete it, or pass the request on. True
    /// if it was found. The I/O still completes exactly once, with any status.
    fn abort(&self, victim: Victim) -> bool {
        self.base().is_some_and(|base| victim.abort_child::<Self>(base))
    }

    /// What lends memory to the readers of this channel.
    fn lender(&self) -> Option<&Lender> {
        None
    }

    /// The consumer returns lent memory. The default gives it back to [`Channel::lender`] or to
    /// [`Channel::base`].
    fn release(&self, io: Released<'_, Self>) {
        match (self.lender(), self.base()) {
            (Some(lender), _) => lender.returned(),
            (None, Some(base)) => io.release_child(base),
            (None, None) => {}
        }
    }
}

/// How much room child I/Os need in the driver context of their parent.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Children {
    pub(crate) count: u32,
    pub(crate) iovs: u32,
    /// Bytes from one child's room to the next; of the only one if not a fan-out.
    pub(crate) stride: u32,
    /// All of it in bytes, a multiple of 64.
    pub(crate) bytes: u32,
}

impl Children {
    /// The channel forwards nothing.
    pub const NONE: Children = Children { count: 0, iovs: 0, stride: 0, bytes: 0 };

    /// One child at a time, see [`Io::forward`].
    #[must_use]
    pub fn one(base: &BaseChannel) -> Children {
        let bytes = BDEV_IO_SIZE as u32 + base.io_context_size();
        Children { count: 1, iovs: 0, stride: bytes, bytes }
    }

    /// Up to `count` children side by side, see [`Io::fan_out`], each on any of `bases` and with up to `iovs`
    /// pieces of its own. Has room for [`Io::forward`] as well.
    pub fn fan_out<'a>(count: u32, iovs: u32, bases: impl IntoIterator<Item = &'a BaseChannel>) -> Children {
        let deepest = bases.into_iter().map(BaseChannel::io_context_size).max().unwrap_or(0);
        fan_area(count, iovs, deepest)
    }
}

/// I/Os that were submitted together; what is not taken out completes with [`IoStatus::INTERNAL`].
#[must_use = "every I/O of a batch must be taken out"]
pub struct IoBatch<'a, C: Channel> {
    rest: &'a [*mut BdevIo],
    channel: PhantomData<*const C>,
}

/// An I/O that is still in its batch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Upcoming {
    /// What is to be done.
    pub op: BdevOp,
    /// Flags.
    pub flags: IoFlags,
    /// First block.
    pub offset_blocks: u64,
    /// Number of blocks.
    pub num_blocks: u64,
}

/// An I/O that is to be aborted: a name to look for, since it may have completed meanwhile.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Victim(*mut BdevIo);

/// A completed READ whose lent memory comes back.
pub struct Released<'a, C: Channel> {
    raw: *mut BdevIo,
    channel: PhantomData<&'a C>,
}

impl<C: Channel> IoBatch<'_, C> {
    /// I/Os left in it.
    #[must_use]
    pub fn len(&self) -> usize {
        self.rest.len()
    }

    /// True if none is left.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// What comes next, without taking it out: for work that pays if it is begun early, such as
    /// [`crate::SharedBuf::fetch_ahead`]. `None` at the end, and for an operation this version does not know.
    #[inline]
    #[must_use]
    pub fn upcoming(&self) -> Option<Upcoming> {
        let next = *self.rest.first()?;
        // SAFETY: the host gave the batch; an I/O that was not taken out has not been completed.
        let next = unsafe { &*next };
        let op = BdevOp::from_abi(next.op)?;
        let (offset_blocks, num_blocks) = (next.offset_blocks, next.num_blocks);
        Some(Upcoming { op, flags: next.flags, offset_blocks, num_blocks })
    }
}

impl<C: Channel> Iterator for IoBatch<'_, C> {
    type Item = Io<C>;

    #[inline]
    fn next(&mut self) -> Option<Io<C>> {
        while let Some((first, rest)) = self.rest.split_first() {
            self.rest = rest;
            // SAFETY: the host submits each I/O of the array to a channel `C`; the slice gives each out once.
            if let Some(io) = unsafe { accept::<C>(*first) } {
                return Some(io);
            }
        }
        None
    }
}

impl<C: Channel> Drop for IoBatch<'_, C> {
    fn drop(&mut self) {
        // An `Io` that is dropped completes with INTERNAL and is counted.
        self.for_each(drop);
    }
}

impl Victim {
    /// True if the victim is this I/O, for a channel that keeps I/Os in flight in a table of its own.
    #[inline]
    #[must_use]
    pub fn is_io<C: Channel>(self, io: &Io<C>) -> bool {
        self.is(io.as_raw())
    }

    #[inline]
    pub(crate) fn is(self, io: *mut BdevIo) -> bool {
        self.0 == io
    }

    /// Asks the device below to abort the child of an I/O that was forwarded with [`Io::forward`] or
    /// [`Io::pass`]. Only for an I/O that is in flight below: one that waits in a queue of this channel is taken
    /// from there instead.
    #[must_use]
    pub fn abort_child<C: Channel>(self, base: &BaseChannel) -> bool {
        // The child is only a name as well: where it would be.
        let child = self.0.wrapping_byte_add(BDEV_IO_SIZE + Io::<C>::AREA);
        base.abort(child)
    }
}

impl<C: Channel> Released<'_, C> {
    /// Returns the memory to the device below that lent it to [`Io::forward`] or [`Io::pass`].
    pub fn release_child(&self, base: &BaseChannel) {
        // SAFETY: the child completed with lent memory on this base, and its parent kept it since.
        unsafe { base.release(child_of::<C>(self.raw)) };
    }
}

/// Where the only child of a parent on a channel `C` is.
///
/// # Safety
/// `parent` is an I/O of a channel `C` with room for a child.
#[inline(always)]
pub(crate) unsafe fn child_of<C: Channel>(parent: *mut BdevIo) -> *mut BdevIo {
    // SAFETY: as the caller promises, the context reaches behind `AREA`.
    unsafe { parent.byte_add(BDEV_IO_SIZE + Io::<C>::AREA) }
}

/// Takes an I/O from the host; one of an unknown operation is answered at once.
///
/// # Safety
/// `io` was just submitted to a channel whose context is a `C`.
#[inline(always)]
unsafe fn accept<C: Channel>(io: *mut BdevIo) -> Option<Io<C>> {
    // SAFETY: as the caller promises; the consumer provided a driver context of the size this channel asked for,
    // whose content is undefined, so writing it drops nothing.
    unsafe {
        if (*io).op.0 >= Op::COUNT {
            tenon_abi::complete(io, IoStatus::NOT_SUPPORTED);
            return None;
        }
        if size_of::<C::PerIo>() > 0 {
            tenon_abi::io_context(io).cast::<C::PerIo>().write(C::PerIo::default());
        }
        Some(Io::from_raw(io))
    }
}

/// The C functions of a channel.
struct Table<C>(PhantomData<C>);

impl<C: Channel> Table<C> {
    const OPS: IoOpsV1 = IoOpsV1 {
        size: size_of::<IoOpsV1>() as u32,
        flags: 0,
        submit: submit::<C>,
        submit_batch: Some(submit_batch::<C>),
        abort: Some(abort::<C>),
        release: Some(release::<C>),
    };
}

/// Gives the host's channel `ch` to `channel`.
///
/// # Safety
/// `ch` is the channel of a `channel_create` under way.
pub(crate) unsafe fn attach<C: Channel>(ch: *mut IoChannel, channel: Rc<C>) -> Result<(), Error> {
    let bytes = Io::<C>::AREA as u64 + u64::from(channel.children().bytes);
    let size = u32::try_from(bytes)
        .map_err(|_| Error::new(errno::ERANGE, format!("per-i/o state of {bytes} bytes")))?;
    // SAFETY: the host lets the module set these fields now.
    unsafe {
        (*ch).ops = &const { Table::<C>::OPS };
        (*ch).ctx = Rc::into_raw(channel).cast_mut().cast::<c_void>();
        (*ch).io_ctx_size = size;
    }
    Ok(())
}

/// Takes back what [`attach`] gave.
///
/// # Safety
/// `ch` was attached to a `C`, has no I/O outstanding, and gets no other call.
pub(crate) unsafe fn detach<C: Channel>(ch: *mut IoChannel) -> Rc<C> {
    // SAFETY: `attach` leaked this reference, and it is taken back once.
    unsafe { Rc::from_raw((*ch).ctx.cast_const().cast::<C>()) }
}

/// The channel object behind the host's channel.
///
/// # Safety
/// `ch` is attached to a `C` for as long as `'a`.
#[inline(always)]
pub(crate) unsafe fn channel_of<'a, C: Channel>(ch: *mut IoChannel) -> &'a C {
    // SAFETY: the reference that `attach` leaked lives until `detach`.
    unsafe { &*(*ch).ctx.cast_const().cast::<C>() }
}

unsafe extern "C" fn submit<C: Channel>(ch: *mut IoChannel, io: *mut BdevIo) {
    // SAFETY: the host calls an attached channel with an I/O submitted to it.
    unsafe {
        if let Some(io) = accept::<C>(io) {
            channel_of::<C>(ch).submit(io);
        }
    }
}

unsafe extern "C" fn submit_batch<C: Channel>(ch: *mut IoChannel, ios: *const *mut BdevIo, count: u32) {
    if count == 0 {
        return;
    }
    // SAFETY: the host calls an attached channel with an array of `count` I/Os submitted to it.
    unsafe {
        let rest = std::slice::from_raw_parts(ios, count as usize);
        channel_of::<C>(ch).submit_batch(IoBatch { rest, channel: PhantomData });
    }
}

unsafe extern "C" fn abort<C: Channel>(ch: *mut IoChannel, victim: *mut BdevIo) -> i32 {
    // SAFETY: the host calls an attached channel.
    let found = unsafe { channel_of::<C>(ch) }.abort(Victim(victim));
    if found { 0 } else { errno::ENOENT }
}

unsafe extern "C" fn release<C: Channel>(ch: *mut IoChannel, io: *mut BdevIo) {
    // SAFETY: the host calls an attached channel with an I/O it completed with lent memory.
    unsafe { channel_of::<C>(ch) }.release(Released { raw: io, channel: PhantomData });
}
