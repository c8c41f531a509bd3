//! What is known of a namespace, whether it is still the same one, and the
//! block device that it makes.

use nvme_spec::identify::controller::Oncs;
use nvme_spec::identify::namespace::{Dlfeat, Nmic, Nsattr, Nsfeat};
use nvme_spec::identify::{IdDescriptor, IdDescriptors, IdentifyNamespace};
use tenon_sdk::{BdevFlags, BdevOp, BdevSpec, IoFlags, OpSet};

use crate::controller::setup::ControllerFacts;

/// Identity of a namespace: what does not change when it moves. All zero: not told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Identity {
    pub(crate) uuid: [u8; 16],
    pub(crate) nguid: [u8; 16],
    pub(crate) eui64: [u8; 8],
}

/// A namespace as a controller tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NamespaceFacts {
    pub(crate) nsid: u32,
    pub(crate) identity: Identity,
    pub(crate) num_blocks: u64,
    pub(crate) block_size: u32,
    pub(crate) anagrpid: u32,
    pub(crate) is_shared: bool,
    pub(crate) is_write_protected: bool,
    pub(crate) reads_zeroes: bool,
    pub(crate) boundary_blocks: u16,
    pub(crate) granularity: Option<Granularity>,
    pub(crate) copy: Option<CopyLimits>,
    pub(crate) atomic_compare_write_blocks: u32,
    pub(crate) atomic_write_blocks: u32,
}

/// Preferred sizes and alignments, in blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Granularity {
    pub(crate) write: u32,
    pub(crate) write_alignment: u32,
    pub(crate) unmap: u32,
    pub(crate) unmap_alignment: u32,
    pub(crate) optimal_write: u32,
}

/// What a copy command may copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CopyLimits {
    /// Blocks of one source range, and of all together.
    pub(crate) blocks: u32,
    /// Source ranges.
    pub(crate) ranges: u16,
}

impl Identity {
    /// Nothing is told, so nothing can be compared.
    pub(crate) fn is_unknown(&self) -> bool {
        *self == Identity::default()
    }

    /// Whether both are of one namespace: some identifier is told by both, and none differs.
    pub(crate) fn is_same(&self, other: &Identity) -> bool {
        let mut told_by_both = false;
        for (own, others) in [
            (&self.uuid[..], &other.uuid[..]),
            (&self.nguid[..], &other.nguid[..]),
            (&self.eui64[..], &other.eui64[..]),
        ] {
            let is_told = |id: &[u8]| id.iter().any(|byte| *byte != 0);
            if is_told(own) && is_told(others) {
                if own != others {
                    return false;
                }
                told_by_both = true;
            }
        }
        told_by_both
    }
}

impl NamespaceFacts {
    /// Reads an Identify Namespace page; `None` for a namespace that is not active, or whose format this module
    /// cannot use: blocks with metadata or of an impossible size.
    pub(crate) fn parse(nsid: u32, id: &IdentifyNamespace) -> Option<Self> {
        let format = id.lba_format()?;
        let block_size = format.block_size()?;
        let usable = (512..=65_536).contains(&block_size) && format.ms.get() == 0;
        if id.nsze.get() == 0 || !usable {
            return None;
        }
        let granularity = id.nsfeat.contains(Nsfeat::OPTIMAL_PERFORMANCE).then(|| Granularity {
            write: u32::from(id.npwg_z.get()) + 1,
            write_alignment: u32::from(id.npwa_z.get()) + 1,
            unmap: u32::from(id.npdg_z.get()) + 1,
            unmap_alignment: u32::from(id.npda_z.get()) + 1,
            optimal_write: u32::from(id.nows_z.get()) + 1,
        });
        let copy_blocks = u32::from(id.mssrl.get()).min(id.mcl.get());
        let copy =
            (copy_blocks > 0).then(|| CopyLimits { blocks: copy_blocks, ranges: u16::from(id.msrc_z) + 1 });
        let own_atomics = id.nsfeat.contains(Nsfeat::NAMESPACE_ATOMICS);
        let atomic = |z: u16| if own_atomics { u32::from(z) + 1 } else { 0 };
        Some(NamespaceFacts {
            nsid,
            identity: Identity { uuid: [0; 16], nguid: id.nguid, eui64: id.eui64 },
            num_blocks: id.nsze.get(),
            block_size,
            anagrpid: id.anagrpid.get(),
            is_shared: id.nmic.contains(Nmic::SHARED),
            is_write_protected: id.nsattr.contains(Nsattr::WRITE_PROTECTED),
            reads_zeroes: id.dlfeat.0 & DLFEAT_READ_MASK == Dlfeat::READS_ZEROES.0,
            boundary_blocks: id.noiob.get(),
            granularity,
            copy,
            atomic_compare_write_blocks: atomic(id.nacwu_z.get()),
            atomic_write_blocks: atomic(id.nawupf_z.get()),
        })
    }

