//! The steps of the demonstration, in the order in which they are told.

use std::collections::{BTreeMap, BTreeSet};
use std::process::ExitCode;

use indicatif::HumanBytes;

use super::arguments::Arguments;
use super::certificates::{CLIENT, NODES};
use super::clock::millis_between;
use super::cluster::{Cluster, on_node};
use super::collect::collect;
use super::error::DemoError;
use super::files::Collection;
use super::progress::Progress;
use super::report::{Count, Report, Share, round};
use super::transfer::{self, Lost, Stored};
use super::uploader::{Ask, Told, Uploads};
use super::witness::{Question, Testimony};
use crate::output::{complain, say};

/// Registrations whose showing is timed: odd, so that the median is one of them.
const PROBES: usize = 21;

/// Keys whose owners are asked for at once.
const KEYS_PER_QUESTION: usize = 1_000;

/// Lost files that are named; the others are counted.
const NAMED: usize = 10;

pub(crate) async fn tell(arguments: &Arguments) -> Result<ExitCode, DemoError> {
    let collection = collect(arguments).await?;
    let mut report = Report {
        nodes: NODES.len(),
        ..Report::default()
    };
    let mut cluster = start(arguments).await?;
    probe(&mut cluster, &mut report).await?;
    let mut lost = Losses::default();
    let stored = upload(&cluster, &collection, &mut report, &mut lost).await?;
    read_back(&cluster, &stored, &mut report, &mut lost).await?;
    let names: Vec<String> = stored.iter().map(|file| file.name.clone()).collect();
    let before = owners(&mut cluster, &NODES, &names, &mut report).await?;
    let victim = show_spread(&cluster, &before, &mut report).await?;
    let survivors = kill(&mut cluster, victim, &mut report).await?;
    let after = owners(&mut cluster, &survivors, &names, &mut report).await?;
    show_moved(victim, &before, &after, &mut report)?;
    read_again(&cluster, &stored, victim, &mut lost).await?;
    report.lost = lost.names.len();
    finish(arguments, &report, &lost)
}

/// Files that are not there, each once, and the first reason for it.
#[derive(Default)]
struct Losses {
    names: BTreeMap<String, String>,
}

impl Losses {
    fn add(&mut self, lost: Vec<Lost>) -> usize {
        let count = lost.len();
        for Lost { name, why } in lost {
            self.names.entry(name).or_insert(why);
        }
        count
    }
}

async fn start(arguments: &Arguments) -> Result<Cluster, DemoError> {
    let cluster = Cluster::start(arguments.verbose).await?;
    let processes: Vec<String> = cluster
        .processes()
        .iter()
        .map(|process| format!("{} (process {})", process.name, process.id))
        .collect();
    say(format_args!(
        "started {}: three nodes, each with an uploader, encrypted; this process joined them as {CLIENT}",
        processes.join(", ")
    ))?;
    Ok(cluster)
}

/// Registers something on one node, and asks the others when they saw it.
async fn probe(cluster: &mut Cluster, report: &mut Report) -> Result<(), DemoError> {
    let mut times = Vec::with_capacity(PROBES);
    for (number, node) in NODES.into_iter().cycle().take(PROBES).enumerate() {
        let name = format!("probe-{number}");
        let Testimony::At(Some(registered)) =
            cluster.ask(node, Question::Register(name.clone())).await?
        else {
            return Err(DemoError::unexpected("a probe was not registered"));
        };
        let mut last = registered;
        for other in NODES
            .into_iter()
            .chain([CLIENT])
            .filter(|other| *other != node)
        {
            let seen = cluster
                .ask_when(other, Question::ProbeSeen(name.clone()))
                .await?;
            last = last.max(seen);
        }
        times.push(millis_between(registered, last));
        cluster.ask(node, Question::Remove(name)).await?;
    }
    times.sort_by(f64::total_cmp);
    report.visible_ms = times[PROBES / 2];
    report.visible_ms_max = times[PROBES - 1];
    say(format_args!(
        "a service shows on all other nodes {:.2} ms after it was registered (median of {PROBES}; slowest {:.2} ms)",
        report.visible_ms, report.visible_ms_max
    ))?;
    Ok(())
}

