//! Settings: from a TOML file, every key known, typed and bounded, or an error that names it; and by number, with their bounds.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use keydispatch_core::settings::*;
use keydispatch_core::{ClusterName, NameError, NodeName, Zone};
use serde::Deserialize;
use serde::de::{self, Deserializer, Visitor};

/// Default `pubsub.pool_size`.
pub(crate) const DEFAULT_POOL_SIZE: usize = 1;

/// Largest `pubsub.pool_size`.
pub const MAX_POOL_SIZE: usize = 64;

/// How nodes reach each other, `pubsub.adapter`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Adapter {
    /// A full mesh of connections between the nodes of the cluster.
    #[default]
    Mesh,
    /// No network: a cluster of this node alone. Nothing is bound, and seeds are an error.
    Local,
}

/// How much the registry logs of what it sees, `registry.log_level`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// Nothing.
    Off,
    /// What stops this node.
    Error,
    /// What an operator should look at.
    Warn,
    /// Members that come and go.
    #[default]
    Info,
    /// Services that come and go, too.
    Debug,
    /// Everything.
    Trace,
}

impl LogLevel {
    /// True where events of that level are to be logged.
    pub(crate) fn allows(self, level: tracing::Level) -> bool {
        let needed = match level {
            tracing::Level::ERROR => LogLevel::Error,
            tracing::Level::WARN => LogLevel::Warn,
            tracing::Level::INFO => LogLevel::Info,
            tracing::Level::DEBUG => LogLevel::Debug,
            tracing::Level::TRACE => LogLevel::Trace,
        };
        self >= needed
    }
}

/// Everything that a TOML file can say, all of it optional.
///
/// ```
/// let config = keydispatch::Config::parse(r#"
///     [node]
///     name = "a"
///     bind = "0.0.0.0:7400"
///     seeds = ["10.0.0.2:7400"]
///
///     [pubsub]
///     name = "files"
///
///     [registry]
///     down_period = "3s"
/// "#)?;
/// assert!(config.builder("unnamed").is_ok());
/// # Ok::<(), keydispatch::ConfigError>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    pub(crate) node: NodeSection,
    pub(crate) pubsub: PubSubSection,
    pub(crate) registry: RegistrySection,
    /// The user's own, and the agent's: one file for all. Nobody here looks into them.
    app: Ignored,
    /// See `app`.
    agent: Ignored,
    /// Where it was read from, for errors.
    #[serde(skip)]
    pub(crate) file: Option<PathBuf>,
}

/// A section that is somebody else's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Ignored;

impl<'de> Deserialize<'de> for Ignored {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        de::IgnoredAny::deserialize(deserializer).map(|_| Ignored)
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct NodeSection {
    pub(crate) name: Option<NodeName>,
    pub(crate) bind: Option<String>,
    pub(crate) advertise: Option<String>,
    pub(crate) dial_link_local: bool,
    pub(crate) seeds: Vec<String>,
    pub(crate) expect: Option<usize>,
    pub(crate) zone: Option<Zone>,
    pub(crate) ca: Option<PathBuf>,
    pub(crate) cert: Option<PathBuf>,
    pub(crate) key: Option<PathBuf>,
    pub(crate) crl: Option<PathBuf>,
    pub(crate) plaintext: bool,
    pub(crate) max_payload_bytes: Option<usize>,
    pub(crate) waiting_bytes: Option<usize>,
    pub(crate) drain_timeout: Option<Period>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct PubSubSection {
    pub(crate) name: Option<ClusterName>,
    pub(crate) adapter: Option<Adapter>,
    pub(crate) pool_size: Option<usize>,
    pub(crate) topic_bytes: Option<usize>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RegistrySection {
    pub(crate) log_level: Option<LogLevel>,
    pub(crate) broadcast_period: Option<Period>,
    pub(crate) max_silent_periods: Option<u32>,
    pub(crate) down_period: Option<Period>,
    pub(crate) permdown_period: Option<Period>,
    pub(crate) permdown_on_shutdown: Option<bool>,
    pub(crate) max_delta_sizes: Option<usize>,
}

impl RegistrySection {
    pub(crate) fn raw(&self) -> RawSettings {
        let period = |period: Option<Period>| period.map(|Period(duration)| duration);
        RawSettings {
            broadcast_period: period(self.broadcast_period),
            max_silent_periods: self.max_silent_periods,
            down_period: period(self.down_period),
            permdown_period: period(self.permdown_period),
            permdown_on_shutdown: self.permdown_on_shutdown,
            max_delta_sizes: self.max_delta_sizes,
        }
    }
}

/// Why a configuration cannot be used; the message names the key.
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {}: {source}", path.display())]
    Read {
        /// Its path.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// What the file says is no use.
    #[error("{}: {error}", path.display())]
    InFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        error: Box<ConfigError>,
    },
    /// The text is not TOML, or a key is unknown or ill-typed.
    #[error("the configuration is wrong: {message}")]
    Parse {
        /// Where and what.
        message: String,
    },
    /// A period or count is out of bounds or in an impossible relation.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// A name is not a name.
    #[error(transparent)]
    Name(#[from] NameError),
    /// `pubsub.pool_size` is out of bounds.
    #[error("pubsub.pool_size is {value}; it lies between 1 and {MAX_POOL_SIZE}")]
    PoolSize {
        /// What was asked for.
        value: usize,
    },
    /// Some of `node.ca`, `node.cert` and `node.key` are given, but not all three; or `node.crl` without them.
    #[error("node.{missing} is missing: encryption needs node.ca, node.cert and node.key")]
    IncompleteTls {
        /// The missing key.
        missing: &'static str,
    },
    /// Neither certificates nor `plaintext`.
    #[error(
        "no certificates: set node.ca, node.cert and node.key (`dispatch cert` makes them), or node.plaintext = true to \
         do without encryption"
    )]
    NoTls,
    /// Certificates and `plaintext` at once.
    #[error("node.plaintext is set beside certificates: choose one")]
    PlaintextAndTls,
    /// The local adapter has no network to use that setting on.
    #[error(
        "{setting} has no use with pubsub.adapter = \"local\": remove it, or use the adapter \"mesh\""
    )]
    LocalAdapter {
        /// The setting.
        setting: &'static str,
    },
}

