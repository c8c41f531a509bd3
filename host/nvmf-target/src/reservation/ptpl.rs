//! Reservations that outlive the process: one small JSON file per namespace.
//!
//! A file is replaced as a whole: written beside, made durable, renamed, and
//! the folder made durable, so that a crash leaves the old file or the new one.
//! It names its namespace by UUID, and is refused for any other. Blocking; the
//! caller runs this on a worker.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use nvme_spec::reservation::ReservationType;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::state::{Held, Host, MAX_REGISTRANTS, Reservations};

/// Why a file of reservations cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PtplError {
    #[error("cannot {verb} {path}: {source}")]
    Io {
        verb: &'static str,
        path: String,
        #[source]
        source: io::Error,
    },
    #[error("{path} is no file of reservations: {reason}")]
    Format { path: String, reason: String },
    #[error("{path} holds the reservations of namespace {found}, not of {wanted}")]
    OtherNamespace { path: String, found: Uuid, wanted: Uuid },
}

/// What a file holds.
#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Saved {
    version: u32,
    uuid: Uuid,
    generation: u32,
    rtype: u8,
    #[serde(default)]
    holder: Option<Uuid>,
    registrants: Vec<SavedRegistrant>,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct SavedRegistrant {
    hostid: Uuid,
    key: u64,
}

/// The reservations in `path`; none if there is no such file.
pub(crate) fn load(path: &Path, uuid: Uuid) -> Result<Reservations, PtplError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Reservations::default()),
        Err(source) => return Err(io_error("open", path, source)),
    };
    let mut text = String::new();
    let read = file.take(MAX_BYTES).read_to_string(&mut text);
    read.map_err(|source| io_error("read", path, source))?;
    let format = |reason: String| PtplError::Format { path: path.display().to_string(), reason };
    let saved: Saved = serde_json::from_str(&text).map_err(|error| format(error.to_string()))?;
    if saved.version != VERSION {
        return Err(format(format!("version {} is unknown", saved.version)));
    }
    if saved.uuid != uuid {
        let path = path.display().to_string();
        return Err(PtplError::OtherNamespace { path, found: saved.uuid, wanted: uuid });
    }
    restore(saved).map_err(|reason| format(reason.to_owned()))
}

fn restore(saved: Saved) -> Result<Reservations, &'static str> {
    if saved.registrants.len() > MAX_REGISTRANTS {
        return Err("too many registrants");
    }
    let registrants: std::collections::BTreeMap<Host, u64> =
        saved.registrants.iter().map(|one| (one.hostid.into_bytes(), one.key)).collect();
    let rtype = ReservationType(saved.rtype);
    let held = match (rtype, saved.holder.map(Uuid::into_bytes)) {
        (ReservationType::NONE, None) => None,
        (rtype, None) if rtype.is_all_registrants() && !registrants.is_empty() => {
            Some(Held { rtype, by: None })
        }
        (rtype, Some(by)) if (1..=4).contains(&rtype.0) && registrants.contains_key(&by) => {
            Some(Held { rtype, by: Some(by) })
        }
        _ => return Err("type, holder and registrants do not fit together"),
    };
    Ok(Reservations { generation: saved.generation, registrants, held, is_persistent: true })
}

/// Makes `path` say what `state` is: no file if it does not persist.
pub(crate) fn store(path: &Path, uuid: Uuid, state: &Reservations) -> Result<(), PtplError> {
    if !state.is_persistent {
        return match fs::remove_file(path) {
            Ok(()) => sync_folder(path),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(source) => Err(io_error("remove", path, source)),
        };
    }
    let saved = Saved {
        version: VERSION,
        uuid,
        generation: state.generation,
        rtype: state.held.map_or(0, |held| held.rtype.0),
        holder: state.held.and_then(|held| held.by).map(Uuid::from_bytes),
        registrants: state
            .registrants
            .iter()
            .map(|(hostid, key)| SavedRegistrant { hostid: Uuid::from_bytes(*hostid), key: *key })
            .collect(),
    };
    let text = serde_json::to_vec_pretty(&saved)
        .map_err(|error| PtplError::Format { path: path.display().to_string(), reason: error.to_string() })?;
    let beside = beside(path);
    let written = File::create(&beside).and_then(|mut file| {
        file.write_all(&text)?;
        file.sync_all()
    });
    written.map_err(|source| io_error("write", &beside, source))?;
    fs::rename(&beside, path).map_err(|source| io_error("replace", path, source))?;
    sync_folder(path)
}

