//! `nvmf_*` and `keyring_*`: the NVMe-oF target. One file per kind of object; here what they
//! share: the name of the one target, errors, and answers.
//!
//! An answer says that it is done: reactors have seen the change, connections
//! that had to end are gone.

mod access;
mod discovery;
mod keyring;
mod listener;
mod namespace;
mod report;
mod subsystem;
mod target;
mod transport;

use std::rc::Rc;
use std::time::Duration;

use serde::{Deserialize, Deserializer};
use serde_json::{Value, json};
use tenon_nvmf_target::{Target, TargetError};
use tenon_reactor::current;

pub(crate) use self::subsystem::hexadecimal;
use super::{Method, with};
use crate::config::Wrong;
use crate::context::Control;
use crate::rpc::{Reply, RpcError};

/// Every method of the family.
pub fn methods() -> impl Iterator<Item = (&'static str, Method)> {
    [
        access::METHODS,
        discovery::METHODS,
        keyring::METHODS,
        listener::METHODS,
        namespace::METHODS,
        report::METHODS,
        subsystem::METHODS,
        target::METHODS,
        transport::METHODS,
    ]
    .into_iter()
    .flatten()
    .copied()
}

/// The name of the one target, as existing clients know it.
const TARGET_NAME: &str = "nvmf_tgt";

/// `tgt_name` of a call: absent, or the one target.
#[derive(Clone, Copy, Debug, Default)]
struct TargetName;

impl<'de> Deserialize<'de> for TargetName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Option::<String>::deserialize(deserializer)?.as_deref() {
            None | Some(TARGET_NAME) => Ok(TargetName),
            Some(other) => Err(serde::de::Error::custom(format!(
                "there is no target `{other}`; the only one is `{TARGET_NAME}`"
            ))),
        }
    }
}

/// A parameter of a call that does not fit.
fn wrong(method: &str, (key, reason): Wrong) -> RpcError {
    RpcError::invalid_params(method, format!("{key}: {reason}"))
}

/// Sends the end of a change: `true`, or the error.
fn answer(reply: Reply) -> impl FnOnce(Result<(), TargetError>) {
    move |result| reply.send(result.map(|()| json!(true)).map_err(RpcError::from))
}

/// As [`answer`], after every reactor has seen the change.
fn answer_settled(control: &Control, reply: Reply) -> impl FnOnce(Result<(), TargetError>) + use<> {
    let target = control.target().clone();
    move |result| match result {
        Ok(()) => target.settled(move || reply.send(Ok(json!(true)))),
        Err(error) => reply.send(Err(error.into())),
    }
}

/// As [`answer`], after controllers of the subsystem that were ended by the change are gone.
fn answer_ended(control: &Control, nqn: &str, reply: Reply) -> impl FnOnce(Result<(), TargetError>) + use<> {
    let (target, nqn) = (control.target().clone(), nqn.to_owned());
    move |result| match result {
        Ok(()) => when_ended(target, nqn.into(), 0, reply),
        Err(error) => reply.send(Err(error.into())),
    }
}

fn when_ended(target: Target, nqn: Rc<str>, looks: u32, reply: Reply) {
    let subsystems = target.subsystems();
    let subsystem = subsystems.iter().find(|one| one.spec.nqn == *nqn);
    let is_ending = subsystem.is_some_and(|one| one.controllers.iter().any(|one| one.is_ending));
    if !is_ending || looks >= MAX_LOOKS {
        target.settled(move || reply.send(Ok(json!(true))));
        return;
    }
    // A look now and then, for an end that takes at most the drain deadline: no list of waiters to keep.
    let pending = Rc::new(std::cell::Cell::new(Some(reply)));
    let later = pending.clone();
    let again = move || {
        if let Some(reply) = later.take() {
            when_ended(target, nqn, looks + 1, reply);
        }
    };
    if current().set_timer(LOOK_AGAIN, again).is_err()
        && let Some(reply) = pending.take()
    {
        let reason = "done, but too many timers are set to wait for its connections";
        reply.send(Err(RpcError::new(tenon_abi::errno::EAGAIN, "nvmf", reason)));
    }
}

