//! Calls between two processes by other crates, for the command `call` of `keydispatch-bench`.
//!
//! `keydispatch-peers tonic --callers 256 --payload 64 --millis 1000` starts the other process, lets that many tasks call
//! for that long, and prints one JSON object: calls per second, and the middle and 99th percentile of their times.
//! Neither peer encrypts.

use std::process::Stdio;
use std::time::{Duration, Instant};

use clap::{Parser, ValueEnum};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::task::JoinSet;

mod actors;
mod grpc;

type Error = Box<dyn std::error::Error + Send + Sync>;

#[derive(Parser)]
struct Arguments {
    peer: Peer,
    #[arg(long, default_value_t = 256)]
    callers: usize,
    #[arg(long, default_value_t = 64)]
    payload: usize,
    #[arg(long, default_value_t = 1_000)]
    millis: u64,
    /// Be the process that is called: print `ready ADDRESS`, and end when the standard input closes.
    #[arg(long, hide = true)]
    far: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Peer {
    Tonic,
    #[value(name = "ractor_cluster")]
    RactorCluster,
}

/// What calls.
trait Client: Clone + Send + 'static {
    fn call(&mut self, message: &[u8]) -> impl Future<Output = Result<(), Error>> + Send;
}

fn main() -> Result<(), Error> {
    let arguments = Arguments::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(run(arguments))
}

async fn run(arguments: Arguments) -> Result<(), Error> {
    if arguments.far {
        let address = match arguments.peer {
            Peer::Tonic => grpc::serve().await?,
            Peer::RactorCluster => actors::serve().await?,
        };
        println!("ready {address}");
        tokio::io::copy(&mut tokio::io::stdin(), &mut tokio::io::sink()).await?;
        // What runs is not asked to stop: the process ends.
        std::process::exit(0);
    }
    let (_far, address) = start(arguments.peer).await?;
    let window = Duration::from_millis(arguments.millis);
    let (callers, payload) = (arguments.callers, vec![7; arguments.payload]);
    match arguments.peer {
        Peer::Tonic => load(grpc::connect(&address).await?, callers, payload, window).await?,
        Peer::RactorCluster => load(actors::connect(&address).await?, callers, payload, window).await?,
    }
    std::process::exit(0);
}

async fn start(peer: Peer) -> Result<(Child, String), Error> {
    let name = peer.to_possible_value().ok_or("a peer has a name")?;
    let mut far = Command::new(std::env::current_exe()?)
        .args([name.get_name(), "--far"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let output = far.stdout.take().ok_or("no standard output")?;
    let line = BufReader::new(output).lines().next_line().await?.ok_or("it has ended")?;
    let address = line.strip_prefix("ready ").ok_or("not ready")?.to_owned();
    Ok((far, address))
}

async fn load<C: Client>(
    client: C,
    callers: usize,
    payload: Vec<u8>,
    window: Duration,
) -> Result<(), Error> {
    // Connections are made and code is warm before anything counts.
    all(&client, callers, &payload, window / 4).await?;
    let start = Instant::now();
    let mut nanos = all(&client, callers, &payload, window).await?;
    let elapsed = start.elapsed();
    nanos.sort_unstable();
    let at = |fraction: f64| nanos[(fraction * (nanos.len() - 1) as f64) as usize] as f64 / 1e3;
    let printed = serde_json::json!({
        "calls_per_s": nanos.len() as f64 / elapsed.as_secs_f64(),
        "p50_us": at(0.5),
        "p99_us": at(0.99),
    });
    println!("{printed}");
    Ok(())
}

async fn all<C: Client>(
    client: &C,
    callers: usize,
    payload: &[u8],
    window: Duration,
) -> Result<Vec<u64>, Error> {
    let end = Instant::now() + window;
    let mut tasks = JoinSet::new();
    for _ in 0..callers {
        let (mut client, payload) = (client.clone(), payload.to_vec());
        tasks.spawn(async move {
            let mut nanos = Vec::new();
            let mut start = Instant::now();
            while start < end {
                client.call(&payload).await?;
                let done = Instant::now();
                nanos.push((done - start).as_nanos() as u64);
                start = done;
            }
            Ok::<_, Error>(nanos)
        });
    }
    let mut nanos = Vec::new();
    while let Some(done) = tasks.join_next().await {
        nanos.extend(done??);
    }
    Ok(nanos)
}
