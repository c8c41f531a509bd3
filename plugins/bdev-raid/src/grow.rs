//! An array becomes larger: its members have grown, or a concat gets one more. The
//! superblock with the new size is durable before anybody is told of it.

use std::rc::Rc;
use std::sync::Arc;

use tenon_sdk::{Error, OpToken};

use crate::array::{Array, Slot, Standing, data_offset};
use crate::change::Why;
use crate::config::MAX_MEMBERS;
use crate::disk;
use crate::layout::Layout;
use crate::level::Level;

impl Array {
    /// Takes note of members that have grown. What lies beyond the old end was never written, and members need not
    /// agree on it.
    pub fn grow(self: &Rc<Self>) {
        let Some(layout) = self.grown_layout() else { return self.task_done() };
        self.take_layout(layout, Array::task_done);
    }

    /// The geometry on members as large as they are now, if that is more than before and every member is there.
    fn grown_layout(&self) -> Option<Layout> {
        let inner = self.inner.borrow();
        let old = inner.layout.as_ref()?;
        if inner.process.is_some() || inner.current().len() < inner.slots.len() {
            return None;
        }
        let last = inner.slots.len() - 1;
        let mut rooms = Vec::with_capacity(inner.slots.len());
        for (nth, slot) in inner.slots.iter().enumerate() {
            let blocks = slot.base.as_ref()?.info().ok()?.limits.num_blocks;
            let room = blocks.saturating_sub(slot.data_offset);
            // Behind any but the last member of a concat the next one begins.
            rooms.push(if old.level == Level::Concat && nth < last { slot.data_size } else { room });
        }
        let layout = Layout::new(old.level, old.strip_blocks, &rooms)?;
        if layout.num_blocks < old.num_blocks {
            log::error!(
                "members have become smaller raid={} blocks={} before={}",
                self.name,
                layout.num_blocks,
                old.num_blocks
            );
        }
        (layout.num_blocks > old.num_blocks).then_some(layout)
    }

    /// Makes a larger geometry durable, gives it to channels and tells the host.
    fn take_layout(self: &Rc<Self>, layout: Layout, then: impl FnOnce(&Rc<Array>) + 'static) {
        let num_blocks = layout.num_blocks;
        {
            let mut inner = self.inner.borrow_mut();
            for (slot, size) in inner.slots.iter_mut().zip(&layout.data_sizes) {
                slot.data_size = *size;
            }
            inner.layout = Some(Arc::new(layout));
        }
        self.direct(true, 0..0, move |array| {
            // Of the new blocks nothing is known: regions are marked before the superblock counts them. A bitmap that
            // does not fit the superblock marks everything.
            array.bitmap_everywhere(move |array| {
                array.mark_anew();
                array.bitmap_everywhere(move |array| array.commit_layout(num_blocks, then));
            });
        });
    }

    fn commit_layout(self: &Rc<Self>, num_blocks: u64, then: impl FnOnce(&Rc<Array>) + 'static) {
        self.commit(move |array, is_durable| {
            if !is_durable {
                return array.fail_array(Why::Failed);
            }
            array.direct(false, 0..0, move |array| {
                let bdev = array.inner.borrow().bdev;
                if let Some(Err(error)) = bdev.map(|bdev| array.host.resize(bdev, num_blocks)) {
                    log::error!("device not resized raid={} error=\"{error}\"", array.name);
                }
                log::info!("array has grown raid={} blocks={num_blocks}", array.name);
                array.push_resync();
                then(array);
            });
        });
    }

