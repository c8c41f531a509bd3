//! Discovery services found by multicast DNS: one process announces on loopback,
//! another searches there, attaches what it is told of and keeps it; and one that
//! is named.
//!
//! Others on this machine may announce as well: what is expected is looked for,
//! not counted.

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};
use mdns_sd::{IfKind, ServiceDaemon, ServiceInfo};
use serde_json::{Value, json};
use tenon_tests::{Host, counts, multicast_dns, wait_for, wait_for_counts};

use crate::world::{NQN, ONE, TWO, Target, initiator};

const OTHER: &str = "nqn.2026-01.io.tenon:pair-other";

/// A search on loopback, and nowhere else.
fn search() -> Value {
    json!({
        "name": "site", "svcname": "_nvme-disc._tcp", "hostaddr": "127.0.0.1",
        "ctrlr_loss_timeout_sec": -1, "reconnect_delay_sec": 1,
    })
}

/// What the search has found: names, ports, and whether they are announced now.
fn found(host: &mut Host) -> Vec<(String, String, bool)> {
    let searches = host.ok("bdev_nvme_get_mdns_discovery_info", json!({}));
    let of = |place: &Value| {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        (text(&place["name"]), text(&place["trid"]["trsvcid"]), place["announced"] == true)
    };
    searches[0]["referrals"].as_array().into_iter().flatten().map(of).collect()
}

/// Name of the place with that port.
fn place(host: &mut Host, port: u16) -> String {
    let port = port.to_string();
    wait_for("a discovery service", || {
        found(host).into_iter().find(|(_, at, _)| *at == port).map(|(name, ..)| name)
    })
}

/// Name of the device with that UUID, once it is there.
fn device(host: &mut Host, uuid: &str) -> String {
    wait_for("a device", || {
        let found = host.call("bdev_get_bdevs", json!({ "name": uuid })).ok()?;
        Some(found[0]["name"].as_str()?.to_owned())
    })
}

/// Ports of the paths of a subsystem that are connected.
fn connected(host: &mut Host, nqn: &str) -> Vec<String> {
    let all = host.ok("bdev_nvme_get_controllers", json!({}));
    let groups = all.as_array().cloned().unwrap_or_default();
    let paths = groups.iter().flat_map(|group| group["ctrlrs"].as_array().cloned().unwrap_or_default());
    let serving = paths.filter(|path| path["trid"]["subnqn"] == nqn && path["state"] == "enabled");
    let mut ports: Vec<String> =
        serving.filter_map(|path| path["trid"]["trsvcid"].as_str().map(str::to_owned)).collect();
    ports.sort_by_key(|port| port.parse::<u16>().ok());
    ports
}

#[track_caller]
fn connects(host: &mut Host, nqn: &str, ports: &[u16]) {
    let mut expected: Vec<u16> = ports.to_vec();
    expected.sort_unstable();
    let expected: Vec<String> = expected.iter().map(u16::to_string).collect();
    wait_for("paths", || (connected(host, nqn) == expected).then_some(()));
}

/// Writes or reads the first block of namespace 1 of a device's controller.
fn io(host: &mut Host, device: &str, write: Option<&[u8]>) -> Vec<u8> {
    let mut command = [0_u8; 64];
    command[0] = if write.is_some() { 1 } else { 2 };
    command[4] = 1;
    let controller = device.strip_suffix("n1").unwrap();
    let mut params = json!({
        "name": controller, "cmd_type": "io", "cmdbuf": STANDARD.encode(command),
        "data_direction": if write.is_some() { "h2c" } else { "c2h" },
    });
    match write {
        Some(data) => params["data"] = STANDARD.encode(data).into(),
        None => params["data_len"] = 4096.into(),
    }
    let answer = host.ok("bdev_nvme_send_cmd", params);
    let data = answer["data"].as_str().unwrap_or_default();
    URL_SAFE.decode(data).unwrap()
}

/// Threads of a process that have to do with multicast DNS.
fn threads(host: &Host) -> Vec<String> {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", host.pid())).unwrap();
    // A thread may end meanwhile.
    let names = tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok());
    names.map(|name| name.trim().to_owned()).filter(|name| name.to_lowercase().contains("mdns")).collect()
}

/// The library's thread answers that it ends before it frees what it had cached: it
/// is gone a moment after the call that stops the search.
#[track_caller]
fn wait_for_threads_to_end(host: &Host) {
    wait_for("the threads of the search that end", || threads(host).is_empty().then_some(()));
}

