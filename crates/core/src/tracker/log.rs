//! One owner's versioned entries, as the owner keeps them: append, delta since a version, snapshot.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use super::entries::{Entries, Types, estimated_bytes};
use crate::entry::ServiceInfo;
use crate::id::NodeId;
use crate::message::{Delta, Operation, OwnerVersion};

/// Estimated bytes of the operations in one delta; longer ones are cut into several.
pub(crate) const MAX_DELTA_BYTES: usize = 256 * 1024;

/// The hash of one version of an entry, of which an owner's content hash is the wrapping sum: independent of order.
pub(crate) fn content_hash(info: &ServiceInfo) -> u64 {
    #[cfg(test)]
    work::note();
    let record = info.to_record();
    let bytes =
        postcard::to_allocvec(&record).expect("a record is plain data, which postcard can hold");
    xxhash_rust::xxh3::xxh3_64(&bytes)
}

/// How many entries were hashed, which is most of what is done with one: so tests count the work of a turn.
#[cfg(test)]
pub(crate) mod work {
    use std::cell::Cell;

    thread_local!(static ENTRIES: Cell<usize> = const { Cell::new(0) });

    pub(super) fn note() {
        ENTRIES.set(ENTRIES.get() + 1);
    }

    /// Since the last time it was asked.
    pub(crate) fn take() -> usize {
        ENTRIES.take()
    }
}

#[derive(Clone, Debug)]
struct LogChange {
    sequence: u64,
    /// None for a removal.
    after: Option<Arc<ServiceInfo>>,
    /// The content hash once this change was made.
    content: u64,
}

impl LogChange {
    /// In a message, give or take a few.
    fn bytes(&self) -> usize {
        const REMOVAL: usize = 16;
        self.after.as_deref().map_or(REMOVAL, estimated_bytes)
    }
}

/// See the module. Every change counts the version up by one.
#[derive(Clone, Debug)]
pub(crate) struct Log {
    owner: NodeId,
    nonce: u64,
    version: u64,
    content: u64,
    entries: Entries,
    types: Types,
    /// The changes that led to `version`, at most `kept` of them.
    changes: VecDeque<LogChange>,
    kept: usize,
}

impl Log {
    pub(crate) fn new(owner: NodeId, nonce: u64, kept: usize) -> Self {
        Log {
            owner,
            nonce,
            version: 0,
            content: 0,
            entries: Entries::default(),
            types: Types::default(),
            changes: VecDeque::new(),
            kept,
        }
    }

    /// Whose it is, in that life.
    pub(crate) fn owner(&self) -> &NodeId {
        &self.owner
    }

    pub(crate) fn version(&self) -> u64 {
        self.version
    }

    pub(crate) fn owner_version(&self) -> OwnerVersion {
        OwnerVersion {
            owner: self.owner.clone(),
            version: self.version,
            content: self.content,
        }
    }

    /// Bytes of all entries in messages, give or take a few.
    pub(crate) fn bytes(&self) -> usize {
        self.entries.bytes()
    }

    pub(crate) fn get(&self, sequence: u64) -> Option<&Arc<ServiceInfo>> {
        self.entries.get(sequence)
    }

    pub(crate) fn entries(&self) -> impl ExactSizeIterator<Item = &Arc<ServiceInfo>> {
        self.entries.iter()
    }

    /// Writes the entry that `make` gives for the next version, and returns it with the one before.
    pub(crate) fn put(
        &mut self,
        sequence: u64,
        make: impl FnOnce(u64) -> ServiceInfo,
    ) -> (Option<Arc<ServiceInfo>>, Arc<ServiceInfo>) {
        self.version += 1;
        let after = make(self.version);
        debug_assert_eq!(after.id().sequence, sequence);
        let service_type = self.types.share(after.service_type());
        let after = Arc::new(after.with_shared_type(&service_type));
        let before = self.entries.insert(Arc::clone(&after));
        if let Some(before) = &before {
            self.content = self.content.wrapping_sub(content_hash(before));
        }
        self.content = self.content.wrapping_add(content_hash(&after));
        self.append(sequence, Some(Arc::clone(&after)));
        (before, after)
    }

    /// The entry, with its type's name shared.
    pub(crate) fn shared(&mut self, info: ServiceInfo) -> Arc<ServiceInfo> {
        let service_type = self.types.share(info.service_type());
        Arc::new(info.with_shared_type(&service_type))
    }

    /// Writes a new entry that was made for the next version, and whose content hash is known.
    pub(crate) fn append_new(&mut self, info: &Arc<ServiceInfo>, hash: u64) {
        self.version += 1;
        debug_assert_eq!(info.reference().version, self.version);
        let before = self.entries.insert(Arc::clone(info));
        debug_assert!(before.is_none(), "a sequence number is used once");
        self.content = self.content.wrapping_add(hash);
        self.append(info.id().sequence, Some(Arc::clone(info)));
    }

