//! Membership, replication, registry and links as one state machine: what a driver, or the simulator, drives.
//!
//! Inputs are `handle_*(now, …)` and the commands; after each of them the driver empties
//! [`poll_output`](Cluster::poll_output) and [`poll_event`](Cluster::poll_event), and calls
//! [`handle_timeout`](Cluster::handle_timeout) no later than [`poll_timeout`](Cluster::poll_timeout) says. Nothing
//! here blocks, reads a clock or draws randomness that the seed does not determine.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::admission::Credentials;
use crate::directory::{Directory, DirectoryWriter, RegistryEvent};
use crate::entry::{EntryUpdate, NewEntry, ServiceInfo};
use crate::frame::Frame;
use crate::id::{Address, ClusterName, Generation, NodeId, NodeName, ServiceType};
use crate::limits::{MAX_INSTANCES_PER_TYPE, MAX_KNOWN_NODES};
use crate::links::{
    DialFailure, KnownNames, LinkEvent, LinkId, Links, Origin, Output, Purpose, SeedState,
};
use crate::membership::{MemberEvent, MemberInfo, Membership, MembershipConfig};
use crate::message::{
    ControlMessage, Hello, LaneKind, MAGIC, Offers, PROTOCOL_MAJOR, PROTOCOL_MINOR,
};
use crate::placement::PLACEMENT_VERSION;
use crate::rules::Rule;
#[cfg(any(test, feature = "fault-switches"))]
use crate::rules::RuleSet;
use crate::settings::Settings;
use crate::time::{Instant, earliest};
use crate::tracker::{AddError, Added, Adding, OwnerStats, Tracker, TrackerConfig, UpdateError};

/// How often the recently dead are tried again, and how many of them at once.
const CANDIDATE_INTERVAL: Duration = Duration::from_secs(1);
/// See [`CANDIDATE_INTERVAL`].
const CANDIDATES_AT_ONCE: usize = 4;

/// A new generation is taken at most this often, at first; each further one doubles it.
const MIN_RENEWAL_INTERVAL: Duration = Duration::from_secs(1);
/// The longest time between two new generations.
const MAX_RENEWAL_INTERVAL: Duration = Duration::from_secs(60);
/// Once no new generation was taken for this long, the next ones may follow as quickly as at first.
const RENEWALS_FORGOTTEN: Duration = Duration::from_secs(600);

/// Keeps the seed by which names are hashed apart from the one that the generator starts with.
const HASH_SEED: u64 = 0x7479_7065_5f68_6173;

/// Peers of a lower minor version are not asked which version of this node's entries they have: they would not answer.
const MINOR_AWAITS_VERSIONS: u16 = 1;

/// What a node is started with.
#[derive(Clone, Debug)]
pub struct ClusterConfig {
    /// The cluster; nodes of others are refused.
    pub cluster: ClusterName,
    /// This node's name.
    pub name: NodeName,
    /// Where the others reach it.
    pub address: Address,
    /// Where the others may be found.
    pub seeds: Vec<Address>,
    /// True where there are more, whose addresses are not known yet; see [`Cluster::await_seeds`].
    pub seeds_awaited: bool,
    /// Periods and bounds.
    pub settings: Settings,
    /// Microseconds since the Unix epoch, from which the generation is drawn.
    pub wall_clock_micros: u64,
    /// Drawn at random when the process starts.
    pub nonce: u64,
    /// What its Hello says of the data lane.
    pub offers: Offers,
    /// Seeds all further randomness.
    pub seed: u64,
}

