//! The data path: asks for every I/O what shall become of it.
//!
//! A READ is corrupted in the consumer's memory after the base has filled it. A
//! WRITE goes to the base as it is, then the block with the wrong byte is
//! written once more from a buffer: the consumer's payload is not ours to
//! change.

use std::cell::{Cell, OnceCell};
use std::rc::{Rc, Weak};
use std::sync::Arc;

use tenon_sdk::{
    Alarm, BaseChannel, BdevOp, Buffer, Channel, ChildDone, ChildRequest, Children, Error, Fan, FanRequest,
    Forwarded, Host, Io, IoFlags, IoQueue, IoStatus, LetGo, Poll, Poller, Reactor, Victim,
};

use crate::injection::{Corruption, Fate, Injections};

/// A device on one reactor.
pub struct ErrorChannel {
    host: Host,
    name: Arc<str>,
    base: BaseChannel,
    injections: Arc<Injections>,
    let_go: Arc<LetGo>,
    /// Of its orders, those obeyed.
    orders: Cell<u64>,
    /// I/Os that hang.
    pending: IoQueue<Self>,
    in_flight: Cell<u32>,
    random: Cell<u64>,
    alarm: Alarm,
    poller: OnceCell<Poller>,
}

/// State of one I/O.
#[derive(Default)]
pub struct Fated {
    corruption: Option<Corruption>,
    /// For the block that is written once more.
    buffer: Option<Buffer>,
}

impl Channel for ErrorChannel {
    type PerIo = Fated;

    fn base(&self) -> Option<&BaseChannel> {
        Some(&self.base)
    }

    fn children(&self) -> Children {
        Children::fan_out(1, 1, [&self.base])
    }

    fn submit(&self, mut io: Io<Self>) {
        let op = io.op();
        if op == BdevOp::Reset {
            // The host has waited for every I/O, or for as long as it wanted to: what hangs ends now.
            self.let_go.order(self.host);
            self.end_pending();
        }
        let fate = self.injections.fate_of(op, self.in_flight.get(), || io.payload_len(), || self.random());
        match fate {
            None => self.pass(io),
            Some(Fate::Failure) => io.complete(IoStatus::IO_ERROR),
            Some(Fate::Nomem) => io.complete(IoStatus::NOMEM),
            Some(Fate::Pending) => self.hang(io),
            Some(Fate::Corrupt(corruption)) => {
                let state = io.context_mut();
                state.corruption = Some(corruption);
                if op == BdevOp::Write {
                    state.buffer = self.host.buffer(self.base.payload_block_size());
                    if state.buffer.is_none() {
                        return io.complete(IoStatus::NOMEM);
                    }
                }
                self.pass(io);
            }
        }
    }

    fn abort(&self, victim: Victim) -> bool {
        match self.pending.remove(victim) {
            Some(io) => {
                self.count(-1);
                io.complete(IoStatus::ABORTED);
                true
            }
            None => victim.abort_child::<Self>(&self.base),
        }
    }
}

impl ErrorChannel {
    /// Opens the device on the calling reactor.
    pub fn open(
        base: BaseChannel,
        name: &Arc<str>,
        reactor: Reactor,
        injections: &Arc<Injections>,
        let_go: &Arc<LetGo>,
    ) -> Result<Rc<Self>, Error> {
        let host = base.host();
        let channel = Rc::new_cyclic(|this: &Weak<Self>| ErrorChannel {
            host,
            name: name.clone(),
            base,
            injections: injections.clone(),
            let_go: let_go.clone(),
            orders: Cell::new(let_go.count()),
            pending: IoQueue::new(),
            in_flight: Cell::new(0),
            // Never 0, and the same in every run.
            random: Cell::new(0x9e37_79b9_7f4a_7c15 ^ u64::from(reactor.index().unwrap_or(0))),
            alarm: host.alarm({
                let this = this.clone();
                move || {
                    if let Some(channel) = this.upgrade() {
                        channel.look_after_pending();
                    }
                }
            }),
            poller: OnceCell::new(),
        });
        let (run, sleep) = (Rc::downgrade(&channel), Rc::downgrade(&channel));
        let poller = host.wakeable_poller(
            "bdev_error",
            0,
            move || run.upgrade().map_or(Poll::Idle, |channel| channel.obey()),
            move || sleep.upgrade().is_none_or(|channel| channel.obey() == Poll::Idle),
        )?;
        // A fresh cell takes a value.
        let _ = channel.poller.set(poller);
        Ok(channel)
    }

    fn pass(&self, io: Io<Self>) {
        self.count(1);
        let into_payload = IoFlags(io.flags().0 & !IoFlags::LEND.0);
        let shape = |child: &mut ChildRequest<'_>| child.set_flags(into_payload);
        io.forward_with(&self.base, shape, |channel, io| channel.base_done(io));
    }

