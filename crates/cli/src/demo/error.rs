//! Why the demonstration could not be given.

use std::fmt::Display;
use std::io;

use keydispatch::StartError;
use keydispatch::testkit::AuthorityError;

use super::files;

/// Why the demonstration could not be given.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DemoError {
    #[error(transparent)]
    Files(#[from] files::FilesError),
    #[error("cannot make the directory for the certificates: {0}")]
    Directory(io::Error),
    #[error(transparent)]
    Certificates(#[from] AuthorityError),
    #[error("cannot start the runtime: {0}")]
    Runtime(io::Error),
    #[error("the node process {name} did not start: {why}")]
    NodeProcess { name: &'static str, why: String },
    #[error("this process did not join the cluster: {0}")]
    Join(#[from] StartError),
    #[error("the demonstration broke off: {0}")]
    Unexpected(String),
    #[error("cannot write to standard output: {0}")]
    Output(#[from] io::Error),
}

impl DemoError {
    pub(super) fn unexpected(why: impl Display) -> DemoError {
        DemoError::Unexpected(why.to_string())
    }
}
