//! Additions in slices: a large batch costs no turn more than a few of its entries, and becomes visible as a whole.
//!
//! Rule: nothing of a batch is in the log before all of it can be. What costs time, names and hashes, is done ahead; where
//! the log has moved on meanwhile, because the node took a new generation, it is done again.

use std::collections::VecDeque;
use std::sync::Arc;

use super::entries::estimated_bytes;
use super::error::AddError;
use super::log::content_hash;
use super::names::InstanceNames;
use super::own::Own;
use crate::entry::{EntryChange, NewEntry, ServiceInfo};
use crate::id::{InstanceName, NodeId};
use crate::limits::MAX_BYTES_PER_NODE;

/// A batch of services on its way into the registry; dropped, it leaves its instance names reserved.
#[derive(Debug)]
pub struct Adding {
    unnamed: VecDeque<NewEntry>,
    waiting: VecDeque<Waiting>,
    staged: Vec<(Arc<ServiceInfo>, u64)>,
    /// Estimated bytes of what is staged.
    bytes: usize,
    /// The life and the version that what is staged follows.
    after: Option<(NodeId, u64)>,
}

#[derive(Debug)]
enum Waiting {
    New(NewEntry, InstanceName),
    /// Staged for a life or a version that is over.
    Again(Arc<ServiceInfo>),
}

/// How far a batch has come.
#[derive(Debug)]
#[must_use]
pub enum Added {
    /// There is more to do.
    NotYet(Adding),
    /// All of it is registered, or nothing.
    All(Result<Vec<Arc<ServiceInfo>>, AddError>),
}

impl Adding {
    pub(crate) fn new(entries: Vec<NewEntry>) -> Self {
        Adding {
            unnamed: entries.into(),
            waiting: VecDeque::new(),
            staged: Vec::new(),
            bytes: 0,
            after: None,
        }
    }

    /// True where all that is left is one step that cannot be cut: it is to be done in a turn of its own.
    pub fn is_staged(&self) -> bool {
        self.unnamed.is_empty() && self.waiting.is_empty()
    }

    /// What is not registered is not held by its name either.
    fn give_up(self, names: &mut InstanceNames) {
        for waiting in self.waiting {
            match waiting {
                Waiting::New(entry, name) => {
                    names.release_name(entry.sequence, &entry.service_type, &name);
                }
                Waiting::Again(info) => names.release(&info),
            }
        }
        for (info, _) in self.staged {
            names.release(&info);
        }
    }
}

impl Own {
    /// Goes on with a batch, and looks at no more than `most` of its entries.
    pub(super) fn continue_add(
        &mut self,
        mut adding: Adding,
        most: usize,
        changes: &mut Vec<EntryChange>,
    ) -> Added {
        let mut left = most.max(1);
        while left > 0
            && let Some(entry) = adding.unnamed.pop_front()
        {
            left -= 1;
            match self.names.reserve_one_of(&entry, adding.unnamed.len()) {
                Ok(name) => adding.waiting.push_back(Waiting::New(entry, name)),
                Err(error) => {
                    adding.give_up(&mut self.names);
                    return Added::All(Err(error));
                }
            }
        }
        if !adding.unnamed.is_empty() {
            return Added::NotYet(adding);
        }
        let here = Some((self.log.owner().clone(), self.log.version()));
        if adding.after != here {
            adding.after = here;
            adding.bytes = 0;
            let staged = adding.staged.drain(..).rev();
            for (info, _) in staged {
                adding.waiting.push_front(Waiting::Again(info));
            }
        }
        while left > 0
            && let Some(waiting) = adding.waiting.pop_front()
        {
            left -= 1;
            let version = self.log.version() + 1 + adding.staged.len() as u64;
            let info = match waiting {
                Waiting::New(entry, name) => self.new_info(version, name, entry),
                Waiting::Again(info) => {
                    let mut record = info.to_record();
                    record.version = version;
                    self.info(record)
                }
            };
            let info = self.log.shared(info);
            let hash = content_hash(&info);
            adding.bytes += estimated_bytes(&info);
            adding.staged.push((info, hash));
            if self.log.bytes() + adding.bytes > MAX_BYTES_PER_NODE {
                adding.give_up(&mut self.names);
                return Added::All(Err(AddError::NodeTooLarge));
            }
        }
        // What cannot be cut is not done on top of a slice.
        let has_worked = left < most.max(1);
        if !adding.waiting.is_empty() || (has_worked && adding.staged.len() > most) {
            return Added::NotYet(adding);
        }
        let mut added = Vec::with_capacity(adding.staged.len());
        changes.reserve(adding.staged.len());
        for (info, hash) in adding.staged {
            self.log.append_new(&info, hash);
            changes.push(EntryChange {
                before: None,
                after: Some(Arc::clone(&info)),
            });
            added.push(info);
        }
        Added::All(Ok(added))
    }
}
