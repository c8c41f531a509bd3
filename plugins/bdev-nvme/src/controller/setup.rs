//! From a connected admin queue to a controller that serves: the commands, one
//! after the other, and what their answers say. Sans-IO: `controller` sends
//! what [`Setup::command`] wants and hands the answer to [`Setup::answered`].

use std::sync::Arc;

use nvme_spec::completion::Cqe;
use nvme_spec::fabrics::{CNTLID_DYNAMIC, ConnectResult};
use nvme_spec::features::{AsyncEventConfig, NumberOfQueues};
use nvme_spec::identify::controller::{Cmic, ControllerType, Ctratt, Fuses, Oncs, Vwc};
use nvme_spec::identify::{Cns, IdentifyController};
use nvme_spec::property::{
    Capabilities, CommandSetSelected, ControllerConfiguration, ControllerStatus, PropertyOffset, Version,
};
use nvme_spec::status::{CommandKind, StatusCode};
use zerocopy::FromBytes;
use zerocopy::little_endian::{U32, U64};

use super::command::{AdminCommand, HostIdentity};
use crate::authenticate;
use crate::credentials::Credentials;
use crate::text::ascii;

/// What a controller says about itself, as far as this module uses it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ControllerFacts {
    pub(crate) cntlid: u16,
    pub(crate) serial_number: String,
    pub(crate) model_number: String,
    pub(crate) firmware_revision: String,
    pub(crate) subnqn: String,
    pub(crate) vendor_id: u16,
    pub(crate) version: (u16, u8, u8),
    /// Most bytes of one transfer; `None` if there is no limit.
    pub(crate) max_transfer_bytes: Option<u64>,
    /// Entries an I/O queue may have.
    pub(crate) max_queue_entries: u32,
    /// I/O queues granted; 0 for a discovery controller.
    pub(crate) io_queues: u16,
    /// Most in-capsule data of an I/O queue.
    pub(crate) in_capsule_bytes: u32,
    pub(crate) oncs: u16,
    pub(crate) oacs: u16,
    pub(crate) can_fuse: bool,
    /// Its copy commands take source ranges of format 0.
    pub(crate) copies_by_ranges: bool,
    pub(crate) has_write_cache: bool,
    pub(crate) has_ana: bool,
    pub(crate) anatt_sec: u8,
    /// Room the ANA log page may need.
    pub(crate) ana_log_bytes: usize,
    pub(crate) max_namespaces: u32,
    pub(crate) retry_delays_100ms: [u16; 3],
    /// Asynchronous event requests it takes at once.
    pub(crate) max_async_events: u16,
    /// Time in which it lets go of its commands once it has lost its host; 0: it does not say.
    pub(crate) command_quiesce_ms: u16,
    /// Any command keeps it alive.
    pub(crate) keeps_alive_by_traffic: bool,
    pub(crate) is_discovery: bool,
    pub(crate) has_keep_alive: bool,
    pub(crate) multiple_controllers: bool,
}

impl ControllerFacts {
    pub(crate) fn supports(&self, bit: Oncs) -> bool {
        self.oncs & bit.get() != 0
    }

    /// How long it may still carry out commands after its host has lost it; 0 if it does not say.
    pub(crate) fn quiesce_ms(&self, keep_alive_ms: u32) -> u64 {
        if self.command_quiesce_ms == 0 {
            return 0;
        }
        // It notices after one whole period without a command; by traffic, after two.
        let periods = if self.keeps_alive_by_traffic { 3 } else { 2 };
        u64::from(keep_alive_ms) * periods + u64::from(self.command_quiesce_ms)
    }
}

/// Why a controller cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum SetupError {
    /// A command failed.
    Refused { step: &'static str, status: StatusCode, kind: CommandKind },
    /// It wants something this host cannot do.
    Unsupported(String),
    /// It is broken.
    Fatal,
    /// It did not become ready.
    NotReady,
}

