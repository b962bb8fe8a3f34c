//! Metrics and probes: no key, no tag, no address, and nothing that can be changed.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, UNIX_EPOCH};

use hyper::body::Incoming;
use hyper::header::{ALLOW, HeaderValue};
use hyper::{Method, Request, StatusCode};
use keydispatch::MemberState;

use crate::app::App;
use crate::http::{self, Response};
use crate::peer;
use crate::shapes;

/// An agent whose own loop has not turned for this long does not live.
const LIVE_WITHIN: Duration = Duration::from_secs(10);
/// Types with a label of their own; those behind them are counted together.
const MAX_TYPES: usize = 200;
/// What they are counted as.
const OTHER: &str = "_other";

pub(crate) async fn handle(app: Arc<App>, request: Request<Incoming>) -> Response {
    if request.method() != Method::GET && request.method() != Method::HEAD {
        let mut response = text(
            StatusCode::METHOD_NOT_ALLOWED,
            "this is read only\n".to_owned(),
        );
        response
            .headers_mut()
            .insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    match request.uri().path() {
        "/metrics" => http::typed(
            StatusCode::OK,
            "text/plain; version=0.0.4; charset=utf-8",
            metrics(&app).await,
        ),
        "/livez" if app.since_turn() < LIVE_WITHIN => text(StatusCode::OK, "alive\n".to_owned()),
        "/livez" => text(
            StatusCode::SERVICE_UNAVAILABLE,
            format!(
                "the agent has done nothing for {} s\n",
                app.since_turn().as_secs()
            ),
        ),
        "/readyz" if app.node.is_ready() => text(StatusCode::OK, "ready\n".to_owned()),
        "/readyz" => text(
            StatusCode::SERVICE_UNAVAILABLE,
            "not ready: the entries of some nodes are missing, or too few members are here\n"
                .to_owned(),
        ),
        _ => text(
            StatusCode::NOT_FOUND,
            "there are /metrics, /livez and /readyz\n".to_owned(),
        ),
    }
}

fn text(status: StatusCode, text: String) -> Response {
    http::typed(status, "text/plain; charset=utf-8", text)
}

/// The exposition format of Prometheus, version 0.0.4.
#[derive(Default)]
struct Metrics(String);

impl Metrics {
    fn family(&mut self, name: &str, kind: &str, help: &str) -> Family<'_> {
        // Writing into a string does not fail.
        let _ = writeln!(
            self.0,
            "# HELP dispatch_{name} {help}\n# TYPE dispatch_{name} {kind}"
        );
        Family {
            out: &mut self.0,
            name: name.to_owned(),
        }
    }

    fn gauge(&mut self, name: &str, help: &str, value: f64) {
        self.family(name, "gauge", help).add(&[], value);
    }

    fn counter(&mut self, name: &str, help: &str, value: u64) {
        self.family(name, "counter", help).add(&[], value as f64);
    }
}

struct Family<'a> {
    out: &'a mut String,
    name: String,
}

impl Family<'_> {
    fn add(&mut self, labels: &[(&str, &str)], value: f64) {
        let mut line = format!("dispatch_{}", self.name);
        if !labels.is_empty() {
            let labels: Vec<String> = labels
                .iter()
                .map(|(name, value)| format!("{name}=\"{}\"", escaped(value)))
                .collect();
            let _ = write!(line, "{{{}}}", labels.join(","));
        }
        let _ = writeln!(self.out, "{line} {value}");
    }
}

