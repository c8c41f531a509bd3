//! Identify: what a controller and its namespaces are.

use std::rc::Rc;

use nvme_spec::admin::Identify;
use nvme_spec::command::{NSID_ALL, Sqe};
use nvme_spec::identify::controller::{
    AnaCapabilities, Cmic, ControllerType, Ctratt, DiscoveryControllerType, Fuses, IdentifyControllerNvm,
    Lpa, Oaes, Ofcs, Oncs, Sgls, Vwc,
};
use nvme_spec::identify::list::{
    CommandSetList, EnduranceGroupList, NamespaceGranularityList, NvmSetList, PrimaryControllerCapabilities,
    SecondaryControllerList,
};
use nvme_spec::identify::namespace::{
    Dlfeat, Flbas, IdentifyNamespaceNvm, MetadataCapabilities, Nmic, Nsattr, Nsfeat, Nstat,
};
use nvme_spec::identify::{
    Cns, ControllerList, Csi, IdDescriptor, IdDescriptors, IdentifyController, IdentifyNamespace,
    IdentifyNamespaceIndependent, NamespaceList,
};
use nvme_spec::nqn::NqnField;
use nvme_spec::property::Version;
use nvme_spec::reservation::ReservationCapabilities;
use nvme_spec::status::StatusCode;
use nvme_spec::text::AsciiField;
use tenon_abi::transport::TransportFlags;
use tenon_abi::{BdevFlags, Op};
use zerocopy::IntoBytes;

use super::Controller;
use super::aer::AERL_Z;
use crate::ana::ANA_TRANSITION_SECONDS;
use crate::namespace::Namespace;
use crate::queue::command::zeroed;
use crate::queue::interface::Answer;
use crate::queue::view::MAX_COPY_RANGES;
use crate::target::Target;

impl Target {
    pub(super) fn identify(&self, controller: &Rc<Controller>, sqe: &Sqe) -> Answer {
        let identify: &Identify = sqe.view();
        let nsid = sqe.nsid.get();
        if controller.subsystem.is_discovery {
            return match identify.cns {
                Cns::CONTROLLER => Answer::data(self.identify_controller(controller).as_bytes().to_vec()),
                _ => Answer::refuse(StatusCode::INVALID_FIELD),
            };
        }
        match identify.cns {
            Cns::CONTROLLER => Answer::data(self.identify_controller(controller).as_bytes().to_vec()),
            Cns::ACTIVE_NAMESPACE_LIST | Cns::ALLOCATED_NAMESPACE_LIST => {
                list_namespaces(controller, nsid, identify.cns)
            }
            Cns::COMMAND_SET_ACTIVE_NAMESPACE_LIST if identify.csi == Csi::NVM => {
                list_namespaces(controller, nsid, identify.cns)
            }
            Cns::COMMAND_SET_CONTROLLER if identify.csi == Csi::NVM => {
                Answer::data(identify_nvm(controller).as_bytes().to_vec())
            }
            Cns::COMMAND_SET_COMBINATIONS => {
                let mut list: CommandSetList = zeroed();
                list.0[0].set(1);
                Answer::data(list.as_bytes().to_vec())
            }
            Cns::NVM_SET_LIST => list_nvm_sets(controller, identify.cns_specific.get()),
            Cns::ENDURANCE_GROUP_LIST => list_endurance_groups(identify.cns_specific.get()),
            Cns::PRIMARY_CONTROLLER_CAPABILITIES => {
                // No virtual functions: nothing but whose capabilities these are.
                let mut none: PrimaryControllerCapabilities = zeroed();
                none.cntlid.set(controller.cntlid());
                Answer::data(none.as_bytes().to_vec())
            }
            Cns::SECONDARY_CONTROLLER_LIST => {
                Answer::data(zeroed::<SecondaryControllerList>().as_bytes().to_vec())
            }
            // Namespaces are made by the operator, in any size.
            Cns::NAMESPACE_GRANULARITY_LIST => {
                Answer::data(zeroed::<NamespaceGranularityList>().as_bytes().to_vec())
            }
            Cns::CONTROLLER_LIST => list_controllers(controller, identify.cntid.get()),
            Cns::NAMESPACE if nsid == NSID_ALL => {
                // What all namespaces have in common: nothing but the shape.
                let mut common: IdentifyNamespace = zeroed();
                common.lbaf[0].lbads = 9;
                Answer::data(common.as_bytes().to_vec())
            }
            Cns::NAMESPACE
            | Cns::ALLOCATED_NAMESPACE
            | Cns::NAMESPACE_DESCRIPTOR_LIST
            | Cns::INDEPENDENT_NAMESPACE
            | Cns::NAMESPACE_CONTROLLER_LIST => {
                identify_namespace(controller, identify.cns, nsid, identify.cntid.get())
            }
            Cns::COMMAND_SET_NAMESPACE if identify.csi == Csi::NVM => {
                identify_namespace(controller, identify.cns, nsid, 0)
            }
            Cns::COMMAND_SET_NAMESPACE
            | Cns::COMMAND_SET_CONTROLLER
            | Cns::COMMAND_SET_ACTIVE_NAMESPACE_LIST => Answer::refuse(StatusCode::INVALID_FIELD),
            _ => Answer::refuse(StatusCode::INVALID_FIELD),
        }
    }

