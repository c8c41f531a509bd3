//! `tenon status`: what a running host does, on one screen. Everything shown
//! comes from public methods of the control socket.

use std::time::Duration;

use serde_json::{Value, json};

use crate::cli::StatusArgs;
use crate::client::Client;

/// How long one method may take.
const CALL: Duration = Duration::from_secs(10);

/// Runs the command.
pub fn status(args: &StatusArgs) -> anyhow::Result<()> {
    let mut client = Client::connect(&args.socket.rpc_socket, CALL)?;
    let mut before = Sample::take(&mut client)?;
    crate::exit::end_with_reader();
    match args.watch {
        None => print!("{}", before.render(None)),
        Some(seconds) => loop {
            std::thread::sleep(Duration::from_secs(seconds.max(1)));
            let now = Sample::take(&mut client)?;
            print!("\x1b[2J\x1b[H{}", now.render(Some(&before)));
            before = now;
        },
    }
    Ok(())
}

/// The answers of one moment.
struct Sample {
    version: Value,
    reactors: Value,
    bdevs: Value,
    iostat: Value,
    modules: Value,
    waiting: Value,
    subsystems: Vec<Subsystem>,
    /// Remote controllers, and the paths of devices over them; null if none were ever attached.
    remotes: Value,
    paths: Value,
}

/// A subsystem with who uses it and where it is reached.
struct Subsystem {
    itself: Value,
    controllers: Value,
    listeners: Value,
}

impl Sample {
    fn take(client: &mut Client) -> anyhow::Result<Sample> {
        let mut call = |method: &str| client.call(method, json!({}));
        let modules = call("module_get_list")?;
        // A module that is not loaded has nothing to tell, and would be loaded by the question.
        let has_remotes =
            modules["modules"].as_array().into_iter().flatten().any(|one| one["name"] == "nvme");
        let mut remote = |method| if has_remotes { call(method) } else { Ok(Value::Null) };
        let (remotes, paths) = (remote("bdev_nvme_get_controllers")?, remote("bdev_nvme_get_io_paths")?);
        Ok(Sample {
            version: call("spdk_get_version")?,
            reactors: call("framework_get_reactors")?,
            bdevs: call("bdev_get_bdevs")?,
            iostat: call("bdev_get_iostat")?,
            modules,
            waiting: call("config_get_waiting")?,
            subsystems: subsystems(client)?,
            remotes,
            paths,
        })
    }

    fn render(&self, before: Option<&Sample>) -> String {
        let mut text = format!("{}  pid {}\n", word(&self.version["version"]), self.reactors["pid"]);
        self.render_reactors(before, &mut text);
        self.render_modules(&mut text);
        self.render_bdevs(before, &mut text);
        render_remotes(&self.remotes, &self.paths, &mut text);
        for subsystem in &self.subsystems {
            self.render_subsystem(subsystem, before, &mut text);
        }
        for entry in self.waiting.as_array().into_iter().flatten() {
            text += &format!(
                "waiting: {} ({}) for {}, {}\n",
                word(&entry["name"]),
                word(&entry["module"]),
                word(&entry["waits_for"]),
                word(&entry["location"]),
            );
        }
        text
    }

    fn render_reactors(&self, before: Option<&Sample>, text: &mut String) {
        *text += &format!("\n{:<12} {:>4} {:>7} {:>14}\n", "REACTOR", "CPU", "BUSY", "LONGEST TURN");
        for (index, reactor) in self.reactors["reactors"].as_array().into_iter().flatten().enumerate() {
            let old = before.map(|sample| &sample.reactors["reactors"][index]);
            let part = |key: &str| number(&reactor[key]) - old.map_or(0.0, |old| number(&old[key]));
            let (busy, idle) = (part("busy"), part("idle"));
            let share = if busy + idle > 0.0 { 100.0 * busy / (busy + idle) } else { 0.0 };
            *text += &format!(
                "{:<12} {:>4} {:>6.1}% {:>11.3} ms\n",
                word(&reactor["lw_threads"][0]["name"]),
                reactor["lcore"].as_u64().map_or("-".to_owned(), |cpu| cpu.to_string()),
                share,
                number(&reactor["longest_turn_ns"]) / 1e6,
            );
        }
    }

