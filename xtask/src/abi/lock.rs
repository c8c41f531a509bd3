//! `plugin-api/abi.lock` as a value, and which changes of it existing plugins survive.
//!
//! A line is `abi MAJOR.MINOR`, `Type size=N align=N` or `Type.field offset=N`.
//! Permitted: new types, and new fields at the end of a table that starts with
//! `size`. Everything else breaks somebody's plugin.

use anyhow::{Context, Result, bail};

/// The whole contract's layout.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Lock {
    major: u32,
    minor: u32,
    types: Vec<Type>,
}

/// Layout of one frozen type.
#[derive(Debug, PartialEq, Eq)]
pub struct Type {
    /// Its name in Rust.
    pub name: String,
    /// Bytes it takes.
    pub size: u64,
    /// Its alignment in bytes.
    pub align: u64,
    /// Names and offsets, in order.
    pub fields: Vec<(String, u64)>,
}

impl Lock {
    /// Reads the text of a lock.
    pub fn parse(text: &str) -> Result<Self> {
        let mut lock = Self::default();
        for line in text.lines().filter(|line| !line.trim().is_empty()) {
            lock.line(line).with_context(|| format!("abi lock, line `{line}`"))?;
        }
        if lock.major == 0 {
            bail!("abi lock: no line `abi MAJOR.MINOR`");
        }
        Ok(lock)
    }

    /// The types in the order of the text.
    pub fn types(&self) -> impl Iterator<Item = &Type> {
        self.types.iter()
    }

    /// What in `new` an existing plugin would not survive.
    pub fn breaks_to(&self, new: &Self) -> Vec<String> {
        let mut breaks = Vec::new();
        if (new.major, new.minor) < (self.major, self.minor) || new.major != self.major {
            breaks.push(format!("abi {}.{} became {}.{}", self.major, self.minor, new.major, new.minor));
        }
        for old in &self.types {
            match new.find(&old.name) {
                None => breaks.push(format!("{} is gone", old.name)),
                Some(new) => old.breaks_to(new, &mut breaks),
            }
        }
        breaks
    }

    /// What `new` adds, for the message.
    pub fn appended_in(&self, new: &Self) -> Vec<String> {
        let mut appended = Vec::new();
        for ty in &new.types {
            match self.find(&ty.name) {
                None => appended.push(format!("{} size={}", ty.name, ty.size)),
                Some(old) => {
                    let fields = ty.fields.iter().skip(old.fields.len());
                    appended
                        .extend(fields.map(|(name, offset)| format!("{}.{name} offset={offset}", ty.name)));
                }
            }
        }
        if appended.is_empty() {
            appended.push(format!("abi {}.{}, or the order of types", new.major, new.minor));
        }
        appended
    }

    fn find(&self, name: &str) -> Option<&Type> {
        self.types.iter().find(|ty| ty.name == name)
    }

    fn line(&mut self, line: &str) -> Result<()> {
        let mut words = line.split_whitespace();
        let name = words.next().context("empty")?;
        if name == "abi" {
            let version = words.next().context("no version")?;
            let (major, minor) = version.split_once('.').context("no minor version")?;
            (self.major, self.minor) = (major.parse()?, minor.parse()?);
            return Ok(());
        }
        let mut number = |key: &str| -> Result<u64> {
            let word = words.next().with_context(|| format!("no {key}"))?;
            let value = word.strip_prefix(key).and_then(|rest| rest.strip_prefix('='));
            Ok(value.with_context(|| format!("no {key}"))?.parse()?)
        };
        match name.split_once('.') {
            None => {
                let (size, align) = (number("size")?, number("align")?);
                self.types.push(Type { name: name.to_owned(), size, align, fields: Vec::new() });
            }
            Some((owner, field)) => {
                let offset = number("offset")?;
                let ty =
                    self.types.last_mut().filter(|ty| ty.name == owner).context("field without its type")?;
                ty.fields.push((field.to_owned(), offset));
            }
        }
        Ok(())
    }
}

