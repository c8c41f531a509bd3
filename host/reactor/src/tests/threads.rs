//! What only threads and the kernel can show: sleeping, waking, pinning, ending.

use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use crate::*;

/// Far longer than anything here takes on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(20);

fn start(options: ReactorsOptions) -> Reactors {
    Reactors::start(options).unwrap()
}

fn two_reactors() -> Reactors {
    start(ReactorsOptions { cpus: Cpus::Count(2), ..ReactorsOptions::default() })
}

#[track_caller]
fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "waited {PATIENCE:?} for: {what}");
        std::thread::yield_now();
    }
}

/// How often the kernel has switched away from the thread because it waited.
fn voluntary_switches(reactor: &ReactorRef) -> u64 {
    let path = format!("/proc/self/task/{}/status", reactor.statistics().thread_id);
    let status = std::fs::read_to_string(path).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
    line.unwrap().trim().parse().unwrap()
}

/// Nanoseconds the thread has run on a core.
fn cpu_ns(reactor: &ReactorRef) -> u64 {
    let path = format!("/proc/self/task/{}/schedstat", reactor.statistics().thread_id);
    std::fs::read_to_string(path).unwrap().split_whitespace().next().unwrap().parse().unwrap()
}

#[test]
fn an_idle_reactor_sleeps_and_uses_no_processor() {
    let reactors = two_reactors();
    for reactor in reactors.directory().all() {
        wait_until("sleep", || reactor.statistics().is_sleeping);
    }
    let before: Vec<u64> = reactors.directory().all().iter().map(cpu_ns).collect();
    // The control reactor's timer measures 50 ms in which nothing else happens.
    let (sender, receiver) = mpsc::channel();
    let set = move || {
        let fire = move || sender.send(()).unwrap();
        current().set_timer(Duration::from_millis(50), fire).unwrap();
    };
    reactors.control().send(set).unwrap();
    receiver.recv_timeout(PATIENCE).unwrap();
    for (reactor, before) in reactors.directory().all().iter().zip(before) {
        let used_us = (cpu_ns(reactor) - before) / 1000;
        assert!(used_us < 10_000, "{} used {used_us} us of an idle 50 ms", reactor.name());
    }
    reactors.shutdown(PATIENCE).unwrap();
}

#[test]
fn a_sleeping_reactor_is_woken_by_message_timer_and_descriptor() {
    let reactors = two_reactors();
    let reactor = &reactors.data()[0];
    for round in 0..20 {
        wait_until("sleep", || reactor.statistics().is_sleeping);
        let switches = voluntary_switches(reactor);
        assert_eq!(reactor.call(PATIENCE, move || round).unwrap(), round);
        wait_until("sleep", || reactor.statistics().is_sleeping);
        wait_until("a switch", || voluntary_switches(reactor) > switches);
    }
    let (fired, firings) = mpsc::channel();
    let (reader, writer) = rustix::pipe::pipe().unwrap();
    let (readable, readings) = mpsc::channel();
    reactor
        .call(PATIENCE, move || {
            current().set_timer(Duration::from_millis(2), move || fired.send(()).unwrap()).unwrap();
            let fd = reader.as_raw_fd();
            let ready = move |events: Events| {
                assert!(events.is_readable());
                let mut byte = [0u8; 8];
                let count = rustix::io::read(&reader, &mut byte).unwrap();
                readable.send(count).unwrap();
            };
            current().register_fd(fd, Interest::READ, ready).unwrap();
        })
        .unwrap();
    firings.recv_timeout(PATIENCE).unwrap();
    wait_until("sleep", || reactor.statistics().is_sleeping);
    rustix::io::write(&writer, b"abc").unwrap();
    assert_eq!(readings.recv_timeout(PATIENCE).unwrap(), 3);
    reactors.shutdown(PATIENCE).unwrap();
}

