//! Files in memory that a rolling restart does not empty: each is the state of its name, and goes along when that gets another
//! owner. In three terminals:
//!
//! ```text
//! cargo run -p keydispatch --example files -- a 7401
//! cargo run -p keydispatch --example files -- b 7402 127.0.0.1:7401
//! cargo run -p keydispatch --example files -- c 7403 127.0.0.1:7401
//! ```
//!
//! Type `put NAME TEXT` or `get NAME` into any of them. Type `leave` into one, start it again, and do the same with the next: every
//! file is still there. One that is killed takes its files along.
#![expect(clippy::print_stdout, reason = "an example")]

use keydispatch::{BoxError, KeyBytes, KeyContext, Keyed, Node, Protocol, ReplyTo};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, BufReader};

struct Files;

#[derive(Serialize, Deserialize)]
enum Ask {
    Put(String),
    Get,
}

impl Protocol for Files {
    const NAME: &'static str = "files";
    type Call = Ask;
    type Reply = Option<String>;
    type Cast = ();
}

struct Keeper;

impl Keyed for Keeper {
    type Protocol = Files;
    type State = Option<String>;

    async fn open(&self, _: &KeyBytes) -> Result<Option<String>, BoxError> {
        Ok(None)
    }

    async fn handle_call(
        &self,
        file: &mut Option<String>,
        ask: Ask,
        reply_to: ReplyTo<Option<String>>,
        _: &mut KeyContext<Self>,
    ) {
        if let Ask::Put(text) = ask {
            *file = Some(text);
        }
        reply_to.reply(file.clone());
    }
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [name, port, seeds @ ..] = arguments.as_slice() else {
        return Err("usage: files NAME PORT [SEED…]".into());
    };
    let node = Node::builder(name)
        .cluster("files")
        .bind(format!("127.0.0.1:{port}"))
        .seeds(seeds)
        .plaintext()
        .start()
        .await?;
    let served = node.serve_keyed(Keeper).await?;
    println!("{name} is up at {}", node.address());
    let files = node.keyed::<Files>();
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    while let Some(line) = lines.next_line().await? {
        match line.splitn(3, ' ').collect::<Vec<_>>()[..] {
            ["put", name, text] => drop(files.call(name, Ask::Put(text.to_owned())).await?),
            ["get", name] => {
                let (owner, found) = (files.find(name)?, files.call(name, Ask::Get).await?);
                println!("{} says {found:?}", owner.node());
            }
            ["leave"] => break,
            _ => println!(
                "put NAME TEXT, get NAME, or leave; {} keys are here",
                served.keys()
            ),
        }
    }
    // Ends once every file is with its next owner.
    node.leave().await?;
    Ok(())
}
