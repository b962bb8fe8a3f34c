//! The agent, and what operates a cluster by asking one.

mod agent;
mod ask;
mod bundle;
mod change;
mod code;
mod config;
mod doctor;
mod events;
mod keys;
mod notify;
mod run;
mod show;
mod status;
mod table;

use std::process::ExitCode;

use clap::Subcommand;

use crate::output::say;
use ask::Failure;

/// What the feature `agent` adds to the command.
#[derive(Subcommand)]
pub(crate) enum Command {
    Agent(agent::Arguments),
    Members(show::Members),
    Types(show::Types),
    Services(show::Services),
    Owner(keys::Owner),
    Explain(keys::Explain),
    Plan(keys::Plan),
    Mint(keys::Mint),
    Events(events::Events),
    Status(status::Status),
    Top(status::Top),
    Verify(show::Verify),
    Endpoints(show::Endpoints),
    Register(change::Register),
    Deregister(change::Deregister),
    Run(run::Arguments),
    Weight(change::Weight),
    Drain(change::Drain),
    Doctor(doctor::Arguments),
    Bundle(bundle::Arguments),
    Config(config::Arguments),
    Token(config::Token),
    /// Prints what a shell completes the command by
    Completions {
        /// bash, elvish, fish, powershell or zsh
        shell: clap_complete::Shell,
    },
    /// Prints the manual page of the command, or of one of its parts
    Man {
        /// The part
        part: Option<String>,
    },
}

/// Runs one of them; `whole` is the command that they are parts of.
pub(crate) fn run(command: Command, whole: fn() -> clap::Command) -> ExitCode {
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => return ask::exit(Err(Failure::Io(error))),
    };
    let result = runtime.block_on(async {
        match command {
            Command::Agent(arguments) => agent::run(arguments).await,
            Command::Members(arguments) => show::members(&arguments).await,
            Command::Types(arguments) => show::types(&arguments).await,
            Command::Services(arguments) => show::services(&arguments).await,
            Command::Owner(arguments) => keys::owner(&arguments).await,
            Command::Explain(arguments) => keys::explain(&arguments).await,
            Command::Plan(arguments) => keys::plan(&arguments).await,
            Command::Mint(arguments) => keys::mint(&arguments).await,
            Command::Events(arguments) => events::events(&arguments).await,
            Command::Status(arguments) => status::status(&arguments).await,
            Command::Top(arguments) => status::top(&arguments).await,
            Command::Verify(arguments) => show::verify(&arguments).await,
            Command::Endpoints(arguments) => show::endpoints(&arguments).await,
            Command::Register(arguments) => change::register(&arguments).await,
            Command::Deregister(arguments) => change::deregister(&arguments).await,
            Command::Run(arguments) => run::run(&arguments).await,
            Command::Weight(arguments) => change::weight(&arguments).await,
            Command::Drain(arguments) => change::drain(&arguments).await,
            Command::Doctor(arguments) => doctor::run(&arguments).await,
            Command::Bundle(arguments) => bundle::run(&arguments).await,
            Command::Config(arguments) => config::show(&arguments),
            Command::Token(arguments) => config::token(&arguments),
            Command::Completions { shell } => completions(shell, whole()),
            Command::Man { part } => man(part.as_deref(), whole()),
        }
    });
    // Whatever still runs beside it, a read of standard input for one, holds up nobody.
    runtime.shutdown_background();
    ask::exit(result)
}

fn completions(shell: clap_complete::Shell, mut whole: clap::Command) -> Result<ExitCode, Failure> {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut whole, "dispatch", &mut text);
    say(String::from_utf8_lossy(&text).trim_end())?;
    Ok(ExitCode::SUCCESS)
}

fn man(part: Option<&str>, mut whole: clap::Command) -> Result<ExitCode, Failure> {
    whole.build();
    let command = match part {
        None => whole,
        Some(part) => whole
            .find_subcommand(part)
            .cloned()
            .ok_or_else(|| Failure::NotFound(format!("the command has no part {part:?}")))?,
    };
    let mut text = Vec::new();
    clap_mangen::Man::new(command).render(&mut text)?;
    say(String::from_utf8_lossy(&text).trim_end())?;
    Ok(ExitCode::SUCCESS)
}