/// What a node reports of itself and of the others.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum ClusterEvent {
    /// A node is up.
    MemberUp {
        /// The node, in this life.
        node: NodeId,
        /// Where it is reached.
        address: Address,
    },
    /// The control link to a node is ready, which says what it takes.
    Linked {
        /// The node, in this life.
        node: NodeId,
        /// What its Hello said.
        offers: Offers,
    },
    /// A node is down; it may come back.
    MemberDown {
        /// The node, in that life.
        node: NodeId,
    },
    /// A node has left for good.
    MemberLeft {
        /// The node, in that life.
        node: NodeId,
    },
    /// A service joined, left or changed.
    Registry {
        /// What became of it.
        event: RegistryEvent,
        /// The version of its type's view that it led to.
        version: u64,
    },
    /// A node says something of who holds the states of which keys.
    Tokens {
        /// The node, in this life.
        from: NodeId,
        /// A [`TokenMessage`](crate::ownership::message::TokenMessage).
        message: bytes::Bytes,
    },
    /// Every owner that is up has been synced: this node may route. Reported once.
    Synced,
    /// All seeds were dialled once more, and the entries of everybody who was found are here; see [`Cluster::look_around`].
    LookedAround,
    /// This node took a new generation, because an earlier life of its name had a higher one.
    Renewed {
        /// The node, in its new life.
        node: NodeId,
    },
    /// A living node has this node's name: this one must stop.
    NameTaken {
        /// Where the other is reached, where that is known.
        by: Option<Address>,
    },
    /// This node heard from nobody for so long that it must be the one that is cut off.
    Isolated,
    /// Something that an operator should know.
    Warning {
        /// Whom it is about, a node or an address: who causes many is to mute nobody else.
        about: String,
        /// What.
        message: String,
    },
}

/// Sizes and versions, for operators.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ClusterStats {
    /// This node, in its current life.
    pub node: NodeId,
    /// The version of its own entries.
    pub version: u64,
    /// What is known of the other owners.
    pub owners: Vec<OwnerStats>,
    /// Nodes with a ready control link.
    pub linked: usize,
}

/// A node as one state machine.
///
/// The order: [`new`](Cluster::new), then for each connection [`handle_connected`](Cluster::handle_connected) before its frames
/// and [`handle_disconnected`](Cluster::handle_disconnected) after them, with nothing about that [`LinkId`] afterwards. After
/// each input the outputs and events are emptied, and only then is the next timeout asked for. Where the process did not run
/// for a while, what arrived meanwhile is handled first, then [`handle_resumed`](Cluster::handle_resumed) is called, and only
/// then [`handle_timeout`](Cluster::handle_timeout): in any other order the living are taken down for a silence of this process.
///
/// After [`leave`](Cluster::leave) the outputs are emptied once more, and it is dropped. Dropped without that, it says nothing
/// to anybody: the others find out by its broken connections, as of a process that has crashed.
pub struct Cluster {
    me: NodeId,
    links: Links,
    membership: Membership,
    tracker: Tracker,
    registry: DirectoryWriter,
    rng: StdRng,
    candidates_at: Instant,
    /// When the last new generation was taken, and how long the next one has to wait from then.
    renewed: Option<(Instant, Duration)>,
    synced: bool,
    /// Somebody waits for [`ClusterEvent::LookedAround`].
    looks_around: bool,
    /// The peers with a ready link that had been members when it was made.
    joined_peers: BTreeSet<NodeId>,
    /// One of them has told whom it knows.
    heard_of_joined: bool,
    /// There are seeds whose addresses are not known yet.
    awaits_seeds: bool,
    stopped: bool,
    /// Commands are being collected, to become visible together.
    collecting: bool,
    events: VecDeque<ClusterEvent>,
}

impl Cluster {
    /// A node that has not met anybody yet.
    pub fn new(config: ClusterConfig, now: Instant) -> Self {
        let mut rng = StdRng::seed_from_u64(config.seed);
        let settings = &config.settings;
        let me = NodeId {
            name: config.name,
            generation: Generation {
                number: config.wall_clock_micros,
                random: rng.random(),
            },
        };
        let hello = Hello {
            magic: MAGIC,
            major: PROTOCOL_MAJOR,
            minor: PROTOCOL_MINOR,
            lane: LaneKind::Control,
            cluster: config.cluster,
            node: me.clone(),
            nonce: config.nonce,
            address: config.address.clone(),
            placement: PLACEMENT_VERSION,
            periods_ms: (
                millis(settings.broadcast_period()),
                millis(settings.down_period()),
            ),
            joined: false,
            highest_of_yours: None,
            offers: config.offers,
        };
        let links = Links::new(
            hello,
            settings.down_period(),
            config.seeds,
            now,
            rng.random(),
        );
        let membership = Membership::new(
            MembershipConfig::new(settings),
            me.clone(),
            config.address,
            now,
            rng.random(),
        );
        let tracker = Tracker::new(
            TrackerConfig::new(settings),
            me.clone(),
            config.nonce,
            now,
            rng.random(),
        );
        let mut cluster = Cluster {
            me,
            links,
            membership,
            tracker,
            // No draw of the generator, whose numbers go out in messages and decide histories.
            registry: DirectoryWriter::seeded(config.seed.rotate_left(32) ^ HASH_SEED),
            rng,
            candidates_at: now + CANDIDATE_INTERVAL,
            renewed: None,
            synced: false,
            looks_around: false,
            joined_peers: BTreeSet::new(),
            heard_of_joined: false,
            awaits_seeds: config.seeds_awaited,
            stopped: false,
            collecting: false,
            events: VecDeque::new(),
        };
        cluster.settle(now);
        cluster
    }

