//! Transports for those who use them in the initiator role: the functions of
//! [`TransportTableApiV2`], which modules find by the host's `query`.
//!
//! A module gets a transport's static table by name and speaks to it directly;
//! the target is not in between. Users are counted by module and transport, so
//! that a report can tell who uses what; the table itself is never taken away.
// UNSAFETY: gives modules raw tables of other modules, as the contract has it.

use std::collections::BTreeMap;
use std::ffi::c_void;

use tenon_abi::transport::TransportV1;
use tenon_abi::transport::initiator::{TransportFn, TransportTableApiV2};
use tenon_abi::transport::{QUERY_TARGET, QUERY_TRANSPORT, QUERY_TRANSPORT_TABLE};
use tenon_abi::{HostModule, Str, errno};
use tenon_bdev::register_host_table;
use tenon_modules::{Module, ModuleRef};

use crate::keyring_table::offer_keyring;
use crate::queue::table::TARGET_API;
use crate::target::Target;

/// Who uses which transport, by module and address of the transport's table: how often, and its name.
pub(crate) type TransportUsers = BTreeMap<(usize, usize), (usize, String)>;

/// A module's use of a transport, for reports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TransportUse {
    /// The module.
    pub module: String,
    /// The transport.
    pub transport: String,
    /// How often it has got it without giving it back.
    pub count: usize,
}

/// Who asked for a transport, and where the answer goes.
struct Asker {
    me: usize,
    name: String,
    done: TransportFn,
    arg: *mut c_void,
}

/// Makes the host's `query` answer for the tables of this crate. Any number of times.
pub(crate) fn offer_tables() {
    register_host_table(QUERY_TARGET, 1, &TARGET_API);
    register_host_table(QUERY_TRANSPORT_TABLE, 2, &TRANSPORT_TABLE);
    offer_keyring();
}

static TRANSPORT_TABLE: TransportTableApiV2 =
    TransportTableApiV2 { size: size_of::<TransportTableApiV2>() as u32, flags: 0, acquire, release };

impl Target {
    /// Which modules use which transports in the initiator role.
    pub fn transport_users(&self) -> Vec<TransportUse> {
        let users = self.inner.transport_users.borrow();
        let name_of = |me: usize| {
            let handle: *mut HostModule = std::ptr::with_exposed_provenance_mut(me);
            Module::from_handle(handle).map_or_else(|| "?".to_owned(), |module| module.name().to_owned())
        };
        users
            .iter()
            .map(|((me, _), (count, transport))| TransportUse {
                module: name_of(*me),
                transport: transport.clone(),
                count: *count,
            })
            .collect()
    }

    fn answer_asker(&self, asker: Asker, found: Result<*const TransportV1, String>) {
        let (table, reason) = match found {
            Ok(table) => (table, String::new()),
            Err(reason) => (std::ptr::null(), reason),
        };
        if !table.is_null() {
            let mut users = self.inner.transport_users.borrow_mut();
            let (count, _) = users.entry((asker.me, table.addr())).or_insert((0, asker.name));
            *count += 1;
        }
        // SAFETY: the asker's function and argument, on the control thread; the text lives until it returns.
        unsafe { (asker.done.0)(asker.arg, table, Str::new(&reason)) };
    }
}

/// The transport table of a module that has an initiator role.
fn table_of(name: &str, module: ModuleRef) -> Result<*const TransportV1, String> {
    let table: *const TransportV1 = module.query(QUERY_TRANSPORT, 1).cast();
    if table.is_null() {
        return Err(format!("module {} offers no transport", module.name()));
    }
    // SAFETY: a module's answer to this query is its static transport table.
    if unsafe { (*table).initiator.is_null() } {
        return Err(format!("transport {name} has no initiator role"));
    }
    Ok(table)
}

unsafe extern "C" fn acquire(me: *mut HostModule, name: Str, done: TransportFn, arg: *mut c_void) -> i32 {
    let Some(target) = Target::current() else { return errno::EPERM };
    // SAFETY: the module's text is readable during the call.
    let Some(name) = (unsafe { name.as_str() }) else { return errno::EINVAL };
    if name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') {
        return errno::EINVAL;
    }
    let asker = Asker { me: me.expose_provenance(), name: name.to_owned(), done, arg };
    let modules = target.inner.core.modules().clone();
    modules.ensure(&format!("transport_{}", name.to_ascii_lowercase()), "{}", move |loaded| {
        let found = match loaded {
            Ok(module) => table_of(&asker.name, module),
            Err(error) => Err(error.to_string()),
        };
        target.answer_asker(asker, found);
    });
    0
}

unsafe extern "C" fn release(me: *mut HostModule, transport: *const TransportV1) {
    let Some(target) = Target::current() else { return };
    let mut users = target.inner.transport_users.borrow_mut();
    let key = (me.addr(), transport.addr());
    match users.get_mut(&key) {
        Some((count, _)) if *count > 1 => *count -= 1,
        Some(_) => {
            users.remove(&key);
        }
        None => log::error!("module released a transport that it does not have"),
    }
}
