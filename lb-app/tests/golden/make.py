#!/usr/bin/env python3
"""Writes the golden packets: cases.jsonl and the configurations beside this script.

    apt-get install python3-scapy && /usr/bin/python3 make.py [CAPTURE]

The capture, if one is asked for, has the frames that have to leave, to be looked at.

A case is a train of frames with, for each, the verdict that it has to get, and the exact frames that
have to leave. Golden means that another hand made them: scapy, from the documentation of what Weir
does. If a case fails, first ask the documentation who is right.

To add a forwarding mode: give it a line in WAYS, a rule in lib.py's `forwarded`, and its overhead.
"""

import itertools
import sys

from scapy.contrib.igmp import IGMP
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_NOP, IPOption_RR
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6EchoRequest,
    ICMPv6ND_NS,
    ICMPv6NDOptSrcLLAddr,
    ICMPv6PacketTooBig,
    ICMPv6ParamProblem,
    ICMPv6TimeExceeded,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
    PadN,
)
from scapy.layers.ipsec import AH, ESP
from scapy.layers.l2 import ARP, GRE, Dot1AD, Dot1Q
from scapy.layers.sctp import SCTP, SCTPChunkData, SCTPChunkInit
from scapy.packet import Raw
from scapy.utils import wrpcap

from lib import *

# ---- Ways: a forwarding mode, and the family of its outer header -----------------------------------

WAYS = [
    ("l2dsr", None),
    ("ipip", 4),
    ("ipip", 6),
    ("gue", 4),
    ("gue", 6),
    ("gre", 4),
    ("gre", 6),
]
FAMILIES = (4, 6)
# Both on the first port's link, or behind a router whose MAC is written.
BACKEND = {4: "10.0.0.11", 6: "fd00::11"}
FAR_BACKEND = {4: "10.9.0.11", 6: "fd09::11"}
BACKEND_MAC = {4: "02:00:00:00:04:11", 6: "02:00:00:00:06:11"}


def vip(net, way, inner):
    """An address of its own for each kind of service and way."""
    place = WAYS.index(way) + 1
    return f"10.{net}.{place}.1" if inner == 4 else f"fd{net:02}::{place}:1"


def named(way, inner):
    """As in "4in6": IPv4 inside, IPv6 outside."""
    mode, outer = way
    return f"{mode}-{inner}" if outer is None else f"{mode}-{inner}in{outer}"


def services(net, kind, port, protocol, ways, backends=None, **more):
    """One service for each way and inner family."""
    backends = backends or FAR_BACKEND
    made = []
    for way, inner in itertools.product(ways, FAMILIES):
        mode, outer = way
        outer = outer or inner
        backend = (BACKEND if mode == "l2dsr" else backends)[outer]
        name = f"{kind}-{named(way, inner)}"
        address = vip(net, way, inner)
        keys = {k: v[outer] if isinstance(v, dict) else v for k, v in more.items()}
        mac = BACKEND_MAC[outer]
        made.append(service(name, address, port, protocol, mode, backend, mac, **keys))
    return made


def basic(ways):
    return (
        services(10, "web", 80, "tcp", ways)
        + services(10, "dns", 53, "udp", ways)
        + services(10, "log", 514, "udp", ways, affinity="client")
    )


MODES = {}
for mode in ("l2dsr", "ipip", "gue", "gre"):
    about = f"The basic services of {mode}."
    ways = [way for way in WAYS if way[0] == mode]
    MODES[mode] = Config(mode, about, [port()], basic(ways))

TUNNELS = [way for way in WAYS if way[0] != "l2dsr"]

ANY = Config("any", "SCTP, any port, any protocol, in every mode.", [port()])
ANY.services += services(20, "sctp", 5060, "sctp", WAYS)
ANY.services += services(21, "any", "any", "any", WAYS)
ANY.services += services(22, "sticky", "any", "udp", WAYS, affinity="client")
ANY.services += services(23, "ports", "any", "udp", WAYS)

MSS = Config("mss", "MSS clamped, to a number and to what fits, in every mode.", [port()])
MSS.services += services(30, "number", 80, "tcp", WAYS, mss=1300)
MSS.services += services(31, "auto", 80, "tcp", WAYS, mss="auto")

PREFIX = {4: "172.16.0.0/16", 6: "fd16::/64"}
SOURCES = Config("sources", "Outer sources and GUE ports other than the usual.", [port()])
SOURCES.services += services(40, "web", 80, "tcp", TUNNELS, outer_source=PREFIX)
SOURCES.services += services(
    41, "wide", 80, "tcp", TUNNELS, outer_source={4: "172.16.0.0/12", 6: "fd16:1::/32"}
)
SOURCES.services += services(
    42, "narrow", 80, "tcp", TUNNELS, outer_source={4: "172.31.7.0/30", 6: "fd16:2::/96"}
)
SOURCES.services += services(
    43, "port", 80, "tcp", [way for way in WAYS if way[0] == "gue"], gue_port=6081
)

SMALL = Config("small", "The least MTU.", [port(mtu=1280)])
SMALL.services += services(50, "web", 80, "tcp", WAYS)
SMALL.services += services(50, "dns", 53, "udp", WAYS)

JUMBO = Config("jumbo", "Jumbo frames.", [port(mtu=9000)])
JUMBO.services += services(51, "web", 80, "tcp", WAYS)

# Comes in by wan0, leaves by lan0.
TWO_ARMED = Config(
    "two-armed",
    "In by one port, out of another with a smaller MTU.",
    [
        port("wan0", mtu=9000, net="203.0.113", net6="2001:db8:1"),
        port("lan0", mac="02:00:00:00:00:03"),
    ],
)
TWO_ARMED.services += services(60, "web", 80, "tcp", WAYS, interface="lan0")

DEDICATED = Config("dedicated", "No kernel side.", [port(kernel=False)], basic([WAYS[0]]))

# Who is meant, if several services could be: each has a MAC of its own.
MATCH = Config("match", "Services that overlap.", [port()])
RANKED = [
    # address (IPv4, IPv6), port, protocol
    ("exact", "10.70.0.1", "fd70::1", 80, "tcp"),
    ("range", "10.70.0.1", "fd70::1", "8000-8099", "tcp"),
    ("in-range", "10.70.0.1", "fd70::1", 8050, "tcp"),
    ("any-port", "10.70.0.1", "fd70::1", "any", "tcp"),
    ("any-protocol", "10.70.0.1", "fd70::1", "any", "any"),
    ("udp-range", "10.70.0.1", "fd70::1", "5000-5000", "udp"),
    ("sctp", "10.70.0.1", "fd70::1", 80, "sctp"),
    ("net-exact", "10.70.0.0/24", "fd70::/64", 80, "tcp"),
    ("net-https", "10.70.0.0/24", "fd70::/64", 443, "tcp"),
    ("net-range", "10.70.0.0/24", "fd70::/64", "8000-9000", "tcp"),
    ("net-any-port", "10.70.0.0/24", "fd70::/64", "any", "tcp"),
    ("wide-any-protocol", "10.70.0.0/16", "fd70::/32", "any", "any"),
    ("wide-exact", "10.70.0.0/16", "fd70::/32", 22, "tcp"),
    ("alone", "10.71.0.1", "fd71::1", "1-100", "udp"),
    ("top", "10.71.0.1", "fd71::1", "65000-65535", "udp"),
]
for (place, (name, a4, a6, ports, protocol)), fam in itertools.product(enumerate(RANKED), FAMILIES):
    mac = f"02:00:00:07:{fam:02}:{place:02}"
    backend = f"10.0.0.{20 + place}" if fam == 4 else f"fd00::{20 + place}"
    head = (f"{name}-{fam}", a4 if fam == 4 else a6, ports, protocol, "l2dsr", backend, mac)
    MATCH.services.append(service(*head))

CONFIGS = [*MODES.values(), ANY, MSS, SOURCES, SMALL, JUMBO, TWO_ARMED, DEDICATED, MATCH]

# ---- Packets ---------------------------------------------------------------------------------------

_client_ports = itertools.cycle(range(20_000, 60_000))


def client_port():
    """Another flow for each packet that does not ask for one."""
    return next(_client_ports)


def tcp(
    dst, dport=80, sport=None, data=b"weir", tcp_flags="PA", tcp_options=(), src=None, **header
):
    """A TCP packet of a client."""
    l4 = TCP(sport=client_port() if sport is None else sport, dport=dport, seq=1, ack=1)
    l4.flags, l4.options = tcp_flags, list(tcp_options)
    return ip(src or CLIENT[family(dst)], dst, TCP_PROTO, **header) / l4 / Raw(data)


def udp(dst, dport=53, sport=None, data=b"query", src=None, **header):
    """A UDP packet of a client."""
    l4 = UDP(sport=client_port() if sport is None else sport, dport=dport)
    return ip(src or CLIENT[family(dst)], dst, UDP_PROTO, **header) / l4 / Raw(data)


def sctp(dst, dport=5060, sport=None, chunk=None, **header):
    """An SCTP packet of a client."""
    l4 = SCTP(sport=client_port() if sport is None else sport, dport=dport, tag=7)
    chunk = chunk or SCTPChunkInit(init_tag=9, a_rwnd=65535)
    return ip(CLIENT[family(dst)], dst, SCTP_PROTO, **header) / l4 / chunk


def other(dst, proto, data=b"neither TCP nor UDP", **header):
    """A packet of any other protocol."""
    return ip(CLIENT[family(dst)], dst, proto, **header) / Raw(data)


