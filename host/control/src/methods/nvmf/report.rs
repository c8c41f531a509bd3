//! Who uses a subsystem: controllers and queues; and what the target does on
//! each reactor.

use serde::Deserialize;
use serde_json::{Value, json};
use tenon_nvmf_target::{QueueSnapshot, ReactorReport};
use tenon_reactor::ticks_hz;

use super::listener::address_json;
use super::{OfSubsystem, TargetName, of_subsystem};
use crate::config::{digest_name, group_name};
use crate::context::Control;
use crate::methods::{Method, with};
use crate::rpc::{Reply, RpcError};

pub const METHODS: &[(&str, Method)] = &[
    ("nvmf_subsystem_get_controllers", get_controllers),
    ("nvmf_subsystem_get_qpairs", get_qpairs),
    ("nvmf_get_stats", get_stats),
];

fn get_controllers(control: &Control, params: Value, reply: Reply) {
    of_subsystem(control, "nvmf_subsystem_get_controllers", params, reply, |subsystem| {
        let describe = |controller: &tenon_nvmf_target::ControllerSnapshot| {
            json!({
                "cntlid": controller.cntlid,
                "hostnqn": controller.hostnqn,
                "hostid": controller.hostid,
                "num_io_qpairs": controller.num_io_queues,
                "peer": controller.peer,
                "keep_alive_timeout_ms": controller.keep_alive_timeout_ms,
                "ready": controller.is_ready,
            })
        };
        subsystem.controllers.iter().map(describe).collect()
    });
}

fn get_qpairs(control: &Control, params: Value, reply: Reply) {
    with("nvmf_subsystem_get_qpairs", params, reply, |params: OfSubsystem, reply| {
        control.target().queues(&params.nqn, move |result| {
            reply.send(
                result.map(|queues| queues.iter().map(describe_queue).collect()).map_err(RpcError::from),
            );
        });
    });
}

fn describe_queue(queue: &QueueSnapshot) -> Value {
    let (traddr, trsvcid) = peer_parts(&queue.peer);
    let mut object = json!({
        "cntlid": queue.cntlid,
        "qid": queue.qid,
        "state": if queue.is_live { "enabled" } else { "deactivating" },
        "thread": queue.reactor,
        "hostnqn": queue.hostnqn,
        "secure_channel": queue.is_secure,
        "commands": queue.commands,
        "outstanding": queue.outstanding,
    });
    if let Some(authentication) = &queue.authentication {
        object["auth"] = match (&authentication.proven, authentication.is_running) {
            (_, true) => json!({ "state": "authenticating" }),
            (Some((hash, group)), false) => json!({
                "state": "completed",
                "digest": digest_name(*hash),
                "dhgroup": group_name(*group),
            }),
            (None, false) => json!({ "state": "waiting" }),
        };
    }
    if let Some(address) = &queue.listen_address {
        object["listen_address"] = address_json(address);
        object["peer_address"] = json!({
            "trtype": address.trtype, "adrfam": address.adrfam, "traddr": traddr, "trsvcid": trsvcid,
        });
    }
    object
}

/// A peer, `address:port` with brackets around an IPv6 address, as its two parts.
fn peer_parts(peer: &str) -> (&str, &str) {
    match peer.rsplit_once(':') {
        Some((address, service)) => (address.trim_start_matches('[').trim_end_matches(']'), service),
        None => (peer, ""),
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct GetStats {
    #[serde(default)]
    #[expect(dead_code, reason = "there is one target")]
    tgt_name: TargetName,
}

fn get_stats(control: &Control, params: Value, reply: Reply) {
    with("nvmf_get_stats", params, reply, |_: GetStats, reply| {
        control.target().reactor_reports(move |mut reports| {
            reports.sort_by(|a, b| a.name.cmp(&b.name));
            let groups: Vec<Value> = reports.iter().map(describe_reactor).collect();
            reply.send(Ok(json!({ "tick_rate": ticks_hz(), "poll_groups": groups })));
        });
    });
}

fn describe_reactor(report: &ReactorReport) -> Value {
    let transports: Vec<Value> = report
        .transports
        .iter()
        .map(|(name, statistics)| {
            let mut object = json!({ "trtype": name });
            for (key, value) in statistics.as_object().into_iter().flatten() {
                object[key] = value.clone();
            }
            object
        })
        .collect();
    json!({
        "name": report.name,
        "admin_qpairs": report.admin_queues,
        "io_qpairs": report.io_queues,
        "current_admin_qpairs": report.current_admin_queues,
        "current_io_qpairs": report.current_io_queues,
        "pending_bdev_io": report.pending_device_commands,
        "completed_nvme_io": report.completed_commands,
        "transports": transports,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_is_told_by_its_parts() {
        for (peer, parts) in [
            ("127.0.0.1:53512", ("127.0.0.1", "53512")),
            ("[::1]:53512", ("::1", "53512")),
            ("loop", ("loop", "")),
        ] {
            assert_eq!(peer_parts(peer), parts);
        }
    }
}
