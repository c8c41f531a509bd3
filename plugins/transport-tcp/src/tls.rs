//! Secure channels: TLS 1.3 with a pre-shared key, at either end.
//!
//! The only file that knows OpenSSL, and only built with the feature `tls`. A
//! client names an identity, and both ends know its key; nothing else is
//! accepted, no certificate, no ticket, no early data. Where the kernel can
//! encrypt, OpenSSL lets it. NVMe/TCP 1.0 §3.6.
// UNSAFETY: OpenSSL is a C library; one of its callbacks gets our pointer back.

use std::cell::{Cell, RefCell};
use std::ffi::{CStr, CString, c_char, c_int, c_long, c_uchar, c_uint, c_void};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::ptr::{NonNull, null_mut};
use std::sync::OnceLock;

use openssl_sys as ffi;
use tenon_sdk::IoVec;

use crate::socket::Socket;

/// Finds the key of an identity: writes it and returns its length.
pub type KeyLookup = dyn Fn(&str, &mut [u8]) -> Option<usize>;

/// A socket whose bytes are encrypted.
pub struct SecureChannel {
    ssl: NonNull<ffi::SSL>,
    socket: Socket,
    /// Alive as long as `ssl`, whose callback uses it.
    end: Box<End>,
    /// A record's worth of pieces, in one piece.
    record: RefCell<Box<[u8]>>,
    /// The peer has sent its last byte.
    is_over: Cell<bool>,
}

/// Which end of the channel this is, and what the callback of its handshake works with.
enum End {
    Target {
        lookup: Box<KeyLookup>,
        /// The identity whose key was found.
        found: RefCell<Option<String>>,
    },
    Initiator {
        identity: CString,
        key: Secret,
    },
}

/// A key that is wiped when dropped.
struct Secret(Vec<u8>);

/// One context serves all channels.
struct Context(NonNull<ffi::SSL_CTX>);

// SAFETY: a context that is no longer changed may be used by any thread.
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

/// OpenSSL's callback by which a client names its pre-shared key of TLS 1.3.
type UseSession = unsafe extern "C" fn(
    *mut ffi::SSL,
    *const c_void,
    *mut *const c_uchar,
    *mut usize,
    *mut *mut ffi::SSL_SESSION,
) -> c_int;

/// OpenSSL's callback by which a server finds it.
type FindSession =
    unsafe extern "C" fn(*mut ffi::SSL, *const c_uchar, usize, *mut *mut ffi::SSL_SESSION) -> c_int;

/// OpenSSL's callback for a hello of which nothing has been used yet.
type OnHello = unsafe extern "C" fn(*mut ffi::SSL, *mut c_int, *mut c_void) -> c_int;

// What `openssl-sys` does not declare of the library that it links.
unsafe extern "C" {
    fn SSL_CTX_set_client_hello_cb(ctx: *mut ffi::SSL_CTX, callback: OnHello, argument: *mut c_void);
    fn SSL_client_hello_get0_ext(
        ssl: *mut ffi::SSL,
        kind: c_uint,
        bytes: *mut *const c_uchar,
        len: *mut usize,
    ) -> c_int;
    fn SSL_CTX_set_psk_find_session_callback(ctx: *mut ffi::SSL_CTX, callback: FindSession);
    fn SSL_CTX_set_psk_use_session_callback(ctx: *mut ffi::SSL_CTX, callback: UseSession);
    fn SSL_set_fd(ssl: *mut ffi::SSL, fd: c_int) -> c_int;
    fn SSL_CIPHER_find(ssl: *mut ffi::SSL, id: *const c_uchar) -> *const ffi::SSL_CIPHER;
    fn SSL_SESSION_new() -> *mut ffi::SSL_SESSION;
    fn SSL_SESSION_set1_master_key(session: *mut ffi::SSL_SESSION, key: *const c_uchar, len: usize) -> c_int;
    fn SSL_SESSION_set_cipher(session: *mut ffi::SSL_SESSION, cipher: *const ffi::SSL_CIPHER) -> c_int;
    fn SSL_SESSION_set_protocol_version(session: *mut ffi::SSL_SESSION, version: c_int) -> c_int;
    fn SSL_SESSION_get0_cipher(session: *const ffi::SSL_SESSION) -> *const ffi::SSL_CIPHER;
    fn SSL_CIPHER_get_handshake_digest(cipher: *const ffi::SSL_CIPHER) -> *const c_void;
    fn ERR_error_string_n(code: std::ffi::c_ulong, text: *mut c_char, len: usize);
}

