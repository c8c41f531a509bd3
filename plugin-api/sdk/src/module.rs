//! A module: its callbacks as a trait, the one instance a plugin image has, and
//! the table of C functions that leads from the host to it.
//!
//! Every callback runs under a guard: a panic becomes an error, the host lives.
// UNSAFETY: receives raw pointers from the host; the instance is reached from the control thread only.

use std::cell::UnsafeCell;
use std::ffi::{c_char, c_void};
use std::marker::PhantomData;
use std::mem::offset_of;
use std::ptr::null_mut;
use std::rc::Rc;
use std::sync::atomic::{AtomicPtr, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use schemars::{JsonSchema, SchemaGenerator, generate::SchemaSettings};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tenon_abi::{
    BdevHandle, ExamineToken as RawExamine, HostApiV1, HostModule, HotplugEvent, JsonSink, ModuleFlags,
    ModuleOpsV1, OpToken as RawToken, Str, reaches,
};

use crate::bdev::write_json;
use crate::host::publish::hotplug_of;
use crate::{Error, ExamineToken, Examined, Host, Hotplug, OpToken, bridge, errno};

/// The callbacks of a module. Unless stated otherwise they run on the control thread, one at a time, and must
/// not block: what blocks goes to [`Host::offload`].
///
/// They take `&self`: keep what changes in `Cell` or `RefCell`, and hold no borrow across a call of the host.
/// A panic in a callback answers its token with an error and is logged.
pub trait Module: Sized + Send + 'static {
    /// The module's table of the configuration, `{}` if absent; [`NoConfig`] if it has none.
    type Config: DeserializeOwned + JsonSchema;
    /// One `[[bdev]]` table, the same as an RPC's parameters; [`NoParams`] if the module creates nothing.
    type Params: DeserializeOwned + JsonSchema;

    /// Deletes a thing by its name, if this module does so itself: it answers when the thing is gone. Absent: the
    /// host removes the device of that name.
    const DELETE: Option<fn(&Self, &str, OpToken)> = None;

    /// First call, on a thread of its own that may block until the host's deadline. Of the host only logging,
    /// time, [`Host::query`], [`Host::alloc`] and metrics are allowed yet; keep `host` for later.
    ///
    /// # Errors
    /// The module is failed with this text and not called again.
    fn init(host: Host, config: Self::Config) -> Result<Self, Error>;

    /// Checks parameters without creating anything and without a module: `tenon check` asks, and
    /// [`Module::create`] gets only parameters that pass. Any thread.
    ///
    /// # Errors
    /// What is wrong, with the bad value and what would be right.
    fn validate(params: &Self::Params) -> Result<(), Error> {
        let _ = params;
        Ok(())
    }

    /// Checks options as [`Module::validate`] checks parameters: [`Module::init`] and [`Module::configure`] get
    /// only options that pass. Any thread.
    ///
    /// # Errors
    /// What is wrong, with the bad value and what would be right.
    fn validate_config(config: &Self::Config) -> Result<(), Error> {
        let _ = config;
        Ok(())
    }

    /// The options in force, for a module whose methods change them: the host saves them. [`changed_options`]
    /// makes it of a [`Module::Config`]. The default leaves it at what `init` and `configure` were given.
    fn config(&self) -> Option<serde_json::Value> {
        None
    }

    /// The module is part of the host now: register methods, pollers, watches.
    fn init_complete(&self) {}

    /// New module-wide options at run time.
    fn configure(&self, config: Self::Config, token: OpToken) {
        let _ = config;
        token.fail(Error::not_supported("the module cannot be configured at run time"));
    }

    /// Creates what `params` describes: open, claim, [`OpToken::register`], then answer with the result. The host
    /// replies to its client after everything registered under the token is examined, and removes it again if the
    /// answer is an error. [`Error::missing_base`] means "not yet".
    fn create(&self, params: Self::Params, token: OpToken) {
        let _ = params;
        token.fail(Error::not_supported("the module creates no devices"));
    }

    /// Changes the device `name` to `params` in place.
    fn update(&self, name: &str, params: Self::Params, token: OpToken) {
        let _ = params;
        token.fail(Error::not_supported("the module cannot change a device in place").object(name));
    }

    /// A new device, or one older than this module, before any I/O; the module's own devices as well. Answer from
    /// inside the call.
    fn examine_config(&self, bdev: &Examined, token: ExamineToken) {
        let _ = bdev;
        token.not_mine();
    }

    /// As [`Module::examine_config`], but may do I/O and answer later, within the host's deadline.
    fn examine_disk(&self, bdev: &Examined, token: ExamineToken) {
        let _ = bdev;
        token.not_mine();
    }

    /// Something appeared or vanished; every module hears of everything.
    fn hotplug(&self, event: &Hotplug<'_>) {
        let _ = event;
    }

    /// No new devices from now on: stop discovering. The module's devices are removed next.
    fn quiesce(&self) {}

    /// Last call: release everything and answer, within the host's deadline. The default drops the module.
    fn fini(self: Rc<Self>, token: OpToken) {
        drop(self);
        token.done();
    }

    /// JSON Schema: `create`'s parameters under `properties.bdev`, the configuration under `properties.module`.
    /// The default makes it of the two types. Any thread.
    #[must_use]
    fn schema() -> serde_json::Value {
        schema_of::<Self>()
    }

    /// A further table by name and version, e.g. `nvmf-transport` 1; null if not offered. Any thread.
    #[must_use]
    fn query(id: &str, version: u32) -> *const c_void {
        let _ = (id, version);
        std::ptr::null()
    }
}

