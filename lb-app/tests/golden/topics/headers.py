"""Every mode: headers."""

from kit import *

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
