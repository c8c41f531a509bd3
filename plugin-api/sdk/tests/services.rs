//! The SDK against the testkit's host: a module that uses every service, and
//! what the host sees when it misbehaves.
#![allow(clippy::unwrap_used, reason = "a failed call is a failed test")]

use std::cell::Cell;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tenon_sdk::{
    Access, Alarm, BaseChannel, BaseEvent, Bdev, BdevInfo, BdevOp, BdevSpec, Channel, Claim, ControlCell,
    Counter, Descriptor, DmaBuf, Error, ExamineToken, Examined, Exported, FdWatch, Host, Hotplug,
    HotplugWatch, Io, IoQueue, IoStatus, MemoryChange, MemoryWatch, Microseconds, Module, NoParams, OpToken,
    Poll, Poller, Publish, Reactor, Reason, Superblock, SuperblockFormat, Victim,
};
use tenon_testkit::{BaseSpec, FakeHost, Fault, FaultPlan, Request};

tenon_sdk::export_plugin! {
    module: Probe,
    name: "probe",
    version: "1.2.3",
    provides: ["bdev"],
    rpc: ["probe_services", "probe_superblock"],
}

#[derive(serde::Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
struct Config {
    #[serde(default)]
    fail: bool,
}

/// A device that holds every I/O for a while, then forwards it.
#[derive(serde::Deserialize, serde::Serialize, schemars::JsonSchema, Clone)]
#[serde(deny_unknown_fields)]
struct Params {
    name: String,
    base: String,
    #[serde(default)]
    delay_us: Microseconds,
    #[serde(default)]
    panic: bool,
}

struct Probe {
    host: Host,
    creates: Counter,
    /// Gives the host memory to tell of.
    _memory: DmaBuf,
    state: ControlCell<State>,
}

#[derive(Default)]
struct State {
    fail_next: bool,
    watch: Option<HotplugWatch>,
    memory: Option<MemoryWatch>,
    regions: Rc<Cell<u32>>,
    heard: Vec<String>,
    examined: Vec<String>,
    poller: Option<Poller>,
    fd: Option<(FdWatch, UnixStream, Poller)>,
}

impl Module for Probe {
    type Config = Config;
    type Params = Params;

    const DELETE: Option<fn(&Self, &str, OpToken)> = Some(Probe::delete);

    fn init(host: Host, config: Config) -> Result<Self, Error> {
        log::warn!("probe starts answer={}", 42);
        if config.fail {
            return Err(Error::new(tenon_sdk::errno::EACCES, "told to fail").object("probe"));
        }
        let creates = host.counter("creates", "Devices created.", &[("kind", "probe")])?;
        let _memory = host.alloc(4096, 4096, -1)?;
        Ok(Probe { host, creates, _memory, state: ControlCell::new() })
    }

    fn validate(params: &Params) -> Result<(), Error> {
        if params.name == params.base {
            return Err(Error::invalid(format!("base {} is the device itself", params.base)));
        }
        Ok(())
    }

    fn init_complete(&self) {
        self.host.rpc("probe_services", Probe::services).unwrap();
        self.host.rpc("probe_superblock", Probe::superblock).unwrap();
        self.host.rpc("probe_fd", Probe::descriptors).unwrap();
        self.host.rpc("probe_panic", |_: &Probe, _: NoParams, _| panic!("on purpose")).unwrap();
        let watch = self.host.watch("file", "/tmp/probe").unwrap();
        let regions = self.state.with(|state| Rc::clone(&state.regions));
        let news = move |change| {
            if let MemoryChange::Added(_) = change {
                regions.set(regions.get() + 1);
            }
        };
        let memory = self.host.watch_memory(news).unwrap();
        self.state.with(|state| (state.watch, state.memory) = (Some(watch), Some(memory)));
    }

    fn create(&self, params: Params, token: OpToken) {
        token.run(|op| {
            assert!(!params.panic, "told to panic");
            let (host, name) = (op.host(), params.name.clone());
            let removed = move |event: &BaseEvent| {
                if let (BaseEvent::Remove { .. }, Some(id)) = (event, host.registered(&name)) {
                    host.unregister(id, Reason::BASE_REMOVED).unwrap();
                }
            };
            let base = self.host.open(&params.base, Access::Write, removed)?;
            base.claim(Claim::ExclusiveWrite)?;
            let spec = BdevSpec::over(&params.name, base.opened_info())
                .product("Probe")
                .alias(format!("{}-alias", params.name));
            op.register(spec, Hold { base, delay_ns: params.delay_us.as_ns(), params: params.clone() })?;
            if self.state.with(|state| std::mem::take(&mut state.fail_next)) {
                return Err(Error::io("told to fail after registering"));
            }
            self.creates.add(1);
            Ok(params.name)
        });
    }

