//! Whom to dial and when: seeds, members without a link, the recently dead, and rivals for a name.
//!
//! Rule: always redial, with jitter and at most [`MAX_BACKOFF`] apart, whoever should be linked and is not.

use std::collections::BTreeMap;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::link::{DialFailure, LinkId};
use super::pace::Paces;
use crate::id::{Address, NodeId, NodeName};
use crate::membership::RefusedDial;
use crate::time::Instant;

/// First pause after a failed dial; each further one doubles it.
const MIN_BACKOFF: Duration = Duration::from_millis(100);

/// Longest pause between two dials of one address that should be linked.
const MAX_BACKOFF: Duration = Duration::from_secs(5);

/// How long the larger name of a pair waits for the smaller one to dial, when both learn of each other.
const DEFERENCE: Duration = Duration::from_millis(250);

/// Dials spread over this much time after a link broke, lest thousands come at once.
const REDIAL_JITTER: Duration = Duration::from_millis(10);

/// When a node whose link broke is dialled again that refused at once: what refuses twice is not about to come back.
const SECOND_LOOK: Duration = Duration::from_millis(25);

/// Most dials under way at once.
const MAX_UNDER_WAY: usize = 64;

/// Most addresses that are remembered for dialling: the known nodes and their packets.
const MAX_ENTRIES: usize = 2 * crate::limits::MAX_KNOWN_NODES;

/// First interval between two complaints about one address; each further one doubles it.
const MIN_COMPLAINT_INTERVAL: Duration = Duration::from_secs(10);

/// Longest interval between two complaints about one address.
const MAX_COMPLAINT_INTERVAL: Duration = Duration::from_secs(600);

/// Why a node is to be dialled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// It is up: keep trying until it is linked or down.
    Member,
    /// It was up once, or is a packet's addressee: one try.
    Once,
}

/// What is known of the seeds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SeedState {
    /// None are configured, or all of them are this node itself.
    None,
    /// Some have not been heard of yet.
    Trying,
    /// Every one of them was tried: some did not answer at all, none did with more than a refusal.
    Unreachable,
    /// Every one of them was refused: nobody listens at any of them.
    AllRefused,
    /// One answered.
    Answered,
}

#[derive(Debug, Default, PartialEq, Eq)]
enum DialState {
    #[default]
    Idle,
    UnderWay,
    Linked(LinkId),
}

/// What a refusal would say of the node that should be at an address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum DialEvidence {
    /// Nothing.
    #[default]
    None,
    /// It is only said to be up: whoever is up listens, or its address is wrong.
    Said,
    /// The link to it broke.
    Lost,
}

#[derive(Debug, Default)]
struct Dial {
    seed: bool,
    /// A rival for this node's name is said to be there.
    question: bool,
    /// The node that should be there, and whether it is to be dialled until it is.
    member: Option<NodeId>,
    once: bool,
    /// What a refusal says of `member`.
    evidence: DialEvidence,
    myself: bool,
    /// Who answered there last.
    resolved: Option<NodeName>,
    refused: bool,
    /// At least one dial there has failed.
    tried: bool,
    answered: bool,
    state: DialState,
    at: Instant,
    /// When the last dial there began.
    since: Instant,
    attempts: u32,
    complaints: u32,
    complain_at: Instant,
}

impl Dial {
    /// What a refusal at this moment says.
    fn refusal(&self, now: Instant) -> Option<RefusedDial> {
        (self.evidence != DialEvidence::None).then(|| RefusedDial {
            lost: self.evidence == DialEvidence::Lost,
            took: now.since(self.since),
        })
    }

    fn is_needed(&self, is_ready: &impl Fn(&NodeName) -> bool) -> bool {
        if self.question {
            return true;
        }
        let seed = self.seed && !self.myself && !self.resolved.as_ref().is_some_and(is_ready);
        let member = self
            .member
            .as_ref()
            .is_some_and(|node| !is_ready(&node.name));
        seed || member
    }
}

