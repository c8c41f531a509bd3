//! Loading: the same first gate as the real host (magic, major version, sizes
//! of the frozen types), `init` on a thread of its own, `init_complete` and the
//! examination of the devices that are there.
// UNSAFETY: follows a plugin's descriptor and calls its module table.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::ffi::{c_char, c_void};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::mpsc::RecvTimeoutError;
use std::sync::{Arc, Condvar, Mutex, PoisonError, mpsc};
use std::time::Duration;

use tenon_abi::{
    ABI_MAJOR, AbiSizes, ENTRY_SYMBOL, HostModule, MAGIC, ModuleOpsV1, PluginDescV1, Str, reaches,
};

use super::schedule::{CONTROL, Where};
use super::shared::{Foreign, as_foreign, lock, text};
use super::table;
use super::world::World;
use crate::violation::Fault;

/// A module of one fake host. [`ModuleId::HOST`] is the test itself with its own devices.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ModuleId(pub(crate) u32);

impl ModuleId {
    /// The test and the testkit's own devices.
    pub const HOST: ModuleId = ModuleId(0);
}

/// Where a plugin's descriptor comes from.
#[derive(Clone, Debug)]
pub enum Plugin {
    /// Linked into the test.
    Descriptor(*const PluginDescV1),
    /// A shared object, loaded as the host would.
    Library(PathBuf),
}

impl Plugin {
    /// The plugin in the shared object at `path`.
    #[must_use]
    pub fn library(path: impl AsRef<Path>) -> Plugin {
        Plugin::Library(path.as_ref().to_owned())
    }

    /// The plugin with this descriptor, which is static.
    #[must_use]
    pub fn descriptor(descriptor: *const PluginDescV1) -> Plugin {
        Plugin::Descriptor(descriptor)
    }
}

/// What [`crate::FakeHost::load`] takes: a [`Plugin`], or the entry function of a plugin that is linked into the
/// test.
pub trait IntoPlugin {
    /// The plugin.
    fn into_plugin(self) -> Plugin;
}

impl IntoPlugin for Plugin {
    fn into_plugin(self) -> Plugin {
        self
    }
}

impl IntoPlugin for &Plugin {
    fn into_plugin(self) -> Plugin {
        self.clone()
    }
}

impl<F: Fn() -> *const PluginDescV1> IntoPlugin for F {
    fn into_plugin(self) -> Plugin {
        Plugin::Descriptor(self())
    }
}

/// Why a plugin could not be loaded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// dlopen or dlsym failed.
    #[error("library {path} cannot be loaded")]
    Library {
        /// The file.
        path: PathBuf,
        /// What the loader said.
        source: libloading::Error,
    },
    /// The first gate refused the descriptor.
    #[error("descriptor refused: {0}")]
    Descriptor(String),
    /// `init` returned an error.
    #[error("module `{module}` failed to initialise with {code}: {text}")]
    Init {
        /// The module.
        module: String,
        /// `-errno`.
        code: i32,
        /// What the module wrote.
        text: String,
    },
    /// `init` did not return in time.
    #[error("module `{0}` did not return from init in time")]
    InitTimeout(String),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum ModuleState {
    Running,
    Draining,
    Retired,
    Failed,
}

pub(crate) struct Module {
    pub(crate) id: ModuleId,
    pub(crate) name: String,
    pub(crate) ops: *const ModuleOpsV1,
    pub(crate) me: *mut HostModule,
    pub(crate) key: usize,
    pub(crate) state: Cell<ModuleState>,
}

/// An optional callback of the module's table, if the table reaches it.
macro_rules! module_callback {
    ($module:expr, $field:ident) => {{
        let ops: *const tenon_abi::ModuleOpsV1 = $module.ops;
        let end = std::mem::offset_of!(tenon_abi::ModuleOpsV1, $field) + size_of::<usize>();
        // SAFETY: gate 1 checked that the table is there; the field is read only if the table reaches it.
        unsafe { if !ops.is_null() && tenon_abi::reaches((*ops).size, end) { (*ops).$field } else { None } }
    }};
}
pub(crate) use module_callback;

/// Plugins that are in use by some test of this process: their statics exist once.
static IN_USE: Mutex<BTreeSet<usize>> = Mutex::new(BTreeSet::new());
static RETURNED: Condvar = Condvar::new();
/// What the `me` of every module ever loaded points to.
static FACES: Mutex<Vec<&'static ModuleId>> = Mutex::new(Vec::new());