def sized(make, dst, length, **more):
    """A packet of `make` that is `length` bytes long."""
    head = len(bytes(make(dst, data=b"", sport=1, **more)))
    return make(dst, data=pattern(length - head), **more)


def v6_with(dst, *extensions, make=None):
    """An IPv6 packet with extension headers, and its flow."""
    l4 = make or TCP(sport=client_port(), dport=80, flags="PA") / Raw(b"weir")
    packet = ip(CLIENT[6], dst)
    for extension in extensions:
        packet = packet / extension
    return packet / l4


def option(length=6):
    """An extension header of options that mean nothing: 8 bytes, or 8 more for each 8 of `length`."""
    return IPv6ExtHdrDestOpt(options=[PadN(optdata=bytes(length - 2))])


HOP_BY_HOP = IPv6ExtHdrHopByHop(options=[PadN(optdata=bytes(4))])
ROUTING = IPv6ExtHdrRouting(addresses=["fd99::1"], segleft=0)


def error_quote(dst_vip, fam, sport=80, dport=None, proto=TCP_PROTO, l4_bytes=8, l4=None, **header):
    """What a backend answered to a client and a router quotes; and the client's flow."""
    dport = dport or client_port()
    if l4 is None:
        layer = {TCP_PROTO: TCP, UDP_PROTO: UDP, SCTP_PROTO: SCTP}[proto]
        l4 = layer(sport=sport, dport=dport) / Raw(pattern(64))
    packet = bytes(ip(dst_vip, CLIENT[fam], proto, **header) / l4)
    l4 = bytes(l4)
    quoted = packet[: len(packet) - len(l4) + l4_bytes]
    return quoted, Flow(CLIENT[fam], dst_vip, dport, sport, proto)


ERRORS = {
    4: [
        ("unreachable host", ICMP(type=3, code=1)),
        ("fragmentation needed", ICMP(type=3, code=4, nexthopmtu=1400)),
        ("unreachable port", ICMP(type=3, code=3)),
        ("time exceeded", ICMP(type=11, code=0)),
        ("parameter problem", ICMP(type=12, code=0, ptr=1)),
    ],
    6: [
        ("unreachable address", ICMPv6DestUnreach(code=3)),
        ("too big", ICMPv6PacketTooBig(mtu=1400)),
        ("unreachable port", ICMPv6DestUnreach(code=4)),
        ("time exceeded", ICMPv6TimeExceeded(code=0)),
        ("parameter problem", ICMPv6ParamProblem(code=1, ptr=6)),
    ],
}


def error(dst, icmp, quote, **header):
    """An ICMP error of a router on the way to the client."""
    fam = family(dst)
    proto = ICMP_PROTO if fam == 4 else ICMPV6_PROTO
    return ip(ROUTER[fam], dst, proto, **header) / icmp.copy() / Raw(quote)


NEEDED = {4: ERRORS[4][1][1], 6: ERRORS[6][1][1]}

# ---- Every mode: headers ---------------------------------------------------------------------------


def per_way(ways=WAYS):
    """(way, inner family, its name)."""
    for way, inner in itertools.product(ways, FAMILIES):
        yield way, inner, named(way, inner)


for way, inner, name in per_way():
    world = World(MODES[way[0]])
    dst = vip(10, way, inner)

    def passes(what, kind, packet, tags=(), pad=b"", flow=None, **flags):
        frame = eth(packet, tags, pad)
        case(
            f"{name}: {what}",
            world.config,
            world.send(f"{kind}-{name}", frame, flow or flow_of(packet)),
            **flags,
        )

    passes("TCP", "web", tcp(dst))
    passes(
        "TCP, SYN",
        "web",
        tcp(dst, tcp_flags="S", tcp_options=[("MSS", 1460), ("WScale", 7)], data=b""),
    )
    passes("TCP, RST", "web", tcp(dst, tcp_flags="R", data=b""))
    passes("UDP", "dns", udp(dst))
    passes("UDP without data", "dns", udp(dst, data=b""))
    passes("source port 0", "dns", udp(dst, sport=0))
    passes("a VLAN", "web", tcp(dst), tags=[7])
    passes("a VLAN with priority", "dns", udp(dst), tags=[Dot1Q(vlan=4094, prio=5, id=1)])
    passes("QinQ", "web", tcp(dst), tags=[Dot1AD(vlan=7), 8])
    passes("two customer VLANs", "dns", udp(dst), tags=[7, 8])
    passes("padding to 60 bytes", "dns", udp(dst, data=b"q"), pad=b"\xaa" * 18)
    passes("padding behind a VLAN", "web", tcp(dst, data=b""), tags=[7], pad=b"\x55" * 6)
    passes("much padding", "web", tcp(dst), pad=pattern(300))
    passes("expedited forwarding", "web", tcp(dst, tos=46 << 2))
    passes("TTL 1", "web", tcp(dst, hops=1))
    passes("TTL 255", "dns", udp(dst, hops=255))
    passes(
        "the most that fits",
        "web",
        sized(tcp, dst, 1500 - overhead(world.config.service(f"web-{name}"))),
    )
    frames = [eth(udp(dst, sport=41_000, tos=10 << 2 | ecn)) for ecn in range(4)]
    flow = Flow(CLIENT[inner], dst, 41_000, 53, 17)
    case(
        f"{name}: ECN", world.config, *(world.send(f"dns-{name}", frame, flow) for frame in frames)
    )
    frames = [eth(udp(dst, dport=514, sport=sport)) for sport in (41_000, 41_001)]
    flow = Flow(CLIENT[inner], dst, 41_000, 514, 17)
    case(
        f"{name}: one client",
        world.config,
        *(world.send(f"log-{name}", frame, flow) for frame in frames),
    )
    if inner == 4:
        unset = udp(dst, flags=0, ident=7)
        passes("DF not set", "dns", unset)
        route = [IPOption_RR(routers=["0.0.0.0"] * 3)]
        passes("options", "dns", udp(dst, options=route))
        passes("40 bytes of options", "dns", udp(dst, options=[IPOption_NOP()] * 40))
        zero = udp(dst)
        zero[UDP].chksum = 0
        passes("no UDP checksum", "dns", zero)
        evil = udp(dst)
        evil.flags = "evil"
        passes("reserved flag", "dns", evil)
        wrong = tcp(dst)
        wrong[TCP].chksum = 0xBEEF
        passes("TCP checksum wrong", "web", wrong, bad=True)
    else:
        passes("flow label", "web", tcp(dst, label=0xABCDE))
        passes("hop-by-hop options", "web", v6_with(dst, HOP_BY_HOP))
        passes("destination options", "web", v6_with(dst, option(14)))
        passes("routing header", "web", v6_with(dst, ROUTING))
        passes("three extensions", "web", v6_with(dst, HOP_BY_HOP, ROUTING, option()))
        passes("eight extensions", "web", v6_with(dst, *[option()] * 8))
        atomic = v6_with(dst, IPv6ExtHdrFragment(id=77, m=0, offset=0))
        passes("atomic fragment", "web", atomic)
        query = UDP(sport=client_port(), dport=53) / Raw(b"query")
        passes("extensions before UDP", "dns", v6_with(dst, HOP_BY_HOP, option(), make=query))
        wrong = udp(dst)
        wrong[UDP].chksum = 0xBEEF
        passes("UDP checksum wrong", "dns", wrong, bad=True)

# ---- Bad headers: the same in every mode, so once; and what the kernel gets -------------------------

WEB = MODES["l2dsr"]
PLAIN = World(WEB)
V4, V6 = vip(10, WAYS[0], 4), vip(10, WAYS[0], 6)


def refused(what, reason, *frames):
    """Cases of frames that are dropped, and do no harm to the good ones around them."""
    good = tcp(V4, sport=40_000)
    around = PLAIN.send("web-l2dsr-4", eth(good), flow_of(good))
    steps = [
        around,
        *(drop(reason, frame) for frame in frames),
        PLAIN.send("web-l2dsr-4", eth(good), flow_of(good)),
    ]
    case(f"bad: {what}", WEB, *steps, bad=True)


def whole4(**more):
    return bytes(tcp(V4, **more))


refused("a runt", "truncated", eth(tcp(V4))[:13], b"\x02")
refused("cut within a VLAN tag", "truncated", eth(tcp(V4), [7])[:17], eth(tcp(V4), [7, 8])[:21])
refused("nothing behind the Ethernet header", "truncated", eth(tcp(V4))[:14], eth(tcp(V6))[:14])
refused("IPv4 header cut short", "truncated", eth(tcp(V4))[: 14 + 19], eth(tcp(V4), [7])[: 18 + 1])
refused(
    "IPv4 options cut short",
    "truncated",
    eth(fixed_header(whole4()[:24], version_ihl=0x4F, total_len=24)),
)
refused(
    "IPv4 header length beyond the total length",
    "truncated",
    eth(fixed_header(whole4(), version_ihl=0x4F, total_len=40) + bytes(40)),
)
refused(
    "IPv4 total length beyond the frame",
    "truncated",
    eth(fixed_header(whole4(), total_len=45)),
    eth(fixed_header(whole4(), total_len=0xFFFF)),
)
refused(
    "IPv4 total length below the header's",
    "truncated",
    eth(fixed_header(whole4(), total_len=19)),
    eth(fixed_header(whole4(), total_len=0)),
)
refused("IPv4 frame cut by a byte", "truncated", eth(tcp(V4))[:-1])
for ihl in range(5):
    refused(
        f"IPv4 header of {ihl} words",
        "bad_header_length",
        eth(b"\x45" + fixed_header(whole4(), version_ihl=0x40 | ihl)[1:]).replace(
            b"\x08\x00\x45", bytes([8, 0, 0x40 | ihl]), 1
        ),
    )
