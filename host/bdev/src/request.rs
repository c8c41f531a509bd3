//! The kinds of operation: which module serves each, and what it is called with.
//!
//! Here are the entrances of clients ([`Core::create`] and the others) and the
//! calls into modules; the course of an operation between the two is in
//! `operation`.
// UNSAFETY: calls the RPC handlers that modules registered.

use std::ffi::c_void;
use std::sync::Arc;

use serde_json::Value;
use tenon_abi::{OpToken, Reason, RpcFn, Str, errno};
use tenon_modules::{Call, LoadError, ModuleRef, PluginError};

use crate::core::Core;
use crate::error::OpError;
use crate::operation::Answer;

/// What a client asks for.
#[derive(Clone, Debug)]
pub(crate) enum Request {
    Create { module: Arc<str>, name: Option<Arc<str>>, params: Arc<str> },
    Delete { name: Arc<str>, module: Option<Arc<str>> },
    Update { name: Arc<str>, params: Arc<str> },
    Rpc { method: Arc<str>, module: Arc<str>, params: Arc<str> },
    Configure { module: Arc<str>, params: Arc<str> },
}

impl Request {
    /// Operations with the same lock name run one after the other.
    pub(crate) fn lock_name(&self) -> Option<Arc<str>> {
        match self {
            Request::Create { name, .. } => name.clone(),
            Request::Delete { name, .. } | Request::Update { name, .. } => Some(name.clone()),
            Request::Rpc { .. } | Request::Configure { .. } => None,
        }
    }

    /// Its devices are to go, not to come.
    pub(crate) fn removes(&self) -> bool {
        match self {
            Request::Delete { .. } => true,
            Request::Create { .. }
            | Request::Update { .. }
            | Request::Rpc { .. }
            | Request::Configure { .. } => false,
        }
    }

    /// The object it is about.
    pub(crate) fn subject(&self) -> &str {
        match self {
            Request::Create { name: Some(name), .. }
            | Request::Delete { name, .. }
            | Request::Update { name, .. } => name,
            Request::Rpc { method, .. } => method,
            Request::Create { module, name: None, .. } | Request::Configure { module, .. } => module,
        }
    }

    /// For operators.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Request::Create { .. } => "create",
            Request::Delete { .. } => "delete",
            Request::Update { .. } => "update",
            Request::Rpc { .. } => "rpc",
            Request::Configure { .. } => "configure",
        }
    }

    /// For error texts.
    pub(crate) fn describe(&self) -> String {
        format!("{} of {}", self.kind(), self.subject())
    }
}

impl Core {
    /// Creates what `params`, a `[[bdev]]` table without its `module`, describes. The reply comes when
    /// every device it registered is examined; on failure nothing is left of it.
    pub fn create(
        &self,
        module: &str,
        params: &Value,
        reply: impl FnOnce(Result<Answer, OpError>) + 'static,
    ) {
        let name = params.get("name").and_then(Value::as_str).map(Arc::from);
        let request = Request::Create { module: module.into(), name, params: params.to_string().into() };
        self.operation_start(request, Box::new(reply));
    }

    /// Deletes a device by name, alias or UUID; the reply comes when it is gone. With `module`, only a
    /// device of that module.
    pub fn delete(
        &self,
        name: &str,
        module: Option<&str>,
        reply: impl FnOnce(Result<Answer, OpError>) + 'static,
    ) {
        let request = Request::Delete { name: self.own_name(name), module: module.map(Arc::from) };
        self.operation_start(request, Box::new(reply));
    }

    /// Changes a device in place.
    pub fn update(&self, name: &str, params: &Value, reply: impl FnOnce(Result<Answer, OpError>) + 'static) {
        let request = Request::Update { name: self.own_name(name), params: params.to_string().into() };
        self.operation_start(request, Box::new(reply));
    }

    /// Gives a module new options at run time.
    pub fn module_configure(
        &self,
        module: &str,
        params: &Value,
        reply: impl FnOnce(Result<Answer, OpError>) + 'static,
    ) {
        let request = Request::Configure { module: module.into(), params: params.to_string().into() };
        self.operation_start(request, Box::new(reply));
    }

