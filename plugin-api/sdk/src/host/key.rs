//! Keys that the operator has named: a [`HeldKey`] of the host's keyring, and
//! the key of a secured channel. Their secrets are wiped when dropped and never
//! shown; what they mean is the module's matter.
// UNSAFETY: calls the functions of the host's keyring.

use std::fmt;
use std::mem::offset_of;

use tenon_abi::{KeyringTableV1, QUERY_KEYRING, Str, reaches};
use zeroize::Zeroizing;

use crate::{Error, Host, errno};

/// A named key, which the operator cannot remove meanwhile. On the control thread.
pub struct HeldKey {
    host: Host,
    name: String,
    text: Zeroizing<String>,
}

/// TLS pre-shared key of a channel, and the identity by which the peer finds it.
#[derive(Clone, PartialEq, Eq)]
pub struct ChannelKey {
    identity: String,
    secret: Zeroizing<Vec<u8>>,
}

impl Host {
    /// The key of that name, held until it is dropped. Control thread.
    ///
    /// # Errors
    /// If there is no key of that name, or the host has no keyring.
    pub fn named_key(&self, name: &str) -> Result<HeldKey, Error> {
        let Some(table) = self.keyring() else {
            return Err(Error::not_supported("this host has no keyring").object(name));
        };
        let mut bytes = Zeroizing::new(vec![0; MAX_TEXT_BYTES]);
        // SAFETY: the name is borrowed for the call, and the room is as large as told.
        let code = unsafe { (table.acquire)(self.me, Str::new(name), bytes.as_mut_ptr(), bytes.len()) };
        let len = usize::try_from(code).map_err(|_| {
            let reason =
                if code == errno::ENOENT { "there is no key of this name" } else { "the key is not given" };
            Error::new(code, reason).object(name)
        })?;
        let held = |text| HeldKey { host: *self, name: name.to_owned(), text: Zeroizing::new(text) };
        let text = bytes.get(..len).and_then(|text| std::str::from_utf8(text).ok());
        match text {
            Some(text) => Ok(held(text.to_owned())),
            None => {
                drop(held(String::new()));
                Err(Error::invalid("the key is no text").object(name))
            }
        }
    }

    fn keyring(&self) -> Option<&'static KeyringTableV1> {
        let table = self.query(QUERY_KEYRING, 1).cast::<KeyringTableV1>();
        // SAFETY: what the host answers to this query is its table, for the life of the process.
        unsafe { table.as_ref() }.filter(|table| reaches(table.size, END_OF_TABLE))
    }
}

impl HeldKey {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its text form.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }
}

impl Drop for HeldKey {
    fn drop(&mut self) {
        if let Some(table) = self.host.keyring() {
            // SAFETY: acquired once, so released once; the name is borrowed for the call.
            unsafe { (table.release)(self.host.me, Str::new(&self.name)) };
        }
    }
}

impl fmt::Debug for HeldKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HeldKey").field("name", &self.name).finish_non_exhaustive()
    }
}

impl ChannelKey {
    /// A key of a channel.
    #[must_use]
    pub fn new(identity: String, secret: Zeroizing<Vec<u8>>) -> Self {
        Self { identity, secret }
    }

    /// What the peer knows it by.
    #[must_use]
    pub fn identity(&self) -> &str {
        &self.identity
    }

    pub(crate) fn secret(&self) -> &[u8] {
        &self.secret
    }
}

impl fmt::Debug for ChannelKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChannelKey").field("identity", &self.identity).finish_non_exhaustive()
    }
}

/// The longest text of a key is far shorter.
const MAX_TEXT_BYTES: usize = 512;
/// Bytes of a table that has both functions.
const END_OF_TABLE: usize = offset_of!(KeyringTableV1, release) + size_of::<usize>();
