//! The network: connections that keep the order of what is sent, as TCP does, between hosts that can be cut off.
//!
//! A cut holds bytes back for as long as it lasts; what was sent meanwhile arrives when the sender's kernel tries again,
//! at intervals that double. A connection that makes no progress for [`KERNEL_PATIENCE`] is reset at its sender. What is
//! in flight is lost with a reset.

use std::collections::VecDeque;
use std::time::Duration;

use keydispatch_core::Instant;
use keydispatch_core::message::Frame;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::event::{ConnectionId, Event, Host, Side};
use super::queue::Queue;

/// How long a kernel tries to get bytes through before it resets the connection.
const KERNEL_PATIENCE: Duration = Duration::from_secs(20);

/// First interval between two attempts to get bytes through; it doubles.
const FIRST_RETRY: Duration = Duration::from_millis(200);

/// Length prefix and kind of a frame.
const FRAME_HEAD_BYTES: usize = 5;

/// How the network behaves when nothing is broken.
#[derive(Clone, Debug)]
pub(crate) struct Weather {
    /// One way, before jitter.
    pub(crate) latency: Duration,
    /// Bytes a second, of one connection and direction.
    pub(crate) bandwidth: u64,
    /// How many of a million frames are lost once and sent again by TCP.
    pub(crate) lost_ppm: u32,
}

/// What arrives at one side of a connection.
#[derive(Debug)]
pub(crate) enum Delivery {
    Frame { frame: Frame, bytes: usize },
    Closed,
}

enum Item {
    Frame(Frame),
    /// The last thing on a connection.
    End,
}

struct InFlight {
    arrives: Instant,
    bytes: usize,
    item: Item,
}

#[derive(Default)]
struct Pipe {
    items: VecDeque<InFlight>,
    /// When the sender's wire is free for the next frame.
    free_at: Instant,
    last_arrival: Instant,
    /// Bytes that were sent and not yet taken up by the receiving process.
    queued: usize,
    /// Nothing comes through since then; so many attempts were made.
    blocked: Option<(Instant, u32)>,
    /// An arrival is scheduled.
    pending: bool,
}

struct End {
    process: usize,
    host: Host,
    open: bool,
}

struct Connection {
    ends: [End; 2],
    /// What `ends[side]` sends.
    pipes: [Pipe; 2],
}

/// See the module.
pub(crate) struct Network {
    pub(crate) weather: Weather,
    connections: Vec<Option<Connection>>,
    hosts: usize,
    host_up: Vec<bool>,
    /// How many faults cut that direction.
    cuts: Vec<u16>,
    last_cut: Vec<Option<Instant>>,
    /// Directions that no healing opens.
    severed: Vec<bool>,
    bandwidth_divisor: u64,
    latency_factor: u32,
    /// The last time that the network was slow.
    slow_until: Option<Instant>,
    rng: StdRng,
}

impl Network {
    pub(crate) fn new(hosts: usize, weather: Weather, seed: u64) -> Self {
        Network {
            weather,
            connections: Vec::new(),
            hosts,
            host_up: vec![true; hosts],
            cuts: vec![0; hosts * hosts],
            last_cut: vec![None; hosts * hosts],
            severed: vec![false; hosts * hosts],
            bandwidth_divisor: 1,
            latency_factor: 1,
            slow_until: None,
            rng: StdRng::seed_from_u64(seed),
        }
    }

    pub(crate) fn set_host_up(&mut self, host: Host, up: bool) {
        self.host_up[host] = up;
    }

    pub(crate) fn cut(&mut self, from: Host, to: Host) {
        self.cuts[from * self.hosts + to] += 1;
    }

    pub(crate) fn uncut(&mut self, now: Instant, from: Host, to: Host) {
        let at = from * self.hosts + to;
        if self.cuts[at] > 0 {
            self.cuts[at] -= 1;
            self.last_cut[at] = Some(now);
        }
    }

    /// Two hosts do not reach each other from now on, whatever heals.
    pub(crate) fn sever_for_good(&mut self, a: Host, b: Host) {
        self.severed[a * self.hosts + b] = true;
        self.severed[b * self.hosts + a] = true;
    }

    pub(crate) fn heal_all(&mut self, now: Instant, queue: &mut Queue<Event>) {
        for (cut, last) in self.cuts.iter_mut().zip(&mut self.last_cut) {
            if std::mem::take(cut) > 0 {
                *last = Some(now);
            }
        }
        self.speed_up(now, queue);
    }