/// A label's value: backslash, quote and line feed are the three that have to be escaped.
fn escaped(value: &str) -> String {
    value
        .replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

async fn metrics(app: &App) -> String {
    let mut out = Metrics::default();
    let stats = app.node.stats().await;
    out.family("build_info", "gauge", "The version that runs; always 1.")
        .add(&[("version", env!("CARGO_PKG_VERSION"))], 1.0);
    out.gauge(
        "ready",
        "1 where the entries of all nodes that are up are here.",
        f64::from(u8::from(app.node.is_ready())),
    );
    out.gauge(
        "uptime_seconds",
        "Since the agent started.",
        app.started.elapsed().as_secs_f64(),
    );
    // As many bits as a float holds exactly: two nodes that differ in it differ.
    let hash = u64::from_str_radix(&peer::hash(app), 16).unwrap_or(0) >> 12;
    out.gauge(
        "registry_hash",
        "A hash of the registry: two nodes that differ in it for long list different entries.",
        hash as f64,
    );
    members(app, &mut out);
    types(app, &mut out);
    if let Some(stats) = stats {
        let up = || stats.cluster.owners.iter().filter(|owner| owner.up);
        let behind = |owner: &keydispatch::OwnerStats| {
            owner
                .behind
                .unwrap_or(0)
                .saturating_sub(owner.version.unwrap_or(0))
        };
        out.gauge(
            "owners_behind",
            "Nodes that are up and of which newer entries are known to be than are here.",
            up().filter(|owner| behind(owner) > 0).count() as f64,
        );
        out.gauge(
            "versions_behind",
            "The most versions that this node is behind another one.",
            up().map(behind).max().unwrap_or(0) as f64,
        );
        out.gauge(
            "links",
            "Control links that are ready.",
            stats.cluster.linked as f64,
        );
        if let Some(end) = stats.certificate_not_after {
            let end = end
                .duration_since(UNIX_EPOCH)
                .map_or(0.0, |since| since.as_secs_f64());
            out.gauge(
                "certificate_expiry_timestamp_seconds",
                "When this node's certificate ends.",
                end,
            );
        }
        let data = &stats.data;
        out.counter("calls_sent_total", "Calls to other nodes.", data.calls_sent);
        out.counter(
            "calls_received_total",
            "Calls of other nodes.",
            data.calls_received,
        );
        out.gauge(
            "calls_pending",
            "Calls that wait for their reply.",
            data.calls_pending as f64,
        );
        let mut casts = out.family("casts_total", "counter", "Casts between nodes.");
        casts.add(&[("direction", "sent")], data.casts_sent as f64);
        casts.add(&[("direction", "received")], data.casts_received as f64);
        let mut dropped = out.family("casts_dropped_total", "counter", "Casts that were lost.");
        dropped.add(&[("cause", "not_sent")], data.casts_unsent as f64);
        dropped.add(&[("cause", "no_mailbox")], data.casts_dropped as f64);
        dropped.add(&[("cause", "too_large")], data.too_large_for_peer as f64);
        out.gauge(
            "suspended_peers",
            "Nodes that calls are not sent to at the moment.",
            data.suspended.len() as f64,
        );
        out.gauge(
            "longest_turn_seconds",
            "The longest time since the start for which the node looked at nothing.",
            stats.longest_turn.as_secs_f64(),
        );
    }
    let (checks, leases) = app.endpoints.tally();
    let mut family = out.family("checks", "gauge", "Checks of this agent.");
    for ((kind, state), count) in sorted(checks) {
        family.add(&[("kind", kind), ("state", state)], count as f64);
    }
    let mut family = out.family(
        "leases",
        "gauge",
        "Endpoints that this agent holds, by how long they live.",
    );
    for (kind, count) in sorted(leases) {
        family.add(&[("kind", kind)], count as f64);
    }
    out.counter(
        "leases_expired_total",
        "Endpoints that were not renewed in time.",
        app.endpoints.expired.load(Ordering::Relaxed),
    );
    let mut family = out.family("api_requests_total", "counter", "Answers of the api.");
    for ((path, code), count) in app.requests.all() {
        family.add(&[("path", path), ("code", &code.to_string())], count as f64);
    }
    out.gauge(
        "watchers",
        "Streams and long polls of types.",
        app.hub.watchers() as f64,
    );
    out.counter(
        "watch_lagged_total",
        "Watchers that had to start again from a snapshot.",
        app.watch_lagged.load(Ordering::Relaxed),
    );
    out.0
}

fn sorted<K: Ord, V>(map: std::collections::HashMap<K, V>) -> BTreeMap<K, V> {
    map.into_iter().collect()
}

fn members(app: &App, out: &mut Metrics) {
    let mut counts: BTreeMap<&str, usize> = ["up", "suspected", "down", "left"]
        .map(|state| (state, 0))
        .into();
    for member in app.node.members() {
        *counts
            .entry(shapes::member_state(member.state))
            .or_default() += 1;
    }
    // This node is up for itself.
    *counts
        .entry(shapes::member_state(MemberState::Up))
        .or_default() += 1;
    let mut family = out.family(
        "members",
        "gauge",
        "Nodes as this one sees them, itself included.",
    );
    for (state, count) in counts {
        family.add(&[("state", state)], count as f64);
    }
}

/// Instances by type and state: at most [`MAX_TYPES`] types by name, the largest first.
fn types(app: &App, out: &mut Metrics) {
    let registry = app.node.registry();
    let mut all: Vec<(String, (usize, usize, usize))> = registry
        .types()
        .iter()
        .filter_map(|service_type| {
            let view = registry.view(service_type.as_str())?;
            Some((service_type.to_string(), shapes::counts(&view)))
        })
        .collect();
    let folded = all.len().saturating_sub(MAX_TYPES);
    all.sort_by_key(|(name, (online, draining, offline))| {
        (std::cmp::Reverse(online + draining + offline), name.clone())
    });
    let mut rest = (0, 0, 0);
    for (_, counts) in all.drain(all.len() - folded..) {
        rest = (rest.0 + counts.0, rest.1 + counts.1, rest.2 + counts.2);
    }
    let mut entries = rest;
    for (_, counts) in &all {
        entries = (
            entries.0 + counts.0,
            entries.1 + counts.1,
            entries.2 + counts.2,
        );
    }
    if folded > 0 {
        all.push((OTHER.to_owned(), rest));
    }
    let mut family = out.family("instances", "gauge", "Instances by type and state.");
    for (name, (online, draining, offline)) in &all {
        for (state, count) in [
            ("online", online),
            ("draining", draining),
            ("offline", offline),
        ] {
            family.add(&[("type", name), ("state", state)], *count as f64);
        }
    }
    let mut family = out.family("entries", "gauge", "Entries of the registry by state.");
    for (state, count) in [
        ("online", entries.0),
        ("draining", entries.1),
        ("offline", entries.2),
    ] {
        family.add(&[("state", state)], count as f64);
    }
    out.gauge(
        "metrics_folded_types",
        "Types that are counted as _other.",
        folded as f64,
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_holds_whatever_its_value_is() {
        let mut metrics = Metrics::default();
        metrics
            .family("x", "gauge", "X.")
            .add(&[("type", "a\"b\\c\nd")], 1.5);
        assert_eq!(
            metrics.0,
            "# HELP dispatch_x X.\n# TYPE dispatch_x gauge\ndispatch_x{type=\"a\\\"b\\\\c\\nd\"} 1.5\n"
        );
    }
}
