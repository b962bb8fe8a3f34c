//! What the tests of agents share: agents on this machine, and asking them as any program does.

#![allow(dead_code, reason = "no test file uses all of it")]

use std::path::PathBuf;
use std::time::Duration;

use keydispatch_agent::{Agent, Answer, ApiAddress, Client, Layers, Origin};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// How long a condition may take to come true before a test gives up on it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Waits until a condition holds, and fails with what was seen last when it does not come to hold.
pub(crate) async fn eventually<T, F>(what: &str, mut probe: impl FnMut() -> F) -> T
where
    F: Future<Output = Result<T, String>>,
{
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        match probe().await {
            Ok(found) => return found,
            Err(seen) if tokio::time::Instant::now() >= deadline => {
                panic!("not within {PATIENCE:?}: {what}; last seen: {seen}");
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    }
}

/// Agents of one cluster, and the directory that all they write is in.
pub(crate) struct Cluster {
    pub(crate) agents: Vec<Agent>,
    pub(crate) directory: tempfile::TempDir,
    settings: Vec<(String, String)>,
}

impl Cluster {
    /// So many agents, called a, b and so on, with settings beside the defaults.
    pub(crate) async fn start(count: u8, settings: &[(&str, &str)]) -> Cluster {
        let mut cluster = Cluster {
            agents: Vec::new(),
            directory: tempfile::tempdir().unwrap(),
            settings: settings
                .iter()
                .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
                .collect(),
        };
        for at in 0..count {
            cluster.add(&char::from(b'a' + at).to_string()).await;
        }
        cluster
    }

    pub(crate) async fn add(&mut self, name: &str) {
        let seeds: Vec<String> = self
            .agents
            .iter()
            .map(|agent| agent.listening().mesh.clone())
            .collect();
        let mut layers = Layers::default();
        let at = |file: String| self.directory.path().join(file).display().to_string();
        let own = [
            ("node.name", name.to_owned()),
            ("node.seeds", seeds.join(",")),
            ("agent.api.socket", at(format!("{name}.sock"))),
            ("agent.ops.bind", "127.0.0.1:0".to_owned()),
            ("agent.state_dir", at(name.to_owned())),
            ("agent.checks.damping", "50ms".to_owned()),
        ];
        let own = own.map(|(key, value)| (key.to_owned(), value));
        for (key, value) in own.iter().chain(&self.settings) {
            layers.flag(key, value, Origin::Default).unwrap();
        }
        let agent = Agent::start(layers.finish().unwrap(), name).await.unwrap();
        self.agents.push(agent);
    }

    pub(crate) fn socket(&self, name: &str) -> PathBuf {
        self.directory.path().join(format!("{name}.sock"))
    }

    pub(crate) fn client(&self, name: &str) -> Client {
        Client::new(ApiAddress::Unix(self.socket(name)), None)
    }

    pub(crate) async fn ask(
        &self,
        name: &str,
        method: &str,
        path: &str,
        body: Option<Value>,
    ) -> Answer {
        self.client(name)
            .ask(method, path, body.as_ref())
            .await
            .unwrap()
    }

    pub(crate) async fn get(&self, name: &str, path: &str) -> Value {
        let answer = self.ask(name, "GET", path, None).await;
        assert!(answer.is_ok(), "{path}: {} {}", answer.status, answer.text);
        answer.body
    }

    /// Registers, and wants to hear that it is done.
    pub(crate) async fn put(&self, name: &str, id: &str, body: Value) -> Value {
        let answer = self
            .ask(name, "PUT", &format!("/v1/endpoints/{id}"), Some(body))
            .await;
        assert!(answer.is_ok(), "{id}: {} {}", answer.status, answer.text);
        answer.body
    }

    /// Waits until all agents list so many instances of a type as online.
    pub(crate) async fn online(&self, service_type: &str, count: u64) {
        for agent in &self.agents {
            let name = agent.node().name().to_string();
            eventually(
                &format!("{count} of {service_type} online on {name}"),
                async || {
                    let answer = self
                        .ask(&name, "GET", &format!("/v1/types/{service_type}"), None)
                        .await;
                    let online = answer.body["online"].as_u64().unwrap_or(0);
                    if online == count {
                        Ok(())
                    } else {
                        Err(answer.text)
                    }
                },
            )
            .await;
        }
    }

    pub(crate) async fn stop(self) {
        for agent in self.agents {
            agent.stop().await.unwrap();
        }
    }
}

/// An endpoint that lives until it is deleted.
pub(crate) fn chat(port: u16) -> Value {
    json!({ "type": "chat", "address": format!("http://127.0.0.1:{port}"), "lease": { "agent": true } })
}

/// A server that answers what it is told, and can be told something else.
pub(crate) struct Server {
    pub(crate) port: u16,
    pub(crate) says: tokio::sync::watch::Sender<&'static str>,
    task: tokio::task::JoinHandle<()>,
}

impl Server {
    /// `stall` says nothing, `close` hangs up, all else is said as it is.
    pub(crate) async fn start(says: &'static str) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let says = tokio::sync::watch::Sender::new(says);
        let told = says.subscribe();
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let told = *told.borrow();
                tokio::spawn(serve(stream, told));
            }
        });
        Server { port, says, task }
    }

    /// Nothing listens any more when this returns.
    pub(crate) async fn kill(self) {
        self.task.abort();
        let _ = self.task.await;
    }
}

async fn serve(mut stream: TcpStream, told: &'static str) {
    let mut request = Vec::new();
    let mut part = [0; 1024];
    while !request.windows(4).any(|four| four == b"\r\n\r\n") {
        match stream.read(&mut part).await {
            Ok(0) | Err(_) => return,
            Ok(read) => request.extend_from_slice(&part[..read]),
        }
    }
    match told {
        "stall" => tokio::time::sleep(PATIENCE).await,
        "close" => {}
        told => stream.write_all(told.as_bytes()).await.unwrap_or_default(),
    }
}

pub(crate) const FINE: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
pub(crate) const BROKEN: &str =
    "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 5\r\n\r\nno db";
pub(crate) const ELSEWHERE: &str =
    "HTTP/1.1 302 Found\r\nlocation: http://169.254.169.254/\r\ncontent-length: 0\r\n\r\n";
