//! The demonstration with states by key: each file is the state of its name, kept once, and goes along when nodes are replaced.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use indicatif::HumanBytes;
use keydispatch::{KeyedHandle, Node, Protocol};
use serde::Serialize;

use super::arguments::Arguments;
use super::certificates::{self, CLIENT, NODES};
use super::clock::{self, PATIENCE};
use super::collect::collect;
use super::error::DemoError;
use super::files::{self, Collection};
use super::keeper::{Ask, Shelf};
use super::node;
use super::process::Process;
use super::progress::Progress;
use super::report::{Count, round};
use super::transfer::{Stored, bounded};
use crate::output::say;

/// How often it is looked whether every file is where it belongs.
const LOOK: Duration = Duration::from_millis(50);

/// The figures.
#[derive(Debug, Default, Serialize)]
struct Report {
    nodes: usize,
    files: usize,
    bytes: u64,
    skipped: u64,
    /// Nodes that left and came back.
    replaced: usize,
    /// Files that were not there afterwards.
    lost_by_leaving: usize,
    /// The longest that a node took to leave, in milliseconds.
    leave_ms_max: f64,
    killed: &'static str,
    /// Files that the killed node had.
    had: usize,
    /// Files that were not there afterwards.
    lost_by_kill: usize,
    /// Those of them that another node had.
    lost_of_others: usize,
}

impl Report {
    fn is_good(&self) -> bool {
        self.lost_by_leaving == 0 && self.lost_of_others == 0 && self.lost_by_kill == self.had
    }
}

struct Stage {
    client: Node,
    processes: Vec<Process>,
    directory: tempfile::TempDir,
    verbose: bool,
}

