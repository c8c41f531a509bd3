//! One loaded module: what is known of it, its state, and its callbacks as
//! safe functions.
//!
//! A module is leaked: it is valid for the life of the process, as its code is,
//! and its address is the `HostModule` handle the plugin gives back to the host.
//! A callback is made only if the plugin's table has it and the state allows it.
//! Does not move a module from state to state: that is `set`.
// UNSAFETY: calls functions of a plugin.

use core::ffi::{c_char, c_void};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};

use parking_lot::{Mutex, RwLock};
use serde::Serialize;
use tenon_abi::{BdevHandle, ExamineToken, HostApiV1, HostModule, HotplugEvent, JsonSink, OpToken, Str};

use crate::callbacks::{Callbacks, Descriptor};
use crate::image::Image;
use crate::state::{InvalidTransition, ModuleEvent, ModuleState};
use crate::version::Version;

/// A module, for the life of the process.
pub type ModuleRef = &'static Module;

/// Bytes of the buffer for the message of a failed `init` or `validate`.
const ERROR_TEXT_BYTES: usize = 512;
/// Longest schema text that is taken from a module.
const MAX_SCHEMA_BYTES: usize = 1 << 20;

/// Every module of the process: what makes a handle valid.
static MODULES: RwLock<Vec<ModuleRef>> = RwLock::new(Vec::new());
static NEXT_ID: AtomicU32 = AtomicU32::new(1);

/// A loaded module.
pub struct Module {
    id: u32,
    descriptor: Descriptor,
    provides: Vec<String>,
    rpc: Vec<String>,
    path: Option<PathBuf>,
    mapped_path: Option<PathBuf>,
    is_certified: bool,
    state: AtomicU8,
    failure: Mutex<Option<String>>,
}

/// What came of a callback.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Call {
    /// It was made; a token given to it is the module's to answer.
    Made,
    /// The module does not offer it.
    NotOffered,
    /// The state of the module forbids it.
    NotInService,
}

impl Call {
    /// True if the callback was made.
    pub fn is_made(self) -> bool {
        self == Call::Made
    }
}

/// An optional callback.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "named as in the contract")]
pub enum Callback {
    InitComplete,
    Configure,
    Create,
    Update,
    Delete,
    ExamineConfig,
    ExamineDisk,
    Hotplug,
    Quiesce,
    Schema,
    Validate,
    SetLogLevel,
    Query,
}

/// A module as shown to an operator.
#[derive(Clone, Debug, Serialize)]
pub struct ModuleInfo {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Its state.
    pub state: ModuleState,
    /// Why it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
    /// Contract version it was built with.
    pub abi: String,
    /// Compiler.
    pub built_with: String,
    /// What it provides.
    pub provides: Vec<String>,
    /// The plugin file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
    /// The copy of it that is mapped.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mapped_path: Option<PathBuf>,
    /// True if its layouts were compared.
    pub certified: bool,
}

/// A callback's return value other than 0, and its text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// `-errno`.
    pub code: i32,
    /// The module's message, or the system's for `code`.
    pub text: String,
}

impl Refusal {
    /// Makes a callback with a buffer for its message.
    fn from_call(make: impl FnOnce(*mut c_char, usize) -> i32) -> Result<(), Refusal> {
        let mut message: [c_char; ERROR_TEXT_BYTES] = [0; ERROR_TEXT_BYTES];
        let code = make(message.as_mut_ptr(), message.len());
        if code == 0 {
            return Ok(());
        }
        let bytes = message.iter().map(|byte| byte.cast_unsigned()).take_while(|byte| *byte != 0);
        let text = match String::from_utf8_lossy(&bytes.collect::<Vec<u8>>()).trim() {
            "" => std::io::Error::from_raw_os_error(code.saturating_neg()).to_string().to_lowercase(),
            text => text.to_owned(),
        };
        Err(Refusal { code, text })
    }
}

