//! Harness: starts the built `tenon` with a configuration of the test's own,
//! talks to it over its control socket and ends it. Every wait is bounded and
//! polls a condition. Does not link to any crate of the host: what a test sees
//! is what an operator sees.
#![forbid(unsafe_code)]

pub mod initiator;
pub mod multipath;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

/// How long anything may take before a test fails.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// The repository's root.
#[must_use]
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ lies in the repository").to_owned()
}

/// Where cargo put the binary and the plugins: beside this test's own `deps` folder.
#[must_use]
pub fn target_dir() -> PathBuf {
    let exe = std::env::current_exe().expect("a running test has a path");
    exe.ancestors().nth(2).expect("tests run in <target>/<profile>/deps").to_owned()
}

/// The built `tenon`.
#[must_use]
pub fn tenon() -> PathBuf {
    let path = target_dir().join("tenon");
    assert!(path.exists(), "{} is not built; run `cargo build --workspace` first", path.display());
    path
}

/// The built plugin of module `name`.
#[must_use]
pub fn plugin(name: &str) -> PathBuf {
    target_dir().join(format!("lib{}.so", name.replace('-', "_")))
}

/// A plugin that this package builds as an example, for its tests.
#[must_use]
pub fn example(name: &str) -> PathBuf {
    let path = target_dir().join("examples").join(format!("lib{name}.so"));
    assert!(path.exists(), "{} is not built; run `cargo build -p tenon-tests --examples`", path.display());
    path
}

/// Builds the example in C as a vendor would.
pub fn build_c_example(out: &Path) {
    let status = Command::new("gcc")
        .args(["-std=c11", "-Wall", "-Wextra", "-Werror", "-O2", "-fPIC", "-shared", "-I"])
        .arg(root().join("plugin-api"))
        .arg(root().join("plugin-api/examples/c-ramdisk/ramdisk.c"))
        .arg("-o")
        .arg(out)
        .status()
        .expect("gcc runs");
    assert!(status.success());
}

/// A directory nobody else may write to, as the host asks of plugin directories.
#[must_use]
pub fn plugin_directory(scratch: &Scratch) -> PathBuf {
    use std::os::unix::fs::PermissionsExt;
    let path = scratch.join("plugins");
    std::fs::create_dir_all(&path).expect("the scratch directory is writable");
    let permissions = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(&path, permissions).expect("the directory is ours");
    path
}

/// A directory of the test's own, removed at the end.
#[derive(Debug)]
pub struct Scratch(PathBuf);

impl Scratch {
    /// A new, empty directory.
    #[must_use]
    pub fn new() -> Scratch {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("tenon-test-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).expect("the temporary directory is writable");
        Scratch(path)
    }

    /// Its path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// A path inside it.
    #[must_use]
    pub fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Writes a file into it.
    #[must_use]
    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.join(name);
        std::fs::write(&path, text).expect("the scratch directory is writable");
        path
    }
}

impl Default for Scratch {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The error of a call.
#[derive(Clone, Debug, PartialEq)]
pub struct CallError {
    /// JSON-RPC code or `-errno`.
    pub code: i64,
    /// One line.
    pub message: String,
    /// `{object, reason, cause}`.
    pub data: Value,
}

/// A connection to a control socket.
#[derive(Debug)]
pub struct Connection {
    /// The socket, for tests that write bytes of their own.
    pub stream: UnixStream,
    received: Vec<u8>,
    next_id: u64,
}

impl Connection {
    /// Connects.
    ///
    /// # Errors
    /// Nobody listens there.
    pub fn open(path: &Path) -> std::io::Result<Connection> {
        let stream = UnixStream::connect(path)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Connection { stream, received: Vec::new(), next_id: 1 })
    }

    /// Sends a call without waiting; gives its id.
    pub fn send(&mut self, method: &str, params: Value) -> u64 {
        self.try_send(method, params).expect("the host reads its socket")
    }

    /// The same to a host that may be dead.
    ///
    /// # Errors
    /// It is.
    pub fn try_send(&mut self, method: &str, params: Value) -> std::io::Result<u64> {
        let id = self.next_id;
        self.next_id += 1;
        let request = json!({ "jsonrpc": "2.0", "id": id, "method": method, "params": params });
        self.stream.write_all(request.to_string().as_bytes())?;
        Ok(id)
    }

