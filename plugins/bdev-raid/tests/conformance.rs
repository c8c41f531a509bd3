//! Every level against the conformance suite for block devices.

use tenon_testkit::{BaseSpec, Conformance, bdev_conformance};

fn bases(count: u8) -> Vec<BaseSpec> {
    (0..count).map(|nth| BaseSpec::new(&format!("b{nth}"), 512, 16384).uuid([nth + 1; 16])).collect()
}

#[track_caller]
fn check(params: &str, count: u8, survives: bool) {
    let suite = Conformance::new(params)
        .bases(&bases(count))
        .waits_for_bases(true)
        .survives_base_removal(survives)
        .survives_base_errors(survives);
    bdev_conformance(bdev_raid::plugin, suite);
}

#[test]
fn raid0_conforms() {
    check(r#"{"name":"r0","level":"raid0","strip_size_kb":8,"base_bdevs":["b0","b1","b2"]}"#, 3, false);
}

#[test]
fn raid0_with_superblock_conforms() {
    let params =
        r#"{"name":"r0","level":"raid0","strip_size_kb":64,"base_bdevs":["b0","b1"],"superblock":true}"#;
    check(params, 2, false);
}

#[test]
fn concat_conforms() {
    check(r#"{"name":"r0","level":"concat","strip_size_kb":4,"base_bdevs":["b0","b1","b2"]}"#, 3, false);
}

#[test]
fn raid1_conforms() {
    check(r#"{"name":"r0","level":"raid1","base_bdevs":["b0","b1"]}"#, 2, true);
}

#[test]
fn raid1_with_superblock_conforms() {
    check(r#"{"name":"r0","level":"raid1","base_bdevs":["b0","b1","b2"],"superblock":true}"#, 3, true);
}

#[test]
fn raid5f_conforms() {
    check(r#"{"name":"r0","level":"raid5f","strip_size_kb":4,"base_bdevs":["b0","b1","b2"]}"#, 3, true);
}

#[test]
fn raid5f_with_superblock_conforms() {
    let params = r#"{"name":"r0","level":"raid5f","strip_size_kb":4,"base_bdevs":["b0","b1","b2","b3"],
        "superblock":true}"#;
    check(params, 4, true);
}

#[test]
fn raid10_conforms() {
    check(r#"{"name":"r0","level":"raid10","strip_size_kb":4,"base_bdevs":["b0","b1","b2","b3"]}"#, 4, true);
}

#[test]
fn raid10_with_superblock_conforms() {
    let params = r#"{"name":"r0","level":"raid10","strip_size_kb":8,"base_bdevs":["b0","b1","b2","b3"],
        "superblock":true}"#;
    check(params, 4, true);
}

#[test]
fn raid5_conforms() {
    let params = r#"{"name":"r0","level":"raid5","strip_size_kb":4,"base_bdevs":["b0","b1","b2","b3"],
        "superblock":true}"#;
    check(params, 4, true);
}

#[test]
fn raid1_with_a_bitmap_conforms() {
    let params = r#"{"name":"r0","level":"raid1","base_bdevs":["b0","b1"],"superblock":true,"bitmap":true}"#;
    check(params, 2, true);
}
