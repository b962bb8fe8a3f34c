//! Whether all agree: what each node lists is what the living hold, entry by entry.

use std::collections::{BTreeSet, HashMap};

use keydispatch_core::{Cluster, NodeId, ServiceInfo};

use crate::checks::{ServiceKey, check_members, key};

/// Cheap, and wrong only for moments: every node lists as many services as the living hold, and waits for nobody.
pub(super) fn is_likely(nodes: &[&Cluster]) -> bool {
    let held: usize = nodes.iter().map(|node| node.tracker().own().len()).sum();
    nodes
        .iter()
        .all(|node| node.registry().services() == held && node.is_synced())
        && nodes.iter().all(|node| !node.tracker().is_missing_any())
}

/// Every node lists exactly what these nodes hold, and takes exactly them for living. Says what is not so.
pub(super) fn check(nodes: &[&Cluster]) -> Result<(), String> {
    let mut held: HashMap<ServiceKey, &ServiceInfo> = HashMap::new();
    for node in nodes {
        held.extend(node.tracker().own().map(|info| (key(info), &**info)));
    }
    let living: BTreeSet<&NodeId> = nodes.iter().map(|node| node.node()).collect();
    // Of as many entries, each of them held, none is missing where none comes twice; this tells if one does.
    let sum = |sum: u64, key: ServiceKey| sum.wrapping_add(key.0.rotate_left(32) ^ scramble(key.1));
    let expected = held.keys().copied().fold(0, sum);
    for node in nodes {
        let me = node.node();
        check_members(node, &living, None)?;
        let directory = node.directory();
        let (mut listed, mut found) = (0, 0);
        for service_type in directory.types() {
            let Some(view) = directory.view(service_type.as_str()) else {
                continue;
            };
            for info in view.services() {
                if held.get(&key(info)).is_none_or(|held| *held != &**info) {
                    return Err(format!("{me} lists {info:?}, which no living node holds"));
                }
                listed += 1;
                found = sum(found, key(info));
            }
        }
        if listed != held.len() || found != expected {
            return Err(format!("{me} lists {listed} of {} services", held.len()));
        }
    }
    Ok(())
}

/// Neighbouring numbers become numbers that have nothing to do with each other.
fn scramble(number: u64) -> u64 {
    let mixed = (number ^ (number >> 31)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed ^ (mixed >> 29)
}
