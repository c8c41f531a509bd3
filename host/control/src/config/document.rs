//! TOML with a memory for lines: every table becomes JSON for the one who owns
//! it, and a path inside that JSON can be told as `file:line` again.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use thiserror::Error;
use toml::de::{DeTable, DeValue};

use super::sections::SECTIONS;
use super::suggest::nearest;

/// A place in a configuration file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Location {
    /// The file, as the operator named it.
    pub file: PathBuf,
    /// Line, from 1.
    pub line: usize,
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file.display(), self.line)
    }
}

/// What is wrong with a configuration file, and where.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{}: {reason}", .file.display())]
    Unreadable {
        /// The file.
        file: PathBuf,
        /// Why.
        reason: String,
    },
    /// The text is no TOML.
    #[error("{at}: {}", one_line(.reason))]
    Syntax {
        /// Where.
        at: Location,
        /// What the parser says.
        reason: String,
    },
    /// A key nobody knows.
    #[error("{at}: unknown key `{}` in {}; {remedy}", one_line(.key), one_line(.table))]
    UnknownKey {
        /// Where.
        at: Location,
        /// The table, e.g. `[[bdev]] m0`.
        table: String,
        /// The key.
        key: String,
        /// The key that was probably meant, or all keys there are.
        remedy: String,
    },
    /// A key that must be there is not.
    #[error("{at}: {} lacks `{key}`", one_line(.table))]
    MissingKey {
        /// Where the table starts.
        at: Location,
        /// The table.
        table: String,
        /// The key.
        key: String,
    },
    /// A value that does not fit its key.
    #[error("{at}: {}: {}", one_line(.key), one_line(.reason))]
    BadValue {
        /// Where.
        at: Location,
        /// The key with its table.
        key: String,
        /// What is wrong and what would be right.
        reason: String,
    },
}

/// What to do about an unknown key.
pub(super) fn remedy<'a>(key: &str, known: impl Iterator<Item = &'a str> + Clone) -> String {
    match nearest(key, known.clone()) {
        Some(near) => format!("did you mean `{near}`?"),
        None => format!("known keys: {}", known.collect::<Vec<_>>().join(", ")),
    }
}

/// `text` with its control characters escaped: names and values of the file may have any.
fn one_line(text: &str) -> String {
    let escaped =
        |letter: char| if letter.is_control() { letter.escape_default().to_string() } else { letter.into() };
    text.chars().map(escaped).collect()
}

/// A table of the file as JSON, with the line of every key.
#[derive(Clone, Debug)]
pub struct Table {
    /// What to call it in messages, e.g. `[[bdev]] m0`.
    pub title: String,
    /// Its content.
    pub value: Map<String, Value>,
    file: PathBuf,
    line: usize,
    /// JSON path (`base_bdevs.1`) to line.
    lines: BTreeMap<String, usize>,
}

impl Table {
    /// A table that stands in no file (made from RPC parameters or in a test).
    #[must_use]
    pub fn detached(title: &str, value: Map<String, Value>) -> Self {
        Table {
            title: title.to_owned(),
            value,
            file: PathBuf::from("(request)"),
            line: 0,
            lines: BTreeMap::new(),
        }
    }

    /// Where the table starts.
    #[must_use]
    pub fn location(&self) -> Location {
        Location { file: self.file.clone(), line: self.line }
    }

    /// Where `path` (keys and indices joined by dots) stands, or the table if it is unknown.
    #[must_use]
    pub fn location_of(&self, path: &str) -> Location {
        let mut path = path;
        loop {
            if let Some(line) = self.lines.get(path) {
                return Location { file: self.file.clone(), line: *line };
            }
            match path.rsplit_once('.') {
                Some((parent, _)) => path = parent,
                None => return self.location(),
            }
        }
    }