for version in (0, 5, 6, 15):
    frame = eth(whole4())
    refused(
        f"version {version} as IPv4",
        "bad_version",
        frame[:14] + bytes([version << 4 | 5]) + frame[15:],
    )
for version in (0, 4, 7):
    frame = eth(bytes(tcp(V6)))
    refused(
        f"version {version} as IPv6", "bad_version", frame[:14] + bytes([version << 4]) + frame[15:]
    )
for at, what in ((1, "TOS"), (8, "TTL"), (11, "checksum"), (13, "source"), (4, "id")):
    frame = bytearray(eth(tcp(V4)))
    frame[14 + at] ^= 1
    refused(f"IPv4 header checksum, {what}", "bad_checksum", bytes(frame))
frame = bytearray(
    eth(
        ip(CLIENT[4], V4, 6, options=[IPOption_RR(routers=["0.0.0.0"] * 3)])
        / TCP(sport=1, dport=80)
    )
)
frame[14 + 24] ^= 1
refused("IPv4 header checksum, options", "bad_checksum", bytes(frame))
for src in (
    "0.0.0.0",
    "0.1.2.3",
    "127.0.0.1",
    "127.255.0.1",
    "224.0.0.1",
    "239.1.2.3",
    "240.0.0.1",
    "255.255.255.255",
):
    refused(f"source {src}", "bad_source", eth(tcp(V4, src=src)), eth(udp(V4, src=src)))
for src in ("::", "::1", "ff02::1", "ff0e::1"):
    refused(f"source {src}", "bad_source", eth(tcp(V6, src=src)), eth(udp(V6, src=src)))
refused("source is the destination", "same_source", eth(tcp(V4, src=V4)), eth(udp(V6, src=V6)))
refused("IPv6 header cut short", "truncated", eth(tcp(V6))[: 14 + 39])
refused("IPv6 payload length beyond the frame", "truncated", eth(tcp(V6))[:-1])
frame = bytearray(eth(tcp(V6)))
frame[18:20] = b"\xff\xff"
refused("IPv6 payload length 65535", "truncated", bytes(frame))
refused(
    "nine extension headers",
    "too_many_extensions",
    eth(v6_with(V6, *[option()] * 9)),
    eth(v6_with(V6, *[option()] * 20)),
)
refused(
    "extension header cut short",
    "truncated",
    eth(ip(CLIENT[6], V6, 60) / Raw(b"\x06\x00\x01")),
    eth(ip(CLIENT[6], V6, 0) / Raw(b"\x06\x01\x01\x04\0\0\0\0")),
)
refused(
    "extension header beyond the packet",
    "truncated",
    eth(ip(CLIENT[6], V6, 43) / Raw(b"\x06\xff\x00\x00\0\0\0\0") / TCP(sport=1, dport=80)),
)
refused(
    "extension header announced, none there",
    "truncated",
    eth(bytes(ip(CLIENT[6], V6, 60)), pad=bytes(20)),
)
refused("fragment header cut short", "truncated", eth(ip(CLIENT[6], V6, 44) / Raw(b"\x06\x00\x00")))
for fam, dst in ((4, V4), (6, V6)):
    head = lambda proto: ip(CLIENT[fam], dst, proto)
    refused(
        f"TCP header cut short, IPv{fam}",
        "truncated",
        eth(head(6) / Raw(bytes(TCP(sport=1, dport=80))[:19])),
        eth(head(6) / Raw(b"\0\x01\0")),
        eth(head(6)),
    )
    refused(
        f"UDP header cut short, IPv{fam}",
        "truncated",
        eth(head(17) / Raw(bytes(UDP(sport=1, dport=53))[:7])),
        eth(head(17)),
    )
    # What is padding for IP is none of TCP's.
    refused(
        f"TCP header continued in the padding, IPv{fam}",
        "truncated",
        eth(head(6) / Raw(bytes(TCP(sport=1, dport=80))[:12]), pad=bytes(30)),
    )
    refused(
        f"another station's frame, IPv{fam}",
        "not_ours",
        eth(tcp(dst), dst="02:00:00:00:00:09"),
        eth(udp(dst), [7], dst="02:00:00:00:00:09"),
    )

for kind, world in (("kernel", PLAIN), ("no kernel", World(DEDICATED))):
    config = world.config
    given = (
        (lambda frame: punt(frame)) if kind == "kernel" else (lambda frame: drop("not_ours", frame))
    )

    def leaves(what, *frames, **flags):
        case(f"{kind}: {what}", config, *(given(frame) for frame in frames), **flags)

    who_has = ARP(op=1, hwsrc=CLIENT_MAC, psrc="10.0.0.1", pdst="10.0.0.2")
    leaves("ARP", eth(who_has, dst="ff:ff:ff:ff:ff:ff"), eth(who_has))
    solicit = (
        ip("fd00::1", "ff02::1:ff00:2", 58, hops=255)
        / ICMPv6ND_NS(tgt="fd00::2")
        / ICMPv6NDOptSrcLLAddr(lladdr=CLIENT_MAC)
    )
    leaves("neighbour discovery", eth(solicit, dst="33:33:ff:00:00:02"))
    leaves(
        "echo to a VIP",
        eth(ip(CLIENT[4], V4, 1) / ICMP(type=8, id=1, seq=1) / Raw(b"ping")),
        eth(ip(CLIENT[6], V6) / ICMPv6EchoRequest(id=1, seq=1, data=b"ping")),
    )
    leaves("another port", eth(tcp(V4, 81)), eth(udp(V4, 54)), eth(tcp(V6, 81)), eth(udp(V6, 54)))
    leaves(
        "another protocol",
        eth(udp(V4, 80)),
        eth(tcp(V4, 53)),
        eth(udp(V6, 80)),
        eth(sctp(V4, 80)),
        eth(sctp(V6, 53)),
    )
    leaves(
        "no service's address",
        eth(tcp("10.0.0.2", 80)),
        eth(tcp("fd00::2", 22)),
        eth(tcp("10.10.1.2")),
    )
    leaves(
        "LLDP, an unknown EtherType, a length",
        *(
            eth(b"\x45" + bytes(45), dst=dst)[:12] + t + bytes(46)
            for dst, t in (
                ("01:80:c2:00:00:0e", b"\x88\xcc"),
                (OUR_MAC, b"\x12\x34"),
                (OUR_MAC, b"\x00\x2e"),
            )
        ),
        bad=True,
    )
    leaves(
        "a group's frame",
        eth(tcp(V4), dst="ff:ff:ff:ff:ff:ff"),
        eth(udp(V6), dst="33:33:00:00:00:01"),
    )
    leaves("three VLANs", eth(tcp(V4), [7, 8, 9]))
    leaves(
        "ESP, GRE, OSPF",
        *(eth(other(dst, proto)) for dst in (V4, V6) for proto in (50, 47, 89)),
        bad=True,
    )
    leaves("no next header", eth(ip(CLIENT[6], V6, 59) / Raw(b"x")))
    leaves(
        "IGMP",
        eth(ip("10.0.0.1", "224.0.0.1", 2, hops=1) / IGMP(type=0x11), dst="01:00:5e:00:00:01"),
    )
    leaves(
        "fragments of an echo",
        *(
            eth(piece)
            for piece in cut(
                ip(CLIENT[4], V4, 1, flags=0) / ICMP(type=8) / Raw(pattern(100)),
                [(0, 64), (64, None)],
            )
        ),
    )
    leaves(
        "fragments for nobody",
        *(
            eth(piece)
            for dst in ("10.0.0.2", "fd00::2")
            for piece in cut(udp(dst, data=pattern(100), flags=0), [(64, None), (0, 64)])
        ),
    )

# ---- Which service ---------------------------------------------------------------------------------

