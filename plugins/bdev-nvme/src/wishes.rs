//! How operators want the paths of devices to be used: policy and preferred
//! path, kept by the device's name, so that a device that is not there yet, or
//! comes back, gets them as well.

use tenon_sdk::{Error, errno};

use crate::config::{DeviceWish, NvmeParams};
use crate::registry::Registry;
use crate::select::Rules;
use crate::table::{Entry, Table};

/// The path that is meant as the preferred one.
#[derive(Clone, Debug)]
pub(crate) enum Preferred {
    /// By the identifier its controller has now.
    Controller(u16),
    /// By its address, which outlives a reconnect.
    Address { traddr: String, trsvcid: Option<String> },
}

impl Registry {
    /// A path that is new to a device, as it is wanted; the device's rules are set.
    pub(crate) fn wished(&self, name: &str, table: &Table, mut entry: Entry) -> Entry {
        if let Some(wish) = self.wishes.borrow().get(name) {
            table.set_rules(wish.rules(table.rules()));
            entry.is_preferred = wish.prefers(&entry.door.address);
        }
        entry
    }

    /// What a table says of devices.
    pub(crate) fn add_wishes(&self, params: &NvmeParams) {
        let mut wishes = self.wishes.borrow_mut();
        wishes.extend(params.bdevs.iter().map(|wish| (wish.name.clone(), wish.clone())));
    }

    /// `bdev_nvme_set_multipath_policy`; what is `None` stays as it is.
    pub(crate) fn set_policy(&self, name: &str, change: impl FnOnce(Rules) -> Rules) -> Result<(), Error> {
        let device = self.device_named(name).ok_or_else(|| Error::not_found(name))?;
        let rules = change(device.table.rules());
        if rules.rr_min_io == 0 {
            return Err(Error::invalid("rr_min_io is 0: must be at least 1").object(name));
        }
        self.wish(name, |wish| {
            (wish.policy, wish.selector, wish.rr_min_io) = (rules.policy, rules.selector, rules.rr_min_io);
        });
        device.table.set_rules(rules);
        self.tell_channels(&device);
        Ok(())
    }

    /// `bdev_nvme_set_preferred_path`.
    pub(crate) fn set_preferred(&self, name: &str, wanted: &Preferred) -> Result<(), Error> {
        let device = self.device_named(name).ok_or_else(|| Error::not_found(name))?;
        let is_meant = |entry: &Entry| match wanted {
            Preferred::Controller(cntlid) => self
                .controller(entry.door.id)
                .is_some_and(|controller| controller.facts.borrow().cntlid == *cntlid),
            Preferred::Address { traddr, trsvcid } => {
                let address = &entry.door.address;
                address.traddr == *traddr
                    && trsvcid.as_ref().is_none_or(|service| *service == address.trsvcid)
            }
        };
        let address = device.table.change(|entries| {
            let found = entries.iter().find(|entry| is_meant(entry)).map(|entry| entry.door.address.clone());
            if found.is_some() {
                entries.iter_mut().for_each(|entry| entry.is_preferred = is_meant(entry));
            }
            found
        });
        let Some(address) = address else {
            let reason = match wanted {
                Preferred::Controller(cntlid) => format!("no path has the controller identifier {cntlid}"),
                Preferred::Address { traddr, .. } => format!("no path has the address {traddr}"),
            };
            return Err(Error::new(errno::ENODEV, reason).object(name));
        };
        self.wish(name, |wish| {
            wish.preferred_traddr = Some(address.traddr.clone());
            wish.preferred_trsvcid = Some(address.trsvcid.clone()).filter(|service| !service.is_empty());
        });
        self.tell_channels(&device);
        Ok(())
    }

    fn wish(&self, name: &str, change: impl FnOnce(&mut DeviceWish)) {
        let mut wishes = self.wishes.borrow_mut();
        change(wishes.entry(name.to_owned()).or_insert_with(|| DeviceWish::new(name)));
    }
}

impl DeviceWish {
    fn rules(&self, old: Rules) -> Rules {
        Rules { policy: self.policy, selector: self.selector, rr_min_io: self.rr_min_io, ..old }
    }
}
