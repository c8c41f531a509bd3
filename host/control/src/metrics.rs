//! The Prometheus endpoint: one HTTP resource, `GET /metrics`, in the text
//! format, on its own small listener. Off unless the configuration names an
//! address.
//!
//! The text is made on the control reactor from counters that reactors publish;
//! a scrape does not disturb the data path. A client gets a bounded time and
//! size to ask, one answer, and the connection closes.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt::Write as _;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::rc::Rc;
use std::time::Duration;

use log::{info, warn};
use tenon_abi::{MetricKind, Op};
use tenon_bdev::ResetMode;
use tenon_nvmf_target::{NamespaceReport, ReactorReport};
use tenon_reactor::{FdId, Interest, TimerId, current, ticks_hz};
use thiserror::Error;

use crate::context::Control;
use crate::doorway;

/// Most scrapes at a time.
const MAX_CLIENTS: usize = 16;
/// Longest request head, in bytes.
const MAX_REQUEST_BYTES: usize = 8 << 10;
/// Time a client has to ask and to take the answer.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(10);

/// Why there is no endpoint.
#[derive(Debug, Error)]
pub enum MetricsError {
    /// The address is none.
    #[error("metrics listen address `{0}`: must be ADDRESS:PORT, e.g. 127.0.0.1:9464")]
    BadAddress(String),
    /// The system refuses.
    #[error("metrics listen address {address}: cannot listen")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system says.
        source: std::io::Error,
    },
}

/// The endpoint; dropping it closes it.
pub struct Endpoint {
    state: Rc<RefCell<State>>,
    fd: FdId,
}

struct State {
    control: Control,
    listener: TcpListener,
    listener_fd: Option<FdId>,
    clients: HashMap<u64, Client>,
    next_client: u64,
}

struct Client {
    stream: TcpStream,
    fd: FdId,
    timer: Option<TimerId>,
    request: Vec<u8>,
    answer: Option<Vec<u8>>,
    sent: usize,
}

impl Endpoint {
    /// Listens on `address`.
    ///
    /// # Errors
    /// The address is malformed or taken.
    pub fn open(address: &str, control: Control) -> Result<Endpoint, MetricsError> {
        let address: SocketAddr =
            address.parse().map_err(|_| MetricsError::BadAddress(address.to_owned()))?;
        let refused = |source| MetricsError::Listen { address, source };
        let listener = TcpListener::bind(address).map_err(refused)?;
        listener.set_nonblocking(true).map_err(refused)?;
        info!("metrics endpoint listening address={address}");
        let raw = listener.as_raw_fd();
        let clients = HashMap::new();
        let state =
            Rc::new(RefCell::new(State { control, listener, listener_fd: None, clients, next_client: 1 }));
        let weak = Rc::downgrade(&state);
        let fd = current()
            .register_fd(raw, Interest::READ, move |_| {
                if let Some(state) = weak.upgrade() {
                    accept(&state);
                }
            })
            .map_err(|error| refused(std::io::Error::other(error.to_string())))?;
        state.borrow_mut().listener_fd = Some(fd);
        Ok(Endpoint { state, fd })
    }

    /// The address it listens on (the port the system chose, if it was 0).
    #[must_use]
    pub fn address(&self) -> Option<SocketAddr> {
        self.state.borrow().listener.local_addr().ok()
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        current().unregister_fd(self.fd);
        for (_, client) in self.state.borrow_mut().clients.drain() {
            client.unwatch();
        }
    }
}

fn accept(state: &Rc<RefCell<State>>) {
    loop {
        let accepted = state.borrow().listener.accept();
        match accepted {
            Ok((stream, peer)) if state.borrow().clients.len() >= MAX_CLIENTS => {
                warn!("metrics endpoint full, client refused peer={peer} limit={MAX_CLIENTS}");
                drop(stream);
            }
            Ok((stream, _)) => admit(state, stream),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return,
            Err(error) if doorway::concerns_one_client(&error) => {}
            Err(error) => {
                if let Some(listener) = state.borrow().listener_fd {
                    doorway::rest(listener, "metrics endpoint", &error);
                }
                return;
            }
        }
    }
}

