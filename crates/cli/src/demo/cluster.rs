//! The node processes and the member that drives them.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use keydispatch::{CallOptions, Node, Protocol, ServiceHandle};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdin, Command};

use super::certificates::{self, CLIENT, NODES};
use super::uploader::Uploads;
use super::witness::{Question, Testimony, Witness, Witnesses};
use super::{DemoError, PATIENCE, clock, node};

/// How long a process that was killed may take to be gone, before nobody waits for it any more.
const REAPED_WITHIN: Duration = Duration::from_secs(1);

/// Three node processes, and a fourth member in this one that serves nothing.
///
/// When it is dropped, in whatever state, the processes are killed and the certificates removed: fields are dropped in
/// their order.
pub(crate) struct Cluster {
    client: Node,
    client_witness: Witness,
    processes: Vec<Process>,
    _directory: TempDir,
}

impl Cluster {
    /// Starts the processes, and joins them; returns once everybody sees every uploader.
    pub(crate) async fn start(verbose: bool) -> Result<Cluster, DemoError> {
        let directory = certificates::make()?;
        let mut processes = Vec::with_capacity(NODES.len());
        let mut seeds: Vec<String> = Vec::new();
        for name in NODES {
            let process = Process::start(name, directory.path(), &seeds, verbose).await?;
            seeds.push(process.address.clone());
            processes.push(process);
        }
        let client = node::describe(CLIENT, directory.path(), &seeds).await?;
        let client_witness = Witness::start(client.registry()).map_err(DemoError::unexpected)?;
        let online = async {
            client
                .services::<Uploads>()
                .wait_online(NODES.len())
                .await?;
            client
                .services::<Witnesses>()
                .wait_online(NODES.len())
                .await
        };
        tokio::time::timeout(PATIENCE, online)
            .await
            .map_err(|_| DemoError::unexpected("the nodes do not see each other"))?
            .map_err(DemoError::unexpected)?;
        Ok(Cluster {
            client,
            client_witness,
            processes,
            _directory: directory,
        })
    }

    pub(crate) fn processes(&self) -> &[Process] {
        &self.processes
    }

    /// The services of a protocol, as this process's node sees them.
    pub(crate) fn services<P: Protocol>(&self) -> ServiceHandle<P> {
        self.client.services()
    }

    /// Asks the witness of a node, this process's own among them.
    pub(crate) async fn ask(
        &mut self,
        node: &str,
        question: Question,
    ) -> Result<Testimony, DemoError> {
        let testimony = if node == CLIENT {
            self.client_witness.answer(question).await
        } else {
            let witnesses = self.services::<Witnesses>();
            let witness = on_node(&witnesses, node)?;
            let options = CallOptions::new().timeout(PATIENCE);
            let answer = witnesses.with(options).at(witness).call(question).await;
            answer.map_err(DemoError::unexpected)?
        };
        match testimony {
            Testimony::Failed(why) => Err(DemoError::unexpected(why)),
            testimony => Ok(testimony),
        }
    }

