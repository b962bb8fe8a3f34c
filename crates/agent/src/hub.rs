//! What happened of late: a ring of events that watchers of types and of everything read, each at its own pace.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::SystemTime;

use keydispatch::{Key, MemberChange, ServiceEvent, ServiceInfo, ServiceType, View};
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::clock::rfc3339;

mod event;

use event::because;
pub(crate) use event::{Change, Event, Index, Position, frame};

/// Events that are kept for whoever comes back.
const KEPT: usize = 4_096;
/// Events that a watcher takes at once: so many wait for one that does not read.
pub(crate) const AT_ONCE: usize = 64;
/// Services times events that are looked at to find out when a key moved last.
const MOVE_BUDGET: usize = 2_000_000;
/// Types whose last version is remembered before those that are over are forgotten.
const MANY_TYPES: usize = 1_024;
/// Nodes of which it is remembered how they went, before all of that is forgotten.
const MANY_NODES: usize = 1_024;

/// The kinds of events that are of a node itself.
const MEMBER_KINDS: [&str; 3] = ["member_up", "member_down", "member_left"];

struct Ring {
    events: VecDeque<Arc<Event>>,
    next: u64,
    /// The highest version of a change that is not kept any more.
    evicted: u64,
    /// Of each type the last version, and how many of its events were seen.
    counts: HashMap<ServiceType, Position>,
}

/// See the module.
pub(crate) struct Hub {
    /// Names this life of the agent.
    pub(crate) life: String,
    ring: Mutex<Ring>,
    last: watch::Sender<u64>,
    /// Locked after the ring, where both are.
    types: Mutex<HashMap<String, Watched>>,
}

/// A type that is watched.
struct Watched {
    last: watch::Sender<u64>,
    /// The highest version of a change of it that is not kept any more, since it is watched.
    evicted: u64,
}

