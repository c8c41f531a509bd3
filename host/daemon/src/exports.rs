//! How hosts reach what this process exports: the command lines a person can
//! paste on a Linux host, one per subsystem and listener.

use tenon_nvmf_target::{Address, SubsystemSnapshot};

/// The lines, a `nvme discover` for each address and a `nvme connect` for each subsystem behind it.
pub fn lines(subsystems: &[SubsystemSnapshot]) -> Vec<String> {
    let mut lines = Vec::new();
    for subsystem in subsystems.iter().filter(|one| !one.is_discovery) {
        for listener in &subsystem.listeners {
            let Some(place) = place(&listener.address) else {
                lines.push(format!("# {} is reached in this process only", subsystem.spec.nqn));
                continue;
            };
            let host = host_option(subsystem);
            let secure = if listener.is_secure { " --tls" } else { "" };
            let discover = format!("nvme discover {place}{secure}");
            if !lines.contains(&discover) {
                lines.push(discover);
            }
            lines.push(format!("nvme connect {place} -n {}{host}{secure}", subsystem.spec.nqn));
        }
    }
    lines
}

/// `-t tcp -a 127.0.0.1 -s 4420`; nothing for an address that no other process reaches.
fn place(address: &Address) -> Option<String> {
    let trtype = address.trtype.to_ascii_lowercase();
    if trtype == "loop" {
        return None;
    }
    // A wildcard is a place to listen at, none to connect to.
    let traddr = match address.traddr.as_str() {
        "0.0.0.0" => "127.0.0.1",
        "::" => "::1",
        other => other,
    };
    let service = if address.trsvcid.is_empty() { String::new() } else { format!(" -s {}", address.trsvcid) };
    Some(format!("-t {trtype} -a {traddr}{service}"))
}

/// What a host must call itself, if not every host may connect.
fn host_option(subsystem: &SubsystemSnapshot) -> String {
    if subsystem.allow_any_host {
        return String::new();
    }
    match subsystem.hosts.first() {
        Some(host) => {
            let has_key = subsystem.host_keys.first().is_some_and(|keys| keys.dhchap_key.is_some());
            format!(" --hostnqn {host}{}", if has_key { " --dhchap-secret=…" } else { "" })
        }
        None => "   # no host may connect yet: nvmf_subsystem_add_host".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use tenon_nvmf_target::{AnaState, ListenerSnapshot, SubsystemSpec, SubsystemState};

    use super::*;

    fn subsystem(addresses: &[(&str, &str)], hosts: &[&str]) -> SubsystemSnapshot {
        let listener = |(trtype, traddr): &(&str, &str)| ListenerSnapshot {
            address: Address {
                trtype: (*trtype).to_owned(),
                adrfam: "IPv4".to_owned(),
                traddr: (*traddr).to_owned(),
                trsvcid: if *trtype == "LOOP" { String::new() } else { "4420".to_owned() },
            },
            is_secure: false,
            ana_states: Vec::new(),
            default_ana_state: AnaState::OPTIMIZED,
        };
        SubsystemSnapshot {
            spec: SubsystemSpec::new("nqn.2026-01.io.tenon:a"),
            is_discovery: false,
            state: SubsystemState::Active,
            allow_any_host: hosts.is_empty(),
            hosts: hosts.iter().map(|host| (*host).to_owned()).collect(),
            host_keys: vec![tenon_nvmf_target::HostKeys::default(); hosts.len()],
            host_limits: vec![tenon_bdev::QosLimits::default(); hosts.len()],
            namespaces: Vec::new(),
            listeners: addresses.iter().map(listener).collect(),
            controllers: Vec::new(),
        }
    }

    #[track_caller]
    fn check(subsystems: &[SubsystemSnapshot], expected: &[&str]) {
        assert_eq!(lines(subsystems), expected);
    }

    #[test]
    fn every_listener_has_its_command() {
        check(
            &[subsystem(&[("TCP", "127.0.0.1"), ("TCP", "0.0.0.0")], &[])],
            &[
                "nvme discover -t tcp -a 127.0.0.1 -s 4420",
                "nvme connect -t tcp -a 127.0.0.1 -s 4420 -n nqn.2026-01.io.tenon:a",
                "nvme connect -t tcp -a 127.0.0.1 -s 4420 -n nqn.2026-01.io.tenon:a",
            ],
        );
    }

    #[test]
    fn a_host_in_the_list_is_named_and_a_loop_is_not_connected_to() {
        check(
            &[subsystem(&[("TCP", "::1")], &["nqn.2026-01.io.tenon:h"])],
            &[
                "nvme discover -t tcp -a ::1 -s 4420",
                "nvme connect -t tcp -a ::1 -s 4420 -n nqn.2026-01.io.tenon:a --hostnqn nqn.2026-01.io.tenon:h",
            ],
        );
        check(
            &[subsystem(&[("LOOP", "a")], &[])],
            &["# nqn.2026-01.io.tenon:a is reached in this process only"],
        );
    }
}
