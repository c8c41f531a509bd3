//! Checks of the data path of a healthy device.

use std::time::Duration;

use tenon_abi::{BdevFlags, IoFlags, IoStatus, Op};

use super::bench::{Bench, Opened, ensure};
use super::model::Model;
use super::{Pass, Verdict};
use crate::consumer::{Io, Request};

/// The last block works; behind the end nothing does, and the module does not see it.
pub(super) fn bounds(bench: &Bench) -> Verdict {
    let (total, opened, block) = (bench.info()?.limits.num_blocks, bench.open()?, bench.block()?);
    let granule = bench.granule()?;
    ensure!(total >= granule, "the device has {total} blocks");
    let last = total - granule;
    if bench.lacks(&[Op::WRITE])?.is_none() {
        bench.must(&opened, Request::write(last, granule, bench.rng.bytes(block * granule as usize)))?;
        let data = vec![0; 2 * block * granule as usize];
        bench.refuses(&opened, Request::write(last, 2 * granule, data), IoStatus::LBA_OUT_OF_RANGE)?;
    }
    if bench.has(Op::READ)? {
        bench.must(&opened, Request::read(total - 1, 1))?;
        bench.refuses(&opened, Request::read(total - 1, 2), IoStatus::LBA_OUT_OF_RANGE)?;
        bench.refuses(&opened, Request::read(total, 1), IoStatus::LBA_OUT_OF_RANGE)?;
        bench.refuses(&opened, Request::read(u64::MAX, 1), IoStatus::LBA_OUT_OF_RANGE)?;
        bench.refuses(&opened, Request::read(0, 0), IoStatus::INVALID)?;
        let short = Request::new(Op::READ, 0, 1);
        bench.refuses(&opened, short, IoStatus::INVALID)?;
    }
    opened.close()?;
    Ok(Pass::Ok)
}

/// A small valid request of `op`, if the suite can make one.
fn sample(bench: &Bench, op: Op) -> Result<Option<Request>, String> {
    let (block, granule) = (bench.block()?, bench.granule()?);
    let bytes = block * granule as usize;
    Ok(Some(match op {
        Op::READ => Request::read(0, granule),
        Op::WRITE => Request::write(0, granule, vec![0; bytes]),
        Op::FLUSH => Request::flush(),
        Op::UNMAP | Op::WRITE_ZEROES | Op::VERIFY => Request::new(op, 0, granule),
        Op::RESET => Request::reset(),
        Op::COMPARE => Request::compare(0, granule, vec![0; bytes]),
        Op::COMPARE_AND_WRITE => Request::compare_and_write(0, granule, vec![0; bytes], vec![0; bytes]),
        Op::SEEK_HOLE | Op::SEEK_DATA => Request::new(op, 0, 0),
        _ => return Ok(None),
    }))
}

/// Every declared operation is handled; no other reaches the module.
pub(super) fn declared_operations(bench: &Bench) -> Verdict {
    let (info, opened) = (bench.info()?, bench.open()?);
    let is_read_only = info.flags.contains(BdevFlags::READ_ONLY);
    for op in (0..Op::COUNT).map(Op) {
        let Some(request) = sample(bench, op)? else { continue };
        if info.io_types & op.bit() == 0 {
            bench.refuses(&opened, request, IoStatus::NOT_SUPPORTED)?;
        } else if !is_read_only || matches!(op, Op::READ | Op::FLUSH | Op::COMPARE | Op::VERIFY | Op::RESET) {
            let found = bench.run(&opened, request)?.status;
            ensure!(found != IoStatus::NOT_SUPPORTED, "operation {} is declared and not supported", op.0);
            let may_differ =
                matches!(op, Op::COMPARE | Op::COMPARE_AND_WRITE | Op::SEEK_HOLE | Op::SEEK_DATA);
            ensure!(found.is_success() || may_differ, "operation {} failed with {found:?}", op.0);
        }
    }
    for unknown in [Op::COUNT, 63, 64, 255] {
        bench.refuses(&opened, Request::new(Op(unknown), 0, 1), IoStatus::NOT_SUPPORTED)?;
    }
    opened.close()?;
    Ok(Pass::Ok)
}

