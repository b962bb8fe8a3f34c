//! A key as its hash, and what can be one.

use std::borrow::Cow;
use std::sync::Arc;

use bytes::Bytes;
use serde::Serialize;
use xxhash_rust::xxh3::xxh3_64;

use super::canonical;
use super::error::KeyError;
#[cfg(test)]
use super::slot::SLOT_BITS;
use super::slot::Slot;

/// What a service is found by, as its hash.
///
/// ```
/// use keydispatch_core::Key;
/// assert_eq!(Key::from("file.png"), Key::from(String::from("file.png")));
/// assert_eq!(Key::from(7_u8), Key::from(7_i64));
/// assert_ne!(Key::from(("a", 7)), Key::from(("b", 7)));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(u64);

impl Key {
    /// The key with these canonical bytes.
    #[inline]
    pub fn from_canonical(bytes: &[u8]) -> Self {
        Key(xxh3_64(bytes))
    }

    /// A key of that slot.
    #[cfg(test)]
    pub(crate) fn in_slot(slot: Slot) -> Self {
        Key((slot.index() as u64) << (u64::BITS - SLOT_BITS))
    }

    /// Any serde value as a key: strings, bytes, integers and tuples as [`Key::from`] takes them, everything else by its
    /// encoding in postcard. Maps must have a fixed order (`BTreeMap`, not `HashMap`).
    ///
    /// A wrapper of one field (`struct UserId(u64)`) is what it wraps. A sequence of `u8`, an array too, is bytes, and so is
    /// an empty sequence of anything.
    ///
    /// ```
    /// use keydispatch_core::Key;
    /// #[derive(serde::Serialize)]
    /// struct UserId(u64);
    /// assert_eq!(Key::of(&UserId(7))?, Key::from(7));
    /// assert_eq!(Key::of(&("tenant", 7))?, Key::from(("tenant", 7)));
    /// # Ok::<(), keydispatch_core::KeyError>(())
    /// ```
    ///
    /// # Errors
    ///
    /// Where the value cannot be encoded: a sequence without a known length, or an error of its own.
    pub fn of<T: Serialize + ?Sized>(value: &T) -> Result<Self, KeyError> {
        let mut bytes = Vec::with_capacity(64);
        canonical::write(value, &mut bytes)?;
        Ok(Key::from_canonical(&bytes))
    }

    /// XXH3-64 of the canonical bytes.
    #[inline]
    pub const fn hash(self) -> u64 {
        self.0
    }

    /// The slot: the top 20 bits of the hash.
    #[inline]
    pub const fn slot(self) -> Slot {
        Slot::of_hash(self.0)
    }
}

/// A value with canonical bytes, which can be a part of a key.
pub trait KeyPart {
    /// Appends the canonical bytes.
    fn write(&self, bytes: &mut Vec<u8>);
}

macro_rules! by_bytes {
    ($($type:ty => |$value:ident| $bytes:expr;)*) => {$(
        impl From<$type> for Key {
            #[inline]
            fn from($value: $type) -> Key {
                Key::from_canonical($bytes)
            }
        }
        impl KeyPart for $type {
            fn write(&self, bytes: &mut Vec<u8>) {
                let $value = self;
                bytes.extend_from_slice($bytes);
            }
        }
    )*};
}

by_bytes! {
    &str => |value| value.as_bytes();
    String => |value| value.as_bytes();
    &String => |value| value.as_bytes();
    &[u8] => |value| value;
    Vec<u8> => |value| value.as_slice();
    &Vec<u8> => |value| value.as_slice();
    Bytes => |value| value.as_ref();
    &Bytes => |value| value.as_ref();
    &&str => |value| value.as_bytes();
    Box<str> => |value| value.as_bytes();
    &Box<str> => |value| value.as_bytes();
    Arc<str> => |value| value.as_bytes();
    &Arc<str> => |value| value.as_bytes();
    Cow<'_, str> => |value| value.as_bytes();
    &Cow<'_, str> => |value| value.as_bytes();
    Box<[u8]> => |value| value.as_ref();
    &Box<[u8]> => |value| value.as_ref();
    Arc<[u8]> => |value| value.as_ref();
    &Arc<[u8]> => |value| value.as_ref();
    Cow<'_, [u8]> => |value| value.as_ref();
    &Cow<'_, [u8]> => |value| value.as_ref();
    char => |value| value.encode_utf8(&mut [0; 4]).as_bytes();
    &char => |value| value.encode_utf8(&mut [0; 4]).as_bytes();
}