#[test]
fn a_timer_is_not_early_and_keeps_its_precision_asleep() {
    let reactors = two_reactors();
    let reactor = &reactors.data()[0];
    let mut late = Vec::new();
    for _ in 0..20 {
        let (sender, receiver) = mpsc::channel();
        reactor
            .send(move || {
                let deadline = current().now_ns() + 300_000;
                let fire = move || sender.send(now_ns() as i64 - deadline as i64).unwrap();
                current().set_timer_at(deadline, fire).unwrap();
            })
            .unwrap();
        late.push(receiver.recv_timeout(PATIENCE).unwrap());
    }
    late.sort_unstable();
    assert!(late[0] >= 0, "early: {late:?}");
    // The best of twenty shows that the kernel was asked precisely; a load may spoil the others.
    assert!(late[0] < 500_000, "late: {late:?} ns");
    reactors.shutdown(PATIENCE).unwrap();
}

#[test]
fn no_message_is_lost_between_falling_asleep_and_waking() {
    let reactors = two_reactors();
    let reactor = reactors.data()[0].clone();
    reactor.call(PATIENCE, || current().set_mode(Mode::Sleep)).unwrap();
    let received = Arc::new(AtomicU64::new(0));
    std::thread::scope(|scope| {
        for sender in 0..3u64 {
            let (reactor, received) = (reactor.clone(), Arc::clone(&received));
            scope.spawn(move || {
                for n in 0..3000u64 {
                    let received = Arc::clone(&received);
                    reactor
                        .send(move || {
                            received.fetch_add(1, Ordering::Relaxed);
                        })
                        .unwrap();
                    // Gaps of all lengths around the time that falling asleep takes.
                    for _ in 0..(n * (sender + 1)) % 500 {
                        std::hint::spin_loop();
                    }
                }
            });
        }
    });
    wait_until("all messages", || received.load(Ordering::Relaxed) == 9000);
    assert!(reactor.statistics().sleeps > 0);
    reactors.shutdown(PATIENCE).unwrap();
}

#[test]
fn a_polling_reactor_never_sleeps() {
    let options = ReactorsOptions { mode: Mode::Poll, ..ReactorsOptions::default() };
    let reactors = start(options);
    let reactor = &reactors.data()[0];
    let turns = reactor.statistics().turns;
    wait_until("turns", || reactor.statistics().turns > turns + 100_000);
    assert_eq!(reactor.statistics().sleeps, 0);
    assert!(reactors.control().statistics().turns < 1000, "the control reactor does not spin");
    reactors.shutdown(PATIENCE).unwrap();
}

#[test]
fn a_pure_poller_keeps_a_reactor_awake_until_it_is_paused() {
    let reactors = two_reactors();
    let reactor = &reactors.data()[0];
    let calls = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&calls);
    let id = reactor
        .call(PATIENCE, move || {
            let poll = move || {
                count.fetch_add(1, Ordering::Relaxed);
                Poll::Idle
            };
            current().register_poller("pure", 0, PollerKind::Pure, poll).unwrap()
        })
        .unwrap();
    let sleeps = reactor.statistics().sleeps;
    wait_until("calls", || calls.load(Ordering::Relaxed) > 100_000);
    assert_eq!(reactor.statistics().sleeps, sleeps);
    assert!(reactor.call(PATIENCE, move || current().pause_poller(id)).unwrap());
    wait_until("sleep", || reactor.statistics().is_sleeping);
    reactors.shutdown(PATIENCE).unwrap();
}

