//! What a refusal can do, and cannot.

use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn credentials(name: &str) -> Credentials {
    Credentials::Certificate {
        cluster: ClusterName::try_new("test").unwrap(),
        nodes: crate::admission::NodeNames::Exact(vec![NodeName::try_new(name).unwrap()]),
    }
}

fn alone(joined: bool) -> Links {
    let hello = hello(node("a", 5), 1, 0);
    let mut links = Links::new(hello, DOWN, vec![address(1)], Instant::ZERO, 1);
    if joined {
        links.set_joined();
    }
    links
}

/// What is known of names, with or without the rule.
struct Rule {
    known: Known,
    off: bool,
}

impl KnownNames for Rule {
    fn up(&self, name: &NodeName) -> Option<NodeId> {
        self.known.up(name)
    }

    fn highest(&self, name: &NodeName) -> Option<Generation> {
        self.known.highest(name)
    }

    fn is_left(&self, node: &NodeId) -> bool {
        self.known.is_left(node)
    }

    fn is_plausible(&self, _: Instant, generation: Generation) -> bool {
        generation.number < 1_000
    }

    fn heeds_refusals(&self) -> bool {
        self.off
    }
}

/// Dials the first address that is due, which the peer of that name answers with these; returns what came of it.
fn answered(
    links: &mut Links,
    now: Instant,
    link: u64,
    by: &str,
    answers: &[ControlMessage],
    off: bool,
) -> Vec<LinkEvent> {
    let names = Rule {
        known: Known::default(),
        off,
    };
    links.handle_timeout(now, &names);
    let dialled = std::iter::from_fn(|| links.poll_output()).find_map(|output| match output {
        Output::Dial { address } => Some(address),
        _ => None,
    });
    let dialled = dialled.unwrap_or_else(|| address(1));
    let link = LinkId(link);
    links.handle_connected(now, link, Origin::Dialled(dialled), credentials(by));
    for answer in answers {
        links.handle_frame(now, link, &answer.encode(), &names);
    }
    std::iter::from_fn(|| links.poll_event()).collect()
}

fn taken(name: &str) -> ControlMessage {
    let name = NodeName::try_new(name).unwrap();
    ControlMessage::Refuse(Refusal::NameTaken { name })
}

fn ends(events: &[LinkEvent]) -> bool {
    events
        .iter()
        .any(|event| matches!(event, LinkEvent::NameTaken { .. }))
}

#[test]
fn no_refusal_ends_a_node_whatever_it_says_and_whenever() {
    let greeting = ControlMessage::Hello(hello(node("m", 1), 2, 1));
    for joined in [false, true] {
        for name in ["a", "m", "whatever"] {
            let mut links = alone(joined);
            let events = answered(&mut links, Instant::ZERO, 1, "m", &[taken(name)], false);
            assert!(!ends(&events), "{events:?}");
            let mut links = alone(joined);
            let answers = [greeting.clone(), taken(name)];
            let events = answered(&mut links, Instant::ZERO, 1, "m", &answers, false);
            assert!(!ends(&events), "{events:?}");
        }
    }
    let mut links = alone(true);
    let events = answered(
        &mut links,
        Instant::ZERO,
        1,
        "m",
        &[taken("whatever")],
        true,
    );
    assert!(ends(&events), "the rule has no effect");
}

#[test]
fn who_is_said_to_have_the_name_is_asked_and_has_to_prove_it() {
    let held = ControlMessage::Refuse(Refusal::NameHeld {
        name: NodeName::try_new("a").unwrap(),
        address: address(7),
    });
    let mut twin = hello(node("a", 4), 9, 7);
    twin.joined = true;
    let twin = ControlMessage::Hello(twin);
    for (proven, ended) in [("a", true), ("m", false)] {
        let mut links = alone(false);
        let events = answered(
            &mut links,
            Instant::ZERO,
            1,
            "m",
            std::slice::from_ref(&held),
            false,
        );
        assert!(!ends(&events));
        let now = Instant::ZERO + SECOND;
        let names = Known::default();
        links.handle_timeout(now, &names);
        let dialled: Vec<Output> = std::iter::from_fn(|| links.poll_output()).collect();
        let at = address(7);
        assert!(
            dialled.contains(&Output::Dial {
                address: at.clone()
            }),
            "{dialled:?}"
        );
        links.handle_connected(now, LinkId(2), Origin::Dialled(at), credentials(proven));
        links.handle_frame(now, LinkId(2), &twin.encode(), &names);
        let events: Vec<LinkEvent> = std::iter::from_fn(|| links.poll_event()).collect();
        assert_eq!(ends(&events), ended, "{events:?}");
    }
}

#[test]
fn a_generation_that_cannot_be_is_neither_taken_nor_told_on() {
    let mut greeting = hello(node("m", 1), 2, 1);
    greeting.highest_of_yours = Some(node("a", u64::MAX).generation);
    let mut links = alone(false);
    let greeting = ControlMessage::Hello(greeting);
    let events = answered(&mut links, Instant::ZERO, 1, "m", &[greeting], false);
    let is_ready = |event: &LinkEvent| matches!(event, LinkEvent::Ready { .. });
    assert!(events.iter().any(is_ready), "{events:?}");
    let is_told = |event: &LinkEvent| matches!(event, LinkEvent::Implausible { .. });
    assert!(events.iter().any(is_told), "{events:?}");

    let greeting = ControlMessage::Hello(hello(node("m", u64::MAX), 2, 1));
    let mut links = alone(false);
    let events = answered(&mut links, Instant::ZERO, 1, "m", &[greeting], false);
    assert!(!events.iter().any(is_ready), "{events:?}");
    assert!(events.iter().any(is_told), "{events:?}");
}

#[test]
fn a_rival_in_whose_place_somebody_else_answers_was_a_ghost_and_the_next_is_looked_for() {
    let mut links = alone(true);
    let now = Instant::ZERO;
    for number in [8, 9] {
        let rival = node("a", number).generation;
        links.question_rival(now, rival, &address(7));
        let link = LinkId(number);
        links.handle_connected(now, link, Origin::Dialled(address(7)), credentials("m"));
        let frame = ControlMessage::Hello(hello(node("m", 1), 2, 7)).encode();
        links.handle_frame(now, link, &frame, &Known::default());
        let is_ghost = |event: &LinkEvent| matches!(event, LinkEvent::Ghost { generation } if *generation == rival);
        let events: Vec<LinkEvent> = std::iter::from_fn(|| links.poll_event()).collect();
        assert!(events.iter().any(is_ghost), "{events:?}");
    }
}
