//! Fabrics and admin commands, as 64 bytes and the size of their data. Pure;
//! what the answers mean is in `setup` and `scan`.

use nvme_spec::admin::{Abort, GetLogPage, Identify, LogSpecific, SetFeatures};
use nvme_spec::auth::{Authentication, SECP_NVME, SPSP_AUTHENTICATION};
use nvme_spec::command::{CommandFlags, Sqe};
use nvme_spec::fabrics::{Connect, ConnectData, PropertyAttributes, PropertyGet, PropertySet};
use nvme_spec::features::{AsyncEventConfig, FeatureId, NumberOfQueues};
use nvme_spec::identify::{Cns, IDENTIFY_SIZE};
use nvme_spec::log::LogPageId;
use nvme_spec::nqn::{HostId, NqnError, NqnField};
use nvme_spec::opcode::{AdminOpcode, FABRICS, FabricsType};
use nvme_spec::property::PropertyOffset;
use tenon_sdk::PayloadOf;
use zerocopy::{FromZeros, IntoBytes};

/// An admin command, and its data.
#[derive(Clone, Debug)]
pub(crate) struct AdminCommand {
    pub(crate) sqe: Sqe,
    pub(crate) data: Data,
}

/// Data of an admin command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Data {
    None,
    Out(Vec<u8>),
    /// As many bytes from the controller.
    In(usize),
}

impl Data {
    /// Which way it travels.
    pub(crate) fn payload(&self) -> PayloadOf<'static> {
        match self {
            Data::None => PayloadOf::None,
            Data::Out(_) => PayloadOf::ToController,
            Data::In(_) => PayloadOf::FromController,
        }
    }
}

/// Who this host is, as Connect tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HostIdentity {
    pub(crate) nqn: String,
    pub(crate) id: [u8; 16],
}

impl HostIdentity {
    /// A host of this NQN: the UUID in it is its identifier, or one is made of it.
    pub(crate) fn named(nqn: &str) -> Self {
        let uuid = nqn
            .rsplit_once(':')
            .and_then(|(_, text)| uuid::Uuid::parse_str(text).ok())
            .unwrap_or_else(|| uuid::Uuid::new_v5(&uuid::Uuid::NAMESPACE_URL, nqn.as_bytes()));
        HostIdentity { nqn: nqn.to_owned(), id: *uuid.as_bytes() }
    }

    /// This machine.
    pub(crate) fn of_machine() -> Self {
        let id = std::fs::read_to_string("/etc/machine-id").unwrap_or_default();
        let id = if id.trim().is_empty() { "no machine id" } else { id.trim() };
        let uuid = uuid::Uuid::new_v5(&uuid::Uuid::NAMESPACE_OID, format!("tenon {id}").as_bytes());
        HostIdentity::named(&format!("{}{uuid}", nvme_spec::nqn::UUID_NQN_PREFIX))
    }
}

impl AdminCommand {
    fn new(sqe: Sqe, data: Data) -> Self {
        AdminCommand { sqe, data }
    }

    /// Connect of a queue.
    pub(crate) fn connect(
        host: &HostIdentity,
        subnqn: &str,
        qid: u16,
        cntlid: u16,
        entries: u16,
        keep_alive_ms: u32,
    ) -> Result<Self, NqnError> {
        let mut connect = Connect::new_zeroed();
        connect.head.opc = FABRICS;
        connect.head.flags = CommandFlags::PSDT_SGL;
        connect.head.fctype = FabricsType::CONNECT;
        connect.qid.set(qid);
        connect.sqsize_z.set(entries.saturating_sub(1));
        connect.kato_ms.set(keep_alive_ms);
        let mut data = ConnectData::new_zeroed();
        data.hostid = HostId(host.id);
        data.cntlid.set(cntlid);
        data.subnqn = NqnField::new(subnqn)?;
        data.hostnqn = NqnField::new(&host.nqn)?;
        Ok(AdminCommand::new(Sqe::from_view(&connect), Data::Out(data.as_bytes().to_vec())))
    }

    pub(crate) fn property_get(offset: PropertyOffset, is_wide: bool) -> Self {
        let mut get = PropertyGet::new_zeroed();
        get.head.opc = FABRICS;
        get.head.flags = CommandFlags::PSDT_SGL;
        get.head.fctype = FabricsType::PROPERTY_GET;
        get.attrib = if is_wide { PropertyAttributes::SIZE_8 } else { PropertyAttributes::SIZE_4 };
        get.ofst = offset;
        AdminCommand::new(Sqe::from_view(&get), Data::None)
    }