/// What a failed dial says.
#[derive(Debug, Default)]
pub(crate) struct Failed {
    /// That node should be there, and its address refuses.
    pub(crate) evidence: Option<(NodeId, RefusedDial)>,
    /// It is time to tell the operator.
    pub(crate) complain: bool,
}

/// See the module.
pub(crate) struct Dials {
    entries: BTreeMap<Address, Dial>,
    paces: Paces,
    /// Of links that broke.
    losses: Paces,
    /// The latest time that was told.
    now: Instant,
    rng: StdRng,
}

impl Dials {
    pub(crate) fn new(seed: u64) -> Self {
        Dials {
            entries: BTreeMap::new(),
            paces: Paces::default(),
            losses: Paces::default(),
            now: Instant::ZERO,
            rng: StdRng::seed_from_u64(seed),
        }
    }

    pub(crate) fn set_seeds(&mut self, now: Instant, seeds: Vec<Address>) {
        for (address, dial) in &mut self.entries {
            dial.seed = seeds.contains(address);
        }
        for address in seeds {
            let dial = self.entries.entry(address).or_insert_with(|| Dial {
                at: now,
                ..Dial::default()
            });
            dial.seed = true;
        }
        self.prune();
    }

    pub(crate) fn seed_state(&self) -> SeedState {
        let mut seeds = self
            .entries
            .values()
            .filter(|dial| dial.seed && !dial.myself)
            .peekable();
        if seeds.peek().is_none() {
            return SeedState::None;
        }
        let (mut all_refused, mut all_tried) = (true, true);
        for dial in seeds {
            if dial.answered {
                return SeedState::Answered;
            }
            all_refused &= dial.refused;
            all_tried &= dial.tried;
        }
        match (all_refused, all_tried) {
            (true, _) => SeedState::AllRefused,
            (false, true) => SeedState::Unreachable,
            (false, false) => SeedState::Trying,
        }
    }

    /// Every seed has answered, or at least one dial there has failed.
    pub(crate) fn are_seeds_settled(&self) -> bool {
        let mut seeds = self
            .entries
            .values()
            .filter(|dial| dial.seed && !dial.myself);
        seeds.all(|dial| dial.answered || dial.tried)
    }

    /// All seeds are dialled once more, but for those that are linked: what they answered before says nothing of now.
    pub(crate) fn look_around(&mut self, now: Instant) {
        self.now = self.now.max(now);
        let seeds = self.entries.values_mut().filter(|dial| dial.seed);
        for dial in seeds.filter(|dial| !matches!(dial.state, DialState::Linked(_))) {
            (dial.answered, dial.refused, dial.tried) = (false, false, false);
            dial.attempts = 0;
            dial.at = now;
        }
    }

    pub(crate) fn want(
        &mut self,
        now: Instant,
        node: &NodeId,
        address: &Address,
        purpose: Purpose,
        defer: bool,
    ) {
        if self.entries.len() >= MAX_ENTRIES && !self.entries.contains_key(address) {
            return;
        }
        self.now = self.now.max(now);
        let mut at = now;
        if defer {
            at += DEFERENCE + self.jitter(DEFERENCE);
        }
        let known = self.entries.get(address);
        if known.is_none_or(|dial| dial.member.as_ref() != Some(node)) {
            at = self.paces.admit(now, &node.name, at);
        }
        let dial = self.entries.entry(address.clone()).or_insert_with(|| Dial {
            at,
            ..Dial::default()
        });
        match (&dial.member, purpose) {
            // A packet to one node must not displace another that is up at that address.
            (Some(member), Purpose::Once) if member.name != node.name && !dial.once => {}
            (Some(member), Purpose::Once) if member == node => {}
            (_, purpose) => {
                // A packet to it may have been first; that it is up is news all the same.
                let news = dial.member.as_ref() != Some(node) || dial.once;
                if news {
                    dial.evidence = DialEvidence::None;
                }
                if news && purpose == Purpose::Member {
                    // Earlier failures there say nothing of a node that has just come up.
                    dial.at = dial.at.min(at);
                    dial.attempts = 0;
                    // Whoever is said to be up listens: a refusal tells that it is late gossip of a life that has ended,
                    // which probing alone would find out only when its turn comes.
                    dial.evidence = DialEvidence::Said;
                }
                dial.member = Some(node.clone());
                dial.once = purpose == Purpose::Once;
            }
        }
    }

