//! What a command needs: decided when it arrives, from its 64 bytes.
//!
//! Checks everything that can be checked without data, chooses the payload's
//! memory and direction, and leaves the rest to `execute`. Nothing is executed
//! here, and nothing is allocated.
// UNSAFETY: reads and fills requests through the transport's pointers.

use nvme_spec::admin::{GetFeatures, GetLogPage, SetFeatures};
use nvme_spec::auth::Authentication;
use nvme_spec::command::{Fuse, Sqe};
use nvme_spec::completion::StatusField;
use nvme_spec::fabrics::ConnectData;
use nvme_spec::features::{FeatureId, HostBehavior};
use nvme_spec::identify::IDENTIFY_SIZE;
use nvme_spec::io::{
    CopyCommand, CopyRange, DatasetManagement, DsmAttributes, DsmRange, IoControl, ReadWrite,
};
use nvme_spec::log::AnaState;
use nvme_spec::opcode::{AdminOpcode, FABRICS, FabricsType, IoOpcode};
use nvme_spec::reservation::{AcquireData, RegisterData, ReleaseData, ReservationReport};
use nvme_spec::sgl::{Psdt, SglType};
use nvme_spec::status::StatusCode;
use tenon_abi::transport::target::{Disposition, TargetRequest};
use tenon_abi::transport::{CloseReason, Direction, TransportFlags};
use tenon_abi::{IoFlags, IoVec, Op};
use zerocopy::FromBytes;

use super::command::{Command, Stage, Work};
use super::interface::COPY_RANGE_SIZE;
use super::view::{MAX_COPY_RANGES, MAX_RANGES, NamespaceSide};
use super::{OpenQueue, Phase, PhaseEvent, QueuePair};
use crate::auth::MAX_MESSAGE_BYTES;
use crate::status::refused;

/// Payload of a command.
#[derive(Clone, Copy)]
struct Payload {
    direction: Direction,
    length: u32,
    /// Bytes of buffer the command needs of its own, beside or instead of the payload's.
    buffer: u32,
}

/// What an I/O command is to do.
struct IoPlan {
    work: Work,
    slba: u64,
    blocks: u32,
    payload: Payload,
    forces_unit_access: bool,
    flushes_after: bool,
    deallocates: bool,
}

impl Payload {
    const NONE: Payload = Payload { direction: Direction::NONE, length: 0, buffer: 0 };

    fn to_controller(length: u32) -> Self {
        Self { direction: Direction::TO_CONTROLLER, length, buffer: 0 }
    }

    fn to_host(length: u32) -> Self {
        Self { direction: Direction::TO_HOST, length, buffer: length }
    }
}

impl QueuePair {
    /// A command arrived.
    ///
    /// # Safety
    /// `request` is the transport's, filled and not begun; this is its queue.
    pub(crate) unsafe fn begin(&self, request: *mut TargetRequest) -> Disposition {
        let fits = self.count_arrival();
        // SAFETY: the request is the transport's and outlives this call.
        unsafe {
            (*request).iovs = std::ptr::null_mut();
            (*request).iovcnt = 0;
            (*request).length = 0;
            (*request).direction = Direction::NONE;
            (*request).memory_key = 0;
            let bytes = (*request).sqe;
            let Ok(sqe) = Sqe::ref_from_bytes(&bytes) else {
                return self.respond(request, refused(StatusCode::INVALID_FIELD));
            };
            if !fits {
                log::warn!("host sent more commands than its queue has entries number={}", self.key.number);
                self.close(CloseReason::PROTOCOL);
                return self.respond(request, refused(StatusCode::COMMAND_SEQUENCE_ERROR));
            }
            match (self.phase.get(), self.opened.get()) {
                (Phase::Live, Some(open)) if open.qid != 0 && sqe.opc != FABRICS => {
                    self.begin_io(open, request, sqe)
                }
                (Phase::Live, Some(open)) => self.begin_control(Some(open), request, sqe),
                (Phase::New, None) => self.begin_control(None, request, sqe),
                (Phase::Authenticating, Some(open)) if is_authentication(sqe) => {
                    self.begin_control(Some(open), request, sqe)
                }
                (Phase::Authenticating, _) => {
                    self.respond(request, refused(StatusCode::AUTHENTICATION_REQUIRED))
                }
                (Phase::New | Phase::Connecting | Phase::Live, _) => {
                    self.respond(request, refused(StatusCode::COMMAND_SEQUENCE_ERROR))
                }
                (Phase::Closing | Phase::Closed, _) => {
                    self.respond(request, StatusField::new(StatusCode::ABORTED_SQ_DELETION))
                }
            }
        }
    }

