//! Certificates: what they say about clusters and nodes, the files they come from, and TLS 1.3 by them.

use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwap;
use keydispatch_core::hello::{Credentials, NodeNames};
use keydispatch_core::{ClusterName, NodeName};
use rustls::client::danger::ServerCertVerifier;
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::{CryptoProvider, ring};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::version::TLS13;
use rustls::{CertificateError, ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use webpki::EndEntityCert;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

/// What every cluster's DNS name ends in; `.internal` is reserved for private use, and these names are never looked up.
const CLUSTER_SUFFIX: &str = "dispatch.internal";

/// What every node's URI begins with.
const NODE_PREFIX: &str = "dispatch://node/";

/// Longest DNS name (RFC 1035).
const MAX_DNS_BYTES: usize = 253;

/// Longest label of a DNS name (RFC 1035).
const MAX_LABEL_BYTES: usize = 63;

/// Longest cluster name that is spelled out in hexadecimal; longer ones are hashed, as a DNS name has no room.
const MAX_HEX_NAME_BYTES: usize = 96;

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

/// The DNS name by which a certificate says of which cluster it is; no two clusters share one.
///
/// `files` becomes `files.dispatch.internal`. A name with characters that DNS does not have is spelled in hexadecimal
/// after `x-`, one of more than 96 bytes as its SHA-256 after `h-`.
pub fn cluster_dns_name(cluster: &ClusterName) -> String {
    let name = cluster.as_str();
    let is_label = |label: &str| {
        (1..=MAX_LABEL_BYTES).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label
                .bytes()
                .all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-'))
    };
    let is_plain = name.len() + 1 + CLUSTER_SUFFIX.len() <= MAX_DNS_BYTES
        && name.split('.').all(is_label)
        && !name.starts_with("x-")
        && !name.starts_with("h-");
    if is_plain {
        return format!("{name}.{CLUSTER_SUFFIX}");
    }
    let (mut encoded, bytes) = if name.len() <= MAX_HEX_NAME_BYTES {
        ("x-".to_owned(), name.as_bytes().to_vec())
    } else {
        ("h-".to_owned(), sha256(name.as_bytes()))
    };
    // 30 bytes fill 60 characters of a label.
    for (index, label) in bytes.chunks(30).enumerate() {
        if index > 0 {
            encoded.push('.');
        }
        for byte in label {
            write!(encoded, "{byte:02x}").expect("a string takes everything");
        }
    }
    format!("{encoded}.{CLUSTER_SUFFIX}")
}

fn sha256(bytes: &[u8]) -> Vec<u8> {
    let suite = ring::cipher_suite::TLS13_AES_128_GCM_SHA256
        .tls13()
        .expect("it is a suite of TLS 1.3");
    suite.common.hash_provider.hash(bytes).as_ref().to_vec()
}

/// The URI by which a certificate says which node it speaks for; none for any node of the cluster.
///
/// `a` becomes `dispatch://node/a`; characters that URIs reserve are percent-encoded. Any is `dispatch://node/*`, which
/// no name encodes to. Whoever holds such a certificate can take any name of the cluster.
pub fn node_uri(name: Option<&str>) -> String {
    let mut uri = NODE_PREFIX.to_owned();
    let Some(name) = name else {
        uri.push('*');
        return uri;
    };
    for byte in name.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                uri.push(char::from(byte));
            }
            _ => write!(uri, "%{byte:02X}").expect("a string takes everything"),
        }
    }
    uri
}

/// The name after the prefix; none where it is not how [`node_uri`] writes one.
fn decode_node(encoded: &str) -> Option<NodeName> {
    let mut bytes = Vec::with_capacity(encoded.len());
    let mut rest = encoded.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let high = char::from(rest.next()?).to_digit(16)?;
            let low = char::from(rest.next()?).to_digit(16)?;
            bytes.push(u8::try_from(high * 16 + low).ok()?);
        } else {
            bytes.push(byte);
        }
    }
    NodeName::try_new(String::from_utf8(bytes).ok()?).ok()
}