#[test]
fn what_is_announced_is_attached_and_a_stop_detaches_it() {
    let _turn = multicast_dns();
    let mut target = Target::start(2);
    let ports = target.ports.clone();
    target.stop_listening(1);
    target.host().ok("nvmf_publish_mdns_prr", json!({}));
    let mut host = initiator();
    host.ok("bdev_nvme_start_mdns_discovery", search());
    let name = device(&mut host, ONE);
    assert!(name.starts_with("site_nvme"), "{name}");
    connects(&mut host, NQN, &ports[..1]);
    let data: Vec<u8> = (0..4096_u32).map(|at| (at * 7 % 251) as u8).collect();
    io(&mut host, &name, Some(&data));
    assert_eq!(io(&mut host, &name, None), data);

    // A listener that comes later is another place, and another path of the same device.
    target.listen(1);
    let second = place(&mut host, ports[1]);
    connects(&mut host, NQN, &ports);
    assert_eq!(device(&mut host, ONE), name);
    // Another target.
    let mut other = Host::start(&other_target());
    let further = device(&mut host, TWO);
    assert!(further.starts_with("site_nvme") && further != name, "{further}");
    let services = host.ok("bdev_nvme_get_discovery_info", json!({}));
    let first = place(&mut host, ports[0]);
    for name in [&first, &second] {
        let is_it = |service: &&Value| service["name"] == **name && service["state"] == "enabled";
        let service = services.as_array().unwrap().iter().find(is_it).unwrap_or_else(|| panic!("{services}"));
        assert_eq!(service["paths"].as_array().unwrap().len(), 2, "{service}");
    }

    // The table of the search is saved, and nothing of what it found.
    let saved = host.ok("save_config", json!({})).as_str().unwrap().to_owned();
    assert!(saved.contains("svcname = \"_nvme-disc._tcp\"") && !saved.contains("traddr"), "{saved}");
    assert_eq!(saved.matches("[[bdev]]").count(), 1, "{saved}");

    other.ok("nvmf_stop_mdns_prr", json!({}));
    host.ok("bdev_nvme_stop_mdns_discovery", json!({ "name": "site" }));
    assert!(connected(&mut host, NQN).is_empty() && host.bdevs().is_empty());
    assert_eq!(host.ok("bdev_nvme_get_mdns_discovery_info", json!({})), json!([]));
    assert_eq!(host.ok("bdev_nvme_get_discovery_info", json!({})), json!([]));
    wait_for_threads_to_end(&host);
    assert_eq!(host.err("bdev_nvme_stop_mdns_discovery", json!({ "name": "site" })).code, -2);

    // What was saved finds it again, and nothing is left of either search.
    let before = counts(&mut host);
    let again = saved.replace("# Written by save_config.", "");
    let mut restored = Host::start(&again);
    device(&mut restored, ONE);
    restored.stop();
    host.ok("bdev_nvme_start_mdns_discovery", search());
    assert_eq!(io_of(&mut host), data);
    assert!(!threads(&host).is_empty());
    host.ok("bdev_nvme_stop_mdns_discovery", json!({ "name": "site" }));
    wait_for_counts(&mut host, &before);
    host.stop();
    other.stop();
}

/// The first block, whatever the device is called now.
fn io_of(host: &mut Host) -> Vec<u8> {
    let name = device(host, ONE);
    io(host, &name, None)
}

fn other_target() -> String {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    format!(
        "[nvmf]\npublish_mdns = true\n[[transport]]\ntrtype = \"TCP\"\n\
         [[bdev]]\nmodule = \"malloc\"\nname = \"m0\"\nsize = \"1MiB\"\n\
         [[subsystem]]\nnqn = \"{OTHER}\"\nallow_any_host = true\n\
         [[subsystem.namespace]]\nbdev_name = \"m0\"\nnsid = 1\nuuid = \"{TWO}\"\n\
         [[subsystem.listener]]\ntraddr = \"127.0.0.1\"\ntrsvcid = {port}\n"
    )
}

