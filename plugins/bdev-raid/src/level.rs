//! The levels of an array: their names, numbers and what each demands and survives.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How data is laid out over members.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Level {
    /// Strips in turn over all members.
    #[serde(rename = "raid0", alias = "0")]
    Raid0,
    /// The same data on every member.
    #[serde(rename = "raid1", alias = "1")]
    Raid1,
    /// Strips in turn, one of each stripe holding parity; written in whole stripes only.
    #[serde(rename = "raid5f", alias = "5f")]
    Raid5f,
    /// One member behind the other.
    #[serde(rename = "concat")]
    Concat,
}

impl Level {
    /// Every level.
    pub const ALL: [Level; 4] = [Level::Raid0, Level::Raid1, Level::Raid5f, Level::Concat];

    /// Its number in a superblock.
    #[must_use]
    pub const fn id(self) -> u32 {
        match self {
            Level::Raid0 => 0,
            Level::Raid1 => 1,
            Level::Raid5f => 95,
            Level::Concat => 99,
        }
    }

    /// The level of a superblock; `None` if this version has no such level.
    #[must_use]
    pub fn from_id(id: u32) -> Option<Level> {
        Level::ALL.into_iter().find(|level| level.id() == id)
    }

    /// Its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Level::Raid0 => "raid0",
            Level::Raid1 => "raid1",
            Level::Raid5f => "raid5f",
            Level::Concat => "concat",
        }
    }

    /// Fewest members.
    #[must_use]
    pub const fn min_members(self) -> usize {
        match self {
            Level::Raid0 | Level::Concat => 1,
            Level::Raid1 => 2,
            Level::Raid5f => 3,
        }
    }

    /// Members that an array of `members` can lack.
    #[must_use]
    pub const fn redundancy(self, members: usize) -> usize {
        match self {
            Level::Raid0 | Level::Concat => 0,
            Level::Raid1 => members - 1,
            Level::Raid5f => 1,
        }
    }

    /// True if the level has strips.
    #[must_use]
    pub const fn has_strips(self) -> bool {
        match self {
            Level::Raid0 | Level::Raid5f | Level::Concat => true,
            Level::Raid1 => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_have_the_numbers_and_names_of_the_format() {
        let found = Level::ALL.map(|level| (level.name(), level.id()));
        assert_eq!(found, [("raid0", 0), ("raid1", 1), ("raid5f", 95), ("concat", 99)]);
        assert!(Level::ALL.into_iter().all(|level| Level::from_id(level.id()) == Some(level)));
        assert_eq!(Level::from_id(5), None);
    }

    #[test]
    fn a_level_is_named_as_clients_name_it() {
        for (text, level) in
            [("raid1", Level::Raid1), ("1", Level::Raid1), ("5f", Level::Raid5f), ("0", Level::Raid0)]
        {
            assert_eq!(serde_json::from_value::<Level>(text.into()).unwrap(), level);
        }
        assert!(serde_json::from_value::<Level>("raid6".into()).is_err());
    }
}
