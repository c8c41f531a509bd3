//! Offload: work that blocks, away from the reactors.
//!
//! A few threads, started when there is work for them, take jobs in order from a
//! bounded queue. The answer goes back to the reactor that asked, as a message.
//! In a simulation there are no threads: the simulation runs a job at a step of
//! its choice. Not for the I/O path: it locks and it allocates.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use rustix::thread::{CpuSet, sched_setaffinity};

use crate::callback::{Callback, MessageFn};
use crate::directory::{ReactorRef, SendError};

/// How many jobs may wait for a worker; the next one is refused.
pub const MAX_OFFLOAD_QUEUE: usize = 1024;

/// Why a job was not taken. Neither of its closures has run.
#[derive(Debug, thiserror::Error)]
pub enum OffloadError {
    /// As many jobs wait as may.
    #[error("offload queue is full capacity={MAX_OFFLOAD_QUEUE}")]
    QueueFull,
    /// The workers have been told to stop.
    #[error("offload workers have stopped")]
    Stopped,
    /// There is no worker and none could be started.
    #[error("no offload worker could be started")]
    Spawn(#[source] std::io::Error),
}

/// A piece of work, what follows it, and where that runs.
pub(crate) struct Job {
    pub work: Callback<MessageFn>,
    pub done: Callback<MessageFn>,
    pub reply_to: ReactorRef,
}

/// Where a reactor's jobs go.
#[derive(Clone)]
pub(crate) enum OffloadPool {
    Threads(Arc<Workers>),
    Simulated(Rc<RefCell<VecDeque<Job>>>),
}

impl OffloadPool {
    pub(crate) fn submit(&self, job: Job) -> Result<(), OffloadError> {
        match self {
            Self::Threads(workers) => workers.submit(job),
            Self::Simulated(jobs) => {
                let mut jobs = jobs.borrow_mut();
                if jobs.len() >= MAX_OFFLOAD_QUEUE {
                    return Err(OffloadError::QueueFull);
                }
                jobs.push_back(job);
                Ok(())
            }
        }
    }
}

/// The worker threads of a process.
pub(crate) struct Workers {
    state: Mutex<State>,
    has_work: Condvar,
    max_threads: usize,
    /// The cores the process may use: a worker must not inherit a reactor's pinning.
    affinity: Option<CpuSet>,
}

struct State {
    jobs: VecDeque<Job>,
    threads: Vec<JoinHandle<()>>,
    idle: usize,
    is_stopping: bool,
}

impl Workers {
    pub(crate) fn new(max_threads: usize, affinity: Option<CpuSet>) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new(State {
                jobs: VecDeque::new(),
                threads: Vec::new(),
                idle: 0,
                is_stopping: false,
            }),
            has_work: Condvar::new(),
            max_threads: max_threads.max(1),
            affinity,
        })
    }

    fn submit(self: &Arc<Self>, job: Job) -> Result<(), OffloadError> {
        let mut state = self.state.lock();
        if state.is_stopping {
            return Err(OffloadError::Stopped);
        }
        if state.jobs.len() >= MAX_OFFLOAD_QUEUE {
            return Err(OffloadError::QueueFull);
        }
        if state.idle <= state.jobs.len() && state.threads.len() < self.max_threads {
            let workers = Arc::clone(self);
            let name = format!("tenon-w{}", state.threads.len());
            match std::thread::Builder::new().name(name).spawn(move || workers.run()) {
                Ok(thread) => state.threads.push(thread),
                Err(error) if state.threads.is_empty() => return Err(OffloadError::Spawn(error)),
                Err(error) => log::warn!("offload worker not started error={error}"),
            }
        }
        state.jobs.push_back(job);
        drop(state);
        self.has_work.notify_one();
        Ok(())
    }

    fn run(&self) {
        if let Some(affinity) = &self.affinity
            && let Err(error) = sched_setaffinity(None, affinity)
        {
            log::warn!("offload worker keeps its creator's core error={error}");
        }
        while let Some(job) = self.next_job() {
            job.work.call();
            deliver(&job.reply_to, job.done);
        }
    }

    fn next_job(&self) -> Option<Job> {
        let mut state = self.state.lock();
        loop {
            if let Some(job) = state.jobs.pop_front() {
                return Some(job);
            }
            if state.is_stopping {
                return None;
            }
            state.idle += 1;
            self.has_work.wait(&mut state);
            state.idle -= 1;
        }
    }

    /// Drops waiting jobs and waits for running ones; false if some still ran at `deadline`.
    pub(crate) fn stop(&self, deadline: Instant) -> bool {
        let (jobs, threads) = {
            let mut state = self.state.lock();
            state.is_stopping = true;
            (std::mem::take(&mut state.jobs), std::mem::take(&mut state.threads))
        };
        drop(jobs);
        self.has_work.notify_all();
        let mut all_ended = true;
        for thread in threads {
            while !thread.is_finished() && Instant::now() < deadline {
                std::thread::sleep(JOIN_INTERVAL);
            }
            if thread.is_finished() {
                // A worker does not unwind: a panicking job aborts the process.
                let _ = thread.join();
            } else {
                all_ended = false;
            }
        }
        all_ended
    }
}

/// Sends the answer. The asker's queue may be full; a worker can wait, and must, as the asker
/// counts on an answer. The wait ends when there is room or when the asker has stopped.
fn deliver(reply_to: &ReactorRef, done: Callback<MessageFn>) {
    let mut message = done;
    loop {
        match reply_to.send_message(message) {
            Ok(()) | Err((SendError::Stopped, _)) => return,
            Err((SendError::QueueFull, refused)) => message = refused,
        }
        std::thread::sleep(FULL_QUEUE_INTERVAL);
    }
}

const JOIN_INTERVAL: Duration = Duration::from_millis(1);
const FULL_QUEUE_INTERVAL: Duration = Duration::from_micros(100);
