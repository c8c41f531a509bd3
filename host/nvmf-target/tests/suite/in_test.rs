//! What only a transport inside the test can bring about: options no transport
//! of ours has, damaged data, a second target in the process after one that died.

use std::path::Path;

use nvme_spec::completion::StatusField;
use nvme_spec::identify::IdentifyController;
use nvme_spec::opcode::AdminOpcode;
use nvme_spec::status::StatusCode;
use zerocopy::FromBytes;

use crate::reservations::{OK, acquire, add, check, folder, keeping, may, register, report};
use crate::rig::{World, admin, read, write};
use crate::target::pattern;
use crate::transport;

#[test]
fn a_transport_says_which_keep_alive_time_outs_there_are() {
    transport::OPTIONS.with(|options| options.set(r#"{"kas":20,"min_kato":3000}"#));
    let world = World::serving(23, &[]);
    let timeout_of = |kato_ms| {
        let host = world.session_of("a", 1, kato_ms);
        let subsystems = world.on(|world| world.target.subsystems());
        let controllers = subsystems.iter().flat_map(|subsystem| &subsystem.controllers);
        let mut own = controllers.filter(|controller| controller.cntlid == host.cntlid);
        own.next().expect("connected").keep_alive_timeout_ms
    };
    assert_eq!([0, 1, 4000, 4001].map(timeout_of), [0, 4000, 4000, 6000]);
    let host = world.session("a", 1);
    let id = world.command(host.admin, admin(AdminOpcode::IDENTIFY, 0, 1, 0, 4096), vec![]).data;
    assert_eq!(IdentifyController::read_from_bytes(&id).expect("4096 bytes").kas.get(), 20);
    world.finish();
}

#[test]
fn damaged_data_fails_its_command_and_nothing_else() {
    let world = World::serving(1, &[("m0", 64)]);
    let session = world.session("a", 1);
    let (sqe, data) = write(1, 0, &pattern(3, 4096));
    let transient = StatusField::new(StatusCode::TRANSIENT_TRANSPORT_ERROR);
    for (status, expected) in [
        (transient.0.get(), StatusCode::TRANSIENT_TRANSPORT_ERROR),
        // Nobody is told that a command succeeded that was not run.
        (0, StatusCode::INTERNAL_ERROR),
    ] {
        let reply =
            world.on_queue(session.queues[0], || session.queues[0].send_damaged(sqe, data.clone(), status));
        let answer = reply.borrow_mut().take().expect("answered at once");
        assert_eq!(answer.cqe.status.code(), expected);
    }
    let untouched = world.command(session.queues[0], read(1, 0, 8), Vec::new());
    assert_eq!(untouched.data, [0; 4096]);
    world.finish();
}

#[test]
fn what_is_to_persist_outlives_the_target_and_nothing_else_does() {
    let folder = folder("persist");
    let own = folder.clone();
    std::thread::spawn(move || die_holding(&own)).join().expect("it ends");

    let world = keeping(7, &folder);
    add(&world).expect("added");
    let hosts = [1, 2].map(|host| world.session_of_host("a", host));
    may(&world, &hosts[0], true, true);
    may(&world, &hosts[1], false, false);
    let held = world.command(hosts[1].queues[0], report(64 * 3), vec![]).data;
    assert_eq!((held[4], held[5], held[9]), (2, 2, 1));
    let forget = admin(AdminOpcode::SET_FEATURES, 1, 0x83, 0, 0);
    assert_eq!(world.status(hosts[1].admin, forget, vec![]), OK);
    may(&world, &hosts[1], false, false);
    world.finish();

    let world = keeping(8, &folder);
    add(&world).expect("added");
    let host = world.session_of_host("a", 2);
    may(&world, &host, true, true);
    world.finish();
}

/// Host 1 holds a reservation that persists, host 2 is registered, and the target ends without a farewell.
fn die_holding(folder: &Path) {
    let world = keeping(6, folder);
    add(&world).expect("added");
    let hosts = [1, 2].map(|host| world.session_of_host("a", host));
    let get = admin(AdminOpcode::GET_FEATURES, 1, 0x83, 0, 0);
    assert_eq!(world.command(hosts[0].admin, get, vec![]).cqe.dw0.get(), 0);
    check(&world, &hosts[0], register(0b11 << 30, 0, 10), OK);
    check(&world, &hosts[1], register(0, 0, 20), OK);
    check(&world, &hosts[0], acquire(0, 2, 10, 0), OK);
    assert_eq!(world.command(hosts[0].admin, get, vec![]).cqe.dw0.get(), 1);
    std::mem::forget(world);
}
