//! The target: owner of everything on the control reactor, and its public face.
//!
//! Objects are in files of their own, which add their operations to [`Target`].
//! Here are the start and the end, and the ways between the control reactor and
//! the others: questions to all of them, words to one queue, capsules from one.
//!
//! Every operation that is told to other reactors ends with a `done` on the
//! control reactor, once, never from inside the call.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;
use std::rc::{Rc, Weak};
use std::sync::Arc;

use tenon_bdev::{Core, Descriptor};
use tenon_reactor::Directory;

use crate::auth::psk::PskDirectory;
use crate::auth::{AuthenticationOptions, QueueAuthentication};
use crate::config::{DiscoveryFilter, Referral, TargetOptions};
use crate::error::TargetError;
use crate::jobs::Jobs;
use crate::keyring::Keyring;
use crate::listener::TargetListener;
use crate::mdns::Responder;
use crate::post::post;
use crate::queue::QueuePair;
use crate::queue::interface::{Answer, Capsule, QueueKey, SubsystemId};
use crate::queue::side::{ReactorCounts, ReactorSide};
use crate::subsystem::Subsystem;
use crate::transport_table::{TransportUsers, offer_tables};
use crate::transports::Instance;

/// The NVMe-oF target. Lives on the control reactor; cloning it is cheap.
#[derive(Clone)]
pub struct Target {
    pub(crate) inner: Rc<Inner>,
}

pub(crate) struct Inner {
    pub options: TargetOptions,
    pub core: Core,
    pub directory: Directory,
    pub subsystems: RefCell<BTreeMap<SubsystemId, Rc<Subsystem>>>,
    pub transports: RefCell<BTreeMap<u64, Rc<Instance>>>,
    pub listeners: RefCell<BTreeMap<u64, TargetListener>>,
    pub referrals: RefCell<Vec<Referral>>,
    pub discovery_generation: Cell<u64>,
    pub discovery_filter: Cell<DiscoveryFilter>,
    pub max_subsystems: Cell<usize>,
    pub retry_delays_100ms: Cell<[u16; 3]>,
    /// Queues by their connection, since their Connect.
    pub queues: RefCell<HashMap<QueueKey, QueueRecord>>,
    /// Devices of namespaces, open until no reactor uses them; with who waits for that.
    pub descriptors: RefCell<HashMap<u64, OpenDevice>>,
    questions: RefCell<HashMap<u64, Question>>,
    numbers: Cell<u64>,
    pub is_shutting_down: Cell<bool>,
    pub jobs: Jobs,
    /// Files of reservations that are being written.
    pub reservation_writes: RefCell<BTreeSet<PathBuf>>,
    pub keyring: RefCell<Keyring>,
    pub authentication: RefCell<AuthenticationOptions>,
    /// Of queues that have to authenticate, or tried.
    pub authentications: RefCell<HashMap<QueueKey, Rc<QueueAuthentication>>>,
    pub psks: Arc<PskDirectory>,
    pub mdns: RefCell<Option<Responder>>,
    /// Modules that use transports in the initiator role.
    pub transport_users: RefCell<TransportUsers>,
}

/// A device that a namespace opened.
pub(crate) struct OpenDevice {
    pub descriptor: Option<Descriptor>,
    pub closed: Option<Box<dyn FnOnce()>>,
}

/// A queue that belongs to a controller.
#[derive(Clone, Copy)]
pub(crate) struct QueueRecord {
    pub subsystem: SubsystemId,
    pub cntlid: u16,
    pub qid: u16,
}

/// What a reactor returned, of the type the question is about.
type AnyAnswer = Box<dyn Any + Send>;

/// Something every data reactor was asked.
struct Question {
    left: usize,
    answers: Vec<AnyAnswer>,
    done: Box<dyn FnOnce(Vec<AnyAnswer>)>,
}

/// What the target has, counted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TargetCounts {
    /// Subsystems, the discovery subsystem not counted.
    pub subsystems: usize,
    /// Namespaces.
    pub namespaces: usize,
    /// Controllers.
    pub controllers: usize,
    /// Queues of controllers.
    pub queues: usize,
    /// Devices open.
    pub descriptors: usize,
    /// Addresses listened on.
    pub listeners: usize,
    /// Transports.
    pub transports: usize,
    /// Questions to reactors under way.
    pub questions: usize,
    /// Queues that have to authenticate, or tried.
    pub authentications: usize,
    /// Work with the workers, or waiting for them.
    pub jobs: usize,
}

thread_local! {
    static TARGET: RefCell<Weak<Inner>> = const { RefCell::new(Weak::new()) };
}