/// Waits until no other fake host of the process uses the plugin, and takes it.
fn acquire(key: usize) {
    let mut in_use = lock(&IN_USE);
    while !in_use.insert(key) {
        in_use = RETURNED.wait(in_use).unwrap_or_else(PoisonError::into_inner);
    }
}

pub(crate) fn release(key: usize) {
    lock(&IN_USE).remove(&key);
    RETURNED.notify_all();
}

fn open_library(path: &Path) -> Result<*const PluginDescV1, LoadError> {
    use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};
    let failed = |source| LoadError::Library { path: path.to_owned(), source };
    // SAFETY: loading runs the initialisers of a plugin the test names on purpose.
    let library =
        unsafe { Library::open(Some(path), RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE) }.map_err(failed)?;
    // SAFETY: the contract gives the entry symbol this signature.
    let entry = unsafe {
        let name = format!("{ENTRY_SYMBOL}\0");
        let symbol = library.get::<unsafe extern "C" fn() -> *const PluginDescV1>(name.as_bytes());
        *symbol.map_err(failed)?
    };
    // Never unmapped, as in the host.
    std::mem::forget(library);
    // SAFETY: the entry function has no preconditions.
    Ok(unsafe { entry() })
}

/// Gate 1; the name of the module.
fn check_descriptor(descriptor: *const PluginDescV1) -> Result<String, String> {
    // SAFETY: the test promises a descriptor or null.
    let Some(found) = (unsafe { descriptor.as_ref() }) else { return Err("it is null".to_owned()) };
    if found.magic != MAGIC {
        return Err(format!("magic is {:#x}, not {MAGIC:#x}", found.magic));
    }
    if found.abi_major != ABI_MAJOR {
        return Err(format!("major version is {}, not {ABI_MAJOR}", found.abi_major));
    }
    if (found.size as usize) < size_of::<PluginDescV1>() {
        return Err(format!("size is {}, not {}", found.size, size_of::<PluginDescV1>()));
    }
    if found.sizes != AbiSizes::current() {
        return Err(format!("frozen types have sizes {:?}, not {:?}", found.sizes, AbiSizes::current()));
    }
    // SAFETY: the text is static in the plugin.
    let name = unsafe { text(found.name) }.unwrap_or_default();
    let legal = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_' || c == '-';
    if name.is_empty() || name.len() > 63 || !name.chars().all(legal) {
        return Err(format!("module name `{name}` is not 1 to 63 bytes of a-z 0-9 _ -"));
    }
    let fini_end = std::mem::offset_of!(ModuleOpsV1, fini) + size_of::<usize>();
    // SAFETY: a table starts with its size; the pointer is checked first.
    if found.ops.is_null() || !reaches(unsafe { (*found.ops).size }, fini_end) {
        return Err("the module table is missing or does not reach `fini`".to_owned());
    }
    Ok(name)
}

struct InitCall {
    ops: *const ModuleOpsV1,
    me: *mut HostModule,
    config: String,
}

// SAFETY: the contract says that init runs on a thread of its own; both pointers are valid on every thread.
unsafe impl Send for InitCall {}

impl InitCall {
    fn run(self) -> (i32, String) {
        let mut error = [0u8; ERROR_TEXT_LEN];
        // SAFETY: gate 1 checked the table; the host table is static; the text buffer has the length given.
        let code = unsafe {
            let buffer = error.as_mut_ptr().cast::<c_char>();
            ((*self.ops).init)(table::host_api(), self.me, Str::new(&self.config), buffer, error.len())
        };
        let end = error.iter().position(|byte| *byte == 0).unwrap_or(error.len());
        (code, String::from_utf8_lossy(&error[..end]).into_owned())
    }
}

impl World {
    pub(crate) fn module(&self, id: ModuleId) -> Option<Rc<Module>> {
        self.modules.borrow().iter().find(|module| module.id == id).cloned()
    }

    /// The module behind `me`, or a violation; the testkit's own code passes null.
    pub(crate) fn module_of(&self, me: *mut HostModule) -> Option<ModuleId> {
        if me.is_null() && self.acting.get() == ModuleId::HOST {
            return Some(ModuleId::HOST);
        }
        let found = self.modules.borrow().iter().find(|module| module.me == me).map(|module| module.id);
        if found.is_none() {
            self.violate(Fault::BadCall, "the `me` argument is not this module's handle");
        }
        found
    }

