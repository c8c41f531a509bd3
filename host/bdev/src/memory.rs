//! Memory that devices may access: regions mapped from the kernel, and what is
//! cut from them.
//!
//! One allocator per process, as modules allocate from any thread. Small pieces
//! are cut from shared regions, large ones get a region of their own. Pages are
//! huge where the machine has them; nothing is pinned or needed for start. Whoever
//! subscribed hears of a region when it is mapped, and before it is unmapped; that
//! happens on the control reactor (`Core`'s part is at the end of this file).
// UNSAFETY: maps and unmaps memory and hands out pointers into it.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::ffi::c_void;
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use rustix::mm::{Advice, MapFlags, ProtFlags};
use tenon_abi::{BufferEvent, MemoryFn, MemoryRegion, errno};
use tenon_modules::ModuleRef;
use tenon_reactor::{ReactorRef, SendError};

use crate::core::Core;
use crate::slab::{Kind, Slab};

/// A region, for reports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegionSnapshot {
    /// Never reused.
    pub id: u64,
    /// First byte.
    pub base: usize,
    /// Length in bytes.
    pub len: usize,
    /// Bytes in use.
    pub used: usize,
    /// Size of its pages in bytes.
    pub page_size: u32,
    /// NUMA node it prefers, or -1.
    pub numa_node: i32,
}

/// All regions and who hears of them.
struct Memory {
    regions: BTreeMap<usize, Region>,
    next_id: u64,
    /// Control reactors by the number of their set.
    listeners: BTreeMap<usize, Listener>,
}

struct Region {
    mapping: Arc<Mapping>,
    /// Free pieces: offset and length.
    free: BTreeMap<usize, usize>,
    used: usize,
    /// Bytes from here on were never handed out and are zero.
    clean_from: usize,
    is_shared: bool,
}

/// Mapped memory; unmapped when the last user is gone.
struct Mapping {
    base: usize,
    len: usize,
    id: u64,
    numa_node: i32,
    page_size: u32,
}

struct Listener {
    control: ReactorRef,
    waiting: VecDeque<Announcement>,
    is_called: bool,
}

/// A region comes or goes; keeps it mapped until everybody knows.
#[derive(Clone)]
struct Announcement {
    event: BufferEvent,
    mapping: Arc<Mapping>,
}

static MEMORY: Mutex<Memory> =
    Mutex::new(Memory { regions: BTreeMap::new(), next_id: 1, listeners: BTreeMap::new() });

/// Zeroed memory that devices may access; null if there is none. `align` is a power of two of at most
/// 2 MiB, `numa_node` -1 for any. Any thread; not for the data path.
pub fn device_alloc(len: usize, align: usize, numa_node: i32) -> *mut c_void {
    if len == 0 || !align.is_power_of_two() || align > REGION_ALIGN || len > MAX_LEN {
        return std::ptr::null_mut();
    }
    let (len, align) = (len.next_multiple_of(PIECE), align.max(PIECE));
    let mut memory = MEMORY.lock();
    if len > LARGE {
        let base = memory.map(len.next_multiple_of(REGION_ALIGN), false, numa_node);
        return base.map_or(std::ptr::null_mut(), |base| memory.cut_from(base, len, align));
    }
    if let Some(base) = memory.region_with_room(len, align, numa_node) {
        return memory.cut_from(base, len, align);
    }
    let base = memory.map(SHARED_LEN, true, numa_node);
    base.map_or(std::ptr::null_mut(), |base| memory.cut_from(base, len, align))
}

/// Frees memory of [`device_alloc`].
///
/// # Safety
/// `ptr` came from [`device_alloc`] with the same `len` and `align`, and nobody uses it any more.
pub unsafe fn device_free(ptr: *mut c_void, len: usize, align: usize) {
    let _ = align;
    if ptr.is_null() || len == 0 {
        return;
    }
    MEMORY.lock().put_back(ptr.addr(), len.next_multiple_of(PIECE));
}