    fn update(&self, name: &str, params: Params, token: OpToken) {
        token.run(|op| {
            let device = op.host().bdev::<Hold>(name).ok_or_else(|| Error::not_found(name))?;
            let id = op.host().registered(name).ok_or_else(|| Error::not_found(name))?;
            assert_eq!(device.params.name, params.name);
            op.host().publish(id, Publish::Degraded, Reason::REQUESTED, "updated")
        });
    }

    fn examine_disk(&self, bdev: &Examined, token: ExamineToken) {
        let info: BdevInfo = bdev.info(&self.host).unwrap();
        let seen = format!("{}:{}", bdev.name, info.limits.block_size);
        self.state.with(|state| state.examined.push(seen));
        // Answers later, as one does who reads first.
        let later = self.host.timer(Duration::from_millis(1), move || token.not_mine());
        later.unwrap().detach();
    }

    fn hotplug(&self, event: &Hotplug<'_>) {
        let heard = format!("{:?} {} {}", event.change, event.subsystem, event.id);
        self.state.with(|state| state.heard.push(heard));
    }
}

impl Probe {
    fn delete(&self, name: &str, token: OpToken) {
        token.run(|op| {
            let id = op.host().registered(name).ok_or_else(|| Error::not_found(name))?;
            op.host().unregister(id, Reason::REQUESTED)
        });
    }

    /// Timer, offload, each reactor, poller, alarm, notification, in a chain.
    fn services(&self, _: NoParams, token: OpToken) {
        let host = self.host;
        host.notify("probe", "started").unwrap();
        let cancelled = host.timer(Duration::from_millis(1), || panic!("cancelled")).unwrap();
        drop(cancelled);
        let turns = Rc::new(Cell::new(0));
        let count = Rc::clone(&turns);
        let poller = host
            .poller("probe", 100, move || {
                count.set(count.get() + 1);
                Poll::Busy
            })
            .unwrap();
        self.state.with(|state| state.poller = Some(poller));
        let start = host.now_ns();
        let chain = host.timer(Duration::from_millis(10), move || {
            let work = || (1..=10_u64).product::<u64>();
            host.offload(work, move |product| {
                let visited = Arc::new(AtomicU32::new(0));
                let count = Arc::clone(&visited);
                let visit = move |reactor: Reactor| {
                    assert_eq!(host.reactor(), Some(reactor));
                    let buffer = host.buffer(5000).unwrap();
                    assert_eq!(buffer.len(), 5000);
                    count.fetch_add(1, Ordering::Relaxed);
                };
                host.each_reactor(visit, move || {
                    assert!(host.is_control());
                    let pollers =
                        Probe::with(|probe| probe.state.with(|state| state.poller.take().is_some()));
                    assert_eq!(pollers, Some(true));
                    token.reply(&(
                        product.unwrap(),
                        visited.load(Ordering::Relaxed),
                        turns.get() > 10,
                        host.now_ns() - start >= 10_000_000,
                    ));
                })
                .unwrap();
            })
            .unwrap();
        });
        chain.unwrap().detach();
    }

    /// A socket that is written to by a worker wakes a watch; a poller sleeps meanwhile.
    fn descriptors(&self, _: NoParams, token: OpToken) {
        const EPOLLIN: u32 = 1;
        let host = self.host;
        let (mine, mut theirs) = UnixStream::pair().unwrap();
        let poller = host.wakeable_poller("probe", 0, || Poll::Idle, || true).unwrap();
        poller.pause();
        poller.resume();
        let token = Cell::new(Some(token));
        let mut socket = mine.try_clone().unwrap();
        let ready = move |events| {
            let mut text = [0; 5];
            socket.read_exact(&mut text).unwrap();
            // Ends the watch from inside its own closure.
            drop(Probe::with(|probe| probe.state.with(|state| state.fd.take())));
            if let Some(token) = token.take() {
                token.reply(&(events & EPOLLIN, String::from_utf8_lossy(&text)));
            }
        };
        let watch = host.watch_fd(&mine, 0, ready).unwrap();
        watch.modify(EPOLLIN).unwrap();
        self.state.with(|state| state.fd = Some((watch, mine, poller)));
        host.offload(move || theirs.write_all(b"hello"), |written| written.unwrap().unwrap()).unwrap();
    }

