//! Which path the next I/O takes, and how paths are reported. Pure; the one
//! place that decides, for the data path and for operators alike.

use nvme_spec::log::AnaState;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What is known of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PathFacts {
    /// Its queue takes commands.
    pub(crate) is_connected: bool,
    /// The controller has the namespace.
    pub(crate) is_present: bool,
    /// Its ANA state is being asked for.
    pub(crate) is_updating: bool,
    pub(crate) ana: AnaState,
    pub(crate) is_preferred: bool,
    /// Commands on its queue.
    pub(crate) in_flight: u32,
    /// What a command takes, as measured now and then; 0: not known.
    pub(crate) latency_ns: u32,
}

/// How paths share the work.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Policy {
    /// One path is used, the others wait.
    #[default]
    ActivePassive,
    /// All paths of the best ANA state are used.
    ActiveActive,
}

/// Which of the paths of `active_active` is next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Selector {
    /// In turn, so many I/Os each.
    #[default]
    RoundRobin,
    /// The one with the fewest commands in flight.
    QueueDepth,
    /// The one where the next I/O is likely to be over first: by latency and commands in flight.
    Latency,
}

/// Policy and its parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rules {
    pub(crate) policy: Policy,
    pub(crate) selector: Selector,
    /// I/Os in turn of `RoundRobin`, at least 1.
    pub(crate) rr_min_io: u32,
    /// `active_passive` goes back to a better or an earlier path when it returns.
    pub(crate) fails_back: bool,
}

impl Default for Rules {
    fn default() -> Self {
        Rules { policy: Policy::default(), selector: Selector::default(), rr_min_io: 1, fails_back: true }
    }
}

/// Where the last I/O went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Cursor {
    pub(crate) last: usize,
    /// I/Os in a row that went there.
    pub(crate) run: u32,
}

impl PathFacts {
    /// Whether the namespace can be reached by it now.
    #[inline]
    pub(crate) fn is_accessible(&self) -> bool {
        self.is_connected && self.is_present && !self.is_updating && self.ana.is_accessible()
    }

    /// Why the namespace cannot be reached by it now.
    pub(crate) fn obstacle(&self) -> Option<String> {
        if !self.is_connected {
            return Some("the controller is not connected".to_owned());
        }
        if !self.is_present {
            return Some("the controller does not have the namespace".to_owned());
        }
        if self.is_updating {
            return Some("its ANA state is being asked for".to_owned());
        }
        (!self.ana.is_accessible()).then(|| format!("its ANA state is {}", self.ana.word()))
    }

    /// What an I/O that joins those in flight may take; one that was never measured is tried.
    #[inline]
    fn expected_ns(&self) -> u64 {
        u64::from(self.latency_ns.max(1)) * (u64::from(self.in_flight) + 1)
    }

    /// 0 for an optimized path, 1 for another that is accessible.
    #[inline]
    fn class(&self) -> u8 {
        u8::from(self.ana != AnaState::OPTIMIZED)
    }
}

/// The path for the next I/O; `None` if none is accessible.
#[inline]
pub(crate) fn select(paths: &[PathFacts], rules: &Rules, cursor: Cursor) -> Option<usize> {
    let best = best_class(paths)?;
    let is_candidate = |path: &PathFacts| path.is_accessible() && path.class() == best;
    match (rules.policy, rules.selector) {
        (Policy::ActivePassive, _) => {
            let is_in_use = cursor.run > 0 && paths.get(cursor.last).is_some_and(PathFacts::is_accessible);
            if !rules.fails_back && is_in_use {
                return Some(cursor.last);
            }
            let preferred = paths.iter().position(|path| path.is_preferred && is_candidate(path));
            // Of equal ones the first: which of them was connected first, or used last, is chance.
            preferred.or_else(|| paths.iter().position(is_candidate))
        }
        (Policy::ActiveActive, Selector::RoundRobin) => {
            let has_turn = cursor.run < rules.rr_min_io.max(1);
            if has_turn && paths.get(cursor.last).is_some_and(is_candidate) {
                return Some(cursor.last);
            }
            (1..=paths.len())
                .map(|step| (cursor.last + step) % paths.len())
                .find(|at| is_candidate(&paths[*at]))
        }
        // Which one it is cannot be foretold: the least of numbers takes no branch, the first of the least ones does.
        (Policy::ActiveActive, Selector::QueueDepth) => {
            let rank = |(at, path): (usize, &PathFacts)| {
                if is_candidate(path) { u64::from(path.in_flight) << 32 | at as u64 } else { u64::MAX }
            };
            let least = paths.iter().enumerate().map(rank).min()?;
            Some(least as u32 as usize)
        }
        (Policy::ActiveActive, Selector::Latency) => {
            let rank = |(at, path): (usize, &PathFacts)| {
                let load = u128::from(path.expected_ns()) << 64 | u128::from(path.in_flight) << 32;
                if is_candidate(path) { load | at as u128 } else { u128::MAX }
            };
            let least = paths.iter().enumerate().map(rank).min()?;
            Some(least as u32 as usize)
        }
    }
}

