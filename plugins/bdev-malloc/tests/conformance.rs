//! The module against the conformance suite for block devices.

use tenon_testkit::{Conformance, bdev_conformance};

#[test]
fn conforms_to_the_bdev_contract() {
    bdev_conformance(
        bdev_malloc::plugin,
        Conformance::new(r#"{"name":"m0","size":"16MiB","block_size":512}"#),
    );
}

#[test]
fn conforms_with_large_blocks_and_a_boundary() {
    let params = r#"{"name":"m0","num_blocks":2048,"block_size":4096,"optimal_io_boundary":16}"#;
    bdev_conformance(bdev_malloc::plugin, Conformance::new(params));
}
