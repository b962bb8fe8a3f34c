//! What certificates say: the cluster as a DNS name, the node as a URI.

use std::fmt::Write as _;
use std::time::{Duration, SystemTime};

use keydispatch_core::admission::NodeNames;
use keydispatch_core::{ClusterName, NodeName};
use rustls::crypto::ring;
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{CertificateRevocationList, FromDer, X509Certificate};

/// What every cluster's DNS name ends in; `.internal` is reserved for private use, and these names are never looked up.
const CLUSTER_SUFFIX: &str = "dispatch.internal";

/// What every node's URI begins with.
pub(super) const NODE_PREFIX: &str = "dispatch://node/";

/// Longest DNS name (RFC 1035).
const MAX_DNS_BYTES: usize = 253;

/// Longest label of a DNS name (RFC 1035).
const MAX_LABEL_BYTES: usize = 63;

/// Longest cluster name that is spelled out in hexadecimal; longer ones are hashed, as a DNS name has no room.
const MAX_HEX_NAME_BYTES: usize = 96;

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

pub(super) fn sha256(bytes: &[u8]) -> Vec<u8> {
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
pub(super) fn decode_node(encoded: &str) -> Option<NodeName> {
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

/// Why a certificate, or a list, does not say what it has to.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ContentsError {
    /// It is not encoded as one.
    #[error("{cause}")]
    Encoding {
        /// What the parser said.
        cause: String,
    },
    #[error("there is no certificate")]
    NoCertificate,
    #[error("{uri:?} holds no node name")]
    NoNodeName { uri: String },
    #[error("it has no URI that begins with {NODE_PREFIX}")]
    NoNode,
}

impl ContentsError {
    fn encoded(error: impl ToString) -> Self {
        ContentsError::Encoding {
            cause: error.to_string(),
        }
    }
}

/// From when to when something holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Validity {
    pub(super) begins: SystemTime,
    pub(super) ends: SystemTime,
}

impl Validity {
    fn of(certificate: &X509Certificate<'_>) -> Self {
        let time = |seconds: i64| {
            SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
        };
        let validity = certificate.validity();
        Validity {
            begins: time(validity.not_before.timestamp()),
            ends: time(validity.not_after.timestamp()),
        }
    }

    /// Of the certificate of a chain that ends first: an intermediate that is over is as bad as a certificate.
    pub(super) fn of_chain(chain: &[CertificateDer<'_>]) -> Result<Self, ContentsError> {
        let mut first: Option<Validity> = None;
        for certificate in chain {
            let validity = Validity::of(&parse(certificate)?);
            if first.is_none_or(|first| validity.ends < first.ends) {
                first = Some(validity);
            }
        }
        first.ok_or(ContentsError::NoCertificate)
    }
}

/// What a certificate says, apart from its signature.
#[derive(Debug)]
pub(super) struct Contents {
    pub(super) dns_names: Vec<String>,
    pub(super) nodes: Result<NodeNames, ContentsError>,
    pub(super) not_before: String,
    pub(super) not_after: String,
}

fn parse<'a>(certificate: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, ContentsError> {
    X509Certificate::from_der(certificate)
        .map(|(_, certificate)| certificate)
        .map_err(ContentsError::encoded)
}

/// The subject of a certificate, as it is encoded and as people read it.
pub(super) fn subject(
    certificate: &CertificateDer<'_>,
) -> Result<(Vec<u8>, String), ContentsError> {
    let certificate = parse(certificate)?;
    let subject = certificate.subject();
    Ok((subject.as_raw().to_vec(), subject.to_string()))
}

/// What a revocation list says of its issuer.
pub(super) struct ListContents {
    pub(super) issuer: Vec<u8>,
    pub(super) issuer_name: String,
}

impl ListContents {
    pub(super) fn read(list: &CertificateRevocationListDer<'_>) -> Result<Self, ContentsError> {
        let (_, list) =
            CertificateRevocationList::from_der(list).map_err(ContentsError::encoded)?;
        Ok(ListContents {
            issuer: list.issuer().as_raw().to_vec(),
            issuer_name: list.issuer().to_string(),
        })
    }
}

impl Contents {
    /// Whether it names that cluster itself.
    ///
    /// Rule: a cluster is named in full. A wildcard (`*.dispatch.internal`), which the verifier takes for every name below
    /// it, would pass for clusters that nobody thought of when it was issued.
    pub(super) fn names(&self, cluster: &ClusterName) -> bool {
        let expected = cluster_dns_name(cluster);
        let mut names = self.dns_names.iter();
        names.any(|name| name.eq_ignore_ascii_case(&expected))
    }

    pub(super) fn read(certificate: &CertificateDer<'_>) -> Result<Self, ContentsError> {
        let certificate = parse(certificate)?;
        let mut dns_names = Vec::new();
        let mut any = false;
        let mut exact = Vec::new();
        let names = certificate
            .subject_alternative_name()
            .map_err(ContentsError::encoded)?;
        for name in names.iter().flat_map(|names| &names.value.general_names) {
            match name {
                GeneralName::DNSName(name) => dns_names.push((*name).to_owned()),
                GeneralName::URI(uri) => match uri.strip_prefix(NODE_PREFIX) {
                    Some("*") => any = true,
                    Some(encoded) => match decode_node(encoded) {
                        Some(name) => exact.push(name),
                        None => {
                            return Err(ContentsError::NoNodeName {
                                uri: (*uri).to_owned(),
                            });
                        }
                    },
                    None => {}
                },
                _ => {}
            }
        }
        let nodes = match (any, exact.is_empty()) {
            (true, _) => Ok(NodeNames::Any),
            (false, false) => Ok(NodeNames::Exact(exact)),
            (false, true) => Err(ContentsError::NoNode),
        };
        let validity = certificate.validity();
        Ok(Contents {
            dns_names,
            nodes,
            not_before: validity.not_before.to_string(),
            not_after: validity.not_after.to_string(),
        })
    }
}
