//! One command's request at the target: its two parts, and its payload's memory
//! in pieces.
//!
//! The first part is the contract's and written by the target core as well, so
//! a request is only reached through a raw pointer; the second is this side's.
//! Who has it at a time is `host_connection`'s matter.
// UNSAFETY: follows the pieces of payload that the target core names.

use std::rc::Rc;

use tenon_sdk::abi::transport::Direction;
use tenon_sdk::abi::transport::target::TargetRequest;
use tenon_sdk::{IoVec, fetch_ahead};

use crate::connection::{Placement, Slot};
use crate::host_connection::HostConnection;
use crate::inbox::Chunk;

/// One command's request: what the contract shares, and what is this side's.
#[repr(C)]
pub struct Request {
    pub target: TargetRequest,
    pub connection: *const HostConnection,
    /// In-capsule data lies in it.
    pub chunk: Option<Rc<Chunk>>,
    pub slot: Slot,
    pub place: Place,
    pub is_intact: bool,
    pub is_large: bool,
}

/// Who has a request whose command waits for memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// It does not wait.
    Settled,
    /// The target core has it until there is memory.
    Waiting,
    /// As Waiting, and the protocol has forgotten the command.
    Orphaned,
}

impl Request {
    /// A request that nobody uses.
    pub fn idle(connection: *const HostConnection, slot: Slot) -> Self {
        Self {
            target: TargetRequest {
                sqe: [0; 64],
                cqe: [0; 16],
                iovs: std::ptr::null_mut(),
                iovcnt: 0,
                length: 0,
                direction: Direction::NONE,
                reserved: [0; 3],
                capsule_length: 0,
                capsule_data: std::ptr::null_mut(),
                queue_pair: std::ptr::null_mut(),
                link: std::ptr::null_mut(),
                inline_iov: IoVec::EMPTY,
                memory_key: 0,
                host: [std::ptr::null_mut(); 3],
            },
            connection,
            chunk: None,
            slot,
            place: Place::Settled,
            is_intact: true,
            is_large: false,
        }
    }
}

/// Calls `f` with each contiguous piece of a part of a request's payload.
///
/// # Safety
/// `request` has its payload memory, and its pieces hold `offset + len` bytes.
pub unsafe fn each_piece(request: *mut Request, offset: u32, len: u32, mut f: impl FnMut(*mut u8, usize)) {
    let (mut skip, mut left) = (offset as usize, len as usize);
    // SAFETY: `iovs` has `iovcnt` pieces while the request is this side's.
    let iovs = unsafe {
        let target = &(*request).target;
        std::slice::from_raw_parts(target.iovs, target.iovcnt as usize)
    };
    for iov in iovs {
        if skip >= iov.len {
            skip -= iov.len;
            continue;
        }
        let count = left.min(iov.len - skip);
        // SAFETY: `skip` is inside the piece.
        f(unsafe { iov.base.cast::<u8>().add(skip) }, count);
        skip = 0;
        left -= count;
        if left == 0 {
            return;
        }
    }
    debug_assert_eq!(left, 0, "payload has less memory than its length");
}

/// Appends the pieces of a part of a request's payload.
///
/// # Safety
/// As [`each_piece`].
#[inline]
pub unsafe fn pieces_of(request: *mut Request, placement: Placement, pieces: &mut Vec<IoVec>) {
    // SAFETY: as the caller promises.
    unsafe {
        each_piece(request, placement.offset, placement.len, |base, len| {
            pieces.push(IoVec { base: base.cast(), len });
        });
    }
}

/// Asks the processor for the beginning of a payload that will be sent at the end of this turn. From there it goes on
/// by itself, while other commands are looked at: the digest of 4 KiB that is in no cache takes 355 instead of 437 ns,
/// asked for or not (medians by turns, with 16 commands at a time). What is read by this program first, for a digest,
/// is asked for further on.
///
/// # Safety
/// As [`each_piece`].
#[inline]
pub unsafe fn fetch_payload(request: *mut Request, is_digested: bool) {
    // SAFETY: as the caller promises.
    let first = unsafe {
        let target = &(*request).target;
        std::slice::from_raw_parts(target.iovs, target.iovcnt as usize).first()
    };
    if let Some(first) = first {
        let most = if is_digested { DIGESTED_BYTES } else { FETCHED_BYTES };
        fetch_ahead(first.base.cast(), first.len.min(most));
    }
}

/// Copies received bytes to where they belong in a request's payload.
///
/// # Safety
/// As [`each_piece`], and the memory is writable.
pub unsafe fn fill(request: *mut Request, offset: u32, bytes: &[u8]) {
    let mut from = bytes.as_ptr();
    // SAFETY: as the caller promises; a chunk and a payload do not overlap.
    unsafe {
        each_piece(request, offset, bytes.len() as u32, |base, len| {
            base.copy_from_nonoverlapping(from, len);
            from = from.add(len);
        });
    }
}

/// Eight lines: with more, reads lose.
const FETCHED_BYTES: usize = 512;
/// A page: with digests, reads gain by it.
const DIGESTED_BYTES: usize = 4096;
