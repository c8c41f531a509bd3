//! Copying one window of a member's data area from the other members: of a mirror
//! from whichever can be read, of a parity level computed of all others. Runs on
//! the control thread with memory of its own; who holds writes back meanwhile is
//! `change.rs`.

use std::cell::{Cell, RefCell};
use std::ops::Range;
use std::rc::Rc;

use tenon_sdk::{BaseChannel, DmaBuf, Error, Host, IoStatus};

use crate::level::Level;
use crate::xor::xor_into;

/// A member and where its data area begins.
#[derive(Clone)]
pub struct Place {
    /// Slot of the member.
    pub slot: usize,
    /// Channel on the control thread.
    pub channel: BaseChannel,
    /// First block of the data area.
    pub data_offset: u64,
}

/// A window being copied.
struct Window {
    host: Host,
    level: Level,
    sources: Vec<Place>,
    target: Place,
    block_bytes: usize,
    left: Cell<usize>,
    error: RefCell<Option<Error>>,
    done: RefCell<Option<WindowDone>>,
}

type WindowDone = Box<dyn FnOnce(Result<(), Error>)>;

/// Copies these blocks of the data area to `target`.
pub fn copy(
    host: Host,
    level: Level,
    sources: Vec<Place>,
    target: Place,
    blocks: Range<u64>,
    done: impl FnOnce(Result<(), Error>) + 'static,
) {
    let block_bytes = target.channel.payload_block_size();
    let window = Rc::new(Window {
        host,
        level,
        sources,
        target,
        block_bytes,
        left: Cell::new(1),
        error: RefCell::new(None),
        done: RefCell::new(Some(Box::new(done))),
    });
    let step = (CHUNK_BYTES / block_bytes).max(1) as u64;
    let mut at = blocks.start;
    while at < blocks.end {
        let end = (at + step).min(blocks.end);
        window.left.set(window.left.get() + 1);
        match level {
            Level::Raid1 => window.mirror(at, end - at, 0, None),
            Level::Raid5f => window.compute(at, end - at),
            Level::Raid0 | Level::Concat => window.fail(Error::not_supported("nothing to rebuild from")),
        }
        at = end;
    }
    window.finish_one();
}

impl Window {
    /// Reads from the sources in turn until one can, then writes.
    fn mirror(self: &Rc<Self>, at: u64, blocks: u64, nth: usize, buffer: Option<DmaBuf>) {
        let Some(source) = self.sources.get(nth) else {
            return self.fail(Error::io("no member can be read"));
        };
        let len = blocks as usize * self.block_bytes;
        let buffer = match buffer.map_or_else(|| self.host.alloc(len, 4096, -1), Ok) {
            Ok(buffer) => buffer,
            Err(error) => return self.fail(error),
        };
        let this = Rc::clone(self);
        source.channel.read(source.data_offset + at, buffer, move |buffer, status| {
            if status.is_success() {
                this.write(at, buffer);
            } else {
                this.mirror(at, blocks, nth + 1, Some(buffer));
            }
        });
    }

    /// Reads all sources and writes their exclusive or.
    fn compute(self: &Rc<Self>, at: u64, blocks: u64) {
        let len = blocks as usize * self.block_bytes;
        let sum: Rc<RefCell<Option<DmaBuf>>> = Rc::default();
        let left = Rc::new(Cell::new(self.sources.len()));
        let worst = Rc::new(Cell::new(IoStatus::SUCCESS));
        if self.sources.is_empty() {
            return self.fail(Error::io("no member can be read"));
        }
        for source in &self.sources {
            let buffer = self.host.alloc(len, 4096, -1);
            let (this, sum, left, worst) =
                (Rc::clone(self), Rc::clone(&sum), Rc::clone(&left), Rc::clone(&worst));
            let add = move |buffer: Option<DmaBuf>, status: IoStatus| {
                match (buffer, status.is_success()) {
                    (Some(buffer), true) => {
                        let mut sum = sum.borrow_mut();
                        match sum.as_mut() {
                            Some(sum) => xor_into(sum.as_mut_slice(), buffer.as_slice()),
                            None => *sum = Some(buffer),
                        }
                    }
                    (_, _) => worst.set(status),
                }
                left.set(left.get() - 1);
                if left.get() > 0 {
                    return;
                }
                let sum = sum.borrow_mut().take();
                match sum {
                    Some(sum) if worst.get().is_success() => this.write(at, sum),
                    Some(_) | None => {
                        let cause = format!("i/o status {}", worst.get().0);
                        this.fail(Error::io("a member cannot be read").caused_by(cause));
                    }
                }
            };
            match buffer {
                Ok(buffer) => source.channel.read(source.data_offset + at, buffer, move |buffer, status| {
                    add(Some(buffer), status);
                }),
                Err(_) => add(None, IoStatus::NOMEM),
            }
        }
    }

    fn write(self: &Rc<Self>, at: u64, buffer: DmaBuf) {
        let this = Rc::clone(self);
        self.target.channel.write(self.target.data_offset + at, buffer, move |_, status| {
            if status.is_success() {
                this.finish_one();
            } else {
                let cause = format!("i/o status {}", status.0);
                this.fail(Error::io("the member being rebuilt cannot be written").caused_by(cause));
            }
        });
    }

    fn fail(self: &Rc<Self>, error: Error) {
        log::debug!("rebuild of a chunk failed level={} error=\"{error}\"", self.level.name());
        self.error.borrow_mut().get_or_insert(error);
        self.finish_one();
    }

    fn finish_one(self: &Rc<Self>) {
        self.left.set(self.left.get() - 1);
        if self.left.get() > 0 {
            return;
        }
        let (done, error) = (self.done.borrow_mut().take(), self.error.borrow_mut().take());
        if let Some(done) = done {
            done(error.map_or(Ok(()), Err));
        }
    }
}

/// Bytes read and written at once.
const CHUNK_BYTES: usize = 256 << 10;
