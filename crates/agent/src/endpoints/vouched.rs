//! What a holder says of one endpoint to its twin.

use serde::{Deserialize, Serialize};

use super::definition::Definition;

/// What a holder says of one endpoint.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Vouched {
    pub(super) id: String,
    pub(super) definition: Definition,
    pub(super) registrant: String,
    pub(super) state: String,
    pub(super) reason: Option<String>,
    /// How much of the lease is over, in milliseconds.
    pub(super) renewed_ago_ms: u64,
}
