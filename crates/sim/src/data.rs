//! Data links: every process calls another one now and then, and suspends it where it is silent.
//!
//! What travels is so little that only its way matters: it arrives after the network's latency, is repeated while there is
//! no way, and waits for a process that does not run. All choices are drawn apart from those of the history.

use std::time::Duration;

use keydispatch_core::keepalive::{Keepalive, KeepaliveAction, PING_AFTER, SUSPEND_AFTER};
use rand::RngExt;

use super::data_links::DataLink;
use super::event::{Crossing, Event, What};
use super::world::World;

/// Bytes that did not get through are sent again after this long.
const AGAIN: (u64, u64) = (200_000, 400_000);

/// What arrives at a process that does not run waits this long before it is looked at again.
const WAITS: Duration = Duration::from_millis(20);

/// The same for a timer: when the process goes on, it mostly comes before what arrived.
const OVERDUE: Duration = Duration::from_millis(5);

/// A call takes up to this long to be handled, in microseconds; a ping takes no time.
const HANDLING: u64 = 600_000;

/// Before a peer is suspended for no reason, nothing has been wrong for this long: it is judged, and what a cut held
/// back has come through.
const BLAMELESS: Duration = Duration::from_millis(2_000);

impl World {
    /// The process will call others.
    pub(crate) fn start_calling(&mut self, process: usize) {
        self.data.links.resize_with(process + 1, || None);
        let first = self.data.rng.random_range(0..PING_AFTER.as_micros() as u64);
        let at = self.now + Duration::from_micros(first);
        self.queue.push(at, Event::Calls { process });
    }

    /// The process looks at its link, and calls.
    pub(crate) fn calls(&mut self, process: usize) {
        if self.processes[process].cluster.is_none() {
            self.data.links[process] = None;
            return;
        }
        let paused = self.processes[process].paused;
        let next = if paused { OVERDUE } else { PING_AFTER };
        self.queue.push(self.now + next, Event::Calls { process });
        if paused {
            return;
        }
        let Some(mut link) = self.data.links[process].take() else {
            return self.open_data_link(process);
        };
        if !self.lists(process, link.peer) {
            return;
        }
        let mut pings = false;
        match link.watch.look(self.now, link.heard_at, link.waiting > 0) {
            KeepaliveAction::ProcessPaused => link.heard_at = self.now,
            KeepaliveAction::Heard => link.suspended = false,
            KeepaliveAction::Idle => {}
            KeepaliveAction::Ping => pings = true,
            KeepaliveAction::Suspend => {
                pings = true;
                link.waiting = 0;
                if !std::mem::replace(&mut link.suspended, true) {
                    self.coverage.suspensions += 1;
                    self.judge_suspension(process, link.peer);
                }
            }
        }
        let calls = !link.suspended && self.data.rng.random_bool(0.5);
        link.waiting += u32::from(calls);
        let number = link.number;
        self.data.links[process] = Some(link);
        for what in [pings.then_some(What::Ping), calls.then_some(What::Call)] {
            let crossing = what.map(|what| Crossing {
                caller: process,
                link: number,
                what,
            });
            if let Some(crossing) = crossing {
                self.send_across(crossing, Duration::ZERO);
            }
        }
    }

    /// Something may have come to the other end.
    pub(crate) fn cross(&mut self, crossing: Crossing) {
        let Crossing {
            caller,
            link: number,
            what,
        } = crossing;
        let Some(link) = self.data.links[caller].as_mut() else {
            return;
        };
        if link.number != number {
            return;
        }
        let (from, to) = match what {
            What::Reply | What::Pong => (link.peer, caller),
            What::Call | What::Ping => (caller, link.peer),
        };
        let hosts = (self.processes[from].host, self.processes[to].host);
        if !self.network.is_open(hosts.0, hosts.1) {
            let again = self.data.rng.random_range(AGAIN.0..AGAIN.1);
            let at = self.now + Duration::from_micros(again);
            return self.queue.push(at, Event::Cross(crossing));
        }
        if self.processes[to].cluster.is_none() {
            // Its kernel says that nobody is there.
            self.data.links[caller] = None;
        } else if self.processes[to].paused {
            self.queue.push(self.now + WAITS, Event::Cross(crossing));
        } else {
            self.take(crossing);
        }
    }

    /// It has come to the other end.
    fn take(&mut self, crossing: Crossing) {
        let (what, after) = match crossing.what {
            What::Ping => (What::Pong, 0),
            What::Call => (What::Reply, self.data.rng.random_range(0..HANDLING)),
            answer => {
                if let Some(link) = self.data.links[crossing.caller].as_mut() {
                    let answered = u32::from(answer == What::Reply);
                    link.waiting = link.waiting.saturating_sub(answered);
                    link.heard_at = self.now;
                    link.suspended = false;
                }
                return;
            }
        };
        self.send_across(Crossing { what, ..crossing }, Duration::from_micros(after));
    }

    /// Rule: nobody is suspended in the end.
    pub(crate) fn check_data_links(&self) -> Result<(), String> {
        for (process, link) in self.data.links.iter().enumerate() {
            if let Some(link) = link.as_ref().filter(|link| link.suspended)
                && self.processes[process].cluster.is_some()
            {
                let (process, peer) = (&self.processes[process], &self.processes[link.peer]);
                return Err(format!("{} still suspends {}", process.name, peer.name));
            }
        }
        Ok(())
    }

    fn open_data_link(&mut self, process: usize) {
        let mut peers = self.living();
        peers.retain(|peer| *peer != process && self.lists(process, *peer));
        if peers.is_empty() {
            return;
        }
        let peer = peers[self.data.rng.random_range(0..peers.len())];
        let hosts = (self.processes[process].host, self.processes[peer].host);
        if !self.network.is_open(hosts.0, hosts.1) || !self.network.is_open(hosts.1, hosts.0) {
            return;
        }
        self.data.last += 1;
        self.data.links[process] = Some(DataLink {
            number: self.data.last,
            peer,
            watch: Keepalive::new(self.now).with_rules(self.data.rules),
            heard_at: self.now,
            waiting: 0,
            suspended: false,
        });
    }

    /// Whether the one takes this life of the other for up.
    fn lists(&self, process: usize, peer: usize) -> bool {
        let (process, peer) = (&self.processes[process], &self.processes[peer]);
        let cluster = process.cluster.as_ref();
        let known = cluster.and_then(|cluster| cluster.membership().is_up(&peer.name));
        known.is_some_and(|known| known == peer.life)
    }

    fn send_across(&mut self, crossing: Crossing, after: Duration) {
        let latency = self.network.usual_latency().as_micros() as u64;
        let jitter = self.data.rng.random_range(0..=latency / 2);
        let at = self.now + after + Duration::from_micros(latency + jitter);
        self.queue.push(at, Event::Cross(crossing));
    }

    /// Rule: a peer is suspended only where something is wrong with it, or with the way to it; that the process itself did
    /// not run is no reason.
    fn judge_suspension(&mut self, process: usize, peer: usize) {
        let since = self.now - (SUSPEND_AFTER + BLAMELESS);
        let (caller, called) = (&self.processes[process], &self.processes[peer]);
        let is_blameless = called.cluster.is_some()
            && !called.paused
            && called.hung_at.is_none_or(|at| at < since)
            && self.network.was_whole(caller.host, called.host, since);
        if is_blameless {
            let (caller, called) = (caller.name.clone(), called.name.clone());
            self.violate(format!(
                "{caller} suspends {called}, which lives and can be heard"
            ));
        }
    }
}
