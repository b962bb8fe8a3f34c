//! The simulator of routing: callers, keys and instances with queues under virtual time, and what policies make of them.
//!
//! What it calls "ours" is the library's own code, `keydispatch_core::route`, on the placement that the library has. The others
//! are what people do elsewhere, and an oracle that sees every queue.

mod caller;
mod instance;
mod placement;
mod plan;
mod seeds;
mod tables;
#[cfg(test)]
mod tests;
mod world;

use keydispatch_core::Routing;
use keydispatch_measure::Output;

pub use plan::{Cache, Plan, Policy};
pub use world::{Outcome, run as simulate};

/// Simulates routing: policies side by side.
#[derive(Clone, Debug, clap::Args)]
pub struct RouteArgs {
    /// Of everything that happens by chance.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// How many seeds each row is run with, from that one on: the median and the worst are printed.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=100))]
    pub seeds: u64,
    /// Calls of each row and policy.
    #[arg(long, default_value_t = 300_000, value_parser = clap::value_parser!(u32).range(1_000..))]
    pub calls: u32,
    /// Prints a JSON object last.
    #[arg(long)]
    pub json: bool,
    /// One row of your own instead of the tables: callers.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub callers: Option<u16>,
    /// Of the row of your own: instances.
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u16).range(1..=1_000), requires = "callers")]
    pub instances: u16,
    /// Of the row of your own: Zipf exponent of the keys.
    #[arg(long, value_name = "S", default_value_t = 1.0, value_parser = non_negative, requires = "callers")]
    pub zipf: f64,
    /// Of the row of your own: keys.
    #[arg(long, value_name = "N", default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000), requires = "callers")]
    pub keys: u32,
    /// Of the row of your own: what all instances together are asked for, as a share of what they can do.
    #[arg(long, value_name = "SHARE", default_value_t = 0.7, value_parser = positive, requires = "callers")]
    pub load: f64,
    /// Of the row of your own: mean service time, exponentially distributed.
    #[arg(long, value_name = "MS", default_value_t = 1.0, value_parser = positive, requires = "callers")]
    pub service_ms: f64,
    /// Of the row of your own: one way through the network.
    #[arg(long, value_name = "MS", default_value_t = 0.05, value_parser = non_negative, requires = "callers")]
    pub network_ms: f64,
    /// Of the row of your own: how many times slower the first instance is.
    #[arg(long, value_name = "FACTOR", default_value_t = 1.0, value_parser = positive, requires = "callers")]
    pub slow: f64,
    /// Of the row of your own: the share of all calls that are for one key.
    #[arg(long, value_name = "SHARE", default_value_t = 0.0, value_parser = non_negative, requires = "callers")]
    pub hot: f64,
    /// Of the row of your own: keys that an instance keeps warm; none without.
    #[arg(long, value_name = "KEYS", requires = "callers")]
    pub cache: Option<u32>,
    /// Of the row of your own: how many times longer a call for a key that is not warm takes.
    #[arg(long, value_name = "FACTOR", default_value_t = 4.0, value_parser = positive, requires = "cache")]
    pub cold: f64,
    /// Of the row of your own: the depth at which owners refuse.
    #[arg(long, value_name = "CALLS", default_value_t = 8, value_parser = clap::value_parser!(u8).range(1..), requires = "callers")]
    pub depth: u8,
    /// Of the row of your own: owners that a call may go to.
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u8).range(1..=16), requires = "callers")]
    pub owners: u8,
    /// Of the row of your own: how much longer than the next one's an owner's queue is told to be before it is passed by.
    #[arg(long, value_name = "CALLS", requires = "callers")]
    pub stay: Option<u8>,
}

fn positive(text: &str) -> Result<f64, String> {
    let value = non_negative(text)?;
    if value == 0.0 {
        return Err("it has to be more than zero".to_owned());
    }
    Ok(value)
}

fn non_negative(text: &str) -> Result<f64, String> {
    let value: f64 = text.parse().map_err(|_| "it is not a number".to_owned())?;
    if value.is_finite() && (0.0..=1e6).contains(&value) {
        Ok(value)
    } else {
        Err("it has to be between 0 and a million".to_owned())
    }
}

impl RouteArgs {
    /// The row that the arguments describe, where they describe one.
    fn own(&self) -> Option<(Plan, Routing)> {
        let callers = self.callers?;
        let mut plan = Plan {
            callers: callers.into(),
            zipf: self.zipf,
            keys: self.keys as usize,
            load: self.load,
            service_ms: self.service_ms,
            network_ms: self.network_ms,
            hot: self.hot.min(1.0),
            cache: self.cache.map(|keys| Cache {
                keys: keys as usize,
                cold: self.cold,
            }),
            ..Plan::new(self.instances.into(), self.seed, self.calls)
        };
        plan.speeds[0] /= self.slow;
        let routing = Routing::Bounded {
            owners: self.owners,
            depth: self.depth,
            stay: self.stay,
        };
        Some((plan, routing))
    }
}

/// Runs the command; fails where a target is missed.
pub fn run_command(args: &RouteArgs, say: fn(&str)) -> std::process::ExitCode {
    let output = Output {
        say,
        json: args.json,
    };
    let seeds = args.seed..args.seed.saturating_add(args.seeds);
    let all_met = match args.own() {
        Some((plan, routing)) => tables::own(&output, &plan, routing, seeds),
        None => tables::all(&output, seeds, args.calls),
    };
    match all_met {
        Ok(true) => std::process::ExitCode::SUCCESS,
        Ok(false) | Err(_) => std::process::ExitCode::FAILURE,
    }
}
