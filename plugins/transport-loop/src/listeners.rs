//! Who listens where: the one list both roles share.
//!
//! Touched when a listener comes or goes and when a connection is opened, never
//! by a command.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};

use crate::target::Instance;

/// A listener: an address of an instance.
#[derive(Clone)]
pub(crate) struct Listener {
    pub(crate) instance: Arc<Instance>,
    /// Its number at the target core.
    pub(crate) number: u64,
}

static LISTENERS: LazyLock<Mutex<HashMap<String, Listener>>> = LazyLock::new(Mutex::default);

/// Starts listening; false if somebody does already.
pub(crate) fn add(address: String, listener: Listener) -> bool {
    let mut listeners = lock();
    if listeners.contains_key(&address) {
        return false;
    }
    listeners.insert(address, listener);
    true
}

/// Ends a listener; nothing if there is none of that number.
pub(crate) fn remove(instance: &Arc<Instance>, number: u64) {
    lock().retain(|_, listener| listener.number != number || !Arc::ptr_eq(&listener.instance, instance));
}

/// Who listens at an address.
pub(crate) fn find(address: &str) -> Option<Listener> {
    lock().get(address).cloned()
}

/// The key of an address: its parts are free text.
pub(crate) fn key(traddr: &str, trsvcid: &str) -> String {
    format!("{traddr}\n{trsvcid}")
}

fn lock() -> MutexGuard<'static, HashMap<String, Listener>> {
    LISTENERS.lock().unwrap_or_else(PoisonError::into_inner)
}
