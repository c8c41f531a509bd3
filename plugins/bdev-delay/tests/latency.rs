//! What a delay device promises beyond the contract: how late I/O completes, and
//! that nobody has to wait for it who must not.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use tenon_sdk::{IoStatus, abi::Op};
use tenon_testkit::{Access, BaseSpec, Channel, Descriptor, FakeHost, Request, TestBase};

const HOUR_US: u64 = 3_600_000_000;

struct Rig {
    host: FakeHost,
    base: TestBase,
    descriptor: Descriptor,
    channel: Channel,
}

/// A device `d0` with these parameters besides names, open on reactor 0.
fn rig(latencies: &str) -> Rig {
    let host = FakeHost::new(1);
    let base = host.add_base(BaseSpec::new("b0", 512, 32768));
    let module = host.load(bdev_delay::plugin, "{}").unwrap();
    host.create(module, &format!(r#"{{"name":"d0","base":"b0",{latencies}}}"#)).unwrap();
    let descriptor = host.open("d0", Access::Write).unwrap();
    let channel = descriptor.channel(0).unwrap();
    Rig { host, base, descriptor, channel }
}

impl Rig {
    fn close(&self) {
        self.channel.put();
        self.descriptor.close();
    }

    fn took_us(&self, request: Request) -> u64 {
        let start_ns = self.host.now_ns();
        assert!(self.host.wait(&self.channel.submit(request)).status.is_success());
        (self.host.now_ns() - start_ns) / 1000
    }
}

#[track_caller]
fn assert_about(found_us: u64, expected_us: u64) {
    // The virtual clock moves by up to a millisecond while a reactor is awake.
    assert!((expected_us..expected_us + 1100).contains(&found_us), "{found_us} us instead of {expected_us}");
}

#[test]
fn reads_and_writes_take_as_long_as_told_and_the_rest_as_long_as_the_base() {
    let rig = rig(r#""avg_read_latency_us":5000,"avg_write_latency_us":"20ms""#);
    assert_about(rig.took_us(Request::read(0, 8)), 5000);
    assert_about(rig.took_us(Request::write(0, 1, vec![1; 512])), 20_000);
    assert_about(rig.took_us(Request::write_zeroes(0, 8)), 20_000);
    assert_about(rig.took_us(Request::compare(0, 1, vec![0; 512])), 5000);
    assert_about(rig.took_us(Request::unmap(0, 8)), 0);
    assert_about(rig.took_us(Request::flush()), 0);
}

#[test]
fn one_io_in_100_is_slow() {
    let rig = rig(r#""avg_read_latency_us":100,"p99_read_latency_us":50000"#);
    let slow = (0..2000).filter(|nth| rig.took_us(Request::read(*nth, 1)) >= 50_000).count();
    assert!((8..40).contains(&slow), "{slow} of 2000");
}

#[test]
fn a_new_latency_holds_for_io_that_waits_and_is_saved() {
    let rig = rig(&format!(r#""avg_read_latency_us":{HOUR_US}"#));
    let io = rig.channel.submit(Request::read(0, 1));
    rig.host.advance(Duration::from_secs(1));
    assert!(!io.is_done());
    for class in ["avg_read", "p99_read"] {
        let params = format!(r#"{{"delay_bdev_name":"d0","latency_type":"{class}","latency_us":2000000}}"#);
        assert_eq!(rig.host.rpc("bdev_delay_update_latency", &params).unwrap(), "true");
    }
    rig.host.advance(Duration::from_millis(500));
    assert!(!io.is_done());
    rig.host.advance(Duration::from_secs(1));
    assert!(io.is_done());
    let saved = rig.host.config("d0").unwrap();
    assert!(saved.contains(r#""avg_read_latency_us":2000000"#), "{saved}");
}

#[test]
fn a_reload_changes_latencies_and_nothing_else() {
    let rig = rig(r#""avg_read_latency_us":5000"#);
    rig.host.update("d0", r#"{"name":"d0","base":"b0","avg_read_latency_us":9000}"#).unwrap();
    assert_about(rig.took_us(Request::read(0, 8)), 9000);
    let error = rig.host.update("d0", r#"{"name":"d0","base":"b1"}"#).unwrap_err();
    assert_eq!(error.reason, "only latencies can change in place");
}

#[test]
fn an_abort_completes_what_waits_with_the_result_of_the_base() {
    let rig = rig(&format!(r#""avg_write_latency_us":{HOUR_US}"#));
    let io = rig.channel.submit(Request::write(0, 1, vec![7; 512]));
    rig.host.settle();
    assert!(!io.is_done());
    assert_eq!(rig.channel.abort(&io), 0);
    assert_eq!(rig.host.wait(&io).status, IoStatus::SUCCESS);
    assert_eq!(rig.base.bytes(0, 1), vec![7; 512]);
}

#[test]
fn a_device_that_is_deleted_does_not_wait_for_its_latency() {
    let rig = rig(&format!(r#""avg_read_latency_us":{HOUR_US}"#));
    let io = rig.channel.submit(Request::read(0, 1));
    rig.host.settle();
    let deleted = rig.host.start_delete("d0");
    assert!(rig.host.run_until(Duration::from_secs(1), || io.is_done()));
    rig.close();
    rig.host.wait_for(&deleted).unwrap();
}

#[test]
fn a_base_that_goes_does_not_wait_for_the_latency() {
    let rig = rig(&format!(r#""avg_read_latency_us":{HOUR_US}"#));
    let io = rig.channel.submit(Request::new(Op::READ, 0, 1));
    rig.host.settle();
    rig.base.remove();
    assert!(rig.host.run_until(Duration::from_millis(10), || io.is_done()));
    rig.close();
    assert!(rig.host.run_until(Duration::from_secs(5), || rig.base.is_gone()));
}
