//! Notifications and listeners: how clients and the layers above hear of changes.
//!
//! Notifications have ascending numbers and are kept in a ring, so that a client
//! that asks late learns how much it has missed. Listeners are called later, from
//! the core's queue.

use std::cell::RefCell;
use std::collections::{BTreeSet, VecDeque};
use std::rc::Rc;

use crate::core::Core;

/// Something that happened, as `notify_get_notifications` reports it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notification {
    /// Ascends by 1, from 0.
    pub id: u64,
    /// What happened, e.g. `bdev_register`.
    pub kind: String,
    /// The object's name.
    pub context: String,
}

/// The latest notifications.
#[derive(Default)]
pub(crate) struct Notifications {
    ring: VecDeque<Notification>,
    next_id: u64,
    kinds: BTreeSet<String>,
}

/// Names a listener, so that it can be removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ListenerId(u64);

/// Called with the names of a device in service; the first is its own.
type ReadyListener = Rc<RefCell<dyn FnMut(&str, &[String])>>;
/// Called with each notification.
type NotificationListener = Rc<RefCell<dyn FnMut(&Notification)>>;

/// Who listens in the layers above.
#[derive(Default)]
pub(crate) struct Listeners {
    ready: Vec<(ListenerId, ReadyListener)>,
    notifications: Vec<(ListenerId, NotificationListener)>,
}

impl Notifications {
    pub(crate) fn len(&self) -> usize {
        self.ring.len()
    }
}

impl Core {
    /// Adds a notification.
    pub(crate) fn notify(&self, kind: &str, context: &str) {
        let notification = {
            let mut notifications = self.inner.notifications.borrow_mut();
            let id = notifications.next_id;
            notifications.next_id += 1;
            if !notifications.kinds.contains(kind) && notifications.kinds.len() < MAX_KINDS {
                notifications.kinds.insert(kind.to_owned());
            }
            if notifications.ring.len() == MAX_NOTIFICATIONS {
                notifications.ring.pop_front();
            }
            let notification = Notification { id, kind: kind.to_owned(), context: context.to_owned() };
            notifications.ring.push_back(notification.clone());
            notification
        };
        if !self.inner.listeners.borrow().notifications.is_empty() {
            self.later(move |core| core.tell_notification(&notification));
        }
    }

    /// Up to `max` notifications from number `since` on; older ones than are kept are left out.
    pub fn notifications(&self, since: u64, max: usize) -> Vec<Notification> {
        let notifications = self.inner.notifications.borrow();
        let first = notifications.ring.front().map_or(0, |notification| notification.id);
        let skip = usize::try_from(since.saturating_sub(first)).unwrap_or(usize::MAX);
        notifications.ring.iter().skip(skip).take(max).cloned().collect()
    }

    /// Kinds of notification there have been, and those the host itself makes.
    pub fn notification_kinds(&self) -> Vec<String> {
        let mut kinds = self.inner.notifications.borrow().kinds.clone();
        kinds.extend(OWN_KINDS.iter().map(|kind| (*kind).to_owned()));
        kinds.into_iter().collect()
    }

    /// Calls `listener` with each notification.
    pub fn on_notification(&self, listener: impl FnMut(&Notification) + 'static) -> ListenerId {
        let id = ListenerId(self.next_id());
        self.inner.listeners.borrow_mut().notifications.push((id, Rc::new(RefCell::new(listener))));
        id
    }

    /// Calls `listener` with the name and the aliases of each device that comes into service.
    pub fn on_bdev_ready(&self, listener: impl FnMut(&str, &[String]) + 'static) -> ListenerId {
        let id = ListenerId(self.next_id());
        self.inner.listeners.borrow_mut().ready.push((id, Rc::new(RefCell::new(listener))));
        id
    }

    /// Ends what [`Core::on_notification`] or [`Core::on_bdev_ready`] began.
    pub fn remove_listener(&self, id: ListenerId) {
        let (mut ready, mut notifications) = (Vec::new(), Vec::new());
        {
            let mut listeners = self.inner.listeners.borrow_mut();
            for entry in std::mem::take(&mut listeners.ready) {
                if entry.0 == id { ready.push(entry) } else { listeners.ready.push(entry) }
            }
            for entry in std::mem::take(&mut listeners.notifications) {
                if entry.0 == id { notifications.push(entry) } else { listeners.notifications.push(entry) }
            }
        }
        // The closures are dropped with nothing borrowed.
        drop((ready, notifications));
    }

    fn tell_notification(&self, notification: &Notification) {
        let listeners: Vec<NotificationListener> = self
            .inner
            .listeners
            .borrow()
            .notifications
            .iter()
            .map(|(_, listener)| listener.clone())
            .collect();
        for listener in listeners {
            (listener.borrow_mut())(notification);
        }
    }

    /// `names`: the device's own, then its aliases.
    pub(crate) fn tell_ready(&self, names: &[String]) {
        let listeners: Vec<ReadyListener> =
            self.inner.listeners.borrow().ready.iter().map(|(_, listener)| listener.clone()).collect();
        let Some((name, aliases)) = names.split_first() else { return };
        for listener in listeners {
            (listener.borrow_mut())(name, aliases);
        }
    }
}

/// Notifications kept.
const MAX_NOTIFICATIONS: usize = 1024;
/// Kinds of notification remembered.
const MAX_KINDS: usize = 256;
/// What the host itself notifies of.
const OWN_KINDS: [&str; 5] =
    ["bdev_register", "bdev_resize", "bdev_unregister", "module_register", "module_unregister"];