    /// Everything takes longer from now on.
    pub(crate) fn slow_down(&mut self, latency_factor: u32, bandwidth_divisor: u64) {
        self.latency_factor = latency_factor;
        self.bandwidth_divisor = bandwidth_divisor;
    }

    /// The network is as fast as the weather says, for what is queued, too: it comes no later than if it were sent now.
    pub(crate) fn speed_up(&mut self, now: Instant, queue: &mut Queue<Event>) {
        if !self.is_slow() {
            return;
        }
        self.slow_until = Some(now);
        self.latency_factor = 1;
        self.bandwidth_divisor = 1;
        let latency = self.usual_latency();
        let bandwidth = self.weather.bandwidth.max(1);
        for (id, connection) in self.connections.iter_mut().enumerate() {
            let pipes = connection.iter_mut().flat_map(|open| &mut open.pipes);
            for (side, pipe) in pipes.enumerate() {
                let mut sent = now;
                for item in &mut pipe.items {
                    sent += Duration::from_micros(item.bytes as u64 * 1_000_000 / bandwidth);
                    item.arrives = item.arrives.min(sent + latency);
                }
                pipe.free_at = pipe.free_at.min(sent);
                pipe.last_arrival = pipe.last_arrival.min(sent + latency);
                if let Some(head) = pipe.items.front().filter(|_| pipe.pending) {
                    let connection = id;
                    queue.push(head.arrives, Event::Arrive { connection, side });
                }
            }
        }
    }

    fn is_slow(&self) -> bool {
        self.latency_factor > 1 || self.bandwidth_divisor > 1
    }

    /// True where bytes get from one host to another.
    pub(crate) fn is_open(&self, from: Host, to: Host) -> bool {
        let direction = from * self.hosts + to;
        self.host_up[from]
            && self.host_up[to]
            && self.cuts[direction] == 0
            && !self.severed[direction]
    }

    /// True where both directions have been open since then, and as fast as they are in this weather.
    pub(crate) fn was_whole(&self, a: Host, b: Host, since: Instant) -> bool {
        if self.is_slow() || self.slow_until.is_some_and(|at| at >= since) {
            return false;
        }
        [(a, b), (b, a)].into_iter().all(|(from, to)| {
            self.is_open(from, to)
                && self.last_cut[from * self.hosts + to].is_none_or(|at| at < since)
        })
    }

    /// One way, without jitter, where nothing is slowed down.
    pub(crate) fn base_latency(&self) -> Duration {
        self.weather.latency
    }

    /// The same as it is now.
    pub(crate) fn usual_latency(&self) -> Duration {
        self.weather.latency * self.latency_factor
    }

    /// One way, with jitter.
    pub(crate) fn latency(&mut self) -> Duration {
        let micros = self.weather.latency.as_micros() as u64 * u64::from(self.latency_factor);
        let mut latency = micros + self.rng.random_range(0..=micros / 2);
        if self.weather.lost_ppm > 0 && self.rng.random_range(0..1_000_000) < self.weather.lost_ppm
        {
            // Mostly the packets behind a lost one tell of it; the last one of a burst waits for the timer.
            latency += if self.rng.random_bool(0.7) {
                2 * micros
            } else {
                self.rng.random_range(200_000..450_000)
            };
        }
        Duration::from_micros(latency)
    }

    /// Two processes are connected from now on.
    pub(crate) fn connect(
        &mut self,
        dialler: (usize, Host),
        acceptor: (usize, Host),
    ) -> ConnectionId {
        let end = |(process, host)| End {
            process,
            host,
            open: true,
        };
        self.connections.push(Some(Connection {
            ends: [end(dialler), end(acceptor)],
            pipes: [Pipe::default(), Pipe::default()],
        }));
        self.connections.len() - 1
    }

    /// The process on that side, while its end is open.
    pub(crate) fn process(&self, connection: ConnectionId, side: Side) -> Option<usize> {
        let end = &self.connections[connection].as_ref()?.ends[side];
        end.open.then_some(end.process)
    }

    /// Who that side was opened by, whether or not it is still there.
    pub(crate) fn opened_by(&self, connection: ConnectionId, side: Side) -> Option<usize> {
        Some(self.connections[connection].as_ref()?.ends[side].process)
    }

    /// Bytes that the side has sent and the other one has not taken up.
    pub(crate) fn queued(&self, connection: ConnectionId, side: Side) -> usize {
        self.connections[connection]
            .as_ref()
            .map_or(0, |connection| connection.pipes[side].queued)
    }

