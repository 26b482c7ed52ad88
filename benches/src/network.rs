//! Who is who in a measurement: addresses of services and backends, and the configuration that says so.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

use lb_config::ForwardMode;
use lb_config::profile::{Profile, Traffic};
use lb_core::model::Protocol;
use lb_core::wire::ethernet::MacAddr;

use crate::traffic::VIP_PORT;

/// The device's MAC address, unless another one is given.
pub const DEVICE_MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 2]);
/// Bytes of an IP packet; `net_memif` can do no more.
const MTU: u16 = 1500;
/// Connections of one address of a pool that are reckoned with: half of its ports.
const CONNECTIONS: u32 = 32_256;

/// The address of service number `service`.
#[must_use]
pub fn vip(service: u32, is_ipv6: bool) -> IpAddr {
    if is_ipv6 {
        let [high, low] = words(service);
        Ipv6Addr::new(0xfd00, 0, 0, 2, 0, 0, high, low).into()
    } else {
        (Ipv4Addr::new(10, 2, 0, 1).to_bits() + service).to_be_bytes().into()
    }
}

/// The address of backend number `number`, of all services'.
fn backend(number: u32, is_ipv6: bool) -> IpAddr {
    if is_ipv6 {
        let [high, low] = words(number);
        Ipv6Addr::new(0xfd00, 0, 0, 3, 0, 0, high, low).into()
    } else {
        (Ipv4Addr::new(10, 64, 0, 1).to_bits() + number).to_be_bytes().into()
    }
}

fn words(number: u32) -> [u16; 2] {
    let [a, b, c, d] = number.to_be_bytes();
    [u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])]
}

/// A balancer's place.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    /// The DPDK device that is its port.
    pub device: &'a str,
    /// The device's MAC address.
    pub mac: MacAddr,
    /// CPUs of its workers.
    pub workers: &'a [usize],
    /// Where it keeps what outlives it.
    pub state_dir: &'a Path,
}

/// The configuration of a balancer for a profile's services, which forward by `mode`.
#[must_use]
pub fn configuration(profile: &Profile, mode: ForwardMode, place: Place<'_>) -> String {
    let Place { device, mac, workers, state_dir } = place;
    let mut text = format!(
        r#"[site]
hash_key = "6265796f6e642074686520686561705f"
[dataplane]
workers = {workers:?}
idle = "poll"
memory_mb = 256
state_dir = "{}"
[[port]]
name = "bench0"
device = {device:?}
mac = "{mac}"
addresses = ["10.0.0.2/8", "fd00::2/48"]
mtu = {MTU}
kernel = false
"#,
        state_dir.display()
    );
    let (protocol, ipv6, flows) = match &profile.traffic {
        Traffic::Made(traffic) => (traffic.protocol, traffic.ipv6, traffic.flows),
        Traffic::Captured(_) => (Protocol::Tcp, 0, 0),
    };
    let families: &[bool] = match ipv6 {
        0 => &[false],
        100 => &[true],
        _ => &[false, true],
    };
    let protocol = if protocol == Protocol::Udp { "udp" } else { "tcp" };
    let addresses = (flows / profile.services / CONNECTIONS + 1).next_power_of_two();
    for (number, &is_ipv6) in
        (0..profile.services).flat_map(|n| families.iter().map(move |f| (n, f)))
    {
        let family = if is_ipv6 { 6 } else { 4 };
        let address = vip(number, is_ipv6);
        let _ = write!(
            text,
            "[[service]]\nname = \"bench{number}-{family}\"\naddress = \"{address}\"\n\
             port = {VIP_PORT}\nprotocol = \"{protocol}\"\nforward = \"{}\"\n",
            mode.name()
        );
        if mode == ForwardMode::FullNat {
            let _ = writeln!(text, "pool = \"{}\"", pool(number, addresses, is_ipv6));
        }
        text.push_str("backends = [\n");
        for of_service in 0..profile.backends {
            let number = number * profile.backends + of_service;
            let address = backend(number, is_ipv6);
            let [a, b, c, d] = number.to_be_bytes();
            let _ = writeln!(
                text,
                "  {{ address = \"{address}\", mac = \"02:01:{a:02x}:{b:02x}:{c:02x}:{d:02x}\" }},"
            );
        }
        text.push_str("]\n");
    }
    text
}

/// The addresses that connections of a service leave by; their number is a power of two.
fn pool(service: u32, addresses: u32, is_ipv6: bool) -> String {
    let bits = addresses.ilog2();
    let first = service * addresses;
    if is_ipv6 {
        let [high, low] = words(first);
        format!("{}/{}", Ipv6Addr::new(0xfd00, 0, 0, 1, 0, 0, high, low), 128 - bits)
    } else {
        let address = Ipv4Addr::from_bits(Ipv4Addr::new(10, 128, 0, 0).to_bits() + first);
        format!("{address}/{}", 32 - bits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_configuration_is_valid() {
        for (text, services) in [
            ("", 1),
            ("ipv6 = '100%'\nprotocol = 'udp'", 1),
            ("ipv6 = '20%'\nservices = 3\nbackends = 7\nflows = 1_000_000", 6),
        ] {
            for mode in ["l2dsr", "ipip", "gue", "gre", "nat", "fullnat"] {
                let text = format!("modes = ['{mode}']\n{text}");
                let profile = Profile::parse("profile", &text).unwrap();
                let place = Place {
                    device: "net_memif0,role=client",
                    mac: DEVICE_MAC,
                    workers: &[1],
                    state_dir: Path::new("/tmp/state"),
                };
                let text = configuration(&profile, profile.modes[0], place);
                let config =
                    lb_config::parse("weir.toml", &text).unwrap_or_else(|it| panic!("{it}"));
                assert!(config.warnings.is_empty());
                let given = config.desired.services();
                assert_eq!(given.len(), services);
                for service in given {
                    assert_eq!(service.spec().backends.len(), profile.backends as usize);
                }
            }
        }
    }
}
