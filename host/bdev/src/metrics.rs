//! Metric cells of modules: 64-bit words that a module counts in and the host reads.
//!
//! One registry per process, as a module registers metrics from its own threads
//! before it is part of the host. A cell is never freed, and registering the same
//! metric again gives the same cell. Does not format anything.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::RwLock;
use tenon_abi::MetricKind;

/// A metric and its value now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MetricSample {
    /// Module that counts.
    pub module: String,
    /// `tenon_<module>_<name>`.
    pub name: String,
    /// One sentence.
    pub help: String,
    /// Counter or gauge.
    pub kind: MetricKind,
    /// Labels, sorted by name.
    pub labels: Vec<(String, String)>,
    /// Value.
    pub value: u64,
}

/// Why a metric is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum MetricError {
    #[error("metric name {0:?} is not made of a-z, 0-9 and _")]
    Name(String),
    #[error("metric kind {0} is not known")]
    Kind(u32),
    #[error("metric labels are not a JSON object of strings: {0}")]
    Labels(String),
    #[error("there are {MAX_METRICS} metrics already")]
    TooMany,
    #[error("metric {0} exists as another kind")]
    OtherKind(String),
}

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    name: String,
    labels: Vec<(String, String)>,
    module: String,
}

struct Metric {
    help: String,
    kind: MetricKind,
    cell: &'static AtomicU64,
}

static METRICS: RwLock<BTreeMap<Key, Metric>> = RwLock::new(BTreeMap::new());

/// The cell of a metric, made on first use.
pub(crate) fn register(
    module: &str,
    kind: MetricKind,
    name: &str,
    help: &str,
    labels_json: &str,
) -> Result<&'static AtomicU64, MetricError> {
    let is_name = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    if !(1..=MAX_NAME).contains(&name.len()) || !name.bytes().all(is_name) {
        return Err(MetricError::Name(crate::error::bounded(name)));
    }
    if kind != MetricKind::COUNTER && kind != MetricKind::GAUGE {
        return Err(MetricError::Kind(kind.0));
    }
    let labels = parse_labels(labels_json)?;
    let name = format!("tenon_{}_{name}", module.replace('-', "_"));
    let key = Key { name, labels, module: module.to_owned() };
    let mut metrics = METRICS.write();
    if let Some(metric) = metrics.get(&key) {
        return if metric.kind == kind { Ok(metric.cell) } else { Err(MetricError::OtherKind(key.name)) };
    }
    if metrics.len() >= MAX_METRICS {
        return Err(MetricError::TooMany);
    }
    // Modules keep the address for as long as their image is mapped, which is for ever.
    let cell: &'static AtomicU64 = Box::leak(Box::new(AtomicU64::new(0)));
    metrics.insert(key, Metric { help: crate::error::bounded(help), kind, cell });
    Ok(cell)
}

/// All metrics of modules, sorted by name and labels.
pub fn metrics() -> Vec<MetricSample> {
    let metrics = METRICS.read();
    let samples = metrics.iter().map(|(key, metric)| MetricSample {
        module: key.module.clone(),
        name: key.name.clone(),
        help: metric.help.clone(),
        kind: metric.kind,
        labels: key.labels.clone(),
        value: metric.cell.load(Ordering::Relaxed),
    });
    samples.collect()
}

pub(crate) fn count() -> usize {
    METRICS.read().len()
}

fn parse_labels(json: &str) -> Result<Vec<(String, String)>, MetricError> {
    if json.is_empty() {
        return Ok(Vec::new());
    }
    let labels: BTreeMap<String, String> =
        serde_json::from_str(json).map_err(|error| MetricError::Labels(error.to_string()))?;
    Ok(labels.into_iter().collect())
}

/// Most metrics of all modules.
const MAX_METRICS: usize = 65_536;
/// Longest name of a metric.
const MAX_NAME: usize = 128;

#[cfg(test)]
mod tests {
    use super::{MetricError, metrics, register};
    use std::sync::atomic::Ordering;
    use tenon_abi::MetricKind;

    #[test]
    fn the_same_metric_has_the_same_cell() {
        let one =
            register("metrics-test", MetricKind::COUNTER, "reads_total", "Reads.", "{\"b\":\"1\"}").unwrap();
        let two =
            register("metrics-test", MetricKind::COUNTER, "reads_total", "Reads.", "{\"b\":\"1\"}").unwrap();
        one.fetch_add(1, Ordering::Relaxed);
        two.fetch_add(1, Ordering::Relaxed);
        let sample = metrics().into_iter().find(|sample| sample.module == "metrics-test").unwrap();
        assert_eq!((sample.name.as_str(), sample.value), ("tenon_metrics_test_reads_total", 2));
        let other = register("metrics-test", MetricKind::GAUGE, "reads_total", "Reads.", "{\"b\":\"1\"}");
        assert!(matches!(other, Err(MetricError::OtherKind(_))));
    }

    #[test]
    fn names_and_labels_are_checked() {
        let check = |name, labels| register("metrics-test", MetricKind::GAUGE, name, "", labels);
        assert!(matches!(check("Reads", ""), Err(MetricError::Name(_))));
        assert!(matches!(check("", ""), Err(MetricError::Name(_))));
        assert!(matches!(check("reads", "[1]"), Err(MetricError::Labels(_))));
        assert!(matches!(register("m", MetricKind(9), "reads", "", ""), Err(MetricError::Kind(9))));
    }
}
