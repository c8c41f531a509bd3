//! The calls of the control socket: one table of name and function, one file
//! per family. A method that is not in the table belongs to a module; the core
//! finds it, loading the module if needed.

mod bdev;
mod framework;
mod logs;
mod module;
mod notify;
pub(crate) mod nvmf;
mod statistics;
mod thread;

use serde::de::DeserializeOwned;
use serde_json::Value;
use tenon_bdev::{Answer, OpError};

use crate::config::nearest;
use crate::context::Control;
use crate::rpc::{Handler, Reply, Request, RpcError};

type Method = fn(&Control, Value, Reply);

impl Handler for Control {
    fn call(&self, request: Request, reply: Reply) {
        log::debug!("rpc call method={}", request.method);
        if let Some((_, method)) = own_methods().find(|(name, _)| *name == request.method) {
            method(self, request.params, reply);
            return;
        }
        if let Some((module, verb)) = device_call(self, &request.method) {
            verb.call(self, &module, request, reply);
            return;
        }
        if !self.core().rpc_methods().contains(&request.method) {
            reply.send(Err(unknown(self, &request.method)));
            return;
        }
        let answered = self.core().rpc(&request.method, &request.params, answer(&request.method, reply));
        debug_assert!(answered, "{} is listed and served by nobody", request.method);
    }
}

/// What a module's `bdev_…_create` and `bdev_…_delete` do without a handler of their own.
#[derive(Clone, Copy)]
enum DeviceVerb {
    Create,
    Delete,
}

/// The module and verb of a method by which that module makes or ends devices: as a plugin lists it, or else
/// after the module's name, so that whatever a file can make a call can.
fn device_call(control: &Control, method: &str) -> Option<(String, DeviceVerb)> {
    let (namesake, verb) = match method.strip_prefix("bdev_")?.rsplit_once('_')? {
        (namesake, "create") => (namesake, DeviceVerb::Create),
        (namesake, "delete") => (namesake, DeviceVerb::Delete),
        _ => return None,
    };
    let modules = control.core().modules();
    let lists = |methods: &[String]| methods.iter().any(|listed| listed == method);
    let loaded = modules.running().into_iter().rev().find(|module| lists(module.rpc_methods()));
    let module = match loaded {
        Some(module) => module.name().to_owned(),
        None => match modules.catalog().for_rpc(method) {
            Some(plugin) => plugin.name.clone(),
            None => made_by_name(control, namesake)?,
        },
    };
    Some((module, verb))
}

/// A module of that name that makes devices, loaded or not.
fn made_by_name(control: &Control, name: &str) -> Option<String> {
    let modules = control.core().modules();
    let is_loaded = || modules.current(name).is_some_and(|module| provides_bdevs(module.provides()));
    let is_installed = || modules.catalog().newest(name).is_some_and(|found| provides_bdevs(&found.provides));
    (is_loaded() || is_installed()).then(|| name.to_owned())
}

fn provides_bdevs(provides: &[String]) -> bool {
    provides.iter().any(|what| what == "bdev")
}

impl DeviceVerb {
    fn call(self, control: &Control, module: &str, request: Request, reply: Reply) {
        match self {
            DeviceVerb::Create => {
                control.core().create(module, &request.params, answer(&request.method, reply))
            }
            DeviceVerb::Delete => with(&request.method, request.params, reply, |params: Named, reply| {
                control.engine().delete(&params.name, module, answer(&request.method, reply));
            }),
        }
    }
}

/// Sends what came of an operation; an error that names no object is about the call itself.
fn answer(method: &str, reply: Reply) -> impl FnOnce(Result<Answer, OpError>) + 'static {
    let method = method.to_owned();
    move |result| {
        reply.send(result.map(|answer| answer.result).map_err(|mut error| {
            if error.object.is_empty() {
                error.object = method;
            }
            RpcError::from(error)
        }));
    }
}

/// Parameters of a delete.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Named {
    name: String,
}

/// Every method that can be called now, sorted.
pub fn names(control: &Control) -> Vec<String> {
    let mut names: Vec<String> = own_methods().map(|(name, _)| name.to_owned()).collect();
    names.extend(control.core().rpc_methods());
    names.sort();
    names.dedup();
    names
}

fn own_methods() -> impl Iterator<Item = (&'static str, Method)> {
    [
        framework::METHODS,
        thread::METHODS,
        logs::METHODS,
        notify::METHODS,
        bdev::METHODS,
        statistics::METHODS,
        module::METHODS,
    ]
    .into_iter()
    .flatten()
    .copied()
    .chain(nvmf::methods())
}

fn unknown(control: &Control, method: &str) -> RpcError {
    let names = names(control);
    let reason = match nearest(method, names.iter().map(String::as_str)) {
        Some(near) => format!("method not found; did you mean {near}?"),
        None => "method not found; rpc_get_methods lists all".to_owned(),
    };
    RpcError::new(RpcError::METHOD_NOT_FOUND, method, reason)
}

/// Reads `params` as `T` and goes on with `then`, or answers what does not fit.
fn with<T: DeserializeOwned>(method: &str, params: Value, reply: Reply, then: impl FnOnce(T, Reply)) {
    match serde_path_to_error::deserialize::<_, T>(params) {
        Ok(typed) => then(typed, reply),
        Err(error) => {
            let path = error.path().to_string();
            let reason = match path.as_str() {
                "." => error.inner().to_string(),
                path => format!("{path}: {}", error.inner()),
            };
            reply.send(Err(RpcError::invalid_params(method, reason)));
        }
    }
}

/// An answer of `true`, or the error.
fn answer_true(reply: Reply) -> impl FnOnce(Result<(), OpError>) {
    move |result| reply.send(result.map(|()| Value::Bool(true)).map_err(RpcError::from))
}

/// Parameters of a method that takes none.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct NoParams {}
