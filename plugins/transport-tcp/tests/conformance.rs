//! The transport keeps the contract, in both roles, over loopback.

use tenon_testkit::{TransportSuite, transport_conformance};

#[test]
fn conforms_to_the_transport_contract() {
    let suite = TransportSuite::new("127.0.0.1", "free port").real_io(true);
    transport_conformance(transport_tcp::plugin, suite);
}

#[test]
fn conforms_with_digests_and_small_capsules() {
    let suite = TransportSuite::new("127.0.0.1", "free port").real_io(true).seeds(1);
    let suite = suite.options(r#"{"in_capsule_data_size": 512, "r2t_size": 8192}"#);
    transport_conformance(transport_tcp::plugin, suite.connect_options(r#"{"hdgst": true, "ddgst": true}"#));
}
