//! Superblocks on devices: reading, writing durably and wiping, alone or on many
//! members at once. On the control thread; knows nothing of arrays.

use std::cell::RefCell;
use std::rc::Rc;

use tenon_sdk::{BaseChannel, BdevOp, Descriptor, DmaBuf, Error, IoStatus};

use crate::superblock::{MAX_LENGTH, Superblock, SuperblockError};

/// What was found on a device.
pub type Found = Result<Superblock, SuperblockError>;

/// Reads the superblock of a device; the outer error is of the device.
pub fn read(base: &Descriptor, done: impl FnOnce(Result<Found, Error>) + 'static) {
    let (channel, buffer) = match prepare(base, MAX_LENGTH) {
        Ok(prepared) => prepared,
        Err(error) => return done(Err(error)),
    };
    let name = base.name().to_owned();
    channel.clone().read(0, buffer, move |buffer, status| {
        drop(channel);
        done(match status.is_success() {
            true => Ok(Superblock::parse(buffer.as_slice())),
            false => Err(failed("read", &name, status)),
        });
    });
}

/// Writes these bytes to the first blocks of a device and makes them durable.
pub fn write(base: &Descriptor, bytes: &[u8], done: impl FnOnce(Result<(), Error>) + 'static) {
    let (channel, mut buffer) = match prepare(base, bytes.len()) {
        Ok(prepared) => prepared,
        Err(error) => return done(Err(error)),
    };
    let name = base.name().to_owned();
    if bytes.len() > buffer.len() {
        return done(Err(Error::invalid("is smaller than a superblock").object(name)));
    }
    buffer.as_mut_slice()[..bytes.len()].copy_from_slice(bytes);
    let flushes = base.opened_info().ops.contains(BdevOp::Flush);
    channel.clone().write(0, buffer, move |_, status| {
        if !status.is_success() {
            return done(Err(failed("write", &name, status)));
        }
        if !flushes {
            return done(Ok(()));
        }
        channel.clone().flush(move |status| {
            drop(channel);
            done(if status.is_success() { Ok(()) } else { Err(failed("flush", &name, status)) });
        });
    });
}

/// Writes the same superblock to several slots' devices at once; `done` gets what failed.
pub fn write_all(
    targets: Vec<(usize, Descriptor)>,
    bytes: &[u8],
    done: impl FnOnce(Vec<(usize, Error)>) + 'static,
) {
    each(
        targets,
        |base, done| write(base, bytes, done),
        move |results| {
            done(
                results
                    .into_iter()
                    .filter_map(|(slot, result)| result.err().map(|error| (slot, error)))
                    .collect(),
            );
        },
    );
}

/// Overwrites the superblocks of several slots' devices with zeroes; what fails is logged.
pub fn wipe_all(targets: Vec<(usize, Descriptor)>, done: impl FnOnce() + 'static) {
    let zeroes = vec![0; WIPED];
    write_all(targets, &zeroes, move |failures| {
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
    each(targets, read, done);
}

type OneDone<T> = Box<dyn FnOnce(T)>;

/// Runs `work` for every target and calls `done` with the results in the order of the targets.
fn each<T: 'static>(
    targets: Vec<(usize, Descriptor)>,
    work: impl Fn(&Descriptor, OneDone<T>),
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
            Box::new(move |result| {
                kept.borrow_mut().results[nth] = Some((slot, result));
                finish_one(&kept);
            }),
        );
    }
    finish_one(&round);
}

fn prepare(base: &Descriptor, bytes: usize) -> Result<(BaseChannel, DmaBuf), Error> {
    let channel = base.channel()?;
    let limits = &base.opened_info().limits;
    let blocks = (bytes as u64).div_ceil(limits.block_size.into()).min(limits.num_blocks).max(1);
    let len = blocks as usize * channel.payload_block_size();
    let buffer = base.host().alloc(len, 4096, base.opened_info().numa_node)?;
    Ok((channel, buffer))
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
