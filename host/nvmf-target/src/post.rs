//! Messages between reactors that must arrive: sent again while a queue is full.
//!
//! A reactor's queue of messages is bounded. What is sent from here tells of
//! topology, admin commands and the ends of queues; none may be lost, all are
//! bounded by what exists, so a full queue is waited out. Not for the I/O path.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tenon_reactor::{ReactorRef, SendError, try_current};

/// A message that is taken by its first arrival.
type Parcel = Arc<Mutex<Option<Box<dyn FnOnce() + Send>>>>;

/// Runs `f` on `to`, unless that reactor has stopped.
pub(crate) fn post(to: &ReactorRef, f: impl FnOnce() + Send + 'static) {
    send(to.clone(), Arc::new(Mutex::new(Some(Box::new(f)))), 0);
}

fn send(to: ReactorRef, parcel: Parcel, attempts: u32) {
    let open = parcel.clone();
    let sent = to.send(move || {
        let message = open.lock().take();
        if let Some(message) = message {
            message();
        }
    });
    let Err(SendError::QueueFull) = sent else { return };
    if attempts >= MAX_ATTEMPTS {
        log::error!("message to reactor was given up reactor={} attempts={attempts}", to.name());
        return;
    }
    let Some(local) = try_current() else { return };
    let name = to.name().to_owned();
    if local.set_timer(RETRY_AFTER, move || send(to, parcel, attempts + 1)).is_err() {
        log::error!("message to reactor was lost for want of a timer reactor={name}");
    }
}

/// How long a full queue is left alone.
const RETRY_AFTER: Duration = Duration::from_millis(1);
/// After a minute a reactor is as good as stopped; its watchdog has told so.
const MAX_ATTEMPTS: u32 = 60_000;
