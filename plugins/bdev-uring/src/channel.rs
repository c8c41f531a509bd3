//! The data path on one reactor: what steps an I/O takes, and when the kernel is
//! called.
//!
//! I/Os are gathered in the ring and handed to the kernel once per turn, or at
//! the end of a batch. While the kernel has many, that waits for a moment, so that
//! one call takes several. The poller looks at the ring's memory; a reactor that has nothing else to do sleeps and is woken by the
//! ring's descriptor, which is silent otherwise.

use std::cell::{Cell, OnceCell};
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tenon_sdk::{
    BdevOp, Channel, Error, FdWatch, Host, Io, IoBatch, IoFlags, IoQueue, IoStatus, Poll, Poller, Victim,
};

use crate::backing::{Backing, Geometry};
use crate::config::UringParams;
use crate::ring::{Answer, Progress, REAP_MAX, Ring, Step};
use crate::status::status_of;

/// A device on one reactor.
pub struct UringChannel {
    this: Weak<Self>,
    host: Host,
    backing: Arc<Backing>,
    abilities: Arc<Abilities>,
    block_shift: u32,
    /// Without a slot in the ring.
    waiting: IoQueue<Self>,
    /// The ring's descriptor tells of answers.
    is_armed: Cell<bool>,
    /// When the kernel was called last.
    entered_ns: Cell<u64>,
    // These end before the ring's descriptor is closed.
    watch: OnceCell<FdWatch>,
    poller: OnceCell<Poller>,
    ring: Ring<Self>,
}

/// What the file system was found to be able to do; shared by the channels of a device.
#[derive(Debug)]
pub struct Abilities {
    can_punch: AtomicBool,
    can_zero_range: AtomicBool,
    is_block_device: bool,
}

/// What comes after an answer.
enum Next {
    Ask(Progress),
    Discard(Progress),
    Done(IoStatus),
}

impl Abilities {
    /// What can be known before trying.
    pub fn new(params: &UringParams, geometry: &Geometry) -> Abilities {
        Abilities {
            can_punch: AtomicBool::new(params.fallocate && geometry.can_punch),
            can_zero_range: AtomicBool::new(params.fallocate),
            is_block_device: geometry.is_block_device,
        }
    }

    fn unmap_step(&self) -> Step {
        if self.can_punch.load(Ordering::Relaxed) { Step::Punch } else { Step::Discard }
    }

    /// A hole reads as zeroes, on a block device as well; but only who allows it loses its space.
    fn zero_step(&self, may_deallocate: bool) -> Step {
        let can_punch = self.can_punch.load(Ordering::Relaxed);
        if can_punch && may_deallocate {
            Step::Punch
        } else if self.can_zero_range.load(Ordering::Relaxed) {
            Step::ZeroRange
        } else if can_punch && !self.is_block_device {
            Step::Punch
        } else {
            Step::ZeroWrite
        }
    }

    fn note_unsupported(&self, step: Step) {
        let ability = match step {
            Step::Punch => &self.can_punch,
            Step::ZeroRange => &self.can_zero_range,
            Step::Transfer | Step::Sync | Step::ZeroWrite | Step::Discard => return,
        };
        if ability.swap(false, Ordering::Relaxed) {
            log::info!("file system lacks an operation, another way is used step={step:?}");
        }
    }
}

impl Channel for UringChannel {
    type PerIo = ();

    #[inline]
    fn submit(&self, io: Io<Self>) {
        self.accept(io);
    }

    fn submit_batch(&self, batch: IoBatch<'_, Self>) {
        for io in batch {
            self.accept(io);
        }
        self.enter_if_due();
    }

    fn abort(&self, victim: Victim) -> bool {
        if let Some(io) = self.waiting.remove(victim) {
            io.complete(IoStatus::ABORTED);
            return true;
        }
        self.ring.cancel(victim)
    }
}

impl UringChannel {
    /// Opens the device on the calling reactor.
    pub fn open(
        host: Host,
        ring: Ring<Self>,
        backing: &Arc<Backing>,
        abilities: &Arc<Abilities>,
    ) -> Result<Rc<Self>, Error> {
        let channel = Rc::new_cyclic(|this: &Weak<Self>| UringChannel {
            this: this.clone(),
            host,
            backing: backing.clone(),
            abilities: abilities.clone(),
            block_shift: backing.geometry().block_size.trailing_zeros(),
            waiting: IoQueue::new(),
            is_armed: Cell::new(true),
            entered_ns: Cell::new(0),
            watch: OnceCell::new(),
            poller: OnceCell::new(),
            ring,
        });
        let [run, sleep, wake] = [(); 3].map(|()| channel.this.clone());
        let poller = host.wakeable_poller(
            "bdev_uring",
            0,
            move || run.upgrade().map_or(Poll::Idle, |channel| channel.poll()),
            move || sleep.upgrade().is_none_or(|channel| channel.may_sleep()),
        )?;
        let watch = host.watch_fd(&channel.ring, READABLE, move |_| {
            if let Some(channel) = wake.upgrade() {
                channel.woken();
            }
        })?;
        channel.disarm();
        // Fresh cells take a value.
        let _ = channel.poller.set(poller);
        let _ = channel.watch.set(watch);
        Ok(channel)
    }

