//! What the Elixir library does, each both in memory and between two processes over TLS.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeSet;
use std::path::Path;

use keydispatch::testkit::MemoryNetwork;
use keydispatch::{
    CallError, NewService, Node, RegistryError, ServiceEvent, ServiceHandle, ServiceState,
};
use keydispatch_fleet::{
    Certificates, Child, Counter, CounterCall, Counters, Happened, Listed, Request, Response,
    TestNode, TestNodes, describe, eventually, test_node,
};

/// A node in this process, and a test node on another node.
struct Setup {
    near: Node,
    test_nodes: ServiceHandle<TestNodes>,
    _far_node: Option<Node>,
    _far_process: Option<(Child, Certificates)>,
}

impl Setup {
    async fn in_memory() -> Setup {
        let network = MemoryNetwork::new();
        let far = Node::builder("far")
            .memory(&network)
            .bind("far:1")
            .start()
            .await
            .unwrap();
        TestNode::serve(&far).await.unwrap();
        let near = Node::builder("near")
            .memory(&network)
            .bind("near:1")
            .seeds(["far:1"])
            .start()
            .await
            .unwrap();
        Setup {
            test_nodes: near.services(),
            near,
            _far_node: Some(far),
            _far_process: None,
        }
    }

    async fn between_processes() -> Setup {
        let certificates = Certificates::make(&["near", "far"]).unwrap();
        let program = Path::new(env!("CARGO_BIN_EXE_keydispatch-fleet"));
        let far = test_node::start(program, "far", "127.0.0.1:0", &[], certificates.path())
            .await
            .unwrap();
        let seeds = [far.address().to_owned()];
        let near = describe("near", "127.0.0.1:0", &seeds, certificates.path())
            .start()
            .await
            .unwrap();
        Setup {
            test_nodes: near.services(),
            near,
            _far_node: None,
            _far_process: Some((far, certificates)),
        }
    }

    /// Tells the far node.
    async fn tell(&self, request: Request) -> Response {
        test_node::ask(&self.test_nodes, "far", request)
            .await
            .unwrap()
    }

    async fn far_endpoint(&self, service_type: &str, address: &str) -> keydispatch::ServiceId {
        let request = Request::AddEndpoint {
            service_type: service_type.to_owned(),
            address: address.to_owned(),
        };
        match self.tell(request).await {
            Response::Added(id) => id,
            other => panic!("{other:?}"),
        }
    }

    async fn far_counter(&self) -> keydispatch::ServiceId {
        match self.tell(Request::ServeCounter).await {
            Response::Added(id) => id,
            other => panic!("{other:?}"),
        }
    }

    async fn far_lists(&self, service_type: &str) -> Vec<Listed> {
        match self.tell(Request::Services(service_type.to_owned())).await {
            Response::Listed(listed) => listed,
            other => panic!("{other:?}"),
        }
    }

    /// Waits until the near node lists so many services of a type.
    async fn near_lists(&self, service_type: &str, count: usize) -> Vec<Listed> {
        eventually("the near node lists the services", async || {
            let listed: Vec<Listed> = self
                .near
                .registry()
                .services(service_type)
                .iter()
                .map(|info| Listed::from(&**info))
                .collect();
            if listed.len() == count {
                Ok(listed)
            } else {
                Err(format!("{listed:?}"))
            }
        })
        .await
    }
}

macro_rules! behaviours {
    ($($name:ident),* $(,)?) => {
        mod in_memory {
            $(#[tokio::test]
            async fn $name() {
                super::$name(super::Setup::in_memory().await).await;
            })*
        }

        mod between_processes_over_tls {
            $(#[tokio::test]
            async fn $name() {
                super::$name(super::Setup::between_processes().await).await;
            })*
        }
    };
}

behaviours! {
    an_empty_registry_lists_nothing,
    services_of_another_type_do_not_show,
    a_join_is_announced_with_state_online,
    two_types_resolve_to_their_own_services,
    removal_announces_a_leave_and_lookups_then_fail,
    disable_announces_the_change_and_keeps_the_entry_listed_but_not_found,
    enable_brings_a_service_back,
    several_services_are_all_listed,
    only_online_services_are_in_online_services,
    a_structured_key_resolves,
    a_cast_reaches_the_handler,
    a_call_returns_its_reply,
    multi_cast_reaches_exactly_n_distinct_instances,
    multi_call_returns_n_results_beside_their_instances,
    asking_for_more_than_there_are_gives_all,
    nothing_online_gives_the_unavailable_error,
    a_service_that_ends_disappears,
    a_service_that_panics_disappears,
    adding_the_same_service_twice_is_an_error,
    changing_a_service_that_is_not_there_is_an_error,
    references_change_with_every_change_and_name_the_one_before,
}

