//! Commands that consumers and operators give themselves: admin and I/O commands,
//! reservations, copies.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE;
use serde_json::{Value, json};
use tenon_abi::{IoStatus, Op};
use tenon_nvmf_target::AnaState;

use crate::command::Opened;
use crate::world::{ONE, World, for_seeds};

/// Opcodes.
const READ: u8 = 0x02;
const WRITE: u8 = 0x01;
const IDENTIFY: u8 = 0x06;
const RESERVATION_REGISTER: u8 = 0x0d;
const RESERVATION_REPORT: u8 = 0x0e;
const RESERVATION_ACQUIRE: u8 = 0x11;
const RESERVATION_RELEASE: u8 = 0x15;

/// Two paths to one namespace, which is opened.
fn opened(world: &World) -> Opened {
    world.device("m0", 2048);
    world.subsystem(&["a", "b"]);
    world.add_namespace(7, "m0", ONE);
    world.attach_all(&["a", "b"]);
    let opened = Opened::new(world, "nvme0n7");
    world.advance(Duration::from_millis(10));
    opened
}

fn good(world: &World, command: &crate::command::Command) {
    assert_eq!(command.wait(world), IoStatus::SUCCESS);
}

#[test]
fn an_nvme_command_of_a_consumer_reads_and_writes_its_namespace() {
    for_seeds(10, |world| {
        let device = opened(world);
        let text = vec![0x5a; 1024];
        // Two blocks from block 9 on; the namespace's number is filled in.
        let write = device.nvme(world, Op::NVME_IO, WRITE, [9, 0, 1], text.clone());
        good(world, &write);
        let read = device.nvme(world, Op::NVME_IO, READ, [9, 0, 1], vec![0; 1024]);
        good(world, &read);
        assert_eq!(read.payload, text);
        let read = device.transfer(world, Op::READ, 9, vec![0; 1024]);
        good(world, &read);
        assert_eq!(read.payload, text, "it is the same as any other I/O's");
        device.close(world);
    });
}

#[test]
fn what_a_controller_says_to_a_consumers_command_is_told_as_it_is() {
    for_seeds(10, |world| {
        let device = opened(world);
        let beyond = device.nvme(world, Op::NVME_IO, READ, [4096, 0, 0], vec![0; 512]);
        assert_eq!(beyond.wait(world), IoStatus::LBA_OUT_OF_RANGE);
        assert_eq!(beyond.cqe[3] >> 17 & 0x7ff, 0x80, "status of the completion entry");
        let unknown = device.nvme(world, Op::NVME_IO, 0x84, [0; 3], Vec::new());
        assert_eq!(unknown.wait(world), IoStatus::nvme(0, 0x01));
        device.close(world);
    });
}

#[test]
fn an_nvme_command_that_cannot_be_passed_on_is_refused() {
    for_seeds(1, |world| {
        let device = opened(world);
        let invalid = |op, opcode, payload| {
            let command = device.nvme(world, op, opcode, [0; 3], payload);
            assert_eq!(command.wait(world), IoStatus::INVALID, "{op:?} {opcode:#x}");
        };
        invalid(Op::NVME_IO, 0x7f, Vec::new());
        // Data both ways.
        invalid(Op::NVME_IO, 0x83, vec![0; 512]);
        invalid(Op::NVME_ADMIN, 0x7f, Vec::new());
        // Keep alive and event requests are the host's own.
        invalid(Op::NVME_ADMIN, 0x18, Vec::new());
        invalid(Op::NVME_ADMIN, 0x0c, Vec::new());
        device.close(world);
    });
}

#[test]
fn an_admin_command_of_a_consumer_is_answered_with_its_data() {
    for_seeds(10, |world| {
        let device = opened(world);
        // Identify controller; two at once, answered each with its own.
        let one = device.nvme(world, Op::NVME_ADMIN, IDENTIFY, [1, 0, 0], vec![0; 4096]);
        let bad = device.nvme(world, Op::NVME_ADMIN, IDENTIFY, [0xff, 0, 0], vec![0; 4096]);
        let two = device.nvme(world, Op::NVME_ADMIN, IDENTIFY, [1, 0, 0], vec![0; 4096]);
        good(world, &one);
        good(world, &two);
        assert_eq!(bad.wait(world), IoStatus::nvme(0, 0x02));
        assert!(one.payload.windows(5).any(|bytes| bytes == b"Tenon"), "it tells its model");
        assert_eq!(one.payload, two.payload);
        device.close(world);
    });
}

