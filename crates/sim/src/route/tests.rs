//! What the simulator is trusted for: it is determined by its seed, knows the queue that it simulates, and runs the library's code.

use keydispatch_core::Routing;

use super::plan::{Cache, Ours, Plan, Policy};
use super::world::{Outcome, run};

fn plan() -> Plan {
    Plan::new(10, 7, 20_000)
}

fn at_four() -> Policy {
    Policy::Ours(Ours::at(4))
}

#[test]
fn a_seed_determines_everything() {
    let twice = [(); 2].map(|()| format!("{:?}", run(&plan(), &at_four())));
    assert_eq!(twice[0], twice[1]);
    let other = Plan { seed: 8, ..plan() };
    assert_ne!(twice[0], format!("{:?}", run(&other, &at_four())));
}

#[test]
fn one_instance_is_the_queue_of_the_textbooks() {
    // M/M/1 at load 0.5: the time in the system is exponential with mean 2 ms, so its median is 2 ln 2.
    let plan = Plan {
        load: 0.5,
        network_ms: 0.0,
        ..Plan::new(1, 7, 400_000)
    };
    let outcome = run(&plan, &Policy::Plain);
    let p99 = 2.0 * 100_f64.ln();
    assert!((outcome.p50 - 2.0 * 2_f64.ln()).abs() < 0.05, "{outcome:?}");
    assert!((outcome.p99 / p99 - 1.0).abs() < 0.05, "{outcome:?}");
}

#[test]
fn with_owner_ours_is_plain() {
    let owner = Policy::Ours(Ours::new(Routing::Owner));
    let [ours, plain] = [owner, Policy::Plain].map(|policy| run(&plan(), &policy));
    assert_eq!(format!("{ours:?}"), format!("{plain:?}"));
}

#[test]
fn every_call_is_answered_once_and_runs_once_unless_it_is_hedged() {
    let all: [Policy; 6] = [
        Policy::Plain,
        Policy::Local,
        Policy::Told(4),
        Policy::TwoChoices,
        Policy::Oracle(4),
        at_four(),
    ];
    for policy in all {
        let outcome = run(&plan(), &policy);
        // Calls of the first tenth that are answered later are counted.
        assert!((18_000..=20_000).contains(&outcome.calls), "{outcome:?}");
        assert!((outcome.work - 1.0).abs() < 0.1, "{policy:?} {outcome:?}");
    }
}

#[test]
fn ours_is_near_the_oracle_where_plain_hashing_breaks() {
    let [plain, oracle, ours] =
        [Policy::Plain, Policy::Oracle(4), at_four()].map(|policy| run(&plan(), &policy));
    assert!(ours.p99 <= 1.25 * oracle.p99, "{ours:?} {oracle:?}");
    assert!(plain.p99 > 20.0 * ours.p99, "{plain:?}");
    assert!(ours.first > 75.0 && plain.first > 99.9);
    assert!(ours.refusals > 0.0 && plain.refusals == 0.0);
}

#[test]
fn a_refusal_costs_messages_and_no_work() {
    let outcome = run(&plan(), &at_four());
    let extra = outcome.messages - outcome.refusals;
    assert!((extra - 1.0).abs() < 0.05, "{outcome:?}");
}

#[test]
fn a_hedge_helps_where_instances_pause_and_stays_inside_its_budget() {
    let plan = Plan {
        zipf: 0.6,
        load: 0.4,
        pauses: Some((
            std::time::Duration::from_millis(50),
            std::time::Duration::from_secs(2),
        )),
        ..Plan::new(10, 7, 60_000)
    };
    let [without, with] = [false, true].map(|hedges| {
        let ours = Ours {
            hedges,
            ..Ours::new(Routing::Owner)
        };
        run(&plan, &Policy::Ours(ours))
    });
    assert!(with.p99 < 0.5 * without.p99, "{with:?} {without:?}");
    assert!(with.messages - with.refusals < 1.21, "{with:?}");
}

#[test]
fn a_quorum_is_between_the_first_and_all() {
    let of = |wanted| {
        let plan = Plan {
            load: 0.2,
            copies: (3, wanted),
            ..plan()
        };
        run(&plan, &Policy::Plain)
    };
    let [first, quorum, all]: [Outcome; 3] = [1, 2, 3].map(of);
    assert!(first.p99 < quorum.p99 && quorum.p99 < all.p99);
    assert!(all.work > 2.9, "{all:?}");
}

#[test]
fn a_cache_keeps_what_was_called_last() {
    let cached = |keys| {
        let plan = Plan {
            keys: 1_000,
            load: 0.2,
            cache: Some(Cache { keys, cold: 4.0 }),
            ..plan()
        };
        run(&plan, &Policy::Plain).warm
    };
    let (few, many) = (cached(10), cached(1_000));
    assert!(few < many && many > 95.0, "{few} {many}");
}
