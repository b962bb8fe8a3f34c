//! What happened, and what happens from now on.

use std::process::ExitCode;

use serde_json::{Value, json};

use super::ask::{Failure, Format, Options, list, part, shown};
use crate::output::say;

/// Says what happened, and why
#[derive(clap::Args)]
pub(crate) struct Events {
    /// Go on as it happens, until interrupted
    #[arg(short, long)]
    follow: bool,
    /// Not longer ago than this: 10m, 1h
    #[arg(long, value_name = "PERIOD")]
    since: Option<String>,
    /// Of this type
    #[arg(long = "type", value_name = "TYPE")]
    service_type: Option<String>,
    /// Of this node
    #[arg(long)]
    node: Option<String>,
    #[command(flatten)]
    options: Options,
}

pub(crate) async fn events(arguments: &Events) -> Result<ExitCode, Failure> {
    let mut path = "/v1/events?".to_owned();
    for (name, value) in [
        ("since", &arguments.since),
        ("type", &arguments.service_type),
        ("node", &arguments.node),
    ] {
        if let Some(value) = value {
            path.push_str(&format!("{name}={}&", part(value)));
        }
    }
    let path = path.trim_end_matches(['&', '?']);
    let options = &arguments.options;
    if arguments.follow {
        return follow(options, path, |event| vec![event_line(&event.data)]).await;
    }
    let answer = options.get(path).await?;
    options.print(
        &answer,
        |body| {
            list(body, "events")
                .iter()
                .map(|event| shown(&event["id"]))
                .collect()
        },
        |body| list(body, "events").iter().map(event_line).collect(),
    )?;
    Ok(ExitCode::SUCCESS)
}

fn event_line(event: &Value) -> String {
    let mut line = format!("{}  {:13}", shown(&event["at"]), shown(&event["kind"]));
    for name in ["type", "node"] {
        if event[name].is_string() {
            line.push_str(&format!(" {}", shown(&event[name])));
        }
    }
    if event["because"].is_string() {
        line.push_str(&format!("  {}", shown(&event["because"])));
    } else if event["name"].is_string() {
        line.push_str(&format!("  {}", shown(&event["name"])));
    }
    line
}

/// Prints a stream, event by event, until it ends.
pub(super) async fn follow(
    options: &Options,
    path: &str,
    lines: impl Fn(&keydispatch_agent::StreamEvent) -> Vec<String>,
) -> Result<ExitCode, Failure> {
    let mut events = match options.client()?.follow("GET", path, None).await? {
        Ok(events) => events,
        Err(answer) => return Err(Failure::Problem(answer)),
    };
    while let Some(event) = events.next().await? {
        match options.output {
            Format::Table => lines(&event).iter().try_for_each(say)?,
            Format::Json => say(keydispatch::Escaped(
                json!({ "event": event.name, "id": event.id, "data": event.data }),
            ))?,
            Format::Name => say(shown(&event.data["service"]["name"]))?,
        }
    }
    Err(Failure::Other("the agent stopped".to_owned()))
}