    /// Refuses keys outside `known`.
    ///
    /// # Errors
    /// [`ConfigError::UnknownKey`] for the first such key.
    pub fn check_keys<'a>(&self, known: impl Iterator<Item = &'a str> + Clone) -> Result<(), ConfigError> {
        let unknown = |key: &&String| !known.clone().any(|candidate| candidate == key.as_str());
        match self.value.keys().find(unknown) {
            None => Ok(()),
            Some(key) => Err(ConfigError::UnknownKey {
                at: self.location_of(key),
                table: self.title.clone(),
                key: key.clone(),
                remedy: remedy(key, known),
            }),
        }
    }

    /// Refuses keys outside `known` in the table `value`, which stands at `path` in this one.
    ///
    /// # Errors
    /// [`ConfigError::UnknownKey`] for the first such key.
    pub fn check_nested_keys(&self, path: &str, value: &Value, known: &[String]) -> Result<(), ConfigError> {
        let keys = value.as_object().into_iter().flat_map(Map::keys);
        match keys.into_iter().find(|key| !known.contains(key)) {
            None => Ok(()),
            Some(key) => Err(ConfigError::UnknownKey {
                at: self.location_of(&format!("{path}.{key}")),
                table: format!("{} `{path}`", self.title),
                key: key.clone(),
                remedy: remedy(key, known.iter().map(String::as_str)),
            }),
        }
    }

    /// Takes the text under `key` out of the table.
    ///
    /// # Errors
    /// The key is missing or no text.
    pub fn take_text(&mut self, key: &str) -> Result<String, ConfigError> {
        match self.value.remove(key) {
            Some(Value::String(text)) if !text.is_empty() => Ok(text),
            Some(other) => Err(self.bad_value(key, format!("must be a non-empty string, not {other}"))),
            None => Err(ConfigError::MissingKey {
                at: self.location(),
                table: self.title.clone(),
                key: key.to_owned(),
            }),
        }
    }

    /// Takes the tables under `key` (`[[key]]` inside this one) out of the table; none if the key is absent.
    ///
    /// # Errors
    /// What stands there is no list of tables.
    pub fn take_tables(&mut self, key: &str) -> Result<Vec<Table>, ConfigError> {
        let items = match self.value.remove(key) {
            None => return Ok(Vec::new()),
            Some(Value::Array(items)) => items,
            Some(_) => return Err(self.bad_value(key, format!("is written as {}", self.child_title(key)))),
        };
        let mut tables = Vec::new();
        for (index, item) in items.into_iter().enumerate() {
            let path = format!("{key}.{index}");
            let Value::Object(value) = item else {
                return Err(self.bad_value(&path, "must be a table".to_owned()));
            };
            let prefix = format!("{path}.");
            let lines = self.lines.range(prefix.clone()..);
            let own = lines.take_while(|(path, _)| path.starts_with(&prefix));
            tables.push(Table {
                title: titled(&self.child_title(key), &value),
                line: self.location_of(&path).line,
                lines: own.map(|(path, line)| (path[prefix.len()..].to_owned(), *line)).collect(),
                file: self.file.clone(),
                value,
            });
        }
        Ok(tables)
    }

    /// `[[subsystem]] nqn` and `host` give `[[subsystem.host]]`.
    fn child_title(&self, key: &str) -> String {
        let own = self.title.split("]]").next().unwrap_or(&self.title);
        format!("{own}.{key}]]")
    }

    /// The table as a typed value.
    ///
    /// # Errors
    /// A value does not fit; the error names its line.
    pub fn parse<T: DeserializeOwned>(&self) -> Result<T, ConfigError> {
        serde_path_to_error::deserialize(Value::Object(self.value.clone())).map_err(|error| {
            let path = error.path().to_string();
            self.bad_value(&path, error.inner().to_string())
        })
    }

    /// An error about the value at `path`.
    #[must_use]
    pub fn bad_value(&self, path: &str, reason: String) -> ConfigError {
        let key = if path == "." { self.title.clone() } else { format!("{} `{path}`", self.title) };
        ConfigError::BadValue { at: self.location_of(path), key, reason }
    }
}