    pub(crate) fn property_set(offset: PropertyOffset, value: u32) -> Self {
        let mut set = PropertySet::new_zeroed();
        set.head.opc = FABRICS;
        set.head.flags = CommandFlags::PSDT_SGL;
        set.head.fctype = FabricsType::PROPERTY_SET;
        set.attrib = PropertyAttributes::SIZE_4;
        set.ofst = offset;
        set.value.set(value.into());
        AdminCommand::new(Sqe::from_view(&set), Data::None)
    }

    pub(crate) fn identify(cns: Cns, nsid: u32) -> Self {
        let mut identify = Identify::new_zeroed();
        identify.head.opc = AdminOpcode::IDENTIFY.0;
        identify.head.nsid.set(nsid);
        identify.cns = cns;
        AdminCommand::new(Sqe::from_view(&identify), Data::In(IDENTIFY_SIZE))
    }

    /// `len` bytes of a log page from `offset` on; reading it clears its event unless `retains`.
    pub(crate) fn log_page(page: LogPageId, offset: u64, len: usize, retains: bool) -> Self {
        let mut get = GetLogPage::new_zeroed();
        get.head.opc = AdminOpcode::GET_LOG_PAGE.0;
        get.head.nsid.set(nvme_spec::command::NSID_ALL);
        get.lid = page;
        if retains {
            get.lsp_rae = LogSpecific::RAE;
        }
        get.set_numd_z((len / 4).saturating_sub(1) as u32);
        get.lpo.set(offset);
        AdminCommand::new(Sqe::from_view(&get), Data::In(len))
    }

    pub(crate) fn set_events(events: AsyncEventConfig) -> Self {
        Self::set_feature(FeatureId::ASYNC_EVENT_CONFIGURATION, events.get())
    }

    pub(crate) fn set_queue_count(count: u16) -> Self {
        let count = zerocopy::little_endian::U16::new(count.saturating_sub(1));
        let wanted = NumberOfQueues { nsq_z: count, ncq_z: count };
        Self::set_feature(FeatureId::NUMBER_OF_QUEUES, wanted.to_dword().get())
    }

    fn set_feature(feature: FeatureId, value: u32) -> Self {
        let mut set = SetFeatures::new_zeroed();
        set.head.opc = AdminOpcode::SET_FEATURES.0;
        set.fid = feature;
        set.cdw11.set(value);
        AdminCommand::new(Sqe::from_view(&set), Data::None)
    }

    /// A message of a transaction by which this host authenticates.
    pub(crate) fn authentication_send(message: Vec<u8>) -> Self {
        let sqe = authentication(FabricsType::AUTHENTICATION_SEND, message.len());
        AdminCommand::new(sqe, Data::Out(message))
    }

    /// Asks for such a message, of at most `len` bytes.
    pub(crate) fn authentication_receive(len: usize) -> Self {
        AdminCommand::new(authentication(FabricsType::AUTHENTICATION_RECEIVE, len), Data::In(len))
    }

    pub(crate) fn keep_alive() -> Self {
        Self::plain(AdminOpcode::KEEP_ALIVE)
    }

    pub(crate) fn async_event_request() -> Self {
        Self::plain(AdminOpcode::ASYNCHRONOUS_EVENT_REQUEST)
    }

    pub(crate) fn abort(qid: u16, cid: u16) -> Self {
        let mut abort = Abort::new_zeroed();
        abort.head.opc = AdminOpcode::ABORT.0;
        abort.sqid.set(qid);
        abort.victim_cid.set(cid);
        AdminCommand::new(Sqe::from_view(&abort), Data::None)
    }

    fn plain(opcode: AdminOpcode) -> Self {
        let mut sqe = Sqe::new_zeroed();
        sqe.opc = opcode.0;
        AdminCommand::new(sqe, Data::None)
    }
}

fn authentication(fctype: FabricsType, len: usize) -> Sqe {
    let mut command = Authentication::new_zeroed();
    command.head.opc = FABRICS;
    command.head.flags = CommandFlags::PSDT_SGL;
    command.head.fctype = fctype;
    command.secp = SECP_NVME;
    command.spsp0 = SPSP_AUTHENTICATION;
    command.spsp1 = SPSP_AUTHENTICATION;
    command.length.set(len as u32);
    Sqe::from_view(&command)
}
