//! Examine engine: offers every new block device to every module.
//!
//! A new module is offered all existing devices, a new device all modules except
//! those that hold it already; its own is asked as well, since an array may stand on
//! arrays. First every module says, without I/O,
//! whether the device is its own (`examine_config`); then, if nobody has claimed
//! it, every module may read it (`examine_disk`). The device stays until the last
//! answer or the deadline. Does not open, claim or create anything: that is the
//! module's answer.

use std::collections::{HashSet, VecDeque};
use std::rc::Rc;

use tenon_abi::{BdevHandle, ExamineAnswer, ExamineToken, Op, errno};
use tenon_modules::{Call, Callback, ModuleRef, ModuleState};

use crate::activity::Origin;
use crate::claim::Owner;
use crate::core::Core;
use crate::deadline::{Due, Key};
use crate::error::{OpError, bounded};
use crate::lifecycle::{Event, State};
use crate::slab::{Kind, Slab};

/// Called with the end of an examination somebody asked for.
pub(crate) type ExamineReply = Box<dyn FnOnce(Result<(), OpError>)>;

/// What all examinations share.
pub(crate) struct Examinations {
    tokens: Slab<Token>,
    /// Names to examine although `auto_examine` is off.
    allowed: HashSet<String>,
}

struct Token {
    bdev: BdevHandle,
    module: ModuleRef,
}

/// The examinations of one device.
#[derive(Default)]
pub(crate) struct Examination {
    round: Option<Round>,
    waiting: VecDeque<Request>,
    /// Modules that have been asked, by number.
    offered: HashSet<u32>,
    /// The modules have been asked once, or need not be.
    pub is_examined: bool,
    pub notes: Vec<ExamineNote>,
}

/// Who is to be asked.
pub(crate) struct Request {
    modules: Rc<[ModuleRef]>,
    activity: u64,
    reply: Option<ExamineReply>,
}

struct Round {
    request: Request,
    phase: Phase,
    /// Asked and not yet answered.
    tokens: Vec<ExamineToken>,
    deadline: Option<Key>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Modules are being asked, one after the other.
    Offering,
    /// All are asked; answers are awaited.
    Waiting,
}

/// What a module makes of a device it was offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is not the module's.
    NotMine,
    /// The module has claimed it.
    Claimed,
    /// More devices are needed before anything is built on it.
    Waiting,
    /// It is the module's, but cannot be used; or the module did not answer.
    Failed,
}

/// What a module said of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExamineNote {
    /// The module.
    pub module: String,
    /// Its answer.
    pub answer: Verdict,
    /// Its reason.
    pub reason: String,
}

impl From<ExamineAnswer> for Verdict {
    fn from(answer: ExamineAnswer) -> Self {
        match answer {
            ExamineAnswer::NOT_MINE => Verdict::NotMine,
            ExamineAnswer::CLAIMED => Verdict::Claimed,
            ExamineAnswer::WAITING => Verdict::Waiting,
            // An answer this host does not know promises nothing.
            ExamineAnswer::FAILED | ExamineAnswer(_) => Verdict::Failed,
        }
    }
}

impl Verdict {
    /// For operators.
    pub fn as_str(self) -> &'static str {
        match self {
            Verdict::NotMine => "not_mine",
            Verdict::Claimed => "claimed",
            Verdict::Waiting => "waiting",
            Verdict::Failed => "failed",
        }
    }
}

impl Default for Examinations {
    fn default() -> Self {
        Self { tokens: Slab::new(Kind::Examine, MAX_TOKENS), allowed: HashSet::new() }
    }
}

impl Examinations {
    pub(crate) fn tokens(&self) -> usize {
        self.tokens.len()
    }
}

impl Examination {
    pub(crate) fn is_running(&self) -> bool {
        self.round.is_some()
    }

    /// Modules that owe an answer.
    fn owing(&self) -> &[ExamineToken] {
        self.round.as_ref().map_or(&[], |round| &round.tokens)
    }
}

