//! The life of modules in C on real reactors: loading on demand, failing,
//! hanging, superseding, retiring, and following a directory.
// UNSAFETY: leaves a process by `_exit`.

mod harness;

use std::io::Write;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::time::Duration;

use harness::{Directory, Event, Host, PATIENCE, define, said_by, wait_for_line};
use tenon_abi::{BdevHandle, ExamineToken, HotplugEvent, HotplugKind, OpToken, Str};
use tenon_modules::{
    Call, CatalogChange, DrainCause, Existing, LoadError, Module, ModuleError, ModuleRef, ModuleState,
    PluginDirectory,
};

/// Long enough for `dlopen` on a loaded machine, short enough for a test that waits for it to pass.
const SHORT_DEADLINE: Duration = Duration::from_secs(1);

#[track_caller]
fn expect_running(host: &Host) -> ModuleRef {
    match host.event() {
        Event::Running(module) => module,
        other => panic!("{other:?} is not Running"),
    }
}

#[test]
fn a_module_is_called_in_order_of_its_life() {
    let dir = Directory::new("life-order");
    let path = dir.build("m.so", &[&define("NAME", "order")]);
    let host = Host::start();
    let module = host.load_with(&path, "{\"a\":1}", Existing::Refuse).unwrap();
    assert_eq!(expect_running(&host).id(), module.id());
    assert_eq!(module.state(), ModuleState::Running);
    assert_eq!(Module::from_handle(module.handle()).map(Module::id), Some(module.id()));
    assert!(Module::from_handle(std::ptr::dangling_mut()).is_none());
    assert_eq!(module.path(), Some(path.canonicalize().unwrap().as_path()));
    let calls = host.on(move |modules| {
        modules.set_log_level(log::LevelFilter::Trace);
        let event = HotplugEvent {
            size: size_of::<HotplugEvent>() as u32,
            kind: HotplugKind::ADD,
            subsystem: Str::new("file"),
            id: Str::new("/dev/x"),
            generation: 1,
            attributes_json: Str::EMPTY,
        };
        [
            module.create("{}", OpToken(1)),
            module.delete("d", OpToken(2)),
            module.examine_config(BdevHandle(1), "d", ExamineToken(1)),
            module.examine_disk(BdevHandle(1), "d", ExamineToken(1)),
            module.update("d", "{}", OpToken(3)),
            module.configure("{}", OpToken(4)),
            module.hotplug(&event),
        ]
    });
    use Call::{Made, NotOffered};
    assert_eq!(calls, [Made, Made, Made, NotOffered, NotOffered, NotOffered, Made]);

    let retired = host.unregister(module);
    assert!(matches!(host.event(), Event::Draining(m, DrainCause::Unregister) if m.id() == module.id()));
    assert_eq!(host.on(move |_| module.create("{}", OpToken(5))), Call::NotInService);
    host.on(move |modules| modules.drained(module));
    assert_eq!(retired.recv_timeout(PATIENCE).unwrap(), Ok(()));
    assert!(matches!(host.event(), Event::Retired(_)));
    assert_eq!(module.state(), ModuleState::Retired);
    assert!(host.on(|modules| modules.current("order").is_none() && modules.all().len() == 1));
    assert_eq!(module.schema(), None);
    let expected = [
        "init 1 version 1.0.0 {\"a\":1}",
        "set_log_level 4",
        "init_complete",
        "set_log_level 5",
        "create {}",
        "delete d",
        "examine_config d",
        "hotplug /dev/x",
        "quiesce",
        "fini",
    ];
    assert_eq!(said_by("order"), expected);
    let line = wait_for_line(&["hotplug /dev/x"]);
    assert_eq!((line.target.as_str(), line.place), ("order", Some(("plugin.c".into(), 42))));
}

