//! What agents ask each other, by a service of their own that is called through the library.

use std::collections::BTreeMap;
use std::hash::Hasher;
use std::sync::{Arc, Weak};
use std::time::Duration;

use keydispatch::{Context, ReplyTo, Service, ServiceInfo};
use serde_json::{Value, json};

use crate::app::App;
use crate::endpoints::{Endpoints, Wanted};
use crate::key::ApiKey;
use crate::problem::{Kind, Problem};
use crate::shapes;

pub(crate) mod protocol;

pub(crate) use protocol::{Agents, Ask, agents};
use protocol::{Told, ask_at, ask_other};

/// Parts that the registry is compared by.
pub(crate) const BUCKETS: usize = 256;
/// Entries that one agent tells another one of a part that differs.
const MAX_ENTRIES: usize = 1_000;

/// Agents that are asked at once.
const AT_ONCE: usize = 32;

/// The service of one agent.
pub(crate) struct Answers(pub(crate) Weak<App>);

impl Service for Answers {
    type Protocol = Agents;

    async fn handle_call(&mut self, ask: Ask, reply_to: ReplyTo<Told>, _: &mut Context<Self>) {
        let Some(app) = self.0.upgrade() else {
            return;
        };
        // Apart: one that takes long, as a drain does, holds up nobody.
        tokio::spawn(async move {
            let told = match answer(&app, ask).await {
                Ok(value) => Told::Value(value),
                Err(problem) => Told::Problem(problem),
            };
            reply_to.reply(told);
        });
    }
}

/// What this agent says itself.
pub(crate) async fn answer(app: &Arc<App>, ask: Ask) -> Result<Value, Problem> {
    match ask {
        Ask::Owner { service_type, key } => {
            let key = ApiKey::from_canonical_hex(&key)
                .ok_or_else(|| Problem::bad("no hexadecimal key"))?;
            let owner = app.node.registry().find_service(&service_type, key).ok();
            Ok(json!({ "owner": owner.map(|info| shapes::owner(&info)) }))
        }
        Ask::Digest => Ok(json!({ "hashes": digest(app) })),
        Ask::Entries { buckets } => Ok(entries(app, &buckets)),
        Ask::Members => Ok(json!({ "members": members(app).await })),
        Ask::Node => Ok(node(app).await),
        Ask::Endpoint { id } => match app.endpoints.one(app, &id).await {
            Some((value, _)) => Ok(value),
            None => Err(Problem::not_found(format!("no endpoint {id:?}"))),
        },
        Ask::Delete { id, drain_ms, who } => {
            Endpoints::delete(app, &id, &who, drain_ms.map(Duration::from_millis)).await
        }
        Ask::State {
            id,
            state,
            reason,
            who,
        } => {
            app.endpoints
                .set_wanted(app, &id, &who, wanted(&state, reason)?)
                .await
        }
        Ask::Weight { id, weight, who } => app.endpoints.set_weight(app, &id, &who, weight).await,
        Ask::Vouch { holder, endpoints } => Ok(Endpoints::vouch(app, &holder, endpoints).await),
        Ask::Unvouch { holder, id } => {
            Endpoints::unvouch(app, &holder, &id).await;
            Ok(json!({}))
        }
        Ask::Drain { wait_ms, reason } => drain(app, Duration::from_millis(wait_ms), &reason).await,
    }
}

pub(crate) fn wanted(state: &str, reason: String) -> Result<Wanted, Problem> {
    match state {
        "online" => Ok(Wanted::Online),
        "draining" => Ok(Wanted::Draining(reason)),
        "offline" => Ok(Wanted::Offline(reason)),
        _ => Err(Problem::bad("a state is online, draining or offline")),
    }
}

/// Asks the agent of a node.
pub(crate) async fn ask(
    app: &Arc<App>,
    node: &str,
    question: Ask,
    patience: Option<Duration>,
) -> Result<Value, Problem> {
    if node == app.node.name().as_str() {
        return answer(app, question).await;
    }
    ask_other(app, node, question, patience).await
}

