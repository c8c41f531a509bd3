//! What a reactor promises, in simulations.
// UNSAFETY: registers C callbacks, as a layer above does.

use std::cell::{Cell, RefCell};
use std::ffi::c_void;
use std::os::fd::AsRawFd;
use std::rc::Rc;
use std::time::Duration;

use crate::simulation::spend;
use crate::*;

const LIMIT: usize = 10_000;

fn millis(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// A list that callbacks append to.
#[derive(Clone, Default)]
struct Seen(Rc<RefCell<Vec<u32>>>);

impl Seen {
    fn push(&self, n: u32) {
        self.0.borrow_mut().push(n);
    }

    fn take(&self) -> Vec<u32> {
        self.0.take()
    }
}

/// Lets a test's closures cross the `Send` bound of messages: a simulation has one thread.
struct OneThread<T>(T);

// SAFETY: only used in simulations, which send nothing to another thread.
unsafe impl<T> Send for OneThread<T> {}

impl<T> OneThread<T> {
    fn get(&self) -> &T {
        &self.0
    }
}

fn pushing(seen: &Seen, n: u32) -> impl FnOnce() + Send + use<> {
    let seen = OneThread(seen.clone());
    move || seen.get().push(n)
}

/// Two reactors send to a third; the order of arrival, and the run's trace.
fn race(seed: u64) -> (Vec<u32>, u64) {
    let mut sim = Simulation::new(seed, 3);
    let seen = Seen::default();
    for sender in 0..2u32 {
        let target = sim.data(2);
        let seen = OneThread(seen.clone());
        sim.data(sender as usize)
            .send(move || {
                for round in 0..6 {
                    let (target, seen) = (target.clone(), seen.get().clone());
                    let reply = move || {
                        target.send(pushing(&seen, sender * 100 + round)).unwrap();
                    };
                    current().defer(move || current().defer(reply).unwrap()).unwrap();
                }
            })
            .unwrap();
    }
    assert!(sim.run_until_idle(LIMIT));
    (seen.take(), sim.trace_hash())
}

#[test]
fn the_same_seed_gives_the_same_run() {
    for seed in 0..50 {
        assert_eq!(race(seed), race(seed), "seed {seed}");
    }
}

#[test]
fn seeds_permute_senders_but_keep_each_senders_order() {
    let mut orders = std::collections::HashSet::new();
    for seed in 0..100 {
        let (order, _) = race(seed);
        for sender in 0..2 {
            let own: Vec<_> = order.iter().filter(|&&n| n / 100 == sender).map(|n| n % 100).collect();
            assert_eq!(own, [0, 1, 2, 3, 4, 5], "seed {seed}");
        }
        orders.insert(order);
    }
    assert!(orders.len() >= 3, "100 seeds gave only {} orders", orders.len());
}

#[test]
fn a_caused_message_arrives_after_its_cause() {
    for seed in 0..200 {
        let mut sim = Simulation::new(seed, 3);
        let seen = Seen::default();
        let (a, b, target) = (sim.data(0), sim.data(1), sim.data(2));
        let (first, second) = (pushing(&seen, 1), pushing(&seen, 2));
        a.send(move || {
            target.send(first).unwrap();
            b.send(move || target.send(second).unwrap()).unwrap();
        })
        .unwrap();
        assert!(sim.run_until_idle(LIMIT));
        assert_eq!(seen.take(), [1, 2], "seed {seed}");
    }
}

#[test]
fn timers_fire_at_their_time_in_order_and_ties_as_set() {
    let mut sim = Simulation::new(1, 1);
    let seen = Seen::default();
    let start = sim.now_ns();
    let reactor = sim.data(0);
    sim.on(&reactor, |local| {
        for (n, ms) in [(1, 30), (2, 10), (3, 20), (4, 10)] {
            let seen = seen.clone();
            let expected = start + ms * 1_000_000;
            local
                .set_timer(millis(ms), move || {
                    assert_eq!(now_ns(), expected, "timer {n}");
                    seen.push(n);
                })
                .unwrap();
        }
    });
    assert!(sim.advance(millis(9)));
    assert_eq!(seen.take(), []);
    assert!(sim.advance(millis(1)));
    assert_eq!(seen.take(), [2, 4]);
    assert!(sim.advance(millis(100)));
    assert_eq!(seen.take(), [3, 1]);
    assert_eq!(sim.now_ns(), start + 110_000_000);
}

#[test]
fn a_timer_cancelled_by_a_callback_of_the_same_moment_does_not_fire() {
    for seed in 0..20 {
        let mut sim = Simulation::new(seed, 1);
        let seen = Seen::default();
        let reactor = sim.data(0);
        sim.on(&reactor, |local| {
            let victim = Rc::new(Cell::new(None));
            let (chosen, log) = (Rc::clone(&victim), seen.clone());
            local
                .set_timer(millis(1), move || {
                    log.push(1);
                    let id = Cell::get(&chosen).unwrap();
                    assert!(current().cancel_timer(id));
                    assert!(!current().cancel_timer(id), "cancelled twice");
                })
                .unwrap();
            let log = seen.clone();
            victim.set(Some(local.set_timer(millis(1), move || log.push(2)).unwrap()));
        });
        assert!(sim.advance(millis(5)));
        assert_eq!(seen.take(), [1]);
    }
}

#[test]
fn a_fired_timer_cannot_be_cancelled_and_its_handle_names_nothing_new() {
    let mut sim = Simulation::new(1, 1);
    let reactor = sim.data(0);
    let old = sim.on(&reactor, |local| local.set_timer(millis(1), || {}).unwrap());
    assert!(sim.advance(millis(1)));
    let new = sim.on(&reactor, |local| local.set_timer(millis(1), || {}).unwrap());
    sim.on(&reactor, |local| {
        assert!(!local.cancel_timer(old));
        assert!(local.cancel_timer(new));
    });
}

#[test]
fn a_handle_of_another_reactor_is_stale() {
    let mut sim = Simulation::new(1, 2);
    let (a, b) = (sim.data(0), sim.data(1));
    let register =
        |local: &Local| local.register_poller("p", 0, PollerKind::Wakeable, || Poll::Idle).unwrap();
    let on_a = sim.on(&a, register);
    let on_b = sim.on(&b, register);
    sim.on(&b, |local| {
        assert!(!local.unregister_poller(on_a));
        assert!(local.unregister_poller(on_b));
    });
}

#[test]
fn pollers_may_be_added_and_removed_by_pollers_of_the_same_turn() {
    let mut sim = Simulation::new(3, 1);
    let seen = Seen::default();
    let reactor = sim.data(0);
    sim.on(&reactor, |local| {
        let victims: Rc<RefCell<Vec<PollerId>>> = Rc::default();
        let (ids, log) = (Rc::clone(&victims), seen.clone());
        local
            .register_poller("remover", 0, PollerKind::Pure, move || {
                for id in ids.borrow_mut().drain(..) {
                    assert!(current().unregister_poller(id));
                    assert!(!current().unregister_poller(id));
                    let log = log.clone();
                    current()
                        .register_poller("late", 0, PollerKind::Pure, move || {
                            log.push(7);
                            Poll::Idle
                        })
                        .unwrap();
                }
                Poll::Idle
            })
            .unwrap();
        for n in 0..3 {
            let log = seen.clone();
            let id = local.register_poller("victim", 0, PollerKind::Pure, move || {
                log.push(n);
                Poll::Idle
            });
            victims.borrow_mut().push(id.unwrap());
        }
    });
    assert!(sim.run_until_idle(LIMIT));
    let seen = seen.take();
    let first_late = seen.iter().position(|&n| n == 7).unwrap();
    assert!(seen[first_late..].iter().all(|&n| n == 7), "a removed poller ran: {seen:?}");
    assert_eq!(sim.on(&reactor, |local| local.pollers().len()), 4);
    assert_eq!(reactor.statistics().every_turn_pollers, 4);
}

#[test]
fn a_poller_that_unregisters_itself_keeps_its_state_until_it_returns() {
    let mut sim = Simulation::new(3, 1);
    let seen = Seen::default();
    let reactor = sim.data(0);
    let payload = Rc::new(5);
    let alive = Rc::downgrade(&payload);
    sim.on(&reactor, |local| {
        let id: Rc<Cell<Option<PollerId>>> = Rc::default();
        let (own, log) = (Rc::clone(&id), seen.clone());
        let poller = local.register_poller("once", 0, PollerKind::Pure, move || {
            assert!(current().unregister_poller(own.take().unwrap()));
            log.push(*payload);
            Poll::Busy
        });
        id.set(Some(poller.unwrap()));
    });
    assert!(sim.run_until_idle(LIMIT));
    assert_eq!(seen.take(), [5]);
    assert_eq!(alive.strong_count(), 0, "released after it returned");
}

#[test]
fn a_timed_poller_runs_once_in_its_period_until_paused_and_again_when_resumed() {
    for seed in 0..20 {
        let mut sim = Simulation::new(seed, 1);
        let seen = Seen::default();
        let reactor = sim.data(0);
        let log = seen.clone();
        let id = sim.on(&reactor, |local| {
            let poll = move || {
                log.push(1);
                Poll::Busy
            };
            local.register_poller("timed", 10_000, PollerKind::Pure, poll).unwrap()
        });
        let runs = |sim: &mut Simulation, ms| {
            assert!(sim.advance(millis(ms)));
            seen.take().len()
        };
        assert_eq!(runs(&mut sim, 9), 0);
        assert_eq!(runs(&mut sim, 41), 5);
        sim.on(&reactor, |local| assert!(local.pause_poller(id)));
        assert_eq!(runs(&mut sim, 100), 0);
        sim.on(&reactor, |local| assert!(local.resume_poller(id)));
        assert_eq!(runs(&mut sim, 10), 1);
        sim.on(&reactor, |local| assert!(local.set_poller_period(id, 1_000)));
        assert_eq!(runs(&mut sim, 10), 10);
        let report = sim.on(&reactor, |local| local.pollers());
        assert_eq!((report[0].runs, report[0].busy_runs, report[0].state), (16, 16, PollerState::Timed));
        assert_eq!(report[0].name, "timed");
        sim.on(&reactor, |local| assert!(local.unregister_poller(id)));
        assert_eq!(runs(&mut sim, 100), 0);
    }
}

#[test]
fn a_late_timed_poller_skips_runs_instead_of_repeating_them() {
    let mut sim = Simulation::new(1, 1);
    let seen = Seen::default();
    let reactor = sim.data(0);
    let log = seen.clone();
    sim.on(&reactor, |local| {
        let poll = move || {
            log.push(1);
            Poll::Idle
        };
        local.register_poller("timed", 1_000, PollerKind::Wakeable, poll).unwrap();
        local.set_timer(Duration::from_micros(500), || spend(millis(50))).unwrap();
    });
    assert!(sim.advance(Duration::from_micros(50_900)));
    let runs = seen.take().len();
    assert!(runs == 1, "{runs} runs after 50 missed periods");
}

#[test]
fn a_poller_paused_by_itself_does_not_run_and_counts_as_paused() {
    let mut sim = Simulation::new(1, 1);
    let reactor = sim.data(0);
    let seen = Seen::default();
    let id: Rc<Cell<Option<PollerId>>> = Rc::default();
    sim.on(&reactor, |local| {
        let (own, log) = (Rc::clone(&id), seen.clone());
        let poller = local.register_poller("p", 0, PollerKind::Pure, move || {
            log.push(1);
            assert!(current().pause_poller(own.get().unwrap()));
            Poll::Busy
        });
        id.set(Some(poller.unwrap()));
    });
    assert!(sim.run_until_idle(LIMIT));
    assert_eq!(seen.take(), [1]);
    let statistics = reactor.statistics();
    assert_eq!((statistics.every_turn_pollers, statistics.paused_pollers), (0, 1));
    sim.on(&reactor, |local| assert!(local.resume_poller(id.get().unwrap())));
    assert!(sim.run_until_idle(LIMIT));
    assert_eq!(seen.take(), [1]);
}

#[test]
fn one_poller_too_many_is_refused() {
    let mut sim = Simulation::new(1, 1);
    let reactor = sim.data(0);
    sim.on(&reactor, |local| {
        let register = |period_us| local.register_poller("p", period_us, PollerKind::Wakeable, || Poll::Idle);
        for n in 0..MAX_POLLERS as u64 {
            register(n % 2 * 1000).unwrap();
        }
        let refused = register(0).unwrap_err().to_string();
        assert_eq!(refused, "poller \"p\" not registered: limit of 4096 reached");
    });
}

#[test]
fn a_pure_poller_runs_every_millisecond_on_the_control_reactor() {
    let mut sim = Simulation::new(1, 0);
    let control = sim.control();
    let seen = Seen::default();
    let log = seen.clone();
    sim.on(&control, |local| {
        let poll = move || {
            log.push(1);
            Poll::Idle
        };
        local.register_poller("pure", 0, PollerKind::Pure, poll).unwrap();
    });
    assert!(sim.run_until_idle(LIMIT));
    seen.take();
    assert!(sim.advance(millis(100)));
    let runs = seen.take().len();
    assert!((95..=500).contains(&runs), "{runs} runs in 100 ms");
}

#[test]
fn a_full_queue_refuses_and_takes_messages_again_once_drained() {
    let mut sim = Simulation::new(1, 1);
    let reactor = sim.data(0);
    for _ in 0..MESSAGE_QUEUE_CAPACITY {
        reactor.send(|| {}).unwrap();
    }
    assert_eq!(reactor.send(|| {}), Err(SendError::QueueFull));
    assert_eq!(reactor.statistics().messages_waiting, MESSAGE_QUEUE_CAPACITY as u64);
    assert!(sim.run_until_idle(1_000_000));
    assert_eq!(reactor.statistics().messages, MESSAGE_QUEUE_CAPACITY as u64);
    reactor.send(|| {}).unwrap();
}

#[test]
fn a_turn_runs_a_bounded_number_of_messages() {
    let mut sim = Simulation::new(1, 1);
    let reactor = sim.data(0);
    let polled = Rc::new(Cell::new(0u64));
    let count = Rc::clone(&polled);
    sim.on(&reactor, |local| {
        let poll = move || {
            count.set(count.get() + 1);
            Poll::Idle
        };
        local.register_poller("p", 0, PollerKind::Wakeable, poll).unwrap();
    });
    for _ in 0..MESSAGES_PER_TURN * 40 {
        reactor.send(|| {}).unwrap();
    }
    assert!(sim.run_until_idle(LIMIT));
    assert!(polled.get() >= 40, "pollers ran only {} times between the messages", polled.get());
}

/// A ring that a producer on another reactor fills; it sends a wake-up only if it finds it armed.
#[derive(Default)]
struct Ring {
    items: Cell<u32>,
    is_armed: Cell<bool>,
}

/// Whether the consumer gets all items. `looks_again`: the hook looks at the ring after arming.
fn consumes_everything(seed: u64, looks_again: bool) -> bool {
    let mut sim = Simulation::new(seed, 2);
    let ring: Rc<Ring> = Rc::default();
    let consumed = Rc::new(Cell::new(0));
    let (producer, consumer) = (sim.data(0), sim.data(1));
    sim.on(&consumer, |local| {
        let (from, count) = (Rc::clone(&ring), Rc::clone(&consumed));
        let id = local.register_poller("consumer", 0, PollerKind::Wakeable, move || {
            let items = from.items.take();
            count.set(count.get() + items);
            if items > 0 { Poll::Busy } else { Poll::Idle }
        });
        let from = Rc::clone(&ring);
        let armed = local.set_before_sleep(id.unwrap(), move || {
            from.is_armed.set(true);
            !looks_again || from.items.get() == 0
        });
        assert!(armed);
    });
    for _ in 0..10 {
        let (to, consumer) = (OneThread(Rc::clone(&ring)), consumer.clone());
        let produce = move || {
            let ring = to.get();
            ring.items.set(ring.items.get() + 1);
            if ring.is_armed.take() {
                consumer.send(|| {}).unwrap();
            }
        };
        producer.send(produce).unwrap();
    }
    assert!(sim.run_until_idle(LIMIT));
    consumed.get() == 10
}

#[test]
fn a_hook_that_looks_again_after_arming_loses_no_wake_up() {
    for seed in 0..300 {
        assert!(consumes_everything(seed, true), "seed {seed}");
    }
}

#[test]
fn the_simulation_finds_a_consumer_without_a_wake_source() {
    let mut sim = Simulation::new(1, 2);
    let ring: Rc<Ring> = Rc::default();
    let (producer, consumer) = (sim.data(0), sim.data(1));
    let from = Rc::clone(&ring);
    sim.on(&consumer, |local| {
        let poll = move || if from.items.take() > 0 { Poll::Busy } else { Poll::Idle };
        local.register_poller("deaf", 0, PollerKind::Wakeable, poll).unwrap();
    });
    assert!(sim.run_until_idle(LIMIT));
    let to = OneThread(Rc::clone(&ring));
    producer.send(move || to.get().items.set(1)).unwrap();
    assert!(sim.run_until_idle(LIMIT));
    assert_eq!(ring.items.get(), 1, "it sleeps: nothing tells it of the item");
}

#[test]
fn offloaded_work_runs_on_no_reactor_and_its_answer_on_the_asking_one() {
    let mut orders = std::collections::HashSet::new();
    for seed in 0..50 {
        let mut sim = Simulation::new(seed, 2);
        let seen = Seen::default();
        let reactor = sim.data(1);
        sim.on(&reactor, |local| {
            for n in 0..4 {
                let log = seen.clone();
                let work = move || {
                    assert!(try_current().is_none());
                    n * 10
                };
                let done = move |answer| {
                    assert_eq!(current().name(), "reactor_1");
                    log.push(answer);
                };
                local.offload(work, done).unwrap();
            }
        });
        assert!(sim.run_until_idle(LIMIT));
        let order = seen.take();
        let mut sorted = order.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, [0, 10, 20, 30]);
        orders.insert(order);
    }
    assert!(orders.len() > 3, "workers end in any order");
}

