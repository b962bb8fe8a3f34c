//! A member that lies: a real state machine with a certificate of its own name, some of whose frames are changed on
//! their way out, and which says what it likes in between.
//!
//! It stays within what it may do to itself: it holds its own connections, and is one member. All that it says of
//! others is made up. The checks of a history are those among the honest; what is said of the liar itself is its own
//! business.

use std::collections::VecDeque;
use std::time::Duration;

use keydispatch_core::forge::{Forged, ForgedClaim, PacketPurpose, forge_packet};
use keydispatch_core::message::{
    Address, Challenge, ControlMessage, DeathNotice, Delta, Digest, Frame, Hello, Operation,
    OwnerVersion, Refusal, Request, Resume, SnapshotChunk, VersionVector,
};
use keydispatch_core::{
    Generation, InstanceName, NodeId, NodeName, Record, ServiceState, ServiceType, Weight,
};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::process::address;

/// Mean time between two lies, in a history that draws its own from around it.
const BETWEEN: Duration = Duration::from_millis(40);

/// How many frames are kept to be said again.
const KEPT: usize = 64;

/// A day in microseconds, which is how generations count.
const DAY: u64 = 24 * 3_600 * 1_000_000;

/// See the module.
pub(crate) struct Liar {
    pub(crate) name: NodeName,
    pub(crate) rng: StdRng,
    pub(crate) between: Duration,
    /// Of 100 frames of its own, so many are changed.
    changed_percent: u32,
    heard: VecDeque<Frame>,
}

impl Liar {
    pub(crate) fn new(name: NodeName, seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let between = BETWEEN.mul_f64(rng.random_range(0.3..3.0));
        let changed_percent = rng.random_range(0..60);
        Liar {
            name,
            rng,
            between,
            changed_percent,
            heard: VecDeque::new(),
        }
    }

    /// Keeps a frame, to say it again some time.
    pub(crate) fn keep(&mut self, frame: &Frame) {
        if self.heard.len() >= KEPT {
            self.heard.pop_front();
        }
        self.heard.push_back(frame.clone());
    }

    /// What it says in place of that frame of its own.
    pub(crate) fn change(&mut self, frame: Frame, to: Option<&NodeId>) -> Frame {
        if self.rng.random_range(0..100) >= self.changed_percent {
            return frame;
        }
        match ControlMessage::decode(&frame) {
            Ok(Some(ControlMessage::Hello(hello))) => self.change_hello(hello, to),
            Ok(Some(ControlMessage::Snapshot(chunk))) if chunk.of.owner.name != self.name => {
                let mut chunk = chunk;
                match self.rng.random_range(0..3) {
                    // A version of its own making, with what it likes in it.
                    0 => {
                        chunk.of.version = self.absurd();
                        chunk.records = vec![self.record()];
                        chunk.of.content = content(&chunk.records);
                        (chunk.index, chunk.count) = (0, 1);
                    }
                    1 => {
                        chunk.records.clear();
                        chunk.of.content = 0;
                        (chunk.index, chunk.count) = (0, 1);
                    }
                    _ => {
                        if let Some(record) = chunk.records.first_mut() {
                            record.weight = Weight::try_new(7).unwrap_or_default();
                        }
                        chunk.of.content = content(&chunk.records);
                    }
                }
                ControlMessage::Snapshot(chunk).encode()
            }
            Ok(Some(ControlMessage::Vector(mut vector))) => {
                let at = self.rng.random_range(0..vector.owners.len().max(1));
                if let Some(row) = vector.owners.get_mut(at)
                    && row.owner.name != self.name
                {
                    row.version = row.version.saturating_add(self.absurd());
                }
                ControlMessage::Vector(vector).encode()
            }
            _ => frame,
        }
    }

    fn change_hello(&mut self, mut hello: Hello, to: Option<&NodeId>) -> Frame {
        let highest = to.map_or(0, |to| to.generation.number);
        let number = self.later(highest);
        let taken = |name: &NodeName| Refusal::NameTaken { name: name.clone() };
        let refusal = match (self.rng.random_range(0..6), to) {
            (0, _) => {
                hello.highest_of_yours = Some(self.generation(number));
                return ControlMessage::Hello(hello).encode();
            }
            (1, _) => {
                hello.highest_of_yours = Some(self.generation(u64::MAX));
                return ControlMessage::Hello(hello).encode();
            }
            (2, Some(to)) => taken(&to.name),
            (3, Some(to)) => {
                // As if it were the other life of the receiver's name.
                hello.node = NodeId {
                    name: to.name.clone(),
                    generation: self.generation(number),
                };
                hello.joined = true;
                return ControlMessage::Hello(hello).encode();
            }
            (4, _) => Refusal::Left,
            _ => taken(&hello.node.name),
        };
        ControlMessage::Refuse(refusal).encode()
    }