/// Regions there are now.
pub fn memory_regions() -> Vec<RegionSnapshot> {
    let memory = MEMORY.lock();
    let snapshots = memory.regions.values().map(|region| RegionSnapshot {
        id: region.mapping.id,
        base: region.mapping.base,
        len: region.mapping.len,
        used: region.used,
        page_size: region.mapping.page_size,
        numa_node: region.mapping.numa_node,
    });
    snapshots.collect()
}

/// Bytes in use and number of regions.
pub(crate) fn usage() -> (u64, usize) {
    let memory = MEMORY.lock();
    (memory.regions.values().map(|region| region.used as u64).sum(), memory.regions.len())
}

/// The core of that set hears of nothing any more.
pub(crate) fn forget_listener(base: usize) {
    let forgotten = MEMORY.lock().listeners.remove(&base);
    // Mappings it kept go without the lock held.
    drop(forgotten);
}

impl Memory {
    fn region_with_room(&self, len: usize, align: usize, numa_node: i32) -> Option<usize> {
        let mut shared = self.regions.iter().filter(|(_, region)| {
            region.is_shared && (numa_node < 0 || region.mapping.numa_node == numa_node)
        });
        shared.find(|(_, region)| region.find(len, align).is_some()).map(|(base, _)| *base)
    }

    /// Maps a region and announces it.
    fn map(&mut self, len: usize, is_shared: bool, numa_node: i32) -> Option<usize> {
        let mapping = Arc::new(Mapping::new(len, self.next_id, numa_node)?);
        self.next_id += 1;
        let base = mapping.base;
        self.announce(BufferEvent::ADD, &mapping);
        let region = Region { mapping, free: BTreeMap::from([(0, len)]), used: 0, clean_from: 0, is_shared };
        self.regions.insert(base, region);
        Some(base)
    }

    /// Cuts a zeroed piece from the region at `base`, which has room for it.
    fn cut_from(&mut self, base: usize, len: usize, align: usize) -> *mut c_void {
        let Some(region) = self.regions.get_mut(&base) else { return std::ptr::null_mut() };
        let Some((free_at, free_len, at)) = region.find(len, align) else { return std::ptr::null_mut() };
        region.free.remove(&free_at);
        if at > free_at {
            region.free.insert(free_at, at - free_at);
        }
        if at + len < free_at + free_len {
            region.free.insert(at + len, free_at + free_len - at - len);
        }
        region.used += len;
        let address = std::ptr::with_exposed_provenance_mut::<u8>(base + at);
        let dirty = region.clean_from.saturating_sub(at).min(len);
        // SAFETY: `at..at + len` lies in the region, which is mapped, and was free.
        unsafe { address.write_bytes(0, dirty) };
        region.clean_from = region.clean_from.max(at + len);
        address.cast()
    }

    fn put_back(&mut self, address: usize, len: usize) {
        let Some((base, region)) = self.regions.range_mut(..=address).next_back() else {
            log::error!("memory that is not the host's was freed len={len}");
            return;
        };
        let (base, mut at) = (*base, address - *base);
        if at + len > region.mapping.len || len > region.used {
            log::error!("memory that is not the host's was freed len={len}");
            return;
        }
        region.used -= len;
        let mut end = at + len;
        if let Some((before, before_len)) = region.free.range(..at).next_back().map(|(b, l)| (*b, *l))
            && before + before_len == at
        {
            region.free.remove(&before);
            at = before;
        }
        if let Some(after_len) = region.free.remove(&end) {
            end += after_len;
        }
        region.free.insert(at, end - at);
        let (is_shared, is_unused) = (region.is_shared, region.used == 0);
        // One shared region is kept, so that a pool that breathes does not map and unmap.
        let is_last = is_shared && self.regions.values().filter(|region| region.is_shared).count() == 1;
        if is_unused && !is_last {
            self.unmap(base);
        }
    }

