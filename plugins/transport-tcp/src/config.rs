//! Options of the transport at a target: one struct for `nvmf_create_transport`,
//! the `[[transport]]` table and the schema. Names and defaults are those
//! existing clients know; what they leave out has its own.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tenon_sdk::{ByteSize, Error, Seconds};

use crate::connection::options::{
    MAX_IN_CAPSULE_BYTES, MAX_QUEUE_DEPTH, MAX_R2T, MAX_TRANSFER_BYTES, OptionError, TargetOptions, Timeouts,
};
use crate::pdu::MAX_PDA_Z;
use crate::socket::SocketOptions;

/// Options of the TCP transport.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TcpOptions {
    /// Most commands in flight on one connection: 2 to 4096. Default: 128.
    pub max_queue_depth: u32,
    /// Most data that comes with an I/O command, a multiple of 16 up to 128 KiB. Default: 4096.
    pub in_capsule_data_size: ByteSize,
    /// End successful reads with their data instead of a response. Default: true.
    pub c2h_success: bool,
    /// Priority of packets, 0 to 6; higher ones need a privilege. Default: 0, the system's.
    pub sock_priority: u32,
    /// Connections the kernel holds until they are accepted: 1 to 65535. Default: 128.
    pub acceptor_backlog: u32,
    /// Milliseconds after which data that the host does not acknowledge ends its connection. Default: 0, the
    /// system's.
    pub ack_timeout: u32,
    /// Agree to header digests. Default: true.
    pub header_digest: bool,
    /// Agree to data digests. Default: true.
    pub data_digest: bool,
    /// Most data of one H2CData PDU, a multiple of 4 from 4 KiB to 16 MiB. Default: 128 KiB.
    pub max_h2c_data_size: ByteSize,
    /// Most data of one C2HData PDU, a multiple of 4 from 4 KiB to 16 MiB. Default: 256 KiB.
    pub max_c2h_data_size: ByteSize,
    /// Data one R2T asks for, a multiple of 4 from 4 KiB to 16 MiB. Default: 1 MiB.
    pub r2t_size: ByteSize,
    /// R2Ts of one command that may wait for data: 1 to 16; a host may allow fewer. Default: 4.
    pub max_r2t: u32,
    /// Alignment asked of the host's data, in dwords beyond the first: 0 to 31. Default: 0.
    pub cpda: u8,
    /// Time for a new connection to become a queue pair: 1 s to 10 min. Default: 10 s.
    pub handshake_timeout_sec: Seconds,
    /// Time a host may leave owed bytes unsent or offered bytes untaken; 0: for ever. Default: 30 s.
    pub stall_timeout_sec: Seconds,
    /// Time a connection may be without commands; 0: for ever, as keep-alive finds dead hosts. Default: 0.
    pub idle_timeout_sec: Seconds,
    /// Granularity of keep-alive time-outs in units of 100 ms, to which they are rounded up: 1 to 600. Default: 1.
    pub kas: u16,
    /// Smallest keep-alive time-out in milliseconds; smaller ones are raised: 0 to 3600000. Default: 0.
    pub min_kato: u32,
    /// Size of the socket's send buffer; 0: the kernel finds one. Default: 0.
    pub send_buffer_size: ByteSize,
    /// Size of the socket's receive buffer; 0: the kernel finds one. Default: 0.
    pub receive_buffer_size: ByteSize,
    /// For existing clients: what it sizes has no limit of its own here.
    #[serde(flatten)]
    pub tolerated: Tolerated,
}

/// Options of other targets that say nothing here. They are taken and reported back.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Tolerated {
    /// I/O queues of a controller: the target's limit holds.
    pub max_io_qpairs_per_ctrlr: u32,
    /// Largest transfer in bytes: the target's limit holds.
    pub max_io_size: u32,
    /// Memory is not divided into units.
    pub io_unit_size: u32,
    /// Admin queues are as deep as others.
    pub max_aq_depth: u32,
    /// Buffers are the reactor's, and made when needed.
    pub num_shared_buffers: u32,
    /// As `num_shared_buffers`.
    pub buf_cache_size: u32,
    /// Protection information is not inserted or stripped: false.
    pub dif_insert_or_strip: bool,
    /// Reads are always sent from the device's memory where it lends it.
    pub zcopy: bool,
    /// Aborts do not wait.
    pub abort_timeout_sec: u32,
    /// Control messages need no pool.
    pub control_msg_num: u32,
    /// No command is passed through to a device.
    pub disable_command_passthru: bool,
}