/// What is not kept any more: the watcher has to start from a snapshot.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Missed;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Hub {
    pub(crate) fn new(evicted: u64) -> Self {
        Hub {
            life: format!("{:08x}", rand::random::<u32>()),
            ring: Mutex::new(Ring {
                events: VecDeque::new(),
                next: 1,
                evicted,
                counts: HashMap::new(),
            }),
            last: watch::Sender::new(0),
            types: Mutex::new(HashMap::new()),
        }
    }

    /// Something that happened to no entry.
    pub(crate) fn note(
        &self,
        kind: &'static str,
        node: Option<&str>,
        service_type: Option<&str>,
        because: impl Into<String>,
    ) {
        self.push(
            &mut lock(&self.ring),
            kind,
            node,
            service_type,
            Some(because.into()),
            None,
        );
    }

    fn push(
        &self,
        ring: &mut Ring,
        kind: &'static str,
        node: Option<&str>,
        service_type: Option<&str>,
        because: Option<String>,
        change: Option<Change>,
    ) {
        let seq = ring.next;
        ring.next += 1;
        if ring.events.len() == KEPT
            && let Some(oldest) = ring.events.pop_front()
            && let Some(change) = &oldest.change
        {
            let version = change.position.version;
            ring.evicted = ring.evicted.max(version);
            if let Some(of) = &oldest.service_type
                && let Some(watched) = lock(&self.types).get_mut(of)
            {
                watched.evicted = watched.evicted.max(version);
            }
        }
        ring.events.push_back(Arc::new(Event {
            seq,
            at: SystemTime::now(),
            kind,
            service_type: service_type.map(str::to_owned),
            node: node.map(str::to_owned),
            because,
            change,
            frame: OnceLock::new(),
        }));
        self.last.send_replace(seq);
        if let Some(service_type) = service_type {
            let mut types = lock(&self.types);
            if let Some(watched) = types.get(service_type) {
                if watched.last.receiver_count() == 0 {
                    types.remove(service_type);
                } else {
                    watched.last.send_replace(seq);
                }
            }
        }
    }

    fn changed(
        &self,
        event: ServiceEvent,
        version: u64,
        went: impl Fn(&str) -> Option<&'static str>,
    ) {
        let (before, after) = match event {
            ServiceEvent::Joined(after) => (None, Some(after)),
            ServiceEvent::Left(before) => (Some(before), None),
            ServiceEvent::Updated { before, after } => (Some(before), Some(after)),
            _ => {
                let mut ring = lock(&self.ring);
                ring.events.retain(|event| event.change.is_none());
                ring.evicted = ring.evicted.max(version);
                self.push(&mut ring, "lagged", None, None, None, None);
                drop(ring);
                // Everybody looks again, and starts from a snapshot.
                lock(&self.types).values_mut().for_each(|watched| {
                    watched.evicted = watched.evicted.max(version);
                    watched.last.send_modify(|seq| *seq += 1);
                });
                return;
            }
        };
        let Some(info) = after.as_ref().or(before.as_ref()).cloned() else {
            return;
        };
        let kind = match (&before, &after) {
            (None, _) => "joined",
            (_, None) => "left",
            (Some(before), Some(after)) if before.state() != after.state() => "state",
            _ => "updated",
        };
        let because = because(before.as_deref(), after.as_deref(), went);
        let mut ring = lock(&self.ring);
        if ring.counts.len() > MANY_TYPES {
            ring.counts.retain(|_, last| last.version >= version);
        }
        let count = ring
            .counts
            .entry(info.service_type().clone())
            .or_insert(Position { version, nth: 0 });
        if count.version != version {
            *count = Position { version, nth: 0 };
        }
        let position = *count;
        count.nth += 1;
        let change = Change {
            position,
            before,
            after,
        };
        self.push(
            &mut ring,
            kind,
            Some(info.node().as_str()),
            Some(info.service_type().as_str()),
            because,
            Some(change),
        );
    }

    /// Changes with every event.
    pub(crate) fn watch(&self) -> watch::Receiver<u64> {
        self.last.subscribe()
    }

    /// Changes with every event of that type, and with no other.
    pub(crate) fn watch_type(&self, service_type: &str) -> watch::Receiver<u64> {
        let mut types = lock(&self.types);
        match types.get(service_type) {
            Some(watched) => watched.last.subscribe(),
            None => {
                let (last, receiver) = watch::channel(0);
                types.insert(service_type.to_owned(), Watched { last, evicted: 0 });
                receiver
            }
        }
    }

    /// How many watch a type.
    pub(crate) fn watchers(&self) -> usize {
        lock(&self.types)
            .values()
            .map(|watched| watched.last.receiver_count())
            .sum()
    }

    /// The changes of a type behind a position, at most [`AT_ONCE`] of them, each with where it is.
    ///
    /// Whoever was away is told that it missed something where anything is not kept that is behind its position: of which type
    /// that was is known only while the type is watched.
    pub(crate) fn changes_after(
        &self,
        service_type: &str,
        after: Position,
        was_away: bool,
    ) -> Result<Vec<(Position, Arc<Event>)>, Missed> {
        let ring = lock(&self.ring);
        let evicted = match lock(&self.types).get(service_type) {
            Some(watched) if !was_away => watched.evicted,
            _ => ring.evicted,
        };
        if after.version < evicted {
            return Err(Missed);
        }
        // From behind: whoever watches has mostly seen all but the last.
        let mut found: Vec<(Position, Arc<Event>)> = ring
            .events
            .iter()
            .rev()
            .filter(|event| event.service_type.as_deref() == Some(service_type))
            .filter_map(|event| Some((event.change.as_ref()?.position, Arc::clone(event))))
            .take_while(|(position, _)| *position > after)
            .collect();
        found.reverse();
        found.truncate(AT_ONCE);
        Ok(found)
    }

    /// The events behind a number that pass, and whether some of those that are asked for are not kept any more.
    pub(crate) fn events_after(
        &self,
        seq: u64,
        most: usize,
        pass: impl Fn(&Event) -> bool,
    ) -> (Vec<Arc<Event>>, u64, bool) {
        let ring = lock(&self.ring);
        let first = ring.events.front().map_or(ring.next, |event| event.seq);
        let found: Vec<_> = ring
            .events
            .iter()
            .filter(|event| event.seq > seq && pass(event))
            .take(most)
            .cloned()
            .collect();
        let upto = if found.len() == most {
            found.last().map_or(seq, |event| event.seq)
        } else {
            ring.next - 1
        };
        (found, upto, seq + 1 < first)
    }

    /// Since when nodes have been what they are, and why, where that is kept still.
    pub(crate) fn members(&self) -> HashMap<String, Arc<Event>> {
        let mut last = HashMap::new();
        for event in &lock(&self.ring).events {
            if let (true, Some(node)) = (MEMBER_KINDS.contains(&event.kind), &event.node) {
                last.insert(node.clone(), Arc::clone(event));
            }
        }
        last
    }

    /// The last event of a kind that was of a node, where it is kept still.
    pub(crate) fn last_of(&self, kind: &str, node: &str) -> Option<Arc<Event>> {
        lock(&self.ring)
            .events
            .iter()
            .rev()
            .find(|event| event.kind == kind && event.node.as_deref() == Some(node))
            .cloned()
    }

    /// When a key got the owner that it has in a view, and why; none where that is longer ago than events are kept.
    pub(crate) fn last_move(&self, view: &View, key: Key) -> Option<Value> {
        let events: Vec<Arc<Event>> = {
            let ring = lock(&self.ring);
            let of_type = |event: &&Arc<Event>| {
                event.service_type.as_deref() == Some(view.service_type().as_str())
            };
            ring.events.iter().rev().filter(of_type).cloned().collect()
        };
        let now = view.owner(key).cloned();
        let mut services = view.services().to_vec();
        let mut budget = MOVE_BUDGET;
        for event in events {
            let Some(change) = &event.change else {
                continue;
            };
            if change.position.version > view.version() {
                continue;
            }
            budget = budget.checked_sub(services.len() + 1)?;
            if let Some(after) = &change.after {
                services.retain(|info| info.id() != after.id());
            }
            services.extend(change.before.clone());
            if !places(change) {
                continue;
            }
            let earlier = View::of(view.service_type().clone(), services.iter().cloned());
            let from = earlier.owner(key);
            if from.map(|info| info.id()) != now.as_ref().map(|info| info.id()) {
                return Some(json!({
                    "at": rfc3339(event.at),
                    "from": from.map(|info| info.name().as_str()),
                    "to": now.as_ref().map(|info| info.name().as_str()),
                    "because": event.because,
                }));
            }
        }
        None
    }

    /// Follows a node until it stops, and says which nodes have gone.
    pub(crate) async fn follow(
        &self,
        mut changes: keydispatch::AllSubscription,
        mut members: keydispatch::MemberChanges,
        gone: tokio::sync::mpsc::UnboundedSender<String>,
    ) {
        let mut went: HashMap<String, &'static str> = HashMap::new();
        loop {
            tokio::select! {
                // A death is told before the entries that go with it, so that they can say why they went.
                biased;
                change = members.next() => {
                    let Some(change) = change else { break };
                    self.member_changed(&change);
                    let how = match &change {
                        MemberChange::Up { node, .. } => {
                            went.remove(node.name.as_str());
                            continue;
                        }
                        MemberChange::Down { node } => (node, "is down"),
                        MemberChange::Left { node } => (node, "left"),
                        _ => continue,
                    };
                    if went.len() >= MANY_NODES {
                        went.clear();
                    }
                    went.insert(how.0.name.to_string(), how.1);
                    // An error says that the agent stops.
                    let _ = gone.send(how.0.name.to_string());
                }
                change = changes.next() => {
                    let Some(change) = change else { break };
                    self.changed(change.event, change.version, |name| went.get(name).copied());
                }
            }
        }
    }

    fn member_changed(&self, change: &MemberChange) {
        let (kind, node, because) = match change {
            MemberChange::Up { node, address } => {
                ("member_up", node, format!("reached at {address}"))
            }
            MemberChange::Down { node } => (
                "member_down",
                node,
                "it does not answer any more".to_owned(),
            ),
            MemberChange::Left { node } => ("member_left", node, "it said goodbye".to_owned()),
            _ => return,
        };
        self.note(kind, Some(node.name.as_str()), None, because);
    }
}

/// Whether a change can move keys.
fn places(change: &Change) -> bool {
    let of = |info: &Option<Arc<ServiceInfo>>| {
        let info = info.as_ref().filter(|info| info.is_online())?;
        Some((info.name().clone(), info.weight()))
    };
    of(&change.before) != of(&change.after)
}
