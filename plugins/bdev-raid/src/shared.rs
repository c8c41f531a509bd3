//! What an array's control side tells its channels: which members there are, and
//! whether I/O may run. A directive is published for channels opened later, then
//! carried to every reactor; each channel obeys it and lets its ticket go when
//! nothing that the directive forbids is in flight any more.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ops::Range;
use std::rc::Weak;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tenon_sdk::{Descriptor, Error, Exported, Host, Reactor};

use crate::RaidModule;
use crate::channel::RaidChannel;
use crate::intent::Intent;
use crate::layout::Layout;
use crate::level::Level;
use crate::stripes::Stripes;

/// What a member is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Not there.
    Absent,
    /// Holds current data.
    InSync,
    /// Being rebuilt: written to, never read.
    Target,
}

/// One slot as channels see it.
#[derive(Clone)]
pub struct Lane {
    /// The member's device; `None` if absent.
    pub base: Option<Descriptor>,
    /// First block of its data area.
    pub data_offset: u64,
    /// What it is good for.
    pub role: Role,
}

/// The members as channels see them.
#[derive(Clone)]
pub struct Members {
    /// The geometry.
    pub layout: Arc<Layout>,
    /// One per slot.
    pub lanes: Arc<[Lane]>,
    /// Which regions may be written to, if the array has a bitmap.
    pub intent: Option<Arc<Intent>>,
    /// Number of the superblock in force, for entries of the journal.
    pub journal_epoch: u64,
}

/// An order to all channels of an array.
pub struct Directive {
    /// Grows with each.
    pub epoch: u64,
    /// The members from now on.
    pub members: Members,
    /// Whether I/O waits.
    pub is_paused: bool,
    /// Blocks of the array that nobody may write to.
    pub locked: Range<u64>,
}

/// What an array and its channels share.
pub struct Shared {
    /// Tells arrays apart, also those of the same name after each other.
    pub id: u64,
    /// The host.
    pub host: Host,
    /// Name of the array.
    pub name: String,
    /// How data is laid out.
    pub level: Level,
    /// Bytes of a block.
    pub block_bytes: u64,
    /// Locks of stripes, if there is a journal.
    pub stripes: Option<Stripes>,
    /// I/O that channels started before their last directive and nobody has asked for yet.
    started: AtomicU64,
    /// Read errors that wait to be corrected.
    corrections: AtomicU32,
    now: Mutex<Arc<Directive>>,
}

/// Held by every channel that does not yet obey a directive; the control side goes on when the last is dropped.
pub struct Ticket {
    host: Host,
    array: u64,
    epoch: u64,
}

/// An array and a reactor.
pub type Key = (u64, Option<u32>);

thread_local! {
    /// The channels of this thread by array and reactor; a simulation has several reactors on one thread.
    static CHANNELS: RefCell<HashMap<Key, Weak<RaidChannel>>> = RefCell::default();
}

impl Shared {
    /// For a new array, whose channels begin with these members.
    pub fn new(
        id: u64,
        host: Host,
        name: &str,
        members: Members,
        block_bytes: u64,
        stripes: Option<Stripes>,
    ) -> Self {
        let level = members.layout.level;
        let first = Directive { epoch: 0, members, is_paused: false, locked: 0..0 };
        Shared {
            id,
            host,
            name: name.to_owned(),
            level,
            block_bytes,
            stripes,
            started: AtomicU64::new(0),
            corrections: AtomicU32::new(0),
            now: Mutex::new(Arc::new(first)),
        }
    }

    /// A channel started that many I/Os since its last directive.
    pub fn has_started(&self, count: u64) {
        self.started.fetch_add(count, Ordering::Relaxed);
    }

    /// Whether the array was used since this was asked last, as far as channels have told.
    pub fn take_use(&self) -> bool {
        self.started.swap(0, Ordering::Relaxed) > 0
    }

