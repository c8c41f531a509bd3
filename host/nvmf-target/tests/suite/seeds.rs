//! Many seeds of hosts that write and read while the target changes under them:
//! every command ends once, every read of a live namespace gives what was
//! written last, and nothing is left at the end.

use std::time::Duration;

use crate::rig::Reply;
use crate::rig::device::chance;
use crate::rig::{NQN, Session, World, admin, read, write};
use nvme_spec::opcode::AdminOpcode;
use nvme_spec::status::StatusCode;
use tenon_nvmf_target::AnaState;

/// A command under way, and what it may come back with.
enum Sent {
    Write { slot: usize, value: u8, reply: Reply },
    Read { slot: usize, reply: Reply },
}

/// One host: writes to blocks of its own, so that it knows what they hold.
struct Load {
    session: Session,
    base: u64,
    /// Per slot: values it may hold; more than one after a write with an unknown end.
    slots: Vec<Vec<u8>>,
    sent: Vec<Sent>,
}

const SLOTS: usize = 8;
const BLOCKS: u64 = 4;

impl Load {
    fn is_open(&self) -> bool {
        self.session.admin.is_open() && self.session.queues.iter().all(|queue| queue.is_open())
    }

    fn is_busy(&self, wanted: usize) -> bool {
        self.sent.iter().any(|sent| match sent {
            Sent::Write { slot, .. } | Sent::Read { slot, .. } => *slot == wanted,
        })
    }

    fn send(&mut self, world: &World) {
        let slot = (chance() % SLOTS as u64) as usize;
        if !self.is_open() || self.is_busy(slot) || self.sent.len() > 12 {
            return;
        }
        let queue = self.session.queues[(chance() % self.session.queues.len() as u64) as usize];
        let lba = self.base + slot as u64 * BLOCKS;
        if chance().is_multiple_of(2) {
            let value = chance() as u8;
            let (sqe, out) = write(1, lba, &vec![value; BLOCKS as usize * 512]);
            let reply = world.start(queue, sqe, out);
            self.sent.push(Sent::Write { slot, value, reply });
        } else {
            let reply = world.start(queue, read(1, lba, BLOCKS as u16), vec![]);
            self.sent.push(Sent::Read { slot, reply });
        }
    }

    /// Takes what has ended.
    fn collect(&mut self) {
        let (slots, is_open) = (&mut self.slots, self.session.queues.iter().all(|queue| queue.is_open()));
        self.sent.retain(|sent| match sent {
            Sent::Write { slot, value, reply } => match reply.borrow().as_ref() {
                Some(done) if done.cqe.status.is_success() => {
                    slots[*slot] = vec![*value];
                    false
                }
                Some(_) => {
                    slots[*slot].push(*value);
                    false
                }
                None if !is_open => {
                    slots[*slot].push(*value);
                    false
                }
                None => true,
            },
            Sent::Read { slot, reply } => match reply.borrow().as_ref() {
                Some(done) => {
                    if done.cqe.status.is_success() {
                        let first = done.data[0];
                        assert!(done.data.iter().all(|byte| *byte == first), "a torn read");
                        assert!(
                            slots[*slot].contains(&first),
                            "slot {slot}: {first} not in {:?}",
                            slots[*slot]
                        );
                    }
                    false
                }
                None => is_open,
            },
        });
    }
}

fn change(world: &World, has_namespace: &mut bool) {
    match chance() % 6 {
        0 if *has_namespace => {
            world.remove_namespace(NQN, 1);
            *has_namespace = false;
        }
        0 | 1 if !*has_namespace => {
            assert_eq!(world.namespace(NQN, "m0"), 1);
            *has_namespace = true;
        }
        2 => {
            let pause = Duration::from_millis(chance() % 50 + 1);
            let paused = world.wait(|world, reply| world.target.pause_subsystem(NQN, pause, reply));
            if paused.is_ok() && chance().is_multiple_of(2) {
                let _ = world.wait(|world, reply| world.target.resume_subsystem(NQN, reply));
            }
        }
        3 => {
            let states = [AnaState::OPTIMIZED, AnaState::INACCESSIBLE, AnaState::NON_OPTIMIZED];
            let state = states[(chance() % 3) as usize];
            world
                .on(|world| world.target.set_ana_state(NQN, &crate::rig::address("a"), state, None))
                .expect("the listener is there");
        }
        4 => world.on(|_| crate::rig::device::resize("m0", 512 + chance() % 2 * 64)),
        _ => {}
    }
}

fn run(seed: u64) {
    let world = World::serving(seed, &[("m0", 512)]);
    world.listen(NQN, "b");
    crate::rig::device::set_delay("m0", chance() % 3 * 200);
    crate::transport::set_delay(chance() % 3 * 150);
    let mut loads: Vec<Load> = ["a", "b", "a"]
        .iter()
        .enumerate()
        .map(|(at, traddr)| Load {
            session: world.session(traddr, 2),
            base: at as u64 * SLOTS as u64 * BLOCKS,
            slots: vec![vec![0]; SLOTS],
            sent: Vec::new(),
        })
        .collect();
    let mut has_namespace = true;
    for step in 0..60 {
        for load in &mut loads {
            for _ in 0..chance() % 4 {
                load.send(&world);
            }
        }
        world.steps(chance() % 40);
        if chance().is_multiple_of(5) {
            change(&world, &mut has_namespace);
        }
        if chance().is_multiple_of(20) {
            let load = &mut loads[2];
            let queue = load.session.queues[0];
            if chance().is_multiple_of(2) && queue.is_open() {
                world.on_queue(queue, || queue.drop_by_peer());
            } else if load.session.admin.is_open() {
                let abort = admin(AdminOpcode::ABORT, 0, 1, 0, 0);
                let code = world.start(load.session.admin, abort, vec![]);
                world.steps(30);
                let code = code.borrow().as_ref().map(|done| done.cqe.status.code());
                assert!(
                    matches!(code, None | Some(StatusCode::SUCCESS | StatusCode::INVALID_FIELD)),
                    "{step}"
                );
            }
        }
        loads.iter_mut().for_each(Load::collect);
    }
    world.advance(Duration::from_secs(12));
    for load in &mut loads {
        load.collect();
        assert!(load.sent.is_empty(), "seed {seed}: commands without an end");
    }
    world.finish();
}

#[test]
fn nothing_is_lost_or_left_whatever_changes_under_io() {
    for seed in 1..=crate::transport::SEEDS {
        run(seed);
    }
}
