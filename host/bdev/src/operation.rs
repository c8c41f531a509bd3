//! Operations: what a client asked for, from the request to its one answer.
//!
//! An operation is a transaction. It is answered with success when the module
//! has answered and everything it registered is examined; otherwise what it
//! registered is removed first, so that the same request may be made again.
//! Operations on one name run one after the other. What each kind of operation
//! calls is in `request`.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use serde_json::Value;
use tenon_abi::{BdevHandle, OpToken, Reason, errno};
use tenon_modules::ModuleRef;

use crate::activity::Origin;
use crate::core::Core;
use crate::deadline::{Due, Key};
use crate::error::OpError;
use crate::op_state::{OpEvent, OpState};
use crate::owed::{LayerAnswer, Owed};
use crate::request::Request;
use crate::slab::{Kind, Slab};

/// How an operation succeeded.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// Devices it registered, in order; all are examined.
    pub bdevs: Vec<String>,
    /// What the module answered; `true` if it had nothing to say.
    pub result: Value,
}

/// Called with the end of an operation.
pub(crate) type Reply = Box<dyn FnOnce(Result<Answer, OpError>)>;

/// Operations in flight, and answers owed.
pub(crate) struct Operations {
    slab: Slab<Operation>,
    owed: Slab<Owed>,
    /// Who waits for the answers that layers above are owed.
    layer_answers: HashMap<u64, LayerAnswer>,
    /// Per name: the operation under way, then those that wait for it.
    names: HashMap<Arc<str>, VecDeque<u64>>,
    parked: Vec<u64>,
}

/// One operation.
pub(crate) struct Operation {
    pub request: Request,
    pub module: Option<ModuleRef>,
    pub state: OpState,
    /// What the module still owes an answer for.
    token: Option<OpToken>,
    /// Devices registered under it, or to be gone before it is over.
    pub bdevs: Vec<BdevHandle>,
    /// Those of them that went before they were in service.
    lost: Vec<Arc<str>>,
    outcome: Option<Result<Value, OpError>>,
    reply: Option<Reply>,
    activity: u64,
    deadline: Option<Key>,
    started_ns: u64,
    parked_on: Option<ParkedOn>,
    attempts: u32,
}

/// What a parked operation waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
enum ParkedOn {
    /// The examination of its base.
    Examination(BdevHandle),
    /// An earlier create of its base.
    Create(Arc<str>),
}

impl Default for Operations {
    fn default() -> Self {
        Self {
            slab: Slab::new(Kind::Operation, MAX_OPERATIONS),
            owed: Slab::new(Kind::Owed, MAX_OWED),
            layer_answers: HashMap::new(),
            names: HashMap::new(),
            parked: Vec::new(),
        }
    }
}

impl Operations {
    pub(crate) fn owe(&mut self, owed: Owed) -> OpToken {
        // As many answers as devices and operations together may be owed, so there is always a place.
        OpToken(self.owed.insert(owed).unwrap_or(0))
    }

    pub(crate) fn owe_layer(&mut self, waiting: u64, done: LayerAnswer) -> OpToken {
        let token = self.owe(Owed::Layer(waiting));
        if token.0 != 0 {
            self.layer_answers.insert(waiting, done);
        }
        token
    }

    pub(crate) fn take_layer_answer(&mut self, waiting: u64) -> Option<LayerAnswer> {
        self.layer_answers.remove(&waiting)
    }

    pub(crate) fn owed(&self, token: OpToken) -> Option<Owed> {
        self.owed.get(token.0).copied()
    }

    pub(crate) fn settle(&mut self, token: OpToken) -> Option<Owed> {
        self.owed.remove(token.0)
    }

    pub(crate) fn get(&self, operation: u64) -> Option<&Operation> {
        self.slab.get(operation)
    }

    /// Whether its client has been told that it failed, and its module has not answered yet.
    pub(crate) fn is_overdue(&self, operation: u64) -> bool {
        self.get(operation).is_some_and(|operation| operation.state == OpState::Overdue)
    }

