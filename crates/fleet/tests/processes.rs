//! Three nodes as real processes over TLS, which are frozen, killed and started again.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use keydispatch::{MemberChange, Node, ServiceHandle, ServiceId, StartError};
use keydispatch_fleet::{
    Certificates, Child, Error, Happened, Request, Response, TestNodes, describe, eventually,
    test_node,
};

const NAMES: [&str; 3] = ["a", "b", "c"];

/// A pause that a node survives in the eyes of the others.
const SHORT_PAUSE: Duration = Duration::from_secs(1);

/// Three processes with a counter each, and a node in this process that tells them what to do.
struct Trio {
    teller: Node,
    test_nodes: ServiceHandle<TestNodes>,
    processes: Vec<Child>,
    certificates: Certificates,
}

impl Trio {
    async fn start() -> Trio {
        let certificates = Certificates::make(&["teller", "a", "b", "c", "d"]).unwrap();
        let teller = describe("teller", "127.0.0.1:0", &[], certificates.path())
            .start()
            .await
            .unwrap();
        let mut trio = Trio {
            test_nodes: teller.services(),
            teller,
            processes: Vec::new(),
            certificates,
        };
        for name in NAMES {
            trio.add(name, Duration::ZERO).await;
        }
        for name in NAMES {
            trio.lists(name, &NAMES).await;
        }
        trio
    }

    /// Starts a process and a counter in it.
    async fn add(&mut self, name: &str, clock_behind: Duration) -> ServiceId {
        let process = self.spawn(name, clock_behind).await.unwrap();
        self.processes.push(process);
        self.counter(name).await
    }

    async fn spawn(&self, name: &str, clock_behind: Duration) -> Result<Child, Error> {
        let program = Path::new(env!("CARGO_BIN_EXE_keydispatch-fleet"));
        let seeds = [self.teller.address().to_string()];
        let certificates = self.certificates.path();
        test_node::start_behind(
            program,
            name,
            "127.0.0.1:0",
            &seeds,
            certificates,
            clock_behind,
        )
        .await
    }

    /// Starts a counter on that node, once the teller sees its test node.
    async fn counter(&self, name: &str) -> ServiceId {
        match self.tell(name, Request::ServeCounter).await {
            Response::Added(id) => id,
            other => panic!("{other:?}"),
        }
    }

    fn process(&self, name: &str) -> &Child {
        let found = self.processes.iter().find(|process| process.name() == name);
        found.unwrap()
    }

    async fn kill(&mut self, name: &str) {
        let at = self
            .processes
            .iter()
            .position(|process| process.name() == name)
            .unwrap();
        self.processes.remove(at).kill().await.unwrap();
    }

    async fn tell(&self, name: &str, request: Request) -> Response {
        eventually("the test node is there", async || {
            test_node::ask(&self.test_nodes, name, request.clone())
                .await
                .map_err(|error| error.to_string())
        })
        .await
    }

    /// The counters that a node lists.
    async fn counters(&self, name: &str) -> Vec<ServiceId> {
        match self
            .tell(name, Request::Services("counter".to_owned()))
            .await
        {
            Response::Listed(listed) => listed.into_iter().map(|listed| listed.id).collect(),
            other => panic!("{other:?}"),
        }
    }

    /// Waits until a node lists exactly one counter of each of those nodes.
    async fn lists(&self, name: &str, expected: &[&str]) -> Vec<ServiceId> {
        let what = format!("{name} lists the counters of {expected:?}");
        eventually(&what, async || {
            let counters = self.counters(name).await;
            let mut nodes: Vec<&str> = counters.iter().map(|id| id.node.as_str()).collect();
            nodes.sort_unstable();
            if nodes == expected {
                Ok(counters)
            } else {
                Err(format!("{nodes:?}"))
            }
        })
        .await
    }

    async fn watch(&self, name: &str) {
        self.tell(name, Request::Watch("counter".to_owned())).await;
    }