    /// Gives up an unused region: it is unmapped when everybody has heard of it.
    fn unmap(&mut self, base: usize) {
        if let Some(region) = self.regions.remove(&base) {
            self.announce(BufferEvent::REMOVE, &region.mapping);
        }
    }

    fn announce(&mut self, event: BufferEvent, mapping: &Arc<Mapping>) {
        self.listeners.retain(|_, listener| {
            listener.waiting.push_back(Announcement { event, mapping: mapping.clone() });
            listener.call()
        });
    }
}

impl Region {
    /// A free piece for `len` bytes: its offset and length, and where in it the aligned piece begins.
    fn find(&self, len: usize, align: usize) -> Option<(usize, usize, usize)> {
        let mut fitting = self.free.iter().filter_map(|(at, free_len)| {
            // Regions are aligned to the largest alignment there is.
            let aligned = at.next_multiple_of(align);
            (aligned + len <= at + free_len).then_some((*at, *free_len, aligned))
        });
        fitting.next()
    }
}

impl Listener {
    /// Asks the control reactor to look. False if it has stopped.
    fn call(&mut self) -> bool {
        if self.is_called {
            return true;
        }
        let sent = self.control.send(|| {
            if let Some(core) = Core::current() {
                core.memory_announced();
            }
        });
        match sent {
            Ok(()) => {
                self.is_called = true;
                true
            }
            // What waits stays mapped; the next announcement calls again.
            Err(SendError::QueueFull) => true,
            Err(SendError::Stopped) => false,
        }
    }
}

impl Mapping {
    fn new(len: usize, id: u64, numa_node: i32) -> Option<Mapping> {
        if has_huge_pages()
            && let Some(base) = map_aligned(len, MapFlags::PRIVATE | MapFlags::HUGETLB)
        {
            prefer_node(base, len, numa_node);
            return Some(Mapping { base, len, id, numa_node, page_size: HUGE_PAGE });
        }
        let base = map_aligned(len, MapFlags::PRIVATE | MapFlags::NORESERVE)?;
        prefer_node(base, len, numa_node);
        // SAFETY: the range was mapped above and holds nothing yet; advice changes no content.
        let advised = unsafe {
            rustix::mm::madvise(std::ptr::with_exposed_provenance_mut(base), len, Advice::LinuxHugepage)
        };
        if let Err(error) = advised {
            log::debug!("memory without huge pages error={error}");
        }
        Some(Mapping { base, len, id, numa_node, page_size: PAGE })
    }