impl Target {
    /// Starts the target on the control reactor; what follows may be called at once.
    ///
    /// # Panics
    /// Away from the control reactor, or without a data reactor: faults of the caller.
    pub fn start(options: TargetOptions, core: Core) -> Target {
        let local = tenon_reactor::current();
        assert!(local.is_control(), "the target starts on the control reactor, not on {}", local.name());
        let directory = local.directory().clone();
        assert!(!directory.data().is_empty(), "the target needs a data reactor");
        let target = Target {
            inner: Rc::new(Inner {
                core,
                subsystems: RefCell::default(),
                transports: RefCell::default(),
                listeners: RefCell::default(),
                referrals: RefCell::default(),
                discovery_generation: Cell::new(0),
                discovery_filter: Cell::default(),
                max_subsystems: Cell::new(options.max_subsystems),
                retry_delays_100ms: Cell::new(options.retry_delays_100ms),
                queues: RefCell::default(),
                descriptors: RefCell::default(),
                questions: RefCell::default(),
                numbers: Cell::new(0),
                is_shutting_down: Cell::new(false),
                jobs: Jobs::default(),
                reservation_writes: RefCell::default(),
                keyring: RefCell::default(),
                authentication: RefCell::default(),
                authentications: RefCell::default(),
                psks: Arc::default(),
                mdns: RefCell::default(),
                transport_users: RefCell::default(),
                directory,
                options,
            }),
        };
        TARGET.with(|current| *current.borrow_mut() = Rc::downgrade(&target.inner));
        offer_tables();
        for reactor in target.inner.directory.data() {
            let options = target.inner.options.clone();
            post(reactor, move || ReactorSide::install(options));
        }
        target.make_discovery_subsystem();
        target
    }

    /// The target of the calling control reactor.
    pub fn current() -> Option<Target> {
        TARGET.with(|current| current.borrow().upgrade()).map(|inner| Target { inner })
    }

    /// The options it was started with.
    pub fn options(&self) -> &TargetOptions {
        &self.inner.options
    }

    /// What there is, counted.
    pub fn counts(&self) -> TargetCounts {
        let subsystems = self.inner.subsystems.borrow();
        let nvm = || subsystems.values().filter(|subsystem| !subsystem.is_discovery);
        TargetCounts {
            subsystems: nvm().count(),
            namespaces: nvm().map(|subsystem| subsystem.namespaces.borrow().len()).sum(),
            controllers: subsystems.values().map(|subsystem| subsystem.controllers.borrow().len()).sum(),
            queues: self.inner.queues.borrow().len(),
            descriptors: self.inner.descriptors.borrow().len(),
            listeners: self.inner.listeners.borrow().len(),
            transports: self.inner.transports.borrow().len(),
            questions: self.inner.questions.borrow().len(),
            authentications: self.inner.authentications.borrow().len(),
            jobs: self.inner.jobs.count(),
        }
    }

    /// What each data reactor has, counted.
    pub fn reactor_counts(&self, done: impl FnOnce(Vec<ReactorCounts>) + 'static) {
        self.ask(|side| side.counts(), done);
    }

    /// Calls `done` when every data reactor has seen what it was told before.
    pub fn settled(&self, done: impl FnOnce() + 'static) {
        self.ask(|_| (), |_| done());
    }

    /// Most subsystems from now on; those there are stay.
    pub fn set_max_subsystems(&self, limit: usize) {
        self.inner.max_subsystems.set(limit);
    }

    /// Most subsystems.
    pub fn max_subsystems(&self) -> usize {
        self.inner.max_subsystems.get()
    }

    /// Command Retry Delay Times, in units of 100 ms, for hosts that identify a controller from now on.
    pub fn set_retry_delays(&self, delays_100ms: [u16; 3]) {
        self.inner.retry_delays_100ms.set(delays_100ms);
    }

    /// Command Retry Delay Times, in units of 100 ms.
    pub fn retry_delays(&self) -> [u16; 3] {
        self.inner.retry_delays_100ms.get()
    }

    /// Stops listening, then closes connections and deletes every subsystem and transport. The target does
    /// nothing afterwards.
    pub fn shutdown(&self, done: impl FnOnce() + 'static) {
        self.inner.is_shutting_down.set(true);
        let target = self.clone();
        // The network is told first. There may be nothing to take back.
        self.stop_mdns(move |_| target.stop_listening(done));
    }

    fn stop_listening(&self, done: impl FnOnce() + 'static) {
        let numbers: Vec<u64> = {
            let mut listeners = self.inner.listeners.borrow_mut();
            listeners.values_mut().for_each(|listener| listener.users.clear());
            listeners.keys().copied().collect()
        };
        let target = self.clone();
        self.leave_listeners(numbers, move || target.delete_all(done));
    }

