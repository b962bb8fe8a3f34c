//! The controller's end of the workers: start, tell, freeze, kill, and compare what they list.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use super::load::ByOwner;
use super::worker::{Health, Short, Tell, Told, hash};
use crate::fleet::Error;

/// How long a worker may take to start, or to answer.
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
    name: String,
    address: String,
    child: Child,
    stdin: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
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
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let stdin = child.stdin.take().ok_or("no standard input")?;
        let stdout = child.stdout.take().ok_or("no standard output")?;
        let mut worker = Worker {
            name: start.name,
            address: String::new(),
            child,
            stdin,
            lines: BufReader::new(stdout).lines(),
            frozen: false,
        };
        match worker.hear().await? {
            Told::Ready(address) => worker.address = address,
            other => return Err(format!("{} did not start: {other:?}", worker.name).into()),
        }
        Ok(worker)
    }

    /// Its node's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where its node is reached.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Tells it something, and waits for the answer.
    pub async fn tell(&mut self, tell: &Tell) -> Result<Told, Error> {
        let mut line = serde_json::to_string(tell)?;
        line.push('\n');
        self.stdin.write_all(line.as_bytes()).await?;
        match self.hear().await? {
            Told::Failed(why) => Err(format!("{}: {why}", self.name).into()),
            told => Ok(told),
        }
    }

    async fn hear(&mut self) -> Result<Told, Error> {
        let line = tokio::time::timeout(PATIENCE, self.lines.next_line())
            .await
            .map_err(|_| format!("{} does not answer", self.name))??
            .ok_or_else(|| format!("{} has ended", self.name))?;
        Ok(serde_json::from_str(&line)?)
    }

    /// Freezes the process, as SIGSTOP does.
    pub fn freeze(&mut self) -> Result<(), Error> {
        self.frozen = true;
        self.signal(Signal::STOP)
    }

    /// Lets a frozen process go on.
    pub fn thaw(&mut self) -> Result<(), Error> {
        self.frozen = false;
        self.signal(Signal::CONT)
    }

    /// Kills the process, as SIGKILL does, and waits until it is gone.
    pub async fn kill(mut self) -> Result<(), Error> {
        Ok(self.child.kill().await?)
    }

    fn signal(&self, signal: Signal) -> Result<(), Error> {
        let id = self.child.id().ok_or("the process is gone")?;
        let id = Pid::from_raw(i32::try_from(id)?).ok_or("no process id")?;
        Ok(kill_process(id, signal)?)
    }

    /// What its calls came to.
    pub async fn calls(&mut self, tell: &Tell) -> Result<ByOwner, Error> {
        match self.tell(tell).await? {
            Told::Calls(calls) => Ok(calls),
            other => Err(unexpected(&other)),
        }
    }

    /// How it fares.
    pub async fn health(&mut self) -> Result<Health, Error> {
        match self.tell(&Tell::Health).await? {
            Told::Health(health) => Ok(health),
            other => Err(unexpected(&other)),
        }
    }

    async fn lines(&mut self, tell: &Tell) -> Result<BTreeSet<String>, Error> {
        match self.tell(tell).await? {
            Told::Lines(lines) => Ok(lines),
            other => Err(unexpected(&other)),
        }
    }

    async fn short(&mut self) -> Result<Short, Error> {
        match self.tell(&Tell::View).await? {
            Told::Short(short) => Ok(short),
            other => Err(unexpected(&other)),
        }
    }
}

fn unexpected(told: &Told) -> Error {
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
pub async fn tell_all(workers: &mut [Worker], tell: &Tell) -> Result<(), Error> {
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
        own.extend(worker.lines(&Tell::Own).await?);
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
                let listed = worker.lines(&Tell::List).await?;
                agreement.lost += own.difference(&listed).count();
                agreement.resurrected += listed.difference(&own).count();
                agreement.seen.push(format!("{}: {short:?}", worker.name));
            }
            return Ok(agreement);
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
