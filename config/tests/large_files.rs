//! Large files take time in proportion to their length, whether they are good or bad. The bounds
//! leave room for a slow machine; a step that is quadratic would miss them by far.
#![expect(clippy::unwrap_used, reason = "a test")]

use std::fmt::Write as _;
use std::time::{Duration, Instant};

const PORT: &str = "[[port]]\nname = 'lan0'\ndevice = 'net_tap0'\naddresses = ['10.0.0.2/8']\n";
const BOUND: Duration = Duration::from_secs(10);

fn service(text: &mut String, number: usize, name: &str) {
    let (a, b) = (number >> 8, number & 255);
    writeln!(
        text,
        "[[service]]\nname = '{name}'\naddress = '192.168.{a}.{b}'\nport = 80\nprotocol = 'tcp'\n\
         forward = 'l2dsr'\nbackends = ["
    )
    .unwrap();
}

fn backends(text: &mut String, distinct: usize, times: usize) {
    for i in (0..distinct).cycle().take(distinct * times) {
        writeln!(text, "{{ address = '10.1.{}.{}', weight = 2 }},", i >> 8, i & 255).unwrap();
    }
    text.push_str("]\n");
}

#[test]
fn a_hundred_thousand_backends() {
    let mut text = PORT.to_owned();
    for number in [1, 2] {
        service(&mut text, number, &format!("service-{number}"));
        backends(&mut text, 50_000, 1);
    }
    let start = Instant::now();
    let config = lb_config::parse("large.toml", &text).unwrap();
    let took = start.elapsed();
    eprintln!("{} MiB in {took:?}", text.len() >> 20);
    assert_eq!(config.desired.services()[1].spec().backends.len(), 50_000);
    assert!(took < BOUND, "{took:?}");
}

#[test]
fn every_backend_twice() {
    let mut text = PORT.to_owned();
    service(&mut text, 1, "twice");
    backends(&mut text, 32_000, 2);
    let start = Instant::now();
    let diagnostics = lb_config::parse("twice.toml", &text).unwrap_err();
    assert!(diagnostics.to_string().contains("32000 errors"));
    assert!(start.elapsed() < BOUND, "{:?}", start.elapsed());
}

#[test]
fn every_service_twice() {
    let mut text = PORT.to_owned();
    for number in (0..16_000).chain(0..16_000) {
        service(&mut text, number, &format!("service-{number}"));
        text.push_str("]\n");
    }
    let start = Instant::now();
    let diagnostics = lb_config::parse("twice.toml", &text).unwrap_err();
    assert_eq!(diagnostics.count(), 32_000, "names and VIPs");
    assert!(start.elapsed() < BOUND, "{:?}", start.elapsed());
}
