//! What is to be sent: own header bytes and references to payload, in order.
//!
//! Headers, digests and padding of consecutive PDUs lie side by side, so that a
//! batch of responses is one piece for the socket. Payload stays where it is
//! and is named by slot, offset and length. Everything is allocated once and
//! bounded; when it is full, nothing more is encoded until something is written.
#![forbid(unsafe_code)]

use std::collections::VecDeque;

use zerocopy::{Immutable, IntoBytes};

use crate::codec::{Framing, MAX_HEADER_BYTES, encode_header};
use crate::connection::{Placement, Slot};
use crate::pdu::{DIGEST_LEN, FatalErrorStatus, PduType, TERM_REQ_MAX_DATA, TERM_REQ_MAX_LEN, TermReq};

/// One piece of output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Piece<'a> {
    /// Bytes of the connection: headers, digests, padding. They stay in place until they are written.
    Bytes(&'a [u8]),
    /// Payload of a command.
    Payload(Placement),
}

/// Output of a connection, bounded and allocated once.
#[derive(Debug)]
pub(crate) struct Outbox {
    headers: Box<[u8]>,
    /// Bytes of `headers` taken; starts over when everything is written.
    used: usize,
    segments: VecDeque<Segment>,
    /// Position in the stream at which the output of a slot ends.
    ends: VecDeque<(u64, Slot)>,
    /// Stream position behind the last byte queued.
    queued: u64,
    /// Stream position behind the last byte written.
    written: u64,
}

#[derive(Clone, Copy, Debug)]
enum Segment {
    /// Of `Outbox::headers`.
    Bytes {
        start: u32,
        len: u32,
    },
    Payload(Placement),
}

impl Outbox {
    /// With room for `max_ends` ends that are noted and not polled.
    pub(crate) fn new(max_ends: usize) -> Self {
        Self {
            headers: vec![0; HEADER_BUFFER_BYTES].into(),
            used: 0,
            segments: VecDeque::with_capacity(MAX_SEGMENTS),
            ends: VecDeque::with_capacity(max_ends),
            queued: 0,
            written: 0,
        }
    }

    /// Whether `pdus` more PDUs fit, each with padding, payload and digest.
    pub(crate) fn has_room(&self, pdus: usize) -> bool {
        let bytes = self.used + pdus * (MAX_HEADER_BYTES + DIGEST_LEN) + TERM_REQ_MAX_LEN;
        bytes <= self.headers.len() && self.segments.len() + pdus * SEGMENTS_PER_PDU < MAX_SEGMENTS
    }

    /// Appends a header with its digest and padding. The caller has asked [`Self::has_room`].
    pub(crate) fn push_header<H: IntoBytes + Immutable>(&mut self, header: &H, framing: &Framing) {
        let len = encode_header(header, framing, &mut self.headers[self.used..]);
        self.take(len);
    }

    /// Appends a data digest.
    pub(crate) fn push_digest(&mut self, digest: u32) {
        self.headers[self.used..self.used + DIGEST_LEN].copy_from_slice(&digest.to_le_bytes());
        self.take(DIGEST_LEN);
    }

    /// Appends payload by reference.
    pub(crate) fn push_payload(&mut self, payload: Placement) {
        debug_assert!(self.segments.len() < MAX_SEGMENTS, "no room was asked for");
        self.segments.push_back(Segment::Payload(payload));
        self.queued += u64::from(payload.len);
    }

    /// Appends a Terminate Connection Request that quotes `header`; there is always room for one.
    pub(crate) fn push_termination(
        &mut self,
        pdu_type: PduType,
        fes: FatalErrorStatus,
        fei: u32,
        header: &[u8],
    ) {
        let quoted = &header[..header.len().min(TERM_REQ_MAX_DATA)];
        self.push_header(&TermReq::new(pdu_type, fes, fei, quoted.len()), &Framing::PLAIN);
        self.headers[self.used..self.used + quoted.len()].copy_from_slice(quoted);
        self.take(quoted.len());
    }

    /// Notes that everything of `slot` is queued; [`Self::pop_end`] tells when it is written.
    pub(crate) fn end(&mut self, slot: Slot) {
        debug_assert!(self.ends.len() < self.ends.capacity(), "more ends than there is room for");
        self.ends.push_back((self.queued, slot));
    }

    /// The next slot whose output is written.
    pub(crate) fn pop_end(&mut self) -> Option<Slot> {
        let (position, slot) = *self.ends.front()?;
        if position > self.written {
            return None;
        }
        self.ends.pop_front();
        Some(slot)
    }

    /// Takes `count` bytes off the front.
    ///
    /// # Panics
    ///
    /// If less is queued: the caller wrote bytes that are not there.
    pub(crate) fn advance(&mut self, count: usize) {
        assert!(count as u64 <= self.len(), "{count} bytes written, {} queued", self.len());
        self.written += count as u64;
        let mut left = count;
        while left > 0 {
            let Some(segment) = self.segments.front_mut() else { break };
            let step = left.min(segment.len());
            left -= step;
            segment.skip(step as u32);
            if segment.len() == 0 {
                self.segments.pop_front();
            }
        }
        if self.segments.is_empty() {
            self.used = 0;
        }
    }