    /// A rival for this node's name is said to be at that address.
    pub(crate) fn question(&mut self, now: Instant, address: &Address) {
        let dial = self.entries.entry(address.clone()).or_default();
        dial.question = true;
        dial.at = now;
    }

    /// The link to that node broke.
    ///
    /// Rule: who is lost is dialled at once, but who is lost again and again is dialled once a second. What breaks a link may be
    /// what is said over it; then both would do nothing but greet each other, as fast as they can.
    pub(crate) fn lost(&mut self, now: Instant, peer: &NodeId, address: &Address) {
        self.now = self.now.max(now);
        let at = self.losses.admit(now, &peer.name, now) + self.jitter(REDIAL_JITTER);
        let dial = self.entries.entry(address.clone()).or_default();
        dial.member = Some(peer.clone());
        dial.once = false;
        dial.evidence = DialEvidence::Lost;
        dial.attempts = 0;
        dial.at = at;
    }

    /// That node is linked.
    pub(crate) fn ready(&mut self, peer: &NodeId) {
        for dial in self.entries.values_mut() {
            // It is not dialled any more, whoever it was that dialled.
            dial.answered |= dial.resolved.as_ref() == Some(&peer.name);
            if dial
                .member
                .as_ref()
                .is_some_and(|member| member.name == peer.name)
            {
                dial.member = None;
                dial.evidence = DialEvidence::None;
                dial.attempts = 0;
            }
        }
        self.prune();
    }

    /// That life of the node is over.
    pub(crate) fn forget(&mut self, node: &NodeId) {
        for dial in self.entries.values_mut() {
            if dial.member.as_ref() == Some(node) {
                dial.member = None;
                dial.evidence = DialEvidence::None;
            }
        }
        self.prune();
    }

    /// This node has a new identity: whoever refused the old one may take the new one.
    pub(crate) fn retry_all(&mut self, now: Instant) {
        for dial in self.entries.values_mut() {
            dial.at = now;
            dial.attempts = 0;
        }
    }

    /// Rule: a newcomer whose name is in question retries until the old one has answered or is down.
    pub(crate) fn retry_soon(&mut self, now: Instant, address: &Address) {
        let at = now + DEFERENCE + self.jitter(DEFERENCE);
        if let Some(dial) = self.entries.get_mut(address) {
            dial.at = at;
            dial.attempts = 0;
        }
    }

    pub(crate) fn connected(&mut self, address: &Address, link: LinkId) {
        if let Some(dial) = self.entries.get_mut(address) {
            dial.state = DialState::Linked(link);
        }
    }

    /// The connection that was dialled there is over, however far it had come.
    pub(crate) fn disconnected(&mut self, now: Instant, address: &Address, link: LinkId) {
        self.now = self.now.max(now);
        let Some(dial) = self.entries.get(address) else {
            return;
        };
        if dial.state != DialState::Linked(link) {
            return;
        }
        let at = now + self.backoff(address);
        if let Some(dial) = self.entries.get_mut(address) {
            dial.state = DialState::Idle;
            dial.at = at;
            dial.attempts = dial.attempts.saturating_add(1);
            dial.question = false;
            if dial.once {
                dial.member = None;
                dial.once = false;
            }
        }
        self.prune();
    }

    /// Whoever answers there says that it is that node; returns the node that was expected instead.
    pub(crate) fn resolved(
        &mut self,
        now: Instant,
        address: &Address,
        node: &NodeId,
    ) -> Option<(NodeId, RefusedDial)> {
        let dial = self.entries.get_mut(address)?;
        dial.resolved = Some(node.name.clone());
        dial.answered = true;
        dial.complaints = 0;
        let other = dial
            .member
            .take_if(|member| member.name != node.name || member.generation < node.generation)?;
        let refusal = dial.refusal(now);
        dial.evidence = DialEvidence::None;
        Some((other, refusal?))
    }

