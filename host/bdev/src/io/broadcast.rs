//! How the control reactor reaches a device's channels on the other reactors and collects what they say.
//!
//! A visit runs on every reactor that has a channel of the device now; its answers come back to the
//! control reactor, and `done` runs there when all are in, never from inside the call that started it. A reactor whose queue
//! is full is tried again; one that has stopped answers nothing and is not waited for.
// UNSAFETY: a value of the control reactor travels through other threads unopened.

use std::cell::{Cell, RefCell};
use std::mem::ManuallyDrop;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use log::{error, warn};
use parking_lot::Mutex;
use tenon_reactor::{ReactorId, ReactorRef, SendError, current, try_current};

use super::channel::ModuleChannel;
use super::gate::Gate;

/// Runs `visit` on each reactor where `gate` has a channel, then `done` here with the answers.
///
/// # Panics
/// Anywhere but on the control reactor.
pub(super) fn each_channel<R: Send + 'static>(
    gate: &Arc<Gate>,
    visit: impl Fn(*mut ModuleChannel) -> R + Send + Sync + 'static,
    done: impl FnOnce(Vec<(ReactorId, R)>) + 'static,
) {
    assert_control();
    let reactors = gate.open_reactors();
    let round = Rc::new(RefCell::new(Round {
        owed: reactors.len(),
        answers: Vec::with_capacity(reactors.len()),
        done: Some(Box::new(done)),
    }));
    if reactors.is_empty() {
        return later(move || Round::finish(&round));
    }
    let visit = Arc::new(visit);
    for reactor in reactors {
        let id = reactor.id();
        let (gate, visit) = (Arc::clone(gate), Arc::clone(&visit));
        let home = ControlOnly::new(Rc::clone(&round));
        deliver(&reactor, move || {
            let answer = gate.channel_here(id).map(|channel| visit(channel));
            let control = gate.directory().control().clone();
            deliver(&control, move || Round::arrive(&home.open(), id, answer));
        });
    }
}

struct Round<R> {
    owed: usize,
    answers: Vec<(ReactorId, R)>,
    done: Option<Done<R>>,
}

type Done<R> = Box<dyn FnOnce(Vec<(ReactorId, R)>)>;

impl<R> Round<R> {
    fn arrive(round: &RefCell<Self>, id: ReactorId, answer: Option<R>) {
        let owed = {
            let mut round = round.borrow_mut();
            round.answers.extend(answer.map(|answer| (id, answer)));
            round.owed -= 1;
            round.owed
        };
        if owed == 0 {
            Self::finish(round);
        }
    }

    fn finish(round: &RefCell<Self>) {
        let (done, answers) = {
            let mut round = round.borrow_mut();
            (round.done.take(), std::mem::take(&mut round.answers))
        };
        if let Some(done) = done {
            done(answers);
        }
    }
}

/// Runs `work` on `target`, trying again while its queue is full.
pub(super) fn deliver(target: &ReactorRef, work: impl FnOnce() + Send + 'static) {
    attempt(target, Arc::new(Mutex::new(Some(Box::new(work)))), SEND_ATTEMPTS);
}

type Parcel = Arc<Mutex<Option<Box<dyn FnOnce() + Send>>>>;

fn attempt(target: &ReactorRef, parcel: Parcel, attempts_left: u32) {
    let inside = Arc::clone(&parcel);
    let sent = target.send(move || {
        let work = inside.lock().take();
        if let Some(work) = work {
            work();
        }
    });
    match sent {
        Ok(()) => {}
        Err(SendError::Stopped) => warn!("message to a stopped reactor dropped reactor={}", target.name()),
        Err(SendError::QueueFull) => {
            let Some(attempts_left) = attempts_left.checked_sub(1) else {
                return error!("message dropped: queue stays full reactor={}", target.name());
            };
            let (again, name) = (target.clone(), target.name().to_owned());
            let set = current().set_timer(SEND_RETRY, move || attempt(&again, parcel, attempts_left));
            if let Err(refused) = set {
                error!("message dropped: {refused} reactor={name}");
            }
        }
    }
}

/// Runs `work` on this reactor, after the caller has returned to it.
pub(super) fn later(work: impl FnOnce() + 'static) {
    if let Err(refused) = current().defer(work) {
        error!("deferred call dropped: {refused}");
    }
}

/// Runs `work` on this reactor at `deadline_ns`; soon, but not inside this call, if no timer is left.
pub(super) fn at(deadline_ns: u64, work: impl FnOnce() + 'static) {
    // A refused timer drops its closure, so the work stays outside of it.
    let parcel = Rc::new(Cell::new(Some(work)));
    let inside = Rc::clone(&parcel);
    if current().set_timer_at(deadline_ns, move || run(&inside)).is_err() {
        later(move || run(&parcel));
    }
}

fn run(parcel: &Cell<Option<impl FnOnce()>>) {
    if let Some(work) = parcel.take() {
        work();
    }
}

/// A value that only the control reactor may look at, wherever it travels.
pub(super) struct ControlOnly<T>(ManuallyDrop<T>);

// SAFETY: the value is made, opened and dropped on the control reactor only; see `open` and `drop`.
unsafe impl<T> Send for ControlOnly<T> {}

impl<T> ControlOnly<T> {
    pub(super) fn new(value: T) -> Self {
        assert_control();
        Self(ManuallyDrop::new(value))
    }

    /// # Panics
    /// Anywhere but on the control reactor.
    pub(super) fn open(self) -> T {
        assert_control();
        let mut this = ManuallyDrop::new(self);
        // SAFETY: `this` is never dropped, so the value is taken exactly once.
        unsafe { ManuallyDrop::take(&mut this.0) }
    }
}

impl<T> Drop for ControlOnly<T> {
    fn drop(&mut self) {
        // Elsewhere the value is leaked: it happens only when a reactor stops with messages unread.
        if on_control() {
            // SAFETY: dropped once, here, by the thread it belongs to.
            unsafe { ManuallyDrop::drop(&mut self.0) };
        }
    }
}

pub(super) fn on_control() -> bool {
    try_current().is_some_and(|local| local.is_control())
}

#[track_caller]
pub(super) fn assert_control() {
    assert!(on_control(), "a device is changed on the control reactor only");
}

/// How long a message to a full queue waits before it is tried again.
const SEND_RETRY: Duration = Duration::from_millis(1);
/// How often; ten seconds of a full queue are a reactor that hangs.
const SEND_ATTEMPTS: u32 = 10_000;