impl std::fmt::Display for SetupError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            SetupError::Refused { step, status, kind } => match status.name_for(*kind) {
                Some(name) => write!(f, "{step} was refused: {name}"),
                None => write!(f, "{step} was refused: status {:#x}", status.get()),
            },
            SetupError::Unsupported(what) => f.write_str(what),
            SetupError::Fatal => f.write_str("the controller reports a fatal status"),
            SetupError::NotReady => f.write_str("the controller did not become ready in time"),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Connect,
    Capabilities,
    Version,
    Enable,
    AwaitReady,
    Identify,
    Events,
    Queues,
}

/// What comes after an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    /// The next command.
    Go,
    /// The next command, once the queue has authenticated.
    Authenticate,
    /// The same command again, after a pause.
    Wait { ms: u64 },
    /// Everything is known.
    Done,
}

/// A controller being set up.
#[derive(Clone, Debug)]
pub(crate) struct Setup {
    step: Step,
    host: HostIdentity,
    subnqn: String,
    entries: u16,
    keep_alive_ms: u32,
    wanted_queues: u16,
    credentials: Arc<Credentials>,
    waited_ms: u64,
    ready_timeout_ms: u64,
    page_shift: u32,
    pub(crate) facts: ControllerFacts,
}

impl Setup {
    pub(crate) fn new(
        host: HostIdentity,
        subnqn: String,
        entries: u16,
        keep_alive_ms: u32,
        queues: u16,
    ) -> Self {
        Setup {
            step: Step::Connect,
            host,
            subnqn,
            entries,
            keep_alive_ms,
            wanted_queues: queues.max(1),
            credentials: Arc::default(),
            waited_ms: 0,
            ready_timeout_ms: 0,
            page_shift: 12,
            facts: ControllerFacts::default(),
        }
    }

    /// As one that can authenticate.
    pub(crate) fn with_credentials(self, credentials: Arc<Credentials>) -> Self {
        Setup { credentials, ..self }
    }

    /// What to send now.
    pub(crate) fn command(&self) -> Result<AdminCommand, SetupError> {
        Ok(match self.step {
            Step::Connect => AdminCommand::connect(
                &self.host,
                &self.subnqn,
                0,
                CNTLID_DYNAMIC,
                self.entries,
                self.keep_alive_ms,
            )
            .map_err(|error| SetupError::Unsupported(error.to_string()))?,
            Step::Capabilities => AdminCommand::property_get(PropertyOffset::CAP, true),
            Step::Version => AdminCommand::property_get(PropertyOffset::VS, false),
            Step::Enable => {
                let configuration = ControllerConfiguration::EN
                    .with_css(CommandSetSelected::NVM)
                    .with_entry_sizes(nvme_spec::command::SQES_LOG2, nvme_spec::completion::CQES_LOG2);
                AdminCommand::property_set(PropertyOffset::CC, configuration.get())
            }
            Step::AwaitReady => AdminCommand::property_get(PropertyOffset::CSTS, false),
            Step::Identify => AdminCommand::identify(Cns::CONTROLLER, 0),
            Step::Events => AdminCommand::set_events(wanted_events(self.facts.is_discovery)),
            Step::Queues => AdminCommand::set_queue_count(self.wanted_queues),
        })
    }

