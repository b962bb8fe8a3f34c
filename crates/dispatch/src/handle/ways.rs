//! What handles need of their node.

use std::sync::Arc;

use crate::data::lane_runtime::LaneRuntime;
use crate::data::local::Local;
use crate::data::peers::Peers;
use crate::registry::Registry;

/// See the module. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Ways {
    /// Who owns a key.
    pub(crate) registry: Registry,
    /// To who is here.
    pub(crate) local: Arc<Local>,
    /// To who is elsewhere.
    pub(crate) peers: Arc<Peers>,
    pub(crate) runtime: Arc<LaneRuntime>,
}