/// Whether the next I/Os may take a path: what operators are told as `current`.
pub(crate) fn is_current(paths: &[PathFacts], rules: &Rules, cursor: Cursor, at: usize) -> bool {
    let Some(path) = paths.get(at).filter(|path| path.is_accessible()) else { return false };
    match rules.policy {
        Policy::ActivePassive => select(paths, rules, cursor) == Some(at),
        Policy::ActiveActive => best_class(paths) == Some(path.class()),
    }
}

#[inline]
fn best_class(paths: &[PathFacts]) -> Option<u8> {
    paths.iter().filter(|path| path.is_accessible()).map(PathFacts::class).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATES: [AnaState; 5] = [
        AnaState::OPTIMIZED,
        AnaState::NON_OPTIMIZED,
        AnaState::INACCESSIBLE,
        AnaState::PERSISTENT_LOSS,
        AnaState::CHANGE,
    ];

    fn path(ana: AnaState) -> PathFacts {
        PathFacts {
            is_connected: true,
            is_present: true,
            is_updating: false,
            ana,
            is_preferred: false,
            in_flight: 0,
            latency_ns: 0,
        }
    }

    fn rules(policy: Policy) -> Rules {
        Rules { policy, ..Rules::default() }
    }

    #[track_caller]
    fn check(policy: Policy, ana: [AnaState; 2], current: [bool; 2]) {
        let paths = ana.map(path);
        let now = [0, 1].map(|at| is_current(&paths, &rules(policy), Cursor::default(), at));
        assert_eq!(now, current, "{policy:?} {ana:?}");
        let accessible = paths.map(|path| path.is_accessible());
        assert_eq!(accessible, ana.map(|state| state.is_accessible()));
    }

    #[test]
    fn s2_a_current_and_accessible_follow_the_table() {
        use AnaState as Ana;
        use Policy::{ActiveActive, ActivePassive};
        check(ActivePassive, [Ana::OPTIMIZED, Ana::OPTIMIZED], [true, false]);
        check(ActivePassive, [Ana::NON_OPTIMIZED, Ana::OPTIMIZED], [false, true]);
        check(ActivePassive, [Ana::NON_OPTIMIZED, Ana::NON_OPTIMIZED], [true, false]);
        check(ActivePassive, [Ana::NON_OPTIMIZED, Ana::INACCESSIBLE], [true, false]);
        check(ActivePassive, [Ana::INACCESSIBLE, Ana::INACCESSIBLE], [false, false]);
        check(ActivePassive, [Ana::INACCESSIBLE, Ana::OPTIMIZED], [false, true]);
        check(ActiveActive, [Ana::OPTIMIZED, Ana::OPTIMIZED], [true, true]);
        check(ActiveActive, [Ana::NON_OPTIMIZED, Ana::OPTIMIZED], [false, true]);
        check(ActiveActive, [Ana::NON_OPTIMIZED, Ana::NON_OPTIMIZED], [true, true]);
        check(ActiveActive, [Ana::NON_OPTIMIZED, Ana::INACCESSIBLE], [true, false]);
    }

    #[test]
    fn s2_c_an_optimized_path_that_is_not_connected_does_not_hide_another() {
        let lost = PathFacts { is_connected: false, ..path(AnaState::OPTIMIZED) };
        let paths = [lost, path(AnaState::NON_OPTIMIZED)];
        let rules = rules(Policy::ActiveActive);
        assert_eq!(select(&paths, &rules, Cursor::default()), Some(1));
        assert!(!is_current(&paths, &rules, Cursor::default(), 0));
        assert!(is_current(&paths, &rules, Cursor::default(), 1));
    }

    /// A small generator of its own: the cases are the same everywhere.
    struct Dice(u64);

    impl Dice {
        fn roll(&mut self, sides: u64) -> u64 {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (self.0 >> 33) % sides
        }
    }

    #[test]
    fn s2_e_what_is_reported_as_current_is_what_the_selector_returns() {
        let mut dice = Dice(1);
        for case in 0..100_000 {
            let count = dice.roll(6) as usize;
            let paths: Vec<PathFacts> = (0..count)
                .map(|_| PathFacts {
                    is_connected: dice.roll(4) > 0,
                    is_present: dice.roll(8) > 0,
                    is_updating: dice.roll(8) == 0,
                    ana: STATES[dice.roll(5) as usize],
                    is_preferred: dice.roll(6) == 0,
                    in_flight: dice.roll(4) as u32,
                    latency_ns: dice.roll(8) as u32,
                })
                .collect();
            let rules = Rules {
                policy: [Policy::ActivePassive, Policy::ActiveActive][dice.roll(2) as usize],
                selector: [Selector::RoundRobin, Selector::QueueDepth, Selector::Latency]
                    [dice.roll(3) as usize],
                fails_back: dice.roll(2) == 0,
                rr_min_io: 1 + dice.roll(3) as u32,
            };
            let cursor = Cursor { last: dice.roll(6) as usize, run: dice.roll(4) as u32 };
            check_case(case, &paths, &rules, cursor);
        }
    }

    #[track_caller]
    fn check_case(case: u32, paths: &[PathFacts], rules: &Rules, cursor: Cursor) {
        let current: Vec<usize> =
            (0..paths.len()).filter(|at| is_current(paths, rules, cursor, *at)).collect();
        let chosen = select(paths, rules, cursor);
        let text = || format!("case {case}: {paths:?} {rules:?} {cursor:?}");
        assert_eq!(chosen.is_some(), !current.is_empty(), "{}", text());
        assert_eq!(chosen.is_some(), paths.iter().any(PathFacts::is_accessible), "{}", text());
        assert!(chosen.is_none_or(|at| current.contains(&at)), "{}", text());
        assert!(current.iter().all(|at| paths[*at].is_accessible()), "{}", text());
        if rules.policy == Policy::ActivePassive {
            assert!(current.len() <= 1, "{}", text());
        }
        // Whoever is current is chosen sooner or later, if load goes where it is sent.
        if rules.policy == Policy::ActiveActive {
            let (mut paths, mut cursor, mut seen) = (paths.to_vec(), cursor, Vec::new());
            for _ in 0..200 {
                let Some(at) = select(&paths, rules, cursor) else { break };
                paths[at].in_flight += 1;
                cursor = Cursor { run: if cursor.last == at { cursor.run + 1 } else { 1 }, last: at };
                seen.push(at);
            }
            assert!(current.iter().all(|at| seen.contains(at)), "{}", text());
        }
    }

    #[test]
    fn s2_h_round_robin_gives_each_path_its_turn() {
        for rr_min_io in [1, 64] {
            let (policy, selector) = (Policy::ActiveActive, Selector::RoundRobin);
            let rules = Rules { policy, selector, rr_min_io, fails_back: true };
            let paths = [path(AnaState::OPTIMIZED); 3];
            let (mut cursor, mut counts) = (Cursor::default(), [0_u32; 3]);
            for _ in 0..3 * 64 * 10 {
                let at = select(&paths, &rules, cursor).unwrap();
                cursor = Cursor { run: if cursor.last == at { cursor.run + 1 } else { 1 }, last: at };
                counts[at] += 1;
            }
            assert_eq!(counts, [640; 3], "rr_min_io {rr_min_io}");
        }
    }

    #[test]
    fn the_first_of_equal_paths_is_used_wherever_the_last_io_went() {
        let rules = rules(Policy::ActivePassive);
        let mut paths = [path(AnaState::NON_OPTIMIZED); 2];
        let cursor = Cursor { last: 1, run: 1 };
        assert_eq!(select(&paths, &rules, cursor), Some(0));
        paths[1].ana = AnaState::OPTIMIZED;
        assert_eq!(select(&paths, &rules, Cursor::default()), Some(1));
        paths.swap(0, 1);
        paths[1].is_preferred = true;
        assert_eq!(select(&paths, &rules, cursor), Some(0), "a worse path is not preferred");
        paths[0].ana = AnaState::NON_OPTIMIZED;
        assert_eq!(select(&paths, &rules, Cursor::default()), Some(1));
    }

    #[test]
    fn without_failback_a_path_is_left_only_when_it_is_lost() {
        let rules = Rules { fails_back: false, ..rules(Policy::ActivePassive) };
        let mut paths = [path(AnaState::NON_OPTIMIZED), path(AnaState::OPTIMIZED)];
        assert_eq!(select(&paths, &rules, Cursor::default()), Some(1), "the first choice is the best");
        let cursor = Cursor { last: 0, run: 1 };
        assert_eq!(select(&paths, &rules, cursor), Some(0));
        assert!(is_current(&paths, &rules, cursor, 0) && !is_current(&paths, &rules, cursor, 1));
        paths[0].ana = AnaState::INACCESSIBLE;
        assert_eq!(select(&paths, &rules, cursor), Some(1));
    }

    #[test]
    fn latency_sends_more_where_answers_come_sooner() {
        let selector = Selector::Latency;
        let rules = Rules { policy: Policy::ActiveActive, selector, ..Rules::default() };
        let mut paths = [path(AnaState::OPTIMIZED); 2];
        (paths[0].latency_ns, paths[1].latency_ns) = (30_000, 10_000);
        for _ in 0..40 {
            let at = select(&paths, &rules, Cursor::default()).unwrap();
            paths[at].in_flight += 1;
        }
        assert_eq!((paths[0].in_flight, paths[1].in_flight), (10, 30));
        paths[0].latency_ns = 0;
        assert_eq!(select(&paths, &rules, Cursor::default()), Some(0), "one that is not measured is tried");
    }

    #[test]
    fn a_path_that_is_not_accessible_has_an_obstacle_and_no_other_has() {
        for ana in STATES {
            for bits in 0..8 {
                let facts = PathFacts {
                    is_connected: bits & 1 != 0,
                    is_present: bits & 2 != 0,
                    is_updating: bits & 4 != 0,
                    ..path(ana)
                };
                assert_eq!(facts.obstacle().is_none(), facts.is_accessible(), "{facts:?}");
            }
        }
    }
}
