//! Answers that modules owe the host: what an [`OpToken`] stands for.
//!
//! A token is good for one answer. Whoever is waiting is found by it; a second
//! answer, or one for something given up, finds nothing and is reported.

use tenon_abi::{BdevHandle, OpToken, errno};
use tenon_modules::ModuleRef;

use crate::core::Core;
use crate::error::OpError;

/// What an answer is for.
#[derive(Clone, Copy)]
pub(crate) enum Owed {
    /// An operation.
    Operation(u64),
    /// The destruction of a device.
    Destruct(BdevHandle),
    /// The end of a module.
    Fini(ModuleRef),
}

impl Core {
    /// A module answers; `result` is the JSON text of its answer.
    pub(crate) fn owed_answered(&self, token: OpToken, result: Result<String, OpError>) {
        let owed = self.inner.operations.borrow_mut().settle(token);
        let Some(owed) = owed else {
            log::warn!("answer for nothing that is owed, or a second answer token={:#x}", token.0);
            return;
        };
        // Later: the module is inside its own call, and may still be holding its state.
        self.later(move |core| match owed {
            Owed::Operation(operation) => core.operation_answered(operation, result),
            Owed::Destruct(bdev) => core.removal_destructed(bdev, result),
            Owed::Fini(module) => {
                core.inner.modules.fini_done(module, result.map(|_| ()).map_err(|error| error.to_string()));
            }
        });
    }

    /// The operation that may register devices under `token`.
    pub(crate) fn operation_of(&self, token: OpToken) -> Result<Option<u64>, i32> {
        if token.0 == 0 {
            return Ok(None);
        }
        match self.inner.operations.borrow().owed(token) {
            Some(Owed::Operation(operation)) => Ok(Some(operation)),
            Some(Owed::Destruct(_) | Owed::Fini(_)) => Err(errno::EINVAL),
            None => Err(errno::ECANCELED),
        }
    }
}
