//! Commands that operators send to a controller themselves, and what it says of
//! its health. On the control thread, over the admin queue; those of I/O queues
//! are sent in `io_commands`.

use std::rc::Rc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};
use nvme_spec::command::Sqe;
use nvme_spec::completion::Cqe;
use nvme_spec::log::LogPageId;
use nvme_spec::log::health::HealthInformation;
use nvme_spec::opcode::{AdminOpcode, FABRICS};
use nvme_spec::status::CommandKind;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tenon_sdk::{Error, OpToken, errno};
use zerocopy::{FromBytes, IntoBytes};

use crate::channel::passthru::is_kept;
use crate::controller::Controller;
use crate::controller::admin::Answer;
use crate::controller::command::{AdminCommand, Data};
use crate::controller::state::State;
use crate::registry::Registry;

/// A command as `bdev_nvme_send_cmd` gives it.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct SendCommand {
    /// Name of the controller.
    pub(crate) name: String,
    /// One of its paths; without it, the first that serves.
    cntlid: Option<u16>,
    pub(crate) cmd_type: CommandType,
    pub(crate) data_direction: Direction,
    /// Submission queue entry of 64 bytes, as base64.
    cmdbuf: String,
    /// Data to the controller, as base64.
    data: Option<String>,
    metadata: Option<String>,
    /// Bytes from the controller.
    data_len: Option<usize>,
    metadata_len: Option<usize>,
    /// Most time for the command; the controller is reset when it is over.
    timeout_ms: Option<u64>,
}

/// Which queue a command goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum CommandType {
    Admin,
    Io,
}

/// Which way the data of a command travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Direction {
    C2h,
    H2c,
}

/// An operation that is answered even if nobody hears of its command any more.
pub(crate) struct Owed(Option<OpToken>);

impl Owed {
    pub(crate) fn new(token: OpToken) -> Self {
        Owed(Some(token))
    }

    pub(crate) fn answer(mut self, result: Result<Value, Error>) {
        if let Some(token) = self.0.take() {
            token.answer(result);
        }
    }
}

impl Drop for Owed {
    fn drop(&mut self) {
        if let Some(token) = self.0.take() {
            token.fail(Error::io("the connection to the controller was lost before it answered"));
        }
    }
}

impl SendCommand {
    /// The command, and its data, as they go to the queue.
    pub(crate) fn command(&self) -> Result<AdminCommand, Error> {
        let wrong = |reason: String| Err(Error::invalid(reason).object(&*self.name));
        let entry = decode("cmdbuf", &self.cmdbuf)?;
        let Ok(sqe) = Sqe::read_from_bytes(&entry) else {
            return wrong(format!("cmdbuf has {} bytes: must have 64", entry.len()));
        };
        if self.metadata.is_some() || self.metadata_len.is_some_and(|len| len > 0) {
            return wrong("metadata is given: commands with metadata are not supported".to_owned());
        }
        if sqe.opc == FABRICS {
            return wrong("opcode 0x7f: fabrics commands are sent by the host only".to_owned());
        }
        if self.cmd_type == CommandType::Admin && is_kept(AdminOpcode(sqe.opc)) {
            return wrong(format!("opcode {:#04x}: is sent by the host only", sqe.opc));
        }
        let len = self.data_len.unwrap_or(0);
        if len > MAX_DATA {
            return wrong(format!("data_len is {len}: must be at most {MAX_DATA}"));
        }
        let data = match (self.data_direction, &self.data, len) {
            (Direction::H2c, Some(data), _) => match decode("data", data)? {
                bytes if bytes.is_empty() => Data::None,
                bytes if bytes.len() > MAX_DATA => {
                    return wrong(format!("data has {} bytes: must be at most {MAX_DATA}", bytes.len()));
                }
                bytes => Data::Out(bytes),
            },
            (Direction::H2c, None, 0) | (Direction::C2h, None, 0) => Data::None,
            (Direction::H2c, None, _) => return wrong("data is missing: data_direction is h2c".to_owned()),
            (Direction::C2h, Some(_), _) => return wrong("data is given: data_direction is c2h".to_owned()),
            (Direction::C2h, None, len) => Data::In(len),
        };
        Ok(AdminCommand { sqe, data })
    }
}