#[test]
fn data_reactors_are_pinned_and_workers_are_not() {
    let reactors = two_reactors();
    let cores = || {
        let set = rustix::thread::sched_getaffinity(None).unwrap();
        (0..rustix::thread::CpuSet::MAX_CPU).filter(|&cpu| set.is_set(cpu)).collect::<Vec<_>>()
    };
    let process = cores();
    if process.len() < 2 {
        return; // Two reactors are not pinned to one core.
    }
    for (n, reactor) in reactors.data().iter().enumerate() {
        let pinned = reactor.call(PATIENCE, cores).unwrap();
        assert_eq!(pinned, [reactor.cpu().unwrap() as usize]);
        assert_eq!(pinned, [process[n]]);
        let name = reactor.call(PATIENCE, || std::thread::current().name().map(str::to_owned)).unwrap();
        assert_eq!(name, Some(format!("tenon-r{n}")));
    }
    assert_eq!(reactors.control().call(PATIENCE, cores).unwrap(), process);
    let (sender, receiver) = mpsc::channel();
    reactors.data()[1]
        .send(move || {
            let done = move |cores| sender.send((cores, current().name().to_owned())).unwrap();
            current().offload(cores, done).unwrap();
        })
        .unwrap();
    let (worker, answered_on) = receiver.recv_timeout(PATIENCE).unwrap();
    assert_eq!(worker, process);
    assert_eq!(answered_on, "reactor_1");
    reactors.shutdown(PATIENCE).unwrap();
}

#[test]
fn workers_work_side_by_side_while_the_reactor_turns() {
    let reactors = two_reactors();
    let reactor = &reactors.data()[0];
    let gate = Arc::new(std::sync::Barrier::new(3));
    let (sender, receiver) = mpsc::channel();
    let both = Arc::clone(&gate);
    reactor
        .send(move || {
            for n in 0..2 {
                let (gate, sender) = (Arc::clone(&both), sender.clone());
                let work = move || {
                    gate.wait();
                    n
                };
                current().offload(work, move |n| sender.send(n).unwrap()).unwrap();
            }
        })
        .unwrap();
    reactor.call(PATIENCE, || ()).unwrap();
    gate.wait();
    let mut answers = [0, 0].map(|_| receiver.recv_timeout(PATIENCE).unwrap());
    answers.sort_unstable();
    assert_eq!(answers, [0, 1]);
    reactors.shutdown(PATIENCE).unwrap();
}

#[test]
fn shutdown_runs_what_was_sent_and_releases_what_is_registered() {
    let reactors = two_reactors();
    let reactor = reactors.data()[0].clone();
    let token = Arc::new(());
    let ran = Arc::new(AtomicBool::new(false));
    let (held, flag) = (Arc::clone(&token), Arc::clone(&ran));
    reactor
        .call(PATIENCE, move || {
            let poller = Arc::clone(&held);
            let poll = move || if Arc::strong_count(&poller) > 0 { Poll::Idle } else { Poll::Busy };
            current().register_poller("left", 0, PollerKind::Wakeable, poll).unwrap();
            current().set_timer(Duration::from_secs(3600), move || drop(held)).unwrap();
        })
        .unwrap();
    reactor.send(move || flag.store(true, Ordering::Relaxed)).unwrap();
    reactors.shutdown(PATIENCE).unwrap();
    assert!(ran.load(Ordering::Relaxed));
    assert_eq!(Arc::strong_count(&token), 1);
    assert_eq!(reactor.send(|| {}), Err(SendError::Stopped));
    assert_eq!(reactor.call(PATIENCE, || ()), Err(CallError::Send(SendError::Stopped)));
}

#[test]
fn shutdown_names_the_reactor_that_does_not_end() {
    let reactors = two_reactors();
    let (release, released) = mpsc::channel::<()>();
    reactors.data()[1]
        .send(move || {
            // Ends when the test drops its end.
            let _ = released.recv();
        })
        .unwrap();
    let error = reactors.shutdown(Duration::from_millis(100)).unwrap_err();
    assert_eq!(error.threads, ["reactor_1"]);
    assert_eq!(error.to_string(), "still running after the deadline: reactor_1");
    drop(release);
}

#[test]
fn a_call_that_is_not_answered_in_time_is_an_error() {
    let reactors = two_reactors();
    let (release, released) = mpsc::channel::<()>();
    let reactor = &reactors.data()[0];
    reactor
        .send(move || {
            let _ = released.recv();
        })
        .unwrap();
    let short = Duration::from_millis(10);
    assert_eq!(reactor.call(short, || ()), Err(CallError::TimedOut(short)));
    drop(release);
    reactors.shutdown(PATIENCE).unwrap();
}

