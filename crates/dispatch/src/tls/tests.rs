//! Names in certificates, and files that cannot be used.

use std::collections::HashSet;
use std::path::PathBuf;
use std::time::Duration;

use proptest::prelude::*;

use super::names::{NODE_PREFIX, decode_node};
use super::*;
use crate::tls::authority::{Authority, Issued};

mod rotation;

fn cluster(name: &str) -> ClusterName {
    ClusterName::try_new(name).unwrap()
}

#[test]
fn plain_cluster_names_are_readable_and_others_encoded() {
    let dns = |name: &str| cluster_dns_name(&cluster(name));
    assert_eq!(dns("files"), "files.dispatch.internal");
    assert_eq!(dns("eu-1.files"), "eu-1.files.dispatch.internal");
    assert_eq!(dns("Files"), "x-46696c6573.dispatch.internal");
    assert_eq!(dns("x-61"), "x-782d3631.dispatch.internal");
    assert!(dns(&"ä".repeat(100)).starts_with("h-"));
}

#[test]
fn no_two_awkward_cluster_names_share_a_dns_name() {
    let mut names: Vec<String> = [
        "a", "A", "a.", ".a", "a..b", "a.b", "-a", "a-", "*", "x-61", "h-61", "a b", "ä",
    ]
    .map(str::to_owned)
    .to_vec();
    for length in 1..=255 {
        names.push("n".repeat(length));
        names.push("N".repeat(length));
        names.push(format!("{}.", "n".repeat(length - 1)));
    }
    let names: HashSet<String> = names.into_iter().collect();
    let encoded: HashSet<_> = names
        .iter()
        .map(|name| cluster_dns_name(&cluster(name)))
        .collect();
    assert_eq!(encoded.len(), names.len());
}

proptest! {
    #[test]
    fn every_cluster_name_is_a_dns_name(name in "\\PC{1,60}") {
        if let Ok(cluster) = ClusterName::try_new(name) {
            let dns = cluster_dns_name(&cluster);
            prop_assert!(ServerName::try_from(dns.clone()).is_ok(), "{}", dns);
        }
    }

    #[test]
    fn every_node_name_comes_back_from_its_uri(name in "\\PC{1,60}") {
        if let Ok(node) = NodeName::try_new(name) {
            let uri = node_uri(Some(node.as_str()));
            prop_assert!(uri.is_ascii() && uri != node_uri(None));
            prop_assert_eq!(decode_node(uri.strip_prefix(NODE_PREFIX).unwrap()), Some(node));
        }
    }
}

#[test]
fn a_garbled_node_uri_names_nobody() {
    for encoded in ["", "%", "%4", "%zz", "%ff", "%00"] {
        assert_eq!(decode_node(encoded), None, "{encoded}");
    }
}

/// Files of one node, whose contents a test can spoil.
struct Files {
    directory: tempfile::TempDir,
}

impl Files {
    fn new(authority: &Authority, issued: &Issued) -> Self {
        let files = Files {
            directory: tempfile::tempdir().unwrap(),
        };
        files.write("ca.pem", &authority.ca_pem());
        files.issue(issued);
        files
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Replaces the certificate and the key.
    fn issue(&self, issued: &Issued) {
        let (cert, key) = (self.path("cert.pem"), self.path("key.pem"));
        issued.write(&cert, &key).unwrap();
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).unwrap();
    }

    fn files(&self) -> TlsFiles {
        let path = |name| self.path(name);
        TlsFiles::new(path("ca.pem"), path("cert.pem"), path("key.pem"))
    }

    fn load(&self, name: &str) -> Result<Arc<Tls>, TlsError> {
        Tls::load(&self.files(), &cluster(name))
    }

    /// Why they cannot be used, checked to name the file.
    fn error(&self, name: &str, file: &str) -> TlsError {
        let error = self.load(name).unwrap_err();
        assert!(error.to_string().contains(file), "{error}");
        error
    }
}

fn node_files() -> (Authority, Files) {
    let authority = Authority::new("files").unwrap();
    let files = Files::new(&authority, &authority.issue("a").unwrap());
    (authority, files)
}