keydispatch_core::debug_as_display!(ConfigError);

impl Config {
    /// Reads a configuration from TOML.
    pub fn parse(text: &str) -> Result<Config, ConfigError> {
        let config: Config = toml::from_str(text).map_err(|error| ConfigError::Parse {
            message: error.to_string(),
        })?;
        Settings::try_new(config.registry.raw())?;
        Ok(config)
    }

    /// Reads a configuration from a file. The paths in it are relative to the file.
    ///
    /// # Errors
    ///
    /// All of them name the file, also those of [`builder`](Self::builder).
    pub fn read(path: impl AsRef<Path>) -> Result<Config, ConfigError> {
        let path = path.as_ref();
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
            path: path.to_owned(),
            source,
        })?;
        let mut config = Config::parse(&text).map_err(|error| in_file(path, error))?;
        config.file = Some(path.to_owned());
        let node = &mut config.node;
        for named in [&mut node.ca, &mut node.cert, &mut node.key, &mut node.crl] {
            // Rule: a file means the same from wherever the process is started. An absolute path stays what it is.
            if let (Some(named), Some(directory)) = (named, path.parent()) {
                *named = directory.join(&*named);
            }
        }
        Ok(config)
    }
}

/// The bounds of `pubsub.pool_size`, wherever it comes from.
pub(crate) fn check_pool_size(value: usize) -> Result<(), ConfigError> {
    if (1..=MAX_POOL_SIZE).contains(&value) {
        return Ok(());
    }
    Err(ConfigError::PoolSize { value })
}

pub(crate) fn in_file(path: &Path, error: ConfigError) -> ConfigError {
    ConfigError::InFile {
        path: path.to_owned(),
        error: Box::new(error),
    }
}

/// A period: an integer of milliseconds, or a string with a unit (`"250ms"`, `"3s"`, `"20min"`, `"1h"`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Period(pub(crate) Duration);

impl<'de> Deserialize<'de> for Period {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct PeriodVisitor;

        impl Visitor<'_> for PeriodVisitor {
            type Value = Period;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(
                    "milliseconds, or a string such as \"250ms\", \"3s\", \"20min\" or \"1h\"",
                )
            }

            fn visit_i64<E: de::Error>(self, millis: i64) -> Result<Period, E> {
                u64::try_from(millis)
                    .map(|millis| Period(Duration::from_millis(millis)))
                    .map_err(|_| E::invalid_value(de::Unexpected::Signed(millis), &self))
            }

            fn visit_u64<E: de::Error>(self, millis: u64) -> Result<Period, E> {
                Ok(Period(Duration::from_millis(millis)))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Period, E> {
                parse_period(text)
                    .map(Period)
                    .ok_or_else(|| E::invalid_value(de::Unexpected::Str(text), &self))
            }
        }

        deserializer.deserialize_any(PeriodVisitor)
    }
}

