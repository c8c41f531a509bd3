//! The module against the conformance suite for block devices.

use tenon_testkit::{Conformance, bdev_conformance};

#[test]
fn conforms_to_the_bdev_contract() {
    let suite = Conformance::new(r#"{"name":"n0","size":"16MiB","block_size":512}"#).stores_data(false);
    bdev_conformance(bdev_null::plugin, suite);
}

#[test]
fn conforms_with_large_blocks() {
    let suite = Conformance::new(r#"{"name":"n0","num_blocks":4096,"block_size":4096}"#).stores_data(false);
    bdev_conformance(bdev_null::plugin, suite);
}

#[test]
fn conforms_with_metadata() {
    for layout in ["", r#","md_interleave":false"#] {
        let params = format!(r#"{{"name":"n0","num_blocks":4096,"block_size":512,"md_size":8{layout}}}"#);
        bdev_conformance(bdev_null::plugin, Conformance::new(&params).stores_data(false));
    }
}