    /// What somebody who follows its counters has seen; a moment later than what is listed says.
    async fn seen_some(&self, name: &str) -> Vec<Happened> {
        eventually("something was seen", async || {
            let seen = self.seen(name).await;
            if seen.is_empty() {
                Err("nothing".to_owned())
            } else {
                Ok(seen)
            }
        })
        .await
    }

    async fn seen(&self, name: &str) -> Vec<Happened> {
        match self.tell(name, Request::Seen("counter".to_owned())).await {
            Response::Seen(seen) => seen,
            other => panic!("{other:?}"),
        }
    }

    /// The owners of many keys, as a node sees them.
    async fn owners(&self, name: &str) -> Vec<String> {
        let request = Request::Owners {
            service_type: "counter".to_owned(),
            keys: (0..500).map(|number| format!("key {number}")).collect(),
        };
        match self.tell(name, request).await {
            Response::Names(names) => names,
            other => panic!("{other:?}"),
        }
    }

    async fn states(&self, name: &str) -> Vec<String> {
        match self.tell(name, Request::States).await {
            Response::Names(states) => states,
            other => panic!("{other:?}"),
        }
    }

    /// Waits until a node knows that of another.
    async fn knows(&self, name: &str, state: &str) {
        eventually(state, async || {
            let states = self.states(name).await;
            if states.iter().any(|other| other == state) {
                Ok(())
            } else {
                Err(format!("{name} knows {states:?}"))
            }
        })
        .await;
    }

    /// A restart of `b` under its name, after which everybody answers for every key as before.
    async fn restart_b(&mut self, clock_behind: Duration) {
        let before = self.owners("a").await;
        let distinct: BTreeSet<&String> = before.iter().collect();
        assert_eq!(distinct.len(), 3, "every counter has keys: {distinct:?}");
        let first = self.counters("b").await;
        self.kill("b").await;
        let second = self.add("b", clock_behind).await;
        assert!(!first.contains(&second), "no service id is used twice");
        for name in NAMES {
            let counters = self.lists(name, &NAMES).await;
            assert!(counters.contains(&second), "{name} lists {counters:?}");
            assert_eq!(self.owners(name).await, before, "as {name} sees it");
        }
    }
}

#[tokio::test]
async fn three_nodes_see_each_others_services() {
    let trio = Trio::start().await;
    let a = trio.counters("a").await;
    assert_eq!(a, trio.counters("b").await);
    assert_eq!(a, trio.counters("c").await);
    assert_eq!(trio.owners("a").await, trio.owners("b").await);
    assert_eq!(trio.owners("a").await, trio.owners("c").await);
}

#[tokio::test]
async fn sigkill_removes_exactly_the_services_of_the_dead_node() {
    let mut trio = Trio::start().await;
    let before = trio.owners("a").await;
    for name in ["a", "b"] {
        trio.watch(name).await;
    }
    trio.kill("c").await;
    for name in ["a", "b"] {
        trio.lists(name, &["a", "b"]).await;
        let seen = trio.seen_some(name).await;
        assert!(
            matches!(&seen[..], [Happened::Left(left)] if left.id.node.as_str() == "c"),
            "{name} saw {seen:?}"
        );
        let moved = trio.owners(name).await.into_iter().zip(&before);
        for (after, before) in moved {
            assert!(
                after == *before || before.starts_with("c/"),
                "{before} -> {after}"
            );
        }
    }
}

#[tokio::test]
async fn a_process_that_stands_still_for_a_second_loses_nothing() {
    let trio = Trio::start().await;
    for name in ["a", "b"] {
        trio.watch(name).await;
    }
    trio.process("c").freeze().unwrap();
    // The pause itself is what is tested.
    tokio::time::sleep(SHORT_PAUSE).await;
    trio.process("c").thaw().unwrap();
    let second = trio.counter("c").await;
    for name in ["a", "b"] {
        trio.lists(name, &["a", "b", "c", "c"]).await;
        let seen = trio.seen_some(name).await;
        assert!(
            matches!(&seen[..], [Happened::Joined(joined)] if joined.id == second),
            "{name} saw {seen:?}"
        );
        // It may have been suspected, which it refutes once it hears of that.
        trio.knows(name, "c Up").await;
    }
}

