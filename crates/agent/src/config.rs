//! What an agent is configured by: a flag, then the environment, then the file, then the default; and which of them it was.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use keydispatch::{Config, ConfigError};
use serde::Deserialize;
use serde::de::{self, Deserializer};

use crate::address::Network;

/// What a setting is, which says how a text from the environment is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Text,
    Number,
    Flag,
    List,
}

/// A setting by the file's section and key, its form, and its default as it is shown.
type Known = (&'static str, Form, &'static str);

/// Every setting but those of single types. `config show` prints them in this order.
const KNOWN: &[Known] = &[
    ("node.name", Form::Text, "the host's name"),
    ("node.bind", Form::Text, "127.0.0.1:0"),
    ("node.advertise", Form::Text, "the bound address"),
    ("node.dial_link_local", Form::Flag, "false"),
    ("node.seeds", Form::List, "none"),
    ("node.expect", Form::Number, "nobody"),
    ("node.zone", Form::Text, "none"),
    ("node.ca", Form::Text, "none"),
    ("node.cert", Form::Text, "none"),
    ("node.key", Form::Text, "none"),
    ("node.crl", Form::Text, "none"),
    (
        "node.plaintext",
        Form::Flag,
        "true on a loopback address without certificates, else false",
    ),
    ("node.max_payload_bytes", Form::Number, "16777216"),
    (
        "node.waiting_bytes",
        Form::Number,
        "a quarter of the memory, at most 1 GiB",
    ),
    ("node.drain_timeout", Form::Text, "30s"),
    ("pubsub.name", Form::Text, "dispatch"),
    ("pubsub.adapter", Form::Text, "mesh"),
    ("pubsub.pool_size", Form::Number, "1"),
    ("pubsub.topic_bytes", Form::Number, "67108864"),
    ("registry.log_level", Form::Text, "info"),
    ("registry.broadcast_period", Form::Text, "250ms"),
    ("registry.max_silent_periods", Form::Number, "3"),
    ("registry.down_period", Form::Text, "1500ms"),
    ("registry.permdown_period", Form::Text, "20min"),
    ("registry.permdown_on_shutdown", Form::Flag, "false"),
    ("registry.max_delta_sizes", Form::Number, "10000"),
    (
        "agent.state_dir",
        Form::Text,
        "/var/lib/dispatch, or in the home of who starts it",
    ),
    (
        "agent.api.socket",
        Form::Text,
        "/run/dispatch/agent.sock, or in $XDG_RUNTIME_DIR",
    ),
    ("agent.api.admin_group", Form::Text, "dispatch-admin"),
    ("agent.api.tcp", Form::Text, "off"),
    (
        "agent.api.hosts",
        Form::List,
        "the addresses of this machine",
    ),
    ("agent.api.tokens", Form::Text, "none"),
    ("agent.api.cert", Form::Text, "none"),
    ("agent.api.key", Form::Text, "none"),
    ("agent.ops.bind", Form::Text, "127.0.0.1:7402"),
    ("agent.checks.allow", Form::List, "none"),
    ("agent.checks.damping", Form::Text, "10s"),
    ("agent.checks.min_healthy", Form::Text, "0%"),
];

/// The paths among them, which are relative to the file that names them.
const PATHS: &[&str] = &[
    "node.ca",
    "node.cert",
    "node.key",
    "node.crl",
    "agent.state_dir",
    "agent.api.socket",
    "agent.api.tokens",
    "agent.api.cert",
    "agent.api.key",
];

/// What stands in front of a setting in the environment: `DISPATCH_NODE__BIND` is `node.bind`.
const PREFIX: &str = "DISPATCH_";

/// Why an agent cannot be configured so; the message names the setting and where it comes from.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SettingError {
    /// The file cannot be read.
    #[error("cannot read the configuration {}: {source}", path.display())]
    Read {
        /// Its path.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is no TOML.
    #[error("{origin}: {message}")]
    Wrong {
        /// Where it comes from.
        origin: Origin,
        /// What is wrong.
        message: String,
    },
    /// There is no such setting.
    #[error("{origin}: there is no setting {key}; `dispatch config show` lists them")]
    Unknown {
        /// Where it comes from.
        origin: Origin,
        /// What was set.
        key: String,
    },
    /// A setting of the library is wrong.
    #[error(transparent)]
    Library(#[from] ConfigError),
}

/// Where a setting comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Origin {
    /// Nothing says it.
    Default,
    /// A file says it.
    File(PathBuf),
    /// A variable of the environment says it.
    Environment(String),
    /// The command line says it.
    Flag(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Default => f.write_str("default"),
            Origin::File(path) => write!(f, "{}", path.display()),
            Origin::Environment(name) => write!(f, "${name}"),
            Origin::Flag(flag) => f.write_str(flag),
        }
    }
}

