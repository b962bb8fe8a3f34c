//! Who waits for which version, and who has said that it has it; see [`confirm`](super::confirm).

use std::collections::BTreeMap;

use crate::id::NodeId;

/// What this node has asked of its peers, and they of it.
#[derive(Debug, Default)]
pub(super) struct Confirmations {
    /// The version of this node's own entries that the peers are to confirm.
    pub(super) wanted: Option<u64>,
    /// The highest version that each peer said it has.
    pub(super) confirmed: BTreeMap<NodeId, u64>,
    /// The version of an owner that it waits to hear of from this node.
    pub(super) awaited: BTreeMap<NodeId, u64>,
}

impl Confirmations {
    /// True where nobody waits for this node's word.
    pub(super) fn owes_nothing(&self) -> bool {
        self.awaited.is_empty()
    }
}
