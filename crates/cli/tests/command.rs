//! What the command says of what it does not know.
#![cfg(not(feature = "agent"))]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::process::Command;

#[test]
fn a_build_without_the_agent_says_how_to_get_one() {
    let output = Command::new(env!("CARGO_BIN_EXE_dispatch"))
        .args(["agent", "--dev", "3"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("unrecognized subcommand 'agent'"), "{said}");
    assert!(said.contains("--features agent"), "{said}");
}