    fn render_modules(&self, text: &mut String) {
        let width = widest(&self.modules["modules"], "name", 12);
        *text += &format!("\n{:<width$} {:<9} {}\n", "MODULE", "VERSION", "STATE");
        for module in self.modules["modules"].as_array().into_iter().flatten() {
            *text += &format!(
                "{:<width$} {:<9} {}\n",
                word(&module["name"]),
                word(&module["version"]),
                word(&module["state"]).to_lowercase(),
            );
        }
    }

    fn render_subsystem(&self, subsystem: &Subsystem, before: Option<&Sample>, text: &mut String) {
        let itself = &subsystem.itself;
        let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
        let queues: u64 =
            list(&subsystem.controllers).iter().filter_map(|one| one["num_io_qpairs"].as_u64()).sum();
        *text += &format!(
            "\nSUBSYSTEM {}  {}  controllers: {}  I/O queues: {queues}{}\n",
            word(&itself["nqn"]),
            word(&itself["state"]),
            list(&subsystem.controllers).len(),
            if itself["allow_any_host"] == true { "  any host" } else { "" },
        );
        for namespace in list(&itself["namespaces"]) {
            let rate = self.rate_of(before, word(&namespace["bdev_name"]));
            *text +=
                format!("  namespace {:<5} {:<20} {rate}", namespace["nsid"], word(&namespace["bdev_name"]))
                    .trim_end();
            text.push('\n');
        }
        for listener in list(&subsystem.listeners) {
            let state = listener["ana_state"].as_str().unwrap_or("");
            let tls = if listener["secure_channel"] == true { "tls" } else { "" };
            *text += format!("  listener  {:<26} {state} {tls}", place(&listener["address"])).trim_end();
            text.push('\n');
        }
        for host in list(&subsystem.controllers) {
            *text += &format!(
                "  host      {}  from {}  controller {}  I/O queues: {}\n",
                word(&host["hostnqn"]),
                word(&host["peer"]),
                host["cntlid"],
                host["num_io_qpairs"],
            );
        }
    }

    /// Commands and bytes per second of a device since the last sample, or nothing without one.
    fn rate_of(&self, before: Option<&Sample>, bdev: &str) -> String {
        let Some(before) = before else { return String::new() };
        let hz = number(&self.iostat["tick_rate"]).max(1.0);
        let seconds = (number(&self.iostat["ticks"]) - number(&before.iostat["ticks"])) / hz;
        let (now, old) = (find(&self.iostat, bdev), find(&before.iostat, bdev));
        let rate = |key: &str| (number(&now[key]) - number(&old[key])) / seconds.max(1e-9);
        format!(
            "{:>10.0} reads/s {:>10.0} writes/s {:>10.1} MiB/s",
            rate("num_read_ops"),
            rate("num_write_ops"),
            (rate("bytes_read") + rate("bytes_written")) / 1_048_576.0,
        )
    }

    fn render_bdevs(&self, before: Option<&Sample>, text: &mut String) {
        let hz = number(&self.iostat["tick_rate"]);
        let since = before.map_or(0.0, |sample| number(&sample.iostat["ticks"]));
        let seconds = (number(&self.iostat["ticks"]) - since) / hz.max(1.0);
        let (name_width, module_width) = (widest(&self.bdevs, "name", 20), widest(&self.bdevs, "module", 8));
        *text += &format!(
            "\n{:<name_width$} {:<module_width$} {:<10} {:>10} {:>12} {:>12} {:>10} {:>10}\n",
            "BDEV", "MODULE", "STATE", "SIZE", "READS", "WRITES", "R MiB/s", "W MiB/s"
        );
        for bdev in self.bdevs.as_array().into_iter().flatten() {
            let name = word(&bdev["name"]);
            let now = find(&self.iostat, name);
            let old = before.map(|sample| find(&sample.iostat, name));
            let delta = |key: &str| number(&now[key]) - old.map_or(0.0, |old| number(&old[key]));
            let rate = |key: &str| if before.is_some() { delta(key) / seconds / 1048576.0 } else { 0.0 };
            *text += &format!(
                "{:<name_width$} {:<module_width$} {:<10} {:>10} {:>12} {:>12} {:>10.1} {:>10.1}\n",
                name,
                word(&bdev["module"]),
                word(&bdev["state"]),
                size(number(&bdev["num_blocks"]) * number(&bdev["block_size"])),
                delta("num_read_ops"),
                delta("num_write_ops"),
                rate("bytes_read"),
                rate("bytes_written"),
            );
            for (_, detail) in bdev["driver_specific"].as_object().into_iter().flatten() {
                *text += &members(name, detail);
                *text += &process(name, &detail["process"]);
            }
        }
    }
}

