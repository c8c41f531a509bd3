//! Every way a plugin file can be wrong gives one error that names the file,
//! the reason and the remedy; older and newer minor versions load.

mod harness;

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use harness::{Directory, Host, define, set_mode};
use tenon_modules::{
    Callback, Catalog, LayoutCheck, LoadError, ModuleState, PluginDirectory, Trust, check, inspect,
    open_unstarted,
};

/// Loading `path` must fail with a text that has all of `expected`; the text is one line with the file in it.
#[track_caller]
fn refused(path: &Path, expected: &[&str]) -> LoadError {
    refused_with(LayoutCheck::Warn, path, expected)
}

#[track_caller]
fn refused_with(layout_check: LayoutCheck, path: &Path, expected: &[&str]) -> LoadError {
    let error = check(path, Trust::Owner, layout_check).expect_err("must not load");
    let text = error.to_string();
    let prefix = format!("plugin {}: ", path.display());
    assert!(text.starts_with(&prefix), "{text:?} does not start with {prefix:?}");
    for part in expected {
        assert!(text.contains(part), "{text:?} does not contain {part:?}");
    }
    assert!(
        text.contains(&format!("; {}", error.remedy())) && !error.remedy().is_empty(),
        "{text:?} has no remedy"
    );
    assert!(!text.contains('\n') && !text.ends_with('.'), "{text:?} is not one plain line");
    error.fault
}

#[test]
fn a_right_plugin_in_c_passes() {
    let dir = Directory::new("gates-right");
    let path = dir.build("right.so", &[]);
    let report = check(&path, Trust::Owner, LayoutCheck::Warn).unwrap();
    assert_eq!((report.name.as_str(), report.version.as_str()), ("fixture", "1.0.0"));
    assert_eq!((report.abi, report.built_with.as_str(), report.certified_types), ((1, 0), "gcc", None));
}

#[test]
fn what_is_no_shared_library_is_named() {
    let dir = Directory::new("gates-no-library");
    refused(&dir.path("absent.so"), &["no such file", "check the path"]);
    refused(&dir.0, &["is a directory, not a regular file"]);
    refused(Path::new("/"), &["is a directory"]);
    refused(&dir.write("empty.so", b""), &["is not an ELF file (it starts with nothing"]);
    refused(&dir.write("script.so", b"#!/bin/sh\n"), &["is not an ELF file (it starts with 23 21 2f 62)"]);
    let pipe = dir.path("pipe.so");
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, 0o644.into(), 0).unwrap();
    refused(&pipe, &["is a pipe, not a regular file"]);
    let _socket = std::os::unix::net::UnixListener::bind(dir.path("socket.so")).unwrap();
    refused(&dir.path("socket.so"), &["is a socket or device, not a regular file"]);
}

#[test]
fn wrong_elf_files_are_named() {
    let dir = Directory::new("gates-elf");
    let right = std::fs::read(dir.build("right.so", &[])).unwrap();
    let altered = |file: &str, at: usize, bytes: &[u8]| {
        let mut content = right.clone();
        content[at..at + bytes.len()].copy_from_slice(bytes);
        dir.write(file, &content)
    };
    refused(&altered("class.so", 4, &[1]), &["is a 32-bit object"]);
    refused(&altered("machine.so", 18, &22_u16.to_ne_bytes()), &["is built for s390, this host is"]);
    refused(&altered("type.so", 16, &1_u16.to_ne_bytes()), &["is an object file, not a shared library"]);
    refused(&dir.write("cut.so", &right[..right.len() / 2]), &["is truncated", "copy the file again"]);
    refused(&dir.write("stub.so", &right[..40]), &["is truncated"]);
}

#[test]
fn a_file_without_usable_metadata_is_named() {
    let dir = Directory::new("gates-metadata");
    refused(&dir.build("none.so", &["-DNO_META"]), &["has no section .tenon_plugin"]);
    let build = |file: &str, meta: &str| dir.build(file, &[&define("META", meta)]);
    refused(&build("key.so", "abi=1.0\\0name=x"), &["malformed section", "key version is missing"]);
    refused(&build("pair.so", "abi"), &["\"abi\" is not key=value"]);
    refused(
        &build("major.so", "abi=2.0\\0name=fixture\\0version=1.0.0"),
        &["contract version 2.x, this host speaks 1.x"],
    );
    let name = build("name.so", "abi=1.0\\0name=other\\0version=1.0.0");
    refused(&name, &["its name is \"other\" in the metadata and \"fixture\" in the descriptor"]);
    let version = build("version.so", "abi=1.0\\0name=fixture\\0version=9");
    refused(&version, &["its version is \"9\" in the metadata and \"1.0.0\" in the descriptor"]);
}