    /// Adds a device behind the last member of a concat.
    pub fn extend(self: &Rc<Self>, name: &str, token: OpToken) {
        let slot = match self.open_extension(name) {
            Ok(slot) => slot,
            Err(error) => {
                token.fail(error);
                return self.task_done();
            }
        };
        let name = name.to_owned();
        if !self.inner.borrow().params.superblock {
            return self.extended(slot, name, token);
        }
        // First on the new member: an array that counts it must find it.
        let (draft, targets) = {
            let mut inner = self.inner.borrow_mut();
            let (old, last) = (inner.layout.clone(), inner.superblock.clone());
            let layout = extended_layout(&inner.slots, old.as_deref());
            inner.layout = layout.map(Arc::new);
            let draft = inner.next_draft(&self.name);
            // What the others have not been told is not agreed on yet.
            (inner.layout, inner.superblock) = (old, last);
            inner.agreed.lineage.take_back();
            let base = inner.slots[slot].base.clone();
            (draft, base.map(|base| (slot, base)).into_iter().collect())
        };
        let this = Rc::clone(self);
        disk::write_all(targets, &draft, move |failures| match failures.into_iter().next() {
            None => this.extended(slot, name, token),
            Some((_, error)) => {
                this.inner.borrow_mut().slots.truncate(slot);
                token.fail(error);
                this.task_done();
            }
        });
    }

    fn extended(self: &Rc<Self>, slot: usize, name: String, token: OpToken) {
        let layout = {
            let inner = self.inner.borrow();
            extended_layout(&inner.slots, inner.layout.as_deref())
        };
        let Some(layout) = layout else {
            self.inner.borrow_mut().slots.truncate(slot);
            token.fail(Error::invalid("has no room for a strip").object(name));
            return self.task_done();
        };
        self.take_layout(layout, move |array| {
            {
                let mut inner = array.inner.borrow_mut();
                let names = inner.slots.iter().map(Slot::label).collect();
                inner.params.base_bdevs = crate::config::BaseNames::List(names);
            }
            log::info!("member added raid={} member={name}", array.name);
            token.reply(&true);
            array.tell_openers();
            array.task_done();
        });
    }

    /// Opens a device for a slot of its own behind the last one.
    fn open_extension(&self, name: &str) -> Result<usize, Error> {
        let info = match self.host.find(name) {
            Some(id) => self.host.bdev_info(id)?,
            None => return Err(Error::not_found(name)),
        };
        let (slot, offset, room) = {
            let inner = self.inner.borrow();
            if inner.slots.len() == MAX_MEMBERS {
                return Err(Error::busy(format!("array has {MAX_MEMBERS} members")).object(&*self.name));
            }
            let offset = if inner.params.superblock { data_offset(&info) } else { 0 };
            let room = info.limits.num_blocks.saturating_sub(offset);
            let room = room.checked_div(inner.strip_blocks()).unwrap_or(0) * inner.strip_blocks();
            (inner.slots.len(), offset, room)
        };
        if room == 0 {
            return Err(Error::invalid("has no room for a strip").object(name));
        }
        let deepest = |(_, base): &(usize, tenon_sdk::Descriptor)| {
            base.channel().map_or(0, |channel| channel.io_context_size())
        };
        let bound = self.inner.borrow().current().iter().map(deepest).max().unwrap_or(0);
        self.inner.borrow_mut().slots.push(Slot {
            data_offset: offset,
            data_size: room,
            standing: Standing::Current,
            ..Slot::named(name)
        });
        let opened = self.open_member(slot, name).and_then(|()| {
            let base = self.inner.borrow().slots[slot].base.clone();
            let depth = base.map_or(Ok(0), |base| base.channel().map(|channel| channel.io_context_size()))?;
            if depth <= bound {
                return Ok(());
            }
            let reason = "is a deeper stack of devices than the members, and channels are open already";
            Err(Error::invalid(reason).object(name))
        });
        if let Err(error) = opened {
            self.inner.borrow_mut().slots.truncate(slot);
            return Err(error);
        }
        Ok(slot)
    }
}

fn extended_layout(slots: &[Slot], old: Option<&Layout>) -> Option<Layout> {
    let sizes = slots.iter().map(|slot| slot.data_size).collect();
    Layout::of_sizes(Level::Concat, old?.strip_blocks, sizes)
}
