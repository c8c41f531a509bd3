//! Reading a discovery log page: the commands, one after the other, and what
//! their answers say. Sans-IO, as `controller::setup`.
//!
//! The page may change while it is read; then its generation differs at the end
//! and the reading begins anew, a few times at most. Does not attach anything.

use nvme_spec::completion::Cqe;
use nvme_spec::discovery::{DiscoveryEntry, DiscoveryHeader, SecureChannel, SubsystemType};
use nvme_spec::log::LogPageId;
use nvme_spec::status::CommandKind;
use tenon_sdk::FabricAddress;
use zerocopy::FromBytes;

use crate::controller::command::AdminCommand;
use crate::controller::setup::SetupError;

/// What an entry of the page stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EntryKind {
    /// A subsystem with namespaces.
    Nvm,
    /// Another discovery service.
    Referral,
}

/// An entry of the page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LogEntry {
    pub(crate) kind: EntryKind,
    pub(crate) address: FabricAddress,
    /// It wants a secure channel.
    pub(crate) is_secure: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// The header, which says how many entries there are.
    Header,
    /// Entries from this one on.
    Entries {
        from: usize,
    },
    /// The header again: it is the same page if its generation is.
    Again,
    Done,
}

/// A page being read.
#[derive(Clone, Debug)]
pub(crate) struct LogReading {
    step: Step,
    generation: u64,
    count: usize,
    begun: u32,
    entries: Vec<LogEntry>,
}

impl LogReading {
    pub(crate) fn new() -> Self {
        LogReading { step: Step::Header, generation: 0, count: 0, begun: 1, entries: Vec::new() }
    }

    /// What to send now; `None` if the page is read.
    pub(crate) fn command(&self) -> Option<AdminCommand> {
        let (offset, len, retains) = match self.step {
            Step::Header => (0, HEADER_BYTES, true),
            Step::Entries { from } => {
                let count = (self.count - from).min(ENTRIES_AT_ONCE);
                ((HEADER_BYTES + from * ENTRY_BYTES) as u64, count * ENTRY_BYTES, true)
            }
            // The last command of a reading lets the next event come.
            Step::Again => (0, HEADER_BYTES, false),
            Step::Done => return None,
        };
        Some(AdminCommand::log_page(LogPageId::DISCOVERY, offset, len, retains))
    }

    /// Takes the answer to [`LogReading::command`].
    pub(crate) fn answered(&mut self, cqe: &Cqe, data: &[u8]) -> Result<(), SetupError> {
        if !cqe.status.is_success() {
            let (step, kind) = ("reading the discovery log page", CommandKind::AdminOrIo);
            return Err(SetupError::Refused { step, status: cqe.status.code(), kind });
        }
        match self.step {
            Step::Header => {
                let header = header_of(data)?;
                self.generation = header.genctr.get();
                self.count = usize::try_from(header.numrec.get()).unwrap_or(usize::MAX);
                if self.count > MAX_ENTRIES {
                    log::warn!("discovery log page is longer than what is read entries={}", self.count);
                    self.count = MAX_ENTRIES;
                }
                self.step = self.after(0);
            }
            Step::Entries { from } => {
                let read = data.chunks_exact(ENTRY_BYTES).take(self.count - from);
                let whole = read.len();
                self.entries.extend(read.filter_map(entry_of));
                if whole == 0 {
                    return Err(SetupError::Unsupported("the discovery log page is cut short".to_owned()));
                }
                self.step = self.after(from + whole);
            }
            Step::Again if header_of(data)?.genctr.get() == self.generation => self.step = Step::Done,
            Step::Again if self.begun == MAX_ATTEMPTS => {
                return Err(SetupError::Unsupported(
                    "the discovery log page does not come to rest".to_owned(),
                ));
            }
            Step::Again => *self = LogReading { begun: self.begun + 1, ..LogReading::new() },
            Step::Done => {}
        }
        Ok(())
    }

    fn after(&self, read: usize) -> Step {
        if read < self.count { Step::Entries { from: read } } else { Step::Again }
    }

    /// What the page says, once there is no command any more.
    pub(crate) fn finish(self) -> Vec<LogEntry> {
        self.entries
    }
}

fn header_of(data: &[u8]) -> Result<&DiscoveryHeader, SetupError> {
    let header = DiscoveryHeader::ref_from_prefix(data).ok().map(|(header, _)| header);
    let header =
        header.ok_or_else(|| SetupError::Unsupported("the discovery log page has no header".to_owned()))?;
    match header.recfmt.get() {
        0 => Ok(header),
        format => {
            Err(SetupError::Unsupported(format!("the discovery log page has the unknown format {format}")))
        }
    }
}

/// The entry, unless it stands for what this module does not follow or cannot read.
fn entry_of(data: &[u8]) -> Option<LogEntry> {
    let (entry, _) = DiscoveryEntry::ref_from_prefix(data).ok()?;
    let kind = match entry.subtype {
        SubsystemType::NVM => EntryKind::Nvm,
        SubsystemType::REFERRAL => EntryKind::Referral,
        // Where the page came from, by this address or another.
        _ => return None,
    };
    let texts = (entry.traddr.as_str(), entry.trsvcid.as_str(), entry.subnqn.as_str().ok());
    let (Some(traddr), Some(trsvcid), Some(subnqn)) = texts else {
        log::warn!("discovery log entry is not readable entry={entry:?}");
        return None;
    };
    let address = FabricAddress {
        trtype: entry.trtype.0,
        adrfam: entry.adrfam.0,
        traddr: traddr.to_owned(),
        trsvcid: trsvcid.to_owned(),
        subnqn: subnqn.to_owned(),
    };
    Some(LogEntry { kind, address, is_secure: entry.treq.secure_channel() == SecureChannel::REQUIRED })
}