    pub(crate) fn get_mut(&mut self, operation: u64) -> Option<&mut Operation> {
        self.slab.get_mut(operation)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (u64, &Operation)> {
        self.slab.iter()
    }

    pub(crate) fn len(&self) -> usize {
        self.slab.len()
    }

    pub(crate) fn answers_owed(&self) -> usize {
        self.owed.len()
    }

    pub(crate) fn names_locked(&self) -> usize {
        self.names.len()
    }

    /// The module's last answer is not waited for any more.
    fn forget_fini(&mut self, module: u32) {
        let is_fini = |owed: &Owed| matches!(owed, Owed::Fini(other) if other.id() == module);
        let tokens: Vec<u64> =
            self.owed.iter().filter(|(_, owed)| is_fini(owed)).map(|(raw, _)| raw).collect();
        for token in tokens {
            self.owed.remove(token);
        }
    }

    /// True if a create of `name` that was asked for before `activity` is in flight.
    fn is_being_created(&self, name: &str, activity: u64) -> bool {
        let queue = self.names.get(name).into_iter().flatten();
        let mut earlier = queue.filter_map(|id| self.slab.get(*id)).filter(|other| other.activity < activity);
        earlier.any(|other| matches!(other.request, Request::Create { .. }))
    }

    /// The operation that has `name` for itself now.
    pub(crate) fn owner_of_name(&self, name: &str) -> Option<(u64, &Operation)> {
        let operation = *self.names.get(name)?.front()?;
        Some((operation, self.slab.get(operation)?))
    }
}

impl Operation {
    /// Takes `event`; an event that cannot happen is a fault of this program and changes nothing.
    fn apply(&mut self, event: OpEvent) -> bool {
        match self.state.next(event) {
            Ok(next) => {
                self.state = next;
                true
            }
            Err(error) => {
                log::error!("operation state machine refused an event error={error}");
                debug_assert!(false, "{error}");
                false
            }
        }
    }

    pub(crate) fn age_ms(&self) -> u64 {
        tenon_reactor::now_ns().saturating_sub(self.started_ns) / 1_000_000
    }
}

impl Core {
    /// Accepts a request; `reply` is called once, later, whatever happens.
    pub(crate) fn operation_start(&self, request: Request, reply: Reply) {
        if let Err(error) = self.operation_refusal(&request) {
            return self.later(move |_| reply(Err(error)));
        }
        let lock = request.lock_name();
        let activity = self.activity_begin(Origin::Requested);
        let operation = Operation {
            request,
            module: None,
            state: OpState::Queued,
            token: None,
            bdevs: Vec::new(),
            lost: Vec::new(),
            outcome: None,
            reply: Some(reply),
            activity,
            deadline: None,
            started_ns: tenon_reactor::now_ns(),
            parked_on: None,
            attempts: 0,
        };
        let inserted = self.inner.operations.borrow_mut().slab.insert(operation);
        let id = match inserted {
            Ok(id) => id,
            Err(mut refused) => {
                self.activity_end(activity);
                let error = OpError::new(errno::EAGAIN, "", "too many operations are in flight");
                let reply = refused.reply.take();
                return self.later(move |_| reply.map_or((), |reply| reply(Err(error))));
            }
        };
        let deadline = self.set_deadline_in(self.inner.options.operation_deadline, Due::Operation(id));
        let is_first = {
            let mut operations = self.inner.operations.borrow_mut();
            if let Some(operation) = operations.get_mut(id) {
                operation.deadline = Some(deadline);
            }
            lock.is_none_or(|name| {
                let queue = operations.names.entry(name).or_default();
                queue.push_back(id);
                queue.len() == 1
            })
        };
        if is_first {
            self.later(move |core| core.operation_admitted(id));
        }
    }