/// A module that `export_plugin!` made the module of this image.
pub trait Exported: Module {
    /// Name of the module.
    const NAME: &'static str;

    /// Where the instance lives.
    #[doc(hidden)]
    fn slot() -> &'static Slot<Self>;

    /// The host, once `init` was called. Any thread.
    #[must_use]
    fn host() -> Option<Host> {
        Self::slot().host()
    }

    /// Calls `work` with the module, e.g. from a timer; `None` before `init`, after `fini` and off the control
    /// thread.
    fn with<R>(work: impl FnOnce(&Self) -> R) -> Option<R> {
        let slot = Self::slot();
        if !slot.host()?.is_control() {
            return None;
        }
        // SAFETY: this is the control thread.
        let module = unsafe { slot.current() }?;
        Some(work(&module))
    }
}

/// Of a module without options.
#[derive(Deserialize, JsonSchema, Clone, Copy, Debug, Default)]
#[serde(deny_unknown_fields)]
pub struct NoConfig {}

/// Of a module that creates nothing.
#[derive(Deserialize, JsonSchema, Clone, Copy, Debug, Default)]
#[serde(deny_unknown_fields)]
pub struct NoParams {}

/// The one instance of a module, from `init` to `fini`.
#[doc(hidden)]
pub struct Slot<M> {
    api: AtomicPtr<HostApiV1>,
    me: AtomicPtr<HostModule>,
    /// Made by `init` on its thread, not yet seen by the control thread.
    fresh: Mutex<Option<M>>,
    /// The control thread's.
    live: UnsafeCell<Option<Rc<M>>>,
    schema: OnceLock<String>,
}

// SAFETY: `fresh` is locked and hands a `Send` value over; `live` is touched by the control thread only.
unsafe impl<M: Send> Sync for Slot<M> {}

impl<M> Slot<M> {
    #[doc(hidden)]
    #[must_use]
    pub const fn new() -> Self {
        Slot {
            api: AtomicPtr::new(null_mut()),
            me: AtomicPtr::new(null_mut()),
            fresh: Mutex::new(None),
            live: UnsafeCell::new(None),
            schema: OnceLock::new(),
        }
    }

