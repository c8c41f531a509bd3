//! Why an operator's wish cannot be granted.

use tenon_bdev::OpError;

use tenon_abi::errno;

/// A refused change of the target.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    /// No subsystem of that name.
    #[error("subsystem {0} does not exist")]
    NoSubsystem(String),
    /// The name is taken.
    #[error("subsystem {0} exists already")]
    SubsystemExists(String),
    /// The subsystem is being deleted.
    #[error("subsystem {0} is being deleted")]
    SubsystemGoing(String),
    /// Not a valid value.
    #[error("{object}: {reason}")]
    Invalid {
        /// What it is about.
        object: String,
        /// What is wrong with it.
        reason: String,
    },
    /// No namespace of that number.
    #[error("subsystem {nqn} has no namespace {nsid}")]
    NoNamespace {
        /// The subsystem.
        nqn: String,
        /// The number.
        nsid: u32,
    },
    /// The number is taken.
    #[error("subsystem {nqn} has a namespace {nsid} already")]
    NamespaceExists {
        /// The subsystem.
        nqn: String,
        /// The number.
        nsid: u32,
    },
    /// No such host in the list.
    #[error("host {host} is not in the list of {object}")]
    NoHost {
        /// The host.
        host: String,
        /// Whose list.
        object: String,
    },
    /// The host is in the list.
    #[error("host {host} is in the list of {object} already")]
    HostExists {
        /// The host.
        host: String,
        /// Whose list.
        object: String,
    },
    /// No such listener or referral.
    #[error("{object} has no listener {address}")]
    NoListener {
        /// Whose.
        object: String,
        /// Which.
        address: String,
    },
    /// The listener or referral exists.
    #[error("{object} has a listener {address} already")]
    ListenerExists {
        /// Whose.
        object: String,
        /// Which.
        address: String,
    },
    /// No transport of that type was created.
    #[error("transport {0} does not exist")]
    NoTransport(String),
    /// The transport was created before.
    #[error("transport {0} exists already")]
    TransportExists(String),
    /// Listeners use the transport.
    #[error("transport {0} is in use")]
    TransportBusy(String),
    /// A bound is reached.
    #[error("{object}: no more than {limit} are possible")]
    TooMany {
        /// What there would be too many of.
        object: String,
        /// How many there may be.
        limit: usize,
    },
    /// A step did not end in time.
    #[error("{object}: {step} did not end within {seconds} s")]
    TimedOut {
        /// What it is about.
        object: String,
        /// What was waited for.
        step: &'static str,
        /// The deadline.
        seconds: u64,
    },
    /// A device or a transport refused.
    #[error("{object} is refused: {source}")]
    Refused {
        /// What was asked for.
        object: String,
        /// The refusal.
        #[source]
        source: OpError,
    },
    /// No key of that name.
    #[error("key {0} does not exist")]
    NoKey(String),
    /// The name of a key is taken.
    #[error("key {0} exists already")]
    KeyExists(String),
    /// A host uses the key.
    #[error("key {0} is in use by a host")]
    KeyInUse(String),
    /// Listeners are announced by mDNS.
    #[error("mdns: listeners are announced already")]
    MdnsPublished,
    /// Listeners are not announced by mDNS.
    #[error("mdns: listeners are not announced")]
    MdnsNotPublished,
    /// There is no mDNS responder.
    #[error("mdns: no responder: {0}")]
    Mdns(String),
    /// The target is shutting down.
    #[error("the target is shutting down")]
    ShuttingDown,
}

impl TargetError {
    /// The error as a negative errno, for programs.
    pub fn code(&self) -> i32 {
        match self {
            Self::NoSubsystem(_)
            | Self::NoNamespace { .. }
            | Self::NoHost { .. }
            | Self::NoListener { .. }
            | Self::NoTransport(_)
            | Self::NoKey(_)
            | Self::MdnsNotPublished => errno::ENOENT,
            Self::SubsystemExists(_)
            | Self::NamespaceExists { .. }
            | Self::HostExists { .. }
            | Self::ListenerExists { .. }
            | Self::TransportExists(_)
            | Self::KeyExists(_)
            | Self::MdnsPublished => errno::EEXIST,
            Self::SubsystemGoing(_) | Self::TransportBusy(_) | Self::KeyInUse(_) => errno::EBUSY,
            Self::Invalid { .. } => errno::EINVAL,
            Self::TooMany { .. } => errno::ENOSPC,
            Self::TimedOut { .. } => errno::ETIMEDOUT,
            Self::Refused { source, .. } => source.code,
            Self::Mdns(_) => errno::EIO,
            Self::ShuttingDown => errno::ESHUTDOWN,
        }
    }

    pub(crate) fn invalid(object: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Invalid { object: object.into(), reason: reason.into() }
    }
}
