//! Real node processes that tests and benchmarks start, tell, freeze and kill.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use keydispatch::{CallOptions, Node, NodeBuilder, ServiceHandle, TlsFiles};
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

mod puppet;
mod versions;

pub use puppet::{
    Answer, Counter, CounterCall, Counters, Happened, Listed, Order, Puppet, Strings,
};
pub use versions::{AskOne, AskTwo, GreeterOne, GreeterTwo, GreetersOne, GreetersTwo};

/// The cluster of every fleet; fleets have authorities of their own, and so never meet.
pub const CLUSTER: &str = "fleet";

/// How long a condition may take to come true before a test gives up on it.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// The variable that tells a puppet by how many seconds its wall clock is behind.
const CLOCK_BEHIND: &str = "KEYDISPATCH_PUPPET_CLOCK_BEHIND";

/// Something that a fleet could not do.
pub type Error = Box<dyn std::error::Error + Send + Sync>;

/// The certificates of a fleet, in a directory that is removed with it.
pub struct Certificates {
    directory: tempfile::TempDir,
}

impl Certificates {
    /// An authority, and a certificate for each of those names.
    pub fn make(names: &[&str]) -> Result<Self, Error> {
        let directory = tempfile::tempdir()?;
        let authority = keydispatch::testkit::Authority::new(CLUSTER)?;
        std::fs::write(directory.path().join("ca.pem"), authority.ca_pem())?;
        for name in names {
            let path = |extension| directory.path().join(format!("{name}.{extension}"));
            authority.issue(name)?.write(&path("pem"), &path("key"))?;
        }
        Ok(Certificates { directory })
    }

    /// Where they are.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// The files of one node.
    pub fn of(&self, name: &str) -> TlsFiles {
        files(self.path(), name)
    }
}

fn files(directory: &Path, name: &str) -> TlsFiles {
    TlsFiles::new(
        directory.join("ca.pem"),
        directory.join(format!("{name}.pem")),
        directory.join(format!("{name}.key")),
    )
}

/// A node as every fleet runs it.
pub fn describe(name: &str, bind: &str, seeds: &[String], certificates: &Path) -> NodeBuilder {
    Node::builder(name)
        .cluster(CLUSTER)
        .bind(bind)
        .seeds(seeds)
        .tls(files(certificates, name))
}

/// One puppet in a process of its own; killed when dropped.
pub struct Process {
    name: String,
    address: String,
    child: Child,
    /// The process ends when this is closed, and so with whoever started it.
    stdin: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Process {
    /// Starts `program puppet …` and waits until its node is synced.
    pub async fn start(
        program: &Path,
        name: &str,
        bind: &str,
        seeds: &[String],
        certificates: &Path,
    ) -> Result<Self, Error> {
        Process::start_behind(program, name, bind, seeds, certificates, Duration::ZERO).await
    }

    /// As [`start`](Self::start), with a wall clock that is behind by that.
    pub async fn start_behind(
        program: &Path,
        name: &str,
        bind: &str,
        seeds: &[String],
        certificates: &Path,
        clock_behind: Duration,
    ) -> Result<Self, Error> {
        let mut command = Command::new(program);
        command
            .env(CLOCK_BEHIND, clock_behind.as_secs().to_string())
            .arg("puppet")
            .args(["--name", name, "--bind", bind])
            .arg("--certificates")
            .arg(certificates);
        for seed in seeds {
            command.args(["--seed", seed]);
        }
        Process::run(command, name).await
    }

    /// Starts a process that says `ready` with its node's address once it is.
    pub async fn run(mut command: Command, name: &str) -> Result<Self, Error> {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let stdin = child.stdin.take().ok_or("no standard input")?;
        let stdout = child.stdout.take().ok_or("no standard output")?;
        let mut lines = BufReader::new(stdout).lines();
        let first = tokio::time::timeout(PATIENCE, lines.next_line()).await??;
        let address = first
            .as_deref()
            .and_then(|line| line.strip_prefix("ready "))
            .ok_or_else(|| format!("{name} did not start: {first:?}"))?
            .to_owned();
        Ok(Process {
            name: name.to_owned(),
            address,
            child,
            stdin,
            lines,
        })
    }

    /// Tells the process something, as a line.
    pub async fn say(&mut self, line: &str) -> Result<(), Error> {
        self.stdin.write_all(format!("{line}\n").as_bytes()).await?;
        Ok(())
    }

    /// What the process says next; none once it has ended.
    pub async fn next_line(&mut self) -> Result<Option<String>, Error> {
        Ok(self.lines.next_line().await?)
    }

    /// Asks the process to end, as SIGTERM does.
    pub fn terminate(&self) -> Result<(), Error> {
        self.signal(Signal::TERM)
    }

    /// Waits until the process has ended by itself.
    pub async fn ended(mut self) -> Result<(), Error> {
        self.child.wait().await?;
        Ok(())
    }

    /// The node's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where the node is reached.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Freezes the process, as SIGSTOP does.
    pub fn freeze(&self) -> Result<(), Error> {
        self.signal(Signal::STOP)
    }

    /// Lets a frozen process go on.
    pub fn thaw(&self) -> Result<(), Error> {
        self.signal(Signal::CONT)
    }

    /// Kills the process, as SIGKILL does, and waits until it is gone.
    pub async fn kill(mut self) -> Result<(), Error> {
        self.child.kill().await?;
        Ok(())
    }

    fn signal(&self, signal: Signal) -> Result<(), Error> {
        let id = self.child.id().ok_or("the process is gone")?;
        let id = Pid::from_raw(i32::try_from(id)?).ok_or("no process id")?;
        kill_process(id, signal)?;
        Ok(())
    }
}

/// What a puppet process does: one node that obeys, until its standard input closes.
pub async fn run_puppet(
    name: String,
    bind: String,
    seeds: Vec<String>,
    certificates: PathBuf,
    ready: impl FnOnce(&str),
) -> Result<(), Error> {
    let behind = match std::env::var(CLOCK_BEHIND) {
        Ok(seconds) => Duration::from_secs(seconds.parse()?),
        Err(_) => Duration::ZERO,
    };
    let node = describe(&name, &bind, &seeds, &certificates)
        .clock_behind(behind)
        .start()
        .await?;
    Puppet::serve(&node).await?;
    ready(node.address().as_str());
    let mut stdin = tokio::io::stdin();
    // Nothing is ever written there: it ends when the parent does.
    tokio::io::copy(&mut stdin, &mut tokio::io::sink()).await?;
    Ok(())
}

/// Tells the puppet on the node of that name.
pub async fn tell(
    puppets: &ServiceHandle<Strings>,
    node: &str,
    order: Order,
) -> Result<Answer, Error> {
    let id = puppets
        .view()
        .services()
        .iter()
        .find(|info| info.node().as_str() == node)
        .map(|info| info.id().clone())
        .ok_or_else(|| format!("no puppet on {node}"))?;
    let options = CallOptions::new().timeout(PATIENCE);
    Ok(puppets.with(options).at(id).call(order).await?)
}

/// Waits until a condition holds, and fails with what was seen last when it does not come to hold.
pub async fn eventually<T, F>(what: &str, mut probe: impl FnMut() -> F) -> T
where
    F: Future<Output = Result<T, String>>,
{
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        match probe().await {
            Ok(found) => return found,
            Err(seen) if tokio::time::Instant::now() >= deadline => {
                panic!("not within {PATIENCE:?}: {what}; last seen: {seen}");
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    }
}
