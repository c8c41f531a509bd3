//! Browsing by multicast DNS: a responder's thread of the library, and one here
//! that takes over what it hears and calls the control thread.
//!
//! The control thread is told only that something is different, and looks at all
//! that is announced then: however fast events come, nothing is queued there and
//! nothing lost. What is done about it is in `mdns`.

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use ::log::{debug, error, info, warn};
use mdns_sd::{DaemonEvent, DaemonStatus, IfKind, Receiver, ServiceDaemon, ServiceEvent};
use tenon_sdk::{Error, Host};

use super::announcements::{Announcements, Instance};
use crate::module;
use crate::quiet::Quiet;

/// A search that goes on until [`Browser::end`].
pub(super) struct Browser {
    daemon: ServiceDaemon,
    shared: Arc<Shared>,
    thread: JoinHandle<()>,
}

#[derive(Default)]
struct Shared {
    announcements: Mutex<Announcements>,
    /// The control thread has been told of changes that it has not looked at yet.
    is_told: AtomicBool,
    is_ending: AtomicBool,
}

/// The thread's part.
struct Ear {
    host: Host,
    daemon: ServiceDaemon,
    service_type: &'static str,
    shared: Arc<Shared>,
    quiet: Quiet,
    /// The control thread is to be told.
    is_owed: bool,
}

impl Browser {
    /// Begins to search, on the interface of `local` if there is one, else on all.
    pub(super) fn start(
        host: Host,
        service_type: &'static str,
        local: Option<IpAddr>,
    ) -> Result<Browser, Error> {
        let failed = |error: &dyn std::fmt::Display| {
            Error::new(tenon_sdk::errno::EIO, format!("multicast DNS cannot be searched: {error}"))
        };
        let daemon = ServiceDaemon::new().map_err(|error| failed(&error))?;
        let shared = Arc::new(Shared::default());
        let ear = Ear {
            host,
            daemon: daemon.clone(),
            service_type,
            shared: Arc::clone(&shared),
            quiet: Quiet::new(),
            is_owed: false,
        };
        let begun = ear.begin(local).map_err(|error| failed(&error)).and_then(|(events, faults)| {
            let builder = thread::Builder::new().name("nvme-mdns".to_owned());
            builder.spawn(move || ear.listen(events, &faults)).map_err(|error| failed(&error))
        });
        match begun {
            Ok(thread) => Ok(Browser { daemon, shared, thread }),
            Err(error) => {
                // Its thread ends by itself; there is nobody it could tell anything.
                let _ = daemon.shutdown();
                Err(error)
            }
        }
    }

    /// What is announced now; the control thread hears of every change after this.
    pub(super) fn announcements(&self) -> Announcements {
        self.shared.is_told.store(false, Ordering::Release);
        self.shared.lock().clone()
    }

    /// Ends both threads, then calls `done`.
    pub(super) fn end(self, host: Host, done: fn()) {
        self.shared.is_ending.store(true, Ordering::Release);
        self.thread.thread().unpark();
        let daemon = self.daemon.clone();
        let asked = host.offload(
            move || self.join(),
            move |ended| {
                if let Err(error) = ended {
                    error!("a search by multicast DNS did not end error=\"{error}\"");
                }
                done();
            },
        );
        if let Err(error) = asked {
            warn!("a search by multicast DNS is not waited for error=\"{error}\"");
            // Its threads end by themselves.
            if let Err(error) = daemon.shutdown() {
                error!("a search by multicast DNS does not end error=\"{error}\"");
            }
            done();
        }
    }

