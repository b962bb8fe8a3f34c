use super::*;
use crate::admission::NodeNames;
use crate::rules::{Rule, RuleSet};

/// A year in microseconds.
const CLOCK: u64 = 365 * 24 * 3_600 * 1_000_000;
const SECOND: Duration = Duration::from_secs(1);

fn address(host: &str) -> Address {
    Address::try_new(format!("{host}:7000")).unwrap()
}

fn cluster_name() -> ClusterName {
    ClusterName::try_new("test").unwrap()
}

fn start(name: &str) -> Cluster {
    let config = ClusterConfig {
        cluster: cluster_name(),
        name: NodeName::try_new(name).unwrap(),
        address: address(name),
        seeds: vec![address("m")],
        seeds_awaited: false,
        settings: Settings::default(),
        wall_clock_micros: CLOCK,
        nonce: 1,
        offers: Offers::default(),
        seed: 7,
    };
    Cluster::new(config, Instant::ZERO)
}

fn credentials(name: &str) -> Credentials {
    Credentials::Certificate {
        cluster: cluster_name(),
        nodes: NodeNames::Exact(vec![NodeName::try_new(name).unwrap()]),
    }
}

/// For a minute, whenever the node dials m, m says that the node's own name has had a generation of one more than now.
/// Returns the times at which the node took a new one.
fn renewals(rules: RuleSet) -> Vec<Instant> {
    let mut cluster = start("a");
    cluster.set_rules(rules);
    let mut now = Instant::ZERO;
    let mut renewed = Vec::new();
    let mut link = 0;
    while now < Instant::ZERO + 60 * SECOND {
        now += Duration::from_millis(10);
        cluster.handle_timeout(now);
        let dialled = std::iter::from_fn(|| cluster.poll_output())
            .any(|output| matches!(output, Output::Dial { .. }));
        if dialled {
            link += 1;
            let origin = Origin::Dialled(address("m"));
            cluster.handle_connected(now, LinkId(link), origin, credentials("m"));
            let above = cluster.node().generation.number + 1;
            let hello = Hello {
                node: NodeId {
                    name: NodeName::try_new("m").unwrap(),
                    generation: Generation::default(),
                },
                nonce: 2,
                address: address("m"),
                joined: true,
                highest_of_yours: Some(Generation {
                    number: above,
                    random: 0,
                }),
                ..cluster.hello().clone()
            };
            let frame = ControlMessage::Hello(hello).encode();
            cluster.handle_frame(now, LinkId(link), &frame);
        }
        while let Some(event) = cluster.poll_event() {
            if matches!(event, ClusterEvent::Renewed { .. }) {
                renewed.push(now);
            }
        }
    }
    renewed
}

#[test]
fn a_node_takes_new_generations_ever_more_rarely_whatever_it_is_told() {
    let renewed = renewals(RuleSet::default());
    // At 0, 1, 3, 7, 15 and 31 seconds.
    assert!((2..=6).contains(&renewed.len()), "{renewed:?}");
    for (before, after) in renewed.iter().zip(&renewed[1..]) {
        assert!(after.since(*before) >= SECOND, "{renewed:?}");
    }
    let unpaced = renewals(RuleSet::without(&[Rule::PacedRenewals]));
    assert!(unpaced.len() > 20, "{}", unpaced.len());
}
