//! raid0 and concat: a block is on one member. The host splits reads and writes
//! at strips, so each goes to one member; ranges without payload are one run on
//! each member, which raid0 reaches side by side and concat one after the other.

use std::rc::Rc;

use tenon_sdk::{BdevOp, Io, IoStatus};

use super::{RaidChannel, View};

impl RaidChannel {
    /// READ and WRITE.
    #[inline]
    pub(super) fn striped(&self, view: &Rc<View>, io: Io<Self>) {
        let (slot, at) = view.layout.locate(io.offset_blocks());
        let lane = &view.lanes[slot];
        let Some(base) = &lane.base else { return self.finish(io, IoStatus::NO_DEVICE) };
        let offset = lane.data_offset + at;
        io.forward_with(
            base,
            |request| request.set_offset_blocks(offset),
            |channel, io| {
                let (io, status) = io.into_result();
                channel.finish(io, status);
            },
        );
    }

    /// UNMAP, WRITE ZEROES, FLUSH and RESET of a concat, member by member.
    pub(super) fn in_turn(&self, view: &Rc<View>, mut io: Io<Self>) {
        let (op, first) = (io.op(), io.context().slot);
        for (slot, lane) in view.lanes.iter().enumerate().skip(first) {
            let Some(base) = &lane.base else {
                io.context_mut().error.get_or_insert(IoStatus::NO_DEVICE);
                continue;
            };
            let range = match op {
                BdevOp::Flush => Some((0, base.info().limits.num_blocks)),
                BdevOp::Reset => Some((io.offset_blocks(), io.num_blocks())),
                _ => {
                    let extent = view.layout.extent(slot, io.offset_blocks(), io.num_blocks());
                    extent.map(|extent| (lane.data_offset + extent.offset, extent.blocks))
                }
            };
            let Some((offset, blocks)) = range else { continue };
            io.context_mut().slot = slot + 1;
            return io.forward_with(
                base,
                |request| {
                    request.set_offset_blocks(offset);
                    request.set_num_blocks(blocks);
                },
                |channel, io| {
                    let (mut io, status) = io.into_result();
                    if !status.is_success() {
                        io.context_mut().error.get_or_insert(status);
                    }
                    channel.in_turn(&channel.view(), io);
                },
            );
        }
        let status = io.context().error.unwrap_or(IoStatus::SUCCESS);
        self.finish(io, status);
    }

    /// UNMAP and WRITE ZEROES.
    pub(super) fn ranges(&self, view: &Rc<View>, io: Io<Self>) {
        let (offset, blocks) = (io.offset_blocks(), io.num_blocks());
        io.fan_out(
            |fan| {
                for (slot, lane) in view.lanes.iter().enumerate() {
                    let Some(extent) = view.layout.extent(slot, offset, blocks) else { continue };
                    let Some(base) = &lane.base else {
                        fan.context_mut().error = Some(IoStatus::NO_DEVICE);
                        continue;
                    };
                    let shape = |request: &mut tenon_sdk::FanRequest<'_>| {
                        request.set_offset_blocks(lane.data_offset + extent.offset);
                        request.set_num_blocks(extent.blocks);
                    };
                    fan.child(slot as u32, base, shape, Self::note);
                }
            },
            |channel, io| {
                let status = io.context().error.unwrap_or(IoStatus::SUCCESS);
                channel.finish(io, status);
            },
        );
    }
}
