//! Certificates: what they say about clusters and nodes, the files they come from, and TLS 1.3 by them.

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwap;
use keydispatch_core::hello::Credentials;
use keydispatch_core::{ClusterName, NodeName};
use rustls::CertificateError;
use rustls_pki_types::{CertificateDer, ServerName};
use webpki::EndEntityCert;

mod identity;
mod names;

pub(crate) use identity::Identity;
use names::Contents;
pub use names::{cluster_dns_name, node_uri};

/// How often the files are looked at, at most.
const RELOAD_INTERVAL: Duration = Duration::from_secs(1);

/// How long before its end a certificate is warned about.
const EXPIRY_NOTICE: Duration = Duration::from_secs(14 * 24 * 3600);

/// How often it is warned about.
const EXPIRY_WARNING_INTERVAL: Duration = Duration::from_secs(24 * 3600);

/// Bytes that TLS holds back while the socket takes no more.
pub(crate) const TLS_BUFFER_BYTES: usize = 128 * 1024;

/// The files of a node's identity, all PEM. They are read again when they change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    ca: PathBuf,
    cert: PathBuf,
    key: PathBuf,
}

impl TlsFiles {
    /// The certificates of the authorities that peers may be issued by, this node's certificate (followed by its
    /// intermediates, if any), and its private key.
    pub fn new(ca: impl Into<PathBuf>, cert: impl Into<PathBuf>, key: impl Into<PathBuf>) -> Self {
        TlsFiles {
            ca: ca.into(),
            cert: cert.into(),
            key: key.into(),
        }
    }

    fn stamp(&self) -> Stamp {
        [&self.ca, &self.cert, &self.key].map(|path| {
            let metadata = std::fs::metadata(path).ok()?;
            Some((metadata.modified().ok()?, metadata.len()))
        })
    }
}

/// When the files were written and how long they are.
type Stamp = [Option<(SystemTime, u64)>; 3];

/// Why certificates cannot be used.
#[derive(Debug, thiserror::Error)]
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
    /// Something else is wrong with a certificate.
    #[error("the certificate {} cannot be used: {why}", path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
}

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
    watch: Mutex<Watch>,
}

#[derive(Debug)]
struct Watch {
    looked: Instant,
    loaded: Stamp,
    /// The files as they were when reading them failed last.
    failed: Option<Stamp>,
    warned_of_expiry: Option<Instant>,
}

impl Tls {
    /// Reads the files and checks that peers of the same cluster will accept them.
    pub(crate) fn load(files: &TlsFiles, cluster: &ClusterName) -> Result<Arc<Self>, TlsError> {
        let server_name = ServerName::try_from(cluster_dns_name(cluster))
            .expect("a cluster's name is encoded as a DNS name");
        // Before reading: what changes meanwhile is noticed later.
        let loaded = files.stamp();
        let identity = Identity::load(files, cluster, &server_name)?;
        let tls = Tls {
            files: files.clone(),
            cluster: cluster.clone(),
            server_name,
            current: ArcSwap::from_pointee(identity),
            watch: Mutex::new(Watch {
                looked: Instant::now(),
                loaded,
                failed: None,
                warned_of_expiry: None,
            }),
        };
        tls.warn_of_expiry(&mut tls.watch.lock().unwrap_or_else(PoisonError::into_inner));
        Ok(Arc::new(tls))
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

    /// The identity to shake hands with now: the files are read again if they changed.
    pub(crate) fn identity(&self) -> Arc<Identity> {
        let mut watch = self.watch.lock().unwrap_or_else(PoisonError::into_inner);
        if watch.looked.elapsed() >= RELOAD_INTERVAL {
            watch.looked = Instant::now();
            self.reload(&mut watch);
            self.warn_of_expiry(&mut watch);
        }
        self.current.load_full()
    }

    fn reload(&self, watch: &mut Watch) {
        let stamp = self.files.stamp();
        if stamp == watch.loaded {
            return;
        }
        match Identity::load(&self.files, &self.cluster, &self.server_name) {
            Ok(identity) => {
                self.current.store(Arc::new(identity));
                watch.loaded = stamp;
                watch.failed = None;
                watch.warned_of_expiry = None;
                tracing::info!(cert = %self.files.cert.display(), "read the changed certificates");
            }
            // Files are replaced one after the other, so this may pass.
            Err(error) => {
                if watch.failed != Some(stamp) {
                    watch.failed = Some(stamp);
                    tracing::warn!(%error, "keeping the old certificates: the changed ones are no use");
                }
            }
        }
    }

    fn warn_of_expiry(&self, watch: &mut Watch) {
        let identity = self.current.load();
        let is_close = SystemTime::now() + EXPIRY_NOTICE > identity.expires;
        let is_due = watch
            .warned_of_expiry
            .is_none_or(|warned| warned.elapsed() >= EXPIRY_WARNING_INTERVAL);
        if is_close && is_due {
            watch.warned_of_expiry = Some(Instant::now());
            tracing::warn!(
                cert = %self.files.cert.display(),
                expires = %identity.not_after,
                "this node's certificate ends soon: replace the file, no restart is needed"
            );
        }
    }

    /// What the certificate of a peer proves, whose chain the handshake has verified.
    pub(crate) fn credentials(
        &self,
        chain: Option<&[CertificateDer<'_>]>,
    ) -> Result<Credentials, String> {
        let Some(certificate) = chain.and_then(<[_]>::first) else {
            return Err("it presents no certificate".to_owned());
        };
        let contents = Contents::read(certificate)
            .map_err(|why| format!("its certificate cannot be read: {why}"))?;
        EndEntityCert::try_from(certificate)
            .and_then(|certificate| certificate.verify_is_valid_for_subject_name(&self.server_name))
            .map_err(|_| other_cluster(&self.cluster, &contents.dns_names))?;
        let nodes = contents
            .nodes
            .map_err(|why| format!("its certificate names no node: {why}"))?;
        Ok(Credentials::Certificate {
            cluster: self.cluster.clone(),
            nodes,
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
