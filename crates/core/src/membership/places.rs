//! Where the engine keeps each member.
//!
//! The engine has a list, and moves its members about: a few at each change, all of them once a round of probes. A place that
//! is known is a guess, which is checked; only where it is wrong, or there is none, is the list gone through.
//! Without it, each line of gossip costs a look at every member that there is.

use std::cell::RefCell;
use std::collections::HashMap;

use foca::Member;

use super::identity::{Identity, MemberKey};

/// See the module.
#[derive(Default)]
pub(super) struct Places(RefCell<HashMap<MemberKey, usize>>);

impl Places {
    /// The member with that key; `members` gives all of them, in the order of the moment.
    pub(super) fn find<'a, I>(
        &self,
        key: MemberKey,
        members: impl Fn() -> I,
    ) -> Option<&'a Member<Identity>>
    where
        I: ExactSizeIterator<Item = &'a Member<Identity>>,
    {
        let mut places = self.0.borrow_mut();
        let noted = places.get(&key).and_then(|at| members().nth(*at));
        if let Some(member) = noted.filter(|member| member.id().key() == key) {
            return Some(member);
        }
        let (at, member) = members()
            .enumerate()
            .find(|(_, member)| member.id().key() == key)?;
        // Those of members that are gone are not looked for one by one.
        if places.len() > 2 * members().len() {
            places.clear();
        }
        places.insert(key, at);
        Some(member)
    }
}

#[cfg(test)]
mod tests {
    use foca::{Incarnation, State};

    use super::*;
    use crate::id::Address;
    use crate::id::{Generation, NodeId, NodeName};

    fn member(number: usize) -> Member<Identity> {
        let name =
            NodeName::try_new(format!("n{number}")).unwrap_or_else(|error| panic!("{error}"));
        let generation = Generation::default();
        let address = Address::try_new("host:1").unwrap_or_else(|error| panic!("{error}"));
        let identity = Identity::new(NodeId { name, generation }, 0, address);
        Member::new(identity, Incarnation::default(), State::Alive)
    }

    #[test]
    fn whoever_is_there_is_found_however_the_list_is_moved_about() {
        let mut members: Vec<Member<Identity>> = (0..100).map(member).collect();
        let places = Places::default();
        for round in 0..10 {
            for at in 0..members.len() {
                let key = members[at].id().key();
                let found = places.find(key, || members.iter()).map(Member::id);
                assert_eq!(found, Some(members[at].id()));
            }
            members.rotate_left(round + 1);
            members.swap(0, 50);
            let gone = members.swap_remove(7);
            assert!(places.find(gone.id().key(), || members.iter()).is_none());
        }
        members.truncate(3);
        for at in 0..3 {
            let key = members[at].id().key();
            assert!(places.find(key, || members.iter()).is_some());
        }
    }
}
