//! What must hold at every step, and what must hold in the end.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use keydispatch_core::{
    Cluster, Directory, Instant, Key, MemberState, NodeId, NodeName, Reference, RegistryEvent,
    ServiceInfo, ServiceType,
};

/// A promise that was broken.
#[derive(Clone, Debug)]
pub struct Violation {
    /// When, in simulated time.
    pub at: Instant,
    /// Which, and how.
    pub what: String,
}

/// Nonce and sequence: what tells services apart, as nonces are never drawn twice.
pub(crate) type ServiceKey = (u64, u64);

/// All that was ever written, by whom.
#[derive(Default)]
pub(crate) struct Ledger {
    written: HashMap<ServiceKey, Vec<Arc<ServiceInfo>>>,
    /// What its owner has removed, and when.
    pub(crate) removed: HashMap<ServiceKey, Instant>,
    /// The hash of all that a life held at a version.
    contents: HashMap<(NodeId, u64), u64>,
    /// Whose entries are its own business.
    pub(crate) liar: Option<NodeName>,
    /// How long nodes remember the dead.
    permdown_period: Duration,
}

impl Ledger {
    pub(crate) fn new(permdown_period: Duration) -> Self {
        Ledger {
            permdown_period,
            ..Ledger::default()
        }
    }

    /// Rule: a copy of an owner's entries at a version is all that it held then, and nothing else. What the owner itself
    /// has is written down.
    pub(crate) fn compare(&mut self, cluster: &Cluster, info: &ServiceInfo) -> Result<(), String> {
        if self.liar.as_ref() == Some(info.node()) {
            return Ok(());
        }
        let me = cluster.node();
        let own = *info.node() == me.name;
        let life = match cluster.membership().is_up(info.node()) {
            _ if own => me.clone(),
            Some(life) => life,
            None => return Ok(()),
        };
        let Some(copy) = cluster.tracker().copy_of(&life) else {
            return Ok(());
        };
        let at = (life, copy.version);
        if own {
            self.contents.insert(at, copy.content);
        } else if self
            .contents
            .get(&at)
            .is_some_and(|held| *held != copy.content)
        {
            return Err(format!(
                "has a copy of {} at version {} that is not what that node held then",
                at.0, at.1
            ));
        }
        Ok(())
    }

    /// True where the copy of that life is what it held at that version.
    pub(crate) fn agrees(&self, cluster: &Cluster, life: &NodeId) -> bool {
        cluster.tracker().copy_of(life).is_some_and(|copy| {
            self.contents.get(&(life.clone(), copy.version)) == Some(&copy.content)
        })
    }

    fn write(&mut self, info: &Arc<ServiceInfo>) {
        let versions = self.written.entry(key(info)).or_default();
        versions.push(Arc::clone(info));
    }

    fn holds(&self, info: &Arc<ServiceInfo>) -> bool {
        if self.liar.as_ref() == Some(info.node()) {
            return true;
        }
        let Some(versions) = self.written.get(&key(info)) else {
            return false;
        };
        let at = versions.partition_point(|other| other.reference() < info.reference());
        versions.get(at).is_some_and(|other| other == info)
    }
}

/// What one process's readers see, and saw.
#[derive(Default)]
pub(crate) struct Reader {
    pub(crate) seen: HashMap<ServiceKey, Arc<ServiceInfo>>,
    /// The last reference of what is seen, or was, and since when it has been gone.
    last: HashMap<ServiceKey, (Reference, Option<Instant>)>,
    /// Sum over the hashes of what is seen.
    pub(crate) hash: u64,
    /// The same over the process's own entries.
    pub(crate) own_hash: u64,
    /// What went away since the last time it was asked for.
    vanished: Vec<Arc<ServiceInfo>>,
    /// Who was reported down since then.
    pub(crate) downs: HashSet<NodeId>,
}

pub(crate) fn key(info: &ServiceInfo) -> ServiceKey {
    (info.id().nonce, info.id().sequence)
}

fn hash(info: &ServiceInfo) -> u64 {
    let mut hasher = DefaultHasher::new();
    (info.id(), info.reference(), info.to_record()).hash(&mut hasher);
    hasher.finish()
}

