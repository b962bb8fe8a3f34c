//! The laws of routing.

use proptest::prelude::*;

use super::*;

fn routing() -> impl Strategy<Value = Routing> {
    let bounded = (any::<u8>(), any::<u8>(), any::<Option<u8>>());
    let bounded = bounded.prop_map(|(owners, depth, stay)| Routing::Bounded {
        owners,
        depth,
        stay,
    });
    prop_oneof![
        1 => Just(Routing::Owner),
        8 => bounded,
        2 => (1_u8..6, 1_u8..20, any::<Option<u8>>())
            .prop_map(|(owners, depth, stay)| Routing::Bounded { owners, depth, stay }),
    ]
}

const NOW: Instant = Instant::from_micros(1_000_000);

fn candidate() -> impl Strategy<Value = OwnerCandidate> {
    let hint = proptest::option::of((any::<u8>(), 0_u64..100_000));
    let standing = prop_oneof![
        3 => Just(OwnerStanding::Open),
        1 => Just(OwnerStanding::Refused),
        1 => Just(OwnerStanding::Out)
    ];
    (hint, standing, any::<bool>()).prop_map(|(hint, standing, near)| OwnerCandidate {
        hint: hint.map_or(Hint::NONE, |(depth, age)| {
            Hint::told(depth, NOW - Duration::from_micros(age))
        }),
        standing,
        near,
    })
}

fn candidates() -> impl Strategy<Value = Vec<OwnerCandidate>> {
    proptest::collection::vec(candidate(), 0..20)
}

fn ask() -> impl Strategy<Value = Ask> {
    (0_u8..4, 0_u8..=MAX_REFUSALS, any::<u64>()).prop_map(|(refusals, most_refusals, draw)| Ask {
        refusals,
        most_refusals,
        now: NOW,
        draw,
    })
}

/// A call that goes on until somebody takes it; those in `full` refuse while they may. Returns whom it was sent to.
fn walk(routing: Routing, candidates: &[OwnerCandidate], full: &[bool], ask: Ask) -> Vec<usize> {
    let (mut candidates, mut ask, mut sent) = (candidates.to_vec(), ask, Vec::new());
    loop {
        let choice = next(routing, &candidates, ask).unwrap();
        sent.push(choice.at);
        match choice.refuse_at {
            Some(depth) if full[choice.at] => {
                candidates[choice.at].standing = OwnerStanding::Refused;
                candidates[choice.at].hint = Hint::told(depth.get(), ask.now);
                ask.refusals += 1;
            }
            _ => return sent,
        }
    }
}