/// Undeclared I/O flags do not reach the module; FUA works if it is declared.
pub(super) fn declared_flags(bench: &Bench) -> Verdict {
    let (info, opened, block) = (bench.info()?, bench.open()?, bench.block()?);
    if let Some(skip) = bench.lacks(&[Op::WRITE])? {
        opened.close()?;
        return Ok(skip);
    }
    let granule = bench.granule()?;
    let request = |flags| Request::write(0, granule, vec![7; block * granule as usize]).flags(flags);
    if info.io_flags & u64::from(IoFlags::FUA.0) == 0 {
        bench.refuses(&opened, request(IoFlags::FUA), IoStatus::NOT_SUPPORTED)?;
    } else {
        bench.must(&opened, request(IoFlags::FUA))?;
    }
    let unknown = IoFlags(1 << 14);
    if info.io_flags & u64::from(unknown.0) == 0 {
        bench.refuses(&opened, request(unknown), IoStatus::NOT_SUPPORTED)?;
    }
    opened.close()?;
    Ok(Pass::Ok)
}

/// What was written is read.
pub(super) fn read_back(bench: &Bench) -> Verdict {
    if let Some(skip) = bench.lacks(&[Op::READ, Op::WRITE])? {
        return Ok(skip);
    }
    if !bench.suite.stores_data {
        return Ok(Pass::Skip("the device stores no data".to_owned()));
    }
    let (opened, block) = (bench.open()?, bench.block()?);
    let mut written = Vec::new();
    for _ in 0..ROUNDS {
        let (offset, blocks) = bench.range(&bench.rng, 64)?;
        let data = bench.rng.bytes(blocks as usize * block);
        bench.must(&opened, Request::write(offset, blocks, data.clone()))?;
        let read = bench.must(&opened, Request::read(offset, blocks))?.data;
        ensure!(read == data, "{blocks} blocks at {offset} are not read as they were written");
        written.push((offset, blocks, data));
    }
    // The last write to a block counts: look at the newest range once more through a new channel.
    opened.close()?;
    let opened = bench.open()?;
    if let Some((offset, blocks, data)) = written.pop() {
        let read = bench.must(&opened, Request::read(offset, blocks))?.data;
        ensure!(read == data, "{blocks} blocks at {offset} changed when the channel was closed");
    }
    opened.close()?;
    Ok(Pass::Ok)
}

/// Random operations at some depth against a model.
pub(super) fn model(bench: &Bench) -> Verdict {
    if let Some(skip) = bench.lacks(&[Op::READ])? {
        return Ok(skip);
    }
    let opened = bench.open()?;
    let mut model = Model::new(bench)?;
    for depth in [1, 4, 32] {
        model.run(&[&opened], MODEL_IOS, depth)?;
    }
    model.verify(&opened)?;
    opened.close()?;
    Ok(Pass::Ok)
}

/// Payloads in many, odd and misaligned pieces.
pub(super) fn scatter_lists(bench: &Bench) -> Verdict {
    if let Some(skip) = bench.lacks(&[Op::READ, Op::WRITE])? {
        return Ok(skip);
    }
    let (opened, block, granule) = (bench.open()?, bench.block()?, bench.granule()?);
    let blocks = (8u64).next_multiple_of(granule).min(bench.info()?.limits.num_blocks / granule * granule);
    let bytes = blocks as usize * block;
    let lists: [Vec<usize>; 6] = [
        vec![512; bytes / 512],
        vec![1; 37],
        vec![3, 509, 1021, 4],
        vec![bytes - 1],
        vec![block / 2; 7],
        vec![0, block, 0, block],
    ];
    for (nth, pieces) in lists.iter().enumerate() {
        for misaligned in [0, 1, 4, 511] {
            let data = bench.rng.bytes(bytes);
            bench.must(
                &opened,
                Request::write(0, blocks, data.clone()).pieces(pieces).misaligned(misaligned),
            )?;
            let read =
                Request::read(0, blocks).pieces(&lists[(nth + 1) % lists.len()]).misaligned(misaligned);
            let read = bench.must(&opened, read)?.data;
            let is_same = !bench.suite.stores_data || read == data;
            ensure!(is_same, "{} pieces, {misaligned} bytes misaligned: other data is read", pieces.len());
        }
    }
    opened.close()?;
    Ok(Pass::Ok)
}

