"""Any protocol, any port, SCTP in every mode."""

from kit import *

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
