//! The device: opens and claims its base, looks like it, follows what happens
//! to it, and passes every I/O on.

use std::rc::Rc;

use tenon_sdk::{Access, BaseChannel, Bdev, BdevSpec, Channel, Claim, Descriptor, Error, Host, Io, Reactor};
use uuid::Uuid;

use crate::config::PassthruParams;

/// A device.
pub struct PassthruBdev {
    params: PassthruParams,
    base: Descriptor,
}

/// Its data path on one reactor.
pub struct PassthruChannel {
    base: BaseChannel,
}

impl PassthruBdev {
    /// Opens and claims the base; gives the device and what to register.
    pub fn open(host: Host, params: &PassthruParams) -> Result<(BdevSpec, PassthruBdev), Error> {
        let name = params.name.clone();
        let base = host.open(&params.base, Access::Write, move |event| host.follow(&name, event))?;
        base.claim(Claim::ExclusiveWrite)?;
        let info = base.info()?;
        // The same base gives the same identity at every start.
        let uuid = params.uuid.unwrap_or_else(|| {
            let base = Uuid::from_bytes(info.uuid);
            Uuid::new_v5(&base, format!("passthru {}", params.name).as_bytes())
        });
        let spec = BdevSpec::over(&params.name, &info).product("passthru").uuid(uuid.into_bytes());
        Ok((spec, PassthruBdev { params: params.clone(), base }))
    }
}

impl Bdev for PassthruBdev {
    type Channel = PassthruChannel;

    fn channel(&self, _: Reactor) -> Result<Rc<PassthruChannel>, Error> {
        Ok(Rc::new(PassthruChannel { base: self.base.channel()? }))
    }

    fn dump(&self) -> serde_json::Value {
        serde_json::json!({ "passthru": { "name": self.params.name, "base_bdev_name": self.params.base } })
    }

    fn config(&self) -> Option<serde_json::Value> {
        serde_json::to_value(&self.params).ok()
    }
}

impl Channel for PassthruChannel {
    type PerIo = ();

    /// Room for children, abort and the return of lent memory follow from this.
    fn base(&self) -> Option<&BaseChannel> {
        Some(&self.base)
    }

    fn submit(&self, io: Io<Self>) {
        io.pass(&self.base);
    }
}
