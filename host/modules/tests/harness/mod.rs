//! A host for fixture plugins: builds them with the C compiler, runs real
//! reactors with a [`Modules`] on the control reactor, and records every log
//! line and every call of the listener.
// UNSAFETY: a table of host functions for C plugins.
#![allow(dead_code, reason = "each test binary uses a part")]
#![allow(clippy::unwrap_used, reason = "part of tests")]

use std::cell::RefCell;
use std::ffi::c_void;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::rc::Rc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Condvar, Mutex, Once, OnceLock};
use std::time::Duration;

use tenon_abi::{ErrorV1, HostApiV1, OpToken, Str};
use tenon_modules::{
    Catalog, CatalogChange, DrainCause, Existing, Listener, ModuleError, ModuleRef, Modules, ModulesOptions,
    PluginDirectory, PluginError, Trust,
};
use tenon_reactor::{Cpus, Reactors, ReactorsOptions};

/// How long a test waits for what must come.
pub const PATIENCE: Duration = Duration::from_secs(30);

// ---- fixtures ---------------------------------------------------------------------------------------------------

/// A directory of one test that plugins may be loaded from, removed at the end.
pub struct Directory(pub PathBuf);

impl Directory {
    pub fn new(test: &str) -> Directory {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{test}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).unwrap();
        set_mode(&path, 0o755);
        Directory(path)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Compiles the fixture with `flags` to `<file>` in this directory.
    pub fn build(&self, file: &str, flags: &[&str]) -> PathBuf {
        let output = self.path(file);
        compile(&output, flags);
        output
    }

    /// Writes a file that is no plugin.
    pub fn write(&self, file: &str, content: &[u8]) -> PathBuf {
        let path = self.path(file);
        std::fs::write(&path, content).unwrap();
        set_mode(&path, 0o755);
        path
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

pub fn set_mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

/// Compiles the fixture; the file appears at once, complete.
pub fn compile(output: &Path, flags: &[&str]) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let draft = output.with_extension("draft");
    let result = Command::new(std::env::var_os("CC").unwrap_or_else(|| "cc".into()))
        .args(["-std=gnu11", "-Wall", "-Wextra", "-Werror", "-Wno-unused", "-shared", "-fPIC", "-O1", "-I"])
        .arg(root.join("../../plugin-api"))
        .arg(root.join("tests/fixtures/plugin.c"))
        .arg("-o")
        .arg(&draft)
        .args(flags)
        .output()
        .expect("a C compiler is needed for these tests");
    assert!(result.status.success(), "{}", String::from_utf8_lossy(&result.stderr));
    set_mode(&draft, 0o755);
    std::fs::rename(draft, output).unwrap();
}

/// `-DNAME="text"`.
pub fn define(name: &str, text: &str) -> String {
    format!("-D{name}=\"{text}\"")
}

// ---- what happened ----------------------------------------------------------------------------------------------

#[derive(Clone, Debug)]
pub struct Line {
    pub target: String,
    pub place: Option<(String, u32)>,
    pub message: String,
}

struct Capture {
    lines: Mutex<Vec<Line>>,
    grown: Condvar,
}

static CAPTURE: Capture = Capture { lines: Mutex::new(Vec::new()), grown: Condvar::new() };

impl log::Log for Capture {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        self.lines.lock().unwrap().push(Line {
            target: record.target().to_owned(),
            place: record.file().zip(record.line()).map(|(file, line)| (file.to_owned(), line)),
            message: record.args().to_string(),
        });
        self.grown.notify_all();
    }

    fn flush(&self) {}
}

fn capture_logs() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        log::set_logger(&CAPTURE).unwrap();
        log::set_max_level(log::LevelFilter::Debug);
    });
}

/// Everything a plugin logged, in order.
pub fn said_by(target: &str) -> Vec<String> {
    let lines = CAPTURE.lines.lock().unwrap();
    lines.iter().filter(|line| line.target == target).map(|line| line.message.trim().to_owned()).collect()
}

/// The first line whose message contains all of `parts`; waits for it.
pub fn wait_for_line(parts: &[&str]) -> Line {
    let lines = CAPTURE.lines.lock().unwrap();
    let is_it = |line: &Line| parts.iter().all(|part| line.message.contains(part));
    let (lines, timeout) =
        CAPTURE.grown.wait_timeout_while(lines, PATIENCE, |lines| !lines.iter().any(is_it)).unwrap();
    assert!(!timeout.timed_out(), "no line with {parts:?}");
    lines.iter().find(|line| is_it(line)).cloned().unwrap()
}

#[derive(Debug)]
pub enum Event {
    Running(ModuleRef),
    Draining(ModuleRef, DrainCause),
    Retired(ModuleRef),
    Failed(ModuleRef, String),
    Catalog(Vec<CatalogChange>),
}

// ---- the host ---------------------------------------------------------------------------------------------------

thread_local! {
    /// On the control reactor: the set, and which token belongs to whose `fini`.
    static STATE: RefCell<Option<State>> = const { RefCell::new(None) };
}

struct State {
    modules: Modules,
    _listener: Rc<Recorder>,
    fini_tokens: Vec<(OpToken, ModuleRef)>,
}

struct Recorder(Sender<Event>);

impl Listener for Recorder {
    fn running(&self, module: ModuleRef) {
        let _ = self.0.send(Event::Running(module));
    }

    fn draining(&self, module: ModuleRef, cause: DrainCause) {
        let _ = self.0.send(Event::Draining(module, cause));
    }

    fn fini_token(&self, module: ModuleRef) -> OpToken {
        let token = OpToken(1000 + u64::from(module.id()));
        STATE.with_borrow_mut(|state| state.as_mut().unwrap().fini_tokens.push((token, module)));
        token
    }

