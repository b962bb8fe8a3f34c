//! `dispatch agent`: one agent until it is told to stop, or some for a first try.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use keydispatch::testkit::Authority;
use keydispatch_agent::{Agent, AgentError, Layers, Origin, SettingError};
use tokio::signal::unix::{SignalKind, signal};

use super::ask::Failure;
use super::notify;
use crate::output::{complain, say};

/// Agents of one first try, at most: they are named after letters.
const MAX_DEV: u8 = 9;

/// Runs an agent: a node with an API for services in any language
///
/// Without a configuration it listens on this machine alone. Settings come from flags, then from the environment
/// (DISPATCH_NODE__BIND is node.bind), then from the file.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Some agents on this machine for a first try, with certificates of their own; nothing stays behind
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u8).range(1..=i64::from(MAX_DEV)), conflicts_with = "config")]
    dev: Option<u8>,
    #[command(flatten)]
    settings: Settings,
    /// Say on standard error what the node does
    #[arg(long)]
    verbose: bool,
}

/// Where settings come from.
#[derive(clap::Args)]
pub(crate) struct Settings {
    /// The configuration file
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The node's name, as node.name
    #[arg(long)]
    name: Option<String>,
    /// The cluster's name, as pubsub.name
    #[arg(long)]
    cluster: Option<String>,
    /// Where the node listens, as node.bind
    #[arg(long, value_name = "ADDRESS")]
    bind: Option<String>,
    /// Where other nodes are, as node.seeds
    #[arg(long = "seed", value_name = "ADDRESS")]
    seeds: Vec<String>,
    /// Where the API listens, as agent.api.socket
    #[arg(long, value_name = "PATH")]
    socket: Option<String>,
    /// Any other setting
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
}

impl Settings {
    pub(crate) fn layers(&self) -> Result<Layers, SettingError> {
        let mut layers = Layers::default();
        if let Some(path) = &self.config {
            layers.file(path)?;
        }
        layers.environment(std::env::vars_os().filter_map(|(name, value)| {
            Some((name.into_string().ok()?, value.into_string().ok()?))
        }))?;
        let flag = |name: &str| Origin::Flag(name.to_owned());
        for (key, value, name) in [
            ("node.name", &self.name, "--name"),
            ("pubsub.name", &self.cluster, "--cluster"),
            ("node.bind", &self.bind, "--bind"),
            ("agent.api.socket", &self.socket, "--socket"),
        ] {
            if let Some(value) = value {
                layers.flag(key, value, flag(name))?;
            }
        }
        if !self.seeds.is_empty() {
            layers.flag("node.seeds", &self.seeds.join(","), flag("--seed"))?;
        }
        for set in &self.set {
            let (key, value) = set.split_once('=').unwrap_or((set, ""));
            layers.flag(key, value, flag("--set"))?;
        }
        Ok(layers)
    }
}

impl From<AgentError> for Failure {
    fn from(error: AgentError) -> Self {
        Failure::Other(error.to_string())
    }
}

impl From<SettingError> for Failure {
    fn from(error: SettingError) -> Self {
        Failure::Other(error.to_string())
    }
}

/// What a node is called where nobody said so.
fn host_name() -> String {
    let uname = rustix::system::uname();
    let name = uname.nodename().to_string_lossy().into_owned();
    if name.is_empty() {
        "node".to_owned()
    } else {
        name
    }
}

pub(crate) async fn run(arguments: Arguments) -> Result<ExitCode, Failure> {
    crate::log::to_stderr(if arguments.verbose {
        "keydispatch=info,keydispatch_agent=info"
    } else {
        "keydispatch=warn,keydispatch_agent=warn"
    });
    // From before anything is there that would stay behind.
    let mut stop = Stop::new()?;
    match arguments.dev {
        Some(count) => dev(&arguments.settings, count, &mut stop).await,
        None => one(&arguments.settings, &mut stop).await,
    }
}

/// What ends this process in good order, and what it reads its certificates again for.
struct Stop {
    term: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
    reload: tokio::signal::unix::Signal,
}

impl Stop {
    fn new() -> std::io::Result<Self> {
        Ok(Stop {
            term: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            reload: signal(SignalKind::hangup())?,
        })
    }

