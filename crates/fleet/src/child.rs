//! A process that is started, told, frozen and killed.

use std::ffi::OsStr;
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{ChildStdin, ChildStdout, Command};

use crate::Error;

/// How long a process may take until it says that it is ready.
const READY_WITHIN: Duration = Duration::from_secs(60);

/// How long it may take to say what is expected of it.
const SAYS_WITHIN: Duration = Duration::from_secs(120);

/// A command of this very program.
pub fn this_program<I: AsRef<OsStr>>(
    arguments: impl IntoIterator<Item = I>,
) -> Result<Command, Error> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(arguments);
    Ok(command)
}

/// A process that says lines and is told lines; killed when dropped.
pub struct Child {
    name: String,
    /// What it said behind `ready`.
    ready: String,
    child: tokio::process::Child,
    /// The process ends when this is closed, and so with whoever started it.
    stdin: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Child {
    /// Starts a process, and waits until it says `ready`.
    pub async fn start(command: Command, name: &str) -> Result<Self, Error> {
        let mut child = Child::spawn(command, name)?;
        child.ready = child.within(READY_WITHIN, "ready").await?;
        Ok(child)
    }

    /// Starts a process, and waits for nothing.
    pub fn spawn(mut command: Command, name: &str) -> Result<Self, Error> {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let stdin = child.stdin.take().ok_or("no standard input")?;
        let stdout = child.stdout.take().ok_or("no standard output")?;
        Ok(Child {
            name: name.to_owned(),
            ready: String::new(),
            child,
            stdin,
            lines: BufReader::new(stdout).lines(),
        })
    }

    /// The name that it was started by: that of its node, where it has one.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it said behind `ready`.
    pub fn ready(&self) -> &str {
        &self.ready
    }

    /// Where its node is reached: the first word behind `ready`.
    pub fn address(&self) -> &str {
        self.ready.split(' ').next().unwrap_or_default()
    }

    /// Its number.
    pub fn id(&self) -> u32 {
        self.child.id().unwrap_or(0)
    }

    /// Tells it something, as a line.
    pub async fn tell(&mut self, line: &str) -> Result<(), Error> {
        self.stdin.write_all(format!("{line}\n").as_bytes()).await?;
        Ok(())
    }

    /// What it says next; none once it has ended.
    pub async fn next_line(&mut self) -> Result<Option<String>, Error> {
        Ok(self.lines.next_line().await?)
    }

    /// Its next line, without the word that it begins with.
    pub async fn expect(&mut self, word: &str) -> Result<String, Error> {
        self.within(SAYS_WITHIN, word).await
    }

    async fn within(&mut self, time: Duration, word: &str) -> Result<String, Error> {
        let name = &self.name;
        let line = tokio::time::timeout(time, self.lines.next_line())
            .await
            .map_err(|_| format!("{name} did not say {word:?} within {time:?}"))??
            .ok_or_else(|| format!("{name} has ended"))?;
        let rest = line
            .strip_prefix(word)
            .ok_or_else(|| format!("{name} did not say {word:?} but {line:?}"))?;
        Ok(rest.trim().to_owned())
    }

    /// Asks it to end, as SIGTERM does.
    pub fn terminate(&self) -> Result<(), Error> {
        self.signal(Signal::TERM)
    }

    /// Freezes it, as SIGSTOP does.
    pub fn freeze(&self) -> Result<(), Error> {
        self.signal(Signal::STOP)
    }

    /// Lets it go on after it was frozen.
    pub fn thaw(&self) -> Result<(), Error> {
        self.signal(Signal::CONT)
    }

    /// Kills it, as SIGKILL does; returns when the signal is sent.
    pub fn start_kill(&mut self) -> Result<(), Error> {
        self.child.start_kill()?;
        Ok(())
    }

    /// Kills it, as SIGKILL does, and waits until it is gone.
    pub async fn kill(mut self) -> Result<(), Error> {
        self.child.kill().await?;
        Ok(())
    }

    /// Waits until it has ended by itself.
    pub async fn ended(mut self) -> Result<(), Error> {
        self.child.wait().await?;
        Ok(())
    }

    fn signal(&self, signal: Signal) -> Result<(), Error> {
        let id = self.child.id().ok_or("the process is gone")?;
        let id = Pid::from_raw(i32::try_from(id)?).ok_or("no process id")?;
        kill_process(id, signal)?;
        Ok(())
    }
}
