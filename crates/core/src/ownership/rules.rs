//! The rules of ownership, each of which a test can turn off to see what it is for.

/// Which rules hold. All do, but for tests that show what happens without one.
///
/// R2 is `claims` and `expected_first`; R10 is `parks`, `moves_while_coming` and, for whoever drives calls, `moved`; R14 is
/// `drains`, for whoever drives a leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenRules {
    /// R1, first half: nothing is claimed or concluded before this node is synced.
    pub synced: bool,
    /// R1, second half: who knows nobody any more looks for the others before it claims again.
    pub still_synced: bool,
    /// R2: who is first claims, and does not serve by its view alone.
    pub claims: bool,
    /// R2: the expected holder is asked before all others. For cost; and for safety where `asks_anew` does not hold.
    pub expected_first: bool,
    /// R3: an answer counts for the question that it answers, and for no earlier or later one.
    pub questions: bool,
    /// R3: who goes down before it has answered starts the questions of that round anew.
    pub asks_anew: bool,
    /// R4: answers name the members that the claimant may not know, and these are asked.
    pub closure: bool,
    /// R5: a holder yields only to whoever outranks it.
    pub ranks: bool,
    /// R6: states are adopted only by a claim of the round that they were sent for.
    pub rounds: bool,
    /// R7: who gave a slot away says to whom.
    pub pointers: bool,
    /// R8: nothing is served from the moment that states are on their way.
    pub freezes: bool,
    /// R8: what was given is kept until it was adopted.
    pub keeps: bool,
    /// R8: what was adopted is not passed on before the giver knows.
    pub settles: bool,
    /// R8: few pieces are on their way to one receiver at a time.
    pub window: bool,
    /// R9: a life that is down here is not heard.
    pub dead_are_silent: bool,
    /// R9: another life of this node's own name is dead by definition.
    pub own_lives: bool,
    /// R10: calls wait while a claim is under way.
    pub parks: bool,
    /// R10: calls go to the holder while it says that the slot is coming and nothing has come.
    pub moves_while_coming: bool,
    /// R10: a call that comes to the wrong place is sent on.
    pub moved: bool,
    /// R11: who holds what is another's by its view says so to that one.
    pub offers: bool,
    /// R12: who stood still for long asks before it serves on.
    pub doubts: bool,
    /// R13: what was not answered is said again.
    pub repeats: bool,
    /// R13: who is silent for long counts as down for that slot.
    pub patience: bool,
    /// R14: who leaves is gone only when it holds nothing any more.
    pub drains: bool,
}

impl Default for TokenRules {
    fn default() -> Self {
        TokenRules {
            synced: true,
            still_synced: true,
            claims: true,
            expected_first: true,
            questions: true,
            asks_anew: true,
            closure: true,
            ranks: true,
            rounds: true,
            pointers: true,
            freezes: true,
            keeps: true,
            settles: true,
            window: true,
            dead_are_silent: true,
            own_lives: true,
            parks: true,
            moves_while_coming: true,
            moved: true,
            offers: true,
            doubts: true,
            repeats: true,
            patience: true,
            drains: true,
        }
    }
}
