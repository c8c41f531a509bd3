//! Parameters: of one controller, as `bdev_nvme_attach_controller` and a
//! `[[bdev]]` table give them, and of the module, as `bdev_nvme_set_options`
//! and a `[[module]]` table do. Names and defaults are those existing clients know.

use std::net::IpAddr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tenon_sdk::{Error, FabricAddress};

use crate::credentials::{DhchapDigest, DhchapGroup, KeyNames};
use crate::discovery::service_type;
use crate::select::{Policy, Selector};

/// How a second controller of the same name is taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Multipath {
    /// Refused.
    Disable,
    /// As a further path that is used when others are not usable.
    Failover,
    /// As a further path.
    #[default]
    #[serde(rename = "multipath")]
    Further,
}

/// One controller to attach.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NvmeParams {
    /// Name of the controller; devices are named after it, e.g. `nvme0n1`.
    pub name: String,
    /// Transport: TCP, RDMA, LOOP or another that a plugin offers. Required, unless svcname is given.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub trtype: String,
    /// Address: an IP address for TCP and RDMA. Required, unless svcname is given.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub traddr: String,
    /// Address family: IPv4 or IPv6 [default: as the address says].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adrfam: Option<String>,
    /// Service: a port for TCP and RDMA [default: 4420].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trsvcid: Option<String>,
    /// Priority of packets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<String>,
    /// NQN of the subsystem.
    #[serde(default)]
    pub subnqn: String,
    /// NQN of this host [default: made of its machine id].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostnqn: Option<String>,
    /// Address of this host to connect from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostaddr: Option<String>,
    /// Port of this host to connect from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostsvcid: Option<String>,
    /// Check header digests.
    #[serde(default)]
    pub hdgst: bool,
    /// Check data digests.
    #[serde(default)]
    pub ddgst: bool,
    /// Time for a queue to be connected, in microseconds [default: tcp_connect_timeout_ms].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fabrics_connect_timeout_us: Option<u64>,
    /// What a second controller of this name is.
    #[serde(default)]
    pub multipath: Multipath,
    /// I/O queues to ask for [default: one per reactor].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub num_io_queues: Option<u16>,
    /// Entries of an I/O queue, 2 to 4096 [default: 128].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub io_queue_size: Option<u16>,
    /// Seconds after which a lost controller is removed; -1: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ctrlr_loss_timeout_sec: Option<i32>,
    /// Seconds between two attempts to connect to a lost controller; 0: one attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reconnect_delay_sec: Option<u32>,
    /// Seconds after which I/O to a lost controller fails; 0: not before it is removed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fast_io_fail_timeout_sec: Option<u32>,
    /// Seconds a device may be without its namespace before it is removed; 0: for ever.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ns_absent_timeout_sec: Option<u32>,
    /// Name of the TLS key that secures the channels [default: they are not secured].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub psk: Option<String>,
    /// Version of the identity by which the controller knows the TLS key, 0 or 1 [default: 0].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub psk_identity_version: Option<u8>,
    /// Name of the key by which this host proves who it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dhchap_key: Option<String>,
    /// Name of the key by which the controller has to prove who it is; needs dhchap_key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dhchap_ctrlr_key: Option<String>,
    /// Milliseconds for which a lost controller may still carry out what it was told, so that writes lost with it are
    /// not repeated earlier [default: what the controller says].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command_quiesce_time_ms: Option<u32>,
    /// Most devices of this controller; further namespaces are passed over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_bdevs: Option<u32>,
    /// Further paths: parameters in which each differs from the one described here, its address above all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub paths: Vec<Map<String, Value>>,
    /// How the paths of devices are used.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub bdevs: Vec<DeviceWish>,
    /// The address is a discovery service's: every controller it tells of is attached, under this name and a number.
    #[serde(default, skip_serializing_if = "is_false")]
    pub discovery: bool,
    /// Service to search by multicast DNS, `_nvme-disc._tcp` or `_nvme-disc._udp`: each discovery service that is
    /// announced is asked, and what it tells of is attached, under this name, `_nvme` and a number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub svcname: Option<String>,
    /// Of a discovery service: answer when all that it tells of at first is attached.
    #[serde(default, skip_serializing_if = "is_false")]
    pub wait_for_attach: bool,
    /// Of a discovery service: most time for that, in milliseconds; 0: no limit. Implies wait_for_attach.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub attach_timeout_ms: u64,
}

