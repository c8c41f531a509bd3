//! What must be done to get from one configuration to another: the plan of a
//! reload. Compares tables by name and content; knows nothing of devices that
//! were made by RPC, which a reload leaves alone.

use std::collections::HashMap;

use super::sections::{BdevEntry, Config, QosTable};

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
    use std::path::Path;

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
}
