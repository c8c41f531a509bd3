//! The device: opens and claims its base, looks like it, and follows what
//! happens to it.

use std::rc::Rc;
use std::sync::Arc;

use tenon_sdk::{
    Access, BaseEvent, Bdev, BdevSpec, Claim, Descriptor, Error, Host, LetGo, Microseconds, Reactor,
};
use uuid::Uuid;

use crate::channel::DelayChannel;
use crate::config::DelayParams;
use crate::latency::{Class, Latencies};

/// A device.
pub struct DelayBdev {
    params: DelayParams,
    base: Descriptor,
    latencies: Arc<Latencies>,
    let_go: Arc<LetGo>,
}

impl DelayBdev {
    /// Opens and claims the base; gives the device and what to register.
    pub fn open(host: Host, params: &DelayParams) -> Result<(BdevSpec, DelayBdev), Error> {
        let latencies = Arc::new(Latencies::default());
        for class in Class::ALL {
            latencies.set_ns(class, params.latency(class).as_ns());
        }
        let let_go = Arc::new(LetGo::new());
        let (name, order) = (params.name.clone(), let_go.clone());
        let on_event = move |event: &BaseEvent| {
            host.follow(&name, event);
            if matches!(event, BaseEvent::Remove { .. }) {
                // The host waits for every I/O before the device goes.
                order.order(host);
            }
        };
        let base = host.open(&params.base, Access::Write, on_event)?;
        base.claim(Claim::ExclusiveWrite)?;
        let info = base.info()?;
        // The same base gives the same identity at every start.
        let uuid = params.uuid.unwrap_or_else(|| {
            let base = Uuid::from_bytes(info.uuid);
            Uuid::new_v5(&base, format!("delay {}", params.name).as_bytes())
        });
        let spec = BdevSpec::over(&params.name, &info).product("delay").uuid(uuid.into_bytes());
        Ok((spec, DelayBdev { params: params.clone(), base, latencies, let_go }))
    }

    /// Changes the device to `params`; only latencies can change in place.
    pub fn update(&self, params: &DelayParams) -> Result<(), Error> {
        let old = &self.params;
        if (&params.name, &params.base, params.uuid) != (&old.name, &old.base, old.uuid) {
            return Err(Error::not_supported("only latencies can change in place").object(&old.name));
        }
        for class in Class::ALL {
            self.latencies.set_ns(class, params.latency(class).as_ns());
        }
        Ok(())
    }

    /// Changes one latency.
    pub fn set_latency(&self, class: Class, ns: u64) {
        self.latencies.set_ns(class, ns);
    }

    fn latency(&self, class: Class) -> Microseconds {
        Microseconds::from_ns(self.latencies.get_ns(class))
    }
}

impl Bdev for DelayBdev {
    type Channel = DelayChannel;

    fn channel(&self, reactor: Reactor) -> Result<Rc<DelayChannel>, Error> {
        DelayChannel::open(self.base.channel()?, &self.params.name, reactor, &self.latencies, &self.let_go)
    }

    fn dump(&self) -> serde_json::Value {
        let us = |class| self.latencies.get_ns(class) / 1000;
        serde_json::json!({ "delay": {
            "name": self.params.name,
            "base_bdev_name": self.params.base,
            "avg_read_latency": us(Class::AvgRead),
            "p99_read_latency": us(Class::P99Read),
            "avg_write_latency": us(Class::AvgWrite),
            "p99_write_latency": us(Class::P99Write),
        } })
    }

    fn config(&self) -> Option<serde_json::Value> {
        serde_json::to_value(DelayParams {
            avg_read_latency_us: self.latency(Class::AvgRead),
            p99_read_latency_us: Some(self.latency(Class::P99Read)),
            avg_write_latency_us: self.latency(Class::AvgWrite),
            p99_write_latency_us: Some(self.latency(Class::P99Write)),
            ..self.params.clone()
        })
        .ok()
    }
}
