//! The canonical bytes of a value that serde describes.
//!
//! Rule: a value that `From` takes has the same bytes here, or the same key would have two homes. Where a value has no
//! canonical bytes of its own, its encoding by postcard stands for it.

use std::any::TypeId;
use std::fmt;

use serde::ser::{self, Impossible, Serialize, SerializeSeq, SerializeTuple, Serializer};

use super::error::KeyError;

/// Appends the canonical bytes of a value.
pub(super) fn write<T: Serialize + ?Sized>(value: &T, bytes: &mut Vec<u8>) -> Result<(), KeyError> {
    let start = bytes.len();
    let canonical = Canonical {
        bytes,
        is_tuple: is_tuple_of_bytes::<T>,
    };
    if value.serialize(canonical).is_ok() {
        return Ok(());
    }
    bytes.truncate(start);
    let encoded = postcard::to_allocvec(value).map_err(|error| KeyError {
        cause: error.to_string(),
    })?;
    bytes.extend_from_slice(&encoded);
    Ok(())
}

/// True for the tuples of `u8` alone that `From` takes. To serde they are what arrays are, but arrays are bytes.
fn is_tuple_of_bytes<T: ?Sized>() -> bool {
    macro_rules! is_one_of {
        ($($tuple:ty),*) => {{
            let this = typeid::of::<T>();
            $(this == TypeId::of::<$tuple>() || this == TypeId::of::<&'static $tuple>())||*
        }};
    }
    is_one_of!(
        (u8, u8),
        (u8, u8, u8),
        (u8, u8, u8, u8),
        (u8, u8, u8, u8, u8)
    )
}

/// The value, or a part of it, has no canonical bytes, or cannot be encoded at all: postcard has the last word.
#[derive(Debug)]
struct NotCanonical;

impl fmt::Display for NotCanonical {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value without canonical bytes")
    }
}

impl std::error::Error for NotCanonical {}

impl ser::Error for NotCanonical {
    fn custom<T: fmt::Display>(_: T) -> Self {
        NotCanonical
    }
}

struct Canonical<'a> {
    bytes: &'a mut Vec<u8>,
    /// Whether the value is known to be a tuple, should all of its parts be `u8`.
    is_tuple: fn() -> bool,
}

impl Canonical<'_> {
    fn put(self, canonical: &[u8]) -> Result<(), NotCanonical> {
        self.bytes.extend_from_slice(canonical);
        Ok(())
    }

    fn integer(self, value: i128) -> Result<(), NotCanonical> {
        self.put(&value.to_le_bytes())
    }
}

macro_rules! integers {
    ($($method:ident $type:ty;)*) => {$(
        fn $method(self, value: $type) -> Result<(), NotCanonical> {
            self.integer(value as i128)
        }
    )*};
}

macro_rules! others {
    ($($method:ident($($argument:ty),*) -> $ok:ty;)*) => {$(
        fn $method(self, $(_: $argument),*) -> Result<$ok, NotCanonical> {
            Err(NotCanonical)
        }
    )*};
}

type No = Impossible<(), NotCanonical>;

impl<'a> Serializer for Canonical<'a> {
    type Ok = ();
    type Error = NotCanonical;
    type SerializeSeq = ByteSequence<'a>;
    type SerializeTuple = TupleParts<'a>;
    type SerializeTupleStruct = No;
    type SerializeTupleVariant = No;
    type SerializeMap = No;
    type SerializeStruct = No;
    type SerializeStructVariant = No;

    integers! {
        serialize_u8 u8;
        serialize_u16 u16;
        serialize_u32 u32;
        serialize_u64 u64;
        serialize_u128 u128;
        serialize_i8 i8;
        serialize_i16 i16;
        serialize_i32 i32;
        serialize_i64 i64;
        serialize_i128 i128;
    }

    fn serialize_str(self, value: &str) -> Result<(), NotCanonical> {
        self.put(value.as_bytes())
    }

    fn serialize_char(self, value: char) -> Result<(), NotCanonical> {
        self.put(value.encode_utf8(&mut [0; 4]).as_bytes())
    }

    fn serialize_bytes(self, value: &[u8]) -> Result<(), NotCanonical> {
        self.put(value)
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        value: &T,
    ) -> Result<(), NotCanonical> {
        value.serialize(Canonical {
            bytes: self.bytes,
            is_tuple: is_tuple_of_bytes::<T>,
        })
    }

