//! Configurations, as the text that `weir` reads.

use std::fmt;
use std::net::IpAddr;

/// A whole configuration. Its text is the TOML file.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Config {
    /// How many workers, on CPUs 0, 1, ...
    pub(crate) workers: usize,
    pub(crate) hugepages: &'static str,
    pub(crate) memory_mb: u32,
    pub(crate) ports: Vec<Port>,
    pub(crate) services: Vec<Service>,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Port {
    /// The kernel-side interface.
    pub(crate) name: String,
    pub(crate) device: String,
    pub(crate) mac: String,
    /// Each with its prefix length.
    pub(crate) addresses: Vec<String>,
    /// More keys, a line each.
    pub(crate) more: String,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Service {
    pub(crate) name: String,
    pub(crate) address: IpAddr,
    pub(crate) port: u16,
    pub(crate) protocol: &'static str,
    pub(crate) forward: &'static str,
    /// More keys of the mode, a line each.
    pub(crate) more: String,
    pub(crate) backends: Vec<Spec>,
}

/// A backend of a service.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Spec {
    pub(crate) address: IpAddr,
    /// If not the service's.
    pub(crate) port: Option<u16>,
    pub(crate) weight: u32,
    pub(crate) drain: bool,
    pub(crate) mac: Option<&'static str>,
}

impl Spec {
    pub(crate) fn new(address: IpAddr, weight: u32) -> Self {
        Self { address, port: None, weight, drain: false, mac: None }
    }
}

impl Config {
    /// The service with this name, to change it.
    pub(crate) fn service(&mut self, name: &str) -> &mut Service {
        self.services.iter_mut().find(|service| service.name == name).expect("it is configured")
    }
}

impl fmt::Display for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { workers, hugepages, memory_mb, ports, services } = self;
        let cpus: Vec<_> = (0..*workers).collect();
        write!(
            f,
            "[site]\nname = \"e2e\"\nhash_key = \"000102030405060708090a0b0c0d0e0f\"\n\n\
             [dataplane]\nworkers = {cpus:?}\nhugepages = \"{hugepages}\"\n\
             memory_mb = {memory_mb}\n"
        )?;
        for Port { name, device, mac, addresses, more } in ports {
            write!(
                f,
                "\n[[port]]\nname = \"{name}\"\ndevice = \"{device}\"\nmac = \"{mac}\"\n\
                 addresses = {addresses:?}\n{more}"
            )?;
        }
        services.iter().try_for_each(|service| write!(f, "\n{service}"))
    }
}

impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, address, port, protocol, forward, more, backends } = self;
        write!(
            f,
            "[[service]]\nname = \"{name}\"\naddress = \"{address}\"\nport = {port}\n\
             protocol = \"{protocol}\"\nforward = \"{forward}\"\n{more}backends = [\n"
        )?;
        for Spec { address, port, weight, drain, mac } in backends {
            write!(f, "  {{ address = \"{address}\", weight = {weight}")?;
            if let Some(port) = port {
                write!(f, ", port = {port}")?;
            }
            if *drain {
                write!(f, ", state = \"drain\"")?;
            }
            if let Some(mac) = mac {
                write!(f, ", mac = \"{mac}\"")?;
            }
            writeln!(f, " }},")?;
        }
        writeln!(f, "]")
    }
}