#[test]
fn a_target_that_restarts_or_falls_silent_keeps_its_paths() {
    let _turn = multicast_dns();
    let mut target = Target::start(2);
    let ports = target.ports.clone();
    target.host().ok("nvmf_publish_mdns_prr", json!({}));
    let mut host = initiator();
    host.ok("bdev_nvme_start_mdns_discovery", search());
    let name = device(&mut host, ONE);
    connects(&mut host, NQN, &ports);
    let [first, second] = [place(&mut host, ports[0]), place(&mut host, ports[1])];
    io(&mut host, &name, Some(&[0x5a; 4096]));

    target.kill();
    wait_for("the loss", || connected(&mut host, NQN).is_empty().then_some(()));
    assert_eq!(device(&mut host, ONE), name, "the device stays");
    target.restart();
    target.add_namespace(1, "f0", ONE);
    target.host().ok("nvmf_publish_mdns_prr", json!({}));
    connects(&mut host, NQN, &ports);
    assert_eq!(device(&mut host, ONE), name);
    assert_eq!(io(&mut host, &name, None), vec![0x5a; 4096]);
    let now = [place(&mut host, ports[0]), place(&mut host, ports[1])];
    assert_eq!(now, [first, second.clone()], "the same places");

    // Nothing is announced any more: nothing is lost by that.
    target.host().ok("nvmf_stop_mdns_prr", json!({}));
    let ours = |host: &mut Host| {
        let of_ours =
            |(_, port, _): &(String, String, bool)| ports.iter().any(|own| own.to_string() == *port);
        found(host).into_iter().filter(of_ours).collect::<Vec<_>>()
    };
    wait_for("the goodbye", || ours(&mut host).iter().all(|(.., announced)| !announced).then_some(()));
    assert_eq!(ours(&mut host).len(), 2);
    connects(&mut host, NQN, &ports);
    assert_eq!(io(&mut host, &name, None), vec![0x5a; 4096]);

    // An operator can give up one of them; what the other tells of stays.
    target.stop_listening(1);
    connects(&mut host, NQN, &ports[..1]);
    host.ok("bdev_nvme_stop_discovery", json!({ "name": second }));
    let places = ours(&mut host);
    assert!(places.len() == 1 && places[0].1 == ports[0].to_string(), "{places:?}");
    connects(&mut host, NQN, &ports[..1]);
    assert_eq!(io(&mut host, &name, None), vec![0x5a; 4096]);
    assert_eq!(host.err("bdev_nvme_stop_discovery", json!({ "name": second })).code, -19);
    host.stop();
}

/// A refused call per line: method, parameters, code, and words that the error holds.
const REFUSALS: &str = r#"
bdev_nvme_start_mdns_discovery {"name": "a"} -22 missing field `svcname`
bdev_nvme_start_mdns_discovery {"svcname": "_nvme-disc._tcp"} -22 missing field `name`
bdev_nvme_start_mdns_discovery {"name": "", "svcname": "_nvme-disc._tcp"} -22 must be 1 to 128 bytes
bdev_nvme_start_mdns_discovery {"name": "a", "svcname": "_http._tcp"} -22 svcname `_http._tcp`: must be
bdev_nvme_start_mdns_discovery {"name": "a", "svcname": "_nvme-disc._tcp", "hostnqn": 7} -22 hostnqn
bdev_nvme_start_mdns_discovery {"name": "a", "svcname": "_nvme-disc._tcp", "traddr": "10.0.0.1"} -22 traddr is given
bdev_nvme_start_mdns_discovery {"name": "a", "svcname": "_nvme-disc._tcp", "discovery": true} -22 discovery is given
bdev_nvme_start_mdns_discovery {"name": "a", "svcname": "_nvme-disc._tcp", "wait_for_attach": true} -22 no end to wait for
bdev_nvme_start_mdns_discovery {"name": "a", "svcname": "_nvme-disc._tcp", "hostaddr": "eth0"} -22 must be an IP address
bdev_nvme_start_mdns_discovery {"name": "site", "svcname": "_nvme-disc._udp"} -17 site
bdev_nvme_start_mdns_discovery {"name": "a", "svcname": "_nvme-disc._tcp.local."} -17 site searches
bdev_nvme_stop_mdns_discovery {"name": "nobody"} -2 nobody
bdev_nvme_stop_discovery {"name": "site"} -22 bdev_nvme_stop_mdns_discovery
bdev_nvme_stop_discovery {"name": "site99"} -19 site99
bdev_nvme_attach_controller {"name": "a", "svcname": "_nvme-disc._tcp"} -22 bdev_nvme_start_mdns_discovery
bdev_nvme_attach_controller {"name": "a", "trtype": "TCP"} -22 missing field `traddr`
bdev_nvme_attach_controller {"name": "a", "traddr": "10.0.0.1"} -22 missing field `trtype`
"#;

