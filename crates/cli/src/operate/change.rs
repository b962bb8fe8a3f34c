//! What changes something: registering, taking away, draining, weighing.

use std::process::ExitCode;

use serde_json::{Map, Value, json};

use super::ask::{Failure, Options, list, part, shown};
use super::code;

/// What describes an endpoint.
#[derive(clap::Args)]
pub(crate) struct Endpoint {
    /// The type that it serves
    #[arg(long = "type", value_name = "TYPE")]
    service_type: String,
    /// Where it is reached: http://10.0.0.7:8080 or host:port
    #[arg(long)]
    address: String,
    /// Its stable name, which decides on its keys; by default its id
    #[arg(long)]
    name: Option<String>,
    /// Its share of the keys relative to the others, 1 to 1000
    #[arg(long)]
    weight: Option<u16>,
    /// Its failure domain
    #[arg(long)]
    zone: Option<String>,
    /// A label
    #[arg(long = "tag", value_name = "KEY=VALUE")]
    tags: Vec<String>,
    /// A check: a path or URL for HTTP, tcp for a connection
    #[arg(long, value_name = "PATH|URL|tcp")]
    check: Option<String>,
    /// How often it is checked
    #[arg(long, value_name = "PERIOD", requires = "check")]
    every: Option<String>,
}

impl Endpoint {
    /// What stands for it where it has no id.
    pub(crate) fn default_id(&self) -> String {
        self.name.clone().unwrap_or_else(|| self.address.clone())
    }

    pub(crate) fn definition(&self, lease: Value) -> Result<Value, Failure> {
        let mut tags = Map::new();
        for tag in &self.tags {
            let (key, value) = tag
                .split_once('=')
                .ok_or_else(|| Failure::Other(format!("the tag {tag:?} is not KEY=VALUE")))?;
            tags.insert(key.to_owned(), value.into());
        }
        let mut definition = json!({
            "type": self.service_type,
            "address": self.address,
            "name": self.name,
            "weight": self.weight,
            "zone": self.zone,
            "tags": tags,
            "lease": lease,
        });
        if let Some(check) = &self.check {
            let mut spec = match check.as_str() {
                "tcp" => json!({ "tcp": true }),
                http => json!({ "http": http }),
            };
            if let Some(every) = &self.every {
                spec["every"] = json!(every);
            }
            definition["check"] = spec;
        }
        Ok(definition)
    }
}

/// Registers an endpoint, or changes it; run it again before its lease ends
#[derive(clap::Args)]
pub(crate) struct Register {
    /// Its id, the same whenever it is registered again; by default its name, or its address
    id: Option<String>,
    #[command(flatten)]
    endpoint: Endpoint,
    /// How long it lives without being registered again; by default until it is deregistered
    #[arg(long, value_name = "PERIOD")]
    ttl: Option<String>,
    #[command(flatten)]
    options: Options,
}

pub(crate) async fn register(arguments: &Register) -> Result<ExitCode, Failure> {
    let lease = match &arguments.ttl {
        Some(ttl) => json!({ "ttl": ttl }),
        None => json!({ "agent": true }),
    };
    let definition = arguments.endpoint.definition(lease)?;
    let id = arguments
        .id
        .clone()
        .unwrap_or_else(|| arguments.endpoint.default_id());
    let path = format!("/v1/endpoints/{}", part(&id));
    let answer = arguments
        .options
        .ask("PUT", &path, Some(&definition))
        .await?;
    let done = if answer.status == 201 {
        "registered"
    } else {
        "renewed"
    };
    arguments.options.print(
        &answer,
        |body| vec![shown(&body["id"])],
        |body| {
            let mut line = format!(
                "{done} {} as {} of {}: {}",
                shown(&body["id"]),
                shown(&body["name"]),
                shown(&body["type"]),
                shown(&body["state"])
            );
            if body["reason"].is_string() {
                line.push_str(&format!(", {}", shown(&body["reason"])));
            }
            if body["renew_before"].is_string() {
                line.push_str(&format!("; renew before {}", shown(&body["renew_before"])));
            }
            vec![line]
        },
    )?;
    Ok(ExitCode::SUCCESS)
}

