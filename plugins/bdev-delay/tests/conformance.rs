//! The module against the conformance suite for block devices.

use tenon_testkit::{BaseSpec, Conformance, bdev_conformance};

#[track_caller]
fn check(params: &str) {
    let suite = Conformance::new(params).bases(&[BaseSpec::new("b0", 512, 32768)]);
    bdev_conformance(bdev_delay::plugin, suite);
}

#[test]
fn conforms_to_the_bdev_contract() {
    check(
        r#"{"name":"d0","base":"b0","avg_read_latency_us":80,"avg_write_latency_us":20,"p99_write_latency_us":500}"#,
    );
}

#[test]
fn conforms_without_latency() {
    check(r#"{"name":"d0","base":"b0"}"#);
}
