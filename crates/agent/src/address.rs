//! Which addresses may be registered, and which may be checked: an agent is not to be used as a door into what only it reaches.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::str::FromStr;

use keydispatch::Escaped;
use serde::de::{self, Deserialize, Deserializer};

/// An address of a service: `host:port`, or `scheme://host:port/path`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ServiceAddress {
    pub(crate) scheme: Option<String>,
    /// Without the brackets of IPv6.
    pub(crate) host: String,
    pub(crate) port: u16,
    /// What follows, with its slash.
    pub(crate) path: String,
}

impl ServiceAddress {
    /// `host:port`, with brackets where the host is an IPv6 address.
    pub(crate) fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

impl FromStr for ServiceAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = |why: &str| Err(format!("the address \"{}\" {why}", Escaped(text)));
        if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return wrong(
                "holds characters that no address has: it is printable ASCII without spaces",
            );
        }
        let (scheme, rest) = match text.split_once("://") {
            Some((scheme, rest)) => {
                let good = scheme.starts_with(|c: char| c.is_ascii_alphabetic())
                    && scheme
                        .chars()
                        .all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c));
                if !good {
                    return wrong("has no scheme before ://");
                }
                (Some(scheme.to_ascii_lowercase()), rest)
            }
            None => (None, text),
        };
        let (authority, path) = match rest.find(['/', '?', '#']) {
            Some(at) => rest.split_at(at),
            None => (rest, ""),
        };
        if authority.contains('@') {
            return wrong("holds a user, which everybody would read");
        }
        let (host, port) = if let Some(inner) = authority.strip_prefix('[') {
            let Some((host, after)) = inner.split_once(']') else {
                return wrong("has a bracket that does not end");
            };
            if host.parse::<Ipv6Addr>().is_err() {
                return wrong("has no IPv6 address in its brackets");
            }
            (host, after.strip_prefix(':'))
        } else {
            match authority.rsplit_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (authority, None),
            }
        };
        if host.is_empty() || (host.contains(':') && host.parse::<Ipv6Addr>().is_err()) {
            return wrong("has no host");
        }
        let port = match (port, scheme.as_deref()) {
            (Some(port), _) => match port.parse::<u16>() {
                Ok(port) if port != 0 && port.to_string().len() == text_len(authority) => port,
                _ => return wrong("has no port from 1 to 65535"),
            },
            (None, Some("http")) => 80,
            (None, Some("https")) => 443,
            (None, _) => return wrong("has no port"),
        };
        Ok(ServiceAddress {
            scheme,
            host: host.to_owned(),
            port,
            path: path.to_owned(),
        })
    }
}

/// Digits after the last colon: a port is written in one way.
fn text_len(authority: &str) -> usize {
    authority.rsplit_once(':').map_or(0, |(_, port)| port.len())
}

/// Why nothing at an address is registered whatever it is; none where it may be.
pub(crate) fn refuse_registered(
    address: &ServiceAddress,
    node_on_loopback: bool,
) -> Option<String> {
    let ip: IpAddr = if address.host.eq_ignore_ascii_case("localhost") {
        Ipv4Addr::LOCALHOST.into()
    } else {
        canonical(address.host.parse().ok()?)
    };
    if is_link_local(ip) {
        return Some(format!(
            "{ip} is link-local: what answers there is mostly the host's metadata, and no service"
        ));
    }
    if ip.is_unspecified() || ip.is_multicast() || ip == IpAddr::V4(Ipv4Addr::BROADCAST) {
        return Some(format!(
            "{ip} is no address of one machine: register the one that callers dial"
        ));
    }
    if ip.is_loopback() && !node_on_loopback {
        return Some(format!(
            "{ip} is another machine for each of the other nodes: register the address that callers dial"
        ));
    }
    None
}

/// Why an address is not checked; none where it may be.
///
/// Rule: a check connects to addresses of this machine, and to networks that `agent.checks.allow` names, and never to
/// link-local ones: whoever may register would otherwise learn what answers where only this machine reaches.
pub(crate) fn refuse_checked(ip: IpAddr, allowed: &[Network]) -> Option<String> {
    let ip = canonical(ip);
    if is_link_local(ip) {
        return Some(format!("{ip} is link-local, which is never checked"));
    }
    if ip.is_unspecified() || ip.is_multicast() {
        return Some(format!("{ip} is no address of one machine"));
    }
    if is_of_this_machine(ip) || allowed.iter().any(|network| network.contains(ip)) {
        return None;
    }
    Some(format!(
        "{ip} is not of this machine: only agent.checks.allow lets an agent check elsewhere"
    ))
}

/// An IPv4 address that is written as an IPv6 one is what it is.
pub(crate) fn canonical(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V6(v6) => v6.to_ipv4_mapped().map_or(ip, IpAddr::V4),
        IpAddr::V4(_) => ip,
    }
}

fn is_link_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    }
}

/// The kernel knows: only an address of this machine can be bound.
fn is_of_this_machine(ip: IpAddr) -> bool {
    ip.is_loopback() || UdpSocket::bind(SocketAddr::new(ip, 0)).is_ok()
}

