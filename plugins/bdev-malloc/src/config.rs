//! Parameters of a `malloc` device: one struct for the `[[bdev]]` table, the
//! RPC and the schema.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tenon_sdk::{BdevFlags, BdevOp, BdevSpec, ByteSize, Error, IoFlags, OpSet};

/// A device in memory.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MallocParams {
    /// Unique name. Default: `Malloc0`, `Malloc1`, …
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Capacity, e.g. `"64MiB"`; either this or `num_blocks`.
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
    /// Blocks; reads and writes are split at multiples of it. Default: 0, no splitting.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub optimal_io_boundary: u32,
    /// Identity. Default: made by the host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uuid: Option<uuid::Uuid>,
    /// NUMA node of the memory. Default: any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub numa_node: Option<i32>,
    /// Metadata of each block in bytes: 0, 8, 16, 32, 64 or 128. Default: 0, none.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub md_size: u32,
    /// Metadata follows each block's data in the payload instead of having a buffer of its own. Default: false.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub md_interleave: bool,
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

/// Where the metadata of a block is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Metadata {
    /// There is none.
    None,
    /// Behind the block's data.
    Interleaved,
    /// In a buffer of its own.
    Separate,
}

impl MallocParams {
    /// Refuses what cannot be a device.
    pub fn check(&self) -> Result<(), Error> {
        let wrong = |reason: String| Err(Error::invalid(reason).object(self.title()));
        if !self.block_size.is_power_of_two() || !(512..=65536).contains(&self.block_size) {
            return wrong(format!("block_size {} must be a power of two from 512 to 65536", self.block_size));
        }
        if let Some(physical) = self.physical_block_size
            && (physical == 0 || physical % self.block_size != 0)
        {
            return wrong(format!(
                "physical_block_size {physical} must be a multiple of block_size {}",
                self.block_size
            ));
        }
        if !METADATA_SIZES.contains(&self.md_size) {
            return wrong(format!("md_size {} must be 0, 8, 16, 32, 64 or 128", self.md_size));
        }
        if self.dif_type != 0 {
            return wrong(format!(
                "dif_type {} must be 0: metadata is stored as it is, not as protection information",
                self.dif_type
            ));
        }
        self.blocks().map(|_| ())
    }

    /// Where the metadata is.
    pub fn metadata(&self) -> Metadata {
        match (self.md_size, self.md_interleave) {
            (0, _) => Metadata::None,
            (_, true) => Metadata::Interleaved,
            (_, false) => Metadata::Separate,
        }
    }

    /// Capacity in blocks.
    pub fn blocks(&self) -> Result<u64, Error> {
        let block_size = u64::from(self.block_size);
        let wrong = |reason: String| Err(Error::invalid(reason).object(self.title()));
        let blocks = match (self.size, self.num_blocks) {
            (Some(size), None) if size.0 % block_size == 0 => size.0 / block_size,
            (Some(size), None) => {
                return wrong(format!("size {} must be a multiple of block_size {block_size}", size.0));
            }
            (None, Some(blocks)) => blocks,
            _ => return wrong("give exactly one of size and num_blocks".to_owned()),
        };
        match blocks.checked_mul(block_size + u64::from(self.md_size)) {
            Some(1..=MAX_BYTES) => Ok(blocks),
            _ => {
                wrong(format!("{blocks} blocks of {block_size} bytes is no capacity: must be 1 byte to 2^47"))
            }
        }
    }

    /// The device to register.
    pub fn spec(&self) -> Result<BdevSpec, Error> {
        let spec = BdevSpec::new(self.title(), self.block_size, self.blocks()?)
            .product("Malloc disk")
            .ops(OPS)
            .io_flags(IoFlags(IoFlags::FUA.0 | IoFlags::DEALLOCATE.0))
            .flags(self.flags())
            .lends()
            .limits(|limits| {
                limits.md_size = self.md_size;
                limits.physical_block_size = self.physical_block_size.unwrap_or(self.block_size);
                limits.optimal_io_boundary = self.optimal_io_boundary;
                limits.max_copy_blocks = MAX_COPY_BYTES / self.block_size;
            });
        Ok(match self.uuid {
            Some(uuid) => spec.uuid(uuid.into_bytes()),
            None => spec,
        })
    }

