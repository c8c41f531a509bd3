//! The same on real reactors: threads, the kernel's clock, files and memory that
//! come and go. Alone in its process, as modules are process-wide here.

mod vendor;

use std::cell::RefCell;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use serde_json::json;
use tenon_abi::HotplugKind;
use tenon_bdev::{
    Core, CoreOptions, Descriptor, buffer_get, buffer_put, channel_get, device_alloc, device_free,
};
use tenon_modules::{Catalog, Existing};
use tenon_reactor::{Cpus, Reactors, ReactorsOptions};
use vendor::Behaviour;

const PATIENCE: Duration = Duration::from_secs(20);

thread_local! {
    /// Of the control reactor: a descriptor that is open between two messages.
    static OPEN: RefCell<Option<Descriptor>> = const { RefCell::new(None) };
}

/// Runs on the control reactor and waits for the answer, which may come later.
fn ask<T: Send + 'static>(
    reactors: &Reactors,
    question: impl FnOnce(&Core, Box<dyn FnOnce(T)>) + Send + 'static,
) -> T {
    let (sender, receiver) = mpsc::channel();
    let asked = reactors.control().send(move || {
        let core = Core::current().expect("the core runs");
        question(&core, Box::new(move |answer| drop(sender.send(answer))));
    });
    asked.expect("control takes messages");
    receiver.recv_timeout(PATIENCE).expect("an answer")
}

/// Asks again until the answer is yes.
fn until(reactors: &Reactors, what: &str, mut condition: impl FnMut(&Core) -> bool + Send + Clone + 'static) {
    let started = Instant::now();
    loop {
        let mut ask_now = condition.clone();
        if ask(reactors, move |core, reply| reply(ask_now(core))) {
            return;
        }
        assert!(started.elapsed() < PATIENCE, "{what}");
        let _ = &mut condition;
        std::thread::yield_now();
    }
}

fn start(behaviours: [Behaviour; 2]) -> Reactors {
    let options = ReactorsOptions { cpus: Cpus::Count(2), pin: false, ..ReactorsOptions::default() };
    let reactors = Reactors::start(options).expect("reactors start");
    reactors
        .control()
        .call(PATIENCE, || {
            for (module, behaviour) in behaviours.into_iter().enumerate() {
                vendor::behave(module, behaviour);
            }
            Core::start(CoreOptions::default(), Catalog::empty());
        })
        .expect("the core starts");
    for module in 0..2 {
        ask(&reactors, move |core, reply| {
            // SAFETY: the descriptor is static and obeys the contract.
            unsafe {
                let plugin = vendor::descriptor(module);
                core.module_load_static(plugin, &json!({}), Existing::Refuse, move |result| {
                    reply(result.map(|_| ()));
                });
            }
        })
        .expect("the module loads");
    }
    reactors
}

fn stop(reactors: Reactors) {
    let report = ask(&reactors, |core, reply| core.shutdown(reply));
    assert!(report.is_clean(), "{:?}", report.left);
    assert_eq!(report.counts.owned(), 0, "{:?}", report.counts);
    reactors.shutdown(PATIENCE).expect("reactors stop");
}

