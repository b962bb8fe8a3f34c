//! What is asked for of an endpoint, checked before anything is done.

use std::collections::BTreeMap;
use std::time::Duration;

use keydispatch::{InstanceName, ServiceType, Weight, Zone};
use serde::{Deserialize, Serialize};

use crate::address::{ServiceAddress, refuse_registered};
use crate::config::Period;
use crate::problem::{Kind, Problem};
use crate::shapes::OWN_TAGS;

/// How long an endpoint lives without a word, where it does not say.
const DEFAULT_TTL: Duration = Duration::from_secs(15);
/// Shorter, and a moment of a busy machine takes services away; longer, and nobody would call it a lease.
const TTL: std::ops::RangeInclusive<Duration> =
    Duration::from_secs(1)..=Duration::from_secs(24 * 3600);
/// How often a check may run, and how long it may take.
const EVERY: std::ops::RangeInclusive<Duration> =
    Duration::from_millis(100)..=Duration::from_secs(3600);
const TIMEOUT: std::ops::RangeInclusive<Duration> =
    Duration::from_millis(10)..=Duration::from_secs(60);
/// Checks in a row that decide.
const IN_A_ROW: std::ops::RangeInclusive<u32> = 1..=100;

/// `PUT /v1/endpoints/{id}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Definition {
    #[serde(rename = "type")]
    pub(crate) service_type: String,
    pub(crate) name: Option<String>,
    pub(crate) address: String,
    pub(crate) weight: Option<u16>,
    pub(crate) zone: Option<String>,
    #[serde(default)]
    pub(crate) tags: BTreeMap<String, String>,
    pub(crate) lease: Option<LeaseSpec>,
    pub(crate) check: Option<CheckSpec>,
    pub(crate) vouch: Option<u32>,
}

/// How long an endpoint lives: exactly one of the fields.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct LeaseSpec {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) ttl: Option<Period>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) connection: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) pid: Option<PidSpec>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) agent: Option<bool>,
}

/// The process that asks, or one of the same user.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub(crate) enum PidSpec {
    Asking(bool),
    Of(i32),
}

/// How it is found out whether an endpoint is well: exactly one of the first four.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct CheckSpec {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) http: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) tcp: Option<TargetSpec>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) ttl: Option<Period>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) every: Option<Period>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) timeout: Option<Period>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) rise: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) fall: Option<u32>,
}

/// `true` for the endpoint's own address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub(crate) enum TargetSpec {
    Own(bool),
    At(String),
}

/// A lease that was checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lease {
    Ttl(Duration),
    Connection,
    /// None for the process that asks.
    Pid(Option<i32>),
    Agent,
}

impl Lease {
    pub(crate) fn kind(self) -> &'static str {
        match self {
            Lease::Ttl(_) => "ttl",
            Lease::Connection => "connection",
            Lease::Pid(_) => "pid",
            Lease::Agent => "agent",
        }
    }
}

/// A check that was checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Check {
    pub(crate) probe: Probe,
    pub(crate) every: Duration,
    pub(crate) timeout: Duration,
    pub(crate) rise: u32,
    pub(crate) fall: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Probe {
    Http {
        target: ServiceAddress,
        path: String,
    },
    Tcp {
        target: ServiceAddress,
    },
    /// The endpoint says itself that it is well, by renewing.
    Ttl(Duration),
}

impl Probe {
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Probe::Http { .. } => "http",
            Probe::Tcp { .. } => "tcp",
            Probe::Ttl(_) => "ttl",
        }
    }

    pub(crate) fn target(&self) -> Option<String> {
        match self {
            Probe::Http { target, path } => Some(format!("http://{}{path}", target.authority())),
            Probe::Tcp { target } => Some(target.authority()),
            Probe::Ttl(_) => None,
        }
    }
}

/// A definition whose parts were all checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Checked {
    pub(crate) service_type: ServiceType,
    pub(crate) name: InstanceName,
    pub(crate) address: String,
    pub(crate) weight: u16,
    pub(crate) zone: Option<String>,
    pub(crate) tags: BTreeMap<String, String>,
    pub(crate) lease: Lease,
    pub(crate) check: Option<Check>,
    pub(crate) vouch: u32,
}

impl Definition {
    pub(crate) fn check(&self, id: &str, node_on_loopback: bool) -> Result<Checked, Problem> {
        let service_type = ServiceType::try_new(&self.service_type)
            .map_err(|error| Problem::bad(error.to_string()))?;
        if self.service_type.starts_with('_') {
            return Err(Problem::bad("types that begin with _ are the agents' own"));
        }
        let name = InstanceName::try_new(self.name.as_deref().unwrap_or(id))
            .map_err(|error| Problem::bad(error.to_string()))?;
        let address: ServiceAddress = self.address.parse().map_err(Problem::bad)?;
        if let Some(why) = refuse_registered(&address, node_on_loopback) {
            return Err(Problem::bad(why));
        }
        let weight = Weight::try_new(self.weight.unwrap_or(Weight::default().value()))
            .map_err(|error| Problem::bad(error.to_string()))?;
        if let Some(zone) = &self.zone {
            Zone::try_new(zone).map_err(|error| Problem::bad(error.to_string()))?;
        }
        for (key, value) in &self.tags {
            if key.starts_with(OWN_TAGS) || key.starts_with("keydispatch:") {
                return Err(Problem::bad(format!(
                    "tags that begin with {OWN_TAGS} or keydispatch: are the library's own"
                )));
            }
            if key.is_empty() || key.chars().chain(value.chars()).any(char::is_control) {
                return Err(Problem::bad(
                    "a tag has a name, and holds no control characters",
                ));
            }
        }
        let vouch = self.vouch.unwrap_or(1);
        if !(1..=2).contains(&vouch) {
            return Err(Problem::bad(
                "vouch is 1 or 2: how many agents hold the endpoint",
            ));
        }
        let lease = match &self.lease {
            None => Lease::Ttl(DEFAULT_TTL),
            Some(spec) => spec.check()?,
        };
        if vouch > 1 && matches!(lease, Lease::Connection | Lease::Pid(_)) {
            return Err(Problem::bad(
                "what lives with a connection or a process lives at one agent: vouch for leases by ttl or agent",
            ));
        }
        let check = self
            .check
            .as_ref()
            .map(|spec| spec.check(&address))
            .transpose()?;
        Ok(Checked {
            service_type,
            name,
            address: self.address.clone(),
            weight: weight.value(),
            zone: self.zone.clone(),
            tags: self.tags.clone(),
            lease,
            check,
            vouch,
        })
    }
}

