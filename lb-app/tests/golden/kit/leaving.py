"""What has to leave for what comes in, by the rules."""

import ipaddress
import struct
from dataclasses import dataclass

from scapy.layers.inet import ICMP, IP, UDP
from scapy.layers.inet6 import ICMPv6PacketTooBig, ICMPv6TimeExceeded, IPv6
from scapy.layers.l2 import GRE
from scapy.packet import Raw

from .frames import (
    ETHER_TYPE,
    FRAGMENT,
    family,
    fixed_header,
    internet_checksum,
    ip_packet,
    l3_offset,
)

OVERHEAD = {"l2dsr": 0, "ipip": 0, "gre": 4, "gue": 8}
OUTER_HEADER = {4: 20, 6: 40}


@dataclass
class Out:
    """A frame, and which of its bytes are open: (offset, length, name), see [`opened`] for names
    that begin with "=".

    What has a name is equal wherever the name is in the case, or in the frame if it begins with "_";
    "_" alone is anything. "a" stands for the id of a datagram, and gets a letter of its own for each
    that is cut. "P" and what follows is a port of a pool, "A" and the same an address of it.
    """

    bytes: bytes
    wild: tuple = ()


def outer_family(service):
    return family(service["backends"][0]["address"])


def overhead(service):
    if service["forward"] == "l2dsr":
        return 0
    return OUTER_HEADER[outer_family(service)] + OVERHEAD[service["forward"]]


def needs_ports(service):
    """Do ports count in the flow hash?"""
    return service.get("affinity", "flow") == "flow" and service["protocol"] != "any"


def hash_of(service, flow):
    return flow.hash(needs_ports(service))


def l2(config, service, frame):
    """MACs and tags of the frame that leaves: one-armed use keeps the tags."""
    out = config.out_port(service)
    macs = bytes.fromhex((service["backends"][0]["mac"] + out["mac"]).replace(":", ""))
    tags = frame[12 : l3_offset(frame) - 2] if out is config.ports[0] else b""
    return macs + tags


def outer_source(config, service, flow_hash):
    fam = outer_family(service)
    if "outer_source" in service:
        prefix = ipaddress.ip_network(service["outer_source"])
        bits = min(prefix.max_prefixlen - prefix.prefixlen, 64)
        host = flow_hash & ((1 << bits) - 1)
        return str(prefix.network_address + host)
    return address_of(config.out_port(service), fam)


def address_of(port, fam):
    """A port's own address of a family."""
    interfaces = map(ipaddress.ip_interface, port["addresses"])
    return next(str(i.ip) for i in interfaces if i.version == fam)


def with_true_checksum(packet):
    """A packet whose checksum is as it should be, if it is nothing but an IP header and all of a TCP
    or UDP segment that has one.
    """
    if packet[0] >> 4 == 4:
        plain, proto, addresses = 20, packet[9], packet[12:20]
        whole = packet[0] == 0x45 and not struct.unpack_from("!H", packet, 6)[0] & 0x3FFF
    else:
        plain, proto, addresses, whole = 40, packet[6], packet[8:40], True
    segment = packet[plain:]
    if not whole or proto not in (6, 17):
        return packet
    if proto == 17 and struct.unpack_from("!H", segment, 4)[0] != len(segment):
        return packet
    at = 16 if proto == 6 else 6
    if segment[at : at + 2] == bytes(2):
        return packet
    blank = segment[:at] + bytes(2) + segment[at + 2 :]
    pseudo = addresses + struct.pack("!II", len(segment), proto)
    checksum = struct.pack("!H", internet_checksum(pseudo + blank))
    return packet[: plain + at] + checksum + segment[at + 2 :]


