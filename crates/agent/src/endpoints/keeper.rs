//! The tasks beside an endpoint: one waits for its lease to end, one runs its check.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::io::unix::AsyncFd;
use tokio::time::Instant;

use super::definition::{Lease, Probe};
use super::health::Verdict;
use super::held::Held;
use super::probe::{self, Seen};
use super::slots::Slot;
use crate::app::App;
use crate::auth::Who;

/// Checks are apart by so much of their period more or less, so that those of many endpoints do not come at once.
const JITTER: f64 = 0.1;

/// How often an endpoint that was not renewed is looked at.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// Starts what an endpoint needs and has not yet.
pub(super) fn start(app: &Arc<App>, id: &str, slot: &Arc<Slot>, held: &mut Held, who: &Who) {
    if !held.tasks.0.is_empty() {
        return;
    }
    let (life, id) = (held.life, id.to_owned());
    match held.checked.lease {
        Lease::Ttl(_) => {
            let task = keep(Arc::clone(app), id.clone(), Arc::clone(slot), life);
            held.tasks.0.push(tokio::spawn(task).abort_handle());
        }
        Lease::Pid(pid) => {
            if let Some(pid) = pid.or(who.pid) {
                let task =
                    keep_while_running(Arc::clone(app), id.clone(), Arc::clone(slot), life, pid);
                held.tasks.0.push(tokio::spawn(task).abort_handle());
            }
        }
        Lease::Connection | Lease::Agent => {}
    }
    // A twin is checked by its holder.
    if let Some(check) = held
        .checked
        .check
        .as_ref()
        .filter(|_| held.vouching.is_none())
    {
        // Soon, and not all at once after a restart.
        let first = check.every.mul_f64(JITTER * rand::random::<f64>());
        held.next_check = Some(Instant::now() + first);
        let task = keep_checking(Arc::clone(app), id, Arc::clone(slot), life);
        held.tasks.0.push(tokio::spawn(task).abort_handle());
    }
}

/// Rule: an endpoint that is not renewed goes when its time is over, whatever else its agent is at.
async fn keep(app: Arc<App>, id: String, slot: Arc<Slot>, life: u64) {
    while !*app.stop.borrow() {
        let ends = {
            let held = slot.held.lock().await;
            match held.as_ref().filter(|held| held.life == life) {
                Some(held) => match held.checked.lease {
                    Lease::Ttl(ttl) => held.renewed_at + ttl,
                    _ => return,
                },
                None => return,
            }
        };
        if Instant::now() < ends {
            tokio::time::sleep_until(ends).await;
            continue;
        }
        // It may have been renewed meanwhile.
        let over = |held: &Held| {
            held.life == life
                && matches!(held.checked.lease, Lease::Ttl(ttl) if held.renewed_at.elapsed() >= ttl)
        };
        if app
            .endpoints
            .remove(&app, &id, &slot, over, "it was not renewed in time")
            .await
        {
            app.endpoints.expired.fetch_add(1, Ordering::Relaxed);
            return;
        }
    }
}

/// Rule: an endpoint that lives with a process goes when the kernel says that it has ended.
async fn keep_while_running(app: Arc<App>, id: String, slot: Arc<Slot>, life: u64, pid: i32) {
    let why = match running(pid) {
        Ok(process) => {
            // It becomes readable when the process ends.
            let _ = process.readable().await;
            format!("the process {pid} ended")
        }
        Err(error) => format!("the process {pid} cannot be watched: {error}"),
    };
    app.endpoints
        .remove(&app, &id, &slot, |held| held.life == life, &why)
        .await;
}

fn running(pid: i32) -> std::io::Result<AsyncFd<OwnedFd>> {
    let pid = rustix::process::Pid::from_raw(pid).ok_or(std::io::ErrorKind::InvalidInput)?;
    let process = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::NONBLOCK)?;
    #[expect(
        deprecated,
        reason = "sound where the descriptor is owned, as here: nobody closes it before"
    )]
    AsyncFd::with_interest(process, tokio::io::Interest::READABLE)
}

async fn keep_checking(app: Arc<App>, id: String, slot: Arc<Slot>, life: u64) {
    while !*app.stop.borrow() {
        let (at, check) = {
            let held = slot.held.lock().await;
            let Some(held) = held.as_ref().filter(|held| held.life == life) else {
                return;
            };
            let Some(check) = held.checked.check.clone() else {
                return;
            };
            (held.next_check.unwrap_or_else(Instant::now), check)
        };
        if let Probe::Ttl(ttl) = check.probe {
            // Whoever registered it says that it is well, or not.
            let next = {
                let mut held = slot.held.lock().await;
                let Some(held) = held.as_mut().filter(|held| held.life == life) else {
                    return;
                };
                let quiet = held.renewed_at.elapsed() >= ttl;
                if quiet {
                    held.health.verdict =
                        Verdict::Failing(format!("not renewed for {} s", ttl.as_secs()));
                }
                publish(held, &app, &id).await;
                // What could not be said yet, as it would flap, is said later.
                if quiet || held.desired() != held.published {
                    Instant::now() + LOOK_AGAIN
                } else {
                    held.renewed_at + ttl
                }
            };
            let _ = tokio::time::timeout_at(next, slot.renewed.notified()).await;
            continue;
        }
        tokio::time::sleep_until(at).await;
        let began = Instant::now();
        let seen = probe::run(&check.probe, check.timeout, &app.allowed).await;
        let took = began.elapsed();
        let mut held = slot.held.lock().await;
        let Some(held) = held.as_mut().filter(|held| held.life == life) else {
            return;
        };
        if held.checked.check.as_ref() != Some(&check) {
            continue;
        }
        tell_change(&app, held, &seen);
        held.health.take(&check, seen, took);
        held.next_check = Some(began + jittered(check.every).max(took));
        publish(held, &app, &id).await;
    }
}

async fn publish(held: &mut Held, app: &Arc<App>, id: &str) {
    if let Err(problem) = held.publish(app).await {
        tracing::warn!(
            endpoint = id,
            problem = problem.detail,
            "the state of a check was not published"
        );
    }
}

/// What a check says anew, for the events of this agent.
fn tell_change(app: &App, held: &Held, seen: &Seen) {
    let before = held.health.last.as_ref().map(|(_, last, _)| last.passed);
    if before != Some(seen.passed) {
        app.hub.note(
            if seen.passed {
                "check_passed"
            } else {
                "check_failed"
            },
            Some(app.node.name().as_str()),
            Some(held.checked.service_type.as_str()),
            format!("{}: {}", held.checked.name, seen.brief),
        );
    }
}

fn jittered(every: Duration) -> Duration {
    every.mul_f64(1.0 - JITTER + 2.0 * JITTER * rand::random::<f64>())
}
