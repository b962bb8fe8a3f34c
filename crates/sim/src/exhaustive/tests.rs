use keydispatch_core::{Rule, RuleSet};

use super::*;

/// Cases with few states; the command looks at all.
const SMALL: [(usize, usize); 7] = [(0, 0), (0, 2), (1, 1), (1, 2), (2, 0), (2, 1), (2, 2)];

fn case(joiner: usize, leaver: usize, deaths: u32) -> Scenario {
    Scenario {
        joiner,
        leaver,
        deaths,
        early: 0,
    }
}

fn without(scenario: &Scenario, rules: &[&str]) -> Found {
    let off = rules.iter().map(|rule| Rule::named(rule).unwrap());
    let off: Vec<Rule> = off.collect();
    search(scenario, RuleSet::without(&off), 100_000)
}

#[test]
fn nothing_is_broken_by_any_order_of_a_join_and_a_leave() {
    for (joiner, leaver) in SMALL {
        let scenario = case(joiner, leaver, 0);
        let found = search(&scenario, RuleSet::default(), 100_000);
        assert_eq!(found.violation, None, "{scenario}");
        assert!(found.complete && found.ends > 0, "{scenario}: {found:?}");
    }
}

#[test]
fn nor_where_one_of_them_dies_at_any_moment() {
    for (joiner, leaver) in [(2, 1), (2, 2), (1, 1)] {
        let scenario = case(joiner, leaver, 1);
        let found = search(&scenario, RuleSet::default(), 100_000);
        assert_eq!(found.violation, None, "{scenario}");
        assert!(found.complete && found.ends > 0, "{scenario}: {found:?}");
    }
}

#[test]
fn the_search_finds_what_a_missing_rule_breaks() {
    for rule in ["claims", "keeps"] {
        let found = without(&case(0, 0, 0), &[rule]);
        assert!(found.violation.is_some(), "without {rule}: {found:?}");
    }
}

/// Who is asked last may get the slot after another one has said that it is free, from a holder that leaves before it has
/// answered. Either the expected holder is asked first, which is the one that holds; or all are asked anew once the holder
/// has gone, which also helps where another one holds than is expected.
#[test]
fn whoever_does_not_ask_again_when_a_holder_has_gone_begins_anew_what_lives() {
    let scenario = case(1, 0, 0);
    let found = without(&scenario, &["expected_first", "asks_anew"]);
    let broken = found.violation.map(|(broken, _)| broken);
    assert!(broken.is_some_and(|broken| broken.contains("anew")));
    for one in ["expected_first", "asks_anew"] {
        let found = without(&scenario, &[one]);
        assert_eq!(found.violation, None, "without {one}");
        assert!(found.complete && found.ends > 0, "without {one}: {found:?}");
    }
}