impl Core {
    /// Begins the life of a device that was just registered.
    pub(crate) fn examine_first(&self, bdev: BdevHandle, activity: u64) {
        let wanted = {
            let registry = self.inner.registry.borrow();
            let Some(record) = registry.get(bdev) else { return };
            let allowed = &self.inner.examinations.borrow().allowed;
            self.inner.auto_examine.get() || record.all_names.iter().any(|name| allowed.contains(&**name))
        };
        let modules = if wanted { self.inner.modules.running() } else { Vec::new() };
        self.examine_request(bdev, Request { modules: modules.into(), activity, reply: None });
    }

    /// Offers a device to all modules again; with `auto_examine` off, its name is remembered.
    pub fn examine(&self, name: &str, reply: impl FnOnce(Result<(), OpError>) + 'static) {
        if !self.inner.auto_examine.get() {
            let mut examinations = self.inner.examinations.borrow_mut();
            if examinations.allowed.len() < MAX_ALLOWED {
                examinations.allowed.insert(name.to_owned());
            }
        }
        let Some(bdev) = self.find_any(name) else {
            let known_later = !self.inner.auto_examine.get();
            let result = if known_later { Ok(()) } else { Err(self.not_there(name)) };
            return self.later(move |_| reply(result));
        };
        if let Some(record) = self.inner.registry.borrow_mut().get_mut(bdev) {
            record.examination.offered.clear();
        }
        let modules: Rc<[ModuleRef]> = self.inner.modules.running().into();
        let activity = self.activity_begin(Origin::Requested);
        self.later(move |core| {
            core.examine_request(bdev, Request { modules, activity, reply: Some(Box::new(reply)) });
        });
    }

    /// New devices are offered to modules by themselves, or only on request.
    pub fn set_auto_examine(&self, is_on: bool) {
        self.inner.auto_examine.set(is_on);
    }

    /// See [`Core::set_auto_examine`].
    pub fn auto_examine(&self) -> bool {
        self.inner.auto_examine.get()
    }

    /// Offers every existing device to a module that has just come into service.
    pub(crate) fn examine_all_for(&self, module: ModuleRef) {
        if !module.offers(Callback::ExamineConfig) && !module.offers(Callback::ExamineDisk) {
            return;
        }
        let bdevs: VecDeque<BdevHandle> =
            self.inner.registry.borrow().iter().map(|record| record.handle).collect();
        let activity = self.activity_begin(Origin::Requested);
        self.later(move |core| core.examine_batch(module, bdevs, activity));
    }

    fn examine_batch(&self, module: ModuleRef, mut bdevs: VecDeque<BdevHandle>, activity: u64) {
        for bdev in bdevs.drain(..bdevs.len().min(BATCH)).collect::<Vec<_>>() {
            if self.is_new_to(bdev, module) {
                let activity = self.activity_begin(Origin::Derived);
                let modules: Rc<[ModuleRef]> = Rc::new([module]);
                self.examine_request(bdev, Request { modules, activity, reply: None });
            }
        }
        if bdevs.is_empty() {
            self.activity_end(activity);
        } else {
            self.later(move |core| core.examine_batch(module, bdevs, activity));
        }
    }

    /// The module has not been offered the device, and will not be by an examination that is to come.
    fn is_new_to(&self, bdev: BdevHandle, module: ModuleRef) -> bool {
        let registry = self.inner.registry.borrow();
        let Some(record) = registry.get(bdev) else { return false };
        let examination = &record.examination;
        let is_first_to_come = !examination.is_examined && !examination.is_running();
        let wanted = self.inner.auto_examine.get() || {
            let allowed = &self.inner.examinations.borrow().allowed;
            record.all_names.iter().any(|name| allowed.contains(&**name))
        };
        wanted && !is_first_to_come && !examination.offered.contains(&module.id())
    }

