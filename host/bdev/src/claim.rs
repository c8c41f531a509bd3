//! Claims: who may write to a device while others hold it.
//!
//! Pure rules over the list of those who hold a device. A claim belongs to a
//! descriptor and ends with it; there is no other way to release one, so an
//! error path cannot leak one. Does not store anything: see `descriptor`.

use std::fmt;
use std::sync::Arc;

use tenon_abi::{ClaimKind, DescHandle};
use tenon_modules::ModuleRef;

/// What a descriptor has claimed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Claim {
    /// One owner has the device; others may only read.
    ExclusiveWrite,
    /// Many readers; only the claiming descriptor writes.
    ReadManyWriteOne,
    /// Nobody writes.
    ReadManyWriteNone,
    /// Many writers that present the same key.
    ReadManyWriteShared {
        /// What the writers have in common; not 0.
        key: u64,
    },
}

/// Who holds a descriptor.
#[derive(Clone)]
pub(crate) enum Owner {
    /// A module, through the ABI.
    Module(ModuleRef),
    /// A layer of the host, by the name it gave itself.
    Host(Arc<str>),
}

impl Owner {
    pub(crate) fn is_module(&self, id: u32) -> bool {
        match self {
            Owner::Module(module) => module.id() == id,
            Owner::Host(_) => false,
        }
    }
}

/// One descriptor of a device, as the rules see it.
#[derive(Clone, Debug)]
pub(crate) struct Holding {
    pub desc: DescHandle,
    pub owner: Owner,
    pub write: bool,
    pub claim: Option<Claim>,
}

/// Why a claim or an open is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("{owner} has claimed it ({claim})")]
    Claimed { owner: String, claim: Claim },
    #[error("{owner} holds it open for writing")]
    OpenForWriting { owner: String },
    #[error("this descriptor has claimed it already ({claim})")]
    Twice { claim: Claim },
    #[error("a shared claim needs a key that is not 0")]
    NoKey,
}

/// May `owner` open a device that `holdings` hold?
pub(crate) fn may_open(holdings: &[Holding], owner: &Owner, write: bool) -> Result<(), Refusal> {
    if !write {
        return Ok(());
    }
    for holding in holdings {
        let Some(claim) = holding.claim else { continue };
        let allowed = match claim {
            Claim::ExclusiveWrite => holding.owner == *owner,
            // Who shares writing opens for reading and presents the key with its claim.
            Claim::ReadManyWriteOne | Claim::ReadManyWriteNone | Claim::ReadManyWriteShared { .. } => false,
        };
        if !allowed {
            return Err(Refusal::Claimed { owner: holding.owner.to_string(), claim });
        }
    }
    Ok(())
}

/// May the descriptor `desc`, one of `holdings`, make `claim`?
///
/// A claim to write makes a descriptor that was opened for reading a writer.
pub(crate) fn may_claim(holdings: &[Holding], desc: DescHandle, claim: Claim) -> Result<(), Refusal> {
    if claim == (Claim::ReadManyWriteShared { key: 0 }) {
        return Err(Refusal::NoKey);
    }
    let own = holdings.iter().find(|holding| holding.desc == desc);
    if let Some(claim) = own.and_then(|own| own.claim) {
        return Err(Refusal::Twice { claim });
    }
    for holding in holdings {
        let is_own = holding.desc == desc;
        if let Some(other) = holding.claim {
            let compatible = match claim {
                Claim::ExclusiveWrite | Claim::ReadManyWriteOne => false,
                Claim::ReadManyWriteNone | Claim::ReadManyWriteShared { .. } => other == claim,
            };
            if !compatible {
                return Err(Refusal::Claimed { owner: holding.owner.to_string(), claim: other });
            }
        } else if holding.write {
            let allowed = match claim {
                Claim::ExclusiveWrite => own.is_some_and(|own| own.owner == holding.owner),
                Claim::ReadManyWriteOne | Claim::ReadManyWriteShared { .. } => is_own,
                Claim::ReadManyWriteNone => false,
            };
            if !allowed {
                return Err(Refusal::OpenForWriting { owner: holding.owner.to_string() });
            }
        }
    }
    Ok(())
}

impl Claim {
    /// From what a module passes; `None` for a kind this host does not know.
    pub(crate) fn from_abi(kind: ClaimKind, key: u64) -> Option<Claim> {
        match kind {
            ClaimKind::EXCL_WRITE => Some(Claim::ExclusiveWrite),
            ClaimKind::READ_MANY_WRITE_ONE => Some(Claim::ReadManyWriteOne),
            ClaimKind::READ_MANY_WRITE_NONE => Some(Claim::ReadManyWriteNone),
            ClaimKind::READ_MANY_WRITE_SHARED => Some(Claim::ReadManyWriteShared { key }),
            ClaimKind(_) => None,
        }
    }

