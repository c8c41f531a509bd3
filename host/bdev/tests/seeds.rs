//! Everything at once, in an order that a seed decides: creates, deletes, opens,
//! claims, examinations, removals, absence, modules that come and go, answers that
//! come late, twice or never.
//!
//! What must hold whatever the order: each request is answered once; an opener hears
//! of a removal once; a device is destructed once; when all is over, nothing is
//! left; and what failed before can be done then. A failure names its seed;
//! `TENON_SEED` runs that one, `TENON_SEEDS` sets how many are run.

mod host;
mod vendor;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;
use std::time::Duration;

use host::{Answered, Host, Pending};
use serde_json::json;
use tenon_abi::{BdevEventKind, BdevHandle, Reason, errno};
use tenon_bdev::{Channel, Claim, Descriptor, channel_get, host_api};
use vendor::{Behaviour, MODULES};

/// Names that requests fight over.
const NAMES: [&str; 8] = ["a", "b", "c", "xa", "xb", "on-xa", "d", "e"];

/// Things done per seed.
const ACTIONS: usize = 80;

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    fn chance(&mut self, percent: u64) -> bool {
        self.next() % 100 < percent
    }

    fn name(&mut self) -> &'static str {
        NAMES[self.below(NAMES.len())]
    }
}

/// A descriptor of the test, with the channels it has open.
struct Held {
    descriptor: Descriptor,
    channels: Vec<(usize, Channel)>,
    removes: Rc<Cell<u32>>,
}

struct Run {
    host: Host,
    random: Random,
    answers: Vec<(String, Answered)>,
    others: Vec<(String, Pending<()>)>,
    held: Vec<Held>,
    loaded: [Rc<Cell<bool>>; MODULES],
    removes: Vec<Rc<Cell<u32>>>,
    log: Rc<RefCell<Vec<String>>>,
}

impl Run {
    fn new(seed: u64) -> Run {
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let host = Host::new(seed);
        host.stall(if seed.is_multiple_of(4) { 200 } else { 0 });
        for module in 0..MODULES {
            let behaviour = Behaviour {
                takes: (module == 1 && random.chance(60)).then(|| "x".into()),
                examine_delay_us: if random.chance(50) { random.next() % 2000 } else { 0 },
                leaks_examine: random.chance(3),
                late_config: random.chance(3),
                ..Behaviour::default()
            };
            vendor::behave(module, behaviour);
        }
        Run {
            host,
            random,
            answers: Vec::new(),
            others: Vec::new(),
            held: Vec::new(),
            loaded: Default::default(),
            removes: Vec::new(),
            log: Rc::default(),
        }
    }

    fn act(&mut self) {
        match self.random.below(20) {
            0..=4 => self.create(),
            5 | 6 => self.delete(),
            7 | 8 => self.open(),
            9 | 10 => self.close(),
            11 => self.hot_remove(),
            12 => self.module(),
            13 => self.backing(),
            14 => self.examine(),
            15 => {
                let pending = Pending::new();
                let reply = pending.reply();
                self.host.on(|core| core.wait_for_examine(move || reply(())));
                self.others.push(("wait_for_examine".into(), pending));
            }
            16 => {
                let module = self.random.below(MODULES);
                self.host.on(|_| vendor::answer_kept(module));
            }
            17 => self.host.advance(Duration::from_micros(self.random.next() % 3000)),
            18 | 19 => self.host.steps(self.random.below(40)),
            _ => unreachable!(),
        }
    }

    fn create(&mut self) {
        let module = self.random.below(MODULES);
        let random = &mut self.random;
        let mut params = json!({ "name": random.name(), "count": 1 + random.below(2) });
        if random.chance(40) {
            params["base"] = json!(random.name());
        }
        if random.chance(20) {
            params["late_base"] = json!(random.name());
        }
        for (key, percent) in [("delay_us", 30), ("answer_delay_us", 30), ("destruct_delay_us", 30)] {
            if random.chance(percent) {
                params[key] = json!(random.next() % 1500);
            }
        }
        for (key, percent) in [("fail", 20), ("keep", 4), ("twice", 5)] {
            if random.chance(percent) {
                params[key] = json!(true);
            }
        }
        let what = format!("create {module} {params}");
        self.log.borrow_mut().push(what.clone());
        let pending = self.host.start_create(module, params);
        self.answers.push((what, pending));
    }

