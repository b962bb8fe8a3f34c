//! The course of one simulation: events in the order of their time, determined by the seed.

use std::num::NonZeroU8;
use std::time::Duration;

use keydispatch_core::route::{Choice, MAX_OWNERS, OwnerStanding, limit_at};
use keydispatch_core::{Instant, Key};
use keydispatch_measure::quantile_of_sorted;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde::Serialize;
use smallvec::SmallVec;

use super::caller::{Caller, Standings};
use super::instance::{Instance, Sent};
use super::placement::placement;
use super::plan::{Ours, Plan, Policy};
use crate::queue::Queue;

/// What came of a simulation.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Outcome {
    /// Calls that were counted.
    pub calls: usize,
    /// Latencies of callers, in ms.
    pub p50: f64,
    /// See `p50`.
    pub p99: f64,
    /// See `p50`.
    pub p999: f64,
    /// The most calls that an instance handled, over the mean.
    pub busiest: f64,
    /// Percent of the calls that their first owner answered.
    pub first: f64,
    /// Refusals a call.
    pub refusals: f64,
    /// Messages of calls that were sent, a call: refusals, copies and hedges included.
    pub messages: f64,
    /// Calls that ran, a call: hedges and copies run, too.
    pub work: f64,
    /// Percent of the keys that were warm; zero without caches.
    pub warm: f64,
}

/// Runs a plan by a policy.
pub fn run(plan: &Plan, policy: &Policy) -> Outcome {
    let mut world = World::new(plan, policy);
    while let Some((now, event)) = world.events.pop(Instant::from_micros(u64::MAX)) {
        world.handle(now, event);
    }
    world.outcome()
}

enum Event {
    /// The next call is made.
    Arrive,
    /// A message reaches its instance.
    Reach {
        sent: Sent,
        refuse_at: Option<NonZeroU8>,
    },
    /// A message whose instance is chosen where it arrives, by who sees all queues.
    ReachAny {
        call: u32,
    },
    /// An instance has done its work.
    Done(u16),
    /// An answer reaches the caller.
    Back {
        sent: Sent,
        depth: usize,
        refused: bool,
    },
    /// A call may be hedged.
    Hedge(u32),
    /// A message need not be handled any more.
    Cancel(Sent),
    /// An instance stops for a while, and goes on.
    Pause(u16),
    Resume(u16),
    /// The last instance joins.
    Join,
}

struct Call {
    caller: u16,
    key: u32,
    started: Instant,
    /// At speed 1 and warm, in ms.
    work_ms: f32,
    /// How many of its owners it may go to.
    owners: u8,
    joined: bool,
    standings: Standings,
    /// Places of the owners that messages went to.
    sent: SmallVec<[u8; 4]>,
    replies: u8,
    finished: bool,
}

struct World<'a> {
    plan: &'a Plan,
    policy: &'a Policy,
    arrivals: StdRng,
    draws: StdRng,
    events: Queue<Event>,
    instances: Vec<Instance>,
    callers: Vec<Caller>,
    /// The cumulated popularity of the keys.
    popularity: Vec<f64>,
    /// The first owners of each key: before somebody joined, and after.
    owners: [Vec<SmallVec<[u16; MAX_OWNERS]>>; 2],
    hashes: Vec<u64>,
    joined: bool,
    calls: Vec<Call>,
    /// Mean time between two calls, in ms.
    between_ms: f64,
    latencies: Vec<f64>,
    first: u64,
    refusals: u64,
    messages: u64,
}

