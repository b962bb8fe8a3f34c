//! The process that has the states, and what both sides say.

use std::path::PathBuf;

use bytes::Bytes;
use clap::Args;
use keydispatch::{BoxError, KeyBytes, KeyContext, Keyed, KeyedOptions, Protocol, ReplyTo};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::TcpListener;

use super::memory;
use crate::call::{Echo, KeyedEcho, echo};
use crate::fleet::{self, Error};

/// How long the state of a key is; a call sets it to so many bytes.
pub(super) struct Shelves;

impl Protocol for Shelves {
    const NAME: &'static str = "shelf";
    type Call = u32;
    type Reply = u64;
    type Cast = ();
}

pub(super) struct Shelf;

impl Keyed for Shelf {
    type Protocol = Shelves;
    type State = Bytes;

    async fn open(&self, _: &KeyBytes) -> Result<Bytes, BoxError> {
        Ok(Bytes::new())
    }

    async fn handle_call(
        &self,
        state: &mut Bytes,
        bytes: u32,
        reply_to: ReplyTo<u64>,
        _: &mut KeyContext<Self>,
    ) {
        if bytes > 0 {
            *state = Bytes::from(vec![7; bytes as usize]);
        }
        reply_to.reply(state.len() as u64);
    }
}

/// What the other process is started with.
#[derive(Args, Clone)]
pub struct FarOptions {
    #[arg(long)]
    certificates: PathBuf,
    /// Have so many quiet keys, alone, and say what they took.
    #[arg(long)]
    quiet_keys: Option<u64>,
}

/// Runs the hidden command.
pub fn run_far(options: FarOptions, say: fn(&str)) -> Result<(), Error> {
    tokio::runtime::Runtime::new()?.block_on(async {
        if let Some(keys) = options.quiet_keys {
            return memory::have(keys, say).await;
        }
        let certificates = options.certificates;
        let node = fleet::describe("far", "127.0.0.1:0", &[], &certificates)
            .start()
            .await?;
        node.serve(Echo).await?;
        node.serve_keyed(KeyedEcho).await?;
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let echo_address = listener.local_addr()?;
        tokio::spawn(async move {
            // Ends with the process, or with the listener.
            let _ = echo::serve(listener, &certificates, "far").await;
        });
        say(&format!("ready {} {echo_address}", node.address()));
        let mut lines = BufReader::new(tokio::io::stdin()).lines();
        while let Some(line) = lines.next_line().await? {
            if line == "shelf" {
                node.serve_keyed_with(KeyedOptions::new(), Shelf).await?;
                say("served");
            }
        }
        Ok(())
    })
}