/// Reads `text` into its top-level tables: single tables under their name, arrays of tables one by one.
///
/// # Errors
/// The text is no TOML, or a top-level value is no table.
pub fn read(file: &Path, text: &str) -> Result<Vec<(String, Table)>, ConfigError> {
    let lines = LineIndex::new(text);
    let root = DeTable::parse(text).map_err(|error| ConfigError::Syntax {
        at: Location {
            file: file.to_owned(),
            line: error.span().map_or(1, |span| lines.line_of(span.start)),
        },
        reason: error.message().to_owned(),
    })?;
    let mut tables = Vec::new();
    for (key, value) in root.get_ref() {
        let name = key.get_ref().to_string();
        let line = lines.line_of(key.span().start);
        match value.get_ref() {
            DeValue::Table(table) => {
                tables.push((name.clone(), to_table(file, &lines, format!("[{name}]"), line, table)?));
            }
            DeValue::Array(items) if items.iter().all(|item| item.get_ref().is_table()) => {
                for item in items.iter() {
                    let DeValue::Table(table) = item.get_ref() else { continue };
                    let line = lines.line_of(item.span().start);
                    tables.push((name.clone(), to_table(file, &lines, format!("[[{name}]]"), line, table)?));
                }
            }
            _ => {
                let at = Location { file: file.to_owned(), line };
                return Err(if SECTIONS.contains(&name.as_str()) {
                    ConfigError::BadValue {
                        at,
                        key: format!("`{name}`"),
                        reason: "must be a table".to_owned(),
                    }
                } else {
                    let remedy = remedy(&name, SECTIONS.iter().copied());
                    ConfigError::UnknownKey { at, table: "the configuration".to_owned(), key: name, remedy }
                });
            }
        }
    }
    tables.sort_by_key(|(_, table)| table.line);
    Ok(tables)
}

fn to_table(
    file: &Path,
    lines: &LineIndex,
    title: String,
    line: usize,
    table: &DeTable<'_>,
) -> Result<Table, ConfigError> {
    let mut found = BTreeMap::new();
    let value = object(lines, "", table, &mut found).map_err(|(line, reason)| ConfigError::BadValue {
        at: Location { file: file.to_owned(), line },
        key: title.clone(),
        reason,
    })?;
    Ok(Table { title: titled(&title, &value), value, file: file.to_owned(), line, lines: found })
}

/// The title of a table with what names its object.
fn titled(title: &str, value: &Map<String, Value>) -> String {
    let naming = ["name", "nqn", "bdev_name", "traddr", "trtype"];
    match naming.iter().find_map(|key| value.get(*key)).and_then(Value::as_str) {
        Some(name) => format!("{title} {name}"),
        None => title.to_owned(),
    }
}

fn object(
    lines: &LineIndex,
    path: &str,
    table: &DeTable<'_>,
    found: &mut BTreeMap<String, usize>,
) -> Result<Map<String, Value>, (usize, String)> {
    let mut map = Map::new();
    for (key, value) in table {
        let name = key.get_ref().to_string();
        let path = join(path, &name);
        found.insert(path.clone(), lines.line_of(key.span().start));
        map.insert(name, json(lines, &path, lines.line_of(value.span().start), value.get_ref(), found)?);
    }
    Ok(map)
}

fn json(
    lines: &LineIndex,
    path: &str,
    line: usize,
    value: &DeValue<'_>,
    found: &mut BTreeMap<String, usize>,
) -> Result<Value, (usize, String)> {
    Ok(match value {
        DeValue::String(text) => Value::String(text.to_string()),
        DeValue::Boolean(flag) => Value::Bool(*flag),
        DeValue::Integer(number) => {
            i64::from_str_radix(number.as_str(), number.radix()).map(Value::from).map_err(|_| {
                (line, format!("`{path}`: {} is outside the range of 64-bit integers", number.as_str()))
            })?
        }
        DeValue::Float(number) => number
            .as_str()
            .parse::<f64>()
            .ok()
            .and_then(serde_json::Number::from_f64)
            .map(Value::Number)
            .ok_or_else(|| (line, format!("`{path}`: {} is no finite number", number.as_str())))?,
        DeValue::Datetime(_) => return Err((line, format!("`{path}`: no key takes a date"))),
        DeValue::Table(table) => Value::Object(object(lines, path, table, found)?),
        DeValue::Array(items) => {
            let mut list = Vec::new();
            for (index, item) in items.iter().enumerate() {
                let path = join(path, &index.to_string());
                let line = lines.line_of(item.span().start);
                found.insert(path.clone(), line);
                list.push(json(lines, &path, line, item.get_ref(), found)?);
            }
            Value::Array(list)
        }
    })
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

/// Byte offsets of line starts.
struct LineIndex(Vec<usize>);

impl LineIndex {
    fn new(text: &str) -> Self {
        LineIndex(std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect())
    }

    fn line_of(&self, offset: usize) -> usize {
        self.0.partition_point(|start| *start <= offset).max(1)
    }
}
