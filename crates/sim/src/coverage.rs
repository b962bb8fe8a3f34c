//! How often each thing that can go wrong did: a run that did not see it has not tested it.

use serde::Serialize;

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident: $minimum:literal,)*) => {
        /// See the module. Each counter is a sum over all nodes and histories.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
        pub struct Coverage {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl Coverage {
            /// Adds what another history saw.
            pub fn add(&mut self, other: &Coverage) {
                $(self.$name += other.$name;)*
            }

            /// Name, count, and the least that 10,000 histories must have seen.
            pub fn rows(&self) -> Vec<(&'static str, u64, u64)> {
                vec![$((stringify!($name), self.$name, $minimum),)*]
            }
        }
    };
}

counters! {
    /// Deltas that were not contiguous.
    gaps: 1_000,
    /// Suffixes of a log that were served.
    suffixes: 1_000,
    /// Snapshots of an owner's own entries that were served.
    snapshots: 10_000,
    /// Snapshots of another owner's entries that were served.
    relayed_snapshots: 100,
    /// Snapshots that were given up before their end.
    interrupted_snapshots: 100,
    /// Snapshots that were installed.
    installed_snapshots: 10_000,
    /// Nodes that found themselves cut off.
    isolations: 1_000,
    /// New generations that a running node took.
    renewals: 100,
    /// Nodes that learnt in a handshake of a higher generation of their name.
    generation_conflicts: 100,
    /// Rivals for a name that turned out to be earlier lives.
    ghosts: 10,
    /// Nodes that were asked whether they live, because another had their name.
    challenges: 100,
    /// Nodes that stopped because a living one had their name.
    name_clashes: 100,
    /// Nodes that left.
    goodbyes: 1_000,
    /// Reports of a death where the node had left: the goodbye was lost, or came second.
    goodbye_races: 100,
    /// Peers that were suspended because their data link was silent.
    suspensions: 10_000,
    /// Members that were under suspicion, sampled each second.
    suspicions: 1_000,
    /// Members that were reported down.
    downs: 10_000,
    /// Members that came back in the same life.
    returns: 1_000,
    /// News of lives that had left, which were not heeded.
    barred: 10_000,
    /// Suspicions of strangers, which were not heeded.
    strangers: 100_000,
    /// Suspicions that had been refuted when their time was over.
    refuted: 50_000,
    /// Suspects that talked and were told.
    told: 50_000,
    /// Higher generations of a node's own name that it heard of from others.
    conflicts: 100,
    /// Nodes that came back and had to start their engine's timers again.
    rearmed: 10_000,
    /// Verdicts that were told by way of somebody.
    verdicts: 100_000,
    /// Nodes that were suspected because they did not answer a verdict.
    unanswered: 10_000,
    /// Links whose queue was long.
    congestions: 100,
    /// Links that were closed because their queue was too long.
    overruns: 1,
    /// Connections that broke with bytes in flight.
    resets: 1_000,
    /// Dials that nobody answered.
    dial_timeouts: 1_000,
    /// Dials that were refused.
    dial_refusals: 1_000,
    /// Processes that were killed.
    kills: 1_000,
    /// Hosts that died without a word.
    host_deaths: 1_000,
    /// Processes that started under a name that had been used before.
    restarts: 1_000,
    /// Of those, with a clock that had gone back.
    clocks_gone_back: 100,
    /// Of those, on another host.
    moves: 100,
    /// Cuts of any kind.
    cuts: 1_000,
    /// Cuts of one direction only.
    one_way_cuts: 100,
    /// Messages of a member that lies.
    lies: 0,
    /// Pauses of a process.
    pauses: 1_000,
    /// Processes that became slow.
    slow_downs: 100,
}
