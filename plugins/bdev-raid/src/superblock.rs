//! The superblock that every member of an array carries at its block 0: parsing,
//! checking and building it, byte for byte as its other readers expect it.
//!
//! Little-endian; a header of 256 bytes, then 64 bytes per member:
//!
//! ```text
//!   0 signature[8]   24 uuid[16]       112 block_size u32   136 num_base_bdevs u8
//!   8 major u16      40 name[64]       116 level u32        137 reserved[118]
//!  10 minor u16     104 raid_size u64  120 strip_size u32   255 base_bdevs_size u8
//!  12 length u32                       124 state u32        256 base_bdevs[]:
//!  16 crc u32                          128 seq_number u64     0 uuid[16]  16 data_offset u64
//!  20 flags u32                                              24 data_size u64  32 state u32
//!                                                            36 flags u32  40 slot u8  41 reserved[23]
//! ```
//!
//! Does no I/O (`disk.rs`) and decides nothing between copies (`assembly.rs`).

use thiserror::Error;

/// The content of a superblock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Superblock {
    /// What a reader must know to write to the array.
    pub features: Features,
    /// Identity of the array.
    pub uuid: [u8; 16],
    /// Name of the array, at most [`MAX_NAME`] bytes.
    pub name: String,
    /// Blocks of the array.
    pub raid_size: u64,
    /// Bytes of a block without metadata.
    pub block_size: u32,
    /// Number of the level, see [`crate::level::Level`].
    pub level: u32,
    /// Blocks of a strip; 0 for a mirror.
    pub strip_size: u32,
    /// Grows with every write of it.
    pub seq_number: u64,
    /// Slots of the array.
    pub num_base_bdevs: u8,
    /// What is known of each member.
    pub members: Vec<Entry>,
}

/// One member in a superblock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Identity of the member's block device.
    pub uuid: [u8; 16],
    /// First block that holds data.
    pub data_offset: u64,
    /// Blocks that hold data.
    pub data_size: u64,
    /// Whether it takes part.
    pub state: EntryState,
    /// Its slot in the array.
    pub slot: u8,
}

/// What an array has that readers of version 1.0 would damage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Features(u32);

impl Features {
    /// Nothing: the superblock is one of version 1.0.
    pub const NONE: Features = Features(0);
    /// A write-intent bitmap.
    pub const BITMAP: Features = Features(1);
    /// A journal.
    pub const JOURNAL: Features = Features(2);
    const KNOWN: Features = Features(3);

    /// True if all of these are in it.
    #[must_use]
    pub const fn contains(self, other: Features) -> bool {
        self.0 & other.0 == other.0
    }

    /// All of both.
    #[must_use]
    pub const fn union(self, other: Features) -> Features {
        Features(self.0 | other.0)
    }

    /// The major version of a superblock with them. Other readers of the format check the version and not the flags,
    /// so the version is what keeps them from writing behind the back of a bitmap or a journal.
    const fn major(self) -> u16 {
        if self.0 == 0 { MAJOR } else { MAJOR_WITH_FEATURES }
    }
}

/// Whether a member takes part in the array; numbers of other versions stay representable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryState(pub u32);

impl EntryState {
    /// Removed or never there.
    pub const MISSING: EntryState = EntryState(0);
    /// Holds current data.
    pub const CONFIGURED: EntryState = EntryState(1);
    /// Taken out because it failed.
    pub const FAILED: EntryState = EntryState(2);
}

