//! Lets one fuzz target run in two ways: under libFuzzer, or under [`drive`].
//!
//! libFuzzer needs a nightly compiler; the driver needs nothing, so that every
//! change is fuzzed for a moment on any machine. It knows no coverage: it mutates the
//! corpus with a seeded generator, so a seed repeats a run exactly. What is
//! fuzzed lives in the crates; see the README for adding a target.

#![forbid(unsafe_code)]

use std::fs;
use std::io;
use std::panic;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Defines the `main` of a target for whichever way it is built.
#[macro_export]
macro_rules! target {
    ($entry:expr) => {
        #[cfg(fuzzing)]
        libfuzzer_sys::fuzz_target!(|data: &[u8]| $entry(data));

        #[cfg(not(fuzzing))]
        fn main() -> std::process::ExitCode {
            $crate::drive(env!("CARGO_BIN_NAME"), $entry)
        }
    };
}

/// Longest input the driver makes; most parsers decide within far less.
const MAX_INPUT_BYTES: usize = 4096;
/// Mutations applied to one input at most.
const MAX_MUTATIONS: u64 = 8;
/// The clock is read once per this many inputs.
const INPUTS_PER_CLOCK: u64 = 256;

const USAGE: &str = "usage: TARGET seconds SECONDS SEED CORPUS_DIR ARTIFACT_DIR | TARGET replay FILE";

/// Runs `entry` as the command line says: on mutated inputs for a time, or on one file.
pub fn drive(target: &str, entry: fn(&[u8])) -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match arguments.as_slice() {
        ["replay", file] => fs::read(file).map(|input| {
            entry(&input);
            println!("{target}: {} bytes, nothing found", input.len());
            ExitCode::SUCCESS
        }),
        ["seconds", seconds, seed, corpus, artifacts] => match (seconds.parse(), seed.parse()) {
            (Ok(seconds), Ok(seed)) => {
                let run = Run { target, entry, seed, artifacts: Path::new(artifacts) };
                run.until(Duration::from_secs(seconds), Path::new(corpus))
            }
            _ => Err(io::Error::other(USAGE)),
        },
        _ => Err(io::Error::other(USAGE)),
    };
    result.unwrap_or_else(|error| {
        eprintln!("{target}: {error}");
        ExitCode::FAILURE
    })
}

/// One run of the driver.
struct Run<'a> {
    target: &'a str,
    entry: fn(&[u8]),
    seed: u64,
    artifacts: &'a Path,
}

impl Run<'_> {
    fn until(&self, time: Duration, corpus: &Path) -> io::Result<ExitCode> {
        let corpus = read_corpus(corpus)?;
        for input in &corpus {
            if let Some(path) = self.failure(input)? {
                return Ok(self.report(&path));
            }
        }
        let mut random = Random::new(self.seed);
        let start = Instant::now();
        let mut inputs = corpus.len() as u64;
        while !inputs.is_multiple_of(INPUTS_PER_CLOCK) || start.elapsed() < time {
            inputs += 1;
            let input = mutated(&corpus, &mut random);
            if let Some(path) = self.failure(&input)? {
                return Ok(self.report(&path));
            }
        }
        println!("{}: {inputs} inputs, seed {}, nothing found", self.target, self.seed);
        Ok(ExitCode::SUCCESS)
    }

    /// Feeds one input; if it panics, keeps it and returns where.
    fn failure(&self, input: &[u8]) -> io::Result<Option<PathBuf>> {
        let entry = self.entry;
        if panic::catch_unwind(|| entry(input)).is_ok() {
            return Ok(None);
        }
        fs::create_dir_all(self.artifacts)?;
        let path = self.artifacts.join(format!("panic-{:016x}", hash(input)));
        fs::write(&path, input)?;
        Ok(Some(path))
    }

    fn report(&self, path: &Path) -> ExitCode {
        eprintln!("{}: seed {}, failing input in {}", self.target, self.seed, path.display());
        ExitCode::FAILURE
    }
}

/// The files of the corpus in the order of their names; a missing folder is an empty corpus.
fn read_corpus(folder: &Path) -> io::Result<Vec<Vec<u8>>> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.map(|e| e.path())).collect::<io::Result<_>>()?;
    paths.sort();
    paths.iter().map(fs::read).collect()
}

