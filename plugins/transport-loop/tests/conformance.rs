//! The transport keeps the contract, in both roles.

use tenon_testkit::{TransportSuite, transport_conformance};

#[test]
fn conforms_to_the_transport_contract() {
    transport_conformance(transport_loop::plugin, TransportSuite::new("here", "").seeds(30));
}

#[test]
fn conforms_without_data_in_capsules() {
    let suite =
        TransportSuite::new("here", "").options(r#"{"in_capsule_data_size": 0, "max_queue_depth": 8}"#);
    transport_conformance(transport_loop::plugin, suite);
}