    fn delete_all(&self, done: impl FnOnce() + 'static) {
        let names: Vec<String> = {
            let subsystems = self.inner.subsystems.borrow();
            subsystems.values().filter(|subsystem| !subsystem.is_discovery).map(|s| s.nqn.clone()).collect()
        };
        let target = self.clone();
        self.delete_each(names, move || target.end_discovery(done));
    }

    fn delete_each(&self, mut names: Vec<String>, done: impl FnOnce() + 'static) {
        let Some(name) = names.pop() else { return done() };
        let target = self.clone();
        self.delete_subsystem(&name.clone(), move |result| {
            if let Err(error) = result {
                log::warn!("subsystem is left at shutdown nqn={name} error={error}");
            }
            target.delete_each(names, done);
        });
    }

    fn end_discovery(&self, done: impl FnOnce() + 'static) {
        let target = self.clone();
        let after = move || {
            let ended = target.clone();
            target.end_transports(move || {
                let last = ended.clone();
                ended.ask(
                    |_| ReactorSide::uninstall(),
                    move |_| {
                        last.inner.subsystems.borrow_mut().clear();
                        done();
                    },
                );
            });
        };
        match self.discovery_subsystem() {
            Some(discovery) => self.close_controllers(&discovery, after),
            None => after(),
        }
    }

    pub(crate) fn next_number(&self) -> u64 {
        self.inner.numbers.set(self.inner.numbers.get() + 1);
        self.inner.numbers.get()
    }

    /// Runs `f` on every data reactor; `done` gets what each returned.
    pub(crate) fn ask<T: Send + 'static>(
        &self,
        f: impl Fn(&Rc<ReactorSide>) -> T + Send + Sync + 'static,
        done: impl FnOnce(Vec<T>) + 'static,
    ) {
        let number = self.next_number();
        let done = Box::new(move |answers: Vec<Box<dyn Any + Send>>| {
            done(
                answers
                    .into_iter()
                    .filter_map(|answer| answer.downcast().ok())
                    .map(|answer| *answer)
                    .collect(),
            );
        });
        let reactors = self.inner.directory.data();
        let question = Question { left: reactors.len(), answers: Vec::new(), done };
        self.inner.questions.borrow_mut().insert(number, question);
        let f = Arc::new(f);
        let control = self.inner.directory.control().clone();
        for reactor in reactors {
            let (f, control) = (f.clone(), control.clone());
            post(reactor, move || {
                let answer: Option<Box<dyn Any + Send>> =
                    ReactorSide::current().map(|side| Box::new(f(&side)) as Box<dyn Any + Send>);
                drop(f);
                post(&control, move || {
                    if let Some(target) = Target::current() {
                        target.answer_came(number, answer);
                    }
                });
            });
        }
    }

    fn answer_came(&self, number: u64, answer: Option<Box<dyn Any + Send>>) {
        let mut questions = self.inner.questions.borrow_mut();
        let Some(question) = questions.get_mut(&number) else { return };
        question.answers.extend(answer);
        question.left -= 1;
        if question.left > 0 {
            return;
        }
        let finished = questions.remove(&number);
        drop(questions);
        if let Some(question) = finished {
            (question.done)(question.answers);
        }
    }

    /// Runs `f` with a queue, on its reactor, if it is still there.
    pub(crate) fn tell_queue(&self, key: QueueKey, f: impl FnOnce(&QueuePair) + Send + 'static) {
        let Some(reactor) = self.inner.directory.get(key.reactor) else { return };
        post(reactor, move || {
            if let Some(side) = ReactorSide::current() {
                side.with_queue(key.number, f);
            }
        });
    }

    pub(crate) fn answer(&self, key: QueueKey, ticket: u64, answer: Answer) {
        self.tell_queue(key, move |queue| queue.answered(ticket, answer));
    }

    /// A queue forwards a command.
    pub(crate) fn capsule_came(&self, capsule: Capsule) {
        let (key, ticket) = (capsule.facts.key, capsule.ticket);
        if let Some(answer) = self.serve(capsule) {
            self.answer(key, ticket, answer);
        }
    }

    /// No reactor uses a device any more: it is closed.
    pub(crate) fn descriptor_unused(&self, number: u64) {
        let device = self.inner.descriptors.borrow_mut().remove(&number);
        let Some(mut device) = device else { return };
        drop(device.descriptor.take());
        if let Some(closed) = device.closed.take() {
            closed();
        }
    }

    /// Calls `done` later, on the control reactor, with no caller on the stack.
    pub(crate) fn later(&self, done: impl FnOnce() + 'static) {
        if tenon_reactor::current().defer(done).is_err() {
            log::error!("answer was lost: too much is deferred");
        }
    }

    pub(crate) fn check_running(&self) -> Result<(), TargetError> {
        if self.inner.is_shutting_down.get() { Err(TargetError::ShuttingDown) } else { Ok(()) }
    }
}
