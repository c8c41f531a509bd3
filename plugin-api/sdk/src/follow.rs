//! What a device that stands on one base does when something happens to the
//! base: the same happens to the device. For filters; a device with several
//! bases has to decide for itself.

use std::time::Duration;

use crate::{BaseEvent, Error, Host, Publish, Reason};

impl Host {
    /// Makes an event of the base happen to `name`, a device of this module that stands on it: removal, new size,
    /// absence, and news for its openers. The usual event closure of [`Host::open`] in a filter:
    ///
    /// ```no_run
    /// # use tenon_sdk::*;
    /// # fn open(host: Host, name: String) -> Result<Descriptor, Error> {
    /// host.open("b0", Access::Write, move |event| host.follow(&name, event))
    /// # }
    /// ```
    ///
    /// Does nothing before the device is registered; a failure is logged.
    pub fn follow(&self, name: &str, event: &BaseEvent) {
        let Some(id) = self.registered(name) else { return };
        let publish = |what| self.publish(id, what, Reason::UNSPECIFIED, "");
        let result = match event {
            BaseEvent::Remove { .. } => self.unregister(id, Reason::BASE_REMOVED),
            BaseEvent::Resize { num_blocks } => self.resize(id, *num_blocks),
            BaseEvent::Absent { deadline_ns } => self.set_absent(id, self.time_until(*deadline_ns)),
            BaseEvent::Present => self.set_present(id),
            BaseEvent::Degraded => publish(Publish::Degraded),
            BaseEvent::Healthy => publish(Publish::Healthy),
            BaseEvent::PathChanged => publish(Publish::PathChanged),
            BaseEvent::ReadOnly => publish(Publish::ReadOnly),
            BaseEvent::Writable => publish(Publish::Writable),
            BaseEvent::MediaManagement => publish(Publish::MediaManagement),
            BaseEvent::Unknown(_) => Ok(()),
        };
        if let Err(Error { reason, cause, .. }) = result {
            log::warn!(
                "bdev cannot follow its base bdev={name} event={event:?} reason=\"{reason}\" cause=\"{cause}\""
            );
        }
    }

    /// `None` if there is no deadline.
    fn time_until(&self, deadline_ns: u64) -> Option<Duration> {
        (deadline_ns != 0).then(|| Duration::from_nanos(deadline_ns.saturating_sub(self.now_ns())))
    }
}
