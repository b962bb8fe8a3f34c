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
mod error;
mod hash;
mod slot;
#[cfg(test)]
mod tests;

pub use self::bytes::{KeyBytes, MAX_KEY_BYTES};
pub use error::KeyError;
pub use hash::{Key, KeyPart};
pub(crate) use slot::KEYED_SHIFT;
pub use slot::{KEYED_SLOTS, SLOTS, Slot};
