//! What is simulated: who calls, for which keys, what it costs, and by which policy.

use std::time::Duration;

use keydispatch_core::Routing;

/// A cache in each instance: keys that were called last are warm.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cache {
    /// Keys that stay warm.
    pub keys: usize,
    /// How many times longer a call for another key takes.
    pub cold: f64,
}

/// What happens, whatever the policy.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Of everything that happens by chance.
    pub seed: u64,
    /// Calls that are made. The first tenth warms up, and is not counted.
    pub calls: u32,
    /// Callers; each sees its own calls alone.
    pub callers: usize,
    /// What each instance can do, relative to the others: each handles one call at a time.
    pub speeds: Vec<f64>,
    /// Their weights in placement.
    pub weights: Vec<u16>,
    /// Distinct keys.
    pub keys: usize,
    /// The exponent of their popularity: the key of rank r is called r⁻ˢ times as often as the first.
    pub zipf: f64,
    /// The share of all calls that are for one key, beside that.
    pub hot: f64,
    /// Work that is asked for, as a share of what all instances can do with warm caches.
    pub load: f64,
    /// Mean time of a call at an instance of speed 1, in ms; exponentially distributed.
    pub service_ms: f64,
    /// One way through the network, in ms.
    pub network_ms: f64,
    /// One way between zones instead, in ms, where instances and callers are in two of them.
    pub between_zones_ms: Option<f64>,
    /// What instances keep of keys.
    pub cache: Option<Cache>,
    /// Each instance pauses for so long, every so often (exponentially distributed).
    pub pauses: Option<(Duration, Duration)>,
    /// The last instance joins at half time, takes four times as long at first, and is at its speed after ten seconds.
    pub joins: bool,
    /// Calls go to this many owners at once, and so many of their replies are waited for.
    pub copies: (usize, usize),
    /// Those that are not waited for any more are cancelled.
    pub cancels: bool,
}

impl Plan {
    /// Ten thousand keys at Zipf 1.0, a hundred callers, load 0.7, 1 ms a call, 0.1 ms there and back.
    pub fn new(instances: usize, seed: u64, calls: u32) -> Self {
        Plan {
            seed,
            calls,
            callers: 100,
            speeds: vec![1.0; instances],
            weights: vec![100; instances],
            keys: 10_000,
            zipf: 1.0,
            hot: 0.0,
            load: 0.7,
            service_ms: 1.0,
            network_ms: 0.05,
            between_zones_ms: None,
            cache: None,
            pauses: None,
            joins: false,
            copies: (1, 1),
            cancels: true,
        }
    }
}

/// Who decides where a call goes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Policy {
    /// Always the first owner.
    Plain,
    /// The first owner that has not more than 1.25 times its share of what this caller has on its way (bounded loads as in
    /// Envoy's `hash_balance_factor`).
    Local,
    /// The first of four owners whose last reply to this caller told fewer than so many; the least of them where none did.
    Told(u8),
    /// The less loaded of the first two owners, whose queues it sees.
    TwoChoices,
    /// The first of sixteen owners with fewer than so many calls, as it sees all queues; the least of them where none is.
    Oracle(u8),
    /// The library's.
    Ours(Ours),
}

/// The library's routing, and what belongs to it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ours {
    /// See there.
    pub routing: Routing,
    /// Refusals of a call: two in the library.
    pub refusals: u8,
    /// Retries in percent of a caller's calls, and a second on top.
    pub budget: (u32, u32),
    /// Owners in the caller's zone come first.
    pub near: bool,
    /// Young instances refuse earlier.
    pub slow_start: bool,
    /// The second owner is asked after the caller's 95th percentile.
    pub hedges: bool,
}

impl Ours {
    /// As the library does it by default, with that routing.
    pub fn new(routing: Routing) -> Self {
        Ours {
            routing,
            refusals: keydispatch_core::route::MAX_REFUSALS,
            budget: (20, 10),
            near: false,
            slow_start: true,
            hedges: false,
        }
    }

    /// Four owners that refuse at that depth.
    pub fn at(depth: u8) -> Self {
        Ours::new(Routing::Bounded {
            owners: 4,
            depth,
            stay: None,
        })
    }
}

impl Policy {
    /// As it is called in tables.
    pub fn name(&self) -> String {
        match self {
            Policy::Plain => "plain".to_owned(),
            Policy::Local => "local bound".to_owned(),
            Policy::Told(depth) => format!("told in replies, {depth}"),
            Policy::TwoChoices => "two choices".to_owned(),
            Policy::Oracle(depth) => format!("oracle at {depth}"),
            Policy::Ours(Ours { routing, .. }) => match routing {
                Routing::Owner => "ours: owner".to_owned(),
                Routing::Bounded { depth, stay, .. } => match stay {
                    Some(stay) => format!("ours at {depth}, stay {stay}"),
                    None => format!("ours at {depth}"),
                },
            },
        }
    }
}
