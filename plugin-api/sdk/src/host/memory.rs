//! Memory that devices may access: owned blocks, blocks shared by reactors,
//! buffers of the calling reactor's pool, and news of the regions behind them.
// UNSAFETY: the host hands out raw memory.

use std::ffi::c_void;
use std::ptr::NonNull;
use std::rc::Rc;

use tenon_abi::{BufferEvent, MemoryFn, MemoryRegion};

use crate::store::{are_past_cache, block_came, block_went, is_past_cache, settle, store_past_cache};
use crate::{Error, Host, bridge};

/// A block of zeroed memory that devices may access; freed when dropped.
pub struct DmaBuf {
    host: Host,
    ptr: NonNull<u8>,
    len: usize,
    align: usize,
}

// SAFETY: the block is owned alone, and the host allows `alloc` and `free` on any thread.
unsafe impl Send for DmaBuf {}
// SAFETY: shared access only reads.
unsafe impl Sync for DmaBuf {}

/// A block of memory that several reactors read and write at once, as they do a disk's medium.
///
/// Bytes are only copied in and out; I/Os that race for the same bytes leave either content, as on any disk.
pub struct SharedBuf {
    block: DmaBuf,
    /// It is too large for the processor's cache.
    is_past_cache: bool,
}

/// A 4096-aligned buffer of the calling reactor's pool; returned when dropped.
pub struct Buffer {
    host: Host,
    ptr: NonNull<u8>,
    len: usize,
}

/// News of memory, see [`Host::watch_memory`].
#[derive(Clone, Copy, Debug)]
pub enum MemoryChange {
    /// New memory: register it with devices before the call returns.
    Added(MemoryRegion),
    /// It will be unmapped after the call: no device may access it any longer.
    Removed(MemoryRegion),
}

/// A subscription to news of memory; ends when dropped.
#[must_use = "the news end when this is dropped"]
pub struct MemoryWatch {
    host: Host,
    subscription: u64,
    closure: *const c_void,
    release: unsafe fn(*const c_void),
}

impl Host {
    /// Allocates zeroed memory that devices may access. `align` is a power of two, `numa_node` -1 for any.
    /// Any thread; not for the data path.
    ///
    /// # Errors
    /// `-EINVAL` for a length of 0 or a wrong alignment, `-ENOMEM` if there is none.
    pub fn alloc(&self, len: usize, align: usize, numa_node: i32) -> Result<DmaBuf, Error> {
        if len == 0 || !align.is_power_of_two() {
            return Err(Error::invalid(format!("cannot allocate {len} bytes aligned to {align}")));
        }
        // SAFETY: a function of the host's table, callable on any thread.
        let ptr = unsafe { (self.api.alloc)(len, align, numa_node) };
        let ptr = NonNull::new(ptr.cast::<u8>())
            .ok_or_else(|| Error::no_memory(format!("no memory for {len} bytes")))?;
        Ok(DmaBuf { host: *self, ptr, len, align })
    }

    /// A buffer of at least `len` bytes from the calling reactor's pool; `None` if none is left. Its content is
    /// whatever the last user left. On a reactor.
    #[inline]
    #[must_use]
    pub fn buffer(&self, len: usize) -> Option<Buffer> {
        // SAFETY: a function of the host's table; off a reactor it gives null.
        let ptr = NonNull::new(unsafe { (self.api.buffer_get)(len) })?;
        Some(Buffer { host: *self, ptr: ptr.cast(), len })
    }

    /// Reports the regions behind the host's memory: now those that exist, later as they come and go.
    ///
    /// # Errors
    /// `-EPERM` off the control thread.
    pub fn watch_memory<F: Fn(MemoryChange) + 'static>(&self, news: F) -> Result<MemoryWatch, Error> {
        let closure = Rc::into_raw(Rc::new(news));
        let mut subscription = 0;
        // SAFETY: `closure` stays valid until `MemoryWatch::drop` has unsubscribed it.
        let code = unsafe {
            (self.api.memory_subscribe)(
                self.me,
                MemoryFn(memory_news::<F>),
                closure.cast_mut().cast::<c_void>(),
                &mut subscription,
            )
        };
        Error::check(code, "cannot watch memory").inspect_err(|_| {
            // SAFETY: the host refused, so nobody else has the closure.
            unsafe { drop_closure::<F>(closure.cast::<c_void>()) };
        })?;
        Ok(MemoryWatch {
            host: *self,
            subscription,
            closure: closure.cast::<c_void>(),
            release: drop_closure::<F>,
        })
    }
}

