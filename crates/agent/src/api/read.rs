//! What is there, who owns a key and why, and whether all nodes agree.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use hyper::StatusCode;
use keydispatch::{Escaped, Spread, View};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::call::{Call, MAX_KEYS_BODY, ok};
use super::query::Query;
use crate::config::Period;
use crate::http::{self, Response};
use crate::key::ApiKey;
use crate::peer::{self, Ask};
use crate::problem::{Kind, Problem};
use crate::shapes;
use crate::troubles;

/// Keys that are looked up at once.
const MAX_KEYS: usize = 10_000;
/// Owners of one key that are asked for at once.
const MAX_OWNERS: usize = 1_000;
/// How long nodes have to become equal before they are said to differ: news takes milliseconds, and seconds after a loss.
const AGREE_WITHIN: Duration = Duration::from_secs(2);
/// How long they may be given at most.
const MAX_AGREE: Duration = Duration::from_secs(60);
/// Differences of one pair of nodes that are told.
const MAX_DIFFERENCES: usize = 100;

pub(super) async fn node(call: Call) -> Result<Response, Problem> {
    call.query.only(&["node"])?;
    let of = call
        .query
        .get("node")
        .unwrap_or(call.app.node.name().as_str());
    Ok(ok(&peer::ask(&call.app, of, Ask::Node, None).await?))
}

pub(super) async fn members(call: Call) -> Result<Response, Problem> {
    call.query.only(&["node"])?;
    let by = call
        .query
        .get("node")
        .unwrap_or(call.app.node.name().as_str());
    let mut value = peer::ask(&call.app, by, Ask::Members, None).await?;
    value["seen_by"] = json!(by);
    Ok(ok(&value))
}

/// What is wrong, worst first, as the page says it.
pub(super) async fn status(call: Call) -> Result<Response, Problem> {
    call.query.only(&[])?;
    let (summary, troubles) = troubles::now(&call.app).await;
    let listed: Vec<Value> = troubles
        .iter()
        .take(troubles::SHOWN)
        .map(|trouble| json!({ "what": trouble.what, "todo": trouble.todo }))
        .collect();
    Ok(ok(&json!({
        "well": troubles.is_empty(),
        "summary": summary,
        "troubles": listed,
        "more": troubles.len() - listed.len(),
    })))
}

pub(super) fn types(call: Call) -> Result<Response, Problem> {
    call.query.only(&["all"])?;
    let all = call.query.flag("all")?;
    let registry = call.app.node.registry();
    let types: Vec<Value> = registry
        .types()
        .iter()
        .filter(|service_type| all || !service_type.as_str().starts_with('_'))
        .filter_map(|service_type| {
            let view = registry.view(service_type.as_str())?;
            let (online, draining, offline) = shapes::counts(&view);
            Some(json!({
                "type": service_type.as_str(),
                "online": online,
                "draining": draining,
                "offline": offline,
                "index": super::watch::index(&call.app, view.version()).to_string(),
            }))
        })
        .collect();
    Ok(ok(&json!({ "types": types })))
}

fn view(call: &Call) -> Result<Arc<View>, Problem> {
    let service_type = call.part(0);
    call.app.node.registry().view(service_type).ok_or_else(|| {
        Problem::not_found(format!(
            "nothing is registered under the type {:?}",
            Escaped(service_type).to_string()
        ))
    })
}

fn spread(query: &Query) -> Result<Spread, Problem> {
    match query.get("spread") {
        None | Some("none") => Ok(Spread::None),
        Some("names") => Ok(Spread::Names),
        Some("nodes") => Ok(Spread::Nodes),
        Some("zones") => Ok(Spread::Zones),
        Some(_) => Err(Problem::bad("spread is none, names, nodes or zones")),
    }
}

pub(crate) fn nobody(service_type: &str) -> Problem {
    Problem::new(
        Kind::NoInstance,
        format!(
            "no instance of {:?} is online",
            Escaped(service_type).to_string()
        ),
    )
    .with("retry_after_ms", 1_000)
}

pub(super) fn owner(call: Call) -> Result<Response, Problem> {
    call.query.only_key_and(&["n", "spread"])?;
    let key = call.query.key()?;
    let n = call.query.number("n")?.unwrap_or(1).clamp(1, MAX_OWNERS);
    let spread = spread(&call.query)?;
    let view = view(&call)?;
    let owners: Vec<shapes::Owner<'_>> = view
        .owners_spread(key.key(), n, spread)
        .into_iter()
        .map(|info| shapes::Owner::of(info))
        .collect();
    let Some(first) = owners.first() else {
        return Err(nobody(call.part(0)));
    };
    http::serialized(&Found {
        service_type: call.part(0),
        key: key.shown(),
        owner: first,
        owners: &owners,
    })
}

