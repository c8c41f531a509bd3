//! The report as text: one line per device and kind of I/O, then what was
//! checked, then what was wrong.

use tenon_perf::{OpReport, Report};

use super::units::{count, nanoseconds, size};

/// The whole report.
pub fn render(report: &Report) -> String {
    let mut text = format!(
        "{}, queue depth {}, seed {}, {}\n\n{:<16} {:<6} {:>9} {:>11} {:>11} {:>10} {:>10} {:>10} {:>10} {:>10}\n",
        size(report.block_bytes),
        report.queue_depth,
        report.seed,
        timed(report),
        "BDEV",
        "OP",
        "IOs",
        "IOPS",
        "MiB/s",
        "MEAN",
        "p50",
        "p99",
        "p99.9",
        "MAX",
    );
    for bdev in &report.bdevs {
        for (name, op) in bdev.ops() {
            text += &line(&bdev.name, name, op);
        }
    }
    if report.bdevs.len() > 1 {
        let total = &report.total;
        text += &format!(
            "{:<16} {:<6} {:>9} {:>11} {:>11.1}\n",
            "total",
            "",
            count(total.ios as f64),
            count(total.iops),
            total.mib_per_s,
        );
    }
    for bdev in report.bdevs.iter().filter(|bdev| bdev.verified_blocks > 0) {
        text += &format!(
            "\n{}: {} blocks verified, {} wrong\n",
            bdev.name, bdev.verified_blocks, bdev.mismatched_blocks
        );
    }
    text
}

/// How many I/Os the latencies are of.
fn timed(report: &Report) -> &'static str {
    let ops = || report.bdevs.iter().flat_map(|bdev| bdev.ops().map(|(_, op)| op));
    let samples: u64 = ops().filter_map(|op| op.latency.map(|latency| latency.samples)).sum();
    let ios: u64 = ops().map(|op| op.ios).sum();
    match samples {
        0 => "no I/O timed",
        _ if samples >= ios => "every I/O timed",
        _ if samples <= ios / 32 => "one I/O in 64 timed",
        _ => "some I/Os timed",
    }
}

fn line(bdev: &str, name: &str, op: &OpReport) -> String {
    let mut line = format!(
        "{bdev:<16} {name:<6} {:>9} {:>11} {:>11.1}",
        count(op.ios as f64),
        count(op.iops),
        op.mib_per_s
    );
    if let Some(latency) = &op.latency {
        let percentiles = [latency.p50_ns, latency.p99_ns, latency.p99_9_ns, latency.max_ns];
        for ns in [latency.mean_ns].into_iter().chain(percentiles.map(|ns| ns as f64)) {
            line += &format!(" {:>10}", nanoseconds(ns));
        }
    }
    line + "\n"
}

/// What was wrong, one line each.
pub fn complaints(report: &Report) -> String {
    let mut lines = Vec::new();
    for bdev in &report.bdevs {
        let name = &bdev.name;
        if bdev.is_removed {
            lines.push(format!("bdev {name}: was removed under the load, {} I/Os bounced", bdev.removed));
        }
        if bdev.outstanding > 0 {
            lines.push(format!(
                "bdev {name}: gave up on {} I/Os that do not come back; the rates count the wait for them",
                bdev.outstanding
            ));
        }
        for reason in &bdev.start_failures {
            lines.push(format!("bdev {name}: a reactor could not work on it: {reason}"));
        }
        for failure in bdev.failures.iter().take(MAX_LINES) {
            lines.push(format!(
                "bdev {name}: {} of lba {} failed: {}",
                failure.op, failure.lba, failure.status
            ));
        }
        if bdev.errors > MAX_LINES as u64 {
            lines.push(format!("bdev {name}: {} I/Os failed in all", bdev.errors));
        }
        for mismatch in bdev.mismatches.iter().take(MAX_LINES) {
            lines.push(format!("bdev {name}: {mismatch}"));
        }
        if bdev.mismatched_blocks > MAX_LINES as u64 {
            lines.push(format!("bdev {name}: {} blocks are wrong in all", bdev.mismatched_blocks));
        }
    }
    lines.join("\n       ")
}

/// Failures, and mismatches, shown per device.
const MAX_LINES: usize = 8;
