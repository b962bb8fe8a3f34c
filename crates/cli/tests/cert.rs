//! `dispatch cert`, run as a user runs it.

#![allow(clippy::unwrap_used, reason = "a test fails so")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};

fn cert(directory: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_dispatch"))
        .arg("cert")
        .args(arguments)
        .current_dir(directory)
        .output()
        .unwrap()
}

fn made(directory: &Path, arguments: &[&str]) -> String {
    let output = cert(directory, arguments);
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn refused(directory: &Path, arguments: &[&str]) -> String {
    let output = cert(directory, arguments);
    assert!(!output.status.success(), "{output:?}");
    String::from_utf8(output.stderr).unwrap()
}

fn mode(path: impl AsRef<Path>) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

fn text(path: impl AsRef<Path>) -> String {
    fs::read_to_string(path).unwrap()
}

fn listed(directory: impl AsRef<Path>) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn an_authority_and_a_pair_for_each_node_are_made_and_only_the_owner_can_read_the_keys() {
    let directory = tempfile::tempdir().unwrap();
    let said = made(
        directory.path(),
        &["--cluster", "files", "--out", "certs", "a", "b", "c"],
    );
    let certs = directory.path().join("certs");
    assert_eq!(
        listed(&certs),
        [
            "a.key", "a.pem", "b.key", "b.pem", "c.key", "c.pem", "ca.key", "ca.pem"
        ]
    );
    assert_eq!(mode(&certs), 0o700);
    for name in listed(&certs) {
        if name.ends_with(".key") {
            assert_eq!(mode(certs.join(&name)), 0o600, "{name}");
        }
    }
    assert!(
        said.contains("copy to the node \"b\": ca.pem, b.pem, b.key"),
        "{said}"
    );
    assert!(said.contains("cert = \"a.pem\""), "{said}");
    assert!(said.contains("keep certs/ca.key here"), "{said}");
}

#[test]
fn another_run_adds_nodes_with_the_authority_that_is_there() {
    let directory = tempfile::tempdir().unwrap();
    let ca = directory.path().join("certs/ca.pem");
    made(directory.path(), &["a"]);
    let before = text(&ca);
    let said = made(directory.path(), &["--any", "b"]);
    assert_eq!(text(&ca), before);
    assert!(!said.contains("the authority of the cluster"), "{said}");
    for name in ["b.pem", "b.key", "any.pem", "any.key"] {
        assert!(directory.path().join("certs").join(name).exists(), "{name}");
    }
}

#[tokio::test]
async fn nodes_with_certificates_of_two_runs_form_a_cluster() {
    let directory = tempfile::tempdir().unwrap();
    made(directory.path(), &["--cluster", "files", "a"]);
    made(directory.path(), &["--cluster", "files", "--any"]);
    let certs = directory.path().join("certs");
    let node = |name: &str, stem: &str| {
        keydispatch::Node::builder(name)
            .cluster("files")
            .tls(keydispatch::TlsFiles::new(
                certs.join("ca.pem"),
                certs.join(format!("{stem}.pem")),
                certs.join(format!("{stem}.key")),
            ))
    };
    let a = node("a", "a").start().await.unwrap();
    let b = node("b", "any")
        .seeds([a.address().as_str()])
        .start()
        .await
        .unwrap();
    assert!(b.members().iter().any(|member| member.name() == a.name()));
}

#[test]
fn a_node_that_has_files_keeps_them_unless_told_otherwise() {
    let directory = tempfile::tempdir().unwrap();
    let certificate = directory.path().join("certs/a.pem");
    made(directory.path(), &["a"]);
    let before = text(&certificate);
    let error = refused(directory.path(), &["a", "b"]);
    assert!(error.contains("certs/a.pem exists"), "{error}");
    assert!(error.contains("--force"), "{error}");
    assert_eq!(text(&certificate), before);
    // Nothing is half done: the other node has none either.
    assert!(!directory.path().join("certs/b.pem").exists());
    made(directory.path(), &["--force", "a"]);
    assert_ne!(text(&certificate), before);
    assert_eq!(mode(directory.path().join("certs/a.key")), 0o600);
}

#[test]
fn an_authority_of_another_cluster_issues_nothing() {
    let directory = tempfile::tempdir().unwrap();
    made(directory.path(), &["--cluster", "mail", "a"]);
    let error = refused(directory.path(), &["--cluster", "files", "b"]);
    assert!(error.contains("certs/ca.pem"), "{error}");
    assert!(error.contains("another cluster than \"files\""), "{error}");
    assert!(error.contains("--out"), "{error}");
    assert!(!directory.path().join("certs/b.pem").exists());
}

#[test]
fn clusters_whose_long_names_differ_at_the_end_are_told_apart() {
    let directory = tempfile::tempdir().unwrap();
    let name = |end: &str| format!("{}-{end}", "long".repeat(40));
    made(directory.path(), &["--cluster", &name("one"), "a"]);
    let error = refused(directory.path(), &["--cluster", &name("two"), "b"]);
    assert!(error.contains("another cluster"), "{error}");
    made(directory.path(), &["--cluster", &name("one"), "b"]);
}

#[test]
fn half_an_authority_and_one_with_another_key_issue_nothing() {
    let directory = tempfile::tempdir().unwrap();
    made(directory.path(), &["a"]);
    made(directory.path(), &["--out", "others", "a"]);
    let certs = directory.path().join("certs");
    fs::copy(directory.path().join("others/ca.key"), certs.join("ca.key")).unwrap();
    let error = refused(directory.path(), &["b"]);
    assert!(
        error.contains("certs/ca.key is not the key of certs/ca.pem"),
        "{error}"
    );
    fs::remove_file(certs.join("ca.key")).unwrap();
    let error = refused(directory.path(), &["b"]);
    assert!(error.contains("ca.key is not"), "{error}");
    assert!(error.contains("copy it here"), "{error}");
    fs::write(certs.join("ca.key"), "no key").unwrap();
    let error = refused(directory.path(), &["b"]);
    assert!(error.contains("certs/ca.key cannot be read"), "{error}");
}

#[test]
fn names_that_make_no_file_name_are_refused_with_the_reason() {
    let directory = tempfile::tempdir().unwrap();
    for (name, reason) in [
        ("a/b", "slash"),
        ("../a", "slash"),
        (".a", "dot"),
        ("ca", "authority"),
        ("*", "--any"),
        ("", "empty"),
        (&"a".repeat(250), "too long"),
    ] {
        let error = refused(directory.path(), &["--", name]);
        assert!(error.contains(reason), "{name}: {error}");
    }
    let error = refused(directory.path(), &["a", "a"]);
    assert!(error.contains("named twice"), "{error}");
    assert!(listed(directory.path()).is_empty());
}

#[test]
fn lifetimes_are_bounded_and_none_outlasts_its_authority() {
    let directory = tempfile::tempdir().unwrap();
    for days in ["0", "3651", "many"] {
        let error = refused(directory.path(), &["--days", days, "a"]);
        assert!(error.contains("--days"), "{error}");
    }
    made(directory.path(), &["--days", "3650", "a"]);
    // The authority has lost some seconds since.
    let error = refused(directory.path(), &["--days", "3650", "b"]);
    assert!(error.contains("3649 more days"), "{error}");
    made(directory.path(), &["--days", "3649", "b"]);
}

#[test]
fn a_directory_that_is_open_to_others_is_told_of() {
    let directory = tempfile::tempdir().unwrap();
    let certs = directory.path().join("certs");
    fs::create_dir(&certs).unwrap();
    fs::set_permissions(&certs, fs::Permissions::from_mode(0o755)).unwrap();
    let said = made(directory.path(), &["a"]);
    assert!(said.contains("chmod 700 certs"), "{said}");
}

#[test]
fn without_a_node_there_is_nothing_to_make() {
    let directory = tempfile::tempdir().unwrap();
    let error = refused(directory.path(), &[]);
    assert!(error.contains("<NODE>"), "{error}");
    assert!(listed(directory.path()).is_empty());
}

/// A node by files that `dispatch cert` wrote.
fn node(certs: &Path, name: &str, seeds: &[&str]) -> keydispatch::NodeBuilder {
    let files = keydispatch::TlsFiles::new(
        certs.join("ca.pem"),
        certs.join(format!("{name}.pem")),
        certs.join(format!("{name}.key")),
    );
    keydispatch::Node::builder(name)
        .seeds(seeds.iter().copied())
        .start_timeout(std::time::Duration::from_secs(5))
        .tls(files.crl(certs.join("ca.crl")))
}

#[tokio::test]
async fn a_revoked_node_is_refused_and_the_others_are_not() {
    let directory = tempfile::tempdir().unwrap();
    let certs = directory.path().join("certs");
    made(directory.path(), &["a", "b", "c"]);
    let said = made(directory.path(), &["revoke", "b"]);
    assert!(said.contains("revoked certs/b.pem"), "{said}");
    assert!(said.contains("crl = \"ca.crl\""), "{said}");
    assert_eq!(mode(certs.join("ca.crl")), 0o644);
    let a = node(&certs, "a", &[]).start().await.unwrap();
    let seed = a.address().to_string();
    let c = node(&certs, "c", &[&seed]).start().await.unwrap();
    assert!(a.members().iter().any(|member| member.name() == c.name()));
    let error = node(&certs, "b", &[&seed]).start().await.unwrap_err();
    assert!(error.to_string().contains("revoked"), "{error}");
}

#[test]
fn a_list_grows_and_forgets_nobody() {
    let directory = tempfile::tempdir().unwrap();
    let certs = directory.path().join("certs");
    let said = made(directory.path(), &["a", "b"]);
    assert!(!said.contains("serial number"), "{said}");
    let said = made(directory.path(), &["revoke"]);
    assert!(said.contains("which revokes 0"), "{said}");
    assert!(made(directory.path(), &["revoke", "a"]).contains("which revokes 1"));
    assert!(made(directory.path(), &["revoke", "a"]).contains("was revoked before"));
    let said = made(directory.path(), &["--force", "b"]);
    let serial = said
        .rsplit("--serial ")
        .next()
        .unwrap()
        .lines()
        .next()
        .unwrap();
    let said = made(directory.path(), &["revoke", "--serial", serial]);
    assert!(said.contains("which revokes 2"), "{said}");
    // The new certificate of the same node is another one.
    let said = made(directory.path(), &["revoke", "b"]);
    assert!(said.contains("which revokes 3"), "{said}");
    made(directory.path(), &["--any"]);
    let said = made(directory.path(), &["revoke", "--any"]);
    assert!(said.contains("which revokes 4"), "{said}");
    assert!(text(certs.join("ca.crl")).starts_with("-----BEGIN X509 CRL-----"));
}

#[test]
fn what_is_not_there_or_of_another_authority_is_not_revoked() {
    let directory = tempfile::tempdir().unwrap();
    let error = refused(directory.path(), &["revoke", "a"]);
    assert!(error.contains("no authority in certs"), "{error}");
    assert!(listed(directory.path()).is_empty());
    made(directory.path(), &["a"]);
    made(directory.path(), &["--out", "others", "b"]);
    let error = refused(directory.path(), &["revoke", "b"]);
    assert!(error.contains("certs/b.pem is not there"), "{error}");
    assert!(error.contains("--serial"), "{error}");
    let (certs, others) = (
        directory.path().join("certs"),
        directory.path().join("others"),
    );
    fs::copy(others.join("b.pem"), certs.join("b.pem")).unwrap();
    let error = refused(directory.path(), &["revoke", "b"]);
    assert!(
        error.contains("not of the authority certs/ca.pem"),
        "{error}"
    );
    made(directory.path(), &["revoke", "--out", "others", "b"]);
    fs::copy(others.join("ca.crl"), certs.join("ca.crl")).unwrap();
    let before = text(certs.join("ca.crl"));
    let error = refused(directory.path(), &["revoke", "a"]);
    assert!(
        error.contains("certs/ca.crl is not of the authority"),
        "{error}"
    );
    assert_eq!(text(certs.join("ca.crl")), before);
    let error = refused(directory.path(), &["revoke", "--serial", "nonsense"]);
    assert!(error.contains("--serial"), "{error}");
    let error = refused(directory.path(), &["revoke", "../a"]);
    assert!(error.contains("slash"), "{error}");
}

#[test]
fn a_node_that_is_named_as_the_subcommand_is_written_after_two_dashes() {
    let directory = tempfile::tempdir().unwrap();
    made(directory.path(), &["--", "revoke"]);
    assert!(directory.path().join("certs/revoke.pem").exists());
}
