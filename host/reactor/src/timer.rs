//! Deadlines of one reactor: a binary heap that can also remove from its middle.
//!
//! Holds one-shot timers and the next run of every periodic poller. Equal
//! deadlines fire in the order they were set. A cancelled timer leaves at once,
//! so the bound counts what is really pending. Does not read a clock and does
//! not call anything: `reactor` does both.

use crate::callback::{Callback, TimerFn};
use crate::poller::MAX_POLLERS;
use crate::slab::{Key, PollerId, Slab};

/// How many one-shot timers a reactor may have pending; the next one is refused.
pub const MAX_TIMERS: usize = 65_536;

/// What a deadline is for.
pub(crate) enum Action {
    OneShot(Callback<TimerFn>),
    Poll(PollerId),
}

/// All pending deadlines.
pub(crate) struct Timers {
    heap: Vec<Item>,
    entries: Slab<Entry>,
    one_shots: usize,
    sequence: u64,
}

#[derive(Clone, Copy)]
struct Item {
    deadline_ns: u64,
    sequence: u64,
    key: Key,
}

struct Entry {
    /// Where in the heap this entry's item is.
    position: usize,
    action: Action,
}

impl Timers {
    pub(crate) fn new(tag: u32) -> Self {
        Self {
            heap: Vec::new(),
            // Pollers have their own bound; room for all of them means re-arming cannot fail.
            entries: Slab::new(tag, MAX_TIMERS + MAX_POLLERS),
            one_shots: 0,
            sequence: 0,
        }
    }

    /// Adds a deadline; gives the action back when the bound is reached.
    pub(crate) fn insert(&mut self, deadline_ns: u64, action: Action) -> Result<Key, Action> {
        let is_one_shot = matches!(action, Action::OneShot(_));
        if is_one_shot && self.one_shots >= MAX_TIMERS {
            return Err(action);
        }
        let position = self.heap.len();
        let key = self.entries.insert(Entry { position, action }).map_err(|entry| entry.action)?;
        self.one_shots += usize::from(is_one_shot);
        self.sequence += 1;
        self.heap.push(Item { deadline_ns, sequence: self.sequence, key });
        self.sift_up(position);
        Ok(key)
    }

    /// Removes a deadline before it has fired.
    pub(crate) fn remove(&mut self, key: Key) -> Option<Action> {
        let Entry { position, action } = self.entries.remove(key)?;
        self.one_shots -= usize::from(matches!(action, Action::OneShot(_)));
        self.heap.swap_remove(position);
        if position < self.heap.len() {
            self.record(position);
            let position = self.sift_up(position);
            self.sift_down(position);
        }
        Some(action)
    }

    /// Removes the earliest deadline if it is not after `now_ns`.
    pub(crate) fn pop_due(&mut self, now_ns: u64) -> Option<(u64, Action)> {
        let first = *self.heap.first()?;
        if first.deadline_ns > now_ns {
            return None;
        }
        self.remove(first.key).map(|action| (first.deadline_ns, action))
    }

    /// The earliest deadline, or `u64::MAX`.
    pub(crate) fn next_deadline_ns(&self) -> u64 {
        self.heap.first().map_or(u64::MAX, |item| item.deadline_ns)
    }

    /// How many one-shot timers are pending.
    pub(crate) fn one_shots(&self) -> usize {
        self.one_shots
    }

    /// Takes every pending action out.
    pub(crate) fn drain(&mut self) -> Vec<Action> {
        self.heap.clear();
        self.one_shots = 0;
        self.entries.drain().into_iter().map(|entry| entry.action).collect()
    }

    fn sift_up(&mut self, mut position: usize) -> usize {
        while position > 0 {
            let parent = (position - 1) / 2;
            if self.heap[parent].order() <= self.heap[position].order() {
                break;
            }
            self.heap.swap(parent, position);
            self.record(position);
            position = parent;
        }
        self.record(position);
        position
    }