/// A command whose controller dies is carried out, lost, or refused by it: aborted with its queue, or too late.
#[track_caller]
fn check_end(status: IoStatus, lost: (u8, u8)) {
    let is_known = status.as_nvme().is_some_and(|code| [(0, 0x08), (0, 0x0c), lost].contains(&code));
    assert!(status == IoStatus::SUCCESS || is_known, "{status:?}");
}

#[test]
fn an_admin_command_of_a_consumer_ends_when_no_controller_hears_it() {
    for_seeds(20, |world| {
        let device = opened(world);
        let command = device.nvme(world, Op::NVME_ADMIN, IDENTIFY, [1, 0, 0], vec![0; 4096]);
        world.steps(world.roll(60));
        world.kill_subsystem();
        check_end(command.wait(world), (3, 0x70));
        let command = device.nvme(world, Op::NVME_ADMIN, IDENTIFY, [1, 0, 0], vec![0; 4096]);
        assert_eq!(command.wait(world).as_nvme(), Some((3, 0x70)), "no path");
        device.close(world);
    });
}

#[test]
fn a_consumers_command_is_tried_again_only_if_it_was_not_begun() {
    for_seeds(20, |world| {
        let device = opened(world);
        world.ana("a", AnaState::INACCESSIBLE);
        // The path's state is found out by this very command.
        let read = device.nvme(world, Op::NVME_IO, READ, [0, 0, 0], vec![0xff; 512]);
        good(world, &read);
        assert_eq!(read.payload, [0; 512]);
        let write = device.nvme(world, Op::NVME_IO, WRITE, [0, 0, 0], vec![1; 512]);
        world.steps(world.roll(4));
        world.kill_subsystem();
        check_end(write.wait(world), (3, 0x71));
        device.close(world);
    });
}

#[test]
fn reservations_are_the_controllers_and_hold_for_its_hosts() {
    for_seeds(10, |world| {
        let device = opened(world);
        let other = json!({ "name": "other", "hostnqn": "nqn.2026-01.io.tenon:other", "max_bdevs": 0 });
        world.attach("a", other).expect("attaches");
        // The same namespace is no second device, but its commands are another host's.
        let stranger = |opcode, more: Value| {
            let told = send(world, "io", opcode, [0; 3], with(more, json!({ "name": "other" })));
            let cpl = URL_SAFE.decode(told.expect("sent")["cpl"].as_str().expect("a text")).expect("base64");
            u16::from_le_bytes([cpl[14], cpl[15]]) >> 1 & 0x7ff
        };
        let writes = json!({ "data_direction": "h2c", "data": URL_SAFE.encode([2; 512]) });
        let key = 0xfeed_u64.to_le_bytes();
        let keys = |old: [u8; 8], new: [u8; 8]| [old, new].concat();
        good(world, &device.nvme(world, Op::NVME_IO, RESERVATION_REGISTER, [0; 3], keys([0; 8], key)));
        let exclusive = 1 << 8;
        let acquire =
            device.nvme(world, Op::NVME_IO, RESERVATION_ACQUIRE, [exclusive, 0, 0], keys(key, [0; 8]));
        good(world, &acquire);
        let report = device.nvme(world, Op::NVME_IO, RESERVATION_REPORT, [63, 1, 0], vec![0; 256]);
        good(world, &report);
        assert_eq!(
            (report.payload[4], report.payload[5]),
            (1, 2),
            "write exclusive; both controllers are the host's"
        );
        // By either path it is the same host.
        world.ana("a", AnaState::INACCESSIBLE);
        world.advance(Duration::from_millis(50));
        good(world, &device.transfer(world, Op::WRITE, 0, vec![1; 512]));
        world.ana("a", AnaState::OPTIMIZED);
        assert_eq!(stranger(READ, json!({ "data_len": 512 })), 0);
        assert_eq!(stranger(WRITE, writes.clone()), 0x83, "reservation conflict");
        let release = device.nvme(world, Op::NVME_IO, RESERVATION_RELEASE, [exclusive, 0, 0], key.to_vec());
        good(world, &release);
        assert_eq!(stranger(WRITE, writes), 0);
        device.close(world);
    });
}

