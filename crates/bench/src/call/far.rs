//! The process that is called.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use keydispatch::{
    Context, Node, Protocol, ReplyTo, ServeOptions, Service, ServiceEvent, Subscription,
};
use tokio::net::TcpListener;

use super::echo;
use super::subject::{Counting, Echo, OneOfThree};
use keydispatch_fleet::{self as fleet, Error};
use keydispatch_measure::monotonic_nanos;

/// The type whose instances show when control frames arrive.
pub(super) const PROBE: &str = "probe";

/// Gives what was seen of [`PROBE`] since it was last asked.
pub(super) struct Sightings;

impl Protocol for Sightings {
    const NAME: &'static str = "sightings";
    type Call = ();
    /// Instance names, and when they were seen by the machine's clock, in nanoseconds.
    type Reply = Vec<(String, u64)>;
    type Cast = ();
}

type Seen = Arc<Mutex<Vec<(String, u64)>>>;

struct Sees(Seen);

impl Service for Sees {
    type Protocol = Sightings;

    async fn handle_call(
        &mut self,
        _: (),
        reply_to: ReplyTo<Vec<(String, u64)>>,
        _: &mut Context<Self>,
    ) {
        let seen = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        reply_to.reply(seen);
    }
}

/// Runs the hidden command.
pub fn run_far(certificates: PathBuf, say: fn(&str)) -> Result<(), Error> {
    tokio::runtime::Runtime::new()?.block_on(async {
        let node = fleet::describe("far", "127.0.0.1:0", &[], &certificates)
            .start()
            .await?;
        let _serving = serve(&node).await?;
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let echo_address = listener.local_addr()?;
        tokio::spawn(async move {
            // Ends with the process, or with the listener.
            let _ = echo::serve(listener, &certificates, "far").await;
        });
        say(&format!("ready {} {echo_address}", node.address()));
        tokio::io::copy(&mut tokio::io::stdin(), &mut tokio::io::sink()).await?;
        Ok(())
    })
}

async fn serve(node: &Node) -> Result<Seen, Error> {
    node.serve(Echo).await?;
    // As many as all casters send before they wait.
    let roomy = ServeOptions::new().mailbox(16 * 1024);
    node.serve_with(roomy, Counting::default()).await?;
    for number in 0..3 {
        let options = ServeOptions::new().name(format!("trio {number}"));
        node.serve_with(options, OneOfThree).await?;
    }
    let seen = Seen::default();
    node.serve(Sees(Arc::clone(&seen))).await?;
    tokio::spawn(watch(node.registry().subscribe(PROBE)?, Arc::clone(&seen)));
    Ok(seen)
}

async fn watch(mut events: Subscription, seen: Seen) {
    while let Some(event) = events.next().await {
        if let ServiceEvent::Joined(info) = event {
            let sighting = (info.name().as_str().to_owned(), monotonic_nanos());
            seen.lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(sighting);
        }
    }
}
