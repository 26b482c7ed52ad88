"""nat of IPv6 backends with IPv4 clients, who are seen behind a prefix (RFC 6052, RFC 7755)."""

from dataclasses import dataclass

from kit import *


@dataclass(frozen=True)
class Shown:
    """How a backend sees a client: nothing of it is open."""

    client: tuple
    prefix: str
    names = {}

    def end(self, _):
        prefix = int(ipaddress.ip_network(self.prefix).network_address)
        host = int(ipaddress.ip_address(self.client[0]))
        return str(ipaddress.ip_address(prefix + host)), self.client[1]


class Stateless(Translator):
    """The steps of one client."""

    def __init__(self, config, client):
        super().__init__(config)
        self.client = client

    def stand(self, name, number=1):
        return Shown(self.client, self.config.service(name)["client_prefix"])


def new():
    """A client of its own for each case, and its steps."""
    client = CLIENT[4], client_port()
    return client, Stateless(NAT46, client)


def packet_of(client, name, l4, **header):
    return told(client, Stateless(NAT46, client).vip(name), l4, **header)


def answering(name, l4, **header):
    """A function that makes the packet of the service's backend to (address, port)."""
    return lambda end: told(Stateless(NAT46, None).backend(name), end, l4, **header)


DST = own_vip(85, 4, 6)


def forth(what, name, packet, tags=(), pad=b"", **flags):
    """A client's packet, which comes to the backend."""
    layer = next((packet[l] for l in (TCP, UDP, SCTP) if packet.haslayer(l)), None)
    world = Stateless(NAT46, (header_of(packet).src, layer.sport if layer else None))
    step = world.forth(name, packet, tags, pad)
    case(f"nat-46: {what}", NAT46, step, rewrites=True, **flags)


def back(what, name, l4, tags=(), change=None, **header):
    """An answer of the backend, which comes to the client."""
    client, world = new()
    udp = l4.haslayer(UDP)
    step = world.back(name, client, answering(name, l4, **header), tags, udp=udp, change=change)
    case(f"nat-46: {what}", NAT46, step, rewrites=True)


def limited(size):
    def change(packet):
        packet[TCP].options = [("MSS", size)]
        return packet

    return change


SYN = {"tcp_flags": "S", "tcp_options": [("MSS", 1460)], "data": b""}

forth("TCP", "web", tcp(DST))
forth("TCP, SYN", "web", tcp(DST, **SYN))
forth("UDP", "dns", udp(DST))
forth("UDP without data", "dns", udp(DST, data=b""))
forth("an odd payload", "dns", udp(DST, data=pattern(1001)))
forth("the port stays, another prefix", "same", tcp(DST, 81))
forth("SCTP", "sctp", sctp(DST))
forth("any protocol", "any", other(own_vip(86, 4, 6), 253))
forth("any port", "any", tcp(own_vip(86, 4, 6), 7777))
forth("TTL 2", "web", tcp(DST, hops=2))
forth("TTL 255", "web", tcp(DST, hops=255))
forth("DSCP and ECN", "web", tcp(DST, tos=0xBB))
forth("a VLAN", "web", tcp(DST), tags=[7])
forth("QinQ", "dns", udp(DST), tags=[Dot1AD(vlan=7), 8])
forth("padding", "dns", udp(DST, data=b"q"), pad=b"\xaa" * 18)
forth("the most that fits", "web", sized(tcp, DST, 1480))
forth("DF not set", "web", tcp(DST, flags=0, ident=7))
forth("options", "web", tcp(DST, options=[IPOption_NOP()] * 8))
zero = udp(DST)
zero[UDP].chksum = 0
forth("no UDP checksum", "dns", zero)

for name, number, size in (("mss", 82, 1300), ("auto", 83, 1440)):
    packet = tcp(DST, number, **SYN)
    _, world = new()
    world.client = CLIENT[4], packet[TCP].sport
    # "auto": 1500 bytes as IPv6.
    step = world.forth(name, packet, change=limited(size))
    case(f"nat-46: MSS, {name}", NAT46, step, rewrites=True)

unread = tcp(DST, options=[IPOption_LSRR(routers=["10.1.1.1"])])
case("nat-46: an unexpired source route", NAT46, drop("untranslatable", eth(unread)))