/// How the paths of one device are used.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DeviceWish {
    /// Name of the device, e.g. `nvme0n1`.
    pub name: String,
    /// How its paths share the work.
    #[serde(default)]
    pub policy: Policy,
    /// Which path of `active_active` is next.
    #[serde(default)]
    pub selector: Selector,
    /// I/Os in turn of `round_robin`, at least 1; more while up to 32 are submitted together.
    #[serde(default = "one")]
    pub rr_min_io: u32,
    /// Address of the preferred path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preferred_traddr: Option<String>,
    /// Service of the preferred path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preferred_trsvcid: Option<String>,
}

impl DeviceWish {
    /// Nothing but the name is said.
    pub fn new(name: &str) -> Self {
        DeviceWish { name: name.to_owned(), rr_min_io: 1, ..DeviceWish::default() }
    }

    /// Whether a path by this address is the preferred one.
    pub fn prefers(&self, address: &FabricAddress) -> bool {
        self.preferred_traddr.as_ref() == Some(&address.traddr)
            && self.preferred_trsvcid.as_ref().is_none_or(|service| *service == address.trsvcid)
    }
}

fn one() -> u32 {
    1
}

fn is_false(flag: &bool) -> bool {
    !flag
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// Options of the module; changes apply to controllers attached later.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct NvmeConfig {
    /// Time after which a silent controller is given up, in milliseconds; 0: never [default: 10000].
    pub keep_alive_timeout_ms: u32,
    /// Time for a queue to be connected, in milliseconds [default: 10000].
    pub tcp_connect_timeout_ms: u64,
    /// Time after which unacknowledged data ends a connection, as a power of two times 4.096 us; 0: the system's.
    pub transport_ack_timeout: u32,
    /// Time for an admin command, in microseconds; 0: for ever [default: 30000000].
    pub timeout_admin_us: u64,
    /// Time for an I/O, in microseconds; 0: for ever [default: 0].
    pub timeout_us: u64,
    /// Time for an I/O with all its tries, in milliseconds; 0: for ever [default: 0].
    pub io_deadline_ms: u64,
    /// What is done about an I/O that takes longer than timeout_us [default: none].
    pub action_on_timeout: ActionOnTimeout,
    /// How often an I/O that failed may be tried again; -1: without limit [default: 3].
    pub bdev_retry_count: i32,
    /// Hash functions authentication may use, the best first [default: all].
    pub dhchap_digests: Vec<DhchapDigest>,
    /// Diffie-Hellman groups authentication may use, the best first [default: all].
    pub dhchap_dhgroups: Vec<DhchapGroup>,
    /// Default of the parameter of the same name.
    pub ctrlr_loss_timeout_sec: i32,
    /// Default of the parameter of the same name.
    pub reconnect_delay_sec: u32,
    /// Default of the parameter of the same name.
    pub fast_io_fail_timeout_sec: u32,
    /// Default of the parameter of the same name.
    pub ns_absent_timeout_sec: u32,
    /// An active_passive device stays on its path when a better one comes back [default: false].
    pub disable_auto_failback: bool,
    /// Count I/O by path, see bdev_nvme_get_path_iostat; devices that come later [default: false].
    pub io_path_stat: bool,
    /// Count errors by status, see bdev_get_iostat; devices that come later [default: false].
    pub nvme_error_stat: bool,
    /// Repetitions by the transport itself, 0 to 255; TCP repeats until transport_ack_timeout [default: 4].
    pub transport_retry_count: u32,
    /// Entries of an I/O queue whose parameters do not say, 2 to 4096; 0: 128 [default: 0].
    pub io_queue_requests: u32,
    /// Answers of an admin queue are seen at least this often; they are at once [default: 10000].
    pub nvme_adminq_poll_period_us: u64,
    /// 0: reactors poll I/O queues as often as they turn.
    pub nvme_ioq_poll_period_us: u64,
    /// True: commands of one turn are sent together.
    pub delay_cmd_submit: bool,
    /// True: a device without a UUID gets one made of its identity.
    pub generate_uuids: bool,
    /// 0: queues over fabrics are not weighted.
    pub arbitration_burst: u32,
    /// As `arbitration_burst`.
    pub low_priority_weight: u32,
    /// As `arbitration_burst`.
    pub medium_priority_weight: u32,
    /// As `arbitration_burst`.
    pub high_priority_weight: u32,
    /// 0: packets are marked by `priority` of a controller.
    pub transport_tos: u32,
    /// False: there is no acceleration framework.
    pub allow_accel_sequence: bool,
    /// 0: for RDMA.
    pub rdma_srq_size: u32,
    /// 0: for RDMA.
    pub rdma_max_cq_size: u32,
    /// 0: for RDMA.
    pub rdma_cm_event_timeout_ms: u32,
    /// False: for RDMA.
    pub rdma_umr_per_io: bool,
}

