//! Where each block of an array is: sizes, and the way from a block of the array
//! to a member and a block of its data area. Pure; knows no device.

use std::ops::Range;

use crate::level::Level;

/// The geometry of one array; does not change while it is online.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// How data is laid out.
    pub level: Level,
    /// Blocks of a strip; 0 for a mirror.
    pub strip_blocks: u64,
    /// Blocks of data on each member.
    pub data_sizes: Vec<u64>,
    /// Blocks of the array.
    pub num_blocks: u64,
    /// Concat: first block of the array on each member, then the end.
    starts: Vec<u64>,
}

/// Blocks of one member's data area.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Slot of the member.
    pub member: usize,
    /// First block.
    pub offset: u64,
    /// Number of blocks.
    pub blocks: u64,
}

impl Layout {
    /// The geometry of an array whose members have room for that many blocks of data each; `None` if one of them
    /// has no room for a strip, or the array would be too large.
    #[must_use]
    pub fn new(level: Level, strip_blocks: u64, room: &[u64]) -> Option<Layout> {
        let smallest = room.iter().copied().min()?;
        let whole =
            |blocks: u64| blocks.checked_div(strip_blocks).map_or(blocks, |strips| strips * strip_blocks);
        let data_sizes: Vec<u64> = match level {
            Level::Raid0 | Level::Raid1 | Level::Raid10 | Level::Raid5 | Level::Raid5f => {
                vec![whole(smallest); room.len()]
            }
            Level::Concat => room.iter().map(|blocks| whole(*blocks)).collect(),
        };
        Layout::of_sizes(level, strip_blocks, data_sizes)
    }

    /// The geometry of an array whose members have that many blocks of data, as a superblock states them.
    #[must_use]
    pub fn of_sizes(level: Level, strip_blocks: u64, data_sizes: Vec<u64>) -> Option<Layout> {
        let smallest = data_sizes.iter().copied().min()?;
        if smallest == 0 || (level.has_strips() && strip_blocks == 0) {
            return None;
        }
        if level.has_strips() && data_sizes.iter().any(|size| size % strip_blocks != 0) {
            return None;
        }
        if level != Level::Concat && data_sizes.iter().any(|size| *size != smallest) {
            return None;
        }
        let mut starts = vec![0u64];
        for size in &data_sizes {
            starts.push(starts.last()?.checked_add(*size)?);
        }
        let members = data_sizes.len() as u64;
        let num_blocks = match level {
            Level::Raid0 => smallest.checked_mul(members)?,
            Level::Raid1 => smallest,
            Level::Raid10 => smallest.checked_mul(members / 2)?,
            Level::Raid5 | Level::Raid5f => smallest.checked_mul(members.checked_sub(1)?)?,
            Level::Concat => *starts.last()?,
        };
        (num_blocks > 0).then_some(Layout { level, strip_blocks, data_sizes, num_blocks, starts })
    }

    /// Number of slots.
    #[must_use]
    pub fn members(&self) -> usize {
        self.data_sizes.len()
    }

    /// Blocks of data in a stripe of a parity level.
    #[must_use]
    pub fn stripe_blocks(&self) -> u64 {
        self.strip_blocks * (self.members() as u64 - 1)
    }

    /// The slots of which one is enough to hold what `slot` holds as well, with `slot` itself; none if it can only be
    /// computed of all others.
    #[must_use]
    pub fn copies_of(&self, slot: usize) -> Range<usize> {
        match self.level {
            Level::Raid1 => 0..self.members(),
            Level::Raid10 => slot & !1..(slot & !1) + 2,
            Level::Raid0 | Level::Concat | Level::Raid5 | Level::Raid5f => slot..slot + 1,
        }
    }

    /// The blocks of the array that depend on whole strips of the members' data areas.
    #[must_use]
    pub fn array_range(&self, blocks: &Range<u64>) -> Range<u64> {
        let scale = match self.level {
            Level::Raid0 => self.members() as u64,
            Level::Raid10 => self.members() as u64 / 2,
            Level::Raid5 | Level::Raid5f => self.members() as u64 - 1,
            Level::Raid1 | Level::Concat => 1,
        };
        blocks.start * scale..blocks.end * scale
    }

    /// The slot that holds the parity of a stripe.
    #[must_use]
    pub fn parity_slot(&self, stripe: u64) -> usize {
        let members = self.members() as u64;
        (members - 1 - stripe % members) as usize
    }

    /// The slot that holds data strip `strip` of a stripe.
    #[must_use]
    pub fn data_slot(&self, stripe: u64, strip: usize) -> usize {
        if strip < self.parity_slot(stripe) { strip } else { strip + 1 }
    }

    /// The member and its block that hold a block of the array; for mirrors the first of those
    /// that hold it.
    #[inline]
    #[must_use]
    pub fn locate(&self, block: u64) -> (usize, u64) {
        match self.level {
            Level::Raid0 => {
                let (strip, rest) = (block / self.strip_blocks, block % self.strip_blocks);
                let members = self.members() as u64;
                ((strip % members) as usize, strip / members * self.strip_blocks + rest)
            }
            Level::Raid10 => {
                let (strip, rest) = (block / self.strip_blocks, block % self.strip_blocks);
                let pairs = self.members() as u64 / 2;
                ((strip % pairs) as usize * 2, strip / pairs * self.strip_blocks + rest)
            }
            Level::Raid1 => (0, block),
            Level::Raid5 | Level::Raid5f => {
                let (stripe, rest) = (block / self.stripe_blocks(), block % self.stripe_blocks());
                let slot = self.data_slot(stripe, (rest / self.strip_blocks) as usize);
                (slot, stripe * self.strip_blocks + rest % self.strip_blocks)
            }
            Level::Concat => {
                let member = self.starts.partition_point(|start| *start <= block) - 1;
                (member, block - self.starts[member])
            }
        }
    }

