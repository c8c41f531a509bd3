//! What must be done to get from one configuration to another: the plan of a
//! reload. Compares tables by name and content; knows nothing of devices that
//! were made by RPC, which a reload leaves alone.

use std::collections::HashMap;

use super::sections::{BdevEntry, Config, ModuleEntry, QosTable};

/// One step of a reload.
#[derive(Clone, Debug)]
pub enum Change {
    /// The device is no longer in the file.
    Remove {
        /// Its name.
        name: String,
        /// Its module.
        module: String,
    },
    /// The device is new in the file.
    Add(BdevEntry),
    /// The device's parameters differ.
    Update(BdevEntry),
    /// Only the device's rate limits differ.
    SetQos {
        /// Its name.
        name: String,
        /// The limits.
        qos: QosTable,
    },
}

impl Change {
    /// The device's name.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Change::Remove { name, .. } | Change::SetQos { name, .. } => name,
            Change::Add(entry) | Change::Update(entry) => &entry.name,
        }
    }
}

/// Modules that are new in the file or whose options differ, with their tables in `new`; without one, those that
/// had options in `old` and are no longer in the file.
#[must_use]
pub fn module_difference<'a>(
    old: &[ModuleEntry],
    new: &'a [ModuleEntry],
) -> Vec<(String, Option<&'a ModuleEntry>)> {
    let find = |list: &'a [ModuleEntry], name: &str| list.iter().find(|entry| entry.name == name);
    let before: HashMap<&str, &ModuleEntry> = old.iter().map(|entry| (entry.name.as_str(), entry)).collect();
    let differs = |entry: &&ModuleEntry| {
        before.get(entry.name.as_str()).is_none_or(|old| old.options.value != entry.options.value)
    };
    let changed = new.iter().filter(differs).map(|entry| (entry.name.clone(), Some(entry)));
    let gone = old
        .iter()
        .filter(|entry| !entry.options.value.is_empty() && find(new, &entry.name).is_none())
        .map(|entry| (entry.name.clone(), None));
    changed.chain(gone).collect()
}

