//! Which namespaces a controller has: the commands that ask, one after the
//! other, and what their answers say. Sans-IO, as `setup`.
//!
//! A namespace that vanishes during the scan, or whose page cannot be used, is
//! left out; the scan goes on behind it and always ends.

use nvme_spec::completion::Cqe;
use nvme_spec::identify::{Cns, IdDescriptors, IdentifyNamespace, NamespaceList};
use nvme_spec::log::ana::AnaLog;
use nvme_spec::log::{AnaState, LogPageId};
use nvme_spec::status::CommandKind;
use zerocopy::FromBytes;

use super::command::AdminCommand;
use super::setup::{ControllerFacts, SetupError};
use crate::namespace::NamespaceFacts;

/// ANA state of a namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct AnaEntry {
    pub(crate) nsid: u32,
    pub(crate) state: AnaState,
}

/// What a scan found.
#[derive(Clone, Debug, Default)]
pub(crate) struct Found {
    pub(crate) namespaces: Vec<NamespaceFacts>,
    /// `None` if there is no ANA reporting, or the page was not readable.
    pub(crate) ana: Option<Vec<AnaEntry>>,
    pub(crate) is_ana_unreadable: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    List { after: u32 },
    Namespace,
    Descriptors,
    Ana,
    Done,
}

/// A scan under way.
#[derive(Clone, Debug)]
pub(crate) struct Scan {
    step: Step,
    /// Namespaces to ask about, the next one last.
    left: Vec<u32>,
    list_after: Option<u32>,
    /// Namespaces listed so far.
    listed: u32,
    has_descriptors: bool,
    ana_log_bytes: usize,
    has_ana: bool,
    found: Found,
}

impl Scan {
    /// Of everything.
    pub(crate) fn all(facts: &ControllerFacts) -> Self {
        Scan {
            step: Step::List { after: 0 },
            left: Vec::new(),
            list_after: None,
            listed: 0,
            has_descriptors: facts.version >= (1, 3, 0),
            ana_log_bytes: facts.ana_log_bytes,
            has_ana: facts.has_ana,
            found: Found::default(),
        }
    }

    /// Of the ANA states only.
    pub(crate) fn ana(facts: &ControllerFacts) -> Self {
        Scan { step: Step::Ana, ..Scan::all(facts) }
    }

    /// What to send now; `None` if the scan is over.
    pub(crate) fn command(&self) -> Option<AdminCommand> {
        let nsid = self.left.last().copied().unwrap_or(0);
        match self.step {
            Step::List { after } => Some(AdminCommand::identify(Cns::ACTIVE_NAMESPACE_LIST, after)),
            Step::Namespace => Some(AdminCommand::identify(Cns::NAMESPACE, nsid)),
            Step::Descriptors => Some(AdminCommand::identify(Cns::NAMESPACE_DESCRIPTOR_LIST, nsid)),
            Step::Ana => Some(AdminCommand::log_page(LogPageId::ANA, 0, self.ana_log_bytes, false)),
            Step::Done => None,
        }
    }

    /// Takes the answer to [`Scan::command`].
    pub(crate) fn answered(&mut self, cqe: &Cqe, data: &[u8]) -> Result<(), SetupError> {
        let is_good = cqe.status.is_success();
        self.step = match self.step {
            Step::List { .. } => {
                if !is_good {
                    let status = cqe.status.code();
                    let (step, kind) = ("identify active namespaces", CommandKind::AdminOrIo);
                    return Err(SetupError::Refused { step, status, kind });
                }
                self.list(data);
                self.next()
            }
            Step::Namespace => {
                let nsid = self.left.last().copied().unwrap_or(0);
                let page = IdentifyNamespace::ref_from_prefix(data).ok().filter(|_| is_good);
                match page.and_then(|(page, _)| NamespaceFacts::parse(nsid, page)) {
                    Some(facts) => {
                        self.found.namespaces.push(facts);
                        if self.has_descriptors { Step::Descriptors } else { self.skip() }
                    }
                    None => {
                        log::warn!("namespace cannot be used nsid={nsid} status={:?}", cqe.status);
                        self.skip()
                    }
                }
            }
            Step::Descriptors => {
                if is_good
                    && let Ok((list, _)) = IdDescriptors::ref_from_prefix(data)
                    && let Some(facts) = self.found.namespaces.last_mut()
                {
                    facts.describe(list);
                }
                self.skip()
            }
            Step::Ana => {
                self.found.ana = if is_good { parse_ana(data) } else { None };
                self.found.is_ana_unreadable = self.found.ana.is_none();
                Step::Done
            }
            Step::Done => Step::Done,
        };
        Ok(())
    }

    /// What was found, once there is no command any more.
    pub(crate) fn finish(self) -> Found {
        self.found
    }