    fn to_abi(&self) -> MemoryRegion {
        MemoryRegion {
            base: std::ptr::with_exposed_provenance_mut(self.base),
            len: self.len as u64,
            id: self.id,
            numa_node: self.numa_node,
            page_size: self.page_size,
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the last owner goes; the region was given up when nothing in it was in use.
        let unmapped =
            unsafe { rustix::mm::munmap(std::ptr::with_exposed_provenance_mut(self.base), self.len) };
        if let Err(error) = unmapped {
            log::error!("memory could not be unmapped len={} error={error}", self.len);
        }
    }
}

/// Maps `len` bytes at a multiple of [`REGION_ALIGN`].
fn map_aligned(len: usize, flags: MapFlags) -> Option<usize> {
    let is_huge = flags.contains(MapFlags::HUGETLB);
    // Huge pages are aligned by nature, and the spare room would cost one.
    let spare = if is_huge { 0 } else { REGION_ALIGN };
    // SAFETY: a new private mapping at an address of the kernel's choice disturbs nothing.
    let mapped = unsafe {
        rustix::mm::mmap_anonymous(
            std::ptr::null_mut(),
            len.checked_add(spare)?,
            ProtFlags::READ | ProtFlags::WRITE,
            flags,
        )
    };
    let start = mapped.ok()?.expose_provenance();
    let base = start.next_multiple_of(REGION_ALIGN);
    for (at, unused) in [(start, base - start), (base + len, start + spare - base)] {
        if unused > 0 {
            // SAFETY: the range is part of the mapping made above and outside of what is kept.
            let _ = unsafe { rustix::mm::munmap(std::ptr::with_exposed_provenance_mut(at), unused) };
        }
    }
    Some(base)
}

/// Asks the kernel to take the pages from one node; a machine without such nodes ignores it.
fn prefer_node(base: usize, len: usize, numa_node: i32) {
    let Ok(node) = u32::try_from(numa_node) else { return };
    if node >= u64::BITS {
        return;
    }
    let mask: u64 = 1 << node;
    // SAFETY: `mbind` reads the mask, which outlives the call, and changes only the policy of the range.
    let result = unsafe {
        libc::syscall(libc::SYS_mbind, base, len, libc::MPOL_PREFERRED, &raw const mask, u64::BITS + 1, 0)
    };
    if result != 0 {
        log::debug!("memory has no preferred node node={node} error={}", std::io::Error::last_os_error());
    }
}

fn has_huge_pages() -> bool {
    static HAS: OnceLock<bool> = OnceLock::new();
    *HAS.get_or_init(|| {
        let reserved = std::fs::read_to_string("/proc/sys/vm/nr_hugepages").unwrap_or_default();
        reserved.trim().parse::<u64>().is_ok_and(|pages| pages > 0)
    })
}

/// Who hears of regions: modules, on the control reactor.
pub(crate) struct Subscriptions {
    slab: Slab<Subscription>,
}

struct Subscription {
    module: ModuleRef,
    callback: MemoryFn,
    arg: *mut c_void,
    /// Regions it knows, by number.
    known: HashSet<u64>,
}

impl Default for Subscriptions {
    fn default() -> Self {
        Self { slab: Slab::new(Kind::Subscription, MAX_SUBSCRIPTIONS) }
    }
}

impl Subscriptions {
    pub(crate) fn len(&self) -> usize {
        self.slab.len()
    }
}

impl Core {
    pub(crate) fn listen_to_memory(&self) {
        let control = self.inner.shared.directory().control().clone();
        let listener = Listener { control, waiting: VecDeque::new(), is_called: false };
        MEMORY.lock().listeners.insert(self.inner.shared.base(), listener);
    }

    /// Tells `callback` of every region there is, and from now on of those that come and go.
    pub(crate) fn memory_subscribe(
        &self,
        module: ModuleRef,
        callback: MemoryFn,
        arg: *mut c_void,
    ) -> Result<u64, i32> {
        let subscription = Subscription { module, callback, arg, known: HashSet::new() };
        let inserted = self.inner.subscriptions.borrow_mut().slab.insert(subscription);
        let id = inserted.map_err(|_| errno::ENOSPC)?;
        let mappings: Vec<Arc<Mapping>> =
            MEMORY.lock().regions.values().map(|region| region.mapping.clone()).collect();
        for mapping in mappings {
            self.memory_tell(id, &Announcement { event: BufferEvent::ADD, mapping });
        }
        Ok(id)
    }

    pub(crate) fn memory_unsubscribe(&self, id: u64) -> bool {
        self.inner.subscriptions.borrow_mut().slab.remove(id).is_some()
    }

    pub(crate) fn memory_forget_module(&self, module: u32) {
        let mut subscriptions = self.inner.subscriptions.borrow_mut();
        let of_module: Vec<u64> = subscriptions
            .slab
            .iter()
            .filter(|(_, subscription)| subscription.module.id() == module)
            .map(|(id, _)| id)
            .collect();
        for id in of_module {
            subscriptions.slab.remove(id);
        }
    }

    /// Passes on what other threads announced.
    fn memory_announced(&self) {
        let announcements = {
            let mut memory = MEMORY.lock();
            let Some(listener) = memory.listeners.get_mut(&self.inner.shared.base()) else { return };
            listener.is_called = false;
            std::mem::take(&mut listener.waiting)
        };
        for announcement in announcements {
            let ids: Vec<u64> = self.inner.subscriptions.borrow().slab.iter().map(|(id, _)| id).collect();
            for id in ids {
                self.memory_tell(id, &announcement);
            }
            // The mapping goes with the last announcement of it.
        }
    }

