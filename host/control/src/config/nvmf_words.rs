//! Values of the target's tables as operators write them: filters, hash
//! functions and groups, ANA states, service identifiers, identifiers in
//! hexadecimal digits. Knows no table.

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize};
use tenon_nvmf_target::{AnaState, AuthenticationOptions, DhGroupId, HashId};

/// A key and what is wrong with its value.
pub type Wrong = (&'static str, String);

/// A filter as operators write it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiscoveryFilterName(pub tenon_nvmf_target::DiscoveryFilter);

impl DiscoveryFilterName {
    /// Reads the words.
    ///
    /// # Errors
    /// A word is unknown.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut filter = tenon_nvmf_target::DiscoveryFilter::default();
        if text == "match_any" {
            return Ok(Self(filter));
        }
        for word in text.split(',').map(str::trim) {
            match word {
                "transport" => filter.transport = true,
                "address" => filter.address = true,
                "svcid" => filter.service = true,
                other => {
                    return Err(format!(
                        "`{other}` is none of match_any, or of transport, address, svcid joined by commas"
                    ));
                }
            }
        }
        Ok(Self(filter))
    }

    /// The words.
    #[must_use]
    pub fn text(self) -> String {
        let words = [(self.0.transport, "transport"), (self.0.address, "address"), (self.0.service, "svcid")];
        let words: Vec<&str> = words.iter().filter(|(on, _)| *on).map(|(_, word)| *word).collect();
        if words.is_empty() { "match_any".to_owned() } else { words.join(",") }
    }
}

impl Serialize for DiscoveryFilterName {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text())
    }
}

impl<'de> Deserialize<'de> for DiscoveryFilterName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::parse(&String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

impl JsonSchema for DiscoveryFilterName {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "DiscoveryFilter".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "pattern": "^(match_any|(transport|address|svcid)(,(transport|address|svcid))*)$" })
    }
}

/// Lists of hash functions and groups by their names; absent: all.
///
/// # Errors
/// The key and what is wrong with its value.
pub fn authentication(
    digests: Option<&[String]>,
    groups: Option<&[String]>,
) -> Result<AuthenticationOptions, Wrong> {
    let mut options = AuthenticationOptions::default();
    if let Some(names) = digests {
        options.hashes = words("dhchap_digests", names, DIGESTS)?;
    }
    if let Some(names) = groups {
        options.groups = words("dhchap_dhgroups", names, GROUPS)?;
    }
    Ok(options)
}

fn words<T: Copy>(key: &'static str, names: &[String], known: &[(&str, T)]) -> Result<Vec<T>, Wrong> {
    if names.is_empty() {
        return Err((key, "is empty: nobody could authenticate".to_owned()));
    }
    let of = |name: &String| {
        let found = known.iter().find(|(word, _)| word.eq_ignore_ascii_case(name)).map(|(_, value)| *value);
        found.ok_or_else(|| {
            let words: Vec<&str> = known.iter().map(|(word, _)| *word).collect();
            (key, format!("`{name}` is none of {}", words.join(", ")))
        })
    };
    names.iter().map(of).collect()
}

/// The name of a hash function.
#[must_use]
pub fn digest_name(hash: HashId) -> &'static str {
    DIGESTS.iter().find(|(_, one)| *one == hash).map_or("unknown", |(name, _)| name)
}

/// The name of a Diffie-Hellman group.
#[must_use]
pub fn group_name(group: DhGroupId) -> &'static str {
    GROUPS.iter().find(|(_, one)| *one == group).map_or("unknown", |(name, _)| name)
}

const DIGESTS: &[(&str, HashId)] =
    &[("sha256", HashId::SHA_256), ("sha384", HashId::SHA_384), ("sha512", HashId::SHA_512)];
const GROUPS: &[(&str, DhGroupId)] = &[
    ("null", DhGroupId::NULL),
    ("ffdhe2048", DhGroupId::FFDHE_2048),
    ("ffdhe3072", DhGroupId::FFDHE_3072),
    ("ffdhe4096", DhGroupId::FFDHE_4096),
    ("ffdhe6144", DhGroupId::FFDHE_6144),
    ("ffdhe8192", DhGroupId::FFDHE_8192),
];

/// An ANA state by its name.
///
/// # Errors
/// The name is unknown.
pub fn ana_state(name: &str) -> Result<AnaState, Wrong> {
    AnaState::from_word(name).ok_or_else(|| {
        let reason =
            format!("`{name}` is none of optimized, non_optimized, inaccessible, persistent_loss, change");
        ("ana_state", reason)
    })
}

/// Text and numbers are both a service identifier: `4420` and `"4420"`.
#[derive(Deserialize, JsonSchema)]
#[serde(untagged)]
pub(super) enum TextOrNumber {
    Text(String),
    Number(u64),
}

/// A service identifier, however it is written.
pub(super) fn text_or_number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    Ok(match TextOrNumber::deserialize(deserializer) {
        Ok(TextOrNumber::Text(text)) => text,
        Ok(TextOrNumber::Number(number)) => number.to_string(),
        Err(_) => return Err(serde::de::Error::custom("must be a text or a number, e.g. \"4420\"")),
    })
}

/// Exactly `N` bytes as digits.
pub(super) fn hexadecimal<const N: usize>(key: &'static str, text: &str) -> Result<[u8; N], Wrong> {
    let wrong = || (key, format!("`{text}` is not {} hexadecimal digits", 2 * N));
    if text.len() != 2 * N || !text.is_ascii() {
        return Err(wrong());
    }
    let mut bytes = [0; N];
    for (at, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * at..2 * at + 2], 16).map_err(|_| wrong())?;
    }
    Ok(bytes)
}
