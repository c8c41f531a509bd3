//! Which host may hold how much of a reactor's buffers.
//!
//! A host may hold no more than it leaves to others, over all its connections:
//! one alone half of the pool, `n` of them that take what they can get `1/(n + 1)`
//! each. So there is always something left for a host that has nothing, whatever
//! the others asked for and do not send or take. Limits of one connection and the
//! memory itself are elsewhere.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::{Rc, Weak};
use std::sync::Arc;

/// Bytes of buffers that a host holds on a reactor.
pub(crate) type Share = Rc<Cell<usize>>;

/// The shares of a reactor's hosts, by name, as long as a queue has them.
#[derive(Default)]
pub(crate) struct Shares {
    hosts: RefCell<HashMap<Arc<str>, Weak<Cell<usize>>>>,
}

impl Shares {
    /// The share of a host.
    pub(crate) fn of(&self, hostnqn: &Arc<str>) -> Share {
        let mut hosts = self.hosts.borrow_mut();
        if let Some(share) = hosts.get(hostnqn).and_then(Weak::upgrade) {
            return share;
        }
        // Opening a queue is rare: the time to forget hosts that are gone.
        hosts.retain(|_, share| share.strong_count() > 0);
        let share = Share::default();
        hosts.insert(hostnqn.clone(), Rc::downgrade(&share));
        share
    }
}

/// Whether a host that holds `held` bytes may take `len` more of the `room` bytes that are left. One that holds
/// nothing always may.
pub(crate) fn may_take(held: usize, len: usize, room: usize) -> bool {
    held == 0 || held + len <= room
}

#[cfg(test)]
mod tests {
    use super::*;

    const POOL: usize = 64 << 20;
    const BUFFER: usize = 1 << 20;

    /// What is left when `hosts` take buffers in turn for as long as one may.
    fn left_by(hosts: usize) -> usize {
        let mut held = vec![0; hosts];
        loop {
            let before = held.iter().sum::<usize>();
            for host in 0..hosts {
                let room = POOL - held.iter().sum::<usize>();
                if room >= BUFFER && may_take(held[host], BUFFER, room) {
                    held[host] += BUFFER;
                }
            }
            let after = held.iter().sum::<usize>();
            if after == before {
                return POOL - after;
            }
        }
    }

    #[test]
    fn greedy_hosts_leave_as_much_as_each_of_them_has() {
        for (hosts, left_mib) in [(1, 32), (3, 16), (7, 8), (15, 4), (31, 2)] {
            assert_eq!(left_by(hosts) >> 20, left_mib, "{hosts} hosts");
        }
    }

    #[test]
    fn queues_of_a_host_have_one_share_until_the_last_goes() {
        let shares = Shares::default();
        let (one, two): (Arc<str>, Arc<str>) = ("one".into(), "two".into());
        let share = shares.of(&one);
        share.set(5);
        assert_eq!((shares.of(&"one".into()).get(), shares.of(&two).get()), (5, 0));
        drop(share);
        assert_eq!(shares.of(&one).get(), 0);
        assert_eq!(shares.hosts.borrow().len(), 1);
    }
}
