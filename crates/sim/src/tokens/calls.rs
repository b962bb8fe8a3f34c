//! Calls by key: every node calls all the time; calls wait where a claim is under way and are sent on where the slot is
//! another's, as R10 says.

use std::time::Duration;

use keydispatch_core::ownership::Gate;
use keydispatch_core::{Rule, ServiceId};
use rand::RngExt;

use super::TokenEvent;
use super::letter::{Call, Letter, Reply};
use super::machine::service_type;
use crate::event::Event;
use crate::world::World;

/// Mean time between two calls of one node.
const BETWEEN_CALLS: Duration = Duration::from_millis(6);
/// A call that has not been answered by then has failed.
const TIMEOUT: Duration = Duration::from_secs(5);
/// A call with nowhere to go looks again after this long.
const NOWHERE: Duration = Duration::from_millis(2);
/// Most calls that wait for one slot.
const MAX_PARKED: usize = 256;
/// A call that was sent on twice waits so long before it goes on, doubled each time.
const PACE: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(50));
/// Keys of a slot.
pub(crate) const KEYS: u8 = 2;

impl World {
    /// A node calls.
    pub(crate) fn traffic(&mut self, process: usize) {
        let (now, synced) = (self.now, self.processes[process].synced_at.is_some());
        if self.processes[process].cluster.is_none() {
            return;
        }
        let Some(tokens) = self.tokens.as_mut() else {
            return;
        };
        if now >= tokens.calls_until {
            return;
        }
        let uniform: f64 = tokens.rng.random_range(0.0001..1.0);
        let next = BETWEEN_CALLS
            .mul_f64(-uniform.ln())
            .max(Duration::from_micros(50));
        self.queue
            .push(now + next, Event::Tokens(TokenEvent::Traffic(process)));
        if !synced || self.processes[process].paused {
            return;
        }
        let slot = tokens.rng.random_range(0..tokens.slots);
        let key = tokens.rng.random_range(0..KEYS);
        tokens.last_call += 1;
        let number = tokens.last_call;
        let call = Call {
            caller: process,
            slot,
            key,
            begun: now,
            ran: false,
            hops: 0,
            at: None,
        };
        tokens.calls.insert(number, call);
        self.attempt(number, None);
    }

    /// A call goes to that instance, or to whoever is first for its slot.
    pub(crate) fn attempt(&mut self, number: u64, to: Option<ServiceId>) {
        let now = self.now;
        let Some(tokens) = self.tokens.as_mut() else {
            return;
        };
        let Some(call) = tokens.calls.get(&number) else {
            return;
        };
        let (caller, slot) = (call.caller, call.slot);
        if now.since(call.begun) > TIMEOUT {
            return self.fail_call(number, "its time is over");
        }
        if self.processes[caller].paused {
            let event = TokenEvent::Attempt(number, to);
            return self
                .queue
                .push(now + Duration::from_millis(20), Event::Tokens(event));
        }
        let Some(machine) = self
            .tokens
            .as_ref()
            .and_then(|tokens| tokens.machines[caller].as_ref())
        else {
            return;
        };
        let first = machine.ownership.first(&service_type(), slot).cloned();
        let target = to.into_iter().chain(first).find_map(|id| {
            let at = self.by_nonce.get(&id.nonce).copied()?;
            let is_up = at == caller || self.lists_life(caller, at);
            let gone = machine.goaway.contains(&at);
            (is_up && !gone).then_some((at, id))
        });
        match target {
            Some((at, to)) => {
                if let Some(call) = self
                    .tokens
                    .as_mut()
                    .and_then(|tokens| tokens.calls.get_mut(&number))
                {
                    call.at = Some(at);
                }
                self.post_to(caller, at, Letter::Call { number, slot, to });
            }
            None => {
                let event = TokenEvent::Attempt(number, None);
                self.queue.push(now + NOWHERE, Event::Tokens(event));
            }
        }
    }

    /// A call has come to a process.
    pub(crate) fn serve(&mut self, process: usize, number: u64, slot: u32, to: &ServiceId) {
        let now = self.now;
        let Some(tokens) = self.tokens.as_mut() else {
            return;
        };
        let Some(machine) = tokens.machines[process].as_mut() else {
            return;
        };
        let caller = tokens.calls.get(&number).map(|call| call.caller);
        let reply = match machine.ownership.gate(&service_type(), slot, to) {
            Gate::Run(id) => {
                self.run_call(process, &id, slot, number);
                Reply::Done
            }
            Gate::Park(id) => {
                let parked = machine.parked.entry((id, slot)).or_default();
                if parked.len() < MAX_PARKED {
                    parked.push((number, now));
                    return;
                }
                Reply::Overloaded
            }
            Gate::Moved(to) => Reply::Moved(to),
        };
        if let Some(caller) = caller {
            self.post_to(process, caller, Letter::Reply { number, reply });
        }
    }

