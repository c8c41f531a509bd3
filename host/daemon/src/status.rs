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
        Ok(Sample {
            version: call("spdk_get_version")?,
            reactors: call("framework_get_reactors")?,
            bdevs: call("bdev_get_bdevs")?,
            iostat: call("bdev_get_iostat")?,
            modules: call("module_get_list")?,
            waiting: call("config_get_waiting")?,
            subsystems: subsystems(client)?,
        })
    }

    fn render(&self, before: Option<&Sample>) -> String {
        let mut text = format!("{}  pid {}\n", word(&self.version["version"]), self.reactors["pid"]);
        self.render_reactors(before, &mut text);
        self.render_modules(&mut text);
        self.render_bdevs(before, &mut text);
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
        *text += &format!("\n{:<12} {:<9} {}\n", "MODULE", "VERSION", "STATE");
        for module in self.modules["modules"].as_array().into_iter().flatten() {
            *text += &format!(
                "{:<12} {:<9} {}\n",
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
        *text += &format!(
            "\n{:<20} {:<8} {:<10} {:>10} {:>12} {:>12} {:>10} {:>10}\n",
            "BDEV", "MODULE", "STATE", "SIZE", "READS", "WRITES", "R MiB/s", "W MiB/s"
        );
        for bdev in self.bdevs.as_array().into_iter().flatten() {
            let name = word(&bdev["name"]);
            let now = find(&self.iostat, name);
            let old = before.map(|sample| find(&sample.iostat, name));
            let delta = |key: &str| number(&now[key]) - old.map_or(0.0, |old| number(&old[key]));
            let rate = |key: &str| if before.is_some() { delta(key) / seconds / 1048576.0 } else { 0.0 };
            *text += &format!(
                "{:<20} {:<8} {:<10} {:>10} {:>12} {:>12} {:>10.1} {:>10.1}\n",
                name,
                word(&bdev["module"]),
                word(&bdev["state"]),
                size(number(&bdev["num_blocks"]) * number(&bdev["block_size"])),
                delta("num_read_ops"),
                delta("num_write_ops"),
                rate("bytes_read"),
                rate("bytes_written"),
            );
        }
    }
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
}