    /// The blocks of `member` that hold a range of the array, if any: one run, because the strips of a run lie
    /// side by side on each member. Not for parity levels.
    #[must_use]
    pub fn extent(&self, member: usize, offset: u64, blocks: u64) -> Option<Extent> {
        let end = offset + blocks;
        let (from, to) = match self.level {
            Level::Raid0 => self.striped(member, self.members(), offset..end),
            Level::Raid10 => self.striped(member / 2, self.members() / 2, offset..end),
            Level::Raid1 | Level::Raid5 | Level::Raid5f => (offset, end),
            Level::Concat => {
                let (start, stop) = (self.starts[member], self.starts[member + 1]);
                (offset.clamp(start, stop) - start, end.clamp(start, stop) - start)
            }
        };
        (to > from).then_some(Extent { member, offset: from, blocks: to - from })
    }

    /// Where the blocks of a range begin and end on one of so many columns of strips.
    fn striped(&self, column: usize, columns: usize, range: Range<u64>) -> (u64, u64) {
        let up_to = |block: u64| {
            let (strips, rest) = (block / self.strip_blocks, block % self.strip_blocks);
            let (rows, last) = (strips / columns as u64, (strips % columns as u64) as usize);
            let partial = match column.cmp(&last) {
                std::cmp::Ordering::Less => self.strip_blocks,
                std::cmp::Ordering::Equal => rest,
                std::cmp::Ordering::Greater => 0,
            };
            rows * self.strip_blocks + partial
        };
        (up_to(range.start), up_to(range.end))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[track_caller]
    fn check(level: Level, strip: u64, room: &[u64], sizes: &[u64], num_blocks: u64) {
        let layout = Layout::new(level, strip, room).unwrap();
        assert_eq!((layout.data_sizes.as_slice(), layout.num_blocks), (sizes, num_blocks));
    }

    #[test]
    fn sizes_are_whole_strips_of_the_smallest_member() {
        check(Level::Raid0, 8, &[100, 90, 95], &[88, 88, 88], 264);
        check(Level::Raid1, 0, &[100, 90], &[90, 90], 90);
        check(Level::Raid5f, 8, &[100, 90, 95], &[88, 88, 88], 176);
        check(Level::Raid10, 8, &[100, 90, 95, 99], &[88; 4], 176);
        check(Level::Concat, 8, &[100, 7 + 8, 95], &[96, 8, 88], 192);
        assert_eq!(Layout::new(Level::Raid0, 128, &[100, 200]), None);
        assert_eq!(Layout::new(Level::Raid0, 8, &[u64::MAX, u64::MAX]), None);
    }

    #[test]
    fn each_block_has_a_place_of_its_own() {
        let arrays = [
            (Level::Raid0, 4, vec![40, 44, 43]),
            (Level::Raid5f, 4, vec![40, 41, 42, 43]),
            (Level::Raid10, 4, vec![40, 41, 42, 43, 44, 45]),
            (Level::Concat, 4, vec![40, 4, 13]),
            (Level::Raid1, 0, vec![40, 41]),
        ];
        for (level, strip, room) in arrays {
            let layout = Layout::new(level, strip, &room).unwrap();
            let mut places = HashSet::new();
            for block in 0..layout.num_blocks {
                let (member, at) = layout.locate(block);
                assert!(at < layout.data_sizes[member]);
                assert!(places.insert((member, at)), "{level:?} {block}");
                if level == Level::Raid5f {
                    assert_ne!(member, layout.parity_slot(block / layout.stripe_blocks()));
                }
            }
        }
    }

    #[test]
    fn parity_rotates_from_the_last_member_down() {
        let layout = Layout::new(Level::Raid5f, 4, &[40, 40, 40]).unwrap();
        assert_eq!([0, 1, 2, 3].map(|stripe| layout.parity_slot(stripe)), [2, 1, 0, 2]);
        assert_eq!([0, 1].map(|strip| layout.data_slot(1, strip)), [0, 2]);
        assert_eq!([0, 1].map(|strip| layout.data_slot(2, strip)), [1, 2]);
    }

    #[test]
    fn a_range_is_one_run_on_each_member() {
        let arrays = [
            (Level::Raid0, 4, vec![40, 40, 40]),
            (Level::Raid10, 4, vec![20; 6]),
            (Level::Concat, 4, vec![40, 4, 12]),
        ];
        for (level, strip, room) in arrays {
            let layout = Layout::new(level, strip, &room).unwrap();
            for offset in 0..layout.num_blocks {
                for blocks in 1..=layout.num_blocks - offset {
                    let mut expected = HashSet::new();
                    (offset..offset + blocks).for_each(|block| _ = expected.insert(layout.locate(block)));
                    let mut found = HashSet::new();
                    for extent in (0..room.len()).filter_map(|m| layout.extent(m, offset, blocks)) {
                        let run = extent.offset..extent.offset + extent.blocks;
                        let extent = Extent { member: layout.copies_of(extent.member).start, ..extent };
                        run.for_each(|at| _ = found.insert((extent.member, at)));
                    }
                    assert_eq!(found, expected, "{level:?} {offset}+{blocks}");
                }
            }
        }
    }
}
