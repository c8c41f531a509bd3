//! `raid`: devices striped over, mirrored on or protected by several others.
//!
//! `superblock`, `ondisk`, `lineage`, `intent`, `level`, `layout`, `xor`, `scrub` and
//! `state` are pure. `channel` is the data path on a reactor, `shared` what it hears
//! from the control thread, `stripes` what channels lock. On that thread `array` is
//! one array, `create` brings it up, `replay` redoes its journal, `assembly` collects
//! its members, which agree by `agreement`; `change` loses and gains them, `spare`
//! keeps some ready, `process` rebuilds and scrubs by the help of `window`, `resume`
//! says what it need not do, `marking` writes the bitmap, `grow` enlarges, `status`
//! tells.
#![forbid(unsafe_code)]

mod agreement;
mod array;
mod assembly;
mod bdev;
mod change;
mod channel;
mod config;
mod create;
mod disk;
pub mod fuzz;
mod grow;
mod intent;
mod layout;
mod level;
mod lineage;
mod marking;
pub mod ondisk;
mod process;
mod replay;
mod resume;
mod scrub;
mod shared;
mod spare;
mod state;
mod status;
mod stripes;
mod superblock;
mod window;
pub mod xor;

use std::cell::RefCell;
use std::ops::Range;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};

use tenon_sdk::{
    Access, BaseEvent, BdevId, Claim, ControlCell, Error, ExamineToken, Examined, Host, Module, OpToken,
    export_plugin,
};

use array::Array;
use change::Task;
use config::{AddBase, Destroy, GetBdevs, Named, RaidOptions, RaidParams, ReplaceBase, Scrub, SetOptions};
use level::Level;
use state::ArrayState;
use superblock::SuperblockError;

/// The module.
pub struct RaidModule {
    host: Host,
    first_options: RaidOptions,
    control: ControlCell<Control>,
}

/// What belongs to the control thread.
#[derive(Default)]
struct Control {
    arrays: Rc<RefCell<Vec<Rc<Array>>>>,
    /// `None`: as configured at the start.
    options: Option<RaidOptions>,
    /// Names of devices whose superblocks are being read.
    looked_at: Vec<String>,
}

impl Module for RaidModule {
    type Config = RaidOptions;
    type Params = RaidParams;

    const DELETE: Option<fn(&Self, &str, OpToken)> =
        Some(|module, name, token| module.delete(name, false, token));

    fn init(host: Host, config: RaidOptions) -> Result<Self, Error> {
        Ok(RaidModule { host, first_options: config, control: ControlCell::new() })
    }

    fn validate_config(config: &RaidOptions) -> Result<(), Error> {
        config.check()
    }

    fn config(&self) -> Option<serde_json::Value> {
        tenon_sdk::changed_options(&self.options())
    }

    fn init_complete(&self) {
        let host = self.host;
        let results = [
            host.rpc::<Self, GetBdevs>("bdev_raid_get_bdevs", Self::get_bdevs),
            host.rpc::<Self, SetOptions>("bdev_raid_set_options", Self::set_options),
            host.rpc::<Self, AddBase>("bdev_raid_add_base_bdev", Self::add_base_bdev),
            host.rpc::<Self, Named>("bdev_raid_remove_base_bdev", Self::remove_base_bdev),
            host.rpc::<Self, ReplaceBase>("bdev_raid_replace_base_bdev", Self::replace_base_bdev),
            host.rpc::<Self, AddBase>("bdev_raid_add_spare", |module, params, token| {
                token.run(|_| module.named(&params.raid_bdev)?.add_spare(&params.base_bdev).map(|()| true));
            }),
            host.rpc::<Self, AddBase>("bdev_raid_remove_spare", |module, params, token| {
                token
                    .run(|_| module.named(&params.raid_bdev)?.remove_spare(&params.base_bdev).map(|()| true));
            }),
            host.rpc::<Self, Scrub>("bdev_raid_start_scrub", |module, params, token| {
                token.run(|_| module.named(&params.name)?.start_scrub(params.repair).map(|()| true));
            }),
            host.rpc::<Self, Named>("bdev_raid_stop_scrub", |module, params, token| {
                token.run(|_| module.named(&params.name)?.stop_scrub().map(|()| true));
            }),
            host.rpc::<Self, Named>("bdev_raid_pause_process", |module, params, token| {
                token.run(|_| module.named(&params.name)?.pause_process(true).map(|()| true));
            }),
            host.rpc::<Self, Named>("bdev_raid_resume_process", |module, params, token| {
                token.run(|_| module.named(&params.name)?.pause_process(false).map(|()| true));
            }),
            host.rpc::<Self, Named>("bdev_raid_start_degraded", Self::start_degraded),
            host.rpc::<Self, Named>("bdev_raid_wipe_superblock", Self::wipe_superblock),
            host.rpc::<Self, Destroy>("bdev_raid_destroy", |module, params, token| {
                module.delete(&params.name, params.wipe, token);
            }),
        ];
        for error in results.into_iter().filter_map(Result::err) {
            log::error!("method not registered error=\"{error}\"");
        }
    }

