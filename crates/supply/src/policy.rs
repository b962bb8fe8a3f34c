//! `deny.toml`, as far as it is checked here: licences, bans and sources. `cargo deny check` understands all of it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::Deserialize;
use spdx::{Expression, ParseMode};

use crate::error::Error;
use crate::packages::{Package, Packages, read};

/// See the module.
#[derive(Debug, Deserialize)]
pub(crate) struct Policy {
    licenses: Licences,
    bans: Bans,
    sources: Sources,
}

#[derive(Debug, Deserialize)]
struct Licences {
    allow: BTreeSet<String>,
    #[serde(default)]
    exceptions: Vec<Exception>,
}

#[derive(Debug, Deserialize)]
struct Exception {
    #[serde(rename = "crate")]
    package: String,
    allow: BTreeSet<String>,
}

#[derive(Debug, Deserialize)]
struct Bans {
    #[serde(default)]
    deny: Vec<Banned>,
}

#[derive(Debug, Deserialize)]
struct Banned {
    #[serde(rename = "crate")]
    package: String,
    reason: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Sources {
    allow_registry: BTreeSet<String>,
}

impl Policy {
    pub(crate) fn read(root: &Path) -> Result<Self, Error> {
        let path = root.join("deny.toml");
        Self::parse(&read(&path)?).map_err(|source| Error::Toml { path, source })
    }

    fn parse(text: &str) -> Result<Self, toml::de::Error> {
        toml::from_str(text)
    }

    /// One line for each that is not as it has to be.
    pub(crate) fn violations(&self, packages: &Packages) -> Result<Vec<String>, Error> {
        let mut found = Vec::new();
        for package in &packages.all {
            if !self.allows(package)? {
                let licence = package.license.as_deref().unwrap_or("none");
                found.push(format!(
                    "{} {}: the licence {licence} is not allowed",
                    package.name, package.version
                ));
            }
        }
        let banned: BTreeMap<&str, &str> = self
            .bans
            .deny
            .iter()
            .map(|banned| (&*banned.package, &*banned.reason))
            .collect();
        for locked in &packages.locked {
            if let Some(reason) = banned.get(&*locked.name) {
                found.push(format!(
                    "{} {} is banned: {reason}",
                    locked.name, locked.version
                ));
            }
            let Some(source) = &locked.source else {
                continue;
            };
            let registry = source.strip_prefix("registry+").unwrap_or(source);
            if !self.sources.allow_registry.contains(registry) || locked.checksum.is_none() {
                found.push(format!(
                    "{} {} comes from {source}",
                    locked.name, locked.version
                ));
            }
        }
        Ok(found)
    }

    fn allows(&self, package: &Package) -> Result<bool, Error> {
        let Some(licence) = &package.license else {
            return Ok(false);
        };
        let expression =
            Expression::parse_mode(licence, ParseMode::LAX).map_err(|error| Error::Licence {
                package: package.name.clone(),
                why: error.to_string(),
            })?;
        let mut exceptions = self.licenses.exceptions.iter();
        let exception = exceptions.find(|exception| exception.package == package.name);
        Ok(expression.evaluate(|required| {
            let required = required.to_string();
            self.licenses.allow.contains(&required)
                || exception.is_some_and(|exception| exception.allow.contains(&required))
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packages::{Locked, root};

    const POLICY: &str = r#"
        [licenses]
        allow = ["MIT", "Apache-2.0"]
        exceptions = [{ allow = ["MPL-2.0"], crate = "foca" }]
        [bans]
        deny = [{ crate = "openssl", reason = "no C library" }]
        [sources]
        allow-registry = ["https://registry"]
    "#;

    fn of(name: &str, licence: Option<&str>, source: &str) -> Packages {
        Packages {
            all: vec![Package {
                id: name.to_owned(),
                name: name.to_owned(),
                version: "1.0.0".to_owned(),
                license: licence.map(str::to_owned),
                license_file: None,
                repository: None,
                description: None,
                source: Some(source.to_owned()),
                manifest_path: "Cargo.toml".into(),
            }],
            locked: vec![Locked {
                name: name.to_owned(),
                version: "1.0.0".to_owned(),
                source: Some(source.to_owned()),
                checksum: Some("0".to_owned()),
            }],
            shipped: BTreeMap::new(),
        }
    }

    #[test]
    fn a_licence_that_is_not_allowed_a_banned_package_and_another_source_are_found() {
        let policy = Policy::parse(POLICY).unwrap();
        let found = |name, licence, source| policy.violations(&of(name, licence, source)).unwrap();
        let ours = "registry+https://registry";
        for licence in [
            "MIT",
            "MIT/Apache-2.0",
            "GPL-3.0-only OR MIT",
            "MIT AND Apache-2.0",
        ] {
            assert_eq!(found("some", Some(licence), ours), [""; 0], "{licence}");
        }
        for licence in [
            "GPL-3.0-only",
            "MPL-2.0",
            "MIT AND GPL-3.0-only",
            "Apache-2.0 WITH LLVM-exception",
        ] {
            assert_eq!(found("some", Some(licence), ours).len(), 1, "{licence}");
        }
        assert_eq!(found("some", None, ours).len(), 1);
        assert_eq!(found("foca", Some("MPL-2.0"), ours), [""; 0]);
        assert_eq!(found("openssl", Some("MIT"), ours).len(), 1);
        for source in ["git+https://registry", "registry+https://another"] {
            assert_eq!(found("some", Some("MIT"), source).len(), 1, "{source}");
        }
        assert!(
            policy
                .violations(&of("some", Some("no licence"), ours))
                .is_err()
        );
    }

    #[test]
    fn everything_that_this_workspace_is_built_from_is_as_deny_toml_allows() {
        let packages = Packages::of_workspace(&root()).unwrap();
        let found = Policy::read(&root())
            .unwrap()
            .violations(&packages)
            .unwrap();
        assert_eq!(found, [""; 0]);
        assert!(packages.locked.len() > 100 && packages.all.len() > 100);
    }
}
