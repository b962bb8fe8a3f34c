//! One node process of the demonstration: `dispatch demo-node`, started by `dispatch demo`.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use keydispatch::{Node, StartError};
use tokio::sync::Notify;

use super::certificates::{self, CLUSTER};
use super::keeper::Keeper;
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
    /// Keep files by name, and leave when told to
    #[arg(long)]
    pub(crate) keyed: bool,
    /// Say on standard error what the node does
    #[arg(long)]
    pub(crate) verbose: bool,
}

type Error = Box<dyn std::error::Error + Send + Sync>;

pub(crate) fn run(arguments: &Arguments) -> ExitCode {
    let told_to_leave = Arc::new(Notify::new());
    end_with_parent(&arguments.directory, Arc::clone(&told_to_leave));
    crate::log::of_demo(arguments.verbose);
    let served = tokio::runtime::Runtime::new()
        .map_err(Error::from)
        .and_then(|runtime| runtime.block_on(serve(arguments, &told_to_leave)));
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Where nobody listens the process ends anyway.
            let _ = say(format_args!("{FAILED}{error}"));
            ExitCode::FAILURE
        }
    }
}

/// Returns once the node has left, which only one that keeps files by name does.
async fn serve(arguments: &Arguments, told_to_leave: &Notify) -> Result<(), Error> {
    let node = describe(&arguments.name, &arguments.directory, &arguments.seeds).await?;
    if arguments.keyed {
        node.serve_keyed(Keeper).await?;
        say(format_args!("{READY}{}", node.address().as_str()))?;
        return tokio::select! {
            () = told_to_leave.notified() => Ok(node.clone().leave().await?),
            cause = node.stopped() => Err(format!("the node has stopped: {cause:?}").into()),
        };
    }
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

/// Whoever started this process holds the other end of its standard input, and writes to it only to let it leave: it closes when
/// the parent ends, in whatever way. A thread of its own reads it, so that nothing that the node does can hold it up.
fn end_with_parent(directory: &Path, told_to_leave: Arc<Notify>) {
    let directory = directory.to_owned();
    std::thread::spawn(move || {
        let mut sink = [0; 64];
        let mut stdin = std::io::stdin().lock();
        loop {
            match stdin.read(&mut sink) {
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Ok(0) | Err(_) => break,
                Ok(_) => told_to_leave.notify_one(),
            }
        }
        certificates::remove(&directory);
        std::process::exit(0);
    });
}
