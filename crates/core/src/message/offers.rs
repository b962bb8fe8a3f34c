//! What a Hello says beyond its first version: fields that were appended since, each with its absence.

use serde::{Deserialize, Deserializer, Serialize};

/// The end of a [`Hello`](super::Hello).
///
/// Rule: fields are only ever appended, and each is an [`Option`] that reads as `None` where the Hello ends before it. So
/// a node of an earlier minor version is understood, and ignores what it does not know. A new field is a line here, with
/// what its absence means, and a new [`PROTOCOL_MINOR`](super::PROTOCOL_MINOR).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offers {
    /// Minor version 1: the longest payload of a call, cast, reply or broadcast that the sender takes, in bytes.
    ///
    /// A node of minor version 0 says nothing: all nodes had to have the same setting then, so it is taken to have the
    /// reader's.
    #[serde(deserialize_with = "appended")]
    pub max_payload_bytes: Option<u64>,
    /// Minor version 1, on the data lane: which of the sender's connections this is.
    ///
    /// Without it the connection replaces no other one.
    #[serde(deserialize_with = "appended")]
    pub data_link: Option<DataLink>,
}

/// Which of a node's connections to a peer a data connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataLink {
    /// Its place among the connections that the sender has to this peer at once, from 0.
    pub lane: u16,
    /// Counts the attempts at this place.
    pub attempt: u64,
    /// Rule: the first frame after the handshake of such a one ends those of earlier attempts, so that nothing that was sent
    /// before it is handled after it. False where the sender knows that everything was taken, and waits for replies there.
    pub ends_earlier: bool,
}

/// A field that an earlier minor version does not send.
fn appended<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    // The only way in which a Hello that is otherwise whole does not read on here is that it ends: what is cut inside a
    // field is as good as not there.
    Ok(Option::<T>::deserialize(deserializer).unwrap_or(None))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::Frame;
    use crate::id::Address;
    use crate::id::{ClusterName, Generation, NodeId, NodeName};
    use crate::message::{ControlMessage, Hello, LaneKind, MAGIC, PROTOCOL_MAJOR, kind};

    fn hello(offers: Offers) -> Hello {
        Hello {
            magic: MAGIC,
            major: PROTOCOL_MAJOR,
            minor: 1,
            lane: LaneKind::Data,
            cluster: ClusterName::try_new("c").unwrap(),
            node: NodeId {
                name: NodeName::try_new("a").unwrap(),
                generation: Generation {
                    number: 1,
                    random: 2,
                },
            },
            nonce: 3,
            address: Address::try_new("a:1").unwrap(),
            placement: 1,
            periods_ms: (250, 1_500),
            joined: true,
            highest_of_yours: None,
            offers,
        }
    }

    fn decode(body: &[u8]) -> Hello {
        let frame = Frame {
            kind: kind::HELLO,
            body: body.to_vec().into(),
        };
        match ControlMessage::decode(&frame) {
            Ok(Some(ControlMessage::Hello(hello))) => hello,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_hello_that_ends_before_what_was_appended_is_read_without_it() {
        let offers = Offers {
            max_payload_bytes: Some(1 << 24),
            data_link: Some(DataLink {
                lane: 3,
                attempt: 1 << 40,
                ends_earlier: true,
            }),
        };
        let whole = ControlMessage::Hello(hello(offers)).encode().body;
        assert_eq!(decode(&whole), hello(offers));
        // As minor version 0 sends it.
        let nothing = Offers::default();
        let bare = postcard::to_allocvec(&hello(nothing)).unwrap();
        let bare = &bare[..bare.len() - 2];
        assert_eq!(decode(bare), hello(nothing));
        for end in bare.len()..whole.len() {
            let read = decode(&whole[..end]).offers;
            let payload = read.max_payload_bytes;
            assert!(payload.is_none() || payload == offers.max_payload_bytes);
            assert_eq!(read.data_link, None);
        }
    }

    #[test]
    fn a_hello_with_what_later_versions_append_is_read_as_far_as_it_is_known() {
        let offers = Offers {
            max_payload_bytes: Some(7),
            data_link: None,
        };
        let mut body = postcard::to_allocvec(&hello(offers)).unwrap();
        body.extend([1, 2, 3]);
        assert_eq!(decode(&body), hello(offers));
    }
}
