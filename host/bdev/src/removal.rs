//! Removal engine: how a device goes, whoever asks for it and however often.
//!
//! ```text
//!  unregister ──► orphan ──► openers are told ──► all closed, examinations over ──► drain ──► destruct ──► gone
//!                 gate       REMOVE, once each     deadline: name the holders       gate      module
//! ```
//!
//! A removal is never refused: it queues behind what runs on the device. When a
//! deadline passes, it is said who still holds the device, and the wait goes on;
//! nothing is freed under a holder. There is one owner of the destruction, here.
// UNSAFETY: calls the last callbacks of a device.

use std::time::Duration;

use tenon_abi::{BdevEventKind, BdevHandle, OpToken, Reason, errno};

use crate::activity::Origin;
use crate::core::Core;
use crate::deadline::{Due, Key, deadline_ns};
use crate::error::OpError;
use crate::event::Event as DeviceEvent;
use crate::gate_steps::GateStep;
use crate::io::Drained;
use crate::lifecycle::Event;
use crate::owed::Owed;
use crate::registry::Bdev;

/// A removal under way.
#[derive(Debug)]
pub(crate) struct Removal {
    pub reason: Reason,
    /// Nobody asked for it: the device may be made again when what it stood on comes back.
    pub may_return: bool,
    pub step: RemovalStep,
    /// A deadline passed; operators are told who is waited for.
    pub is_overdue: bool,
    activity: u64,
    deadline: Option<Key>,
    /// How long the next wait for the same thing may take before it is reported again.
    patience: Duration,
    /// What the gate reported last.
    drained: Option<Drained>,
}

/// How far a removal is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RemovalStep {
    /// The gate learns on every reactor that new I/O bounces.
    Orphaning,
    /// Openers have been told to close.
    Closing,
    /// Nobody has it open; channels go.
    Draining,
    /// The module lets go.
    Destructing,
}

impl RemovalStep {
    /// For operators.
    pub fn as_str(self) -> &'static str {
        match self {
            RemovalStep::Orphaning => "orphaning",
            RemovalStep::Closing => "closing",
            RemovalStep::Draining => "draining",
            RemovalStep::Destructing => "destructing",
        }
    }
}

impl Core {
    /// Starts the removal of a device; asking again changes nothing.
    pub fn unregister(&self, name: &str, reason: Reason) -> Result<(), OpError> {
        let bdev = self.find_any(name).ok_or_else(|| self.not_there(name))?;
        self.remove_bdev(bdev, reason);
        Ok(())
    }

    /// As [`Core::unregister`], by handle. False if there is no such device.
    pub(crate) fn remove_bdev(&self, bdev: BdevHandle, reason: Reason) -> bool {
        let (name, absent) = {
            let mut registry = self.inner.registry.borrow_mut();
            let Some(record) = registry.get_mut(bdev) else { return false };
            if record.removal.is_some() {
                return true;
            }
            record.apply(Event::Remove);
            (record.name.clone(), record.absent.take())
        };
        let may_return = self.may_return(bdev, reason);
        self.cancel_deadline(absent.and_then(|absent| absent.key));
        log::info!("bdev is being removed bdev={name} reason={}", reason_text(reason));
        let patience = self.inner.options.remove_deadline;
        let activity = self.activity_begin(Origin::Requested);
        let deadline = Some(self.set_deadline_in(patience, Due::Removal(bdev)));
        if let Some(record) = self.inner.registry.borrow_mut().get_mut(bdev) {
            record.removal = Some(Removal {
                reason,
                may_return,
                step: RemovalStep::Orphaning,
                is_overdue: false,
                activity,
                deadline,
                patience,
                drained: None,
            });
        }
        self.notify("bdev_unregister", &name);
        self.later(move |core| {
            if may_return {
                core.saved_keep_account(bdev);
            }
            core.gate_step(bdev, GateStep::Orphan);
        });
        true
    }

    /// A device that follows its base goes for the base's reason, not for one of its own.
    fn may_return(&self, bdev: BdevHandle, reason: Reason) -> bool {
        match reason {
            Reason::HOT_REMOVED | Reason::DEADLINE | Reason::IDENTITY_CHANGED | Reason::FAILED => true,
            Reason::BASE_REMOVED => {
                let registry = self.inner.registry.borrow();
                let Some(module) = registry.get(bdev).map(|record| record.module.id()) else { return false };
                let holds =
                    |record: &Bdev| record.descriptors.iter().any(|holding| holding.owner.is_module(module));
                let mut bases = registry
                    .iter()
                    .filter(|record| holds(record))
                    .filter_map(|record| record.removal.as_ref());
                bases.all(|removal| removal.may_return)
            }
            _ => false,
        }
    }