    /// This node, in its current life.
    pub fn node(&self) -> &NodeId {
        &self.me
    }

    /// What this node says of itself on every connection.
    pub fn hello(&self) -> &Hello {
        self.links.hello()
    }

    /// The services, as readers see them.
    pub fn directory(&self) -> Arc<Directory> {
        self.registry.directory()
    }

    /// The writer's side of the services, for reading.
    pub fn registry(&self) -> &DirectoryWriter {
        &self.registry
    }

    /// The other nodes, living and recently dead.
    pub fn members(&self) -> Vec<MemberInfo> {
        self.membership.members().collect()
    }

    /// The node on that control link, once its handshake is through.
    pub fn peer(&self, link: LinkId) -> Option<&NodeId> {
        self.links.peer_of(link)
    }

    /// What that node says in its Hello, while its control link is ready.
    pub fn offers(&self, node: &NodeId) -> Option<Offers> {
        self.links.offers(node)
    }

    /// The minor version of the protocol that the node speaks, while its control link is ready.
    pub fn minor(&self, node: &NodeId) -> Option<u16> {
        self.links.minor(node)
    }

    /// Sends a [`TokenMessage`](crate::ownership::message::TokenMessage) to a node; false where there is no ready link to
    /// it.
    pub fn send_tokens(&mut self, to: &NodeId, message: bytes::Bytes) -> bool {
        let frame = ControlMessage::Tokens(message).encode();
        self.links.send(to, &frame)
    }

    /// The owners that are up and whose entries this node does not have yet.
    pub fn missing(&self) -> Vec<NodeName> {
        self.tracker.missing()
    }

    /// True once [`ClusterEvent::Synced`] was reported.
    pub fn is_synced(&self) -> bool {
        self.synced
    }

    /// Sizes and versions.
    pub fn stats(&self) -> ClusterStats {
        ClusterStats {
            node: self.me.clone(),
            version: self.tracker.version(),
            owners: self.tracker.owners(),
            linked: self.links.ready_peers().count(),
        }
    }

    /// The membership state machine, for reading.
    pub fn membership(&self) -> &Membership {
        &self.membership
    }

    /// The replication state machine, for reading.
    pub fn tracker(&self) -> &Tracker {
        &self.tracker
    }

    /// Collects the commands that follow: they become visible together with [`commit`](Self::commit), at the cost of
    /// one new view for each type.
    pub fn begin(&mut self) {
        self.collecting = true;
    }

    /// Makes visible what was collected since [`begin`](Self::begin).
    pub fn commit(&mut self, now: Instant) {
        self.collecting = false;
        self.settle(now);
    }

    /// Turns rules off, before anybody is known, for tests that want to see what happens without them.
    #[cfg(any(test, feature = "fault-switches"))]
    pub fn set_rules(&mut self, rules: RuleSet) {
        self.membership.set_rules(rules);
        self.tracker.set_rules(rules);
    }

    /// Registers services, all or none; visible locally when this returns.
    pub fn add(
        &mut self,
        now: Instant,
        entries: Vec<NewEntry>,
    ) -> Result<Vec<Arc<ServiceInfo>>, AddError> {
        self.check_room(&entries)?;
        let added = self.tracker.add(now, entries)?;
        self.settle(now);
        Ok(added)
    }

    /// Begins to register services, all or none, which costs no turn more than [`continue_add`](Self::continue_add) is
    /// allowed. Until that is done, no other command is to be given.
    pub fn begin_add(&self, entries: Vec<NewEntry>) -> Result<Adding, AddError> {
        self.check_room(&entries)?;
        Ok(Adding::new(entries))
    }

