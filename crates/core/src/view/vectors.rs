//! The golden vectors of placement, for other languages: `docs/placement-v2.json`, with `docs/placement.py` as the proof
//! that the page suffices.
//!
//! `UPDATE_VECTORS=1 cargo nextest run -p keydispatch-core vectors` writes the file anew; that is a new version of placement.

use std::path::PathBuf;
use std::process::Command;

use serde_json::{Value, json};

use super::tests::{Instance, budget, key_in, view_of};
use super::*;
use crate::key::{KeyPart, SLOTS};

/// Owners that are listed of each slot.
const LISTED: usize = 6;

fn docs(file: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../../docs")
        .join(file)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn key(shown: Value, part: &impl KeyPart) -> Value {
    let mut canonical = Vec::new();
    part.write(&mut canonical);
    let key = Key::from_canonical(&canonical);
    json!({
        "key": shown,
        "canonical": hex(&canonical),
        "hash": format!("{:016x}", key.hash()),
        "slot": key.slot().index(),
    })
}

/// Keys of every kind, and of every length that XXH3 treats in its own way.
fn keys() -> Vec<Value> {
    let mut keys = Vec::new();
    for text in ["", "a", "file.png", "tenant-7", "größer", "日本", "🦀🦀🦀"] {
        keys.push(key(json!(text), &text));
    }
    for length in [
        1, 3, 4, 8, 9, 16, 17, 32, 33, 64, 128, 129, 144, 240, 241, 1024, 1025, 3000,
    ] {
        let bytes: Vec<u8> = (0..length).map(|at| (at * 7 % 256) as u8).collect();
        keys.push(key(json!({ "hex": hex(&bytes) }), &bytes));
    }
    for number in [0, 1, -1, 7, 255, 256, i64::MAX, i64::MIN] {
        keys.push(key(json!(number), &number));
    }
    keys.push(key(json!(u64::MAX), &u64::MAX));
    keys.push(key(json!(["tenant", 7]), &("tenant", 7_u32)));
    keys.push(key(json!(["", ""]), &("", "")));
    keys.push(key(json!(["ab", "c"]), &("ab", "c")));
    keys.push(key(json!(["a", "bc"]), &("a", "bc")));
    keys.push(key(json!(["a", ["b", -1]]), &("a", ("b", -1_i8))));
    keys
}

fn placement(instances: &[(String, u16)], slots: usize) -> Value {
    let infos: Vec<_> = instances
        .iter()
        .enumerate()
        .map(|(at, (name, weight))| {
            let mut instance = Instance::new(name);
            instance.weight = *weight;
            instance.info(at as u64)
        })
        .collect();
    let view = view_of(&infos, budget());
    let weights: serde_json::Map<String, Value> = instances
        .iter()
        .map(|(name, weight)| (name.clone(), json!(weight)))
        .collect();
    let owners: Vec<Value> = (0..slots)
        .map(|at| {
            // All over the key space, its ends included.
            let slot = at * (SLOTS - 1) / (slots - 1);
            let owners = view.owners(key_in(slot), LISTED);
            let names: Vec<&str> = owners.iter().map(|info| info.name().as_str()).collect();
            json!({ "slot": slot, "names": names })
        })
        .collect();
    json!({ "instances": weights, "owners": owners })
}

fn vectors() -> Value {
    let even = |count: usize| -> Vec<(String, u16)> {
        (0..count).map(|at| (format!("node-{at}/0"), 100)).collect()
    };
    let weighted: Vec<(String, u16)> = [("a", 1), ("b", 10), ("c", 100), ("d", 1000), ("e", 100)]
        .map(|(name, weight)| (name.to_owned(), weight))
        .into();
    let mixed: Vec<(String, u16)> = (0..25)
        .map(|at| (format!("größer-{at}"), 1 + at * 37 % 1000))
        .collect();
    json!({
        "version": crate::placement::PLACEMENT_VERSION,
        "slots": SLOTS,
        "keys": keys(),
        "placements": [
            placement(&even(1), 4),
            placement(&even(3), 64),
            placement(&even(10), 64),
            placement(&even(300), 16),
            placement(&weighted, 128),
            placement(&mixed, 64),
        ],
    })
}

/// One row a line, so that a difference can be read.
fn page(vectors: &Value) -> String {
    let lines = |rows: &Value, indent: &str| -> String {
        let rows = rows.as_array().unwrap().iter();
        let rows: Vec<String> = rows.map(|row| format!("{indent}{row}")).collect();
        rows.join(",\n")
    };
    let placements = vectors["placements"].as_array().unwrap().iter();
    let placements: Vec<String> = placements
        .map(|one| {
            format!(
                "    {{\n      \"instances\": {},\n      \"owners\": [\n{}\n      ]\n    }}",
                one["instances"],
                lines(&one["owners"], "        "),
            )
        })
        .collect();
    format!(
        "{{\n  \"version\": {},\n  \"slots\": {},\n  \"keys\": [\n{}\n  ],\n  \"placements\": [\n{}\n  ]\n}}\n",
        vectors["version"],
        vectors["slots"],
        lines(&vectors["keys"], "    "),
        placements.join(",\n"),
    )
}

#[test]
fn placement_version_2_is_pinned_by_the_vectors() {
    let (path, ours) = (docs("placement-v2.json"), page(&vectors()));
    if std::env::var_os("UPDATE_VECTORS").is_some() {
        std::fs::write(&path, &ours).unwrap();
    }
    let pinned = std::fs::read_to_string(&path).unwrap();
    assert_eq!(
        serde_json::from_str::<Value>(&pinned).unwrap(),
        vectors(),
        "a change of placement is a new version of it"
    );
    assert_eq!(
        pinned, ours,
        "the file is not laid out as this test writes it"
    );
}

#[test]
fn an_implementation_in_python_agrees_with_the_vectors() {
    let checked = Command::new("python3")
        .args([docs("placement.py"), docs("placement-v2.json")])
        .output()
        .expect("python3 is needed for this test");
    let said = String::from_utf8_lossy(&checked.stdout).into_owned();
    let why = String::from_utf8_lossy(&checked.stderr);
    assert!(checked.status.success(), "{said}{why}");
    let expected = vectors()["placements"]
        .as_array()
        .unwrap()
        .iter()
        .map(|placement| placement["owners"].as_array().unwrap().len())
        .sum::<usize>();
    assert!(said.contains(&format!("and {expected} slots")), "{said}");
}
