//! A core on a simulation, and what tests do with it.
#![allow(dead_code, reason = "each test uses a part of it")]

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use serde_json::Value;
use tenon_bdev::{Answer, Core, CoreOptions, ObjectCounts, OpError, ShutdownReport};
use tenon_modules::{Catalog, Existing, InitOn};
use tenon_reactor::Simulation;

use crate::vendor;

/// A simulated host.
pub struct Host {
    simulation: RefCell<Simulation>,
    pub core: Core,
}

/// An answer that is to come; counts how often it came.
pub struct Pending<T> {
    answers: Rc<RefCell<Vec<T>>>,
}

impl<T> Clone for Pending<T> {
    fn clone(&self) -> Self {
        Self { answers: self.answers.clone() }
    }
}

impl<T: Clone + 'static> Pending<T> {
    pub fn new() -> Self {
        Self { answers: Rc::default() }
    }

    pub fn reply(&self) -> impl FnOnce(T) + 'static {
        let answers = self.answers.clone();
        move |answer| answers.borrow_mut().push(answer)
    }

    pub fn count(&self) -> usize {
        self.answers.borrow().len()
    }

    pub fn get(&self) -> Option<T> {
        self.answers.borrow().last().cloned()
    }
}

pub type Answered = Pending<Result<Answer, OpError>>;

impl Host {
    pub fn new(seed: u64) -> Host {
        Host::with(seed, |_| {})
    }

    pub fn with(seed: u64, change: impl FnOnce(&mut CoreOptions)) -> Host {
        vendor::reset();
        let mut simulation = Simulation::new(seed, 2);
        let mut options = CoreOptions::default();
        options.modules.init_on = InitOn::Offload;
        change(&mut options);
        let control = simulation.control();
        let core = simulation.on(&control, |_| Core::start(options, Catalog::empty()));
        Host { simulation: RefCell::new(simulation), core }
    }

    /// Runs on the control reactor.
    pub fn on<T>(&self, f: impl FnOnce(&Core) -> T) -> T {
        let mut simulation = self.simulation.borrow_mut();
        let control = simulation.control();
        simulation.on(&control, |_| f(&self.core))
    }

    /// Runs on a data reactor.
    pub fn on_data<T>(&self, n: usize, f: impl FnOnce() -> T) -> T {
        let mut simulation = self.simulation.borrow_mut();
        let data = simulation.data(n);
        simulation.on(&data, |_| f())
    }

    /// How often of 1000 a timer fires before messages that wait.
    pub fn stall(&self, permille: u32) {
        self.simulation.borrow_mut().set_stall_permille(permille);
    }

    pub fn advance(&self, time: Duration) {
        self.simulation.borrow_mut().advance(time);
    }

    pub fn run_until(&self, time: Duration, condition: impl FnMut() -> bool) -> bool {
        self.simulation.borrow_mut().run_until(time, condition)
    }

    /// A few steps only, so that what follows meets what is under way.
    pub fn steps(&self, count: usize) {
        let mut simulation = self.simulation.borrow_mut();
        for _ in 0..count {
            simulation.step();
        }
    }

    pub fn settle(&self) {
        assert!(self.simulation.borrow_mut().run_until_idle(1_000_000), "the host does not come to rest");
    }

    /// Runs until `pending` is answered.
    #[track_caller]
    pub fn wait<T: Clone + 'static>(&self, pending: &Pending<T>) -> T {
        self.run_until(Duration::from_secs(600), || pending.count() > 0);
        self.settle();
        assert_eq!(pending.count(), 1, "one answer");
        pending.get().expect("counted above")
    }

    pub fn load(&self, module: usize) {
        let pending = Pending::new();
        let reply = pending.reply();
        self.on(|core| {
            // SAFETY: the descriptor is static and obeys the contract.
            unsafe {
                core.module_load_static(
                    vendor::descriptor(module),
                    &Value::Null,
                    Existing::Refuse,
                    move |result| {
                        reply(result.map(|_| ()));
                    },
                );
            }
        });
        self.wait(&pending).expect("the module loads");
    }

    pub fn start_create(&self, module: usize, params: Value) -> Answered {
        let pending = Answered::new();
        self.on(|core| core.create(&format!("fake{module}"), &params, pending.reply()));
        pending
    }

    pub fn create(&self, module: usize, params: Value) -> Result<Answer, OpError> {
        let pending = self.start_create(module, params);
        self.wait(&pending)
    }

    pub fn start_delete(&self, name: &str) -> Answered {
        let pending = Answered::new();
        self.on(|core| core.delete(name, None, pending.reply()));
        pending
    }

    pub fn delete(&self, name: &str) -> Result<Answer, OpError> {
        let pending = self.start_delete(name);
        self.wait(&pending)
    }

    pub fn counts(&self) -> ObjectCounts {
        self.on(Core::object_counts)
    }

    /// Shuts down and checks that nothing is left.
    #[track_caller]
    pub fn finish(self) {
        let report = self.shutdown();
        assert!(report.is_clean(), "left: {:?}", report.left);
        assert_eq!(report.counts.owned(), 0, "{:?}", report.counts);
    }

    pub fn shutdown(&self) -> ShutdownReport {
        let pending = Pending::new();
        self.on(|core| core.shutdown(pending.reply()));
        self.wait(&pending)
    }
}
