//! A small block of metadata on a base device that survives torn writes: two
//! slots at block 0, written in turn, each with a generation and a CRC-32C.
//!
//! Slot, little-endian: `magic[8] | generation u64 | payload_len u32 | crc u32 |
//! reserved[40] | payload`; the CRC covers header (its own field 0) and payload.
//! Does not interpret the payload, and does not decide between devices.

use crate::base::{BaseChannel, Descriptor};
use crate::{DmaBuf, Error, Host, crc32c};

/// Where and how superblocks of one kind are kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SuperblockFormat {
    /// Tells this kind from all others.
    pub magic: [u8; 8],
    /// Room for one of the two slots in bytes, the header included; the device rounds it up to its blocks.
    pub slot_bytes: u32,
}

/// The content of a superblock.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Superblock {
    /// Grows with each write; the slot with the larger one counts.
    pub generation: u64,
    /// The module's bytes.
    pub payload: Vec<u8>,
}

type ReadDone = Box<dyn FnOnce(Result<Option<Superblock>, Error>)>;

impl SuperblockFormat {
    /// Reads the newest valid superblock; `None` if neither slot holds one of this kind. On a reactor, usually from
    /// the control thread; `done` runs on the same.
    pub fn read(self, base: &Descriptor, done: impl FnOnce(Result<Option<Superblock>, Error>) + 'static) {
        let channel = match base.channel() {
            Ok(channel) => channel,
            Err(error) => return done(Err(error)),
        };
        let name = base.name().to_owned();
        let done: ReadDone = Box::new(done);
        self.read_slot(&channel.clone(), 0, move |first| match first {
            Err(error) => done(Err(error.object(name))),
            Ok(first) => self.read_slot(&channel, 1, move |second| {
                done(second.map(|second| newest(first, second)).map_err(|error| error.object(name)));
            }),
        });
    }

    /// Writes `superblock` to the slot of its generation and flushes: it counts from then on, and the one before
    /// stays valid until then. Give each write the generation after the one that was read or written last.
    /// On a reactor; `done` runs on the same.
    pub fn write(
        self,
        base: &Descriptor,
        superblock: &Superblock,
        done: impl FnOnce(Result<(), Error>) + 'static,
    ) {
        let prepared = base.channel().and_then(|channel| {
            let mut slot = self.slot(&channel)?;
            self.encode(superblock, slot.as_mut_slice())?;
            Ok((channel, slot))
        });
        let (channel, slot) = match prepared {
            Ok(prepared) => prepared,
            Err(error) => return done(Err(error.object(base.name()))),
        };
        let name = base.name().to_owned();
        let offset = self.slot_blocks(&channel) * (superblock.generation & 1);
        channel.clone().write(offset, slot, move |_, status| {
            if !status.is_success() {
                return done(Err(failed("write", status.0).object(name)));
            }
            channel.clone().flush(move |status| {
                drop(channel);
                // A device without a volatile cache need not know FLUSH.
                if status.is_success() || status == crate::IoStatus::NOT_SUPPORTED {
                    done(Ok(()));
                } else {
                    done(Err(failed("flush", status.0).object(name)));
                }
            });
        });
    }

    /// Blocks at the start of `base` that the two slots occupy.
    #[must_use]
    pub fn reserved_blocks(self, base: &Descriptor) -> u64 {
        let block = u64::from(base.opened_info().limits.block_size);
        2 * u64::from(self.slot_bytes).div_ceil(block)
    }

    fn read_slot(
        self,
        channel: &BaseChannel,
        index: u64,
        done: impl FnOnce(Result<Option<Superblock>, Error>) + 'static,
    ) {
        let slot = match self.slot(channel) {
            Ok(slot) => slot,
            Err(error) => return done(Err(error)),
        };
        channel.read(self.slot_blocks(channel) * index, slot, move |slot, status| {
            if status.is_success() {
                done(Ok(self.decode(slot.as_slice())));
            } else {
                done(Err(failed("read", status.0)));
            }
        });
    }

    fn slot(self, channel: &BaseChannel) -> Result<DmaBuf, Error> {
        let host: Host = channel.host();
        let len = self.slot_blocks(channel) as usize * channel.payload_block_size();
        host.alloc(len, 4096, channel.info().numa_node)
    }

