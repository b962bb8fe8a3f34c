//! `dispatch demo`, run as a user runs it: its steps, its figures, and that it leaves nothing behind.

#![allow(clippy::unwrap_used, reason = "a test fails so")]

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use rustix::pty::{OpenptFlags, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use tempfile::TempDir;

/// How long a condition may take to come true before a test gives up on it.
const PATIENCE: Duration = Duration::from_secs(30);

/// A directory to show, and one for what the demonstration writes meanwhile.
struct Stage {
    tree: TempDir,
    temporary: TempDir,
}

impl Stage {
    fn with_files(count: usize) -> Stage {
        let stage = Stage {
            tree: tempfile::tempdir().unwrap(),
            temporary: tempfile::tempdir().unwrap(),
        };
        for number in 0..count {
            stage.write(
                &format!("directory-{}/file-{number}.txt", number % 7),
                &format!("file {number}\n").repeat(number % 50),
            );
        }
        stage
    }

    /// Little to write, and much to send: a demonstration that goes on for a while.
    fn with_large_files() -> Stage {
        let stage = Stage::with_files(0);
        for number in 0..64 {
            let file = fs::File::create(stage.tree.path().join(format!("{number}"))).unwrap();
            file.set_len(1024 * 1024).unwrap();
        }
        stage
    }

    fn write(&self, name: &str, content: &str) {
        let path = self.tree.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_dispatch"));
        command
            .arg("demo")
            .current_dir(self.tree.path())
            .env("TMPDIR", self.temporary.path())
            .env_remove("RUST_LOG");
        command
    }

    fn demo(&self, arguments: &[&str]) -> Output {
        self.command().args(arguments).output().unwrap()
    }

    /// Starts it, and reads what it says up to a line that starts so.
    fn demo_until(&self, line_start: &str) -> Running {
        let mut child = self
            .command()
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut running = Running {
            stdout: child.stdout.take().map(BufReader::new),
            child,
            nodes: Vec::new(),
        };
        loop {
            let mut line = String::new();
            let length = running
                .stdout
                .as_mut()
                .unwrap()
                .read_line(&mut line)
                .unwrap();
            assert!(length > 0, "it ended before it said: {line_start}");
            if line.starts_with("started ") {
                running.nodes = processes(&line);
            }
            if line.starts_with(line_start) {
                return running;
            }
        }
    }

    /// Processes whose command line names this stage, whoever their parent is.
    fn node_processes(&self) -> Vec<String> {
        let directory = self.temporary.path().to_str().unwrap();
        fs::read_dir("/proc")
            .unwrap()
            .flatten()
            .filter_map(|entry| fs::read_to_string(entry.path().join("cmdline")).ok())
            .filter(|line| line.contains("demo-node") && line.contains(directory))
            .collect()
    }

    /// Waits until no process and no file is left.
    fn is_left_clean(&self) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let processes = self.node_processes();
            let files: Vec<_> = fs::read_dir(self.temporary.path())
                .unwrap()
                .flatten()
                .map(|entry| entry.path())
                .collect();
            if processes.is_empty() && files.is_empty() {
                return;
            }
            assert!(
                Instant::now() < deadline,
                "left behind: {processes:?} {files:?}"
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// A demonstration that is going on.
struct Running {
    child: Child,
    /// What it says; none once nobody reads it any more.
    stdout: Option<BufReader<ChildStdout>>,
    nodes: Vec<Pid>,
}

impl Running {
    fn signal(&self, signal: Signal) {
        let id = Pid::from_raw(i32::try_from(self.child.id()).unwrap()).unwrap();
        kill_process(id, signal).unwrap();
    }

    fn stderr(&mut self) -> String {
        let mut said = String::new();
        let mut stderr = self.child.stderr.take().unwrap();
        stderr.read_to_string(&mut said).unwrap();
        said
    }
}

/// The process ids in "started a (process 1), b (process 2), …".
fn processes(line: &str) -> Vec<Pid> {
    line.split("(process ")
        .skip(1)
        .map(|rest| rest.split(')').next().unwrap().parse().unwrap())
        .map(|id| Pid::from_raw(id).unwrap())
        .collect()
}

fn lines(output: &Output) -> Vec<&str> {
    std::str::from_utf8(&output.stdout)
        .unwrap()
        .lines()
        .collect()
}

fn line<'a>(lines: &[&'a str], start: &str) -> &'a str {
    lines
        .iter()
        .find(|line| line.starts_with(start))
        .unwrap_or_else(|| panic!("no {start:?} in {lines:#?}"))
}

