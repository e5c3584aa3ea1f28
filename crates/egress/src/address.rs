//! Which addresses may be talked to. Knows the special ranges of IPv4 and IPv6; refuses to resolve names.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use url::{Host, Url};

use crate::EgressError;

/// What the operator allows. Everything that is neither public nor allowed here is refused.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rules {
    /// This machine. Set only while the server itself listens on loopback.
    pub allow_loopback: bool,
    /// The operator's own networks (private, carrier-grade NAT, unique local), from cog.yaml.
    pub allow_private: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    Public,
    Loopback,
    /// Private, carrier-grade NAT or unique local: somebody's own network.
    Private,
    /// Link-local (where clouds keep their metadata service), multicast, unspecified, reserved: never.
    Forbidden,
}

impl Rules {
    pub fn allows(&self, address: IpAddr) -> bool {
        match classify(address) {
            Class::Public => true,
            Class::Loopback => self.allow_loopback,
            Class::Private => self.allow_private,
            Class::Forbidden => false,
        }
    }
}

/// Metadata and control services that clouds keep inside ranges which are otherwise private, or even public.
const METADATA: [IpAddr; 7] = [
    IpAddr::V4(Ipv4Addr::new(169, 254, 169, 254)),
    IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)),
    // Azure's host, at a public address that answers only inside of it.
    IpAddr::V4(Ipv4Addr::new(168, 63, 129, 16)),
    // AWS: the instance's metadata, and a container's credentials.
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x23)),
    // Google Cloud and Scaleway.
    IpAddr::V6(Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0x42, 0, 0, 0, 0, 0, 0x42)),
];

pub fn classify(address: IpAddr) -> Class {
    if METADATA.contains(&address) {
        return Class::Forbidden;
    }
    match address {
        IpAddr::V4(v4) => classify_v4(v4),
        IpAddr::V6(v6) => match embedded_v4(v6) {
            Some(v4) => classify(IpAddr::V4(v4)),
            None => classify_v6(v6),
        },
    }
}

fn classify_v4(v4: Ipv4Addr) -> Class {
    match v4.octets() {
        [127, ..] => Class::Loopback,
        [10, ..] | [192, 168, ..] => Class::Private,
        [172, b, ..] if (16..32).contains(&b) => Class::Private,
        [100, b, ..] if (64..128).contains(&b) => Class::Private,
        // "This network", link-local, protocol assignments, documentation, 6to4 relays, benchmarks.
        [0, ..] | [169, 254, ..] | [192, 0, 0, _] | [192, 0, 2, _] | [192, 88, 99, _] => Class::Forbidden,
        [198, 18..=19, ..] | [198, 51, 100, _] | [203, 0, 113, _] => Class::Forbidden,
        // Multicast, reserved, broadcast.
        [224..=255, ..] => Class::Forbidden,
        _ => Class::Public,
    }
}

fn classify_v6(v6: Ipv6Addr) -> Class {
    let first = v6.segments()[0];
    if v6.is_loopback() {
        Class::Loopback
    } else if first & 0xfe00 == 0xfc00 {
        Class::Private
    } else if first & 0xe000 == 0x2000 && !matches!(v6.segments(), [0x2001, 0xdb8, ..] | [0x2001, 0..=0x1ff, ..]) {
        // Global unicast is 2000::/3, less documentation and protocol assignments (Teredo among them).
        Class::Public
    } else {
        Class::Forbidden
    }
}

/// The IPv4 address that an IPv6 address is a spelling of: mapped, compatible, NAT64, 6to4.
fn embedded_v4(v6: Ipv6Addr) -> Option<Ipv4Addr> {
    let join = |high: u16, low: u16| {
        let [a, b] = high.to_be_bytes();
        let [c, d] = low.to_be_bytes();
        Ipv4Addr::new(a, b, c, d)
    };
    match v6.segments() {
        [0, 0, 0, 0, 0, 0xffff, high, low] => Some(join(high, low)),
        [0, 0, 0, 0, 0, 0, high, low] if high != 0 => Some(join(high, low)),
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => Some(join(high, low)),
        [0x2002, high, low, ..] => Some(join(high, low)),
        _ => None,
    }
}

