//! The one mapping from a device's [`IoStatus`] to the NVMe status a host sees.
//!
//! Whoever completes a command with the result of a device comes through here;
//! refusals of the target itself are NVMe statuses from the start. A status
//! nobody knows becomes Internal Error and is counted.

use std::sync::atomic::{AtomicU64, Ordering};

use nvme_spec::completion::StatusField;
use nvme_spec::status::{StatusCode, StatusCodeType};
use tenon_abi::{IoStatus, errno};

/// The status for a command that a device finished with `status`.
pub(crate) fn of_device(status: IoStatus) -> StatusField {
    if status.is_success() {
        return StatusField::SUCCESS;
    }
    if let Some((sct, sc)) = status.as_nvme() {
        let code = StatusCode::from_parts(StatusCodeType(sct), sc);
        return StatusField::new(code).with_dnr(status.0 & DEVICE_DNR != 0 || is_final(code));
    }
    let (code, dnr) = match status.0 {
        errno::EIO | errno::ETIMEDOUT => (StatusCode::INTERNAL_ERROR, false),
        // The resource comes back: the host is to try again.
        errno::ENOMEM | errno::EAGAIN | errno::EBUSY => (StatusCode::COMMAND_INTERRUPTED, false),
        // The device is going or absent; if it does not return, the namespace goes and the retry hears of it.
        errno::ENODEV | errno::ESHUTDOWN => (StatusCode::NAMESPACE_NOT_READY, false),
        errno::ENOTSUP => (StatusCode::INVALID_OPCODE, true),
        errno::EINVAL => (StatusCode::INVALID_FIELD, true),
        errno::EPERM | errno::EACCES => (StatusCode::NAMESPACE_WRITE_PROTECTED, true),
        errno::ECANCELED => (StatusCode::ABORTED_BY_REQUEST, false),
        errno::ENOSPC => (StatusCode::CAPACITY_EXCEEDED, true),
        errno::ERANGE => (StatusCode::LBA_OUT_OF_RANGE, true),
        _ => {
            UNKNOWN.fetch_add(1, Ordering::Relaxed);
            (StatusCode::INTERNAL_ERROR, false)
        }
    };
    StatusField::new(code).with_dnr(dnr)
}

/// A refusal that a retry would meet again.
pub(crate) const fn refused(code: StatusCode) -> StatusField {
    StatusField::new(code).with_dnr(true)
}

/// How many device statuses nobody knew.
pub fn unknown_statuses() -> u64 {
    UNKNOWN.load(Ordering::Relaxed)
}

/// Whether a retry of the same command gives the same answer.
fn is_final(code: StatusCode) -> bool {
    matches!(code, StatusCode::LBA_OUT_OF_RANGE | StatusCode::COMPARE_FAILURE | StatusCode::INVALID_FIELD)
}

static UNKNOWN: AtomicU64 = AtomicU64::new(0);

/// Do Not Retry in an [`IoStatus`] that holds an NVMe status.
const DEVICE_DNR: i32 = 1 << 14;

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(status: IoStatus, code: StatusCode, dnr: bool) {
        let field = of_device(status);
        assert_eq!((field.code(), field.dnr()), (code, dnr), "{status:?}");
    }

    #[test]
    fn every_status_of_the_contract_has_its_nvme_status() {
        check(IoStatus::SUCCESS, StatusCode::SUCCESS, false);
        check(IoStatus::IO_ERROR, StatusCode::INTERNAL_ERROR, false);
        check(IoStatus::NOMEM, StatusCode::COMMAND_INTERRUPTED, false);
        check(IoStatus::NO_DEVICE, StatusCode::NAMESPACE_NOT_READY, false);
        check(IoStatus::NOT_SUPPORTED, StatusCode::INVALID_OPCODE, true);
        check(IoStatus::INVALID, StatusCode::INVALID_FIELD, true);
        check(IoStatus::NOT_PERMITTED, StatusCode::NAMESPACE_WRITE_PROTECTED, true);
        check(IoStatus::TIMED_OUT, StatusCode::INTERNAL_ERROR, false);
        check(IoStatus::ABORTED, StatusCode::ABORTED_BY_REQUEST, false);
        check(IoStatus::LBA_OUT_OF_RANGE, StatusCode::LBA_OUT_OF_RANGE, true);
        check(IoStatus::MISCOMPARE, StatusCode::COMPARE_FAILURE, true);
        check(IoStatus::UNRECOVERED_READ, StatusCode::UNRECOVERED_READ_ERROR, false);
        check(IoStatus::INTERNAL, StatusCode::INTERNAL_ERROR, false);
    }

    #[test]
    fn an_unknown_status_is_an_internal_error_and_counted() {
        let before = unknown_statuses();
        check(IoStatus(-9999), StatusCode::INTERNAL_ERROR, false);
        assert!(unknown_statuses() > before);
    }

    #[test]
    fn a_device_may_forbid_the_retry() {
        check(IoStatus(IoStatus::nvme(2, 0x81).0 | DEVICE_DNR), StatusCode::UNRECOVERED_READ_ERROR, true);
    }
}
