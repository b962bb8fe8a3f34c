//! Why no certificates were made.

use std::io;
use std::path::PathBuf;

use keydispatch::testkit::AuthorityError;
use keydispatch::{ClusterName, NameError};

/// Why no certificates were made. Files that were written before the error are whole.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CertError {
    #[error(transparent)]
    Name(#[from] NameError),
    #[error("the node name {name:?} makes no file name: {why}")]
    NoFileName { name: String, why: &'static str },
    #[error("the node {name:?} is named twice: name it once")]
    Twice { name: String },
    #[error("{path} exists: name other nodes, or replace it with --force")]
    Exists { path: PathBuf },
    #[error(
        "{there} is there and {missing} is not: copy it here from where this authority was made, or make another \
         authority with another --out"
    )]
    HalfAuthority {
        there: PathBuf,
        missing: &'static str,
    },
    #[error(
        "{path} is the authority of another cluster than {cluster:?}: say which with --cluster, or make another \
         authority with another --out"
    )]
    OtherCluster { path: PathBuf, cluster: ClusterName },
    #[error("there is no authority in {directory}: say where it is with --out")]
    NoAuthority { directory: PathBuf },
    #[error(
        "{path} is not there: revoke a certificate that is elsewhere by its number, with --serial"
    )]
    NoCertificate { path: PathBuf },
    #[error("{path} is not of the authority {ca}: only who issued a certificate can revoke it")]
    OtherIssuer { path: PathBuf, ca: PathBuf },
    #[error("{path} cannot be read as it should be: {why}")]
    Unreadable { path: PathBuf, why: String },
    #[error("{key} is not the key of {certificate}: put the pair that belongs together there")]
    OtherKey { key: PathBuf, certificate: PathBuf },
    #[error(
        "the authority {path} lasts for {left} more days only: ask for fewer with --days, or make another authority with \
         another --out"
    )]
    AuthorityEnds { path: PathBuf, left: u64 },
    #[error(transparent)]
    Make(#[from] AuthorityError),
    #[error("{path}: {source}")]
    File { path: PathBuf, source: io::Error },
    #[error("cannot write to standard output: {0}")]
    Output(#[from] io::Error),
}
