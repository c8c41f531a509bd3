//! JSON-RPC 2.0 over a Unix socket: `framer` cuts the byte stream into JSON
//! texts, `message` reads and writes requests and replies, `server` owns the
//! socket and its clients. Knows no method; that is `crate::methods`.

mod framer;
mod message;
mod server;

pub use framer::{FrameError, Framer, MAX_FRAME_BYTES};
pub use message::{Incoming, MAX_BATCH_CALLS, Request, RpcError, parse, reply_text};
pub use server::{Handler, MAX_CLIENTS, MAX_PENDING_PER_CLIENT, Reply, Server, ServerError};
