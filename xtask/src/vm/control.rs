//! The folder host and machine share: the script to run, its exit code, the kernel log.
//!
//! The machine sees it as `/run/vm`. A command's exit code comes back as a
//! file: a machine that dies leaves none, and is told apart from a command
//! that fails.

use std::env;
use std::ffi::{OsStr, OsString};
use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, bail};

/// Shell functions for scripts in the machine: `. /run/vm/lib.sh`.
const LIBRARY: &str = include_str!("../../vm/lib.sh");
/// Variables that reach the command: what a test of this repository may be steered by.
const PASSED_ON: &[&str] = &["TENON_", "RUST_", "CARGO_", "RUSTUP_"];
/// Seconds from the polite signal to the one that cannot be ignored.
const KILL_AFTER_S: &str = "5";
/// What `timeout` exits with when it had to stop the program, politely or not.
const TIMED_OUT: [i32; 2] = [124, 137];
/// Lines of console shown when the machine failed.
const CONSOLE_LINES: usize = 40;

/// The shared folder, removed when dropped.
pub struct Control {
    /// Absolute path on the host.
    pub folder: PathBuf,
}

impl Control {
    /// Makes the folder with the command's script in it.
    ///
    /// `kernel` is what the command sees in `TENON_VM`, `output` the device its output goes to, if not the script's own.
    pub fn create(kernel: &str, output: Option<&str>, command: &[OsString]) -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("tenon-vm-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let folder = env::temp_dir().join(name);
        fs::create_dir(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
        let control = Self { folder };
        let environment: Vec<_> = env::vars_os().collect();
        let script = script(kernel, output, &env::current_dir()?, &environment, command)?;
        control.write("run", &script)?;
        control.write("lib.sh", LIBRARY)?;
        Ok(control)
    }

    /// Writes a file and returns its path.
    pub fn write(&self, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.path(name);
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    }

    /// Writes a file that can be executed and returns its path.
    pub fn write_program(&self, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.write(name, text)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        Ok(path)
    }

    /// Path of a file in the folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Runs the machine under a time limit and returns the exit code its command left.
    ///
    /// `console` names the file in this folder that explains a machine's failure.
    pub fn run(&self, timeout_s: u32, machine: &Command, console: &str, keep: Option<&Path>) -> Result<i32> {
        // coreutils' timeout rather than a thread here: it puts the machine into a process group of its own
        // and stops all of it, also when this program is stopped.
        let mut command = Command::new("timeout");
        command.args(["--kill-after", KILL_AFTER_S, &timeout_s.to_string()]);
        command.arg(machine.get_program()).args(machine.get_args());
        command.stdin(Stdio::null()).stderr(fs::File::create(self.path("stderr"))?);
        let status = command.status().context("cannot start the machine")?;
        if let Some(folder) = keep {
            self.keep(folder)?;
        }
        self.exit_code().ok_or(()).or_else(|()| self.explain(status, timeout_s, console))
    }

    fn exit_code(&self) -> Option<i32> {
        fs::read_to_string(self.path("exit-code")).ok()?.trim().parse().ok()
    }

    /// Fails with what is known of a machine that left no exit code.
    fn explain(&self, status: ExitStatus, timeout_s: u32, console: &str) -> Result<i32> {
        for name in [console, "stderr"] {
            let text = fs::read(self.path(name)).unwrap_or_default();
            for line in last_lines(&String::from_utf8_lossy(&text), CONSOLE_LINES) {
                // A console clears the screen and moves the cursor.
                let line: String = line.chars().filter(|c| !c.is_control()).collect();
                eprintln!("{name}: {line}");
            }
        }
        if status.code().is_some_and(|code| TIMED_OUT.contains(&code)) {
            bail!("the machine was stopped: the command took longer than {timeout_s} s");
        }
        bail!("the machine ended ({status}) without an exit code of the command")
    }

    fn keep(&self, folder: &Path) -> Result<()> {
        fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
        for entry in fs::read_dir(&self.folder)? {
            let entry = entry?;
            if entry.file_type()?.is_file() {
                fs::copy(entry.path(), folder.join(entry.file_name()))?;
            }
        }
        Ok(())
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.folder) {
            eprintln!("warning: cannot remove {}: {error}", self.folder.display());
        }
    }
}