/// Options of one listener.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ListenerOptions {
    /// Only TLS 1.3 connections with a pre-shared key. Default: false.
    pub secure_channel: bool,
}

impl Default for TcpOptions {
    fn default() -> Self {
        let protocol = TargetOptions::DEFAULT;
        let seconds = |ns: u64| Seconds::from_ns(ns);
        Self {
            max_queue_depth: protocol.queue_depth.into(),
            in_capsule_data_size: ByteSize(protocol.in_capsule_bytes.into()),
            c2h_success: protocol.sends_success_flag,
            sock_priority: 0,
            acceptor_backlog: 128,
            ack_timeout: 0,
            header_digest: protocol.accepts_header_digest,
            data_digest: protocol.accepts_data_digest,
            max_h2c_data_size: ByteSize(protocol.max_h2c_data_bytes.into()),
            max_c2h_data_size: ByteSize(protocol.max_c2h_data_bytes.into()),
            r2t_size: ByteSize(protocol.r2t_bytes.into()),
            max_r2t: protocol.max_r2t,
            cpda: protocol.cpda_z,
            handshake_timeout_sec: seconds(Timeouts::DEFAULT.handshake_ns),
            stall_timeout_sec: seconds(Timeouts::DEFAULT.stall_ns),
            idle_timeout_sec: seconds(Timeouts::DEFAULT.idle_ns),
            kas: 1,
            min_kato: 0,
            send_buffer_size: ByteSize(0),
            receive_buffer_size: ByteSize(0),
            tolerated: Tolerated::default(),
        }
    }
}

impl Default for Tolerated {
    fn default() -> Self {
        Self {
            max_io_qpairs_per_ctrlr: 127,
            max_io_size: 1 << 20,
            io_unit_size: 128 << 10,
            max_aq_depth: 128,
            num_shared_buffers: 511,
            buf_cache_size: 32,
            dif_insert_or_strip: false,
            zcopy: false,
            abort_timeout_sec: 1,
            control_msg_num: 32,
            disable_command_passthru: false,
        }
    }
}

impl TcpOptions {
    /// Reads the options as JSON and refuses what cannot be kept to.
    pub fn parse(json: &str) -> Result<Self, Error> {
        let options: Self = serde_json::from_str(if json.is_empty() { "{}" } else { json })?;
        options.check()?;
        Ok(options)
    }

    /// Refuses what cannot be kept to, by name and range.
    pub fn check(&self) -> Result<(), Error> {
        let in_range = |name: &str, value: u64, min: u64, max: u64, unit: &str| {
            if (min..=max).contains(&value) {
                return Ok(());
            }
            Err(Error::invalid(format!("{name} is {value}{unit}, has to be {min} to {max}{unit}")))
        };
        let second = 1_000_000_000;
        in_range("max_queue_depth", self.max_queue_depth.into(), 2, MAX_QUEUE_DEPTH.into(), "")?;
        let capsule = self.in_capsule_data_size.0;
        in_range("in_capsule_data_size", capsule, 0, MAX_IN_CAPSULE_BYTES.into(), " bytes")?;
        if !capsule.is_multiple_of(16) {
            let reason = format!("in_capsule_data_size is {capsule} bytes, has to be a multiple of 16");
            return Err(Error::invalid(reason));
        }
        for (name, size) in [
            ("max_h2c_data_size", self.max_h2c_data_size),
            ("max_c2h_data_size", self.max_c2h_data_size),
            ("r2t_size", self.r2t_size),
        ] {
            in_range(name, size.0, 4096, MAX_TRANSFER_BYTES.into(), " bytes")?;
        }
        in_range("max_r2t", self.max_r2t.into(), 1, MAX_R2T.into(), "")?;
        in_range("cpda", self.cpda.into(), 0, MAX_PDA_Z.into(), "")?;
        in_range("sock_priority", self.sock_priority.into(), 0, 6, "")?;
        in_range("acceptor_backlog", self.acceptor_backlog.into(), 1, 65_535, "")?;
        in_range("ack_timeout", self.ack_timeout.into(), 0, 3_600_000, " ms")?;
        let seconds = |time: Seconds| time.as_ns() / second;
        in_range("handshake_timeout_sec", seconds(self.handshake_timeout_sec), 1, 600, " s")?;
        in_range("stall_timeout_sec", seconds(self.stall_timeout_sec), 0, 86_400, " s")?;
        in_range("idle_timeout_sec", seconds(self.idle_timeout_sec), 0, 86_400, " s")?;
        in_range("kas", self.kas.into(), 1, 600, "")?;
        in_range("min_kato", self.min_kato.into(), 0, 3_600_000, " ms")?;
        for (name, size) in
            [("send_buffer_size", self.send_buffer_size), ("receive_buffer_size", self.receive_buffer_size)]
        {
            in_range(name, size.0, 0, 1 << 30, " bytes")?;
        }
        if self.tolerated.dif_insert_or_strip {
            return Err(Error::not_supported("dif_insert_or_strip is true, which the target cannot do"));
        }
        self.protocol().check().map_err(|error: OptionError| Error::invalid(error.to_string()))
    }

