//! One io_uring with the I/Os the kernel has. An I/O sits in a slot from before
//! it is handed to the kernel until after the kernel has answered, and it keeps
//! its memory valid for that long: this is what makes the calls here safe.
//!
//! Knows how to ask for one step of an I/O; what steps an I/O takes is decided
//! in `channel`.
// UNSAFETY: the kernel gets pointers to memory that must stay valid until it has answered.

use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use io_uring::{IoUring, cqueue, opcode, squeue, types};
use rustix::event::{EventfdFlags, eventfd};
use rustix::process::getpid;
use rustix::thread::{CpuSet, sched_getaffinity};
use tenon_sdk::{BdevOp, Channel, DmaBuf, Io, IoFlags, IoVec, Victim};

use crate::backing::Backing;

/// A ring for the I/Os of channels `C`.
pub struct Ring<C: Channel> {
    uring: RefCell<IoUring>,
    /// Becomes readable when the kernel has something ready, if the ring is armed. The ring's own descriptor does
    /// not: work that waits for the ring to be entered wakes nobody who polls it.
    bell: OwnedFd,
    slots: Box<[Slot<C>]>,
    first_free: Cell<u32>,
    in_use: Cell<u32>,
    /// Requests given to the ring, not yet to the kernel.
    asked: Cell<u32>,
    zeroes: Arc<DmaBuf>,
    /// Keeps the file open as long as the ring.
    _backing: Arc<Backing>,
}

/// Place of one I/O.
struct Slot<C: Channel> {
    io: Cell<Option<Io<C>>>,
    next_free: Cell<u32>,
    progress: Cell<Progress>,
}

/// How far an I/O is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// What the kernel does now.
    pub step: Step,
    /// First byte.
    pub offset: u64,
    /// Number of bytes.
    pub len: u64,
    /// Of these, those that are done.
    pub done: u64,
    /// How often the kernel asked to try again.
    pub attempts: u32,
}

/// What the kernel is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Read or write the payload.
    Transfer,
    /// Make everything durable.
    Sync,
    /// Deallocate.
    Punch,
    /// Zero without deallocating.
    ZeroRange,
    /// Write zeroes.
    ZeroWrite,
    /// Deallocate on a worker thread: not the ring's.
    Discard,
}

/// An answer of the kernel.
#[derive(Clone, Copy)]
pub struct Answer {
    /// Whose.
    pub slot: u32,
    /// Bytes, or `-errno`.
    pub result: i32,
}

impl<C: Channel> Ring<C> {
    /// Makes a ring for `depth` I/Os on the calling thread, which alone may use it.
    pub fn open(backing: &Arc<Backing>, depth: u32, zeroes: &Arc<DmaBuf>) -> io::Result<Self> {
        // Cancellations need room as well.
        let entries = (depth * 2).next_power_of_two();
        let uring = new_uring(entries)?;
        uring.submitter().register_files(&[backing.raw_fd()])?;
        free_workers(&uring);
        let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        uring.submitter().register_eventfd(bell.as_raw_fd())?;
        let empty = Progress { step: Step::Sync, offset: 0, len: 0, done: 0, attempts: 0 };
        let slots = (1..=depth)
            .map(|next| Slot {
                io: Cell::new(None),
                next_free: Cell::new(if next == depth { NO_SLOT } else { next }),
                progress: Cell::new(empty),
            })
            .collect();
        Ok(Ring {
            uring: RefCell::new(uring),
            bell,
            slots,
            first_free: Cell::new(0),
            in_use: Cell::new(0),
            asked: Cell::new(0),
            zeroes: zeroes.clone(),
            _backing: backing.clone(),
        })
    }

    /// I/Os in slots.
    #[inline]
    pub fn in_use(&self) -> u32 {
        self.in_use.get()
    }

    /// Gives an I/O a slot; gives it back if there is none.
    #[inline]
    pub fn board(&self, io: Io<C>, progress: Progress) -> Result<u32, Io<C>> {
        let slot = self.first_free.get();
        let Some(place) = self.slots.get(slot as usize) else { return Err(io) };
        self.first_free.set(place.next_free.get());
        self.in_use.set(self.in_use.get() + 1);
        place.progress.set(progress);
        place.io.set(Some(io));
        Ok(slot)
    }

