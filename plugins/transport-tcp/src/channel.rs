//! A connection's bytes, plain or secured: the same calls for both.
//!
//! A secured channel begins with a handshake, a plain one is ready at once. The
//! gate of the feature `tls` is here: without it there is no secured channel.
// UNSAFETY: hands on the obligations of the socket's calls.

use std::io;

use tenon_sdk::IoVec;

use crate::socket::Socket;
#[cfg(feature = "tls")]
use crate::tls::SecureChannel;

/// What a connection sends and receives through.
pub enum Channel {
    /// The socket itself.
    Plain(Socket),
    /// TLS over the socket.
    #[cfg(feature = "tls")]
    Secure(SecureChannel),
}

impl Channel {
    /// A socket that is to be secured with a key, as the end that connects.
    pub fn secured(socket: Socket, identity: &str, key: &[u8]) -> io::Result<Self> {
        #[cfg(feature = "tls")]
        return SecureChannel::connect(socket, identity, key).map(Self::Secure);
        #[cfg(not(feature = "tls"))]
        {
            let _ = (socket, identity, key);
            Err(io::ErrorKind::Unsupported.into())
        }
    }

    /// The socket below.
    pub fn socket(&self) -> &Socket {
        match self {
            Self::Plain(socket) => socket,
            #[cfg(feature = "tls")]
            Self::Secure(channel) => channel.socket(),
        }
    }

    /// Goes on with the handshake; true when bytes can be moved.
    pub fn handshake(&self) -> io::Result<bool> {
        match self {
            Self::Plain(_) => Ok(true),
            #[cfg(feature = "tls")]
            Self::Secure(channel) => channel.handshake(),
        }
    }

    /// Whether it is secured.
    pub fn is_secure(&self) -> bool {
        match self {
            Self::Plain(_) => false,
            #[cfg(feature = "tls")]
            Self::Secure(_) => true,
        }
    }

    /// The identity whose key secures it.
    pub fn identity(&self) -> Option<String> {
        match self {
            Self::Plain(_) => None,
            #[cfg(feature = "tls")]
            Self::Secure(channel) => channel.identity(),
        }
    }

    /// As [`Socket::send`].
    ///
    /// # Safety
    /// Every piece is readable memory.
    #[inline]
    pub unsafe fn send(&self, pieces: &[IoVec]) -> io::Result<Option<usize>> {
        match self {
            // SAFETY: as the caller vouches.
            Self::Plain(socket) => unsafe { socket.send(pieces) },
            #[cfg(feature = "tls")]
            // SAFETY: as the caller vouches.
            Self::Secure(channel) => unsafe { channel.send(pieces) },
        }
    }

    /// As [`Socket::receive`].
    ///
    /// # Safety
    /// Every piece is writable memory that nobody else looks at.
    #[inline]
    pub unsafe fn receive(&self, pieces: &mut [IoVec]) -> io::Result<Option<usize>> {
        match self {
            // SAFETY: as the caller vouches.
            Self::Plain(socket) => unsafe { socket.receive(pieces) },
            #[cfg(feature = "tls")]
            // SAFETY: as the caller vouches.
            Self::Secure(channel) => unsafe { channel.receive(pieces) },
        }
    }
}
