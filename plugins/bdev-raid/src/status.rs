//! What clients are told about arrays: one object, the same in `bdev_raid_get_bdevs`
//! and in `driver_specific` of a device.

use serde_json::{Value, json};
use uuid::Uuid;

use crate::array::{Array, Slot, Standing};
use crate::config::Category;
use crate::state::ArrayState;

impl Array {
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
        if let Some(writer) = inner.agreed.lineage.writer() {
            status["generation"] = json!(inner.agreed.lineage.generation());
            status["writer"] = json!(Uuid::from_bytes(writer));
        }
        if !inner.diverged.is_empty() {
            status["diverged"] = json!(inner.diverged);
        }
        if let Some(error) = &inner.last_error {
            status["error"] = json!(error);
        }
        if let Some(rebuild) = &inner.rebuild {
            let slot = &inner.slots[rebuild.slot];
            let (done, size) = (rebuild.done_blocks, slot.data_size.max(1));
            let elapsed_ns = self.host.now_ns().saturating_sub(rebuild.since_ns).max(1);
            let rate = u128::from(done) * 1_000_000_000 / u128::from(elapsed_ns);
            let left = u128::from(size - done).checked_div(rate);
            status["process"] = json!({
                "type": "rebuild",
                "target": slot.name,
                "progress": { "blocks": done, "percent": done * 100 / size },
                "blocks_per_sec": u64::try_from(rate).unwrap_or(u64::MAX),
                "remaining_sec": left.and_then(|left| u64::try_from(left).ok()),
            });
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
