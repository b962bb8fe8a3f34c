//! What the registry holds, as JSON.

use std::time::{Duration, UNIX_EPOCH};

use keydispatch::{Member, MemberState, ServiceInfo, ServiceState, View};
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::clock::rfc3339;
use crate::problem::Problem;

/// Tags that begin so are the agents' own: they carry what an entry has no field for, and are shown as fields.
pub(crate) const OWN_TAGS: &str = "dispatch.";
/// Why an entry has the state that it has.
pub(crate) const REASON: &str = "dispatch.reason";
/// Since when, in milliseconds of Unix time by the clock of the agent that holds it.
pub(crate) const SINCE: &str = "dispatch.since";
/// Who registered it.
pub(crate) const BY: &str = "dispatch.by";

pub(crate) fn since(info: &ServiceInfo) -> Option<String> {
    let millis = info.tag(SINCE)?.parse().ok()?;
    Some(rfc3339(
        UNIX_EPOCH.checked_add(Duration::from_millis(millis))?,
    ))
}

/// One instance; `view` is the one that it is in.
pub(crate) fn instance(info: &ServiceInfo, view: Option<&View>) -> Value {
    let tags: Map<String, Value> = info
        .tags()
        .filter(|(key, _)| !key.starts_with(OWN_TAGS))
        .map(|(key, value)| (key.to_owned(), value.into()))
        .collect();
    json!({
        "name": info.name().as_str(),
        "type": info.service_type().as_str(),
        "node": info.node().as_str(),
        "id": info.id().to_string(),
        "state": info.state().to_string(),
        "reason": info.tag(REASON),
        "since": since(info),
        "weight": info.weight().value(),
        "zone": info.zone(),
        "address": info.address(),
        "tags": tags,
        "endpoint": info.is_endpoint(),
        "standby": view.is_some_and(|view| view.is_standby(info)),
        "registered_by": info.tag(BY),
        "reference": info.reference().to_string(),
    })
}

/// What a caller needs of an owner. Written as it is, without a tree of values before it: it is what is asked for most.
#[derive(Serialize)]
pub(crate) struct Owner<'a> {
    name: &'a str,
    node: &'a str,
    id: String,
    address: Option<&'a str>,
    zone: Option<&'a str>,
    weight: u16,
}

impl<'a> Owner<'a> {
    pub(crate) fn of(info: &'a ServiceInfo) -> Self {
        Owner {
            name: info.name().as_str(),
            node: info.node().as_str(),
            id: info.id().to_string(),
            address: info.address(),
            zone: info.zone(),
            weight: info.weight().value(),
        }
    }
}

pub(crate) fn owner(info: &ServiceInfo) -> Value {
    json!(Owner::of(info))
}

pub(crate) fn member_state(state: MemberState) -> &'static str {
    match state {
        MemberState::Up => "up",
        MemberState::Suspected => "suspected",
        MemberState::Down => "down",
        _ => "left",
    }
}

pub(crate) fn member(member: &Member) -> Value {
    json!({
        "name": member.name().as_str(),
        "generation": member.node.generation.to_string(),
        "address": member.address.as_str(),
        "state": member_state(member.state),
    })
}

/// How many are in which state.
pub(crate) fn counts(view: &View) -> (usize, usize, usize) {
    let mut counts = (0, 0, 0);
    for info in view.services() {
        match info.state() {
            ServiceState::Online => counts.0 += 1,
            ServiceState::Draining => counts.1 += 1,
            ServiceState::Offline => counts.2 += 1,
        }
    }
    counts
}

/// A state by its name.
pub(crate) fn parse_state(text: &str) -> Result<ServiceState, Problem> {
    match text {
        "online" => Ok(ServiceState::Online),
        "draining" => Ok(ServiceState::Draining),
        "offline" => Ok(ServiceState::Offline),
        _ => Err(Problem::bad("a state is online, draining or offline")),
    }
}
