//! A throw-away authority in a directory that goes when the demonstration does.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use keydispatch::TlsFiles;
use keydispatch::testkit::Authority;
use tempfile::TempDir;

use super::error::DemoError;

/// The cluster of every demonstration; each has an authority of its own, so that they never meet.
pub(crate) const CLUSTER: &str = "demo";

/// The node processes.
pub(crate) const NODES: [&str; 3] = ["a", "b", "c"];

/// The demonstration itself: a member that serves nothing.
pub(crate) const CLIENT: &str = "client";

/// Certificates for all, in a directory that only this user can enter. The authority's key is never written.
pub(crate) fn make() -> Result<TempDir, DemoError> {
    let directory = tempfile::Builder::new()
        .prefix("dispatch-demo-")
        .tempdir()
        .map_err(DemoError::Directory)?;
    let authority = Authority::new(CLUSTER)?;
    let write = |name: &str, text: &str| write(&directory.path().join(name), text);
    write("ca.pem", &authority.ca_pem()).map_err(DemoError::Directory)?;
    for name in NODES.into_iter().chain([CLIENT]) {
        let issued = authority.issue(name)?;
        write(&format!("{name}.pem"), &issued.cert_pem).map_err(DemoError::Directory)?;
        write(&format!("{name}.key"), &issued.key_pem).map_err(DemoError::Directory)?;
    }
    Ok(directory)
}

/// The files of one node.
pub(crate) fn files(directory: &Path, node: &str) -> TlsFiles {
    TlsFiles::new(
        directory.join("ca.pem"),
        directory.join(format!("{node}.pem")),
        directory.join(format!("{node}.key")),
    )
}

/// Removes what [`make`] made, and the directory if nothing else is in it: for a process that outlived its parent.
pub(crate) fn remove(directory: &Path) {
    // What is gone already was removed by another of them.
    let _ = fs::remove_file(directory.join("ca.pem"));
    for name in NODES.into_iter().chain([CLIENT]) {
        let _ = fs::remove_file(directory.join(format!("{name}.pem")));
        let _ = fs::remove_file(directory.join(format!("{name}.key")));
    }
    let _ = fs::remove_dir(directory);
}

fn write(path: &Path, text: &str) -> io::Result<()> {
    fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?
        .write_all(text.as_bytes())
}
