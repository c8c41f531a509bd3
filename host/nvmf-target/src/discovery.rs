//! Discovery: the log page of a discovery controller, referrals, and who is
//! told when the page changes.
//!
//! The page is made for one host: only subsystems it may use are in it. Its
//! generation counts every change that any host might see.

use std::rc::Rc;

use nvme_spec::discovery::{
    AddressFamily, DiscoveryEntry, DiscoveryHeader, EntryFlags, SecureChannel, SubsystemType,
    TransportRequirements, TransportType, Tsas,
};
use nvme_spec::fabrics::{ADMIN_QUEUE_MIN_ENTRIES, CNTLID_DYNAMIC};
use nvme_spec::nqn::{self, NqnField};
use nvme_spec::text::AsciiField;
use zerocopy::IntoBytes;

use crate::config::{Address, DiscoveryFilter, Referral};
use crate::controller::aer::EventKind;
use crate::error::TargetError;
use crate::listener::family_of;
use crate::queue::command::zeroed;
use crate::subsystem::Subsystem;
use crate::target::Target;

impl Target {
    /// Points hosts to another discovery service.
    pub fn add_referral(&self, referral: Referral) -> Result<(), TargetError> {
        let address = &referral.address;
        if family_of(&address.adrfam).is_none() || trtype_of(&address.trtype).is_none() {
            return Err(TargetError::invalid(
                format!("referral {address}"),
                "transport or family is unknown",
            ));
        }
        nqn::validate(&referral.subnqn)
            .map_err(|error| TargetError::invalid(format!("referral {address}"), error.to_string()))?;
        let mut referrals = self.inner.referrals.borrow_mut();
        if referrals.iter().any(|other| other.address == *address && other.subnqn == referral.subnqn) {
            let object = "discovery".to_owned();
            return Err(TargetError::ListenerExists { object, address: address.to_string() });
        }
        if referrals.len() >= MAX_REFERRALS {
            return Err(TargetError::TooMany { object: "referrals".into(), limit: MAX_REFERRALS });
        }
        referrals.push(referral);
        drop(referrals);
        self.discovery_changed();
        Ok(())
    }

    /// Forgets a referral.
    pub fn remove_referral(&self, address: &Address, subnqn: &str) -> Result<(), TargetError> {
        let mut referrals = self.inner.referrals.borrow_mut();
        let at = referrals.iter().position(|other| other.address == *address && other.subnqn == subnqn);
        let Some(at) = at else {
            return Err(TargetError::NoListener { object: "discovery".into(), address: address.to_string() });
        };
        referrals.remove(at);
        drop(referrals);
        self.discovery_changed();
        Ok(())
    }

    /// The referrals there are.
    pub fn referrals(&self) -> Vec<Referral> {
        self.inner.referrals.borrow().clone()
    }

    /// Some host may see another discovery log from now on.
    pub(crate) fn discovery_changed(&self) {
        let generation = self.inner.discovery_generation.get() + 1;
        self.inner.discovery_generation.set(generation);
        self.refresh_mdns();
        if let Some(discovery) = self.discovery_subsystem() {
            self.raise(&discovery, EventKind::Discovery, None);
        }
    }

    /// The discovery log page for a host that came by `listener`.
    pub(crate) fn discovery_log(&self, hostnqn: &str, listener: u64) -> Vec<u8> {
        let mut entries: Vec<DiscoveryEntry> = Vec::new();
        let subsystems: Vec<Rc<Subsystem>> = self.inner.subsystems.borrow().values().cloned().collect();
        for subsystem in subsystems {
            if subsystem.is_discovery {
                entries.extend(self.entry(&subsystem, listener, SubsystemType::CURRENT_DISCOVERY));
            } else if subsystem.allows(hostnqn) {
                let listeners: Vec<u64> = subsystem.listeners.borrow().keys().copied().collect();
                let shown = listeners.into_iter().filter(|number| self.is_shown(listener, *number));
                entries.extend(shown.filter_map(|number| self.entry(&subsystem, number, SubsystemType::NVM)));
            }
        }
        entries.extend(self.inner.referrals.borrow().iter().filter_map(referral_entry));
        let header = DiscoveryHeader::new(self.inner.discovery_generation.get(), entries.len() as u64);
        let mut page = header.as_bytes().to_vec();
        entries.iter().for_each(|entry| page.extend_from_slice(entry.as_bytes()));
        page
    }

