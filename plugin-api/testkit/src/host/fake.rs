//! [`FakeHost`]: what a test does with a fake host.

use std::rc::Rc;
use std::time::Duration;

use tenon_abi::{HostApiV1, HotplugKind, Reason, errno};

use super::device::DeviceInfo;
use super::module::{IntoPlugin, LoadError, ModuleId};
use super::operation::{OpError, OpKind, Pending};
use super::schedule::{CONTROL, Place, Where};
use super::shared::{LogLine, lock};
use super::table;
use super::world::{self, Options, World};
use crate::base::{BaseSpec, TestBase};
use crate::consumer::{Access, Completion, Descriptor, Io, Request};
use crate::filter::Filter;
use crate::rng::Rng;
use crate::violation::Violation;

/// A host for tests: one thread, one seed, one contract. Dropping it ends every module and device in order and
/// panics if anything violated the contract; [`FakeHost::finish`] tells instead.
pub struct FakeHost {
    world: Rc<World>,
}

/// Options of a fake host.
#[derive(Clone, Debug)]
pub struct Builder(Options);

impl Default for Builder {
    fn default() -> Self {
        Builder(Options {
            seed: 0,
            data_reactors: 2,
            real_io: false,
            auto_examine: true,
            removal_deadline: Duration::from_secs(5),
            operation_deadline: Duration::from_secs(30),
            buffers: 256,
        })
    }
}

impl Builder {
    /// Decides every order and every chance.
    #[must_use]
    pub fn seed(mut self, seed: u64) -> Self {
        self.0.seed = seed;
        self
    }

    /// Number of data reactors; default 2.
    #[must_use]
    pub fn reactors(mut self, count: u32) -> Self {
        self.0.data_reactors = count as usize;
        self
    }

    /// For plugins that do real I/O: the clock is the real one, watched descriptors are waited for, and offloaded
    /// work runs on real threads. Not deterministic.
    #[must_use]
    pub fn real_io(mut self, real_io: bool) -> Self {
        self.0.real_io = real_io;
        self
    }

    /// Whether devices are offered to the modules; default true.
    #[must_use]
    pub fn auto_examine(mut self, auto_examine: bool) -> Self {
        self.0.auto_examine = auto_examine;
        self
    }

    /// Time between a REMOVE event and its deadline; default 5 s.
    #[must_use]
    pub fn removal_deadline(mut self, deadline: Duration) -> Self {
        self.0.removal_deadline = deadline;
        self
    }

    /// Time an operation may take; default 30 s.
    #[must_use]
    pub fn operation_deadline(mut self, deadline: Duration) -> Self {
        self.0.operation_deadline = deadline;
        self
    }

    /// Buffers in each reactor's pool; default 256.
    #[must_use]
    pub fn buffers(mut self, count: usize) -> Self {
        self.0.buffers = count;
        self
    }

    /// The host.
    ///
    /// # Panics
    /// If the calling thread has a fake host already.
    #[must_use]
    pub fn build(self) -> FakeHost {
        let world = World::new(self.0);
        assert!(world::install(&world), "this thread has a fake host already: drop it first");
        FakeHost { world }
    }
}

impl FakeHost {
    /// A host with two data reactors and a virtual clock.
    #[must_use]
    pub fn new(seed: u64) -> FakeHost {
        FakeHost::builder().seed(seed).build()
    }

    /// To choose its options.
    #[must_use]
    pub fn builder() -> Builder {
        Builder::default()
    }

    pub(crate) fn world(&self) -> &Rc<World> {
        &self.world
    }

    /// The seed it was made with.
    #[must_use]
    pub fn seed(&self) -> u64 {
        self.world.options.seed
    }

    /// A sequence of numbers that follows from the seed.
    #[must_use]
    pub fn rng(&self) -> Rng {
        self.world.rng.fork()
    }

