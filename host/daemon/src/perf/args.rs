//! The command line of `tenon perf`, and the workload it means.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use tenon_perf::{Access, End, Timing, Workload};

use super::{trid, units};

/// Arguments of `tenon perf`.
#[derive(Args)]
pub struct PerfArgs {
    /// Configuration file with the devices.
    #[arg(short, long, value_name = "FILE", required_unless_present = "nvmf")]
    pub config: Option<PathBuf>,
    /// NVMe-oF controller whose namespaces get the load, e.g.
    /// 'trtype:TCP traddr:127.0.0.1 trsvcid:4420 subnqn:nqn.2026-01.io.tenon:one'; may be repeated. Further words are
    /// parameters of bdev_nvme_attach_controller, e.g. hdgst:true.
    #[arg(long, value_name = "TRID", value_parser = trid::parse)]
    pub nvmf: Vec<trid::Trid>,
    /// Device to put load on; may be repeated [default: all that nobody claims, by name].
    #[arg(long, value_name = "NAME")]
    pub bdev: Vec<String>,
    /// What to do.
    #[arg(long, value_enum, default_value_t = Pattern::Randread)]
    rw: Pattern,
    /// Share of reads of `rw` and `randrw` [default: 70].
    #[arg(long, value_name = "READ_PERCENT")]
    mix: Option<u32>,
    /// Bytes of each I/O, e.g. 4KiB or 128KiB.
    #[arg(long, short, value_name = "SIZE", default_value = "4KiB", value_parser = units::bytes)]
    block_size: u64,
    /// I/Os in flight per reactor and device.
    #[arg(long, short, value_name = "N", default_value_t = 32)]
    queue_depth: u32,
    /// I/Os given to the device in one call [default: all that are free, or one by one if the device completes them
    /// inside the call].
    #[arg(long, value_name = "N")]
    batch: Option<u32>,
    /// Which block comes next: random, sequential, zipf or zipf:THETA [default: as --rw says].
    #[arg(long, value_parser = access)]
    access: Option<Access>,
    /// End after a time, e.g. 10s or 500ms [default: 10s].
    #[arg(long, group = "end", value_parser = units::duration)]
    time: Option<Duration>,
    /// End after so many bytes per device, e.g. 1GiB.
    #[arg(long, group = "end", value_name = "SIZE", value_parser = units::bytes)]
    total: Option<u64>,
    /// End after so many I/Os per device.
    #[arg(long, group = "end", value_name = "N")]
    ios: Option<u64>,
    /// Give up when a device has I/O in flight and completes none of it for so long.
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = units::duration)]
    pub io_timeout: Duration,
    /// Number of data reactors; overrides the configuration.
    #[arg(long, value_name = "N", conflicts_with = "cpus", value_parser = reactors)]
    pub reactors: Option<usize>,
    /// CPUs of the data reactors, e.g. 0-3,8; overrides the configuration.
    #[arg(long, value_name = "LIST")]
    pub cpus: Option<String>,
    /// Write a pattern with address and sequence number, check everything that is read, and read everything that was
    /// written at the end. Finds lost, stale, misplaced, torn and corrupt blocks.
    #[arg(long)]
    verify: bool,
    /// Keep what must be on the device in this file, and check the device against it at the next start. The file is
    /// right even if the process is killed.
    #[arg(long, value_name = "FILE", requires = "verify")]
    verify_state: Option<PathBuf>,
    /// Only check the device against the state file.
    #[arg(long, requires = "verify_state")]
    verify_only: bool,
    /// Write every block once before the load begins.
    #[arg(long)]
    fill: bool,
    /// Let devices lend their memory to reads instead of copying.
    #[arg(long)]
    lend: bool,
    /// A flush after so many writes.
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    flush_every: u64,
    /// Of 100 I/Os, so many are unmaps.
    #[arg(long, value_name = "PERCENT", default_value_t = 0, hide_default_value = true)]
    unmap_percent: u32,
    /// At most so many I/Os per second and device.
    #[arg(long, value_name = "IOPS")]
    rate: Option<u64>,
    /// Which I/Os are timed.
    #[arg(long, value_enum, default_value_t = Latency::Auto)]
    latency: Latency,
    /// Start of the random sequence; the same seed gives the same requests [default: by the clock].
    #[arg(long)]
    seed: Option<u64>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
    /// Draw the latencies into an SVG file.
    #[arg(long, value_name = "FILE")]
    pub histogram: Option<PathBuf>,
    /// Show the rate once a second even if standard error is no terminal.
    #[arg(long)]
    pub progress: bool,
    /// Further plugin directory, searched first; may be repeated.
    #[arg(long, value_name = "DIR")]
    pub plugin_dir: Vec<PathBuf>,
    /// Answer JSON-RPC on this control socket while the load runs [default: no control socket].
    #[arg(long, value_name = "PATH")]
    pub rpc_socket: Option<PathBuf>,
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Pattern {
    /// Read from the first block to the last.
    Read,
    /// Write from the first block to the last.
    Write,
    /// Read at random.
    Randread,
    /// Write at random.
    Randwrite,
    /// Read and write from the first block to the last.
    Rw,
    /// Read and write at random.
    Randrw,
}

