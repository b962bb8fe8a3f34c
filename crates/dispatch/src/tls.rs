//! Certificates: what they say about clusters and nodes, the files they come from, and TLS 1.3 by them.

use std::io;
use std::sync::Arc;
use std::time::SystemTime;

use arc_swap::ArcSwap;
use keydispatch_core::admission::{Credentials, NodeNames};
use keydispatch_core::{ClusterName, NodeName};
use rustls_pki_types::{CertificateDer, ServerName};
use webpki::EndEntityCert;

#[cfg(any(test, feature = "testkit-certificates"))]
pub(crate) mod authority;
mod error;
mod files;
mod identity;
mod looks;
mod names;
mod standing;
pub(crate) mod watch;

pub use error::TlsError;
use error::explain;
pub(crate) use error::{PeerError, tls_error};
pub use files::TlsFiles;
use files::{OwnFiles, TrustFiles};
pub(crate) use identity::{Identity, Role};
use identity::{Judgement, Own, Trust};
use looks::Watch;
use names::Contents;
pub use names::{cluster_dns_name, node_uri};
use standing::CertifiedPeers;
pub(crate) use standing::Standing;

/// Bytes that TLS holds back while the socket takes no more.
pub(crate) const TLS_BUFFER_BYTES: usize = 128 * 1024;

/// See [`crate::fuzzing`].
#[cfg(fuzzing)]
pub(crate) fn fuzz_contents(certificate: &CertificateDer<'_>) -> bool {
    Contents::read(certificate).is_ok()
}

/// A node's identity, as its files have it now, and what it takes to check a peer's.
#[derive(Debug)]
pub(crate) struct Tls {
    files: TlsFiles,
    cluster: ClusterName,
    server_name: ServerName<'static>,
    current: ArcSwap<Identity>,
    peers: Arc<CertifiedPeers>,
    /// Held while the files are looked at.
    watch: Arc<tokio::sync::Mutex<Watch>>,
}

/// What a handshake came to.
#[derive(Debug)]
pub(crate) struct Admitted {
    pub(crate) credentials: Credentials,
    pub(crate) standing: Standing,
}

impl Tls {
    /// Reads the files, and checks that peers of the same cluster will accept them. Blocks.
    pub(crate) fn load(files: &TlsFiles, cluster: &ClusterName) -> Result<Arc<Self>, TlsError> {
        let server_name = ServerName::try_from(cluster_dns_name(cluster))
            .expect("a cluster's name is encoded as a DNS name");
        let trust = Arc::new(Trust::parse(files, TrustFiles::read(files)?)?);
        let own = Arc::new(Own::parse(files, OwnFiles::read(files)?)?);
        let parts = (trust, own);
        let identity = Identity::new(files, cluster, &server_name, parts, Judgement::Strict, 0)?;
        let tls = Tls {
            files: files.clone(),
            cluster: cluster.clone(),
            server_name,
            current: ArcSwap::from_pointee(identity),
            peers: Arc::default(),
            watch: Arc::default(),
        };
        tls.warn_of_modes(None);
        if let Ok(mut watch) = tls.watch.try_lock() {
            tls.warn_of_expiry(&mut watch, SystemTime::now());
        }
        Ok(Arc::new(tls))
    }

    /// When this node's certificate ends, or one of its intermediates where that is sooner.
    pub(crate) fn not_after(&self) -> SystemTime {
        self.current.load().own.validity.ends
    }

    /// Whether the own certificate speaks for that node, which peers will ask too.
    pub(crate) fn check_node(&self, node: &NodeName) -> Result<(), TlsError> {
        let credentials = Credentials::Certificate {
            cluster: self.cluster.clone(),
            nodes: self.current.load().nodes.clone(),
        };
        if credentials.allow(&self.cluster, node) {
            return Ok(());
        }
        Err(TlsError::OtherNode {
            path: self.files.cert.clone(),
            node: node.clone(),
        })
    }

    /// The name that a dialled peer's certificate has to carry.
    pub(crate) fn server_name(&self) -> ServerName<'static> {
        self.server_name.clone()
    }

    /// What the certificate of a peer proves, whose chain the handshake has verified by that identity.
    pub(crate) fn admit(
        &self,
        identity: &Identity,
        chain: Option<&[CertificateDer<'_>]>,
        role: Role,
    ) -> Result<Admitted, PeerError> {
        let chain = chain.unwrap_or_default();
        let Some(certificate) = chain.first() else {
            return Err(PeerError::NoCertificate);
        };
        let contents = Contents::read(certificate).map_err(PeerError::Unreadable)?;
        EndEntityCert::try_from(certificate)
            .and_then(|certificate| certificate.verify_is_valid_for_subject_name(&self.server_name))
            .map_err(|_| self.of_other_cluster(&contents.dns_names))?;
        if !contents.names(&self.cluster) {
            return Err(self.of_other_cluster(&contents.dns_names));
        }
        let nodes = contents.nodes.map_err(PeerError::NoNode)?;
        let who = match &nodes {
            NodeNames::Any => "a node of any name".to_owned(),
            NodeNames::Exact(names) => {
                let names: Vec<&str> = names.iter().map(NodeName::as_str).collect();
                names.join(", ")
            }
        };
        let standing = self
            .peers
            .register(identity, chain, role, who)
            .map_err(PeerError::Unreadable)?;
        // From here on it is judged with the others. What was read during the handshake is not overlooked.
        let current = self.current.load();
        if current.number != identity.number {
            current
                .verify(chain, role, &self.server_name, SystemTime::now())
                .map_err(|error| PeerError::Handshake(explain(&self.cluster, &error)))?;
        }
        Ok(Admitted {
            credentials: Credentials::Certificate {
                cluster: self.cluster.clone(),
                nodes,
            },
            standing,
        })
    }

    fn of_other_cluster(&self, names: &[String]) -> PeerError {
        PeerError::OtherCluster {
            cluster: self.cluster.clone(),
            names: names.to_vec(),
        }
    }

    /// What a failed handshake says about the peer, for operators.
    pub(crate) fn explain(&self, error: &io::Error) -> PeerError {
        PeerError::Handshake(match tls_error(error) {
            Some(error) => explain(&self.cluster, error),
            None => match error.kind() {
                io::ErrorKind::UnexpectedEof
                | io::ErrorKind::ConnectionReset
                | io::ErrorKind::ConnectionAborted
                | io::ErrorKind::BrokenPipe => "it hung up during the TLS handshake: it may run \
                    without encryption (plaintext); its log says more"
                    .to_owned(),
                _ => format!("the TLS handshake failed: {error}"),
            },
        })
    }
}

#[cfg(test)]
mod tests;