#[test]
fn wrong_descriptors_are_named() {
    let dir = Directory::new("gates-descriptor");
    let build =
        |flag: &str| dir.build(&format!("{}.so", flag.trim_start_matches('-').replace('=', "-")), &[flag]);
    refused(&build("-DNO_ENTRY"), &["does not export tenon_plugin_v1"]);
    refused(&build("-DNULL_DESC"), &["its tenon_plugin_v1 returned null"]);
    refused(&build("-DFIRST_WORD=0x1234"), &["starts with 0x0000000000001234 instead of 0x4942414e4f4e4554"]);
    refused(&build("-DMAJOR=2"), &["contract version 2.x"]);
    refused(&build("-DDESC_SIZE=40"), &["its PluginDescV1 says it has 40 bytes, version 1.0 has at least"]);
    refused(&build("-DOPS_SIZE=24"), &["its ModuleOpsV1 says it has 24 bytes"]);
    refused(
        &build("-DLIMITS_SIZE=99"),
        &["its Limits has 99 bytes, the host's has 88", "rebuild the plugin"],
    );
    refused(&build("-DNULL_OPS"), &["has no table of callbacks"]);
    refused(&build("-DNULL_INIT"), &["its callback init is null"]);
    refused(&build("-DNULL_FINI"), &["its callback fini is null"]);
    refused(
        &dir.build("name.so", &[&define("DESC_NAME", "Not A Name")]),
        &["its descriptor's name has characters"],
    );
}

#[test]
fn what_it_lacks_to_be_linked_is_named() {
    let dir = Directory::new("gates-link");
    let symbol = dir.build("symbol.so", &["-DNEEDS_SYMBOL"]);
    refused(&symbol, &["cannot be linked", "nobody_defines_this", "install the library it needs"]);
    let library = dir.write("absent.c", b"void absent_library_function(void) {}");
    let absent = dir.path("libabsent-by-name.so.1");
    let status = std::process::Command::new("cc")
        .args(["-shared", "-fPIC", "-Wl,-soname,libabsent-by-name.so.1", "-o"])
        .args([&absent, &library])
        .status();
    assert!(status.unwrap().success());
    let plugin = dir.build("library.so", &["-DNEEDS_LIBRARY", absent.to_str().unwrap()]);
    std::fs::remove_file(absent).unwrap();
    refused(&plugin, &["cannot be linked", "libabsent-by-name.so.1: cannot open shared object file"]);
}

#[test]
fn a_plugin_others_can_write_is_refused() {
    let dir = Directory::new("gates-mode");
    let path = dir.build("right.so", &[]);
    for mode in [0o775, 0o757] {
        set_mode(&path, mode);
        let remedy = format!("chmod go-w {}", path.canonicalize().unwrap().display());
        refused(&path, &["the file", "is writable by others", &format!("mode {mode:04o}"), &remedy]);
    }
    set_mode(&path, 0o644);
    set_mode(&dir.0, 0o777);
    refused(&path, &["its directory", "is writable by others (mode 0777)"]);
    assert!(check(&path, Trust::Off, LayoutCheck::Warn).is_ok());

    // A link does not hide where the file really is.
    let inner = Directory::new("gates-mode-link");
    let link = inner.path("link.so");
    symlink(&path, &link).unwrap();
    refused(&link, &["its directory", "gates-mode-"]);
    set_mode(&dir.0, 0o755);
    assert!(check(&link, Trust::Owner, LayoutCheck::Warn).is_ok());
}

#[test]
fn a_plugin_of_another_user_is_refused() {
    if !rustix::process::geteuid().is_root() {
        return; // only root can give files away
    }
    let dir = Directory::new("gates-owner");
    let path = dir.build("right.so", &[]);
    std::os::unix::fs::chown(&path, Some(12345), None).unwrap();
    refused(&path, &["is owned by uid 12345, neither by root nor by uid 0", "chown root"]);
}

