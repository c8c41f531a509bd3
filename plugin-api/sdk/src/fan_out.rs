//! One I/O becomes several of the devices below, side by side, each with room
//! for pieces and a buffer of its own. The parent cannot be completed before
//! the last child: its token is given out only then.
//!
//! Room of a fan-out behind the parent's own state:
//! `head | { child's head | pieces | child I/O | its driver context } * count`
// UNSAFETY: builds and follows raw child I/Os inside the parents it holds tokens of.

use std::ffi::c_void;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

use tenon_abi::{BDEV_IO_SIZE, BdevIo, IoFlags, IoStatus, IoVec};

use crate::Buffer;
use crate::base::BaseChannel;
use crate::channel::{Channel, Children, channel_of};
use crate::forward::{ChildRequest, fill_child, refuse};
use crate::io::Io;
use crate::op::BdevOp;

/// A parent whose children are being submitted or in flight.
pub struct Fan<'a, C: Channel> {
    parent: *mut BdevIo,
    life: PhantomData<&'a C>,
}

/// A child of a fan-out before it is submitted.
pub struct FanRequest<'a> {
    request: ChildRequest<'a>,
    buffer: &'a mut Option<Buffer>,
}

/// What became of a child.
#[derive(Debug)]
pub struct ChildDone {
    /// Which child.
    pub index: u32,
    /// Its result.
    pub status: IoStatus,
    /// Its command-specific result.
    pub cdw0: u32,
    /// The buffer it was given, back.
    pub buffer: Option<Buffer>,
}

impl std::fmt::Debug for Buffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Buffer({} bytes)", self.len())
    }
}

