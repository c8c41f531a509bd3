//! Write intent on the members: the bitmap is written when channels ask for regions,
//! regions that rest are cleared after a while, and both survive whatever happens
//! to members meanwhile. What a region's state means is in `intent.rs`.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tenon_sdk::{Error, Timer};

use crate::RaidModule;
use crate::array::{Array, Inner, Standing};
use crate::change::Task;
use crate::disk;
use crate::intent::{Intent, Ledger};
use crate::ondisk::{self, bitmap::Bitmap, bitmap::MAX_BITMAP};
use crate::superblock::Features;

/// Write intent of an array that has a bitmap.
pub struct Marking {
    /// What channels see.
    pub intent: Arc<Intent>,
    ledger: Ledger,
    /// Runs while regions are marked.
    timer: Option<Timer>,
}

impl Marking {
    /// From what is known of the regions.
    pub fn new(ledger: Ledger, is_unsynced: bool) -> Marking {
        Marking { intent: Arc::new(Intent::new(&ledger, is_unsynced)), ledger, timer: None }
    }

    /// The bitmap to write first.
    pub fn bitmap(&mut self) -> Bitmap {
        self.ledger.bitmap()
    }

    /// As clients see it.
    pub fn status(&self) -> serde_json::Value {
        serde_json::json!({
            "regions": self.ledger.regions(),
            "dirty_regions": self.ledger.marked_regions(),
            "region_blocks": self.ledger.region_blocks(),
            "is_synced": !self.intent.has_unsynced(),
        })
    }
}

impl Inner {
    /// A ledger for the present geometry.
    pub fn new_ledger(&self, is_dirty: bool) -> Option<Ledger> {
        let layout = self.layout.as_ref().filter(|_| self.agreed.features.contains(Features::BITMAP))?;
        let unit = layout.array_range(&(0..layout.strip_blocks.max(1))).end;
        Some(Ledger::new(self.uuid, layout.num_blocks, unit, is_dirty))
    }

    /// Whether members that may differ can be compared now.
    pub fn can_resync(&self) -> bool {
        let (there, all) = (self.current().len(), self.slots.len());
        if self.params.level.is_parity() { there == all } else { there > 1 }
    }
}

impl Array {
    /// Reads the bitmaps of the members that are there.
    pub fn load_bitmap(self: &Rc<Self>, then: impl FnOnce(&Rc<Array>) + 'static) {
        let (ledger, targets) = {
            let inner = self.inner.borrow();
            (inner.new_ledger(false), inner.current())
        };
        let Some(mut ledger) = ledger else { return then(self) };
        let this = Rc::clone(self);
        disk::each(
            targets,
            |base, _, done| disk::read_at(base, ondisk::BITMAP, MAX_BITMAP, done),
            move |found: Vec<(usize, Result<Vec<u8>, Error>)>| {
                let parse =
                    |(_, bytes): &(usize, Result<Vec<u8>, Error>)| Bitmap::parse(bytes.as_ref().ok()?);
                let copies: Vec<Bitmap> = found.iter().filter_map(parse).collect();
                ledger.load(&copies);
                log::info!(
                    "bitmap read raid={} dirty_regions={} of={}",
                    this.name,
                    ledger.marked_regions(),
                    ledger.regions()
                );
                {
                    let mut inner = this.inner.borrow_mut();
                    let is_unsynced = inner.can_resync();
                    inner.marking = Some(Marking::new(ledger, is_unsynced));
                }
                then(&this);
            },
        );
    }

    /// Writes to these regions wait until they are marked.
    pub fn mark(self: &Rc<Self>, regions: std::ops::Range<u64>) {
        if let Some(marking) = &mut self.inner.borrow_mut().marking {
            marking.ledger.ask(regions);
        }
        self.write_bitmap();
    }

    /// Writes the bitmap if that is due.
    pub fn write_bitmap(self: &Rc<Self>) {
        let (bytes, targets) = {
            let mut inner = self.inner.borrow_mut();
            let Some(bitmap) = inner.marking.as_mut().and_then(|marking| marking.ledger.next_write()) else {
                return;
            };
            let takes = |(nth, slot): (usize, &crate::array::Slot)| {
                let is_in = matches!(slot.standing, Standing::Current | Standing::Target);
                Some((nth, slot.base.clone().filter(|_| is_in)?))
            };
            let targets = inner.slots.iter().enumerate().filter_map(takes).collect();
            (bitmap.encode(), targets)
        };
        let this = Rc::clone(self);
        disk::write_all_at(targets, ondisk::BITMAP, &bytes, move |failures| this.bitmap_written(failures));
    }

