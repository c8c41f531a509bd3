//! What the gate of a device is asked to do, one step after the other.
//!
//! Freezing, resizing, orphaning and draining reach every reactor and take time;
//! here they wait for each other, so a removal queues behind a resize and is
//! never refused. What follows a step is in `backing` and `removal`.

use std::collections::VecDeque;
use std::sync::Arc;

use tenon_abi::BdevHandle;

use crate::core::Core;
use crate::event::Event as DeviceEvent;
use crate::io::{Drained, Gate, Phase};

/// One step.
#[derive(Clone, Debug)]
pub(crate) enum GateStep {
    /// Backing lost: I/O waits.
    Absent,
    /// Backing found: I/O goes on.
    Present,
    /// The capacity is that many blocks from now on.
    Resize(u64),
    /// Writes are refused, or accepted again; then openers hear of it.
    Protect(bool, Box<DeviceEvent>),
    /// New I/O bounces.
    Orphan,
    /// Wait until no channel is left, until that time.
    Drain(u64),
}

/// Steps of one device that wait, and whether one runs.
#[derive(Debug, Default)]
pub(crate) struct GateSteps {
    waiting: VecDeque<GateStep>,
    is_running: bool,
}

/// What a step ended with.
enum Outcome {
    Done,
    Drained(Drained),
}

impl Core {
    /// Queues a step; false if too many wait. A removal makes the steps before it pointless.
    pub(crate) fn gate_step(&self, bdev: BdevHandle, step: GateStep) -> bool {
        {
            let mut registry = self.inner.registry.borrow_mut();
            let Some(record) = registry.get_mut(bdev) else { return false };
            let steps = &mut record.gate_steps;
            if matches!(step, GateStep::Orphan) {
                steps.waiting.clear();
            } else if steps.waiting.len() >= MAX_WAITING {
                return false;
            }
            steps.waiting.push_back(step);
        }
        self.gate_next(bdev);
        true
    }

    fn gate_next(&self, bdev: BdevHandle) {
        let (step, gate) = {
            let mut registry = self.inner.registry.borrow_mut();
            let Some(record) = registry.get_mut(bdev) else { return };
            if record.gate_steps.is_running {
                return;
            }
            let Some(step) = record.gate_steps.waiting.pop_front() else { return };
            record.gate_steps.is_running = true;
            (step, record.gate.clone())
        };
        self.gate_start(bdev, step, &gate);
    }

    fn gate_start(&self, bdev: BdevHandle, step: GateStep, gate: &Arc<Gate>) {
        let core = self.downgrade();
        let finished = step.clone();
        let finish = move |outcome: Outcome| {
            // Never from inside the gate, nor from inside who asked for the step.
            if let Some(core) = core.upgrade() {
                core.later(move |core| core.gate_finished(bdev, finished, outcome));
            }
        };
        match step {
            GateStep::Protect(is_read_only, _) => {
                gate.set_read_only(is_read_only, move || finish(Outcome::Done));
            }
            GateStep::Absent => gate.set_phase(Phase::Absent, move || finish(Outcome::Done)),
            GateStep::Present => gate.set_phase(Phase::Running, move || finish(Outcome::Done)),
            GateStep::Orphan => gate.set_phase(Phase::Orphaned, move || finish(Outcome::Done)),
            GateStep::Resize(num_blocks) => gate.resize(num_blocks, move || finish(Outcome::Done)),
            GateStep::Drain(deadline_ns) => {
                gate.wait_drained(deadline_ns, move |drained| finish(Outcome::Drained(drained)));
            }
        }
    }

    fn gate_finished(&self, bdev: BdevHandle, step: GateStep, outcome: Outcome) {
        {
            let mut registry = self.inner.registry.borrow_mut();
            let Some(record) = registry.get_mut(bdev) else { return };
            record.gate_steps.is_running = false;
        }
        match (step, outcome) {
            (GateStep::Absent, _) => self.backing_lost_everywhere(bdev),
            (GateStep::Present, _) => self.backing_found_everywhere(bdev),
            (GateStep::Protect(_, event), _) => self.publish_event(&event),
            (GateStep::Resize(num_blocks), _) => self.resized_everywhere(bdev, num_blocks),
            (GateStep::Orphan, _) => self.removal_orphaned(bdev),
            (GateStep::Drain(_), Outcome::Drained(drained)) => self.removal_drained(bdev, drained),
            (GateStep::Drain(_), Outcome::Done) => {}
        }
        self.gate_next(bdev);
    }
}

/// Most steps of one device that may wait; a module that toggles faster is told `-EAGAIN`.
const MAX_WAITING: usize = 16;
