//! Devices: registration with every rule of its declaration checked, lookup,
//! information. Their removal is in `removal`, their I/O in `gate`.
// UNSAFETY: copies a module's registration and calls its JSON callbacks.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::ffi::c_void;
use std::mem::offset_of;
use std::rc::Rc;

use tenon_abi::{
    BdevFlags, BdevHandle, BdevInfo, BdevOpsV1, BdevState, BdevV1, JsonSink, Limits, OpToken, Reason, Str,
    errno, reaches,
};

use super::channel::{GateChannel, ModuleChannel};
use super::flight::Flight;
use super::lifecycle::{DeviceEvent, DeviceState};
use super::module::ModuleId;
use super::operation::OpKind;
use super::schedule::{CONTROL, Where};
use super::shared::text;
use super::world::World;
use crate::violation::Fault;

pub(crate) struct Device {
    pub(crate) id: u64,
    pub(crate) name: String,
    pub(crate) aliases: Vec<String>,
    pub(crate) product: String,
    pub(crate) owner: ModuleId,
    pub(crate) flags: Cell<BdevFlags>,
    pub(crate) limits: Cell<Limits>,
    pub(crate) io_types: u64,
    pub(crate) io_flags: u64,
    pub(crate) uuid: [u8; 16],
    pub(crate) nguid: [u8; 16],
    pub(crate) eui64: [u8; 8],
    pub(crate) numa_node: i32,
    pub(crate) ctx: *mut c_void,
    pub(crate) ops: *const BdevOpsV1,
    pub(crate) state: Cell<DeviceState>,
    pub(crate) was_examined: Cell<bool>,
    pub(crate) is_rolled_back: Cell<bool>,
    pub(crate) examining: Cell<u32>,
    pub(crate) is_frozen: Cell<bool>,
    pub(crate) waiting: RefCell<VecDeque<*mut Flight>>,
    pub(crate) resets: RefCell<VecDeque<*mut Flight>>,
    pub(crate) channels: RefCell<Vec<*mut ModuleChannel>>,
    pub(crate) gates: RefCell<Vec<*mut GateChannel>>,
    pub(crate) descriptors: RefCell<Vec<u64>>,
    pub(crate) notices: Cell<u32>,
    pub(crate) absences: Cell<u64>,
    pub(crate) params: RefCell<Option<String>>,
}

/// What a test may know about a device.
#[derive(Clone, PartialEq, Debug)]
pub struct DeviceInfo {
    /// Unique name.
    pub name: String,
    /// Further names.
    pub aliases: Vec<String>,
    /// What kind of device.
    pub product: String,
    /// Module that registered it.
    pub module: String,
    /// Properties.
    pub flags: BdevFlags,
    /// Geometry and limits now.
    pub limits: Limits,
    /// Operations.
    pub io_types: u64,
    /// I/O flags.
    pub io_flags: u64,
    /// Identity.
    pub uuid: [u8; 16],
    /// Lifecycle state.
    pub state: BdevState,
    /// True if somebody holds a claim on it.
    pub is_claimed: bool,
}

impl Device {
    /// True when a create that registered it need not wait for it any longer.
    pub(crate) fn is_examined(&self) -> bool {
        self.was_examined.get() || !self.state.get().is_open_to_consumers()
    }

    pub(crate) fn step(&self, event: DeviceEvent) {
        self.state.set(self.state.get().next(event));
    }

    /// Bytes of one block as they cross the door.
    pub(crate) fn block_bytes(&self) -> u64 {
        let limits = self.limits.get();
        let interleaved = self.flags.get().contains(BdevFlags::METADATA_INTERLEAVED);
        u64::from(limits.block_size) + if interleaved { u64::from(limits.md_size) } else { 0 }
    }

    fn answers_to(&self, name: &str) -> bool {
        self.name == name || self.aliases.iter().any(|alias| alias == name) || format_uuid(&self.uuid) == name
    }
}

