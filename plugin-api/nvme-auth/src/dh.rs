//! Diffie-Hellman exchange in the groups of RFC 7919. Slow on purpose: callers run it on a worker.

use crypto_bigint::modular::{BoxedMontyForm, BoxedMontyParams};
use crypto_bigint::{BoxedUint, Odd, Resize};
use nvme_spec::auth::DhGroupId;
use zeroize::Zeroizing;

use crate::groups;

/// Our half of an exchange.
pub(crate) struct KeyPair {
    group: DhGroupId,
    secret: Zeroizing<[u8; SECRET_BYTES]>,
    /// What the peer gets: as many bytes as the prime has.
    pub public: Vec<u8>,
}

impl KeyPair {
    /// The pair of a secret; `None` for a group without an exchange.
    pub(crate) fn new(group: DhGroupId, secret: [u8; SECRET_BYTES]) -> Option<Self> {
        let secret = Zeroizing::new(secret);
        let prime = prime_of(group)?;
        let generator = BoxedUint::from(2u8).resize(prime.bits_precision());
        let public = power(&generator, &secret, prime);
        Some(Self { group, secret, public })
    }

    /// The secret both sides have with the peer's public value; `None` if that value gives the secret away.
    pub(crate) fn shared(&self, peer: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
        let prime = prime_of(self.group)?;
        if peer.len() != self.group.public_value_len()? {
            return None;
        }
        let value = BoxedUint::from_be_slice(peer, prime.bits_precision()).ok()?;
        let one = BoxedUint::one_with_precision(prime.bits_precision());
        let largest = prime.as_ref().wrapping_sub(&one);
        if value <= one || value >= largest {
            return None;
        }
        Some(Zeroizing::new(power(&value, &self.secret, prime)))
    }
}

fn power(base: &BoxedUint, exponent: &[u8; SECRET_BYTES], prime: Odd<BoxedUint>) -> Vec<u8> {
    let bits = SECRET_BYTES as u32 * 8;
    let exponent = BoxedUint::from_be_slice(exponent, bits).expect("it has just as many bits");
    let params = BoxedMontyParams::new_vartime(prime);
    let form = BoxedMontyForm::new(base.clone(), &params);
    form.pow_bounded_exp(&exponent, bits).retrieve().to_be_bytes().into_vec()
}

fn prime_of(group: DhGroupId) -> Option<Odd<BoxedUint>> {
    let text = match group {
        DhGroupId::FFDHE_2048 => groups::FFDHE_2048,
        DhGroupId::FFDHE_3072 => groups::FFDHE_3072,
        DhGroupId::FFDHE_4096 => groups::FFDHE_4096,
        DhGroupId::FFDHE_6144 => groups::FFDHE_6144,
        DhGroupId::FFDHE_8192 => groups::FFDHE_8192,
        _ => return None,
    };
    let prime: Option<BoxedUint> = BoxedUint::from_be_hex(text, text.len() as u32 * 4).into();
    Option::from(Odd::new(prime?))
}

/// Bytes of a secret exponent: more than twice the strength of the largest group.
pub const SECRET_BYTES: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    const GROUPS: [DhGroupId; 5] = [
        DhGroupId::FFDHE_2048,
        DhGroupId::FFDHE_3072,
        DhGroupId::FFDHE_4096,
        DhGroupId::FFDHE_6144,
        DhGroupId::FFDHE_8192,
    ];

    #[test]
    fn both_sides_get_the_same_secret_in_every_group() {
        for group in GROUPS {
            let one = KeyPair::new(group, [0x5a; SECRET_BYTES]).expect("a group");
            let two = KeyPair::new(group, [0xc3; SECRET_BYTES]).expect("a group");
            assert_eq!(Some(one.public.len()), group.public_value_len());
            let (first, second) = (one.shared(&two.public), two.shared(&one.public));
            assert!(first.is_some() && first == second, "{group}");
        }
    }

    #[test]
    fn values_that_give_the_secret_away_are_refused() {
        let pair = KeyPair::new(DhGroupId::FFDHE_2048, [0x5a; SECRET_BYTES]).expect("a group");
        let prime = prime_of(DhGroupId::FFDHE_2048).expect("a group");
        let below = prime.as_ref().wrapping_sub(BoxedUint::one_with_precision(2048));
        let mut one = vec![0; 256];
        assert!(pair.shared(&one).is_none());
        one[255] = 1;
        assert!(pair.shared(&one).is_none());
        one[255] = 2;
        assert!(pair.shared(&one).is_some());
        assert!(pair.shared(&below.to_be_bytes()).is_none());
        assert!(pair.shared(&prime.as_ref().to_be_bytes()).is_none());
        assert!(pair.shared(&[0xff; 256]).is_none());
        assert!(pair.shared(&one[1..]).is_none());
        assert!(KeyPair::new(DhGroupId::NULL, [1; SECRET_BYTES]).is_none());
    }

    #[test]
    fn primes_have_the_form_of_the_rfc() {
        for group in GROUPS {
            let bytes = prime_of(group).expect("a group").as_ref().to_be_bytes();
            assert_eq!(Some(bytes.len()), group.public_value_len());
            assert_eq!(bytes[..8], [0xff; 8]);
            assert_eq!(bytes[8..16], [0xad, 0xf8, 0x54, 0x58, 0xa2, 0xbb, 0x4a, 0x9a], "digits of e");
            assert_eq!(bytes[bytes.len() - 8..], [0xff; 8]);
        }
    }
}