#[tokio::test]
async fn a_process_that_stands_still_for_longer_is_removed_and_comes_back_as_it_was() {
    let trio = Trio::start().await;
    let before = trio.counters("a").await;
    let owners = trio.owners("a").await;
    trio.process("c").freeze().unwrap();
    for name in ["a", "b"] {
        trio.lists(name, &["a", "b"]).await;
    }
    trio.process("c").thaw().unwrap();
    for name in NAMES {
        assert_eq!(trio.lists(name, &NAMES).await, before, "as {name} sees it");
        assert_eq!(trio.owners(name).await, owners, "as {name} sees it");
    }
}

#[tokio::test]
async fn leaving_removes_at_once_and_for_good() {
    let trio = Trio::start().await;
    let mut changes = trio.teller.subscribe_members();
    trio.tell("c", Request::Leave).await;
    // It says goodbye, though what others make of its silence may overtake that.
    loop {
        match changes.next().await {
            Some(MemberChange::Down { node }) => assert_eq!(node.name.as_str(), "c"),
            Some(MemberChange::Left { node }) => {
                assert_eq!(node.name.as_str(), "c");
                break;
            }
            other => panic!("{other:?}"),
        }
    }
    for name in ["a", "b"] {
        trio.lists(name, &["a", "b"]).await;
        trio.knows(name, "c Left").await;
    }
}

#[tokio::test]
async fn a_restart_under_the_same_name_takes_its_keys_back() {
    let mut trio = Trio::start().await;
    trio.restart_b(Duration::ZERO).await;
}

#[tokio::test]
async fn a_restart_with_the_clock_set_back_takes_its_keys_back() {
    let mut trio = Trio::start().await;
    trio.restart_b(Duration::from_secs(24 * 3600)).await;
    // And once more: the life before this one was ahead of its clock, too.
    trio.restart_b(Duration::from_secs(48 * 3600)).await;
}

#[tokio::test]
async fn a_second_living_node_of_the_same_name_is_refused() {
    let trio = Trio::start().await;
    let before = trio.counters("a").await;
    let seeds = [trio.process("a").address().to_owned()];
    let twin = describe("b", "127.0.0.1:0", &seeds, trio.certificates.path());
    let error = twin.start().await.unwrap_err();
    assert!(
        matches!(&error, StartError::NameTaken { name, .. } if name.as_str() == "b"),
        "{error:?}"
    );
    assert!(error.to_string().contains("choose another name"), "{error}");
    // Also where its clock is behind, and as a process of its own.
    let late = trio.spawn("b", Duration::from_secs(3600)).await;
    assert!(late.is_err());
    for name in NAMES {
        assert_eq!(trio.lists(name, &NAMES).await, before, "as {name} sees it");
    }
}

#[tokio::test]
async fn two_hundred_joins_and_deaths_leave_no_stale_entry() {
    const LIVES: usize = 200;
    let mut trio = Trio::start().await;
    let mut ids = BTreeSet::new();
    for life in 0..LIVES {
        ids.insert(trio.add("d", Duration::ZERO).await);
        trio.kill("d").await;
        // Every tenth life begins while the one before is still taken for alive.
        if life % 10 != 0 {
            eventually("the death is known", async || {
                let members = trio.teller.members();
                match members
                    .iter()
                    .find(|m| m.name().as_str() == "d" && m.is_up())
                {
                    Some(d) => Err(format!("{d:?}")),
                    None => Ok(()),
                }
            })
            .await;
        }
    }
    assert_eq!(ids.len(), LIVES, "no service id is used twice");
    for name in NAMES {
        trio.lists(name, &NAMES).await;
        let states = trio.states(name).await;
        let of_d = states
            .iter()
            .filter(|state| state.starts_with("d "))
            .count();
        assert!(of_d <= 1, "{name} knows {states:?}");
        // The two others, the teller, and at most the last life of the dead.
        let kept = trio.tell(name, Request::OwnersKept).await;
        assert!(
            matches!(kept, Response::Number(3..=4)),
            "{name} keeps {kept:?}"
        );
    }
}