/// The steps from `old` to `new`: removals first, last created first; then the rest in the order of `new`.
#[must_use]
pub fn difference(old: &Config, new: &Config) -> Vec<Change> {
    let before: HashMap<&str, &BdevEntry> =
        old.bdevs.iter().map(|entry| (entry.name.as_str(), entry)).collect();
    let after: HashMap<&str, &BdevEntry> =
        new.bdevs.iter().map(|entry| (entry.name.as_str(), entry)).collect();
    let goes =
        |entry: &&BdevEntry| after.get(entry.name.as_str()).is_none_or(|new| new.module != entry.module);
    let mut changes: Vec<Change> = old
        .bdevs
        .iter()
        .rev()
        .filter(goes)
        .map(|entry| Change::Remove { name: entry.name.clone(), module: entry.module.clone() })
        .collect();
    for entry in &new.bdevs {
        match before.get(entry.name.as_str()) {
            Some(old) if old.module == entry.module => {
                if old.params.value != entry.params.value {
                    changes.push(Change::Update(entry.clone()));
                }
                if old.qos != entry.qos {
                    changes.push(Change::SetQos { name: entry.name.clone(), qos: entry.qos });
                }
            }
            _ => changes.push(Change::Add(entry.clone())),
        }
    }
    changes
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};
    use std::path::Path;

    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    fn config(text: &str) -> Config {
        Config::parse(Path::new("t.toml"), text).unwrap()
    }

    fn words(changes: &[Change]) -> Vec<String> {
        changes
            .iter()
            .map(|change| match change {
                Change::Remove { name, .. } => format!("-{name}"),
                Change::Add(entry) => format!("+{}", entry.name),
                Change::Update(entry) => format!("~{}", entry.name),
                Change::SetQos { name, .. } => format!("q{name}"),
            })
            .collect()
    }

    #[track_caller]
    fn check(old: &str, new: &str, expected: &[&str]) {
        let table = |names: &str| {
            names
                .split_whitespace()
                .map(|spec| {
                    let mut parts = spec.split(':');
                    let (name, module) = (parts.next().unwrap(), parts.next().unwrap_or("null"));
                    let rest = parts.next().map_or(String::new(), |rest| rest.replace('|', "\n"));
                    format!("[[bdev]]\nname = \"{name}\"\nmodule = \"{module}\"\n{rest}\n")
                })
                .collect::<String>()
        };
        assert_eq!(words(&difference(&config(&table(old)), &config(&table(new)))), expected);
    }

    #[test]
    fn equal_files_need_nothing() {
        check("a b:delay:base=\"a\"", "b:delay:base=\"a\" a", &[]);
    }

    #[test]
    fn removals_come_first_and_in_reverse() {
        check("a b c", "c d", &["-b", "-a", "+d"]);
    }

    #[test]
    fn another_module_under_the_same_name_is_a_new_device() {
        check("a:null", "a:malloc", &["-a", "+a"]);
    }

    #[test]
    fn changed_parameters_and_limits_are_told_apart() {
        check("a:null:x=1 b", "a:null:x=2 b:null:qos={rw_mbytes_per_sec=5}", &["~a", "qb"]);
    }

    /// A file of devices `a` to `f`, each of one of two modules, with one of three parameters and of two limits.
    fn any_file() -> impl Strategy<Value = String> {
        let device = (0..6usize, 0..2usize, 0..3u32, 0..2u32);
        proptest::collection::vec(device, 0..8).prop_map(|devices| {
            let mut seen = BTreeSet::new();
            let table = |(name, module, size, limit): (usize, usize, u32, u32)| {
                let name =
                    ["a", "b", "c", "d", "e", "f"].get(name).copied().filter(|name| seen.insert(*name))?;
                let module = ["null", "malloc"][module];
                Some(format!(
                    "[[bdev]]\nname = \"{name}\"\nmodule = \"{module}\"\nsize = {size}\n\
                     qos = {{ rw_mbytes_per_sec = {limit} }}\n"
                ))
            };
            devices.into_iter().filter_map(table).collect()
        })
    }

    /// What is there, by name: module, parameters and limits.
    type World = BTreeMap<String, (String, Value, QosTable)>;

    fn world(config: &Config) -> World {
        let content =
            |entry: &BdevEntry| (entry.module.clone(), Value::Object(entry.params.value.clone()), entry.qos);
        config.bdevs.iter().map(|entry| (entry.name.clone(), content(entry))).collect()
    }

    /// Makes one step; one that cannot be made is a fault of the plan.
    fn make(world: &mut World, change: &Change) {
        let params = |entry: &BdevEntry| Value::Object(entry.params.value.clone());
        match change {
            Change::Remove { name, module } => {
                let removed = world.remove(name).expect("only what is there is removed");
                assert_eq!(removed.0, *module);
            }
            Change::Add(entry) => {
                let added = (entry.module.clone(), params(entry), entry.qos);
                assert!(world.insert(entry.name.clone(), added).is_none(), "{} is taken", entry.name);
            }
            Change::Update(entry) => {
                let found = world.get_mut(&entry.name).expect("only what is there is changed");
                assert_ne!(found.1, params(entry), "what does not change is left alone");
                found.1 = params(entry);
            }
            Change::SetQos { name, qos } => {
                let found = world.get_mut(name).expect("only what is there is limited");
                assert_ne!(found.2, *qos, "what does not change is left alone");
                found.2 = *qos;
            }
        }
    }

    proptest! {
        #[test]
        fn its_steps_lead_from_any_file_to_any_other(old in any_file(), new in any_file()) {
            let (old, new) = (config(&old), config(&new));
            let mut there = world(&old);
            let changes = difference(&old, &new);
            changes.iter().for_each(|change| make(&mut there, change));
            prop_assert_eq!(there, world(&new));
            let is_removal = |change: &Change| matches!(change, Change::Remove { .. });
            let first_other = changes.iter().position(|change| !is_removal(change)).unwrap_or(changes.len());
            prop_assert!(!changes[first_other..].iter().any(is_removal), "removals come first");
            prop_assert!(difference(&new, &new).is_empty());
        }
    }

    #[test]
    fn modules_that_are_new_changed_or_gone_are_told_apart() {
        let old = config(
            "[[module]]\nname=\"same\"\nx=1\n[[module]]\nname=\"changed\"\nx=1\n\
                          [[module]]\nname=\"gone\"\nx=1\n[[module]]\nname=\"bare\"\n",
        );
        let new = config(
            "[[module]]\nname=\"new\"\n[[module]]\nname=\"changed\"\nx=2\n\
                          [[module]]\nname=\"same\"\nx=1\nrequired=true\n",
        );
        let words: Vec<(String, bool)> = module_difference(&old.modules, &new.modules)
            .into_iter()
            .map(|(name, entry)| (name, entry.is_some()))
            .collect();
        // Nothing is left to do about `bare`, which was only to be loaded.
        assert_eq!(words, [("new".into(), true), ("changed".into(), true), ("gone".into(), false)]);
    }
}
