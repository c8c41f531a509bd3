//! Parameters of a `null` device: one struct for the `[[bdev]]` table, the RPC
//! and the schema.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tenon_sdk::{BdevFlags, BdevOp, BdevSpec, ByteSize, Error, OpSet};

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
    /// Data of a logical block in bytes: a power of two from 512 to 65536, or that and `md_size` together.
    /// Default: 512.
    #[serde(default = "default_block_size")]
    pub block_size: u32,
    /// Physical block in bytes: a multiple of `block_size`. Default: `block_size`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub physical_block_size: Option<u32>,
    /// Identity. Default: made by the host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uuid: Option<uuid::Uuid>,
    /// Metadata of each block in bytes: 0, 8, 16, 32, 64 or 128. Default: 0, none.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub md_size: u32,
    /// Metadata follows each block's data in the payload instead of having a buffer of its own. Default: true.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub md_interleave: Option<bool>,
    /// Accepted for existing clients; only 0, as there is no protection information.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub dif_type: u32,
    /// Accepted for existing clients; without meaning as `dif_type` is 0.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub dif_is_head_of_md: bool,
    /// Accepted for existing clients; without meaning as `dif_type` is 0.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub dif_pi_format: u32,
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
        let wrong = |reason: String| Err(Error::invalid(reason).object(&self.name));
        let (block_size, data_size) = (self.block_size, self.data_size());
        if !data_size.is_power_of_two() || !(512..=65536).contains(&data_size) {
            return wrong(format!("block_size {block_size} must be a power of two from 512 to 65536"));
        }
        if let Some(physical) = self.physical_block_size
            && (physical == 0 || physical % data_size != 0)
        {
            return wrong(format!(
                "physical_block_size {physical} must be a multiple of block_size {data_size}"
            ));
        }
        if !METADATA_SIZES.contains(&self.md_size) {
            return wrong(format!("md_size {} must be 0, 8, 16, 32, 64 or 128", self.md_size));
        }
        if self.dif_type != 0 {
            return wrong(format!(
                "dif_type {} must be 0: no protection information is made or checked here",
                self.dif_type
            ));
        }
        self.blocks().map(|_| ())
    }

    /// Data of a block. No power of two is another one plus one of the sizes of metadata, so what is meant is clear.
    pub fn data_size(&self) -> u32 {
        if self.block_size.is_power_of_two() {
            return self.block_size;
        }
        self.block_size.saturating_sub(self.md_size)
    }

    /// Capacity in blocks.
    pub fn blocks(&self) -> Result<u64, Error> {
        let block_size = u64::from(self.data_size());
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
            BdevSpec::new(&self.name, self.data_size(), self.blocks()?).product("Null disk").ops(OPS);
        if self.md_size != 0 {
            spec = spec.limits(|limits| limits.md_size = self.md_size);
            if self.md_interleave.unwrap_or(true) {
                spec = spec.flags(BdevFlags::METADATA_INTERLEAVED);
            }
        }
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

/// Those of NVMe that existing clients know.
const METADATA_SIZES: [u32; 6] = [0, 8, 16, 32, 64, 128];

fn default_block_size() -> u32 {
    512
}

fn is_zero(value: &u32) -> bool {
    *value == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(json: &str, expected: Result<u32, &str>) {
        let params: NullParams = serde_json::from_str(json).unwrap();
        let found = params.check().map(|()| params.data_size()).map_err(|error| error.to_string());
        assert_eq!(found, expected.map_err(str::to_owned), "{json}");
    }

    #[test]
    fn a_block_is_its_data_or_its_data_and_metadata() {
        check(r#"{"name":"n","num_blocks":8,"md_size":8}"#, Ok(512));
        check(r#"{"name":"n","num_blocks":8,"block_size":520,"md_size":8}"#, Ok(512));
        check(r#"{"name":"n","num_blocks":8,"block_size":4224,"md_size":128}"#, Ok(4096));
        check(
            r#"{"name":"n","num_blocks":8,"block_size":520}"#,
            Err("n: block_size 520 must be a power of two from 512 to 65536"),
        );
    }

    #[test]
    fn what_cannot_be_metadata_is_refused_with_the_value() {
        check(
            r#"{"name":"n","num_blocks":8,"md_size":7}"#,
            Err("n: md_size 7 must be 0, 8, 16, 32, 64 or 128"),
        );
        check(
            r#"{"name":"n","num_blocks":8,"md_size":8,"dif_type":1}"#,
            Err("n: dif_type 1 must be 0: no protection information is made or checked here"),
        );
    }
}
