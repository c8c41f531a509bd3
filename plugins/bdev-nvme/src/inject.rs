//! Ends that an operator wants commands of a controller to have, whatever the
//! controller says, to see what follows from them. What `bdev_nvme_*` says and
//! how long an end holds is here; `channel` and the admin queue carry it out.
//!
//! Control thread and reactors share the list. It is empty except while somebody
//! tests, and then a command that looks into it pays for a lock.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use nvme_spec::completion::{Cqe, StatusField};
use nvme_spec::opcode::FABRICS;
use nvme_spec::status::{StatusCode, StatusCodeType};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};
use tenon_sdk::{Error, OpToken};

use crate::commands::CommandType;
use crate::registry::Registry;

/// Parameters of `bdev_nvme_add_error_injection`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct AddInjection {
    /// Name of the controller.
    name: String,
    /// One of its paths; without it, all.
    cntlid: Option<u16>,
    cmd_type: CommandType,
    opc: u8,
    /// The controller does not get the command.
    #[serde(default)]
    do_not_submit: bool,
    /// How long such a command takes.
    #[serde(default)]
    timeout_in_us: u64,
    /// Commands of each path that end so.
    #[serde(default = "one")]
    err_count: u32,
    sct: Option<u8>,
    sc: Option<u8>,
}

/// Parameters of `bdev_nvme_remove_error_injection`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RemoveInjection {
    name: String,
    cntlid: Option<u16>,
    cmd_type: CommandType,
    opc: u8,
}

/// How a command is to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Injected {
    pub(crate) status: StatusField,
    /// `None`: as soon as the controller has answered; else the controller does not get the command.
    pub(crate) unsent_for_ns: Option<u64>,
}

impl Injected {
    /// The completion that says so.
    pub(crate) fn completion(&self) -> Cqe {
        Cqe::new(0, 0, self.status)
    }
}

/// The ends that commands of one controller are to have.
#[derive(Default)]
pub(crate) struct Injections {
    count: AtomicUsize,
    list: Mutex<Vec<Injection>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Injection {
    kind: CommandType,
    opcode: u8,
    left: u32,
    injected: Injected,
}

impl Injections {
    /// How the next command of this opcode is to end, if it is to end in any particular way.
    #[inline]
    pub(crate) fn take(&self, kind: CommandType, opcode: u8) -> Option<Injected> {
        if self.count.load(Ordering::Relaxed) == 0 { None } else { self.take_one(kind, opcode) }
    }

    #[cold]
    fn take_one(&self, kind: CommandType, opcode: u8) -> Option<Injected> {
        self.change(|list| {
            let at = list.iter().position(|one| one.kind == kind && one.opcode == opcode)?;
            let injected = list[at].injected;
            list[at].left -= 1;
            if list[at].left == 0 {
                list.swap_remove(at);
            }
            Some(injected)
        })
    }

    /// Adds one, instead of another for the same commands.
    fn add(&self, injection: Injection) {
        self.remove(injection.kind, injection.opcode);
        self.change(|list| list.push(injection));
    }

    fn remove(&self, kind: CommandType, opcode: u8) {
        self.change(|list| list.retain(|one| one.kind != kind || one.opcode != opcode));
    }

    fn change<R>(&self, change: impl FnOnce(&mut Vec<Injection>) -> R) -> R {
        let mut list = self.list.lock().unwrap_or_else(PoisonError::into_inner);
        let result = change(&mut list);
        self.count.store(list.len(), Ordering::Relaxed);
        result
    }

