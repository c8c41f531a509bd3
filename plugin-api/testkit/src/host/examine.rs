//! Examination: every new device is offered to every module but its consumers, its
//! owner among them, and every new module is offered every device. Tokens are
//! answered exactly once; those of `examine_config` before it returns.
// UNSAFETY: calls the modules' examine callbacks.

use std::cell::Cell;
use std::collections::VecDeque;
use std::rc::Rc;

use tenon_abi::{BdevHandle, ExamineAnswer, ExamineToken, Str};

use super::device::Device;
use super::lifecycle::{DeviceEvent, DeviceState};
use super::module::{Module, ModuleId, ModuleState, module_callback};
use super::schedule::{CONTROL, Where};
use super::world::World;
use crate::violation::Fault;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    Config,
    Disk,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Answer {
    Owed,
    Given,
    /// The deadline passed; an answer that still comes is ignored.
    Dead,
}

/// One offer of one device to one module.
pub(crate) struct Examination {
    device: Rc<Device>,
    module: Rc<Module>,
    phase: Phase,
    answer: Cell<Answer>,
    /// Answered with WAITING: the module may still take the device.
    waits: Cell<bool>,
    round: Rc<Round>,
}

/// The offers of one device: to all modules after its registration, or to one new module.
struct Round {
    is_first: bool,
    owed: Cell<u32>,
    is_last_phase: Cell<bool>,
}

impl World {
    pub(crate) fn start_examination(self: &Rc<World>, device: &Rc<Device>) {
        device.step(DeviceEvent::Examine);
        let modules = match self.options.auto_examine {
            true => self.modules.borrow().iter().cloned().collect(),
            false => VecDeque::new(),
        };
        self.offer(device, modules, true);
    }

    /// Offers every device to a new module.
    pub(crate) fn examine_for(self: &Rc<World>, module: &Rc<Module>) {
        if self.options.auto_examine {
            let devices = self.devices.borrow().snapshot();
            for device in devices {
                self.offer(&device, VecDeque::from([Rc::clone(module)]), false);
            }
        }
    }

    /// Offers a device to every module once more, as an operator may ask.
    pub(crate) fn examine_again(self: &Rc<World>, device: &Rc<Device>) {
        let modules = self.modules.borrow().iter().cloned().collect();
        self.offer(device, modules, false);
    }

    fn offer(self: &Rc<World>, device: &Rc<Device>, modules: VecDeque<Rc<Module>>, is_first: bool) {
        device.examining.set(device.examining.get() + 1);
        let round = Rc::new(Round { is_first, owed: Cell::new(0), is_last_phase: Cell::new(false) });
        let device = Rc::clone(device);
        self.post(CONTROL, move |world| world.examine_config(&device, modules, &round));
    }

    /// A device that is not in service yet belongs to those it is offered to.
    pub(crate) fn may_open(&self, device: &Device, module: ModuleId) -> bool {
        let is_its = |examination: &Rc<Examination>| {
            examination.device.id == device.id
                && examination.module.id == module
                && (examination.answer.get() == Answer::Owed || examination.waits.get())
        };
        device.was_examined.get()
            || module == ModuleId::HOST
            || module == device.owner
            || self.examinations.borrow().snapshot().iter().any(is_its)
    }

    /// The modules of `modules` that are to be asked about `device` now.
    fn is_asked(&self, device: &Device, module: &Module) -> bool {
        let holds = |id: &u64| self.descriptor(*id).is_some_and(|desc| desc.module == module.id);
        device.state.get().is_open_to_consumers()
            && module.state.get() == ModuleState::Running
            && !device.descriptors.borrow().iter().any(holds)
    }

    fn ask(
        self: &Rc<World>,
        device: &Rc<Device>,
        module: &Rc<Module>,
        phase: Phase,
        round: &Rc<Round>,
    ) -> Option<u64> {
        let examine = match phase {
            Phase::Config => module_callback!(module, examine_config),
            Phase::Disk => module_callback!(module, examine_disk),
        }?;
        let token = self.examinations.borrow_mut().reserve();
        let examination = Rc::new(Examination {
            device: Rc::clone(device),
            module: Rc::clone(module),
            phase,
            answer: Cell::new(Answer::Owed),
            waits: Cell::new(false),
            round: Rc::clone(round),
        });
        self.examinations.borrow_mut().insert(token, examination);
        round.owed.set(round.owed.get() + 1);
        self.enter(Where::Reactor(CONTROL), module.id, || {
            // SAFETY: the module runs; the name is lent for the call.
            unsafe { examine(BdevHandle(device.id), Str::new(&device.name), ExamineToken(token)) };
        });
        Some(token)
    }