fn parse_period(text: &str) -> Option<Duration> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let number: u64 = text[..digits].parse().ok()?;
    match text[digits..].trim() {
        "ms" => Some(Duration::from_millis(number)),
        "s" => Some(Duration::from_secs(number)),
        "min" | "m" => Some(Duration::from_secs(number.checked_mul(60)?)),
        "h" => Some(Duration::from_secs(number.checked_mul(3600)?)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        Config::parse(text).unwrap_err().to_string()
    }

    #[test]
    fn an_unknown_key_is_an_error_that_names_it() {
        let error = error("[registry]\nbroadcast_perod = 100\n");
        assert!(error.contains("broadcast_perod"), "{error}");
        assert!(error.contains("broadcast_period"), "{error}");
    }

    #[test]
    fn an_unknown_section_is_an_error_that_names_it() {
        let error = error("[regisry]\n");
        assert!(error.contains("regisry"), "{error}");
    }

    #[test]
    fn sections_of_the_application_and_of_the_agent_may_stand_in_the_same_file() {
        let text = "[node]\nname = \"a\"\n[app]\nwhat = { ever = [1] }\n[agent.api]\ntcp = \"127.0.0.1:7401\"\n";
        assert_eq!(
            Config::parse(text).unwrap(),
            Config::parse("[node]\nname = \"a\"\n").unwrap()
        );
    }

    #[test]
    fn an_ill_typed_value_is_an_error_that_says_what_is_expected() {
        let wrong_unit = error("[registry]\ndown_period = \"3 fortnights\"\n");
        assert!(wrong_unit.contains("down_period"), "{wrong_unit}");
        assert!(wrong_unit.contains("20min"), "{wrong_unit}");
        let wrong_type = error("[pubsub]\npool_size = \"many\"\n");
        assert!(wrong_type.contains("pool_size"), "{wrong_type}");
        let wrong_name = error("[pubsub]\nname = \"\"\n");
        assert!(wrong_name.contains("empty"), "{wrong_name}");
    }

    #[test]
    fn impossible_relations_are_errors_that_name_both_settings() {
        let error = error("[registry]\nbroadcast_period = \"1s\"\ndown_period = \"1s\"\n");
        assert!(error.contains("registry.down_period"), "{error}");
        assert!(error.contains("registry.broadcast_period"), "{error}");
    }

    #[test]
    fn periods_are_milliseconds_or_strings_with_a_unit() {
        let config =
            Config::parse("[registry]\nbroadcast_period = 50\npermdown_period = \"2min\"\n")
                .unwrap();
        assert_eq!(
            config.registry.raw().broadcast_period,
            Some(Duration::from_millis(50))
        );
        assert_eq!(
            config.registry.raw().permdown_period,
            Some(Duration::from_secs(120))
        );
    }

    #[test]
    fn a_file_is_named_by_its_errors_and_its_paths_are_relative_to_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("node.toml");
        let read = |text: &str| {
            std::fs::write(&path, text).unwrap();
            Config::read(&path)
        };
        for text in [
            "[node]\nnmae = 1",
            "nonsense",
            "[registry]\ndown_period = 1",
            "[node]\nca = \"ca.pem\"",
            "[pubsub]\npool_size = 0",
            "[node]\nplaintext = true\nca = \"a\"\ncert = \"b\"\nkey = \"c\"",
        ] {
            let error = read(text)
                .and_then(|config| config.builder("a"))
                .unwrap_err();
            assert!(error.to_string().contains("node.toml: "), "{text}: {error}");
        }
        let named =
            "[node]\nca = \"ca.pem\"\ncert = \"/etc/a.pem\"\nkey = \"../a.key\"\ncrl = \"crl.pem\"";
        let node = read(named).unwrap().node;
        assert_eq!(node.ca, Some(directory.path().join("ca.pem")));
        assert_eq!(node.cert, Some(PathBuf::from("/etc/a.pem")));
        assert_eq!(node.key, Some(directory.path().join("../a.key")));
        assert_eq!(node.crl, Some(directory.path().join("crl.pem")));
    }

    #[test]
    fn log_levels_order_from_off_to_trace() {
        assert!(LogLevel::Info.allows(tracing::Level::WARN));
        assert!(!LogLevel::Info.allows(tracing::Level::DEBUG));
        assert!(!LogLevel::Off.allows(tracing::Level::ERROR));
    }
}