#[test]
fn older_and_newer_minor_versions_load() {
    let dir = Directory::new("gates-minor");
    let until_fini = std::mem::offset_of!(tenon_abi::ModuleOpsV1, fini) + 8;
    let older = dir.build("older.so", &[&define("NAME", "older"), &format!("-DOPS_SIZE={until_fini}")]);
    let newer_size = size_of::<tenon_abi::ModuleOpsV1>() + 32;
    let newer = dir.build(
        "newer.so",
        &[&define("NAME", "newer"), "-DMINOR=7", &format!("-DOPS_SIZE={newer_size}"), "-DDESC_SIZE=4096"],
    );
    let host = Host::start();
    let older = host.load(&older).unwrap();
    assert_eq!((older.state(), older.abi()), (ModuleState::Running, (1, 0)));
    // What lies behind the end of its table is absent, although there are bytes there.
    assert!(older.offers(Callback::Create) && older.offers(Callback::Quiesce));
    assert!(
        !older.offers(Callback::Schema)
            && !older.offers(Callback::Query)
            && !older.offers(Callback::Validate)
    );
    assert_eq!((older.schema(), older.validate("[broken]")), (None, Ok(())));
    assert!(older.query("some", 1).is_null());
    let newer = host.load(&newer).unwrap();
    assert_eq!((newer.state(), newer.abi()), (ModuleState::Running, (1, 7)));
    assert!(newer.schema().unwrap().contains("object"));
    assert!(!newer.query("some", 1).is_null() && newer.query("some", 2).is_null());
}

#[test]
fn certificate_policy_decides_about_plugins_without_one() {
    let dir = Directory::new("gates-policy");
    let path = dir.build("right.so", &[]);
    let fault =
        refused_with(LayoutCheck::Require, &path, &["carries no layout certificate", "set layout_check"]);
    assert_eq!(fault, LoadError::Uncertified);
    assert!(check(&path, Trust::Owner, LayoutCheck::Warn).is_ok());
    assert!(check(&path, Trust::Owner, LayoutCheck::Off).is_ok());
    assert_eq!("require".parse(), Ok(LayoutCheck::Require));
    assert!("maybe".parse::<LayoutCheck>().unwrap_err().contains("\"maybe\" is none of require, warn, off"));
}

/// A plugin in Rust with a certificate: an example of this package, which `cargo test` builds.
fn example(dir: &Directory, name: &str) -> PathBuf {
    let tests = std::env::current_exe().expect("this test has a path");
    let file = format!("lib{name}.so");
    let built = tests.ancestors().nth(2).expect("cargo puts tests into deps/").join("examples").join(&file);
    let content = std::fs::read(&built).unwrap_or_else(|error| {
        panic!("{}: {error}; run `cargo build -p tenon-modules --examples`", built.display())
    });
    dir.write(&file, &content)
}

#[test]
fn a_certified_plugin_passes_the_strictest_policy() {
    let dir = Directory::new("gates-certified");
    let path = example(&dir, "certified");
    let report = check(&path, Trust::Owner, LayoutCheck::Require).unwrap();
    assert_eq!(report.certified_types, Some(tenon_abi::layout::TYPES.len()));
    assert_eq!(check(&path, Trust::Owner, LayoutCheck::Off).unwrap().certified_types, None);
    let host = Host::start();
    assert!(host.load(&path).unwrap().is_certified());
}

#[test]
fn a_layout_that_differs_is_named_by_type_and_field() {
    let dir = Directory::new("gates-miscertified");
    let path = example(&dir, "miscertified");
    let expected =
        ["its CopyRange.num_blocks is u32 of 4 bytes, the host's is u64 of 8 bytes", "rebuild the plugin"];
    refused_with(LayoutCheck::Require, &path, &expected);
    refused_with(LayoutCheck::Warn, &path, &expected);
    assert!(check(&path, Trust::Owner, LayoutCheck::Off).is_ok());
}