def encapsulate(config, service, packet, flow_hash):
    """The outer packet, whatever its length."""
    mode, fam = service["forward"], outer_family(service)
    inner_fam = packet[0] >> 4
    tos = packet[1] if inner_fam == 4 else (struct.unpack_from("!H", packet)[0] >> 4) & 0xFF
    src, dst = outer_source(config, service, flow_hash), service["backends"][0]["address"]
    if mode == "ipip":
        proto, inside = {4: 4, 6: 41}[inner_fam], Raw(packet)
    elif mode == "gre":
        proto, inside = 47, GRE(proto=ETHER_TYPE[inner_fam]) / Raw(packet)
    else:
        udp = UDP(sport=0xC000 | (flow_hash & 0x3FFF), dport=service.get("gue_port", 6080))
        if fam == 4:
            udp.chksum = 0
        else:
            # Made from the inner checksum: it is wrong where that one is, by as much.
            believed = IPv6(src=src, dst=dst, nh=17) / udp / Raw(with_true_checksum(packet))
            udp.chksum = IPv6(bytes(believed))[UDP].chksum
        proto, inside = 17, udp / Raw(packet)
    if fam == 4:
        header = IP(src=src, dst=dst, tos=tos, id=0, flags="DF", ttl=64, proto=proto)
    else:
        header = IPv6(src=src, dst=dst, tc=tos, fl=flow_hash & 0xFFFFF, hlim=64, nh=proto)
    return bytes(header / inside)


def fragment_outer(packet, mtu, name):
    """The pieces of an outer packet that does not fit: each as long as may be, but the last. The id
    is left open.
    """
    pieces = []
    if packet[0] >> 4 == 4:
        body, room = packet[20:], (mtu - 20) // 8 * 8
        for at in range(0, len(body), room):
            part = body[at : at + room]
            more = 0x2000 if at + room < len(body) else 0
            piece = fixed_header(packet[:20], total_len=20 + len(part), flags=more | at // 8)
            pieces.append(Out(piece + part, ((4, 2, name), (10, 2, "_"))))
    else:
        body, room = packet[40:], (mtu - 48) // 8 * 8
        for at in range(0, len(body), room):
            part = body[at : at + room]
            more = int(at + room < len(body))
            head = packet[:4] + struct.pack("!HB", 8 + len(part), FRAGMENT) + packet[7:40]
            head += struct.pack("!BBHI", packet[6], 0, at | more, 0)
            pieces.append(Out(head + part, ((44, 4, name),)))
    return pieces


def forwarded(config, service, frame, flow_hash, name="a"):
    """The frames that leave for one that comes in."""
    head = l2(config, service, frame)
    if service["forward"] == "l2dsr":
        return [Out(head + frame[l3_offset(frame) - 2 :])]
    outer = encapsulate(config, service, ip_packet(frame), flow_hash)
    head += struct.pack("!H", ETHER_TYPE[outer[0] >> 4])
    mtu = config.out_port(service)["mtu"]
    pieces = [Out(outer)] if len(outer) <= mtu else fragment_outer(outer, mtu, name)
    moved = lambda wild: tuple((at + len(head), length, name) for at, length, name in wild)
    return [Out(head + piece.bytes, moved(piece.wild)) for piece in pieces]


def too_big(config, service, frame):
    """The ICMP error that says so, out of the port that the frame came by."""
    return answered(config, frame, mtu=config.out_port(service)["mtu"] - overhead(service))


def answered(config, frame, mtu=None, as_router=False):
    """The ICMP error that answers a frame, out of the port that it came by: so much would fit; or,
    without `mtu`, it has no hop left. From the address that the frame was for, or the port's.
    """
    packet = ip_packet(frame)
    version = packet[0] >> 4
    if version == 4:
        src, dst = packet[12:16], packet[16:20]
    else:
        src, dst = packet[8:24], packet[24:40]
    speaker = address_of(config.ports[0], version) if as_router else address(dst)
    if version == 4:
        header = IP(src=speaker, dst=address(src), tos=0xC0, id=0, flags="DF", ttl=64)
        says = ICMP(type=11, code=0) if mtu is None else ICMP(type=3, code=4, nexthopmtu=mtu)
        # RFC 1812 4.3.2.3: as much as fits 576 bytes.
        error = header / says / Raw(packet[: 576 - 28])
    else:
        header = IPv6(src=speaker, dst=address(src), hlim=64)
        says = ICMPv6TimeExceeded(code=0) if mtu is None else ICMPv6PacketTooBig(mtu=max(mtu, 1280))
        # RFC 4443 2.4 (c): as much as fits the least MTU.
        error = header / says / Raw(packet[: 1280 - 48])
    ours = bytes.fromhex(config.ports[0]["mac"].replace(":", ""))
    return Out(frame[6:12] + ours + frame[12 : l3_offset(frame)] + bytes(error))


def address(octets):
    return str(ipaddress.ip_address(octets))
