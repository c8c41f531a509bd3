//! Work that may block or takes long, handed to the workers of the process.
//!
//! A bounded number is with the workers at a time, so that others' work is not
//! kept waiting by ours; the rest waits here, bounded by the commands that
//! queues may hold. Nothing is lost when the workers' own queue is full.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use crate::target::Target;

/// Work under way and work that waits.
#[derive(Default)]
pub(crate) struct Jobs {
    running: Cell<usize>,
    waiting: RefCell<VecDeque<Box<dyn FnOnce()>>>,
}

/// Taken by whoever runs it, wherever that is.
type Work<T> = Arc<Mutex<Option<Box<dyn FnOnce() -> T + Send>>>>;
type Done<T> = Rc<Cell<Option<Box<dyn FnOnce(T)>>>>;

impl Jobs {
    pub(crate) fn count(&self) -> usize {
        self.running.get() + self.waiting.borrow().len()
    }
}

impl Target {
    /// Runs `work` where it may block, and `done` with its result back here.
    pub(crate) fn offload<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
        done: impl FnOnce(T) + 'static,
    ) {
        let work: Work<T> = Arc::new(Mutex::new(Some(Box::new(work))));
        let done: Done<T> = Rc::new(Cell::new(Some(Box::new(done))));
        let target = self.clone();
        let start = move || target.start_job(work, done);
        let jobs = &self.inner.jobs;
        if jobs.running.get() >= MAX_RUNNING {
            return jobs.waiting.borrow_mut().push_back(Box::new(start));
        }
        jobs.running.set(jobs.running.get() + 1);
        start();
    }

    /// One of those that count as running begins.
    fn start_job<T: Send + 'static>(&self, work: Work<T>, done: Done<T>) {
        let (own_work, target, own_done) = (work.clone(), self.clone(), done.clone());
        let run = move || {
            let work = own_work.lock().take();
            work.map(|work| work())
        };
        let finish = move |result: Option<T>| {
            target.job_ended();
            if let (Some(done), Some(result)) = (own_done.take(), result) {
                done(result);
            }
        };
        let local = tenon_reactor::current();
        if local.offload(run, finish).is_ok() {
            return;
        }
        let target = self.clone();
        if local.set_timer(RETRY_AFTER, move || target.start_job(work, done)).is_err() {
            log::error!("work is given up: neither a worker nor a timer is left");
            self.job_ended();
        }
    }

    fn job_ended(&self) {
        let jobs = &self.inner.jobs;
        let next = jobs.waiting.borrow_mut().pop_front();
        match next {
            Some(start) => start(),
            None => jobs.running.set(jobs.running.get() - 1),
        }
    }
}

/// Most work with the workers at a time.
const MAX_RUNNING: usize = 64;
/// How long full workers are left alone.
const RETRY_AFTER: Duration = Duration::from_millis(5);
