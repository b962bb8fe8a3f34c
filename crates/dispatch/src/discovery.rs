//! Seeds: where other nodes may be found.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use keydispatch_core::limits::MAX_ADDRESS_BYTES;
use keydispatch_core::message::Address;
use tokio::time::timeout;

use crate::mutex::Mutex;

/// How long one name may take to be looked up; it is tried again later.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(2);

/// Addresses used of one name: more than the nodes that a cluster is designed for.
const MAX_ADDRESSES_PER_NAME: usize = 512;

/// Longest host name (RFC 1035).
const MAX_HOST_BYTES: usize = 253;

/// Why a seed is no address.
#[derive(Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SeedError {
    /// There is no port.
    #[error(
        "the seed {seed:?} has no port; it takes host:port, as node-1.example:7400, 10.0.0.1:7400 or [::1]:7400"
    )]
    NoPort {
        /// The seed.
        seed: String,
    },
    /// The port is no number from 1 to 65535.
    #[error(
        "the seed {seed:?} has no port from 1 to 65535 after its last colon; it takes host:port, as 10.0.0.1:7400"
    )]
    Port {
        /// The seed.
        seed: String,
    },
    /// An IPv6 address stands without brackets, or brackets hold something else.
    #[error("the seed {seed:?} is no IPv6 address in brackets and a port, as [::1]:7400")]
    Brackets {
        /// The seed.
        seed: String,
    },
    /// The host is no IP address, and no name either.
    #[error(
        "the seed {seed:?} names no host: a name has 1 to 253 letters, digits, dots, - and _, as in node-1.example:7400"
    )]
    Host {
        /// The seed.
        seed: String,
    },
}

keydispatch_core::debug_as_display!(SeedError);

/// An address to dial when joining: `host:port`, `[v6]:port` or `v4:port`.
#[derive(Clone, Debug)]
pub(crate) struct Seed {
    address: Address,
    is_name: bool,
    /// What was last wrong, so that looking up again and again is not logged again and again. Shared by clones.
    fault: Arc<Mutex<Option<String>>>,
}

impl Seed {
    /// True for a DNS name, whose addresses may change.
    pub(crate) fn is_name(&self) -> bool {
        self.is_name
    }

    /// As it was written.
    #[cfg(test)]
    fn address(&self) -> &Address {
        &self.address
    }

    async fn look_up(&self) -> Vec<Address> {
        let outcome = timeout(
            LOOKUP_TIMEOUT,
            tokio::net::lookup_host(self.address.as_str()),
        )
        .await;
        let fault = match outcome {
            Ok(Ok(found)) => {
                let found: Vec<Address> = found
                    .take(MAX_ADDRESSES_PER_NAME)
                    .filter_map(|address| Address::try_new(address.to_string()).ok())
                    .collect();
                if !found.is_empty() {
                    self.log_fault(None);
                    return found;
                }
                "it has no addresses".to_owned()
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no answer within {LOOKUP_TIMEOUT:?}"),
        };
        self.log_fault(Some(fault));
        Vec::new()
    }

    /// Logs what has changed since the last time.
    fn log_fault(&self, fault: Option<String>) {
        let mut last = self.fault.lock();
        if *last == fault {
            return;
        }
        match &fault {
            Some(why) => {
                tracing::warn!(seed = %self.address, why, "a seed's name is not found, and is tried again");
            }
            None => tracing::info!(seed = %self.address, "a seed's name is found again"),
        }
        *last = fault;
    }
}

impl FromStr for Seed {
    type Err = SeedError;