    fn examine_request(&self, bdev: BdevHandle, request: Request) {
        {
            let mut registry = self.inner.registry.borrow_mut();
            let record = registry.get_mut(bdev).filter(|record| record.state().may_be_opened());
            let Some(record) = record else {
                drop(registry);
                return self.examine_cancelled(bdev, request);
            };
            if record.examination.is_running() {
                record.examination.waiting.push_back(request);
                return;
            }
            if !request.modules.is_empty() {
                record.apply(Event::Offer);
            }
            record.examination.round =
                Some(Round { request, phase: Phase::Offering, tokens: Vec::new(), deadline: None });
        }
        self.examine_config_phase(bdev);
    }

    fn examine_config_phase(&self, bdev: BdevHandle) {
        for module in self.round_modules(bdev).iter() {
            if !self.may_offer(bdev, module) {
                continue;
            }
            if let Some(record) = self.inner.registry.borrow_mut().get_mut(bdev) {
                record.examination.offered.insert(module.id());
            }
            self.offer(bdev, module, Callback::ExamineConfig);
            self.fail_unanswered(bdev, "did not answer examine_config before it returned");
        }
        let reads =
            self.inner.registry.borrow().get(bdev).is_some_and(|record| {
                record.state().may_be_opened() && record.io_types & Op::READ.bit() != 0
            });
        if reads {
            self.examine_disk_phase(bdev);
        } else {
            self.examine_end(bdev);
        }
    }

    fn examine_disk_phase(&self, bdev: BdevHandle) {
        for module in self.round_modules(bdev).iter() {
            let is_claimed = self.inner.registry.borrow().get(bdev).is_none_or(|record| record.is_claimed());
            if is_claimed {
                break;
            }
            if self.may_offer(bdev, module) {
                self.offer(bdev, module, Callback::ExamineDisk);
            }
        }
        let activity = {
            let mut registry = self.inner.registry.borrow_mut();
            let Some(round) = registry.get_mut(bdev).and_then(|record| record.examination.round.as_mut())
            else {
                return;
            };
            round.phase = Phase::Waiting;
            if round.tokens.is_empty() { None } else { Some(round.request.activity) }
        };
        let Some(activity) = activity else { return self.examine_end(bdev) };
        let deadline =
            self.set_deadline_in(self.inner.options.examine_deadline, Due::Examine(bdev, activity));
        if let Some(record) = self.inner.registry.borrow_mut().get_mut(bdev)
            && let Some(round) = &mut record.examination.round
        {
            round.deadline = Some(deadline);
        }
    }

    fn round_modules(&self, bdev: BdevHandle) -> Rc<[ModuleRef]> {
        let registry = self.inner.registry.borrow();
        let round = registry.get(bdev).and_then(|record| record.examination.round.as_ref());
        round.map_or_else(|| Rc::from([]), |round| round.request.modules.clone())
    }

    /// The device is still to be offered, and `module` does not hold it.
    fn may_offer(&self, bdev: BdevHandle, module: ModuleRef) -> bool {
        let registry = self.inner.registry.borrow();
        let Some(record) = registry.get(bdev) else { return false };
        record.state().may_be_opened()
            && module.state() == ModuleState::Running
            && !record
                .descriptors
                .iter()
                .any(|holding| matches!(&holding.owner, Owner::Module(owner) if owner.id() == module.id()))
    }

    /// A device belongs to its examiners before it is in service: only who is offered it may open it, or has
    /// said that it waits for more of its kind.
    pub(crate) fn may_use(&self, bdev: BdevHandle, module: ModuleRef) -> bool {
        let registry = self.inner.registry.borrow();
        let Some(record) = registry.get(bdev).filter(|record| !record.state().is_in_service()) else {
            return true;
        };
        let examinations = self.inner.examinations.borrow();
        let is_its = |token: &ExamineToken| {
            examinations.tokens.get(token.0).is_some_and(|t| t.module.id() == module.id())
        };
        let waits =
            |note: &ExamineNote| note.module == module.name() && matches!(note.answer, Verdict::Waiting);
        let examination = &record.examination;
        examination.owing().iter().any(is_its)
            || examination.notes.iter().any(waits)
            || record.module.id() == module.id()
    }

