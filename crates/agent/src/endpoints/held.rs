//! One endpoint: what was asked for, what it is, and how that is said in the registry.

use std::time::{SystemTime, UNIX_EPOCH};

use keydispatch::{Registry, ServiceId, ServiceState, ServiceUpdate};
use serde_json::{Value, json};
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::definition::{Check, Checked, Definition, Lease, Probe};
use super::health::{Health, Verdict};
use super::vouch::Vouching;
use crate::app::App;
use crate::auth::Who;
use crate::clock::rfc3339;
use crate::problem::Problem;
use crate::shapes::{REASON, SINCE};

/// What whoever registered an endpoint wants it to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Wanted {
    Online,
    Draining(String),
    Offline(String),
}

/// Tasks that end with what they are for.
#[derive(Default)]
pub(super) struct Tasks(pub(super) Vec<AbortHandle>);

impl Drop for Tasks {
    fn drop(&mut self) {
        self.0.iter().for_each(AbortHandle::abort);
    }
}

pub(crate) struct Held {
    /// Told apart from an earlier or later one of the same id.
    pub(super) life: u64,
    /// Told apart from an earlier holder of a lease by connection.
    pub(super) lease_holder: u64,
    pub(super) definition: Definition,
    pub(super) checked: Checked,
    pub(super) registrant: String,
    pub(super) service: ServiceId,
    pub(super) etag: u64,
    pub(super) wanted: Wanted,
    pub(super) health: Health,
    pub(super) renewed_at: Instant,
    pub(super) next_check: Option<Instant>,
    pub(super) published: (ServiceState, Option<String>),
    pub(super) since: SystemTime,
    /// When the check last changed what is published.
    pub(super) check_changed_at: Option<Instant>,
    pub(super) tasks: Tasks,
    /// What somebody else than its registrant has set: it outlives renewals.
    pub(super) weight_set: Option<u16>,
    /// None where this agent holds it by itself.
    pub(super) vouching: Option<Vouching>,
    /// The agent that vouches for it, too.
    pub(super) twin: Option<String>,
}

/// The reason of an endpoint whose check has not passed for the first time.
pub(super) const NOT_CHECKED: &str = "not checked yet";

pub(super) fn verdict_name(verdict: &Verdict) -> &'static str {
    match verdict {
        Verdict::Unknown => "unknown",
        Verdict::Passing => "passing",
        Verdict::Failing(_) => "failing",
    }
}

pub(super) fn millis(at: SystemTime) -> u128 {
    at.duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_millis())
}

impl Held {
    pub(super) fn etag(&self) -> String {
        format!("\"{:x}\"", self.etag)
    }

    pub(super) fn renew(&mut self, who: &Who) {
        self.renewed_at = Instant::now();
        if let Some(Check {
            probe: Probe::Ttl(_),
            ..
        }) = &self.checked.check
        {
            self.health.verdict = Verdict::Passing;
        }
        if who.name != self.registrant {
            tracing::debug!(
                by = who.name,
                registrant = self.registrant,
                "an endpoint was renewed by somebody else"
            );
        }
    }

    /// Takes a new definition of the same service; true where it says something else.
    pub(super) async fn update(
        &mut self,
        registry: &Registry,
        definition: &Definition,
        checked: &Checked,
    ) -> Result<bool, Problem> {
        if self.definition == *definition && self.checked == *checked {
            return Ok(false);
        }
        let mut update = ServiceUpdate::new();
        if self.checked.weight != checked.weight {
            update = update.weight(checked.weight);
            self.weight_set = None;
        }
        if self.checked.address != checked.address {
            update = update.address(&checked.address);
        }
        if let Some(zone) = checked
            .zone
            .as_ref()
            .filter(|zone| self.checked.zone.as_ref() != Some(zone))
        {
            update = update.zone(zone);
        }
        for key in self
            .checked
            .tags
            .keys()
            .filter(|key| !checked.tags.contains_key(*key))
        {
            update = update.remove_tag(key);
        }
        for (key, value) in &checked.tags {
            if self.checked.tags.get(key) != Some(value) {
                update = update.tag(key, value);
            }
        }
        registry.update_service(&self.service, update).await?;
        if self.checked.check != checked.check {
            // Rule: another check starts anew, and what was online stays so until it has failed.
            let verdict = if self.published.0 == ServiceState::Online {
                Verdict::Passing
            } else {
                Verdict::Unknown
            };
            self.health = Health::starting_as(verdict);
            self.tasks = Tasks::default();
        }
        if self.checked.lease != checked.lease {
            self.tasks = Tasks::default();
        }
        self.definition = definition.clone();
        self.checked = checked.clone();
        Ok(true)
    }

    /// What it is to be, by its registrant's will first and its check second; of a twin what its holder says.
    pub(super) fn desired(&self) -> (ServiceState, Option<String>) {
        if let Some(vouching) = &self.vouching {
            return (vouching.state, vouching.reason.clone());
        }
        match &self.wanted {
            Wanted::Draining(why) => (ServiceState::Draining, Some(why.clone())),
            Wanted::Offline(why) => (ServiceState::Offline, Some(why.clone())),
            Wanted::Online if self.checked.check.is_none() => (ServiceState::Online, None),
            Wanted::Online => match &self.health.verdict {
                Verdict::Unknown => (ServiceState::Offline, Some(NOT_CHECKED.to_owned())),
                Verdict::Passing => (ServiceState::Online, None),
                Verdict::Failing(why) => (ServiceState::Offline, Some(why.clone())),
            },
        }
    }

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

    pub(super) fn renew_before(&self) -> Option<SystemTime> {
        let Lease::Ttl(ttl) = self.checked.lease else {
            return None;
        };
        Some(SystemTime::now() + (self.renewed_at + ttl).saturating_duration_since(Instant::now()))
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