    fn identify_controller(&self, controller: &Controller) -> IdentifyController {
        let options = &self.inner.options;
        let spec = &controller.subsystem.spec;
        let mut id: IdentifyController = zeroed();
        id.sn = AsciiField::new(&spec.serial_number).unwrap_or(AsciiField([b' '; 20]));
        id.mn = AsciiField::new(&spec.model_number).unwrap_or(AsciiField([b' '; 40]));
        id.fr = firmware_revision();
        id.mdts = (options.max_transfer_bytes / 4096).ilog2() as u8;
        id.cntlid.set(controller.cntlid());
        id.ver = Version::V2_0;
        id.ctratt = Ctratt::HOST_ID_128.with(Ctratt::TRAFFIC_BASED_KEEP_ALIVE);
        id.acl_z = ABORT_LIMIT_Z;
        id.aerl_z = AERL_Z;
        id.lpa = Lpa::EXTENDED_DATA.with(Lpa::SUPPORTED_PAGES).with(Lpa::COMMANDS_SUPPORTED);
        id.elpe_z = super::log::MAX_ERROR_ENTRIES as u8 - 1;
        id.kas.set(controller.keep_alive_rules.granularity_100ms);
        id.maxcmd.set(options.max_queue_entries);
        if let Ok(nqn) = NqnField::new(&controller.subsystem.nqn) {
            id.subnqn = nqn;
        }
        self.describe_sgls(controller, &mut id);
        if controller.subsystem.is_discovery {
            id.cntrltype = ControllerType::DISCOVERY;
            id.dctype = DiscoveryControllerType::DIRECT;
            id.oaes = Oaes::DISCOVERY_LOG_CHANGE;
            return id;
        }
        id.cntrltype = ControllerType::IO;
        id.ctratt = id.ctratt.with(Ctratt::NVM_SETS).with(Ctratt::ENDURANCE_GROUPS);
        id.nsetidmax.set(NVM_SET);
        id.endgidmax.set(ENDURANCE_GROUP);
        id.rab = 6;
        id.cmic = Cmic::MULTIPLE_PORTS.with(Cmic::MULTIPLE_CONTROLLERS);
        id.oaes = Oaes::NAMESPACE_ATTRIBUTE;
        let [crdt1, crdt2, crdt3] = self.inner.retry_delays_100ms.get();
        id.crdt1.set(crdt1);
        id.crdt2.set(crdt2);
        id.crdt3.set(crdt3);
        // One slot, read only, active.
        id.frmw = 0b11;
        id.wctemp.set(WARNING_TEMPERATURE_KELVIN);
        id.cctemp.set(CRITICAL_TEMPERATURE_KELVIN);
        id.hctma.set(1);
        id.mntmt.set(*THROTTLING_KELVIN.start());
        id.mxtmt.set(*THROTTLING_KELVIN.end());
        if spec.ana_reporting {
            id.cmic = id.cmic.with(Cmic::ANA);
            id.oaes = id.oaes.with(Oaes::ANA_CHANGE);
            id.anatt = ANA_TRANSITION_SECONDS;
            id.anacap = AnaCapabilities::KNOWN
                .without(AnaCapabilities::GROUP_ID_FIXED)
                .without(AnaCapabilities::GROUP_ID_MANAGEABLE);
            id.anagrpmax.set(spec.max_namespaces);
            id.nanagrpid.set(spec.max_namespaces);
        }
        id.sqes = 0x66;
        id.cqes = 0x44;
        id.nn.set(spec.max_namespaces);
        id.mnan.set(spec.max_namespaces);
        id.nwpc = 1;
        self.describe_commands(controller, &mut id);
        id
    }

