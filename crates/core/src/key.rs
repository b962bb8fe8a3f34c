//! A key → its 64-bit hash → its slot: the published hash specification.
//!
//! The hash of a key is XXH3-64 with seed 0 of its canonical bytes; the top 20 bits of the hash are its slot. Another
//! language that wants to find the same owner needs the canonical bytes:
//!
//! | key | canonical bytes |
//! |---|---|
//! | a string or a character | its UTF-8 bytes |
//! | bytes, also a UUID | as they are |
//! | an integer of any width | 16 bytes, little endian, two's complement |
//! | a tuple | for each part, the length of its canonical bytes as `u32` little endian, and these bytes |
//! | any other serde value ([`Key::of`]) | its encoding by postcard |
//!
//! So `7_u8` and `7_i64` are one key, and so are `"a"`, `'a'` and `b"a"`. [`Key::of`] and [`Key::from`] make one key of one
//! value.

mod bytes;
mod canonical;

pub use self::bytes::{KeyBytes, MAX_KEY_BYTES};

use std::borrow::Cow;
use std::sync::Arc;

use ::bytes::Bytes;
use serde::Serialize;
use xxhash_rust::xxh3::xxh3_64;

/// Bits of a hash that say its slot.
const SLOT_BITS: u32 = 20;

/// Slots of the key space. With n instances of equal weight each has SLOTS/n ± √(SLOTS/n) of them: so many that the most
/// loaded of 1,000 has a tenth more than the mean.
pub const SLOTS: usize = 1 << SLOT_BITS;

/// Bits of a hash that say where a key is placed whose state moves with it.
const KEYED_SLOT_BITS: u32 = 12;

/// Slots by which the keys are placed of a type whose states move with them.
///
/// There is a token for each, and each is asked for and given by itself when an instance comes or goes: with [`SLOTS`] of them a
/// join would take a million messages, most of them about nothing. The price is that shares are less even: with n instances
/// of equal weight each has KEYED_SLOTS/n ± √(KEYED_SLOTS/n) of them, so that of 10 the most loaded has about 1.08 times the
/// mean, of 100 about 1.4 times.
pub const KEYED_SLOTS: usize = 1 << KEYED_SLOT_BITS;

/// A keyed slot is so many slots, as a power of two.
pub(crate) const KEYED_SHIFT: u32 = SLOT_BITS - KEYED_SLOT_BITS;

/// One of [`SLOTS`] parts of the key space.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot(u32);

impl Slot {
    /// The slot of that index; none from [`SLOTS`] on.
    #[inline]
    pub const fn new(index: usize) -> Option<Slot> {
        if index < SLOTS {
            Some(Slot(index as u32))
        } else {
            None
        }
    }

    /// The slot that stands for this one where states move with their keys: the first of its keyed slot.
    #[inline]
    pub const fn keyed(self) -> Slot {
        Slot(self.0 >> KEYED_SHIFT << KEYED_SHIFT)
    }

    /// Which of the [`KEYED_SLOTS`] it is in.
    #[inline]
    pub const fn keyed_index(self) -> u32 {
        self.0 >> KEYED_SHIFT
    }

    /// Below [`SLOTS`].
    #[inline]
    pub const fn index(self) -> usize {
        // No slot is larger; said again, so that what is as long as the key space is read without a check.
        self.0 as usize % SLOTS
    }
}

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

/// A value that cannot be a key.
#[derive(Clone, PartialEq, Eq, thiserror::Error)]
#[error("the value cannot be encoded as a key: {cause}")]
pub struct KeyError {
    /// What the encoder said.
    cause: String,
}

crate::debug_as_display!(KeyError);

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
        Slot((self.0 >> (u64::BITS - SLOT_BITS)) as u32)
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

fn write_part(part: &impl KeyPart, bytes: &mut Vec<u8>) {
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

#[cfg(test)]
mod tests;