fn admit(state: &Rc<RefCell<State>>, stream: TcpStream) {
    if stream.set_nonblocking(true).is_err() {
        return;
    }
    let id = state.borrow().next_client;
    let (on_ready, on_timeout) = (Rc::downgrade(state), Rc::downgrade(state));
    let registered = current().register_fd(stream.as_raw_fd(), Interest::READ, move |_| {
        if let Some(state) = on_ready.upgrade() {
            progress(&state, id);
        }
    });
    let Ok(fd) = registered else { return };
    let timer = current().set_timer(CLIENT_TIMEOUT, move || {
        if let Some(state) = on_timeout.upgrade() {
            close(&state, id);
        }
    });
    let mut state = state.borrow_mut();
    state.next_client += 1;
    let client = Client { stream, fd, timer: timer.ok(), request: Vec::new(), answer: None, sent: 0 };
    state.clients.insert(id, client);
}

/// Reads the request, then sends the answer; called whenever the socket is ready.
fn progress(state: &Rc<RefCell<State>>, id: u64) {
    let step = {
        let mut borrowed = state.borrow_mut();
        let Some(client) = borrowed.clients.get_mut(&id) else { return };
        if client.answer.is_some() { client.write() } else { client.read() }
    };
    match step {
        Step::Wait => {}
        Step::Close => close(state, id),
        Step::Answer(head) => answer(state, id, &head),
    }
}

fn answer(state: &Rc<RefCell<State>>, id: u64, head: &str) {
    let mut words = head.split_ascii_whitespace();
    match (words.next(), words.next()) {
        (Some("GET"), Some("/metrics")) => {
            let (weak, control) = (Rc::downgrade(state), state.borrow().control.clone());
            text(&control, move |text| {
                if let Some(state) = weak.upgrade() {
                    respond(&state, id, "200 OK", &text);
                }
            });
        }
        (Some("GET"), Some(_)) => respond(state, id, "404 Not Found", "see /metrics\n"),
        _ => respond(state, id, "405 Method Not Allowed", "GET /metrics\n"),
    }
}

fn respond(state: &Rc<RefCell<State>>, id: u64, status: &str, body: &str) {
    {
        let mut borrowed = state.borrow_mut();
        let Some(client) = borrowed.clients.get_mut(&id) else { return };
        let head = format!(
            "HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
            body.len()
        );
        client.answer = Some([head.as_bytes(), body.as_bytes()].concat());
        if current().modify_fd(client.fd, Interest::WRITE).is_err() {
            warn!("metrics endpoint cannot watch a client client={id}");
        }
    }
    progress(state, id);
}

fn close(state: &Rc<RefCell<State>>, id: u64) {
    if let Some(client) = state.borrow_mut().clients.remove(&id) {
        client.unwatch();
    }
}

enum Step {
    Wait,
    Close,
    Answer(String),
}

impl Client {
    fn read(&mut self) -> Step {
        let mut bytes = [0; 2048];
        match self.stream.read(&mut bytes) {
            Ok(0) => Step::Close,
            Ok(count) => {
                self.request.extend_from_slice(&bytes[..count]);
                let is_whole = self.request.windows(4).any(|four| four == b"\r\n\r\n");
                if is_whole {
                    Step::Answer(String::from_utf8_lossy(&self.request).into_owned())
                } else if self.request.len() > MAX_REQUEST_BYTES {
                    Step::Close
                } else {
                    Step::Wait
                }
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
                Step::Wait
            }
            Err(_) => Step::Close,
        }
    }

    fn write(&mut self) -> Step {
        let Some(answer) = &self.answer else { return Step::Wait };
        match self.stream.write(&answer[self.sent..]) {
            Ok(count) => {
                self.sent += count;
                if self.sent == answer.len() { Step::Close } else { Step::Wait }
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
                Step::Wait
            }
            Err(_) => Step::Close,
        }
    }

    fn unwatch(&self) {
        current().unregister_fd(self.fd);
        if let Some(timer) = self.timer {
            current().cancel_timer(timer);
        }
    }
}