/// Who owns a key, and who comes behind.
#[derive(Serialize)]
struct Found<'a> {
    #[serde(rename = "type")]
    service_type: &'a str,
    key: &'a Value,
    owner: &'a shapes::Owner<'a>,
    owners: &'a [shapes::Owner<'a>],
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Keys {
    keys: Vec<Value>,
}

pub(super) async fn owners(mut call: Call) -> Result<Response, Problem> {
    call.query.only(&[])?;
    let Keys { keys } = call.json(MAX_KEYS_BODY).await?;
    if keys.len() > MAX_KEYS {
        return Err(Problem::new(
            Kind::TooLarge,
            format!("at most {MAX_KEYS} keys at once"),
        ));
    }
    let view = view(&call)?;
    // Each owner once, and of each key its number: most of an answer would be the same owners again and again.
    let mut numbers: BTreeMap<usize, usize> = BTreeMap::new();
    let mut owners = Vec::new();
    let mut of_keys = Vec::with_capacity(keys.len());
    for key in &keys {
        let Some(owner) = view.owner(ApiKey::from_json(key)?.key()) else {
            return Err(nobody(call.part(0)));
        };
        let number = *numbers
            .entry(Arc::as_ptr(owner) as usize)
            .or_insert_with(|| {
                owners.push(shapes::owner(owner));
                owners.len() - 1
            });
        of_keys.push(number);
    }
    Ok(ok(
        &json!({ "type": call.part(0), "owners": owners, "of_keys": of_keys }),
    ))
}

pub(super) async fn explain(call: Call) -> Result<Response, Problem> {
    call.query.only_key_and(&["nodes"])?;
    let key = call.query.key()?;
    let everywhere = match call.query.get("nodes") {
        None => false,
        Some("all") => true,
        Some(_) => return Err(Problem::bad("nodes is all, or left out for this one")),
    };
    let view = view(&call)?;
    let why = view.explain(key.key());
    let order: Vec<Value> = why
        .order
        .iter()
        .map(|preferred| {
            let info = &preferred.service;
            json!({
                "rank": preferred.rank,
                "name": info.name().as_str(),
                "node": info.node().as_str(),
                "weight": info.weight().value(),
                "state": info.state().to_string(),
                "reason": info.tag(shapes::REASON),
                "since": shapes::since(info),
                "standby": preferred.standby,
                "would_own": preferred.rank.is_none() && preferred.would_rank == 1,
            })
        })
        .collect();
    let owner = view.owner(key.key()).map(|info| shapes::owner(info));
    let mut value = json!({
        "type": call.part(0),
        "key": {
            "value": key.shown(),
            "bytes": key.bytes(),
            "hash": format!("{:016x}", why.hash),
            "slot": why.slot.index(),
        },
        "owner": owner,
        "order": order,
        "moved": call.app.hub.last_move(&view, key.key()),
    });
    if everywhere {
        let question = Ask::Owner {
            service_type: call.part(0).to_owned(),
            key: key.canonical_hex(),
        };
        let own = owner.as_ref().map(|owner| owner["id"].clone());
        let mut agree = 0;
        let mut nodes = Vec::new();
        for (node, told) in peer::ask_all(&call.app, &question).await {
            nodes.push(match told {
                Ok(told) => {
                    let same = told["owner"].get("id").cloned() == own;
                    agree += usize::from(same);
                    json!({ "node": node, "owner": told["owner"], "agrees": same })
                }
                Err(problem) => json!({ "node": node, "error": problem.detail }),
            });
        }
        value["agree"] = json!(agree);
        value["asked"] = json!(nodes.len());
        value["nodes"] = json!(nodes);
        value["down"] = json!(
            call.app
                .node
                .members()
                .iter()
                .filter(|member| !member.is_up())
                .map(|member| member.name().as_str())
                .collect::<Vec<_>>()
        );
    }
    Ok(ok(&value))
}