/// FLUSH without a range, alone and among writes.
pub(super) fn flush(bench: &Bench) -> Verdict {
    if let Some(skip) = bench.lacks(&[Op::FLUSH])? {
        return Ok(skip);
    }
    let opened = bench.open()?;
    bench.must(&opened, Request::flush())?;
    let mut ios = bench.load(&opened, 8)?;
    ios.push(opened.channel.submit(Request::flush()));
    ios.extend(bench.load(&opened, 8)?);
    for completion in bench.wait_all(&ios)? {
        ensure!(completion.status.is_success(), "an I/O around FLUSH failed with {:?}", completion.status);
    }
    opened.close()?;
    Ok(Pass::Ok)
}

/// Writes data, clears the middle by `clear`, looks at the middle and its neighbours.
fn clears(
    bench: &Bench,
    opened: &Opened,
    clear: fn(u64, u64) -> Request,
    reads_zeroes: bool,
) -> Result<(), String> {
    let (block, granule) = (bench.block()?, bench.granule()?);
    let unit = granule as usize * block;
    let total = bench.info()?.limits.num_blocks / granule;
    ensure!(total >= 3, "the device has less than three writable units");
    let first = bench.rng.below(total - 2) * granule;
    let data = bench.rng.bytes(3 * unit);
    bench.must(opened, Request::write(first, 3 * granule, data.clone()))?;
    bench.must(opened, clear(first + granule, granule))?;
    let read = bench.must(opened, Request::read(first, 3 * granule))?.data;
    if bench.suite.stores_data {
        let outside = read[..unit] == data[..unit] && read[2 * unit..] == data[2 * unit..];
        ensure!(outside, "a neighbour of the cleared blocks changed");
        let is_zero = read[unit..2 * unit].iter().all(|byte| *byte == 0);
        let is_old = read[unit..2 * unit] == data[unit..2 * unit];
        ensure!(
            is_zero || (!reads_zeroes && is_old),
            "cleared blocks read neither zeroes nor what is declared"
        );
    }
    Ok(())
}

/// WRITE_ZEROES gives zeroes, and only where it was told.
pub(super) fn write_zeroes(bench: &Bench) -> Verdict {
    if let Some(skip) = bench.lacks(&[Op::READ, Op::WRITE, Op::WRITE_ZEROES])? {
        return Ok(skip);
    }
    let opened = bench.open()?;
    for _ in 0..ROUNDS {
        clears(bench, &opened, Request::write_zeroes, true)?;
    }
    let deallocates = bench.info()?.io_flags & u64::from(IoFlags::DEALLOCATE.0) != 0;
    if deallocates {
        let deallocate = |offset, blocks| Request::write_zeroes(offset, blocks).flags(IoFlags::DEALLOCATE);
        clears(bench, &opened, deallocate, true)?;
    }
    opened.close()?;
    Ok(Pass::Ok)
}

/// UNMAP gives zeroes if the device says so, and touches nothing else.
pub(super) fn unmap(bench: &Bench) -> Verdict {
    if let Some(skip) = bench.lacks(&[Op::READ, Op::WRITE, Op::UNMAP])? {
        return Ok(skip);
    }
    let opened = bench.open()?;
    let reads_zeroes = bench.info()?.flags.contains(BdevFlags::UNMAP_READS_ZEROES);
    for _ in 0..ROUNDS {
        clears(bench, &opened, Request::unmap, reads_zeroes)?;
    }
    opened.close()?;
    Ok(Pass::Ok)
}

/// COMPARE and COMPARE_AND_WRITE tell equal from different.
pub(super) fn compare(bench: &Bench) -> Verdict {
    if !bench.suite.stores_data {
        return Ok(Pass::Skip("the device stores no data".to_owned()));
    }
    if let Some(skip) = bench.lacks(&[Op::WRITE, Op::COMPARE])? {
        return Ok(skip);
    }
    let (opened, block, granule) = (bench.open()?, bench.block()?, bench.granule()?);
    let bytes = granule as usize * block;
    let (data, other) = (bench.rng.bytes(bytes), bench.rng.bytes(bytes));
    bench.must(&opened, Request::write(0, granule, data.clone()))?;
    bench.must(&opened, Request::compare(0, granule, data.clone()).pieces(&[3, 512]))?;
    let mut wrong = data.clone();
    wrong[bytes - 1] ^= 1;
    bench.refuses(&opened, Request::compare(0, granule, wrong.clone()), IoStatus::MISCOMPARE)?;
    if bench.has(Op::COMPARE_AND_WRITE)? {
        let refused = Request::compare_and_write(0, granule, wrong, other.clone());
        bench.refuses(&opened, refused, IoStatus::MISCOMPARE)?;
        bench.must(&opened, Request::compare(0, granule, data.clone()))?;
        bench.must(&opened, Request::compare_and_write(0, granule, data, other.clone()))?;
        bench.must(&opened, Request::compare(0, granule, other))?;
    }
    opened.close()?;
    Ok(Pass::Ok)
}

