//! Lifecycle operations and their tokens: create, delete, update, configure,
//! RPC, fini and destruct. A create is answered when the module has answered
//! and everything it registered is examined; a failed one is rolled back.
// UNSAFETY: calls the module's lifecycle callbacks.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::rc::Rc;

use tenon_abi::{ErrorV1, OpToken, Reason, Str, errno};

use super::device::Device;
use super::lifecycle::DeviceState;
use super::module::{Module, ModuleId, ModuleState, module_callback};
use super::schedule::{CONTROL, Where};
use super::shared::text;
use super::world::World;
use crate::violation::Fault;

/// Why an operation failed, as the operator would be told.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct OpError {
    /// `-errno`.
    pub code: i32,
    /// The object that failed, by its name.
    pub object: String,
    /// What is wrong.
    pub reason: String,
    /// The underlying cause, or empty.
    pub cause: String,
}

impl fmt::Display for OpError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error {} of `{}`: {} ({})", self.code, self.object, self.reason, self.cause)
    }
}

impl std::error::Error for OpError {}

impl OpError {
    pub(crate) fn new(code: i32, object: &str, reason: &str) -> OpError {
        OpError { code, object: object.to_owned(), reason: reason.to_owned(), cause: String::new() }
    }

    /// # Safety
    /// The texts of `error` are readable for this call.
    pub(crate) unsafe fn from_abi(error: &ErrorV1) -> OpError {
        // SAFETY: the caller promises readable texts.
        let [object, reason, cause] =
            [error.object, error.reason, error.cause].map(|found| unsafe { text(found) }.unwrap_or_default());
        OpError { code: error.code, object, reason, cause }
    }
}

pub(crate) enum OpKind {
    Create,
    Delete(Option<Rc<Device>>),
    Plain,
    Destruct(Rc<Device>),
}

pub(crate) struct Operation {
    pub(crate) id: u64,
    pub(crate) module: ModuleId,
    pub(crate) label: String,
    pub(crate) kind: OpKind,
    answer: RefCell<Option<Result<String, OpError>>>,
    pub(crate) registered: RefCell<Vec<Rc<Device>>>,
    result: RefCell<Option<Result<String, OpError>>>,
    is_given_up: Cell<bool>,
    params: String,
}

/// An operation under way; see [`crate::FakeHost::wait_for`].
#[derive(Clone)]
pub struct Pending(pub(crate) Rc<Operation>);

impl Pending {
    /// True when the reply would have been sent.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.0.result.borrow().is_some()
    }

    /// The reply, if there is one yet.
    #[must_use]
    pub fn result(&self) -> Option<Result<String, OpError>> {
        self.0.result.borrow().clone()
    }

    /// Names of the devices registered under this operation.
    #[must_use]
    pub fn devices(&self) -> Vec<String> {
        self.0.registered.borrow().iter().map(|device| device.name.clone()).collect()
    }
}

impl Operation {
    pub(crate) fn is_answered(&self) -> bool {
        self.answer.borrow().is_some()
    }

    pub(crate) fn params_text(&self) -> String {
        self.params.clone()
    }

    fn reply(&self, result: Result<String, OpError>) {
        self.result.borrow_mut().get_or_insert(result);
    }
}

impl World {
    pub(crate) fn new_operation(
        &self,
        module: ModuleId,
        label: String,
        kind: OpKind,
        params: &str,
    ) -> Rc<Operation> {
        let id = self.operations.borrow_mut().reserve();
        let operation = Rc::new(Operation {
            id,
            module,
            label,
            kind,
            answer: RefCell::new(None),
            registered: RefCell::new(Vec::new()),
            result: RefCell::new(None),
            is_given_up: Cell::new(false),
            params: params.to_owned(),
        });
        self.operations.borrow_mut().insert(id, Rc::clone(&operation));
        operation
    }

    /// The operation's result if the module or the host cannot even be asked.
    fn refuse(&self, module: ModuleId, label: &str, error: OpError) -> Rc<Operation> {
        let operation = self.new_operation(module, label.to_owned(), OpKind::Plain, "");
        *operation.answer.borrow_mut() = Some(Err(error.clone()));
        operation.reply(Err(error));
        operation
    }

    pub(crate) fn start_create(self: &Rc<World>, id: ModuleId, params: &str) -> Rc<Operation> {
        let Some((module, create)) = self.module(id).and_then(|module| {
            let create = module_callback!(module, create)?;
            Some((module, create))
        }) else {
            return self.refuse(
                id,
                "create",
                OpError::new(errno::ENOTSUP, "", "the module creates no devices"),
            );
        };
        if module.state.get() != ModuleState::Running {
            return self.refuse(
                id,
                "create",
                OpError::new(errno::ESHUTDOWN, &module.name, "the module is going"),
            );
        }
        let name = name_of(params);
        let is_twin = |operation: &Rc<Operation>| {
            matches!(operation.kind, OpKind::Create)
                && operation.result.borrow().is_none()
                && name.is_some()
                && name_of(&operation.params) == name
        };
        if self.operations.borrow().snapshot().iter().any(is_twin) {
            let name = name.unwrap_or_default();
            return self.refuse(
                id,
                "create",
                OpError::new(errno::EEXIST, &name, "a create of this name is under way"),
            );
        }
        let label = format!("create {params}");
        let operation = self.new_operation(id, label, OpKind::Create, params);
        let started = Rc::clone(&operation);
        self.post(CONTROL, move |world| {
            world.enter(Where::Reactor(CONTROL), id, || {
                // SAFETY: the module runs; the parameters are lent for the call.
                unsafe { create(Str::new(&started.params), OpToken(started.id)) };
            });
        });
        operation
    }

