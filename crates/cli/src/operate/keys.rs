//! Who owns a key and why, what would move, and keys that an instance owns.

use std::io::Read;
use std::process::ExitCode;

use serde_json::{Value, json};

use super::ask::{Failure, Options, list, part, percent, shown};
use super::code;
use super::table::table;

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
