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

/// The specification's words in one, or the number of a status that it does not have.
fn word(code: StatusCode) -> String {
    let Some(name) = code.name_for(CommandKind::AdminOrIo) else { return format!("{:#05x}", code.get()) };
    let words = name.split(|letter: char| !letter.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
    words.collect::<Vec<_>>().join("_").to_ascii_lowercase()
}

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
        let codes = json!({ "invalid_command_opcode": 2, "lba_out_of_range": 1, "0x7c1": 1 });
        assert_eq!(told["status_code"], codes);
        counts.reset();
        assert_eq!(counts.describe()["nvme_error"]["status_type"], json!({}));
    }
}
