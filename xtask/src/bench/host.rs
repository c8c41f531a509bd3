//! Probes of the host as a process: how soon it is ready, what it holds and
//! costs while it does nothing, how long a call takes, and whether devices
//! become dearer the more there are.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use super::{Measure, Probe, Round};
use crate::steps;
use crate::workspace::Workspace;

const TENON: &str = "target/release/tenon";
const REGISTRATION: &str = "target/release/examples/registration";
const QUICKSTART: &str = "configs/quickstart.toml";
/// Starts per round.
const STARTS: usize = 5;
/// How long the host is watched while it does nothing.
const IDLE: Duration = Duration::from_secs(3);
/// Calls per round.
const CALLS: usize = 2000;
/// Devices that are registered.
const DEVICES: usize = 10_000;
/// Calls in flight while devices are registered.
const WINDOW: usize = 32;
/// First and last devices that are compared.
const SPAN: usize = 100;
const PATIENCE: Duration = Duration::from_secs(30);

/// A running host, ended when dropped.
pub struct Host {
    process: Process,
    ready_after: Duration,
}

/// All probes of this file.
pub fn probes(workspace: &Workspace) -> Vec<Probe> {
    let (root, again, third) = (workspace.root.clone(), workspace.root.clone(), workspace.root.clone());
    let idle = move |round: &mut Round| idle(&root, round);
    let by_rpc = move |round: &mut Round| register_by_rpc(&again, round);
    let in_process = move |round: &mut Round| register_in_process(&third, round);
    let probe = |group, name: &str, run: Measure| Probe { group, name: name.to_owned(), run };
    vec![
        probe("host", "start, idle, calls", Box::new(idle)),
        probe("registration", "registration by RPC", Box::new(by_rpc)),
        probe("registration", "registration in process", Box::new(in_process)),
    ]
}

fn idle(root: &Path, round: &mut Round) -> Result<()> {
    let mut starts = Vec::new();
    for _ in 0..STARTS {
        starts.push(Host::start(root, &["-c", QUICKSTART])?.ready_after.as_secs_f64() * 1e3);
    }
    round.insert("start ms".to_owned(), super::figures::median(&starts));
    let host = Host::start(root, &["-c", QUICKSTART])?;
    let before = host.cpu_ns()?;
    thread::sleep(IDLE);
    let used = host.cpu_ns()?.saturating_sub(before) as f64;
    round.insert("idle %".to_owned(), 100.0 * used / IDLE.as_nanos() as f64);
    round.insert("rss MiB".to_owned(), host.rss_kib()? as f64 / 1024.0);
    let mut connection = Connection::open(&host.process.socket)?;
    let mut times = Vec::new();
    for _ in 0..CALLS {
        let begin = Instant::now();
        connection.send("spdk_get_version", &json!({}))?;
        connection.receive()?;
        times.push(begin.elapsed().as_secs_f64() * 1e6);
    }
    round.insert("call us".to_owned(), super::figures::median(&times));
    Ok(())
}

fn register_by_rpc(root: &Path, round: &mut Round) -> Result<()> {
    let host = Host::start(root, &[])?;
    let mut connection = Connection::open(&host.process.socket)?;
    let params =
        |index: usize| json!({ "name": format!("n{index}"), "num_blocks": 1 << 21, "block_size": 512 });
    connection.send("bdev_null_create", &params(DEVICES))?;
    connection.receive()?;
    let mut times = vec![Instant::now()];
    let mut sent = 0;
    while times.len() <= DEVICES {
        while sent < DEVICES && sent + 1 - times.len() < WINDOW {
            connection.send("bdev_null_create", &params(sent))?;
            sent += 1;
        }
        connection.receive()?;
        times.push(Instant::now());
    }
    let cost = |from: usize, to: usize| {
        times[to].duration_since(times[from]).as_secs_f64() * 1e6 / (to - from) as f64
    };
    round.insert("rpc first us".to_owned(), cost(0, SPAN));
    round.insert("rpc last us".to_owned(), cost(DEVICES - SPAN, DEVICES));
    Ok(())
}

fn register_in_process(root: &Path, round: &mut Round) -> Result<()> {
    let output = steps::output_of(Command::new(root.join(REGISTRATION)).arg(DEVICES.to_string()))?;
    let (first, last) = output.trim().split_once(' ').context("registration prints two numbers")?;
    round.insert("process first us".to_owned(), first.parse()?);
    round.insert("process last us".to_owned(), last.parse()?);
    Ok(())
}

