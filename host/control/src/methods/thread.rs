//! `framework_get_reactors` and `thread_get_*`: what the reactors do. Each
//! reactor is one thread of the reply.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use serde_json::{Value, json};
use tenon_bdev::{ChannelStat, ResetMode};
use tenon_reactor::{PollerKind, PollerState, PollerStatistics, ReactorRef, current, ticks_hz};

use super::{Method, NoParams, with};
use crate::context::Control;
use crate::rpc::{Reply, RpcError};

pub const METHODS: &[(&str, Method)] = &[
    ("framework_get_reactors", get_reactors),
    ("thread_get_stats", get_stats),
    ("thread_get_pollers", get_pollers),
    ("thread_get_io_channels", get_io_channels),
];

/// How long a report waits for a reactor that does not answer; it is then left out.
const REACTOR_ANSWER: Duration = Duration::from_secs(1);

fn get_reactors(control: &Control, params: Value, reply: Reply) {
    with("framework_get_reactors", params, reply, |_: NoParams, reply| {
        let reactors: Vec<Value> = control
            .directory()
            .all()
            .iter()
            .map(|reactor| {
                let statistics = reactor.statistics();
                json!({
                    "lcore": statistics.cpu,
                    "tid": statistics.thread_id,
                    "busy": statistics.busy_ticks,
                    "idle": statistics.idle_ticks + statistics.sleep_ticks,
                    "in_interrupt": statistics.is_sleeping,
                    "irq": 0,
                    "sys": 0,
                    "longest_turn_ns": statistics.longest_turn_ns,
                    "long_turns": statistics.long_turns,
                    "sleeps": statistics.sleeps,
                    "lw_threads": [{
                        "name": reactor.name(),
                        "id": reactor.id().index(),
                        "cpumask": cpumask(statistics.cpu),
                        "elapsed": statistics.busy_ticks + statistics.idle_ticks + statistics.sleep_ticks,
                    }],
                })
            })
            .collect();
        reply.send(Ok(json!({ "tick_rate": ticks_hz(), "pid": std::process::id(), "reactors": reactors })));
    });
}

fn get_stats(control: &Control, params: Value, reply: Reply) {
    with("thread_get_stats", params, reply, |_: NoParams, reply| {
        let threads: Vec<Value> = control
            .directory()
            .all()
            .iter()
            .map(|reactor| {
                let statistics = reactor.statistics();
                json!({
                    "name": reactor.name(),
                    "id": reactor.id().index(),
                    "cpumask": cpumask(statistics.cpu),
                    "busy": statistics.busy_ticks,
                    "idle": statistics.idle_ticks + statistics.sleep_ticks,
                    "active_pollers_count": statistics.every_turn_pollers,
                    "timed_pollers_count": statistics.timed_pollers,
                    "paused_pollers_count": statistics.paused_pollers,
                })
            })
            .collect();
        reply.send(Ok(json!({ "tick_rate": ticks_hz(), "threads": threads })));
    });
}

fn get_pollers(control: &Control, params: Value, reply: Reply) {
    with("thread_get_pollers", params, reply, |_: NoParams, reply| {
        from_each_reactor(
            control,
            || current().pollers(),
            reply,
            |found| {
                let threads: Vec<Value> = found
                    .iter()
                    .map(|(reactor, pollers)| {
                        json!({
                            "name": reactor.name(),
                            "id": reactor.id().index(),
                            "active_pollers": list(pollers, |poller| poller.period_us == 0),
                            "timed_pollers": list(pollers, |poller| poller.period_us != 0),
                            "paused_pollers": paused(pollers),
                        })
                    })
                    .collect();
                json!({ "tick_rate": ticks_hz(), "threads": threads })
            },
        );
    });
}

