//! What the reactors know, gathered for reports: queues, their reactors'
//! counters, what hosts did with each namespace.
//!
//! Asked of every data reactor by one message; nothing of it costs a command
//! anything. What the control reactor knows itself is in snapshots of its objects.
// UNSAFETY: calls the transport's statistics with a sink, as the contract has it.

use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::Arc;

use serde_json::Value;
use tenon_abi::{JsonSink, Str};

use crate::auth::AuthenticationSnapshot;
use crate::config::Address;
use crate::error::TargetError;
use crate::queue::interface::{IoCounts, QueueKey};
use crate::queue::side::ReactorSide;
use crate::queue::{Phase, QueuePair};
use crate::target::Target;
use crate::transport::TransportShared;

/// A queue of a controller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueSnapshot {
    /// Its controller.
    pub cntlid: u16,
    /// Its number; 0: the admin queue.
    pub qid: u16,
    /// Its reactor.
    pub reactor: String,
    /// Its host.
    pub hostnqn: String,
    /// Where its host is, as the transport writes it.
    pub peer: String,
    /// The address its host came to.
    pub listen_address: Option<Address>,
    /// Whether commands are taken.
    pub is_live: bool,
    /// Whether the channel is secured.
    pub is_secure: bool,
    /// How it has authenticated; absent: it never had to.
    pub authentication: Option<AuthenticationSnapshot>,
    /// Commands in flight.
    pub outstanding: u32,
    /// Commands that came.
    pub commands: u64,
}

/// What the target does on one data reactor.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ReactorReport {
    /// The reactor.
    pub name: String,
    /// Admin queues since the start.
    pub admin_queues: u64,
    /// I/O queues since the start.
    pub io_queues: u64,
    /// Admin queues now.
    pub current_admin_queues: u64,
    /// I/O queues now.
    pub current_io_queues: u64,
    /// Commands with devices.
    pub pending_device_commands: u64,
    /// I/O commands served since the start.
    pub completed_commands: u64,
    /// By transport: what its poll group tells.
    pub transports: Vec<(String, Value)>,
}

/// What hosts did with a namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamespaceReport {
    /// Its subsystem.
    pub nqn: String,
    /// Its number.
    pub nsid: u32,
    /// Its device.
    pub bdev_name: String,
    /// What was done.
    pub counts: IoCounts,
}

/// What a reactor tells of a queue.
struct QueueFacts {
    number: u64,
    peer: String,
    listener: u64,
    is_live: bool,
    is_secure: bool,
    outstanding: u32,
    commands: u64,
}

impl Target {
    /// The queues of a subsystem, by controller and number.
    pub fn queues(&self, nqn: &str, done: impl FnOnce(Result<Vec<QueueSnapshot>, TargetError>) + 'static) {
        let subsystem = match self.subsystem(nqn) {
            Ok(subsystem) => subsystem,
            Err(error) => return self.later(move || done(Err(error))),
        };
        let mut queues = Vec::new();
        for controller in subsystem.controllers.borrow().values() {
            for (qid, key) in controller.numbered_queues() {
                queues.push((controller.cntlid(), qid, key, controller.association.hostnqn.to_string()));
            }
        }
        let keys: Vec<_> = queues.iter().map(|(_, _, key, _)| *key).collect();
        let target = self.clone();
        self.ask(
            move |side| {
                let own = keys.iter().filter(|key| key.reactor == side.id);
                let facts = own.filter_map(|key| side.with_queue(key.number, facts_of));
                (side.id, facts.collect::<Vec<QueueFacts>>())
            },
            move |sides| {
                let mut found: HashMap<_, QueueFacts> = HashMap::new();
                for (reactor, facts) in sides {
                    found.extend(facts.into_iter().map(|facts| ((reactor, facts.number), facts)));
                }
                let list = queues.into_iter().filter_map(|(cntlid, qid, key, hostnqn)| {
                    let facts = found.remove(&(key.reactor, key.number))?;
                    Some(target.queue_snapshot(cntlid, qid, key.reactor, hostnqn, facts))
                });
                done(Ok(list.collect()));
            },
        );
    }

