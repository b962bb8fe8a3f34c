//! Where the others reach this node: what may be advertised, and what is where nothing is said.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use keydispatch_core::message::{Address, AddressError};

use crate::discovery::{Seed, SeedError};
use crate::transport::dialable::objection;

/// Why there is no address at which the others would reach this node.
#[derive(Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AdvertiseError {
    /// Nobody could dial it.
    #[error(
        "node.advertise is {address:?}, which others cannot dial: {why}; it takes host:port, as node-1.example:7400, \
         10.0.0.1:7400 or [fd00::1]:7400"
    )]
    Unusable {
        /// What is advertised.
        address: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// It is empty or too long.
    #[error("node.advertise: {0}")]
    Length(#[from] AddressError),
    /// The node listens on all addresses of its machine, and it is not known which of them others reach.
    #[error(
        "this node listens at {bound}, which is no address that others can dial, and {why}: set node.advertise to the one \
         that they reach, as 10.0.0.1:7400, or node.bind to one address of this machine"
    )]
    Unknown {
        /// Where it listens.
        bound: SocketAddr,
        /// Why none was found.
        why: String,
    },
}

keydispatch_core::debug_as_display!(AdvertiseError);

/// Parses what is to be advertised as a seed is, and refuses what nobody could dial.
///
/// Rule: an address that cannot be right is an error. Otherwise every member lists this node as up and no call reaches it.
pub(crate) fn parse(address: &str, link_local: bool) -> Result<Address, AdvertiseError> {
    let unusable = |why| AdvertiseError::Unusable {
        address: address.to_owned(),
        why,
    };
    if address.contains('%') {
        return Err(unusable("a zone (%) means something on this machine alone"));
    }
    address.parse::<Seed>().map_err(|error| {
        unusable(match error {
            SeedError::NoPort { .. } => "it has no port",
            SeedError::Port { .. } => "its port is no number from 1 to 65535",
            SeedError::Brackets { .. } => "it is no IPv6 address in brackets",
            SeedError::Host { .. } => "it names no host",
        })
    })?;
    // Nobody else would dial it.
    let socket = address.parse::<SocketAddr>();
    if let Some(why) = socket
        .ok()
        .and_then(|socket| objection(socket.ip(), link_local))
    {
        return Err(unusable(why));
    }
    Ok(Address::try_new(address)?)
}

/// What to advertise where the node listens on all addresses of its machine: the one by which it reaches its seeds.
pub(crate) fn by_seeds(bound: SocketAddr, seeds: &[Address]) -> Result<Address, AdvertiseError> {
    let sources = seeds
        .iter()
        .filter_map(|seed| seed.as_str().parse::<SocketAddr>().ok())
        // Whoever listens by IPv4 alone is not reached by IPv6.
        .filter(|seed| bound.is_ipv6() || seed.is_ipv4())
        .filter_map(source)
        .collect();
    let ip = choose(bound, sources)?;
    Ok(Address::try_new(
        SocketAddr::new(ip, bound.port()).to_string(),
    )?)
}

/// The address that packets to a seed carry. Nothing is sent.
fn source(seed: SocketAddr) -> Option<IpAddr> {
    let any: IpAddr = match seed {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0)).ok()?;
    socket.connect(seed).ok()?;
    Some(socket.local_addr().ok()?.ip().to_canonical())
}

fn choose(bound: SocketAddr, mut sources: BTreeSet<IpAddr>) -> Result<IpAddr, AdvertiseError> {
    sources.retain(|ip| objection(*ip, true).is_none());
    // This node itself may be among its seeds, by a name that its machine knows as loopback.
    if sources.iter().any(|ip| !ip.is_loopback()) {
        sources.retain(|ip| !ip.is_loopback());
    } else if sources.len() > 1 {
        // `localhost` is two addresses, of which either does.
        sources.retain(|ip| ip.is_ipv6() == bound.is_ipv6());
    }
    let unknown = |why| Err(AdvertiseError::Unknown { bound, why });
    match (sources.pop_first(), sources.is_empty()) {
        (Some(ip), true) => Ok(ip),
        (Some(first), false) => {
            let others = sources.iter().map(|ip| format!(" and {ip}"));
            let all = others.fold(first.to_string(), |all, other| all + &other);
            unknown(format!(
                "it reaches its seeds from several of its own ({all})"
            ))
        }
        (None, _) => unknown("no seed tells which one it is".to_owned()),
    }
}

/// Where a transport listens, if that is all addresses of its machine.
pub(crate) fn wildcard(local: &Address) -> Option<SocketAddr> {
    let bound = local.as_str().parse::<SocketAddr>().ok()?;
    bound.ip().is_unspecified().then_some(bound)
}

/// True where that is this machine for whoever dials it.
fn is_loopback(address: &Address) -> bool {
    match address.as_str().parse::<SocketAddr>() {
        Ok(socket) => socket.ip().to_canonical().is_loopback(),
        Err(_) => address.as_str().starts_with("localhost:"),
    }
}

/// An address on another machine, where this node advertises one that leads every other machine to itself.
fn out_of_reach<'a>(advertised: &Address, seeds: &'a [Address]) -> Option<&'a Address> {
    let is_remote = |seed: &&Address| {
        let socket = seed.as_str().parse::<SocketAddr>();
        socket.is_ok_and(|socket| !socket.ip().to_canonical().is_loopback())
    };
    is_loopback(advertised)
        .then(|| seeds.iter().find(is_remote))
        .flatten()
}

/// What is said of a loopback address once a node on another machine is heard of: a seed, or a member, also long after the
/// start. Said once.
pub(crate) struct OutOfReach {
    /// None once it was said, and where there is nothing to say.
    advertised: Option<Address>,
}

