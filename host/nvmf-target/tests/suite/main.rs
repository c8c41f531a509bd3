//! The target core on a simulation, with a transport inside the test. The same
//! suite runs over the loop transport in `tests/target`.

mod authentication;
mod in_test;
mod reservations;
mod rig;
mod seeds;
mod seeds_of_access;
mod target;
mod transport;
