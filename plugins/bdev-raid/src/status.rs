//! What clients are told about arrays: one object, the same in `bdev_raid_get_bdevs`
//! and in `driver_specific` of a device.

use serde_json::{Value, json};
use tenon_sdk::{Error, Gauge, Host};
use uuid::Uuid;

use crate::array::{Array, Slot, Standing};
use crate::config::Category;
use crate::process::{Kind, Process};
use crate::spare::Spare;
use crate::state::ArrayState;

/// The numbers of an array that change while it is used.
#[derive(Clone, Copy)]
pub struct Metrics {
    missing: Gauge,
    percent: Gauge,
    bytes_per_sec: Gauge,
    remaining_sec: Gauge,
    corrected: Gauge,
    mismatches: Gauge,
}

impl Metrics {
    /// Those of an array of that name.
    fn new(host: Host, name: &str) -> Result<Metrics, Error> {
        let gauge = |metric: &str, help: &str| host.gauge(metric, help, &[("raid", name)]);
        Ok(Metrics {
            missing: gauge("missing_members", "Members that the array goes on without.")?,
            percent: gauge("process_percent", "How far a rebuild or a scrub is; 100 if none runs.")?,
            bytes_per_sec: gauge(
                "process_bytes_per_second",
                "How fast a rebuild or a scrub goes through each member; 0 if none runs.",
            )?,
            remaining_sec: gauge(
                "process_remaining_seconds",
                "How long a rebuild or a scrub will take at its present rate; 0 if none runs or it is paused.",
            )?,
            corrected: gauge("corrected_read_errors", "Read errors that were corrected.")?,
            mismatches: gauge("mismatched_blocks", "Blocks that the last scrub found to differ.")?,
        })
    }
}

impl Array {
    /// Brings metrics up to date.
    pub fn publish_process(&self) {
        let metrics = self.inner.borrow().metrics;
        let metrics = match metrics.map_or_else(|| Metrics::new(self.host, &self.name), Ok) {
            Ok(metrics) => metrics,
            Err(error) => {
                log::debug!("no metrics raid={} error=\"{error}\"", self.name);
                return;
            }
        };
        let mut inner = self.inner.borrow_mut();
        inner.metrics = Some(metrics);
        metrics.missing.set((inner.slots.len() - inner.current().len()) as u64);
        let percent = |process: &Process| process.done_blocks * 100 / process.total_blocks.max(1);
        metrics.percent.set(inner.process.as_ref().map_or(100, percent));
        let pace = inner.process.as_ref().map(|process| process.pace(self.host.now_ns()));
        let (rate, remaining_sec) = pace.unwrap_or_default();
        metrics.bytes_per_sec.set(rate.saturating_mul(inner.block_size.into()));
        metrics.remaining_sec.set(remaining_sec.unwrap_or(0));
        metrics.corrected.set(inner.corrected);
        let report = match inner.process.as_ref().map(|process| process.kind) {
            Some(Kind::Scrub(report)) => Some(report),
            Some(Kind::Rebuild { .. } | Kind::Resync) | None => inner.report,
        };
        metrics.mismatches.set(report.map_or(0, |report| report.found.mismatches));
    }

    /// The array as clients see it.
    pub fn status(&self) -> Value {
        let inner = self.inner.borrow();
        let all = inner.slots.len();
        let members: Vec<Value> = inner.slots.iter().map(member).collect();
        let mut status = json!({
            "name": self.name,
            "uuid": Uuid::from_bytes(inner.uuid),
            "strip_size_kb": inner.params.strip_size_kb,
            "state": inner.state.name(),
            "raid_level": inner.params.level.name(),
            "superblock": inner.params.superblock,
            "num_base_bdevs": all,
            "num_base_bdevs_discovered": inner.slots.iter().filter(|slot| slot.base.is_some()).count(),
            "num_base_bdevs_operational":
                inner.slots.iter().filter(|slot| slot.standing == Standing::Current).count(),
            "base_bdevs_list": members,
        });
        let missing = inner.missing();
        if !missing.is_empty() {
            status["missing"] = json!(missing);
        }
        let lost: Vec<Value> = inner.slots.iter().enumerate().filter_map(lost).collect();
        if !lost.is_empty() {
            status["lost"] = json!(lost);
        }
        if !(inner.returning.is_empty() && inner.blank.is_empty()) {
            status["returning"] = json!([&inner.returning[..], &inner.blank[..]].concat());
        }
        if let Some(writer) = inner.agreed.lineage.writer() {
            status["generation"] = json!(inner.agreed.lineage.generation());
            status["writer"] = json!(Uuid::from_bytes(writer));
        }
        if let Some(marking) = &inner.marking {
            status["bitmap"] = marking.status();
        }
        if !inner.diverged.is_empty() {
            status["diverged"] = json!(inner.diverged);
        }
        if let Some(error) = &inner.last_error {
            status["error"] = json!(error);
        }
        if inner.corrected > 0 {
            status["corrected_read_errors"] = json!(inner.corrected);
        }
        if !inner.spares.is_empty() {
            let spare = |spare: &Spare| json!({ "name": spare.name, "is_there": spare.base.is_some() });
            status["spares"] = inner.spares.iter().map(spare).collect();
        }
        let mut report = inner.report;
        if let Some(process) = &inner.process {
            let target = process.target().map(|slot| inner.slots[slot].name.as_str());
            status["process"] = process.status(self.host.now_ns(), inner.block_size, target);
            if let Kind::Scrub(running) = process.kind {
                report = Some(running);
            }
        }
        if let Some(report) = report {
            status["scrub"] = report.status();
        }
        status
    }

    /// True if the array is of the category.
    pub fn is_in(&self, category: Category) -> bool {
        let state = self.inner.borrow().state;
        match category {
            Category::All => true,
            Category::Online => state == ArrayState::Online,
            Category::Configuring => matches!(state, ArrayState::Configuring | ArrayState::Committing),
            Category::Offline => matches!(state, ArrayState::Closing | ArrayState::Gone),
        }
    }
}

/// A member that the array goes on without.
fn lost((nth, slot): (usize, &Slot)) -> Option<Value> {
    slot.is_lost().then(|| {
        json!({
            "slot": nth,
            "name": Some(&slot.name).filter(|name| !name.is_empty()),
            "uuid": Uuid::from_bytes(slot.uuid),
            "state": if slot.standing == Standing::Failed { "failed" } else { "missing" },
            "reason": slot.loss.as_deref().unwrap_or("as its superblock states"),
        })
    })
}

fn member(slot: &Slot) -> Value {
    let name =
        if slot.base.is_some() || slot.standing == Standing::Current { Some(&slot.name) } else { None };
    json!({
        "name": name.filter(|name| !name.is_empty()),
        "uuid": Uuid::from_bytes(slot.uuid),
        "is_configured": slot.base.is_some() && slot.standing == Standing::Current,
        "data_offset": slot.data_offset,
        "data_size": slot.data_size,
    })
}