    /// Takes over the identifiers of a descriptor list.
    pub(crate) fn describe(&mut self, list: &IdDescriptors) {
        for descriptor in list.iter() {
            match descriptor {
                IdDescriptor::Uuid(uuid) => self.identity.uuid = *uuid,
                IdDescriptor::Nguid(nguid) => self.identity.nguid = *nguid,
                IdDescriptor::Eui64(eui64) => self.identity.eui64 = *eui64,
                IdDescriptor::Csi(_) | IdDescriptor::Unknown { .. } => {}
            }
        }
    }

    /// The device this namespace makes under `name`.
    pub(crate) fn spec(&self, name: &str, controller: &ControllerFacts) -> BdevSpec {
        let mut ops = vec![BdevOp::Read, BdevOp::Write, BdevOp::Flush, BdevOp::Reset];
        for (bit, op) in [
            (Oncs::DATASET_MANAGEMENT, BdevOp::Unmap),
            (Oncs::WRITE_ZEROES, BdevOp::WriteZeroes),
            (Oncs::COMPARE, BdevOp::Compare),
            (Oncs::VERIFY, BdevOp::Verify),
            (Oncs::WRITE_UNCORRECTABLE, BdevOp::WriteUncorrectable),
        ] {
            if controller.supports(bit) {
                ops.push(op);
            }
        }
        ops.extend([BdevOp::NvmeAdmin, BdevOp::NvmeIo]);
        let copy = self.copy.filter(|_| controller.supports(Oncs::COPY) && controller.copies_by_ranges);
        if copy.is_some() {
            ops.push(BdevOp::Copy);
        }
        let mut flags = BdevFlags(0);
        let mut set = |flag: BdevFlags, wanted: bool| {
            if wanted {
                flags = flags.union(flag);
            }
        };
        set(BdevFlags::READ_ONLY, self.is_write_protected);
        set(BdevFlags::VOLATILE_WRITE_CACHE, controller.has_write_cache);
        set(BdevFlags::UNMAP_READS_ZEROES, self.reads_zeroes);
        set(BdevFlags::SPLIT_ON_BOUNDARY, self.boundary_blocks != 0);
        BdevSpec::new(name, self.block_size, self.num_blocks)
            .product("NVMe disk")
            .ops(OpSet::of(&ops))
            .io_flags(IoFlags(IoFlags::FUA.0 | IoFlags::DEALLOCATE.0))
            .flags(flags)
            .uuid(self.device_uuid(controller))
            .nguid(self.identity.nguid)
            .eui64(self.identity.eui64)
            .limits(|limits| {
                // A command counts at most 65,536 blocks, whatever the transfer size.
                let by_size = controller
                    .max_transfer_bytes
                    .map_or(u64::MAX, |bytes| bytes / u64::from(self.block_size));
                limits.max_transfer_blocks = by_size.clamp(1, MAX_COMMAND_BLOCKS) as u32;
                limits.max_write_zeroes_blocks = MAX_COMMAND_BLOCKS as u32;
                limits.max_unmap_blocks = u32::MAX;
                limits.max_copy_blocks = copy.map_or(0, |copy| copy.blocks);
                limits.optimal_io_boundary = self.boundary_blocks.into();
                limits.atomic_compare_write_blocks = self.atomic_compare_write_blocks;
                limits.atomic_write_blocks = self.atomic_write_blocks;
                if let Some(granularity) = self.granularity {
                    limits.preferred_write_granularity = granularity.write;
                    limits.preferred_write_alignment = granularity.write_alignment;
                    limits.preferred_unmap_granularity = granularity.unmap;
                    limits.preferred_unmap_alignment = granularity.unmap_alignment;
                    limits.optimal_write_size = granularity.optimal_write;
                }
            })
    }

