//! A registry of HTTP endpoints that are served by something else, and who of them owns a key.
//!
//! ```text
//! cargo run -p keydispatch --example endpoints -- a 7401
//! cargo run -p keydispatch --example endpoints -- b 7402 127.0.0.1:7401
//! ```
//!
//! Type `add URL [WEIGHT]`, `off`, `on`, `find KEY` or `list` into either: both agree on the owner.
#![expect(clippy::print_stdout, reason = "an example")]

use std::process::ExitCode;

use keydispatch::{BoxError, NewService, Node, Registration, Registry, ServiceEvent};
use tokio::io::{AsyncBufReadExt, BufReader};

const TYPE: &str = "thumbnails";

#[tokio::main]
async fn main() -> ExitCode {
    match run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run() -> Result<(), BoxError> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [name, port, seeds @ ..] = arguments.as_slice() else {
        return Err("usage: endpoints NAME PORT [SEED…]".into());
    };
    let node = Node::builder(name)
        .cluster("endpoints")
        .bind(format!("127.0.0.1:{port}"))
        .seeds(seeds)
        .plaintext()
        .start()
        .await?;
    println!("{name} is up at {}", node.address());

    let mut events = node.registry().subscribe(TYPE)?;
    tokio::spawn(async move {
        while let Some(event) = events.next().await {
            match event {
                ServiceEvent::Current(view) => println!("{} endpoints", view.services().len()),
                ServiceEvent::Joined(info) => println!("joined: {}", info.name()),
                ServiceEvent::Left(info) => println!("left: {}", info.name()),
                ServiceEvent::Updated { after, .. } => {
                    println!("changed: {} is {}", after.name(), after.state());
                }
                _ => {}
            }
        }
    });

    let mut last = None;
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    while let Some(line) = lines.next_line().await? {
        // What cannot be done is said, and nothing is lost.
        if let Err(error) = obey(node.registry(), &line, &mut last).await {
            println!("{error}");
        }
    }
    node.leave().await?;
    Ok(())
}

async fn obey(
    registry: &Registry,
    line: &str,
    last: &mut Option<Registration>,
) -> Result<(), BoxError> {
    match (line.split(' ').collect::<Vec<_>>().as_slice(), last) {
        (["add", url, weight @ ..], last) => {
            let mut endpoint = NewService::endpoint(TYPE, *url);
            if let [weight] = weight {
                endpoint = endpoint.weight(weight.parse()?);
            }
            *last = Some(registry.add_service(endpoint).await?);
        }
        (["off"], Some(last)) => println!("now {}", last.disable().await?),
        (["on"], Some(last)) => println!("now {}", last.enable().await?),
        (["find", key], _) => {
            let owner = registry.find_service(TYPE, *key)?;
            println!("{} (registered by {})", owner.name(), owner.node());
        }
        (["list"], _) => {
            for info in registry.services(TYPE) {
                println!(
                    "{} {} weight {}",
                    info.name(),
                    info.state(),
                    info.weight().value()
                );
            }
        }
        _ => println!("add URL [WEIGHT], off, on, find KEY, or list"),
    }
    Ok(())
}