/// Tells it.
pub(crate) async fn tell(arguments: &Arguments) -> Result<ExitCode, DemoError> {
    let collection = collect(arguments).await?;
    let mut report = Report {
        nodes: NODES.len(),
        ..Report::default()
    };
    let mut stage = Stage::start(arguments.verbose).await?;
    let files: KeyedHandle<Shelf> = stage.client.keyed::<Shelf>().timeout(PATIENCE);
    let stored = upload(&files, &collection, &mut report).await?;
    for name in NODES {
        let took = stage.replace(name).await?;
        report.leave_ms_max = report.leave_ms_max.max(round(took));
        report.replaced += 1;
        let lost = read_back(&files, &stored, "reading back").await;
        report.lost_by_leaving += lost.len();
        say(format_args!(
            "{name} left in {took:.0} ms and came back; {} of {} are there",
            Count(stored.len() - lost.len(), "file"),
            stored.len()
        ))?;
    }
    kill(&mut stage, &files, &stored, &mut report).await?;
    if arguments.json {
        say(serde_json::to_string(&report).map_err(DemoError::unexpected)?)?;
    }
    Ok(if report.is_good() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

async fn upload(
    files: &KeyedHandle<Shelf>,
    collection: &Collection,
    report: &mut Report,
) -> Result<Vec<Stored>, DemoError> {
    let progress = Progress::new("uploading", collection.sources.len());
    let (began, mut stored, mut skipped) = (Instant::now(), Vec::new(), collection.skipped.total());
    let jobs = collection.sources.iter().map(|source| {
        let (files, root, source) = (files.clone(), collection.root.clone(), source.clone());
        (source.bytes, async move {
            let reading = source.clone();
            let read = tokio::task::spawn_blocking(move || files::read(&root, &reading)).await;
            // One that has changed since, or cannot be read, is left out.
            let content = read.ok()?.ok()?;
            let stored = Stored::of(&source.name, &content);
            files
                .call(source.name.as_str(), Ask::Put(content))
                .await
                .ok()?;
            Some(stored)
        })
    });
    bounded(jobs, |outcome: Option<Stored>| {
        match outcome {
            Some(file) => stored.push(file),
            None => skipped += 1,
        }
        progress.step();
    })
    .await;
    drop(progress);
    report.files = stored.len();
    report.bytes = stored.iter().map(|file| file.bytes).sum();
    report.skipped = skipped;
    let seconds = began.elapsed().as_secs_f64().max(1e-6);
    say(format_args!(
        "uploaded {}, each once, as the state of its name: {:.0} files/s, {}/s",
        Count(stored.len(), "file"),
        stored.len() as f64 / seconds,
        HumanBytes((report.bytes as f64 / seconds) as u64)
    ))?;
    Ok(stored)
}

/// Reads every file; returns those that are not there.
async fn read_back(
    files: &KeyedHandle<Shelf>,
    stored: &[Stored],
    what: &'static str,
) -> BTreeSet<String> {
    let progress = Progress::new(what, stored.len());
    // Reading twice does no harm.
    let files = Arc::new(files.idempotent());
    let jobs = stored.iter().map(|file| {
        let (files, file) = (Arc::clone(&files), file.clone());
        (file.bytes, async move {
            match files.call(file.name.as_str(), Ask::Get).await {
                Ok(Some(content)) if file.is(&content) => None,
                _ => Some(file.name),
            }
        })
    });
    let mut lost = BTreeSet::new();
    bounded(jobs, |outcome: Option<String>| {
        lost.extend(outcome);
        progress.step();
    })
    .await;
    lost
}

/// Who has which file, once each is where it belongs: a node that has just come back is still given some.
async fn settled(
    files: &KeyedHandle<Shelf>,
    stored: &[Stored],
) -> Result<BTreeMap<String, String>, DemoError> {
    let began = Instant::now();
    loop {
        let mut holders = BTreeMap::new();
        let mut at_home = true;
        for file in stored {
            let holder = files.call(file.name.as_str(), Ask::Where).await;
            let holder = holder.map_err(DemoError::unexpected)?.unwrap_or_default();
            let holder = String::from_utf8_lossy(&holder).into_owned();
            let owner = files.find(file.name.as_str());
            at_home &= owner.is_ok_and(|owner| owner.node().as_str() == holder);
            holders.insert(file.name.clone(), holder);
        }
        if at_home || began.elapsed() > PATIENCE {
            return Ok(holders);
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Kills the node that has most, and says what went with it.
async fn kill(
    stage: &mut Stage,
    files: &KeyedHandle<Shelf>,
    stored: &[Stored],
    report: &mut Report,
) -> Result<(), DemoError> {
    let holders = settled(files, stored).await?;
    let had_by = |node: &str| holders.values().filter(|holder| *holder == node).count();
    let victim = NODES.into_iter().max_by_key(|node| had_by(node));
    let victim = victim.unwrap_or(NODES[0]);
    let had: BTreeSet<String> = holders
        .iter()
        .filter(|(_, holder)| *holder == victim)
        .map(|(name, _)| name.clone())
        .collect();
    stage.kill(victim).await?;
    let lost = read_back(files, stored, "reading back without it").await;
    report.killed = victim;
    report.had = had.len();
    report.lost_by_kill = lost.len();
    report.lost_of_others = lost.difference(&had).count();
    say(format_args!(
        "killed {victim} with SIGKILL: the {} that it had went with it, and {} of the others",
        Count(had.len(), "file"),
        if report.lost_of_others == 0 {
            "none".to_owned()
        } else {
            report.lost_of_others.to_string()
        }
    ))?;
    Ok(())
}

impl Stage {
    async fn start(verbose: bool) -> Result<Stage, DemoError> {
        let directory = certificates::make()?;
        let mut processes = Vec::with_capacity(NODES.len());
        let mut seeds: Vec<String> = Vec::new();
        for name in NODES {
            let process = Process::start_keyed(name, directory.path(), &seeds, verbose).await?;
            seeds.push(process.address().to_owned());
            processes.push(process);
        }
        let client = node::describe(CLIENT, directory.path(), &seeds).await?;
        let told: Vec<String> = processes
            .iter()
            .map(|process| format!("{} (process {})", process.name, process.id))
            .collect();
        say(format_args!(
            "started {}: three nodes that keep files by name, encrypted; this process joined them as {CLIENT}",
            told.join(", ")
        ))?;
        let stage = Stage {
            client,
            processes,
            directory,
            verbose,
        };
        stage.online(NODES.len()).await?;
        Ok(stage)
    }

    async fn online(&self, nodes: usize) -> Result<(), DemoError> {
        let files = self.client.keyed::<Shelf>();
        tokio::time::timeout(PATIENCE, files.wait_online(nodes))
            .await
            .map_err(|_| DemoError::unexpected("the nodes do not see each other"))?
            .map_err(DemoError::unexpected)
    }

    fn take(&mut self, name: &str) -> Result<Process, DemoError> {
        let at = self
            .processes
            .iter()
            .position(|process| process.name == name);
        let at = at.ok_or_else(|| DemoError::unexpected(format!("no process {name}")))?;
        Ok(self.processes.remove(at))
    }

    /// Lets a node leave, and starts it again; returns how long it took to leave, in milliseconds.
    async fn replace(&mut self, name: &'static str) -> Result<f64, DemoError> {
        let began = clock::micros();
        self.take(name)?.leave().await?;
        let took = clock::millis_between(began, clock::micros());
        let again = self.again(name, self.directory.path()).await?;
        self.processes.push(again);
        self.online(NODES.len()).await?;
        Ok(took)
    }

    async fn again(&self, name: &'static str, directory: &Path) -> Result<Process, DemoError> {
        let others = self
            .processes
            .iter()
            .map(|other| other.address().to_owned());
        let seeds: Vec<String> = others.collect();
        Process::start_keyed(name, directory, &seeds, self.verbose).await
    }

    /// Kills a process as SIGKILL does, and waits until that is known here.
    async fn kill(&mut self, name: &str) -> Result<(), DemoError> {
        // It is killed when it is dropped.
        drop(self.take(name)?);
        let files = self.client.keyed::<Shelf>();
        let mut changes = files.subscribe().map_err(DemoError::unexpected)?;
        let gone = async {
            loop {
                let services = self.client.registry().online_services(Shelf::NAME);
                if !services.iter().any(|info| info.node().as_str() == name) {
                    return;
                }
                if changes.next().await.is_none() {
                    return;
                }
            }
        };
        tokio::time::timeout(PATIENCE, gone)
            .await
            .map_err(|_| DemoError::unexpected("a death was not noticed"))
    }
}
