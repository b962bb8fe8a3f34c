//! Every message of the control lane; version, limits, fallible decode.
//!
//! A frame is a `u32` length (little endian, counting what follows), one byte of kind, and a body. Bodies
//! on the control lane are postcard. A kind that is not known is skipped; a body that does not decode is an
//! error of that connection.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::entry::Record;
use crate::id::{ClusterName, Generation, NodeId, NodeName};
use crate::limits::MAX_CONTROL_FRAME_BYTES;

mod offers;

pub use crate::frame::{DecodeError, Frame};
pub use crate::id::{Address, AddressError};
pub use offers::{DataLink, Offers};

/// The first bytes of every connection's first body.
pub const MAGIC: [u8; 4] = *b"KDSP";

/// Version of the protocol. Another major version is refused; the lower minor version is spoken.
pub const PROTOCOL_MAJOR: u16 = 1;
/// See [`PROTOCOL_MAJOR`].
///
/// | minor | since then | a peer without it |
/// |---|---|---|
/// | 1 | [`Offers`]: the largest payload that a node takes, and which data connection is which | is sent what this node takes itself; its data connections replace none |
/// | 2 | [`ControlMessage::Tokens`], and their like on data connections: states that move with their keys | is not asked for any, and sees services with such states as ones that take no messages of its own |
/// | 1 | [`ControlMessage::AwaitVersion`], and its like on data connections: a node that goes away waits for its peers' word | is not asked, and waited for for a moment only |
/// | 3 | calls that their service may refuse by its load, and replies that tell of it, on data connections | takes such calls as any other |
/// | 4 | the span that a call belongs to, in a frame before it | is not told |
pub const PROTOCOL_MINOR: u16 = 4;

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum LaneKind {
    /// Membership and replication; one per pair of nodes.
    Control,
    /// Calls, casts and broadcasts.
    Data,
}

/// The first frame of either side of a connection. The dialling side speaks first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// [`MAGIC`].
    pub magic: [u8; 4],
    /// [`PROTOCOL_MAJOR`] of the sender.
    pub major: u16,
    /// [`PROTOCOL_MINOR`] of the sender.
    pub minor: u16,
    /// What the connection is for.
    pub lane: LaneKind,
    /// The sender's cluster.
    pub cluster: ClusterName,
    /// The sender.
    pub node: NodeId,
    /// The sender's process.
    pub nonce: u64,
    /// Where the sender is reached.
    pub address: Address,
    /// The version of placement that the sender computes owners with.
    pub placement: u32,
    /// The sender's `broadcast_period` and `down_period` in milliseconds: peers whose settings differ are warned about.
    pub periods_ms: (u64, u64),
    /// True once the sender has been a member: it is no newcomer who could still choose another name.
    pub joined: bool,
    /// The highest generation that the sender knows of the receiver's name, where it knows the receiver.
    pub highest_of_yours: Option<Generation>,
    /// What was appended since. Always the last field.
    pub offers: Offers,
}

/// Why a connection is refused after a [`Hello`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// The first bytes were not [`MAGIC`].
    #[error("it does not speak this protocol")]
    Magic,
    /// Another major version of the protocol.
    #[error(
        "it speaks version {theirs} of the protocol, this node speaks {ours}: run the same major version on both"
    )]
    Version {
        /// The refusing side's version.
        ours: u16,
        /// The refused side's version.
        theirs: u16,
    },
    /// Another cluster.
    #[error("it belongs to the cluster {theirs}, this node to {ours}")]
    Cluster {
        /// The refusing side's cluster.
        ours: ClusterName,
        /// The refused side's cluster.
        theirs: ClusterName,
    },
    /// Another version of placement: the two would name different owners for a key.
    #[error(
        "it places keys by version {theirs}, this node by {ours}: the two would name different owners"
    )]
    Placement {
        /// The refusing side's placement version.
        ours: u32,
        /// The refused side's placement version.
        theirs: u32,
    },
    /// The certificate does not speak for that name.
    #[error("its certificate does not allow the node name {name}")]
    Certificate {
        /// The name it claimed.
        name: NodeName,
    },
    /// A living node has the name.
    #[error("a living node has the name {name}: choose another, or stop that one first")]
    NameTaken {
        /// The name.
        name: NodeName,
    },
    /// A node of that name looks alive here, and is being asked.
    #[error("a node of the name {name} looks alive here and is being asked; try again")]
    NameInQuestion {
        /// The name.
        name: NodeName,
    },
    /// It dialled itself.
    #[error("it is this node itself")]
    Myself,
    /// The pair has a connection already.
    #[error("there is a connection between these two already")]
    Duplicate,
    /// That life of the node has left the cluster.
    #[error("that life of the node has left the cluster")]
    Left,
    /// No room: [`MAX_KNOWN_NODES`](crate::limits::MAX_KNOWN_NODES) or another bound is reached.
    #[error("no room for another node here")]
    Full,
    /// Another node has the name, and answers here. The word of a third party ends nobody: the refused side asks that node.
    #[error("a node of the name {name} answers at {address}; try again once that one has stopped")]
    NameHeld {
        /// The name.
        name: NodeName,
        /// Where the other is reached, as it says itself.
        address: Address,
    },
    /// The generation is far ahead of the refusing side's clock.
    #[error(
        "its generation is more than two days ahead of this node's clock: set the clocks of both"
    )]
    Generation,
}