    /// Takes the answer to [`Setup::command`].
    pub(crate) fn answered(&mut self, cqe: &Cqe, data: &[u8]) -> Result<Progress, SetupError> {
        // Which events a controller can report is its own matter: one that refuses reports none.
        if !cqe.status.is_success() && self.step != Step::Events {
            let (step, status) = (self.step.name(), cqe.status.code());
            return Err(SetupError::Refused { step, status, kind: self.step.kind() });
        }
        match self.step {
            Step::Connect => {
                let result = ConnectResult::from_dw0(cqe.dw0);
                let needed = authenticate::is_needed(&result, &self.credentials)
                    .map_err(|reason| SetupError::Unsupported(reason.to_owned()))?;
                self.facts.cntlid = result.cntlid.get();
                self.step = Step::Capabilities;
                Ok(if needed { Progress::Authenticate } else { Progress::Go })
            }
            Step::Capabilities => {
                let capabilities = Capabilities(U64::new(cqe.result_u64()));
                self.facts.max_queue_entries = capabilities.max_queue_entries();
                self.ready_timeout_ms = u64::from(capabilities.ready_timeout_ms()).max(MIN_READY_MS);
                self.page_shift = 12 + u32::from(capabilities.mpsmin());
                self.go(Step::Version)
            }
            Step::Version => {
                let version = Version(cqe.dw0);
                self.facts.version = (version.major(), version.minor(), version.tertiary());
                self.go(Step::Enable)
            }
            Step::Enable => self.go(Step::AwaitReady),
            Step::AwaitReady => self.ready(ControllerStatus(cqe.dw0)),
            Step::Identify => {
                self.identify(data)?;
                self.go(Step::Events)
            }
            Step::Events if self.facts.is_discovery => Ok(Progress::Done),
            Step::Events => self.go(Step::Queues),
            Step::Queues => {
                let granted = NumberOfQueues::from_dword(U32::new(cqe.dw0.get()));
                let both = granted.nsq_z.get().min(granted.ncq_z.get());
                self.facts.io_queues = both.saturating_add(1).min(self.wanted_queues);
                Ok(Progress::Done)
            }
        }
    }

    fn go(&mut self, step: Step) -> Result<Progress, SetupError> {
        self.step = step;
        Ok(Progress::Go)
    }

    fn ready(&mut self, status: ControllerStatus) -> Result<Progress, SetupError> {
        if status.contains(ControllerStatus::CFS) {
            return Err(SetupError::Fatal);
        }
        if status.contains(ControllerStatus::RDY) {
            return self.go(Step::Identify);
        }
        if self.waited_ms >= self.ready_timeout_ms {
            return Err(SetupError::NotReady);
        }
        self.waited_ms += READY_STEP_MS;
        Ok(Progress::Wait { ms: READY_STEP_MS })
    }

    fn identify(&mut self, data: &[u8]) -> Result<(), SetupError> {
        let Ok((id, _)) = IdentifyController::ref_from_prefix(data) else {
            return Err(SetupError::Unsupported("identify controller gave too little data".to_owned()));
        };
        let facts = &mut self.facts;
        facts.serial_number = ascii(&id.sn.0);
        facts.model_number = ascii(&id.mn.0);
        facts.firmware_revision = ascii(&id.fr.0);
        facts.subnqn = id.subnqn.as_str().unwrap_or_default().to_owned();
        facts.vendor_id = id.vid.get();
        facts.max_transfer_bytes = (id.mdts != 0)
            .then(|| 1_u64.checked_shl(u32::from(id.mdts) + self.page_shift).unwrap_or(u64::MAX));
        facts.oncs = id.oncs.get();
        facts.oacs = id.oacs.get();
        facts.can_fuse = id.fuses.contains(Fuses::COMPARE_AND_WRITE);
        facts.copies_by_ranges = id.cdfs.get() & 1 != 0;
        facts.has_write_cache = id.vwc.contains(Vwc::PRESENT);
        facts.has_ana = id.cmic.contains(Cmic::ANA);
        facts.multiple_controllers = id.cmic.contains(Cmic::MULTIPLE_CONTROLLERS);
        facts.anatt_sec = id.anatt;
        facts.max_namespaces = match id.mnan.get() {
            0 => id.nn.get(),
            mnan => mnan,
        };
        facts.ana_log_bytes = ana_log_bytes(id.nanagrpid.get(), facts.max_namespaces);
        facts.retry_delays_100ms = [id.crdt1.get(), id.crdt2.get(), id.crdt3.get()];
        facts.max_async_events = u16::from(id.aerl_z) + 1;
        facts.command_quiesce_ms = id.cqt.get();
        facts.keeps_alive_by_traffic = id.ctratt.contains(Ctratt::TRAFFIC_BASED_KEEP_ALIVE);
        facts.is_discovery = id.cntrltype == ControllerType::DISCOVERY;
        facts.has_keep_alive = id.kas.get() != 0;
        let capsule_bytes = id.ioccsz.get().saturating_mul(16);
        facts.in_capsule_bytes = match id.icdoff.get() {
            0 => capsule_bytes.saturating_sub(nvme_spec::command::SQE_SIZE as u32),
            _ => 0,
        };
        Ok(())
    }
}

