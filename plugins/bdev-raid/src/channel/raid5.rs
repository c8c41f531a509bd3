//! raid5: writes of any size. A whole stripe is written as for raid5f. Anything else
//! goes band by band: what is needed for the new parity is read (the old data and
//! parity, or the rest of the stripe, whichever is less), data and parity go to the
//! journal of two members, and then in place; the stripe is locked meanwhile.

use std::rc::Rc;

use tenon_sdk::{BdevFlags, Buffer, ChildDone, Fan, Io, IoFlags, IoStatus};

use super::{RaidChannel, View};
use crate::layout::Layout;
use crate::ondisk::journal::Entry;
use crate::stripes::{Band, Stripes};
use crate::xor::xor_into;

/// State of a write to raid5, and of a read that computes.
pub struct Progress {
    /// First block of the I/O in the stripe at hand.
    at: u64,
    /// First column of that stripe that is not done.
    column: u64,
    band: Band,
    /// Parity and data of the band, then the footer.
    entry: Option<Buffer>,
    /// The stripe whose lock is held.
    locked: Option<u64>,
    /// Slots that could not be read.
    unreadable: u32,
}

impl Progress {
    /// Nothing is being done.
    pub(super) const NONE: Progress = Progress {
        at: 0,
        column: 0,
        band: Band { stripe: 0, column: 0, blocks: 0, changed: 0 },
        entry: None,
        locked: None,
        unreadable: 0,
    };
}

impl RaidChannel {
    /// WRITE.
    pub(super) fn raid5_write(&self, view: &Rc<View>, mut io: Io<Self>) {
        let at = io.offset_blocks();
        io.context_mut().raid5 = Progress { at, ..Progress::NONE };
        self.next_step(view, io);
    }

    /// Goes on with an I/O that waited for a stripe.
    pub(super) fn resume(&self, io: Io<Self>) {
        let view = self.view();
        if io.op() == tenon_sdk::BdevOp::Read {
            self.read_next_strip(&view, io)
        } else {
            self.next_step(&view, io)
        }
    }

    fn next_step(&self, view: &Rc<View>, mut io: Io<Self>) {
        let Some(stripes) = &self.shared.stripes else { return self.finish(io, IoStatus::NOT_SUPPORTED) };
        let (stripe_blocks, strip) = (view.layout.stripe_blocks(), view.layout.strip_blocks);
        let end = io.offset_blocks() + io.num_blocks();
        let room = (stripes.slots.payload_bytes as u64) / self.shared.block_bytes;
        loop {
            let progress = &io.context().raid5;
            let at = progress.at;
            if at >= end {
                return self.finish(io, IoStatus::SUCCESS);
            }
            let (stripe, from) = (at / stripe_blocks, at % stripe_blocks);
            let to = (end - stripe * stripe_blocks).min(stripe_blocks);
            let Some(band) = Band::next(stripe, from, to, strip, progress.column, room) else {
                let progress = &mut io.context_mut().raid5;
                (progress.at, progress.column) = ((stripe + 1) * stripe_blocks, 0);
                continue;
            };
            let Some(mut io) = self.lock_stripe(io, stripe) else { return };
            let is_whole = progress_is_whole(view, from, to, stripe_blocks) && band.column == 0;
            io.context_mut().raid5.band = band;
            return if is_whole {
                self.whole_stripe(view, stripes, io)
            } else {
                self.band(view, stripes, io)
            };
        }
    }

    /// Takes the lock of a stripe; otherwise the I/O waits and is resumed.
    pub(super) fn lock_stripe(&self, mut io: Io<Self>, stripe: u64) -> Option<Io<Self>> {
        let Some(stripes) = &self.shared.stripes else { return Some(io) };
        let me = self.key.1.map_or(0, |index| u64::from(index) + 1);
        if !stripes.try_lock(stripe, me) {
            self.stalled.push_back(io);
            return None;
        }
        io.context_mut().raid5.locked = Some(stripe);
        Some(io)
    }

    /// Gives the lock back, if the I/O has one, and resumes who waits for it.
    pub(super) fn unlock_stripe(&self, io: &mut Io<Self>) {
        let Some(stripes) = &self.shared.stripes else { return };
        let Some(stripe) = io.context_mut().raid5.locked.take() else { return };
        if stripes.unlock(stripe) {
            self.shared.wake_others(self.key.1);
        }
        if !self.stalled.is_empty() {
            self.wake_stalled();
        }
    }

