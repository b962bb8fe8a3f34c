//! Who owns a key, and why: the whole order of preference, with those that are not online where they would be.

use std::sync::Arc;

use super::View;
use crate::entry::ServiceInfo;
use crate::key::{Key, Slot};
use crate::placement::{Candidate, draw, name_hash, prefer, salt};

/// Who owns a key, who comes next, and who would; see [`View::explain`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Explanation {
    /// The hash of the key.
    pub hash: u64,
    /// The slot of the key: the top bits of its hash.
    pub slot: Slot,
    /// Every service of the type, in the order of preference for this slot.
    pub order: Vec<Preferred>,
}

/// A service's place in the order of preference for a slot.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Preferred {
    /// The service.
    pub service: Arc<ServiceInfo>,
    /// Its place among the owners of the key, from 1, as [`View::owners`] has it; none where it is not online.
    pub rank: Option<usize>,
    /// Its place if it were online, everybody else as they are.
    pub would_rank: usize,
    /// It is online and stands by for another one of its name.
    pub standby: bool,
}

impl View {
    /// Why a key has the owner that it has. Costs one draw for each service; lookup tables are neither used nor filled.
    ///
    /// ```
    /// # use keydispatch_core::{ServiceType, View};
    /// let view = View::empty(ServiceType::try_new("chat")?);
    /// assert!(view.explain("room-7").order.is_empty());
    /// # Ok::<(), keydispatch_core::NameError>(())
    /// ```
    pub fn explain(&self, key: impl Into<Key>) -> Explanation {
        let key = key.into();
        let salt = salt(key.slot());
        let mut order: Vec<(Candidate, u64, &Arc<ServiceInfo>)> = self
            .services
            .iter()
            .map(|info| {
                let candidate = Candidate {
                    hash: name_hash(info.name()),
                    weight: info.weight().value(),
                };
                (candidate, draw(candidate.hash, salt), info)
            })
            .collect();
        // Rule: of one name the weight of the primary counts, as it does where owners are looked up; those of one name are
        // listed in the order in which they stand by.
        for at in 1..order.len() {
            if order[at].2.name() == order[at - 1].2.name() && order[at - 1].2.is_online() {
                order[at].0.weight = order[at - 1].0.weight;
            }
        }
        // Stable: services of one name keep the order that they are listed in.
        order.sort_by(|a, b| {
            prefer((a.0, a.1), (b.0, b.1)).then_with(|| a.2.name().cmp(b.2.name()))
        });
        let mut rank = 0;
        let order = order
            .into_iter()
            .map(|(_, _, info)| {
                let would_rank = rank + 1;
                if info.is_online() {
                    rank += 1;
                }
                Preferred {
                    rank: info.is_online().then_some(rank),
                    would_rank,
                    standby: self.is_standby(info),
                    service: Arc::clone(info),
                }
            })
            .collect();
        Explanation {
            hash: key.hash(),
            slot: key.slot(),
            order,
        }
    }
}
