//! Parameters of a request: each is known, and there once.

use keydispatch::Escaped;

use crate::key::ApiKey;
use crate::problem::{Kind, Problem};

/// The ways to write a key.
const KEYS: [&str; 4] = ["key", "key.int", "key.hex", "key.tuple"];

/// Most parameters of one request.
const MAX_PARAMETERS: usize = 64;

pub(crate) struct Query(Vec<(String, String)>);

impl Query {
    pub(crate) fn parse(text: &str) -> Result<Self, Problem> {
        let pairs: Vec<(String, String)> = form_urlencoded::parse(text.as_bytes())
            .take(MAX_PARAMETERS + 1)
            .map(|(name, value)| (name.into_owned(), value.into_owned()))
            .collect();
        if pairs.len() > MAX_PARAMETERS {
            return Err(Problem::bad("there are too many parameters"));
        }
        for (at, (name, _)) in pairs.iter().enumerate() {
            if pairs[..at].iter().any(|(other, _)| other == name) {
                return Err(Problem::bad(format!(
                    "the parameter {} is there twice",
                    Escaped(name)
                )));
            }
        }
        Ok(Query(pairs))
    }

    /// Rule: what is not known is an error, so that a misspelt parameter does not silently do something else.
    pub(crate) fn only(&self, known: &[&str]) -> Result<(), Problem> {
        match self
            .0
            .iter()
            .find(|(name, _)| !known.contains(&name.as_str()))
        {
            None => Ok(()),
            Some((name, _)) => Err(Problem::bad(format!(
                "there is no parameter {:?}; known are {}",
                Escaped(name),
                if known.is_empty() {
                    "none".to_owned()
                } else {
                    known.join(", ")
                }
            ))),
        }
    }

    /// The same, and the ways to write a key.
    pub(crate) fn only_key_and(&self, known: &[&str]) -> Result<(), Problem> {
        self.only(&[&KEYS[..], known].concat())
    }

    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.0
            .iter()
            .find(|(other, _)| other == name)
            .map(|(_, value)| value.as_str())
    }

    pub(crate) fn number<T: std::str::FromStr>(&self, name: &str) -> Result<Option<T>, Problem> {
        self.get(name)
            .map(|text| {
                text.parse().map_err(|_| {
                    Problem::bad(format!(
                        "{name} is no number in its bounds: {:?}",
                        Escaped(text)
                    ))
                })
            })
            .transpose()
    }

    pub(crate) fn flag(&self, name: &str) -> Result<bool, Problem> {
        match self.get(name) {
            None | Some("false") => Ok(false),
            Some("true") => Ok(true),
            Some(_) => Err(Problem::bad(format!("{name} is true or false"))),
        }
    }

    /// The one key.
    pub(crate) fn key(&self) -> Result<ApiKey, Problem> {
        let mut keys = KEYS
            .iter()
            .filter_map(|name| Some((*name, self.get(name)?)));
        match (keys.next(), keys.next()) {
            (Some((name, text)), None) => ApiKey::from_query(name, text),
            (None, _) => Err(Problem::new(
                Kind::BadKey,
                "there is no key: write key=TEXT, key.int=7, key.hex=00ff or key.tuple=[\"tenant\",7]",
            )),
            (Some(_), Some(_)) => Err(Problem::new(Kind::BadKey, "there are two keys")),
        }
    }
}
