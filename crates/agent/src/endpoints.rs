//! The endpoints that this agent holds: registered, kept alive by leases, checked, and taken away.

use std::os::unix::fs::MetadataExt;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, SystemTime};

use keydispatch::{NewService, ServiceState, ServiceUpdate};
use serde_json::{Value, json};
use tokio::sync::OwnedMutexGuard;
use tokio::time::Instant;

use crate::app::App;
use crate::auth::Who;
use crate::problem::{Kind, Problem};
use crate::shapes::{BY, REASON, SINCE};

pub(crate) mod definition;
mod health;
mod held;
mod keeper;
mod probe;
mod publish;
mod slots;
mod store;
mod vouch;
mod vouched;

use definition::Checked;
pub(crate) use definition::{Definition, Lease, check_id};
use health::Health;
pub(crate) use held::Wanted;
use held::{Held, NOT_CHECKED, Tasks, millis};
pub(crate) use slots::{Endpoints, Slot};
pub(crate) use store::Store;
pub(crate) use vouch::keep_telling;
pub(crate) use vouched::Vouched;

/// Endpoints of one agent at most: as many as one node may have entries of.
const MAX_ENDPOINTS: usize = 100_000;

/// What a change is made under.
#[derive(Default)]
pub(crate) struct Conditions {
    /// `If-Match`: these alone, or any that is there for `*`.
    pub(crate) matches: Option<String>,
    /// `If-None-Match: *`: none that is there.
    pub(crate) none: bool,
}

/// What became of a `PUT`.
pub(crate) struct Registered {
    pub(crate) created: bool,
    pub(crate) value: Value,
    pub(crate) etag: String,
    pub(crate) lease: Lease,
    pub(crate) lease_holder: u64,
}

impl Endpoints {
    /// Registers, renews or updates: idempotent.
    pub(crate) async fn put(
        app: &Arc<App>,
        id: &str,
        definition: Definition,
        who: &Who,
        conditions: Conditions,
    ) -> Result<Registered, Problem> {
        let endpoints = &app.endpoints;
        check_id(id)?;
        let checked = definition.check(id, app.on_loopback())?;
        who.need_type(checked.service_type.as_str())?;
        if let Lease::Pid(pid) = checked.lease {
            check_pid(pid, who)?;
        }
        let slot = {
            let mut slots = endpoints.lock();
            if slots.len() >= MAX_ENDPOINTS && !slots.contains_key(id) {
                return Err(Problem::new(
                    Kind::TooMany,
                    format!("an agent holds at most {MAX_ENDPOINTS} endpoints"),
                ));
            }
            Arc::clone(slots.entry(id.to_owned()).or_default())
        };
        let mut held = Arc::clone(&slot.held).lock_owned().await;
        let put = endpoints
            .put_locked(
                app, id, &slot, &mut held, definition, checked, who, conditions,
            )
            .await;
        let empty = held.is_none();
        drop(held);
        if empty {
            endpoints.forget_empty(id, &slot);
        }
        put
    }

    #[expect(clippy::too_many_arguments, reason = "what a registration is made of")]
    async fn put_locked(
        &self,
        app: &Arc<App>,
        id: &str,
        slot: &Arc<Slot>,
        held: &mut OwnedMutexGuard<Option<Held>>,
        definition: Definition,
        checked: Checked,
        who: &Who,
        conditions: Conditions,
    ) -> Result<Registered, Problem> {
        let precondition = |detail: &str| Err(Problem::new(Kind::Precondition, detail));
        match (&**held, &conditions) {
            (Some(held), _) => {
                who.need_own(&held.registrant)?;
                if conditions.none {
                    return precondition("it is there already");
                }
                if let Some(wanted) = &conditions.matches
                    && wanted != "*"
                    && *wanted != held.etag()
                {
                    return precondition("somebody changed it meanwhile");
                }
            }
            (
                None,
                Conditions {
                    matches: Some(_), ..
                },
            ) => return precondition("it is not there"),
            (None, _) => {}
        }
        let created = held.is_none();
        let mut changed = created;
        if let Some(there) = held.as_ref()
            && (there.checked.service_type != checked.service_type
                || there.checked.name != checked.name)
        {
            // Another type or name is another service.
            let registry = app.node.registry();
            let gone = registry.remove_service(&there.service).await;
            drop(gone);
            **held = None;
            changed = true;
        }
        match held.as_mut() {
            None => {
                let fresh = self.register(app, &definition, &checked, who).await?;
                **held = Some(fresh);
            }
            Some(there) => {
                changed |= there
                    .update(app.node.registry(), &definition, &checked)
                    .await?
            }
        }
        let Some(there) = held.as_mut() else {
            return Err(Problem::new(Kind::Internal, "an endpoint was not kept"));
        };
        if changed {
            there.etag = self.number();
        }
        there.own();
        there.renew(who);
        if let Lease::Pid(_) = checked.lease {
            // Another process may have asked this time.
            there.tasks = Tasks::default();
        }
        there.lease_holder = self.number();
        there.publish(app).await?;
        keeper::start(app, id, slot, there, who);
        self.tell_twins.notify_one();
        slot.renewed.notify_waiters();
        if checked.lease == Lease::Agent && changed {
            self.store
                .put(id, &there.definition, &there.registrant)
                .map_err(|error| {
                    Problem::new(
                        Kind::Internal,
                        format!("it is registered, and not kept over a restart: {error}"),
                    )
                    .with("may_have_run", true)
                })?;
        } else if changed {
            // An error says that what was kept of an earlier definition is kept on.
            let _ = self.store.remove(id);
        }
        Ok(Registered {
            created,
            value: there.to_json(app, id),
            etag: there.etag(),
            lease: there.checked.lease,
            lease_holder: there.lease_holder,
        })
    }

