//! `dispatch agent` and what operates it, run as a user runs them: processes, curl, and Python's web server.
#![cfg(feature = "agent")]
#![allow(clippy::unwrap_used, reason = "a test fails so")]

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(60);

fn eventually<T>(what: &str, mut probe: impl FnMut() -> Result<T, String>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match probe() {
            Ok(found) => return found,
            Err(seen) if Instant::now() >= deadline => {
                panic!("not within {PATIENCE:?}: {what}; last seen: {seen}")
            }
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}

/// A process that ends with the test.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // An error says that it has ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Process {
    fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_raw(i32::try_from(self.0.id()).unwrap()).unwrap();
        rustix::process::kill_process(pid, signal).unwrap();
    }
}

fn dispatch() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dispatch"));
    // What is set where the tests run is not what is tested.
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("DISPATCH_")) {
        command.env_remove(name);
    }
    command
}

/// An agent, or several, with the lines that it says until it has said `last`.
fn start(mut command: Command, last: &str) -> (Process, Vec<String>) {
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let process = Process(child);
    let mut said = Vec::new();
    loop {
        let line = lines
            .next()
            .unwrap_or_else(|| panic!("it ended: {said:?}"))
            .unwrap();
        let is_last = line.contains(last);
        said.push(line);
        if is_last {
            return (process, said);
        }
    }
}

fn sockets(said: &[String]) -> Vec<PathBuf> {
    let of = |line: &String| Some(PathBuf::from(line.strip_prefix("api    unix:")?));
    said.iter().filter_map(of).collect()
}

fn run(socket: &Path, arguments: &[&str]) -> Output {
    dispatch()
        .args(arguments)
        .arg("--addr")
        .arg(format!("unix:{}", socket.display()))
        .output()
        .unwrap()
}

