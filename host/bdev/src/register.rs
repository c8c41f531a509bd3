//! Registration: what a module may claim its device to be, and the device's first
//! step into the registry.
//!
//! Everything a module passes is checked here, once; behind this file a device's
//! limits are known to make sense. The examination that follows is in `examine`.

use std::sync::Arc;

use tenon_abi::{BdevFlags, BdevHandle, Limits, Op, OpToken, errno};
use tenon_modules::{ModuleRef, ModuleState};
use uuid::Uuid;

use crate::activity::Origin;
use crate::core::Core;
use crate::error::OpError;
use crate::io::{Gate, GateSpec, with_compare_write};
use crate::names::{check_alias, check_name};
use crate::registry::{Description, InsertError};
use crate::request::Request;

impl Core {
    /// Takes a new device of `module`; `op` is the token of the operation it belongs to, or none.
    pub(crate) fn register_bdev(
        &self,
        module: ModuleRef,
        mut description: Description,
        op: OpToken,
    ) -> Result<BdevHandle, OpError> {
        description.limits = with_compare_write(description.limits, description.flags, description.io_types);
        let name = description.all_names[0].clone();
        self.may_register(module, &name)?;
        let operation = self.operation_of(op).map_err(|code| {
            let reason = match code {
                errno::ETIMEDOUT => "the create it belongs to was given up at its deadline",
                _ => "the operation it is registered under is over or of another kind",
            };
            OpError::new(code, &*name, reason)
        })?;
        self.check_reservation(&description, module, operation)?;
        let gate = Gate::new(
            GateSpec {
                name: name.clone(),
                flags: description.flags,
                limits: description.limits,
                io_types: description.io_types,
                io_flags: description.io_flags,
                ctx: description.callbacks.ctx,
                ops: description.callbacks.ops,
            },
            self.inner.shared.directory().clone(),
        );
        gate.set_reset_drain_timeout(self.inner.reset_drain_timeout.get());
        let record = description.into_bdev(module, gate, operation);
        let inserted = self.inner.registry.borrow_mut().insert(record);
        let bdev = inserted.map_err(|error| {
            let code = match error {
                InsertError::Full => errno::ENOSPC,
                InsertError::Name(_) => errno::EEXIST,
            };
            OpError::new(code, &*name, error.to_string())
        })?;
        if let Some(operation) = operation
            && let Some(operation) = self.inner.operations.borrow_mut().get_mut(operation)
        {
            operation.bdevs.push(bdev);
        }
        log::info!("bdev is registered bdev={name} module={}", module.name());
        if operation.is_none() {
            self.saved_adopt(module, &name, bdev);
        }
        let origin = if operation.is_some() { Origin::Requested } else { Origin::Derived };
        let activity = self.activity_begin(origin);
        self.later(move |core| core.examine_first(bdev, activity));
        Ok(bdev)
    }

    fn may_register(&self, module: ModuleRef, name: &str) -> Result<(), OpError> {
        if self.is_stopping() {
            return Err(OpError::new(errno::ESHUTDOWN, name, "host is shutting down"));
        }
        match module.state() {
            ModuleState::Initialised | ModuleState::Running => Ok(()),
            ModuleState::Loaded
            | ModuleState::Initialising
            | ModuleState::Draining
            | ModuleState::Finishing
            | ModuleState::Retired
            | ModuleState::Failed => {
                let reason = format!("module {} takes no new devices", module.name());
                Err(OpError::new(errno::ESHUTDOWN, name, reason))
            }
        }
    }

    /// A name that a create is at work on is not given to anybody else.
    fn check_reservation(
        &self,
        description: &Description,
        module: ModuleRef,
        operation: Option<u64>,
    ) -> Result<(), OpError> {
        let operations = self.inner.operations.borrow();
        for name in &description.all_names {
            let Some((owner, owning)) = operations.owner_of_name(name) else { continue };
            let is_create = matches!(owning.request, Request::Create { .. });
            let is_same = operation == Some(owner)
                || operation.is_none() && owning.module.is_some_and(|other| other.id() == module.id());
            if is_create && !is_same {
                return Err(OpError::new(errno::EEXIST, &**name, "name is taken by a create under way"));
            }
        }
        Ok(())
    }
}

