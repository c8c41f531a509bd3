//! The device: an open file, described for the host.

use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::{Value, json};
use tenon_sdk::{
    Bdev, BdevFlags, BdevOp, BdevSpec, DmaBuf, Error, Exported, Host, IoFlags, OpSet, OpToken, Reactor,
};

use crate::UringModule;
use crate::backing::Backing;
use crate::channel::{Abilities, UringChannel};
use crate::config::UringParams;
use crate::ring::Ring;

/// A device.
pub struct UringBdev {
    host: Host,
    params: Mutex<UringParams>,
    backing: Arc<Backing>,
    abilities: Arc<Abilities>,
    zeroes: Arc<DmaBuf>,
}

impl UringBdev {
    /// The device on an open file, and what to register.
    pub fn new(host: Host, params: UringParams, backing: Backing) -> Result<(BdevSpec, UringBdev), Error> {
        let spec = spec(&params, &backing);
        let abilities = Arc::new(Abilities::new(&params, backing.geometry()));
        let zeroes = Arc::new(host.alloc(ZEROES_BYTES, 4096, -1)?);
        Ok((
            spec,
            UringBdev { host, params: Mutex::new(params), backing: Arc::new(backing), abilities, zeroes },
        ))
    }

    /// Takes over parameters that differ only in what can change in place.
    pub fn set_params(&self, params: UringParams) {
        *self.params() = params;
    }

    fn params(&self) -> MutexGuard<'_, UringParams> {
        self.params.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn spec(params: &UringParams, backing: &Backing) -> BdevSpec {
    let geometry = backing.geometry();
    let mut flags = if params.readonly { BdevFlags::READ_ONLY } else { BdevFlags::VOLATILE_WRITE_CACHE };
    if !geometry.is_block_device {
        flags = flags.union(BdevFlags::UNMAP_READS_ZEROES);
    }
    let mut ops = if params.readonly { READ_OPS } else { READ_OPS.union(WRITE_OPS) };
    if !params.fallocate || !geometry.can_punch {
        ops = ops.without(OpSet::of(&[BdevOp::Unmap]));
    }
    let block_size = geometry.block_size;
    let spec = BdevSpec::new(&params.name, block_size, geometry.num_blocks)
        .product("URING bdev")
        .flags(flags)
        .ops(ops)
        .io_flags(IoFlags(IoFlags::FUA.0 | IoFlags::DEALLOCATE.0))
        .limits(|limits| {
            limits.physical_block_size = geometry.physical_block_size;
            limits.required_alignment = geometry.memory_alignment;
            limits.max_segments = MAX_PIECES;
            limits.max_transfer_blocks = MAX_TRANSFER_BYTES / block_size;
            limits.preferred_unmap_granularity = geometry.physical_block_size / block_size;
        });
    match params.uuid.or(geometry.uuid) {
        Some(uuid) => spec.uuid(uuid.into_bytes()),
        None => spec,
    }
}

impl Bdev for UringBdev {
    type Channel = UringChannel;

    fn channel(&self, _: Reactor) -> Result<Rc<UringChannel>, Error> {
        let depth = self.params().queue_depth;
        let ring = Ring::open(&self.backing, depth, &self.zeroes)
            .map_err(|error| Error::from(error).object(self.params().filename.display().to_string()))?;
        UringChannel::open(self.host, ring, &self.backing, &self.abilities)
    }

    /// Closing a file may take long, e.g. if that deletes it, and until then nobody else can lock it.
    fn destruct(self: Arc<Self>, token: OpToken) {
        let name = self.params().name.clone();
        token.offload(
            move || drop(self),
            move |token, _| {
                token.done();
                UringModule::with(|module| module.destroyed(&name));
            },
        );
    }

    fn dump(&self) -> Value {
        let (params, geometry) = (self.params(), self.backing.geometry());
        json!({ "uring": {
            "filename": params.filename,
            "readonly": params.readonly,
            "fallocate": params.fallocate,
            "direct": geometry.is_direct,
            "block_device": geometry.is_block_device,
            "has_lost_writes": self.backing.has_lost_writes(),
        } })
    }

    fn config(&self) -> Option<Value> {
        serde_json::to_value(&*self.params()).ok()
    }
}

const READ_OPS: OpSet = OpSet::of(&[BdevOp::Read, BdevOp::Flush, BdevOp::Reset]);
const WRITE_OPS: OpSet = OpSet::of(&[BdevOp::Write, BdevOp::Unmap, BdevOp::WriteZeroes]);
/// Most pieces the kernel takes at once.
const MAX_PIECES: u32 = 1024;
/// Larger I/Os are split.
const MAX_TRANSFER_BYTES: u32 = 64 << 20;
/// Zeroes written at once where the file system cannot zero a range.
const ZEROES_BYTES: usize = 256 << 10;
