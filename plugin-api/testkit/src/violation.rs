//! What a module did against the contract, in words a plugin author can act
//! on. Found by the fake host, reported by [`crate::FakeHost::violations`].

use std::fmt;

/// Kind of a violation.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[non_exhaustive]
pub enum Fault {
    /// An I/O was completed a second time.
    DoubleCompletion,
    /// A completion arrived with an I/O that this submission does not belong to.
    ForeignCompletion,
    /// A function or a completion came from a thread or reactor where it is not allowed.
    WrongThread,
    /// A channel was put or destroyed while I/O was outstanding on it.
    IoOutstanding,
    /// An I/O never completed.
    IoLost,
    /// A token was answered a second time, or was never given out.
    TokenAnsweredTwice,
    /// A token was not answered within its deadline.
    TokenForgotten,
    /// A channel was still held when its descriptor or module went.
    ChannelLeaked,
    /// A descriptor was still open when its module went.
    DescriptorLeaked,
    /// A claim was still held when its module went.
    ClaimLeaked,
    /// A device was still there when its module went.
    DeviceLeaked,
    /// A poller still ran when its module went.
    PollerLeaked,
    /// A timer was still armed when its module went.
    TimerLeaked,
    /// A file descriptor was still watched when its module went.
    FdLeaked,
    /// Memory of the host was not freed, or freed wrongly.
    MemoryLeaked,
    /// A buffer of a reactor's pool was not returned, or returned wrongly.
    BufferLeaked,
    /// A hotplug watch or memory subscription outlived its module.
    WatchLeaked,
    /// Memory next to a payload or an allocation was overwritten.
    PayloadOverrun,
    /// The payload of a WRITE or COMPARE was modified.
    PayloadModified,
    /// An I/O or its payload changed after its completion.
    TouchedAfterCompletion,
    /// A device or channel was declared in a way the contract does not allow.
    BadDeclaration,
    /// An I/O was completed with impossible fields.
    BadCompletion,
    /// A function of the host was called with an argument that cannot be right.
    BadCall,
    /// A channel was used after it was put.
    UseAfterPut,
    /// A descriptor stayed open beyond the deadline of a REMOVE event.
    RemovalIgnored,
    /// A declared operation was answered "not supported".
    DeclaredButRefused,
}

/// One violation.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Violation {
    /// Kind.
    pub fault: Fault,
    /// Module whose code was at fault, as far as the host can tell.
    pub module: String,
    /// What happened, with the objects' names.
    pub detail: String,
    /// Virtual time.
    pub at_ns: u64,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} by `{}` at {} ns: {}", self.fault, self.module, self.at_ns, self.detail)
    }
}
