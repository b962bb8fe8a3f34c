//! Why nothing could be checked or written.

use std::path::PathBuf;

/// Why nothing could be checked or written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("{path}: {source}")]
    File {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("cannot write to standard output: {0}")]
    Output(std::io::Error),
    #[error("`cargo metadata` failed: {0}")]
    Cargo(String),
    #[error("what `cargo metadata` says is not understood: {0}")]
    Metadata(#[from] serde_json::Error),
    #[error("{path} is not understood: {source}")]
    Toml {
        path: PathBuf,
        source: toml::de::Error,
    },
    #[error("the licence of {package} is no SPDX expression: {why}")]
    Licence { package: String, why: String },
}