/// Channels are opened and put on data reactors while devices come and go.
fn devices_come_and_go_under_readers(reactors: &Reactors) {
    let opened = Arc::new(AtomicU64::new(0));
    for round in 0..50 {
        let name = format!("m{}", round % 3);
        let created = {
            let name = name.clone();
            ask(reactors, move |core, reply| {
                core.create("fake0", &json!({ "name": name, "count": 2 }), reply)
            })
        };
        created.expect("a device");
        let name_to_open = name.clone();
        let desc = ask(reactors, move |core, reply: Box<dyn FnOnce(_)>| {
            let descriptor = core.open(&name_to_open, "test", true, |_| {}).expect("it is there");
            reply(descriptor.handle());
            OPEN.set(Some(descriptor));
        });
        for reactor in reactors.data() {
            let opened = opened.clone();
            reactor
                .call(PATIENCE, move || {
                    let channel = channel_get(desc).expect("a channel");
                    opened.fetch_add(1, Ordering::Relaxed);
                    drop(channel);
                    let buffer = buffer_get(10_000);
                    assert!(!buffer.is_null());
                    // SAFETY: got above, with this length, on this reactor.
                    unsafe { buffer_put(buffer, 10_000) };
                })
                .expect("the reactor runs");
        }
        let closed = ask(reactors, move |_, reply| {
            // SAFETY: the host's function, on the control reactor.
            reply(unsafe { (tenon_bdev::host_api().bdev_close)(desc) });
            // Its descriptor is closed already, which it finds when it is dropped.
            OPEN.set(None);
        });
        assert_eq!(closed, 0);
        assert!(reactors.data()[0].call(PATIENCE, move || channel_get(desc).is_err()).expect("it runs"));
        ask(reactors, move |core, reply| core.delete(&name, None, reply)).expect("it goes");
        let second = format!("m{}.1", round % 3);
        ask(reactors, move |core, reply| core.delete(&second, None, reply)).expect("it goes");
    }
    assert_eq!(opened.load(Ordering::Relaxed), 100);
}

fn heard(kind: HotplugKind) -> bool {
    vendor::record(1).hotplug.iter().any(|(its_kind, ..)| *its_kind == kind.0)
}

/// A watched file appears, grows and vanishes; its directory does not exist at first.
fn files_are_watched(reactors: &Reactors, path: &str) {
    assert!(vendor_is_quiet(reactors));
    std::fs::create_dir_all(std::path::Path::new(path).parent().expect("a directory")).expect("a directory");
    std::fs::write(path, b"1234").expect("a file");
    until(reactors, "the file appears", |_| heard(HotplugKind::ADD));
    std::fs::OpenOptions::new().write(true).open(path).and_then(|file| file.set_len(8192)).expect("it grows");
    until(reactors, "the file grows", |_| {
        let grown = |(kind, _, facts): &(u32, String, String)| {
            *kind == HotplugKind::CHANGE.0 && facts.contains("8192")
        };
        vendor::record(1).hotplug.iter().any(grown)
    });
    std::fs::remove_file(path).expect("it goes");
    until(reactors, "the file vanishes", |_| heard(HotplugKind::REMOVE));
}

fn vendor_is_quiet(reactors: &Reactors) -> bool {
    ask(reactors, |_, reply| reply(vendor::record(1).hotplug.is_empty()))
}

/// A module hears of a region before memory from another thread is used, and before it is unmapped.
fn regions_are_announced(reactors: &Reactors) {
    let before = ask(reactors, |_, reply| reply(vendor::record(0).regions));
    let len = 32 << 20;
    let memory = device_alloc(len, 4096, -1);
    assert!(!memory.is_null());
    until(reactors, "a region comes", move |_| vendor::record(0).regions == before + 1);
    // SAFETY: allocated above, with these arguments.
    unsafe { device_free(memory, len, 4096) };
    until(reactors, "a region goes", move |_| vendor::record(0).regions == before);
}

#[test]
fn the_core_works_on_real_threads() {
    let directory = std::env::temp_dir().join(format!("tenon-bdev-threads-{}", std::process::id()));
    let path = directory.join("deeper/disk.img").to_string_lossy().into_owned();
    std::fs::create_dir_all(&directory).expect("a directory");
    let reactors = start([
        Behaviour { subscribes: true, ..Behaviour::default() },
        Behaviour { watches: Some(path.clone()), examine_delay_us: 100, ..Behaviour::default() },
    ]);
    devices_come_and_go_under_readers(&reactors);
    files_are_watched(&reactors, &path);
    regions_are_announced(&reactors);
    stop(reactors);
    std::fs::remove_dir_all(&directory).expect("it was made above");
}
