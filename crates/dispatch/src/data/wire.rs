//! The frames of the data lane.
//!
//! A call is a header (number, service, deadline, version: 6 to 12 bytes in postcard) and the message in its protocol's
//! codec; a reply is the number and the reply. With the frames' own 5 bytes each, a call and its reply cost about 20 bytes
//! beyond their payload.

use std::any::Any;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use keydispatch_core::message::{FIRST_DATA_KIND, Frame};
use keydispatch_core::{Accepts, Codec};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::aim::Aim;
use crate::call::Failure;
use crate::codec::{self, EncodeError};
use crate::protocol::Protocol;
use crate::trace::TraceParent;

/// The kinds of frames on the data lane.
pub(crate) mod kind {
    use super::FIRST_DATA_KIND;

    pub(crate) const CALL: u8 = FIRST_DATA_KIND;
    pub(crate) const CAST: u8 = FIRST_DATA_KIND + 1;
    pub(crate) const REPLY: u8 = FIRST_DATA_KIND + 2;
    pub(crate) const FAILURE: u8 = FIRST_DATA_KIND + 3;
    pub(crate) const CANCEL: u8 = FIRST_DATA_KIND + 4;
    pub(crate) const PING: u8 = FIRST_DATA_KIND + 5;
    pub(crate) const PONG: u8 = FIRST_DATA_KIND + 6;
    pub(crate) const BROADCAST: u8 = FIRST_DATA_KIND + 7;
    /// From whoever answers: send me nothing new.
    pub(crate) const GO_AWAY: u8 = FIRST_DATA_KIND + 8;
    /// From whoever calls: that was the last that is new.
    pub(crate) const GONE_AWAY: u8 = FIRST_DATA_KIND + 9;
    /// From whoever answers: say that number once you have sent what you have to send.
    pub(crate) const FENCE: u8 = FIRST_DATA_KIND + 10;
    /// From whoever calls: what came before is what was to be sent when that number was read.
    pub(crate) const FENCED: u8 = FIRST_DATA_KIND + 11;

    /// A call or a cast for one key: minor version 2.
    pub(crate) const KEYED: u8 = FIRST_DATA_KIND + 12;
    /// A message about the states of keys: minor version 2.
    pub(crate) const TOKEN: u8 = FIRST_DATA_KIND + 13;
    /// A call that its service may refuse by its load: minor version 3.
    pub(crate) const BOUNDED: u8 = FIRST_DATA_KIND + 14;
    /// A reply to one, with what waits there.
    pub(crate) const TOLD: u8 = FIRST_DATA_KIND + 15;
    /// It was refused, with what waits there.
    pub(crate) const REFUSED: u8 = FIRST_DATA_KIND + 16;
    /// Whose child the span of the call is that comes with that number: minor version 4.
    pub(crate) const TRACE: u8 = FIRST_DATA_KIND + 17;

    /// True for what starts something on the other side.
    pub(crate) fn is_new(kind: u8) -> bool {
        matches!(kind, CALL | CAST | BROADCAST | KEYED | TOKEN | BOUNDED)
    }

    /// True for what is answered, and begins with the header of a call.
    pub(crate) fn is_call(kind: u8) -> bool {
        matches!(kind, CALL | KEYED | BOUNDED)
    }
}

/// Bytes of a frame, at most, beyond the payload that it may carry: its kind and its header.
pub(crate) const MAX_HEADER_BYTES: usize = 512;

/// Whose child the span of the call with that number is.
pub(crate) fn trace(number: u64, parent: TraceParent) -> Frame {
    let body = postcard::to_allocvec(&number).unwrap_or_default();
    Frame {
        kind: kind::TRACE,
        body: [&body[..], &parent.to_bytes()].concat().into(),
    }
}

/// The longest frame, without its length, of whoever takes payloads of so many bytes. Both sides reckon by this, and
/// [`encode`] makes none that is longer.
pub(crate) fn max_frame_bytes(max_payload_bytes: usize) -> usize {
    max_payload_bytes.saturating_add(MAX_HEADER_BYTES)
}