    fn delete(&mut self) {
        let name = self.random.name();
        self.log.borrow_mut().push(format!("delete {name}"));
        let pending = self.host.start_delete(name);
        self.answers.push((format!("delete {name}"), pending));
    }

    fn open(&mut self) {
        let (name, write) = (self.random.name(), self.random.chance(50));
        let removes = Rc::new(Cell::new(0));
        let count = removes.clone();
        let owner = ["upper", "other"][self.random.below(2)];
        let opened = self.host.on(|core| {
            core.open(name, owner, write, move |event| {
                if event.kind == BdevEventKind::REMOVE {
                    count.set(count.get() + 1);
                }
            })
        });
        let Ok(descriptor) = opened else { return };
        self.log.borrow_mut().push(format!("open {name}"));
        if self.random.chance(40) {
            let claims = [
                Claim::ExclusiveWrite,
                Claim::ReadManyWriteOne,
                Claim::ReadManyWriteNone,
                Claim::ReadManyWriteShared { key: 1 + self.random.next() % 2 },
            ];
            let claim = claims[self.random.below(4)];
            let _ = self.host.on(|_| descriptor.claim(claim));
        }
        let mut channels = Vec::new();
        for reactor in 0..2 {
            if self.random.chance(40) {
                let desc = descriptor.handle();
                if let Ok(channel) = self.host.on_data(reactor, || channel_get(desc)) {
                    channels.push((reactor, channel));
                }
            }
        }
        self.removes.push(removes.clone());
        self.held.push(Held { descriptor, channels, removes });
    }

    fn close(&mut self) {
        if self.held.is_empty() {
            return;
        }
        let index = self.random.below(self.held.len());
        let held = self.held.swap_remove(index);
        self.log.borrow_mut().push("close".into());
        self.release(held);
    }

    fn release(&self, held: Held) {
        for (reactor, channel) in held.channels {
            self.host.on_data(reactor, || drop(channel));
        }
        self.host.on(|_| drop(held.descriptor));
        assert!(held.removes.get() <= 1);
    }

    fn hot_remove(&mut self) {
        let name = self.random.name();
        self.log.borrow_mut().push(format!("hot remove {name}"));
        let _ = self.host.on(|core| core.unregister(name, Reason::HOT_REMOVED));
    }

    fn module(&mut self) {
        let module = self.random.below(MODULES);
        let name = format!("fake{module}");
        let pending = Pending::new();
        let reply = pending.reply();
        let loaded = self.loaded[module].clone();
        if loaded.get() && self.random.chance(40) {
            self.log.borrow_mut().push(format!("unregister {name}"));
            self.host.on(|core| {
                core.module_unregister(&name, move |result| {
                    loaded.set(result.is_err());
                    reply(());
                });
            });
        } else {
            self.log.borrow_mut().push(format!("load {name}"));
            self.load(module, move || reply(()));
        }
        self.others.push((format!("module {module}"), pending));
    }

    fn load(&self, module: usize, done: impl FnOnce() + 'static) {
        let loaded = self.loaded[module].clone();
        self.host.on(|core| {
            // SAFETY: the descriptor is static and obeys the contract.
            unsafe {
                let plugin = vendor::descriptor(module);
                let existing = tenon_modules::Existing::Refuse;
                core.module_load_static(plugin, &json!({}), existing, move |result| {
                    if result.is_ok() {
                        loaded.set(true);
                    }
                    done();
                });
            }
        });
    }

    fn backing(&mut self) {
        let name = self.random.name();
        let Some(bdev) = self.host.on(|core| core.find(name)) else { return };
        let (choice, blocks) = (self.random.below(4), 1 + self.random.next() % 10_000);
        self.log.borrow_mut().push(format!("backing {name} {choice}"));
        let api = host_api();
        // SAFETY: the host's functions, on the control reactor.
        self.host.on(|_| unsafe {
            match choice {
                0 => (api.bdev_set_absent)(bdev, 1),
                1 => (api.bdev_set_absent)(bdev, 0),
                2 => (api.bdev_set_present)(bdev),
                _ => (api.bdev_resize)(bdev, blocks),
            }
        });
        // A stale handle is refused, whatever it once named.
        let stale = BdevHandle(bdev.0 ^ 1 << 40);
        // SAFETY: as above.
        assert!(self.host.on(|_| unsafe { (api.bdev_resize)(stale, 1) }) < 0);
    }

