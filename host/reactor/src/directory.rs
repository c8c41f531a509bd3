//! How others reach a reactor: its identity, its message queue, its statistics.
//!
//! Everything here is `Send + Sync`; it is all that other threads may touch. What
//! belongs to the reactor's own thread is in `local`.
// UNSAFETY: offers messages that are C functions, for which their sender vouches.

use std::ffi::c_void;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use crate::callback::{Callback, MessageFn};
use crate::clock::in_simulation;
use crate::local::try_current;
use crate::message::{MESSAGE_QUEUE_CAPACITY, Message, MessageQueue};
use crate::stats::{Published, Statistics};
use crate::wake::{SleepState, Waker};

/// Which reactor; dense, so that it can index an array.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ReactorId(u32);

impl ReactorId {
    /// The control reactor.
    pub const CONTROL: Self = Self(0);

    /// The `n`-th data reactor.
    pub const fn data(n: usize) -> Self {
        Self(n as u32 + 1)
    }

    /// 0 for the control reactor, `n + 1` for the `n`-th data reactor.
    pub const fn index(self) -> usize {
        self.0 as usize
    }

    /// `n` for the `n`-th data reactor.
    pub const fn data_index(self) -> Option<usize> {
        match self.0 {
            0 => None,
            n => Some(n as usize - 1),
        }
    }
}

impl fmt::Display for ReactorId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.data_index() {
            None => f.write_str("control"),
            Some(n) => write!(f, "reactor_{n}"),
        }
    }
}

/// Why a message was not taken. The closure was dropped without having run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// As many messages wait as may.
    #[error("message queue is full capacity={MESSAGE_QUEUE_CAPACITY}")]
    QueueFull,
    /// The reactor has stopped, or is about to.
    #[error("reactor has stopped")]
    Stopped,
}

/// Why a call to a reactor gave no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// The request was not taken.
    #[error("request was not taken")]
    Send(#[from] SendError),
    /// There was no answer in time; the request may still run.
    #[error("no answer within {0:?}")]
    TimedOut(Duration),
    /// The reactor stopped before it came to the request.
    #[error("reactor stopped before it answered")]
    Dropped,
}

/// A reactor, as seen from any thread.
#[derive(Clone)]
pub struct ReactorRef {
    shared: Arc<Shared>,
}

/// What a reactor's thread and everyone else share.
pub(crate) struct Shared {
    pub id: ReactorId,
    pub name: String,
    pub queue: MessageQueue,
    pub sleep: SleepState,
    /// `None` in a simulation, where nobody sleeps in the kernel.
    pub waker: Option<Waker>,
    pub is_stopped: AtomicBool,
    pub published: Published,
}

impl Shared {
    pub(crate) fn new(id: ReactorId, waker: Option<Waker>) -> Arc<Self> {
        Arc::new(Self {
            id,
            name: id.to_string(),
            queue: MessageQueue::new(MESSAGE_QUEUE_CAPACITY),
            sleep: SleepState::new(),
            waker,
            is_stopped: AtomicBool::new(false),
            published: Published::default(),
        })
    }
}

impl ReactorRef {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Which reactor this is.
    pub fn id(&self) -> ReactorId {
        self.shared.id
    }

    /// `control`, or `reactor_<n>`.
    pub fn name(&self) -> &str {
        &self.shared.name
    }

    /// Whether it is the control reactor.
    pub fn is_control(&self) -> bool {
        self.shared.id == ReactorId::CONTROL
    }

    /// Whether the caller runs on it.
    pub fn is_current(&self) -> bool {
        try_current().is_some_and(|local| Arc::ptr_eq(&local.core().shared, &self.shared))
    }

    /// The core its thread is pinned to, if it is.
    pub fn cpu(&self) -> Option<u32> {
        self.statistics().cpu
    }

    /// What it has done so far.
    pub fn statistics(&self) -> Statistics {
        self.shared.published.snapshot(self.shared.queue.len())
    }

    /// Runs `f` on the reactor, after whatever the calling thread has sent there before.
    ///
    /// From any thread, also from the reactor itself; never blocks, never runs `f` at once.
    pub fn send(&self, f: impl FnOnce() + Send + 'static) -> Result<(), SendError> {
        self.send_message(Message::once(f)).map_err(|(error, _)| error)
    }

    /// Runs `f(arg)` on the reactor; no allocation.
    ///
    /// # Safety
    ///
    /// `f` must be callable with `arg` on the reactor's thread, at any later time.
    pub unsafe fn send_raw(&self, f: MessageFn, arg: *mut c_void) -> Result<(), SendError> {
        self.send_message(Callback::raw(f, arg)).map_err(|(error, _)| error)
    }

    /// Runs `f` on the reactor and waits for what it returns.
    ///
    /// # Panics
    ///
    /// On a reactor's thread, which must not block; in a simulation use `Simulation::on`.
    pub fn call<T: Send + 'static>(
        &self,
        timeout: Duration,
        f: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, CallError> {
        assert!(try_current().is_none() && !in_simulation(), "a reactor must not wait for {}", self.name());
        let (sender, receiver) = mpsc::sync_channel(1);
        self.send(move || {
            // The caller may have given up; then nobody wants the answer.
            let _ = sender.send(f());
        })?;
        receiver.recv_timeout(timeout).map_err(|error| match error {
            mpsc::RecvTimeoutError::Timeout => CallError::TimedOut(timeout),
            mpsc::RecvTimeoutError::Disconnected => CallError::Dropped,
        })
    }

    /// As [`Self::send`], but gives a message that was not taken back.
    pub(crate) fn send_message(&self, message: Message) -> Result<(), (SendError, Message)> {
        let shared = &*self.shared;
        if shared.is_stopped.load(Ordering::Relaxed) {
            return Err((SendError::Stopped, message));
        }
        shared.queue.push(message).map_err(|message| (SendError::QueueFull, message))?;
        if shared.sleep.claim_wake()
            && let Some(waker) = &shared.waker
        {
            waker.wake();
        }
        Ok(())
    }
}

impl fmt::Debug for ReactorRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ReactorRef").field(&self.name()).finish()
    }
}

impl PartialEq for ReactorRef {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.shared, &other.shared)
    }
}

impl Eq for ReactorRef {}

impl Hash for ReactorRef {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.shared.id.hash(state);
    }
}

/// All reactors of a process, or of a simulation.
#[derive(Clone, Debug)]
pub struct Directory {
    /// The control reactor first.
    reactors: Arc<[ReactorRef]>,
}

impl Directory {
    pub(crate) fn new(reactors: impl IntoIterator<Item = Arc<Shared>>) -> Self {
        Self { reactors: reactors.into_iter().map(ReactorRef::new).collect() }
    }

    /// The control reactor.
    pub fn control(&self) -> &ReactorRef {
        &self.reactors[0]
    }

    /// The data reactors, by number.
    pub fn data(&self) -> &[ReactorRef] {
        &self.reactors[1..]
    }

    /// A reactor by id.
    pub fn get(&self, id: ReactorId) -> Option<&ReactorRef> {
        self.reactors.get(id.index())
    }

    /// All of them, the control reactor first; the position is [`ReactorId::index`].
    pub fn all(&self) -> &[ReactorRef] {
        &self.reactors
    }
}