impl Host {
    /// Starts a host and waits until it says that it is ready.
    pub fn start(root: &Path, args: &[&str]) -> Result<Host> {
        let begin = Instant::now();
        let (process, stdout) = Process::start(root, &["run"], args)?;
        let mut lines = BufReader::new(stdout);
        let mut line = String::new();
        lines.read_line(&mut line)?;
        let ready_after = begin.elapsed();
        ensure!(line.contains("ready"), "tenon run is not ready: {line}");
        // Whatever else it prints must find a reader.
        thread::spawn(move || std::io::copy(&mut lines, &mut std::io::sink()));
        Ok(Host { process, ready_after })
    }

    /// Makes one call.
    pub fn call(&self, method: &str, params: &Value) -> Result<Value> {
        Connection::open(&self.process.socket)?.call(method, params)
    }

    /// Time on a processor so far, of all threads.
    pub fn cpu_ns(&self) -> Result<u64> {
        let mut sum = 0;
        for task in fs::read_dir(format!("/proc/{}/task", self.process.child.id()))? {
            let text = fs::read_to_string(task?.path().join("schedstat")).unwrap_or_default();
            sum += text.split_whitespace().next().and_then(|word| word.parse::<u64>().ok()).unwrap_or(0);
        }
        Ok(sum)
    }

    fn rss_kib(&self) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.process.child.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
        Ok(line.trim().trim_end_matches(" kB").parse()?)
    }
}

/// A load that can be looked at meanwhile; ended when dropped.
pub struct Load {
    process: Process,
    stdout: ChildStdout,
}

impl Load {
    /// Starts `tenon perf`.
    pub fn start(root: &Path, args: &[&str]) -> Result<Load> {
        let (process, stdout) = Process::start(root, &["perf", "--json", "--seed", "1"], args)?;
        Ok(Load { process, stdout })
    }

    /// A client of it, once it listens; none if it is over.
    pub fn connection(&mut self) -> Result<Option<Connection>> {
        while self.process.child.try_wait()?.is_none() {
            if let Ok(connection) = Connection::open(&self.process.socket) {
                return Ok(Some(connection));
            }
            thread::sleep(Duration::from_millis(2));
        }
        Ok(None)
    }

    /// Waits for its end; gives its report.
    pub fn report(mut self) -> Result<Value> {
        let mut report = String::new();
        self.stdout.read_to_string(&mut report)?;
        serde_json::from_str(&report).context("the report of tenon perf")
    }
}

/// A process of `tenon` with a control socket of its own; ended when dropped.
struct Process {
    child: Child,
    socket: PathBuf,
}

impl Process {
    /// Starts it; gives what it prints as well.
    fn start(root: &Path, command: &[&str], args: &[&str]) -> Result<(Process, ChildStdout)> {
        static STARTED: AtomicU32 = AtomicU32::new(0);
        let number = STARTED.fetch_add(1, Ordering::Relaxed);
        let socket = std::env::temp_dir().join(format!("tenon-bench-{}-{number}.sock", std::process::id()));
        let mut child = Command::new(root.join(TENON))
            .current_dir(root)
            .args(command)
            .args(args)
            .arg("--rpc-socket")
            .arg(&socket)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| format!("cannot start {TENON}"))?;
        let stdout = child.stdout.take();
        Ok((Process { child, socket }, stdout.context("no standard output")?))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It drains what little there is; a host of ten thousand devices need not.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_file(&self.socket);
    }
}

/// A client of a host.
pub struct Connection {
    stream: UnixStream,
    received: Vec<u8>,
    next_id: u64,
}

impl Connection {
    /// Connects to a host that listens.
    pub fn open(socket: &Path) -> Result<Self> {
        let stream = UnixStream::connect(socket).with_context(|| socket.display().to_string())?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Connection { stream, received: Vec::new(), next_id: 1 })
    }

    /// Makes one call.
    pub fn call(&mut self, method: &str, params: &Value) -> Result<Value> {
        self.send(method, params)?;
        self.receive()
    }

    fn send(&mut self, method: &str, params: &Value) -> Result<()> {
        let request = json!({ "jsonrpc": "2.0", "id": self.next_id, "method": method, "params": params });
        self.next_id += 1;
        Ok(self.stream.write_all(request.to_string().as_bytes())?)
    }

    fn receive(&mut self) -> Result<Value> {
        loop {
            if let Some(end) = self.received.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.received.drain(..=end).collect();
                let mut reply: Value = serde_json::from_slice(&line)?;
                return match reply.get("error") {
                    None => Ok(reply["result"].take()),
                    Some(error) => bail!("a call failed: {error}"),
                };
            }
            let mut bytes = [0; 65536];
            match self.stream.read(&mut bytes)? {
                0 => bail!("the host closed the connection"),
                count => self.received.extend_from_slice(&bytes[..count]),
            }
        }
    }
}