    /// Goes on registering them, and looks at no more than `most` of them; visible locally, all together, when this
    /// returns [`Added::All`].
    pub fn continue_add(&mut self, now: Instant, adding: Adding, most: usize) -> Added {
        let added = self.tracker.continue_add(now, adding, most);
        if matches!(added, Added::All(Ok(_))) {
            self.settle(now);
        }
        added
    }

    /// Whether the types have room for these in the whole cluster, as far as this node knows.
    fn check_room(&self, entries: &[NewEntry]) -> Result<(), AddError> {
        let mut wanted: BTreeMap<&ServiceType, usize> = BTreeMap::new();
        for entry in entries {
            *wanted.entry(&entry.service_type).or_default() += 1;
        }
        let directory = self.registry.directory();
        let full = wanted.into_iter().find(|(service_type, more)| {
            let there = directory
                .view(service_type.as_str())
                .map_or(0, |view| view.services().len());
            there + more > MAX_INSTANCES_PER_TYPE
        });
        match full {
            Some((service_type, _)) => Err(AddError::TypeFull {
                service_type: service_type.clone(),
            }),
            None => Ok(()),
        }
    }

    /// Changes one of this node's own services; visible locally when this returns.
    pub fn update(
        &mut self,
        now: Instant,
        sequence: u64,
        update: EntryUpdate,
    ) -> Result<Arc<ServiceInfo>, UpdateError> {
        let updated = self.tracker.update(now, sequence, update)?;
        self.settle(now);
        Ok(updated)
    }

    /// Removes one of this node's own services, and returns its last version.
    pub fn remove(&mut self, now: Instant, sequence: u64) -> Result<Arc<ServiceInfo>, UpdateError> {
        let removed = self.tracker.remove(now, sequence)?;
        self.settle(now);
        Ok(removed)
    }

    /// Takes the keys of all of this node's own services away, as one change: they finish what they have. For good says that
    /// whatever is added or enabled later owns nothing either.
    pub fn drain(&mut self, now: Instant, for_good: bool) {
        self.tracker.drain(now, for_good);
        self.settle(now);
    }

    /// Asks every peer to say when its readers see the present version of this node's entries, and returns that version;
    /// [`without`](Self::without) says who has not said so yet.
    pub fn ask_who_has_it(&mut self, now: Instant) -> u64 {
        let version = self.tracker.ask_who_has_it(now);
        self.settle(now);
        version
    }

    /// The members that are up and have not said yet that they have that version of this node's entries.
    pub fn without(&self, version: u64) -> Vec<NodeName> {
        self.tracker.without(version)
    }

    /// Says goodbye. What is to be sent comes out of [`poll_output`](Self::poll_output) at once; after that the driver
    /// flushes its connections and drops the state machine.
    pub fn leave(&mut self, now: Instant) {
        self.links.set_leaving();
        self.membership.leave(now);
        self.stopped = true;
        self.pump_membership(now);
    }

    /// The addresses of the seeds, looked up again.
    pub fn set_seeds(&mut self, now: Instant, seeds: Vec<Address>) {
        self.links.set_seeds(now, seeds);
    }

    /// Says whether there are seeds whose addresses are not known yet. While there are, this node does not take itself for the
    /// first of its cluster, whatever the known ones say.
    pub fn await_seeds(&mut self, awaited: bool) {
        self.awaits_seeds = awaited;
    }

    /// Dials all seeds once more. To be called by a node that knows nobody any more, and must know whether that is so before
    /// it takes for its own what others may have; [`ClusterEvent::LookedAround`] says when it is done.
    pub fn look_around(&mut self, now: Instant) {
        self.looks_around = true;
        self.heard_of_joined = false;
        self.links.look_around(now);
        self.tracker.forget_who_told();
        self.settle(now);
    }

    /// A connection is open, and its encryption is through.
    pub fn handle_connected(
        &mut self,
        now: Instant,
        link: LinkId,
        origin: Origin,
        credentials: Credentials,
    ) {
        self.links.handle_connected(now, link, origin, credentials);
        self.settle(now);
    }

    /// A frame arrived.
    pub fn handle_frame(&mut self, now: Instant, link: LinkId, frame: &Frame) {
        if self.links.peer_of(link).is_some() {
            self.membership.heard(now);
        }
        let names = MembershipNames(&self.membership);
        self.links.handle_frame(now, link, frame, &names);
        self.settle(now);
    }

