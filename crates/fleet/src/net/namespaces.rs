//! Nodes in network namespaces of their own, joined by the relay; gone when dropped, and when this process dies.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use tokio::process::Command;

use super::relay::Relay;
use super::workers::{Start, Worker};
use crate::{Certificates, Child, Error};

/// The port of every node.
const PORT: u16 = 7_400;

/// A namespace, held by a process that ends when its input closes, and so with this one.
struct Namespace(Child);

impl Namespace {
    async fn make(name: &str) -> Result<Namespace, Error> {
        let mut command = Command::new("unshare");
        command.args(["--net", "sh", "-c", "echo ready; exec cat"]);
        let child = Child::start(command, name)
            .await
            .map_err(|error| format!("unshare did not make a network namespace: {error}"))?;
        Ok(Namespace(child))
    }

    /// What to run a command by, so that it runs in here.
    fn within(&self) -> Vec<String> {
        let file = format!("--net=/proc/{}/ns/net", self.0.id());
        vec!["nsenter".to_owned(), file]
    }
}

/// See the module.
pub struct NamespacedNodes {
    program: PathBuf,
    certificates: Certificates,
    /// The nodes that run.
    pub workers: Vec<Worker>,
    /// What is between them.
    pub relay: Relay,
    namespaces: Vec<Namespace>,
}

/// The name of a node.
pub fn name(port: usize) -> String {
    format!("node-{port}")
}

fn address(port: usize) -> String {
    format!("10.77.0.{}", port + 1)
}

impl NamespacedNodes {
    /// Starts so many nodes, none of which knows anything yet.
    pub async fn set(program: &Path, nodes: usize, seed: u64) -> Result<NamespacedNodes, Error> {
        let names: Vec<String> = (0..nodes).map(name).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let certificates = Certificates::make(&names)?;
        let devices: Vec<String> = (0..nodes)
            .map(|port| format!("kd{}-{port}", std::process::id()))
            .collect();
        let relay = Relay::start(devices.clone(), seed)?;
        let mut namespaces = Vec::new();
        for (port, device) in devices.iter().enumerate() {
            let namespace = Namespace::make(device).await?;
            let process = namespace.0.id().to_string();
            command(&["ip", "link", "set", device, "netns", &process]).await?;
            let address = format!("{}/24", address(port));
            let script = format!(
                "sysctl -qw net.ipv6.conf.all.disable_ipv6=1; ip link set lo up && ip addr add {address} dev {device} \
                 && ip link set {device} up"
            );
            let within = namespace.within();
            let mut words: Vec<&str> = within.iter().map(String::as_str).collect();
            words.extend(["sh", "-c", &script]);
            command(&words).await?;
            namespaces.push(namespace);
        }
        let mut all = NamespacedNodes {
            program: program.to_owned(),
            certificates,
            workers: Vec::new(),
            relay,
            namespaces,
        };
        for port in 0..nodes {
            all.start(port).await?;
        }
        Ok(all)
    }

    /// Starts the node of that port, again.
    pub async fn start(&mut self, port: usize) -> Result<(), Error> {
        let seeds = (0..self.namespaces.len().min(3))
            .filter(|seed| *seed != port)
            .map(|seed| format!("{}:{PORT}", address(seed)))
            .collect();
        let worker = Worker::start(Start {
            program: &self.program,
            within: self.namespaces[port].within(),
            name: name(port),
            bind: format!("{}:{PORT}", address(port)),
            seeds,
            certificates: self.certificates.path(),
        })
        .await?;
        self.workers.push(worker);
        Ok(())
    }

    /// The worker of that port.
    pub fn worker(&mut self, port: usize) -> Result<&mut Worker, Error> {
        let name = name(port);
        let found = self.workers.iter_mut().find(|worker| worker.name() == name);
        Ok(found.ok_or("that node does not run")?)
    }

    /// Kills the node of that port.
    pub async fn kill(&mut self, port: usize) -> Result<(), Error> {
        let name = name(port);
        let at = self
            .workers
            .iter()
            .position(|worker| worker.name() == name)
            .ok_or("that node does not run")?;
        self.workers.remove(at).kill().await
    }
}

async fn command(words: &[&str]) -> Result<(), Error> {
    let (program, arguments) = words.split_first().ok_or("no program")?;
    let output = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .await
        .map_err(|error| format!("{program}: {error}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(format!("{}: {}", words.join(" "), said.trim()).into());
    }
    Ok(())
}
