//! Parameters of an `error` device: one struct for the `[[bdev]]` table, the RPC
//! and the schema; and of one injection, the same in the table and in
//! `bdev_error_inject_error`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tenon_sdk::{BdevOp, Error};

/// A device that lets chosen I/O of another one fail.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ErrorParams {
    /// Name of the device below.
    #[serde(alias = "base_name")]
    pub base: String,
    /// Unique name. Default: `EE_` and the name of the base.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Identity. Default: derived from the identity of the base and the name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uuid: Option<uuid::Uuid>,
    /// What is wrong with the device from the start. Default: nothing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub inject: Vec<Injection>,
}

/// What shall happen to which I/O.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Injection {
    /// Which I/O; `clear` ends every injection.
    pub io_type: IoType,
    /// What happens to it. Not needed for `clear`.
    #[serde(default)]
    pub error_type: ErrorType,
    /// How many I/Os; 4294967295: without limit, 0: none any longer. Default: 1.
    #[serde(default = "one")]
    pub num: u32,
    /// Only while at least so many other I/Os of the same reactor are in flight. Default: 0.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub queue_depth: u32,
    /// Only so many percent of the I/Os, at random. Default: 100.
    #[serde(default = "hundred", skip_serializing_if = "is_hundred")]
    pub probability: f64,
    /// `corrupt_data`: byte of the payload that is changed; an I/O that is shorter is left alone. Default: 0.
    #[serde(default, skip_serializing_if = "is_zero_u64")]
    pub corrupt_offset: u64,
    /// `corrupt_data`: bits of that byte that are inverted, 1 to 255. Default: 255.
    #[serde(default = "all_bits", skip_serializing_if = "is_all_bits")]
    pub corrupt_value: u8,
}

/// Which I/O.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum IoType {
    /// None: ends every injection.
    Clear,
    /// Reads.
    Read,
    /// Writes.
    Write,
    /// Deallocations.
    Unmap,
    /// Flushes.
    Flush,
    /// Zeroing without a payload.
    WriteZeroes,
    /// Comparisons.
    Compare,
    /// Compare-and-write.
    CompareAndWrite,
    /// Copies.
    Copy,
    /// Verifications.
    Verify,
    /// Resets; they can only fail.
    Reset,
    /// Every one above but resets.
    All,
}

/// What happens to an I/O.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ErrorType {
    /// It fails with an I/O error.
    #[default]
    Failure,
    /// It hangs until it is aborted or the device is reset or removed.
    Pending,
    /// One byte of its payload is changed; reads and writes only.
    CorruptData,
    /// The device lacks memory; the host tries again.
    Nomem,
}

/// Parameters of `bdev_error_inject_error`: `name` and the fields of an [`Injection`].
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct InjectError(Map<String, Value>);

impl ErrorParams {
    /// Name of the device.
    pub fn bdev_name(&self) -> String {
        self.name.clone().unwrap_or_else(|| format!("EE_{}", self.base))
    }

    /// Refuses what cannot be a device.
    pub fn check(&self) -> Result<(), Error> {
        if self.inject.len() > MAX_INJECTIONS {
            let reason = format!("{} injections are too many: at most {MAX_INJECTIONS}", self.inject.len());
            return Err(Error::invalid(reason).object(self.bdev_name()));
        }
        self.inject.iter().try_for_each(|injection| injection.check(&self.bdev_name()))
    }
}

impl InjectError {
    /// Name of the device, and what to inject.
    pub fn split(self) -> Result<(String, Injection), Error> {
        let mut fields = self.0;
        let name = match fields.remove("name") {
            Some(Value::String(name)) => name,
            Some(other) => return Err(Error::invalid(format!("name {other} is not a text"))),
            None => return Err(Error::invalid("missing field `name`")),
        };
        let injection: Injection = serde_json::from_value(Value::Object(fields))?;
        injection.check(&name)?;
        Ok((name, injection))
    }
}

