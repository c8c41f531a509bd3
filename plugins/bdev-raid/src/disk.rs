//! Superblocks and records on devices: reading, writing durably and wiping, alone
//! or on many members at once. On the control thread; knows nothing of arrays.

use std::cell::RefCell;
use std::rc::Rc;

use tenon_sdk::{BaseChannel, BdevOp, Descriptor, DmaBuf, Error, IoStatus};

use crate::ondisk::{self, record::Record};
use crate::superblock::{MAX_LENGTH, Superblock, SuperblockError};

/// What was found on a device.
pub type Found = Result<Copy, SuperblockError>;

/// What a member says of its array.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Copy {
    /// Its superblock.
    pub superblock: Superblock,
    /// The record that goes with it.
    pub record: Option<Record>,
    /// Whether the superblock is that of the record because its own place is damaged.
    pub is_damaged: bool,
}

/// What is written to all members when they are agreed on anew.
#[derive(Clone)]
pub struct Draft {
    /// Where the record belongs, and its bytes; `None` if members have no room for one.
    pub record: Option<(u64, Vec<u8>)>,
    /// The superblock.
    pub superblock: Vec<u8>,
}

/// Reads the superblock of a device and the record that goes with it; the outer error is of the device.
pub fn read(base: &Descriptor, done: impl FnOnce(Result<Found, Error>) + 'static) {
    let kept = base.clone();
    read_at(base, 0, MAX_LENGTH, move |bytes| {
        let found = match bytes {
            Ok(bytes) => Superblock::parse(&bytes),
            Err(error) => return done(Err(error)),
        };
        let is_damaged = match &found {
            Ok(superblock) if has_gap(superblock) => false,
            Ok(superblock) => {
                return done(Ok(Ok(Copy {
                    superblock: superblock.clone(),
                    record: None,
                    is_damaged: false,
                })));
            }
            Err(
                SuperblockError::Checksum { .. }
                | SuperblockError::Length { .. }
                | SuperblockError::Field { .. },
            ) => true,
            Err(error) => return done(Ok(Err(error.clone()))),
        };
        read_records(&kept, move |slots| {
            done(Ok(match found {
                Ok(superblock) => {
                    let record = Record::choose(slots, &superblock);
                    Ok(Copy { superblock, record, is_damaged })
                }
                Err(error) => Record::newest(slots).map_or(Err(error), |record| {
                    Ok(Copy { superblock: record.superblock.clone(), record: Some(record), is_damaged })
                }),
            }));
        });
    });
}

/// Whether the gap before the data area has room for a record and a bitmap on every member.
pub fn has_gap(superblock: &Superblock) -> bool {
    let begins =
        |entry: &crate::superblock::Entry| entry.data_offset.saturating_mul(superblock.block_size.into());
    superblock.members.iter().all(|entry| begins(entry) >= ondisk::JOURNAL)
}

/// Both slots of the record; one that cannot be read is like an empty one.
fn read_records(base: &Descriptor, done: impl FnOnce([Option<Record>; 2]) + 'static) {
    let (from, len) = (ondisk::RECORD, 2 * ondisk::RECORD_STRIDE);
    read_at(base, from, len as usize, move |bytes| {
        let bytes = bytes.unwrap_or_default();
        let slot = |nth: usize| bytes.get(nth * ondisk::RECORD_STRIDE as usize..).and_then(Record::parse);
        done([slot(0), slot(1)]);
    });
}

/// Reads bytes of a device from a block boundary on, as many as there are.
pub fn read_at(
    base: &Descriptor,
    from_bytes: u64,
    len: usize,
    done: impl FnOnce(Result<Vec<u8>, Error>) + 'static,
) {
    let (channel, buffer, offset) = match prepare(base, from_bytes, len) {
        Ok(prepared) => prepared,
        Err(error) => return done(Err(error)),
    };
    let name = base.name().to_owned();
    channel.clone().read(offset, buffer, move |buffer, status| {
        drop(channel);
        done(match status.is_success() {
            true => Ok(buffer.as_slice().to_vec()),
            false => Err(failed("read", &name, status)),
        });
    });
}

/// Writes these bytes from a block boundary on and makes them durable; the rest of the last block becomes zero.
pub fn write_at(
    base: &Descriptor,
    from_bytes: u64,
    bytes: &[u8],
    done: impl FnOnce(Result<(), Error>) + 'static,
) {
    let kept = base.clone();
    put(base, from_bytes, bytes, move |result| match result {
        Ok(()) => flush(&kept, done),
        Err(error) => done(Err(error)),
    });
}

/// Writes the superblock, which is the commit point, and the record that goes with it, at the same time: whichever
/// is there alone after a crash, a superblock is without its record, or a torn one is repaired from the record before.
fn write(base: &Descriptor, draft: &Draft, done: impl FnOnce(Result<(), Error>) + 'static) {
    let both: Vec<(u64, &[u8])> = draft
        .record
        .iter()
        .map(|(place, record)| (*place, record.as_slice()))
        .chain([(0, &draft.superblock[..])])
        .collect();
    let targets = both.iter().map(|(place, _)| (*place as usize, base.clone())).collect();
    let kept = base.clone();
    let work = |base: &Descriptor, place: usize, done: OneDone<Result<(), Error>>| {
        let bytes = both.iter().find(|(at, _)| *at as usize == place).map_or(&[][..], |(_, bytes)| *bytes);
        put(base, place as u64, bytes, done);
    };
    each(targets, work, move |results| match results.into_iter().find_map(|(_, result)| result.err()) {
        None => flush(&kept, done),
        Some(error) => done(Err(error)),
    });
}