    /// Has the whole bitmap written to every member, also one that was not there when a region was marked; `then` runs
    /// when that is done. Of tasks, one at a time.
    pub fn bitmap_everywhere(self: &Rc<Self>, then: impl FnOnce(&Rc<Array>) + 'static) {
        let awaited = self.inner.borrow_mut().marking.as_mut().map(|marking| marking.ledger.write_again());
        let Some(awaited) = awaited else { return then(self) };
        self.inner.borrow_mut().after_bitmap = Some((awaited, Box::new(then)));
        self.write_bitmap();
    }

    fn bitmap_written(self: &Rc<Self>, failures: Vec<(usize, Error)>) {
        let (shared, step) = {
            let mut inner = self.inner.borrow_mut();
            // If no member takes it, the writes that wait fail by themselves.
            let mut written = 0;
            if let Some(marking) = &mut inner.marking {
                marking.ledger.written(&marking.intent);
                written = marking.ledger.sequence();
            }
            (inner.shared.clone(), inner.after_bitmap.take_if(|(awaited, _)| *awaited <= written))
        };
        for (slot, error) in failures {
            self.member_failed(slot, &format!("bitmap not written: {error}"));
        }
        if let Some(shared) = shared
            && let Err(error) = shared.wake_all()
        {
            log::error!("channels cannot be reached raid={} error=\"{error}\"", self.name);
        }
        if let Some((_, step)) = step {
            step(self);
        }
        self.write_bitmap();
        self.watch_rest();
    }

    /// Looks after a while which regions rest.
    pub fn watch_rest(self: &Rc<Self>) {
        let mut inner = self.inner.borrow_mut();
        let Some(marking) = inner.marking.as_mut() else { return };
        if marking.timer.is_some() || marking.ledger.marked_regions() == 0 {
            return;
        }
        let weak = Rc::downgrade(self);
        let look = move || {
            if let Some(array) = weak.upgrade() {
                array.look_for_rest();
            }
        };
        match self.host.timer(REST, look) {
            Ok(timer) => marking.timer = Some(timer),
            Err(error) => log::warn!("regions stay marked raid={} error=\"{error}\"", self.name),
        }
    }

    fn look_for_rest(self: &Rc<Self>) {
        let is_any = {
            let mut inner = self.inner.borrow_mut();
            // A member that is missing lacks what is marked.
            let is_whole = inner.current().len() == inner.slots.len() && inner.process.is_none();
            let Some(marking) = inner.marking.as_mut() else { return };
            drop(marking.timer.take());
            is_whole && marking.intent.marked().iter().any(|word| *word != 0)
        };
        if is_any {
            self.push(Task::Clear);
        }
        self.watch_rest();
    }

    /// Clears the regions that rest, once no write to them is in flight any more.
    pub fn clear_rested(self: &Rc<Self>) {
        let is_begun = {
            let mut inner = self.inner.borrow_mut();
            let is_whole = inner.current().len() == inner.slots.len() && inner.process.is_none();
            match inner.marking.as_mut().filter(|_| is_whole) {
                None => false,
                Some(marking) => {
                    let rested = marking.intent.rested();
                    let is_any = rested.iter().any(|word| *word != 0);
                    if is_any {
                        marking.ledger.begin_clear(&marking.intent, &rested);
                    }
                    is_any
                }
            }
        };
        if !is_begun {
            return self.task_done();
        }
        self.direct(false, 0..0, |array| {
            if let Some(marking) = &mut array.inner.borrow_mut().marking {
                marking.ledger.end_clear();
            }
            array.write_bitmap();
            array.task_done();
        });
    }

    /// The array has another size: regions are laid out anew, and what was known of the old ones is given up.
    pub fn mark_anew(&self) {
        let mut inner = self.inner.borrow_mut();
        let Some(mut ledger) = inner.new_ledger(true) else { return };
        if let Some(older) = &inner.marking {
            ledger.follow(&older.ledger);
        }
        let is_unsynced = inner.params.level.is_parity();
        inner.marking = Some(Marking::new(ledger, is_unsynced));
    }
}

impl RaidModule {
    /// Writes on a channel wait for these regions to be marked.
    pub fn mark(&self, array: u64, regions: std::ops::Range<u64>) {
        if let Some(array) = self.by_id(array) {
            array.mark(regions);
        }
    }
}

/// A region that nobody has written to for this long, or twice as long, is cleared.
const REST: Duration = Duration::from_secs(5);