/// What one call of OpenSSL came to.
enum Step {
    Moved(usize),
    Blocked,
    Over,
}

impl SecureChannel {
    /// Makes a channel of an accepted socket, which begins with a handshake.
    pub fn accept(socket: Socket, lookup: Box<KeyLookup>) -> io::Result<Self> {
        static CONTEXT: OnceLock<Option<Context>> = OnceLock::new();
        let end = End::Target { lookup, found: RefCell::new(None) };
        // SAFETY: a plain call.
        let make = || make_context(unsafe { ffi::TLS_server_method() });
        Self::new(socket, CONTEXT.get_or_init(make).as_ref(), end)
    }

    /// Makes a channel of a connected socket, which begins with a handshake by the key of that identity.
    pub fn connect(socket: Socket, identity: &str, key: &[u8]) -> io::Result<Self> {
        static CONTEXT: OnceLock<Option<Context>> = OnceLock::new();
        let identity = CString::new(identity).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        let end = End::Initiator { identity, key: Secret(key.to_vec()) };
        // SAFETY: a plain call.
        let make = || make_context(unsafe { ffi::TLS_client_method() });
        let channel = Self::new(socket, CONTEXT.get_or_init(make).as_ref(), end)?;
        // Only the suite of the key: a server that prefers the other could not use the key.
        let suite = suite_of(channel.identity().as_deref().unwrap_or_default()).1;
        // SAFETY: `ssl` is alive and begins with a handshake later; the name is a constant.
        let is_set = unsafe { ffi::SSL_set_ciphersuites(channel.ssl.as_ptr(), suite.as_ptr()) };
        if is_set == 1 { Ok(channel) } else { Err(last_error()) }
    }

    fn new(socket: Socket, context: Option<&'static Context>, end: End) -> io::Result<Self> {
        let context = context.ok_or_else(last_error)?;
        // SAFETY: the context lives as long as the process.
        let ssl = NonNull::new(unsafe { ffi::SSL_new(context.0.as_ptr()) }).ok_or_else(last_error)?;
        let record = RefCell::new(vec![0; RECORD_BYTES].into());
        let channel = Self { ssl, socket, end: Box::new(end), record, is_over: Cell::new(false) };
        let end = (&raw const *channel.end).cast_mut().cast::<c_void>();
        // SAFETY: the descriptor and the box live as long as `ssl`, which is freed first.
        let is_set = unsafe {
            ffi::SSL_set_ex_data(ssl.as_ptr(), 0, end) == 1
                && SSL_set_fd(ssl.as_ptr(), channel.socket.as_fd().as_raw_fd()) == 1
        };
        if is_set { Ok(channel) } else { Err(last_error()) }
    }

    /// Goes on with the handshake; true when it is done.
    pub fn handshake(&self) -> io::Result<bool> {
        // SAFETY: `ssl` is alive, and this is its thread.
        let result = unsafe {
            ffi::ERR_clear_error();
            match *self.end {
                End::Target { .. } => ffi::SSL_accept(self.ssl.as_ptr()),
                End::Initiator { .. } => ffi::SSL_connect(self.ssl.as_ptr()),
            }
        };
        if result == 1 {
            return Ok(true);
        }
        match self.step(result)? {
            Step::Over => Err(io::ErrorKind::UnexpectedEof.into()),
            Step::Moved(_) | Step::Blocked => Ok(false),
        }
    }

    /// The identity whose key secures the channel.
    pub fn identity(&self) -> Option<String> {
        match &*self.end {
            End::Target { found, .. } => found.borrow().clone(),
            End::Initiator { identity, .. } => identity.to_str().ok().map(str::to_owned),
        }
    }

    /// The socket below.
    pub fn socket(&self) -> &Socket {
        &self.socket
    }

    /// As [`Socket::send`].
    ///
    /// # Safety
    /// Every piece is readable memory.
    pub unsafe fn send(&self, pieces: &[IoVec]) -> io::Result<Option<usize>> {
        let mut record = self.record.borrow_mut();
        let (mut sent, mut piece, mut skip) = (0, 0, 0);
        // Until all is sent or there is no room: less would tell the caller that there is none.
        loop {
            let mut len = 0;
            while len < record.len() && piece < pieces.len() {
                let own = &pieces[piece];
                let count = (own.len - skip).min(record.len() - len);
                // SAFETY: the caller vouches for the piece; both ranges are inside theirs and do not overlap.
                unsafe {
                    let from = own.base.cast::<u8>().add(skip);
                    record[len..].as_mut_ptr().copy_from_nonoverlapping(from, count);
                }
                (len, skip) = (len + count, skip + count);
                if skip == own.len {
                    (piece, skip) = (piece + 1, 0);
                }
            }
            if len == 0 {
                break;
            }
            match self.write(&record[..len])? {
                // What was not taken is presented again, by the next call of this function.
                Step::Moved(count) if count < len => return Ok(Some(sent + count)),
                Step::Moved(count) => sent += count,
                Step::Blocked => break,
                Step::Over => return Err(io::ErrorKind::BrokenPipe.into()),
            }
        }
        Ok((sent > 0).then_some(sent))
    }

