//! Waits until a device has no I/O left, or no channels either, with a deadline.
//!
//! The gate is not told of completions, so the control reactor asks at growing intervals; it asks nobody
//! when no channel is open. When the deadline passes, the waiter hears what is left, and nothing is
//! done to it.
// UNSAFETY: visits read the channels of the reactor they run on.

use std::sync::Arc;

use tenon_reactor::now_ns;

use super::broadcast::{assert_control, at, each_channel};
use super::gate::Gate;

/// What was left of a device's use when a wait ended: all zero, unless the deadline passed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Drained {
    /// I/Os in the module, or with memory still lent.
    pub outstanding: u64,
    /// I/Os that wait in the gate.
    pub queued: u64,
    /// Channels of consumers.
    pub channels: u32,
    /// Channels of the module.
    pub module_channels: u32,
}

impl Drained {
    /// Whether nothing is left.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Drained::default()
    }
}

type Done = Box<dyn FnOnce(Drained)>;

impl Gate {
    /// Waits until no I/O is outstanding and every channel is closed, the module's included; `done` runs on
    /// the control reactor then, or at `deadline_ns` (as [`tenon_reactor::now_ns`]; `u64::MAX`: never).
    ///
    /// # Panics
    /// Anywhere but on the control reactor.
    pub fn wait_drained(self: &Arc<Self>, deadline_ns: u64, done: impl FnOnce(Drained) + 'static) {
        assert_control();
        look(self, deadline_ns, Scope::Channels, FIRST_WAIT_NS, Box::new(done));
    }

    /// Waits until no I/O is in the module, whatever waits in the gate; normally after
    /// [`Gate::set_phase`] to Frozen. Otherwise as [`Gate::wait_drained`].
    ///
    /// # Panics
    /// Anywhere but on the control reactor.
    pub fn wait_quiet(self: &Arc<Self>, deadline_ns: u64, done: impl FnOnce(Drained) + 'static) {
        assert_control();
        look(self, deadline_ns, Scope::Outstanding, FIRST_WAIT_NS, Box::new(done));
    }
}

/// What must be gone.
#[derive(Clone, Copy)]
enum Scope {
    Outstanding,
    Channels,
}

fn look(gate: &Arc<Gate>, deadline_ns: u64, scope: Scope, wait_ns: u64, done: Done) {
    let again = Arc::clone(gate);
    each_channel(
        gate,
        // SAFETY: `each_channel` calls with the live channel of the reactor it runs on.
        |m| unsafe { (u64::from((*m).io.outstanding), u64::from((*m).queued())) },
        move |answers| {
            let census = again.census();
            let left = Drained {
                outstanding: answers.iter().map(|(_, (outstanding, _))| outstanding).sum(),
                queued: answers.iter().map(|(_, (_, queued))| queued).sum(),
                channels: census.channels,
                module_channels: census.module_channels,
            };
            let is_over = match scope {
                Scope::Outstanding => left.outstanding == 0,
                Scope::Channels => left.is_empty(),
            };
            let now = now_ns();
            if is_over || now >= deadline_ns {
                return done(left);
            }
            let next = (now + wait_ns).min(deadline_ns);
            let wait_ns = (wait_ns * 2).min(LONGEST_WAIT_NS);
            at(next, move || look(&again, deadline_ns, scope, wait_ns, done));
        },
    );
}

/// First and longest time between two looks.
const FIRST_WAIT_NS: u64 = 100_000;
const LONGEST_WAIT_NS: u64 = 5_000_000;
