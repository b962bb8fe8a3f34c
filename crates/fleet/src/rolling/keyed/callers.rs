//! Tasks that count keys up, and know what each key has to say next.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use keydispatch::{Key, KeyedHandle};
use tokio::task::JoinSet;

use super::super::options::Options;
use super::counter::{Answer, Counts};
use super::outcome::KeyedOutcome;
use crate::{Error, PATIENCE};

/// Lives of one key that are remembered, to know one that comes back.
const LIVES: usize = 8;

/// Tasks that count keys up, each its own.
pub(super) struct Callers {
    tasks: JoinSet<()>,
    seen: Arc<Mutex<KeyedOutcome>>,
    stop: Arc<AtomicBool>,
    made: Arc<AtomicU64>,
}

impl Callers {
    /// `late` says whether others have called before.
    pub(super) fn start(keys: &KeyedHandle<Counts>, options: &Options, late: bool) -> Self {
        let mut all = Callers {
            tasks: JoinSet::new(),
            seen: Arc::default(),
            stop: Arc::default(),
            made: Arc::default(),
        };
        let callers = options.callers.clamp(1, options.keys.max(1));
        let pause = Duration::from_secs_f64(callers as f64 / options.rate.max(1) as f64);
        for caller in 0..callers {
            let own: Vec<u32> = (0..options.keys as u32)
                .filter(|key| *key as usize % callers == caller)
                .collect();
            let (keys, stop) = (keys.clone(), Arc::clone(&all.stop));
            let (seen, made) = (Arc::clone(&all.seen), Arc::clone(&all.made));
            all.tasks.spawn(async move {
                let outcome = call(&keys, &own, late, pause, &stop, &made).await;
                seen.lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .add(&outcome);
            });
        }
        all
    }

    pub(super) fn made(&self) -> u64 {
        self.made.load(Ordering::Relaxed)
    }

    /// Waits until some more calls were answered.
    pub(super) async fn go_on(&self) -> Result<(), Error> {
        self.more(100).await
    }

    /// Waits until so many more calls were answered.
    pub(super) async fn more(&self, calls: u64) -> Result<(), Error> {
        let until = self.made() + calls;
        let going = async {
            while self.made() < until {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        Ok(tokio::time::timeout(PATIENCE, going).await?)
    }

    pub(super) async fn finish(mut self) -> KeyedOutcome {
        self.stop.store(true, Ordering::Relaxed);
        while self.tasks.join_next().await.is_some() {}
        self.seen
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

/// What a caller knows of one of its keys.
#[derive(Default)]
pub(super) struct Known {
    /// The last is the present one.
    lives: Vec<u64>,
    count: u64,
    /// A call failed that may have run.
    unsure: bool,
    /// Others have called before: what it hears first has no past.
    came_late: bool,
}

impl Known {
    /// Of a key that others may have called before, where it comes late.
    pub(super) fn new(came_late: bool) -> Self {
        Known {
            came_late,
            ..Known::default()
        }
    }

    /// Compares what the key says with what it must say.
    pub(super) fn check(&mut self, answer: Answer, outcome: &mut KeyedOutcome) {
        if self.lives.last() == Some(&answer.life) {
            let expected = self.count + 1;
            if answer.count < expected {
                // The same life, as it was before.
                outcome.resurrected += 1;
            } else if answer.count > expected && !self.unsure {
                outcome.twice += 1;
            }
        } else if self.lives.contains(&answer.life) {
            outcome.resurrected += 1;
        } else {
            outcome.lost += u64::from(!self.lives.is_empty());
            let is_first = self.lives.is_empty() && self.came_late;
            outcome.twice += u64::from(answer.count > 1 && !self.unsure && !is_first);
            self.lives.push(answer.life);
            if self.lives.len() > LIVES {
                self.lives.remove(0);
            }
        }
        self.count = answer.count;
        self.unsure = false;
    }
}

async fn call(
    keys: &KeyedHandle<Counts>,
    own: &[u32],
    late: bool,
    pause: Duration,
    stop: &AtomicBool,
    made: &AtomicU64,
) -> KeyedOutcome {
    let mut outcome = KeyedOutcome::default();
    let mut known: HashMap<u32, Known> = HashMap::new();
    let mut ticks = tokio::time::interval(pause.max(Duration::from_micros(1)));
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Burst);
    for key in own.iter().cycle() {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        ticks.tick().await;
        let began = Instant::now();
        let result = keys.call(*key, ()).await;
        let took = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        outcome.slowest_ms = outcome.slowest_ms.max(took);
        outcome.calls += 1;
        made.fetch_add(1, Ordering::Relaxed);
        let known = known.entry(*key).or_insert_with(|| Known::new(late));
        match result {
            Ok(answer) => {
                let (had, before) = (known.count, outcome.clone());
                known.check(answer, &mut outcome);
                if (before.lost, before.resurrected, before.twice)
                    != (outcome.lost, outcome.resurrected, outcome.twice)
                {
                    if outcome.lost > before.lost {
                        outcome.begun_anew.insert(*key);
                    }
                    let slot = Key::from(*key).slot().keyed_index();
                    tracing::warn!(key, slot, had, ?answer, "not what was to come");
                }
            }
            Err(error) => {
                known.unsure |= error.may_have_run();
                outcome.failed += 1;
                tracing::warn!(%error, key, "a call failed");
            }
        }
    }
    outcome
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_lost_comes_back_or_ran_twice_is_told_apart() {
        let seen = |answers: &[(u64, u64)]| {
            let (mut known, mut outcome) = (Known::default(), KeyedOutcome::default());
            for (life, count) in answers {
                let answer = Answer {
                    life: *life,
                    count: *count,
                };
                known.check(answer, &mut outcome);
            }
            (outcome.lost, outcome.resurrected, outcome.twice)
        };
        assert_eq!(seen(&[(1, 1), (1, 2), (1, 3)]), (0, 0, 0));
        assert_eq!(seen(&[(1, 1), (2, 1), (2, 2)]), (1, 0, 0));
        assert_eq!(seen(&[(1, 1), (2, 1), (1, 2)]), (1, 1, 0));
        assert_eq!(seen(&[(1, 1), (1, 2), (1, 2)]), (0, 1, 0));
        assert_eq!(seen(&[(1, 1), (1, 3)]), (0, 0, 1));
        assert_eq!(seen(&[(1, 2)]), (0, 0, 1));
    }
}