    /// All members are there and the whole stripe is written: parity is computed of the new data alone. A crash may
    /// leave strips of both; the region is marked, so parity is computed anew then.
    fn whole_stripe(&self, view: &Rc<View>, stripes: &Stripes, mut io: Io<Self>) {
        let stripe = io.context().raid5.band.stripe;
        if stripes.has_entry(stripe) {
            // An entry of this stripe must not be redone over what is written now.
            let void = Band { stripe, ..Band::default() };
            io.context_mut().raid5.band = void;
            let Some(entry) = self.shared.host.buffer(stripes.slots.footer_bytes) else {
                return self.end_early(io, IoStatus::NOMEM);
            };
            io.context_mut().raid5.entry = Some(entry);
            return self.write_entry(view, stripes, io);
        }
        let from = stripe * view.layout.stripe_blocks() - io.offset_blocks();
        self.write_stripe(view, io, stripe, from, |channel, io| channel.stripe_written(io));
    }

    fn stripe_written(&self, mut io: Io<Self>) {
        self.unlock_stripe(&mut io);
        if io.context().error.is_some() {
            return self.written(io);
        }
        let view = self.view();
        let progress = &mut io.context_mut().raid5;
        (progress.at, progress.column) = ((progress.band.stripe + 1) * view.layout.stripe_blocks(), 0);
        self.next_step(&view, io);
    }

