//! Properties of the wire types: any bytes are a value, and come out as they went in.
//!
//! Offsets are asserted at compile time next to each structure; here are the
//! properties that need many values, and whole frames as hosts send them.

use nvme_spec::admin::{GetLogPage, Identify};
use nvme_spec::auth::{Challenge, Negotiate, Reply, Success1};
use nvme_spec::command::{CommandView, Sqe};
use nvme_spec::completion::{Cqe, StatusField};
use nvme_spec::discovery::{DiscoveryEntry, DiscoveryHeader, TransportType};
use nvme_spec::fabrics::{Connect, ConnectAttributes, ConnectData, PropertyGet, PropertySet};
use nvme_spec::identify::{IdDescriptors, IdentifyController, IdentifyNamespace};
use nvme_spec::io::{CopyCommand, DatasetManagement, ReadWrite};
use nvme_spec::log::ana::AnaLog;
use nvme_spec::log::{CommandsSupported, HealthInformation};
use nvme_spec::nqn::{self, NqnField};
use nvme_spec::opcode::{FABRICS, FabricsType, IoOpcode};
use nvme_spec::property::{Capabilities, ControllerConfiguration, PropertyOffset};
use nvme_spec::rdma::{CmAccept, CmReject, CmRequest};
use nvme_spec::reservation::{ReservationAcquire, ReservationRegister, ReservationRelease};
use nvme_spec::sgl::{KeyedSglDescriptor, SglIdentifier};
use nvme_spec::status::{StatusCode, StatusCodeType};
use proptest::prelude::*;
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Any bytes of the right length are a `T`, which writes the same bytes back and can be printed.
#[track_caller]
fn check_round_trip<T>(bytes: &[u8])
where
    T: FromBytes + IntoBytes + Immutable + KnownLayout + Unaligned + std::fmt::Debug,
{
    let bytes: Vec<u8> = bytes.iter().copied().cycle().take(size_of::<T>()).collect();
    let value = T::read_from_bytes(&bytes).expect("the length is that of the type");
    assert_eq!(value.as_bytes(), bytes);
    assert!(!format!("{value:?}").is_empty());
}

/// A command seen through a view and put together again is the same command.
#[track_caller]
fn check_view<C: CommandView>(sqe: &Sqe) {
    assert_eq!(Sqe::from_view(sqe.view::<C>()), *sqe);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_bytes_are_a_structure_and_come_back(bytes in prop::collection::vec(any::<u8>(), 1..97)) {
        check_round_trip::<Sqe>(&bytes);
        check_round_trip::<Cqe>(&bytes);
        check_round_trip::<ConnectData>(&bytes);
        check_round_trip::<IdentifyController>(&bytes);
        check_round_trip::<IdentifyNamespace>(&bytes);
        check_round_trip::<HealthInformation>(&bytes);
        check_round_trip::<CommandsSupported>(&bytes);
        check_round_trip::<DiscoveryHeader>(&bytes);
        check_round_trip::<DiscoveryEntry>(&bytes);
        check_round_trip::<CmRequest>(&bytes);
        check_round_trip::<CmAccept>(&bytes);
        check_round_trip::<CmReject>(&bytes);
    }

    #[test]
    fn any_command_survives_every_view(bytes in any::<[[u8; 32]; 2]>()) {
        let sqe = Sqe::read_from_bytes(bytes.as_bytes()).expect("64 bytes");
        check_view::<Identify>(&sqe);
        check_view::<GetLogPage>(&sqe);
        check_view::<ReadWrite>(&sqe);
        check_view::<DatasetManagement>(&sqe);
        check_view::<CopyCommand>(&sqe);
        check_view::<Connect>(&sqe);
        check_view::<PropertyGet>(&sqe);
        check_view::<PropertySet>(&sqe);
        check_view::<ReservationAcquire>(&sqe);
        check_view::<ReservationRegister>(&sqe);
        check_view::<ReservationRelease>(&sqe);
    }

    #[test]
    fn status_parts_are_independent(sct in 0_u8..8, sc: u8, crd in 0_u8..4, dnr: bool, more: bool, phase: bool) {
        let code = StatusCode::from_parts(StatusCodeType(sct), sc);
        let field = StatusField::new(code).with_crd(crd).with_dnr(dnr).with_more(more).with_phase(phase);
        prop_assert_eq!(field.code(), code);
        prop_assert_eq!((field.crd(), field.dnr(), field.more(), field.phase()), (crd, dnr, more, phase));
        prop_assert_eq!((code.sct(), code.sc()), (StatusCodeType(sct), sc));
    }

    #[test]
    fn keyed_descriptors_keep_24_bits_of_length(address: u64, length in 0_u32..=0xff_ffff, key: u32) {
        let id = SglIdentifier::KEYED_DATA_BLOCK;
        let descriptor = KeyedSglDescriptor::new(id, address, length, key).expect("fits 24 bits");
        prop_assert_eq!((descriptor.address.get(), descriptor.length(), descriptor.key()), (address, length, key));
        let above = KeyedSglDescriptor::new(id, address, length + 0x100_0000, key);
        prop_assert_eq!(above, None);
    }

    #[test]
    fn capability_setters_change_their_own_field_only(bits: u64, mqes_z: u16, to: u8, min in 0_u8..16, max in 0_u8..16) {
        let before = Capabilities::new(bits);
        let after = before.with_mqes_z(mqes_z).with_to_500ms(to).with_page_sizes(min, max);
        prop_assert_eq!((after.mqes_z(), after.to_500ms(), after.mpsmin(), after.mpsmax()), (mqes_z, to, min, max));
        prop_assert_eq!((after.dstrd(), after.cps()), (before.dstrd(), before.cps()));
        let own = 0xffff | 0xff << 24 | 0xff << 48;
        prop_assert_eq!(after.get() & !own, bits & !own);
    }

    #[test]
    fn variable_messages_never_read_past_their_bytes(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        if let Some((_, descriptors)) = Negotiate::parse(&bytes) {
            for descriptor in descriptors {
                let _ = (descriptor.hash_ids(), descriptor.dh_group_ids());
            }
        }
        if let Some((head, cval, dhv)) = Challenge::parse(&bytes) {
            prop_assert_eq!((cval.len(), dhv.len()), (usize::from(head.hl), usize::from(head.dhvlen.get())));
        }
        let _ = (Reply::parse(&bytes), Success1::parse(&bytes));
        if let Some(log) = AnaLog::parse(&bytes) {
            prop_assert!(log.groups().count() <= bytes.len());
        }
    }

    #[test]
    fn descriptor_lists_of_any_bytes_end(bytes in prop::collection::vec(any::<u8>(), 1..300)) {
        let bytes: Vec<u8> = bytes.iter().copied().cycle().take(4096).collect();
        let list = IdDescriptors::read_from_bytes(&bytes).expect("4096 bytes");
        prop_assert!(list.iter().count() <= 4096 / 5);
    }

    #[test]
    fn names_round_trip_through_their_field(name in "[ -~]{1,223}") {
        let field = NqnField::new(&name).expect("of legal length");
        prop_assert_eq!(field.as_str(), Ok(name.as_str()));
    }

    #[test]
    fn validation_takes_any_text_without_panic(name in "\\PC{0,300}") {
        let _ = nqn::validate(&name);
    }

    #[test]
    fn codes_print_whatever_their_value(value: u8) {
        prop_assert_eq!(IoOpcode(value).is_known(), IoOpcode::KNOWN.contains(&IoOpcode(value)));
        prop_assert!(!IoOpcode(value).to_string().is_empty());
        let debug = format!("{:?}", TransportType(value));
        prop_assert!(debug.starts_with("TransportType("));
    }
}

