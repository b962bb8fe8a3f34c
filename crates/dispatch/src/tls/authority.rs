//! A small certificate authority: what `dispatch cert` writes, and what tests throw away.

use std::fmt::Write as _;
use std::io;
use std::path::Path;
use std::time::{Duration, SystemTime};

use keydispatch_core::{ClusterName, NameError, NodeName};
use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, PublicKeyData, RevokedCertParams, SanType, SerialNumber,
};

use crate::tls::{cluster_dns_name, node_uri};

const DAY: Duration = Duration::from_secs(24 * 3600);

/// How long an authority lasts by default.
pub const AUTHORITY_LIFETIME: Duration = DAY.saturating_mul(10 * 365);

/// How long a node's certificate lasts by default.
pub const NODE_LIFETIME: Duration = DAY.saturating_mul(365);

/// How long before its making a certificate is valid: clocks differ.
const BACKDATE: Duration = Duration::from_secs(3600);

/// Why a certificate could not be made.
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum AuthorityError {
    /// The cluster's or the node's name is none.
    #[error(transparent)]
    Name(#[from] NameError),
    /// The authority's certificate or key is unusable, or generating one failed.
    #[error("the certificate cannot be made: {0}")]
    Certificate(#[from] rcgen::Error),
}

keydispatch_core::debug_as_display!(AuthorityError);

/// The certificate authority of one cluster.
///
/// ```
/// # fn main() -> Result<(), keydispatch::testkit::AuthorityError> {
/// use keydispatch::testkit::Authority;
/// let authority = Authority::new("files")?;
/// let node = authority.issue("a")?;
/// assert!(authority.ca_pem().starts_with("-----BEGIN CERTIFICATE-----"));
/// assert!(node.key_pem.contains("PRIVATE KEY"));
/// # Ok(()) }
/// ```
pub struct Authority {
    cluster: ClusterName,
    certificate_pem: String,
    issuer: Issuer<'static, KeyPair>,
    node_lifetime: Duration,
}

/// A certificate that is revoked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Revoked {
    /// Its serial number, big-endian.
    pub serial: Vec<u8>,
    /// Since when.
    pub since: SystemTime,
}

/// A node's certificate and its private key, both PEM.
#[derive(Clone)]
pub struct Issued {
    /// The certificate.
    pub cert_pem: String,
    /// The private key.
    pub key_pem: String,
}

impl Issued {
    /// Writes both to files, the key for its owner alone.
    pub fn write(&self, certificate: &Path, key: &Path) -> io::Result<()> {
        let mut options = std::fs::OpenOptions::new();
        options.write(true).create(true).truncate(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        io::Write::write_all(&mut options.open(key)?, self.key_pem.as_bytes())?;
        std::fs::write(certificate, &self.cert_pem)
    }

    /// What a revocation list says of it, from now on; none where it is no certificate.
    pub fn revoked(&self) -> Option<Revoked> {
        let (_, pem) = x509_parser::pem::parse_x509_pem(self.cert_pem.as_bytes()).ok()?;
        Some(Revoked {
            serial: pem.parse_x509().ok()?.serial.to_bytes_be(),
            since: SystemTime::now(),
        })
    }
}

impl std::fmt::Debug for Issued {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Issued")
            .field("cert_pem", &self.cert_pem)
            .finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority")
            .field("cluster", &self.cluster)
            .finish_non_exhaustive()
    }
}

impl Authority {
    /// A new authority with a new key, which lasts for [`AUTHORITY_LIFETIME`] and issues for [`NODE_LIFETIME`].
    pub fn new(cluster: &str) -> Result<Self, AuthorityError> {
        Authority::with_lifetimes(cluster, AUTHORITY_LIFETIME, NODE_LIFETIME)
    }

    /// A new authority that lasts, and issues certificates that last, for so long from now.
    pub fn with_lifetimes(
        cluster: &str,
        authority: Duration,
        nodes: Duration,
    ) -> Result<Self, AuthorityError> {
        let cluster = ClusterName::try_new(cluster)?;
        let now = SystemTime::now();
        let mut params = params(
            &format!("Dispatch CA of {cluster}"),
            now - BACKDATE,
            until(now, authority),
        );
        // Says whose authority it is, in full: the subject is cut short. `dispatch cert` reads it.
        params.subject_alt_names = vec![SanType::DnsName(Ia5String::try_from(cluster_dns_name(
            &cluster,
        ))?)];
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        // No two authorities share a name, though they are of one cluster: a revocation list is found by it.
        let mut of_key = String::new();
        for byte in key.der_bytes().iter().rev().take(8) {
            write!(of_key, "{byte:02x}").expect("a string takes everything");
        }
        let name = &mut params.distinguished_name;
        name.push(DnType::OrganizationalUnitName, of_key);
        let certificate_pem = params.self_signed(&key)?.pem();
        Ok(Authority {
            cluster,
            certificate_pem,
            issuer: Issuer::new(params, key),
            node_lifetime: nodes,
        })
    }

    /// The authority that [`ca_pem`](Self::ca_pem) and [`ca_key_pem`](Self::ca_key_pem) were kept of.
    pub fn from_pem(cluster: &str, ca_pem: &str, ca_key_pem: &str) -> Result<Self, AuthorityError> {
        Ok(Authority {
            cluster: ClusterName::try_new(cluster)?,
            certificate_pem: ca_pem.to_owned(),
            issuer: Issuer::from_ca_cert_pem(ca_pem, KeyPair::from_pem(ca_key_pem)?)?,
            node_lifetime: NODE_LIFETIME,
        })
    }

    /// The authority's certificate, which every node needs.
    pub fn ca_pem(&self) -> String {
        self.certificate_pem.clone()
    }

    /// The authority's private key: whoever has it can make nodes of any name.
    pub fn ca_key_pem(&self) -> String {
        self.issuer.key().serialize_pem()
    }

    /// A revocation list, PEM, of all who are revoked: it takes the place of the one before, whose number is smaller.
    pub fn revocation_list(
        &self,
        number: u64,
        revoked: impl IntoIterator<Item = Revoked>,
    ) -> Result<String, AuthorityError> {
        let now = SystemTime::now();
        let revoked = revoked.into_iter().map(|revoked| RevokedCertParams {
            serial_number: SerialNumber::from(revoked.serial),
            revocation_time: revoked.since.into(),
            reason_code: None,
            invalidity_date: None,
        });
        let params = CertificateRevocationListParams {
            this_update: (now - BACKDATE).into(),
            // It holds until there is another one: nodes do not drop a list because it is old.
            next_update: (now + AUTHORITY_LIFETIME).into(),
            crl_number: SerialNumber::from(number),
            issuing_distribution_point: None,
            revoked_certs: revoked.collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        Ok(params.signed_by(&self.issuer)?.pem()?)
    }

    /// A certificate for the node of that name; for `*`, one that can take any name.
    pub fn issue(&self, node: &str) -> Result<Issued, AuthorityError> {
        let now = SystemTime::now();
        self.issue_with(node, now - BACKDATE, until(now, self.node_lifetime))
    }

    /// A certificate that is valid in that time only, in whole seconds.
    pub fn issue_with(
        &self,
        node: &str,
        not_before: SystemTime,
        not_after: SystemTime,
    ) -> Result<Issued, AuthorityError> {
        let name = match node {
            "*" => None,
            name => Some(NodeName::try_new(name)?),
        };
        let uri = node_uri(name.as_ref().map(NodeName::as_str));
        let mut params = params(node, not_before, not_after);
        params.subject_alt_names = vec![
            SanType::DnsName(Ia5String::try_from(cluster_dns_name(&self.cluster))?),
            SanType::URI(Ia5String::try_from(uri)?),
        ];
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        Ok(Issued {
            cert_pem: params.signed_by(&key, &self.issuer)?.pem(),
            key_pem: key.serialize_pem(),
        })
    }
}

/// The end of a time that begins now. Rule: a lifetime that a user gives saturates.
fn until(now: SystemTime, lifetime: Duration) -> SystemTime {
    now.checked_add(lifetime).unwrap_or_else(latest)
}

/// The last second of the year 9999, the latest that a certificate can say (RFC 5280).
fn latest() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(253_402_300_799)
}

fn params(subject: &str, not_before: SystemTime, not_after: SystemTime) -> CertificateParams {
    let mut name = DistinguishedName::new();
    // A common name has at most 64 characters (RFC 5280); it is for people only.
    let subject: String = subject.chars().take(64).collect();
    name.push(DnType::CommonName, subject);
    let mut params = CertificateParams::default();
    params.distinguished_name = name;
    let in_bounds = |time: SystemTime| time.clamp(SystemTime::UNIX_EPOCH, latest());
    params.not_before = in_bounds(not_before).into();
    params.not_after = in_bounds(not_after).into();
    params
}
