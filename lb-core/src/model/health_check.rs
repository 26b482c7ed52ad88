//! How it is found out whether a backend may serve.

use std::time::Duration;

use super::{Invalid, Key, ServiceSpec};

/// Time between two checks of a backend.
pub const CHECK_INTERVAL_MIN: Duration = Duration::from_millis(100);
/// Time between two checks of a backend, at most.
pub const CHECK_INTERVAL_MAX: Duration = Duration::from_hours(1);
/// Time for an answer, at least.
pub const CHECK_TIMEOUT_MIN: Duration = Duration::from_millis(10);
/// Checks in a row that change a backend's state, at most.
pub const CHECK_RUN_MAX: u32 = 100;
/// Bytes of a path, a host or a gRPC service's name.
pub const CHECK_TEXT_MAX: usize = 1024;
/// Bytes of a datagram that is sent or expected: what every link carries.
pub const CHECK_PAYLOAD_MAX: usize = 1200;
/// Ranges of HTTP status codes, at most.
pub const CHECK_STATUSES_MAX: usize = 16;

/// How often the backends of a service are asked what, and what follows from it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthCheck {
    /// What is asked.
    pub probe: Probe,
    /// Where, if not at the backend's port; has no meaning for [`Probe::Icmp`].
    pub port: Option<u16>,
    /// How it gets there.
    pub via: Via,
    /// From the begin of one check to that of the next.
    pub interval: Duration,
    /// How long an answer may take, all in all.
    pub timeout: Duration,
    /// So many successes in a row bring a failed backend back.
    pub rise: u32,
    /// So many failures in a row make a backend fail.
    pub fall: u32,
    /// If less than this share of the backends is healthy, in percent, all serve.
    pub panic_below: u8,
}

/// How a check gets to a backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Via {
    /// To its own address.
    #[default]
    Backend,
    /// To the service's address, as packets of clients get there: so it is asked about the address that
    /// clients know, and about the tunnel.
    Service,
}

/// What a backend is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Probe {
    /// For a connection.
    Tcp,
    /// For a page, and whether its status is a good one.
    Http(HttpProbe),
    /// For a verdict of its own (`grpc.health.v1.Health/Check`, without TLS).
    Grpc {
        /// The name that is asked about; empty: the whole server.
        service: String,
        /// The authority; absent: address and port.
        host: Option<String>,
    },
    /// For an answer to a datagram.
    Udp {
        /// What is sent.
        send: Vec<u8>,
        /// What the answer begins with.
        expect: Vec<u8>,
    },
    /// For the echo of a ping.
    Icmp,
}

/// What is asked of a web server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpProbe {
    /// By TLS? Nothing is concluded from the server's certificate.
    pub tls: bool,
    /// Path with its query.
    pub path: String,
    /// Name of the site, with the port if it is not the usual one; absent: address and port.
    pub host: Option<String>,
    /// The good status codes, ends included.
    pub expect: Vec<(u16, u16)>,
}

impl HttpProbe {
    /// Successes and redirections are good.
    pub const EXPECT_DEFAULT: (u16, u16) = (200, 399);

    /// Is this status a good one?
    #[must_use]
    pub fn expects(&self, status: u16) -> bool {
        self.expect.iter().any(|&(first, last)| (first..=last).contains(&status))
    }
}

impl HealthCheck {
    /// Every two seconds, with a second for the answer; two successes, three failures; no panic.
    #[must_use]
    pub fn new(probe: Probe) -> Self {
        Self {
            probe,
            port: None,
            via: Via::default(),
            interval: Duration::from_secs(2),
            timeout: Duration::from_secs(1),
            rise: 2,
            fall: 3,
            panic_below: 0,
        }
    }
}

/// The key of a health check that a finding is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is the configuration key of that name")]
pub enum CheckKey {
    Path,
    Host,
    Service,
    Port,
    Via,
    Send,
    Expect,
    Interval,
    Timeout,
    Rise,
    Fall,
    PanicBelow,
}

