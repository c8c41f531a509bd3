//! The two kinds of keys an operator configures, in the text forms that
//! `nvme gen-dhchap-key` and `nvme gen-tls-key` write, and what is derived from
//! them. Secrets are wiped when dropped and never shown.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use nvme_spec::auth::HashId;
use zeroize::Zeroizing;

use crate::digest;

/// A key of a host or of a subsystem for DH-HMAC-CHAP: `DHHC-1:<hash>:<base64>:`. Base 2.0c §8.13.5.8.
#[derive(Clone, PartialEq, Eq)]
pub struct DhchapKey {
    secret: Zeroizing<Vec<u8>>,
    /// Hash by which the secret is bound to a name; `None`: it is used as it is.
    transform: Option<HashId>,
}

/// A configured pre-shared key for TLS: `NVMeTLSkey-1:<hash>:<base64>:`. NVMe/TCP 1.0d §3.6.1.5.
#[derive(Clone, PartialEq, Eq)]
pub struct TlsKey {
    secret: Zeroizing<Vec<u8>>,
    /// Hash by which the secret is bound to a host; `None`: it is used as it is.
    transform: Option<HashId>,
}

/// A key of either kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Secret {
    /// For DH-HMAC-CHAP.
    Dhchap(DhchapKey),
    /// For TLS.
    Tls(TlsKey),
}

/// Why a text is no key. Never holds any of the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SecretError {
    /// Another kind of key, or none.
    #[error("it begins with neither DHHC-1: nor NVMeTLSkey-1:")]
    Kind,
    /// Not three parts.
    #[error("it does not have the form <kind>:<hash>:<base64>:")]
    Form,
    /// An unknown hash.
    #[error("its hash is unknown")]
    Hash,
    /// Broken base64.
    #[error("its base64 is broken")]
    Base64,
    /// A wrong length.
    #[error("it has a wrong length")]
    Length,
    /// A wrong checksum.
    #[error("its checksum is wrong")]
    Checksum,
}

impl Secret {
    /// The key in a text; white space around it does not matter.
    pub fn parse(text: &str) -> Result<Self, SecretError> {
        let text = text.trim();
        if let Some(rest) = text.strip_prefix("DHHC-1:") {
            let (hash, secret) = parts(rest)?;
            let transform = match hash {
                "00" => None,
                "01" => Some(HashId::SHA_256),
                "02" => Some(HashId::SHA_384),
                "03" => Some(HashId::SHA_512),
                _ => return Err(SecretError::Hash),
            };
            check_len(&secret, transform, &[32, 48, 64])?;
            return Ok(Self::Dhchap(DhchapKey { secret, transform }));
        }
        if let Some(rest) = text.strip_prefix("NVMeTLSkey-1:") {
            let (hash, secret) = parts(rest)?;
            let transform = match hash {
                "00" => None,
                "01" => Some(HashId::SHA_256),
                "02" => Some(HashId::SHA_384),
                _ => return Err(SecretError::Hash),
            };
            check_len(&secret, transform, &[32, 48])?;
            return Ok(Self::Tls(TlsKey { secret, transform }));
        }
        Err(SecretError::Kind)
    }

    /// The text form, as [`Secret::parse`] reads it.
    #[must_use]
    pub fn to_text(&self) -> Zeroizing<String> {
        let (kind, transform, secret) = match self {
            Self::Dhchap(key) => ("DHHC-1", key.transform, &key.secret),
            Self::Tls(key) => ("NVMeTLSkey-1", key.transform, &key.secret),
        };
        let number = transform.map_or(0, |hash| hash.0);
        let mut bytes = Zeroizing::new(secret.to_vec());
        bytes.extend_from_slice(&crc32fast::hash(secret).to_le_bytes());
        let encoded = Zeroizing::new(STANDARD.encode(&*bytes));
        Zeroizing::new(format!("{kind}:{number:02}:{}:", &*encoded))
    }

    /// What kind of key it is, for reports.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Dhchap(_) => "dhchap",
            Self::Tls(_) => "tls",
        }
    }
}

