//! The device: every operation completes at once inside `submit`; READ leaves
//! its buffers as they are.

use std::rc::Rc;
use std::sync::Mutex;

use tenon_sdk::{Bdev, BdevOp, Channel, Error, Host, Io, IoStatus, Reactor};

use crate::config::NullParams;

/// A device.
pub struct NullBdev {
    params: Mutex<NullParams>,
}

/// Its data path.
pub struct NullChannel;

impl NullBdev {
    /// The device that `params` describe.
    pub fn new(params: &NullParams) -> Self {
        NullBdev { params: Mutex::new(params.clone()) }
    }

    /// Changes the capacity to `size_mib`.
    pub fn resize(&self, host: Host, size_mib: u64) -> Result<(), Error> {
        let mut params = self.params().clone();
        params.size = None;
        params.num_blocks = size_mib.checked_mul(1 << 20).map(|bytes| bytes / u64::from(params.data_size()));
        self.update(host, &params)
    }

    /// Changes the device to `params`; only the capacity can change in place.
    pub fn update(&self, host: Host, params: &NullParams) -> Result<(), Error> {
        let blocks = params.blocks()?;
        let old = self.params().clone();
        let only_capacity = NullParams { size: params.size, num_blocks: params.num_blocks, ..old };
        if only_capacity == *params {
            let id = host.registered(&params.name).ok_or_else(|| Error::not_found(&params.name))?;
            host.resize(id, blocks)?;
            *self.params() = params.clone();
            return Ok(());
        }
        Err(Error::not_supported("only size and num_blocks can change in place").object(&params.name))
    }

    fn params(&self) -> std::sync::MutexGuard<'_, NullParams> {
        self.params.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Bdev for NullBdev {
    type Channel = NullChannel;

    fn channel(&self, _: Reactor) -> Result<Rc<NullChannel>, Error> {
        Ok(Rc::new(NullChannel))
    }

    fn config(&self) -> Option<serde_json::Value> {
        serde_json::to_value(&*self.params()).ok()
    }
}

impl Channel for NullChannel {
    type PerIo = ();

    fn submit(&self, io: Io<Self>) {
        let status = match io.op() {
            BdevOp::Read
            | BdevOp::Write
            | BdevOp::Flush
            | BdevOp::Unmap
            | BdevOp::WriteZeroes
            | BdevOp::Reset
            | BdevOp::Verify => IoStatus::SUCCESS,
            _ => IoStatus::NOT_SUPPORTED,
        };
        io.complete(status);
    }
}
