//! How many stripes per second a loop can add up that does nothing else: what
//! parity is compared with.
//!
//!     ceiling_xor STRIP_BYTES STRIPS BUFFERS SECONDS

#![allow(clippy::print_stdout, reason = "its output is what it measured")]

use std::hint::black_box;
use std::time::{Duration, Instant};

use bdev_raid::xor::parity_of_strips;

fn main() {
    let numbers: Vec<u64> = std::env::args().skip(1).filter_map(|word| word.parse().ok()).collect();
    let [strip, strips, buffers, seconds] = numbers[..] else {
        eprintln!("ceiling_xor STRIP_BYTES STRIPS BUFFERS SECONDS");
        std::process::exit(2);
    };
    let (strip, strips) = (strip as usize, strips as usize);
    let data: Vec<Vec<u8>> = (0..buffers).map(|nth| vec![nth as u8 + 1; strip * strips]).collect();
    let mut parity: Vec<Vec<u8>> = (0..buffers).map(|_| vec![0; strip]).collect();
    let (begin, mut done) = (Instant::now(), 0_u64);
    while begin.elapsed() < Duration::from_secs(seconds) {
        for (parity, data) in parity.iter_mut().zip(&data) {
            parity_of_strips(black_box(parity), black_box(data));
            done += 1;
        }
    }
    println!("{}", done as f64 / begin.elapsed().as_secs_f64());
}