#[test]
fn a_copy_is_the_controllers_work_however_many_its_sources() {
    for_seeds(10, |world| {
        let device = opened(world);
        for block in 0..32 {
            good(world, &device.transfer(world, Op::WRITE, block, vec![block as u8 + 1; 512]));
        }
        let sources: Vec<(u64, u64)> = (0..11).map(|at| (at * 2, 1 + at % 2)).collect();
        good(world, &device.copy(world, 100, &sources));
        let expected: Vec<u8> = sources
            .iter()
            .flat_map(|(offset, count)| *offset..offset + count)
            .flat_map(|block| vec![block as u8 + 1; 512])
            .collect();
        let read = device.transfer(world, Op::READ, 100, vec![0; expected.len()]);
        good(world, &read);
        assert_eq!(read.payload, expected);
        // Ends in the middle are those of the controller.
        let command = device.copy(world, 200, &[(0, 1), (5000, 1)]);
        assert_eq!(command.wait(world), IoStatus::LBA_OUT_OF_RANGE);
        device.close(world);
    });
}

/// Parameters with some others instead or besides.
fn with(mut params: Value, more: Value) -> Value {
    params.as_object_mut().expect("an object").extend(more.as_object().cloned().unwrap_or_default());
    params
}

/// A command of an operator: its opcode and dwords 10 to 12.
fn send(world: &World, cmd_type: &str, opcode: u8, dwords: [u32; 3], more: Value) -> Result<Value, String> {
    let mut sqe = [0; 64];
    (sqe[0], sqe[4]) = (opcode, 7);
    for (at, dword) in dwords.iter().enumerate() {
        sqe[40 + at * 4..][..4].copy_from_slice(&dword.to_le_bytes());
    }
    let params = json!({
        "name": "nvme0", "cmd_type": cmd_type, "data_direction": "c2h", "cmdbuf": URL_SAFE.encode(sqe),
    });
    world.rpc("bdev_nvme_send_cmd", with(params, more)).map_err(|error| error.to_string())
}

#[test]
fn an_operator_sends_io_commands_without_any_consumer() {
    for_seeds(10, |world| {
        world.device("m0", 2048);
        world.subsystem(&["a"]);
        world.add_namespace(7, "m0", ONE);
        world.attach("a", json!({})).expect("attaches");
        let text = URL_SAFE.encode([0x42; 512]);
        let data = json!({ "data_direction": "h2c", "data": text });
        let written = send(world, "io", WRITE, [3, 0, 0], data).expect("sent");
        assert!(written["data"].is_null());
        let read = send(world, "io", READ, [3, 0, 0], json!({ "data_len": 512 })).expect("sent");
        assert_eq!(read["data"], text);
        // The completion entry has the status; the answer is no error of ours.
        let beyond = send(world, "io", READ, [4096, 0, 0], json!({ "data_len": 512 })).expect("sent");
        assert_ne!(beyond["cpl"], read["cpl"]);
        let error = send(world, "io", 0x7f, [0; 3], json!({})).expect_err("refused");
        assert!(error.contains("fabrics commands"), "{error}");
        let error = send(world, "io", READ, [0; 3], json!({ "cntlid": 0xfff0 })).expect_err("refused");
        assert!(error.contains("nvme0"), "{error}");
    });
}

#[test]
fn an_operators_io_command_that_is_not_answered_ends_after_its_time() {
    for_seeds(10, |world| {
        world.device("m0", 2048);
        let latency = 60_000_000;
        let params = json!({
            "name": "d0", "base": "m0", "avg_read_latency_us": latency, "p99_read_latency_us": latency,
            "avg_write_latency_us": 0, "p99_write_latency_us": 0,
        });
        world.wait(|world, reply| world.core.create("delay", &params, reply)).expect("device");
        world.subsystem(&["a"]);
        world.add_namespace(7, "d0", ONE);
        world.attach("a", json!({})).expect("attaches");
        let begin_ns = world.now_ns();
        let more = json!({ "data_len": 512, "timeout_ms": 500 });
        let error = send(world, "io", READ, [0; 3], more).expect_err("late");
        assert!(error.contains("not answered"), "{error}");
        let took = Duration::from_nanos(world.now_ns() - begin_ns);
        assert!((500..600).contains(&took.as_millis()), "{took:?}");
        world.serves_within(70);
    });
}