MATCHED = World(MATCH)
for fam in FAMILIES:
    host = lambda h, net="70": f"10.{net}.0.{h}" if fam == 4 else f"fd{net}::{h:x}"
    far = "10.70.9.9" if fam == 4 else "fd70:0:9::9"
    for what, packet, service_name in (
        ("an exact port", tcp(host(1), 80), "exact"),
        ("a range's first port", tcp(host(1), 8000), "range"),
        ("a range's last port", tcp(host(1), 8099), "range"),
        ("an exact port within a range", tcp(host(1), 8050), "in-range"),
        (
            "behind the range: the longer prefix's any port after the shorter's range",
            tcp(host(1), 8100),
            "net-range",
        ),
        ("before the range", tcp(host(1), 7999), "any-port"),
        ("any port", tcp(host(1), 9999), "any-port"),
        ("port 0 is any port", tcp(host(1), 0), "any-port"),
        ("a range of one", udp(host(1), 5000), "udp-range"),
        ("any protocol: UDP", udp(host(1), 5001), "any-protocol"),
        ("any protocol: SCTP", sctp(host(1), 81), "any-protocol"),
        ("SCTP", sctp(host(1), 80), "sctp"),
        (
            "any protocol: GRE",
            other(host(1), 47, bytes(GRE(proto=0x0800)) + bytes(tcp("10.1.1.1"))),
            "any-protocol",
        ),
        (
            "any protocol: ESP",
            other(host(1), 50, bytes(ESP(spi=1, seq=1, data=bytes(32)))),
            "any-protocol",
        ),
        (
            "an exact port of a prefix before any port of the address",
            tcp(host(1), 443),
            "net-https",
        ),
        (
            "an exact port of the shortest prefix before any port of the address",
            tcp(host(1), 22),
            "wide-exact",
        ),
        ("the prefix's exact port", tcp(host(2), 80), "net-exact"),
        ("the prefix's range", tcp(host(2), 8050), "net-range"),
        ("the prefix's any port", tcp(host(2), 9001), "net-any-port"),
        ("the prefix's first address", tcp(host(0), 80), "net-exact"),
        (
            "the prefix's last address",
            tcp(host(255) if fam == 4 else "fd70::ffff:ffff:ffff:ffff", 80),
            "net-exact",
        ),
        (
            "behind the prefix",
            tcp("10.70.1.0" if fam == 4 else "fd70:0:0:1::", 80),
            "wide-any-protocol",
        ),
        ("the wide prefix, any protocol", udp(far, 53), "wide-any-protocol"),
        ("the wide prefix, exact port", tcp(far, 22), "wide-exact"),
        (
            "the wide prefix's protocol for a host of the narrow one",
            udp(host(2), 53),
            "wide-any-protocol",
        ),
        ("a UDP range's first port", udp(host(1, "71"), 1), "alone"),
        ("a UDP range's last port", udp(host(1, "71"), 100), "alone"),
        ("a range up to the last port", udp(host(1, "71"), 65_535), "top"),
        ("a range from its first port", udp(host(1, "71"), 65_000), "top"),
    ):
        frame = eth(packet)
        case(
            f"match-{fam}: {what}",
            MATCH,
            MATCHED.send(f"{service_name}-{fam}", frame, flow_of(packet)),
        )
    for what, packet in (
        ("behind a UDP range", udp(host(1, "71"), 101)),
        ("before a UDP range", udp(host(1, "71"), 64_999)),
        ("port 0 is in no range", udp(host(1, "71"), 0)),
        ("another protocol than the range's", tcp(host(1, "71"), 50)),
        ("outside of all prefixes", tcp("10.69.255.255" if fam == 4 else "fd6f::1", 80)),
    ):
        case(f"match-{fam}: {what}", MATCH, punt(eth(packet)))
    echo = ICMP(type=8, id=1) if fam == 4 else ICMPv6EchoRequest(id=1)
    case(
        f"match-{fam}: an echo is no protocol of any",
        MATCH,
        punt(eth(ip(CLIENT[fam], host(1), 1 if fam == 4 else 58) / echo)),
    )
    if fam == 6:
        packet = v6_with(host(1), HOP_BY_HOP, option(), make=TCP(sport=1, dport=8050))
        case(
            "match-6: a range behind extensions",
            MATCH,
            MATCHED.send("in-range-6", eth(packet), flow_of(packet)),
        )

# ---- Any protocol, any port, SCTP in every mode ----------------------------------------------------

for way, inner, name in per_way():
    world = World(ANY)
    dst = {net: vip(net, way, inner) for net in (20, 21, 22, 23)}
    for what, kind, packet in (
        ("SCTP", "sctp", sctp(dst[20])),
        ("SCTP data", "sctp", sctp(dst[20], chunk=SCTPChunkData(data=b"weir", tsn=1))),
        ("any port of UDP", "ports", udp(dst[23], 7777)),
        ("any protocol, TCP", "any", tcp(dst[21], 7777)),
        ("any protocol, UDP", "any", udp(dst[21], 7777)),
        ("any protocol, SCTP", "any", sctp(dst[21], 7777)),
        ("any protocol, ESP", "any", other(dst[21], 50, bytes(ESP(spi=1, seq=1, data=bytes(32))))),
        (
            "any protocol, GRE",
            "any",
            other(dst[21], 47, bytes(GRE(proto=0x0800)) + bytes(tcp("10.1.1.1"))),
        ),
        ("any protocol, unknown", "any", other(dst[21], 253)),
        ("any protocol, nothing behind the header", "any", other(dst[21], 253, b"")),
    ):
        case(f"{name}: {what}", ANY, world.send(f"{kind}-{name}", eth(packet), flow_of(packet)))
    frames = [eth(packet) for packet in (udp(dst[22], 1), udp(dst[22], 2), udp(dst[22], 65_535))]
    flow = Flow(CLIENT[inner], dst[22], 0, 0, 17)
    case(
        f"{name}: any port, one client",
        ANY,
        *(world.send(f"sticky-{name}", frame, flow) for frame in frames),
    )
    case(
        f"{name}: too short for SCTP",
        ANY,
        drop("truncated", eth(other(dst[20], 132, bytes(11)))),
        bad=True,
    )
    case(f"{name}: TCP to a service of any UDP port", ANY, punt(eth(tcp(dst[23]))))

# ---- Fragments -------------------------------------------------------------------------------------

FIRST = "flow"  # its own ports lead it


def datagram(dst, data, dport=53, make=udp, **header):
    """A packet that may be cut into fragments."""
    packet = make(dst, dport, data=data, **header)
    if packet.version == 4:
        packet.flags = 0
    return packet


def train(world, service_name, flow, frames, first=0, rule="fragment", at=None):
    """Steps of fragments that all go to the service; the place of the first fragment has another
    rule."""
    at = at or [0] * len(frames)
    return [
        world.send(service_name, frame, flow, FIRST if i == first else rule, at[i])
        for i, frame in enumerate(frames)
    ]


for way, inner, name in per_way():
    world = World(MODES[way[0]])
    config = world.config
    dst = vip(10, way, inner)
    dns, web = f"dns-{name}", f"web-{name}"

    def parts(ranges, packet=None, tags=()):
        packet = packet or datagram(dst, pattern(392))
        return flow_of(packet), [eth(piece, tags) for piece in cut(packet, ranges)]

    THREE = [(0, 160), (160, 320), (320, None)]
    flow, (a, b, c) = parts(THREE)
    case(f"{name}: fragments in order", config, *train(world, dns, flow, [a, b, c]))
    flow, (a, b, c) = parts(THREE)
    case(
        f"{name}: fragments reversed",
        config,
        *train(world, dns, flow, [c, b, a], first=2),
        order=[2, 0, 1],
    )
    flow, (a, b, c) = parts(THREE)
    case(
        f"{name}: fragments shuffled",
        config,
        *train(world, dns, flow, [b, a, c], first=1),
        order=[1, 0, 2],
    )
    flow, (a, b, c) = parts(THREE, datagram(dst, pattern(392), 80, make=tcp), [7])
    case(
        f"{name}: fragments of TCP in a VLAN",
        config,
        *train(world, web, flow, [c, a, b], first=1),
        order=[1, 0, 2],
    )
    flow, (a, b, c) = parts(THREE)
    whole = udp(dst)
    steps = train(world, dns, flow, [c, a, b], first=1)
    steps.insert(1, world.send(dns, eth(whole), flow_of(whole)))
    case(f"{name}: others pass while fragments wait", config, *steps, order=[1, 2, 0, 3])
    flow, (a, b, c) = parts(THREE)
    steps = train(world, dns, flow, [a, b, c])
    twice = [drop("fragment_overlap", a), drop("fragment_overlap", b)]
    case(f"{name}: fragments come twice", config, steps[0], twice[0], steps[1], twice[1], steps[2])
    flow, (a, b, c, d) = parts([(0, 160), (152, 320), (320, 360), (360, None)])
    [sent] = train(world, dns, flow, [a])
    case(
        f"{name}: fragments overlap",
        config,
        sent,
        *(drop("fragment_overlap", part) for part in (b, c, d)),
    )
    flow, (a, b) = parts([(0, 160), (160, None)])
    case(
        f"{name}: the first fragment never comes",
        config,
        drop("fragment_timeout", b, 0.0),
        punt(eth(tcp("10.0.0.2", 22)), 3.0),
    )
    flow, (a, b, c) = parts(THREE)
    steps = train(world, dns, flow, [a, b], at=[3.0, 3.1])
    case(f"{name}: the first fragment comes too late", config, drop("fragment_timeout", c), *steps)
    one, other_one = datagram(dst, pattern(392)), datagram(dst, pattern(392))
    pieces = cut(one, THREE)
    again = cut(other_one, THREE)
    flows = [flow_of(one), flow_of(other_one)]
    frames = [[eth(piece) for piece in each] for each in (pieces, again)]
    steps = train(world, dns, flows[0], [frames[0][2], frames[0][0], frames[0][1]], first=1)
    more = train(world, dns, flows[1], [frames[1][1], frames[1][2], frames[1][0]], first=2)
    mixed = [steps[0], more[0], more[1], steps[1], more[2], steps[2]]
    case(f"{name}: fragments of two datagrams", config, *mixed, order=[3, 0, 4, 1, 2, 5])
    small = 8 if way[0] == "l2dsr" else 16
    tiny = datagram(dst, pattern(392), 80, make=tcp)
    _, (a, b) = parts([(0, small), (small, None)], tiny)
    later = ["fragment_tiny", "fragment_timeout"]
    case(
        f"{name}: tiny first fragment of TCP",
        config,
        drop("fragment_tiny", a),
        drop(later, b),
        bad=True,
    )
    flow, (a, b) = parts([(0, 24), (24, None)], datagram(dst, pattern(392), 80, make=tcp))
    case(f"{name}: least first fragment of TCP", config, *train(world, web, flow, [a, b]))
    flow, (a, b) = parts([(0, 8), (8, None)])
    case(
        f"{name}: least first fragment of UDP",
        config,
        *train(world, dns, flow, [b, a], first=1),
        order=[1, 0],
    )
    packet = datagram(dst, pattern(392), 514)
    flow, (a, b) = parts([(0, 160), (160, None)], packet)
    case(
        f"{name}: fragments of one client for one port",
        config,
        *train(world, f"log-{name}", flow, [b, a], first=1),
        order=[1, 0],
    )
    packet = datagram(dst, pattern(392), 54)
    _, (a, b, c) = parts(THREE, packet)
    case(f"{name}: fragments to no service's port", config, punt(a), punt(b), punt(c))
    _, (a, b, c) = parts(THREE, datagram(dst, pattern(392), 54))
    case(f"{name}: fragments to no service's port, reversed", config, punt(c), punt(b), punt(a))
    flow, (a, b, c) = parts(THREE, datagram(dst, pattern(392), tos=0xB9))
    case(
        f"{name}: fragments with DSCP and ECN",
        config,
        *train(world, dns, flow, [b, a, c], first=1),
        order=[1, 0, 2],
    )

    world = World(ANY)
    # Nothing needs the ports: nothing is held.
    for kind, net, what in (("sticky", 22, "any port, one client"), ("any", 21, "any protocol")):
        packet = datagram(vip(net, way, inner), pattern(392), 7777)
        flow, (a, b, c) = parts(THREE, packet)
        case(
            f"{name}: fragments of {what}",
            ANY,
            *train(world, f"{kind}-{name}", flow, [c, b, a], first=2),
        )
    packet = datagram(vip(23, way, inner), pattern(392), 7777)
    flow, (a, b, c) = parts(THREE, packet)
    case(
        f"{name}: fragments of any port",
        ANY,
        *train(world, f"ports-{name}", flow, [c, b, a], first=2),
        order=[2, 0, 1],
    )
    packet = sctp(vip(20, way, inner), chunk=SCTPChunkData(data=pattern(392), tsn=1), flags=0)
    flow, (a, b, c) = parts(THREE, packet)
    case(
        f"{name}: fragments of SCTP",
        ANY,
        *train(world, f"sctp-{name}", flow, [c, a, b], first=1),
        order=[1, 0, 2],
    )
    _, (a, b) = parts([(0, 8), (8, None)], packet)
    case(
        f"{name}: tiny first fragment of SCTP",
        ANY,
        drop("fragment_tiny", a),
        drop(later, b),
        bad=True,
    )

