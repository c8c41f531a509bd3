//! A plugin built from any version of the contract works under today's host.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use tenon_tests::{Host, Scratch, counts, root, tenon, wait_for, wait_for_counts};

use super::history::versions;
use super::plugin_files::{Plugins, compile, set_mode};

const RUST_DEVICE: &str = "[[bdev]]\nmodule = \"ramdisk\"\nname = \"d0\"\nsize = \"1MiB\"\n";
const C_DEVICE: &str = "[[bdev]]\nmodule = \"c_ramdisk\"\nname = \"d0\"\nnum_blocks = 2048\n";
const FILTER: &str = "[[bdev]]\nmodule = \"passthru\"\nname = \"p0\"\nbase = \"d0\"\n";

#[test]
fn the_rust_plugin_of_every_contract_version_works() {
    for version in versions() {
        // It carries a certificate, so that the strictest policy has to take it.
        works(&version.rust_plugin(), "ramdisk", &version.abi, RUST_DEVICE, "require");
    }
}

#[test]
fn the_c_plugin_of_every_contract_version_works() {
    for version in versions() {
        works(&version.c_plugin(), "c_ramdisk", &version.abi, C_DEVICE, "warn");
    }
}

/// Loads `plugin`, builds a stack on its device and takes it down, by configuration and by hand, retires it, and
/// keeps data on it.
#[track_caller]
fn works(plugin: &Path, module: &str, abi: &str, device: &str, layout_check: &str) {
    let scratch = Scratch::new();
    let program = program_with(&scratch, plugin);
    let policy = format!("[plugins]\nlayout_check = \"{layout_check}\"\n");
    let file = scratch.write("tenon.toml", &policy);
    let mut command = Command::new(&program);
    command.arg("run").arg("-c").arg(&file).arg("--rpc-socket").arg(scratch.join("rpc.sock"));
    let mut host = Host::spawn(scratch, command);
    for name in [module, "passthru"] {
        host.ok("module_load", json!({ "name": name }));
    }
    let list = host.ok("module_get_list", json!({}))["modules"].clone();
    let loaded = list.as_array().unwrap().iter().find(|one| one["name"] == module).expect("it is loaded");
    assert_eq!((&loaded["abi"], &loaded["state"]), (&json!(abi), &json!("running")), "{loaded}");
    assert!(loaded["path"].as_str().unwrap().ends_with("libplugin.so"), "{loaded}");
    let before = counts(&mut host);
    let configure = |host: &mut Host, text: &str| {
        std::fs::write(&file, format!("{policy}{text}")).unwrap();
        host.ok("config_reload", json!({}));
    };
    for _ in 0..2 {
        configure(&mut host, &format!("{FILTER}{device}"));
        wait_for("the stack", || (host.bdevs() == ["d0", "p0"]).then_some(()));
        let base = host.ok("bdev_get_bdevs", json!({ "name": "d0" }))[0].clone();
        assert_eq!((&base["module"], &base["claimed"]), (&json!(module), &json!(true)), "{base}");
        host.ok("bdev_passthru_delete", json!({ "name": "p0" }));
        configure(&mut host, "");
        assert!(host.bdevs().is_empty());
    }
    // The watch of the plugin directory has a timer of its own now and then.
    wait_for_counts(&mut host, &before);
    configure(&mut host, device);
    host.ok("module_unregister", json!({ "name": module }));
    assert!(host.bdevs().is_empty());
    host.stop();
    keeps_its_data(plugin, device);
}

/// Writes through a filter on it and reads everything back.
#[track_caller]
fn keeps_its_data(plugin: &Path, device: &str) {
    let scratch = Scratch::new();
    let program = program_with(&scratch, plugin);
    let file = scratch.write("tenon.toml", &format!("{device}{FILTER}"));
    let output = Command::new(program)
        .args(["perf", "--rw", "randrw", "--mix", "50", "--block-size", "4KiB", "--queue-depth", "8"])
        .args(["--ios", "20000", "--verify", "--json", "--bdev", "p0", "-c"])
        .arg(&file)
        .output()
        .expect("tenon starts");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {errors}", plugin.display());
    let report: Value = serde_json::from_slice(&output.stdout).expect("the report is JSON");
    assert_eq!(report["total"]["errors"], 0, "{report}");
    assert_eq!(report["total"]["mismatched_blocks"], 0, "{report}");
    assert!(report["bdevs"][0]["verified_blocks"].as_u64().unwrap() > 0, "{report}");
}

/// A program directory of its own, so that today's plugin of the same name is not found first: the program,
/// `plugin`, the filter to stack on it, and nothing else.
fn program_with(scratch: &Scratch, plugin: &Path) -> PathBuf {
    let directory = scratch.join("bin");
    std::fs::create_dir(&directory).unwrap();
    set_mode(&directory, 0o755);
    let place = |from: &Path, name: &str| {
        let to = directory.join(name);
        std::fs::copy(from, &to).unwrap_or_else(|error| panic!("{}: {error}", from.display()));
        set_mode(&to, 0o755);
        to
    };
    place(plugin, "libplugin.so");
    place(&tenon_tests::plugin("bdev-passthru"), "libbdev_passthru.so");
    place(&tenon(), "tenon")
}

#[test]
fn a_plugin_of_a_later_minor_version_works_under_this_host() {
    let plugins = Plugins::new();
    let include = plugins.scratch.join("include");
    std::fs::create_dir(&include).unwrap();
    let header = std::fs::read_to_string(root().join("plugin-api/tenon_plugin.h")).unwrap();
    let later: String = header
        .lines()
        .map(|line| match line.starts_with("#define TENON_ABI_MINOR") {
            true => "#define TENON_ABI_MINOR 7\n".to_owned(),
            false => format!("{line}\n"),
        })
        .collect();
    assert_ne!(later, header, "the header says its minor version");
    std::fs::write(include.join("tenon_plugin.h"), later).unwrap();
    let file = plugins.path("libc_ramdisk.so");
    let source = root().join("plugin-api/examples/c-ramdisk/ramdisk.c");
    compile(&source, &include, &file, &[]);
    works(&file, "c_ramdisk", "1.7", C_DEVICE, "warn");
}

#[test]
fn a_plugin_whose_tables_end_earlier_works_under_this_host() {
    let plugins = Plugins::new();
    // Until its `fini`: the first version had not to have more.
    let until_fini = std::mem::offset_of!(tenon_abi::ModuleOpsV1, fini) + 8;
    let file = plugins.fixture("libfixture.so", &[&format!("-DOPS_SIZE={until_fini}")]);
    let mut host = Host::start("");
    host.ok("module_load", json!({ "path": file }));
    assert_eq!(host.ok("bdev_get_bdevs", json!({})), json!([]));
    host.ok("module_unregister", json!({ "name": "fixture" }));
    host.stop();
}
