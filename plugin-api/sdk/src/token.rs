//! Answers owed to the host for lifecycle operations. Each is a value that is
//! used up by answering, so that none is answered twice; one that is dropped
//! answers with an error, so that none is forgotten.
// UNSAFETY: calls the functions of the host's table.

use std::cell::Cell;
use std::marker::PhantomData;
use std::rc::Rc;

use serde::Serialize;
use tenon_abi::{
    ErrorV1, ExamineAnswer, ExamineToken as RawExamine, OpToken as RawToken, OperationTableV1,
    QUERY_OPERATIONS, Str,
};

use crate::{BdevId, BdevInfo, Error, Host, bridge};

/// An answer owed for an operation: create, update, delete, configure, RPC, destruct, fini.
///
/// Answer it on the control thread, from inside the callback or later. It cannot be answered twice:
///
/// ```compile_fail
/// fn answer(token: tenon_sdk::OpToken) {
///     token.done();
///     token.done();
/// }
/// ```
#[must_use = "the host waits for the answer"]
pub struct OpToken {
    host: Host,
    raw: RawToken,
    /// Stays on the control thread.
    _local: PhantomData<*const ()>,
}

/// An answer owed for one examine callback.
#[must_use = "the host waits for the answer"]
pub struct ExamineToken {
    host: Host,
    raw: RawExamine,
    _local: PhantomData<*const ()>,
}

/// The device an examine callback is about; the host keeps it open until the token is answered.
#[derive(Clone, Debug)]
pub struct Examined {
    /// The device.
    pub id: BdevId,
    /// Its name.
    pub name: String,
}

impl OpToken {
    /// Takes over a token.
    ///
    /// # Safety
    /// The host gave `raw` to this plugin, on the control thread, and nobody else answers it.
    pub(crate) unsafe fn new(host: Host, raw: RawToken) -> OpToken {
        OpToken { host, raw, _local: PhantomData }
    }

    /// Takes over a token that came by a table of the plugin's own, such as a transport's.
    ///
    /// # Safety
    /// The host gave `raw` to this plugin, on the control thread, and nobody else answers it.
    pub unsafe fn from_raw(host: Host, raw: RawToken) -> OpToken {
        // SAFETY: as the caller promises.
        unsafe { OpToken::new(host, raw) }
    }

    /// The host.
    #[must_use]
    pub fn host(&self) -> Host {
        self.host
    }

    pub(crate) fn raw(&self) -> RawToken {
        self.raw
    }

    /// True if a device of that name is being created or examined: failing with [`Error::missing_base`] makes the
    /// host repeat this operation when it is in service. For a module that could begin without the device.
    #[must_use]
    pub fn base_is_coming(&self, name: &str) -> bool {
        let table = self.host.query(QUERY_OPERATIONS, 1).cast::<OperationTableV1>();
        // SAFETY: a table the host offers under this name is of this type and lives as long as the process; the
        // token is on the control thread, and the text borrowed for the call.
        !table.is_null() && unsafe { ((*table).base_is_coming)(self.raw, Str::new(name)) } != 0
    }