async fn upload(
    cluster: &Cluster,
    collection: &Collection,
    report: &mut Report,
    lost: &mut Losses,
) -> Result<Vec<Stored>, DemoError> {
    let progress = Progress::new("uploading, two copies", collection.sources.len());
    let uploaders = cluster.services::<Uploads>();
    let uploaded = transfer::upload(&uploaders, collection, &progress).await;
    drop(progress);
    report.skipped_by = collection.skipped.clone();
    report.skipped_by.merge(&uploaded.skipped);
    report.skipped = report.skipped_by.total();
    report.uploads_per_s = uploaded.rate();
    report.bytes = uploaded.stored.iter().map(|file| file.bytes).sum();
    report.files = uploaded.stored.len() + uploaded.lost.len();
    let seconds = uploaded.took.as_secs_f64().max(1e-6);
    say(format_args!(
        "uploaded {} to two nodes each, and checked both copies: {:.0} files/s, {}/s",
        Count(uploaded.stored.len(), "file"),
        report.uploads_per_s,
        HumanBytes((report.bytes as f64 / seconds) as u64)
    ))?;
    if uploaded.skipped.total() > 0 {
        say(format_args!(
            "meanwhile changed, and not uploaded: {}",
            uploaded.skipped
        ))?;
    }
    let count = lost.add(uploaded.lost);
    if count > 0 {
        say(format_args!("LOST {}: not stored", Count(count, "file")))?;
    }
    Ok(uploaded.stored)
}

async fn read_back(
    cluster: &Cluster,
    stored: &[Stored],
    report: &mut Report,
    lost: &mut Losses,
) -> Result<(), DemoError> {
    let progress = Progress::new("reading back", stored.len());
    let uploaders = cluster.services::<Uploads>();
    let read = transfer::read_back(&uploaders, stored, &progress).await;
    drop(progress);
    report.calls_per_s = read.rate();
    say(format_args!(
        "read {} back: {:.0} calls/s; {}",
        Count(read.stored.len(), "file"),
        report.calls_per_s,
        losses(lost.add(read.lost))
    ))?;
    Ok(())
}

fn losses(count: usize) -> String {
    match count {
        0 => "none is lost".to_owned(),
        count => format!("LOST {}", Count(count, "file")),
    }
}

/// Asks each of those nodes who owns each key. Where they disagree, that is counted, and the first one's word is kept.
async fn owners(
    cluster: &mut Cluster,
    nodes: &[&'static str],
    names: &[String],
    report: &mut Report,
) -> Result<Vec<String>, DemoError> {
    let mut agreed: Vec<String> = Vec::with_capacity(names.len());
    let mut disputed = BTreeSet::new();
    for (position, node) in nodes.iter().enumerate() {
        let mut index = 0;
        for keys in names.chunks(KEYS_PER_QUESTION) {
            let question = Question::Owners(keys.to_vec());
            let Testimony::Owners(answers) = cluster.ask(node, question).await? else {
                return Err(DemoError::unexpected("an answer to another question"));
            };
            if answers.len() != keys.len() {
                return Err(DemoError::unexpected("an answer for other keys"));
            }
            for owner in answers.into_iter().map(Option::unwrap_or_default) {
                if position == 0 {
                    agreed.push(owner);
                } else if agreed[index] != owner {
                    disputed.insert(index);
                }
                index += 1;
            }
        }
    }
    report.disagreed += disputed.len();
    Ok(agreed)
}

/// Says who has what; returns the node that owns most.
async fn show_spread(
    cluster: &Cluster,
    owners: &[String],
    report: &mut Report,
) -> Result<&'static str, DemoError> {
    let uploaders = cluster.services::<Uploads>();
    for node in NODES {
        let uploader = on_node(&uploaders, node)?;
        let told = uploaders.at(uploader).call(Ask::Total).await;
        let Told::Total { files, bytes } = told.map_err(DemoError::unexpected)? else {
            return Err(DemoError::unexpected("an answer to another question"));
        };
        report.spread.push(Share {
            node,
            owns: owners.iter().filter(|owner| *owner == node).count(),
            keeps: files,
            kept_bytes: bytes,
        });
    }
    for share in &report.spread {
        say(format_args!(
            "  {share}: {:.1} % of the keys",
            share.owns as f64 * 100.0 / owners.len().max(1) as f64
        ))?;
    }
    let most = report.spread.iter().max_by_key(|share| share.owns);
    Ok(most.map_or(NODES[0], |share| share.node))
}