impl DhchapKey {
    /// The key as the party of that name uses it.
    pub(crate) fn bound_to(&self, nqn: &str) -> Option<Zeroizing<Vec<u8>>> {
        match self.transform {
            None => Some(self.secret.clone()),
            Some(hash) => digest::hmac(hash, &self.secret, &[nqn.as_bytes(), BINDING]),
        }
    }
}

impl TlsKey {
    /// Hash of its cipher suite, which identities name: the one it is bound by, else by its length.
    fn hash(&self) -> HashId {
        let by_length = if self.secret.len() == 48 { HashId::SHA_384 } else { HashId::SHA_256 };
        self.transform.unwrap_or(by_length)
    }

    /// The identity by which a client names this key, in version 0 or 1; `None` for another. NVMe/TCP 1.0d §3.6.1.3.
    #[must_use]
    pub fn identity(&self, version: u8, hostnqn: &str, subnqn: &str) -> Option<String> {
        let hash = self.hash();
        let plain = format!("NVMe{version}R{:02} {hostnqn} {subnqn}", hash.0);
        match version {
            0 => Some(plain),
            1 => Some(format!("{plain} {}", self.digest_for(hostnqn, subnqn)?)),
            _ => None,
        }
    }

    /// The secret, bound to the host.
    fn retained(&self, hostnqn: &str) -> Option<Zeroizing<Vec<u8>>> {
        match self.transform {
            None => Some(self.secret.clone()),
            Some(hash) => digest::derive(hash, &self.secret, "HostNQN", hostnqn.as_bytes()),
        }
    }

    /// The digest of version 1 identities.
    fn digest_for(&self, hostnqn: &str, subnqn: &str) -> Option<String> {
        let parts: [&[u8]; 5] = [hostnqn.as_bytes(), b" ", subnqn.as_bytes(), b" ", BINDING];
        Some(STANDARD.encode(&*digest::hmac(self.hash(), &self.retained(hostnqn)?, &parts)?))
    }

    /// The TLS pre-shared key of a connection whose client names `identity`; `None` if that is not an identity
    /// of this key for these names. NVMe/TCP 1.0d §3.6.1.3.
    pub fn derive(&self, identity: &Identity<'_>) -> Option<Zeroizing<Vec<u8>>> {
        let hash = self.hash();
        if identity.hash != hash {
            return None;
        }
        let retained = self.retained(identity.hostnqn)?;
        match identity.digest {
            None => digest::derive(hash, &retained, TLS_LABEL, identity.text.as_bytes()),
            Some(named) => {
                let own = self.digest_for(identity.hostnqn, identity.subnqn)?;
                let context = format!("{:02} {own}", hash.0);
                (own == named).then(|| digest::derive(hash, &retained, TLS_LABEL, context.as_bytes()))?
            }
        }
    }
}

/// Identity of a TLS pre-shared key: `NVMe0R01 <hostnqn> <subnqn>`, in version 1 with a digest behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity<'a> {
    /// As a whole.
    pub text: &'a str,
    /// Hash of its cipher suite.
    pub hash: HashId,
    /// NQN of the host.
    pub hostnqn: &'a str,
    /// NQN of the subsystem.
    pub subnqn: &'a str,
    /// Digest of the key, in version 1.
    pub digest: Option<&'a str>,
}

impl<'a> Identity<'a> {
    /// The parts of an identity of a configured key; `None` if the text is none.
    pub fn parse(text: &'a str) -> Option<Self> {
        let mut words = text.split(' ');
        let (kind, hostnqn, subnqn, digest) = (words.next()?, words.next()?, words.next()?, words.next());
        let (version, hash) = (kind.get(..6)?, kind.get(6..)?);
        let is_whole = words.next().is_none()
            && match version {
                "NVMe0R" => digest.is_none(),
                "NVMe1R" => digest.is_some(),
                _ => false,
            };
        let hash = match hash {
            "01" => HashId::SHA_256,
            "02" => HashId::SHA_384,
            _ => return None,
        };
        (is_whole && !hostnqn.is_empty() && !subnqn.is_empty()).then_some(Self {
            text,
            hash,
            hostnqn,
            subnqn,
            digest,
        })
    }
}

