//! The life of a controller: states, what happens to it, what follows.
//!
//! One total function decides; `controller` does what it says. Whether a lost
//! connection is tried again is decided by [`Failure::next`], the only place
//! that knows the timers.

/// What becomes of a controller once its queues are closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Connect again at once.
    Reconnect,
    /// Connect again after a delay.
    Delay,
    /// Give up; an operator may reset it.
    Fail,
    /// Rest, as an operator wants.
    Disable,
    /// Go.
    Delete,
}

/// State of a controller.
///
/// ```text
///            ┌───────────────────────── DelayOver, Reset ─────────────────────────┐
///            ▼                                                                    │
///       Connecting ──Connected──► Identifying ──Identified──► Ready               │
///            ▲  │                      │                        │                 │
///            │  └────────Lost──────────┴───Lost, Reset, ────────┘                 │
///            │                             Disable, Delete                        │
///            │                                   ▼                                │
///            └──Drained, Reconnect── Closing(Next) ──Drained──► Delayed ──────────┤
///                                          │──────────────────► Failed ───────────┤
///                                          │──────────────────► Disabled ─Enable──┘
///                                          └──────────────────► Deleted
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Connecting,
    Identifying,
    Ready,
    Closing(Next),
    Delayed,
    Failed,
    Disabled,
    Deleted,
}

/// What happens to a controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// The admin queue is connected.
    Connected,
    /// Everything is known that has to be.
    Identified,
    /// A connection or a command that matters failed; the verdict on it.
    Lost(Next),
    /// Every queue is closed.
    Drained,
    /// The delay is over.
    DelayOver,
    /// An operator, or the device above, wants it to begin anew.
    Reset,
    Disable,
    Enable,
    Delete,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    Nothing,
    /// Connect the admin queue.
    Connect,
    /// Ask the controller about itself and its namespaces.
    Identify,
    /// Let I/O go.
    Serve,
    /// Stop I/O and close every queue; `Drained` follows.
    Close,
    /// Wait for the delay.
    Wait,
    /// Nothing more happens by itself.
    Rest,
    /// Take it away.
    Remove,
}

impl State {
    /// What follows, and what is to be done.
    pub(crate) fn on(self, event: Event) -> (State, Action) {
        use Event::{Connected, DelayOver, Delete, Disable, Drained, Enable, Identified, Lost, Reset};
        use State::{Closing, Connecting, Delayed, Deleted, Disabled, Failed, Identifying, Ready};
        match (self, event) {
            (Connecting, Connected) => (Identifying, Action::Identify),
            (Identifying, Identified) => (Ready, Action::Serve),
            (Connecting | Identifying | Ready, Lost(next)) => (Closing(next), Action::Close),
            (Ready, Reset) => (Closing(Next::Reconnect), Action::Close),
            (Connecting | Identifying | Ready, Disable) => (Closing(Next::Disable), Action::Close),
            (Connecting | Identifying | Ready | Delayed | Failed | Disabled, Delete) => {
                (Closing(Next::Delete), Action::Close)
            }
            (Closing(next), Drained) => match next {
                Next::Reconnect => (Connecting, Action::Connect),
                Next::Delay => (Delayed, Action::Wait),
                Next::Fail => (Failed, Action::Rest),
                Next::Disable => (Disabled, Action::Rest),
                Next::Delete => (Deleted, Action::Remove),
            },
            (Closing(Next::Reconnect | Next::Delay | Next::Fail), Reset)
            | (Closing(Next::Disable | Next::Fail), Enable) => (Closing(Next::Reconnect), Action::Nothing),
            (Closing(Next::Reconnect | Next::Delay | Next::Fail | Next::Disable), Disable) => {
                (Closing(Next::Disable), Action::Nothing)
            }
            (Closing(_), Delete) => (Closing(Next::Delete), Action::Nothing),
            (Delayed, DelayOver | Reset) | (Failed, Reset | Enable) | (Disabled, Enable) => {
                (Connecting, Action::Connect)
            }
            (Delayed, Lost(next)) => (Closing(next), Action::Close),
            (Delayed | Failed, Disable) => (Disabled, Action::Rest),
            (Connecting, Identified | Drained | DelayOver | Reset | Enable)
            | (Identifying, Connected | Drained | DelayOver | Reset | Enable)
            | (Ready, Connected | Identified | Drained | DelayOver | Enable)
            | (Closing(_), Connected | Identified | Lost(_) | DelayOver | Reset | Disable | Enable)
            | (Delayed, Connected | Identified | Drained | Enable)
            | (Failed, Connected | Identified | Lost(_) | Drained | DelayOver)
            | (Disabled, Connected | Identified | Lost(_) | Drained | DelayOver | Reset | Disable)
            | (
                Deleted,
                Connected | Identified | Lost(_) | Drained | DelayOver | Reset | Disable | Enable | Delete,
            ) => (self, Action::Nothing),
        }
    }

    /// The word of `bdev_nvme_get_controllers`.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            State::Closing(Next::Delete) | State::Deleted => "deleting",
            State::Failed | State::Closing(Next::Fail) => "failed",
            State::Connecting | State::Identifying | State::Closing(Next::Reconnect | Next::Delay) => {
                "resetting"
            }
            State::Delayed => "reconnect_is_delayed",
            State::Disabled | State::Closing(Next::Disable) => "disabled",
            State::Ready => "enabled",
        }
    }
}