#[test]
fn a_search_that_makes_no_sense_is_refused_and_a_table_of_one_is_kept() {
    let _turn = multicast_dns();
    let table = "[[bdev]]\nmodule = \"nvme\"\nname = \"site\"\nsvcname = \"_nvme-disc._tcp.local\"\n\
                 hostaddr = \"127.0.0.1\"\nhostnqn = \"nqn.2026-01.io.tenon:host\"\n";
    let mut host = Host::start(table);
    for line in REFUSALS.trim().lines() {
        let (method, rest) = line.split_once(' ').unwrap();
        let mut rest = serde_json::Deserializer::from_str(rest).into_iter::<Value>();
        let params = rest.next().unwrap().unwrap();
        let (code, words) = line[method.len() + 1 + rest.byte_offset()..].trim().split_once(' ').unwrap();
        let error = host.err(method, params);
        assert!(error.code.to_string() == code && error.message.contains(words), "{line}: {error:?}");
    }
    // Nobody is there: it is saved all the same, as it came by a table.
    let saved = host.ok("save_config", json!({})).as_str().unwrap().to_owned();
    for line in table.lines() {
        assert!(saved.contains(line), "{line} is missing in {saved}");
    }
    let text = table.replace("\"site\"", "\"other\"");
    let _ = host.scratch().write("tenon.toml", &text);
    host.ok("config_reload", json!({}));
    // Nor does it matter if it came by a call, until it is stopped.
    host.ok(
        "bdev_nvme_start_mdns_discovery",
        json!({ "name": "called", "svcname": "_nvme-disc._udp", "hostaddr": "127.0.0.1" }),
    );
    let is_saved = |host: &mut Host, name: &str| {
        host.ok("save_config", json!({})).as_str().unwrap().contains(&format!("name = \"{name}\"\n"))
    };
    assert!(is_saved(&mut host, "called") && is_saved(&mut host, "other"));
    host.ok("bdev_nvme_stop_mdns_discovery", json!({ "name": "called" }));
    assert!(!is_saved(&mut host, "called") && is_saved(&mut host, "other"));
    let info = host.ok("bdev_nvme_get_mdns_discovery_info", json!({}));
    assert_eq!((&info[0]["name"], &info[0]["svcname"]), (&json!("other"), &json!("_nvme-disc._tcp.local")));
    assert_eq!(info.as_array().unwrap().len(), 1);
    host.ok("bdev_nvme_stop_mdns_discovery", json!({ "name": "other" }));
    assert!(!is_saved(&mut host, "other"));
    host.stop();
}

/// Announces instances of a service, as others on the network would.
struct Announcer(ServiceDaemon);

impl Announcer {
    fn new() -> Self {
        let daemon = ServiceDaemon::new().unwrap();
        // On loopback only.
        daemon.disable_interface(IfKind::All).unwrap();
        daemon.enable_interface(IfKind::LoopbackV4).unwrap();
        Announcer(daemon)
    }

    fn announce(&self, instance: &str, ip: &str, port: u16, properties: &[(&str, &str)]) -> String {
        let host = format!("{instance}-{}.local.", std::process::id());
        let service =
            ServiceInfo::new("_nvme-disc._udp.local.", instance, &host, ip, port, properties).unwrap();
        let name = service.get_fullname().to_owned();
        self.0.register(service).unwrap();
        name
    }
}

impl Drop for Announcer {
    fn drop(&mut self) {
        let _ = self.0.shutdown();
    }
}

fn info(host: &mut Host) -> Value {
    host.ok("bdev_nvme_get_mdns_discovery_info", json!({}))[0].clone()
}

/// Waits until something is passed over for that reason.
#[track_caller]
fn is_passed_over(host: &mut Host, name: &str, reason: &str) {
    wait_for(reason, || {
        let info = info(host);
        let told = |one: &Value| {
            let text = |key: &str| one[key].as_str().unwrap_or_default().to_owned();
            text("name").starts_with(name) && text("reason").contains(reason)
        };
        info["passed_over"].as_array()?.iter().any(told).then_some(())
    });
}

