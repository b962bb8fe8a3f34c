//! Which messages a service takes, and how its entry says so among the labels, where older nodes skip it.

use std::fmt;
use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};

/// The label of [`Accepts`] among the tags of an entry that travels. Nodes that do not know it show it as a tag.
pub(super) const ACCEPTS_TAG: &str = "keydispatch:accepts";

/// How the messages of a protocol are encoded.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[non_exhaustive]
pub enum Codec {
    /// Compact, by position: a field costs its value alone.
    ///
    /// What it cannot hold is what has to be looked at to know what it is, or whose length is not known beforehand:
    /// `serde_json::Value`, `#[serde(untagged)]`, `#[serde(tag = …)]`, `#[serde(flatten)]`. A field that
    /// `skip_serializing_if` leaves out is missing for whoever reads by position, so that the fields behind it are
    /// read from the wrong places: do not use it here. Fields are added or moved with a new version alone; a variant
    /// may be added at the end of an enum.
    #[default]
    Postcard,
    /// Self-describing, with the names of the fields: all of the above works, and a field with `#[serde(default)]` may
    /// be added or left out.
    MessagePack,
    /// The same as text, for whoever reads along. Bytes become lists of numbers, and the keys of maps are strings or
    /// numbers.
    Json,
}

impl Codec {
    const ALL: [Codec; 3] = [Codec::Postcard, Codec::MessagePack, Codec::Json];

    /// As errors and logs have it.
    pub const fn name(self) -> &'static str {
        match self {
            Codec::Postcard => "postcard",
            Codec::MessagePack => "messagepack",
            Codec::Json => "json",
        }
    }

    /// As headers have it; never changed.
    pub const fn number(self) -> u32 {
        match self {
            Codec::Postcard => 0,
            Codec::MessagePack => 1,
            Codec::Json => 2,
        }
    }

    fn of_name(name: &str) -> Option<Codec> {
        Codec::ALL.into_iter().find(|codec| codec.name() == name)
    }
}

impl fmt::Display for Codec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What is behind the versions in the label of a service whose states move with their keys. Nodes that do not know it
/// understand nothing of that label, and so send the service nothing.
const KEYED: &str = " keyed";

/// Which messages a service takes: some versions, in one codec.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Accepts {
    first: u32,
    last: u32,
    /// None for one that this node does not know.
    codec: Option<Codec>,
    /// Each with its key alone: the service has a state for each.
    keyed: bool,
}

impl Accepts {
    /// Those versions in that codec.
    pub const fn new(versions: RangeInclusive<u32>, codec: Codec) -> Self {
        Accepts {
            first: *versions.start(),
            last: *versions.end(),
            codec: Some(codec),
            keyed: false,
        }
    }

    /// The same, of a service that has a state for each key.
    #[must_use]
    pub const fn keyed(self) -> Self {
        Accepts {
            keyed: true,
            ..self
        }
    }

    /// True of a service that has a state for each key, which moves with the key.
    #[inline]
    pub const fn is_keyed(&self) -> bool {
        self.keyed
    }

    /// That version alone, in postcard: what an entry says that says nothing else.
    pub const fn only(version: u32) -> Self {
        Accepts::new(version..=version, Codec::Postcard)
    }

    /// Rule: what is not understood takes nothing, so that no message is ever misread.
    const NOTHING: Accepts = Accepts {
        first: 1,
        last: 0,
        codec: None,
        keyed: false,
    };

    /// True where a message of that version in that codec is understood.
    #[inline]
    pub fn takes(&self, version: u32, codec: Codec) -> bool {
        self.first <= version && version <= self.last && self.codec == Some(codec)
    }

    /// The versions; an empty range where this node does not understand what the entry says.
    pub fn versions(&self) -> RangeInclusive<u32> {
        self.first..=self.last
    }

    /// The codec; none where this node does not know it.
    pub fn codec(&self) -> Option<Codec> {
        self.codec
    }

    /// As a label.
    pub(super) fn to_label(self) -> Box<str> {
        let codec = self.codec.map_or("?", Codec::name);
        let keyed = if self.keyed { KEYED } else { "" };
        format!("{codec} {}-{}{keyed}", self.first, self.last).into()
    }

    pub(super) fn of_label(label: &str) -> Self {
        let parse = || {
            let (label, keyed) = match label.strip_suffix(KEYED) {
                Some(label) => (label, true),
                None => (label, false),
            };
            let (codec, versions) = label.split_once(' ')?;
            let (first, last) = versions.split_once('-')?;
            Some(Accepts {
                first: first.parse().ok()?,
                last: last.parse().ok()?,
                codec: Codec::of_name(codec),
                keyed,
            })
        };
        parse().unwrap_or(Accepts::NOTHING)
    }

    /// As an entry holds it.
    pub(super) fn to_parts(self) -> (u32, u32, u32, bool) {
        let codec = self.codec.map_or(u32::MAX, Codec::number);
        (self.first, self.last, codec, self.keyed)
    }

    pub(super) fn of_parts((first, last, codec, keyed): (u32, u32, u32, bool)) -> Self {
        let codec = Codec::ALL.into_iter().find(|one| one.number() == codec);
        Accepts {
            first,
            last,
            codec,
            keyed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_service_takes_comes_back_from_its_label_and_its_parts() {
        for codec in Codec::ALL {
            for versions in [1..=1, 1..=2, 0..=u32::MAX] {
                let accepts = Accepts::new(versions, codec);
                for accepts in [accepts, accepts.keyed()] {
                    assert_eq!(Accepts::of_label(&accepts.to_label()), accepts);
                    assert_eq!(Accepts::of_parts(accepts.to_parts()), accepts);
                }
            }
        }
    }

    #[test]
    fn what_is_not_understood_takes_nothing() {
        for label in [
            "",
            "postcard",
            "postcard 1",
            "postcard 1-",
            "postcard a-b",
            "later 1-2",
            "keyed",
            "postcard 1-2 keyed more",
        ] {
            let accepts = Accepts::of_label(label);
            for codec in Codec::ALL {
                assert!(
                    (0..4).all(|version| !accepts.takes(version, codec)),
                    "{label}"
                );
            }
            let again = Accepts::of_parts(accepts.to_parts());
            assert_eq!(again, accepts);
        }
    }
}