    /// On a worker, where it may block.
    fn join(self) {
        let Some(status) = (0..MAX_ATTEMPTS).find_map(|_| {
            let asked = self.daemon.shutdown();
            if matches!(asked, Err(mdns_sd::Error::Again)) {
                thread::park_timeout(RETRY);
                return None;
            }
            Some(asked)
        }) else {
            return error!("a search by multicast DNS takes no orders: its threads stay");
        };
        let ended = match status {
            Ok(status) => matches!(status.recv_timeout(END_TIMEOUT), Ok(DaemonStatus::Shutdown)),
            // It has ended already.
            Err(_) => true,
        };
        if !ended {
            return error!("a search by multicast DNS did not end in time: its threads stay");
        }
        // The library's thread has nothing left to do but free what it cached; its channel
        // is closed, with which this one ends.
        if self.thread.join().is_err() {
            error!("the thread of a search by multicast DNS panicked");
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Announcements> {
        self.announcements.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ear {
    fn begin(
        &self,
        local: Option<IpAddr>,
    ) -> mdns_sd::Result<(Receiver<ServiceEvent>, Receiver<DaemonEvent>)> {
        if let Some(local) = local {
            self.daemon.disable_interface(IfKind::All)?;
            self.daemon.enable_interface(IfKind::Addr(local))?;
        }
        let faults = self.daemon.monitor()?;
        Ok((self.daemon.browse(self.service_type)?, faults))
    }

    fn listen(mut self, mut events: Receiver<ServiceEvent>, faults: &Receiver<DaemonEvent>) {
        loop {
            let event = match self.is_owed {
                // Its queue was full: it is told a little later.
                true => events.recv_timeout(RETRY).ok(),
                false => events.recv().ok(),
            };
            let is_closed = event.is_none() && events.is_disconnected();
            event.iter().chain(&events.try_iter().collect::<Vec<_>>()).for_each(|event| self.take(event));
            faults.try_iter().for_each(|fault| self.report(&fault));
            self.tell();
            if self.shared.is_ending.load(Ordering::Acquire) {
                return;
            }
            if is_closed || self.shared.lock().has_room_again() {
                match self.ask_again() {
                    Some(again) => events = again,
                    None => return,
                }
            }
        }
    }

    fn take(&mut self, event: &ServiceEvent) {
        let name = match event {
            ServiceEvent::SearchStarted(what) => return debug!("searching by multicast DNS what=\"{what}\""),
            ServiceEvent::ServiceFound(_, name) | ServiceEvent::ServiceRemoved(_, name) => name,
            ServiceEvent::ServiceResolved(service) => &service.fullname,
            _ => return,
        };
        let mut announcements = self.shared.lock();
        if !announcements.take(event) {
            return;
        }
        let instance = announcements.get(name).cloned();
        drop(announcements);
        self.is_owed = true;
        if self.quiet.ask(self.host.now_ns()).is_none() {
            return;
        }
        match instance {
            Some(Instance::Unusable(reason)) => {
                warn!("announcement is passed over instance=\"{name}\" reason=\"{reason}\"");
            }
            Some(Instance::At(at)) => {
                info!("discovery service announced instance=\"{name}\" at={}", at.len())
            }
            Some(Instance::Unresolved) => info!("announcement found instance=\"{name}\""),
            None if matches!(event, ServiceEvent::ServiceRemoved(..)) => {
                info!("discovery service is not announced any more instance=\"{name}\"");
            }
            None => warn!("announcements are left out: there are too many instance=\"{name}\""),
        }
    }

    fn report(&self, fault: &DaemonEvent) {
        if let DaemonEvent::Error(error) = fault
            && self.quiet.ask(self.host.now_ns()).is_some()
        {
            warn!("multicast DNS does not work as it should error=\"{error}\"");
        }
    }

    /// Tells the control thread what it has not been told yet.
    fn tell(&mut self) {
        if !self.is_owed {
            return;
        }
        if self.shared.is_told.swap(true, Ordering::AcqRel) {
            // It has not looked yet, and will see this as well.
            self.is_owed = false;
            return;
        }
        let look = || {
            if let Some(registry) = module::registry() {
                registry.follow_announcements();
            }
        };
        match self.host.send(self.host.control(), look) {
            Ok(()) => self.is_owed = false,
            Err(_) => self.shared.is_told.store(false, Ordering::Release),
        }
    }

    /// The library ends a search whose events are not taken fast enough; a new one tells all that is known again.
    fn ask_again(&self) -> Option<Receiver<ServiceEvent>> {
        while !self.shared.is_ending.load(Ordering::Acquire) {
            match self.daemon.browse(self.service_type) {
                Ok(events) => return Some(events),
                Err(mdns_sd::Error::Again) => thread::park_timeout(RETRY),
                Err(error) => {
                    error!("a search by multicast DNS is over type={} error=\"{error}\"", self.service_type);
                    return None;
                }
            }
        }
        None
    }
}

/// Pause before somebody whose queue is full is asked again.
const RETRY: Duration = Duration::from_millis(20);
/// How often the library is told to end while its queue is full.
const MAX_ATTEMPTS: u32 = 50;
/// Time it has for that.
const END_TIMEOUT: Duration = Duration::from_secs(5);
