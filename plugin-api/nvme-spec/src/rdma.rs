//! RDMA connection manager private data: what host and controller tell each other before the first capsule.
//!
//! RDMA Transport 1.0c, connection establishment. Verbs and the connection
//! manager itself belong to the RDMA transport.

use zerocopy::little_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The service port NVMe/RDMA shares with NVMe/TCP I/O controllers.
pub const RDMA_IP_PORT: u16 = 4420;

/// Record format of every structure here.
pub const CM_RECFMT: u16 = 0;

/// Private data of a connection request. RDMA Transport 1.0c.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct CmRequest {
    /// Record Format, [`CM_RECFMT`].
    pub recfmt: U16,
    /// Queue Identifier: 0 for the admin queue.
    pub qid: U16,
    /// RDMA host Receive Queue Size; not 0's based.
    pub hrqsize: U16,
    /// RDMA host Send Queue Size, 0's based.
    pub hsqsize_z: U16,
    /// Controller ID the queue will belong to; 0 from hosts that do not tell.
    pub cntlid: U16,
    _rsvd10: [u8; 22],
}

assert_layout!(CmRequest, 32, recfmt: 0, qid: 2, hrqsize: 4, hsqsize_z: 6, cntlid: 8);

/// Private data of an acceptance. RDMA Transport 1.0c.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct CmAccept {
    /// Record Format, [`CM_RECFMT`].
    pub recfmt: U16,
    /// RDMA controller Receive Queue Size; not 0's based.
    pub crqsize: U16,
    _rsvd4: [u8; 28],
}

assert_layout!(CmAccept, 32, recfmt: 0, crqsize: 2);

/// Private data of a rejection. RDMA Transport 1.0c.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct CmReject {
    /// Record Format, [`CM_RECFMT`].
    pub recfmt: U16,
    /// Why the controller refused.
    pub sts: CmStatus,
}

assert_layout!(CmReject, 4, recfmt: 0, sts: 2);

open_enum! {
    /// Why an RDMA connection was refused. RDMA Transport 1.0c.
    pub struct CmStatus(U16 as u16) {
        INVALID_PRIVATE_DATA_LENGTH = 0x01, "Invalid Private Data Length";
        INVALID_RECFMT = 0x02, "Invalid RECFMT";
        INVALID_QID = 0x03, "Invalid QID";
        INVALID_HSQSIZE = 0x04, "Invalid HSQSIZE";
        INVALID_HRQSIZE = 0x05, "Invalid HRQSIZE";
        NO_RESOURCES = 0x06, "No Resources";
        INVALID_IRD = 0x07, "Invalid IRD";
        INVALID_ORD = 0x08, "Invalid ORD";
        INVALID_CNTLID = 0x09, "Invalid CNTLID";
    }
}
