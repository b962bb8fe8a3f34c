//! What was measured, as tables; and what follows from it for a size that was not.

use serde::Serialize;

use super::change::Found;
use super::cluster::Shape;
use super::phases::{Outcome, Row};
use keydispatch_measure::{Output, cells, figure};

/// The size that is extrapolated to: nodes, and services in all.
const LARGEST: (f64, f64) = (300.0, 1_000_000.0);

/// What is to be expected of one phase at [`LARGEST`].
#[derive(Clone, Debug, Serialize)]
pub(super) struct Expected {
    what: &'static str,
    agree_ms: f64,
    sent_mean: f64,
    cpu_s: f64,
}

pub(super) fn changes(output: &Output, found: &Found) {
    let mut rows = vec![cells([
        "entries",
        "owner, µs",
        "peer, µs",
        "owner allocates, B",
        "peer allocates, B",
        "sent to a peer, B",
    ])];
    for change in &found.changes {
        rows.push(vec![
            figure(change.entries as f64),
            figure(change.owner_ns / 1e3),
            figure(change.reader_ns / 1e3),
            figure(change.owner_bytes),
            figure(change.reader_bytes),
            figure(change.sent_bytes),
        ]);
    }
    let growth = found.growth().map(|(_, exponent)| format!("{exponent:.2}"));
    let exponents = ["exponent".to_owned()].into_iter().chain(growth);
    rows.push(exponents.chain([String::new()]).collect());
    output.table(
        "One change, an addition or a removal, by the entries that there are; 10 of each type",
        &rows,
    );
    let mut rows = vec![cells([
        "entries of others on one node",
        "user's own, B",
        "beyond, asked for, B",
        "beyond, of the heap, B",
    ])];
    for memory in &found.memory {
        rows.push(vec![
            format!(
                "{}, {} of each type, {} tags",
                figure(memory.entries as f64),
                memory.per_type,
                memory.tags
            ),
            figure(memory.own),
            figure(memory.asked),
            figure(memory.heap),
        ]);
    }
    output.table("Memory of an entry", &rows);
}

pub(super) fn phases(output: &Output, shape: &Shape, outcome: &Outcome) {
    let mut rows = vec![cells([
        "what happens",
        "all agree after, s",
        "a node sends, MB",
        "the most, MB",
        "takes at most, MB",
        "largest queue, kB",
        "false downs",
        "CPU of all, s",
    ])];
    for row in &outcome.rows {
        rows.push(vec![
            row.what.to_owned(),
            figure(row.agree_ms / 1e3),
            figure(row.sent_mean / 1e6),
            figure(row.sent_max as f64 / 1e6),
            figure(row.taken_max as f64 / 1e6),
            figure(row.largest_queue as f64 / 1e3),
            row.false_downs.to_string(),
            figure(row.cpu_s),
        ]);
    }
    output.table(
        &format!("{} services, {} types", shape.name(), shape.types),
        &rows,
    );
    let idle = &outcome.idle;
    output.line(format!(
        "\nIdle: {:.3} % of a core, {} B/s and {} messages/s for each node. A node that died gave back {} B of the heap for \
         each service.",
        idle.cpu_percent,
        figure(idle.bytes_per_s),
        figure(idle.messages_per_s),
        figure(outcome.heap_each),
    ));
}

/// Says what is to be expected of many nodes with many services: where a cost is a part for each node and a part for
/// each service, two sizes tell both.
pub(super) fn extrapolated(output: &Output, wide: &Outcome, deep: &Outcome) -> Vec<Expected> {
    let mut rows = vec![cells([
        "what happens",
        "all agree after, s",
        "a node sends, MB",
        "CPU of all, s",
    ])];
    let expected: Vec<Expected> = wide
        .rows
        .iter()
        .zip(&deep.rows)
        .map(|(wide, deep)| {
            let (nodes, _) = LARGEST;
            let all = |row: &Row| row.nodes as f64;
            // A rolling restart is so much for each node, one after the other.
            let rolls = wide.what == "rolling restart";
            let turns = |row: &Row| if rolls { all(row) } else { 1.0 };
            let turns_there = if rolls { nodes } else { 1.0 };
            // What one node gives and takes is so much in all, whoever has a part in it; what all nodes do is so much for each.
            let is_of_one = rolls || matches!(wide.what, "one service more" | "cold join");
            let parts = |row: &Row| if is_of_one { turns(row) } else { all(row) };
            let parts_there = if is_of_one { turns_there } else { nodes };
            let sent = |row: &Row| row.sent_mean * all(row) / parts(row);
            Expected {
                what: wide.what,
                agree_ms: turns_there * plane(wide, deep, |row| row.agree_ms / turns(row)),
                sent_mean: parts_there / nodes * plane(wide, deep, sent),
                cpu_s: parts_there * plane(wide, deep, |row| row.cpu_s / parts(row)),
            }
        })
        .collect();
    for expected in &expected {
        rows.push(vec![
            expected.what.to_owned(),
            figure(expected.agree_ms / 1e3),
            figure(expected.sent_mean / 1e6),
            figure(expected.cpu_s),
        ]);
    }
    let (nodes, services) = LARGEST;
    output.table(
        &format!("Extrapolated, not measured: {nodes} × {}", figure(services)),
        &rows,
    );
    expected
}

/// The value at [`LARGEST`] of a·services + b·nodes through both.
fn plane(wide: &Row, deep: &Row, cost: impl Fn(&Row) -> f64) -> f64 {
    let (nodes, services) = LARGEST;
    let [(n1, s1), (n2, s2)] = [wide, deep].map(|row| (row.nodes as f64, row.services as f64));
    let (c1, c2) = (cost(wide), cost(deep));
    let determinant = s1 * n2 - s2 * n1;
    let of_services = ((c1 * n2 - c2 * n1) / determinant).max(0.0);
    let of_nodes = ((s1 * c2 - s2 * c1) / determinant).max(0.0);
    of_services * services + of_nodes * nodes
}
