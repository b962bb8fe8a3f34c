//! What the state machine tells, and what it answers.

use bytes::Bytes;

use super::slots::SlotSet;
use crate::id::{NodeId, ServiceId, ServiceType};

/// How adopted states are taken in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Adoption {
    /// They are all that there is.
    Whole,
    /// R11: another copy is held here; what came is merged into it.
    MergeIntoOurs,
    /// R12: what is here was in doubt and is older; it is merged into what came.
    MergeOursInto,
}

/// What the state machine tells whoever holds the states.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum TokenEvent {
    /// These slots are held here now, and there were no states of them anywhere that could be asked.
    Anew {
        /// The type.
        service_type: ServiceType,
        /// The instance that holds.
        instance: ServiceId,
        /// The slots.
        slots: SlotSet,
    },
    /// The slot is served no more: its states are to be handed to [`Ownership::give`](crate::ownership::Ownership::give), and kept until
    /// [`TokenEvent::Released`] or [`TokenEvent::TakenBack`].
    Give {
        /// The type.
        service_type: ServiceType,
        /// The instance that gives.
        instance: ServiceId,
        /// The slot.
        slot: u32,
        /// What the states are to be given for.
        transfer: u64,
    },
    /// The slot is held here now, with these states.
    Adopted {
        /// The type.
        service_type: ServiceType,
        /// The instance that holds.
        instance: ServiceId,
        /// The slot.
        slot: u32,
        /// Who gave it.
        from: ServiceId,
        /// The giver's number for it.
        transfer: u64,
        /// By key.
        states: Vec<(Bytes, Bytes)>,
        /// What becomes of states that were here.
        how: Adoption,
    },
    /// The receiver has adopted the states: they are to be dropped here.
    Released {
        /// The type.
        service_type: ServiceType,
        /// The instance that gave.
        instance: ServiceId,
        /// The slot.
        slot: u32,
        /// Who holds it now.
        to: ServiceId,
    },
    /// The receiver did not adopt the states: the slot is held here again.
    TakenBack {
        /// The type.
        service_type: ServiceType,
        /// The instance that holds.
        instance: ServiceId,
        /// The slot.
        slot: u32,
    },
    /// What becomes of calls for these slots has changed: those that wait are to ask [`Ownership::gate`](crate::ownership::Ownership::gate) again.
    Gate {
        /// The type.
        service_type: ServiceType,
        /// The instance.
        instance: ServiceId,
        /// The slots.
        slots: SlotSet,
    },
    /// States are gone without a receiver: the instance was taken out of the registry while it held them.
    Lost {
        /// The type.
        service_type: ServiceType,
        /// The instance.
        instance: ServiceId,
        /// The slots.
        slots: SlotSet,
    },
    /// R13: that node is up and has been silent for as long as patience lasts; it counts as down for these slots.
    Impatient {
        /// The type.
        service_type: ServiceType,
        /// The instance that waited.
        instance: ServiceId,
        /// Who is silent.
        peer: NodeId,
        /// The slots.
        slots: SlotSet,
    },
    /// R1: this node knows nobody any more. It claims again once it has dialled all seeds, and
    /// [`Ownership::handle_synced`](crate::ownership::Ownership::handle_synced) was called.
    Alone,
}

/// What becomes of a call for a slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Gate {
    /// It runs at this instance.
    Run(ServiceId),
    /// It waits at this instance.
    Park(ServiceId),
    /// Its caller is told to go there, where that is known.
    Moved(Option<ServiceId>),
}

/// How often what happened, for operators and tests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct TokenCounts {
    /// Claims that were sent, to one node about one type each.
    pub claims: u64,
    /// Answers.
    pub answers: u64,
    /// Offers.
    pub offers: u64,
    /// Pieces.
    pub pieces: u64,
    /// Acknowledgements of pieces.
    pub acks: u64,
    /// "Settled".
    pub settled: u64,
    /// R13: questions, pieces and acknowledgements that were said again, since no answer had come.
    pub repeated: u64,
    /// Pieces that nobody wanted.
    pub refused: u64,
    /// Times that patience ended.
    pub impatience: u64,
    /// Messages of lives that are not up here.
    pub unheard: u64,
    /// Most pieces on their way to one node at once.
    pub most_in_flight: u32,
    /// Slots that were named in claims.
    pub named: u64,
}

/// What an instance has of a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holding {
    /// Nothing.
    Away,
    /// It asks for it; with a copy, its states are here and in doubt.
    Claiming {
        /// The states are here.
        copy: bool,
    },
    /// It serves it.
    Held,
    /// It is giving it away.
    Frozen,
}
