//! raid5f: whole stripes are written with fresh parity, so nothing has to be read
//! before. What a member lacks or cannot read is computed of the others.

use std::rc::Rc;

use tenon_sdk::{Buffer, ChildDone, Fan, Io, IoStatus};

use super::{RaidChannel, View};
use crate::config::MAX_MEMBERS;
use crate::xor::{for_range, parity_of_strips, xor_into};

impl RaidChannel {
    /// WRITE of one stripe: the host splits and aligns writes to it.
    pub(super) fn parity_write(&self, view: &Rc<View>, io: Io<Self>) {
        let layout = &view.layout;
        let (stripe, rest) =
            (io.offset_blocks() / layout.stripe_blocks(), io.offset_blocks() % layout.stripe_blocks());
        if rest != 0 || io.num_blocks() != layout.stripe_blocks() {
            return self.finish(io, IoStatus::INVALID);
        }
        self.write_stripe(view, io, stripe, 0, Self::written);
    }

    /// Writes a whole stripe, whose data begins at block `from` of the payload, with fresh parity.
    pub(super) fn write_stripe(
        &self,
        view: &Rc<View>,
        io: Io<Self>,
        stripe: u64,
        from: u64,
        all: fn(&Self, Io<Self>),
    ) {
        let layout = &view.layout;
        let from = from * self.shared.block_bytes;
        let strip_bytes = (layout.strip_blocks * self.shared.block_bytes) as usize;
        let parity_slot = layout.parity_slot(stripe);
        let mut parity = None;
        if view.lanes[parity_slot].base.is_some() {
            let Some(mut buffer) = self.shared.host.buffer(strip_bytes) else {
                return self.end_early(io, IoStatus::NOMEM);
            };
            parity_of(&io, from as usize, layout.members() - 1, &mut buffer.as_mut_slice()[..strip_bytes]);
            parity = Some(buffer);
        }
        let missing = view.lanes.iter().filter(|lane| lane.base.is_none()).count();
        if missing > 1 {
            return self.end_early(io, IoStatus::NO_DEVICE);
        }
        let at = stripe * layout.strip_blocks;
        io.fan_out(
            |fan| {
                for strip in 0..layout.members() - 1 {
                    let slot = layout.data_slot(stripe, strip);
                    let lane = &view.lanes[slot];
                    let Some(base) = &lane.base else { continue };
                    let shape = |request: &mut tenon_sdk::FanRequest<'_>| {
                        request.set_offset_blocks(lane.data_offset + at);
                        request.set_num_blocks(layout.strip_blocks);
                        // A payload in more pieces than the host was told of fails as invalid.
                        let _ =
                            request.payload_range(from + (strip * strip_bytes) as u64, strip_bytes as u64);
                    };
                    fan.child(slot as u32, base, shape, Self::note);
                }
                let lane = &view.lanes[parity_slot];
                if let (Some(base), Some(buffer)) = (&lane.base, parity) {
                    let shape = |request: &mut tenon_sdk::FanRequest<'_>| {
                        request.set_offset_blocks(lane.data_offset + at);
                        request.set_num_blocks(layout.strip_blocks);
                        request.give_buffer(buffer, strip_bytes);
                    };
                    fan.child(parity_slot as u32, base, shape, Self::note);
                }
            },
            all,
        );
    }

    /// READ: all strips at once if every member can be read, otherwise strip by strip.
    pub(super) fn parity_read(&self, view: &Rc<View>, io: Io<Self>) {
        let layout = &view.layout;
        let (offset, blocks) = (io.offset_blocks(), io.num_blocks());
        if blocks > layout.stripe_blocks() {
            return self.finish(io, IoStatus::INVALID);
        }
        if view.in_sync.count_ones() as usize != view.lanes.len() {
            return self.read_next_strip(view, io);
        }
        let block_bytes = self.shared.block_bytes;
        io.fan_out(
            |fan| {
                // At most as many strips as members: a stripe of data, and one more if it starts inside one.
                let mut done = 0;
                for index in 0..layout.members() as u32 {
                    if done == blocks {
                        break;
                    }
                    let run = strip_run(layout.strip_blocks, offset + done, blocks - done);
                    let (slot, at) = layout.locate(offset + done);
                    let lane = &view.lanes[slot];
                    let Some(base) = lane.readable() else { continue };
                    let from = done * block_bytes;
                    let shape = |request: &mut tenon_sdk::FanRequest<'_>| {
                        request.set_offset_blocks(lane.data_offset + at);
                        request.set_num_blocks(run);
                        let _ = request.payload_range(from, run * block_bytes);
                    };
                    fan.child(index, base, shape, Self::note);
                    done += run;
                }
            },
            Self::strips_were_read,
        );
    }

    fn strips_were_read(&self, mut io: Io<Self>) {
        match io.context().error {
            None => self.finish(io, IoStatus::SUCCESS),
            Some(IoStatus::NOMEM) => self.finish(io, IoStatus::NOMEM),
            Some(_) => {
                let state = io.context_mut();
                (state.error, state.failed) = (None, 0);
                self.read_next_strip(&self.view(), io);
            }
        }
    }

    /// Reads the next strip of a read from its member, or computes it.
    pub(super) fn read_next_strip(&self, view: &Rc<View>, mut io: Io<Self>) {
        let layout = &view.layout;
        let done = io.context().done_blocks;
        if done == io.num_blocks() {
            return self.finish(io, IoStatus::SUCCESS);
        }
        let run = strip_run(layout.strip_blocks, io.offset_blocks() + done, io.num_blocks() - done);
        let (slot, at) = layout.locate(io.offset_blocks() + done);
        io.context_mut().slot = slot;
        let lane = &view.lanes[slot];
        let Some(base) = lane.readable() else { return self.compute_strip(view, io, at, run) };
        let (from, len) = (done * self.shared.block_bytes, run * self.shared.block_bytes);
        io.fan_out(
            |fan| {
                let shape = |request: &mut tenon_sdk::FanRequest<'_>| {
                    request.set_offset_blocks(lane.data_offset + at);
                    request.set_num_blocks(run);
                    let _ = request.payload_range(from, len);
                };
                fan.child(0, base, shape, Self::note);
            },
            Self::strip_was_read,
        );
    }

    fn strip_was_read(&self, mut io: Io<Self>) {
        let view = self.view();
        let layout = &view.layout;
        let at = io.offset_blocks() + io.context().done_blocks;
        let run = strip_run(layout.strip_blocks, at, io.num_blocks() - io.context().done_blocks);
        let state = io.context_mut();
        match state.error.take() {
            None => {
                state.done_blocks += run;
                self.read_next_strip(&view, io);
            }
            Some(IoStatus::NOMEM) => self.finish(io, IoStatus::NOMEM),
            Some(_) => {
                let (_, at) = layout.locate(at);
                self.compute_strip(&view, io, at, run);
            }
        }
    }

    /// Computes a run of blocks of the slot in the I/O's state of the same blocks of all other members.
    fn compute_strip(&self, view: &Rc<View>, io: Io<Self>, at: u64, run: u64) {
        // A partial write to the stripe must not be seen half done.
        let Some(io) = self.lock_stripe(io, at / view.layout.strip_blocks) else { return };
        let lost = io.context().slot;
        let done = io.context().done_blocks;
        let len = (run * self.shared.block_bytes) as usize;
        let mut buffers = [const { None }; MAX_MEMBERS];
        for (slot, lane) in view.lanes.iter().enumerate().filter(|(slot, _)| *slot != lost) {
            if lane.readable().is_none() {
                return self.end_early(io, IoStatus::UNRECOVERED_READ);
            }
            let Some(buffer) = self.shared.host.buffer(len) else {
                return self.end_early(io, IoStatus::NOMEM);
            };
            buffers[slot] = Some(buffer);
        }
        let from = (done * self.shared.block_bytes) as usize;
        io.fan_out(
            |fan| {
                fan.fill(|pieces| for_range(pieces, from, len, |piece, _| piece.fill(0)));
                for (slot, lane) in view.lanes.iter().enumerate() {
                    let (Some(base), Some(buffer)) = (lane.readable(), buffers[slot].take()) else {
                        continue;
                    };
                    let shape = |request: &mut tenon_sdk::FanRequest<'_>| {
                        request.set_offset_blocks(lane.data_offset + at);
                        request.set_num_blocks(run);
                        request.give_buffer(buffer, len);
                    };
                    fan.child(slot as u32, base, shape, Self::add_to_strip);
                }
            },
            Self::strip_was_computed,
        );
    }

    fn strip_was_computed(&self, mut io: Io<Self>) {
        self.unlock_stripe(&mut io);
        if let Some(error) = io.context().error {
            return self.finish(io, error);
        }
        let view = self.view();
        let at = io.offset_blocks() + io.context().done_blocks;
        let run = strip_run(view.layout.strip_blocks, at, io.num_blocks() - io.context().done_blocks);
        let (slot, at) = view.layout.locate(at);
        // It was there, and could not be read.
        self.correct(&view, 1 << slot, at..at + run);
        io.context_mut().done_blocks += run;
        self.read_next_strip(&view, io);
    }

    fn add_to_strip(&self, fan: &mut Fan<'_, Self>, done: ChildDone) {
        if !done.status.is_success() {
            fan.context_mut().error.get_or_insert(done.status);
            return;
        }
        let from = (fan.context().done_blocks * self.shared.block_bytes) as usize;
        let Some(buffer) = &done.buffer else { return };
        let bytes: &[u8] = Buffer::as_slice(buffer);
        fan.fill(|pieces| {
            for_range(pieces, from, bytes.len(), |piece, at| xor_into(piece, &bytes[at..at + piece.len()]))
        });
    }
}

/// Blocks up to the end of the strip, at most `blocks`.
fn strip_run(strip_blocks: u64, offset: u64, blocks: u64) -> u64 {
    (strip_blocks - offset % strip_blocks).min(blocks)
}

/// The parity of `strips` strips of data that begin at byte `from` of the payload; `parity` is one strip.
fn parity_of(io: &Io<RaidChannel>, from: usize, strips: usize, parity: &mut [u8]) {
    let len = parity.len();
    let (mut skip, mut at) = (from, 0);
    let mut pieces = io.buffers();
    if let (Some(all), None) = (pieces.next(), pieces.next())
        && let Some(data) = all.get(from..from + len * strips)
    {
        return parity_of_strips(parity, data);
    }
    for mut piece in io.buffers() {
        let skipped = skip.min(piece.len());
        (skip, piece) = (skip - skipped, &piece[skipped..]);
        while !piece.is_empty() && at < len * strips {
            let place = at % len;
            let (now, later) = piece.split_at(piece.len().min(len - place));
            let target = &mut parity[place..place + now.len()];
            if at < len {
                target.copy_from_slice(now);
            } else {
                xor_into(target, now);
            }
            at += now.len();
            piece = later;
        }
    }
}
