"""What make.py is written in: the flow hash, frames, configurations, and what has to leave for
what comes in. All of it from the documentation, with scapy; nothing is taken from Weir's output.
"""

import ipaddress
import json
import struct
from dataclasses import dataclass, field
from pathlib import Path

from scapy.all import conf
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrFragment, ICMPv6PacketTooBig
from scapy.layers.l2 import GRE, Dot1AD, Dot1Q, Ether
from scapy.layers.sctp import SCTP
from scapy.packet import Raw

conf.route.resync = conf.route6.resync = lambda: None  # no case depends on this machine's routes

HERE = Path(__file__).resolve().parent

# ---- The flow hash: rapidhash v3 nano, avalanche and protected (lb-core/src/flow_hash.rs) ----------

HASH_KEY = b"weir test vector"
MASK = (1 << 64) - 1
SECRETS = (
    0x2D358DCCAA6C78A5,
    0x8BB84B93962EACC9,
    0x4B33A62ED433D4A3,
    0x4D5A2DA51DE1AA47,
    0xA0761D6478BD642F,
    0xE7037ED1A0B428DB,
    0x90ED1765281C388C,
)


def mix(a, b):
    product = a * b
    return (product & MASK) ^ (product >> 64)


def mum_protected(a, b):
    product = a * b
    return a ^ (product & MASK), b ^ (product >> 64)


def mix_protected(a, b):
    low, high = mum_protected(a, b)
    return low ^ high


def premix(seed, i):
    seed ^= mix(seed ^ SECRETS[2], SECRETS[i])
    for part, bit in ((0xFFFF << 48, 63), (0xFFFF << 24, 31), (0xFFFF, 0)):
        if seed & part == 0:
            seed |= 1 << bit
    return seed


def secrets_of(seed):
    seed, secrets = premix(seed, 0), []
    for i in range(7):
        seed = premix(seed, i)
        secrets.append(seed)
    return secrets


def rapidhash_nano(data, seed, secrets):
    word = lambda at: struct.unpack_from("<Q", data, at)[0]
    assert 8 <= len(data) <= 48, "what flows need"
    if len(data) <= 16:
        seed ^= len(data)
        a, b = word(0), word(len(data) - 8)
    else:
        seed = mix_protected(word(0) ^ secrets[2], word(8) ^ seed)
        if len(data) > 32:
            seed = mix_protected(word(16) ^ secrets[2], word(24) ^ seed)
        a, b = word(len(data) - 16) ^ len(data), word(len(data) - 8)
    a, b = mum_protected(a ^ secrets[1], b ^ seed)
    return mix_protected(a ^ 0xAAAAAAAAAAAAAAAA, b ^ secrets[1] ^ len(data))


KEY_SECRETS = secrets_of(struct.unpack("<Q", HASH_KEY[:8])[0])
KEY_SEED = struct.unpack("<Q", HASH_KEY[8:])[0]


@dataclass(frozen=True)
class Flow:
    """Client to service."""

    src: str
    dst: str
    sport: int
    dport: int
    proto: int

    def hash(self, with_ports=True):
        ports = (self.sport, self.dport) if with_ports else (0, 0)
        data = packed(self.src) + packed(self.dst) + struct.pack("!HHBxxx", *ports, self.proto)
        return rapidhash_nano(data, KEY_SEED, KEY_SECRETS)


def packed(address):
    return ipaddress.ip_address(address).packed


for flow, with_ports, known in (
    (Flow("198.51.100.7", "10.0.0.100", 40000, 80, 6), True, 18_253_214_449_191_798_085),
    (Flow("198.51.100.7", "10.0.0.100", 40000, 80, 6), False, 11_622_113_520_215_061_198),
    (Flow("2001:db8::7", "fd00::100", 40000, 80, 6), True, 6_587_173_234_263_165_396),
    (Flow("2001:db8::7", "fd00::100", 40000, 80, 6), False, 12_825_226_777_488_794_591),
):
    assert flow.hash(with_ports) == known, "the vectors of flow_hash.rs"

# ---- Frames ----------------------------------------------------------------------------------------

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


def cut(packet, ranges, extensions=()):
    """The fragments of a packet that scapy built: one for each (from, to) of its payload, `to` None
    for the end. `extensions` are IPv6 headers that every fragment has. Each datagram has an id of
    its own.
    """
    ident = next(_idents)
    whole = bytes(packet)
    if whole[0] >> 4 == 4:
        header_len = (whole[0] & 15) * 4
        payload = whole[header_len:]
        pieces = []
        for start, end in ranges:
            end = len(payload) if end is None else end
            piece = packet.copy()
            piece.remove_payload()
            piece.proto, piece.id, piece.frag = whole[9], ident, start // 8
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