    /// A connection is gone.
    pub fn handle_disconnected(&mut self, now: Instant, link: LinkId) {
        let names = MembershipNames(&self.membership);
        self.links.handle_disconnected(now, link, &names);
        self.settle(now);
    }

    /// A connection is gone, for a reason that an operator may have to know: it is reported where nobody had answered
    /// there yet.
    pub fn handle_broken(&mut self, now: Instant, link: LinkId, why: &str) {
        self.links.complain_of_silence(now, link, why);
        self.handle_disconnected(now, link);
    }

    /// A dial failed.
    pub fn handle_dial_failed(&mut self, now: Instant, address: &Address, failure: &DialFailure) {
        self.links.handle_dial_failed(now, address, failure);
        self.settle(now);
    }

    /// The queue of a connection is long (nothing but the necessary goes there), or short again.
    pub fn set_congested(&mut self, now: Instant, link: LinkId, congested: bool) {
        if let Some(peer) = self.links.peer_of(link).cloned() {
            self.tracker.set_congested(now, &peer, congested);
            self.settle(now);
        }
    }

    /// The process did not run for a while. To be called once everything that arrived meanwhile was handled, and
    /// before any timer is.
    pub fn handle_resumed(&mut self, now: Instant) {
        self.membership.resumed(now);
        self.settle(now);
    }

    /// The time that [`poll_timeout`](Self::poll_timeout) named has come.
    pub fn handle_timeout(&mut self, now: Instant) {
        let names = MembershipNames(&self.membership);
        self.links.handle_timeout(now, &names);
        self.membership.handle_timeout(now);
        self.tracker.handle_timeout(now);
        if now >= self.candidates_at {
            self.candidates_at = now + CANDIDATE_INTERVAL;
            let candidates = self.membership.dial_candidates(now);
            for (node, address) in candidates.into_iter().take(CANDIDATES_AT_ONCE) {
                self.links.want(now, &node, &address, Purpose::Once);
            }
        }
        self.settle(now);
    }

    /// When [`handle_timeout`](Self::handle_timeout) is due.
    pub fn poll_timeout(&self) -> Option<Instant> {
        if self.stopped {
            return None;
        }
        let machines = earliest(self.membership.poll_timeout(), self.tracker.poll_timeout());
        let next = earliest(machines, self.links.poll_timeout());
        earliest(next, Some(self.candidates_at))
    }

