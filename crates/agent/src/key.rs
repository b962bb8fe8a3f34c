//! Keys as they come over HTTP: one text for each canonical form, so that every language finds the same owner.

use keydispatch::{Escaped, Key};
use serde_json::Value;

use crate::problem::{Kind, Problem};

/// Parts of a key that is an array.
const PARTS: std::ops::RangeInclusive<usize> = 2..=16;

/// A key with its canonical bytes, and how it is shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ApiKey {
    bytes: Vec<u8>,
    shown: Value,
}

impl ApiKey {
    /// `key=` a string, `key.int=7`, `key.hex=00ff`, `key.tuple=["tenant",7]`: exactly one of them.
    pub(crate) fn from_query(parameter: &str, text: &str) -> Result<Self, Problem> {
        match parameter {
            "key" => Ok(ApiKey::string(text)),
            "key.int" => {
                let number: i128 = text
                    .parse()
                    .map_err(|_| bad(format!("key.int is no integer: {text:?}")))?;
                Ok(ApiKey {
                    bytes: number.to_le_bytes().to_vec(),
                    shown: match i64::try_from(number) {
                        Ok(number) => number.into(),
                        Err(_) => number.to_string().into(),
                    },
                })
            }
            "key.hex" => {
                let bytes = from_hex(text)
                    .ok_or_else(|| bad(format!("key.hex is no hexadecimal text: {text:?}")))?;
                Ok(ApiKey {
                    bytes,
                    shown: serde_json::json!({ "hex": text }),
                })
            }
            "key.tuple" => {
                let value: Value = serde_json::from_str(text)
                    .map_err(|error| bad(format!("key.tuple is no JSON: {error}")))?;
                if !value.is_array() {
                    return Err(bad("key.tuple is no array"));
                }
                ApiKey::from_json(&value)
            }
            _ => Err(bad(format!("there is no parameter {parameter:?} for keys"))),
        }
    }

    /// In JSON a string, an integer, or an array of these.
    pub(crate) fn from_json(value: &Value) -> Result<Self, Problem> {
        let mut bytes = Vec::new();
        match value {
            Value::Array(parts) => {
                if !PARTS.contains(&parts.len()) {
                    return Err(bad(format!(
                        "a key that is an array has {} to {} parts, this one has {}",
                        PARTS.start(),
                        PARTS.end(),
                        parts.len()
                    )));
                }
                for part in parts {
                    let start = bytes.len();
                    bytes.extend_from_slice(&[0; 4]);
                    write(part, &mut bytes)?;
                    let length = u32::try_from(bytes.len() - start - 4).unwrap_or(u32::MAX);
                    bytes[start..start + 4].copy_from_slice(&length.to_le_bytes());
                }
            }
            value => write(value, &mut bytes)?,
        }
        Ok(ApiKey {
            bytes,
            shown: value.clone(),
        })
    }

    pub(crate) fn string(text: &str) -> Self {
        ApiKey {
            bytes: text.as_bytes().to_vec(),
            shown: text.into(),
        }
    }

    /// From what another agent says.
    pub(crate) fn from_canonical_hex(text: &str) -> Option<Key> {
        Some(Key::from_canonical(&from_hex(text)?))
    }

    pub(crate) fn canonical_hex(&self) -> String {
        to_hex(&self.bytes)
    }

    pub(crate) fn key(&self) -> Key {
        Key::from_canonical(&self.bytes)
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes.len()
    }

    pub(crate) fn shown(&self) -> &Value {
        &self.shown
    }
}

fn bad(detail: impl Into<String>) -> Problem {
    Problem::new(Kind::BadKey, Escaped(detail.into()).to_string())
}

/// A string or an integer, alone or as a part.
fn write(value: &Value, bytes: &mut Vec<u8>) -> Result<(), Problem> {
    match value {
        Value::String(text) => bytes.extend_from_slice(text.as_bytes()),
        Value::Number(number) => {
            let integer = number
                .as_i64()
                .map(i128::from)
                .or_else(|| number.as_u64().map(i128::from))
                .ok_or_else(|| {
                    bad(format!(
                        "{number} is no integer from -2^63 to 2^64-1: write others as a string, or as key.int"
                    ))
                })?;
            bytes.extend_from_slice(&integer.to_le_bytes());
        }
        other => {
            let kind = match other {
                Value::Null => "null",
                Value::Bool(_) => "a boolean",
                Value::Array(_) => "an array within an array",
                _ => "an object",
            };
            return Err(bad(format!("{kind} is no key, and no part of one")));
        }
    }
    Ok(())
}

pub(crate) fn to_hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes
        .iter()
        .fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
            // Writing into a string does not fail.
            let _ = write!(text, "{byte:02x}");
            text
        })
}

pub(crate) fn from_hex(text: &str) -> Option<Vec<u8>> {
    if !text.len().is_multiple_of(2) || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    (0..text.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&text[at..at + 2], 16).ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_key_over_http_is_the_key_of_a_rust_caller() {
        let query =
            |parameter: &str, text: &str| ApiKey::from_query(parameter, text).unwrap().key();
        let body = |value: Value| ApiKey::from_json(&value).unwrap().key();
        assert_eq!(query("key", "room-7"), Key::from("room-7"));
        assert_eq!(query("key", ""), Key::from(""));
        assert_eq!(query("key.int", "-7"), Key::from(-7));
        assert_eq!(
            query("key.int", &i128::MAX.to_string()),
            Key::from(i128::MAX)
        );
        assert_eq!(query("key.hex", "00ff"), Key::from([0_u8, 255]));
        assert_eq!(
            query("key.tuple", r#"["tenant",7]"#),
            Key::from(("tenant", 7))
        );
        assert_eq!(body(json!("größe")), Key::from("größe"));
        assert_eq!(body(json!(u64::MAX)), Key::from(u64::MAX));
        assert_eq!(body(json!(i64::MIN)), Key::from(i64::MIN));
        assert_eq!(
            body(json!(["a", -1, "b", 2, "c"])),
            Key::from(("a", -1, "b", 2, "c"))
        );
        assert_eq!(body(json!(["tenant", 7])), Key::of(&("tenant", 7)).unwrap());
    }

    #[test]
    fn what_is_no_key_is_refused_by_name() {
        for value in [
            json!(1.5),
            json!(1e300),
            json!(null),
            json!(true),
            json!({"a": 1}),
            json!([]),
            json!(["a"]),
            json!(["a", 1.0]),
            json!(["a", ["b", "c"]]),
            json!(["a", null]),
        ] {
            let problem = ApiKey::from_json(&value).unwrap_err();
            assert_eq!(problem.kind, Kind::BadKey, "{value}");
        }
        for (parameter, text) in [
            ("key.int", "7.0"),
            ("key.int", ""),
            ("key.hex", "0"),
            ("key.hex", "zz"),
            ("key.hex", "ää"),
            ("key.tuple", "7"),
            ("key.tuple", "[1,"),
        ] {
            assert!(
                ApiKey::from_query(parameter, text).is_err(),
                "{parameter} {text}"
            );
        }
    }
}