    /// Adds the entry, offline where a check has to pass first.
    pub(super) async fn register(
        &self,
        app: &Arc<App>,
        definition: &Definition,
        checked: &Checked,
        who: &Who,
    ) -> Result<Held, Problem> {
        let since = SystemTime::now();
        let mut service = NewService::endpoint(checked.service_type.as_str(), &checked.address)
            .name(checked.name.as_str())
            .weight(checked.weight)
            .tag(BY, &who.name)
            .tag(SINCE, millis(since).to_string());
        for (key, value) in &checked.tags {
            service = service.tag(key, value);
        }
        if let Some(zone) = &checked.zone {
            service = service.zone(zone);
        }
        let mut published = (ServiceState::Online, None);
        if checked.check.is_some() {
            published = (ServiceState::Offline, Some(NOT_CHECKED.to_owned()));
            service = service.offline().tag(REASON, NOT_CHECKED);
        }
        let registration = app.node.registry().add_service(service).await?;
        Ok(Held {
            life: self.number(),
            lease_holder: 0,
            definition: definition.clone(),
            checked: checked.clone(),
            registrant: who.name.clone(),
            service: registration.id().clone(),
            etag: 0,
            wanted: Wanted::Online,
            health: Health::default(),
            renewed_at: Instant::now(),
            next_check: None,
            published,
            since,
            check_changed_at: None,
            tasks: Tasks::default(),
            weight_set: None,
            vouching: None,
            twin: None,
        })
    }

    /// One endpoint as it is.
    pub(crate) async fn one(&self, app: &App, id: &str) -> Option<(Value, String)> {
        let slot = self.slot(id)?;
        let held = slot.held.lock().await;
        let held = held.as_ref()?;
        Some((held.to_json(app, id), held.etag()))
    }

    /// Sets what an endpoint is to be.
    pub(crate) async fn set_wanted(
        &self,
        app: &Arc<App>,
        id: &str,
        who: &Who,
        wanted: Wanted,
    ) -> Result<Value, Problem> {
        let slot = self.slot(id).ok_or_else(|| no_such(id))?;
        let mut held = slot.held.lock().await;
        let held = held.as_mut().ok_or_else(|| no_such(id))?;
        who.need_own(&held.registrant)?;
        held.wanted = wanted;
        held.etag = self.number();
        held.publish(app).await?;
        Ok(held.to_json(app, id))
    }

    /// Sets the weight of an endpoint, until whoever registers it says another one than before.
    pub(crate) async fn set_weight(
        &self,
        app: &Arc<App>,
        id: &str,
        who: &Who,
        weight: u16,
    ) -> Result<Value, Problem> {
        let slot = self.slot(id).ok_or_else(|| no_such(id))?;
        let mut held = slot.held.lock().await;
        let held = held.as_mut().ok_or_else(|| no_such(id))?;
        who.need_own(&held.registrant)?;
        let update = ServiceUpdate::new().weight(weight);
        app.node
            .registry()
            .update_service(&held.service, update)
            .await?;
        held.weight_set = Some(weight);
        self.tell_twins.notify_one();
        held.etag = self.number();
        Ok(held.to_json(app, id))
    }

    /// Takes an endpoint away; with `drain`, after it was listed as draining for that long.
    pub(crate) async fn delete(
        app: &Arc<App>,
        id: &str,
        who: &Who,
        drain: Option<Duration>,
    ) -> Result<Value, Problem> {
        let endpoints = &app.endpoints;
        let slot = endpoints.slot(id).ok_or_else(|| no_such(id))?;
        let life = {
            let mut held = slot.held.lock().await;
            let held = held.as_mut().ok_or_else(|| no_such(id))?;
            who.need_own(&held.registrant)?;
            if drain.is_some() {
                held.wanted = Wanted::Draining("it is being removed".to_owned());
                held.publish(app).await?;
            }
            held.life
        };
        if let Some(drain) = drain {
            tokio::time::sleep(drain).await;
        }
        endpoints
            .remove(app, id, &slot, |held| held.life == life, "deleted")
            .await;
        Ok(json!({ "id": id, "deleted": true }))
    }

