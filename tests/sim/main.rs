//! The whole host on a virtual clock: target and initiator in one process, over
//! the loop transport, or over TCP and a network of the test's own, with the
//! built plugins. A seed chooses every order; a failure names its seed, and
//! `TENON_TEST_SEED=<seed>` repeats it alone.

mod arrays;
mod authenticate;
mod command;
mod discover;
mod identity;
mod images;
mod inject;
mod load;
mod multipath;
mod network;
mod operate;
mod passthru;
mod populate;
mod refusal;
mod saved;
mod survive;
mod timeouts;
mod wires;
mod world;
