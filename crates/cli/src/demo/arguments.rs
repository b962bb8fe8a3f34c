//! What the demonstration is asked for.

use std::path::PathBuf;

/// Uploads real files to a cluster of three processes, kills one, and reads every file back
///
/// Starts three node processes on this machine, encrypted, each serving an uploader that keeps files in memory. Every file
/// goes to its first two owners, by its path; then one process is killed with SIGKILL, and the second owners of its files
/// answer for it. Exits with 0 only if nothing was lost and nothing moved that should have stayed.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// A directory, whose .gitignore is honoured, or a file
    #[arg(value_name = "PATH", default_value = ".")]
    pub(super) path: PathBuf,
    /// Print the figures as one JSON object, as the last line
    #[arg(long)]
    pub(super) json: bool,
    /// Leave out files beyond so many MiB in all: every file is kept in memory, twice
    #[arg(long, value_name = "MIB", default_value_t = 1_024)]
    pub(super) max_total: u64,
    /// Keep each file once, as the state of its name, which goes along when nodes are replaced: each leaves and comes back, and
    /// then one is killed
    #[arg(long)]
    pub(super) keyed: bool,
    /// Say on standard error what the nodes do
    #[arg(long)]
    pub(super) verbose: bool,
}
