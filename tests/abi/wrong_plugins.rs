//! Every file that is no right plugin, given to the process as an operator
//! would: one line names file, reason and remedy, the host goes on and serves
//! its devices, and does not start when it was told that the module is required.

use std::path::{Path, PathBuf};

use serde_json::json;
use tenon_tests::{Host, run, wait_for};

use super::plugin_files::{Plugins, compile, define, set_mode};

/// A case: how the module is configured, and what the line must say.
struct Wrong<'a> {
    plugins: &'a Plugins,
    file: PathBuf,
    module: &'a str,
    /// Lines of `[plugins]`.
    policy: &'a str,
    /// Lines of the `[[module]]` entry.
    options: &'a str,
}

impl<'a> Wrong<'a> {
    fn new(plugins: &'a Plugins, file: PathBuf) -> Self {
        Wrong { plugins, file, module: "fixture", policy: "", options: "" }
    }

    #[track_caller]
    fn is_refused_with(&self, words: &[&str]) {
        self.host_goes_on(words);
        self.required_ends_the_start(words);
    }

    fn config(&self, is_required: bool) -> String {
        format!(
            "[plugins]\n{}\n[[module]]\nname = \"{}\"\nrequired = {is_required}\n{}\n[[bdev]]\nmodule = \"malloc\"\nname = \"m0\"\nsize = \"1MiB\"\n",
            self.policy, self.module, self.options
        )
    }

    /// Started with it in the configuration, and asked to load it once more by hand.
    #[track_caller]
    fn host_goes_on(&self, words: &[&str]) {
        let directory = &self.plugins.directory;
        let mut host = Host::start_in(
            tenon_tests::Scratch::new(),
            &self.config(false),
            &["--plugin-dir", directory.to_str().unwrap()],
        );
        let log = host.log();
        let complaints = self.complaints(&log);
        assert_eq!(complaints.len(), 1, "{log}");
        self.check_line(complaints[0], words);
        let error = host.err("module_load", json!({ "path": self.file }));
        self.check_line(&error.message, words);
        // The device that was there works, and others can be made.
        assert_eq!(host.bdevs(), ["m0"]);
        host.ok("bdev_passthru_create", json!({ "name": "p0", "base_bdev_name": "m0" }));
        host.ok("bdev_passthru_delete", json!({ "name": "p0" }));
        host.ok("bdev_null_create", json!({ "name": "n0", "num_blocks": 8, "block_size": 512 }));
        host.stop();
    }

    #[track_caller]
    fn required_ends_the_start(&self, words: &[&str]) {
        let file = self.plugins.scratch.write("required.toml", &self.config(true));
        let socket = self.plugins.scratch.join("required.sock");
        let directory = &self.plugins.directory;
        let (file, socket) = (file.to_str().unwrap(), socket.to_str().unwrap());
        let output =
            run(&["run", "-c", file, "--rpc-socket", socket, "--plugin-dir", directory.to_str().unwrap()]);
        assert_eq!(output.code, 69, "{}", output.stderr);
        let complaints = self.complaints(&output.stderr);
        assert_eq!(complaints.len(), 1, "{}", output.stderr);
        self.check_line(complaints[0], words);
        assert!(!Path::new(socket).exists(), "a socket is left behind");
    }

    /// What asks the operator to act, about this file.
    fn complaints<'t>(&self, text: &'t str) -> Vec<&'t str> {
        let name = self.file.file_name().unwrap().to_str().unwrap();
        let asks = |line: &&str| line.contains(" ERROR ") || line.starts_with("tenon: ");
        text.lines().filter(asks).filter(|line| line.contains(name)).collect()
    }

    #[track_caller]
    fn check_line(&self, line: &str, words: &[&str]) {
        let name = self.file.file_name().unwrap().to_str().unwrap();
        for word in words.iter().chain([&name]) {
            assert!(line.contains(word), "`{word}` is missing in: {line}");
        }
        assert!(!line.contains('\n'), "more than one line: {line}");
    }
}

#[track_caller]
fn refused(plugins: &Plugins, file: PathBuf, words: &[&str]) {
    Wrong::new(plugins, file).is_refused_with(words);
}

#[test]
fn a_text_is_not_elf() {
    let plugins = Plugins::new();
    let file = plugins.write("libfixture.so", b"#!/bin/sh\n");
    refused(&plugins, file, &["is not an ELF file", "give the shared library"]);
}