impl Injection {
    /// The operations it is about.
    pub fn ops(&self) -> &'static [BdevOp] {
        match self.io_type {
            IoType::Clear => &[],
            IoType::Read => &[BdevOp::Read],
            IoType::Write => &[BdevOp::Write],
            IoType::Unmap => &[BdevOp::Unmap],
            IoType::Flush => &[BdevOp::Flush],
            IoType::WriteZeroes => &[BdevOp::WriteZeroes],
            IoType::Compare => &[BdevOp::Compare],
            IoType::CompareAndWrite => &[BdevOp::CompareAndWrite],
            IoType::Copy => &[BdevOp::Copy],
            IoType::Verify => &[BdevOp::Verify],
            IoType::Reset => &[BdevOp::Reset],
            IoType::All if self.error_type == ErrorType::CorruptData => &[BdevOp::Read, BdevOp::Write],
            IoType::All => ALL,
        }
    }

    fn check(&self, name: &str) -> Result<(), Error> {
        let wrong = |reason: String| Err(Error::invalid(reason).object(name));
        let with_payload = matches!(self.io_type, IoType::Read | IoType::Write | IoType::All);
        if self.error_type == ErrorType::CorruptData && !with_payload {
            return wrong(format!("corrupt_data is for read, write and all, not for {:?}", self.io_type));
        }
        if self.io_type == IoType::Reset && self.error_type != ErrorType::Failure {
            return wrong(format!("a reset can only have a failure, not {:?}", self.error_type));
        }
        if !(self.probability > 0.0 && self.probability <= 100.0) {
            return wrong(format!(
                "probability {} must be above 0 and at most 100 percent",
                self.probability
            ));
        }
        if self.corrupt_value == 0 {
            return wrong("corrupt_value 0 changes nothing: must be 1 to 255".to_owned());
        }
        Ok(())
    }
}

const ALL: &[BdevOp] = &[
    BdevOp::Read,
    BdevOp::Write,
    BdevOp::Unmap,
    BdevOp::Flush,
    BdevOp::WriteZeroes,
    BdevOp::Compare,
    BdevOp::CompareAndWrite,
    BdevOp::Copy,
    BdevOp::Verify,
];

/// More make no sense: each operation has one.
const MAX_INJECTIONS: usize = 64;

fn one() -> u32 {
    1
}

fn hundred() -> f64 {
    100.0
}

fn all_bits() -> u8 {
    255
}

fn is_zero(value: &u32) -> bool {
    *value == 0
}

fn is_zero_u64(value: &u64) -> bool {
    *value == 0
}

fn is_hundred(value: &f64) -> bool {
    *value >= 100.0
}

fn is_all_bits(value: &u8) -> bool {
    *value == 255
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(json: &str, expected: Result<&str, &str>) {
        let params: Result<InjectError, _> = serde_json::from_str(json);
        let found = params.unwrap().split().map(|(name, _)| name).map_err(|error| error.to_string());
        assert_eq!(found, expected.map(str::to_owned).map_err(str::to_owned), "{json}");
    }

    #[test]
    fn an_injection_is_checked_with_its_values() {
        check(r#"{"name":"EE_b","io_type":"read","error_type":"failure","num":1}"#, Ok("EE_b"));
        check(r#"{"name":"EE_b","io_type":"clear"}"#, Ok("EE_b"));
        check(r#"{"io_type":"read"}"#, Err("missing field `name`"));
        check(
            r#"{"name":"e","io_type":"flush","error_type":"corrupt_data"}"#,
            Err("e: corrupt_data is for read, write and all, not for Flush"),
        );
        check(
            r#"{"name":"e","io_type":"reset","error_type":"pending"}"#,
            Err("e: a reset can only have a failure, not Pending"),
        );
        check(
            r#"{"name":"e","io_type":"read","probability":0}"#,
            Err("e: probability 0 must be above 0 and at most 100 percent"),
        );
        check(
            r#"{"name":"e","io_type":"read","corrupt_value":0}"#,
            Err("e: corrupt_value 0 changes nothing: must be 1 to 255"),
        );
    }

    #[test]
    fn an_unknown_field_is_refused() {
        let params: InjectError = serde_json::from_str(r#"{"name":"e","io_type":"read","nun":1}"#).unwrap();
        let error = params.split().unwrap_err();
        assert!(error.reason.starts_with("unknown field `nun`"), "{error}");
    }

    #[test]
    fn the_name_is_made_of_the_base() {
        let params: ErrorParams = serde_json::from_str(r#"{"base_name":"m0"}"#).unwrap();
        assert_eq!(params.bdev_name(), "EE_m0");
    }
}
