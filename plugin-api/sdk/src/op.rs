//! Operations as a closed enum and sets of them. The contract's numbers are
//! open; they are converted once, where an I/O enters a channel.

use tenon_abi::Op;

macro_rules! operations {
    ($( $(#[$doc:meta])* $name:ident = $op:ident ),* $(,)?) => {
        /// An operation of an I/O, matched without `_`.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        #[repr(u8)]
        pub enum BdevOp {
            $( $(#[$doc])* $name = Op::$op.0 ),*
        }

        impl BdevOp {
            /// Every operation, by number.
            pub const ALL: [BdevOp; Op::COUNT as usize] = [$( BdevOp::$name ),*];
        }
    };
}

operations! {
    /// Read blocks into the payload, or lend memory.
    Read = READ,
    /// Write blocks from the payload.
    Write = WRITE,
    /// Make every completed write durable.
    Flush = FLUSH,
    /// Deallocate blocks.
    Unmap = UNMAP,
    /// Write zeroes without a payload.
    WriteZeroes = WRITE_ZEROES,
    /// Reset the device, which the host has drained.
    Reset = RESET,
    /// Compare the medium with the payload.
    Compare = COMPARE,
    /// Atomically compare with [`crate::Io::compare_buffers`], then write the payload.
    CompareAndWrite = COMPARE_AND_WRITE,
    /// Copy [`crate::Io::copy_ranges`] to the offset.
    Copy = COPY,
    /// Check that blocks can be read, without transferring them.
    Verify = VERIFY,
    /// Mark blocks so that reading them fails until they are written again.
    WriteUncorrectable = WRITE_UNCORRECTABLE,
    /// NVMe admin command.
    NvmeAdmin = NVME_ADMIN,
    /// NVMe I/O command.
    NvmeIo = NVME_IO,
    /// Report zones into the payload.
    GetZoneInfo = GET_ZONE_INFO,
    /// Zone action.
    ZoneManagement = ZONE_MANAGEMENT,
    /// Append to the zone that starts at the offset.
    ZoneAppend = ZONE_APPEND,
    /// Find the next unallocated block.
    SeekHole = SEEK_HOLE,
    /// Find the next allocated block.
    SeekData = SEEK_DATA,
}

/// A set of operations.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct OpSet(u64);

impl BdevOp {
    /// The operation with that number, if this version knows it.
    #[inline]
    #[must_use]
    pub fn from_abi(op: Op) -> Option<BdevOp> {
        BdevOp::ALL.get(usize::from(op.0)).copied()
    }

    /// Its number.
    #[inline]
    #[must_use]
    pub const fn to_abi(self) -> Op {
        Op(self as u8)
    }

    /// True if the module writes into the payload.
    #[inline]
    #[must_use]
    pub const fn fills_payload(self) -> bool {
        matches!(self, BdevOp::Read | BdevOp::GetZoneInfo | BdevOp::NvmeAdmin | BdevOp::NvmeIo)
    }
}

impl OpSet {
    /// No operation.
    pub const NONE: OpSet = OpSet(0);
    /// Every operation this version knows.
    pub const ALL: OpSet = OpSet::of(&BdevOp::ALL);

    /// The set of `ops`.
    #[must_use]
    pub const fn of(ops: &[BdevOp]) -> OpSet {
        let (mut bits, mut index) = (0, 0);
        while index < ops.len() {
            bits |= ops[index].to_abi().bit();
            index += 1;
        }
        OpSet(bits)
    }

    /// The set a device states; operations this version does not know are left out.
    #[must_use]
    pub const fn from_bits(bits: u64) -> OpSet {
        OpSet(bits & OpSet::ALL.0)
    }

    /// As a device states it.
    #[must_use]
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// True if `op` is in the set.
    #[must_use]
    pub const fn contains(self, op: BdevOp) -> bool {
        self.0 & op.to_abi().bit() != 0
    }

    /// Operations in both.
    #[must_use]
    pub const fn intersect(self, other: OpSet) -> OpSet {
        OpSet(self.0 & other.0)
    }

    /// Operations in either.
    #[must_use]
    pub const fn union(self, other: OpSet) -> OpSet {
        OpSet(self.0 | other.0)
    }

    /// Operations of this set that are not in `other`.
    #[must_use]
    pub const fn without(self, other: OpSet) -> OpSet {
        OpSet(self.0 & !other.0)
    }

    /// The operations, by number.
    pub fn iter(self) -> impl Iterator<Item = BdevOp> {
        BdevOp::ALL.into_iter().filter(move |op| self.contains(*op))
    }
}

impl std::fmt::Debug for OpSet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_enum_has_the_numbers_of_the_contract() {
        for number in 0..Op::COUNT {
            assert_eq!(BdevOp::from_abi(Op(number)).map(BdevOp::to_abi), Some(Op(number)));
        }
        assert_eq!(BdevOp::from_abi(Op(Op::COUNT)), None);
    }

    #[test]
    fn unknown_operations_are_left_out_of_a_set() {
        assert_eq!(OpSet::from_bits(u64::MAX), OpSet::ALL);
        let set = OpSet::of(&[BdevOp::Read, BdevOp::Write]).without(OpSet::of(&[BdevOp::Write]));
        assert_eq!(format!("{set:?}"), "{Read}");
    }
}