impl Step {
    fn kind(self) -> CommandKind {
        match self {
            Step::Connect | Step::Capabilities | Step::Version | Step::Enable | Step::AwaitReady => {
                CommandKind::Fabrics
            }
            Step::Identify | Step::Events | Step::Queues => CommandKind::AdminOrIo,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Step::Connect => "connect",
            Step::Capabilities => "property get of the capabilities",
            Step::Version => "property get of the version",
            Step::Enable => "enabling the controller",
            Step::AwaitReady => "property get of the status",
            Step::Identify => "identify controller",
            Step::Events => "set features of asynchronous events",
            Step::Queues => "set features of the number of queues",
        }
    }
}

fn wanted_events(is_discovery: bool) -> AsyncEventConfig {
    if is_discovery {
        return AsyncEventConfig::DISCOVERY_LOG_CHANGE;
    }
    AsyncEventConfig::NAMESPACE_ATTRIBUTE | AsyncEventConfig::ANA_CHANGE
}

/// Header, a descriptor per group, a number per namespace; a page that is longer is read as far as this.
fn ana_log_bytes(groups: u32, namespaces: u32) -> usize {
    let namespaces = namespaces.min(MAX_ANA_NAMESPACES) as usize;
    (16 + groups.clamp(1, MAX_ANA_GROUPS) as usize * 32 + namespaces * 4).next_multiple_of(4)
}

/// Pause between two looks at a controller that is not ready.
const READY_STEP_MS: u64 = 10;
/// Least time a controller has to become ready, whatever it says.
const MIN_READY_MS: u64 = 500;
/// Groups and namespaces of an ANA log page that are read.
const MAX_ANA_GROUPS: u32 = 1024;
const MAX_ANA_NAMESPACES: u32 = 16_384;

#[cfg(test)]
mod tests {
    use nvme_spec::completion::StatusField;
    use nvme_spec::opcode::{AdminOpcode, FABRICS, FabricsType};
    use zerocopy::{FromZeros, IntoBytes};

    use super::*;

    fn setup() -> Setup {
        let host = HostIdentity { nqn: "nqn.2014-08.org.nvmexpress:uuid:1".into(), id: [7; 16] };
        Setup::new(host, "nqn.2026-01.io.tenon:one".into(), 32, 10_000, 4)
    }

    fn answer(setup: &mut Setup, dw0: u32, dw1: u32, data: &[u8]) -> Result<Progress, SetupError> {
        let mut cqe = Cqe::new(0, 0, StatusField::SUCCESS);
        cqe.dw0.set(dw0);
        cqe.dw1.set(dw1);
        setup.answered(&cqe, data)
    }

    fn identify() -> IdentifyController {
        let mut id = IdentifyController::new_zeroed();
        id.mdts = 5;
        id.ioccsz.set((64 + 4096) / 16);
        id.nn.set(8);
        id.oncs = Oncs::WRITE_ZEROES | Oncs::DATASET_MANAGEMENT;
        id
    }

