//! One stream socket: non-blocking, with its options, sending and receiving in
//! pieces.
//!
//! Both roles use it. Knows neither PDUs nor reactors: whoever owns it learns
//! of readiness elsewhere and hears here when there is none. Accepting is in
//! `listener`, securing a channel in `tls`.
// UNSAFETY: moves bytes from and to memory that is named by raw pointers.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendFlags, SocketFlags, SocketType, ipproto, sockopt,
};
use tenon_sdk::IoVec;

/// A connected, or connecting, stream socket that never blocks.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
}

/// What sockets of connections are set to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketOptions {
    /// `SO_PRIORITY`, and with it the traffic class of packets; 0: the system's.
    pub priority: u32,
    /// Bytes the kernel may hold that the peer has not acknowledged; 0: it decides.
    pub send_buffer_bytes: usize,
    /// Bytes the kernel may hold that nobody has read; 0: it decides.
    pub receive_buffer_bytes: usize,
    /// Time after which unacknowledged data ends the connection; 0: the system's.
    pub user_timeout_ms: u32,
}

impl SocketOptions {
    /// What suits nearly everybody.
    pub const DEFAULT: Self =
        Self { priority: 0, send_buffer_bytes: 0, receive_buffer_bytes: 0, user_timeout_ms: 0 };
}

impl Socket {
    /// Takes over a connection that was accepted.
    pub fn accepted(fd: OwnedFd, options: &SocketOptions) -> io::Result<Self> {
        let socket = Self { fd };
        socket.set(options)?;
        Ok(socket)
    }

    /// Starts to connect, from `source` if it matters. Writable means that [`Socket::connected`] has an answer.
    pub fn connect(
        address: &SocketAddr,
        source: Option<&SocketAddr>,
        options: &SocketOptions,
    ) -> io::Result<Self> {
        let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let fd = rustix::net::socket_with(family, SocketType::STREAM, flags, Some(ipproto::TCP))?;
        let socket = Self { fd };
        socket.set(options)?;
        if let Some(source) = source {
            rustix::net::bind(&socket.fd, source)?;
        }
        match rustix::net::connect(&socket.fd, address) {
            Ok(()) | Err(Errno::INPROGRESS) => Ok(socket),
            Err(error) => Err(error.into()),
        }
    }

    /// How connecting ended; asked once the socket is writable.
    pub fn connected(&self) -> io::Result<()> {
        sockopt::socket_error(&self.fd)??;
        // Without an error and without a peer it is still under way.
        rustix::net::getpeername(&self.fd)?;
        Ok(())
    }

    /// The other end.
    pub fn peer(&self) -> io::Result<SocketAddr> {
        address_of(rustix::net::getpeername(&self.fd)?)
    }

    /// This end.
    pub fn local(&self) -> io::Result<SocketAddr> {
        address_of(Some(rustix::net::getsockname(&self.fd)?))
    }

