//! Writes into memory so large that they go past the cache: they complete when
//! other threads see them, several at once, and none is left waiting.
#![cfg(target_arch = "x86_64")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use tenon_sdk::IoStatus;
use tenon_testkit::{Access, Channel, Conformance, Descriptor, FakeHost, Io, Request, bdev_conformance};

const PARAMS: &str = r#"{"name":"m0","size":"64MiB","block_size":512}"#;
const OTHER: &str = r#"{"name":"m1","size":"64MiB","block_size":512}"#;
/// 4 KiB.
const BLOCKS: u64 = 8;
const BYTES: usize = 4096;
/// Writes that are waited for at once.
const TOGETHER: u64 = 15;

fn device() -> (FakeHost, Descriptor, Channel) {
    let host = FakeHost::new(1);
    let module = host.load(bdev_malloc::plugin, "{}").unwrap();
    host.create(module, PARAMS).unwrap();
    host.create(module, OTHER).unwrap();
    let (descriptor, channel) = open(&host, "m0");
    (host, descriptor, channel)
}

fn open(host: &FakeHost, name: &str) -> (Descriptor, Channel) {
    let descriptor = host.open(name, Access::Write).unwrap();
    let channel = descriptor.channel(0).unwrap();
    (descriptor, channel)
}

fn write(channel: &Channel, nth: u64) -> Io {
    channel.submit(Request::write(nth * BLOCKS, BLOCKS, vec![nth as u8 + 1; BYTES]))
}

fn finish(host: FakeHost, descriptor: &Descriptor, channel: &Channel) {
    channel.put();
    descriptor.close();
    let violations = host.finish();
    assert!(violations.is_empty(), "{violations:?}");
}

#[test]
fn writes_that_are_held_complete_in_order_when_the_turn_is_over() {
    let (host, descriptor, channel) = device();
    let writes: Vec<Io> = (0..5).map(|nth| write(&channel, nth)).collect();
    assert!(writes.iter().all(|io| !io.is_done()));
    assert_eq!(host.wait(&channel.submit(Request::read(0, BLOCKS))).data, vec![1; BYTES]);
    host.advance(Duration::from_nanos(1));
    for (nth, io) in writes.iter().enumerate() {
        assert_eq!(io.completion().unwrap().status, IoStatus::SUCCESS);
        let read = host.wait(&channel.submit(Request::read(nth as u64 * BLOCKS, BLOCKS)));
        assert_eq!(read.data, vec![nth as u8 + 1; BYTES]);
    }
    finish(host, &descriptor, &channel);
}

#[test]
fn as_many_as_are_waited_for_together_complete_when_one_more_comes() {
    let (host, descriptor, channel) = device();
    let writes: Vec<Io> = (0..TOGETHER).map(|nth| write(&channel, nth)).collect();
    assert!(writes.iter().all(|io| !io.is_done()));
    let more = write(&channel, TOGETHER);
    assert!(writes.iter().all(|io| io.completion().unwrap().status == IoStatus::SUCCESS));
    assert!(!more.is_done());
    assert_eq!(host.wait(&more).status, IoStatus::SUCCESS);
    finish(host, &descriptor, &channel);
}

#[test]
fn a_wait_for_one_device_is_a_wait_for_the_others_of_its_thread() {
    let (host, descriptor, channel) = device();
    let (other, others) = open(&host, "m1");
    let held: Vec<Io> = (0..3).map(|nth| write(&channel, nth)).collect();
    let writes: Vec<Io> = (0..=TOGETHER).map(|nth| write(&others, nth)).collect();
    assert!(held.iter().all(|io| !io.is_done()), "this device has not noticed yet");
    let next = write(&channel, 3);
    assert!(held.iter().all(|io| io.completion().unwrap().status == IoStatus::SUCCESS));
    assert!(!next.is_done(), "it was stored after the wait");
    for io in writes.iter().chain([&next]) {
        assert_eq!(host.wait(io).status, IoStatus::SUCCESS);
    }
    others.put();
    other.close();
    finish(host, &descriptor, &channel);
}

#[test]
fn a_write_that_is_long_or_goes_through_the_cache_completes_at_once() {
    let (host, descriptor, channel) = device();
    for blocks in [1, 64] {
        let io = channel.submit(Request::write(0, blocks, vec![7; blocks as usize * 512]));
        assert_eq!(io.completion().unwrap().status, IoStatus::SUCCESS);
    }
    finish(host, &descriptor, &channel);
}

#[test]
fn an_abort_leaves_a_write_to_complete_with_success() {
    let (host, descriptor, channel) = device();
    let io = write(&channel, 0);
    assert_ne!(channel.abort(&io), 0, "it is in memory already");
    assert_eq!(host.wait(&io).status, IoStatus::SUCCESS);
    finish(host, &descriptor, &channel);
}

#[test]
fn conforms_to_the_bdev_contract() {
    bdev_conformance(bdev_malloc::plugin, Conformance::new(PARAMS));
}
