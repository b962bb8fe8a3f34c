//! The authority in the directory: made once, and checked before it is used again.

use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use keydispatch::ClusterName;
use keydispatch::testkit::Authority;
use keydispatch::tls::cluster_dns_name;
use rcgen::{KeyPair, PublicKeyData};
use x509_parser::extensions::GeneralName;
use x509_parser::pem::parse_x509_pem;

use super::error::CertError;
use super::files;

pub(super) const DAY: Duration = Duration::from_secs(24 * 3_600);

/// The authority, and whether it was made just now. It lasts at least as long as what it is to issue.
pub(super) fn make_or_reuse(
    out: &Path,
    cluster: &ClusterName,
    lifetime: Duration,
) -> Result<(Authority, bool), CertError> {
    if let Some(authority) = reuse(out, cluster, lifetime)? {
        return Ok((authority, false));
    }
    let authority = Authority::new(cluster.as_str())?;
    files::write_secret(&out.join("ca.key"), &authority.ca_key_pem(), false)?;
    files::write_public(&out.join("ca.pem"), &authority.ca_pem(), false)?;
    Ok((authority, true))
}

/// The authority that is there; none where there is nothing of one.
pub(super) fn reuse(
    out: &Path,
    cluster: &ClusterName,
    lifetime: Duration,
) -> Result<Option<Authority>, CertError> {
    let certificate_path = out.join("ca.pem");
    let key_path = out.join("ca.key");
    let certificate = files::read_if_there(&certificate_path)?;
    let key = files::read_if_there(&key_path)?;
    match (certificate, key) {
        (None, None) => Ok(None),
        (Some(_), None) => Err(CertError::HalfAuthority {
            there: certificate_path,
            missing: "ca.key",
        }),
        (None, Some(_)) => Err(CertError::HalfAuthority {
            there: key_path,
            missing: "ca.pem",
        }),
        (Some(certificate), Some(key)) => {
            check_cluster_and_time(&certificate_path, &certificate, cluster, lifetime)?;
            check_pair(&certificate_path, &certificate, &key_path, &key)?;
            let authority = Authority::from_pem(cluster.as_str(), &certificate, &key)?;
            Ok(Some(authority))
        }
    }
}

fn unreadable(path: &Path, why: impl ToString) -> CertError {
    CertError::Unreadable {
        path: path.to_owned(),
        why: why.to_string(),
    }
}

fn check_cluster_and_time(
    path: &Path,
    pem: &str,
    cluster: &ClusterName,
    lifetime: Duration,
) -> Result<(), CertError> {
    let (_, pem) = parse_x509_pem(pem.as_bytes()).map_err(|error| unreadable(path, error))?;
    let certificate = pem.parse_x509().map_err(|error| unreadable(path, error))?;
    let expected = cluster_dns_name(cluster);
    let names = certificate
        .subject_alternative_name()
        .map_err(|error| unreadable(path, error))?;
    let is_of_cluster = names.is_some_and(|names| {
        let mut names = names.value.general_names.iter();
        names.any(|name| matches!(name, GeneralName::DNSName(name) if *name == expected))
    });
    if !is_of_cluster {
        return Err(CertError::OtherCluster {
            path: path.to_owned(),
            cluster: cluster.clone(),
        });
    }
    let ends = u64::try_from(certificate.validity().not_after.timestamp()).unwrap_or(0);
    let left = (UNIX_EPOCH + Duration::from_secs(ends))
        .duration_since(SystemTime::now())
        .unwrap_or_default();
    if left < lifetime {
        return Err(CertError::AuthorityEnds {
            path: path.to_owned(),
            left: left.as_secs() / DAY.as_secs(),
        });
    }
    Ok(())
}

fn check_pair(
    certificate_path: &Path,
    certificate: &str,
    key_path: &Path,
    key: &str,
) -> Result<(), CertError> {
    let (_, pem) = parse_x509_pem(certificate.as_bytes())
        .map_err(|error| unreadable(certificate_path, error))?;
    let certificate = pem
        .parse_x509()
        .map_err(|error| unreadable(certificate_path, error))?;
    let key = KeyPair::from_pem(key).map_err(|error| unreadable(key_path, error))?;
    if certificate.public_key().raw == key.subject_public_key_info() {
        return Ok(());
    }
    Err(CertError::OtherKey {
        key: key_path.to_owned(),
        certificate: certificate_path.to_owned(),
    })
}
