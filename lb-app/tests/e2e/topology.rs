//! What the networks of the tests are made of: addresses, switches, weir's ports on them.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::config::Port;
use crate::netns::{Netns, expect_success};

/// The DPDK driver that weir's ports use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Driver {
    Tap,
    AfPacket,
    /// One queue, and no MAC address but its own; but it does jumbo frames.
    Pcap,
}

impl Driver {
    /// Does it hand over IPv4 fragments as they come? `net_af_packet` asks the kernel to put them
    /// together (`PACKET_FANOUT_FLAG_DEFRAG`), and then has no room for the datagram.
    pub(crate) fn shows_ipv4_fragments(self) -> bool {
        self != Self::AfPacket
    }
}

/// What a run of the scenarios is made over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Setup {
    pub(crate) driver: Driver,
    pub(crate) workers: usize,
}

impl fmt::Display for Setup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let driver = match self.driver {
            Driver::Tap => "net_tap",
            Driver::AfPacket => "net_af_packet",
            Driver::Pcap => "net_pcap",
        };
        write!(f, "{driver}, {} worker{}", self.workers, if self.workers == 1 { "" } else { "s" })
    }
}

/// A switch in the balancer's namespace, and weir's port on it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Segment {
    /// Numbers the names: bridge `br0`, kernel side `lan0`, wire `weir0` or `wire0`.
    index: u8,
    pub(crate) setup: Setup,
}

impl Segment {
    /// Makes the bridge and, unless the driver makes it, the veth pair that is the wire.
    pub(crate) fn new(setup: Setup, index: u8, lb: &Netns) -> Self {
        let segment = Self { index, setup };
        let bridge = segment.bridge();
        // With an address of its own, the bridge does not change it with every interface it gets.
        lb.ip(&format!(
            "link add {bridge} address 02:00:00:00:ff:0{index} type bridge forward_delay 0\n\
             link set {bridge} up"
        ));
        // The bridge is a switch, not a host: it must not answer for the kernel's addresses.
        lb.sysctl(&format!("net/ipv4/conf/{bridge}/arp_ignore"), "1");
        lb.sysctl(&format!("net/ipv6/conf/{bridge}/disable_ipv6"), "1");
        if setup.driver != Driver::Tap {
            lb.ip(&format!(
                "link add wire{index} type veth peer name switch{index}\n\
                 link set wire{index} up\n\
                 link set switch{index} master {bridge} up"
            ));
            // A packet socket gets frames as they are: unfinished checksums and super-frames
            // never leave a real wire, so they must be finished on the way into this one.
            let switch = format!("switch{index}");
            let off = ["-K", &switch, "tx", "off", "tso", "off", "gso", "off"];
            expect_success(lb.command("ethtool").args(off));
        }
        segment
    }

    pub(crate) fn bridge(self) -> String {
        format!("br{}", self.index)
    }

    /// Connects a host: `eth` in its namespace is a port of the switch.
    pub(crate) fn connect(self, lb: &Netns, host: &Netns, role: &str, eth: &str) {
        lb.ip(&format!(
            "link add {role} type veth peer name {eth} netns {}\n\
             link set {role} master {} up",
            host.name(),
            self.bridge(),
        ));
        host.ip(&format!("link set {eth} up"));
    }

    /// Makes switch and wire take packets of so many bytes, when weir has set the wire up.
    pub(crate) fn widen(self, lb: &Netns, mtu: u16) {
        let (Self { index, .. }, bridge) = (self, self.bridge());
        let wires: &[&str] = match self.setup.driver {
            Driver::Tap => &["weir"],
            Driver::AfPacket | Driver::Pcap => &["wire", "switch"],
        };
        for wire in wires {
            lb.ip(&format!("link set {wire}{index} mtu {mtu}"));
        }
        lb.ip(&format!("link set {bridge} mtu {mtu}"));
    }

    /// The name of the interface that weir makes for the kernel.
    pub(crate) fn kernel_side(self) -> String {
        format!("lan{}", self.index)
    }

