//! What each role of a connection is configured with, and the bounds that hold.
//!
//! Plain numbers in the units the state machines use; where they come from
//! (configuration, discovery) is the caller's matter. Times are nanoseconds of
//! the caller's clock.
#![forbid(unsafe_code)]

use thiserror::Error;

use crate::pdu::{ADMIN_IN_CAPSULE_BYTES, MAX_PDA_Z, MIN_MAXH2CDATA};

/// Options of the controller's end of a connection.
#[derive(Clone, Copy, Debug)]
pub struct TargetOptions {
    /// Most commands in flight, 1 to [`MAX_QUEUE_DEPTH`].
    pub queue_depth: u16,
    /// Most in-capsule data of an I/O command, 0 to [`MAX_IN_CAPSULE_BYTES`]. Until the queue is known to be
    /// an I/O queue, admin and fabrics commands may bring 8192 bytes.
    pub in_capsule_bytes: u32,
    /// MAXH2CDATA: most data of one H2CData PDU, from 4096, a multiple of 4.
    pub max_h2c_data_bytes: u32,
    /// Most data of one C2HData PDU, from 4096, a multiple of 4. Larger payloads take turns with others.
    pub max_c2h_data_bytes: u32,
    /// Data that one R2T asks for, from 4096, a multiple of 4.
    pub r2t_bytes: u32,
    /// R2Ts outstanding for one command at most, if the host supports as many; from 1.
    pub max_r2t: u32,
    /// CPDA: alignment asked of the host's data in dwords, 0's based.
    pub cpda_z: u8,
    /// Agree to header digests.
    pub accepts_header_digest: bool,
    /// Agree to data digests.
    pub accepts_data_digest: bool,
    /// End a successful read with its data (SUCCESS) instead of a response capsule.
    pub sends_success_flag: bool,
    /// Deadlines.
    pub timeouts: Timeouts,
}

impl TargetOptions {
    /// Defaults that fit a peer nobody knows.
    pub const DEFAULT: Self = Self {
        queue_depth: 128,
        in_capsule_bytes: 4096,
        max_h2c_data_bytes: 128 << 10,
        max_c2h_data_bytes: 256 << 10,
        r2t_bytes: 1 << 20,
        max_r2t: 4,
        cpda_z: 0,
        accepts_header_digest: true,
        accepts_data_digest: true,
        sends_success_flag: true,
        timeouts: Timeouts::DEFAULT,
    };

    /// Refuses what the state machine could not keep to.
    pub fn check(&self) -> Result<(), OptionError> {
        in_range("queue_depth", self.queue_depth.into(), 1, MAX_QUEUE_DEPTH.into())?;
        in_range("in_capsule_bytes", self.in_capsule_bytes, 0, MAX_IN_CAPSULE_BYTES)?;
        transfer_size("max_h2c_data_bytes", self.max_h2c_data_bytes)?;
        transfer_size("max_c2h_data_bytes", self.max_c2h_data_bytes)?;
        transfer_size("r2t_bytes", self.r2t_bytes)?;
        in_range("max_r2t", self.max_r2t, 1, MAX_R2T)?;
        in_range("cpda_z", self.cpda_z.into(), 0, MAX_PDA_Z.into())
    }
}

/// Options of the host's end of a connection.
#[derive(Clone, Copy, Debug)]
pub struct InitiatorOptions {
    /// Most commands in flight, 1 to [`MAX_QUEUE_DEPTH`].
    pub queue_depth: u16,
    /// R2Ts outstanding for one command at most, 1 to [`MAX_R2T`].
    pub max_r2t: u32,
    /// HPDA: alignment asked of the controller's data in dwords, 0's based.
    pub hpda_z: u8,
    /// Most data of one H2CData PDU, from 4096, a multiple of 4; the controller may set less.
    pub max_h2c_data_bytes: u32,
    /// Header digests: ask for them, and refuse a controller that does without.
    pub needs_header_digest: bool,
    /// Data digests: ask for them, and refuse a controller that does without.
    pub needs_data_digest: bool,
    /// Deadlines.
    pub timeouts: Timeouts,
}

impl InitiatorOptions {
    /// Defaults that fit a peer nobody knows.
    pub const DEFAULT: Self = Self {
        queue_depth: 128,
        max_r2t: 4,
        hpda_z: 0,
        max_h2c_data_bytes: 1 << 20,
        needs_header_digest: false,
        needs_data_digest: false,
        timeouts: Timeouts::DEFAULT,
    };