#[test]
fn an_offloaded_job_too_many_is_refused_and_runs_neither_closure() {
    let mut sim = Simulation::new(1, 1);
    let reactor = sim.data(0);
    let done = Rc::new(Cell::new(0));
    sim.on(&reactor, |local| {
        for n in 0..=MAX_OFFLOAD_QUEUE {
            let count = Rc::clone(&done);
            let result = local.offload(|| (), move |()| count.set(count.get() + 1));
            assert_eq!(result.is_ok(), n < MAX_OFFLOAD_QUEUE, "job {n}");
        }
    });
    assert!(sim.run_until_idle(100_000));
    assert_eq!(done.get(), MAX_OFFLOAD_QUEUE);
    assert_eq!(Rc::strong_count(&done), 1, "the refused closure was released");
}

#[test]
fn a_long_turn_is_measured_and_counted() {
    let mut sim = Simulation::new(1, 1);
    let reactor = sim.data(0);
    reactor.send(|| spend(millis(250))).unwrap();
    reactor.send(|| spend(millis(20))).unwrap();
    assert!(sim.run_until_idle(LIMIT));
    let statistics = reactor.statistics();
    assert!(statistics.longest_turn_ns >= 250_000_000, "{statistics:?}");
    assert_eq!(statistics.long_turns, 1, "20 ms is below the threshold");
    assert!(sim.advance(millis(1000)));
    reactor.send(|| {}).unwrap();
    assert!(sim.run_until_idle(LIMIT));
    assert_eq!(reactor.statistics().long_turns, 1, "sleeping is not turning");
    assert!(reactor.statistics().sleep_ticks >= 1_000_000_000);
}

