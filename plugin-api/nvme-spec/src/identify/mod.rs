//! Identify: what the CNS values are called and which data structure each returns.
//!
//! The 4096-byte structures are in [`controller`] and [`namespace`], lists of
//! identifiers in [`list`]. The command itself is [`crate::admin::Identify`].

pub mod controller;
pub mod list;
pub mod namespace;

pub use controller::{IdentifyController, PowerState};
pub use list::{ControllerList, IdDescriptor, IdDescriptors, NamespaceList};
pub use namespace::{IdentifyNamespace, IdentifyNamespaceIndependent, LbaFormat};

/// Size of every Identify data structure. Base 2.0c §5.17.
pub const IDENTIFY_SIZE: usize = 4096;

open_enum! {
    /// Controller or Namespace Structure: what Identify is to return. Base 2.0c §5.17.
    pub struct Cns(u8) {
        NAMESPACE = 0x00, "Identify Namespace";
        CONTROLLER = 0x01, "Identify Controller";
        ACTIVE_NAMESPACE_LIST = 0x02, "Active Namespace ID list";
        NAMESPACE_DESCRIPTOR_LIST = 0x03, "Namespace Identification Descriptor list";
        NVM_SET_LIST = 0x04, "NVM Set list";
        COMMAND_SET_NAMESPACE = 0x05, "I/O Command Set specific Identify Namespace";
        COMMAND_SET_CONTROLLER = 0x06, "I/O Command Set specific Identify Controller";
        COMMAND_SET_ACTIVE_NAMESPACE_LIST = 0x07, "I/O Command Set specific Active Namespace ID list";
        INDEPENDENT_NAMESPACE = 0x08, "I/O Command Set Independent Identify Namespace";
        FORMAT_NAMESPACE = 0x09, "Identify Namespace for a user data format";
        COMMAND_SET_FORMAT_NAMESPACE = 0x0a, "I/O Command Set specific Identify Namespace for a user data format";
        ALLOCATED_NAMESPACE_LIST = 0x10, "Allocated Namespace ID list";
        ALLOCATED_NAMESPACE = 0x11, "Identify Namespace for an allocated namespace";
        NAMESPACE_CONTROLLER_LIST = 0x12, "Controller list of a namespace";
        CONTROLLER_LIST = 0x13, "Controller list of the NVM subsystem";
        PRIMARY_CONTROLLER_CAPABILITIES = 0x14, "Primary Controller Capabilities";
        SECONDARY_CONTROLLER_LIST = 0x15, "Secondary Controller list";
        NAMESPACE_GRANULARITY_LIST = 0x16, "Namespace Granularity list";
        UUID_LIST = 0x17, "UUID list";
        DOMAIN_LIST = 0x18, "Domain list";
        ENDURANCE_GROUP_LIST = 0x19, "Endurance Group list";
        COMMAND_SET_ALLOCATED_NAMESPACE_LIST = 0x1a, "I/O Command Set specific Allocated Namespace ID list";
        COMMAND_SET_ALLOCATED_NAMESPACE = 0x1b, "I/O Command Set specific Identify for an allocated namespace";
        COMMAND_SET_COMBINATIONS = 0x1c, "Identify I/O Command Set";
    }
}

open_enum! {
    /// Command Set Identifier. Base 2.0c §5.17.
    pub struct Csi(u8) {
        NVM = 0x00, "NVM Command Set";
        KEY_VALUE = 0x01, "Key Value Command Set";
        ZONED_NAMESPACE = 0x02, "Zoned Namespace Command Set";
    }
}