impl<'a> World<'a> {
    fn new(plan: &'a Plan, policy: &'a Policy) -> Self {
        let count = plan.speeds.len();
        let hot = usize::from(plan.hot > 0.0);
        let mut popularity: Vec<f64> = Vec::with_capacity(plan.keys);
        let mut sum = 0.0;
        for rank in 1..=plan.keys {
            sum += (rank as f64).powf(-plan.zipf);
            popularity.push(sum);
        }
        popularity.iter_mut().for_each(|share| *share /= sum);
        let keys: Vec<Key> = (0..plan.keys + hot)
            .map(|number| Key::from(format!("key/{}/{number}", plan.seed)))
            .collect();
        let after = placement(plan, count, &keys);
        let before = if plan.joins {
            placement(plan, count - 1, &keys)
        } else {
            after.clone()
        };
        let capacity: f64 = plan.speeds.iter().sum();
        let mut world = World {
            plan,
            policy,
            arrivals: StdRng::seed_from_u64(plan.seed),
            draws: StdRng::seed_from_u64(plan.seed ^ 0x5eed),
            events: Queue::new(),
            instances: (plan.speeds.iter())
                .map(|speed| Instance::new(*speed, plan.cache))
                .collect(),
            callers: (0..plan.callers)
                .map(|number| Caller::new(count, number % 2))
                .collect(),
            popularity,
            owners: [before, after],
            hashes: keys.iter().map(|key| key.hash()).collect(),
            joined: false,
            calls: Vec::with_capacity(plan.calls as usize),
            between_ms: plan.service_ms / (plan.load * capacity),
            latencies: Vec::with_capacity(plan.calls as usize),
            first: 0,
            refusals: 0,
            messages: 0,
        };
        world.events.push(Instant::ZERO, Event::Arrive);
        if let Some((_, every)) = plan.pauses {
            for instance in 0..count as u16 {
                let first = world.exponential(every.as_secs_f64() * 1e3);
                world
                    .events
                    .push(Instant::ZERO + first, Event::Pause(instance));
            }
        }
        if plan.joins {
            let half = millis(world.between_ms * f64::from(plan.calls) / 2.0);
            world.events.push(Instant::ZERO + half, Event::Join);
        }
        world
    }

    fn exponential(&mut self, mean_ms: f64) -> Duration {
        millis(exponential(&mut self.draws, mean_ms))
    }

    fn handle(&mut self, now: Instant, event: Event) {
        match event {
            Event::Arrive => self.arrive(now),
            Event::Reach { sent, refuse_at } => self.reach(sent, refuse_at, now),
            Event::ReachAny { call } => {
                let at = self.seen(call);
                self.calls[call as usize].sent.push(at as u8);
                self.reach(Sent { call, number: 0 }, None, now);
            }
            Event::Done(instance) => self.done(instance, now),
            Event::Back {
                sent,
                depth,
                refused,
            } => self.back(sent, depth, refused, now),
            Event::Hedge(call) => self.hedge(call, now),
            Event::Cancel(sent) => {
                let instance = self.instance_of(sent);
                self.instances[instance]
                    .queue
                    .retain(|other| *other != sent);
            }
            Event::Pause(instance) => {
                let Some((length, every)) = self.plan.pauses else {
                    return;
                };
                let until = now + length;
                self.instances[usize::from(instance)].paused_until = until;
                self.events.push(until, Event::Resume(instance));
                if self.calls.len() < self.plan.calls as usize {
                    let next = length + self.exponential(every.as_secs_f64() * 1e3);
                    self.events.push(now + next, Event::Pause(instance));
                }
            }
            Event::Resume(instance) => self.start(instance, now),
            Event::Join => {
                self.joined = true;
                let last = self.instances.len() - 1;
                self.instances[last].born = Some(now);
                // What is counted is the time after it has joined.
                self.forget_counts();
            }
        }
    }

    fn forget_counts(&mut self) {
        self.latencies.clear();
        (self.first, self.refusals, self.messages) = (0, 0, 0);
        self.instances.iter_mut().for_each(Instance::forget_counts);
    }