    /// As [`Socket::receive`].
    ///
    /// # Safety
    /// Every piece is writable memory that nobody else looks at.
    pub unsafe fn receive(&self, pieces: &[IoVec]) -> io::Result<Option<usize>> {
        let mut received = 0;
        for piece in pieces {
            let mut at = 0;
            while at < piece.len && !self.is_over.get() {
                // SAFETY: the range is inside the piece, for which the caller vouches.
                let step = unsafe { self.read(piece.base.cast::<u8>().add(at), piece.len - at)? };
                match step {
                    Step::Moved(count) => at += count,
                    Step::Over => self.is_over.set(true),
                    Step::Blocked => return Ok((received + at > 0).then_some(received + at)),
                }
            }
            received += at;
        }
        Ok(Some(received))
    }

    fn write(&self, bytes: &[u8]) -> io::Result<Step> {
        let len = c_int::try_from(bytes.len()).unwrap_or(c_int::MAX);
        // SAFETY: `ssl` is alive, this is its thread, and the bytes live until the call returns.
        let result = unsafe {
            ffi::ERR_clear_error();
            ffi::SSL_write(self.ssl.as_ptr(), bytes.as_ptr().cast(), len)
        };
        self.step(result)
    }

    /// # Safety
    /// `len` bytes from `base` on are writable.
    unsafe fn read(&self, base: *mut u8, len: usize) -> io::Result<Step> {
        let len = c_int::try_from(len).unwrap_or(c_int::MAX);
        // SAFETY: `ssl` is alive, this is its thread, and the caller vouches for the memory.
        let result = unsafe {
            ffi::ERR_clear_error();
            ffi::SSL_read(self.ssl.as_ptr(), base.cast(), len)
        };
        self.step(result)
    }

    fn step(&self, result: c_int) -> io::Result<Step> {
        if let Ok(count @ 1..) = usize::try_from(result) {
            return Ok(Step::Moved(count));
        }
        let system = io::Error::last_os_error();
        // SAFETY: `ssl` is alive; nothing was called since.
        match unsafe { ffi::SSL_get_error(self.ssl.as_ptr(), result) } {
            ffi::SSL_ERROR_WANT_READ | ffi::SSL_ERROR_WANT_WRITE => Ok(Step::Blocked),
            ffi::SSL_ERROR_ZERO_RETURN => Ok(Step::Over),
            ffi::SSL_ERROR_SYSCALL if result == 0 => Ok(Step::Over),
            ffi::SSL_ERROR_SYSCALL => Err(system),
            _ => Err(last_error()),
        }
    }
}

impl Drop for SecureChannel {
    fn drop(&mut self) {
        // SAFETY: made by `new` and freed once; the descriptor is the socket's, which closes it.
        unsafe { ffi::SSL_free(self.ssl.as_ptr()) };
    }
}

impl Drop for Secret {
    fn drop(&mut self) {
        // The compiler may not drop the writes.
        std::hint::black_box(&mut self.0).fill(0);
    }
}

/// The context of one role.
fn make_context(method: *const ffi::SSL_METHOD) -> Option<Context> {
    // SAFETY: plain calls on a context that only this thread has yet.
    unsafe {
        let context = NonNull::new(ffi::SSL_CTX_new(method))?;
        let raw = context.as_ptr();
        let set_minimum = ffi::SSL_CTX_ctrl(
            raw,
            ffi::SSL_CTRL_SET_MIN_PROTO_VERSION,
            c_long::from(ffi::TLS1_3_VERSION),
            null_mut(),
        );
        let is_set = set_minimum == 1
            && ffi::SSL_CTX_set_ciphersuites(raw, CIPHERS.as_ptr()) == 1
            && ffi::SSL_CTX_set_num_tickets(raw, 0) == 1;
        ffi::SSL_CTX_set_options(raw, ENABLE_KERNEL_TLS);
        ffi::SSL_CTX_set_mode(
            raw,
            ffi::SSL_MODE_ENABLE_PARTIAL_WRITE | ffi::SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER,
        );
        SSL_CTX_set_client_hello_cb(raw, choose_suite, null_mut());
        SSL_CTX_set_psk_find_session_callback(raw, find_session);
        SSL_CTX_set_psk_use_session_callback(raw, use_session);
        if !is_set {
            ffi::SSL_CTX_free(raw);
            return None;
        }
        Some(Context(context))
    }
}