impl Refusal {
    /// True where trying again later cannot help without a human.
    pub fn is_lasting(&self) -> bool {
        !matches!(
            self,
            Refusal::NameInQuestion { .. }
                | Refusal::NameHeld { .. }
                | Refusal::Duplicate
                | Refusal::Full
                | Refusal::Left
                | Refusal::Myself
        )
    }
}

/// What one owner's state is at one moment, in few bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnerVersion {
    /// The owner.
    pub owner: NodeId,
    /// Counts its changes in this generation, from 0.
    pub version: u64,
    /// Order-independent hash of its entries.
    pub content: u64,
}

/// One change of one owner's entries.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Operation {
    /// The entry is now this.
    Put(Record),
    /// The entry is gone.
    Remove {
        /// The service's number within its process.
        sequence: u64,
    },
}

/// What changed of one owner's entries between two of its versions, folded to one operation an entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delta {
    /// Whose entries.
    pub owner: NodeId,
    /// The owner's process.
    pub nonce: u64,
    /// The version that this follows.
    pub from: u64,
    /// The version that this leads to.
    pub to: u64,
    /// The content hash at `to`.
    pub content: u64,
    /// What changed, at most one operation an entry.
    pub operations: Vec<Operation>,
}

/// A request for what is missing of one owner's entries.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Whose entries.
    pub owner: NodeId,
    /// The version the asker has; `None` asks for a snapshot in any case.
    pub have: Option<u64>,
    /// The next chunk of a snapshot that is under way.
    pub resume: Option<Resume>,
}

/// Which chunk of which snapshot is asked for: whoever asks sets the pace, so that nothing piles up for a slow reader.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resume {
    /// The version that the snapshot is of.
    pub version: u64,
    /// The chunk.
    pub chunk: u32,
}

/// The answer to a [`Request`] that cannot be served.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unavailable {
    /// Whose entries were asked for.
    pub owner: NodeId,
}

/// A part of an owner's whole state at one version, installed once all parts are there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotChunk {
    /// Whose entries, at which version and content hash.
    pub of: OwnerVersion,
    /// The owner's process.
    pub nonce: u64,
    /// This chunk's place, from 0.
    pub index: u32,
    /// How many chunks there are.
    pub count: u32,
    /// The entries of this chunk.
    pub records: Vec<Record>,
}

/// One hash over all owners that are up: cheap to send, and equal while nothing differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Digest {
    /// Hash over the sorted [`OwnerVersion`]s.
    pub hash: u64,
    /// True asks for a [`VersionVector`] where the hashes differ.
    pub ask: bool,
}

/// All owners that are up, with their versions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionVector {
    /// One row an owner, at most [`MAX_KNOWN_NODES`](crate::limits::MAX_KNOWN_NODES).
    pub owners: Vec<OwnerVersion>,
}

/// The question to a node whether it lives, because another of its name has shown up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Challenge {
    /// The other life.
    pub rival: Generation,
    /// Where the other is reached, so that the two can settle who stops.
    pub address: Address,
    /// True where the other has been a member already, and so cannot simply be turned away.
    pub joined: bool,
}

