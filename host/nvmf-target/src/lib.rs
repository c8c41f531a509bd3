//! The NVMe-oF target core, blind to transports: subsystems, controllers,
//! namespaces, listeners, hosts, queues, and every command between them.
//!
//! # Architecture
//!
//! ```text
//!        control reactor                               data reactors
//!   Target ── Subsystem ── Controller      capsules    ReactorSide ── QueuePair ◄── transport
//!      │          │   └── Namespace ─┐  ◄──────────────    │              │
//!   listeners   hosts                └──────────────►  SubsystemSide ── NamespaceSide ── channel
//!                                     answers, views
//! ```
//!
//! * Topology, Connect, properties and admin commands belong to the control reactor, one at a time. I/O
//!   commands run on the reactor of their connection, against its view of the subsystem: no message, lock or
//!   allocation per command once pools are warm.
//! * Views are replaced by messages. A namespace that is taken away finishes its commands; its device is
//!   closed after the last one, on the last reactor.
//! * A paused subsystem holds I/O commands only, and resumes by itself at its deadline.
//! * A request belongs to the transport, to the queue, to the device or to the control reactor; its command's
//!   stage tells which. It goes back to the transport exactly once, by `request_complete`, also when its
//!   connection closes.
//!
//! # Files
//!
//! `target` owns all and joins the reactors; `subsystem`, `namespace`, `host_access`, `listener`, `ana`, `discovery`
//! and `transports` are its objects and their public operations, `config` and `error` their words.
//! `controller` serves fabrics and admin commands, `queue` is the data path, `transport` what it knows of a
//! transport, `mdns` tells the network of listeners, `auth` how hosts prove who they are, `keyring` by which keys,
//! `reservation` who may use a namespace, `limits` how much, `status` the one mapping of device statuses, `report`
//! what reactors know, `post` messages that must arrive, `jobs` work for the workers.
//!
//! # Not implemented
//!
//! These answer as a controller without them: Invalid Opcode or Invalid Field, and no bit that promises them.
//! * Namespace management by hosts: namespaces are the operator's.
//! * Copy, Verify and Write Uncorrectable on devices that do not declare them. (What else a device lacks, the
//!   gate makes of reads and writes: Compare, Write Zeroes, fused Compare and Write.)
//! * Protection information, and separate metadata: hosts see such a device without its metadata.

mod ana;
mod auth;
mod config;
mod controller;
mod discovery;
mod error;
mod host_access;
mod jobs;
mod keyring;
mod keyring_table;
mod limits;
mod listener;
mod mdns;
mod namespace;
mod post;
mod queue;
mod report;
mod reservation;
mod status;
mod subsystem;
mod target;
mod transport;
mod transport_table;
mod transports;

pub use auth::{AuthenticationOptions, AuthenticationSnapshot};
pub use config::{
    Address, DiscoveryFilter, HostKeys, MAX_NAMESPACES, NamespaceSpec, Referral, SubsystemSpec, TargetOptions,
};
pub use controller::ControllerSnapshot;
pub use error::TargetError;
pub use keyring::KeySnapshot;
pub use listener::ListenerSnapshot;
pub use namespace::NamespaceSnapshot;
pub use nvme_spec::auth::{DhGroupId, HashId};
pub use nvme_spec::log::AnaState;
pub use queue::interface::IoCounts;
pub use queue::side::ReactorCounts;
pub use report::{NamespaceReport, QueueSnapshot, ReactorReport};
pub use reservation::ReservationSnapshot;
pub use status::unknown_statuses;
pub use subsystem::{SubsystemSnapshot, SubsystemState};
pub use target::{Target, TargetCounts};
pub use transport_table::TransportUse;
