//! The node processes.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdin, Command};

use super::clock::PATIENCE;
use super::error::DemoError;
use super::node;

/// How long a process that was killed may take to be gone, before nobody waits for it any more.
const REAPED_WITHIN: Duration = Duration::from_secs(1);

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
    pub(crate) async fn start(
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

    /// Kills it as SIGKILL does, and does not wait for anything.
    pub(crate) fn kill(&mut self) -> Result<(), DemoError> {
        self.child.start_kill().map_err(DemoError::unexpected)
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
