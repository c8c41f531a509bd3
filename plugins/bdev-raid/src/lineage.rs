//! Who has written an array: a generation and a writer for each time its members
//! were agreed on anew. Two copies with the same name and number are told apart by
//! it: one is older than the other only if its last step is among the other's.
//! Pure; what follows from the answer is `assembly.rs`'.

/// The steps an array has gone, the oldest known first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lineage {
    steps: Vec<Step>,
}

/// One agreement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// One more than that of the step before.
    pub generation: u64,
    /// Drawn at random for each time an array is brought up; [`UNKNOWN_WRITER`] if only the step is known.
    pub writer: [u8; 16],
}

impl Step {
    fn is_unknown(&self) -> bool {
        self.writer == UNKNOWN_WRITER
    }
}

/// How two lineages relate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kinship {
    /// The same.
    Same,
    /// The first is what the second was once.
    Older,
    /// The second is what the first was once.
    Newer,
    /// Both went on from a common past, each without the other.
    Diverged,
    /// The common past is further back than is kept, or nothing is known of one.
    Unknown,
}

impl Lineage {
    /// A lineage of these steps; `None` if they do not follow one another.
    #[must_use]
    pub fn of(steps: Vec<Step>) -> Option<Lineage> {
        let follows = |pair: &[Step]| pair[0].generation.checked_add(1) == Some(pair[1].generation);
        (steps.len() <= MAX_STEPS && steps.windows(2).all(follows)).then_some(Lineage { steps })
    }

    /// Goes one step further.
    pub fn add(&mut self, writer: [u8; 16]) {
        let generation = self.generation().saturating_add(1);
        if self.steps.len() == MAX_STEPS {
            self.steps.remove(0);
        }
        self.steps.push(Step { generation, writer });
    }

    /// Forgets the last step.
    pub fn take_back(&mut self) {
        self.steps.pop();
    }

    /// The steps, the oldest first.
    #[must_use]
    pub fn steps(&self) -> &[Step] {
        &self.steps
    }

    /// The number of the last step; 0 if there is none.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.steps.last().map_or(0, |step| step.generation)
    }

    /// Who made the last step.
    #[must_use]
    pub fn writer(&self) -> Option<[u8; 16]> {
        self.steps.last().map(|step| step.writer)
    }

    /// How this one relates to another.
    #[must_use]
    pub fn compare(&self, other: &Lineage) -> Kinship {
        let (Some(mine), Some(theirs)) = (self.steps.last(), other.steps.last()) else {
            return Kinship::Unknown;
        };
        if mine == theirs && !mine.is_unknown() {
            return Kinship::Same;
        }
        if mine.generation <= theirs.generation {
            other.contains(mine, Kinship::Older)
        } else {
            self.contains(theirs, Kinship::Newer)
        }
    }

    /// Whether the other has all of it but the last step.
    #[must_use]
    pub fn is_one_step_apart(&self, other: &Lineage) -> bool {
        let mut before = self.clone();
        before.take_back();
        matches!(before.compare(other), Kinship::Same | Kinship::Older)
    }

    fn contains(&self, step: &Step, then: Kinship) -> Kinship {
        match self.steps.iter().find(|mine| mine.generation == step.generation) {
            Some(mine) if mine.is_unknown() || step.is_unknown() => Kinship::Unknown,
            Some(mine) if mine == step => then,
            Some(_) => Kinship::Diverged,
            None => Kinship::Unknown,
        }
    }
}

/// Of a step of which no more is known than that it was made.
pub const UNKNOWN_WRITER: [u8; 16] = [0; 16];
/// Steps that are kept: a member that was away for more is judged by its superblock alone.
pub const MAX_STEPS: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    fn lineage(writers: &[u8]) -> Lineage {
        let mut lineage = Lineage::default();
        writers.iter().for_each(|writer| lineage.add([*writer; 16]));
        lineage
    }

    #[track_caller]
    fn check(one: &[u8], other: &[u8], expected: Kinship, reverse: Kinship) {
        assert_eq!(lineage(one).compare(&lineage(other)), expected);
        assert_eq!(lineage(other).compare(&lineage(one)), reverse);
    }

    #[test]
    fn a_copy_is_older_only_if_the_other_went_on_from_it() {
        check(&[1, 2], &[1, 2], Kinship::Same, Kinship::Same);
        check(&[1], &[1, 2], Kinship::Older, Kinship::Newer);
        check(&[1, 2], &[1, 3], Kinship::Diverged, Kinship::Diverged);
        check(&[1, 2, 2, 2], &[1, 3], Kinship::Diverged, Kinship::Diverged);
        check(&[], &[1], Kinship::Unknown, Kinship::Unknown);
    }

    #[test]
    fn a_step_whose_writer_is_not_known_tells_nothing_but_those_before_and_after_do() {
        check(&[1, 0], &[1, 2], Kinship::Unknown, Kinship::Unknown);
        check(&[1, 0], &[1, 0], Kinship::Unknown, Kinship::Unknown);
        check(&[1], &[1, 0, 2], Kinship::Older, Kinship::Newer);
        check(&[1, 0, 2], &[1, 3, 3], Kinship::Diverged, Kinship::Diverged);
        check(&[1, 0, 2], &[1, 0, 2], Kinship::Same, Kinship::Same);
    }

    #[test]
    fn a_step_that_only_one_has_is_told_from_a_longer_way() {
        let check = |one: &[u8], other: &[u8], expected| {
            assert_eq!(lineage(one).is_one_step_apart(&lineage(other)), expected, "{one:?} {other:?}");
        };
        check(&[1, 2], &[1, 3], true);
        check(&[1, 2], &[1, 3, 3], true);
        check(&[1, 2, 2], &[1, 3, 3], false);
        check(&[1, 0, 2], &[1, 3], false);
    }

    #[test]
    fn what_is_further_back_than_is_kept_is_unknown() {
        let old = lineage(&[1]);
        let mut new = old.clone();
        (0..MAX_STEPS).for_each(|_| new.add([2; 16]));
        assert_eq!(new.steps().len(), MAX_STEPS);
        assert_eq!((old.compare(&new), new.compare(&old)), (Kinship::Unknown, Kinship::Unknown));
    }

    #[test]
    fn steps_that_do_not_follow_one_another_are_no_lineage() {
        let step = |generation| Step { generation, writer: [0; 16] };
        assert!(Lineage::of(vec![step(4), step(5)]).is_some());
        assert!(Lineage::of(vec![step(4), step(6)]).is_none());
        assert!(Lineage::of(vec![step(u64::MAX), step(0)]).is_none());
    }
}
