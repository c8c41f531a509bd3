//! Storage with generations: what every handle of this crate points into.
//!
//! A key names a slot, the generation of what is in it, and the reactor it
//! belongs to; a key of something removed, or of another reactor, finds nothing.
//! Bounded. Does not know what it stores.

/// Where a value is, and which value it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Key {
    /// Reactor in the top [`TAG_BITS`], slot below.
    slot: u32,
    generation: u32,
}

impl Key {
    pub(crate) const fn to_raw(self) -> u64 {
        (self.generation as u64) << 32 | self.slot as u64
    }

    pub(crate) const fn from_raw(raw: u64) -> Self {
        Self { slot: raw as u32, generation: (raw >> 32) as u32 }
    }
}

/// A bounded set of values that are found by key.
#[derive(Debug)]
pub(crate) struct Slab<T> {
    entries: Vec<Entry<T>>,
    free: Vec<u32>,
    tag: u32,
    limit: usize,
}

#[derive(Debug)]
struct Entry<T> {
    generation: u32,
    value: Option<T>,
}

impl<T> Slab<T> {
    /// For at most `limit` values, with keys that carry the low bits of `tag`.
    pub(crate) fn new(tag: u32, limit: usize) -> Self {
        assert!(limit <= 1 << SLOT_BITS, "slab limit {limit} does not fit a key");
        Self { entries: Vec::new(), free: Vec::new(), tag: tag << SLOT_BITS, limit }
    }

    /// Stores a value, or gives it back when the slab is full.
    pub(crate) fn insert(&mut self, value: T) -> Result<Key, T> {
        if let Some(slot) = self.free.pop() {
            let entry = &mut self.entries[slot as usize];
            entry.value = Some(value);
            return Ok(Key { slot: slot | self.tag, generation: entry.generation });
        }
        if self.entries.len() >= self.limit {
            return Err(value);
        }
        let slot = self.entries.len() as u32;
        // Generations start at 1, so that no key is 0 when it is written as a number.
        self.entries.push(Entry { generation: 1, value: Some(value) });
        Ok(Key { slot: slot | self.tag, generation: 1 })
    }

    pub(crate) fn get(&self, key: Key) -> Option<&T> {
        let entry = self.entries.get(self.slot(key)?)?;
        entry.value.as_ref().filter(|_| entry.generation == key.generation)
    }

    pub(crate) fn get_mut(&mut self, key: Key) -> Option<&mut T> {
        let slot = self.slot(key)?;
        let entry = self.entries.get_mut(slot)?;
        entry.value.as_mut().filter(|_| entry.generation == key.generation)
    }

    pub(crate) fn remove(&mut self, key: Key) -> Option<T> {
        let slot = self.slot(key)?;
        let entry = self.entries.get_mut(slot)?;
        if entry.generation != key.generation {
            return None;
        }
        let value = entry.value.take()?;
        entry.generation = entry.generation.wrapping_add(1).max(1);
        self.free.push(slot as u32);
        Some(value)
    }

    /// All values with their keys, in slot order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (Key, &T)> {
        self.entries.iter().enumerate().filter_map(|(slot, entry)| {
            let key = Key { slot: slot as u32 | self.tag, generation: entry.generation };
            entry.value.as_ref().map(|value| (key, value))
        })
    }

    /// What is in the `index`-th slot, for a walk during which the slab changes.
    pub(crate) fn at(&self, index: usize) -> Option<&T> {
        self.entries.get(index)?.value.as_ref()
    }

    /// How many slots such a walk has to look at.
    pub(crate) fn slots(&self) -> usize {
        self.entries.len()
    }

    /// Takes every value out; their keys are stale afterwards.
    pub(crate) fn drain(&mut self) -> Vec<T> {
        let keys: Vec<Key> = self.iter().map(|(key, _)| key).collect();
        keys.into_iter().filter_map(|key| self.remove(key)).collect()
    }

    fn slot(&self, key: Key) -> Option<usize> {
        let slot = key.slot & ((1 << SLOT_BITS) - 1);
        (key.slot == slot | self.tag).then_some(slot as usize)
    }
}

macro_rules! handle {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(pub(crate) Key);

        impl $name {
            /// As a number, for those who cannot hold the type; never 0.
            pub const fn to_raw(self) -> u64 {
                self.0.to_raw()
            }

            /// From [`Self::to_raw`]; any other number is a stale handle.
            pub const fn from_raw(raw: u64) -> Self {
                Self(Key::from_raw(raw))
            }
        }
    };
}

handle! {
    /// Names a poller of one reactor.
    PollerId
}
handle! {
    /// Names a one-shot timer of one reactor.
    TimerId
}
handle! {
    /// Names a watched descriptor of one reactor.
    FdId
}

const SLOT_BITS: u32 = 24;

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::*;

    #[test]
    fn a_key_of_something_removed_finds_nothing() {
        let mut slab = Slab::new(3, 2);
        let a = slab.insert("a").unwrap();
        assert_eq!(slab.get(a), Some(&"a"));
        assert_eq!(slab.remove(a), Some("a"));
        assert_eq!(slab.remove(a), None);
        let b = slab.insert("b").unwrap();
        assert_ne!(a, b, "same slot, another generation");
        assert_eq!(slab.get_mut(a), None);
        assert_eq!((slab.get(a), slab.get(b)), (None, Some(&"b")));
    }

    #[test]
    fn a_key_of_another_reactor_finds_nothing() {
        let mut one = Slab::new(1, 4);
        let mut two = Slab::new(2, 4);
        let key = one.insert(1).unwrap();
        two.insert(2).unwrap();
        assert_eq!(two.get(key), None);
        assert_eq!(two.remove(key), None);
    }

    #[test]
    fn the_limit_refuses_and_gives_the_value_back() {
        let mut slab = Slab::new(0, 2);
        let first = slab.insert(1).unwrap();
        slab.insert(2).unwrap();
        assert_eq!(slab.insert(3), Err(3));
        slab.remove(first);
        assert!(slab.insert(3).is_ok());
        assert_eq!(slab.drain(), [3, 2]);
        assert_eq!(slab.iter().count(), 0);
    }

    #[test]
    fn raw_numbers_round_trip_and_are_never_zero() {
        let mut slab = Slab::new(0, 2);
        let id = TimerId(slab.insert(()).unwrap());
        assert_ne!(id.to_raw(), 0);
        assert_eq!(TimerId::from_raw(id.to_raw()), id);
        assert_eq!(slab.get(TimerId::from_raw(0).0), None);
    }
}