    /// A number that is too large to be true.
    fn absurd(&mut self) -> u64 {
        match self.rng.random_range(0..5) {
            0 => 1,
            1 => self.rng.random_range(1..1_000),
            2 => 1 << 40,
            3 => u64::MAX - 1,
            _ => u64::MAX,
        }
    }

    /// The number of a generation above that one, or the highest.
    fn later(&mut self, number: u64) -> u64 {
        match self.rng.random_range(0..6) {
            0 => number.saturating_add(1),
            1 => number.saturating_add(self.rng.random_range(1..60_000_000)),
            2 => number.saturating_add(self.rng.random_range(1..DAY)),
            3 => number.saturating_add(10 * DAY),
            4 => u64::MAX - 1,
            _ => u64::MAX,
        }
    }

    fn generation(&mut self, number: u64) -> Generation {
        Generation {
            number,
            random: self.rng.random(),
        }
    }

    fn record(&mut self) -> Record {
        let number: u32 = self.rng.random();
        Record {
            sequence: 1_000_000 + u64::from(number),
            version: self.absurd(),
            previous: None,
            service_type: ServiceType::try_new("type0").expect("a short name"),
            name: InstanceName::try_new(format!("forged{number}")).expect("a short name"),
            state: ServiceState::Online,
            weight: Weight::default(),
            protocol_version: Some(1),
            metadata: None,
        }
    }
}

/// The hash that goes with these entries.
fn content(records: &[Record]) -> u64 {
    records.iter().fold(0, |sum, record| {
        let bytes = postcard::to_allocvec(record).expect("plain data");
        sum.wrapping_add(xxhash_rust::xxh3::xxh3_64(&bytes))
    })
}

/// What a lie needs to know.
pub(crate) struct Target {
    pub(crate) me: Forged,
    pub(crate) to: Forged,
    /// Somebody else, honest, living or dead.
    pub(crate) about: Forged,
    pub(crate) lives: bool,
    /// What the liar's own state machine knows of that node's entries.
    pub(crate) known: Option<OwnerVersion>,
}

impl Liar {
    /// Messages, and how often they are said.
    pub(crate) fn invent(&mut self, target: &Target) -> (Vec<Frame>, usize) {
        let mut times = 1;
        let messages = match self.rng.random_range(0..17) {
            0..=3 => {
                times = self.burst();
                self.gossip(target)
            }
            4 => {
                times = self.burst();
                let rival = self.rng.random_bool(0.5).then(|| {
                    let number = self.later(target.about.node.generation.number);
                    (self.generation(number), self.somewhere(target))
                });
                let node = if self.rng.random_bool(0.5) {
                    target.about.node.clone()
                } else {
                    target.to.node.clone()
                };
                vec![ControlMessage::DeathNotice(DeathNotice { node, rival })]
            }
            5..=6 => {
                times = self.burst();
                vec![self.vector(target)]
            }
            7 => vec![self.snapshot(target)],
            8 => vec![self.delta(target)],
            9 => {
                let node = target.about.node.clone();
                match self.rng.random_range(0..3) {
                    0 => vec![ControlMessage::Refused { node }],
                    1 => vec![ControlMessage::AskLink { node }],
                    _ => vec![ControlMessage::Link {
                        node,
                        linked: target.lives,
                    }],
                }
            }
            10 => {
                let number = self.later(target.to.node.generation.number);
                let rival = self.generation(number);
                vec![
                    ControlMessage::Challenge(Challenge {
                        rival,
                        address: self.somewhere(target),
                        joined: true,
                    }),
                    ControlMessage::Alive { rival },
                ]
            }
            11 => {
                let version = self.absurd();
                vec![
                    ControlMessage::AwaitVersion { version },
                    ControlMessage::HaveVersion { version },
                ]
            }
            12 => self.requests(target),
            13 => vec![ControlMessage::Refuse(self.refusal(target))],
            14 => vec![ControlMessage::Goodbye {
                node: target.about.node.clone(),
            }],
            15 => {
                let told = self.heard.len();
                let at = self.rng.random_range(0..told.max(1));
                let again = self.heard.get(at).cloned();
                return (again.into_iter().collect(), self.burst());
            }
            _ => {
                let digest = Digest {
                    hash: self.rng.random(),
                    ask: true,
                };
                vec![ControlMessage::Digest(digest)]
            }
        };
        (messages.iter().map(ControlMessage::encode).collect(), times)
    }