impl Default for NvmeConfig {
    fn default() -> Self {
        NvmeConfig {
            keep_alive_timeout_ms: 10_000,
            tcp_connect_timeout_ms: 10_000,
            transport_ack_timeout: 0,
            timeout_admin_us: 30_000_000,
            timeout_us: 0,
            io_deadline_ms: 0,
            action_on_timeout: ActionOnTimeout::None,
            bdev_retry_count: 3,
            dhchap_digests: DhchapDigest::ALL.to_vec(),
            dhchap_dhgroups: DhchapGroup::ALL.to_vec(),
            ctrlr_loss_timeout_sec: 0,
            reconnect_delay_sec: 0,
            fast_io_fail_timeout_sec: 0,
            ns_absent_timeout_sec: 0,
            disable_auto_failback: false,
            io_path_stat: false,
            nvme_error_stat: false,
            transport_retry_count: 4,
            io_queue_requests: 0,
            nvme_adminq_poll_period_us: 10_000,
            nvme_ioq_poll_period_us: 0,
            delay_cmd_submit: true,
            generate_uuids: true,
            arbitration_burst: 0,
            low_priority_weight: 0,
            medium_priority_weight: 0,
            high_priority_weight: 0,
            transport_tos: 0,
            allow_accel_sequence: false,
            rdma_srq_size: 0,
            rdma_max_cq_size: 0,
            rdma_cm_event_timeout_ms: 0,
            rdma_umr_per_io: false,
        }
    }
}

/// What is done about an I/O that takes too long.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ActionOnTimeout {
    /// It is waited for.
    #[default]
    None,
    /// It is aborted; if it does not end by that, its controller is reset.
    Abort,
    /// Its controller is reset.
    Reset,
}

/// When a lost controller is tried again, and when given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timers {
    /// -1: never removed.
    pub ctrlr_loss_timeout_sec: i32,
    /// 0: one attempt.
    pub reconnect_delay_sec: u32,
    /// 0: not before it is removed.
    pub fast_io_fail_timeout_sec: u32,
}

impl Timers {
    /// What is asked for, or the module's defaults.
    pub fn of(params: &NvmeParams, config: &NvmeConfig) -> Self {
        Timers {
            ctrlr_loss_timeout_sec: params.ctrlr_loss_timeout_sec.unwrap_or(config.ctrlr_loss_timeout_sec),
            reconnect_delay_sec: params.reconnect_delay_sec.unwrap_or(config.reconnect_delay_sec),
            fast_io_fail_timeout_sec: params
                .fast_io_fail_timeout_sec
                .unwrap_or(config.fast_io_fail_timeout_sec),
        }
    }