type AllDone<C> = fn(&C, Io<C>);
type OneDone<C> = fn(&C, &mut Fan<'_, C>, ChildDone);

#[repr(C, align(64))]
struct Head<C: Channel> {
    all: AllDone<C>,
    /// Children in flight, and one while children are being submitted.
    pending: u32,
    children: Children,
}

#[repr(C, align(64))]
struct ChildHead<C: Channel> {
    parent: *mut BdevIo,
    done: OneDone<C>,
    index: u32,
    busy: bool,
    buffer: Option<Buffer>,
}

/// Types do not change with `C`: fn pointers and integers only.
struct Sizes;

impl Channel for Sizes {
    type PerIo = ();
    fn submit(&self, io: Io<Self>) {
        io.complete(IoStatus::NOT_SUPPORTED);
    }
}

const HEAD: usize = size_of::<Head<Sizes>>();
const CHILD_HEAD: usize = size_of::<ChildHead<Sizes>>();

/// Room for `count` children with `iovs` pieces each on devices with `deepest` bytes of driver context.
pub(crate) fn fan_area(count: u32, iovs: u32, deepest: u32) -> Children {
    let pieces = (iovs as usize * size_of::<IoVec>()).next_multiple_of(64);
    let stride = CHILD_HEAD + pieces + BDEV_IO_SIZE + deepest as usize;
    // A plain forward must fit as well, and an area too large for the contract is refused when it is attached.
    let bytes = (HEAD + stride * count as usize).max(BDEV_IO_SIZE + deepest as usize);
    Children {
        count,
        iovs,
        stride: u32::try_from(stride).unwrap_or(u32::MAX),
        bytes: u32::try_from(bytes).unwrap_or(u32::MAX),
    }
}

impl<C: Channel> Io<C> {
    /// Submits children from inside `start`, and calls `all` with the I/O when every child has completed, also
    /// those that a child's completion submitted. [`Channel::children`] must be a [`Children::fan_out`].
    ///
    /// Functions are plain `fn`: the channel and [`Channel::PerIo`] hold what they need. Memory cannot be lent
    /// through a fan-out.
    ///
    /// # Panics
    /// If the channel has no room for a fan-out: a mistake in [`Channel::children`].
    pub fn fan_out(self, start: impl FnOnce(&mut Fan<'_, C>), all: AllDone<C>) {
        let parent = self.as_raw();
        // SAFETY: the token's holder owns the parent, whose channel and that one's object live while it is
        // outstanding.
        let (children, room) =
            unsafe { (channel_of::<C>((*parent).ch).children(), (*(*parent).ch).io_ctx_size as usize) };
        let needed = Self::AREA + HEAD + children.stride as usize * children.count as usize;
        assert!(children.count > 0 && needed <= room, "no room for {} children", children.count);
        let _ = self.into_raw();
        let mut fan = Fan { parent, life: PhantomData };
        // SAFETY: there is room; what it held before means nothing.
        unsafe {
            fan.head().write(Head { all, pending: 1, children });
            for index in 0..children.count {
                let head = fan.child_head(index);
                (&raw mut (*head).busy).write(false);
            }
        }
        start(&mut fan);
        // SAFETY: the count of the submitting phase was taken above and is given back once.
        unsafe { finish_one::<C>(parent) };
    }
}

impl<C: Channel> Fan<'_, C> {
    /// What is to be done.
    #[must_use]
    pub fn op(&self) -> BdevOp {
        self.io().op()
    }

    /// First block of the parent.
    #[must_use]
    pub fn offset_blocks(&self) -> u64 {
        self.io().offset_blocks()
    }

    /// Number of blocks of the parent.
    #[must_use]
    pub fn num_blocks(&self) -> u64 {
        self.io().num_blocks()
    }

    /// The parent, to be looked at. Its payload may be written to by children in flight.
    pub fn io(&self) -> &Io<C> {
        // SAFETY: `Io` is a transparent pointer; the parent stays ours until `all`.
        unsafe { &*(&raw const self.parent).cast::<Io<C>>() }
    }

    /// Fills the parent's payload, e.g. with what children have read into buffers; there are no pieces if the
    /// operation does not fill its payload. A child in flight that uses the same bytes races with this.
    pub fn fill(&mut self, work: impl FnOnce(&mut dyn Iterator<Item = &mut [u8]>)) {
        // SAFETY: the parent is ours until `all`; the token is not dropped, so it does not complete.
        let mut io = std::mem::ManuallyDrop::new(unsafe { Io::<C>::from_raw(self.parent) });
        work(&mut io.buffers_mut());
    }

    /// The parent's state of type [`Channel::PerIo`].
    #[must_use]
    pub fn context(&self) -> &C::PerIo {
        self.io().context()
    }

    /// The parent's state, to be changed.
    #[must_use]
    pub fn context_mut(&mut self) -> &mut C::PerIo {
        // SAFETY: as in `Io::context_mut`; `&mut self` is the only borrow of the state.
        unsafe { &mut *tenon_abi::io_context(self.parent).cast::<C::PerIo>() }
    }

    /// Submits child `index` to `base`: a copy of the parent that `shape` has changed. `done` runs when it has
    /// completed, possibly before this returns; then the index may be used again. A child whose shape does not fit
    /// (see [`ChildRequest::payload_range`]) completes with [`IoStatus::INVALID`].
    ///
    /// # Panics
    /// If `index` is not below the count of [`Children::fan_out`], is in flight, or `base` is deeper than the
    /// bases given there.
    pub fn child(
        &mut self,
        index: u32,
        base: &BaseChannel,
        shape: impl FnOnce(&mut FanRequest<'_>),
        done: OneDone<C>,
    ) {
        // SAFETY: `fan_out` wrote the head, found room for `count` children and initialised `busy` of each.
        unsafe {
            let Children { count, iovs, stride, .. } = (*self.head()).children;
            assert!(index < count, "child {index} of {count}");
            let head = self.child_head(index);
            assert!(!(*head).busy, "child {index} is in flight");
            let pieces = head.byte_add(CHILD_HEAD).cast::<IoVec>();
            let offset = CHILD_HEAD + (iovs as usize * size_of::<IoVec>()).next_multiple_of(64);
            let depth = offset + BDEV_IO_SIZE + base.io_context_size() as usize;
            assert!(depth <= stride as usize, "the base of child {index} is deeper than `children` says");
            let child = head.byte_add(offset).cast::<BdevIo>();
            // No buffer is left in the head of an idle child: `one_done` took it.
            head.write(ChildHead { parent: self.parent, done, index, busy: true, buffer: None });
            fill_child(child, self.parent, IoFlags::LEND);
            (*child).done = Some(one_done::<C>);
            (*child).done_arg = head.cast::<c_void>();
            (*self.head()).pending += 1;
            let request = ChildRequest::new(child, self.parent, pieces, iovs as usize);
            let mut request = FanRequest { request, buffer: &mut (*head).buffer };
            shape(&mut request);
            if request.request.fits() {
                tenon_abi::submit(base.as_raw(), child);
            } else {
                refuse(child);
            }
        }
    }

    fn head(&self) -> *mut Head<C> {
        // SAFETY: `fan_out` found room for the head.
        unsafe { self.parent.byte_add(BDEV_IO_SIZE + Io::<C>::AREA).cast::<Head<C>>() }
    }

    /// # Safety
    /// The head is written, and `index` is below its count.
    unsafe fn child_head(&self, index: u32) -> *mut ChildHead<C> {
        // SAFETY: as the caller promises.
        unsafe {
            let stride = (*self.head()).children.stride as usize;
            self.head().byte_add(HEAD + stride * index as usize).cast::<ChildHead<C>>()
        }
    }
}

impl FanRequest<'_> {
    /// Uses the first `len` bytes of `buffer`; it comes back in [`ChildDone`].
    ///
    /// # Panics
    /// If the buffer is shorter than `len`.
    pub fn give_buffer(&mut self, buffer: Buffer, len: usize) {
        assert!(len <= buffer.len(), "{len} bytes of a buffer of {}", buffer.len());
        let memory = self.buffer.insert(buffer).as_ptr();
        // SAFETY: the child owns the buffer until it is done, and it has `len` bytes.
        unsafe { self.request.payload_memory(NonNull::new_unchecked(memory), len) };
    }
}

impl<'a> Deref for FanRequest<'a> {
    type Target = ChildRequest<'a>;

    fn deref(&self) -> &ChildRequest<'a> {
        &self.request
    }
}