/// Batches do what single submissions do.
pub(super) fn batches(bench: &Bench) -> Verdict {
    if let Some(skip) = bench.lacks(&[Op::READ, Op::WRITE])? {
        return Ok(skip);
    }
    let (opened, block, granule) = (bench.open()?, bench.block()?, bench.granule()?);
    let count = (bench.info()?.limits.num_blocks / granule).min(32);
    let data: Vec<Vec<u8>> = (0..count).map(|_| bench.rng.bytes(granule as usize * block)).collect();
    let write = |(nth, data): (usize, &Vec<u8>)| Request::write(nth as u64 * granule, granule, data.clone());
    let ios = opened.channel.submit_batch(data.iter().enumerate().map(write).collect());
    for completion in bench.wait_all(&ios)? {
        ensure!(completion.status.is_success(), "a WRITE of a batch failed with {:?}", completion.status);
    }
    let mut requests: Vec<Request> = (0..count).map(|nth| Request::read(nth * granule, granule)).collect();
    requests.push(Request::read(u64::MAX - 8, 1));
    let ios = opened.channel.submit_batch(requests);
    let mut found = bench.wait_all(&ios)?;
    let refused = found.pop().map(|completion| completion.status);
    ensure!(refused == Some(IoStatus::LBA_OUT_OF_RANGE), "the bad I/O of a batch ended with {refused:?}");
    for (nth, completion) in found.iter().enumerate() {
        ensure!(completion.status.is_success(), "a READ of a batch failed with {:?}", completion.status);
        ensure!(
            !bench.suite.stores_data || completion.data == data[nth],
            "I/O {nth} of a batch read other data"
        );
    }
    opened.close()?;
    Ok(Pass::Ok)
}

/// Lent memory holds the data until it is returned, and the I/O stays outstanding until then.
pub(super) fn lent_reads(bench: &Bench) -> Verdict {
    if let Some(skip) = bench.lacks(&[Op::READ, Op::WRITE])? {
        return Ok(skip);
    }
    let (opened, block, granule) = (bench.open()?, bench.block()?, bench.granule()?);
    let units = (bench.info()?.limits.num_blocks / granule).min(16);
    let data = bench.rng.bytes(units as usize * granule as usize * block);
    bench.must(&opened, Request::write(0, units * granule, data.clone()))?;
    let mut lent: Vec<(Io, Vec<u8>)> = Vec::new();
    for unit in 0..units / 2 {
        let request = match bench.rng.chance(500) {
            true => Request::read_lent(unit * granule, granule),
            false => Request::read(unit * granule, granule).flags(IoFlags::LEND),
        };
        let io = opened.channel.submit(request);
        let completion = bench.wait(&io)?;
        ensure!(
            completion.status.is_success(),
            "a READ that accepts lent memory failed: {:?}",
            completion.status
        );
        let at = unit as usize * granule as usize * block;
        let expected = &data[at..at + granule as usize * block];
        ensure!(!bench.suite.stores_data || completion.data == expected, "lent memory holds other data");
        if completion.is_lent {
            lent.push((io, completion.data));
        }
    }
    // Traffic elsewhere while the memory is out.
    for unit in units / 2..units {
        bench.must(
            &opened,
            Request::write(unit * granule, granule, bench.rng.bytes(granule as usize * block)),
        )?;
    }
    bench.host.advance(Duration::from_millis(1));
    for (io, before) in &lent {
        ensure!(io.lent_data().as_ref() == Some(before), "lent memory changed before it was returned");
        opened.channel.release(io);
    }
    bench.works(&bench.name)?;
    opened.close()?;
    Ok(Pass::Ok)
}

const ROUNDS: usize = 16;
const MODEL_IOS: usize = 150;