#[test]
fn a_catalog_lists_the_good_and_the_bad_without_loading() {
    let (dir, other) = (Directory::new("catalog-a"), Directory::new("catalog-b"));
    let old = dir.build("a-old.so", &[&define("NAME", "cat"), &define("VERSION", "1.9.0")]);
    let new = other.build("a-new.so", &[&define("NAME", "cat"), &define("VERSION", "1.10.0")]);
    dir.build("same.so", &[&define("NAME", "cat"), &define("VERSION", "1.10.0")]);
    let constructor = dir.build("b.so", &[&define("NAME", "hangs"), "-DSLOW_CONSTRUCTOR"]);
    dir.write("bad.so", b"not a plugin");
    dir.write("README", b"not looked at");
    let directories = vec![PluginDirectory::configured(&dir.0), PluginDirectory::configured(&other.0)];
    let catalog = Catalog::scan(directories, Trust::Owner);

    assert_eq!(catalog.names(), ["cat", "hangs"]);
    let newest = catalog.newest("cat").unwrap();
    assert_eq!(newest.path.file_name().unwrap(), "same.so", "the earlier directory wins");
    let versions: Vec<_> = catalog.versions("cat").iter().map(|plugin| plugin.version.to_string()).collect();
    assert_eq!(versions, ["1.10.0", "1.10.0", "1.9.0"]);
    assert_eq!(catalog.for_rpc("hangs_pong").unwrap().path, constructor.canonicalize().unwrap());
    assert!(catalog.for_rpc("nobody_serves_this").is_none());
    assert_eq!(catalog.rejected().len(), 1);
    assert!(catalog.rejected()[0].to_string().contains("bad.so: is not an ELF file"));
    assert_eq!(inspect(&old, Trust::Owner).unwrap().rpc, ["cat_ping", "cat_pong"]);
    let json = serde_json::to_value(inspect(&new, Trust::Owner).unwrap()).unwrap();
    assert_eq!((json["name"].as_str(), json["version"].as_str()), (Some("cat"), Some("1.10.0")));
}

#[test]
fn rescan_reports_what_changed_and_nothing_else() {
    let dir = Directory::new("catalog-rescan");
    let a = dir.build("a.so", &[&define("NAME", "a")]);
    dir.build("b.so", &[&define("NAME", "b")]);
    let bad = dir.write("bad.so", b"bad");
    let before = Catalog::scan(vec![PluginDirectory::configured(&dir.0)], Trust::Owner);
    assert!(before.changes_to(&before.scan_again()).is_empty());
    std::fs::remove_file(dir.path("b.so")).unwrap();
    dir.build("a.so", &[&define("NAME", "a"), &define("VERSION", "2")]);
    dir.build("c.so", &[&define("NAME", "c")]);
    set_mode(&bad, 0o777);
    let changes = before.changes_to(&before.scan_again());
    let text = format!("{changes:?}");
    assert_eq!(changes.len(), 4, "{text}");
    assert!(
        matches!(&changes[0], tenon_modules::CatalogChange::Changed { new, .. } if new.path == a.canonicalize().unwrap())
    );
    assert!(matches!(&changes[1], tenon_modules::CatalogChange::Added(new) if new.name == "c"));
    assert!(matches!(&changes[2], tenon_modules::CatalogChange::Removed(old) if old.name == "b"));
    let is_about_mode = matches!(&changes[3], tenon_modules::CatalogChange::Rejected(error)
        if matches!(error.fault, LoadError::WritableByOthers { .. }));
    assert!(is_about_mode, "{text}");
}

#[test]
fn schema_and_validate_work_without_starting_the_module() {
    let dir = Directory::new("gates-unstarted");
    let path = dir.build("right.so", &[&define("NAME", "unstarted")]);
    let module = open_unstarted(&path, Trust::Owner, LayoutCheck::Off).unwrap();
    assert_eq!(module.state(), ModuleState::Loaded);
    assert!(module.schema().unwrap().contains("object"));
    assert_eq!(module.validate("{}"), Ok(()));
    let refusal = module.validate("{\"a\":1}").unwrap_err();
    assert_eq!((refusal.code, refusal.text.as_str()), (-22, "unknown key in {\"a\":1}"));
    assert!(!module.create("{}", tenon_abi::OpToken(1)).is_made(), "it is not in service");
    assert!(harness::said_by("unstarted").is_empty(), "nothing of it ran");
}
