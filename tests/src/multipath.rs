//! The truth table of scenario S2.a: how two paths are reported, by the policy
//! and by the ANA states of their listeners. The rows are gone through in this
//! order; what is current depends on nothing that went before.

/// One row.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// Policy of the device.
    pub policy: &'static str,
    /// ANA state of each listener.
    pub ana: [&'static str; 2],
    /// Whether each path is connected, accessible and current.
    pub paths: [[bool; 3]; 2],
}

/// The table.
pub const TABLE: [Row; 10] = [
    row("active_passive", OPTIMIZED, OPTIMIZED, [CURRENT, ACCESSIBLE]),
    row("active_passive", NON_OPTIMIZED, OPTIMIZED, [ACCESSIBLE, CURRENT]),
    row("active_passive", NON_OPTIMIZED, NON_OPTIMIZED, [CURRENT, ACCESSIBLE]),
    row("active_passive", NON_OPTIMIZED, INACCESSIBLE, [CURRENT, CONNECTED]),
    row("active_passive", INACCESSIBLE, INACCESSIBLE, [CONNECTED, CONNECTED]),
    row("active_passive", INACCESSIBLE, OPTIMIZED, [CONNECTED, CURRENT]),
    row("active_active", OPTIMIZED, OPTIMIZED, [CURRENT, CURRENT]),
    row("active_active", NON_OPTIMIZED, OPTIMIZED, [ACCESSIBLE, CURRENT]),
    row("active_active", NON_OPTIMIZED, NON_OPTIMIZED, [CURRENT, CURRENT]),
    row("active_active", NON_OPTIMIZED, INACCESSIBLE, [CURRENT, CONNECTED]),
];

const fn row(policy: &'static str, first: &'static str, second: &'static str, paths: [[bool; 3]; 2]) -> Row {
    Row { policy, ana: [first, second], paths }
}

const OPTIMIZED: &str = "optimized";
const NON_OPTIMIZED: &str = "non_optimized";
const INACCESSIBLE: &str = "inaccessible";

const CONNECTED: [bool; 3] = [true, false, false];
const ACCESSIBLE: [bool; 3] = [true, true, false];
const CURRENT: [bool; 3] = [true, true, true];