pub(super) fn check_health(spec: &ServiceSpec, find: &mut impl FnMut(Key, Invalid)) {
    let Some(check) = &spec.health else { return };
    let mut find = |key, invalid| find(Key::Check(key), invalid);
    check_probe(&check.probe, &mut find);
    let needs_port = check.port.is_none() && check.probe != Probe::Icmp;
    if check.port == Some(0) {
        find(CheckKey::Port, Invalid::PortZero);
    } else if needs_port && spec.backends.iter().any(|backend| spec.port_of(backend).is_none()) {
        find(CheckKey::Port, Invalid::CheckPort(spec.vip.ports));
    }
    if check.via == Via::Service {
        check_via(spec, &check.probe, &mut find);
    }
    if !(CHECK_INTERVAL_MIN..=CHECK_INTERVAL_MAX).contains(&check.interval) {
        find(CheckKey::Interval, Invalid::CheckInterval);
    } else if check.timeout < CHECK_TIMEOUT_MIN || check.timeout > check.interval {
        find(CheckKey::Timeout, Invalid::CheckTimeout);
    }
    for (key, run) in [(CheckKey::Rise, check.rise), (CheckKey::Fall, check.fall)] {
        if !(1..=CHECK_RUN_MAX).contains(&run) {
            find(key, Invalid::CheckRun(run));
        }
    }
    if check.panic_below > 100 {
        find(CheckKey::PanicBelow, Invalid::CheckShare(check.panic_below));
    }
}

fn check_via(spec: &ServiceSpec, probe: &Probe, find: &mut impl FnMut(CheckKey, Invalid)) {
    if spec.forward.translates() {
        find(CheckKey::Via, Invalid::CheckTranslated);
    } else if *probe == Probe::Icmp {
        find(CheckKey::Via, Invalid::CheckPing);
    } else if !spec.vip.is_one_address() {
        find(CheckKey::Via, Invalid::CheckPrefix(spec.vip.address));
    }
}

fn check_probe(probe: &Probe, find: &mut impl FnMut(CheckKey, Invalid)) {
    match probe {
        Probe::Tcp | Probe::Icmp => {}
        Probe::Http(http) => {
            if !is_path(&http.path) {
                find(CheckKey::Path, Invalid::CheckPath);
            }
            let is_status =
                |&(first, last): &(u16, u16)| 100 <= first && first <= last && last <= 599;
            if !(1..=CHECK_STATUSES_MAX).contains(&http.expect.len())
                || !http.expect.iter().all(is_status)
            {
                find(CheckKey::Expect, Invalid::CheckStatuses);
            }
            check_host(http.host.as_deref(), find);
        }
        Probe::Grpc { service, host } => {
            if service.len() > CHECK_TEXT_MAX {
                find(CheckKey::Service, Invalid::CheckLength(service.len()));
            }
            check_host(host.as_deref(), find);
        }
        Probe::Udp { send, expect } => {
            for (key, bytes) in [(CheckKey::Send, send), (CheckKey::Expect, expect)] {
                if bytes.len() > CHECK_PAYLOAD_MAX {
                    find(key, Invalid::CheckPayload(bytes.len()));
                }
            }
        }
    }
}

fn check_host(host: Option<&str>, find: &mut impl FnMut(CheckKey, Invalid)) {
    if host.is_some_and(|host| !is_host(host)) {
        find(CheckKey::Host, Invalid::CheckHost);
    }
}

/// An absolute path with or without a query (RFC 3986 §3.3, §3.4).
fn is_path(text: &str) -> bool {
    let is_plain = |b: u8| b.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:@/?%".contains(&b);
    text.len() <= CHECK_TEXT_MAX && text.starts_with('/') && text.bytes().all(is_plain)
}

/// A name or an address, with a port or without.
fn is_host(text: &str) -> bool {
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !host.contains(':') || host.ends_with(']') => (host, Some(port)),
        _ => (text, None),
    };
    let bracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let is_named = !host.is_empty()
        && host.len() <= 253
        && host.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b));
    let is_ipv6 = bracketed.is_some_and(|host| host.parse::<std::net::Ipv6Addr>().is_ok());
    (is_named || is_ipv6) && port.is_none_or(|port| port.parse::<u16>().is_ok_and(|port| port > 0))
}

#[cfg(test)]
mod tests {
    use super::super::tests::spec;
    use super::super::{Finding, Forward, PortRange, Service};
    use super::*;

    fn http(path: &str) -> HttpProbe {
        let expect = vec![HttpProbe::EXPECT_DEFAULT];
        HttpProbe { tls: false, path: path.into(), host: None, expect }
    }

    fn findings(change: impl FnOnce(&mut ServiceSpec, &mut HealthCheck)) -> Vec<(Key, String)> {
        let mut spec = spec("web", "10.0.0.100", &["10.0.0.11", "10.0.0.12"]);
        let mut check = HealthCheck::new(Probe::Http(http("/healthz?full=1")));
        change(&mut spec, &mut check);
        spec.health = Some(check);
        let findings = Service::new(spec).err().unwrap_or_default();
        findings.into_iter().map(|Finding { key, invalid }| (key, invalid.to_string())).collect()
    }