/// What comes before the message of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct CallHeader {
    /// Chosen by the caller, unique on its connection.
    pub(crate) number: u64,
    /// The service within the process that answers.
    pub(crate) sequence: u64,
    /// What is left of the caller's time, in milliseconds; see [`millis`](Self::millis).
    pub(crate) timeout_ms: u32,
    /// What the message is.
    pub(crate) format: Format,
}

impl CallHeader {
    /// What is left of `left`, in whole milliseconds. The largest number stands for all that is longer.
    pub(crate) fn millis(left: Duration) -> u32 {
        u32::try_from(left.as_millis()).unwrap_or(u32::MAX)
    }

    /// How long the caller still waits.
    pub(crate) fn timeout(&self) -> Duration {
        match self.timeout_ms {
            u32::MAX => Duration::MAX,
            millis => Duration::from_millis(millis.into()),
        }
    }
}

/// What comes before the message of a call that may be refused by load.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct BoundedHeader {
    /// First, so that it reads as that of a call.
    pub(crate) call: CallHeader,
    /// The depth at which it may be refused; 0 where it is to be taken in any case.
    pub(crate) refuse_at: u8,
}

/// What comes before the message of a call or a cast for one key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct KeyedHeader {
    /// First, so that it reads as that of a call.
    pub(crate) call: CallHeader,
    /// A cast is answered, too: once it was taken.
    pub(crate) is_cast: bool,
    /// The canonical bytes of the key.
    pub(crate) key: Bytes,
}

/// What comes before the message of a cast.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct CastHeader {
    pub(crate) sequence: u64,
    pub(crate) format: Format,
}

/// The version of the protocol that a message is of, and above it the number of its codec.
///
/// Rule: one number, in which nobody can read the version without the codec. Nodes that know of no codecs sent the version
/// alone, which is postcard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Format(u64);

impl Format {
    /// Of what is no message of any protocol.
    pub(crate) const NONE: Format = Format(0);

    /// What this program sends.
    pub(crate) const fn of<P: Protocol>() -> Self {
        Format((P::CODEC.number() as u64) << 32 | P::VERSION as u64)
    }

    pub(crate) const fn version(self) -> u32 {
        self.0 as u32
    }

    pub(crate) fn is_taken(self, accepts: &Accepts) -> bool {
        let codec = accepts.codec();
        codec.is_some_and(|codec| {
            u64::from(codec.number()) == self.0 >> 32 && accepts.takes(self.version(), codec)
        })
    }
}

/// A frame on its way out. Its body goes on with `rest`, which is sent from where it is.
#[derive(Debug)]
pub(crate) struct Outgoing {
    pub(crate) frame: Frame,
    pub(crate) rest: Bytes,
    /// Of a call or a cast that waits for a connection, and may go elsewhere meanwhile.
    pub(crate) aim: Option<Aim>,
}

impl From<Frame> for Outgoing {
    fn from(frame: Frame) -> Self {
        Outgoing {
            frame,
            rest: Bytes::new(),
            aim: None,
        }
    }
}

impl Outgoing {
    /// The same with an aim.
    pub(crate) fn aimed(self, aim: Option<Aim>) -> Self {
        Outgoing { aim, ..self }
    }

    /// The header of a call.
    pub(crate) fn as_call(&self) -> Option<CallHeader> {
        let is_call = kind::is_call(self.frame.kind);
        let header = is_call.then(|| split::<CallHeader>(&self.frame.body));
        header?.ok().map(|(header, _)| header)
    }

    /// The header of a cast, and what comes after it in its frame.
    pub(crate) fn as_cast(&self) -> Option<(CastHeader, Bytes)> {
        let is_cast = self.frame.kind == kind::CAST;
        let split = is_cast.then(|| split::<CastHeader>(&self.frame.body));
        split?.ok()
    }

    /// Of the body.
    pub(crate) fn bytes(&self) -> usize {
        self.frame.body.len() + self.rest.len()
    }
}

/// Messages that are bytes and longer than this are sent from where they are.
const BORROWED_BYTES: usize = 8 * 1024;

