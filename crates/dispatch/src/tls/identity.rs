//! One reading of a node's files, checked, and TLS 1.3 by it.

use std::collections::HashSet;
use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use keydispatch_core::ClusterName;
use keydispatch_core::admission::NodeNames;
use rustls::client::danger::ServerCertVerifier;
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::{CryptoProvider, ring};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, VerifierBuilderError, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::version::TLS13;
use rustls::{CertificateError, ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{
    CertificateDer, CertificateRevocationListDer, PrivateKeyDer, ServerName, UnixTime,
};

use super::error::TlsError;
use super::files::{Digest, OwnFiles, TlsFiles, TrustFiles};
use super::names::{Contents, ListContents, Validity};

/// Which part the peer had in the handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Role {
    /// It was dialled.
    Server,
    /// It dialled.
    Client,
}

/// Whom to trust: the authorities, and what they have revoked.
#[derive(Debug)]
pub(super) struct Trust {
    roots: Arc<RootCertStore>,
    crls: Vec<CertificateRevocationListDer<'static>>,
    /// Authorities that have no list beside those that have one: whom they issued for is refused.
    pub(super) without_list: Vec<String>,
    pub(super) writable: Vec<PathBuf>,
    pub(super) digest: Digest,
}

impl Trust {
    pub(super) fn parse(files: &TlsFiles, read: TrustFiles) -> Result<Self, TlsError> {
        let authorities = certificates(&files.ca, &read.ca)?;
        let mut roots = RootCertStore::empty();
        for certificate in &authorities {
            roots
                .add(certificate.clone())
                .map_err(|error| TlsError::Unusable {
                    path: files.ca.clone(),
                    why: error.to_string(),
                })?;
        }
        let mut crls = Vec::new();
        let mut without_list = Vec::new();
        if let (Some(path), Some(text)) = (&files.crl, &read.crl) {
            crls = revocation_lists(path, text)?;
            without_list = without_a_list(path, &authorities, &crls)?;
        }
        Ok(Trust {
            roots: Arc::new(roots),
            crls,
            without_list,
            writable: read.writable,
            digest: read.digest,
        })
    }
}

/// Who this node is: its certificate with its intermediates, and its key.
#[derive(Debug)]
pub(super) struct Own {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    contents: Contents,
    /// When the first certificate of the chain ends, and how long that one lasts.
    pub(super) validity: Validity,
    pub(super) open_mode: Option<u32>,
    pub(super) digest: Digest,
}

impl Own {
    pub(super) fn parse(files: &TlsFiles, read: OwnFiles) -> Result<Self, TlsError> {
        let chain = certificates(&files.cert, &read.cert)?;
        let key = private_key(&files.key, &read.key)?;
        let unusable = |why: &dyn Display| TlsError::Unusable {
            path: files.cert.clone(),
            why: why.to_string(),
        };
        CertifiedKey::from_der(chain.clone(), key.clone_key(), &ring::default_provider()).map_err(
            |error| match error {
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
            },
        )?;
        let contents = Contents::read(&chain[0]).map_err(|why| unusable(&why))?;
        Ok(Own {
            validity: Validity::of_chain(&chain).map_err(|why| unusable(&why))?,
            contents,
            chain,
            key,
            open_mode: read.open_mode,
            digest: read.digest,
        })
    }
}

/// What is held against this node's own certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Judgement {
    /// Peers will accept it.
    Strict,
    /// It is in use already, and its time may be over, or it may be revoked.
    InUse,
}

/// One reading of the files.
#[derive(Debug)]
pub(crate) struct Identity {
    pub(crate) client: Arc<ClientConfig>,
    pub(crate) server: Arc<ServerConfig>,
    pub(super) trust: Arc<Trust>,
    pub(super) own: Arc<Own>,
    pub(super) nodes: NodeNames,
    verifiers: Verifiers,
    /// Tells readings apart.
    pub(super) number: u64,
}

