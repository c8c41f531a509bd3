//! Tests of the whole process, over its command line, files and socket.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod announcement;
mod arrays;
mod command_line;
mod configuration;
mod creation;
mod devices;
mod export;
mod loads;
mod plugins;
mod process;
mod raid;
mod reload;
mod rpc;
mod saturation;
mod spdk_client;
mod sudden_death;