    fn slot_blocks(self, channel: &BaseChannel) -> u64 {
        u64::from(self.slot_bytes).div_ceil(channel.info().limits.block_size.into())
    }

    fn encode(self, superblock: &Superblock, slot: &mut [u8]) -> Result<(), Error> {
        let end = HEADER + superblock.payload.len();
        if end > self.slot_bytes as usize || end > slot.len() {
            return Err(Error::new(
                crate::errno::ENOSPC,
                format!("a superblock of {end} bytes does not fit into {}", self.slot_bytes),
            ));
        }
        slot.fill(0);
        slot[..8].copy_from_slice(&self.magic);
        slot[8..16].copy_from_slice(&superblock.generation.to_le_bytes());
        slot[16..20].copy_from_slice(&(superblock.payload.len() as u32).to_le_bytes());
        slot[HEADER..end].copy_from_slice(&superblock.payload);
        let crc = crc32c(0, &slot[..end]);
        slot[CRC..CRC + 4].copy_from_slice(&crc.to_le_bytes());
        Ok(())
    }

    fn decode(self, slot: &[u8]) -> Option<Superblock> {
        let header: &[u8; HEADER] = slot.first_chunk()?;
        let (magic, generation) = (&header[..8], header[8..16].try_into().ok()?);
        let len = u32::from_le_bytes(header[16..20].try_into().ok()?) as usize;
        let crc = u32::from_le_bytes(header[CRC..CRC + 4].try_into().ok()?);
        let payload = slot.get(HEADER..HEADER.checked_add(len)?)?;
        let mut covered = *header;
        covered[CRC..CRC + 4].fill(0);
        let actual = crc32c(crc32c(0, &covered), payload);
        (magic == self.magic && actual == crc)
            .then(|| Superblock { generation: u64::from_le_bytes(generation), payload: payload.to_vec() })
    }
}

fn newest(first: Option<Superblock>, second: Option<Superblock>) -> Option<Superblock> {
    match (first, second) {
        (Some(first), Some(second)) if second.generation > first.generation => Some(second),
        (Some(first), _) => Some(first),
        (None, second) => second,
    }
}

fn failed(what: &str, status: i32) -> Error {
    Error::io(format!("cannot {what} the superblock")).caused_by(format!("i/o status {status:#x}"))
}

/// Bytes before the payload.
const HEADER: usize = 64;
/// Place of the checksum.
const CRC: usize = 20;

#[cfg(test)]
mod tests {
    use super::*;

    const FORMAT: SuperblockFormat = SuperblockFormat { magic: *b"TESTSB01", slot_bytes: 1024 };

    fn slot(generation: u64, payload: &[u8]) -> Vec<u8> {
        let mut slot = vec![0xa5; 1024];
        FORMAT.encode(&Superblock { generation, payload: payload.to_vec() }, &mut slot).unwrap();
        slot
    }

    #[test]
    fn what_was_written_is_read() {
        let read = FORMAT.decode(&slot(7, b"hello")).unwrap();
        assert_eq!(read, Superblock { generation: 7, payload: b"hello".to_vec() });
    }

    #[test]
    fn any_changed_bit_makes_it_invalid() {
        let good = slot(7, b"hello");
        for bit in 0..(HEADER + 5) * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(FORMAT.decode(&bad), None, "bit {bit}");
        }
    }

    #[test]
    fn lengths_outside_the_slot_are_refused() {
        let mut bad = slot(7, b"hello");
        for len in [961_u32, 1024, u32::MAX] {
            bad[16..20].copy_from_slice(&len.to_le_bytes());
            assert_eq!(FORMAT.decode(&bad), None);
        }
        assert!(FORMAT.encode(&Superblock { generation: 1, payload: vec![0; 961] }, &mut [0; 1024]).is_err());
        assert_eq!(FORMAT.decode(&[]), None);
    }

    #[test]
    fn the_larger_generation_counts() {
        let make = |generation| Some(Superblock { generation, payload: Vec::new() });
        assert_eq!(newest(make(1), make(2)), make(2));
        assert_eq!(newest(make(2), make(1)), make(2));
        assert_eq!(newest(make(2), None), make(2));
        assert_eq!(newest(None, make(1)), make(1));
        assert_eq!(newest(None, None), None);
    }
}
