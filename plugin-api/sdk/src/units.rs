//! Parameters with a unit: sizes as `"64MiB"` or bytes, times as `"50us"` or an
//! integer in the unit of the field. All say so in the JSON Schema.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, Deserializer, Visitor};
use serde::{Deserialize, Serialize, Serializer};

/// A number of bytes: an integer, or text with a unit (`B KiB MiB GiB TiB PiB`, decimal `kB MB GB TB PB`).
///
/// ```
/// use tenon_sdk::ByteSize;
/// assert_eq!("64MiB".parse::<ByteSize>(), Ok(ByteSize(64 << 20)));
/// assert!("64 parsecs".parse::<ByteSize>().is_err());
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct ByteSize(pub u64);

/// A time span whose integer form counts units of `UNIT_NS` nanoseconds; text needs a unit (`ns us ms s min h`).
///
/// Use [`Microseconds`], [`Milliseconds`] or [`Seconds`], and name the field after the unit (`delay_us`).
///
/// ```
/// use tenon_sdk::{Microseconds, Seconds};
/// assert_eq!("50us".parse::<Microseconds>().unwrap().as_ns(), 50_000);
/// assert_eq!(serde_json::from_str::<Seconds>("2").unwrap().as_ns(), 2_000_000_000);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct TimeSpan<const UNIT_NS: u64>(u64);

/// A time span; an integer means microseconds.
pub type Microseconds = TimeSpan<1_000>;
/// A time span; an integer means milliseconds.
pub type Milliseconds = TimeSpan<1_000_000>;
/// A time span; an integer means seconds.
pub type Seconds = TimeSpan<1_000_000_000>;

/// A text that is not a size or time.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct UnitError {
    text: String,
    expected: &'static str,
}

impl ByteSize {
    /// The size in bytes.
    #[must_use]
    pub const fn as_bytes(self) -> u64 {
        self.0
    }
}

impl FromStr for ByteSize {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        const EXPECTED: &str = "bytes or a size like 64MiB";
        parse(text, EXPECTED, |unit| {
            Some(match unit {
                "" | "B" => 1,
                "KiB" => 1 << 10,
                "MiB" => 1 << 20,
                "GiB" => 1 << 30,
                "TiB" => 1 << 40,
                "PiB" => 1 << 50,
                "kB" | "KB" => 1_000,
                "MB" => 1_000_000,
                "GB" => 1_000_000_000,
                "TB" => 1_000_000_000_000,
                "PB" => 1_000_000_000_000_000,
                _ => return None,
            })
        })
        .map(ByteSize)
    }
}

impl<const UNIT_NS: u64> TimeSpan<UNIT_NS> {
    /// A span of `count` units.
    #[must_use]
    pub const fn new(count: u64) -> Self {
        TimeSpan(count.saturating_mul(UNIT_NS))
    }

    /// A span of `ns` nanoseconds.
    #[must_use]
    pub const fn from_ns(ns: u64) -> Self {
        TimeSpan(ns)
    }

    /// The span in nanoseconds.
    #[must_use]
    pub const fn as_ns(self) -> u64 {
        self.0
    }

    /// The span.
    #[must_use]
    pub const fn as_duration(self) -> Duration {
        Duration::from_nanos(self.0)
    }
}

impl<const UNIT_NS: u64> FromStr for TimeSpan<UNIT_NS> {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        const EXPECTED: &str = "a time like 50us, 10ms or 1s";
        parse(text, EXPECTED, |unit| {
            Some(match unit {
                "ns" => 1,
                "us" | "µs" => 1_000,
                "ms" => 1_000_000,
                "s" => 1_000_000_000,
                "min" => 60_000_000_000,
                "h" => 3_600_000_000_000,
                _ => return None,
            })
        })
        .map(TimeSpan)
    }
}

impl fmt::Display for UnitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\" is not {}", self.text, self.expected)
    }
}

impl std::error::Error for UnitError {}

impl Serialize for ByteSize {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(self.0)
    }
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer
            .deserialize_any(NumberOrText { expected: "bytes or a size like 64MiB", unit: 1 })
            .map(ByteSize)
    }
}

impl JsonSchema for ByteSize {
    fn schema_name() -> Cow<'static, str> {
        "ByteSize".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "bytes, or a size with a unit like 64MiB",
            "anyOf": [
                { "type": "integer", "minimum": 0 },
                { "type": "string", "pattern": "^[0-9]+ *(B|[KMGTP]iB|[kKMGTP]B)?$" }
            ]
        })
    }
}