#[test]
fn ensure_loads_the_newest_once_for_all_who_wait() {
    let dir = Directory::new("life-ensure");
    dir.build("one.so", &[&define("NAME", "wanted"), &define("VERSION", "1.2.0")]);
    dir.build("two.so", &[&define("NAME", "wanted"), &define("VERSION", "1.10.0")]);
    let host = Host::with(|_| {}, vec![PluginDirectory::configured(&dir.0)]);
    let (first, second) = host.wait(|modules, sender| {
        let both = std::rc::Rc::new(std::cell::RefCell::new(Vec::new()));
        for _ in 0..2 {
            let (both, sender) = (both.clone(), sender.clone());
            modules.ensure("wanted", "{}", move |result| {
                both.borrow_mut().push(result.unwrap().id());
                if let [first, second] = both.borrow()[..] {
                    sender.send((first, second)).unwrap();
                }
            });
        }
        assert!(modules.loading());
    });
    assert_eq!(first, second);
    let again = host.ensure("wanted").unwrap();
    assert_eq!((again.id(), again.version().as_str()), (first, "1.10.0"));
    assert_eq!(said_by("wanted").iter().filter(|line| line.starts_with("init ")).count(), 1);
    let error = host.ensure("absent").unwrap_err();
    assert_eq!(
        error.to_string(),
        "no plugin provides a module absent (installed: wanted); install its plugin or correct the name"
    );
}

#[test]
fn a_second_module_of_one_name_is_refused_before_its_code_runs() {
    let dir = Directory::new("life-twice");
    let path = dir.build("m.so", &[&define("NAME", "twice")]);
    // Its constructor would hang for ever: the name is asked first.
    let other = dir.build("other.so", &[&define("NAME", "twice"), "-DSLOW_CONSTRUCTOR"]);
    let host = Host::start();
    host.load(&path).unwrap();
    for path in [&path, &other] {
        let text = host.load(path).unwrap_err().to_string();
        assert!(text.contains("module twice 1.0.0 is already loaded from "), "{text}");
        assert!(text.contains("m.so; unregister that module first"), "{text}");
    }
}

#[test]
fn a_failed_init_is_told_with_its_text_and_can_be_tried_again() {
    let dir = Directory::new("life-failed");
    let path = dir.build(
        "m.so",
        &[&define("NAME", "failing"), "-DINIT_CODE=-22", &define("INIT_TEXT", "bad queue depth 0")],
    );
    let host = Host::start();
    let error = host.load(&path).unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("init of module failing failed with -22: bad queue depth 0; correct what"),
        "{text}"
    );
    let Event::Failed(module, why) = host.event() else { panic!("it failed") };
    assert!(why.contains("bad queue depth 0"));
    assert_eq!(module.state(), ModuleState::Failed);
    assert!(module.failure().unwrap().contains("bad queue depth 0"));
    assert!(!host.on(move |_| module.create("{}", OpToken(1)).is_made()));
    // A second try gets fresh statics: the fixture counts its inits.
    assert!(host.load(&path).is_err());
    assert!(said_by("failing").iter().all(|line| line.starts_with("init 1 ")), "{:?}", said_by("failing"));
    // The operator repairs it in place, with the same name and path.
    dir.build("m.so", &[&define("NAME", "failing")]);
    assert_eq!(host.load(&path).unwrap().state(), ModuleState::Running);
}

#[test]
fn a_failed_init_without_text_or_with_an_endless_one_is_told_too() {
    let dir = Directory::new("life-text");
    let silent = dir.build("silent.so", &[&define("NAME", "silent"), "-DINIT_CODE=-12"]);
    let endless = dir.build("endless.so", &[&define("NAME", "endless"), "-DINIT_CODE=-5", "-DINIT_OVERLONG"]);
    let host = Host::start();
    let text = host.load(&silent).unwrap_err().to_string();
    assert!(text.contains("failed with -12: cannot allocate memory"), "{text}");
    let text = host.load(&endless).unwrap_err().to_string();
    assert!(text.contains(&"x".repeat(512)) && !text.contains(&"x".repeat(513)), "{text}");
}

#[test]
fn an_init_that_never_returns_fails_its_module_alone() {
    let dir = Directory::new("life-hang");
    let path = dir.build("m.so", &[&define("NAME", "hanging"), "-DINIT_BLOCKS"]);
    let fine = dir.build("fine.so", &[&define("NAME", "unharmed")]);
    let host = Host::with(|options| options.init_deadline = SHORT_DEADLINE, Vec::new());
    let (reader, mut writer) = std::io::pipe().unwrap();
    let config = reader.as_raw_fd().to_string();
    let started = host.wait(move |modules, sender| {
        let late = sender.clone();
        modules.load_file(&path, &config, Existing::Refuse, move |result| drop(late.send(result)));
        modules.load_file(&fine, "{}", Existing::Refuse, move |result| sender.send(result).unwrap());
    });
    assert_eq!(started.unwrap().name(), "unharmed", "it is not held up");
    expect_running(&host);
    let Event::Failed(module, why) = host.event() else { panic!("it failed") };
    assert!(why.contains("init of module hanging did not finish within 1s; see its log"), "{why}");
    assert_eq!(module.state(), ModuleState::Failed);
    // What comes late is ignored.
    writer.write_all(b"x").unwrap();
    wait_for_line(&["result of init ignored", "hanging"]);
    assert_eq!(module.state(), ModuleState::Failed);
    assert!(!said_by("hanging").iter().any(|line| line == "init_complete"));
}

