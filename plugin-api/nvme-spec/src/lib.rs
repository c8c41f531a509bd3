//! NVMe and NVMe-oF wire types: what a target and an initiator exchange, byte for byte.
//!
//! Everything here is plain data: little-endian, byte-aligned, any bit pattern
//! valid, so that reading a structure from a peer can neither fail nor be
//! undefined behaviour. Field names are the specification's, in its order;
//! 0's-based fields end in `_z`. Codes are open newtypes: unknown values stay
//! representable. Structures are made by [`zerocopy::FromZeros::new_zeroed`]
//! and filled in; there is no `Default`, since zero is not a meaning.
//!
//! Sections are those of NVM Express Base Specification 2.0c unless a doc
//! comment says "NVM Command Set" (1.0c), "RDMA Transport" (1.0c) or "TCP
//! Transport" (1.0c).
//!
//! Not here: NVMe/TCP PDUs, which only the TCP transport speaks, and every
//! rule of behaviour. Two static copies of this crate in one process do no
//! harm, because there is no state in it.
//!
//! ```
//! use nvme_spec::command::Sqe;
//! use nvme_spec::io::ReadWrite;
//! use nvme_spec::opcode::IoOpcode;
//! use zerocopy::{FromZeros, IntoBytes};
//!
//! let mut read = ReadWrite::new_zeroed();
//! read.head.opc = IoOpcode::READ.0;
//! read.head.nsid.set(1);
//! read.slba.set(2048);
//! read.nlb_z.set(7);
//! let sqe: Sqe = Sqe::from_view(&read);
//! assert_eq!(sqe.as_bytes().len(), 64);
//! assert_eq!(sqe.view::<ReadWrite>().block_count(), 8);
//! ```
#![no_std]
#![forbid(unsafe_code)]
#![deny(missing_docs)]

#[cfg(test)]
extern crate std;

#[macro_use]
mod macros;

pub mod admin;
pub mod auth;
pub mod command;
pub mod completion;
pub mod discovery;
pub mod event;
pub mod fabrics;
pub mod features;
pub mod identify;
pub mod io;
pub mod log;
pub mod nqn;
pub mod opcode;
pub mod property;
pub mod protection;
pub mod rdma;
pub mod reservation;
pub mod sgl;
pub mod status;
pub mod text;

pub use zerocopy;
