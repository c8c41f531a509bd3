//! Modules linked into the process, on the virtual clock: deadlines and orders
//! that need no waiting, and calls from inside callbacks of the listener.
// UNSAFETY: a descriptor with callbacks, as a plugin would have.

mod harness;

use std::cell::{Cell, RefCell};
use std::ffi::{c_char, c_void};
use std::rc::{Rc, Weak};
use std::time::Duration;

use harness::host_table;
use tenon_abi::{
    ABI_MAJOR, ABI_MINOR, AbiSizes, HostApiV1, HostModule, MAGIC, ModuleFlags, ModuleOpsV1, OpToken,
    PluginDescV1, Str,
};
use tenon_modules::{
    Catalog, DrainCause, Existing, InitOn, Listener, ModuleError, ModuleRef, ModuleState, Modules,
    ModulesOptions, PluginError,
};
use tenon_reactor::Simulation;

const STEPS: usize = 100_000;

thread_local! {
    static INIT_TAKES: Cell<Duration> = const { Cell::new(Duration::ZERO) };
    static FINI_TOKEN: Cell<Option<OpToken>> = const { Cell::new(None) };
}

unsafe extern "C" fn init(_: *const HostApiV1, _: *mut HostModule, _: Str, _: *mut c_char, _: usize) -> i32 {
    tenon_reactor::simulation::spend(INIT_TAKES.get());
    0
}

unsafe extern "C" fn fini(token: OpToken) {
    FINI_TOKEN.set(Some(token));
}

unsafe extern "C" fn query(_: Str, _: u32) -> *const c_void {
    std::ptr::null()
}

static OPS: ModuleOpsV1 = ModuleOpsV1 {
    size: size_of::<ModuleOpsV1>() as u32,
    flags: ModuleFlags::NONE,
    init,
    init_complete: None,
    configure: None,
    create: None,
    update: None,
    delete: None,
    examine_config: None,
    examine_disk: None,
    hotplug: None,
    quiesce: None,
    fini,
    schema: None,
    validate: None,
    set_log_level: None,
    query: Some(query),
    validate_config: None,
    config_json: None,
};

static DESCRIPTOR: PluginDescV1 = PluginDescV1 {
    magic: MAGIC,
    size: size_of::<PluginDescV1>() as u32,
    abi_major: ABI_MAJOR,
    abi_minor: ABI_MINOR,
    sizes: AbiSizes::current(),
    name: Str::new("linked"),
    version: Str::new("1.0.0"),
    built_with: Str::new("rustc"),
    ops: &OPS,
};

/// Answers every call at once, from inside the callback.
struct Eager {
    modules: RefCell<Option<Modules>>,
    seen: RefCell<Vec<String>>,
}

impl Listener for Eager {
    fn running(&self, module: ModuleRef) {
        self.seen.borrow_mut().push(format!("running {}", module.name()));
    }

    fn draining(&self, module: ModuleRef, cause: DrainCause) {
        self.seen.borrow_mut().push(format!("draining {cause:?}"));
        let modules = self.modules.borrow().clone().expect("it is set up");
        modules.drained(module);
    }

    fn fini_token(&self, module: ModuleRef) -> OpToken {
        OpToken(u64::from(module.id()))
    }

    fn retired(&self, module: ModuleRef) {
        self.seen.borrow_mut().push(format!("retired {}", module.name()));
    }

    fn failed(&self, _: ModuleRef, why: &ModuleError) {
        self.seen.borrow_mut().push(format!("failed: {why}"));
    }
}

struct Fixture {
    sim: Simulation,
    modules: Modules,
    listener: Rc<Eager>,
}

impl Fixture {
    fn new(seed: u64) -> Fixture {
        let mut sim = Simulation::new(seed, 1);
        let control = sim.control();
        let modules = sim.on(&control, |_| {
            let options = ModulesOptions { init_on: InitOn::Offload, ..ModulesOptions::new(host_table()) };
            Modules::new(options, Catalog::empty())
        });
        let listener =
            Rc::new(Eager { modules: RefCell::new(Some(modules.clone())), seen: RefCell::default() });
        let weak: Weak<dyn Listener> = Rc::<Eager>::downgrade(&listener);
        modules.set_listener(weak);
        Fixture { sim, modules, listener }
    }

    fn load(&mut self) -> Result<ModuleRef, PluginError> {
        let result = Rc::new(RefCell::new(None));
        let slot = result.clone();
        let control = self.sim.control();
        self.sim.on(&control, |_| {
            // SAFETY: the descriptor above obeys the contract.
            unsafe {
                self.modules.load_static(&DESCRIPTOR, "{}", Existing::Refuse, move |result| {
                    *slot.borrow_mut() = Some(result);
                });
            }
        });
        assert!(result.borrow().is_none(), "never inside the call that asked");
        assert!(self.sim.run_until(Duration::from_secs(60), || result.borrow().is_some()));
        result.take().expect("it was waited for")
    }

    fn unregister(&mut self, module: ModuleRef) -> Rc<RefCell<Option<Result<(), ModuleError>>>> {
        let result = Rc::new(RefCell::new(None));
        let slot = result.clone();
        let control = self.sim.control();
        self.sim.on(&control, |_| {
            self.modules.unregister(module, move |result| *slot.borrow_mut() = Some(result));
        });
        result
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        *self.listener.modules.borrow_mut() = None;
    }
}

