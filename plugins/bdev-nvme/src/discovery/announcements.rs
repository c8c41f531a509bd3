//! What is announced by multicast DNS (RFC 6763): instances of `_nvme-disc`, as
//! NVMe TP 8009 describes them, and the addresses of discovery controllers they
//! stand for. Knows neither threads nor places; `browser` brings the events.

use std::collections::BTreeMap;
use std::net::IpAddr;

use mdns_sd::{ResolvedService, ServiceEvent};
use nvme_spec::discovery::{AddressFamily, TransportType};
use nvme_spec::nqn::DISCOVERY_NQN;
use tenon_sdk::{Error, FabricAddress};

/// What is announced now.
#[derive(Clone, Debug, Default)]
pub(super) struct Announcements {
    instances: BTreeMap<String, Instance>,
    /// There were more than are kept.
    left_out: bool,
}

/// An instance, by what has been heard of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Instance {
    /// Where it is has been asked for.
    Unresolved,
    At(Vec<FabricAddress>),
    /// Nobody can be asked there.
    Unusable(String),
}

impl Announcements {
    /// Takes an event over; whether anything is different now.
    pub(super) fn take(&mut self, event: &ServiceEvent) -> bool {
        match event {
            ServiceEvent::ServiceFound(_, name) if !self.instances.contains_key(name) => {
                self.put(name, Instance::Unresolved)
            }
            ServiceEvent::ServiceResolved(service) => {
                let instance = addresses_of(service).map_or_else(Instance::Unusable, Instance::At);
                self.put(&service.fullname, instance)
            }
            ServiceEvent::ServiceRemoved(_, name) => self.instances.remove(name).is_some(),
            _ => false,
        }
    }

    fn put(&mut self, name: &str, instance: Instance) -> bool {
        if self.instances.get(name) == Some(&instance) {
            return false;
        }
        if self.instances.len() >= MAX_INSTANCES && !self.instances.contains_key(name) {
            return !std::mem::replace(&mut self.left_out, true);
        }
        self.instances.insert(name.to_owned(), instance);
        true
    }

    /// Addresses of discovery controllers, each once, in the order of the instances' names.
    pub(super) fn addresses(&self) -> Vec<FabricAddress> {
        let mut all: Vec<FabricAddress> = Vec::new();
        for instance in self.instances.values() {
            let Instance::At(addresses) = instance else { continue };
            for address in addresses {
                if !all.iter().any(|known| super::is_same_place(known, address)) {
                    all.push(address.clone());
                }
            }
        }
        all
    }

    /// Instances that nobody can be asked at, and why.
    pub(super) fn unusable(&self) -> impl Iterator<Item = (&str, &str)> {
        self.instances.iter().filter_map(|(name, instance)| match instance {
            Instance::Unresolved => Some((name.as_str(), "nobody has answered yet where it is")),
            Instance::Unusable(reason) => Some((name.as_str(), reason.as_str())),
            Instance::At(_) => None,
        })
    }

    pub(super) fn get(&self, name: &str) -> Option<&Instance> {
        self.instances.get(name)
    }

    /// Whether instances were left out for which there is room now; then all have to be asked for again.
    pub(super) fn has_room_again(&mut self) -> bool {
        let has_room = self.left_out && self.instances.len() < MAX_INSTANCES;
        self.left_out &= !has_room;
        has_room
    }
}

/// The type of service that `svcname` means, as multicast DNS spells it.
pub(crate) fn service_type(svcname: &str) -> Result<&'static str, Error> {
    let short = svcname.strip_suffix('.').unwrap_or(svcname).to_ascii_lowercase();
    match short.strip_suffix(".local").unwrap_or(&short) {
        "_nvme-disc._tcp" => Ok("_nvme-disc._tcp.local."),
        "_nvme-disc._udp" => Ok("_nvme-disc._udp.local."),
        _ => {
            let reason = format!("svcname `{svcname}`: must be _nvme-disc._tcp or _nvme-disc._udp");
            Err(Error::invalid(reason))
        }
    }
}