const HEADER_BYTES: usize = size_of::<DiscoveryHeader>();
const ENTRY_BYTES: usize = size_of::<DiscoveryEntry>();
/// Entries of one command, so that every controller's transfer limit has room for it.
const ENTRIES_AT_ONCE: usize = 4;
/// Entries of a page that are read.
pub(crate) const MAX_ENTRIES: usize = 1024;
/// How often a page that changes meanwhile is read.
const MAX_ATTEMPTS: u32 = 8;

#[cfg(test)]
mod tests {
    use nvme_spec::completion::StatusField;
    use nvme_spec::discovery::{AddressFamily, TransportType};
    use nvme_spec::nqn::NqnField;
    use nvme_spec::status::StatusCode;
    use nvme_spec::text::AsciiField;
    use zerocopy::{FromZeros, IntoBytes};

    use super::*;

    fn page(generation: u64, subtypes: &[SubsystemType]) -> Vec<u8> {
        let mut page = DiscoveryHeader::new(generation, subtypes.len() as u64).as_bytes().to_vec();
        for (at, subtype) in subtypes.iter().enumerate() {
            let mut entry = DiscoveryEntry::new_zeroed();
            (entry.trtype, entry.adrfam, entry.subtype) = (TransportType::TCP, AddressFamily::IPV4, *subtype);
            entry.traddr = AsciiField::new("10.0.0.1").unwrap();
            entry.trsvcid = AsciiField::new(&format!("{}", 4420 + at)).unwrap();
            entry.subnqn = NqnField::new("nqn.2026-01.io.tenon:a").unwrap();
            page.extend_from_slice(entry.as_bytes());
        }
        page
    }

    /// Answers a command of the reading with what it asks of `page`.
    fn give(reading: &mut LogReading, page: &[u8]) -> Result<(), SetupError> {
        let command = reading.command().expect("it is not over");
        let get: &nvme_spec::admin::GetLogPage = command.sqe.view();
        let crate::controller::command::Data::In(len) = command.data else { panic!("reads") };
        let from = get.lpo.get() as usize;
        let data: Vec<u8> = page.iter().copied().skip(from).chain(std::iter::repeat(0)).take(len).collect();
        reading.answered(&Cqe::new(0, 0, StatusField::SUCCESS), &data)
    }

    #[test]
    fn a_page_of_several_commands_is_read_as_a_whole() {
        let (nvm, referral) = (SubsystemType::NVM, SubsystemType::REFERRAL);
        let page = page(7, &[nvm, SubsystemType::CURRENT_DISCOVERY, nvm, referral, nvm, nvm, nvm, nvm, nvm]);
        let mut reading = LogReading::new();
        let mut commands = 0;
        while reading.command().is_some() {
            give(&mut reading, &page).unwrap();
            commands += 1;
        }
        assert_eq!(commands, 5, "two headers, three pieces");
        let entries = reading.finish();
        let ports: Vec<&str> = entries.iter().map(|entry| &*entry.address.trsvcid).collect();
        assert_eq!(ports, ["4420", "4422", "4423", "4424", "4425", "4426", "4427", "4428"]);
        assert_eq!(entries[2].kind, EntryKind::Referral);
        assert_eq!((entries[0].address.trtype, &*entries[0].address.traddr), (3, "10.0.0.1"));
    }

    #[test]
    fn a_page_that_changes_is_read_again_and_not_for_ever() {
        let old = page(1, &[SubsystemType::NVM]);
        let new = page(2, &[SubsystemType::NVM, SubsystemType::NVM]);
        let mut reading = LogReading::new();
        give(&mut reading, &old).unwrap();
        give(&mut reading, &old).unwrap();
        while reading.command().is_some() {
            give(&mut reading, &new).unwrap();
        }
        assert_eq!(reading.finish().len(), 2);
        let (mut reading, mut generation) = (LogReading::new(), 0);
        let error = loop {
            generation += 1;
            if let Err(error) = give(&mut reading, &page(generation, &[])) {
                break error;
            }
            assert!(generation < 100, "it ends");
        };
        assert!(error.to_string().contains("does not come to rest"), "{error}");
    }

    #[test]
    fn what_a_controller_may_say_wrongly_is_an_error_with_words() {
        let mut reading = LogReading::new();
        let refused = Cqe::new(0, 0, StatusField::new(StatusCode::INTERNAL_ERROR));
        assert!(reading.answered(&refused, &[]).is_err());
        assert!(reading.answered(&Cqe::new(0, 0, StatusField::SUCCESS), &[0; 3]).is_err());
        let mut huge = page(1, &[]);
        huge[8..16].copy_from_slice(&u64::MAX.to_le_bytes());
        give(&mut reading, &huge).unwrap();
        assert_eq!(reading.count, MAX_ENTRIES, "bounded");
        assert!(reading.answered(&Cqe::new(0, 0, StatusField::SUCCESS), &[]).is_err(), "cut short");
    }
}
