//! Probes of arrays: each level over devices that are nothing, a mirror and
//! parity over memory, beside a loop that only adds up strips.

use std::process::Command;

use anyhow::Result;

use super::Probe;
use super::load::Lab;
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
    let args = "-q 128 --bdev r0 --rw randwrite";
    probes.push(lab().perf("raid", "raid1 write malloc", &array("malloc", "raid1", 2, 64), args)?);
    let stripes = "-q 32 --bdev r0 --rw randwrite --block-size 128KiB";
    probes.push(lab().perf("raid", "raid5f null", &array("null", "raid5f", 3, 64), stripes)?);
    probes.push(lab().perf("raid", "raid5f malloc", &array("malloc", "raid5f", 3, 64), stripes)?);
    probes.push(xor(workspace, seconds));
    Ok(probes)
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
