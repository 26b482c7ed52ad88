"""Outer sources, GUE's port."""

from kit import *

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