/// Why bytes are not a superblock that may be used.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum SuperblockError {
    /// Something else is on the device.
    #[error("no raid superblock")]
    NotOurs,
    /// Written by something newer.
    #[error("superblock version {major}.{minor} is not supported, only 1.0 and 2.0 are")]
    Version {
        /// Of the format.
        major: u16,
        /// Of the format.
        minor: u16,
    },
    /// Its length does not fit its content or the device.
    #[error("superblock length {length} does not fit {entries} members")]
    Length {
        /// As stated.
        length: u32,
        /// As stated.
        entries: u8,
    },
    /// Torn or damaged.
    #[error("superblock checksum is {found:#010x} instead of {stated:#010x}")]
    Checksum {
        /// As stated.
        stated: u32,
        /// As computed.
        found: u32,
    },
    /// It asks for a feature this version does not have.
    #[error("superblock needs features {flags:#x} that this version does not have")]
    Features {
        /// As stated.
        flags: u32,
    },
    /// A field has a value that makes no sense.
    #[error("superblock field {field} has the impossible value {value}")]
    Field {
        /// Its name.
        field: &'static str,
        /// Its value.
        value: u64,
    },
}

impl Superblock {
    /// Reads a superblock from the first bytes of a device.
    ///
    /// # Errors
    /// See [`SuperblockError`].
    pub fn parse(bytes: &[u8]) -> Result<Superblock, SuperblockError> {
        let header: &[u8; HEADER] = bytes.first_chunk().ok_or(SuperblockError::NotOurs)?;
        if header[..8] != SIGNATURE {
            return Err(SuperblockError::NotOurs);
        }
        let (major, minor) = (u16_at(header, 8), u16_at(header, 10));
        if major != MAJOR && major != MAJOR_WITH_FEATURES {
            return Err(SuperblockError::Version { major, minor });
        }
        let (length, entries) = (u32_at(header, 12), header[255]);
        let bad_length = SuperblockError::Length { length, entries };
        let needed = HEADER + ENTRY * usize::from(entries);
        if (length as usize) < needed || length as usize > MAX_LENGTH {
            return Err(bad_length);
        }
        let covered = bytes.get(..length as usize).ok_or(bad_length)?;
        let (stated, found) = (u32_at(header, 16), checksum(covered));
        if stated != found {
            return Err(SuperblockError::Checksum { stated, found });
        }
        if minor > MINOR {
            log::warn!("superblock of a newer minor version minor={minor}");
        }
        let flags = u32_at(header, 20);
        let features = Features(flags);
        if !Features::KNOWN.contains(features) || features.major() != major {
            return Err(SuperblockError::Features { flags });
        }
        let members =
            covered[HEADER..needed].chunks_exact(ENTRY).map(Entry::parse).collect::<Result<Vec<_>, _>>()?;
        let superblock = Superblock {
            features,
            uuid: bytes_at(header, 24),
            name: name_of(&header[40..40 + NAME])?,
            raid_size: u64_at(header, 104),
            block_size: u32_at(header, 112),
            level: u32_at(header, 116),
            strip_size: u32_at(header, 120),
            seq_number: u64_at(header, 128),
            num_base_bdevs: header[136],
            members,
        };
        superblock.check()?;
        Ok(superblock)
    }

    /// The bytes to write; what follows them up to the end of the block is zero.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![0; HEADER + ENTRY * self.members.len()];
        let length = bytes.len() as u32;
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        put(0, &SIGNATURE);
        put(8, &self.features.major().to_le_bytes());
        put(10, &MINOR.to_le_bytes());
        put(12, &length.to_le_bytes());
        put(20, &self.features.0.to_le_bytes());
        put(24, &self.uuid);
        put(40, &self.name.as_bytes()[..self.name.len().min(MAX_NAME)]);
        put(104, &self.raid_size.to_le_bytes());
        put(112, &self.block_size.to_le_bytes());
        put(116, &self.level.to_le_bytes());
        put(120, &self.strip_size.to_le_bytes());
        put(128, &self.seq_number.to_le_bytes());
        put(136, &[self.num_base_bdevs]);
        put(255, &[self.members.len() as u8]);
        for (nth, entry) in self.members.iter().enumerate() {
            let at = HEADER + ENTRY * nth;
            put(at, &entry.uuid);
            put(at + 16, &entry.data_offset.to_le_bytes());
            put(at + 24, &entry.data_size.to_le_bytes());
            put(at + 32, &entry.state.0.to_le_bytes());
            put(at + 40, &[entry.slot]);
        }
        let crc = checksum(&bytes);
        bytes[CRC..CRC + 4].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// The entry of the device with that identity.
    #[must_use]
    pub fn member(&self, uuid: &[u8; 16]) -> Option<&Entry> {
        self.members.iter().find(|entry| entry.uuid == *uuid)
    }