    /// Refuses times that contradict each other.
    pub fn check(&self) -> Result<(), Error> {
        let (loss, delay, fast) =
            (self.ctrlr_loss_timeout_sec, self.reconnect_delay_sec, self.fast_io_fail_timeout_sec);
        if loss < -1 {
            return Err(Error::invalid(format!("ctrlr_loss_timeout_sec is {loss}: must be -1 or more")));
        }
        // None if there is no limit.
        let limit = u32::try_from(loss).ok();
        if delay == 0 {
            if loss != 0 || fast != 0 {
                return Err(Error::invalid(
                    "reconnect_delay_sec is 0: ctrlr_loss_timeout_sec and fast_io_fail_timeout_sec must be 0",
                ));
            }
            return Ok(());
        }
        if limit.is_some_and(|limit| limit < delay) {
            return Err(Error::invalid(format!(
                "ctrlr_loss_timeout_sec is {loss}: must be -1 or at least reconnect_delay_sec, {delay}"
            )));
        }
        if fast != 0 && fast < delay {
            return Err(Error::invalid(format!(
                "fast_io_fail_timeout_sec is {fast}: must be 0 or at least reconnect_delay_sec, {delay}"
            )));
        }
        if fast != 0 && limit.is_some_and(|limit| fast >= limit) {
            return Err(Error::invalid(format!(
                "fast_io_fail_timeout_sec is {fast}: must be less than ctrlr_loss_timeout_sec, {loss}"
            )));
        }
        Ok(())
    }
}

impl NvmeParams {
    /// Refuses what makes no sense, whatever the module's options.
    pub fn check(&self) -> Result<(), Error> {
        let wrong = |reason: String| Err(Error::invalid(reason).object(&*self.name));
        if self.name.is_empty() || self.name.len() > MAX_NAME || self.name.contains(['/', '\0']) {
            return wrong(format!("name `{}`: must be 1 to {MAX_NAME} bytes without `/`", self.name));
        }
        if let Some(size) = self.io_queue_size
            && !(2..=4096).contains(&size)
        {
            return wrong(format!("io_queue_size is {size}: must be 2 to 4096"));
        }
        KeyNames::of(self).check().map_err(|error| error.object(&*self.name))?;
        if self.psk_identity_version.is_some_and(|version| version > 1) {
            return wrong("psk_identity_version: must be 0 or 1".to_owned());
        }
        if self.num_io_queues == Some(0) {
            return wrong("num_io_queues is 0: must be at least 1".to_owned());
        }
        if !self.subnqn.is_empty()
            && let Err(error) = nvme_spec::nqn::validate(&self.subnqn)
        {
            return wrong(format!("subnqn `{}`: {error}", self.subnqn));
        }
        for (key, value) in [("trtype", &self.trtype), ("traddr", &self.traddr)] {
            if self.svcname.is_none() && value.is_empty() {
                return wrong(format!("missing field `{key}`"));
            }
        }
        if self.has_ip_address() && self.traddr.parse::<IpAddr>().is_err() {
            return wrong(format!("traddr `{}`: must be an IP address", self.traddr));
        }
        Ok(())
    }

    /// What the names of the controllers that a discovery service attaches begin with; a number follows.
    pub fn prefix(&self) -> String {
        if self.svcname.is_some() { format!("{}_nvme", self.name) } else { self.name.clone() }
    }

    /// Refuses what is not known before discovery services are found.
    fn check_search(&self, svcname: &str) -> Result<(), Error> {
        let wrong = |reason: String| Err(Error::invalid(reason).object(&*self.name));
        service_type(svcname).map_err(|error| error.object(&*self.name))?;
        let given = [
            ("discovery", self.discovery),
            ("trtype", !self.trtype.is_empty()),
            ("traddr", !self.traddr.is_empty()),
            ("trsvcid", self.trsvcid.is_some()),
            ("adrfam", self.adrfam.is_some()),
            ("subnqn", !self.subnqn.is_empty()),
            ("paths", !self.paths.is_empty()),
        ];
        if let Some((key, _)) = given.iter().find(|(_, is_given)| *is_given) {
            return wrong(format!("{key} is given with svcname: what is announced says so itself"));
        }
        if self.wait_for_attach || self.attach_timeout_ms > 0 {
            return wrong(
                "wait_for_attach or attach_timeout_ms is given with svcname: a search has no end to wait for"
                    .to_owned(),
            );
        }
        match &self.hostaddr {
            Some(ip) if ip.parse::<IpAddr>().is_err() => {
                wrong(format!("hostaddr `{ip}`: must be an IP address"))
            }
            _ => Ok(()),
        }
    }

