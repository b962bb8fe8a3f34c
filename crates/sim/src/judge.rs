//! What is judged while a history goes on: of each step, of each report of a death, and once a second.

use std::time::Duration;

use keydispatch_core::limits::MAX_KNOWN_NODES;
use keydispatch_core::links::hello_timeout;
use keydispatch_core::{Cluster, Instant, MemberState, NodeId, NodeName, ServiceInfo};
use rand::RngExt;

use super::process::Process;
use super::world::World;

/// How old a view of a node may be that has been there and could be heard all the time.
const STALE_AT_MOST: Duration = Duration::from_secs(2);

impl World {
    /// Rule: what was removed while an owner was not visible never flashes back.
    pub(crate) fn judge_flash(&mut self, process: usize, cluster: &Cluster, info: &ServiceInfo) {
        let now = self.now;
        let since = Instant::ZERO + now.since(Instant::ZERO + STALE_AT_MOST);
        let key = (info.id().nonce, info.id().sequence);
        let stale = self.ledger.removed.get(&key).is_some_and(|at| *at < since);
        let Some(owner) = self.by_nonce.get(&key.0).filter(|_| stale) else {
            return;
        };
        let (reader, owner) = (&self.processes[process], &self.processes[*owner]);
        let Some(life) = owner.cluster.as_ref().map(|cluster| cluster.node()) else {
            return;
        };
        // Whoever is linked to the owner and has all that it sent, has its word.
        let has_word = || {
            let owners = cluster.tracker().owners();
            owners
                .iter()
                .any(|known| known.linked && known.node == *life)
                && self.network.has_delivered(owner.host, reader.host)
        };
        if ran_since(reader, since)
            && ran_since(owner, since)
            && (self.network.was_whole(reader.host, owner.host, since) || has_word())
        {
            let what = format!("{} lists {info:?}, removed long ago", reader.name);
            self.violate(what);
        }
    }

    /// Rule: who has left never comes back in that life, and once the network has been whole for a while, nobody comes up
    /// who is dead. Last words that a stalled connection delivers are no exception: a Hello that old is not believed.
    pub(crate) fn judge_up(&mut self, process: usize, node: &NodeId) {
        let now = self.now;
        let permdown = self.constants.settings.permdown_period();
        let state = &self.processes[process];
        self.coverage.returns += u64::from(state.knew.contains(node));
        let departed = state.departed.get(node);
        if departed.is_some_and(|at| now.since(*at) < permdown) {
            let what = format!("{} sees {node} up, which has left", state.name);
            self.violate(what);
            return;
        }
        if !self.constants.checks {
            return;
        }
        let living = |other: &&Process| {
            let cluster = other.cluster.as_ref();
            cluster.is_some_and(|cluster| cluster.node() == node)
        };
        if self.unspoilt
            && let Some(other) = self.processes.iter().find(living)
        {
            let both = state.started.max(other.started);
            self.joins_known.push(now.since(both));
        }
        let down_period = self.constants.settings.down_period();
        let grace = 2 * down_period.max(hello_timeout(down_period));
        let is_long = |since: &Instant| now.since(*since) > grace;
        // Who has been dead for longer is forgotten, and anybody's late word is news.
        let is_remembered = |since: &Instant| now.since(*since) < permdown;
        // One that lies can introduce to a newcomer whom that has never heard of; a probe finds it out.
        let state = &self.processes[process];
        let is_known = state.knew.contains(node) || state.departed.contains_key(node);
        if self.whole_since.as_ref().is_some_and(is_long)
            && (self.liar.is_none() || is_known)
            && self
                .ended
                .get(node)
                .is_some_and(|since| is_long(since) && is_remembered(since))
        {
            let what = format!("{} sees {node} up, which is long dead", state.name);
            self.violate(what);
        }
    }

    /// Whoever is reported down should not have been there to be heard.
    pub(crate) fn judge_down(&mut self, process: usize, node: NodeId) {
        self.coverage.downs += 1;
        self.in_doubt.insert(node.clone());
        let now = self.now;
        let since =
            Instant::ZERO + now.since(Instant::ZERO + self.constants.settings.down_period());
        let state = &mut self.processes[process];
        state.reader.downs.insert(node.clone());
        state.knew.insert(node.clone());
        let (host, ran) = (state.host, ran_since(state, since));
        let accused = self.processes.iter().find(|other| {
            other.name == node.name
                && other
                    .cluster
                    .as_ref()
                    .is_some_and(|cluster| *cluster.node() == node)
        });
        let Some(accused) = accused else {
            let dead = self
                .processes
                .iter()
                .rfind(|other| other.last_id.as_ref() == Some(&node));
            let ended = dead.and_then(|dead| dead.killed_at);
            self.deaths_known
                .extend(ended.map(|ended| now.since(ended)));
            let left = self
                .processes
                .iter()
                .any(|other| other.left && other.last_id.as_ref() == Some(&node));
            self.coverage.goodbye_races += u64::from(left);
            return;
        };
        if ran && ran_since(accused, since) && self.network.was_whole(host, accused.host, since) {
            self.false_downs += 1;
            let (host, others) = (accused.host, self.processes.iter());
            let by_all = others
                .filter(|other| other.cluster.is_some() && other.host != host)
                .all(|other| self.network.was_whole(other.host, host, since));
            self.groundless_downs += u64::from(by_all);
            let name = self.processes[process].name.clone();
            self.trace
                .line(now, || format!("FALSE DOWN of {node} at {name}"));
        }
    }

