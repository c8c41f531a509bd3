//! Probes of arrays: each level over devices that are nothing, a mirror and
//! parity over memory, beside loops that only copy or only add up strips; what a
//! bitmap costs, how fast a rebuild is, and what it takes from those who use the
//! array meanwhile.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::host::{Host, Load};
use super::load::Lab;
use super::{Probe, Round};
use crate::steps;
use crate::workspace::Workspace;

const XOR: &str = "target/release/examples/ceiling_xor";

/// All probes of this file.
pub fn probes(workspace: &Workspace, seconds: u64) -> Result<Vec<Probe>> {
    let lab = || Lab::new(workspace, seconds);
    let mut probes = vec![lab().perf("raid", "raid null", &members("null", 1, ""), "-q 128 --bdev b0")?];
    for (level, count) in [("raid0", 2), ("concat", 2), ("raid1", 2), ("raid10", 4)] {
        let config = array("null", level, count, 64);
        probes.push(lab().perf("raid", &format!("{level} read"), &config, "-q 128 --bdev r0")?);
    }
    for (level, count) in [("raid1", 2), ("raid10", 4)] {
        let config = array("null", level, count, 64);
        let args = "-q 128 --bdev r0 --rw randwrite";
        probes.push(lab().perf("raid", &format!("{level} write"), &config, args)?);
    }
    // First the memory is found and zeroed, which takes as long as a second of writes.
    let args = "--fill -q 128 --bdev r0 --rw randwrite --latency sampled";
    probes.push(lab().perf("raid", "raid1 write malloc", &array("malloc", "raid1", 2, 64), args)?);
    let stripes = "-q 32 --bdev r0 --rw randwrite --block-size 128KiB";
    probes.push(lab().perf("raid", "raid5f null", &array("null", "raid5f", 3, 64), stripes)?);
    let filled = format!("--fill {stripes}");
    probes.push(lab().perf("raid", "raid5f malloc", &array("malloc", "raid5f", 3, 64), &filled)?);
    probes.push(xor(workspace, seconds));
    // As many bytes to as many places as the mirror and the stripe with its parity.
    probes.push(lab().copies("raid", "copies of raid1", [64 << 20, 4096, 128], 2));
    probes.push(lab().copies("raid", "copies of raid5f", [64 << 20, 65536, 32], 3));
    let bitmaps =
        [("bitmap off", slow_mirror("bitmap = false")), ("bitmap on", slow_mirror("bitmap = true"))];
    let bitmaps = [(bitmaps[0].0, &*bitmaps[0].1), (bitmaps[1].0, &*bitmaps[1].1)];
    // What it costs to mark every region once is over when the device is filled.
    let args = "--fill -q 32 --bdev r0 --rw randwrite";
    probes.push(Lab::new(workspace, seconds.max(LONG)).pair("raid", bitmaps, args)?);
    let member = members("malloc", 1, &format!("qos = {{ w_mbytes_per_sec = {MEMBER_MB} }}"));
    let args = "-q 8 --bdev b0 --rw write --block-size 256KiB";
    probes.push(Lab::new(workspace, seconds.max(LONG)).perf("raid", "member write", &member, args)?);
    probes.push(rebuild(workspace, &lab())?);
    probes.push(foreground(workspace, &lab(), seconds.max(LONG))?);
    Ok(probes)
}

/// A mirror of members with a latency.
fn slow_mirror(more: &str) -> String {
    let delay = |nth: u32| {
        format!(
            "[[bdev]]\nmodule = \"delay\"\nname = \"d{nth}\"\nbase = \"b{nth}\"\navg_read_latency_us = 50\n\
             avg_write_latency_us = 50\n"
        )
    };
    let array = "[[bdev]]\nmodule = \"raid\"\nname = \"r0\"\nlevel = \"raid1\"\nbase_bdevs = [\"d0\", \"d1\"]\n\
                 superblock = true\n";
    format!("{}{}{}{array}{more}\n", members("malloc", 2, ""), delay(0), delay(1))
}

/// A rebuild that nobody disturbs, of a member that takes so much and no more.
fn rebuild(workspace: &Workspace, lab: &Lab) -> Result<Probe> {
    let limit = format!("qos = {{ w_mbytes_per_sec = {MEMBER_MB} }}");
    let array =
        "[[bdev]]\nmodule = \"raid\"\nname = \"r0\"\nlevel = \"raid1\"\nbase_bdevs = [\"b0\", \"b1\"]\n";
    let file = lab.config("rebuild", &(members_of(REBUILT_MIB, 2, &limit) + array))?;
    let root = workspace.root.clone();
    let run = move |round: &mut Round| {
        let host = Host::start(&root, &["-c", file.to_str().context("a path")?])?;
        let mut call = |method: &str, params: &Value| host.call(method, params);
        // The first one finds and zeroes the memory of the devices.
        rebuild_again(&mut call, "b1")?;
        let begin = rebuild_again(&mut call, "b1")?;
        let taken = begin.elapsed().as_nanos() as f64;
        round.insert("rebuild".to_owned(), taken / REBUILT_MIB as f64);
        Ok(())
    };
    Ok(Probe { group: "raid", name: "rebuild".to_owned(), run: Box::new(run) })
}

