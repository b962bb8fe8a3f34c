//! Finds fields that a message leaves out, which postcard would not notice: whoever reads by position takes the next field
//! for the one that is missing, and may find nothing wrong with it.

use std::fmt;

use serde::ser::{self, Serialize, Serializer};

/// The first field that `skip_serializing_if` leaves out of this message.
pub(super) fn skipped_field<M: Serialize>(message: &M) -> Option<&'static str> {
    match message.serialize(Finder) {
        Err(Found::Skipped(field)) => Some(field),
        // The codec itself finds what is wrong.
        Ok(()) | Err(Found::Other) => None,
    }
}

/// Writes nothing.
#[derive(Clone, Copy)]
struct Finder;

#[derive(Debug)]
enum Found {
    Skipped(&'static str),
    Other,
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a field was skipped")
    }
}

impl std::error::Error for Found {}

impl ser::Error for Found {
    fn custom<T: fmt::Display>(_: T) -> Self {
        Found::Other
    }
}

type SkipOutcome = Result<(), Found>;

macro_rules! nothing {
    ($($name:ident($type:ty)),* $(,)?) => {
        $(fn $name(self, _: $type) -> SkipOutcome {
            Ok(())
        })*
    };
}

impl Serializer for Finder {
    type Ok = ();
    type Error = Found;
    type SerializeSeq = Self;
    type SerializeTuple = Self;
    type SerializeTupleStruct = Self;
    type SerializeTupleVariant = Self;
    type SerializeMap = Self;
    type SerializeStruct = Self;
    type SerializeStructVariant = Self;

    nothing! {
        serialize_bool(bool),
        serialize_i8(i8),
        serialize_i16(i16),
        serialize_i32(i32),
        serialize_i64(i64),
        serialize_i128(i128),
        serialize_u8(u8),
        serialize_u16(u16),
        serialize_u32(u32),
        serialize_u64(u64),
        serialize_u128(u128),
        serialize_f32(f32),
        serialize_f64(f64),
        serialize_char(char),
        serialize_str(&str),
        serialize_bytes(&[u8]),
        serialize_unit_struct(&'static str),
    }

    // As postcard has it: types may write themselves in another way for people.
    fn is_human_readable(&self) -> bool {
        false
    }

    fn serialize_none(self) -> SkipOutcome {
        Ok(())
    }

    fn serialize_unit(self) -> SkipOutcome {
        Ok(())
    }

    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> SkipOutcome {
        value.serialize(self)
    }

    fn serialize_unit_variant(self, _: &'static str, _: u32, _: &'static str) -> SkipOutcome {
        Ok(())
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        value: &T,
    ) -> SkipOutcome {
        value.serialize(self)
    }

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        value: &T,
    ) -> SkipOutcome {
        value.serialize(self)
    }

    fn serialize_seq(self, _: Option<usize>) -> Result<Self, Found> {
        Ok(self)
    }

    fn serialize_tuple(self, _: usize) -> Result<Self, Found> {
        Ok(self)
    }

    fn serialize_tuple_struct(self, _: &'static str, _: usize) -> Result<Self, Found> {
        Ok(self)
    }

    fn serialize_tuple_variant(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        _: usize,
    ) -> Result<Self, Found> {
        Ok(self)
    }

    fn serialize_map(self, _: Option<usize>) -> Result<Self, Found> {
        Ok(self)
    }

    fn serialize_struct(self, _: &'static str, _: usize) -> Result<Self, Found> {
        Ok(self)
    }

    fn serialize_struct_variant(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        _: usize,
    ) -> Result<Self, Found> {
        Ok(self)
    }
}

macro_rules! each {
    ($($trait:ident::$name:ident),* $(,)?) => {
        $(impl ser::$trait for Finder {
            type Ok = ();
            type Error = Found;

            fn $name<T: Serialize + ?Sized>(&mut self, value: &T) -> SkipOutcome {
                value.serialize(*self)
            }

            fn end(self) -> SkipOutcome {
                Ok(())
            }
        })*
    };
}

each! {
    SerializeSeq::serialize_element,
    SerializeTuple::serialize_element,
    SerializeTupleStruct::serialize_field,
    SerializeTupleVariant::serialize_field,
}

impl ser::SerializeMap for Finder {
    type Ok = ();
    type Error = Found;

    fn serialize_key<T: Serialize + ?Sized>(&mut self, key: &T) -> SkipOutcome {
        key.serialize(*self)
    }

    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> SkipOutcome {
        value.serialize(*self)
    }

    fn end(self) -> SkipOutcome {
        Ok(())
    }
}

macro_rules! fields {
    ($($trait:ident),*) => {
        $(impl ser::$trait for Finder {
            type Ok = ();
            type Error = Found;

            fn serialize_field<T: Serialize + ?Sized>(&mut self, _: &'static str, value: &T) -> SkipOutcome {
                value.serialize(*self)
            }

            fn skip_field(&mut self, field: &'static str) -> SkipOutcome {
                Err(Found::Skipped(field))
            }

            fn end(self) -> SkipOutcome {
                Ok(())
            }
        })*
    };
}

fields!(SerializeStruct, SerializeStructVariant);