    pub(crate) fn host(&self) -> Option<Host> {
        let me = self.me.load(Ordering::Acquire);
        // SAFETY: only `init` stores here, and what it was given stays valid for the life of the process.
        unsafe { Host::new(self.api.load(Ordering::Acquire), me) }
    }

    /// The instance.
    ///
    /// # Safety
    /// On the control thread.
    pub(crate) unsafe fn current(&self) -> Option<Rc<M>> {
        if let Some(module) = lock(&self.fresh).take() {
            // SAFETY: the control thread is here, and the borrow ends with the statement.
            let old = unsafe { (*self.live.get()).replace(Rc::new(module)) };
            // Left by a host that is gone, as happens in tests: its thread may be another, so it is leaked.
            std::mem::forget(old);
        }
        // SAFETY: as above.
        unsafe { (*self.live.get()).clone() }
    }

    /// Takes the instance out.
    ///
    /// # Safety
    /// On the control thread.
    unsafe fn take(&self) -> Option<Rc<M>> {
        // SAFETY: as the caller promises.
        drop(unsafe { self.current() });
        // SAFETY: the control thread is here, and the borrow ends with the statement.
        unsafe { (*self.live.get()).take() }
    }
}

/// The C functions of a module.
#[doc(hidden)]
pub struct Callbacks<M>(PhantomData<M>);

impl<M: Exported> Callbacks<M> {
    #[doc(hidden)]
    pub const TABLE: ModuleOpsV1 = ModuleOpsV1 {
        size: size_of::<ModuleOpsV1>() as u32,
        flags: ModuleFlags::NONE,
        init: Self::init,
        init_complete: Some(Self::init_complete),
        configure: Some(Self::configure),
        create: Some(Self::create),
        update: Some(Self::update),
        delete: if M::DELETE.is_some() { Some(Self::delete) } else { None },
        examine_config: Some(Self::examine_config),
        examine_disk: Some(Self::examine_disk),
        hotplug: Some(Self::hotplug),
        quiesce: Some(Self::quiesce),
        fini: Self::fini,
        schema: Some(Self::schema),
        validate: Some(Self::validate),
        set_log_level: Some(set_log_level),
        query: Some(Self::query),
        validate_config: Some(Self::validate_config),
        config_json: Some(Self::config_json),
    };

    unsafe extern "C" fn init(
        api: *const HostApiV1,
        me: *mut HostModule,
        config_json: Str,
        err: *mut c_char,
        err_len: usize,
    ) -> i32 {
        // SAFETY: the host passes a table and a module that live as long as the process, and a text.
        let (host, config) = unsafe { (Host::new(api, me), text(config_json)) };
        let result = match host {
            Some(host) if reaches(host.api.size, END_OF_1_0) => Self::start(host, config),
            _ => Err(Error::invalid("the host offers less than version 1.0 of the contract")),
        };
        // SAFETY: the host passes a buffer of `err_len` bytes, or null.
        unsafe { code_and_text(result, err, err_len) }
    }

    fn start(host: Host, config: &str) -> Result<(), Error> {
        bridge::install(host.api);
        let slot = M::slot();
        slot.api.store(std::ptr::from_ref(host.api).cast_mut(), Ordering::Release);
        slot.me.store(host.me, Ordering::Release);
        let init = || {
            let config = parse(config)?;
            M::validate_config(&config)?;
            M::init(host, config)
        };
        let module = bridge::guard("init", init)??;
        *lock(&slot.fresh) = Some(module);
        Ok(())
    }

    unsafe extern "C" fn init_complete() {
        // SAFETY: the host calls on the control thread.
        unsafe { Self::tell("init_complete", M::init_complete) };
    }

    unsafe extern "C" fn configure(params_json: Str, token: RawToken) {
        // SAFETY: the host calls on the control thread, with a text valid for the call and a token of its own.
        unsafe {
            Self::ask("configure", token, text(params_json), |module: &M, config, token| {
                match M::validate_config(&config) {
                    Ok(()) => module.configure(config, token),
                    Err(error) => token.fail(error),
                }
            });
        }
    }