    fn describe_sgls(&self, controller: &Controller, id: &mut IdentifyController) {
        let transports = self.inner.transports.borrow();
        let flags = transports
            .get(&controller.facts.transport)
            .map_or(TransportFlags(0), |instance| instance.shared.flags());
        let has = |flag: TransportFlags| flags.0 & flag.0 != 0;
        id.sgls = Sgls::SUPPORTED;
        if has(TransportFlags::KEYED_SGL) {
            id.sgls = id.sgls.with(Sgls::KEYED);
        } else {
            id.sgls = id.sgls.with(Sgls::TRANSPORT_DATA_BLOCK);
        }
        let mut capsule = SQE_BYTES;
        if has(TransportFlags::IN_CAPSULE_DATA) {
            id.sgls = id.sgls.with(Sgls::OFFSET);
            capsule += controller.facts.in_capsule_size;
        }
        id.ioccsz.set(capsule / 16);
        id.iorcsz.set(1);
        id.msdbd = 1;
        id.ofcs = Ofcs::DISCONNECT;
    }

    fn describe_commands(&self, controller: &Controller, id: &mut IdentifyController) {
        let namespaces = controller.subsystem.namespaces.borrow();
        let any = |op: Op| namespaces.values().any(|namespace| namespace.io_types & op.bit() != 0);
        id.oncs = Oncs::DATASET_MANAGEMENT.with(Oncs::SAVE_FEATURES).with(Oncs::RESERVATIONS);
        for (op, bit) in [
            (Op::COMPARE, Oncs::COMPARE),
            (Op::WRITE_ZEROES, Oncs::WRITE_ZEROES),
            (Op::VERIFY, Oncs::VERIFY),
            (Op::COPY, Oncs::COPY),
            (Op::WRITE_UNCORRECTABLE, Oncs::WRITE_UNCORRECTABLE),
        ] {
            if any(op) {
                id.oncs = id.oncs.with(bit);
            }
        }
        if any(Op::COPY) {
            id.cdfs.set(1);
        }
        if any(Op::COMPARE_AND_WRITE) {
            id.fuses = Fuses::COMPARE_AND_WRITE;
            let blocks = namespaces.values().map(|ns| ns.limits.atomic_compare_write_blocks.max(1)).min();
            id.acwu_z.set((blocks.unwrap_or(1) - 1).min(u32::from(u16::MAX)) as u16);
        }
        let has_cache =
            namespaces.values().any(|namespace| namespace.flags.contains(BdevFlags::VOLATILE_WRITE_CACHE));
        id.vwc = if has_cache { Vwc::PRESENT.with(Vwc::FLUSH_ALL_REFUSED) } else { Vwc::FLUSH_ALL_REFUSED };
    }
}

fn identify_nvm(controller: &Controller) -> IdentifyControllerNvm {
    let spec = &controller.subsystem.spec;
    let mut id: IdentifyControllerNvm = zeroed();
    id.dmrl = 0;
    if spec.max_discard_size_kib > 0 {
        // One figure for all namespaces: counted in the largest blocks, no range is longer than wanted.
        let namespaces = controller.subsystem.namespaces.borrow();
        let block = namespaces.values().map(|namespace| namespace.limits.block_size).max().unwrap_or(512);
        id.dmrsl.set((spec.max_discard_size_kib * 1024 / u64::from(block)).min(u64::from(u32::MAX)) as u32);
    }
    if spec.max_write_zeroes_size_kib > 0 {
        // In units of 4 KiB, as a power of two.
        id.wzsl = (spec.max_write_zeroes_size_kib / 4).ilog2() as u8;
    }
    id
}

fn list_namespaces(controller: &Controller, after: u32, cns: Cns) -> Answer {
    if after >= NSID_ALL - 1 {
        return Answer::refuse(StatusCode::INVALID_NAMESPACE_OR_FORMAT);
    }
    let mut list: NamespaceList = zeroed();
    let namespaces = controller.subsystem.namespaces.borrow();
    let is_listed = |namespace: &&Namespace| {
        cns == Cns::ALLOCATED_NAMESPACE_LIST || namespace.is_visible_to(&controller.association.hostnqn)
    };
    let nsids = namespaces.values().filter(is_listed).map(|ns| ns.nsid).filter(|nsid| *nsid > after);
    for (to, nsid) in list.0.iter_mut().zip(nsids) {
        to.set(nsid);
    }
    Answer::data(list.as_bytes().to_vec())
}