    /// Reads what the parity of a band needs.
    fn band(&self, view: &Rc<View>, stripes: &Stripes, mut io: Io<Self>) {
        let band = io.context().raid5.band;
        let layout = &view.layout;
        let has_parity = view.lanes[layout.parity_slot(band.stripe)].base.is_some();
        if !has_parity {
            return self.put_in_place(view, io);
        }
        let unsynced = self.may_differ(view, stripe_range(layout, band.stripe));
        let usable = view.in_sync & !io.context().raid5.unreadable;
        let Some(reads) = reads_of(layout, &band, usable, unsynced) else {
            let error = io.context().error.unwrap_or(IoStatus::NO_DEVICE);
            return self.end_early(io, error);
        };
        let width = (band.blocks * self.shared.block_bytes) as usize;
        let bands = band.changed.count_ones() as usize + 1;
        let Some(mut entry) = self.shared.host.buffer(bands * width + stripes.slots.footer_bytes) else {
            return self.end_early(io, IoStatus::NOMEM);
        };
        let mut buffers = [const { None }; crate::config::MAX_MEMBERS];
        for slot in slots_of(reads) {
            let Some(buffer) = self.shared.host.buffer(width) else {
                return self.end_early(io, IoStatus::NOMEM);
            };
            buffers[slot] = Some(buffer);
        }
        self.take_data(layout, &io, &band, &mut entry.as_mut_slice()[..bands * width]);
        let state = io.context_mut();
        (state.error, state.failed, state.raid5.entry) = (None, 0, Some(entry));
        let at = band.stripe * layout.strip_blocks + band.column;
        io.fan_out(
            |fan| {
                for slot in slots_of(reads) {
                    let lane = &view.lanes[slot];
                    let (Some(base), Some(buffer)) = (lane.readable(), buffers[slot].take()) else {
                        continue;
                    };
                    let shape = |request: &mut tenon_sdk::FanRequest<'_>| {
                        request.set_op(tenon_sdk::BdevOp::Read);
                        request.set_flags(IoFlags(0));
                        request.set_offset_blocks(lane.data_offset + at);
                        request.set_num_blocks(band.blocks);
                        request.give_buffer(buffer, width);
                    };
                    fan.child(slot as u32, base, shape, Self::add_to_parity);
                }
            },
            Self::parity_is_known,
        );
    }

    /// Copies the new data of a band behind its parity, and adds it up to the parity.
    fn take_data(&self, layout: &Layout, io: &Io<Self>, band: &Band, entry: &mut [u8]) {
        let block = self.shared.block_bytes;
        let width = (band.blocks * block) as usize;
        let (parity, data) = entry.split_at_mut(width);
        parity.fill(0);
        for (strip, part) in band.strips().zip(data.chunks_exact_mut(width)) {
            let from = place_in_payload(layout, io.offset_blocks(), band, strip) * block;
            copy_out(io, from as usize, part);
            xor_into(parity, part);
        }
    }

    fn add_to_parity(&self, fan: &mut Fan<'_, Self>, done: ChildDone) {
        let width = (fan.context().raid5.band.blocks * self.shared.block_bytes) as usize;
        let state = fan.context_mut();
        match (&done.buffer, &mut state.raid5.entry) {
            (Some(buffer), Some(entry)) if done.status.is_success() => {
                xor_into(&mut entry.as_mut_slice()[..width], &Buffer::as_slice(buffer)[..width]);
            }
            (_, _) => {
                state.raid5.unreadable |= 1 << done.index;
                state.error.get_or_insert(done.status);
            }
        }
    }

    fn parity_is_known(&self, io: Io<Self>) {
        let view = self.view();
        let Some(stripes) = &self.shared.stripes else { return self.end_early(io, IoStatus::INTERNAL) };
        match io.context().error {
            // What could not be read is not needed the other way.
            Some(_) => self.band(&view, stripes, io),
            None => self.write_entry(&view, stripes, io),
        }
    }

    /// Makes the entry durable on two members, or on the one that is left.
    fn write_entry(&self, view: &Rc<View>, stripes: &Stripes, mut io: Io<Self>) {
        let band = io.context().raid5.band;
        let footer = stripes.slots.footer_bytes;
        let payload = match band.blocks {
            0 => 0,
            blocks => (blocks * self.shared.block_bytes) as usize * (band.changed.count_ones() as usize + 1),
        };
        let slot = stripes.slots.of(band.stripe);
        let Some(mut entry) = io.context_mut().raid5.entry.take() else {
            return self.end_early(io, IoStatus::INTERNAL);
        };
        let said = Entry {
            uuid: stripes.uuid,
            epoch: view.directive.members.journal_epoch,
            sequence: stripes.next_sequence(),
            stripe: band.stripe,
            column: band.column as u32,
            blocks: band.blocks as u32,
            changed: band.changed,
        };
        said.put(&mut entry.as_mut_slice()[..payload + footer], footer);
        let Some(mut copy) = self.shared.host.buffer(payload + footer) else {
            return self.end_early(io, IoStatus::NOMEM);
        };
        copy.as_mut_slice()[..payload + footer]
            .copy_from_slice(&Buffer::as_slice(&entry)[..payload + footer]);
        stripes.note_entry(band.stripe, band.blocks == 0);
        let blocks = (payload + footer) as u64 / self.shared.block_bytes;
        let at = stripes.slots.end(slot) - blocks;
        let mut buffers = [Some(entry), Some(copy)].into_iter().flatten();
        io.fan_out(
            |fan| {
                for member in keepers(view, slot) {
                    let lane = &view.lanes[member];
                    let (Some(base), Some(buffer)) = (lane.readable(), buffers.next()) else { continue };
                    let flags = durable(base);
                    let shape = |request: &mut tenon_sdk::FanRequest<'_>| {
                        request.set_flags(flags);
                        request.set_offset_blocks(at);
                        request.set_num_blocks(blocks);
                        request.give_buffer(buffer, payload + footer);
                    };
                    fan.child(member as u32, base, shape, Self::entry_written);
                }
            },
            Self::entry_is_durable,
        );
    }

    fn entry_written(&self, fan: &mut Fan<'_, Self>, mut done: ChildDone) {
        if let Some(buffer) = done.buffer.take() {
            fan.context_mut().raid5.entry.get_or_insert(buffer);
        }
        self.note(fan, done);
    }

    fn entry_is_durable(&self, mut io: Io<Self>) {
        let view = self.view();
        if io.context().error.is_some() {
            self.unlock_stripe(&mut io);
            return self.written(io);
        }
        match (io.context().raid5.band.blocks, &self.shared.stripes) {
            (0, Some(stripes)) => self.whole_stripe(&view, stripes, io),
            (_, _) => self.put_in_place(&view, io),
        }
    }

    /// Writes the data of a band, and its parity if the entry has one.
    fn put_in_place(&self, view: &Rc<View>, mut io: Io<Self>) {
        let band = io.context().raid5.band;
        let layout = &view.layout;
        let block = self.shared.block_bytes;
        let width = (band.blocks * block) as usize;
        let at = band.stripe * layout.strip_blocks + band.column;
        let parity_slot = layout.parity_slot(band.stripe);
        let entry = io.context_mut().raid5.entry.take();
        let offset = io.offset_blocks();
        let state = io.context_mut();
        (state.error, state.failed) = (None, 0);
        io.fan_out(
            |fan| {
                for strip in band.strips() {
                    let slot = layout.data_slot(band.stripe, strip);
                    let lane = &view.lanes[slot];
                    let Some(base) = &lane.base else { continue };
                    let from = place_in_payload(layout, offset, &band, strip) * block;
                    let flags = durable(base);
                    let shape = |request: &mut tenon_sdk::FanRequest<'_>| {
                        request.set_flags(flags);
                        request.set_offset_blocks(lane.data_offset + at);
                        request.set_num_blocks(band.blocks);
                        // A payload in more pieces than the host was told of fails as invalid.
                        let _ = request.payload_range(from, width as u64);
                    };
                    fan.child(slot as u32, base, shape, Self::note);
                }
                let lane = &view.lanes[parity_slot];
                if let (Some(base), Some(buffer)) = (&lane.base, entry) {
                    let flags = durable(base);
                    let shape = |request: &mut tenon_sdk::FanRequest<'_>| {
                        request.set_flags(flags);
                        request.set_offset_blocks(lane.data_offset + at);
                        request.set_num_blocks(band.blocks);
                        request.give_buffer(buffer, width);
                    };
                    fan.child(parity_slot as u32, base, shape, Self::note);
                }
            },
            Self::is_in_place,
        );
    }

    fn is_in_place(&self, mut io: Io<Self>) {
        self.unlock_stripe(&mut io);
        if io.context().error.is_some() {
            return self.written(io);
        }
        let progress = &mut io.context_mut().raid5;
        progress.column = progress.band.column + progress.band.blocks;
        self.next_step(&self.view(), io);
    }

    /// Ends an I/O that has changed nothing in the stripe it has locked.
    pub(super) fn end_early(&self, mut io: Io<Self>, status: IoStatus) {
        self.unlock_stripe(&mut io);
        self.finish(io, status);
    }
}

