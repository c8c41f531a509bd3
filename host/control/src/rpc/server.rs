//! The control socket: accepts clients, hands their calls to a [`Handler`] and
//! sends the replies, all on the control reactor.
//!
//! A client may send many calls before reading a reply; replies go out as they
//! become ready. Every quantity a client controls is bounded: length of a call,
//! calls in flight, unread replies, clients. At a bound the server stops reading
//! from that client; nobody else notices. A client that goes away loses its
//! replies, not its operations.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::rc::{Rc, Weak};

use log::{debug, warn};
use rustix::process::{Pid, umask};
use serde_json::Value;
use tenon_reactor::{FdId, Interest, current};
use thiserror::Error;

use super::framer::Framer;
use super::message::{Incoming, Request, RpcError, parse, reply_text};
use crate::doorway;

/// Most clients at a time; a further one is closed at once.
pub const MAX_CLIENTS: usize = 128;
/// Most calls of one client in flight; further ones wait in the socket.
pub const MAX_PENDING_PER_CLIENT: usize = 64;
/// Unread bytes of replies at which a client's further calls wait.
const MAX_UNREAD_BYTES: usize = 8 << 20;
/// Bytes read from one client before others get their turn.
const READ_BYTES: usize = 64 << 10;

/// Answers calls. Runs on the control reactor; may keep the [`Reply`] and answer later.
pub trait Handler {
    /// One call.
    fn call(&self, request: Request, reply: Reply);
}

/// The answer owed to one call; must be used exactly once.
#[must_use = "a call without an answer hangs its client"]
pub struct Reply(Option<Deliver>);

/// Takes the answer to its client.
type Deliver = Box<dyn FnOnce(Result<Value, RpcError>)>;

impl Reply {
    /// An answer that goes to `deliver`.
    pub fn new(deliver: impl FnOnce(Result<Value, RpcError>) + 'static) -> Self {
        Reply(Some(Box::new(deliver)))
    }

    /// Answers.
    pub fn send(mut self, result: Result<Value, RpcError>) {
        if let Some(deliver) = self.0.take() {
            deliver(result);
        }
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        if let Some(deliver) = self.0.take() {
            debug_assert!(std::thread::panicking(), "a reply was dropped");
            deliver(Err(RpcError::new(RpcError::INTERNAL, "", "the call was dropped without an answer")));
        }
    }
}

/// Why the control socket cannot be opened.
#[derive(Debug, Error)]
pub enum ServerError {
    /// Another process answers on it.
    #[error("control socket {}: in use by another process; stop it or choose another path", .path.display())]
    InUse {
        /// The socket.
        path: PathBuf,
    },
    /// The path is a file of another kind.
    #[error("control socket {}: exists and is no socket; remove it or choose another path", .path.display())]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// The system refuses.
    #[error("control socket {}: cannot {action}", .path.display())]
    System {
        /// The socket.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// What the system says.
        source: std::io::Error,
    },
}

/// The control socket; dropping it closes the socket, its clients and removes the file.
pub struct Server {
    state: Rc<RefCell<State>>,
    path: PathBuf,
}

struct State {
    listener: UnixListener,
    listener_fd: Option<FdId>,
    handler: Rc<dyn Handler>,
    clients: HashMap<u64, Client>,
    next_client: u64,
}

struct Client {
    stream: UnixStream,
    fd: FdId,
    framer: Framer,
    unsent: Vec<u8>,
    pending: usize,
    /// No more calls come: the client closed its side or broke the protocol.
    is_done_sending: bool,
}

