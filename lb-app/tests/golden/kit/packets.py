"""Packets of clients, and ICMP errors about packets to them."""

import itertools

from scapy.layers.inet import ICMP, TCP, UDP
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6PacketTooBig,
    ICMPv6ParamProblem,
    ICMPv6TimeExceeded,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
    PadN,
)
from scapy.layers.sctp import SCTP, SCTPChunkInit
from scapy.packet import Raw

from .flow_hash import Flow
from .frames import *

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


def error(dst, icmp, quote, src=None, **header):
    """An ICMP error of a router on the way to the client, if no other source is given."""
    fam = family(dst)
    proto = ICMP_PROTO if fam == 4 else ICMPV6_PROTO
    return ip(src or ROUTER[fam], dst, proto, **header) / icmp.copy() / Raw(quote)


NEEDED = {4: ERRORS[4][1][1], 6: ERRORS[6][1][1]}