/// Makes the text; device counters are asked of the reactors first.
pub fn text(control: &Control, done: impl FnOnce(String) + 'static) {
    let names = control.core().bdev_names();
    let gathered =
        Rc::new(RefCell::new(Gathered { missing: names.len() + 3, page: Page::default(), done: Some(done) }));
    process_metrics(control, &mut gathered.borrow_mut().page);
    target_metrics(control, &mut gathered.borrow_mut().page);
    let (of_namespaces, of_reactors) = (gathered.clone(), gathered.clone());
    control.target().namespace_reports(move |reports| {
        reports.iter().for_each(|one| namespace_metrics(one, &mut of_namespaces.borrow_mut().page));
        Gathered::arrive(&of_namespaces);
    });
    control.target().reactor_reports(move |reports| {
        reports.iter().for_each(|one| queue_metrics(one, &mut of_reactors.borrow_mut().page));
        Gathered::arrive(&of_reactors);
    });
    for name in names {
        let gathered = gathered.clone();
        control.core().iostat(&name.clone(), false, ResetMode::None, move |result| {
            if let Ok(statistics) = result {
                bdev_metrics(&name, &statistics, &mut gathered.borrow_mut().page);
            }
            Gathered::arrive(&gathered);
        });
    }
    Gathered::arrive(&gathered);
}

struct Gathered<F> {
    missing: usize,
    page: Page,
    done: Option<F>,
}

impl<F: FnOnce(String)> Gathered<F> {
    fn arrive(this: &Rc<RefCell<Self>>) {
        let finished = {
            let mut state = this.borrow_mut();
            state.missing -= 1;
            if state.missing > 0 {
                return;
            }
            state.done.take().map(|done| (done, state.page.render()))
        };
        if let Some((done, text)) = finished {
            done(text);
        }
    }
}

fn process_metrics(control: &Control, page: &mut Page) {
    page.add("tenon_bdevs", "gauge", "Block devices", &[], control.core().bdev_count() as f64);
    let hz = ticks_hz() as f64;
    for reactor in control.directory().all() {
        let statistics = reactor.statistics();
        let labels = [("reactor", reactor.name())];
        let seconds = |ticks: u64| ticks as f64 / hz;
        page.add(
            "tenon_reactor_busy_seconds_total",
            "counter",
            "Time in turns that found work",
            &labels,
            seconds(statistics.busy_ticks),
        );
        page.add(
            "tenon_reactor_idle_seconds_total",
            "counter",
            "Time in turns that found none",
            &labels,
            seconds(statistics.idle_ticks),
        );
        page.add(
            "tenon_reactor_sleep_seconds_total",
            "counter",
            "Time asleep",
            &labels,
            seconds(statistics.sleep_ticks),
        );
        page.add(
            "tenon_reactor_longest_turn_seconds",
            "gauge",
            "Longest turn so far",
            &labels,
            statistics.longest_turn_ns as f64 / 1e9,
        );
        page.add(
            "tenon_reactor_messages_total",
            "counter",
            "Messages run",
            &labels,
            statistics.messages as f64,
        );
    }
    for sample in tenon_bdev::metrics() {
        let labels: Vec<(&str, &str)> =
            sample.labels.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
        let kind = if sample.kind == MetricKind::COUNTER { "counter" } else { "gauge" };
        page.add(&sample.name, kind, &sample.help, &labels, sample.value as f64);
    }
}

fn target_metrics(control: &Control, page: &mut Page) {
    for subsystem in control.target().subsystems() {
        let labels = [("subsystem", subsystem.spec.nqn.as_str())];
        for (name, help, count) in [
            ("tenon_nvmf_namespaces", "Namespaces of a subsystem", subsystem.namespaces.len()),
            ("tenon_nvmf_listeners", "Addresses a subsystem is reached at", subsystem.listeners.len()),
            ("tenon_nvmf_controllers", "Hosts' controllers of a subsystem", subsystem.controllers.len()),
            (
                "tenon_nvmf_io_queues",
                "I/O queues of these controllers",
                subsystem.controllers.iter().map(|controller| controller.num_io_queues).sum(),
            ),
        ] {
            page.add(name, "gauge", help, &labels, count as f64);
        }
    }
}

