//! Parameters: one struct for the `[[bdev]]` table, the RPC and the schema, and
//! those of the module's own methods.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tenon_sdk::Error;

use crate::level::Level;
use crate::superblock::MAX_NAME;

/// An array.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RaidParams {
    /// Unique name, with a superblock at most 63 bytes.
    pub name: String,
    /// How data is laid out.
    #[serde(alias = "raid_level")]
    pub level: Level,
    /// KiB of a strip, a power of two; 0 or absent for raid1.
    #[serde(default)]
    pub strip_size_kb: u32,
    /// Names of the members in the order of their slots.
    pub base_bdevs: BaseNames,
    /// Names of devices that take the place of members that are lost, also such as are not there yet. Default: none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub spares: Vec<String>,
    /// Whether members carry a superblock, from which the array is assembled at the next start. Default: false.
    #[serde(default)]
    pub superblock: bool,
    /// Identity. Default: with a superblock random, otherwise derived from the members and the name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uuid: Option<uuid::Uuid>,
    /// Whether superblocks of other arrays on the members are overwritten. Default: false, the create is refused.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub overwrite_superblock: bool,
    /// Whether members carry a write-intent bitmap, so that only what may differ is copied when one returns or after a
    /// crash. Needs a superblock; other programs refuse the array then. Default: false.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub bitmap: bool,
}

/// Names of members.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum BaseNames {
    /// As a list.
    List(Vec<String>),
    /// As one text, separated by spaces.
    Text(String),
}

impl BaseNames {
    /// The names in order.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        match self {
            BaseNames::List(names) => names.clone(),
            BaseNames::Text(text) => text.split_whitespace().map(str::to_owned).collect(),
        }
    }
}

/// Options of the module, also changed by `bdev_raid_set_options`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RaidOptions {
    /// KiB that a rebuild copies at once, while writes to them wait. Default: 1024.
    #[serde(default = "default_window")]
    pub process_window_size_kb: u32,
    /// MiB per second that a rebuild copies or a scrub compares at most; 0: no limit. Default: 0.
    #[serde(default)]
    pub process_max_bandwidth_mb_sec: u32,
    /// How much of the time a rebuild or a scrub takes while the array is used. Default: normal.
    #[serde(default)]
    pub process_priority: Priority,
    /// Seconds after which an array goes on without members that have not appeared, if it can; 0: never. Default: 0.
    #[serde(default)]
    pub degraded_start_timeout_sec: u32,
}

/// How much of the time a process takes while the array is used; all of it otherwise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Priority {
    /// 5 %.
    Low,
    /// 20 %.
    #[default]
    Normal,
    /// 60 %.
    High,
}

impl Priority {
    fn percent(self) -> u64 {
        match self {
            Priority::Low => 5,
            Priority::Normal => 20,
            Priority::High => 60,
        }
    }
}

impl Default for RaidOptions {
    fn default() -> Self {
        RaidOptions {
            process_window_size_kb: default_window(),
            process_max_bandwidth_mb_sec: 0,
            process_priority: Priority::default(),
            degraded_start_timeout_sec: 0,
        }
    }
}

impl RaidOptions {
    /// How long a process waits after a window that took so long and had so many bytes.
    #[must_use]
    pub fn pause_ns(&self, took_ns: u64, bytes: u64, is_used: bool) -> u64 {
        let percent = self.process_priority.percent();
        let yields_ns = if is_used { took_ns.saturating_mul(100 - percent) / percent } else { 0 };
        let limit = u128::from(self.process_max_bandwidth_mb_sec) << 20;
        let owed_ns = (u128::from(bytes) * 1_000_000_000).checked_div(limit).unwrap_or(0);
        let owed_ns = u64::try_from(owed_ns).unwrap_or(u64::MAX);
        yields_ns.max(owed_ns.saturating_sub(took_ns))
    }

    /// Refuses what cannot be.
    pub fn check(&self) -> Result<(), Error> {
        if !(1..=MAX_WINDOW_KB).contains(&self.process_window_size_kb) {
            return Err(Error::invalid(format!(
                "process_window_size_kb of {} must be from 1 to {MAX_WINDOW_KB}",
                self.process_window_size_kb
            )));
        }
        Ok(())
    }
}

/// Parameters of `bdev_raid_set_options`.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SetOptions {
    /// See [`RaidOptions`].
    pub process_window_size_kb: Option<u32>,
    /// See [`RaidOptions`].
    pub process_max_bandwidth_mb_sec: Option<u32>,
    /// See [`RaidOptions`].
    pub process_priority: Option<Priority>,
    /// See [`RaidOptions`].
    pub degraded_start_timeout_sec: Option<u32>,
}

/// Parameters of `bdev_raid_get_bdevs`.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct GetBdevs {
    /// Which arrays.
    pub category: Category,
}

/// A choice of arrays.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Category {
    /// Every array.
    All,
    /// Those that are devices.
    Online,
    /// Those that wait for members or are being created.
    Configuring,
    /// Those that are going.
    Offline,
}

/// Parameters of `bdev_raid_add_base_bdev`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AddBase {
    /// The array.
    pub raid_bdev: String,
    /// The new member.
    pub base_bdev: String,
}