impl OutOfReach {
    pub(crate) fn new(advertised: Option<&Address>) -> Self {
        OutOfReach {
            advertised: advertised.filter(|own| is_loopback(own)).cloned(),
        }
    }

    /// Others are heard of at these addresses.
    pub(crate) fn met(&mut self, others: &[Address]) {
        let Some(advertised) = &self.advertised else {
            return;
        };
        let Some(other) = out_of_reach(advertised, others) else {
            return;
        };
        tracing::warn!(
            %advertised,
            %other,
            "other machines cannot reach this node at a loopback address: set node.bind to an address of this machine, or \
             node.advertise to the one that they dial"
        );
        self.advertised = None;
    }
}

/// Says what nobody would notice by themselves until somebody who should not has joined.
pub(crate) fn warn_of_plaintext(bound: &Address, plaintext: bool) {
    if plaintext && !is_loopback(bound) {
        tracing::warn!(
            %bound,
            "no encryption: whoever reaches this address can join the cluster, call every service, and read what is said; \
             set node.ca, node.cert and node.key (`dispatch cert` makes them)"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> Address {
        Address::try_new(text).unwrap()
    }

    fn addresses(texts: &[&str]) -> Vec<Address> {
        texts.iter().map(|text| address(text)).collect()
    }

    #[test]
    fn what_others_can_dial_may_be_advertised() {
        for text in [
            "10.0.0.1:7400",
            "127.0.0.1:1",
            "[fd00::1]:65535",
            "node-1.example:7400",
            "localhost:7400",
        ] {
            assert_eq!(parse(text, false).unwrap().as_str(), text);
        }
    }

    #[test]
    fn what_nobody_can_dial_is_an_error_that_names_the_key_and_shows_the_form() {
        let long = format!("{}:1", "a".repeat(2_000));
        for text in [
            "",
            "10.0.0.1",
            "10.0.0.1:",
            "10.0.0.1:0",
            "10.0.0.1:65536",
            "node-1:http",
            "0.0.0.0:7400",
            "[::]:7400",
            "[::ffff:0.0.0.0]:7400",
            "::1:7400",
            "fe80::1%eth0",
            "[fe80::1%eth0]:7400",
            "[fe80::1%2]:7400",
            "[fe80::1]:7400",
            "224.0.0.1:7400",
            "[ff02::1]:7400",
            "255.255.255.255:7400",
            "10.0.0.256:7400",
            "http://a:7400",
            "a b:7400",
            "a\n:7400",
            &long,
        ] {
            let error = parse(text, false).unwrap_err().to_string();
            assert!(error.contains("node.advertise"), "{text}: {error}");
            assert!(error.contains("10.0.0.1:7400"), "{text}: {error}");
            assert!(!error.contains('\n'), "{text}: {error}");
        }
    }

    fn chosen(bound: &str, sources: &[&str]) -> Result<String, String> {
        let sources = sources.iter().map(|ip| ip.parse().unwrap()).collect();
        choose(bound.parse().unwrap(), sources)
            .map(|ip| ip.to_string())
            .map_err(|error| error.to_string())
    }

    #[test]
    fn the_one_address_by_which_the_seeds_are_reached_is_taken() {
        let v4 = "0.0.0.0:7400";
        assert_eq!(chosen(v4, &["10.0.0.5"]).unwrap(), "10.0.0.5");
        assert_eq!(chosen(v4, &["127.0.0.1"]).unwrap(), "127.0.0.1");
        // Itself, by a name that is loopback here.
        assert_eq!(chosen(v4, &["127.0.0.1", "10.0.0.5"]).unwrap(), "10.0.0.5");
        assert_eq!(chosen(v4, &["127.0.0.1", "::1"]).unwrap(), "127.0.0.1");
        assert_eq!(chosen("[::]:1", &["127.0.0.1", "::1"]).unwrap(), "::1");
        assert_eq!(
            chosen("[::]:1", &["fe80::1", "fd00::1"]).unwrap(),
            "fd00::1"
        );
    }

    #[test]
    fn none_or_several_are_an_error_that_says_what_to_set() {
        for sources in [&[][..], &["10.0.0.5", "10.1.0.5"], &["fe80::1"]] {
            let error = chosen("0.0.0.0:7400", sources).unwrap_err();
            for part in ["node.advertise", "node.bind", "0.0.0.0:7400"] {
                assert!(error.contains(part), "{sources:?}: {error}");
            }
            assert!(
                sources
                    .iter()
                    .all(|ip| ip.starts_with("fe80") || error.contains(ip))
            );
        }
    }

    #[test]
    fn this_machine_is_asked_by_which_address_it_reaches_a_seed() {
        let bound = "0.0.0.0:7400".parse().unwrap();
        let found = by_seeds(bound, &addresses(&["127.0.0.1:1"])).unwrap();
        assert_eq!(found.as_str(), "127.0.0.1:7400");
        assert!(by_seeds(bound, &[]).is_err());
        assert!(by_seeds(bound, &addresses(&["[::1]:1"])).is_err());
    }

    #[test]
    fn a_loopback_address_is_out_of_reach_of_seeds_elsewhere() {
        let far = addresses(&["127.0.0.1:1", "10.0.0.1:1"]);
        for own in [
            "127.0.0.1:7400",
            "[::1]:7400",
            "localhost:7400",
            "127.1.2.3:1",
        ] {
            let seed = out_of_reach(&address(own), &far);
            assert_eq!(seed, Some(&far[1]), "{own}");
            assert_eq!(out_of_reach(&address(own), &far[..1]), None);
        }
        assert_eq!(out_of_reach(&address("10.0.0.2:7400"), &far), None);
    }
}