#[test]
fn announcements_that_are_of_no_use_are_told_and_too_many_are_bounded() {
    let _turn = multicast_dns();
    let announcer = Announcer::new();
    let closed = 9;
    let odd = announcer.announce("odd", "127.0.0.1", closed, &[("p", "pigeon")]);
    let plain = announcer.announce("plain", "127.0.0.1", closed, &[]);
    let zero = announcer.announce("zero", "127.0.0.1", 0, &[("p", "tcp")]);
    let flour = announcer.announce("flour", "127.0.0.1", closed, &[("p", "tcp"), ("nqn", "flour")]);
    let mut host = initiator();
    let search = json!({ "name": "site", "svcname": "_nvme-disc._udp", "hostaddr": "127.0.0.1" });
    host.ok("bdev_nvme_start_mdns_discovery", search);
    for (name, reason) in [
        (&odd, "its protocol p=pigeon is not known"),
        (&plain, "it has no protocol p"),
        (&zero, "its port is 0"),
        (&flour, "its nqn `flour`"),
    ] {
        is_passed_over(&mut host, name, reason);
    }
    // Nobody has this transport here: asked, and told why not.
    announcer.announce("remote", "127.0.0.1", closed, &[("p", "roce")]);
    let remote = place(&mut host, closed);
    announcer.0.unregister(&odd).unwrap();
    wait_for("an announcement that goes", || {
        let info = info(&mut host);
        (!info["passed_over"].to_string().contains("pigeon")).then_some(())
    });
    for number in 1..=64 {
        let ip = format!("127.0.1.{number}");
        announcer.announce(&format!("many{number}"), &ip, closed, &[("p", "tcp")]);
    }
    is_passed_over(&mut host, "127.0.1.", "there are 64 already");
    let count = |host: &mut Host| info(host)["referrals"].as_array().unwrap().len();
    assert_eq!(count(&mut host), 64);
    // Where one is given up, there is room.
    host.ok("bdev_nvme_stop_discovery", json!({ "name": remote }));
    is_passed_over(&mut host, "127.0.0.1:9", "bdev_nvme_stop_discovery stopped it");
    wait_for("the last one", || {
        let info = info(&mut host);
        let has_room = !info["passed_over"].to_string().contains("64 already");
        (has_room && info["referrals"].as_array()?.len() == 64).then_some(())
    });
    host.ok("bdev_nvme_stop_mdns_discovery", json!({ "name": "site" }));
    wait_for_threads_to_end(&host);
    host.stop();
}

#[test]
fn what_another_discovery_service_asks_is_asked_once() {
    let _turn = multicast_dns();
    let mut target = Target::start(1);
    let port = target.ports[0];
    let named = json!({
        "name": "named", "trtype": "TCP", "traddr": "127.0.0.1", "trsvcid": port.to_string(),
        "wait_for_attach": true,
    });
    let mut host = initiator();
    host.ok("bdev_nvme_start_discovery", named.clone());
    assert_eq!(device(&mut host, ONE), "named0n1");
    target.host().ok("nvmf_publish_mdns_prr", json!({}));
    host.ok("bdev_nvme_start_mdns_discovery", search());
    is_passed_over(&mut host, &format!("127.0.0.1:{port}"), "discovery service named asks it already");
    host.ok("bdev_nvme_stop_discovery", json!({ "name": "named" }));
    place(&mut host, port);
    assert!(device(&mut host, ONE).starts_with("site_nvme"));
    let error = host.err("bdev_nvme_start_discovery", named);
    assert!(error.code == -17 && error.message.contains("site asks this address already"), "{error:?}");
    host.stop();
}

#[test]
fn a_discovery_service_that_found_nothing_yet_is_back_after_a_restart() {
    let mut target = Target::start(1);
    let port = target.ports[0].to_string();
    target.kill();
    let mut host = initiator();
    let service = json!({
        "name": "named", "trtype": "TCP", "traddr": "127.0.0.1", "trsvcid": port,
        "ctrlr_loss_timeout_sec": -1, "reconnect_delay_sec": 1,
    });
    host.ok("bdev_nvme_start_discovery", service);
    let saved = host.ok("save_config", json!({})).as_str().unwrap().to_owned();
    assert!(saved.contains("discovery = true\n"), "{saved}");
    host.stop();
    let mut restarted = Host::start(&saved);
    target.restart();
    target.add_namespace(1, "f0", ONE);
    assert_eq!(device(&mut restarted, ONE), "named0n1");
    let again = restarted.ok("save_config", json!({})).as_str().unwrap().to_owned();
    assert!(again.contains("discovery = true\n") && again.matches("[[bdev]]").count() == 1, "{again}");
    restarted.ok("bdev_nvme_stop_discovery", json!({ "name": "named" }));
    let saved = restarted.ok("save_config", json!({})).as_str().unwrap().to_owned();
    assert!(!saved.contains("[[bdev]]"), "{saved}");
    restarted.stop();
}
