"""Too big."""

from kit import *

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
