//! What is wrong, worst first, since when, why, and what to do; and one sentence that says it.
//!
//! What is known is gathered in one place ([`gather`]) and judged in another ([`judge`]), which needs no cluster.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use keydispatch::ServiceState;
use serde_json::Value;

use crate::app::App;
use crate::peer::{self, Ask};
use crate::shapes;

/// A certificate that ends sooner is worth a word. An alert comes two weeks before the end.
const CERTIFICATE_DAYS: u64 = 30;
const DAY_S: u64 = 86_400;
/// Instances that are named of one type; the rest is counted.
const NAMED: usize = 3;
/// Troubles that one view shows; the rest is counted.
pub(crate) const SHOWN: usize = 50;

/// Something that is wrong.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Trouble {
    pub(crate) what: String,
    pub(crate) todo: String,
}

/// What all agents say, and what this one sees.
#[derive(Default)]
struct Facts {
    /// What each agent says of its node, or why it does not answer.
    nodes: BTreeMap<String, Result<Value, String>>,
    /// The members as each agent that answered sees them.
    seen: BTreeMap<String, Vec<Value>>,
    /// Members that are not up here: the name, the state, for how long where that is known, and why.
    away: Vec<Away>,
    types: Vec<Type>,
    own: String,
}

struct Away {
    name: String,
    state: &'static str,
    since: Option<Duration>,
    why: Option<String>,
}

struct Type {
    name: String,
    online: usize,
    /// Those that are not online.
    others: Vec<Other>,
}

struct Other {
    name: String,
    state: ServiceState,
    since: Option<Duration>,
    why: Option<String>,
}

/// One sentence, and all that is wrong.
pub(crate) async fn now(app: &Arc<App>) -> (String, Vec<Trouble>) {
    let facts = gather(app).await;
    let troubles = judge(&facts);
    (sentence(&troubles, facts.nodes.len()), troubles)
}

fn sentence(troubles: &[Trouble], nodes: usize) -> String {
    match troubles {
        [] if nodes == 1 => "All is well: one node, and no other is known.".to_owned(),
        [] => format!("All is well: {nodes} nodes agree."),
        [only] => only.what.clone(),
        [worst, second] => format!("{} {}", worst.what, second.what),
        [worst, rest @ ..] => format!("{} {} more things are wrong.", worst.what, rest.len()),
    }
}

async fn gather(app: &Arc<App>) -> Facts {
    let now = SystemTime::now();
    let (nodes, seen) = tokio::join!(
        peer::ask_all(app, &Ask::Node),
        peer::ask_all(app, &Ask::Members)
    );
    let away = app
        .node
        .members()
        .iter()
        .filter(|member| member.state != keydispatch::MemberState::Up)
        .map(|member| {
            let name = member.name().as_str();
            let event = app.hub.last_of("member_down", name);
            Away {
                name: name.to_owned(),
                state: shapes::member_state(member.state),
                since: event
                    .as_ref()
                    .and_then(|event| now.duration_since(event.at).ok()),
                why: event.and_then(|event| event.because.clone()),
            }
        })
        .collect();
    let registry = app.node.registry();
    let types = registry
        .types()
        .iter()
        // Those of the agents themselves say what the members say.
        .filter(|service_type| !service_type.as_str().starts_with('_'))
        .filter_map(|service_type| registry.view(service_type.as_str()))
        .map(|view| Type {
            name: view.service_type().to_string(),
            online: view.online_count(),
            others: view
                .services()
                .iter()
                .filter(|info| !info.is_online())
                .map(|info| Other {
                    name: info.name().to_string(),
                    state: info.state(),
                    since: info.tag(shapes::SINCE).and_then(|millis| {
                        let since = UNIX_EPOCH + Duration::from_millis(millis.parse().ok()?);
                        now.duration_since(since).ok()
                    }),
                    why: info.tag(shapes::REASON).map(str::to_owned),
                })
                .collect(),
        })
        .collect();
    Facts {
        nodes: nodes
            .into_iter()
            .map(|(name, told)| (name, told.map_err(|problem| problem.detail)))
            .collect(),
        seen: seen
            .into_iter()
            .filter_map(|(name, told)| Some((name, told.ok()?["members"].as_array()?.clone())))
            .collect(),
        away,
        types,
        own: app.node.name().to_string(),
    }
}