    /// Refuses what the state machine could not keep to.
    pub fn check(&self) -> Result<(), OptionError> {
        in_range("queue_depth", self.queue_depth.into(), 1, MAX_QUEUE_DEPTH.into())?;
        in_range("max_r2t", self.max_r2t, 1, MAX_R2T)?;
        in_range("hpda_z", self.hpda_z.into(), 0, MAX_PDA_Z.into())?;
        transfer_size("max_h2c_data_bytes", self.max_h2c_data_bytes)
    }
}

/// How long a peer may take.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// From the first byte possible to a complete handshake.
    pub handshake_ns: u64,
    /// Without a byte moving while the peer owes some: the rest of a PDU, data of an R2T, or room for
    /// what is to be sent. 0: for ever.
    pub stall_ns: u64,
    /// Without a byte from the peer while nothing is owed. 0: for ever, which is right for I/O queues.
    pub idle_ns: u64,
    /// From a Terminate Connection Request to the peer's closing.
    pub termination_ns: u64,
}

impl Timeouts {
    //= NVMe/TCP 1.0 §3.5
    //# If the host does not terminate
    //# the connection within 30 seconds, the controller may terminate the connection.
    /// 10 s for a handshake, 30 s for what is owed and for the end, no idle time-out.
    pub const DEFAULT: Self = Self {
        handshake_ns: 10_000_000_000,
        stall_ns: 30_000_000_000,
        idle_ns: 0,
        termination_ns: 30_000_000_000,
    };
}

/// An option is out of its range.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum OptionError {
    /// Below or above its bounds.
    #[error("{name} is {value}, has to be {min} to {max}")]
    Range {
        /// The option.
        name: &'static str,
        /// As given.
        value: u32,
        /// Least value.
        min: u32,
        /// Greatest value.
        max: u32,
    },
    /// Transfers end at dword boundaries.
    #[error("{name} is {value}, has to be a multiple of 4")]
    Unaligned {
        /// The option.
        name: &'static str,
        /// As given.
        value: u32,
    },
}

fn in_range(name: &'static str, value: u32, min: u32, max: u32) -> Result<(), OptionError> {
    if (min..=max).contains(&value) { Ok(()) } else { Err(OptionError::Range { name, value, min, max }) }
}

fn transfer_size(name: &'static str, value: u32) -> Result<(), OptionError> {
    in_range(name, value, MIN_MAXH2CDATA, MAX_TRANSFER_BYTES)?;
    if value.is_multiple_of(4) { Ok(()) } else { Err(OptionError::Unaligned { name, value }) }
}

/// Most commands in flight on one connection; leaves four bits of a transfer tag for its generation.
pub const MAX_QUEUE_DEPTH: u16 = 4096;

/// Most in-capsule data. A capsule has to be whole in the receive buffer before it is looked at.
pub const MAX_IN_CAPSULE_BYTES: u32 = 128 << 10;

/// Most R2Ts outstanding for one command.
pub const MAX_R2T: u32 = 16;

/// Most data of one PDU or R2T.
pub const MAX_TRANSFER_BYTES: u32 = 16 << 20;

/// Most data of one command, so that offsets and lengths of PDUs cannot overflow.
pub const MAX_COMMAND_BYTES: u32 = 1 << 30;

const _: () = assert!(ADMIN_IN_CAPSULE_BYTES <= MAX_IN_CAPSULE_BYTES);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_within_their_own_bounds() {
        assert_eq!(TargetOptions::DEFAULT.check(), Ok(()));
        assert_eq!(InitiatorOptions::DEFAULT.check(), Ok(()));
    }

    #[test]
    fn options_out_of_range_are_named() {
        let error = TargetOptions { queue_depth: 0, ..TargetOptions::DEFAULT }.check().expect_err("refused");
        assert_eq!(error.to_string(), "queue_depth is 0, has to be 1 to 4096");
        let error = TargetOptions { r2t_bytes: 5001, ..TargetOptions::DEFAULT }.check().expect_err("refused");
        assert_eq!(error.to_string(), "r2t_bytes is 5001, has to be a multiple of 4");
        let error = InitiatorOptions { hpda_z: 32, ..InitiatorOptions::DEFAULT }.check();
        assert_eq!(error, Err(OptionError::Range { name: "hpda_z", value: 32, min: 0, max: 31 }));
    }
}
