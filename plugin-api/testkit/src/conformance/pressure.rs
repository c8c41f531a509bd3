//! Checks of a device that is disturbed: resized, reset, aborted, or standing
//! on bases that misbehave.

use std::time::Duration;

use tenon_abi::{BdevEventKind, IoStatus, Op};

use super::bench::{Bench, ensure};
use super::model::Model;
use super::{Pass, Verdict};
use crate::consumer::{Io, Request};
use crate::plan::FaultPlan;

fn no_bases() -> Pass {
    Pass::Skip("the device has no bases".to_owned())
}

/// Openers hear of the new size, and the new last block works.
pub(super) fn resize(bench: &Bench) -> Verdict {
    let (info, opened) = (bench.info()?, bench.open()?);
    let before = info.limits.num_blocks;
    match (&bench.suite.resize, bench.bases.as_slice()) {
        (Some(resize), _) => {
            resize(bench.host, &bench.name, 2 * before).map_err(|error| format!("resize: {error}"))?;
        }
        (None, [base]) => {
            let spec = &bench.suite.bases[0];
            base.resize(2 * spec.num_blocks());
        }
        (None, _) => {
            opened.close()?;
            return Ok(Pass::Skip("the suite was told no way to resize".to_owned()));
        }
    }
    let grew = bench.host.run_until(RESIZE_DEADLINE, || {
        bench.host.device(&bench.name).is_some_and(|info| info.limits.num_blocks > before)
    });
    ensure!(grew, "the device still has {before} blocks");
    bench.host.settle();
    let after = bench.info()?.limits.num_blocks;
    let told = opened.descriptor.events();
    let is_told = told.iter().any(|event| event.kind == BdevEventKind::RESIZE && event.value == after);
    ensure!(is_told, "the opener was not told of {after} blocks: {told:?}");
    if bench.has(Op::READ)? {
        bench.must(&opened, Request::read(after - 1, 1))?;
        bench.refuses(&opened, Request::read(after, 1), IoStatus::LBA_OUT_OF_RANGE)?;
    }
    opened.close()?;
    bench.works(&bench.name)?;
    Ok(Pass::Ok)
}

/// Every I/O before, during and after a reset completes once, and the device works afterwards.
pub(super) fn reset_under_io(bench: &Bench) -> Verdict {
    if let Some(skip) = bench.lacks(&[Op::READ, Op::RESET])? {
        return Ok(skip);
    }
    slow_bases(bench);
    let (one, other) = (bench.open_on(&bench.name, 0)?, bench.open_on(&bench.name, 1)?);
    let mut ios = bench.load(&one, 12)?;
    ios.extend(bench.load(&other, 12)?);
    let resets: Vec<Io> = [&one, &other].map(|opened| opened.channel.submit(Request::reset())).into();
    ios.extend(bench.load(&one, 12)?);
    bench.wait_all(&ios)?;
    for completion in bench.wait_all(&resets)? {
        ensure!(completion.status.is_success(), "RESET failed with {:?}", completion.status);
    }
    one.close()?;
    other.close()?;
    bench.works(&bench.name)?;
    Ok(Pass::Ok)
}

fn slow_bases(bench: &Bench) {
    for base in &bench.bases {
        base.set_plan(FaultPlan::none().delay_ns(1_000, 500_000));
    }
}

/// Each victim of an abort completes exactly once, with whatever status.
pub(super) fn abort(bench: &Bench) -> Verdict {
    if let Some(skip) = bench.lacks(&[Op::READ])? {
        return Ok(skip);
    }
    slow_bases(bench);
    let opened = bench.open()?;
    for _ in 0..4 {
        let ios = bench.load(&opened, 24)?;
        for victim in &ios {
            let was_done = victim.is_done();
            let code = opened.channel.abort(victim);
            ensure!(!was_done || code != 0, "abort of {victim:?}, which had completed, found it");
            if bench.rng.chance(300) {
                bench.host.advance(Duration::from_micros(bench.rng.below(50)));
                opened.channel.abort(victim);
            }
        }
        for completion in bench.wait_all(&ios)? {
            let status = completion.status;
            ensure!(status.is_success() || status == IoStatus::ABORTED, "a victim ended with {status:?}");
        }
    }
    opened.close()?;
    bench.works(&bench.name)?;
    Ok(Pass::Ok)
}