    /// Calls a method of a module, which is loaded for it if need be. False if no module has it; then
    /// `reply` is dropped.
    pub fn rpc(
        &self,
        method: &str,
        params: &Value,
        reply: impl FnOnce(Result<Answer, OpError>) + 'static,
    ) -> bool {
        let Some(module) = self.rpc_module(method) else { return false };
        let request =
            Request::Rpc { method: method.into(), module: module.into(), params: params.to_string().into() };
        self.operation_start(request, Box::new(reply));
        true
    }

    /// The name proper of the device that `name` means.
    fn own_name(&self, name: &str) -> Arc<str> {
        let registry = self.inner.registry.borrow();
        registry.find(name).map_or_else(|| name.into(), |record| record.name.clone())
    }

    /// What must be so when an operation's turn comes.
    pub(crate) fn request_check(&self, request: &Request) -> Result<(), OpError> {
        let registry = self.inner.registry.borrow();
        match request {
            Request::Create { module, name: Some(name), .. } => match registry.find(name) {
                None => match self.inner.saved.borrow().others_devices(module, name) {
                    None => Ok(()),
                    Some((other, bdev)) => {
                        let device = registry.get(bdev).map_or("a device", |record| &record.name);
                        let reason = format!("name is taken: {device} of module {other} was created by it");
                        Err(OpError::new(errno::EEXIST, &**name, reason))
                    }
                },
                // Its module knows whether it is the one that is asked for.
                Some(record) if record.module.name() == &**module && self.came_by_itself(record.handle) => {
                    Ok(())
                }
                Some(record) if record.state().may_be_opened() => {
                    Err(OpError::new(errno::EEXIST, &**name, "name is taken"))
                }
                Some(record) => {
                    let reason = format!("name is taken by a device that is {}", record.state());
                    Err(OpError::new(errno::EEXIST, &**name, reason))
                }
            },
            Request::Delete { name, module } => match (registry.find(name), module) {
                (None, module) if self.saved_module(name, module.as_deref()).is_some() => Ok(()),
                (None, _) => Err(OpError::new(errno::ENODEV, &**name, "no such device")),
                (Some(record), Some(module)) if record.module.name() != &**module => {
                    let reason = format!("device is of module {}, not of {module}", record.module.name());
                    Err(OpError::new(errno::ENODEV, &**name, reason))
                }
                (Some(_), _) => Ok(()),
            },
            Request::Update { name, .. } => match registry.find(name) {
                Some(record) if record.state().may_be_opened() => Ok(()),
                Some(_) | None => {
                    drop(registry);
                    Err(self.not_there(name))
                }
            },
            Request::Create { name: None, .. } | Request::Rpc { .. } | Request::Configure { .. } => Ok(()),
        }
    }

    /// Finds or loads the module that serves a request.
    pub(crate) fn request_module(
        &self,
        request: &Request,
        done: impl FnOnce(Result<ModuleRef, OpError>) + 'static,
    ) {
        match request {
            Request::Create { module, .. } | Request::Configure { module, .. } => self.ensure(module, done),
            Request::Rpc { method, module, .. } => match self.rpc_entry(method) {
                Some(entry) => done(Ok(entry.module)),
                None => self.ensure(module, done),
            },
            Request::Delete { name, .. } | Request::Update { name, .. } => {
                let module = self.inner.registry.borrow().find(name).map(|record| record.module);
                let owner = match request {
                    Request::Delete { module, .. } => module.as_deref(),
                    _ => None,
                };
                let module = module.or_else(|| self.saved_module(name, owner));
                done(module.ok_or_else(|| OpError::new(errno::ENODEV, &**name, "no such device")));
            }
        }
    }

    fn ensure(&self, module: &str, done: impl FnOnce(Result<ModuleRef, OpError>) + 'static) {
        let config = self.module_config(module);
        let name = module.to_owned();
        self.inner.modules.ensure(module, &config, move |result| {
            done(result.map_err(|error| load_error(&name, &error)));
        });
    }