    /// Calls one examine callback with a new token.
    fn offer(&self, bdev: BdevHandle, module: ModuleRef, callback: Callback) {
        if !module.offers(callback) {
            return;
        }
        let Some(name) = self.inner.registry.borrow().get(bdev).map(|record| record.name.clone()) else {
            return;
        };
        let inserted = self.inner.examinations.borrow_mut().tokens.insert(Token { bdev, module });
        let Ok(raw) = inserted else {
            log::error!("too many examinations, device is not offered bdev={name} module={}", module.name());
            return;
        };
        let token = ExamineToken(raw);
        if let Some(record) = self.inner.registry.borrow_mut().get_mut(bdev)
            && let Some(round) = &mut record.examination.round
        {
            round.tokens.push(token);
        }
        let call = match callback {
            Callback::ExamineConfig => module.examine_config(bdev, &name, token),
            _ => module.examine_disk(bdev, &name, token),
        };
        match call {
            Call::Made => {}
            Call::NotOffered | Call::NotInService => {
                self.take_token(token);
            }
        }
    }

    /// Answers `token`; returns the device it was about.
    fn take_token(&self, token: ExamineToken) -> Option<(BdevHandle, ModuleRef)> {
        let taken = self.inner.examinations.borrow_mut().tokens.remove(token.0)?;
        if let Some(record) = self.inner.registry.borrow_mut().get_mut(taken.bdev)
            && let Some(round) = &mut record.examination.round
        {
            round.tokens.retain(|other| *other != token);
        }
        Some((taken.bdev, taken.module))
    }

    /// A module answers.
    pub(crate) fn examine_answered(&self, token: ExamineToken, answer: ExamineAnswer, reason: &str) {
        let Some((bdev, module)) = self.take_token(token) else {
            log::warn!("examine answer for nothing that was asked token={:#x} reason={reason}", token.0);
            return;
        };
        self.examine_note(bdev, module, answer, reason);
        self.later(move |core| core.examine_progress(bdev));
    }

    fn examine_note(&self, bdev: BdevHandle, module: ModuleRef, answer: ExamineAnswer, reason: &str) {
        let mut registry = self.inner.registry.borrow_mut();
        let Some(record) = registry.get_mut(bdev) else { return };
        let name = &record.name;
        let (answer, module) = (Verdict::from(answer), module.name());
        match answer {
            Verdict::NotMine => return,
            Verdict::Failed => log::warn!("examine failed bdev={name} module={module} reason={reason}"),
            Verdict::Waiting => {
                log::info!("examine waits for more bdev={name} module={module} reason={reason}");
            }
            Verdict::Claimed if !record.is_claimed() => {
                log::warn!("module says it claimed a device without a claim bdev={name} module={module}");
            }
            Verdict::Claimed => log::debug!("examine claimed bdev={name} module={module}"),
        }
        let notes = &mut record.examination.notes;
        notes.retain(|note| note.module != module);
        notes.push(ExamineNote { module: module.to_owned(), answer, reason: bounded(reason) });
    }

    fn examine_progress(&self, bdev: BdevHandle) {
        let is_over = {
            let registry = self.inner.registry.borrow();
            let round = registry.get(bdev).and_then(|record| record.examination.round.as_ref());
            round.is_some_and(|round| round.phase == Phase::Waiting && round.tokens.is_empty())
        };
        if is_over {
            self.examine_end(bdev);
        }
    }

    /// Whoever has not answered by now has failed; a later answer finds nothing.
    fn fail_unanswered(&self, bdev: BdevHandle, reason: &str) {
        let owing: Vec<ExamineToken> = {
            let registry = self.inner.registry.borrow();
            registry.get(bdev).map(|record| record.examination.owing().to_vec()).unwrap_or_default()
        };
        for token in owing {
            if let Some((bdev, module)) = self.take_token(token) {
                self.examine_note(bdev, module, ExamineAnswer::FAILED, reason);
            }
        }
    }