/// Bases that lack resources for a while do not make I/O fail.
pub(super) fn base_out_of_memory(bench: &Bench) -> Verdict {
    if bench.bases.is_empty() {
        return Ok(no_bases());
    }
    let plans = [
        FaultPlan::none().nomem_burst(3, 20),
        FaultPlan::none().nomem_permille(400),
        FaultPlan::none().nomem_permille(200).delay_ns(0, 20_000),
    ];
    for plan in plans {
        for base in &bench.bases {
            base.set_plan(plan.clone());
        }
        let opened = bench.open()?;
        Model::new(bench)?.run(&[&opened], 100, 16)?;
        opened.close()?;
    }
    Ok(Pass::Ok)
}

/// Bases that take their time and answer in another order give the same data.
pub(super) fn base_slow_and_reordered(bench: &Bench) -> Verdict {
    if bench.bases.is_empty() {
        return Ok(no_bases());
    }
    for base in &bench.bases {
        base.set_plan(FaultPlan::none().delay_ns(0, 30_000).reorder(32));
    }
    let (one, other) = (bench.open_on(&bench.name, 0)?, bench.open_on(&bench.name, 1)?);
    let mut model = Model::new(bench)?;
    model.run(&[&one, &other], 250, 24)?;
    model.verify(&one)?;
    one.close()?;
    other.close()?;
    Ok(Pass::Ok)
}

/// A failing base makes I/O fail, never lie, never hang; afterwards the device works.
pub(super) fn base_errors(bench: &Bench) -> Verdict {
    let Some(first) = bench.bases.first() else { return Ok(no_bases()) };
    first.set_plan(FaultPlan::none().fail_permille(200, IoStatus::IO_ERROR).delay_ns(0, 5_000));
    let opened = bench.open()?;
    let mut model = Model::new(bench)?.may_fail();
    model.run(&[&opened], 200, 8)?;
    let touched = first.records().len();
    if bench.suite.survives_base_errors {
        ensure!(
            model.failures == 0,
            "{} I/Os failed although the device survives base errors",
            model.failures
        );
    } else {
        ensure!(model.failures > 0 || touched < 20, "no I/O failed although its base failed one in five");
    }
    first.set_plan(FaultPlan::none());
    if !bench.suite.survives_base_errors {
        // A redundant device may have dropped the failed base; a simple one must go on.
        model.run(&[&opened], 50, 8)?;
    }
    opened.close()?;
    Ok(Pass::Ok)
}

/// While a base is absent I/O waits; when it is back, everything goes on.
pub(super) fn base_absent(bench: &Bench) -> Verdict {
    let Some(first) = bench.bases.first() else { return Ok(no_bases()) };
    let opened = bench.open()?;
    first.set_absent(0);
    let ios = bench.load(&opened, 8)?;
    bench.host.advance(Duration::from_millis(10));
    first.set_present();
    for completion in bench.wait_all(&ios)? {
        let status = completion.status;
        ensure!(status.is_success(), "an I/O that waited for an absent base ended with {status:?}");
    }
    opened.close()?;
    bench.works(&bench.name)?;
    Ok(Pass::Ok)
}

/// On bases that only read and write, every operation the device still declares works.
pub(super) fn base_with_few_operations(bench: &Bench) -> Verdict {
    if bench.bases.is_empty() {
        return Ok(no_bases());
    }
    for base in &bench.bases {
        base.remove();
        bench.wait_gone(base.name())?;
    }
    for spec in &bench.suite.bases {
        bench.host.add_base(spec.clone().io_types(&[Op::READ, Op::WRITE]).io_flags(0));
    }
    match bench.create_device() {
        Ok(names) if names.contains(&bench.name) => super::io::declared_operations(bench),
        Ok(names) if bench.suite.waits_for_bases || !names.is_empty() => Ok(Pass::Ok),
        Ok(_) => Err("create succeeded and registered no device".to_owned()),
        Err(error) => super::bench::explains_itself(&error),
    }
}

const RESIZE_DEADLINE: Duration = Duration::from_secs(10);
