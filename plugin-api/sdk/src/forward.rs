//! One I/O becomes one I/O of the device below: the child lives in its
//! parent's driver context, so a stack of devices allocates nothing.
//!
//! The parent's `link` holds the base channel meanwhile, if its child may bring
//! lent memory: whoever holds an I/O owns its link, and the filter holds the
//! parent until the child is done.
// UNSAFETY: builds and follows raw child I/Os inside the parents it holds tokens of.

use std::ffi::c_void;
use std::marker::PhantomData;
use std::mem::ManuallyDrop;
use std::ptr::NonNull;

use tenon_abi::{BDEV_IO_SIZE, BdevIo, IoChannel, IoFlags, IoStatus, IoVec};

use crate::base::BaseChannel;
use crate::channel::{Channel, channel_of, child_of};
use crate::io::Io;
use crate::op::BdevOp;

/// A parent whose child has completed; complete it, or take it back with [`Forwarded::into_io`] to try again.
#[must_use = "the parent must be completed or taken back"]
pub struct Forwarded<C: Channel> {
    io: ManuallyDrop<Io<C>>,
}

/// The child before it is submitted: a copy of the parent, to be changed.
pub struct ChildRequest<'a> {
    child: *mut BdevIo,
    parent: *const BdevIo,
    /// Room for pieces of its own.
    iovs: *mut IoVec,
    capacity: usize,
    fits: bool,
    life: PhantomData<&'a mut BdevIo>,
}

/// A range of a payload that has more pieces than the child has room for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TooManyPieces;

impl<C: Channel> Io<C> {
    /// Forwards the I/O unchanged; it completes like its child: status, result, lent memory.
    #[inline]
    pub fn pass(self, base: &BaseChannel) {
        self.forward(base, |_, io| io.complete());
    }

    /// Forwards the I/O unchanged and calls `done` with it when its child has completed. `done` must not capture
    /// anything, which is checked when the plugin is built; the channel and [`Channel::PerIo`] hold what it needs.
    #[inline]
    pub fn forward<F>(self, base: &BaseChannel, done: F)
    where
        F: Fn(&C, Forwarded<C>) + Copy + 'static,
    {
        self.forward_with(base, |_| {}, done);
    }

