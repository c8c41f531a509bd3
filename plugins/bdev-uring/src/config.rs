//! Parameters of a `uring` device: one struct for the `[[bdev]]` table, the RPCs
//! (`bdev_uring_create` and `bdev_aio_create`) and the schema.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tenon_sdk::{ByteSize, Error, Seconds};

/// A device in a file or on a block device of the kernel.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct UringParams {
    /// Unique name.
    pub name: String,
    /// Path of a regular file or block device.
    pub filename: PathBuf,
    /// Logical block in bytes: a power of two from 512 to 65536. Default: that of the block device, or what direct
    /// I/O on the file needs, usually 512.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub block_size: Option<u32>,
    /// Identity. Default: for a file derived from its inode, else made by the host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uuid: Option<uuid::Uuid>,
    /// Refuse writes, and open the file for reading only. Default: false.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub readonly: bool,
    /// Deallocate and zero by `fallocate`; false: unmap is not offered and zeroes are written. Default: true.
    #[serde(default = "yes", skip_serializing_if = "is_yes")]
    pub fallocate: bool,
    /// Bypass the page cache, if the file system can. Default: true.
    #[serde(default = "yes", skip_serializing_if = "is_yes")]
    pub direct: bool,
    /// Make a sparse file of this size if there is none. Default: a missing file is an error.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub create_size: Option<ByteSize>,
    /// Succeed without a file, and make the device whenever the file appears. Default: false.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub wait_for_file: bool,
    /// How long I/O waits for a file that vanished before the device is removed. Default: 10 s.
    #[serde(default = "ten_seconds")]
    pub absent_timeout_sec: Seconds,
    /// I/Os per reactor that the kernel has at once; more wait. Default: 256.
    #[serde(default = "default_queue_depth", skip_serializing_if = "is_default_queue_depth")]
    pub queue_depth: u32,
}

impl UringParams {
    /// Refuses what cannot be a device.
    pub fn check(&self) -> Result<(), Error> {
        let wrong = |reason: String| Err(Error::invalid(reason).object(&self.name));
        if self.filename.as_os_str().is_empty() {
            return wrong("filename is empty".to_owned());
        }
        if let Some(block_size) = self.block_size
            && !is_block_size(block_size)
        {
            return wrong(format!("block_size {block_size} must be a power of two from 512 to 65536"));
        }
        if let Some(ByteSize(size)) = self.create_size
            && (size == 0 || size > MAX_FILE_BYTES)
        {
            return wrong(format!("create_size {size} must be from 1 to {MAX_FILE_BYTES} bytes"));
        }
        if self.wait_for_file && self.create_size.is_some() {
            return wrong(
                "a file that is created need not be waited for: create_size or wait_for_file".to_owned(),
            );
        }
        if self.create_size.is_some() && self.readonly {
            return wrong("a file that is created must not be readonly".to_owned());
        }
        if !(1..=MAX_QUEUE_DEPTH).contains(&self.queue_depth) {
            return wrong(format!("queue_depth {} must be from 1 to {MAX_QUEUE_DEPTH}", self.queue_depth));
        }
        if self.absent_timeout_sec.as_ns() > MAX_ABSENT_NS {
            let seconds = self.absent_timeout_sec.as_ns() / 1_000_000_000;
            return wrong(format!(
                "absent_timeout_sec {seconds} must be at most {}",
                MAX_ABSENT_NS / 1_000_000_000
            ));
        }
        Ok(())
    }

    /// True if a device with these parameters can take `other` while it is in use.
    pub fn differs_in_place(&self, other: &UringParams) -> bool {
        let UringParams { absent_timeout_sec, wait_for_file, .. } = other.clone();
        UringParams { absent_timeout_sec, wait_for_file, ..self.clone() } == *other
    }
}

/// True for a block size a device may have.
pub fn is_block_size(bytes: u32) -> bool {
    bytes.is_power_of_two() && (512..=65536).contains(&bytes)
}

/// What an offset in a file can say.
const MAX_FILE_BYTES: u64 = i64::MAX as u64;
/// The kernel's largest ring has room for so many, and for as many cancellations.
const MAX_QUEUE_DEPTH: u32 = 4096;
/// A day.
const MAX_ABSENT_NS: u64 = 86_400_000_000_000;
const DEFAULT_QUEUE_DEPTH: u32 = 256;

fn yes() -> bool {
    true
}

fn is_yes(value: &bool) -> bool {
    *value
}

fn ten_seconds() -> Seconds {
    Seconds::new(10)
}

fn default_queue_depth() -> u32 {
    DEFAULT_QUEUE_DEPTH
}

fn is_default_queue_depth(value: &u32) -> bool {
    *value == DEFAULT_QUEUE_DEPTH
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(fields: &str, expected: Result<(), &str>) {
        let json = format!(r#"{{"name":"u","filename":"/f"{fields}}}"#);
        let params: UringParams = serde_json::from_str(&json).unwrap();
        assert_eq!(
            params.check().map_err(|error| error.to_string()),
            expected.map_err(str::to_owned),
            "{json}"
        );
        let again: UringParams = serde_json::from_value(serde_json::to_value(&params).unwrap()).unwrap();
        assert_eq!(again, params);
    }

    #[test]
    fn parameters_of_existing_clients_are_taken() {
        check(r#","block_size":4096,"readonly":true,"fallocate":false"#, Ok(()));
        check(r#","uuid":"f9c9f0a7-8a1e-4d53-9c3f-5c1f6f0b7d10""#, Ok(()));
    }

    #[test]
    fn what_cannot_be_a_device_is_refused_with_the_value() {
        check(r#","block_size":1000"#, Err("u: block_size 1000 must be a power of two from 512 to 65536"));
        check(r#","queue_depth":0"#, Err("u: queue_depth 0 must be from 1 to 4096"));
        check(r#","create_size":"0""#, Err("u: create_size 0 must be from 1 to 9223372036854775807 bytes"));
        check(
            r#","create_size":"1MiB","wait_for_file":true"#,
            Err("u: a file that is created need not be waited for: create_size or wait_for_file"),
        );
        check(r#","absent_timeout_sec":"25h""#, Err("u: absent_timeout_sec 90000 must be at most 86400"));
    }

    #[test]
    fn only_what_concerns_the_watch_changes_in_place() {
        let params = |fields: &str| {
            let json = format!(r#"{{"name":"u","filename":"/f"{fields}}}"#);
            serde_json::from_str::<UringParams>(&json).unwrap()
        };
        let old = params("");
        assert!(old.differs_in_place(&params(r#","absent_timeout_sec":3,"wait_for_file":true"#)));
        assert!(!old.differs_in_place(&params(r#","readonly":true"#)));
    }
}
