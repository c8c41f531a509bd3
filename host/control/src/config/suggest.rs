//! Finds the word somebody probably meant. Used for configuration keys, method
//! and module names.

/// The candidate nearest to `word`, if one is near enough to be meant.
#[must_use]
pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    candidates
        .into_iter()
        .map(|candidate| (similarity(word, candidate), candidate))
        .filter(|(score, _)| *score >= MIN_SIMILARITY)
        .max_by(|(a, _), (b, _)| a.total_cmp(b))
        .map(|(_, candidate)| candidate)
}

fn similarity(word: &str, candidate: &str) -> f64 {
    let (word, candidate) = (word.to_lowercase().replace('-', "_"), candidate.to_lowercase());
    if candidate.starts_with(&word) || word.starts_with(&candidate) {
        return 0.9;
    }
    strsim::jaro_winkler(&word, &candidate)
}

const MIN_SIMILARITY: f64 = 0.75;

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(word: &str, candidates: &[&str], expected: Option<&str>) {
        assert_eq!(nearest(word, candidates.iter().copied()), expected);
    }

    #[test]
    fn a_slip_of_the_finger_finds_its_key() {
        check("blocksize", &["name", "block_size", "size"], Some("block_size"));
        check(
            "avg_read_latency",
            &["avg_read_latency_us", "p99_read_latency_us"],
            Some("avg_read_latency_us"),
        );
        check("nmae", &["name", "size"], Some("name"));
    }

    #[test]
    fn a_foreign_word_finds_nothing() {
        check("zebra", &["name", "block_size"], None);
    }
}