/// What is known when a connection is lost or an attempt has failed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Failure {
    /// It was ready before, ever.
    pub(crate) was_attached: bool,
    /// How long it was ready this time; `None` if it was not.
    pub(crate) ready_ns: Option<u64>,
    /// Time since the connection was lost; 0 if just now.
    pub(crate) lost_ns: u64,
    /// 0: no second attempt.
    pub(crate) reconnect_delay_sec: u32,
    /// -1: for ever.
    pub(crate) ctrlr_loss_timeout_sec: i32,
}

impl Failure {
    /// What becomes of the controller.
    pub(crate) fn next(&self) -> Next {
        if !self.was_attached {
            return Next::Delete;
        }
        match self.ready_ns {
            Some(ready_ns) if ready_ns >= STABLE_NS => Next::Reconnect,
            _ if self.reconnect_delay_sec == 0 => Next::Fail,
            // It came up and fell at once: with a delay, or it would be tried without end and pause.
            Some(_) => Next::Delay,
            None => match u64::try_from(self.ctrlr_loss_timeout_sec) {
                Ok(limit_sec) if self.lost_ns >= limit_sec * 1_000_000_000 => Next::Delete,
                Ok(_) | Err(_) => Next::Delay,
            },
        }
    }
}

/// A controller that was ready for less has not really come back.
const STABLE_NS: u64 = 1_000_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    const STATES: [State; 12] = [
        State::Connecting,
        State::Identifying,
        State::Ready,
        State::Closing(Next::Reconnect),
        State::Closing(Next::Delay),
        State::Closing(Next::Fail),
        State::Closing(Next::Disable),
        State::Closing(Next::Delete),
        State::Delayed,
        State::Failed,
        State::Disabled,
        State::Deleted,
    ];

    const EVENTS: [Event; 13] = [
        Event::Connected,
        Event::Identified,
        Event::Lost(Next::Reconnect),
        Event::Lost(Next::Delay),
        Event::Lost(Next::Fail),
        Event::Lost(Next::Disable),
        Event::Lost(Next::Delete),
        Event::Drained,
        Event::DelayOver,
        Event::Reset,
        Event::Disable,
        Event::Enable,
        Event::Delete,
    ];

    #[test]
    fn whatever_happens_a_deletion_ends_in_deletion() {
        // Every sequence of three events after Delete, with the Drained that Close owes.
        for state in STATES {
            for a in EVENTS {
                for b in EVENTS {
                    let mut at = state.on(Event::Delete).0;
                    at = at.on(a).0;
                    at = at.on(b).0;
                    at = at.on(Event::Drained).0;
                    assert_eq!(at, State::Deleted, "{state:?} {a:?} {b:?}");
                }
            }
        }
    }

    #[test]
    fn duplicates_do_nothing_more() {
        for state in STATES {
            for event in EVENTS {
                let (once, _) = state.on(event);
                let (twice, action) = once.on(event);
                // A second Drained may not connect again, a second Lost may not close again.
                if matches!(event, Event::Drained | Event::Lost(_) | Event::Delete | Event::Disable) {
                    assert_eq!((twice, action), (once, Action::Nothing), "{state:?} {event:?}");
                }
            }
        }
    }

    #[test]
    fn queues_are_closed_whenever_a_serving_state_is_left() {
        for state in STATES {
            for event in EVENTS {
                let (next, action) = state.on(event);
                let was_open = matches!(state, State::Connecting | State::Identifying | State::Ready);
                let is_open = matches!(next, State::Connecting | State::Identifying | State::Ready);
                if was_open && !is_open {
                    assert_eq!(action, Action::Close, "{state:?} {event:?}");
                }
                if !was_open && is_open {
                    assert_eq!((next, action), (State::Connecting, Action::Connect), "{state:?} {event:?}");
                }
            }
        }
    }

    /// Every state with every event, in words.
    fn table() -> String {
        let mut text = String::new();
        for state in STATES {
            for event in EVENTS {
                let (next, action) = state.on(event);
                let [state, event, next] = [format!("{state:?}"), format!("{event:?}"), format!("{next:?}")];
                text += &format!("{state:<18} {event:<16} {next:<18} {action:?}\n");
            }
        }
        text
    }

    #[test]
    fn the_transition_table_is_the_committed_one() {
        assert_eq!(table(), include_str!("state_table.txt"), "the table is now:\n{}", table());
    }

    #[track_caller]
    fn check(ready_sec: Option<u64>, lost_sec: u64, delay: u32, loss: i32, expected: Next) {
        let failure = Failure {
            was_attached: true,
            ready_ns: ready_sec.map(|sec| sec * 1_000_000_000),
            lost_ns: lost_sec * 1_000_000_000,
            reconnect_delay_sec: delay,
            ctrlr_loss_timeout_sec: loss,
        };
        assert_eq!(failure.next(), expected, "{failure:?}");
    }

    #[test]
    fn timers_decide_what_becomes_of_a_lost_controller() {
        check(Some(10), 0, 0, 0, Next::Reconnect);
        check(Some(10), 0, 2, 10, Next::Reconnect);
        check(None, 0, 0, 0, Next::Fail);
        check(None, 3, 2, 10, Next::Delay);
        check(None, 10, 2, 10, Next::Delete);
        check(None, 1_000_000, 2, -1, Next::Delay);
        check(Some(0), 0, 2, -1, Next::Delay);
        check(Some(0), 0, 0, 0, Next::Fail);
        let never = Failure {
            was_attached: false,
            ready_ns: None,
            lost_ns: 0,
            reconnect_delay_sec: 1,
            ctrlr_loss_timeout_sec: -1,
        };
        assert_eq!(never.next(), Next::Delete);
    }
}
