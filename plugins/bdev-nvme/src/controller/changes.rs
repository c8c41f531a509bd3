//! What changes at a controller that serves: its events, and the scans that find
//! out what is true then.
//!
//! One scan runs at a time, and what could not be read is asked for again after
//! a pause. Which commands a scan is made of is in `scan`, what follows from its
//! findings in `registry`.

use std::time::Duration;

use nvme_spec::event::{AsyncEvent, EventType, Notice};
use nvme_spec::log::LogPageId;

use super::command::AdminCommand;
use super::scan::{Found, Scan};
use super::setup::SetupError;
use super::state::{Event, State};
use super::{Controller, News};
use crate::registry::Origin;

/// What is to be asked again.
#[derive(Clone, Copy, Default)]
pub(super) struct Scans {
    is_running: bool,
    /// The page that tells which namespaces have changed was not read.
    wants_changes: bool,
    wants_all: bool,
    wants_ana: bool,
}

impl Controller {
    /// Asks for all namespaces.
    pub(super) fn scan(&self, origin: Origin) {
        if self.facts.borrow().is_discovery {
            return self.scanned(origin, Ok(Found::default()));
        }
        let scan = Scan::all(&self.facts.borrow());
        self.start_scan(scan, origin);
    }

    fn start_scan(&self, scan: Scan, origin: Origin) {
        self.scans.set(Scans { is_running: true, ..self.scans.get() });
        self.scan_step(scan, origin);
    }

    fn scan_step(&self, mut scan: Scan, origin: Origin) {
        let Some(command) = scan.command() else { return self.scanned(origin, Ok(scan.finish())) };
        self.send(&command, move |controller, answer| {
            let (cqe, data) = match answer {
                Ok(answer) => answer,
                Err(code) => return controller.lost(format!("a command was not answered (error {code})")),
            };
            let data = data.as_ref().map_or(&[][..], |data| data.as_slice());
            match scan.answered(&cqe, data) {
                Ok(()) => controller.scan_step(scan, origin),
                Err(error) => controller.scanned(origin, Err(error)),
            }
        });
    }

    fn scanned(&self, origin: Origin, result: Result<Found, SetupError>) {
        self.scans.set(Scans { is_running: false, ..self.scans.get() });
        let found = match result {
            Ok(found) => found,
            Err(error) if origin == Origin::Setup => return self.lost(error.to_string()),
            Err(error) => {
                log::warn!("namespaces were not read name={} error=\"{error}\"", self.plan.params.name);
                return self.scan_later(Scans { wants_all: true, ..self.scans.get() });
            }
        };
        if found.is_ana_unreadable {
            self.scan_later(Scans { wants_ana: true, ..self.scans.get() });
        } else {
            self.ana_retry_sec.set(1);
        }
        let registry = self.registry.upgrade();
        if registry.is_some_and(|registry| !registry.found(self, found, origin)) {
            self.scan_later(Scans { wants_all: true, ..self.scans.get() });
        }
        if origin == Origin::Setup {
            self.on(Event::Identified);
        } else if !self.scans.get().is_running {
            self.scan_wanted();
        }
    }

    /// Asks again after a growing pause.
    fn scan_later(&self, scans: Scans) {
        self.scans.set(scans);
        let pause_sec = self.ana_retry_sec.get();
        self.ana_retry_sec.set((pause_sec * 2).min(MAX_SCAN_PAUSE_SEC));
        let me = self.me.clone();
        let timer = self.host.timer(Duration::from_secs(pause_sec), move || {
            if let Some(controller) = me.upgrade() {
                controller.clocks.borrow_mut().scan.take();
                controller.scan_wanted();
            }
        });
        self.clocks.borrow_mut().scan = timer.ok();
    }

    /// Starts what is wanted, unless something is under way or to be waited for.
    pub(super) fn scan_wanted(&self) {
        let scans = self.scans.get();
        let waits = self.clocks.borrow().scan.is_some();
        if self.state.get() != State::Ready || scans.is_running || waits {
            return;
        }
        if scans.wants_changes {
            self.scans.set(Scans { wants_changes: false, ..scans });
            self.read_changes();
        } else if scans.wants_all {
            self.scans.set(Scans::default());
            self.scan(Origin::Event);
        } else if scans.wants_ana {
            self.scans.set(Scans { wants_ana: false, ..scans });
            let scan = Scan::ana(&self.facts.borrow());
            self.start_scan(scan, Origin::AnaOnly);
        }
    }

    /// The ANA states may have changed.
    pub(crate) fn ana_suspected(&self) {
        if self.facts.borrow().has_ana {
            self.scans.set(Scans { wants_ana: true, ..self.scans.get() });
            self.scan_wanted();
        }
    }

    pub(super) fn request_event(&self) {
        self.send_within(&AdminCommand::async_event_request(), None, |controller, answer| {
            let Ok((cqe, _)) = answer else {
                controller.events_owed.set(controller.events_owed.get() + 1);
                return;
            };
            if !cqe.status.is_success() {
                // Fewer at once than it said: the others go on.
                return;
            }
            controller.event(AsyncEvent::from_dw0(cqe.dw0));
            controller.request_event();
        });
    }

    fn event(&self, event: AsyncEvent) {
        log::debug!("asynchronous event name={} event={event:?}", self.plan.params.name);
        if event.event_type != EventType::NOTICE {
            return;
        }
        match Notice(event.information) {
            Notice::NAMESPACE_ATTRIBUTE_CHANGED => self.read_changes(),
            Notice::ANA_CHANGE => {
                if let Some(registry) = self.registry.upgrade() {
                    registry.ana_updating(self);
                }
                self.ana_suspected();
            }
            Notice::DISCOVERY_LOG_CHANGE => self.listen(News::LogChanged),
            _ => {}
        }
    }

    /// Reads which namespaces have changed, which lets the next event come; what is true is asked for anew.
    fn read_changes(&self) {
        let page = AdminCommand::log_page(LogPageId::CHANGED_NAMESPACES, 0, 4096, false);
        self.send(&page, |controller, answer| match answer {
            Ok(_) => {
                controller.scans.set(Scans { wants_all: true, ..controller.scans.get() });
                controller.scan_wanted();
            }
            Err(_) => controller.scan_later(Scans { wants_changes: true, ..controller.scans.get() }),
        });
    }
}

/// Longest pause before an unreadable page is asked for again.
const MAX_SCAN_PAUSE_SEC: u64 = 10;
