//! How a caller chooses among the owners of a key.

/// Most owners of a key that a call may go to, hot keys included.
pub const MAX_OWNERS: usize = 16;

/// How the calls of a protocol, or of a handle, are routed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Routing {
    /// To the owner of the key, whatever its load: for state that lives in its owner alone.
    #[default]
    Owner,
    /// To the first of a few owners that has room: for services whose instances answer alike.
    Bounded {
        /// How many owners a call may go to: 1 to [`MAX_OWNERS`]. Beyond either end it counts as that end.
        owners: u8,
        /// An owner refuses a call while so many wait for it or are at work in it: at least 1.
        depth: u8,
        /// Where set: an owner is passed by, without being asked, where its reply of the last 50 ms told a queue longer by more
        /// than this than the next owner's. With caches, a large `depth` and this keep keys where they are warm.
        stay: Option<u8>,
    },
}

impl Routing {
    /// Bounded by four owners and a depth of eight, always asking the first.
    pub const fn bounded() -> Self {
        Routing::Bounded {
            owners: 4,
            depth: 8,
            stay: None,
        }
    }

    /// How many owners a call may go to where its key is not hot.
    pub fn owners(self) -> usize {
        match self {
            Routing::Owner => 1,
            Routing::Bounded { owners, .. } => usize::from(owners).clamp(1, MAX_OWNERS),
        }
    }
}
