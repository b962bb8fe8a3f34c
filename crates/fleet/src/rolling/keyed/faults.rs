//! What is no planned change: a node dies, and one stands still. What the dead held begins anew, and nothing else does; and once
//! all run again, no key has two histories.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use keydispatch::KeyedHandle;
use tokio::task::JoinSet;

use super::Fleet;
use super::callers::{Callers, Known};
use super::counter::{Counts, Seen};
use super::outcome::{FaultOutcome, Frozen, KeyedOutcome, Killed};
use crate::{Child, Error, PATIENCE};

/// A node stands still for so many times as long as it takes to be taken for dead.
const DOWN_PERIODS: u32 = 4;

/// `down_period` where nothing else is asked for.
const DEFAULT_DOWN_PERIOD: Duration = Duration::from_millis(1_500);

/// Keys that are called at once.
const AT_ONCE: usize = 64;

impl Fleet<'_> {
    /// Both faults.
    pub(super) async fn faults(&mut self) -> Result<FaultOutcome, Error> {
        Ok(FaultOutcome {
            killed: self.kill_one().await?,
            frozen: self.freeze_one().await?,
        })
    }

    async fn kill_one(&mut self) -> Result<Killed, Error> {
        let callers = self.callers_that_know().await?;
        let held = self.at_rest().await?;
        let victim = self.nodes.remove(0);
        let (name, address) = (victim.name().to_owned(), victim.address().to_owned());
        let held = held.get(&name).cloned().unwrap_or_default();
        victim.kill().await?;
        callers.more(3 * self.options.keys as u64).await?;
        let again = self.spawn(&name, &address).await?;
        self.nodes.insert(0, again);
        self.settled().await?;
        callers.more(3 * self.options.keys as u64).await?;
        let seen: KeyedOutcome = callers.finish().await;
        let anew = &seen.begun_anew;
        Ok(Killed {
            held: held.len(),
            begun_anew: anew.intersection(&held).count(),
            others_begun_anew: anew.difference(&held).count(),
            resurrected: seen.resurrected,
            twice: seen.twice,
            failed: seen.failed,
            calls: seen.calls,
        })
    }

    async fn freeze_one(&mut self) -> Result<Frozen, Error> {
        let callers = self.callers_that_know().await?;
        let held = self.at_rest().await?;
        let before = self.merged().await?;
        let name = self.nodes[0].name().to_owned();
        let period = self.options.down_period_ms.map(Duration::from_millis);
        self.nodes[0].freeze()?;
        tokio::time::sleep(DOWN_PERIODS * period.unwrap_or(DEFAULT_DOWN_PERIOD)).await;
        self.nodes[0].thaw()?;
        self.settled().await?;
        let seen = callers.finish().await;
        let two_histories = self.until_each_has_one_history().await?;
        Ok(Frozen {
            held: held.get(&name).map_or(0, BTreeSet::len),
            merged: self.merged().await? - before,
            two_histories,
            failed: seen.failed,
            calls: seen.calls,
        })
    }

    /// Callers that have heard of each of their keys.
    async fn callers_that_know(&self) -> Result<Callers, Error> {
        self.settled().await?;
        let callers = Callers::start(&self.stays.keyed(), self.options, true);
        callers.more(3 * self.options.keys as u64).await?;
        Ok(callers)
    }

    /// Waits until each process has as many states as keys are its own by the registry, and returns these.
    async fn at_rest(&mut self) -> Result<BTreeMap<String, BTreeSet<u32>>, Error> {
        let keys: KeyedHandle<Counts> = self.stays.keyed();
        let all = self.options.keys as u32;
        let rest = async {
            loop {
                let mut owned: BTreeMap<String, BTreeSet<u32>> = BTreeMap::new();
                for key in 0..all {
                    let owner = keys.find(key)?.node().to_string();
                    owned.entry(owner).or_default().insert(key);
                }
                let mut is_rest = true;
                for node in &mut self.nodes {
                    let own = owned.get(node.name()).map_or(0, BTreeSet::len);
                    is_rest &= ask(node).await?.keys == own;
                }
                if is_rest {
                    return Ok(owned);
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(PATIENCE, rest).await?
    }

    /// How often two states of one key were merged, in the processes that run.
    pub(super) async fn merged(&mut self) -> Result<u64, Error> {
        let mut merged = 0;
        for node in &mut self.nodes {
            merged += ask(node).await?.merged;
        }
        Ok(merged)
    }

    /// Calls each key until all count up by one each time; returns how many do not, some time later or at last.
    async fn until_each_has_one_history(&self) -> Result<usize, Error> {
        let keys: KeyedHandle<Counts> = self.stays.keyed();
        let mut known: HashMap<u32, Known> = HashMap::new();
        let until = tokio::time::Instant::now() + PATIENCE;
        // What each says first is compared with nothing.
        self.call_all(&keys, &mut known).await?;
        loop {
            let broken = self.call_all(&keys, &mut known).await?;
            if broken == 0 || tokio::time::Instant::now() > until {
                break;
            }
        }
        self.call_all(&keys, &mut known).await
    }

    async fn call_all(
        &self,
        keys: &KeyedHandle<Counts>,
        known: &mut HashMap<u32, Known>,
    ) -> Result<usize, Error> {
        let all: Vec<u32> = (0..self.options.keys as u32).collect();
        let mut broken = 0;
        for some in all.chunks(AT_ONCE) {
            let mut calls = JoinSet::new();
            for key in some.iter().copied() {
                let keys = keys.clone();
                calls.spawn(async move { (key, keys.call(key, ()).await) });
            }
            while let Some(done) = calls.join_next().await {
                let (key, answer) = done?;
                let mut outcome = KeyedOutcome::default();
                let known = known.entry(key).or_insert_with(|| Known::new(true));
                known.check(answer?, &mut outcome);
                broken += usize::from(!outcome.is_flawless());
            }
        }
        Ok(broken)
    }
}

/// What a process has seen so far.
async fn ask(node: &mut Child) -> Result<Seen, Error> {
    node.tell("seen").await?;
    let line = tokio::time::timeout(PATIENCE, node.next_line()).await??;
    let json = line.as_deref().and_then(|line| line.strip_prefix("seen "));
    let json = json.ok_or_else(|| format!("{} did not say what it saw: {line:?}", node.name()))?;
    Ok(serde_json::from_str(json)?)
}
