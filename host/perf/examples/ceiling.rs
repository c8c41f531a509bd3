//! What the memory of this machine gives to a loop that only copies: the same
//! sizes, the same order and the same kind of memory as `tenon perf` on a
//! `malloc` device, and nothing else. `cargo xtask bench` compares the two.
//!
//!     ceiling WORKING_SET_BYTES BLOCK_BYTES DEPTH SECONDS [MEMBERS]
//!
//! Copies out of a working set, or, with members, each block to the same place of
//! so many: past the cache, as devices of that size do, and waited for from time to
//! time. Prints blocks per second.
// UNSAFETY: copies between two blocks of device memory.
#![allow(clippy::unwrap_used, reason = "a tool of the benchmarks, not of the product")]

use std::time::{Duration, Instant};

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use tenon_bdev::device_alloc;

fn main() {
    let numbers: Vec<usize> = std::env::args().skip(1).map(|word| word.parse().unwrap()).collect();
    let ([size, block, depth, seconds] | [size, block, depth, seconds, _]) = numbers[..] else {
        panic!("usage: ceiling WORKING_SET_BYTES BLOCK_BYTES DEPTH SECONDS [MEMBERS]");
    };
    let members = numbers.get(4).copied().unwrap_or(0);
    pin();
    let media: Vec<*mut u8> = (0..members.max(1)).map(|_| memory(size)).collect();
    let buffers = memory(block * depth);
    // SAFETY: `memory` gives as many bytes as asked for.
    unsafe {
        media.iter().for_each(|medium| medium.write_bytes(0x5a, size));
        buffers.write_bytes(0xa5, block * depth);
    }
    let chunks = (size / block) as u64;
    let (mut state, mut copies, mut turn) = (7u64, 0u64, 0usize);
    let begin = Instant::now();
    let end = begin + Duration::from_secs(seconds as u64);
    while Instant::now() < end {
        for _ in 0..COPIES_PER_LOOK {
            state = state.wrapping_add(0xa076_1d64_78bd_642f);
            let product = u128::from(state) * u128::from(state ^ 0xe703_7ed1_a0b4_28db);
            let random = (product >> 64) as u64 ^ product as u64;
            let chunk = ((u128::from(random) * u128::from(chunks)) >> 64) as usize;
            for medium in &media {
                // SAFETY: `chunk` and `turn` are below the number of blocks on their sides, which are two mappings.
                unsafe {
                    let (stored, buffer) = (medium.add(chunk * block), buffers.add(turn * block));
                    if members == 0 {
                        std::ptr::copy_nonoverlapping(stored, buffer, block);
                    } else {
                        store(buffer, stored, block);
                    }
                }
            }
            turn = if turn + 1 < depth { turn + 1 } else { 0 };
        }
        settle();
        copies += COPIES_PER_LOOK;
    }
    println!("{:.0}", copies as f64 / begin.elapsed().as_secs_f64());
}

/// Copies past the cache where the processor can.
///
/// # Safety
/// Both have `len` bytes, whole pages of different mappings.
unsafe fn store(from: *const u8, to: *mut u8, len: usize) {
    #[cfg(target_arch = "x86_64")]
    for at in (0..len).step_by(16) {
        use std::arch::x86_64::{__m128i, _mm_loadu_si128, _mm_stream_si128};
        // SAFETY: `at + 16 <= len`, and pages are aligned.
        unsafe {
            _mm_stream_si128(to.add(at).cast::<__m128i>(), _mm_loadu_si128(from.add(at).cast::<__m128i>()))
        };
    }
    #[cfg(not(target_arch = "x86_64"))]
    // SAFETY: as the caller promises.
    unsafe {
        std::ptr::copy_nonoverlapping(from, to, len)
    };
}

/// Waits until what was stored is where others see it.
fn settle() {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the instruction is part of every x86_64.
    unsafe {
        std::arch::x86_64::_mm_sfence();
    }
}

fn memory(len: usize) -> *mut u8 {
    let memory = device_alloc(len, 4096, -1).cast::<u8>();
    assert!(!memory.is_null(), "no memory for {len} bytes");
    memory
}

/// To the core on which `tenon perf` has its first reactor.
fn pin() {
    let allowed = sched_getaffinity(None).unwrap();
    let first = (0..CpuSet::MAX_CPU).find(|cpu| allowed.is_set(*cpu)).unwrap();
    let mut cpus = CpuSet::new();
    cpus.set(first);
    sched_setaffinity(None, &cpus).unwrap();
}

const COPIES_PER_LOOK: u64 = 64;
