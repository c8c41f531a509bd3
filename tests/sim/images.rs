//! Built plugins in this process. A world loads their modules as if linked: a
//! host that loads files maps each of them anew, and a process may do that so
//! many times only.
// UNSAFETY: loads the plugins' descriptors.

use std::collections::HashMap;
use std::sync::{LazyLock, Mutex, PoisonError};

use libloading::Library;
use tenon_abi::PluginDescV1;

struct Descriptor(*const PluginDescV1);

// SAFETY: descriptors are immutable static data.
unsafe impl Send for Descriptor {}

static DESCRIPTORS: LazyLock<Mutex<HashMap<String, Descriptor>>> = LazyLock::new(Mutex::default);

/// The descriptor of a built plugin, as `change` makes it when it is first asked for.
pub fn descriptor(
    name: &str,
    change: impl FnOnce(*const PluginDescV1) -> *const PluginDescV1,
) -> *const PluginDescV1 {
    let mut known = DESCRIPTORS.lock().unwrap_or_else(PoisonError::into_inner);
    known.entry(name.to_owned()).or_insert_with(|| Descriptor(change(open(name)))).0
}

fn open(name: &str) -> *const PluginDescV1 {
    let exe = std::env::current_exe().expect("a running test has a path");
    let directory = exe.ancestors().nth(2).expect("tests run in target/profile/deps");
    let file = directory.join(format!("lib{name}.so"));
    // SAFETY: the plugins of this repository do nothing when they are loaded, and are never unloaded.
    unsafe {
        let library = Library::new(&file).unwrap_or_else(|error| panic!("cargo build --workspace: {error}"));
        let library: &'static Library = Box::leak(Box::new(library));
        let entry = library.get::<extern "C" fn() -> *const PluginDescV1>(b"tenon_plugin_v1");
        entry.expect("a plugin")()
    }
}
