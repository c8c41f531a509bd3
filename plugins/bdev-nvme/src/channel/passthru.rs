//! NVMe commands that consumers give as they are: I/O commands on the path that
//! the next I/O would take, admin commands by way of the control thread.
//!
//! What such a command does is the consumer's matter, so it is not repeated once
//! a controller may have begun it. An ANA state in its answer says that it has not.

use std::rc::Rc;

use nvme_spec::command::Sqe;
use nvme_spec::completion::Cqe;
use nvme_spec::opcode::{AdminOpcode, FABRICS};
use tenon_sdk::{FabricCommand, Host, Io, IoStatus, PayloadOf, Reactor, errno};
use zerocopy::{FromBytes, IntoBytes};

use super::NvmeChannel;
use crate::commands::{MAX_DATA, Said, said};
use crate::controller::command::{AdminCommand, Data};
use crate::module;
use crate::queue::IoQueue;
use crate::registry::Registry;
use crate::side::Side;
use crate::status::{ABORTED_BY_HOST, NO_PATH, Verdict, judge};

/// An admin command of an I/O. Whatever becomes of it, the channel hears of the end: when this is dropped.
pub(crate) struct Asked {
    host: Host,
    device: u64,
    reactor: Reactor,
    /// Which I/O of the channel it is.
    ticket: u32,
    said: Said,
}

impl Asked {
    fn heard(mut self, said: Said) {
        self.said = said;
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        let (host, device, ticket, said) =
            (self.host, self.device, self.ticket, std::mem::replace(&mut self.said, UNHEARD));
        module::post(host, self.reactor, move || {
            let channels = Side::existing(host).map_or_else(Vec::new, |side| side.channels(Some(device)));
            channels.iter().for_each(|channel| channel.admin_done(ticket, &said));
        });
    }
}

impl NvmeChannel {
    /// Sends an I/O command of a consumer; the queue it went to, which is to be flushed.
    pub(super) fn start_io_command(
        &self,
        io: Io<Self>,
        queue: Rc<IoQueue>,
        nsid: u32,
    ) -> Option<Rc<IoQueue>> {
        match io_command(&io, nsid, queue.max_transfer_bytes()) {
            Ok(command) => self.give(io, queue, &command),
            Err(status) => {
                io.complete(status);
                None
            }
        }
    }

    /// An I/O command of a consumer came back.
    pub(super) fn io_command_done(&self, io: Io<Self>, queue: &Rc<IoQueue>, result: Result<Cqe, i32>) {
        let Ok(cqe) = result else { return io.complete(ABORTED_BY_HOST) };
        if !cqe.status.is_success() {
            self.failed(queue, &cqe);
        }
        match judge(cqe.status, false, [0; 3]) {
            Verdict::Ana(state) => {
                self.suspect(queue, state);
                self.again(io);
            }
            Verdict::Done(_) | Verdict::Again { .. } | Verdict::Elsewhere => complete(io, &cqe),
        }
    }

    /// Hands an admin command of a consumer to the control thread.
    pub(super) fn start_admin_command(&self, mut io: Io<Self>) {
        let (Some(reactor), host) = (self.host.reactor(), self.host) else {
            return io.complete(IoStatus::INTERNAL);
        };
        let command = match admin_command(&io) {
            Ok(command) => command,
            Err(status) => return io.complete(status),
        };
        let ticket = self.last_ticket.get().wrapping_add(1);
        self.last_ticket.set(ticket);
        io.context_mut().tag = ticket;
        self.admin.push_back(io);
        let device = self.device();
        module::tell(host, move |registry| {
            let asked = Asked { host, device, reactor, ticket, said: UNHEARD };
            registry.pass_on(asked, &command);
        });
    }

    /// The control thread has an answer, or there is none.
    fn admin_done(&self, ticket: u32, said: &Said) {
        for _ in 0..self.admin.len() {
            let Some(mut io) = self.admin.pop_front() else { return };
            if io.context().tag != ticket {
                self.admin.push_back(io);
                continue;
            }
            match said {
                Ok((cqe, data)) => {
                    let mut left = data.as_deref().unwrap_or_default();
                    for piece in io.buffers_mut() {
                        let (now, later) = left.split_at(left.len().min(piece.len()));
                        piece[..now.len()].copy_from_slice(now);
                        left = later;
                    }
                    complete(io, cqe);
                }
                Err(_) => io.complete(NO_PATH),
            }
        }
    }
}

