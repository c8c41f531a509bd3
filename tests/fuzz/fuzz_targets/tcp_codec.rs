//! Feeds any bytes to the check of NVMe/TCP PDU headers; the first chooses digests and alignment.
//!
//! Every input ends in a frame, an error or a request for more, and more bytes
//! never take back an answer.

#![cfg_attr(fuzzing, no_main)]
#![forbid(unsafe_code)]

tenon_fuzz::target!(transport_tcp::fuzz_codec);
