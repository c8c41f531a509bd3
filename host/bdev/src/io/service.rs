//! The work of channels that nobody's submission or completion triggers: one poller per reactor.
//!
//! A channel asks for service with [`kick`] when it has I/O that may go on: requests released from a
//! phase, refused ones whose module has completed others, parents that wait for children. The poller
//! runs on every turn while some channel asks and is paused otherwise; it lets the reactor sleep when
//! nothing could be done. Each run does a bounded amount per channel, so that a consumer that
//! submits anew in every completion cannot keep it.
//!
//! # Safety
//! Every unsafe function takes a live channel of the calling reactor.
// UNSAFETY: holds raw pointers to live channels, which leave the list before they are freed.

use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};
use std::time::Duration;

use log::warn;
use tenon_reactor::{Poll, PollerId, PollerKind, ReactorRef, current};

use super::bounce::Bounce;
use super::channel::ModuleChannel;
use super::{backpressure, compare_write, qos, split, submit};

/// What all gates of one reactor share there.
pub(super) struct Service {
    /// Tells a set of reactors from another one that ran on this thread before.
    reactor: ReactorRef,
    channels: RefCell<Vec<*mut ModuleChannel>>,
    poller: Cell<Option<PollerId>>,
    is_polling: Cell<bool>,
    pub(super) bounce: Bounce,
}

thread_local! {
    /// By reactor index: a simulation has all its reactors on one thread.
    static SERVICES: RefCell<Vec<Weak<Service>>> = const { RefCell::new(Vec::new()) };
}

impl Service {
    /// The calling reactor's, made when its first channel is opened.
    pub(super) fn here() -> Rc<Service> {
        let reactor = current().reactor();
        let index = reactor.id().index();
        SERVICES.with_borrow_mut(|services| {
            if services.len() <= index {
                services.resize_with(index + 1, Weak::new);
            }
            if let Some(found) = services[index].upgrade()
                && found.reactor == reactor
            {
                return found;
            }
            let made = Rc::new(Service {
                reactor,
                channels: RefCell::default(),
                poller: Cell::new(None),
                is_polling: Cell::new(false),
                bounce: Bounce::default(),
            });
            services[index] = Rc::downgrade(&made);
            made
        })
    }

    /// Takes a channel that is about to be freed off the list.
    pub(super) fn forget(&self, m: *mut ModuleChannel) {
        // SAFETY: the caller's channel is live, and so are those in the list.
        unsafe {
            let index = (*m).service_index;
            if index == usize::MAX {
                return;
            }
            (*m).service_index = usize::MAX;
            let mut channels = self.channels.borrow_mut();
            channels.swap_remove(index);
            if let Some(&moved) = channels.get(index) {
                (*moved).service_index = index;
            }
        }
    }

    pub(super) fn start(self: &Rc<Self>) {
        if self.is_polling.replace(true) {
            return;
        }
        let local = current();
        if let Some(poller) = self.poller.get()
            && local.resume_poller(poller)
        {
            return;
        }
        let service = Rc::downgrade(self);
        let poll = move || service.upgrade().map_or(Poll::Idle, |service| service.poll());
        match local.register_poller("gate", 0, PollerKind::Wakeable, poll) {
            Ok(poller) => {
                let service = Rc::downgrade(self);
                let may_sleep = move || service.upgrade().is_none_or(|service| !service.has_work());
                local.set_before_sleep(poller, may_sleep);
                self.poller.set(Some(poller));
            }
            Err(refused) => {
                warn!("gate falls back to a timer: {refused}");
                self.poll_by_timer();
            }
        }
    }

    fn poll_by_timer(self: &Rc<Self>) {
        let service = Rc::downgrade(self);
        super::broadcast::at(tenon_reactor::now_ns() + FALLBACK_PERIOD.as_nanos() as u64, move || {
            let Some(service) = service.upgrade() else { return };
            service.poll();
            if service.is_polling.get() {
                service.poll_by_timer();
            }
        });
    }

    fn poll(&self) -> Poll {
        let mut busy = false;
        let mut index = 0;
        // A channel that asks again while others are run has its turn in the next poll.
        let asking = self.channels.borrow().len();
        for _ in 0..asking {
            let next = self.channels.borrow().get(index).copied();
            let Some(m) = next else { break };
            // SAFETY: channels in the list are live.
            unsafe {
                if has_work(m) {
                    busy = true;
                    run(m);
                } else if !may_get_work(m) {
                    self.forget(m);
                    continue;
                }
            }
            index += 1;
        }
        if self.bounce.has_work() {
            busy = true;
            self.bounce.resume();
        }
        if self.channels.borrow().is_empty() && !self.bounce.has_work() {
            self.is_polling.set(false);
            if let Some(poller) = self.poller.get() {
                current().pause_poller(poller);
            }
        }
        if busy { Poll::Busy } else { Poll::Idle }
    }

    fn has_work(&self) -> bool {
        // SAFETY: channels in the list are live.
        let channels = self.channels.borrow().iter().any(|&m| unsafe { has_work(m) });
        channels || self.bounce.has_work()
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        if let Some(poller) = self.poller.get()
            && let Some(local) = tenon_reactor::try_current()
            && local.reactor() == self.reactor
        {
            local.unregister_poller(poller);
        }
    }
}

/// Asks for service.
///
/// # Safety
/// `m` is a live channel of the calling reactor.
pub(super) unsafe fn kick(m: *mut ModuleChannel) {
    // SAFETY: as promised; the list is borrowed for the push only.
    unsafe {
        if (*m).service_index != usize::MAX {
            return;
        }
        let service = std::rc::Rc::clone(&(*m).service);
        {
            let mut channels = service.channels.borrow_mut();
            (*m).service_index = channels.len();
            channels.push(m);
        }
        service.start();
    }
}

/// Whether a run of [`run`] could move something now.
unsafe fn has_work(m: *mut ModuleChannel) -> bool {
    // SAFETY: the caller's channel is live.
    unsafe {
        if (*m).is_closed() {
            return false;
        }
        if !(*m).nomem.is_empty() && !(*m).compare_writes.must_ask() {
            return (*m).nomem_wait.is_over((*m).io.outstanding);
        }
        split::can_resume(m) || !(*m).held.is_empty() || (*m).compare_writes.must_ask()
    }
}

/// Whether completions of the module alone can give it work: then the poller must look on.
unsafe fn may_get_work(m: *mut ModuleChannel) -> bool {
    // SAFETY: the caller's channel is live.
    unsafe { !(*m).is_closed() && !(*m).nomem.is_empty() && (*m).nomem_wait.is_watched() }
}

/// Moves on what can be moved: refused I/O first, then parents, then what the limits and phases held.
///
/// # Safety
/// `m` is a live channel of the calling reactor, and not closed.
pub(super) unsafe fn run(m: *mut ModuleChannel) {
    // SAFETY: a channel is freed in a turn of its own only, so it lives through this function whatever
    // the completions do; no reference is held across a call out.
    unsafe {
        backpressure::retry_refused(m);
        split::resume(m);
        qos::drain(m);
        compare_write::ask(m);
        for _ in 0..(*m).held.len() {
            if (*m).is_closed() {
                break;
            }
            let Some(io) = (*m).held.pop_front() else { break };
            submit::resume(io);
        }
        (*m).queue_changed();
        submit::update_ops(m);
        if has_work(m) || may_get_work(m) {
            kick(m);
        }
    }
}

/// Between two looks where the reactor has no poller left for the gate.
const FALLBACK_PERIOD: Duration = Duration::from_millis(1);