/// Makes the names in the folder of `path` durable.
fn sync_folder(path: &Path) -> Result<(), PtplError> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let synced = File::open(folder).and_then(|folder| folder.sync_all());
    synced.map_err(|source| io_error("make durable", folder, source))
}

fn beside(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    PathBuf::from(name)
}

fn io_error(verb: &'static str, path: &Path, source: io::Error) -> PtplError {
    PtplError::Io { verb, path: path.display().to_string(), source }
}

/// Form of the file.
const VERSION: u32 = 1;
/// A file of the most registrants is smaller than this.
const MAX_BYTES: u64 = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("tenon-ptpl-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).expect("a folder");
        folder
    }

    fn sample(rtype: ReservationType) -> Reservations {
        let by = (!rtype.is_all_registrants()).then_some([1; 16]);
        Reservations {
            generation: 7,
            registrants: [([1; 16], u64::MAX), ([2; 16], 5)].into(),
            held: Some(Held { rtype, by }),
            is_persistent: true,
        }
    }

    #[test]
    fn every_type_comes_back_as_it_was() {
        let path = folder("types").join("one.json");
        let uuid = Uuid::from_u128(9);
        assert_eq!(load(&path, uuid).expect("no file"), Reservations::default());
        for rtype in 1..=6 {
            let state = sample(ReservationType(rtype));
            store(&path, uuid, &state).expect("stored");
            assert_eq!(load(&path, uuid).expect("loaded"), state);
        }
        let none = Reservations { held: None, ..sample(ReservationType::WRITE_EXCLUSIVE) };
        store(&path, uuid, &none).expect("stored");
        assert_eq!(load(&path, uuid).expect("loaded"), none);
        store(&path, uuid, &Reservations::default()).expect("removed");
        assert!(!path.exists());
    }

    #[test]
    fn a_crash_before_the_rename_leaves_the_old_file() {
        let path = folder("crash").join("one.json");
        let uuid = Uuid::from_u128(9);
        let state = sample(ReservationType::EXCLUSIVE_ACCESS);
        store(&path, uuid, &state).expect("stored");
        fs::write(beside(&path), b"{\"version\":1,\"uu").expect("half a file");
        assert_eq!(load(&path, uuid).expect("loaded"), state);
        store(&path, uuid, &state).expect("stored over the half file");
    }

    #[test]
    fn a_wrong_file_is_refused_and_says_why() {
        let path = folder("wrong").join("one.json");
        let uuid = Uuid::from_u128(9);
        store(&path, uuid, &sample(ReservationType::EXCLUSIVE_ACCESS)).expect("stored");
        let other = load(&path, Uuid::from_u128(8)).expect_err("another namespace").to_string();
        assert!(other.contains("00000000-0000-0000-0000-000000000009"), "{other}");
        let text = fs::read_to_string(&path).expect("text");
        for (from, to, word) in [
            ("\"version\": 1", "\"version\": 2", "version 2"),
            ("\"rtype\": 2", "\"rtype\": 5", "do not fit"),
            ("\"rtype\": 2", "\"rtype\": 9", "do not fit"),
            ("{", "[", "no file of reservations"),
        ] {
            fs::write(&path, text.replacen(from, to, 1)).expect("written");
            let error = load(&path, uuid).expect_err("wrong").to_string();
            assert!(error.contains(word), "{error}");
        }
    }

    #[test]
    fn a_folder_that_is_missing_is_named() {
        let path = folder("missing").join("nowhere").join("one.json");
        let error =
            store(&path, Uuid::nil(), &sample(ReservationType::EXCLUSIVE_ACCESS)).expect_err("no folder");
        assert!(error.to_string().contains("nowhere"), "{error}");
    }
}
