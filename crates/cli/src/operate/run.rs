//! `dispatch run`: registers a program that cannot be changed, for as long as it runs.

use std::os::unix::process::ExitStatusExt;
use std::process::ExitCode;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use tokio::process::Command;
use tokio::signal::unix::{SignalKind, signal};

use super::ask::{Failure, Options, part, shown};
use super::change::Endpoint;
use crate::output::complain;

/// How long the endpoint lives without a word of this process, and how often there is one: three may be lost.
const TTL: &str = "10s";
const RENEW: Duration = Duration::from_secs(3);

/// Runs a program, and registers it as long as it runs
///
/// On SIGTERM and SIGINT its keys are taken away, and after a while the signal is passed on.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    endpoint: Endpoint,
    /// Its id; by default its name, or its address
    #[arg(long)]
    id: Option<String>,
    /// How long it goes on after its keys were taken away, before it gets the signal
    #[arg(long, value_name = "SECONDS", default_value_t = 5)]
    drain: u64,
    #[command(flatten)]
    options: Options,
    /// The program with its arguments
    #[arg(last = true, required = true)]
    program: Vec<String>,
}

pub(crate) async fn run(arguments: &Arguments) -> Result<ExitCode, Failure> {
    let definition = arguments.endpoint.definition(json!({ "ttl": TTL }))?;
    let id = arguments
        .id
        .clone()
        .unwrap_or_else(|| arguments.endpoint.default_id());
    let path = format!("/v1/endpoints/{}", part(&id));
    // A wrong address of the agent is told before anything is started.
    arguments.options.client()?;
    let (mut term, mut interrupt) = (
        signal(SignalKind::terminate())?,
        signal(SignalKind::interrupt())?,
    );
    let (program, rest) = arguments
        .program
        .split_first()
        .ok_or_else(|| Failure::Other("there is no program to run".to_owned()))?;
    let mut command = Command::new(program);
    // Rule: a signal of the terminal is for this process, which takes the keys away before it passes it on.
    command.args(rest).process_group(0).kill_on_drop(true);
    let mut child = command
        .spawn()
        .map_err(|error| Failure::Other(format!("cannot run {program}: {error}")))?;
    let process = child
        .id()
        .and_then(|id| i32::try_from(id).ok())
        .and_then(Pid::from_raw);
    let mut renew = tokio::time::interval(RENEW);
    let mut complained = false;
    let signalled = loop {
        tokio::select! {
            status = child.wait() => {
                forget(arguments, &path).await;
                return Ok(code(status?));
            }
            _ = term.recv() => break Signal::TERM,
            _ = interrupt.recv() => break Signal::INT,
            _ = renew.tick() => {
                // Rule: whatever becomes of the agent, the program runs on, and is registered again once there is one.
                match arguments.options.ask("PUT", &path, Some(&definition)).await {
                    Ok(_) => complained = false,
                    Err(failure) if !complained => {
                        complain(format_args!("not registered: {failure}; it is tried again"));
                        complained = true;
                    }
                    Err(_) => {}
                }
            }
        }
    };
    let draining = json!({ "state": "draining", "reason": "it is being stopped" });
    match arguments
        .options
        .ask("POST", &format!("{path}/state"), Some(&draining))
        .await
    {
        Ok(answer) => complain(format_args!(
            "{} is {}",
            shown(&answer.body["id"]),
            shown(&answer.body["state"])
        )),
        Err(failure) => complain(format_args!("its keys were not taken away: {failure}")),
    }
    let drained = tokio::time::sleep(Duration::from_secs(arguments.drain));
    tokio::pin!(drained);
    let mut passed = false;
    loop {
        tokio::select! {
            status = child.wait() => {
                forget(arguments, &path).await;
                return Ok(code(status?));
            }
            () = &mut drained, if !passed => {
                passed = true;
                pass(process, signalled);
            }
            // Said again, nobody waits.
            _ = term.recv() => { passed = true; pass(process, Signal::TERM); }
            _ = interrupt.recv() => { passed = true; pass(process, Signal::INT); }
            _ = renew.tick() => {
                let answer = arguments.options.ask("PUT", &path, Some(&definition)).await;
                // Its lease ends with it in any case.
                drop(answer);
            }
        }
    }
}

fn pass(process: Option<Pid>, signal: Signal) {
    if let Some(process) = process {
        // An error says that it has ended.
        let _ = kill_process(process, signal);
    }
}

async fn forget(arguments: &Arguments, path: &str) {
    // Where the agent has gone its entries have, too.
    let _ = arguments.options.ask("DELETE", path, None).await;
}

/// What a shell would report.
fn code(status: std::process::ExitStatus) -> ExitCode {
    let code = status
        .code()
        .or_else(|| status.signal().map(|signal| 128 + signal))
        .unwrap_or(1);
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}
