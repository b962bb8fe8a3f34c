//! What instances say to each other of slots; bounds, fallible decode.
//!
//! All name instances by [`ServiceId`], which holds the process's nonce: a message for a process that has ended finds
//! nobody in the one that took its name.

use bytes::Bytes;
use serde::{Deserialize, Deserializer, Serialize, de};

use super::slots::SlotSet;
use crate::entry::ServiceInfo;
use crate::frame::DecodeError;
use crate::id::{InstanceName, NodeId, Reference, ServiceId, ServiceType};
use crate::limits::{MAX_CONTROL_FRAME_BYTES, MAX_KNOWN_NODES, WEIGHT_RANGE};

/// Longest piece of the states of a slot, in bytes: a control frame's length, so that a probe on the same wire waits for no
/// more than that.
pub const MAX_PIECE_BYTES: usize = MAX_CONTROL_FRAME_BYTES;
/// Most pieces of one slot: 1 GiB of states.
pub const MAX_PIECES: u32 = 1_024;
/// Most claims, answers or offers in one message: what a peer has to say of more types comes in the next one.
pub const MAX_BUNDLE: usize = 1_024;
/// Most sets of slots that one answer speaks of, each with something else to say.
pub const MAX_SAYINGS: usize = 4_096;
/// Most instances of one type that a node tells of in an answer: more are not run by one node, and a claim that is not ended
/// by these is asked again.
pub const MAX_STANDINGS: usize = 64;
/// Longest message that is no piece, in bytes: it travels on the control lane.
pub const MAX_MESSAGE_BYTES: usize = MAX_CONTROL_FRAME_BYTES;
/// Most keys of one slot in a transfer: a slot is the millionth part of the keys.
pub const MAX_KEYS_PER_SLOT: usize = 1 << 20;

/// What placement needs of an instance, as the instance itself says it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standing {
    /// The instance.
    pub id: ServiceId,
    /// What placement hashes.
    pub name: InstanceName,
    /// Whether it owns keys.
    pub online: bool,
    /// Its share of them.
    #[serde(deserialize_with = "weight")]
    pub weight: u16,
    /// Which version of its entry this is.
    pub reference: Reference,
}

impl Standing {
    /// What an entry says.
    pub fn of(info: &ServiceInfo) -> Self {
        Standing {
            id: info.id().clone(),
            name: info.name().clone(),
            online: info.is_online(),
            weight: info.weight().into(),
            reference: info.reference(),
        }
    }
}

/// An instance, and the life of the node that runs it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Place {
    /// The instance.
    pub id: ServiceId,
    /// Its node.
    pub node: NodeId,
}

/// Which slots a claim is about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Which {
    /// All that the claimant is first for by a view of that hash: whoever has the same view knows which.
    First {
        /// Hash over the instances that are online.
        view: u64,
    },
    /// These.
    Slots(SlotSet),
}

/// "By my view I am first for these slots: what do you have of them?"
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// The type.
    pub service_type: ServiceType,
    /// Who claims.
    pub claimant: Standing,
    /// Counts the claimant's claims; what is sent for another one is refused. 0 asks a holder to send what it has, to be
    /// merged.
    pub round: u64,
    /// Which question this is; the answer says it again.
    pub question: u64,
    /// Of which slots.
    pub which: Which,
    /// Hash over the members that the claimant knows.
    pub members: u64,
}

/// What somebody has of a slot that was asked for. What is not said is free: it is not here.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Said {
    /// It was given to this one.
    Ask(Place),
    /// It is here, or claimed here, by an instance that outranks the claimant.
    No,
    /// It is on its way to another one, or wanted by one that outranks the claimant: ask again.
    Wait,
    /// It is here and will be sent; it is served here until then.
    Coming(ServiceId),
}

/// The answer to a [`Claim`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// The type.
    pub service_type: ServiceType,
    /// Who asked.
    pub claimant: ServiceId,
    /// The round of the claim.
    pub round: u64,
    /// The question that is answered.
    pub question: u64,
    /// The views differ, so it is not known which slots were meant.
    pub differs: bool,
    /// What is not free.
    #[serde(deserialize_with = "sayings")]
    pub said: Vec<(SlotSet, Said)>,
    /// The answering node's own instances of the type: where one outranks the claimant, that ends the claim.
    #[serde(deserialize_with = "standings")]
    pub standings: Vec<Standing>,
    /// The members, where the claimant seems to know others.
    #[serde(deserialize_with = "members")]
    pub members: Vec<NodeId>,
}

/// A part of the states of a slot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Piece {
    /// The type.
    pub service_type: ServiceType,
    /// A number of the sending process, never reused.
    pub transfer: u64,
    /// The first number that the sending process may send again to this node: what became of earlier ones is settled.
    pub since: u64,
    /// Who gives.
    pub from: ServiceId,
    /// Who is to hold.
    pub to: ServiceId,
    /// The round of the claim that this is for; 0 to be merged.
    pub round: u64,
    /// The slot.
    pub slot: u32,
    /// Which part, from 0.
    pub piece: u32,
    /// How many there are.
    pub of: u32,
    /// The part.
    pub bytes: Bytes,
}

/// What came of a piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// It is here; others are missing.
    Got,
    /// All are here, and the slot is held here now.
    Adopted,
    /// Nobody wants it: the giver serves on.
    Refused,
}