    /// The namespace's UUID, or one made of what it tells instead, so that it is the same at every start.
    pub(crate) fn device_uuid(&self, controller: &ControllerFacts) -> [u8; 16] {
        if self.identity.uuid != [0; 16] {
            return self.identity.uuid;
        }
        let mut name = Vec::new();
        if self.identity.is_unknown() {
            name.extend_from_slice(controller.subnqn.as_bytes());
            name.extend_from_slice(controller.serial_number.as_bytes());
            name.extend_from_slice(&self.nsid.to_le_bytes());
        } else {
            name.extend_from_slice(&self.identity.nguid);
            name.extend_from_slice(&self.identity.eui64);
        }
        *uuid::Uuid::new_v5(&UUID_SPACE, &name).as_bytes()
    }
}

/// DLFEAT bits that tell how deallocated blocks read.
const DLFEAT_READ_MASK: u8 = 0b111;
/// Blocks a 16-bit, 0's based count can tell.
const MAX_COMMAND_BLOCKS: u64 = 1 << 16;
/// Name space of UUIDs made here.
const UUID_SPACE: uuid::Uuid = uuid::Uuid::from_u128(0x9c2e_6b14_52f3_4e0c_a1d7_3b8e_60f9_5a72);

#[cfg(test)]
mod tests {
    use zerocopy::FromZeros;

    use super::*;

    fn identity(uuid: u8, nguid: u8, eui64: u8) -> Identity {
        Identity { uuid: [uuid; 16], nguid: [nguid; 16], eui64: [eui64; 8] }
    }

    #[track_caller]
    fn check(a: Identity, b: Identity, same: bool) {
        assert_eq!(a.is_same(&b), same);
        assert_eq!(b.is_same(&a), same);
    }

    #[test]
    fn a_copy_is_as_large_as_both_of_its_limits_allow() {
        let copy = |mssrl: u16, mcl: u32, msrc_z| {
            let mut id = IdentifyNamespace::new_zeroed();
            id.nsze.set(100);
            id.lbaf[0].lbads = 9;
            (id.msrc_z, id.mssrl, id.mcl) = (msrc_z, mssrl.into(), mcl.into());
            NamespaceFacts::parse(1, &id).unwrap().copy
        };
        assert_eq!(copy(8, 20, 3), Some(CopyLimits { blocks: 8, ranges: 4 }));
        assert_eq!(copy(8, 5, 255), Some(CopyLimits { blocks: 5, ranges: 256 }));
        assert_eq!(copy(0, 0, 0), None, "it says nothing: it has none");
    }

    #[test]
    fn a_namespace_is_the_same_only_if_something_says_so_and_nothing_says_otherwise() {
        check(identity(1, 2, 3), identity(1, 2, 3), true);
        check(identity(1, 0, 0), identity(1, 2, 0), true);
        check(identity(1, 2, 0), identity(1, 3, 0), false);
        check(identity(1, 0, 0), identity(0, 2, 0), false);
        check(identity(0, 0, 0), identity(0, 0, 0), false);
        check(identity(0, 0, 3), identity(1, 2, 3), true);
    }
}