fn get_io_channels(control: &Control, params: Value, reply: Reply) {
    with("thread_get_io_channels", params, reply, |_: NoParams, reply| {
        let threads: Vec<ReactorRef> = control.directory().all().to_vec();
        channels_of_all(control, move |channels| {
            let describe = |reactor: &ReactorRef| {
                let own: Vec<Value> = channels
                    .iter()
                    .filter(|(_, channel)| channel.reactor == reactor.id())
                    .map(|(name, channel)| {
                        json!({ "name": name, "ref": channel.consumers, "outstanding": channel.outstanding })
                    })
                    .collect();
                json!({ "name": reactor.name(), "id": reactor.id().index(), "io_channels": own })
            };
            let threads: Vec<Value> = threads.iter().map(describe).collect();
            reply.send(Ok(json!({ "tick_rate": ticks_hz(), "threads": threads })));
        });
    });
}

/// The open channels of every device, with the device's name.
fn channels_of_all(control: &Control, done: impl FnOnce(Vec<(String, ChannelStat)>) + 'static) {
    let (names, found) = (control.core().bdev_names(), Rc::new(RefCell::new(Vec::new())));
    let after = Rc::new(Cell::new(Some(done)));
    let missing = Rc::new(Cell::new(names.len() + 1));
    let arrive = {
        let (found, missing) = (found.clone(), missing.clone());
        move || {
            missing.set(missing.get() - 1);
            if missing.get() == 0
                && let Some(done) = after.take()
            {
                done(found.take());
            }
        }
    };
    for name in names {
        let (found, arrive) = (found.clone(), arrive.clone());
        control.core().iostat(&name.clone(), true, ResetMode::None, move |result| {
            if let Ok(statistics) = result {
                found
                    .borrow_mut()
                    .extend(statistics.channels.into_iter().map(|channel| (name.clone(), channel)));
            }
            arrive();
        });
    }
    arrive();
}

fn list(pollers: &[PollerStatistics], wanted: impl Fn(&PollerStatistics) -> bool) -> Vec<Value> {
    pollers
        .iter()
        .filter(|poller| poller.state != PollerState::Paused && wanted(poller))
        .map(describe)
        .collect()
}

fn paused(pollers: &[PollerStatistics]) -> Vec<Value> {
    pollers.iter().filter(|poller| poller.state == PollerState::Paused).map(describe).collect()
}

fn describe(poller: &PollerStatistics) -> Value {
    json!({
        "name": poller.name,
        "id": poller.id.to_raw(),
        "state": if poller.state == PollerState::Paused { "paused" } else { "waiting" },
        "run_count": poller.runs,
        "busy_count": poller.busy_runs,
        "period_ticks": u128::from(poller.period_us) * u128::from(ticks_hz()) / 1_000_000,
        "is_wakeable": poller.kind == PollerKind::Wakeable,
    })
}

fn cpumask(cpu: Option<u32>) -> String {
    cpu.filter(|cpu| *cpu < 128).map_or_else(|| "0".to_owned(), |cpu| format!("{:x}", 1_u128 << cpu))
}

/// Runs `ask` on every reactor and hands what came back to `done`. A worker thread does the waiting; a
/// reactor that does not answer within [`REACTOR_ANSWER`] is left out.
fn from_each_reactor<T: Send + 'static>(
    control: &Control,
    ask: impl Fn() -> T + Clone + Send + 'static,
    reply: Reply,
    done: impl FnOnce(Vec<(ReactorRef, T)>) -> Value + 'static,
) {
    let reactors: Vec<ReactorRef> = control.directory().all().to_vec();
    let work = move || -> Vec<(ReactorRef, T)> {
        let answer =
            |reactor: ReactorRef| Some((reactor.clone(), reactor.call(REACTOR_ANSWER, ask.clone()).ok()?));
        reactors.into_iter().filter_map(answer).collect()
    };
    let reply = Rc::new(Cell::new(Some(reply)));
    let on_done = reply.clone();
    let offloaded = current().offload(work, move |found| {
        if let Some(reply) = on_done.take() {
            reply.send(Ok(done(found)));
        }
    });
    if let Err(error) = offloaded
        && let Some(reply) = reply.take()
    {
        let reason = format!("cannot ask the reactors: {error}");
        reply.send(Err(RpcError::new(tenon_abi::errno::EAGAIN, "reactors", reason)));
    }
}