    #[test]
    fn good_checks_are_taken() {
        assert_eq!(findings(|_, _| ()), []);
        assert_eq!(findings(|_, check| check.probe = Probe::Tcp), []);
        assert_eq!(findings(|_, check| check.timeout = check.interval), []);
        assert_eq!(findings(|_, check| check.panic_below = 100), []);
        assert_eq!(findings(|_, check| check.via = Via::Service), []);
        for host in ["www.example.org", "www.example.org:8443", "10.0.0.1", "[fd00::1]:80", "[::1]"]
        {
            let probe = HttpProbe { host: Some(host.into()), ..http("/") };
            assert_eq!(findings(|_, check| check.probe = Probe::Http(probe)), [], "{host}");
        }
        // Of many ports, none has to be chosen for a ping, or where there is one to choose.
        let many = |spec: &mut ServiceSpec| spec.vip.ports = PortRange::ANY;
        let ping = findings(|spec, check| (many(spec), check.probe = Probe::Icmp).0);
        assert_eq!(ping, []);
        assert_eq!(findings(|spec, check| (many(spec), check.port = Some(80)).0), []);
    }

    #[test]
    fn each_rule_names_its_key() {
        type Case = (fn(&mut ServiceSpec, &mut HealthCheck), CheckKey, &'static str);
        let with = |change: fn(&mut HttpProbe)| {
            move |_: &mut ServiceSpec, check: &mut HealthCheck| {
                let mut probe = http("/");
                change(&mut probe);
                check.probe = Probe::Http(probe);
            }
        };
        let http_cases: [(fn(&mut HttpProbe), _, _); 9] = [
            (|p| p.path = "healthz".into(), CheckKey::Path, "begins with '/'"),
            (|p| p.path = "/a b".into(), CheckKey::Path, "begins with '/'"),
            (|p| p.path = "/\r\nx: y".into(), CheckKey::Path, "begins with '/'"),
            (|p| p.host = Some("a b".into()), CheckKey::Host, "www.example.org"),
            (|p| p.host = Some(String::new()), CheckKey::Host, "www.example.org"),
            (|p| p.host = Some("a:0".into()), CheckKey::Host, "www.example.org"),
            (|p| p.host = Some("fd00::1".into()), CheckKey::Host, "www.example.org"),
            (|p| p.expect = vec![(300, 200)], CheckKey::Expect, "100 to 599"),
            (|p| p.expect.clear(), CheckKey::Expect, "100 to 599"),
        ];
        for (change, key, says) in http_cases {
            let found = findings(with(change));
            let [(at, message)] = &found[..] else { panic!("{found:?}") };
            assert_eq!(*at, Key::Check(key));
            assert!(message.contains(says), "{message}");
        }
        let cases: [Case; 14] = [
            (|_, c| c.port = Some(0), CheckKey::Port, "port 0"),
            (|s, _| s.vip.ports = PortRange::ANY, CheckKey::Port, "add `port`"),
            (|_, c| c.interval = Duration::from_millis(99), CheckKey::Interval, "100ms to 1h"),
            (|_, c| c.interval = Duration::from_secs(3601), CheckKey::Interval, "100ms to 1h"),
            (|_, c| c.timeout = Duration::from_millis(9), CheckKey::Timeout, "10ms"),
            (|_, c| c.timeout = Duration::from_millis(2001), CheckKey::Timeout, "the interval"),
            (|_, c| c.rise = 0, CheckKey::Rise, "1 to 100"),
            (|_, c| c.fall = 101, CheckKey::Fall, "1 to 100"),
            (|_, c| c.panic_below = 101, CheckKey::PanicBelow, "0% to 100%"),
            (
                |s, c| (s.forward, c.via) = (Forward::Nat, Via::Service),
                CheckKey::Via,
                "at their own address",
            ),
            (|_, c| (c.probe, c.via) = (Probe::Icmp, Via::Service), CheckKey::Via, "a ping"),
            (
                |s, c| {
                    s.vip.address = "10.9.0.0/24".parse().unwrap();
                    c.via = Via::Service;
                },
                CheckKey::Via,
                "10.9.0.0/24 is not one address",
            ),
            (
                |_, c| c.probe = Probe::Udp { send: vec![0; 1201], expect: vec![] },
                CheckKey::Send,
                "at most 1200",
            ),
            (
                |_, c| c.probe = Probe::Grpc { service: "a".repeat(1025), host: None },
                CheckKey::Service,
                "at most 1024",
            ),
        ];
        for (change, key, says) in cases {
            let found = findings(change);
            let [(at, message)] = &found[..] else { panic!("{found:?}") };
            assert_eq!(*at, Key::Check(key));
            assert!(message.contains(says), "{message}");
        }
    }
}