/// Whether a write covers a stripe and every member takes it.
fn progress_is_whole(view: &View, from: u64, to: u64, stripe_blocks: u64) -> bool {
    from == 0 && to == stripe_blocks && view.in_sync.count_ones() as usize == view.lanes.len()
}

/// The members that keep the entries of a journal slot: always the same two of those that hold current data.
fn keepers(view: &View, slot: u64) -> impl Iterator<Item = usize> {
    let members = view.lanes.len();
    let first = (slot % members as u64) as usize;
    let in_sync = view.in_sync;
    (first..first + members)
        .map(move |nth| nth % members)
        .filter(move |nth| in_sync & (1 << nth) != 0)
        .take(2)
}

/// The slots to read for the new parity of a band: what changes and the parity, or what does not change. If members
/// may differ, the old parity is good for nothing as long as there is another way.
fn reads_of(layout: &Layout, band: &Band, usable: u32, is_unsynced: bool) -> Option<u32> {
    let parity = 1u32 << layout.parity_slot(band.stripe);
    let changed = band.strips().fold(0u32, |mask, strip| mask | 1 << layout.data_slot(band.stripe, strip));
    let all = u32::MAX >> (u32::BITS - layout.members() as u32);
    let (modify, rest) = (changed | parity, all & !changed & !parity);
    let (can_modify, has_rest) = (modify & !usable == 0, rest & !usable == 0);
    match (can_modify, has_rest) {
        (true, true) if !is_unsynced && modify.count_ones() < rest.count_ones() => Some(modify),
        (_, true) => Some(rest),
        (true, false) => Some(modify),
        (false, false) => None,
    }
}

/// Blocks of the array in a stripe.
fn stripe_range(layout: &Layout, stripe: u64) -> std::ops::Range<u64> {
    stripe * layout.stripe_blocks()..(stripe + 1) * layout.stripe_blocks()
}

fn slots_of(mask: u32) -> impl Iterator<Item = usize> {
    (0..u32::BITS as usize).filter(move |slot| mask & (1 << slot) != 0)
}

/// Block of the payload where a strip's part of a band begins.
fn place_in_payload(layout: &Layout, offset: u64, band: &Band, strip: usize) -> u64 {
    band.stripe * layout.stripe_blocks() + strip as u64 * layout.strip_blocks + band.column - offset
}

/// Copies bytes of a scattered payload.
fn copy_out(io: &Io<RaidChannel>, from: usize, out: &mut [u8]) {
    let mut at = 0;
    for piece in io.buffers() {
        let (start, end) = (at.max(from), (at + piece.len()).min(from + out.len()));
        if start < end {
            out[start - from..end - from].copy_from_slice(&piece[start - at..end - at]);
        }
        at += piece.len();
    }
}

/// A member with a cache must have the write durable before the next step relies on it.
fn durable(base: &tenon_sdk::BaseChannel) -> IoFlags {
    if base.info().flags.contains(BdevFlags::VOLATILE_WRITE_CACHE) { IoFlags::FUA } else { IoFlags(0) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::level::Level;

    #[test]
    fn the_way_that_reads_less_is_taken_if_members_allow_it() {
        let layout = Layout::new(Level::Raid5, 4, &[40; 5]).unwrap();
        // Stripe 0 has its parity on member 4.
        let check = |changed: u32, usable: u32, is_unsynced: bool, expected: Option<u32>| {
            let band = Band { stripe: 0, column: 0, blocks: 1, changed };
            assert_eq!(reads_of(&layout, &band, usable, is_unsynced), expected);
        };
        check(0b0001, 0b11111, false, Some(0b10001));
        check(0b0111, 0b11111, false, Some(0b01000));
        check(0b0001, 0b11111, true, Some(0b01110));
        // Lost and not written to: only from the old parity. Lost and written to: only from the rest.
        check(0b0001, 0b11011, true, Some(0b10001));
        check(0b0001, 0b11110, false, Some(0b01110));
        check(0b0001, 0b11000, false, None);
    }
}
