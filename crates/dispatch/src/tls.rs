//! Certificates: what they say about clusters and nodes, the files they come from, and TLS 1.3 by them.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use arc_swap::ArcSwap;
use keydispatch_core::admission::{Credentials, NodeNames};
use keydispatch_core::{ClusterName, NodeName};
use rustls::CertificateError;
use rustls_pki_types::{CertificateDer, ServerName};
use webpki::EndEntityCert;

mod files;
mod identity;
mod names;
mod standing;
mod watch;

pub use files::TlsFiles;
use files::{OwnFiles, TrustFiles};
pub(crate) use identity::{Identity, Role};
use identity::{Judgement, Own, Trust};
use names::Contents;
pub use names::{cluster_dns_name, node_uri};
use standing::Peers;
pub(crate) use standing::Standing;
use watch::Watch;
pub(crate) use watch::{LOOK_INTERVAL, watch};

/// Bytes that TLS holds back while the socket takes no more.
pub(crate) const TLS_BUFFER_BYTES: usize = 128 * 1024;

/// Why certificates cannot be used.
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// A file is missing or unreadable.
    #[error("{} cannot be read: {source}; check the path and its permissions", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file holds something else.
    #[error("{} holds no {expected}{}; it takes PEM, as `dispatch cert` writes it", path.display(), reason(why))]
    Content {
        /// The file.
        path: PathBuf,
        /// What it should hold.
        expected: &'static str,
        /// What the parser said, if anything.
        why: Option<String>,
    },
    /// The key belongs to another certificate.
    #[error("the key {} does not belong to the certificate {}: they are issued as a pair", key.display(), cert.display())]
    KeyMismatch {
        /// The certificate's file.
        cert: PathBuf,
        /// The key's file.
        key: PathBuf,
    },
    /// The certificate is of another cluster.
    #[error(
        "the certificate {} is not of the cluster {cluster}: it names {}, and would have to name {}; issue one for this cluster",
        path.display(),
        if names.is_empty() { "none".to_owned() } else { names.join(", ") },
        cluster_dns_name(cluster)
    )]
    Cluster {
        /// The certificate's file.
        path: PathBuf,
        /// This node's cluster.
        cluster: ClusterName,
        /// The DNS names in the certificate.
        names: Vec<String>,
    },
    /// The certificate's time is over.
    #[error("the certificate {} expired on {since}: issue a new one", path.display())]
    Expired {
        /// The certificate's file.
        path: PathBuf,
        /// Its last second.
        since: String,
    },
    /// The certificate's time has not begun.
    #[error("the certificate {} is not valid before {from}: check this machine's clock", path.display())]
    NotYetValid {
        /// The certificate's file.
        path: PathBuf,
        /// Its first second.
        from: String,
    },
    /// Another authority issued the certificate.
    #[error(
        "the certificate {} was not issued by an authority in {}: peers would refuse it",
        cert.display(),
        ca.display()
    )]
    Issuer {
        /// The certificate's file.
        cert: PathBuf,
        /// The authorities' file.
        ca: PathBuf,
    },
    /// The certificate names no node, so that no peer would let this node be anyone.
    #[error(
        "the certificate {} names no node: {why}; it takes a URI such as {}",
        path.display(),
        node_uri(Some("a"))
    )]
    Node {
        /// The certificate's file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// The certificate speaks for other nodes than this one.
    #[error(
        "the certificate {} does not speak for the node {node}: issue one for that name, or take the name that it has",
        path.display()
    )]
    OtherNode {
        /// The certificate's file.
        path: PathBuf,
        /// This node's name.
        node: NodeName,
    },
    /// The certificate was revoked by the authority that issued it.
    #[error("the certificate {} is revoked by the list {}: issue a new one", cert.display(), crl.display())]
    Revoked {
        /// The certificate's file.
        cert: PathBuf,
        /// The list's file.
        crl: PathBuf,
    },
    /// The revocation lists cannot be used.
    #[error("the revocation list {} cannot be used: {why}", path.display())]
    RevocationList {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// Others than the owner of the key's file can write it, and so take this node's place.
    #[error("the private key {} can be written by others (mode {mode:o}): chmod 600 {}", path.display(), path.display())]
    KeyMode {
        /// The key's file.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// Something else is wrong with a certificate.
    #[error("the certificate {} cannot be used: {why}", path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
}

keydispatch_core::debug_as_display!(TlsError);

fn reason(why: &Option<String>) -> String {
    why.as_ref()
        .map(|why| format!(": {why}"))
        .unwrap_or_default()
}

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
    peers: Arc<Peers>,
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
    ) -> Result<Admitted, String> {
        let chain = chain.unwrap_or_default();
        let Some(certificate) = chain.first() else {
            return Err("it presents no certificate".to_owned());
        };
        let contents = Contents::read(certificate)
            .map_err(|why| format!("its certificate cannot be read: {why}"))?;
        EndEntityCert::try_from(certificate)
            .and_then(|certificate| certificate.verify_is_valid_for_subject_name(&self.server_name))
            .map_err(|_| other_cluster(&self.cluster, &contents.dns_names))?;
        if !contents.names(&self.cluster) {
            return Err(other_cluster(&self.cluster, &contents.dns_names));
        }
        let nodes = contents
            .nodes
            .map_err(|why| format!("its certificate names no node: {why}"))?;
        let who = match &nodes {
            NodeNames::Any => "a node of any name".to_owned(),
            NodeNames::Exact(names) => {
                let names: Vec<&str> = names.iter().map(NodeName::as_str).collect();
                names.join(", ")
            }
        };
        let standing = self.peers.register(identity, chain, role, who)?;
        // From here on it is judged with the others. What was read during the handshake is not overlooked.
        let current = self.current.load();
        if current.number != identity.number {
            current
                .verify(chain, role, &self.server_name, SystemTime::now())
                .map_err(|error| explain(&self.cluster, &error))?;
        }
        Ok(Admitted {
            credentials: Credentials::Certificate {
                cluster: self.cluster.clone(),
                nodes,
            },
            standing,
        })
    }

    /// What a failed handshake says about the peer, for operators.
    pub(crate) fn explain(&self, error: &io::Error) -> String {
        match tls_error(error) {
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
        }
    }
}

