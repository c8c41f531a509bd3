//! `raid`: devices striped over, mirrored on or protected by several others.
//!
//! `superblock`, `level`, `layout`, `xor` and `state` are pure. `channel` is the
//! data path on a reactor, `shared` what it hears from the control thread, where
//! `array` is one array, `create` brings it up, `assembly` collects its members,
//! `change` loses and gains them, `rebuild` copies, `status` tells.
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
mod layout;
mod level;
mod lineage;
pub mod ondisk;
mod rebuild;
mod shared;
mod state;
mod status;
mod superblock;
mod xor;

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};

use tenon_sdk::{
    BaseEvent, ControlCell, Error, ExamineToken, Examined, Host, Module, OpToken, export_plugin,
};

use array::{Array, Standing};
use config::{AddBase, Destroy, GetBdevs, Named, RaidOptions, RaidParams, SetOptions};

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
}

impl Module for RaidModule {
    type Config = RaidOptions;
    type Params = RaidParams;

    const DELETE: Option<fn(&Self, &str, OpToken)> =
        Some(|module, name, token| module.delete(name, false, token));

    fn init(host: Host, config: RaidOptions) -> Result<Self, Error> {
        config.check()?;
        Ok(RaidModule { host, first_options: config, control: ControlCell::new() })
    }

    fn init_complete(&self) {
        let results = [
            self.host.rpc::<Self, GetBdevs>("bdev_raid_get_bdevs", Self::get_bdevs),
            self.host.rpc::<Self, SetOptions>("bdev_raid_set_options", Self::set_options),
            self.host.rpc::<Self, AddBase>("bdev_raid_add_base_bdev", Self::add_base_bdev),
            self.host.rpc::<Self, Named>("bdev_raid_remove_base_bdev", Self::remove_base_bdev),
            self.host.rpc::<Self, Named>("bdev_raid_start_degraded", Self::start_degraded),
            self.host.rpc::<Self, Destroy>("bdev_raid_destroy", |module, params, token| {
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
            config.check()?;
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

    /// Every channel of an array obeys a directive.
    pub fn directive_obeyed(&self, array: u64, epoch: u64) {
        if let Some(array) = self.by_id(array) {
            array.directive_obeyed(epoch);
        }
    }

    /// A channel could not write to a member.
    pub fn member_failed(&self, array: u64, slot: usize) {
        if let Some(array) = self.by_id(array) {
            array.member_failed(slot);
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
            options.check()?;
            self.control.with(|control| control.options = Some(options));
            Ok(true)
        });
    }

    fn add_base_bdev(&self, params: AddBase, token: OpToken) {
        token.run(|_| self.named(&params.raid_bdev)?.rejoin(&params.base_bdev).map(|()| true));
    }

    fn remove_base_bdev(&self, params: Named, token: OpToken) {
        let member = self.all().into_iter().find_map(|array| {
            let slot = {
                let inner = array.inner.borrow();
                let is_it = |slot: &array::Slot| {
                    slot.base.is_some()
                        && slot.name == params.name
                        && matches!(slot.standing, Standing::Current | Standing::Target)
                };
                inner.slots.iter().position(is_it)
            };
            Some((array, slot?))
        });
        match member {
            None => token.fail(Error::not_found(params.name)),
            Some((array, _)) if array.inner.borrow().bdev.is_none() => {
                token.fail(Error::busy("array is not online; delete it instead").object(&*array.name));
            }
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
        "bdev_raid_add_base_bdev", "bdev_raid_remove_base_bdev", "bdev_raid_start_degraded", "bdev_raid_destroy",
    ],
}
