//! Keeps files in memory on several nodes; each file lives on the node that owns its name. In three terminals:
//!
//! ```text
//! cargo run -p keydispatch --example uploader -- a 7401
//! cargo run -p keydispatch --example uploader -- b 7402 127.0.0.1:7401
//! cargo run -p keydispatch --example uploader -- c 7403 127.0.0.1:7401
//! ```
//!
//! Then type `put NAME TEXT` or `get NAME` into any of them; end one with Ctrl-C, or kill it, and ask again. With
//! certificates (`dispatch cert --cluster files --out certs a b c`) the nodes talk encrypted: set `CERTS=certs`.
#![expect(clippy::print_stdout, reason = "an example")]

use std::collections::HashMap;
use std::process::ExitCode;

use keydispatch::{BoxError, Context, Node, Protocol, ReplyTo, Service, TlsFiles};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, BufReader};

struct Uploads;

impl Protocol for Uploads {
    const NAME: &'static str = "uploader";
    type Call = Download;
    type Reply = Option<String>;
    type Cast = Upload;
}

#[derive(Serialize, Deserialize)]
struct Upload {
    name: String,
    text: String,
}

#[derive(Serialize, Deserialize)]
struct Download {
    name: String,
}

#[derive(Default)]
struct Uploader(HashMap<String, String>);

impl Service for Uploader {
    type Protocol = Uploads;

    async fn handle_call(
        &mut self,
        call: Download,
        reply_to: ReplyTo<Option<String>>,
        _: &mut Context<Self>,
    ) {
        reply_to.reply(self.0.get(&call.name).cloned());
    }

    async fn handle_cast(&mut self, upload: Upload, _: &mut Context<Self>) {
        self.0.insert(upload.name, upload.text);
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
        return Err("usage: uploader NAME PORT [SEED…]".into());
    };
    let builder = Node::builder(name)
        .cluster("files")
        .bind(format!("127.0.0.1:{port}"))
        .seeds(seeds);
    let builder = match std::env::var("CERTS") {
        Ok(directory) => builder.tls(TlsFiles::new(
            format!("{directory}/ca.pem"),
            format!("{directory}/{name}.pem"),
            format!("{directory}/{name}.key"),
        )),
        Err(_) => builder.plaintext(),
    };
    let node = builder.start().await?;
    node.serve(Uploader::default()).await?;
    println!("{name} is up at {}", node.address());

    let uploaders = node.services::<Uploads>();
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    while let Some(line) = lines.next_line().await? {
        match line.splitn(3, ' ').collect::<Vec<_>>()[..] {
            ["put", name, text] => {
                let upload = Upload {
                    name: name.to_owned(),
                    text: text.to_owned(),
                };
                // The owner and whoever owns the file once the owner is gone.
                let sent = uploaders.multi_cast(name, 2, upload);
                println!("sent to {sent}");
            }
            ["get", name] => {
                let download = Download {
                    name: name.to_owned(),
                };
                let owner = uploaders.find(name)?;
                let found = uploaders.call(name, download).await?;
                println!("{} says {found:?}", owner.node());
            }
            _ => println!("put NAME TEXT, or get NAME"),
        }
    }
    node.leave().await?;
    Ok(())
}
