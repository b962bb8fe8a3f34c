//! What services need of their node.

use std::sync::Arc;

use crate::data::callers::Callers;
use crate::data::lane_runtime::LaneRuntime;
use crate::data::local::Local;
use crate::registry::Registry;

/// See the module. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Host {
    /// Where they are listed.
    pub(crate) registry: Registry,
    /// Where messages reach them.
    pub(crate) local: Arc<Local>,
    pub(crate) runtime: Arc<LaneRuntime>,
    /// Who may have sent them something that has not arrived yet.
    pub(crate) callers: Arc<Callers>,
}