# ---- Configurations --------------------------------------------------------------------------------


@dataclass
class Config:
    """One TOML file beside this one, which is written from it."""

    name: str
    about: str
    ports: list
    services: list = field(default_factory=list)

    @property
    def file(self):
        return f"{self.name}.toml"

    def service(self, name):
        return next(service for service in self.services if service["name"] == name)

    def out_port(self, service):
        """The port that frames to the service's backend leave by."""
        backend = service["backends"][0]
        if "interface" in backend:
            return next(port for port in self.ports if port["name"] == backend["interface"])
        address = ipaddress.ip_address(backend["address"])
        for port in self.ports:
            if any(address in ipaddress.ip_interface(a).network for a in port["addresses"]):
                return port
        return self.ports[0]

    def toml(self):
        def value(of):
            if isinstance(of, bool):
                return str(of).lower()
            if isinstance(of, dict):
                return "{ " + ", ".join(f"{k} = {value(v)}" for k, v in of.items()) + " }"
            if isinstance(of, list):
                return "[" + ", ".join(map(value, of)) + "]"
            return json.dumps(of)

        lines = [f"# {self.about} Written by make.py.", "", "[site]"]
        lines.append(f'hash_key = "{HASH_KEY.hex()}"')
        for kind, tables in (("port", self.ports), ("service", self.services)):
            for table in tables:
                lines += ["", f"[[{kind}]]"]
                lines += [f"{key} = {value(of)}" for key, of in table.items()]
        return "\n".join(lines) + "\n"


def port(name="lan0", mtu=1500, mac=OUR_MAC, net="10.0.0", net6="fd00", **more):
    addresses = [f"{net}.2/24", f"{net6}::2/64"]
    return {
        "name": name,
        "device": {"lan0": "net_null0", "wan0": "net_null1"}[name],
        "addresses": addresses,
        "mac": mac,
        "mtu": mtu,
    } | more


def service(name, address, port, protocol, forward, backend, mac, interface=None, **more):
    """A service with one backend, so that what is chosen does not depend on the lookup table."""
    backend = {"address": backend, "mac": mac}
    if interface:
        backend["interface"] = interface
    head = {"name": name, "address": address, "port": port, "protocol": protocol}
    # Few slots: building tables would otherwise take most of the suite's time.
    return head | {"forward": forward, "slots": 251} | more | {"backends": [backend]}


# ---- What has to leave -----------------------------------------------------------------------------

OVERHEAD = {"l2dsr": 0, "ipip": 0, "gre": 4, "gue": 8}
OUTER_HEADER = {4: 20, 6: 40}


@dataclass
class Out:
    """A frame that leaves. `wild` are bytes that the specification leaves open: (offset, length,
    name); what has a name is equal wherever the name is, and "_" is anything.
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
    addresses = config.out_port(service)["addresses"]
    return next(str(i.ip) for i in map(ipaddress.ip_interface, addresses) if i.version == fam)


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
    packet = ip_packet(frame)
    mtu = config.out_port(service)["mtu"] - overhead(service)
    if packet[0] >> 4 == 4:
        src, dst = packet[12:16], packet[16:20]
        header = IP(src=address(dst), dst=address(src), tos=0xC0, id=0, flags="DF", ttl=64)
        # RFC 1812 4.3.2.3: as much as fits 576 bytes.
        error = header / ICMP(type=3, code=4, nexthopmtu=mtu) / Raw(packet[: 576 - 28])
    else:
        src, dst = packet[8:24], packet[24:40]
        header = IPv6(src=address(dst), dst=address(src), hlim=64)
        # RFC 4443 2.4 (c): as much as fits the least MTU.
        error = header / ICMPv6PacketTooBig(mtu=max(mtu, 1280)) / Raw(packet[: 1280 - 48])
    ours = bytes.fromhex(config.ports[0]["mac"].replace(":", ""))
    return Out(frame[6:12] + ours + frame[12 : l3_offset(frame)] + bytes(error))


def address(octets):
    return str(ipaddress.ip_address(octets))


# ---- Cases -----------------------------------------------------------------------------------------


@dataclass
class Step:
    """A frame that comes in, what is said of it, and what leaves for it."""

    frame: bytes
    expect: tuple
    outs: list
    at: float = 0.0


@dataclass
class Case:
    name: str
    config: Config
    steps: list
    order: list
    flags: dict


CASES = []


def case(name, config, *steps, order=None, **flags):
    """Adds a case. `order` is the order in which the frames leave, by their place among `steps`.

    Flags: `bad` (some input is not a good packet, so the output need not be one), `rewrites` (the
    packet may change inside its outer header).
    """
    assert name not in {case.name for case in CASES}, name
    for i, step in enumerate(steps):
        if step.at == 0:
            step.at = i * 0.001
    order = list(range(len(steps))) if order is None else order
    assert sorted(order) == list(range(len(steps)))
    CASES.append(Case(name, config, list(steps), order, flags))


class World:
    """Steps of one configuration."""

    def __init__(self, config):
        self.config = config

    def send(self, name, frame, flow, rule="flow", at=0.0, result=None):
        """`frame` goes to the backend of the service. `result` are other bytes of the frame that
        is forwarded, if it is changed on the way."""
        service = self.config.service(name)
        flow_hash = hash_of(service, flow)
        outs = forwarded(self.config, service, result or frame, flow_hash)
        slot = flow_hash * service["slots"] >> 64
        backend, port = service["backends"][0]["address"], self.config.out_port(service)["name"]
        expect = ("send", rule, name, slot, backend, port)
        return Step(frame, expect, outs, at)

    def answer(self, name, frame, at=0.0):
        """`frame` is answered: too big for the service's way."""
        out = too_big(self.config, self.config.service(name), frame)
        return Step(frame, ("answer", "too_big", name), [out], at)


