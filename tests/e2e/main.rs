//! Tests of the whole process, over its command line, files and socket.
#![forbid(unsafe_code)]

mod command_line;
mod configuration;
mod devices;
mod plugins;
mod process;
mod rpc;
