//! What a controller is authenticated with: keys of the host's keyring, and
//! which hash functions and groups may be used. Secrets go no further than to
//! the transactions ([`crate::authenticate`]) and the transport's channels.

use nvme_auth::Parties;
use nvme_auth::secret::{DhchapKey, Identity, Secret, TlsKey};
use nvme_spec::auth::{DhGroupId, HashId};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tenon_sdk::{ChannelKey, Error, HeldKey, Host};

use crate::config::{NvmeConfig, NvmeParams};

/// A hash function of in-band authentication.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum DhchapDigest {
    /// SHA-256.
    Sha256,
    /// SHA-384.
    Sha384,
    /// SHA-512.
    Sha512,
}

/// A Diffie-Hellman group of in-band authentication.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum DhchapGroup {
    /// No exchange.
    Null,
    /// 2048 bits.
    Ffdhe2048,
    /// 3072 bits.
    Ffdhe3072,
    /// 4096 bits.
    Ffdhe4096,
    /// 6144 bits.
    Ffdhe6144,
    /// 8192 bits.
    Ffdhe8192,
}

impl DhchapDigest {
    /// All of them, the best first.
    pub const ALL: [DhchapDigest; 3] = [DhchapDigest::Sha512, DhchapDigest::Sha384, DhchapDigest::Sha256];

    fn id(self) -> HashId {
        match self {
            DhchapDigest::Sha256 => HashId::SHA_256,
            DhchapDigest::Sha384 => HashId::SHA_384,
            DhchapDigest::Sha512 => HashId::SHA_512,
        }
    }
}

impl DhchapGroup {
    /// All of them, the best first.
    pub const ALL: [DhchapGroup; 6] = [
        DhchapGroup::Ffdhe8192,
        DhchapGroup::Ffdhe6144,
        DhchapGroup::Ffdhe4096,
        DhchapGroup::Ffdhe3072,
        DhchapGroup::Ffdhe2048,
        DhchapGroup::Null,
    ];

    fn id(self) -> DhGroupId {
        match self {
            DhchapGroup::Null => DhGroupId::NULL,
            DhchapGroup::Ffdhe2048 => DhGroupId::FFDHE_2048,
            DhchapGroup::Ffdhe3072 => DhGroupId::FFDHE_3072,
            DhchapGroup::Ffdhe4096 => DhGroupId::FFDHE_4096,
            DhchapGroup::Ffdhe6144 => DhGroupId::FFDHE_6144,
            DhchapGroup::Ffdhe8192 => DhGroupId::FFDHE_8192,
        }
    }
}

/// Names of the keys of a transaction.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct KeyNames {
    pub(crate) dhchap_key: Option<String>,
    pub(crate) dhchap_ctrlr_key: Option<String>,
}

/// With what queues authenticate.
#[derive(Clone, Debug, Default)]
pub(crate) struct Credentials {
    host_key: Option<DhchapKey>,
    controller_key: Option<DhchapKey>,
    hashes: Vec<HashId>,
    groups: Vec<DhGroupId>,
}

/// Keys in use, which the operator cannot remove meanwhile.
pub(crate) type HeldKeys = Vec<HeldKey>;

impl KeyNames {
    pub(crate) fn of(params: &NvmeParams) -> Self {
        let (dhchap_key, dhchap_ctrlr_key) = (params.dhchap_key.clone(), params.dhchap_ctrlr_key.clone());
        KeyNames { dhchap_key, dhchap_ctrlr_key }
    }

    /// Refuses names that make no sense together.
    pub(crate) fn check(&self) -> Result<(), Error> {
        if self.dhchap_ctrlr_key.is_some() && self.dhchap_key.is_none() {
            let reason =
                "dhchap_ctrlr_key needs a dhchap_key: a controller proves itself only to a host that does";
            return Err(Error::invalid(reason));
        }
        Ok(())
    }
}

impl Credentials {
    /// Takes keys from the host's keyring.
    pub(crate) fn load(host: Host, names: &KeyNames, config: &NvmeConfig) -> Result<(Self, HeldKeys), Error> {
        names.check()?;
        let mut held = Vec::new();
        let host_key = dhchap_key(host, "dhchap_key", names.dhchap_key.as_deref(), &mut held)?;
        let name = names.dhchap_ctrlr_key.as_deref();
        let controller_key = dhchap_key(host, "dhchap_ctrlr_key", name, &mut held)?;
        let hashes = config.dhchap_digests.iter().map(|digest| digest.id()).collect();
        let groups = config.dhchap_dhgroups.iter().map(|group| group.id()).collect();
        Ok((Credentials { host_key, controller_key, hashes, groups }, held))
    }

    /// There is a key to authenticate with.
    pub(crate) fn has_key(&self) -> bool {
        self.host_key.is_some()
    }

    /// The controller has to prove itself, whether it asks for authentication or not.
    pub(crate) fn is_mutual(&self) -> bool {
        self.controller_key.is_some()
    }

    pub(crate) fn parties(&self, hostnqn: &str, subnqn: &str) -> Parties {
        Parties {
            hostnqn: hostnqn.to_owned(),
            subnqn: subnqn.to_owned(),
            host_key: self.host_key.clone(),
            controller_key: self.controller_key.clone(),
            hashes: self.hashes.clone(),
            groups: self.groups.clone(),
        }
    }
}

fn dhchap_key(
    host: Host,
    parameter: &str,
    name: Option<&str>,
    held: &mut HeldKeys,
) -> Result<Option<DhchapKey>, Error> {
    let Some(name) = name else { return Ok(None) };
    match secret(host, parameter, name, held)? {
        Secret::Dhchap(key) => Ok(Some(key)),
        Secret::Tls(_) => {
            Err(Error::invalid(format!("{parameter} `{name}` is a TLS key: must be a DHHC-1 key")))
        }
    }
}

/// The key that secures channels, by the name `psk`.
pub(crate) fn channel_key(
    host: Host,
    params: &NvmeParams,
    hostnqn: &str,
    held: &mut HeldKeys,
) -> Result<Option<ChannelKey>, Error> {
    let Some(name) = params.psk.as_deref() else { return Ok(None) };
    let key = match secret(host, "psk", name, held)? {
        Secret::Tls(key) => key,
        Secret::Dhchap(_) => {
            return Err(Error::invalid(format!("psk `{name}` is a DHHC-1 key: must be an NVMeTLSkey-1 key")));
        }
    };
    let version = params.psk_identity_version.unwrap_or(0);
    derive(&key, version, hostnqn, &params.subnqn)
        .map(Some)
        .ok_or_else(|| Error::invalid(format!("psk `{name}` gives no key of identity version {version}")))
}

fn derive(key: &TlsKey, version: u8, hostnqn: &str, subnqn: &str) -> Option<ChannelKey> {
    let identity = key.identity(version, hostnqn, subnqn)?;
    let secret = key.derive(&Identity::parse(&identity)?)?;
    Some(ChannelKey::new(identity, secret))
}

fn secret(host: Host, parameter: &str, name: &str, held: &mut HeldKeys) -> Result<Secret, Error> {
    let key = host
        .named_key(name)
        .map_err(|error| Error::new(error.code, format!("{parameter} `{name}`: {}", error.reason)))?;
    let secret = Secret::parse(key.text())
        .map_err(|error| Error::invalid(format!("{parameter} `{name}` is no key: {error}")))?;
    held.push(key);
    Ok(secret)
}