    pub(crate) fn examine_overdue(&self, bdev: BdevHandle, activity: u64) {
        let is_current = {
            let registry = self.inner.registry.borrow();
            let round = registry.get(bdev).and_then(|record| record.examination.round.as_ref());
            round.is_some_and(|round| round.request.activity == activity)
        };
        if is_current {
            let deadline = self.inner.options.examine_deadline;
            self.fail_unanswered(bdev, &format!("no answer to examine_disk within {deadline:?}"));
            self.examine_end(bdev);
        }
    }

    /// Nothing is asked of a module any more that is out of service.
    pub(crate) fn examine_forget_module(&self, module: u32) {
        let tokens: Vec<ExamineToken> = {
            let examinations = self.inner.examinations.borrow();
            let of_module = examinations.tokens.iter().filter(|(_, token)| token.module.id() == module);
            of_module.map(|(raw, _)| ExamineToken(raw)).collect()
        };
        for token in tokens {
            if let Some((bdev, module)) = self.take_token(token) {
                self.examine_note(bdev, module, ExamineAnswer::FAILED, "module is out of service");
                self.later(move |core| core.examine_progress(bdev));
            }
        }
    }

    fn examine_end(&self, bdev: BdevHandle) {
        let (round, is_first, next, state) = {
            let mut registry = self.inner.registry.borrow_mut();
            let Some(record) = registry.get_mut(bdev) else { return };
            let Some(round) = record.examination.round.take() else { return };
            let state = record.apply(Event::Examined);
            let is_first = !std::mem::replace(&mut record.examination.is_examined, true);
            (round, is_first, record.examination.waiting.pop_front(), state)
        };
        self.cancel_deadline(round.deadline);
        let goes_on = state.may_be_opened();
        if is_first && goes_on {
            self.bdev_ready(bdev);
        }
        let Request { activity, reply, .. } = round.request;
        if let Some(reply) = reply {
            let result =
                if goes_on { Ok(()) } else { Err(OpError::new(errno::ENODEV, "", "device is going")) };
            self.later(move |_| reply(result));
        }
        self.operation_progress_of(bdev);
        self.later(move |core| {
            core.activity_end(activity);
            core.removal_check(bdev);
        });
        if let Some(next) = next {
            self.later(move |core| core.examine_request(bdev, next));
        }
    }

    /// The device went before it could be offered.
    fn examine_cancelled(&self, bdev: BdevHandle, request: Request) {
        self.activity_end(request.activity);
        if let Some(reply) = request.reply {
            self.later(move |_| reply(Err(OpError::new(errno::ENODEV, "", "device is gone or going"))));
        }
        let next = {
            let mut registry = self.inner.registry.borrow_mut();
            registry.get_mut(bdev).and_then(|record| record.examination.waiting.pop_front())
        };
        if let Some(next) = next {
            self.later(move |core| core.examine_request(bdev, next));
        }
        self.removal_check(bdev);
    }

    /// A device is in service for the first time.
    fn bdev_ready(&self, bdev: BdevHandle) {
        let names: Vec<String> = {
            let registry = self.inner.registry.borrow();
            let Some(record) = registry.get(bdev) else { return };
            debug_assert!(matches!(record.state(), State::Ready | State::Absent));
            record.all_names.iter().map(|name| name.to_string()).collect()
        };
        self.notify("bdev_register", &names[0]);
        self.later(move |core| {
            core.operations_unpark_bdev(bdev);
            core.tell_ready(&names);
        });
    }
}

/// Most examinations that may be unanswered at a time, over all devices.
const MAX_TOKENS: usize = 1 << 20;
/// Most names remembered by `bdev_examine`.
const MAX_ALLOWED: usize = 65_536;
/// Devices offered to a new module before other work has its turn.
const BATCH: usize = 32;
