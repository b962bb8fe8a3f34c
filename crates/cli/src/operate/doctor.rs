//! `dispatch doctor`: looks at everything that is known to go wrong, and says what to do.

use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::Value;

use super::ask::{Failure, Format, Options, list, part, shown};
use super::code;
use crate::output::say;

/// Clocks that are further apart than this make times in logs and leases hard to compare.
const CLOCKS_APART: Duration = Duration::from_secs(2);
/// A certificate that ends sooner is told of.
const CERTIFICATE_LEFT: u64 = 30 * 24 * 3600;

/// Looks for what is wrong, and says what to do
#[derive(clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    options: Options,
}

/// What was looked at: true where it is fine.
struct Findings(Vec<(bool, String)>);

impl Findings {
    fn note(&mut self, fine: bool, good: impl Into<String>, bad: impl Into<String>) {
        self.0
            .push((fine, if fine { good.into() } else { bad.into() }));
    }
}

pub(crate) async fn run(arguments: &Arguments) -> Result<ExitCode, Failure> {
    let options = &arguments.options;
    let mut findings = Findings(Vec::new());
    let members = options.get("/v1/members").await?.body;
    for member in list(&members, "members") {
        let name = shown(&member["name"]);
        match member["state"].as_str() {
            Some("up") => node(options, &name, &mut findings).await?,
            _ => findings.note(
                false,
                "",
                format!(
                    "{name} is {}: look at its log; at {} nobody answers from here",
                    shown(&member["state"]),
                    shown(&member["address"])
                ),
            ),
        }
        if member["behind"].as_u64().unwrap_or(0) > 0 {
            findings.note(
                false,
                "",
                format!(
                    "this node is {} versions behind {name}: is the link to it slow or cut?",
                    shown(&member["behind"])
                ),
            );
        }
    }
    let verified = options.get("/v1/verify").await?.body;
    findings.note(
        verified["agree"] == true,
        format!(
            "{} nodes agree on the registry",
            list(&verified, "asked").len()
        ),
        "nodes do not agree: `dispatch verify` says on what",
    );
    for of in list(&options.get("/v1/types").await?.body, "types") {
        let name = shown(&of["type"]);
        findings.note(
            of["online"].as_u64().unwrap_or(0) > 0,
            format!("{name} has {} instances online", shown(&of["online"])),
            format!(
                "nobody serves {name}: {} are offline, {} draining",
                shown(&of["offline"]),
                shown(&of["draining"])
            ),
        );
    }
    for endpoint in list(&options.get("/v1/endpoints").await?.body, "endpoints") {
        if endpoint["check"]["state"] == "failing" {
            findings.note(
                false,
                "",
                format!(
                    "the check of {} fails: {} at {}",
                    shown(&endpoint["id"]),
                    shown(&endpoint["check"]["brief"]),
                    shown(&endpoint["check"]["target"])
                ),
            );
        }
    }
    let wrong = findings.0.iter().filter(|(fine, _)| !fine).count();
    match options.output {
        Format::Json => {
            let all: Vec<Value> = findings
                .0
                .iter()
                .map(|(fine, what)| serde_json::json!({ "fine": fine, "what": what }))
                .collect();
            say(serde_json::json!(all))?;
        }
        _ => {
            for (fine, what) in &findings.0 {
                say(format_args!(
                    "{}  {what}",
                    if *fine { "ok   " } else { "WRONG" }
                ))?;
            }
        }
    }
    Ok(if wrong > 0 {
        ExitCode::from(code::FAILED)
    } else {
        ExitCode::SUCCESS
    })
}

async fn node(options: &Options, name: &str, findings: &mut Findings) -> Result<(), Failure> {
    let asked = SystemTime::now();
    let answer = options
        .client()?
        .ask("GET", &format!("/v1/node?node={}", part(name)), None)
        .await?;
    if !answer.is_ok() {
        findings.note(
            false,
            "",
            format!(
                "the agent of {name} does not answer: {}",
                shown(&answer.body["detail"])
            ),
        );
        return Ok(());
    }
    let node = &answer.body;
    findings.note(
        node["ready"] == true,
        format!("{name} is ready"),
        format!("{name} is not ready: {}", shown(&node["not_ready_because"])),
    );
    let millis = |at: SystemTime| {
        at.duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_millis())
    };
    let (before, after) = (millis(asked), millis(SystemTime::now()));
    let theirs = u128::from(node["now_ms"].as_u64().unwrap_or(0));
    // What the question took is not the clock's fault.
    let apart = before
        .saturating_sub(theirs)
        .max(theirs.saturating_sub(after));
    findings.note(
        apart <= CLOCKS_APART.as_millis(),
        format!("the clock of {name} is right within {apart} ms"),
        format!("the clock of {name} is {apart} ms from the one here: set it by NTP"),
    );
    if let Some(left) = node["certificate_ends_in_s"].as_u64() {
        findings.note(
            left > CERTIFICATE_LEFT,
            format!(
                "the certificate of {name} is good for {} days",
                left / 86_400
            ),
            format!(
                "the certificate of {name} ends in {} days: make another one with `dispatch cert`",
                left / 86_400
            ),
        );
    } else if node["plaintext"] == true {
        let address = shown(&node["address"]);
        let is_here = address.starts_with("127.") || address.starts_with("[::1]");
        findings.note(
            is_here,
            format!("{name} does without encryption, on this machine alone"),
            format!("{name} does without encryption at {address}: make certificates with `dispatch cert`"),
        );
    }
    for silent in list(node, "suspended") {
        findings.note(
            false,
            "",
            format!(
                "{name} sends no calls to {}: the connection is silent or broke",
                shown(silent)
            ),
        );
    }
    Ok(())
}