    fn examine_config(
        self: &Rc<World>,
        device: &Rc<Device>,
        modules: VecDeque<Rc<Module>>,
        round: &Rc<Round>,
    ) {
        for module in &modules {
            if !self.is_asked(device, module) {
                continue;
            }
            if let Some(token) = self.ask(device, module, Phase::Config, round) {
                self.expire_examination(token, "before it returned");
            }
        }
        let (device, round) = (Rc::clone(device), Rc::clone(round));
        self.post(CONTROL, move |world| world.examine_disk(&device, modules, &round));
    }

    fn examine_disk(self: &Rc<World>, device: &Rc<Device>, modules: VecDeque<Rc<Module>>, round: &Rc<Round>) {
        round.owed.set(round.owed.get() + 1);
        for module in &modules {
            let claimed = self.claims_on(device).next().is_some();
            if claimed || !self.is_asked(device, module) {
                continue;
            }
            if let Some(token) = self.ask(device, module, Phase::Disk, round) {
                let deadline = self.options.operation_deadline.as_nanos() as u64 / 3;
                self.after(CONTROL, deadline, move |world| {
                    world.expire_examination(token, "within its deadline")
                });
            }
        }
        round.is_last_phase.set(true);
        self.examination_answered(device, round);
    }

    fn expire_examination(self: &Rc<World>, token: u64, when: &str) {
        let Some(examination) = self.examinations.borrow().get(token) else { return };
        if examination.answer.get() == Answer::Owed {
            let detail = format!(
                "examine_{:?} of `{}` was not answered {when}",
                examination.phase, examination.device.name
            )
            .to_lowercase();
            self.violate_by(Fault::TokenForgotten, examination.module.id, detail);
            examination.answer.set(Answer::Dead);
            self.examination_answered(&examination.device, &examination.round);
        }
    }

    pub(crate) fn answer_examination(self: &Rc<World>, token: u64, answer: ExamineAnswer, reason: String) {
        let Some(examination) = self.examinations.borrow().get(token) else {
            return self.violate(
                Fault::TokenAnsweredTwice,
                format!("examine_done for token {token:#x}, which never was"),
            );
        };
        let name = &examination.device.name;
        match examination.answer.get() {
            Answer::Dead => return,
            Answer::Given => {
                let detail = format!("the examine token of `{name}` was answered a second time");
                return self.violate(Fault::TokenAnsweredTwice, detail);
            }
            Answer::Owed => examination.answer.set(Answer::Given),
        }
        examination.waits.set(answer == ExamineAnswer::WAITING);
        let holds_claim =
            self.claims_on(&examination.device).any(|desc| desc.module == examination.module.id);
        let alive = examination.device.state.get().is_open_to_consumers();
        if answer == ExamineAnswer::CLAIMED && !holds_claim && alive {
            self.violate(
                Fault::BadCall,
                format!("examine of `{name}` answered CLAIMED without holding a claim"),
            );
        }
        if matches!(answer, ExamineAnswer::WAITING | ExamineAnswer::FAILED) && reason.is_empty() {
            self.violate(
                Fault::BadCall,
                format!("examine of `{name}` answered {} without a reason", answer.0),
            );
        }
        let device = Rc::clone(&examination.device);
        self.post(CONTROL, move |world| world.examination_answered(&device, &examination.round));
    }

    fn examination_answered(self: &Rc<World>, device: &Rc<Device>, round: &Rc<Round>) {
        round.owed.set(round.owed.get() - 1);
        if round.owed.get() > 0 || !round.is_last_phase.get() {
            return;
        }
        device.examining.set(device.examining.get() - 1);
        if round.is_first {
            device.was_examined.set(true);
            if device.state.get() == DeviceState::Examining {
                device.step(DeviceEvent::ExamineDone);
            }
            self.notifications.borrow_mut().push(("bdev_register".to_owned(), device.name.clone()));
        }
        self.progress_removal(device);
        self.progress_operations();
    }
}
