//! A hash of the names of types that peers cannot compute.

use std::hash::{BuildHasher, Hasher};

use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Hashes names of types with a seed of this process.
///
/// Rule: a map whose keys peers choose has a hash that they cannot compute. Names that share a hash are made in seconds
/// where it is known, and a map of some thousands of them is a list: every lookup, and the driver with it, would walk it.
/// Placement is another matter: it has to be equal on all nodes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TypeHash {
    pub(crate) seed: u64,
}

impl BuildHasher for TypeHash {
    type Hasher = TypeHasher;

    fn build_hasher(&self) -> TypeHasher {
        TypeHasher(self.seed)
    }
}

/// Holds the seed until the name was written, and then its hash.
pub(crate) struct TypeHasher(u64);

impl Hasher for TypeHasher {
    #[inline]
    fn write(&mut self, bytes: &[u8]) {
        // There is nothing else to a name: what is written is written at once.
        self.0 = xxh3_64_with_seed(bytes, self.0);
    }

    #[inline]
    fn write_u8(&mut self, _: u8) {
        // The terminator of a string, which is hashed as a whole.
    }

    #[inline]
    fn finish(&self) -> u64 {
        self.0
    }
}
