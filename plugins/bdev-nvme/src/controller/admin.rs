//! The admin queue of a controller, on the control reactor: commands with a
//! deadline, their answers by closure.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use nvme_spec::completion::Cqe;
use tenon_sdk::abi::transport::CloseReason;
use tenon_sdk::{
    ConnectOptions, DmaBuf, Error, FabricCommand, FabricEvent, FabricGroup, FabricQueue, Host, OwnPayload,
    Timer,
};
use zerocopy::{FromBytes, IntoBytes};

use super::command::{AdminCommand, Data};
use crate::commands::CommandType;
use crate::door::Door;
use crate::inject::Injected;

/// What came of a command: its completion and data, or the error of the connection.
pub(crate) type Answer = Result<(Cqe, Option<DmaBuf>), i32>;

/// What is done with it.
pub(crate) type Reply = Box<dyn FnOnce(Answer)>;

/// What an admin queue tells its controller.
pub(crate) enum AdminEvent {
    Connected,
    /// Lost, or a command took too long.
    Lost(String),
    /// Everything has come back.
    Closed,
}

struct Kind {
    reply: Reply,
    /// What an operator wants the controller to have said.
    injected: Option<Injected>,
    /// Ends with the command.
    _deadline: Option<Timer>,
}

impl Kind {
    fn answer(self, answer: Answer) {
        (self.reply)(answer);
    }
}

/// An admin queue.
pub(crate) struct AdminQueue {
    host: Host,
    door: Arc<Door>,
    fabric: FabricQueue<OwnPayload<Kind>>,
    is_closing: Rc<Cell<bool>>,
    on_event: Rc<dyn Fn(AdminEvent)>,
    /// Commands that only seem to be on their way, with the time of their end; given up with the queue.
    unsent: RefCell<Vec<(u64, Timer)>>,
}

impl AdminQueue {
    pub(crate) fn connect(
        door: &Arc<Door>,
        group: &FabricGroup,
        options: &ConnectOptions,
        on_event: impl Fn(AdminEvent) + 'static,
    ) -> Result<Self, Error> {
        let on_event: Rc<dyn Fn(AdminEvent)> = Rc::new(on_event);
        let is_closing = Rc::new(Cell::new(false));
        let (tell, closing) = (Rc::clone(&on_event), Rc::clone(&is_closing));
        let fabric =
            FabricQueue::connect(group, options, move |event: FabricEvent<OwnPayload<Kind>>| match event {
                FabricEvent::Connected { .. } => tell(AdminEvent::Connected),
                FabricEvent::Done { item, result } => {
                    let (memory, kind) = item.into_parts();
                    let result = result.map(|cqe| {
                        let cqe = Cqe::read_from_bytes(&cqe[..]);
                        let cqe = cqe.expect("a completion queue entry has 16 bytes");
                        (kind.injected.map_or(cqe, |injected| injected.completion()), memory)
                    });
                    kind.answer(result);
                }
                FabricEvent::Closing { detail, status, .. } => {
                    if !closing.replace(true) {
                        tell(AdminEvent::Lost(describe(&detail, status)));
                    }
                }
                FabricEvent::Closed { detail, status, .. } => {
                    if !closing.replace(true) {
                        tell(AdminEvent::Lost(describe(&detail, status)));
                    }
                    tell(AdminEvent::Closed);
                }
            })?;
        let (host, door, unsent) = (door.host, Arc::clone(door), RefCell::default());
        Ok(AdminQueue { host, door, fabric, is_closing, on_event, unsent })
    }

    /// Sends a command; without a timeout it may take for ever, as an asynchronous event request does. `reply` is
    /// called exactly once, never from inside this call unless the command is refused at once.
    pub(crate) fn send(&self, command: &AdminCommand, timeout: Option<Duration>, reply: Reply) {
        let memory = match AdminQueue::memory(self.host, &command.data) {
            Ok(memory) => memory,
            Err(error) => return reply(Err(error.code)),
        };
        let deadline = timeout.and_then(|timeout| {
            let (closing, tell) = (Rc::downgrade(&self.is_closing), Rc::downgrade(&self.on_event));
            let opcode = command.sqe.opc;
            let late = move || {
                if let (Some(closing), Some(tell)) = (closing.upgrade(), tell.upgrade())
                    && !closing.replace(true)
                {
                    tell(AdminEvent::Lost(format!("command {opcode:#04x} was not answered in time")));
                }
            };
            self.host.timer(timeout, late).ok()
        });
        let injected = self.door.injections.take(CommandType::Admin, command.sqe.opc);
        let kind = Kind { reply, injected, _deadline: deadline };
        if let Some((injected, delay_ns)) = injected.and_then(|one| Some((one, one.unsent_for_ns?))) {
            return self.answer_unsent(injected, Duration::from_nanos(delay_ns), memory, kind);
        }
        let mut sqe = [0; 64];
        sqe.copy_from_slice(command.sqe.as_bytes());
        let payload = command.data.payload();
        let item = OwnPayload::new(memory, kind);
        let result = self.fabric.submit(&FabricCommand { sqe, payload }, item);
        self.fabric.flush();
        if let Err(refused) = result {
            let (_, kind) = refused.item.into_parts();
            kind.answer(Err(tenon_sdk::errno::EAGAIN));
        }
    }

    /// Answers a command that the controller does not get.
    #[cold]
    fn answer_unsent(&self, injected: Injected, delay: Duration, memory: Option<DmaBuf>, kind: Kind) {
        // As a whole: its deadline goes on.
        let timer = self.host.timer(delay, move || kind.answer(Ok((injected.completion(), memory))));
        match timer {
            Ok(timer) => {
                let now_ns = self.host.now_ns();
                let mut unsent = self.unsent.borrow_mut();
                unsent.retain(|(due_ns, _)| *due_ns > now_ns);
                unsent.push((now_ns.saturating_add(delay.as_nanos() as u64), timer));
            }
            Err(error) => log::error!("a command that was to end with an error has none error=\"{error}\""),
        }
    }

    /// Memory for the data of a command.
    pub(crate) fn memory(host: Host, data: &Data) -> Result<Option<DmaBuf>, Error> {
        match data {
            Data::None => Ok(None),
            Data::In(len) => host.alloc(*len, 4096, -1).map(Some),
            Data::Out(bytes) => {
                let mut memory = host.alloc(bytes.len(), 64, -1)?;
                memory.as_mut_slice().copy_from_slice(bytes);
                Ok(Some(memory))
            }
        }
    }

    /// Ends the queue; `Closed` follows, `Lost` does not any more.
    pub(crate) fn close(&self, drain_by_ns: u64) {
        self.is_closing.set(true);
        drop(self.unsent.take());
        self.fabric.disconnect(CloseReason::LOCAL, drain_by_ns);
    }
}

fn describe(detail: &str, status: i32) -> String {
    let reason = std::io::Error::from_raw_os_error(-status).to_string();
    if detail.is_empty() || reason.contains(detail) { reason } else { format!("{detail}: {reason}") }
}
