//! The rules of the protocol by name, each of which can be turned off to see who notices.

use keydispatch_core::silence::SilenceRules;
use keydispatch_core::{Rules, TrackerRules};

/// All rules that can be turned off; by default they hold.
#[derive(Clone, Debug, Default)]
pub struct Switches {
    /// Of membership.
    pub membership: Rules,
    /// Of replication.
    pub tracker: TrackerRules,
    /// Of silent data links.
    pub silence: SilenceRules,
}

/// One rule that is turned off.
#[derive(Clone, Copy, Debug)]
pub struct Without {
    /// What it is asked for by.
    pub name: &'static str,
    turn_off: fn(&mut Switches),
}

macro_rules! without {
    ($($part:ident: $($rule:ident),*;)*) => {
        const ALL: &[Without] = &[
            $($(Without { name: stringify!($rule), turn_off: |switches| switches.$part.$rule = false },)*)*
        ];
    };
}

without! {
    membership: suspect_guard, wide_spread, notify_down, verdict_is_told, verdict_is_evidence, suspects_are_known, suspects_are_told, announce_to_down, redial_dead,
        generation_above_known, join_announces, rearm_after_rejoin, isolation,
        left_is_final, rename_is_death, link_evidence, link_introduces, name_conflict,
        own_word, plausible_generations, two_accusers, paced_renewals, refusals_are_hearsay;
    tracker: contiguity, hiding, confirming, digests, forgetting, owners_word, agreeing_relays, paced_fetches;
    silence: own_pauses;
}

impl Without {
    /// The rule of that name.
    pub fn named(name: &str) -> Option<Without> {
        ALL.iter().find(|without| without.name == name).copied()
    }

    /// All names.
    pub fn names() -> Vec<&'static str> {
        ALL.iter().map(|without| without.name).collect()
    }

    /// All rules but these.
    pub fn rules(off: &[Without]) -> Switches {
        let mut switches = Switches::default();
        for without in off {
            (without.turn_off)(&mut switches);
        }
        switches
    }
}