/// All that is wrong, worst first: keys that nobody serves, nodes that are away, nodes that differ, and what will be wrong.
fn judge(facts: &Facts) -> Vec<Trouble> {
    let mut troubles = Vec::new();
    for check in [
        without_owner,
        away,
        disagree,
        cut,
        silent,
        not_ready,
        behind,
        fewer,
        certificates,
        versions,
        draining,
    ] {
        check(facts, &mut |what, todo: &str| {
            troubles.push(Trouble {
                what,
                todo: todo.to_owned(),
            });
        });
    }
    troubles
}

type Note<'a> = dyn FnMut(String, &str) + 'a;

fn without_owner(facts: &Facts, note: &mut Note<'_>) {
    for of in facts.types.iter().filter(|of| of.online == 0) {
        note(
            format!("Nobody serves {}: {}.", of.name, list(&of.others)),
            "Its keys have no owner. Bring an instance back, or register another one.",
        );
    }
}

fn away(facts: &Facts, note: &mut Note<'_>) {
    for member in &facts.away {
        let todo = match member.state {
            "down" => {
                "Its entries are gone until it is back. Look at its log, and whether its machine is reached."
            }
            "suspected" => {
                "It is given a moment to answer. Where it happens again and again, look at its load and at the network."
            }
            // It said goodbye: that is not wrong.
            _ => continue,
        };
        let name = &member.name;
        let state = member.state;
        let why = why(member.since, member.why.as_deref());
        note(format!("{name} is {state}{why}."), todo);
    }
}

fn disagree(facts: &Facts, note: &mut Note<'_>) {
    let hash = |name: &str| facts.nodes.get(name)?.as_ref().ok()?["registry_hash"].as_str();
    let own = hash(&facts.own);
    let others: Vec<&str> = facts
        .nodes
        .iter()
        .filter(|(name, told)| told.is_ok() && hash(name) != own)
        .map(|(name, _)| name.as_str())
        .collect();
    if !others.is_empty() {
        let all = facts.nodes.values().flatten().count();
        note(
            format!(
                "{} of {all} nodes agree: {} other entries than {}.",
                all - others.len(),
                has(&others, "lists", "list"),
                facts.own
            ),
            "For longer than a moment that is wrong: dispatch verify says what differs.",
        );
    }
}

/// A link that carries one way only, or none at all: one node has the other for gone, which is there for others.
fn cut(facts: &Facts, note: &mut Note<'_>) {
    let state = |by: &str, of: &str| -> Option<&str> {
        let member = facts.seen.get(by)?.iter().find(|seen| seen["name"] == of)?;
        match member["state"].as_str()? {
            "up" if member["linked"] == false => Some("no link"),
            state => Some(state),
        }
    };
    for of in facts.seen.keys() {
        let lost: Vec<&str> = facts
            .seen
            .keys()
            .map(String::as_str)
            .filter(|by| by != of && !matches!(state(by, of), None | Some("up")))
            .collect();
        let reached = facts
            .seen
            .keys()
            .any(|by| by != of && state(by, of) == Some("up"));
        // Where nobody reaches it, it is not cut off from some.
        if lost.is_empty() || !reached {
            continue;
        }
        let back: Vec<&str> = lost
            .iter()
            .copied()
            .filter(|by| state(of, by) == Some("up"))
            .collect();
        let one_way = if back.is_empty() {
            String::new()
        } else {
            format!(
                " {of} has {} for up: the way is cut in one direction.",
                words(&back)
            )
        };
        note(
            format!(
                "{} not reach {of}, others do.{one_way}",
                has(&lost, "does", "do")
            ),
            "Look at what is between them: firewalls, routes, and the address that it advertises.",
        );
    }
}

/// Its link to this node stands, or it would not be up; what this node sends it gets nowhere.
fn silent(facts: &Facts, note: &mut Note<'_>) {
    for (name, told) in &facts.nodes {
        if let Err(why) = told {
            note(
                format!(
                    "{name} is up, and does not answer {}: {}.",
                    facts.own,
                    why.trim_end_matches('.')
                ),
                "The way from here to it is cut, or it has no time. Look at the address that it advertises, at firewalls, and at \
                 its load. Calls to it fail; what it would say is not shown here.",
            );
        }
    }
}

fn not_ready(facts: &Facts, note: &mut Note<'_>) {
    for (name, told) in told(facts).filter(|(_, told)| told["ready"] == false) {
        let why = told["not_ready_because"].as_str().unwrap_or("it starts");
        note(
            format!("{name} is not ready: {why}."),
            "Where it lasts, look at its links to the other nodes.",
        );
    }
}