    /// Mostly once, sometimes again and again.
    fn burst(&mut self) -> usize {
        if self.rng.random_bool(0.2) {
            self.rng.random_range(2..30)
        } else {
            1
        }
    }

    fn refusal(&mut self, target: &Target) -> Refusal {
        let name = if self.rng.random_bool(0.7) {
            target.to.node.name.clone()
        } else {
            target.about.node.name.clone()
        };
        match self.rng.random_range(0..5) {
            0..=1 => Refusal::NameTaken { name },
            2 => Refusal::NameInQuestion { name },
            3 => Refusal::Left,
            _ => Refusal::Certificate { name },
        }
    }

    fn somewhere(&mut self, target: &Target) -> Address {
        match self.rng.random_range(0..4) {
            0 => target.me.address.clone(),
            1 => target.to.address.clone(),
            2 => target.about.address.clone(),
            // Nobody is there.
            _ => address(0),
        }
    }

    fn gossip(&mut self, target: &Target) -> Vec<ControlMessage> {
        let mut about = if self.rng.random_bool(0.8) {
            target.about.clone()
        } else {
            target.to.clone()
        };
        let claim = match self.rng.random_range(0..5) {
            0..=2 => ForgedClaim::Down,
            3 => ForgedClaim::Suspect,
            _ => ForgedClaim::Alive,
        };
        let incarnation = match self.rng.random_range(0..4) {
            0 => u16::MAX,
            1 => self.rng.random(),
            _ => 0,
        };
        match self.rng.random_range(0..5) {
            0 => {
                let number = self.later(about.node.generation.number);
                about.node.generation = self.generation(number);
                about.address = self.somewhere(target);
            }
            1 => {
                about.rejoins = match self.rng.random_range(0..3) {
                    0 => about.rejoins.saturating_add(1),
                    1 => about.rejoins.saturating_add(1_000),
                    _ => u32::MAX,
                };
            }
            _ => {}
        }
        let purpose = if self.rng.random_bool(0.1) {
            PacketPurpose::TurnUndead
        } else {
            PacketPurpose::Gossip
        };
        let news = [(about, incarnation, claim)];
        forge_packet(&target.me, &target.to, purpose, &news)
            .into_iter()
            .collect()
    }

    /// The version of an owner's entries that it makes up, and what it says they are.
    fn false_version(&mut self, target: &Target, content: u64) -> OwnerVersion {
        let held = target.known.as_ref().map_or(0, |known| known.version);
        OwnerVersion {
            owner: target.about.node.clone(),
            version: held.saturating_add(self.absurd()),
            content,
        }
    }

    fn vector(&mut self, target: &Target) -> ControlMessage {
        let hash = self.rng.random();
        let mut row = self.false_version(target, hash);
        if self.rng.random_bool(0.1) {
            // Of itself, too: more than it will ever have.
            row.owner = target.me.node.clone();
        }
        ControlMessage::Vector(VersionVector { owners: vec![row] })
    }

    fn snapshot(&mut self, target: &Target) -> ControlMessage {
        let records = if self.rng.random_bool(0.5) {
            vec![self.record()]
        } else {
            Vec::new()
        };
        ControlMessage::Snapshot(SnapshotChunk {
            of: self.false_version(target, content(&records)),
            nonce: self.rng.random(),
            index: 0,
            count: 1,
            records,
        })
    }

    fn delta(&mut self, target: &Target) -> ControlMessage {
        let from = target.known.as_ref().map_or(0, |known| known.version);
        ControlMessage::Delta(Delta {
            owner: target.about.node.clone(),
            nonce: self.rng.random(),
            from,
            to: from.saturating_add(self.absurd()),
            content: self.rng.random(),
            operations: vec![Operation::Put(self.record())],
        })
    }

    fn requests(&mut self, target: &Target) -> Vec<ControlMessage> {
        let owner = if self.rng.random_bool(0.5) {
            target.to.node.clone()
        } else {
            target.about.node.clone()
        };
        let resume = self.rng.random_bool(0.5).then(|| Resume {
            version: self.absurd(),
            chunk: u32::MAX,
        });
        vec![ControlMessage::Request(Request {
            owner,
            have: Some(self.absurd()),
            resume,
        })]
    }
}
