//! Asking an agent: where it is, what its problems mean for the exit code, and how answers are printed.

use std::io;
use std::process::ExitCode;

use clap::ValueEnum;
use keydispatch::Escaped;
use keydispatch_agent::{Answer, ApiAddress, Client, ClientError, usual_sockets};
use serde_json::Value;

use super::code;
use crate::output::{complain, say};

/// How an answer is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people
    Table,
    /// As the agent answered
    Json,
    /// Names alone, one a line
    Name,
}

/// Where the agent is, and how answers are printed.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// The agent: unix:/run/dispatch/agent.sock or http://127.0.0.1:7401; by default $DISPATCH_ADDR, else the usual sockets
    #[arg(long, value_name = "ADDRESS")]
    addr: Option<String>,
    /// How answers are printed
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    pub(crate) output: Format,
}

/// Why the command failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error("{0}")]
    Client(#[from] ClientError),
    #[error("{}", problem(.0))]
    Problem(Answer),
    #[error("{0}")]
    NotFound(String),
    #[error("{0}")]
    Other(String),
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// What an agent says is wrong, and what to do.
fn problem(answer: &Answer) -> String {
    let text = |name: &str| {
        answer.body[name]
            .as_str()
            .map(|text| Escaped(text).to_string())
    };
    let mut said =
        text("detail").unwrap_or_else(|| format!("the agent answered {}", answer.status));
    if let Some(node) = text("node") {
        said.push_str(&format!(" (said by {node})"));
    }
    if answer.body["may_have_run"] == true {
        said.push_str("; it may have had its effect all the same");
    }
    match answer.status {
        401 => said.push_str("\nset DISPATCH_TOKEN, or use the unix socket"),
        403 => said.push_str("\nask whoever operates the agent"),
        503 => said.push_str("\n`dispatch services TYPE` shows what there is"),
        _ => {}
    }
    said
}

/// The exit code, with the complaint.
pub(crate) fn exit(result: Result<ExitCode, Failure>) -> ExitCode {
    let failure = match result {
        Ok(code) => return code,
        Err(failure) => failure,
    };
    let code = match &failure {
        Failure::Client(ClientError::Unreachable { .. } | ClientError::Broken { .. }) => {
            code::UNREACHABLE
        }
        Failure::Client(ClientError::Address { .. }) => 2,
        Failure::Problem(answer) if matches!(answer.status, 404 | 410) => code::NOT_FOUND,
        Failure::NotFound(_) => code::NOT_FOUND,
        Failure::Io(error) if error.kind() == io::ErrorKind::BrokenPipe => {
            return ExitCode::from(141);
        }
        _ => code::FAILED,
    };
    complain(format_args!("error: {failure}"));
    if code == code::UNREACHABLE {
        complain(
            "start one with `dispatch agent`, or say where it is with --addr or DISPATCH_ADDR",
        );
    }
    ExitCode::from(code)
}

impl Options {
    pub(crate) fn client(&self) -> Result<Client, Failure> {
        let set = |name: &str| std::env::var(name).ok().filter(|text| !text.is_empty());
        let token = set("DISPATCH_TOKEN");
        let address = match self.addr.clone().or_else(|| set("DISPATCH_ADDR")) {
            Some(text) => text.parse()?,
            None => {
                let sockets = usual_sockets();
                let there = sockets
                    .iter()
                    .find(|path| path.exists())
                    .or(sockets.first());
                ApiAddress::Unix(there.cloned().unwrap_or_default())
            }
        };
        Ok(Client::new(address, token))
    }

    /// The answer, where it is one that says yes.
    pub(crate) async fn ask(
        &self,
        method: &str,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Answer, Failure> {
        let answer = self.client()?.ask(method, path, body).await?;
        if answer.is_ok() {
            Ok(answer)
        } else {
            Err(Failure::Problem(answer))
        }
    }

    pub(crate) async fn get(&self, path: &str) -> Result<Answer, Failure> {
        self.ask("GET", path, None).await
    }

    /// Prints an answer: as it is for `json`, its names for `name`, and else as `table` does.
    pub(crate) fn print(
        &self,
        answer: &Answer,
        names: impl FnOnce(&Value) -> Vec<String>,
        table: impl FnOnce(&Value) -> Vec<String>,
    ) -> Result<(), Failure> {
        let lines = match self.output {
            // The agent's JSON holds control characters as escapes already, but for those beyond ASCII.
            Format::Json => vec![Escaped(&answer.text).to_string()],
            Format::Name => names(&answer.body),
            Format::Table => table(&answer.body),
        };
        lines.iter().try_for_each(say)?;
        Ok(())
    }
}

/// A text of an answer, as it may be printed; `–` where there is none.
pub(crate) fn shown(value: &Value) -> String {
    match value {
        Value::Null => "\u{2013}".to_owned(),
        Value::String(text) => Escaped(text).to_string(),
        other => Escaped(other).to_string(),
    }
}

/// The list of that name; nothing where there is none.
pub(crate) fn list<'a>(value: &'a Value, name: &str) -> &'a [Value] {
    value[name].as_array().map_or(&[], Vec::as_slice)
}

/// A part of a path, or of a query.
pub(crate) fn part(text: &str) -> String {
    const KEEP: &[u8] = b"-._~";
    text.bytes().fold(String::new(), |mut out, byte| {
        if byte.is_ascii_alphanumeric() || KEEP.contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
        out
    })
}

/// A share in percent.
pub(crate) fn percent(value: &Value) -> String {
    value.as_f64().map_or("\u{2013}".to_owned(), |share| {
        format!("{:.1} %", share * 100.0)
    })
}