/// Takes an endpoint away
#[derive(clap::Args)]
pub(crate) struct Deregister {
    /// Its id
    id: String,
    /// Listed as draining for so long before
    #[arg(long, value_name = "PERIOD")]
    drain: Option<String>,
    #[command(flatten)]
    options: Options,
}

pub(crate) async fn deregister(arguments: &Deregister) -> Result<ExitCode, Failure> {
    let mut path = format!("/v1/endpoints/{}", part(&arguments.id));
    if let Some(drain) = &arguments.drain {
        path.push_str(&format!("?drain={}", part(drain)));
    }
    let answer = arguments.options.ask("DELETE", &path, None).await?;
    arguments.options.print(
        &answer,
        |body| vec![shown(&body["id"])],
        |body| vec![format!("took {} away", shown(&body["id"]))],
    )?;
    Ok(ExitCode::SUCCESS)
}

/// Gives an endpoint another weight
#[derive(clap::Args)]
pub(crate) struct Weight {
    /// The type
    #[arg(value_name = "TYPE")]
    service_type: String,
    /// The instance
    instance: String,
    /// 1 to 1000
    weight: u16,
    #[command(flatten)]
    options: Options,
}

pub(crate) async fn weight(arguments: &Weight) -> Result<ExitCode, Failure> {
    let path = format!("/v1/types/{}/weight", part(&arguments.service_type));
    let body = json!({ "instance": arguments.instance, "weight": arguments.weight });
    let answer = arguments.options.ask("POST", &path, Some(&body)).await?;
    arguments.options.print(
        &answer,
        |body| vec![shown(&body["name"])],
        |body| {
            vec![format!(
                "{} has the weight {}",
                shown(&body["name"]),
                shown(&body["weight"])
            )]
        },
    )?;
    Ok(ExitCode::SUCCESS)
}

/// Takes the keys of everything on a node away, and waits until the others have seen it
#[derive(clap::Args)]
pub(crate) struct Drain {
    /// The node; or --self
    #[arg(required_unless_present = "this")]
    node: Option<String>,
    /// The agent's own node
    #[arg(long = "self", conflicts_with = "node")]
    this: bool,
    /// How long the others have to see it
    #[arg(long, value_name = "PERIOD", default_value = "5s")]
    wait: String,
    /// Why, for everybody who asks
    #[arg(long)]
    reason: Option<String>,
    #[command(flatten)]
    options: Options,
}

pub(crate) async fn drain(arguments: &Drain) -> Result<ExitCode, Failure> {
    let node = arguments.node.as_deref().unwrap_or("self");
    let path = format!("/v1/members/{}/drain", part(node));
    let body = json!({ "wait": arguments.wait, "reason": arguments.reason });
    let answer = arguments.options.ask("POST", &path, Some(&body)).await?;
    arguments.options.print(
        &answer,
        |body| vec![shown(&body["node"])],
        |body| {
            let names = |name: &str| {
                list(body, name)
                    .iter()
                    .map(shown)
                    .collect::<Vec<_>>()
                    .join(" ")
            };
            let mut line = format!(
                "draining {} endpoints of {}",
                shown(&body["endpoints"]),
                shown(&body["node"])
            );
            if !list(body, "seen_by").is_empty() {
                line.push_str(&format!(
                    " \u{b7} seen by {} after {} ms",
                    names("seen_by"),
                    shown(&body["after_ms"])
                ));
            }
            if list(body, "not_seen_by").is_empty() {
                line.push_str(" \u{b7} done");
            } else {
                line.push_str(&format!(" \u{b7} not seen by {}", names("not_seen_by")));
            }
            vec![line]
        },
    )?;
    Ok(if answer.status == 202 {
        ExitCode::from(code::DISAGREE)
    } else {
        ExitCode::SUCCESS
    })
}
