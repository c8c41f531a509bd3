//! raid1 and raid10: every copy is written, one is read. A read goes where the last
//! one ended, unless that member is busy, otherwise to the member that is reading
//! least; if it fails, another copy is read, and the failed one rewritten.

use std::ops::Range;
use std::rc::Rc;

use tenon_sdk::{Forwarded, Io, IoStatus};

use super::{RaidChannel, View};

impl RaidChannel {
    /// READ: of raid10 inside of one strip, at which the host splits.
    pub(super) fn mirror_read(&self, view: &Rc<View>, mut io: Io<Self>) {
        let tried = io.context().failed;
        let (first, at) = view.layout.locate(io.offset_blocks());
        let copies = view.layout.copies_of(first);
        let blocks = io.offset_blocks()..io.offset_blocks() + io.num_blocks();
        let picked = if self.may_differ(view, blocks) {
            // Until they are equal, one of them is read and no other: what was read once must stay.
            view.first(copies, tried)
        } else {
            view.pick(copies, at, tried)
        };
        let Some(slot) = picked else {
            let error = io.context().error.unwrap_or(IoStatus::NO_DEVICE);
            return self.finish(io, error);
        };
        let lane = &view.lanes[slot];
        let Some(base) = lane.readable() else { return self.finish(io, IoStatus::NO_DEVICE) };
        lane.reading.set(lane.reading.get() + io.num_blocks());
        lane.read_end.set(at + io.num_blocks());
        io.context_mut().slot = slot;
        let offset = lane.data_offset + at;
        io.forward_with(
            base,
            |request| request.set_offset_blocks(offset),
            |channel, io| channel.mirror_was_read(io),
        );
    }

    fn mirror_was_read(&self, io: Forwarded<Self>) {
        let (mut io, status) = io.into_result();
        let view = self.view();
        let slot = io.context().slot;
        let reading = &view.lanes[slot].reading;
        // A directive in between starts new counts.
        reading.set(reading.get().saturating_sub(io.num_blocks()));
        if status.is_success() || status == IoStatus::NOMEM {
            let unread = io.context().failed;
            if unread != 0 && status.is_success() {
                let (_, at) = view.layout.locate(io.offset_blocks());
                self.correct(&view, unread, at..at + io.num_blocks());
            }
            return self.finish(io, status);
        }
        let state = io.context_mut();
        state.failed |= 1 << slot;
        state.error.get_or_insert(status);
        self.mirror_read(&view, io);
    }

    /// WRITE, WRITE ZEROES and UNMAP.
    pub(super) fn mirror_write(&self, view: &Rc<View>, io: Io<Self>) {
        let (offset, blocks) = (io.offset_blocks(), io.num_blocks());
        if !self.shared.level.survives(view.in_sync, view.lanes.len()) {
            return self.finish(io, IoStatus::NO_DEVICE);
        }
        io.fan_out(
            |fan| {
                for (slot, lane) in view.lanes.iter().enumerate() {
                    let Some(base) = &lane.base else { continue };
                    let Some(extent) = view.layout.extent(slot, offset, blocks) else { continue };
                    let shape = |request: &mut tenon_sdk::FanRequest<'_>| {
                        request.set_offset_blocks(lane.data_offset + extent.offset);
                        request.set_num_blocks(extent.blocks);
                    };
                    fan.child(slot as u32, base, shape, Self::note);
                }
            },
            Self::written,
        );
    }
}

impl View {
    /// The first of these members that was not tried.
    fn first(&self, mut copies: Range<usize>, tried: u32) -> Option<usize> {
        copies.find(|slot| self.lanes[*slot].readable().is_some() && tried & (1 << slot) == 0)
    }

    /// The member of these to read block `at` from; `None` if none is left that was not tried.
    fn pick(&self, copies: Range<usize>, at: u64, tried: u32) -> Option<usize> {
        let candidates = || {
            copies
                .clone()
                .map(|slot| (slot, &self.lanes[slot]))
                .filter(|(slot, lane)| lane.readable().is_some() && tried & (1 << slot) == 0)
        };
        let (least, lane) = candidates().min_by_key(|(_, lane)| lane.reading.get())?;
        let bound = lane.reading.get() + STREAM_BLOCKS;
        let stream = candidates().find(|(_, lane)| lane.read_end.get() == at && lane.reading.get() <= bound);
        Some(stream.map_or(least, |(slot, _)| slot))
    }
}

/// How many blocks more a member may be reading for a stream to stay on it.
const STREAM_BLOCKS: u64 = 2048;