    /// The entry of a slot.
    #[must_use]
    pub fn slot(&self, slot: usize) -> Option<&Entry> {
        self.members.iter().find(|entry| usize::from(entry.slot) == slot)
    }

    fn check(&self) -> Result<(), SuperblockError> {
        let field = |field, value: u64| Err(SuperblockError::Field { field, value });
        if !(512..=65536).contains(&self.block_size) || !self.block_size.is_power_of_two() {
            return field("block_size", self.block_size.into());
        }
        if self.num_base_bdevs == 0 || usize::from(self.num_base_bdevs) > self.members.len() {
            return field("num_base_bdevs", self.num_base_bdevs.into());
        }
        for (nth, entry) in self.members.iter().enumerate() {
            let is_taken = self.members[..nth].iter().any(|other| other.slot == entry.slot);
            if usize::from(entry.slot) >= self.members.len() || is_taken {
                return field("slot", entry.slot.into());
            }
            if entry.data_offset.checked_add(entry.data_size).is_none() {
                return field("data_size", entry.data_size);
            }
        }
        Ok(())
    }
}

impl Entry {
    fn parse(bytes: &[u8]) -> Result<Entry, SuperblockError> {
        let flags = u32_at(bytes, 36);
        if flags != 0 {
            return Err(SuperblockError::Features { flags });
        }
        Ok(Entry {
            uuid: bytes_at(bytes, 0),
            data_offset: u64_at(bytes, 16),
            data_size: u64_at(bytes, 24),
            state: EntryState(u32_at(bytes, 32)),
            slot: bytes[40],
        })
    }

    /// True if the member holds current data.
    #[must_use]
    pub fn is_configured(&self) -> bool {
        self.state == EntryState::CONFIGURED
    }
}

/// CRC-32C as a bare register: it starts at 0 and is not inverted at the end. Its own field counts as zero.
fn checksum(bytes: &[u8]) -> u32 {
    let mut register = raw_crc32c(0, &bytes[..CRC]);
    register = raw_crc32c(register, &[0; 4]);
    raw_crc32c(register, &bytes[CRC + 4..])
}

/// The usual CRC-32C inverts its register at both ends; this takes the inversions back.
fn raw_crc32c(register: u32, bytes: &[u8]) -> u32 {
    !tenon_sdk::crc32c(!register, bytes)
}

fn name_of(field: &[u8]) -> Result<String, SuperblockError> {
    let end = field.iter().position(|byte| *byte == 0).unwrap_or(field.len());
    match std::str::from_utf8(&field[..end]) {
        Ok(name) if !name.is_empty() && !name.contains(['/', '\n', '\r']) => Ok(name.to_owned()),
        Ok(_) | Err(_) => Err(SuperblockError::Field { field: "name", value: field[0].into() }),
    }
}

fn bytes_at<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&bytes[at..at + N]);
    out
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(bytes_at(bytes, at))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes_at(bytes, at))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes_at(bytes, at))
}

const SIGNATURE: [u8; 8] = *b"SPDKRAID";
const MAJOR: u16 = 1;
const MAJOR_WITH_FEATURES: u16 = 2;
const MINOR: u16 = 0;
const HEADER: usize = 256;
const ENTRY: usize = 64;
const NAME: usize = 64;
const CRC: usize = 16;
/// Bytes a name may have: its field ends with a zero.
pub const MAX_NAME: usize = NAME - 1;
/// Bytes of the largest superblock.
pub const MAX_LENGTH: usize = HEADER + ENTRY * 255;

#[cfg(test)]
mod tests;
