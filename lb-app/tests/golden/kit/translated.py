"""nat and fullnat: what has to leave, within a family and between families (RFC 7915)."""

from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6PacketTooBig,
    ICMPv6ParamProblem,
    ICMPv6TimeExceeded,
    IPv6,
)
from scapy.layers.sctp import SCTP
from scapy.packet import Raw

from .case import Step, World
from .flow_hash import Flow
from .frames import CLIENT_MAC, OUR_MAC, cut, eth, family, flow_of, ip, new_ident
from .leaving import Out, answered, fragment_outer, hash_of
from .open import NOTHING, Stand, opened
from .packets import error

# RFC 7915 5.1: an IPv4 packet of more bytes may not be cut.
CUT_MAX = 1260


def header_of(packet):
    return packet.getlayer(IP) or packet.getlayer(IPv6)


def segment_of(packet):
    """The transport layer and what follows, as a copy of its own."""
    for layer in (TCP, UDP, SCTP):
        if packet.haslayer(layer):
            return packet[layer].copy()
    return header_of(packet).payload.copy()


def translated(packet, src=None, dst=None, ident=0, keep_hops=False):
    """The packet with other ends, each an address and a port, None for what stays; as a router sends
    it on. `ident` is for an IPv4 packet that was IPv6."""
    before = header_of(packet)
    src, dst = src or (before.src, None), dst or (before.dst, None)
    hops = 0 if keep_hops else 1
    if family(dst[0]) == family(before.dst):
        result = packet.copy()
        head = header_of(result)
        head.src, head.dst = src[0], dst[0]
        if isinstance(head, IP):
            head.ttl -= hops
            del head.chksum
        else:
            head.hlim -= hops
        with_ends(result, packet, src[1], dst[1])
        return result
    segment = segment_of(packet)
    if isinstance(before, IP):
        head = IPv6(src=src[0], dst=dst[0], tc=before.tos, hlim=before.ttl - hops)
        head.nh = before.proto if before.proto else IP(bytes(before)).proto
    else:
        head = IP(src=src[0], dst=dst[0], tos=before.tc, ttl=before.hlim - hops, id=ident)
        head.flags = "DF" if 20 + len(bytes(segment)) > CUT_MAX else 0
    result = head / segment
    with_ends(result, packet, src[1], dst[1])
    return result


def with_ends(result, before, sport, dport):
    for layer in (TCP, UDP, SCTP):
        if not result.haslayer(layer):
            continue
        l4 = result[layer]
        l4.sport = l4.sport if sport is None else sport
        l4.dport = l4.dport if dport is None else dport
        stays_without = layer is UDP and before[UDP].chksum == 0 and header_of(result).version == 4
        if layer is not SCTP and not stays_without:
            del l4.chksum


# RFC 7915 4.2 and 5.2, for the kinds that the cases have.
def icmp_translated(icmp, from_family, mtu=1500):
    """What an ICMP error of a family says in the other; for "too big", the way that the error goes
    has `mtu`."""
    if from_family == 4:
        kind, code = icmp.type, icmp.code
        if (kind, code) == (3, 4):
            return ICMPv6PacketTooBig(mtu=max(min(icmp.nexthopmtu + 20, mtu), 1280))
        if (kind, code) == (3, 2):
            return ICMPv6ParamProblem(code=1, ptr=6)
        if kind == 3:
            prohibited, port = {9, 10, 13, 15}, {3}
            return ICMPv6DestUnreach(code=1 if code in prohibited else 4 if code in port else 0)
        if kind == 11:
            return ICMPv6TimeExceeded(code=code)
        pointers = {0: 0, 1: 1, 2: 4, 3: 4, 8: 7, 9: 6, 12: 8, 15: 8, 16: 24, 19: 24}
        return ICMPv6ParamProblem(code=0, ptr=pointers[icmp.ptr])
    if isinstance(icmp, ICMPv6PacketTooBig):
        return ICMP(type=3, code=4, nexthopmtu=min(icmp.mtu - 20, mtu))
    if isinstance(icmp, ICMPv6DestUnreach):
        return ICMP(type=3, code={0: 1, 1: 10, 2: 1, 3: 1, 4: 3}[icmp.code])
    if isinstance(icmp, ICMPv6TimeExceeded):
        return ICMP(type=11, code=icmp.code)
    if icmp.code == 1:
        return ICMP(type=3, code=2)
    pointers = {0: 0, 1: 1, 4: 2, 5: 2, 6: 9, 7: 8, 8: 12, 23: 12, 24: 16, 39: 16}
    return ICMP(type=12, code=0, ptr=pointers[icmp.ptr])