#[test]
fn a_cut_file_is_truncated() {
    let plugins = Plugins::new();
    let whole = std::fs::read(plugins.fixture("whole.so", &[])).unwrap();
    std::fs::remove_file(plugins.path("whole.so")).unwrap();
    let file = plugins.write("libfixture.so", &whole[..whole.len() / 2]);
    refused(&plugins, file, &["is truncated", "copy the file again"]);
}

#[test]
fn a_build_for_another_processor_is_named() {
    let plugins = Plugins::new();
    let mut content = std::fs::read(plugins.fixture("libfixture.so", &[])).unwrap();
    // `e_machine` of the ELF header.
    content[18..20].copy_from_slice(&22_u16.to_ne_bytes());
    let file = plugins.write("libfixture.so", &content);
    refused(&plugins, file, &["is built for s390", "install the build for this machine"]);
}

#[test]
fn a_library_without_the_entry_is_no_plugin() {
    let plugins = Plugins::new();
    let file = plugins.fixture("libfixture.so", &["-DNO_ENTRY"]);
    refused(&plugins, file, &["does not export tenon_plugin_v1", "give the shared library"]);
    let file = plugins.fixture("libfixture.so", &["-DNO_META"]);
    refused(&plugins, file, &["has no section .tenon_plugin", "give the shared library"]);
}

#[test]
fn another_major_version_is_refused_by_its_metadata_and_by_its_descriptor() {
    let plugins = Plugins::new();
    let meta = define("META", "abi=2.0\\0name=fixture\\0version=1.0.0");
    let file = plugins.fixture("libfixture.so", &[&meta]);
    let words =
        ["is built for contract version 2.x, this host speaks 1.x", "install the build of this plugin"];
    refused(&plugins, file, &words);
    let file = plugins.fixture("libfixture.so", &["-DMAJOR=2"]);
    refused(&plugins, file, &words);
}

#[test]
fn types_of_another_size_are_named() {
    let plugins = Plugins::new();
    let file = plugins.fixture("libfixture.so", &["-DLIMITS_SIZE=99"]);
    refused(&plugins, file, &["its Limits has 99 bytes, the host's has", "rebuild the plugin against"]);
    let file = plugins.fixture("libfixture.so", &["-DDESC_SIZE=40"]);
    refused(&plugins, file, &["its PluginDescV1 says it has 40 bytes", "report this to the plugin's vendor"]);
}

#[test]
fn a_layout_that_differs_is_named_by_its_field() {
    let plugins = Plugins::new();
    let file = plugins.example("layout_differs", "libcertified.so");
    let words =
        ["its CopyRange.num_blocks is u32 of 4 bytes, the host's is u64", "rebuild the plugin against"];
    Wrong { module: "certified", ..Wrong::new(&plugins, file) }.is_refused_with(&words);
}

#[test]
fn a_plugin_without_a_certificate_is_refused_where_one_is_required() {
    let plugins = Plugins::new();
    let file = plugins.fixture("libfixture.so", &[]);
    let words = ["carries no layout certificate", "set layout_check to \"warn\""];
    Wrong { policy: "layout_check = \"require\"", ..Wrong::new(&plugins, file) }.is_refused_with(&words);
}

#[test]
fn what_it_lacks_to_be_linked_is_named() {
    let plugins = Plugins::new();
    let source = plugins.scratch.write("absent.c", "void absent_library_function(void) {}\n");
    let absent = plugins.scratch.join("libabsent.so.1");
    compile(&source, &plugins.scratch.join("."), &absent, &["-Wl,-soname,libabsent.so.1"]);
    let file = plugins.fixture("libfixture.so", &["-DNEEDS_LIBRARY", absent.to_str().unwrap()]);
    std::fs::remove_file(absent).unwrap();
    refused(&plugins, file, &["libabsent.so.1", "cannot be linked", "install the library it needs"]);
    let file = plugins.fixture("libfixture.so", &["-DNEEDS_SYMBOL"]);
    refused(&plugins, file, &["nobody_defines_this", "cannot be linked"]);
}

#[test]
fn an_init_that_fails_says_why() {
    let plugins = Plugins::new();
    let file = plugins.example("troubled", "libtroubled.so");
    let words = [
        "init of module troubled failed with -22",
        "the licence has expired",
        "correct what it complains about",
    ];
    let case = Wrong { module: "troubled", options: "trouble = \"fails\"", ..Wrong::new(&plugins, file) };
    case.is_refused_with(&words);
}