impl Module {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.descriptor.name
    }

    /// Its version.
    #[must_use]
    pub fn version(&self) -> &Version {
        &self.descriptor.version
    }

    /// The compiler that built it.
    #[must_use]
    pub fn built_with(&self) -> &str {
        &self.descriptor.built_with
    }

    /// Contract version it was built with.
    #[must_use]
    pub fn abi(&self) -> (u16, u16) {
        self.descriptor.abi
    }

    /// The plugin file; `None` if it is linked into the process.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// What it provides: `bdev`, `transport`.
    #[must_use]
    pub fn provides(&self) -> &[String] {
        &self.provides
    }

    /// RPC methods its metadata announces.
    #[must_use]
    pub fn rpc_methods(&self) -> &[String] {
        &self.rpc
    }

    /// True if a layout certificate was compared.
    #[must_use]
    pub fn is_certified(&self) -> bool {
        self.is_certified
    }

    /// Never reused; grows in order of loading.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.id
    }

    /// Its state. Changes on the control reactor only.
    #[must_use]
    pub fn state(&self) -> ModuleState {
        ModuleState::from_index(self.state.load(Ordering::Acquire))
    }

    /// Why it is failed.
    #[must_use]
    pub fn failure(&self) -> Option<String> {
        self.failure.lock().clone()
    }

    /// What the plugin gives back as `me`.
    #[must_use]
    pub fn handle(&self) -> *mut HostModule {
        (&raw const *self).cast_mut().cast()
    }

    /// The module of a handle; `None` for anything that is not one. Any thread.
    #[must_use]
    pub fn from_handle(me: *mut HostModule) -> Option<ModuleRef> {
        MODULES.read().iter().rev().copied().find(|module| module.handle() == me)
    }

    /// As shown to an operator.
    #[must_use]
    pub fn info(&self) -> ModuleInfo {
        let (major, minor) = self.abi();
        ModuleInfo {
            name: self.name().to_owned(),
            version: self.version().as_str().to_owned(),
            state: self.state(),
            failure: self.failure(),
            abi: format!("{major}.{minor}"),
            built_with: self.built_with().to_owned(),
            provides: self.provides.clone(),
            path: self.path.clone(),
            mapped_path: self.mapped_path.clone().filter(|mapped| Some(mapped) != self.path.as_ref()),
            certified: self.is_certified,
        }
    }

    /// True if the plugin's table has the callback.
    #[must_use]
    pub fn offers(&self, callback: Callback) -> bool {
        let table = self.callbacks();
        match callback {
            Callback::InitComplete => table.init_complete.is_some(),
            Callback::Configure => table.configure.is_some(),
            Callback::Create => table.create.is_some(),
            Callback::Update => table.update.is_some(),
            Callback::Delete => table.delete.is_some(),
            Callback::ExamineConfig => table.examine_config.is_some(),
            Callback::ExamineDisk => table.examine_disk.is_some(),
            Callback::Hotplug => table.hotplug.is_some(),
            Callback::Quiesce => table.quiesce.is_some(),
            Callback::Schema => table.schema.is_some(),
            Callback::Validate => table.validate.is_some(),
            Callback::SetLogLevel => table.set_log_level.is_some(),
            Callback::Query => table.query.is_some(),
        }
    }

    // ---- callbacks, on the control reactor ------------------------------------------------------------------

    /// Changes module-wide options. [`Call::NotOffered`]: answer `-ENOTSUP`.
    pub fn configure(&self, params_json: &str, token: OpToken) -> Call {
        self.call(ModuleState::is_in_service, self.callbacks().configure, |configure| {
            // SAFETY: the text is borrowed for the call, as the contract says.
            unsafe { configure(Str::new(params_json), token) }
        })
    }

    /// Creates a device. [`Call::NotOffered`]: answer `-ENOTSUP`. A draining module takes no new devices.
    pub fn create(&self, params_json: &str, token: OpToken) -> Call {
        self.call(ModuleState::takes_devices, self.callbacks().create, |create| {
            // SAFETY: the text is borrowed for the call.
            unsafe { create(Str::new(params_json), token) }
        })
    }

    /// Changes a device in place. [`Call::NotOffered`]: answer `-ENOTSUP`.
    pub fn update(&self, name: &str, params_json: &str, token: OpToken) -> Call {
        self.call(ModuleState::is_in_service, self.callbacks().update, |update| {
            // SAFETY: the texts are borrowed for the call.
            unsafe { update(Str::new(name), Str::new(params_json), token) }
        })
    }

    /// Deletes a device. [`Call::NotOffered`]: the host removes the device of that name itself.
    pub fn delete(&self, name: &str, token: OpToken) -> Call {
        self.call(ModuleState::is_in_service, self.callbacks().delete, |delete| {
            // SAFETY: the text is borrowed for the call.
            unsafe { delete(Str::new(name), token) }
        })
    }

    /// Offers a device before any I/O. [`Call::NotOffered`]: counts as "not mine".
    pub fn examine_config(&self, bdev: BdevHandle, name: &str, token: ExamineToken) -> Call {
        self.call(ModuleState::takes_devices, self.callbacks().examine_config, |examine| {
            // SAFETY: the text is borrowed for the call.
            unsafe { examine(bdev, Str::new(name), token) }
        })
    }

    /// Offers a device for examination with I/O. [`Call::NotOffered`]: counts as "not mine".
    pub fn examine_disk(&self, bdev: BdevHandle, name: &str, token: ExamineToken) -> Call {
        self.call(ModuleState::takes_devices, self.callbacks().examine_disk, |examine| {
            // SAFETY: the text is borrowed for the call.
            unsafe { examine(bdev, Str::new(name), token) }
        })
    }

    /// Tells of something that appeared or vanished. [`Call::NotOffered`]: it does not care.
    pub fn hotplug(&self, event: &HotplugEvent) -> Call {
        self.call(ModuleState::is_in_service, self.callbacks().hotplug, |hotplug| {
            // SAFETY: the event is borrowed for the call.
            unsafe { hotplug(event) }
        })
    }

    /// The options in force, as the module tells them: one JSON object; `None` if it does not. Control reactor.
    #[must_use]
    pub fn config(&self) -> Option<String> {
        let config = self.callbacks().config_json.filter(|_| self.state().is_in_service())?;
        let mut text = String::new();
        let sink = JsonSink { write: append, arg: (&raw mut text).cast() };
        // SAFETY: the sink and the text behind it live until the call returns.
        unsafe { config(&sink) };
        (!text.is_empty()).then_some(text)
    }

    // ---- callbacks, on any thread ---------------------------------------------------------------------------

    /// The JSON Schema of its parameters; `None` if it has none, it is not UTF-8, or the module has come to its
    /// end. Works before `init`.
    #[must_use]
    pub fn schema(&self) -> Option<String> {
        let schema = self.callbacks().schema.filter(|_| !self.state().is_final())?;
        // SAFETY: takes nothing; the contract allows any thread and any time.
        let text = unsafe { schema() };
        if text.len > MAX_SCHEMA_BYTES {
            log::warn!("schema ignored for its length module={} bytes={}", self.name(), text.len);
            return None;
        }
        // SAFETY: the contract makes it static text.
        unsafe { text.as_str() }.map(str::to_owned)
    }

    /// Checks parameters of `create` without creating anything. Works before `init`; a module without this
    /// callback finds nothing wrong.
    pub fn validate(&self, params_json: &str) -> Result<(), Refusal> {
        match self.callbacks().validate.filter(|_| !self.state().is_final()) {
            Some(validate) => Refusal::from_call(|text, len| {
                // SAFETY: text and buffer live for the call; the contract allows any thread and any time.
                unsafe { validate(Str::new(params_json), text, len) }
            }),
            None => Ok(()),
        }
    }

    /// Checks the module's table of the configuration, as [`Module::validate`] does parameters.
    pub fn validate_config(&self, config_json: &str) -> Result<(), Refusal> {
        match self.callbacks().validate_config.filter(|_| !self.state().is_final()) {
            Some(validate) => Refusal::from_call(|text, len| {
                // SAFETY: as in `validate`.
                unsafe { validate(Str::new(config_json), text, len) }
            }),
            None => Ok(()),
        }
    }

    /// A further table of the module; null if it does not offer it or is not in service.
    #[must_use]
    pub fn query(&self, id: &str, version: u32) -> *const c_void {
        match self.callbacks().query.filter(|_| self.state().is_in_service()) {
            // SAFETY: the text is borrowed for the call; the contract allows any thread.
            Some(query) => unsafe { query(Str::new(id), version) },
            None => core::ptr::null(),
        }
    }

    // ---- for `set` ------------------------------------------------------------------------------------------

    pub(crate) fn from_image(image: Image) -> ModuleRef {
        Self::leak(Module {
            id: 0,
            descriptor: image.descriptor,
            provides: image.metadata.provides,
            rpc: image.metadata.rpc,
            path: Some(image.path),
            mapped_path: Some(image.mapped_path),
            is_certified: image.certified_types.is_some(),
            state: AtomicU8::new(ModuleState::Loaded as u8),
            failure: Mutex::new(None),
        })
    }

    pub(crate) fn from_static(descriptor: Descriptor) -> ModuleRef {
        Self::leak(Module {
            id: 0,
            descriptor,
            provides: vec!["bdev".into()],
            rpc: Vec::new(),
            path: None,
            mapped_path: None,
            is_certified: false,
            state: AtomicU8::new(ModuleState::Loaded as u8),
            failure: Mutex::new(None),
        })
    }

    fn leak(mut module: Module) -> ModuleRef {
        module.id = NEXT_ID.fetch_add(1, Ordering::Relaxed);
        let module: ModuleRef = Box::leak(Box::new(module));
        MODULES.write().push(module);
        module
    }

    /// Applies `event`; on the control reactor only.
    pub(crate) fn transition(&self, event: ModuleEvent) -> Result<ModuleState, InvalidTransition> {
        let before = self.state();
        let after = before.next(event)?;
        self.state.store(after as u8, Ordering::Release);
        if before != after {
            log::debug!(
                "module state changed module={} version={} state={after}",
                self.name(),
                self.version()
            );
        }
        Ok(after)
    }

    /// Notes why it failed; the first reason stays.
    pub(crate) fn set_failure(&self, reason: &str) {
        self.failure.lock().get_or_insert_with(|| reason.to_owned());
    }

    /// Runs `init`. Blocks as long as the module likes: not on a reactor.
    pub(crate) fn run_init(&self, host: &'static HostApiV1, config_json: &str) -> Result<(), Refusal> {
        Refusal::from_call(|text, len| {
            // SAFETY: `host` and the handle live as long as the process; config and buffer for the call. The
            // state machine lets this happen once.
            unsafe { (self.callbacks().init)(host, self.handle(), Str::new(config_json), text, len) }
        })
    }

    pub(crate) fn init_complete(&self) -> Call {
        self.call(
            |state| state == ModuleState::Initialised,
            self.callbacks().init_complete,
            |complete| {
                // SAFETY: takes nothing; `init` has succeeded.
                unsafe { complete() }
            },
        )
    }

    pub(crate) fn quiesce(&self) -> Call {
        self.call(
            |state| state == ModuleState::Draining,
            self.callbacks().quiesce,
            |quiesce| {
                // SAFETY: takes nothing.
                unsafe { quiesce() }
            },
        )
    }

    pub(crate) fn fini(&self, token: OpToken) -> Call {
        self.call(
            |state| state == ModuleState::Finishing,
            Some(self.callbacks().fini),
            |fini| {
                // SAFETY: the state machine lets this happen once, after every device is gone.
                unsafe { fini(token) }
            },
        )
    }

    pub(crate) fn set_log_level(&self, level: u32) -> Call {
        self.call(ModuleState::is_in_service, self.callbacks().set_log_level, |set_log_level| {
            // SAFETY: takes a number; `init` has succeeded.
            unsafe { set_log_level(level) }
        })
    }

    fn call<F>(
        &self,
        is_allowed: impl Fn(ModuleState) -> bool,
        callback: Option<F>,
        make: impl FnOnce(F),
    ) -> Call {
        if !is_allowed(self.state()) {
            return Call::NotInService;
        }
        match callback {
            Some(callback) => {
                make(callback);
                Call::Made
            }
            None => Call::NotOffered,
        }
    }

    fn callbacks(&self) -> &Callbacks {
        &self.descriptor.callbacks
    }
}

/// Appends to the text of a sink, up to a bound.
unsafe extern "C" fn append(text: *mut c_void, piece: Str) {
    // SAFETY: `arg` of the sink is the text, which is borrowed by nobody else during the call.
    let text = unsafe { &mut *text.cast::<String>() };
    // SAFETY: the module lends the piece for the call.
    let piece = unsafe { piece.as_str() }.unwrap_or_default();
    if text.len() + piece.len() <= MAX_SCHEMA_BYTES {
        text.push_str(piece);
    }
}

impl fmt::Debug for Module {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Module({} {} {})", self.name(), self.version(), self.state())
    }
}
