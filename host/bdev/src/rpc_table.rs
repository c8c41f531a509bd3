//! RPC methods of modules: who serves which.
//!
//! A method is known while its module is in service, and before that if the
//! catalog says which plugin has it. Calls nobody: that is `request`.

use std::collections::BTreeMap;
use std::ffi::c_void;

use tenon_abi::{RpcFn, errno};
use tenon_modules::ModuleRef;

use crate::core::Core;
use crate::request::RpcEntry;

/// Methods by name.
#[derive(Default)]
pub(crate) struct RpcTable {
    methods: BTreeMap<String, RpcEntry>,
}

impl RpcTable {
    pub(crate) fn len(&self) -> usize {
        self.methods.len()
    }
}

impl Core {
    /// Adds a method of a module.
    pub(crate) fn rpc_register(
        &self,
        module: ModuleRef,
        method: &str,
        handler: RpcFn,
        arg: *mut c_void,
    ) -> i32 {
        let is_valid = (1..=MAX_METHOD).contains(&method.len())
            && method.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
        if !is_valid {
            return errno::EINVAL;
        }
        let mut table = self.inner.rpc_table.borrow_mut();
        if let Some(entry) = table.methods.get(method) {
            // A newer version of the same module takes its methods over from the older.
            if entry.module.name() != module.name() || entry.module.id() >= module.id() {
                return errno::EEXIST;
            }
        } else if table.methods.len() >= MAX_METHODS {
            return errno::ENOSPC;
        }
        table.methods.insert(method.to_owned(), RpcEntry { module, handler, arg });
        0
    }

    pub(crate) fn rpc_entry(&self, method: &str) -> Option<RpcEntry> {
        self.inner.rpc_table.borrow().methods.get(method).copied()
    }

    /// Name of the module that serves a method, loaded or not.
    pub(crate) fn rpc_module(&self, method: &str) -> Option<String> {
        if let Some(entry) = self.rpc_entry(method) {
            return Some(entry.module.name().to_owned());
        }
        self.inner.modules.catalog().for_rpc(method).map(|plugin| plugin.name.clone())
    }

    /// All methods of modules, loaded or not, sorted.
    pub fn rpc_methods(&self) -> Vec<String> {
        let mut methods: Vec<String> = self.inner.rpc_table.borrow().methods.keys().cloned().collect();
        for plugin in self.inner.modules.catalog().plugins() {
            methods.extend(plugin.rpc.iter().cloned());
        }
        methods.sort();
        methods.dedup();
        methods
    }

    pub(crate) fn rpc_forget_module(&self, module: ModuleRef) {
        let mut table = self.inner.rpc_table.borrow_mut();
        table.methods.retain(|_, entry| entry.module.id() != module.id());
    }
}

/// Longest name of a method.
const MAX_METHOD: usize = 128;
/// Most methods of all modules.
const MAX_METHODS: usize = 4096;
