//! Buffers of a reactor: whole pages in powers of two, kept where they were got.
//!
//! A pool belongs to one reactor and needs no lock; it takes memory from `memory`
//! when it grows and is bounded in bytes. Buffers nobody uses are given back when
//! another size is short, and at the end.
// UNSAFETY: hands out and takes back raw memory.

use std::cell::{Cell, RefCell};
use std::ffi::c_void;

use crate::memory::{device_alloc, device_free};

/// The buffers of one reactor.
#[derive(Default)]
struct Pool {
    idle: [Vec<*mut c_void>; CLASSES],
    /// Bytes taken from `memory`, in use or idle.
    held: usize,
}

thread_local! {
    /// By index of the reactor; a simulation has several on its thread.
    static POOLS: RefCell<Vec<Pool>> = const { RefCell::new(Vec::new()) };
    static LIMIT: Cell<usize> = const { Cell::new(64 << 20) };
}

/// A buffer of at least `len` bytes, 4096-aligned, from the calling reactor's pool; null if none is left,
/// `len` is 0 or above 4 MiB, or the caller is on no reactor. Its content is undefined.
pub fn buffer_get(len: usize) -> *mut c_void {
    let (Some(class), Some(local)) = (class_of(len), tenon_reactor::try_current()) else {
        return std::ptr::null_mut();
    };
    with_pool(local.id().index(), |pool| pool.get(class)).unwrap_or(std::ptr::null_mut())
}

/// Returns a buffer on the reactor that got it.
///
/// # Safety
/// `buffer` came from [`buffer_get`] with the same `len`, on this reactor, and nobody uses it any more.
pub unsafe fn buffer_put(buffer: *mut c_void, len: usize) {
    let (Some(class), false) = (class_of(len), buffer.is_null()) else { return };
    let kept = tenon_reactor::try_current()
        .and_then(|local| with_pool(local.id().index(), |pool| pool.idle[class].push(buffer)));
    if kept.is_none() {
        log::error!("buffer was returned away from a reactor len={len}");
        // SAFETY: the caller gives the buffer up; it is `size_of_class` bytes of `memory`.
        unsafe { device_free(buffer, size_of_class(class), PAGE) };
    }
}

/// Bytes that the calling reactor's pool can still give.
pub fn buffer_room() -> usize {
    let Some(local) = tenon_reactor::try_current() else { return 0 };
    with_pool(local.id().index(), |pool| {
        let sizes = pool.idle.iter().enumerate();
        let idle: usize = sizes.map(|(class, buffers)| buffers.len() * size_of_class(class)).sum();
        LIMIT.with(Cell::get).saturating_sub(pool.held - idle)
    })
    .unwrap_or(0)
}

/// Most bytes per pool of the calling thread.
pub(crate) fn set_limit(bytes: usize) {
    LIMIT.with(|limit| limit.set(bytes));
    // What has a destructor takes the dynamic linker's lock when a thread first uses it: now, and not when a
    // library that never finishes loading may hold it.
    POOLS.with(|_| ());
}

/// Gives back what the calling thread's pools hold idle.
pub(crate) fn release_idle() {
    let _ = POOLS.try_with(|pools| {
        for pool in pools.borrow_mut().iter_mut() {
            pool.shrink(usize::MAX);
        }
    });
}

impl Pool {
    fn get(&mut self, class: usize) -> *mut c_void {
        if let Some(buffer) = self.idle[class].pop() {
            return buffer;
        }
        let (size, limit) = (size_of_class(class), LIMIT.with(Cell::get));
        if self.held + size > limit {
            self.shrink(self.held + size - limit);
        }
        if self.held + size > limit {
            return std::ptr::null_mut();
        }
        let buffer = device_alloc(size, PAGE, -1);
        if !buffer.is_null() {
            self.held += size;
        }
        buffer
    }

    /// Gives back idle buffers, the largest first, until `wanted` bytes are free or none is left.
    fn shrink(&mut self, wanted: usize) {
        let mut freed = 0;
        for class in (0..CLASSES).rev() {
            while freed < wanted
                && let Some(buffer) = self.idle[class].pop()
            {
                let size = size_of_class(class);
                // SAFETY: an idle buffer is used by nobody; it was allocated with these arguments.
                unsafe { device_free(buffer, size, PAGE) };
                self.held -= size;
                freed += size;
            }
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shrink(usize::MAX);
    }
}

fn with_pool<T>(index: usize, f: impl FnOnce(&mut Pool) -> T) -> Option<T> {
    POOLS
        .try_with(|pools| {
            let mut pools = pools.borrow_mut();
            if pools.len() <= index {
                pools.resize_with(index + 1, Pool::default);
            }
            f(&mut pools[index])
        })
        .ok()
}

fn class_of(len: usize) -> Option<usize> {
    (1..=size_of_class(CLASSES - 1)).contains(&len).then(|| {
        let pages = len.div_ceil(PAGE).next_power_of_two();
        pages.trailing_zeros() as usize
    })
}

const fn size_of_class(class: usize) -> usize {
    PAGE << class
}

/// Size and alignment of the smallest buffer.
const PAGE: usize = 4096;
/// Sizes: 4 KiB to 4 MiB.
const CLASSES: usize = 11;

#[cfg(test)]
mod tests {
    use super::{buffer_get, buffer_put, buffer_room, class_of, set_limit, size_of_class};
    use tenon_reactor::Simulation;

    #[test]
    fn a_length_gets_the_smallest_class_that_holds_it() {
        for (len, size) in [(1, 4096), (4096, 4096), (4097, 8192), (100_000, 131_072), (4 << 20, 4 << 20)] {
            assert_eq!(class_of(len).map(size_of_class), Some(size), "{len}");
        }
        assert_eq!(class_of(0), None);
        assert_eq!(class_of((4 << 20) + 1), None);
    }

    #[test]
    fn the_pool_is_bounded_and_gives_idle_buffers_to_other_sizes() {
        let mut simulation = Simulation::new(1, 1);
        let data = simulation.data(0);
        simulation.on(&data, |_| {
            set_limit(64 << 10);
            let small: Vec<_> = (0..16).map(|_| buffer_get(4096)).collect();
            assert!(small.iter().all(|buffer| !buffer.is_null() && buffer.addr() % 4096 == 0));
            assert!(buffer_get(4096).is_null());
            assert_eq!(buffer_room(), 0);
            for buffer in small {
                // SAFETY: got above, with this length, on this reactor.
                unsafe { buffer_put(buffer, 4096) };
            }
            assert_eq!(buffer_room(), 64 << 10, "idle buffers count");
            let large = buffer_get(30_000);
            assert_eq!(buffer_room(), 32 << 10);
            // SAFETY: as above.
            unsafe { buffer_put(large, 30_000) };
            let large = buffer_get(60_000);
            assert!(!large.is_null());
            assert!(buffer_get(4096).is_null());
            // SAFETY: as above.
            unsafe { buffer_put(large, 60_000) };
            set_limit(64 << 20);
        });
        assert!(buffer_get(4096).is_null(), "away from a reactor there is no pool");
    }
}
