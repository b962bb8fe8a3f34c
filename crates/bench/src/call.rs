//! `call`: what it costs to call a service in another process, beside a plain TLS echo and beside other crates.

use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use clap::Args;
use keydispatch::{Adapter, Node};
use serde_json::json;

use keydispatch_fleet::{self as fleet, Certificates, Child, Error, this_program};
use keydispatch_measure::{Output, Target, cells, exponent, figure};

mod bench;
mod control;
pub(crate) mod echo;
mod far;
mod load;
mod overhead;
mod peers;
mod subject;

use bench::{Bench, PAIR_HEADS, Pair, Rounds};
pub use far::run_far;
pub use load::{Load, Pace, load};
pub use subject::{Echo, Echoes, KeyedEcho, KeyedEchoes, Subject};
use subject::{Tally, Trio};

/// Tasks that call at once.
const CALLERS: [usize; 4] = [1, 16, 64, 256];

/// Sizes of what is sent and comes back.
const PAYLOADS: [usize; 4] = [64, 4 * 1024, 32 * 1024, 256 * 1024];

/// See the module.
#[derive(Args, Clone)]
pub struct Options {
    /// Print one object last.
    #[arg(long)]
    json: bool,
    /// Fewer and shorter rounds: for a look, not for a record.
    #[arg(long)]
    quick: bool,
    /// Measure this number of callers alone, with `--payload`: to look at with a profiler.
    #[arg(long, requires = "payload")]
    callers: Option<usize>,
    /// Measure payloads of this many bytes alone.
    #[arg(long, requires = "callers")]
    payload: Option<usize>,
    /// Measure the calls within one process alone.
    #[arg(long)]
    local: bool,
    /// The program of crates/bench/peers, where it was built: tonic and ractor_cluster, measured between our rounds.
    #[arg(long)]
    peers: Option<PathBuf>,
}

/// Runs the command.
pub fn run(options: Options, say: fn(&str)) -> Result<(), Error> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    runtime.block_on(measure(options, say))
}

async fn measure(options: Options, say: fn(&str)) -> Result<(), Error> {
    let certificates = Certificates::make(&["near", "far"])?;
    let path = certificates.path().as_os_str();
    let command = this_program(["call-far".as_ref(), "--certificates".as_ref(), path])?;
    let far = Child::start(command, "far").await?;
    let ready = far.ready().to_owned();
    let (address, echo_address) = ready.split_once(' ').ok_or("two addresses were expected")?;
    let seeds = [address.to_owned()];
    let node = fleet::describe("near", "127.0.0.1:0", &seeds, certificates.path())
        .start()
        .await?;
    let echoes = node.services::<Echoes>();
    echoes.wait_online(1).await?;
    let echo = echo::Client::connect(echo_address, &certificates).await?;
    let (count, window) = if options.quick { (3, 200) } else { (7, 400) };
    let mut bench = Bench {
        output: Output {
            say,
            json: options.json,
        },
        rounds: Rounds {
            count,
            window: Duration::from_millis(window),
        },
        node,
        far,
        echo: Subject::Echo(echo),
        calls: Subject::Call(echoes),
        figures: serde_json::Map::new(),
        targets: Vec::new(),
    };
    if options.local {
        return bench.local().await;
    }
    if let (Some(callers), Some(payload)) = (options.callers, options.payload) {
        let both = (&bench.echo, &bench.calls);
        let pair = bench.pair(both, callers, payload, Pace::Full).await?;
        bench.report_pairs(&[pair]);
        return Ok(());
    }
    let pairs = bench.pairs().await?;
    bench.report_pairs(&pairs);
    bench.direct(echo_address, &certificates).await?;
    bench.half_load(&pairs).await?;
    bench.more().await?;
    bench.local().await?;
    control::measure(&mut bench).await?;
    overhead::measure(&mut bench).await?;
    peers::measure(&mut bench, options.peers.as_deref()).await?;
    Ok(bench.output.finish("call", bench.figures, &bench.targets)?)
}

impl Bench {
    async fn pairs(&self) -> Result<Vec<Pair>, Error> {
        let mut pairs = Vec::new();
        for payload in PAYLOADS {
            for callers in CALLERS {
                let both = (&self.echo, &self.calls);
                pairs.push(self.pair(both, callers, payload, Pace::Full).await?);
            }
        }
        Ok(pairs)
    }

