//! Storage with generations: what the handles that cross the door point into.
//!
//! A handle is a kind, a slot and the generation of what is in it. A handle of
//! something removed, of another kind, or made up finds nothing. Bounded. Does
//! not know what it stores.

/// A bounded set of values that are found by handle.
#[derive(Debug)]
pub(crate) struct Slab<T> {
    entries: Vec<Entry<T>>,
    free: Vec<u32>,
    used: usize,
    tag: u64,
    limit: usize,
}

#[derive(Debug)]
struct Entry<T> {
    generation: u32,
    value: Option<T>,
}

/// What a handle names; a descriptor's handle never finds a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Bdev = 1,
    Descriptor = 2,
    Owed = 3,
    Examine = 4,
    Operation = 5,
    Subscription = 6,
}

impl<T> Slab<T> {
    pub(crate) fn new(kind: Kind, limit: usize) -> Self {
        Self {
            entries: Vec::new(),
            free: Vec::new(),
            used: 0,
            tag: (kind as u64) << SLOT_BITS,
            limit: limit.min(MAX_SLOTS),
        }
    }

    /// Stores a value under a new handle, or gives it back when the slab is full.
    pub(crate) fn insert(&mut self, value: T) -> Result<u64, T> {
        if let Some(slot) = self.free.pop() {
            let entry = &mut self.entries[slot as usize];
            entry.value = Some(value);
            self.used += 1;
            return Ok(u64::from(entry.generation) << 32 | self.tag | u64::from(slot));
        }
        if self.entries.len() >= self.limit {
            return Err(value);
        }
        let slot = self.entries.len() as u64;
        // Generations start at 1, so that no handle is 0.
        self.entries.push(Entry { generation: 1, value: Some(value) });
        self.used += 1;
        Ok(1 << 32 | self.tag | slot)
    }

    pub(crate) fn get(&self, handle: u64) -> Option<&T> {
        let (slot, generation) = self.split(handle)?;
        self.entries.get(slot).filter(|entry| entry.generation == generation)?.value.as_ref()
    }

    pub(crate) fn get_mut(&mut self, handle: u64) -> Option<&mut T> {
        let (slot, generation) = self.split(handle)?;
        self.entries.get_mut(slot).filter(|entry| entry.generation == generation)?.value.as_mut()
    }

    pub(crate) fn remove(&mut self, handle: u64) -> Option<T> {
        let (slot, generation) = self.split(handle)?;
        let entry = self.entries.get_mut(slot).filter(|entry| entry.generation == generation)?;
        let value = entry.value.take()?;
        self.used -= 1;
        // A slot whose generations are used up is never used again.
        if let Some(next) = entry.generation.checked_add(1) {
            entry.generation = next;
            self.free.push(slot as u32);
        }
        Some(value)
    }

    pub(crate) fn len(&self) -> usize {
        self.used
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (u64, &T)> {
        self.entries.iter().enumerate().filter_map(|(slot, entry)| {
            let handle = u64::from(entry.generation) << 32 | self.tag | slot as u64;
            entry.value.as_ref().map(|value| (handle, value))
        })
    }

    fn split(&self, handle: u64) -> Option<(usize, u32)> {
        let low = handle & u64::from(u32::MAX);
        (low & !(MAX_SLOTS as u64 - 1) == self.tag)
            .then_some(((low as usize) & (MAX_SLOTS - 1), (handle >> 32) as u32))
    }
}

const SLOT_BITS: u32 = 28;
const MAX_SLOTS: usize = 1 << SLOT_BITS;

#[cfg(test)]
mod tests {
    use super::{Kind, Slab};

    #[test]
    fn a_stale_handle_finds_nothing() {
        let mut slab = Slab::new(Kind::Bdev, 4);
        let first = slab.insert("a").unwrap();
        assert_eq!(slab.remove(first), Some("a"));
        let second = slab.insert("b").unwrap();
        assert_ne!(first, second);
        assert_eq!(slab.get(first), None);
        assert_eq!(slab.get(second), Some(&"b"));
        assert_eq!(slab.remove(first), None);
    }

    #[test]
    fn a_handle_of_another_kind_finds_nothing() {
        let mut devices = Slab::new(Kind::Bdev, 4);
        let mut descriptors = Slab::new(Kind::Descriptor, 4);
        let device = devices.insert(1).unwrap();
        let descriptor = descriptors.insert(2).unwrap();
        assert_eq!(devices.get(descriptor), None);
        assert_eq!(descriptors.get(device), None);
        assert_eq!(devices.get(0), None);
        assert_eq!(devices.get(u64::MAX), None);
    }

    #[test]
    fn the_bound_holds() {
        let mut slab = Slab::new(Kind::Bdev, 2);
        assert!(slab.insert(1).is_ok() && slab.insert(2).is_ok());
        assert_eq!(slab.insert(3), Err(3));
        assert_eq!(slab.len(), 2);
    }
}