    /// A command for the control reactor.
    ///
    /// # Safety
    /// As [`QueuePair::begin`].
    unsafe fn begin_control(
        &self,
        open: Option<&OpenQueue>,
        request: *mut TargetRequest,
        sqe: &Sqe,
    ) -> Disposition {
        let is_connect = sqe.fabrics_type() == Some(FabricsType::CONNECT);
        let checked = if is_connect == open.is_some() {
            // Connect comes first, and only first.
            Err(StatusCode::COMMAND_SEQUENCE_ERROR)
        } else if sqe.flags.fuse() != Fuse::None || (sqe.opc == FABRICS && sqe.flags.psdt() != Psdt::Sgl) {
            Err(StatusCode::INVALID_FIELD)
        } else {
            self.control_payload(sqe).and_then(|payload| check_sgl(sqe, payload).map(|()| payload))
        };
        // SAFETY: as the caller promises.
        unsafe {
            match checked {
                Err(code) => self.respond(request, refused(code)),
                Ok(payload) => {
                    if is_connect && !self.advance(PhaseEvent::ConnectCame) {
                        return self.respond(request, refused(StatusCode::COMMAND_SEQUENCE_ERROR));
                    }
                    let command = self.adopt(request, 0);
                    self.provide(command, payload)
                }
            }
        }
    }

    fn control_payload(&self, sqe: &Sqe) -> Result<Payload, StatusCode> {
        if let Some(fctype) = sqe.fabrics_type() {
            return Ok(match fctype {
                FabricsType::CONNECT => Payload::to_controller(size_of::<ConnectData>() as u32),
                FabricsType::AUTHENTICATION_SEND | FabricsType::AUTHENTICATION_RECEIVE => {
                    let length = sqe.view::<Authentication>().length.get();
                    if length == 0 || length > MAX_MESSAGE_BYTES {
                        return Err(StatusCode::INVALID_FIELD);
                    }
                    match fctype {
                        FabricsType::AUTHENTICATION_SEND => Payload::to_controller(length),
                        _ => Payload::to_host(length),
                    }
                }
                _ => Payload::NONE,
            });
        }
        Ok(match AdminOpcode(sqe.opc) {
            AdminOpcode::IDENTIFY => Payload::to_host(IDENTIFY_SIZE as u32),
            AdminOpcode::GET_LOG_PAGE => {
                let length = sqe.view::<GetLogPage>().length();
                if length > u64::from(self.side.options.max_transfer_bytes) {
                    return Err(StatusCode::INVALID_FIELD);
                }
                Payload::to_host(length as u32)
            }
            AdminOpcode::GET_FEATURES => match sqe.view::<GetFeatures>().fid {
                // Supported capabilities are told without data.
                _ if sqe.view::<GetFeatures>().sel.0 & 0b111 == 0b011 => Payload::NONE,
                // Over fabrics an identifier has 128 bits, and the host has to ask for that.
                FeatureId::HOST_IDENTIFIER if sqe.view::<GetFeatures>().cdw11.get() & 1 == 0 => {
                    return Err(StatusCode::INVALID_FIELD);
                }
                FeatureId::HOST_IDENTIFIER => Payload::to_host(16),
                FeatureId::HOST_BEHAVIOR_SUPPORT => Payload::to_host(size_of::<HostBehavior>() as u32),
                _ => Payload::NONE,
            },
            AdminOpcode::SET_FEATURES => match sqe.view::<SetFeatures>().fid {
                FeatureId::HOST_BEHAVIOR_SUPPORT => Payload::to_controller(size_of::<HostBehavior>() as u32),
                _ => Payload::NONE,
            },
            _ => Payload::NONE,
        })
    }

