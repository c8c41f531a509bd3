//! The conformance suite of block-device modules: named checks, each on a
//! fresh fake host per seed, each skipped only because of what the device
//! declares or the suite was told. [`Conformance`] says what to create;
//! [`bdev_conformance`] runs everything and panics with what failed.
//!
//! The checks: `io` (data path), `pressure` (reset, abort, bases that
//! misbehave), `lifecycle` (removal, churn, reactors), `creation` (create
//! failures, saved parameters, schema). `bench` is what they stand on.

mod bench;
mod creation;
mod io;
mod lifecycle;
mod model;
mod pressure;
mod report;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;

use crate::base::BaseSpec;
use crate::host::{FakeHost, IntoPlugin, OpError, Plugin};
use bench::Bench;
pub use report::{CheckResult, Outcome, Report};

/// What a check found; the error is the failure's text.
type Verdict = Result<Pass, String>;

/// A check that did not fail.
enum Pass {
    Ok,
    /// Why it does not apply.
    Skip(String),
}

/// Changes the size of a device: host, name, new number of blocks.
type Resize = Rc<dyn Fn(&FakeHost, &str, u64) -> Result<(), OpError>>;

/// What to create for the checks, and what to expect of it.
#[derive(Clone)]
pub struct Conformance {
    create_json: String,
    module_config: String,
    bases: Vec<BaseSpec>,
    stores_data: bool,
    waits_for_bases: bool,
    survives_base_removal: bool,
    survives_base_errors: bool,
    resize: Option<Resize>,
    real_io: bool,
    seeds: u64,
    only: Vec<String>,
}

impl Conformance {
    /// A suite for the device that `create_json` describes; the parameters of one create, with a `name`.
    #[must_use]
    pub fn new(create_json: &str) -> Conformance {
        Conformance {
            create_json: create_json.to_owned(),
            module_config: "{}".to_owned(),
            bases: Vec::new(),
            stores_data: true,
            waits_for_bases: false,
            survives_base_removal: false,
            survives_base_errors: false,
            resize: None,
            real_io: false,
            seeds: DEFAULT_SEEDS,
            only: Vec::new(),
        }
    }

    /// The module's table of the configuration; default `{}`.
    #[must_use]
    pub fn module_config(mut self, json: &str) -> Self {
        self.module_config = json.to_owned();
        self
    }

    /// Devices that exist before the create.
    #[must_use]
    pub fn bases(mut self, bases: &[BaseSpec]) -> Self {
        self.bases = bases.to_vec();
        self
    }

    /// Whether reads give what was written; default true. A null device says false.
    #[must_use]
    pub fn stores_data(mut self, stores_data: bool) -> Self {
        self.stores_data = stores_data;
        self
    }

    /// Whether a create succeeds while a base is missing and waits for it; default false.
    #[must_use]
    pub fn waits_for_bases(mut self, waits: bool) -> Self {
        self.waits_for_bases = waits;
        self
    }

    /// Whether the device stays when one of its bases goes; default false.
    #[must_use]
    pub fn survives_base_removal(mut self, survives: bool) -> Self {
        self.survives_base_removal = survives;
        self
    }

    /// Whether an I/O succeeds although the first base fails it, by redundancy or retry; default false.
    #[must_use]
    pub fn survives_base_errors(mut self, survives: bool) -> Self {
        self.survives_base_errors = survives;
        self
    }

    /// How a device of this module is resized. Default: by resizing its base, if it has exactly one.
    #[must_use]
    pub fn resize_with(
        mut self,
        resize: impl Fn(&FakeHost, &str, u64) -> Result<(), OpError> + 'static,
    ) -> Self {
        self.resize = Some(Rc::new(resize));
        self
    }

    /// For plugins that do real I/O; see [`crate::Builder::real_io`].
    #[must_use]
    pub fn real_io(mut self, real_io: bool) -> Self {
        self.real_io = real_io;
        self
    }

    /// How many seeds each check runs with; default 3. The environment overrides it.
    #[must_use]
    pub fn seeds(mut self, seeds: u64) -> Self {
        self.seeds = seeds;
        self
    }

    /// Runs only these checks.
    #[must_use]
    pub fn only(mut self, checks: &[&str]) -> Self {
        self.only = checks.iter().map(|check| (*check).to_owned()).collect();
        self
    }

    /// Runs the checks; what they found, without panicking.
    ///
    /// # Panics
    /// If [`Conformance::only`] names a check that does not exist.
    #[must_use]
    pub fn check(&self, plugin: impl IntoPlugin) -> Report {
        let plugin = plugin.into_plugin();
        let checks: Vec<Check> = all_checks();
        for wanted in &self.only {
            assert!(checks.iter().any(|check| check.name == wanted), "there is no check `{wanted}`");
        }
        let mut report = Report::default();
        for check in
            checks.iter().filter(|check| self.only.is_empty() || self.only.iter().any(|n| n == check.name))
        {
            for seed in self.seed_list() {
                let outcome = self.run_one(&plugin, check, seed);
                let is_skipped = matches!(outcome, Outcome::Skipped(_));
                report.push(CheckResult { name: check.name, seed, outcome });
                if is_skipped {
                    break;
                }
            }
        }
        report
    }

