//! The target core's whole suite over the loop transport, without a socket: the
//! same tests as in `host/nvmf-target`, whose transport is inside the test.

#[path = "../../host/nvmf-target/tests/suite/authentication.rs"]
mod authentication;
#[path = "../sim/images.rs"]
mod images;
#[path = "../../host/nvmf-target/tests/suite/reservations.rs"]
mod reservations;
#[path = "../../host/nvmf-target/tests/suite/rig/mod.rs"]
mod rig;
#[path = "../../host/nvmf-target/tests/suite/seeds.rs"]
mod seeds;
#[path = "../../host/nvmf-target/tests/suite/seeds_of_access.rs"]
mod seeds_of_access;
#[path = "../../host/nvmf-target/tests/suite/target.rs"]
mod target;
mod transport;
