//! The module against the conformance suite for block devices.

use tenon_testkit::{BaseSpec, Conformance, bdev_conformance};

#[test]
fn conforms_to_the_bdev_contract() {
    let suite = Conformance::new(r#"{"name":"e0","base":"b0"}"#).bases(&[BaseSpec::new("b0", 512, 32768)]);
    bdev_conformance(bdev_error::plugin, suite);
}