impl fmt::Debug for DhchapKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DhchapKey(..)")
    }
}

impl fmt::Debug for TlsKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TlsKey(..)")
    }
}

/// Hash and secret of `<hash>:<base64>:`, whose last four bytes are the secret's CRC-32.
fn parts(text: &str) -> Result<(&str, Zeroizing<Vec<u8>>), SecretError> {
    let (hash, rest) = text.split_once(':').ok_or(SecretError::Form)?;
    let encoded = rest.strip_suffix(':').ok_or(SecretError::Form)?;
    let bytes = Zeroizing::new(STANDARD.decode(encoded).map_err(|_| SecretError::Base64)?);
    let at = bytes.len().checked_sub(CRC_BYTES).ok_or(SecretError::Length)?;
    let (secret, crc) = bytes.split_at(at);
    if crc32fast::hash(secret).to_le_bytes() != crc {
        return Err(SecretError::Checksum);
    }
    Ok((hash, Zeroizing::new(secret.to_vec())))
}

/// A secret that is bound by a hash is as long as that hash.
fn check_len(secret: &[u8], transform: Option<HashId>, allowed: &[usize]) -> Result<(), SecretError> {
    let fits = match transform {
        Some(hash) => hash.hash_len() == Some(secret.len()),
        None => allowed.contains(&secret.len()),
    };
    if fits { Ok(()) } else { Err(SecretError::Length) }
}

