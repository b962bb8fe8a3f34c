//! The sources of every crate of this workspace.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;

use keydispatch_layout::{Crate, Edge, circles, parents, without};

const PARENTS: &str = include_str!("../parents.txt");

/// The imports that are left once the parents with a reason are taken out, and a word for each circle among them.
fn circles_of(name: &str) -> String {
    let allowed = parents(PARENTS).expect("a line of parents.txt is not understood");
    let crates = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut said = String::new();
    let mut edges: BTreeSet<Edge> = BTreeSet::new();
    for root in ["lib.rs", "main.rs"] {
        let root = crates.join(name).join("src").join(root);
        if root.is_file() {
            edges.extend(Crate::read(&root).expect("the sources are Rust").edges());
        }
    }
    assert!(
        name == "layout" || name == "measure" || edges.len() > 5,
        "{name}: no imports were found"
    );
    let (edges, needless) = without(edges, name, &allowed);
    for parent in needless {
        let _ = writeln!(
            said,
            "parents.txt: {name}: {} does not import from {}",
            parent.child, parent.parent
        );
    }
    for circle in circles(&edges) {
        let _ = writeln!(said, "{name}: these import each other:");
        for edge in &edges {
            if circle.contains(&edge.from) && circle.contains(&edge.to) {
                let _ = writeln!(said, "  {} -> {}", edge.from, edge.to);
            }
        }
    }
    said
}

#[test]
fn no_file_imports_in_a_circle() {
    let crates = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut found = String::new();
    for folder in std::fs::read_dir(crates).expect("the folder of crates can be read") {
        let folder = folder.expect("a folder can be read").path();
        let name = folder
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        if folder.join("src").is_dir() {
            found += &circles_of(&name);
        }
    }
    assert!(found.is_empty(), "{found}");
}

#[test]
fn a_circle_is_found_by_way_of_others_and_of_who_passes_things_on() {
    let folder = std::env::temp_dir().join(format!("keydispatch-layout-{}", std::process::id()));
    std::fs::create_dir_all(folder.join("a")).expect("a folder can be made");
    for (name, text) in [
        ("lib.rs", "mod a; mod b; mod c; #[cfg(test)] mod tests;"),
        (
            "a.rs",
            "mod inner; pub use inner::{Inner, Other as Renamed};",
        ),
        (
            "a/inner.rs",
            "pub struct Inner(crate::c::C); pub struct Other;",
        ),
        (
            "b.rs",
            "mod within { use super::super::a::Renamed; } fn f() { vec![crate::a::Inner::new()]; }",
        ),
        (
            "c.rs",
            "pub struct C; fn f() -> super::b::B { B } #[cfg(test)] mod tests { use crate::a::Inner; }",
        ),
        ("tests.rs", "use crate::a::Inner;"),
    ] {
        std::fs::write(folder.join(name), text).expect("a file can be written");
    }
    let edges = Crate::read(&folder.join("lib.rs"))
        .expect("it is Rust")
        .edges();
    std::fs::remove_dir_all(&folder).expect("the folder can be removed");
    let named: Vec<String> = edges
        .iter()
        .map(|edge| format!("{} {}", edge.from, edge.to))
        .collect();
    assert_eq!(
        named,
        [
            "a.rs a/inner.rs",
            "a/inner.rs c.rs",
            "b.rs a/inner.rs",
            "c.rs b.rs"
        ]
    );
    let found = circles(&edges);
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(
        found[0].iter().collect::<Vec<_>>(),
        ["a/inner.rs", "b.rs", "c.rs"]
    );
}
