//! The certificates of a fleet, and a node that uses them.

use std::path::Path;

use keydispatch::{Node, NodeBuilder, TlsFiles};

use crate::Error;

/// The cluster of every fleet; fleets have authorities of their own, and so never meet.
pub const CLUSTER: &str = "fleet";

/// The certificates of a fleet, in a directory that is removed with it.
pub struct Certificates {
    directory: tempfile::TempDir,
}

impl Certificates {
    /// An authority, and a certificate for each of those names.
    pub fn make(names: &[&str]) -> Result<Self, Error> {
        let directory = tempfile::tempdir()?;
        let authority = keydispatch::testkit::Authority::new(CLUSTER)?;
        std::fs::write(directory.path().join("ca.pem"), authority.ca_pem())?;
        for name in names {
            let path = |extension| directory.path().join(format!("{name}.{extension}"));
            authority.issue(name)?.write(&path("pem"), &path("key"))?;
        }
        Ok(Certificates { directory })
    }

    /// Where they are.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// The files of one node.
    pub fn of(&self, name: &str) -> TlsFiles {
        files(self.path(), name)
    }
}

fn files(directory: &Path, name: &str) -> TlsFiles {
    TlsFiles::new(
        directory.join("ca.pem"),
        directory.join(format!("{name}.pem")),
        directory.join(format!("{name}.key")),
    )
}

/// A node as every fleet runs it.
pub fn describe(name: &str, bind: &str, seeds: &[String], certificates: &Path) -> NodeBuilder {
    Node::builder(name)
        .cluster(CLUSTER)
        .bind(bind)
        .seeds(seeds)
        .tls(files(certificates, name))
}