impl Server {
    /// Opens `path` (mode 0600) and serves it. Control reactor only.
    ///
    /// # Errors
    /// The path is taken or the system refuses.
    pub fn open(path: &Path, handler: Rc<dyn Handler>) -> Result<Server, ServerError> {
        remove_stale(path)?;
        let system = |action| move |source| ServerError::System { path: path.to_owned(), action, source };
        let before = umask(rustix::fs::Mode::from_raw_mode(0o177));
        let bound = UnixListener::bind(path);
        umask(before);
        let listener = bound.map_err(system("bind"))?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))
            .map_err(system("set mode 0600 of"))?;
        listener.set_nonblocking(true).map_err(system("set up"))?;
        let raw = listener.as_raw_fd();
        let state = Rc::new(RefCell::new(State {
            listener,
            listener_fd: None,
            handler,
            clients: HashMap::new(),
            next_client: 1,
        }));
        let weak = Rc::downgrade(&state);
        let fd = current()
            .register_fd(raw, Interest::READ, move |_| accept(&weak))
            .map_err(|error| system("watch")(std::io::Error::other(error.to_string())))?;
        state.borrow_mut().listener_fd = Some(fd);
        Ok(Server { state, path: path.to_owned() })
    }

    /// Where it listens.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let mut state = self.state.borrow_mut();
        if let Some(fd) = state.listener_fd.take() {
            current().unregister_fd(fd);
        }
        for (_, mut client) in state.clients.drain() {
            // What the kernel takes now is delivered; a stopping host waits for no client.
            let _ = client.stream.write(&client.unsent);
            current().unregister_fd(client.fd);
        }
        let _ = std::fs::remove_file(&self.path);
    }
}

fn remove_stale(path: &Path) -> Result<(), ServerError> {
    use std::os::unix::fs::FileTypeExt;
    let Ok(metadata) = std::fs::symlink_metadata(path) else {
        return Ok(());
    };
    if !metadata.file_type().is_socket() {
        return Err(ServerError::NotASocket { path: path.to_owned() });
    }
    match UnixStream::connect(path) {
        Ok(_) => Err(ServerError::InUse { path: path.to_owned() }),
        Err(_) => std::fs::remove_file(path).map_err(|source| ServerError::System {
            path: path.to_owned(),
            action: "remove the stale",
            source,
        }),
    }
}

fn accept(weak: &Weak<RefCell<State>>) {
    let Some(state) = weak.upgrade() else { return };
    loop {
        let accepted = state.borrow().listener.accept();
        match accepted {
            Ok((stream, _)) => admit(&state, stream),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return,
            Err(error) if doorway::concerns_one_client(&error) => {}
            Err(error) => {
                if let Some(listener) = state.borrow().listener_fd {
                    doorway::rest(listener, "control socket", &error);
                }
                return;
            }
        }
    }
}

fn admit(state: &Rc<RefCell<State>>, stream: UnixStream) {
    if state.borrow().clients.len() >= MAX_CLIENTS {
        warn!("control socket full, client refused limit={MAX_CLIENTS}");
        return;
    }
    if stream.set_nonblocking(true).is_err() {
        return;
    }
    let id = state.borrow().next_client;
    let weak = Rc::downgrade(state);
    let registered = current().register_fd(stream.as_raw_fd(), Interest::READ, move |events| {
        let Some(state) = weak.upgrade() else { return };
        if events.is_writable() {
            flush(&state, id);
        }
        if events.is_readable() {
            receive(&state, id);
        }
    });
    let Ok(fd) = registered else {
        warn!("control socket cannot watch a client");
        return;
    };
    let peer = rustix::net::sockopt::socket_peercred(&stream).map_or(0, |cred| Pid::as_raw(Some(cred.pid)));
    debug!("control client connected client={id} pid={peer}");
    let mut state = state.borrow_mut();
    state.next_client += 1;
    let client = Client {
        stream,
        fd,
        framer: Framer::default(),
        unsent: Vec::new(),
        pending: 0,
        is_done_sending: false,
    };
    state.clients.insert(id, client);
}

