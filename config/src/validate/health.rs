//! Health checks: which keys belong to which check, and what comes of them.

use lb_core::model::{CheckKey, HealthCheck, HttpProbe, Probe, Via};

use super::ports::Ports;
use super::value_or;
use crate::PortConfig;
use crate::diagnostics::{Report, Span};
use crate::problem::Problem;
use crate::read::At;
use crate::scalar::CheckKind;
use crate::spec;

const HTTP: &[CheckKind] = &[CheckKind::Http, CheckKind::Https];
const NAMED: &[CheckKind] = &[CheckKind::Http, CheckKind::Https, CheckKind::Grpc];
const ANSWERED: &[CheckKind] = &[CheckKind::Http, CheckKind::Https, CheckKind::Udp];

/// Notes keys that belong to other checks, and what `expect` cannot mean. With "none", which is for
/// turning checks off for a while, all others may stay.
pub(super) fn check_keys(written: &At<spec::Health>, report: &mut Report) {
    let health = &written.value;
    let Some(kind) = health.check.0.as_ref().map(|kind| kind.value) else { return };
    if kind == CheckKind::None {
        return;
    }
    let keys = [
        (health.path.as_ref().map(|at| at.span), "path", HTTP, "\"http\"` or `\"https\""),
        (
            health.host.as_ref().map(|at| at.span),
            "host",
            NAMED,
            "\"http\"`, `\"https\"` or `\"grpc\"",
        ),
        (health.service.as_ref().map(|at| at.span), "service", &[CheckKind::Grpc], "\"grpc\""),
        (health.send.as_ref().map(|at| at.span), "send", &[CheckKind::Udp], "\"udp\""),
        (
            health.expect.as_ref().map(|at| at.span),
            "expect",
            ANSWERED,
            "\"http\"`, `\"https\"` or `\"udp\"",
        ),
    ];
    for (span, key, kinds, checks) in keys {
        if let Some(span) = span.filter(|_| !kinds.contains(&kind)) {
            report.add(span, Problem::KeyOfOtherCheck { key, checks });
        }
    }
    if let Some(port) = health.port.filter(|_| kind == CheckKind::Icmp) {
        report.add(port.span, Problem::KeyOfOtherCheck { key: "port", checks: "\"tcp\"" });
    }
    // One that cannot be read was reported, and is not missing.
    if kind == CheckKind::Udp && health.send.is_none() && written.sound {
        report.add(span(written, CheckKey::Send), Problem::NoPayload);
    }
    check_expect(health, kind, report);
}

/// Notes checks through a service that no port could send: the answers go to an address of ours.
pub(super) fn check_ports(service: &spec::Service, ports: &Ports, report: &mut Report) {
    let health = service.health.as_ref().map(|health| &health.value);
    let via = health.and_then(|health| health.via).filter(|via| via.value == Via::Service);
    let Some(via) = via else { return };
    let Some(address) = &service.address.0 else { return };
    let is_ipv6 = address.value.0.addr().is_ipv6();
    let is_answerable = |port: &PortConfig| {
        port.kernel && port.addresses.iter().any(|net| net.addr().is_ipv6() == is_ipv6)
    };
    if ports.addresses.contains_key(&address.value.0.addr()) {
        report.add(via.span, Problem::CheckOfOwn(address.value.0.addr()));
    } else if !ports.configs.iter().any(is_answerable) {
        report.add(via.span, Problem::NoCheckSource { version: if is_ipv6 { 6 } else { 4 } });
    }
}

fn check_expect(health: &spec::Health, kind: CheckKind, report: &mut Report) {
    let Some(expect) = &health.expect else { return };
    if let (CheckKind::Udp, [_, more, ..]) = (kind, &expect.value.0[..]) {
        let problem = Problem::TooMany { what: "answers", given: expect.value.0.len(), max: 1 };
        report.add(more.span, problem);
    }
    for item in &expect.value.0 {
        let problem = match kind {
            CheckKind::Http | CheckKind::Https => item.value.statuses().err(),
            CheckKind::Udp => item.value.payload().err(),
            _ => None,
        };
        if let Some(problem) = problem {
            report.add(item.span, problem);
        }
    }
}

/// `None`: nothing is asked, or what is to be asked was not said well.
pub(super) fn check(health: &spec::Health) -> Option<HealthCheck> {
    let probe = probe(health)?;
    let default = HealthCheck::new(probe);
    // A short interval needs no `timeout` beside it.
    let interval = value_or(health.interval, default.interval);
    Some(HealthCheck {
        port: health.port.map(|port| port.value.0),
        via: value_or(health.via, default.via),
        interval,
        timeout: value_or(health.timeout, default.timeout.min(interval)),
        rise: health.rise.map_or(default.rise, |rise| rise.value.0),
        fall: health.fall.map_or(default.fall, |fall| fall.value.0),
        panic_below: health.panic_below.map_or(default.panic_below, |share| share.value.0),
        ..default
    })
}