# The finer points once, where the hash can be seen outside: GUE.
for (way, inner, name), config in ((x, MODES["gue"]) for x in per_way([("gue", 6)])):
    world, dst, dns = World(config), vip(10, way, inner), f"dns-{name}"

    def parts(ranges, packet=None, **more):
        packet = packet or datagram(dst, pattern(392))
        return flow_of(packet), [eth(piece) for piece in cut(packet, ranges, **more)]

    flow, (a, b, c, d) = parts([(0, 160), (80, 120), (160, 320), (320, None)])
    steps = train(world, dns, flow, [a, c, d])
    case(
        f"fragments-{inner}: one within another",
        config,
        steps[0],
        drop("fragment_overlap", b),
        *steps[1:],
    )
    flow, (a, b) = parts([(0, 160), (160, None)])
    steps = train(world, dns, flow, [b, a], first=1)
    case(
        f"fragments-{inner}: one comes twice while it waits",
        config,
        steps[0],
        drop("fragment_overlap", b),
        steps[1],
        order=[2, 0, 1],
    )
    _, (a, b, c) = parts([(0, 160), (160, 320), (304, None)])
    case(
        f"fragments-{inner}: those that wait overlap",
        config,
        *(drop("fragment_overlap", part) for part in (b, c, a)),
    )
    flow, (a, b, c) = parts([(0, 160), (160, 240), (160, None)])
    [first, second] = train(world, dns, flow, [a, b])
    case(
        f"fragments-{inner}: one around another", config, first, second, drop("fragment_overlap", c)
    )
    _, (a, b, c) = parts([(0, 200), (160, 320), (320, None)])
    case(
        f"fragments-{inner}: the first overlaps what waits",
        config,
        *(drop("fragment_overlap", part) for part in (b, a, c)),
    )
    # The same id again, after the memory of the first flow has gone.
    one, two = datagram(dst, pattern(392)), datagram(dst, pattern(392))
    before = cut(one, [(0, 160), (160, None)])
    ident = {4: slice(4, 6), 6: slice(44, 48)}[inner]
    after = []
    for piece, like in zip(cut(two, [(0, 160), (160, None)]), before):
        piece = piece[: ident.start] + like[ident] + piece[ident.stop :]
        after.append(fixed_header(piece) if inner == 4 else piece)
    steps = train(world, dns, flow_of(one), list(map(eth, before)))
    steps += train(world, dns, flow_of(two), list(map(eth, after)), at=[3.0, 3.001])
    case(f"fragments-{inner}: an id comes again", config, *steps)
    flow, (a, b) = parts([(0, 160), (160, None)])
    steps = train(world, dns, flow, [a], at=[0.0]) + [drop("fragment_timeout", b, 3.0)]
    case(f"fragments-{inner}: the last comes too late", config, *steps)
    # One id, but another protocol, or another source: other datagrams.
    packet = datagram(dst, pattern(392))
    stranger = packet.copy()
    stranger.src = "198.51.100.8" if inner == 4 else "2001:db8::8"
    stranger[UDP].chksum = None
    a, b = cut(packet, [(0, 160), (160, None)])
    if inner == 4:
        c = IP(a).copy()
        c.src, c.chksum = stranger.src, None
        c, d = bytes(c), None
        d = IP(b).copy()
        d.src, d.chksum = stranger.src, None
        d = bytes(d)
    else:
        src = packed(stranger.src)
        c, d = (piece[:8] + src + piece[24:] for piece in (a, b))
    flow, strange = flow_of(packet), flow_of(stranger)
    mine = train(world, dns, flow, [eth(b), eth(a)], first=1)
    theirs = train(world, dns, strange, [eth(d), eth(c)], first=1)
    case(
        f"fragments-{inner}: one id of two sources",
        config,
        mine[0],
        theirs[0],
        mine[1],
        theirs[1],
        order=[2, 0, 3, 1],
        bad=True,
    )
    # Most of a large datagram in 20 parts, backwards.
    big = datagram(dst, pattern(8000))
    flow = flow_of(big)
    ranges = [(at, at + 400) for at in range(0, 7600, 400)] + [(7600, None)]
    pieces = list(map(eth, cut(big, ranges)))[::-1]
    if len(pieces) <= 16:
        case(
            f"fragments-{inner}: many",
            config,
            *train(world, dns, flow, pieces, first=len(pieces) - 1),
            order=[len(pieces) - 1, *range(len(pieces) - 1)],
        )
    steps = train(world, dns, flow, pieces[::-1])
    case(f"fragments-{inner}: many in order", config, *steps)
    if inner == 6:
        packet = datagram(dst, pattern(392))
        flow, frames = parts([(0, 160), (160, None)], packet, extensions=[HOP_BY_HOP, ROUTING])
        case(
            "fragments-6: extensions before the fragment header",
            config,
            *train(world, dns, flow, frames[::-1], first=1),
            order=[1, 0],
        )
        packet = v6_with(
            dst, option(14), make=UDP(sport=client_port(), dport=53) / Raw(pattern(392))
        )
        flow, frames = flow_of(packet), list(map(eth, cut(packet, [(0, 160), (160, None)])))
        case(
            "fragments-6: extensions behind the fragment header",
            config,
            *train(world, dns, flow, frames),
        )
        flow, frames = flow_of(packet), list(map(eth, cut(packet, [(0, 160), (160, None)])))
        case(
            "fragments-6: extensions behind the fragment header, reversed",
            config,
            *train(world, dns, flow, frames[::-1], first=1),
            order=[1, 0],
        )
        # RFC 7112: the first fragment has to have the whole header chain.
        frames = list(map(eth, cut(packet, [(0, 16), (16, None)])))
        case(
            "fragments-6: the header chain goes on in the second",
            config,
            drop("fragment_tiny", frames[0]),
            drop(later, frames[1]),
            bad=True,
        )
        frames = list(map(eth, cut(packet, [(0, 8), (8, None)])))
        case(
            "fragments-6: an extension is cut",
            config,
            drop(["fragment_tiny", "truncated"], frames[0]),
            drop(later, frames[1]),
            bad=True,
        )
    else:
        packet = (
            ip(CLIENT[4], dst, 17, flags=0, options=[IPOption_NOP()] * 4)
            / UDP(sport=client_port(), dport=53)
            / Raw(pattern(392))
        )
        flow, frames = parts([(0, 160), (160, None)], packet)
        case(
            "fragments-4: options",
            config,
            *train(world, dns, flow, frames[::-1], first=1),
            order=[1, 0],
        )
        flow, frames = parts([(0, 160), (160, None)])
        frames = [frame + b"\xee" * 9 for frame in frames]
        case(
            "fragments-4: padding",
            config,
            *train(world, dns, flow, frames[::-1], first=1),
            order=[1, 0],
        )

for fam in FAMILIES:
    dst = V4 if fam == 4 else V6
    host = "10.70.0.1" if fam == 4 else "fd70::1"
    for what, dport, service_name in (
        ("exact", 8050, "in-range"),
        ("prefix", 443, "net-https"),
        ("any", 9999, "any-port"),
    ):
        packet = datagram(host, pattern(200), dport, make=tcp)
        first, last = map(eth, cut(packet, [(0, 104), (104, None)]))
        steps = train(MATCHED, f"{service_name}-{fam}", flow_of(packet), [last, first], first=1)
        # The first fragment decides: the address alone might lead the other elsewhere.
        case(f"match-{fam}: fragments, {what} port", MATCH, *steps, order=[1, 0])

# ---- ICMP errors -----------------------------------------------------------------------------------