/// Parameters of `bdev_raid_replace_base_bdev`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ReplaceBase {
    /// The array.
    pub raid_bdev: String,
    /// The member that goes.
    pub base_bdev: String,
    /// The device that takes its place.
    pub new_base_bdev: String,
}

/// Parameters of `bdev_raid_start_scrub`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Scrub {
    /// The array.
    pub name: String,
    /// Whether differences are repaired, not only counted. Default: false.
    #[serde(default)]
    pub repair: bool,
}

/// Parameters of methods about one array, one member or one device.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Named {
    /// Its name.
    pub name: String,
}

/// Parameters of `bdev_raid_destroy`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Destroy {
    /// The array, online or configuring.
    pub name: String,
    /// Whether the superblocks of its members are overwritten with zeroes. Default: true.
    #[serde(default = "yes")]
    pub wipe: bool,
}

impl RaidParams {
    /// Refuses what cannot be an array.
    pub fn check(&self) -> Result<(), Error> {
        let refuse = |reason: String| Err(Error::invalid(reason).object(&*self.name));
        let (level, names) = (self.level, self.base_bdevs.names());
        if names.len() < level.min_members() || names.len() > MAX_MEMBERS {
            return refuse(format!(
                "{} base bdevs given, {} needs {} to {MAX_MEMBERS}",
                names.len(),
                level.name(),
                level.min_members()
            ));
        }
        if level == Level::Raid10 && !names.len().is_multiple_of(2) {
            return refuse(format!("{} base bdevs given, raid10 needs pairs", names.len()));
        }
        if !self.spares.is_empty() && !level.is_redundant() {
            return refuse(format!("{} cannot lose a member, spares are of no use", level.name()));
        }
        if self.spares.len() > MAX_SPARES {
            return refuse(format!("{} spares given, at most {MAX_SPARES} can be", self.spares.len()));
        }
        let names: Vec<String> = names.into_iter().chain(self.spares.iter().cloned()).collect();
        if let Some(twice) = names.iter().enumerate().find(|(nth, name)| names[..*nth].contains(name)) {
            return refuse(format!("base bdev {} is given twice", twice.1));
        }
        if names.contains(&self.name) {
            return refuse("an array cannot be a base bdev of itself".to_owned());
        }
        if level.has_strips() {
            if !self.strip_size_kb.is_power_of_two() || self.strip_size_kb > MAX_STRIP_KB {
                return refuse(format!(
                    "strip_size_kb of {} must be a power of two from 1 to {MAX_STRIP_KB} for {}",
                    self.strip_size_kb,
                    level.name()
                ));
            }
        } else if self.strip_size_kb != 0 {
            return refuse(format!("strip_size_kb of {} must be 0 for {}", self.strip_size_kb, level.name()));
        }
        if self.superblock && (self.name.len() > MAX_NAME || self.name.contains('\0')) {
            return refuse(format!("name of {} bytes must have at most {MAX_NAME}", self.name.len()));
        }
        if level == Level::Raid5 && !self.superblock {
            return refuse("raid5 needs a superblock: its journal is beside it".to_owned());
        }
        if self.bitmap && !(self.superblock && level.min_members() > 1) {
            return refuse(format!(
                "bitmap needs a superblock and a level with redundancy, not {}",
                level.name()
            ));
        }
        if self.name.is_empty() {
            return refuse("name must not be empty".to_owned());
        }
        Ok(())
    }
}

fn default_window() -> u32 {
    1024
}

fn yes() -> bool {
    true
}

/// Most members: an I/O has room for one child each.
pub const MAX_MEMBERS: usize = 32;
/// Most spares of an array.
pub const MAX_SPARES: usize = 8;
/// Largest strip.
pub const MAX_STRIP_KB: u32 = 1024;
/// Largest rebuild window.
const MAX_WINDOW_KB: u32 = 65536;

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(json: &str, expected: Result<(), &str>) {
        let params: RaidParams = serde_json::from_str(json).unwrap();
        assert_eq!(params.check().map_err(|error| error.reason), expected.map_err(str::to_owned), "{json}");
    }

    #[test]
    fn what_cannot_be_an_array_is_refused_with_the_reason() {
        check(r#"{"name":"r","level":"raid0","strip_size_kb":64,"base_bdevs":["a"]}"#, Ok(()));
        check(r#"{"name":"r","raid_level":"1","base_bdevs":"a b"}"#, Ok(()));
        check(
            r#"{"name":"r","level":"raid1","base_bdevs":["a"]}"#,
            Err("1 base bdevs given, raid1 needs 2 to 32"),
        );
        check(
            r#"{"name":"r","level":"raid5f","strip_size_kb":3,"base_bdevs":["a","b","c"]}"#,
            Err("strip_size_kb of 3 must be a power of two from 1 to 1024 for raid5f"),
        );
        check(
            r#"{"name":"r","level":"raid1","strip_size_kb":4,"base_bdevs":["a","b"]}"#,
            Err("strip_size_kb of 4 must be 0 for raid1"),
        );
        check(r#"{"name":"r","level":"raid1","base_bdevs":["a","a"]}"#, Err("base bdev a is given twice"));
        check(
            r#"{"name":"r","level":"raid1","base_bdevs":["a","r"]}"#,
            Err("an array cannot be a base bdev of itself"),
        );
    }
}
