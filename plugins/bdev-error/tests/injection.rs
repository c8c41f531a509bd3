//! What an error device does to I/O, and that what hangs never hangs for ever.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use tenon_sdk::IoStatus;
use tenon_testkit::{Access, BaseSpec, Channel, Completion, Descriptor, FakeHost, Request, TestBase};

struct Rig {
    host: FakeHost,
    base: TestBase,
    descriptor: Descriptor,
    channel: Channel,
}

/// A device `EE_b0`, open on reactor 0.
fn rig() -> Rig {
    let host = FakeHost::new(1);
    let base = host.add_base(BaseSpec::new("b0", 512, 32768));
    let module = host.load(bdev_error::plugin, "{}").unwrap();
    assert_eq!(host.create(module, r#"{"base_name":"b0"}"#).unwrap(), ["EE_b0"]);
    let descriptor = host.open("EE_b0", Access::Write).unwrap();
    let channel = descriptor.channel(0).unwrap();
    Rig { host, base, descriptor, channel }
}

impl Rig {
    fn close(&self) {
        self.channel.put();
        self.descriptor.close();
    }

    fn inject(&self, fields: &str) {
        let params = format!(r#"{{"name":"EE_b0",{fields}}}"#);
        assert_eq!(self.host.rpc("bdev_error_inject_error", &params).unwrap(), "true");
    }

    fn run(&self, request: Request) -> Completion {
        self.host.wait(&self.channel.submit(request))
    }
}

#[test]
fn so_many_fail_and_never_reach_the_base() {
    let rig = rig();
    rig.inject(r#""io_type":"write","error_type":"failure","num":2"#);
    let write = || rig.run(Request::write(4, 1, vec![1; 512])).status;
    assert_eq!([write(), write()], [IoStatus::IO_ERROR; 2]);
    assert!(rig.base.records().is_empty());
    assert!(write().is_success());
    assert!(rig.run(Request::read(4, 1)).status.is_success());
}

#[test]
fn what_hangs_ends_with_an_abort() {
    let rig = rig();
    rig.inject(r#""io_type":"read","error_type":"pending""#);
    let io = rig.channel.submit(Request::read(0, 1));
    rig.host.advance(Duration::from_secs(60));
    assert!(!io.is_done());
    assert_eq!(rig.channel.abort(&io), 0);
    assert_eq!(rig.host.wait(&io).status, IoStatus::ABORTED);
}

#[test]
fn what_hangs_ends_when_the_device_is_deleted() {
    let rig = rig();
    rig.inject(r#""io_type":"all","error_type":"pending","num":4294967295"#);
    let io = rig.channel.submit(Request::flush());
    rig.host.settle();
    let deleted = rig.host.start_delete("EE_b0");
    assert!(rig.host.run_until(Duration::from_secs(1), || io.is_done()));
    assert_eq!(rig.host.wait(&io).status, IoStatus::ABORTED);
    rig.close();
    rig.host.wait_for(&deleted).unwrap();
}

#[test]
fn what_hangs_ends_when_the_base_goes() {
    let rig = rig();
    rig.inject(r#""io_type":"unmap","error_type":"pending""#);
    let io = rig.channel.submit(Request::unmap(0, 8));
    rig.host.settle();
    rig.base.remove();
    assert!(rig.host.run_until(Duration::from_secs(1), || io.is_done()));
    rig.close();
    assert!(rig.host.run_until(Duration::from_secs(5), || rig.base.is_gone()));
}

#[test]
fn a_read_returns_a_wrong_byte_and_the_base_keeps_the_right_one() {
    let rig = rig();
    rig.base.write_bytes(0, &[0x11; 2048]);
    rig.inject(r#""io_type":"read","error_type":"corrupt_data","corrupt_offset":700,"corrupt_value":15"#);
    let read = || rig.run(Request::read(0, 4).pieces(&[512, 100, 1436]));
    let (first, second) = (read(), read());
    let mut expected = vec![0x11; 2048];
    assert_eq!(second.data, expected);
    expected[700] = 0x1e;
    assert_eq!(first.data, expected);
    assert_eq!(rig.base.bytes(0, 4), [0x11; 2048]);
}

#[test]
fn a_write_leaves_a_wrong_byte_on_the_base_and_its_payload_alone() {
    let rig = rig();
    rig.inject(r#""io_type":"all","error_type":"corrupt_data","corrupt_offset":1025"#);
    let payload: Vec<u8> = (0..2048).map(|at| (at % 251) as u8).collect();
    // The host under the test notices a payload that was changed.
    assert!(rig.run(Request::write(8, 4, payload.clone()).pieces(&[1000, 1048])).status.is_success());
    let mut expected = payload;
    expected[1025] ^= 255;
    assert_eq!(rig.base.bytes(8, 4), expected);
}

#[test]
fn without_memory_the_host_tries_again() {
    let rig = rig();
    rig.inject(r#""io_type":"read","error_type":"nomem","num":3"#);
    assert!(rig.run(Request::read(0, 1)).status.is_success());
    let shown = rig.host.driver_specific("EE_b0").unwrap();
    assert!(shown.contains(r#""nomem":3"#), "{shown}");
}

#[test]
fn clear_ends_every_injection_and_a_failed_reset_is_reported() {
    let rig = rig();
    rig.inject(r#""io_type":"all","error_type":"failure","num":4294967295"#);
    rig.inject(r#""io_type":"reset","error_type":"failure""#);
    assert_eq!(rig.run(Request::reset()).status, IoStatus::IO_ERROR);
    assert_eq!(rig.run(Request::flush()).status, IoStatus::IO_ERROR);
    rig.inject(r#""io_type":"clear""#);
    assert!(rig.run(Request::flush()).status.is_success());
    assert!(rig.run(Request::reset()).status.is_success());
}

#[test]
fn injections_come_from_the_table_are_saved_and_reloaded() {
    let host = FakeHost::new(1);
    host.add_base(BaseSpec::new("b0", 512, 32768));
    let module = host.load(bdev_error::plugin, "{}").unwrap();
    let table = r#"{"base":"b0","name":"e0","inject":[{"io_type":"read","error_type":"failure","num":3}]}"#;
    host.create(module, table).unwrap();
    assert_eq!(host.once("e0", Request::read(0, 1)).unwrap().status, IoStatus::IO_ERROR);
    let saved = host.config("e0").unwrap();
    assert!(saved.contains(r#""inject":[{"error_type":"failure","io_type":"read","num":2}]"#), "{saved}");
    host.update("e0", r#"{"base":"b0","name":"e0"}"#).unwrap();
    assert!(host.once("e0", Request::read(0, 1)).unwrap().status.is_success());
    let error = host.update("e0", r#"{"base":"b0"}"#).unwrap_err();
    assert_eq!(error.reason, "only what is injected can change in place");
}
