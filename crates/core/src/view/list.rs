//! The list of a type's services, and what changes make of it.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::entry::ServiceInfo;
use crate::id::InstanceName;

/// A service before and after; none where it was not, or is not, there.
pub(crate) type Change = (Option<Arc<ServiceInfo>>, Option<Arc<ServiceInfo>>);

/// What says where a service has its place: its name, and between those of one name its [`standing`].
type Listed<'a> = (&'a InstanceName, SameNameOrder<'a>);

/// See [`standing`].
type SameNameOrder<'a> = (&'a str, u64, u64);

/// Rule: between two of one name, a total order that leaves the generation out says who is the standby.
fn standing(info: &ServiceInfo) -> SameNameOrder<'_> {
    let id = info.id();
    (id.node.as_str(), id.nonce, id.sequence)
}

fn listed(info: &ServiceInfo) -> Listed<'_> {
    (info.name(), standing(info))
}

/// Where a service is listed.
pub(super) fn place_of(services: &[Arc<ServiceInfo>], info: &ServiceInfo) -> Option<usize> {
    services
        .binary_search_by(|other| listed(other).cmp(&listed(info)))
        .ok()
}

/// Who owns keys under a name: the first one, and those that stand by.
pub(super) struct Instances<'a> {
    pub(super) first: &'a Arc<ServiceInfo>,
    pub(super) standbys: usize,
}

impl<'a> Instances<'a> {
    /// None where nobody does.
    pub(super) fn find(services: &'a [Arc<ServiceInfo>], name: &InstanceName) -> Option<Self> {
        let mut online = online(services, name);
        Some(Instances {
            first: online.next()?,
            standbys: online.count(),
        })
    }
}

/// Those that own keys under a name.
pub(super) fn online<'a>(
    services: &'a [Arc<ServiceInfo>],
    name: &InstanceName,
) -> impl Iterator<Item = &'a Arc<ServiceInfo>> {
    let start = services.partition_point(|info| info.name() < name);
    services[start..]
        .iter()
        .take_while(move |info| info.name() == name)
        .filter(|info| info.is_online())
}

/// What several changes amount to: at each place the last one counts.
pub(super) struct Edits<'a>(BTreeMap<Listed<'a>, Option<&'a Arc<ServiceInfo>>>);

impl<'a> Edits<'a> {
    pub(super) fn of(changes: &'a [Change]) -> Self {
        let mut edits = BTreeMap::new();
        for (before, after) in changes {
            if let Some(before) = before {
                edits.insert(listed(before), None);
            }
            if let Some(after) = after {
                edits.insert(listed(after), Some(after));
            }
        }
        Edits(edits)
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// The names that they concern, in order.
    pub(super) fn names(&self) -> impl Iterator<Item = &'a InstanceName> {
        let mut last = None;
        self.0
            .keys()
            .map(|(name, _)| *name)
            .filter(move |name| last.replace(*name) != Some(*name))
    }

    /// The list after them, still in order.
    pub(super) fn apply(&self, services: &[Arc<ServiceInfo>]) -> Box<[Arc<ServiceInfo>]> {
        let mut list = Vec::with_capacity(services.len() + self.0.len());
        let mut rest = services;
        for (key, now) in &self.0 {
            let (kept, behind) = rest.split_at(rest.partition_point(|info| listed(info) < *key));
            list.extend_from_slice(kept);
            list.extend(now.cloned());
            rest = match behind {
                [first, behind @ ..] if listed(first) == *key => behind,
                _ => behind,
            };
        }
        list.extend_from_slice(rest);
        list.into()
    }
}