    fn base_done(&self, mut io: Forwarded<Self>) {
        self.count(-1);
        let status = io.status();
        let state = io.context_mut();
        match (state.corruption, state.buffer.take()) {
            (Some(corruption), Some(buffer)) if status.is_success() => {
                self.write_corrupted(io.into_io(), corruption, buffer);
            }
            (Some(corruption), None) if status.is_success() => {
                let mut io = io.into_io();
                corrupt(io.buffers_mut(), corruption);
                io.complete(status);
            }
            _ => io.complete(),
        }
    }

    /// Writes the block with the wrong byte over the right one.
    fn write_corrupted(&self, io: Io<Self>, corruption: Corruption, mut buffer: Buffer) {
        let block_size = self.base.payload_block_size() as u64;
        let (block, byte) = (corruption.offset / block_size, corruption.offset % block_size);
        copy_range(io.buffers(), block * block_size, buffer.as_mut_slice());
        corrupt([buffer.as_mut_slice()].into_iter(), Corruption { offset: byte, ..corruption });
        self.count(1);
        io.fan_out(
            |fan| {
                let offset_blocks = fan.offset_blocks() + block;
                let shape = |child: &mut FanRequest<'_>| {
                    child.set_offset_blocks(offset_blocks);
                    child.set_num_blocks(1);
                    child.give_buffer(buffer, block_size as usize);
                };
                fan.child(0, &self.base, shape, rewritten);
            },
            |channel, io| {
                channel.count(-1);
                io.complete(IoStatus::SUCCESS);
            },
        );
    }

    fn hang(&self, io: Io<Self>) {
        self.count(1);
        self.pending.push_back(io);
        if !self.alarm.is_set() {
            self.set_alarm();
        }
    }

    /// A device that is to be removed waits for its I/O, so now and then is asked whether it is.
    fn look_after_pending(&self) {
        if !self.pending.is_empty() {
            self.let_go.order_if_going(self.host, &self.name);
            self.set_alarm();
        }
    }

    fn set_alarm(&self) {
        if let Err(error) = self.alarm.set_ns(LOOK_AFTER_NS) {
            log::warn!("i/o cannot be left pending bdev={} error=\"{error}\"", self.name);
            self.end_pending();
        }
    }

    /// Ends what hangs if that was ordered.
    fn obey(&self) -> Poll {
        let orders = self.let_go.count();
        if self.orders.replace(orders) == orders || self.pending.is_empty() {
            return Poll::Idle;
        }
        self.end_pending();
        Poll::Busy
    }

    fn end_pending(&self) {
        for _ in 0..self.pending.len() {
            let Some(io) = self.pending.pop_front() else { return };
            self.count(-1);
            io.complete(IoStatus::ABORTED);
        }
    }

    fn count(&self, change: i32) {
        self.in_flight.set(self.in_flight.get().saturating_add_signed(change));
    }

    /// Xorshift: which I/Os are hit need not be unpredictable.
    fn random(&self) -> u32 {
        let mut x = self.random.get();
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        self.random.set(x);
        (x >> 32) as u32
    }
}

fn rewritten(channel: &ErrorChannel, _: &mut Fan<'_, ErrorChannel>, done: ChildDone) {
    if !done.status.is_success() {
        log::warn!("data not corrupted bdev={} status={}", channel.name, done.status.0);
    }
}

fn corrupt<'a>(buffers: impl Iterator<Item = &'a mut [u8]>, corruption: Corruption) {
    let mut left = corruption.offset;
    for buffer in buffers {
        if let Some(byte) = usize::try_from(left).ok().and_then(|at| buffer.get_mut(at)) {
            *byte ^= corruption.value;
            return;
        }
        left -= buffer.len() as u64;
    }
}

/// Copies the bytes from `offset` on of a payload in pieces.
fn copy_range<'a>(buffers: impl Iterator<Item = &'a [u8]>, offset: u64, into: &mut [u8]) {
    let (mut skip, mut filled) = (offset, 0);
    for buffer in buffers {
        let from = usize::try_from(skip).unwrap_or(usize::MAX).min(buffer.len());
        skip -= from as u64;
        let len = (buffer.len() - from).min(into.len() - filled);
        into[filled..filled + len].copy_from_slice(&buffer[from..from + len]);
        filled += len;
    }
}

/// How often is looked after I/O that hangs.
const LOOK_AFTER_NS: u64 = 100_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_byte_of_a_payload_in_pieces_is_changed() {
        let (mut first, mut second) = ([1u8; 3], [1u8; 3]);
        corrupt([&mut first[..], &mut second[..]].into_iter(), Corruption { offset: 4, value: 0x10 });
        assert_eq!((first, second), ([1, 1, 1], [1, 0x11, 1]));
    }

    #[test]
    fn a_block_is_gathered_across_pieces() {
        let mut block = [0; 4];
        copy_range([&[0, 1, 2][..], &[3], &[4, 5, 6, 7, 8]].into_iter(), 2, &mut block);
        assert_eq!(block, [2, 3, 4, 5]);
    }
}