async fn an_empty_registry_lists_nothing(setup: Setup) {
    assert!(setup.near.registry().services("uploader").is_empty());
    assert!(setup.far_lists("uploader").await.is_empty());
}

async fn services_of_another_type_do_not_show(setup: Setup) {
    setup.far_endpoint("downloader", "host:1").await;
    setup.near_lists("downloader", 1).await;
    assert!(setup.near.registry().services("uploader").is_empty());
}

async fn a_join_is_announced_with_state_online(setup: Setup) {
    let mut events = setup.near.registry().subscribe("uploader").unwrap();
    assert!(matches!(
        events.next().await,
        Some(ServiceEvent::Current(view)) if view.services().is_empty()
    ));
    let id = setup.far_endpoint("uploader", "host:1").await;
    match events.next().await {
        Some(ServiceEvent::Joined(info)) => {
            assert_eq!(info.id(), &id);
            assert_eq!(info.state(), ServiceState::Online);
            assert_eq!(info.previous(), None);
        }
        other => panic!("{other:?}"),
    }
}

async fn two_types_resolve_to_their_own_services(setup: Setup) {
    let up = setup.far_endpoint("uploader", "host:1").await;
    let down = setup.far_endpoint("downloader", "host:2").await;
    setup.near_lists("uploader", 1).await;
    setup.near_lists("downloader", 1).await;
    let registry = setup.near.registry();
    assert_eq!(registry.find_service("uploader", "key").unwrap().id(), &up);
    assert_eq!(
        registry.find_service("downloader", "key").unwrap().id(),
        &down
    );
}

async fn removal_announces_a_leave_and_lookups_then_fail(setup: Setup) {
    let id = setup.far_endpoint("uploader", "host:1").await;
    setup.near_lists("uploader", 1).await;
    let mut events = setup.near.registry().subscribe("uploader").unwrap();
    assert!(matches!(
        events.next().await,
        Some(ServiceEvent::Current(_))
    ));
    assert_eq!(
        setup.tell(Request::Remove(id.clone())).await,
        Response::Done
    );
    match events.next().await {
        Some(ServiceEvent::Left(info)) => assert_eq!(info.id(), &id),
        other => panic!("{other:?}"),
    }
    let error = setup
        .near
        .registry()
        .find_service("uploader", "key")
        .unwrap_err();
    assert!(error.to_string().contains("no service for key"), "{error}");
}

async fn disable_announces_the_change_and_keeps_the_entry_listed_but_not_found(setup: Setup) {
    let id = setup.far_endpoint("uploader", "host:1").await;
    setup.near_lists("uploader", 1).await;
    let mut events = setup.near.registry().subscribe("uploader").unwrap();
    assert!(matches!(
        events.next().await,
        Some(ServiceEvent::Current(_))
    ));
    setup.tell(Request::Disable(id.clone())).await;
    match events.next().await {
        Some(ServiceEvent::Updated { before, after }) => {
            assert_eq!(before.state(), ServiceState::Online);
            assert_eq!(after.state(), ServiceState::Offline);
            assert_eq!(after.id(), &id);
        }
        other => panic!("{other:?}"),
    }
    let registry = setup.near.registry();
    assert_eq!(registry.services("uploader").len(), 1);
    assert!(registry.find_service("uploader", "key").is_err());
}

async fn enable_brings_a_service_back(setup: Setup) {
    let id = setup.far_endpoint("uploader", "host:1").await;
    setup.near_lists("uploader", 1).await;
    setup.tell(Request::Disable(id.clone())).await;
    eventually("it is not found", async || {
        match setup.near.registry().find_service("uploader", "key") {
            Ok(info) => Err(format!("{info:?}")),
            Err(_) => Ok(()),
        }
    })
    .await;
    setup.tell(Request::Enable(id.clone())).await;
    let found = eventually("it is found again", async || {
        setup
            .near
            .registry()
            .find_service("uploader", "key")
            .map_err(|error| error.to_string())
    })
    .await;
    assert_eq!(found.id(), &id);
}