    unsafe extern "C" fn create(params_json: Str, token: RawToken) {
        // SAFETY: as in `configure`.
        unsafe {
            Self::ask("create", token, text(params_json), |module: &M, params, token| {
                match M::validate(&params) {
                    Ok(()) => module.create(params, token),
                    Err(error) => token.fail(error),
                }
            });
        }
    }

    unsafe extern "C" fn update(name: Str, params_json: Str, token: RawToken) {
        // SAFETY: as in `configure`.
        unsafe {
            let name = text(name);
            Self::ask("update", token, text(params_json), |module: &M, params, token| {
                module.update(name, params, token);
            });
        }
    }

    unsafe extern "C" fn delete(name: Str, token: RawToken) {
        // SAFETY: as in `configure`.
        unsafe {
            let name = text(name);
            Self::ask("delete", token, "{}", |module: &M, _: NoParams, token| match M::DELETE {
                Some(delete) => delete(module, name, token),
                None => token.fail(Error::not_supported("the module deletes nothing")),
            });
        }
    }

    unsafe extern "C" fn examine_config(bdev: BdevHandle, name: Str, token: RawExamine) {
        // SAFETY: as in `configure`.
        unsafe { Self::examine("examine_config", bdev, text(name), token, M::examine_config) };
    }

    unsafe extern "C" fn examine_disk(bdev: BdevHandle, name: Str, token: RawExamine) {
        // SAFETY: as in `configure`.
        unsafe { Self::examine("examine_disk", bdev, text(name), token, M::examine_disk) };
    }

    unsafe extern "C" fn hotplug(event: *const HotplugEvent) {
        // SAFETY: the host passes an event that is valid for the call, on the control thread.
        unsafe {
            if let Some(event) = hotplug_of(event) {
                Self::tell("hotplug", |module| module.hotplug(&event));
            }
        }
    }

    unsafe extern "C" fn quiesce() {
        // SAFETY: the host calls on the control thread.
        unsafe { Self::tell("quiesce", M::quiesce) };
    }

    unsafe extern "C" fn fini(token: RawToken) {
        let slot = M::slot();
        let Some(host) = slot.host() else { return };
        // SAFETY: the host calls on the control thread, with a token of its own.
        let (token, module) = unsafe { (OpToken::new(host, token), slot.take()) };
        match module {
            Some(module) => bridge::run("fini", || module.fini(token)),
            None => token.done(),
        }
    }

    unsafe extern "C" fn schema() -> Str {
        let text = M::slot().schema.get_or_init(|| {
            bridge::guard("schema", M::schema).map(|value| value.to_string()).unwrap_or_default()
        });
        Str::new(text)
    }

    unsafe extern "C" fn validate(params_json: Str, err: *mut c_char, err_len: usize) -> i32 {
        // SAFETY: the host passes a text that is valid for the call.
        let params = unsafe { text(params_json) };
        let result = bridge::guard("validate", || M::validate(&parse(params)?)).and_then(|inner| inner);
        // SAFETY: the host passes a buffer of `err_len` bytes, or null.
        unsafe { code_and_text(result, err, err_len) }
    }

    unsafe extern "C" fn validate_config(config_json: Str, err: *mut c_char, err_len: usize) -> i32 {
        // SAFETY: the host passes a text that is valid for the call.
        let config = unsafe { text(config_json) };
        let check = || M::validate_config(&parse(config)?);
        let result = bridge::guard("validate_config", check).and_then(|inner| inner);
        // SAFETY: the host passes a buffer of `err_len` bytes, or null.
        unsafe { code_and_text(result, err, err_len) }
    }

    unsafe extern "C" fn config_json(sink: *const JsonSink) {
        // SAFETY: the host calls on the control thread.
        let Some(module) = (unsafe { M::slot().current() }) else { return };
        if let Ok(Some(value)) = bridge::guard("config", || module.config()) {
            // SAFETY: the sink is valid for the call.
            unsafe { write_json(&value, sink) };
        }
    }

