//! The files of a crate, and what each imports.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use crate::circles::Edge;
use crate::paths::Said;

/// Why a crate's sources could not be read.
#[derive(Debug)]
pub enum Error {
    /// A file that cannot be read.
    File(PathBuf, std::io::Error),
    /// A file that is no Rust.
    Tokens(PathBuf, proc_macro2::LexError),
    /// `mod name;` without a file.
    Missing(PathBuf, String),
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File(path, error) => write!(f, "{}: {error}", path.display()),
            Self::Tokens(path, error) => write!(f, "{}: {error}", path.display()),
            Self::Missing(path, name) => {
                write!(
                    f,
                    "{} says `mod {name};`, and there is no such file",
                    path.display()
                )
            }
        }
    }
}

impl std::error::Error for Error {}

/// A file of a crate.
#[derive(Debug)]
struct File {
    /// From `src`, with slashes: `data/lane.rs`.
    name: String,
    said: Said,
}

/// The modules of a crate that have files of their own, from one root.
#[derive(Debug)]
pub struct Crate {
    /// Path of the module → file.
    files: BTreeMap<Vec<String>, File>,
}

impl Crate {
    /// Reads `root`, a `lib.rs` or `main.rs`, and every file that belongs to it.
    ///
    /// # Errors
    ///
    /// A file that is not there, cannot be read, or is no Rust.
    pub fn read(root: &Path) -> Result<Self, Error> {
        let source = root.parent().unwrap_or(Path::new(".")).to_owned();
        let mut read = Self {
            files: BTreeMap::new(),
        };
        let mut next = vec![(Vec::new(), root.to_owned(), source.clone())];
        while let Some((module, path, children)) = next.pop() {
            let text =
                std::fs::read_to_string(&path).map_err(|error| Error::File(path.clone(), error))?;
            let tokens = text
                .parse()
                .map_err(|error| Error::Tokens(path.clone(), error))?;
            let said = Said::read(tokens);
            for name in &said.modules {
                let file = children.join(format!("{name}.rs"));
                let nested = children.join(name).join("mod.rs");
                let file = [file, nested]
                    .into_iter()
                    .find(|file| file.is_file())
                    .ok_or_else(|| Error::Missing(path.clone(), name.clone()))?;
                let mut child = module.clone();
                child.push(name.clone());
                next.push((child, file, children.join(name)));
            }
            let name = path
                .strip_prefix(&source)
                .unwrap_or(&path)
                .to_string_lossy()
                .replace('\\', "/");
            read.files.insert(module, File { name, said });
        }
        Ok(read)
    }

    /// The structs, enums and traits, each with the files that define one of that name.
    #[must_use]
    pub fn types(&self) -> BTreeMap<String, Vec<String>> {
        let mut types: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for file in self.files.values() {
            for name in &file.said.types {
                types
                    .entry(name.clone())
                    .or_default()
                    .push(file.name.clone());
            }
        }
        types
    }

    /// Every import of one file by another.
    #[must_use]
    pub fn edges(&self) -> BTreeSet<Edge> {
        let mut edges = BTreeSet::new();
        for (module, file) in &self.files {
            for path in &file.said.paths {
                let Some(target) = self.target(module, path, 0) else {
                    continue;
                };
                if target != *module {
                    edges.insert(Edge {
                        from: file.name.clone(),
                        to: self.files[&target].name.clone(),
                        upwards: module.len() == target.len() + 1 && module.starts_with(&target),
                    });
                }
            }
        }
        edges
    }

    /// The module that a path written in `module` means: where the thing stands, not who passes it on.
    fn target(&self, module: &[String], path: &[String], depth: usize) -> Option<Vec<String>> {
        let mut here: Vec<String> = module.to_vec();
        let mut rest = path;
        match rest.first()?.as_str() {
            "crate" => {
                here.clear();
                rest = &rest[1..];
            }
            "self" => rest = &rest[1..],
            "super" => {
                while rest.first().is_some_and(|part| part == "super") {
                    here.pop()?;
                    rest = &rest[1..];
                }
            }
            child => {
                let said = &self.files[module].said;
                if !said.modules.iter().any(|name| name == child) {
                    return None;
                }
            }
        }
        while let Some(part) = rest.first() {
            let mut child = here.clone();
            child.push(part.clone());
            if !self.files.contains_key(&child) {
                break;
            }
            here = child;
            rest = &rest[1..];
        }
        let file = self.files.get(&here)?;
        if let (Some(name), true) = (rest.first(), depth < 8)
            && here != module
            && let Some(passed) = file.said.imports.get(name)
            && let Some(target) = self.target(&here, passed, depth + 1)
        {
            return Some(target);
        }
        Some(here)
    }
}