    /// Takes away what is held of an id where it is still what is meant; true where it was.
    pub(super) async fn remove(
        &self,
        app: &Arc<App>,
        id: &str,
        slot: &Arc<Slot>,
        is_meant: impl FnOnce(&Held) -> bool,
        why: &str,
    ) -> bool {
        let mut held = slot.held.lock().await;
        if !held.as_ref().is_some_and(is_meant) {
            return false;
        }
        let Some(gone) = held.take() else {
            return false;
        };
        // An error says that the node has stopped, and its entries with it.
        let _ = app.node.registry().remove_service(&gone.service).await;
        // An error is told by the next write.
        let _ = self.store.remove(id);
        tracing::info!(endpoint = id, service_type = %gone.checked.service_type, why, "an endpoint goes");
        app.hub.note(
            "endpoint_gone",
            Some(app.node.name().as_str()),
            Some(gone.checked.service_type.as_str()),
            format!("{}: {why}", gone.checked.name),
        );
        drop(held);
        self.forget_empty(id, slot);
        if let Some(twin) = gone.twin.clone().filter(|_| gone.vouching.is_none()) {
            self.taken_away
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push((twin, id.to_owned()));
            self.tell_twins.notify_one();
        }
        // Last: whoever takes it away may be one of its own tasks, which end here.
        drop(gone);
        true
    }

    /// Ends what lives while a connection is open, unless another one has taken over.
    pub(crate) async fn connection_closed(app: &Arc<App>, id: &str, lease_holder: u64) {
        if let Some(slot) = app.endpoints.slot(id) {
            let endpoints = &app.endpoints;
            endpoints
                .remove(
                    app,
                    id,
                    &slot,
                    |held| held.lease_holder == lease_holder,
                    "its connection closed",
                )
                .await;
        }
    }

    /// Registers again what lives until it is deleted.
    pub(crate) async fn restore(app: &Arc<App>) {
        for kept in app.endpoints.store.load() {
            let who = Who {
                name: kept.registrant,
                role: crate::auth::Role::Operate,
                prefixes: None,
                pid: None,
            };
            if let Err(problem) =
                Endpoints::put(app, &kept.id, kept.definition, &who, Conditions::default()).await
            {
                tracing::warn!(
                    endpoint = kept.id,
                    problem = problem.detail,
                    "an endpoint was not registered again"
                );
            }
        }
    }

    /// Marks all as draining, before the node says so of all of them in one change.
    pub(crate) async fn drain_all(app: &Arc<App>, reason: &str) -> usize {
        let mut drained = 0;
        for id in app.endpoints.ids() {
            if let Some(slot) = app.endpoints.slot(&id)
                && let Some(held) = slot.held.lock().await.as_mut()
            {
                held.wanted = Wanted::Draining(reason.to_owned());
                held.etag = app.endpoints.number();
                drained += 1;
            }
        }
        drained
    }

    /// Says of all what they are to be, where that is not said yet.
    pub(crate) async fn publish_all(app: &Arc<App>) {
        for id in app.endpoints.ids() {
            if let Some(slot) = app.endpoints.slot(&id)
                && let Some(held) = slot.held.lock().await.as_mut()
                && let Err(problem) = held.publish(app).await
            {
                tracing::warn!(
                    endpoint = id,
                    problem = problem.detail,
                    "a state was not published"
                );
            }
        }
    }
}

fn no_such(id: &str) -> Problem {
    Problem::not_found(format!("this agent holds no endpoint {id:?}"))
}

/// Rule: nobody's service lives and dies with a process of somebody else.
fn check_pid(pid: Option<i32>, who: &Who) -> Result<(), Problem> {
    let Some(asking) = who.pid else {
        return Err(Problem::bad(
            "a lease by pid is for the unix socket, where the kernel says who asks",
        ));
    };
    let Some(pid) = pid else {
        return Ok(());
    };
    let owner = |pid: i32| std::fs::metadata(format!("/proc/{pid}")).map(|process| process.uid());
    let theirs = owner(pid).map_err(|_| Problem::bad(format!("there is no process {pid}")))?;
    let is_own = owner(asking).is_ok_and(|ours| ours == theirs);
    if is_own || who.role == crate::auth::Role::Operate {
        Ok(())
    } else {
        Err(Problem::new(
            Kind::Forbidden,
            format!("the process {pid} is of another user"),
        ))
    }
}
