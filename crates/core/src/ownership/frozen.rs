//! Slots of which the states are on their way: those that go, and what has come of others.

use std::time::Duration;

use bytes::Bytes;

use super::config::OwnershipConfig;
use super::message::Place;
use crate::id::{ServiceId, ServiceType};
use crate::time::Instant;

/// R8: a slot whose states are not there after this long is not counted as on its way until they are. What is given waits for
/// the message that is being handled, and a few slow keys would hold up all others.
pub(super) const PREPARES: Duration = Duration::from_millis(50);

/// A slot whose states are on their way.
#[derive(Clone, Debug)]
pub(super) struct Frozen {
    pub(super) to: Place,
    pub(super) round: u64,
    pub(super) transfer: u64,
    /// None until the user has given the states.
    pub(super) pieces: Option<Vec<Bytes>>,
    pub(super) sent: usize,
    pub(super) acked: Vec<bool>,
    pub(super) touched: Instant,
    pub(super) heard: Instant,
}

impl Frozen {
    /// Pieces on their way, in parts of a full one; what is being prepared counts, for a while.
    pub(super) fn in_flight(&self, config: &OwnershipConfig, now: Instant) -> u32 {
        match &self.pieces {
            None if now.since(self.touched) < PREPARES => config.preparing(),
            None => 0,
            Some(pieces) => {
                let sent = pieces[..self.sent].iter().zip(&self.acked);
                let open = sent.filter(|(_, acked)| !**acked);
                open.map(|(piece, _)| config.parts(piece.len())).sum()
            }
        }
    }
}

/// What has come of a slot so far.
#[derive(Clone, Debug)]
pub(super) struct Partial {
    pub(super) service_type: ServiceType,
    pub(super) to: ServiceId,
    pub(super) slot: u32,
    pub(super) pieces: Vec<Option<Bytes>>,
    /// Of those that are here.
    pub(super) bytes: usize,
}
