//! Sizes, times and counts as people write and read them.

use std::time::Duration;

/// Reads `4096`, `4KiB`, `4K` or `4k`; units are powers of 1024.
pub fn bytes(text: &str) -> Result<u64, String> {
    let (number, unit) = split(text);
    let shift = match unit.to_ascii_lowercase().trim_end_matches('b').trim_end_matches('i') {
        "" if !unit.starts_with(['i', 'I']) => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        _ => return Err(SIZE_HELP.to_owned()),
    };
    let number: u64 = number.parse().map_err(|_| SIZE_HELP.to_owned())?;
    number.checked_mul(1 << shift).ok_or_else(|| "is too large".to_owned())
}

/// Reads `10s`, `500ms`, `2m`, `1h`, or seconds.
pub fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || "must be a time such as 10s, 500ms, 2m or 1h".to_owned();
    let (number, unit) = split(text);
    let ms = match unit {
        "ms" => 1,
        "" | "s" => 1000,
        "m" | "min" => 60_000,
        "h" => 3_600_000,
        _ => return Err(wrong()),
    };
    let number: u64 = number.parse().map_err(|_| wrong())?;
    number.checked_mul(ms).map(Duration::from_millis).ok_or_else(|| "is too long".to_owned())
}

/// Three or four digits and a unit: `8.31 M`.
pub fn count(value: f64) -> String {
    match value {
        v if v >= 1e9 => format!("{:.2} G", v / 1e9),
        v if v >= 1e6 => format!("{:.2} M", v / 1e6),
        v if v >= 1e4 => format!("{:.1} k", v / 1e3),
        v => format!("{v:.0}"),
    }
}

/// Nanoseconds in the largest unit that leaves a number of at least one.
pub fn nanoseconds(value: f64) -> String {
    match value {
        v if v >= 1e9 => format!("{:.2} s", v / 1e9),
        v if v >= 1e6 => format!("{:.2} ms", v / 1e6),
        v if v >= 1e3 => format!("{:.2} us", v / 1e3),
        v => format!("{v:.0} ns"),
    }
}

/// Bytes in the largest unit without a fraction: `4 KiB`.
pub fn size(bytes: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let steps = (bytes.trailing_zeros() / 10).min(4) as usize;
    if bytes == 0 { "0 B".to_owned() } else { format!("{} {}", bytes >> (10 * steps), units[steps]) }
}

fn split(text: &str) -> (&str, &str) {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    (&text[..end], text[end..].trim_start())
}

const SIZE_HELP: &str = "must be a size such as 4096, 4KiB or 1GiB";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_powers_of_1024() {
        for (text, expected) in
            [("512", 512), ("4KiB", 4096), ("4k", 4096), ("1 MiB", 1 << 20), ("2G", 2 << 30)]
        {
            assert_eq!(bytes(text), Ok(expected), "{text}");
        }
        for text in ["", "KiB", "4X", "-1", "4.5K", "99999999T", "4iB"] {
            assert!(bytes(text).is_err(), "{text}");
        }
    }

    #[test]
    fn times_have_a_unit_or_are_seconds() {
        for (text, ms) in
            [("10", 10_000), ("10s", 10_000), ("500ms", 500), ("2m", 120_000), ("1h", 3_600_000)]
        {
            assert_eq!(duration(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        for text in ["", "s", "1d", "-1s"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn numbers_are_short() {
        assert_eq!(
            (count(8_312_345.0), count(12_345.0), count(42.0)),
            ("8.31 M".into(), "12.3 k".into(), "42".into())
        );
        assert_eq!((nanoseconds(950.0), nanoseconds(1234.0)), ("950 ns".to_owned(), "1.23 us".to_owned()));
        assert_eq!((size(4096), size(512), size(6144)), ("4 KiB".into(), "512 B".into(), "6 KiB".into()));
    }
}
