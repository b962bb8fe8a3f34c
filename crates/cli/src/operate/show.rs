//! What looks and changes nothing.

use std::io::Read;
use std::process::ExitCode;

use serde_json::{Value, json};

use super::ask::{Failure, Format, Options, list, part, percent, shown};
use super::code;
use super::table::table;
use crate::output::say;

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

/// Says who owns a key
#[derive(clap::Args)]
pub(crate) struct Owner {
    /// The type
    #[arg(value_name = "TYPE")]
    service_type: String,
    /// Keys; - reads them from standard input, one a line
    #[arg(value_name = "KEY", required = true)]
    keys: Vec<String>,
    /// How keys are read
    #[command(flatten)]
    form: KeyForm,
    #[command(flatten)]
    options: Options,
}

/// How a key is written.
#[derive(clap::Args)]
#[group(multiple = false)]
pub(crate) struct KeyForm {
    /// Keys are integers
    #[arg(long)]
    int: bool,
    /// Keys are JSON: "text", 7 or ["tenant",7]
    #[arg(long)]
    json: bool,
}

impl KeyForm {
    fn value(&self, text: &str) -> Result<Value, Failure> {
        let wrong = || Failure::Other(format!("{text:?} is no such key"));
        if self.int {
            return text.parse::<i64>().map(Value::from).map_err(|_| wrong());
        }
        if self.json {
            return serde_json::from_str(text).map_err(|_| wrong());
        }
        Ok(text.into())
    }

    fn parameter(&self, text: &str) -> Result<String, Failure> {
        Ok(match self.value(text)? {
            Value::String(text) => format!("key={}", part(&text)),
            value @ Value::Array(_) => format!("key.tuple={}", part(&value.to_string())),
            value => format!("key.int={}", part(&value.to_string())),
        })
    }
}

