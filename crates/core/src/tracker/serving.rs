//! A snapshot that a peer reads, chunk by chunk.

use std::sync::Arc;

use crate::entry::ServiceInfo;
use crate::id::NodeId;
use crate::message::{OwnerVersion, SnapshotChunk};
use crate::time::Instant;

/// A snapshot that is being read.
#[derive(Debug)]
pub(super) struct Serving {
    pub(super) to: NodeId,
    pub(super) of: OwnerVersion,
    pub(super) nonce: u64,
    pub(super) entries: Vec<Arc<ServiceInfo>>,
    /// Where each chunk ends.
    pub(super) ends: Vec<usize>,
    pub(super) asked_at: Instant,
}

impl Serving {
    pub(super) fn chunk(&self, index: u32) -> Option<SnapshotChunk> {
        let at = usize::try_from(index).ok()?;
        let end = *self.ends.get(at)?;
        let start = at.checked_sub(1).map_or(0, |before| self.ends[before]);
        Some(SnapshotChunk {
            of: self.of.clone(),
            nonce: self.nonce,
            index,
            count: u32::try_from(self.ends.len()).ok()?,
            records: self.entries[start..end]
                .iter()
                .map(|info| info.to_record())
                .collect(),
        })
    }
}