/// A header and a message of at most `limit` bytes, on their way out.
pub(crate) fn encode<H: Serialize, M: Serialize + 'static>(
    kind: u8,
    header: &H,
    codec: Codec,
    message: &M,
    limit: usize,
) -> Result<Outgoing, EncodeError> {
    let any: &dyn Any = message;
    match any.downcast_ref::<Bytes>() {
        // As serde has it: the length, then the bytes.
        Some(bytes) if codec == Codec::Postcard && bytes.len() > BORROWED_BYTES => {
            let room = limit
                .checked_sub(bytes.len())
                .ok_or(EncodeError::TooLarge)?;
            let frame = encode_whole(kind, header, codec, &bytes.len(), room)?;
            Ok(Outgoing {
                frame,
                rest: bytes.clone(),
                aim: None,
            })
        }
        _ => encode_whole(kind, header, codec, message, limit).map(Outgoing::from),
    }
}

/// A header and the bytes of a message, on their way out.
pub(crate) fn with_body<H: Serialize>(kind: u8, header: &H, message: &Bytes) -> Outgoing {
    let head =
        postcard::to_allocvec(header).expect("a header is plain data, which postcard can hold");
    if message.len() > BORROWED_BYTES {
        return Outgoing {
            frame: Frame {
                kind,
                body: head.into(),
            },
            rest: message.clone(),
            aim: None,
        };
    }
    let mut body = BytesMut::with_capacity(head.len() + message.len());
    body.extend_from_slice(&head);
    body.extend_from_slice(message);
    Outgoing::from(Frame {
        kind,
        body: body.freeze(),
    })
}

/// A header and a message of at most `limit` bytes, as one frame. The header is in postcard, whatever the message is in.
pub(crate) fn encode_whole<H: Serialize, M: Serialize>(
    kind: u8,
    header: &H,
    codec: Codec,
    message: &M,
    limit: usize,
) -> Result<Frame, EncodeError> {
    let whole = max_frame_bytes(limit) - 1; // Without the kind.
    let body = BytesMut::with_capacity(128);
    let body = codec::append(Codec::Postcard, header, body, whole)?;
    let room = whole - body.len();
    let body = codec::append(codec, message, body, room)?.freeze();
    Ok(Frame { kind, body })
}

/// A header and the bytes that follow it.
pub(crate) fn split<H: DeserializeOwned>(body: &Bytes) -> Result<(H, Bytes), FrameError> {
    let (header, rest) = postcard::take_from_bytes::<H>(body).map_err(FrameError)?;
    Ok((header, body.slice(body.len() - rest.len()..)))
}

/// What the other side sent begins with no header of its kind.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct FrameError(postcard::Error);

/// Rule: a failure fits into a frame of whoever takes no payload at all. What is too long to say is cut: without it,
/// the caller would not learn how its call failed.
pub(crate) fn failure(number: u64, failure: &Failure) -> Frame {
    let encode =
        |failure: &Failure| encode_whole(kind::FAILURE, &number, Codec::Postcard, failure, 0);
    encode(failure)
        .or_else(|_| encode(&failure.shortened()))
        .unwrap_or_else(|_| number_only(kind::FAILURE, number))
}

/// A frame that carries a number alone.
pub(crate) fn number_only(kind: u8, number: u64) -> Frame {
    let body = postcard::to_allocvec(&number).unwrap_or_default();
    Frame {
        kind,
        body: body.into(),
    }
}

