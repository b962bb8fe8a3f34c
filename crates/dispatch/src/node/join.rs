//! How a node comes to know its seeds, its own address, and that everybody is there.

use std::time::Duration;

use keydispatch_core::NodeName;
use keydispatch_core::message::Address;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use crate::deadline;
use crate::discovery::{self, Resolved, Seed};
use crate::driver::command::Command;
use crate::driver::shared::NodeShared;
use crate::node::plan::{NodePlan, StartError};
use crate::reach::{self, AdvertiseError};
use crate::watch::members::Member;

/// How often the seeds' names are looked up again.
const RESOLVE_INTERVAL: Duration = Duration::from_secs(5);

/// How often they are while a node starts and one of them has no address yet.
const AWAIT_INTERVAL: Duration = Duration::from_millis(200);

/// How often it is looked whether the expected members are there.
const EXPECT_INTERVAL: Duration = Duration::from_millis(20);

/// The address of a node without a network.
const LOCAL_ADDRESS: &str = "local";

/// The seeds' addresses as far as they are known, and this node's own address, which is where it listens unless something
/// better is said or found.
pub(crate) async fn meet(
    plan: &NodePlan,
    listening: Option<Address>,
    until: Instant,
) -> Result<(Resolved, Address), StartError> {
    let has_hosts = plan.resolves_names();
    let mut seeds = discovery::resolve(&plan.seeds, has_hosts).await;
    let Some(listening) = listening else {
        let own = Address::try_new(LOCAL_ADDRESS).map_err(AdvertiseError::from)?;
        return Ok((seeds, own));
    };
    let wildcard = reach::wildcard(&listening).filter(|_| has_hosts);
    let own = match (&plan.advertise, wildcard) {
        (Some(own), _) => own.clone(),
        (None, None) => listening.clone(),
        (None, Some(bound)) => loop {
            match reach::by_seeds(bound, &seeds.addresses) {
                Ok(own) => {
                    tracing::info!(%listening, advertised = %own, "advertising the address by which the seeds are reached");
                    break own;
                }
                Err(_) if seeds.awaited && Instant::now() + AWAIT_INTERVAL < until => {
                    tokio::time::sleep(AWAIT_INTERVAL).await;
                    seeds = discovery::resolve(&plan.seeds, has_hosts).await;
                }
                Err(error) => return Err(error.into()),
            }
        },
    };
    if has_hosts {
        reach::warn_of_plaintext(&listening, plan.is_plaintext());
    }
    Ok((seeds, own))
}

/// Looks the seeds' names up again and again.
///
/// Rule: a name that has no address yet is not "no seeds". Otherwise a node whose name server learns of its peers a second
/// later starts as a cluster of its own.
pub(crate) async fn resolve_again(
    seeds: Vec<Seed>,
    mut awaited: bool,
    until: Instant,
    commands: mpsc::Sender<Command>,
) {
    loop {
        let starting = awaited && Instant::now() < until;
        tokio::time::sleep(match starting {
            true => AWAIT_INTERVAL,
            false => RESOLVE_INTERVAL,
        })
        .await;
        let found = discovery::resolve(&seeds, true).await;
        // A name that was found once is known, whatever its server says later.
        awaited &= found.awaited;
        let command = Command::Seeds {
            addresses: found.addresses,
            awaited,
        };
        if commands.send(command).await.is_err() {
            return;
        }
    }
}

/// Waits until so many nodes are up, this one included, and their entries are here.
pub(crate) async fn expect(
    shared: &NodeShared,
    expected: usize,
    waited: Duration,
    until: Instant,
) -> Result<(), StartError> {
    if expected <= 1 {
        return Ok(());
    }
    loop {
        let present = 1 + shared
            .roster
            .load()
            .iter()
            .filter(|m| Member::is_up(m))
            .count();
        let missing = missing(shared).await.ok_or(StartError::Stopped)?;
        if present >= expected && missing.is_empty() {
            return Ok(());
        }
        if Instant::now() >= until {
            return Err(if present >= expected {
                StartError::NotSynced { waited, missing }
            } else {
                StartError::TooFew {
                    expected,
                    present,
                    waited,
                }
            });
        }
        tokio::time::sleep_until(until.min(deadline::after(EXPECT_INTERVAL))).await;
    }
}

/// The owners whose entries are missing; none once the node has stopped.
pub(crate) async fn missing(shared: &NodeShared) -> Option<Vec<NodeName>> {
    let (reply, answer) = oneshot::channel();
    shared
        .commands
        .send(Command::Missing { reply })
        .await
        .ok()?;
    answer.await.ok()
}