    /// Why a request is not even queued.
    fn operation_refusal(&self, request: &Request) -> Result<(), OpError> {
        if self.is_stopping() {
            return Err(OpError::new(errno::ESHUTDOWN, "", "host is shutting down"));
        }
        let Some(name) = request.lock_name() else { return Ok(()) };
        let operations = self.inner.operations.borrow();
        let Some(queue) = operations.names.get(&name) else { return Ok(()) };
        let first = queue.front().and_then(|id| operations.get(*id));
        if let Some(first) = first.filter(|first| first.state == OpState::Overdue) {
            let what = first.request.describe();
            return Err(OpError::new(
                errno::EBUSY,
                &*name,
                format!("its module has not yet answered {what}"),
            ));
        }
        if queue.len() >= MAX_QUEUED {
            return Err(OpError::new(errno::EBUSY, &*name, "too many operations wait for the same name"));
        }
        Ok(())
    }

    /// It is its turn: find the module.
    fn operation_admitted(&self, id: u64) {
        self.operation_load(id, OpEvent::Admitted);
    }

    fn operation_load(&self, id: u64, event: OpEvent) {
        let request = {
            let mut operations = self.inner.operations.borrow_mut();
            let Some(operation) = operations.get_mut(id) else { return };
            if !operation.apply(event) {
                return;
            }
            operation.attempts += 1;
            operation.request.clone()
        };
        if let Err(error) = self.request_check(&request) {
            return self.operation_failed(id, error);
        }
        let weak = self.downgrade();
        self.request_module(&request, move |found| {
            let Some(core) = weak.upgrade() else { return };
            match found {
                Ok(module) => core.operation_run(id, module),
                Err(error) => core.operation_failed(id, error),
            }
        });
    }

    /// The module is there: hand the request over.
    fn operation_run(&self, id: u64, module: ModuleRef) {
        let (token, request) = {
            let mut operations = self.inner.operations.borrow_mut();
            // It may have been given up while the module was loaded.
            let Some(operation) = operations.get_mut(id) else { return };
            if !operation.apply(OpEvent::ModuleReady) {
                return;
            }
            operation.module = Some(module);
            let request = operation.request.clone();
            let token = operations.owe(Owed::Operation(id));
            if let Some(operation) = operations.get_mut(id) {
                operation.token = Some(token);
            }
            (token, request)
        };
        self.request_call(id, module, token, &request);
    }

    /// It could not be started.
    fn operation_failed(&self, id: u64, error: OpError) {
        {
            let mut operations = self.inner.operations.borrow_mut();
            let Some(operation) = operations.get_mut(id) else { return };
            if !operation.apply(OpEvent::Failed) {
                return;
            }
            operation.outcome = Some(Err(error));
        }
        self.operation_finish(id);
    }

    /// The module answered.
    pub(crate) fn operation_answered(&self, id: u64, result: Result<String, OpError>) {
        let parsed = self.request_outcome(id, result).and_then(|text| parse_result(&text));
        let undo = {
            let mut operations = self.inner.operations.borrow_mut();
            let Some(operation) = operations.get_mut(id) else { return };
            operation.token = None;
            let event = if parsed.is_ok() { OpEvent::AnsweredOk } else { OpEvent::AnsweredError };
            if !operation.apply(event) {
                return;
            }
            if operation.outcome.is_none() {
                operation.outcome = Some(parsed);
            }
            operation.state == OpState::Undoing
        };
        if undo {
            self.operation_undo(id);
        } else {
            self.request_succeeded(id);
            self.operation_progress(id);
        }
    }

    /// Looks whether what was registered is examined, or what goes is gone.
    pub(crate) fn operation_progress(&self, id: u64) {
        {
            let mut operations = self.inner.operations.borrow_mut();
            let Some(operation) = operations.get_mut(id) else { return };
            if operation.state != OpState::Settling {
                return;
            }
            let registry = self.inner.registry.borrow();
            let is_pending = operation.bdevs.iter().filter_map(|bdev| registry.get(*bdev)).any(|record| {
                operation.request.removes() || record.removal.is_some() || !record.examination.is_examined
            });
            if is_pending {
                return;
            }
            if operation.bdevs.is_empty()
                && let Some(name) = operation.lost.first()
            {
                let error = OpError::new(errno::ENODEV, &**name, "device went before it was in service");
                operation.outcome = Some(Err(error));
            }
            operation.apply(OpEvent::Settled);
        }
        self.operation_finish(id);
    }

