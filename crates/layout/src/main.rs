//! Prints the circles among the files of a crate: `keydispatch-layout core dispatch`.
#![expect(clippy::print_stdout, reason = "a command prints what it found")]

use std::path::Path;

use keydispatch_layout::{Crate, circles, parents, without};

const PARENTS: &str = include_str!("../parents.txt");

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let allowed = parents(PARENTS)?;
    for name in std::env::args().skip(1) {
        let source = Path::new("crates").join(&name).join("src");
        for root in ["lib.rs", "main.rs"].map(|root| source.join(root)) {
            if !root.is_file() {
                continue;
            }
            let (edges, _) = without(Crate::read(&root)?.edges(), &name, &allowed);
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
