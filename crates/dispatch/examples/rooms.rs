//! Chat rooms that remember who is in them, and what was said, while the nodes below them are replaced.
//!
//! ```text
//! cargo run -p keydispatch --example rooms -- anna 7401
//! cargo run -p keydispatch --example rooms -- ben 7402 127.0.0.1:7401
//! ```
//!
//! Type `join ROOM`, then whatever you want to say; `who` and `history` show what the room has.
#![expect(clippy::print_stdout, reason = "an example")]

use std::collections::{BTreeSet, VecDeque};

use keydispatch::{
    BoxError, KeyBytes, KeyContext, Keyed, Node, Protocol, PubSub, ReplyTo, TopicEvent,
    TopicSubscription,
};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, BufReader};

/// Lines that a room remembers.
const REMEMBERED: usize = 100;

struct Chat;

#[derive(Serialize, Deserialize)]
enum Ask {
    Join(String),
    Who,
    Say(String),
    History,
}

impl Protocol for Chat {
    const NAME: &'static str = "chat-rooms";
    type Call = Ask;
    type Reply = Vec<String>;
    type Cast = ();
}

#[derive(Default, Serialize, Deserialize)]
struct Room {
    members: BTreeSet<String>,
    lines: VecDeque<String>,
}

struct Rooms(PubSub);

impl Keyed for Rooms {
    type Protocol = Chat;
    type State = Room;

    async fn open(&self, _: &KeyBytes) -> Result<Room, BoxError> {
        Ok(Room::default())
    }

    async fn handle_call(
        &self,
        room: &mut Room,
        ask: Ask,
        reply_to: ReplyTo<Vec<String>>,
        cx: &mut KeyContext<Self>,
    ) {
        let mut reply = Vec::new();
        match ask {
            Ask::Join(name) => drop(room.members.insert(name)),
            Ask::Who => reply.extend(room.members.iter().cloned()),
            Ask::History => reply.extend(room.lines.iter().cloned()),
            Ask::Say(line) => {
                // One holder a room: everybody hears its lines in one order.
                if let Err(error) = self.0.broadcast(&cx.key().to_string(), line.clone()) {
                    println!("not sent on: {error}");
                }
                room.lines.push_back(line);
                if room.lines.len() > REMEMBERED {
                    room.lines.pop_front();
                }
            }
        }
        reply_to.reply(reply);
    }

    /// After a partition: everybody who joined on either side is in it, and lines that only the other side has come first.
    fn merge(&self, _: &KeyBytes, mut ours: Room, theirs: Room) -> Room {
        ours.members.extend(theirs.members);
        for line in theirs.lines.into_iter().rev() {
            if !ours.lines.contains(&line) {
                ours.lines.push_front(line);
            }
        }
        while ours.lines.len() > REMEMBERED {
            ours.lines.pop_front();
        }
        ours
    }
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [name, port, seeds @ ..] = arguments.as_slice() else {
        return Err("usage: rooms NAME PORT [SEED…]".into());
    };
    let node = Node::builder(name)
        .cluster("chat")
        .bind(format!("127.0.0.1:{port}"))
        .seeds(seeds)
        .plaintext()
        .start()
        .await?;
    node.serve_keyed(Rooms(node.pubsub().clone())).await?;
    println!("{name} is up at {}; join ROOM first", node.address());
    let rooms = node.keyed::<Chat>();
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    let mut joined: Option<(String, TopicSubscription)> = None;
    loop {
        let line = tokio::select! {
            line = lines.next_line() => line?,
            heard = hear(&mut joined) => {
                println!("{heard}");
                continue;
            }
        };
        let Some(line) = line else { break };
        if let Some(room) = line.strip_prefix("join ") {
            joined = Some((room.to_owned(), node.pubsub().subscribe(room)?));
            rooms.call(room, Ask::Join(name.clone())).await?;
            continue;
        }
        let Some((room, _)) = &joined else {
            println!("join ROOM first");
            continue;
        };
        let ask = match line.as_str() {
            "who" => Ask::Who,
            "history" => Ask::History,
            _ => Ask::Say(format!("{name}: {line}")),
        };
        for line in rooms.call(room, ask).await? {
            println!("  {line}");
        }
    }
    node.leave().await?;
    Ok(())
}

async fn hear(joined: &mut Option<(String, TopicSubscription)>) -> String {
    let Some((_, subscription)) = joined else {
        return std::future::pending().await;
    };
    match subscription.next().await {
        Some(TopicEvent::Message(message)) => {
            String::from_utf8_lossy(&message.payload).into_owned()
        }
        Some(_) => "… some lines were missed".to_owned(),
        None => std::future::pending().await,
    }
}