impl<'a> DerefMut for FanRequest<'a> {
    fn deref_mut(&mut self) -> &mut ChildRequest<'a> {
        &mut self.request
    }
}

/// # Safety
/// Completion of a child that `Fan::child` submitted, with its head as the argument.
unsafe extern "C" fn one_done<C: Channel>(child: *mut BdevIo, head: *mut c_void) {
    let head = head.cast::<ChildHead<C>>();
    // SAFETY: the parent stayed ours while the child was in flight, so the head, the channel and its object exist.
    unsafe {
        let parent = (*head).parent;
        let outcome = ChildDone {
            index: (*head).index,
            status: (*child).status,
            cdw0: (*child).cdw0,
            buffer: (*head).buffer.take(),
        };
        (*head).busy = false;
        let done = (*head).done;
        let mut fan = Fan { parent, life: PhantomData };
        done(channel_of::<C>((*parent).ch), &mut fan, outcome);
        finish_one::<C>(parent);
    }
}

/// Counts one down; the last one gives the token to `all`.
///
/// # Safety
/// Called once for each count taken.
unsafe fn finish_one<C: Channel>(parent: *mut BdevIo) {
    let fan = Fan::<C> { parent, life: PhantomData };
    // SAFETY: the caller's count keeps the head and the parent until here.
    unsafe {
        let head = fan.head();
        (*head).pending -= 1;
        if (*head).pending == 0 {
            let all = (*head).all;
            all(channel_of::<C>((*parent).ch), Io::from_raw(parent));
        }
    }
}
