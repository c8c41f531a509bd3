//! Parameters of a `null` device: one struct for the `[[bdev]]` table, the RPC
//! and the schema.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tenon_sdk::{BdevOp, BdevSpec, ByteSize, Error, OpSet};

/// A device that stores nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NullParams {
    /// Unique name.
    pub name: String,
    /// Capacity, e.g. `"1GiB"`; either this or `num_blocks`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<ByteSize>,
    /// Capacity in blocks; either this or `size`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub num_blocks: Option<u64>,
    /// Logical block in bytes: a power of two from 512 to 65536. Default: 512.
    #[serde(default = "default_block_size")]
    pub block_size: u32,
    /// Physical block in bytes: a multiple of `block_size`. Default: `block_size`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub physical_block_size: Option<u32>,
    /// Identity. Default: made by the host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uuid: Option<uuid::Uuid>,
    /// Accepted for existing clients; only 0, as there is no metadata.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub md_size: u32,
    /// Accepted for existing clients; only 0, as there is no protection information.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub dif_type: u32,
    /// Accepted for existing clients; without meaning as `dif_type` is 0.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub dif_is_head_of_md: bool,
}

/// Parameters of `bdev_null_resize`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Resize {
    /// The device.
    pub name: String,
    /// New capacity in MiB.
    pub new_size: u64,
}

impl NullParams {
    /// Refuses what cannot be a device.
    pub fn check(&self) -> Result<(), Error> {
        if !self.block_size.is_power_of_two() || !(512..=65536).contains(&self.block_size) {
            let reason = format!("block_size {} must be a power of two from 512 to 65536", self.block_size);
            return Err(Error::invalid(reason).object(&self.name));
        }
        if let Some(physical) = self.physical_block_size
            && (physical == 0 || physical % self.block_size != 0)
        {
            let reason = format!(
                "physical_block_size {physical} must be a multiple of block_size {}",
                self.block_size
            );
            return Err(Error::invalid(reason).object(&self.name));
        }
        if self.md_size != 0 || self.dif_type != 0 {
            let reason = format!(
                "md_size {} and dif_type {} must be 0: no metadata here",
                self.md_size, self.dif_type
            );
            return Err(Error::invalid(reason).object(&self.name));
        }
        self.blocks().map(|_| ())
    }

    /// Capacity in blocks.
    pub fn blocks(&self) -> Result<u64, Error> {
        let block_size = u64::from(self.block_size);
        let blocks = match (self.size, self.num_blocks) {
            (Some(size), None) if size.0 % block_size == 0 => size.0 / block_size,
            (Some(size), None) => {
                let reason = format!("size {} must be a multiple of block_size {block_size}", size.0);
                return Err(Error::invalid(reason).object(&self.name));
            }
            (None, Some(blocks)) => blocks,
            _ => return Err(Error::invalid("give exactly one of size and num_blocks").object(&self.name)),
        };
        if blocks == 0 || blocks.checked_mul(block_size).is_none() {
            let reason = format!(
                "{blocks} blocks of {block_size} bytes is no capacity: must be 1 block to 2^64 - 1 bytes"
            );
            return Err(Error::invalid(reason).object(&self.name));
        }
        Ok(blocks)
    }

    /// The device to register.
    pub fn spec(&self) -> Result<BdevSpec, Error> {
        let mut spec =
            BdevSpec::new(&self.name, self.block_size, self.blocks()?).product("Null disk").ops(OPS);
        if let Some(physical) = self.physical_block_size {
            spec = spec.limits(|limits| limits.physical_block_size = physical);
        }
        Ok(match self.uuid {
            Some(uuid) => spec.uuid(uuid.into_bytes()),
            None => spec,
        })
    }
}

/// Everything that needs no stored data. COMPARE would have nothing to compare with.
pub const OPS: OpSet = OpSet::of(&[
    BdevOp::Read,
    BdevOp::Write,
    BdevOp::Flush,
    BdevOp::Unmap,
    BdevOp::WriteZeroes,
    BdevOp::Reset,
    BdevOp::Verify,
]);

fn default_block_size() -> u32 {
    512
}

fn is_zero(value: &u32) -> bool {
    *value == 0
}