/// Between two looks whether connections are gone, and most looks: 30 s, which is more than they may take.
const LOOK_AGAIN: Duration = Duration::from_millis(5);
const MAX_LOOKS: u32 = 6000;

impl From<TargetError> for RpcError {
    fn from(error: TargetError) -> Self {
        use TargetError as E;
        let message = error.to_string();
        let (object, reason, cause) = match &error {
            E::NoSubsystem(nqn) => (nqn.clone(), "no such subsystem".to_owned(), String::new()),
            E::SubsystemExists(nqn) => {
                (nqn.clone(), "the subsystem exists already".to_owned(), String::new())
            }
            E::SubsystemGoing(nqn) => (nqn.clone(), "is being deleted".to_owned(), String::new()),
            E::Invalid { object, reason } => (object.clone(), reason.clone(), String::new()),
            E::NoNamespace { nqn, nsid } => (nqn.clone(), format!("has no namespace {nsid}"), String::new()),
            E::NamespaceExists { nqn, nsid } => {
                (nqn.clone(), format!("has a namespace {nsid} already"), String::new())
            }
            E::NoHost { host, object } => (object.clone(), format!("has no host {host}"), String::new()),
            E::HostExists { host, object } => {
                (object.clone(), format!("has host {host} already"), String::new())
            }
            E::NoListener { object, address } => {
                (object.clone(), format!("has no listener {address}"), String::new())
            }
            E::ListenerExists { object, address } => {
                (object.clone(), format!("has a listener {address} already"), String::new())
            }
            E::NoTransport(name) => {
                let reason = "no such transport; create it with nvmf_create_transport".to_owned();
                (name.clone(), reason, String::new())
            }
            E::TransportExists(name) => {
                (name.clone(), "the transport exists already".to_owned(), String::new())
            }
            E::TransportBusy(name) => (name.clone(), "listeners use the transport".to_owned(), String::new()),
            E::TooMany { object, limit } => {
                (object.clone(), format!("no more than {limit} are possible"), String::new())
            }
            E::TimedOut { object, step, seconds } => {
                (object.clone(), format!("{step} did not end within {seconds} s"), String::new())
            }
            E::Refused { object, source } => (object.clone(), "refused".to_owned(), source.to_string()),
            E::NoKey(name) => (name.clone(), "no such key".to_owned(), String::new()),
            E::KeyExists(name) => (name.clone(), "the key exists already".to_owned(), String::new()),
            E::KeyInUse(name) => (name.clone(), "a host uses the key".to_owned(), String::new()),
            E::MdnsPublished => {
                ("mdns".to_owned(), "listeners are announced already".to_owned(), String::new())
            }
            E::MdnsNotPublished => {
                ("mdns".to_owned(), "listeners are not announced".to_owned(), String::new())
            }
            E::Mdns(cause) => ("mdns".to_owned(), "there is no responder".to_owned(), cause.clone()),
            E::ShuttingDown => ("target".to_owned(), "is shutting down".to_owned(), String::new()),
        };
        RpcError {
            code: error.code(),
            message,
            data: json!({ "object": object, "reason": reason, "cause": cause }),
        }
    }
}

/// A call whose parameters are an NQN and nothing else.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct OfSubsystem {
    nqn: String,
    #[serde(default)]
    #[expect(dead_code, reason = "there is one target")]
    tgt_name: TargetName,
}

/// Answers with what `describe` makes of a subsystem.
fn of_subsystem(
    control: &Control,
    method: &str,
    params: Value,
    reply: Reply,
    describe: impl FnOnce(&tenon_nvmf_target::SubsystemSnapshot) -> Value,
) {
    with(method, params, reply, |params: OfSubsystem, reply| {
        let subsystems = control.target().subsystems();
        reply.send(match subsystems.iter().find(|one| one.spec.nqn == params.nqn) {
            Some(subsystem) => Ok(describe(subsystem)),
            None => Err(TargetError::NoSubsystem(params.nqn).into()),
        });
    });
}
