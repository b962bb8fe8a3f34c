//! What there is: nodes, types, instances and endpoints, and whether all list the same.

use std::process::ExitCode;

use serde_json::Value;

use super::ask::{Failure, Options, list, part, percent, shown};
use super::code;
use super::events::follow;
use super::table::table;

/// Lists the nodes, as the agent's node sees them
#[derive(clap::Args)]
pub(crate) struct Members {
    /// As this node sees them
    #[arg(long, value_name = "NODE")]
    node: Option<String>,
    #[command(flatten)]
    options: Options,
}

pub(crate) async fn members(arguments: &Members) -> Result<ExitCode, Failure> {
    let path = match &arguments.node {
        Some(node) => format!("/v1/members?node={}", part(node)),
        None => "/v1/members".to_owned(),
    };
    let answer = arguments.options.get(&path).await?;
    arguments.options.print(
        &answer,
        |body| {
            list(body, "members")
                .iter()
                .map(|member| shown(&member["name"]))
                .collect()
        },
        members_table,
    )?;
    Ok(ExitCode::SUCCESS)
}

pub(super) fn members_table(body: &Value) -> Vec<String> {
    let rows = list(body, "members").iter().map(|member| {
        [
            shown(&member["name"]),
            shown(&member["state"]),
            shown(&member["since"]),
            shown(&member["address"]),
            shown(&member["entries"]),
            shown(&member["behind"]),
            match member["linked"].as_bool() {
                Some(true) => "ok".to_owned(),
                Some(false) => "none".to_owned(),
                None => "\u{2013}".to_owned(),
            },
            match member["state"].as_str() {
                Some("up") => String::new(),
                _ => shown(&member["because"]),
            },
        ]
    });
    table(
        [
            "NODE", "STATE", "SINCE", "ADDRESS", "ENTRIES", "BEHIND", "LINK", "WHY",
        ],
        rows,
    )
}

/// Lists the types of services
#[derive(clap::Args)]
pub(crate) struct Types {
    /// Those of the agents, too
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    options: Options,
}

pub(crate) async fn types(arguments: &Types) -> Result<ExitCode, Failure> {
    let answer = arguments
        .options
        .get(&format!("/v1/types?all={}", arguments.all))
        .await?;
    arguments.options.print(
        &answer,
        |body| {
            list(body, "types")
                .iter()
                .map(|of| shown(&of["type"]))
                .collect()
        },
        types_table,
    )?;
    Ok(ExitCode::SUCCESS)
}

pub(super) fn types_table(body: &Value) -> Vec<String> {
    let rows = list(body, "types")
        .iter()
        .map(|of| ["type", "online", "draining", "offline"].map(|name| shown(&of[name])));
    table(["TYPE", "ONLINE", "DRAINING", "OFFLINE"], rows)
}

/// Lists the instances of a type
#[derive(clap::Args)]
pub(crate) struct Services {
    /// The type
    #[arg(value_name = "TYPE")]
    service_type: String,
    /// Show each change as it happens, until interrupted
    #[arg(short, long)]
    watch: bool,
    #[command(flatten)]
    options: Options,
}

pub(crate) async fn services(arguments: &Services) -> Result<ExitCode, Failure> {
    let options = &arguments.options;
    let path = format!("/v1/types/{}", part(&arguments.service_type));
    if arguments.watch {
        return follow(options, &path, |event| {
            let info = &event.data["service"];
            match event.name.as_str() {
                "snapshot" => services_table(&event.data),
                name => vec![format!(
                    "{name:9} {} on {}: {}{}",
                    shown(&info["name"]),
                    shown(&info["node"]),
                    shown(&info["state"]),
                    event.data["because"]
                        .as_str()
                        .map(|_| format!(", {}", shown(&event.data["because"])))
                        .unwrap_or_default(),
                )],
            }
        })
        .await;
    }
    let answer = options.get(&format!("{path}?shares=true")).await?;
    options.print(
        &answer,
        |body| {
            list(body, "instances")
                .iter()
                .map(|info| shown(&info["name"]))
                .collect()
        },
        services_table,
    )?;
    Ok(ExitCode::SUCCESS)
}

