use serde_json::json;

use super::*;

/// A cluster of a, b and c, seen by a, in which nothing is wrong.
fn well() -> Facts {
    let names = ["a", "b", "c"];
    let node = |name: &str| {
        json!({
            "name": name, "version": "1.0.0", "ready": true, "registry_hash": "0f", "behind": [],
            "certificate_ends_in_s": 300 * DAY_S,
        })
    };
    let members = || -> Vec<Value> {
        let member = |name: &&str| json!({ "name": name, "state": "up", "linked": true });
        names.iter().map(member).collect()
    };
    Facts {
        nodes: names
            .iter()
            .map(|name| ((*name).to_owned(), Ok(node(name))))
            .collect(),
        seen: names
            .iter()
            .map(|name| ((*name).to_owned(), members()))
            .collect(),
        away: Vec::new(),
        types: vec![Type {
            name: "chat".to_owned(),
            online: 2,
            others: Vec::new(),
        }],
        own: "a".to_owned(),
    }
}

fn other(name: &str, state: ServiceState, seconds: u64, why: &str) -> Other {
    Other {
        name: name.to_owned(),
        state,
        since: Some(Duration::from_secs(seconds)),
        why: Some(why.to_owned()),
    }
}

/// What is said where one thing was made wrong in a cluster that was well.
fn says(spoil: impl FnOnce(&mut Facts)) -> String {
    let mut facts = well();
    spoil(&mut facts);
    let troubles = judge(&facts);
    assert!(troubles.iter().all(|trouble| !trouble.todo.is_empty()));
    sentence(&troubles, facts.nodes.len())
}

#[test]
fn where_nothing_is_wrong_nothing_is_said_to_be() {
    assert_eq!(says(|_| {}), "All is well: 3 nodes agree.");
    // Whoever said goodbye is no trouble.
    let left = |facts: &mut Facts| {
        facts.away.push(Away {
            name: "d".to_owned(),
            state: "left",
            since: None,
            why: None,
        });
    };
    assert_eq!(says(left), "All is well: 3 nodes agree.");
}

#[test]
fn each_trouble_has_a_sentence_of_its_own() {
    let away = |state| {
        says(move |facts| {
            facts.nodes.remove("c");
            facts.seen.remove("c");
            facts.away.push(Away {
                name: "c".to_owned(),
                state,
                since: Some(Duration::from_secs(41)),
                why: Some("it does not answer".to_owned()),
            });
        })
    };
    assert_eq!(away("down"), "c is down for 41 s: it does not answer.");
    assert!(away("suspected").starts_with("c is suspected for 41 s"));
    let one_way = says(|facts| facts.seen.get_mut("b").unwrap()[2]["state"] = json!("down"));
    assert_eq!(
        one_way,
        "b does not reach c, others do. c has b for up: the way is cut in one direction."
    );
    let no_link = says(|facts| {
        facts.seen.get_mut("b").unwrap()[2]["linked"] = json!(false);
        facts.seen.get_mut("c").unwrap()[1]["linked"] = json!(false);
    });
    assert!(
        no_link.starts_with("c does not reach b, others do."),
        "{no_link}"
    );
    let behind = says(|facts| {
        facts.nodes.get_mut("c").unwrap().as_mut().unwrap()["behind"] =
            json!([{ "node": "a", "by": 112 }]);
    });
    assert_eq!(behind, "c is 112 versions behind a.");
    let check = says(|facts| {
        facts.types[0].others.push(other(
            "chat-2",
            ServiceState::Offline,
            361,
            "http 503 \u{d7}3",
        ));
    });
    assert_eq!(
        check,
        "chat has 2 of 3 instances online: chat-2 is offline for 6 min: http 503 \u{d7}3."
    );
    let nobody = says(|facts| {
        facts.types[0].online = 0;
        facts.types[0].others = (0..5)
            .map(|at| other(&format!("chat-{at}"), ServiceState::Offline, 7_200, "gone"))
            .collect();
    });
    assert_eq!(
        nobody,
        "Nobody serves chat: chat-0 is offline for 2 h: gone, chat-1 is offline for 2 h: gone, \
         chat-2 is offline for 2 h: gone, and 2 more."
    );
    let certificate = says(|facts| {
        facts.nodes.get_mut("b").unwrap().as_mut().unwrap()["certificate_ends_in_s"] =
            json!(3 * DAY_S);
    });
    assert_eq!(certificate, "The certificate of b ends in 3 days.");
    let versions = says(|facts| {
        facts.nodes.get_mut("b").unwrap().as_mut().unwrap()["version"] = json!("1.1.0");
    });
    assert_eq!(
        versions,
        "Nodes run different versions: 1.0.0 on a and c, 1.1.0 on b."
    );
    let draining = says(|facts| {
        facts.types[0]
            .others
            .push(other("chat-1", ServiceState::Draining, 5, "deploy 1.5"));
    });
    assert_eq!(draining, "Of chat, chat-1 is draining for 5 s: deploy 1.5.");
    let differ = says(|facts| {
        facts.nodes.get_mut("b").unwrap().as_mut().unwrap()["registry_hash"] = json!("ff");
    });
    assert_eq!(differ, "2 of 3 nodes agree: b lists other entries than a.");
    assert_eq!(
        says(|facts| {
            let why = "not sent: no connection".to_owned();
            facts.nodes.insert("b".to_owned(), Err(why));
        }),
        "b is up, and does not answer a: not sent: no connection."
    );
}

#[test]
fn of_many_troubles_the_sentence_says_the_worst_and_how_many_there_are() {
    let said = says(|facts| {
        facts.types[0].online = 0;
        let told = |facts: &mut Facts, name: &str, key: &str, value: Value| {
            facts.nodes.get_mut(name).unwrap().as_mut().unwrap()[key] = value;
        };
        told(facts, "b", "certificate_ends_in_s", json!(0));
        told(facts, "c", "ready", json!(false));
    });
    assert_eq!(
        said,
        "Nobody serves chat: nobody is registered. 2 more things are wrong."
    );
}