    /// A command for a namespace.
    ///
    /// # Safety
    /// As [`QueuePair::begin`].
    unsafe fn begin_io(&self, open: &OpenQueue, request: *mut TargetRequest, sqe: &Sqe) -> Disposition {
        let fuse = sqe.flags.fuse();
        let first = self.fused.get();
        if !first.is_null() && fuse != Fuse::Second {
            self.break_fusion(StatusCode::ABORTED_MISSING_FUSED);
        }
        if is_reservation(IoOpcode(sqe.opc)) {
            // SAFETY: as the caller promises.
            return unsafe { self.begin_reservation(open, request, sqe) };
        }
        let planned = self.namespace_for(open, sqe).and_then(|namespace| {
            let plan = self.plan(&namespace, sqe).map_err(refused)?;
            check_sgl(sqe, plan.payload).map_err(refused)?;
            self.check_fusion(&namespace, &plan, fuse, first).map_err(refused)?;
            Ok((namespace, plan))
        });
        // SAFETY: as the caller promises; a command is linked before anybody else hears of it.
        unsafe {
            let (namespace, plan) = match planned {
                Ok(planned) => planned,
                Err(status) => {
                    if fuse == Fuse::Second {
                        self.break_fusion(StatusCode::ABORTED_FAILED_FUSED);
                    }
                    return self.respond(request, status);
                }
            };
            let command = self.adopt(request, namespace.class);
            (*command).work = plan.work;
            (*command).slba = plan.slba;
            (*command).blocks = plan.blocks;
            (*command).forces_unit_access = plan.forces_unit_access;
            (*command).flushes_after = plan.flushes_after;
            (*command).deallocates = plan.deallocates;
            (*command).namespace = Some(namespace);
            match fuse {
                Fuse::First => {
                    (*command).is_fused_first = true;
                    self.fused.set(command);
                }
                Fuse::Second => {
                    (*command).is_fused_second = true;
                    self.fused.set(std::ptr::null_mut());
                    (*command).partner = first;
                    (*first).partner = command;
                }
                Fuse::None | Fuse::Reserved => {}
            }
            self.provide(command, plan.payload)
        }
    }

    /// A reservation command: for the control reactor, but of a namespace.
    ///
    /// # Safety
    /// As [`QueuePair::begin`].
    unsafe fn begin_reservation(
        &self,
        open: &OpenQueue,
        request: *mut TargetRequest,
        sqe: &Sqe,
    ) -> Disposition {
        let checked = self.namespace_for(open, sqe).and_then(|_| {
            let payload = self.reservation_payload(sqe).map_err(refused)?;
            check_sgl(sqe, payload).map_err(refused)?;
            Ok(payload)
        });
        // SAFETY: as the caller promises.
        unsafe {
            match checked {
                Err(status) => self.respond(request, status),
                Ok(payload) => {
                    let command = self.adopt(request, 0);
                    self.provide(command, payload)
                }
            }
        }
    }

    fn reservation_payload(&self, sqe: &Sqe) -> Result<Payload, StatusCode> {
        if sqe.flags.fuse() != Fuse::None {
            return Err(StatusCode::INVALID_FIELD);
        }
        Ok(match IoOpcode(sqe.opc) {
            IoOpcode::RESERVATION_REGISTER => Payload::to_controller(size_of::<RegisterData>() as u32),
            IoOpcode::RESERVATION_ACQUIRE => Payload::to_controller(size_of::<AcquireData>() as u32),
            IoOpcode::RESERVATION_RELEASE => Payload::to_controller(size_of::<ReleaseData>() as u32),
            _ => {
                let length = sqe.view::<ReservationReport>().length();
                if length > u64::from(self.side.options.max_transfer_bytes) {
                    return Err(StatusCode::INVALID_FIELD);
                }
                Payload::to_host(length as u32)
            }
        })
    }