    #[inline]
    fn accept(&self, io: Io<Self>) {
        let op = io.op();
        let is_durable = op == BdevOp::Flush || (io.flags().contains(IoFlags::FUA) && op != BdevOp::Read);
        if is_durable && self.backing.has_lost_writes() {
            return io.complete(IoStatus::IO_ERROR);
        }
        let step = match op {
            BdevOp::Read | BdevOp::Write if io.iovs().is_empty() => return io.complete(IoStatus::INVALID),
            // What is read must be durable already.
            BdevOp::Read if io.flags().contains(IoFlags::FUA) => Step::Sync,
            BdevOp::Read | BdevOp::Write => Step::Transfer,
            BdevOp::Flush => Step::Sync,
            BdevOp::Unmap => self.abilities.unmap_step(),
            BdevOp::WriteZeroes => self.abilities.zero_step(io.flags().contains(IoFlags::DEALLOCATE)),
            BdevOp::Reset => return self.reset(io),
            _ => return io.complete(IoStatus::NOT_SUPPORTED),
        };
        self.begin(io, step);
    }

    #[inline]
    fn begin(&self, io: Io<Self>, step: Step) {
        let progress = Progress {
            step,
            offset: io.offset_blocks() << self.block_shift,
            len: io.num_blocks() << self.block_shift,
            done: 0,
            attempts: 0,
        };
        match self.ring.board(io, progress) {
            Ok(slot) if step == Step::Discard => self.discard(slot, progress),
            Ok(slot) => self.ask(slot, progress),
            Err(io) => self.waiting.push_back(io),
        }
    }

    #[inline]
    fn ask(&self, slot: u32, progress: Progress) {
        if !self.ring.ask(slot, progress) {
            self.finish(slot, IoStatus::NOMEM);
        }
    }

    /// The host has waited for every I/O, or for as long as it wanted to.
    fn reset(&self, io: Io<Self>) {
        self.ring.cancel_all();
        self.waiting.complete_all(IoStatus::ABORTED);
        io.complete(IoStatus::SUCCESS);
    }

    #[inline]
    fn poll(&self) -> Poll {
        if self.ring.in_use() == 0 {
            return Poll::Idle;
        }
        let is_entered = !self.ring.wants_enter() || self.enter_if_due();
        let mut answers = [Answer { slot: 0, result: 0 }; REAP_MAX];
        let mut poll = if is_entered { Poll::Idle } else { Poll::Busy };
        for _ in 0..REAPS_PER_TURN {
            let reaped = self.ring.reap(&mut answers);
            if reaped.is_empty() {
                break;
            }
            poll = Poll::Busy;
            self.disarm();
            reaped.iter().for_each(|answer| self.answered(*answer));
        }
        poll
    }

    /// Calls the kernel, unless it has enough to do and little new was asked since it was called a moment ago.
    /// Each call is also a way through the device's driver, so that fewer of them leave it more time.
    #[inline]
    fn enter_if_due(&self) -> bool {
        let in_use = self.ring.in_use();
        let is_worth_it = in_use < GATHER_FROM || self.ring.asked() >= in_use / 2;
        let now_ns = self.host.now_ns();
        let is_due = is_worth_it || now_ns.saturating_sub(self.entered_ns.get()) >= GATHER_NS;
        if is_due {
            self.entered_ns.set(now_ns);
            self.ring.enter();
        }
        is_due
    }

    fn answered(&self, Answer { slot, result }: Answer) {
        let Some(progress) = self.ring.progress(slot) else { return };
        let Some((op, flags)) = self.ring.look(slot, |io| (io.op(), io.flags())) else { return };
        let next = match u64::try_from(result) {
            Ok(bytes) => advance(progress, bytes, op, flags),
            Err(_) => self.failed(progress, result.saturating_neg(), op, flags),
        };
        match next {
            Next::Ask(progress) => self.ask(slot, progress),
            Next::Discard(progress) => self.discard(slot, progress),
            Next::Done(status) => self.finish(slot, status),
        }
    }

