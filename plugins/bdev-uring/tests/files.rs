//! What a device does when its file comes, goes, changes or is another one, and
//! what it leaves in the file.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs::{self, OpenOptions};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tenon_sdk::abi::{BdevEventKind, HotplugKind};
use tenon_sdk::{BdevState, IoFlags, IoStatus};
use tenon_testkit::{Access, FakeHost, ModuleId, Request};

const MIB: u64 = 1 << 20;
const SOON: Duration = Duration::from_secs(10);

/// A directory of its own, gone after the test.
struct Rig {
    host: FakeHost,
    module: ModuleId,
    folder: PathBuf,
}

impl Rig {
    fn new(test: &str) -> Rig {
        let folder = std::env::temp_dir().join(format!("tenon-uring-files-{}-{test}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir(&folder).unwrap();
        let host = FakeHost::builder().real_io(true).build();
        let module = host.load(bdev_uring::plugin, "{}").unwrap();
        Rig { host, module, folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// A file of 1 MiB filled with `byte`.
    fn file(&self, name: &str, byte: u8) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, vec![byte; MIB as usize]).unwrap();
        path
    }

    fn create(&self, path: &Path, fields: &str) -> Result<Vec<String>, tenon_testkit::OpError> {
        let path = path.display();
        self.host.create(self.module, &format!(r#"{{"name":"u0","filename":"{path}"{fields}}}"#))
    }

    /// What the host's watcher tells when something happened at a path.
    fn tell(&self, path: &Path) {
        self.host.hotplug("file", &path.display().to_string(), HotplugKind::CHANGE, "{}");
    }

    fn state(&self) -> Option<BdevState> {
        self.host.device("u0").map(|device| device.state)
    }

    #[track_caller]
    fn wait_for(&self, state: Option<BdevState>) {
        assert!(
            self.host.run_until(SOON, || self.state() == state),
            "{:?} instead of {state:?}",
            self.state()
        );
    }

    fn first_byte(&self) -> u8 {
        self.host.once("u0", Request::read(0, 1)).unwrap().data[0]
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

#[test]
fn what_is_written_is_in_the_file_and_what_is_unmapped_is_not() {
    let rig = Rig::new("content");
    let path = rig.file("f", 7);
    rig.create(&path, "").unwrap();
    let run = |request: Request| rig.host.once("u0", request).unwrap().status;
    assert_eq!(run(Request::write(8, 8, vec![9; 4096]).flags(IoFlags::FUA)), IoStatus::SUCCESS);
    assert_eq!(run(Request::write_zeroes(16, 8)), IoStatus::SUCCESS);
    assert_eq!(run(Request::unmap(1024, 1024)), IoStatus::SUCCESS);
    assert_eq!(run(Request::flush()), IoStatus::SUCCESS);
    let content = fs::read(&path).unwrap();
    assert_eq!(content[..4096], [7; 4096]);
    assert_eq!(content[4096..8192], [9; 4096]);
    assert_eq!(content[8192..12288], [0; 4096]);
    assert!(content[MIB as usize / 2..].iter().all(|byte| *byte == 0));
    assert!(fs::metadata(&path).unwrap().blocks() * 512 < MIB * 3 / 4);
}

#[test]
fn io_waits_while_the_file_is_away_and_goes_on_when_it_is_back() {
    let rig = Rig::new("away");
    let path = rig.file("f", 7);
    rig.create(&path, "").unwrap();
    let descriptor = rig.host.open("u0", Access::Write).unwrap();
    let channel = descriptor.channel(0).unwrap();
    fs::rename(&path, rig.path("elsewhere")).unwrap();
    rig.tell(&path);
    rig.wait_for(Some(BdevState::ABSENT));
    let io = channel.submit(Request::read(0, 1));
    rig.host.advance(Duration::from_millis(50));
    assert!(!io.is_done());
    fs::rename(rig.path("elsewhere"), &path).unwrap();
    rig.tell(&path);
    rig.wait_for(Some(BdevState::READY));
    assert_eq!(rig.host.wait(&io).data[0], 7);
    let kinds: Vec<_> = descriptor.events().iter().map(|event| event.kind).collect();
    assert_eq!(kinds, [BdevEventKind::ABSENT, BdevEventKind::PRESENT]);
    channel.put();
    descriptor.close();
}

#[test]
fn a_device_whose_file_stays_away_is_removed() {
    let rig = Rig::new("stays-away");
    let path = rig.file("f", 7);
    rig.create(&path, r#","absent_timeout_sec":"20ms""#).unwrap();
    fs::remove_file(&path).unwrap();
    rig.tell(&path);
    rig.wait_for(None);
    rig.file("f", 8);
    rig.tell(&path);
    rig.host.advance(Duration::from_millis(50));
    assert_eq!(rig.state(), None);
    // The name is free again.
    rig.create(&path, "").unwrap();
    assert_eq!(rig.first_byte(), 8);
}

#[test]
fn without_a_timeout_a_device_goes_with_its_file() {
    let rig = Rig::new("at-once");
    let path = rig.file("f", 7);
    rig.create(&path, r#","absent_timeout_sec":0"#).unwrap();
    fs::remove_file(&path).unwrap();
    rig.tell(&path);
    rig.wait_for(None);
}

#[test]
fn another_file_of_the_same_name_is_another_device() {
    let rig = Rig::new("replaced");
    let path = rig.file("f", 7);
    rig.create(&path, r#","wait_for_file":true"#).unwrap();
    let uuid = rig.host.device("u0").unwrap().uuid;
    let descriptor = rig.host.open("u0", Access::Read).unwrap();
    fs::rename(rig.file("g", 8), &path).unwrap();
    rig.tell(&path);
    assert!(rig.host.run_until(SOON, || descriptor.is_removed()));
    descriptor.close();
    assert!(rig.host.run_until(SOON, || {
        rig.host.device("u0").is_some_and(|device| device.uuid != uuid && device.state == BdevState::READY)
    }));
    assert_eq!(rig.first_byte(), 8);
}

#[test]
fn a_file_that_is_waited_for_becomes_a_device_when_it_appears() {
    let rig = Rig::new("appears");
    let path = rig.path("f");
    assert_eq!(rig.create(&path, r#","wait_for_file":true"#).unwrap(), Vec::<String>::new());
    let waiting = rig.host.rpc("bdev_uring_get_waiting", "{}").unwrap();
    assert_eq!(waiting, format!(r#"[{{"name":"u0","filename":"{}"}}]"#, path.display()));
    // Still empty: not a device yet, and looked at again by itself.
    fs::write(&path, []).unwrap();
    rig.tell(&path);
    rig.host.advance(Duration::from_millis(20));
    assert_eq!(rig.state(), None);
    rig.file("f", 5);
    rig.wait_for(Some(BdevState::READY));
    assert_eq!(rig.first_byte(), 5);
    assert_eq!(rig.host.rpc("bdev_uring_get_waiting", "{}").unwrap(), "[]");
}

#[test]
fn a_wait_can_be_ended_and_a_deleted_device_does_not_come_back() {
    let rig = Rig::new("ended");
    let path = rig.path("f");
    rig.create(&path, r#","wait_for_file":true"#).unwrap();
    rig.host.delete("u0").unwrap();
    assert_eq!(rig.host.rpc("bdev_uring_get_waiting", "{}").unwrap(), "[]");
    assert_eq!(rig.host.delete("u0").unwrap_err().code, tenon_sdk::errno::ENODEV);
    rig.file("f", 5);
    rig.create(&path, r#","wait_for_file":true"#).unwrap();
    rig.host.delete("u0").unwrap();
    rig.tell(&path);
    rig.host.advance(Duration::from_millis(50));
    assert_eq!(rig.state(), None);
    assert!(rig.host.watches().is_empty());
}

#[test]
fn a_file_that_grows_is_a_device_that_grows() {
    let rig = Rig::new("grows");
    let path = rig.file("f", 7);
    rig.create(&path, "").unwrap();
    let descriptor = rig.host.open("u0", Access::Write).unwrap();
    let set_len = |bytes: u64| OpenOptions::new().write(true).open(&path).unwrap().set_len(bytes).unwrap();
    let blocks = || rig.host.device("u0").unwrap().limits.num_blocks;
    set_len(2 * MIB);
    rig.tell(&path);
    assert!(rig.host.run_until(SOON, || blocks() == 4096));
    for (method, mib) in [("bdev_uring_rescan", 3), ("bdev_aio_rescan", 4)] {
        set_len(mib * MIB);
        rig.host.rpc(method, r#"{"name":"u0"}"#).unwrap();
        assert!(rig.host.run_until(SOON, || blocks() == mib * 2048));
    }
    let sizes: Vec<_> = descriptor.events().iter().map(|event| event.value).collect();
    assert_eq!(sizes, [4096, 6144, 8192]);
    descriptor.close();
}

#[test]
fn a_file_that_was_cut_gives_errors_and_never_data() {
    let rig = Rig::new("cut");
    let path = rig.file("f", 7);
    rig.create(&path, "").unwrap();
    OpenOptions::new().write(true).open(&path).unwrap().set_len(4096).unwrap();
    let status = |request: Request| rig.host.once("u0", request).unwrap().status;
    // Depending on whether the new size is known yet, the read fails in the host or in the file.
    let past_the_end = [IoStatus::IO_ERROR, IoStatus::LBA_OUT_OF_RANGE];
    assert_eq!(status(Request::read(0, 8)), IoStatus::SUCCESS);
    assert!(past_the_end.contains(&status(Request::read(0, 16))));
    assert!(past_the_end.contains(&status(Request::read(100, 1))));
}

#[test]
fn a_lock_of_a_dead_process_is_waited_for() {
    let rig = Rig::new("dead-writer");
    let path = rig.file("f", 7);
    let file = std::fs::File::open(&path).unwrap();
    // The lock belongs to the open file, which is ours too, and is kept by the one who took it, who is gone.
    let dead =
        std::process::Command::new("flock").args(["-n", "0"]).stdin(file.try_clone().unwrap()).status();
    assert!(dead.unwrap().success());
    let other = std::thread::spawn(move || {
        std::thread::park_timeout(std::time::Duration::from_millis(50));
        drop(file);
    });
    rig.create(&path, "").unwrap();
    other.join().unwrap();
}

#[test]
fn a_file_has_one_writer() {
    let rig = Rig::new("one-writer");
    let path = rig.file("f", 7);
    rig.create(&path, "").unwrap();
    let second = format!(r#"{{"name":"u1","filename":"{}"}}"#, path.display());
    let error = rig.host.create(rig.module, &second).unwrap_err();
    assert_eq!(error.reason, "another process or device uses the file");
    rig.host.delete("u0").unwrap();
    rig.host.create(rig.module, &second).unwrap();
}

#[test]
fn a_readonly_device_takes_no_writes_and_shares_its_file() {
    let rig = Rig::new("readonly");
    let path = rig.file("f", 7);
    rig.create(&path, r#","readonly":true"#).unwrap();
    let again = format!(r#"{{"name":"u1","filename":"{}","readonly":true}}"#, path.display());
    rig.host.create(rig.module, &again).unwrap_err();
    let again = again.replace('}', r#","uuid":"f9c9f0a7-8a1e-4d53-9c3f-5c1f6f0b7d10"}"#);
    rig.host.create(rig.module, &again).unwrap();
    let status = rig.host.once("u0", Request::write(0, 1, vec![1; 512])).unwrap().status;
    assert!(!status.is_success());
    assert_eq!(rig.first_byte(), 7);
}

#[test]
fn what_is_no_usable_file_is_refused_with_its_path() {
    let rig = Rig::new("refused");
    let error = rig.create(&rig.path("missing"), "").unwrap_err();
    assert_eq!((error.code, error.reason.as_str()), (-2, "cannot open the file"));
    assert_eq!(error.object, rig.path("missing").display().to_string());
    assert_eq!(
        rig.create(&rig.folder, "").unwrap_err().reason,
        "is neither a regular file nor a block device"
    );
    let small = rig.path("small");
    fs::write(&small, [0; 100]).unwrap();
    assert_eq!(rig.create(&small, "").unwrap_err().reason, "is smaller than a block of 512 bytes");
    let error = rig.create(&rig.path("new"), r#","create_size":100"#).unwrap_err();
    assert_eq!(error.reason, "is smaller than a block of 512 bytes");
}

#[test]
fn the_same_file_has_the_same_identity_at_every_start() {
    let rig = Rig::new("identity");
    let path = rig.file("f", 7);
    let uuid = || {
        rig.create(&path, "").unwrap();
        let uuid = rig.host.device("u0").unwrap().uuid;
        rig.host.delete("u0").unwrap();
        uuid
    };
    assert_eq!(uuid(), uuid());
}
