//! Keys by name, each from a file that only its owner may read.
//!
//! A file is read once, when its key is added; hosts refer to keys by name. To
//! rotate a key, add the new one under another name and give it to the host.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nvme_auth::secret::{DhchapKey, Secret, SecretError, TlsKey};
use zeroize::Zeroizing;

use crate::error::TargetError;
use crate::target::Target;

/// The keys there are.
#[derive(Debug, Default)]
pub(crate) struct Keyring {
    keys: BTreeMap<String, Key>,
}

#[derive(Debug)]
struct Key {
    path: PathBuf,
    secret: Secret,
    /// How often modules hold it.
    held: usize,
}

/// A key for reports; not its secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeySnapshot {
    /// Its name.
    pub name: String,
    /// The file it came from.
    pub path: PathBuf,
    /// What it is for: `dhchap` or `tls`.
    pub kind: &'static str,
    /// How many hosts and modules use it.
    pub users: usize,
}

/// Why a file gives no key.
#[derive(Debug, thiserror::Error)]
enum KeyFileError {
    #[error("its path is not absolute")]
    Relative,
    #[error("it cannot be read: {0}")]
    Io(#[from] io::Error),
    #[error("it is no regular file")]
    Kind,
    #[error("its mode is {0:04o}: others than its owner may use it; make it 0600")]
    Mode(u32),
    #[error("it belongs to user {0}, not to this process's user")]
    Owner(u32),
    #[error("it is longer than {MAX_FILE_BYTES} bytes")]
    Length,
    #[error("it holds no key: {0}")]
    Secret(#[from] SecretError),
}

impl Keyring {
    pub(crate) fn dhchap(&self, name: &str) -> Option<DhchapKey> {
        match &self.keys.get(name)?.secret {
            Secret::Dhchap(key) => Some(key.clone()),
            Secret::Tls(_) => None,
        }
    }

    pub(crate) fn tls(&self, name: &str) -> Option<TlsKey> {
        match &self.keys.get(name)?.secret {
            Secret::Tls(key) => Some(key.clone()),
            Secret::Dhchap(_) => None,
        }
    }
}

impl Target {
    /// Adds the key in a file, which has to be the owner's alone (mode 0600).
    pub fn add_key_file(
        &self,
        name: &str,
        path: &Path,
        done: impl FnOnce(Result<(), TargetError>) + 'static,
    ) {
        let checked = self.check_key_name(name);
        if let Err(error) = checked {
            return self.later(move || done(Err(error)));
        }
        let (target, name, path) = (self.clone(), name.to_owned(), path.to_owned());
        let file = path.clone();
        self.offload(move || read(&file), move |secret| done(target.insert_key(name, path, secret)));
    }

    fn insert_key(
        &self,
        name: String,
        path: PathBuf,
        secret: Result<Secret, KeyFileError>,
    ) -> Result<(), TargetError> {
        self.check_key_name(&name)?;
        let secret = secret.map_err(|error| {
            TargetError::invalid(format!("key {name} of {}", path.display()), error.to_string())
        })?;
        log::info!("key added name={name} kind={}", secret.kind());
        self.inner.keyring.borrow_mut().keys.insert(name, Key { path, secret, held: 0 });
        Ok(())
    }

    fn check_key_name(&self, name: &str) -> Result<(), TargetError> {
        let object = format!("key {name:?}");
        let is_word = |byte: u8| byte.is_ascii_graphic();
        if name.is_empty() || name.len() > MAX_NAME_BYTES || !name.bytes().all(is_word) {
            let reason = format!("a name is 1 to {MAX_NAME_BYTES} printable characters without space");
            return Err(TargetError::invalid(object, reason));
        }
        let keyring = self.inner.keyring.borrow();
        if keyring.keys.contains_key(name) {
            return Err(TargetError::KeyExists(name.to_owned()));
        }
        if keyring.keys.len() >= MAX_KEYS {
            return Err(TargetError::TooMany { object: "keys".into(), limit: MAX_KEYS });
        }
        Ok(())
    }

    /// Forgets a key that nobody uses.
    pub fn remove_key(&self, name: &str) -> Result<(), TargetError> {
        if !self.inner.keyring.borrow().keys.contains_key(name) {
            return Err(TargetError::NoKey(name.to_owned()));
        }
        if self.key_users(name) > 0 {
            return Err(TargetError::KeyInUse(name.to_owned()));
        }
        self.inner.keyring.borrow_mut().keys.remove(name);
        log::info!("key removed name={name}");
        Ok(())
    }

    /// The keys there are, by name.
    pub fn keys(&self) -> Vec<KeySnapshot> {
        let keyring = self.inner.keyring.borrow();
        let snapshot = |(name, key): (&String, &Key)| KeySnapshot {
            name: name.clone(),
            path: key.path.clone(),
            kind: key.secret.kind(),
            users: self.key_users(name),
        };
        keyring.keys.iter().map(snapshot).collect()
    }

    fn key_users(&self, name: &str) -> usize {
        let subsystems = self.inner.subsystems.borrow();
        let users = |subsystem: &std::rc::Rc<crate::subsystem::Subsystem>| {
            subsystem.hosts.borrow().values().filter(|keys| keys.uses(name)).count()
        };
        let held = self.inner.keyring.borrow().keys.get(name).map_or(0, |key| key.held);
        subsystems.values().map(users).sum::<usize>() + held
    }

    /// The text of a key, which a module holds from now on.
    pub(crate) fn hold_key(&self, name: &str) -> Option<Zeroizing<String>> {
        let mut keyring = self.inner.keyring.borrow_mut();
        let key = keyring.keys.get_mut(name)?;
        key.held += 1;
        Some(key.secret.to_text())
    }

    /// A module holds a key once less.
    pub(crate) fn let_go_of_key(&self, name: &str) {
        let mut keyring = self.inner.keyring.borrow_mut();
        match keyring.keys.get_mut(name) {
            Some(key) if key.held > 0 => key.held -= 1,
            Some(_) | None => log::error!("module released a key that it does not have name={name}"),
        }
    }
}

/// The key in a file. Blocking.
fn read(path: &Path) -> Result<Secret, KeyFileError> {
    if !path.is_absolute() {
        return Err(KeyFileError::Relative);
    }
    let file = File::open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(KeyFileError::Kind);
    }
    let mode = metadata.mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(KeyFileError::Mode(mode));
    }
    let own = rustix::process::geteuid().as_raw();
    if metadata.uid() != own && own != 0 {
        return Err(KeyFileError::Owner(metadata.uid()));
    }
    if metadata.len() > MAX_FILE_BYTES {
        return Err(KeyFileError::Length);
    }
    let mut text = Zeroizing::new(String::with_capacity(MAX_FILE_BYTES as usize));
    file.take(MAX_FILE_BYTES).read_to_string(&mut text)?;
    Ok(Secret::parse(&text)?)
}

