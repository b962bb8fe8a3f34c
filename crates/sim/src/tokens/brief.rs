//! Messages and events in a few words, for the trace.

use keydispatch_core::ownership::message::TokenMessage;
use keydispatch_core::ownership::{SlotSet, TokenEvent as Told};

pub(super) fn brief(message: &TokenMessage) -> String {
    match message {
        TokenMessage::Claims(claims) => {
            let told = claims.iter().map(|claim| {
                let which = match &claim.which {
                    keydispatch_core::ownership::message::Which::First { .. } => "all".to_owned(),
                    keydispatch_core::ownership::message::Which::Slots(slots) => {
                        format!("{:?}", slots.iter().collect::<Vec<_>>())
                    }
                };
                format!(
                    "{} r{} q{} {which}",
                    claim.claimant.name, claim.round, claim.question
                )
            });
            format!("claims {}", told.collect::<Vec<_>>().join("; "))
        }
        TokenMessage::Answers(answers) => {
            let told = answers.iter().map(|answer| {
                let said = answer.said.iter().map(|(slots, said)| {
                    let slots: Vec<u32> = slots.iter().collect();
                    let said = match said {
                        keydispatch_core::ownership::message::Said::Ask(place) => {
                            format!("ask {}", place.node.name)
                        }
                        keydispatch_core::ownership::message::Said::Coming(id) => {
                            format!("coming from {}/{}", id.node, id.sequence)
                        }
                        other => format!("{other:?}"),
                    };
                    format!("{slots:?} {said}")
                });
                let said: Vec<String> = said.collect();
                let differs = if answer.differs { " differs" } else { "" };
                format!(
                    "r{} q{}{differs} {}",
                    answer.round,
                    answer.question,
                    said.join(", ")
                )
            });
            format!("answers {}", told.collect::<Vec<_>>().join("; "))
        }
        TokenMessage::Offers(offers) => {
            let told = offers
                .iter()
                .map(|offer| format!("{:?}", offer.slots.iter().collect::<Vec<_>>()));
            format!("offers {}", told.collect::<Vec<_>>().join("; "))
        }
        TokenMessage::Piece(piece) => format!(
            "piece {}/{} of slot {} t{} r{}",
            piece.piece, piece.of, piece.slot, piece.transfer, piece.round
        ),
        TokenMessage::Ack(ack) => {
            format!("ack slot {} t{} {:?}", ack.slot, ack.transfer, ack.outcome)
        }
        TokenMessage::Settled(settled) => {
            format!("settled slot {} t{}", settled.slot, settled.transfer)
        }
    }
}

pub(super) fn brief_event(event: &Told) -> String {
    let list = |slots: &SlotSet| slots.iter().collect::<Vec<_>>();
    match event {
        Told::Anew {
            instance, slots, ..
        } => format!(
            "{}/{} begins {:?} anew",
            instance.node,
            instance.sequence,
            list(slots)
        ),
        Told::Give { slot, transfer, .. } => format!("gives slot {slot} as t{transfer}"),
        Told::Adopted {
            slot,
            transfer,
            how,
            ..
        } => format!("adopts slot {slot} of t{transfer}, {how:?}"),
        Told::Released { slot, .. } => format!("has given slot {slot} away"),
        Told::TakenBack { slot, .. } => format!("takes slot {slot} back"),
        Told::Lost { slots, .. } => format!("loses {:?}", list(slots)),
        Told::Impatient { peer, slots, .. } => {
            format!("has no patience with {} for {:?}", peer.name, list(slots))
        }
        other => format!("{other:?}"),
    }
}