    /// Options of the protocol's state machine.
    #[must_use]
    pub fn protocol(&self) -> TargetOptions {
        let bytes = |size: ByteSize| u32::try_from(size.0).unwrap_or(u32::MAX);
        TargetOptions {
            queue_depth: u16::try_from(self.max_queue_depth).unwrap_or(u16::MAX),
            in_capsule_bytes: bytes(self.in_capsule_data_size),
            max_h2c_data_bytes: bytes(self.max_h2c_data_size),
            max_c2h_data_bytes: bytes(self.max_c2h_data_size),
            r2t_bytes: bytes(self.r2t_size),
            max_r2t: self.max_r2t,
            cpda_z: self.cpda,
            accepts_header_digest: self.header_digest,
            accepts_data_digest: self.data_digest,
            sends_success_flag: self.c2h_success,
            timeouts: Timeouts {
                handshake_ns: self.handshake_timeout_sec.as_ns(),
                stall_ns: self.stall_timeout_sec.as_ns(),
                idle_ns: self.idle_timeout_sec.as_ns(),
                termination_ns: TERMINATION_NS,
            },
        }
    }

    /// Options of the sockets.
    #[must_use]
    pub fn socket(&self) -> SocketOptions {
        let bytes = |size: ByteSize| usize::try_from(size.0).unwrap_or(usize::MAX);
        SocketOptions {
            priority: self.sock_priority,
            send_buffer_bytes: bytes(self.send_buffer_size),
            receive_buffer_bytes: bytes(self.receive_buffer_size),
            user_timeout_ms: self.ack_timeout,
        }
    }
}

/// How long a host that broke the protocol may take to close. The specification permits 30 s; a host that reads at
/// all has read the reason by then.
const TERMINATION_NS: u64 = 5_000_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_said_is_the_default_and_reads_back() {
        let options = TcpOptions::parse("").expect("defaults hold");
        assert_eq!(options, TcpOptions::default());
        let json = serde_json::to_string(&options).expect("json");
        assert_eq!(TcpOptions::parse(&json).expect("reads back"), options);
    }

    #[track_caller]
    fn check(json: &str, expected: &str) {
        let error = TcpOptions::parse(json).expect_err("refused");
        assert_eq!(error.reason, expected);
    }

    #[test]
    fn wrong_options_are_named_with_their_range() {
        check(r#"{"max_queue_depth":1}"#, "max_queue_depth is 1, has to be 2 to 4096");
        check(
            r#"{"in_capsule_data_size":4097}"#,
            "in_capsule_data_size is 4097 bytes, has to be a multiple of 16",
        );
        check(r#"{"sock_priority":7}"#, "sock_priority is 7, has to be 0 to 6");
        check(r#"{"r2t_size":"4099"}"#, "r2t_bytes is 4099, has to be a multiple of 4");
        check(r#"{"kas":0}"#, "kas is 0, has to be 1 to 600");
        check(r#"{"handshake_timeout_sec":0}"#, "handshake_timeout_sec is 0 s, has to be 1 to 600 s");
        check(r#"{"dif_insert_or_strip":true}"#, "dif_insert_or_strip is true, which the target cannot do");
    }

    #[test]
    fn an_unknown_option_is_an_error() {
        let error = TcpOptions::parse(r#"{"max_queue_dept":1}"#).expect_err("refused");
        assert!(error.reason.contains("max_queue_dept"), "{error}");
    }
}
