//! What the end of a command means for its I/O. Pure.

use nvme_spec::completion::StatusField;
use nvme_spec::log::AnaState;
use nvme_spec::status::StatusCode;
use tenon_sdk::IoStatus;

/// What becomes of an I/O.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It is over.
    Done(IoStatus),
    /// Try it again after a pause; counts.
    Again { delay_ms: u64 },
    /// This path does not serve the namespace now: its ANA state is as told.
    Ana(AnaState),
    /// This path has a fault: try another; counts.
    Elsewhere,
}

/// No path leads to the namespace, and none is to be expected.
pub(crate) const NO_PATH: IoStatus = IoStatus::nvme(3, 0x70);

/// It took too long, as often as it was tried.
pub(crate) const ABORTED_BY_HOST: IoStatus = IoStatus::nvme(3, 0x71);

/// Judges a completion. `retries_left` is what is left of the I/O's tries, `delays` are CRDT1 to CRDT3.
pub(crate) fn judge(status: StatusField, retries_left: bool, delays: [u16; 3]) -> Verdict {
    let code = status.code();
    if status.is_success() {
        return Verdict::Done(IoStatus::SUCCESS);
    }
    let failed = Verdict::Done(IoStatus::nvme(code.sct().0, code.sc()));
    match code {
        StatusCode::ANA_INACCESSIBLE => return Verdict::Ana(AnaState::INACCESSIBLE),
        StatusCode::ANA_PERSISTENT_LOSS => return Verdict::Ana(AnaState::PERSISTENT_LOSS),
        StatusCode::ANA_TRANSITION => return Verdict::Ana(AnaState::CHANGE),
        // Its queue went away under it, by no fault of its own.
        StatusCode::ABORTED_SQ_DELETION if retries_left => return Verdict::Elsewhere,
        _ => {}
    }
    if status.dnr() || !retries_left || is_final(code) {
        return failed;
    }
    if code.is_path_related() {
        return Verdict::Elsewhere;
    }
    let delay_ms = match usize::from(status.crd()) {
        0 => 0,
        number => u64::from(delays[number - 1]) * 100,
    };
    Verdict::Again { delay_ms }
}

/// The same command would end the same way, whatever its Do Not Retry bit says.
fn is_final(code: StatusCode) -> bool {
    matches!(
        code,
        StatusCode::ABORTED_BY_REQUEST
            | StatusCode::COMPARE_FAILURE
            | StatusCode::INVALID_OPCODE
            | StatusCode::INVALID_FIELD
            | StatusCode::INVALID_NAMESPACE_OR_FORMAT
            | StatusCode::LBA_OUT_OF_RANGE
            | StatusCode::CAPACITY_EXCEEDED
            | StatusCode::NAMESPACE_WRITE_PROTECTED
            | StatusCode::RESERVATION_CONFLICT
            | StatusCode::UNRECOVERED_READ_ERROR
            | StatusCode::WRITE_FAULT
            | StatusCode::ACCESS_DENIED
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(status: StatusField, retries_left: bool, expected: Verdict) {
        assert_eq!(judge(status, retries_left, [1, 20, 0]), expected);
    }

    #[test]
    fn statuses_mean_done_again_or_elsewhere() {
        let of = StatusField::new;
        check(StatusField::SUCCESS, true, Verdict::Done(IoStatus::SUCCESS));
        check(of(StatusCode::LBA_OUT_OF_RANGE), true, Verdict::Done(IoStatus::LBA_OUT_OF_RANGE));
        check(of(StatusCode::COMPARE_FAILURE), true, Verdict::Done(IoStatus::MISCOMPARE));
        check(of(StatusCode::NAMESPACE_NOT_READY), true, Verdict::Again { delay_ms: 0 });
        check(of(StatusCode::NAMESPACE_NOT_READY).with_crd(2), true, Verdict::Again { delay_ms: 2000 });
        let failed = Verdict::Done(IoStatus::nvme(0, 0x82));
        check(of(StatusCode::NAMESPACE_NOT_READY).with_dnr(true), true, failed);
        check(of(StatusCode::NAMESPACE_NOT_READY), false, failed);
        check(of(StatusCode::INTERNAL_PATH_ERROR), true, Verdict::Elsewhere);
        check(of(StatusCode::ABORTED_SQ_DELETION), true, Verdict::Elsewhere);
        // An ANA state is no failure of the I/O, so it counts no try.
        check(of(StatusCode::ANA_INACCESSIBLE), false, Verdict::Ana(AnaState::INACCESSIBLE));
        check(of(StatusCode::ANA_TRANSITION).with_dnr(true), true, Verdict::Ana(AnaState::CHANGE));
    }
}
