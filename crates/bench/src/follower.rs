//! Another process of the same program.

use crate::fleet;

/// A process of this binary that does what another one measures; killed when dropped.
pub struct Follower {
    child: tokio::process::Child,
    input: tokio::process::ChildStdin,
    lines: tokio::io::Lines<tokio::io::BufReader<tokio::process::ChildStdout>>,
}

impl Follower {
    /// Starts it; `arguments` begin with a hidden command.
    pub fn start<I: AsRef<std::ffi::OsStr>>(
        arguments: impl IntoIterator<Item = I>,
    ) -> Result<Self, fleet::Error> {
        use tokio::io::AsyncBufReadExt;
        let mut child = tokio::process::Command::new(std::env::current_exe()?)
            .args(arguments)
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let input = child.stdin.take().ok_or("no standard input")?;
        let output = child.stdout.take().ok_or("no standard output")?;
        Ok(Follower {
            child,
            input,
            lines: tokio::io::BufReader::new(output).lines(),
        })
    }

    /// Its next line, without the word that it begins with.
    pub async fn expect(&mut self, word: &str) -> Result<String, fleet::Error> {
        let line = tokio::time::timeout(fleet::PATIENCE * 4, self.lines.next_line()).await??;
        let line = line.ok_or("the other process has ended")?;
        let rest = line.strip_prefix(word);
        Ok(rest
            .ok_or_else(|| format!("not {word:?}: {line}"))?
            .trim()
            .to_owned())
    }

    /// Tells it something.
    pub async fn tell(&mut self, line: &str) -> Result<(), fleet::Error> {
        use tokio::io::AsyncWriteExt;
        self.input.write_all(format!("{line}\n").as_bytes()).await?;
        self.input.flush().await?;
        Ok(())
    }

    /// Its number.
    pub fn id(&self) -> u32 {
        self.child.id().unwrap_or(0)
    }

    /// Kills it, as SIGKILL does; returns when the signal is sent.
    pub fn kill(&mut self) -> Result<(), fleet::Error> {
        self.child.start_kill()?;
        Ok(())
    }
}
