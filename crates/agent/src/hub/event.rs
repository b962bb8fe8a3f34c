//! What happened: one event, where it stands, and how it is written.

use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use bytes::Bytes;
use keydispatch::ServiceInfo;
use serde_json::{Value, json};

use crate::clock::rfc3339;
use crate::shapes::{self, REASON};

/// Where a watcher of one type stands: everything up to the view of that version, and of the change that led to the next
/// one the first `nth` events. It is the id of an event, and the ETag of a type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Position {
    pub(crate) version: u64,
    pub(crate) nth: u32,
}

impl Position {
    /// All that led to a view of that version.
    pub(crate) fn of_view(version: u64) -> Self {
        Position {
            version,
            nth: u32::MAX,
        }
    }
}

/// A position in the life of one agent. Opaque to clients, and never compared by them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Index {
    pub(crate) life: String,
    pub(crate) position: Position,
}

impl fmt::Display for Index {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Position { version, nth } = self.position;
        match nth {
            u32::MAX => write!(f, "{}-{version}", self.life),
            nth => write!(f, "{}-{version}.{nth}", self.life),
        }
    }
}

impl FromStr for Index {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (life, position) = text.trim_matches('"').split_once('-').ok_or(())?;
        let (version, nth) = match position.split_once('.') {
            Some((version, nth)) => (version, nth.parse().map_err(|_| ())?),
            None => (position, u32::MAX),
        };
        Ok(Index {
            life: life.to_owned(),
            position: Position {
                version: version.parse().map_err(|_| ())?,
                nth,
            },
        })
    }
}

/// One thing that happened.
#[derive(Debug)]
pub(crate) struct Event {
    /// Counts the events of this agent's life, from 1.
    pub(crate) seq: u64,
    pub(crate) at: SystemTime,
    pub(crate) kind: &'static str,
    pub(crate) service_type: Option<String>,
    pub(crate) node: Option<String>,
    pub(crate) because: Option<String>,
    /// Of a change of the registry.
    pub(crate) change: Option<Change>,
    pub(super) frame: OnceLock<Bytes>,
}

/// A change of the registry: at most one of the two is none.
#[derive(Debug)]
pub(crate) struct Change {
    pub(super) position: Position,
    pub(crate) before: Option<Arc<ServiceInfo>>,
    pub(crate) after: Option<Arc<ServiceInfo>>,
}

impl Change {
    fn latest(&self) -> Option<&Arc<ServiceInfo>> {
        self.after.as_ref().or(self.before.as_ref())
    }
}

impl Event {
    /// As `/v1/events` has it.
    pub(crate) fn to_json(&self, life: &str) -> Value {
        let mut value = json!({
            "id": format!("{life}-{}", self.seq),
            "at": rfc3339(self.at),
            "kind": self.kind,
            "type": self.service_type,
            "node": self.node,
            "because": self.because,
        });
        if let Some(change) = &self.change {
            let state = |info: &Option<Arc<ServiceInfo>>| {
                info.as_ref().map(|info| info.state().to_string())
            };
            value["name"] = json!(change.latest().map(|info| info.name().as_str()));
            value["before"] = json!(state(&change.before));
            value["after"] = json!(state(&change.after));
        }
        value
    }

    /// As whoever watches its type gets it: written once for all of them, and only where there is one.
    pub(crate) fn frame(&self, life: &str) -> Bytes {
        let written = self.frame.get_or_init(|| {
            let Some(change) = &self.change else {
                return Bytes::new();
            };
            let info = |info: &Option<Arc<ServiceInfo>>| info.as_ref().map(|info| shapes::instance(info, None));
            let (name, data) = match (&change.before, &change.after) {
                (None, after) => ("joined", json!({ "service": info(after) })),
                (before, None) => ("left", json!({ "service": info(before), "because": self.because })),
                (before, after) => (
                    "updated",
                    json!({ "before": info(before), "service": info(after), "because": self.because }),
                ),
            };
            let id = Index {
                life: life.to_owned(),
                position: change.position,
            };
            frame(name, Some(&id), &data)
        });
        written.clone()
    }
}

/// An event of a stream. JSON has no line breaks of its own, and names of events and ids are ours.
pub(crate) fn frame(name: &str, id: Option<&dyn fmt::Display>, data: &Value) -> Bytes {
    let id = id.map(|id| format!("id: {id}\n")).unwrap_or_default();
    Bytes::from(format!("event: {name}\n{id}data: {data}\n\n"))
}

/// Why an entry changed, in words.
pub(super) fn because(
    before: Option<&ServiceInfo>,
    after: Option<&ServiceInfo>,
    went: impl Fn(&str) -> Option<&'static str>,
) -> Option<String> {
    match (before, after) {
        (None, Some(after)) => Some(format!(
            "{} was registered on {}",
            after.name(),
            after.node()
        )),
        (Some(before), None) => Some(match went(before.node().as_str()) {
            Some(how) => format!("{} went: its node {} {how}", before.name(), before.node()),
            None => format!("{} was removed", before.name()),
        }),
        (Some(before), Some(after)) if before.state() != after.state() => {
            let why = after
                .tag(REASON)
                .map(|why| format!(": {why}"))
                .unwrap_or_default();
            Some(format!("{} went {}{why}", after.name(), after.state()))
        }
        (Some(before), Some(after)) if before.weight() != after.weight() => Some(format!(
            "the weight of {} went from {} to {}",
            after.name(),
            before.weight().value(),
            after.weight().value()
        )),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_is_read_as_it_is_written() {
        for text in [
            "00c0ffee-7",
            "00c0ffee-7.0",
            "00c0ffee-18446744073709551615.3",
        ] {
            let index: Index = text.parse().unwrap();
            assert_eq!(index.to_string(), text);
            assert_eq!(format!("\"{text}\"").parse::<Index>().unwrap(), index);
        }
        assert!("7".parse::<Index>().is_err() && "a-b".parse::<Index>().is_err());
        let before: Index = "a-7.3".parse().unwrap();
        let after: Index = "a-7".parse().unwrap();
        assert!(before.position < after.position);
    }
}