/// Most keys.
const MAX_KEYS: usize = 4096;
const MAX_NAME_BYTES: usize = 128;
/// The longest key is far shorter.
const MAX_FILE_BYTES: u64 = 4096;

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn file(name: &str, text: &str, mode: u32) -> PathBuf {
        let path = std::env::temp_dir().join(format!("tenon-key-{name}-{}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        std::fs::write(&path, text).expect("written");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).expect("mode");
        path
    }

    #[track_caller]
    fn wrong(path: &Path, word: &str) {
        let error = read(path).expect_err("no key").to_string();
        assert!(error.contains(word), "{error}");
    }

    #[test]
    fn only_a_private_file_with_a_key_is_read() {
        let text = "DHHC-1:00:ia6zGodOr4SEG0Zzaw398rpY0wqipUWj4jWjUh4HWUz6aQ2n:";
        assert!(read(&file("good", text, 0o600)).is_ok());
        assert!(read(&file("read", text, 0o400)).is_ok());
        wrong(&file("group", text, 0o640), "0640");
        wrong(&file("world", text, 0o604), "0604");
        wrong(&file("text", "secret", 0o600), "no key");
        wrong(&file("long", &"x".repeat(5000), 0o600), "4096");
        wrong(Path::new("key"), "absolute");
        wrong(Path::new("/nowhere/key"), "cannot be read");
        wrong(&std::env::temp_dir(), "regular");
    }
}
