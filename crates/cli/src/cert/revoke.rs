//! `dispatch cert revoke`: the list of those certificates of an authority that are not to be accepted any more.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use keydispatch::ClusterName;
use keydispatch::testkit::Revoked;
use x509_parser::pem::parse_x509_pem;
use x509_parser::prelude::{CertificateRevocationList, FromDer, X509Certificate};

use super::error::CertError;
use super::names::{ANY, serial_text, stem};
use super::{authority, files};
use crate::output::say;

/// The file of the list, beside the authority.
const LIST: &str = "ca.crl";

/// A serial number has at most 20 bytes (RFC 5280).
const MAX_SERIAL_BYTES: usize = 20;

/// Revokes certificates that were issued here: writes ca.crl, which nodes read as `node.crl`
///
/// Give the names of nodes, whose NODE.pem is read here, or the serial numbers of certificates that were replaced since.
/// Without either the list is written as it is, at first one that revokes nobody.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The cluster's name, as in `pubsub.name`
    #[arg(long, default_value = "dispatch")]
    cluster: String,
    /// The directory of the authority
    #[arg(long, default_value = "certs", value_name = "DIRECTORY")]
    out: PathBuf,
    /// Revoke any.pem, too
    #[arg(long)]
    any: bool,
    /// The serial number of a certificate, in hexadecimal, with or without colons; may be given again
    #[arg(long, value_name = "HEX", value_parser = parse_serial)]
    serial: Vec<Serial>,
    /// The nodes' names
    #[arg(value_name = "NODE")]
    nodes: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Serial(Vec<u8>);

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode, CertError> {
    let cluster = ClusterName::try_new(&arguments.cluster)?;
    for name in &arguments.nodes {
        stem(name, arguments.any)?;
    }
    let out = &arguments.out;
    let authority =
        authority::reuse(out, &cluster, Duration::ZERO)?.ok_or_else(|| CertError::NoAuthority {
            directory: out.clone(),
        })?;
    let ca = out.join("ca.pem");
    let now = SystemTime::now();
    let list = out.join(LIST);
    let (number, mut revoked) = match files::read_if_there(&list)? {
        Some(text) => read_list(&list, &text, &ca)?,
        None => (0, Vec::new()),
    };
    let mut news = Vec::new();
    let any = arguments.any.then(|| ANY.to_owned());
    for name in arguments.nodes.iter().chain(&any) {
        let certificate = out.join(format!("{name}.pem"));
        let serial = read_serial(&certificate, &ca)?;
        news.push((serial, certificate.display().to_string()));
    }
    for Serial(serial) in &arguments.serial {
        news.push((serial.clone(), "a certificate".to_owned()));
    }
    for (serial, what) in news {
        let number = serial_text(&serial);
        if revoked.iter().any(|revoked| revoked.serial == serial) {
            say(format_args!(
                "{what} (serial number {number}) was revoked before"
            ))?;
            continue;
        }
        revoked.push(Revoked { serial, since: now });
        say(format_args!("revoked {what}, serial number {number}"))?;
    }
    let count = revoked.len();
    let text = authority.revocation_list(number + 1, revoked)?;
    files::write_public(&list, &text, true)?;
    say(format_args!(
        "made {}, which revokes {count}\n\n\
         copy it to every node, and say in the configuration there:\n\n  [node]\n  crl = \"{LIST}\"\n\n\
         nodes that have it already read the new one within 30 s, and close the links of those who are revoked",
        list.display()
    ))?;
    Ok(ExitCode::SUCCESS)
}