    /// As [`Core::operation_progress`], for the operation that registered a device.
    pub(crate) fn operation_progress_of(&self, bdev: BdevHandle) {
        let operation = self.inner.registry.borrow().get(bdev).and_then(|record| record.operation);
        if let Some(operation) = operation {
            self.later(move |core| core.operation_progress(operation));
        }
    }

    /// A device that belongs to an operation is gone.
    pub(crate) fn operation_bdev_gone(&self, id: u64, bdev: BdevHandle, name: &Arc<str>) {
        let is_undoing = {
            let mut operations = self.inner.operations.borrow_mut();
            let Some(operation) = operations.get_mut(id) else { return };
            operation.bdevs.retain(|other| *other != bdev);
            if !operation.request.removes() {
                operation.lost.push(name.clone());
            }
            operation.state == OpState::Undoing
        };
        self.later(
            move |core| {
                if is_undoing { core.operation_undo(id) } else { core.operation_progress(id) }
            },
        );
    }

    /// Removes what a failed operation registered, then ends it.
    fn operation_undo(&self, id: u64) {
        let bdevs = {
            let operations = self.inner.operations.borrow();
            // Two of its devices may go at once; the second finds the work done.
            let undoing = operations.get(id).filter(|operation| operation.state == OpState::Undoing);
            let Some(operation) = undoing else { return };
            // What it was to remove stays as it is.
            if operation.request.removes() { Vec::new() } else { operation.bdevs.clone() }
        };
        if !bdevs.is_empty() {
            for bdev in bdevs {
                self.remove_bdev(bdev, Reason::ROLLED_BACK);
            }
            return;
        }
        if self.operation_park(id) {
            return;
        }
        {
            let mut operations = self.inner.operations.borrow_mut();
            let Some(operation) = operations.get_mut(id) else { return };
            if !operation.apply(OpEvent::Undone) {
                return;
            }
        }
        self.operation_finish(id);
    }

    /// If the operation failed because its base is only coming into being, it waits for that and runs again.
    fn operation_park(&self, id: u64) -> bool {
        let mut operations = self.inner.operations.borrow_mut();
        let Some((place, is_over)) = self.place_to_park(&operations, id) else { return false };
        let Some(operation) = operations.get_mut(id) else { return false };
        if !operation.apply(OpEvent::UndoneToPark) {
            return false;
        }
        operation.lost.clear();
        operation.parked_on = Some(place.clone());
        operations.parked.push(id);
        if is_over {
            self.later(move |core| core.operations_unpark(&place));
        }
        true
    }

    /// What a failed operation has to wait for before it may succeed, and whether that is over already.
    fn place_to_park(&self, operations: &Operations, id: u64) -> Option<(ParkedOn, bool)> {
        let operation = operations.get(id)?;
        if operation.attempts >= MAX_ATTEMPTS || operation.reply.is_none() {
            return None;
        }
        let Some(Err(error)) = &operation.outcome else { return None };
        self.place_of_base(operations, operation, error.waiting_for()?)
    }

    /// Where an operation that lacks `base` waits, if that is coming, and whether the wait is over already.
    fn place_of_base(
        &self,
        operations: &Operations,
        operation: &Operation,
        base: &str,
    ) -> Option<(ParkedOn, bool)> {
        let registry = self.inner.registry.borrow();
        let Some(record) = registry.find(base) else {
            // Asked for before this one, and so never by one that waits for this one.
            let is_coming = operations.is_being_created(base, operation.activity);
            return is_coming.then(|| (ParkedOn::Create(base.into()), false));
        };
        // The examination may have ended since the module asked; but a module that misses a device that is
        // in service means something else by it.
        let is_ready = record.examination.is_examined;
        let may_wait = record.state().may_be_opened() && !(is_ready && operation.attempts > 1);
        may_wait.then_some((ParkedOn::Examination(record.handle), is_ready))
    }