    /// Runs `work` on a worker thread, where it may block, then `done` with the token back on this thread. If the
    /// workers have too much to do, the operation fails with `-EAGAIN` and neither runs.
    pub fn offload<T: Send + 'static>(
        self,
        work: impl FnOnce() -> T + Send + 'static,
        done: impl FnOnce(OpToken, Result<T, Error>) + 'static,
    ) {
        let host = self.host;
        let token = Rc::new(Cell::new(Some(self)));
        let waiting = Rc::clone(&token);
        let result = host.offload(work, move |result| {
            if let Some(token) = waiting.take() {
                done(token, result);
            }
        });
        if let Err(error) = result
            && let Some(token) = token.take()
        {
            token.fail(error);
        }
    }

    /// Success without a result (`true` for an RPC client).
    pub fn done(self) {
        self.give(Str::EMPTY, std::ptr::null());
    }

    /// Success with a result.
    pub fn reply<T: Serialize + ?Sized>(self, result: &T) {
        match serde_json::to_string(result) {
            Ok(json) => self.give(Str::new(&json), std::ptr::null()),
            Err(error) => self.fail(Error::io("the result cannot be written as json").caused_by(error)),
        }
    }

    /// Failure. The module has undone its part; the host removes what was registered under the token.
    pub fn fail(self, error: Error) {
        let error = ErrorV1 {
            size: size_of::<ErrorV1>() as u32,
            code: error.code,
            object: Str::new(&error.object),
            reason: Str::new(&error.reason),
            cause: Str::new(&error.cause),
        };
        self.give(Str::EMPTY, &error);
    }

    /// Answers with a result or an error.
    pub fn answer<T: Serialize>(self, result: Result<T, Error>) {
        match result {
            Ok(result) => self.reply(&result),
            Err(error) => self.fail(error),
        }
    }

    /// Runs `work` and answers with what it returns: the usual body of a callback that does not wait.
    pub fn run<T: Serialize>(self, work: impl FnOnce(&OpToken) -> Result<T, Error>) {
        let result = work(&self);
        self.answer(result);
    }

    fn give(self, result: Str, error: *const ErrorV1) {
        // SAFETY: `new` got the token from the host, and `forget` keeps it from being answered again.
        unsafe { (self.host.api.op_done)(self.raw, result, error) };
        std::mem::forget(self);
    }
}

impl Drop for OpToken {
    fn drop(&mut self) {
        let forgotten = !std::thread::panicking();
        let error = dropped(forgotten);
        let error = ErrorV1 {
            size: size_of::<ErrorV1>() as u32,
            code: error.code,
            object: Str::EMPTY,
            reason: Str::new(&error.reason),
            cause: Str::new(&error.cause),
        };
        // SAFETY: as in `give`; every other way out has forgotten the token.
        unsafe { (self.host.api.op_done)(self.raw, Str::EMPTY, &error) };
        debug_assert!(!forgotten, "an operation was dropped without an answer");
    }
}

impl ExamineToken {
    /// Takes over a token.
    ///
    /// # Safety
    /// As for [`OpToken::new`].
    pub(crate) unsafe fn new(host: Host, raw: RawExamine) -> ExamineToken {
        ExamineToken { host, raw, _local: PhantomData }
    }

    /// The host.
    #[must_use]
    pub fn host(&self) -> Host {
        self.host
    }

    /// The device is not this module's.
    pub fn not_mine(self) {
        self.give(ExamineAnswer::NOT_MINE, "");
    }

    /// The module has claimed the device.
    pub fn claimed(self) {
        self.give(ExamineAnswer::CLAIMED, "");
    }

    /// Recognised; more members are needed before anything is built on it.
    pub fn waiting(self, reason: &str) {
        self.give(ExamineAnswer::WAITING, reason);
    }

    /// Recognised but unusable; the host reports the reason.
    pub fn failed(self, reason: &str) {
        self.give(ExamineAnswer::FAILED, reason);
    }

    fn give(self, answer: ExamineAnswer, reason: &str) {
        // SAFETY: `new` got the token from the host, and `forget` keeps it from being answered again.
        unsafe { (self.host.api.examine_done)(self.raw, answer, Str::new(reason)) };
        std::mem::forget(self);
    }
}

impl Drop for ExamineToken {
    fn drop(&mut self) {
        let forgotten = !std::thread::panicking();
        let text = dropped(forgotten).to_string();
        // SAFETY: as in `give`; every other way out has forgotten the token.
        unsafe { (self.host.api.examine_done)(self.raw, ExamineAnswer::FAILED, Str::new(&text)) };
        debug_assert!(!forgotten, "an examination was dropped without an answer");
    }
}

impl Examined {
    /// What is known about the device.
    ///
    /// # Errors
    /// `-ENODEV` if it went meanwhile.
    pub fn info(&self, host: &Host) -> Result<BdevInfo, Error> {
        host.bdev_info(self.id)
    }
}

fn dropped(forgotten: bool) -> Error {
    if forgotten {
        log::error!("operation dropped without an answer");
        Error::io("the module dropped the operation without an answer")
    } else {
        bridge::panicked("a callback")
    }
}