    fn namespace_for(&self, open: &OpenQueue, sqe: &Sqe) -> Result<std::rc::Rc<NamespaceSide>, StatusField> {
        let nsid = sqe.nsid.get();
        let access = open.access.borrow();
        let found = if access.sees(nsid) { open.subsystem.namespace(nsid) } else { None };
        let Some(namespace) = found else {
            return Err(refused(StatusCode::INVALID_NAMESPACE_OR_FORMAT));
        };
        let code = match access.ana_state(namespace.anagrpid.get()) {
            AnaState::INACCESSIBLE => StatusCode::ANA_INACCESSIBLE,
            AnaState::PERSISTENT_LOSS => StatusCode::ANA_PERSISTENT_LOSS,
            AnaState::CHANGE => StatusCode::ANA_TRANSITION,
            _ => return Ok(namespace),
        };
        Err(StatusField::new(code))
    }

    fn plan(&self, namespace: &NamespaceSide, sqe: &Sqe) -> Result<IoPlan, StatusCode> {
        let rw: &ReadWrite = sqe.view();
        let work = match IoOpcode(sqe.opc) {
            IoOpcode::READ => Work::Read,
            IoOpcode::WRITE => Work::Write,
            IoOpcode::FLUSH => Work::Flush,
            IoOpcode::COMPARE => Work::Compare,
            IoOpcode::WRITE_ZEROES => Work::WriteZeroes,
            IoOpcode::VERIFY => Work::Verify,
            IoOpcode::WRITE_UNCORRECTABLE => Work::WriteUncorrectable,
            IoOpcode::DATASET_MANAGEMENT => return self.plan_ranges(namespace, sqe),
            IoOpcode::COPY => return self.plan_copy(namespace, sqe),
            _ => return Err(StatusCode::INVALID_OPCODE),
        };
        let mut plan = IoPlan {
            work,
            slba: rw.slba.get(),
            blocks: rw.block_count(),
            payload: Payload::NONE,
            forces_unit_access: false,
            flushes_after: false,
            deallocates: false,
        };
        let op = match work {
            Work::Flush => return Ok(plan),
            Work::Read => Op::READ,
            Work::Write => Op::WRITE,
            Work::Compare => Op::COMPARE,
            Work::WriteZeroes => Op::WRITE_ZEROES,
            Work::Verify => Op::VERIFY,
            _ => Op::WRITE_UNCORRECTABLE,
        };
        let writes = matches!(work, Work::Write | Work::WriteZeroes | Work::WriteUncorrectable);
        if !namespace.supports(op) {
            return Err(StatusCode::INVALID_OPCODE);
        }
        if writes && namespace.is_write_protected.get() {
            return Err(StatusCode::NAMESPACE_WRITE_PROTECTED);
        }
        check_range(namespace, plan.slba, u64::from(plan.blocks))?;
        if matches!(work, Work::Read | Work::Write | Work::Compare) {
            let bytes = u64::from(plan.blocks) * u64::from(namespace.block_bytes);
            if bytes > u64::from(self.side.options.max_transfer_bytes) {
                return Err(StatusCode::INVALID_FIELD);
            }
            plan.payload = if work == Work::Read {
                // Memory for it is found when it runs: the device may lend its own.
                Payload { buffer: 0, ..Payload::to_host(bytes as u32) }
            } else {
                Payload::to_controller(bytes as u32)
            };
            if work == Work::Read && !self.may_borrow(namespace) {
                plan.payload.buffer = bytes as u32;
            }
        }
        let control = rw.control;
        if writes && control.contains(IoControl::FUA) {
            plan.forces_unit_access = namespace.io_flags.contains(IoFlags::FUA);
            plan.flushes_after = !plan.forces_unit_access && namespace.has_write_cache;
        }
        plan.deallocates = work == Work::WriteZeroes
            && control.contains(IoControl::DEAC)
            && namespace.io_flags.contains(IoFlags::DEALLOCATE);
        Ok(plan)
    }

    /// Whether reads of `namespace` may be answered from the device's own memory.
    pub(crate) fn may_borrow(&self, namespace: &NamespaceSide) -> bool {
        namespace.io_flags.contains(IoFlags::LEND)
            && self.transport.flags().0 & TransportFlags::LENT_MEMORY.0 != 0
    }

