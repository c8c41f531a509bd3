//! Probes that put load on devices: `tenon perf` on a configuration of their
//! own, and what they are compared with (a loop that only copies, fio).
//!
//! Every probe stores nanoseconds per I/O under its name.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::rc::Rc;

use anyhow::{Context, Result};
use serde_json::Value;

use super::Probe;
use crate::setup::has_program;
use crate::steps;
use crate::workspace::Workspace;

/// Where configurations and files of the probes are kept.
const FOLDER: &str = "target/bench";
const TENON: &str = "target/release/tenon";
const CEILING: &str = "target/release/examples/ceiling";
const URING_PLUGIN: &str = "target/release/libbdev_uring.so";
const NULL: &str = "[[bdev]]\nmodule = \"null\"\nname = \"n0\"\nsize = \"1TiB\"\n";
/// Passthru devices in the deepest stack.
pub const LAYERS: usize = 4;
/// Size of the file below `uring`.
const FILE_BYTES: u64 = 256 << 20;
/// Where a file in memory is.
const MEMORY_FOLDER: &str = "/dev/shm";

/// Measures nanoseconds per I/O.
type Load = Box<dyn Fn() -> Result<f64>>;

/// Runs loads.
pub struct Lab {
    root: PathBuf,
    seconds: u64,
}

/// A file that is removed at the end.
struct Scrap(PathBuf);

impl Drop for Scrap {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// All probes of this file.
pub fn probes(workspace: &Workspace, seconds: u64) -> Result<Vec<Probe>> {
    let lab = || Lab::new(workspace, seconds);
    fs::create_dir_all(workspace.path(FOLDER)).context(FOLDER)?;
    let mut probes = vec![
        lab().perf("null", "null", NULL, "-q 128")?,
        lab().perf("null", "null timed", NULL, "-q 128 --latency all")?,
    ];
    for (name, mib, block) in [("16M", 16, "4KiB"), ("256M", 256, "4KiB"), ("128K", 256, "128KiB")] {
        let config = format!("[[bdev]]\nmodule = \"malloc\"\nname = \"m0\"\nsize = \"{mib}MiB\"\n");
        let depth = if block == "4KiB" { 128 } else { 32 };
        let args = format!("--fill -q {depth} --block-size {block} --batch 64");
        probes.push(lab().perf("malloc", &format!("malloc {name}"), &config, &args)?);
        let bytes = if block == "4KiB" { 4096 } else { 131_072 };
        probes.push(lab().ceiling(&format!("copy {name}"), mib << 20, bytes, depth));
        if name == "256M" {
            probes.push(lab().perf("malloc", "lent 256M", &config, &format!("{args} --lend"))?);
        }
    }
    for layers in 0..=LAYERS {
        let config = stack(layers);
        probes.push(lab().perf("stack", &format!("stack {layers}"), &config, "-q 128")?);
    }
    let delay = format!("{NULL}\n[[bdev]]\nmodule = \"delay\"\nname = \"d0\"\nbase = \"n0\"\n");
    probes.push(lab().perf("deferred", "base", NULL, "-q 128")?);
    probes.push(lab().perf("deferred", "delay 0", &delay, "-q 128 --latency sampled")?);
    if workspace.has(URING_PLUGIN) && has_program("fio") {
        probes.extend(lab().uring()?);
    }
    Ok(probes)
}

fn stack(layers: usize) -> String {
    let mut config = NULL.to_owned();
    for layer in 0..layers {
        let base = if layer == 0 { "n0".to_owned() } else { format!("p{}", layer - 1) };
        config += &format!("\n[[bdev]]\nmodule = \"passthru\"\nname = \"p{layer}\"\nbase = \"{base}\"\n");
    }
    config
}

impl Lab {
    /// Each load takes that many seconds.
    pub fn new(workspace: &Workspace, seconds: u64) -> Lab {
        Lab { root: workspace.root.clone(), seconds }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.join(FOLDER).join(name)
    }

    /// `tenon perf` on one reactor, as a probe of its own.
    pub fn perf(self, group: &'static str, name: &str, config: &str, args: &str) -> Result<Probe> {
        let (load, key) = (self.tenon(name, config, args)?, name.to_owned());
        let run = move |round: &mut super::Round| {
            round.insert(key.clone(), load()?);
            Ok(())
        };
        Ok(Probe { group, name: name.to_owned(), run: Box::new(run) })
    }

    /// Two of them that are compared, by turns.
    pub fn pair(self, group: &'static str, loads: [(&str, &str); 2], args: &str) -> Result<Probe> {
        let names = loads.map(|(name, _)| name.to_owned());
        let [one, other] = loads.map(|(name, config)| self.tenon(name, config, args));
        let (name, loads) = (names.join(" and "), [one?, other?]);
        let run = move |round: &mut super::Round| by_turns(round, &names, &loads);
        Ok(Probe { group, name, run: Box::new(run) })
    }

    /// Writes the configuration of a probe.
    pub fn config(&self, name: &str, config: &str) -> Result<PathBuf> {
        let file = self.path(&format!("{}.toml", name.replace(' ', "-")));
        fs::write(&file, config).with_context(|| file.display().to_string())?;
        Ok(file)
    }