/// The settings of an agent by name, each with where it comes from.
///
/// ```
/// use keydispatch_agent::{Layers, Origin};
/// let mut layers = Layers::default();
/// layers.text("[node]\nname = \"a\"\n", Origin::File("agent.toml".into()), None)?;
/// layers.environment([("DISPATCH_NODE__NAME".to_owned(), "b".to_owned())])?;
/// let shown = layers.shown();
/// let (_, value, origin) = shown.iter().find(|(key, ..)| key == "node.name").unwrap();
/// assert_eq!((value.as_str(), origin.to_string().as_str()), ("\"b\"", "$DISPATCH_NODE__NAME"));
/// # Ok::<(), keydispatch_agent::SettingError>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct Layers {
    table: toml::Table,
    origins: BTreeMap<String, Origin>,
}

impl Layers {
    /// Reads a file. Paths in it are relative to it.
    ///
    /// # Errors
    ///
    /// It cannot be read, is no TOML, or has a setting that is not known or of another type.
    pub fn file(&mut self, path: &Path) -> Result<(), SettingError> {
        let text = std::fs::read_to_string(path).map_err(|source| SettingError::Read {
            path: path.to_owned(),
            source,
        })?;
        self.text(&text, Origin::File(path.to_owned()), path.parent())
    }

    /// Takes settings from TOML; what was set before and is set here, too, is replaced.
    ///
    /// # Errors
    ///
    /// As [`file`](Self::file).
    pub fn text(
        &mut self,
        text: &str,
        origin: Origin,
        relative_to: Option<&Path>,
    ) -> Result<(), SettingError> {
        let wrong = |message: String| SettingError::Wrong {
            origin: origin.clone(),
            message,
        };
        // The library says on which line what is wrong.
        Config::parse(text).map_err(|error| wrong(error.to_string()))?;
        let file: File = toml::from_str(text).map_err(|error| wrong(error.to_string()))?;
        file.agent.check().map_err(wrong)?;
        let table: toml::Table = toml::from_str(text).map_err(|error| wrong(error.to_string()))?;
        for (key, value) in flat(&table) {
            if key.starts_with("app.") {
                continue;
            }
            let value = match (relative_to, value) {
                (Some(directory), toml::Value::String(path)) if PATHS.contains(&key.as_str()) => {
                    toml::Value::String(directory.join(path).to_string_lossy().into_owned())
                }
                (_, value) => value,
            };
            self.set(&key, value, origin.clone());
        }
        Ok(())
    }

    /// Takes what the environment says; variables without `__` are not settings.
    ///
    /// # Errors
    ///
    /// There is no setting of that name, or it is of another type.
    pub fn environment(
        &mut self,
        variables: impl IntoIterator<Item = (String, String)>,
    ) -> Result<(), SettingError> {
        for (name, text) in variables {
            let Some(rest) = name.strip_prefix(PREFIX).filter(|rest| rest.contains("__")) else {
                continue;
            };
            let key = rest
                .split("__")
                .map(str::to_lowercase)
                .collect::<Vec<_>>()
                .join(".");
            self.flag(&key, &text, Origin::Environment(name))?;
        }
        Ok(())
    }

    /// Sets one setting by a text.
    ///
    /// # Errors
    ///
    /// As [`environment`](Self::environment).
    pub fn flag(&mut self, key: &str, text: &str, origin: Origin) -> Result<(), SettingError> {
        let Some((_, form, _)) = KNOWN.iter().find(|(known, ..)| *known == key) else {
            return Err(SettingError::Unknown {
                origin,
                key: key.to_owned(),
            });
        };
        let wrong = |what: &str| SettingError::Wrong {
            origin: origin.clone(),
            message: format!("{key} is {what}, not {text:?}"),
        };
        let value = match form {
            Form::Text => toml::Value::String(text.to_owned()),
            Form::Number => toml::Value::Integer(text.parse().map_err(|_| wrong("a number"))?),
            Form::Flag => toml::Value::Boolean(text.parse().map_err(|_| wrong("true or false"))?),
            Form::List => toml::Value::Array(
                text.split(',')
                    .map(str::trim)
                    .filter(|part| !part.is_empty())
                    .map(|part| toml::Value::String(part.to_owned()))
                    .collect(),
            ),
        };
        self.set(key, value, origin);
        Ok(())
    }