#[test]
fn an_unknown_core_is_a_warning_and_the_reactor_runs() {
    let options = ReactorsOptions { cpus: Cpus::List(vec![100_000]), ..ReactorsOptions::default() };
    let reactors = start(options);
    assert_eq!(reactors.data()[0].call(PATIENCE, || 1).unwrap(), 1);
    assert_eq!(reactors.data()[0].cpu(), None);
    reactors.shutdown(PATIENCE).unwrap();
}

/// Prints errors where the parent of the test below can read them.
struct ErrorsToStderr;

impl log::Log for ErrorsToStderr {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        eprintln!("{} {}", record.level(), record.args());
    }

    fn flush(&self) {}
}

/// Runs `body` in a process of its own, a copy of this test, with errors and warnings printed.
/// Returns how it ended and what it printed; `None` in the copy itself.
fn in_child(test: &str, body: impl FnOnce()) -> Option<(std::process::ExitStatus, String)> {
    const CHILD: &str = "TENON_REACTOR_TEST_CHILD";
    if std::env::var_os(CHILD).is_some() {
        log::set_logger(&ErrorsToStderr).unwrap();
        log::set_max_level(log::LevelFilter::Warn);
        body();
        return None;
    }
    let child = std::process::Command::new(std::env::current_exe().unwrap())
        .args([&format!("tests::threads::{test}"), "--exact", "--nocapture"])
        .env(CHILD, "1")
        .output()
        .unwrap();
    Some((child.status, String::from_utf8_lossy(&child.stderr).into_owned()))
}

#[test]
fn a_panicking_closure_aborts_the_process_and_names_the_reactor() {
    use std::os::unix::process::ExitStatusExt;
    let test = "a_panicking_closure_aborts_the_process_and_names_the_reactor";
    let child = in_child(test, || {
        let reactors = two_reactors();
        reactors.data()[1].send(|| panic!("boom")).unwrap();
        let _ = reactors.data()[1].call(PATIENCE, || ());
        unreachable!("the process has aborted");
    });
    let Some((status, stderr)) = child else { return };
    assert_eq!(status.signal(), Some(libc::SIGABRT), "{stderr}");
    let named = "ERROR callback panicked, aborting reactor=reactor_1 panic=\"boom\"";
    assert!(stderr.contains(named), "{stderr}");
}

#[test]
fn a_turn_that_does_not_end_is_reported_while_it_lasts_and_once_it_has_ended() {
    let test = "a_turn_that_does_not_end_is_reported_while_it_lasts_and_once_it_has_ended";
    let child = in_child(test, || {
        let threshold = Duration::from_millis(25);
        let reactors = start(ReactorsOptions { watchdog_threshold: threshold, ..ReactorsOptions::default() });
        let reactor = &reactors.data()[0];
        let (release, released) = mpsc::channel::<()>();
        reactor
            .send(move || {
                let _ = released.recv();
            })
            .unwrap();
        // The watchdog needs up to three looks; a timer of the other reactor gives it twenty.
        let (elapsed, looked) = mpsc::channel();
        let set = move || {
            let fire = move || elapsed.send(()).unwrap();
            current().set_timer(20 * threshold, fire).unwrap();
        };
        reactors.control().send(set).unwrap();
        looked.recv_timeout(PATIENCE).unwrap();
        drop(release);
        reactor.call(PATIENCE, || ()).unwrap();
        wait_until("the account", || reactor.statistics().long_turns > 0);
        reactors.shutdown(PATIENCE).unwrap();
    });
    let Some((status, stderr)) = child else { return };
    assert!(status.success(), "{stderr}");
    let during = stderr.find("WARN reactor turn does not end reactor=reactor_0 lasting_ms=");
    let after = stderr.find("WARN reactor turn was long reactor=reactor_0 turn_us=");
    assert!(during.is_some() && during < after, "{stderr}");
    let control = stderr.contains("turn does not end reactor=control");
    assert!(!control, "a sleeping reactor is not stuck: {stderr}");
}
