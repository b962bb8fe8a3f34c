//! Chat rooms: each room is kept by the node that owns its name, and what is said there goes to everybody by pubsub.
//!
//! ```text
//! cargo run -p keydispatch --example chat -- anna 7401
//! cargo run -p keydispatch --example chat -- ben 7402 127.0.0.1:7401
//! ```
//!
//! Type `join ROOM`, then whatever you want to say; `history` shows what the room remembers.
#![expect(clippy::print_stdout, reason = "an example")]

use std::collections::{HashMap, VecDeque};
use std::process::ExitCode;

use keydispatch::{
    BoxError, Context, Node, Protocol, PubSub, ReplyTo, Service, TopicEvent, TopicSubscription,
};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, BufReader};

/// Lines that a room remembers.
const REMEMBERED: usize = 100;

struct Chat;

impl Protocol for Chat {
    const NAME: &'static str = "chat";
    type Call = History;
    type Reply = Vec<String>;
    type Cast = Said;
}

#[derive(Serialize, Deserialize)]
struct Said {
    room: String,
    line: String,
}

#[derive(Serialize, Deserialize)]
struct History {
    room: String,
}

struct Rooms {
    remembered: HashMap<String, VecDeque<String>>,
    pubsub: PubSub,
}

impl Service for Rooms {
    type Protocol = Chat;

    async fn handle_call(
        &mut self,
        call: History,
        reply_to: ReplyTo<Vec<String>>,
        _: &mut Context<Self>,
    ) {
        let lines = self.remembered.get(&call.room);
        reply_to.reply(lines.into_iter().flatten().cloned().collect());
    }

    async fn handle_cast(&mut self, said: Said, _: &mut Context<Self>) {
        // One owner a room: everybody hears its lines in one order.
        if let Err(error) = self.pubsub.broadcast(&said.room, said.line.clone()) {
            println!("not sent on: {error}");
        }
        let lines = self.remembered.entry(said.room).or_default();
        lines.push_back(said.line);
        if lines.len() > REMEMBERED {
            lines.pop_front();
        }
    }
}

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
        return Err("usage: chat NAME PORT [SEED…]".into());
    };
    let node = Node::builder(name)
        .cluster("chat")
        .bind(format!("127.0.0.1:{port}"))
        .seeds(seeds)
        .plaintext()
        .start()
        .await?;
    node.serve(Rooms {
        remembered: HashMap::new(),
        pubsub: node.pubsub().clone(),
    })
    .await?;
    println!("{name} is up at {}: join a room", node.address());

    let rooms = node.services::<Chat>();
    let mut room: Option<String> = None;
    let mut heard: Option<TopicSubscription> = None;
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    loop {
        tokio::select! {
            line = lines.next_line() => {
                let Some(line) = line? else { break };
                if let Some(to) = line.strip_prefix("join ") {
                    heard = Some(node.pubsub().subscribe(to)?);
                    room = Some(to.to_owned());
                    continue;
                }
                let Some(room) = room.clone() else {
                    println!("join ROOM first");
                    continue;
                };
                if line == "history" {
                    let history = History { room: room.clone() };
                    println!("{:#?}", rooms.call(room.as_str(), history).await?);
                } else {
                    let said = Said { room: room.clone(), line: format!("{name}: {line}") };
                    rooms.cast(room.as_str(), said).map_err(|error| error.error)?;
                }
            }
            event = next(&mut heard) => match event {
                Some(TopicEvent::Message(message)) => {
                    println!("{}", String::from_utf8_lossy(&message.payload));
                }
                Some(_) => println!("… some lines were missed"),
                None => heard = None,
            },
        }
    }
    node.leave().await?;
    Ok(())
}

/// The next line in the room; waits for ever while none was joined.
async fn next(heard: &mut Option<TopicSubscription>) -> Option<TopicEvent> {
    match heard {
        Some(heard) => heard.next().await,
        None => std::future::pending().await,
    }
}