proptest! {
    #[test]
    fn with_owner_it_is_the_first_whatever_is_known(candidates in candidates(), ask in ask()) {
        let choice = next(Routing::Owner, &candidates, ask);
        let first = Choice { at: 0, refuse_at: None };
        prop_assert_eq!(choice, (!candidates.is_empty()).then_some(first));
    }

    #[test]
    fn with_no_load_bounded_equals_owner(
        routing in routing(),
        told in any::<bool>(),
        most_refusals in 0_u8..=MAX_REFUSALS,
        draw in any::<u64>(),
    ) {
        let hint = if told { Hint::told(0, NOW) } else { Hint::NONE };
        let candidates = vec![OwnerCandidate { hint, ..OwnerCandidate::default() }; routing.owners()];
        let ask = Ask { refusals: 0, most_refusals, now: NOW, draw };
        let choice = next(routing, &candidates, ask).unwrap();
        prop_assert_eq!(choice.at, 0);
    }

    #[test]
    fn somebody_is_asked_where_there_is_anybody_and_never_more_than_the_most(
        routing in routing(),
        candidates in candidates(),
        ask in ask(),
    ) {
        match next(routing, &candidates, ask) {
            Some(choice) => prop_assert!(choice.at < candidates.len().min(MAX_OWNERS)),
            None => prop_assert!(candidates.is_empty()),
        }
    }

    #[test]
    fn whoever_is_out_is_asked_only_where_all_are(
        routing in routing(),
        candidates in candidates(),
        ask in ask(),
    ) {
        prop_assume!(routing != Routing::Owner);
        let looked_at = &candidates[..candidates.len().min(MAX_OWNERS)];
        if let Some(choice) = next(routing, &candidates, ask)
            && candidates[choice.at].standing == OwnerStanding::Out
        {
            prop_assert!(looked_at.iter().all(|other| other.standing == OwnerStanding::Out));
        }
    }

    #[test]
    fn a_call_is_sent_at_most_three_times_and_only_the_last_is_in_any_case(
        routing in routing(),
        candidates in candidates(),
        full in proptest::collection::vec(any::<bool>(), 20),
        ask in ask(),
    ) {
        prop_assume!(!candidates.is_empty());
        let ask = Ask { refusals: 0, ..ask };
        let candidates: Vec<_> = candidates
            .into_iter()
            .map(|candidate| OwnerCandidate { standing: match candidate.standing {
                OwnerStanding::Refused => OwnerStanding::Open,
                other => other,
            }, ..candidate })
            .collect();
        let sent = walk(routing, &candidates, &full, ask);
        prop_assert!(sent.len() <= usize::from(MAX_REFUSALS) + 1);
        // Nobody is asked again that refused, but as the last resort.
        let asked = &sent[..sent.len() - 1];
        for (at, who) in asked.iter().enumerate() {
            prop_assert!(!asked[..at].contains(who));
        }
        if ask.most_refusals == 0 || routing == Routing::Owner {
            prop_assert_eq!(sent.len(), 1);
        }
    }

    #[test]
    fn without_hints_the_walk_goes_along_the_order(
        depth in any::<u8>(),
        full in proptest::collection::vec(any::<bool>(), 4),
    ) {
        let routing = Routing::Bounded { owners: 4, depth, stay: None };
        let candidates = [OwnerCandidate::default(); 4];
        let ask = Ask { most_refusals: MAX_REFUSALS, now: NOW, ..Ask::default() };
        let sent = walk(routing, &candidates, &full, ask);
        let expected: Vec<usize> = (0..sent.len()).collect();
        prop_assert_eq!(sent, expected);
    }

    #[test]
    fn the_owner_is_passed_by_only_where_it_told_so_and_the_caller_asked_for_it(
        owner in any::<u8>(), other in any::<Option<u8>>(), stay in any::<Option<u8>>(), age in 0_u64..100_000,
    ) {
        let routing = Routing::Bounded { owners: 2, depth: 8, stay };
        let hint = |depth: u8, age| Hint::told(depth, NOW - Duration::from_micros(age));
        let candidates = [
            OwnerCandidate { hint: hint(owner, age), ..OwnerCandidate::default() },
            OwnerCandidate { hint: other.map_or(Hint::NONE, |other| hint(other, 0)), ..OwnerCandidate::default() },
        ];
        let ask = Ask { most_refusals: MAX_REFUSALS, now: NOW, ..Ask::default() };
        let choice = next(routing, &candidates, ask).unwrap();
        let told = u128::from(age) < HINT_LASTS.as_micros();
        let passes = stay.is_some_and(|stay| {
            told && u16::from(owner) > u16::from(other.unwrap_or(0)) + u16::from(stay)
        });
        prop_assert_eq!(choice.at, usize::from(passes));
    }

    #[test]
    fn near_ones_come_first_but_for_a_hot_key(
        near in proptest::collection::vec(any::<bool>(), 1..10),
        owners in 1_u8..6,
        draw in any::<u64>(),
    ) {
        let routing = Routing::Bounded { owners, depth: 8, stay: None };
        let candidates: Vec<_> =
            near.iter().map(|near| OwnerCandidate { near: *near, ..OwnerCandidate::default() }).collect();
        let ask = Ask { most_refusals: MAX_REFUSALS, now: NOW, draw, ..Ask::default() };
        let choice = next(routing, &candidates, ask).unwrap();
        let expected = if near.len() > owners.into() {
            (draw % near.len() as u64) as usize
        } else {
            near.iter().position(|near| *near).unwrap_or(0)
        };
        prop_assert_eq!(choice.at, expected);
    }

    #[test]
    fn a_young_instance_refuses_earlier_and_takes_one_at_least(
        depth in 1_u8..=255, a in 0_u64..20_000_000, b in 0_u64..20_000_000,
    ) {
        let depth = NonZeroU8::new(depth).unwrap();
        let at = |micros| limit_at(depth, Duration::from_micros(micros));
        prop_assert!(at(a.min(b)) <= at(a.max(b)));
        prop_assert!((1..=usize::from(depth.get())).contains(&at(a)));
        prop_assert_eq!(at(10_000_000), usize::from(depth.get()));
    }
}

