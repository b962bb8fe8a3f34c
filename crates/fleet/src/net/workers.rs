//! The workers, as whoever started them sees them: requests, responses, and whether all list the same.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use tokio::process::Command;

use super::load::ByOwner;
use super::worker::{Health, Request, Response, Short, hash};
use crate::{Child, Error};

/// How long a worker may take to answer.
const PATIENCE: Duration = Duration::from_secs(60);

/// How a worker is started.
#[derive(Clone, Debug)]
pub struct Start<'a> {
    /// This program.
    pub program: &'a Path,
    /// What to run it by, such as a namespace; empty for nothing.
    pub within: Vec<String>,
    /// Its node's name.
    pub name: String,
    /// Where it listens.
    pub bind: String,
    /// Where it finds the others.
    pub seeds: Vec<String>,
    /// The directory of certificates.
    pub certificates: &'a Path,
}

/// One worker; killed when dropped.
pub struct Worker {
    child: Child,
    frozen: bool,
}

impl Worker {
    /// Starts a process, and waits until its node is synced.
    pub async fn start(start: Start<'_>) -> Result<Worker, Error> {
        let program = start.program.display().to_string();
        let mut words = start.within.clone();
        words.push(program);
        let (first, rest) = words.split_first().ok_or("no program")?;
        let mut command = Command::new(first);
        command.args(rest).arg("worker");
        command.args(["--name", &start.name, "--bind", &start.bind]);
        command.arg("--certificates").arg(start.certificates);
        for seed in &start.seeds {
            command.args(["--seed", seed]);
        }
        if std::env::var_os("RUST_LOG").is_none() {
            // That nodes go down and services panic is what is meant to happen here.
            command.env("RUST_LOG", "off");
        }
        let child = Child::start(command, &start.name).await?;
        Ok(Worker {
            child,
            frozen: false,
        })
    }

    /// Its node's name.
    pub fn name(&self) -> &str {
        self.child.name()
    }

    /// Where its node is reached.
    pub fn address(&self) -> &str {
        self.child.address()
    }

    /// Tells it something, and waits for the answer.
    pub async fn tell(&mut self, tell: &Request) -> Result<Response, Error> {
        self.child.tell(&serde_json::to_string(tell)?).await?;
        match self.hear().await? {
            Response::Failed(why) => Err(format!("{}: {why}", self.name()).into()),
            told => Ok(told),
        }
    }

    async fn hear(&mut self) -> Result<Response, Error> {
        let line = tokio::time::timeout(PATIENCE, self.child.next_line())
            .await
            .map_err(|_| format!("{} does not answer", self.name()))??
            .ok_or_else(|| format!("{} has ended", self.name()))?;
        Ok(serde_json::from_str(&line)?)
    }

    /// Freezes the process, as SIGSTOP does.
    pub fn freeze(&mut self) -> Result<(), Error> {
        self.frozen = true;
        self.child.freeze()
    }

    /// Lets a frozen process go on.
    pub fn thaw(&mut self) -> Result<(), Error> {
        self.frozen = false;
        self.child.thaw()
    }

    /// Kills the process, as SIGKILL does, and waits until it is gone.
    pub async fn kill(self) -> Result<(), Error> {
        self.child.kill().await
    }

    /// What its calls came to.
    pub async fn calls(&mut self, tell: &Request) -> Result<ByOwner, Error> {
        match self.tell(tell).await? {
            Response::Calls(calls) => Ok(calls),
            other => Err(unexpected(&other)),
        }
    }

    /// How it fares.
    pub async fn health(&mut self) -> Result<Health, Error> {
        match self.tell(&Request::Health).await? {
            Response::Health(health) => Ok(health),
            other => Err(unexpected(&other)),
        }
    }

    async fn lines(&mut self, tell: &Request) -> Result<BTreeSet<String>, Error> {
        match self.tell(tell).await? {
            Response::Lines(lines) => Ok(lines),
            other => Err(unexpected(&other)),
        }
    }

    async fn short(&mut self) -> Result<Short, Error> {
        match self.tell(&Request::View).await? {
            Response::Short(short) => Ok(short),
            other => Err(unexpected(&other)),
        }
    }
}

fn unexpected(told: &Response) -> Error {
    format!("an unexpected answer: {told:?}").into()
}

/// Whether all nodes listed what there is, and when.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Agreement {
    /// How long it took; none where it did not come.
    pub after: Option<Duration>,
    /// Services that their owner holds and some node does not list.
    pub lost: usize,
    /// Services that some node lists and no owner holds.
    pub resurrected: usize,
    /// What each node said last, where they did not agree.
    pub seen: Vec<String>,
}

/// Tells all of them the same.
pub async fn tell_all(workers: &mut [Worker], tell: &Request) -> Result<(), Error> {
    for worker in workers.iter_mut().filter(|worker| !worker.frozen) {
        worker.tell(tell).await?;
    }
    Ok(())
}

/// Waits until every worker lists exactly what all of them have registered, all with the same references and owners.
/// Nothing may be changing.
pub async fn agree(
    workers: &mut [Worker],
    since: Instant,
    patience: Duration,
) -> Result<Agreement, Error> {
    let mut own = BTreeSet::new();
    for worker in workers.iter_mut() {
        own.extend(worker.lines(&Request::Own).await?);
    }
    let expected = hash(&own);
    let others = workers.len() - 1;
    let deadline = Instant::now() + patience;
    loop {
        let mut shorts = Vec::with_capacity(workers.len());
        for worker in workers.iter_mut() {
            shorts.push(worker.short().await?);
        }
        let same = shorts.windows(2).all(|pair| pair[0] == pair[1]);
        if same && shorts[0].plain == expected && shorts[0].members == others {
            return Ok(Agreement {
                after: Some(since.elapsed()),
                ..Agreement::default()
            });
        }
        if Instant::now() >= deadline {
            let mut agreement = Agreement::default();
            for (worker, short) in workers.iter_mut().zip(shorts) {
                let listed = worker.lines(&Request::List).await?;
                agreement.lost += own.difference(&listed).count();
                agreement.resurrected += listed.difference(&own).count();
                agreement.seen.push(format!("{}: {short:?}", worker.name()));
            }
            return Ok(agreement);
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
