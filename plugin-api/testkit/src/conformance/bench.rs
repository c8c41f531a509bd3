//! What the checks stand on: one fake host with the plugin, its bases and its
//! device, and I/O helpers that report instead of panicking.

use std::time::Duration;

use tenon_abi::{BdevFlags, IoStatus, Op, errno};

use super::{Conformance, Pass, Verdict};
use crate::base::TestBase;
use crate::consumer::{Access, Channel, Completion, Descriptor, Io, Request};
use crate::host::{DeviceInfo, FakeHost, ModuleId, OpError, Plugin};
use crate::rng::Rng;

/// Returns an error with a formatted text unless the condition holds.
macro_rules! ensure {
    ($condition:expr, $($text:tt)+) => {
        if !$condition {
            return Err(format!($($text)+));
        }
    };
}
pub(super) use ensure;

pub(super) struct Bench<'a> {
    pub(super) suite: &'a Conformance,
    pub(super) host: &'a FakeHost,
    pub(super) module: ModuleId,
    pub(super) bases: Vec<TestBase>,
    pub(super) name: String,
    pub(super) rng: Rng,
}

/// An open device with one channel.
pub(super) struct Opened {
    pub(super) descriptor: Descriptor,
    pub(super) channel: Channel,
}

impl Opened {
    pub(super) fn close(self) -> Result<(), String> {
        self.channel.put();
        let code = self.descriptor.close();
        ensure!(code == 0, "close gave {code}");
        Ok(())
    }
}