/// Every name of a device: its own, its aliases, its UUID. A device without an identity gets one.
pub(crate) fn all_names(name: &str, aliases: &[&str], uuid: Uuid) -> Result<Vec<Arc<str>>, OpError> {
    let invalid = |object: &str, error: crate::names::NameError| {
        OpError::new(errno::EINVAL, crate::error::bounded(object), error.to_string())
    };
    check_name(name).map_err(|error| invalid(name, error))?;
    let uuid_name = crate::names::uuid_name(&uuid);
    let mut names: Vec<Arc<str>> = vec![name.into()];
    for alias in aliases {
        check_alias(alias).map_err(|error| invalid(alias, error))?;
        if names.iter().all(|other| &**other != *alias) && **alias != *uuid_name {
            names.push((*alias).into());
        }
    }
    if *name != *uuid_name {
        names.push(uuid_name);
    }
    Ok(names)
}

/// Limits that the gate can keep.
pub(crate) fn check_limits(limits: &Limits, flags: BdevFlags) -> Result<(), &'static str> {
    let block = limits.block_size;
    if !block.is_power_of_two() || !(MIN_BLOCK..=MAX_BLOCK).contains(&block) {
        return Err("block size is not a power of two from 512 to 65536");
    }
    if limits.num_blocks == 0 {
        return Err("capacity is zero");
    }
    if limits.num_blocks.checked_mul(u64::from(block)).is_none_or(|bytes| bytes > i64::MAX as u64) {
        return Err("capacity is above 2^63 bytes");
    }
    if !limits.physical_block_size.is_multiple_of(block) {
        return Err("physical block size is not a multiple of the block size");
    }
    if limits.md_size > MAX_METADATA {
        return Err("metadata per block is above 65536 bytes");
    }
    if limits.required_alignment > 1 && !limits.required_alignment.is_power_of_two() {
        return Err("required alignment is not a power of two");
    }
    if flags.contains(BdevFlags::SPLIT_ON_BOUNDARY) && limits.optimal_io_boundary == 0 {
        return Err("split on a boundary is asked for, but the boundary is zero");
    }
    if flags.contains(BdevFlags::SPLIT_ON_WRITE_UNIT) && limits.write_unit == 0 {
        return Err("split on the write unit is asked for, but the unit is zero");
    }
    if limits.max_segment_bytes != 0 && limits.max_segment_bytes < block {
        return Err("largest segment is below the block size");
    }
    Ok(())
}

/// What a module means by a field it left at zero.
pub(crate) fn normalised(mut limits: Limits) -> Limits {
    limits.physical_block_size = limits.physical_block_size.max(limits.block_size);
    limits.required_alignment = limits.required_alignment.max(1);
    limits.reserved = 0;
    limits
}

/// Operations this host knows.
pub(crate) const KNOWN_OPS: u64 = (1 << Op::COUNT) - 1;
const MIN_BLOCK: u32 = 512;
const MAX_BLOCK: u32 = 65_536;
const MAX_METADATA: u32 = 65_536;

#[cfg(test)]
mod tests {
    use super::{all_names, check_limits, normalised};
    use tenon_abi::{BdevFlags, Limits};
    use uuid::Uuid;

    #[track_caller]
    fn check(change: impl Fn(&mut Limits), flags: BdevFlags, is_valid: bool) {
        let mut limits = Limits::new(512, 1000);
        change(&mut limits);
        assert_eq!(check_limits(&normalised(limits), flags).is_ok(), is_valid, "{limits:?}");
    }

    #[test]
    fn limits_that_make_no_sense_are_refused() {
        let none = BdevFlags(0);
        check(|_| {}, none, true);
        for block in [0, 1, 256, 513, 131_072] {
            check(|limits| limits.block_size = block, none, false);
        }
        check(|limits| limits.num_blocks = 0, none, false);
        check(|limits| limits.num_blocks = 1 << 60, none, false);
        check(|limits| limits.physical_block_size = 0, none, true);
        check(|limits| limits.physical_block_size = 700, none, false);
        check(|limits| limits.required_alignment = 3, none, false);
        check(|_| {}, BdevFlags::SPLIT_ON_BOUNDARY, false);
        check(|limits| limits.optimal_io_boundary = 8, BdevFlags::SPLIT_ON_BOUNDARY, true);
        check(|_| {}, BdevFlags::SPLIT_ON_WRITE_UNIT, false);
        check(|limits| limits.max_segment_bytes = 256, none, false);
    }

    #[test]
    fn the_uuid_is_the_last_alias_and_none_is_there_twice() {
        let uuid = Uuid::from_u128(5);
        let text = uuid.to_string();
        let names = all_names("n", &["a", "n", "a", &text], uuid).unwrap();
        assert_eq!(names.iter().map(|name| &**name).collect::<Vec<_>>(), ["n", "a", &text]);
        assert!(all_names("a/b", &[], uuid).is_err());
        assert!(all_names("n", &["store/volume"], uuid).is_ok());
    }
}