impl DmaBuf {
    /// Its length in bytes.
    #[must_use]
    #[allow(clippy::len_without_is_empty, reason = "it is never empty")]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Its content.
    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        // SAFETY: `len` bytes, zeroed by the host, ours until dropped, and written only through `&mut self`.
        unsafe { std::slice::from_raw_parts(self.ptr.as_ptr(), self.len) }
    }

    /// Its content, to be changed.
    #[must_use]
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: as in `as_slice`, and `&mut self` is unique.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.as_ptr(), self.len) }
    }

    /// Lets several reactors use it at once.
    #[must_use]
    pub fn share(self) -> SharedBuf {
        block_came(self.len as u64);
        SharedBuf { is_past_cache: is_past_cache(self.len as u64), block: self }
    }

    pub(crate) fn as_ptr(&self) -> *mut u8 {
        self.ptr.as_ptr()
    }
}

impl Drop for DmaBuf {
    fn drop(&mut self) {
        // SAFETY: as allocated, and nobody has a reference any longer.
        unsafe { (self.host.api.free)(self.ptr.as_ptr().cast::<c_void>(), self.len, self.align) }
    }
}

impl Drop for SharedBuf {
    fn drop(&mut self) {
        block_went(self.len());
    }
}

impl SharedBuf {
    /// Its length in bytes.
    #[must_use]
    #[allow(clippy::len_without_is_empty, reason = "it is never empty")]
    pub fn len(&self) -> u64 {
        self.block.len as u64
    }

    /// Copies bytes from `offset` to `into`; false, and nothing copied, if they are not all inside.
    #[must_use]
    pub fn read(&self, offset: u64, into: &mut [u8]) -> bool {
        let Some(at) = self.at(offset, into.len() as u64) else { return false };
        // SAFETY: `at` has `into.len()` bytes, and `into` is somebody's unique slice, so they do not overlap.
        unsafe { std::ptr::copy_nonoverlapping(at, into.as_mut_ptr(), into.len()) };
        true
    }

    /// Copies `from` to `offset`; false, and nothing copied, if it does not fit.
    #[must_use]
    pub fn write(&self, offset: u64, from: &[u8]) -> bool {
        let Some(at) = self.at(offset, from.len() as u64) else { return false };
        // SAFETY: `at` has `from.len()` bytes; no slice of this block is ever made, so they do not overlap.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), at, from.len()) };
        true
    }

    /// Waits until what this thread has written unsettled, to whatever memory, is where other threads see it; see
    /// [`crate::Io::write_unsettled_to`]. Takes some 200 ns after such a write, next to nothing else.
    #[inline]
    pub fn settle() {
        settle();
    }

    /// Copies `len` bytes of a payload to `at`, past the cache if that is faster: true if so, and [`SharedBuf::settle`]
    /// has to be called. Else the memory is asked for a page at a time before it is written: more lines are waited for
    /// at once than by the stores themselves. 4 KiB at random into 256 MiB take 367 ns instead of 476, into 16 MiB 219
    /// instead of 252 (medians by turns).
    ///
    /// # Safety
    /// `at` has `len` bytes of this block, and `from` has `len` bytes, which may be lent ones of this block.
    #[inline]
    #[must_use]
    pub(crate) unsafe fn store(&self, at: *mut u8, from: *const u8, len: usize) -> bool {
        let distance = at.addr().abs_diff(from.addr());
        // SAFETY: as the caller promises; the two do not overlap if they are far enough apart.
        unsafe {
            if distance < len {
                std::ptr::copy(from, at, len);
                return false;
            }
            if (self.is_past_cache || are_past_cache()) && store_past_cache(from, at, len) {
                return true;
            }
            for done in (0..len).step_by(PAGE) {
                let (at, count) = (at.add(done), PAGE.min(len - done));
                fetch_ahead(at, count);
                std::ptr::copy_nonoverlapping(from.add(done), at, count);
            }
        }
        false
    }

