//! Which hosts may connect to a subsystem.
//!
//! Taking a host's permission away ends its connections; giving it changes what
//! its discovery controllers see.

use std::rc::Rc;

use nvme_spec::nqn::NqnField;
use tenon_abi::transport::CloseReason;

use crate::controller::Controller;
use crate::error::TargetError;
use crate::subsystem::Subsystem;
use crate::target::Target;

impl Target {
    /// Lets a host connect.
    pub fn add_host(&self, nqn: &str, host: &str) -> Result<(), TargetError> {
        let subsystem = self.subsystem(nqn)?;
        NqnField::new(host)
            .map_err(|error| TargetError::invalid(format!("host {host:?}"), error.to_string()))?;
        let mut hosts = subsystem.hosts.borrow_mut();
        if hosts.len() >= MAX_HOSTS {
            return Err(TargetError::TooMany { object: format!("hosts of {nqn}"), limit: MAX_HOSTS });
        }
        if !hosts.insert(host.to_owned()) {
            return Err(TargetError::HostExists { host: host.into(), object: format!("subsystem {nqn}") });
        }
        drop(hosts);
        log::info!("host added nqn={nqn} host={host}");
        self.discovery_changed();
        Ok(())
    }

    /// Takes a host's permission away; its connections are closed unless any host may connect.
    pub fn remove_host(&self, nqn: &str, host: &str) -> Result<(), TargetError> {
        let subsystem = self.subsystem(nqn)?;
        if !subsystem.hosts.borrow_mut().remove(host) {
            return Err(TargetError::NoHost { host: host.into(), object: format!("subsystem {nqn}") });
        }
        log::info!("host removed nqn={nqn} host={host}");
        self.close_refused(&subsystem);
        self.discovery_changed();
        Ok(())
    }

    /// Whether any host may connect; if no more, those not in the list are closed.
    pub fn set_allow_any_host(&self, nqn: &str, is_allowed: bool) -> Result<(), TargetError> {
        let subsystem = self.subsystem(nqn)?;
        if subsystem.is_discovery && !is_allowed {
            return Err(TargetError::invalid(nqn, "the discovery subsystem takes any host"));
        }
        subsystem.allows_any_host.set(is_allowed);
        self.close_refused(&subsystem);
        self.discovery_changed();
        Ok(())
    }

    fn close_refused(&self, subsystem: &Rc<Subsystem>) {
        let controllers: Vec<Rc<Controller>> = subsystem.controllers.borrow().values().cloned().collect();
        for controller in controllers {
            if !subsystem.allows(&controller.association.hostnqn) {
                self.end_controller(&controller, CloseReason::LOCAL);
            }
        }
    }
}

/// Most hosts in the list of a subsystem.
const MAX_HOSTS: usize = 1024;
