//! Circles among imports.

use std::collections::{BTreeMap, BTreeSet};

use crate::parents::Parent;

/// `from` imports something that stands in `to`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Edge {
    /// The file that imports, from `src`.
    pub from: String,
    /// The file where it stands.
    pub to: String,
    /// Whether a child imports from its own parent.
    pub upwards: bool,
}

/// The groups of files in which each imports each, by way of others or not. None where the imports have an order.
#[must_use]
pub fn circles(edges: &BTreeSet<Edge>) -> Vec<BTreeSet<String>> {
    let mut next: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for edge in edges {
        next.entry(&edge.from).or_default().insert(&edge.to);
    }
    let reached = |start: &str| {
        let mut reached = BTreeSet::new();
        let mut open = vec![start];
        while let Some(file) = open.pop() {
            for &to in next.get(file).into_iter().flatten() {
                if reached.insert(to.to_owned()) {
                    open.push(to);
                }
            }
        }
        reached
    };
    let from_each: BTreeMap<&str, BTreeSet<String>> =
        next.keys().map(|&file| (file, reached(file))).collect();
    let mut circles: Vec<BTreeSet<String>> = Vec::new();
    for (file, there) in &from_each {
        if !there.contains(*file) || circles.iter().any(|circle| circle.contains(*file)) {
            continue;
        }
        let back = there.iter().filter(|other| {
            from_each
                .get(other.as_str())
                .is_some_and(|from| from.contains(*file))
        });
        circles.push(back.cloned().collect());
    }
    circles
}

/// The imports of a crate without those that `allowed` gives a reason for, and which of these there was no need for: who
/// imports no parent, or a parent that imports nothing from it.
#[must_use]
pub fn without(
    edges: BTreeSet<Edge>,
    of: &str,
    allowed: &[Parent],
) -> (BTreeSet<Edge>, Vec<Parent>) {
    let mut left = edges.clone();
    let mut needless = Vec::new();
    for parent in allowed.iter().filter(|parent| parent.of == of) {
        let up = edges
            .iter()
            .find(|edge| edge.upwards && edge.from == parent.child && edge.to == parent.parent);
        match up {
            Some(up) => {
                left.remove(up);
            }
            None => needless.push(parent.clone()),
        }
    }
    (left, needless)
}
