//! A key with its bytes: what a state belongs to.

use std::fmt;

use ::bytes::Bytes;
use serde::Serialize;

use super::canonical;
use super::error::KeyError;
use super::hash::{Key, KeyPart};
use crate::text::Escaped;

/// Longest key that a state can belong to, in bytes: it travels with every call.
pub const MAX_KEY_BYTES: usize = 1_024;

/// A key as its canonical bytes, of which [`Key`] is the hash. A state belongs to the bytes: two keys of one hash have two.
///
/// Made of whatever [`Key`] is made of. Cheap to clone.
///
/// ```
/// use keydispatch_core::{Key, KeyBytes};
/// let room = KeyBytes::from("lobby");
/// assert_eq!(room.as_str(), Some("lobby"));
/// assert_eq!(Key::from(&room), Key::from("lobby"));
/// assert_eq!(Key::from(KeyBytes::from(("tenant", 7))), Key::from(("tenant", 7)));
/// ```
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyBytes(Bytes);

impl KeyBytes {
    /// The key with these canonical bytes.
    pub fn from_canonical(bytes: Bytes) -> Self {
        KeyBytes(bytes)
    }

    /// Any serde value as a key, as [`Key::of`] makes it.
    ///
    /// # Errors
    ///
    /// Where the value cannot be encoded: a sequence without a known length, or an error of its own.
    pub fn of<T: Serialize + ?Sized>(value: &T) -> Result<Self, KeyError> {
        let mut bytes = Vec::with_capacity(64);
        canonical::write(value, &mut bytes)?;
        Ok(KeyBytes(bytes.into()))
    }

    /// Its canonical bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The same, shared.
    pub fn to_bytes(&self) -> Bytes {
        self.0.clone()
    }

    /// The text that it was made of; none where its bytes are no text.
    pub fn as_str(&self) -> Option<&str> {
        std::str::from_utf8(&self.0).ok()
    }

    /// Its hash, by which it is placed.
    pub fn key(&self) -> Key {
        Key::from_canonical(&self.0)
    }
}

impl<T: KeyPart> From<T> for KeyBytes {
    fn from(value: T) -> Self {
        let mut bytes = Vec::with_capacity(32);
        value.write(&mut bytes);
        KeyBytes(bytes.into())
    }
}

impl From<&KeyBytes> for KeyBytes {
    fn from(key: &KeyBytes) -> Self {
        key.clone()
    }
}

impl From<KeyBytes> for Key {
    fn from(key: KeyBytes) -> Self {
        key.key()
    }
}

impl From<&KeyBytes> for Key {
    fn from(key: &KeyBytes) -> Self {
        key.key()
    }
}

/// As text where it is some, and else in hexadecimal digits. Escaped: callers choose keys, and these go into logs.
impl fmt::Display for KeyBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.as_str() {
            Some(text) => fmt::Display::fmt(&Escaped(text), f),
            None => self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}")),
        }
    }
}

impl fmt::Debug for KeyBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_with_its_bytes_has_the_hash_of_the_key() {
        assert_eq!(Key::from(KeyBytes::from("a")), Key::from("a"));
        assert_eq!(Key::from(KeyBytes::from(7_u8)), Key::from(7_i64));
        assert_eq!(
            Key::from(KeyBytes::from(("a", 7, "b"))),
            Key::from(("a", 7, "b"))
        );
        assert_eq!(KeyBytes::of("a").unwrap(), KeyBytes::from("a"));
        let bytes = Bytes::from_static(&[0xff, 0]);
        assert_eq!(KeyBytes::from_canonical(bytes).to_string(), "ff00");
    }

    #[test]
    fn the_keyed_slots_are_runs_of_slots_that_one_of_them_stands_for() {
        use crate::key::{KEYED_SLOTS, SLOTS, Slot};
        let run = SLOTS / KEYED_SLOTS;
        for index in [0, 1, run - 1, run, SLOTS - 1] {
            let slot = Slot::new(index).unwrap();
            assert_eq!(slot.keyed().index(), index / run * run);
            assert_eq!(slot.keyed_index() as usize, index / run);
        }
    }
}