/// Where the discovery controller of an instance is, or why that is not known.
fn addresses_of(service: &ResolvedService) -> Result<Vec<FabricAddress>, String> {
    let property = |key| service.get_property_val_str(key).filter(|value| !value.is_empty());
    let trtype = match property("p").map(str::to_ascii_lowercase).as_deref() {
        Some("tcp") => TransportType::TCP,
        Some("rdma" | "roce" | "rocev2" | "iwarp") => TransportType::RDMA,
        Some(other) => return Err(format!("its protocol p={other} is not known")),
        None => return Err("it has no protocol p".to_owned()),
    };
    let subnqn = property("nqn").unwrap_or(DISCOVERY_NQN);
    if let Err(error) = nvme_spec::nqn::validate(subnqn) {
        return Err(format!("its nqn `{subnqn}`: {error}"));
    }
    if service.port == 0 {
        return Err("its port is 0".to_owned());
    }
    let mut ips: Vec<IpAddr> = service.addresses.iter().map(mdns_sd::ScopedIp::to_ip_addr).collect();
    // IPv4 before IPv6, so that the order says nothing of chance.
    ips.sort_unstable();
    ips.dedup();
    let usable: Vec<FabricAddress> = ips
        .into_iter()
        .filter(|ip| is_usable(*ip))
        .take(MAX_ADDRESSES)
        .map(|ip| FabricAddress {
            trtype: trtype.0,
            adrfam: if ip.is_ipv4() { AddressFamily::IPV4.0 } else { AddressFamily::IPV6.0 },
            traddr: ip.to_string(),
            trsvcid: service.port.to_string(),
            subnqn: subnqn.to_owned(),
        })
        .collect();
    if usable.is_empty() { Err("it has no address that can be connected to".to_owned()) } else { Ok(usable) }
}

/// A link-local address means nothing without its link, which an address of NVMe cannot name.
fn is_usable(ip: IpAddr) -> bool {
    let is_of_a_link = matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local());
    !ip.is_unspecified() && !ip.is_multicast() && !is_of_a_link
}

/// Instances that are kept.
const MAX_INSTANCES: usize = 256;
/// Addresses of one instance that are asked.
const MAX_ADDRESSES: usize = 8;

#[cfg(test)]
mod tests {
    use mdns_sd::ServiceInfo;

    use super::*;

    const TCP: &str = "_nvme-disc._tcp.local.";

    fn service(instance: &str, ips: &[&str], port: u16, properties: &[(&str, &str)]) -> ServiceEvent {
        let ips: Vec<IpAddr> = ips.iter().map(|ip| ip.parse().unwrap()).collect();
        let info = ServiceInfo::new(TCP, instance, "box.local.", &ips[..], port, properties).unwrap();
        ServiceEvent::ServiceResolved(Box::new(info.as_resolved_service()))
    }

    fn name(instance: &str) -> String {
        format!("{instance}.{TCP}")
    }

    fn found(instance: &str) -> ServiceEvent {
        ServiceEvent::ServiceFound(TCP.to_owned(), name(instance))
    }

    fn removed(instance: &str) -> ServiceEvent {
        ServiceEvent::ServiceRemoved(TCP.to_owned(), name(instance))
    }

    fn places(announcements: &Announcements) -> Vec<String> {
        let all = announcements.addresses();
        all.iter().map(|address| format!("{} {}", address.traddr, address.trsvcid)).collect()
    }

    #[test]
    fn an_instance_stands_for_each_of_its_addresses() {
        let mut all = Announcements::default();
        let ips = ["fe80::1", "2001:db8::1", "192.0.2.9", "192.0.2.1", "0.0.0.0", "ff02::fb"];
        let nqn = "nqn.2026-01.io.tenon:cdc";
        assert!(all.take(&service("a", &ips, 8009, &[("P", "TCP"), ("NQN", nqn)])));
        assert_eq!(places(&all), ["192.0.2.1 8009", "192.0.2.9 8009", "2001:db8::1 8009"]);
        let addresses = all.addresses();
        assert_eq!((addresses[0].trtype, addresses[0].adrfam, &*addresses[0].subnqn), (3, 1, nqn));
        assert_eq!(addresses[2].adrfam, 2);
        assert!(!all.take(&service("a", &ips, 8009, &[("P", "TCP"), ("NQN", nqn)])), "nothing new");
        assert!(all.take(&service("b", &["192.0.2.9"], 8009, &[("p", "tcp")])));
        assert_eq!(places(&all).len(), 3, "the same place");
    }