    /// Hands a request to its module.
    pub(crate) fn request_call(&self, id: u64, module: ModuleRef, token: OpToken, request: &Request) {
        let call = match request {
            Request::Create { params, .. } => module.create(params, token),
            Request::Configure { params, .. } => module.configure(params, token),
            Request::Update { name, params } => module.update(name, params, token),
            Request::Delete { name, .. } => {
                self.request_watch_removal(id, name);
                match module.delete(name, token) {
                    Call::Made => Call::Made,
                    Call::NotOffered | Call::NotInService => {
                        return self.owed_answered(token, Ok(String::new()));
                    }
                }
            }
            Request::Rpc { method, params, .. } => match self.rpc_entry(method) {
                Some(entry) if entry.module.state().is_in_service() => {
                    // SAFETY: the module registered the handler with its argument and is in service; its
                    // methods are forgotten when it leaves it.
                    unsafe { entry.call(params, token) };
                    Call::Made
                }
                Some(_) => Call::NotInService,
                None => Call::NotOffered,
            },
        };
        let reason = match call {
            Call::Made => return,
            Call::NotOffered => format!("module {} does not support {}", module.name(), request.kind()),
            Call::NotInService => format!("module {} is going out of service", module.name()),
        };
        let code = if call == Call::NotOffered { errno::ENOTSUP } else { errno::ESHUTDOWN };
        self.owed_answered(token, Err(OpError::new(code, request.subject(), reason)));
    }

    /// What the module's answer means: a name that is no device is deleted also if the module does not know it.
    pub(crate) fn request_outcome(
        &self,
        id: u64,
        result: Result<String, OpError>,
    ) -> Result<String, OpError> {
        let operations = self.inner.operations.borrow();
        let is_unknown = |error: &OpError| {
            let operation = operations.get(id).filter(|operation| operation.bdevs.is_empty());
            let Some(Request::Delete { name, module }) = operation.map(|operation| &operation.request) else {
                return false;
            };
            error.code == errno::ENODEV && self.saved_module(name, module.as_deref()).is_some()
        };
        match result {
            Err(error) if is_unknown(&error) => Ok(String::new()),
            result => result,
        }
    }

    /// A delete is over when its device is gone.
    fn request_watch_removal(&self, id: u64, name: &str) {
        let mut registry = self.inner.registry.borrow_mut();
        let Some(bdev) = registry.find(name).map(|record| record.handle) else { return };
        if let Some(record) = registry.get_mut(bdev) {
            record.on_destroyed.push(id);
        }
        if let Some(operation) = self.inner.operations.borrow_mut().get_mut(id) {
            operation.bdevs.push(bdev);
        }
    }

    /// The module answered with success; what the host does about it.
    pub(crate) fn request_succeeded(&self, id: u64) {
        let (request, bdevs, module) = {
            let operations = self.inner.operations.borrow();
            let Some(operation) = operations.get(id) else { return };
            (operation.request.clone(), operation.bdevs.clone(), operation.module)
        };
        match request {
            Request::Delete { name, module } => {
                self.saved_forget(&name, module.as_deref());
                // The module may have done so already, or leave it to the host.
                for bdev in bdevs {
                    self.remove_bdev(bdev, Reason::REQUESTED);
                }
            }
            Request::Update { name, params } => self.saved_update(&name, &params),
            Request::Rpc { method, params, .. } => {
                self.saved_rpc(&method, &params, module);
                self.keep_options_in_force(module);
            }
            // A later load of the module begins with what is in force now.
            Request::Configure { module, params } => self.keep_module_config(&module, &params),
            Request::Create { .. } => {}
        }
    }
}

/// A method a module has registered.
#[derive(Clone, Copy)]
pub(crate) struct RpcEntry {
    pub module: ModuleRef,
    pub handler: RpcFn,
    pub arg: *mut c_void,
}

impl RpcEntry {
    /// # Safety
    /// The module is in service.
    unsafe fn call(self, params: &str, token: OpToken) {
        // SAFETY: the caller vouches for the module; the text lives until the call returns.
        unsafe { (self.handler.0)(self.arg, Str::new(params), token) };
    }
}

/// A module that cannot be loaded, as an operator's error.
pub(crate) fn load_error(module: &str, error: &PluginError) -> OpError {
    let code = match &error.fault {
        LoadError::UnknownModule { .. } | LoadError::NotFound => errno::ENOENT,
        LoadError::InitFailed { code, .. } if *code < 0 => *code,
        LoadError::InitTimedOut { .. } => errno::ETIMEDOUT,
        LoadError::Busy { .. } => errno::EBUSY,
        LoadError::AlreadyLoaded { .. } => errno::EEXIST,
        _ => errno::EINVAL,
    };
    OpError::new(code, module, "module cannot be loaded").with_cause(error)
}