    /// Bytes queued and not written.
    pub(crate) fn len(&self) -> u64 {
        self.queued - self.written
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What is queued, in order.
    pub(crate) fn pieces(&self) -> impl Iterator<Item = Piece<'_>> {
        self.segments.iter().map(|segment| match *segment {
            Segment::Bytes { start, len } => Piece::Bytes(&self.headers[start as usize..][..len as usize]),
            Segment::Payload(payload) => Piece::Payload(payload),
        })
    }

    /// Forgets everything queued; the slots whose end was noted are no longer told.
    pub(crate) fn clear(&mut self) {
        self.segments.clear();
        self.ends.clear();
        self.used = 0;
        self.written = self.queued;
    }

    /// Makes `len` bytes of the header buffer part of the output.
    fn take(&mut self, len: usize) {
        let at = self.used as u32;
        self.used += len;
        self.queued += len as u64;
        match self.segments.back_mut() {
            Some(Segment::Bytes { start, len: last }) if *start + *last == at => *last += len as u32,
            Some(_) | None => self.segments.push_back(Segment::Bytes { start: at, len: len as u32 }),
        }
    }
}

impl Segment {
    fn len(self) -> usize {
        match self {
            Self::Bytes { len, .. } => len as usize,
            Self::Payload(payload) => payload.len as usize,
        }
    }

    fn skip(&mut self, count: u32) {
        match self {
            Self::Bytes { start, len } => {
                *start += count;
                *len -= count;
            }
            Self::Payload(payload) => {
                payload.offset += count;
                payload.len -= count;
            }
        }
    }
}

/// Header, payload, digest.
const SEGMENTS_PER_PDU: usize = 3;

/// Most pieces of one batch; as many as one vectored write takes.
pub const MAX_SEGMENTS: usize = 1024;

/// Headers of a batch: 256 reads with both digests and without padding.
const HEADER_BUFFER_BYTES: usize = 16 << 10;

const _: () = assert!(HEADER_BUFFER_BYTES > 2 * (MAX_HEADER_BYTES + DIGEST_LEN) + TERM_REQ_MAX_LEN);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pdu::{PduFlags, R2t};

    fn r2t() -> R2t {
        R2t::new(Framing::PLAIN.header(PduType::R2T, PduFlags::NONE, 0), 1, 2, 3, 4)
    }

    #[test]
    fn headers_side_by_side_are_one_piece() {
        let mut outbox = Outbox::new(4);
        for _ in 0..32 {
            outbox.push_header(&r2t(), &Framing::PLAIN);
        }
        assert_eq!(outbox.pieces().count(), 1);
        outbox.push_payload(Placement { slot: Slot::new(1), offset: 0, len: 100 });
        outbox.push_digest(7);
        outbox.push_header(&r2t(), &Framing::PLAIN);
        assert_eq!(outbox.pieces().count(), 3);
        assert_eq!(outbox.len(), 33 * 24 + 100 + 4);
    }

    #[test]
    fn a_slot_ends_when_its_last_byte_is_written() {
        let mut outbox = Outbox::new(4);
        outbox.push_header(&r2t(), &Framing::PLAIN);
        outbox.push_payload(Placement { slot: Slot::new(3), offset: 8, len: 10 });
        outbox.end(Slot::new(3));
        outbox.push_header(&r2t(), &Framing::PLAIN);
        outbox.advance(33);
        assert_eq!(outbox.pop_end(), None);
        let rest = Placement { slot: Slot::new(3), offset: 17, len: 1 };
        assert_eq!(outbox.pieces().next(), Some(Piece::Payload(rest)));
        outbox.advance(2);
        assert_eq!((outbox.pop_end(), outbox.pop_end()), (Some(Slot::new(3)), None));
        outbox.advance(23);
        assert!(outbox.is_empty());
        assert_eq!(outbox.used, 0);
    }

    #[test]
    fn a_full_outbox_still_takes_a_termination() {
        let mut outbox = Outbox::new(4);
        while outbox.has_room(1) {
            outbox.push_header(&r2t(), &Framing::PLAIN);
            outbox.push_payload(Placement { slot: Slot::new(0), offset: 0, len: 1 });
        }
        let capacity = outbox.segments.capacity();
        outbox.push_termination(PduType::C2H_TERM_REQ, FatalErrorStatus::LIMIT_EXCEEDED, 0, &[0; 200]);
        assert_eq!(outbox.segments.capacity(), capacity);
        let Some(Piece::Bytes(last)) = outbox.pieces().last() else { panic!("not bytes") };
        assert_eq!(last[last.len() - 152], PduType::C2H_TERM_REQ.0);
    }
}
