//! The packages that this workspace is built from, by `Cargo.lock` and `cargo metadata`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::Deserialize;

use crate::error::Error;

/// The platform whose packages are listed: the one that binaries are built for. `Cargo.lock`, which the bans and the
/// sources are checked on, has those of all platforms.
const PLATFORM: &str = "x86_64-unknown-linux-gnu";

/// The package of the command, whose binary is what others get.
const SHIPPED: &str = "keydispatch-cli";

/// A package, as `cargo metadata` describes it.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Package {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) license: Option<String>,
    pub(crate) license_file: Option<PathBuf>,
    pub(crate) repository: Option<String>,
    pub(crate) description: Option<String>,
    pub(crate) source: Option<String>,
    pub(crate) manifest_path: PathBuf,
}

/// A package, as `Cargo.lock` has it.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Locked {
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) source: Option<String>,
    pub(crate) checksum: Option<String>,
}

/// See the module.
pub(crate) struct Packages {
    /// Everything on [`PLATFORM`], what only tests and benchmarks need among it.
    pub(crate) all: Vec<Package>,
    /// Everything on every platform.
    pub(crate) locked: Vec<Locked>,
    /// What is linked into the command `dispatch`, and what each of these depends on, by id.
    pub(crate) shipped: BTreeMap<String, BTreeSet<String>>,
}

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
    resolve: Resolve,
}

#[derive(Deserialize)]
struct Resolve {
    nodes: Vec<Node>,
}

#[derive(Deserialize)]
struct Node {
    id: String,
    deps: Vec<Dependency>,
}

#[derive(Deserialize)]
struct Dependency {
    pkg: String,
    dep_kinds: Vec<Kind>,
}

#[derive(Deserialize)]
struct Kind {
    /// None for what is linked, else `dev` or `build`.
    kind: Option<String>,
}

#[derive(Deserialize)]
struct Lock {
    package: Vec<Locked>,
}

/// The root of the workspace.
pub(crate) fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).unwrap_or(here).to_owned()
}

pub(crate) fn read(path: &Path) -> Result<String, Error> {
    std::fs::read_to_string(path).map_err(|source| Error::File {
        path: path.to_owned(),
        source,
    })
}

impl Packages {
    pub(crate) fn of_workspace(root: &Path) -> Result<Self, Error> {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let output = Command::new(cargo)
            .args([
                "metadata",
                "--format-version",
                "1",
                "--locked",
                // The command as it is shipped, with all that can be in it.
                "--features",
                "keydispatch-cli/agent",
                "--filter-platform",
                PLATFORM,
            ])
            .current_dir(root)
            .output()
            .map_err(|error| Error::Cargo(error.to_string()))?;
        if !output.status.success() {
            return Err(Error::Cargo(
                String::from_utf8_lossy(&output.stderr).into_owned(),
            ));
        }
        let mut metadata: Metadata = serde_json::from_slice(&output.stdout)?;
        metadata
            .packages
            .sort_by(|a, b| (&a.name, &a.version).cmp(&(&b.name, &b.version)));
        let path = root.join("Cargo.lock");
        let lock: Lock =
            toml::from_str(&read(&path)?).map_err(|source| Error::Toml { path, source })?;
        Ok(Packages {
            shipped: linked(&metadata),
            all: metadata.packages,
            locked: lock.package,
        })
    }

    /// The packages of others that are linked into the command.
    pub(crate) fn of_others(&self) -> impl Iterator<Item = &Package> {
        let mut all = self.all.iter();
        std::iter::from_fn(move || {
            all.by_ref()
                .find(|package| package.source.is_some() && self.shipped.contains_key(&package.id))
        })
    }
}

/// What the command is linked from.
fn linked(metadata: &Metadata) -> BTreeMap<String, BTreeSet<String>> {
    let dependencies: BTreeMap<&str, BTreeSet<String>> = metadata
        .resolve
        .nodes
        .iter()
        .map(|node| {
            let linked = node
                .deps
                .iter()
                .filter(|dependency| dependency.dep_kinds.iter().any(|kind| kind.kind.is_none()));
            (
                &*node.id,
                linked.map(|dependency| dependency.pkg.clone()).collect(),
            )
        })
        .collect();
    let mut packages = metadata.packages.iter();
    let start = packages.find(|package| package.name == SHIPPED);
    let mut reached = BTreeMap::new();
    let mut waiting: Vec<String> = start.iter().map(|package| package.id.clone()).collect();
    while let Some(id) = waiting.pop() {
        let needs = dependencies.get(&*id).cloned().unwrap_or_default();
        waiting.extend(
            needs
                .iter()
                .filter(|id| !reached.contains_key(*id))
                .cloned(),
        );
        reached.insert(id, needs);
    }
    reached
}