    fn plan_ranges(&self, namespace: &NamespaceSide, sqe: &Sqe) -> Result<IoPlan, StatusCode> {
        let dsm: &DatasetManagement = sqe.view();
        let deallocates = dsm.attributes.contains(DsmAttributes::AD);
        if deallocates && namespace.is_write_protected.get() {
            return Err(StatusCode::NAMESPACE_WRITE_PROTECTED);
        }
        let needed = dsm.range_count() * size_of::<DsmRange>();
        // Hosts may send the whole list, of which only the first ranges count.
        let sent = transfer_length(sqe).unwrap_or(0) as usize;
        let is_list = (needed..=MAX_RANGES * size_of::<DsmRange>()).contains(&sent);
        let length = if is_list { sent } else { needed };
        Ok(IoPlan {
            work: if deallocates && namespace.supports(Op::UNMAP) { Work::Deallocate } else { Work::Hint },
            slba: 0,
            blocks: dsm.range_count() as u32,
            payload: Payload::to_controller(length as u32),
            forces_unit_access: false,
            flushes_after: false,
            deallocates,
        })
    }

    fn plan_copy(&self, namespace: &NamespaceSide, sqe: &Sqe) -> Result<IoPlan, StatusCode> {
        let copy: &CopyCommand = sqe.view();
        if !namespace.supports(Op::COPY) {
            return Err(StatusCode::INVALID_OPCODE);
        }
        if namespace.is_write_protected.get() {
            return Err(StatusCode::NAMESPACE_WRITE_PROTECTED);
        }
        if copy.descriptor_format() != 0 {
            return Err(StatusCode::INVALID_FIELD);
        }
        let count = copy.range_count();
        if count > MAX_COPY_RANGES {
            return Err(StatusCode::COMMAND_SIZE_LIMIT_EXCEEDED);
        }
        let length = (count * size_of::<CopyRange>()) as u32;
        let forces = copy.control.contains(IoControl::FUA);
        let forces_unit_access = forces && namespace.io_flags.contains(IoFlags::FUA);
        Ok(IoPlan {
            work: Work::Copy,
            slba: copy.sdlba.get(),
            blocks: count as u32,
            // Room behind the data for the ranges as the device takes them.
            payload: Payload {
                buffer: (MAX_COPY_RANGES * (size_of::<CopyRange>() + COPY_RANGE_SIZE)) as u32,
                ..Payload::to_controller(length)
            },
            forces_unit_access,
            flushes_after: forces && !forces_unit_access && namespace.has_write_cache,
            deallocates: false,
        })
    }

    /// Whether a command may stand where it stands in a fused operation.
    fn check_fusion(
        &self,
        namespace: &NamespaceSide,
        plan: &IoPlan,
        fuse: Fuse,
        first: *mut Command,
    ) -> Result<(), StatusCode> {
        match fuse {
            Fuse::None => Ok(()),
            Fuse::Reserved => Err(StatusCode::INVALID_FIELD),
            _ if !namespace.supports(Op::COMPARE_AND_WRITE) => Err(StatusCode::INVALID_FIELD),
            Fuse::First if plan.work != Work::Compare => Err(StatusCode::INVALID_FIELD),
            Fuse::First if plan.blocks > namespace.atomic_blocks => {
                Err(StatusCode::ATOMIC_WRITE_UNIT_EXCEEDED)
            }
            Fuse::First => Ok(()),
            Fuse::Second if first.is_null() => Err(StatusCode::ABORTED_MISSING_FUSED),
            Fuse::Second if plan.work != Work::Write => Err(StatusCode::INVALID_FIELD),
            Fuse::Second => {
                // SAFETY: the first half is in our list until it is answered, which clears `fused`.
                let (slba, blocks, nsid) = unsafe {
                    let nsid = (*first).namespace.as_ref().map(|namespace| namespace.nsid);
                    ((*first).slba, (*first).blocks, nsid)
                };
                let is_same = slba == plan.slba && blocks == plan.blocks && nsid == Some(namespace.nsid);
                if is_same { Ok(()) } else { Err(StatusCode::INVALID_FIELD) }
            }
        }
    }

    /// The second half of a fused operation did not come, or cannot be used.
    fn break_fusion(&self, code: StatusCode) {
        let first = self.fused.replace(std::ptr::null_mut());
        // SAFETY: the first half is in our list; one that the transport still has is answered when it runs.
        unsafe {
            if !first.is_null() && (*first).stage == Stage::Partner {
                self.complete(first, refused(code), 0);
            }
        }
    }

