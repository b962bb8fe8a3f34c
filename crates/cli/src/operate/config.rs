//! What an agent would be configured by, and tokens for its API over TCP.

use std::process::ExitCode;

use keydispatch::Escaped;
use keydispatch_agent::make_token;

use super::agent::Settings;
use super::ask::Failure;
use super::table::table;
use crate::output::say;

/// Shows what an agent would be configured by
#[derive(clap::Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Config,
}

#[derive(clap::Subcommand)]
enum Config {
    /// Shows every setting with its value
    Show {
        /// And where each value comes from
        #[arg(long)]
        origin: bool,
        #[command(flatten)]
        settings: Settings,
    },
}

pub(crate) fn show(arguments: &Arguments) -> Result<ExitCode, Failure> {
    let Config::Show { origin, settings } = &arguments.command;
    let layers = settings.layers()?;
    layers.finish()?;
    let shown = layers.shown().into_iter();
    let escaped = |text: &dyn std::fmt::Display| Escaped(text.to_string()).to_string();
    let lines = if *origin {
        let rows = shown.map(|(key, value, origin)| [key, escaped(&value), escaped(&origin)]);
        table(["SETTING", "VALUE", "FROM"], rows)
    } else {
        table(
            ["SETTING", "VALUE"],
            shown.map(|(key, value, _)| [key, escaped(&value)]),
        )
    };
    lines.iter().try_for_each(say)?;
    Ok(ExitCode::SUCCESS)
}

/// Makes a token for the API over TCP, and the line for the file of tokens that lets it in
#[derive(clap::Args)]
pub(crate) struct Token {
    /// Whose it is
    name: String,
    /// read, register, register:PREFIX,PREFIX or operate
    role: String,
}

pub(crate) fn token(arguments: &Token) -> Result<ExitCode, Failure> {
    let (token, line) = make_token(&arguments.name, &arguments.role).map_err(Failure::Other)?;
    say(format_args!("token  {token}\nline   {line}"))?;
    Ok(ExitCode::SUCCESS)
}
