//! The public API of the library, beside the text that says so.

use std::path::Path;
use std::process::Command;

const SAID: &str = include_str!("../../../docs/api.txt");

#[test]
fn the_public_api_is_what_docs_api_txt_says() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    // As the last gate does it, so that one of the two finds it done.
    let output = Command::new(env!("CARGO"))
        .args(["doc", "--no-deps", "--workspace", "--all-features"])
        .env("RUSTDOCFLAGS", "-Dwarnings")
        .current_dir(&root)
        .output()
        .expect("cargo can be run");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let target = std::env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into());
    let found = keydispatch_layout::api(&root.join(target).join("doc/keydispatch"))
        .expect("the pages are rustdoc's");
    let (said, found): (Vec<&str>, Vec<&str>) = (SAID.lines().collect(), found.lines().collect());
    let gone = said
        .iter()
        .filter(|line| !found.contains(line))
        .map(|line| format!("- {line}"));
    let new = found
        .iter()
        .filter(|line| !said.contains(line))
        .map(|line| format!("+ {line}"));
    let changed: Vec<String> = gone.chain(new).collect();
    assert!(
        said == found,
        "the public API has changed; where that is meant: \
         cargo run -p keydispatch-layout -- api > docs/api.txt, and a line in CHANGELOG.md\n{}",
        changed.join("\n")
    );
}
