//! Which rules of the protocol each kind of history follows, and so can do without to see who notices.

use keydispatch_core::rules::{Part, Rule};

/// Those of clusters.
pub(crate) fn of_clusters() -> Vec<Rule> {
    those(|part| part != Part::Ownership)
}

/// Those of tokens.
pub(crate) fn of_tokens() -> Vec<Rule> {
    those(|part| part == Part::Ownership)
}

fn those(of: impl Fn(Part) -> bool) -> Vec<Rule> {
    let all = Rule::ALL.iter().copied();
    all.filter(|rule| of(rule.part())).collect()
}

/// The rule of that name among these.
pub(crate) fn named(name: &str, among: &[Rule]) -> Result<Rule, String> {
    let found = among.iter().find(|rule| rule.name() == name);
    found.copied().ok_or_else(|| {
        let names: Vec<&str> = among.iter().map(|rule| rule.name()).collect();
        format!("there is no such rule; there are {}", names.join(", "))
    })
}
