//! Makes plugin files, right and wrong, in a directory of one test.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use tenon_tests::{Scratch, plugin_directory, root};

/// A directory that plugins may be loaded from.
pub struct Plugins {
    /// Its place, and that of everything else of the test.
    pub scratch: Scratch,
    /// Where plugins may lie.
    pub directory: PathBuf,
}

impl Plugins {
    pub fn new() -> Plugins {
        let scratch = Scratch::new();
        let directory = plugin_directory(&scratch);
        Plugins { scratch, directory }
    }

    pub fn path(&self, file: &str) -> PathBuf {
        self.directory.join(file)
    }

    /// The fixture in C, right but for what `flags` say.
    pub fn fixture(&self, file: &str, flags: &[&str]) -> PathBuf {
        let path = self.path(file);
        let draft = path.with_extension("draft");
        let source = root().join("host/modules/tests/fixtures/plugin.c");
        compile(&source, &root().join("plugin-api"), &draft, flags);
        std::fs::rename(&draft, &path).unwrap();
        path
    }

    /// A plugin that was built as an example of this package.
    pub fn example(&self, name: &str, file: &str) -> PathBuf {
        let content = std::fs::read(tenon_tests::example(name)).unwrap();
        self.write(file, &content)
    }

    pub fn write(&self, file: &str, content: &[u8]) -> PathBuf {
        let path = self.path(file);
        std::fs::write(&path, content).unwrap();
        set_mode(&path, 0o755);
        path
    }
}

pub fn set_mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

/// `-DNAME="text"`.
pub fn define(name: &str, text: &str) -> String {
    format!("-D{name}=\"{text}\"")
}

/// Compiles a plugin in C against the header in `include`.
pub fn compile(source: &Path, include: &Path, output: &Path, flags: &[&str]) {
    let mut command = Command::new(std::env::var_os("CC").unwrap_or_else(|| "cc".into()));
    command.args([
        "-std=gnu11",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-Wno-unused",
        "-O1",
        "-fPIC",
        "-shared",
        "-I",
    ]);
    command.arg(include).arg(source).arg("-o").arg(output).args(flags);
    let result = command.output().expect("a C compiler is needed for these tests");
    assert!(result.status.success(), "{}", String::from_utf8_lossy(&result.stderr));
    set_mode(output, 0o755);
}
