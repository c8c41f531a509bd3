//! Asymmetric namespace access: the state of each group on the paths through
//! each listener, and the end of transitions.
//!
//! A group may be in the state Change for as long as the controller says (ANATT),
//! and hosts wait for its end so long. Nobody may say what it changes to, so
//! whatever is still in it then becomes inaccessible: that is the truth about it,
//! and keeps hosts from taking the controller for broken. Knows no sockets; who
//! may access what is published to the reactors elsewhere.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use nvme_spec::log::AnaState;

use crate::config::Address;
use crate::controller::aer::EventKind;
use crate::error::TargetError;
use crate::subsystem::Subsystem;
use crate::target::Target;

/// A subsystem's use of a listener.
pub(crate) struct ListenerUse {
    default: Held,
    /// Groups with a state of their own.
    groups: BTreeMap<u32, Held>,
}

/// A state, and the number under which it was set.
#[derive(Clone, Copy)]
struct Held {
    state: AnaState,
    number: u64,
}

impl ListenerUse {
    pub(crate) fn new(state: AnaState, number: u64) -> Self {
        ListenerUse { default: Held { state, number }, groups: BTreeMap::new() }
    }

    pub(crate) fn ana_state(&self, group: u32) -> AnaState {
        self.groups.get(&group).unwrap_or(&self.default).state
    }

    /// State of groups that have none of their own.
    pub(crate) fn default_state(&self) -> AnaState {
        self.default.state
    }

    /// States of groups 0 (which nobody is in) to `max`.
    pub(crate) fn ana_states(&self, max: u32) -> Vec<AnaState> {
        (0..=max).map(|group| self.ana_state(group)).collect()
    }

    fn set(&mut self, group: Option<u32>, held: Held) {
        match group {
            Some(group) => _ = self.groups.insert(group, held),
            None => {
                self.default = held;
                self.groups.clear();
            }
        }
    }

    /// Ends the transitions that were set under `number`; true if there was one.
    fn end_transition(&mut self, number: u64) -> bool {
        let mut is_ended = false;
        for held in self.groups.values_mut().chain([&mut self.default]) {
            if held.number == number && held.state == AnaState::CHANGE {
                held.state = AnaState::INACCESSIBLE;
                is_ended = true;
            }
        }
        is_ended
    }
}

impl Target {
    /// Sets the ANA state of a group, or of all, on the paths through a listener.
    pub fn set_ana_state(
        &self,
        nqn: &str,
        address: &Address,
        state: AnaState,
        group: Option<u32>,
    ) -> Result<(), TargetError> {
        let (subsystem, listener) = self.subsystem_listener(nqn, address)?;
        if !subsystem.spec.ana_reporting {
            return Err(TargetError::invalid(nqn, "it does not report asymmetric namespace access"));
        }
        if let Some(group) = group
            && !(1..=subsystem.spec.max_namespaces).contains(&group)
        {
            return Err(TargetError::invalid(nqn, format!("there is no ANA group {group}")));
        }
        let number = self.next_number();
        if let Some(used) = subsystem.listeners.borrow_mut().get_mut(&listener) {
            used.set(group, Held { state, number });
        }
        log::info!("ana state set nqn={nqn} address={address} state={state} group={group:?}");
        self.ana_changed(&subsystem, listener);
        self.watch_transition(&subsystem, listener, number, state);
        Ok(())
    }

    /// Sees to it that a state that was set under `number` does not stay Change.
    pub(crate) fn watch_transition(
        &self,
        subsystem: &Rc<Subsystem>,
        listener: u64,
        number: u64,
        state: AnaState,
    ) {
        if state != AnaState::CHANGE {
            return;
        }
        let weak = Rc::downgrade(subsystem);
        let set = tenon_reactor::current().set_timer(ANA_TRANSITION, move || {
            if let (Some(target), Some(subsystem)) = (Target::current(), weak.upgrade()) {
                target.end_transition(&subsystem, listener, number);
            }
        });
        if set.is_err() {
            log::error!("ana transition is not watched: no timer is left nqn={}", subsystem.nqn);
        }
    }

    fn end_transition(&self, subsystem: &Subsystem, listener: u64, number: u64) {
        let mut listeners = subsystem.listeners.borrow_mut();
        let is_ended = listeners.get_mut(&listener).is_some_and(|used| used.end_transition(number));
        drop(listeners);
        if is_ended {
            log::warn!("ana transition took too long: inaccessible now nqn={}", subsystem.nqn);
            self.ana_changed(subsystem, listener);
        }
    }

    fn ana_changed(&self, subsystem: &Subsystem, listener: u64) {
        subsystem.ana_changes.set(subsystem.ana_changes.get() + 1);
        self.publish_access(subsystem);
        self.raise(subsystem, EventKind::Ana, Some(listener));
    }
}

/// Longest time a group stays in Change (ANATT).
const ANA_TRANSITION: Duration = Duration::from_secs(ANA_TRANSITION_SECONDS as u64);
/// As hosts are told it.
pub(crate) const ANA_TRANSITION_SECONDS: u8 = 10;