impl Type {
    /// A table announces its reach in its first field, so it may grow at its end.
    fn may_grow(&self) -> bool {
        self.fields.first().is_some_and(|(name, offset)| name == "size" && *offset == 0)
    }

    fn breaks_to(&self, new: &Self, breaks: &mut Vec<String>) {
        let name = &self.name;
        if new.align != self.align {
            breaks.push(format!("{name}: align {} became {}", self.align, new.align));
        }
        if new.size != self.size && !(self.may_grow() && new.size > self.size) {
            breaks.push(format!("{name}: size {} became {}", self.size, new.size));
        }
        for (index, (field, offset)) in self.fields.iter().enumerate() {
            match new.fields.get(index) {
                Some((now, at)) if now == field && at == offset => {}
                Some((now, at)) => {
                    breaks.push(format!("{name}.{field} at {offset} became {name}.{now} at {at}"));
                }
                None => breaks.push(format!("{name}.{field} is gone")),
            }
        }
        let appended = new.fields.get(self.fields.len()..).unwrap_or_default();
        if !self.may_grow() && !appended.is_empty() {
            breaks.push(format!("{name}: has no leading `size` field, so nothing can be appended"));
        } else if let Some((field, at)) = appended.iter().find(|(_, at)| *at < self.size) {
            breaks.push(format!("{name}.{field} at {at}: an older plugin counts this as part of its table"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: &str = "abi 1.0\nTable size=16 align=8\nTable.size offset=0\nTable.run offset=8\n\
                       Pair size=16 align=8\nPair.ptr offset=0\nPair.len offset=8\n";

    #[track_caller]
    fn check(from: &str, to: &str, expected: &[&str]) {
        let new = OLD.replace(from, to);
        assert!(from.is_empty() || new != OLD, "{from}");
        let breaks = Lock::parse(OLD).unwrap().breaks_to(&Lock::parse(&new).unwrap());
        assert_eq!(breaks, expected);
    }

    #[test]
    fn a_table_with_a_size_may_grow_at_its_end() {
        check("", "", &[]);
        check(
            "Table size=16 align=8\nTable.size offset=0\nTable.run offset=8\n",
            "Table size=24 align=8\nTable.size offset=0\nTable.run offset=8\nTable.stop offset=16\n",
            &[],
        );
        check("abi 1.0", "abi 1.3", &[]);
    }

    #[test]
    fn everything_else_breaks() {
        check("Table.run offset=8", "Table.go offset=8", &["Table.run at 8 became Table.go at 8"]);
        check("Table.run offset=8", "Table.run offset=12", &["Table.run at 8 became Table.run at 12"]);
        check("Table.run offset=8\n", "", &["Table.run is gone"]);
        check("Pair size=16", "Pair size=24", &["Pair: size 16 became 24"]);
        check("Pair size=16 align=8", "Pair size=16 align=4", &["Pair: align 8 became 4"]);
        check("Table size=16", "Table size=8", &["Table: size 16 became 8"]);
        check("abi 1.0", "abi 2.0", &["abi 1.0 became 2.0"]);
        check(
            "Pair.len offset=8\n",
            "Pair.len offset=8\nPair.more offset=12\n",
            &["Pair: has no leading `size` field, so nothing can be appended"],
        );
        check(
            "Table.run offset=8\n",
            "Table.run offset=8\nTable.flag offset=12\n",
            &["Table.flag at 12: an older plugin counts this as part of its table"],
        );
        check("Pair size=16 align=8\nPair.ptr offset=0\nPair.len offset=8\n", "", &["Pair is gone"]);
    }

    #[test]
    fn a_malformed_line_is_refused() {
        for text in ["", "abi 1\n", "abi 1.0\nPair size=x align=8\n", "abi 1.0\nPair.len offset=8\n"] {
            assert!(Lock::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_message_names_what_was_appended() {
        let new = format!("{OLD}Extra size=8 align=8\n");
        let appended = Lock::parse(OLD).unwrap().appended_in(&Lock::parse(&new).unwrap());
        assert_eq!(appended, ["Extra size=8"]);
    }
}
