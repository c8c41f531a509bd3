//! Tells the network by multicast DNS where discovery controllers are, while an
//! operator wants it: every TCP address that is listened on, as an instance of
//! `_nvme-disc._tcp` (RFC 6763, with the keys of NVMe TP 8009). Answering is the
//! library's, on a thread of its own; what it is to say follows the listeners.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use mdns_sd::{ServiceDaemon, ServiceInfo};
use nvme_spec::nqn::DISCOVERY_NQN;

use crate::config::Address;
use crate::error::TargetError;
use crate::target::Target;

/// A responder, and what it says.
pub(crate) struct Responder {
    daemon: ServiceDaemon,
    /// This machine's name, as one label.
    node: String,
    /// Names of instances by listener.
    instances: BTreeMap<u64, String>,
}

impl Target {
    /// Announces every TCP listener from now on, those that come later as well.
    ///
    /// # Errors
    /// If they are announced already, or there is no responder, e.g. for want of a socket.
    pub fn publish_mdns(&self) -> Result<(), TargetError> {
        self.check_running()?;
        if self.publishes_mdns() {
            return Err(TargetError::MdnsPublished);
        }
        let daemon = ServiceDaemon::new().map_err(|error| TargetError::Mdns(error.to_string()))?;
        let responder = Responder { daemon, node: node(), instances: BTreeMap::new() };
        *self.inner.mdns.borrow_mut() = Some(responder);
        self.refresh_mdns();
        Ok(())
    }

    /// Takes the announcements back; `done` is called when the network has been told.
    ///
    /// # Errors
    /// If there are none.
    pub fn stop_mdns(&self, done: impl FnOnce(Result<(), TargetError>) + 'static) {
        let Some(responder) = self.inner.mdns.borrow_mut().take() else {
            return done(Err(TargetError::MdnsNotPublished));
        };
        self.offload(move || responder.end(), move |()| done(Ok(())));
    }

    /// Whether listeners are announced.
    pub fn publishes_mdns(&self) -> bool {
        self.inner.mdns.borrow().is_some()
    }

    /// Listeners may have come or gone.
    pub(crate) fn refresh_mdns(&self) {
        if let Some(responder) = self.inner.mdns.borrow_mut().as_mut() {
            responder.follow(self.tcp_listeners());
        }
    }
}

impl Responder {
    /// Says where these listeners are, and nothing of others.
    fn follow(&mut self, listeners: BTreeMap<u64, Address>) {
        let gone: Vec<u64> =
            self.instances.keys().filter(|number| !listeners.contains_key(number)).copied().collect();
        for number in gone {
            if let Some(name) = self.instances.remove(&number) {
                self.withdraw(&name);
            }
        }
        for (number, address) in listeners {
            if self.instances.contains_key(&number) {
                continue;
            }
            let registered = service(&self.node, number, &address).and_then(|service| {
                let name = service.get_fullname().to_owned();
                self.daemon.register(service).map_err(|error| error.to_string())?;
                Ok(name)
            });
            match registered {
                Ok(name) => _ = self.instances.insert(number, name),
                Err(error) => log::warn!("listener is not announced address={address} error=\"{error}\""),
            }
        }
    }

    fn withdraw(&self, name: &str) {
        // Nobody waits until the network has been told.
        if let Err(error) = self.daemon.unregister(name) {
            log::warn!("announcement is not taken back name=\"{name}\" error=\"{error}\"");
        }
    }

    /// On a worker, where it may block: a process that ended before its responder's thread
    /// ran would be looked for until what others cached expires.
    fn end(self) {
        let told = match self.daemon.shutdown() {
            Ok(told) => told,
            Err(error) => return log::warn!("mdns responder does not end error=\"{error}\""),
        };
        if told.recv_timeout(END_TIMEOUT).is_err() {
            log::warn!("announcements may not be taken back: the mdns responder did not end in time");
        }
    }
}

/// How a listener is announced.
fn service(node: &str, number: u64, address: &Address) -> Result<ServiceInfo, String> {
    let ip: IpAddr = address.traddr.parse().map_err(|_| "traddr is no IP address".to_owned())?;
    let port: u16 = address.trsvcid.parse().map_err(|_| "trsvcid is no port".to_owned())?;
    let instance = format!("{node} {} {port}", address.traddr);
    // A name that no other program of this machine gives its addresses to.
    let host = format!("{node}-tenon-{}-{number}.local.", std::process::id());
    let properties = [("p", "tcp"), ("nqn", DISCOVERY_NQN)];
    let all = ip.is_unspecified();
    let addresses: &[IpAddr] = if all { &[] } else { &[ip] };
    let service = ServiceInfo::new(SERVICE, &instance, &host, addresses, port, &properties[..]);
    let service = service.map_err(|error| error.to_string())?;
    Ok(if all { service.enable_addr_auto() } else { service })
}

/// This machine's name, as one label of a domain name.
fn node() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    label(name.trim())
}

fn label(name: &str) -> String {
    let first = name.split('.').next().unwrap_or_default();
    let letters = first.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' });
    let label: String = letters.take(MAX_NODE).collect();
    if label.is_empty() { "tenon".to_owned() } else { label }
}

const SERVICE: &str = "_nvme-disc._tcp.local.";
/// Time the responder has to say that it ends.
const END_TIMEOUT: Duration = Duration::from_secs(2);
/// Leaves room in a label of 63 bytes for an address and numbers.
const MAX_NODE: usize = 15;

#[cfg(test)]
mod tests {
    use super::*;

    fn address(traddr: &str, trsvcid: &str) -> Address {
        Address {
            trtype: "TCP".into(),
            adrfam: "IPv4".into(),
            traddr: traddr.into(),
            trsvcid: trsvcid.into(),
        }
    }

    #[test]
    fn a_listener_is_announced_with_its_address_its_port_and_the_discovery_nqn() {
        let service = service("box", 7, &address("192.0.2.1", "4420")).unwrap();
        assert_eq!(service.get_type(), "_nvme-disc._tcp.local.");
        assert_eq!((service.get_port(), service.get_addresses().len()), (4420, 1));
        assert!(service.get_addresses().contains(&"192.0.2.1".parse().unwrap()));
        assert_eq!(service.get_property_val_str("p"), Some("tcp"));
        assert_eq!(service.get_property_val_str("nqn"), Some(DISCOVERY_NQN));
        assert!(!service.is_addr_auto());
    }

    #[test]
    fn a_listener_on_every_address_is_announced_with_those_of_the_interfaces() {
        for any in ["0.0.0.0", "::"] {
            let service = service("box", 7, &address(any, "4420")).unwrap();
            assert!(service.is_addr_auto() && service.get_addresses().is_empty());
        }
    }

    #[test]
    fn a_place_that_mdns_cannot_name_is_refused() {
        service("box", 7, &address("host.example", "4420")).unwrap_err();
        service("box", 7, &address("192.0.2.1", "seventy")).unwrap_err();
    }

    #[test]
    fn a_machine_name_becomes_one_label() {
        assert_eq!(label("store_1.example.org"), "store-1");
        assert_eq!(label(""), "tenon");
        assert_eq!(label(&"x".repeat(80)).len(), MAX_NODE);
    }
}