#[test]
fn every_file_survives_the_death_of_a_node_and_only_the_dead_nodes_keys_move() {
    let stage = Stage::with_files(300);
    stage.write(".gitignore", "*.log\nbuilt/\n");
    stage.write("noise.log", "not uploaded");
    stage.write("built/deep/output.txt", "not uploaded");
    stage.write("empty", "");
    let output = stage.demo(&["--json"]);
    assert!(output.status.success(), "{output:?}");
    let lines = lines(&output);
    let json: serde_json::Value = serde_json::from_str(lines.last().unwrap()).unwrap();
    assert_eq!(json["nodes"], 3);
    assert_eq!(json["files"], 301);
    let bytes: usize = (0..300)
        .map(|number| format!("file {number}\n").len() * (number % 50))
        .sum();
    assert_eq!(json["bytes"], bytes);
    assert_eq!(json["skipped"], 3);
    assert_eq!(json["skipped_by"]["ignored"], 2);
    assert_eq!(json["skipped_by"]["hidden"], 1);
    assert_eq!(json["lost"], 0);
    assert_eq!(json["moved_from_live_nodes"], 0);
    assert_eq!(json["disagreed"], 0);
    for positive in ["visible_ms", "detect_ms", "uploads_per_s", "calls_per_s"] {
        assert!(json[positive].as_f64().unwrap() > 0.0, "{positive}: {json}");
    }
    // Exactly the dead node's keys have moved, and each file is on two nodes.
    let shares = json["spread"].as_array().unwrap();
    let dead = shares.iter().find(|share| share["node"] == json["killed"]);
    assert_eq!(json["moved"], dead.unwrap()["owns"]);
    let sum = |field: &str| -> u64 {
        shares
            .iter()
            .map(|share| share[field].as_u64().unwrap())
            .sum()
    };
    assert_eq!(sum("owns"), 301);
    assert_eq!(sum("keeps"), 602);
    // The death was seen by the two other nodes, and by the demonstration itself.
    let seen = json["detect_ms_by_node"].as_object().unwrap();
    assert_eq!(seen.len(), 3);
    assert!(!seen.contains_key(json["killed"].as_str().unwrap()));
    assert!(line(&lines, "found ").contains("skipped 3: 1 hidden, 2 ignored"));
    assert!(line(&lines, "read 301 files back without").contains("none is lost"));
    stage.is_left_clean();
}

#[test]
fn files_by_name_survive_that_each_node_leaves_and_a_kill_loses_what_the_dead_had() {
    let stage = Stage::with_files(120);
    let output = stage.demo(&["--keyed", "--json"]);
    let lines = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{lines}{errors}");
    let report: serde_json::Value = serde_json::from_str(lines.lines().last().unwrap()).unwrap();
    assert_eq!(report["files"], 120);
    assert_eq!(report["replaced"], 3);
    assert_eq!(report["lost_by_leaving"], 0);
    assert_eq!(report["lost_of_others"], 0);
    assert_eq!(report["lost_by_kill"], report["had"]);
    assert!(report["had"].as_u64().unwrap() > 0);
    stage.is_left_clean();
}

#[test]
fn a_pipe_gets_plain_lines_and_no_progress() {
    let stage = Stage::with_files(20);
    let output = stage.demo(&[]);
    assert!(output.status.success(), "{output:?}");
    assert!(output.stderr.is_empty(), "{output:?}");
    let text = std::str::from_utf8(&output.stdout).unwrap();
    assert!(
        text.chars().all(|c| c == '\n' || !c.is_control()),
        "{text:?}"
    );
    for start in [
        "found 20 files",
        "started ",
        "a service shows",
        "uploaded 20 files",
        "killed ",
        "moved",
    ] {
        line(&lines(&output), start);
    }
}

