//! Making and ending instances of transports.
//!
//! An instance is made by its plugin, gets a poll group on every data reactor,
//! and ends when no listener uses it and its connections are gone.
// UNSAFETY: calls the plugin's table with raw pointers, as the contract has it.

use std::cell::{Cell, RefCell};
use std::ffi::c_void;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tenon_abi::transport::TransportV1;
use tenon_abi::transport::target::HostTransport;
use tenon_abi::{JsonSink, OpToken, Str, errno};
use tenon_bdev::OpError;

use crate::error::TargetError;
use crate::queue::table::TARGET_API;
use crate::report::append;
use crate::target::Target;
use crate::transport::TransportShared;

/// One instance of a transport.
pub(crate) struct Instance {
    pub shared: Arc<TransportShared>,
    /// What the plugin was given: one strong count of `shared`.
    host: *mut HostTransport,
    keep_alive_rules: Cell<KeepAliveRules>,
}

/// What keep-alive time-outs the controllers of a transport take: `kas` and `min_kato` of its options, which any
/// transport may have.
#[derive(Clone, Copy, Debug)]
pub(crate) struct KeepAliveRules {
    /// Time-outs are rounded up to a multiple of it.
    pub granularity_100ms: u16,
    pub min_ms: u32,
}

impl KeepAliveRules {
    const DEFAULT: Self = Self { granularity_100ms: 1, min_ms: 0 };

    /// Of a transport with these options.
    fn of(options: Option<Value>) -> Self {
        let number = |key: &str| options.as_ref()?.get(key)?.as_u64();
        let granularity = number("kas").and_then(|kas| u16::try_from(kas).ok()).filter(|kas| *kas > 0);
        let min = number("min_kato").and_then(|min_ms| u32::try_from(min_ms).ok());
        Self {
            granularity_100ms: granularity.unwrap_or(Self::DEFAULT.granularity_100ms),
            min_ms: min.unwrap_or(Self::DEFAULT.min_ms),
        }
    }
}

/// Called with the end of an operation.
pub(crate) type Done<T> = Box<dyn FnOnce(Result<T, TargetError>)>;

/// What a transport answered, or that its deadline has passed.
type Answered = Box<dyn FnOnce(Result<String, OpError>)>;

impl Target {
    /// Creates the transport whose plugin is named `transport_<trtype>`, loading it if needed.
    pub fn create_transport(
        &self,
        trtype: &str,
        options: &Value,
        done: impl FnOnce(Result<(), TargetError>) + 'static,
    ) {
        let (target, name, options) = (self.clone(), trtype.to_owned(), options.clone());
        let plugin = format!("transport_{}", trtype.to_ascii_lowercase());
        self.inner.core.modules().ensure(&plugin, "{}", move |loaded| {
            let refused = |reason: String| TargetError::Refused {
                object: format!("transport {name}"),
                source: OpError::new(errno::ENODEV, name.clone(), reason),
            };
            match loaded {
                Err(error) => done(Err(refused(error.to_string()))),
                Ok(module) => {
                    let table: *const TransportV1 =
                        module.query(tenon_abi::transport::QUERY_TRANSPORT, 1).cast();
                    if table.is_null() {
                        return done(Err(refused("its module offers no transport".to_owned())));
                    }
                    // SAFETY: a module's answer to this query is its static transport table.
                    unsafe { target.create_transport_of(table, &options, done) };
                }
            }
        });
    }