/// An input of the corpus (or nothing, or noise) after a few mutations.
fn mutated(corpus: &[Vec<u8>], random: &mut Random) -> Vec<u8> {
    let mut input = match random.below(corpus.len() as u64 + 1) {
        0 => (0..random.below(128)).map(|_| random.byte()).collect(),
        index => corpus[index as usize - 1].clone(),
    };
    for _ in 0..=random.below(MAX_MUTATIONS) {
        mutate(&mut input, corpus, random);
    }
    input.truncate(MAX_INPUT_BYTES);
    input
}

fn mutate(input: &mut Vec<u8>, corpus: &[Vec<u8>], random: &mut Random) {
    /// Values at which lengths and counters go wrong.
    const EDGES: &[u8] = &[0, 1, 0x7f, 0x80, 0xff, b'"', b'{', b'[', b'\\', b'\n', b'='];
    let at = random.below(input.len() as u64 + 1) as usize;
    let edge = EDGES[random.below(EDGES.len() as u64) as usize];
    let length = random.below(16) as usize + 1;
    match random.below(8) {
        0 if at < input.len() => input[at] ^= 1 << random.below(8),
        1 if at < input.len() => input[at] = random.byte(),
        2 if at < input.len() => input[at] = edge,
        3 => input.insert(at, edge),
        4 => drop(input.drain(at..(at + length).min(input.len()))),
        5 => {
            let piece = input[at..(at + length).min(input.len())].to_vec();
            input.splice(at..at, piece);
        }
        6 if !corpus.is_empty() => {
            let other = &corpus[random.below(corpus.len() as u64) as usize];
            let from = random.below(other.len() as u64 + 1) as usize;
            input.truncate(at);
            input.extend_from_slice(&other[from..]);
        }
        7 => input.truncate(at),
        _ => input.push(random.byte()),
    }
}

/// Xorshift64*: small, seeded, and the same on every machine.
struct Random {
    state: u64,
}

impl Random {
    fn new(seed: u64) -> Self {
        // The state must not be 0; the multiplication spreads small seeds.
        Self { state: seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1 }
    }

    fn next(&mut self) -> u64 {
        self.state ^= self.state >> 12;
        self.state ^= self.state << 25;
        self.state ^= self.state >> 27;
        self.state.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    fn byte(&mut self) -> u8 {
        (self.next() >> 56) as u8
    }

    /// A number below `bound`; 0 for a bound of 0.
    fn below(&mut self, bound: u64) -> u64 {
        if bound == 0 { 0 } else { (self.next() >> 11) % bound }
    }
}

/// FNV-1a: names a failing input.
fn hash(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("tenon-fuzz-{}-{name}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        folder
    }

    fn refuses_braces(data: &[u8]) {
        assert!(!data.windows(2).any(|pair| pair == b"{{"), "two braces");
    }

    #[test]
    fn a_fault_near_the_corpus_is_found_and_kept() {
        let corpus = folder("corpus");
        fs::write(corpus.join("one"), b"a = {b}").unwrap();
        let artifacts = folder("artifacts");
        let run = Run { target: "t", entry: refuses_braces, seed: 7, artifacts: &artifacts };
        assert_eq!(run.until(Duration::from_secs(60), &corpus).unwrap(), ExitCode::FAILURE);
        let kept = fs::read_dir(&artifacts).unwrap().next().unwrap().unwrap().path();
        assert!(fs::read(kept).unwrap().windows(2).any(|pair| pair == b"{{"));
        fs::remove_dir_all(corpus).unwrap();
        fs::remove_dir_all(artifacts).unwrap();
    }

    #[test]
    fn a_sound_target_passes_without_a_corpus() {
        let run = Run { target: "t", entry: |_| {}, seed: 1, artifacts: Path::new("unused") };
        assert_eq!(run.until(Duration::ZERO, Path::new("no-such-folder")).unwrap(), ExitCode::SUCCESS);
    }

    #[test]
    fn a_seed_repeats_its_inputs() {
        let inputs = |seed| {
            let mut random = Random::new(seed);
            (0..100).map(|_| mutated(&[b"abc".to_vec()], &mut random)).collect::<Vec<_>>()
        };
        assert_eq!(inputs(3), inputs(3));
        assert_ne!(inputs(3), inputs(4));
    }

    #[test]
    fn inputs_stay_within_the_bound() {
        let mut random = Random::new(1);
        let corpus = vec![vec![7; 2 * MAX_INPUT_BYTES]];
        assert!((0..100).all(|_| mutated(&corpus, &mut random).len() <= MAX_INPUT_BYTES));
    }
}