    fn arrive(&mut self, now: Instant) {
        let plan = self.plan;
        if self.calls.len() == plan.calls as usize / 10 && !plan.joins {
            self.forget_counts();
        }
        let rng = &mut self.arrivals;
        let caller = rng.random_range(0..plan.callers);
        let (hot, rank) = (rng.random::<f64>(), rng.random::<f64>());
        let key = if hot < plan.hot {
            plan.keys
        } else {
            let rank = self.popularity.partition_point(|share| *share < rank);
            rank.min(plan.keys - 1)
        };
        let work_ms = exponential(rng, plan.service_ms) as f32;
        let next = millis(exponential(rng, self.between_ms));
        let number = self.calls.len() as u32;
        self.calls.push(Call {
            caller: caller as u16,
            key: key as u32,
            started: now,
            work_ms,
            owners: MAX_OWNERS as u8,
            joined: self.joined,
            standings: Standings::new(),
            sent: SmallVec::new(),
            replies: 0,
            finished: false,
        });
        if self.calls.len() < plan.calls as usize {
            self.events.push(now + next, Event::Arrive);
        }
        self.begin(number, now);
    }

    fn begin(&mut self, number: u32, now: Instant) {
        if self.plan.copies.0 > 1 {
            let owners = self.owners_of(number).len();
            for at in 0..self.plan.copies.0.min(owners) {
                self.send(number, at, None, now);
            }
            return;
        }
        match self.policy {
            Policy::Plain => self.send(number, 0, None, now),
            Policy::Local => {
                let at = self.bounded_locally(number);
                self.send(number, at, None, now);
            }
            Policy::Told(depth) => {
                let at = self.by_last_told(number, *depth);
                self.send(number, at, None, now);
            }
            Policy::TwoChoices | Policy::Oracle(_) => {
                self.messages += 1;
                let delay = self.delay(number, 0);
                self.events
                    .push(now + delay, Event::ReachAny { call: number });
            }
            Policy::Ours(ours) => {
                let call = &mut self.calls[number as usize];
                let caller = &mut self.callers[usize::from(call.caller)];
                let hash = self.hashes[call.key as usize];
                call.owners = caller.begin(ours, hash, now) as u8;
                if ours.hedges
                    && let Some(after) = caller.latencies.p95()
                {
                    self.events.push(now + after, Event::Hedge(number));
                }
                self.ask(number, ours, now);
            }
        }
    }

    /// Sends a call to whom the library's routing says.
    fn ask(&mut self, number: u32, ours: &Ours, now: Instant) {
        let draw = self.draws.random();
        let call = &mut self.calls[number as usize];
        let owners = owners_of(&self.owners, call);
        let caller = &mut self.callers[usize::from(call.caller)];
        let hash = self.hashes[call.key as usize];
        let owners = (owners, &mut call.owners);
        let choice = caller.next(ours, hash, owners, &call.standings, now, draw);
        if let Some(Choice { at, refuse_at }) = choice {
            self.send(number, at, refuse_at, now);
        }
    }

    fn send(&mut self, number: u32, at: usize, refuse_at: Option<NonZeroU8>, now: Instant) {
        let delay = self.delay(number, at);
        let call = &mut self.calls[number as usize];
        let sent = Sent {
            call: number,
            number: call.sent.len() as u8,
        };
        call.sent.push(at as u8);
        let instance = usize::from(owners_of(&self.owners, call)[at]);
        let outstanding = &mut self.callers[usize::from(call.caller)].outstanding;
        outstanding.0[instance] += 1;
        outstanding.1 += 1;
        self.messages += 1;
        self.events
            .push(now + delay, Event::Reach { sent, refuse_at });
    }

    fn owners_of(&self, number: u32) -> &[u16] {
        owners_of(&self.owners, &self.calls[number as usize])
    }

    fn instance_of(&self, sent: Sent) -> usize {
        let at = self.calls[sent.call as usize].sent[usize::from(sent.number)];
        usize::from(self.owners_of(sent.call)[usize::from(at)])
    }

    fn delay(&self, number: u32, at: usize) -> Duration {
        let call = &self.calls[number as usize];
        let instance = usize::from(owners_of(&self.owners, call)[at]);
        let zone = self.callers[usize::from(call.caller)].zone;
        let one_way = match self.plan.between_zones_ms {
            Some(between) if instance % 2 != zone => between,
            _ => self.plan.network_ms,
        };
        millis(one_way)
    }