async fn several_services_are_all_listed(setup: Setup) {
    let near = setup
        .near
        .registry()
        .add_service(NewService::endpoint("uploader", "host:0"))
        .await
        .unwrap();
    let mut expected = BTreeSet::from([near.id().clone()]);
    for number in 1..4 {
        let address = format!("host:{number}");
        expected.insert(setup.far_endpoint("uploader", &address).await);
    }
    let listed = setup.near_lists("uploader", 4).await;
    let listed: BTreeSet<_> = listed.into_iter().map(|listed| listed.id).collect();
    assert_eq!(listed, expected);
    eventually("the far node lists the same", async || {
        let far = setup.far_lists("uploader").await;
        let ids: BTreeSet<_> = far.iter().map(|listed| listed.id.clone()).collect();
        if ids == expected {
            Ok(())
        } else {
            Err(format!("{far:?}"))
        }
    })
    .await;
}

async fn only_online_services_are_in_online_services(setup: Setup) {
    let on = setup.far_endpoint("uploader", "host:1").await;
    let off = setup.far_endpoint("uploader", "host:2").await;
    setup.near_lists("uploader", 2).await;
    setup.tell(Request::Disable(off)).await;
    let online = eventually("one is online", async || {
        let online = setup.near.registry().online_services("uploader");
        if online.len() == 1 {
            Ok(online)
        } else {
            Err(format!("{online:?}"))
        }
    })
    .await;
    assert_eq!(online[0].id(), &on);
    assert_eq!(setup.near.registry().services("uploader").len(), 2);
}

async fn a_structured_key_resolves(setup: Setup) {
    for number in 0..4 {
        setup
            .far_endpoint("uploader", &format!("host:{number}"))
            .await;
    }
    setup.near_lists("uploader", 4).await;
    let registry = setup.near.registry();
    let by_tuple = registry
        .find_service("uploader", ("tenant", 7_u64))
        .unwrap();
    let again = registry
        .find_service("uploader", (String::from("tenant"), 7_u64))
        .unwrap();
    assert_eq!(by_tuple.id(), again.id());
    let request = Request::Find {
        service_type: "uploader".to_owned(),
        key: "file.png".to_owned(),
    };
    let Response::Owner(Some(far)) = setup.tell(request).await else {
        panic!("the far node finds an owner");
    };
    let near = registry.find_service("uploader", "file.png").unwrap();
    assert_eq!(near.id(), &far.id);
}