    fn examine(&mut self) {
        let name = self.random.name();
        let pending = Pending::new();
        let reply = pending.reply();
        self.host.on(|core| core.examine(name, move |_| reply(())));
        self.others.push((format!("examine {name}"), pending));
    }

    /// Lets everything end, checks what must hold, and counts how requests ended.
    fn end(mut self, ends: &mut BTreeMap<String, u32>) {
        // From here on time passes only when there is nothing else to do.
        self.host.stall(0);
        for held in std::mem::take(&mut self.held) {
            self.release(held);
        }
        for module in 0..MODULES {
            self.host.on(|_| vendor::answer_kept(module));
        }
        self.host.advance(Duration::from_secs(200));
        for module in 0..MODULES {
            self.host.on(|_| vendor::answer_kept(module));
        }
        self.host.advance(Duration::from_secs(200));
        for (what, answered) in &self.answers {
            assert_eq!(answered.count(), 1, "{what}");
            let kind = what.split(' ').next().unwrap_or_default();
            let code = answered.get().map_or(0, |answer| answer.map_or_else(|error| error.code, |_| 0));
            *ends.entry(format!("{kind} {code}")).or_default() += 1;
        }
        for (what, pending) in &self.others {
            assert_eq!(pending.count(), 1, "{what}");
        }
        for name in self.host.on(|core| core.bdev_names()) {
            let _ = self.host.on(|core| core.unregister(&name, Reason::REQUESTED));
        }
        self.host.advance(Duration::from_secs(200));
        let counts = self.host.counts();
        assert_eq!(counts.owned(), 0, "{counts:?} {:?}", self.host.on(|core| core.bdevs()));
        assert!(self.removes.iter().all(|removes| removes.get() <= 1));
        self.check_records();
        self.check_again();
        self.host.finish();
    }

    fn check_records(&self) {
        for module in 0..MODULES {
            let record = vendor::record(module);
            let more_than_once = |counts: &HashMap<u64, u32>| counts.values().any(|count| *count != 1);
            assert!(!more_than_once(&record.destructed), "{:?}", record.destructed);
            assert!(!more_than_once(&record.removes), "{:?}", record.removes);
            assert!(record.faults.is_empty(), "{:?}", record.faults);
        }
    }

    /// What failed or not before can be done now.
    fn check_again(&self) {
        (0..MODULES).for_each(|module| vendor::behave(module, Behaviour::default()));
        if !self.loaded[0].get() {
            let pending = Pending::new();
            let reply = pending.reply();
            self.load(0, move || reply(()));
            self.host.wait(&pending);
        }
        for name in NAMES {
            let created = self.host.create(0, json!({ "name": name }));
            assert!(created.is_ok(), "{name}: {created:?}");
        }
        for name in NAMES {
            // A module may have claimed it by now; it has to let go.
            self.host.delete(name).unwrap_or_else(|error| panic!("{name}: {error}"));
        }
    }
}

fn run(seed: u64, ends: &mut BTreeMap<String, u32>) {
    let mut run = Run::new(seed);
    let log = run.log.clone();
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || {
        for module in 0..MODULES - 1 {
            run.load(module, || ());
            run.host.settle();
        }
        for _ in 0..ACTIONS {
            run.act();
        }
        run.end(ends);
    }));
    if let Err(panic) = result {
        eprintln!("seed {seed}:\n  {}", log.borrow().join("\n  "));
        std::panic::resume_unwind(panic);
    }
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

#[test]
fn whatever_the_order_everything_is_answered_once_and_nothing_is_left() {
    let mut ends = BTreeMap::new();
    if let Some(seed) = number("TENON_SEED") {
        return run(seed, &mut ends);
    }
    for seed in 0..number("TENON_SEEDS").unwrap_or(1500) {
        run(seed, &mut ends);
    }
    println!("{ends:#?}");
    let codes = [
        0,
        errno::EIO,
        errno::EPERM,
        errno::EEXIST,
        errno::ENODEV,
        errno::ENOENT,
        errno::EBUSY,
        errno::ETIMEDOUT,
    ];
    for code in codes {
        assert!(ends.contains_key(&format!("create {code}")), "no create ended with {code}: {ends:?}");
    }
    for code in [0, errno::ENODEV, errno::ETIMEDOUT] {
        assert!(ends.contains_key(&format!("delete {code}")), "no delete ended with {code}: {ends:?}");
    }
}
