//! Instances of transports, as reactors know them.
//!
//! Immutable but for counters: who takes the next connection is chosen by the
//! number of connections each reactor has. Making and ending instances is the
//! target's (`transports`).
// UNSAFETY: keeps the transport's table and context as raw pointers.

use std::ffi::c_void;
use std::sync::Arc;
use std::sync::atomic::{AtomicPtr, AtomicU32, AtomicUsize, Ordering};

use tenon_abi::transport::target::TargetOpsV1;
use tenon_abi::transport::{TransportFlags, TransportV1};
use tenon_reactor::{Directory, ReactorId, ReactorRef};

use crate::auth::psk::PskDirectory;

/// One instance of a transport.
pub(crate) struct TransportShared {
    pub number: u64,
    pub name: String,
    pub trtype: u8,
    flags: TransportFlags,
    pub psks: Arc<PskDirectory>,
    ops: *const TargetOpsV1,
    context: AtomicPtr<c_void>,
    directory: Directory,
    /// Connections per data reactor.
    load: Vec<AtomicU32>,
    connections: AtomicUsize,
    max_connections: usize,
}

// SAFETY: the table is static and immutable; everything else is atomic or immutable.
unsafe impl Send for TransportShared {}
// SAFETY: as above.
unsafe impl Sync for TransportShared {}

impl TransportShared {
    /// An instance to be; `None` if the table has no target role.
    ///
    /// # Safety
    /// `table` is a transport plugin's static table.
    pub(crate) unsafe fn new(
        number: u64,
        table: *const TransportV1,
        directory: Directory,
        max_connections: usize,
        psks: Arc<PskDirectory>,
    ) -> Option<Self> {
        // SAFETY: as the caller promises; texts in a static table are static.
        let (name, trtype, flags, ops) = unsafe {
            let table = &*table;
            (table.name.as_str()?.to_owned(), table.trtype, table.flags, table.target)
        };
        if ops.is_null() {
            return None;
        }
        let load = directory.data().iter().map(|_| AtomicU32::new(0)).collect();
        let connections = AtomicUsize::new(0);
        let context = AtomicPtr::default();
        let trtype = trtype as u8;
        Some(Self {
            number,
            name,
            trtype,
            flags,
            psks,
            ops,
            context,
            directory,
            load,
            connections,
            max_connections,
        })
    }

    #[inline]
    pub(crate) fn ops(&self) -> &'static TargetOpsV1 {
        // SAFETY: a plugin's table is static.
        unsafe { &*self.ops }
    }

    #[inline]
    pub(crate) fn flags(&self) -> TransportFlags {
        self.flags
    }

    pub(crate) fn context(&self) -> *mut c_void {
        self.context.load(Ordering::Acquire)
    }

    /// Where the transport stores its context.
    pub(crate) fn context_slot(&self) -> *mut *mut c_void {
        self.context.as_ptr()
    }

    /// The reactor with the fewest connections, which has one more from now on.
    pub(crate) fn choose_reactor(&self) -> Option<ReactorRef> {
        if self.connections.fetch_add(1, Ordering::Relaxed) >= self.max_connections {
            self.connections.fetch_sub(1, Ordering::Relaxed);
            return None;
        }
        let loads = self.load.iter().enumerate();
        let least = loads.min_by_key(|(_, load)| load.load(Ordering::Relaxed)).map(|(index, _)| index)?;
        self.load[least].fetch_add(1, Ordering::Relaxed);
        self.directory.data().get(least).cloned()
    }

    /// A connection that [`TransportShared::choose_reactor`] placed is gone.
    pub(crate) fn connection_gone(&self, reactor: ReactorId) {
        self.connections.fetch_sub(1, Ordering::Relaxed);
        if let Some(load) = reactor.data_index().and_then(|index| self.load.get(index)) {
            load.fetch_sub(1, Ordering::Relaxed);
        }
    }

    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }
}