    fn seed_list(&self) -> Vec<u64> {
        let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
        match (number("TENON_TESTKIT_SEED"), number("TENON_TESTKIT_SEEDS")) {
            (Some(seed), _) => vec![seed],
            (None, Some(count)) => (1..=count).collect(),
            (None, None) => (1..=self.seeds).collect(),
        }
    }

    fn run_one(&self, plugin: &Plugin, check: &Check, seed: u64) -> Outcome {
        let host = FakeHost::builder().seed(seed).real_io(self.real_io).build();
        let found = catch_unwind(AssertUnwindSafe(|| {
            let mut bench = Bench::new(self, plugin, &host)?;
            if check.with_device {
                bench.create()?;
            }
            (check.run)(&bench)
        }));
        let verdict = found.unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
            Err(format!("panicked: {}", text.unwrap_or_default()))
        });
        let violations = host.finish();
        let mut wrong: Vec<String> = verdict.as_ref().err().cloned().into_iter().collect();
        wrong.extend(violations.iter().map(ToString::to_string));
        match verdict {
            _ if !wrong.is_empty() => Outcome::Failed {
                text: wrong.join("\n      "),
                faults: violations.iter().map(|v| v.fault).collect(),
            },
            Ok(Pass::Skip(reason)) => Outcome::Skipped(reason),
            Ok(Pass::Ok) | Err(_) => Outcome::Passed,
        }
    }
}

/// Runs the suite against `plugin` and prints a line per check.
///
/// # Panics
/// If a check failed, with all failures and their seeds.
pub fn bdev_conformance(plugin: impl IntoPlugin, suite: Conformance) -> Report {
    let report = suite.check(plugin);
    println!("{report}");
    let failed = report.failed();
    assert!(failed.is_empty(), "{} checks failed:\n{}", failed.len(), failed.join("\n"));
    report
}

/// One check of the suite.
struct Check {
    name: &'static str,
    /// Whether the device is created first.
    with_device: bool,
    run: fn(&Bench) -> Verdict,
}

const fn on_device(name: &'static str, run: fn(&Bench) -> Verdict) -> Check {
    Check { name, with_device: true, run }
}

const fn on_module(name: &'static str, run: fn(&Bench) -> Verdict) -> Check {
    Check { name, with_device: false, run }
}

fn all_checks() -> Vec<Check> {
    vec![
        on_device("identity", creation::identity),
        on_device("bounds", io::bounds),
        on_device("declared_operations", io::declared_operations),
        on_device("declared_flags", io::declared_flags),
        on_device("read_back", io::read_back),
        on_device("model", io::model),
        on_device("scatter_lists", io::scatter_lists),
        on_device("flush", io::flush),
        on_device("write_zeroes", io::write_zeroes),
        on_device("unmap", io::unmap),
        on_device("compare", io::compare),
        on_device("batches", io::batches),
        on_device("lent_reads", io::lent_reads),
        on_device("several_reactors", lifecycle::several_reactors),
        on_device("channel_churn", lifecycle::channel_churn),
        on_device("resize", pressure::resize),
        on_device("reset_under_io", pressure::reset_under_io),
        on_device("abort", pressure::abort),
        on_device("base_out_of_memory", pressure::base_out_of_memory),
        on_device("base_slow_and_reordered", pressure::base_slow_and_reordered),
        on_device("base_errors", pressure::base_errors),
        on_device("base_absent", pressure::base_absent),
        on_module("base_with_few_operations", pressure::base_with_few_operations),
        on_device("removal_under_load", lifecycle::removal_under_load),
        on_device("base_removal", lifecycle::base_removal),
        on_module("removal_during_examine", lifecycle::removal_during_examine),
        on_device("stacked", lifecycle::stacked),
        on_device("delete", lifecycle::delete),
        on_device("unregister_with_consumer", lifecycle::unregister_with_consumer),
        on_module("create_delete_churn", lifecycle::create_delete_churn),
        on_module("malformed_parameters", creation::malformed_parameters),
        on_device("duplicate_name", creation::duplicate_name),
        on_module("name_taken", creation::name_taken),
        on_module("missing_base", creation::missing_base),
        on_module("claimed_base", creation::claimed_base),
        on_device("config_round_trip", creation::config_round_trip),
        on_device("dump_json", creation::dump_json),
        on_module("schema", creation::schema),
        on_module("validate", creation::validate),
    ]
}

const DEFAULT_SEEDS: u64 = 3;
