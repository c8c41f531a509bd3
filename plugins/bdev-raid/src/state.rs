//! The life of an array as one enum and one transition function.
//!
//! ```text
//!               AllPresent            Committed
//!  Configuring ───────────► Committing ────────► Online
//!    │  ▲                    │   │                 │ Closed
//!    │  └──── Refused ───────┘   │                 ▼
//!    └── Closed ─► Gone ◄─Closed─┘              Closing ── Destructed ─► Gone
//! ```

use thiserror::Error;

/// Where an array is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ArrayState {
    /// Waits for members.
    Configuring,
    /// Superblocks are being read and written; not a device yet.
    Committing,
    /// A device.
    Online,
    /// Its device is being removed.
    Closing,
    /// Nothing is left.
    Gone,
}

/// What happens to an array.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ArrayEvent {
    /// Every member it needs is open.
    AllPresent,
    /// Superblocks are durable and the device is registered.
    Committed,
    /// It could not become a device, and goes on waiting.
    Refused,
    /// It is given up: deleted, rolled back or lost.
    Closed,
    /// The host has destructed its device.
    Destructed,
}

/// An event that makes no sense in a state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("array that is {state:?} got {event:?}")]
pub struct InvalidTransition {
    state: ArrayState,
    event: ArrayEvent,
}

impl ArrayState {
    /// The state after an event.
    ///
    /// # Errors
    /// If the event makes no sense.
    pub fn next(self, event: ArrayEvent) -> Result<ArrayState, InvalidTransition> {
        use {ArrayEvent::*, ArrayState::*};
        Ok(match (self, event) {
            (Configuring, AllPresent) => Committing,
            (Committing, Committed) => Online,
            (Committing, Refused) => Configuring,
            (Configuring | Committing, Closed) => Gone,
            // The host may remove the device without being asked.
            (Online, Closed) | (Closing, Closed) => Closing,
            (Online | Closing, Destructed) => Gone,
            (Gone, Closed | Destructed) => Gone,
            (Configuring, Committed | Refused | Destructed)
            | (Committing, AllPresent | Destructed)
            | (Online, AllPresent | Committed | Refused)
            | (Closing, AllPresent | Committed | Refused)
            | (Gone, AllPresent | Committed | Refused) => {
                return Err(InvalidTransition { state: self, event });
            }
        })
    }

    /// As clients name it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            ArrayState::Configuring | ArrayState::Committing => "configuring",
            ArrayState::Online => "online",
            ArrayState::Closing | ArrayState::Gone => "offline",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{ArrayEvent::*, ArrayState::*};

    #[test]
    fn every_pair_is_decided() {
        let table = [
            (Configuring, [Some(Committing), None, None, Some(Gone), None]),
            (Committing, [None, Some(Online), Some(Configuring), Some(Gone), None]),
            (Online, [None, None, None, Some(Closing), Some(Gone)]),
            (Closing, [None, None, None, Some(Closing), Some(Gone)]),
            (Gone, [None, None, None, Some(Gone), Some(Gone)]),
        ];
        for (state, expected) in table {
            let events = [AllPresent, Committed, Refused, Closed, Destructed];
            assert_eq!(events.map(|event| state.next(event).ok()), expected, "{state:?}");
        }
    }
}
