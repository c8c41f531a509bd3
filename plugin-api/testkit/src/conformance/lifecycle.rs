//! Checks of removal, channels on several reactors, and devices that come and
//! go. What is left behind is found by the fake host at the end of each check.

use std::rc::Rc;
use std::time::Duration;

use tenon_abi::{BdevEventKind, IoStatus, Op, Reason};

use super::bench::{Bench, Opened, ensure};
use super::model::Model;
use super::{Pass, Verdict};
use crate::consumer::{Access, Io, Request};
use crate::host::world::World;
use crate::plan::FaultPlan;

/// Channels on several reactors work side by side.
pub(super) fn several_reactors(bench: &Bench) -> Verdict {
    if let Some(skip) = bench.lacks(&[Op::READ])? {
        return Ok(skip);
    }
    let (one, other) = (bench.open_on(&bench.name, 0)?, bench.open_on(&bench.name, 1)?);
    let mut model = Model::new(bench)?;
    model.run(&[&one, &other], 250, 24)?;
    model.verify(&other)?;
    one.close()?;
    model.run(&[&other], 50, 8)?;
    other.close()?;
    Ok(Pass::Ok)
}

/// Channels and descriptors come and go while others are in use.
pub(super) fn channel_churn(bench: &Bench) -> Verdict {
    let steady = bench.open()?;
    for nth in 0..CHURNS {
        let access = if nth % 3 == 0 { Access::Read } else { Access::Write };
        let descriptor = bench.host.open(&bench.name, access).map_err(|code| format!("open gave {code}"))?;
        let reactors: &[u32] = [&[0][..], &[1], &[0, 1], &[1, 1, 0]][bench.rng.index(4)];
        let mut channels = Vec::new();
        for reactor in reactors {
            channels.push(descriptor.channel(*reactor).ok_or(format!("no channel on reactor {reactor}"))?);
        }
        if bench.has(Op::READ)? {
            let ios: Vec<Io> = channels.iter().map(|channel| channel.submit(Request::read(0, 1))).collect();
            bench.wait_all(&ios)?;
        }
        channels.iter().for_each(|channel| channel.put());
        ensure!(descriptor.close() == 0, "close failed");
        if nth % 8 == 0 && bench.has(Op::READ)? {
            bench.must(&steady, Request::read(0, 1))?;
        }
    }
    steady.close()?;
    Ok(Pass::Ok)
}

/// What a consumer does after REMOVE: waits for its I/O, puts, closes. Every I/O must have completed once.
fn leave(bench: &Bench, opened: Opened, ios: &[Io]) -> Result<(), String> {
    let was_told = bench.host.run_until(Duration::from_secs(1), || opened.descriptor.is_removed());
    ensure!(was_told, "the opener was not told of the removal");
    bench.wait_all(ios)?;
    let late = opened.channel.submit(Request::read(0, 1));
    let status = bench.wait(&late)?.status;
    ensure!(status == IoStatus::NO_DEVICE, "an I/O after REMOVE ended with {status:?}");
    let events = opened.descriptor.events();
    let removals = events.iter().filter(|event| event.kind == BdevEventKind::REMOVE).count();
    ensure!(removals == 1, "{removals} REMOVE events");
    opened.close()
}

/// The device is removed while I/O is on it from two descriptors and reactors.
pub(super) fn removal_under_load(bench: &Bench) -> Verdict {
    for base in &bench.bases {
        base.set_plan(FaultPlan::none().delay_ns(0, 200_000));
    }
    let (one, other) = (bench.open_on(&bench.name, 0)?, bench.open_on(&bench.name, 1)?);
    let first = bench.load(&one, 24)?;
    let second = bench.load(&other, 24)?;
    bench.host.advance(Duration::from_micros(bench.rng.below(50)));
    ensure!(bench.host.remove_device(&bench.name, Reason::HOT_REMOVED), "there is no device to remove");
    // A second removal changes nothing.
    bench.host.remove_device(&bench.name, Reason::REQUESTED);
    leave(bench, one, &first)?;
    leave(bench, other, &second)?;
    bench.wait_gone(&bench.name)?;
    ensure!(bench.host.open(&bench.name, Access::Read).is_err(), "a removed device can be opened");
    Ok(Pass::Ok)
}

/// A base goes while I/O is on the device above it.
pub(super) fn base_removal(bench: &Bench) -> Verdict {
    if bench.bases.is_empty() {
        return Ok(Pass::Skip("the device has no bases".to_owned()));
    }
    let base = &bench.bases[bench.rng.index(bench.bases.len())];
    base.set_plan(FaultPlan::none().delay_ns(0, 100_000));
    let opened = bench.open()?;
    let ios = bench.load(&opened, 24)?;
    base.remove();
    if bench.suite.survives_base_removal {
        bench.wait_all(&ios)?;
        opened.close()?;
        let is_gone = bench.host.run_until(Duration::from_secs(30), || base.is_gone());
        ensure!(is_gone, "base `{}` cannot go: it is still in use", base.name());
        return bench.works(&bench.name).map(|()| Pass::Ok);
    }
    // Longer than the deadline of REMOVE, so that a module that ignores it is named.
    let was_told = bench.host.run_until(Duration::from_secs(6), || opened.descriptor.is_removed());
    ensure!(was_told, "the device stayed although its base `{}` went", base.name());
    leave(bench, opened, &ios)?;
    bench.wait_gone(&bench.name)?;
    let is_gone = bench.host.run_until(Duration::from_secs(30), || base.is_gone());
    ensure!(is_gone, "base `{}` cannot go: it is still in use", base.name());
    Ok(Pass::Ok)
}