impl Registry {
    /// Sends an admin command of an I/O by a path of its device: an accessible one if there is any.
    fn pass_on(&self, asked: Asked, command: &AdminCommand) {
        let Some(controller) = self.controller_of(asked.device) else { return };
        let returns = matches!(command.data, Data::In(_));
        controller.send(command, move |_, answer| asked.heard(said(answer, returns)));
    }
}

/// An I/O command for a namespace; fails if it is none that can be passed on.
fn io_command(io: &Io<NvmeChannel>, nsid: u32, max_bytes: u64) -> Result<FabricCommand<'static>, IoStatus> {
    let mut sqe = *io.nvme_command().ok_or(IoStatus::INVALID)?;
    let (len, is_fused) = (io.payload_len(), sqe[1] & FUSE != 0);
    if sqe[0] == FABRICS || is_fused || !io.metadata().is_empty() || len > max_bytes {
        return Err(IoStatus::INVALID);
    }
    sqe[4..8].copy_from_slice(&nsid.to_le_bytes());
    let payload = match (sqe[0] & DIRECTION, len) {
        (_, 0) => PayloadOf::None,
        (TO_CONTROLLER, _) => PayloadOf::ToController,
        (FROM_CONTROLLER, _) => PayloadOf::FromController,
        _ => return Err(IoStatus::INVALID),
    };
    Ok(FabricCommand { sqe, payload })
}

/// An admin command, with a copy of its data: the payload is the reactor's, the command the control thread's.
fn admin_command(io: &Io<NvmeChannel>) -> Result<AdminCommand, IoStatus> {
    let entry = io.nvme_command().ok_or(IoStatus::INVALID)?;
    let sqe = Sqe::read_from_bytes(&entry[..]).map_err(|_| IoStatus::INVALID)?;
    let len = usize::try_from(io.payload_len()).unwrap_or(usize::MAX);
    if is_kept(AdminOpcode(sqe.opc)) || !io.metadata().is_empty() || len > MAX_DATA {
        return Err(IoStatus::INVALID);
    }
    let data = match (sqe.opc & DIRECTION, len) {
        (_, 0) => Data::None,
        (TO_CONTROLLER, _) => Data::Out(io.buffers().flatten().copied().collect()),
        (FROM_CONTROLLER, len) => Data::In(len),
        _ => return Err(IoStatus::INVALID),
    };
    Ok(AdminCommand { sqe, data })
}

/// Whether only the host itself sends such admin commands: those that keep up its connections.
pub(crate) fn is_kept(opcode: AdminOpcode) -> bool {
    let kept = [AdminOpcode(FABRICS), AdminOpcode::ASYNCHRONOUS_EVENT_REQUEST, AdminOpcode::KEEP_ALIVE];
    kept.contains(&opcode)
}

/// Ends a consumer's command as the controller has ended it.
fn complete(mut io: Io<NvmeChannel>, cqe: &Cqe) {
    let mut entry = [0_u32; 4];
    entry.as_mut_bytes().copy_from_slice(cqe.as_bytes());
    io.set_nvme_completion(entry);
    io.set_cdw0(cqe.dw0.get());
    let code = cqe.status.code();
    let is_good = cqe.status.is_success();
    io.complete(if is_good { IoStatus::SUCCESS } else { IoStatus::nvme(code.sct().0, code.sc()) });
}

/// Bits of an opcode that tell which way its data travels; both ways is nothing that fabrics have.
const DIRECTION: u8 = 0b11;
const TO_CONTROLLER: u8 = 0b01;
const FROM_CONTROLLER: u8 = 0b10;
/// Bits of a command's flags that make it a part of a fused operation.
const FUSE: u8 = 0b11;
/// What there is to an admin command that no controller heard of.
const UNHEARD: Said = Err(errno::ENODEV);