    /// Rule, as SECURITY.md has it: where nobody but the liar is left beside an owner that there is no link to, its word is all
    /// there is. What is shown of that owner then is the liar's, until the owner's own word has come.
    pub(crate) fn note_misled(&mut self, process: usize, cluster: &Cluster, owner: &NodeName) {
        let Some(liar) = &self.liar else {
            return;
        };
        let Some(life) = cluster.membership().is_up(owner) else {
            return;
        };
        let members = cluster.members();
        let mut up = members
            .iter()
            .filter(|member| matches!(member.state, MemberState::Up | MemberState::Suspected));
        if cluster.minor(&life).is_none()
            && up.all(|member| member.node.name == *owner || member.node.name == liar.name)
        {
            self.misled.insert((process, owner.clone()));
        }
    }

    pub(crate) fn is_misled(&self, process: usize, owner: &NodeName) -> bool {
        self.liar.is_some() && self.misled.contains(&(process, owner.clone()))
    }

    /// Forgets of whom the process has only the liar's word, where it has the owner's by now, or nothing at all.
    fn hear_owners(&mut self, process: usize) {
        let Some(cluster) = &self.processes[process].cluster else {
            return;
        };
        let ledger = &self.ledger;
        self.misled.retain(|(reader, owner)| {
            let life = cluster.membership().is_up(owner);
            *reader != process || life.is_some_and(|life| !ledger.agrees(cluster, &life))
        });
    }

    /// What must hold after every step of a process.
    pub(crate) fn check_step(&mut self, process: usize) {
        if self.is_liar(process) {
            return;
        }
        let vanished = self.processes[process].reader.take_vanished();
        if !vanished.is_empty() {
            let downs = std::mem::take(&mut self.processes[process].reader.downs);
            for info in vanished {
                let owner = self.by_nonce.get(&info.id().nonce).copied();
                let Some(owner) = owner.filter(|owner| *owner != process) else {
                    continue;
                };
                let key = (info.id().nonce, info.id().sequence);
                let (reader, owner) = (&self.processes[process], &self.processes[owner]);
                let (Some(reader), Some(life)) = (&reader.cluster, &owner.cluster) else {
                    continue;
                };
                let life = life.node();
                if owner.reader.seen.contains_key(&key)
                    && info.reference().generation == life.generation.number
                    && reader.membership().is_up(&owner.name).as_ref() == Some(life)
                    && !downs.contains(life)
                    && !self.is_misled(process, &owner.name)
                {
                    let what = format!("{} lost sight of {info:?}, which lives", reader.node());
                    self.violate(what);
                }
            }
        }
        self.processes[process].reader.downs.clear();
        if !self.misled.is_empty() {
            self.hear_owners(process);
        }
    }

    /// Once a second: bounds that no single step breaks.
    pub(crate) fn look(&mut self) {
        let most = self.constants.max_chatter;
        let sampled = self.rng.random_range(0..self.processes.len().max(1));
        let liar = self.liar.as_ref().map(|liar| liar.name.clone());
        let mut wrong = Vec::new();
        for (at, process) in self.processes.iter_mut().enumerate() {
            let Some(cluster) = &process.cluster else {
                continue;
            };
            let sent = process.sent_messages
                - std::mem::replace(&mut process.sent_before, process.sent_messages);
            self.max_messages = self.max_messages.max(sent);
            if sent > most && liar.as_ref() != Some(&process.name) {
                wrong.push(format!(
                    "{} sent {sent} messages in a second",
                    cluster.node()
                ));
            }
            // Rule: nobody is told that it is dead where nobody takes it for dead.
            if liar.is_none()
                && cluster.membership().returns() > 0
                && !self.in_doubt.contains(cluster.node())
            {
                wrong.push(format!(
                    "{} came back though it was never gone",
                    cluster.node()
                ));
            }
            if at == sampled {
                let members = cluster.members();
                let suspected = members
                    .iter()
                    .filter(|member| member.state == MemberState::Suspected);
                self.coverage.suspicions += suspected.count() as u64;
                if members.len() > MAX_KNOWN_NODES {
                    wrong.push(format!(
                        "{} remembers {} nodes",
                        cluster.node(),
                        members.len()
                    ));
                }
                if self.constants.checks {
                    wrong.extend(process.reader.check_directory(&cluster.directory()).err());
                }
            }
        }
        for what in wrong {
            self.violate(what);
        }
    }
}

fn ran_since(process: &Process, since: Instant) -> bool {
    !process.paused
        && process.started <= since
        && process.hung_at.is_none_or(|at| at < since)
        && process.inbox.is_empty()
}
