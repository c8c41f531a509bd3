//! The text of the metadata section: `key=value` pairs, each ended by NUL.
//!
//! Parsing is total: any bytes give metadata or one error that says what is
//! wrong. Finding the section in a file is `elf_file`'s part.

use tenon_abi::{ABI_MAJOR, METADATA_SECTION};

use crate::error::LoadError;
use crate::version::Version;

/// Bound on the section.
pub(crate) const MAX_SECTION_BYTES: u64 = 64 << 10;
/// Bound on the list values `provides` and `rpc`.
const MAX_LIST_LEN: usize = 1024;
/// Bound on a module's name, from the contract.
const MAX_NAME_LEN: usize = 63;
/// Bound on a version's text.
pub(crate) const MAX_VERSION_LEN: usize = 64;

/// What a plugin says about itself without being loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Metadata {
    /// Major and minor version of the contract it was built with.
    pub abi: (u16, u16),
    /// Name of its module.
    pub name: String,
    /// Version of its module.
    pub version: Version,
    /// What it provides: `bdev`, `transport`.
    pub provides: Vec<String>,
    /// RPC methods whose first call loads it.
    pub rpc: Vec<String>,
}

impl Metadata {
    /// Reads the bytes of the section.
    pub fn parse(section: &[u8]) -> Result<Metadata, LoadError> {
        if section.len() as u64 > MAX_SECTION_BYTES {
            return Err(malformed(format!("{} bytes are more than {MAX_SECTION_BYTES}", section.len())));
        }
        let mut fields = Fields::default();
        // The linker may pad between objects, so empty entries are no fault; a last entry without NUL is.
        let text = match section.split_last() {
            None => return Err(malformed("it is empty".into())),
            Some((0, text)) => text,
            Some(_) => return Err(malformed("the last entry does not end with NUL".into())),
        };
        for entry in text.split(|byte| *byte == 0).filter(|entry| !entry.is_empty()) {
            let entry = std::str::from_utf8(entry)
                .map_err(|_| malformed(format!("{:?} is not UTF-8", String::from_utf8_lossy(entry))))?;
            let (key, value) =
                entry.split_once('=').ok_or_else(|| malformed(format!("{entry:?} is not key=value")))?;
            fields.set(key, value)?;
        }
        fields.finish()
    }
}

/// The entries found so far.
#[derive(Default)]
struct Fields<'a> {
    abi: Option<&'a str>,
    name: Option<&'a str>,
    version: Option<&'a str>,
    provides: Option<&'a str>,
    rpc: Option<&'a str>,
}

impl<'a> Fields<'a> {
    fn set(&mut self, key: &'a str, value: &'a str) -> Result<(), LoadError> {
        let slot = match key {
            "abi" => &mut self.abi,
            "name" => &mut self.name,
            "version" => &mut self.version,
            "provides" => &mut self.provides,
            "rpc" => &mut self.rpc,
            _ => return Ok(()), // a newer minor version may say more
        };
        match slot.replace(value) {
            Some(before) if before != value => {
                Err(malformed(format!("key {key} is given as {before:?} and as {value:?}")))
            }
            Some(_) | None => Ok(()),
        }
    }

    fn finish(self) -> Result<Metadata, LoadError> {
        let abi = self.abi.ok_or_else(|| missing("abi"))?;
        let abi = parse_abi(abi).ok_or_else(|| malformed(format!("abi {abi:?} is not major.minor")))?;
        // Checked first: another major version may have changed everything below.
        if abi.0 != ABI_MAJOR {
            return Err(LoadError::WrongMajor { found: abi.0, host: ABI_MAJOR });
        }
        let name = self.name.ok_or_else(|| missing("name"))?;
        check_name(name).map_err(|why| malformed(format!("name {name:?} {why}")))?;
        let version = self.version.ok_or_else(|| missing("version"))?;
        check_version(version).map_err(|why| malformed(format!("version {version:?} {why}")))?;
        Ok(Metadata {
            abi,
            name: name.to_owned(),
            version: Version::new(version),
            provides: list("provides", self.provides)?,
            rpc: list("rpc", self.rpc)?,
        })
    }
}

/// Says why `name` is no module name.
pub(crate) fn check_name(name: &str) -> Result<(), &'static str> {
    let is_allowed =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_' || byte == b'-';
    match name.len() {
        1..=MAX_NAME_LEN if name.bytes().all(is_allowed) => Ok(()),
        1..=MAX_NAME_LEN => Err("has characters other than a-z 0-9 _ -"),
        _ => Err("does not have 1 to 63 bytes"),
    }
}