    /// The table the plugins get.
    #[must_use]
    pub fn table(&self) -> &'static HostApiV1 {
        table::host_api()
    }

    /// Loads a plugin: gate 1, `init` with `config_json`, `init_complete`, examination of existing devices.
    ///
    /// # Errors
    /// [`LoadError`] says which of these failed.
    pub fn load(&self, plugin: impl IntoPlugin, config_json: &str) -> Result<ModuleId, LoadError> {
        let module = self.world.load(plugin.into_plugin(), config_json)?;
        self.settle();
        Ok(module)
    }

    /// Creates a device and waits for the reply; the names of what was registered.
    ///
    /// # Errors
    /// What the module answered; everything it registered is gone again then.
    pub fn create(&self, module: ModuleId, params_json: &str) -> Result<Vec<String>, OpError> {
        let pending = self.start_create(module, params_json);
        self.wait_for(&pending).map(|_| pending.devices())
    }

    /// Starts a create.
    #[must_use]
    pub fn start_create(&self, module: ModuleId, params_json: &str) -> Pending {
        Pending(self.world.start_create(module, params_json))
    }

    /// Waits for the reply to an operation.
    ///
    /// # Errors
    /// What the module answered, or `-ETIMEDOUT`.
    pub fn wait_for(&self, pending: &Pending) -> Result<String, OpError> {
        self.world.wait_operation(&pending.0)
    }

    /// Gives a module new options.
    ///
    /// # Errors
    /// What the module answered.
    pub fn configure(&self, module: ModuleId, params_json: &str) -> Result<String, OpError> {
        self.wait_for(&Pending(self.world.start_configure(module, params_json)))
    }

    /// Changes a device in place.
    ///
    /// # Errors
    /// What the module answered.
    pub fn update(&self, name: &str, params_json: &str) -> Result<String, OpError> {
        self.wait_for(&Pending(self.world.start_update(name, params_json)))
    }

    /// Deletes a device and waits until it is gone.
    ///
    /// # Errors
    /// What the module answered, or `-ENODEV`.
    pub fn delete(&self, name: &str) -> Result<(), OpError> {
        self.wait_for(&self.start_delete(name)).map(|_| ())
    }

    /// Starts a delete.
    #[must_use]
    pub fn start_delete(&self, name: &str) -> Pending {
        Pending(self.world.start_delete(name))
    }

    /// Calls an RPC method of a module.
    ///
    /// # Errors
    /// What the module answered, or `-ENOENT`.
    pub fn rpc(&self, method: &str, params_json: &str) -> Result<String, OpError> {
        self.wait_for(&self.start_rpc(method, params_json))
    }

    /// Starts an RPC call.
    #[must_use]
    pub fn start_rpc(&self, method: &str, params_json: &str) -> Pending {
        Pending(self.world.start_rpc(method, params_json))
    }

    /// Quiesces a module, removes its devices, finishes it, and counts what it left behind.
    ///
    /// # Errors
    /// If its devices did not go or `fini` failed.
    pub fn unregister_module(&self, module: ModuleId) -> Result<(), OpError> {
        match self.world.module(module) {
            Some(found) => self.world.unregister_module(&found),
            None => Err(OpError::new(errno::ENOENT, "", "there is no such module")),
        }
    }

    /// Starts a hot removal; true if there is such a device.
    pub fn remove_device(&self, name: &str, reason: Reason) -> bool {
        let device = self.world.find(name);
        device.inspect(|device| self.world.unregister(device, reason)).is_some()
    }

    /// Publishes a hotplug event to every module.
    pub fn hotplug(&self, subsystem: &str, id: &str, kind: HotplugKind, attributes_json: &str) {
        self.world.hotplug(kind, subsystem, id, 0, attributes_json);
    }

    /// What modules asked the watcher for: subsystem and object.
    #[must_use]
    pub fn watches(&self) -> Vec<(String, String)> {
        self.world.watches.borrow().iter().map(|watch| (watch.subsystem.clone(), watch.id.clone())).collect()
    }

    /// Runs until `is_met`, for at most `within` of the host's time; whether it is met.
    pub fn run_until(&self, within: Duration, is_met: impl FnMut() -> bool) -> bool {
        self.world.run_until(within, is_met)
    }

    /// Lets time pass.
    pub fn advance(&self, by: Duration) {
        self.world.run_until(by, || false);
    }

    /// Runs everything that is due now.
    pub fn settle(&self) {
        self.world.settle();
    }

    /// The host's clock.
    #[must_use]
    pub fn now_ns(&self) -> u64 {
        self.world.now_ns()
    }

    /// Runs `f` as the test's own code on a reactor.
    pub fn on<R>(&self, place: Place, f: impl FnOnce() -> R) -> R {
        self.world.enter(Where::Reactor(place.index()), ModuleId::HOST, f)
    }

    /// Runs `f` on a reactor as a call into a module: what it starts there is the module's.
    pub fn on_behalf_of<R>(&self, module: ModuleId, place: Place, f: impl FnOnce() -> R) -> R {
        let result = self.world.enter(Where::Reactor(place.index()), module, f);
        // As after everything that runs on a reactor: its pollers look what there is to do.
        self.world.woken(place.index());
        result
    }

    /// Calls a function of a module's own table that answers by a token, on the control reactor.
    pub fn ask(&self, module: ModuleId, label: &str, f: impl FnOnce(tenon_abi::OpToken)) -> Pending {
        let operation = self.world.new_operation(module, label.to_owned(), OpKind::Plain, "");
        let id = operation.id;
        self.on_behalf_of(module, Place::Control, || f(tenon_abi::OpToken(id)));
        Pending(operation)
    }

    /// Everything logged so far.
    #[must_use]
    pub fn logs(&self) -> Vec<LogLine> {
        lock(&self.world.shared.logs).clone()
    }

    /// Notifications so far: kind and context.
    #[must_use]
    pub fn notifications(&self) -> Vec<(String, String)> {
        self.world.notifications.borrow().clone()
    }

    /// Value of a module's metric.
    #[must_use]
    pub fn metric(&self, module: &str, name: &str) -> Option<u64> {
        let metrics = lock(&self.world.shared.metrics);
        let found = metrics.iter().find(|metric| metric.module == module && metric.name == name);
        found.map(|metric| metric.cell.load(std::sync::atomic::Ordering::Relaxed))
    }

    /// Offers a further table under `id` and `version`, as layers above the devices do.
    pub fn offer(&self, id: &str, version: u32, table: *const std::ffi::c_void) {
        lock(&self.world.shared.offers).push((id.to_owned(), version, table as usize));
    }

    /// A further table of a module, or null.
    #[must_use]
    pub fn query(&self, module: ModuleId, id: &str, version: u32) -> *const std::ffi::c_void {
        self.world.query_module(module, id, version)
    }

    /// Names of all devices.
    #[must_use]
    pub fn devices(&self) -> Vec<String> {
        self.world.devices.borrow().snapshot().iter().map(|device| device.name.clone()).collect()
    }

    /// What is known about a device, by name, alias or UUID.
    #[must_use]
    pub fn device(&self, name: &str) -> Option<DeviceInfo> {
        self.world.find(name).map(|device| self.world.device_info(&device))
    }

    /// What the device's module counts itself.
    #[must_use]
    pub fn driver_statistics(&self, name: &str) -> Option<String> {
        self.world.find(name).and_then(|device| self.world.driver_statistics(&device))
    }

    /// What the device's module writes for `driver_specific`.
    #[must_use]
    pub fn driver_specific(&self, name: &str) -> Option<String> {
        self.world.find(name).and_then(|device| self.world.driver_specific(&device))
    }

    /// The device's parameters as they would be saved.
    #[must_use]
    pub fn config(&self, name: &str) -> Option<String> {
        self.world.find(name).and_then(|device| self.world.config(&device))
    }

    /// The module's JSON Schema.
    #[must_use]
    pub fn schema(&self, module: ModuleId) -> Option<String> {
        self.world.schema(module)
    }

    /// Opens a device as its consumer.
    ///
    /// # Errors
    /// `-errno`.
    pub fn open(&self, name: &str, access: Access) -> Result<Descriptor, i32> {
        Descriptor::open(&self.world, name, access)
    }

    /// Waits until an I/O has completed.
    ///
    /// # Panics
    /// If it does not within a minute of the host's time.
    pub fn wait(&self, io: &Io) -> Completion {
        assert!(self.run_until(IO_DEADLINE, || io.is_done()), "I/O did not complete: {io:?}");
        io.completion().expect("it is done, as just checked")
    }

    /// Opens `name`, does one I/O on data reactor 0 and closes it again.
    ///
    /// # Errors
    /// `-errno` of the open.
    pub fn once(&self, name: &str, request: Request) -> Result<Completion, i32> {
        let descriptor = self.open(name, Access::Write)?;
        let channel = descriptor.channel(0).ok_or(errno::ENODEV)?;
        let completion = self.wait(&channel.submit(request));
        channel.put();
        descriptor.close();
        Ok(completion)
    }

    /// Offers a device to every module, as after [`Builder::auto_examine`] `(false)`, and waits for their answers;
    /// true if there is such a device.
    pub fn examine(&self, name: &str) -> bool {
        let Some(device) = self.world.find(name) else { return false };
        self.world.examine_again(&device);
        self.run_until(IO_DEADLINE, || device.examining.get() == 0);
        true
    }

    /// Adds a RAM device of the testkit and waits until it is examined.
    ///
    /// # Panics
    /// If its name is taken or its declaration is wrong.
    pub fn add_base(&self, spec: BaseSpec) -> TestBase {
        let base = TestBase::register(&self.world, spec);
        let device = self.world.find(base.name());
        self.run_until(IO_DEADLINE, || device.as_ref().is_none_or(|device| device.is_examined()));
        base
    }

    /// Adds a RAM device of the testkit without waiting for its examination.
    ///
    /// # Panics
    /// If its name is taken or its declaration is wrong.
    pub fn start_base(&self, spec: BaseSpec) -> TestBase {
        TestBase::register(&self.world, spec)
    }

    /// Adds a pass-through device of the testkit on top of `base`, which it claims.
    ///
    /// # Errors
    /// `-errno` of the step that failed.
    pub fn add_filter(&self, name: &str, base: &str) -> Result<Filter, i32> {
        let filter = Filter::register(&self.world, name, base)?;
        let device = self.world.find(name);
        self.run_until(IO_DEADLINE, || device.as_ref().is_none_or(|device| device.is_examined()));
        Ok(filter)
    }

    /// Number of open descriptors of a device.
    #[must_use]
    pub fn open_count(&self, name: &str) -> usize {
        self.world.find(name).map_or(0, |device| device.descriptors.borrow().len())
    }

    /// What the module's `validate` says: `None` if it has none, else 0 or `-errno` with a text.
    #[must_use]
    pub fn validate(&self, module: ModuleId, params_json: &str) -> Option<Result<(), (i32, String)>> {
        self.world.validate(module, params_json)
    }

    /// Number of lifecycle operations that were not replied to.
    #[must_use]
    pub fn operations_under_way(&self) -> usize {
        let all = self.world.operations.borrow().snapshot();
        all.into_iter()
            .filter(|found| {
                !matches!(found.kind, OpKind::Destruct(_)) && !Pending(Rc::clone(found)).is_done()
            })
            .count()
    }

    /// Violations so far.
    #[must_use]
    pub fn violations(&self) -> Vec<Violation> {
        self.world.check_all_channels();
        self.world.shared.violations()
    }

    /// Forgets the violations so far, which a test has looked at.
    pub fn take_violations(&self) -> Vec<Violation> {
        self.world.check_all_channels();
        self.world.shared.take_violations()
    }

    /// Ends everything in order; all violations, including what was left behind.
    #[must_use]
    pub fn finish(self) -> Vec<Violation> {
        self.world.finish_all();
        self.world.shared.take_violations()
    }
}

impl Drop for FakeHost {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // Modules and I/Os may be in any state: leave everything where it is.
            self.world.abandon();
            std::mem::forget(Rc::clone(&self.world));
            world::uninstall();
            return;
        }
        self.world.enter(Where::Reactor(CONTROL), ModuleId::HOST, || {});
        self.world.finish_all();
        let violations = self.world.shared.take_violations();
        self.world.dissolve();
        world::uninstall();
        let list: Vec<String> = violations.iter().map(ToString::to_string).collect();
        assert!(
            violations.is_empty(),
            "seed {}: the contract was violated {} times:\n  {}",
            self.world.options.seed,
            list.len(),
            list.join("\n  ")
        );
    }
}

/// How long one I/O may take.
const IO_DEADLINE: Duration = Duration::from_secs(60);