/// Which I/Os are timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Latency {
    /// None.
    Off,
    /// One in 64.
    Sampled,
    /// Each, or one in 64 where reading the time would take as long as the I/O.
    Auto,
    /// Each.
    All,
}

impl PerfArgs {
    /// The workload, or what is wrong with it.
    pub fn workload(&self) -> Result<Workload, String> {
        let (read_percent, by_pattern) = match self.rw {
            Pattern::Read => (100, Access::Sequential),
            Pattern::Randread => (100, Access::Random),
            Pattern::Write => (0, Access::Sequential),
            Pattern::Randwrite => (0, Access::Random),
            Pattern::Rw => (self.mix.unwrap_or(DEFAULT_MIX), Access::Sequential),
            Pattern::Randrw => (self.mix.unwrap_or(DEFAULT_MIX), Access::Random),
        };
        if self.mix.is_some() && !matches!(self.rw, Pattern::Rw | Pattern::Randrw) {
            return Err("--mix has a meaning with --rw rw and --rw randrw only".to_owned());
        }
        let end = match (self.time, self.total, self.ios) {
            (_, Some(bytes), _) => End::Bytes(bytes),
            (_, _, Some(ios)) => End::Ios(ios),
            (time, None, None) => End::After(time.unwrap_or(DEFAULT_TIME)),
        };
        let workload = Workload {
            read_percent,
            unmap_percent: self.unmap_percent,
            flush_every: self.flush_every,
            access: self.access.unwrap_or(by_pattern),
            block_bytes: self.block_size,
            queue_depth: self.queue_depth,
            batch: self.batch,
            end,
            rate: self.rate,
            lend: self.lend,
            fill: self.fill,
            verify: self.verify,
            check_only: self.verify_only,
            state_file: self.verify_state.clone(),
            timing: match self.latency {
                Latency::Off => Timing::Off,
                Latency::Sampled => Timing::Sampled,
                Latency::Auto => Timing::Auto,
                Latency::All => Timing::All,
            },
            seed: self.seed.unwrap_or_else(seed_by_the_clock),
        };
        workload.check().map_err(|error| error.to_string())?;
        Ok(workload)
    }
}

fn access(text: &str) -> Result<Access, String> {
    let zipf = |theta: &str| theta.parse().ok().map(|theta| Access::Zipf { theta });
    let found = match text.split_once(':') {
        None if text == "random" => Some(Access::Random),
        None if text == "sequential" => Some(Access::Sequential),
        None if text == "zipf" => Some(Access::Zipf { theta: DEFAULT_THETA }),
        Some(("zipf", theta)) => zipf(theta),
        _ => None,
    };
    found.ok_or_else(|| "must be random, sequential, zipf or zipf:THETA, e.g. zipf:1.2".to_owned())
}

fn reactors(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(count @ 1..=tenon_reactor::MAX_DATA_REACTORS) => Ok(count),
        _ => Err(format!("must be 1 to {}", tenon_reactor::MAX_DATA_REACTORS)),
    }
}

fn seed_by_the_clock() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(1, |now| now.as_nanos() as u64)
}

const DEFAULT_MIX: u32 = 70;
const DEFAULT_TIME: Duration = Duration::from_secs(10);
const DEFAULT_THETA: f64 = 1.2;

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: PerfArgs,
    }

    fn workload(line: &str) -> Result<Workload, String> {
        let words = ["perf", "-c", "x.toml"].into_iter().chain(line.split_whitespace());
        let line = Line::try_parse_from(words).map_err(|error| error.to_string())?;
        line.args.workload()
    }

    #[test]
    fn a_pattern_decides_kind_and_order() {
        let of = |line: &str| workload(line).map(|workload| (workload.read_percent, workload.access));
        assert_eq!(of(""), Ok((100, Access::Random)));
        assert_eq!(of("--rw write"), Ok((0, Access::Sequential)));
        assert_eq!(of("--rw randrw"), Ok((70, Access::Random)));
        assert_eq!(of("--rw rw --mix 25 --access zipf:0.9"), Ok((25, Access::Zipf { theta: 0.9 })));
    }

    #[test]
    fn an_end_is_a_time_a_size_or_a_count() {
        let of = |line: &str| workload(line).map(|workload| workload.end);
        assert_eq!(of(""), Ok(End::After(Duration::from_secs(10))));
        assert_eq!(of("--time 500ms"), Ok(End::After(Duration::from_millis(500))));
        assert_eq!(of("--total 1GiB"), Ok(End::Bytes(1 << 30)));
        assert_eq!(of("--ios 7"), Ok(End::Ios(7)));
        assert!(of("--ios 7 --time 1s").is_err());
    }

    #[test]
    fn contradictions_are_refused() {
        for line in [
            "--rw read --mix 50",
            "--verify-state f",
            "--verify --verify-only",
            "--access zigzag",
            "--reactors 0",
        ] {
            assert!(workload(line).is_err(), "{line}");
        }
    }
}