    fn from_str(text: &str) -> Result<Self, SeedError> {
        let seed = || text.to_owned();
        let (host, port) = text
            .rsplit_once(':')
            .ok_or_else(|| SeedError::NoPort { seed: seed() })?;
        let bracketed = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
        let is_name = match bracketed {
            Some(six) => {
                if six.parse::<Ipv6Addr>().is_err() {
                    return Err(SeedError::Brackets { seed: seed() });
                }
                false
            }
            // `::1` alone and `::1:7400` cannot be told apart.
            None if host.contains([':', '[', ']']) => {
                return Err(SeedError::Brackets { seed: seed() });
            }
            None => host.parse::<Ipv4Addr>().is_err(),
        };
        if is_name && !is_host_name(host) {
            return Err(SeedError::Host { seed: seed() });
        }
        // A sign is no digit, though numbers are parsed with one.
        let is_number = port.bytes().all(|byte| byte.is_ascii_digit());
        if !is_number || !port.parse::<u16>().is_ok_and(|port| port > 0) {
            return Err(SeedError::Port { seed: seed() });
        }
        Ok(Seed {
            address: Address::try_new(text).map_err(|_| SeedError::Host { seed: seed() })?,
            is_name,
            fault: Arc::default(),
        })
    }
}

fn is_host_name(host: &str) -> bool {
    const { assert!(MAX_HOST_BYTES < MAX_ADDRESS_BYTES) };
    let host = host.strip_suffix('.').unwrap_or(host);
    let is_label = |label: &str| {
        !label.is_empty()
            && label
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
    };
    // A last label of digits alone is a garbled IPv4 address (RFC 1123).
    let is_number = |label: &str| label.bytes().all(|byte| byte.is_ascii_digit());
    host.len() <= MAX_HOST_BYTES
        && host.split('.').all(is_label)
        && !host.rsplit('.').next().is_some_and(is_number)
}

/// What is known of the seeds.
#[derive(Clone, Debug)]
pub(crate) struct Resolved {
    /// Their addresses, each once, in their order.
    pub(crate) addresses: Vec<Address>,
    /// True where the name of one has no address yet.
    pub(crate) awaited: bool,
}

/// The addresses of the seeds; where `names` is false, as they were written.
///
/// A name that is not found is skipped and logged, once until that changes.
pub(crate) async fn resolve(seeds: &[Seed], names: bool) -> Resolved {
    let lookups: Vec<_> = seeds
        .iter()
        .map(|seed| {
            let seed = seed.clone();
            // All at once: a name server that is silent about one does not hold up the others.
            (names && seed.is_name).then(|| tokio::spawn(async move { seed.look_up().await }))
        })
        .collect();
    let mut addresses = Vec::with_capacity(seeds.len());
    let mut awaited = false;
    for (seed, lookup) in seeds.iter().zip(lookups) {
        let found = match lookup {
            None => vec![seed.address.clone()],
            // It is cancelled only where the runtime ends.
            Some(lookup) => lookup.await.unwrap_or_default(),
        };
        awaited |= found.is_empty();
        for address in found {
            if !addresses.contains(&address) {
                addresses.push(address);
            }
        }
    }
    Resolved { addresses, awaited }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seed(text: &str) -> Seed {
        text.parse().unwrap()
    }

    #[test]
    fn hosts_with_ports_are_seeds() {
        for (text, is_name) in [
            ("node-1.example:7400", true),
            ("node_1:1", true),
            ("far:1", true),
            ("cluster.local.:7400", true),
            ("10.0.0.1:7400", false),
            ("[::1]:65535", false),
        ] {
            assert_eq!(seed(text).is_name(), is_name, "{text}");
            assert_eq!(seed(text).address().as_str(), text);
        }
    }

    #[test]
    fn what_is_no_seed_says_why_and_shows_the_form() {
        let error = |text: &str| text.parse::<Seed>().unwrap_err();
        for (text, form) in [
            ("", "host:port"),
            ("node-1", "host:port"),
            ("node-1:", "1 to 65535"),
            ("node-1:0", "1 to 65535"),
            ("node-1:+80", "1 to 65535"),
            ("node-1:65536", "1 to 65535"),
            ("node-1:http", "1 to 65535"),
            ("::1:7400", "[::1]:7400"),
            ("[::1]", "[::1]:7400"),
            ("[node]:7400", "[::1]:7400"),
            (":7400", "node-1.example:7400"),
            ("no de:7400", "node-1.example:7400"),
            ("a..b:7400", "node-1.example:7400"),
            ("10.0.0.256:7400", "node-1.example:7400"),
            ("10.0.1:7400", "node-1.example:7400"),
        ] {
            let error = error(text).to_string();
            assert!(
                error.contains(form) && error.contains(&format!("{text:?}")),
                "{text}: {error}"
            );
        }
        assert!(matches!(error("http://a:1"), SeedError::Brackets { .. }));
    }

    #[tokio::test]
    async fn names_are_looked_up_and_addresses_pass() {
        let seeds = [
            seed("10.0.0.1:7400"),
            seed("localhost:7400"),
            seed("nowhere.invalid:7400"),
            seed("10.0.0.1:7400"),
            seed("[::1]:7400"),
        ];
        let found = resolve(&seeds, true).await;
        assert!(found.awaited);
        let found: Vec<_> = found.addresses.iter().map(Address::as_str).collect();
        assert_eq!(found[0], "10.0.0.1:7400");
        assert!(found.contains(&"127.0.0.1:7400") || found.contains(&"[::1]:7400"));
        assert!(found.iter().all(|address| !address.contains("invalid")));
        assert_eq!(found.iter().filter(|a| **a == "10.0.0.1:7400").count(), 1);
        let fault = seeds[2].fault.lock().clone();
        assert!(fault.is_some());
    }

    #[tokio::test]
    async fn without_names_every_seed_passes_as_it_is() {
        let seeds = [seed("far:1"), seed("near:1"), seed("far:1")];
        let found = resolve(&seeds, false).await;
        assert!(!found.awaited);
        let found: Vec<_> = found.addresses.iter().map(Address::as_str).collect();
        assert_eq!(found, ["far:1", "near:1"]);
    }
}