/// The answer to a [`Piece`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ack {
    /// The type.
    pub service_type: ServiceType,
    /// The transfer.
    pub transfer: u64,
    /// Who took the piece, or did not.
    pub from: ServiceId,
    /// Who sent it.
    pub to: ServiceId,
    /// The slot.
    pub slot: u32,
    /// Which part.
    pub piece: u32,
    /// What came of it.
    pub outcome: Outcome,
}

/// "I have heard that you adopted it": the receiver may pass the slot on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settled {
    /// The type.
    pub service_type: ServiceType,
    /// The transfer.
    pub transfer: u64,
    /// Who adopted.
    pub to: ServiceId,
    /// The slot.
    pub slot: u32,
}

/// "I hold these, and by my view you are first."
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offer {
    /// The type.
    pub service_type: ServiceType,
    /// Who holds, as it says itself: it may be offline, and the other not know that yet.
    pub from: Standing,
    /// Who is first.
    pub to: ServiceId,
    /// The slots.
    pub slots: SlotSet,
}

/// A message between two nodes about slots.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TokenMessage {
    /// See [`Claim`]; of all types together.
    Claims(#[serde(deserialize_with = "bundle")] Vec<Claim>),
    /// See [`Answer`].
    Answers(#[serde(deserialize_with = "bundle")] Vec<Answer>),
    /// See [`Offer`].
    Offers(#[serde(deserialize_with = "bundle")] Vec<Offer>),
    /// See [`Piece`].
    Piece(Piece),
    /// See [`Ack`].
    Ack(Ack),
    /// See [`Settled`].
    Settled(Settled),
}

impl TokenMessage {
    /// True for what travels beside calls and not on the control lane, so that large states keep no probe waiting.
    pub fn is_data(&self) -> bool {
        matches!(
            self,
            TokenMessage::Piece(_) | TokenMessage::Ack(_) | TokenMessage::Settled(_)
        )
    }

    /// The message as bytes.
    pub fn encode(&self) -> Bytes {
        let bytes = postcard::to_allocvec(self)
            .expect("every message is plain data, which postcard can hold");
        bytes.into()
    }

    /// The message in these bytes.
    pub fn decode(bytes: &[u8]) -> Result<TokenMessage, DecodeError> {
        let garbled = |cause: String| DecodeError::Garbled { kind: 0, cause };
        // Names come on top of a piece's bytes.
        let limit = MAX_PIECE_BYTES.max(MAX_MESSAGE_BYTES) + 4 * 1024;
        if bytes.len() > limit {
            return Err(DecodeError::FrameTooLong {
                bytes: bytes.len(),
                limit,
            });
        }
        let message: TokenMessage =
            postcard::from_bytes(bytes).map_err(|error| garbled(error.to_string()))?;
        if let TokenMessage::Piece(piece) = &message
            && (piece.of == 0
                || piece.of > MAX_PIECES
                || piece.piece >= piece.of
                || piece.bytes.len() > MAX_PIECE_BYTES)
        {
            return Err(garbled(format!("piece {} of {}", piece.piece, piece.of)));
        }
        Ok(message)
    }
}

/// The states of a slot by key, as they travel.
pub(crate) fn join_states(states: &[(Bytes, Bytes)]) -> Bytes {
    // As bytes, which are copied whole; a slice of numbers would be written number by number, to the same.
    let bytes =
        postcard::to_allocvec(states).expect("bytes are plain data, which postcard can hold");
    bytes.into()
}

/// The states of a slot, from all their pieces.
pub(crate) fn split_states(bytes: &Bytes) -> Option<Vec<(Bytes, Bytes)>> {
    let states: Vec<(&[u8], &[u8])> = postcard::from_bytes(bytes).ok()?;
    if states.len() > MAX_KEYS_PER_SLOT {
        return None;
    }
    let share = |part: &[u8]| bytes.slice_ref(part);
    Some(
        states
            .into_iter()
            .map(|(key, state)| (share(key), share(state)))
            .collect(),
    )
}

fn at_most<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
    most: usize,
) -> Result<Vec<T>, D::Error> {
    struct Bounded<T>(usize, std::marker::PhantomData<T>);

    impl<'de, T: Deserialize<'de>> de::Visitor<'de> for Bounded<T> {
        type Value = Vec<T>;

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            write!(f, "a list of at most {}", self.0)
        }

        fn visit_seq<A: de::SeqAccess<'de>>(self, mut seq: A) -> Result<Vec<T>, A::Error> {
            let mut list = Vec::new();
            while let Some(one) = seq.next_element()? {
                if list.len() >= self.0 {
                    return Err(de::Error::invalid_length(list.len() + 1, &self));
                }
                list.push(one);
            }
            Ok(list)
        }
    }

    deserializer.deserialize_seq(Bounded(most, std::marker::PhantomData))
}

fn bundle<'de, D: Deserializer<'de>, T: Deserialize<'de>>(d: D) -> Result<Vec<T>, D::Error> {
    at_most(d, MAX_BUNDLE)
}

fn sayings<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<(SlotSet, Said)>, D::Error> {
    at_most(d, MAX_SAYINGS)
}

fn standings<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<Standing>, D::Error> {
    at_most(d, MAX_STANDINGS)
}

fn members<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<NodeId>, D::Error> {
    at_most(d, MAX_KNOWN_NODES)
}

fn weight<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u16, D::Error> {
    let weight = u16::deserialize(deserializer)?;
    if WEIGHT_RANGE.contains(&weight) {
        Ok(weight)
    } else {
        Err(de::Error::custom("a weight that there is not"))
    }
}