class Translator(World):
    """Steps of services that translate: one port, so that clients, backends and routers are all
    behind it."""

    def backend(self, name):
        """Address and port of the service's backend; None where the port stays what it is."""
        service = self.config.service(name)
        backend = service["backends"][0]
        port = backend.get("port", service["port"])
        return backend["address"], None if port == "any" else port

    def vip(self, name):
        service = self.config.service(name)
        return service["address"], service["port"]

    def stand(self, name, number=1):
        """A connection's place in the service's pool; None without one."""
        pool = self.config.service(name).get("pool")
        return Stand(pool, number) if pool else None

    def mac(self, name):
        return self.config.service(name)["backends"][0]["mac"]

    def open(self, make, stand, udp=False, idents=()):
        """What `make` makes of the place in the pool and of identifications: (end, *idents) -> frame
        bytes."""
        names = (stand.names if stand else {}) | {ident: 2 for ident in idents}

        def build(**chosen):
            end = stand.end(chosen) if stand else None
            return make(end, *(chosen[ident] for ident in idents))

        return opened(build, udp=udp, **names)

    def sent(self, name, rule, frame, outs, flow, at=0.0):
        """The step of a client's frame that goes to the backend."""
        service = self.config.service(name)
        slot = hash_of(service, flow) * service["slots"] >> 64
        backend, port = service["backends"][0]["address"], self.config.out_port(service)["name"]
        return Step(frame, ("send", rule, name, slot, backend, port), outs, at)

    def returned(self, name, frame, outs, at=0.0):
        """The step of a backend's frame that goes to the client."""
        service = self.config.service(name)
        expect = ("send", "return", name, "-", service["backends"][0]["address"])
        return Step(frame, (*expect, self.config.ports[0]["name"]), outs, at)

    def forth(self, name, packet, tags=(), pad=b"", stand=None, at=0.0, change=None, frame=None):
        """A client's packet goes to the backend; `change` is what else becomes of it, `frame` what
        came if it is not the packet as it is."""
        stand = stand or self.stand(name)
        between = is_between(packet, self.backend(name))

        def leaves(end, ident=0):
            result = translated(packet, end, self.backend(name), ident=ident)
            result = change(result) if change else result
            return eth(result, tags, dst=self.mac(name), src=OUR_MAC)

        idents = ["_i"] if between == 4 else []
        frame = frame or eth(packet, tags, pad)
        # Within a family, the frame keeps its padding unless something may be put into the stream.
        pad = b"" if stand or between else pad
        out = self.open(leaves, stand, packet.haslayer(UDP), idents)
        out = Out(out.bytes + pad, out.wild)
        return self.sent(name, "flow", frame, [out], flow_of(packet), at)

    def back(self, name, client, make, tags=(), stand=None, at=0.0, change=None, udp=False):
        """A backend's packet goes to the client. `make` makes it, of the address and port that it is
        for; `client` is the client's address and port."""
        stand = stand or self.stand(name)
        between = crossing(self.backend(name), client)
        frame = self.open(
            lambda end: eth(make(end or client), tags, src=self.mac(name)), stand, udp
        )

        def leaves(end, ident=0):
            # Where the answer went is not seen any more.
            there = make((self.stand_in(name), 4444)) if stand else make(client)
            result = translated(there, self.vip(name), client, ident=ident)
            result = change(result) if change else result
            return eth(result, tags, dst=CLIENT_MAC, src=OUR_MAC)

        out = self.open(leaves, None, udp, ["_i"] if between == 4 else [])
        frame = frame if frame.wild else frame.bytes
        return self.returned(name, frame, [out], at)

    def error_forth(self, name, client, icmp, l4, l4_bytes=8, tags=(), at=0.0, src=None, **header):
        """An ICMP error about an answer to the client, `l4` without ports, goes to the backend.
        A router has sent it, or `src`."""
        vip, stand, backend = self.vip(name), self.stand(name), self.backend(name)
        fam = family(vip[0])
        answer = told(vip, client, l4, **header)
        frame = eth(error(vip[0], icmp, quoted(answer, l4_bytes), src=src), tags)
        between = crossing(vip, backend)

        def leaves(end, ident=0, quoted_ident=0):
            quote = translated(answer, backend, end, ident=quoted_ident, keep_hops=True)
            quote = quoted(quote, l4_bytes)
            says = icmp_translated(icmp, fam) if between else icmp
            # A router keeps its name where its family is understood.
            speaks = end[0] if end and (between or src == client[0]) else src
            packet = error(backend[0], says, quote, src=speaks, hops=59)
            if between == 4:
                packet.id, packet.flags = ident, 0
            return eth(packet, tags, dst=self.mac(name), src=OUR_MAC)

        idents = ["_i", "_q"] if between == 4 else []
        out = self.open(leaves, stand, l4.haslayer(UDP), idents)
        flow = Flow(client[0], vip[0], client[1], vip[1], number_of(l4))
        return self.sent(name, "icmp_error", frame, [out], flow, at)

    def error_back(
        self,
        name,
        client,
        icmp,
        l4,
        l4_bytes=8,
        tags=(),
        at=0.0,
        src=None,
        answer_mtu=None,
        **header
    ):
        """An ICMP error about a packet to the backend goes to the client; with `answer_mtu`, if it is not
        what the error says."""
        vip, stand, backend = self.vip(name), self.stand(name), self.backend(name)
        fam, between = family(backend[0]), crossing(self.backend(name), client)
        sent = lambda end: told(end, backend, l4, **header)

        def comes(end):
            end = end or client
            packet = error(end[0], icmp, quoted(sent(end), l4_bytes), src=src)
            return eth(packet, tags, src=self.mac(name))

        def leaves(_, ident=0, quoted_ident=0):
            some = (self.stand_in(name), 4444) if stand else client
            quote = translated(sent(some), client, vip, ident=quoted_ident, keep_hops=True)
            quote = quoted(quote, l4_bytes)
            says = icmp_translated(icmp, fam) if between else icmp
            if answer_mtu:
                says = ICMPv6PacketTooBig(mtu=answer_mtu)
            speaks = vip[0] if between or src == backend[0] else src
            packet = error(client[0], says, quote, src=speaks, hops=59)
            if between == 4:
                packet.id, packet.flags = ident, 0
            return eth(packet, tags, dst=CLIENT_MAC, src=OUR_MAC)

        udp = l4.haslayer(UDP)
        out = self.open(leaves, None, udp, ["_i", "_q"] if between == 4 else [])
        frame = self.open(comes, stand, udp)
        return self.returned(name, frame if frame.wild else frame.bytes, [out], at)

    def told_too_big(self, name, frame, mtu, at=0.0):
        """The client's frame is answered: so much would fit."""
        return Step(frame, ("answer", "too_big", name), [answered(self.config, frame, mtu)], at)

    def told_expired(self, name, frame, at=0.0):
        """The client's frame is answered: no hop is left."""
        out = answered(self.config, frame, as_router=True)
        return Step(frame, ("answer", "ttl_exceeded", name), [out], at)

    def told_back(self, name, client, make, mtu=None, at=0.0, udp=False):
        """A backend's frame is answered: so much would fit, or no hop is left."""
        stand = self.stand(name)
        comes = lambda end: eth(make(end or client), src=self.mac(name))
        leaves = lambda end: answered(self.config, comes(end), mtu, as_router=True).bytes
        frame, out = self.open(comes, stand, udp), self.open(leaves, stand, udp)
        reason = "ttl_exceeded" if mtu is None else "too_big"
        return Step(frame if frame.wild else frame.bytes, ("answer", reason, name), [out], at)

    def pieces_forth(self, name, packet, ranges, order, stand=None, mtu=None):
        """A client's packet in pieces, which come in an `order`: their steps."""
        stand, ident = stand or self.stand(name), new_ident()
        whole = lambda end: translated(packet, end, self.backend(name))
        comes = [eth(piece) for piece in cut(packet, ranges, ident=ident)]
        udp = packet.haslayer(UDP)

        def leaves(place):
            piece = lambda end: cut(whole(end), ranges, ident=self.kept(name, packet, ident))[place]
            return self.open(
                lambda end: eth(piece(end), dst=self.mac(name), src=OUR_MAC), stand, udp
            )

        return [
            self.sent(
                name,
                "flow" if ranges[place][0] == 0 else "fragment",
                comes[place],
                [leaves(place)],
                flow_of(packet),
            )
            for place in order
        ]

    def cut_forth(self, name, packet, mtu=1500, pad=b"", change=None):
        """A client's packet that is too big for the way, and may be cut: it leaves in pieces. `change` is
        what else becomes of it."""
        stand = self.stand(name)
        macs = {"dst": self.mac(name), "src": OUR_MAC}
        change = change or (lambda result: result)
        whole = lambda end: bytes(change(translated(packet, end, self.backend(name))))
        outs = self.cut(whole, stand, packet.haslayer(UDP), mtu, macs)
        return self.sent(name, "flow", eth(packet, pad=pad), outs, flow_of(packet))

    def cut_back(self, name, client, make, mtu=1500, udp=False):
        """The same of a backend's packet."""
        stand = self.stand(name)
        comes = lambda end: eth(make(end or client), src=self.mac(name))
        frame = self.open(comes, stand, udp)
        there = make((self.stand_in(name), 4444)) if stand else make(client)
        whole = lambda end: bytes(translated(there, self.vip(name), client))
        outs = self.cut(whole, None, udp, mtu, {"dst": CLIENT_MAC, "src": OUR_MAC})
        return self.returned(name, frame if frame.wild else frame.bytes, outs)

    def cut(self, whole, stand, udp, mtu, macs):
        """The pieces of the packet that `whole` makes of the place in the pool, as frames: they have
        one identification."""
        pieces = lambda end: fragment_outer(whole(end), mtu, "a")
        some = (
            stand.end({name: NOTHING[length] for name, length in stand.names.items()})
            if stand
            else None
        )
        outs = []
        for place, piece in enumerate(pieces(some)):
            frame = self.open(lambda end: eth(pieces(end)[place].bytes, **macs), stand, udp)
            idents = tuple((14 + at, length, name) for at, length, name in piece.wild)
            outs.append(Out(frame.bytes, frame.wild + idents))
        return outs

    def kept(self, name, packet, ident):
        """RFC 7915 5.1.1: IPv4 has the lower half of it."""
        return ident & 0xFFFF if is_between(packet, self.backend(name)) == 4 else ident

    def pieces_back(self, name, client, make, ranges, order, udp=False):
        """A backend's packet in pieces."""
        stand, ident = self.stand(name), new_ident()
        comes = lambda place: self.open(
            lambda end: eth(
                cut(make(end or client), ranges, ident=ident)[place], src=self.mac(name)
            ),
            stand,
            udp,
        )
        there = make((self.stand_in(name), 4444)) if stand else make(client)
        pieces = cut(translated(there, self.vip(name), client), ranges, ident=ident)
        steps = []
        for place in order:
            frame = comes(place)
            out = Out(eth(pieces[place], dst=CLIENT_MAC, src=OUR_MAC))
            steps.append(self.returned(name, frame if frame.wild else frame.bytes, [out]))
        return steps

    def stand_in(self, name):
        """Some address of the backends' family."""
        return "192.0.2.33" if family(self.backend(name)[0]) == 4 else "2001:db8:33::33"


def told(src, dst, l4, **header):
    """A packet between two ends; `l4` gets their ports."""
    l4 = l4.copy()
    l4.sport, l4.dport = src[1], dst[1]
    return ip(src[0], dst[0], number_of(l4), **header) / l4


def number_of(l4):
    return next(n for layer, n in ((TCP, 6), (UDP, 17), (SCTP, 132)) if l4.haslayer(layer))


def quoted(packet, l4_bytes):
    """What an error quotes of a packet."""
    whole = bytes(packet)
    return whole[: len(whole) - len(bytes(header_of(packet).payload)) + l4_bytes]


def crossing(src, dst):
    """The family that is come to, if it is another one."""
    return family(dst[0]) if family(src[0]) != family(dst[0]) else None


def is_between(packet, dst):
    return crossing((header_of(packet).dst,), dst)
