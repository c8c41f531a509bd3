//! A complete plugin: a RAM disk. Reads, writes and forgets.
#![forbid(unsafe_code)]

use std::rc::Rc;
use std::sync::Arc;

use tenon_sdk::{
    Bdev, BdevFlags, BdevOp, BdevSpec, ByteSize, Channel, Error, Host, Io, IoStatus, Lender, Module,
    NoConfig, OpSet, OpToken, Reactor, SharedBuf,
};

tenon_sdk::export_plugin! {
    module: RamDisks,
    name: "ramdisk",
    version: env!("CARGO_PKG_VERSION"),
    provides: ["bdev"],
    rpc: [],
}

/// One `[[bdev]]` table with `module = "ramdisk"`.
#[derive(serde::Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Params {
    /// Name of the device.
    name: String,
    /// Capacity, a multiple of `block_size`.
    size: ByteSize,
    /// Logical block in bytes: 512 or 4096.
    #[serde(default = "default_block_size")]
    block_size: u32,
}

fn default_block_size() -> u32 {
    512
}

/// The module: what all RAM disks share, which is nothing.
pub struct RamDisks;

impl Module for RamDisks {
    type Config = NoConfig;
    type Params = Params;

    fn init(_: Host, _: NoConfig) -> Result<Self, Error> {
        Ok(RamDisks)
    }

    fn validate(params: &Params) -> Result<(), Error> {
        if !matches!(params.block_size, 512 | 4096) {
            return Err(Error::invalid(format!("block_size {} is not 512 or 4096", params.block_size)));
        }
        let size = params.size.as_bytes();
        if size == 0 || !size.is_multiple_of(params.block_size.into()) {
            return Err(Error::invalid(format!("size {size} is not a multiple of {}", params.block_size)));
        }
        Ok(())
    }

    fn create(&self, params: Params, token: OpToken) {
        token.run(|op| {
            let memory = Arc::new(op.host().alloc(params.size.as_bytes() as usize, 4096, -1)?.share());
            let block_size = u64::from(params.block_size);
            let spec = BdevSpec::new(&params.name, params.block_size, memory.len() / block_size)
                .product("RAM disk")
                .flags(BdevFlags::UNMAP_READS_ZEROES)
                .ops(OpSet::of(&[
                    BdevOp::Read,
                    BdevOp::Write,
                    BdevOp::Unmap,
                    BdevOp::WriteZeroes,
                    BdevOp::Flush,
                ]))
                .lends();
            op.register(spec, RamDisk { memory, block_size })?;
            Ok(params.name)
        });
    }
}

/// One device.
struct RamDisk {
    memory: Arc<SharedBuf>,
    block_size: u64,
}

impl Bdev for RamDisk {
    type Channel = RamChannel;

    fn channel(&self, _: Reactor) -> Result<Rc<RamChannel>, Error> {
        Ok(Rc::new(RamChannel { lender: Lender::new(Arc::clone(&self.memory)), block_size: self.block_size }))
    }
}

/// One device on one reactor.
struct RamChannel {
    lender: Lender,
    block_size: u64,
}

impl Channel for RamChannel {
    type PerIo = ();

    fn submit(&self, io: Io<Self>) {
        let (at, len) = (io.offset_blocks() * self.block_size, io.num_blocks() * self.block_size);
        let memory = self.lender.memory();
        let status = match io.op() {
            BdevOp::Read => return self.lender.complete_read(io, at, len),
            BdevOp::Write => io.write_to(memory, at),
            BdevOp::Unmap | BdevOp::WriteZeroes if memory.zero(at, len) => IoStatus::SUCCESS,
            BdevOp::Flush => IoStatus::SUCCESS,
            _ => IoStatus::NOT_SUPPORTED,
        };
        io.complete(status);
    }

    fn lender(&self) -> Option<&Lender> {
        Some(&self.lender)
    }
}
