//! A string that is mostly short: without an allocation of its own up to [`INLINE_BYTES`].

use std::cmp::Ordering;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

/// What fits beside the tag and the length in the three words that a longer string takes.
const INLINE_BYTES: usize = 22;

/// See the module. Cheap to clone.
#[derive(Clone)]
pub(super) enum ShortStr {
    Inline { len: u8, bytes: [u8; INLINE_BYTES] },
    Shared(Arc<str>),
}

impl ShortStr {
    pub(super) fn as_bytes(&self) -> &[u8] {
        match self {
            ShortStr::Inline { len, bytes } => &bytes[..usize::from(*len)],
            ShortStr::Shared(text) => text.as_bytes(),
        }
    }
}

impl From<&str> for ShortStr {
    fn from(text: &str) -> Self {
        let mut bytes = [0; INLINE_BYTES];
        match bytes.get_mut(..text.len()) {
            Some(start) => {
                start.copy_from_slice(text.as_bytes());
                ShortStr::Inline {
                    len: text.len() as u8,
                    bytes,
                }
            }
            None => ShortStr::Shared(Arc::from(text)),
        }
    }
}

impl std::ops::Deref for ShortStr {
    type Target = str;

    fn deref(&self) -> &str {
        match self {
            ShortStr::Inline { .. } => {
                std::str::from_utf8(self.as_bytes()).expect("it was copied from a string")
            }
            ShortStr::Shared(text) => text,
        }
    }
}

// The order and the equality of strings are those of their bytes, which are at hand without a check.

impl PartialEq for ShortStr {
    fn eq(&self, other: &Self) -> bool {
        self.as_bytes() == other.as_bytes()
    }
}

impl Eq for ShortStr {}

impl PartialOrd for ShortStr {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for ShortStr {
    fn cmp(&self, other: &Self) -> Ordering {
        self.as_bytes().cmp(other.as_bytes())
    }
}

impl Hash for ShortStr {
    fn hash<H: Hasher>(&self, state: &mut H) {
        // As a string does: names are looked up by their text.
        str::hash(self, state);
    }
}

#[cfg(test)]
mod tests {
    use std::hash::{BuildHasher, RandomState};

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn it_takes_no_more_than_a_shared_string_and_a_tag() {
        assert_eq!(size_of::<ShortStr>(), 24);
        let longest = "n".repeat(INLINE_BYTES);
        assert!(matches!(ShortStr::from(&*longest), ShortStr::Inline { .. }));
    }

    proptest! {
        #[test]
        fn it_is_the_string_that_it_was_made_of(a in "\\PC{0,30}", b in "\\PC{0,30}") {
            let (short_a, short_b) = (ShortStr::from(&*a), ShortStr::from(&*b));
            prop_assert_eq!(&*short_a, &*a);
            prop_assert_eq!(short_a.cmp(&short_b), a.cmp(&b));
            prop_assert_eq!(short_a == short_b, a == b);
            let hashes = RandomState::new();
            prop_assert_eq!(hashes.hash_one(&short_a), hashes.hash_one(&*a));
        }
    }
}