    /// The claiming descriptor writes, even if it was opened for reading.
    pub(crate) fn writes(self) -> bool {
        match self {
            Claim::ExclusiveWrite | Claim::ReadManyWriteOne | Claim::ReadManyWriteShared { .. } => true,
            Claim::ReadManyWriteNone => false,
        }
    }

    /// As `claim_type` of `bdev_get_bdevs` spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            Claim::ExclusiveWrite => "exclusive_write",
            Claim::ReadManyWriteOne => "read_many_write_one",
            Claim::ReadManyWriteNone => "read_many_write_none",
            Claim::ReadManyWriteShared { .. } => "read_many_write_shared",
        }
    }
}

impl fmt::Display for Claim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl PartialEq for Owner {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Owner::Module(a), Owner::Module(b)) => a.id() == b.id(),
            (Owner::Host(a), Owner::Host(b)) => a == b,
            (Owner::Module(_), Owner::Host(_)) | (Owner::Host(_), Owner::Module(_)) => false,
        }
    }
}

impl Eq for Owner {}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Owner::Module(module) => write!(f, "module {}", module.name()),
            Owner::Host(name) => f.write_str(name),
        }
    }
}

impl fmt::Debug for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::{Claim, Holding, Owner, Refusal, may_claim, may_open};
    use tenon_abi::DescHandle;

    const EXCLUSIVE: Claim = Claim::ExclusiveWrite;
    const ONE: Claim = Claim::ReadManyWriteOne;
    const NONE: Claim = Claim::ReadManyWriteNone;
    const KEY: Claim = Claim::ReadManyWriteShared { key: 7 };
    const OTHER_KEY: Claim = Claim::ReadManyWriteShared { key: 8 };

    fn owner(name: &str) -> Owner {
        Owner::Host(name.into())
    }

    fn holding(desc: u64, name: &str, write: bool, claim: Option<Claim>) -> Holding {
        Holding { desc: DescHandle(desc), owner: owner(name), write, claim }
    }

    /// Descriptor 1 (of `a`, claim `first`) is there; may descriptor 2 of `b` claim `second`?
    #[track_caller]
    fn check_second(first: Option<Claim>, first_writes: bool, second: Claim, allowed: bool) {
        let holdings = [holding(1, "a", first_writes, first), holding(2, "b", false, None)];
        let result = may_claim(&holdings, DescHandle(2), second);
        assert_eq!(result.is_ok(), allowed, "{first:?} then {second}: {result:?}");
    }

    #[test]
    fn claims_stand_beside_each_other_only_where_nobody_is_surprised() {
        for second in [EXCLUSIVE, ONE, NONE, KEY] {
            check_second(None, false, second, true);
            check_second(None, true, second, false);
            check_second(Some(EXCLUSIVE), true, second, false);
            check_second(Some(ONE), true, second, false);
        }
        check_second(Some(NONE), false, NONE, true);
        check_second(Some(NONE), false, KEY, false);
        check_second(Some(NONE), false, EXCLUSIVE, false);
        check_second(Some(KEY), true, KEY, true);
        check_second(Some(KEY), true, OTHER_KEY, false);
        check_second(Some(KEY), true, ONE, false);
    }

    #[test]
    fn an_owner_may_hold_further_descriptors_beside_its_exclusive_claim() {
        let holdings = [holding(1, "a", true, None), holding(2, "a", true, None)];
        assert_eq!(may_claim(&holdings, DescHandle(1), EXCLUSIVE), Ok(()));
        assert!(may_claim(&holdings, DescHandle(1), ONE).is_err());
        assert!(may_claim(&holdings, DescHandle(1), NONE).is_err());
        let claimed = [holding(1, "a", true, Some(EXCLUSIVE))];
        assert_eq!(may_open(&claimed, &owner("a"), true), Ok(()));
        assert!(may_open(&claimed, &owner("b"), true).is_err());
    }

    #[test]
    fn reading_is_always_allowed_and_writing_only_without_a_claim() {
        for claim in [EXCLUSIVE, ONE, NONE, KEY] {
            let holdings = [holding(1, "a", true, Some(claim))];
            assert_eq!(may_open(&holdings, &owner("b"), false), Ok(()));
            assert!(matches!(may_open(&holdings, &owner("b"), true), Err(Refusal::Claimed { .. })));
        }
        assert_eq!(may_open(&[holding(1, "a", true, None)], &owner("b"), true), Ok(()));
    }

    #[test]
    fn a_descriptor_claims_once_and_a_shared_claim_has_a_key() {
        let holdings = [holding(1, "a", true, Some(KEY))];
        assert_eq!(may_claim(&holdings, DescHandle(1), KEY), Err(Refusal::Twice { claim: KEY }));
        let key_0 = Claim::ReadManyWriteShared { key: 0 };
        assert_eq!(may_claim(&[], DescHandle(1), key_0), Err(Refusal::NoKey));
    }
}