/// Says why `version` is no version. It becomes part of a file name, hence no `/`.
pub(crate) fn check_version(version: &str) -> Result<(), &'static str> {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b".-+_~".contains(&byte);
    match version.len() {
        1..=MAX_VERSION_LEN if version.bytes().all(is_allowed) => Ok(()),
        1..=MAX_VERSION_LEN => Err("has characters other than letters, digits and . - + _ ~"),
        _ => Err("does not have 1 to 64 bytes"),
    }
}

fn parse_abi(text: &str) -> Option<(u16, u16)> {
    let (major, minor) = text.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

fn list(key: &str, value: Option<&str>) -> Result<Vec<String>, LoadError> {
    let items: Vec<String> = value
        .unwrap_or_default()
        .split(',')
        .map(str::trim)
        .filter(|item| !item.is_empty())
        .map(Into::into)
        .collect();
    if items.len() > MAX_LIST_LEN {
        return Err(malformed(format!("{key} has {} items, more than {MAX_LIST_LEN}", items.len())));
    }
    Ok(items)
}

fn missing(key: &str) -> LoadError {
    malformed(format!("key {key} is missing"))
}

fn malformed(detail: String) -> LoadError {
    debug_assert!(!detail.is_empty(), "{METADATA_SECTION}");
    LoadError::MalformedMetadata { detail }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GOOD: &[u8] = b"abi=1.0\0name=malloc\0version=1.2.3\0provides=bdev\0rpc=a_create,a_delete\0";

    #[track_caller]
    fn check_error(section: &[u8], expected: &str) {
        let error = Metadata::parse(section).unwrap_err().to_string();
        assert!(error.contains(expected), "{error:?} does not contain {expected:?}");
    }

    #[test]
    fn well_formed_section_is_read() {
        let metadata = Metadata::parse(GOOD).unwrap();
        assert_eq!(metadata.abi, (1, 0));
        assert_eq!((metadata.name.as_str(), metadata.version.as_str()), ("malloc", "1.2.3"));
        assert_eq!(metadata.provides, ["bdev"]);
        assert_eq!(metadata.rpc, ["a_create", "a_delete"]);
    }

    #[test]
    fn unknown_keys_padding_and_newer_minor_are_accepted() {
        let metadata = Metadata::parse(b"\0\0abi=1.77\0\0colour=red\0name=x\0version=1\0\0\0").unwrap();
        assert_eq!(metadata.abi, (1, 77));
        assert!(metadata.provides.is_empty() && metadata.rpc.is_empty());
    }

    #[test]
    fn every_fault_is_named() {
        check_error(b"", "it is empty");
        check_error(b"abi=1.0", "does not end with NUL");
        check_error(b"abi\0", "\"abi\" is not key=value");
        check_error(b"\xff=1\0", "is not UTF-8");
        check_error(b"name=x\0version=1\0", "key abi is missing");
        check_error(b"abi=1\0", "abi \"1\" is not major.minor");
        check_error(b"abi=1.x\0", "abi \"1.x\" is not major.minor");
        check_error(b"abi=1.0\0version=1\0", "key name is missing");
        check_error(b"abi=1.0\0name=x\0", "key version is missing");
        check_error(b"abi=1.0\0name=X\0version=1\0", "has characters other than a-z");
        check_error(b"abi=1.0\0name=\0version=1\0", "does not have 1 to 63 bytes");
        check_error(b"abi=1.0\0name=x\0version=../1\0", "version \"../1\" has characters");
        check_error(b"abi=1.0\0name=x\0name=y\0version=1\0", "key name is given as \"x\" and as \"y\"");
        check_error(b"abi=2.0\0", "built for contract version 2.x");
        check_error(&[b'a'; (MAX_SECTION_BYTES + 1) as usize], "are more than");
    }

    #[test]
    fn list_is_accepted_up_to_its_bound() {
        let section = |count: usize| {
            format!("abi=1.0\0name=x\0version=1\0rpc={}\0", vec!["m"; count].join(",")).into_bytes()
        };
        assert_eq!(Metadata::parse(&section(MAX_LIST_LEN)).unwrap().rpc.len(), MAX_LIST_LEN);
        check_error(&section(MAX_LIST_LEN + 1), "rpc has 1025 items");
    }

    proptest! {
        #[test]
        fn any_bytes_give_metadata_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = Metadata::parse(&bytes);
        }

        #[test]
        fn damage_is_never_a_panic(at in 0..GOOD.len(), byte: u8, cut in 0..GOOD.len()) {
            let mut bytes = GOOD.to_vec();
            bytes[at] = byte;
            let _ = Metadata::parse(&bytes);
            let _ = Metadata::parse(&bytes[..cut]);
        }
    }
}
