//! The ports: names, devices, addresses.

use std::collections::HashMap;
use std::net::IpAddr;

use ipnet::IpNet;
use lb_core::model::{PORTS_MAX, is_unicast};

use super::{Distinct, bounded, value_or};
use crate::diagnostics::{Report, Span};
use crate::problem::Problem;
use crate::read::{At, List};
use crate::spec;
use crate::{PORT_ADDRESSES_MAX, PortConfig};

/// The ports as services need to know them.
pub(super) struct Ports {
    /// Those that have a name and a device.
    pub(super) configs: Vec<PortConfig>,
    /// Their addresses, and where each is written, if it is written here.
    pub(super) addresses: HashMap<IpAddr, Option<Span>>,
    /// Nothing is wrong with any of them: what they lack, they lack.
    pub(super) sound: bool,
}

impl Ports {
    pub(super) fn new(list: List<spec::Port>, report: &mut Report) -> Self {
        let before = report.count();
        if list.items.is_empty() && list.sound {
            report.add_general(Problem::NoPort);
        }
        let first_above = list.items.get(PORTS_MAX).map(|port| port.span);
        bounded("ports", list.items.len(), PORTS_MAX, first_above, report);
        let mut names = Distinct::new("the port name", "give one of the ports another name");
        let mut devices = Distinct::new("the device", "a device is one port: change one of them");
        let mut addresses = Distinct::new("the address", "remove one of the two");
        for port in &list.items {
            if let Some(name) = &port.value.name.0 {
                names.check(name.value.0.as_str(), name.span, report);
            }
            if let Some(device) = &port.value.device.0 {
                devices.check(identity(&device.value.0), device.span, report);
            }
            check_mac(&port.value, report);
            for address in &port.value.addresses.items {
                check_address(address, report);
                addresses.check(address.value.addr(), address.span, report);
            }
            let first_above = port.value.addresses.items.get(PORT_ADDRESSES_MAX).map(|a| a.span);
            let given = port.value.addresses.items.len();
            bounded("addresses", given, PORT_ADDRESSES_MAX, first_above, report);
        }
        let addresses = addresses.seen.into_iter().map(|(net, span)| (net, Some(span))).collect();
        let sound = list.sound && report.count() == before;
        let configs = list.items.into_iter().filter_map(|port| port_config(port.value)).collect();
        Self { configs, addresses, sound }
    }
}

impl Ports {
    /// Those of another file, which is valid.
    pub(super) fn known(ports: &[PortConfig]) -> Self {
        let addresses = ports.iter().flat_map(|port| &port.addresses);
        let addresses = addresses.map(|net| (net.addr(), None)).collect();
        Self { configs: ports.to_vec(), addresses, sound: true }
    }
}

fn port_config(spec: spec::Port) -> Option<PortConfig> {
    Some(PortConfig {
        name: spec.name.0?.value.0,
        device: spec.device.0?.value.0,
        addresses: spec.addresses.items.into_iter().map(|address| address.value).collect(),
        mac: spec.mac.map(|mac| mac.value),
        mtu: spec.mtu.map_or(spec::MTU_DEFAULT, |mtu| mtu.value.0),
        kernel: value_or(spec.kernel, true),
        checksum_offload: value_or(spec.checksum_offload, crate::ChecksumOffload::default()),
    })
}

/// What makes a device one: its PCI address or virtual name. Its arguments do not.
fn identity(device: &str) -> &str {
    device.split(',').next().unwrap_or(device)
}

fn check_mac(port: &spec::Port, report: &mut Report) {
    if let Some(mac) = port.mac.as_ref().filter(|mac| !mac.value.is_station()) {
        report.add(mac.span, Problem::PortNotAStation(mac.value.to_string()));
    }
}

/// The address has to be a host of its subnet: RFC 922 for broadcast, RFC 3021 for /31, RFC 4291
/// §2.6.1 for the subnet-router anycast address and RFC 6164 for /127.
fn check_address(address: &At<IpNet>, report: &mut Report) {
    let net = address.value;
    let is_subnet = net.prefix_len() < net.max_prefix_len() - 1;
    let problem = if !is_unicast(net.addr()) {
        Problem::PortNotUnicast(net.addr())
    } else if is_subnet && net.addr() == net.network() {
        Problem::NotAHost { given: net.to_string(), what: "network address" }
    } else if is_subnet && matches!(net, IpNet::V4(v4) if v4.addr() == v4.broadcast()) {
        Problem::NotAHost { given: net.to_string(), what: "broadcast address" }
    } else {
        return;
    };
    report.add(address.span, problem);
}