#[test]
fn a_connect_as_linux_sends_it_is_understood() {
    let mut sqe = [0_u8; 64];
    sqe[..5].copy_from_slice(&[0x7f, 0x40, 0x00, 0x00, 0x01]);
    sqe[24 + 8..24 + 12].copy_from_slice(&1024_u32.to_le_bytes());
    sqe[24 + 15] = 0x01;
    sqe[44..46].copy_from_slice(&31_u16.to_le_bytes());
    sqe[46] = 0x04;
    sqe[48..52].copy_from_slice(&5000_u32.to_le_bytes());
    let sqe = Sqe::read_from_bytes(&sqe).expect("64 bytes");
    assert_eq!(sqe.fabrics_type(), Some(FabricsType::CONNECT));
    let connect: &Connect = sqe.view();
    assert_eq!((connect.qid.get(), connect.queue_entries(), connect.kato_ms.get()), (0, 32, 5000));
    assert!(connect.cattr.contains(ConnectAttributes::DISABLE_SQ_FLOW_CONTROL));
    let sgl = connect.head.sgl1.sgl();
    assert_eq!((sgl.identifier, sgl.length.get()), (SglIdentifier::DATA_BLOCK_OFFSET, 1024));
}

#[test]
fn a_property_set_as_linux_sends_it_is_understood() {
    let mut sqe = [0_u8; 64];
    sqe[..2].copy_from_slice(&[FABRICS, 0x40]);
    sqe[44] = 0x14;
    sqe[48..52].copy_from_slice(&0x0046_0001_u32.to_le_bytes());
    let sqe = Sqe::read_from_bytes(&sqe).expect("64 bytes");
    assert_eq!(sqe.fabrics_type(), Some(FabricsType::PROPERTY_SET));
    let set: &PropertySet = sqe.view();
    assert_eq!((set.ofst, set.attrib.size()), (PropertyOffset::CC, Some(4)));
    let cc = ControllerConfiguration::new(u32::try_from(set.value.get()).expect("a 4-byte property"));
    assert!(cc.contains(ControllerConfiguration::EN));
    assert_eq!((cc.iosqes(), cc.iocqes()), (6, 4));
}

#[test]
fn zeroed_structures_have_no_names_or_formats() {
    assert_eq!(ConnectData::new_zeroed().subnqn.as_str(), Err(nqn::NqnError::Empty));
    assert_eq!(IdentifyController::new_zeroed().sn.as_str(), Some(""));
}