    pub(crate) fn is_myself(&mut self, address: &Address) {
        if let Some(dial) = self.entries.get_mut(address) {
            dial.myself = true;
            dial.member = None;
        }
    }

    pub(crate) fn failed(
        &mut self,
        now: Instant,
        address: &Address,
        failure: &DialFailure,
    ) -> Failed {
        self.now = self.now.max(now);
        let at = now + self.backoff(address);
        let soon = now + SECOND_LOOK + self.jitter(REDIAL_JITTER);
        let Some(dial) = self.entries.get_mut(address) else {
            return Failed::default();
        };
        dial.state = DialState::Idle;
        dial.question = false;
        dial.attempts = dial.attempts.saturating_add(1);
        dial.at = at;
        dial.tried = true;
        dial.refused = *failure == DialFailure::Refused;
        let refusal = dial.refusal(now).filter(|_| dial.refused);
        let evidence = dial.member.clone().zip(refusal);
        if dial.evidence == DialEvidence::Lost && dial.refused && dial.attempts == 1 {
            dial.at = soon;
        }
        if dial.once {
            dial.member = None;
            dial.once = false;
        }
        let complain = dial.seed && Self::is_time_to_complain(dial, now);
        self.prune();
        Failed { evidence, complain }
    }

    /// True once, then at growing intervals.
    pub(crate) fn complain(&mut self, now: Instant, address: &Address) -> bool {
        self.entries
            .get_mut(address)
            .is_none_or(|dial| Self::is_time_to_complain(dial, now))
    }

    fn is_time_to_complain(dial: &mut Dial, now: Instant) -> bool {
        if dial.complaints > 0 && now < dial.complain_at {
            return false;
        }
        let interval = MIN_COMPLAINT_INTERVAL
            .saturating_mul(1 << dial.complaints.min(16))
            .min(MAX_COMPLAINT_INTERVAL);
        dial.complaints += 1;
        dial.complain_at = now + interval;
        true
    }

    /// The addresses to dial now; each is under way until its outcome is reported.
    pub(crate) fn due(
        &mut self,
        now: Instant,
        is_ready: impl Fn(&NodeName) -> bool,
    ) -> Vec<Address> {
        self.now = self.now.max(now);
        let under_way = self
            .entries
            .values()
            .filter(|dial| dial.state == DialState::UnderWay)
            .count();
        let mut due = Vec::new();
        for (address, dial) in &mut self.entries {
            if under_way + due.len() >= MAX_UNDER_WAY {
                break;
            }
            if dial.state == DialState::Idle && dial.at <= now && dial.is_needed(&is_ready) {
                dial.state = DialState::UnderWay;
                dial.since = now;
                due.push(address.clone());
            }
        }
        due
    }

    /// When [`due`](Self::due) has something.
    ///
    /// Rule: it is never a time before the last that was told. Whoever was linked for long, and is not any more, is to be
    /// dialled from now on: a time long ago would be taken for a pause of this process, after which nobody is judged at once.
    pub(crate) fn poll_timeout(&self, is_ready: impl Fn(&NodeName) -> bool) -> Option<Instant> {
        let mut under_way = 0;
        let mut next: Option<Instant> = None;
        for dial in self.entries.values() {
            match dial.state {
                DialState::UnderWay => under_way += 1,
                DialState::Idle if dial.is_needed(&is_ready) => {
                    next = Some(next.map_or(dial.at, |next| next.min(dial.at)));
                }
                DialState::Idle | DialState::Linked(_) => {}
            }
        }
        next.filter(|_| under_way < MAX_UNDER_WAY)
            .map(|next| next.max(self.now))
    }

    fn prune(&mut self) {
        let now = self.now;
        self.entries.retain(|_, dial| {
            let wanted = dial.seed || dial.question || dial.member.is_some();
            // A packet every few milliseconds to whoever refuses must not mean a dial every few milliseconds.
            let pausing = dial.attempts > 0 && dial.at > now;
            wanted || pausing || dial.state != DialState::Idle
        });
    }