    /// `tenon perf` on one reactor.
    fn tenon(&self, name: &str, config: &str, args: &str) -> Result<Load> {
        let file = self.config(name, config)?;
        let mut words = vec!["perf", "--json", "--reactors", "1", "--seed", "1"];
        words.extend(args.split_whitespace());
        let words: Vec<String> = words.into_iter().map(str::to_owned).collect();
        let (tenon, time) = (self.root.join(TENON), format!("{}s", self.seconds));
        Ok(Box::new(move || {
            let mut command = Command::new(&tenon);
            command.args(&words).args(["--time", &time, "-c"]).arg(&file);
            let report: Value = serde_json::from_str(&steps::output_of(&mut command)?)?;
            Ok(1e9 / report["total"]["iops"].as_f64().context("a report without IOPS")?)
        }))
    }

    /// The loop that only copies.
    fn ceiling(self, name: &str, working_set: u64, block: u64, depth: u64) -> Probe {
        self.copies("malloc", name, [working_set, block, depth], 0)
    }

    /// The loop that only copies: from memory of that many bytes in blocks, or each block to that many members.
    pub fn copies(self, group: &'static str, name: &str, sizes: [u64; 3], members: u64) -> Probe {
        let [working_set, block, depth] = sizes;
        let numbers = [working_set, block, depth, self.seconds, members].map(|number| number.to_string());
        let (program, key) = (self.root.join(CEILING), name.to_owned());
        let run = move |round: &mut super::Round| {
            let copies: f64 = steps::output_of(Command::new(&program).args(&numbers))?.trim().parse()?;
            round.insert(key.clone(), 1e9 / copies);
            Ok(())
        };
        Probe { group, name: name.to_owned(), run: Box::new(run) }
    }

    /// The same file through `uring` and through fio; one on the device below, one in memory.
    fn uring(self) -> Result<Vec<Probe>> {
        let mut probes = Vec::new();
        for (place, file) in [("", self.path("uring.data")), (" memory", memory_file())] {
            make_file(&file)?;
            let scrap = (!place.is_empty()).then(|| Rc::new(Scrap(file.clone())));
            let config =
                format!("[[bdev]]\nmodule = \"uring\"\nname = \"u0\"\nfilename = \"{}\"\n", file.display());
            for depth in [1, 32] {
                let names = [format!("uring{place} {depth}"), format!("fio{place} {depth}")];
                let loads = [
                    self.tenon(&names[0], &config, &format!("-q {depth}"))?,
                    fio(depth, &file, self.seconds),
                ];
                let (name, scrap) = (names.join(" and "), scrap.clone());
                let run = move |round: &mut super::Round| {
                    let _kept = &scrap;
                    by_turns(round, &names, &loads)
                };
                probes.push(Probe { group: "uring", name, run: Box::new(run) });
            }
        }
        Ok(probes)
    }
}

/// Runs one, the other, the other, the one: a device whose speed changes meanwhile meets both alike.
fn by_turns(round: &mut super::Round, names: &[String; 2], loads: &[Load; 2]) -> Result<()> {
    let mut sums = [0.0; 2];
    for turn in [0, 1, 1, 0] {
        sums[turn] += loads[turn]()?;
    }
    for (name, sum) in names.iter().zip(sums) {
        round.insert(name.clone(), sum / 2.0);
    }
    Ok(())
}

fn memory_file() -> PathBuf {
    Path::new(MEMORY_FOLDER).join(format!("tenon-bench-{}.data", std::process::id()))
}

/// fio with what Tenon uses of io_uring: a registered file, and one call for all that is ready.
fn fio(depth: u32, file: &Path, seconds: u64) -> Load {
    let arguments = [
        "--name=bench".to_owned(),
        format!("--filename={}", file.display()),
        "--ioengine=io_uring".to_owned(),
        "--registerfiles".to_owned(),
        "--direct=1".to_owned(),
        "--rw=randread".to_owned(),
        "--bs=4k".to_owned(),
        format!("--iodepth={depth}"),
        format!("--iodepth_batch_submit={depth}"),
        format!("--iodepth_batch_complete_max={depth}"),
        format!("--runtime={seconds}"),
        "--time_based".to_owned(),
        "--randrepeat=0".to_owned(),
        "--norandommap".to_owned(),
        "--cpus_allowed=0".to_owned(),
        "--output-format=json".to_owned(),
    ];
    Box::new(move || {
        let output = steps::output_of(Command::new("fio").args(&arguments))?;
        let report: Value = serde_json::from_str(&output).context("fio's report")?;
        Ok(1e9 / report["jobs"][0]["read"]["iops"].as_f64().context("fio without IOPS")?)
    })
}

/// A file whose blocks are all written, so that reading them goes to the device.
fn make_file(path: &Path) -> Result<()> {
    if path.metadata().is_ok_and(|meta| meta.len() == FILE_BYTES) {
        return Ok(());
    }
    let block: Vec<u8> =
        (0..1 << 20).map(|index: u32| (index.wrapping_mul(0x9e37_79b9) >> 24) as u8).collect();
    let mut data = Vec::with_capacity(FILE_BYTES as usize);
    while (data.len() as u64) < FILE_BYTES {
        data.extend_from_slice(&block);
    }
    fs::write(path, data).with_context(|| path.display().to_string())?;
    fs::File::open(path)?.sync_all().with_context(|| path.display().to_string())
}