    fn failed(&self, progress: Progress, errno: i32, op: BdevOp, flags: IoFlags) -> Next {
        let Progress { step, attempts, .. } = progress;
        match (errno, step) {
            (libc::EAGAIN | libc::EINTR, _) if attempts < MAX_ATTEMPTS => {
                Next::Ask(Progress { attempts: attempts + 1, ..progress })
            }
            (libc::EOPNOTSUPP | libc::ENOSYS, Step::Punch | Step::ZeroRange) => {
                self.abilities.note_unsupported(step);
                let step = match op {
                    BdevOp::Unmap => self.abilities.unmap_step(),
                    _ => self.abilities.zero_step(flags.contains(IoFlags::DEALLOCATE)),
                };
                let progress = Progress { step, ..progress };
                if step == Step::Discard { Next::Discard(progress) } else { Next::Ask(progress) }
            }
            // Deallocating is a hint, and this device does not say what is read afterwards.
            (libc::EOPNOTSUPP, Step::Discard) => Next::Done(IoStatus::SUCCESS),
            (_, Step::Sync) if errno != libc::ECANCELED => {
                self.backing.note_lost_writes();
                Next::Done(status_of(errno, op))
            }
            _ => Next::Done(status_of(errno, op)),
        }
    }

    /// Deallocates on a worker thread.
    #[cold]
    fn discard(&self, slot: u32, progress: Progress) {
        let (backing, this) = (self.backing.clone(), self.this.clone());
        if !self.abilities.is_block_device {
            return self.finish(slot, IoStatus::NOT_SUPPORTED);
        }
        self.ring.set_progress(slot, progress);
        let done = move |result: Result<std::io::Result<()>, Error>| {
            let result = match result {
                Ok(Ok(())) => 0,
                Ok(Err(error)) => -error.raw_os_error().unwrap_or(libc::EIO),
                Err(_) => -libc::EIO,
            };
            if let Some(channel) = this.upgrade() {
                channel.answered(Answer { slot, result });
            }
        };
        let Progress { offset, len, .. } = progress;
        if self.host.offload(move || backing.discard(offset, len), done).is_err() {
            self.finish(slot, IoStatus::NOMEM);
        }
    }

    #[inline]
    fn finish(&self, slot: u32, status: IoStatus) {
        if let Some(io) = self.ring.leave(slot) {
            io.complete(status);
        }
        if let Some(io) = self.waiting.pop_front() {
            self.accept(io);
        }
    }

    /// Lets the descriptor wake the reactor, then looks once more.
    fn may_sleep(&self) -> bool {
        if self.ring.in_use() == 0 {
            return true;
        }
        self.is_armed.set(true);
        !self.ring.arm()
    }

    fn woken(&self) {
        self.ring.hear();
        self.disarm();
        self.poll();
    }

    fn disarm(&self) {
        if self.is_armed.replace(false) {
            self.ring.disarm();
        }
    }
}

/// What comes after `bytes` were transferred, or something else succeeded.
#[inline]
fn advance(progress: Progress, bytes: u64, op: BdevOp, flags: IoFlags) -> Next {
    match progress.step {
        // The file ends before the device does: somebody has cut it.
        Step::Transfer | Step::ZeroWrite if bytes == 0 => return Next::Done(IoStatus::IO_ERROR),
        Step::Transfer | Step::ZeroWrite => {
            let done = progress.done + bytes;
            if done < progress.len {
                return Next::Ask(Progress { done, attempts: 0, ..progress });
            }
        }
        Step::Sync if op == BdevOp::Read => return Next::Ask(Progress { step: Step::Transfer, ..progress }),
        Step::Sync => return Next::Done(IoStatus::SUCCESS),
        Step::Punch | Step::ZeroRange | Step::Discard => {}
    }
    // A write has been durable from the start.
    let must_sync = flags.contains(IoFlags::FUA) && matches!(op, BdevOp::WriteZeroes | BdevOp::Unmap);
    if must_sync {
        Next::Ask(Progress { step: Step::Sync, ..progress })
    } else {
        Next::Done(IoStatus::SUCCESS)
    }
}

/// EPOLLIN.
const READABLE: u32 = libc::EPOLLIN as u32;
/// After so many the host is told, which tries again when other I/Os have completed.
const MAX_ATTEMPTS: u32 = 8;
/// With so many I/Os the kernel has enough to do for [`GATHER_NS`].
const GATHER_FROM: u32 = 8;
/// How long requests are gathered: little beside what a device with so many I/Os takes for each.
const GATHER_NS: u64 = 10_000;
/// Others on the reactor want their turn as well.
const REAPS_PER_TURN: usize = 4;
