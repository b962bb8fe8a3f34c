//! Names and identifiers: parsed once, valid ever after.

use std::borrow::Borrow;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::error::debug_as_display;
use crate::limits::MAX_NAME_BYTES;
use crate::text::{Escaped, is_hidden};

mod address;
mod short;
mod type_hash;

pub use address::{Address, AddressError};
use short::ShortStr;
pub(crate) use type_hash::TypeHash;

/// Why a string is not a name.
#[derive(Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NameError {
    /// The name has no characters.
    #[error("a {kind} must not be empty")]
    Empty {
        /// What was being named.
        kind: &'static str,
    },
    /// The name is longer than [`MAX_NAME_BYTES`].
    #[error("a {kind} has at most {MAX_NAME_BYTES} bytes (MAX_NAME_BYTES), this one has {bytes}")]
    TooLong {
        /// What was being named.
        kind: &'static str,
        /// Its length in bytes.
        bytes: usize,
    },
    /// The name holds a character that garbles logs and terminals, or makes a name look like another: a control character,
    /// one that turns the direction of text, one without width, or a separator of lines.
    #[error(
        "a {kind} must not hold control characters, nor ones that are invisible, turn the direction of text or end a line: \"{}\"",
        Escaped(name)
    )]
    ControlCharacter {
        /// What was being named.
        kind: &'static str,
        /// The rejected name.
        name: String,
    },
}

debug_as_display!(NameError);

fn check_name(kind: &'static str, name: &str) -> Result<(), NameError> {
    if name.is_empty() {
        return Err(NameError::Empty { kind });
    }
    if name.len() > MAX_NAME_BYTES {
        return Err(NameError::TooLong {
            kind,
            bytes: name.len(),
        });
    }
    if name.chars().any(is_hidden) {
        return Err(NameError::ControlCharacter {
            kind,
            name: name.to_owned(),
        });
    }
    Ok(())
}

macro_rules! name_type {
    ($(#[$doc:meta])* $name:ident($text:ty), $kind:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name($text);

        impl $name {
            /// Parses a name: 1 to [`MAX_NAME_BYTES`] bytes of UTF-8 without control characters, and without those
            /// that are invisible, turn the direction of text or end a line.
            pub fn try_new(name: impl AsRef<str>) -> Result<Self, NameError> {
                let name = name.as_ref();
                check_name($kind, name)?;
                Ok(Self(<$text>::from(name)))
            }

            /// The name as a string.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&*self.0, f)
            }
        }

        impl FromStr for $name {
            type Err = NameError;

            fn from_str(name: &str) -> Result<Self, NameError> {
                Self::try_new(name)
            }
        }

        impl TryFrom<String> for $name {
            type Error = NameError;

            fn try_from(name: String) -> Result<Self, NameError> {
                Self::try_new(name)
            }
        }

        impl TryFrom<&str> for $name {
            type Error = NameError;

            fn try_from(name: &str) -> Result<Self, NameError> {
                Self::try_new(name)
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.as_str().to_owned()
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Visitor;

                impl de::Visitor<'_> for Visitor {
                    type Value = $name;

                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        write!(f, "a {}", $kind)
                    }

                    fn visit_str<E: de::Error>(self, name: &str) -> Result<$name, E> {
                        $name::try_new(name).map_err(E::custom)
                    }
                }

                deserializer.deserialize_str(Visitor)
            }
        }
    };
}

name_type! {
    /// The name of a cluster: nodes of two clusters never talk to each other.
    ClusterName(Arc<str>), "cluster name"
}
name_type! {
    /// The name of a node, chosen by the user, unique in its cluster, the same after a restart.
    NodeName(Arc<str>), "node name"
}
name_type! {
    /// What callers ask for: `uploader`.
    ServiceType(Arc<str>), "service type"
}
name_type! {
    /// The stable name of an instance, which placement hashes.
    ///
    /// It survives restarts and says nothing of addresses, so that a restarted instance takes its keys back.
    InstanceName(ShortStr), "instance name"
}
name_type! {
    /// A failure domain (an availability zone, a rack) that copies may be spread over.
    Zone(Arc<str>), "zone"
}
name_type! {
    /// A topic of the publish/subscribe layer.
    Topic(Arc<str>), "topic"
}

impl ServiceType {
    /// True where somebody else holds the same text in memory.
    pub(crate) fn is_shared(&self) -> bool {
        Arc::strong_count(&self.0) > 1
    }
}

impl InstanceName {
    /// The name's text, as placement hashes it.
    pub(crate) fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

/// One life of a node name: larger with every start of a node of that name, and compared whole.
///
/// The number is the larger of the start's wall clock in microseconds and the highest number known
/// for that name plus one; the random part keeps two lives apart that took the same number.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Generation {
    /// Orders the lives of one name.
    pub number: u64,
    /// Tells lives of equal number apart.
    pub random: u64,
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:04x}", self.number, self.random & 0xffff)
    }
}

/// One life of a node: its name and its generation.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct NodeId {
    /// The name, the same in every life.
    pub name: NodeName,
    /// The life.
    pub generation: Generation,
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.name, self.generation)
    }
}

/// One running instance of a service, never reused.
///
/// It keeps its identity for as long as it runs, also when its node has to take a new generation.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ServiceId {
    /// The node that runs it.
    pub node: NodeName,
    /// Drawn at random when that process started.
    pub nonce: u64,
    /// Counts the services of that process, from 1.
    pub sequence: u64,
}

