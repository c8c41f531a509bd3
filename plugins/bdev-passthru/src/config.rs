//! Parameters of a `passthru` device: one struct for the `[[bdev]]` table, the
//! RPC and the schema.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A device that passes everything to another one.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PassthruParams {
    /// Unique name.
    pub name: String,
    /// Name of the device below.
    #[serde(alias = "base_bdev_name")]
    pub base: String,
    /// Identity. Default: made by the host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uuid: Option<uuid::Uuid>,
}