impl Reader {
    /// Takes an event in, and says what is wrong with it; `nonce` is that of the reader's own process. True for an entry
    /// that was seen before, and went away meanwhile.
    pub(crate) fn take(
        &mut self,
        now: Instant,
        ledger: &mut Ledger,
        nonce: u64,
        event: &RegistryEvent,
    ) -> Result<bool, String> {
        let (before, after) = match event {
            RegistryEvent::Joined(after) => (None, Some(after)),
            RegistryEvent::Left(before) => (Some(before), None),
            RegistryEvent::Updated { before, after } => (Some(before), Some(after)),
        };
        let key = key(event.info());
        let own = key.0 == nonce;
        let was = match after {
            Some(after) => self.seen.insert(key, Arc::clone(after)),
            None => self.seen.remove(&key),
        };
        if was.as_ref() != before {
            return Err(format!("told {event:?}, but saw {was:?} before"));
        }
        if let Some(before) = before {
            let hash = hash(before);
            self.hash = self.hash.wrapping_sub(hash);
            if own {
                self.own_hash = self.own_hash.wrapping_sub(hash);
            }
        }
        let Some(after) = after else {
            if own {
                ledger.removed.insert(key, now);
            }
            self.vanished.extend(before.cloned());
            if let Some((_, gone)) = self.last.get_mut(&key) {
                *gone = Some(now);
            }
            return Ok(false);
        };
        let hash = hash(after);
        self.hash = self.hash.wrapping_add(hash);
        if own {
            self.own_hash = self.own_hash.wrapping_add(hash);
            ledger.write(after);
        } else if !ledger.holds(after) {
            return Err(format!("lists what its owner never wrote: {after:?}"));
        }
        let last = self.last.insert(key, (after.reference(), None));
        // Rule: references never go back, as long as the dead are remembered: a stale copy may bring them back later.
        let kept = ledger.permdown_period;
        let remembered = last.filter(|(_, gone)| gone.is_none_or(|gone| now.since(gone) < kept));
        if let Some((last, _)) = remembered
            && ledger.liar.as_ref() != Some(after.node())
            && (after.reference() < last || (before.is_some() && after.reference() == last))
        {
            return Err(format!(
                "the reference of {} went from {last} to {}",
                after.id(),
                after.reference()
            ));
        }
        Ok(last.is_some() && before.is_none())
    }

    /// The entries that went away in this step and did not come back in it.
    pub(crate) fn take_vanished(&mut self) -> Vec<Arc<ServiceInfo>> {
        let mut vanished = std::mem::take(&mut self.vanished);
        vanished.retain(|info| !self.seen.contains_key(&key(info)));
        vanished
    }

    /// What readers find in the directory is what subscribers were told.
    pub(crate) fn check_directory(&self, directory: &Directory) -> Result<(), String> {
        let listed = list(directory);
        if listed.len() != self.seen.len() {
            return Err(format!(
                "the directory lists {} services, subscribers were told of {}",
                listed.len(),
                self.seen.len()
            ));
        }
        for info in listed {
            if self.seen.get(&key(&info)) != Some(&info) {
                return Err(format!("subscribers were not told of {info:?}"));
            }
        }
        Ok(())
    }
}

fn list(directory: &Directory) -> Vec<Arc<ServiceInfo>> {
    let types = directory.types();
    let views = types.iter().filter_map(|one| directory.view(one.as_str()));
    views.flat_map(|view| view.services().to_vec()).collect()
}

