//! How messages about slots, and calls, travel: in order on each lane of a pair of processes, late now and then, held back or
//! lost by a cut.

use std::time::Duration;

use keydispatch_core::NodeId;
use keydispatch_core::ownership::message::TokenMessage;
use rand::RngExt;

use super::TokenEvent;
use super::event::LaneId;
use super::letter::Letter;
use crate::event::Event;
use crate::world::World;

/// One way, in microseconds.
const LATENCY: (u64, u64) = (100, 2_000);
/// What is late is later by so much.
const LATE: (u64, u64) = (5_000, 30_000);
/// What a cut holds back is tried again after this long.
const AGAIN: (u64, u64) = (20_000, 100_000);
/// A lane that nothing comes through breaks after up to this long, with all that is on it.
const BREAKS: (u64, u64) = (200_000, 3_000_000);
/// What arrives at a process that stands still waits this long before it is looked at again.
const WAITS: Duration = Duration::from_millis(20);
/// What a newcomer sends waits for so long until membership has introduced it, as links do.
const INTRODUCTION: (Duration, u32) = (Duration::from_millis(3), 30);
/// A piece of large states takes this long on the wire.
const PIECE_TAKES: Duration = Duration::from_micros(1_500);

impl World {
    /// Sends a letter to that life of a node.
    pub(crate) fn post(&mut self, from: usize, to: &NodeId, letter: Letter) {
        let to = self
            .processes
            .iter()
            .rposition(|process| process.life == *to);
        if let Some(to) = to {
            self.post_to(from, to, letter);
        }
    }

    pub(crate) fn post_to(&mut self, from: usize, to: usize, letter: Letter) {
        let now = self.now;
        let mute = self.is_mute(from) && matches!(letter, Letter::Tokens(_));
        if mute {
            return;
        }
        let Some(tokens) = self.tokens.as_mut() else {
            return;
        };
        let (data, piece) = match &letter {
            Letter::Tokens(bytes) => match TokenMessage::decode(bytes) {
                Ok(message) => (message.is_data(), matches!(message, TokenMessage::Piece(_))),
                Err(_) => (false, false),
            },
            _ => (true, false),
        };
        let id = (from, to, data);
        let latency = if from == to {
            1
        } else if tokens.rng.random_range(0..1_000) < tokens.profile.late_permille {
            tokens.rng.random_range(LATE.0..LATE.1)
        } else {
            tokens.rng.random_range(LATENCY.0..LATENCY.1)
        };
        let lane = tokens.lanes.entry(id).or_default();
        let mut arrives =
            (now + Duration::from_micros(latency)).max(lane.last + Duration::from_micros(1));
        if piece && tokens.profile.large {
            arrives = arrives.max(lane.last + PIECE_TAKES);
        }
        lane.last = arrives;
        lane.letters.push_back((arrives, letter));
        if !std::mem::replace(&mut lane.pending, true) {
            self.queue
                .push(arrives, Event::Tokens(TokenEvent::Arrive(id)));
        }
    }

    /// The first letter of a lane may have arrived.
    pub(crate) fn letters_arrive(&mut self, id: LaneId) {
        let now = self.now;
        let (from, to, _) = id;
        let hosts = (self.processes[from].host, self.processes[to].host);
        let is_open = from == to || self.network.is_open(hosts.0, hosts.1);
        let there = self.processes[to].cluster.is_some();
        let paused = self.processes[to].paused;
        let is_new = from != to && !self.knows(to, from);
        let Some(tokens) = self.tokens.as_mut() else {
            return;
        };
        let Some(lane) = tokens.lanes.get_mut(&id) else {
            return;
        };
        lane.pending = false;
        if !there {
            tokens.lanes.remove(&id);
            return;
        }
        let Some((arrives, _)) = lane.letters.front() else {
            return;
        };
        let arrives = *arrives;
        let mut again = None;
        if arrives > now {
            again = Some(arrives);
        } else if !is_open {
            let breaks = tokens.rng.random_range(BREAKS.0..BREAKS.1);
            let breaks_at = *lane
                .breaks_at
                .get_or_insert(now + Duration::from_micros(breaks));
            if breaks_at <= now {
                lane.letters.clear();
                lane.breaks_at = None;
                return;
            }
            let wait = tokens.rng.random_range(AGAIN.0..AGAIN.1);
            again = Some(now + Duration::from_micros(wait));
        } else if paused {
            again = Some(now + WAITS);
        } else if is_new && lane.introductions < INTRODUCTION.1 {
            lane.introductions += 1;
            again = Some(now + INTRODUCTION.0);
        }
        if let Some(again) = again {
            lane.pending = true;
            self.queue
                .push(again, Event::Tokens(TokenEvent::Arrive(id)));
            return;
        }
        lane.breaks_at = None;
        lane.introductions = 0;
        let letter = lane.letters.pop_front();
        if let Some((next, _)) = lane.letters.front() {
            lane.pending = true;
            self.queue
                .push((*next).max(now), Event::Tokens(TokenEvent::Arrive(id)));
        }
        if let Some((_, letter)) = letter {
            self.take_letter(from, to, letter);
        }
    }

    /// Whether the one takes this life of the other for up, or once did.
    fn knows(&self, process: usize, other: usize) -> bool {
        let life = &self.processes[other].life;
        let tokens = self.tokens.as_ref();
        let machine = tokens.and_then(|tokens| tokens.machines[process].as_ref());
        machine.is_some_and(|machine| machine.met.contains(life))
    }
}