    /// The next thing to do on the network.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.links.poll_output()
    }

    /// The next thing to report.
    pub fn poll_event(&mut self) -> Option<ClusterEvent> {
        self.events.pop_front()
    }

    /// Lets the parts hear of each other until nothing is left to say.
    fn settle(&mut self, now: Instant) {
        if self.stopped || self.collecting {
            return;
        }
        loop {
            let mut busy = false;
            while let Some(event) = self.links.poll_event() {
                busy = true;
                self.handle_link_event(now, event);
            }
            busy |= self.pump_membership(now);
            while let Some((recipients, message)) = self.tracker.poll_transmit() {
                let frame = message.encode();
                for peer in recipients.iter() {
                    self.links.send(peer, &frame);
                }
            }
            if !busy {
                break;
            }
        }
        let changes = self.tracker.poll_changes();
        if !changes.is_empty() {
            let events = self.registry.apply(changes);
            let events = events.into_iter();
            self.events
                .extend(events.map(|(event, version)| ClusterEvent::Registry { event, version }));
        }
        self.check_sync();
        self.check_look();
        self.links.settle_timeout();
    }

    fn handle_link_event(&mut self, now: Instant, event: LinkEvent) {
        match event {
            LinkEvent::Ready { peer, hello } => {
                self.events.push_back(ClusterEvent::Linked {
                    node: peer.clone(),
                    offers: hello.offers,
                });
                if hello.joined {
                    self.joined_peers.insert(peer.clone());
                }
                self.membership.link_up(now, &peer, &hello.address);
                self.tracker.link_up(now, &peer);
                if hello.minor < MINOR_AWAITS_VERSIONS {
                    self.tracker.set_too_old(&peer);
                }
            }
            LinkEvent::Lost { peer } => {
                self.joined_peers.remove(&peer);
                self.membership.link_down(&peer);
                self.tracker.link_down(now, &peer);
            }
            LinkEvent::DialRefused { peer, refusal } => {
                self.membership.dial_refused(now, &peer, refusal);
            }
            LinkEvent::Message { from, message } => self.handle_message(now, &from, message),
            LinkEvent::HigherGeneration { by, number } => {
                self.membership.heard_of_own_generation(now, &by, number);
                if self.membership.rules().holds(Rule::GenerationAboveKnown) {
                    self.renew(now, number);
                }
            }
            LinkEvent::Ghost { generation } => self.renew(now, generation.number),
            LinkEvent::Answered { peer } => self.membership.heard_alive_itself(now, &peer),
            LinkEvent::Implausible { from, node } => {
                if let Some(times) = self.membership.refuse_generation(now, &from, &node) {
                    let message = format!(
                        "{from} says that {node} lives, a generation that is more than two days ahead of this node's \
                         clock: one of the clocks is wrong (said {times} times)"
                    );
                    let about = from.to_string();
                    self.events
                        .push_back(ClusterEvent::Warning { message, about });
                }
            }
            LinkEvent::NameTaken { by } => self.events.push_back(ClusterEvent::NameTaken { by }),
            LinkEvent::Warning { about, message } => {
                let warning = ClusterEvent::Warning { about, message };
                self.events.push_back(warning);
            }
        }
    }

    fn handle_message(&mut self, now: Instant, from: &NodeId, message: ControlMessage) {
        match message {
            ControlMessage::Membership(packet) => {
                self.membership.handle_packet(now, from, &packet);
            }
            ControlMessage::Refused { node } => self.membership.handle_refused(now, from, &node),
            ControlMessage::AskLink { node } => {
                self.membership.handle_link_question(now, from, &node);
            }
            ControlMessage::Link { node, linked } => {
                self.membership.handle_link_answer(now, from, &node, linked);
            }
            ControlMessage::Goodbye { node } => {
                self.membership.handle_goodbye(now, from, &node);
            }
            ControlMessage::DeathNotice(notice) => {
                self.membership.handle_death_notice(now, from, notice);
            }
            ControlMessage::Vector(vector) => {
                self.heard_of_joined |= self.joined_peers.contains(from);
                // Whatever a peer lists is up for it.
                for row in vector.owners.iter().take(MAX_KNOWN_NODES) {
                    self.membership.on_peer_claims_alive(now, from, &row.owner);
                }
                let message = ControlMessage::Vector(vector);
                self.tracker.handle_message(now, from, message);
            }
            ControlMessage::Tokens(message) => self.events.push_back(ClusterEvent::Tokens {
                from: from.clone(),
                message,
            }),
            message => self.tracker.handle_message(now, from, message),
        }
    }

    fn pump_membership(&mut self, now: Instant) -> bool {
        let mut busy = false;
        while let Some(event) = self.membership.poll_event() {
            busy = true;
            match event {
                MemberEvent::Up { node, address } => {
                    self.tracker.member_up(now, &node);
                    self.links.want(now, &node, &address, Purpose::Member);
                    self.events
                        .push_back(ClusterEvent::MemberUp { node, address });
                }
                MemberEvent::Down { node, .. } => {
                    self.tracker.member_down(now, &node);
                    let names = MembershipNames(&self.membership);
                    self.links.forget(now, &node, &names);
                    self.events.push_back(ClusterEvent::MemberDown { node });
                }
                MemberEvent::Left { node } => {
                    self.tracker.member_left(&node);
                    let names = MembershipNames(&self.membership);
                    self.links.forget(now, &node, &names);
                    self.events.push_back(ClusterEvent::MemberLeft { node });
                }
                MemberEvent::NameConflict { node, address } => {
                    self.links.question_rival(now, node.generation, &address);
                }
                MemberEvent::Isolated => self.events.push_back(ClusterEvent::Isolated),
            }
        }
        while let Some((node, address, message)) = self.membership.poll_transmit() {
            busy = true;
            let frame = message.encode();
            self.links.send_or_dial(now, &node, &address, &frame);
        }
        busy
    }

    /// Rule: the higher generation of this name was a ghost. Take a higher one, publish every entry anew, keep
    /// the services' identities.
    ///
    /// Rule: *paced renewals*. What others say of earlier lives makes it do so once a second, and ever more rarely: each
    /// time all links are closed, and all entries are published anew.
    fn renew(&mut self, now: Instant, above: u64) {
        let number = above.max(self.me.generation.number).saturating_add(1);
        if !self.membership.may_take(now, number) {
            return;
        }
        let forgotten = |at: Instant| now.since(at) >= RENEWALS_FORGOTTEN;
        let last = self.renewed.filter(|(at, _)| !forgotten(*at));
        if self.membership.rules().holds(Rule::PacedRenewals)
            && last.is_some_and(|(at, interval)| now.since(at) < interval)
        {
            return;
        }
        let next = last.map_or(MIN_RENEWAL_INTERVAL, |(_, interval)| {
            (interval * 2).min(MAX_RENEWAL_INTERVAL)
        });
        self.renewed = Some((now, next));
        let node = NodeId {
            name: self.me.name.clone(),
            generation: Generation {
                number,
                random: self.rng.random(),
            },
        };
        tracing::info!(old = %self.me, new = %node, "taking a higher generation than an earlier life had");
        self.me = node.clone();
        self.links.renew(now, node.clone());
        self.membership.renew_generation(now, node.clone());
        self.tracker.renew(now, node.clone());
        self.events.push_back(ClusterEvent::Renewed { node });
    }

    /// Rule: the word of another newcomer is not that of the cluster. Two that start together meet before the members have
    /// answered, and each would take the other for all that there is: it takes the word of one that was a member already, or
    /// of every seed that answers.
    fn has_heard_enough(&self) -> bool {
        let told = self.heard_of_joined || self.links.dials().are_seeds_settled();
        told && self.tracker.has_heard_of_owners()
    }

    /// Rule: who knows nobody has looked around once every seed has answered or failed, and whoever was found has told whom
    /// it knows. That a seed's host is gone for good is no reason to wait for ever.
    fn check_look(&mut self) {
        if !self.looks_around || self.awaits_seeds || self.tracker.is_missing_any() {
            return;
        }
        let done = match self.links.dials().seed_state() {
            SeedState::Trying => false,
            SeedState::Answered => self.has_heard_enough(),
            SeedState::None | SeedState::AllRefused | SeedState::Unreachable => {
                self.tracker.has_heard_of_owners() || self.links.ready_peers().next().is_none()
            }
        };
        if done {
            self.looks_around = false;
            self.events.push_back(ClusterEvent::LookedAround);
        }
    }

    /// Rule: a fresh node must not route from a partial view.
    fn check_sync(&mut self) {
        if self.synced {
            return;
        }
        let synced = match self.links.dials().seed_state() {
            SeedState::None | SeedState::AllRefused if !self.awaits_seeds => {
                !self.tracker.is_missing_any()
            }
            SeedState::Trying => false,
            SeedState::Answered => self.has_heard_enough() && !self.tracker.is_missing_any(),
            // Where a seed's host is gone for good, the word of whoever dialled this node has to do.
            SeedState::None | SeedState::AllRefused | SeedState::Unreachable => {
                self.tracker.has_heard_of_owners() && !self.tracker.is_missing_any()
            }
        };
        if synced {
            self.synced = true;
            self.links.set_joined();
            self.membership.set_joined();
            self.events.push_back(ClusterEvent::Synced);
        }
    }
}

/// What the links may know of membership.
struct MembershipNames<'a>(&'a Membership);

impl KnownNames for MembershipNames<'_> {
    fn up(&self, name: &NodeName) -> Option<NodeId> {
        self.0.is_up(name)
    }

    fn highest(&self, name: &NodeName) -> Option<Generation> {
        self.0.highest_known(name)
    }

    fn is_left(&self, node: &NodeId) -> bool {
        self.0.is_left(node)
    }

    fn is_unconfirmed(&self, node: &NodeId) -> bool {
        self.0.is_unconfirmed(node)
    }

    fn is_plausible(&self, now: Instant, generation: Generation) -> bool {
        self.0.is_plausible(now, generation)
    }

    fn heeds_refusals(&self) -> bool {
        !self.0.rules().holds(Rule::RefusalsAreHearsay)
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