/// Asks all agents at once, this one among them; each answer with the node that it is of, in the order of their names.
pub(crate) async fn ask_all(
    app: &Arc<App>,
    question: &Ask,
) -> BTreeMap<String, Result<Value, Problem>> {
    let mut asked = tokio::task::JoinSet::new();
    let places = Arc::new(tokio::sync::Semaphore::new(AT_ONCE));
    for agent in agents(app) {
        let (app, question, places) = (Arc::clone(app), question.clone(), Arc::clone(&places));
        asked.spawn(async move {
            let node = agent.node().to_string();
            // An error says that this is over.
            let _place = places.acquire_owned().await;
            let told = if *app.node.name() == *agent.node() {
                answer(&app, question).await
            } else {
                ask_at(&app, agent.id().clone(), question, None).await
            };
            (node, told)
        });
    }
    let mut all = BTreeMap::new();
    while let Some(told) = asked.join_next().await {
        if let Ok((node, told)) = told {
            all.insert(node, told);
        }
    }
    all
}

/// The members as this node sees them, itself among them: whether they live, whether there is a link to them, and how much of
/// what they hold is here.
pub(crate) async fn members(app: &App) -> Vec<Value> {
    let mut members: Vec<Value> = app.node.members().iter().map(shapes::member).collect();
    members.push(json!({
        "name": app.node.name().as_str(),
        "generation": null,
        "address": app.node.address().as_str(),
        "state": "up",
    }));
    members.sort_by(|a, b| a["name"].as_str().cmp(&b["name"].as_str()));
    let events = app.hub.members();
    for member in &mut members {
        let Some(event) = member["name"].as_str().and_then(|name| events.get(name)) else {
            continue;
        };
        member["since"] = json!(crate::clock::rfc3339(event.at));
        member["because"] = json!(event.because);
    }
    let Some(stats) = app.node.stats().await else {
        return members;
    };
    for member in &mut members {
        let owner = stats
            .cluster
            .owners
            .iter()
            .find(|owner| member["name"] == owner.node.name.as_str());
        if let Some(owner) = owner {
            let version = owner.version.unwrap_or(0);
            member["entries"] = json!(owner.entries);
            member["behind"] = json!(
                owner
                    .behind
                    .map_or(0, |behind| behind.saturating_sub(version))
            );
            member["linked"] = json!(owner.linked);
        }
    }
    members
}

pub(crate) async fn node(app: &App) -> Value {
    let stats = app.node.stats().await;
    let behind: Vec<Value> = stats
        .iter()
        .flat_map(|stats| &stats.cluster.owners)
        .filter(|owner| owner.up && (owner.behind.is_some() || owner.version.is_none()))
        .map(|owner| {
            json!({
                "node": owner.node.name.as_str(),
                "by": owner.behind.unwrap_or(0).saturating_sub(owner.version.unwrap_or(0)),
            })
        })
        .collect();
    json!({
        "name": app.node.name().as_str(),
        "cluster": app.node.cluster().as_str(),
        "address": app.node.address().as_str(),
        "generation": stats.as_ref().map(|stats| stats.cluster.node.generation.to_string()),
        "version": env!("CARGO_PKG_VERSION"),
        "life": app.hub.life,
        "ready": app.node.is_ready(),
        "not_ready_because": (!app.node.is_ready()).then_some(
            "the entries of some nodes that are up are missing, or no seed has answered, or fewer members than expected are here"
        ),
        "plaintext": stats.as_ref().is_some_and(|stats| stats.plaintext),
        "certificate_ends": stats
            .as_ref()
            .and_then(|stats| stats.certificate_not_after)
            .map(crate::clock::rfc3339),
        "now": crate::clock::rfc3339(std::time::SystemTime::now()),
        "now_ms": std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX)),
        "certificate_ends_in_s": stats
            .as_ref()
            .and_then(|stats| stats.certificate_not_after)
            .map(|end| end.duration_since(std::time::SystemTime::now()).map_or(0, |left| left.as_secs())),
        "uptime_s": app.started.elapsed().as_secs(),
        "registry_hash": hash(app),
        "endpoints": app.endpoints.ids().len(),
        "behind": behind,
        "suspended": stats
            .as_ref()
            .map(|stats| stats.data.suspended.iter().map(|name| name.to_string()).collect::<Vec<_>>()),
    })
}

