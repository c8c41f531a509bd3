//! The same contract, checked on the RAM disk in C: compiled here as its own
//! README line says, and loaded as the host loads it.

use std::path::PathBuf;
use std::process::Command;

use tenon_testkit::{Conformance, Plugin, bdev_conformance};

#[test]
fn a_plugin_in_c_conforms_to_the_bdev_contract() {
    let examples = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../c-ramdisk");
    let plugin = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("ramdisk.so");
    let status = Command::new("cc")
        .args([
            "-std=c11",
            "-O2",
            "-Wall",
            "-Wextra",
            "-Werror",
            "-fPIC",
            "-shared",
            "-fvisibility=hidden",
            "-I",
        ])
        .arg(examples.join("../.."))
        .arg("-o")
        .arg(&plugin)
        .arg(examples.join("ramdisk.c"))
        .status();
    assert!(status.expect("a C compiler").success());
    let suite = Conformance::new(r#"{"name": "r0", "num_blocks": 32768, "block_size": 512}"#);
    bdev_conformance(Plugin::library(&plugin), suite);
}
