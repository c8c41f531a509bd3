//! The contract every block device obeys, checked on the RAM disk.

#[test]
fn conforms_to_the_bdev_contract() {
    let suite = tenon_testkit::Conformance::new(r#"{"name": "r0", "size": "16MiB"}"#);
    tenon_testkit::bdev_conformance(example_ramdisk::plugin, suite);
}
