//! Letting a module go: quiesce, wait until its devices are gone, `fini`,
//! retired. Also failing it at any time.
//!
//! Unregistering and being superseded by a newer version are the same way with
//! two causes: in the first the layer above removes the devices, in the second
//! it waits until they go by themselves. The image stays mapped.

use std::rc::Rc;

use tenon_abi::OpToken;
use tenon_reactor::TimerId;

use crate::error::ModuleError;
use crate::module::ModuleRef;
use crate::set::{Inner, Modules};
use crate::state::{InvalidTransition, ModuleEvent, ModuleState};

/// Why a module drains.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DrainCause {
    /// It is being unregistered: its devices are to be removed.
    Unregister,
    /// A newer version runs: its devices stay until they are removed for another reason.
    Superseded,
}

/// Continuation of an unregister.
type Done = Box<dyn FnOnce(Result<(), ModuleError>)>;

/// A module that is leaving.
pub(crate) struct Exit {
    module: ModuleRef,
    cause: DrainCause,
    timer: Option<TimerId>,
    waiting: Vec<Done>,
}

impl Modules {
    /// Starts to let a running module go; `done` runs when it is retired or failed. A second call joins the
    /// first; a superseded module that drains by itself is hurried.
    pub fn unregister(&self, module: ModuleRef, done: impl FnOnce(Result<(), ModuleError>) + 'static) {
        self.inner.unregister(module, Box::new(done));
    }

    /// The layer above says that no device of a draining module is left. Ignored in any other state.
    pub fn drained(&self, module: ModuleRef) {
        self.inner.drained(module);
    }

    /// The layer above passes on the answer to `fini`. Ignored if it comes late.
    pub fn fini_done(&self, module: ModuleRef, result: Result<(), String>) {
        self.inner.fini_done(module, result);
    }

    /// Marks a module as failed; nothing of it is called any more. Ignored for one that is retired.
    pub fn fail(&self, module: ModuleRef, reason: &str) {
        let error = ModuleError::Faulted { module: module.name().to_owned(), reason: reason.to_owned() };
        self.inner.fault(module, ModuleEvent::Faulted, error);
    }
}

impl Inner {
    /// True if the module drains because a newer one took its name.
    pub(crate) fn is_superseded(&self, module: &ModuleRef) -> bool {
        let exits = self.exits.borrow();
        exits.iter().any(|exit| exit.module.id() == module.id() && exit.cause == DrainCause::Superseded)
    }

    fn unregister(self: &Rc<Self>, module: ModuleRef, done: Done) {
        match module.state() {
            ModuleState::Running => self.drain(module, DrainCause::Unregister, Some(done)),
            ModuleState::Draining => {
                let before = self.with_exit(module, |exit| {
                    exit.waiting.push(done);
                    std::mem::replace(&mut exit.cause, DrainCause::Unregister)
                });
                if before == Some(DrainCause::Superseded)
                    && let Some(listener) = self.listener()
                {
                    listener.draining(module, DrainCause::Unregister);
                }
            }
            ModuleState::Finishing => {
                self.with_exit(module, |exit| exit.waiting.push(done));
            }
            ModuleState::Loaded
            | ModuleState::Initialising
            | ModuleState::Initialised
            | ModuleState::Retired
            | ModuleState::Failed => {
                let state = module.state();
                let invalid = InvalidTransition { state, event: ModuleEvent::DrainRequested };
                let error = invalid_state(module, invalid);
                self.later(move || done(Err(error)));
            }
        }
    }

    /// Starts to drain a running module.
    pub(crate) fn drain(self: &Rc<Self>, module: ModuleRef, cause: DrainCause, done: Option<Done>) {
        module.transition(ModuleEvent::DrainRequested).expect("callers have seen it Running");
        self.exits.borrow_mut().push(Exit {
            module,
            cause,
            timer: None,
            waiting: done.into_iter().collect(),
        });
        let _ = module.quiesce();
        match self.listener() {
            Some(listener) => listener.draining(module, cause),
            None => self.drained(module), // nobody made devices of it
        }
    }

    fn drained(self: &Rc<Self>, module: ModuleRef) {
        if module.transition(ModuleEvent::Drained).is_err() {
            return;
        }
        let token = self.listener().map_or(OpToken(0), |listener| listener.fini_token(module));
        let deadline = self.options.fini_deadline;
        let weak = Rc::downgrade(self);
        let timer = self.local.set_timer(deadline, move || {
            if let Some(inner) = weak.upgrade() {
                let error = ModuleError::FiniTimedOut { module: module.name().to_owned(), deadline };
                inner.fault(module, ModuleEvent::DeadlinePassed, error);
            }
        });
        match timer {
            Ok(timer) => {
                self.with_exit(module, |exit| exit.timer = Some(timer));
                let _ = module.fini(token);
            }
            Err(error) => {
                let error =
                    ModuleError::FiniFailed { module: module.name().to_owned(), text: error.to_string() };
                self.fault(module, ModuleEvent::Faulted, error);
            }
        }
    }

    fn fini_done(self: &Rc<Self>, module: ModuleRef, result: Result<(), String>) {
        if module.state() != ModuleState::Finishing {
            log::warn!("answer to fini ignored module={} state={}", module.name(), module.state());
            return;
        }
        match result {
            Ok(()) => {
                module.transition(ModuleEvent::FiniAnswered).expect("its state was looked at above");
                log::info!("module retired module={} version={}", module.name(), module.version());
                let waiting = self.take_waiting(module);
                if let Some(listener) = self.listener() {
                    listener.retired(module);
                }
                waiting.into_iter().for_each(|done| done(Ok(())));
            }
            Err(text) => {
                let error = ModuleError::FiniFailed { module: module.name().to_owned(), text };
                self.fault(module, ModuleEvent::Faulted, error);
            }
        }
    }

    fn fault(self: &Rc<Self>, module: ModuleRef, event: ModuleEvent, error: ModuleError) {
        let was_failed = module.state() == ModuleState::Failed;
        if module.transition(event).is_err() || was_failed {
            return;
        }
        module.set_failure(&error.to_string());
        let waiting = self.take_waiting(module);
        if let Some(listener) = self.listener() {
            listener.failed(module, &error);
        }
        waiting.into_iter().for_each(|done| done(Err(error.clone())));
    }

    fn take_waiting(&self, module: ModuleRef) -> Vec<Done> {
        let mut exits = self.exits.borrow_mut();
        let Some(at) = exits.iter().position(|exit| exit.module.id() == module.id()) else {
            return Vec::new();
        };
        let exit = exits.swap_remove(at);
        if let Some(timer) = exit.timer {
            self.local.cancel_timer(timer);
        }
        exit.waiting
    }

    fn with_exit<R>(&self, module: ModuleRef, f: impl FnOnce(&mut Exit) -> R) -> Option<R> {
        self.exits.borrow_mut().iter_mut().find(|exit| exit.module.id() == module.id()).map(f)
    }
}

fn invalid_state(module: ModuleRef, invalid: InvalidTransition) -> ModuleError {
    ModuleError::InvalidState { module: module.name().to_owned(), state: invalid.state, event: invalid.event }
}
