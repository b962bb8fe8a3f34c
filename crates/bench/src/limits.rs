//! `limits`: what one peer costs another node that registers as much as a node may.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use clap::Args;
use keydispatch::Node;
use keydispatch::limits::{MAX_SERVICES_PER_NODE, MAX_TYPES_PER_NODE};
use serde_json::json;

use keydispatch_fleet::{self as fleet, Certificates, Child, Error, this_program};
use keydispatch_measure::{Output, Target, cells, figure, process, quantile};

/// How often the node is asked for its figures meanwhile.
const EVERY: Duration = Duration::from_millis(5);

/// See the module.
#[derive(Args, Clone)]
pub struct Options {
    /// Print one object last.
    #[arg(long)]
    json: bool,
    /// A tenth of the services and types: for a look, not for a record.
    #[arg(long)]
    quick: bool,
}

/// What one phase cost.
struct Cost {
    phase: &'static str,
    seconds: f64,
    /// How long the node took to say its figures, in milliseconds, in order.
    answers: Vec<f64>,
    longest_turn_ms: f64,
}

/// Runs the command.
pub fn run(options: Options, say: fn(&str)) -> Result<(), Error> {
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(measure(options, say))
}

async fn measure(options: Options, say: fn(&str)) -> Result<(), Error> {
    let output = Output {
        say,
        json: options.json,
    };
    let share = if options.quick { 10 } else { 1 };
    let (services, types) = (MAX_SERVICES_PER_NODE / share, MAX_TYPES_PER_NODE / share);
    let certificates = Certificates::make(&["near", "far", "new"])?;
    let near = fleet::describe("near", "127.0.0.1:0", &[], certificates.path())
        .start()
        .await?;
    let seed = near.address().to_string();
    let command = this_program([
        "register-far".as_ref(),
        "--name".as_ref(),
        "far".as_ref(),
        "--certificates".as_ref(),
        certificates.path().as_os_str(),
        "--seed".as_ref(),
        seed.as_ref(),
    ])?;
    let mut far = Child::start(command, "far").await?;
    let own = std::process::id();
    let before = process::resident(own);
    let mut costs = Vec::new();

    let filling = async {
        far.tell(&format!("fill 0 {services} {}", services / types))
            .await?;
        far.expect("fill").await?;
        shown(&near, services).await
    };
    costs.push(watched(&near, "it registers all", filling).await?);
    let bytes = process::resident(own).saturating_sub(before) as f64 / services as f64;

    let began = Instant::now();
    let starting = async {
        let newcomer = fleet::describe("new", "127.0.0.1:0", &[seed], certificates.path())
            .start()
            .await?;
        shown(&newcomer, services).await?;
        newcomer.leave().await?;
        Ok(())
    };
    costs.push(watched(&near, "a newcomer starts", starting).await?);
    let newcomer = began.elapsed().as_secs_f64();

    far.start_kill()?;
    costs.push(watched(&near, "it is killed", shown(&near, 0)).await?);

    let mut rows = vec![cells([
        "meanwhile",
        "seconds",
        "stats p50 ms",
        "stats longest ms",
        "longest turn ms",
    ])];
    for cost in &costs {
        rows.push(vec![
            cost.phase.to_owned(),
            format!("{:.1}", cost.seconds),
            figure(quantile(&cost.answers, 0.5)),
            figure(quantile(&cost.answers, 1.0)),
            figure(cost.longest_turn_ms),
        ]);
    }
    let title =
        format!("A peer with {services} services of {types} types; {bytes:.0} bytes each here");
    output.table(&title, &rows);
    let longest = |value: fn(&Cost) -> f64| costs.iter().map(value).fold(0.0, f64::max);
    let targets = [
        Target::at_most(
            "longest turn of the driver, ms",
            longest(|cost| cost.longest_turn_ms),
            50.0,
        ),
        Target::at_most(
            "longest wait for stats, ms",
            longest(|cost| quantile(&cost.answers, 1.0)),
            100.0,
        ),
    ];
    let mut figures = serde_json::Map::new();
    figures.insert("bytes_each".to_owned(), json!(bytes));
    figures.insert("newcomer_seconds".to_owned(), json!(newcomer));
    near.leave().await?;
    Ok(output.finish("limits", figures, &targets)?)
}

/// Asks a node for its figures all the time while something is done.
async fn watched(
    node: &Node,
    phase: &'static str,
    done: impl Future<Output = Result<(), Error>>,
) -> Result<Cost, Error> {
    let stop = Arc::new(AtomicBool::new(false));
    let asking = tokio::spawn({
        let (node, stop) = (node.clone(), Arc::clone(&stop));
        async move {
            let (mut answers, mut longest) = (Vec::new(), Duration::ZERO);
            while !stop.load(Ordering::Relaxed) {
                let asked = Instant::now();
                let Some(stats) = node.stats().await else {
                    break;
                };
                answers.push(asked.elapsed().as_secs_f64() * 1e3);
                longest = longest.max(stats.longest_turn);
                tokio::time::sleep(EVERY).await;
            }
            (answers, longest)
        }
    });
    let began = Instant::now();
    done.await?;
    let seconds = began.elapsed().as_secs_f64();
    stop.store(true, Ordering::Relaxed);
    let (mut answers, longest) = asking.await?;
    answers.sort_by(f64::total_cmp);
    Ok(Cost {
        phase,
        seconds,
        answers,
        longest_turn_ms: longest.as_secs_f64() * 1e3,
    })
}

/// Waits until so many services of the peer show here.
async fn shown(node: &Node, services: usize) -> Result<(), Error> {
    loop {
        let stats = node.stats().await.ok_or("the node has stopped")?;
        let owners = stats.cluster.owners.iter();
        let entries = owners.filter(|owner| owner.visible && owner.node.name.as_str() == "far");
        if entries.map(|owner| owner.entries).sum::<usize>() == services {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