impl fmt::Display for ServiceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{:016x}/{}", self.node, self.nonce, self.sequence)
    }
}

/// A text that is no [`ServiceId`].
#[derive(Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ServiceIdError {
    /// It has not the form of one.
    #[error(
        "a service id is NODE/NONCE/NUMBER with a nonce of 16 hexadecimal digits, as in a/00c0ffee00c0ffee/1"
    )]
    Form,
    /// Its node is no name.
    #[error(transparent)]
    Name(#[from] NameError),
}

debug_as_display!(ServiceIdError);

impl FromStr for ServiceId {
    type Err = ServiceIdError;

    /// Reads what `Display` writes. The name of a node may hold slashes: the last two parts count.
    fn from_str(text: &str) -> Result<Self, ServiceIdError> {
        let mut parts = text.rsplitn(3, '/');
        let (Some(sequence), Some(nonce), Some(node)) = (parts.next(), parts.next(), parts.next())
        else {
            return Err(ServiceIdError::Form);
        };
        // Rule: one id has one text. `from_str_radix` takes signs, capitals and leading zeros, too.
        let is_hex = |c: char| c.is_ascii_digit() || ('a'..='f').contains(&c);
        if nonce.len() != 16 || !nonce.chars().all(is_hex) {
            return Err(ServiceIdError::Form);
        }
        let nonce = u64::from_str_radix(nonce, 16).map_err(|_| ServiceIdError::Form)?;
        let number: u64 = sequence.parse().map_err(|_| ServiceIdError::Form)?;
        if number.to_string() != sequence {
            return Err(ServiceIdError::Form);
        }
        Ok(ServiceId {
            node: NodeName::try_new(node)?,
            nonce,
            sequence: number,
        })
    }
}

/// Identifies one version of an entry; a later version of the same entry has a larger reference.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Reference {
    /// Number of the owner's generation in which the version was written.
    pub generation: u64,
    /// The owner's version at that write.
    pub version: u64,
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.generation, self.version)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_neither_empty_nor_too_long_nor_garbled() {
        assert!(matches!(
            NodeName::try_new(""),
            Err(NameError::Empty { .. })
        ));
        assert!(NodeName::try_new("n".repeat(MAX_NAME_BYTES)).is_ok());
        let error = NodeName::try_new("n".repeat(MAX_NAME_BYTES + 1)).unwrap_err();
        assert!(error.to_string().contains("MAX_NAME_BYTES"), "{error}");
        assert!(matches!(
            ServiceType::try_new("up\nloader"),
            Err(NameError::ControlCharacter { .. })
        ));
    }

    /// Every kind of name, parsed and decoded.
    fn kinds(text: &str) -> Vec<(&'static str, bool, bool)> {
        macro_rules! kinds {
            ($($kind:ident)*) => {
                vec![$((
                    stringify!($kind),
                    $kind::try_new(text).is_ok(),
                    postcard::from_bytes::<$kind>(&postcard::to_allocvec(text).unwrap()).is_ok(),
                )),*]
            };
        }
        kinds!(NodeName ClusterName ServiceType InstanceName Zone Topic)
    }

    #[test]
    fn no_kind_of_name_holds_a_character_that_hides() {
        for hidden in ('\0'..=char::MAX).filter(|c| is_hidden(*c)) {
            for (kind, parsed, decoded) in kinds(&format!("no{hidden}de")) {
                assert!(!parsed && !decoded, "a {kind} with {hidden:?}");
            }
            let error = NodeName::try_new(format!("no{hidden}de"))
                .unwrap_err()
                .to_string();
            assert!(!error.chars().any(is_hidden), "{error}");
        }
        for (kind, parsed, decoded) in kinds("Größe 1/名前-שלום@a:b 😀") {
            assert!(parsed && decoded, "{kind}");
        }
    }

    #[test]
    fn a_decoded_name_is_checked_like_a_parsed_one() {
        let bytes = postcard::to_allocvec("").unwrap();
        assert!(postcard::from_bytes::<NodeName>(&bytes).is_err());
    }

    #[test]
    fn a_service_id_is_read_as_it_is_written_and_in_no_other_way() {
        for (node, nonce, sequence) in [
            ("a", 0, 1),
            ("eu/a/b", u64::MAX, u64::MAX),
            ("ä b", 0xc0ffee, 7),
        ] {
            let id = ServiceId {
                node: NodeName::try_new(node).unwrap(),
                nonce,
                sequence,
            };
            assert_eq!(id.to_string().parse::<ServiceId>().unwrap(), id);
        }
        for wrong in [
            "",
            "a",
            "a/1",
            "a/1/1",
            "/00c0ffee00c0ffee/1",
            "a/00C0FFEE00c0ffee/1",
            "a/+0c0ffee00c0ffee/1",
            "a/00c0ffee00c0ffee/",
            "a/00c0ffee00c0ffee/+1",
            "a/00c0ffee00c0ffee/01",
            "a/00c0ffee00c0ffee/18446744073709551616",
            "a\n/00c0ffee00c0ffee/1",
        ] {
            assert!(wrong.parse::<ServiceId>().is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn generations_order_by_number_first() {
        let old = Generation {
            number: 1,
            random: 9,
        };
        let new = Generation {
            number: 2,
            random: 0,
        };
        assert!(old < new);
    }
}
