//! One system call without a safe wrapper: discarding a range of a block device.
// UNSAFETY: an ioctl that takes a pointer.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Deallocates a range of a block device. Blocks.
pub fn discard(device: BorrowedFd<'_>, offset: u64, len: u64) -> io::Result<()> {
    let range = [offset, len];
    // SAFETY: BLKDISCARD reads two 64-bit numbers at the pointer and keeps nothing.
    let code = unsafe { libc::ioctl(device.as_raw_fd(), BLKDISCARD, range.as_ptr()) };
    if code == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// `_IO(0x12, 119)` of linux/fs.h.
const BLKDISCARD: libc::Ioctl = 0x1277;