fn services_table(body: &Value) -> Vec<String> {
    let rows = list(body, "instances").iter().map(|info| {
        let state = match info["standby"] == true {
            true => "standby".to_owned(),
            false => shown(&info["state"]),
        };
        [
            shown(&info["name"]),
            shown(&info["node"]),
            state,
            shown(&info["weight"]),
            percent(&info["share"]),
            shown(&info["zone"]),
            shown(&info["address"]),
            info["reason"]
                .as_str()
                .map(|_| shown(&info["reason"]))
                .unwrap_or_default(),
        ]
    });
    table(
        [
            "NAME", "NODE", "STATE", "WEIGHT", "SHARE", "ZONE", "ADDRESS", "REASON",
        ],
        rows,
    )
}

/// Says whether all nodes list the same
#[derive(clap::Args)]
pub(crate) struct Verify {
    /// How long they have to become equal
    #[arg(long, value_name = "PERIOD", default_value = "2s")]
    wait: String,
    #[command(flatten)]
    options: Options,
}

pub(crate) async fn verify(arguments: &Verify) -> Result<ExitCode, Failure> {
    let answer = arguments
        .options
        .get(&format!("/v1/verify?wait={}", part(&arguments.wait)))
        .await?;
    let body = &answer.body;
    arguments.options.print(
        &answer,
        |body| {
            list(body, "differences")
                .iter()
                .map(|of| shown(&of["node"]))
                .collect()
        },
        |body| {
            let asked = list(body, "asked");
            let mut lines = Vec::new();
            for difference in list(body, "differences") {
                lines.push(format!(
                    "{} lists something else:",
                    shown(&difference["node"])
                ));
                for entry in list(difference, "entries") {
                    let side = |side: &Value| match side {
                        Value::Null => "nothing".to_owned(),
                        there => format!(
                            "{} {} {} weight {} version {}",
                            shown(&there["type"]),
                            shown(&there["name"]),
                            shown(&there["state"]),
                            shown(&there["weight"]),
                            shown(&there["version"])
                        ),
                    };
                    lines.push(format!(
                        "  {}: here {}, there {}",
                        shown(&entry["id"]),
                        side(&entry["here"]),
                        side(&entry["there"])
                    ));
                }
            }
            for silent in list(body, "no_answer") {
                lines.push(format!(
                    "{} did not answer: {}",
                    shown(&silent["node"]),
                    shown(&silent["error"])
                ));
            }
            for without in list(body, "without_agent") {
                lines.push(format!(
                    "{} has no agent, and was not asked",
                    shown(without)
                ));
            }
            let verdict = if body["agree"] == true {
                "agree"
            } else {
                "do not agree"
            };
            lines.push(format!("{} nodes {verdict}", asked.len()));
            lines
        },
    )?;
    Ok(if body["agree"] == true {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(code::DISAGREE)
    })
}

/// Lists what the agent holds, with its checks and leases
#[derive(clap::Args)]
pub(crate) struct Endpoints {
    #[command(flatten)]
    options: Options,
}

pub(crate) async fn endpoints(arguments: &Endpoints) -> Result<ExitCode, Failure> {
    let answer = arguments.options.get("/v1/endpoints").await?;
    arguments.options.print(
        &answer,
        |body| {
            list(body, "endpoints")
                .iter()
                .map(|of| shown(&of["id"]))
                .collect()
        },
        |body| {
            let rows = list(body, "endpoints").iter().map(|of| {
                let check = &of["check"];
                [
                    shown(&of["id"]),
                    shown(&of["type"]),
                    shown(&of["state"]),
                    shown(&of["lease"]),
                    if check.is_object() {
                        format!(
                            "{} {} {}",
                            shown(&check["kind"]),
                            shown(&check["state"]),
                            shown(&check["brief"])
                        )
                    } else {
                        "\u{2013}".to_owned()
                    },
                    of["reason"]
                        .as_str()
                        .map(|_| shown(&of["reason"]))
                        .unwrap_or_default(),
                ]
            });
            table(["ID", "TYPE", "STATE", "LEASE", "CHECK", "REASON"], rows)
        },
    )?;
    Ok(ExitCode::SUCCESS)
}
