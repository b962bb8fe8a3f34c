//! What is built from whose work, checked against `deny.toml`, and written down.
#![expect(clippy::print_stderr, reason = "a command says so what went wrong")]

mod bill;
mod error;
mod notices;
mod packages;
mod policy;

use std::io::Write as _;
use std::process::ExitCode;

use error::Error;
use packages::Packages;
use policy::Policy;

const USAGE: &str = "usage: keydispatch-supply check | notices | texts | sbom

check    the packages against deny.toml, and THIRD-PARTY.md against the packages
notices  prints what THIRD-PARTY.md has to hold
texts    prints the notices with the licences' texts, to go with a binary
sbom     prints a bill of materials of the command `dispatch`, CycloneDX 1.5 as JSON";

fn main() -> ExitCode {
    let command = std::env::args().nth(1).unwrap_or_default();
    let done = match command.as_str() {
        "check" => check(),
        "notices" => packages().and_then(|packages| print(&notices::table(&packages))),
        "texts" => packages().and_then(|packages| print(&notices::texts(&packages)?)),
        "sbom" => packages().and_then(|packages| {
            let bill = serde_json::to_string_pretty(&bill::of(&packages))?;
            print(&(bill + "\n"))
        }),
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Whoever reads may stop before the end.
fn print(text: &str) -> Result<(), Error> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        written => written.map_err(Error::Output),
    }
}

fn packages() -> Result<Packages, Error> {
    Packages::of_workspace(&packages::root())
}

fn check() -> Result<(), Error> {
    let root = packages::root();
    let packages = Packages::of_workspace(&root)?;
    let mut found = Policy::read(&root)?.violations(&packages)?;
    let path = root.join(notices::FILE);
    let notices = packages::read(&path)?;
    if notices != notices::table(&packages) {
        found.push(format!(
            "{} is not current: write it anew with `notices`",
            notices::FILE
        ));
    }
    for line in &found {
        eprintln!("{line}");
    }
    if !found.is_empty() {
        std::process::exit(1);
    }
    print(&format!(
        "{} packages, all as deny.toml allows\n",
        packages.locked.len()
    ))
}