/// A message of the control lane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ControlMessage {
    /// The first frame.
    Hello(Hello),
    /// The answer to a [`Hello`] that is not accepted; the connection closes after it.
    Refuse(Refusal),
    /// A packet of the membership engine.
    Membership(Bytes),
    /// The receiver is asked whether it lives: another node of its name has shown up.
    Challenge(Challenge),
    /// The receiver of a [`ControlMessage::Challenge`] lives.
    Alive {
        /// The rival of the challenge.
        rival: Generation,
    },
    /// The sender's link to that node broke, and dialling it again was refused.
    Refused {
        /// The node that refused.
        node: NodeId,
    },
    /// The sender leaves for good.
    Goodbye {
        /// The sender's life that ends.
        node: NodeId,
    },
    /// The sender, or somebody for whom it passes this on, takes that node for dead; it should say that it is not.
    DeathNotice(DeathNotice),
    /// See [`Delta`].
    Delta(Delta),
    /// See [`Request`].
    Request(Request),
    /// See [`Unavailable`].
    Unavailable(Unavailable),
    /// See [`SnapshotChunk`].
    Snapshot(SnapshotChunk),
    /// See [`Digest`].
    Digest(Digest),
    /// See [`VersionVector`].
    Vector(VersionVector),
    /// The receiver is asked to say when it has that version of the sender's entries, or a later one.
    AwaitVersion {
        /// The version.
        version: u64,
    },
    /// The answer to [`ControlMessage::AwaitVersion`]: the sender has it.
    HaveVersion {
        /// The version that it has.
        version: u64,
    },
    /// A [`TokenMessage`](crate::ownership::message::TokenMessage), as it encodes itself.
    Tokens(Bytes),
    /// The receiver is asked whether it holds a living link to that node, which the sender was never linked with and which
    /// refused it. A [`ControlMessage::Refused`] asks the same.
    AskLink {
        /// The node.
        node: NodeId,
    },
    /// Whether the sender holds a living link to that node: the answer to somebody whom it refused.
    Link {
        /// The node.
        node: NodeId,
        /// It does.
        linked: bool,
    },
}

/// Somebody takes a node for dead that is up for the receiver.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeathNotice {
    /// The node in question, in the life in question.
    pub node: NodeId,
    /// A later life of its name, and where it is said to be reached, which is why the one in question must be dead.
    pub rival: Option<(Generation, Address)>,
}

/// Kinds of frames below this belong to the control lane, the others to the data lane; both lanes start
/// with [`kind::HELLO`].
pub const FIRST_DATA_KIND: u8 = 64;

/// The kinds of frames on the control lane.
pub mod kind {
    /// [`Hello`](super::Hello).
    pub const HELLO: u8 = 1;
    /// [`Refusal`](super::Refusal).
    pub const REFUSE: u8 = 2;
    /// A packet of the membership engine.
    pub const MEMBERSHIP: u8 = 3;
    /// [`Challenge`](super::Challenge).
    pub const CHALLENGE: u8 = 4;
    /// [`ControlMessage::Alive`](super::ControlMessage::Alive).
    pub const ALIVE: u8 = 5;
    /// [`ControlMessage::Refused`](super::ControlMessage::Refused).
    pub const REFUSED: u8 = 6;
    /// [`ControlMessage::Goodbye`](super::ControlMessage::Goodbye).
    pub const GOODBYE: u8 = 7;
    /// [`Delta`](super::Delta).
    pub const DELTA: u8 = 8;
    /// [`Request`](super::Request).
    pub const REQUEST: u8 = 9;
    /// [`Unavailable`](super::Unavailable).
    pub const UNAVAILABLE: u8 = 10;
    /// [`SnapshotChunk`](super::SnapshotChunk).
    pub const SNAPSHOT: u8 = 11;
    /// [`Digest`](super::Digest).
    pub const DIGEST: u8 = 12;
    /// [`VersionVector`](super::VersionVector).
    pub const VECTOR: u8 = 13;
    /// [`ControlMessage::DeathNotice`](super::ControlMessage::DeathNotice).
    pub const DEATH_NOTICE: u8 = 14;
    /// [`ControlMessage::AwaitVersion`](super::ControlMessage::AwaitVersion).
    pub const AWAIT_VERSION: u8 = 15;
    /// [`ControlMessage::HaveVersion`](super::ControlMessage::HaveVersion).
    pub const HAVE_VERSION: u8 = 16;
    /// [`ControlMessage::AskLink`](super::ControlMessage::AskLink).
    pub const ASK_LINK: u8 = 17;
    /// [`ControlMessage::Link`](super::ControlMessage::Link).
    pub const LINK: u8 = 18;
    /// [`ControlMessage::Tokens`](super::ControlMessage::Tokens).
    pub const TOKENS: u8 = 19;
}