/// The usual spelling of a UUID.
pub(crate) fn format_uuid(uuid: &[u8; 16]) -> String {
    let hex: String = uuid.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

/// What is wrong with a declaration, or nothing.
fn check_declaration(bdev: &BdevV1, name: &str) -> Result<(), String> {
    let limits = &bdev.limits;
    if name.is_empty() || name.len() > 255 || name.contains(|c: char| c.is_control() || c == '/') {
        return Err(format!("name `{name}` is not 1 to 255 bytes without control characters and `/`"));
    }
    if !limits.block_size.is_power_of_two() || !(512..=65_536).contains(&limits.block_size) {
        return Err(format!("block size {} is no power of two in 512..=65536", limits.block_size));
    }
    if !limits.physical_block_size.is_multiple_of(limits.block_size) {
        return Err(format!("physical block size {} is no multiple", limits.physical_block_size));
    }
    if limits.required_alignment != 0 && !limits.required_alignment.is_power_of_two() {
        return Err(format!("required alignment {} is no power of two", limits.required_alignment));
    }
    if bdev.flags.contains(BdevFlags::SPLIT_ON_BOUNDARY) && limits.optimal_io_boundary == 0 {
        return Err("SPLIT_ON_BOUNDARY without a boundary".to_owned());
    }
    if bdev.flags.contains(BdevFlags::SPLIT_ON_WRITE_UNIT) && limits.write_unit == 0 {
        return Err("SPLIT_ON_WRITE_UNIT without a write unit".to_owned());
    }
    if limits.reserved != 0 {
        return Err("a reserved field of the limits is not 0".to_owned());
    }
    let destruct_end = offset_of!(BdevOpsV1, destruct) + size_of::<usize>();
    // SAFETY: a table starts with its size; the pointer is checked first.
    if bdev.ops.is_null() || !reaches(unsafe { (*bdev.ops).size }, destruct_end) {
        return Err("the table of callbacks is missing or does not reach `destruct`".to_owned());
    }
    Ok(())
}

impl World {
    pub(crate) fn device(&self, id: u64) -> Option<Rc<Device>> {
        self.devices.borrow().get(id)
    }

    pub(crate) fn find(&self, name: &str) -> Option<Rc<Device>> {
        self.devices.borrow().snapshot().into_iter().find(|device| device.answers_to(name))
    }

    /// Runs `f` on a device of the calling module.
    pub(crate) fn with_own(
        self: &Rc<World>,
        function: &str,
        bdev: BdevHandle,
        f: impl FnOnce(&Rc<World>, &Rc<Device>) -> i32,
    ) -> i32 {
        let Some(device) = self.device(bdev.0) else {
            if !self.devices.borrow().was_issued(bdev.0) {
                self.violate(Fault::BadCall, format!("{function}: handle {:#x} never was a device", bdev.0));
            }
            return errno::ENODEV;
        };
        let acting = self.acting.get();
        if device.owner != acting && acting != ModuleId::HOST {
            self.violate(
                Fault::BadCall,
                format!("{function} of `{}`, which is another module's", device.name),
            );
            return errno::EPERM;
        }
        f(self, &device)
    }

    /// Registers a device and starts its examination.
    ///
    /// # Safety
    /// `bdev` is null or a registration that is readable with its texts for this call.
    pub(crate) unsafe fn register(
        self: &Rc<World>,
        owner: ModuleId,
        bdev: *const BdevV1,
        op: OpToken,
    ) -> Result<u64, i32> {
        // SAFETY: a table starts with its size, and the caller promises a readable one or null.
        if bdev.is_null() || !reaches(unsafe { (*bdev).size }, size_of::<BdevV1>()) {
            self.violate(Fault::BadDeclaration, "bdev_register: the registration is missing or too small");
            return Err(errno::EINVAL);
        }
        // SAFETY: `size` covers the struct as we know it.
        let found = unsafe { &*bdev };
        // SAFETY: the caller promises readable texts.
        let (name, product) =
            unsafe { (text(found.name).unwrap_or_default(), text(found.product).unwrap_or_default()) };
        if let Err(wrong) = check_declaration(found, &name) {
            self.violate(Fault::BadDeclaration, format!("bdev_register of `{name}`: {wrong}"));
            return Err(errno::EINVAL);
        }
        let aliases: Vec<String> = (0..found.alias_count as usize)
            // SAFETY: the caller promises `alias_count` readable texts.
            .filter_map(|nth| unsafe { text(*found.aliases.add(nth)) })
            .collect();
        let operation = self.operations.borrow().get(op.0);
        if op.0 != 0 && operation.as_ref().is_none_or(|operation| operation.is_answered()) {
            self.violate(Fault::BadCall, format!("bdev_register of `{name}` under a token that is not open"));
            return Err(errno::EINVAL);
        }
        let mut uuid = found.uuid;
        if uuid == [0; 16] {
            self.rng.fill(&mut uuid);
        }
        let is_taken = |wanted: &str| self.find(wanted).is_some();
        if is_taken(&name) || is_taken(&format_uuid(&uuid)) || aliases.iter().any(|alias| is_taken(alias)) {
            return Err(errno::EEXIST);
        }
        self.awaited.borrow_mut().retain(|(awaited, _)| *awaited != name);
        let device = self.make_device(owner, found, (name, product, aliases), uuid);
        if let Some(operation) = operation {
            operation.registered.borrow_mut().push(Rc::clone(&device));
            if matches!(operation.kind, OpKind::Create) {
                *device.params.borrow_mut() = Some(operation.params_text());
            }
        }
        self.devices.borrow_mut().insert(device.id, Rc::clone(&device));
        self.start_examination(&device);
        Ok(device.id)
    }

    fn make_device(
        &self,
        owner: ModuleId,
        found: &BdevV1,
        (name, product, aliases): (String, String, Vec<String>),
        uuid: [u8; 16],
    ) -> Rc<Device> {
        Rc::new(Device {
            id: self.devices.borrow_mut().reserve(),
            name,
            aliases,
            product,
            owner,
            flags: Cell::new(found.flags),
            limits: Cell::new(found.limits),
            io_types: found.io_types,
            io_flags: found.io_flags,
            uuid,
            nguid: found.nguid,
            eui64: found.eui64,
            numa_node: found.numa_node,
            ctx: found.ctx,
            ops: found.ops,
            state: Cell::new(DeviceState::Registering),
            is_rolled_back: Cell::new(false),
            was_examined: Cell::new(false),
            examining: Cell::new(0),
            is_frozen: Cell::new(false),
            waiting: RefCell::new(VecDeque::new()),
            resets: RefCell::new(VecDeque::new()),
            channels: RefCell::new(Vec::new()),
            gates: RefCell::new(Vec::new()),
            descriptors: RefCell::new(Vec::new()),
            notices: Cell::new(0),
            absences: Cell::new(0),
            params: RefCell::new(None),
        })
    }

    pub(crate) fn resize(self: &Rc<World>, device: &Rc<Device>, num_blocks: u64) -> i32 {
        if !device.state.get().is_open_to_consumers() {
            return errno::ENODEV;
        }
        let mut limits = device.limits.get();
        if limits.num_blocks != num_blocks {
            limits.num_blocks = num_blocks;
            device.limits.set(limits);
            self.tell_openers(device, tenon_abi::BdevEventKind::RESIZE, Reason::UNSPECIFIED, num_blocks, 0);
        }
        0
    }

    pub(crate) fn device_info(&self, device: &Device) -> DeviceInfo {
        DeviceInfo {
            name: device.name.clone(),
            aliases: device.aliases.clone(),
            product: device.product.clone(),
            module: self.module_name(device.owner),
            flags: device.flags.get(),
            limits: device.limits.get(),
            io_types: device.io_types,
            io_flags: device.io_flags,
            uuid: device.uuid,
            state: device.state.get().to_abi(),
            is_claimed: self.claims_on(device).next().is_some(),
        }
    }

    /// # Safety
    /// `info` is null, or readable and writable for the `size` it holds.
    pub(crate) unsafe fn fill_info(&self, bdev: u64, info: *mut BdevInfo) -> i32 {
        // SAFETY: the struct starts with its size, and the caller promises a readable one or null.
        if info.is_null() || !reaches(unsafe { (*info).size }, size_of::<BdevInfo>()) {
            self.violate(Fault::BadCall, "bdev_info: `info` is missing or its `size` is not set");
            return errno::EINVAL;
        }
        let Some(device) = self.device(bdev) else { return errno::ENODEV };
        let module = self.modules.borrow().iter().find(|module| module.id == device.owner).cloned();
        let filled = BdevInfo {
            size: size_of::<BdevInfo>() as u32,
            flags: device.flags.get(),
            bdev: BdevHandle(device.id),
            limits: device.limits.get(),
            io_types: device.io_types,
            io_flags: device.io_flags,
            uuid: device.uuid,
            nguid: device.nguid,
            eui64: device.eui64,
            numa_node: device.numa_node,
            state: device.state.get().to_abi(),
            name: Str::new(&device.name),
            product: Str::new(&device.product),
            module: module.as_ref().map_or(Str::new("testkit"), |module| Str::new(&module.name)),
        };
        // SAFETY: `size` covers the struct as we know it. The texts live until the next call that may remove it.
        unsafe { info.write(filled) };
        0
    }

    /// What a device writes through one of its JSON callbacks.
    fn json_of(&self, device: &Device, write: unsafe extern "C" fn(*mut c_void, *const JsonSink)) -> String {
        unsafe extern "C" fn append(arg: *mut c_void, piece: Str) {
            // SAFETY: `arg` is the string below, and the piece is lent for the call.
            if let (Some(out), Some(piece)) = unsafe { (arg.cast::<String>().as_mut(), piece.as_str()) } {
                out.push_str(piece);
            }
        }
        let mut out = String::new();
        let sink = JsonSink { write: append, arg: (&raw mut out).cast() };
        // SAFETY: the device is not destructed, so its context is valid; the sink lives during the call.
        self.enter(Where::Reactor(CONTROL), device.owner, || unsafe { write(device.ctx, &raw const sink) });
        out
    }

    pub(crate) fn driver_specific(&self, device: &Device) -> Option<String> {
        let end = offset_of!(BdevOpsV1, dump_json) + size_of::<usize>();
        // SAFETY: the table was checked at registration; the field is read only if the table reaches it.
        let write = unsafe { if reaches((*device.ops).size, end) { (*device.ops).dump_json } else { None } };
        write.map(|write| self.json_of(device, write))
    }

    pub(crate) fn driver_statistics(&self, device: &Device) -> Option<String> {
        let end = offset_of!(BdevOpsV1, stats_json) + size_of::<usize>();
        // SAFETY: as in `driver_specific`.
        let write = unsafe { if reaches((*device.ops).size, end) { (*device.ops).stats_json } else { None } };
        write.map(|write| self.json_of(device, write)).filter(|text| !text.is_empty())
    }

    pub(crate) fn config(&self, device: &Device) -> Option<String> {
        let end = offset_of!(BdevOpsV1, config_json) + size_of::<usize>();
        // SAFETY: as in `driver_specific`.
        let write =
            unsafe { if reaches((*device.ops).size, end) { (*device.ops).config_json } else { None } };
        let own = write.map(|write| self.json_of(device, write)).filter(|text| !text.is_empty());
        own.or_else(|| device.params.borrow().clone())
    }
}