#[test]
fn a_library_that_hangs_in_dlopen_is_given_up() {
    // Its thread holds the dynamic linker's lock for ever: this test has a process of its own.
    if std::env::var_os("TENON_TEST_ALONE").is_none() {
        let test = "a_library_that_hangs_in_dlopen_is_given_up";
        let result = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", test, "--nocapture"])
            .env("TENON_TEST_ALONE", "1")
            .output()
            .unwrap();
        assert!(result.status.success(), "{}", String::from_utf8_lossy(&result.stderr));
        return;
    }
    let dir = Directory::new("life-constructor");
    let path = dir.build("m.so", &["-DSLOW_CONSTRUCTOR"]);
    let host = Host::with(|options| options.init_deadline = SHORT_DEADLINE, Vec::new());
    let error = host.load(&path).unwrap_err();
    assert_eq!(error.fault, LoadError::OpenTimedOut { deadline: SHORT_DEADLINE });
    // The next one is not made to wait for nothing.
    let other = dir.build("other.so", &[]);
    let text = host.load(&other).unwrap_err().to_string();
    assert!(text.contains(&format!("the dynamic linker is held by {}", path.display())), "{text}");
    assert_eq!(host.on(|modules| modules.blocked_open()), Some(path));
    drop(host);
    drop(dir);
    // SAFETY: ends the process. `exit` would wait for the linker's lock, which that thread holds.
    unsafe { libc::_exit(0) }
}