    /// Takes an I/O out of its slot. The kernel must not have it: after [`Ring::reap`] gave its answer, or before
    /// [`Ring::ask`].
    #[inline]
    pub fn leave(&self, slot: u32) -> Option<Io<C>> {
        let place = self.slots.get(slot as usize)?;
        let io = place.io.take()?;
        place.next_free.set(self.first_free.replace(slot));
        self.in_use.set(self.in_use.get() - 1);
        Some(io)
    }

    /// How far the I/O in a slot is.
    #[inline]
    pub fn progress(&self, slot: u32) -> Option<Progress> {
        self.slots.get(slot as usize).map(|place| place.progress.get())
    }

    /// Notes what is done with the I/O in a slot elsewhere.
    pub fn set_progress(&self, slot: u32, progress: Progress) {
        if let Some(place) = self.slots.get(slot as usize) {
            place.progress.set(progress);
        }
    }

    /// Looks at the I/O in a slot.
    pub fn look<R>(&self, slot: u32, look: impl FnOnce(&Io<C>) -> R) -> Option<R> {
        let place = self.slots.get(slot as usize)?;
        let io = place.io.take()?;
        let seen = look(&io);
        place.io.set(Some(io));
        Some(seen)
    }

    /// Asks the kernel for a step of the I/O in a slot; it hears of it at the next [`Ring::enter`]. False if the
    /// ring is full and stays so.
    #[inline]
    pub fn ask(&self, slot: u32, progress: Progress) -> bool {
        let Some(place) = self.slots.get(slot as usize) else { return false };
        let Some(io) = place.io.take() else { return false };
        place.progress.set(progress);
        let entry = self.entry(&io, progress);
        place.io.set(Some(io));
        self.push(&entry.user_data(u64::from(slot)))
    }

    /// Asks the kernel to give up an I/O; true if it is in a slot.
    pub fn cancel(&self, victim: Victim) -> bool {
        let is_victim = |slot: &u32| self.look(*slot, |io| victim.is_io(io)).unwrap_or(false);
        let found = (0..self.slots.len() as u32).find(is_victim);
        found.inspect(|slot| self.cancel_slot(*slot)).is_some()
    }

    /// Asks the kernel to give up everything.
    pub fn cancel_all(&self) {
        for slot in 0..self.slots.len() as u32 {
            if self.look(slot, |_| ()).is_some() {
                self.cancel_slot(slot);
            }
        }
        self.enter();
    }

    fn cancel_slot(&self, slot: u32) {
        let entry = opcode::AsyncCancel::new(u64::from(slot)).build();
        // Without room the I/O just takes its time.
        self.push(&entry.user_data(CANCEL));
    }

    /// Tells the kernel what was asked, and lets it finish what it has ready.
    #[inline]
    pub fn enter(&self) {
        let uring = self.uring.borrow_mut();
        match uring.submit() {
            Ok(_) => self.asked.set(0),
            // What the kernel did not take stays in the ring for the next time.
            Err(error) if is_temporary(&error) => {}
            Err(error) => log::error!("io_uring failed error=\"{error}\""),
        }
    }

    /// Requests the kernel has not heard of.
    #[inline]
    pub fn asked(&self) -> u32 {
        self.asked.get()
    }

    /// True if entering would bring something: something was asked, or the kernel has something ready.
    #[inline]
    pub fn wants_enter(&self) -> bool {
        self.asked.get() > 0 || {
            let mut uring = self.uring.borrow_mut();
            let queue = uring.submission();
            queue.taskrun() || queue.cq_overflow()
        }
    }

    /// Lets the descriptor tell when the kernel has something ready. True if it has by now: then the descriptor may
    /// keep silent.
    pub fn arm(&self) -> bool {
        self.uring.borrow_mut().completion().enable_eventfd();
        // The kernel notes its work before it looks whether to tell; so here, the other way round.
        fence(Ordering::SeqCst);
        self.wants_enter() || !self.uring.borrow_mut().completion().is_empty()
    }

    /// Silences the descriptor, which costs the kernel time for every answer.
    pub fn disarm(&self) {
        self.uring.borrow_mut().completion().disable_eventfd();
    }

    /// Makes the descriptor unreadable again.
    pub fn hear(&self) {
        let mut count = [0; 8];
        // Nothing to read is fine.
        let _ = rustix::io::read(&self.bell, &mut count);
    }

