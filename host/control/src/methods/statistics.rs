//! `bdev_get_iostat`, histograms and queue-depth sampling.

use std::cell::RefCell;
use std::rc::Rc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::Deserialize;
use serde_json::{Value, json};
use tenon_abi::{Op, errno};
use tenon_bdev::{IoStat, OpError, OpStats, ResetMode};
use tenon_reactor::{ticks, ticks_hz};

use super::{Method, answer_true, with};
use crate::context::Control;
use crate::rpc::{Reply, RpcError};

pub const METHODS: &[(&str, Method)] = &[
    ("bdev_get_iostat", get_iostat),
    ("bdev_reset_iostat", reset_iostat),
    ("bdev_enable_histogram", enable_histogram),
    ("bdev_get_histogram", get_histogram),
    ("bdev_set_qd_sampling_period", set_qd_sampling_period),
];

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Reset {
    All,
    Maxmin,
    #[default]
    None,
}

impl From<Reset> for ResetMode {
    fn from(reset: Reset) -> ResetMode {
        match reset {
            Reset::All => ResetMode::All,
            Reset::Maxmin => ResetMode::Extremes,
            Reset::None => ResetMode::None,
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct GetIostat {
    name: Option<String>,
    #[serde(default)]
    per_channel: bool,
    #[serde(default)]
    reset_mode: Reset,
}

fn get_iostat(control: &Control, params: Value, reply: Reply) {
    with("bdev_get_iostat", params, reply, |params: GetIostat, reply| {
        let names = match &params.name {
            Some(name) => vec![name.clone()],
            None if params.per_channel => {
                reply.send(Err(RpcError::invalid_params("bdev_get_iostat", "per_channel needs a name")));
                return;
            }
            None => control.core().bdev_names(),
        };
        let gathering = Rc::new(RefCell::new(Gathering {
            missing: names.len(),
            bdevs: vec![Value::Null; names.len()],
            failure: None,
            is_single: params.name.is_some(),
            reply: Some(reply),
        }));
        if names.is_empty() {
            Gathering::finish(&gathering);
        }
        for (index, name) in names.into_iter().enumerate() {
            let gathering = gathering.clone();
            let own = control.core().driver_statistics(&name);
            control.core().iostat(
                &name.clone(),
                params.per_channel,
                params.reset_mode.into(),
                move |result| {
                    Gathering::arrive(
                        &gathering,
                        index,
                        result.map(|all| describe(&name, &all, params.per_channel, own)),
                    );
                },
            );
        }
    });
}

struct Gathering {
    missing: usize,
    bdevs: Vec<Value>,
    failure: Option<OpError>,
    is_single: bool,
    reply: Option<Reply>,
}

impl Gathering {
    fn arrive(this: &Rc<RefCell<Self>>, index: usize, result: Result<Value, OpError>) {
        {
            let mut state = this.borrow_mut();
            match result {
                Ok(statistics) => state.bdevs[index] = statistics,
                Err(error) => state.failure = Some(error),
            }
            state.missing -= 1;
            if state.missing > 0 {
                return;
            }
        }
        Self::finish(this);
    }

    /// A device that went away meanwhile is left out, unless it was the one asked for.
    fn finish(this: &Rc<RefCell<Self>>) {
        let mut state = this.borrow_mut();
        let Some(reply) = state.reply.take() else { return };
        let answer = match state.failure.take() {
            Some(error) if state.is_single => Err(RpcError::from(error)),
            _ => {
                state.bdevs.retain(|bdev| !bdev.is_null());
                Ok(json!({ "tick_rate": ticks_hz(), "ticks": ticks(), "bdevs": state.bdevs }))
            }
        };
        drop(state);
        reply.send(answer);
    }
}

fn describe(name: &str, statistics: &IoStat, per_channel: bool, own: Option<Value>) -> Value {
    let mut object = json!({ "name": name });
    add_counters(&mut object, &statistics.total);
    if let Some(own) = own {
        object["driver_specific"] = own;
    }
    let depth = &statistics.queue_depth;
    if depth.period_us > 0 {
        object["queue_depth_polling_period"] = json!(depth.period_us);
        object["queue_depth"] = json!(depth.queue_depth);
        object["io_time"] = json!(depth.io_time_us);
        object["weighted_io_time"] = json!(depth.weighted_io_time_us);
    }
    if per_channel {
        let channels: Vec<Value> = statistics
            .channels
            .iter()
            .map(|channel| {
                let mut object = json!({
                    "thread_id": channel.reactor.index(),
                    "outstanding": channel.outstanding,
                    "queued": channel.queued,
                });
                add_counters(&mut object, &channel.stats);
                object
            })
            .collect();
        object["channels"] = Value::Array(channels);
    }
    object
}

fn add_counters(object: &mut Value, statistics: &OpStats) {
    let kinds = [
        ("read", "bytes_read", "num_read_ops", Op::READ),
        ("write", "bytes_written", "num_write_ops", Op::WRITE),
        ("unmap", "bytes_unmapped", "num_unmap_ops", Op::UNMAP),
        ("copy", "bytes_copied", "num_copy_ops", Op::COPY),
    ];
    for (kind, bytes, ops, op) in kinds {
        let figures = statistics.op(op);
        object[bytes] = json!(figures.bytes);
        object[ops] = json!(figures.ops);
        object[format!("{kind}_latency_ticks")] = json!(figures.latency_ticks());
        object[format!("max_{kind}_latency_ticks")] = json!(figures.max_latency_ticks);
        object[format!("min_{kind}_latency_ticks")] = json!(figures.min_latency_ticks);
    }
    object["num_flush_ops"] = json!(statistics.op(Op::FLUSH).ops);
    object["num_write_zeroes_ops"] = json!(statistics.op(Op::WRITE_ZEROES).ops);
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ResetIostat {
    name: Option<String>,
    /// Default: `all`.
    mode: Option<Reset>,
}

fn reset_iostat(control: &Control, params: Value, reply: Reply) {
    with("bdev_reset_iostat", params, reply, |params: ResetIostat, reply| {
        let mode = params.mode.unwrap_or(Reset::All).into();
        control.core().reset_iostat(params.name.as_deref(), mode, answer_true(reply));
    });
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct EnableHistogram {
    name: String,
    enable: bool,
    /// One operation; default: all.
    opc: Option<String>,
}

fn enable_histogram(control: &Control, params: Value, reply: Reply) {
    with("bdev_enable_histogram", params, reply, |params: EnableHistogram, reply| {
        match operation("bdev_enable_histogram", params.opc.as_deref()) {
            Ok(op) => {
                control.core().enable_histogram(&params.name, params.enable, op, answer_true(reply));
            }
            Err(error) => reply.send(Err(error)),
        }
    });
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct GetHistogram {
    name: String,
    /// One operation; default: all together.
    opc: Option<String>,
}

fn get_histogram(control: &Control, params: Value, reply: Reply) {
    with("bdev_get_histogram", params, reply, |params: GetHistogram, reply| {
        let op = match operation("bdev_get_histogram", params.opc.as_deref()) {
            Ok(op) => op,
            Err(error) => return reply.send(Err(error)),
        };
        let name = params.name.clone();
        control.core().histogram(&params.name, op, move |result| {
            reply.send(match result {
                Err(error) => Err(RpcError::from(error)),
                Ok(None) => {
                    let reason = "no histogram is recorded; call bdev_enable_histogram first";
                    Err(RpcError::new(errno::ENOENT, &name, reason))
                }
                Ok(Some(data)) => {
                    let bytes: Vec<u8> = data.buckets.iter().flat_map(|count| count.to_le_bytes()).collect();
                    Ok(json!({
                        "histogram": BASE64.encode(&bytes),
                        "bucket_shift": data.bucket_shift,
                        "tsc_rate": data.tick_rate,
                    }))
                }
            });
        });
    });
}

fn operation(method: &str, name: Option<&str>) -> Result<Option<Op>, RpcError> {
    let Some(name) = name else { return Ok(None) };
    match OPERATIONS.iter().find(|(known, _)| *known == name) {
        Some((_, op)) => Ok(Some(*op)),
        None => {
            let known: Vec<&str> = OPERATIONS.iter().map(|(name, _)| *name).collect();
            let reason = format!("opc: unknown operation {name}; one of {}", known.join(", "));
            Err(RpcError::invalid_params(method, reason))
        }
    }
}

const OPERATIONS: &[(&str, Op)] = &[
    ("read", Op::READ),
    ("write", Op::WRITE),
    ("flush", Op::FLUSH),
    ("unmap", Op::UNMAP),
    ("write_zeroes", Op::WRITE_ZEROES),
    ("reset", Op::RESET),
    ("compare", Op::COMPARE),
    ("copy", Op::COPY),
];

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SetQdSamplingPeriod {
    name: String,
    /// Microseconds; 0: no sampling.
    period: u64,
}

fn set_qd_sampling_period(control: &Control, params: Value, reply: Reply) {
    with("bdev_set_qd_sampling_period", params, reply, |params: SetQdSamplingPeriod, reply| {
        control.core().set_queue_depth_sampling(&params.name, params.period, answer_true(reply));
    });
}
