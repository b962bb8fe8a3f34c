//! Real processes over TLS that are replaced, one after the other, by those of a later version, while both are called.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use keydispatch::{Node, Protocol, ServiceHandle, ServiceInfo};
use keydispatch_fleet::{
    AskOne, AskTwo, Certificates, Child, GreetersOne, GreetersTwo, Request, Response, TestNodes,
    describe, eventually, test_node,
};
use tokio::task::JoinHandle;

const NAMES: [&str; 3] = ["a", "b", "c"];

/// Callers of each version, each with one call at a time.
const CALLERS: u64 = 4;

struct Upgrade {
    teller: Node,
    test_nodes: ServiceHandle<TestNodes>,
    certificates: Certificates,
    processes: BTreeMap<&'static str, Child>,
    callers: Callers,
}

#[derive(Clone, Default)]
struct Callers {
    stop: Arc<AtomicBool>,
    /// The calls of each caller that were answered.
    answered: Arc<Mutex<Vec<Arc<AtomicU64>>>>,
    tasks: Arc<Mutex<Vec<JoinHandle<Heard>>>>,
}

/// What one caller heard, by its first word, and what went wrong.
#[derive(Debug, Default)]
struct Heard {
    replies: BTreeMap<String, u64>,
    failed: Vec<String>,
}

impl Callers {
    fn start<P: Protocol<Reply = String>>(
        &self,
        services: &ServiceHandle<P>,
        ask: impl Fn(String) -> P::Call + Send + Clone + 'static,
    ) {
        for _ in 0..CALLERS {
            let (services, ask) = (services.clone(), ask.clone());
            let (stop, answered) = (Arc::clone(&self.stop), Arc::new(AtomicU64::new(0)));
            self.answered.lock().unwrap().push(Arc::clone(&answered));
            let task = tokio::spawn(async move {
                let mut heard = Heard::default();
                while !stop.load(Ordering::Relaxed) {
                    let number = answered.load(Ordering::Relaxed);
                    match services.call(number, ask(number.to_string())).await {
                        Ok(reply) => {
                            let word = reply.split(',').next().unwrap_or_default();
                            *heard.replies.entry(word.to_owned()).or_default() += 1;
                        }
                        Err(error) => heard.failed.push(error.to_string()),
                    }
                    answered.fetch_add(1, Ordering::Relaxed);
                }
                heard
            });
            self.tasks.lock().unwrap().push(task);
        }
    }

    /// Waits until every caller has made so many more calls.
    async fn go_on(&self, calls: u64) {
        let counts = self.answered.lock().unwrap().clone();
        let before: Vec<u64> = counts
            .iter()
            .map(|one| one.load(Ordering::Relaxed))
            .collect();
        eventually("every caller goes on", async || {
            let mut made = counts.iter().zip(&before);
            if made.all(|(now, before)| now.load(Ordering::Relaxed) >= before + calls) {
                Ok(())
            } else {
                Err("not yet".to_owned())
            }
        })
        .await;
    }
}

impl Upgrade {
    async fn start() -> Upgrade {
        let certificates = Certificates::make(&["teller", "a", "b", "c"]).unwrap();
        let teller = describe("teller", "127.0.0.1:0", &[], certificates.path())
            .start()
            .await
            .unwrap();
        let mut upgrade = Upgrade {
            test_nodes: teller.services(),
            teller,
            certificates,
            processes: BTreeMap::new(),
            callers: Callers::default(),
        };
        for name in NAMES {
            upgrade.add(name, 1).await;
        }
        upgrade
    }

    /// Starts a process that serves that version, and waits until the callers can call it.
    async fn add(&mut self, name: &'static str, version: u32) {
        let program = Path::new(env!("CARGO_BIN_EXE_keydispatch-fleet"));
        let seeds = [self.teller.address().to_string()];
        let certificates = self.certificates.path();
        let process = test_node::start(program, name, "127.0.0.1:0", &seeds, certificates).await;
        self.processes.insert(name, process.unwrap());
        let answer = self.tell(name, Request::ServeGreeter { version }).await;
        assert!(matches!(answer, Response::Added(_)), "{answer:?}");
        eventually("the greeter is online", async || {
            let greeter = self.greeter(name)?;
            if greeter.is_online() && greeter.protocol_version() == Some(version) {
                Ok(())
            } else {
                Err(format!("{greeter:?}"))
            }
        })
        .await;
    }

    /// Takes the keys of a node's greeter, waits until nobody calls it any more, and lets the node leave.
    async fn remove(&mut self, name: &'static str) {
        let id = self.greeter(name).unwrap().id().clone();
        let answer = self.tell(name, Request::Disable(id)).await;
        assert!(matches!(answer, Response::Reference(_)), "{answer:?}");
        eventually("the greeter owns nothing", async || {
            let greeter = self.greeter(name)?;
            if greeter.is_online() {
                Err(format!("{greeter:?}"))
            } else {
                Ok(())
            }
        })
        .await;
        // The calls that were on their way are answered: every caller makes one at a time.
        self.callers.go_on(2).await;
        assert_eq!(self.tell(name, Request::Leave).await, Response::Done);
        eventually("the node has left", async || {
            let members = self.teller.members();
            let up = members
                .iter()
                .any(|one| one.is_up() && one.name().as_str() == name);
            if up {
                Err(format!("{members:?}"))
            } else {
                Ok(())
            }
        })
        .await;
        self.processes.remove(name).unwrap().kill().await.unwrap();
    }

    fn greeter(&self, name: &str) -> Result<Arc<ServiceInfo>, String> {
        let services = self.teller.registry().services("greeter");
        let mut of_node = services.iter().filter(|info| info.node().as_str() == name);
        of_node
            .next()
            .cloned()
            .ok_or_else(|| format!("{services:?}"))
    }

    async fn tell(&self, name: &str, request: Request) -> Response {
        eventually("the test node is there", async || {
            test_node::ask(&self.test_nodes, name, request.clone())
                .await
                .map_err(|error| error.to_string())
        })
        .await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_upgrade_from_version_1_to_2_fails_no_call() {
    let mut upgrade = Upgrade::start().await;
    let callers = upgrade.callers.clone();
    callers.start(&upgrade.teller.services::<GreetersOne>(), AskOne::Greet);
    callers.go_on(20).await;
    for name in NAMES {
        upgrade.remove(name).await;
        upgrade.add(name, 2).await;
        if name == NAMES[0] {
            // From now on there is somebody who takes what they say.
            let new = upgrade.teller.services::<GreetersTwo>();
            callers.start(&new, AskTwo::Part);
        }
        callers.go_on(20).await;
    }
    callers.stop.store(true, Ordering::Relaxed);
    let tasks = std::mem::take(&mut *callers.tasks.lock().unwrap());
    let mut replies: BTreeMap<String, u64> = BTreeMap::new();
    for task in tasks {
        let heard = task.await.unwrap();
        assert!(heard.failed.is_empty(), "{heard:?}");
        for (word, count) in heard.replies {
            *replies.entry(word).or_default() += count;
        }
    }
    // The callers of version 1 were answered by services of both versions, those of version 2 by their own alone.
    let words: Vec<&str> = replies.keys().map(String::as_str).collect();
    assert_eq!(
        words,
        ["one: hello", "two: goodbye", "two: hello"],
        "{replies:?}"
    );
}