back("answer, TCP", "web", TCP(flags="SA", seq=7, ack=2) / Raw(b"answer"))
back("answer, UDP", "dns", UDP() / Raw(b"answer"))
back("answer, SCTP", "sctp", SCTP(tag=7) / SCTPChunkData(data=b"weir", tsn=1))
back("answer, the port stays, another prefix", "same", TCP(flags="A") / Raw(b"answer"))
back("answer, TTL 2", "web", TCP(flags="A"), hops=2)
back("answer, DSCP in a VLAN", "web", TCP(flags="A"), tags=[7], tos=0xB8)
back("answer, a flow label", "web", TCP(flags="A"), label=0xABCDE)
syn_ack = TCP(flags="SA", options=[("MSS", 1460)])
back("answer, MSS", "mss", syn_ack, change=limited(1300))
back("answer of 1261 bytes", "web", TCP(flags="A") / Raw(pattern(1201)))
back("answer of 1400 bytes", "web", TCP(flags="A") / Raw(pattern(1340)))

# Who is not behind the prefix is no client; nor is another port's or host's packet an answer.
client, world = new()
shown = world.stand("web").end({})
host, number = world.backend("web")
strangers = (
    told((host, number), ("2001:db8::7", client[1]), TCP(flags="SA")),
    told((host, number), ("64:ff9b:1::1", client[1]), TCP(flags="SA")),
    told((host, number + 1), shown, TCP(flags="SA")),
    told((server(6, 99), number), shown, TCP(flags="SA")),
    told((host, number), shown, UDP()),
)
case("nat-46: no answers of the service", NAT46, *(punt(eth(p)) for p in strangers))

# TTL.
_, world = new()
steps = [world.told_expired("web", eth(tcp(DST, hops=hops))) for hops in (1, 0)]
case("nat-46: TTL 1 and 0", NAT46, *steps)
client, world = new()
step = world.told_back("web", client, answering("web", TCP(flags="A"), hops=1))
case("nat-46: answer, TTL 1", NAT46, step)

# Too big: the sender is told what fits as its own family counts.
_, world = new()
step = world.told_too_big("web", eth(sized(tcp, DST, 1481)), 1480)
case("nat-46: too big", NAT46, step)
client, world = new()
large = answering("web", TCP(flags="A") / Raw(pattern(1461)))
case("nat-46: answer, too big", NAT46, world.told_back("web", client, large, mtu=1520))
for length in (1481, 2000, 3100):
    packet = sized(tcp, DST, length, flags=0)
    world = Stateless(NAT46, (CLIENT[4], packet[TCP].sport))
    step = world.cut_forth("web", packet)
    case(f"nat-46: too big without DF, {length} bytes", NAT46, step, rewrites=True)

# Fragments.
ranges = [(0, 160), (160, 320), (320, None)]
for what, order in (("in order", [0, 1, 2]), ("shuffled", [1, 0, 2])):
    packet = datagram(DST, pattern(392))
    world = Stateless(NAT46, (CLIENT[4], packet[UDP].sport))
    steps = world.pieces_forth("dns", packet, ranges, order)
    case(f"nat-46: fragments {what}", NAT46, *steps, order=order, rewrites=True)
    client, world = new()
    make = answering("dns", UDP() / Raw(pattern(392)))
    steps = world.pieces_back("dns", client, make, ranges, order, udp=True)
    case(f"nat-46: answer in fragments {what}", NAT46, *steps, order=order, rewrites=True)

# ICMP errors, both ways (RFC 7915 4.2, 5.2).
for layer, name, l4 in (
    ("TCP", "web", TCP() / Raw(pattern(64))),
    ("UDP", "dns", UDP() / Raw(pattern(64))),
):
    for length in (8, 72):
        for what, icmp in ERRORS[4]:
            client, world = new()
            step = world.error_forth(name, client, icmp, l4, length)
            text = f"nat-46: ICMP, {what}, {layer}, {length} bytes quoted"
            case(text, NAT46, step, rewrites=True)
        for what, icmp in ERRORS[6]:
            client, world = new()
            step = world.error_back(name, client, icmp, l4, length)
            text = f"nat-46: ICMP, {what}, {layer}, {length} bytes quoted, of the backend's side"
            case(text, NAT46, step, rewrites=True)
