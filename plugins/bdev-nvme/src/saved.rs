//! The tables that make again what is attached: one per name, with all of its
//! paths and how its devices use them, or one per discovery service.

use serde_json::{Map, Value};

use crate::config::{DeviceWish, NvmeParams};
use crate::registry::Registry;

impl Registry {
    /// The table of the controllers that a device belongs to.
    pub(crate) fn saved_table(&self, device: u64) -> Option<Value> {
        let device = self.devices().into_iter().find(|other| other.id == device)?;
        let entries = device.table.read().0;
        let discovery = self
            .discoveries()
            .into_iter()
            .find(|discovery| entries.iter().any(|entry| discovery.owns(entry.door.id)));
        let mut table = match discovery {
            Some(discovery) => discovery.params.clone(),
            None => self.group_table(&device.group)?,
        };
        let (prefix, is_numbered) = (table.prefix(), table.discovery || table.svcname.is_some());
        let is_of = |wish: &&DeviceWish| is_device_of(&wish.name, &prefix, is_numbered);
        table.bdevs = self.wishes.borrow().values().filter(is_of).cloned().collect();
        serde_json::to_value(&table).ok()
    }

    /// The first controller of a name, and in what the others differ from it.
    fn group_table(&self, group: &str) -> Option<NvmeParams> {
        let controllers = self.controllers(Some(group));
        // With the keys of now, which may not be those it was attached with.
        let mut controllers = controllers.iter().map(|controller| {
            let names = controller.key_names.borrow().clone();
            let (dhchap_key, dhchap_ctrlr_key) = (names.dhchap_key, names.dhchap_ctrlr_key);
            NvmeParams { dhchap_key, dhchap_ctrlr_key, ..controller.plan.params.clone() }
        });
        let mut first = controllers.next()?;
        let whole = serde_json::to_value(&first).ok()?;
        first.paths = controllers.map(|other| difference(&whole, &other)).collect();
        Some(first)
    }
}

/// Parameters of a further path that are not those of the first; `null` for what it has not.
fn difference(first: &Value, other: &NvmeParams) -> Map<String, Value> {
    let other = serde_json::to_value(other).unwrap_or_default();
    let empty = Map::new();
    let (first, other) = (first.as_object().unwrap_or(&empty), other.as_object().unwrap_or(&empty));
    other
        .iter()
        .filter(|(key, value)| first.get(*key) != Some(*value))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect()
}

/// Whether a device is named after a controller, or after one of a discovery service's.
fn is_device_of(device: &str, name: &str, is_discovery: bool) -> bool {
    let Some(rest) = device.strip_prefix(name) else { return false };
    let rest =
        if is_discovery { rest.trim_start_matches(|letter: char| letter.is_ascii_digit()) } else { rest };
    rest.strip_prefix('n').is_some_and(|number| number.starts_with(|letter: char| letter.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn further_paths_say_what_is_different_and_make_the_same_parameters_again() {
        let params = |traddr: &str, port: &str| -> NvmeParams {
            let json = json!({
                "name": "nvme0", "trtype": "TCP", "traddr": traddr, "trsvcid": port,
                "subnqn": "nqn.2026-01.io.tenon:a", "hdgst": true, "reconnect_delay_sec": 1,
            });
            serde_json::from_value(json).unwrap()
        };
        let (first, second) = (params("10.0.0.1", "4420"), params("10.0.1.1", "4421"));
        let different = difference(&serde_json::to_value(&first).unwrap(), &second);
        assert_eq!(Value::Object(different.clone()), json!({ "traddr": "10.0.1.1", "trsvcid": "4421" }));
        let table = NvmeParams { paths: vec![different], ..first.clone() };
        let members = table.members().unwrap();
        let texts = |params: &[NvmeParams]| -> Vec<Value> {
            params.iter().map(|params| serde_json::to_value(params).unwrap()).collect()
        };
        assert_eq!(texts(&members), texts(&[first, second]));
    }

    #[test]
    fn devices_belong_to_the_name_they_are_made_of() {
        assert!(is_device_of("nvme0n1", "nvme0", false) && !is_device_of("nvme00n1", "nvme0", false));
        assert!(is_device_of("all12n3", "all", true) && !is_device_of("allen1", "all", true));
    }
}