fn parse_serial(text: &str) -> Result<Serial, String> {
    let digits: Vec<char> = text.chars().filter(|digit| *digit != ':').collect();
    let mut bytes = Vec::new();
    // An odd number of digits lacks a zero in front.
    let (first, rest) = digits.split_at(digits.len() % 2);
    let pairs = std::iter::once(first).filter(|first| !first.is_empty());
    for pair in pairs.chain(rest.chunks(2)) {
        let pair: String = pair.iter().collect();
        bytes.push(
            u8::from_str_radix(&pair, 16).map_err(|_| format!("{pair:?} is not hexadecimal"))?,
        );
    }
    let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
    let bytes = bytes.split_off(zeros);
    if bytes.is_empty() || bytes.len() > MAX_SERIAL_BYTES {
        return Err(format!("a serial number has 1 to {MAX_SERIAL_BYTES} bytes"));
    }
    Ok(Serial(bytes))
}

/// The serial number of a certificate that this authority issued.
fn read_serial(path: &Path, ca: &Path) -> Result<Vec<u8>, CertError> {
    let unreadable = |why: String| CertError::Unreadable {
        path: path.to_owned(),
        why,
    };
    let text = files::read_if_there(path)?.ok_or_else(|| CertError::NoCertificate {
        path: path.to_owned(),
    })?;
    let (_, pem) =
        parse_x509_pem(text.as_bytes()).map_err(|error| unreadable(error.to_string()))?;
    let certificate = pem
        .parse_x509()
        .map_err(|error| unreadable(error.to_string()))?;
    with_authority(ca, |authority| {
        if certificate.issuer().as_raw() == authority.subject().as_raw() {
            return Ok(certificate.serial.to_bytes_be());
        }
        Err(CertError::OtherIssuer {
            path: path.to_owned(),
            ca: ca.to_owned(),
        })
    })
}

/// The number of a list, and whom it revokes.
fn read_list(path: &Path, text: &str, ca: &Path) -> Result<(u64, Vec<Revoked>), CertError> {
    let unreadable = |why: String| CertError::Unreadable {
        path: path.to_owned(),
        why,
    };
    let (_, pem) =
        parse_x509_pem(text.as_bytes()).map_err(|error| unreadable(error.to_string()))?;
    let (_, list) = CertificateRevocationList::from_der(&pem.contents)
        .map_err(|error| unreadable(error.to_string()))?;
    with_authority(ca, |authority| {
        // A list of another authority is not to be lost by writing over it.
        if list.issuer().as_raw() == authority.subject().as_raw() {
            return Ok(());
        }
        Err(CertError::OtherIssuer {
            path: path.to_owned(),
            ca: ca.to_owned(),
        })
    })?;
    let digits = list.crl_number().map(ToString::to_string);
    let number = digits.and_then(|digits| digits.parse().ok()).unwrap_or(0);
    let revoked = list.iter_revoked_certificates().map(|revoked| Revoked {
        serial: revoked.user_certificate.to_bytes_be(),
        since: UNIX_EPOCH
            + Duration::from_secs(u64::try_from(revoked.revocation_date.timestamp()).unwrap_or(0)),
    });
    Ok((number, revoked.collect()))
}

fn with_authority<T>(
    ca: &Path,
    look: impl FnOnce(&X509Certificate<'_>) -> Result<T, CertError>,
) -> Result<T, CertError> {
    let unreadable = |why: String| CertError::Unreadable {
        path: ca.to_owned(),
        why,
    };
    let text = files::read_if_there(ca)?.unwrap_or_default();
    let (_, pem) =
        parse_x509_pem(text.as_bytes()).map_err(|error| unreadable(error.to_string()))?;
    look(
        &pem.parse_x509()
            .map_err(|error| unreadable(error.to_string()))?,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn serial_numbers_are_read_as_they_are_printed() {
        for (text, bytes) in [
            ("a0", vec![0xa0]),
            ("0:A0:01", vec![0xa0, 1]),
            ("f00", vec![0xf, 0]),
        ] {
            assert_eq!(parse_serial(text), Ok(Serial(bytes)), "{text}");
        }
        let serial = vec![1, 0xab, 0];
        assert_eq!(parse_serial(&serial_text(&serial)), Ok(Serial(serial)));
        for text in ["", "0", "xy", &"ab".repeat(21)] {
            assert!(parse_serial(text).is_err(), "{text}");
        }
    }
}