#[test]
fn a_missing_file_is_named() {
    for name in ["ca.pem", "cert.pem", "key.pem"] {
        let (_, files) = node_files();
        std::fs::remove_file(files.directory.path().join(name)).unwrap();
        assert!(matches!(files.error("files", name), TlsError::Read { .. }));
    }
}

#[test]
fn a_file_without_what_it_should_hold_is_named() {
    for name in ["ca.pem", "cert.pem", "key.pem"] {
        for text in ["", "nonsense", "-----BEGIN CERTIFICATE-----\n!\n"] {
            let (_, files) = node_files();
            files.write(name, text);
            let error = files.error("files", name);
            assert!(matches!(error, TlsError::Content { .. }), "{error}");
        }
    }
}

#[test]
fn the_key_of_another_certificate_is_refused() {
    let (authority, files) = node_files();
    files.write("key.pem", &authority.issue("a").unwrap().key_pem);
    let error = files.error("files", "cert.pem");
    assert!(matches!(error, TlsError::KeyMismatch { .. }), "{error}");
}

#[test]
fn a_certificate_of_another_cluster_is_refused() {
    let (_, files) = node_files();
    let error = files.error("mail", "cert.pem");
    assert!(matches!(error, TlsError::Cluster { .. }), "{error}");
    let text = error.to_string();
    assert!(
        text.contains("files.dispatch.internal") && text.contains("mail.dispatch.internal"),
        "{text}"
    );
}

#[test]
fn a_certificate_of_another_authority_is_refused() {
    let (_, files) = node_files();
    files.write("ca.pem", &Authority::new("files").unwrap().ca_pem());
    let error = files.error("files", "ca.pem");
    assert!(matches!(error, TlsError::Issuer { .. }), "{error}");
}

#[test]
fn a_certificate_outside_its_time_is_refused() {
    let authority = Authority::new("files").unwrap();
    let now = SystemTime::now();
    let (hour, minute) = (Duration::from_secs(3600), Duration::from_secs(60));
    let old = authority.issue_with("a", now - hour, now - minute).unwrap();
    let error = Files::new(&authority, &old).error("files", "cert.pem");
    assert!(matches!(error, TlsError::Expired { .. }), "{error}");
    let young = authority.issue_with("a", now + minute, now + hour).unwrap();
    let error = Files::new(&authority, &young).error("files", "cert.pem");
    assert!(matches!(error, TlsError::NotYetValid { .. }), "{error}");
}

#[test]
fn a_certificate_that_names_no_node_is_refused() {
    let authority = Authority::new("files").unwrap();
    // The authority's own certificate names neither cluster nor node.
    let own = Issued {
        cert_pem: authority.ca_pem(),
        key_pem: authority.ca_key_pem(),
    };
    assert!(Files::new(&authority, &own).load("files").is_err());
}

#[test]
fn a_certificate_speaks_for_its_nodes_alone() {
    let (authority, files) = node_files();
    let node = |name| NodeName::try_new(name).unwrap();
    let tls = files.load("files").unwrap();
    assert!(tls.check_node(&node("a")).is_ok());
    let error = tls.check_node(&node("b")).unwrap_err();
    assert!(matches!(error, TlsError::OtherNode { .. }), "{error}");
    let any = Files::new(&authority, &authority.issue("*").unwrap());
    assert!(any.load("files").unwrap().check_node(&node("b")).is_ok());
}

#[test]
fn awkward_names_are_issued_and_read() {
    for (name, node) in [("Ä b*", "n/1 %2A*"), (&*"N".repeat(255), &*"ü".repeat(127))] {
        let authority = Authority::new(name).unwrap();
        let files = Files::new(&authority, &authority.issue(node).unwrap());
        let tls = files.load(name).unwrap();
        assert!(tls.check_node(&NodeName::try_new(node).unwrap()).is_ok());
    }
}

#[test]
fn an_authority_that_was_kept_issues_certificates_that_are_accepted() {
    let (authority, files) = node_files();
    let kept = Authority::from_pem("files", &authority.ca_pem(), &authority.ca_key_pem()).unwrap();
    let issued = kept.issue("b").unwrap();
    files.write("cert.pem", &issued.cert_pem);
    files.write("key.pem", &issued.key_pem);
    assert!(files.load("files").is_ok());
}