pub(crate) async fn owner(arguments: &Owner) -> Result<ExitCode, Failure> {
    let mut keys = Vec::new();
    for key in &arguments.keys {
        if key == "-" {
            let mut text = String::new();
            std::io::stdin().lock().read_to_string(&mut text)?;
            keys.extend(text.lines().map(str::to_owned));
        } else {
            keys.push(key.clone());
        }
    }
    let values = keys
        .iter()
        .map(|key| arguments.form.value(key))
        .collect::<Result<Vec<_>, _>>()?;
    let path = format!("/v1/types/{}/owners", part(&arguments.service_type));
    for chunk in values.chunks(10_000) {
        let answer = arguments
            .options
            .ask("POST", &path, Some(&json!({ "keys": chunk })))
            .await?;
        let of = |body: &Value| -> Vec<Value> {
            let owners = list(body, "owners");
            let numbers = list(body, "of_keys").iter().filter_map(Value::as_u64);
            numbers
                .map(|number| {
                    usize::try_from(number)
                        .ok()
                        .and_then(|at| owners.get(at))
                        .cloned()
                        .unwrap_or_default()
                })
                .collect()
        };
        arguments.options.print(
            &answer,
            |body| of(body).iter().map(|owner| shown(&owner["name"])).collect(),
            |body| {
                let rows = of(body).into_iter().zip(chunk).map(|(owner, key)| {
                    [
                        shown(key),
                        shown(&owner["name"]),
                        shown(&owner["node"]),
                        shown(&owner["address"]),
                    ]
                });
                table(
                    ["KEY", "OWNER", "NODE", "ADDRESS"],
                    rows.collect::<Vec<_>>(),
                )
            },
        )?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Says who owns a key, and why
#[derive(clap::Args)]
pub(crate) struct Explain {
    /// The type
    #[arg(value_name = "TYPE")]
    service_type: String,
    /// The key
    key: String,
    #[command(flatten)]
    form: KeyForm,
    /// Ask all nodes whether they say the same
    #[arg(long)]
    everywhere: bool,
    #[command(flatten)]
    options: Options,
}

pub(crate) async fn explain(arguments: &Explain) -> Result<ExitCode, Failure> {
    let everywhere = if arguments.everywhere {
        "&nodes=all"
    } else {
        ""
    };
    let path = format!(
        "/v1/types/{}/explain?{}{everywhere}",
        part(&arguments.service_type),
        arguments.form.parameter(&arguments.key)?
    );
    let answer = arguments.options.get(&path).await?;
    arguments.options.print(
        &answer,
        |body| vec![shown(&body["owner"]["name"])],
        explained,
    )?;
    let disagree = arguments.everywhere && answer.body["agree"] != answer.body["asked"];
    Ok(if disagree {
        ExitCode::from(code::DISAGREE)
    } else {
        ExitCode::SUCCESS
    })
}

fn explained(body: &Value) -> Vec<String> {
    let key = &body["key"];
    let mut lines = vec![format!(
        "key     {} ({} bytes)   hash {}   slot {}",
        shown(&key["value"]),
        shown(&key["bytes"]),
        shown(&key["hash"]),
        shown(&key["slot"])
    )];
    for preferred in list(body, "order") {
        let rank = preferred["rank"]
            .as_u64()
            .map_or("\u{2013}".to_owned(), |rank| rank.to_string());
        let mut line = format!(
            "{rank:<3} {}  node {}  weight {}",
            shown(&preferred["name"]),
            shown(&preferred["node"]),
            shown(&preferred["weight"])
        );
        if preferred["rank"] == 1 {
            line.push_str("  \u{2190} owner");
        }
        if preferred["standby"] == true {
            line.push_str("  stands by");
        }
        if preferred["state"] != "online" {
            line.push_str(&format!("  {}", shown(&preferred["state"])));
            if preferred["since"].is_string() {
                line.push_str(&format!(" since {}", shown(&preferred["since"])));
            }
            if preferred["reason"].is_string() {
                line.push_str(&format!(": {}", shown(&preferred["reason"])));
            }
        }
        if preferred["would_own"] == true {
            line.push_str("   would own it");
        }
        lines.push(line);
    }
    if body["owner"].is_null() {
        lines.push("nobody owns it: no instance is online".to_owned());
    }
    if body["nodes"].is_array() {
        let own = shown(&body["owner"]["name"]);
        let (mut same, mut others) = (Vec::new(), Vec::new());
        for node in list(body, "nodes") {
            if node["agrees"] == true {
                same.push(shown(&node["node"]));
            } else if node["error"].is_string() {
                others.push(format!(
                    "{} did not answer: {}",
                    shown(&node["node"]),
                    shown(&node["error"])
                ));
            } else {
                others.push(format!(
                    "{} says {}",
                    shown(&node["node"]),
                    shown(&node["owner"]["name"])
                ));
            }
        }
        let mut line = format!("nodes   {} say {own}", same.join(" "));
        for other in others {
            line.push_str(&format!("; {other}"));
        }
        for down in list(body, "down") {
            line.push_str(&format!("; {} is down", shown(down)));
        }
        line.push_str(&format!(
            "   agree {}/{}",
            shown(&body["agree"]),
            shown(&body["asked"])
        ));
        lines.push(line);
    }
    let moved = &body["moved"];
    if moved.is_object() {
        lines.push(format!(
            "moved   {}  {} \u{2192} {}   because {}",
            shown(&moved["at"]),
            shown(&moved["from"]),
            shown(&moved["to"]),
            shown(&moved["because"])
        ));
    }
    lines
}

/// Says what would happen if instances came, went or changed, exactly; nothing is changed
#[derive(clap::Args)]
pub(crate) struct Plan {
    /// The type
    #[arg(value_name = "TYPE")]
    service_type: String,
    /// An instance goes
    #[arg(long, value_name = "NAME")]
    remove: Vec<String>,
    /// An instance comes, with another weight than 100 after =
    #[arg(long, value_name = "NAME[=WEIGHT]")]
    add: Vec<String>,
    /// An instance gets another weight
    #[arg(long, value_name = "NAME=WEIGHT")]
    weight: Vec<String>,
    /// Where this key is now, and where it would be
    #[arg(long, value_name = "KEY")]
    key: Vec<String>,
    #[command(flatten)]
    options: Options,
}

fn weighed(text: &str) -> Result<(String, u16), Failure> {
    let wrong = || {
        Failure::Other(format!(
            "{text:?} is not NAME=WEIGHT with a weight from 1 to 1000"
        ))
    };
    let (name, weight) = text.rsplit_once('=').ok_or_else(wrong)?;
    Ok((name.to_owned(), weight.parse().map_err(|_| wrong())?))
}

pub(crate) async fn plan(arguments: &Plan) -> Result<ExitCode, Failure> {
    let mut weights = serde_json::Map::new();
    for text in &arguments.weight {
        let (name, weight) = weighed(text)?;
        weights.insert(name, weight.into());
    }
    let mut added = Vec::new();
    for text in &arguments.add {
        added.push(if text.contains('=') {
            let (name, weight) = weighed(text)?;
            json!({ "name": name, "weight": weight })
        } else {
            json!({ "name": text })
        });
    }
    let body = json!({ "remove": arguments.remove, "add": added, "weight": weights, "keys": arguments.key });
    let path = format!("/v1/types/{}/plan", part(&arguments.service_type));
    let answer = arguments.options.ask("POST", &path, Some(&body)).await?;
    arguments.options.print(
        &answer,
        |body| {
            list(body, "moves")
                .iter()
                .map(|moved| shown(&moved["to"]))
                .collect()
        },
        planned,
    )?;
    Ok(ExitCode::SUCCESS)
}

fn planned(body: &Value) -> Vec<String> {
    let moves = list(body, "moves");
    let rows = list(body, "instances").iter().map(|info| {
        let change = info["change"].as_f64().unwrap_or(0.0) * 100.0;
        let to: Vec<String> = moves
            .iter()
            .filter(|moved| moved["from"] == info["name"])
            .map(|moved| format!("{} {}", shown(&moved["to"]), percent(&moved["share"])))
            .collect();
        [
            shown(&info["name"]),
            percent(&info["share_now"]),
            percent(&info["share_after"]),
            format!("{change:+.1} %"),
            if to.is_empty() {
                String::new()
            } else {
                format!("to {}", to.join(", "))
            },
        ]
    });
    let mut lines = table(
        ["NAME", "SHARE NOW", "AFTER", "CHANGE", "KEYS THAT MOVE"],
        rows,
    );
    for key in list(body, "keys") {
        lines.push(format!(
            "key {}: {} \u{2192} {}",
            shown(&key["key"]),
            shown(&key["now"]["name"]),
            shown(&key["after"]["name"])
        ));
    }
    let zones = if body["zones_now"] == 0 {
        String::new()
    } else {
        format!(
            " {} of {} zones left.",
            shown(&body["zones_after"]),
            shown(&body["zones_now"])
        )
    };
    lines.push(format!(
        "{} of the keys move. Exact over all slots.{zones} Nothing was changed.",
        percent(&body["moved_share"])
    ));
    lines
}

/// Makes keys that an instance owns
#[derive(clap::Args)]
pub(crate) struct Mint {
    /// The type
    #[arg(value_name = "TYPE")]
    service_type: String,
    /// The instance
    instance: String,
    /// How many
    #[arg(short, default_value_t = 1)]
    n: usize,
    #[command(flatten)]
    options: Options,
}

pub(crate) async fn mint(arguments: &Mint) -> Result<ExitCode, Failure> {
    let path = format!("/v1/types/{}/mint", part(&arguments.service_type));
    let body = json!({ "instance": arguments.instance, "n": arguments.n });
    let answer = arguments.options.ask("POST", &path, Some(&body)).await?;
    let keys = |body: &Value| list(body, "keys").iter().map(shown).collect::<Vec<_>>();
    arguments.options.print(&answer, keys, keys)?;
    Ok(ExitCode::SUCCESS)
}

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
async fn follow(
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