    pub(crate) fn remove(&mut self, sequence: u64) -> Option<Arc<ServiceInfo>> {
        let before = self.entries.remove(sequence)?;
        self.version += 1;
        self.content = self.content.wrapping_sub(content_hash(&before));
        self.append(sequence, None);
        Some(before)
    }

    fn append(&mut self, sequence: u64, after: Option<Arc<ServiceInfo>>) {
        if self.changes.len() >= self.kept {
            self.changes.pop_front();
        }
        self.changes.push_back(LogChange {
            sequence,
            after,
            content: self.content,
        });
    }

    /// True where [`since`](Self::since) can tell what changed after that version.
    pub(crate) fn reaches(&self, version: u64) -> bool {
        version <= self.version && self.version - version <= self.changes.len() as u64
    }

    /// What it had at a version; none where the log no longer reaches back.
    pub(crate) fn owner_version_at(&self, version: u64) -> Option<OwnerVersion> {
        if version == self.version || !self.reaches(version) {
            return (version == self.version).then(|| self.owner_version());
        }
        let after = self.changes.len() - (self.version - version) as usize;
        let content = match after.checked_sub(1) {
            Some(at) => self.changes[at].content,
            None if version == 0 => 0,
            None => return None,
        };
        Some(OwnerVersion {
            owner: self.owner.clone(),
            version,
            content,
        })
    }

    /// Estimated bytes of all changes after `from`, those that a later one replaced among them. None where the log no longer
    /// reaches back.
    pub(crate) fn bytes_since(&self, from: u64) -> Option<usize> {
        if !self.reaches(from) {
            return None;
        }
        let skip = self.changes.len() - (self.version - from) as usize;
        Some(self.changes.range(skip..).map(LogChange::bytes).sum())
    }

    /// What changed after `from`, in deltas that follow each other, at most so many, each with about so many bytes; one empty
    /// delta where nothing did. None where the log no longer reaches back.
    pub(crate) fn since(&self, from: u64, most: usize, delta_bytes: usize) -> Option<Vec<Delta>> {
        if !self.reaches(from) {
            return None;
        }
        let skip = self.changes.len() - (self.version - from) as usize;
        let mut deltas = Vec::new();
        let mut version = from;
        let mut start = from;
        let mut folded: BTreeMap<u64, Option<&Arc<ServiceInfo>>> = BTreeMap::new();
        let mut bytes = 0;
        let mut content = if skip == 0 {
            self.content
        } else {
            self.changes[skip - 1].content
        };
        for change in self.changes.range(skip..) {
            version += 1;
            content = change.content;
            bytes += change.bytes();
            folded.insert(change.sequence, change.after.as_ref());
            if bytes >= delta_bytes {
                deltas.push(self.delta(start, version, content, std::mem::take(&mut folded)));
                if deltas.len() >= most {
                    return Some(deltas);
                }
                (start, bytes) = (version, 0);
            }
        }
        if start < version || deltas.is_empty() {
            if start == version {
                content = self.content;
            }
            deltas.push(self.delta(start, version, content, folded));
        }
        Some(deltas)
    }

    fn delta(
        &self,
        from: u64,
        to: u64,
        content: u64,
        folded: BTreeMap<u64, Option<&Arc<ServiceInfo>>>,
    ) -> Delta {
        Delta {
            owner: self.owner.clone(),
            nonce: self.nonce,
            from,
            to,
            content,
            operations: folded
                .into_iter()
                .map(|(sequence, after)| match after {
                    Some(info) => Operation::Put(info.to_record()),
                    None => Operation::Remove { sequence },
                })
                .collect(),
        }
    }

    /// The owner took a new generation: every entry is written anew, and what led here is forgotten. Returns each entry
    /// before and after.
    pub(crate) fn renew(&mut self, owner: NodeId) -> Vec<(Arc<ServiceInfo>, Arc<ServiceInfo>)> {
        self.owner = owner;
        self.version = 0;
        self.content = 0;
        self.changes.clear();
        let before = std::mem::take(&mut self.entries);
        let mut renewed = Vec::with_capacity(before.len());
        for before in before.iter() {
            let sequence = before.id().sequence;
            let mut record = before.to_record();
            record.previous = Some(before.reference());
            let (owner, nonce) = (self.owner.clone(), self.nonce);
            let (_, after) = self.put(sequence, |version| {
                record.version = version;
                ServiceInfo::from_record(&owner.name, owner.generation, nonce, record)
            });
            renewed.push((Arc::clone(before), after));
        }
        renewed
    }
}