    fn sift_down(&mut self, mut position: usize) {
        loop {
            let left = 2 * position + 1;
            let Some(mut child) = self.heap.get(left).map(|_| left) else { break };
            if self.heap.get(left + 1).is_some_and(|right| right.order() < self.heap[left].order()) {
                child = left + 1;
            }
            if self.heap[position].order() <= self.heap[child].order() {
                break;
            }
            self.heap.swap(position, child);
            self.record(position);
            position = child;
        }
        self.record(position);
    }

    /// Tells the entry of the item at `position` where it is.
    fn record(&mut self, position: usize) {
        let Some(item) = self.heap.get(position) else { return };
        if let Some(entry) = self.entries.get_mut(item.key) {
            entry.position = position;
        }
    }
}

impl Item {
    fn order(&self) -> (u64, u64) {
        (self.deadline_ns, self.sequence)
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::*;
    use crate::random::Random;

    fn poll(n: u64) -> Action {
        Action::Poll(PollerId::from_raw(n))
    }

    fn number(action: Action) -> u64 {
        match action {
            Action::Poll(id) => id.to_raw(),
            Action::OneShot(_) => panic!("only polls are inserted here"),
        }
    }

    #[test]
    fn deadlines_fire_in_order_and_ties_in_the_order_set() {
        let mut timers = Timers::new(0);
        for (n, deadline) in [(1, 30), (2, 10), (3, 20), (4, 10), (5, 10)] {
            assert!(timers.insert(deadline, poll(n)).is_ok());
        }
        assert!(timers.pop_due(9).is_none());
        let order: Vec<_> =
            std::iter::from_fn(|| timers.pop_due(30)).map(|(at, action)| (at, number(action))).collect();
        assert_eq!(order, [(10, 2), (10, 4), (10, 5), (20, 3), (30, 1)]);
        assert_eq!(timers.next_deadline_ns(), u64::MAX);
    }

    #[test]
    fn the_heap_agrees_with_a_sorted_list_under_random_insertion_and_removal() {
        let mut random = Random::new(7);
        let mut timers = Timers::new(0);
        let mut model: Vec<(u64, u64, Key)> = Vec::new();
        for n in 1..2000 {
            match random.below(3) {
                0 | 1 => {
                    let deadline = random.below(500) as u64;
                    let Ok(key) = timers.insert(deadline, poll(n)) else { panic!("bound reached") };
                    model.push((deadline, n, key));
                }
                _ if !model.is_empty() => {
                    let (_, n, key) = model.swap_remove(random.below(model.len()));
                    assert_eq!(timers.remove(key).map(number), Some(n));
                    assert!(timers.remove(key).is_none(), "removed twice");
                }
                _ => {}
            }
            let earliest = model.iter().map(|entry| entry.0).min().unwrap_or(u64::MAX);
            assert_eq!(timers.next_deadline_ns(), earliest);
        }
        model.sort_unstable();
        let fired: Vec<_> =
            std::iter::from_fn(|| timers.pop_due(u64::MAX - 1)).map(|(_, action)| number(action)).collect();
        assert_eq!(fired, model.iter().map(|entry| entry.1).collect::<Vec<_>>());
    }

    #[test]
    fn one_timer_too_many_is_refused_and_a_cancelled_one_makes_room() {
        let mut timers = Timers::new(0);
        let one_shot = || Action::OneShot(Callback::once(|| {}));
        let keys: Vec<_> = (0..MAX_TIMERS).map(|_| timers.insert(1, one_shot()).ok()).collect();
        assert!(keys.iter().all(Option::is_some));
        assert!(timers.insert(1, one_shot()).is_err());
        assert!(timers.insert(1, poll(1)).is_ok(), "pollers have a bound of their own");
        assert!(timers.remove(keys[17].unwrap()).is_some());
        assert!(timers.insert(1, one_shot()).is_ok());
    }
}