def punt(frame, at=0.0):
    """`frame` is the kernel's."""
    return Step(frame, ("punt",), [], at)


def drop(reason, frame, at=0.0, service=None):
    """`frame` is dropped; for one of the reasons, if there are several."""
    reasons = reason if isinstance(reason, str) else "|".join(reason)
    return Step(frame, ("drop", reasons, *([service] if service else [])), [], at)


# ---- Files -----------------------------------------------------------------------------------------


def shared_tail(data, frames):
    """The longest end of `data` that is some frame's: (length, which frame, its start there)."""
    best = (0, 0, 0)
    for i, frame in enumerate(frames):
        low, high = 0, min(len(data), len(frame))
        while low < high:  # if an end is in the frame, so are all that are shorter
            middle = (low + high + 1) // 2
            low, high = (middle, high) if data[-middle:] in frame else (low, middle - 1)
        best = max(best, (low, i, frame.find(data[len(data) - low :])), key=lambda x: (x[0], -x[1]))
    return best


def text(out, frames=()):
    """Hex; stretches of PATTERN as <start:length>, open bytes as {name:length}, and an end that is
    also in one of `frames` as (frame:start:length), frames counted from 0.
    """
    data, wild = out.bytes, {at: (length, name) for at, length, name in out.wild}
    parts, at, tail = [], 0, ""
    length, i, start = (0, 0, 0) if wild else shared_tail(data, frames)
    if length >= 8:
        data, tail = data[: len(data) - length], f"({i}:{start}:{length})"
    while at < len(data):
        if at in wild:
            length, name = wild[at]
            parts.append(f"{{{name}:{length}}}")
            at += length
            continue
        limit = min((w for w in wild if w > at), default=len(data))
        start = PATTERN.find(data[at : at + 12]) if limit - at >= 12 else -1
        if start >= 0:
            length = 12
            while (
                at + length < limit
                and PATTERN[start + length : start + length + 1]
                == data[at + length : at + length + 1]
            ):
                length += 1
            parts.append(f"<{start}:{length}>")
            at += length
        else:
            parts.append(f"{data[at]:02x}")
            at += 1
    return "".join(parts) + tail


def verdict(step):
    """In words: "send RULE SERVICE SLOT BACKEND PORT", behind which "xN" if N frames leave; "punt";
    "drop REASON|REASON", behind which the service, if it has to be told; "answer REASON SERVICE".
    """
    many = [f"x{len(step.outs)}"] if len(step.outs) > 1 else []
    return " ".join([*map(str, step.expect), *many])


def record(case):
    outs = []
    names = iter("abcdefghijklmnopqrstuvwxyz")
    for place in case.order:
        step = case.steps[place]
        # Each datagram that is cut has a name of its own for its id.
        mine = next(names) if any(out.wild for out in step.outs) else None
        for out in step.outs:
            named = tuple(
                (at, length, mine if name != "_" else name) for at, length, name in out.wild
            )
            outs.append(text(Out(out.bytes, named), [step.frame for step in case.steps]))
    frames = []
    for i, step in enumerate(case.steps):
        before = [step.frame for step in case.steps[:i]]
        frames.append([round(step.at * 1_000_000), text(Out(step.frame), before)])
    record = {"name": case.name, "config": case.config.file} | case.flags
    return record | {"in": frames, "verdicts": list(map(verdict, case.steps)), "out": outs}


def write(configs):
    for config in configs:
        (HERE / config.file).write_text(config.toml())
    with (HERE / "cases.jsonl").open("w") as file:
        for case in CASES:
            file.write(json.dumps(record(case), separators=(",", ":")) + "\n")