    pub(crate) fn load(self: &Rc<World>, plugin: Plugin, config: &str) -> Result<ModuleId, LoadError> {
        let descriptor = match &plugin {
            Plugin::Descriptor(descriptor) => *descriptor,
            Plugin::Library(path) => open_library(path)?,
        };
        let name = check_descriptor(descriptor).map_err(LoadError::Descriptor)?;
        let key = descriptor as usize;
        if self
            .modules
            .borrow()
            .iter()
            .any(|module| module.key == key && module.state.get() != ModuleState::Failed)
        {
            return Err(LoadError::Descriptor(format!(
                "module `{name}` was loaded into this fake host before"
            )));
        }
        acquire(key);
        let id = ModuleId(self.modules.borrow().len() as u32 + 1);
        // Kept for ever: a plugin may hold it as long as the process lives.
        let face: &'static ModuleId = Box::leak(Box::new(id));
        lock(&FACES).push(face);
        let me: *mut HostModule = std::ptr::from_ref(face).cast_mut().cast();
        lock(&self.shared.names).push((me as usize, id, name.clone()));
        // SAFETY: gate 1 has passed.
        let ops = unsafe { (*descriptor).ops };
        let state = Cell::new(ModuleState::Running);
        let module = Rc::new(Module { id, name: name.clone(), ops, me, key, state });
        self.modules.borrow_mut().push(Rc::clone(&module));
        if let Err(error) = self.initialise(&module, config) {
            module.state.set(ModuleState::Failed);
            release(key);
            return Err(error);
        }
        self.enter(Where::Reactor(CONTROL), id, || {
            if let Some(init_complete) = module_callback!(module, init_complete) {
                // SAFETY: init has succeeded, and this is the control thread.
                unsafe { init_complete() };
            }
        });
        self.settle();
        self.examine_for(&module);
        Ok(id)
    }

    fn initialise(&self, module: &Module, config: &str) -> Result<(), LoadError> {
        let call = InitCall { ops: module.ops, me: module.me, config: config.to_owned() };
        let foreign = Foreign { shared: Arc::clone(&self.shared), module: module.id };
        let (sender, receiver) = mpsc::channel();
        std::thread::spawn(move || {
            let _ = sender.send(as_foreign(foreign, || call.run()));
        });
        match receiver.recv_timeout(INIT_DEADLINE) {
            Ok((0, _)) => Ok(()),
            Ok((code, text)) => Err(LoadError::Init { module: module.name.clone(), code, text }),
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                Err(LoadError::InitTimeout(module.name.clone()))
            }
        }
    }

    pub(crate) fn schema(&self, module: ModuleId) -> Option<String> {
        let module = self.module(module)?;
        let schema = module_callback!(module, schema)?;
        // SAFETY: may be called on any thread; the text is static in the plugin.
        self.enter(Where::Reactor(CONTROL), module.id, || unsafe { text(schema()) })
    }

    pub(crate) fn validate(&self, module: ModuleId, params: &str) -> Option<Result<(), (i32, String)>> {
        let module = self.module(module)?;
        let validate = module_callback!(module, validate)?;
        let mut error = [0u8; ERROR_TEXT_LEN];
        let code = self.enter(Where::Reactor(CONTROL), module.id, || {
            // SAFETY: may be called on any thread; the text buffer has the length given.
            unsafe { validate(Str::new(params), error.as_mut_ptr().cast::<c_char>(), error.len()) }
        });
        let end = error.iter().position(|byte| *byte == 0).unwrap_or(error.len());
        let text = String::from_utf8_lossy(&error[..end]).into_owned();
        Some(if code == 0 { Ok(()) } else { Err((code, text)) })
    }

    /// The module's own table `id`, as the host's layers above would ask for it.
    pub(crate) fn query_module(&self, module: ModuleId, id: &str, version: u32) -> *const c_void {
        let Some(module) = self.module(module) else { return std::ptr::null() };
        let Some(query) = module_callback!(module, query) else { return std::ptr::null() };
        // SAFETY: may be called on any thread with a borrowed text.
        self.enter(Where::Reactor(CONTROL), module.id, || unsafe { query(Str::new(id), version) })
    }
}

const RTLD_NODELETE: i32 = libc::RTLD_NODELETE;
const ERROR_TEXT_LEN: usize = 512;
/// In real time, since init runs on a real thread.
const INIT_DEADLINE: Duration = Duration::from_secs(30);