/// What binds a key to a name, beside the name.
const BINDING: &[u8] = b"NVMe-over-Fabrics";
const TLS_LABEL: &str = "nvme-tls-psk";
const CRC_BYTES: usize = 4;

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn dhchap_key(hash: &str, secret: &[u8]) -> DhchapKey {
        match Secret::parse(&text("DHHC-1", hash, secret)) {
            Ok(Secret::Dhchap(key)) => key,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn text(kind: &str, hash: &str, secret: &[u8]) -> String {
        let mut bytes = secret.to_vec();
        bytes.extend_from_slice(&crc32fast::hash(secret).to_le_bytes());
        format!("{kind}:{hash}:{}:", STANDARD.encode(bytes))
    }

    #[test]
    fn keys_of_every_length_and_hash_are_read() {
        for (hash, len) in [("00", 32), ("00", 48), ("00", 64), ("01", 32), ("02", 48), ("03", 64)] {
            assert!(Secret::parse(&text("DHHC-1", hash, &vec![7; len])).is_ok(), "{hash} {len}");
        }
        for (hash, len) in [("00", 32), ("00", 48), ("01", 32), ("02", 48)] {
            let parsed = Secret::parse(&format!(" {}\n", text("NVMeTLSkey-1", hash, &vec![7; len])));
            assert_eq!(parsed.map(|key| key.kind()), Ok("tls"), "{hash} {len}");
        }
    }

    #[test]
    fn a_key_as_nvme_cli_writes_it_is_read() {
        // What `nvme gen-dhchap-key` and `nvme gen-tls-key` print: base64 of 32 bytes and their checksum.
        let key = "DHHC-1:00:ia6zGodOr4SEG0Zzaw398rpY0wqipUWj4jWjUh4HWUz6aQ2n:";
        assert_eq!(Secret::parse(key).map(|key| key.kind()), Ok("dhchap"));
        let tls = "NVMeTLSkey-1:01:2fRyXlll8KhsEnBXso/rCdaMPwOgQb/eTu2vOf1bR7kLQHs7:";
        assert_eq!(Secret::parse(tls).map(|key| key.kind()), Ok("tls"));
        let wrong = key.replace("ia6z", "ia6y");
        assert_eq!(Secret::parse(&wrong), Err(SecretError::Checksum));
    }

    #[test]
    fn a_key_is_written_as_it_was_read() {
        for (kind, hash, len) in [("DHHC-1", "00", 48), ("DHHC-1", "03", 64), ("NVMeTLSkey-1", "02", 48)] {
            let text = text(kind, hash, &vec![7; len]);
            assert_eq!(*Secret::parse(&text).expect("a key").to_text(), text);
        }
    }

    #[test]
    fn what_is_wrong_with_a_key_is_told_without_the_key() {
        let check = |text: &str, error| assert_eq!(Secret::parse(text), Err(error), "{text}");
        check("", SecretError::Kind);
        check("DHHC-2:00:AAAA:", SecretError::Kind);
        check("DHHC-1:00", SecretError::Form);
        check("DHHC-1:00:AAAA", SecretError::Form);
        check("DHHC-1:00:???:", SecretError::Base64);
        check("DHHC-1:00:AAA=:", SecretError::Length);
        check(&text("DHHC-1", "04", &[1; 32]), SecretError::Hash);
        check(&text("DHHC-1", "01", &[1; 48]), SecretError::Length);
        check(&text("DHHC-1", "00", &[1; 33]), SecretError::Length);
        check(&text("NVMeTLSkey-1", "03", &[1; 64]), SecretError::Hash);
        let key = Secret::parse(&text("DHHC-1", "00", &[65; 32])).expect("a key");
        assert_eq!(format!("{key:?}"), "Dhchap(DhchapKey(..))");
    }

    #[test]
    fn identities_name_hash_host_and_subsystem() {
        let identity = Identity::parse("NVMe0R02 nqn.h nqn.s").expect("an identity");
        assert_eq!((identity.hash, identity.hostnqn, identity.subnqn), (HashId::SHA_384, "nqn.h", "nqn.s"));
        assert_eq!(Identity::parse("NVMe1R01 nqn.h nqn.s abc=").and_then(|one| one.digest), Some("abc="));
        for wrong in [
            "NVMe0R03 h s",
            "NVMe0R01 h",
            "NVMe0R01 h s d",
            "NVMe1R01 h s",
            "NVMe0G01 h s",
            "NVMe",
            "NVMe0R01  s",
        ] {
            assert_eq!(Identity::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn tls_keys_differ_by_host_subsystem_and_version() {
        let Ok(Secret::Tls(key)) = Secret::parse(&text("NVMeTLSkey-1", "01", &[9; 32])) else {
            panic!("a key")
        };
        let derive = |text: &str| key.derive(&Identity::parse(text).expect("an identity"));
        let one = derive("NVMe0R01 nqn.h nqn.s").expect("a key");
        assert_eq!(one.len(), 32);
        assert_ne!(Some(one.clone()), derive("NVMe0R01 nqn.g nqn.s"));
        assert_ne!(Some(one.clone()), derive("NVMe0R01 nqn.h nqn.t"));
        assert_eq!(derive("NVMe0R02 nqn.h nqn.s"), None, "another cipher");
        assert_eq!(derive("NVMe1R01 nqn.h nqn.s AAAA"), None, "another key's digest");
        let retained = digest::derive(HashId::SHA_256, &[9; 32], "HostNQN", b"nqn.h").expect("known");
        let parts: [&[u8]; 5] = [b"nqn.h", b" ", b"nqn.s", b" ", b"NVMe-over-Fabrics"];
        let named = STANDARD.encode(&*digest::hmac(HashId::SHA_256, &retained, &parts).expect("known"));
        let second = derive(&format!("NVMe1R01 nqn.h nqn.s {named}")).expect("a key");
        assert_ne!(one, second);
        assert_eq!(key.identity(0, "nqn.h", "nqn.s").as_deref(), Some("NVMe0R01 nqn.h nqn.s"));
        assert_eq!(key.identity(1, "nqn.h", "nqn.s"), Some(format!("NVMe1R01 nqn.h nqn.s {named}")));
        assert_eq!(key.identity(2, "nqn.h", "nqn.s"), None);
    }
}