/// The network has been whole for long: all must agree. `nodes` are the living.
pub(crate) fn check_convergence(
    nodes: &[&Cluster],
    keys: u64,
    liar: Option<&NodeName>,
) -> Result<(), String> {
    let mut expected: BTreeMap<ServiceKey, Arc<ServiceInfo>> = BTreeMap::new();
    let mut names: BTreeSet<&NodeName> = BTreeSet::new();
    for node in nodes {
        if !names.insert(&node.node().name) {
            return Err(format!("two living nodes are called {}", node.node().name));
        }
        expected.extend(
            node.tracker()
                .own()
                .map(|info| (key(info), Arc::clone(info))),
        );
    }
    let living: BTreeSet<&NodeId> = nodes.iter().map(|node| node.node()).collect();
    let mut first: Option<(&NodeId, Vec<(ServiceType, u64)>)> = None;
    for node in nodes {
        let me = node.node();
        check_members(node, &living, liar)?;
        check_view(node, &expected, liar)?;
        // One that is alone cannot know that the silent seed is gone for good.
        if !node.is_synced() && nodes.len() > 1 {
            return Err(format!("{me} was never synced"));
        }
        let missing = node.missing();
        if missing.iter().any(|name| Some(name) != liar) {
            let mut owners = node.stats().owners;
            owners.retain(|owner| missing.contains(&owner.node.name));
            return Err(format!("{me} misses {missing:?}: {owners:?}"));
        }
        if liar.is_some() {
            // What it shows to whom is not the same.
            continue;
        }
        let placed = place(&node.directory(), keys);
        match &first {
            None => first = Some((me, placed)),
            Some((other, expected)) if *expected != placed => {
                return Err(format!("{me} and {other} name different owners"));
            }
            Some(_) => {}
        }
    }
    Ok(())
}

pub(crate) fn check_members(
    node: &Cluster,
    living: &BTreeSet<&NodeId>,
    liar: Option<&NodeName>,
) -> Result<(), String> {
    let me = node.node();
    let members = node.members();
    let up: BTreeSet<&NodeId> = members
        .iter()
        .filter(|member| matches!(member.state, MemberState::Up | MemberState::Suspected))
        .map(|member| &member.node)
        .collect();
    for other in living {
        if *other != me && !up.contains(other) {
            return Err(format!("{me} does not list {other}, which lives"));
        }
    }
    for other in up {
        if !living.contains(other) && Some(&other.name) != liar {
            return Err(format!("{me} lists {other}, which is dead"));
        }
    }
    Ok(())
}

fn check_view(
    node: &Cluster,
    expected: &BTreeMap<ServiceKey, Arc<ServiceInfo>>,
    liar: Option<&NodeName>,
) -> Result<(), String> {
    let me = node.node();
    let mut listed = list(&node.directory());
    listed.retain(|info| Some(info.node()) != liar);
    for info in &listed {
        match expected.get(&key(info)) {
            Some(held) if held == info => {}
            Some(held) => {
                return Err(format!("{me} lists {info:?}, its owner holds {held:?}"));
            }
            None => return Err(format!("{me} lists {info:?}, which no living node holds")),
        }
    }
    if listed.len() < expected.len() {
        let listed: HashSet<ServiceKey> = listed.iter().map(|info| key(info)).collect();
        let lacking = expected.iter().find(|(key, _)| !listed.contains(*key));
        let behind = node.stats();
        return Err(format!(
            "{me} lists {} of {} services; it lacks {lacking:?}; {behind:?}",
            listed.len(),
            expected.len()
        ));
    }
    Ok(())
}

/// For each type, one hash over the owners of the keys.
fn place(directory: &Directory, keys: u64) -> Vec<(ServiceType, u64)> {
    let mut types = directory.types();
    types.sort_unstable();
    types.truncate(4);
    let share = keys / types.len().max(1) as u64;
    types
        .into_iter()
        .filter_map(|service_type| {
            let view = directory.view(service_type.as_str())?;
            let mut hasher = DefaultHasher::new();
            for number in 0..share {
                let owners = view.owners(Key::from(number), 2);
                for owner in owners {
                    key(owner).hash(&mut hasher);
                }
            }
            Some((service_type, hasher.finish()))
        })
        .collect()
}

/// After `permdown_period` nothing of the dead is kept.
pub(crate) fn check_memory(nodes: &[&Cluster]) -> Result<(), String> {
    for node in nodes {
        let me = node.node();
        for owner in node.tracker().owners() {
            let lives = nodes.iter().any(|other| *other.node() == owner.node);
            if !lives {
                return Err(format!("{me} still keeps {owner:?}"));
            }
        }
        for member in node.members() {
            let lives = nodes.iter().any(|other| *other.node() == member.node);
            if !lives {
                return Err(format!("{me} still remembers {member:?}"));
            }
        }
    }
    Ok(())
}