    /// Writes the next generation, reads it back.
    fn superblock(&self, params: SuperblockParams, token: OpToken) {
        let format = SuperblockFormat { magic: *b"PROBE\0\0\x01", slot_bytes: 5000 };
        let base = match self.host.open(&params.base, Access::Write, |_| {}) {
            Ok(base) => base,
            Err(error) => return token.fail(error),
        };
        format.read(&base.clone(), move |old| {
            let old = match old {
                Ok(old) => old,
                Err(error) => return token.fail(error),
            };
            let generation = old.map_or(1, |old| old.generation + 1);
            let next = Superblock { generation, payload: format!("generation {generation}").into_bytes() };
            format.write(&base.clone(), &next, move |written| {
                if let Err(error) = written {
                    return token.fail(error);
                }
                format.read(&base.clone(), move |now| {
                    drop(base);
                    let now = now.unwrap().unwrap();
                    token.reply(&(now.generation, String::from_utf8(now.payload).unwrap()));
                });
            });
        });
    }
}

#[derive(serde::Deserialize)]
struct SuperblockParams {
    base: String,
}

struct Hold {
    base: Descriptor,
    delay_ns: u64,
    params: Params,
}

impl Bdev for Hold {
    type Channel = HoldChannel;

    fn channel(&self, reactor: Reactor) -> Result<Rc<HoldChannel>, Error> {
        if self.params.name == "refuses" {
            panic!("no channel on {:?}", reactor.index());
        }
        let base = self.base.channel()?;
        let host = self.base.host();
        Ok(Rc::new_cyclic(|me: &std::rc::Weak<HoldChannel>| {
            let me = me.clone();
            let ring = move || {
                if let Some(channel) = me.upgrade() {
                    channel.ring();
                }
            };
            HoldChannel {
                base,
                host,
                delay_ns: self.delay_ns,
                queue: IoQueue::new(),
                alarm: host.alarm(ring),
            }
        }))
    }

    fn dump(&self) -> serde_json::Value {
        serde_json::json!({ "base": self.base.name() })
    }

    fn config(&self) -> Option<serde_json::Value> {
        serde_json::to_value(&self.params).ok()
    }
}

struct HoldChannel {
    base: BaseChannel,
    host: Host,
    delay_ns: u64,
    queue: IoQueue<HoldChannel>,
    alarm: Alarm,
}

impl HoldChannel {
    fn ring(&self) {
        let now = self.host.now_ns();
        while let Some(io) = self.queue.pop_front_if(|due| *due <= now) {
            io.pass(&self.base);
        }
        if let Some(due) = self.queue.front(|due| *due) {
            self.alarm.set_ns(due - now).unwrap();
        }
    }
}

impl Channel for HoldChannel {
    type PerIo = u64;

    fn submit(&self, mut io: Io<Self>) {
        if self.delay_ns == 0 || io.op() == BdevOp::Reset {
            return io.pass(&self.base);
        }
        *io.context_mut() = self.host.now_ns() + self.delay_ns;
        self.queue.push_back(io);
        if !self.alarm.is_set() {
            self.alarm.set_ns(self.delay_ns).unwrap();
        }
    }

    fn base(&self) -> Option<&BaseChannel> {
        Some(&self.base)
    }

    fn abort(&self, victim: Victim) -> bool {
        match self.queue.remove(victim) {
            Some(io) => {
                io.complete(IoStatus::ABORTED);
                true
            }
            None => victim.abort_child::<Self>(&self.base),
        }
    }
}

fn loaded(seed: u64) -> (FakeHost, tenon_testkit::ModuleId) {
    let host = FakeHost::new(seed);
    let module = host.load(plugin, "{}").unwrap();
    (host, module)
}

const CREATE: &str = r#"{"name": "d0", "base": "b0", "delay_us": "2ms"}"#;

