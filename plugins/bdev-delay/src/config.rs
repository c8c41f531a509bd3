//! Parameters of a `delay` device: one struct for the `[[bdev]]` table, the RPC
//! and the schema.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tenon_sdk::{Error, Microseconds};

use crate::latency::Class;

/// A device that completes reads and writes of another one later than that one does.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DelayParams {
    /// Unique name.
    pub name: String,
    /// Name of the device below.
    #[serde(alias = "base_bdev_name")]
    pub base: String,
    /// Added to 99 of 100 reads. Default: 0.
    #[serde(default, alias = "avg_read_latency")]
    pub avg_read_latency_us: Microseconds,
    /// Added to one read in 100. Default: `avg_read_latency_us`.
    #[serde(alias = "p99_read_latency", skip_serializing_if = "Option::is_none")]
    pub p99_read_latency_us: Option<Microseconds>,
    /// Added to 99 of 100 writes. Default: 0.
    #[serde(default, alias = "avg_write_latency")]
    pub avg_write_latency_us: Microseconds,
    /// Added to one write in 100. Default: `avg_write_latency_us`.
    #[serde(alias = "p99_write_latency", skip_serializing_if = "Option::is_none")]
    pub p99_write_latency_us: Option<Microseconds>,
    /// Identity. Default: derived from the identity of the base and the name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uuid: Option<uuid::Uuid>,
}

/// Parameters of `bdev_delay_update_latency`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct UpdateLatency {
    /// The device.
    pub delay_bdev_name: String,
    /// Which of its latencies.
    pub latency_type: Class,
    /// The new latency.
    pub latency_us: Microseconds,
}

impl DelayParams {
    /// Refuses what cannot be a device.
    pub fn check(&self) -> Result<(), Error> {
        for class in Class::ALL {
            checked_ns(&self.name, self.latency(class))?;
        }
        Ok(())
    }

    /// The latency of a class of I/O.
    pub fn latency(&self, class: Class) -> Microseconds {
        match class {
            Class::AvgRead => self.avg_read_latency_us,
            Class::P99Read => self.p99_read_latency_us.unwrap_or(self.avg_read_latency_us),
            Class::AvgWrite => self.avg_write_latency_us,
            Class::P99Write => self.p99_write_latency_us.unwrap_or(self.avg_write_latency_us),
        }
    }
}

/// The latency in nanoseconds, if a device may have it.
pub fn checked_ns(name: &str, latency: Microseconds) -> Result<u64, Error> {
    let ns = latency.as_ns();
    if ns > MAX_LATENCY_NS {
        let reason = format!("latency of {} us must be at most {} us", ns / 1000, MAX_LATENCY_NS / 1000);
        return Err(Error::invalid(reason).object(name));
    }
    Ok(ns)
}

/// An hour.
const MAX_LATENCY_NS: u64 = 3_600_000_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(json: &str, expected: Result<[u64; 4], &str>) {
        let params: DelayParams = serde_json::from_str(json).unwrap();
        let found = params.check().map(|()| Class::ALL.map(|class| params.latency(class).as_ns() / 1000));
        assert_eq!(found.map_err(|error| error.to_string()), expected.map_err(str::to_owned), "{json}");
    }

    #[test]
    fn the_p99_is_the_average_unless_given() {
        check(r#"{"name":"d","base":"b"}"#, Ok([0; 4]));
        check(
            r#"{"name":"d","base":"b","avg_read_latency_us":5,"p99_write_latency_us":"1ms"}"#,
            Ok([5, 5, 0, 1000]),
        );
    }

    #[test]
    fn names_of_existing_clients_mean_the_same() {
        let json = r#"{"name":"d","base_bdev_name":"b","avg_read_latency":1,"p99_read_latency":2,
            "avg_write_latency":3,"p99_write_latency":4}"#;
        check(json, Ok([1, 2, 3, 4]));
    }

    #[test]
    fn a_latency_above_an_hour_is_refused() {
        let json = r#"{"name":"d","base":"b","avg_read_latency_us":3600000001}"#;
        check(json, Err("d: latency of 3600000001 us must be at most 3600000000 us"));
        check(
            r#"{"name":"d","base":"b","avg_read_latency_us":"60min"}"#,
            Ok([3_600_000_000, 3_600_000_000, 0, 0]),
        );
    }
}
