//! What an error number of the kernel means for an I/O.

use tenon_sdk::{BdevOp, IoStatus};

/// The status of an I/O that failed with `errno`, which is positive.
pub fn status_of(errno: i32, op: BdevOp) -> IoStatus {
    match errno {
        libc::ECANCELED => IoStatus::ABORTED,
        libc::ENOMEM | libc::EAGAIN | libc::ENOBUFS => IoStatus::NOMEM,
        libc::ENODEV | libc::ENXIO | libc::ESHUTDOWN => IoStatus::NO_DEVICE,
        libc::EROFS | libc::EPERM | libc::EACCES => IoStatus::NOT_PERMITTED,
        libc::EOPNOTSUPP | libc::ENOSYS => IoStatus::NOT_SUPPORTED,
        libc::ENOSPC | libc::EDQUOT => CAPACITY_EXCEEDED,
        // The block layer's words for a medium error and for data that fails its checksum.
        libc::ENODATA | libc::EILSEQ if op == BdevOp::Read => IoStatus::UNRECOVERED_READ,
        libc::ETIMEDOUT => IoStatus::TIMED_OUT,
        libc::EINVAL => IoStatus::INVALID,
        _ => IoStatus::IO_ERROR,
    }
}

/// NVMe: Capacity Exceeded.
const CAPACITY_EXCEEDED: IoStatus = IoStatus::nvme(0, 0x81);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_file_system_is_not_a_broken_one() {
        assert_eq!(status_of(libc::ENOSPC, BdevOp::Write).as_nvme(), Some((0, 0x81)));
        assert_eq!(status_of(libc::EIO, BdevOp::Write), IoStatus::IO_ERROR);
        assert_eq!(status_of(libc::ENODATA, BdevOp::Read), IoStatus::UNRECOVERED_READ);
    }
}