    /// Gives a command its memory, and says how it goes on.
    ///
    /// # Safety
    /// `command` is fresh, of this queue.
    unsafe fn provide(&self, command: *mut Command, payload: Payload) -> Disposition {
        // SAFETY: the command and its request are alive.
        unsafe {
            let request = (*command).request;
            (*request).direction = payload.direction;
            (*request).length = payload.length;
            let is_in_capsule = payload.direction == Direction::TO_CONTROLLER
                && (*request).capsule_length >= payload.length
                && !(*request).capsule_data.is_null();
            let needed = match payload.direction {
                Direction::TO_CONTROLLER if !is_in_capsule => payload.buffer.max(payload.length),
                _ => payload.buffer,
            };
            (*command).buffer_len = needed;
            if needed > 0 && !self.take_buffer(command, needed) {
                (*command).buffer_len = needed;
                (*command).stage = Stage::BufferToReceive;
                self.side.wait_for_buffer(command);
                return Disposition::WAIT;
            }
            self.direct(command)
        }
    }

    /// Where the payload of a command with memory is, and whether it has to be received.
    ///
    /// # Safety
    /// As [`QueuePair::provide`].
    pub(crate) unsafe fn direct(&self, command: *mut Command) -> Disposition {
        // SAFETY: the command and its request are alive.
        unsafe {
            (*command).stage = Stage::Transport;
            let request = (*command).request;
            if (*request).direction != Direction::TO_CONTROLLER {
                return Disposition::EXECUTE;
            }
            let length = (*request).length;
            if (*request).capsule_length >= length && !(*request).capsule_data.is_null() {
                (*request).inline_iov = IoVec { base: (*request).capsule_data, len: length as usize };
                (*request).iovs = &raw mut (*request).inline_iov;
                (*request).iovcnt = 1;
                return Disposition::EXECUTE;
            }
            Disposition::RECEIVE
        }
    }
}

fn is_authentication(sqe: &Sqe) -> bool {
    let fctype = sqe.fabrics_type();
    matches!(fctype, Some(FabricsType::AUTHENTICATION_SEND | FabricsType::AUTHENTICATION_RECEIVE))
}

fn is_reservation(opcode: IoOpcode) -> bool {
    matches!(
        opcode,
        IoOpcode::RESERVATION_REGISTER
            | IoOpcode::RESERVATION_REPORT
            | IoOpcode::RESERVATION_ACQUIRE
            | IoOpcode::RESERVATION_RELEASE
    )
}

/// Whether the command's data descriptor describes exactly the command's data.
fn check_sgl(sqe: &Sqe, payload: Payload) -> Result<(), StatusCode> {
    if payload.direction == Direction::NONE {
        return Ok(());
    }
    if sqe.flags.psdt() != Psdt::Sgl {
        return Err(StatusCode::INVALID_FIELD);
    }
    // A list of descriptors, where the transport takes one, is the transport's to check.
    if sqe.dptr.sgl_identifier().sgl_type() == SglType::LAST_SEGMENT {
        return Ok(());
    }
    let length = transfer_length(sqe).ok_or(StatusCode::SGL_DESCRIPTOR_TYPE_INVALID)?;
    if length == payload.length { Ok(()) } else { Err(StatusCode::DATA_SGL_LENGTH_INVALID) }
}

/// Bytes that the command's data descriptor describes; `None` if it is not one that does.
fn transfer_length(sqe: &Sqe) -> Option<u32> {
    match sqe.dptr.sgl_identifier().sgl_type() {
        SglType::KEYED_DATA_BLOCK => Some(sqe.dptr.keyed_sgl().length()),
        SglType::DATA_BLOCK | SglType::TRANSPORT_DATA_BLOCK => Some(sqe.dptr.sgl().length.get()),
        _ => None,
    }
}

/// Whether the namespace has these blocks.
pub(crate) fn check_range(namespace: &NamespaceSide, slba: u64, blocks: u64) -> Result<(), StatusCode> {
    match slba.checked_add(blocks) {
        Some(end) if end <= namespace.num_blocks.get() => Ok(()),
        _ => Err(StatusCode::LBA_OUT_OF_RANGE),
    }
}