    /// Whether the operation of `token`, should it fail for want of `base` now, would be repeated later.
    pub(crate) fn base_is_coming(&self, token: OpToken, base: &str) -> bool {
        let operations = self.inner.operations.borrow();
        let Some(Owed::Operation(id)) = operations.owed(token) else { return false };
        let may_repeat =
            |operation: &&Operation| operation.attempts < MAX_ATTEMPTS && operation.reply.is_some();
        let operation = operations.get(id).filter(may_repeat);
        let place = operation.and_then(|operation| self.place_of_base(&operations, operation, base));
        place.is_some_and(|(_, is_ready)| !is_ready)
    }

    /// A base device is ready or gone: those that waited for it run again.
    pub(crate) fn operations_unpark_bdev(&self, bdev: BdevHandle) {
        self.operations_unpark(&ParkedOn::Examination(bdev));
    }

    fn operations_unpark(&self, place: &ParkedOn) {
        let ready: Vec<u64> = {
            let mut operations = self.inner.operations.borrow_mut();
            let parked = std::mem::take(&mut operations.parked);
            let (ready, waiting) = parked.into_iter().partition(|id| {
                operations.get(*id).is_none_or(|operation| operation.parked_on.as_ref() == Some(place))
            });
            operations.parked = waiting;
            ready
        };
        for id in ready {
            {
                let mut operations = self.inner.operations.borrow_mut();
                let Some(operation) = operations.get_mut(id) else { continue };
                operation.outcome = None;
                operation.parked_on = None;
            }
            self.operation_load(id, OpEvent::BaseReady);
        }
    }

    /// Ends an operation: the next one on its name, and the reply.
    fn operation_finish(&self, id: u64) {
        let (operation, next) = {
            let mut operations = self.inner.operations.borrow_mut();
            let Some(operation) = operations.slab.remove(id) else { return };
            if let Some(token) = operation.token {
                operations.owed.remove(token.0);
            }
            let next = operation.request.lock_name().and_then(|name| operations.leave_name(&name, id));
            (operation, next)
        };
        if let Some(next) = next {
            self.later(move |core| core.operation_admitted(next));
        }
        if let Some(name) = operation.request.lock_name() {
            self.later(move |core| core.operations_unpark(&ParkedOn::Create(name)));
        }
        let names = self.release_bdevs(&operation);
        let Operation { request, outcome, reply, activity, deadline, module, bdevs, .. } = operation;
        self.cancel_deadline(deadline);
        let outcome = outcome.unwrap_or(Ok(Value::Bool(true)));
        let is_told = reply.is_none();
        match outcome {
            Ok(result) if !is_told => {
                self.saved_add(&request, module, &bdevs, &result);
                let answer = Answer { bdevs: names, result };
                self.later(move |_| reply.map_or((), |reply| reply(Ok(answer))));
            }
            Ok(_) => {}
            Err(error) => {
                log::debug!("operation failed what={} error={error}", request.describe());
                self.later(move |_| reply.map_or((), |reply| reply(Err(error))));
            }
        }
        // After the reply, so that who waits for the operation hears of it after who asked for it.
        self.activity_end(activity);
        if let Some(module) = module {
            self.later(move |core| core.module_drain_check(module));
        }
        self.shutdown_progress();
    }

    /// The devices stand on their own now.
    fn release_bdevs(&self, operation: &Operation) -> Vec<String> {
        let mut registry = self.inner.registry.borrow_mut();
        let mut names = Vec::new();
        for bdev in &operation.bdevs {
            if let Some(record) = registry.get_mut(*bdev) {
                record.operation = None;
                if !operation.request.removes() {
                    names.push(record.name.to_string());
                }
            }
        }
        names
    }