/// Width of a column that holds this text of each of `list`.
fn widest(list: &Value, key: &str, least: usize) -> usize {
    let lengths = list.as_array().into_iter().flatten().map(|one| word(&one[key]).len());
    lengths.max().unwrap_or(0).max(least)
}

/// Remote controllers, and beneath each the paths of devices over it, of all reactors that use them.
fn render_remotes(remotes: &Value, paths: &Value, text: &mut String) {
    for group in remotes.as_array().into_iter().flatten() {
        for controller in group["ctrlrs"].as_array().into_iter().flatten() {
            let (name, trid) = (word(&group["name"]), &controller["trid"]);
            *text += &format!(
                "\nCONTROLLER {name}  {}  {}  cntlid {}  {}",
                place(trid),
                word(&controller["state"]),
                controller["cntlid"],
                word(&trid["subnqn"]),
            );
            if let Some(reason) = controller["reason"].as_str() {
                *text += &format!("  ({reason})");
            }
            text.push('\n');
            let is_on = |path: &&Value| {
                path["controller_name"] == group["name"]
                    && ["trtype", "traddr", "trsvcid"].iter().all(|key| path["transport"][key] == trid[key])
            };
            for group in paths["poll_groups"].as_array().into_iter().flatten() {
                let on_reactor = group["io_paths"].as_array().into_iter().flatten();
                on_reactor.filter(is_on).for_each(|path| *text += &path_line(word(&group["thread"]), path));
            }
        }
    }
}

/// One path of one device on one reactor.
fn path_line(thread: &str, path: &Value) -> String {
    let flag = |key: &'static str| if path[key] == true { key } else { "-" };
    let line = format!(
        "  path {:<20} {thread:<10} {:<9} {:<10} {:<7} {:<15} {:>9.1} us {:>5} in flight",
        word(&path["bdev_name"]),
        flag("connected"),
        flag("accessible"),
        flag("current"),
        word(&path["ana_state"]),
        number(&path["latency_us"]),
        number(&path["in_flight"]),
    );
    let reason = path["reason"].as_str().map_or_else(String::new, |reason| format!("  {reason}"));
    format!("{line}{reason}\n")
}

/// How many members a device has that goes on without some, if it tells of members.
fn members(bdev: &str, detail: &Value) -> String {
    let count = |key: &str| detail[key].as_u64().unwrap_or(0);
    let (current, all) = (count("num_base_bdevs_operational"), count("num_base_bdevs"));
    if current >= all {
        return String::new();
    }
    format!("  {bdev}: degraded  {current} of {all} members are current\n")
}

/// What a device does besides I/O, if it tells of something: a rebuild, say.
fn process(bdev: &str, process: &Value) -> String {
    let Some(kind) = process["type"].as_str() else { return String::new() };
    let left = process["remaining_sec"].as_u64().map_or(String::new(), |left| format!("  {left} s left"));
    format!(
        "  {bdev}: {kind} {}  {} %  {:.1} MiB/s{left}\n",
        word(&process["state"]),
        process["progress"]["percent"],
        number(&process["bytes_per_sec"]) / 1_048_576.0,
    )
}