    fn bounded_locally(&self, number: u32) -> usize {
        let call = &self.calls[number as usize];
        let (each, all) = &self.callers[usize::from(call.caller)].outstanding;
        let bound = (1.25 * f64::from(all + 1) / self.instances.len() as f64).ceil();
        let has_room = |instance: &u16| f64::from(each[usize::from(*instance)] + 1) <= bound;
        let found = self.owners_of(number).iter().position(has_room);
        found.unwrap_or(0)
    }

    fn by_last_told(&self, number: u32, depth: u8) -> usize {
        let call = &self.calls[number as usize];
        let told = &self.callers[usize::from(call.caller)].last_told;
        let owners = self.owners_of(number).iter().take(4);
        let told: SmallVec<[u8; 4]> = owners.map(|at| told[usize::from(*at)]).collect();
        least_or_first_below(&told, depth)
    }

    /// Where who sees all queues sends a call, at the moment at which it is there.
    fn seen(&mut self, number: u32) -> usize {
        let owners = owners_of(&self.owners, &self.calls[number as usize]);
        let depths: SmallVec<[usize; MAX_OWNERS]> = owners
            .iter()
            .map(|at| self.instances[usize::from(*at)].depth())
            .collect();
        match self.policy {
            Policy::Oracle(depth) => least_or_first_below(&depths, usize::from(*depth)),
            _ if depths.len() < 2 || depths[0] < depths[1] => 0,
            _ if depths[1] < depths[0] => 1,
            // A coin, as nothing tells the two apart.
            _ => usize::from(self.draws.random::<bool>()),
        }
    }

    fn reach(&mut self, sent: Sent, refuse_at: Option<NonZeroU8>, now: Instant) {
        let at = self.instance_of(sent);
        let instance = &mut self.instances[at];
        let depth = instance.depth();
        let is_slow_start = matches!(self.policy, Policy::Ours(ours) if ours.slow_start);
        let age = match instance.born {
            Some(born) if is_slow_start => now.since(born),
            _ => Duration::MAX,
        };
        if refuse_at.is_some_and(|limit| depth >= limit_at(limit, age)) {
            return self.answer(sent, true, now);
        }
        instance.queue.push_back(sent);
        self.start(at as u16, now);
    }

    fn answer(&mut self, sent: Sent, refused: bool, now: Instant) {
        let at = self.calls[sent.call as usize].sent[usize::from(sent.number)];
        let depth = self.instances[self.instance_of(sent)].depth();
        let back = Event::Back {
            sent,
            depth,
            refused,
        };
        let delay = self.delay(sent.call, usize::from(at));
        self.events.push(now + delay, back);
    }

    /// An instance takes the next call, if it can.
    fn start(&mut self, at: u16, now: Instant) {
        let instance = &mut self.instances[usize::from(at)];
        if instance.at_work.is_some() || now < instance.paused_until {
            return;
        }
        let Some(sent) = instance.queue.pop_front() else {
            return;
        };
        let call = &self.calls[sent.call as usize];
        let takes = millis(f64::from(call.work_ms) * instance.cost(call.key, now));
        instance.at_work = Some(sent);
        instance.handled += 1;
        instance.busy += takes;
        self.events.push(now + takes, Event::Done(at));
    }

    fn done(&mut self, at: u16, now: Instant) {
        if let Some(sent) = self.instances[usize::from(at)].at_work.take() {
            self.answer(sent, false, now);
        }
        self.start(at, now);
    }