    fn validate(params: &RaidParams) -> Result<(), Error> {
        params.check()
    }

    fn configure(&self, config: RaidOptions, token: OpToken) {
        token.run(|_| {
            self.control.with(|control| control.options = Some(config));
            Ok(true)
        });
    }

    fn create(&self, params: RaidParams, token: OpToken) {
        create::create(self, params, token);
    }

    fn examine_config(&self, bdev: &Examined, token: ExamineToken) {
        assembly::examine_config(self, bdev, token);
    }

    fn examine_disk(&self, bdev: &Examined, token: ExamineToken) {
        assembly::examine_disk(bdev, token);
    }

    /// Arrays that are no devices end with the module.
    fn fini(self: Rc<Self>, token: OpToken) {
        for array in self.all() {
            array.give_up();
        }
        drop(self);
        token.done();
    }
}

impl RaidModule {
    /// A number that no array or member of this process had before.
    pub fn next_id() -> u64 {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        NEXT.fetch_add(1, Ordering::Relaxed)
    }

    /// The host.
    pub fn host(&self) -> Host {
        self.host
    }

    /// The options in force.
    pub fn options(&self) -> RaidOptions {
        self.control.with(|control| control.options).unwrap_or(self.first_options)
    }

    /// Every array now.
    pub fn all(&self) -> Vec<Rc<Array>> {
        self.arrays().borrow().clone()
    }

    /// The array of that name.
    pub fn by_name(&self, name: &str) -> Option<Rc<Array>> {
        self.all().into_iter().find(|array| array.name == name)
    }

    /// The array of that number.
    pub fn by_id(&self, id: u64) -> Option<Rc<Array>> {
        self.all().into_iter().find(|array| array.id == id)
    }

    /// The array of that identity.
    pub fn by_uuid(&self, uuid: &[u8; 16]) -> Option<Rc<Array>> {
        self.all().into_iter().find(|array| array.inner.borrow().uuid == *uuid)
    }

    /// Remembers an array.
    pub fn insert(&self, array: &Rc<Array>) {
        self.arrays().borrow_mut().push(Rc::clone(array));
    }

    /// Forgets one.
    pub fn forget(&self, id: u64) {
        let arrays = self.arrays();
        let gone: Vec<Rc<Array>> = arrays.borrow_mut().extract_if(.., |array| array.id == id).collect();
        drop(gone);
    }

    /// The superblock of a device is being read.
    pub fn begin_look(&self, name: &str) {
        self.control.with(|control| control.looked_at.push(name.to_owned()));
    }

    /// It was read.
    pub fn end_look(&self, name: &str) {
        self.control.with(|control| {
            let nth = control.looked_at.iter().position(|other| other == name);
            nth.map(|nth| control.looked_at.swap_remove(nth))
        });
    }

    /// Devices whose superblocks are being read.
    pub fn looked_at(&self) -> Vec<String> {
        self.control.with(|control| control.looked_at.clone())
    }

    /// Every channel of an array obeys a directive.
    pub fn directive_obeyed(&self, array: u64, epoch: u64) {
        if let Some(array) = self.by_id(array) {
            array.directive_obeyed(epoch);
        }
    }

    /// A channel could not write to a member.
    pub fn member_failed(&self, array: u64, slot: usize, reason: &str) {
        if let Some(array) = self.by_id(array) {
            array.member_failed(slot, reason);
        }
    }

    /// A channel could not read blocks of a member, and found them elsewhere.
    pub fn correct(&self, array: u64, slot: usize, bdev: BdevId, blocks: Range<u64>) {
        if let Some(array) = self.by_id(array) {
            array.correct(slot, bdev, blocks);
        }
    }

    /// Something happened to a device that was opened as a spare.
    pub fn spare_event(&self, array: u64, member: u64, event: &BaseEvent) {
        if let Some(array) = self.by_id(array) {
            array.spare_event(member, event);
        }
    }

    /// Something happened to a member.
    pub fn base_event(&self, array: u64, slot: usize, member: u64, event: &BaseEvent) {
        if let Some(array) = self.by_id(array) {
            array.base_event(slot, member, event);
        }
    }

    /// Brings arrays online that wait for nothing any more.
    pub fn bring_up_complete(&self) {
        for array in self.all() {
            if array.is_complete() {
                array.bring_up_assembled();
            }
        }
    }

    fn arrays(&self) -> Rc<RefCell<Vec<Rc<Array>>>> {
        self.control.with(|control| Rc::clone(&control.arrays))
    }

    fn named(&self, name: &str) -> Result<Rc<Array>, Error> {
        self.by_name(name).ok_or_else(|| Error::not_found(name))
    }