    fn flags(&self) -> BdevFlags {
        let mut flags = BdevFlags::UNMAP_READS_ZEROES;
        if self.optimal_io_boundary != 0 {
            flags = flags.union(BdevFlags::SPLIT_ON_BOUNDARY);
        }
        match self.metadata() {
            Metadata::Interleaved => flags.union(BdevFlags::METADATA_INTERLEAVED),
            Metadata::None | Metadata::Separate => flags,
        }
    }

    fn title(&self) -> &str {
        self.name.as_deref().unwrap_or("malloc")
    }
}

const OPS: OpSet = OpSet::of(&[
    BdevOp::Read,
    BdevOp::Write,
    BdevOp::Flush,
    BdevOp::Unmap,
    BdevOp::WriteZeroes,
    BdevOp::Reset,
    BdevOp::Compare,
    BdevOp::Copy,
    BdevOp::Verify,
]);

/// Those of NVMe that existing clients know.
const METADATA_SIZES: [u32; 6] = [0, 8, 16, 32, 64, 128];

/// What a 48-bit address space leaves to one process.
const MAX_BYTES: u64 = 1 << 47;

/// Copied in one go.
const MAX_COPY_BYTES: u32 = 1 << 20;

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
    fn check(json: &str, expected: Result<u64, &str>) {
        let params: MallocParams = serde_json::from_str(json).unwrap();
        let found = params.check().and_then(|()| params.blocks()).map_err(|error| error.to_string());
        assert_eq!(found, expected.map_err(str::to_owned), "{json}");
    }

    #[test]
    fn capacity_is_a_size_or_a_number_of_blocks_and_never_both() {
        check(r#"{"name":"m","size":"1MiB"}"#, Ok(2048));
        check(r#"{"name":"m","num_blocks":8,"block_size":4096}"#, Ok(8));
        check(r#"{"name":"m"}"#, Err("m: give exactly one of size and num_blocks"));
        check(r#"{"name":"m","size":512,"num_blocks":1}"#, Err("m: give exactly one of size and num_blocks"));
    }

    #[test]
    fn what_cannot_be_a_device_is_refused_with_the_value() {
        check(r#"{"name":"m","size":1000}"#, Err("m: size 1000 must be a multiple of block_size 512"));
        check(
            r#"{"name":"m","size":"1MiB","block_size":1000}"#,
            Err("m: block_size 1000 must be a power of two from 512 to 65536"),
        );
        check(
            r#"{"name":"m","num_blocks":0}"#,
            Err("m: 0 blocks of 512 bytes is no capacity: must be 1 byte to 2^47"),
        );
        check(
            r#"{"name":"m","num_blocks":1,"md_size":12}"#,
            Err("m: md_size 12 must be 0, 8, 16, 32, 64 or 128"),
        );
        check(
            r#"{"name":"m","num_blocks":1,"md_size":8,"dif_type":1}"#,
            Err("m: dif_type 1 must be 0: metadata is stored as it is, not as protection information"),
        );
    }

    #[test]
    fn metadata_is_separate_unless_interleaved_and_stays_in_the_saved_parameters() {
        let expected = [
            (r#"{"name":"m","num_blocks":8}"#, Metadata::None, false),
            (r#"{"name":"m","num_blocks":8,"md_interleave":true}"#, Metadata::None, false),
            (r#"{"name":"m","num_blocks":8,"md_size":8}"#, Metadata::Separate, true),
            (
                r#"{"name":"m","num_blocks":8,"md_size":128,"md_interleave":true}"#,
                Metadata::Interleaved,
                true,
            ),
        ];
        for (json, metadata, is_saved) in expected {
            let params: MallocParams = serde_json::from_str(json).unwrap();
            params.check().unwrap();
            assert_eq!(params.metadata(), metadata, "{json}");
            let saved = serde_json::to_value(&params).unwrap();
            assert_eq!(saved.get("md_size").is_some(), is_saved, "{json}");
        }
    }
}