    /// Asks for a time, again and again until there is one.
    pub(crate) async fn ask_when(
        &mut self,
        node: &str,
        question: Question,
    ) -> Result<u64, DemoError> {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            if let Testimony::At(Some(at)) = self.ask(node, question.clone()).await? {
                return Ok(at);
            }
            if tokio::time::Instant::now() >= deadline {
                return Err(DemoError::unexpected(format!(
                    "the node {node} did not see it within {PATIENCE:?}: {question:?}"
                )));
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// Kills a process as SIGKILL does; returns the time just before, and does not wait for anything.
    pub(crate) fn kill(&mut self, name: &str) -> Result<u64, DemoError> {
        let process = self
            .processes
            .iter_mut()
            .find(|process| process.name == name)
            .ok_or_else(|| DemoError::unexpected(format!("no process {name}")))?;
        let before = clock::micros();
        process.child.start_kill().map_err(DemoError::unexpected)?;
        Ok(before)
    }
}

/// The only instance of a protocol on a node.
pub(crate) fn on_node<P: Protocol>(
    services: &ServiceHandle<P>,
    node: &str,
) -> Result<keydispatch::ServiceId, DemoError> {
    services
        .view()
        .services()
        .iter()
        .find(|info| info.node().as_str() == node)
        .map(|info| info.id().clone())
        .ok_or_else(|| DemoError::unexpected(format!("no {} on {node}", P::NAME)))
}

/// One node process.
pub(crate) struct Process {
    pub(crate) name: &'static str,
    pub(crate) id: u32,
    address: String,
    child: Child,
    /// The process ends when this closes, and so with this one. What is written there tells one that can leave to do so.
    stdin: ChildStdin,
}

impl Process {
    async fn start(
        name: &'static str,
        directory: &Path,
        seeds: &[String],
        verbose: bool,
    ) -> Result<Process, DemoError> {
        Process::start_with(name, directory, seeds, verbose, false).await
    }

    /// One that keeps files by name, and can leave.
    pub(crate) async fn start_keyed(
        name: &'static str,
        directory: &Path,
        seeds: &[String],
        verbose: bool,
    ) -> Result<Process, DemoError> {
        Process::start_with(name, directory, seeds, verbose, true).await
    }

    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// Lets its node leave, and waits until the process has ended.
    pub(crate) async fn leave(mut self) -> Result<(), DemoError> {
        let name = self.name;
        let failed = |why: String| DemoError::unexpected(format!("{name} did not leave: {why}"));
        self.stdin
            .write_all(b"leave\n")
            .await
            .map_err(|error| failed(error.to_string()))?;
        let ended = tokio::time::timeout(PATIENCE, self.child.wait())
            .await
            .map_err(|_| failed(format!("not within {PATIENCE:?}")))?
            .map_err(|error| failed(error.to_string()))?;
        if ended.success() {
            Ok(())
        } else {
            Err(failed(ended.to_string()))
        }
    }

    async fn start_with(
        name: &'static str,
        directory: &Path,
        seeds: &[String],
        verbose: bool,
        keyed: bool,
    ) -> Result<Process, DemoError> {
        let failed = |why: String| DemoError::NodeProcess { name, why };
        let program = std::env::current_exe().map_err(|error| failed(error.to_string()))?;
        let mut command = Command::new(program);
        command.arg("demo-node").args(["--name", name]);
        command.arg("--directory").arg(directory);
        for seed in seeds {
            command.args(["--seed", seed]);
        }
        if verbose {
            command.arg("--verbose");
        }
        if keyed {
            command.arg("--keyed");
        }
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| failed(error.to_string()))?;
        let (Some(id), Some(stdin), Some(stdout)) =
            (child.id(), child.stdin.take(), child.stdout.take())
        else {
            return Err(failed("it has no pipes".to_owned()));
        };
        let mut lines = BufReader::new(stdout).lines();
        let said = tokio::time::timeout(PATIENCE, lines.next_line())
            .await
            .map_err(|_| failed(format!("nothing heard within {PATIENCE:?}")))?
            .map_err(|error| failed(error.to_string()))?
            .ok_or_else(|| failed("it ended at once".to_owned()))?;
        let address = said
            .strip_prefix(node::READY)
            .ok_or_else(|| failed(said.strip_prefix(node::FAILED).unwrap_or(&said).to_owned()))?;
        Ok(Process {
            name,
            id,
            address: address.to_owned(),
            child,
            stdin,
        })
    }
}

impl Drop for Process {
    /// Nothing is left behind when this returns, not even for a moment.
    fn drop(&mut self) {
        // An error says that it has ended already.
        let _ = self.child.start_kill();
        let deadline = std::time::Instant::now() + REAPED_WITHIN;
        while matches!(self.child.try_wait(), Ok(None)) && std::time::Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}
