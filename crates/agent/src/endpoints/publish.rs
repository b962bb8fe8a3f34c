//! How an endpoint is said in the registry, and to whoever asks.

use std::time::SystemTime;

use keydispatch::{ServiceState, ServiceUpdate};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::held::{Held, NOT_CHECKED, Wanted, millis, verdict_name};
use crate::app::App;
use crate::clock::rfc3339;
use crate::problem::Problem;
use crate::shapes::{REASON, SINCE};

impl Held {
    /// Says in the registry what it is, state and reason in one change.
    pub(super) async fn publish(&mut self, app: &App) -> Result<(), Problem> {
        let (state, reason) = self.desired();
        if (state, &reason) == (self.published.0, &self.published.1) {
            return Ok(());
        }
        let by_check = self.wanted == Wanted::Online
            && self.checked.check.is_some()
            && self.vouching.is_none();
        let first = self.published.1.as_deref() == Some(NOT_CHECKED);
        if by_check && !first {
            // Rule: what flaps moves keys once in a while, and not with every check.
            if self
                .check_changed_at
                .is_some_and(|at| at.elapsed() < app.damping)
            {
                return Ok(());
            }
            if self.published.0 == ServiceState::Online
                && state == ServiceState::Offline
                && !self.may_fail(app)
            {
                return Ok(());
            }
        }
        let since = SystemTime::now();
        let mut update = ServiceUpdate::new()
            .state(state)
            .tag(SINCE, millis(since).to_string());
        update = match &reason {
            Some(reason) => update.tag(REASON, reason),
            None => update.remove_tag(REASON),
        };
        app.node
            .registry()
            .update_service(&self.service, update)
            .await?;
        if by_check && !first {
            self.check_changed_at = Some(Instant::now());
        }
        self.published = (state, reason);
        self.since = since;
        app.endpoints.tell_twins.notify_one();
        Ok(())
    }

    /// Rule: where checks would take too many of a type offline at once, it is rather the checks that are wrong, or nobody would
    /// be left to take the load.
    pub(super) fn may_fail(&self, app: &App) -> bool {
        let service_type = self.checked.service_type.as_str();
        let percent = app.min_healthy(service_type) as usize;
        if percent == 0 {
            return true;
        }
        let services = app.node.registry().services(service_type);
        let online = services.iter().filter(|info| info.is_online()).count();
        let by_checks = services
            .iter()
            .filter(|info| {
                info.state() == ServiceState::Offline
                    && info.tag(REASON).is_some_and(|why| why.contains('\u{d7}'))
            })
            .count();
        let stays = (online.saturating_sub(1)) * 100 >= percent * (online + by_checks);
        if !stays {
            tracing::warn!(
                service_type,
                name = %self.checked.name,
                online,
                "a check fails, and the service stays online: too many of its type are offline already (min_healthy)"
            );
            app.hub.note(
                "min_healthy",
                Some(app.node.name().as_str()),
                Some(service_type),
                format!(
                    "the check of {} fails, and it stays online: too few others are",
                    self.checked.name
                ),
            );
        }
        stays
    }

    /// The agents that hold it.
    pub(super) fn vouchers(&self, app: &App) -> Vec<String> {
        let holder = match &self.vouching {
            Some(vouching) => Some(vouching.holder.clone()),
            None => self.twin.clone(),
        };
        let mut all: Vec<String> = [app.node.name().to_string()]
            .into_iter()
            .chain(holder)
            .collect();
        all.sort();
        all
    }

    pub(super) fn to_json(&self, app: &App, id: &str) -> Value {
        let check = self.checked.check.as_ref().map(|check| {
            let last = self.health.last.as_ref();
            json!({
                "kind": check.probe.kind(),
                "target": check.probe.target(),
                "every": format!("{}ms", check.every.as_millis()),
                "timeout": format!("{}ms", check.timeout.as_millis()),
                "rise": check.rise,
                "fall": check.fall,
                "state": verdict_name(&self.health.verdict),
                "brief": last.map(|(_, seen, _)| &seen.brief),
                "output": last.map(|(_, seen, _)| &seen.output),
                "ran_at": last.map(|(at, ..)| rfc3339(*at)),
                "took_ms": last.map(|(_, _, took)| u64::try_from(took.as_millis()).unwrap_or(u64::MAX)),
                "next_at": self.next_check.map(|at| {
                    rfc3339(SystemTime::now() + at.saturating_duration_since(Instant::now()))
                }),
                "passes": self.health.passes,
                "failures": self.health.failures,
            })
        });
        json!({
            "id": id,
            "type": self.checked.service_type.as_str(),
            "name": self.checked.name.as_str(),
            "address": self.checked.address,
            "weight": self.weight_set.unwrap_or(self.checked.weight),
            "zone": self.checked.zone,
            "tags": self.checked.tags,
            "node": app.node.name().as_str(),
            "service": self.service.to_string(),
            "state": self.published.0.to_string(),
            "reason": self.published.1,
            "since": rfc3339(self.since),
            "expected_share": app.expected_share(&self.service, self.checked.service_type.as_str()),
            "registered_by": self.registrant,
            "vouchers": self.vouchers(app),
            "lease": self.checked.lease.kind(),
            "renew_before": self.renew_before().map(rfc3339),
            "check": check,
        })
    }
}