/// Bytes of all namespaces.
pub(super) fn capacity(controller: &Controller) -> u128 {
    let namespaces = controller.subsystem.namespaces.borrow();
    let bytes = |ns: &Namespace| u128::from(ns.limits.num_blocks) * u128::from(ns.limits.block_size);
    namespaces.values().map(bytes).sum()
}

fn list_nvm_sets(controller: &Controller, from: u16) -> Answer {
    let mut list: NvmSetList = zeroed();
    if from <= NVM_SET {
        list.count = 1;
        list.entries[0].nvmsetid.set(NVM_SET);
        list.entries[0].endgid.set(ENDURANCE_GROUP);
        list.entries[0].total_capacity.set(capacity(controller));
    }
    Answer::data(list.as_bytes().to_vec())
}

fn list_endurance_groups(from: u16) -> Answer {
    let mut list: EnduranceGroupList = zeroed();
    if from <= ENDURANCE_GROUP {
        list.count.set(1);
        list.endgids[0].set(ENDURANCE_GROUP);
    }
    Answer::data(list.as_bytes().to_vec())
}

fn list_controllers(controller: &Controller, from: u16) -> Answer {
    let mut list: ControllerList = zeroed();
    let controllers = controller.subsystem.controllers.borrow();
    let mut count = 0;
    for (to, (cntlid, _)) in list.cntlids.iter_mut().zip(controllers.range(from..)) {
        to.set(*cntlid);
        count += 1;
    }
    list.count.set(count);
    Answer::data(list.as_bytes().to_vec())
}

fn identify_namespace(controller: &Controller, cns: Cns, nsid: u32, cntid: u16) -> Answer {
    if nsid == 0 || nsid > controller.subsystem.spec.max_namespaces {
        return Answer::refuse(StatusCode::INVALID_NAMESPACE_OR_FORMAT);
    }
    let namespaces = controller.subsystem.namespaces.borrow();
    let visible =
        namespaces.get(&nsid).filter(|namespace| namespace.is_visible_to(&controller.association.hostnqn));
    let Some(namespace) = visible else {
        // An inactive namespace is described by zeroes, except where there is nothing to describe.
        return match cns {
            Cns::NAMESPACE
            | Cns::ALLOCATED_NAMESPACE
            | Cns::COMMAND_SET_NAMESPACE
            | Cns::INDEPENDENT_NAMESPACE => Answer::data(Vec::new()),
            _ => Answer::refuse(StatusCode::INVALID_NAMESPACE_OR_FORMAT),
        };
    };
    let has_ana = controller.subsystem.spec.ana_reporting;
    let data = match cns {
        Cns::NAMESPACE | Cns::ALLOCATED_NAMESPACE => describe(namespace, has_ana).as_bytes().to_vec(),
        Cns::COMMAND_SET_NAMESPACE => zeroed::<IdentifyNamespaceNvm>().as_bytes().to_vec(),
        Cns::INDEPENDENT_NAMESPACE => {
            let mut id: IdentifyNamespaceIndependent = zeroed();
            id.nmic = Nmic::SHARED;
            id.rescap = reservation_capabilities(namespace);
            id.nsattr = write_protection(namespace);
            id.nstat = Nstat::READY;
            id.nvmsetid.set(NVM_SET);
            id.endgid.set(ENDURANCE_GROUP);
            id.anagrpid.set(if has_ana { namespace.anagrpid } else { 0 });
            id.as_bytes().to_vec()
        }
        Cns::NAMESPACE_CONTROLLER_LIST => return list_controllers(controller, cntid),
        _ => identifiers(namespace),
    };
    Answer::data(data)
}