    pub(crate) fn start_delete(self: &Rc<World>, name: &str) -> Rc<Operation> {
        let Some(device) = self.find(name) else { return self.start_delete_of_awaited(name) };
        let owner = device.owner;
        let kind = OpKind::Delete(Some(Rc::clone(&device)));
        let operation = self.new_operation(owner, format!("delete {name}"), kind, "");
        let delete = self.module(owner).and_then(|module| module_callback!(module, delete));
        let started = Rc::clone(&operation);
        let name = name.to_owned();
        self.post(CONTROL, move |world| match delete {
            Some(delete) => world.enter(Where::Reactor(CONTROL), owner, || {
                // SAFETY: the module runs; the name is lent for the call.
                unsafe { delete(Str::new(&name), OpToken(started.id)) };
            }),
            None => {
                world.unregister(&device, Reason::REQUESTED);
                world.answer_operation(started.id, Ok(String::new()));
            }
        });
        operation
    }

    /// A name that was created and is no device is deleted by its module, or by the host alone.
    fn start_delete_of_awaited(self: &Rc<World>, name: &str) -> Rc<Operation> {
        let owner = {
            let mut awaited = self.awaited.borrow_mut();
            let index = awaited.iter().position(|(other, _)| other == name);
            index.map(|index| awaited.swap_remove(index).1)
        };
        let Some(owner) = owner else {
            let error = OpError::new(errno::ENODEV, name, "there is no such device");
            return self.refuse(ModuleId::HOST, "delete", error);
        };
        let operation = self.new_operation(owner, format!("delete {name}"), OpKind::Plain, "");
        let delete = self.module(owner).and_then(|module| module_callback!(module, delete));
        let (started, name) = (Rc::clone(&operation), name.to_owned());
        self.post(CONTROL, move |world| match delete {
            Some(delete) => world.enter(Where::Reactor(CONTROL), owner, || {
                // SAFETY: the module runs; the name is lent for the call.
                unsafe { delete(Str::new(&name), OpToken(started.id)) };
            }),
            None => world.answer_operation(started.id, Ok(String::new())),
        });
        operation
    }

    pub(crate) fn start_update(self: &Rc<World>, name: &str, params: &str) -> Rc<Operation> {
        let Some(device) = self.find(name) else {
            let error = OpError::new(errno::ENODEV, name, "there is no such device");
            return self.refuse(ModuleId::HOST, "update", error);
        };
        let id = device.owner;
        let Some(update) = self.module(id).and_then(|module| module_callback!(module, update)) else {
            return self.refuse(
                id,
                "update",
                OpError::new(errno::ENOTSUP, name, "the module updates no devices"),
            );
        };
        let operation = self.new_operation(id, format!("update {name} {params}"), OpKind::Plain, params);
        let started = Rc::clone(&operation);
        let name = name.to_owned();
        self.post(CONTROL, move |world| {
            world.enter(Where::Reactor(CONTROL), id, || {
                // SAFETY: the module runs; both texts are lent for the call.
                unsafe { update(Str::new(&name), Str::new(&started.params), OpToken(started.id)) };
            });
        });
        operation
    }

    pub(crate) fn start_configure(self: &Rc<World>, id: ModuleId, params: &str) -> Rc<Operation> {
        let Some(configure) = self.module(id).and_then(|module| module_callback!(module, configure)) else {
            return self.refuse(
                id,
                "configure",
                OpError::new(errno::ENOTSUP, "", "the module has no options"),
            );
        };
        let operation = self.new_operation(id, format!("configure {params}"), OpKind::Plain, params);
        let started = Rc::clone(&operation);
        self.post(CONTROL, move |world| {
            world.enter(Where::Reactor(CONTROL), id, || {
                // SAFETY: the module runs; the parameters are lent for the call.
                unsafe { configure(Str::new(&started.params), OpToken(started.id)) };
            });
        });
        operation
    }

    pub(crate) fn start_rpc(self: &Rc<World>, method: &str, params: &str) -> Rc<Operation> {
        let methods = self.methods.borrow();
        let found = methods.iter().find(|found| found.name == method);
        let Some((id, handler, arg)) = found.map(|found| (found.module, found.handler, found.arg)) else {
            let error = OpError::new(errno::ENOENT, method, "there is no such method");
            return self.refuse(ModuleId::HOST, "rpc", error);
        };
        drop(methods);
        let operation = self.new_operation(id, format!("rpc {method} {params}"), OpKind::Create, params);
        let started = Rc::clone(&operation);
        self.post(CONTROL, move |world| {
            world.enter(Where::Reactor(CONTROL), id, || {
                // SAFETY: the method is registered, so its handler and argument are valid.
                unsafe { handler.0(arg, Str::new(&started.params), OpToken(started.id)) };
            });
        });
        operation
    }

