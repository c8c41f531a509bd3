//! `bdev_get_bdevs`, examine, options and limits: what concerns devices of any
//! module. Their making is the modules' own business (`bdev_malloc_create`, …).

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Map, Value, json};
use tenon_abi::{BdevFlags, Op, errno};
use tenon_bdev::{BdevSnapshot, OpError, QosLimits, reason_text};
use tenon_reactor::current;

use super::{Method, NoParams, answer_true, with};
use crate::context::Control;
use crate::rpc::{Reply, RpcError};

pub const METHODS: &[(&str, Method)] = &[
    ("bdev_get_bdevs", get_bdevs),
    ("bdev_examine", examine),
    ("bdev_wait_for_examine", wait_for_examine),
    ("bdev_set_options", set_options),
    ("bdev_set_qos_limit", set_qos_limit),
];

/// Longest `timeout` of `bdev_get_bdevs`, in milliseconds.
const MAX_TIMEOUT_MS: u64 = 600_000;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct GetBdevs {
    name: Option<String>,
    /// Milliseconds to wait for `name` to appear.
    #[serde(default)]
    timeout: u64,
}

fn get_bdevs(control: &Control, params: Value, reply: Reply) {
    with("bdev_get_bdevs", params, reply, |params: GetBdevs, reply| {
        let Some(name) = params.name else {
            let all: Vec<Value> = control.core().bdevs().iter().map(describe).collect();
            reply.send(Ok(Value::Array(all)));
            return;
        };
        match control.core().bdev(&name) {
            Some(snapshot) => reply.send(Ok(json!([describe(&snapshot)]))),
            None if params.timeout == 0 => reply.send(Err(no_such(&name))),
            None => wait_for(control, name, params.timeout.min(MAX_TIMEOUT_MS), reply),
        }
    });
}

fn no_such(name: &str) -> RpcError {
    RpcError::new(errno::ENODEV, name, "no such bdev; bdev_get_bdevs without a name lists all")
}

/// Answers when the device is ready or the time is over, whichever comes first.
fn wait_for(control: &Control, name: String, timeout_ms: u64, reply: Reply) {
    let pending = Rc::new(Cell::new(Some(reply)));
    let listener = Rc::new(Cell::new(None));
    let (core, late, wanted, this) =
        (control.core().clone(), pending.clone(), name.clone(), listener.clone());
    let timer = current().set_timer(Duration::from_millis(timeout_ms), move || {
        if let Some(id) = this.take() {
            core.remove_listener(id);
        }
        if let Some(reply) = late.take() {
            reply.send(Err(no_such(&wanted)));
        }
    });
    let Ok(timer) = timer else {
        if let Some(reply) = pending.take() {
            reply.send(Err(RpcError::new(errno::EAGAIN, &name, "too many timers to wait for a bdev")));
        }
        return;
    };
    let (core, this) = (control.core().clone(), listener.clone());
    let id = control.core().on_bdev_ready(move |ready, aliases| {
        if ready != name && !aliases.contains(&name) {
            return;
        }
        let (core, pending, this, name) = (core.clone(), pending.clone(), this.clone(), name.clone());
        // Not deferred for want of room: the timer answers instead.
        let _ = current().defer(move || {
            if let Some(id) = this.take() {
                core.remove_listener(id);
            }
            let Some(reply) = pending.take() else { return };
            current().cancel_timer(timer);
            reply.send(
                core.bdev(&name).map(|snapshot| json!([describe(&snapshot)])).ok_or_else(|| no_such(&name)),
            );
        });
    });
    listener.set(Some(id));
}

fn describe(bdev: &BdevSnapshot) -> Value {
    let limits = &bdev.limits;
    let mut object = json!({
        "name": bdev.name,
        "aliases": bdev.aliases,
        "product_name": bdev.product,
        "block_size": limits.block_size,
        "num_blocks": limits.num_blocks,
        "uuid": bdev.uuid.to_string(),
        "numa_id": bdev.numa_node,
        "assigned_rate_limits": rate_limits(&bdev.qos),
        "claimed": !bdev.claims.is_empty(),
        "zoned": bdev.flags.contains(BdevFlags::ZONED),
        "supported_io_types": supported(bdev),
        "driver_specific": bdev.driver_specific.clone().unwrap_or_else(|| json!({})),
        "module": bdev.module,
        "state": bdev.state.to_string(),
        "read_only": bdev.flags.contains(BdevFlags::READ_ONLY),
    });
    if let Some(claim_type) = bdev.claim_type() {
        object["claim_type"] = json!(claim_type);
    }
    if limits.md_size > 0 {
        let interleaved = bdev.flags.contains(BdevFlags::METADATA_INTERLEAVED);
        if interleaved {
            // Existing clients take a block for what crosses the wire.
            object["block_size"] = json!(limits.block_size + limits.md_size);
        }
        object["md_size"] = json!(limits.md_size);
        object["md_interleave"] = json!(interleaved);
        object["dif_type"] = json!(0);
    }
    if let Some(removal) = &bdev.removal {
        object["removal"] = json!({
            "reason": reason_text(removal.reason),
            "step": removal.step.as_str(),
            "overdue": removal.overdue,
            "waits_for": removal.waits_for,
        });
    }
    object
}