    /// Sends a frame; returns the bytes of it and of what is queued.
    pub(crate) fn send(
        &mut self,
        now: Instant,
        id: ConnectionId,
        side: Side,
        frame: Frame,
        queue: &mut Queue<Event>,
    ) -> (usize, usize) {
        let bytes = frame.body.len() + FRAME_HEAD_BYTES;
        self.push(now, id, side, bytes, Item::Frame(frame), queue);
        (bytes, self.queued(id, side))
    }

    fn push(
        &mut self,
        now: Instant,
        id: ConnectionId,
        side: Side,
        bytes: usize,
        item: Item,
        queue: &mut Queue<Event>,
    ) {
        let latency = self.latency();
        let bandwidth = (self.weather.bandwidth / self.bandwidth_divisor).max(1);
        let Some(connection) = self.connections[id].as_mut() else {
            return;
        };
        let pipe = &mut connection.pipes[side];
        let takes = Duration::from_micros(bytes as u64 * 1_000_000 / bandwidth);
        pipe.free_at = pipe.free_at.max(now) + takes;
        let arrives = (pipe.free_at + latency).max(pipe.last_arrival);
        pipe.last_arrival = arrives;
        pipe.queued += bytes;
        pipe.items.push_back(InFlight {
            arrives,
            bytes,
            item,
        });
        if pipe.blocked.is_none() && !pipe.pending {
            pipe.pending = true;
            queue.push(
                arrives,
                Event::Arrive {
                    connection: id,
                    side,
                },
            );
        }
    }

    /// What the side sent first has come as far as the other host, if the way is open. Returns the receiving process.
    pub(crate) fn arrive(
        &mut self,
        now: Instant,
        id: ConnectionId,
        side: Side,
        queue: &mut Queue<Event>,
    ) -> Option<(usize, Delivery)> {
        let connection = self.connections[id].as_ref()?;
        let (from, to) = (connection.ends[side].host, connection.ends[1 - side].host);
        let (forth, back) = (self.is_open(from, to), self.is_open(to, from));
        let latency = self.latency();
        let connection = self.connections[id].as_mut()?;
        let receiver_open = connection.ends[1 - side].open;
        let sender_open = connection.ends[side].open;
        let pipe = &mut connection.pipes[side];
        pipe.pending = false;
        let head = pipe.items.front()?;
        if head.arrives > now {
            pipe.pending = true;
            queue.push(
                head.arrives,
                Event::Arrive {
                    connection: id,
                    side,
                },
            );
            return None;
        }
        if !forth || (!receiver_open && sender_open && !back) {
            pipe.blocked = Some((now, 0));
            queue.push(
                now + FIRST_RETRY,
                Event::Retry {
                    connection: id,
                    side,
                },
            );
            return None;
        }
        if !receiver_open {
            pipe.items.clear();
            if sender_open {
                // Nobody has that connection any more: the kernel there says so.
                queue.push(
                    now + latency,
                    Event::Reset {
                        connection: id,
                        side,
                    },
                );
            } else {
                self.connections[id] = None;
            }
            return None;
        }
        let arrived = pipe.items.pop_front()?;
        if let Some(next) = pipe.items.front() {
            pipe.pending = true;
            queue.push(
                next.arrives.max(now),
                Event::Arrive {
                    connection: id,
                    side,
                },
            );
        }
        let process = connection.ends[1 - side].process;
        match arrived.item {
            Item::Frame(frame) => Some((
                process,
                Delivery::Frame {
                    frame,
                    bytes: arrived.bytes,
                },
            )),
            Item::End => {
                self.forget_end(id, 1 - side);
                Some((process, Delivery::Closed))
            }
        }
    }

    /// The kernel tries again to get bytes through. Returns the sending process where it gives up.
    pub(crate) fn retry(
        &mut self,
        now: Instant,
        id: ConnectionId,
        side: Side,
        queue: &mut Queue<Event>,
    ) -> Option<usize> {
        let connection = self.connections[id].as_ref()?;
        let (from, to) = (connection.ends[side].host, connection.ends[1 - side].host);
        let receiver_open = connection.ends[1 - side].open;
        let open = self.is_open(from, to) && (receiver_open || self.is_open(to, from));
        let bandwidth = (self.weather.bandwidth / self.bandwidth_divisor).max(1);
        let connection = self.connections[id].as_mut()?;
        let sender = &connection.ends[side];
        let (process, sender_open) = (sender.process, sender.open);
        let pipe = &mut connection.pipes[side];
        let (since, attempts) = pipe.blocked?;
        if open {
            pipe.blocked = None;
            let mut at = now;
            for item in &mut pipe.items {
                at += Duration::from_micros(item.bytes as u64 * 1_000_000 / bandwidth);
                item.arrives = at;
            }
            pipe.last_arrival = at;
            pipe.free_at = at;
            if !pipe.pending {
                pipe.pending = true;
                queue.push(
                    now,
                    Event::Arrive {
                        connection: id,
                        side,
                    },
                );
            }
            return None;
        }
        if now.since(since) >= KERNEL_PATIENCE {
            pipe.blocked = None;
            pipe.items.clear();
            self.forget_end(id, side);
            return sender_open.then_some(process);
        }
        pipe.blocked = Some((since, attempts + 1));
        let next = since + FIRST_RETRY * ((1 << (attempts + 2)) - 1);
        queue.push(
            next.min(since + KERNEL_PATIENCE),
            Event::Retry {
                connection: id,
                side,
            },
        );
        None
    }

