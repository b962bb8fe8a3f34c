//! The rules of the protocol by name. The code names a rule where it follows it.
//!
//! In production all of them hold, and asking costs nothing: [`RuleSet`] has no size, and [`RuleSet::holds`] is a constant.
//! Tests and the simulator turn rules off, by the feature `fault-switches`, to see that somebody notices.

macro_rules! rules {
    ($($(#[$doc:meta])* $part:ident $rule:ident $name:literal;)*) => {
        /// A rule of the protocol: what it says, and what goes wrong without it.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Rule {
            $($(#[$doc])* $rule,)*
        }

        impl Rule {
            /// All of them, those of one part together.
            pub const ALL: &'static [Rule] = &[$(Rule::$rule),*];

            /// What it is asked for by.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Rule::$rule => $name,)*
                }
            }

            /// What part of the protocol it belongs to.
            pub const fn part(self) -> Part {
                match self {
                    $(Rule::$rule => Part::$part,)*
                }
            }
        }
    };
}

/// A part of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Who is up.
    Membership,
    /// Each node's entries to all nodes.
    Replication,
    /// Data links that say nothing.
    Keepalive,
    /// Who holds the state of a key; the numbers R1 to R14 are those of [`ownership`](crate::ownership).
    Ownership,
}

rules! {
    /// A suspect is declared down only if it still is one, at the same incarnation. Without it the engine's timer takes
    /// down whoever has refuted the suspicion since.
    Membership SuspectGuard "suspect_guard";
    /// An update is passed on 16 times. Without it news dies out before everybody has heard it.
    Membership WideSpread "wide_spread";
    /// A member that was declared down and talks is told so, and comes back. Without it a node that was only slow stays
    /// down for whoever gave it up.
    Membership NotifyDown "notify_down";
    /// Who is down here and up for a peer is told by way of that peer. Without it one of two nodes that have no way to each
    /// other holds the other down for as long as it remembers the dead.
    Membership VerdictIsTold "verdict_is_told";
    /// Who passes such a notice on and hears nothing of it from the accused suspects it, too. Without it whoever missed the
    /// news of a death lists the dead until their turn of being probed comes.
    Membership VerdictIsEvidence "verdict_is_evidence";
    /// Nobody is introduced by a suspicion. Without it the last thing that is said of the long dead lists them again.
    Membership SuspectsAreKnown "suspects_are_known";
    /// A suspect that talks is told that it is one. Without it one that missed the gossip never refutes it, and the next
    /// probe that fails takes it down.
    Membership SuspectsAreTold "suspects_are_told";
    /// Two of the dead are tried every second. Without it a partition never heals by itself.
    Membership AnnounceToDown "announce_to_down";
    /// The dead are dialled again, the most recent first. Without it the halves of a cluster that are linked to nobody of the
    /// other half never talk again.
    Membership RedialDead "redial_dead";
    /// A generation is above all that were ever heard of for its name. Without it a process whose clock has gone back is
    /// taken for its own past.
    Membership GenerationAboveKnown "generation_above_known";
    /// A newcomer asks random members for all they know, five times in its first seconds. Without it it learns late of those
    /// that gossip has already stopped speaking of.
    Membership JoinAnnounces "join_announces";
    /// After coming back, the engine's timers are started at once. Without it a node that came back waits for a packet before
    /// it probes anybody, and there may be none.
    Membership RearmAfterRejoin "rearm_after_rejoin";
    /// Whoever hears of nobody is the one that is cut off. Without it it takes down everybody else, one by one, and says so
    /// when it is back.
    Membership Isolation "isolation";
    /// A life that has left never comes back. Without it late gossip lists it again.
    Membership LeftIsFinal "left_is_final";
    /// Another generation of a name is another life: the old one is down. Without it nobody hears that the process has ended
    /// which they had links and calls to.
    Membership RenameIsDeath "rename_is_death";
    /// Refused connections are evidence. Without it a process that has ended is up until its turn of being probed comes.
    Membership LinkEvidence "link_evidence";
    /// A node that is linked is known at once. Without it a newcomer waits for gossip about whom it is talking to.
    Membership LinkIntroduces "link_introduces";
    /// A later life of a name, or a later return of a life, is believed of the node itself, or of two who say so. Without it
    /// one packet about a life that nobody has led shuts a node out for as long as the dead are remembered.
    Membership OwnWord "own_word";
    /// A generation far ahead of this node's clock is refused. Without it a name can be told to be so far ahead that no
    /// process can ever take it again.
    Membership PlausibleGenerations "plausible_generations";
    /// One accuser alone takes nobody down who answers here. Without it one member keeps any other one down everywhere, for
    /// as long as it likes.
    Membership TwoAccusers "two_accusers";
    /// This node takes a new generation at most once a second, and ever more rarely. Without it whoever says that there is a
    /// later life of its name makes it begin anew as often as it says so.
    Membership PacedRenewals "paced_renewals";
    /// Only a living node of the same name ends this one, not what others say of it. Without it one member ends any process
    /// by saying that its name is taken.
    Membership RefusalsAreHearsay "refusals_are_hearsay";
    /// Other lives of this node's own name are kept from the engine, and a higher one is reported. Without it the engine gives
    /// up this node's identity for one that others speak of.
    Membership NameConflict "name_conflict";

    /// A delta is applied only where it is contiguous. Without it a copy says that it has a version of which parts are missing.
    Replication Contiguity "contiguity";
    /// An owner's entries show only while membership says that it is up in exactly that generation. Without it keys stay with
    /// the dead.
    Replication Hiding "hiding";
    /// Up again, an owner's entries show only once its current version is known and reached. Without it readers see what the
    /// owner had before, and may have removed since.
    Replication Confirming "confirming";
    /// Versions are compared now and then. Without it what was lost is missed only with the owner's next change.
    Replication Digests "digests";
    /// The dead are forgotten after `permdown_period`. Without it every process that ever ran takes memory.
    Replication Forgetting "forgetting";
    /// What the owner itself says replaces what others say of it, whatever the version. Without it one peer that tells of a
    /// version which nobody has makes a copy that the owner cannot put right.
    Replication OwnersWord "owners_word";
    /// A copy by way of others is taken where two of them have it. Without it one peer makes up the entries of an owner that
    /// there is no link to.
    Replication AgreeingRelays "agreeing_relays";
    /// What is missing of an owner is asked for at a bounded rate. Without it whoever says again and again that there is more
    /// has it fetched as often as answers take.
    Replication PacedFetches "paced_fetches";

    /// A process that did not run itself judges nobody by the silence of that time. Without it whoever stood still suspends
    /// all peers at once when it goes on.
    Keepalive OwnPauses "own_pauses";

    /// R1, first half: nothing is claimed or concluded before this node is synced. Without it a newcomer that knows nobody yet
    /// begins anew what others hold.
    Ownership Synced "synced";
    /// R1, second half: who knows nobody any more looks for the others before it claims again. Without it two newcomers that
    /// had met nobody but a node that has just died both begin anew.
    Ownership StillSynced "still_synced";
    /// R2: who is first claims, and does not serve by its view alone. Without it there are two holders wherever views differ.
    Ownership Claims "claims";
    /// R2: the expected holder is asked before all others. For cost; and for safety where `asks_anew` does not hold: without
    /// both, a claimant takes for free what has moved to somebody it asked before.
    Ownership ExpectedFirst "expected_first";
    /// R3: an answer counts for the question that it answers, and for no earlier or later one. Without it an answer that was
    /// true once says that a slot is free which has been taken since.
    Ownership Questions "questions";
    /// R3: who goes down before it has answered starts the questions of that round anew. Without it what it gave away while
    /// others were asked is with nobody that was asked.
    Ownership AsksAnew "asks_anew";
    /// R4: answers name the members that the claimant may not know, and these are asked. Without it one of them may hold.
    Ownership Closure "closure";
    /// R5: a holder yields only to whoever outranks it. Without it a slot goes back and forth between two whose views differ.
    Ownership Ranks "ranks";
    /// R6: states are adopted only by a claim of the round that they were sent for. Without it states that come late are held
    /// by two.
    Ownership Rounds "rounds";
    /// R7: who gave a slot away says to whom. Without it nobody asks a receiver that the claimant does not know of.
    Ownership Pointers "pointers";
    /// R8: nothing is served from the moment that states are on their way. Without it what is written then is lost.
    Ownership Freezes "freezes";
    /// R8: what was given is kept until it was adopted. Without it states are lost with a receiver that dies.
    Ownership Keeps "keeps";
    /// R8: what was adopted is not passed on before the giver knows. Without it the giver takes back what a third one holds.
    Ownership Settles "settles";
    /// R8: few pieces are on their way to one receiver at a time. Without it a slow one makes this node keep copies of all.
    Ownership Window "window";
    /// R9: a life that is down here is not heard. Without it what it sent before its slots were begun anew makes a second
    /// holder.
    Ownership DeadAreSilent "dead_are_silent";
    /// R9: another life of this node's own name is dead by definition. Without it a claim that is pointed there waits for ever:
    /// nobody says of it that it is down.
    Ownership OwnLives "own_lives";
    /// R10: calls wait while a claim is under way. Without it they are sent on again and again.
    Ownership Parks "parks";
    /// R10: calls go to the holder while it says that the slot is coming and nothing has come. Without it they wait for large
    /// states where their holder could still run them.
    Ownership MovesWhileComing "moves_while_coming";
    /// R10: a call that comes to the wrong place is sent on. For whoever drives calls; without it it fails there.
    Ownership Moved "moved";
    /// R11: who holds what is another's by its view says so to that one. Without it two copies never meet.
    Ownership Offers "offers";
    /// R12: who stood still for long asks before it serves on. Without it it serves what was begun anew elsewhere meanwhile.
    Ownership Doubts "doubts";
    /// R13: what was not answered is said again. Without it a lost message holds a slot up for ever.
    Ownership Repeats "repeats";
    /// R13: who is silent for long counts as down for that slot. Without it one that is up and mute holds it up for ever.
    Ownership Patience "patience";
    /// R14: who leaves is gone only when it holds nothing any more. For whoever drives a leave; without it states are lost.
    Ownership Drains "drains";
}

