//! The data plane of a block device: the gate between consumers and a module.
//!
//! [`Gate`] is one device. On each reactor where somebody uses the device it has one channel of the
//! module, and on top of it one channel per descriptor, which is what consumers submit to:
//!
//! ```text
//!   consumer ──submit──► Consumer (desc, reactor) ──same I/O──► ModuleChannel (device, reactor) ──► module
//!                          │ ops = OPEN: check, count, forward          │ retry hook: NOMEM
//!                          │ ops = GUARDED: held · QoS · behind NOMEM   │ split children
//!                          ▼                                            ▼
//!                        fails at once                          queues, all intrusive
//! ```
//!
//! * The fast path checks the request, counts it and hands the *same* I/O to the module; the gate is not
//!   in the completion path. What needs more is done by swapping the channel's `ops`, so that it costs
//!   nothing where it is not wanted: `check` decides, `split` cuts and bounces, `backpressure` retries,
//!   `qos` limits, `freeze` holds and bounces I/O, `reset` serialises resets, `compare_write` compares and
//!   writes for modules that cannot, while `exclusive` keeps all other I/O of the device out.
//! * A channel and its queues belong to one reactor: nothing in them is atomic, and per I/O nothing is
//!   allocated, locked or sent. The control reactor reaches them by messages (`broadcast`).
//! * Raw pointers lead from an I/O to its channel and back, as the ABI has it. No reference into a
//!   channel lives across a call into a module or a consumer, since either may call back.
//!
//! Does not know names, descriptors' claims or lifecycles; that is the control plane above.

mod abort;
mod backpressure;
mod bounce;
mod broadcast;
mod channel;
mod check;
mod child;
mod compare_write;
mod drain;
mod exclusive;
mod freeze;
mod gate;
mod histogram;
mod qos;
mod queue;
mod reset;
mod sampling;
mod service;
mod split;
mod statistics;
mod submit;

pub use channel::{ChannelError, MAX_IO_CTX_SIZE};
pub use compare_write::with_compare_write;
pub use drain::Drained;
pub use freeze::Phase;
pub use gate::{Gate, GateCensus, GateSpec};
pub use histogram::{HISTOGRAM_BUCKET_SHIFT, HISTOGRAM_BUCKETS, HistogramData};
pub use qos::{QOS_MIN_IOS_PER_SEC, QosLimits};
pub use reset::DEFAULT_RESET_DRAIN_TIMEOUT;
pub use statistics::{ChannelStat, IoStat, OpStat, OpStats, QueueDepthStat, ResetMode};