    /// Takes some answers; fewer than there is room for if there are no more.
    #[inline]
    pub fn reap<'a>(&self, answers: &'a mut [Answer; REAP_MAX]) -> &'a [Answer] {
        let mut uring = self.uring.borrow_mut();
        let mut count = 0;
        let mut queue = uring.completion();
        while count < REAP_MAX
            && let Some(entry) = queue.next()
        {
            if let Some(answer) = answer_of(&entry) {
                answers[count] = answer;
                count += 1;
            }
        }
        &answers[..count]
    }

    fn push(&self, entry: &squeue::Entry) -> bool {
        self.asked.set(self.asked.get() + 1);
        if self.try_push(entry) {
            return true;
        }
        self.enter();
        self.try_push(entry)
    }

    #[inline]
    fn try_push(&self, entry: &squeue::Entry) -> bool {
        let mut uring = self.uring.borrow_mut();
        // SAFETY: an entry points to the payload of an I/O in a slot, whose consumer keeps it until completion, and
        // no I/O leaves its slot before it was answered; or to `zeroes`, which `self` owns after `uring`; or nowhere.
        unsafe { uring.submission().push(entry) }.is_ok()
    }

    #[inline]
    fn entry(&self, io: &Io<C>, progress: Progress) -> squeue::Entry {
        let Progress { step, offset, len, done, .. } = progress;
        match step {
            Step::Transfer => transfer(io, offset, done),
            Step::Sync => opcode::Fsync::new(FILE).flags(types::FsyncFlags::DATASYNC).build(),
            Step::Punch => fallocate(libc::FALLOC_FL_PUNCH_HOLE, offset, len),
            Step::ZeroRange => fallocate(libc::FALLOC_FL_ZERO_RANGE, offset, len),
            Step::ZeroWrite => {
                let part = (len - done).min(self.zeroes.len() as u64) as u32;
                let write = opcode::Write::new(FILE, self.zeroes.as_slice().as_ptr(), part);
                write.offset(offset + done).build()
            }
            Step::Discard => opcode::Nop::new().build(),
        }
    }
}

impl<C: Channel> Drop for Ring<C> {
    fn drop(&mut self) {
        // The kernel ends a ring some time after it was closed, and would keep the file open for as long.
        if let Err(error) = self.uring.get_mut().submitter().unregister_files() {
            log::warn!("file stays open for a while error=\"{error}\"");
        }
    }
}

/// The descriptor that tells of answers.
impl<C: Channel> AsRawFd for Ring<C> {
    fn as_raw_fd(&self) -> RawFd {
        self.bell.as_raw_fd()
    }
}

/// A ring that does its work when it is entered, if the kernel can (6.1), else when any system call is made.
fn new_uring(entries: u32) -> io::Result<IoUring> {
    let mut best = IoUring::builder();
    best.setup_clamp().setup_submit_all().setup_single_issuer().setup_defer_taskrun().setup_taskrun_flag();
    let mut older = IoUring::builder();
    older.setup_clamp().setup_coop_taskrun().setup_taskrun_flag();
    let is_unknown = |error: &io::Error| error.raw_os_error() == Some(libc::EINVAL);
    best.build(entries)
        .or_else(|error| if is_unknown(&error) { older.build(entries) } else { Err(error) })
        .or_else(|error| if is_unknown(&error) { IoUring::new(entries) } else { Err(error) })
}

/// Lets the kernel's threads, which do what it cannot do without waiting, run on every core of the process. By default
/// they get that of the reactor only, and take turns with it there.
fn free_workers(uring: &IoUring) {
    let freed = sched_getaffinity(Some(getpid()))
        .map_err(io::Error::from)
        .and_then(|cpus| uring.submitter().register_iowq_aff(&as_libc(&cpus)));
    if let Err(error) = freed {
        log::debug!("kernel threads stay on the core of the reactor error=\"{error}\"");
    }
}

fn as_libc(cpus: &CpuSet) -> libc::cpu_set_t {
    // SAFETY: a set of cores is plain bits, and all zeroes are the empty one.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    for cpu in (0..CpuSet::MAX_CPU).filter(|cpu| cpus.is_set(*cpu)) {
        // SAFETY: both sets have room for the same number of cores.
        unsafe { libc::CPU_SET(cpu, &mut set) };
    }
    set
}

