//! How far an operation is, as one state machine.
//!
//! ```text
//!  Queued ─Admitted─► Loading ─ModuleReady─► Running ─AnsweredOk─► Settling ─Settled─► Done
//!                        ▲                      │ AnsweredError        │ Failed
//!                        │ BaseReady            ▼                      ▼
//!                      Parked ◄──UndoneToPark── Undoing ──────Undone──────────────────► Done
//!                                               ▲
//!                  Running ─DeadlinePassed─► Overdue ─AnsweredOk | AnsweredError─┘
//! ```
//!
//! A client is answered once: at Done, or when the deadline passes before that;
//! an operation whose client was answered goes on to its end all the same.

use std::fmt;

/// Where an operation stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum OpState {
    /// Another operation on the same name is under way.
    Queued,
    /// Its module is being loaded.
    Loading,
    /// The module owes an answer.
    Running,
    /// Answered; what it registered is being examined, or what it removes is going.
    Settling,
    /// It failed; what it registered is being removed.
    Undoing,
    /// Its base device is being created or under examination; it runs again after that.
    Parked,
    /// The client was told that time is up; the module still owes an answer.
    Overdue,
    /// Over.
    Done,
}

/// What may happen to an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum OpEvent {
    Admitted,
    ModuleReady,
    /// It cannot be started, or not be finished.
    Failed,
    AnsweredOk,
    AnsweredError,
    Settled,
    Undone,
    /// Undone, and to be tried again when its base is there.
    UndoneToPark,
    BaseReady,
    DeadlinePassed,
}

/// An event that cannot happen in a state: a fault of this program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{event:?} cannot happen to an operation that is {state}")]
pub(crate) struct InvalidOpEvent {
    pub state: OpState,
    pub event: OpEvent,
}

impl OpState {
    /// What follows `self` on `event`.
    pub(crate) fn next(self, event: OpEvent) -> Result<OpState, InvalidOpEvent> {
        use OpEvent::{
            Admitted, AnsweredError, AnsweredOk, BaseReady, DeadlinePassed, Failed, ModuleReady, Settled,
            Undone, UndoneToPark,
        };
        use OpState::{Done, Loading, Overdue, Parked, Queued, Running, Settling, Undoing};
        Ok(match (self, event) {
            (Queued, Admitted) | (Parked, BaseReady) => Loading,
            (Loading, ModuleReady) => Running,
            (Running, AnsweredOk) => Settling,
            (Running, AnsweredError) | (Settling, Failed) => Undoing,
            // Whatever the module says now, its client has been told that it failed.
            (Overdue, AnsweredOk | AnsweredError) => Undoing,
            (Settling, Settled) | (Undoing, Undone) => Done,
            (Undoing, UndoneToPark) => Parked,
            (Queued | Loading | Parked, Failed | DeadlinePassed) => Done,
            (Running, DeadlinePassed) => Overdue,
            (Settling, DeadlinePassed) => Undoing,
            (Undoing | Overdue, DeadlinePassed) => self,
            (
                Queued,
                ModuleReady | AnsweredOk | AnsweredError | Settled | Undone | UndoneToPark | BaseReady,
            )
            | (
                Loading,
                Admitted | AnsweredOk | AnsweredError | Settled | Undone | UndoneToPark | BaseReady,
            )
            | (Running, Admitted | ModuleReady | Failed | Settled | Undone | UndoneToPark | BaseReady)
            | (
                Settling,
                Admitted | ModuleReady | AnsweredOk | AnsweredError | Undone | UndoneToPark | BaseReady,
            )
            | (Undoing, Admitted | ModuleReady | Failed | AnsweredOk | AnsweredError | Settled | BaseReady)
            | (
                Parked,
                Admitted | ModuleReady | AnsweredOk | AnsweredError | Settled | Undone | UndoneToPark,
            )
            | (Overdue, Admitted | ModuleReady | Failed | Settled | Undone | UndoneToPark | BaseReady)
            | (
                Done,
                Admitted | ModuleReady | Failed | AnsweredOk | AnsweredError | Settled | Undone
                | UndoneToPark | BaseReady | DeadlinePassed,
            ) => return Err(InvalidOpEvent { state: self, event }),
        })
    }
}

impl fmt::Display for OpState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            OpState::Queued => "queued",
            OpState::Loading => "loading",
            OpState::Running => "running",
            OpState::Settling => "settling",
            OpState::Undoing => "undoing",
            OpState::Parked => "parked",
            OpState::Overdue => "overdue",
            OpState::Done => "done",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::{OpEvent, OpState};

    #[test]
    fn every_state_but_done_is_left_by_some_event() {
        use OpEvent::*;
        use OpState::*;
        for state in [Queued, Loading, Running, Settling, Undoing, Parked, Overdue] {
            let events =
                [Admitted, ModuleReady, Failed, AnsweredOk, AnsweredError, Settled, Undone, BaseReady];
            let leaves = events.into_iter().any(|event| state.next(event).is_ok_and(|next| next != state));
            assert!(leaves, "{state} has no exit");
            assert!(state.next(DeadlinePassed).is_ok(), "{state} has no deadline");
        }
    }

    #[test]
    fn a_late_answer_is_undone() {
        let overdue = OpState::Running.next(OpEvent::DeadlinePassed).unwrap();
        assert_eq!(overdue, OpState::Overdue);
        assert_eq!(overdue.next(OpEvent::AnsweredOk), Ok(OpState::Undoing));
    }
}
