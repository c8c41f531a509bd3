//! Names of devices: what a valid one is, and which device has it.
//!
//! Names, aliases and UUIDs share one space, as an operator may use any of them
//! in any place. Does not know what a device is.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use tenon_abi::BdevHandle;
use uuid::Uuid;

/// Why a name cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    #[error("name is empty")]
    Empty,
    #[error("name has {0} bytes, at most {MAX_NAME} are allowed")]
    TooLong(usize),
    #[error("name {0:?} contains a control character: leave it out")]
    ControlCharacter(String),
    #[error("name {0:?} contains a slash, which only aliases may")]
    Slash(String),
    #[error("name {0} is taken")]
    Taken(String),
}

/// Who has which name.
#[derive(Debug, Default)]
pub(crate) struct Names {
    holders: HashMap<Arc<str>, BdevHandle>,
}

impl Names {
    /// Gives every name of `names` to `bdev`, or none.
    pub(crate) fn insert(&mut self, names: &[Arc<str>], bdev: BdevHandle) -> Result<(), NameError> {
        for (done, name) in names.iter().enumerate() {
            match self.holders.entry(name.clone()) {
                Entry::Vacant(vacant) => {
                    vacant.insert(bdev);
                }
                Entry::Occupied(_) => {
                    self.remove(&names[..done]);
                    return Err(NameError::Taken(name.to_string()));
                }
            }
        }
        Ok(())
    }

    pub(crate) fn remove(&mut self, names: &[Arc<str>]) {
        for name in names {
            self.holders.remove(name);
        }
    }

    /// The device of that name, alias or UUID (in any spelling).
    pub(crate) fn find(&self, name: &str) -> Option<BdevHandle> {
        if let Some(bdev) = self.holders.get(name) {
            return Some(*bdev);
        }
        let uuid = Uuid::try_parse(name).ok()?;
        self.holders.get(uuid_name(&uuid).as_ref()).copied()
    }
}

/// A name a device may have.
///
/// # Errors
/// It is empty, too long, or has a slash or a control character.
pub fn check_name(name: &str) -> Result<(), NameError> {
    if name.contains('/') {
        return Err(NameError::Slash(name.to_owned()));
    }
    check_alias(name)
}

/// An alias may be a path of names, such as that of a volume in its store.
pub(crate) fn check_alias(name: &str) -> Result<(), NameError> {
    if name.is_empty() {
        return Err(NameError::Empty);
    }
    if name.len() > MAX_NAME {
        return Err(NameError::TooLong(name.len()));
    }
    if name.chars().any(char::is_control) {
        return Err(NameError::ControlCharacter(name.to_owned()));
    }
    Ok(())
}

/// The alias every device has for its identity.
pub(crate) fn uuid_name(uuid: &Uuid) -> Arc<str> {
    Arc::from(uuid.as_hyphenated().encode_lower(&mut Uuid::encode_buffer()) as &str)
}

/// Longest name in bytes.
pub(crate) const MAX_NAME: usize = 255;

#[cfg(test)]
mod tests {
    use super::{NameError, Names, check_alias, check_name, uuid_name};
    use std::sync::Arc;
    use tenon_abi::BdevHandle;
    use uuid::Uuid;

    #[test]
    fn names_are_text_without_control_characters_or_slashes() {
        assert_eq!(check_name("Malloc0"), Ok(()));
        assert_eq!(check_name("größe 1"), Ok(()));
        assert_eq!(check_name(""), Err(NameError::Empty));
        assert_eq!(check_name(&"n".repeat(255)), Ok(()));
        assert_eq!(check_name(&"n".repeat(256)), Err(NameError::TooLong(256)));
        assert!(matches!(check_name("a\nb"), Err(NameError::ControlCharacter(_))));
        assert!(matches!(check_name("lvs/lvol"), Err(NameError::Slash(_))));
        assert_eq!(check_alias("lvs/lvol"), Ok(()));
    }

    #[test]
    fn a_device_is_found_by_its_uuid_in_any_spelling() {
        let uuid = Uuid::from_u128(0xabcd_ef01_2345_6789_abcd_ef01_2345_6789);
        let mut names = Names::default();
        names.insert(&["m0".into(), uuid_name(&uuid)], BdevHandle(7)).unwrap();
        for text in
            [uuid.to_string(), uuid.to_string().to_uppercase(), uuid.simple().to_string(), "m0".into()]
        {
            assert_eq!(names.find(&text), Some(BdevHandle(7)), "{text}");
        }
    }

    #[test]
    fn a_taken_name_leaves_no_trace_of_the_others() {
        let mut names = Names::default();
        let (a, b): (Arc<str>, Arc<str>) = ("a".into(), "b".into());
        names.insert(std::slice::from_ref(&b), BdevHandle(1)).unwrap();
        assert_eq!(names.insert(&[a.clone(), b], BdevHandle(2)), Err(NameError::Taken("b".into())));
        assert_eq!(names.find("a"), None);
        assert_eq!(names.insert(&[a], BdevHandle(2)), Ok(()));
    }
}
