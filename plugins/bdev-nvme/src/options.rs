//! Options of the module that `bdev_nvme_set_options` and its table of the
//! configuration have in common with other hosts, and which of their values
//! mean something here. Pure.
//!
//! An option is honoured or refused with the reason; none is taken and ignored.
//! Those that say how a thing is done, not what comes of it, are taken where the
//! way it is done here does at least what they ask for.

use tenon_sdk::Error;

use crate::config::{NvmeConfig, Timers};

impl NvmeConfig {
    /// Refuses what this module cannot honour.
    pub fn check(&self) -> Result<(), Error> {
        self.timers().check()?;
        self.check_way_of_work()?;
        self.check_rdma()
    }

    fn timers(&self) -> Timers {
        Timers {
            ctrlr_loss_timeout_sec: self.ctrlr_loss_timeout_sec,
            reconnect_delay_sec: self.reconnect_delay_sec,
            fast_io_fail_timeout_sec: self.fast_io_fail_timeout_sec,
        }
    }

    fn check_way_of_work(&self) -> Result<(), Error> {
        if self.bdev_retry_count < -1 {
            return wrong("bdev_retry_count", self.bdev_retry_count, "must be -1 or more");
        }
        if self.transport_retry_count > 255 {
            return wrong("transport_retry_count", self.transport_retry_count, "must be at most 255");
        }
        if self.transport_ack_timeout > 31 {
            return wrong("transport_ack_timeout", self.transport_ack_timeout, "must be at most 31");
        }
        let weights = [
            ("arbitration_burst", self.arbitration_burst),
            ("low_priority_weight", self.low_priority_weight),
            ("medium_priority_weight", self.medium_priority_weight),
            ("high_priority_weight", self.high_priority_weight),
        ];
        for (name, value) in weights {
            if value != 0 {
                return wrong(name, value, "must be 0: queues over fabrics are not weighted");
            }
        }
        if self.nvme_adminq_poll_period_us == 0 {
            return wrong("nvme_adminq_poll_period_us", 0, "must be at least 1");
        }
        if self.nvme_ioq_poll_period_us != 0 {
            let why = "must be 0: reactors poll as often as they turn, see [host] spin_us";
            return wrong("nvme_ioq_poll_period_us", self.nvme_ioq_poll_period_us, why);
        }
        if self.io_queue_requests != 0 && !(2..=4096).contains(&self.io_queue_requests) {
            return wrong("io_queue_requests", self.io_queue_requests, "must be 0 or 2 to 4096");
        }
        if !self.delay_cmd_submit {
            return wrong("delay_cmd_submit", false, "must be true: commands of one turn are sent together");
        }
        if !self.generate_uuids {
            let why = "must be true: a device without a UUID gets one made of its identity";
            return wrong("generate_uuids", false, why);
        }
        if self.allow_accel_sequence {
            return wrong("allow_accel_sequence", true, "must be false: there is no acceleration framework");
        }
        if self.transport_tos != 0 {
            let why = "must be 0: packets are marked by `priority` of a controller";
            return wrong("transport_tos", self.transport_tos, why);
        }
        Ok(())
    }

    /// RDMA arrives with its transport; until then only what it has by itself.
    fn check_rdma(&self) -> Result<(), Error> {
        let sizes = [
            ("rdma_srq_size", self.rdma_srq_size),
            ("rdma_max_cq_size", self.rdma_max_cq_size),
            ("rdma_cm_event_timeout_ms", self.rdma_cm_event_timeout_ms),
        ];
        for (name, value) in sizes {
            if value != 0 {
                return wrong(name, value, "must be 0: there is no RDMA transport to pass it to");
            }
        }
        if self.rdma_umr_per_io {
            return wrong("rdma_umr_per_io", true, "must be false: there is no RDMA transport to pass it to");
        }
        Ok(())
    }
}

fn wrong(name: &str, value: impl std::fmt::Display, why: &str) -> Result<(), Error> {
    Err(Error::invalid(format!("{name} is {value}: {why}")))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[track_caller]
    fn check(options: Value, expected: Option<&str>) {
        let config: NvmeConfig = serde_json::from_value(options).unwrap();
        let error = config.check().err().map(|error| error.reason);
        match expected {
            None => assert_eq!(error, None),
            Some(text) => assert!(error.as_deref().unwrap_or("").starts_with(text), "{error:?}"),
        }
    }

    #[test]
    fn the_defaults_of_every_documented_option_are_taken() {
        check(json!({}), None);
        let all = json!({
            "timeout_admin_us": 0, "keep_alive_timeout_ms": 10000, "arbitration_burst": 0,
            "low_priority_weight": 0, "medium_priority_weight": 0, "high_priority_weight": 0,
            "nvme_adminq_poll_period_us": 10000, "nvme_ioq_poll_period_us": 0, "io_queue_requests": 0,
            "delay_cmd_submit": true, "transport_retry_count": 4, "bdev_retry_count": 3, "transport_ack_timeout": 0,
            "ctrlr_loss_timeout_sec": 0, "reconnect_delay_sec": 0, "fast_io_fail_timeout_sec": 0,
            "disable_auto_failback": false, "generate_uuids": true, "transport_tos": 0,
            "nvme_error_stat": false, "rdma_srq_size": 0, "io_path_stat": false, "allow_accel_sequence": false, "rdma_max_cq_size": 0,
            "rdma_cm_event_timeout_ms": 0, "rdma_umr_per_io": false, "tcp_connect_timeout_ms": 10000,
        });
        check(all, None);
    }

    #[test]
    fn what_cannot_be_honoured_is_refused_with_the_reason() {
        check(json!({ "arbitration_burst": 3 }), Some("arbitration_burst is 3: must be 0"));
        check(json!({ "nvme_ioq_poll_period_us": 100 }), Some("nvme_ioq_poll_period_us is 100"));
        check(json!({ "delay_cmd_submit": false }), Some("delay_cmd_submit is false"));
        check(json!({ "transport_retry_count": 256 }), Some("transport_retry_count is 256"));
        check(json!({ "rdma_srq_size": 1024 }), Some("rdma_srq_size is 1024"));
        check(json!({ "allow_accel_sequence": true }), Some("allow_accel_sequence is true"));
        check(json!({ "bdev_retry_count": -2 }), Some("bdev_retry_count is -2"));
        check(json!({ "ctrlr_loss_timeout_sec": 5 }), Some("reconnect_delay_sec is 0"));
        check(json!({ "io_queue_requests": 5000 }), Some("io_queue_requests is 5000"));
    }
}