    /// Creates a transport from its table.
    ///
    /// # Safety
    /// `table` is a static table that keeps the contract.
    pub unsafe fn create_transport_of(
        &self,
        table: *const TransportV1,
        options: &Value,
        done: impl FnOnce(Result<(), TargetError>) + 'static,
    ) {
        let done: Done<()> = Box::new(done);
        let number = self.next_number();
        // SAFETY: as the caller promises.
        let shared = unsafe {
            TransportShared::new(
                number,
                table,
                self.inner.directory.clone(),
                self.inner.options.max_connections,
                self.inner.psks.clone(),
            )
        };
        let Some(shared) = shared.map(Arc::new) else {
            let error = TargetError::invalid("transport", "it has no target role");
            return self.later(move || done(Err(error)));
        };
        let name = shared.name.clone();
        let checked = self.check_running().and_then(|()| match self.instance_named(&name) {
            Some(_) => Err(TargetError::TransportExists(name.clone())),
            None => Ok(()),
        });
        if let Err(error) = checked {
            return self.later(move || done(Err(error)));
        }
        let host = Arc::into_raw(shared.clone()).cast_mut().cast::<HostTransport>();
        let keep_alive_rules = Cell::new(KeepAliveRules::DEFAULT);
        let instance = Rc::new(Instance { shared: shared.clone(), host, keep_alive_rules });
        self.inner.transports.borrow_mut().insert(number, instance);
        let target = self.clone();
        let text = options.to_string();
        let created = Box::new(move |result: Result<String, OpError>| match result {
            Ok(_) => {
                let rules = KeepAliveRules::of(target.transport_options(&name));
                if let Some(instance) = target.inner.transports.borrow().get(&number) {
                    instance.keep_alive_rules.set(rules);
                }
                target.make_poll_groups(number, done);
            }
            Err(source) => {
                target.forget_instance(number);
                done(Err(TargetError::Refused { object: format!("transport {name}"), source }));
            }
        });
        self.with_token(created, |token| {
            // SAFETY: `host` and the API stay valid until `destroy` is answered; the text during the call.
            unsafe {
                (shared.ops().create)(
                    host,
                    &raw const TARGET_API,
                    Str::new(&text),
                    token,
                    shared.context_slot(),
                );
            }
        });
    }

    /// Ends a transport that no listener uses; its connections are closed.
    pub fn delete_transport(&self, trtype: &str, done: impl FnOnce(Result<(), TargetError>) + 'static) {
        let Some(instance) = self.instance_named(trtype) else {
            let error = TargetError::NoTransport(trtype.to_owned());
            return self.later(move || done(Err(error)));
        };
        let number = instance.shared.number;
        let is_busy = self.inner.listeners.borrow().values().any(|listener| listener.transport == number);
        if is_busy {
            let error = TargetError::TransportBusy(trtype.to_owned());
            return self.later(move || done(Err(error)));
        }
        self.end_instance(instance, move || done(Ok(())));
    }

    /// Names of the transports there are.
    pub fn transports(&self) -> Vec<String> {
        self.inner.transports.borrow().values().map(|instance| instance.shared.name.clone()).collect()
    }

    /// The effective options of a transport, as it tells them.
    pub fn transport_options(&self, trtype: &str) -> Option<Value> {
        let instance = self.instance_named(trtype)?;
        let mut text = String::new();
        let sink = JsonSink { write: append, arg: (&raw mut text).cast() };
        // SAFETY: the context is the plugin's; the sink and its text live until the call returns.
        unsafe { (instance.shared.ops().options_json)(instance.shared.context(), &sink) };
        serde_json::from_str(&text).ok()
    }

    pub(crate) fn keep_alive_rules(&self, transport: u64) -> KeepAliveRules {
        let transports = self.inner.transports.borrow();
        transports.get(&transport).map_or(KeepAliveRules::DEFAULT, |instance| instance.keep_alive_rules.get())
    }

    pub(crate) fn end_transports(&self, done: impl FnOnce() + 'static) {
        let next = self.inner.transports.borrow().values().next().cloned();
        let Some(instance) = next else { return done() };
        let target = self.clone();
        self.end_instance(instance, move || target.end_transports(done));
    }

    pub(crate) fn instance_named(&self, trtype: &str) -> Option<Rc<Instance>> {
        let transports = self.inner.transports.borrow();
        transports.values().find(|instance| instance.shared.name.eq_ignore_ascii_case(trtype)).cloned()
    }

    /// Calls `start` with a token whose answer goes to `done`, at the latest after the transports' deadline.
    pub(crate) fn with_token(&self, done: Answered, start: impl FnOnce(OpToken)) {
        let done = Rc::new(RefCell::new(Some(done)));
        let timer = Rc::new(RefCell::new(None));
        let (answered, armed) = (done.clone(), timer.clone());
        let token = self.inner.core.owe_answer(move |result| {
            if let Some(timer) = armed.take() {
                tenon_reactor::current().cancel_timer(timer);
            }
            if let Some(done) = answered.take() {
                done(result);
            }
        });
        let fail = move |code, reason: &str| {
            if let Some(done) = done.take() {
                done(Err(OpError::new(code, "", reason)));
            }
        };
        let Some(token) = token else {
            return self.later(move || fail(errno::ENOSPC, "too much is under way"));
        };
        let target = self.clone();
        let deadline = self.inner.options.transport_deadline;
        let set = tenon_reactor::current().set_timer(deadline, move || {
            target.inner.core.forget_answer(token);
            fail(errno::ETIMEDOUT, "the transport has not answered in time");
        });
        *timer.borrow_mut() = set.ok();
        start(token);
    }

