//! Two processes over TCP: one exports a device in a file, the other attaches it
//! and puts a verified load on it; then one of them, or what is between them,
//! goes. The scenarios of `tests/sim` with real sockets, signals and files.
//!
//! What needs lost packets runs where a network can be bent: `tests/interop`.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod arrays;
mod paths;
mod search;
mod survive;
mod teardown;
mod world;
