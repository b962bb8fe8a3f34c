//! The cluster of the demonstration, and the member that drives it.

use std::time::Duration;

use keydispatch::{CallOptions, Node, Protocol, ServiceHandle};
use tempfile::TempDir;

use super::certificates::{self, CLIENT, NODES};
use super::clock::{self, PATIENCE};
use super::error::DemoError;
use super::node;
use super::process::Process;
use super::uploader::Uploads;
use super::witness::{Question, Testimony, Witness, Witnesses};

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
            seeds.push(process.address().to_owned());
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
        process.kill()?;
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