fn namespace_metrics(report: &NamespaceReport, page: &mut Page) {
    let nsid = report.nsid.to_string();
    let counts = &report.counts;
    for (op, commands, bytes) in [
        ("read", counts.read_commands, Some(counts.read_bytes)),
        ("write", counts.write_commands, Some(counts.write_bytes)),
        ("other", counts.other_commands, None),
    ] {
        let labels = [
            ("subsystem", report.nqn.as_str()),
            ("nsid", &nsid),
            ("bdev", report.bdev_name.as_str()),
            ("op", op),
        ];
        let help = "I/O commands of hosts";
        page.add("tenon_nvmf_commands_total", "counter", help, &labels, commands as f64);
        if let Some(bytes) = bytes {
            page.add("tenon_nvmf_bytes_total", "counter", "Bytes of these", &labels, bytes as f64);
        }
    }
    let labels =
        [("subsystem", report.nqn.as_str()), ("nsid", nsid.as_str()), ("bdev", report.bdev_name.as_str())];
    let help = "I/O commands that ended with an error";
    page.add("tenon_nvmf_failed_commands_total", "counter", help, &labels, counts.failed_commands as f64);
}

fn queue_metrics(report: &ReactorReport, page: &mut Page) {
    for (kind, now, ever) in [
        ("admin", report.current_admin_queues, report.admin_queues),
        ("io", report.current_io_queues, report.io_queues),
    ] {
        let labels = [("reactor", report.name.as_str()), ("kind", kind)];
        page.add("tenon_nvmf_queues", "gauge", "Queues of hosts", &labels, now as f64);
        let help = "Queues opened by hosts";
        page.add("tenon_nvmf_queues_opened_total", "counter", help, &labels, ever as f64);
    }
    let labels = [("reactor", report.name.as_str())];
    let help = "Commands of hosts with devices";
    page.add("tenon_nvmf_pending_commands", "gauge", help, &labels, report.pending_device_commands as f64);
}

fn bdev_metrics(name: &str, statistics: &tenon_bdev::IoStat, page: &mut Page) {
    for (op, code) in [
        ("read", Op::READ),
        ("write", Op::WRITE),
        ("flush", Op::FLUSH),
        ("unmap", Op::UNMAP),
        ("write_zeroes", Op::WRITE_ZEROES),
        ("copy", Op::COPY),
    ] {
        let figures = statistics.total.op(code);
        let labels = [("bdev", name), ("op", op)];
        let seconds = figures.latency_ticks() as f64 / ticks_hz() as f64;
        page.add(
            "tenon_bdev_operations_total",
            "counter",
            "Requests given to the device",
            &labels,
            figures.ops as f64,
        );
        page.add(
            "tenon_bdev_bytes_total",
            "counter",
            "Bytes of these requests",
            &labels,
            figures.bytes as f64,
        );
        page.add("tenon_bdev_latency_seconds_total", "counter", "Sum of their latencies", &labels, seconds);
    }
}

/// Samples grouped by metric, as the format wants them.
#[derive(Default)]
struct Page {
    families: std::collections::BTreeMap<String, Family>,
}

struct Family {
    kind: &'static str,
    help: String,
    samples: String,
}

impl Page {
    fn add(&mut self, name: &str, kind: &'static str, help: &str, labels: &[(&str, &str)], value: f64) {
        let family = self.families.entry(name.to_owned()).or_insert_with(|| Family {
            kind,
            help: help.replace('\\', "\\\\").replace('\n', "\\n"),
            samples: String::new(),
        });
        let labels: Vec<String> =
            labels.iter().map(|(key, value)| format!("{key}=\"{}\"", escape(value))).collect();
        let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
        let _ = writeln!(family.samples, "{name}{labels} {value}");
    }

    fn render(&self) -> String {
        let mut text = String::new();
        for (name, family) in &self.families {
            let Family { kind, help, samples } = family;
            let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n{samples}");
        }
        text
    }
}

fn escape(label: &str) -> String {
    label.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_of_a_metric_stand_together_under_one_head() {
        let mut page = Page::default();
        page.add("b_total", "counter", "B", &[("x", "1")], 1.0);
        page.add("a", "gauge", "A", &[], 0.5);
        page.add("b_total", "counter", "B", &[("x", "a\"\\\n")], 2.0);
        assert_eq!(
            page.render(),
            "# HELP a A\n# TYPE a gauge\na 0.5\n# HELP b_total B\n# TYPE b_total counter\nb_total{x=\"1\"} 1\nb_total{x=\"a\\\"\\\\\\n\"} 2\n"
        );
    }
}
