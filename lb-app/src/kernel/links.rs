//! The kernel's interfaces: which of them are ports of ours, or VLANs of these.

use std::collections::BTreeMap;

use lb_core::tables::next_hop::PortId;
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVlan, LinkAttribute, LinkFlags, LinkInfo, LinkMessage, VlanProtocol,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

/// An interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) name: String,
    /// By the administrator: `ip link set NAME up`.
    pub(super) up: bool,
    /// An 802.1Q interface: index of the one below, and VLAN.
    vlan: Option<(u32, u16)>,
}

/// All interfaces, by index.
#[derive(Debug, Default)]
pub(super) struct Links {
    links: BTreeMap<u32, Link>,
    /// The TAPs of our ports, by index.
    taps: BTreeMap<u32, PortId>,
}

impl Links {
    pub(super) fn new(taps: BTreeMap<u32, PortId>) -> Self {
        Self { links: BTreeMap::new(), taps }
    }

    /// The request whose answer [`Self::replace`] takes.
    pub(super) fn request() -> RouteNetlinkMessage {
        RouteNetlinkMessage::GetLink(LinkMessage::default())
    }

    /// Takes a dump.
    pub(super) fn replace(&mut self, dump: &[RouteNetlinkMessage]) {
        self.links = from_dump(dump);
    }

    /// Takes a notice; is anything new?
    pub(super) fn set(&mut self, index: u32, link: Link) -> bool {
        self.links.insert(index, link.clone()) != Some(link)
    }

    /// Takes a notice; was it there?
    pub(super) fn remove(&mut self, index: u32) -> bool {
        self.links.remove(&index).is_some()
    }

    pub(super) fn get(&self, index: u32) -> Option<&Link> {
        self.links.get(&index)
    }

    /// Name for people.
    pub(super) fn name(&self, index: u32) -> String {
        self.get(index).map_or_else(|| format!("interface {index}"), |link| link.name.clone())
    }

    /// The port, and the VLAN of it, that frames leave by that the kernel sends on an interface.
    pub(super) fn port(&self, index: u32) -> Option<(PortId, Option<u16>)> {
        if let Some(port) = self.taps.get(&index) {
            return Some((*port, None));
        }
        let (below, vlan) = self.get(index)?.vlan?;
        Some((*self.taps.get(&below)?, Some(vlan)))
    }
}

/// The interfaces of a dump, by index.
pub(super) fn from_dump(dump: &[RouteNetlinkMessage]) -> BTreeMap<u32, Link> {
    dump.iter()
        .filter_map(|message| match message {
            RouteNetlinkMessage::NewLink(link) => parse(link),
            _ => None,
        })
        .collect()
}

/// Index and contents; `None` for messages that are not about the link as such.
pub(super) fn parse(message: &LinkMessage) -> Option<(u32, Link)> {
    if message.header.interface_family != AddressFamily::Unspec {
        return None;
    }
    let mut name = None;
    let mut below = None;
    let mut vlan = None;
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(text) => name = Some(text.clone()),
            LinkAttribute::Link(index) => below = Some(*index),
            LinkAttribute::LinkInfo(info) => vlan = vlan_id(info),
            _ => {}
        }
    }
    let up = message.header.flags.contains(LinkFlags::Up);
    Some((message.header.index, Link { name: name?, up, vlan: below.zip(vlan) }))
}

/// The VLAN of an 802.1Q interface. 802.1ad ones are not followed: the balancer sets one tag.
fn vlan_id(info: &[LinkInfo]) -> Option<u16> {
    if !info.contains(&LinkInfo::Kind(InfoKind::Vlan)) {
        return None;
    }
    let data = info.iter().find_map(|info| match info {
        LinkInfo::Data(InfoData::Vlan(data)) => Some(data),
        _ => None,
    })?;
    if data.contains(&InfoVlan::Protocol(VlanProtocol::Ieee8021Ad)) {
        return None;
    }
    data.iter().find_map(|data| match data {
        InfoVlan::Id(vlan) => Some(*vlan),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As the kernel describes a VLAN interface (an interface of that kind cannot be made on
    /// every kernel).
    fn vlan_message(index: u32, below: u32, vlan: u16, protocol: VlanProtocol) -> LinkMessage {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.header.flags = LinkFlags::Up;
        message.attributes = vec![
            LinkAttribute::IfName(format!("lan0.{vlan}")),
            LinkAttribute::Link(below),
            LinkAttribute::LinkInfo(vec![
                LinkInfo::Kind(InfoKind::Vlan),
                LinkInfo::Data(InfoData::Vlan(vec![
                    InfoVlan::Protocol(protocol),
                    InfoVlan::Id(vlan),
                ])),
            ]),
        ];
        message
    }

    #[test]
    fn a_vlan_of_a_tap_is_its_port_and_others_are_not() {
        let mut links = Links::new(BTreeMap::from([(7, PortId(2))]));
        links.replace(&[
            RouteNetlinkMessage::NewLink(vlan_message(8, 7, 100, VlanProtocol::Ieee8021Q)),
            RouteNetlinkMessage::NewLink(vlan_message(9, 7, 200, VlanProtocol::Ieee8021Ad)),
            RouteNetlinkMessage::NewLink(vlan_message(10, 3, 100, VlanProtocol::Ieee8021Q)),
            RouteNetlinkMessage::NewLink(vlan_message(11, 8, 300, VlanProtocol::Ieee8021Q)),
        ]);
        assert_eq!(links.port(7), Some((PortId(2), None)));
        assert_eq!(links.port(8), Some((PortId(2), Some(100))));
        assert_eq!(links.port(9), None, "802.1ad");
        assert_eq!(links.port(10), None, "on a foreign interface");
        assert_eq!(links.port(11), None, "a tag within a tag");
        assert_eq!(links.port(12), None, "unknown");
    }
}