#[test]
fn a_panic_in_a_callback_reaches_the_test() {
    let panicked = std::panic::catch_unwind(|| {
        let mut sim = Simulation::new(1, 1);
        sim.data(0).send(|| panic!("boom")).unwrap();
        sim.run_until_idle(LIMIT);
    });
    assert_eq!(panicked.unwrap_err().downcast_ref::<&str>(), Some(&"boom"));
    drop(Simulation::new(1, 1));
}

#[test]
fn deferred_calls_run_after_the_caller_has_returned() {
    let mut sim = Simulation::new(1, 1);
    let seen = Seen::default();
    let log = OneThread(seen.clone());
    sim.data(0)
        .send(move || {
            let (first, second) = (log.get().clone(), log.get().clone());
            current().defer(move || first.push(2)).unwrap();
            second.push(1);
        })
        .unwrap();
    assert!(sim.run_until_idle(LIMIT));
    assert_eq!(seen.take(), [1, 2]);
}

#[test]
fn a_dropped_simulation_releases_everything_without_calling_it() {
    let token = Rc::new(());
    let mut sim = Simulation::new(1, 1);
    let reactor = sim.data(0);
    sim.on(&reactor, |local| {
        let never = |held: Rc<()>| move || assert!(Rc::strong_count(&held) == 0, "called");
        let held = Rc::clone(&token);
        let poll = move || if Rc::strong_count(&held) > 0 { Poll::Idle } else { Poll::Busy };
        let poller = local.register_poller("p", 0, PollerKind::Wakeable, poll).unwrap();
        let held = Rc::clone(&token);
        assert!(local.set_before_sleep(poller, move || Rc::strong_count(&held) > 0));
        local.set_timer(millis(1), never(Rc::clone(&token))).unwrap();
        local.defer(never(Rc::clone(&token))).unwrap();
        let done = never(Rc::clone(&token));
        local.offload(|| (), move |()| done()).unwrap();
        let held = OneThread(Rc::clone(&token));
        local.reactor().send(move || drop(held)).unwrap();
        // What owns a handle to the reactor must not keep it alive for ever.
        let own = local.clone();
        local.set_timer(millis(1), move || drop(own)).unwrap();
    });
    assert!(Rc::strong_count(&token) >= 6);
    drop(sim);
    assert_eq!(Rc::strong_count(&token), 1);
    assert_eq!(reactor.send(|| {}), Err(SendError::Stopped));
}

