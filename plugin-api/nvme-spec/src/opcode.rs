//! Opcodes of the admin, I/O and fabrics command sets, and the transfer direction they imply.
//!
//! An opcode's meaning depends on the queue: 0x01 is Create I/O Submission
//! Queue on the admin queue and Write on an I/O queue, so there are three types.

/// Opcode of every fabrics command, on the admin queue and on I/O queues; which one it is stands in FCTYPE.
///
/// Base 2.0c §6.
pub const FABRICS: u8 = 0x7f;

/// First vendor-specific admin opcode.
pub const ADMIN_VENDOR_FIRST: u8 = 0xc0;

/// First vendor-specific I/O opcode.
pub const IO_VENDOR_FIRST: u8 = 0x80;

open_enum! {
    /// Opcode on the admin queue. Base 2.0c §5.
    pub struct AdminOpcode(u8) {
        DELETE_IO_SQ = 0x00, "Delete I/O Submission Queue";
        CREATE_IO_SQ = 0x01, "Create I/O Submission Queue";
        GET_LOG_PAGE = 0x02, "Get Log Page";
        DELETE_IO_CQ = 0x04, "Delete I/O Completion Queue";
        CREATE_IO_CQ = 0x05, "Create I/O Completion Queue";
        IDENTIFY = 0x06, "Identify";
        ABORT = 0x08, "Abort";
        SET_FEATURES = 0x09, "Set Features";
        GET_FEATURES = 0x0a, "Get Features";
        ASYNCHRONOUS_EVENT_REQUEST = 0x0c, "Asynchronous Event Request";
        NAMESPACE_MANAGEMENT = 0x0d, "Namespace Management";
        FIRMWARE_COMMIT = 0x10, "Firmware Commit";
        FIRMWARE_IMAGE_DOWNLOAD = 0x11, "Firmware Image Download";
        DEVICE_SELF_TEST = 0x14, "Device Self-test";
        NAMESPACE_ATTACHMENT = 0x15, "Namespace Attachment";
        KEEP_ALIVE = 0x18, "Keep Alive";
        DIRECTIVE_SEND = 0x19, "Directive Send";
        DIRECTIVE_RECEIVE = 0x1a, "Directive Receive";
        VIRTUALIZATION_MANAGEMENT = 0x1c, "Virtualization Management";
        NVME_MI_SEND = 0x1d, "NVMe-MI Send";
        NVME_MI_RECEIVE = 0x1e, "NVMe-MI Receive";
        CAPACITY_MANAGEMENT = 0x20, "Capacity Management";
        LOCKDOWN = 0x24, "Lockdown";
        DOORBELL_BUFFER_CONFIG = 0x7c, "Doorbell Buffer Config";
        FABRICS = FABRICS, "Fabrics commands";
        FORMAT_NVM = 0x80, "Format NVM";
        SECURITY_SEND = 0x81, "Security Send";
        SECURITY_RECEIVE = 0x82, "Security Receive";
        SANITIZE = 0x84, "Sanitize";
        GET_LBA_STATUS = 0x86, "Get LBA Status";
    }
}

open_enum! {
    /// Opcode on an I/O queue. Base 2.0c §7, NVM Command Set §3, Zoned Namespace Command Set.
    pub struct IoOpcode(u8) {
        FLUSH = 0x00, "Flush";
        WRITE = 0x01, "Write";
        READ = 0x02, "Read";
        WRITE_UNCORRECTABLE = 0x04, "Write Uncorrectable";
        COMPARE = 0x05, "Compare";
        WRITE_ZEROES = 0x08, "Write Zeroes";
        DATASET_MANAGEMENT = 0x09, "Dataset Management";
        VERIFY = 0x0c, "Verify";
        RESERVATION_REGISTER = 0x0d, "Reservation Register";
        RESERVATION_REPORT = 0x0e, "Reservation Report";
        RESERVATION_ACQUIRE = 0x11, "Reservation Acquire";
        RESERVATION_RELEASE = 0x15, "Reservation Release";
        COPY = 0x19, "Copy";
        ZONE_MANAGEMENT_SEND = 0x79, "Zone Management Send";
        ZONE_MANAGEMENT_RECEIVE = 0x7a, "Zone Management Receive";
        ZONE_APPEND = 0x7d, "Zone Append";
        FABRICS = FABRICS, "Fabrics commands";
    }
}

open_enum! {
    /// Fabrics command type (FCTYPE, byte 4 of the command). Base 2.0c §6.
    pub struct FabricsType(u8) {
        PROPERTY_SET = 0x00, "Property Set";
        CONNECT = 0x01, "Connect";
        PROPERTY_GET = 0x04, "Property Get";
        AUTHENTICATION_SEND = 0x05, "Authentication Send";
        AUTHENTICATION_RECEIVE = 0x06, "Authentication Receive";
        DISCONNECT = 0x08, "Disconnect";
    }
}

/// Which way a command moves data: the low two bits of an opcode, or of FCTYPE for fabrics commands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DataTransfer {
    /// No data.
    None,
    /// From the host to the controller.
    HostToController,
    /// From the controller to the host.
    ControllerToHost,
    /// Both ways; no command defined so far does that.
    Bidirectional,
}

impl DataTransfer {
    /// The direction in the low two bits of an opcode or FCTYPE.
    #[must_use]
    pub const fn of(opcode_or_fctype: u8) -> Self {
        match opcode_or_fctype & 0b11 {
            0b00 => Self::None,
            0b01 => Self::HostToController,
            0b10 => Self::ControllerToHost,
            _ => Self::Bidirectional,
        }
    }
}

impl AdminOpcode {
    /// Which way the command moves data; for [`FABRICS`] ask [`FabricsType::data_transfer`].
    #[must_use]
    pub const fn data_transfer(self) -> DataTransfer {
        DataTransfer::of(self.0)
    }
}

impl IoOpcode {
    /// Which way the command moves data; for [`FABRICS`] ask [`FabricsType::data_transfer`].
    #[must_use]
    pub const fn data_transfer(self) -> DataTransfer {
        DataTransfer::of(self.0)
    }
}

impl FabricsType {
    /// Which way the command moves data.
    ///
    /// Connect moves a data block by SGL, Property Set and Get carry their value in the command and the completion.
    #[must_use]
    pub const fn data_transfer(self) -> DataTransfer {
        DataTransfer::of(self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn direction_follows_from_the_opcode() {
        assert_eq!(IoOpcode::READ.data_transfer(), DataTransfer::ControllerToHost);
        assert_eq!(IoOpcode::WRITE.data_transfer(), DataTransfer::HostToController);
        assert_eq!(IoOpcode::COPY.data_transfer(), DataTransfer::HostToController);
        assert_eq!(IoOpcode::FLUSH.data_transfer(), DataTransfer::None);
        assert_eq!(IoOpcode::RESERVATION_REPORT.data_transfer(), DataTransfer::ControllerToHost);
        assert_eq!(AdminOpcode::IDENTIFY.data_transfer(), DataTransfer::ControllerToHost);
        assert_eq!(FabricsType::CONNECT.data_transfer(), DataTransfer::HostToController);
        assert_eq!(FabricsType::PROPERTY_GET.data_transfer(), DataTransfer::None);
    }
}
