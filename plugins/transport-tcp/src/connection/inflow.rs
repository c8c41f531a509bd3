//! The data of one incoming PDU on its way to a command's memory.
//!
//! Data goes by as it comes, in any pieces, either through
//! [`Inflow::step`] from the receive buffer or, told afterwards by
//! [`Inflow::placed`], straight from the socket into the command's memory.
//! Where a digest is due, pieces are small, so that the copy that follows
//! finds them in the cache: memory is read once.
#![forbid(unsafe_code)]

use tenon_sdk::crc32c;

use crate::codec::{Frame, read_digest};
use crate::connection::{Placement, Slot};
use crate::pdu::DIGEST_LEN;

/// Progress through the data of one PDU.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Inflow {
    phase: Phase,
    slot: Slot,
    offset: u32,
    left: u32,
    /// Data of the whole PDU.
    len: u32,
    has_digest: bool,
    is_discarded: bool,
    digest: u32,
}

/// ```text
/// Idle ──start──► Padding ──► Data ──► Digest ──► Idle
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Phase {
    #[default]
    Idle,
    Padding {
        left: u8,
    },
    Data,
    Digest,
}

/// What [`Inflow::step`] came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Progress<'b> {
    /// More bytes are needed.
    Wait,
    /// Bytes went by; call again.
    Skipped(usize),
    /// These bytes belong to the command's memory at `offset`.
    Data { slot: Slot, offset: u32, bytes: &'b [u8] },
    /// The PDU, with `len` bytes of data, ended with the `taken` bytes.
    Finished { taken: usize, slot: Slot, len: u32, is_intact: bool },
}

impl Inflow {
    pub(crate) fn is_idle(&self) -> bool {
        self.phase == Phase::Idle
    }

    /// Starts behind the header of a PDU. Discarded data is taken, but not given to anybody.
    pub(crate) fn start(&mut self, frame: &Frame, placement: Placement, is_discarded: bool) {
        let padding = u8::try_from(frame.data_offset - frame.head_len).unwrap_or(u8::MAX);
        *self = Self {
            phase: Phase::Padding { left: padding },
            slot: placement.slot,
            offset: placement.offset,
            left: placement.len,
            len: placement.len,
            has_digest: frame.has_data_digest,
            is_discarded,
            digest: 0,
        };
    }

    /// Where the next bytes of the stream belong, if they are data that somebody wants.
    pub(crate) fn placement(&self) -> Option<Placement> {
        let is_wanted = self.phase == Phase::Data && self.left > 0 && !self.is_discarded;
        is_wanted.then_some(Placement { slot: self.slot, offset: self.offset, len: self.left })
    }

    /// Tells that `bytes` went to where [`Self::placement`] said.
    ///
    /// # Panics
    ///
    /// If that is more than it said.
    pub(crate) fn placed(&mut self, bytes: &[u8]) {
        assert!(
            self.phase == Phase::Data && bytes.len() <= self.left as usize,
            "{} bytes placed, {} wanted",
            bytes.len(),
            self.left
        );
        self.count(bytes);
    }

    /// Stops giving the data of the PDU to `slot`'s memory.
    pub(crate) fn discard(&mut self, slot: Slot) {
        self.is_discarded |= !self.is_idle() && self.slot == slot;
    }

    /// Looks at the next bytes of the stream.
    #[inline]
    pub(crate) fn step<'b>(&mut self, bytes: &'b [u8]) -> Progress<'b> {
        match self.phase {
            Phase::Idle => Progress::Wait,
            Phase::Padding { left: 0 } => {
                self.phase = Phase::Data;
                Progress::Skipped(0)
            }
            Phase::Padding { .. } if bytes.is_empty() => Progress::Wait,
            Phase::Padding { left } => {
                let taken = usize::from(left).min(bytes.len());
                self.phase = Phase::Padding { left: left - taken as u8 };
                Progress::Skipped(taken)
            }
            Phase::Data if self.left == 0 => {
                self.phase = Phase::Digest;
                Progress::Skipped(0)
            }
            Phase::Data if bytes.is_empty() => Progress::Wait,
            Phase::Data => self.data(bytes),
            Phase::Digest if !self.has_digest => self.finish(0, true),
            Phase::Digest => match read_digest(bytes) {
                Some(digest) => self.finish(DIGEST_LEN, digest == self.digest),
                None => Progress::Wait,
            },
        }
    }

    fn data<'b>(&mut self, bytes: &'b [u8]) -> Progress<'b> {
        let most = if self.has_digest { DIGEST_BLOCK_BYTES } else { usize::MAX };
        let bytes = &bytes[..bytes.len().min(self.left as usize).min(most)];
        let offset = self.offset;
        self.count(bytes);
        if self.is_discarded {
            return Progress::Skipped(bytes.len());
        }
        Progress::Data { slot: self.slot, offset, bytes }
    }

    fn count(&mut self, bytes: &[u8]) {
        if self.has_digest {
            self.digest = crc32c(self.digest, bytes);
        }
        self.offset += bytes.len() as u32;
        self.left -= bytes.len() as u32;
    }

    fn finish<'b>(&mut self, taken: usize, is_intact: bool) -> Progress<'b> {
        self.phase = Phase::Idle;
        Progress::Finished { taken, slot: self.slot, len: self.len, is_intact }
    }
}

/// Data that is digested and given out at a time.
const DIGEST_BLOCK_BYTES: usize = 16 << 10;