    /// Takes a place among the read errors to be corrected; false if there are too many.
    pub fn begin_correction(&self) -> bool {
        let add = |count| (count < MAX_CORRECTIONS).then_some(count + 1);
        self.corrections.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add).is_ok()
    }

    /// Gives the place back.
    pub fn end_correction(&self) {
        self.corrections.fetch_sub(1, Ordering::Relaxed);
    }

    /// The directive in force. Any thread; not for the data path.
    pub fn now(&self) -> Arc<Directive> {
        Arc::clone(&self.now.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Publishes a directive and carries it to every channel; [`crate::array::Array::directive_obeyed`] is called
    /// when all obey. Control thread.
    ///
    /// # Errors
    /// If the host cannot reach its reactors.
    pub fn issue(
        self: &Arc<Self>,
        members: Members,
        is_paused: bool,
        locked: Range<u64>,
    ) -> Result<u64, Error> {
        let epoch = self.now().epoch + 1;
        let directive = Arc::new(Directive { epoch, members, is_paused, locked });
        *self.now.lock().unwrap_or_else(PoisonError::into_inner) = Arc::clone(&directive);
        let ticket = Arc::new(Ticket { host: self.host, array: self.id, epoch });
        obey(self.id, self.host.control(), &directive, &ticket);
        let id = self.id;
        let kept = Arc::clone(&ticket);
        let visit = move |reactor: Reactor| obey(id, reactor, &directive, &ticket);
        // The visit holds a ticket as well, until every reactor was visited.
        self.host.each_reactor(visit, move || drop(kept))?;
        Ok(epoch)
    }
}

impl Shared {
    /// Every channel starts what waited for regions to be marked. Control thread.
    ///
    /// # Errors
    /// If the host cannot reach its reactors.
    pub fn wake_all(&self) -> Result<(), Error> {
        let id = self.id;
        wake(id, self.host.control());
        self.host.each_reactor(move |reactor| wake(id, reactor), || {})
    }

    /// Channels on other reactors try again to lock stripes. On a reactor.
    pub fn wake_others(&self, me: Option<u32>) {
        let others = self.host.reactors().chain([self.host.control()]);
        for reactor in others.filter(|reactor| reactor.index() != me) {
            send_wake(self.host, self.id, reactor, 0);
        }
    }
}

/// Has a channel of another reactor try again, also if that one's queue is full for a while.
fn send_wake(host: Host, array: u64, reactor: Reactor, attempt: u32) {
    if host.send(reactor, move || wake(array, reactor)).is_ok() {
        return;
    }
    if attempt == MAX_ATTEMPTS {
        log::error!("reactor cannot be reached array={array}");
        return;
    }
    match host.timer(RETRY, move || send_wake(host, array, reactor, attempt + 1)) {
        Ok(timer) => timer.detach(),
        Err(error) => log::error!("reactor cannot be reached array={array} error=\"{error}\""),
    }
}

fn wake(id: u64, reactor: Reactor) {
    let key = (id, reactor.index());
    let channel = CHANNELS.with(|channels| channels.borrow().get(&key).and_then(Weak::upgrade));
    if let Some(channel) = channel {
        channel.wake();
    }
}

/// Makes a channel known to its array. On its reactor.
pub fn enter(key: Key, channel: Weak<RaidChannel>) {
    CHANNELS.with(|channels| channels.borrow_mut().insert(key, channel));
}

/// Takes it back.
pub fn leave(key: Key) {
    // The thread may be ending.
    let _ = CHANNELS.try_with(|channels| channels.borrow_mut().remove(&key));
}

fn obey(id: u64, reactor: Reactor, directive: &Arc<Directive>, ticket: &Arc<Ticket>) {
    let key = (id, reactor.index());
    let channel = CHANNELS.with(|channels| channels.borrow().get(&key).and_then(Weak::upgrade));
    if let Some(channel) = channel {
        channel.obey(directive, ticket);
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        tell(self.host, self.array, self.epoch, 0);
    }
}

/// Tells the array that a directive is obeyed, and tries again while the control thread's queue is full.
fn tell(host: Host, array: u64, epoch: u64, attempt: u32) {
    let message = move || {
        RaidModule::with(|module| module.directive_obeyed(array, epoch));
    };
    if host.send(host.control(), message).is_ok() {
        return;
    }
    if attempt == MAX_ATTEMPTS {
        log::error!("control thread cannot be reached array={array} epoch={epoch}");
        return;
    }
    match host.timer(RETRY, move || tell(host, array, epoch, attempt + 1)) {
        Ok(timer) => timer.detach(),
        Err(error) => log::error!("control thread cannot be reached array={array} error=\"{error}\""),
    }
}

/// Read errors of an array that may wait to be corrected; further ones are corrected when they are met again.
const MAX_CORRECTIONS: u32 = 64;
const MAX_ATTEMPTS: u32 = 10_000;
const RETRY: Duration = Duration::from_millis(1);
