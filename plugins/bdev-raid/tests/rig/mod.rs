//! An array on devices of a fake host, as tests of what happens to it set it up.
//! What only one of them asks of it is that test's own.
#![allow(dead_code, reason = "each test uses its part")]

use serde_json::{Value, json};
use tenon_testkit::{BaseSpec, FakeHost, TestBase};

/// Of a device.
pub const BLOCKS: u64 = 4096;
/// First block of the data area of a member with a superblock.
pub const DATA: u64 = 2048;

pub struct Rig {
    pub host: FakeHost,
    pub bases: Vec<TestBase>,
}

pub fn spec(nth: usize) -> BaseSpec {
    BaseSpec::new(&format!("b{nth}"), 512, BLOCKS).uuid([nth as u8 + 1; 16])
}

impl Rig {
    /// A host with the array `r0` of that level on the first `members` of `count` devices.
    pub fn new(seed: u64, level: &str, members: usize, count: usize, more: &Value) -> Rig {
        let host = FakeHost::new(seed);
        let bases = (0..count).map(|nth| host.add_base(spec(nth))).collect();
        let module = host.load(bdev_raid::plugin, "{}").unwrap();
        host.settle();
        let names: Vec<String> = (0..members).map(|nth| format!("b{nth}")).collect();
        let strip = if level == "raid1" { 0 } else { 4 };
        let mut params = json!({ "name": "r0", "level": level, "strip_size_kb": strip, "base_bdevs": names,
            "superblock": true });
        params.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        host.create(module, &params.to_string()).unwrap();
        Rig { host, bases }
    }

    pub fn ok(&self, method: &str, params: Value) {
        self.host.rpc(method, &params.to_string()).unwrap_or_else(|error| panic!("{method}: {error}"));
    }

    pub fn array(&self) -> Value {
        let all = self.host.rpc("bdev_raid_get_bdevs", r#"{"category":"all"}"#).unwrap();
        serde_json::from_str::<Vec<Value>>(&all).unwrap().remove(0)
    }
}