impl LeaseSpec {
    fn check(&self) -> Result<Lease, Problem> {
        let mut found = Vec::new();
        if let Some(Period(ttl)) = self.ttl {
            if !TTL.contains(&ttl) {
                return Err(Problem::bad("lease.ttl lies between 1s and 24h"));
            }
            found.push(Lease::Ttl(ttl));
        }
        if self.connection == Some(true) {
            found.push(Lease::Connection);
        }
        match self.pid {
            Some(PidSpec::Asking(true)) => found.push(Lease::Pid(None)),
            Some(PidSpec::Of(pid)) if pid > 0 => found.push(Lease::Pid(Some(pid))),
            Some(PidSpec::Of(_)) => {
                return Err(Problem::bad("lease.pid is no number of a process"));
            }
            _ => {}
        }
        if self.agent == Some(true) {
            found.push(Lease::Agent);
        }
        match found[..] {
            [lease] => Ok(lease),
            _ => Err(Problem::bad(
                "a lease is exactly one of {\"ttl\":\"15s\"}, {\"connection\":true}, {\"pid\":true} and {\"agent\":true}",
            )),
        }
    }
}

impl CheckSpec {
    fn check(&self, own: &ServiceAddress) -> Result<Check, Problem> {
        let mut probes = Vec::new();
        if let Some(http) = &self.http {
            let (target, path) = if http.starts_with('/') {
                if !http.bytes().all(|byte| byte.is_ascii_graphic()) {
                    return Err(Problem::bad("check.http holds characters that no path has"));
                }
                (own.clone(), http.clone())
            } else {
                let target: ServiceAddress = http.parse().map_err(Problem::bad)?;
                let path = if target.path.starts_with('/') {
                    target.path.clone()
                } else {
                    format!("/{}", target.path)
                };
                (target, path)
            };
            if target
                .scheme
                .as_deref()
                .is_some_and(|scheme| scheme != "http")
            {
                return Err(Problem::bad(
                    "check.http is a path, or begins with http://: a check over TLS is not made, check by tcp instead",
                ));
            }
            probes.push(Probe::Http { target, path });
        }
        match &self.tcp {
            Some(TargetSpec::Own(true)) => probes.push(Probe::Tcp {
                target: own.clone(),
            }),
            Some(TargetSpec::At(at)) => probes.push(Probe::Tcp {
                target: at.parse().map_err(Problem::bad)?,
            }),
            _ => {}
        }
        if let Some(Period(ttl)) = self.ttl {
            if !TTL.contains(&ttl) {
                return Err(Problem::bad("check.ttl lies between 1s and 24h"));
            }
            probes.push(Probe::Ttl(ttl));
        }
        let [probe] = &probes[..] else {
            return Err(Problem::bad(
                "a check is exactly one of {\"http\":\"/healthz\"}, {\"tcp\":true} and {\"ttl\":\"15s\"}",
            ));
        };
        let period = |name: &str,
                      given: Option<Period>,
                      default: Duration,
                      bounds: &std::ops::RangeInclusive<Duration>| {
            let period = given.map_or(default, |Period(period)| period);
            if bounds.contains(&period) {
                Ok(period)
            } else {
                Err(Problem::bad(format!(
                    "check.{name} lies between {:?} and {:?}",
                    bounds.start(),
                    bounds.end()
                )))
            }
        };
        let count = |name: &str, given: Option<u32>, default: u32| {
            let count = given.unwrap_or(default);
            if IN_A_ROW.contains(&count) {
                Ok(count)
            } else {
                Err(Problem::new(
                    Kind::BadRequest,
                    format!(
                        "check.{name} lies between {} and {}",
                        IN_A_ROW.start(),
                        IN_A_ROW.end()
                    ),
                ))
            }
        };
        Ok(Check {
            probe: probe.clone(),
            every: period("every", self.every, Duration::from_secs(5), &EVERY)?,
            timeout: period("timeout", self.timeout, Duration::from_secs(1), &TIMEOUT)?,
            rise: count("rise", self.rise, 2)?,
            fall: count("fall", self.fall, 3)?,
        })
    }
}

/// An id of an endpoint, from the path.
pub(crate) fn check_id(id: &str) -> Result<(), Problem> {
    InstanceName::try_new(id)
        .map(drop)
        .map_err(|error| Problem::bad(error.to_string()))
}