pub(super) async fn verify(call: Call) -> Result<Response, Problem> {
    call.query.only(&["wait"])?;
    let wait = match call.query.get("wait") {
        Some(text) => text
            .parse::<Period>()
            .map_err(Problem::bad)?
            .0
            .min(MAX_AGREE),
        None => AGREE_WITHIN,
    };
    let until = tokio::time::Instant::now() + wait;
    let mut pause = Duration::from_millis(10);
    loop {
        let told = peer::ask_all(&call.app, &Ask::Digest).await;
        let hashes: BTreeMap<&String, Vec<&str>> = told
            .iter()
            .filter_map(|(node, told)| {
                let hashes = told.as_ref().ok()?["hashes"].as_array()?;
                Some((node, hashes.iter().filter_map(Value::as_str).collect()))
            })
            .collect();
        let own = hashes
            .get(&call.app.node.name().to_string())
            .cloned()
            .unwrap_or_default();
        let differing: Vec<(&String, Vec<usize>)> = hashes
            .iter()
            .filter(|(_, hashes)| **hashes != own)
            .map(|(node, hashes)| {
                let buckets = (0..peer::BUCKETS).filter(|at| hashes.get(*at) != own.get(*at));
                (*node, buckets.collect())
            })
            .collect();
        let silent: Vec<Value> = told
            .iter()
            .filter_map(|(node, told)| {
                Some(json!({ "node": node, "error": told.as_ref().err()?.detail }))
            })
            .collect();
        let agree = differing.is_empty() && silent.is_empty();
        if agree || tokio::time::Instant::now() >= until {
            let mut differences = Vec::new();
            for (node, buckets) in differing {
                differences.push(difference(&call, node, buckets).await);
            }
            // Members without an agent cannot be asked.
            let without: Vec<String> = call
                .app
                .node
                .members()
                .iter()
                .filter(|member| member.is_up() && !told.contains_key(member.name().as_str()))
                .map(|member| member.name().to_string())
                .collect();
            return Ok(ok(&json!({
                "agree": agree,
                "asked": told.keys().collect::<Vec<_>>(),
                "differences": differences,
                "no_answer": silent,
                "without_agent": without,
                "registry_hash": peer::hash(&call.app),
            })));
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_millis(500));
    }
}

/// What this node and another one list differently.
async fn difference(call: &Call, node: &str, buckets: Vec<usize>) -> Value {
    let question = Ask::Entries { buckets };
    let (ours, theirs) = (
        peer::answer(&call.app, question.clone()).await,
        peer::ask(&call.app, node, question, None).await,
    );
    let (Ok(ours), Ok(theirs)) = (ours, theirs) else {
        return json!({ "node": node, "entries": [], "error": "it did not say what it lists" });
    };
    let nothing = serde_json::Map::new();
    let (here, there) = (
        ours["entries"].as_object().unwrap_or(&nothing),
        theirs["entries"].as_object().unwrap_or(&nothing),
    );
    let ids: std::collections::BTreeSet<&String> = here.keys().chain(there.keys()).collect();
    let entries: Vec<Value> = ids
        .into_iter()
        .filter(|id| here.get(*id) != there.get(*id))
        .take(MAX_DIFFERENCES)
        .map(|id| json!({ "id": id, "here": here.get(id), "there": there.get(id) }))
        .collect();
    json!({
        "node": node,
        "entries": entries,
        "more": ours["more"] == true || theirs["more"] == true,
    })
}

pub(super) fn sd_prometheus(call: Call) -> Result<Response, Problem> {
    call.query.only(&["type"])?;
    let service_type = call
        .query
        .get("type")
        .ok_or_else(|| Problem::bad("the parameter type is missing"))?;
    let groups: Vec<Value> = call
        .app
        .node
        .registry()
        .services(service_type)
        .iter()
        .filter_map(|info| {
            let address: crate::address::ServiceAddress = info.address()?.parse().ok()?;
            Some(json!({
                "targets": [address.authority()],
                "labels": {
                    "__meta_dispatch_type": info.service_type().as_str(),
                    "__meta_dispatch_name": info.name().as_str(),
                    "__meta_dispatch_node": info.node().as_str(),
                    "__meta_dispatch_state": info.state().to_string(),
                    "__meta_dispatch_zone": info.zone().unwrap_or_default(),
                },
            }))
        })
        .collect();
    Ok(ok(&json!(groups)))
}

pub(super) fn problem_page(call: Call) -> Result<Response, Problem> {
    call.query.only(&[])?;
    let kind = Kind::ALL
        .iter()
        .find(|kind| kind.slug() == call.part(0))
        .ok_or_else(|| Problem::not_found("there is no such problem"))?;
    let text = format!(
        "{} ({})\n\n{}\n",
        kind.title(),
        kind.status(),
        kind.advice()
    );
    Ok(http::typed(
        StatusCode::OK,
        "text/plain; charset=utf-8",
        text,
    ))
}
