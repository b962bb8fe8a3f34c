//! When the liar lies, to whom, and what it knows of them.

use keydispatch_core::forge::Forged;
use keydispatch_core::links::LinkId;
use keydispatch_core::{Cluster, NodeId, NodeName};
use rand::RngExt;

use super::event::Event;
use super::liar::{Liar, Target};
use super::process::address;
use super::trace::describe;
use super::world::World;

impl World {
    pub(crate) fn is_liar(&self, process: usize) -> bool {
        self.is_liars_name(&self.processes[process].name)
    }

    pub(crate) fn is_liars_name(&self, name: &NodeName) -> bool {
        self.liar.as_ref().is_some_and(|liar| liar.name == *name)
    }

    /// The next lie, and when the one after it comes.
    pub(crate) fn lie(&mut self) {
        let Some(mut liar) = self.liar.take() else {
            return;
        };
        let living = self.living();
        let process = living
            .into_iter()
            .find(|process| self.processes[*process].name == liar.name);
        if let Some(process) = process.filter(|process| self.processes[*process].is_running()) {
            self.lie_from(process, &mut liar);
        }
        let uniform: f64 = liar.rng.random_range(0.0001..1.0);
        let after = liar.between.mul_f64(-uniform.ln());
        self.liar = Some(liar);
        self.queue.push(self.now + after, Event::Lie);
    }

    fn lie_from(&mut self, process: usize, liar: &mut Liar) {
        let Some(cluster) = self.processes[process].cluster.take() else {
            return;
        };
        let links = self.processes[process].links.keys();
        let ready: Vec<(LinkId, NodeId)> = links
            .filter_map(|link| Some((*link, cluster.peer(*link)?.clone())))
            .collect();
        let drawn = liar.rng.random_range(0..ready.len().max(1));
        let said = ready.get(drawn).and_then(|(link, to)| {
            let target = self.target(process, &cluster, to, liar)?;
            let (messages, times) = liar.invent(&target);
            Some((*link, messages, times))
        });
        self.processes[process].cluster = Some(cluster);
        let Some((link, frames, times)) = said else {
            return;
        };
        let Some(wire) = self.processes[process].links.get(&link).copied() else {
            return;
        };
        for _ in 0..times {
            for frame in &frames {
                self.trace.frame(self.now, || {
                    format!("{} LIES on {}: {}", liar.name, link.0, describe(frame))
                });
                let queue = &mut self.queue;
                self.network
                    .send(self.now, wire.connection, wire.side, frame.clone(), queue);
                self.coverage.lies += 1;
            }
        }
    }

    fn target(
        &self,
        process: usize,
        cluster: &Cluster,
        to: &NodeId,
        liar: &mut Liar,
    ) -> Option<Target> {
        let forged = |node: &NodeId, host| -> Forged {
            let other = self.processes.iter().find(|other| {
                let cluster = other.cluster.as_ref();
                cluster.is_some_and(|cluster| cluster.node() == node)
            });
            let cluster = other.and_then(|other| other.cluster.as_ref());
            Forged {
                node: node.clone(),
                rejoins: cluster.map_or(0, |cluster| cluster.membership().returns()),
                address: address(host),
            }
        };
        let others: Vec<usize> = (0..self.processes.len())
            .filter(|other| {
                let other = &self.processes[*other];
                other.name != liar.name && other.name != to.name
            })
            .collect();
        let about = *others.get(liar.rng.random_range(0..others.len().max(1)))?;
        let about = &self.processes[about];
        let mine = self.processes[process].host;
        let receiver = self.processes.iter().rfind(|other| other.life == *to)?;
        Some(Target {
            me: Forged {
                node: cluster.node().clone(),
                rejoins: cluster.membership().returns(),
                address: address(mine),
            },
            to: forged(to, receiver.host),
            about: forged(&about.life, about.host),
            lives: about.cluster.is_some(),
            known: cluster.tracker().copy_of(&about.life),
        })
    }
}