    fn list(&mut self, data: &[u8]) {
        let Ok((list, _)) = NamespaceList::ref_from_prefix(data) else { return };
        let after = self.list_after.unwrap_or(0);
        // Ascending as the specification has it: one that is not would never end.
        let mut nsids: Vec<u32> = list.iter().filter(|nsid| *nsid > after).collect();
        nsids.truncate(MAX_NAMESPACES.saturating_sub(self.listed) as usize);
        self.listed += nsids.len() as u32;
        let is_full = nsids.len() == nvme_spec::identify::list::NAMESPACE_LIST_LEN;
        self.list_after = nsids.last().copied().filter(|_| is_full && self.listed < MAX_NAMESPACES);
        nsids.reverse();
        self.left = nsids;
    }

    /// Done with the namespace that was asked about.
    fn skip(&mut self) -> Step {
        self.left.pop();
        self.next()
    }

    fn next(&mut self) -> Step {
        match (self.left.is_empty(), self.list_after.is_some(), self.has_ana) {
            (false, _, _) => Step::Namespace,
            (true, true, _) => Step::List { after: self.list_after.unwrap_or(0) },
            (true, false, true) => Step::Ana,
            (true, false, false) => Step::Done,
        }
    }
}

fn parse_ana(data: &[u8]) -> Option<Vec<AnaEntry>> {
    let log = AnaLog::parse(data)?;
    let mut entries = Vec::new();
    for group in log.groups() {
        let Some(group) = group else {
            log::warn!("ana log page is cut short groups={}", log.header.ngrps.get());
            break;
        };
        let state = group.descriptor.state();
        entries.extend(group.nsids.iter().map(|nsid| AnaEntry { nsid: nsid.get(), state }));
    }
    Some(entries)
}

/// Namespaces of one controller that become devices; more are not looked at.
const MAX_NAMESPACES: u32 = 16_384;

#[cfg(test)]
mod tests {
    use nvme_spec::completion::StatusField;
    use nvme_spec::identify::{IDENTIFY_SIZE, LbaFormat};
    use nvme_spec::status::StatusCode;
    use zerocopy::little_endian::U32;
    use zerocopy::{FromZeros, IntoBytes};

    use super::*;

    const GOOD: StatusField = StatusField::SUCCESS;

    fn facts(has_ana: bool) -> ControllerFacts {
        ControllerFacts { version: (2, 0, 0), has_ana, ana_log_bytes: 256, ..ControllerFacts::default() }
    }

    fn list(nsids: &[u32]) -> Vec<u8> {
        let mut list = NamespaceList::new_zeroed();
        for (entry, nsid) in list.0.iter_mut().zip(nsids) {
            *entry = U32::new(*nsid);
        }
        list.as_bytes().to_vec()
    }

    fn page() -> Vec<u8> {
        let mut id = IdentifyNamespace::new_zeroed();
        id.nsze.set(100);
        let mut format = LbaFormat::new_zeroed();
        format.lbads = 9;
        id.lbaf[0] = format;
        id.as_bytes().to_vec()
    }

    fn give(scan: &mut Scan, status: StatusField, data: &[u8]) {
        scan.answered(&Cqe::new(0, 0, status), data).unwrap();
    }

    #[test]
    fn an_empty_controller_has_no_namespaces() {
        let mut scan = Scan::all(&facts(false));
        give(&mut scan, GOOD, &list(&[]));
        assert!(scan.command().is_none());
        assert!(scan.finish().namespaces.is_empty());
    }

    #[test]
    fn a_namespace_that_fails_is_left_out_and_the_scan_goes_on() {
        let mut scan = Scan::all(&facts(true));
        give(&mut scan, GOOD, &list(&[1, 2, 5]));
        give(&mut scan, GOOD, &page());
        give(&mut scan, GOOD, &[0; IDENTIFY_SIZE]);
        give(&mut scan, StatusField::new(StatusCode::INTERNAL_ERROR), &[]);
        give(&mut scan, GOOD, &page());
        give(&mut scan, StatusField::new(StatusCode::INVALID_FIELD), &[]);
        give(&mut scan, StatusField::new(StatusCode::INTERNAL_ERROR), &[]);
        assert!(scan.command().is_none());
        let found = scan.finish();
        assert_eq!(found.namespaces.iter().map(|facts| facts.nsid).collect::<Vec<_>>(), [1, 5]);
        assert!(found.is_ana_unreadable);
    }

    #[test]
    fn a_full_list_is_continued_and_one_that_does_not_ascend_ends() {
        let nsids: Vec<u32> = (1..=1024).collect();
        let mut scan = Scan::all(&facts(false));
        give(&mut scan, GOOD, &list(&nsids));
        for _ in 0..1024 {
            give(&mut scan, StatusField::new(StatusCode::INTERNAL_ERROR), &[]);
        }
        assert_eq!(scan.step, Step::List { after: 1024 });
        give(&mut scan, GOOD, &list(&nsids));
        assert!(scan.command().is_none(), "the same list again is the end");
    }
}
