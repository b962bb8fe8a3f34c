//! One endpoint: what was asked for, and what it is.

use std::time::{SystemTime, UNIX_EPOCH};

use keydispatch::{Registry, ServiceId, ServiceState, ServiceUpdate};
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::definition::{Check, Checked, Definition, Lease, Probe};
use super::health::{Health, Verdict};
use crate::auth::Who;
use crate::problem::Problem;

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

/// Where a twin stands.
#[derive(Clone, Debug)]
pub(super) struct Vouching {
    pub(super) holder: String,
    pub(super) state: ServiceState,
    pub(super) reason: Option<String>,
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

    pub(super) fn renew_before(&self) -> Option<SystemTime> {
        let Lease::Ttl(ttl) = self.checked.lease else {
            return None;
        };
        Some(SystemTime::now() + (self.renewed_at + ttl).saturating_duration_since(Instant::now()))
    }
}