fn probe(health: &spec::Health) -> Option<Probe> {
    let kind = health.check.0.as_ref()?.value;
    let host = health.host.as_ref().map(|host| host.value.clone());
    Some(match kind {
        CheckKind::None => return None,
        CheckKind::Tcp => Probe::Tcp,
        CheckKind::Icmp => Probe::Icmp,
        CheckKind::Http | CheckKind::Https => {
            let expect = match &health.expect {
                None => vec![HttpProbe::EXPECT_DEFAULT],
                Some(expect) => {
                    expect.value.0.iter().filter_map(|item| item.value.statuses().ok()).collect()
                }
            };
            let path = health.path.as_ref().map_or_else(|| "/".into(), |path| path.value.0.clone());
            Probe::Http(HttpProbe { tls: kind == CheckKind::Https, path, host, expect })
        }
        CheckKind::Grpc => {
            let service = health.service.as_ref().map(|name| name.value.clone());
            Probe::Grpc { service: service.unwrap_or_default(), host }
        }
        CheckKind::Udp => {
            let expect = health.expect.as_ref().and_then(|expect| expect.value.0.first());
            Probe::Udp {
                send: health.send.as_ref()?.value.0.clone(),
                expect: expect.and_then(|item| item.value.payload().ok()).unwrap_or_default(),
            }
        }
    })
}

/// Where a key of a health check stands; of one that is absent, the word that says what is asked.
pub(super) fn span(health: &At<spec::Health>, key: CheckKey) -> Span {
    let spec = &health.value;
    let written = match key {
        CheckKey::Path => spec.path.as_ref().map(|at| at.span),
        CheckKey::Host => spec.host.as_ref().map(|at| at.span),
        CheckKey::Service => spec.service.as_ref().map(|at| at.span),
        CheckKey::Port => spec.port.as_ref().map(|at| at.span),
        CheckKey::Via => spec.via.as_ref().map(|at| at.span),
        CheckKey::Send => spec.send.as_ref().map(|at| at.span),
        CheckKey::Expect => spec.expect.as_ref().map(|at| at.span),
        CheckKey::Interval => spec.interval.as_ref().map(|at| at.span),
        CheckKey::Timeout => spec.timeout.as_ref().map(|at| at.span),
        CheckKey::Rise => spec.rise.as_ref().map(|at| at.span),
        CheckKey::Fall => spec.fall.as_ref().map(|at| at.span),
        CheckKey::PanicBelow => spec.panic_below.as_ref().map(|at| at.span),
    };
    written.or(spec.check.0.as_ref().map(|check| check.span)).unwrap_or(health.span)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn health(keys: &str) -> Option<HealthCheck> {
        let text = format!(
            "[[port]]\nname = 'lan0'\ndevice = 'net_tap0'\naddresses = ['10.0.0.2/24']\n\
             [[service]]\nname = 'web'\n\
             address = '10.0.0.100'\nport = 80\nprotocol = 'tcp'\nforward = 'l2dsr'\n{keys}\n"
        );
        let config = crate::parse("", &text).unwrap_or_else(|error| panic!("{error}"));
        config.desired.services()[0].spec().health.clone()
    }

    #[test]
    fn nothing_is_asked_if_nothing_is_written() {
        assert_eq!(health(""), None);
        // Turned off for a while, and all else left as it was.
        let off = "[service.health]\ncheck = 'none'\npath = '/'\nsend = '0x00'\nport = 8080";
        assert_eq!(health(off), None);
    }

    #[test]
    fn every_key_has_its_place() {
        let usual = |probe| Some(HealthCheck::new(probe));
        let check = |keys: &str| health(&format!("[service.health]\n{keys}"));
        assert_eq!(check("check = 'tcp'"), usual(Probe::Tcp));
        assert_eq!(check("check = 'icmp'"), usual(Probe::Icmp));
        let http = HttpProbe { tls: false, path: "/".into(), host: None, expect: vec![(200, 399)] };
        assert_eq!(check("check = 'http'"), usual(Probe::Http(http)));
        let https = HttpProbe {
            tls: true,
            path: "/healthz?a=1".into(),
            host: Some("www.example.org".into()),
            expect: vec![(204, 204), (300, 308), (401, 401)],
        };
        let times = "interval = '10s'\ntimeout = '2500ms'\nrise = 1\nfall = 5\nport = 8443\n\
                     panic_below = '50%'\nvia = 'service'";
        let keys = "check = 'https'\npath = '/healthz?a=1'\nhost = 'www.example.org'\n\
                    expect = [204, '300-308', '401']";
        let expected = HealthCheck {
            probe: Probe::Http(https),
            port: Some(8443),
            via: Via::Service,
            interval: Duration::from_secs(10),
            timeout: Duration::from_millis(2500),
            rise: 1,
            fall: 5,
            panic_below: 50,
        };
        assert_eq!(check(&format!("{keys}\n{times}")), Some(expected));
        let grpc = Probe::Grpc { service: "web.Api".into(), host: Some("api:443".into()) };
        assert_eq!(check("check = 'grpc'\nservice = 'web.Api'\nhost = 'api:443'"), usual(grpc));
        let udp = |expect: &[u8]| Probe::Udp { send: vec![0, 0xff], expect: expect.into() };
        assert_eq!(check("check = 'udp'\nsend = '0x00fF'"), usual(udp(b"")));
        let keys = "check = 'udp'\nsend = '0x00ff'\nexpect = 'pong'";
        assert_eq!(check(keys), usual(udp(b"pong")));
    }

    #[test]
    fn a_short_interval_needs_no_timeout() {
        let check = health("health = { check = 'tcp', interval = '200ms' }").unwrap();
        assert_eq!(check.timeout, Duration::from_millis(200));
    }
}
