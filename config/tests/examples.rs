//! Every example is loaded, and says what it is there to show.

#![expect(clippy::panic, reason = "a test")]

use std::path::{Path, PathBuf};

use lb_config::{Config, Hugepages, Workers, load};
use lb_core::model::{AboveRate, Affinity, Forward, Protocol, SynBound};

fn examples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples")
}

fn example(name: &str) -> Config {
    load(&examples().join(name)).unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn all_load_without_warnings() {
    let names: Vec<_> = std::fs::read_dir(examples()).unwrap().map(|e| e.unwrap()).collect();
    assert!(names.len() >= 3);
    for name in names {
        assert_eq!(example(name.file_name().to_str().unwrap()).warnings, [], "{name:?}");
    }
}

#[test]
fn demo() {
    let config = example("demo.toml");
    let [port] = &config.ports[..] else { panic!("{:?}", config.ports) };
    assert_eq!((port.name.as_str(), port.device.as_str()), ("lan0", "net_tap0,iface=weir0"));
    assert_eq!(config.dataplane.workers, Workers::Cpus(vec![1]));
    let vips: Vec<_> = config.desired.services().iter().map(|s| s.spec().vip.to_string()).collect();
    assert_eq!(vips, ["tcp 10.77.0.100:80", "tcp [fd77::100]:80"]);
    assert!(config.desired.services().iter().all(|s| s.spec().backends.len() == 3));
}

#[test]
fn gateway() {
    let config = example("gateway.toml");
    assert_eq!(config.ports.len(), 2);
    assert_eq!(config.dataplane.hugepages, Hugepages::Required);
    let specs: Vec<_> = config.desired.services().iter().map(|service| service.spec()).collect();
    let crossing = |spec: &&&lb_core::model::ServiceSpec| {
        spec.vip.address.addr().is_ipv4() && spec.backends.iter().all(|b| b.address.is_ipv6())
    };
    assert_eq!(specs.iter().find(crossing).unwrap().forward, Forward::IPIP);
    let dns = specs.iter().find(|spec| spec.vip.protocol == Protocol::Udp).unwrap();
    assert_eq!(dns.affinity, Affinity::Client);
    assert!(dns.backends.iter().all(|backend| backend.static_hop.is_some()));
    let bound = SynBound { rate: 50_000, above: AboveRate::Challenge };
    assert_eq!(specs[0].syn, Some(bound));
    assert!(specs[0].backends.iter().any(|backend| backend.drain));
    assert!(specs[0].backends.iter().any(|backend| backend.weight == 2));
}
