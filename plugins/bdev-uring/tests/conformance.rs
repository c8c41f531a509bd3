//! The module against the conformance suite for block devices, on real files.

use std::fs::OpenOptions;
use std::path::PathBuf;
use std::process::Command;

use tenon_testkit::{Conformance, bdev_conformance};

/// A path whose file is gone after the test.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Scratch {
        let path = std::env::temp_dir().join(format!("tenon-uring-{}-{name}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        Scratch(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

#[track_caller]
fn check(name: &str, fields: &str) {
    let file = Scratch::new(name);
    let path = file.0.clone();
    let params = format!(r#"{{"name":"u0","filename":"{}","create_size":"16MiB"{fields}}}"#, path.display());
    let suite =
        Conformance::new(&params).real_io(true).seeds(1).resize_with(move |host, name, num_blocks| {
            let block_size = host.device(name).map_or(512, |device| device.limits.block_size);
            let file = OpenOptions::new().write(true).open(&path).expect("the device made the file");
            file.set_len(num_blocks * u64::from(block_size)).expect("a file can have any size");
            host.rpc("bdev_uring_rescan", &format!(r#"{{"name":"{name}"}}"#)).map(drop)
        });
    bdev_conformance(bdev_uring::plugin, suite);
}

#[test]
fn conforms_to_the_bdev_contract() {
    check("direct", "");
}

#[test]
fn conforms_through_the_page_cache_with_large_blocks_and_few_slots() {
    check("cached", r#","direct":false,"block_size":4096,"queue_depth":4"#);
}

#[test]
fn conforms_without_fallocate() {
    check("written", r#","fallocate":false"#);
}

/// A loop device on a file, detached after the test.
struct Loop(String);

impl Loop {
    fn new(file: &Scratch) -> Loop {
        let image = std::fs::File::create(&file.0).expect("a temporary file");
        image.set_len(16 << 20).expect("a file can have any size");
        let output =
            Command::new("losetup").args(["--find", "--show"]).arg(&file.0).output().expect("losetup runs");
        assert!(output.status.success(), "losetup: {}", String::from_utf8_lossy(&output.stderr));
        Loop(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["--detach", &self.0]).status();
    }
}

#[test]
#[ignore = "needs root and a loop device"]
fn conforms_on_a_block_device() {
    let file = Scratch::new("loop");
    let device = Loop::new(&file);
    let params = format!(r#"{{"name":"u0","filename":"{}"}}"#, device.0);
    bdev_conformance(bdev_uring::plugin, Conformance::new(&params).real_io(true).seeds(1));
}