    unsafe extern "C" fn query(id: Str, version: u32) -> *const c_void {
        // SAFETY: the host passes a text that is valid for the call.
        let id = unsafe { text(id) };
        bridge::guard("query", || M::query(id, version)).unwrap_or(std::ptr::null())
    }

    /// Calls a callback that owes no answer.
    ///
    /// # Safety
    /// On the control thread.
    unsafe fn tell(callback: &'static str, call: impl FnOnce(&M)) {
        // SAFETY: as the caller promises.
        if let Some(module) = unsafe { M::slot().current() } {
            bridge::run(callback, || call(&module));
        }
    }

    /// Calls a callback that owes an answer for `token`.
    ///
    /// # Safety
    /// On the control thread, with a token the host has just given.
    unsafe fn ask<P: DeserializeOwned>(
        callback: &'static str,
        token: RawToken,
        params: &str,
        call: impl FnOnce(&M, P, OpToken),
    ) {
        let slot = M::slot();
        let Some(host) = slot.host() else { return };
        // SAFETY: as the caller promises.
        let (token, module) = unsafe { (OpToken::new(host, token), slot.current()) };
        let Some(module) = module else {
            return token.fail(Error::new(errno::ESHUTDOWN, "the module is not running"));
        };
        match parse(params) {
            Ok(params) => bridge::run(callback, || call(&module, params, token)),
            Err(error) => token.fail(error),
        }
    }

    /// Calls an examine callback.
    ///
    /// # Safety
    /// As [`Self::ask`].
    unsafe fn examine(
        callback: &'static str,
        id: BdevHandle,
        name: &str,
        token: RawExamine,
        call: fn(&M, &Examined, ExamineToken),
    ) {
        let slot = M::slot();
        let Some(host) = slot.host() else { return };
        // SAFETY: as the caller promises.
        let (token, module) = unsafe { (ExamineToken::new(host, token), slot.current()) };
        match module {
            Some(module) => {
                let bdev = Examined { id, name: name.to_owned() };
                bridge::run(callback, || call(&module, &bdev, token));
            }
            None => token.not_mine(),
        }
    }
}

unsafe extern "C" fn set_log_level(level: u32) {
    bridge::set_level(level);
}

/// Reads parameters; absent text is an empty object. What does not fit is told with the key it stands under.
pub(crate) fn parse<P: DeserializeOwned>(json: &str) -> Result<P, Error> {
    let json = if json.trim().is_empty() { "{}" } else { json };
    let mut text = serde_json::Deserializer::from_str(json);
    let params = serde_path_to_error::deserialize(&mut text).map_err(|error| {
        let path = error.path().to_string();
        let Error { reason, .. } = Error::from(error.into_inner());
        // A message about the key itself has its name already.
        let is_named = path == "." || reason.contains(&format!("`{path}`"));
        Error::invalid(if is_named { reason } else { format!("{path}: {reason}") })
    })?;
    text.end()?;
    Ok(params)
}

/// The text, or none of it if it is not UTF-8.
///
/// # Safety
/// `text` is valid for `'a`.
pub(crate) unsafe fn text<'a>(text: Str) -> &'a str {
    // SAFETY: as the caller promises.
    unsafe { text.as_str() }.unwrap_or("")
}

/// Answers as `init` does: 0, or a negative number and a text.
///
/// # Safety
/// `buffer` has `len` bytes, or is null.
unsafe fn code_and_text(result: Result<(), Error>, buffer: *mut c_char, len: usize) -> i32 {
    match result {
        Ok(()) => 0,
        Err(error) => {
            // SAFETY: as the caller promises.
            unsafe { write_text(&error.to_string(), buffer, len) };
            error.code
        }
    }
}

