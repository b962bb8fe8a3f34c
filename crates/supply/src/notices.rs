//! Whose work is in the command `dispatch`, and under which licence.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use crate::error::Error;
use crate::packages::{Package, Packages, read};

/// Where the table is kept.
pub(crate) const FILE: &str = "THIRD-PARTY.md";

const HEAD: &str = "# Third-party work

What the command `dispatch` is linked from on Linux, and what a program is that uses the library `keydispatch`. Written by
`cargo run -p keydispatch-supply -- notices > THIRD-PARTY.md`; a test fails where it is not current. The texts of the
licences, which go with a binary, are printed by `cargo run -p keydispatch-supply -- texts`.

`foca` is under the Mozilla Public License 2.0, and is used as it was published: whoever gets a binary can have its source
from its repository, and changes to its files would have to be published under the same licence. The other files of a
program are not concerned.

| package | version | licence | source |
|---|---|---|---|
";

/// The content of [`FILE`].
pub(crate) fn table(packages: &Packages) -> String {
    let mut text = HEAD.to_owned();
    for package in packages.of_others() {
        let licence = package.license.as_deref().unwrap_or("see its files");
        let source = package.repository.as_deref().unwrap_or("crates.io");
        writeln!(
            text,
            "| {} | {} | {licence} | {source} |",
            package.name, package.version
        )
        .expect("a string takes everything");
    }
    text
}

/// The table, and each text once, with the packages that it came with.
pub(crate) fn texts(packages: &Packages) -> Result<String, Error> {
    let mut by_text: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for package in packages.of_others() {
        let name = format!("{} {}", package.name, package.version);
        for path in files(package)? {
            let text = read(&path)?.replace("\r\n", "\n");
            by_text
                .entry(text.trim_end().to_owned())
                .or_default()
                .push(name.clone());
        }
    }
    let mut all = table(packages);
    for (text, mut names) in by_text {
        names.dedup();
        write!(all, "\n---\n\n{}:\n\n{text}\n", names.join(", "))
            .expect("a string takes everything");
    }
    Ok(all)
}

/// The files of a package that hold licences and notices.
fn files(package: &Package) -> Result<Vec<PathBuf>, Error> {
    let directory = package.manifest_path.parent().unwrap_or(Path::new("."));
    let failed = |source| Error::File {
        path: directory.to_owned(),
        source,
    };
    let mut found: Vec<PathBuf> = package
        .license_file
        .iter()
        .map(|file| directory.join(file))
        .collect();
    for entry in std::fs::read_dir(directory).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .to_uppercase();
        let is_one = [
            "LICENSE",
            "LICENCE",
            "COPYING",
            "COPYRIGHT",
            "NOTICE",
            "UNLICENSE",
        ]
        .iter()
        .any(|start| name.starts_with(start));
        if is_one && path.is_file() && !found.contains(&path) {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packages::root;

    #[test]
    fn the_notices_are_current_and_say_what_is_under_which_licence() {
        let packages = Packages::of_workspace(&root()).unwrap();
        let notices = std::fs::read_to_string(root().join(FILE)).unwrap();
        let lines = |text: &str| text.lines().map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(
            lines(&notices),
            lines(&table(&packages)),
            "cargo run -p keydispatch-supply -- notices > {FILE}"
        );
        assert!(notices.contains("| foca |") && notices.contains("| MPL-2.0 |"));
        // What only tests and benchmarks need is in no binary that others get.
        for package in ["proptest", "hashring", "spdx"] {
            assert!(!notices.contains(&format!("| {package} |")), "{package}");
        }
    }

    #[test]
    fn the_texts_have_one_of_the_mozilla_licence_and_of_the_others() {
        let texts = texts(&Packages::of_workspace(&root()).unwrap()).unwrap();
        assert!(texts.contains("Mozilla Public License"));
        assert!(texts.contains("Apache License") && texts.contains("Permission is hereby granted"));
    }
}
