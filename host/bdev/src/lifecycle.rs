//! The life of a block device as one state machine.
//!
//! ```text
//!  Registering ──Offer──► Examining ──Examined──► Ready ◄──BackingFound── Absent
//!       │                     │                     └──────BackingLost──────▲
//!       └─────────────────────┴───── Remove ────────┴───────────────────────┘
//!                                      ▼
//!                                  Orphaned ──Released──► Draining ──Destructed──► Destroyed
//! ```
//!
//! Says what may follow what; who makes it happen is in `examine`, `backing`
//! and `removal`. Every pair of state and event is decided here, and the table
//! is kept in `lifecycle.table`.

use std::fmt;

use tenon_abi::BdevState;

/// Where a device stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum State {
    /// Has a name; nobody has heard of it yet.
    Registering,
    /// Is offered to the modules for the first time.
    Examining,
    /// In service.
    Ready,
    /// Backing gone, identity kept.
    Absent,
    /// New I/O bounces; openers have been told.
    Orphaned,
    /// Nobody holds it; its module is destructing it.
    Draining,
    /// Gone.
    Destroyed,
}

/// What may happen to a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Event {
    /// The modules are asked.
    Offer,
    /// The modules have answered, or need not be asked.
    Examined,
    /// Its backing disappeared.
    BackingLost,
    /// Its backing is there again, after the first examination.
    BackingFound,
    /// Its backing is there again, while the first examination goes on.
    BackingFoundEarly,
    /// It has to go.
    Remove,
    /// No descriptor, examination or channel is left.
    Released,
    /// Its module has let go of it.
    Destructed,
}

/// An event that cannot happen in a state: a fault of this program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{event:?} cannot happen to a device that is {state}")]
pub(crate) struct InvalidTransition {
    pub state: State,
    pub event: Event,
}

impl State {
    /// What follows `self` on `event`. Duplicates and late news change nothing.
    pub(crate) fn next(self, event: Event) -> Result<State, InvalidTransition> {
        use Event::{
            BackingFound, BackingFoundEarly, BackingLost, Destructed, Examined, Offer, Released, Remove,
        };
        use State::{Absent, Destroyed, Draining, Examining, Orphaned, Ready, Registering};
        Ok(match (self, event) {
            (Registering | Examining, Offer) => Examining,
            (Registering | Examining | Ready, Examined) | (Ready, Offer) => Ready,
            (Registering | Examining | Ready | Absent, BackingLost) | (Absent, Offer | Examined) => Absent,
            (Absent, BackingFound) => Ready,
            (Absent, BackingFoundEarly) => Examining,
            (Registering | Examining | Ready, BackingFound | BackingFoundEarly) => self,
            (Registering | Examining | Ready | Absent, Remove) => Orphaned,
            (
                Orphaned | Draining | Destroyed,
                Remove | Examined | BackingLost | BackingFound | BackingFoundEarly,
            ) => self,
            (Orphaned, Released) => Draining,
            (Draining, Destructed) => Destroyed,
            (Orphaned | Draining | Destroyed, Offer)
            | (Registering | Examining | Ready | Absent | Draining | Destroyed, Released)
            | (Registering | Examining | Ready | Absent | Orphaned | Destroyed, Destructed) => {
                return Err(InvalidTransition { state: self, event });
            }
        })
    }

    /// It exists for consumers: it may be found by name.
    pub fn is_in_service(self) -> bool {
        match self {
            State::Ready | State::Absent => true,
            State::Registering | State::Examining => false,
            State::Orphaned | State::Draining | State::Destroyed => false,
        }
    }

    /// It may be opened by who holds its handle.
    pub(crate) fn may_be_opened(self) -> bool {
        match self {
            State::Registering | State::Examining | State::Ready | State::Absent => true,
            State::Orphaned | State::Draining | State::Destroyed => false,
        }
    }

    /// As modules see it.
    pub fn to_abi(self) -> BdevState {
        match self {
            State::Registering => BdevState::REGISTERING,
            State::Examining => BdevState::EXAMINING,
            State::Ready => BdevState::READY,
            State::Absent => BdevState::ABSENT,
            State::Orphaned => BdevState::ORPHANED,
            State::Draining => BdevState::DRAINING,
            State::Destroyed => BdevState::DESTROYED,
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            State::Registering => "registering",
            State::Examining => "examining",
            State::Ready => "ready",
            State::Absent => "absent",
            State::Orphaned => "orphaned",
            State::Draining => "draining",
            State::Destroyed => "destroyed",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::{Event, State};

    const STATES: [State; 7] = [
        State::Registering,
        State::Examining,
        State::Ready,
        State::Absent,
        State::Orphaned,
        State::Draining,
        State::Destroyed,
    ];
    const EVENTS: [Event; 8] = [
        Event::Offer,
        Event::Examined,
        Event::BackingLost,
        Event::BackingFound,
        Event::BackingFoundEarly,
        Event::Remove,
        Event::Released,
        Event::Destructed,
    ];

    fn table() -> String {
        let mut text = String::new();
        for state in STATES {
            for event in EVENTS {
                let next = state.next(event).map_or("-".to_owned(), |next| next.to_string());
                text.push_str(&format!("{:<12} {:<18} {next}\n", state.to_string(), format!("{event:?}")));
            }
        }
        text
    }

    #[test]
    fn the_table_is_the_committed_one() {
        if std::env::var_os("UPDATE_SNAPSHOTS").is_some() {
            std::fs::write(concat!(env!("CARGO_MANIFEST_DIR"), "/src/lifecycle.table"), table()).unwrap();
        }
        assert_eq!(table(), include_str!("lifecycle.table"), "UPDATE_SNAPSHOTS=1 writes the new one");
    }

    #[test]
    fn removal_is_idempotent_and_final() {
        for state in STATES {
            let removed = state.next(Event::Remove).unwrap();
            assert!(!removed.may_be_opened());
            assert_eq!(removed.next(Event::Remove), Ok(removed));
            for event in [Event::Examined, Event::BackingFound, Event::BackingLost] {
                assert_eq!(removed.next(event), Ok(removed));
            }
        }
    }
}