    /// The gate bounces new I/O everywhere: tell those who hold the device.
    pub(crate) fn removal_orphaned(&self, bdev: BdevHandle) {
        let reason = {
            let mut registry = self.inner.registry.borrow_mut();
            let Some(removal) = registry.get_mut(bdev).and_then(|record| record.removal.as_mut()) else {
                return;
            };
            removal.step = RemovalStep::Closing;
            removal.reason
        };
        let mut event = DeviceEvent::new(BdevEventKind::REMOVE, bdev, reason);
        event.deadline_ns = deadline_ns(self.inner.options.remove_deadline);
        self.publish_event(&event);
        self.removal_wait(bdev, self.inner.options.remove_deadline);
        self.removal_check(bdev);
    }

    /// Goes on when nobody holds the device any more.
    pub(crate) fn removal_check(&self, bdev: BdevHandle) {
        {
            let mut registry = self.inner.registry.borrow_mut();
            let Some(record) = registry.get_mut(bdev) else { return };
            let is_held = !record.descriptors.is_empty() || record.examination.is_running();
            let Some(removal) = record.removal.as_mut() else { return };
            if removal.step != RemovalStep::Closing || is_held {
                return;
            }
            removal.step = RemovalStep::Draining;
        }
        self.removal_drain(bdev, self.inner.options.drain_deadline);
    }

    fn removal_drain(&self, bdev: BdevHandle, patience: Duration) {
        self.removal_wait(bdev, patience);
        self.gate_step(bdev, GateStep::Drain(deadline_ns(patience)));
    }

    pub(crate) fn removal_drained(&self, bdev: BdevHandle, drained: Drained) {
        let is_drained = drained.outstanding == 0 && drained.channels == 0;
        let patience = {
            let mut registry = self.inner.registry.borrow_mut();
            let Some(record) = registry.get_mut(bdev) else { return };
            let name = record.name.clone();
            let Some(removal) = record.removal.as_mut() else { return };
            removal.drained = Some(drained);
            if is_drained {
                removal.step = RemovalStep::Destructing;
                removal.is_overdue = false;
                record.apply(Event::Released);
                None
            } else {
                removal.is_overdue = true;
                log::warn!(
                    "bdev cannot be destructed, channels are still open bdev={name} channels={} outstanding={}",
                    drained.channels,
                    drained.outstanding
                );
                Some((removal.patience * 2).min(MAX_PATIENCE))
            }
        };
        match patience {
            None => self.removal_destruct(bdev),
            Some(patience) => self.removal_drain(bdev, patience),
        }
    }

    fn removal_destruct(&self, bdev: BdevHandle) {
        self.removal_wait(bdev, self.inner.options.destruct_deadline);
        let target = {
            let registry = self.inner.registry.borrow();
            registry.get(bdev).map(|record| {
                let reason = record.removal.as_ref().map(|removal| removal.reason);
                (record.callbacks, record.module, reason == Some(Reason::ROLLED_BACK))
            })
        };
        let Some((callbacks, module, is_rolled_back)) = target else { return };
        let token = self.owe(Owed::Destruct(bdev));
        if crate::callbacks::may_be_called(module) {
            if is_rolled_back {
                // SAFETY: the device is registered until it is destructed, below.
                unsafe { callbacks.rolled_back() };
            }
            // SAFETY: the device is registered and destructed here, once: `Released` is applied once.
            unsafe { callbacks.destruct(token) };
        } else {
            log::error!("module cannot destruct its bdev, it is out of service module={}", module.name());
            self.later(move |core| core.owed_answered(token, Ok(String::new())));
        }
    }

    /// The module has let go of the device, which ends its life.
    pub(crate) fn removal_destructed(&self, bdev: BdevHandle, result: Result<String, OpError>) {
        let removed = {
            let mut registry = self.inner.registry.borrow_mut();
            if let Some(record) = registry.get_mut(bdev) {
                record.apply(Event::Destructed);
            }
            registry.remove(bdev)
        };
        let Some(record) = removed else { return };
        if let Err(error) = result {
            log::warn!("module destructed its bdev with an error bdev={} error={error}", record.name);
        }
        assert!(record.descriptors.is_empty(), "bdev {}: a descriptor is left", record.name);
        log::info!("bdev is gone bdev={}", record.name);
        self.saved_forget_bdev(bdev, record.removal.as_ref().is_some_and(|removal| removal.may_return));
        if let Some(removal) = &record.removal {
            self.cancel_deadline(removal.deadline);
            self.activity_end(removal.activity);
        }
        for operation in record.on_destroyed.iter().chain(record.operation.iter()) {
            self.operation_bdev_gone(*operation, bdev, &record.name);
        }
        let module = record.module;
        drop(record);
        self.operations_unpark_bdev(bdev);
        self.later(move |core| {
            core.module_drain_check(module);
            core.shutdown_progress();
        });
    }