    fn set(&mut self, key: &str, value: toml::Value, origin: Origin) {
        let mut table = &mut self.table;
        let mut parts: Vec<&str> = key.split('.').collect();
        let last = parts.pop().unwrap_or_default();
        for part in parts {
            let entry = table
                .entry(part)
                .or_insert_with(|| toml::Value::Table(toml::Table::new()));
            if !entry.is_table() {
                *entry = toml::Value::Table(toml::Table::new());
            }
            match entry {
                toml::Value::Table(inner) => table = inner,
                _ => return,
            }
        }
        table.insert(last.to_owned(), value);
        self.origins.insert(key.to_owned(), origin);
    }

    fn get(&self, key: &str) -> Option<&toml::Value> {
        let mut parts = key.split('.');
        let mut value = self.table.get(parts.next()?)?;
        for part in parts {
            value = value.as_table()?.get(part)?;
        }
        Some(value)
    }

    /// Every setting with its value and where that comes from; the default where nothing says it.
    pub fn shown(&self) -> Vec<(String, String, Origin)> {
        let mut shown: Vec<_> = KNOWN
            .iter()
            .map(|(key, _, default)| match self.get(key) {
                Some(value) => (
                    (*key).to_owned(),
                    value.to_string(),
                    self.origins.get(*key).cloned().unwrap_or(Origin::Default),
                ),
                None => ((*key).to_owned(), (*default).to_owned(), Origin::Default),
            })
            .collect();
        for (key, value) in flat(&self.table) {
            if key.starts_with("agent.types.") {
                let origin = self.origins.get(&key).cloned().unwrap_or(Origin::Default);
                shown.push((key, value.to_string(), origin));
            }
        }
        shown
    }

    /// The configuration of the agent, everything checked.
    ///
    /// # Errors
    ///
    /// A setting is wrong, or two do not go together.
    pub fn finish(&self) -> Result<AgentConfig, SettingError> {
        let mut layers = self.clone();
        let is_set = |key: &str| layers.get(key).is_some();
        let bind = layers
            .get("node.bind")
            .and_then(toml::Value::as_str)
            .unwrap_or("127.0.0.1:0");
        let on_loopback = bind
            .parse::<SocketAddr>()
            .is_ok_and(|address| address.ip().is_loopback());
        let unencrypted = on_loopback
            && ![
                "node.ca",
                "node.cert",
                "node.key",
                "node.plaintext",
                "pubsub.adapter",
            ]
            .iter()
            .any(|key| is_set(key));
        if unencrypted {
            // Rule: without a configuration there is a node that nobody on another machine reaches.
            layers.set(
                "node.plaintext",
                toml::Value::Boolean(true),
                Origin::Default,
            );
        }
        let text = layers.table.to_string();
        let node = Config::parse(&text)?;
        let file: File = toml::from_str(&text).map_err(|error| SettingError::Wrong {
            origin: Origin::Default,
            message: error.to_string(),
        })?;
        file.agent.check().map_err(|message| SettingError::Wrong {
            origin: Origin::Default,
            message,
        })?;
        Ok(AgentConfig {
            node,
            agent: file.agent,
        })
    }
}

/// A table's values by the whole names of their keys; arrays are values.
fn flat(table: &toml::Table) -> Vec<(String, toml::Value)> {
    let mut all = Vec::new();
    for (key, value) in table {
        match value {
            toml::Value::Table(inner) => {
                all.extend(
                    flat(inner)
                        .into_iter()
                        .map(|(rest, value)| (format!("{key}.{rest}"), value)),
                );
            }
            value => all.push((key.clone(), value.clone())),
        }
    }
    all
}

/// A configuration whose settings were all checked; [`Layers`] makes it.
#[derive(Clone, Debug)]
pub struct AgentConfig {
    pub(crate) node: Config,
    pub(crate) agent: AgentSection,
}