fn behind(facts: &Facts, note: &mut Note<'_>) {
    for (name, told) in told(facts) {
        for behind in told["behind"].as_array().into_iter().flatten() {
            let of = behind["node"].as_str().unwrap_or_default();
            let by = &behind["by"];
            note(
                format!("{name} is {by} versions behind {of}."),
                "Is the link between them slow or cut, or has one of them no time?",
            );
        }
    }
}

/// Types that are served, by fewer than are registered.
fn fewer(facts: &Facts, note: &mut Note<'_>) {
    for of in facts.types.iter().filter(|of| of.online > 0) {
        let is_offline = |other: &&Other| other.state == ServiceState::Offline;
        let offline: Vec<&Other> = of.others.iter().filter(is_offline).collect();
        if !offline.is_empty() {
            note(
                format!(
                    "{} has {} of {} instances online: {}.",
                    of.name,
                    of.online,
                    of.online + of.others.len(),
                    list(offline)
                ),
                "The others have their keys. The page of the type has what their checks saw.",
            );
        }
    }
}

fn certificates(facts: &Facts, note: &mut Note<'_>) {
    for (name, told) in told(facts) {
        let left = told["certificate_ends_in_s"]
            .as_u64()
            .filter(|left| *left < CERTIFICATE_DAYS * DAY_S);
        if let Some(left) = left {
            let text = match left {
                0 => format!("The certificate of {name} has ended."),
                left => format!("The certificate of {name} ends in {}.", span(left)),
            };
            note(
                text,
                "Make another one with dispatch cert, and put it in its place: it is read again.",
            );
        }
    }
}

fn versions(facts: &Facts, note: &mut Note<'_>) {
    let mut versions: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (name, told) in told(facts) {
        versions
            .entry(told["version"].as_str().unwrap_or("unknown"))
            .or_default()
            .push(name);
    }
    if versions.len() > 1 {
        let each: Vec<String> = versions
            .iter()
            .map(|(version, names)| format!("{version} on {}", words(names)))
            .collect();
        note(
            format!("Nodes run different versions: {}.", each.join(", ")),
            "In an upgrade that is as it should be, and else not for long.",
        );
    }
}

fn draining(facts: &Facts, note: &mut Note<'_>) {
    for of in facts.types.iter().filter(|of| of.online > 0) {
        let is_draining = |other: &&Other| other.state == ServiceState::Draining;
        let draining: Vec<&Other> = of.others.iter().filter(is_draining).collect();
        if !draining.is_empty() {
            note(
                format!("Of {}, {}.", of.name, list(draining)),
                "Its keys have moved already. Stop it once it has nothing to do any more.",
            );
        }
    }
}

fn told(facts: &Facts) -> impl Iterator<Item = (&str, &Value)> {
    facts
        .nodes
        .iter()
        .filter_map(|(name, told)| Some((name.as_str(), told.as_ref().ok()?)))
}

/// Instances by name, with their state, since when, and why.
fn list<'a>(others: impl IntoIterator<Item = &'a Other>) -> String {
    let mut others = others.into_iter();
    let named: Vec<String> = others
        .by_ref()
        .take(NAMED)
        .map(|other| {
            let why = why(other.since, other.why.as_deref());
            format!("{} is {}{why}", other.name, other.state)
        })
        .collect();
    let mut text = named.join(", ");
    let more = others.count();
    if more > 0 {
        // Writing into a string does not fail.
        let _ = write!(text, ", and {more} more");
    }
    if text.is_empty() {
        text.push_str("nobody is registered");
    }
    text
}

fn why(since: Option<Duration>, why: Option<&str>) -> String {
    let since = since.map(|since| format!(" for {}", span(since.as_secs())));
    let why = why.map(|why| format!(": {}", why.trim_end_matches('.')));
    since.unwrap_or_default() + &why.unwrap_or_default()
}

/// Names, and a verb that fits how many there are.
fn has(names: &[&str], one: &str, many: &str) -> String {
    let verb = if names.len() == 1 { one } else { many };
    format!("{} {verb}", words(names))
}

fn words(names: &[&str]) -> String {
    let names: BTreeSet<&str> = names.iter().copied().collect();
    let names: Vec<&str> = names.into_iter().collect();
    match names.as_slice() {
        [first @ .., last] if !first.is_empty() => format!("{} and {last}", first.join(", ")),
        names => names.join(""),
    }
}

/// Seconds in the unit that a person would take.
fn span(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7_200 => format!("{} min", seconds / 60),
        7_200..172_800 => format!("{} h", seconds / 3_600),
        _ => format!("{} days", seconds / DAY_S),
    }
}

#[cfg(test)]
#[path = "troubles_tests.rs"]
mod tests;