    /// What operators are told of them; `None` if there are none.
    pub(crate) fn describe(&self) -> Option<Value> {
        let describe = |one: &Injection| {
            let code = one.injected.status.code();
            json!({
                "cmd_type": one.kind,
                "opc": one.opcode,
                "err_count": one.left,
                "do_not_submit": one.injected.unsent_for_ns.is_some(),
                "sct": code.sct().0,
                "sc": code.sc(),
            })
        };
        let all: Vec<Value> = self.change(|list| list.iter().map(describe).collect());
        (!all.is_empty()).then(|| all.into())
    }
}

impl AddInjection {
    fn injection(&self) -> Result<Injection, Error> {
        let wrong = |reason: String| Err(Error::invalid(reason).object(&*self.name));
        if self.err_count == 0 {
            return wrong("err_count is 0: must be at least 1".to_owned());
        }
        if self.cmd_type == CommandType::Io && self.opc == FABRICS {
            return wrong("opc 0x7f: fabrics commands are of cmd_type admin".to_owned());
        }
        if self.timeout_in_us > MAX_TIME_US {
            return wrong(format!("timeout_in_us is {}: must be at most {MAX_TIME_US}", self.timeout_in_us));
        }
        if self.timeout_in_us > 0 && !self.do_not_submit {
            return wrong("timeout_in_us is given: needs do_not_submit".to_owned());
        }
        let status = match (self.sct, self.sc) {
            (None, None) => StatusCode::INTERNAL_ERROR,
            (sct, sc) => StatusCode::from_parts(StatusCodeType(sct.unwrap_or(0)), sc.unwrap_or(0)),
        };
        if self.sct.is_some_and(|sct| sct > 7) || status == StatusCode::SUCCESS {
            let (sct, sc) = (self.sct.unwrap_or(0), self.sc.unwrap_or(0));
            return wrong(format!("sct {sct} and sc {sc}: must be the status of an error, sct at most 7"));
        }
        let unsent_for_ns = self.do_not_submit.then_some(self.timeout_in_us * 1000);
        let injected = Injected { status: StatusField::new(status), unsent_for_ns };
        Ok(Injection { kind: self.cmd_type, opcode: self.opc, left: self.err_count, injected })
    }
}

impl Registry {
    /// `bdev_nvme_add_error_injection`.
    pub(crate) fn add_injection(&self, params: &AddInjection, token: OpToken) {
        token.run(|_| {
            let injection = params.injection()?;
            let controllers = self.paths_named(&params.name, params.cntlid)?;
            controllers.iter().for_each(|controller| controller.door.injections.add(injection));
            Ok(true)
        });
    }

    /// `bdev_nvme_remove_error_injection`; there need not be any.
    pub(crate) fn remove_injection(&self, params: &RemoveInjection, token: OpToken) {
        token.run(|_| {
            let controllers = self.paths_named(&params.name, params.cntlid)?;
            controllers.iter().for_each(|one| one.door.injections.remove(params.cmd_type, params.opc));
            Ok(true)
        });
    }
}

fn one() -> u32 {
    1
}

/// Longest time for which a command that was not sent seems to be on its way.
const MAX_TIME_US: u64 = 3_600_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    fn params(more: Value) -> AddInjection {
        let mut params = json!({ "name": "nvme0", "cmd_type": "io", "opc": 2 });
        params.as_object_mut().unwrap().extend(more.as_object().cloned().unwrap_or_default());
        serde_json::from_value(params).unwrap()
    }

    #[track_caller]
    fn check_error(more: Value, expected: &str) {
        let error = params(more).injection().unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }

    #[test]
    fn an_injection_ends_as_many_commands_as_it_says_and_no_others() {
        let injections = Injections::default();
        assert_eq!(injections.take(CommandType::Io, 2), None);
        injections.add(params(json!({ "err_count": 5 })).injection().unwrap());
        injections.add(params(json!({ "err_count": 2, "sct": 3, "sc": 0x60 })).injection().unwrap());
        assert_eq!(injections.take(CommandType::Admin, 2), None);
        assert_eq!(injections.take(CommandType::Io, 1), None);
        let injected = Injected {
            status: StatusField::new(StatusCode::from_parts(StatusCodeType(3), 0x60)),
            unsent_for_ns: None,
        };
        assert_eq!(injections.take(CommandType::Io, 2), Some(injected));
        assert_eq!(injections.describe().unwrap()[0]["err_count"], 1);
        assert_eq!(injections.take(CommandType::Io, 2), Some(injected));
        assert_eq!((injections.take(CommandType::Io, 2), injections.describe()), (None, None));
    }

    #[test]
    fn an_end_that_is_none_is_refused_with_words() {
        check_error(json!({ "err_count": 0 }), "err_count is 0");
        check_error(json!({ "opc": 0x7f }), "opc 0x7f");
        check_error(json!({ "timeout_in_us": 1 }), "needs do_not_submit");
        check_error(json!({ "timeout_in_us": 1_u64 << 40, "do_not_submit": true }), "timeout_in_us is");
        check_error(json!({ "sct": 0 }), "sct 0 and sc 0");
        check_error(json!({ "sct": 8, "sc": 1 }), "sct 8 and sc 1");
    }
}
