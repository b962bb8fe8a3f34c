//! Which addresses are dialled.
//!
//! Rule: what a peer says it is reached at is dialled only where it can be a node's address. Otherwise a member makes all the
//! others knock at the services of their own hosts that answer on link-local addresses (a cloud's metadata, say).

use std::net::{IpAddr, Ipv4Addr};

/// What speaks against an address of a node; none where it may be one. `link_local` says that networks of 169.254/16 are in
/// use here.
pub(crate) fn objection(ip: IpAddr, link_local: bool) -> Option<&'static str> {
    let ip = ip.to_canonical();
    if ip.is_unspecified() {
        return Some("it stands for any address");
    }
    if ip.is_multicast() || ip == IpAddr::V4(Ipv4Addr::BROADCAST) {
        return Some("it is the address of many machines");
    }
    match ip {
        IpAddr::V6(ip) if ip.is_unicast_link_local() => {
            Some("a link-local address means something on one link alone")
        }
        IpAddr::V4(ip) if ip.is_link_local() && !link_local => {
            Some("it is link-local, which needs node.dial_link_local on all nodes")
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_many_of_none_and_of_one_link_are_not_dialled() {
        let objects = |ip: &str, link_local| {
            let ip = ip.parse().expect("an address");
            objection(ip, link_local).is_some()
        };
        for ip in ["10.0.0.1", "127.0.0.1", "::1", "fd00::1", "2001:db8::1"] {
            assert!(!objects(ip, false), "{ip}");
        }
        for ip in [
            "0.0.0.0",
            "::",
            "224.0.0.1",
            "ff02::1",
            "255.255.255.255",
            "fe80::1",
            "::ffff:0.0.0.0",
        ] {
            assert!(objects(ip, true), "{ip}");
        }
        for ip in ["169.254.169.254", "::ffff:169.254.169.254"] {
            assert!(objects(ip, false) && !objects(ip, true), "{ip}");
        }
    }
}