#[test]
fn a_newer_version_is_loaded_beside_the_older_one() {
    let dir = Directory::new("life-beside");
    let state = Directory::new("life-beside-state");
    let path = dir.build("m.so", &[&define("NAME", "beside"), &define("VERSION", "1.0.0")]);
    let state_dir = state.0.clone();
    let host = Host::with(move |options| options.state_dir = Some(state_dir), Vec::new());
    let old = host.load(&path).unwrap();
    expect_running(&host);
    // The same path, new content: dlopen of that path would give the old code.
    dir.build("m.so", &[&define("NAME", "beside"), &define("VERSION", "2.0.0")]);
    let new = host.load_with(&path, "{}", Existing::Supersede).unwrap();
    assert!(matches!(host.event(), Event::Draining(m, DrainCause::Superseded) if m.id() == old.id()));
    assert_eq!(expect_running(&host).id(), new.id());
    assert_eq!((old.state(), new.state()), (ModuleState::Draining, ModuleState::Running));
    assert_eq!(host.on(|modules| modules.current("beside").map(Module::id)), Some(new.id()));
    assert!(said_by("beside").contains(&"init 1 version 2.0.0 {}".to_owned()), "{:?}", said_by("beside"));
    // Its devices live on; when the last one goes, it retires. The name is free all the time.
    assert_eq!(host.ensure("beside").unwrap().id(), new.id());
    host.on(move |modules| modules.drained(old));
    assert!(matches!(host.event(), Event::Retired(m) if m.id() == old.id()));
    let mut copies: Vec<String> = std::fs::read_dir(state.path("plugins"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    copies.sort();
    assert!(
        copies.len() == 2 && copies[0].starts_with("beside-1.0.0-") && copies[1].starts_with("beside-2.0.0-")
    );
    assert_eq!(copies[0].len(), "beside-1.0.0-01234567.so".len());
    // Back to the same build after it retired: fresh statics under one more name.
    let retired = host.unregister(new);
    host.event();
    host.on(move |modules| modules.drained(new));
    retired.recv_timeout(PATIENCE).unwrap().unwrap();
    let again = host.load(&path).unwrap();
    assert_eq!(again.version().as_str(), "2.0.0");
    let inits: Vec<String> = said_by("beside").into_iter().filter(|line| line.starts_with("init ")).collect();
    assert!(inits.len() == 3 && inits.iter().all(|line| line.starts_with("init 1 ")), "{inits:?}");
}

#[test]
fn without_a_state_directory_the_second_image_lives_in_memory() {
    let dir = Directory::new("life-memory");
    let path = dir.build("m.so", &[&define("NAME", "memory"), &define("VERSION", "1.0.0")]);
    let host = Host::start();
    let first = host.load(&path).unwrap();
    dir.build("m.so", &[&define("NAME", "memory"), &define("VERSION", "2.0.0")]);
    let second = host.load_with(&path, "{}", Existing::Supersede).unwrap();
    dir.build("m.so", &[&define("NAME", "memory"), &define("VERSION", "3.0.0")]);
    let third = host.load_with(&path, "{}", Existing::Supersede).unwrap();
    let versions: Vec<_> = [first, second, third].iter().map(|module| module.version().to_string()).collect();
    assert_eq!(versions, ["1.0.0", "2.0.0", "3.0.0"]);
    assert!(third.info().mapped_path.unwrap().starts_with("/proc/self/fd"));
}

#[test]
fn an_upgrade_that_fails_leaves_the_old_module_in_service() {
    let dir = Directory::new("life-upgrade-fails");
    let old = dir.build("old.so", &[&define("NAME", "kept")]);
    let new = dir.build("new.so", &[&define("NAME", "kept"), &define("VERSION", "2"), "-DINIT_CODE=-1"]);
    let host = Host::start();
    let module = host.load(&old).unwrap();
    assert!(host.load_with(&new, "{}", Existing::Supersede).is_err());
    assert_eq!(module.state(), ModuleState::Running);
    assert_eq!(host.on(|modules| modules.current("kept").map(Module::id)), Some(module.id()));
}

#[test]
fn a_superseded_module_can_be_hurried() {
    let dir = Directory::new("life-hurry");
    let one = dir.build("one.so", &[&define("NAME", "hurry")]);
    let two = dir.build("two.so", &[&define("NAME", "hurry"), &define("VERSION", "2")]);
    let host = Host::start();
    let old = host.load(&one).unwrap();
    expect_running(&host);
    host.load_with(&two, "{}", Existing::Supersede).unwrap();
    assert!(matches!(host.event(), Event::Draining(_, DrainCause::Superseded)));
    expect_running(&host);
    let first = host.unregister(old);
    assert!(matches!(host.event(), Event::Draining(_, DrainCause::Unregister)));
    let second = host.unregister(old);
    host.on(move |modules| modules.drained(old));
    assert_eq!(first.recv_timeout(PATIENCE).unwrap(), Ok(()));
    assert_eq!(second.recv_timeout(PATIENCE).unwrap(), Ok(()));
    assert_eq!(said_by("hurry").iter().filter(|line| *line == "quiesce").count(), 1);
}

#[test]
fn a_module_being_unregistered_keeps_its_name() {
    let dir = Directory::new("life-busy");
    let path = dir.build("m.so", &[&define("NAME", "busy")]);
    let host = Host::with(|_| {}, vec![PluginDirectory::configured(&dir.0)]);
    let module = host.load(&path).unwrap();
    let retired = host.unregister(module);
    assert_eq!(
        host.ensure("busy").unwrap_err().to_string(),
        "module busy is draining; try again when that has finished"
    );
    host.on(move |modules| modules.drained(module));
    retired.recv_timeout(PATIENCE).unwrap().unwrap();
    let again = host.ensure("busy").unwrap();
    assert_ne!(again.id(), module.id());
    let error = host.unregister(module).recv_timeout(PATIENCE).unwrap().unwrap_err();
    assert_eq!(error.to_string(), "module busy is retired: unregistering is not possible now");
}

#[test]
fn a_fini_that_is_never_answered_fails_the_module() {
    let dir = Directory::new("life-fini");
    let path = dir.build("m.so", &[&define("NAME", "endless-fini"), "-DFINI_SILENT"]);
    let host = Host::with(|options| options.fini_deadline = Duration::from_millis(50), Vec::new());
    let module = host.load(&path).unwrap();
    let retired = host.unregister(module);
    host.on(move |modules| modules.drained(module));
    let error = retired.recv_timeout(PATIENCE).unwrap().unwrap_err();
    assert!(matches!(error, ModuleError::FiniTimedOut { .. }), "{error}");
    assert_eq!(module.state(), ModuleState::Failed);
    // The late answer changes nothing.
    host.on(move |_| harness::answer(OpToken(1000 + u64::from(module.id())), Ok(())));
    assert_eq!(module.state(), ModuleState::Failed);
}

#[test]
fn a_file_overwritten_in_place_does_not_touch_running_code() {
    let dir = Directory::new("life-overwrite");
    let state = Directory::new("life-overwrite-state");
    let path = dir.build("m.so", &[&define("NAME", "overwritten")]);
    let state_dir = state.0.clone();
    let host = Host::with(move |options| options.state_dir = Some(state_dir), Vec::new());
    let module = host.load(&path).unwrap();
    std::fs::OpenOptions::new().write(true).truncate(true).open(&path).unwrap();
    assert!(host.on(move |_| module.create("{}", OpToken(1)).is_made()));
    assert!(said_by("overwritten").contains(&"create {}".to_owned()));
}

fn canonical(dir: &Directory, file: &str) -> PathBuf {
    dir.0.canonicalize().expect("the directory exists").join(file)
}

#[test]
fn plugins_that_come_change_and_go_are_noticed() {
    let dir = Directory::new("life-watch");
    let host = Host::with(|_| {}, vec![PluginDirectory::configured(&dir.0)]);
    host.on(|modules| modules.watch().unwrap());
    let next = |expected: &str| match host.event() {
        Event::Catalog(changes) => changes,
        other => panic!("{other:?} while waiting for {expected}"),
    };
    dir.build("m.so", &[&define("NAME", "watched")]);
    assert!(matches!(&next("added")[..], [CatalogChange::Added(new)]
        if new.name == "watched" && new.path == canonical(&dir, "m.so")));
    assert!(host.on(|modules| modules.catalog().newest("watched").is_some()));

    dir.build("m.so", &[&define("NAME", "watched"), &define("VERSION", "2")]);
    assert!(matches!(&next("changed")[..], [CatalogChange::Changed { old, new }]
        if old.version < new.version));

    // Written slowly: nothing is seen before it is closed.
    let content = std::fs::read(dir.path("m.so")).unwrap();
    let mut slow = std::fs::File::create(dir.path("slow.so")).unwrap();
    slow.write_all(&content[..1000]).unwrap();
    slow.flush().unwrap();
    assert!(host.events.recv_timeout(Duration::from_millis(400)).is_err());
    slow.write_all(&content[1000..]).unwrap();
    drop(slow);
    harness::set_mode(&dir.path("slow.so"), 0o755);
    assert!(
        matches!(&next("slow")[..], [CatalogChange::Added(new)] if new.path == canonical(&dir, "slow.so"))
    );

    // A link is complete at once. Its other name has not changed, although its link count has.
    std::fs::hard_link(dir.path("m.so"), dir.path("linked.so")).unwrap();
    assert!(
        matches!(&next("linked")[..], [CatalogChange::Added(new)] if new.path == canonical(&dir, "linked.so"))
    );
    std::fs::remove_file(dir.path("m.so")).unwrap();
    let is_removed = |change: &CatalogChange| {
        matches!(change, CatalogChange::Removed(old)
        if old.path == canonical(&dir, "m.so"))
    };
    assert!(next("removed").iter().any(is_removed));

    dir.write("bad.so", b"bad");
    assert!(
        matches!(&next("bad")[..], [CatalogChange::Rejected(error)] if error.to_string().contains("bad.so"))
    );
    harness::compile(&dir.path("bad.so"), &[&define("NAME", "repaired")]);
    assert!(matches!(&next("repaired")[..], [CatalogChange::Added(new)] if new.name == "repaired"));
}

#[test]
fn modules_can_be_shown_as_json() {
    let dir = Directory::new("life-json");
    let path = dir.build("m.so", &[&define("NAME", "shown")]);
    let host = Host::start();
    host.load(&path).unwrap();
    let json = serde_json::to_value(host.on(|modules| modules.info())).unwrap();
    let first = &json[0];
    assert_eq!(first["name"], "shown");
    assert_eq!(first["state"], "running");
    assert_eq!(first["abi"], "1.0");
    assert_eq!(first["certified"], false);
    assert!(first.get("failure").is_none());
}