    fn memory_tell(&self, id: u64, announcement: &Announcement) {
        let Announcement { event, mapping } = announcement;
        let (callback, arg) = {
            let mut subscriptions = self.inner.subscriptions.borrow_mut();
            let Some(subscription) = subscriptions.slab.get_mut(id) else { return };
            let is_news = if *event == BufferEvent::ADD {
                subscription.known.insert(mapping.id)
            } else {
                subscription.known.remove(&mapping.id)
            };
            if !is_news {
                return;
            }
            (subscription.callback, subscription.arg)
        };
        let region = mapping.to_abi();
        // SAFETY: the subscription stands, so its callback and argument are valid; `region` outlives the call.
        unsafe { (callback.0)(arg, *event, &region) };
    }
}

/// Smallest piece, and the alignment of all.
const PIECE: usize = 64;
/// Larger pieces get a region of their own.
const LARGE: usize = 1 << 20;
/// Length of a shared region.
const SHARED_LEN: usize = 8 << 20;
/// Alignment of regions: a huge page.
const REGION_ALIGN: usize = 2 << 20;
/// Size of a huge page.
const HUGE_PAGE: u32 = 2 << 20;
/// Size of a plain page.
const PAGE: u32 = 4096;
/// Longest piece.
const MAX_LEN: usize = 1 << 44;
/// Most subscriptions of all modules.
const MAX_SUBSCRIPTIONS: usize = 256;

#[cfg(test)]
mod tests {
    use super::{device_alloc, device_free, memory_regions};

    #[test]
    fn memory_is_aligned_zeroed_and_given_back() {
        for (len, align) in [(1, 1), (100, 64), (4096, 4096), (70_000, 4096), (3 << 20, 2 << 20)] {
            let first = device_alloc(len, align, -1);
            assert!(!first.is_null());
            assert_eq!(first.addr() % align.max(64), 0);
            // SAFETY: `len` bytes were allocated.
            unsafe {
                first.cast::<u8>().write_bytes(0xa5, len);
                device_free(first, len, align);
            }
            let second = device_alloc(len, align, -1);
            // SAFETY: as above.
            unsafe {
                let bytes = std::slice::from_raw_parts(second.cast::<u8>(), len);
                assert!(bytes.iter().all(|byte| *byte == 0), "len {len}");
                device_free(second, len, align);
            }
        }
    }

    #[test]
    fn pieces_do_not_overlap() {
        let sizes: Vec<usize> = (1..200).map(|n| n * 700).collect();
        let pieces: Vec<(usize, usize)> =
            sizes.iter().map(|len| (device_alloc(*len, 512, -1).addr(), *len)).collect();
        let mut sorted = pieces.clone();
        sorted.sort_unstable();
        for pair in sorted.windows(2) {
            assert!(pair[0].0 + pair[0].1 <= pair[1].0);
        }
        for (address, len) in pieces {
            // SAFETY: each piece is freed once, with its length.
            unsafe { device_free(std::ptr::with_exposed_provenance_mut(address), len, 512) };
        }
    }

    #[test]
    fn a_large_piece_has_a_region_of_its_own() {
        let len = 5 << 20;
        let piece = device_alloc(len, 4096, -1);
        let region = memory_regions().into_iter().find(|region| region.base == piece.addr()).unwrap();
        assert_eq!(region.used, len);
        // SAFETY: freed once, with its length.
        unsafe { device_free(piece, len, 4096) };
        assert!(memory_regions().iter().all(|other| other.id != region.id));
    }

    #[test]
    fn impossible_requests_get_nothing() {
        assert!(device_alloc(0, 64, -1).is_null());
        assert!(device_alloc(64, 48, -1).is_null());
        assert!(device_alloc(64, 4 << 20, -1).is_null());
        assert!(device_alloc(usize::MAX, 64, -1).is_null());
    }
}
