//! Plugins at run time: from C, from a watched directory, broken, unregistered.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use tenon_tests::{Host, Scratch, plugin, root, wait_for};

/// Builds the C example as a vendor would.
fn build_c_example(out: &Path) {
    let status = Command::new("gcc")
        .args(["-std=c11", "-Wall", "-Wextra", "-Werror", "-O2", "-fPIC", "-shared"])
        .arg("-I")
        .arg(root().join("plugin-api"))
        .arg(root().join("plugin-api/examples/c-ramdisk/ramdisk.c"))
        .arg("-o")
        .arg(out)
        .status()
        .expect("gcc runs");
    assert!(status.success());
}

/// A directory nobody else may write to, as the host asks of plugin directories.
fn plugin_directory(scratch: &Scratch) -> PathBuf {
    use std::os::unix::fs::PermissionsExt;
    let path = scratch.join("plugins");
    std::fs::create_dir_all(&path).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path
}

fn start_with(scratch: Scratch, directory: &Path, config: &str) -> Host {
    let directory = directory.to_str().unwrap().to_owned();
    Host::start_in(scratch, config, &["--plugin-dir", &directory])
}

#[test]
fn a_plugin_in_c_is_created_stacked_and_deleted() {
    let scratch = Scratch::new();
    let directory = plugin_directory(&scratch);
    build_c_example(&directory.join("libc_ramdisk.so"));
    let mut host = start_with(scratch, &directory, "");
    let available = host.ok("module_get_list", json!({}))["available"].clone();
    let name = available
        .as_array()
        .unwrap()
        .iter()
        .find(|one| one["path"].as_str().is_some_and(|path| path.ends_with("libc_ramdisk.so")))
        .map(|one| one["name"].as_str().unwrap().to_owned())
        .expect("the C plugin is found");
    host.ok("module_load", json!({ "name": name }));
    host.ok(&format!("bdev_{name}_create"), json!({ "name": "c0", "num_blocks": 2048 }));
    host.ok("bdev_passthru_create", json!({ "name": "p0", "base_bdev_name": "c0" }));
    host.ok(&format!("bdev_{name}_delete"), json!({ "name": "c0" }));
    assert!(host.bdevs().is_empty());
    host.ok("module_unregister", json!({ "name": name }));
    host.stop();
}

#[test]
fn broken_plugin_files_are_listed_and_disturb_nobody() {
    let scratch = Scratch::new();
    let directory = plugin_directory(&scratch);
    std::fs::write(directory.join("libtext.so"), "not a library").unwrap();
    let good = std::fs::read(plugin("bdev-null")).unwrap();
    std::fs::write(directory.join("libcut.so"), &good[..good.len() / 3]).unwrap();
    let mut host =
        start_with(scratch, &directory, "[[bdev]]\nmodule = \"malloc\"\nname = \"m0\"\nsize = \"1MiB\"\n");
    assert_eq!(host.bdevs(), ["m0"]);
    let rejected = host.ok("module_get_list", json!({}))["rejected"].clone();
    for file in ["libtext.so", "libcut.so"] {
        let line =
            rejected.as_array().unwrap().iter().filter_map(Value::as_str).find(|line| line.contains(file));
        assert!(line.is_some(), "{file} is missing in {rejected}");
    }
    let error = host.err("module_load", json!({ "path": directory.join("libtext.so") }));
    assert!(error.message.contains("libtext.so"), "{error:?}");
    host.stop();
}

#[test]
fn a_plugin_dropped_into_a_watched_directory_can_be_used() {
    let scratch = Scratch::new();
    let directory = plugin_directory(&scratch);
    let mut host = start_with(scratch, &directory, "");
    build_c_example(&directory.join("new.tmp"));
    std::fs::rename(directory.join("new.tmp"), directory.join("libdropped.so")).unwrap();
    wait_for("the dropped plugin", || {
        let list = host.ok("module_get_list", json!({}));
        list["available"].to_string().contains("libdropped.so").then_some(())
    });
    host.stop();
}

