//! Hosts that break the protocol, a hundred thousand times if asked to, beside one that does not.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::fd::OwnedFd;

use rustix::net::{AddressFamily, SocketType, bind, connect, socket};
use serde_json::json;
use tenon_tests::{PATIENCE, wait_for};

use crate::speaker::pattern;
use crate::{PLAIN, serve};

/// Connects from one of many addresses of this machine: each has so many ports only, and a closed connection
/// keeps its own for a minute.
fn dial(address: SocketAddr, number: u64) -> TcpStream {
    let own: SocketAddr = (Ipv4Addr::new(127, 0, 1, (number / 10_000) as u8), 0).into();
    let fd: OwnedFd = socket(AddressFamily::INET, SocketType::STREAM, None).expect("a socket");
    bind(&fd, &own).expect("loopback");
    connect(&fd, &address).expect("the target listens");
    let stream = TcpStream::from(fd);
    stream.set_read_timeout(Some(PATIENCE)).expect("a time");
    stream
}

/// A PDU that is wrong, or is most of the time, in a way of its own per number.
fn malformed(number: u64) -> Vec<u8> {
    let noise = pattern(number, 400);
    let byte = |at: usize| usize::from(noise[at]);
    // A capsule with Connect's data, an H2CData with data: then one byte of the header is another.
    let mut capsule = [&[4, 0, 72, 72, 72, 4, 0, 0][..], &[0; 64], &[0; 1024]].concat();
    (capsule[8], capsule[12]) = (0x7f, 1);
    let mut data = [&[6, 4, 24, 24, 24 + 64, 0, 0, 0][..], &[0; 16], &[0; 64]].concat();
    data[16] = 64;
    match number % 8 {
        0 => noise,
        // For a tag that was never given.
        1 => data,
        2 => {
            data[byte(0) % 24] = noise[1];
            data
        }
        3 => {
            capsule[byte(0) % 72] = noise[1];
            capsule
        }
        // Longer than capsules may be.
        4 => vec![4, 0, 72, 72, 255, 255, 255, 0],
        // A length of 0 must not loop.
        5 => [&[4, 0, 72, 0, 0, 0, 0, 0], &noise[..]].concat(),
        // A second handshake.
        6 => ic_req().to_vec(),
        // A type, flags and lengths by chance, and the rest.
        _ => [&noise[..8], &[0; 200]].concat(),
    }
}

fn ic_req() -> [u8; 128] {
    let mut request = [0; 128];
    (request[2], request[4]) = (128, 128);
    request
}

/// Shakes hands, or not, says something malformed and reads until the target closes.
fn break_protocol(address: SocketAddr, number: u64) {
    let mut stream = dial(address, number);
    let mut bytes = malformed(number);
    if !number.is_multiple_of(16) {
        bytes.splice(0..0, ic_req());
    }
    // The target may have ended the connection before all of it was sent.
    let _ = stream.write_all(&bytes);
    let _ = stream.shutdown(std::net::Shutdown::Write);
    while stream.read(&mut [0; 512]).is_ok_and(|count| count > 0) {}
}

#[test]
fn malformed_pdus_end_their_connection_and_disturb_no_other() {
    let mut served = serve(json!({}));
    let (_admin, mut io) = served.session(PLAIN);
    let address = served.address;
    let wanted = std::env::var("TENON_TEST_MALFORMED").ok().and_then(|text| text.parse().ok());
    let count: u64 = wanted.unwrap_or(MALFORMED);
    let hostile: Vec<_> = (0..2)
        .map(|half| {
            std::thread::spawn(move || (0..count / 2).for_each(|n| break_protocol(address, 2 * n + half)))
        })
        .collect();
    let mut rounds = 0;
    while hostile.iter().any(|thread| !thread.is_finished()) || rounds < 200 {
        let data = pattern(rounds, 4096);
        io.write(rounds % 1000 * 8, &data);
        assert!(io.read(rounds % 1000 * 8, 4096) == data);
        rounds += 1;
    }
    hostile.into_iter().for_each(|thread| thread.join().expect("no panic"));
    wait_for("hostile connections to go", || (served.connections() == 2).then_some(()));
    assert_eq!(served.group_sum("receive_chunks"), 0);
    served.host.stop();
}

/// Hostile connections; `TENON_TEST_MALFORMED` of them if it is set.
const MALFORMED: u64 = 4000;
