//! Options of an instance, as `nvmf_create_transport` gives them.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tenon_sdk::Error;

/// Options of the target role.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
#[serde(deny_unknown_fields, default)]
pub struct LoopOptions {
    /// Most commands in flight on a connection, 2 to 4096.
    pub max_queue_depth: u32,
    /// Most data of a command that travels in its capsule, in bytes, 0 to 65536.
    pub in_capsule_data_size: u32,
}

impl Default for LoopOptions {
    fn default() -> Self {
        LoopOptions { max_queue_depth: 128, in_capsule_data_size: 8192 }
    }
}

impl LoopOptions {
    /// Reads and checks the options of an instance.
    pub(crate) fn parse(json: &str) -> Result<Self, Error> {
        let json = if json.trim().is_empty() { "{}" } else { json };
        let options: LoopOptions = serde_json::from_str(json)?;
        options.check()?;
        Ok(options)
    }

    /// Refuses what cannot be kept to.
    pub(crate) fn check(&self) -> Result<(), Error> {
        in_range("max_queue_depth", self.max_queue_depth, 2, MAX_QUEUE_DEPTH)?;
        in_range("in_capsule_data_size", self.in_capsule_data_size, 0, MAX_IN_CAPSULE_BYTES)
    }
}

fn in_range(name: &str, value: u32, least: u32, most: u32) -> Result<(), Error> {
    if (least..=most).contains(&value) {
        return Ok(());
    }
    Err(Error::invalid(format!("{name} is {value}: must be {least} to {most}")))
}

/// Most commands in flight on a connection.
const MAX_QUEUE_DEPTH: u32 = 4096;
/// Most data in a capsule; every command of a connection has room for it.
const MAX_IN_CAPSULE_BYTES: u32 = 64 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn absent_options_have_their_defaults() {
        assert_eq!(LoopOptions::parse("").unwrap(), LoopOptions::default());
        assert_eq!(LoopOptions::parse(r#"{"max_queue_depth": 4}"#).unwrap().max_queue_depth, 4);
    }

    #[test]
    fn options_out_of_range_and_unknown_ones_are_refused_by_name() {
        for (json, expected) in [
            (r#"{"max_queue_depth": 1}"#, "max_queue_depth is 1: must be 2 to 4096"),
            (r#"{"in_capsule_data_size": 70000}"#, "in_capsule_data_size is 70000: must be 0 to 65536"),
        ] {
            assert_eq!(LoopOptions::parse(json).unwrap_err().reason, expected);
        }
        assert!(LoopOptions::parse(r#"{"depth": 4}"#).unwrap_err().reason.contains("depth"));
    }
}