    /// Writes `len` zeroes at `offset`; false, and nothing written, if they are not all inside.
    #[must_use]
    pub fn zero(&self, offset: u64, len: u64) -> bool {
        let Some(at) = self.at(offset, len) else { return false };
        // SAFETY: `at` has `len` bytes.
        unsafe { std::ptr::write_bytes(at, 0, len as usize) };
        true
    }

    /// Asks the processor for `len` bytes at `offset`, which will be read soon; has no other effect. A page is enough:
    /// the processor goes on by itself, though not from one page to the next.
    #[inline]
    pub fn fetch_ahead(&self, offset: u64, len: u64) {
        let Some(at) = self.at(offset, len) else { return };
        fetch_ahead(at, len as usize);
    }

    /// The first of `len` bytes at `offset`, if all are inside.
    #[inline]
    pub(crate) fn at(&self, offset: u64, len: u64) -> Option<*mut u8> {
        let inside = offset.checked_add(len).is_some_and(|end| end <= self.len());
        // SAFETY: `offset` is inside the block or just behind it.
        inside.then(|| unsafe { self.block.ptr.as_ptr().add(offset as usize) })
    }
}

impl Buffer {
    /// The length that was asked for.
    #[must_use]
    #[allow(clippy::len_without_is_empty, reason = "there is no use for an empty one")]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Its content.
    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        // SAFETY: `len` bytes of the host's pool, ours until dropped, and written only through `&mut self`.
        unsafe { std::slice::from_raw_parts(self.ptr.as_ptr(), self.len) }
    }

    /// Its content, to be changed.
    #[must_use]
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: as in `as_slice`, and `&mut self` is unique.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.as_ptr(), self.len) }
    }

    pub(crate) fn as_ptr(&self) -> *mut u8 {
        self.ptr.as_ptr()
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: as got, on the same reactor: `Buffer` is not `Send`.
        unsafe { (self.host.api.buffer_put)(self.ptr.as_ptr().cast::<c_void>(), self.len) }
    }
}

impl Drop for MemoryWatch {
    fn drop(&mut self) {
        // SAFETY: a live subscription, on the control thread: `MemoryWatch` is not `Send`.
        let code = unsafe { (self.host.api.memory_unsubscribe)(self.subscription) };
        if code == 0 {
            // SAFETY: the host calls the closure no more; a call under way holds its own reference.
            unsafe { (self.release)(self.closure) };
        } else {
            log::error!("memory subscription unknown to the host code={code}");
        }
    }
}

/// Asks the processor for the `len` bytes at `at`, which will soon be read or written; has no other effect, whatever the
/// address.
///
/// They come to the second level: a page for each I/O would drive everything else out of the first, which can wait
/// for fewer lines at once as well.
#[inline]
pub fn fetch_ahead(at: *const u8, len: usize) {
    #[cfg(target_arch = "x86_64")]
    for line in (0..len).step_by(CACHE_LINE) {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        // SAFETY: a prefetch neither reads nor faults.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(at.wrapping_add(line).cast::<i8>()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (at, len);
}

/// # Safety
/// `arg` is the `Rc<F>` of a live subscription, `region` valid for the call.
unsafe extern "C" fn memory_news<F: Fn(MemoryChange)>(
    arg: *mut c_void,
    event: BufferEvent,
    region: *const MemoryRegion,
) {
    let closure = arg.cast_const().cast::<F>();
    // SAFETY: the subscription's reference exists; ours lets the closure drop the subscription.
    let news = unsafe {
        Rc::increment_strong_count(closure);
        Rc::from_raw(closure)
    };
    // SAFETY: valid for the call, and plain data.
    let region = unsafe { *region };
    let change = match event {
        BufferEvent::ADD => MemoryChange::Added(region),
        BufferEvent::REMOVE => MemoryChange::Removed(region),
        _ => return,
    };
    bridge::run("news of memory", || news(change));
}

/// # Safety
/// `closure` came from `Rc::into_raw` and is given up.
unsafe fn drop_closure<F>(closure: *const c_void) {
    // SAFETY: the caller gives up the reference.
    drop(unsafe { Rc::from_raw(closure.cast::<F>()) });
}

const PAGE: usize = 4096;
#[cfg(target_arch = "x86_64")]
const CACHE_LINE: usize = 64;