/// Leaves a handshake the cipher suite of the first identity with a key, before OpenSSL chooses one: it would take
/// any that both ends have, and then has no use for a key of another hash.
unsafe extern "C" fn choose_suite(ssl: *mut ffi::SSL, _alert: *mut c_int, _argument: *mut c_void) -> c_int {
    let (mut bytes, mut len) = (std::ptr::null(), 0);
    // SAFETY: OpenSSL vouches for the hello during the call; `new` set the box, which outlives `ssl`.
    let (end, hello) = unsafe {
        if SSL_client_hello_get0_ext(ssl, PRE_SHARED_KEY, &raw mut bytes, &raw mut len) != 1 {
            return HELLO_IS_GOOD;
        }
        let end = ffi::SSL_get_ex_data(ssl, 0).cast::<End>();
        (&*end, std::slice::from_raw_parts(bytes, len))
    };
    let End::Target { lookup, .. } = end else { return HELLO_IS_GOOD };
    let mut key = [0; MAX_KEY_BYTES];
    let is_known = |identity: &&str| lookup(identity, &mut key).is_some();
    if let Some(identity) = offered(hello).find(is_known) {
        // SAFETY: `ssl` is in a handshake, and the name is static.
        unsafe { ffi::SSL_set_ciphersuites(ssl, suite_of(identity).1.as_ptr()) };
    }
    std::hint::black_box(&mut key).fill(0);
    HELLO_IS_GOOD
}

/// Identities of a hello's extension `pre_shared_key`: a list of a text and an age each. RFC 8446 §4.2.11.
fn offered(extension: &[u8]) -> impl Iterator<Item = &str> {
    let (len, rest) = extension.split_first_chunk().unwrap_or((&[0; 2], &[]));
    let mut list = rest.get(..u16::from_be_bytes(*len).into()).unwrap_or_default();
    std::iter::from_fn(move || {
        let (len, rest) = list.split_first_chunk()?;
        let (identity, rest) = rest.split_at_checked(u16::from_be_bytes(*len).into())?;
        list = rest.get(AGE_BYTES..)?;
        Some(std::str::from_utf8(identity).unwrap_or_default())
    })
    .take(MAX_OFFERED)
}

/// The cipher suite of an identity: on the wire, and OpenSSL's name of it.
fn suite_of(identity: &str) -> ([u8; 2], &'static CStr) {
    if identity.get(6..8) == Some("02") {
        ([0x13, 0x02], c"TLS_AES_256_GCM_SHA384")
    } else {
        ([0x13, 0x01], c"TLS_AES_128_GCM_SHA256")
    }
}

/// Gives a handshake the key of the identity that its client names. Without one it goes on without, and fails
/// because there is no certificate.
unsafe extern "C" fn find_session(
    ssl: *mut ffi::SSL,
    identity: *const c_uchar,
    identity_len: usize,
    session: *mut *mut ffi::SSL_SESSION,
) -> c_int {
    // SAFETY: `new` set the box, which outlives `ssl`; OpenSSL vouches for the identity during the call, and for
    // the place of the session.
    let (end, identity) = unsafe {
        *session = null_mut();
        let end = ffi::SSL_get_ex_data(ssl, 0).cast::<End>();
        (&*end, std::slice::from_raw_parts(identity, identity_len))
    };
    let End::Target { lookup, found } = end else { return 0 };
    let Ok(identity) = std::str::from_utf8(identity) else { return 1 };
    let mut key = [0; MAX_KEY_BYTES];
    let known = lookup(identity, &mut key).and_then(|len| key.get(..len));
    if let Some(key) = known {
        // SAFETY: as above.
        unsafe { *session = session_of(ssl, identity, key) };
        *found.borrow_mut() = Some(identity.to_owned());
    }
    // Not left on the stack; the compiler may not drop the writes.
    std::hint::black_box(&mut key).fill(0);
    1
}

