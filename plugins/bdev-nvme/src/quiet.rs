//! Keeps what a peer can repeat from filling the log: of lines of one kind a few
//! are shown at once, then one a second, which tells how many were not.

use std::cell::Cell;

/// The lines of one kind about one thing.
pub(crate) struct Quiet {
    /// Lines that may be shown at once.
    tokens: Cell<u64>,
    /// When the last of them came.
    filled_at_ns: Cell<u64>,
    left_out: Cell<u64>,
}

impl Quiet {
    pub(crate) fn new() -> Self {
        Quiet { tokens: Cell::new(BURST), filled_at_ns: Cell::new(0), left_out: Cell::new(0) }
    }

    /// How many lines were left out before this one; `None` if this one is to be left out as well.
    pub(crate) fn ask(&self, now_ns: u64) -> Option<u64> {
        let new = now_ns.saturating_sub(self.filled_at_ns.get()) / PER_LINE_NS;
        if new > 0 {
            self.tokens.set(self.tokens.get().saturating_add(new).min(BURST));
            self.filled_at_ns.set(now_ns);
        }
        match self.tokens.get() {
            0 => {
                self.left_out.set(self.left_out.get() + 1);
                None
            }
            tokens => {
                self.tokens.set(tokens - 1);
                Some(self.left_out.take())
            }
        }
    }
}

/// Lines at once: what a loss and a return say.
const BURST: u64 = 6;
const PER_LINE_NS: u64 = 1_000_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_lines_are_shown_then_one_a_second_with_the_number_of_others() {
        let quiet = Quiet::new();
        let second = PER_LINE_NS;
        let shown = |at_ns: u64| (0..10).filter_map(|_| quiet.ask(at_ns)).collect::<Vec<u64>>();
        assert_eq!(shown(100 * second), [0; BURST as usize]);
        assert!(shown(100 * second + second / 2).is_empty());
        assert_eq!(shown(101 * second), [14]);
        assert_eq!(shown(103 * second), [9, 0], "time without lines is not lost");
        assert_eq!(shown(1000 * second)[..2], [8, 0]);
    }
}