/// What the machine runs once its root is there: the command, then power off.
fn script(
    kernel: &str,
    output: Option<&str>,
    folder: &Path,
    environment: &[(OsString, OsString)],
    command: &[OsString],
) -> Result<String> {
    let mut script = String::new();
    match output {
        Some(device) => writeln!(script, "exec >{device} 2>&1")?,
        None => writeln!(script, "exec 2>&1")?,
    }
    writeln!(script, "export TENON_VM={kernel} HOME=/root")?;
    writeln!(script, "export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")?;
    for (name, value) in environment {
        let name = name.to_string_lossy();
        let is_wanted = matches!(&*name, "HOME" | "PATH") || PASSED_ON.iter().any(|p| name.starts_with(p));
        // The shell cannot export a name with other characters; cargo sets some.
        if is_wanted && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') {
            writeln!(script, "export {name}={}", quoted(value)?)?;
        }
    }
    // RDMA pins memory.
    writeln!(script, "ulimit -l unlimited")?;
    writeln!(script, "cd {} 2>/dev/null || cd /", quoted(folder.as_os_str())?)?;
    script.push('(');
    for argument in command {
        write!(script, " {}", quoted(argument)?)?;
    }
    script.push_str(" )\necho $? >/run/vm/exit-code\n");
    script.push_str("dmesg >/run/vm/dmesg\n");
    // Keeps "Power down" out of the command's output.
    script.push_str("echo 0 >/proc/sys/kernel/printk\n/bin/busybox poweroff -f\n");
    Ok(script)
}

/// The text as one word of a shell.
fn quoted(text: &OsStr) -> Result<String> {
    let text = text.to_str().with_context(|| format!("{text:?} is not utf-8"))?;
    Ok(format!("'{}'", text.replace('\'', r"'\''")))
}

fn last_lines(text: &str, count: usize) -> Vec<&str> {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn control() -> Control {
        Control::create("test", None, &["true".into()]).unwrap()
    }

    #[test]
    fn arguments_reach_the_command_unchanged() {
        let words = ["a b", "it's", "$HOME", "*", "", "\\", "a\nb"];
        for word in words {
            let shell = format!("printf %s {}", quoted(OsStr::new(word)).unwrap());
            let output = Command::new("sh").args(["-c", &shell]).output().unwrap();
            assert_eq!(String::from_utf8_lossy(&output.stdout), word);
        }
    }

    #[test]
    fn only_variables_for_tests_are_passed_on() {
        let environment = [("TENON_X", "1"), ("SECRET", "2"), ("CARGO_BAD.NAME", "3"), ("PATH", "/p")];
        let environment = environment.map(|(name, value)| (name.into(), value.into()));
        let script = script("uml", None, Path::new("/"), &environment, &["true".into()]).unwrap();
        assert!(script.contains("export TENON_X='1'\n") && script.contains("export PATH='/p'\n"), "{script}");
        assert!(!script.contains("SECRET") && !script.contains("BAD.NAME"), "{script}");
    }

    #[test]
    fn the_exit_code_is_the_commands_and_not_the_machines() {
        let control = control();
        let mut machine = Command::new("sh");
        machine.args(["-c", &format!("echo 7 >{}/exit-code; exit 1", control.folder.display())]);
        assert_eq!(control.run(10, &machine, "console", None).unwrap(), 7);
    }

    #[test]
    fn a_machine_without_an_exit_code_has_failed() {
        let mut machine = Command::new("sh");
        machine.args(["-c", "exit 0"]);
        let error = control().run(10, &machine, "console", None).unwrap_err();
        assert!(format!("{error}").contains("without an exit code"), "{error}");
    }

    #[test]
    fn a_machine_that_takes_too_long_is_stopped() {
        let mut machine = Command::new("sh");
        machine.args(["-c", "tail -f /dev/null"]);
        let error = control().run(1, &machine, "console", None).unwrap_err();
        assert!(format!("{error}").contains("longer than 1 s"), "{error}");
    }

    #[test]
    fn the_folder_goes_away_and_its_files_can_be_kept() {
        let control = control();
        let (folder, kept) = (control.folder.clone(), env::temp_dir().join("tenon-vm-kept"));
        let _ = fs::remove_dir_all(&kept);
        control.keep(&kept).unwrap();
        drop(control);
        assert!(!folder.exists() && kept.join("run").is_file());
        fs::remove_dir_all(&kept).unwrap();
    }

    #[test]
    fn the_end_of_a_long_console_is_shown() {
        assert_eq!(last_lines("a\nb\nc\n", 2), ["b", "c"]);
        assert_eq!(last_lines("a\n", 2), ["a"]);
    }
}