/// What it prints, and that it succeeds.
fn prints(socket: &Path, arguments: &[&str]) -> String {
    let output = run(socket, arguments);
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn curl(socket: &Path, arguments: &[&str]) -> String {
    let output = Command::new("curl")
        .args(["--silent", "--show-error", "--unix-socket"])
        .arg(socket)
        .args(arguments)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// The README's try for people without Rust.
#[test]
fn three_agents_two_web_servers_by_curl_one_is_killed_and_explain_says_why_everywhere() {
    let mut command = dispatch();
    command.args(["agent", "--dev", "3"]);
    let (agents, said) = start(command, "Ctrl-C");
    let sockets = sockets(&said);
    assert_eq!(sockets.len(), 3, "{said:?}");
    let directory = sockets[0].parent().unwrap().to_owned();

    let mut servers = Vec::new();
    for name in ["web-1", "web-2"] {
        let mut server = Command::new("python3");
        server.args([
            "-u",
            "-m",
            "http.server",
            "0",
            "--bind",
            "127.0.0.1",
            "--directory",
        ]);
        server.arg(&directory).stderr(Stdio::null());
        let (server, line) = start(server, "Serving HTTP");
        let port = line[0]
            .split(' ')
            .find_map(|word| word.parse::<u16>().ok())
            .unwrap();
        let body = format!(
            r#"{{"type":"web","address":"http://127.0.0.1:{port}","lease":{{"agent":true}},"check":{{"http":"/","every":"200ms"}}}}"#
        );
        let url = format!("http://localhost/v1/endpoints/{name}");
        let answer = curl(&sockets[0], &["-X", "PUT", &url, "-d", &body]);
        assert!(answer.contains("\"not checked yet\""), "{answer}");
        servers.push(server);
    }
    let owners = |query: &str| -> Vec<String> {
        let url = format!("http://localhost/v1/types/web/owner?{query}");
        sockets
            .iter()
            .map(|socket| {
                let answer: serde_json::Value =
                    serde_json::from_str(&curl(socket, &[&url])).unwrap();
                answer["owner"]["name"]
                    .as_str()
                    .unwrap_or_default()
                    .to_owned()
            })
            .collect()
    };
    // A key of the one that will be killed.
    let key = eventually("both are online everywhere, and web-2 owns a key", || {
        for at in 0..64 {
            let seen = owners(&format!("key=room-{at}"));
            if seen == ["web-2", "web-2", "web-2"] {
                let both = prints(&sockets[2], &["services", "web", "-o", "json"]);
                if both.contains("\"online\":2") {
                    return Ok(format!("room-{at}"));
                }
            }
        }
        Err(prints(&sockets[2], &["services", "web"]))
    });
    assert_eq!(
        prints(&sockets[1], &["owner", "web", &key, "-o", "name"]),
        "web-2\n"
    );

    drop(servers.pop());
    eventually(
        "the check takes it offline, and the key moves, everywhere",
        || {
            let seen = owners(&format!("key={key}"));
            if seen == ["web-1", "web-1", "web-1"] {
                Ok(())
            } else {
                Err(format!("{seen:?}"))
            }
        },
    );
    for socket in &sockets {
        let why = prints(socket, &["explain", "web", &key, "--everywhere"]);
        assert!(
            why.contains("web-1  node a  weight 100  \u{2190} owner"),
            "{why}"
        );
        assert!(
            why.contains("connection refused \u{d7}3   would own it"),
            "{why}"
        );
        assert!(
            why.contains("nodes   a b c say web-1") && why.contains("agree 3/3"),
            "{why}"
        );
        assert!(
            why.contains("web-2 \u{2192} web-1   because web-2 went offline: connection refused"),
            "{why}"
        );
    }
    agents.signal(rustix::process::Signal::INT);
    let mut agents = agents;
    assert!(agents.0.wait().unwrap().success());
    assert!(!directory.exists(), "{}", directory.display());
}

/// One agent in a directory of its own.
struct One {
    agent: Process,
    socket: PathBuf,
    said: Vec<String>,
    directory: tempfile::TempDir,
}

fn one(arguments: &[&str]) -> One {
    let directory = tempfile::tempdir().unwrap();
    let mut command = dispatch();
    command
        .arg("agent")
        .args(arguments)
        .env("XDG_RUNTIME_DIR", directory.path())
        .env("XDG_STATE_HOME", directory.path());
    let socket = directory.path().join("agent.sock");
    command.arg("--socket").arg(&socket);
    let state = format!(
        "agent.state_dir={}",
        directory.path().join("state").display()
    );
    command.args(["--set", &state, "--name", "a"]);
    let (agent, said) = start(command, "dispatch owner");
    One {
        agent,
        socket,
        said,
        directory,
    }
}

#[test]
fn an_agent_without_a_configuration_says_where_it_listens_and_leaves_nothing_behind() {
    let mut one = one(&[]);
    assert!(
        one.said
            .iter()
            .any(|line| line.starts_with("node   a of the cluster dispatch")),
        "{:?}",
        one.said
    );
    assert!(
        one.said
            .iter()
            .any(|line| line.starts_with("ops    http://127.0.0.1:")),
        "{:?}",
        one.said
    );
    assert_eq!(prints(&one.socket, &["members", "-o", "name"]), "a\n");
    // A second one at the same place is refused, and the first is none the worse.
    let second = dispatch()
        .args(["agent", "--socket"])
        .arg(&one.socket)
        .output()
        .unwrap();
    assert_eq!(second.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&second.stderr).contains("another agent listens there"));
    assert!(prints(&one.socket, &["doctor"]).contains("a is ready"));
    one.agent.signal(rustix::process::Signal::TERM);
    assert!(one.agent.0.wait().unwrap().success());
    assert!(!one.socket.exists());
    // What a killed one leaves does not keep the next one from starting.
    drop(std::os::unix::net::UnixListener::bind(&one.socket).unwrap());
    let mut command = dispatch();
    command.args(["agent", "--socket"]).arg(&one.socket);
    command.env("XDG_STATE_HOME", one.directory.path());
    let (_agent, _) = start(command, "dispatch owner");
    assert!(prints(&one.socket, &["types"]).starts_with("TYPE"));
}

#[test]
fn the_command_says_by_its_exit_code_how_it_went() {
    let one = one(&[]);
    let code = |arguments: &[&str]| run(&one.socket, arguments).status.code();
    let register = [
        "register",
        "chat-1",
        "--type",
        "chat",
        "--address",
        "http://127.0.0.1:8001",
        "--weight",
        "50",
    ];
    let said = prints(&one.socket, &register);
    assert!(
        said.starts_with("registered chat-1 as chat-1 of chat: online"),
        "{said}"
    );
    assert!(prints(&one.socket, &register).starts_with("renewed"));
    prints(
        &one.socket,
        &[
            "register",
            "--type",
            "chat",
            "--address",
            "127.0.0.1:8002",
            "--name",
            "chat-2",
        ],
    );
    assert_eq!(prints(&one.socket, &["types", "-o", "name"]), "chat\n");
    assert_eq!(
        prints(&one.socket, &["services", "chat", "-o", "name"]),
        "chat-1\nchat-2\n"
    );
    prints(&one.socket, &["weight", "chat", "chat-1", "100"]);
    let plan = prints(&one.socket, &["plan", "chat", "--remove", "chat-2"]);
    assert!(
        plan.contains("Nothing was changed.") && plan.contains("100.0 %"),
        "{plan}"
    );
    let minted = prints(&one.socket, &["mint", "chat", "chat-2", "-n", "3"]);
    for key in minted.lines() {
        assert_eq!(
            prints(&one.socket, &["owner", "chat", key, "-o", "name"]),
            "chat-2\n"
        );
    }
    assert_eq!(
        prints(&one.socket, &["endpoints", "-o", "name"]),
        "chat-1\nchat-2\n"
    );
    assert!(prints(&one.socket, &["verify"]).contains("1 nodes agree"));
    let status = prints(&one.socket, &["status"]);
    assert_eq!(status, "All is well: one node, and no other is known.\n");
    let top = prints(&one.socket, &["top", "-n", "1"]);
    assert!(
        top.starts_with(&status) && top.contains("\nNODE  STATE") && top.contains("\nchat  2"),
        "{top}"
    );
    assert!(
        prints(&one.socket, &["events", "--type", "chat"]).contains("chat-1 was registered on a")
    );
    assert!(
        prints(&one.socket, &["drain", "--self", "--reason", "deploy"])
            .starts_with("draining 2 endpoints of a")
    );
    let drained = run(&one.socket, &["status"]);
    let said = String::from_utf8(drained.stdout).unwrap();
    assert!(
        said.starts_with("Nobody serves chat: chat-1 is draining for ")
            && said.contains(": deploy"),
        "{said}"
    );
    assert_eq!(drained.status.code(), Some(1));
    assert_eq!(code(&["deregister", "chat-1"]), Some(0));
    assert_eq!(code(&["deregister", "chat-1"]), Some(3));
    assert_eq!(code(&["services", "none"]), Some(3));
    assert_eq!(code(&["owner", "chat", "x"]), Some(1));
    assert_eq!(code(&["owner", "chat"]), Some(2));
    assert_eq!(
        code(&["register", "--type", "chat", "--address", "here"]),
        Some(1)
    );
    assert_eq!(code(&["doctor"]), Some(1));
    let nobody = run(&one.directory.path().join("nobody.sock"), &["members"]);
    assert_eq!(nobody.status.code(), Some(5));
    assert!(String::from_utf8_lossy(&nobody.stderr).contains("DISPATCH_ADDR"));
    let bundle = one.directory.path().join("bundle.tar");
    prints(&one.socket, &["bundle", "--out", bundle.to_str().unwrap()]);
    let listed = Command::new("tar")
        .arg("-tf")
        .arg(&bundle)
        .output()
        .unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    assert!(
        listed.contains("dispatch-bundle/nodes/a/node.json"),
        "{listed}"
    );
}

#[test]
fn nothing_that_somebody_registered_garbles_a_terminal() {
    let one = one(&[]);
    // A node of the library may tag its entries with what it likes.
    let url = "http://localhost/v1/endpoints/x";
    for body in [
        r#"{"type":"chat","address":"127.0.0.1:1","name":"a\u001b[31mb"}"#,
        r#"{"type":"chat","address":"127.0.0.1:1","tags":{"a":"\u001b]0;x\u0007"}}"#,
        r#"{"type":"ch\u202eat","address":"127.0.0.1:1"}"#,
    ] {
        let answer = curl(&one.socket, &["-X", "PUT", url, "-d", body]);
        assert!(answer.contains("/problems/bad-request"), "{answer}");
    }
    for arguments in [
        vec!["services", "a\u{1b}[31mb"],
        vec!["owner", "chat\u{202e}", "x\u{1b}[2J"],
        vec!["deregister", "\u{9b}31m"],
        vec!["explain", "chat", "\u{1b}c"],
        vec!["members", "--node", "\u{1b}[31m"],
    ] {
        let output = run(&one.socket, &arguments);
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8(said).unwrap();
        let hidden =
            |c: char| (c.is_control() && c != '\n') || ('\u{202a}'..='\u{202e}').contains(&c);
        assert!(!said.chars().any(hidden), "{arguments:?}: {said:?}");
    }
}

#[test]
fn a_program_is_registered_as_long_as_it_runs() {
    let one = one(&[]);
    let address = format!("unix:{}", one.socket.display());
    let mut command = dispatch();
    command
        .args([
            "run",
            "--type",
            "chat",
            "--address",
            "127.0.0.1:8001",
            "--name",
            "chat-1",
            "--drain",
            "0",
        ])
        .args([
            "--addr",
            &address,
            "--",
            "sh",
            "-c",
            "trap 'exit 7' TERM; while true; do sleep 0.05; done",
        ]);
    let mut process = Process(command.stderr(Stdio::null()).spawn().unwrap());
    let state = || {
        let listed = run(&one.socket, &["services", "chat", "-o", "json"]);
        String::from_utf8(listed.stdout).unwrap()
    };
    eventually("it is online", || {
        let listed = state();
        if listed.contains("\"online\":1") {
            Ok(())
        } else {
            Err(listed)
        }
    });
    process.signal(rustix::process::Signal::TERM);
    // What a shell would report of the program.
    assert_eq!(process.0.wait().unwrap().code(), Some(7));
    assert_eq!(
        run(&one.socket, &["services", "chat"]).status.code(),
        Some(3)
    );
}

#[test]
fn settings_say_where_they_are_from_and_what_is_not_known_is_an_error() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("agent.toml");
    std::fs::write(
        &file,
        "[node]\nname = \"f\"\nzone = \"z\"\n[app]\nmine = 1\n",
    )
    .unwrap();
    let show = |variable: (&str, &str)| {
        let mut command = dispatch();
        command
            .args(["config", "show", "--origin", "--name", "g", "--config"])
            .arg(&file);
        command.env(variable.0, variable.1).output().unwrap()
    };
    let shown = show(("DISPATCH_NODE__EXPECT", "3"));
    let text = String::from_utf8(shown.stdout).unwrap();
    let line = |key: &str| {
        text.lines()
            .find(|line| line.starts_with(key))
            .unwrap()
            .to_owned()
    };
    assert!(line("node.name").ends_with("--name"), "{text}");
    assert!(line("node.zone").ends_with("agent.toml"), "{text}");
    assert!(
        line("node.expect").ends_with("$DISPATCH_NODE__EXPECT"),
        "{text}"
    );
    assert!(line("node.bind").ends_with("default"), "{text}");
    let wrong = show(("DISPATCH_NODE__EXPCT", "3"));
    assert_eq!(wrong.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&wrong.stderr).contains("$DISPATCH_NODE__EXPCT"));
    for arguments in [
        vec!["completions", "bash"],
        vec!["man"],
        vec!["man", "explain"],
        vec!["token", "web", "operate"],
    ] {
        let output = dispatch().args(&arguments).output().unwrap();
        assert!(
            output.status.success() && output.stdout.len() > 60,
            "{arguments:?}: {output:?}"
        );
    }
}