#[derive(Deserialize)]
struct File {
    #[serde(default)]
    agent: AgentSection,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct AgentSection {
    pub(crate) state_dir: Option<PathBuf>,
    pub(crate) api: ApiSection,
    pub(crate) ops: OpsSection,
    pub(crate) checks: ChecksSection,
    pub(crate) types: BTreeMap<String, TypeSection>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct ApiSection {
    pub(crate) socket: Option<PathBuf>,
    pub(crate) admin_group: Option<String>,
    pub(crate) tcp: Option<Bind>,
    pub(crate) hosts: Vec<String>,
    pub(crate) tokens: Option<PathBuf>,
    pub(crate) cert: Option<PathBuf>,
    pub(crate) key: Option<PathBuf>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct OpsSection {
    pub(crate) bind: Option<Bind>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct ChecksSection {
    pub(crate) allow: Vec<Network>,
    pub(crate) damping: Option<Period>,
    pub(crate) min_healthy: Option<Percent>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct TypeSection {
    pub(crate) min_healthy: Option<Percent>,
}

impl AgentSection {
    /// What no single setting shows.
    fn check(&self) -> Result<(), String> {
        let api = &self.api;
        if api.cert.is_some() != api.key.is_some() {
            return Err(
                "agent.api.cert and agent.api.key belong together: set both or none".to_owned(),
            );
        }
        if let Some(Bind::At(address)) = &api.tcp
            && !address.ip().is_loopback()
            && (api.cert.is_none() || api.tokens.is_none())
        {
            return Err(format!(
                "agent.api.tcp = {address} is reached from other machines: set agent.api.cert, agent.api.key and \
                 agent.api.tokens, or listen on 127.0.0.1"
            ));
        }
        Ok(())
    }

    pub(crate) fn min_healthy(&self, service_type: &str) -> u32 {
        self.types
            .get(service_type)
            .and_then(|of_type| of_type.min_healthy)
            .or(self.checks.min_healthy)
            .map_or(0, |Percent(percent)| percent)
    }
}

/// An address to listen on, or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bind {
    Off,
    At(SocketAddr),
}

impl<'de> Deserialize<'de> for Bind {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        if text == "off" {
            return Ok(Bind::Off);
        }
        text.parse().map(Bind::At).map_err(|_| {
            de::Error::custom(format!(
                "{text:?} is neither \"off\" nor an address as in 127.0.0.1:7401"
            ))
        })
    }
}

/// A period as a text: `"250ms"`, `"15s"`, `"2min"`, `"1h"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Period(pub(crate) Duration);

impl FromStr for Period {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parsed = || {
            let digits = text.find(|c: char| !c.is_ascii_digit())?;
            let number: u64 = text[..digits].parse().ok()?;
            let unit = match &text[digits..] {
                "ms" => 1,
                "s" => 1_000,
                "min" | "m" => 60_000,
                "h" => 3_600_000,
                _ => return None,
            };
            Some(Duration::from_millis(number.checked_mul(unit)?))
        };
        parsed().map(Period).ok_or_else(|| {
            format!("{text:?} is no period: write \"250ms\", \"15s\", \"2min\" or \"1h\"")
        })
    }
}

impl<'de> Deserialize<'de> for Period {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(de::Error::custom)
    }
}

impl serde::Serialize for Period {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&format!("{}ms", self.0.as_millis()))
    }
}

/// A share as a text: `"50%"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Percent(pub(crate) u32);