fn describe(namespace: &Namespace, has_ana: bool) -> IdentifyNamespace {
    let limits = &namespace.limits;
    let mut id: IdentifyNamespace = zeroed();
    id.nsze.set(limits.num_blocks);
    id.ncap.set(limits.num_blocks);
    id.nuse.set(limits.num_blocks);
    id.nmic = Nmic::SHARED;
    id.rescap = reservation_capabilities(namespace);
    id.nsattr = write_protection(namespace);
    id.nvmsetid.set(NVM_SET);
    id.endgid.set(ENDURANCE_GROUP);
    let interleaved = namespace.flags.contains(BdevFlags::METADATA_INTERLEAVED) && limits.md_size > 0;
    id.flbas = Flbas::from_format(0, interleaved);
    id.lbaf[0].lbads = limits.block_size.trailing_zeros() as u8;
    if interleaved {
        id.lbaf[0].ms.set(limits.md_size as u16);
        id.mc = MetadataCapabilities::EXTENDED;
    }
    if namespace.io_types & Op::UNMAP.bit() != 0 {
        id.nsfeat = id.nsfeat.with(Nsfeat::THIN_PROVISIONING);
        id.dlfeat = Dlfeat::WRITE_ZEROES_DEALLOCATE;
        if namespace.flags.contains(BdevFlags::UNMAP_READS_ZEROES) {
            id.dlfeat = id.dlfeat.with(Dlfeat::READS_ZEROES);
        }
    }
    let zero_based = |blocks: u32| (blocks.clamp(1, 1 << 16) - 1) as u16;
    if limits.atomic_write_blocks > 0 || limits.atomic_compare_write_blocks > 0 {
        id.nsfeat = id.nsfeat.with(Nsfeat::NAMESPACE_ATOMICS);
        id.nawun_z.set(zero_based(limits.atomic_write_blocks));
        id.nawupf_z.set(zero_based(limits.atomic_write_blocks));
        id.nacwu_z.set(zero_based(limits.atomic_compare_write_blocks));
    }
    id.noiob.set(limits.optimal_io_boundary.min(u32::from(u16::MAX)) as u16);
    let physical = limits.physical_block_size / limits.block_size.max(1);
    id.nsfeat = id.nsfeat.with(Nsfeat::OPTIMAL_PERFORMANCE);
    id.npwg_z.set(zero_based(limits.preferred_write_granularity.max(physical)));
    id.npwa_z.set(zero_based(limits.preferred_write_alignment.max(physical)));
    id.npdg_z.set(zero_based(limits.preferred_unmap_granularity));
    id.npda_z.set(zero_based(limits.preferred_unmap_alignment));
    id.nows_z.set(zero_based(limits.optimal_write_size));
    if namespace.io_types & Op::COPY.bit() != 0 {
        let most = if limits.max_copy_blocks == 0 { u32::MAX } else { limits.max_copy_blocks };
        id.mssrl.set(most.min(u32::from(u16::MAX)) as u16);
        id.mcl.set(most);
        id.msrc_z = (MAX_COPY_RANGES - 1) as u8;
    }
    id.anagrpid.set(if has_ana { namespace.anagrpid } else { 0 });
    id.nguid = namespace.nguid;
    id.eui64 = namespace.eui64;
    id
}

fn reservation_capabilities(namespace: &Namespace) -> ReservationCapabilities {
    let all = ReservationCapabilities::new(u8::MAX);
    if namespace.reservations.file.is_some() { all } else { all.without(ReservationCapabilities::PTPL) }
}

fn write_protection(namespace: &Namespace) -> Nsattr {
    if namespace.refuses_writes() { Nsattr::WRITE_PROTECTED } else { Nsattr::EMPTY }
}

fn identifiers(namespace: &Namespace) -> Vec<u8> {
    let mut list = Vec::new();
    if namespace.eui64 != [0; 8] {
        list.push(IdDescriptor::Eui64(&namespace.eui64));
    }
    if namespace.nguid != [0; 16] {
        list.push(IdDescriptor::Nguid(&namespace.nguid));
    }
    if !namespace.uuid.is_nil() {
        list.push(IdDescriptor::Uuid(namespace.uuid.as_bytes()));
    }
    list.push(IdDescriptor::Csi(Csi::NVM));
    IdDescriptors::from_descriptors(&list).map_or_else(Vec::new, |list| list.as_bytes().to_vec())
}

/// This build, as far as eight characters go.
pub(super) fn firmware_revision() -> AsciiField<8> {
    let version = env!("CARGO_PKG_VERSION");
    AsciiField::new(version.get(..8).unwrap_or(version)).unwrap_or(AsciiField([b' '; 8]))
}

/// All namespaces are in one NVM set of one endurance group.
const NVM_SET: u16 = 1;
pub(super) const ENDURANCE_GROUP: u16 = 1;
/// Bytes of a submission queue entry.
const SQE_BYTES: u32 = 64;
/// Abort Command Limit, 0's based.
const ABORT_LIMIT_Z: u8 = 3;
/// Temperatures of a device that has none: 70 and 80 degrees Celsius.
pub(super) const WARNING_TEMPERATURE_KELVIN: u16 = 343;
const CRITICAL_TEMPERATURE_KELVIN: u16 = 353;
/// Temperatures a host may have a device throttle at: 0 to 80 degrees Celsius.
pub(super) const THROTTLING_KELVIN: std::ops::RangeInclusive<u16> = 273..=CRITICAL_TEMPERATURE_KELVIN;
