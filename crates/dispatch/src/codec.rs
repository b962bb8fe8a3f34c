//! Messages as bytes: three codecs, each with a limit, and none that a message from outside can exhaust.

use std::any::Any;
use std::cell::Cell;
use std::fmt;
use std::io;

use bytes::{BufMut, Bytes, BytesMut};
use keydispatch_core::Codec;
use postcard::ser_flavors::Flavor;
use serde::Serialize;
use serde::de::DeserializeOwned;

mod skipped;

/// Why a message was not encoded.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum EncodeError {
    /// It is over the limit.
    TooLarge,
    /// The codec cannot hold it; says what to do.
    Unfit(String),
}

/// Why bytes are not the message that they should be; says what to do where the type itself does not fit the codec.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DecodeError(pub(crate) String);

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Appends a message, of at most so many bytes.
pub(crate) fn append<M: Serialize>(
    codec: Codec,
    message: &M,
    onto: BytesMut,
    limit: usize,
) -> Result<BytesMut, EncodeError> {
    // Rule: a message that would be misread is not sent. Looked for where speed is not measured: it costs a walk over each.
    if cfg!(debug_assertions) {
        check_fields(codec, message)?;
    }
    let mut limited = Limited {
        end: onto.len().saturating_add(limit),
        bytes: onto,
        full: false,
    };
    match codec {
        Codec::MessagePack => {
            let mut serializer = rmp_serde::Serializer::new(&mut limited).with_struct_map();
            let written = message.serialize(&mut serializer);
            limited.finish(codec, written)
        }
        Codec::Json => {
            let written = serde_json::to_writer(&mut limited, message);
            limited.finish(codec, written)
        }
        _ => match postcard::serialize_with_flavor(message, limited) {
            Ok(bytes) => Ok(bytes),
            Err(postcard::Error::SerializeBufferFull) => Err(EncodeError::TooLarge),
            Err(error) => Err(EncodeError::Unfit(of_postcard(&error))),
        },
    }
}

/// A message, and nothing after it: what is left over shows that it is a message of another type.
pub(crate) fn decode<M: DeserializeOwned + 'static>(
    codec: Codec,
    body: &Bytes,
) -> Result<M, DecodeError> {
    let (message, left) = match codec {
        Codec::MessagePack => {
            let shallow = Shallow::new(body);
            let too_deep = &shallow.too_deep;
            let mut reader = shallow.reader();
            let mut decoder = rmp_serde::Deserializer::new(&mut reader);
            decoder.set_max_depth(MAX_DEPTH);
            let read = M::deserialize(&mut decoder);
            drop(decoder);
            let message = read.map_err(|error| {
                let counted = matches!(error, rmp_serde::decode::Error::DepthLimitExceeded);
                too_deep.set(too_deep.get() || counted);
                said(codec, too_deep, &error)
            })?;
            (message, reader.left.len())
        }
        Codec::Json => {
            let read = serde_json::from_slice(body);
            // Its own limit of nesting is MAX_DEPTH.
            let message = read.map_err(|error| said(codec, &Cell::new(false), &error))?;
            (message, 0)
        }
        _ => {
            if let Some(message) = share(body) {
                return Ok(message);
            }
            let shallow = Shallow::new(body);
            let mut decoder = postcard::Deserializer::from_flavor(shallow.flavor());
            let read = M::deserialize(&mut decoder);
            let message = read.map_err(|error| {
                if shallow.too_deep.get() {
                    return said(codec, &shallow.too_deep, &error);
                }
                DecodeError(of_postcard(&error))
            })?;
            let left = decoder.finalize();
            (message, left.map_or(0, <[u8]>::len))
        }
    };
    match left {
        0 => Ok(message),
        left => Err(DecodeError(format!("{left} bytes are left over"))),
    }
}

/// The message as the other side would read it.
pub(crate) fn cross<M: Serialize + DeserializeOwned + 'static>(
    codec: Codec,
    message: &M,
    limit: usize,
) -> Result<M, CrossError> {
    check_fields(codec, message).map_err(CrossError::Encode)?;
    let bytes = append(codec, message, BytesMut::new(), limit).map_err(CrossError::Encode)?;
    decode(codec, &bytes.freeze()).map_err(CrossError::Decode)
}

fn check_fields<M: Serialize>(codec: Codec, message: &M) -> Result<(), EncodeError> {
    let skipped = match codec {
        Codec::Postcard => skipped::skipped_field(message),
        _ => None,
    };
    match skipped {
        Some(field) => Err(EncodeError::Unfit(format!(
            "postcard reads by position, and the field {field} is left out (skip_serializing_if): {INSTEAD}"
        ))),
        None => Ok(()),
    }
}

/// See [`cross`].
#[derive(Debug)]
pub(crate) enum CrossError {
    Encode(EncodeError),
    Decode(DecodeError),
}

/// Lists, maps and variants that may lie in each other.
const MAX_DEPTH: usize = 128;

/// Stack that decoding may take, in bytes. A task has 2 MiB at least, as tokio's threads do, and a message of 16 MiB could
/// nest types that contain themselves so deep that no stack is enough. Measured instead of counted where the codec does
/// not count, so that it costs a comparison; that is some thousand levels in release builds.
const MAX_STACK_BYTES: usize = 512 * 1024;

/// Bytes that are read with an eye on the stack.
struct Shallow<'a> {
    bytes: &'a [u8],
    base: usize,
    too_deep: Cell<bool>,
}