#[test]
fn a_descriptor_unregistered_by_an_earlier_callback_of_its_batch_is_not_called() {
    let mut sim = Simulation::new(1, 1);
    let reactor = sim.data(0);
    let pipes: Vec<_> = (0..2).map(|_| rustix::pipe::pipe().unwrap()).collect();
    let (third, _writer) = rustix::pipe::pipe().unwrap();
    let calls = Seen::default();
    sim.on(&reactor, |local| {
        let ids: Rc<RefCell<Vec<FdId>>> = Rc::default();
        for n in 0..2 {
            let (ids_of_both, log, spare) = (Rc::clone(&ids), calls.clone(), third.as_raw_fd());
            let ready = move |events: Events| {
                assert!(events.is_readable());
                log.push(n);
                // Whichever comes first removes both, and takes the other's slot.
                for id in ids_of_both.borrow_mut().drain(..) {
                    assert!(current().unregister_fd(id));
                    assert!(!current().unregister_fd(id));
                }
                let intruder = |_| panic!("called for an event of the slot's last owner");
                current().register_fd(spare, Interest::READ, intruder).unwrap();
            };
            let id = local.register_fd(pipes[n as usize].0.as_raw_fd(), Interest::READ, ready).unwrap();
            ids.borrow_mut().push(id);
        }
    });
    for (_, writer) in &pipes {
        rustix::io::write(writer, b"x").unwrap();
    }
    assert!(sim.run_until_idle(LIMIT));
    assert_eq!(calls.take().len(), 1);
    assert_eq!(reactor.statistics().fds, 1);
}