/// What a certificate says, apart from its signature.
struct Contents {
    dns_names: Vec<String>,
    nodes: Result<NodeNames, String>,
    not_before: String,
    not_after: String,
    expires: SystemTime,
}

impl Contents {
    fn read(certificate: &CertificateDer<'_>) -> Result<Self, String> {
        let (_, certificate) =
            X509Certificate::from_der(certificate).map_err(|error| error.to_string())?;
        let mut dns_names = Vec::new();
        let mut any = false;
        let mut exact = Vec::new();
        let names = certificate
            .subject_alternative_name()
            .map_err(|error| error.to_string())?;
        for name in names.iter().flat_map(|names| &names.value.general_names) {
            match name {
                GeneralName::DNSName(name) => dns_names.push((*name).to_owned()),
                GeneralName::URI(uri) => match uri.strip_prefix(NODE_PREFIX) {
                    Some("*") => any = true,
                    Some(encoded) => match decode_node(encoded) {
                        Some(name) => exact.push(name),
                        None => return Err(format!("{uri:?} holds no node name")),
                    },
                    None => {}
                },
                _ => {}
            }
        }
        let nodes = match (any, exact.is_empty()) {
            (true, _) => Ok(NodeNames::Any),
            (false, false) => Ok(NodeNames::Exact(exact)),
            (false, true) => Err(format!("it has no URI that begins with {NODE_PREFIX}")),
        };
        let validity = certificate.validity();
        let expires = u64::try_from(validity.not_after.timestamp()).unwrap_or(0);
        Ok(Contents {
            dns_names,
            nodes,
            not_before: validity.not_before.to_string(),
            not_after: validity.not_after.to_string(),
            expires: SystemTime::UNIX_EPOCH + Duration::from_secs(expires),
        })
    }
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

/// One reading of the files.
#[derive(Debug)]
pub(crate) struct Identity {
    pub(crate) client: Arc<ClientConfig>,
    pub(crate) server: Arc<ServerConfig>,
    nodes: NodeNames,
    expires: SystemTime,
    not_after: String,
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

impl Identity {
    fn load(
        files: &TlsFiles,
        cluster: &ClusterName,
        server_name: &ServerName<'static>,
    ) -> Result<Self, TlsError> {
        // Explicitly, so that nothing depends on what else in this process chose a provider.
        let provider = Arc::new(ring::default_provider());
        let roots = roots(&files.ca)?;
        let chain = certificates(&files.cert)?;
        let key = private_key(&files.key)?;
        let unusable = |error: &dyn std::fmt::Display| TlsError::Unusable {
            path: files.cert.clone(),
            why: error.to_string(),
        };
        CertifiedKey::from_der(chain.clone(), key.clone_key(), &provider).map_err(|error| {
            match error {
                rustls::Error::InconsistentKeys(_) => TlsError::KeyMismatch {
                    cert: files.cert.clone(),
                    key: files.key.clone(),
                },
                rustls::Error::InvalidCertificate(_) => unusable(&error),
                error => TlsError::Content {
                    path: files.key.clone(),
                    expected: "usable private key",
                    why: Some(error.to_string()),
                },
            }
        })?;
        let verifiers = Verifiers::new(roots, &provider).map_err(|why| TlsError::Unusable {
            path: files.ca.clone(),
            why,
        })?;
        let contents = Contents::read(&chain[0]).map_err(|why| unusable(&why))?;
        verifiers
            .check(&chain, server_name)
            .map_err(|error| own_error(files, cluster, &contents, error))?;
        let nodes = contents.nodes.map_err(|why| TlsError::Node {
            path: files.cert.clone(),
            why,
        })?;
        let (client, server) = verifiers
            .configs(provider, chain, key)
            .map_err(|error| unusable(&error))?;
        Ok(Identity {
            client: Arc::new(client),
            server: Arc::new(server),
            nodes,
            expires: contents.expires,
            not_after: contents.not_after,
        })
    }
}

/// The stock verifiers, against the authorities of the `ca` file.
struct Verifiers {
    of_servers: Arc<WebPkiServerVerifier>,
    of_clients: Arc<dyn ClientCertVerifier>,
}

impl Verifiers {
    fn new(roots: RootCertStore, provider: &Arc<CryptoProvider>) -> Result<Self, String> {
        let roots = Arc::new(roots);
        let provider = Arc::clone(provider);
        Ok(Verifiers {
            of_servers: WebPkiServerVerifier::builder_with_provider(
                Arc::clone(&roots),
                Arc::clone(&provider),
            )
            .build()
            .map_err(|error| error.to_string())?,
            of_clients: WebPkiClientVerifier::builder_with_provider(roots, provider)
                .build()
                .map_err(|error| error.to_string())?,
        })
    }

