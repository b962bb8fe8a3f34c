//! Who is there at first, who joins, and who leaves.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use keydispatch_core::ownership::{Ownership, OwnershipConfig};
use keydispatch_core::{
    Generation, InstanceName, Instant, NodeId, NodeName, Record, ServiceInfo, ServiceState,
    ServiceType, Weight,
};

/// The longest that a case may take to come to rest, in its own time.
pub(super) const PATIENT: Duration = Duration::from_secs(9);

/// Membership's.
pub(super) const DOWN: Duration = Duration::from_millis(1_500);

/// Nodes of a case.
pub(super) const NODES: usize = 3;

/// One of the smallest cases. Nodes are named by their rank for the slot: 0 is first for it while it is online.
#[derive(Clone, Copy, Debug)]
pub struct Scenario {
    /// Who starts while the others run.
    pub joiner: usize,
    /// Who leaves.
    pub leaver: usize,
    /// How many may die.
    pub deaths: u32,
    /// How many timers may fire early.
    pub early: u32,
}

impl Scenario {
    /// All of them: each joins, and each leaves.
    pub fn all(deaths: u32, early: u32) -> Vec<Scenario> {
        let pairs = (0..NODES).flat_map(|joiner| (0..NODES).map(move |leaver| (joiner, leaver)));
        pairs
            .map(|(joiner, leaver)| Scenario {
                joiner,
                leaver,
                deaths,
                early,
            })
            .collect()
    }
}

impl fmt::Display for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Scenario {
            joiner,
            leaver,
            deaths,
            early,
        } = self;
        write!(f, "n{joiner} joins, n{leaver} leaves")?;
        if *deaths > 0 {
            write!(f, ", {deaths} may die")?;
        }
        if *early > 0 {
            write!(f, ", {early} early timers")?;
        }
        Ok(())
    }
}

pub(super) fn rooms() -> ServiceType {
    ServiceType::try_new("rooms").expect("it is a name")
}

pub(super) fn node(rank: usize) -> NodeId {
    NodeId {
        name: NodeName::try_new(format!("n{rank}")).expect("it is a name"),
        generation: Generation {
            number: 1_000 + rank as u64,
            random: rank as u64,
        },
    }
}

/// The instance of a node, in a version of its entry.
pub(super) fn entry(names: &[InstanceName; NODES], rank: usize, version: u64) -> Arc<ServiceInfo> {
    let record = Record {
        sequence: 1,
        version,
        previous: None,
        service_type: rooms(),
        name: names[rank].clone(),
        state: if version == ONLINE {
            ServiceState::Online
        } else {
            ServiceState::Draining
        },
        weight: Weight::default(),
        protocol_version: Some(1),
        metadata: None,
    };
    let owner = node(rank);
    let info = ServiceInfo::from_record(&owner.name, owner.generation, rank as u64, record);
    Arc::new(info)
}

/// Versions of an entry.
pub(super) const ONLINE: u64 = 1;
pub(super) const DRAINING: u64 = 2;

/// Names whose order for the slot is that of the ranks.
pub(super) fn names() -> [InstanceName; NODES] {
    let mut names: Vec<InstanceName> = (0..NODES)
        .map(|number| InstanceName::try_new(format!("instance-{number}")).expect("it is a name"))
        .collect();
    let mut ranked = Vec::new();
    // Who is first among those that are left, one after the other.
    while !names.is_empty() {
        let infos: Vec<Arc<ServiceInfo>> = names
            .iter()
            .enumerate()
            .map(|(number, name)| {
                let all = [name.clone(), name.clone(), name.clone()];
                entry(&all, number, ONLINE)
            })
            .collect();
        let config = OwnershipConfig::new(DOWN).slots(1);
        let mut machine = Ownership::new(config, node(NODES), 99);
        machine.keep(&rooms());
        machine.handle_view(Instant::ZERO, &rooms(), &infos);
        let first = machine.first(&rooms(), 0).map_or(0, |id| id.nonce as usize);
        ranked.push(names.remove(first));
    }
    let [first, second, third] = &ranked[..] else {
        unreachable!("as many as there were");
    };
    [first.clone(), second.clone(), third.clone()]
}