    fn retired(&self, module: ModuleRef) {
        let _ = self.0.send(Event::Retired(module));
    }

    fn failed(&self, module: ModuleRef, why: &ModuleError) {
        let _ = self.0.send(Event::Failed(module, why.to_string()));
    }

    fn catalog_changed(&self, changes: &[CatalogChange]) {
        let _ = self.0.send(Event::Catalog(changes.to_vec()));
    }
}

extern "C" fn unexpected() {
    eprintln!("a plugin called a host function this test does not offer");
    std::process::abort();
}

unsafe extern "C" fn query(_: Str, _: u32) -> *const c_void {
    std::ptr::null()
}

unsafe extern "C" fn log(record: *const tenon_abi::LogRecord) {
    // SAFETY: the plugin obeys the contract for this record.
    unsafe { tenon_modules::log_bridge::log(record) }
}

unsafe extern "C" fn op_done(token: OpToken, _: Str, _: *const ErrorV1) {
    answer(token, Ok(()));
}

/// Gives the answer to a token as a plugin would.
pub fn answer(token: OpToken, result: Result<(), String>) {
    let found = STATE.with_borrow_mut(|state| {
        let state = state.as_mut().unwrap();
        let at = state.fini_tokens.iter().position(|(known, _)| *known == token)?;
        Some((state.modules.clone(), state.fini_tokens.swap_remove(at).1))
    });
    if let Some((modules, module)) = found {
        modules.fini_done(module, result);
    }
}

/// A table that offers three functions and aborts in all others.
pub fn host_table() -> &'static HostApiV1 {
    static TABLE: OnceLock<HostApiV1> = OnceLock::new();
    TABLE.get_or_init(|| {
        const WORDS: usize = size_of::<HostApiV1>() / size_of::<usize>();
        let words = [unexpected as *const (); WORDS];
        // SAFETY: every field but the first three is a function pointer, for which any function's address is a
        // valid value; the first three are numbers. No function is called with a wrong signature but
        // `unexpected`, which looks at nothing and does not return.
        let mut table: HostApiV1 = unsafe { std::mem::transmute(words) };
        table.size = size_of::<HostApiV1>() as u32;
        table.abi_major = tenon_abi::ABI_MAJOR;
        table.abi_minor = tenon_abi::ABI_MINOR;
        table.query = query;
        table.log = log;
        table.op_done = op_done;
        table
    })
}

pub struct Host {
    reactors: Option<Reactors>,
    pub events: Receiver<Event>,
}

impl Host {
    pub fn start() -> Host {
        Host::with(|_| {}, Vec::new())
    }

    pub fn with(
        change: impl FnOnce(&mut ModulesOptions) + Send + 'static,
        directories: Vec<PluginDirectory>,
    ) -> Host {
        capture_logs();
        let options = ReactorsOptions { cpus: Cpus::Count(1), pin: false, ..ReactorsOptions::default() };
        let reactors = Reactors::start(options).unwrap();
        let (sender, events) = channel();
        let catalog = Catalog::scan(directories, Trust::Owner);
        let setup = move || {
            let mut options = ModulesOptions::new(host_table());
            change(&mut options);
            let modules = Modules::new(options, catalog);
            let listener = Rc::new(Recorder(sender));
            let weak: std::rc::Weak<dyn Listener> = Rc::<Recorder>::downgrade(&listener);
            modules.set_listener(weak);
            STATE.set(Some(State { modules, _listener: listener, fini_tokens: Vec::new() }));
        };
        reactors.control().call(PATIENCE, setup).unwrap();
        Host { reactors: Some(reactors), events }
    }

    /// Runs `f` on the control reactor.
    pub fn on<T: Send + 'static>(&self, f: impl FnOnce(&Modules) -> T + Send + 'static) -> T {
        let reactors = self.reactors.as_ref().unwrap();
        let call = || {
            let modules = STATE.with_borrow(|state| state.as_ref().unwrap().modules.clone());
            f(&modules)
        };
        reactors.control().call(PATIENCE, call).unwrap()
    }

    pub fn load(&self, path: &Path) -> Result<ModuleRef, PluginError> {
        self.load_with(path, "{}", Existing::Refuse)
    }

    pub fn load_with(&self, path: &Path, config: &str, existing: Existing) -> Result<ModuleRef, PluginError> {
        let (path, config) = (path.to_path_buf(), config.to_owned());
        self.wait(move |modules, sender| {
            modules.load_file(&path, &config, existing, move |result| sender.send(result).unwrap());
        })
    }

    pub fn ensure(&self, name: &str) -> Result<ModuleRef, PluginError> {
        let name = name.to_owned();
        self.wait(move |modules, sender| {
            modules.ensure(&name, "{}", move |result| sender.send(result).unwrap());
        })
    }

    pub fn unregister(&self, module: ModuleRef) -> Receiver<Result<(), ModuleError>> {
        let (sender, receiver) = channel();
        self.on(move |modules| modules.unregister(module, move |result| sender.send(result).unwrap()));
        receiver
    }

    /// Calls `start` on the control reactor and waits for what it sends.
    pub fn wait<T: Send + 'static>(&self, start: impl FnOnce(&Modules, Sender<T>) + Send + 'static) -> T {
        let (sender, receiver) = channel();
        self.on(move |modules| start(modules, sender));
        receiver.recv_timeout(PATIENCE).expect("an answer in time")
    }

    pub fn event(&self) -> Event {
        self.events.recv_timeout(PATIENCE).expect("an event in time")
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let reactors = self.reactors.take().unwrap();
        reactors.control().call(PATIENCE, || drop(STATE.take())).unwrap();
        let _ = reactors.shutdown(PATIENCE);
    }
}
