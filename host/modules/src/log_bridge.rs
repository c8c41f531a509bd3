//! Log lines of plugins on their way into the host's logger.
//!
//! Every plugin has its own copy of the `log` crate's statics, so a line crosses
//! the door as a [`LogRecord`] of borrowed texts. The bridge filters by level
//! and hands it to the host's logger with the plugin's target, file and line.
// UNSAFETY: follows the pointers of a record that a plugin filled.

use std::borrow::Cow;
use std::mem::{offset_of, size_of};

use log::{Level, LevelFilter, Record};
use tenon_abi::{LogRecord, Str, reaches};

/// Bytes of a message that are kept.
const MAX_MESSAGE_BYTES: usize = 16 << 10;
/// Bytes of a target or file name that are kept.
const MAX_NAME_BYTES: usize = 256;

/// The body of `HostApiV1::log`. Any thread; never panics because of the record's content.
///
/// # Safety
/// `record` is null or points to a record as long as its `size` says, whose texts are readable for the call.
pub unsafe fn log(record: *const LogRecord) {
    if record.is_null() {
        return;
    }
    // SAFETY: every version of the record starts with its size.
    let size = unsafe { (&raw const (*record).size).read() };
    if !reaches(size, offset_of!(LogRecord, message) + size_of::<Str>()) {
        return;
    }
    // SAFETY: `size` reaches every field of version 1.0; all are plain words.
    let LogRecord { level, line, target, file, message, .. } = unsafe { record.read() };
    let Some(level) = level_of(level) else { return };
    if level > log::max_level() {
        return;
    }
    // SAFETY: the caller vouches for the texts.
    let (target, file, message) = unsafe {
        (text(target, MAX_NAME_BYTES), text(file, MAX_NAME_BYTES), text(message, MAX_MESSAGE_BYTES))
    };
    let logger = log::logger();
    if !logger.enabled(&log::Metadata::builder().level(level).target(&target).build()) {
        return;
    }
    logger.log(
        &Record::builder()
            .level(level)
            .target(&target)
            .module_path(Some(&target))
            .file((!file.is_empty()).then_some(&*file))
            .line((line != 0).then_some(line))
            .args(format_args!("{message}"))
            .build(),
    );
}

/// The number by which a plugin knows a level: 0 off to 5 trace.
#[must_use]
pub fn level_number(level: LevelFilter) -> u32 {
    match level {
        LevelFilter::Off => 0,
        LevelFilter::Error => 1,
        LevelFilter::Warn => 2,
        LevelFilter::Info => 3,
        LevelFilter::Debug => 4,
        LevelFilter::Trace => 5,
    }
}

/// 0 is "off" and logs nothing; a level behind the last one is the last one.
fn level_of(number: u32) -> Option<Level> {
    match number {
        0 => None,
        1 => Some(Level::Error),
        2 => Some(Level::Warn),
        3 => Some(Level::Info),
        4 => Some(Level::Debug),
        5.. => Some(Level::Trace),
    }
}

/// # Safety
/// As for [`Str::as_str`].
unsafe fn text<'a>(text: Str, max: usize) -> Cow<'a, str> {
    if text.ptr.is_null() || text.len == 0 {
        return Cow::Borrowed("");
    }
    // SAFETY: the caller vouches for `len` readable bytes; fewer are read.
    String::from_utf8_lossy(unsafe { std::slice::from_raw_parts(text.ptr, text.len.min(max)) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_map_both_ways() {
        for level in
            [LevelFilter::Error, LevelFilter::Warn, LevelFilter::Info, LevelFilter::Debug, LevelFilter::Trace]
        {
            assert_eq!(level_of(level_number(level)).map(|level| level.to_level_filter()), Some(level));
        }
        assert_eq!(level_of(level_number(LevelFilter::Off)), None);
        assert_eq!(level_of(u32::MAX), Some(Level::Trace));
    }

    #[test]
    fn odd_texts_are_survived() {
        // SAFETY: the texts are static or declared empty.
        unsafe {
            assert_eq!(text(Str::EMPTY, 8), "");
            assert_eq!(text(Str { ptr: b"x".as_ptr(), len: 0 }, 8), "");
            assert_eq!(text(Str { ptr: b"a\xffb".as_ptr(), len: 3 }, 8), "a\u{fffd}b");
            assert_eq!(text(Str::new("abcdef"), 3), "abc");
            log(std::ptr::null());
        }
        let short = LogRecord {
            size: 8,
            level: 1,
            line: 0,
            reserved: 0,
            target: Str::EMPTY,
            file: Str::EMPTY,
            message: Str { ptr: std::ptr::dangling(), len: 1 << 40 },
        };
        // SAFETY: the record says it ends before its texts.
        unsafe { log(&short) };
    }
}