    /// The calls that wait for a slot ask again.
    pub(crate) fn unpark(&mut self, process: usize, id: &ServiceId, slot: u32) {
        let now = self.now;
        let unhealthy = self
            .tokens
            .as_ref()
            .is_none_or(|tokens| !tokens.ledger.is_healthy() || tokens.ledger.crashed > 0);
        let Some(machine) = self.machine(process) else {
            return;
        };
        let parked = machine
            .parked
            .remove(&(id.clone(), slot))
            .unwrap_or_default();
        for (number, since) in parked {
            if let Some(tokens) = self.tokens.as_mut().filter(|_| !unhealthy) {
                tokens.ledger.parked.push(now.since(since));
            }
            self.serve(process, number, slot, id);
        }
    }

    fn run_call(&mut self, process: usize, id: &ServiceId, slot: u32, number: u64) {
        let Some(tokens) = self.tokens.as_mut() else {
            return;
        };
        let Some(call) = tokens.calls.get_mut(&number) else {
            return;
        };
        let twice = std::mem::replace(&mut call.ran, true);
        let key = call.key;
        if twice {
            self.violate(format!("call {number} runs twice"));
            return;
        }
        self.count_up(process, id, slot, key);
    }

    pub(crate) fn replied(&mut self, number: u64, reply: Reply) {
        let now = self.now;
        let Some(tokens) = self.tokens.as_mut() else {
            return;
        };
        match reply {
            Reply::Done => {
                if let Some(call) = tokens.calls.remove(&number) {
                    tokens.ledger.answered += 1;
                    if tokens.ledger.is_healthy() && tokens.ledger.crashed == 0 {
                        let took = now.since(call.begun);
                        tokens.ledger.slowest = tokens.ledger.slowest.max(took);
                    }
                }
            }
            Reply::Overloaded => self.fail_call(number, "too many wait"),
            Reply::Moved(to) => {
                if !tokens.rules.holds(Rule::Moved) {
                    return self.fail_call(number, "it was sent on");
                }
                if let Some(call) = tokens.calls.get_mut(&number) {
                    call.hops += 1;
                    call.at = None;
                    tokens.ledger.moved += 1;
                    tokens.ledger.most_hops = tokens.ledger.most_hops.max(call.hops);
                    let wait = match call.hops {
                        0 | 1 => Duration::ZERO,
                        hops => (PACE.0 * (1 << (hops - 2).min(6))).min(PACE.1),
                    };
                    self.queue
                        .push(now + wait, Event::Tokens(TokenEvent::Attempt(number, to)));
                }
            }
        }
    }

    pub(crate) fn fail_call(&mut self, number: u64, why: &str) {
        let now = self.now;
        let Some(tokens) = self.tokens.as_mut() else {
            return;
        };
        let Some(call) = tokens.calls.remove(&number) else {
            return;
        };
        if self.processes[call.caller].cluster.is_none() {
            return;
        }
        tokens.ledger.failed += 1;
        let name = self.processes[call.caller].name.clone();
        let what = format!(
            "call {number} of {name} for slot {}: {why}, at {now}",
            call.slot
        );
        self.trace.line(now, || format!("FAILED {what}"));
        tokens.ledger.first_failure.get_or_insert(what);
    }

    /// Whoever waited for a process that is down waits no more.
    pub(crate) fn fail_calls_to(&mut self, caller: usize, called: usize) {
        let Some(tokens) = self.tokens.as_ref() else {
            return;
        };
        let waiting = tokens
            .calls
            .iter()
            .filter(|(_, call)| call.caller == caller && call.at == Some(called));
        let waiting: Vec<u64> = waiting.map(|(number, _)| *number).collect();
        for number in waiting {
            self.fail_call(number, "its node went down");
        }
    }

    /// Whether the one takes this life of the other for up.
    pub(crate) fn lists_life(&self, process: usize, other: usize) -> bool {
        let other = &self.processes[other];
        let cluster = self.processes[process].cluster.as_ref();
        let known = cluster.and_then(|cluster| cluster.membership().is_up(&other.name));
        known.is_some_and(|known| known == other.life)
    }
}