    /// Time is up: the client is told; the operation goes on to its end.
    pub(crate) fn operation_overdue(&self, id: u64) {
        let waits_for = self.operation_waits_for(id);
        let (state, reply, error, activity) = {
            let mut operations = self.inner.operations.borrow_mut();
            let Some(operation) = operations.get_mut(id) else { return };
            let before = operation.state;
            let error = match &operation.outcome {
                Some(Err(error)) => error.clone(),
                Some(Ok(_)) | None => {
                    let limit = self.inner.options.operation_deadline;
                    let reason = format!("{} is not finished within {limit:?}", operation.request.describe());
                    OpError::new(errno::ETIMEDOUT, operation.request.subject(), reason).with_cause(waits_for)
                }
            };
            if !operation.apply(OpEvent::DeadlinePassed) {
                return;
            }
            log::warn!("operation is overdue state={before} error={error}");
            operation.outcome = Some(Err(error.clone()));
            operation.deadline = None;
            let reply = operation.reply.take();
            let was_settling_removal = before == OpState::Settling && operation.request.removes();
            if was_settling_removal {
                // The removal goes on by itself.
                operation.bdevs.clear();
            }
            (operation.state, reply, error, operation.activity)
        };
        self.later(move |_| reply.map_or((), |reply| reply(Err(error))));
        self.activity_end(activity);
        match state {
            OpState::Done => self.operation_finish(id),
            OpState::Undoing => self.operation_undo(id),
            OpState::Overdue => self.later(|core| core.modules_drain_check()),
            OpState::Queued | OpState::Loading | OpState::Running | OpState::Settling | OpState::Parked => {}
        }
    }

    fn operation_waits_for(&self, id: u64) -> String {
        let operations = self.inner.operations.borrow();
        let Some(operation) = operations.get(id) else { return String::new() };
        match operation.state {
            OpState::Queued => "another operation on the same name".to_owned(),
            OpState::Loading => "its module to be loaded".to_owned(),
            OpState::Running | OpState::Overdue => {
                let name = operation.module.map_or("", |module| module.name());
                format!("module {name} has not answered")
            }
            OpState::Parked => match &operation.parked_on {
                Some(ParkedOn::Create(base)) => format!("the create of its base {base}"),
                Some(ParkedOn::Examination(_)) | None => "the examination of its base".to_owned(),
            },
            OpState::Settling | OpState::Undoing => {
                let bdev = operation.bdevs.first().copied();
                bdev.and_then(|bdev| self.removal_waits_for(bdev))
                    .map_or("examination".to_owned(), |holders| format!("waits for {holders}"))
            }
            OpState::Done => String::new(),
        }
    }

    /// A module is out of service: whatever it owes has failed.
    pub(crate) fn operations_forget_module(&self, module: ModuleRef) {
        let tokens: Vec<OpToken> = {
            let operations = self.inner.operations.borrow();
            let of_module = |operation: &Operation| operation.module.is_some_and(|m| m.id() == module.id());
            operations.iter().filter(|(_, op)| of_module(op)).filter_map(|(_, op)| op.token).collect()
        };
        self.inner.operations.borrow_mut().forget_fini(module.id());
        for token in tokens {
            let error =
                OpError::new(errno::ESHUTDOWN, module.name(), "module went out of service unanswered");
            self.owed_answered(token, Err(error));
        }
    }
}

impl Operations {
    /// Gives up a place in the queue for `name`; returns who has the name now, if that changed.
    fn leave_name(&mut self, name: &Arc<str>, id: u64) -> Option<u64> {
        let queue = self.names.get_mut(name)?;
        let was_first = queue.front() == Some(&id);
        queue.retain(|other| *other != id);
        let next = queue.front().copied().filter(|_| was_first);
        if queue.is_empty() {
            self.names.remove(name);
        }
        next
    }
}

fn parse_result(text: &str) -> Result<Value, OpError> {
    if text.is_empty() {
        return Ok(Value::Bool(true));
    }
    serde_json::from_str(text).map_err(|error| {
        OpError::new(errno::EINVAL, "", "module answered with invalid JSON").with_cause(error)
    })
}

/// Most operations in flight.
const MAX_OPERATIONS: usize = 65_536;
/// Most answers owed: one per operation and one per device.
const MAX_OWED: usize = 1 << 20;
/// Most operations that may wait for one name.
const MAX_QUEUED: usize = 64;
/// How often an operation is run again because its base was under examination.
const MAX_ATTEMPTS: u32 = 8;