    fn report_pairs(&mut self, pairs: &[Pair]) {
        let mut rows = vec![cells(PAIR_HEADS)];
        rows.extend(pairs.iter().map(Pair::row));
        let title = "Calls to a service in another process, TLS, one connection, beside a plain TLS echo; \
             CPU is of both processes for each call";
        self.output.table(title, &rows);
        let all: Vec<_> = pairs.iter().map(Pair::json).collect();
        self.figures.insert("calls".to_owned(), json!(all));

        let at = |callers, payload| {
            pairs
                .iter()
                .find(|pair| pair.callers == callers && pair.payload == payload)
        };
        if let Some(pair) = at(1, 64) {
            let name = "sequential p50 / TLS echo, 64 B";
            self.targets
                .push(Target::at_most(name, pair.ratio(Load::p50), 1.4));
        }
        if let Some(pair) = at(256, 64) {
            let name = "calls per second / TLS echo, 256 callers, 64 B, one connection";
            self.targets
                .push(Target::at_least(name, pair.ratio(Load::rate), 0.7));
        }
        let large = pairs
            .iter()
            .filter(|pair| pair.payload == 256 * 1024 && pair.callers > 1)
            .map(|pair| pair.ratio(Load::rate));
        let worst = large.fold(f64::INFINITY, f64::min);
        let name = "bytes per second / TLS echo, 256 KiB, worst of 16, 64, 256 callers";
        self.targets.push(Target::at_least(name, worst, 0.8));

        let mut rows = vec![cells(["growth of the cost of a call", "exponent"])];
        let by_callers: Vec<_> = pairs
            .iter()
            .filter(|pair| pair.payload == 64)
            .map(|pair| {
                (
                    pair.callers as f64,
                    1.0 / Pair::of(&pair.subject, Load::rate),
                )
            })
            .collect();
        let by_payload: Vec<_> = pairs
            .iter()
            .filter(|pair| pair.callers == 16)
            .map(|pair| {
                (
                    pair.payload as f64,
                    1.0 / Pair::of(&pair.subject, Load::rate),
                )
            })
            .collect();
        let fitted = [exponent(&by_callers), exponent(&by_payload)];
        rows.push(vec![
            "by callers, 64 B".to_owned(),
            format!("{:.2}", fitted[0]),
        ]);
        rows.push(vec![
            "by bytes of payload, 16 callers".to_owned(),
            format!("{:.2}", fitted[1]),
        ]);
        self.output
            .table("Growth: the cost is proportional to the power of", &rows);
        let fitted = json!({"by_callers": fitted[0], "by_payload": fitted[1]});
        self.figures.insert("growth".to_owned(), fitted);
    }

    /// An echo without tasks or channels: one task that writes, then reads.
    async fn direct(&mut self, address: &str, certificates: &Certificates) -> Result<(), Error> {
        let mut stream = echo::Direct::connect(address, certificates).await?;
        let window = self.rounds.window * 2;
        let p50 = tokio::spawn(async move { stream.sequential(64, window).await }).await??;
        self.output.line(format!(
            "\nA TLS echo by one task that writes and then reads, without batching: p50 {} µs",
            figure(p50)
        ));
        self.figures
            .insert("direct_echo_p50_us".to_owned(), json!(p50));
        Ok(())
    }

    /// Each at half of what it can do.
    async fn half_load(&mut self, pairs: &[Pair]) -> Result<(), Error> {
        let Some(full) = pairs
            .iter()
            .find(|pair| pair.callers == 256 && pair.payload == 64)
        else {
            return Ok(());
        };
        let mut tails = Vec::new();
        let mut rows = vec![cells([
            "at half of full load",
            "calls/s",
            "p50 µs",
            "p99 µs",
            "p99/p50",
        ])];
        let half = |loads: &[Load]| Pace::Rate(Pair::of(loads, Load::rate) / 2.0);
        let both = [
            ("TLS echo", &self.echo, half(&full.floor)),
            ("dispatch", &self.calls, half(&full.subject)),
        ];
        let message = Bytes::from(vec![7; 64]);
        let mut loads = [Vec::new(), Vec::new()];
        for _ in 0..self.rounds.count {
            for (loads, (_, subject, pace)) in loads.iter_mut().zip(&both) {
                let window = self.rounds.window;
                loads.push(load(subject, self.far.id(), 256, &message, window, *pace).await?);
            }
        }
        for (loads, (name, ..)) in loads.iter().zip(&both) {
            let tail = Pair::of(loads, |load| load.p99() / load.p50());
            tails.push(tail);
            let mut row = vec![(*name).to_owned()];
            let shown = [Load::rate, Load::p50, Load::p99].map(|part| Pair::of(loads, part));
            row.extend(shown.map(figure));
            row.push(format!("{tail:.2}"));
            rows.push(row);
        }
        self.output
            .table("Latency at half of full load, 64 B", &rows);
        let name = "p99/p50 at half of full load / the TLS echo's";
        self.targets
            .push(Target::at_most(name, tails[1] / tails[0], 1.5));
        self.figures.insert(
            "half_load".to_owned(),
            json!({"echo_p99_over_p50": tails[0], "dispatch_p99_over_p50": tails[1]}),
        );
        Ok(())
    }

