//! Pre-shared keys of secure channels, for transports: a connection names an
//! identity, and gets the TLS key of the host and subsystem in it.
//!
//! The directory is the control reactor's to change and any thread's to ask.

use std::collections::HashMap;
use std::sync::Arc;

use nvme_auth::secret::{Identity, TlsKey};
use parking_lot::RwLock;
use zeroize::Zeroizing;

use crate::subsystem::Subsystem;
use crate::target::Target;

/// Keys by host and subsystem.
#[derive(Debug, Default)]
pub(crate) struct PskDirectory {
    keys: RwLock<HashMap<(String, String), TlsKey>>,
}

impl PskDirectory {
    /// The TLS pre-shared key for an identity. Any thread.
    pub(crate) fn lookup(&self, identity: &str) -> Option<Zeroizing<Vec<u8>>> {
        let identity = Identity::parse(identity)?;
        let names = (identity.hostnqn.to_owned(), identity.subnqn.to_owned());
        let key = self.keys.read().get(&names).cloned()?;
        key.derive(&identity)
    }
}

/// Whether a channel that this identity secures may be used by a host for a subsystem, or, without one, for
/// discovery.
pub(crate) fn is_identity_of(identity: &str, hostnqn: &str, subnqn: Option<&str>) -> bool {
    Identity::parse(identity).is_some_and(|identity| {
        identity.hostnqn == hostnqn && subnqn.is_none_or(|subnqn| identity.subnqn == subnqn)
    })
}

impl Target {
    /// Makes the directory say what the hosts of a subsystem have now.
    pub(crate) fn publish_psks(&self, subsystem: &Subsystem, is_gone: bool) {
        let directory: &Arc<PskDirectory> = &self.inner.psks;
        let keyring = self.inner.keyring.borrow();
        let mut keys = directory.keys.write();
        keys.retain(|(_, subnqn), _| *subnqn != subsystem.nqn);
        if is_gone {
            return;
        }
        for (hostnqn, own) in subsystem.hosts.borrow().iter() {
            if let Some(key) = own.psk.as_ref().and_then(|name| keyring.tls(name)) {
                keys.insert((hostnqn.clone(), subsystem.nqn.clone()), key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_is_good_for_its_own_names_only() {
        let identity = "NVMe0R01 nqn.2026-01.io.tenon:host nqn.2026-01.io.tenon:one";
        let (host, one) = ("nqn.2026-01.io.tenon:host", "nqn.2026-01.io.tenon:one");
        assert!(is_identity_of(identity, host, Some(one)));
        assert!(is_identity_of(identity, host, None));
        assert!(!is_identity_of(identity, host, Some("nqn.2026-01.io.tenon:two")));
        assert!(!is_identity_of(identity, one, Some(one)));
        assert!(!is_identity_of("", host, None));
    }
}
