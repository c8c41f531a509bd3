//! NVMe over TCP: both roles' protocol, without sockets.
//!
//! [`pdu`] has the wire structures, [`codec`] the framing, [`peer_error`] what a
//! peer can do wrong, [`connection`] the state machines of target and
//! initiator. They see bytes, times and events only; whoever owns a socket
//! drives them. Sections cited are those of the NVM Express TCP Transport
//! Specification, revision 1.0.
pub mod codec;
pub mod connection;
pub mod fuzz;
pub mod pdu;
pub mod peer_error;
pub mod socket;

pub use fuzz::{fuzz_codec, fuzz_connection};
pub use nvme_spec;