async fn a_cast_reaches_the_handler(setup: Setup) {
    setup.far_counter().await;
    setup.near_lists("counter", 1).await;
    let counters = setup.near.services::<Counters>();
    counters.cast("key", 5).unwrap();
    eventually("the cast is counted", async || {
        match counters.call("key", CounterCall::Sum).await {
            Ok(5) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
}

async fn a_call_returns_its_reply(setup: Setup) {
    setup.far_counter().await;
    setup.near_lists("counter", 1).await;
    let counters = setup.near.services::<Counters>();
    assert_eq!(counters.call("key", CounterCall::Add(2)).await, Ok(2));
    assert_eq!(counters.call("key", CounterCall::Add(3)).await, Ok(5));
    let request = Request::Count {
        key: "key".to_owned(),
    };
    assert_eq!(setup.tell(request).await, Response::Number(6));
}

async fn multi_cast_reaches_exactly_n_distinct_instances(setup: Setup) {
    setup.near.serve(Counter::default()).await.unwrap();
    for _ in 0..3 {
        setup.far_counter().await;
    }
    setup.near_lists("counter", 4).await;
    let counters = setup.near.services::<Counters>();
    assert_eq!(counters.multi_cast("key", 3, 1), 3);
    eventually("three instances were told once", async || {
        let sums = counters.multi_call("key", 4, CounterCall::Sum).await;
        let mut sums: Vec<u64> = sums
            .into_iter()
            .map(|(_, sum)| sum.unwrap_or(u64::MAX))
            .collect();
        sums.sort_unstable();
        if sums == [0, 1, 1, 1] {
            Ok(())
        } else {
            Err(format!("{sums:?}"))
        }
    })
    .await;
}

async fn multi_call_returns_n_results_beside_their_instances(setup: Setup) {
    setup.near.serve(Counter::default()).await.unwrap();
    setup.far_counter().await;
    setup.far_counter().await;
    setup.near_lists("counter", 3).await;
    let counters = setup.near.services::<Counters>();
    let results = counters.multi_call("key", 2, CounterCall::Add(1)).await;
    let owners = setup
        .near
        .registry()
        .find_multi_service(2, "counter", "key");
    let asked: Vec<_> = results.iter().map(|(info, _)| info.id().clone()).collect();
    let expected: Vec<_> = owners.iter().map(|info| info.id().clone()).collect();
    assert_eq!(asked, expected);
    assert!(results.iter().all(|(_, sum)| *sum == Ok(1)));
}

async fn asking_for_more_than_there_are_gives_all(setup: Setup) {
    setup.far_counter().await;
    setup.far_counter().await;
    setup.near_lists("counter", 2).await;
    let counters = setup.near.services::<Counters>();
    let results = counters.multi_call("key", 10, CounterCall::Sum).await;
    let distinct: BTreeSet<_> = results.iter().map(|(info, _)| info.id().clone()).collect();
    assert_eq!((results.len(), distinct.len()), (2, 2));
    assert_eq!(counters.multi_cast("key", 10, 1), 2);
}

async fn nothing_online_gives_the_unavailable_error(setup: Setup) {
    let counters = setup.near.services::<Counters>();
    let error = counters.call("key", CounterCall::Sum).await.unwrap_err();
    assert!(matches!(error, CallError::NoService { .. }), "{error:?}");
    assert!(error.to_string().contains("no service for key"), "{error}");
    assert!(!error.may_have_run());
    assert!(counters.cast("key", 1).is_err());
    assert_eq!(counters.multi_cast("key", 2, 1), 0);
    assert!(
        counters
            .multi_call("key", 2, CounterCall::Sum)
            .await
            .is_empty()
    );
}

async fn a_service_that_ends_disappears(setup: Setup) {
    let id = setup.far_counter().await;
    setup.near_lists("counter", 1).await;
    setup.tell(Request::StopCounter(id)).await;
    setup.near_lists("counter", 0).await;
}

async fn a_service_that_panics_disappears(setup: Setup) {
    let id = setup.far_counter().await;
    let other = setup.far_counter().await;
    setup.near_lists("counter", 2).await;
    let Response::Failed(seen) = setup.tell(Request::PanicCounter(id)).await else {
        panic!("the caller of a service that panics gets an error");
    };
    assert!(seen.contains("stopped before it replied"), "{seen}");
    let left = setup.near_lists("counter", 1).await;
    assert_eq!(left[0].id, other);
}

async fn adding_the_same_service_twice_is_an_error(setup: Setup) {
    setup.far_endpoint("uploader", "host:1").await;
    let request = Request::AddEndpoint {
        service_type: "uploader".to_owned(),
        address: "host:1".to_owned(),
    };
    let Response::Failed(error) = setup.tell(request).await else {
        panic!("the second is refused");
    };
    assert!(error.contains("host:1"), "{error}");
    assert_eq!(setup.far_lists("uploader").await.len(), 1);
}

async fn changing_a_service_that_is_not_there_is_an_error(setup: Setup) {
    let id = setup.far_endpoint("uploader", "host:1").await;
    setup.near_lists("uploader", 1).await;
    let error = setup
        .near
        .registry()
        .disable_service(&id)
        .await
        .unwrap_err();
    assert!(matches!(error, RegistryError::NotOurs { .. }), "{error:?}");
    assert!(error.to_string().contains("far"), "{error}");
    setup.tell(Request::Remove(id.clone())).await;
    for request in [Request::Disable(id.clone()), Request::Remove(id)] {
        assert!(matches!(setup.tell(request).await, Response::Failed(_)));
    }
}

async fn references_change_with_every_change_and_name_the_one_before(setup: Setup) {
    setup.tell(Request::Watch("uploader".to_owned())).await;
    let id = setup.far_endpoint("uploader", "host:1").await;
    let joined = setup.near_lists("uploader", 1).await.remove(0);
    assert_eq!(joined.previous, None);
    let Response::Reference(disabled) = setup.tell(Request::Disable(id.clone())).await else {
        panic!("disable answers a reference");
    };
    assert!(disabled > joined.reference);
    let after = eventually("the change arrives", async || {
        let listed = setup.near_lists("uploader", 1).await.remove(0);
        if listed.reference == disabled {
            Ok(listed)
        } else {
            Err(format!("{listed:?}"))
        }
    })
    .await;
    assert_eq!(after.previous, Some(joined.reference));
    assert_eq!(after.id, id);
    let seen = eventually("the far node saw both", async || {
        match setup.tell(Request::Seen("uploader".to_owned())).await {
            Response::Seen(seen) if seen.len() == 2 => Ok(seen),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    assert!(matches!(&seen[0], Happened::Joined(listed) if *listed == joined));
    assert!(matches!(&seen[1], Happened::Updated(listed) if *listed == after));
}
