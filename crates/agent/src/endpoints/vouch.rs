//! Two agents for one endpoint: where the one that holds it goes, the other one's entry of the same name has the same keys.
//!
//! Rule: both entries carry one state. The twin of an endpoint that failed would otherwise take its keys, and lead to the same
//! address. So the holder checks alone, and tells its twin what to be; the twin checks for itself once the holder's node has gone.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use keydispatch::ServiceState;
use serde_json::json;
use tokio::time::Instant;

use super::definition::{Checked, Lease};
use super::health::{Health, Verdict};
use super::held::{Held, Tasks, Vouching};
use super::keeper;
use super::slots::Endpoints;
use super::vouched::Vouched;
use crate::app::App;
use crate::auth::{Role, Who};
use crate::peer::protocol::{self, Ask};
use crate::problem::Problem;

/// How often a twin hears of what it vouches for.
const EVERY: Duration = Duration::from_secs(1);
/// How long a twin is kept of an endpoint that lives until it is deleted, once nobody speaks of it any more.
const ORPHAN: Duration = Duration::from_secs(600);
/// Endpoints that are spoken of at once.
const AT_ONCE: usize = 500;

/// The agent that vouches for an endpoint beside its holder: by a draw over the names, so that each has its part.
pub(super) fn twin(app: &App, id: &str) -> Option<String> {
    let own = app.node.name();
    protocol::agents(app)
        .iter()
        .filter(|agent| agent.node() != own && agent.is_online())
        .map(|agent| agent.node().to_string())
        .max_by_key(|node| keydispatch::Key::from((id, node.as_str())).hash())
}

/// Tells the twins what there is, again and again, and at once where something has changed.
pub(crate) async fn keep_telling(app: Arc<App>) {
    loop {
        let taken_away = std::mem::take(
            &mut *app
                .endpoints
                .taken_away
                .lock()
                .unwrap_or_else(PoisonError::into_inner),
        );
        for (twin, id) in taken_away {
            let holder = app.node.name().to_string();
            // One that does not hear of it lets its lease end.
            let _ = protocol::ask_other(&app, &twin, Ask::Unvouch { holder, id }, None).await;
        }
        let mut by_twin: BTreeMap<String, Vec<Vouched>> = BTreeMap::new();
        for id in app.endpoints.ids() {
            let Some(slot) = app.endpoints.slot(&id) else {
                continue;
            };
            let mut held = slot.held.lock().await;
            let Some(held) = held
                .as_mut()
                .filter(|held| held.checked.vouch == 2 && held.vouching.is_none())
            else {
                continue;
            };
            held.twin = twin(&app, &id);
            if let Some(twin) = &held.twin {
                by_twin
                    .entry(twin.clone())
                    .or_default()
                    .push(held.vouched(&id));
            }
        }
        for (twin, all) in by_twin {
            for part in all.chunks(AT_ONCE) {
                let holder = app.node.name().to_string();
                let question = Ask::Vouch {
                    holder,
                    endpoints: part.to_vec(),
                };
                // Said again in a second.
                if let Err(problem) = protocol::ask_other(&app, &twin, question, None).await {
                    tracing::debug!(twin, problem = problem.detail, "a twin was not told");
                }
            }
        }
        let _ = tokio::time::timeout(EVERY, app.endpoints.tell_twins.notified()).await;
    }
}

impl Held {
    fn vouched(&self, id: &str) -> Vouched {
        let ago = match self.checked.lease {
            Lease::Ttl(_) => self.renewed_at.elapsed(),
            _ => Duration::ZERO,
        };
        let mut definition = self.definition.clone();
        definition.weight = self.weight_set.or(definition.weight);
        Vouched {
            id: id.to_owned(),
            definition,
            registrant: self.registrant.clone(),
            state: self.published.0.to_string(),
            reason: self.published.1.clone(),
            renewed_ago_ms: u64::try_from(ago.as_millis()).unwrap_or(u64::MAX),
        }
    }

    /// It is this agent's own from now on: it is checked here, and its state is what its check says.
    pub(super) fn own(&mut self) {
        if let Some(vouching) = self.vouching.take() {
            self.health = match vouching.state {
                ServiceState::Online => Health::starting_as(Verdict::Passing),
                _ => Health::default(),
            };
            self.tasks = Tasks::default();
        }
    }
}