/// Takes the member out, gives it back and waits until it is rebuilt; gives when that began.
fn rebuild_again(call: &mut dyn FnMut(&str, &Value) -> Result<Value>, member: &str) -> Result<Instant> {
    call("bdev_raid_remove_base_bdev", &json!({ "name": member }))?;
    let begin = Instant::now();
    call("bdev_raid_add_base_bdev", &json!({ "raid_bdev": "r0", "base_bdev": member }))?;
    while begin.elapsed() < PATIENCE {
        let arrays = call("bdev_raid_get_bdevs", &json!({ "category": "all" }))?;
        let array = arrays.get(0).context("no array")?;
        if array.get("process").is_none() && array["num_base_bdevs_operational"] == array["num_base_bdevs"] {
            return Ok(begin);
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    bail!("{member} is not rebuilt within {PATIENCE:?}")
}

/// What users of an array get alone, and while a member is rebuilt again and again.
fn foreground(workspace: &Workspace, lab: &Lab, seconds: u64) -> Result<Probe> {
    let file = lab.config("foreground", &slow_mirror("bitmap = false"))?;
    let root = workspace.root.clone();
    let run = move |round: &mut Round| {
        let mut sums = [0.0; 2];
        for turn in [0, 1, 1, 0] {
            sums[turn] += used(&root, &file, seconds, turn == 1)?;
        }
        round.insert("foreground".to_owned(), sums[0] / 2.0);
        round.insert("foreground beside a rebuild".to_owned(), sums[1] / 2.0);
        Ok(())
    };
    Ok(Probe { group: "raid", name: "foreground".to_owned(), run: Box::new(run) })
}

/// Nanoseconds per I/O of a load on an array.
fn used(root: &Path, file: &Path, seconds: u64, is_rebuilt: bool) -> Result<f64> {
    let words = format!("--reactors 1 -q 32 --bdev r0 --rw randrw --mix 50 --time {seconds}s -c");
    let args: Vec<&str> = words.split(' ').chain([file.to_str().context("a path")?]).collect();
    let mut load = Load::start(root, &args)?;
    while is_rebuilt && let Some(mut connection) = load.connection()? {
        // At its end a call is cut off.
        while rebuild_again(&mut |method, params| connection.call(method, params), "d1").is_ok() {}
    }
    let report = load.report()?;
    Ok(1e9 / report["total"]["iops"].as_f64().context("a report without IOPS")?)
}

fn members_of(mib: u64, count: usize, more: &str) -> String {
    (0..count)
        .map(|nth| format!("[[bdev]]\nmodule = \"malloc\"\nname = \"b{nth}\"\nsize = \"{mib}MiB\"\n{more}\n"))
        .collect()
}

fn members(module: &str, count: usize, more: &str) -> String {
    let size = if module == "null" { "64GiB" } else { "64MiB" };
    (0..count)
        .map(|nth| format!("[[bdev]]\nmodule = \"{module}\"\nname = \"b{nth}\"\nsize = \"{size}\"\n{more}\n"))
        .collect()
}

fn array(module: &str, level: &str, count: usize, strip_kb: u32) -> String {
    let names: Vec<String> = (0..count).map(|nth| format!("b{nth}")).collect();
    let strip = if level == "raid1" { 0 } else { strip_kb };
    format!(
        "{}\n[[bdev]]\nmodule = \"raid\"\nname = \"r0\"\nlevel = \"{level}\"\nstrip_size_kb = {strip}\nbase_bdevs = {names:?}\n",
        members(module, count, "")
    )
}

/// The parity of as many stripes in the same pattern, and nothing else.
fn xor(workspace: &Workspace, seconds: u64) -> Probe {
    let program = workspace.root.join(XOR);
    let run = move |round: &mut super::Round| {
        let stripes: f64 =
            steps::output_of(Command::new(&program).args(["65536", "2", "32", &seconds.to_string()]))?
                .trim()
                .parse()?;
        round.insert("xor".to_owned(), 1e9 / stripes);
        Ok(())
    };
    Probe { group: "raid", name: "xor".to_owned(), run: Box::new(run) }
}

/// Seconds of a load that has to settle.
const LONG: u64 = 3;
/// MiB per second that a member takes which is rebuilt.
const MEMBER_MB: u64 = 400;
/// Its size.
const REBUILT_MIB: u64 = 512;
const PATIENCE: Duration = Duration::from_secs(60);
