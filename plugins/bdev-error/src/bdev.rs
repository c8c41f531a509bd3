//! The device: opens and claims its base, looks like it, follows what happens
//! to it, and keeps what is injected.

use std::rc::Rc;
use std::sync::Arc;

use serde_json::{Value, json};
use tenon_sdk::{
    Access, BaseEvent, Bdev, BdevFlags, BdevInfo, BdevSpec, Claim, Descriptor, Error, Host, IoFlags, LetGo,
    Reactor,
};
use uuid::Uuid;

use crate::channel::ErrorChannel;
use crate::config::{ErrorParams, ErrorType, Injection};
use crate::injection::Injections;

/// A device.
pub struct ErrorBdev {
    params: ErrorParams,
    name: Arc<str>,
    base: Descriptor,
    injections: Arc<Injections>,
    let_go: Arc<LetGo>,
}

impl ErrorBdev {
    /// Opens and claims the base; gives the device and what to register.
    pub fn open(host: Host, params: &ErrorParams) -> Result<(BdevSpec, ErrorBdev), Error> {
        let name: Arc<str> = params.bdev_name().into();
        let let_go = Arc::new(LetGo::new());
        let (device, order) = (name.clone(), let_go.clone());
        let on_event = move |event: &BaseEvent| {
            host.follow(&device, event);
            if matches!(event, BaseEvent::Remove { .. }) {
                // The host waits for every I/O before the device goes.
                order.order(host);
            }
        };
        let base = host.open(&params.base, Access::Write, on_event)?;
        base.claim(Claim::ExclusiveWrite)?;
        let info = base.info()?;
        let spec = spec(&name, params, &info);
        let injections = Arc::new(Injections::default());
        let bdev = ErrorBdev { params: params.clone(), name, base, injections, let_go };
        params.inject.iter().try_for_each(|injection| bdev.inject(injection))?;
        Ok((spec, bdev))
    }

    /// Injects an error, or clears all.
    pub fn inject(&self, injection: &Injection) -> Result<(), Error> {
        let base = self.base.opened_info();
        let has_separate_metadata =
            base.limits.md_size > 0 && !base.flags.contains(BdevFlags::METADATA_INTERLEAVED);
        if injection.error_type == ErrorType::CorruptData && has_separate_metadata {
            let reason = "data of a device with separate metadata cannot be corrupted";
            return Err(Error::not_supported(reason).object(&*self.name));
        }
        self.injections.set(injection);
        log::info!("error injection set bdev={} injection={injection:?}", self.name);
        Ok(())
    }

    /// Changes the device to `params`; only what is injected can change in place.
    pub fn update(&self, params: &ErrorParams) -> Result<(), Error> {
        if (params.bdev_name().as_str(), &params.base, params.uuid)
            != (&*self.name, &self.params.base, self.params.uuid)
        {
            return Err(Error::not_supported("only what is injected can change in place").object(&*self.name));
        }
        self.injections.clear();
        params.inject.iter().try_for_each(|injection| self.inject(injection))
    }
}

fn spec(name: &str, params: &ErrorParams, base: &BdevInfo) -> BdevSpec {
    // The same base gives the same identity at every start.
    let uuid = params
        .uuid
        .unwrap_or_else(|| Uuid::new_v5(&Uuid::from_bytes(base.uuid), format!("error {name}").as_bytes()));
    // Memory of the base is not lent: it would be corrupted in the base itself.
    let io_flags = IoFlags(base.io_flags.0 & (IoFlags::FUA.0 | IoFlags::DEALLOCATE.0));
    BdevSpec::over(name, base).product("Error Injection Disk").io_flags(io_flags).uuid(uuid.into_bytes())
}

impl Bdev for ErrorBdev {
    type Channel = ErrorChannel;

    fn channel(&self, reactor: Reactor) -> Result<Rc<ErrorChannel>, Error> {
        ErrorChannel::open(self.base.channel()?, &self.name, reactor, &self.injections, &self.let_go)
    }

    fn dump(&self) -> Value {
        let injected: serde_json::Map<String, Value> = self
            .injections
            .injected()
            .map(|(kind, count)| (json!(kind).as_str().unwrap_or_default().to_owned(), json!(count)))
            .collect();
        json!({ "error": {
            "name": &*self.name,
            "base_bdev": self.params.base,
            "injections": self.injections.active(),
            "injected": injected,
        } })
    }

    fn config(&self) -> Option<Value> {
        let inject = self.injections.active();
        serde_json::to_value(ErrorParams { inject, ..self.params.clone() }).ok()
    }

    fn reset_statistics(&self) {
        self.injections.reset_counts();
    }
}
