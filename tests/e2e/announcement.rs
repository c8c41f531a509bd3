//! Listeners announced by multicast DNS, as a host on the network hears of them:
//! with the responder's library, but in the part of the one who asks.

use std::net::TcpListener;
use std::time::{Duration, Instant};

use mdns_sd::{Receiver, ResolvedService, ServiceDaemon, ServiceEvent};
use serde_json::{Value, json};
use tenon_tests::{Host, multicast_dns};

const NQN: &str = "nqn.2026-01.io.tenon:announced";
const SERVICE: &str = "_nvme-disc._tcp.local.";
const PATIENCE: Duration = Duration::from_secs(20);

/// The next event that `find` wants.
fn heard<T>(events: &Receiver<ServiceEvent>, what: &str, find: impl Fn(ServiceEvent) -> Option<T>) -> T {
    let begin = Instant::now();
    loop {
        let left = PATIENCE.checked_sub(begin.elapsed()).unwrap_or_else(|| panic!("not heard: {what}"));
        let event = events.recv_timeout(left).unwrap_or_else(|_| panic!("not heard: {what}"));
        if let Some(found) = find(event) {
            return found;
        }
    }
}

fn resolved(events: &Receiver<ServiceEvent>, port: u16) -> Box<ResolvedService> {
    heard(events, "a listener", |event| match event {
        ServiceEvent::ServiceResolved(service) if service.port == port => Some(service),
        _ => None,
    })
}

fn removed(events: &Receiver<ServiceEvent>, name: &str) {
    heard(events, "a goodbye", |event| match event {
        ServiceEvent::ServiceRemoved(_, gone) if gone == name => Some(()),
        _ => None,
    });
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn listener(port: u16) -> Value {
    let address = json!({
        "trtype": "TCP", "adrfam": "IPv4", "traddr": "127.0.0.1", "trsvcid": port.to_string(),
    });
    json!({ "nqn": NQN, "listen_address": address })
}

#[test]
fn listeners_are_announced_while_an_operator_wants_it() {
    let _turn = multicast_dns();
    let [first, second] = [free_port(), free_port()];
    let config = format!(
        "[nvmf]\npublish_mdns = true\n[[transport]]\ntrtype = \"TCP\"\n\
         [[subsystem]]\nnqn = \"{NQN}\"\nallow_any_host = true\n\
         [[subsystem.listener]]\ntrtype = \"TCP\"\ntraddr = \"127.0.0.1\"\ntrsvcid = {first}\n"
    );
    let mut host = Host::start(&config);
    let asking = ServiceDaemon::new().unwrap();
    let events = asking.browse(SERVICE).unwrap();
    let service = resolved(&events, first);
    assert_eq!(service.get_property_val_str("p"), Some("tcp"));
    assert_eq!(service.get_property_val_str("nqn"), Some("nqn.2014-08.org.nvmexpress.discovery"));
    assert!(service.addresses.iter().any(|address| address.to_ip_addr().is_loopback()), "{service:?}");

    let again = host.err("nvmf_publish_mdns_prr", json!({ "tgt_name": "nvmf_tgt" }));
    assert_eq!(again.code, -17, "{again:?}");
    assert_eq!(host.ok("nvmf_subsystem_add_listener", listener(second)), true);
    let other = resolved(&events, second);
    assert_eq!(host.ok("nvmf_subsystem_remove_listener", listener(second)), true);
    removed(&events, &other.fullname);

    assert_eq!(host.ok("nvmf_stop_mdns_prr", json!({})), true);
    removed(&events, &service.fullname);
    assert_eq!(host.err("nvmf_stop_mdns_prr", json!({})).code, -2);
    assert_eq!(host.ok("nvmf_publish_mdns_prr", json!({})), true);
    resolved(&events, first);
    host.stop();
    removed(&events, &service.fullname);
    asking.shutdown().unwrap();
}

/// Whether `save_config` says that listeners are announced.
fn is_saved(host: &mut Host) -> bool {
    host.ok("save_config", json!({})).as_str().unwrap().contains("\npublish_mdns = true\n")
}

#[test]
fn an_announcement_is_saved_and_a_reload_begins_and_ends_it() {
    let _turn = multicast_dns();
    let port = free_port();
    let config = |nvmf: &str| {
        format!(
            "[nvmf]\n{nvmf}[[transport]]\ntrtype = \"TCP\"\n[[subsystem]]\nnqn = \"{NQN}\"\n\
             [[subsystem.listener]]\ntrtype = \"TCP\"\ntraddr = \"127.0.0.1\"\ntrsvcid = {port}\n"
        )
    };
    let (silent, announced) = (config(""), config("publish_mdns = true\n"));
    let asking = ServiceDaemon::new().unwrap();
    let events = asking.browse(SERVICE).unwrap();
    let mut host = Host::start(&silent);
    let reload = |host: &mut Host, text: &str| {
        let _ = host.scratch().write("tenon.toml", text);
        assert_eq!(host.ok("config_reload", json!({})), true);
    };
    assert!(!is_saved(&mut host));
    // By a call, and by a table: it is saved either way.
    assert_eq!(host.ok("nvmf_publish_mdns_prr", json!({})), true);
    let name = resolved(&events, port).fullname.clone();
    assert!(is_saved(&mut host));
    assert_eq!(host.ok("nvmf_stop_mdns_prr", json!({})), true);
    removed(&events, &name);
    assert!(!is_saved(&mut host));
    reload(&mut host, &announced);
    resolved(&events, port);
    assert!(is_saved(&mut host));
    // What did not change goes on.
    reload(&mut host, &announced.replace("publish_mdns", "max_subsystems = 7\npublish_mdns"));
    assert_eq!(host.err("nvmf_publish_mdns_prr", json!({})).code, -17);
    assert!(is_saved(&mut host));
    let saved = host.ok("save_config", json!({})).as_str().unwrap().to_owned();
    reload(&mut host, &silent);
    removed(&events, &name);
    assert!(!is_saved(&mut host));
    // What was saved announces again.
    reload(&mut host, &saved);
    resolved(&events, port);
    host.stop();
    asking.shutdown().unwrap();
}
