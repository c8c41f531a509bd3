//! Where a call comes from: the reactor pointers that cross the door, and what
//! each reactor thread keeps at hand.
//!
//! A `*mut HostReactor` is never dereferenced: it is a number that names one
//! reactor of one set of reactors, and is never used again for another. Threads
//! that are no reactor (a module's own) find the set in a process-wide table.
// UNSAFETY: none; opaque pointers are made from numbers and never followed.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::{Mutex, RwLock};
use tenon_abi::HostReactor;
use tenon_reactor::{Directory, ReactorId, ReactorRef};

use crate::descriptor::DescriptorTable;

/// What all reactor threads of one core share.
pub(crate) struct Shared {
    base: usize,
    directory: Directory,
    /// Which gate a descriptor opens; read by `channel_get` on any reactor.
    pub(crate) descriptors: RwLock<DescriptorTable>,
}

thread_local! {
    static HERE: RefCell<Option<Arc<Shared>>> = const { RefCell::new(None) };
}

/// Sets by the number of their first reactor, for threads that are none.
static SETS: RwLock<BTreeMap<usize, Directory>> = RwLock::new(BTreeMap::new());
/// The next number nobody has.
static NEXT: Mutex<usize> = Mutex::new(FIRST);

impl Shared {
    /// Gives numbers to the reactors of `directory` and makes them known to every thread.
    pub(crate) fn publish(directory: &Directory) -> Arc<Shared> {
        let base = {
            let mut next = NEXT.lock();
            let base = *next;
            *next += (directory.data().len() + 1) * STRIDE;
            base
        };
        SETS.write().insert(base, directory.clone());
        Arc::new(Shared { base, directory: directory.clone(), descriptors: RwLock::default() })
    }

    /// Installs on the calling thread.
    pub(crate) fn install(self: Arc<Self>) {
        HERE.with(|here| *here.borrow_mut() = Some(self));
    }

    /// Takes away what [`Shared::install`] put on the calling thread, unless another set replaced it.
    pub(crate) fn uninstall(&self) {
        let _ = HERE.try_with(|here| {
            let mut here = here.borrow_mut();
            if here.as_ref().is_some_and(|shared| shared.base == self.base) {
                *here = None;
            }
        });
    }

    /// No thread finds the set's reactors from now on.
    pub(crate) fn withdraw(&self) {
        SETS.write().remove(&self.base);
    }

    /// Names the set.
    pub(crate) fn base(&self) -> usize {
        self.base
    }

    pub(crate) fn directory(&self) -> &Directory {
        &self.directory
    }
}

/// What the calling thread shares with the other reactors; `None` on a foreign thread.
pub(crate) fn shared() -> Option<Arc<Shared>> {
    HERE.try_with(|here| here.borrow().clone()).ok().flatten()
}

/// The calling thread's reactor as modules see it; null on a foreign thread.
pub(crate) fn current_reactor() -> *mut HostReactor {
    let Some(local) = tenon_reactor::try_current() else { return std::ptr::null_mut() };
    reactor_pointer(local.id())
}

/// The reactor `id` of the calling thread's set as modules see it.
pub(crate) fn reactor_pointer(id: ReactorId) -> *mut HostReactor {
    with_set(|base, _| pointer(base, id.index())).unwrap_or(std::ptr::null_mut())
}

/// Number of data reactors.
pub(crate) fn reactor_count() -> usize {
    with_set(|_, directory| directory.data().len()).unwrap_or(0)
}

/// The reactor behind a pointer a module gives us, and its index.
pub(crate) fn reactor_of(reactor: *mut HostReactor) -> Option<(ReactorRef, usize)> {
    let number = reactor.addr();
    let own = with_here(|shared| find(shared.base, &shared.directory, number)).flatten();
    own.or_else(|| {
        let sets = SETS.read();
        let (base, directory) = sets.range(..=number).next_back()?;
        find(*base, directory, number)
    })
}

fn find(base: usize, directory: &Directory, number: usize) -> Option<(ReactorRef, usize)> {
    let distance = number.checked_sub(base)?;
    if distance % STRIDE != 0 {
        return None;
    }
    let index = distance / STRIDE;
    let id = if index == 0 { ReactorId::CONTROL } else { ReactorId::data(index - 1) };
    (index <= directory.data().len())
        .then(|| directory.get(id).cloned())
        .flatten()
        .map(|found| (found, index))
}

fn pointer(base: usize, index: usize) -> *mut HostReactor {
    std::ptr::without_provenance_mut(base + index * STRIDE)
}

fn with_here<T>(f: impl FnOnce(&Shared) -> T) -> Option<T> {
    HERE.try_with(|here| here.borrow().as_deref().map(f)).ok().flatten()
}

/// The calling thread's set, or on a foreign thread the newest (a process normally has one).
fn with_set<T>(f: impl Fn(usize, &Directory) -> T) -> Option<T> {
    with_here(|shared| f(shared.base, &shared.directory))
        .or_else(|| SETS.read().last_key_value().map(|(base, directory)| f(*base, directory)))
}

/// Distance of two reactors' numbers, so that a pointer that was moved by mistake is noticed.
const STRIDE: usize = 16;
/// The first number; nothing lives at such small addresses.
const FIRST: usize = 4096;