impl Identity {
    pub(super) fn new(
        files: &TlsFiles,
        cluster: &ClusterName,
        server_name: &ServerName<'static>,
        (trust, own): (Arc<Trust>, Arc<Own>),
        judgement: Judgement,
        number: u64,
    ) -> Result<Self, TlsError> {
        // Explicitly, so that nothing depends on what else in this process chose a provider.
        let provider = Arc::new(ring::default_provider());
        let verifiers = Verifiers::new(&trust, &provider).map_err(|error| match error {
            VerifierBuilderError::InvalidCrl(_) => TlsError::RevocationList {
                path: files.crl.clone().unwrap_or_default(),
                why: error.to_string(),
            },
            error => TlsError::Unusable {
                path: files.ca.clone(),
                why: error.to_string(),
            },
        })?;
        if let Err(error) = verifiers.check(&own.chain, server_name) {
            let error = own_error(files, cluster, &own.contents, error);
            let passes = judgement == Judgement::InUse
                && matches!(
                    error,
                    TlsError::Expired { .. }
                        | TlsError::NotYetValid { .. }
                        | TlsError::Revoked { .. }
                );
            if !passes {
                return Err(error);
            }
        }
        if !own.contents.names(cluster) {
            return Err(TlsError::Cluster {
                path: files.cert.clone(),
                cluster: cluster.clone(),
                names: own.contents.dns_names.clone(),
            });
        }
        let nodes = own.contents.nodes.clone().map_err(|why| TlsError::Node {
            path: files.cert.clone(),
            why: why.to_string(),
        })?;
        let (client, server) =
            verifiers
                .configs(provider, &own)
                .map_err(|error| TlsError::Unusable {
                    path: files.cert.clone(),
                    why: error.to_string(),
                })?;
        Ok(Identity {
            client: Arc::new(client),
            server: Arc::new(server),
            trust,
            own,
            nodes,
            verifiers,
            number,
        })
    }

    /// Whether a peer that presented these certificates would be accepted now.
    pub(super) fn verify(
        &self,
        chain: &[CertificateDer<'_>],
        role: Role,
        server_name: &ServerName<'_>,
        now: SystemTime,
    ) -> Result<(), rustls::Error> {
        let now = now
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        self.verifiers
            .verify(chain, role, server_name, UnixTime::since_unix_epoch(now))
    }
}

/// The stock verifiers, against the authorities of the `ca` file and the lists of the `crl` file. Nothing of what they
/// check is turned off: an authority without a list, where there are lists, vouches for nobody.
#[derive(Debug)]
struct Verifiers {
    of_servers: Arc<WebPkiServerVerifier>,
    of_clients: Arc<dyn ClientCertVerifier>,
}

impl Verifiers {
    fn new(trust: &Trust, provider: &Arc<CryptoProvider>) -> Result<Self, VerifierBuilderError> {
        let (roots, provider) = (|| Arc::clone(&trust.roots), || Arc::clone(provider));
        Ok(Verifiers {
            of_servers: WebPkiServerVerifier::builder_with_provider(roots(), provider())
                .with_crls(trust.crls.clone())
                .build()?,
            of_clients: WebPkiClientVerifier::builder_with_provider(roots(), provider())
                .with_crls(trust.crls.clone())
                .build()?,
        })
    }

