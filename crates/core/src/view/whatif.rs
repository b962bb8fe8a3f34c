//! What would be: views of services that are not there, the share of each instance, and the keys that move between two
//! views. All of it is exact, as placement is a pure function of names and weights.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::View;
use super::list::Change;
use super::table::NOBODY;
use crate::entry::{Record, ServiceInfo, ServiceState, Weight};
use crate::error::debug_as_display;
use crate::id::{Generation, InstanceName, NodeName, ServiceType};
use crate::key::{SLOTS, Slot};

/// A change that is only thought of; see [`View::with`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PlannedChange {
    /// All instances of that name go.
    Remove(InstanceName),
    /// An instance comes, online.
    Add {
        /// Its name, which nobody else has.
        name: InstanceName,
        /// Its weight.
        weight: Weight,
        /// Where it would be registered.
        node: NodeName,
    },
    /// All instances of that name get another weight.
    Weigh(InstanceName, Weight),
    /// All instances of that name get another state.
    State(InstanceName, ServiceState),
}

/// Why a change cannot even be thought of.
#[derive(Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PlanError {
    /// No instance has the name.
    #[error("no instance of this type is named {name}")]
    NoInstance {
        /// The name.
        name: InstanceName,
    },
    /// An instance that is to come has the name of one that is there.
    #[error("an instance of this type is named {name} already: plan another weight for it instead")]
    Exists {
        /// The name.
        name: InstanceName,
    },
}

debug_as_display!(PlanError);

/// Slots that have one owner in one view and another one in another view.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct KeyMove {
    /// Who owns them in the first view; none where nobody does.
    pub from: Option<Arc<ServiceInfo>>,
    /// Who owns them in the second view; none where nobody does.
    pub to: Option<Arc<ServiceInfo>>,
    /// How many of the [`SLOTS`].
    pub slots: usize,
}

impl View {
    /// The view of exactly these services, as every node that lists them has it. It has version 1.
    pub fn of(
        service_type: ServiceType,
        services: impl IntoIterator<Item = Arc<ServiceInfo>>,
    ) -> View {
        let changes: Vec<Change> = services
            .into_iter()
            .map(|info| (None, Some(info)))
            .collect();
        View::empty(service_type).changed(1, &changes)
    }

    /// The view after changes, made one after the other, that nobody has made.
    ///
    /// # Errors
    ///
    /// The first change that does not fit.
    pub fn with(&self, changes: &[PlannedChange]) -> Result<View, PlanError> {
        let mut services = self.services.to_vec();
        for change in changes {
            match change {
                PlannedChange::Remove(name) => {
                    let before = services.len();
                    services.retain(|info| info.name() != name);
                    if services.len() == before {
                        return Err(PlanError::NoInstance { name: name.clone() });
                    }
                }
                PlannedChange::Add { name, weight, node } => {
                    if services.iter().any(|info| info.name() == name) {
                        return Err(PlanError::Exists { name: name.clone() });
                    }
                    services.push(planned(&self.service_type, name, *weight, node));
                }
                PlannedChange::Weigh(name, weight) => {
                    edit(&mut services, name, |record| record.weight = *weight)?;
                }
                PlannedChange::State(name, state) => {
                    edit(&mut services, name, |record| record.state = *state)?;
                }
            }
        }
        Ok(View::of(self.service_type.clone(), services))
    }

    /// How many of the [`SLOTS`] each instance owns, in the order of their names; those that own none are left out.
    ///
    /// It looks at all slots, which takes some milliseconds for each instance. Lookup tables are neither used nor filled.
    pub fn shares(&self) -> Vec<(Arc<ServiceInfo>, usize)> {
        let mut slots = vec![0_usize; self.candidates.hashes().len()];
        for slot in (0..SLOTS).filter_map(Slot::new) {
            if let Some(count) = slots.get_mut(usize::from(self.first_seat(slot))) {
                *count += 1;
            }
        }
        let mut shares: Vec<(Arc<ServiceInfo>, usize)> = (0_u16..)
            .zip(slots)
            .filter(|(_, slots)| *slots > 0)
            .filter_map(|(seat, slots)| Some((Arc::clone(self.candidates.primary(seat)?), slots)))
            .collect();
        shares.sort_by(|a, b| a.0.name().cmp(b.0.name()));
        shares
    }

    /// The slots that another instance owns in `after` than in this view, most first. Costs what [`shares`](Self::shares)
    /// costs, for both views.
    pub fn moves_to(&self, after: &View) -> Vec<KeyMove> {
        let mut moves: BTreeMap<(u16, u16), usize> = BTreeMap::new();
        for slot in (0..SLOTS).filter_map(Slot::new) {
            *moves
                .entry((self.first_seat(slot), after.first_seat(slot)))
                .or_default() += 1;
        }
        let mut moves: Vec<KeyMove> = moves
            .into_iter()
            .map(|((from, to), slots)| KeyMove {
                from: self.candidates.primary(from).cloned(),
                to: after.candidates.primary(to).cloned(),
                slots,
            })
            .filter(|moved| {
                moved.from.as_ref().map(|info| info.id()) != moved.to.as_ref().map(|info| info.id())
            })
            .collect();
        moves.sort_by_key(|moved| std::cmp::Reverse(moved.slots));
        moves
    }

    /// By the specification alone, without a table: whoever looks at all slots would push out what lookups need.
    fn first_seat(&self, slot: Slot) -> u16 {
        match self.only {
            Some(seat) => seat,
            None => self.score(slot).first().copied().unwrap_or(NOBODY),
        }
    }
}

/// An entry that is thought of.
fn planned(
    service_type: &ServiceType,
    name: &InstanceName,
    weight: Weight,
    node: &NodeName,
) -> Arc<ServiceInfo> {
    let record = Record {
        sequence: 0,
        version: 0,
        previous: None,
        service_type: service_type.clone(),
        name: name.clone(),
        state: ServiceState::Online,
        weight,
        protocol_version: None,
        metadata: None,
    };
    Arc::new(ServiceInfo::from_record(
        node,
        Generation::default(),
        0,
        record,
    ))
}

fn edit(
    services: &mut [Arc<ServiceInfo>],
    name: &InstanceName,
    change: impl Fn(&mut Record),
) -> Result<(), PlanError> {
    let mut found = false;
    for info in services.iter_mut().filter(|info| info.name() == name) {
        found = true;
        let mut record = info.to_record();
        change(&mut record);
        let life = Generation {
            number: info.reference().generation,
            random: 0,
        };
        *info = Arc::new(ServiceInfo::from_record(
            info.node(),
            life,
            info.id().nonce,
            record,
        ));
    }
    if found {
        Ok(())
    } else {
        Err(PlanError::NoInstance { name: name.clone() })
    }
}