    /// As [`Io::forward`], with a child that `shape` has changed. If the shape does not fit (see
    /// [`ChildRequest::payload_range`]), the child completes with [`IoStatus::INVALID`] instead of going down.
    #[inline]
    pub fn forward_with<F>(self, base: &BaseChannel, shape: impl FnOnce(&mut ChildRequest<'_>), done: F)
    where
        F: Fn(&C, Forwarded<C>) + Copy + 'static,
    {
        const { assert!(size_of::<F>() == 0, "the completion of a forwarded I/O must not capture anything") };
        let _ = done;
        let parent = self.as_raw();
        // SAFETY: the token's holder owns the parent, whose channel lives while it is outstanding.
        let room = unsafe { (*(*parent).ch).io_ctx_size as usize };
        let _ = self.into_raw();
        if Self::AREA + BDEV_IO_SIZE + base.io_context_size() as usize > room {
            // SAFETY: the token was given up for it in the line above.
            return unsafe { no_room::<C>(parent) };
        }
        // SAFETY: there is room for the child behind the parent, which stays ours until the child is done.
        unsafe {
            let child = child_of::<C>(parent);
            fill_child(child, parent, IoFlags::NONE);
            (*child).done = Some(child_done::<C, F>);
            (*child).done_arg = parent.cast::<c_void>();
            let mut request = ChildRequest::new(child, parent, &raw mut (*child).inline_iov, 1);
            shape(&mut request);
            if (*child).flags.0 & IoFlags::LEND.0 != 0 {
                (*parent).link = base.as_raw().cast::<BdevIo>();
            }
            if request.fits {
                tenon_abi::submit(base.as_raw(), child);
            } else {
                refuse(child);
            }
        }
    }
}

impl<C: Channel> Forwarded<C> {
    /// Result of the child.
    #[inline(always)]
    #[must_use]
    pub fn status(&self) -> IoStatus {
        // SAFETY: the child completed, so it is ours again.
        unsafe { (*self.child()).status }
    }

    /// Command-specific result of the child.
    #[inline]
    #[must_use]
    pub fn cdw0(&self) -> u32 {
        // SAFETY: as in `status`.
        unsafe { (*self.child()).cdw0 }
    }

    /// The parent.
    #[inline]
    pub fn io(&self) -> &Io<C> {
        &self.io
    }

    /// The parent's state of type [`Channel::PerIo`], to be changed.
    #[inline]
    #[must_use]
    pub fn context_mut(&mut self) -> &mut C::PerIo {
        self.io.context_mut()
    }

    /// Completes the parent like its child: status, result, SEEK answer, lent memory.
    #[inline(always)]
    pub fn complete(self) {
        let (io, status) = self.into_result();
        io.complete(status);
    }

    /// Takes the parent with the child's result in it (result, SEEK answer, lent memory) and the status to complete
    /// it with, to do so later. It must complete with that status: memory that was lent is the consumer's now.
    #[inline(always)]
    pub fn into_result(self) -> (Io<C>, IoStatus) {
        let (child, parent) = (self.child(), self.io.as_raw());
        // SAFETY: the child completed and the token makes the parent ours; lent memory stays with the child, which
        // stays where it is until `Channel::release`.
        unsafe {
            (*parent).cdw0 = (*child).cdw0;
            if (*child).flags.0 & IoFlags::LENT.0 != 0 {
                (*parent).iovs = (*child).iovs;
                (*parent).iovcnt = (*child).iovcnt;
                (*parent).flags.0 |= IoFlags::LENT.0;
            }
            if matches!(self.io.op(), BdevOp::SeekHole | BdevOp::SeekData) {
                (*parent).offset_blocks = (*child).offset_blocks;
            }
            let status = (*child).status;
            (self.take(), status)
        }
    }

    /// Completes the parent with another status; memory the child was lent goes back.
    #[inline]
    pub fn complete_with(self, status: IoStatus) {
        self.into_io().complete(status);
    }

    /// Takes the parent back, e.g. to forward it again; memory the child was lent goes back.
    #[inline]
    pub fn into_io(self) -> Io<C> {
        self.return_loan();
        self.take()
    }

    #[inline(always)]
    fn take(self) -> Io<C> {
        let mut this = ManuallyDrop::new(self);
        // SAFETY: `this` is not used again.
        unsafe { ManuallyDrop::take(&mut this.io) }
    }

    #[inline(always)]
    fn return_loan(&self) {
        let (child, parent) = (self.child(), self.io.as_raw());
        // SAFETY: the child completed; `link` is the channel it was submitted on, see the head of this file: memory is
        // lent to who asks for it only.
        unsafe {
            if (*child).flags.0 & IoFlags::LENT.0 != 0 {
                crate::base::release_on((*parent).link.cast::<IoChannel>(), child);
            }
        }
    }

    #[inline(always)]
    fn child(&self) -> *mut BdevIo {
        // SAFETY: `forward_with` found room for a child.
        unsafe { child_of::<C>(self.io.as_raw()) }
    }
}

impl<C: Channel> Drop for Forwarded<C> {
    fn drop(&mut self) {
        self.return_loan();
        // SAFETY: the field is not used again. Dropping the token completes it with INTERNAL and counts it.
        unsafe { ManuallyDrop::drop(&mut self.io) };
    }
}

impl ChildRequest<'_> {
    /// Wraps a child that is a copy of its parent.
    ///
    /// # Safety
    /// Both are valid and the child is ours to change; `iovs` has room for `capacity` pieces that live as long as
    /// the child is in flight.
    #[inline(always)]
    pub(crate) unsafe fn new(
        child: *mut BdevIo,
        parent: *const BdevIo,
        iovs: *mut IoVec,
        capacity: usize,
    ) -> Self {
        ChildRequest { child, parent, iovs, capacity, fits: true, life: PhantomData }
    }

    /// True unless a change was refused.
    pub(crate) fn fits(&self) -> bool {
        self.fits
    }

    /// Sets the operation.
    #[inline]
    pub fn set_op(&mut self, op: BdevOp) {
        self.fields().op = op.to_abi();
    }

    /// First block.
    #[inline]
    #[must_use]
    pub fn offset_blocks(&self) -> u64 {
        // SAFETY: `new` promises a valid child.
        unsafe { (*self.child).offset_blocks }
    }

    /// Sets the first block.
    #[inline]
    pub fn set_offset_blocks(&mut self, offset_blocks: u64) {
        self.fields().offset_blocks = offset_blocks;
    }

    /// Number of blocks.
    #[inline]
    #[must_use]
    pub fn num_blocks(&self) -> u64 {
        // SAFETY: `new` promises a valid child.
        unsafe { (*self.child).num_blocks }
    }

    /// Sets the number of blocks; fit the payload to it with [`ChildRequest::payload_range`].
    #[inline]
    pub fn set_num_blocks(&mut self, num_blocks: u64) {
        self.fields().num_blocks = num_blocks;
    }

    /// Sets the flags. [`IoFlags::LENT`] is the module's below and is left out.
    #[inline]
    pub fn set_flags(&mut self, flags: IoFlags) {
        self.fields().flags = IoFlags(flags.0 & !IoFlags::LENT.0);
    }

    /// Leaves out payload and metadata, for operations that have none.
    #[inline]
    pub fn clear_payload(&mut self) {
        self.set_pieces(std::ptr::null_mut(), 0);
    }

    /// Uses `len` bytes of the parent's payload from `byte_offset`.
    ///
    /// # Errors
    /// If the range is not inside the payload or has more pieces than the child has room for: one for
    /// [`Io::forward_with`], what [`crate::Children::fan_out`] says for a fan-out. The child then completes with
    /// [`IoStatus::INVALID`] without going down.
    pub fn payload_range(&mut self, byte_offset: u64, len: u64) -> Result<(), TooManyPieces> {
        let (mut skip, mut left, mut used) = (byte_offset, len, 0);
        // SAFETY: `new` promises a valid parent, whose consumer keeps the pieces valid until its completion.
        let pieces = unsafe {
            let parent = &*self.parent;
            if parent.iovcnt == 0 || parent.iovs.is_null() {
                &[]
            } else {
                std::slice::from_raw_parts(parent.iovs, parent.iovcnt as usize)
            }
        };
        for piece in pieces {
            let size = piece.len as u64;
            if left == 0 || skip >= size {
                skip = skip.saturating_sub(size);
                continue;
            }
            if used == self.capacity {
                break;
            }
            let take = left.min(size - skip);
            // SAFETY: `used` is inside the room for pieces; `skip + take` is inside the piece.
            unsafe {
                let base = piece.base.byte_add(skip as usize);
                self.iovs.add(used).write(IoVec { base, len: take as usize });
            }
            (skip, left, used) = (0, left - take, used + 1);
        }
        self.set_pieces(self.iovs, used);
        self.fits &= left == 0;
        if left == 0 { Ok(()) } else { Err(TooManyPieces) }
    }

    /// Uses one piece of memory.
    ///
    /// # Safety
    /// `base` has `len` bytes for as long as the child is in flight, fit for its operation.
    pub(crate) unsafe fn payload_memory(&mut self, base: NonNull<u8>, len: usize) {
        if self.capacity == 0 {
            self.fits = false;
            return;
        }
        // SAFETY: there is room for one piece.
        unsafe { self.iovs.write(IoVec { base: base.as_ptr().cast::<c_void>(), len }) };
        self.set_pieces(self.iovs, 1);
    }

    fn set_pieces(&mut self, iovs: *mut IoVec, count: usize) {
        let fields = self.fields();
        fields.iovs = iovs;
        fields.iovcnt = count as u32;
        // Metadata of the parent does not match another payload.
        fields.md = std::ptr::null_mut();
    }

    #[inline(always)]
    fn fields(&mut self) -> &mut BdevIo {
        // SAFETY: `new` promises a valid child that is ours to change.
        unsafe { &mut *self.child }
    }
}

/// Makes `child` a copy of `parent`, idle and without a completion, lent memory and the flags `cleared`. Flags go before
/// the head is written: cleared in it they would make the gate's look at it wait for every store before.
///
/// # Safety
/// Both are valid; the child is not in flight and its old content means nothing.
#[inline(always)]
pub(crate) unsafe fn fill_child(child: *mut BdevIo, parent: *const BdevIo, cleared: IoFlags) {
    // SAFETY: as the caller promises. Fields of the host, of submit and of the holder's link are left alone.
    unsafe {
        let flags = IoFlags((*parent).flags.0 & !(IoFlags::LENT.0 | cleared.0));
        BdevIo::set_head(child, (*parent).op, flags, (*parent).iovcnt);
        (*child).iovs = (*parent).iovs;
        // One by one: the compiler would copy both at once, and a load of two words that were stored one by one a
        // moment ago has to wait until they have reached the cache.
        (*child).offset_blocks = (&raw const (*parent).offset_blocks).read_volatile();
        (*child).num_blocks = (&raw const (*parent).num_blocks).read_volatile();
        (*child).cdw0 = 0;
        (*child).md = (*parent).md;
        (*child).ext = (*parent).ext;
    }
}

/// Completes a child that never went down.
///
/// # Safety
/// `child` is filled, with its completion.
#[cold]
pub(crate) unsafe fn refuse(child: *mut BdevIo) {
    // SAFETY: as the caller promises.
    unsafe {
        (*child).status = IoStatus::INVALID;
        if let Some(done) = (*child).done {
            done(child, (*child).done_arg);
        }
    }
}

/// Of the C convention, which says that it does not unwind: forwarding ends with it and needs no stack frame.
///
/// # Safety
/// `io` was submitted to a channel `C`, is not completed, and nobody holds its token.
#[cold]
#[inline(never)]
unsafe extern "C" fn no_room<C: Channel>(io: *mut BdevIo) {
    log::error!("no room for a child: `children` does not match the base device");
    // SAFETY: as the caller promises.
    unsafe { Io::<C>::from_raw(io) }.complete(IoStatus::INTERNAL);
}

/// # Safety
/// Completion of a child that `forward_with` submitted, with its parent as the argument.
unsafe extern "C" fn child_done<C, F>(_child: *mut BdevIo, parent: *mut c_void)
where
    C: Channel,
    F: Fn(&C, Forwarded<C>) + Copy + 'static,
{
    let parent = parent.cast::<BdevIo>();
    // SAFETY: the parent stayed ours while the child was in flight, so its channel and that one's object exist, and
    // this is the only token. A value of `F` existed in `forward_with`; it has no bytes and is `Copy`, so another
    // one is made of nothing.
    unsafe {
        let channel = channel_of::<C>((*parent).ch);
        let done = NonNull::<F>::dangling().as_ref();
        done(channel, Forwarded { io: ManuallyDrop::new(Io::from_raw(parent)) });
    }
}