    fn make_poll_groups(&self, number: u64, done: Done<()>) {
        let Some(instance) = self.inner.transports.borrow().get(&number).cloned() else { return };
        let (target, shared) = (self.clone(), instance.shared.clone());
        self.ask(
            move |side| {
                let mut group: *mut c_void = std::ptr::null_mut();
                // SAFETY: the context is the plugin's, alive until it is destroyed.
                let code = unsafe { (shared.ops().poll_group_create)(shared.context(), &mut group) };
                if code == 0 {
                    side.group_added(shared.number, group);
                }
                code
            },
            move |codes| match codes.into_iter().find(|code| *code != 0) {
                None => {
                    log::info!("transport created trtype={}", instance.shared.name);
                    done(Ok(()));
                }
                Some(code) => {
                    let object = format!("transport {}", instance.shared.name);
                    let source = OpError::new(code, "", "a poll group cannot be made");
                    target.end_instance(instance, move || done(Err(TargetError::Refused { object, source })));
                }
            },
        );
    }

    fn end_instance(&self, instance: Rc<Instance>, done: impl FnOnce() + 'static) {
        let (target, number) = (self.clone(), instance.shared.number);
        self.ask(
            move |side| {
                let is_ours = |queue: &crate::queue::QueuePair| queue.transport.number == number;
                side.close_queues(is_ours, tenon_abi::transport::CloseReason::LOCAL);
            },
            move |_| target.end_when_unused(instance, 0, Box::new(done)),
        );
    }

    fn end_when_unused(&self, instance: Rc<Instance>, attempts: u32, done: Box<dyn FnOnce()>) {
        let target = self.clone();
        if instance.shared.connections() > 0 && attempts < MAX_WAITS {
            let set = tenon_reactor::current()
                .set_timer(WAIT_STEP, move || target.end_when_unused(instance, attempts + 1, done));
            if set.is_err() {
                log::error!("transport is not ended: no timer is left");
            }
            return;
        }
        if instance.shared.connections() > 0 {
            // Its memory may still be used, so it stays: better a leak than a dangling pointer.
            log::error!("transport keeps connections and is left behind trtype={}", instance.shared.name);
            self.inner.transports.borrow_mut().remove(&instance.shared.number);
            return done();
        }
        let shared = instance.shared.clone();
        self.ask(
            move |side| {
                if let Some(group) = side.group_removed(shared.number) {
                    // SAFETY: the group is this reactor's, and its connections are gone.
                    unsafe { (shared.ops().poll_group_destroy)(group) };
                }
            },
            move |_| {
                let (ended, number) = (target.clone(), instance.shared.number);
                let destroyed = Box::new(move |result: Result<String, OpError>| {
                    match result {
                        Ok(_) => ended.forget_instance(number),
                        Err(error) => {
                            log::error!("transport did not end and is left behind error={error}");
                            ended.inner.transports.borrow_mut().remove(&number);
                        }
                    }
                    done();
                });
                target.with_token(destroyed, |token| {
                    // SAFETY: listeners, groups and connections are gone.
                    unsafe { (instance.shared.ops().destroy)(instance.shared.context(), token) };
                });
            },
        );
    }

    fn forget_instance(&self, number: u64) {
        let instance = self.inner.transports.borrow_mut().remove(&number);
        if let Some(instance) = instance {
            log::info!("transport deleted trtype={}", instance.shared.name);
            // SAFETY: the count was given to the plugin, which has no use for it after its answer.
            drop(unsafe { Arc::from_raw(instance.host.cast::<TransportShared>().cast_const()) });
        }
    }
}

/// How often, and how many times, it is looked whether connections are gone: a minute.
const WAIT_STEP: Duration = Duration::from_millis(10);
const MAX_WAITS: u32 = 6000;
