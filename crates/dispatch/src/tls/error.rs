//! Why certificates cannot be used, and what a failed handshake says.

use std::io;
use std::path::PathBuf;

use keydispatch_core::{ClusterName, NodeName};
use rustls::CertificateError;

use super::names::{ContentsError, cluster_dns_name, node_uri};

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

/// Why a peer is not let in.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PeerError {
    /// The handshake took too long.
    #[error("it did not complete the TLS handshake in time")]
    TooSlow,
    /// The handshake failed: what is known of it, for operators.
    #[error("{0}")]
    Handshake(String),
    #[error("it presents no certificate")]
    NoCertificate,
    #[error("its certificate cannot be read: {0}")]
    Unreadable(ContentsError),
    #[error("its certificate names no node: {0}")]
    NoNode(ContentsError),
    #[error("{}", other_cluster(cluster, names))]
    OtherCluster {
        /// This node's cluster.
        cluster: ClusterName,
        /// The names in the certificate.
        names: Vec<String>,
    },
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

pub(super) fn explain(cluster: &ClusterName, error: &rustls::Error) -> String {
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