    /// Refuses what contradicts itself in a table with several paths or of a discovery service.
    pub fn check_table(&self) -> Result<(), Error> {
        let wrong = |reason: String| Err(Error::invalid(reason).object(&*self.name));
        if let Some(wish) = self.bdevs.iter().find(|wish| wish.rr_min_io == 0) {
            return wrong(format!("rr_min_io of {} is 0: must be at least 1", wish.name));
        }
        if (self.discovery || self.svcname.is_some()) && self.name.len() > MAX_NAME - NUMBER_BYTES {
            let most = MAX_NAME - NUMBER_BYTES;
            return wrong(format!("name `{}`: must be at most {most} bytes, as numbers follow", self.name));
        }
        if let Some(svcname) = &self.svcname {
            return self.check_search(svcname);
        }
        if !self.discovery && self.subnqn.is_empty() {
            return wrong("subnqn is empty: must be the NQN of a subsystem".to_owned());
        }
        if self.discovery && !self.paths.is_empty() {
            return wrong("paths are given: a discovery service finds them itself".to_owned());
        }
        if self.discovery && !self.subnqn.is_empty() && !nvme_spec::nqn::is_discovery(&self.subnqn) {
            return wrong(format!("subnqn `{}`: must be left out for a discovery service", self.subnqn));
        }
        if !self.discovery && (self.wait_for_attach || self.attach_timeout_ms > 0) {
            return wrong(
                "wait_for_attach and attach_timeout_ms belong to a discovery service: set discovery = true"
                    .to_owned(),
            );
        }
        if !self.paths.is_empty() && self.multipath == Multipath::Disable {
            return wrong("multipath is disable: there cannot be further paths".to_owned());
        }
        self.members().map(|_| ())
    }

    /// The controllers of a table, each with the parameters of its own.
    pub fn members(&self) -> Result<Vec<NvmeParams>, Error> {
        let mut first = self.clone();
        first.bdevs.clear();
        let paths = std::mem::take(&mut first.paths);
        if paths.len() >= MAX_PATHS {
            let reason = format!("{} paths are given: at most {} are possible", paths.len() + 1, MAX_PATHS);
            return Err(Error::invalid(reason).object(&*self.name));
        }
        let whole = serde_json::to_value(&first)?;
        let mut members = vec![first];
        for (at, path) in paths.into_iter().enumerate() {
            let mut member = whole.clone();
            if let Some(key) = path.keys().find(|key| NOT_OF_A_PATH.contains(&&***key)) {
                let reason = format!("paths[{at}] has `{key}`: it is the same for all paths");
                return Err(Error::invalid(reason).object(&*self.name));
            }
            member.as_object_mut().into_iter().for_each(|member| member.extend(path.clone()));
            let member: NvmeParams = serde_json::from_value(member)
                .map_err(|error| Error::invalid(format!("paths[{at}]: {error}")).object(&*self.name))?;
            member.check()?;
            members.push(member);
        }
        Ok(members)
    }

    /// Whether the transport's addresses are IP addresses.
    fn has_ip_address(&self) -> bool {
        ["tcp", "rdma"].iter().any(|ip| self.trtype.eq_ignore_ascii_case(ip))
    }

    /// The controller's address; `trtype` is the transport's number.
    pub fn address(&self, trtype: u8) -> FabricAddress {
        let trsvcid = match &self.trsvcid {
            Some(trsvcid) => trsvcid.clone(),
            None if self.has_ip_address() && self.discovery => {
                nvme_spec::discovery::DISCOVERY_TCP_PORT.to_string()
            }
            None if self.has_ip_address() => nvme_spec::discovery::IO_PORT.to_string(),
            None => String::new(),
        };
        let adrfam = family(&self.traddr, self.has_ip_address());
        FabricAddress { trtype, adrfam, traddr: self.traddr.clone(), trsvcid, subnqn: self.subnqn.clone() }
    }

    /// This end's address, empty texts if it does not matter.
    pub fn local(&self, trtype: u8) -> FabricAddress {
        let traddr = self.hostaddr.clone().unwrap_or_default();
        let adrfam = family(&traddr, self.has_ip_address());
        let trsvcid = self.hostsvcid.clone().unwrap_or_default();
        FabricAddress { trtype, adrfam, traddr, trsvcid, subnqn: String::new() }
    }