    async fn asked(&mut self) {
        tokio::select! {
            _ = self.term.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

async fn one(settings: &Settings, stop: &mut Stop) -> Result<ExitCode, Failure> {
    let config = settings.layers()?.finish()?;
    let host = host_name();
    let agent = tokio::select! {
        agent = Agent::start(config, &host) => agent?,
        () = stop.asked() => return Ok(ExitCode::FAILURE),
    };
    let listening = agent.listening().clone();
    tell(&agent)?;
    let socket = listening.socket.display();
    say(format_args!(
        "try    dispatch members --addr unix:{socket}\n       \
         curl --unix-socket {socket} -X PUT http://localhost/v1/endpoints/web-1 -d '{}'\n       \
         dispatch owner web room-7 --addr unix:{socket}",
        r#"{"type":"web","address":"http://127.0.0.1:8001","check":{"http":"/"}}"#
    ))?;
    notify::tell("READY=1\nSTATUS=synced");
    let beat = notify::watchdog();
    let mut ticks = tokio::time::interval(beat.unwrap_or(std::time::Duration::from_secs(3600)));
    let Stop {
        term,
        interrupt,
        reload,
    } = &mut *stop;
    loop {
        tokio::select! {
            _ = term.recv() => break,
            _ = interrupt.recv() => break,
            cause = agent.stopped() => {
                notify::tell("STOPPING=1");
                return Err(Failure::Other(format!("the node has stopped: {cause:?}")));
            }
            _ = reload.recv() => {
                notify::tell("RELOADING=1");
                agent.reload().await;
                notify::tell("READY=1");
            }
            _ = ticks.tick(), if beat.is_some() => notify::tell("WATCHDOG=1"),
        }
    }
    notify::tell("STOPPING=1");
    leave(agent, stop).await;
    Ok(ExitCode::SUCCESS)
}

/// Leaves in good order; asked a second time, at once.
async fn leave(agent: Agent, stop: &mut Stop) {
    tokio::select! {
        left = agent.stop() => {
            if let Err(error) = left {
                complain(format_args!("{error}"));
            }
        }
        () = stop.asked() => complain("stopped before everything was done"),
    }
}

fn tell(agent: &Agent) -> Result<(), Failure> {
    let listening = agent.listening();
    let node = agent.node();
    say(format_args!(
        "node   {} of the cluster {}, for other nodes at {}",
        node.name(),
        node.cluster(),
        listening.mesh
    ))?;
    say(format_args!("api    unix:{}", listening.socket.display()))?;
    if let Some(tcp) = listening.tcp {
        say(format_args!("api    http://{tcp}"))?;
    }
    if let Some(ops) = listening.ops {
        say(format_args!("ops    http://{ops}/metrics"))?;
    }
    Ok(())
}

/// Agents that know each other, in one process and one directory, both of which go when it is asked to stop.
async fn dev(settings: &Settings, count: u8, stop: &mut Stop) -> Result<ExitCode, Failure> {
    let directory = tempfile::Builder::new().prefix("dispatch-dev-").tempdir()?;
    let cluster = settings.cluster.as_deref().unwrap_or("dev");
    let authority = Authority::new(cluster).map_err(|error| Failure::Other(error.to_string()))?;
    std::fs::write(directory.path().join("ca.pem"), authority.ca_pem())?;
    let mut agents: Vec<Agent> = Vec::new();
    for at in 0..count {
        let name = char::from(b'a' + at).to_string();
        let seeds: Vec<String> = agents
            .iter()
            .map(|agent| agent.listening().mesh.clone())
            .collect();
        let layers = dev_layers(
            settings,
            directory.path(),
            &authority,
            cluster,
            &name,
            &seeds,
        )?;
        let config = layers.finish()?;
        let agent = tokio::select! {
            agent = Agent::start(config, &name) => agent?,
            () = stop.asked() => return Ok(ExitCode::FAILURE),
        };
        tell(&agent)?;
        agents.push(agent);
    }
    let socket = |name: &str| {
        directory
            .path()
            .join(format!("{name}.sock"))
            .display()
            .to_string()
    };
    say(format_args!(
        "\ntry    export DISPATCH_ADDR=unix:{a}\n       dispatch members\n       \
         curl --unix-socket {a} -X PUT http://localhost/v1/endpoints/web-1 -d '{}'\n       \
         dispatch explain web room-7 --everywhere\nCtrl-C ends all of them, and removes {}",
        r#"{"type":"web","address":"http://127.0.0.1:8001","check":{"http":"/"},"lease":{"agent":true}}"#,
        directory.path().display(),
        a = socket("a"),
    ))?;
    notify::tell("READY=1");
    stop.asked().await;
    for agent in agents {
        leave(agent, stop).await;
    }
    directory.close()?;
    Ok(ExitCode::SUCCESS)
}

fn dev_layers(
    settings: &Settings,
    directory: &Path,
    authority: &Authority,
    cluster: &str,
    name: &str,
    seeds: &[String],
) -> Result<Layers, Failure> {
    let issued = authority
        .issue(name)
        .map_err(|error| Failure::Other(error.to_string()))?;
    let file = |extension: &str| directory.join(format!("{name}.{extension}"));
    issued.write(&file("pem"), &file("key"))?;
    let mut layers = settings.layers()?;
    let ours = |path: PathBuf| path.to_string_lossy().into_owned();
    for (key, value) in [
        ("node.name", name.to_owned()),
        ("node.bind", "127.0.0.1:0".to_owned()),
        ("node.seeds", seeds.join(",")),
        ("node.ca", ours(directory.join("ca.pem"))),
        ("node.cert", ours(file("pem"))),
        ("node.key", ours(file("key"))),
        ("pubsub.name", cluster.to_owned()),
        ("agent.api.socket", ours(file("sock"))),
        ("agent.ops.bind", "127.0.0.1:0".to_owned()),
        ("agent.state_dir", ours(directory.join(name))),
    ] {
        layers.flag(key, &value, Origin::Flag("--dev".to_owned()))?;
    }
    Ok(layers)
}
