//! The answering side of requests: the suffix of the log, or a snapshot chunk by chunk as it is asked for.

use std::sync::Arc;
use std::time::Duration;

use super::entries::estimated_bytes;
use super::serving::Serving;
use super::{Recipients, Tracker};
use crate::entry::ServiceInfo;
use crate::id::NodeId;
use crate::message::{ControlMessage, Delta, Request, Resume, SnapshotChunk, Unavailable};
use crate::time::Instant;

/// Rule: at most two snapshots are served at once, those of a single chunk not counted.
const MAX_SERVING: usize = 2;

/// Estimated bytes of one chunk: a quarter of a second on a link of 1 Mbit/s, where other traffic wants its share, too.
const CHUNK_BYTES: usize = 32 * 1024;

/// What changed is sent as a snapshot where it has more bytes than this.
const MAX_SUFFIX_BYTES: usize = 2 * 1024 * 1024;

/// Estimated bytes of one part of what changed: as much as its reader asks for ahead of a snapshot.
const PART_BYTES: usize = 4 * CHUNK_BYTES;

/// A reader that does not ask for the next chunk for this long has gone elsewhere.
const IDLE: Duration = Duration::from_secs(3);

impl Tracker {
    pub(super) fn serve(&mut self, now: Instant, to: &NodeId, request: Request) {
        self.serving
            .retain(|serving| now.since(serving.asked_at) < IDLE);
        let answer = match request.resume {
            Some(resume) => self.next_chunk(now, to, &request.owner, resume),
            None => {
                if let Some(part) = self.suffix(&request) {
                    self.counts.suffixes += 1;
                    return self.send_to(to, ControlMessage::Delta(part));
                }
                self.first_chunk(now, to, &request)
            }
        };
        let answer = match answer {
            Some(chunk) => ControlMessage::Snapshot(chunk),
            None => ControlMessage::Unavailable(Unavailable {
                owner: request.owner,
            }),
        };
        self.transmits
            .push_back((Recipients::One(to.clone()), answer));
    }

    /// Rule: the asker sets the pace. It is sent the first part of what changed, and asks for the next one when it has that.
    /// All of it at once would hold up the probes that are behind it on a slow link, and could be more than the queue to
    /// this peer takes; then the link breaks, and the next one begins with the same request.
    fn suffix(&self, request: &Request) -> Option<Delta> {
        let have = request.have.filter(|_| request.owner == self.me)?;
        if self.own.log.bytes_since(have)? > MAX_SUFFIX_BYTES {
            return None;
        }
        self.own.log.since(have, 1, PART_BYTES)?.pop()
    }

    fn next_chunk(
        &mut self,
        now: Instant,
        to: &NodeId,
        owner: &NodeId,
        resume: Resume,
    ) -> Option<SnapshotChunk> {
        let at = self.serving.iter().position(|serving| {
            serving.to == *to && serving.of.owner == *owner && serving.of.version == resume.version
        })?;
        let serving = &mut self.serving[at];
        serving.asked_at = now;
        let chunk = serving.chunk(resume.chunk);
        if chunk
            .as_ref()
            .is_none_or(|chunk| chunk.index + 1 == chunk.count)
        {
            self.serving.swap_remove(at);
        }
        chunk
    }

    fn first_chunk(
        &mut self,
        now: Instant,
        to: &NodeId,
        request: &Request,
    ) -> Option<SnapshotChunk> {
        let own = request.owner == self.me;
        let (of, nonce, entries): (_, _, Vec<Arc<ServiceInfo>>) = if own {
            let entries = self.own.log.entries().cloned().collect();
            (self.own.log.owner_version(), self.own.nonce, entries)
        } else {
            let owner = self
                .owners
                .get(&request.owner)
                .filter(|owner| owner.visible && !owner.differs)?;
            let version = owner.replica.version()?;
            if request.have.is_some_and(|have| have >= version) {
                return None;
            }
            let entries = owner.replica.entries().cloned().collect();
            (
                owner.replica.owner_version(),
                owner.replica.nonce(),
                entries,
            )
        };
        let serving = Serving {
            to: to.clone(),
            of,
            nonce,
            ends: ends(&entries),
            entries,
            asked_at: now,
        };
        self.serving
            .retain(|other| other.to != *to || other.of.owner != serving.of.owner);
        let chunk = serving.chunk(0)?;
        if chunk.count > 1 {
            if self.serving.len() >= MAX_SERVING {
                return None;
            }
            self.serving.push(serving);
        }
        if own {
            self.counts.snapshots += 1;
        } else {
            self.counts.relayed += 1;
        }
        Some(chunk)
    }
}

/// Where each chunk ends; one empty chunk where there are no entries.
fn ends(entries: &[Arc<ServiceInfo>]) -> Vec<usize> {
    let mut ends = Vec::new();
    let mut bytes = 0;
    for (at, info) in entries.iter().enumerate() {
        bytes += estimated_bytes(info);
        if bytes >= CHUNK_BYTES {
            ends.push(at + 1);
            bytes = 0;
        }
    }
    if ends.last() != Some(&entries.len()) || ends.is_empty() {
        ends.push(entries.len());
    }
    ends
}