fn rate_limits(qos: &QosLimits) -> Value {
    json!({
        "rw_ios_per_sec": qos.rw_ios_per_sec,
        "rw_mbytes_per_sec": qos.rw_mbytes_per_sec,
        "r_mbytes_per_sec": qos.r_mbytes_per_sec,
        "w_mbytes_per_sec": qos.w_mbytes_per_sec,
    })
}

fn supported(bdev: &BdevSnapshot) -> Value {
    let own = [
        ("read", Op::READ),
        ("write", Op::WRITE),
        ("unmap", Op::UNMAP),
        ("flush", Op::FLUSH),
        ("reset", Op::RESET),
        ("nvme_admin", Op::NVME_ADMIN),
        ("nvme_io", Op::NVME_IO),
        ("write_zeroes", Op::WRITE_ZEROES),
        ("get_zone_info", Op::GET_ZONE_INFO),
        ("zone_management", Op::ZONE_MANAGEMENT),
        ("zone_append", Op::ZONE_APPEND),
        ("compare", Op::COMPARE),
        ("compare_and_write", Op::COMPARE_AND_WRITE),
        ("seek_hole", Op::SEEK_HOLE),
        ("seek_data", Op::SEEK_DATA),
        ("copy", Op::COPY),
    ];
    let mut types: Map<String, Value> =
        own.into_iter().map(|(name, op)| (name.to_owned(), json!(bdev.supports(op)))).collect();
    // Names existing clients look for that are no operations of their own here.
    for (name, value) in [("nvme_io_md", false), ("nvme_iov_md", false), ("zcopy", false), ("abort", true)] {
        types.insert(name.to_owned(), json!(value));
    }
    Value::Object(types)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Examine {
    name: String,
}

fn examine(control: &Control, params: Value, reply: Reply) {
    with("bdev_examine", params, reply, |params: Examine, reply| {
        control.core().examine(&params.name, answer_true(reply));
    });
}

fn wait_for_examine(control: &Control, params: Value, reply: Reply) {
    with("bdev_wait_for_examine", params, reply, |_: NoParams, reply| {
        control.core().wait_for_examine(move || reply.send(Ok(json!(true))));
    });
}

/// Pool and cache sizes are accepted for the sake of existing clients: there are no such pools here.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SetOptions {
    #[expect(dead_code, reason = "there is no such pool")]
    bdev_io_pool_size: Option<u32>,
    #[expect(dead_code, reason = "there is no such cache")]
    bdev_io_cache_size: Option<u32>,
    bdev_auto_examine: Option<bool>,
    #[expect(dead_code, reason = "there is no such cache")]
    iobuf_small_cache_size: Option<u32>,
    #[expect(dead_code, reason = "there is no such cache")]
    iobuf_large_cache_size: Option<u32>,
}

fn set_options(control: &Control, params: Value, reply: Reply) {
    with("bdev_set_options", params, reply, |params: SetOptions, reply| {
        if let Some(on) = params.bdev_auto_examine {
            control.core().set_auto_examine(on);
        }
        reply.send(Ok(json!(true)));
    });
}

/// Absent: the limit stays as it is; 0: no limit.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SetQosLimit {
    name: String,
    rw_ios_per_sec: Option<u64>,
    rw_mbytes_per_sec: Option<u64>,
    r_mbytes_per_sec: Option<u64>,
    w_mbytes_per_sec: Option<u64>,
}

fn set_qos_limit(control: &Control, params: Value, reply: Reply) {
    with("bdev_set_qos_limit", params, reply, |params: SetQosLimit, reply| {
        let Some(snapshot) = control.core().bdev(&params.name) else {
            reply.send(Err(no_such(&params.name)));
            return;
        };
        let SetQosLimit { name, rw_ios_per_sec, rw_mbytes_per_sec, r_mbytes_per_sec, w_mbytes_per_sec } =
            params;
        if [rw_ios_per_sec, rw_mbytes_per_sec, r_mbytes_per_sec, w_mbytes_per_sec].iter().all(Option::is_none)
        {
            let reason =
                "give at least one of rw_ios_per_sec, rw_mbytes_per_sec, r_mbytes_per_sec, w_mbytes_per_sec";
            reply.send(Err(RpcError::from(OpError::new(errno::EINVAL, name.as_str(), reason))));
            return;
        }
        let now = snapshot.qos;
        let limits = QosLimits {
            rw_ios_per_sec: rw_ios_per_sec.unwrap_or(now.rw_ios_per_sec),
            rw_mbytes_per_sec: rw_mbytes_per_sec.unwrap_or(now.rw_mbytes_per_sec),
            r_mbytes_per_sec: r_mbytes_per_sec.unwrap_or(now.r_mbytes_per_sec),
            w_mbytes_per_sec: w_mbytes_per_sec.unwrap_or(now.w_mbytes_per_sec),
        };
        control.core().set_qos(&name, limits, answer_true(reply));
    });
}