/// The TLS error inside an error of a stream.
pub(crate) fn tls_error(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref()?.downcast_ref::<rustls::Error>()
}

fn other_cluster(cluster: &ClusterName, names: &[String]) -> String {
    format!(
        "its certificate is not of the cluster {cluster}: it names {}, not {}",
        if names.is_empty() {
            "none".to_owned()
        } else {
            names.join(", ")
        },
        cluster_dns_name(cluster)
    )
}

fn explain(cluster: &ClusterName, error: &rustls::Error) -> String {
    use rustls::Error;
    match error {
        Error::InvalidCertificate(
            CertificateError::Expired | CertificateError::ExpiredContext { .. },
        ) => "its certificate has expired: issue a new one".to_owned(),
        Error::InvalidCertificate(
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. },
        ) => "its certificate is not valid yet: compare the clocks".to_owned(),
        Error::InvalidCertificate(
            CertificateError::UnknownIssuer | CertificateError::BadSignature,
        ) => "its certificate was issued by an authority that is not in this node's CA file"
            .to_owned(),
        Error::InvalidCertificate(CertificateError::Revoked) => {
            "its certificate is revoked: issue a new one, with a new key".to_owned()
        }
        Error::InvalidCertificate(CertificateError::UnknownRevocationStatus) => {
            "its certificate was issued by an authority that has no list in this node's CRL file"
                .to_owned()
        }
        Error::InvalidCertificate(CertificateError::NotValidForNameContext {
            presented, ..
        }) => other_cluster(cluster, presented),
        Error::InvalidCertificate(CertificateError::NotValidForName) => other_cluster(cluster, &[]),
        Error::NoCertificatesPresented => "it presents no certificate".to_owned(),
        Error::InvalidMessage(_) => {
            "it does not speak TLS: it may run with plaintext, this node requires certificates"
                .to_owned()
        }
        Error::AlertReceived(alert) => {
            format!("it refused this node's certificate or its TLS ({alert:?}); its log says more")
        }
        error => format!("the TLS handshake failed: {error}"),
    }
}

#[cfg(test)]
mod tests;