#[test]
fn a_linked_module_lives_and_retires_without_a_file() {
    for seed in 0..20 {
        let mut fixture = Fixture::new(seed);
        let module = fixture.load().unwrap();
        assert_eq!((module.state(), module.path()), (ModuleState::Running, None));
        assert!(matches!(fixture.load(), Err(error) if error.to_string().contains("already loaded")));
        let result = fixture.unregister(module);
        assert_eq!(module.state(), ModuleState::Finishing, "drained and finished from inside the listener");
        assert_eq!(FINI_TOKEN.take(), Some(OpToken(u64::from(module.id()))));
        let control = fixture.sim.control();
        fixture.sim.on(&control, |_| fixture.modules.fini_done(module, Ok(())));
        fixture.sim.run_until_idle(STEPS);
        assert_eq!(*result.borrow(), Some(Ok(())));
        assert_eq!(
            *fixture.listener.seen.borrow(),
            ["running linked", "draining Unregister", "retired linked"]
        );
        // The deadline of fini was cancelled.
        fixture.sim.advance(Duration::from_secs(100));
        assert_eq!(module.state(), ModuleState::Retired);
        assert_eq!(fixture.load().unwrap().state(), ModuleState::Running, "its name is free again");
    }
}

#[test]
fn fini_has_a_deadline_and_a_late_answer_is_ignored() {
    let mut fixture = Fixture::new(1);
    let module = fixture.load().unwrap();
    let result = fixture.unregister(module);
    fixture.sim.advance(Duration::from_millis(4999));
    assert_eq!(module.state(), ModuleState::Finishing);
    fixture.sim.advance(Duration::from_millis(2));
    assert_eq!(module.state(), ModuleState::Failed);
    let text = result.borrow().clone().unwrap().unwrap_err().to_string();
    assert_eq!(text, "fini of module linked was not answered within 5s");
    let control = fixture.sim.control();
    fixture.sim.on(&control, |_| fixture.modules.fini_done(module, Ok(())));
    assert_eq!(module.state(), ModuleState::Failed);
    assert_eq!(fixture.listener.seen.borrow().last().unwrap(), &format!("failed: {text}"));
}

#[test]
fn fini_that_answers_an_error_fails_the_module() {
    let mut fixture = Fixture::new(2);
    let module = fixture.load().unwrap();
    let result = fixture.unregister(module);
    let control = fixture.sim.control();
    fixture.sim.on(&control, |_| fixture.modules.fini_done(module, Err("queue not empty".into())));
    assert_eq!(
        result.borrow().clone().unwrap().unwrap_err().to_string(),
        "fini of module linked failed: queue not empty"
    );
    assert_eq!(module.failure().unwrap(), "fini of module linked failed: queue not empty");
}

#[test]
fn a_module_that_breaks_the_contract_is_failed_once() {
    let mut fixture = Fixture::new(3);
    let module = fixture.load().unwrap();
    let control = fixture.sim.control();
    fixture.sim.on(&control, |_| {
        fixture.modules.fail(module, "answered a token twice");
        fixture.modules.fail(module, "again");
    });
    assert_eq!(module.failure().unwrap(), "module linked failed: answered a token twice");
    assert_eq!(fixture.listener.seen.borrow().len(), 2, "running, failed");
    assert!(fixture.modules.current("linked").is_none());
    assert!(fixture.load().is_ok(), "its name is free again");
}

#[test]
fn an_init_that_takes_too_long_has_one_outcome() {
    // Timer and result are due in the same turn: whichever comes first decides, and the other is ignored.
    for seed in 0..50 {
        let mut fixture = Fixture::new(seed);
        INIT_TAKES.set(Duration::from_secs(6));
        let result = fixture.load();
        INIT_TAKES.set(Duration::ZERO);
        fixture.sim.advance(Duration::from_secs(100));
        let all = fixture.modules.all();
        assert_eq!(all.len(), 1);
        match result {
            Ok(module) => assert_eq!(module.state(), ModuleState::Running),
            Err(error) => {
                assert!(error.to_string().contains("did not finish within 5s"), "{error}");
                assert_eq!(all[0].state(), ModuleState::Failed);
            }
        }
        assert_eq!(fixture.listener.seen.borrow().len(), 1, "{:?}", fixture.listener.seen.borrow());
    }
}

#[test]
fn a_null_descriptor_is_refused_later_not_inside_the_call() {
    let mut fixture = Fixture::new(5);
    let seen = Rc::new(Cell::new(false));
    let slot = seen.clone();
    let control = fixture.sim.control();
    fixture.sim.on(&control, |_| {
        // SAFETY: null is allowed.
        unsafe {
            fixture.modules.load_static(std::ptr::null(), "{}", Existing::Refuse, move |result| {
                assert!(result.unwrap_err().to_string().contains("returned null"));
                slot.set(true);
            });
        }
    });
    assert!(!seen.get());
    fixture.sim.run_until_idle(STEPS);
    assert!(seen.get());
}