    /// Options of the transport, beside in-capsule data.
    pub fn transport_options(&self, config: &NvmeConfig) -> serde_json::Value {
        let priority: u32 = self.priority.as_deref().and_then(|text| text.parse().ok()).unwrap_or(0);
        // 4.096 us times a power of two, which the kernel takes in milliseconds.
        let ack_timeout_ms = match config.transport_ack_timeout {
            0 => 0,
            exponent => ((4096_u64 << exponent.min(31)) / 1_000_000).max(1),
        };
        serde_json::json!({
            "hdgst": self.hdgst,
            "ddgst": self.ddgst,
            "priority": priority,
            "ack_timeout_ms": ack_timeout_ms,
        })
    }
}

fn family(traddr: &str, is_ip: bool) -> u8 {
    match traddr.parse::<IpAddr>() {
        Ok(IpAddr::V4(_)) if is_ip => 1,
        Ok(IpAddr::V6(_)) if is_ip => 2,
        _ => 254,
    }
}

/// The word for an address family.
pub fn family_name(adrfam: u8) -> &'static str {
    match adrfam {
        1 => "IPv4",
        2 => "IPv6",
        _ => "Intra-host",
    }
}

/// Bytes of a name that leave room for a namespace's number.
const MAX_NAME: usize = 128;
/// Bytes of a name that leave room for the words and number of a discovered controller.
const NUMBER_BYTES: usize = 16;
/// Controllers of one table.
const MAX_PATHS: usize = 32;
/// Parameters that all paths of a table have in common.
const NOT_OF_A_PATH: [&str; 10] = [
    "name",
    "subnqn",
    "multipath",
    "max_bdevs",
    "paths",
    "bdevs",
    "discovery",
    "svcname",
    "wait_for_attach",
    "attach_timeout_ms",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(loss: i32, delay: u32, fast: u32, expected: Option<&str>) {
        let timers = Timers {
            ctrlr_loss_timeout_sec: loss,
            reconnect_delay_sec: delay,
            fast_io_fail_timeout_sec: fast,
        };
        let error = timers.check().err().map(|error| error.reason);
        match expected {
            None => assert_eq!(error, None),
            Some(text) => assert!(error.as_deref().unwrap_or("").starts_with(text), "{error:?}"),
        }
    }

    #[test]
    fn times_that_contradict_each_other_are_refused() {
        check(0, 0, 0, None);
        check(-1, 1, 0, None);
        check(10, 2, 5, None);
        check(-1, 2, 5, None);
        check(-2, 1, 0, Some("ctrlr_loss_timeout_sec is -2"));
        check(10, 0, 0, Some("reconnect_delay_sec is 0"));
        check(0, 0, 3, Some("reconnect_delay_sec is 0"));
        check(1, 2, 0, Some("ctrlr_loss_timeout_sec is 1"));
        check(10, 2, 1, Some("fast_io_fail_timeout_sec is 1"));
        check(10, 2, 10, Some("fast_io_fail_timeout_sec is 10"));
    }

    #[test]
    fn addresses_get_their_family_and_the_usual_port() {
        let params = |json: &str| serde_json::from_str::<NvmeParams>(json).unwrap();
        let tcp =
            params(r#"{"name":"n","trtype":"tcp","traddr":"127.0.0.1","subnqn":"nqn.2026-01.io.tenon:a"}"#);
        assert!(tcp.check().is_ok());
        let address = tcp.address(3);
        assert_eq!((address.adrfam, &*address.trsvcid), (1, "4420"));
        let six = params(r#"{"name":"n","trtype":"TCP","traddr":"::1","trsvcid":"9"}"#).address(3);
        assert_eq!((six.adrfam, &*six.trsvcid), (2, "9"));
        assert_eq!(params(r#"{"name":"n","trtype":"LOOP","traddr":"a"}"#).address(254).trsvcid, "");
        let error = params(r#"{"name":"n","trtype":"TCP","traddr":"host"}"#).check().unwrap_err();
        assert_eq!(error.reason, "traddr `host`: must be an IP address");
    }
}