#[test]
fn a_stacked_device_lives_and_dies_with_its_base() {
    let (host, module) = loaded(1);
    let base = host.add_base(BaseSpec::new("b0", 512, 1024));
    assert_eq!(host.create(module, CREATE).unwrap(), ["d0"]);
    assert_eq!(host.metric("probe", "creates"), Some(1));
    assert_eq!(host.driver_specific("d0").unwrap(), r#"{"base":"b0"}"#);
    assert!(host.config("d0").unwrap().contains(r#""delay_us":2000"#));
    let consumer = host.open("d0", tenon_testkit::Access::Write).unwrap();
    let channel = consumer.channel(0).unwrap();
    let start = host.now_ns();
    let data: Vec<u8> = (0..1024).map(|at| at as u8).collect();
    let write = host.wait(&channel.submit(Request::write(4, 2, data.clone())));
    assert!(write.status.is_success());
    assert!(host.now_ns() - start >= 2_000_000, "held for two milliseconds");
    assert_eq!(base.bytes(4, 2), data);
    assert_eq!(host.wait(&channel.submit(Request::read(4, 2))).data, data);

    let held = channel.submit(Request::read(0, 1));
    assert_eq!(channel.abort(&held), 0);
    assert_eq!(host.wait(&held).status, IoStatus::ABORTED);
    assert_eq!(channel.abort(&held), -2);

    host.update("d0", CREATE).unwrap();
    host.settle();
    assert_eq!(consumer.events()[0].kind, tenon_sdk::abi::BdevEventKind::DEGRADED);

    base.remove();
    assert!(host.run_until(Duration::from_secs(1), || consumer.is_removed()));
    channel.put();
    consumer.close();
    assert!(host.run_until(Duration::from_secs(1), || base.is_gone()));
    assert!(host.devices().is_empty());
}

#[test]
fn a_failed_create_leaves_nothing_and_can_be_repeated() {
    let (host, module) = loaded(2);
    let missing = host.create(module, CREATE).unwrap_err();
    assert_eq!((missing.code, missing.object.as_str()), (-19, "b0"));
    host.add_base(BaseSpec::new("b0", 512, 1024));
    let wrong = host.create(module, r#"{"name": "b0", "base": "b0"}"#).unwrap_err();
    assert_eq!((wrong.code, wrong.reason.as_str()), (-22, "base b0 is the device itself"));
    let unknown = host.create(module, r#"{"name": "d0", "base": "b0", "dealy_us": 1}"#).unwrap_err();
    assert!(unknown.reason.starts_with("unknown field `dealy_us`"), "{unknown:?}");
    let panicked = host.create(module, r#"{"name": "d0", "base": "b0", "panic": true}"#).unwrap_err();
    assert_eq!(panicked.code, -5);
    assert!(panicked.cause.starts_with("told to panic"), "{panicked:?}");
    host.on(tenon_testkit::Place::Control, || {
        Probe::with(|probe| probe.state.with(|state| state.fail_next = true))
    })
    .unwrap();
    assert_eq!(host.create(module, CREATE).unwrap_err().reason, "told to fail after registering");
    assert_eq!(host.devices(), ["b0"]);
    assert_eq!(host.create(module, CREATE).unwrap(), ["d0"]);
    assert_eq!(host.create(module, CREATE).unwrap_err().code, -1, "the base is claimed");
    host.delete("d0").unwrap();
    assert_eq!(host.devices(), ["b0"]);
}

#[test]
fn services_work_together() {
    let (host, _) = loaded(3);
    assert_eq!(host.rpc("probe_services", "{}").unwrap(), "[3628800,2,true,true]");
    assert_eq!(host.notifications(), [("probe".to_owned(), "started".to_owned())]);
    assert!(host.logs().iter().any(|line| line.message == "probe starts answer=42" && line.level == 2));
    assert_eq!(host.watches(), [("file".to_owned(), "/tmp/probe".to_owned())]);
    host.hotplug("file", "/tmp/probe", tenon_sdk::abi::HotplugKind::ADD, "");
    host.settle();
    host.add_base(BaseSpec::new("b0", 4096, 64));
    host.on(tenon_testkit::Place::Control, || {
        Probe::with(|probe| {
            probe.state.with(|state| {
                assert_eq!(state.heard, ["Added file /tmp/probe"]);
                assert_eq!(state.examined, ["b0:4096"]);
                assert!(state.regions.get() > 0);
            });
        })
    })
    .unwrap();
}

#[test]
fn a_watch_may_end_itself() {
    let host = FakeHost::builder().seed(11).real_io(true).build();
    host.load(plugin, "{}").unwrap();
    assert_eq!(host.rpc("probe_fd", "{}").unwrap(), r#"[1,"hello"]"#);
}

#[test]
fn the_module_is_out_of_reach_off_the_control_thread() {
    let (host, _) = loaded(4);
    assert!(host.on(tenon_testkit::Place::Data(0), || Probe::with(|_| ())).is_none());
    assert!(host.on(tenon_testkit::Place::Control, || Probe::with(|_| ())).is_some());
}

#[test]
fn a_panic_in_a_callback_is_an_answer() {
    let (host, _) = loaded(5);
    let error = host.rpc("probe_panic", "{}").unwrap_err();
    assert_eq!(error.code, -5);
    assert!(error.cause.starts_with("on purpose at "), "{error:?}");
    assert_eq!(host.rpc("probe_services", "{}").unwrap(), "[3628800,2,true,true]");
}

#[test]
fn a_failed_init_says_why() {
    let host = FakeHost::new(6);
    let error = host.load(plugin, r#"{"fail": true}"#).unwrap_err().to_string();
    assert!(error.contains("probe: told to fail"), "{error}");
    host.load(plugin, "{}").unwrap();
}

#[test]
fn a_channel_that_panics_fails_to_open() {
    let (host, module) = loaded(7);
    host.add_base(BaseSpec::new("b0", 512, 64));
    host.create(module, r#"{"name": "refuses", "base": "b0"}"#).unwrap();
    let consumer = host.open("refuses", tenon_testkit::Access::Write).unwrap();
    assert!(consumer.channel(0).is_none());
    consumer.close();
}

#[test]
fn superblocks_alternate_and_survive_a_torn_write() {
    let (host, _) = loaded(8);
    let base = host.add_base(BaseSpec::new("b0", 512, 64));
    for generation in 1..=3_u64 {
        let answer = host.rpc("probe_superblock", r#"{"base": "b0"}"#).unwrap();
        assert_eq!(answer, format!(r#"[{generation},"generation {generation}"]"#));
    }
    // Generation 3 is in the second slot; tear it, and 2 counts again.
    base.write_bytes(10, &[0xff; 512]);
    assert_eq!(host.rpc("probe_superblock", r#"{"base": "b0"}"#).unwrap(), r#"[3,"generation 3"]"#);
    base.set_plan(FaultPlan::none().fail_op(tenon_sdk::abi::Op::WRITE, IoStatus::IO_ERROR));
    let error = host.rpc("probe_superblock", r#"{"base": "b0"}"#).unwrap_err();
    assert_eq!((error.object.as_str(), error.reason.as_str()), ("b0", "cannot write the superblock"));
}

#[test]
fn the_schema_names_both_tables() {
    let (host, module) = loaded(9);
    let schema: serde_json::Value = serde_json::from_str(&host.schema(module).unwrap()).unwrap();
    let text = schema.to_string();
    assert_eq!(schema["$schema"], "https://json-schema.org/draft/2020-12/schema");
    assert!(schema["properties"]["bdev"].is_object() && schema["properties"]["module"].is_object());
    for word in ["delay_us", "microseconds", "additionalProperties", "fail"] {
        assert!(text.contains(word), "{word} in {text}");
    }
}

#[test]
fn a_forgotten_answer_is_given_for_the_module() {
    // The answer itself; in debug builds an assertion fails as well, which the guard turns into a log line.
    let (host, _) = loaded(10);
    host.on(tenon_testkit::Place::Control, || {
        Probe::with(|probe| {
            probe.host.rpc("probe_forget", |_: &Probe, _: NoParams, token| drop(token)).unwrap()
        })
    })
    .unwrap();
    let error = host.rpc("probe_forget", "{}").unwrap_err();
    assert_eq!(
        (error.code, error.reason.as_str()),
        (-5, "the module dropped the operation without an answer")
    );
    assert!(!host.violations().iter().any(|found| found.fault == Fault::TokenForgotten));
}