    /// Sends what it can of `pieces`: the number of bytes, or `None` if there is no room now.
    ///
    /// # Safety
    /// Every piece is readable memory.
    pub unsafe fn send(&self, pieces: &[IoVec]) -> io::Result<Option<usize>> {
        if let [piece] = pieces {
            // SAFETY: as the caller vouches.
            let bytes = unsafe { std::slice::from_raw_parts(piece.base.cast::<u8>(), piece.len) };
            return moved(rustix::net::send(&self.fd, bytes, SendFlags::NOSIGNAL));
        }
        let count = pieces.len().min(MAX_PIECES);
        // SAFETY: an `IoVec` is laid out as an `IoSlice` is; the caller vouches for the pieces, which are only read.
        let slices = unsafe { std::slice::from_raw_parts(pieces.as_ptr().cast::<IoSlice<'_>>(), count) };
        let mut nothing = SendAncillaryBuffer::default();
        moved(rustix::net::sendmsg(&self.fd, slices, &mut nothing, SendFlags::NOSIGNAL))
    }

    /// Receives into `pieces`, in order: the number of bytes, 0 at the end of the stream, or `None` if there is
    /// nothing now.
    ///
    /// # Safety
    /// Every piece is writable memory that nobody else looks at.
    pub unsafe fn receive(&self, pieces: &mut [IoVec]) -> io::Result<Option<usize>> {
        if let [piece] = pieces {
            // SAFETY: as the caller vouches.
            let room = unsafe { std::slice::from_raw_parts_mut(piece.base.cast::<u8>(), piece.len) };
            return moved(rustix::net::recv(&self.fd, room, RecvFlags::empty()).map(|(count, _)| count));
        }
        let count = pieces.len().min(MAX_PIECES);
        // SAFETY: an `IoVec` is laid out as an `IoSliceMut` is; the caller vouches for the pieces.
        let slices =
            unsafe { std::slice::from_raw_parts_mut(pieces.as_mut_ptr().cast::<IoSliceMut<'_>>(), count) };
        moved(rustix::io::readv(&self.fd, slices))
    }

    fn set(&self, options: &SocketOptions) -> io::Result<()> {
        // Responses are batched here, so the kernel has nothing to wait for.
        sockopt::set_tcp_nodelay(&self.fd, true)?;
        sockopt::set_socket_keepalive(&self.fd, true)?;
        sockopt::set_tcp_keepidle(&self.fd, KEEPALIVE_IDLE)?;
        sockopt::set_tcp_keepintvl(&self.fd, KEEPALIVE_INTERVAL)?;
        sockopt::set_tcp_keepcnt(&self.fd, KEEPALIVE_COUNT)?;
        if options.priority != 0 {
            self.set_number(libc::SOL_SOCKET, libc::SO_PRIORITY, options.priority)?;
        }
        if options.user_timeout_ms != 0 {
            sockopt::set_tcp_user_timeout(&self.fd, options.user_timeout_ms)?;
        }
        for (bytes, forced, plain) in [
            (options.send_buffer_bytes, libc::SO_SNDBUFFORCE, libc::SO_SNDBUF),
            (options.receive_buffer_bytes, libc::SO_RCVBUFFORCE, libc::SO_RCVBUF),
        ] {
            // The kernel doubles the number for its own bookkeeping. Without the right to pass the system's
            // limit, it is kept to that.
            let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
            if bytes != 0 && self.set_number(libc::SOL_SOCKET, forced, bytes).is_err() {
                self.set_number(libc::SOL_SOCKET, plain, bytes)?;
            }
        }
        Ok(())
    }

    fn set_number(&self, level: i32, option: i32, value: u32) -> io::Result<()> {
        let value = i32::try_from(value).unwrap_or(i32::MAX);
        let len = size_of::<i32>() as libc::socklen_t;
        // SAFETY: the value is an `int` that lives until the call returns.
        let code =
            unsafe { libc::setsockopt(self.fd.as_raw_fd(), level, option, (&raw const value).cast(), len) };
        if code == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// An internet address as this crate writes them; other families have none.
pub fn address_of(address: Option<rustix::net::SocketAddrAny>) -> io::Result<SocketAddr> {
    let address = address.ok_or(Errno::NOTCONN)?;
    SocketAddr::try_from(address).map_err(|_| Errno::AFNOSUPPORT.into())
}

/// What a system call that moves bytes returned.
fn moved(result: rustix::io::Result<usize>) -> io::Result<Option<usize>> {
    match result {
        Ok(count) => Ok(Some(count)),
        // An interrupted call is simply repeated later: readiness is still there.
        Err(Errno::WOULDBLOCK | Errno::INTR) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Most pieces one call takes.
pub const MAX_PIECES: usize = 1024;

/// A peer that vanished without a word is found by the kernel after 30 s, also when nothing is due.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(15);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEPALIVE_COUNT: u32 = 3;

// An `IoSlice` is laid out as `iovec`, by its documentation.
const _: () = assert!(size_of::<IoVec>() == size_of::<libc::iovec>());

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr, TcpListener};

    use super::*;

    fn piece(bytes: &[u8]) -> IoVec {
        IoVec { base: bytes.as_ptr().cast_mut().cast(), len: bytes.len() }
    }

    #[track_caller]
    fn connects_and_moves_bytes(address: SocketAddr) {
        let listener = TcpListener::bind(address).expect("loopback");
        let options = SocketOptions { priority: 3, send_buffer_bytes: 1 << 20, ..SocketOptions::DEFAULT };
        let address = listener.local_addr().expect("bound");
        let one = Socket::connect(&address, None, &options).expect("starts");
        let (other, peer) = listener.accept().expect("comes");
        other.set_nonblocking(true).expect("open");
        let other = Socket::accepted(other.into(), &options).expect("open");
        one.connected().expect("done");
        assert_eq!((one.local().expect("bound"), one.peer().expect("connected")), (peer, address));
        let room = [0_u8; 16];
        // SAFETY: the arrays live, and only this thread looks at them.
        unsafe {
            assert_eq!(other.receive(&mut [piece(&room)]).expect("open"), None);
            let sent = one.send(&[piece(b"ten"), piece(b"on")]).expect("open");
            assert_eq!(sent, Some(5));
            let received = other.receive(&mut [piece(&room[..2]), piece(&room[2..])]).expect("open");
            assert_eq!(received, Some(5));
            drop(one);
            assert_eq!(other.receive(&mut [piece(&room)]).expect("open"), Some(0));
        }
    }

    #[test]
    fn both_families_move_bytes_in_pieces() {
        connects_and_moves_bytes((Ipv4Addr::LOCALHOST, 0).into());
        if TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_ok() {
            connects_and_moves_bytes((Ipv6Addr::LOCALHOST, 0).into());
        }
    }

    #[test]
    fn a_refused_connection_says_so() {
        let free =
            TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("loopback").local_addr().expect("bound");
        let refused = Socket::connect(&free, None, &SocketOptions::DEFAULT)
            .and_then(|socket| socket.connected())
            .expect_err("nobody listens");
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
    }
}
