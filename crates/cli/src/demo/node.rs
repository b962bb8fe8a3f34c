//! One node process of the demonstration: `dispatch demo-node`, started by `dispatch demo`.

use std::convert::Infallible;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use keydispatch::{Node, StartError};

use super::certificates::{self, CLUSTER};
use super::uploader::Uploader;
use super::witness::Witness;
use crate::output::say;

/// Starts the only line that a node process prints: its address, or why there is none.
pub(crate) const READY: &str = "ready ";
/// See [`READY`].
pub(crate) const FAILED: &str = "failed ";

/// A node of the demonstration, until its standard input closes
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Its name
    #[arg(long)]
    pub(crate) name: String,
    /// Where the certificates are
    #[arg(long)]
    pub(crate) directory: PathBuf,
    /// Another node
    #[arg(long = "seed")]
    pub(crate) seeds: Vec<String>,
    /// Say on standard error what the node does
    #[arg(long)]
    pub(crate) verbose: bool,
}

type Error = Box<dyn std::error::Error + Send + Sync>;

pub(crate) fn run(arguments: &Arguments) -> ExitCode {
    end_with_parent(&arguments.directory);
    super::log(arguments.verbose);
    let served = tokio::runtime::Runtime::new()
        .map_err(Error::from)
        .and_then(|runtime| runtime.block_on(serve(arguments)));
    match served {
        Ok(never) => match never {},
        Err(error) => {
            // Where nobody listens the process ends anyway.
            let _ = say(format_args!("{FAILED}{error}"));
            ExitCode::FAILURE
        }
    }
}

async fn serve(arguments: &Arguments) -> Result<Infallible, Error> {
    let node = describe(&arguments.name, &arguments.directory, &arguments.seeds).await?;
    node.serve(Witness::start(node.registry())?).await?;
    node.serve(Uploader::default()).await?;
    say(format_args!("{READY}{}", node.address().as_str()))?;
    Err(format!("the node has stopped: {:?}", node.stopped().await).into())
}

/// A member of the demonstration's cluster.
pub(crate) async fn describe(
    name: &str,
    directory: &Path,
    seeds: &[String],
) -> Result<Node, StartError> {
    Node::builder(name)
        .cluster(CLUSTER)
        .bind("127.0.0.1:0")
        .seeds(seeds)
        .tls(certificates::files(directory, name))
        .start()
        .await
}

/// Whoever started this process holds the other end of its standard input and never writes to it: it closes when the
/// parent ends, in whatever way. A thread of its own reads it, so that nothing that the node does can hold it up.
fn end_with_parent(directory: &Path) {
    let directory = directory.to_owned();
    std::thread::spawn(move || {
        let mut sink = [0; 64];
        let mut stdin = std::io::stdin().lock();
        loop {
            match stdin.read(&mut sink) {
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Ok(0) | Err(_) => break,
                Ok(_) => {}
            }
        }
        certificates::remove(&directory);
        std::process::exit(0);
    });
}
