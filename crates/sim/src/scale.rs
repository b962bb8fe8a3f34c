//! `sim scale`: what clusters of the stated size cost, in simulated time, bytes, memory and real computing.

use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

use crate::Error;
use keydispatch_measure::{Output, Target, thread_time};

mod agreement;
mod change;
mod cluster;
mod phases;
mod tables;
#[cfg(test)]
mod tests;

use cluster::Shape;

/// See the module.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct Options {
    /// Prints one object last.
    #[arg(long)]
    json: bool,
    /// Small clusters: for a look, not for a record.
    #[arg(long)]
    quick: bool,
    /// Only this part.
    #[arg(long, value_enum)]
    only: Option<Part>,
    /// One cluster of so many nodes instead.
    #[arg(long, value_name = "N", requires = "services", value_parser = clap::value_parser!(u16).range(4..=1000))]
    nodes: Option<u16>,
    /// With so many services in all.
    #[arg(long, value_name = "N", requires = "nodes", value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    services: Option<u32>,
}

/// A part of the command.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// Many nodes.
    Wide,
    /// Many services.
    Deep,
    /// Memory and the cost of a change.
    Change,
}

impl Options {
    fn runs(&self, part: Part) -> bool {
        match self.nodes {
            Some(_) => false,
            None => self.only.is_none_or(|only| only == part),
        }
    }

    fn shapes(&self) -> Vec<Shape> {
        if let (Some(nodes), Some(services)) = (self.nodes, self.services) {
            let services = services as usize;
            return vec![Shape {
                nodes: usize::from(nodes),
                readers: 0,
                services,
                types: services.div_ceil(10).min(10_000),
                tags: 0,
            }];
        }
        let shapes = if self.quick {
            [
                (Part::Wide, 20, 10_000, 1_000),
                (Part::Deep, 5, 50_000, 1_000),
            ]
        } else {
            [
                (Part::Wide, 300, 100_000, 10_000),
                (Part::Deep, 20, 1_000_000, 10_000),
            ]
        };
        let asked = shapes.into_iter().filter(|(part, ..)| self.runs(*part));
        asked
            .map(|(_, nodes, services, types)| Shape {
                nodes,
                readers: 0,
                services,
                types,
                tags: 0,
            })
            .collect()
    }
}

/// Runs the command.
pub(super) fn run(options: Options, say: fn(&str)) -> ExitCode {
    let output = Output {
        say,
        json: options.json,
    };
    match measure(options, &output) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            output.line(format!("error: {error}"));
            ExitCode::FAILURE
        }
    }
}

fn measure(options: Options, output: &Output) -> Result<(), Error> {
    let bar = progress();
    let mut figures = serde_json::Map::new();
    let mut targets = Vec::new();
    if options.runs(Part::Change) {
        let sizes: &[usize] = if options.quick {
            &[1_000, 10_000]
        } else {
            &[1_000, 10_000, 100_000, 1_000_000]
        };
        let found = change::measure(sizes, &|what| tell(&bar, what))?;
        bar.suspend(|| tables::changes(output, &found));
        targets.extend(found.targets());
        figures.insert("changes".to_owned(), json!(found.changes));
        figures.insert("memory".to_owned(), json!(found.memory));
    }
    let mut outcomes = Vec::new();
    for shape in options.shapes() {
        let name = shape.name();
        let outcome = phases::run(shape, &|what| tell(&bar, &format!("{name}: {what}")))?;
        bar.suspend(|| tables::phases(output, &shape, &outcome));
        outcomes.push(outcome);
    }
    bar.finish_and_clear();
    let rows: Vec<_> = outcomes.iter().flat_map(|outcome| &outcome.rows).collect();
    figures.insert("scenes".to_owned(), json!(rows));
    let idle: Vec<_> = outcomes.iter().map(|outcome| &outcome.idle).collect();
    figures.insert("idle".to_owned(), json!(idle));
    if let [wide, deep] = outcomes.as_slice() {
        figures.insert(
            "extrapolated".to_owned(),
            json!(tables::extrapolated(output, wide, deep)),
        );
    }
    for idle in idle {
        let nodes = idle.nodes;
        targets.push(Target::at_most(
            format!("idle cluster of {nodes}: % of a core of each node"),
            idle.cpu_percent,
            1.0,
        ));
        targets.push(Target::at_most(
            format!("idle cluster of {nodes}: kB/s sent by each node"),
            idle.bytes_per_s / 1e3,
            5.0,
        ));
    }
    Ok(output.finish("sim scale", figures, &targets)?)
}

/// Says what is being done; some of it takes minutes.
fn tell(bar: &ProgressBar, what: &str) {
    bar.set_message(what.to_owned());
    if bar.is_hidden() {
        // Whoever reads a log wants to know, too; nothing can be done where that fails.
        let now = thread_time().as_secs();
        let _ = writeln!(std::io::stderr(), "{now:>5} s  {what}");
    }
}

/// What is being done, on a terminal.
fn progress() -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new_spinner();
    if let Ok(style) = ProgressStyle::with_template("{spinner} {elapsed} {msg}") {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}
