//! How often controllers have ended I/Os of a device with which status, for
//! `nvme_error_stat`. Reactors count, the control thread reads.

use std::sync::atomic::{AtomicU32, Ordering};

use nvme_spec::status::{CommandKind, StatusCode};
use serde_json::{Map, Value, json};

/// Counts of one device.
pub(crate) struct ErrorCounts(Box<[AtomicU32]>);

impl ErrorCounts {
    pub(crate) fn new() -> Self {
        ErrorCounts((0..=StatusCode::MASK).map(|_| AtomicU32::new(0)).collect())
    }

    /// A command ended so.
    pub(crate) fn count(&self, code: StatusCode) {
        self.0[usize::from(code.get() & StatusCode::MASK)].fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn reset(&self) {
        self.0.iter().for_each(|count| count.store(0, Ordering::Relaxed));
    }

    /// As existing clients know it: counts by the words of the status code type, and of the status.
    pub(crate) fn describe(&self) -> Value {
        let (mut types, mut codes) = (Map::new(), Map::new());
        for (at, count) in self.0.iter().enumerate() {
            let count = count.load(Ordering::Relaxed);
            if count > 0 {
                let code = StatusCode::from_u16(at as u16);
                add(&mut types, type_word(code.sct().0).to_owned(), count);
                add(&mut codes, word(code), count);
            }
        }
        json!({ "nvme_error": { "status_type": types, "status_code": codes } })
    }
}

fn add(counts: &mut Map<String, Value>, word: String, count: u32) {
    let old = counts.get(&word).and_then(Value::as_u64).unwrap_or(0);
    counts.insert(word, (old + u64::from(count)).into());
}

fn type_word(sct: u8) -> &'static str {
    match sct {
        0 => "generic",
        1 => "command_specific",
        2 => "media_error",
        3 => "path",
        7 => "vendor_specific",
        _ => "reserved",
    }
}

/// The word that existing clients know a status by, or its number if it has none.
fn word(code: StatusCode) -> String {
    if let Some((_, word)) = CLIENT_WORDS.iter().find(|(known, _)| *known == code) {
        return (*word).to_owned();
    }
    let Some(name) = code.name_for(CommandKind::AdminOrIo) else { return format!("{:#05x}", code.get()) };
    let words = name.split(|letter: char| !letter.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
    words.collect::<Vec<_>>().join("_").to_ascii_lowercase()
}

/// Statuses that I/Os end with and that existing clients know by other words than the specification's.
const CLIENT_WORDS: [(StatusCode, &str); 22] = [
    (StatusCode::INVALID_OPCODE, "invalid_opcode"),
    (StatusCode::INVALID_FIELD, "invalid_field"),
    (StatusCode::ABORTED_POWER_LOSS, "aborted_-_power_loss"),
    (StatusCode::INTERNAL_ERROR, "internal_device_error"),
    (StatusCode::ABORTED_BY_REQUEST, "aborted_-_by_request"),
    (StatusCode::ABORTED_SQ_DELETION, "aborted_-_sq_deletion"),
    (StatusCode::ABORTED_FAILED_FUSED, "aborted_-_failed_fused"),
    (StatusCode::ABORTED_MISSING_FUSED, "aborted_-_missing_fused"),
    (StatusCode::ABORTED_PREEMPT_AND_ABORT, "aborted_-_preempt_and_abort"),
    (StatusCode::SGL_OFFSET_INVALID, "invalid_sgl_offset"),
    (StatusCode::NAMESPACE_WRITE_PROTECTED, "command_namespace_is_protected"),
    (StatusCode::TRANSIENT_TRANSPORT_ERROR, "command_transient_transport_error"),
    (StatusCode::INVALID_PROTECTION_INFORMATION, "invalid_protection_info"),
    (StatusCode::WRITE_TO_READ_ONLY_RANGE, "write_to_ro_range"),
    (StatusCode::COMMAND_SIZE_LIMIT_EXCEEDED, "cmd_size_limit_size_exceeded"),
    (StatusCode::WRITE_FAULT, "write_faults"),
    (StatusCode::GUARD_CHECK_ERROR, "guard_check_error"),
    (StatusCode::APPLICATION_TAG_CHECK_ERROR, "application_tag_check_error"),
    (StatusCode::REFERENCE_TAG_CHECK_ERROR, "reference_tag_check_error"),
    (StatusCode::DEALLOCATED_OR_UNWRITTEN_BLOCK, "deallocated_or_unwritten_block"),
    (StatusCode::CONTROLLER_PATHING_ERROR, "controller_path_error"),
    (StatusCode::HOST_PATHING_ERROR, "host_path_error"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_counted_by_type_and_by_status() {
        let counts = ErrorCounts::new();
        for code in [StatusCode::INVALID_OPCODE, StatusCode::INVALID_OPCODE, StatusCode::LBA_OUT_OF_RANGE] {
            counts.count(code);
        }
        counts.count(StatusCode::from_u16(0x7c1));
        let told = counts.describe()["nvme_error"].clone();
        assert_eq!(told["status_type"], json!({ "generic": 3, "vendor_specific": 1 }));
        let codes = json!({ "invalid_opcode": 2, "lba_out_of_range": 1, "0x7c1": 1 });
        assert_eq!(told["status_code"], codes);
        counts.reset();
        assert_eq!(counts.describe()["nvme_error"]["status_type"], json!({}));
    }
}
