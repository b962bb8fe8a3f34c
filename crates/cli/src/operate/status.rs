//! `dispatch status` and `dispatch top`: what is wrong, once, or again and again.

use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::Duration;

use serde_json::Value;

use super::ask::{Failure, Options, list, shown};
use super::code;
use super::show::{members_table, types_table};
use crate::output::say;

/// From the upper left corner on, with nothing below.
const CLEAR: &str = "\u{1b}[H\u{1b}[J";

/// Says what is wrong, worst first, and what to do
///
/// The exit code is 0 where nothing is, and 1 where something is.
#[derive(clap::Args)]
pub(crate) struct Status {
    #[command(flatten)]
    options: Options,
}

/// Shows what is wrong, the nodes and the types, again and again until interrupted
#[derive(clap::Args)]
pub(crate) struct Top {
    /// Seconds between two looks
    #[arg(long, value_name = "SECONDS", default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=3_600))]
    every: u64,
    /// How often it looks; until interrupted where nothing is said
    #[arg(short = 'n', long, value_name = "TIMES")]
    count: Option<u64>,
    #[command(flatten)]
    options: Options,
}

pub(crate) async fn status(arguments: &Status) -> Result<ExitCode, Failure> {
    let answer = arguments.options.get("/v1/status").await?;
    let names = |body: &Value| {
        list(body, "troubles")
            .iter()
            .map(|trouble| shown(&trouble["what"]))
            .collect()
    };
    arguments.options.print(&answer, names, status_lines)?;
    Ok(match answer.body["well"] == true {
        true => ExitCode::SUCCESS,
        false => ExitCode::from(code::FAILED),
    })
}

/// The sentence, and each trouble with what to do under it.
fn status_lines(body: &Value) -> Vec<String> {
    let mut lines = vec![shown(&body["summary"])];
    for trouble in list(body, "troubles") {
        lines.push(format!("- {}", shown(&trouble["what"])));
        lines.push(format!("  {}", shown(&trouble["todo"])));
    }
    if let more @ 1.. = body["more"].as_u64().unwrap_or(0) {
        lines.push(format!("- and {more} more"));
    }
    lines
}

pub(crate) async fn top(arguments: &Top) -> Result<ExitCode, Failure> {
    let options = &arguments.options;
    let in_place = std::io::stdout().is_terminal();
    let mut left = arguments.count.unwrap_or(u64::MAX);
    while left > 0 {
        let status = options.get("/v1/status").await?;
        let members = options.get("/v1/members").await?;
        let types = options.get("/v1/types").await?;
        let mut lines = status_lines(&status.body);
        for table in [members_table(&members.body), types_table(&types.body)] {
            lines.push(String::new());
            lines.extend(table);
        }
        // At once, so that nothing flickers.
        let clear = if in_place { CLEAR } else { "" };
        say(format_args!("{clear}{}", lines.join("\n")))?;
        left -= 1;
        if left > 0 {
            tokio::select! {
                () = tokio::time::sleep(Duration::from_secs(arguments.every)) => {}
                // An error says that no interrupt will ever be seen.
                interrupted = tokio::signal::ctrl_c() => {
                    interrupted?;
                    break;
                }
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}