    /// Connects weir's wire to the switch, when weir has set it up.
    pub(crate) fn connect_weir(self, lb: &Netns) {
        let Self { index, .. } = self;
        if self.setup.driver == Driver::Tap {
            // The driver has given the wire the port's MAC address. A bridge would take that for
            // one of its own and keep the port's frames: the wire needs another.
            lb.ip(&format!(
                "link set weir{index} address 02:00:00:00:fe:0{index}\n\
                 link set weir{index} master {} up",
                self.bridge(),
            ));
        }
    }

    /// The port, as weir is to be told.
    pub(crate) fn port(self, v4: Ipv4Addr, v6: Ipv6Addr) -> Port {
        let Self { index, setup: Setup { driver, workers } } = self;
        Port {
            name: self.kernel_side(),
            device: match driver {
                Driver::Tap => format!("net_tap{index},iface=weir{index}"),
                Driver::AfPacket => {
                    format!("net_af_packet{index},iface=wire{index},qpairs={workers}")
                }
                Driver::Pcap => {
                    format!("net_pcap{index},rx_iface_in=wire{index},tx_iface=wire{index}")
                }
            },
            mac: match driver {
                Driver::Tap | Driver::AfPacket => format!("02:00:00:00:00:0{index}"),
                Driver::Pcap => format!("02:70:63:61:70:0{index}"),
            },
            addresses: vec![format!("{v4}/24"), format!("{v6}/64")],
            more: String::new(),
        }
    }
}

/// The address of a host in network `net`, IPv4.
pub(crate) fn v4(net: u8, host: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, net, 0, host)
}

/// The address of a host in network `net`, IPv6: written with the same digits as IPv4's.
pub(crate) fn v6(net: u8, host: u8) -> Ipv6Addr {
    format!("fd0{net}::{host}").parse().expect("digits are hex digits")
}

/// Gives an interface the addresses of `host` in network `net`.
pub(crate) fn add_addresses(netns: &Netns, interface: &str, net: u8, host: u8) {
    netns.ip(&format!("addr add {}/24 dev {interface}", v4(net, host)));
    netns.ip(&format!("addr add {}/64 dev {interface} nodad", v6(net, host)));
}

/// Leads all other traffic through the host `gateway` of network `net`.
pub(crate) fn add_default(netns: &Netns, net: u8, gateway: u8) {
    netns.ip(&format!("route add default via {}", v4(net, gateway)));
    netns.ip(&format!("route add default via {}", v6(net, gateway)));
}

/// Makes the way out of `interface` to network `net` narrow, in that direction only: a narrow
/// interface would not take what comes, either.
pub(crate) fn narrow(netns: &Netns, interface: &str, net: u8, mtu: u16) {
    netns.ip(&format!(
        "route replace {}/24 dev {interface} mtu lock {mtu}\n\
         route add {}/64 dev {interface} metric 1 mtu lock {mtu}",
        v4(net, 0),
        v6(net, 0)
    ));
}

/// The last part of the client's, the balancer's and the VIPs' addresses.
pub(crate) const CLIENT: u8 = 1;
pub(crate) const WEIR: u8 = 2;
pub(crate) const VIP_L2DSR: u8 = 100;
pub(crate) const VIP_IPIP: u8 = 101;

/// All VIPs.
pub(crate) fn vips() -> [IpAddr; 4] {
    [VIP_L2DSR, VIP_IPIP]
        .map(|host| [v4(0, host).into(), v6(0, host).into()])
        .concat()
        .try_into()
        .expect("two of each family")
}

/// Makes a namespace whose `lo` has the VIPs, and which keeps that to itself.
pub(crate) fn backend_netns(name: &str) -> Netns {
    let netns = Netns::new(name);
    // The neighbours must find the balancer when they ask who has a VIP.
    netns.sysctl("net/ipv4/conf/all/arp_ignore", "1");
    netns.sysctl("net/ipv4/conf/all/arp_announce", "2");
    // Decapsulated packets come from an interface that does not lead back to the client.
    netns.sysctl("net/ipv4/conf/default/rp_filter", "0");
    netns.sysctl("net/ipv4/conf/all/rp_filter", "0");
    for vip in vips() {
        netns.ip(&format!("addr add {vip} dev lo"));
    }
    netns
}

/// An address and port of a VIP.
pub(crate) fn at(ip: impl Into<IpAddr>, port: u16) -> SocketAddr {
    SocketAddr::new(ip.into(), port)
}