/// A network as in `10.0.0.0/8`, or one address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Network {
    base: IpAddr,
    bits: u8,
}

impl Network {
    fn contains(self, ip: IpAddr) -> bool {
        match (self.base, ip) {
            (IpAddr::V4(base), IpAddr::V4(ip)) => {
                let shift = 32 - u32::from(self.bits);
                u32::from(base).checked_shr(shift) == u32::from(ip).checked_shr(shift)
            }
            (IpAddr::V6(base), IpAddr::V6(ip)) => {
                let shift = 128 - u32::from(self.bits);
                u128::from(base).checked_shr(shift) == u128::from(ip).checked_shr(shift)
            }
            _ => false,
        }
    }
}

impl FromStr for Network {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parsed = || {
            let (base, bits) = match text.split_once('/') {
                Some((base, bits)) => (base, Some(bits)),
                None => (text, None),
            };
            let base: IpAddr = base.parse().ok()?;
            let most = if base.is_ipv4() { 32 } else { 128 };
            let bits: u8 = bits.map_or(Some(most), |bits| bits.parse().ok())?;
            (bits <= most).then_some(Network { base, bits })
        };
        parsed().ok_or_else(|| format!("{text:?} is no network as in 10.0.0.0/8 or fd00::/8"))
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.base, self.bits)
    }
}

impl<'de> Deserialize<'de> for Network {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> ServiceAddress {
        text.parse().unwrap()
    }

    #[test]
    fn an_address_is_a_host_and_a_port_with_or_without_a_scheme() {
        for (text, scheme, host, port, path) in [
            ("10.0.0.7:8080", None, "10.0.0.7", 8080, ""),
            ("http://10.0.0.7:8080", Some("http"), "10.0.0.7", 8080, ""),
            (
                "http://chat.example/a/b",
                Some("http"),
                "chat.example",
                80,
                "/a/b",
            ),
            ("https://[fd00::1]/", Some("https"), "fd00::1", 443, "/"),
            ("[::1]:80", None, "::1", 80, ""),
            ("tcp://h:1?x", Some("tcp"), "h", 1, "?x"),
        ] {
            let address = parsed(text);
            assert_eq!(address.scheme.as_deref(), scheme, "{text}");
            assert_eq!(
                (address.host.as_str(), address.port, address.path.as_str()),
                (host, port, path)
            );
        }
        for wrong in [
            "",
            "host",
            ":80",
            "http://",
            "host:0",
            "host:65536",
            "host:+80",
            "host:080",
            "http://user@host:80",
            "ho st:80",
            "host:80\r\nX: y",
            "host\u{202e}:80",
            "://host:80",
            "1x://host:80",
            "a:b:80",
            "[::1:80",
            "[x]:80",
        ] {
            assert!(wrong.parse::<ServiceAddress>().is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn neither_metadata_nor_everywhere_nor_another_machines_loopback_is_registered() {
        let refused = |text: &str, loopback| refuse_registered(&parsed(text), loopback).is_some();
        for text in [
            "http://169.254.169.254:80",
            "http://[fe80::1]:80",
            "http://[::ffff:169.254.169.254]:80",
            "0.0.0.0:80",
            "[::]:80",
            "224.0.0.1:80",
            "255.255.255.255:80",
        ] {
            assert!(refused(text, true) && refused(text, false), "{text}");
        }
        for text in [
            "127.0.0.1:80",
            "127.9.9.9:80",
            "[::1]:80",
            "localhost:80",
            "[::ffff:127.0.0.1]:80",
        ] {
            assert!(refused(text, false) && !refused(text, true), "{text}");
        }
        for text in ["10.0.0.7:80", "chat.example:80", "[fd00::1]:80"] {
            assert!(!refused(text, false), "{text}");
        }
    }

    #[test]
    fn only_this_machine_is_checked_and_what_is_allowed_and_never_link_local() {
        let everywhere: Vec<Network> = ["0.0.0.0/0", "::/0"]
            .map(|text| text.parse().unwrap())
            .into();
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        for own in ["127.0.0.1", "127.1.2.3", "::1", "::ffff:127.0.0.1"] {
            assert_eq!(refuse_checked(ip(own), &[]), None, "{own}");
        }
        for other in ["192.0.2.1", "8.8.8.8", "2001:db8::1"] {
            assert!(refuse_checked(ip(other), &[]).is_some(), "{other}");
            assert_eq!(refuse_checked(ip(other), &everywhere), None, "{other}");
        }
        for never in [
            "169.254.169.254",
            "fe80::1",
            "::ffff:169.254.169.254",
            "0.0.0.0",
            "::",
            "224.0.0.1",
        ] {
            assert!(refuse_checked(ip(never), &everywhere).is_some(), "{never}");
        }
        let ten: Network = "10.0.0.0/8".parse().unwrap();
        assert!(ten.contains(ip("10.255.0.1")) && !ten.contains(ip("11.0.0.1")));
        let one: Network = "192.0.2.7".parse().unwrap();
        assert!(one.contains(ip("192.0.2.7")) && !one.contains(ip("192.0.2.8")));
    }
}
