//! The description of a device that is to be registered.

use tenon_abi::{BdevFlags, IoFlags, Limits};

use crate::BdevInfo;
use crate::op::OpSet;

/// Describes a device: what it is, how large, and which operations this build of the module handles. The host
/// never sends an operation or flag that is not declared.
#[derive(Clone, Debug)]
#[must_use]
pub struct BdevSpec {
    pub(crate) name: String,
    pub(crate) product: String,
    pub(crate) aliases: Vec<String>,
    pub(crate) flags: BdevFlags,
    pub(crate) limits: Limits,
    pub(crate) ops: OpSet,
    pub(crate) io_flags: IoFlags,
    pub(crate) uuid: [u8; 16],
    pub(crate) nguid: [u8; 16],
    pub(crate) eui64: [u8; 8],
    pub(crate) numa_node: i32,
}

impl BdevSpec {
    /// A device of `num_blocks` blocks of `block_size` bytes with no operations yet. `name` is unique: 1–255 bytes,
    /// no control characters, no `/`.
    pub fn new(name: impl Into<String>, block_size: u32, num_blocks: u64) -> Self {
        BdevSpec {
            name: name.into(),
            product: String::new(),
            aliases: Vec::new(),
            flags: BdevFlags(0),
            limits: Limits::new(block_size, num_blocks),
            ops: OpSet::NONE,
            io_flags: IoFlags::NONE,
            uuid: [0; 16],
            nguid: [0; 16],
            eui64: [0; 8],
            numa_node: -1,
        }
    }

    /// A device that forwards to `base`: its geometry, limits, properties, NUMA node and those of its operations
    /// and flags that this version of the SDK can forward. It has no identity of its own yet.
    pub fn over(name: impl Into<String>, base: &BdevInfo) -> Self {
        BdevSpec {
            flags: base.flags,
            limits: base.limits,
            ops: base.ops,
            io_flags: IoFlags(base.io_flags.0 & FORWARDED.0),
            numa_node: base.numa_node,
            ..BdevSpec::new(name, base.limits.block_size, base.limits.num_blocks)
        }
    }

    /// What kind of device, e.g. `Malloc disk`.
    pub fn product(mut self, product: impl Into<String>) -> Self {
        self.product = product.into();
        self
    }

    /// Sets the operations this build of the module handles.
    pub fn ops(mut self, ops: OpSet) -> Self {
        self.ops = ops;
        self
    }

    /// Sets the I/O flags this build of the module understands.
    pub fn io_flags(mut self, flags: IoFlags) -> Self {
        self.io_flags = flags;
        self
    }

    /// READs may be answered with memory of the module, see [`crate::Lender`].
    pub fn lends(mut self) -> Self {
        self.io_flags.0 |= IoFlags::LEND.0;
        self
    }

    /// Sets the properties.
    pub fn flags(mut self, flags: BdevFlags) -> Self {
        self.flags = flags;
        self
    }

    /// Changes the limits.
    pub fn limits(mut self, change: impl FnOnce(&mut Limits)) -> Self {
        change(&mut self.limits);
        self
    }

    /// Sets the identity. Without one the host makes one, which differs at each start.
    pub fn uuid(mut self, uuid: [u8; 16]) -> Self {
        self.uuid = uuid;
        self
    }

    /// Sets the NVMe Namespace Globally Unique Identifier.
    pub fn nguid(mut self, nguid: [u8; 16]) -> Self {
        self.nguid = nguid;
        self
    }

    /// Sets the IEEE EUI-64.
    pub fn eui64(mut self, eui64: [u8; 8]) -> Self {
        self.eui64 = eui64;
        self
    }

    /// Adds a further unique name.
    pub fn alias(mut self, alias: impl Into<String>) -> Self {
        self.aliases.push(alias.into());
        self
    }

    /// Sets the NUMA node, -1 for none.
    pub fn numa_node(mut self, node: i32) -> Self {
        self.numa_node = node;
        self
    }
}

/// Flags that [`crate::Io::forward`] carries to a child with their meaning.
const FORWARDED: IoFlags =
    IoFlags(IoFlags::FUA.0 | IoFlags::LEND.0 | IoFlags::DEALLOCATE.0 | IoFlags::NO_RETRY.0);