/// Reads what a client sent, once, and serves it.
fn receive(state: &Rc<RefCell<State>>, id: u64) {
    let mut bytes = [0; READ_BYTES];
    let received = {
        let mut borrowed = state.borrow_mut();
        let Some(client) = borrowed.clients.get_mut(&id) else { return };
        if client.is_done_sending || client.must_wait() {
            client.stream.peek_closed()
        } else {
            client.stream.read(&mut bytes)
        }
    };
    match received {
        Ok(0) => end_of_calls(state, id),
        Ok(count) => {
            if let Some(client) = state.borrow_mut().clients.get_mut(&id) {
                client.framer.push(&bytes[..count]);
            }
            serve(state, id);
        }
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
        Err(_) => close(state, id),
    }
}

/// Hands over the calls a client has sent, up to its bounds.
fn serve(state: &Rc<RefCell<State>>, id: u64) {
    loop {
        let frame = {
            let mut borrowed = state.borrow_mut();
            let Some(client) = borrowed.clients.get_mut(&id) else { return };
            if client.must_wait() {
                break;
            }
            client.framer.next_frame()
        };
        match frame {
            Ok(Some(text)) => dispatch(state, id, parse(&text)),
            Ok(None) => break,
            Err(error) => {
                let error = RpcError::new(RpcError::PARSE_ERROR, "", error.to_string());
                deliver(state, id, &reply_text(&Value::Null, Err(error)));
                end_of_calls(state, id);
                return;
            }
        }
    }
    update_interest(state, id);
}

fn dispatch(state: &Rc<RefCell<State>>, id: u64, incoming: Incoming) {
    let handler = state.borrow().handler.clone();
    match incoming {
        Incoming::Single(Err((call, error))) => {
            // After a text that is no JSON the next one cannot be trusted either.
            let is_parse_error = error.code == RpcError::PARSE_ERROR;
            deliver(state, id, &reply_text(&call, Err(error)));
            if is_parse_error {
                end_of_calls(state, id);
            }
        }
        Incoming::Single(Ok(request)) => {
            let reply = single_reply(state, id, request.id.clone());
            handler.call(request, reply);
        }
        Incoming::Batch(calls) => {
            let batch = Rc::new(RefCell::new(Batch { missing: calls.len(), replies: Vec::new() }));
            begin(state, id);
            for call in calls {
                let reply = batch_reply(
                    state,
                    id,
                    &batch,
                    call.as_ref().map_or_else(|(id, _)| Some(id.clone()), |request| request.id.clone()),
                );
                match call {
                    Ok(request) => handler.call(request, reply),
                    Err((_, error)) => reply.send(Err(error)),
                }
            }
        }
    }
}

struct Batch {
    missing: usize,
    replies: Vec<Value>,
}

fn single_reply(state: &Rc<RefCell<State>>, id: u64, call: Option<Value>) -> Reply {
    begin(state, id);
    let weak = Rc::downgrade(state);
    Reply::new(move |result| {
        let Some(state) = weak.upgrade() else { return };
        let text = call.map(|call| reply_text(&call, result));
        finish(&state, id, text.as_ref());
    })
}

fn batch_reply(
    state: &Rc<RefCell<State>>,
    id: u64,
    batch: &Rc<RefCell<Batch>>,
    call: Option<Value>,
) -> Reply {
    let (weak, batch) = (Rc::downgrade(state), batch.clone());
    Reply::new(move |result| {
        let replies = {
            let mut batch = batch.borrow_mut();
            batch.replies.extend(call.map(|call| reply_text(&call, result)));
            batch.missing -= 1;
            if batch.missing > 0 {
                return;
            }
            std::mem::take(&mut batch.replies)
        };
        let Some(state) = weak.upgrade() else { return };
        finish(&state, id, (!replies.is_empty()).then_some(Value::Array(replies)).as_ref());
    })
}

fn begin(state: &Rc<RefCell<State>>, id: u64) {
    if let Some(client) = state.borrow_mut().clients.get_mut(&id) {
        client.pending += 1;
    }
}

