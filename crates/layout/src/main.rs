//! Prints the circles among the files of crates (`keydispatch-layout core dispatch`), or the public API of the library as
//! `cargo doc --no-deps --workspace --all-features` has described it (`keydispatch-layout api > docs/api.txt`).
#![expect(clippy::print_stdout, reason = "a command prints what it found")]

use std::path::Path;

use keydispatch_layout::{Crate, api, circles, parents, without};

const PARENTS: &str = include_str!("../parents.txt");

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let allowed = parents(PARENTS)?;
    for name in std::env::args().skip(1) {
        if name == "api" {
            let target = std::env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into());
            print!("{}", api(&Path::new(&target).join("doc/keydispatch"))?);
            continue;
        }
        let source = Path::new("crates").join(&name).join("src");
        for root in ["lib.rs", "main.rs"].map(|root| source.join(root)) {
            if !root.is_file() {
                continue;
            }
            let read = Crate::read(&root)?;
            for (word, files) in read.types() {
                if files.len() > 1 && word.starts_with(char::is_uppercase) {
                    println!(
                        "{}: {word} stands for {} things: {}",
                        root.display(),
                        files.len(),
                        files.join(", ")
                    );
                }
            }
            let (edges, _) = without(read.edges(), &name, &allowed);
            for circle in circles(&edges) {
                println!(
                    "{}: {} files import each other",
                    root.display(),
                    circle.len()
                );
                for edge in &edges {
                    if circle.contains(&edge.from) && circle.contains(&edge.to) {
                        let up = if edge.upwards { "  (its parent)" } else { "" };
                        println!("  {} -> {}{up}", edge.from, edge.to);
                    }
                }
            }
        }
    }
    Ok(())
}
