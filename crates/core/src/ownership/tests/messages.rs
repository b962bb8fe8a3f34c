//! Messages from anybody.

use proptest::prelude::*;

use super::*;

proptest! {
    #[test]
    fn no_bytes_make_decoding_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = TokenMessage::decode(&bytes);
    }
}

#[test]
fn what_is_over_a_bound_does_not_decode() {
    let piece = |number, of, bytes| {
        TokenMessage::Piece(Piece {
            service_type: rooms(),
            transfer: 1,
            since: 1,
            from: entry(1, 1, 1, ServiceState::Online).id().clone(),
            to: entry(2, 1, 1, ServiceState::Online).id().clone(),
            round: 1,
            slot: 1,
            piece: number,
            of,
            bytes: Bytes::from(vec![0; bytes]),
        })
    };
    assert!(TokenMessage::decode(&piece(0, 1, 10).encode()).is_ok());
    assert!(TokenMessage::decode(&piece(1, 1, 10).encode()).is_err());
    assert!(TokenMessage::decode(&piece(0, 0, 10).encode()).is_err());
    assert!(TokenMessage::decode(&piece(0, message::MAX_PIECES + 1, 10).encode()).is_err());
    assert!(TokenMessage::decode(&piece(0, 1, MAX_PIECE_BYTES + 1).encode()).is_err());
    let mut standing = Standing::of(&entry(1, 1, 1, ServiceState::Online));
    standing.weight = 0;
    let offer = Offer {
        service_type: rooms(),
        from: standing,
        to: entry(2, 1, 1, ServiceState::Online).id().clone(),
        slots: SlotSet::one(1),
    };
    assert!(TokenMessage::decode(&TokenMessage::Offers(vec![offer]).encode()).is_err());
}