impl<const UNIT_NS: u64> Serialize for TimeSpan<UNIT_NS> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.0.is_multiple_of(UNIT_NS) {
            serializer.serialize_u64(self.0 / UNIT_NS)
        } else {
            serializer.collect_str(&format_args!("{}ns", self.0))
        }
    }
}

impl<'de, const UNIT_NS: u64> Deserialize<'de> for TimeSpan<UNIT_NS> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer
            .deserialize_any(NumberOrText { expected: "a time like 50us, 10ms or 1s", unit: UNIT_NS })
            .map(TimeSpan)
    }
}

impl<const UNIT_NS: u64> JsonSchema for TimeSpan<UNIT_NS> {
    fn schema_name() -> Cow<'static, str> {
        format!("TimeSpan{UNIT_NS}").into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let unit = match UNIT_NS {
            1_000 => "microseconds",
            1_000_000 => "milliseconds",
            1_000_000_000 => "seconds",
            _ => "units",
        };
        json_schema!({
            "description": format!("{unit}, or a time with a unit like 50us, 10ms or 1s"),
            "anyOf": [
                { "type": "integer", "minimum": 0 },
                { "type": "string", "pattern": "^[0-9]+ *(ns|us|µs|ms|s|min|h)$" }
            ]
        })
    }
}

/// Accepts a count of `unit`, or text.
struct NumberOrText {
    expected: &'static str,
    unit: u64,
}

impl Visitor<'_> for NumberOrText {
    type Value = u64;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.expected)
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<u64, E> {
        value.checked_mul(self.unit).ok_or_else(|| E::invalid_value(de::Unexpected::Unsigned(value), &self))
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<u64, E> {
        let count =
            u64::try_from(value).map_err(|_| E::invalid_value(de::Unexpected::Signed(value), &self))?;
        self.visit_u64(count)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<u64, E> {
        // The unit of integers is 1 only for sizes, whose plain digits mean bytes.
        let parsed = if self.unit == 1 {
            text.parse::<ByteSize>().map(ByteSize::as_bytes)
        } else {
            text.parse::<TimeSpan<1>>().map(TimeSpan::as_ns)
        };
        parsed.map_err(E::custom)
    }
}

fn parse(text: &str, expected: &'static str, unit: impl Fn(&str) -> Option<u64>) -> Result<u64, UnitError> {
    let wrong = || UnitError { text: text.to_owned(), expected };
    let trimmed = text.trim();
    let end = trimmed.find(|c: char| !c.is_ascii_digit()).unwrap_or(trimmed.len());
    let (digits, rest) = trimmed.split_at(end);
    let count: u64 = digits.parse().map_err(|_| wrong())?;
    let factor = unit(rest.trim_start()).ok_or_else(wrong)?;
    count.checked_mul(factor).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn size(json: &str, expected: Option<u64>) {
        assert_eq!(serde_json::from_str::<ByteSize>(json).ok().map(|size| size.0), expected, "{json}");
    }

    #[track_caller]
    fn micros(json: &str, expected_ns: Option<u64>) {
        assert_eq!(
            serde_json::from_str::<Microseconds>(json).ok().map(TimeSpan::as_ns),
            expected_ns,
            "{json}"
        );
    }

    #[test]
    fn sizes_are_bytes_or_text_with_a_unit() {
        size("512", Some(512));
        size("\"64MiB\"", Some(64 << 20));
        size("\"64 MiB\"", Some(64 << 20));
        size("\"1GB\"", Some(1_000_000_000));
        size("\"4096\"", Some(4096));
        size("\"64\u{20ac}\"", None);
        size("\"-1\"", None);
        size("-1", None);
        size("1.5", None);
        size("\"99999999PiB\"", None);
        size("\"MiB\"", None);
    }

    #[test]
    fn times_are_units_or_text_with_a_unit() {
        micros("50", Some(50_000));
        micros("\"1s\"", Some(1_000_000_000));
        micros("\"5ns\"", Some(5));
        micros("\"5\"", None);
        micros("18446744073709551615", None);
    }

    #[test]
    fn a_wrong_value_is_named_in_the_error() {
        let error = serde_json::from_str::<ByteSize>("\"64parsecs\"").unwrap_err().to_string();
        assert!(error.starts_with("\"64parsecs\" is not bytes or a size like 64MiB"), "{error}");
    }

    #[test]
    fn a_time_survives_the_way_to_json_and_back() {
        for ns in [0, 5, 1_000, 123_456, 1_000_000_000] {
            let text = serde_json::to_string(&Microseconds::from_ns(ns)).unwrap();
            assert_eq!(serde_json::from_str::<Microseconds>(&text).unwrap().as_ns(), ns);
        }
    }
}