#[test]
fn a_descriptor_that_cannot_be_watched_is_an_error_that_names_it() {
    let mut sim = Simulation::new(1, 1);
    let reactor = sim.data(0);
    let error = sim.on(&reactor, |local| local.register_fd(-1, Interest::READ, |_| {}).unwrap_err());
    assert_eq!(error.to_string(), "descriptor -1 cannot be watched");
    assert_eq!(reactor.statistics().fds, 0);
}

#[test]
fn interest_can_be_changed_while_watching() {
    let mut sim = Simulation::new(1, 1);
    let reactor = sim.data(0);
    let (_reader, writer) = rustix::pipe::pipe().unwrap();
    let seen = Seen::default();
    let log = seen.clone();
    let id = sim.on(&reactor, |local| {
        let ready = move |events: Events| log.push(u32::from(events.is_writable()));
        local.register_fd(writer.as_raw_fd(), Interest::NONE, ready).unwrap()
    });
    assert!(sim.run_until_idle(LIMIT));
    assert_eq!(seen.take(), []);
    let writable_once = Interest::WRITE.edge_triggered();
    sim.on(&reactor, |local| assert!(local.modify_fd(id, writable_once).unwrap()));
    assert!(sim.run_until_idle(LIMIT));
    assert_eq!(seen.take(), [1]);
    sim.on(&reactor, |local| {
        assert!(local.unregister_fd(id));
        assert!(!local.modify_fd(id, Interest::WRITE).unwrap());
    });
}

