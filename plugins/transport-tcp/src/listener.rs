//! Listening sockets: accepting in bounded batches and handing connections to
//! the target core.
//!
//! Lives on the control reactor. A storm of connections cannot keep it: a batch
//! is bounded, the rest waits in the kernel. When descriptors run out, accepting
//! pauses for a moment instead of spinning. What becomes of a connection is
//! decided by the target core, which has the poll group of a reactor adopt it.
// UNSAFETY: hands boxes over as raw pointers, as the contract has it.

use std::cell::{Cell, RefCell};
use std::ffi::c_void;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, ipproto, sockopt};
use tenon_sdk::{Error, FdWatch, Host, Timer};

use crate::channel::Channel;
use crate::socket::{Socket, SocketOptions, address_of};

/// A connection that was accepted and belongs to no reactor yet.
pub struct Accepted {
    pub listener: u64,
    pub channel: Channel,
    pub peer: SocketAddr,
    pub local: SocketAddr,
}

/// Makes a channel of an accepted socket.
pub type Dress = dyn Fn(Socket) -> std::io::Result<Channel>;

/// Takes an accepted connection, or says by `-errno` why it does not.
pub type Announce = dyn Fn(*mut c_void) -> i32;

/// One address that is listened at. Ends when dropped.
pub struct Listener {
    inner: Rc<Inner>,
}

struct Inner {
    host: Host,
    number: u64,
    fd: OwnedFd,
    address: SocketAddr,
    options: SocketOptions,
    dress: Box<Dress>,
    announce: Box<Announce>,
    watch: RefCell<Option<FdWatch>>,
    pause: RefCell<Option<Timer>>,
    /// Connections refused since the last line about it.
    refused: Cell<u64>,
    noted_ns: Cell<u64>,
}

impl Listener {
    /// Listens at `address`. Every connection is announced as a `Box<Accepted>`, which is whose announcement
    /// succeeds, and freed here if it does not.
    pub fn open(
        host: Host,
        number: u64,
        address: SocketAddr,
        backlog: u32,
        options: SocketOptions,
        dress: Box<Dress>,
        announce: Box<Announce>,
    ) -> Result<Self, Error> {
        let fd = bind(address, backlog).map_err(|error| {
            let reason = match error {
                Errno::ADDRINUSE => {
                    "cannot listen, the port is in use: end who has it, or choose another trsvcid"
                }
                Errno::ADDRNOTAVAIL => {
                    "cannot listen, no interface of this machine has the address: correct traddr"
                }
                Errno::ACCESS => "cannot listen, the port takes privileges: choose a trsvcid from 1024 on",
                _ => "cannot listen",
            };
            let cause = std::io::Error::from(error);
            Error::new(-error.raw_os_error(), reason).object(address.to_string()).caused_by(cause)
        })?;
        let bound = address_of(Some(rustix::net::getsockname(&fd).map_err(std::io::Error::from)?))?;
        let inner = Rc::new(Inner {
            host,
            number,
            fd,
            address: bound,
            options,
            dress,
            announce,
            watch: RefCell::default(),
            pause: RefCell::default(),
            refused: Cell::new(0),
            noted_ns: Cell::new(0),
        });
        inner.start()?;
        Ok(Self { inner })
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        // The watch and the timer refer to the rest, which goes with them.
        self.inner.pause.borrow_mut().take();
        self.inner.watch.borrow_mut().take();
    }
}

impl Inner {
    fn start(self: &Rc<Self>) -> Result<(), Error> {
        let own = Rc::downgrade(self);
        let watch = self.host.watch_fd(&self.fd, libc::EPOLLIN as u32, move |_| {
            if let Some(own) = own.upgrade() {
                own.accept_batch();
            }
        })?;
        *self.watch.borrow_mut() = Some(watch);
        Ok(())
    }

    fn accept_batch(self: &Rc<Self>) {
        for _ in 0..ACCEPTS_PER_EVENT {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            match rustix::net::acceptfrom_with(&self.fd, flags) {
                Ok((fd, peer)) => self.hand_over(fd, peer),
                Err(Errno::AGAIN) => return,
                // That connection ended while it waited; there may be others.
                Err(Errno::CONNABORTED | Errno::INTR | Errno::PROTO | Errno::PERM) => {}
                Err(error) => return self.rest(error),
            }
        }
    }

    fn hand_over(&self, fd: OwnedFd, peer: Option<rustix::net::SocketAddrAny>) {
        let accepted = Socket::accepted(fd, &self.options).and_then(|socket| {
            let (peer, local) = (address_of(peer)?, socket.local()?);
            Ok(Accepted { listener: self.number, channel: (self.dress)(socket)?, peer, local })
        });
        match accepted {
            Ok(accepted) => {
                let raw = Box::into_raw(Box::new(accepted));
                let code = (self.announce)(raw.cast());
                if code != 0 {
                    // SAFETY: the announcement failed, so the box is still ours alone.
                    drop(unsafe { Box::from_raw(raw) });
                    self.note_refusal(code);
                }
            }
            Err(error) => log::debug!("connection ended as it was accepted error=\"{error}\""),
        }
    }

    /// The system is short of descriptors or memory: accepting goes on a little later.
    #[cold]
    fn rest(self: &Rc<Self>, error: Errno) {
        self.note_refusal(-error.raw_os_error());
        let watch = self.watch.borrow_mut().take();
        drop(watch);
        let own = Rc::downgrade(self);
        let again = move || {
            if let Some(own) = own.upgrade()
                && let Err(error) = own.start()
            {
                log::error!("listener stopped address={} error=\"{error}\"", own.address);
            }
        };
        match self.host.timer(ACCEPT_PAUSE, again) {
            Ok(timer) => *self.pause.borrow_mut() = Some(timer),
            Err(error) => log::error!("listener stopped address={} error=\"{error}\"", self.address),
        }
    }

    #[cold]
    fn note_refusal(&self, code: i32) {
        self.refused.set(self.refused.get() + 1);
        let now_ns = self.host.now_ns();
        if now_ns.saturating_sub(self.noted_ns.get()) >= NOTE_INTERVAL_NS {
            self.noted_ns.set(now_ns);
            let (address, count) = (self.address, self.refused.replace(0));
            log::warn!("connections are not accepted address={address} code={code} count={count}");
        }
    }
}

fn bind(address: SocketAddr, backlog: u32) -> Result<OwnedFd, Errno> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let fd = rustix::net::socket_with(family, SocketType::STREAM, flags, Some(ipproto::TCP))?;
    // A restarted target listens again although its old connections linger.
    sockopt::set_socket_reuseaddr(&fd, true)?;
    if address.is_ipv6() {
        // The IPv4 side of the address is a listener of its own.
        sockopt::set_ipv6_v6only(&fd, true)?;
    }
    rustix::net::bind(&fd, &address)?;
    rustix::net::listen(&fd, i32::try_from(backlog).unwrap_or(i32::MAX))?;
    Ok(fd)
}

/// Connections accepted before others of the control reactor have their turn.
const ACCEPTS_PER_EVENT: usize = 32;
/// How long accepting rests when the system is short of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
const NOTE_INTERVAL_NS: u64 = 10_000_000_000;