    fn serialize_seq(self, _: Option<usize>) -> Result<ByteSequence<'a>, NotCanonical> {
        Ok(ByteSequence { bytes: self.bytes })
    }

    fn serialize_tuple(self, parts: usize) -> Result<TupleParts<'a>, NotCanonical> {
        Ok(TupleParts {
            start: self.bytes.len(),
            bytes: self.bytes,
            plain: Some(Vec::with_capacity(parts.min(64))),
            is_tuple: self.is_tuple,
        })
    }

    fn serialize_some<T: Serialize + ?Sized>(self, _: &T) -> Result<(), NotCanonical> {
        Err(NotCanonical)
    }

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        _: &T,
    ) -> Result<(), NotCanonical> {
        Err(NotCanonical)
    }

    others! {
        serialize_bool(bool) -> ();
        serialize_f32(f32) -> ();
        serialize_f64(f64) -> ();
        serialize_none() -> ();
        serialize_unit() -> ();
        serialize_unit_struct(&'static str) -> ();
        serialize_unit_variant(&'static str, u32, &'static str) -> ();
        serialize_tuple_struct(&'static str, usize) -> No;
        serialize_tuple_variant(&'static str, u32, &'static str, usize) -> No;
        serialize_map(Option<usize>) -> No;
        serialize_struct(&'static str, usize) -> No;
        serialize_struct_variant(&'static str, u32, &'static str, usize) -> No;
    }

    fn is_human_readable(&self) -> bool {
        false
    }
}

/// Appends a part whose type is `byte`, as one byte; false for a part of any other type.
fn write_byte<T: Serialize + ?Sized>(part: &T, bytes: &mut Vec<u8>, byte: TypeId) -> bool {
    if typeid::of::<T>() != byte {
        return false;
    }
    let start = bytes.len();
    let canonical = Canonical {
        bytes,
        is_tuple: || false,
    };
    // Little endian: its first byte says it all.
    let written = part.serialize(canonical).is_ok();
    bytes.truncate(start + 1);
    written
}

/// A sequence: bytes, or nothing that has canonical bytes.
struct ByteSequence<'a> {
    bytes: &'a mut Vec<u8>,
}

impl SerializeSeq for ByteSequence<'_> {
    type Ok = ();
    type Error = NotCanonical;

    fn serialize_element<T: Serialize + ?Sized>(&mut self, part: &T) -> Result<(), NotCanonical> {
        // Sequences are written by reference to their parts, where arrays and tuples are not.
        let (value, reference) = (TypeId::of::<u8>(), TypeId::of::<&'static u8>());
        if write_byte(part, self.bytes, reference) || write_byte(part, self.bytes, value) {
            Ok(())
        } else {
            Err(NotCanonical)
        }
    }

    fn end(self) -> Result<(), NotCanonical> {
        Ok(())
    }
}

/// A tuple, or an array, which serde does not tell apart.
struct TupleParts<'a> {
    bytes: &'a mut Vec<u8>,
    /// Where its parts begin in `bytes`.
    start: usize,
    /// The parts as bytes, for as long as all of them are `u8`.
    plain: Option<Vec<u8>>,
    is_tuple: fn() -> bool,
}

impl SerializeTuple for TupleParts<'_> {
    type Ok = ();
    type Error = NotCanonical;

    fn serialize_element<T: Serialize + ?Sized>(&mut self, part: &T) -> Result<(), NotCanonical> {
        if let Some(plain) = &mut self.plain
            && !write_byte(part, plain, TypeId::of::<u8>())
        {
            self.plain = None;
        }
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 4]);
        write(part, self.bytes).map_err(|_| NotCanonical)?;
        let length = u32::try_from(self.bytes.len() - start - 4).unwrap_or(u32::MAX);
        self.bytes[start..start + 4].copy_from_slice(&length.to_le_bytes());
        Ok(())
    }

    fn end(self) -> Result<(), NotCanonical> {
        if let Some(plain) = self.plain
            && !(self.is_tuple)()
        {
            self.bytes.truncate(self.start);
            self.bytes.extend_from_slice(&plain);
        }
        Ok(())
    }
}