    fn back(&mut self, sent: Sent, depth: usize, refused: bool, now: Instant) {
        let instance = self.instance_of(sent);
        let call = &mut self.calls[sent.call as usize];
        let caller = &mut self.callers[usize::from(call.caller)];
        caller.told(instance, depth, now);
        if matches!(self.policy, Policy::TwoChoices | Policy::Oracle(_)) {
            // These were never counted as outstanding.
        } else {
            caller.outstanding.0[instance] -= 1;
            caller.outstanding.1 -= 1;
        }
        let at = usize::from(call.sent[usize::from(sent.number)]);
        if refused {
            self.refusals += 1;
            stand(&mut call.standings, at, OwnerStanding::Refused);
            if let Policy::Ours(ours) = self.policy
                && !call.finished
            {
                // There was one when it was asked; others of this caller may have taken it meanwhile.
                let _ = caller.withdraw(ours, now);
                self.ask(sent.call, ours, now);
            }
            return;
        }
        call.replies += 1;
        if call.finished || usize::from(call.replies) < self.plan.copies.1 {
            return;
        }
        call.finished = true;
        let latency = now.since(call.started);
        caller.latencies.record(latency);
        self.first += u64::from(at == 0);
        self.latencies.push(latency.as_secs_f64() * 1e3);
        if self.plan.cancels {
            for number in 0..call.sent.len() as u8 {
                let other = Sent { number, ..sent };
                if other != sent {
                    let at = self.calls[sent.call as usize].sent[usize::from(number)];
                    let delay = self.delay(sent.call, usize::from(at));
                    self.events.push(now + delay, Event::Cancel(other));
                }
            }
        }
    }

    fn hedge(&mut self, number: u32, now: Instant) {
        let Policy::Ours(ours) = self.policy else {
            return;
        };
        let call = &mut self.calls[number as usize];
        if call.finished {
            return;
        }
        for at in call.sent.iter().map(|at| usize::from(*at)) {
            if call.standings.get(at) != Some(&OwnerStanding::Refused) {
                stand(&mut call.standings, at, OwnerStanding::Out);
            }
        }
        let owners = owners_of(&self.owners, call);
        let most = usize::from(call.owners).max(2);
        let candidates = &owners[..owners.len().min(most)];
        let caller = &mut self.callers[usize::from(call.caller)];
        if let Some(at) = caller.hedge(ours, candidates, &call.standings, now) {
            self.send(number, at, None, now);
        }
    }

    fn outcome(mut self) -> Outcome {
        self.latencies.sort_by(f64::total_cmp);
        let calls = self.latencies.len();
        let handled: u64 = self.instances.iter().map(|one| one.handled).sum();
        let most = self.instances.iter().map(|one| one.handled).max();
        let mean = handled as f64 / self.instances.len() as f64;
        let hits = self.instances.iter().map(Instance::hits);
        let hits = hits.fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
        let each = |count: u64| count as f64 / (calls as f64).max(1.0);
        Outcome {
            calls,
            p50: quantile_of_sorted(&self.latencies, 0.5),
            p99: quantile_of_sorted(&self.latencies, 0.99),
            p999: quantile_of_sorted(&self.latencies, 0.999),
            busiest: most.unwrap_or(0) as f64 / mean.max(1.0),
            first: each(self.first) * 100.0,
            refusals: each(self.refusals),
            messages: each(self.messages),
            work: each(handled),
            warm: hits.0 as f64 / (hits.1 as f64).max(1.0) * 100.0,
        }
    }
}

fn owners_of<'a>(owners: &'a [Vec<SmallVec<[u16; MAX_OWNERS]>>; 2], call: &Call) -> &'a [u16] {
    &owners[usize::from(call.joined)][call.key as usize]
}

fn stand(standings: &mut Standings, at: usize, standing: OwnerStanding) {
    if standings.len() <= at {
        standings.resize(at + 1, OwnerStanding::Open);
    }
    standings[at] = standing;
}

/// The first with less than that; the first of the least where there is none.
fn least_or_first_below<T: Ord + Copy>(depths: &[T], limit: T) -> usize {
    let below = depths.iter().position(|depth| *depth < limit);
    let least = depths.iter().enumerate().min_by_key(|(_, depth)| **depth);
    below.or(least.map(|(at, _)| at)).unwrap_or(0)
}

fn millis(millis: f64) -> Duration {
    Duration::from_secs_f64(millis.max(0.0) / 1e3)
}

fn exponential(rng: &mut StdRng, mean: f64) -> f64 {
    -mean * (1.0 - rng.random::<f64>()).ln()
}