    fn delete(&self, name: &str, wipe: bool, token: OpToken) {
        match self.named(name) {
            Ok(array) => array.close(wipe, token),
            Err(error) => token.fail(error),
        }
    }

    fn get_bdevs(&self, params: GetBdevs, token: OpToken) {
        let arrays = self.all();
        let chosen: Vec<_> =
            arrays.iter().filter(|array| array.is_in(params.category)).map(|array| array.status()).collect();
        token.reply(&chosen);
    }

    fn set_options(&self, params: SetOptions, token: OpToken) {
        token.run(|_| {
            let mut options = self.options();
            options.process_window_size_kb =
                params.process_window_size_kb.unwrap_or(options.process_window_size_kb);
            options.process_max_bandwidth_mb_sec =
                params.process_max_bandwidth_mb_sec.unwrap_or(options.process_max_bandwidth_mb_sec);
            options.process_priority = params.process_priority.unwrap_or(options.process_priority);
            options.degraded_start_timeout_sec =
                params.degraded_start_timeout_sec.unwrap_or(options.degraded_start_timeout_sec);
            options.check()?;
            self.control.with(|control| control.options = Some(options));
            Ok(true)
        });
    }

    /// A mirror or a parity level gets a member it lacks, a concat one more.
    fn add_base_bdev(&self, params: AddBase, token: OpToken) {
        let array = match self.named(&params.raid_bdev) {
            Ok(array) => array,
            Err(error) => return token.fail(error),
        };
        let (level, state) = {
            let inner = array.inner.borrow();
            (inner.params.level, inner.state)
        };
        if level == Level::Concat && state == ArrayState::Online {
            array.push(Task::Extend { name: params.base_bdev, token });
        } else {
            token.run(|_| array.rejoin(&params.base_bdev, false).map(|()| true));
        }
    }

    /// The new device takes the place of the old one once that is out, and is rebuilt.
    fn replace_base_bdev(&self, params: ReplaceBase, token: OpToken) {
        let found = self.named(&params.raid_bdev).and_then(|array| {
            let slot = array.slot_of(&params.base_bdev);
            let slot = slot.ok_or_else(|| Error::not_found(&*params.base_bdev))?;
            let id = self.host.find(&params.new_base_bdev);
            let id = id.ok_or_else(|| Error::not_found(&*params.new_base_bdev))?;
            array.room_on(&self.host.bdev_info(id)?, slot)?;
            Ok((array, slot))
        });
        match found {
            Err(error) => token.fail(error),
            Ok((array, slot)) => array.replace_member(slot, &params.new_base_bdev, token),
        }
    }

    /// Wipes the superblock of a device that nobody uses.
    fn wipe_superblock(&self, params: Named, token: OpToken) {
        let opened = self.host.open(&params.name, Access::Write, |_| {}).and_then(|base| {
            base.claim(Claim::ExclusiveWrite)?;
            Ok(base)
        });
        let base = match opened {
            Ok(base) => base,
            Err(error) => return token.fail(error),
        };
        disk::read(&base.clone(), move |found| match found {
            Err(error) => token.fail(error),
            Ok(Err(SuperblockError::NotOurs)) => {
                let reason = "carries no raid superblock";
                token.fail(Error::new(tenon_sdk::errno::ENOENT, reason).object(base.name()));
            }
            Ok(_) => disk::wipe_all(vec![(0, base)], move || token.reply(&true)),
        });
    }

    fn remove_base_bdev(&self, params: Named, token: OpToken) {
        let member = self.all().into_iter().find_map(|array| {
            let slot = array.slot_of(&params.name)?;
            Some((array, slot))
        });
        match member {
            None => token.fail(Error::not_found(params.name)),
            Some((array, slot)) if array.inner.borrow().bdev.is_none() => array.give_up_member(slot, token),
            Some((array, slot)) => array.remove_member(slot, token),
        }
    }

    fn start_degraded(&self, params: Named, token: OpToken) {
        match self.named(&params.name) {
            Ok(array) => array.start_degraded(token),
            Err(error) => token.fail(error),
        }
    }
}

export_plugin! {
    module: RaidModule,
    name: "raid",
    version: env!("CARGO_PKG_VERSION"),
    provides: ["bdev"],
    rpc: [
        "bdev_raid_create", "bdev_raid_delete", "bdev_raid_get_bdevs", "bdev_raid_set_options",
        "bdev_raid_add_base_bdev", "bdev_raid_remove_base_bdev", "bdev_raid_replace_base_bdev",
        "bdev_raid_add_spare", "bdev_raid_remove_spare", "bdev_raid_start_scrub", "bdev_raid_stop_scrub",
        "bdev_raid_pause_process", "bdev_raid_resume_process", "bdev_raid_start_degraded",
        "bdev_raid_wipe_superblock", "bdev_raid_destroy",
    ],
}