impl<'a> Shallow<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        Shallow {
            bytes,
            base: stack_place(),
            too_deep: Cell::new(false),
        }
    }

    fn reader<'s>(&'s self) -> BytesReader<'s> {
        BytesReader {
            left: self.bytes,
            base: self.base,
            too_deep: &self.too_deep,
        }
    }

    fn flavor<'s>(&'s self) -> PostcardReader<'s> {
        PostcardReader {
            slice: postcard::de_flavors::Slice::new(self.bytes),
            base: self.base,
            too_deep: &self.too_deep,
        }
    }
}

/// Where the stack is now, near enough.
#[inline]
fn stack_place() -> usize {
    let here = 0_u8;
    (&raw const here).addr()
}

#[inline]
fn is_too_deep(base: usize, too_deep: &Cell<bool>) -> bool {
    if stack_place().abs_diff(base) <= MAX_STACK_BYTES {
        return false;
    }
    too_deep.set(true);
    true
}

/// See [`Shallow`].
struct BytesReader<'a> {
    left: &'a [u8],
    base: usize,
    too_deep: &'a Cell<bool>,
}

impl io::Read for BytesReader<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if is_too_deep(self.base, self.too_deep) {
            return Err(io::ErrorKind::InvalidData.into());
        }
        io::Read::read(&mut self.left, into)
    }
}

/// See [`Shallow`].
struct PostcardReader<'a> {
    slice: postcard::de_flavors::Slice<'a>,
    base: usize,
    too_deep: &'a Cell<bool>,
}

impl<'a> postcard::de_flavors::Flavor<'a> for PostcardReader<'a> {
    type Remainder = &'a [u8];
    type Source = &'a [u8];

    #[inline]
    fn pop(&mut self) -> postcard::Result<u8> {
        // Rule: whatever contains itself reads a byte for each level, be it a length, a variant, or that there is something.
        if is_too_deep(self.base, self.too_deep) {
            return Err(postcard::Error::DeserializeBadEncoding);
        }
        self.slice.pop()
    }

    #[inline]
    fn size_hint(&self) -> Option<usize> {
        self.slice.size_hint()
    }

    #[inline]
    fn try_take_n(&mut self, count: usize) -> postcard::Result<&'a [u8]> {
        self.slice.try_take_n(count)
    }

    fn finalize(self) -> postcard::Result<&'a [u8]> {
        self.slice.finalize()
    }
}

fn said(codec: Codec, too_deep: &Cell<bool>, error: &dyn fmt::Display) -> DecodeError {
    if too_deep.get() {
        return DecodeError(format!("{codec}: it is nested too deep"));
    }
    DecodeError(format!("{codec}: {error}"))
}

/// What to do where postcard cannot hold a type.
const INSTEAD: &str = "set `const CODEC: Codec = Codec::MessagePack` in its Protocol";

/// What postcard says, and what to do about it.
fn of_postcard(error: &postcard::Error) -> String {
    match error {
        postcard::Error::WontImplement => format!(
            "postcard cannot read what describes itself (untagged or tagged enums, serde_json::Value): {INSTEAD}"
        ),
        postcard::Error::SerializeSeqLengthUnknown => format!(
            "postcard cannot hold what has no length beforehand (flatten, iterators): {INSTEAD}"
        ),
        postcard::Error::SerdeDeCustom => format!(
            "the type refuses what was read; where it is flattened, tagged or untagged, {INSTEAD}"
        ),
        postcard::Error::SerdeSerCustom => {
            format!("the type refuses to be written; if postcard cannot hold it, {INSTEAD}")
        }
        postcard::Error::DeserializeUnexpectedEnd => {
            "it ends too early: a message of another type, or one with fields that were skipped"
                .to_owned()
        }
        other => format!("postcard: {other}"),
    }
}

/// Messages that are bytes and longer than this are not copied out of their frame, which they keep alive: shorter ones
/// could keep a buffer that is many times larger.
pub(crate) const SHARED_BYTES: usize = 64 * 1024;

/// A message that is [`Bytes`], as a part of its frame; none where it is something else, short, or garbled.
fn share<M: 'static>(body: &Bytes) -> Option<M> {
    if body.len() <= SHARED_BYTES {
        return None;
    }
    let mut message = None::<M>;
    let place: &mut dyn Any = &mut message;
    let bytes = place.downcast_mut::<Option<Bytes>>()?;
    let (length, rest) = postcard::take_from_bytes::<usize>(body).ok()?;
    if rest.len() == length {
        *bytes = Some(body.slice(body.len() - length..));
    }
    message
}

/// Writes into `BytesMut`, up to a limit.
struct Limited {
    bytes: BytesMut,
    end: usize,
    full: bool,
}

impl Limited {
    fn finish<E: fmt::Display>(
        self,
        codec: Codec,
        written: Result<(), E>,
    ) -> Result<BytesMut, EncodeError> {
        match written {
            Ok(()) => Ok(self.bytes),
            Err(_) if self.full => Err(EncodeError::TooLarge),
            Err(error) => Err(EncodeError::Unfit(format!("{codec}: {error}"))),
        }
    }
}

impl Flavor for Limited {
    type Output = BytesMut;

    #[inline]
    fn try_push(&mut self, byte: u8) -> postcard::Result<()> {
        if self.bytes.len() >= self.end {
            return Err(postcard::Error::SerializeBufferFull);
        }
        self.bytes.put_u8(byte);
        Ok(())
    }

    #[inline]
    fn try_extend(&mut self, bytes: &[u8]) -> postcard::Result<()> {
        if self.bytes.len() + bytes.len() > self.end {
            return Err(postcard::Error::SerializeBufferFull);
        }
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }

    fn finalize(self) -> postcard::Result<BytesMut> {
        Ok(self.bytes)
    }
}

impl io::Write for Limited {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.bytes.len() + bytes.len() > self.end {
            self.full = true;
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests;
