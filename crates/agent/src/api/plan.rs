//! What would happen if, exactly; and keys that an instance owns.

use std::collections::BTreeMap;
use std::sync::Arc;

use keydispatch::{InstanceName, PlannedChange, SLOTS, ServiceInfo, View, Weight};
use serde::Deserialize;
use serde_json::{Value, json};

use super::call::{Call, MAX_BODY, MAX_KEYS_BODY, ok};
use crate::app::{App, round};
use crate::http::Response;
use crate::key::ApiKey;
use crate::problem::{Kind, Problem};
use crate::shapes;

/// Changes that are thought of at once.
const MAX_CHANGES: usize = 1_000;
/// Keys that are made at once.
const MAX_MINTED: usize = 1_000;
/// Keys that are drawn to find those of one instance.
const MAX_DRAWS: usize = 4_000_000;

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Planned {
    remove: Vec<String>,
    add: Vec<Added>,
    weight: BTreeMap<String, u16>,
    state: BTreeMap<String, String>,
    keys: Vec<Value>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Added {
    name: String,
    weight: Option<u16>,
}

fn name(text: &str) -> Result<InstanceName, Problem> {
    InstanceName::try_new(text).map_err(|error| Problem::bad(error.to_string()))
}

fn weight(weight: u16) -> Result<Weight, Problem> {
    Weight::try_new(weight).map_err(|error| Problem::bad(error.to_string()))
}

fn share(slots: usize) -> f64 {
    round(slots as f64 / SLOTS as f64)
}

pub(super) async fn plan(mut call: Call) -> Result<Response, Problem> {
    call.query.only(&[])?;
    let planned: Planned = call.json(MAX_KEYS_BODY).await?;
    let mut changes = Vec::new();
    for removed in &planned.remove {
        changes.push(PlannedChange::Remove(name(removed)?));
    }
    for (of, new) in &planned.weight {
        changes.push(PlannedChange::Weigh(name(of)?, weight(*new)?));
    }
    for (of, new) in &planned.state {
        changes.push(PlannedChange::State(name(of)?, shapes::parse_state(new)?));
    }
    for added in &planned.add {
        changes.push(PlannedChange::Add {
            name: name(&added.name)?,
            weight: added.weight.map_or(Ok(Weight::default()), weight)?,
            node: call.app.node.name().clone(),
        });
    }
    if changes.len() > MAX_CHANGES || planned.keys.len() > 10 * MAX_CHANGES {
        return Err(Problem::new(
            Kind::TooLarge,
            format!(
                "at most {MAX_CHANGES} changes and {} keys at once",
                10 * MAX_CHANGES
            ),
        ));
    }
    let keys = planned
        .keys
        .iter()
        .map(ApiKey::from_json)
        .collect::<Result<Vec<_>, _>>()?;
    let service_type = call.part(0).to_owned();
    let now = call
        .app
        .node
        .registry()
        .view(&service_type)
        .ok_or_else(|| Problem::not_found("nothing is registered under this type"))?;
    let after = now
        .with(&changes)
        .map_err(|error| Problem::new(Kind::Conflict, error.to_string()))?;
    let value = heavy(&call.app, move || compare(&now, &after, &keys)).await?;
    Ok(ok(&value))
}

/// Does what takes a while where blocking is allowed, one at a time.
pub(crate) async fn heavy<T: Send + 'static>(
    app: &App,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Problem> {
    let place = Arc::clone(&app.heavy)
        .acquire_owned()
        .await
        .map_err(|_| Problem::new(Kind::Unavailable, "the agent stops"))?;
    tokio::task::spawn_blocking(move || {
        let done = work();
        drop(place);
        done
    })
    .await
    .map_err(|_| Problem::new(Kind::Internal, "a computation did not end as it should"))
}

fn zones(view: &View) -> usize {
    let mut zones: Vec<_> = view.online().filter_map(|info| info.zone()).collect();
    zones.sort_unstable();
    zones.dedup();
    zones.len()
}

fn compare(now: &View, after: &View, keys: &[ApiKey]) -> Value {
    let mut rows: BTreeMap<String, (Option<usize>, Option<usize>)> = BTreeMap::new();
    for info in now.services() {
        rows.entry(info.name().to_string())
            .or_default()
            .0
            .get_or_insert(0);
    }
    for info in after.services() {
        rows.entry(info.name().to_string())
            .or_default()
            .1
            .get_or_insert(0);
    }
    for (info, slots) in now.shares() {
        *rows
            .entry(info.name().to_string())
            .or_default()
            .0
            .get_or_insert(0) += slots;
    }
    for (info, slots) in after.shares() {
        *rows
            .entry(info.name().to_string())
            .or_default()
            .1
            .get_or_insert(0) += slots;
    }
    let instances: Vec<Value> = rows
        .into_iter()
        .map(|(name, (before, after))| {
            json!({
                "name": name,
                "share_now": before.map(share),
                "share_after": after.map(share),
                "change": share(after.unwrap_or(0)) - share(before.unwrap_or(0)),
            })
        })
        .collect();
    let of = |info: &Option<Arc<ServiceInfo>>| info.as_ref().map(|info| info.name().to_string());
    let moved = now.moves_to(after);
    let moves: Vec<Value> = moved
        .iter()
        .map(|moved| json!({ "from": of(&moved.from), "to": of(&moved.to), "slots": moved.slots, "share": share(moved.slots) }))
        .collect();
    let keys: Vec<Value> = keys
        .iter()
        .map(|key| {
            json!({
                "key": key.shown(),
                "now": now.owner(key.key()).map(|info| shapes::owner(info)),
                "after": after.owner(key.key()).map(|info| shapes::owner(info)),
            })
        })
        .collect();
    json!({
        "type": now.service_type().as_str(),
        "instances": instances,
        "moves": moves,
        "moved_share": share(moved.iter().map(|moved| moved.slots).sum()),
        "zones_now": zones(now),
        "zones_after": zones(after),
        "keys": keys,
    })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Minted {
    instance: String,
    n: Option<usize>,
}

pub(super) async fn mint(mut call: Call) -> Result<Response, Problem> {
    call.query.only(&[])?;
    let Minted { instance, n } = call.json(MAX_BODY).await?;
    let n = n.unwrap_or(1);
    if !(1..=MAX_MINTED).contains(&n) {
        return Err(Problem::bad(format!("n lies between 1 and {MAX_MINTED}")));
    }
    let view = call
        .app
        .node
        .registry()
        .view(call.part(0))
        .ok_or_else(|| Problem::not_found("nothing is registered under this type"))?;
    let wanted = name(&instance)?;
    if !view.online().any(|info| *info.name() == wanted) {
        return Err(Problem::new(
            Kind::Conflict,
            format!("no instance {wanted} of this type is online"),
        ));
    }
    let keys = heavy(&call.app, move || draw(&view, &wanted, n)).await?;
    if keys.len() < n {
        return Err(Problem::new(
            Kind::Conflict,
            format!(
                "{} of {n} keys found in {MAX_DRAWS} draws: the share of {instance} is too small",
                keys.len()
            ),
        ));
    }
    Ok(ok(
        &json!({ "type": call.part(0), "instance": instance, "keys": keys }),
    ))
}

/// Keys that nobody guesses: 128 random bits each.
fn draw(view: &View, wanted: &InstanceName, n: usize) -> Vec<String> {
    let mut keys = Vec::with_capacity(n);
    for _ in 0..MAX_DRAWS {
        let key = crate::key::to_hex(&rand::random::<[u8; 16]>());
        if view
            .owner(key.as_str())
            .is_some_and(|info| info.name() == wanted)
        {
            keys.push(key);
            if keys.len() == n {
                break;
            }
        }
    }
    keys
}