/// Kills a process, and asks the survivors when they had dropped its uploader.
async fn kill(
    cluster: &mut Cluster,
    victim: &'static str,
    report: &mut Report,
) -> Result<Vec<&'static str>, DemoError> {
    let uploaders = cluster.services::<Uploads>().view();
    let uploader = uploaders
        .services()
        .iter()
        .find(|info| info.node().as_str() == victim)
        .ok_or_else(|| DemoError::unexpected("the victim serves nothing"))?
        .name()
        .to_string();
    let survivors: Vec<&'static str> = NODES.into_iter().filter(|node| *node != victim).collect();
    let killed = cluster.kill(victim)?;
    for node in survivors.iter().copied().chain([CLIENT]) {
        let question = Question::UploaderGone(uploader.clone());
        let gone = cluster.ask_when(node, question).await?;
        let took = millis_between(killed, gone);
        report.detect_ms = report.detect_ms.max(took);
        report.detect_ms_by_node.insert(node, round(took));
    }
    report.killed = victim;
    let told: Vec<String> = report
        .detect_ms_by_node
        .iter()
        .map(|(node, took)| format!("{node} after {took:.1} ms"))
        .collect();
    say(format_args!(
        "killed {victim} with SIGKILL; the survivors dropped its uploader: {}",
        told.join(", ")
    ))?;
    Ok(survivors)
}

fn show_moved(
    victim: &str,
    before: &[String],
    after: &[String],
    report: &mut Report,
) -> Result<(), DemoError> {
    for (before, after) in before.iter().zip(after) {
        if before != after {
            report.moved += 1;
            if before != victim {
                report.moved_from_live_nodes += 1;
            }
        }
    }
    say(format_args!(
        "moved, as the survivors say: {} of {}, {} of them from a living node",
        Count(report.moved, "key"),
        before.len(),
        report.moved_from_live_nodes
    ))?;
    if report.disagreed > 0 {
        say(format_args!(
            "WRONG: nodes named different owners of {}",
            Count(report.disagreed, "key")
        ))?;
    }
    Ok(())
}

async fn read_again(
    cluster: &Cluster,
    stored: &[Stored],
    victim: &str,
    lost: &mut Losses,
) -> Result<(), DemoError> {
    let progress = Progress::new("reading back again", stored.len());
    let uploaders = cluster.services::<Uploads>();
    let read = transfer::read_back(&uploaders, stored, &progress).await;
    drop(progress);
    say(format_args!(
        "read {} back without {victim}: {:.0} calls/s; {}",
        Count(read.stored.len(), "file"),
        read.rate(),
        losses(lost.add(read.lost))
    ))?;
    Ok(())
}

fn finish(arguments: &Arguments, report: &Report, lost: &Losses) -> Result<ExitCode, DemoError> {
    for (name, why) in lost.names.iter().take(NAMED) {
        complain(format_args!("lost {name}: {why}"));
    }
    if lost.names.len() > NAMED {
        complain(format_args!("lost {} more", lost.names.len() - NAMED));
    }
    if arguments.json {
        let object = serde_json::to_string(report).map_err(DemoError::unexpected)?;
        say(object)?;
    }
    Ok(if report.is_good() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