/// All but the discovery subsystem. One that goes between two calls is left out.
fn subsystems(client: &mut Client) -> anyhow::Result<Vec<Subsystem>> {
    let all = client.call("nvmf_get_subsystems", json!({}))?;
    let mut found = Vec::new();
    for itself in all.as_array().into_iter().flatten().filter(|one| one["subtype"] == "NVMe") {
        let params = json!({ "nqn": itself["nqn"] });
        let controllers = client.call("nvmf_subsystem_get_controllers", params.clone());
        let listeners = client.call("nvmf_subsystem_get_listeners", params);
        if let (Ok(controllers), Ok(listeners)) = (controllers, listeners) {
            found.push(Subsystem { itself: itself.clone(), controllers, listeners });
        }
    }
    Ok(found)
}

/// An address as people write it.
fn place(address: &Value) -> String {
    let (traddr, trsvcid) = (word(&address["traddr"]), word(&address["trsvcid"]));
    let trtype = word(&address["trtype"]).to_lowercase();
    match trsvcid {
        "" | "-" => format!("{trtype} {traddr}"),
        service if traddr.contains(':') => format!("{trtype} [{traddr}]:{service}"),
        service => format!("{trtype} {traddr}:{service}"),
    }
}

fn find<'a>(iostat: &'a Value, name: &str) -> &'a Value {
    let bdevs = iostat["bdevs"].as_array();
    bdevs.and_then(|bdevs| bdevs.iter().find(|bdev| bdev["name"] == name)).unwrap_or(&Value::Null)
}

fn word(value: &Value) -> &str {
    value.as_str().unwrap_or("-")
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or(0.0)
}

/// A size with the largest unit that leaves a number of at least one.
fn size(bytes: f64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let step = (bytes.max(1.0).log2() / 10.0).floor().min(5.0);
    let value = bytes / 1024_f64.powf(step);
    let digits = usize::from(value.fract() > 0.05);
    format!("{value:.digits$} {}", units[step as usize])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_a_unit_people_use() {
        for (bytes, expected) in
            [(0.0, "0 B"), (512.0, "512 B"), (65536.0, "64 KiB"), (1.5 * 1073741824.0, "1.5 GiB")]
        {
            assert_eq!(size(bytes), expected);
        }
    }

    #[test]
    fn a_column_is_as_wide_as_its_widest_text() {
        let bdevs = json!([{ "module": "null" }, { "module": "c_ramdisk" }]);
        assert_eq!((widest(&bdevs, "module", 8), widest(&json!([]), "module", 8)), (9, 8));
    }

    #[test]
    fn each_path_says_how_it_is_and_what_is_in_its_way() {
        let trid = |port: &str| json!({ "trtype": "TCP", "traddr": "10.0.0.1", "trsvcid": port, "subnqn": "nqn.2026-01.io.tenon:a" });
        let path = |port: &str, good: bool| {
            let mut path = json!({
                "bdev_name": "nvme0n1", "controller_name": "nvme0", "cntlid": 1, "transport": trid(port),
                "connected": good, "accessible": good, "current": good, "ana_state": "optimized",
                "latency_us": 21.5, "in_flight": 3,
            });
            if !good {
                path["reason"] = json!("the controller is not connected: connection refused");
            }
            path
        };
        let controller = |port: &str, state: &str| json!({ "state": state, "trid": trid(port), "cntlid": 1 });
        let both = [controller("4420", "enabled"), controller("4421", "reconnect_is_delayed")];
        let remotes = json!([{ "name": "nvme0", "ctrlrs": both }]);
        let of_reactor = [path("4420", true), path("4421", false)];
        let paths = json!({ "poll_groups": [{ "thread": "reactor_0", "io_paths": of_reactor }] });
        let mut text = String::new();
        render_remotes(&remotes, &paths, &mut text);
        let lines: Vec<&str> = text.lines().filter(|line| !line.is_empty()).collect();
        assert_eq!(lines.len(), 4, "{text}");
        assert!(lines[0].contains("tcp 10.0.0.1:4420  enabled  cntlid 1"), "{text}");
        assert!(lines[1].contains("connected accessible current optimized"), "{text}");
        assert!(lines[1].contains("21.5 us     3 in flight"), "{text}");
        assert!(lines[3].ends_with("the controller is not connected: connection refused"), "{text}");
        render_remotes(&Value::Null, &Value::Null, &mut String::new());
    }
}