/// Reads a URL that is about to be called, or stored to be called later: http or https, a host, and no literal address
/// that the rules refuse. A name's addresses are checked when it is resolved.
pub fn check(url: &str, rules: &Rules) -> Result<Url, EgressError> {
    let url = Url::parse(url).map_err(|_| EgressError::NotAUrl)?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(EgressError::Scheme(url.scheme().to_owned()));
    }
    let literal = match url.host() {
        None => return Err(EgressError::NotAUrl),
        Some(Host::Domain(name)) => {
            // Known without asking a resolver, so that the caller hears it at once.
            let local = name.trim_end_matches('.').eq_ignore_ascii_case("localhost");
            local.then_some(IpAddr::V4(Ipv4Addr::LOCALHOST))
        }
        Some(Host::Ipv4(v4)) => Some(IpAddr::V4(v4)),
        Some(Host::Ipv6(v6)) => Some(IpAddr::V6(v6)),
    };
    match literal {
        Some(address) if !rules.allows(address) => Err(EgressError::refused(address)),
        _ => Ok(url),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_special_range_is_known() {
        use Class::*;
        let table = [
            ("8.8.8.8", Public),
            ("1.1.1.1", Public),
            ("172.15.255.255", Public),
            ("172.32.0.1", Public),
            ("100.63.255.255", Public),
            ("100.128.0.0", Public),
            ("2606:4700::1111", Public),
            ("127.0.0.1", Loopback),
            ("127.255.255.255", Loopback),
            ("::1", Loopback),
            ("::ffff:127.0.0.1", Loopback),
            ("64:ff9b::7f00:1", Loopback),
            ("2002:7f00:1::", Loopback),
            ("10.0.0.1", Private),
            ("172.16.0.1", Private),
            ("172.31.255.255", Private),
            ("192.168.1.1", Private),
            ("100.64.0.1", Private),
            ("fc00::1", Private),
            ("fdff::1", Private),
            ("::ffff:192.168.0.1", Private),
            ("::10.0.0.1", Private),
            ("169.254.169.254", Forbidden),
            ("169.254.0.1", Forbidden),
            ("100.100.100.200", Forbidden),
            ("fd00:ec2::254", Forbidden),
            ("fd00:ec2::23", Forbidden),
            ("fd20:ce::254", Forbidden),
            ("fd00:42::42", Forbidden),
            ("168.63.129.16", Forbidden),
            ("168.63.129.17", Public),
            ("64:ff9b::a83f:8110", Forbidden),
            ("::ffff:169.254.169.254", Forbidden),
            ("fe80::1", Forbidden),
            ("0.0.0.0", Forbidden),
            ("0.1.2.3", Forbidden),
            ("::", Forbidden),
            ("::ffff:0.0.0.0", Forbidden),
            ("192.0.0.8", Forbidden),
            ("192.0.2.1", Forbidden),
            ("198.18.0.1", Forbidden),
            ("198.51.100.1", Forbidden),
            ("203.0.113.1", Forbidden),
            ("224.0.0.1", Forbidden),
            ("239.255.255.255", Forbidden),
            ("240.0.0.1", Forbidden),
            ("255.255.255.255", Forbidden),
            ("ff02::1", Forbidden),
            ("fec0::1", Forbidden),
            ("2001:db8::1", Forbidden),
            ("2001::1", Forbidden),
            ("100::1", Forbidden),
        ];
        for (text, class) in table {
            assert_eq!(classify(text.parse().unwrap()), class, "{text}");
        }
    }

    #[test]
    fn a_rule_opens_its_class_and_no_other() {
        let [lo, lan, meta] = ["127.0.0.1", "10.0.0.1", "169.254.169.254"].map(|text| text.parse().unwrap());
        let allowed = |rules: Rules| [rules.allows(lo), rules.allows(lan), rules.allows(meta)];
        assert_eq!(allowed(Rules::default()), [false, false, false]);
        assert_eq!(allowed(Rules { allow_loopback: true, allow_private: false }), [true, false, false]);
        assert_eq!(allowed(Rules { allow_loopback: false, allow_private: true }), [false, true, false]);
    }

    #[test]
    fn a_literal_is_refused_however_it_is_spelled() {
        let strict = Rules::default();
        for url in [
            "http://127.0.0.1/x",
            "http://2130706433/",
            "http://0x7f.1/",
            "http://[::1]:8080/",
            "http://[::ffff:7f00:1]/",
            "http://localhost:9/",
            "http://LOCALHOST./",
            "http://169.254.169.254/latest/meta-data",
            "http://192.168.0.7:5000/hook",
        ] {
            assert!(matches!(check(url, &strict), Err(EgressError::Refused { .. })), "{url}");
        }
        assert!(check("https://example.com/hook", &strict).is_ok());
        assert!(check("http://localhost:9/", &Rules { allow_loopback: true, allow_private: false }).is_ok());
    }

    #[test]
    fn only_http_and_https_are_urls_to_call() {
        let strict = Rules::default();
        assert!(matches!(check("not a url", &strict), Err(EgressError::NotAUrl)));
        assert!(matches!(check("/relative", &strict), Err(EgressError::NotAUrl)));
        assert!(matches!(check("ftp://example.com/", &strict), Err(EgressError::Scheme(_))));
        assert!(matches!(check("file:///etc/passwd", &strict), Err(EgressError::Scheme(_))));
    }
}
