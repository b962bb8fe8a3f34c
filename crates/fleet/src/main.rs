//! Node processes, networks that go wrong, a soak and rolling upgrades: one command each.

use std::process::ExitCode;

use clap::Parser;

#[derive(Parser)]
#[command(version, about)]
struct Arguments {
    #[command(subcommand)]
    command: keydispatch_fleet::Command,
}

fn main() -> ExitCode {
    match keydispatch_fleet::run(Arguments::parse().command, say) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            report(&format!("error: {error}"));
            ExitCode::FAILURE
        }
    }
}

#[expect(clippy::print_stdout, reason = "a command's output")]
fn say(line: &str) {
    println!("{line}");
}

#[expect(clippy::print_stderr, reason = "a command's complaint")]
fn report(line: &str) {
    eprintln!("{line}");
}