/// Devices that go while they are examined: a new device of the module, and a base offered to the module.
pub(super) fn removal_during_examine(bench: &Bench) -> Verdict {
    for base in &bench.bases {
        base.set_plan(FaultPlan::none().delay_ns(1_000, 100_000));
    }
    let pending = bench.host.start_create(bench.module, &bench.suite.create_json);
    let exists = || !pending.devices().is_empty() || pending.is_done();
    bench.host.run_until(Duration::from_secs(30), exists);
    for name in pending.devices() {
        bench.host.remove_device(&name, Reason::HOT_REMOVED);
    }
    // Either reply is right; none is not.
    let reply = bench.host.wait_for(&pending);
    if let Err(error) = &reply {
        super::bench::explains_itself(error)?;
    }
    for name in pending.devices() {
        bench.wait_gone(&name)?;
    }
    for nth in 0..4 {
        let stray = bench.host.start_base(crate::base::BaseSpec::new(&format!("stray{nth}"), 512, 64));
        bench.host.run_until(Duration::from_nanos(bench.rng.below(20_000)), || false);
        stray.remove();
        bench.wait_gone(stray.name())?;
    }
    Ok(Pass::Ok)
}

/// The device as base of another one: data, removal from below.
pub(super) fn stacked(bench: &Bench) -> Verdict {
    if let Some(skip) = bench.lacks(&[Op::READ, Op::WRITE])? {
        return Ok(skip);
    }
    let filter = bench.host.add_filter("stacked0", &bench.name).map_err(|code| format!("filter: {code}"))?;
    let opened = bench.open_on(filter.name(), 0)?;
    let mut model = Model::new(bench)?;
    model.run(&[&opened], 150, 16)?;
    model.verify(&opened)?;
    let ios = bench.load(&opened, 16)?;
    bench.host.remove_device(&bench.name, Reason::HOT_REMOVED);
    leave(bench, opened, &ios)?;
    bench.wait_gone(filter.name())?;
    bench.wait_gone(&bench.name)?;
    Ok(Pass::Ok)
}

/// Delete answers when the device is gone; a second one finds nothing.
pub(super) fn delete(bench: &Bench) -> Verdict {
    bench.works(&bench.name)?;
    bench.host.delete(&bench.name).map_err(|error| format!("delete: {error}"))?;
    ensure!(bench.host.device(&bench.name).is_none(), "the device is there after its delete");
    bench.nothing_is_left("delete")?;
    ensure!(bench.host.delete(&bench.name).is_err(), "a second delete succeeded");
    Ok(Pass::Ok)
}

/// The module is unregistered while a consumer holds its device: the consumer hears of it and the module ends.
pub(super) fn unregister_with_consumer(bench: &Bench) -> Verdict {
    let opened = Rc::new(bench.open()?);
    let ios = Rc::new(bench.load(&opened, 8)?);
    watch_and_leave(bench.host.world(), &opened, &ios);
    bench.host.unregister_module(bench.module).map_err(|error| format!("unregister: {error}"))?;
    for io in ios.iter() {
        ensure!(io.completions() == 1, "{io:?} completed {} times", io.completions());
    }
    ensure!(opened.descriptor.is_removed(), "the consumer was not told");
    Ok(Pass::Ok)
}

/// A consumer that leaves as soon as it was told and its I/O is done.
fn watch_and_leave(world: &Rc<World>, opened: &Rc<Opened>, ios: &Rc<Vec<Io>>) {
    let (opened, ios) = (Rc::clone(opened), Rc::clone(ios));
    world.after(crate::host::schedule::CONTROL, 100_000, move |world| {
        if opened.descriptor.is_removed() && ios.iter().all(Io::is_done) {
            opened.channel.put();
            opened.descriptor.close();
        } else {
            watch_and_leave(world, &opened, &ios);
        }
    });
}

/// The same device is created and deleted again and again, also while its create is under way.
pub(super) fn create_delete_churn(bench: &Bench) -> Verdict {
    for nth in 0..6 {
        let pending = bench.host.start_create(bench.module, &bench.suite.create_json);
        if nth % 2 == 1 {
            bench.host.run_until(Duration::from_nanos(bench.rng.below(1_000)), || false);
            for name in pending.devices() {
                let _ = bench.host.start_delete(&name);
            }
        }
        let reply = bench.host.wait_for(&pending);
        match reply {
            Ok(_) => {}
            Err(error) if nth % 2 == 1 => {
                super::bench::explains_itself(&error)?;
            }
            Err(error) => return Err(format!("create {nth}: {error}")),
        }
        for name in pending.devices() {
            if bench.host.device(&name).is_some_and(|info| info.state == tenon_abi::BdevState::READY) {
                let _ = bench.host.delete(&name);
            }
            bench.wait_gone(&name)?;
        }
        bench.nothing_is_left("create and delete")?;
    }
    Ok(Pass::Ok)
}

const CHURNS: usize = 60;