    /// The next reply, whatever it answers; `None` if the host closed the connection.
    pub fn receive(&mut self) -> Option<Value> {
        loop {
            if let Some(end) = self.received.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.received.drain(..=end).collect();
                return Some(serde_json::from_slice(&line).expect("a reply is JSON"));
            }
            let mut bytes = [0; 65536];
            match self.stream.read(&mut bytes) {
                Ok(0) => return None,
                Ok(count) => self.received.extend_from_slice(&bytes[..count]),
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return None,
                Err(error) => panic!("no reply within {PATIENCE:?}: {error}"),
            }
        }
    }

    /// Calls and waits for the reply.
    ///
    /// # Errors
    /// The error the host replied.
    pub fn call(&mut self, method: &str, params: Value) -> Result<Value, CallError> {
        let id = self.send(method, params);
        let reply = self.receive().expect("the host keeps the connection");
        assert_eq!(reply["id"], id, "{method}: reply to another call: {reply}");
        outcome(&reply)
    }
}

/// Result or error of a reply.
///
/// # Errors
/// The reply carries an error.
pub fn outcome(reply: &Value) -> Result<Value, CallError> {
    match reply.get("error") {
        None => Ok(reply["result"].clone()),
        Some(error) => Err(CallError {
            code: error["code"].as_i64().expect("an error has a code"),
            message: error["message"].as_str().expect("an error has a message").to_owned(),
            data: error["data"].clone(),
        }),
    }
}

/// A running host; killed at the end of the test if it still runs.
#[derive(Debug)]
pub struct Host {
    child: Child,
    scratch: Scratch,
    connection: Connection,
}

impl Host {
    /// Starts a host with a configuration and waits until it is ready.
    #[must_use]
    pub fn start(config: &str) -> Host {
        Self::start_in(Scratch::new(), config, &[])
    }

    /// The same in a given directory, with further arguments.
    #[must_use]
    pub fn start_in(scratch: Scratch, config: &str, args: &[&str]) -> Host {
        let file = scratch.write("tenon.toml", config);
        let mut command = Command::new(tenon());
        command.arg("run").arg("-c").arg(file).arg("--rpc-socket").arg(scratch.join("rpc.sock")).args(args);
        Self::spawn(scratch, command)
    }

    /// Starts a prepared command whose socket is `rpc.sock` in `scratch`.
    #[must_use]
    pub fn spawn(scratch: Scratch, mut command: Command) -> Host {
        let log =
            std::fs::File::options().create(true).append(true).open(scratch.join("log")).expect("writable");
        let out = log.try_clone().expect("a file can be shared");
        let child = command.stdin(Stdio::null()).stdout(out).stderr(log).spawn().expect("tenon starts");
        let socket = scratch.join("rpc.sock");
        let mut child = Some(child);
        let connection = wait_for("the control socket", || {
            let running = child.as_mut().expect("the child is kept");
            if let Some(status) = running.try_wait().expect("own child") {
                let log = std::fs::read_to_string(scratch.join("log")).unwrap_or_default();
                panic!("tenon ended at once with {status}:\n{log}");
            }
            Connection::open(&socket).ok()
        });
        let child = child.take().expect("the child is kept");
        let mut host = Host { child, scratch, connection };
        host.call("framework_wait_init", json!({})).expect("the host gets ready");
        host
    }

    /// Calls a method.
    ///
    /// # Errors
    /// The error the host replied.
    pub fn call(&mut self, method: &str, params: Value) -> Result<Value, CallError> {
        self.connection.call(method, params)
    }

    /// Calls a method that must succeed.
    #[track_caller]
    pub fn ok(&mut self, method: &str, params: Value) -> Value {
        match self.call(method, params.clone()) {
            Ok(result) => result,
            Err(error) => panic!("{method} {params}: {error:?}\n{}", self.log()),
        }
    }

    /// Calls a method that must fail.
    #[track_caller]
    pub fn err(&mut self, method: &str, params: Value) -> CallError {
        match self.call(method, params.clone()) {
            Ok(result) => panic!("{method} {params} succeeded with {result}"),
            Err(error) => error,
        }
    }

    /// Names of all devices, in registration order.
    pub fn bdevs(&mut self) -> Vec<String> {
        let list = self.ok("bdev_get_bdevs", json!({}));
        list.as_array()
            .into_iter()
            .flatten()
            .filter_map(|bdev| bdev["name"].as_str().map(str::to_owned))
            .collect()
    }

    /// A further connection.
    #[must_use]
    pub fn connect(&self) -> Connection {
        Connection::open(&self.socket()).expect("the host listens")
    }

