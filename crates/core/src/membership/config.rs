//! Timing of membership, and what is counted of it.

use std::num::{NonZeroU8, NonZeroUsize};
use std::time::Duration;

use crate::rules::{Rule, RuleSet};
use crate::settings::Settings;
use foca::PeriodicParams;

/// Shortest and longest time between two probes.
const PROBE_RANGE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));
/// Longest wait before evidence of a single link is believed: with 100 ms, cutting one link of 300 nodes gave 541
/// false downs; with 400 ms none.
const MAX_EVIDENCE_WAIT: Duration = Duration::from_millis(400);
/// How often an update is passed on: with the engine's own formula a `Down` took 33–52 s to reach 300 nodes.
const MAX_TRANSMISSIONS: NonZeroU8 = NonZeroU8::new(16).expect("not zero");
/// How many members help with a probe, or are gossiped to at once.
const FAN_OUT: NonZeroUsize = NonZeroUsize::new(3).expect("not zero");
/// How many dead members are tried each [`ANNOUNCE_TO_DOWN_INTERVAL`].
const ANNOUNCE_TO_DOWN_COUNT: NonZeroUsize = NonZeroUsize::new(2).expect("not zero");
/// Without this, a partition never heals.
const ANNOUNCE_TO_DOWN_INTERVAL: Duration = Duration::from_secs(1);
/// How often one random member is asked for all it knows, should gossip have missed something.
const ANNOUNCE_INTERVAL: Duration = Duration::from_secs(10);
/// Longest packet of the engine: frames travel over TCP.
const MAX_PACKET_BYTES: NonZeroUsize = NonZeroUsize::new(64 * 1024).expect("not zero");

/// The timing of membership, which follows from the `down_period`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MembershipConfig {
    pub(super) down_period: Duration,
    pub(super) permdown_period: Duration,
    pub(super) probe: Duration,
    pub(super) probe_rtt: Duration,
    pub(super) suspicion: Duration,
    pub(super) gossip: Duration,
    pub(super) isolation: Duration,
    pub(super) evidence_wait: Duration,
}

impl MembershipConfig {
    /// Derives the timing from the settings.
    pub fn new(settings: &Settings) -> Self {
        let down_period = settings.down_period();
        let probe = (down_period * 2 / 15).clamp(PROBE_RANGE.0, PROBE_RANGE.1);
        MembershipConfig {
            down_period,
            permdown_period: settings.permdown_period(),
            probe,
            probe_rtt: probe / 2,
            suspicion: down_period * 2 / 3,
            gossip: probe / 4,
            isolation: (down_period + probe).max(probe * 8),
            evidence_wait: (down_period / 3).min(MAX_EVIDENCE_WAIT),
        }
    }

    /// From one probe to the next.
    pub fn probe_period(&self) -> Duration {
        self.probe
    }

    /// How long a probe waits for its answer before others are asked to help.
    pub fn probe_timeout(&self) -> Duration {
        self.probe_rtt
    }

    /// How often what is to be passed on goes to [`gossip_fan_out`](Self::gossip_fan_out) members.
    pub fn gossip_period(&self) -> Duration {
        self.gossip
    }

    /// How many members are gossiped to at once.
    pub fn gossip_fan_out(&self) -> usize {
        FAN_OUT.get()
    }

    pub(super) fn engine(&self, rules: RuleSet) -> foca::Config {
        foca::Config {
            probe_period: self.probe,
            probe_rtt: self.probe_rtt,
            num_indirect_probes: FAN_OUT,
            max_transmissions: if rules.holds(Rule::WideSpread) {
                MAX_TRANSMISSIONS
            } else {
                NonZeroU8::MIN
            },
            suspect_to_down_after: self.suspicion,
            remove_down_after: Some(self.permdown_period),
            max_packet_size: MAX_PACKET_BYTES,
            notify_down_members: rules.holds(Rule::NotifyDown),
            periodic_announce: Some(PeriodicParams {
                frequency: ANNOUNCE_INTERVAL,
                num_members: NonZeroUsize::MIN,
            }),
            periodic_announce_to_down_members: rules.holds(Rule::AnnounceToDown).then_some(
                PeriodicParams {
                    frequency: ANNOUNCE_TO_DOWN_INTERVAL,
                    num_members: ANNOUNCE_TO_DOWN_COUNT,
                },
            ),
            periodic_gossip: Some(PeriodicParams {
                frequency: self.gossip,
                num_members: FAN_OUT,
            }),
        }
    }
}

/// How often rules of membership made a difference, for tests that want to know what they exercised.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct MembershipCounts {
    /// News of lives that had left, which were not heeded.
    pub barred: u64,
    /// Suspicions of strangers, which were not heeded.
    pub strangers: u64,
    /// Suspicions that had been refuted when their time was over.
    pub refuted: u64,
    /// Suspects that talked and were told.
    pub told: u64,
    /// Higher generations of this node's own name that were reported.
    pub conflicts: u64,
    /// Engines whose timers were started again after the node came back.
    pub rearmed: u64,
    /// Death notices that were told by way of somebody.
    pub verdicts: u64,
    /// Nodes that were suspected because they did not answer a death notice.
    pub unanswered: u64,
    /// News that a node is down, of one accuser alone.
    pub accusations: u64,
    /// The same of accusers who had been wrong about that node.
    pub unheeded: u64,
    /// Nodes that answered when they were accused.
    pub acquitted: u64,
    /// News of later lives, or of returns, that only one member has told so far.
    pub hearsay: u64,
    /// Generations far ahead of this node's clock.
    pub implausible: u64,
    /// Later lives that somebody made up, and that the node itself contradicted.
    pub uncovered: u64,
}
