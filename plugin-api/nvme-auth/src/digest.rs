//! The three hash functions of DH-HMAC-CHAP and of TLS keys, chosen at run time.

use hkdf::Hkdf;
use hmac::{Hmac, KeyInit, Mac};
use nvme_spec::auth::HashId;
use sha2::{Digest, Sha256, Sha384, Sha512};
use zeroize::Zeroizing;

/// Runs one expression with `$H` as the hash of a [`HashId`]; `None` for an unknown one.
macro_rules! with_hash {
    ($hash:expr, $H:ident => $body:expr) => {
        match $hash {
            HashId::SHA_256 => {
                type $H = Sha256;
                Some($body)
            }
            HashId::SHA_384 => {
                type $H = Sha384;
                Some($body)
            }
            HashId::SHA_512 => {
                type $H = Sha512;
                Some($body)
            }
            _ => None,
        }
    };
}

/// Hash of `data`.
pub fn hash(hash: HashId, data: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    with_hash!(hash, H => Zeroizing::new(H::digest(data).to_vec()))
}

/// HMAC of the concatenated `parts`.
pub fn hmac(hash: HashId, key: &[u8], parts: &[&[u8]]) -> Option<Zeroizing<Vec<u8>>> {
    with_hash!(hash, H => {
        let mut mac = Hmac::<H>::new_from_slice(key).ok()?;
        parts.iter().for_each(|part| mac.update(part));
        Zeroizing::new(mac.finalize().into_bytes().to_vec())
    })
}

/// Whether `expected` is the HMAC of the concatenated `parts`; takes as long whatever differs.
pub fn verifies(hash: HashId, key: &[u8], parts: &[&[u8]], expected: &[u8]) -> bool {
    let checked = with_hash!(hash, H => {
        let Ok(mut mac) = Hmac::<H>::new_from_slice(key) else { return false };
        parts.iter().for_each(|part| mac.update(part));
        mac.verify_slice(expected).is_ok()
    });
    checked.unwrap_or(false)
}

/// HKDF-Extract without salt, then HKDF-Expand-Label of TLS 1.3 (RFC 8446 §7.1), as long as the hash.
///
/// `None` if the hash is unknown or the context longer than a label can hold.
pub fn derive(hash: HashId, input: &[u8], label: &str, context: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    let len = hash.hash_len()?;
    let mut info = u16::try_from(len).ok()?.to_be_bytes().to_vec();
    info.push(u8::try_from(TLS_PREFIX.len() + label.len()).ok()?);
    info.extend_from_slice(TLS_PREFIX.as_bytes());
    info.extend_from_slice(label.as_bytes());
    info.push(u8::try_from(context.len()).ok()?);
    info.extend_from_slice(context);
    let mut output = Zeroizing::new(vec![0; len]);
    with_hash!(hash, H => Hkdf::<H>::new(None, input).expand(&info, &mut output).ok())??;
    Some(output)
}

/// What every label of TLS 1.3 begins with.
const TLS_PREFIX: &str = "tls13 ";

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn hmac_gives_the_values_of_rfc_4231() {
        // Test case 2.
        let value = |hash| hex(&hmac(hash, b"Jefe", &[b"what do ya want ", b"for nothing?"]).expect("known"));
        assert_eq!(
            value(HashId::SHA_256),
            "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
        );
        assert!(value(HashId::SHA_384).starts_with("af45d2e376484031617f78d2b58a6b1b"));
        assert!(value(HashId::SHA_512).starts_with("164b7a7bfcf819e2e395fbe73b56e0a3"));
        assert!(hmac(HashId(9), b"", &[]).is_none());
    }

    #[test]
    fn verification_is_exact() {
        let value = hmac(HashId::SHA_256, b"key", &[b"data"]).expect("known");
        assert!(verifies(HashId::SHA_256, b"key", &[b"da", b"ta"], &value));
        assert!(!verifies(HashId::SHA_256, b"kez", &[b"data"], &value));
        assert!(!verifies(HashId::SHA_256, b"key", &[b"data"], &value[..31]));
    }

    #[test]
    fn a_context_longer_than_a_label_holds_is_refused() {
        assert!(derive(HashId::SHA_256, b"psk", "nvme-tls-psk", &[b'x'; 255]).is_some());
        assert!(derive(HashId::SHA_256, b"psk", "nvme-tls-psk", &[b'x'; 256]).is_none());
    }
}