#[test]
fn an_init_that_panics_fails_only_its_module() {
    let plugins = Plugins::new();
    let file = plugins.example("troubled", "libtroubled.so");
    let words = ["init of module troubled failed", "panic", "the vendor's assertion does not hold"];
    let case = Wrong { module: "troubled", options: "trouble = \"panics\"", ..Wrong::new(&plugins, file) };
    case.is_refused_with(&words);
}

#[test]
fn an_init_that_never_returns_is_given_up_at_its_deadline() {
    let plugins = Plugins::new();
    let file = plugins.example("troubled", "libtroubled.so");
    let words = ["init of module troubled did not finish within 1s", "raise the deadline"];
    let case = Wrong {
        module: "troubled",
        policy: "init_timeout_sec = 1",
        options: "trouble = \"hangs\"",
        ..Wrong::new(&plugins, file)
    };
    case.is_refused_with(&words);
}

#[test]
fn a_plugin_that_others_may_write_is_refused() {
    let plugins = Plugins::new();
    let file = plugins.fixture("libfixture.so", &[]);
    set_mode(&file, 0o775);
    refused(&plugins, file.clone(), &["the file", "is writable by others (mode 0775)", "chmod go-w"]);
    set_mode(&file, 0o755);
    set_mode(&plugins.directory, 0o757);
    refused(&plugins, file, &["its directory", "is writable by others (mode 0757)", "chmod go-w"]);
}

#[test]
fn a_second_module_of_one_name_is_refused_and_the_first_stays() {
    let plugins = Plugins::new();
    let first = plugins.fixture("libfirst.so", &[]);
    let second = plugins.fixture("libsecond.so", &[&define("VERSION", "0.9.0")]);
    let config = "[[module]]\nname = \"fixture\"\nrequired = true\n";
    let directory = &plugins.directory;
    let mut host =
        Host::start_in(tenon_tests::Scratch::new(), config, &["--plugin-dir", directory.to_str().unwrap()]);
    let error = host.err("module_load", json!({ "path": second }));
    assert_eq!(error.code, -17, "{error:?}");
    for word in [
        "libsecond.so",
        "module fixture 1.0.0 is already loaded from",
        "libfirst.so",
        "unregister that module first",
    ] {
        assert!(error.message.contains(word), "`{word}` is missing in: {}", error.message);
    }
    // Twice the same file is the same mistake.
    assert_eq!(host.err("module_load", json!({ "path": first })).code, -17);
    host.ok("module_unregister", json!({ "name": "fixture" }));
    host.ok("module_load", json!({ "path": second }));
    host.stop();
}

#[test]
fn a_library_that_blocks_the_linker_lets_the_host_go_on_and_end() {
    let plugins = Plugins::new();
    let mut host = Host::start("[plugins]\ninit_timeout_sec = 1\n");
    let malloc = json!({ "name": "m0", "num_blocks": 8, "block_size": 512 });
    host.ok("bdev_malloc_create", malloc);
    let file = plugins.fixture("libfixture.so", &["-DSLOW_CONSTRUCTOR"]);
    let error = host.err("module_load", json!({ "path": file }));
    assert!(error.message.contains("opening it did not finish within 1s"), "{error:?}");
    // The linker belongs to that library now: what is loaded works, what is not is refused at once.
    assert_eq!(host.bdevs(), ["m0"]);
    let error = host.err("module_load", json!({ "name": "null" }));
    assert!(error.message.contains("the dynamic linker is held by"), "{error:?}");
    assert!(error.message.contains("libfixture.so"), "{error:?}");
    host.ok("bdev_malloc_delete", json!({ "name": "m0" }));
    host.stop();
}

#[test]
fn a_wrong_file_dropped_into_a_watched_directory_is_told_once() {
    let plugins = Plugins::new();
    let directory = &plugins.directory;
    let mut host =
        Host::start_in(tenon_tests::Scratch::new(), "", &["--plugin-dir", directory.to_str().unwrap()]);
    plugins.write("libfixture.so", b"not a library");
    wait_for("the complaint", || host.log().contains("is not an ELF file").then_some(()));
    // Something else happens in the directory: nothing new about the first.
    plugins.fixture("libother.so", &[&define("NAME", "other")]);
    wait_for("the other plugin", || {
        let list = host.ok("module_get_list", json!({}));
        list["available"].to_string().contains("libother.so").then_some(())
    });
    let log = host.log();
    assert_eq!(log.lines().filter(|line| line.contains("libfixture.so")).count(), 1, "{log}");
    host.stop();
}
