//! Who a member is to the engine, and its packets.

use bytes::{Buf, BufMut};
use foca::{Codec, Header, Member, PostcardCodec};
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_128;

use crate::id::{Address, NodeId, NodeName};

/// What the engine takes for a member's address: a hash of its name.
pub(super) type MemberKey = u128;

pub(super) fn key(name: &NodeName) -> MemberKey {
    xxh3_128(name.as_str().as_bytes())
}

/// One life of a node, and how often that life had to come back after it was declared down.
///
/// Rule: the higher (generation, rejoins) wins. The address is not part of what is compared.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(from = "Wire", into = "Wire")]
pub(super) struct Identity {
    pub(super) node: NodeId,
    pub(super) rejoins: u32,
    pub(super) address: Address,
    key: MemberKey,
}

#[derive(Serialize, Deserialize)]
struct Wire(NodeId, u32, Address);

impl From<Wire> for Identity {
    fn from(Wire(node, rejoins, address): Wire) -> Self {
        Identity::new(node, rejoins, address)
    }
}

impl From<Identity> for Wire {
    fn from(identity: Identity) -> Self {
        Wire(identity.node, identity.rejoins, identity.address)
    }
}

impl Identity {
    pub(super) fn new(node: NodeId, rejoins: u32, address: Address) -> Self {
        let key = key(&node.name);
        Identity {
            node,
            rejoins,
            address,
            key,
        }
    }

    pub(super) fn key(&self) -> MemberKey {
        self.key
    }
}

impl PartialEq for Identity {
    fn eq(&self, other: &Self) -> bool {
        self.key == other.key
            && self.node.generation == other.node.generation
            && self.rejoins == other.rejoins
    }
}

impl Eq for Identity {}

impl foca::Identity for Identity {
    type Addr = MemberKey;

    fn renew(&self) -> Option<Self> {
        Some(Identity {
            rejoins: self.rejoins.checked_add(1)?,
            ..self.clone()
        })
    }

    fn addr(&self) -> MemberKey {
        self.key
    }

    fn win_addr_conflict(&self, adversary: &Self) -> bool {
        (self.node.generation, self.rejoins) > (adversary.node.generation, adversary.rejoins)
    }
}

/// A packet of the engine, opened so that the rules can be applied to what it says.
pub(super) struct Packet {
    pub(super) header: Header<Identity>,
    pub(super) updates: Vec<Member<Identity>>,
}

impl Packet {
    /// Opens a packet; `None` where it is garbled.
    pub(super) fn decode(mut bytes: &[u8]) -> Option<Packet> {
        let header = PostcardCodec.decode_header(&mut bytes).ok()?;
        let mut updates = Vec::new();
        if bytes.remaining() >= 2 {
            for _ in 0..bytes.get_u16() {
                updates.push(PostcardCodec.decode_member(&mut bytes).ok()?);
            }
        }
        bytes.is_empty().then_some(Packet { header, updates })
    }

    /// The packet's bytes after some updates were taken out.
    pub(super) fn encode(&self) -> Option<Vec<u8>> {
        let mut bytes = Vec::new();
        PostcardCodec.encode_header(&self.header, &mut bytes).ok()?;
        bytes.put_u16(u16::try_from(self.updates.len()).ok()?);
        for update in &self.updates {
            PostcardCodec.encode_member(update, &mut bytes).ok()?;
        }
        Some(bytes)
    }
}

/// What a packet says, in one line, for those who read traces; `None` where it is garbled.
#[cfg(any(test, feature = "fault-switches"))]
pub fn describe_packet(packet: &[u8]) -> Option<String> {
    use std::fmt::Write;
    let who = |identity: &Identity| {
        let NodeId { name, generation } = &identity.node;
        format!("{name}@{}+{}", generation.number, identity.rejoins)
    };
    let packet = Packet::decode(packet)?;
    let message = format!("{:?}", packet.header.message);
    let kind: String = message
        .chars()
        .take_while(char::is_ascii_alphanumeric)
        .collect();
    let mut line = format!("{kind} of {}", who(&packet.header.src));
    for update in &packet.updates {
        let incarnation = update.incarnation();
        let _ = write!(
            line,
            ", {} {:?} {incarnation}",
            who(update.id()),
            update.state()
        );
    }
    Some(line)
}
