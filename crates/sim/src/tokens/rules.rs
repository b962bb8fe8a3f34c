//! The rules of ownership by name, each of which can be turned off to see who notices.

use keydispatch_core::ownership::TokenRules;

/// One rule that is turned off.
#[derive(Clone, Copy, Debug)]
pub struct WithoutToken {
    /// What it is asked for by.
    pub name: &'static str,
    turn_off: fn(&mut TokenRules),
}

macro_rules! without {
    ($($rule:ident),*) => {
        const ALL: &[WithoutToken] = &[
            $(WithoutToken { name: stringify!($rule), turn_off: |rules| rules.$rule = false },)*
        ];
    };
}

without! {
    synced, still_synced, claims, expected_first, questions, asks_anew, closure, ranks, rounds, pointers, freezes, keeps, settles, window,
    dead_are_silent, own_lives, parks, moves_while_coming, moved, offers, doubts, repeats, patience, drains
}

impl WithoutToken {
    /// The rule of that name.
    pub fn named(name: &str) -> Option<WithoutToken> {
        ALL.iter().find(|without| without.name == name).copied()
    }

    /// All names.
    pub fn names() -> Vec<&'static str> {
        ALL.iter().map(|without| without.name).collect()
    }

    /// All rules but these.
    pub fn rules(off: &[WithoutToken]) -> TokenRules {
        let mut rules = TokenRules::default();
        for without in off {
            (without.turn_off)(&mut rules);
        }
        rules
    }
}