/// What is left of a READ or WRITE after `done` bytes.
#[inline]
fn transfer<C: Channel>(io: &Io<C>, offset: u64, done: u64) -> squeue::Entry {
    let at = offset + done;
    let is_write = io.op() == BdevOp::Write;
    let flags = if is_write && io.flags().contains(IoFlags::FUA) { libc::RWF_DSYNC } else { 0 };
    let (pieces, skip) = rest_of(io.iovs(), done);
    let [piece] = *pieces else {
        if skip > 0 {
            return transfer_piece(&pieces[0], skip, is_write, at, flags);
        }
        // `IoVec` is laid out like `iovec`; the host keeps to the limit of pieces.
        let (list, count) = (pieces.as_ptr().cast::<libc::iovec>(), pieces.len() as u32);
        return if is_write {
            opcode::Writev::new(FILE, list, count).offset(at).rw_flags(flags).build()
        } else {
            opcode::Readv::new(FILE, list, count).offset(at).build()
        };
    };
    transfer_piece(&piece, skip, is_write, at, flags)
}

#[inline]
fn transfer_piece(piece: &IoVec, skip: usize, is_write: bool, at: u64, flags: i32) -> squeue::Entry {
    let base = piece.base.cast::<u8>().wrapping_add(skip);
    let len = (piece.len - skip).min(MAX_PIECE) as u32;
    if is_write {
        opcode::Write::new(FILE, base, len).offset(at).rw_flags(flags).build()
    } else {
        opcode::Read::new(FILE, base, len).offset(at).build()
    }
}

/// The pieces behind the first `done` bytes, and how much of the first of them is done.
#[inline]
fn rest_of(pieces: &[IoVec], done: u64) -> (&[IoVec], usize) {
    let (mut first, mut skip) = (0, done as usize);
    while let Some(piece) = pieces.get(first)
        && skip >= piece.len
        && first + 1 < pieces.len()
    {
        skip -= piece.len;
        first += 1;
    }
    (&pieces[first..], skip)
}

fn fallocate(mode: i32, offset: u64, len: u64) -> squeue::Entry {
    opcode::Fallocate::new(FILE, len).offset(offset).mode(mode | libc::FALLOC_FL_KEEP_SIZE).build()
}

fn answer_of(entry: &cqueue::Entry) -> Option<Answer> {
    let slot = u32::try_from(entry.user_data()).ok()?;
    Some(Answer { slot, result: entry.result() })
}

fn is_temporary(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EBUSY | libc::EINTR))
}

/// The only registered file.
const FILE: types::Fixed = types::Fixed(0);
const NO_SLOT: u32 = u32::MAX;
/// Not a slot.
const CANCEL: u64 = u64::MAX;
/// Largest part of a transfer; the kernel takes little more at once.
const MAX_PIECE: usize = 1 << 30;
/// Answers taken at once.
pub const REAP_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(lens: &[usize], done: u64, expected: (usize, usize)) {
        let pieces: Vec<IoVec> =
            lens.iter().map(|len| IoVec { base: std::ptr::null_mut(), len: *len }).collect();
        let (rest, skip) = rest_of(&pieces, done);
        assert_eq!((lens.len() - rest.len(), skip), expected, "{lens:?} after {done}");
    }

    #[test]
    fn kernel_threads_get_every_core_of_the_process() {
        let mut cpus = CpuSet::new();
        [0, 1, 1023].iter().for_each(|cpu| cpus.set(*cpu));
        let set = as_libc(&cpus);
        // SAFETY: only reads the set.
        let found = (0..CpuSet::MAX_CPU).filter(|cpu| unsafe { libc::CPU_ISSET(*cpu, &set) });
        assert_eq!(found.collect::<Vec<_>>(), [0, 1, 1023]);
    }

    #[test]
    fn a_short_transfer_goes_on_where_it_stopped() {
        check(&[4096], 0, (0, 0));
        check(&[4096], 512, (0, 512));
        check(&[512, 1024, 512], 512, (1, 0));
        check(&[512, 1024, 512], 1000, (1, 488));
        check(&[0, 512, 0, 512], 512, (3, 0));
    }
}