    /// Whether peers will accept this certificate, as a server and as a client.
    fn check(
        &self,
        chain: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
    ) -> Result<(), rustls::Error> {
        let now = UnixTime::now();
        let (certificate, intermediates) = chain
            .split_first()
            .ok_or(rustls::Error::NoCertificatesPresented)?;
        self.of_servers
            .verify_server_cert(certificate, intermediates, server_name, &[], now)?;
        self.of_clients
            .verify_client_cert(certificate, intermediates, now)?;
        Ok(())
    }

    fn configs(
        self,
        provider: Arc<CryptoProvider>,
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
    ) -> Result<(ClientConfig, ServerConfig), rustls::Error> {
        let mut client = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&TLS13])?
            .with_webpki_verifier(self.of_servers)
            .with_client_auth_cert(chain.clone(), key.clone_key())?;
        let mut server = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])?
            .with_client_cert_verifier(self.of_clients)
            .with_single_cert(chain, key)?;
        // Every connection is checked against the certificates of today: nothing is resumed.
        client.resumption = Resumption::disabled();
        server.session_storage = Arc::new(NoServerSessionStorage {});
        server.send_tls13_tickets = 0;
        Ok((client, server))
    }
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    std::fs::read(path).map_err(|source| TlsError::Read {
        path: path.to_owned(),
        source,
    })
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let content = |why: Option<String>| TlsError::Content {
        path: path.to_owned(),
        expected: "certificate",
        why,
    };
    let chain = CertificateDer::pem_slice_iter(&read(path)?)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| content(Some(error.to_string())))?;
    if chain.is_empty() {
        return Err(content(None));
    }
    Ok(chain)
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_slice(&read(path)?).map_err(|error| TlsError::Content {
        path: path.to_owned(),
        expected: "private key",
        why: match error {
            rustls_pki_types::pem::Error::NoItemsFound => None,
            error => Some(error.to_string()),
        },
    })
}

fn roots(path: &Path) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots.add(certificate).map_err(|error| TlsError::Unusable {
            path: path.to_owned(),
            why: error.to_string(),
        })?;
    }
    Ok(roots)
}

fn own_error(
    files: &TlsFiles,
    cluster: &ClusterName,
    contents: &Contents,
    error: rustls::Error,
) -> TlsError {
    let path = files.cert.clone();
    match error {
        rustls::Error::InvalidCertificate(
            CertificateError::Expired | CertificateError::ExpiredContext { .. },
        ) => TlsError::Expired {
            path,
            since: contents.not_after.clone(),
        },
        rustls::Error::InvalidCertificate(
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. },
        ) => TlsError::NotYetValid {
            path,
            from: contents.not_before.clone(),
        },
        rustls::Error::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        ) => TlsError::Cluster {
            path,
            cluster: cluster.clone(),
            names: contents.dns_names.clone(),
        },
        rustls::Error::InvalidCertificate(
            CertificateError::UnknownIssuer | CertificateError::BadSignature,
        ) => TlsError::Issuer {
            cert: path,
            ca: files.ca.clone(),
        },
        error => TlsError::Unusable {
            path,
            why: error.to_string(),
        },
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
