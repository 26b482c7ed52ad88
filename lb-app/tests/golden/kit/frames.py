"""Frames and packets as bytes."""

import ipaddress
import struct

from scapy.all import conf
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrFragment
from scapy.layers.l2 import Dot1Q, Ether
from scapy.layers.sctp import SCTP
from scapy.packet import Raw

from .flow_hash import Flow, packed

conf.route.resync = conf.route6.resync = lambda: None  # no case depends on this machine's routes

CLIENT_MAC = "02:00:00:00:00:01"
OUR_MAC = "02:00:00:00:00:02"
CLIENT = {4: "198.51.100.7", 6: "2001:db8::7"}
ROUTER = {4: "192.0.2.1", 6: "2001:db8:f::1"}
ETHER_TYPE = {4: 0x0800, 6: 0x86DD}
TCP_PROTO, UDP_PROTO, SCTP_PROTO, ICMP_PROTO, ICMPV6_PROTO, FRAGMENT = 6, 17, 132, 1, 58, 44


def xorshift(length):
    """Marsaglia's xorshift32 from 1: the low bytes."""
    x, octets = 1, bytearray()
    for _ in range(length):
        x ^= x << 13 & 0xFFFF_FFFF
        x ^= x >> 17
        x ^= x << 5 & 0xFFFF_FFFF
        octets.append(x & 0xFF)
    return bytes(octets)


# Long payloads, which cases.jsonl writes as <start:length>. No short stretch comes twice, so a byte
# in the wrong place is seen.
PATTERN = xorshift(16_384)
assert len({PATTERN[k : k + 12] for k in range(len(PATTERN) - 12)}) == len(PATTERN) - 12


def pattern(length, start=0):
    assert start + length <= len(PATTERN)
    return PATTERN[start : start + length]


def family(address):
    return ipaddress.ip_address(address).version


def ip(src, dst, proto=None, tos=0, hops=60, options=(), ident=0x1234, flags="DF", label=0):
    """An IP header of the family of `dst`. `flags` and so on are IPv4's, `label` is IPv6's."""
    if family(dst) == 6:
        header = IPv6(src=src, dst=dst, tc=tos, hlim=hops, fl=label)
        if proto is not None:
            header.nh = proto
        return header
    header = IP(src=src, dst=dst, tos=tos, ttl=hops, options=list(options), id=ident, flags=flags)
    if proto is not None:
        header.proto = proto
    return header


def eth(packet, tags=(), pad=b"", dst=OUR_MAC, src=CLIENT_MAC):
    """A frame. Tags are customer VLANs, given as their id or as a Dot1Q or Dot1AD."""
    frame = Ether(src=src, dst=dst)
    for tag in tags:
        frame = frame / (Dot1Q(vlan=tag) if isinstance(tag, int) else tag)
    if isinstance(packet, bytes):
        last = frame.lastlayer()
        last.type = ETHER_TYPE[packet[0] >> 4]
        packet = Raw(packet)
    return bytes(frame / packet) + pad


def l3_offset(frame):
    """Bytes of Ethernet header and tags."""
    at = 12
    while frame[at : at + 2] in (b"\x81\x00", b"\x88\xa8"):
        at += 4
    return at + 2


def ip_packet(frame):
    """The IP packet in a frame, without padding."""
    packet = frame[l3_offset(frame) :]
    if packet[0] >> 4 == 4:
        return packet[: struct.unpack_from("!H", packet, 2)[0]]
    return packet[: 40 + struct.unpack_from("!H", packet, 4)[0]]


def flow_of(packet):
    """The flow of a packet that scapy built."""
    outer = packet.getlayer(IP) or packet.getlayer(IPv6)
    for layer, proto in ((TCP, TCP_PROTO), (UDP, UDP_PROTO), (SCTP, SCTP_PROTO)):
        if packet.haslayer(layer):
            l4 = packet[layer]
            return Flow(outer.src, outer.dst, l4.sport, l4.dport, proto)
    proto = outer.proto if isinstance(outer, IP) else outer.nh
    return Flow(outer.src, outer.dst, 0, 0, proto)


def internet_checksum(data):
    data += b"\0" * (len(data) % 2)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF


def fixed_header(packet, **fields):
    """An IPv4 packet as bytes, some header bytes overwritten, the header checksum true again."""
    offsets = {"version_ihl": (0, "B"), "total_len": (2, "!H"), "flags": (6, "!H")}
    packet = bytearray(packet)
    for name, value in fields.items():
        offset, form = offsets[name]
        struct.pack_into(form, packet, offset, value)
    words = min(max(packet[0] & 15, 5) * 4, len(packet))
    packet[10:12] = b"\0\0"
    packet[10:12] = struct.pack("!H", internet_checksum(bytes(packet[:words])))
    return bytes(packet)


_idents = iter(range(0x2000, 0x10000))


def new_ident():
    """For a datagram in pieces."""
    return next(_idents)


def cut(packet, ranges, extensions=(), ident=None):
    """The fragments of a packet that scapy built: one for each (from, to) of its payload, `to` None
    for the end. `extensions` are IPv6 headers that every fragment has. Each datagram has an id of
    its own, if none is given.
    """
    ident = new_ident() if ident is None else ident
    whole = bytes(packet)
    if whole[0] >> 4 == 4:
        header_len = (whole[0] & 15) * 4
        payload = whole[header_len:]
        pieces = []
        for start, end in ranges:
            end = len(payload) if end is None else end
            piece = packet.copy()
            piece.remove_payload()
            piece.proto, piece.id, piece.frag = whole[9], ident & 0xFFFF, start // 8
            piece.flags = "MF" if end < len(payload) else 0
            pieces.append(bytes(piece / Raw(payload[start:end])))
        return pieces
    payload, pieces = whole[40:], []
    for start, end in ranges:
        end = len(payload) if end is None else end
        header = IPv6(src=packet.src, dst=packet.dst, tc=packet.tc, hlim=packet.hlim, fl=packet.fl)
        for extension in extensions:
            header = header / extension
        part = IPv6ExtHdrFragment(
            nh=whole[6], offset=start // 8, m=int(end < len(payload)), id=ident
        )
        pieces.append(bytes(header / part / Raw(payload[start:end])))
    return pieces
