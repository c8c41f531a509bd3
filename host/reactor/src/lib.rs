//! Reactors: one event loop per thread, with pollers, timers, file descriptors and messages.
//!
//! This is the lowest crate of the host. It knows threads and time; it knows
//! nothing of block devices, of modules or of their ABI. A layer above bridges
//! the `*_raw` entry points, which take a C function and a pointer, to it.
//!
//! # Architecture
//!
//! ```text
//!  any thread                       reactor thread
//!  ReactorRef::send ──► message ──► turn: fds · messages · deferred · pollers · timers
//!        │               queue        │ busy                      │ idle for `spin`
//!        └─ wakes only a sleeper ─┐   └──► next turn              ▼
//!                                 └──────────────────────► sleep in epoll
//! ```
//!
//! * A [`reactor`](crate::Local) belongs to one thread. What belongs to it (pollers, timers,
//!   descriptors) is reached through [`current`], is `!Send`, and needs no lock. The only door
//!   for other threads is [`ReactorRef`]: a bounded queue of messages.
//! * There is one **control** reactor, which never busy-polls and on which topology changes are
//!   made one at a time, and any number of **data** reactors, each pinned to a core.
//! * A data reactor is adaptive: it spins while there is work and for a short while after,
//!   then sleeps until a descriptor, a message or a timer needs it. [`Mode`] changes that.
//! * A callback never sees the reactor borrowed: it may register, pause, cancel or unregister
//!   anything, itself included. What it was made of is released at the end of the turn.
//!   Handles ([`PollerId`], [`TimerId`], [`FdId`]) carry a generation; a stale one fails.
//! * The clock is real or virtual. [`Simulation`] runs the same reactors in one thread, on a
//!   virtual clock, in an order that a seed decides: the base of every seeded test above.
//!
//! # Files
//!
//! `reactor` owns the order of a turn, `rest` the decision to sleep. `poller`, `timer`, `epoll`
//! and `message` each hold one kind of source; `slab` and `callback` what they are stored in.
//! `wake` is the sleep protocol, which is checked with loom together with `message`. `set` starts
//! and stops threads, `simulation` replaces them. `offload` runs what blocks. `stats` and
//! `watchdog` report.
//!
//! # Panics in callbacks
//!
//! A closure that panics is a bug in the host. On a real reactor the panic is logged with the
//! reactor's name and the process aborts: the state the closure worked on cannot be trusted.
//! Under [`Simulation`] the panic reaches the test that runs the simulation.

mod callback;
mod clock;
mod directory;
mod epoll;
mod local;
mod message;
mod offload;
mod poller;
mod random;
mod reactor;
mod rest;
mod set;
pub mod simulation;
mod slab;
mod stats;
mod sync;
#[cfg(test)]
#[cfg(not(loom))]
mod tests;
mod timer;
mod wake;
mod watchdog;

pub use callback::{FdFn, MessageFn, PollFn, TimerFn};
pub use clock::{precise_now_ns, ticks, ticks_hz};
pub use directory::{CallError, Directory, ReactorId, ReactorRef, SendError};
pub use epoll::{Events, Interest, MAX_FDS};
pub use local::{Local, RegisterError, current, now_ns, try_current};
pub use message::MESSAGE_QUEUE_CAPACITY;
pub use offload::{MAX_OFFLOAD_QUEUE, OffloadError};
pub use poller::{MAX_POLLERS, Poll, PollerKind, PollerState, PollerStatistics};
pub use reactor::{MAX_DEFERRED, MESSAGES_PER_TURN, TIMERS_PER_TURN};
pub use rest::{DEFAULT_SPIN, Mode, SLEEP_MODE_PURE_PERIOD};
pub use set::{
    Cpus, MAX_DATA_REACTORS, Reactors, ReactorsOptions, SHUTDOWN_GRACE, ShutdownError, StartError,
};
pub use simulation::{Simulation, Step};
pub use slab::{FdId, PollerId, TimerId};
pub use stats::Statistics;
pub use timer::MAX_TIMERS;