#[test]
fn a_module_that_lists_no_method_makes_devices_by_its_name() {
    let mut host = Host::start("");
    host.ok("module_load", json!({ "path": plugin("example_ramdisk") }));
    host.ok("bdev_ramdisk_create", json!({ "name": "r0", "size": "1MiB" }));
    host.ok("bdev_ramdisk_delete", json!({ "name": "r0" }));
    assert!(host.bdevs().is_empty());
    let error = host.err("bdev_transport_tcp_create", json!({}));
    assert!(error.message.contains("not found"), "{error:?}");
    host.stop();
}

#[test]
fn a_module_loaded_from_its_file_takes_its_options_and_wrong_ones_are_not_kept() {
    let mut host = Host::start("");
    let file = plugin("bdev-nvme");
    let saved = |host: &mut Host| host.ok("save_config", json!({})).as_str().unwrap().to_owned();
    let error = host.err("module_load", json!({ "path": file, "config": { "bdev_retry_count": "many" } }));
    assert!(error.message.contains("bdev_retry_count"), "{error:?}");
    assert!(!saved(&mut host).contains("bdev_retry_count"));
    host.ok("module_load", json!({ "path": file, "config": { "bdev_retry_count": 7 } }));
    assert!(saved(&mut host).contains("bdev_retry_count = 7"), "{}", saved(&mut host));
    // By name it is found as it runs; other options are another matter.
    host.ok("module_load", json!({ "name": "nvme" }));
    let error = host.err("module_load", json!({ "name": "nvme", "config": { "bdev_retry_count": 8 } }));
    assert_eq!(error.code, -17, "{error:?}");
    assert!(saved(&mut host).contains("bdev_retry_count = 7"));
    host.stop();
}

#[test]
fn unregistering_a_module_removes_its_devices_and_it_can_be_loaded_again() {
    let mut host = Host::start("");
    let malloc = json!({ "name": "m0", "num_blocks": 8, "block_size": 512 });
    host.ok("bdev_malloc_create", malloc.clone());
    host.ok("bdev_passthru_create", json!({ "name": "p0", "base_bdev_name": "m0" }));
    host.ok("module_unregister", json!({ "name": "malloc" }));
    assert!(host.bdevs().is_empty());
    host.ok("bdev_malloc_create", malloc);
    host.stop();
}

#[test]
fn files_that_appear_and_grow_are_noticed() {
    let mut host = Host::start("");
    let file = host.scratch().join("disk.img");
    std::fs::File::create(&file).unwrap().set_len(1 << 20).unwrap();
    host.ok("bdev_uring_create", json!({ "name": "f0", "filename": file, "block_size": 512 }));
    std::fs::File::options().write(true).open(&file).unwrap().set_len(2 << 20).unwrap();
    wait_for("the new size", || {
        (host.ok("bdev_get_bdevs", json!({ "name": "f0" }))[0]["num_blocks"] == 4096).then_some(())
    });
    std::fs::remove_file(&file).unwrap();
    wait_for("the removal", || host.bdevs().is_empty().then_some(()));
    host.stop();
}

#[test]
fn a_stack_comes_back_with_the_file_it_stands_on() {
    let scratch = Scratch::new();
    let (file, aside) = (scratch.join("disk.img"), scratch.join("aside.img"));
    std::fs::File::create(&file).unwrap().set_len(1 << 20).unwrap();
    let config = format!(
        "[[bdev]]\nmodule = \"uring\"\nname = \"f0\"\nfilename = \"{}\"\nblock_size = 512\nwait_for_file = true\n\
         [[bdev]]\nmodule = \"passthru\"\nname = \"p0\"\nbase = \"f0\"\n",
        file.display()
    );
    let mut host = Host::start_in(scratch, &config, &[]);
    assert_eq!(host.bdevs(), ["f0", "p0"]);
    std::fs::rename(&file, &aside).unwrap();
    wait_for("the removal", || host.bdevs().is_empty().then_some(()));
    std::fs::rename(&aside, &file).unwrap();
    wait_for("the return", || (host.bdevs() == ["f0", "p0"]).then_some(()));
    host.stop();
}