    /// Which listeners hosts are told of from now on.
    pub fn set_discovery_filter(&self, filter: DiscoveryFilter) {
        if self.inner.discovery_filter.replace(filter) != filter {
            self.discovery_changed();
        }
    }

    /// Which listeners hosts are told of.
    pub fn discovery_filter(&self) -> DiscoveryFilter {
        self.inner.discovery_filter.get()
    }

    /// Whether a host that came by one listener is told of another.
    fn is_shown(&self, came: u64, other: u64) -> bool {
        let listeners = self.inner.listeners.borrow();
        match (listeners.get(&came), listeners.get(&other)) {
            (Some(came), Some(other)) => {
                self.inner.discovery_filter.get().shows(&came.address, &other.address)
            }
            (None, _) | (_, None) => true,
        }
    }

    fn entry(&self, subsystem: &Subsystem, number: u64, subtype: SubsystemType) -> Option<DiscoveryEntry> {
        let info = self.discovery_info(number);
        let listeners = self.inner.listeners.borrow();
        let listener = listeners.get(&number)?;
        let mut entry = located(&listener.address, &subsystem.nqn)?;
        entry.subtype = subtype;
        // Only in these two combinations does nvme-cli know the value.
        entry.treq = if listener.is_secure {
            TransportRequirements(info.treq).with_secure_channel(SecureChannel::REQUIRED)
        } else {
            TransportRequirements(info.treq)
                .with(TransportRequirements::SQ_FLOW_CONTROL_OPTIONAL)
                .with_secure_channel(SecureChannel::NOT_SPECIFIED)
        };
        entry.portid.set(listener.port);
        entry.tsas = Tsas(info.tsas);
        if subsystem.is_discovery {
            entry.eflags = EntryFlags::EPCSD | EntryFlags::DUPRETINFO;
        }
        Some(entry)
    }
}

fn referral_entry(referral: &Referral) -> Option<DiscoveryEntry> {
    let mut entry = located(&referral.address, &referral.subnqn)?;
    entry.subtype = SubsystemType::REFERRAL;
    let secure = if referral.secure_channel { SecureChannel::REQUIRED } else { SecureChannel::NOT_SPECIFIED };
    entry.treq = TransportRequirements::EMPTY.with_secure_channel(secure);
    Some(entry)
}

/// An entry for an address, without what the kind of entry decides.
fn located(address: &Address, subnqn: &str) -> Option<DiscoveryEntry> {
    let mut entry: DiscoveryEntry = zeroed();
    entry.trtype = trtype_of(&address.trtype)?;
    entry.adrfam = family_of(&address.adrfam).unwrap_or(AddressFamily::IPV4);
    entry.cntlid.set(CNTLID_DYNAMIC);
    entry.asqsz.set(ADMIN_QUEUE_MIN_ENTRIES);
    entry.trsvcid = AsciiField::new(&address.trsvcid)?;
    entry.traddr = AsciiField::new(&address.traddr)?;
    entry.subnqn = NqnField::new(subnqn).ok()?;
    Some(entry)
}

fn trtype_of(name: &str) -> Option<TransportType> {
    Some(match name.to_ascii_lowercase().as_str() {
        "tcp" => TransportType::TCP,
        "rdma" => TransportType::RDMA,
        "fc" => TransportType::FIBRE_CHANNEL,
        "loop" => TransportType::LOOP,
        _ => return None,
    })
}

/// Most referrals.
const MAX_REFERRALS: usize = 256;