    pub(crate) fn start_fini(self: &Rc<World>, module: &Rc<Module>) -> Rc<Operation> {
        let operation = self.new_operation(module.id, "fini".to_owned(), OpKind::Plain, "");
        let (started, module) = (Rc::clone(&operation), Rc::clone(module));
        self.post(CONTROL, move |world| {
            world.enter(Where::Reactor(CONTROL), module.id, || {
                // SAFETY: the module is draining and has no device left; fini is called once.
                unsafe { ((*module.ops).fini)(OpToken(started.id)) };
            });
        });
        operation
    }

    /// The module's answer to a token.
    pub(crate) fn answer_operation(self: &Rc<World>, token: u64, answer: Result<String, OpError>) {
        let Some(operation) = self.operations.borrow().get(token) else {
            return self.violate(
                Fault::TokenAnsweredTwice,
                format!("op_done for token {token:#x}, which never was"),
            );
        };
        if operation.is_answered() {
            let detail = format!("the token of `{}` was answered a second time", operation.label);
            return self.violate(Fault::TokenAnsweredTwice, detail);
        }
        if let Err(error) = &answer
            && (error.code >= 0 || error.reason.is_empty())
        {
            let detail = format!(
                "`{}` failed with code {} and reason `{}`",
                operation.label, error.code, error.reason
            );
            self.violate(Fault::BadCall, detail);
        }
        if let Ok(json) = &answer
            && !json.is_empty()
            && serde_json::from_str::<serde_json::Value>(json).is_err()
        {
            self.violate(Fault::BadCall, format!("the result of `{}` is no JSON: {json}", operation.label));
        }
        *operation.answer.borrow_mut() = Some(answer);
        self.post(CONTROL, move |world| world.progress_operation(&operation));
    }

    /// Replies to what can be replied to now.
    pub(crate) fn progress_operations(self: &Rc<World>) {
        let operations = self.operations.borrow().snapshot();
        for operation in operations {
            self.progress_operation(&operation);
        }
    }

    fn progress_operation(self: &Rc<World>, operation: &Rc<Operation>) {
        let answer = operation.answer.borrow().clone();
        let Some(answer) = answer else { return };
        if operation.result.borrow().is_some() {
            return;
        }
        let devices = operation.registered.borrow().clone();
        match (&operation.kind, &answer) {
            (OpKind::Create, Ok(_)) => {
                if devices.iter().all(|device| device.is_examined()) {
                    if let (true, Some(name)) = (devices.is_empty(), name_of(&operation.params)) {
                        self.awaited.borrow_mut().push((name, operation.module));
                    }
                    operation.reply(answer);
                }
            }
            (OpKind::Create, Err(_)) => {
                for device in &devices {
                    self.unregister(device, Reason::ROLLED_BACK);
                }
                if devices.iter().all(|device| device.state.get() == DeviceState::Destroyed) {
                    operation.reply(answer);
                }
            }
            (OpKind::Delete(Some(device)), Ok(_)) => {
                // The module may have done so already, or leave it to the host.
                self.unregister(device, Reason::REQUESTED);
                if device.state.get() == DeviceState::Destroyed {
                    operation.reply(answer);
                }
            }
            (OpKind::Delete(_), Err(_) | Ok(_)) | (OpKind::Plain, Ok(_) | Err(_)) => operation.reply(answer),
            (OpKind::Destruct(device), Ok(_) | Err(_)) => {
                if let Err(error) = &answer {
                    let detail = format!("destruct of `{}` failed: {error}", device.name);
                    self.violate_by(Fault::BadCall, operation.module, detail);
                }
                operation.reply(answer);
                self.destructed(device);
            }
        }
    }

    /// Waits for the reply; a token that is not answered in time is a violation.
    pub(crate) fn wait_operation(self: &Rc<World>, operation: &Rc<Operation>) -> Result<String, OpError> {
        let is_done = self.run_until(self.options.operation_deadline, || operation.result.borrow().is_some());
        if !is_done {
            self.give_up(operation);
            let error = OpError::new(errno::ETIMEDOUT, &operation.label, "no reply within the deadline");
            operation.reply(Err(error));
        }
        let result = operation.result.borrow().clone();
        result.unwrap_or_else(|| Err(OpError::new(errno::ETIMEDOUT, &operation.label, "no reply")))
    }

    /// Records once that an operation's token was not answered in time.
    pub(crate) fn give_up(&self, operation: &Operation) {
        if !operation.is_answered() && !operation.is_given_up.replace(true) {
            let detail = format!("the token of `{}` was not answered within its deadline", operation.label);
            self.violate_by(Fault::TokenForgotten, operation.module, detail);
        }
    }
}

/// The `name` parameter, if the text is a JSON object that has one.
fn name_of(params: &str) -> Option<String> {
    let value: serde_json::Value = serde_json::from_str(params).ok()?;
    Some(value.get("name")?.as_str()?.to_owned())
}
