//! What all parts of a running agent share.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use keydispatch::{Node, ServiceId};
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;

use crate::address::Network;
use crate::auth::Auth;
use crate::config::AgentSection;
use crate::endpoints::Endpoints;
use crate::hub::Hub;

/// Answers by what they were asked for and how they went.
#[derive(Default)]
pub(crate) struct Requests {
    counts: std::sync::Mutex<std::collections::BTreeMap<(&'static str, u16), u64>>,
}

impl Requests {
    pub(crate) fn count(&self, path: &'static str, status: u16) {
        *self.lock().entry((path, status)).or_default() += 1;
    }

    pub(crate) fn all(&self) -> Vec<((&'static str, u16), u64)> {
        self.lock()
            .iter()
            .map(|(key, count)| (*key, *count))
            .collect()
    }

    fn lock(
        &self,
    ) -> std::sync::MutexGuard<'_, std::collections::BTreeMap<(&'static str, u16), u64>> {
        self.counts
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// See the module.
pub(crate) struct App {
    pub(crate) node: Node,
    pub(crate) hub: Hub,
    pub(crate) endpoints: Endpoints,
    pub(crate) auth: Auth,
    pub(crate) agent: AgentSection,
    /// Networks that checks may reach beside this machine.
    pub(crate) allowed: Vec<Network>,
    pub(crate) damping: Duration,
    pub(crate) started: Instant,
    pub(crate) requests: Requests,
    pub(crate) watch_lagged: AtomicU64,
    /// What looks at all slots is done one at a time.
    pub(crate) heavy: Arc<Semaphore>,
    pub(crate) stop: watch::Receiver<bool>,
    /// When the agent's own loop turned last, in milliseconds from its start.
    pub(crate) turned: AtomicU64,
}

impl App {
    /// Whether nodes on other machines cannot reach this one, so that they share its loopback addresses.
    pub(crate) fn on_loopback(&self) -> bool {
        let address = self.node.address().as_str();
        address
            .rsplit_once(':')
            .map(|(host, _)| host.trim_start_matches('[').trim_end_matches(']'))
            .is_some_and(|host| {
                host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
            })
    }

    pub(crate) fn min_healthy(&self, service_type: &str) -> u32 {
        self.agent.min_healthy(service_type)
    }

    /// The share of its type's keys that an instance has by its weight; none where it has no keys.
    pub(crate) fn expected_share(&self, id: &ServiceId, service_type: &str) -> Option<f64> {
        let view = self.node.registry().view(service_type)?;
        let info = view.service(id).filter(|info| info.is_online())?;
        if view.is_standby(info) {
            return Some(0.0);
        }
        let all: u32 = view
            .online()
            .filter(|info| !view.is_standby(info))
            .map(|info| u32::from(info.weight().value()))
            .sum();
        Some(round(
            f64::from(info.weight().value()) / f64::from(all.max(1)),
        ))
    }

    pub(crate) fn turn(&self) {
        let now = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.turned.store(now, Ordering::Relaxed);
    }

    /// How long ago the agent's own loop turned.
    pub(crate) fn since_turn(&self) -> Duration {
        let turned = Duration::from_millis(self.turned.load(Ordering::Relaxed));
        self.started.elapsed().saturating_sub(turned)
    }
}

/// To six digits: what is behind them is noise of floating point.
pub(crate) fn round(share: f64) -> f64 {
    (share * 1e6).round() / 1e6
}
