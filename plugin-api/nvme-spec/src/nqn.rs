//! NVMe Qualified Names and host identifiers. Base 2.0c §4.5.
//!
//! Two strictnesses: [`NqnField::as_str`] takes from a peer whatever is text
//! of a legal length, since hosts in the field use names that do not follow
//! the grammar; [`validate`] holds names that are configured to the grammar.

use core::fmt;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Longest NQN in bytes, without the terminating NUL. Base 2.0c §4.5.
pub const NQN_MAX_LEN: usize = 223;

/// Size of an NQN field on the wire.
pub const NQN_FIELD_SIZE: usize = 256;

/// The well-known NQN of discovery services. Base 2.0c §4.5.
pub const DISCOVERY_NQN: &str = "nqn.2014-08.org.nvmexpress.discovery";

/// What an NQN made from a UUID begins with. Base 2.0c §4.5.
pub const UUID_NQN_PREFIX: &str = "nqn.2014-08.org.nvmexpress:uuid:";

/// An NQN as it stands in Connect's data, Identify Controller and discovery entries: UTF-8, NUL filled.
#[derive(Clone, Copy, PartialEq, Eq, Hash, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(transparent)]
pub struct NqnField(pub [u8; NQN_FIELD_SIZE]);

assert_layout!(NqnField, NQN_FIELD_SIZE);

impl NqnField {
    /// The field of a name, which need not follow the grammar.
    ///
    /// # Errors
    /// If the name is empty, longer than [`NQN_MAX_LEN`] or holds a NUL.
    pub fn new(nqn: &str) -> Result<Self, NqnError> {
        check_length(nqn.as_bytes())?;
        let mut field = [0; NQN_FIELD_SIZE];
        for (to, from) in field.iter_mut().zip(nqn.bytes()) {
            if from == 0 {
                return Err(NqnError::Nul);
            }
            *to = from;
        }
        Ok(Self(field))
    }

    /// The name, not held to the grammar: see [`validate`].
    ///
    /// # Errors
    /// If the field is empty, not NUL-terminated, longer than [`NQN_MAX_LEN`] or not UTF-8.
    pub fn as_str(&self) -> Result<&str, NqnError> {
        let nul = self.0.iter().position(|byte| *byte == 0).ok_or(NqnError::NotTerminated)?;
        let name = self.0.get(..nul).unwrap_or_default();
        check_length(name)?;
        core::str::from_utf8(name).map_err(|_| NqnError::NotUtf8)
    }
}

impl fmt::Debug for NqnField {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.as_str() {
            Ok(nqn) => write!(f, "{nqn:?}"),
            Err(error) => write!(f, "<{error}>"),
        }
    }
}

/// Why a name is no NQN.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NqnError {
    /// Empty.
    Empty,
    /// Longer than [`NQN_MAX_LEN`].
    TooLong {
        /// Its length in bytes.
        len: usize,
    },
    /// A NUL inside the name.
    Nul,
    /// No NUL in the wire field.
    NotTerminated,
    /// Not UTF-8.
    NotUtf8,
    /// Does not begin with "nqn.".
    Prefix,
    /// No year and month, "yyyy-mm.", behind the prefix.
    Date,
    /// No valid reverse domain name behind the date.
    Domain,
    /// The UUID form with something that is no UUID.
    Uuid,
}

impl fmt::Display for NqnError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("nqn is empty"),
            Self::TooLong { len } => write!(f, "nqn is {len} bytes long, at most {NQN_MAX_LEN} are allowed"),
            Self::Nul => f.write_str("nqn holds a nul byte"),
            Self::NotTerminated => f.write_str("nqn field is not nul-terminated"),
            Self::NotUtf8 => f.write_str("nqn is not utf-8"),
            Self::Prefix => f.write_str("nqn does not begin with \"nqn.\""),
            Self::Date => f.write_str("nqn has no date \"yyyy-mm.\" behind \"nqn.\""),
            Self::Domain => f.write_str("nqn has no valid reverse domain name behind its date"),
            Self::Uuid => f.write_str("nqn has no valid uuid behind \"uuid:\""),
        }
    }
}

impl core::error::Error for NqnError {}

/// Holds a name to the grammar of Base 2.0c §4.5: `nqn.yyyy-mm.reverse.domain[:anything]`, or the UUID form.
///
/// A name without ":anything" is accepted: the well-known discovery NQN is one.
///
/// # Errors
/// Tells the first part that is wrong.
pub fn validate(nqn: &str) -> Result<(), NqnError> {
    check_length(nqn.as_bytes())?;
    if nqn.bytes().any(|byte| byte == 0) {
        return Err(NqnError::Nul);
    }
    if let Some(uuid) = nqn.strip_prefix(UUID_NQN_PREFIX) {
        return if is_uuid(uuid) { Ok(()) } else { Err(NqnError::Uuid) };
    }
    let after_prefix = nqn.strip_prefix("nqn.").ok_or(NqnError::Prefix)?;
    let domain_and_name = strip_date(after_prefix).ok_or(NqnError::Date)?;
    let domain = domain_and_name.split_once(':').map_or(domain_and_name, |(domain, _)| domain);
    if domain.split('.').all(is_domain_label) { Ok(()) } else { Err(NqnError::Domain) }
}

