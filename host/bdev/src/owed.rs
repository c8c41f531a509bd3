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
    /// Something a layer above asked a module for; the number names who waits.
    Layer(u64),
}

/// Who waits for an answer that a layer above is owed.
pub(crate) type LayerAnswer = Box<dyn FnOnce(Result<String, OpError>)>;

impl Core {
    /// A token for a callback of a table that a layer above calls itself, as the NVMe-oF target calls
    /// transports. `done` gets the JSON text of the answer, once, in a later turn of the control reactor; it is
    /// dropped uncalled by [`Core::forget_answer`]. `None` if too many answers are owed.
    pub fn owe_answer(&self, done: impl FnOnce(Result<String, OpError>) + 'static) -> Option<OpToken> {
        let waiting = self.next_id();
        let token = self.inner.operations.borrow_mut().owe_layer(waiting, Box::new(done));
        (token.0 != 0).then_some(token)
    }

    /// The answer is not waited for any more: one that comes later is reported and ignored.
    pub fn forget_answer(&self, token: OpToken) {
        let settled = self.inner.operations.borrow_mut().settle(token);
        if let Some(Owed::Layer(waiting)) = settled {
            drop(self.inner.operations.borrow_mut().take_layer_answer(waiting));
        }
    }

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
            Owed::Layer(waiting) => {
                let waiting = core.inner.operations.borrow_mut().take_layer_answer(waiting);
                if let Some(done) = waiting {
                    done(result);
                }
            }
        });
    }

    /// The operation that may register devices under `token`. One whose client was told of its failure may not: what
    /// a module cannot register it takes back itself, down to what it has written.
    pub(crate) fn operation_of(&self, token: OpToken) -> Result<Option<u64>, i32> {
        if token.0 == 0 {
            return Ok(None);
        }
        let operations = self.inner.operations.borrow();
        match operations.owed(token) {
            Some(Owed::Operation(id)) if operations.is_overdue(id) => Err(errno::ETIMEDOUT),
            Some(Owed::Operation(id)) => Ok(Some(id)),
            Some(Owed::Destruct(_) | Owed::Fini(_) | Owed::Layer(_)) => Err(errno::EINVAL),
            None => Err(errno::ECANCELED),
        }
    }
}
