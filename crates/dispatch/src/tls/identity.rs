//! One reading of a node's files, checked, and TLS 1.3 by it.

use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use keydispatch_core::ClusterName;
use keydispatch_core::hello::NodeNames;
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

use super::names::Contents;
use super::{TlsError, TlsFiles};

/// One reading of the files.
#[derive(Debug)]
pub(crate) struct Identity {
    pub(crate) client: Arc<ClientConfig>,
    pub(crate) server: Arc<ServerConfig>,
    pub(super) nodes: NodeNames,
    pub(super) expires: SystemTime,
    pub(super) not_after: String,
}

impl Identity {
    pub(super) fn load(
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