    fn verify(
        &self,
        chain: &[CertificateDer<'_>],
        role: Role,
        server_name: &ServerName<'_>,
        now: UnixTime,
    ) -> Result<(), rustls::Error> {
        let (certificate, intermediates) = chain
            .split_first()
            .ok_or(rustls::Error::NoCertificatesPresented)?;
        match role {
            Role::Server => {
                let verifier = &self.of_servers;
                verifier.verify_server_cert(certificate, intermediates, server_name, &[], now)?;
            }
            Role::Client => {
                let verifier = &self.of_clients;
                verifier.verify_client_cert(certificate, intermediates, now)?;
            }
        }
        Ok(())
    }

    /// Whether peers will accept this certificate, as a server and as a client.
    fn check(
        &self,
        chain: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
    ) -> Result<(), rustls::Error> {
        let now = UnixTime::now();
        self.verify(chain, Role::Server, server_name, now)?;
        self.verify(chain, Role::Client, server_name, now)
    }

    fn configs(
        &self,
        provider: Arc<CryptoProvider>,
        own: &Own,
    ) -> Result<(ClientConfig, ServerConfig), rustls::Error> {
        let mut client = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&TLS13])?
            .with_webpki_verifier(Arc::clone(&self.of_servers))
            .with_client_auth_cert(own.chain.clone(), own.key.clone_key())?;
        let mut server = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])?
            .with_client_cert_verifier(Arc::clone(&self.of_clients))
            .with_single_cert(own.chain.clone(), own.key.clone_key())?;
        // Every connection is checked against the certificates of today: nothing is resumed.
        client.resumption = Resumption::disabled();
        server.session_storage = Arc::new(NoServerSessionStorage {});
        server.send_tls13_tickets = 0;
        Ok((client, server))
    }
}

/// All of one kind that a file holds, at least one.
fn items<T: PemObject>(
    path: &Path,
    text: &[u8],
    expected: &'static str,
) -> Result<Vec<T>, TlsError> {
    let content = |why: Option<String>| TlsError::Content {
        path: path.to_owned(),
        expected,
        why,
    };
    let found = T::pem_slice_iter(text)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| content(Some(error.to_string())))?;
    if found.is_empty() {
        return Err(content(None));
    }
    Ok(found)
}

fn certificates(path: &Path, text: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    items(path, text, "certificate")
}

fn revocation_lists(
    path: &Path,
    text: &[u8],
) -> Result<Vec<CertificateRevocationListDer<'static>>, TlsError> {
    items(path, text, "revocation list")
}

fn private_key(path: &Path, text: &[u8]) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_slice(text).map_err(|error| TlsError::Content {
        path: path.to_owned(),
        expected: "private key",
        why: match error {
            rustls_pki_types::pem::Error::NoItemsFound => None,
            error => Some(error.to_string()),
        },
    })
}

/// The authorities that none of the lists is of.
///
/// Rule: one list of each issuer. The verifier takes the first list that bears an issuer's name, so that a second one
/// would be overlooked, with whom it revokes.
fn without_a_list(
    path: &Path,
    authorities: &[CertificateDer<'static>],
    crls: &[CertificateRevocationListDer<'static>],
) -> Result<Vec<String>, TlsError> {
    let unusable = |why: &dyn Display| TlsError::RevocationList {
        path: path.to_owned(),
        why: why.to_string(),
    };
    let mut issuers = HashSet::new();
    for crl in crls {
        let list = ListContents::read(crl).map_err(|why| unusable(&why))?;
        let name = list.issuer_name;
        if !issuers.insert(list.issuer) {
            return Err(unusable(&format!(
                "it holds two lists of the authority {name:?}, and only one could be followed"
            )));
        }
    }
    let mut without = Vec::new();
    for authority in authorities {
        let (subject, name) = super::names::subject(authority).map_err(|why| unusable(&why))?;
        if !issuers.contains(&subject) {
            without.push(name);
        }
    }
    Ok(without)
}

fn own_error(
    files: &TlsFiles,
    cluster: &ClusterName,
    contents: &Contents,
    error: rustls::Error,
) -> TlsError {
    let path = files.cert.clone();
    let list = || files.crl.clone().unwrap_or_default();
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
        rustls::Error::InvalidCertificate(CertificateError::Revoked) => TlsError::Revoked {
            cert: path,
            crl: list(),
        },
        rustls::Error::InvalidCertificate(CertificateError::UnknownRevocationStatus) => {
            TlsError::RevocationList {
                path: list(),
                why: format!(
                    "it holds no list of the authority that issued {}; `dispatch cert revoke` writes one",
                    path.display()
                ),
            }
        }
        rustls::Error::InvalidCertRevocationList(_) => TlsError::RevocationList {
            path: list(),
            why: error.to_string(),
        },
        error => TlsError::Unusable {
            path,
            why: error.to_string(),
        },
    }
}
