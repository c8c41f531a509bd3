//! Runs one step that may block, or never return, apart from the reactors, and
//! brings its outcome back to the reactor that asked.
//!
//! `dlopen` runs foreign constructors and `init` may block until its deadline.
//! The pool of offload workers is no place for that: a few hanging modules would
//! take all of it. So each step has a thread of its own, which is left behind if
//! it never returns. Under a simulation the pool is used, because there it runs
//! on the virtual clock.

use std::any::Any;
use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tenon_reactor::{Local, ReactorRef, SendError};

/// Where opening a plugin and `init` run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum InitOn {
    /// A thread of its own for each.
    #[default]
    OwnThread,
    /// A worker of the reactors' pool: for simulations.
    Offload,
}

/// Stack of such a thread; modules in C expect what a process's first thread has.
const STACK_BYTES: usize = 8 << 20;
/// Pause between two tries to reach a reactor whose queue is full, and how many there are.
const RETRY_PAUSE: Duration = Duration::from_millis(1);
const MAX_RETRIES: u32 = 10_000;

type Continuation = Box<dyn FnOnce(Box<dyn Any + Send>)>;
/// A finished step on its way: taken once, by whichever message arrives.
type Outcome = Arc<Mutex<Option<Box<dyn Any + Send>>>>;

thread_local! {
    /// What to do with outcomes that are still to come. Continuations are not `Send`, so they wait here.
    static WAITING: RefCell<HashMap<u64, Continuation>> = RefCell::new(HashMap::new());
}
static NEXT_TICKET: AtomicU64 = AtomicU64::new(1);

/// Runs `work` elsewhere and `done` with its result on the calling reactor. `done` never runs if `work` never
/// returns or the reactor stops.
pub(crate) fn run<T: Send + 'static>(
    local: &Local,
    on: InitOn,
    thread_name: &str,
    work: impl FnOnce() -> T + Send + 'static,
    done: impl FnOnce(T) + 'static,
) -> Result<(), String> {
    match on {
        InitOn::Offload => local.offload(work, done).map_err(|error| error.to_string()),
        InitOn::OwnThread => {
            let ticket = NEXT_TICKET.fetch_add(1, Ordering::Relaxed);
            let continuation: Continuation = Box::new(move |outcome| {
                done(*outcome.downcast::<T>().expect("the ticket was given to this work only"));
            });
            WAITING.with_borrow_mut(|waiting| waiting.insert(ticket, continuation));
            let reactor = local.reactor();
            let spawned = std::thread::Builder::new()
                .name(thread_name.to_owned())
                .stack_size(STACK_BYTES)
                .spawn(move || deliver(&reactor, ticket, Box::new(work())));
            spawned.map(drop).map_err(|error| {
                WAITING.with_borrow_mut(|waiting| waiting.remove(&ticket));
                error.to_string()
            })
        }
    }
}

/// On the thread of the work: tries until the reactor took the message or has stopped.
fn deliver(reactor: &ReactorRef, ticket: u64, outcome: Box<dyn Any + Send>) {
    let outcome: Outcome = Arc::new(Mutex::new(Some(outcome)));
    for _ in 0..MAX_RETRIES {
        let message = Arc::clone(&outcome);
        match reactor.send(move || arrive(ticket, &message)) {
            Ok(()) => return,
            Err(SendError::QueueFull) => std::thread::sleep(RETRY_PAUSE),
            Err(SendError::Stopped) => return,
        }
    }
    log::error!("result of a module step lost, reactor's queue stays full reactor={}", reactor.name());
}

fn arrive(ticket: u64, outcome: &Outcome) {
    let continuation = WAITING.with_borrow_mut(|waiting| waiting.remove(&ticket));
    let outcome = outcome.lock().take();
    if let (Some(continuation), Some(outcome)) = (continuation, outcome) {
        continuation(outcome);
    }
}