    fn backoff(&mut self, address: &Address) -> Duration {
        let attempts = self.entries.get(address).map_or(0, |dial| dial.attempts);
        let full = MIN_BACKOFF
            .saturating_mul(1 << attempts.min(10))
            .min(MAX_BACKOFF);
        full / 2 + self.jitter(full / 2)
    }

    fn jitter(&mut self, below: Duration) -> Duration {
        let micros = u64::try_from(below.as_micros()).unwrap_or(u64::MAX).max(1);
        Duration::from_micros(self.rng.random_range(0..micros))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::Generation;

    /// Its seed is another address of the node, which was dialled long ago and not needed since.
    #[test]
    fn who_is_lost_after_long_is_dialled_from_then_on() {
        let address = |text: &str| Address::try_new(text).unwrap_or_else(|error| panic!("{error}"));
        let name = NodeName::try_new("peer").unwrap_or_else(|error| panic!("{error}"));
        let generation = Generation::default();
        let (peer, seed, link) = (NodeId { name, generation }, address("seed:1"), LinkId(1));
        let mut dials = Dials::new(1);
        let begun = Instant::ZERO + Duration::from_secs(1);
        dials.set_seeds(begun, vec![seed.clone()]);
        assert_eq!(dials.due(begun, |_| false), std::slice::from_ref(&seed));
        dials.connected(&seed, link);
        dials.resolved(begun, &seed, &peer);
        dials.ready(&peer);
        // Another connection takes its place.
        dials.disconnected(begun, &seed, link);
        assert_eq!(dials.poll_timeout(|_| true), None);
        let lost = begun + Duration::from_secs(100);
        dials.lost(lost, &peer, &address("peer:1"));
        let due = dials.poll_timeout(|_| false);
        assert!(due.is_some_and(|due| due >= lost), "{due:?}");
    }

    #[test]
    fn a_link_that_breaks_again_and_again_is_dialled_once_a_second() {
        let address = Address::try_new("peer:1").unwrap_or_else(|error| panic!("{error}"));
        let name = NodeName::try_new("peer").unwrap_or_else(|error| panic!("{error}"));
        let generation = Generation::default();
        let peer = NodeId { name, generation };
        let mut dials = Dials::new(1);
        let begun = Instant::ZERO + Duration::from_secs(1);
        let (mut now, mut links) = (begun, 0);
        while now < begun + Duration::from_secs(10) {
            dials.lost(now, &peer, &address);
            let Some(due) = dials.poll_timeout(|_| false) else {
                panic!("who is lost is dialled")
            };
            now = due;
            links += 1;
            assert_eq!(dials.due(now, |_| false), std::slice::from_ref(&address));
            dials.connected(&address, LinkId(links));
            dials.resolved(now, &address, &peer);
            dials.ready(&peer);
            now += Duration::from_millis(5);
            dials.disconnected(now, &address, LinkId(links));
        }
        assert!((10..=20).contains(&links), "{links}");
    }

    /// Without this, whoever was told late of a node that is gone would see it up until its own probe finds it out.
    #[test]
    fn a_refusal_tells_of_a_node_that_is_up_though_a_packet_to_it_was_first() {
        let address = Address::try_new("peer:1").unwrap_or_else(|error| panic!("{error}"));
        let name = NodeName::try_new("peer").unwrap_or_else(|error| panic!("{error}"));
        let generation = Generation::default();
        let peer = NodeId { name, generation };
        let now = Instant::ZERO + Duration::from_secs(1);
        for first in [Purpose::Once, Purpose::Member] {
            let mut dials = Dials::new(1);
            dials.want(now, &peer, &address, first, false);
            dials.want(now, &peer, &address, Purpose::Member, false);
            dials.want(now, &peer, &address, Purpose::Once, false);
            assert_eq!(dials.due(now, |_| false), std::slice::from_ref(&address));
            let failed = dials.failed(now, &address, &DialFailure::Refused);
            assert!(failed.evidence.is_some(), "{first:?} came first");
        }
    }
}
