//! Which hosts may connect to a subsystem.
//!
//! Taking a host's permission away ends its connections; giving it changes what
//! its discovery controllers see. A host may have keys; new ones count from the
//! next connection, or the next authentication, on.

use std::rc::Rc;

use nvme_spec::nqn::NqnField;
use tenon_abi::transport::CloseReason;

use crate::config::HostKeys;
use crate::controller::Controller;
use crate::error::TargetError;
use crate::subsystem::Subsystem;
use crate::target::Target;

impl Target {
    /// Lets a host connect.
    pub fn add_host(&self, nqn: &str, host: &str) -> Result<(), TargetError> {
        self.add_host_with_keys(nqn, host, HostKeys::default())
    }

    /// Lets a host connect that has keys.
    pub fn add_host_with_keys(&self, nqn: &str, host: &str, keys: HostKeys) -> Result<(), TargetError> {
        let subsystem = self.subsystem(nqn)?;
        self.check_host_keys(&subsystem, host, &keys)?;
        NqnField::new(host)
            .map_err(|error| TargetError::invalid(format!("host {host:?}"), error.to_string()))?;
        let mut hosts = subsystem.hosts.borrow_mut();
        if hosts.len() >= MAX_HOSTS {
            return Err(TargetError::TooMany { object: format!("hosts of {nqn}"), limit: MAX_HOSTS });
        }
        if hosts.contains_key(host) {
            return Err(TargetError::HostExists { host: host.into(), object: format!("subsystem {nqn}") });
        }
        hosts.insert(host.to_owned(), keys);
        drop(hosts);
        self.publish_psks(&subsystem, false);
        log::info!("host added nqn={nqn} host={host}");
        self.discovery_changed();
        Ok(())
    }

    /// Takes a host's permission away; its connections are closed unless any host may connect.
    pub fn remove_host(&self, nqn: &str, host: &str) -> Result<(), TargetError> {
        let subsystem = self.subsystem(nqn)?;
        if subsystem.hosts.borrow_mut().remove(host).is_none() {
            return Err(TargetError::NoHost { host: host.into(), object: format!("subsystem {nqn}") });
        }
        log::info!("host removed nqn={nqn} host={host}");
        self.publish_psks(&subsystem, false);
        if subsystem.limiters.borrow_mut().remove(host).is_some() {
            self.publish_limits(&subsystem, host);
        }
        self.close_refused(&subsystem);
        self.discovery_changed();
        Ok(())
    }

    /// Gives a host other keys for authentication, or none; those for secure channels stay.
    pub fn set_host_keys(
        &self,
        nqn: &str,
        host: &str,
        dhchap_key: Option<String>,
        dhchap_ctrlr_key: Option<String>,
    ) -> Result<(), TargetError> {
        let subsystem = self.subsystem(nqn)?;
        let missing = || TargetError::NoHost { host: host.to_owned(), object: format!("subsystem {nqn}") };
        let psk = subsystem.hosts.borrow().get(host).ok_or_else(missing)?.psk.clone();
        let keys = HostKeys { psk, dhchap_key, dhchap_ctrlr_key };
        self.check_host_keys(&subsystem, host, &keys)?;
        subsystem.hosts.borrow_mut().insert(host.to_owned(), keys);
        log::info!("keys of host changed nqn={nqn} host={host}");
        Ok(())
    }

    /// Whether the keys exist, are of their kind, and make sense together.
    fn check_host_keys(&self, subsystem: &Subsystem, host: &str, keys: &HostKeys) -> Result<(), TargetError> {
        let object = || format!("host {host} of {}", subsystem.nqn);
        let keyring = self.inner.keyring.borrow();
        for name in [&keys.dhchap_key, &keys.dhchap_ctrlr_key].into_iter().flatten() {
            if keyring.dhchap(name).is_none() {
                return Err(TargetError::invalid(object(), format!("key {name} is no DH-HMAC-CHAP key")));
            }
        }
        if let Some(name) = keys.psk.as_ref().filter(|name| keyring.tls(name).is_none()) {
            return Err(TargetError::invalid(object(), format!("key {name} is no TLS key")));
        }
        if keys.dhchap_ctrlr_key.is_some() && keys.dhchap_key.is_none() {
            return Err(TargetError::invalid(object(), "dhchap_ctrlr_key needs a dhchap_key"));
        }
        if subsystem.is_discovery && *keys != HostKeys::default() {
            return Err(TargetError::invalid(object(), "the discovery subsystem has no keys"));
        }
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
