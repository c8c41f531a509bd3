//! A listener of the control plane that cannot accept: rests instead of being
//! asked again at once. What hinders it, such as a want of file descriptors,
//! lasts, and the socket stays readable meanwhile.

use std::io;
use std::time::Duration;

use log::warn;
use tenon_reactor::{FdId, Interest, current};

/// How long it rests.
const REST: Duration = Duration::from_secs(1);

/// Whether the next client may be accepted all the same: only this one went away.
pub(crate) fn concerns_one_client(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted)
}

/// Leaves `listener` alone for a while; clients wait in its queue. `what` is for the log.
pub(crate) fn rest(listener: FdId, what: &str, error: &io::Error) {
    warn!("{what} cannot accept, trying again retry_ms={} error={error}", REST.as_millis());
    let again = move || {
        // A listener that is closed by now is a stale handle.
        let _ = current().modify_fd(listener, Interest::READ);
    };
    if current().set_timer(REST, again).is_ok() {
        let _ = current().modify_fd(listener, Interest::NONE);
    }
}