    #[test]
    fn without_an_nqn_it_is_the_one_of_every_discovery_service_and_rdma_has_several_names() {
        for (p, trtype) in [("tcp", 3), ("roce", 1), ("RoCEv2", 1), ("iwarp", 1), ("rdma", 1)] {
            let mut all = Announcements::default();
            all.take(&service("a", &["192.0.2.1"], 8009, &[("p", p)]));
            let addresses = all.addresses();
            assert_eq!((addresses[0].trtype, &*addresses[0].subnqn), (trtype, DISCOVERY_NQN));
        }
    }

    #[test]
    fn what_nobody_can_be_asked_at_is_told_with_the_reason() {
        #[track_caller]
        fn check(ips: &[&str], port: u16, properties: &[(&str, &str)], reason: &str) {
            let mut all = Announcements::default();
            assert!(all.take(&service("a", ips, port, properties)));
            assert!(all.addresses().is_empty());
            let told: Vec<_> = all.unusable().collect();
            assert_eq!(told, [(&*name("a"), reason)]);
        }
        let ip = ["192.0.2.1"];
        check(&ip, 8009, &[("p", "pigeon")], "its protocol p=pigeon is not known");
        check(&ip, 8009, &[("nqn", DISCOVERY_NQN)], "it has no protocol p");
        check(&ip, 0, &[("p", "tcp")], "its port is 0");
        check(&["fe80::1"], 8009, &[("p", "tcp")], "it has no address that can be connected to");
        let mut all = Announcements::default();
        all.take(&service("a", &ip, 8009, &[("p", "tcp"), ("nqn", "flour")]));
        assert!(all.unusable().next().is_some_and(|(_, reason)| reason.starts_with("its nqn `flour`: ")));
        assert!(all.take(&found("b")));
        assert!(all.unusable().any(|(_, reason)| reason == "nobody has answered yet where it is"));
    }

    /// Whatever the order in which instances come, change and go: what is left is what was said last of each.
    #[test]
    fn the_last_word_of_each_instance_holds_in_any_order() {
        let of = |instance: &str, port| service(instance, &["192.0.2.1"], port, &[("p", "tcp")]);
        let scripts = [
            vec![found("a"), of("a", 1), of("a", 2)],
            vec![found("b"), of("b", 3), removed("b")],
            vec![of("c", 4), removed("c"), found("c"), of("c", 5)],
        ];
        for seed in 0_u64..1000 {
            let (mut all, mut at, mut state) = (Announcements::default(), [0; 3], seed);
            while at.iter().zip(&scripts).any(|(at, script)| *at < script.len()) {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let next = (state >> 33) as usize % 3;
                if let Some(event) = scripts[next].get(at[next]) {
                    all.take(event);
                    at[next] += 1;
                }
            }
            assert_eq!(places(&all), ["192.0.2.1 2", "192.0.2.1 5"], "seed {seed}");
            assert_eq!(all.unusable().count(), 0);
        }
    }

    #[test]
    fn instances_and_addresses_are_bounded() {
        let mut all = Announcements::default();
        for number in 0..=MAX_INSTANCES {
            all.take(&found(&format!("i{number:04}")));
        }
        assert_eq!((all.unusable().count(), all.has_room_again()), (MAX_INSTANCES, false));
        assert!(!all.take(&found("one more")), "told once");
        let ips: Vec<String> = (1..=20).map(|number| format!("192.0.2.{number}")).collect();
        let ips: Vec<&str> = ips.iter().map(String::as_str).collect();
        assert!(all.take(&service("i0000", &ips, 8009, &[("p", "tcp")])), "a known one still changes");
        assert_eq!(all.addresses().len(), MAX_ADDRESSES);
        all.take(&removed("i0001"));
        assert!(all.has_room_again() && !all.has_room_again(), "asked for again once");
    }

    #[test]
    fn a_name_of_a_service_is_taken_in_its_usual_spellings() {
        for svcname in
            ["_nvme-disc._tcp", "_nvme-disc._tcp.local", "_nvme-disc._tcp.local.", "_NVMe-disc._tcp."]
        {
            assert_eq!(service_type(svcname).unwrap(), TCP);
        }
        assert_eq!(service_type("_nvme-disc._udp").unwrap(), "_nvme-disc._udp.local.");
        for svcname in ["", "_http._tcp", "nvme-disc", "_nvme-disc._tcp.example.org"] {
            let error = service_type(svcname).unwrap_err();
            assert_eq!(
                error.reason,
                format!("svcname `{svcname}`: must be _nvme-disc._tcp or _nvme-disc._udp")
            );
        }
    }
}