pub(crate) fn empty(kind: u8) -> Frame {
    Frame {
        kind,
        body: Bytes::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_and_its_reply_cost_few_bytes() {
        let header = CallHeader {
            number: 1 << 20,
            sequence: 1_000,
            timeout_ms: 5_000,
            format: Format(1),
        };
        let payload = [7_u8; 64];
        let call = encode(
            kind::CALL,
            &header,
            Codec::Postcard,
            &Bytes::copy_from_slice(&payload),
            1 << 20,
        )
        .unwrap();
        let reply = encode(
            kind::REPLY,
            &header.number,
            Codec::Postcard,
            &Bytes::copy_from_slice(&payload),
            1 << 20,
        )
        .unwrap();
        let overhead = call.bytes() + reply.bytes() + 10 - 2 * payload.len();
        assert!(overhead <= 48, "{overhead}");
        assert_eq!(header.timeout(), Duration::from_secs(5));
        let endless = CallHeader {
            timeout_ms: CallHeader::millis(Duration::MAX),
            ..header
        };
        assert_eq!(endless.timeout(), Duration::MAX);
    }

    #[test]
    fn a_message_over_the_limit_is_not_encoded() {
        let message = vec![0_u8; 2_000];
        assert!(matches!(
            encode(kind::CAST, &0_u8, Codec::Postcard, &message, 1_000),
            Err(EncodeError::TooLarge)
        ));
    }

    #[test]
    fn every_failure_fits_into_a_frame_of_whoever_takes_no_payload_and_says_what_it_is() {
        for length in [0, 300, 501, 502, 503, 520, 5_000] {
            // Two bytes a character: it is not cut inside one.
            let cause = "ü".repeat(length / 2);
            let frame = failure(u64::MAX, &Failure::Decode { cause });
            assert!(frame.body.len() < max_frame_bytes(0), "{length}");
            let (number, body) = split::<u64>(&frame.body).unwrap();
            assert_eq!(number, u64::MAX);
            let read = postcard::from_bytes(&body).unwrap();
            assert!(matches!(read, Failure::Decode { .. }), "{read:?}");
        }
    }

    #[test]
    fn no_frame_is_longer_than_its_limit_says() {
        for limit in [0, 1, 1_000] {
            for length in limit..limit + 2 * MAX_HEADER_BYTES {
                if let Ok(frame) = encode(
                    kind::CALL,
                    &9_u64,
                    Codec::Postcard,
                    &vec![7_u8; length],
                    limit,
                ) {
                    // With its kind.
                    assert!(frame.bytes() < max_frame_bytes(limit));
                }
                let bytes = Bytes::from(vec![7; length]);
                if let Ok(frame) = encode(kind::CALL, &9_u64, Codec::Postcard, &bytes, limit) {
                    assert!(frame.bytes() < max_frame_bytes(limit));
                }
            }
        }
    }

    #[test]
    fn what_follows_a_header_is_shared_and_not_copied() {
        let frame = encode_whole(kind::REPLY, &7_u64, Codec::Postcard, &"hello", 100).unwrap();
        let (number, rest) = split::<u64>(&frame.body).unwrap();
        assert_eq!(number, 7);
        assert_eq!(postcard::from_bytes::<&str>(&rest).unwrap(), "hello");
        assert!(split::<u64>(&Bytes::from_static(&[0x80])).is_err());
    }

    #[test]
    fn long_bytes_are_shared_with_their_frame_and_decode_as_others_do() {
        for length in [0, codec::SHARED_BYTES - 3, codec::SHARED_BYTES, 100_000] {
            let message = Bytes::from(vec![7; length]);
            let frame = encode_whole(kind::REPLY, &(), Codec::Postcard, &message, 1 << 20).unwrap();
            assert_eq!(
                codec::decode::<Bytes>(Codec::Postcard, &frame.body).unwrap(),
                message
            );
            let cut = frame.body.slice(..frame.body.len() - 1);
            assert!(codec::decode::<Bytes>(Codec::Postcard, &cut).is_err());
        }
        let text = "x".repeat(100_000);
        let frame = encode_whole(kind::REPLY, &(), Codec::Postcard, &text, 1 << 20).unwrap();
        assert_eq!(
            codec::decode::<String>(Codec::Postcard, &frame.body).unwrap(),
            text
        );
    }

    #[test]
    fn long_bytes_are_sent_from_where_they_are_and_read_the_same() {
        for length in [1, BORROWED_BYTES, BORROWED_BYTES + 1, 100_000] {
            let message = Bytes::from(vec![7; length]);
            let sent = encode(kind::CALL, &9_u64, Codec::Postcard, &message, length).unwrap();
            let shared = sent.rest.as_ptr() == message.as_ptr();
            assert_eq!(shared, length > BORROWED_BYTES);
            let body = [&sent.frame.body[..], &sent.rest].concat();
            let whole =
                encode_whole(kind::CALL, &9_u64, Codec::Postcard, &message, length).unwrap();
            assert_eq!(body, whole.body);
        }
        let message = Bytes::from(vec![7; 2 * BORROWED_BYTES]);
        let over = encode(
            kind::CALL,
            &9_u64,
            Codec::Postcard,
            &message,
            message.len() - 1,
        );
        assert!(matches!(over, Err(EncodeError::TooLarge)));
    }
}