    #[test]
    fn a_controller_is_set_up_in_eight_steps() {
        let mut it = setup();
        assert_eq!(it.command().unwrap().sqe.fabrics_type(), Some(FabricsType::CONNECT));
        assert_eq!(answer(&mut it, 5, 0, &[]), Ok(Progress::Go));
        assert_eq!(it.command().unwrap().sqe.fabrics_type(), Some(FabricsType::PROPERTY_GET));
        assert_eq!(answer(&mut it, 127, 0, &[]), Ok(Progress::Go));
        assert_eq!(answer(&mut it, 0x0002_0000, 0, &[]), Ok(Progress::Go));
        assert_eq!(it.command().unwrap().sqe.fabrics_type(), Some(FabricsType::PROPERTY_SET));
        assert_eq!(answer(&mut it, 0, 0, &[]), Ok(Progress::Go));
        assert_eq!(answer(&mut it, 0, 0, &[]), Ok(Progress::Wait { ms: READY_STEP_MS }));
        assert_eq!(answer(&mut it, 1, 0, &[]), Ok(Progress::Go));
        assert_eq!(it.command().unwrap().sqe.opc, AdminOpcode::IDENTIFY.0);
        assert_eq!(answer(&mut it, 0, 0, identify().as_bytes()), Ok(Progress::Go));
        assert_eq!(it.command().unwrap().sqe.opc, AdminOpcode::SET_FEATURES.0);
        assert_eq!(answer(&mut it, 0, 0, &[]), Ok(Progress::Go));
        assert_eq!(answer(&mut it, 1 << 16 | 1, 0, &[]), Ok(Progress::Done));
        let facts = it.facts;
        assert_eq!((facts.cntlid, facts.max_queue_entries, facts.io_queues), (5, 128, 2));
        assert_eq!((facts.max_transfer_bytes, facts.in_capsule_bytes), (Some(128 << 10), 4096));
        assert!(facts.supports(Oncs::WRITE_ZEROES) && !facts.supports(Oncs::COMPARE));
        assert_eq!(facts.version, (2, 0, 0));
    }

    #[test]
    fn a_refusal_names_the_step_and_the_status() {
        let mut it = setup();
        let refused = Cqe::new(0, 0, StatusField::new(StatusCode::CONNECT_INVALID_HOST));
        let error = it.answered(&refused, &[]).unwrap_err();
        assert_eq!(error.to_string(), "connect was refused: Connect: Invalid Host");
    }

    #[test]
    fn a_controller_that_never_gets_ready_is_given_up() {
        let mut it = setup();
        for dw0 in [5, 0, 0, 0] {
            answer(&mut it, dw0, 0, &[]).unwrap();
        }
        let mut looks = 0;
        let error = loop {
            match answer(&mut it, 0, 0, &[]) {
                Ok(progress) => assert_eq!(progress, Progress::Wait { ms: READY_STEP_MS }),
                Err(error) => break error,
            }
            looks += 1;
        };
        assert_eq!((error, looks), (SetupError::NotReady, MIN_READY_MS / READY_STEP_MS));
        let mut it = setup();
        for dw0 in [5, 0, 0, 0] {
            answer(&mut it, dw0, 0, &[]).unwrap();
        }
        assert_eq!(answer(&mut it, 2, 0, &[]), Err(SetupError::Fatal));
    }

    #[test]
    fn a_controller_that_tells_its_quiesce_time_is_believed_after_its_keep_alive() {
        let facts = ControllerFacts { command_quiesce_ms: 500, ..ControllerFacts::default() };
        assert_eq!(facts.quiesce_ms(10_000), 20_500);
        let by_traffic = ControllerFacts { keeps_alive_by_traffic: true, ..facts };
        assert_eq!(by_traffic.quiesce_ms(10_000), 30_500);
        assert_eq!(by_traffic.quiesce_ms(0), 500);
        assert_eq!(ControllerFacts::default().quiesce_ms(10_000), 0, "it does not say");
    }

    #[test]
    fn a_controller_that_wants_authentication_is_refused_with_words() {
        let error = answer(&mut setup(), 0b10 << 16 | 5, 0, &[]).unwrap_err();
        assert!(error.to_string().contains("authentication"), "{error}");
    }

    #[test]
    fn every_command_is_a_fabrics_or_admin_command() {
        let mut it = setup();
        for step in [
            Step::Connect,
            Step::Capabilities,
            Step::Version,
            Step::Enable,
            Step::AwaitReady,
            Step::Identify,
            Step::Events,
            Step::Queues,
        ] {
            it.step = step;
            let sqe = it.command().unwrap().sqe;
            assert!(sqe.opc == FABRICS || AdminOpcode(sqe.opc).is_known(), "{step:?}");
        }
    }
}
