//! The bill of materials of the command `dispatch`: CycloneDX 1.5.

use serde_json::{Value, json};

use crate::packages::{Package, Packages};

/// See the module. It has no time and no serial number, so that the same `Cargo.lock` gives the same bill.
pub(crate) fn of(packages: &Packages) -> Value {
    let shipped = || {
        let all = packages.all.iter();
        all.filter(|package| packages.shipped.contains_key(&package.id))
    };
    let reference = |id: &str| {
        let mut all = packages.all.iter();
        all.find(|package| package.id == id).map(purl)
    };
    let components = |main: bool| {
        let these = shipped().filter(move |package| (package.name == "keydispatch-cli") == main);
        these
            .map(|package| component(package, packages))
            .collect::<Vec<_>>()
    };
    let dependencies: Vec<Value> = shipped()
        .map(|package| {
            let needs = packages.shipped[&package.id].iter();
            let needs: Vec<String> = needs.filter_map(|id| reference(id)).collect();
            json!({ "ref": purl(package), "dependsOn": needs })
        })
        .collect();
    json!({
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": { "component": components(true).pop() },
        "components": components(false),
        "dependencies": dependencies,
    })
}

fn purl(package: &Package) -> String {
    format!("pkg:cargo/{}@{}", package.name, package.version)
}

fn component(package: &Package, packages: &Packages) -> Value {
    let mut component = json!({
        "type": if package.name == "keydispatch-cli" { "application" } else { "library" },
        "bom-ref": purl(package),
        "name": package.name,
        "version": package.version,
        "purl": purl(package),
    });
    if let Some(licence) = &package.license {
        // Slashes are how older packages write OR.
        component["licenses"] = json!([{ "expression": licence.replace('/', " OR ") }]);
    }
    if let Some(description) = &package.description {
        component["description"] = json!(description.trim());
    }
    if let Some(repository) = &package.repository {
        component["externalReferences"] = json!([{ "type": "vcs", "url": repository }]);
    }
    let locked = packages.locked.iter();
    let mut same = locked
        .filter(|locked| (&locked.name, &locked.version) == (&package.name, &package.version));
    if let Some(checksum) = same.find_map(|locked| locked.checksum.as_ref()) {
        component["hashes"] = json!([{ "alg": "SHA-256", "content": checksum }]);
    }
    component
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::packages::root;

    #[test]
    fn the_bill_has_every_linked_package_with_its_checksum_and_what_it_depends_on() {
        let packages = Packages::of_workspace(&root()).unwrap();
        let bill = of(&packages);
        assert_eq!(bill["metadata"]["component"]["name"], "keydispatch-cli");
        let components = bill["components"].as_array().unwrap();
        let names: BTreeSet<&str> = components
            .iter()
            .map(|one| one["name"].as_str().unwrap())
            .collect();
        for name in [
            "keydispatch",
            "keydispatch-core",
            "foca",
            "tokio",
            "ring",
            "rustls",
        ] {
            assert!(names.contains(name), "{name}");
        }
        for one in components {
            let is_ours = one["name"].as_str().unwrap().starts_with("keydispatch");
            assert!(
                is_ours || one["hashes"][0]["content"].as_str().unwrap().len() == 64,
                "{one}"
            );
            assert!(one["licenses"][0]["expression"].is_string(), "{one}");
        }
        let references: BTreeSet<&str> = bill["dependencies"]
            .as_array()
            .unwrap()
            .iter()
            .map(|one| one["ref"].as_str().unwrap())
            .collect();
        assert_eq!(references.len(), components.len() + 1);
    }
}
