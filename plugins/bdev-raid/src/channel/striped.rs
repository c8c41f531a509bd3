//! raid0 and concat: a block is on one member. The host splits reads and writes
//! at strips, so each goes to one member; ranges without payload are one run on
//! each member.

use std::rc::Rc;

use tenon_sdk::{Io, IoStatus};

use super::{RaidChannel, View};

impl RaidChannel {
    /// READ and WRITE.
    #[inline]
    pub(super) fn striped(&self, view: &Rc<View>, io: Io<Self>) {
        let (slot, at) = self.shared.layout.locate(io.offset_blocks());
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

    /// UNMAP and WRITE ZEROES.
    pub(super) fn ranges(&self, view: &Rc<View>, io: Io<Self>) {
        let (offset, blocks) = (io.offset_blocks(), io.num_blocks());
        io.fan_out(
            |fan| {
                for (slot, lane) in view.lanes.iter().enumerate() {
                    let Some(extent) = self.shared.layout.extent(slot, offset, blocks) else { continue };
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