fn put(base: &Descriptor, from_bytes: u64, bytes: &[u8], done: impl FnOnce(Result<(), Error>) + 'static) {
    let (channel, mut buffer, offset) = match prepare(base, from_bytes, bytes.len()) {
        Ok(prepared) => prepared,
        Err(error) => return done(Err(error)),
    };
    let name = base.name().to_owned();
    if bytes.len() > buffer.len() {
        return done(Err(Error::invalid("is smaller than a superblock").object(name)));
    }
    buffer.as_mut_slice()[..bytes.len()].copy_from_slice(bytes);
    channel.clone().write(offset, buffer, move |_, status| {
        drop(channel);
        done(if status.is_success() { Ok(()) } else { Err(failed("write", &name, status)) });
    });
}

fn flush(base: &Descriptor, done: impl FnOnce(Result<(), Error>) + 'static) {
    if !base.opened_info().ops.contains(BdevOp::Flush) {
        return done(Ok(()));
    }
    let channel = match base.channel() {
        Ok(channel) => channel,
        Err(error) => return done(Err(error)),
    };
    let name = base.name().to_owned();
    channel.clone().flush(move |status| {
        drop(channel);
        done(if status.is_success() { Ok(()) } else { Err(failed("flush", &name, status)) });
    });
}

/// Writes the same to several slots' devices at once; `done` gets what failed.
pub fn write_all(
    targets: Vec<(usize, Descriptor)>,
    draft: &Draft,
    done: impl FnOnce(Vec<(usize, Error)>) + 'static,
) {
    each(targets, |base, _, done| write(base, draft, done), move |results| done(failures(results)));
}

/// Writes the same bytes at the same place of several slots' devices at once; `done` gets what failed.
pub fn write_all_at(
    targets: Vec<(usize, Descriptor)>,
    from_bytes: u64,
    bytes: &[u8],
    done: impl FnOnce(Vec<(usize, Error)>) + 'static,
) {
    let work =
        |base: &Descriptor, _, done: OneDone<Result<(), Error>>| write_at(base, from_bytes, bytes, done);
    each(targets, work, move |results| done(failures(results)));
}

fn failures(results: Vec<(usize, Result<(), Error>)>) -> Vec<(usize, Error)> {
    results.into_iter().filter_map(|(slot, result)| result.err().map(|error| (slot, error))).collect()
}

/// Overwrites the superblocks of several slots' devices with zeroes; what fails is logged.
pub fn wipe_all(targets: Vec<(usize, Descriptor)>, done: impl FnOnce() + 'static) {
    let zeroes = vec![0; WIPED];
    write_all_at(targets, 0, &zeroes, move |failures| {
        for (_, error) in failures {
            log::warn!("superblock not wiped error=\"{error}\"");
        }
        done();
    });
}

/// Reads the superblocks of several slots' devices at once.
pub fn read_all(
    targets: Vec<(usize, Descriptor)>,
    done: impl FnOnce(Vec<(usize, Result<Found, Error>)>) + 'static,
) {
    each(targets, |base, _, done| read(base, done), done);
}

/// What a piece of work is to call at its end.
pub type OneDone<T> = Box<dyn FnOnce(T)>;

/// Runs `work` for every target, with its number, and calls `done` with the results in the order of the targets.
pub fn each<T: 'static>(
    targets: Vec<(usize, Descriptor)>,
    work: impl Fn(&Descriptor, usize, OneDone<T>),
    done: impl FnOnce(Vec<(usize, T)>) + 'static,
) {
    struct Round<T> {
        results: Vec<Option<(usize, T)>>,
        left: usize,
        done: Option<OneDone<Vec<(usize, T)>>>,
    }
    let results = targets.iter().map(|_| None).collect();
    // One more than the targets: it is over only when all were started.
    let left = targets.len() + 1;
    let round = Rc::new(RefCell::new(Round { results, left, done: Some(Box::new(done)) }));
    let finish_one = |round: &Rc<RefCell<Round<T>>>| {
        let mut now = round.borrow_mut();
        now.left -= 1;
        if now.left > 0 {
            return;
        }
        let results = now.results.drain(..).flatten().collect();
        let done = now.done.take();
        drop(now);
        if let Some(done) = done {
            done(results);
        }
    };
    for (nth, (slot, base)) in targets.iter().enumerate() {
        let (kept, slot) = (Rc::clone(&round), *slot);
        work(
            base,
            slot,
            Box::new(move |result| {
                kept.borrow_mut().results[nth] = Some((slot, result));
                finish_one(&kept);
            }),
        );
    }
    finish_one(&round);
}

fn prepare(base: &Descriptor, from_bytes: u64, bytes: usize) -> Result<(BaseChannel, DmaBuf, u64), Error> {
    let channel = base.channel()?;
    let limits = &base.opened_info().limits;
    let offset = from_bytes / u64::from(limits.block_size);
    let left = limits.num_blocks.saturating_sub(offset);
    let blocks = (bytes as u64).div_ceil(limits.block_size.into()).min(left).max(1);
    let len = blocks as usize * channel.payload_block_size();
    let buffer = base.host().alloc(len, 4096, base.opened_info().numa_node)?;
    Ok((channel, buffer, offset))
}

fn failed(what: &str, name: &str, status: IoStatus) -> Error {
    // The operator sees the number of the system if there is one.
    let code = if status.as_nvme().is_none() && status.0 < 0 { status.0 } else { tenon_sdk::errno::EIO };
    // -ENODEV would mean "create again when it appears".
    let code = if code == tenon_sdk::errno::ENODEV { tenon_sdk::errno::EIO } else { code };
    Error::new(code, format!("cannot {what} the superblock"))
        .object(name)
        .caused_by(format!("i/o status {}", status.0))
}

/// Bytes overwritten by a wipe: the header, which has the signature.
const WIPED: usize = 4096;