impl Registry {
    /// The controller of that name, or the one of them with this identifier, that serves.
    fn serving(&self, name: &str, cntlid: Option<u16>) -> Result<Rc<Controller>, Error> {
        let controllers = self.paths_named(name, cntlid)?;
        let is_serving = |controller: &&Rc<Controller>| controller.state.get() == State::Ready;
        controllers.iter().find(is_serving).cloned().ok_or_else(|| {
            let state = controllers[0].state.get().as_str();
            Error::new(errno::EAGAIN, format!("the controller is {state}: it takes no commands")).object(name)
        })
    }

    /// `bdev_nvme_send_cmd`.
    pub(crate) fn send_command(&self, params: &SendCommand, token: OpToken) {
        let command =
            params.command().and_then(|command| Ok((self.serving(&params.name, params.cntlid)?, command)));
        let (controller, command) = match command {
            Ok(found) => found,
            Err(error) => return token.fail(error),
        };
        if params.cmd_type == CommandType::Io {
            let timeout = params.timeout_ms.filter(|ms| *ms > 0).map_or(IO_TIMEOUT, Duration::from_millis);
            return self.send_io_command(&controller, command, timeout, token);
        }
        let (owed, returns) = (Owed::new(token), matches!(command.data, Data::In(_)));
        let timeout = params.timeout_ms.filter(|ms| *ms > 0).map(Duration::from_millis);
        let timeout = timeout.or(controller.plan.admin_timeout);
        controller.send_within(&command, timeout, move |_, answer| owed.answer(told(said(answer, returns))));
    }

    /// `bdev_nvme_get_controller_health_info`.
    pub(crate) fn health(&self, name: &str, token: OpToken) {
        let controller = match self.serving(name, None) {
            Ok(controller) => controller,
            Err(error) => return token.fail(error),
        };
        let len = size_of::<HealthInformation>();
        let command = AdminCommand::log_page(LogPageId::HEALTH_INFORMATION, 0, len, true);
        let owed = Owed::new(token);
        controller.send(&command, move |controller, answer| owed.answer(healthy(controller, answer)));
    }

    /// `bdev_nvme_apply_firmware`.
    pub(crate) fn refuse_firmware(&self, bdev: &str) -> Error {
        if self.device_named(bdev).is_none() {
            return Error::not_found(bdev);
        }
        let reason = "firmware of a controller over fabrics is its own host's matter: update it there";
        Error::not_supported(reason).object(bdev)
    }
}

/// What a controller said to a command, with data if it `returns` some; or the error of the connection.
pub(crate) type Said = Result<(Cqe, Option<Vec<u8>>), i32>;

/// The same as any thread may have it.
pub(crate) fn said(answer: Answer, returns: bool) -> Said {
    answer.map(|(cqe, data)| (cqe, data.filter(|_| returns).map(|data| data.as_slice().to_vec())))
}

/// The result of `bdev_nvme_send_cmd`.
pub(crate) fn told(said: Said) -> Result<Value, Error> {
    let (cqe, data) =
        said.map_err(|code| Error::new(code, "the command was not answered by the controller"))?;
    let mut result = json!({ "cpl": URL_SAFE.encode(cqe.as_bytes()) });
    if let Some(data) = data {
        result["data"] = URL_SAFE.encode(data).into();
    }
    Ok(result)
}

