//! Versions of modules and their order: `1.10.0` is newer than `1.9.3`, a
//! release is newer than its pre-releases. Tolerates what is not semantic
//! versioning, because vendors number as they like.

use std::cmp::Ordering;
use std::fmt;

use serde::Serialize;

/// Version of a module as its plugin states it.
#[derive(Clone, Debug, Serialize)]
#[serde(transparent)]
pub struct Version(String);

impl Version {
    /// Takes the text as it is.
    #[must_use]
    pub fn new(text: &str) -> Self {
        Version(text.to_owned())
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The part that is compared: build metadata behind `+` does not count, as in semantic versioning.
    fn parts(&self) -> (&str, Option<&str>) {
        let text = self.0.split('+').next().unwrap_or_default();
        match text.split_once('-') {
            Some((release, pre)) => (release, Some(pre)),
            None => (text, None),
        }
    }
}

impl Ord for Version {
    fn cmp(&self, other: &Self) -> Ordering {
        let ((release, pre), (other_release, other_pre)) = (self.parts(), other.parts());
        dotted(release, other_release).then_with(|| match (pre, other_pre) {
            (None, None) => Ordering::Equal,
            (None, Some(_)) => Ordering::Greater,
            (Some(_), None) => Ordering::Less,
            (Some(pre), Some(other_pre)) => dotted(pre, other_pre),
        })
    }
}

impl PartialOrd for Version {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Version {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Version {}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Compares piece by piece: numbers by value and below words, words by bytes, a missing piece is the least.
fn dotted(one: &str, other: &str) -> Ordering {
    let (mut ones, mut others) = (one.split('.'), other.split('.'));
    loop {
        let order = match (ones.next(), others.next()) {
            (None, None) => return Ordering::Equal,
            (None, Some(_)) => Ordering::Less,
            (Some(_), None) => Ordering::Greater,
            (Some(one), Some(other)) => piece(one, other),
        };
        if order != Ordering::Equal {
            return order;
        }
    }
}

fn piece(one: &str, other: &str) -> Ordering {
    match (number(one), number(other)) {
        // Without leading zeroes the longer number is the larger one, whatever its length.
        (Some(one), Some(other)) => one.len().cmp(&other.len()).then_with(|| one.cmp(other)),
        (Some(_), None) => Ordering::Less,
        (None, Some(_)) => Ordering::Greater,
        (None, None) => one.cmp(other),
    }
}

fn number(piece: &str) -> Option<&str> {
    let is_number = !piece.is_empty() && piece.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| piece.trim_start_matches('0'))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn check(older: &str, newer: &str) {
        assert!(Version::new(older) < Version::new(newer), "{older} < {newer}");
        assert!(Version::new(newer) > Version::new(older), "{newer} > {older}");
    }

    #[test]
    fn versions_are_ordered_by_number() {
        check("1.9.3", "1.10.0");
        check("1.0", "1.0.1");
        check("0.9", "1");
        check("1.0.0-rc.1", "1.0.0");
        check("1.0.0-rc.2", "1.0.0-rc.10");
        check("1.0.0-alpha", "1.0.0-beta");
        check("99999999999999999998", "99999999999999999999");
        assert_eq!(Version::new("1.0.0+a"), Version::new("1.00.0+b"));
    }

    proptest! {
        #[test]
        fn the_order_is_total(a in "[0-9a-b.+-]{0,8}", b in "[0-9a-b.+-]{0,8}", c in "[0-9a-b.+-]{0,8}") {
            let (a, b, c) = (Version::new(&a), Version::new(&b), Version::new(&c));
            prop_assert_eq!(a.cmp(&b), b.cmp(&a).reverse());
            if a <= b && b <= c {
                prop_assert!(a <= c);
            }
        }
    }
}