/// Whether the name is the well-known discovery NQN.
#[must_use]
pub fn is_discovery(nqn: &str) -> bool {
    nqn == DISCOVERY_NQN
}

/// A 128-bit host identifier, a UUID in its network byte order. Base 2.0c §5.27.1, §6.3.
#[derive(Clone, Copy, PartialEq, Eq, Hash, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(transparent)]
pub struct HostId(pub [u8; 16]);

assert_layout!(HostId, 16);

impl HostId {
    /// Whether the identifier may be used: zero means that none was set.
    #[must_use]
    pub fn is_set(&self) -> bool {
        self.0 != [0; 16]
    }
}

impl fmt::Display for HostId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, byte) in self.0.iter().enumerate() {
            if matches!(at, 4 | 6 | 8 | 10) {
                f.write_str("-")?;
            }
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for HostId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HostId({self})")
    }
}

const fn check_length(name: &[u8]) -> Result<(), NqnError> {
    match name.len() {
        0 => Err(NqnError::Empty),
        1..=NQN_MAX_LEN => Ok(()),
        len => Err(NqnError::TooLong { len }),
    }
}

/// What follows "yyyy-mm.", `None` if that is not what the text begins with.
fn strip_date(text: &str) -> Option<&str> {
    let (date, rest) = text.split_once('.')?;
    let (year, month) = date.split_once('-')?;
    let digits = |text: &str, len| text.len() == len && text.bytes().all(|byte| byte.is_ascii_digit());
    let is_date = digits(year, 4) && digits(month, 2) && matches!(month.parse::<u8>(), Ok(1..=12));
    is_date.then_some(rest)
}

/// A label of a domain name: letters, digits and inner hyphens, at most 63.
fn is_domain_label(label: &str) -> bool {
    (1..=63).contains(&label.len())
        && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        && !label.starts_with('-')
        && !label.ends_with('-')
}

/// The textual form of a UUID: 8-4-4-4-12 hexadecimal digits.
fn is_uuid(text: &str) -> bool {
    text.len() == 36
        && text.bytes().enumerate().all(|(at, byte)| match at {
            8 | 13 | 18 | 23 => byte == b'-',
            _ => byte.is_ascii_hexdigit(),
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::format;
    use std::string::ToString;
    use zerocopy::FromZeros;

    #[track_caller]
    fn check(nqn: &str, expected: Result<(), NqnError>) {
        assert_eq!(validate(nqn), expected, "{nqn}");
    }

    #[test]
    fn names_that_follow_the_grammar_are_accepted() {
        check(DISCOVERY_NQN, Ok(()));
        check("nqn.2016-06.io.example:cnode1", Ok(()));
        check("nqn.2016-06.io.example:a:b c", Ok(()));
        check("nqn.2014-08.org.nvmexpress:uuid:f81d4fae-7dec-11d0-a765-00a0c91e6bf6", Ok(()));
    }

    #[test]
    fn each_wrong_part_is_named() {
        check("", Err(NqnError::Empty));
        check("iqn.2016-06.io.example:x", Err(NqnError::Prefix));
        check("nqn.2016-13.io.example:x", Err(NqnError::Date));
        check("nqn.216-06.io.example:x", Err(NqnError::Date));
        check("nqn.2016-06.", Err(NqnError::Domain));
        check("nqn.2016-06.io..example:x", Err(NqnError::Domain));
        check("nqn.2016-06.-io.example:x", Err(NqnError::Domain));
        check("nqn.2014-08.org.nvmexpress:uuid:nonsense", Err(NqnError::Uuid));
        check("nqn.2016-06.io.example:x\0y", Err(NqnError::Nul));
    }

    #[test]
    fn the_longest_name_has_223_bytes() {
        let longest = format!("nqn.2016-06.io.example:{}", "x".repeat(NQN_MAX_LEN - 23));
        check(&longest, Ok(()));
        assert!(NqnField::new(&longest).is_ok());
        check(&format!("{longest}x"), Err(NqnError::TooLong { len: 224 }));
    }

    #[test]
    fn a_peers_field_is_not_held_to_the_grammar() {
        let field = NqnField::new("whatever").expect("short");
        assert_eq!(field.as_str(), Ok("whatever"));
        assert_eq!(NqnField([b'a'; 256]).as_str(), Err(NqnError::NotTerminated));
        assert_eq!(NqnField::new_zeroed().as_str(), Err(NqnError::Empty));
        let mut bad = field;
        bad.0[0] = 0xff;
        assert_eq!(bad.as_str(), Err(NqnError::NotUtf8));
    }

    #[test]
    fn host_id_prints_as_a_uuid() {
        let id = HostId([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]);
        assert_eq!(id.to_string(), "00010203-0405-0607-0809-0a0b0c0d0e0f");
        assert!(id.is_set() && !HostId([0; 16]).is_set());
    }
}