/// Writes as much of `text` as fits with its NUL.
///
/// # Safety
/// `buffer` has `len` bytes, or is null.
unsafe fn write_text(text: &str, buffer: *mut c_char, len: usize) {
    if buffer.is_null() || len == 0 {
        return;
    }
    let mut end = text.len().min(len - 1);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    // SAFETY: `end + 1 <= len` bytes, and a fresh text cannot overlap the host's buffer.
    unsafe {
        std::ptr::copy_nonoverlapping(text.as_ptr(), buffer.cast::<u8>(), end);
        *buffer.add(end) = 0;
    }
}

/// Options that differ from their defaults. For [`Module::config`].
#[must_use]
pub fn changed_options<T: Serialize + Default>(options: &T) -> Option<serde_json::Value> {
    let mut all = serde_json::to_value(options).ok()?;
    let defaults = serde_json::to_value(T::default()).ok()?;
    all.as_object_mut()?.retain(|key, value| defaults.get(key) != Some(value));
    Some(all)
}

/// JSON Schema of a transport: the options of its `[[transport]]` table. For [`Module::schema`].
#[must_use]
pub fn transport_schema<T: schemars::JsonSchema>() -> serde_json::Value {
    let mut generator = SchemaGenerator::new(SchemaSettings::draft2020_12());
    let transport = generator.subschema_for::<T>();
    serde_json::json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "properties": { "transport": transport },
        "$defs": generator.take_definitions(true),
    })
}

fn schema_of<M: Module>() -> serde_json::Value {
    let mut generator = SchemaGenerator::new(SchemaSettings::draft2020_12());
    let bdev = generator.subschema_for::<M::Params>();
    let module = generator.subschema_for::<M::Config>();
    serde_json::json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "properties": { "bdev": bdev, "module": module },
        "$defs": generator.take_definitions(true),
    })
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Bytes of a [`HostApiV1`] of version 1.0.
const END_OF_1_0: usize = offset_of!(HostApiV1, hotplug_unwatch) + size_of::<usize>();

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_that_is_too_long_is_cut_at_a_character() {
        let mut buffer = [0x55 as c_char; 4];
        // SAFETY: four bytes.
        unsafe { write_text("aaé", buffer.as_mut_ptr(), buffer.len()) };
        assert_eq!(buffer.map(|c| c as u8), [b'a', b'a', 0, 0x55]);
    }

    #[test]
    fn only_options_that_were_changed_are_told() {
        #[derive(Default, Serialize)]
        struct Options {
            depth: u32,
            paths: Vec<u32>,
        }
        assert_eq!(changed_options(&Options::default()), Some(serde_json::json!({})));
        let changed = Options { depth: 3, paths: Vec::new() };
        assert_eq!(changed_options(&changed), Some(serde_json::json!({ "depth": 3 })));
    }

    #[test]
    fn unknown_parameters_are_refused_by_name() {
        let error = parse::<NoConfig>(r#"{"sise": 1}"#).unwrap_err();
        assert_eq!(error.code, errno::EINVAL);
        assert!(error.reason.starts_with("unknown field `sise`"), "{error}");
    }

    #[test]
    fn a_wrong_value_is_refused_with_its_key() {
        #[derive(Debug, serde::Deserialize)]
        struct Latency {
            #[expect(dead_code, reason = "only whether it can be read counts")]
            avg_read_latency_us: u64,
        }
        let error = parse::<Latency>(r#"{"avg_read_latency_us": -1}"#).unwrap_err();
        assert!(error.reason.starts_with("avg_read_latency_us: invalid value: integer `-1`"), "{error}");
        let error = parse::<Vec<Latency>>(r#"[{"avg_read_latency_us": "often"}]"#).unwrap_err();
        assert!(error.reason.starts_with("[0].avg_read_latency_us: invalid type"), "{error}");
        let error = parse::<Latency>("{}").unwrap_err();
        assert!(error.reason.starts_with("missing field `avg_read_latency_us`"), "{error}");
        assert!(parse::<NoConfig>("{} {}").is_err());
    }
}