impl<'a> Bench<'a> {
    /// Bases and module, no device yet.
    pub(super) fn new(
        suite: &'a Conformance,
        plugin: &Plugin,
        host: &'a FakeHost,
    ) -> Result<Bench<'a>, String> {
        let bases = suite.bases.iter().map(|spec| host.add_base(spec.clone())).collect();
        let module = host.load(plugin, &suite.module_config).map_err(|error| format!("load: {error}"))?;
        Ok(Bench { suite, host, module, bases, name: suite.name(), rng: host.rng() })
    }

    pub(super) fn create(&mut self) -> Result<(), String> {
        let names = self.create_device().map_err(|error| format!("create: {error}"))?;
        if !names.contains(&self.name) {
            let first = names.first().ok_or("create succeeded and registered no device")?;
            self.name.clone_from(first);
        }
        Ok(())
    }

    pub(super) fn create_device(&self) -> Result<Vec<String>, OpError> {
        self.host.create(self.module, &self.suite.create_json)
    }

    pub(super) fn info(&self) -> Result<DeviceInfo, String> {
        self.host.device(&self.name).ok_or_else(|| format!("device `{}` is not there", self.name))
    }

    pub(super) fn has(&self, op: Op) -> Result<bool, String> {
        Ok(self.info()?.io_types & op.bit() != 0)
    }

    pub(super) fn block(&self) -> Result<usize, String> {
        let info = self.info()?;
        let interleaved = info.flags.contains(BdevFlags::METADATA_INTERLEAVED);
        Ok(info.limits.block_size as usize + if interleaved { info.limits.md_size as usize } else { 0 })
    }

    /// Blocks that writes must be multiples of.
    pub(super) fn granule(&self) -> Result<u64, String> {
        let info = self.info()?;
        Ok(match info.flags.contains(BdevFlags::SPLIT_ON_WRITE_UNIT) {
            true => u64::from(info.limits.write_unit),
            false => 1,
        })
    }

    /// A reason to skip a check that needs all of these operations, or `None`.
    pub(super) fn lacks(&self, ops: &[Op]) -> Result<Option<Pass>, String> {
        let info = self.info()?;
        let missing = ops.iter().find(|op| info.io_types & op.bit() == 0);
        if let Some(op) = missing {
            return Ok(Some(Pass::Skip(format!("operation {} is not declared", op.0))));
        }
        let writes = ops.iter().any(|op| *op != Op::READ && *op != Op::FLUSH && *op != Op::RESET);
        if writes && info.flags.contains(BdevFlags::READ_ONLY) {
            return Ok(Some(Pass::Skip("the device is read-only".to_owned())));
        }
        Ok(None)
    }

    pub(super) fn open(&self) -> Result<Opened, String> {
        self.open_on(&self.name, 0)
    }

    pub(super) fn open_on(&self, name: &str, reactor: u32) -> Result<Opened, String> {
        let access =
            match self.host.device(name).is_some_and(|info| info.flags.contains(BdevFlags::READ_ONLY)) {
                true => Access::Read,
                false => Access::Write,
            };
        let descriptor =
            self.host.open(name, access).map_err(|code| format!("open of `{name}` gave {code}"))?;
        let channel =
            descriptor.channel(reactor).ok_or(format!("no channel of `{name}` on reactor {reactor}"))?;
        Ok(Opened { descriptor, channel })
    }

    /// Waits until an I/O has completed.
    pub(super) fn wait(&self, io: &Io) -> Result<Completion, String> {
        self.host.run_until(IO_DEADLINE, || io.is_done());
        io.completion().ok_or_else(|| format!("{io:?} did not complete"))
    }

    /// Waits until all have completed, and that each did so once.
    pub(super) fn wait_all(&self, ios: &[Io]) -> Result<Vec<Completion>, String> {
        let completions: Result<Vec<Completion>, String> = ios.iter().map(|io| self.wait(io)).collect();
        self.host.settle();
        for io in ios {
            ensure!(io.completions() == 1, "{io:?} completed {} times", io.completions());
        }
        completions
    }

    pub(super) fn run(&self, opened: &Opened, request: Request) -> Result<Completion, String> {
        self.wait(&opened.channel.submit(request))
    }

    /// Runs an I/O that must succeed.
    pub(super) fn must(&self, opened: &Opened, request: Request) -> Result<Completion, String> {
        let io = opened.channel.submit(request);
        let completion = self.wait(&io)?;
        ensure!(completion.status.is_success(), "{io:?} failed with {:?}", completion.status);
        Ok(completion)
    }

    /// Runs an I/O that must end with `status`.
    pub(super) fn refuses(&self, opened: &Opened, request: Request, status: IoStatus) -> Result<(), String> {
        let io = opened.channel.submit(request);
        let found = self.wait(&io)?.status;
        ensure!(found == status, "{io:?} ended with {found:?} instead of {status:?}");
        Ok(())
    }

    /// A range of up to `most` blocks in one of the parts of the device that the checks use.
    pub(super) fn range(&self, rng: &Rng, most: u64) -> Result<(u64, u64), String> {
        let (total, granule) = (self.info()?.limits.num_blocks, self.granule()?);
        let units = total / granule;
        ensure!(units > 0, "the device has {total} blocks");
        let window = units.min(WINDOW_BLOCKS / granule.min(WINDOW_BLOCKS)).max(1);
        let first = match rng.below(3) {
            0 => 0,
            1 => (units - window) / 2,
            _ => units - window,
        };
        let blocks = rng.between(1, most.div_ceil(granule).min(window));
        let offset = first + rng.below(window - blocks + 1);
        Ok((offset * granule, blocks * granule))
    }

    /// Random reads and writes in flight, for checks that disturb them.
    pub(super) fn load(&self, opened: &Opened, count: usize) -> Result<Vec<Io>, String> {
        let (block, writes) = (self.block()?, self.lacks(&[Op::WRITE])?.is_none());
        let mut ios = Vec::new();
        for _ in 0..count {
            let (offset, blocks) = self.range(&self.rng, 8)?;
            let request = match writes && self.rng.chance(500) {
                true => Request::write(offset, blocks, self.rng.bytes(blocks as usize * block)),
                false => Request::read(offset, blocks),
            };
            ios.push(opened.channel.submit(request));
        }
        Ok(ios)
    }

    /// Runs until the device is gone.
    pub(super) fn wait_gone(&self, name: &str) -> Result<(), String> {
        let is_gone = self.host.run_until(GONE_DEADLINE, || self.host.device(name).is_none());
        ensure!(
            is_gone,
            "device `{name}` is still there: {:?}",
            self.host.device(name).map(|info| info.state)
        );
        Ok(())
    }

    /// That the device works: a write is read back, or a read succeeds.
    pub(super) fn works(&self, name: &str) -> Result<(), String> {
        let opened = self.open_on(name, 0)?;
        let (block, granule) = (self.block()?, self.granule()?);
        if self.lacks(&[Op::READ, Op::WRITE])?.is_none() {
            let data = self.rng.bytes(block * granule as usize);
            self.must(&opened, Request::write(0, granule, data.clone()))?;
            let read = self.must(&opened, Request::read(0, granule))?.data;
            ensure!(!self.suite.stores_data || read == data, "`{name}` does not give back what was written");
        } else if self.has(Op::READ)? {
            self.must(&opened, Request::read(0, 1))?;
        }
        opened.close()
    }

    /// What a failed create must not leave behind.
    pub(super) fn nothing_is_left(&self, after: &str) -> Result<(), String> {
        self.host.settle();
        let bases: Vec<&str> = self.suite.bases.iter().map(|base| base.name()).collect();
        let strays: Vec<String> =
            self.host.devices().into_iter().filter(|name| !bases.contains(&name.as_str())).collect();
        ensure!(strays.is_empty(), "after {after} there are devices {strays:?}");
        for base in bases {
            let info = self.host.device(base);
            ensure!(info.is_none_or(|info| !info.is_claimed), "after {after} base `{base}` is still claimed");
            let open = self.host.open_count(base);
            ensure!(open == 0, "after {after} base `{base}` has {open} open descriptors");
        }
        Ok(())
    }
}

impl Conformance {
    /// The device's name as the parameters state it.
    pub(super) fn name(&self) -> String {
        let value: Option<serde_json::Value> = serde_json::from_str(&self.create_json).ok();
        let name = value.as_ref().and_then(|value| value.get("name")).and_then(serde_json::Value::as_str);
        name.unwrap_or_default().to_owned()
    }
}

/// That a failed operation says what an operator needs.
pub(super) fn explains_itself(error: &OpError) -> Verdict {
    ensure!(error.code < 0, "a failed create has code {}", error.code);
    ensure!(error.code != errno::ETIMEDOUT, "a create was not answered: {error}");
    ensure!(!error.reason.is_empty(), "a failed create gives no reason: {error}");
    Ok(Pass::Ok)
}

/// The parts of a large device that the checks use.
const WINDOW_BLOCKS: u64 = 256;
const IO_DEADLINE: Duration = Duration::from_secs(30);
const GONE_DEADLINE: Duration = Duration::from_secs(30);
