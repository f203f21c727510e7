//! Who may come in: the address and the `Authorization` of a request.
//!
//! *Takes* headers and the peer. *Gives* yes or no. *Promises* that a wrong value takes as long as a right one, and
//! that a forwarded address is believed only from those who were named as proxies.

use std::net::IpAddr;
use std::sync::{Arc, PoisonError, RwLock};

use hyper::HeaderMap;
use hyper::header::AUTHORIZATION;
use ipnet::{IpNet, Ipv4Net};
use secrecy::{ExposeSecret, SecretString};
use subtle::{Choice, ConstantTimeEq};

use crate::config;

/// The values of `Authorization` that are accepted; a reload replaces them. Cheap to clone; all clones are one.
#[derive(Debug, Clone)]
pub struct Senders(Arc<RwLock<Vec<blake3::Hash>>>);

impl Senders {
    /// Those of `webhook.authorization`.
    pub fn new(authorization: &[SecretString]) -> Self {
        Self(Arc::new(RwLock::new(hashes(authorization))))
    }

    /// From now on these, and no others.
    pub fn replace(&self, authorization: &[SecretString]) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = hashes(authorization);
    }

    /// Whether `given` is one of them; every one is compared, whichever fits.
    fn know(&self, given: &[u8]) -> Choice {
        let given = blake3::hash(given);
        let accepted = self.0.read().unwrap_or_else(PoisonError::into_inner);
        accepted.iter().fold(Choice::from(0), |any, accepted| any | accepted.as_bytes().ct_eq(given.as_bytes()))
    }
}

fn hashes(authorization: &[SecretString]) -> Vec<blake3::Hash> {
    authorization.iter().map(|value| blake3::hash(value.expose_secret().as_bytes())).collect()
}

/// The settings, ready to compare.
pub(super) struct Door {
    senders: Senders,
    allowed: Vec<IpNet>,
    proxies: Vec<IpNet>,
}

impl Door {
    pub(super) fn new(settings: &config::Webhook, senders: Senders) -> Self {
        Self {
            senders,
            allowed: settings.allow_ips.iter().map(plain).collect(),
            proxies: settings.trusted_proxies.iter().map(plain).collect(),
        }
    }

    /// Whether the client behind `peer` may call.
    pub(super) fn knows_address(&self, peer: IpAddr, headers: &HeaderMap) -> bool {
        self.allowed.is_empty() || self.client(peer, headers).is_some_and(|client| is_in(&self.allowed, client))
    }

    /// Whether the request carries exactly one `Authorization`, and that one is accepted.
    pub(super) fn knows_sender(&self, headers: &HeaderMap) -> bool {
        let mut values = headers.get_all(AUTHORIZATION).iter();
        let given = values.next().map_or(&b""[..], |value| value.as_bytes());
        let is_only = values.next().is_none();
        is_only & bool::from(self.senders.know(given))
    }

    /// Who tries: the client as far as it is known, else the peer.
    pub(super) fn guesser(&self, peer: IpAddr, headers: &HeaderMap) -> IpAddr {
        self.client(peer, headers).unwrap_or(peer)
    }

    /// The right-most hop that is no proxy of ours, over all header lines; `None` when a proxy forwards what is no
    /// address.
    fn client(&self, peer: IpAddr, headers: &HeaderMap) -> Option<IpAddr> {
        let mut client = peer.to_canonical();
        let lines: Vec<_> = headers.get_all("x-forwarded-for").iter().collect();
        for line in lines.iter().rev() {
            for hop in line.as_bytes().rsplit(|byte| *byte == b',') {
                if !is_in(&self.proxies, client) {
                    return Some(client);
                }
                client = address(std::str::from_utf8(hop).ok()?)?;
            }
        }
        Some(client)
    }
}

fn is_in(nets: &[IpNet], address: IpAddr) -> bool {
    nets.iter().any(|net| net.contains(&address))
}

/// An IPv4 net written in its IPv6 form, as the IPv4 net that it is.
fn plain(net: &IpNet) -> IpNet {
    let IpNet::V6(v6) = net else { return *net };
    let v4 = v6.addr().to_ipv4_mapped().zip(v6.prefix_len().checked_sub(96));
    v4.and_then(|(address, prefix)| Ipv4Net::new(address, prefix).ok()).map_or(*net, IpNet::V4)
}

/// An address as proxies write it: alone, with a port, or in brackets.
fn address(hop: &str) -> Option<IpAddr> {
    let hop = hop.trim_matches([' ', '\t']);
    let plain = hop.parse::<IpAddr>().or_else(|_| hop.parse::<std::net::SocketAddr>().map(|with_port| with_port.ip()));
    let bracketed = || hop.strip_prefix('[')?.strip_suffix(']')?.parse::<std::net::Ipv6Addr>().ok().map(IpAddr::V6);
    plain.ok().or_else(bracketed).map(|address| address.to_canonical())
}

