//! The device of an array as the host sees it: what it declares, made of what its
//! members declare, and the way from the host's callbacks to the array.

use std::rc::Rc;
use std::sync::Arc;

use tenon_sdk::{
    Bdev, BdevFlags, BdevInfo, BdevOp, BdevSpec, Error, Exported, IoFlags, OpSet, OpToken, Reactor,
};

use crate::RaidModule;
use crate::channel::{MAX_PIECES, RaidChannel};
use crate::layout::Layout;
use crate::level::Level;
use crate::shared::Shared;

/// A device.
pub struct RaidBdev {
    /// What its channels share.
    pub shared: Arc<Shared>,
}

impl Bdev for RaidBdev {
    type Channel = RaidChannel;

    fn channel(&self, reactor: Reactor) -> Result<Rc<RaidChannel>, Error> {
        RaidChannel::open(&self.shared, reactor)
    }

    fn destruct(self: Arc<Self>, token: OpToken) {
        let id = self.shared.id;
        drop(self);
        let mut token = Some(token);
        RaidModule::with(|module| {
            if let (Some(array), Some(token)) = (module.by_id(id), token.take()) {
                array.destructed(token);
            }
        });
        if let Some(token) = token {
            token.done();
        }
    }

    fn rolled_back(&self) {
        let array = RaidModule::with(|module| module.by_id(self.shared.id)).flatten();
        if let Some(array) = array {
            array.rolled_back();
        }
    }

    fn dump(&self) -> serde_json::Value {
        let array = RaidModule::with(|module| module.by_id(self.shared.id)).flatten();
        array.map_or_else(|| serde_json::json!({}), |array| serde_json::json!({ "raid": array.status() }))
    }

    fn config(&self) -> Option<serde_json::Value> {
        let array = RaidModule::with(|module| module.by_id(self.shared.id)).flatten()?;
        serde_json::to_value(array.params()).ok()
    }
}

/// What to register for an array on these members.
pub fn spec(name: &str, layout: &Layout, block_size: u32, uuid: [u8; 16], members: &[BdevInfo]) -> BdevSpec {
    let any = |flag: BdevFlags| members.iter().any(|member| member.flags.contains(flag));
    let keep = |is_kept: bool, flag: BdevFlags| if is_kept { flag.0 } else { 0 };
    let flags = keep(any(BdevFlags::VOLATILE_WRITE_CACHE), BdevFlags::VOLATILE_WRITE_CACHE)
        | keep(any(BdevFlags::ROTATIONAL), BdevFlags::ROTATIONAL)
        | keep(unmap_reads_zeroes(members), BdevFlags::UNMAP_READS_ZEROES)
        | match layout.level {
            Level::Raid0 | Level::Concat | Level::Raid10 => BdevFlags::SPLIT_ON_BOUNDARY.0,
            Level::Raid5f => BdevFlags::SPLIT_ON_WRITE_UNIT.0,
            Level::Raid1 | Level::Raid5 => 0,
        };
    let known = IoFlags::FUA.0 | IoFlags::DEALLOCATE.0 | IoFlags::NO_RETRY.0;
    let io_flags = members.iter().fold(known, |flags, member| flags & member.io_flags.0);
    BdevSpec::new(name, block_size, layout.num_blocks)
        .product("Raid Volume")
        .ops(ops(layout.level, members))
        .io_flags(IoFlags(io_flags))
        .flags(BdevFlags(flags))
        .uuid(uuid)
        .limits(|limits| {
            let largest = members.iter().map(|member| member.limits.physical_block_size).max();
            limits.physical_block_size = largest.unwrap_or(block_size).max(block_size);
            limits.required_alignment =
                members.iter().map(|member| member.limits.required_alignment).max().unwrap_or(1).max(1);
            if layout.level.has_strips() {
                limits.optimal_io_boundary = layout.strip_blocks as u32;
            }
            if layout.level == Level::Raid5f {
                limits.write_unit = layout.stripe_blocks() as u32;
            }
            if layout.level.is_parity() {
                limits.max_transfer_blocks = layout.stripe_blocks() as u32;
                limits.max_segments = MAX_PIECES;
            }
        })
}

/// The operations of an array on these members: what the level can and all of them offer.
pub fn ops(level: Level, members: &[BdevInfo]) -> OpSet {
    let always = OpSet::of(&[BdevOp::Read, BdevOp::Write, BdevOp::Flush, BdevOp::Reset]);
    let ops = match level {
        // What members say of unmapped blocks must be the same at every read.
        Level::Raid1 | Level::Raid10 if !unmap_reads_zeroes(members) => {
            always.union(OpSet::of(&[BdevOp::WriteZeroes]))
        }
        Level::Raid0 | Level::Concat | Level::Raid1 | Level::Raid10 => {
            always.union(OpSet::of(&[BdevOp::Unmap, BdevOp::WriteZeroes]))
        }
        Level::Raid5 | Level::Raid5f => always,
    };
    members.iter().fold(ops, |ops, member| ops.intersect(member.ops))
}

fn unmap_reads_zeroes(members: &[BdevInfo]) -> bool {
    members.iter().all(|member| member.flags.contains(BdevFlags::UNMAP_READS_ZEROES))
}
