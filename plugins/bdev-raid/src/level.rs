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
    /// Strips in turn over pairs of members, each strip on both members of its pair.
    #[serde(rename = "raid10", alias = "10")]
    Raid10,
    /// Strips in turn, one of each stripe holding parity, written in any size; needs a superblock.
    #[serde(rename = "raid5", alias = "5")]
    Raid5,
    /// Strips in turn, one of each stripe holding parity; written in whole stripes only.
    #[serde(rename = "raid5f", alias = "5f")]
    Raid5f,
    /// One member behind the other.
    #[serde(rename = "concat")]
    Concat,
}

impl Level {
    /// Every level.
    pub const ALL: [Level; 6] =
        [Level::Raid0, Level::Raid1, Level::Raid10, Level::Raid5, Level::Raid5f, Level::Concat];

    /// Its number in a superblock. Other readers of the format have no levels 5 and 10, and
    /// refuse them.
    #[must_use]
    pub const fn id(self) -> u32 {
        match self {
            Level::Raid0 => 0,
            Level::Raid1 => 1,
            Level::Raid10 => 10,
            Level::Raid5 => 5,
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
            Level::Raid10 => "raid10",
            Level::Raid5 => "raid5",
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
            Level::Raid5 | Level::Raid5f => 3,
            Level::Raid10 => 4,
        }
    }

    /// Whether an array of `members` works with those of the mask only.
    #[must_use]
    pub const fn survives(self, present: u32, members: usize) -> bool {
        let all = u32::MAX >> (u32::BITS - members as u32);
        let missing = all & !present;
        match self {
            Level::Raid0 | Level::Concat => missing == 0,
            Level::Raid1 => missing != all,
            // Slots 0 and 1 are a pair, 2 and 3, and so on.
            Level::Raid10 => missing & (missing >> 1) & EVEN_SLOTS == 0,
            Level::Raid5 | Level::Raid5f => missing.count_ones() <= 1,
        }
    }

    /// Whether members can be lost at all.
    #[must_use]
    pub const fn is_redundant(self) -> bool {
        !matches!(self, Level::Raid0 | Level::Concat)
    }

    /// True if one strip of each stripe holds parity.
    #[must_use]
    pub const fn is_parity(self) -> bool {
        matches!(self, Level::Raid5 | Level::Raid5f)
    }

    /// True if the level has strips.
    #[must_use]
    pub const fn has_strips(self) -> bool {
        match self {
            Level::Raid0 | Level::Raid10 | Level::Raid5 | Level::Raid5f | Level::Concat => true,
            Level::Raid1 => false,
        }
    }
}

const EVEN_SLOTS: u32 = 0x5555_5555;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_have_the_numbers_and_names_of_the_format() {
        let found = Level::ALL.map(|level| (level.name(), level.id()));
        assert_eq!(
            found,
            [("raid0", 0), ("raid1", 1), ("raid10", 10), ("raid5", 5), ("raid5f", 95), ("concat", 99)]
        );
        assert!(Level::ALL.into_iter().all(|level| Level::from_id(level.id()) == Some(level)));
        assert_eq!(Level::from_id(6), None);
    }

    #[test]
    fn a_level_works_without_as_many_members_as_its_redundancy_covers() {
        #[track_caller]
        fn check(level: Level, present: u32, members: usize, expected: bool) {
            assert_eq!(level.survives(present, members), expected, "{level:?} {present:b}");
        }
        check(Level::Raid0, 0b111, 3, true);
        check(Level::Raid0, 0b101, 3, false);
        check(Level::Concat, 0b01, 2, false);
        check(Level::Raid1, 0b100, 3, true);
        check(Level::Raid1, 0, 3, false);
        check(Level::Raid1, 1 << 31, 32, true);
        check(Level::Raid5f, 0b101, 3, true);
        check(Level::Raid5f, 0b100, 3, false);
        check(Level::Raid10, 0b0110, 4, true);
        check(Level::Raid10, 0b1001, 4, true);
        check(Level::Raid10, 0b1100, 4, false);
        check(Level::Raid10, 0b0011, 4, false);
        check(Level::Raid10, 0x5555_5555, 32, true);
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
