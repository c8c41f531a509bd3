//! What is supported and what it does: log pages 00h, 05h and 12h.

use zerocopy::little_endian::U32;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::LogPageId;
use crate::features::FeatureId;
use crate::opcode::{AdminOpcode, IoOpcode};

/// Supported Log Pages (00h): one word per log page identifier. Base 2.0c §5.16.1.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(transparent)]
pub struct LogPagesSupported(pub [LogPageSupport; 256]);

assert_layout!(LogPagesSupported, 1024);

impl LogPagesSupported {
    /// What the page says of a log page.
    #[must_use]
    pub fn get(&self, lid: LogPageId) -> LogPageSupport {
        self.0[usize::from(lid.0)]
    }

    /// Sets what the page says of a log page.
    pub fn set(&mut self, lid: LogPageId, support: LogPageSupport) {
        self.0[usize::from(lid.0)] = support;
    }
}

bit_set! {
    /// LID Supported and Effects; bits 31:16 are specific to the log page. Base 2.0c §5.16.1.1.
    pub struct LogPageSupport(U32 as u32) {
        LSUPP = 1 << 0, "The log page is supported";
        IOS = 1 << 1, "An index as offset is supported";
    }
}

/// Commands Supported and Effects (05h). Base 2.0c §5.16.1.6.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct CommandsSupported {
    /// Admin commands by opcode.
    pub acs: [CommandEffects; 256],
    /// I/O commands of the command set asked for, by opcode.
    pub iocs: [CommandEffects; 256],
    _rsvd2048: [u8; 2048],
}

assert_layout!(CommandsSupported, 4096, acs: 0, iocs: 1024);

impl CommandsSupported {
    /// Sets what the page says of an admin command.
    pub fn set_admin(&mut self, opcode: AdminOpcode, effects: CommandEffects) {
        self.acs[usize::from(opcode.0)] = effects;
    }

    /// Sets what the page says of an I/O command.
    pub fn set_io(&mut self, opcode: IoOpcode, effects: CommandEffects) {
        self.iocs[usize::from(opcode.0)] = effects;
    }
}

bit_set! {
    /// Commands Supported and Effects data structure. Base 2.0c §5.16.1.6.
    pub struct CommandEffects(U32 as u32) {
        CSUPP = 1 << 0, "The command is supported";
        LBCC = 1 << 1, "Logical Block Content Change";
        NCC = 1 << 2, "Namespace Capability Change";
        NIC = 1 << 3, "Namespace Inventory Change";
        CCC = 1 << 4, "Controller Capability Change";
        CSE_NAMESPACE = 1 << 16, "No other command for the same namespace meanwhile";
        CSE_ANY = 1 << 17, "No other command for any namespace meanwhile";
        UUID_SELECTION = 1 << 19, "UUID selection is supported";
        SCOPE_NAMESPACE = 1 << 20, "Scope: namespace";
        SCOPE_CONTROLLER = 1 << 21, "Scope: controller";
        SCOPE_NVM_SET = 1 << 22, "Scope: NVM set";
        SCOPE_ENDURANCE_GROUP = 1 << 23, "Scope: endurance group";
        SCOPE_DOMAIN = 1 << 24, "Scope: domain";
        SCOPE_SUBSYSTEM = 1 << 25, "Scope: NVM subsystem";
    }
}

/// Feature Identifiers Supported and Effects (12h): one word per feature identifier. Base 2.0c §5.16.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(transparent)]
pub struct FeaturesSupported(pub [FeatureEffects; 256]);

assert_layout!(FeaturesSupported, 1024);

impl FeaturesSupported {
    /// What the page says of a feature.
    #[must_use]
    pub fn get(&self, fid: FeatureId) -> FeatureEffects {
        self.0[usize::from(fid.0)]
    }

    /// Sets what the page says of a feature.
    pub fn set(&mut self, fid: FeatureId, effects: FeatureEffects) {
        self.0[usize::from(fid.0)] = effects;
    }
}

bit_set! {
    /// FID Supported and Effects data structure. Base 2.0c §5.16.1.
    pub struct FeatureEffects(U32 as u32) {
        FSUPP = 1 << 0, "The feature is supported";
        UDCC = 1 << 1, "User Data Content Change";
        NCC = 1 << 2, "Namespace Capability Change";
        NIC = 1 << 3, "Namespace Inventory Change";
        CCC = 1 << 4, "Controller Capability Change";
        UUID_SELECTION = 1 << 19, "UUID selection is supported";
        SCOPE_NAMESPACE = 1 << 20, "Scope: namespace";
        SCOPE_CONTROLLER = 1 << 21, "Scope: controller";
        SCOPE_NVM_SET = 1 << 22, "Scope: NVM set";
        SCOPE_ENDURANCE_GROUP = 1 << 23, "Scope: endurance group";
        SCOPE_DOMAIN = 1 << 24, "Scope: domain";
        SCOPE_SUBSYSTEM = 1 << 25, "Scope: NVM subsystem";
    }
}