for way, inner, name in per_way():
    world = World(MODES[way[0]])
    config, dst = world.config, vip(10, way, inner)
    web, dns, log = f"web-{name}", f"dns-{name}", f"log-{name}"

    def follows(what, kind, packet, flow, tags=(), pad=b"", world=world, **flags):
        case(
            f"{name}: ICMP, {what}",
            world.config,
            world.send(kind, eth(packet, tags, pad), flow, rule="icmp_error"),
            **flags,
        )

    for what, icmp in ERRORS[inner]:
        quote, flow = error_quote(dst, inner)
        follows(what, web, error(dst, icmp, quote), flow)
    needed = NEEDED[inner]
    quote, flow = error_quote(dst, inner, 53, proto=UDP_PROTO)
    follows("UDP quoted", dns, error(dst, needed, quote), flow)
    quote, flow = error_quote(dst, inner, 514, proto=UDP_PROTO)
    follows("one client", log, error(dst, needed, quote), flow)
    quote, flow = error_quote(dst, inner, l4_bytes=84)
    follows("much quoted, in a VLAN", web, error(dst, needed, quote), flow, tags=[7])
    quote, flow = error_quote(dst, inner)
    follows(
        "QinQ and padding",
        web,
        error(dst, needed, quote, tos=0xC0),
        flow,
        tags=[Dot1AD(vlan=3), 4],
        pad=b"\x99" * 5,
    )
    # An error follows its flow: what is said of both is the same.
    packet = tcp(dst)
    quote, _ = error_quote(dst, inner, dport=packet[TCP].sport)
    flow = flow_of(packet)
    case(
        f"{name}: ICMP, after its flow",
        config,
        world.send(web, eth(packet), flow),
        world.send(web, eth(error(dst, needed, quote)), flow, rule="icmp_error"),
    )
    if inner == 4:
        quote, flow = error_quote(dst, 4, options=[IPOption_NOP()] * 8)
        follows("options in the quote", web, error(dst, needed, quote), flow)
        quote, flow = error_quote(dst, 4)
        options = ip(ROUTER[4], dst, 1, options=[IPOption_NOP()] * 4) / needed.copy() / Raw(quote)
        follows("options before it", web, options, flow)
    else:
        dport = client_port()
        l4 = TCP(sport=80, dport=dport, flags="A")
        flow = Flow(CLIENT[6], dst, dport, 80, 6)
        quoted = ip(dst, CLIENT[6]) / HOP_BY_HOP / option() / l4
        follows(
            "extensions in the quote", web, error(dst, needed, bytes(quoted)[: 40 + 16 + 8]), flow
        )
        before = (
            ip(ROUTER[6], dst) / HOP_BY_HOP / needed.copy() / Raw(bytes(ip(dst, CLIENT[6], 6) / l4))
        )
        follows("extensions before it", web, before, flow)
    # A first fragment has the ports.
    part = dict(flags="MF") if inner == 4 else {}
    if inner == 4:
        quote, flow = error_quote(dst, 4, **part)
    else:
        _, flow = error_quote(dst, 6)
        l4 = bytes(TCP(sport=80, dport=flow.sport))[:8]
        quote = bytes(ip(dst, CLIENT[6]) / IPv6ExtHdrFragment(nh=6, offset=0, m=1, id=9) / Raw(l4))
    follows("a first fragment quoted", web, error(dst, needed, quote), flow)
    world = World(ANY)
    quote, flow = error_quote(vip(20, way, inner), inner, 5060, proto=SCTP_PROTO)
    follows("SCTP quoted", f"sctp-{name}", error(flow.dst, needed, quote), flow, world=world)
    quote, flow = error_quote(vip(21, way, inner), inner, 5060, proto=UDP_PROTO)
    follows(
        "UDP of any protocol quoted",
        f"any-{name}",
        error(flow.dst, needed, quote),
        flow,
        world=world,
    )
    esp = bytes(ESP(spi=1, seq=1, data=bytes(32)))
    quote, _ = error_quote(vip(21, way, inner), inner, proto=50, l4=esp)
    flow = Flow(CLIENT[inner], vip(21, way, inner), 0, 0, 50)
    follows("ESP quoted", f"any-{name}", error(flow.dst, needed, quote), flow, world=world)
    quote, flow = error_quote(vip(22, way, inner), inner, 9, proto=UDP_PROTO)
    follows("any port quoted", f"sticky-{name}", error(flow.dst, needed, quote), flow, world=world)

for fam, dst in ((4, V4), (6, V6)):
    proto, needed = (1, NEEDED[4]) if fam == 4 else (58, NEEDED[6])

    def punted(what, *packets, **flags):
        case(f"icmp-{fam}: {what}", WEB, *(punt(eth(packet)) for packet in packets), **flags)

    nobody = "10.0.0.2" if fam == 4 else "fd00::2"
    quote = lambda *more, **kw: error_quote(*(more or (dst, fam)), **kw)[0]
    punted(
        "a quote that matches no port",
        error(dst, needed, quote(sport=81)),
        error(dst, needed, quote(sport=53)),
    )
    punted("a quote that matches no address", error(nobody, needed, quote(nobody, fam)))
    punted(
        "sent to another than the quote's source",
        error(nobody, needed, quote()),
        error(dst, needed, quote(nobody, fam)),
    )
    punted(
        "no ports in the quote",
        *(error(dst, needed, quote(l4_bytes=n)) for n in (0, 1, 3)),
        bad=True,
    )
    punted(
        "header cut short in the quote",
        error(dst, needed, quote()[:19]),
        error(dst, needed, quote()[:1]),
        error(dst, needed, b""),
        bad=True,
    )
    bad_version = bytes([0x55 if fam == 4 else 0x50]) + quote()[1:]
    punted("the quote's version is bad", error(dst, needed, bad_version), bad=True)
    other_family = 10 - fam
    punted(
        "the other family quoted",
        error(dst, needed, quote(V6 if fam == 4 else V4, other_family)),
        bad=True,
    )
    punted("the client's direction quoted", error(dst, needed, bytes(tcp(dst))[: len(quote())]))
    if fam == 4:
        piece = bytes(ip(V4, CLIENT[4], 6, flags=0) / Raw(bytes(TCP(sport=80, dport=40_000))[:8]))
        later_quote = fixed_header(piece, flags=100)
        punted("a later fragment quoted", error(V4, needed, later_quote))
        punted("IHL 4 in the quote", error(V4, needed, b"\x44" + quote()[1:]), bad=True)
        punted(
            "options cut short in the quote",
            error(V4, needed, quote(options=[IPOption_NOP()] * 40)[:50]),
            bad=True,
        )
        echo_reply = bytes(ip(V4, CLIENT[4], 1) / ICMP(type=0, id=3))
        punted("an echo reply quoted", error(V4, needed, echo_reply))
        for kind in (0, 4, 5, 8, 13, 17):
            punted(f"type {kind}", ip(ROUTER[4], V4, 1) / ICMP(type=kind) / Raw(quote()), bad=True)
        short = ip(ROUTER[4], V4, 1) / Raw(bytes([3, 4, 0, 0, 0]))
        punted("header of ICMP cut short", short, bad=True)
        q, flow = error_quote(V4, 4)
        bad_sum = error(V4, needed, q)
        bad_sum[ICMP].chksum = 0x1234
    else:
        part = IPv6ExtHdrFragment(nh=6, offset=100, m=1, id=9)
        later_quote = ip(V6, CLIENT[6]) / part / Raw(bytes(TCP(sport=80, dport=40_000))[:8])
        punted("a later fragment quoted", error(V6, needed, bytes(later_quote)))
        many = ip(V6, CLIENT[6])
        for _ in range(9):
            many = many / option()
        punted(
            "nine extensions in the quote", error(V6, needed, bytes(many / TCP(sport=80, dport=1)))
        )
        cut_short = bytes(ip(V6, CLIENT[6]) / option(14) / TCP(sport=80, dport=1))[:50]
        punted("an extension cut short in the quote", error(V6, needed, cut_short), bad=True)
        echo_reply = bytes(ip(V6, CLIENT[6], 58) / Raw(bytes([129, 0, 0, 0, 0, 3, 0, 1])))
        punted("an echo reply quoted", error(V6, needed, echo_reply))
        for kind in (0, 5, 100, 127, 129, 137):
            punted(
                f"type {kind}",
                ip(ROUTER[6], V6, 58) / Raw(bytes([kind]) + bytes(7) + quote()),
                bad=True,
            )
        short = ip(ROUTER[6], V6, 58) / Raw(bytes([2, 0, 0, 0, 0]))
        punted("header of ICMPv6 cut short", short, bad=True)
        q, flow = error_quote(V6, 6)
        bad_sum = error(V6, needed, q)
        bad_sum[ICMPv6PacketTooBig].cksum = 0x1234
    case(
        f"icmp-{fam}: a wrong checksum is not looked at",
        WEB,
        PLAIN.send(f"web-l2dsr-{fam}", eth(bad_sum), flow, rule="icmp_error"),
        bad=True,
    )
    host = "10.70.0.1" if fam == 4 else "fd70::1"
    for sport, service_name in ((8050, "in-range"), (443, "net-https"), (9999, "any-port")):
        q, flow = error_quote(host, fam, sport)
        frame = eth(error(host, needed, q))
        case(
            f"icmp-{fam}: quoted port {sport}, {service_name}",
            MATCH,
            MATCHED.send(f"{service_name}-{fam}", frame, flow, rule="icmp_error"),
        )
    q, flow = error_quote(host, fam, 81, proto=UDP_PROTO)
    case(
        f"icmp-{fam}: quoted, any protocol",
        MATCH,
        MATCHED.send(f"any-protocol-{fam}", eth(error(host, needed, q)), flow, rule="icmp_error"),
    )
    case(
        f"icmp-{fam}: bad source",
        WEB,
        drop(
            "bad_source",
            eth(ip("127.0.0.1" if fam == 4 else "::1", dst, proto) / needed.copy() / Raw(quote())),
        ),
    )
    # RFC 4884: what is appended to the quote goes along.
    if fam == 4:
        q, flow = error_quote(V4, 4, l4_bytes=84)
        q = q.ljust(128, b"\0") + bytes.fromhex("2000 dead 0008 0101 00010141".replace(" ", ""))
        extended = ip(ROUTER[4], V4, 1) / ICMP(type=11, code=0, length=32) / Raw(q)
        case(
            "icmp-4: extensions behind the quote",
            WEB,
            PLAIN.send("web-l2dsr-4", eth(extended), flow, rule="icmp_error"),
            bad=True,
        )

