//! The life of a device as one enum and one total function.

use tenon_abi::BdevState;

/// ```text
/// Registering ─Examine─► Examining ─ExamineDone─► Ready ⇄ Absent
///      └──────────────────────┴── Unregister ──────┴───────┴─► Orphaned ─Released─► Draining ─Destructed─► Destroyed
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum DeviceState {
    Registering,
    Examining,
    Ready,
    Absent,
    Orphaned,
    Draining,
    Destroyed,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum DeviceEvent {
    Examine,
    ExamineDone,
    BackingGone,
    BackingBack,
    Unregister,
    Released,
    Destructed,
}

impl DeviceState {
    /// The state after `event`; the same state where the event means nothing.
    pub(crate) fn next(self, event: DeviceEvent) -> DeviceState {
        use DeviceEvent::{BackingBack, BackingGone, Destructed, Examine, ExamineDone, Released, Unregister};
        use DeviceState::{Absent, Destroyed, Draining, Examining, Orphaned, Ready, Registering};
        match (self, event) {
            (Registering, Examine) => Examining,
            (Registering | Examining, ExamineDone) => Ready,
            (Ready | Examining, BackingGone) => Absent,
            (Absent, BackingBack) => Ready,
            (Registering | Examining | Ready | Absent, Unregister) => Orphaned,
            (Orphaned, Released) => Draining,
            (Draining, Destructed) => Destroyed,
            (Registering, BackingGone | BackingBack | Released | Destructed)
            | (Examining, Examine | BackingBack | Released | Destructed)
            | (Ready, Examine | ExamineDone | BackingBack | Released | Destructed)
            | (Absent, Examine | ExamineDone | BackingGone | Released | Destructed)
            | (Orphaned, Examine | ExamineDone | BackingGone | BackingBack | Unregister | Destructed)
            | (Draining, Examine | ExamineDone | BackingGone | BackingBack | Unregister | Released)
            | (
                Destroyed,
                Examine | ExamineDone | BackingGone | BackingBack | Unregister | Released | Destructed,
            ) => self,
        }
    }

    /// True while consumers may open it.
    pub(crate) fn is_open_to_consumers(self) -> bool {
        match self {
            DeviceState::Registering | DeviceState::Examining | DeviceState::Ready | DeviceState::Absent => {
                true
            }
            DeviceState::Orphaned | DeviceState::Draining | DeviceState::Destroyed => false,
        }
    }

    pub(crate) fn to_abi(self) -> BdevState {
        match self {
            DeviceState::Registering => BdevState::REGISTERING,
            DeviceState::Examining => BdevState::EXAMINING,
            DeviceState::Ready => BdevState::READY,
            DeviceState::Absent => BdevState::ABSENT,
            DeviceState::Orphaned => BdevState::ORPHANED,
            DeviceState::Draining => BdevState::DRAINING,
            DeviceState::Destroyed => BdevState::DESTROYED,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{DeviceEvent, DeviceState};

    #[test]
    fn a_removed_device_never_comes_back() {
        use DeviceEvent::{BackingBack, BackingGone, Destructed, Examine, ExamineDone, Released, Unregister};
        let mut state = DeviceState::Ready.next(Unregister);
        for event in [Examine, ExamineDone, BackingGone, BackingBack, Unregister, Destructed] {
            assert_eq!(state.next(event), DeviceState::Orphaned);
        }
        state = state.next(Released).next(Destructed);
        assert_eq!(state, DeviceState::Destroyed);
        assert!(!state.is_open_to_consumers());
    }
}
