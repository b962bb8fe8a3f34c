//! This node's copy of one other owner's entries: apply a delta, install a snapshot.

use std::sync::Arc;

use super::entries::{Beyond, Entries, Types};
use super::log::content_hash;
use crate::entry::{EntryChange, Record, ServiceInfo};
use crate::id::NodeId;
use crate::message::{Delta, Operation, OwnerVersion};

/// Why a delta or a snapshot changed nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Rejected {
    /// The copy has that version already.
    Known,
    /// Something before it is missing.
    Gap,
    /// The outcome would not be what the owner says it has: the copy has to be replaced.
    Differs,
    /// The owner would have more than it may.
    Beyond(Beyond),
}

/// See the module.
#[derive(Clone, Debug)]
pub(crate) struct Replica {
    owner: NodeId,
    nonce: u64,
    version: u64,
    content: u64,
    /// True once a first delta from nothing, or a snapshot, was taken in.
    based: bool,
    entries: Entries,
    types: Types,
}

impl Replica {
    pub(crate) fn new(owner: NodeId) -> Self {
        Replica {
            owner,
            nonce: 0,
            version: 0,
            content: 0,
            based: false,
            entries: Entries::default(),
            types: Types::default(),
        }
    }

    pub(crate) fn owner(&self) -> &NodeId {
        &self.owner
    }

    pub(crate) fn nonce(&self) -> u64 {
        self.nonce
    }

    /// The version that it has; none before the first.
    pub(crate) fn version(&self) -> Option<u64> {
        self.based.then_some(self.version)
    }

    pub(crate) fn content(&self) -> u64 {
        self.content
    }

    pub(crate) fn owner_version(&self) -> OwnerVersion {
        OwnerVersion {
            owner: self.owner.clone(),
            version: self.version,
            content: self.content,
        }
    }

    pub(crate) fn entries(&self) -> impl ExactSizeIterator<Item = &Arc<ServiceInfo>> {
        self.entries.iter()
    }

    /// Rule: a delta is applied only where it is contiguous with what is there. As its operations are folded to the last
    /// one of each entry, one that starts earlier and ends later is contiguous, too.
    pub(crate) fn apply(&mut self, delta: Delta) -> Result<Vec<EntryChange>, Rejected> {
        let (have, same_process) = (self.version(), delta.nonce == self.nonce);
        match have {
            None if delta.from > 0 => return Err(Rejected::Gap),
            Some(_) if !same_process => return Err(Rejected::Differs),
            Some(have) if delta.from > have => return Err(Rejected::Gap),
            Some(have) if delta.to < have => return Err(Rejected::Known),
            Some(have) if delta.to == have => {
                return if delta.content == self.content {
                    Err(Rejected::Known)
                } else {
                    Err(Rejected::Differs)
                };
            }
            _ => {}
        }
        let operations: Vec<(u64, Option<Arc<ServiceInfo>>)> = delta
            .operations
            .into_iter()
            .map(|operation| match operation {
                Operation::Put(record) => (record.sequence, Some(self.info(delta.nonce, record))),
                Operation::Remove { sequence } => (sequence, None),
            })
            .collect();
        let changed = operations.iter();
        self.entries
            .check_after(changed.map(|(sequence, after)| (*sequence, after.as_ref())))
            .map_err(Rejected::Beyond)?;
        self.nonce = delta.nonce;
        let mut content = self.content;
        let mut changes = Vec::with_capacity(operations.len());
        for (sequence, after) in operations {
            let before = match &after {
                Some(after) => self.entries.insert(Arc::clone(after)),
                None => self.entries.remove(sequence),
            };
            if let Some(before) = &before {
                content = content.wrapping_sub(content_hash(before));
            }
            if let Some(after) = &after {
                content = content.wrapping_add(content_hash(after));
            }
            if before != after {
                changes.push(EntryChange { before, after });
            }
        }
        self.version = delta.to;
        self.content = content;
        self.based = true;
        if content != delta.content {
            // The changes stand, for readers to see what is likely; the caller asks for the whole.
            tracing::warn!(owner = %self.owner, version = delta.to, "an owner's entries differ from what it says");
        }
        Ok(changes)
    }

    /// The entries of a part of a snapshot of the process `nonce`, those that are here already as they are, each with its
    /// content hash: the parts are hashed as they come, not all of them when the last one is here.
    pub(crate) fn stage(
        &mut self,
        nonce: u64,
        records: Vec<Record>,
    ) -> impl Iterator<Item = (Arc<ServiceInfo>, u64)> {
        records.into_iter().map(move |record| {
            let unchanged = self
                .entries
                .get(record.sequence)
                .filter(|info| info.id().nonce == nonce && info.to_record() == record);
            let info = match unchanged {
                Some(info) => Arc::clone(info),
                None => self.info(nonce, record),
            };
            let hash = content_hash(&info);
            (info, hash)
        })
    }

    /// Replaces everything by one snapshot, whose parts were [staged](Self::stage), and whose hashes sum up to `content`.
    pub(crate) fn install(
        &mut self,
        of: &OwnerVersion,
        nonce: u64,
        staged: Vec<Arc<ServiceInfo>>,
        content: u64,
    ) -> Result<Vec<EntryChange>, Rejected> {
        if content != of.content {
            return Err(Rejected::Differs);
        }
        let mut entries = Entries::default();
        for info in staged {
            entries.insert(info);
        }
        entries.check().map_err(Rejected::Beyond)?;
        let before = std::mem::replace(&mut self.entries, entries);
        self.nonce = nonce;
        self.version = of.version;
        self.content = content;
        self.based = true;
        let gone = before
            .iter()
            .filter(|info| self.entries.get(info.id().sequence).is_none())
            .map(|info| EntryChange {
                before: Some(Arc::clone(info)),
                after: None,
            });
        let came = self.entries.iter().filter_map(|after| {
            let before = before.get(after.id().sequence);
            (before != Some(after)).then(|| EntryChange {
                before: before.cloned(),
                after: Some(Arc::clone(after)),
            })
        });
        Ok(gone.chain(came).collect())
    }

    fn info(&mut self, nonce: u64, mut record: Record) -> Arc<ServiceInfo> {
        record.service_type = self.types.share(&record.service_type);
        Arc::new(ServiceInfo::from_record(
            &self.owner.name,
            self.owner.generation,
            nonce,
            record,
        ))
    }
}

#[cfg(test)]
mod tests;