unsafe extern "C" fn count_up(arg: *mut c_void) {
    // SAFETY: the tests below pass a `Cell<i32>` that outlives the simulation.
    let count = unsafe { &*arg.cast::<Cell<i32>>() };
    count.set(count.get() + 1);
}

unsafe extern "C" fn poll_five_times(arg: *mut c_void) -> i32 {
    // SAFETY: as above.
    unsafe { count_up(arg) };
    // SAFETY: as above.
    i32::from(unsafe { &*arg.cast::<Cell<i32>>() }.get() < 5)
}

unsafe extern "C" fn note_events(arg: *mut c_void, revents: u32) {
    // SAFETY: as above.
    unsafe { &*arg.cast::<Cell<i32>>() }.set(revents as i32);
}

#[test]
fn c_functions_are_called_as_closures_are() {
    let count = Cell::new(0);
    let arg = || std::ptr::from_ref(&count).cast_mut().cast::<c_void>();
    let mut sim = Simulation::new(1, 1);
    let reactor = sim.data(0);
    // SAFETY: `count` outlives `sim`, here and below.
    unsafe { reactor.send_raw(count_up, arg()).unwrap() };
    assert!(sim.run_until_idle(LIMIT));
    assert_eq!(count.replace(0), 1);
    sim.on(&reactor, |local| {
        let deadline = local.now_ns() + 1000;
        // SAFETY: as above.
        unsafe { local.set_timer_raw(deadline, count_up, arg()).unwrap() };
    });
    assert!(sim.advance(Duration::from_nanos(1000)));
    assert_eq!(count.replace(0), 1);
    // SAFETY: as above.
    sim.on(&reactor, |local| unsafe { local.offload_raw(count_up, arg(), count_up).unwrap() });
    assert!(sim.run_until_idle(LIMIT));
    assert_eq!(count.replace(0), 2);
    let poller = sim.on(&reactor, |local| {
        // SAFETY: as above.
        unsafe { local.register_poller_raw("raw", 0, PollerKind::Wakeable, poll_five_times, arg()).unwrap() }
    });
    assert!(sim.run_until_idle(LIMIT));
    assert!(count.replace(0) >= 5);
    sim.on(&reactor, |local| {
        // SAFETY: as above.
        assert!(unsafe { local.set_before_sleep_raw(poller, poll_five_times, arg()) });
        assert!(local.unregister_poller(poller));
    });
    let (reader, writer) = rustix::pipe::pipe().unwrap();
    let id = sim.on(&reactor, |local| {
        // SAFETY: as above.
        unsafe { local.register_fd_raw(reader.as_raw_fd(), Interest::READ, note_events, arg()).unwrap() }
    });
    drop(writer);
    assert_ne!(sim.step(), Step::Idle);
    for _ in 0..100 {
        sim.step();
    }
    assert!(Events::from_bits(count.get() as u32).is_hang_up());
    sim.on(&reactor, |local| assert!(local.unregister_fd(id)));
}