impl Rule {
    /// The rule of that name.
    pub fn named(name: &str) -> Option<Rule> {
        Rule::ALL.iter().find(|rule| rule.name() == name).copied()
    }
}

/// Which rules hold. All do, but for tests that show what happens without one.
#[cfg(not(any(test, feature = "fault-switches")))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RuleSet(());

#[cfg(not(any(test, feature = "fault-switches")))]
impl RuleSet {
    /// True: nothing turns a rule off here.
    #[inline]
    pub const fn holds(self, _: Rule) -> bool {
        true
    }
}

/// Which rules hold. All do, but for tests that show what happens without one.
#[cfg(any(test, feature = "fault-switches"))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RuleSet {
    /// A bit for each rule that is turned off.
    off: u64,
}

#[cfg(any(test, feature = "fault-switches"))]
impl RuleSet {
    /// All rules but these.
    pub fn without(off: &[Rule]) -> Self {
        let mut rules = RuleSet::default();
        for rule in off {
            rules.turn_off(*rule);
        }
        rules
    }

    /// From now on that rule does not hold.
    pub fn turn_off(&mut self, rule: Rule) {
        self.off |= 1 << rule as u32;
    }

    /// True unless the rule was turned off.
    #[inline]
    pub const fn holds(self, rule: Rule) -> bool {
        self.off & (1 << rule as u32) == 0
    }
}

#[cfg(any(test, feature = "fault-switches"))]
const _: () = assert!(Rule::ALL.len() <= u64::BITS as usize, "a bit for each rule");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_that_is_turned_off_is_the_only_one_that_does_not_hold() {
        for off in Rule::ALL {
            assert_eq!(Rule::named(off.name()), Some(*off));
            let rules = RuleSet::without(&[*off]);
            for rule in Rule::ALL {
                assert_eq!(rules.holds(*rule), rule != off);
            }
        }
    }
}