#[test]
fn the_last_is_the_least_loaded_that_was_told() {
    let told = |depth| OwnerCandidate {
        hint: Hint::told(depth, NOW),
        ..OwnerCandidate::default()
    };
    let refused = |depth| OwnerCandidate {
        standing: OwnerStanding::Refused,
        ..told(depth)
    };
    let ask = Ask {
        refusals: 2,
        most_refusals: MAX_REFUSALS,
        now: NOW,
        draw: 0,
    };
    let last = |candidates: &[OwnerCandidate]| next(Routing::bounded(), candidates, ask);
    let forced = |at| {
        Some(Choice {
            at,
            refuse_at: None,
        })
    };
    assert_eq!(
        last(&[refused(9), refused(8), told(12), told(10)]),
        forced(1)
    );
    assert_eq!(last(&[refused(9), refused(8), told(7), told(5)]), forced(3));
    // Of whom nothing is known, nothing bad is supposed.
    assert_eq!(
        last(&[refused(9), refused(8), told(1), OwnerCandidate::default()]),
        forced(3)
    );
}

#[test]
fn the_calls_of_a_hot_key_are_spread_over_all_of_its_owners() {
    for (refusals, most_refusals) in [(0, 2), (0, 0), (2, 2)] {
        let mut taken = [0; 16];
        for draw in 0..1_600 {
            let ask = Ask {
                refusals,
                most_refusals,
                now: NOW,
                draw,
            };
            let candidates = [OwnerCandidate::default(); 16];
            taken[next(Routing::bounded(), &candidates, ask).unwrap().at] += 1;
        }
        assert_eq!(taken, [100; 16]);
    }
}

#[test]
fn without_a_budget_a_call_goes_by_what_was_told() {
    let full = OwnerCandidate {
        hint: Hint::told(8, NOW),
        ..OwnerCandidate::default()
    };
    let candidates = [full, OwnerCandidate::default(), OwnerCandidate::default()];
    let ask = Ask {
        now: NOW,
        ..Ask::default()
    };
    let choice = next(Routing::bounded(), &candidates, ask).unwrap();
    assert_eq!((choice.at, choice.refuse_at), (1, None));
}

#[test]
fn who_is_alone_refuses_nothing() {
    let ask = Ask {
        most_refusals: MAX_REFUSALS,
        now: NOW,
        ..Ask::default()
    };
    let choice = next(Routing::bounded(), &[OwnerCandidate::default()], ask).unwrap();
    assert_eq!(choice.refuse_at, None);
}

#[test]
fn a_hedge_goes_to_the_next_owner_that_is_not_full_and_to_nobody_where_there_is_none() {
    let has_it = OwnerCandidate {
        standing: OwnerStanding::Out,
        ..OwnerCandidate::default()
    };
    let full = OwnerCandidate {
        hint: Hint::told(8, NOW),
        ..OwnerCandidate::default()
    };
    let candidates = [has_it, full, OwnerCandidate::default()];
    assert_eq!(hedge(Routing::bounded(), &candidates, NOW), Some(2));
    assert_eq!(hedge(Routing::Owner, &candidates, NOW), Some(1));
    assert_eq!(hedge(Routing::bounded(), &candidates[..2], NOW), None);
    assert_eq!(hedge(Routing::Owner, &[], NOW), None);
}

#[test]
fn owners_are_crowded_where_all_that_told_of_late_told_of_twice_the_depth_and_others_have_room() {
    let told = |depth, standing| OwnerCandidate {
        hint: Hint::told(depth, NOW),
        standing,
        near: false,
    };
    let unknown = OwnerCandidate::default();
    let (full, crowded) = (
        told(15, OwnerStanding::Refused),
        told(16, OwnerStanding::Refused),
    );
    let is = |candidates: &[OwnerCandidate]| is_crowded(Routing::bounded(), candidates, 3, NOW);
    let room = told(7, OwnerStanding::Open);
    assert!(is(&[crowded, crowded, unknown, room]));
    assert!(is(&[
        crowded,
        told(200, OwnerStanding::Open),
        unknown,
        room
    ]));
    // One alone may be slow; one that has room is enough; and whoever cannot be reached is not asked.
    assert!(!is(&[crowded, unknown, unknown, room]));
    assert!(!is(&[crowded, full, crowded, room]));
    assert!(!is(&[crowded, told(16, OwnerStanding::Out), unknown, room]));
    // Nobody beyond them has room, or can be reached, or is there.
    assert!(!is(&[crowded, crowded, crowded, full]));
    assert!(!is(&[crowded, crowded, crowded, unknown]));
    assert!(!is(&[
        crowded,
        crowded,
        crowded,
        told(0, OwnerStanding::Out)
    ]));
    assert!(!is(&[crowded, crowded, crowded]));
    assert!(!is(&[]));
    let all = [crowded, crowded, room];
    assert!(is_crowded(Routing::bounded(), &all, 2, NOW));
    assert!(!is_crowded(Routing::Owner, &all, 2, NOW));
    // What was told long ago is of other queues.
    assert!(!is_crowded(Routing::bounded(), &all, 2, NOW + HINT_LASTS));
}