impl ControlMessage {
    /// The message as a frame.
    pub fn encode(&self) -> Frame {
        fn body(kind: u8, message: &impl Serialize) -> Frame {
            let body = postcard::to_allocvec(message)
                .expect("every message is plain data, which postcard can hold");
            debug_assert!(body.len() < MAX_CONTROL_FRAME_BYTES, "kind {kind} too long");
            Frame {
                kind,
                body: body.into(),
            }
        }
        match self {
            ControlMessage::Hello(hello) => body(kind::HELLO, hello),
            ControlMessage::Refuse(refusal) => body(kind::REFUSE, refusal),
            ControlMessage::Membership(packet) => Frame {
                kind: kind::MEMBERSHIP,
                body: packet.clone(),
            },
            ControlMessage::Tokens(message) => Frame {
                kind: kind::TOKENS,
                body: message.clone(),
            },
            ControlMessage::Challenge(challenge) => body(kind::CHALLENGE, challenge),
            ControlMessage::Alive { rival } => body(kind::ALIVE, rival),
            ControlMessage::Refused { node } => body(kind::REFUSED, node),
            ControlMessage::Goodbye { node } => body(kind::GOODBYE, node),
            ControlMessage::DeathNotice(notice) => body(kind::DEATH_NOTICE, notice),
            ControlMessage::Delta(delta) => body(kind::DELTA, delta),
            ControlMessage::Request(request) => body(kind::REQUEST, request),
            ControlMessage::Unavailable(unavailable) => body(kind::UNAVAILABLE, unavailable),
            ControlMessage::Snapshot(chunk) => body(kind::SNAPSHOT, chunk),
            ControlMessage::Digest(digest) => body(kind::DIGEST, digest),
            ControlMessage::Vector(vector) => body(kind::VECTOR, vector),
            ControlMessage::AwaitVersion { version } => body(kind::AWAIT_VERSION, version),
            ControlMessage::HaveVersion { version } => body(kind::HAVE_VERSION, version),
            ControlMessage::AskLink { node } => body(kind::ASK_LINK, node),
            ControlMessage::Link { node, linked } => body(kind::LINK, &(node, linked)),
        }
    }

    /// The message in a frame; `None` for a kind that this version does not know, which is to be skipped.
    pub fn decode(frame: &Frame) -> Result<Option<ControlMessage>, DecodeError> {
        fn body<'a, T: Deserialize<'a>>(frame: &'a Frame) -> Result<T, DecodeError> {
            postcard::from_bytes(&frame.body).map_err(|error| DecodeError::Garbled {
                kind: frame.kind,
                cause: error.to_string(),
            })
        }
        if frame.body.len() > MAX_CONTROL_FRAME_BYTES {
            return Err(DecodeError::FrameTooLong {
                bytes: frame.body.len(),
                limit: MAX_CONTROL_FRAME_BYTES,
            });
        }
        let message = match frame.kind {
            kind::HELLO => ControlMessage::Hello(body(frame)?),
            kind::REFUSE => ControlMessage::Refuse(body(frame)?),
            kind::MEMBERSHIP => ControlMessage::Membership(frame.body.clone()),
            kind::TOKENS => ControlMessage::Tokens(frame.body.clone()),
            kind::CHALLENGE => ControlMessage::Challenge(body(frame)?),
            kind::ALIVE => ControlMessage::Alive {
                rival: body(frame)?,
            },
            kind::REFUSED => ControlMessage::Refused { node: body(frame)? },
            kind::GOODBYE => ControlMessage::Goodbye { node: body(frame)? },
            kind::DEATH_NOTICE => ControlMessage::DeathNotice(body(frame)?),
            kind::DELTA => ControlMessage::Delta(body(frame)?),
            kind::REQUEST => ControlMessage::Request(body(frame)?),
            kind::UNAVAILABLE => ControlMessage::Unavailable(body(frame)?),
            kind::SNAPSHOT => ControlMessage::Snapshot(body(frame)?),
            kind::DIGEST => ControlMessage::Digest(body(frame)?),
            kind::VECTOR => ControlMessage::Vector(body(frame)?),
            kind::AWAIT_VERSION => ControlMessage::AwaitVersion {
                version: body(frame)?,
            },
            kind::HAVE_VERSION => ControlMessage::HaveVersion {
                version: body(frame)?,
            },
            kind::ASK_LINK => ControlMessage::AskLink { node: body(frame)? },
            kind::LINK => {
                let (node, linked) = body(frame)?;
                ControlMessage::Link { node, linked }
            }
            _ => return Ok(None),
        };
        Ok(Some(message))
    }
}