/// Gives a handshake the identity and key by which this end connects.
unsafe extern "C" fn use_session(
    ssl: *mut ffi::SSL,
    digest: *const c_void,
    identity: *mut *const c_uchar,
    identity_len: *mut usize,
    session: *mut *mut ffi::SSL_SESSION,
) -> c_int {
    // SAFETY: `new` set the box, which outlives `ssl`; OpenSSL vouches for the three places during the call, and
    // reads the identity no longer than `ssl` lives. It takes over the session.
    unsafe {
        (*session, *identity, *identity_len) = (null_mut(), std::ptr::null(), 0);
        let End::Initiator { identity: own, key } = &*ffi::SSL_get_ex_data(ssl, 0).cast::<End>() else {
            return 0;
        };
        let Ok(text) = own.to_str() else { return 0 };
        let made = session_of(ssl, text, &key.0);
        if made.is_null() {
            return 0;
        }
        // After a retry with a digest of the server's choice only a key of that digest is of use.
        let own_digest = SSL_CIPHER_get_handshake_digest(SSL_SESSION_get0_cipher(made));
        if !digest.is_null() && digest != own_digest {
            ffi::SSL_SESSION_free(made);
            return 1;
        }
        (*session, *identity, *identity_len) = (made, own.as_ptr().cast(), own.as_bytes().len());
    }
    1
}

/// A session with this key, or null.
///
/// # Safety
/// `ssl` is in a handshake.
unsafe fn session_of(ssl: *mut ffi::SSL, identity: &str, key: &[u8]) -> *mut ffi::SSL_SESSION {
    let suite = suite_of(identity).0;
    // SAFETY: plain calls on a session that is ours until it is returned.
    unsafe {
        let session = SSL_SESSION_new();
        let cipher = SSL_CIPHER_find(ssl, suite.as_ptr());
        if session.is_null() || cipher.is_null() {
            ffi::SSL_SESSION_free(session);
            return null_mut();
        }
        let is_set = SSL_SESSION_set1_master_key(session, key.as_ptr(), key.len()) == 1
            && SSL_SESSION_set_cipher(session, cipher) == 1
            && SSL_SESSION_set_protocol_version(session, ffi::TLS1_3_VERSION) == 1;
        if !is_set {
            ffi::SSL_SESSION_free(session);
            return null_mut();
        }
        session
    }
}

/// What OpenSSL says went wrong last.
fn last_error() -> io::Error {
    let mut text = [0_u8; 256];
    // SAFETY: the library writes a text with its end into the array.
    unsafe { ERR_error_string_n(ffi::ERR_get_error(), text.as_mut_ptr().cast(), text.len()) };
    let end = text.iter().position(|byte| *byte == 0).unwrap_or(text.len());
    io::Error::other(String::from_utf8_lossy(&text[..end]).into_owned())
}

const CIPHERS: &CStr = c"TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384";
/// Number of the extension.
const PRE_SHARED_KEY: c_uint = 41;
/// `SSL_CLIENT_HELLO_SUCCESS`.
const HELLO_IS_GOOD: c_int = 1;
/// Behind each identity.
const AGE_BYTES: usize = 4;
/// A client has a key or two; more are not looked up.
const MAX_OFFERED: usize = 8;
/// `SSL_OP_ENABLE_KTLS`.
const ENABLE_KERNEL_TLS: u64 = 1 << 3;
/// Most plain bytes of one record.
const RECORD_BYTES: usize = 16 << 10;
/// The largest key: a SHA-384 value.
const MAX_KEY_BYTES: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(extension: &[u8], expected: &[&str]) {
        assert_eq!(offered(extension).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn offered_identities_are_read_as_far_as_they_are_whole() {
        check(&[], &[]);
        check(&[0], &[]);
        check(&[0, 0], &[]);
        check(&[0, 9, 0, 3, b'o', b'n', b'e', 0, 0, 0, 0, 0xff], &["one"]);
        check(&[0, 16, 0, 3, b'o', b'n', b'e', 0, 0, 0, 0, 0, 1, b'x', 9, 9, 9, 9], &["one", "x"]);
        // Lengths beyond the end, of the list and of an identity.
        check(&[0, 99, 0, 3, b'o', b'n', b'e', 0, 0, 0, 0], &[]);
        check(&[0, 9, 0, 99, b'o', b'n', b'e', 0, 0, 0, 0], &[]);
        check(&[0, 7, 0, 3, b'o', b'n', b'e', 0, 0], &[]);
    }

    #[test]
    fn so_many_identities_are_looked_at_and_no_more() {
        let one = [0, 1, b'x', 0, 0, 0, 0];
        let mut extension = (u16::try_from(100 * one.len()).unwrap()).to_be_bytes().to_vec();
        extension.extend(one.repeat(100));
        assert_eq!(offered(&extension).count(), MAX_OFFERED);
    }
}