# ---- Too big ---------------------------------------------------------------------------------------

for way, inner, name in per_way(TUNNELS):
    # As configured: a packet that fills the MTU does not leave room for the outer header.
    for config, net, mtu in ((MODES[way[0]], 10, 1500), (SMALL, 50, 1280)):
        world, dst, web = World(config), vip(net, way, inner), f"web-{name}"
        room = mtu - overhead(config.service(web))
        label = f"{name}: MTU {mtu}"
        packet = sized(tcp, dst, room)
        if inner == 4 or room >= 1280:
            case(f"{label}, fits", config, world.send(web, eth(packet), flow_of(packet)))
            packet = sized(tcp, dst, room + 1)
            case(f"{label}, a byte too many", config, world.answer(web, eth(packet)))
        case(
            f"{label}, too big",
            config,
            world.answer(web, eth(sized(tcp, dst, mtu + (1 if inner == 6 else 0)))),
        )
        if inner == 6 and room < 1280:
            # IPv6 has to carry 1280 bytes (RFC 8200, 5): the outer packet is cut.
            for length in (1280, room + 1):
                packet = sized(tcp, dst, length)
                case(
                    f"{label}, {length} bytes are cut outside",
                    config,
                    world.send(web, eth(packet), flow_of(packet)),
                )
            packet = sized(tcp, dst, room)
            case(f"{label}, fits", config, world.send(web, eth(packet), flow_of(packet)))
        if mtu == 1280:
            continue
        case(
            f"{label}, too big in a VLAN",
            config,
            world.answer(web, eth(sized(tcp, dst, 1500), [7])),
        )
        case(
            f"{label}, too big in QinQ, padded",
            config,
            world.answer(web, eth(sized(tcp, dst, 1490), [Dot1AD(vlan=7), 8], b"\xcc" * 7)),
        )
        case(
            f"{label}, too big, UDP",
            config,
            world.answer(f"dns-{name}", eth(sized(udp, dst, 1500))),
        )
        icmp = sized(
            lambda dst, data, sport=0: error(dst, NEEDED[inner], error_quote(dst, inner)[0] + data),
            dst,
            1500,
        )
        case(f"{label}, an error is too big", config, drop("too_big", eth(icmp)))
        if inner == 4:
            packet = sized(
                lambda dst, data, sport=None: ip(CLIENT[4], dst, 6, options=[IPOption_NOP()] * 40)
                / TCP(sport=client_port(), dport=80)
                / Raw(data),
                dst,
                1500,
            )
            case(f"{label}, too big, with options", config, world.answer(web, eth(packet)))
            for length, what in (
                (1500, "MTU"),
                (room + 1, "a byte too many"),
                (1500 + 1400, "three parts"),
            ):
                packet = sized(udp, dst, length, flags=0)
                case(
                    f"{label}, cut outside, {what}",
                    config,
                    world.send(f"dns-{name}", eth(packet, pad=b"\xdd"), flow_of(packet)),
                )
            packet = sized(udp, dst, 1500, flags=0, tos=0x2B)
            case(
                f"{label}, cut outside, DSCP and VLAN",
                config,
                world.send(f"dns-{name}", eth(packet, [7]), flow_of(packet)),
            )
            packets = [sized(udp, dst, 1500, flags=0) for _ in range(3)]
            case(
                f"{label}, three are cut outside",
                config,
                *(world.send(f"dns-{name}", eth(packet), flow_of(packet)) for packet in packets),
            )
            icmp = ip(ROUTER[4], dst, 1, flags=0) / NEEDED[4].copy()
            quote, flow = error_quote(dst, 4)
            icmp = icmp / Raw(quote + pattern(1500 - 28 - len(quote)))
            case(
                f"{label}, an error is cut outside",
                config,
                world.send(web, eth(icmp), flow, rule="icmp_error"),
            )
            packet = datagram(dst, pattern(2000))
            a, b = map(eth, cut(packet, [(0, 1480), (1480, None)]))
            steps = train(world, f"dns-{name}", flow_of(packet), [b, a], first=1)
            case(f"{label}, a fragment is cut outside", config, *steps, order=[1, 0])
        else:
            packet = datagram(dst, pattern(3500))
            a, b, c = map(eth, cut(packet, [(0, 1448), (1448, 2896), (2896, None)]))
            flow = flow_of(packet)
            [last] = train(world, f"dns-{name}", flow, [c], first=None)
            case(
                f"{label}, fragments are too big",
                config,
                world.answer(f"dns-{name}", a),
                drop("too_big", b),
                last,
            )

for way, inner, name in per_way():
    world, dst, web = World(TWO_ARMED), vip(60, way, inner), f"web-{name}"
    room = 1500 - overhead(TWO_ARMED.service(web))
    packet = sized(tcp, dst, room)
    case(f"{name}: two arms, fits", TWO_ARMED, world.send(web, eth(packet), flow_of(packet)))
    packet = tcp(dst)
    case(
        f"{name}: two arms, VLAN and QinQ end here",
        TWO_ARMED,
        *(
            world.send(web, eth(packet, tags), flow_of(packet))
            for tags in ([7], [Dot1AD(vlan=7), 8])
        ),
    )
    case(
        f"{name}: two arms, padding",
        TWO_ARMED,
        world.send(web, eth(packet, [7], b"\xab" * 6), flow_of(packet)),
    )
    case(
        f"{name}: two arms, too big",
        TWO_ARMED,
        world.answer(web, eth(sized(tcp, dst, room + 1))),
        world.answer(web, eth(sized(tcp, dst, 8000), [7])),
    )
    if inner == 4:
        packet = sized(tcp, dst, 4000)
        packet.flags = 0
        if way[0] == "l2dsr":
            case(
                f"{name}: two arms, too big without DF",
                TWO_ARMED,
                drop("too_big", eth(packet), service=web),
            )
        else:
            case(
                f"{name}: two arms, cut outside",
                TWO_ARMED,
                world.send(web, eth(packet, [7]), flow_of(packet)),
            )
    icmp = error(dst, NEEDED[inner], error_quote(dst, inner)[0] + pattern(1600))
    case(f"{name}: two arms, an error is too big", TWO_ARMED, drop("too_big", eth(icmp)))
    quote, flow = error_quote(dst, inner)
    case(
        f"{name}: two arms, ICMP error",
        TWO_ARMED,
        world.send(web, eth(error(dst, NEEDED[inner], quote), [7]), flow, rule="icmp_error"),
    )
    packet = datagram(dst, pattern(392), 80, make=tcp)
    a, b = (eth(piece, [7]) for piece in cut(packet, [(0, 160), (160, None)]))
    case(
        f"{name}: two arms, fragments",
        TWO_ARMED,
        *train(world, web, flow_of(packet), [b, a], first=1),
        order=[1, 0],
    )

    world, dst = World(JUMBO), vip(51, way, inner)
    room = 9000 - overhead(JUMBO.service(web))
    packet = sized(tcp, dst, room)
    case(f"{name}: jumbo", JUMBO, world.send(web, eth(packet), flow_of(packet)))
    case(f"{name}: jumbo, too big", JUMBO, world.answer(web, eth(sized(tcp, dst, room + 1))))

for fam in FAMILIES:
    world, dst = World(SMALL), vip(50, WAYS[0], fam)
    case(
        f"l2dsr-{fam}: MTU 1280, too big",
        SMALL,
        world.answer(f"web-l2dsr-{fam}", eth(sized(tcp, dst, 1281), [7])),
    )
    packet = sized(tcp, dst, 1280)
    case(
        f"l2dsr-{fam}: MTU 1280, fits",
        SMALL,
        world.send(f"web-l2dsr-{fam}", eth(packet), flow_of(packet)),
    )
    case(
        f"l2dsr-{fam}: MTU 1280, too big, UDP",
        SMALL,
        world.answer(f"dns-l2dsr-{fam}", eth(sized(udp, dst, 1400))),
    )
packet = sized(udp, vip(50, WAYS[0], 4), 1281, flags=0)
case(
    "l2dsr-4: MTU 1280, too big without DF",
    SMALL,
    drop("too_big", eth(packet), service="dns-l2dsr-4"),
)
# DF and MF: the first fragment is answered, the other is not.
packet = (
    ip(CLIENT[4], vip(10, WAYS[1], 4), 17, flags=0)
    / UDP(sport=client_port(), dport=53)
    / Raw(pattern(3500))
)
a, b, c = (
    fixed_header(p, flags=0x4000 | struct.unpack_from("!H", p, 6)[0])
    for p in cut(packet, [(0, 1480), (1480, 2960), (2960, None)])
)
world = World(MODES["ipip"])
[last] = train(world, "dns-ipip-4in4", flow_of(packet), [eth(c)], first=None)
case(
    "ipip-4in4: fragments with DF are too big",
    MODES["ipip"],
    world.answer("dns-ipip-4in4", eth(a)),
    drop("too_big", eth(b)),
    last,
)