    /// A reset reaches that side. Returns its process, where it had the connection open.
    pub(crate) fn reset(&mut self, id: ConnectionId, side: Side) -> Option<usize> {
        let process = self.process(id, side)?;
        self.forget_end(id, side);
        Some(process)
    }

    /// The receiving process has taken up those bytes of what the other side sent.
    pub(crate) fn taken_up(&mut self, id: ConnectionId, receiver: Side, bytes: usize) -> usize {
        let Some(connection) = self.connections[id].as_mut() else {
            return 0;
        };
        let pipe = &mut connection.pipes[1 - receiver];
        pipe.queued = pipe.queued.saturating_sub(bytes);
        pipe.queued
    }

    /// The side closes the connection once what it sent is through.
    pub(crate) fn close(
        &mut self,
        now: Instant,
        id: ConnectionId,
        side: Side,
        queue: &mut Queue<Event>,
    ) {
        if self.process(id, side).is_none() {
            return;
        }
        if let Some(connection) = self.connections[id].as_mut() {
            connection.ends[side].open = false;
        }
        self.push(now, id, side, 0, Item::End, queue);
    }

    /// The process on that side dies: what it sent may or may not get through, then its kernel ends the connection.
    pub(crate) fn abort(
        &mut self,
        now: Instant,
        id: ConnectionId,
        side: Side,
        queue: &mut Queue<Event>,
    ) {
        let Some(connection) = self.connections[id].as_mut() else {
            return;
        };
        let pipe = &mut connection.pipes[side];
        let kept = self.rng.random_range(0..=pipe.items.len());
        pipe.items.truncate(kept);
        self.close(now, id, side, queue);
    }

    /// The host of that side dies, and nobody is told.
    pub(crate) fn vanish(&mut self, id: ConnectionId, side: Side) {
        if let Some(connection) = self.connections[id].as_mut() {
            connection.pipes[side].items.clear();
        }
        self.forget_end(id, side);
    }

    /// Breaks the connection: what is in flight is lost. Returns the processes that had it open.
    pub(crate) fn sever(&mut self, id: ConnectionId) -> Vec<usize> {
        let Some(connection) = self.connections[id].take() else {
            return Vec::new();
        };
        let open = connection.ends.iter().filter(|end| end.open);
        open.map(|end| end.process).collect()
    }

    /// The connections that join the two hosts.
    pub(crate) fn between(&self, a: Host, b: Host) -> Vec<ConnectionId> {
        let joins = |connection: &Connection| {
            let [dialled, accepted] = &connection.ends;
            (dialled.host, accepted.host) == (a, b) || (dialled.host, accepted.host) == (b, a)
        };
        self.connections
            .iter()
            .enumerate()
            .filter(|(_, connection)| connection.as_ref().is_some_and(joins))
            .map(|(id, _)| id)
            .collect()
    }

    /// True where everything that one host sent to the other over connections that still stand has arrived.
    pub(crate) fn has_delivered(&self, from: Host, to: Host) -> bool {
        self.connections.iter().flatten().all(|connection| {
            let [dialled, accepted] = &connection.ends;
            let side = match (dialled.host, accepted.host) {
                hosts if hosts == (from, to) => 0,
                hosts if hosts == (to, from) => 1,
                _ => return true,
            };
            connection.pipes[side].items.is_empty()
        })
    }

    fn forget_end(&mut self, id: ConnectionId, side: Side) {
        let Some(connection) = self.connections[id].as_mut() else {
            return;
        };
        connection.ends[side].open = false;
        let nothing_under_way = |side: Side| {
            let pipe = &connection.pipes[side];
            !connection.ends[side].open && pipe.items.is_empty()
        };
        if nothing_under_way(0) && nothing_under_way(1) {
            self.connections[id] = None;
        }
    }
}