impl Endpoints {
    /// Takes what a holder says of its endpoints.
    pub(crate) async fn vouch(
        app: &Arc<App>,
        holder: &str,
        all: Vec<Vouched>,
    ) -> serde_json::Value {
        let mut taken = 0;
        for vouched in all {
            let id = vouched.id.clone();
            match Endpoints::vouch_one(app, holder, vouched).await {
                Ok(true) => taken += 1,
                Ok(false) => {}
                Err(problem) => {
                    tracing::debug!(endpoint = id, problem = problem.detail, "not vouched for")
                }
            }
        }
        json!({ "taken": taken })
    }

    async fn vouch_one(app: &Arc<App>, holder: &str, vouched: Vouched) -> Result<bool, Problem> {
        let Vouched {
            id,
            definition,
            registrant,
            state,
            reason,
            renewed_ago_ms,
        } = vouched;
        let mut checked: Checked = definition.check(&id, app.on_loopback())?;
        let lease = match checked.lease {
            Lease::Ttl(ttl) => ttl,
            _ => ORPHAN,
        };
        checked.lease = Lease::Ttl(lease);
        let Some(left) = lease.checked_sub(Duration::from_millis(renewed_ago_ms)) else {
            return Ok(false);
        };
        let state = crate::shapes::parse_state(&state)?;
        let who = Who {
            name: registrant,
            role: Role::Operate,
            prefixes: None,
            pid: None,
        };
        let slot = Arc::clone(app.endpoints.lock().entry(id.clone()).or_default());
        let mut held = Arc::clone(&slot.held).lock_owned().await;
        if held.as_ref().is_some_and(|there| {
            there
                .vouching
                .as_ref()
                .is_none_or(|vouching| vouching.holder != holder)
        }) {
            // Held here by itself, or for another one.
            return Ok(false);
        }
        if held.as_ref().is_some_and(|there| {
            there.checked.service_type != checked.service_type || there.checked.name != checked.name
        }) {
            *held = None;
        }
        if held.is_none() {
            match app
                .endpoints
                .register(app, &definition, &checked, &who)
                .await
            {
                Ok(fresh) => *held = Some(fresh),
                Err(problem) => {
                    drop(held);
                    app.endpoints.forget_empty(&id, &slot);
                    return Err(problem);
                }
            }
        }
        if let Some(there) = held.as_mut() {
            there
                .update(app.node.registry(), &definition, &checked)
                .await?;
            there.vouching = Some(Vouching {
                holder: holder.to_owned(),
                state,
                reason,
            });
            // So much of its lease is over.
            let now = Instant::now();
            there.renewed_at = now.checked_sub(lease - left).unwrap_or(now);
            there.publish(app).await?;
            keeper::start(app, &id, &slot, there, &who);
        }
        Ok(true)
    }

    /// What the holder has taken away goes here, too.
    pub(crate) async fn unvouch(app: &Arc<App>, holder: &str, id: &str) {
        if let Some(slot) = app.endpoints.slot(id) {
            let for_holder = |held: &Held| {
                held.vouching
                    .as_ref()
                    .is_some_and(|vouching| vouching.holder == holder)
            };
            app.endpoints
                .remove(app, id, &slot, for_holder, "its holder took it away")
                .await;
        }
    }

    /// A node has gone: what was vouched for in its stead is this agent's own until its lease ends.
    pub(crate) async fn take_over(app: &Arc<App>, gone: &str) {
        for id in app.endpoints.ids() {
            let Some(slot) = app.endpoints.slot(&id) else {
                continue;
            };
            let mut held = slot.held.lock().await;
            let Some(held) = held.as_mut() else {
                continue;
            };
            if held
                .vouching
                .as_ref()
                .is_some_and(|vouching| vouching.holder == gone)
            {
                held.own();
                let who = Who {
                    name: held.registrant.clone(),
                    role: Role::Operate,
                    prefixes: None,
                    pid: None,
                };
                keeper::start(app, &id, &slot, held, &who);
                app.hub.note(
                    "taken_over",
                    Some(app.node.name().as_str()),
                    Some(held.checked.service_type.as_str()),
                    format!("{}: its agent on {gone} has gone", held.checked.name),
                );
            }
        }
    }
}
