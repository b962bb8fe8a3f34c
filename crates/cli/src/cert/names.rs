//! What files and certificates are called.

use keydispatch::NodeName;

use super::error::CertError;
use super::files;

/// The files of the certificate that any node can use are named after this.
pub(super) const ANY: &str = "any";

/// What the files of a node are named after; with `any`, the files of `--any` are there, too.
pub(super) fn stem(name: &str, any: bool) -> Result<&str, CertError> {
    let no_file_name = |why| CertError::NoFileName {
        name: name.to_owned(),
        why,
    };
    let node = NodeName::try_new(name)?;
    match node.as_str() {
        "*" => return Err(no_file_name("for a certificate of any name use --any")),
        "ca" => return Err(no_file_name("the authority's files are named so")),
        ANY if any => return Err(no_file_name("the files of --any are named so")),
        name if name.contains('/') => return Err(no_file_name("it holds a slash")),
        name if name.starts_with('.') => return Err(no_file_name("it starts with a dot")),
        name if name.len() > files::MAX_STEM_BYTES => {
            return Err(no_file_name("it is too long for one"));
        }
        _ => {}
    }
    Ok(name)
}

/// A serial number as it is printed, and read by `--serial`.
pub(super) fn serial_text(serial: &[u8]) -> String {
    let digits: Vec<String> = serial.iter().map(|byte| format!("{byte:02x}")).collect();
    digits.concat()
}

/// The serial number of a certificate; none where it is no certificate.
pub(super) fn serial_of(pem: &str) -> Option<String> {
    let (_, pem) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).ok()?;
    Some(serial_text(&pem.parse_x509().ok()?.serial.to_bytes_be()))
}