impl<'de> Deserialize<'de> for Percent {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.strip_suffix('%')
            .and_then(|number| number.parse().ok())
            .filter(|percent| *percent <= 100)
            .map(Percent)
            .ok_or_else(|| {
                de::Error::custom(format!("{text:?} is no share: write \"0%\" to \"100%\""))
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layers(text: &str) -> Result<Layers, SettingError> {
        let mut layers = Layers::default();
        layers.text(
            text,
            Origin::File("agent.toml".into()),
            Some(Path::new("/etc/dispatch")),
        )?;
        Ok(layers)
    }

    fn error(text: &str) -> String {
        let failed = layers(text).and_then(|layers| layers.finish().map(drop));
        failed.unwrap_err().to_string()
    }

    #[tokio::test]
    async fn nothing_is_a_configuration_and_listens_on_loopback_alone() {
        let config = Layers::default().finish().unwrap();
        assert!(config.node.builder("a").is_ok());
        let mut beyond = Layers::default();
        beyond
            .flag("node.bind", "0.0.0.0:7400", Origin::Flag("--bind".into()))
            .unwrap();
        let beyond = beyond.finish().unwrap().node.builder("a").unwrap();
        let beyond = beyond.start().await.unwrap_err();
        assert!(beyond.to_string().contains("node.plaintext"), "{beyond}");
    }

    #[test]
    fn a_flag_beats_the_environment_beats_the_file_and_each_says_where_it_is_from() {
        let mut layers =
            layers("[node]\nname = \"f\"\nzone = \"f\"\nca = \"ca.pem\"\nseeds = [\"x:1\"]\n")
                .unwrap();
        let variables = [
            ("DISPATCH_NODE__NAME", "e"),
            ("DISPATCH_NODE__SEEDS", "a:1, b:2"),
            ("DISPATCH_NODE__EXPECT", "3"),
            ("DISPATCH_ADDR", "not a setting"),
            ("OTHER", "x"),
        ];
        let variables = variables.map(|(name, text)| (name.to_owned(), text.to_owned()));
        layers.environment(variables).unwrap();
        layers
            .flag("node.name", "g", Origin::Flag("--name".into()))
            .unwrap();
        let shown = layers.shown();
        let of = |key: &str| {
            let (_, value, origin) = shown.iter().find(|(known, ..)| known == key).unwrap();
            (value.clone(), origin.to_string())
        };
        let pair = |value: &str, origin: &str| (value.to_owned(), origin.to_owned());
        assert_eq!(of("node.name"), pair("\"g\"", "--name"));
        assert_eq!(
            of("node.seeds"),
            pair("[\"a:1\", \"b:2\"]", "$DISPATCH_NODE__SEEDS")
        );
        assert_eq!(of("node.expect"), pair("3", "$DISPATCH_NODE__EXPECT"));
        assert_eq!(of("node.zone"), pair("\"f\"", "agent.toml"));
        assert_eq!(
            of("node.ca"),
            pair("\"/etc/dispatch/ca.pem\"", "agent.toml")
        );
        assert_eq!(of("node.bind"), pair("127.0.0.1:0", "default"));
    }

    #[test]
    fn what_is_not_known_or_of_another_type_is_named_with_where_it_is_from() {
        for (text, part) in [
            ("[node]\nnmae = \"a\"", "nmae"),
            ("[agent.api]\nscoket = \"a\"", "scoket"),
            ("[agent.api]\ntcp = \"here\"", "here"),
            ("[agent.api]\ntcp = \"0.0.0.0:7401\"", "agent.api.tokens"),
            ("[agent.api]\ncert = \"a.pem\"", "agent.api.key"),
            ("[agent.checks]\nmin_healthy = \"150%\"", "150%"),
            ("[agent.checks]\ndamping = \"soon\"", "soon"),
            ("[agent.checks]\nallow = [\"10.0.0.0/64\"]", "10.0.0.0/64"),
        ] {
            let error = error(text);
            assert!(
                error.contains(part) && error.contains("agent.toml"),
                "{text}: {error}"
            );
        }
        let mut layers = Layers::default();
        let unknown = layers.environment([("DISPATCH_NODE__NMAE".to_owned(), "a".to_owned())]);
        assert!(
            unknown
                .unwrap_err()
                .to_string()
                .contains("$DISPATCH_NODE__NMAE")
        );
        let wrong = layers.environment([("DISPATCH_NODE__EXPECT".to_owned(), "many".to_owned())]);
        assert!(
            wrong
                .unwrap_err()
                .to_string()
                .contains("node.expect is a number")
        );
    }

    #[test]
    fn a_type_has_a_share_of_its_own_that_stays_online() {
        let layers = layers(
            "[agent.checks]\nmin_healthy = \"20%\"\n[agent.types.chat]\nmin_healthy = \"50%\"\n",
        )
        .unwrap();
        let agent = layers.finish().unwrap().agent;
        assert_eq!(
            (agent.min_healthy("chat"), agent.min_healthy("other")),
            (50, 20)
        );
        assert!(
            layers
                .shown()
                .iter()
                .any(|(key, ..)| key == "agent.types.chat.min_healthy")
        );
    }
}