    fn queue_snapshot(
        &self,
        cntlid: u16,
        qid: u16,
        reactor: tenon_reactor::ReactorId,
        hostnqn: String,
        facts: QueueFacts,
    ) -> QueueSnapshot {
        let authentication = self.authentication_snapshot(QueueKey { reactor, number: facts.number });
        let reactor = self.inner.directory.get(reactor).map(|reactor| reactor.name().to_owned());
        let listeners = self.inner.listeners.borrow();
        QueueSnapshot {
            cntlid,
            qid,
            reactor: reactor.unwrap_or_default(),
            hostnqn,
            peer: facts.peer,
            listen_address: listeners.get(&facts.listener).map(|listener| listener.address.clone()),
            is_live: facts.is_live,
            is_secure: facts.is_secure,
            authentication,
            outstanding: facts.outstanding,
            commands: facts.commands,
        }
    }

    /// What each data reactor does for the target.
    pub fn reactor_reports(&self, done: impl FnOnce(Vec<ReactorReport>) + 'static) {
        let transports: Vec<Arc<TransportShared>> =
            self.inner.transports.borrow().values().map(|instance| instance.shared.clone()).collect();
        self.ask(move |side| report_of(side, &transports), done);
    }

    /// What hosts did with every namespace there is.
    pub fn namespace_reports(&self, done: impl FnOnce(Vec<NamespaceReport>) + 'static) {
        let mut wanted = Vec::new();
        for subsystem in self.inner.subsystems.borrow().values() {
            for namespace in subsystem.namespaces.borrow().values() {
                let (nqn, bdev_name) = (subsystem.nqn.clone(), namespace.bdev_name.clone());
                wanted.push((
                    subsystem.id,
                    NamespaceReport { nqn, nsid: namespace.nsid, bdev_name, counts: IoCounts::default() },
                ));
            }
        }
        let keys: Vec<(u64, u32)> = wanted.iter().map(|(id, report)| (*id, report.nsid)).collect();
        self.ask(
            move |side| {
                let counts = |(id, nsid): &(u64, u32)| {
                    let namespace = side.subsystem(*id).and_then(|view| view.namespace(*nsid));
                    namespace.map(|namespace| *namespace.counts.borrow()).unwrap_or_default()
                };
                keys.iter().map(counts).collect::<Vec<IoCounts>>()
            },
            move |sides| {
                let mut reports: Vec<NamespaceReport> = wanted.into_iter().map(|(_, one)| one).collect();
                for counts in sides {
                    reports.iter_mut().zip(&counts).for_each(|(report, counts)| report.counts.add(counts));
                }
                done(reports);
            },
        );
    }
}

fn facts_of(queue: &QueuePair) -> QueueFacts {
    QueueFacts {
        number: queue.key.number,
        peer: queue.facts.peer.clone(),
        listener: queue.facts.listener,
        is_live: queue.phase.get() == Phase::Live,
        is_secure: queue.facts.is_secure,
        outstanding: queue.outstanding(),
        commands: queue.commands.get(),
    }
}

fn report_of(side: &ReactorSide, transports: &[Arc<TransportShared>]) -> ReactorReport {
    let (admin_queues, io_queues) = side.opened.get();
    let (pending, completed) = side.work();
    let mut report = ReactorReport {
        name: tenon_reactor::current().name().to_owned(),
        admin_queues,
        io_queues,
        pending_device_commands: pending,
        completed_commands: completed,
        ..ReactorReport::default()
    };
    for number in side.queue_numbers() {
        match side.with_queue(number, |queue| queue.opened.get().map(|open| open.qid)).flatten() {
            Some(0) => report.current_admin_queues += 1,
            Some(_) => report.current_io_queues += 1,
            None => {}
        }
    }
    for transport in transports {
        let Some(group) = side.group(transport.number) else { continue };
        let mut text = String::new();
        let sink = JsonSink { write: append, arg: (&raw mut text).cast() };
        // SAFETY: the group is this reactor's; the sink and its text live until the call returns.
        unsafe { (transport.ops().statistics_json)(group, &sink) };
        let value = serde_json::from_str(&text).unwrap_or(Value::Null);
        report.transports.push((transport.name.clone(), value));
    }
    report
}

/// Appends to the `String` behind `arg`.
///
/// # Safety
/// `arg` points to a string nobody else uses, and the text is readable during the call.
pub(crate) unsafe extern "C" fn append(arg: *mut c_void, text: Str) {
    // SAFETY: as the caller promises.
    unsafe {
        if let Some(text) = text.as_str() {
            (*arg.cast::<String>()).push_str(text);
        }
    }
}