    /// Casts, and calls to three at once.
    async fn more(&mut self) -> Result<(), Error> {
        let message = Bytes::from_static(&[7; 64]);
        let mut rows = vec![cells(["64 B", "callers", "per second", "p50 µs", "p99 µs"])];
        let mut found = Vec::new();
        let trio = self.node.services::<Trio>();
        trio.wait_online(3).await?;
        let tally = self.node.services::<Tally>();
        tally.wait_online(1).await?;
        let subjects = [
            ("multi_call(3)", Subject::Multi(trio), 1.0),
            (
                "cast, 32 and a call in turn",
                Subject::Cast(tally),
                f64::from(subject::CASTS),
            ),
        ];
        for (name, subject, messages) in &subjects {
            for callers in CALLERS {
                let mut loads = Vec::new();
                for _ in 0..self.rounds.count.div_ceil(2) {
                    let window = self.rounds.window;
                    loads.push(
                        load(
                            subject,
                            self.far.id(),
                            callers,
                            &message,
                            window,
                            Pace::Full,
                        )
                        .await?,
                    );
                }
                let shown = [
                    Pair::of(&loads, Load::rate) * messages,
                    Pair::of(&loads, Load::p50),
                    Pair::of(&loads, Load::p99),
                ];
                let mut row = vec![(*name).to_owned(), callers.to_string()];
                row.extend(shown.map(figure));
                rows.push(row);
                found.push(json!({
                    "what": name, "callers": callers, "per_s": shown[0], "p50_us": shown[1], "p99_us": shown[2],
                }));
            }
        }
        self.output.table(
            "Casts (by what arrived), and calls to the first three owners",
            &rows,
        );
        self.figures.insert("more".to_owned(), json!(found));
        Ok(())
    }

    /// Calls within one process.
    async fn local(&mut self) -> Result<(), Error> {
        let node = Node::builder("alone")
            .adapter(Adapter::Local)
            .start()
            .await?;
        node.serve(Echo).await?;
        let floor = subject::Bare::start();
        let both = (&Subject::Bare(floor), &Subject::Call(node.services()));
        let mut rows = vec![cells([
            "callers",
            "bare calls/s",
            "dispatch",
            "bare p50 µs",
            "dispatch",
            "cost ratio",
            "CPU ratio",
        ])];
        let mut ratios = Vec::new();
        for callers in CALLERS {
            let pair = self.pair(both, callers, 64, Pace::Full).await?;
            let ratio = 1.0 / pair.ratio(Load::rate);
            rows.push(vec![
                callers.to_string(),
                figure(Pair::of(&pair.floor, Load::rate)),
                figure(Pair::of(&pair.subject, Load::rate)),
                figure(Pair::of(&pair.floor, Load::p50)),
                figure(Pair::of(&pair.subject, Load::p50)),
                format!("{ratio:.2}"),
                format!("{:.2}", pair.ratio(Load::busy_here)),
            ]);
            ratios.push((callers, ratio, pair.ratio(Load::busy_here)));
        }
        self.output.table(
            "Calls within one process, beside a bare mpsc and oneshot",
            &rows,
        );
        let worst = ratios
            .iter()
            .map(|(_, ratio, _)| *ratio)
            .fold(0.0, f64::max);
        let name = "local call / bare mpsc and oneshot, worst of 1 to 256 callers";
        self.targets.push(Target::at_most(name, worst, 2.0));
        let found: Vec<_> = ratios
            .iter()
            .map(|(callers, cost, cpu)| json!({"callers": callers, "cost_ratio": cost, "cpu_ratio": cpu}))
            .collect();
        self.figures.insert("local".to_owned(), json!(found));
        node.leave().await?;
        Ok(())
    }
}
