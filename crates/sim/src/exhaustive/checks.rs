//! What must hold at every step, and where all is at rest.

use keydispatch_core::ServiceId;
use keydispatch_core::ownership::{Gate, Holding};

use super::model::{SLOT, State};
use super::scenario::{NODES, ONLINE, entry, rooms};

impl State {
    /// Lineages of which somebody who runs has a copy.
    pub(super) fn living(&self) -> Vec<u64> {
        self.nodes
            .iter()
            .flatten()
            .filter_map(|node| node.copy)
            .collect()
    }

    pub(super) fn holders(&self) -> Vec<usize> {
        (0..NODES)
            .filter(|rank| self.holding(*rank) == Holding::Held)
            .collect()
    }

    pub(super) fn id(&self, rank: usize) -> ServiceId {
        entry(&self.names, rank, ONLINE).id().clone()
    }

    pub(super) fn holding(&self, rank: usize) -> Holding {
        let node = self.nodes[rank].as_ref();
        node.map_or(Holding::Away, |node| {
            node.machine.holding(&rooms(), &self.id(rank), SLOT)
        })
    }

    /// I1, and what was noticed on the way here.
    pub(super) fn broken(&self) -> Option<String> {
        if let Some(broken) = &self.broken {
            return Some(broken.clone());
        }
        let holders = self.holders();
        (holders.len() > 1).then(|| format!("{holders:?} hold the slot"))
    }

    /// Who should hold and does not.
    pub(super) fn misplaced(&self) -> Option<String> {
        let online = (0..NODES).find(|rank| {
            let node = self.nodes[*rank].as_ref();
            node.is_some_and(|node| node.listed[*rank] == ONLINE)
        });
        let holders = self.holders();
        match online {
            Some(first) if holders != [first] => {
                Some(format!("n{first} is first and {holders:?} hold"))
            }
            _ => None,
        }
    }

    /// I4, I5 and I8, once nothing can happen any more.
    pub(super) fn broken_at_rest(&self) -> Option<String> {
        if let Some(misplaced) = self.misplaced() {
            return Some(format!("in the end {misplaced}: {}", self.unrest()));
        }
        let unrest = self.unrest();
        let anybody = self.nodes.iter().flatten().count() > 0;
        if !unrest.is_empty() && anybody && !self.holders().is_empty() {
            return Some(format!("in the end {unrest}"));
        }
        if self.lost.is_empty() && self.begun > 1 {
            return Some(format!(
                "the slot was begun {} times, and nobody died",
                self.begun
            ));
        }
        let [holder] = self.holders()[..] else {
            return None;
        };
        // R10: wherever a call comes, it finds the way.
        for (rank, node) in self.nodes.iter().enumerate() {
            let Some(node) = node else {
                continue;
            };
            let gate = node.machine.gate(&rooms(), SLOT, &self.id(rank));
            let finds = match &gate {
                Gate::Run(_) => rank == holder,
                Gate::Park(_) => false,
                Gate::Moved(to) => rank != holder && *to == Some(self.id(holder)),
            };
            // One that leaves, and has nobody to tell, serves no calls.
            if !finds && node.listed[rank] > 0 {
                return Some(format!(
                    "in the end n{rank} answers {gate:?}, n{holder} holds"
                ));
            }
        }
        None
    }

    pub(super) fn unrest(&self) -> String {
        let nodes = self.nodes.iter().flatten();
        let unrest: Vec<String> = nodes.filter_map(|node| node.machine.unrest()).collect();
        unrest.join("; ")
    }
}
