//! Packets of the engine that say what they are told to: for tests with a member that lies.

use bytes::Bytes;
use foca::{Header, Incarnation, Member, Message, State};

use super::identity::{Identity, Packet};
use crate::id::{Address, NodeId};
use crate::message::ControlMessage;

/// Who somebody is to the engine.
#[derive(Clone, Debug)]
pub struct Forged {
    /// The life.
    pub node: NodeId,
    /// How often that life came back.
    pub rejoins: u32,
    /// Where it is said to be reached.
    pub address: Address,
}

/// What is said of somebody.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ForgedClaim {
    /// It lives.
    Alive,
    /// Somebody did not reach it.
    Suspect,
    /// It is dead.
    Down,
}

/// What a forged packet is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PacketPurpose {
    /// It brings news.
    Gossip,
    /// It tells the receiver that it is taken for dead.
    TurnUndead,
}

impl From<&Forged> for Identity {
    fn from(forged: &Forged) -> Identity {
        Identity::new(forged.node.clone(), forged.rejoins, forged.address.clone())
    }
}

/// A message by which `source` tells `target` that each of these is so, at that incarnation.
pub fn forge_packet(
    source: &Forged,
    target: &Forged,
    purpose: PacketPurpose,
    news: &[(Forged, u16, ForgedClaim)],
) -> Option<ControlMessage> {
    let updates = news.iter().map(|(about, incarnation, claim)| {
        let state = match claim {
            ForgedClaim::Alive => State::Alive,
            ForgedClaim::Suspect => State::Suspect,
            ForgedClaim::Down => State::Down,
        };
        Member::new(Identity::from(about), *incarnation, state)
    });
    let packet = Packet {
        header: Header {
            src: source.into(),
            src_incarnation: Incarnation::default(),
            dst: target.into(),
            message: match purpose {
                PacketPurpose::Gossip => Message::Gossip,
                PacketPurpose::TurnUndead => Message::TurnUndead,
            },
        },
        updates: updates.collect(),
    };
    packet
        .encode()
        .map(|packet| ControlMessage::Membership(Bytes::from(packet)))
}
