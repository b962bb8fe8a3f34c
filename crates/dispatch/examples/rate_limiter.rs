//! A rate limiter: so many requests a second for each customer, wherever in the cluster they come in.
//!
//! ```text
//! cargo run -p keydispatch --example rate_limiter -- a 7401
//! cargo run -p keydispatch --example rate_limiter -- b 7402 127.0.0.1:7401
//! ```
//!
//! Type the name of a customer, again and again, into any of them. What is left of a bucket is the state of its customer: it
//! goes along when nodes are replaced, so that nobody has more for that. Customers that are quiet for a minute cost nothing.
#![expect(clippy::print_stdout, reason = "an example")]

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use keydispatch::{
    BoxError, Idle, KeyBytes, KeyContext, Keyed, KeyedOptions, Node, Protocol, ReplyTo,
};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, BufReader};

/// Requests that may come at once, and those that are had again a second.
const BUCKET: f64 = 5.0;
const PER_SECOND: f64 = 1.0;

struct Limits;

impl Protocol for Limits {
    const NAME: &'static str = "limits";
    type Call = ();
    /// Whether it may go on.
    type Reply = bool;
    type Cast = ();
}

#[derive(Serialize, Deserialize)]
struct Bucket {
    left: f64,
    /// Seconds since 1970: it is read by the clock of another machine once it has moved.
    at: f64,
}

impl Bucket {
    fn fill(&mut self) {
        let now = seconds();
        let gained = (now - self.at).max(0.0) * PER_SECOND;
        self.left = (self.left + gained).min(BUCKET);
        self.at = now;
    }
}

struct Limiter;

impl Keyed for Limiter {
    type Protocol = Limits;
    type State = Bucket;

    async fn open(&self, _: &KeyBytes) -> Result<Bucket, BoxError> {
        Ok(Bucket {
            left: BUCKET,
            at: seconds(),
        })
    }

    async fn handle_call(
        &self,
        bucket: &mut Bucket,
        (): (),
        reply_to: ReplyTo<bool>,
        _: &mut KeyContext<Self>,
    ) {
        bucket.fill();
        let goes = bucket.left >= 1.0;
        if goes {
            bucket.left -= 1.0;
        }
        reply_to.reply(goes);
    }

    /// A full bucket is what a customer begins with: there is no need to keep it.
    async fn idle(&self, _: &KeyBytes, bucket: &mut Bucket) -> Idle {
        bucket.fill();
        if bucket.left >= BUCKET {
            Idle::Close
        } else {
            Idle::Keep
        }
    }

    /// After a partition: what was spent on both sides is spent.
    fn merge(&self, _: &KeyBytes, ours: Bucket, theirs: Bucket) -> Bucket {
        Bucket {
            left: ours.left.min(theirs.left),
            at: ours.at.max(theirs.at),
        }
    }
}

fn seconds() -> f64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0.0, |since| since.as_secs_f64())
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [name, port, seeds @ ..] = arguments.as_slice() else {
        return Err("usage: rate_limiter NAME PORT [SEED…]".into());
    };
    let node = Node::builder(name)
        .cluster("limits")
        .bind(format!("127.0.0.1:{port}"))
        .seeds(seeds)
        .plaintext()
        .start()
        .await?;
    let options = KeyedOptions::new().idle_after(Duration::from_secs(60));
    node.serve_keyed_with(options, Limiter).await?;
    println!("{name} is up at {}", node.address());
    let limits = node.keyed::<Limits>();
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    while let Some(customer) = lines.next_line().await? {
        let goes = limits.call(&customer, ()).await?;
        println!("{}", if goes { "goes on" } else { "too many" });
    }
    node.leave().await?;
    Ok(())
}