#[cfg(test)]
mod tests {
    use hyper::header::HeaderValue;

    use super::*;

    fn door(allowed: &[&str], proxies: &[&str], values: &[&str]) -> Door {
        let nets = |nets: &[&str]| nets.iter().map(|net| plain(&net.parse().unwrap())).collect();
        Door {
            senders: Senders::new(&values.iter().map(|value| SecretString::from(*value)).collect::<Vec<_>>()),
            allowed: nets(allowed),
            proxies: nets(proxies),
        }
    }

    fn plain_door() -> Door {
        door(&[], &[], &[])
    }

    #[test]
    fn forty_ways_to_claim_an_address() {
        const BELVO: &str = "3.130.254.46";
        let door =
            door(&["3.130.254.46/32", "::ffff:18.220.61.186/128", "2001:db8:1::/48"], &["10.0.0.0/8", "fd00::/8"], &[]);
        let cases: [(&str, &[&str], bool); 40] = [
            // The peer itself.
            (BELVO, &[], true),
            ("::ffff:3.130.254.46", &[], true),
            ("18.220.61.186", &[], true),
            ("::ffff:18.220.61.186", &[], true),
            ("3.130.254.47", &[], false),
            ("::ffff:3.130.254.47", &[], false),
            ("2001:db8:1::7", &[], true),
            ("2001:db8:2::7", &[], false),
            ("127.0.0.1", &[], false),
            ("::1", &[], false),
            // A foreign peer is not believed.
            ("8.8.8.8", &[BELVO], false),
            ("8.8.8.8", &[BELVO, BELVO], false),
            ("8.8.8.8", &["3.130.254.46, 10.0.0.1"], false),
            ("::ffff:8.8.8.8", &[BELVO], false),
            // Belvo's own header changes nothing.
            (BELVO, &["8.8.8.8"], true),
            (BELVO, &["nonsense"], true),
            // Behind a proxy.
            ("10.0.0.1", &[BELVO], true),
            ("10.0.0.1", &["8.8.8.8"], false),
            ("10.0.0.1", &[], false),
            ("::ffff:10.0.0.1", &[BELVO], true),
            ("fd00::1", &[BELVO], true),
            ("10.0.0.1", &["::ffff:3.130.254.46"], true),
            ("10.0.0.1", &["2001:db8:1::9"], true),
            ("10.0.0.1", &["[2001:db8:1::9]:4711"], true),
            ("10.0.0.1", &["[2001:db8:1::9]"], true),
            ("10.0.0.1", &["3.130.254.46:4711"], true),
            ("10.0.0.1", &["  3.130.254.46\t"], true),
            // What a client wrote stands left of what the proxy added.
            ("10.0.0.1", &["3.130.254.46, 8.8.8.8"], false),
            ("10.0.0.1", &["8.8.8.8, 3.130.254.46"], true),
            ("10.0.0.1", &["3.130.254.46", "8.8.8.8"], false),
            ("10.0.0.1", &["8.8.8.8", "3.130.254.46"], true),
            // Several proxies.
            ("10.0.0.1", &["3.130.254.46, 10.9.9.9"], true),
            ("10.0.0.1", &["3.130.254.46, 10.9.9.9", "10.8.8.8"], true),
            ("10.0.0.1", &["3.130.254.46, 8.8.8.8, 10.9.9.9"], false),
            ("10.0.0.1", &["10.9.9.9, 10.8.8.8"], false),
            // What is no address.
            ("10.0.0.1", &[""], false),
            ("10.0.0.1", &["3.130.254.46,"], false),
            ("10.0.0.1", &["unknown, 3.130.254.46"], true),
            ("10.0.0.1", &["3.130.254.46, unknown"], false),
            ("10.0.0.1", &["003.130.254.046"], false),
        ];
        for (peer, lines, expected) in cases {
            let mut headers = HeaderMap::new();
            for line in lines {
                headers.append("x-forwarded-for", HeaderValue::from_static(line));
            }
            assert_eq!(door.knows_address(peer.parse().unwrap(), &headers), expected, "{peer} {lines:?}");
        }
        assert!(plain_door().knows_address("8.8.8.8".parse().unwrap(), &HeaderMap::new()));
    }

    #[test]
    fn exactly_one_accepted_value_opens() {
        let door = door(&[], &[], &["Bearer old-old-old-old-old", "Basic new-new-new-new"]);
        for (values, expected) in [
            (&["Bearer old-old-old-old-old"][..], true),
            (&["Basic new-new-new-new"], true),
            (&["bearer old-old-old-old-old"], false),
            (&["Bearer old-old-old-old-ol"], false),
            (&[""], false),
            (&[], false),
            (&["Basic new-new-new-new", "Basic new-new-new-new"], false),
            (&["Basic new-new-new-new", "wrong"], false),
        ] {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(AUTHORIZATION, HeaderValue::from_static(value));
            }
            assert_eq!(door.knows_sender(&headers), expected, "{values:?}");
        }
    }
}