/// Takes the keys of everything on this node away, and waits until the others have seen it.
pub(crate) async fn drain(app: &Arc<App>, wait: Duration, reason: &str) -> Result<Value, Problem> {
    let began = tokio::time::Instant::now();
    let drained = Endpoints::drain_all(app, reason).await;
    let result = app.node.drain(wait).await;
    // In the same state, with the reason.
    Endpoints::publish_all(app).await;
    app.hub
        .note("drained", Some(app.node.name().as_str()), None, reason);
    let unaware: Vec<String> = match result {
        Ok(()) => Vec::new(),
        Err(keydispatch::DrainError::Unfinished(left)) => {
            left.unaware.iter().map(ToString::to_string).collect()
        }
        Err(error) => return Err(Problem::new(Kind::Unavailable, error.to_string())),
    };
    let seen: Vec<String> = app
        .node
        .members()
        .iter()
        .filter(|member| member.is_up())
        .map(|member| member.name().to_string())
        .filter(|name| !unaware.contains(name))
        .collect();
    Ok(json!({
        "node": app.node.name().as_str(),
        "endpoints": drained,
        "reason": reason,
        "seen_by": seen,
        "not_seen_by": unaware,
        "after_ms": u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
    }))
}

/// What of an entry has to be equal on all nodes.
fn entry_hash(info: &ServiceInfo) -> u64 {
    let mut hasher = Fnv::default();
    let id = info.id();
    for text in [
        info.service_type().as_str(),
        info.name().as_str(),
        id.node.as_str(),
        info.zone().unwrap_or_default(),
        info.address().unwrap_or_default(),
    ] {
        hasher.write(text.as_bytes());
        hasher.write(&[0xff]);
    }
    for number in [
        id.nonce,
        id.sequence,
        info.reference().version,
        info.weight().value().into(),
        info.state() as u64,
    ] {
        hasher.write(&number.to_le_bytes());
    }
    for (key, value) in info.tags() {
        hasher.write(key.as_bytes());
        hasher.write(&[0xff]);
        hasher.write(value.as_bytes());
        hasher.write(&[0xff]);
    }
    hasher.finish()
}

/// FNV-1a: the same on all machines. It finds what differs by mistake; members that lie are another matter.
struct Fnv(u64);

impl Default for Fnv {
    fn default() -> Self {
        Fnv(0xcbf2_9ce4_8422_2325)
    }
}

impl Hasher for Fnv {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

fn bucket(service_type: &str) -> usize {
    let mut hasher = Fnv::default();
    hasher.write(service_type.as_bytes());
    // The low bits of FNV of short texts are its best.
    (hasher.finish() % BUCKETS as u64) as usize
}

/// A hash for each part of the registry: sums, so that the order does not matter.
fn digest(app: &App) -> Vec<String> {
    let mut sums = vec![0_u64; BUCKETS];
    for service_type in app.node.registry().types() {
        let sum = &mut sums[bucket(service_type.as_str())];
        for info in app.node.registry().services(service_type.as_str()) {
            *sum = sum.wrapping_add(entry_hash(&info));
        }
    }
    sums.iter().map(|sum| format!("{sum:016x}")).collect()
}

/// One hash of the whole registry.
pub(crate) fn hash(app: &App) -> String {
    let mut hasher = Fnv::default();
    for part in digest(app) {
        hasher.write(part.as_bytes());
    }
    format!("{:016x}", hasher.finish())
}

/// The entries of some parts, by id.
fn entries(app: &App, buckets: &[usize]) -> Value {
    let mut all = BTreeMap::new();
    let mut more = false;
    for service_type in app.node.registry().types() {
        if !buckets.contains(&bucket(service_type.as_str())) {
            continue;
        }
        for info in app.node.registry().services(service_type.as_str()) {
            if all.len() == MAX_ENTRIES {
                more = true;
                break;
            }
            all.insert(
                info.id().to_string(),
                json!({
                    "type": info.service_type().as_str(),
                    "name": info.name().as_str(),
                    "state": info.state().to_string(),
                    "weight": info.weight().value(),
                    "version": info.reference().version,
                    "hash": format!("{:016x}", entry_hash(&info)),
                }),
            );
        }
    }
    json!({ "entries": all, "more": more })
}