#[test]
fn a_terminal_gets_progress_bars_that_make_room_for_the_summary() {
    let stage = Stage::with_large_files();
    let controller = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    unlockpt(&controller).unwrap();
    let name = ptsname(&controller, Vec::new()).unwrap();
    let terminal = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(name.to_str().unwrap())
        .unwrap();
    let size = Winsize {
        ws_row: 40,
        ws_col: 120,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    tcsetwinsize(&terminal, size).unwrap();
    let mut command = stage.command();
    command
        .env("TERM", "xterm")
        .stdout(terminal.try_clone().unwrap())
        .stderr(terminal);
    let mut child = command.spawn().unwrap();
    // It holds the terminal too, which would never end.
    drop(command);
    let mut shown = Vec::new();
    // Linux reports the end of a terminal that nobody has open any more as an error.
    let _ = fs::File::from(controller).read_to_end(&mut shown);
    assert!(child.wait().unwrap().success());
    let shown = String::from_utf8_lossy(&shown);
    for bar in [
        "uploading, two copies",
        "reading back",
        "reading back again",
    ] {
        assert!(shown.contains(bar), "{bar}: {shown}");
    }
    // Every bar is wiped out before the line that follows it.
    let before = shown.split("uploaded 64 files").next().unwrap();
    assert!(before.ends_with("\x1b[2K"), "{before:?}");
}

#[test]
fn one_file_is_enough() {
    let stage = Stage::with_files(0);
    stage.write("only.txt", "only");
    let output = stage.demo(&["only.txt", "--json"]);
    assert!(output.status.success(), "{output:?}");
    let json: serde_json::Value = serde_json::from_str(lines(&output).last().unwrap()).unwrap();
    assert_eq!(json["files"], 1);
    assert_eq!(json["bytes"], 4);
    assert_eq!(json["moved"], 1);
    assert_eq!(json["lost"], 0);
}

#[test]
fn a_large_file_goes_through_and_one_over_the_limit_is_counted() {
    let stage = Stage::with_files(3);
    stage.write("large", &"x".repeat(15 * 1024 * 1024));
    stage.write("too-large", &"x".repeat(16 * 1024 * 1024));
    let output = stage.demo(&["--json"]);
    assert!(output.status.success(), "{output:?}");
    let json: serde_json::Value = serde_json::from_str(lines(&output).last().unwrap()).unwrap();
    assert_eq!(json["files"], 4);
    assert_eq!(json["skipped_by"]["too_large"], 1);
    assert_eq!(json["lost"], 0);
}

#[test]
fn more_than_a_connection_holds_back_comes_through() {
    let stage = Stage::with_large_files();
    let output = stage.demo(&["--json"]);
    assert!(output.status.success(), "{output:?}");
    let json: serde_json::Value = serde_json::from_str(lines(&output).last().unwrap()).unwrap();
    assert_eq!(json["files"], 64);
    assert_eq!(json["lost"], 0);
}

#[test]
fn nothing_to_upload_is_said_before_anything_is_started() {
    let stage = Stage::with_files(0);
    let missing = stage.demo(&["no-such-path"]);
    assert_eq!(missing.status.code(), Some(1));
    let said = String::from_utf8(missing.stderr).unwrap();
    assert!(said.contains("there is no no-such-path"), "{said}");
    stage.write(".hidden", "");
    let empty = stage.demo(&[]);
    assert_eq!(empty.status.code(), Some(1));
    let said = String::from_utf8(empty.stderr).unwrap();
    assert!(said.contains("nothing to upload"), "{said}");
    assert!(said.contains("1 hidden"), "{said}");
}

#[test]
fn an_interruption_at_any_step_leaves_nothing_behind() {
    for step in ["found", "started", "a service shows", "uploaded", "killed"] {
        let stage = Stage::with_large_files();
        let mut running = stage.demo_until(step);
        running.signal(Signal::INT);
        let status = running.child.wait().unwrap();
        let said = running.stderr();
        assert_eq!(status.code(), Some(130), "{step}: {said}");
        assert!(said.contains("interrupted"), "{step}: {said}");
        for node in &running.nodes {
            assert!(test_kill_process(*node).is_err(), "{step}: {node:?} lives");
        }
        stage.is_left_clean();
    }
}

#[test]
fn a_demonstration_that_is_killed_leaves_nothing_behind() {
    for step in ["started", "uploaded", "killed"] {
        let stage = Stage::with_large_files();
        let mut running = stage.demo_until(step);
        assert_eq!(running.nodes.len(), 3);
        assert!(!stage.node_processes().is_empty());
        running.signal(Signal::KILL);
        let status = running.child.wait().unwrap();
        assert_eq!(status.signal(), Some(9), "{step}");
        stage.is_left_clean();
    }
}

#[test]
fn a_reader_that_goes_away_ends_it_quietly() {
    let stage = Stage::with_files(200);
    let mut running = stage.demo_until("found");
    running.stdout = None;
    let status = running.child.wait().unwrap();
    assert_eq!(status.code(), Some(141));
    assert_eq!(running.stderr(), "");
    stage.is_left_clean();
}

#[test]
fn a_node_process_without_a_parent_ends_by_itself() {
    let directory = tempfile::tempdir().unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_dispatch"))
        .args(["demo-node", "--name", "a", "--directory"])
        .arg(directory.path().join("none"))
        .stdin(Stdio::null())
        .output()
        .unwrap();
    // Whichever it notices first: that nobody is there, or that there are no certificates.
    assert!(output.status.code().is_some(), "{output:?}");
}

#[test]
fn a_node_that_cannot_start_says_why() {
    let directory = tempfile::tempdir().unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_dispatch"))
        .args(["demo-node", "--name", "a", "--directory"])
        .arg(Path::new(directory.path()).join("none"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = String::new();
    child
        .stdout
        .take()
        .unwrap()
        .read_to_string(&mut said)
        .unwrap();
    assert!(said.starts_with("failed "), "{said}");
    assert!(said.contains("ca.pem"), "{said}");
    assert_eq!(child.wait().unwrap().code(), Some(1));
}
