//! This node's own entries, and how much of them has been sent.
//!
//! Each change is in the log at once, and goes out a moment later with those that follow it: [`Own::changed`] says when,
//! [`Own::flush`] what. Whoever reads is told by the changes that each method appends.

use std::sync::Arc;
use std::time::Duration;

use super::entries::estimated_bytes;
use super::error::{AddError, UpdateError};
use super::log::{Log, MAX_DELTA_BYTES};
use super::names::InstanceNames;
use crate::entry::{EntryChange, EntryUpdate, NewEntry, Record, ServiceInfo, ServiceState};
use crate::id::{InstanceName, NodeId};
use crate::limits::MAX_BYTES_PER_NODE;
use crate::message::Delta;
use crate::time::Instant;

/// Changes are collected for this long before they go out.
pub(super) const COALESCE: Duration = Duration::from_millis(1);

/// Deltas that go out at once, of 256 KiB each; more follow after [`COALESCE`]. What is sent in one turn stays bounded, and
/// a peer that cannot take it all is found congested before everything is queued for it.
const MAX_FLUSHED_DELTAS: usize = 4;

/// See the module.
pub(super) struct Own {
    pub(super) nonce: u64,
    pub(super) log: Log,
    pub(super) names: InstanceNames,
    /// The version that all uncongested peers have been sent.
    pub(super) sent: u64,
    pub(super) flush_at: Option<Instant>,
    /// This node goes away: nothing of it owns keys any more, whatever is added.
    draining: bool,
}

impl Own {
    pub(super) fn new(me: &NodeId, nonce: u64, kept: usize) -> Self {
        Own {
            nonce,
            log: Log::new(me.clone(), nonce, kept),
            names: InstanceNames::new(me.name.clone()),
            sent: 0,
            flush_at: None,
            draining: false,
        }
    }

    /// True where something has changed that was not sent.
    pub(super) fn is_ahead(&self) -> bool {
        self.sent < self.log.version()
    }

    /// What was written is to go out soon.
    pub(super) fn changed(&mut self, now: Instant) {
        if self.flush_at.is_none() && self.is_ahead() {
            self.flush_at = Some(now + COALESCE);
        }
    }

    /// What changed since the last time, as much as one turn may take; none where more changed than is kept. It counts as
    /// sent.
    pub(super) fn flush(&mut self, now: Instant) -> Option<Vec<Delta>> {
        let deltas = self
            .log
            .since(self.sent, MAX_FLUSHED_DELTAS, MAX_DELTA_BYTES);
        let last = deltas.as_ref().and_then(|deltas| deltas.last());
        self.sent = last.map_or(self.log.version(), |last| last.to);
        self.flush_at = self.is_ahead().then(|| now + COALESCE);
        deltas
    }

    /// Registers services, all or none.
    pub(super) fn add(
        &mut self,
        entries: Vec<NewEntry>,
        changes: &mut Vec<EntryChange>,
    ) -> Result<Vec<Arc<ServiceInfo>>, AddError> {
        let names = self.names.reserve(&entries)?;
        let mut bytes = self.log.bytes();
        let mut infos = Vec::with_capacity(entries.len());
        for (mut entry, name) in entries.into_iter().zip(names) {
            entry.state = self.allowed(entry.state);
            let info = self.new_info(0, name, entry);
            bytes += estimated_bytes(&info);
            infos.push(info);
        }
        if bytes > MAX_BYTES_PER_NODE {
            for info in &infos {
                self.names.release(info);
            }
            return Err(AddError::NodeTooLarge);
        }
        let added = infos.into_iter().map(|info| {
            let after = self.write(info.to_record());
            changes.push(EntryChange {
                before: None,
                after: Some(Arc::clone(&after)),
            });
            after
        });
        Ok(added.collect())
    }

    /// Merges an update into the entry as it is now; one that says nothing changes nothing.
    pub(super) fn update(
        &mut self,
        sequence: u64,
        update: EntryUpdate,
        changes: &mut Vec<EntryChange>,
    ) -> Result<Arc<ServiceInfo>, UpdateError> {
        let before = self
            .log
            .get(sequence)
            .cloned()
            .ok_or(UpdateError::Unknown { sequence })?;
        if update == EntryUpdate::default() {
            return Ok(before);
        }
        let mut update = update;
        update.state = update.state.map(|state| self.allowed(state));
        let record = update.merge(&before)?;
        // Far from the bound, this is not looked at: an entry has at most a few kilobytes.
        if self.log.bytes() > MAX_BYTES_PER_NODE / 8 * 7 {
            let after = self.info(record.clone());
            let (more, less) = (estimated_bytes(&after), estimated_bytes(&before));
            if more > less && self.log.bytes() + more - less > MAX_BYTES_PER_NODE {
                return Err(UpdateError::NodeTooLarge);
            }
        }
        let after = self.write(record);
        changes.push(EntryChange {
            before: Some(before),
            after: Some(Arc::clone(&after)),
        });
        Ok(after)
    }

    /// From now on what is added or enabled drains.
    pub(super) fn set_draining(&mut self) {
        self.draining = true;
    }

    /// The numbers of those that are online.
    pub(super) fn online(&self) -> Vec<u64> {
        self.log
            .entries()
            .filter(|info| info.state() == ServiceState::Online)
            .map(|info| info.id().sequence)
            .collect()
    }

    pub(super) fn remove(
        &mut self,
        sequence: u64,
        changes: &mut Vec<EntryChange>,
    ) -> Result<Arc<ServiceInfo>, UpdateError> {
        let before = self
            .log
            .remove(sequence)
            .ok_or(UpdateError::Unknown { sequence })?;
        self.names.release(&before);
        changes.push(EntryChange {
            before: Some(Arc::clone(&before)),
            after: None,
        });
        Ok(before)
    }

    /// Publishes every entry anew under a new generation.
    pub(super) fn renew(&mut self, me: NodeId, changes: &mut Vec<EntryChange>) {
        for (before, after) in self.log.renew(me) {
            changes.push(EntryChange {
                before: Some(before),
                after: Some(after),
            });
        }
        // Every link says Hello again, and starts with the versions.
        self.sent = self.log.version();
    }

    pub(super) fn new_info(
        &self,
        version: u64,
        name: InstanceName,
        entry: NewEntry,
    ) -> ServiceInfo {
        self.info(Record {
            sequence: entry.sequence,
            version,
            previous: None,
            service_type: entry.service_type,
            name,
            state: entry.state,
            weight: entry.weight,
            protocol_version: entry.protocol_version,
            metadata: Some(Box::new(entry.metadata)),
        })
    }

    /// What a record of this node says.
    pub(super) fn info(&self, record: Record) -> ServiceInfo {
        let me = self.log.owner();
        ServiceInfo::from_record(&me.name, me.generation, self.nonce, record)
    }

    /// Writes a record as the next version.
    fn write(&mut self, mut record: Record) -> Arc<ServiceInfo> {
        let (me, nonce) = (self.log.owner().clone(), self.nonce);
        let (_, after) = self.log.put(record.sequence, |version| {
            record.version = version;
            ServiceInfo::from_record(&me.name, me.generation, nonce, record)
        });
        after
    }

    fn allowed(&self, state: ServiceState) -> ServiceState {
        match state {
            ServiceState::Online if self.draining => ServiceState::Draining,
            state => state,
        }
    }
}
