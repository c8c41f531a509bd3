//! Copying into memory that is larger than the processor's cache. An ordinary
//! store reads each line before it overwrites it, and drives out lines that are
//! needed; a non-temporal one does neither, but has to be waited for before others
//! hear of it. Measured with random writes of 4 KiB and a last-level cache of
//! 32 MiB: into 64 MiB 318 against 245 ns, into 256 MiB 447 against 263 ns; but into
//! 16 MiB 162 against 246 ns, so it depends on the size of the memory. In a virtual
//! machine that is told of 480 MiB, which it shares with others: into 64 MiB 374
//! against 380 ns, into 128 MiB 480 against 380 ns, into 256 MiB 570 against 390 ns,
//! and stripes into three blocks of 64 MiB 2.5 times as fast. Blocks that are written
//! by turns need the cache together.
// UNSAFETY: copies between raw pointers, with instructions of the processor.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Bytes of all blocks that are written to, and whether they are too many for the cache.
static BYTES: AtomicU64 = AtomicU64::new(0);
static ARE_PAST_CACHE: AtomicBool = AtomicBool::new(false);

/// Whether memory of `len` bytes is better written past the cache.
pub(crate) fn is_past_cache(len: u64) -> bool {
    cfg!(target_arch = "x86_64") && len >= 2 * cache()
}

/// Whether any memory is, as there is so much of it.
#[inline]
pub(crate) fn are_past_cache() -> bool {
    ARE_PAST_CACHE.load(Ordering::Relaxed)
}

/// A block of `len` bytes came.
pub(crate) fn block_came(len: u64) {
    blocks_have(BYTES.fetch_add(len, Ordering::Relaxed) + len);
}

/// A block of `len` bytes went.
pub(crate) fn block_went(len: u64) {
    blocks_have(BYTES.fetch_sub(len, Ordering::Relaxed) - len);
}

/// Two that come or go at once may leave either's answer, which costs some time at most.
fn blocks_have(bytes: u64) {
    ARE_PAST_CACHE.store(cfg!(target_arch = "x86_64") && bytes >= 4 * cache(), Ordering::Relaxed);
}

fn cache() -> u64 {
    static CACHE: OnceLock<u64> = OnceLock::new();
    *CACHE.get_or_init(last_level_cache)
}

/// Copies `len` bytes past the cache, if they are enough and aligned; false, and nothing copied, if not. [`settle`] is
/// the caller's to call.
///
/// # Safety
/// `from` and `to` have `len` bytes and do not overlap.
#[cfg(target_arch = "x86_64")]
#[inline]
pub(crate) unsafe fn store_past_cache(from: *const u8, to: *mut u8, len: usize) -> bool {
    use std::arch::x86_64::{__m128i, _mm_loadu_si128, _mm_stream_si128};

    if len < SMALLEST || !len.is_multiple_of(LINE) || !to.addr().is_multiple_of(LINE) {
        return false;
    }
    for line in (0..len).step_by(LINE) {
        // SAFETY: `line + LINE <= len` bytes on both sides, and `to` is aligned to a line.
        unsafe {
            let (from, to) = (from.add(line).cast::<__m128i>(), to.add(line).cast::<__m128i>());
            let quarters = [0, 1, 2, 3].map(|quarter| _mm_loadu_si128(from.add(quarter)));
            for (quarter, bytes) in quarters.into_iter().enumerate() {
                _mm_stream_si128(to.add(quarter), bytes);
            }
        }
    }
    true
}

/// Waits until what this thread has stored past the cache is where others see it. Such stores overtake others: without it,
/// whoever hears of a completion may not see them.
#[cfg(target_arch = "x86_64")]
#[inline]
pub(crate) fn settle() {
    // SAFETY: the instruction is part of every x86_64.
    unsafe { std::arch::x86_64::_mm_sfence() };
}

/// There are no such stores.
#[cfg(not(target_arch = "x86_64"))]
#[inline]
pub(crate) fn settle() {}

/// As on x86_64, but there is nothing to gain.
///
/// # Safety
/// None is needed.
#[cfg(not(target_arch = "x86_64"))]
pub(crate) unsafe fn store_past_cache(_: *const u8, _: *mut u8, _: usize) -> bool {
    false
}

/// Its size in bytes, as far as the kernel tells; of a larger one others use the rest.
fn last_level_cache() -> u64 {
    let size = (0..=4).rev().find_map(|index| {
        std::fs::read_to_string(format!("/sys/devices/system/cpu/cpu0/cache/index{index}/size")).ok()
    });
    size.and_then(|text| text.trim().strip_suffix('K')?.parse::<u64>().ok())
        .map_or(USUAL_CACHE, |kib| kib << 10)
        .min(USUAL_CACHE)
}

const LINE: usize = 64;
/// Shorter copies gain nothing.
const SMALLEST: usize = 2048;
const USUAL_CACHE: u64 = 32 << 20;

#[cfg(all(test, target_arch = "x86_64", not(miri)))]
mod tests {
    use super::*;

    #[track_caller]
    fn check(at: usize, len: usize, expected: bool) {
        let from: Vec<u8> = (0..len).map(|byte| byte as u8).collect();
        let mut memory = vec![0xee_u8; len + 3 * LINE];
        let start = memory.as_ptr().align_offset(LINE) + at;
        // SAFETY: `memory` has room for `len` bytes behind any such start.
        let done = unsafe { store_past_cache(from.as_ptr(), memory.as_mut_ptr().add(start), len) };
        assert_eq!(done, expected, "{len} bytes at {at}");
        let end = start + if done { len } else { 0 };
        assert_eq!(memory[start..end], from[..end - start]);
        assert!(memory[..start].iter().chain(&memory[end..]).all(|byte| *byte == 0xee));
    }

    #[test]
    fn whole_lines_are_copied_and_nothing_else() {
        check(0, 4096, true);
        check(64, 2048, true);
        check(0, 1984, false);
        check(8, 4096, false);
        check(0, 4100, false);
    }

    #[test]
    fn blocks_need_the_cache_together() {
        assert!(!are_past_cache());
        let quarter = cache();
        (0..4).for_each(|_| block_came(quarter));
        assert!(are_past_cache());
        block_went(quarter);
        assert!(!are_past_cache());
        (0..3).for_each(|_| block_went(quarter));
    }

    #[test]
    fn memory_as_large_as_the_cache_is_written_through_it() {
        assert!(!is_past_cache(4096));
        assert!(is_past_cache(1 << 40));
    }
}
