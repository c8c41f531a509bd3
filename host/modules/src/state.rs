//! The states of a module and the one function that changes them.
//!
//! ```text
//! Loaded ─InitStarted─► Initialising ─InitSucceeded─► Initialised ─InitCompleted─► Running
//!    Running ─DrainRequested─► Draining ─Drained─► Finishing ─FiniAnswered─► Retired
//!    any of them ─Faulted | DeadlinePassed─► Failed        (Retired and Failed are final)
//! ```
//!
//! Does not call the module: `set` does, after the transition was granted.

use std::fmt;

use serde::Serialize;

/// State of a module.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
#[repr(u8)]
pub enum ModuleState {
    /// Mapped and checked; nothing of it was called but its entry function.
    Loaded,
    /// `init` runs on a thread of its own.
    Initialising,
    /// `init` succeeded.
    Initialised,
    /// Part of the host.
    Running,
    /// No new devices; its devices are going.
    Draining,
    /// `fini` was called.
    Finishing,
    /// `fini` was answered; the image stays mapped, nothing is called any more.
    Retired,
    /// A step failed or took too long; nothing is called any more.
    Failed,
}

/// What happens to a module.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ModuleEvent {
    /// `init` is about to be called.
    InitStarted,
    /// `init` returned 0.
    InitSucceeded,
    /// `init_complete` returned.
    InitCompleted,
    /// Someone unregisters it, or a newer version took over.
    DrainRequested,
    /// Its last device is gone.
    Drained,
    /// `fini` was answered with success.
    FiniAnswered,
    /// A step answered an error, or it broke the contract.
    Faulted,
    /// The deadline of the step it is in passed.
    DeadlinePassed,
}

/// An event that a state does not allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{event} is not possible while the module is {state}")]
pub struct InvalidTransition {
    /// The state.
    pub state: ModuleState,
    /// The event.
    pub event: ModuleEvent,
}

impl ModuleState {
    /// Every state, in order of a life.
    pub const ALL: [ModuleState; 8] = [
        ModuleState::Loaded,
        ModuleState::Initialising,
        ModuleState::Initialised,
        ModuleState::Running,
        ModuleState::Draining,
        ModuleState::Finishing,
        ModuleState::Retired,
        ModuleState::Failed,
    ];

    /// The state after `event`.
    pub fn next(self, event: ModuleEvent) -> Result<ModuleState, InvalidTransition> {
        use {ModuleEvent::*, ModuleState::*};
        Ok(match (self, event) {
            (Loaded, InitStarted) => Initialising,
            (Initialising, InitSucceeded) => Initialised,
            (Initialised, InitCompleted) => Running,
            (Running, DrainRequested) => Draining,
            (Draining, DrainRequested) => Draining, // a superseded module is unregistered as well
            (Draining, Drained) => Finishing,
            (Finishing, FiniAnswered) => Retired,
            (Loaded | Initialising | Initialised | Running | Draining | Finishing, Faulted) => Failed,
            (Initialising | Finishing, DeadlinePassed) => Failed,
            (Failed, Faulted) => Failed, // the first reason stays
            (
                Loaded,
                InitSucceeded | InitCompleted | DrainRequested | Drained | FiniAnswered | DeadlinePassed,
            )
            | (Initialising, InitStarted | InitCompleted | DrainRequested | Drained | FiniAnswered)
            | (
                Initialised,
                InitStarted | InitSucceeded | DrainRequested | Drained | FiniAnswered | DeadlinePassed,
            )
            | (
                Running,
                InitStarted | InitSucceeded | InitCompleted | Drained | FiniAnswered | DeadlinePassed,
            )
            | (Draining, InitStarted | InitSucceeded | InitCompleted | FiniAnswered | DeadlinePassed)
            | (Finishing, InitStarted | InitSucceeded | InitCompleted | DrainRequested | Drained)
            | (
                Retired,
                InitStarted | InitSucceeded | InitCompleted | DrainRequested | Drained | FiniAnswered
                | Faulted | DeadlinePassed,
            )
            | (
                Failed,
                InitStarted | InitSucceeded | InitCompleted | DrainRequested | Drained | FiniAnswered
                | DeadlinePassed,
            ) => return Err(InvalidTransition { state: self, event }),
        })
    }

    /// True if callbacks of the module may run.
    #[must_use]
    pub fn is_in_service(self) -> bool {
        matches!(self, ModuleState::Initialised | ModuleState::Running | ModuleState::Draining)
    }

    /// True if the module may be given new devices to make or to examine.
    #[must_use]
    pub fn takes_devices(self) -> bool {
        matches!(self, ModuleState::Initialised | ModuleState::Running)
    }

    /// True if nothing will change any more.
    #[must_use]
    pub fn is_final(self) -> bool {
        matches!(self, ModuleState::Retired | ModuleState::Failed)
    }

    pub(crate) fn from_index(index: u8) -> ModuleState {
        ModuleState::ALL[usize::from(index)]
    }
}

impl ModuleEvent {
    /// Every event.
    pub const ALL: [ModuleEvent; 8] = [
        ModuleEvent::InitStarted,
        ModuleEvent::InitSucceeded,
        ModuleEvent::InitCompleted,
        ModuleEvent::DrainRequested,
        ModuleEvent::Drained,
        ModuleEvent::FiniAnswered,
        ModuleEvent::Faulted,
        ModuleEvent::DeadlinePassed,
    ];
}

impl fmt::Display for ModuleState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ModuleState::Loaded => "loaded",
            ModuleState::Initialising => "initialising",
            ModuleState::Initialised => "initialised",
            ModuleState::Running => "running",
            ModuleState::Draining => "draining",
            ModuleState::Finishing => "finishing",
            ModuleState::Retired => "retired",
            ModuleState::Failed => "failed",
        })
    }
}

impl fmt::Display for ModuleEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ModuleEvent::InitStarted => "starting init",
            ModuleEvent::InitSucceeded => "finishing init",
            ModuleEvent::InitCompleted => "completing init",
            ModuleEvent::DrainRequested => "unregistering",
            ModuleEvent::Drained => "finishing",
            ModuleEvent::FiniAnswered => "retiring",
            ModuleEvent::Faulted => "failing",
            ModuleEvent::DeadlinePassed => "passing a deadline",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> String {
        let mut text = String::new();
        for state in ModuleState::ALL {
            for event in ModuleEvent::ALL {
                let next = match state.next(event) {
                    Ok(next) => format!("{next:?}"),
                    Err(_) => "-".into(),
                };
                text += &format!("{:<13} {:<15} {next}\n", format!("{state:?}"), format!("{event:?}"));
            }
        }
        text
    }

    #[test]
    fn the_transition_table_is_the_committed_one() {
        assert_eq!(table(), include_str!("state_table.txt"), "the table is now:\n{}", table());
    }

    #[test]
    fn indices_name_their_states() {
        for state in ModuleState::ALL {
            assert_eq!(ModuleState::from_index(state as u8), state);
        }
    }

    #[test]
    fn final_states_are_left_by_nothing() {
        for state in ModuleState::ALL.into_iter().filter(|state| state.is_final()) {
            for event in ModuleEvent::ALL {
                assert!(state.next(event).is_err() || state.next(event) == Ok(state));
            }
        }
    }
}