    /// A deadline passed: say who is waited for, and go on waiting.
    pub(crate) fn removal_overdue(&self, bdev: BdevHandle) {
        let (activity, patience) = {
            let mut registry = self.inner.registry.borrow_mut();
            let Some(record) = registry.get_mut(bdev) else { return };
            let waits_for = waits_for(record);
            let name = record.name.clone();
            let Some(removal) = record.removal.as_mut() else { return };
            removal.is_overdue = true;
            log::warn!(
                "bdev removal is overdue bdev={name} step={} waits_for={waits_for}",
                removal.step.as_str()
            );
            (removal.activity, (removal.patience * 2).min(MAX_PATIENCE))
        };
        // Nobody who waits for operations in flight waits for this one any longer.
        self.activity_end(activity);
        self.removal_wait(bdev, patience);
    }

    fn removal_wait(&self, bdev: BdevHandle, patience: Duration) {
        let key = self.set_deadline_in(patience, Due::Removal(bdev));
        let old = {
            let mut registry = self.inner.registry.borrow_mut();
            let Some(removal) = registry.get_mut(bdev).and_then(|record| record.removal.as_mut()) else {
                return;
            };
            removal.patience = patience;
            removal.deadline.replace(key)
        };
        self.cancel_deadline(old);
    }

    /// Who or what a removal waits for, for operators.
    pub(crate) fn removal_waits_for(&self, bdev: BdevHandle) -> Option<String> {
        self.inner.registry.borrow().get(bdev).filter(|record| record.removal.is_some()).map(waits_for)
    }

    /// A token for an answer owed to the host.
    pub(crate) fn owe(&self, owed: Owed) -> OpToken {
        self.inner.operations.borrow_mut().owe(owed)
    }

    /// The error for a name nobody has, or whose device is not in service.
    pub(crate) fn not_there(&self, name: &str) -> OpError {
        let registry = self.inner.registry.borrow();
        match registry.find(name) {
            None => OpError::new(errno::ENODEV, name, "no such device"),
            Some(record) => OpError::new(errno::ENODEV, name, format!("device is {}", record.state())),
        }
    }
}

/// What keeps a removal from going on.
fn waits_for(record: &Bdev) -> String {
    let mut parts = Vec::new();
    for holding in record.descriptors.iter().take(MAX_NAMED) {
        parts.push(format!("descriptor of {}", holding.owner));
    }
    if record.descriptors.len() > MAX_NAMED {
        parts.push(format!("{} more descriptors", record.descriptors.len() - MAX_NAMED));
    }
    if record.examination.is_running() {
        parts.push("examination".to_owned());
    }
    if let Some(removal) = &record.removal {
        match removal.step {
            RemovalStep::Orphaning => parts.push("gate".to_owned()),
            RemovalStep::Closing => {}
            RemovalStep::Draining => {
                let drained = removal.drained;
                parts.push(drained.map_or("channels".to_owned(), |d| {
                    format!("{} channels, {} outstanding I/Os", d.channels, d.outstanding)
                }));
            }
            RemovalStep::Destructing => parts.push(format!("module {}", record.module.name())),
        }
    }
    if parts.is_empty() { "nothing".to_owned() } else { parts.join(", ") }
}

/// A reason as operators read it.
pub fn reason_text(reason: Reason) -> &'static str {
    match reason {
        Reason::UNSPECIFIED => "unspecified",
        Reason::REQUESTED => "requested",
        Reason::HOT_REMOVED => "hot_removed",
        Reason::BASE_REMOVED => "base_removed",
        Reason::MODULE_UNREGISTERED => "module_unregistered",
        Reason::SHUTDOWN => "shutdown",
        Reason::DEADLINE => "deadline",
        Reason::IDENTITY_CHANGED => "identity_changed",
        Reason::FAILED => "failed",
        Reason::ROLLED_BACK => "rolled_back",
        Reason(_) => "unknown",
    }
}

/// Longest time between two reports of the same holder.
const MAX_PATIENCE: Duration = Duration::from_secs(600);
/// Holders named in one report.
const MAX_NAMED: usize = 8;
