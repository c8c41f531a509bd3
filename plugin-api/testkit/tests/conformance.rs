//! The suite passes well-behaved modules, and skips only what they do not declare.

mod mini;

use tenon_testkit::{BaseSpec, Conformance, bdev_conformance};

#[test]
fn a_ram_disk_conforms() {
    let suite = Conformance::new(r#"{"name":"m0","size":524288,"block_size":512}"#);
    let report = bdev_conformance(mini::ram::plugin, suite);
    let skipped = report.skipped_checks();
    let without_bases =
        ["resize", "base_out_of_memory", "base_slow_and_reordered", "base_errors", "base_absent"];
    assert!(without_bases.iter().all(|check| skipped.contains(check)), "{skipped:?}");
    assert!(!skipped.contains(&"model") && !skipped.contains(&"lent_reads"), "{skipped:?}");
}

#[test]
fn a_ram_disk_of_large_blocks_conforms() {
    bdev_conformance(
        mini::ram::plugin,
        Conformance::new(r#"{"name":"m0","size":1048576,"block_size":4096}"#).seeds(1),
    );
}

#[test]
fn a_pass_through_conforms() {
    let suite = Conformance::new(r#"{"name":"p0","base":"b0"}"#).bases(&[BaseSpec::new("b0", 512, 1024)]);
    bdev_conformance(mini::pass::plugin, suite);
}

#[test]
fn a_pass_through_conforms_on_a_base_that_lends_and_is_picky() {
    let base = BaseSpec::new("b0", 512, 1024).lends(true).limits(|limits| {
        limits.required_alignment = 512;
        limits.max_transfer_blocks = 8;
        limits.max_segments = 4;
        limits.max_segment_bytes = 2048;
        limits.max_unmap_blocks = 3;
    });
    let suite = Conformance::new(r#"{"name":"p0","base":"b0"}"#).bases(&[base]);
    bdev_conformance(mini::pass::plugin, suite);
}

#[test]
fn the_suite_runs_on_real_time() {
    let suite = Conformance::new(r#"{"name":"p0","base":"b0"}"#).bases(&[BaseSpec::new("b0", 512, 1024)]);
    bdev_conformance(mini::pass::plugin, suite.real_io(true).seeds(1));
}
