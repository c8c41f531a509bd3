//! A device: a namespace, reached by one path or several.

use std::rc::Rc;
use std::sync::Arc;

use serde_json::{Value, json};
use tenon_sdk::{Bdev, Error, Host, OpToken, Reactor};

use crate::channel::NvmeChannel;
use crate::module;
use crate::side::Side;
use crate::table::Table;

/// A device of this module.
pub struct NvmeBdev {
    pub(crate) host: Host,
    pub(crate) table: Arc<Table>,
}

impl Bdev for NvmeBdev {
    type Channel = NvmeChannel;

    fn channel(&self, _reactor: Reactor) -> Result<Rc<NvmeChannel>, Error> {
        Ok(NvmeChannel::open(self.host, Arc::clone(&self.table), Side::current(self.host)))
    }

    fn destruct(self: Arc<Self>, token: OpToken) {
        let device = self.table.device;
        drop(self);
        if let Some(registry) = module::registry() {
            registry.device_destroyed(device);
        }
        token.done();
    }

    fn dump(&self) -> Value {
        let device = self.table.device;
        module::registry().map_or_else(|| json!({}), |registry| registry.dump(device))
    }

    fn statistics(&self) -> Option<Value> {
        self.table.errors.as_ref().map(|errors| errors.describe())
    }

    fn reset_statistics(&self) {
        if let Some(errors) = &self.table.errors {
            errors.reset();
        }
    }

    fn config(&self) -> Option<Value> {
        module::registry()?.saved_table(self.table.device)
    }
}