fn healthy(controller: &Controller, answer: Answer) -> Result<Value, Error> {
    let (cqe, data): (Cqe, _) = answer.map_err(|code| Error::new(code, "the log page was not read"))?;
    if !cqe.status.is_success() {
        let code = cqe.status.code();
        let name = code.name_for(CommandKind::AdminOrIo).unwrap_or("unknown");
        return Err(Error::io(format!("the log page was refused: {name} ({:#x})", code.get())));
    }
    let data = data.as_ref().map_or(&[][..], |data| data.as_slice());
    let Ok((page, _)) = HealthInformation::ref_from_prefix(data) else {
        return Err(Error::io("the log page is cut short"));
    };
    let facts = controller.facts.borrow();
    // As existing clients have it: degrees Celsius of whole kelvins; numbers of 128 bits as far as 64 go.
    let celsius = |kelvin: u16| i32::from(kelvin) - 273;
    let number = |number: zerocopy::little_endian::U128| u64::try_from(number.get()).unwrap_or(u64::MAX);
    let sensors = page.temperature_sensors.iter().map(|kelvin| kelvin.get()).filter(|kelvin| *kelvin != 0);
    Ok(json!({
        "model_number": facts.model_number,
        "serial_number": facts.serial_number,
        "firmware_revision": facts.firmware_revision,
        "traddr": controller.door.address.traddr,
        "critical_warning": page.critical_warning.get(),
        "temperature_celsius": celsius(page.composite_temperature.get()),
        "available_spare_percentage": page.available_spare,
        "available_spare_threshold_percentage": page.available_spare_threshold,
        "percentage_used": page.percentage_used,
        "data_units_read": number(page.data_units_read),
        "data_units_written": number(page.data_units_written),
        "host_read_commands": number(page.host_read_commands),
        "host_write_commands": number(page.host_write_commands),
        "controller_busy_time": number(page.controller_busy_time),
        "power_cycles": number(page.power_cycles),
        "power_on_hours": number(page.power_on_hours),
        "unsafe_shutdowns": number(page.unsafe_shutdowns),
        "media_errors": number(page.media_errors),
        "num_err_log_entries": number(page.error_log_entries),
        "warning_temperature_time_minutes": page.warning_temperature_time.get(),
        "critical_composite_temperature_time_minutes": page.critical_temperature_time.get(),
        "temperature_sensors_celsius": sensors.map(celsius).collect::<Vec<_>>(),
    }))
}

/// Bytes of a text in either alphabet of base64.
fn decode(what: &str, text: &str) -> Result<Vec<u8>, Error> {
    let bytes = URL_SAFE.decode(text).or_else(|_| STANDARD.decode(text));
    bytes.map_err(|error| Error::invalid(format!("{what} is not base64: {error}")))
}

/// Most time for an I/O command that does not say.
const IO_TIMEOUT: Duration = Duration::from_secs(30);
/// Most data of one command.
pub(crate) const MAX_DATA: usize = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    fn params(cmdbuf: &[u8], more: Value) -> SendCommand {
        let mut params = json!({
            "name": "nvme0", "cmd_type": "admin", "data_direction": "c2h", "cmdbuf": URL_SAFE.encode(cmdbuf),
        });
        params.as_object_mut().unwrap().extend(more.as_object().cloned().unwrap_or_default());
        serde_json::from_value(params).unwrap()
    }

    #[track_caller]
    fn check_error(cmdbuf: &[u8], more: Value, expected: &str) {
        let error = params(cmdbuf, more).command().unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }

    #[test]
    fn a_command_keeps_its_bytes_and_its_data() {
        let mut entry = [0xa5; 64];
        entry[0] = 0x06;
        let command = params(&entry, json!({ "data_len": 4096 })).command().unwrap();
        assert_eq!((command.sqe.as_bytes(), command.data), (&entry[..], Data::In(4096)));
        let data = json!({ "data_direction": "h2c", "data": STANDARD.encode([0xfb, 0xff]) });
        assert_eq!(params(&entry, data).command().unwrap().data, Data::Out(vec![0xfb, 0xff]));
        assert_eq!(params(&entry, json!({})).command().unwrap().data, Data::None);
    }

    #[test]
    fn what_would_harm_or_cannot_be_is_refused_with_words() {
        check_error(&[0; 63], json!({}), "cmdbuf has 63 bytes");
        check_error(&[0; 64], json!({ "cmdbuf": "!" }), "cmdbuf is not base64");
        check_error(&[0x7f; 64], json!({}), "fabrics commands");
        check_error(&[0x0c; 64], json!({}), "sent by the host only");
        check_error(&[0; 64], json!({ "data_len": 2 << 20 }), "data_len is 2097152");
        check_error(&[0; 64], json!({ "metadata_len": 8 }), "metadata");
        check_error(&[0; 64], json!({ "data_direction": "h2c", "data_len": 8 }), "data is missing");
        check_error(&[0; 64], json!({ "data": "AA==" }), "data is given");
    }
}