impl<const N: usize> From<[u8; N]> for Key {
    #[inline]
    fn from(value: [u8; N]) -> Key {
        Key::from_canonical(&value)
    }
}

impl<const N: usize> From<&[u8; N]> for Key {
    #[inline]
    fn from(value: &[u8; N]) -> Key {
        Key::from_canonical(value)
    }
}

impl<const N: usize> KeyPart for [u8; N] {
    fn write(&self, bytes: &mut Vec<u8>) {
        bytes.extend_from_slice(self);
    }
}

impl<const N: usize> KeyPart for &[u8; N] {
    fn write(&self, bytes: &mut Vec<u8>) {
        bytes.extend_from_slice(*self);
    }
}

macro_rules! integers {
    ($($type:ty)*) => {$(
        impl From<$type> for Key {
            #[inline]
            fn from(value: $type) -> Key {
                Key::from_canonical(&(value as i128).to_le_bytes())
            }
        }
        impl KeyPart for $type {
            fn write(&self, bytes: &mut Vec<u8>) {
                bytes.extend_from_slice(&(*self as i128).to_le_bytes());
            }
        }
        impl From<&$type> for Key {
            #[inline]
            fn from(value: &$type) -> Key {
                Key::from(*value)
            }
        }
        impl KeyPart for &$type {
            fn write(&self, bytes: &mut Vec<u8>) {
                KeyPart::write(*self, bytes);
            }
        }
    )*};
}

integers! { u8 u16 u32 u64 u128 usize i8 i16 i32 i64 i128 isize }

macro_rules! tuples {
    ($(($($part:ident $index:tt),*))*) => {$(
        impl<$($part: KeyPart),*> From<($($part,)*)> for Key {
            fn from(value: ($($part,)*)) -> Key {
                let mut bytes = Vec::with_capacity(64);
                value.write(&mut bytes);
                Key::from_canonical(&bytes)
            }
        }
        impl<$($part: KeyPart),*> KeyPart for ($($part,)*) {
            fn write(&self, bytes: &mut Vec<u8>) {
                $(write_part(&self.$index, bytes);)*
            }
        }
    )*};
}

tuples! {
    (A 0, B 1)
    (A 0, B 1, C 2)
    (A 0, B 1, C 2, D 3)
    (A 0, B 1, C 2, D 3, E 4)
}

pub(super) fn write_part(part: &impl KeyPart, bytes: &mut Vec<u8>) {
    let start = bytes.len();
    bytes.extend_from_slice(&[0; 4]);
    part.write(bytes);
    let length = u32::try_from(bytes.len() - start - 4).unwrap_or(u32::MAX);
    bytes[start..start + 4].copy_from_slice(&length.to_le_bytes());
}

#[cfg(feature = "uuid")]
impl From<uuid::Uuid> for Key {
    #[inline]
    fn from(value: uuid::Uuid) -> Key {
        Key::from_canonical(value.as_bytes())
    }
}

#[cfg(feature = "uuid")]
impl From<&uuid::Uuid> for Key {
    #[inline]
    fn from(value: &uuid::Uuid) -> Key {
        Key::from(*value)
    }
}

#[cfg(feature = "uuid")]
impl KeyPart for &uuid::Uuid {
    fn write(&self, bytes: &mut Vec<u8>) {
        KeyPart::write(*self, bytes);
    }
}

#[cfg(feature = "uuid")]
impl KeyPart for uuid::Uuid {
    fn write(&self, bytes: &mut Vec<u8>) {
        bytes.extend_from_slice(self.as_bytes());
    }
}