/// A call is answered: sends the reply and lets the client go on, in a later turn so that a long line of
/// waiting calls does not nest.
fn finish(state: &Rc<RefCell<State>>, id: u64, text: Option<&Value>) {
    if let Some(client) = state.borrow_mut().clients.get_mut(&id) {
        client.pending -= 1;
    }
    if let Some(text) = text {
        deliver(state, id, text);
    }
    let weak = Rc::downgrade(state);
    let deferred = current().defer(move || {
        let Some(state) = weak.upgrade() else { return };
        serve(&state, id);
        close_if_over(&state, id);
    });
    if let Err(error) = deferred {
        warn!("control client dropped, the control reactor has no room client={id} error={error}");
        close(state, id);
    }
}

fn deliver(state: &Rc<RefCell<State>>, id: u64, text: &Value) {
    if let Some(client) = state.borrow_mut().clients.get_mut(&id) {
        client.unsent.extend_from_slice(text.to_string().as_bytes());
        client.unsent.push(b'\n');
    }
    flush(state, id);
}

fn flush(state: &Rc<RefCell<State>>, id: u64) {
    let broken = {
        let mut borrowed = state.borrow_mut();
        let Some(client) = borrowed.clients.get_mut(&id) else { return };
        client.write().is_err()
    };
    if broken {
        close(state, id);
        return;
    }
    update_interest(state, id);
    close_if_over(state, id);
}

fn update_interest(state: &Rc<RefCell<State>>, id: u64) {
    let borrowed = state.borrow();
    let Some(client) = borrowed.clients.get(&id) else { return };
    let interest = match (client.is_done_sending || client.must_wait(), client.unsent.is_empty()) {
        (false, true) => Interest::READ,
        (false, false) => Interest::READ_WRITE,
        (true, false) => Interest::WRITE,
        (true, true) => Interest::NONE,
    };
    if let Err(error) = current().modify_fd(client.fd, interest) {
        warn!("control socket cannot watch a client client={id} error={error}");
    }
}

fn end_of_calls(state: &Rc<RefCell<State>>, id: u64) {
    if let Some(client) = state.borrow_mut().clients.get_mut(&id) {
        client.is_done_sending = true;
    }
    update_interest(state, id);
    close_if_over(state, id);
}

fn close_if_over(state: &Rc<RefCell<State>>, id: u64) {
    let is_over = state
        .borrow()
        .clients
        .get(&id)
        .is_some_and(|client| client.is_done_sending && client.pending == 0 && client.unsent.is_empty());
    if is_over {
        close(state, id);
    }
}

fn close(state: &Rc<RefCell<State>>, id: u64) {
    if let Some(client) = state.borrow_mut().clients.remove(&id) {
        current().unregister_fd(client.fd);
        debug!("control client closed client={id} unanswered={}", client.pending);
    }
}

impl Client {
    fn must_wait(&self) -> bool {
        self.pending >= MAX_PENDING_PER_CLIENT || self.unsent.len() >= MAX_UNREAD_BYTES
    }

    fn write(&mut self) -> std::io::Result<()> {
        let mut sent = 0;
        let result = loop {
            if sent == self.unsent.len() {
                break Ok(());
            }
            match self.stream.write(&self.unsent[sent..]) {
                Ok(count) => sent += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => break Err(error),
            }
        };
        self.unsent.drain(..sent);
        result
    }
}

trait PeekClosed {
    /// `WouldBlock` while the peer can still read replies, an error once it cannot.
    fn peek_closed(&self) -> std::io::Result<usize>;
}

impl PeekClosed for UnixStream {
    fn peek_closed(&self) -> std::io::Result<usize> {
        let mut fds = [rustix::event::PollFd::new(self, rustix::event::PollFlags::empty())];
        rustix::event::poll(&mut fds, Some(&rustix::time::Timespec { tv_sec: 0, tv_nsec: 0 }))?;
        let gone = rustix::event::PollFlags::HUP | rustix::event::PollFlags::ERR;
        let kind = if fds[0].revents().intersects(gone) {
            ErrorKind::ConnectionReset
        } else {
            ErrorKind::WouldBlock
        };
        Err(kind.into())
    }
}