    /// The control socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.scratch.join("rpc.sock")
    }

    /// The host's directory.
    #[must_use]
    pub fn scratch(&self) -> &Scratch {
        &self.scratch
    }

    /// Process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has logged and printed.
    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.scratch.join("log")).unwrap_or_default()
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, signal).expect("the child is running");
    }

    /// Waits until the process has ended.
    #[track_caller]
    pub fn wait(&mut self) -> ExitStatus {
        wait_for("the end of tenon", || self.child.try_wait().expect("own child"))
    }

    /// Ends it as a service manager does and asserts that it leaves cleanly.
    #[track_caller]
    pub fn stop(mut self) {
        self.signal(Signal::TERM);
        let status = self.wait();
        assert!(status.success(), "tenon ended with {status}:\n{}", self.log());
        assert!(!self.socket().exists(), "the control socket is left behind");
    }

    /// Kills it; gives its directory for the next start.
    #[must_use]
    pub fn kill(mut self) -> Scratch {
        let _ = self.child.kill();
        let _ = self.child.wait();
        std::mem::take(&mut self.scratch)
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("---- log of tenon ----\n{}", self.log());
        }
    }
}

/// Multicast DNS is one for the whole machine: tests that announce or search take turns.
#[must_use]
pub fn multicast_dns() -> std::fs::File {
    let path = target_dir().join("multicast-dns.lock");
    let file = std::fs::File::create(path).expect("the target directory is writable");
    file.lock().expect("a lock can be waited for");
    file
}

/// How many of everything there are, without what grows with the history of a host.
#[track_caller]
pub fn counts(host: &mut Host) -> Value {
    // A module's channel closes on its reactor, a moment after the last one that a consumer had of it; and
    // reactors may still be asked about what was just announced.
    let mut counts = wait_for("reactors that know of all changes", || {
        let counts = host.ok("debug_get_object_counts", json!({}));
        let are_closed = counts["module_channels"].as_u64() <= counts["channels"].as_u64();
        (are_closed && counts["nvmf"]["questions"] == 0).then_some(counts)
    });
    for history in ["modules", "metrics", "notifications", "memory_regions", "rpc_methods"] {
        counts.as_object_mut().expect("the counts are an object").remove(history);
    }
    for reactor in counts["reactors"].as_array_mut().into_iter().flatten() {
        // One timer serves all deadlines and stays once there was one.
        reactor.as_object_mut().expect("a reactor's counts are an object").remove("timers");
    }
    counts
}

/// Waits until there are as many of everything as before.
#[track_caller]
pub fn wait_for_counts(host: &mut Host, before: &Value) {
    let begin = Instant::now();
    loop {
        let now = counts(host);
        if now == *before {
            return;
        }
        assert!(begin.elapsed() < PATIENCE, "now {now}, before {before}");
        let_pass(POLL);
    }
}

/// Time a host has spent on processors.
#[must_use]
pub fn cpu_time(host: &Host) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", host.pid())).expect("the host runs");
    // Fields are counted from the end of the name, which may hold spaces: state is the first.
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks: u64 = [11, 12].iter().filter_map(|at| fields.get(*at)?.parse::<u64>().ok()).sum();
    // The unit of /proc, whatever the kernel's own is.
    Duration::from_millis(ticks * 10)
}

/// A number from the environment, which makes a test longer or shorter.
#[must_use]
pub fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text} is not a number")))
}

/// What a command that ends by itself left.
#[derive(Debug)]
pub struct Output {
    /// Exit code.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

/// Runs `tenon` with `args` to its end.
#[must_use]
pub fn run(args: &[&str]) -> Output {
    let output = Command::new(tenon()).args(args).stdin(Stdio::null()).output().expect("tenon starts");
    Output {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// Lets time pass that is itself what a test is about: how long something is cut off, or measured.
pub fn let_pass(time: Duration) {
    let begin = Instant::now();
    wait_for("the time", || (begin.elapsed() >= time).then_some(()));
}

/// Polls until `check` gives something.
#[track_caller]
pub fn wait_for<T>(what: &str, mut check: impl FnMut() -> Option<T>) -> T {
    let begin = Instant::now();
    loop {
        if let Some(found) = check() {
            return found;
        }
        assert!(begin.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}");
        std::thread::sleep(POLL);
    }
}

const POLL: Duration = Duration::from_millis(5);