# ---- MSS -------------------------------------------------------------------------------------------


def clamped(packet, limit):
    """The packet with its MSS lowered; scapy sums it up anew."""
    packet = packet.copy()
    packet[TCP].options = [
        (name, min(value, limit)) if name == "MSS" else (name, value)
        for name, value in packet[TCP].options
    ]
    return packet


for way, inner, name in per_way():
    world = World(MSS)
    for kind, net in (("number", 30), ("auto", 31)):
        svc = f"{kind}-{name}"
        limit = (
            1300
            if kind == "number"
            else 1500 - overhead(MSS.service(svc)) - (40 if inner == 4 else 60)
        )
        dst = vip(net, way, inner)
        for what, flags, options in (
            ("SYN", "S", [("MSS", 1460)]),
            ("SYN-ACK", "SA", [("MSS", 8960)]),
            (
                "many options",
                "S",
                [
                    ("MSS", 65_495),
                    ("SAckOK", b""),
                    ("Timestamp", (1, 0)),
                    ("NOP", None),
                    ("WScale", 7),
                ],
            ),
            ("MSS last", "SEC", [("SAckOK", b""), ("Timestamp", (7, 0)), ("MSS", 65_535)]),
            ("a NOP before", "S", [("NOP", None), ("MSS", 1461), ("NOP", None)]),
            ("exactly the limit", "S", [("MSS", limit)]),
            ("above the limit by one", "S", [("MSS", limit + 1)]),
            ("below the limit", "S", [("MSS", 536)]),
            ("no option", "S", []),
            ("other options only", "S", [("SAckOK", b""), ("WScale", 7)]),
            ("not a SYN", "A", [("MSS", 9000)]),
        ):
            if kind == "number" and what not in ("SYN", "SYN-ACK", "MSS last", "a NOP before"):
                continue
            packet = tcp(dst, tcp_flags=flags, tcp_options=options, data=b"")
            result = clamped(packet, limit) if "S" in flags else packet
            case(
                f"{name}: MSS {kind}, {what}",
                MSS,
                world.send(svc, eth(packet), flow_of(packet), result=eth(result)),
                rewrites=True,
            )
    dst, svc = vip(30, way, inner), f"number-{name}"
    packet = tcp(dst, tcp_flags="S", tcp_options=[("MSS", 1460)], data=pattern(101))
    case(
        f"{name}: MSS, data and QinQ",
        MSS,
        world.send(
            svc,
            eth(packet, [Dot1AD(vlan=7), 8]),
            flow_of(packet),
            result=eth(clamped(packet, 1300), [Dot1AD(vlan=7), 8]),
        ),
        rewrites=True,
    )
    # A checksum that was wrong stays as wrong as it was (RFC 1624, equation 3).
    packet = tcp(dst, tcp_flags="S", tcp_options=[("MSS", 1460)], data=b"")
    true = (
        struct.unpack_from("!H", bytes(packet[TCP]), 16)[0]
        if inner == 6
        else IP(bytes(packet))[TCP].chksum
    )
    packet = packet.__class__(bytes(packet))
    wrong, result = packet.copy(), clamped(packet, 1300)
    wrong[TCP].chksum = packet[TCP].chksum ^ 0x0101
    total = (~wrong[TCP].chksum & 0xFFFF) + (~1460 & 0xFFFF) + 1300
    total = (total & 0xFFFF) + (total >> 16)
    result[TCP].chksum = ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF
    case(
        f"{name}: MSS, the checksum was wrong",
        MSS,
        world.send(svc, eth(wrong), flow_of(packet), result=eth(result)),
        rewrites=True,
        bad=True,
    )

for fam in FAMILIES:
    world, dst, svc = World(MSS), vip(30, WAYS[0], fam), f"number-l2dsr-{fam}"
    for what, options in (
        ("length 3", "020305b4"),
        ("length 5", "020505b400000000"),
        ("length 0", "020005b4"),
        ("length 1", "020105b4"),
        ("length 4, cut short", "01010204"),
        ("kind alone at the end", "01010102"),
        ("behind the end of options", "00000000020405b4"),
        ("behind an option of length 0", "08000000020405b4"),
        ("behind an option of length 1", "fd010000020405b4"),
        ("behind an option that is too long", "080c0000020405b4"),
    ):
        options = bytes.fromhex(options)
        packet = tcp(dst, tcp_flags="S", data=options)
        packet[TCP].dataofs = 5 + len(options) // 4
        case(
            f"mss-{fam}: malformed, {what}",
            MSS,
            world.send(svc, eth(packet), flow_of(packet)),
            rewrites=True,
            bad=True,
        )
    packet = tcp(dst, tcp_flags="S", data=b"")
    packet[TCP].dataofs = 15
    case(
        f"mss-{fam}: data offset beyond the packet",
        MSS,
        world.send(svc, eth(packet), flow_of(packet)),
        rewrites=True,
        bad=True,
    )
    packet = tcp(dst, tcp_flags="S", data=bytes.fromhex("020405b4"))
    packet[TCP].dataofs = 4
    case(
        f"mss-{fam}: data offset 4",
        MSS,
        world.send(svc, eth(packet), flow_of(packet)),
        rewrites=True,
        bad=True,
    )
    # What looks like an option, in the data.
    packet = tcp(dst, tcp_flags="S", data=bytes.fromhex("020405b4"))
    case(
        f"mss-{fam}: an option in the data",
        MSS,
        world.send(svc, eth(packet), flow_of(packet)),
        rewrites=True,
    )
    # An option of an unknown kind is stepped over, with an MSS look-alike inside.
    options = bytes.fromhex("fd06020405b40101020405b4")
    packet = tcp(dst, tcp_flags="S", data=options)
    packet[TCP].dataofs = 8
    result = tcp(
        dst, tcp_flags="S", data=options[:-2] + struct.pack("!H", 1300), sport=packet[TCP].sport
    )
    result[TCP].dataofs = 8
    case(
        f"mss-{fam}: behind an unknown option",
        MSS,
        world.send(svc, eth(packet), flow_of(packet), result=eth(result)),
        rewrites=True,
    )
    # At an odd offset the bytes of the checksum's words change places.
    for lead in (1, 2, 3):
        options = [("NOP", None)] * lead + [("MSS", 1460)] + [("NOP", None)] * (4 - lead)
        packet = tcp(dst, tcp_flags="S", tcp_options=options, data=b"")
        case(
            f"mss-{fam}: behind {lead} NOPs",
            MSS,
            world.send(svc, eth(packet), flow_of(packet), result=eth(clamped(packet, 1300))),
            rewrites=True,
        )
packet = v6_with(
    vip(30, WAYS[0], 6),
    HOP_BY_HOP,
    option(),
    make=TCP(sport=client_port(), dport=80, flags="S", options=[("MSS", 1460)]),
)
case(
    "mss-6: behind extensions",
    MSS,
    World(MSS).send(
        "number-l2dsr-6", eth(packet), flow_of(packet), result=eth(clamped(packet, 1300))
    ),
    rewrites=True,
)
packet = ip(CLIENT[4], vip(30, WAYS[0], 4), 6, options=[IPOption_NOP()] * 12) / TCP(
    sport=client_port(), dport=80, flags="S", options=[("MSS", 1460)]
)
case(
    "mss-4: behind options of IP",
    MSS,
    World(MSS).send(
        "number-l2dsr-4", eth(packet), flow_of(packet), result=eth(clamped(packet, 1300))
    ),
    rewrites=True,
)

# ---- Outer sources, GUE's port ---------------------------------------------------------------------

for way, inner, name in per_way(TUNNELS):
    world = World(SOURCES)
    for kind, net in (("web", 40), ("wide", 41), ("narrow", 42)):
        packets = [tcp(vip(net, way, inner)) for _ in range(4)]
        case(
            f"{name}: outer source, {kind} prefix",
            SOURCES,
            *(world.send(f"{kind}-{name}", eth(packet), flow_of(packet)) for packet in packets),
        )
    quote, flow = error_quote(vip(40, way, inner), inner)
    packet = tcp(flow.dst, sport=flow.sport)
    case(
        f"{name}: outer source of an error is its flow's",
        SOURCES,
        world.send(f"web-{name}", eth(packet), flow),
        world.send(
            f"web-{name}", eth(error(flow.dst, NEEDED[inner], quote)), flow, rule="icmp_error"
        ),
    )
    packet = datagram(vip(40, way, inner), pattern(392), 80, make=tcp)
    a, b = map(eth, cut(packet, [(0, 160), (160, None)]))
    case(
        f"{name}: outer source of fragments is one",
        SOURCES,
        *train(world, f"web-{name}", flow_of(packet), [b, a], first=1),
        order=[1, 0],
    )
    if way[0] == "gue":
        packet = tcp(vip(43, way, inner))
        case(
            f"{name}: another port",
            SOURCES,
            world.send(f"port-{name}", eth(packet, [7]), flow_of(packet)),
        )

write(CONFIGS)
if len(sys.argv) > 1:
    wrpcap(
        sys.argv[1],
        [
            Ether(out.bytes)
            for case in CASES
            for step in case.steps
            for out in step.outs
            if not case.flags.get("bad")
        ],
    )
print(f"{len(CASES)} cases, {sum(len(case.steps) for case in CASES)} frames")