#[test]
fn a_stall_lets_a_timeout_overtake_what_it_times() {
    let mut overtaken = 0;
    for seed in 0..200 {
        let mut sim = Simulation::new(seed, 2);
        sim.set_stall_permille(300);
        let seen = Seen::default();
        let (a, b) = (sim.data(0), sim.data(1));
        let timeout = seen.clone();
        sim.on(&a, |local| local.set_timer(millis(1), move || timeout.push(2)).unwrap());
        let (asker, answer) = (a.clone(), pushing(&seen, 1));
        b.send(move || asker.send(answer).unwrap()).unwrap();
        assert!(sim.advance(millis(5)));
        let order = seen.take();
        assert_eq!(order.len(), 2);
        overtaken += usize::from(order == [2, 1]);
    }
    assert!((1..200).contains(&overtaken), "{overtaken} of 200");
}

#[test]
fn a_poller_that_watches_the_clock_itself_is_served_by_the_quantum() {
    let mut sim = Simulation::new(1, 1);
    sim.set_quantum(Duration::from_micros(10));
    let reactor = sim.data(0);
    let done_at = Rc::new(Cell::new(0));
    let done = Rc::clone(&done_at);
    let deadline = sim.now_ns() + 105_000;
    sim.on(&reactor, |local| {
        let poll = move || {
            if ticks() >= deadline && done.get() == 0 {
                done.set(ticks());
                return Poll::Busy;
            }
            Poll::Idle
        };
        local.register_poller("delay", 0, PollerKind::Pure, poll).unwrap();
    });
    assert!(sim.advance(millis(1)));
    assert_eq!(done_at.get(), deadline + 5_000);
}

#[test]
fn run_until_stops_when_the_condition_holds() {
    let mut sim = Simulation::new(1, 1);
    let reactor = sim.data(0);
    let fired = Rc::new(Cell::new(false));
    let flag = Rc::clone(&fired);
    let start = sim.now_ns();
    sim.on(&reactor, |local| local.set_timer(millis(3), move || flag.set(true)).unwrap());
    assert!(!sim.run_until(millis(2), || fired.get()));
    assert_eq!(sim.now_ns(), start + 2_000_000);
    assert!(sim.run_until(millis(20), || fired.get()));
    assert_eq!(sim.now_ns(), start + 3_000_000);
}

#[test]
fn a_poller_that_is_always_busy_is_never_idle() {
    let mut sim = Simulation::new(1, 1);
    let reactor = sim.data(0);
    let id =
        sim.on(&reactor, |local| local.register_poller("busy", 0, PollerKind::Pure, || Poll::Busy).unwrap());
    assert!(!sim.run_until_idle(1000));
    sim.on(&reactor, |local| assert!(local.unregister_poller(id)));
    assert!(sim.run_until_idle(1000));
}
